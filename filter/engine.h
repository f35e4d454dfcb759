/* The engine: what each request of a client does, in which order.
 *
 * A connection passes its requests in; they go straight to the plugin, or to buffers (ahead.h,
 * behind.h), and state.h says what keeps the two consistent.  Nothing here knows nbdkit.
 *
 * All functions return 0 or a positive errno unless they say otherwise.  engine_read ... may be
 * called from many threads for one connection; conn_close only after the last of them has returned.
 */
#ifndef ASYNCPOOL_ENGINE_H
#define ASYNCPOOL_ENGINE_H

#include "behind.h"
#include "state.h"

/* Allocates the slab (ENOMEM: it does not fit).  No thread runs yet. */
extern int engine_new (const struct engine_config *, struct engine **);
/* Starts the threads, after the server has forked. */
extern int engine_start (struct engine *);
/* Ends the threads; all connections are closed.  What was kept and is lost now goes to REPORT. */
extern void engine_stop (struct engine *, behind_report *);
extern void engine_free (struct engine *);

/* BACKEND: pace_* and stats are set here, the rest by the caller. */
extern int conn_open (struct engine *, const char *export_name, bool tls, const struct backend *,
                      struct conn **);
extern void conn_close (struct conn *, behind_report *);

extern int engine_read (struct conn *, void *buf, uint32_t count, uint64_t offset);
/* FLAGS are those of backend.h. */
extern int engine_write (struct conn *, const void *buf, uint32_t count, uint64_t offset,
                         unsigned flags);
extern int engine_zero (struct conn *, uint32_t count, uint64_t offset, unsigned flags);
extern int engine_trim (struct conn *, uint32_t count, uint64_t offset, unsigned flags);
extern int engine_flush (struct conn *);
/* Before the plugin is asked for extents: true if data waits there that it cannot be given. */
extern bool engine_settle (struct conn *, uint32_t count, uint64_t offset);

#endif
