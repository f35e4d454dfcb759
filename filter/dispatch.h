/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Dispatching a buffer's operation: to a worker of the pool, or to the plugin's
 * async hooks if the filter may drive them.  engine.lock is here, too, because
 * its release calls the hooks.
 *
 * Buffers are dispatched under engine.lock, but the lock is never held across a
 * call into the plugin.  So operations for hooks are collected in
 * engine.starts, and the thread that releases the lock calls the hooks.
 * Whenever the lock is free, engine.starts is empty.
 *
 *   engine_unlock_and_dispatch calls into the plugin.  It may take as long as
 *   the plugin's hook does, so hold no other lock.
 *
 * The hook of one connection is never called on nbdkit's thread of another
 * one, because the plugin may ask there which connection it serves
 * (dispatch_set_conn).  Nor is a hook called inside a plugin's reply, because
 * the plugin may hold locks that its hooks take.  A worker calls it then.
 */
#ifndef ASYNCPOOL_DISPATCH_H
#define ASYNCPOOL_DISPATCH_H

#include "engine.h"

extern void engine_unlock_and_dispatch (struct engine *);

static inline struct engine *
engine_lock (struct engine *e)
{
  lock_take (&e->lock);
  return e;
}

static inline void
engine_end_scope (struct engine **e)
{
  engine_unlock_and_dispatch (*e);
}

/* Holds engine.lock until the end of the enclosing block, then dispatches. */
#define ENGINE_LOCK_THEN_DISPATCH(e)                                        \
  __attribute__ ((cleanup (engine_end_scope)))                          \
    struct engine *engine_in_scope = engine_lock (e);                   \
  (void) engine_in_scope

/* These want the lock and release it while they wait.  They may return early:
 * check the condition again.
 */
extern void engine_wait (struct engine *, struct cond *);
/* Returns true when UNTIL_NS has passed. */
extern bool engine_wait_until (struct engine *, struct cond *,
                               uint64_t until_ns);
/* For a condition that depends on the plugin, on a thread that is in a call for
 * this connection.  Returns 0, or ETIMEDOUT at UNTIL_NS (UINT64_MAX: never).
 * Returns ESHUTDOWN if the plugin is silent (backend_is_silent): the thread's
 * client has gone or the connection ends, and no hook replies any more.  The
 * operations themselves go on.
 */
extern int engine_wait_plugin (struct conn *, struct cond *, uint64_t until_ns);
/* The same for the end of a connection, without a time limit.  If the plugin is
 * silent, gives up the connection's own operations, which then end with
 * ESHUTDOWN.  Returns whether it did.
 */
extern bool engine_wait_end (struct conn *, struct cond *);

/* The connection that this thread is in a call for; NULL: none. */
extern void dispatch_set_conn (const struct conn *);

/* Has bytes [lo, hi) of the buffer read or written through its connection.
 * Then DONE is called once, without the lock, on another thread or when this
 * thread releases the lock.  DONE clears buf.hooked under the lock.  Wants the
 * lock.
 */
extern void dispatch_buf (struct buf *, bool is_write, enum pool_queue,
                          void (*done) (struct backend_io *, int err));
/* Does a dispatched operation on the calling thread, and calls its DONE.  The
 * caller has taken it out of the pool's queue.  Wants no lock.
 */
extern void dispatch_do (struct buf *);

#endif
