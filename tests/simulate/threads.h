/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The compiler includes this file before each file of the filter, so that it
 * uses the threads, locks and clock of sim.h.  cond.h in this directory is the
 * other half.
 */
#ifndef SIMULATE_THREADS_H
#define SIMULATE_THREADS_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <glib.h>

#include "sim.h"

/* Each fiber has its own copy of this section, see sim.c. */
#define __thread __attribute__ ((section ("simulated_tls")))

/* Mutexes: a pthread_mutex_t holds a struct sim_mutex. */

static inline struct sim_mutex *
simulate_mutex (pthread_mutex_t *m)
{
  _Static_assert (sizeof (struct sim_mutex) <= sizeof *m, "size");
  return (struct sim_mutex *) m;
}

static inline int
simulate_mutex_init (pthread_mutex_t *m, const pthread_mutexattr_t *attr)
{
  (void) attr;
  memset (m, 0, sizeof *m);
  return 0;
}

static inline int
simulate_mutex_destroy (pthread_mutex_t *m)
{
  if (simulate_mutex (m)->owner)
    sim_fail ("a locked mutex is destroyed");
  return 0;
}

static inline int
simulate_mutex_lock (pthread_mutex_t *m)
{
  sim_mutex_lock (simulate_mutex (m));
  return 0;
}

static inline int
simulate_mutex_trylock (pthread_mutex_t *m)
{
  return sim_mutex_try_lock (simulate_mutex (m)) ? 0 : EBUSY;
}

static inline int
simulate_mutex_unlock (pthread_mutex_t *m)
{
  sim_mutex_unlock (simulate_mutex (m));
  return 0;
}

#define pthread_mutex_init simulate_mutex_init
#define pthread_mutex_destroy simulate_mutex_destroy
#define pthread_mutex_lock simulate_mutex_lock
#define pthread_mutex_trylock simulate_mutex_trylock
#define pthread_mutex_unlock simulate_mutex_unlock

/* No other fiber runs between the last look at the state and the wait. */
extern bool simulate_cond_wait (struct sim_place *, pthread_mutex_t *,
                                uint64_t until_ns);

#include "cond.h"               /* in place of plugin/common/cond.h */

/* Threads. */

extern int simulate_thread_create (pthread_t *, void *(*run) (void *),
                                   void *arg);
extern int simulate_thread_join (pthread_t);
#define pthread_create(t, attr, run, arg) \
  simulate_thread_create ((t), (run), (arg))
#define pthread_join(t, result) simulate_thread_join (t)

struct simulated_pool;
extern struct simulated_pool *simulate_pool_new (GFunc, gpointer user_data,
                                                 unsigned threads);
/* More threads may be refused. */
extern void simulate_pool_set_max (struct simulated_pool *, unsigned threads,
                                   GError **);
extern void simulate_pool_push (struct simulated_pool *, gpointer data);
extern void simulate_pool_free (struct simulated_pool *);
#define GThreadPool struct simulated_pool
#define g_thread_pool_new(run, data, n, exclusive, error) \
  simulate_pool_new ((run), (data), (n))
#define g_thread_pool_set_max_threads(pool, n, error) \
  simulate_pool_set_max ((pool), (n), (error))
#define g_thread_pool_push(pool, data, error) \
  simulate_pool_push ((pool), (data))
#define g_thread_pool_free(pool, at_once, wait) simulate_pool_free (pool)

/* The clock. */

static inline int
simulate_clock (struct timespec *ts)
{
  uint64_t ns = sim_now_ns ();

  ts->tv_sec = ns / 1000000000;
  ts->tv_nsec = ns % 1000000000;
  return 0;
}
#define clock_gettime(clock, ts) simulate_clock (ts)

/* Atomic operations: another fiber may run before each. */

#undef atomic_load
#undef atomic_store
#undef atomic_exchange
#undef atomic_fetch_add
#undef atomic_fetch_sub
#undef atomic_fetch_or
#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub_explicit
#ifdef __clang__
#define SIMULATED(op, ...) \
  (sim_point (), __c11_atomic_##op (__VA_ARGS__, __ATOMIC_SEQ_CST))
#define atomic_load(p) SIMULATED (load, p)
#define atomic_store(p, v) SIMULATED (store, p, v)
#define atomic_exchange(p, v) SIMULATED (exchange, p, v)
#else
#define SIMULATED(op, ...) \
  (sim_point (), __atomic_##op (__VA_ARGS__, __ATOMIC_SEQ_CST))
#define atomic_load(p) SIMULATED (load_n, p)
#define atomic_store(p, v) SIMULATED (store_n, p, v)
#define atomic_exchange(p, v) SIMULATED (exchange_n, p, v)
#endif
#define atomic_fetch_add(p, v) SIMULATED (fetch_add, p, v)
#define atomic_fetch_sub(p, v) SIMULATED (fetch_sub, p, v)
#define atomic_fetch_or(p, v) SIMULATED (fetch_or, p, v)
#define atomic_load_explicit(p, order) atomic_load (p)
#define atomic_store_explicit(p, v, order) atomic_store ((p), (v))
#define atomic_fetch_add_explicit(p, v, order) atomic_fetch_add ((p), (v))
#define atomic_fetch_sub_explicit(p, v, order) atomic_fetch_sub ((p), (v))

#endif
