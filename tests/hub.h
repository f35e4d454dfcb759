/* SPDX-License-Identifier: BSD-3-Clause */

/* A hub, where the jobs of a pool meet: they say that they run, and wait until
 * the test lets them end.
 *
 * For unit tests of the pool and of its users.  Not its job: operations of a
 * device, see fake.h.
 */
#ifndef TESTS_HUB_H
#define TESTS_HUB_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include <glib.h>

#include "lock.h"
#include "pool.h"

#define HUB_FUNCTION static G_GNUC_UNUSED

/* GLib's threads give back memory when they end, by means that ThreadSanitizer
 * does not see.
 */
const char *__tsan_default_suppressions (void)
  __attribute__ ((visibility ("default")));
const char *
__tsan_default_suppressions (void)
{
  return "race_top:interceptor_free$\n";
}

enum { HUB_MOST = 300, HUB_DEADLINE_SECONDS = 100 };
/* The pool's idle_ns, unless a test says so: no thread ends. */
#define HUB_IDLE_NS UINT64_C (3600000000000)

struct hub {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Under the lock. */
  unsigned running, peak, done; /* jobs */
  unsigned allowed;             /* jobs that may end, of those that wait */
  unsigned order[HUB_MOST], n;  /* names of the jobs, as they started */
};

struct work {
  struct job job;               /* first */
  struct hub *hub;
  unsigned name;
  bool waits;                   /* until the test allows its end */
};

static void
work_run (struct job *job)
{
  struct work *w = (struct work *) job;
  struct hub *h = w->hub;

  LOCK_IN_SCOPE (&h->lock);
  g_assert_cmpuint (h->n, <, HUB_MOST);
  h->order[h->n++] = w->name;
  h->running++;
  h->peak = MAX (h->peak, h->running);
  pthread_cond_broadcast (&h->changed);
  if (w->waits) {
    while (h->allowed == 0)
      pthread_cond_wait (&h->changed, &h->lock);
    h->allowed--;
  }
  h->running--;
  h->done++;
  pthread_cond_broadcast (&h->changed);
}

HUB_FUNCTION struct work
hub_work (struct hub *h, unsigned name, bool waits)
{
  return (struct work) {
    .hub = h, .name = name, .waits = waits, .job.run = work_run
  };
}

HUB_FUNCTION void
hub_init (struct hub *h)
{
  pthread_condattr_t attr;

  memset (h, 0, sizeof *h);
  pthread_mutex_init (&h->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&h->changed, &attr);
  pthread_condattr_destroy (&attr);
}

HUB_FUNCTION void
hub_destroy (struct hub *h)
{
  pthread_cond_destroy (&h->changed);
  pthread_mutex_destroy (&h->lock);
}

/* Lets N of the waiting jobs end. */
HUB_FUNCTION void
hub_allow (struct hub *h, unsigned n)
{
  LOCK_IN_SCOPE (&h->lock);
  h->allowed += n;
  pthread_cond_broadcast (&h->changed);
}

/* Waits until RUNNING jobs run and DONE have ended. */
HUB_FUNCTION void
hub_wait (struct hub *h, unsigned running, unsigned done)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  ts.tv_sec += HUB_DEADLINE_SECONDS;
  LOCK_IN_SCOPE (&h->lock);
  while (h->running != running || h->done != done)
    if (pthread_cond_timedwait (&h->changed, &h->lock, &ts) == ETIMEDOUT)
      g_error ("%u run, not %u, and %u are done, not %u", h->running, running,
               h->done, done);
}

HUB_FUNCTION struct pool *
start_pool (unsigned threads, uint64_t idle_ns)
{
  g_autoptr (GError) error = NULL;
  struct pool *p = pool_new (threads, idle_ns, &error);

  g_assert_no_error (error);
  return p;
}

/* A worker may become idle a moment after its last job is done. */
HUB_FUNCTION void
wait_idle (struct pool *p, unsigned n)
{
  for (unsigned i = 0; pool_idle (p) != n; i++) {
    g_assert_cmpuint (i, <, 1000 * HUB_DEADLINE_SECONDS);
    g_usleep (1000);
  }
}

#endif /* TESTS_HUB_H */
