/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The engine: what each request of a client does, in which order.
 *
 * A connection passes its requests in; they go straight to the plugin, or to buffers (ahead.h,
 * behind.h), and state.h says what keeps the two consistent.  Nothing here knows nbdkit.
 *
 * All functions return 0 or a positive errno unless they say otherwise.  engine_read ... may be
 * called from many threads for one connection until conn_free.  ESHUTDOWN: the
 * connection has ended, or the plugin did not reply to its hooks and the client
 * of the calling thread has gone.
 */
#ifndef ASYNCPOOL_ENGINE_H
#define ASYNCPOOL_ENGINE_H

#include "behind.h"
#include "state.h"

/* Allocates the slab (ENOMEM: it does not fit).  No thread runs yet. */
extern int engine_new (const struct engine_config *, struct engine **);
/* Starts the threads, after the server has forked. */
extern int engine_start (struct engine *);
/* Ends the connections that are still open, and the threads. */
extern void engine_stop (struct engine *);
/* All connections are freed. */
extern void engine_free (struct engine *);

/* BACKEND: pace_* and stats are set here, the rest by the caller. */
extern int conn_open (struct engine *, const char *export_name, const struct backend *, struct conn **);
/* Ends the connection: waits for the calls under way, and writes its dirty
 * data.  Later calls fail; a second conn_close does nothing.  What it reads ahead
 * may still be under way: nbdkit lets the client go before conn_free.
 */
extern void conn_close (struct conn *);
/* After conn_close and the last call, before engine_free.  Waits until nothing is
 * read ahead through the connection any more.
 */
extern void conn_free (struct conn *);

/* Enclose a call for the connection that is none of those below.  enter returns
 * false where the connection has ended: then do not call leave.
 */
extern bool conn_enter (struct conn *);
extern void conn_leave (struct conn *);

extern int engine_read (struct conn *, void *buf, uint32_t count, uint64_t offset);
/* For a connection that has ended: nothing is read ahead. */
extern int engine_read_late (struct conn *, void *buf, uint32_t count, uint64_t offset);
/* FLAGS are those of backend.h. */
extern int engine_write (struct conn *, const void *buf, uint32_t count, uint64_t offset,
                         unsigned flags);
extern int engine_zero (struct conn *, uint32_t count, uint64_t offset, unsigned flags);
extern int engine_trim (struct conn *, uint32_t count, uint64_t offset, unsigned flags);
/* IS_OWN: the connection's client sent it.  From then on that connection's writes may be deferred. */
extern int engine_flush (struct conn *, bool is_own);
/* Call between enter and leave, before asking the plugin for extents.  True if
 * there is failed data in the range.
 */
extern bool engine_settle (struct conn *, uint32_t count, uint64_t offset);

#endif
