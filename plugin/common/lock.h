/* SPDX-License-Identifier: BSD-3-Clause
 *
 * lock: helpers for a pthread mutex that is held for short sections.
 */

#ifndef NBDKIT_ASYNC_LOCK_H
#define NBDKIT_ASYNC_LOCK_H

#include <pthread.h>

/* An adaptive mutex.  A thread that finds it locked tries a few more times
 * before it sleeps.  The owner is likely to unlock it sooner than a sleep
 * takes.
 */
static inline void
lock_init (pthread_mutex_t *m)
{
  pthread_mutexattr_t attr;

  pthread_mutexattr_init (&attr);
  pthread_mutexattr_settype (&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
  pthread_mutex_init (m, &attr);
  pthread_mutexattr_destroy (&attr);
}

static inline void
lock_end_scope (pthread_mutex_t **m)
{
  pthread_mutex_unlock (*m);
}

#define LOCK_NAME_(line) lock_##line
#define LOCK_NAME(line) LOCK_NAME_ (line)

/* Locks the mutex until the end of the enclosing block. */
#define LOCK_IN_SCOPE(mutex)                                            \
  __attribute__ ((cleanup (lock_end_scope)))                            \
    pthread_mutex_t *LOCK_NAME (__LINE__) = (mutex);                    \
  pthread_mutex_lock (LOCK_NAME (__LINE__))

#endif /* NBDKIT_ASYNC_LOCK_H */
