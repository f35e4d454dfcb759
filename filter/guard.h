/* LOCK_IN_SCOPE (&mutex): held until the end of the enclosing block. */
#ifndef ASYNCPOOL_GUARD_H
#define ASYNCPOOL_GUARD_H

#include <pthread.h>

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
