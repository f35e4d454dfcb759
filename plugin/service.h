/* SPDX-License-Identifier: BSD-3-Clause
 *
 * service: a queue of operations that are due at a moment, and the threads
 * that serve them then.
 *
 * Not its job: what serving an operation means and who is told (the calls
 * in struct service_calls), nbdkit.
 *
 * An operation:
 *
 *   queued     in the heap            service_submit
 *   applying   in a thread's slot     a thread takes it near its deadline
 *   applied    in the slot, until it is due
 *   replied    gone; not before its deadline, unless stopping
 *
 *   queued -> the caller's            service_cancel
 *
 * A thread is serving, leading (sleeps until the first operation must be
 * taken, or for as long as there is none), or idle (sleeps until called).
 *
 * Invariants:
 * 1. At most one thread leads.  When none does, at least one is serving, or
 *    called and about to look at the queue.
 * 2. look_ns is when a thread looks at the queue next, UINT64_MAX where who
 *    leads waits for a first operation.  Who takes or submits what lets
 *    something be due before that, and only he, wakes a thread.
 * 3. The heap's first is the one that must be taken first.
 * 4. What was submitted is replied to or handed back by service_cancel.
 *
 * Who cancels an operation that is in a slot waits until it has been replied
 * to, and holds nothing that the reply may need.
 *
 * Locks: one, short; no call is made and nothing is copied under it.
 * Memory: operations are kept by value in the heap, which grows to the most
 * that were ever queued.
 */

#ifndef DELAYMEM_SERVICE_H
#define DELAYMEM_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#define SERVICE_MAX_THREADS 64

/* What the module needs to know of an operation is conn, reqid and count;
 * the rest is for who gave it.
 */
struct service_op {
  void *conn;
  uint64_t reqid;
  union {
    void *to;                   /* a read */
    const void *from;           /* a write */
  } buf;
  uint64_t offset;
  uint32_t count;               /* of bytes to be copied */
  uint32_t kind;
  uint32_t flags;
};

struct service_calls {
  /* Does what the operation is about.  Only here buf is touched. */
  void (*apply) (const struct service_op *op);
  void (*reply) (const struct service_op *op);
  /* May be NULL.  Asked now and then while long delays are queued; once it
   * has said yes, it is not asked again and everything is due.
   */
  bool (*is_shutting_down) (void);
};

struct service;

/* CALLS stays the caller's, and must stay.  NULL with errno set. */
extern struct service *service_new (const struct service_calls *calls);
/* Stops if that was not done. */
extern void service_free (struct service *sv);

/* Returns 0 or an errno, and then no thread runs. */
extern int service_start (struct service *sv, unsigned threads);
/* Serves everything that is queued at once, and ends the threads. */
extern void service_stop (struct service *sv);

/* Queues a copy of OP, to be replied to in DELAY_NS from now.  Returns 0 or
 * ENOMEM.
 */
extern int service_submit (struct service *sv, const struct service_op *op,
                           uint64_t delay_ns);

/* Returns true if the operation was still queued: it is the caller's now, in
 * *OP.  Otherwise it has been replied to when this returns, or, where the reply
 * is what calls this, has been applied.
 */
extern bool service_cancel (struct service *sv, void *conn, uint64_t reqid,
                            struct service_op *op);

#endif /* DELAYMEM_SERVICE_H */
