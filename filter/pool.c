/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Worker threads and their queues: see pool.h.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "clock.h"
#include "cond.h"
#include "lock.h"
#include "pool.h"

enum { WORKERS_PER_QUEUED_JOB = 128 };

struct pool {
  /* Constant. */
  GThreadPool *threads;
  unsigned max_threads;
  uint64_t idle_ns;
  void (*before) (void *data);  /* or NULL */
  void (*after) (void *data);
  void *data;
  struct lock lock;
  struct cond called;           /* calls > 0, or ending */
  /* Under the lock.
   * 0 <= calls + preparing <= coming <= workers <= started <= max_threads
   */
  unsigned started;             /* threads */
  unsigned workers;             /* threads that are called or work */
  unsigned coming;              /* those of them that have taken no job yet */
  unsigned calls;               /* those of the latter that still sleep */
  unsigned preparing;           /* those of the latter that are in before () */
  unsigned queued;              /* jobs in all queues */
  /* The most workers since the period began, and in the one before. */
  unsigned peak, last_peak;
  uint64_t period_end_ns;
  uint64_t retry_ns;            /* a thread could not be started: the next try;
                                 * or 0 */
  bool ending;
  GQueue queues[POOL_QUEUES];
};

/* Threads. */

/* How many threads there can be now. */
static unsigned
capacity_locked (const struct pool *p)
{
  return p->retry_ns != 0 && clock_ns () < p->retry_ns ? p->started
    : p->max_threads;
}

/* Returns whether it has started one. */
static bool
start_locked (struct pool *p)
{
  g_autoptr (GError) error = NULL;

  if (p->started == capacity_locked (p))
    return false;
  g_thread_pool_set_max_threads (p->threads, p->started + 1, &error);
  if (error) {
    g_thread_pool_set_max_threads (p->threads, p->started, NULL);
    p->retry_ns = clock_ns () + p->idle_ns;
    return false;
  }
  p->retry_ns = 0;
  p->started++;
  g_thread_pool_push (p->threads, p, NULL);
  return true;
}

static void
begin_period_locked (struct pool *p, uint64_t now_ns)
{
  p->last_peak = p->peak;
  p->peak = p->workers;
  p->period_end_ns = now_ns + p->idle_ns;
}

/* Waits until the thread is called.  False: it is to end. */
static bool
rest_locked (struct pool *p)
{
  while (p->calls == 0) {
    uint64_t now_ns = clock_ns ();

    if (p->ending)
      return false;
    if (now_ns >= p->period_end_ns)
      begin_period_locked (p, now_ns);
    if (p->started > MAX (MAX (p->peak, p->last_peak), 1)) {
      g_thread_pool_set_max_threads (p->threads, --p->started, NULL);
      return false;
    }
    cond_wait_until (&p->called, lock_alone (&p->lock),
                     p->started == 1 ? UINT64_MAX : p->period_end_ns);
  }
  p->calls--;
  return true;
}

static struct job *
take_locked (struct pool *p)
{
  for (unsigned q = 0; q < POOL_QUEUES; q++) {
    GList *link = g_queue_pop_head_link (&p->queues[q]);

    if (link) {
      struct job *job = link->data;

      job->queued = false;
      p->queued--;
      return job;
    }
  }
  return NULL;
}

/* A called thread works until there is nothing left to do. */
static void
work_locked (struct pool *p)
{
  bool is_coming = true;
  struct job *job;

  for (;;) {
    if (p->before && p->queued > 0) {
      p->preparing += is_coming;
      lock_drop (&p->lock);
      p->before (p->data);
      lock_take (&p->lock);
      p->preparing -= is_coming;
    }
    p->coming -= is_coming;
    is_coming = false;
    job = take_locked (p);
    if (job == NULL && p->after == NULL)
      break;
    lock_drop (&p->lock);
    if (job)
      job->run (job);
    else
      p->after (p->data);
    lock_take (&p->lock);
    if (job == NULL && p->queued == 0)
      break;
  }
  p->workers--;
}

/* Returns whether the thread had the policy FROM, and has TO now. */
static bool
change_policy (int from, int to)
{
  struct sched_param param;
  int policy;

  return pthread_getschedparam (pthread_self (), &policy, &param) == 0
    && policy == from
    && pthread_setschedparam (pthread_self (), to, &param) == 0;
}

/* The thread's only task of GLib's pool.
 *
 * Many threads of the pool often wake at once.  With SCHED_BATCH, one that
 * wakes does not interrupt a running thread, such as one that serves a client.
 * A policy that the user has chosen stays.  Later GLib may use the thread for
 * something else.
 */
static void
worker (gpointer data, gpointer unused G_GNUC_UNUSED)
{
  bool is_changed = change_policy (SCHED_OTHER, SCHED_BATCH);
  struct pool *p = data;

  {
    LOCK_IN_SCOPE (&p->lock);
    while (rest_locked (p))
      work_locked (p);
  }
  if (is_changed)
    change_policy (SCHED_BATCH, SCHED_OTHER);
}

static void *
pass (void *gate)
{
  pthread_mutex_lock (gate);
  pthread_mutex_unlock (gate);
  return NULL;
}

/* Without GLib: it keeps some threads for the next pool, and would believe
 * after a fork that they are still there.
 */
int
pool_try_threads (unsigned threads)
{
  g_autofree pthread_t *ids = g_try_new (pthread_t, threads);
  pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
  int err = ids == NULL ? ENOMEM : 0;
  unsigned n = 0;

  pthread_mutex_lock (&gate);
  while (err == 0 && n < threads)
    if ((err = pthread_create (&ids[n], NULL, pass, &gate)) == 0)
      n++;
  pthread_mutex_unlock (&gate);
  while (n > 0)
    pthread_join (ids[--n], NULL);
  return err;
}

struct pool *
pool_new (unsigned max_threads, uint64_t idle_ns, GError **error)
{
  struct pool *p = g_new0 (struct pool, 1);

  lock_init_ranked (&p->lock, LOCK_LEAF);
  p->max_threads = max_threads;
  p->idle_ns = idle_ns;
  p->threads = g_thread_pool_new (worker, NULL, 1, TRUE, error);
  if (*error) {
    if (p->threads)             /* without a thread */
      g_thread_pool_free (p->threads, TRUE, FALSE);
    lock_destroy (&p->lock);
    g_free (p);
    return NULL;
  }
  /* Under the lock: see pool_free. */
  LOCK_IN_SCOPE (&p->lock);
  p->started = 1;
  g_thread_pool_push (p->threads, p, NULL);
  return p;
}

void
pool_set_around (struct pool *p, void (*before) (void *data),
                 void (*after) (void *data), void *data)
{
  p->before = before;
  p->after = after;
  p->data = data;
}

void
pool_free (struct pool *p)
{
  lock_take (&p->lock);
  p->ending = true;
  cond_broadcast (&p->called);
  lock_drop (&p->lock);
  g_thread_pool_free (p->threads, FALSE, TRUE);
  /* GLib has waited for the workers.  This shows it to thread checkers, which
   * do not see GLib's locks.
   */
  lock_take (&p->lock);
  lock_drop (&p->lock);
  lock_destroy (&p->lock);
  g_free (p);
}

/* Calls an idle thread, or a new one.  False: there is none. */
static bool
call_one_locked (struct pool *p)
{
  if (p->workers == p->started && !start_locked (p))
    return false;
  p->workers++;
  p->coming++;
  p->calls++;
  p->peak = MAX (p->peak, p->workers);
  cond_signal (&p->called);
  return true;
}

/* Calls threads until at most LEAVE of the queued jobs have no thread on its
 * way.
 */
static void
call_locked (struct pool *p, unsigned leave)
{
  while (p->queued > p->coming + leave && call_one_locked (p))
    ;
}

static void
push_locked (struct pool *p, struct job *job, enum pool_queue q,
             unsigned leave)
{
  job->link.data = job;
  job->queued = true;
  job->queue = q;
  g_queue_push_tail_link (&p->queues[q], &job->link);
  p->queued++;
  call_locked (p, leave);
  /* All threads on their way may be in a long before (): another one may be
   * sooner.
   */
  if (p->preparing > 0 && p->preparing == p->coming)
    call_one_locked (p);
}

bool
pool_push (struct pool *p, struct job *job, enum pool_queue q)
{
  LOCK_IN_SCOPE (&p->lock);
  push_locked (p, job, q, (p->workers - p->coming) / WORKERS_PER_QUEUED_JOB);
  return p->queued <= p->coming || p->workers == capacity_locked (p);
}

void
pool_wake_idle (struct pool *p)
{
  LOCK_IN_SCOPE (&p->lock);
  call_locked (p, 0);
}

bool
pool_try_push (struct pool *p, struct job *job, enum pool_queue q)
{
  LOCK_IN_SCOPE (&p->lock);
  if (p->workers == p->started && !start_locked (p))
    return false;
  push_locked (p, job, q, 0);
  return true;
}

bool
pool_cancel (struct pool *p, struct job *job)
{
  LOCK_IN_SCOPE (&p->lock);
  if (!job->queued)
    return false;
  g_queue_unlink (&p->queues[job->queue], &job->link);
  job->queued = false;
  p->queued--;
  return true;
}

bool
pool_has_queued (struct pool *p, enum pool_queue q)
{
  LOCK_IN_SCOPE (&p->lock);
  return p->queues[q].length > 0;
}

unsigned
pool_idle (struct pool *p)
{
  LOCK_IN_SCOPE (&p->lock);
  return capacity_locked (p) - p->workers;
}

unsigned
pool_threads (struct pool *p)
{
  LOCK_IN_SCOPE (&p->lock);
  return p->started;
}

unsigned
pool_busy (struct pool *p)
{
  LOCK_IN_SCOPE (&p->lock);
  return p->workers;
}
