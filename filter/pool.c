#include <pthread.h>

#include "guard.h"
#include "pool.h"

struct pool {
  /* Constant. */
  GThreadPool *threads;
  unsigned n_threads;
  pthread_mutex_t lock;
  /* Under the lock.  0 <= workers <= n_threads; workers < n_threads implies that every queued job
   * has a worker on its way.
   */
  unsigned workers;
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
      return job;
    }
  }
  return NULL;
}

/* One token: works until there is nothing left to do. */
static void
worker (gpointer token G_GNUC_UNUSED, gpointer user_data)
{
  struct pool *p = user_data;
  struct job *job;

  pthread_mutex_lock (&p->lock);
  while ((job = take_locked (p)) != NULL) {
    pthread_mutex_unlock (&p->lock);
    job->run (job);
    pthread_mutex_lock (&p->lock);
  }
  p->workers--;
  pthread_mutex_unlock (&p->lock);
}

struct pool *
pool_new (unsigned threads, GError **error)
{
  struct pool *p = g_new0 (struct pool, 1);

  pthread_mutex_init (&p->lock, NULL);
  p->n_threads = threads;
  p->threads = g_thread_pool_new (worker, p, threads, TRUE, error);
  if (p->threads == NULL || *error) {
    /* Some threads may have started; they have nothing to do. */
    if (p->threads)
      pool_free (p);
    else {
      pthread_mutex_destroy (&p->lock);
      g_free (p);
    }
    return NULL;
  }
  return p;
}

void
pool_free (struct pool *p)
{
  g_thread_pool_free (p->threads, FALSE, TRUE);
  /* GLib has waited for the workers; this makes it visible to those who do not see GLib's locks. */
  pthread_mutex_lock (&p->lock);
  pthread_mutex_unlock (&p->lock);
  pthread_mutex_destroy (&p->lock);
  g_free (p);
}

static void
push_locked (struct pool *p, struct job *job, enum pool_queue q)
{
  job->link.data = job;
  job->queued = true;
  job->queue = q;
  g_queue_push_tail_link (&p->queues[q], &job->link);
  if (p->workers < p->n_threads) {
    p->workers++;
    /* Cannot fail: an exclusive pool has started all its threads. */
    g_thread_pool_push (p->threads, p, NULL);
  }
}

void
pool_push (struct pool *p, struct job *job, enum pool_queue q)
{
  LOCK_IN_SCOPE (&p->lock);
  push_locked (p, job, q);
}

bool
pool_try_push (struct pool *p, struct job *job, enum pool_queue q)
{
  LOCK_IN_SCOPE (&p->lock);
  if (p->workers == p->n_threads)
    return false;
  push_locked (p, job, q);
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
  return true;
}

unsigned
pool_idle (struct pool *p)
{
  LOCK_IN_SCOPE (&p->lock);
  return p->n_threads - p->workers;
}
