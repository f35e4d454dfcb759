/* LOCK_IN_SCOPE (&mutex): held until the end of the enclosing block.
 * guard_init: a mutex for short sections.  Who finds it locked looks a few times more before he
 * sleeps: the owner is most likely at work on another CPU and done sooner than a sleep takes.
 * guard_timedwait: on the monotonic clock.
 */
#ifndef ASYNCPOOL_GUARD_H
#define ASYNCPOOL_GUARD_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

static inline void
guard_init (pthread_mutex_t *m)
{
  pthread_mutexattr_t attr;

  pthread_mutexattr_init (&attr);
  pthread_mutexattr_settype (&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
  pthread_mutex_init (m, &attr);
  pthread_mutexattr_destroy (&attr);
}

/* A condition for guard_timedwait. */
static inline void
guard_init_cond (pthread_cond_t *c)
{
  pthread_condattr_t attr;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (c, &attr);
  pthread_condattr_destroy (&attr);
}

/* As pthread_cond_timedwait; UNTIL_NS as stats_now_ns has it. */
static inline int
guard_timedwait (pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
  struct timespec ts = { .tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000 };

  return pthread_cond_timedwait (c, m, &ts);
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
