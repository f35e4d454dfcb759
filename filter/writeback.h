/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Write-back: holds acknowledged writes in buffers and coalesces adjacent ones.
 * A thread submits the buffers that stopped growing.
 *
 * Not its job: the order of writes (order.h), flush and errors (flush.h).
 */
#ifndef ASYNCPOOL_WRITEBACK_H
#define ASYNCPOOL_WRITEBACK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "cond.h"
#include "speed.h"

struct conn;
struct engine;

struct writeback {
  pthread_t thread;             /* constant after writeback_start */
  /* Under engine.lock. */
  struct cond wake;             /* the thread has a new deadline, or must end */
  bool is_idle;                 /* the thread waits without a deadline */
  uint64_t queued_since_ns;     /* a write is queued without a worker on its way
                                 * (pool.h); UINT64_MAX: none */
  /* Atomic. */
  struct depth filling;         /* whole buffers that the clients' writes in
                                 * flight would fill */
};

extern void writeback_init (struct engine *);
/* The thread; 0 or the errno of starting it. */
extern int writeback_start (struct engine *);
/* After engine.stopping was set and wake signalled. */
extern void writeback_join (struct engine *);
/* It is to do something sooner than it knows.  Wants the lock. */
extern void writeback_wake (struct engine *);

/* Copies a write that lies within one unit into a buffer.  It waits for a
 * buffer where there is none; *NOW_NS is later then.  EAGAIN if the write
 * cannot be deferred: nothing was copied, and it must be a direct operation.
 * ESHUTDOWN as engine_wait_plugin.  Wants no lock.
 */
extern int writeback_hold (struct conn *, const void *buf, uint32_t count,
                           uint64_t offset, uint64_t *now_ns);
/* A write was queued, and no worker is on its way to it.  The thread wakes one
 * after linger_ns, as the workers that are busy may hang.  Wants engine.lock.
 */
extern void writeback_note_queued (struct engine *);

#endif
