/* SPDX-License-Identifier: BSD-3-Clause
 *
 * cond: a condition variable for a pthread mutex, on Linux's futex.
 *
 * Use it like pthread_cond_t, with deadlines on the monotonic clock.  It exists
 * because glibc before 2.41 loses some signals (its bug 25847), and Debian 12
 * has 2.36.  A lost signal would make a request hang.  It is not faster:
 * throughput with pthread_cond_t is the same within 3 %.
 *
 * Zeroed memory is a condition without waiters.  A condition needs no destroy.
 *
 * Rules:
 * 1. A thread changes the awaited state with the mutex held.  It signals before
 *    it unlocks the mutex, or after that.
 * 2. Where cond_signal is used, all waiters wait for the same state.  A signal
 *    after the unlock may wake a thread that began to wait after the change, in
 *    place of an older waiter.
 * 3. A wait may end without a signal: waiters check the state again.
 */

#ifndef NBDKIT_ASYNC_COND_H
#define NBDKIT_ASYNC_COND_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct cond {
  atomic_uint signals;          /* sent while there were waiters */
  atomic_uint waiters;          /* raised before signals is read */
};

/* UNTIL_NS is a time of clock_ns; UINT64_MAX: no deadline.  Returns false when
 * the deadline has passed.
 */
static inline bool
cond_wait_until (struct cond *c, pthread_mutex_t *m, uint64_t until_ns)
{
  /* The kernel's struct timespec, which can differ from the C library's. */
  const struct { long s, ns; } until = {
    (long) (until_ns / 1000000000), (long) (until_ns % 1000000000)
  };
  unsigned seen;
  bool is_over;

  atomic_fetch_add (&c->waiters, 1);
  seen = atomic_load (&c->signals);
  pthread_mutex_unlock (m);
  /* After a signal from here on the call returns at once. */
  is_over = syscall (SYS_futex, &c->signals, FUTEX_WAIT_BITSET_PRIVATE, seen,
                     until_ns == UINT64_MAX ? NULL : &until, NULL,
                     FUTEX_BITSET_MATCH_ANY) == -1 && errno == ETIMEDOUT;
  /* Before the mutex is locked: if this thread waits again, it counts itself
   * again before any other thread can change the state.
   */
  atomic_fetch_sub (&c->waiters, 1);
  pthread_mutex_lock (m);
  return !is_over;
}

static inline void
cond_wait (struct cond *c, pthread_mutex_t *m)
{
  cond_wait_until (c, m, UINT64_MAX);
}

/* Whether a signal would reach a thread.  Threads that are already woken do not
 * count.  Call it with the mutex held.
 */
static inline bool
cond_is_waited_for (struct cond *c)
{
  return atomic_load (&c->waiters) > 0;
}

static inline void
cond_wake (struct cond *c, int n)
{
  if (!cond_is_waited_for (c))
    return;
  atomic_fetch_add (&c->signals, 1);
  syscall (SYS_futex, &c->signals, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static inline void
cond_signal (struct cond *c)
{
  cond_wake (c, 1);
}

static inline void
cond_broadcast (struct cond *c)
{
  cond_wake (c, INT_MAX);
}

#endif /* NBDKIT_ASYNC_COND_H */
