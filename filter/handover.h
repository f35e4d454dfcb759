/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Handing a buffer's operation over: to a worker of the pool, or to the plugin itself where we may
 * drive its async hooks.  And engine.lock, which has a part in that:
 *
 * engine.lock is never held across a call into the plugin, but it is under the
 * lock that operations are handed over.  So those for hooks are collected in
 * engine.starts, and the thread that lets go of the lock starts them.  Whenever
 * the lock is free, there are none.
 *
 * A hook for one connection is never called on nbdkit's thread of another one:
 * the plugin may ask there which connection it is.  A worker starts what such a
 * thread would have to start for another connection (handover_set_conn).
 *
 * A plugin that replies may hold locks which its hooks take, too: a worker
 * starts what is handed over inside a reply.
 */
#ifndef ASYNCPOOL_HANDOVER_H
#define ASYNCPOOL_HANDOVER_H

#include "state.h"

extern void engine_unlock (struct engine *);

static inline struct engine *
engine_lock (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  return e;
}

static inline void
engine_unlock_scope (struct engine **e)
{
  engine_unlock (*e);
}

/* Held until the end of the enclosing block. */
#define ENGINE_LOCK_IN_SCOPE(e)                                                                 \
  __attribute__ ((cleanup (engine_unlock_scope))) struct engine *engine_locked = engine_lock (e); \
  (void) engine_locked

/* These want the lock and let go of it meanwhile.  They may return early: look again. */
extern void engine_wait (struct engine *, struct cond *);
/* True: it is time. */
extern bool engine_wait_until (struct engine *, struct cond *, uint64_t until_ns);
/* For conditions that depend on the plugin; on a thread that is in a call for
 * this connection.  Returns 0; ETIMEDOUT at UNTIL_NS (UINT64_MAX: never);
 * ESHUTDOWN when the thread's client has gone, or the connection ends, and the
 * plugin replies no more.  The operations that the call waits for go on all the
 * same.
 */
extern int engine_wait_plugin (struct conn *, struct cond *, uint64_t until_ns);
/* The end of a connection.  The same, but then its own operations are given up: they end with
 * ESHUTDOWN.  Returns whether they were.
 */
extern bool engine_wait_end (struct conn *, struct cond *);

/* The connection that this thread is in a call for; NULL: none. */
extern void handover_set_conn (const struct conn *);

/* Has bytes [lo, hi) of the buffer read or written, for its connection; then calls DONE, without the
 * lock, on another thread or when this one lets go of the lock.  Wants the lock.  DONE clears buf.hooked
 * under the lock.
 */
extern void handover (struct buf *, bool is_write, enum pool_queue,
                      void (*done) (struct backend_io *, int err));

static inline struct buf *
buf_of_io (struct backend_io *io)
{
  return (struct buf *) ((char *) io - offsetof (struct buf, io));
}

#endif
