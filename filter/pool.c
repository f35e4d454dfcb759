/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Worker threads and their queues: see pool.h.
 */
#include <errno.h>
#include <pthread.h>

#include "cond.h"
#include "lock.h"
#include "pool.h"

enum { WORKERS_PER_QUEUED_JOB = 128 };

struct pool {
  /* Constant. */
  GThreadPool *threads;
  unsigned n_threads;
  void (*before) (void *data);  /* or NULL */
  void (*after) (void *data);
  void *data;
  struct lock lock;
  struct cond called;           /* calls > 0, or ending */
  /* Under the lock.  0 <= calls + preparing <= coming <= workers <= n_threads. */
  unsigned workers;             /* threads that are called or work */
  unsigned coming;              /* those of them that have taken no job yet */
  unsigned calls;               /* those of the latter that still sleep */
  unsigned preparing;           /* those of the latter that are in before () */
  unsigned queued;              /* jobs in all queues */
  bool ending;
  GQueue queues[POOL_QUEUES];
};

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

/* The thread's only task of GLib's pool. */
static void
worker (gpointer data, gpointer unused G_GNUC_UNUSED)
{
  struct pool *p = data;

  LOCK_IN_SCOPE (&p->lock);
  for (;;) {
    while (p->calls == 0 && !p->ending)
      cond_wait (&p->called, lock_alone (&p->lock));
    if (p->calls == 0)
      return;
    p->calls--;
    work_locked (p);
  }
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
pool_new (unsigned threads, GError **error)
{
  struct pool *p = g_new0 (struct pool, 1);

  lock_init_ranked (&p->lock, LOCK_LEAF);
  p->n_threads = threads;
  /* One thread first: if GLib 2.84 cannot start all threads of a new pool, it
   * frees the queue that the others wait for.
   */
  p->threads = g_thread_pool_new (worker, NULL, 1, TRUE, error);
  if (*error == NULL)
    g_thread_pool_set_max_threads (p->threads, threads, error);
  if (*error) {
    /* Threads that have started have nothing to do. */
    if (p->threads)
      pool_free (p);
    else {
      lock_destroy (&p->lock);
      g_free (p);
    }
    return NULL;
  }
  for (unsigned i = 0; i < threads; i++)
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

static void
wake_one_locked (struct pool *p)
{
  p->workers++;
  p->coming++;
  p->calls++;
  cond_signal (&p->called);
}

/* Wakes idle threads until at most LEAVE of the queued jobs have no thread on
 * its way.
 */
static void
wake_locked (struct pool *p, unsigned leave)
{
  while (p->workers < p->n_threads && p->queued > p->coming + leave)
    wake_one_locked (p);
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
  wake_locked (p, leave);
  /* All threads on their way may be in a long before (): another one may be
   * sooner.
   */
  if (p->preparing > 0 && p->preparing == p->coming
      && p->workers < p->n_threads)
    wake_one_locked (p);
}

bool
pool_push (struct pool *p, struct job *job, enum pool_queue q)
{
  LOCK_IN_SCOPE (&p->lock);
  push_locked (p, job, q, (p->workers - p->coming) / WORKERS_PER_QUEUED_JOB);
  return p->queued <= p->coming || p->workers == p->n_threads;
}

void
pool_wake_idle (struct pool *p)
{
  LOCK_IN_SCOPE (&p->lock);
  wake_locked (p, 0);
}

bool
pool_try_push (struct pool *p, struct job *job, enum pool_queue q)
{
  LOCK_IN_SCOPE (&p->lock);
  if (p->workers == p->n_threads)
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
  return p->n_threads - p->workers;
}
