/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Connections: their life, and each request of a client from begin to end.
 *
 * A request goes straight to the plugin, or to buffers.  read.h serves reads
 * from buffers, writeback.h holds writes, order.h keeps the order.
 *
 * conn_read, conn_write ... may be called from many threads for one connection
 * until conn_free.  They return 0 or a positive errno.  ESHUTDOWN: the
 * connection has ended, or the plugin did not reply to its hooks and the client
 * of the calling thread has gone.
 */
#ifndef ASYNCPOOL_CONN_H
#define ASYNCPOOL_CONN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "backend.h"
#include "changes.h"
#include "extents.h"
#include "lock.h"
#include "speed.h"
#include "stream.h"

struct device;
struct engine;

struct conn {
  /* Constant from conn_open on. */
  struct engine *engine;
  struct device *device;
  struct backend backend;
  struct pool *pool;            /* for its operations: the engine's, or that of
                                 * its contexts */
  uint32_t unit;                /* bytes of a usual buffer that it uses */
  uint32_t large_units;         /* units of a large prefetch; 1: it has none */
  bool shares;                  /* it may use the device's buffers */
  /* Atomic. */
  atomic_uint calls;            /* CONN_CALL per call, and CONN_CLOSED */
  atomic_bool defers;           /* its writes may be deferred */
  atomic_int show_error;        /* of a flush of the filter's own; the next
                                 * flush on this connection returns it */
  atomic_uint direct_reads;     /* its demand reads in the plugin */
  struct depth depth, depth_kib;        /* of requests; of their data in KiB */
  /* Under streams_lock. */
  struct lock streams_lock;
  struct streams streams;
  struct conn_extents extents;  /* under extents.lock */
  /* Under wrote_lock, see device.h. */
  struct lock wrote_lock;
  struct changes wrote;         /* its changes since the last flush of the
                                 * device began */
  struct changes wrote_alone;   /* all its changes, if conn_writes_alone */
  /* Under engine.lock. */
  struct changes flushing;      /* its changes before that, until a flush that
                                 * shows them to all has succeeded */
  unsigned n_dirty;             /* its dirty buffers */
  unsigned n_reading;           /* its READING buffers, also dropped ones */
  unsigned ahead_units;         /* units of its READING and CLEAN buffers in
                                 * the tree */
  uint64_t evicted_at;          /* lowest prefetched unit of it that was
                                 * evicted, until readahead.c takes the value;
                                 * UINT64_MAX: none */
  uint64_t read_ns;             /* when a read continued a stream last */
  GList link;                   /* in engine.conns */
};

enum { CONN_CLOSED = 1, CONN_CALL = 2 };
/* How many buffers a limit allows for each context, at most. */
enum { CONN_PER_CONTEXT = 4 };

/* BACKEND: the caller sets all but the engine's fields.  EINVAL: the
 * plugin's minimum block is larger than a buffer.  ENOMEM.
 */
extern int conn_open (struct engine *, const char *export_name,
                      const struct backend *, struct conn **);
/* Ends the connection: waits for the calls under way, and writes its dirty
 * data. Later calls fail; a second conn_close does nothing.  Its prefetches
 * may still be in flight, so that nbdkit lets the client go before conn_free.
 */
extern void conn_close (struct conn *);
/* Waits until none of its prefetches is in flight. */
extern void conn_wait_for_prefetches (struct conn *);
/* After conn_close and the last call, before engine_free.  Waits for its
 * prefetches.
 */
extern void conn_free (struct conn *);

/* Around a call for the connection that is none of those below.  enter returns
 * false if the connection has ended: do not call leave then.
 */
extern bool conn_enter (struct conn *);
extern void conn_leave (struct conn *);

extern int conn_read (struct conn *, void *buf, uint32_t count,
                      uint64_t offset);
/* conn_read for a connection that has ended: does not prefetch. */
extern int conn_read_closed (struct conn *, void *buf, uint32_t count,
                             uint64_t offset);
/* FLAGS are those of backend.h. */
extern int conn_write (struct conn *, const void *buf, uint32_t count,
                       uint64_t offset, unsigned flags);
extern int conn_zero (struct conn *, uint32_t count, uint64_t offset,
                      unsigned flags);
extern int conn_trim (struct conn *, uint32_t count, uint64_t offset,
                      unsigned flags);
/* IS_OWN: the connection's client sent it.  From then on that connection's
 * writes may be deferred.
 */
extern int conn_flush (struct conn *, bool is_own);
/* Block status, see extents_serve. */
extern int conn_extents (struct conn *, uint32_t count, uint64_t offset,
                         bool is_one, struct extentset *answer);

/* Whether other threads could help this client: the device waits, and the
 * client does not keep as many requests in flight itself as the limit allows.
 */
extern bool conn_gains (struct conn *, bool is_write);
/* The size of the pieces of a direct request: one unit.  With contexts, so many
 * units that all requests in flight find a context.
 */
extern uint32_t conn_piece (struct conn *, uint32_t count);
/* Whether a thread that is in a call for this connection may call the plugin
 * with the other one's own handle.  Not if that has hooks: the plugin may ask
 * which connection the thread serves.  Not if it is serial: the retry filter
 * may be below, and it reopens the handle for the thread's connection.
 */
extern bool conn_may_call_for (const struct conn *, const struct conn *other);
/* Whether writes are done with the connection's own context only: the plugin
 * has contexts, but it does not say that all show the same data.
 */
extern bool conn_writes_alone (const struct conn *);
/* Whether the plugin may refuse the request for its offset or size.  The plugin
 * gets such a request whole, so that it refuses all of it or nothing.
 */
extern bool conn_is_refusable (const struct conn *, uint32_t count,
                               uint64_t offset);

#endif
