/* LOCK_IN_SCOPE (&mutex): held until the end of the enclosing block.
 * guard_init: a mutex for short sections.  Who finds it locked looks a few times more before he
 * sleeps: the owner is most likely at work on another CPU and done sooner than a sleep takes.
 */
#ifndef ASYNCPOOL_GUARD_H
#define ASYNCPOOL_GUARD_H

#include <pthread.h>

static inline void
guard_init (pthread_mutex_t *m)
{
  pthread_mutexattr_t attr;

  pthread_mutexattr_init (&attr);
  pthread_mutexattr_settype (&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
  pthread_mutex_init (m, &attr);
  pthread_mutexattr_destroy (&attr);
}

static inline void
guard_unlock (pthread_mutex_t **m)
{
  pthread_mutex_unlock (*m);
}

#define GUARD_NAME_(line) guard_##line
#define GUARD_NAME(line) GUARD_NAME_ (line)
#define LOCK_IN_SCOPE(mutex)                                                                    \
  __attribute__ ((cleanup (guard_unlock))) pthread_mutex_t *GUARD_NAME (__LINE__) = (mutex);    \
  pthread_mutex_lock (GUARD_NAME (__LINE__))

#endif
