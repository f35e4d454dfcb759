/* SPDX-License-Identifier: BSD-3-Clause
 *
 * lock: helpers for a pthread mutex that is held for short sections, and a
 * mutex with a rank.
 *
 * A thread takes locks in the order of their ranks only.  Builds with
 * ASYNCPOOL_DEBUG assert it, whatever the order in which threads run.
 */

#ifndef NBDKIT_ASYNC_LOCK_H
#define NBDKIT_ASYNC_LOCK_H

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>

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

/* From the outside to the inside.  A thread holds one lock of each rank at
 * most.
 */
enum lock_rank { LOCK_OUTER = 1, LOCK_INNER = 2, LOCK_LEAF = 4 };

struct lock {
  pthread_mutex_t mutex;
#ifdef ASYNCPOOL_DEBUG
  enum lock_rank rank;
#endif
};

#ifdef ASYNCPOOL_DEBUG
/* The ranks of the locks that this thread holds: see filter/debug.c. */
extern __thread unsigned lock_held;

#define LOCK_INITIALIZER(rank) { PTHREAD_MUTEX_INITIALIZER, rank }
#define lock_if_debug(statement) statement
#else
#define LOCK_INITIALIZER(rank) { PTHREAD_MUTEX_INITIALIZER }
#define lock_if_debug(statement) ((void) 0)
#endif

static inline void
lock_init_ranked (struct lock *l, enum lock_rank rank)
{
  (void) rank;
  lock_init (&l->mutex);
  lock_if_debug (l->rank = rank);
}

static inline void
lock_destroy (struct lock *l)
{
  pthread_mutex_destroy (&l->mutex);
}

static inline void
lock_take (struct lock *l)
{
  lock_if_debug (assert (lock_held < l->rank));
  pthread_mutex_lock (&l->mutex);
  lock_if_debug (lock_held |= l->rank);
}

static inline bool
lock_try_take (struct lock *l)
{
  lock_if_debug (assert (lock_held < l->rank));
  if (pthread_mutex_trylock (&l->mutex) != 0)
    return false;
  lock_if_debug (lock_held |= l->rank);
  return true;
}

static inline void
lock_drop (struct lock *l)
{
  lock_if_debug (assert (lock_held & l->rank));
  lock_if_debug (lock_held &= ~l->rank);
  pthread_mutex_unlock (&l->mutex);
}

/* The mutex, for a wait: the thread may hold no other lock. */
static inline pthread_mutex_t *
lock_alone (struct lock *l)
{
  lock_if_debug (assert (lock_held == l->rank));
  return &l->mutex;
}

/* Where the plugin is called: the thread may hold no lock. */
static inline void
lock_assert_none (void)
{
  lock_if_debug (assert (lock_held == 0));
}

struct lock_scope {
  pthread_mutex_t *mutex;
  struct lock *lock;            /* NULL: a mutex without a rank */
};

static inline struct lock_scope
lock_begin_scope (struct lock *l)
{
  lock_take (l);
  return (struct lock_scope) { &l->mutex, l };
}

static inline struct lock_scope
lock_begin_mutex_scope (pthread_mutex_t *m)
{
  pthread_mutex_lock (m);
  return (struct lock_scope) { m, NULL };
}

static inline void
lock_end_scope (struct lock_scope *s)
{
  if (s->lock)
    lock_drop (s->lock);
  else
    pthread_mutex_unlock (s->mutex);
}

#define LOCK_NAME_(line) lock_##line
#define LOCK_NAME(line) LOCK_NAME_ (line)

/* Locks a struct lock or a mutex until the end of the enclosing block. */
#define LOCK_IN_SCOPE(l)                                                \
  __attribute__ ((cleanup (lock_end_scope), unused))                    \
    struct lock_scope LOCK_NAME (__LINE__) = _Generic                   \
      ((l), struct lock *: lock_begin_scope,                            \
       pthread_mutex_t *: lock_begin_mutex_scope) (l)

#endif /* NBDKIT_ASYNC_LOCK_H */
