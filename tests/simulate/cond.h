/* SPDX-License-Identifier: BSD-3-Clause
 *
 * plugin/common/cond.h for simulated threads.  A wait may end without a signal,
 * and a signal may wake any of the waiters.
 */
#ifndef NBDKIT_ASYNC_COND_H
#define NBDKIT_ASYNC_COND_H

#include <limits.h>

struct cond {
  struct sim_place place;
};

static inline bool
cond_wait_until (struct cond *c, pthread_mutex_t *m, uint64_t until_ns)
{
  return simulate_cond_wait (&c->place, m, until_ns);
}

static inline void
cond_wait (struct cond *c, pthread_mutex_t *m)
{
  cond_wait_until (c, m, UINT64_MAX);
}

static inline bool
cond_is_waited_for (struct cond *c)
{
  return c->place.waiters > 0;
}

static inline void
cond_signal (struct cond *c)
{
  sim_wake (&c->place, 1);
}

static inline void
cond_broadcast (struct cond *c)
{
  sim_wake (&c->place, UINT_MAX);
}

#endif
