/* SPDX-License-Identifier: BSD-3-Clause
 *
 * service: a queue of operations, each with a deadline, and the threads that
 * serve them.
 *
 * The meaning of an operation and the receiver of its reply are up to the
 * caller (struct service_calls).
 *
 * An operation:
 *
 *   queued     in the heap            service_submit
 *   applying   in a thread's slot     a thread takes it near its deadline
 *   applied    in the slot            until the deadline
 *   replied    gone                   at the deadline, or sooner at the end
 *
 *   queued -> the caller's            service_cancel
 *
 * A thread serves an operation, or leads, or is idle.  The leading thread
 * sleeps until it must take the first operation.  An idle thread sleeps until
 * it is called.
 *
 * Invariants:
 * 1. At most one thread leads.  If none leads, at least one serves, or is
 *    called and about to look at the queue.
 * 2. look_ns is when a thread looks at the queue next.  It is UINT64_MAX while
 *    the leading thread waits for a first operation.  A thread wakes another
 *    one if it makes an operation due before look_ns, and only then.
 * 3. The first of the heap is the operation that must be taken first.
 * 4. Each submitted operation gets a reply, or service_cancel returns it.
 *
 * service_cancel waits for the reply of an operation that is in a slot.  It
 * holds nothing meanwhile that the reply may need.
 *
 * One lock covers everything.  No thread calls service_calls or copies data
 * while it holds the lock.  The heap holds operations by value, and grows to
 * the largest number that was ever queued.
 */

#ifndef DELAYMEM_SERVICE_H
#define DELAYMEM_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#define SERVICE_MAX_THREADS 64

/* The service uses conn, reqid and count.  The rest is the caller's. */
struct service_op {
  void *conn;
  uint64_t reqid;
  uint32_t kind;
  uint32_t flags;
  uint32_t count;               /* bytes to be copied */
  uint64_t offset;
  union {
    void *to;                   /* a read */
    const void *from;           /* a write */
  } buf;
};

struct service_calls {
  /* Does the operation.  Only this call touches buf. */
  void (*apply) (const struct service_op *op);
  void (*reply) (const struct service_op *op);
  /* May be NULL.  A thread calls it from time to time while long delays are
   * queued.  Once it returns true, everything is due and it is not called
   * again.
   */
  bool (*is_shutting_down) (void);
};

struct service;

/* CALLS must stay valid.  Returns NULL with errno set on failure. */
extern struct service *service_new (const struct service_calls *calls);
/* Stops the threads first if they run. */
extern void service_free (struct service *sv);

/* Returns 0; or an errno, and then no thread runs. */
extern int service_start (struct service *sv, unsigned threads);
/* Serves everything in the queue at once, and ends the threads. */
extern void service_stop (struct service *sv);

/* Queues a copy of OP, whose reply is due in DELAY_NS from now.  Returns 0 or
 * ENOMEM.
 */
extern int service_submit (struct service *sv, const struct service_op *op,
                           uint64_t delay_ns);

/* Returns true if the operation was still queued: *OP is the caller's then.
 * Returns false after the reply, or, if the reply itself calls this, after
 * apply.
 */
extern bool service_cancel (struct service *sv, void *conn, uint64_t reqid,
                            struct service_op *op);

#endif /* DELAYMEM_SERVICE_H */
