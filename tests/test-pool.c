/* SPDX-License-Identifier: BSD-3-Clause */

/* Unit tests of the pool of workers, see pool.h: the order of jobs, taking them
 * back, which jobs stay queued, and when threads start and end.
 *
 * A job of these tests says in the hub that it runs, and waits there.
 */
#include <dlfcn.h>
#include <sched.h>
#include <stdatomic.h>

#include "hub.h"

static atomic_bool is_refused;  /* the system starts no thread */

__attribute__ ((visibility ("default"))) int
pthread_create (pthread_t *id, const pthread_attr_t *attr,
                void *(*run) (void *), void *arg)
{
  int (*real) (pthread_t *, const pthread_attr_t *, void *(*) (void *), void *);

  *(void **) &real = dlsym (RTLD_NEXT, "pthread_create");
  return is_refused ? EAGAIN : real (id, attr, run, arg);
}

/* A pool of THREADS, and a hub. */
struct scene {
  struct pool *p;
  struct hub h;
};

static void
scene_start (struct scene *s, unsigned threads)
{
  s->p = start_pool (threads, HUB_IDLE_NS);
  hub_init (&s->h);
}

static void
scene_end (struct scene *s)
{
  pool_free (s->p);
  hub_destroy (&s->h);
}

static void
push (struct scene *s, struct work *w, unsigned name, bool waits,
      enum pool_queue q)
{
  *w = hub_work (&s->h, name, waits);
  pool_push (s->p, &w->job, q);
}

/* One worker is busy, so the jobs queue up.  It takes the most urgent queue
 * first, and each queue in order.
 */
static void
test_order (gconstpointer unused G_GNUC_UNUSED)
{
  static const enum pool_queue queues[] = {
    POOL_AHEAD, POOL_AHEAD, POOL_WRITE, POOL_PIECE, POOL_AHEAD, POOL_WRITE,
    POOL_PIECE
  };
  static const unsigned expected[] = { 99, 3, 6, 2, 5, 0, 1, 4 };
  struct work first, works[G_N_ELEMENTS (queues)];
  struct scene s;

  scene_start (&s, 1);
  push (&s, &first, 99, true, POOL_AHEAD);
  hub_wait (&s.h, 1, 0);
  for (unsigned i = 0; i < G_N_ELEMENTS (queues); i++)
    push (&s, &works[i], i, false, queues[i]);
  hub_allow (&s.h, 1);
  hub_wait (&s.h, 0, G_N_ELEMENTS (expected));
  for (unsigned i = 0; i < G_N_ELEMENTS (expected); i++)
    g_assert_cmpuint (s.h.order[i], ==, expected[i]);
  scene_end (&s);
}

/* A queued job can be taken back, and a job that has started cannot. */
static void
test_cancel (gconstpointer unused G_GNUC_UNUSED)
{
  struct work running, queued, other;
  struct scene s;

  scene_start (&s, 1);
  push (&s, &running, 1, true, POOL_WRITE);
  hub_wait (&s.h, 1, 0);
  push (&s, &queued, 2, false, POOL_AHEAD);
  push (&s, &other, 3, false, POOL_AHEAD);
  g_assert_false (pool_cancel (s.p, &running.job));
  g_assert_true (pool_cancel (s.p, &queued.job));
  g_assert_false (pool_cancel (s.p, &queued.job));
  hub_allow (&s.h, 1);
  hub_wait (&s.h, 0, 2);
  g_assert_false (pool_cancel (s.p, &running.job));
  /* It is the submitter's again, which may queue it anew. */
  pool_push (s.p, &queued.job, POOL_PIECE);
  hub_wait (&s.h, 0, 3);
  g_assert_cmpuint (s.h.order[0], ==, 1);
  g_assert_cmpuint (s.h.order[1], ==, 3);
  g_assert_cmpuint (s.h.order[2], ==, 2);
  wait_idle (s.p, 1);
  scene_end (&s);
}

/* pool_try_push takes an idle thread at once, or does nothing. */
static void
test_try_push (gconstpointer unused G_GNUC_UNUSED)
{
  struct work works[2], extra;
  struct scene s;

  scene_start (&s, 2);
  extra = hub_work (&s.h, 9, false);
  g_assert_cmpuint (pool_idle (s.p), ==, 2);
  push (&s, &works[0], 0, true, POOL_WRITE);
  hub_wait (&s.h, 1, 0);
  g_assert_cmpuint (pool_idle (s.p), ==, 1);
  works[1] = hub_work (&s.h, 1, true);
  g_assert_true (pool_try_push (s.p, &works[1].job, POOL_PIECE));
  g_assert_cmpuint (pool_idle (s.p), ==, 0);
  g_assert_false (pool_try_push (s.p, &extra.job, POOL_PIECE));
  g_assert_false (pool_cancel (s.p, &extra.job));
  hub_wait (&s.h, 2, 0);
  g_assert_false (pool_try_push (s.p, &extra.job, POOL_PIECE));
  hub_allow (&s.h, 2);
  hub_wait (&s.h, 0, 2);
  wait_idle (s.p, 2);
  g_assert_true (pool_try_push (s.p, &extra.job, POOL_PIECE));
  hub_wait (&s.h, 0, 3);
  scene_end (&s);
}

/* THREADS jobs run at once, and no more. */
static void
test_limit (gconstpointer data)
{
  unsigned threads = GPOINTER_TO_UINT (data);
  struct work works[HUB_MOST];
  struct scene s;

  scene_start (&s, threads);
  for (unsigned i = 0; i < HUB_MOST; i++)
    push (&s, &works[i], i, true, i % POOL_QUEUES);
  pool_wake_idle (s.p);
  hub_wait (&s.h, threads, 0);
  for (unsigned i = 0; i < 10; i++) {
    hub_allow (&s.h, 1);
    hub_wait (&s.h, threads, i + 1);
  }
  hub_allow (&s.h, HUB_MOST - 10);
  hub_wait (&s.h, 0, HUB_MOST);
  g_assert_cmpuint (s.h.peak, ==, threads);
  wait_idle (s.p, threads);
  scene_end (&s);
}

static void *
free_pool (void *p)
{
  pool_free (p);
  return NULL;
}

/* pool_free waits for the jobs that run. */
static void
test_free (gconstpointer unused G_GNUC_UNUSED)
{
  struct work works[3];
  struct scene s;
  pthread_t thread;

  scene_start (&s, 3);
  for (unsigned i = 0; i < 3; i++)
    push (&s, &works[i], i, true, POOL_WRITE);
  hub_wait (&s.h, 3, 0);
  g_assert_cmpint (pthread_create (&thread, NULL, free_pool, s.p), ==, 0);
  hub_allow (&s.h, 3);
  pthread_join (thread, NULL);
  {
    LOCK_IN_SCOPE (&s.h.lock);
    g_assert_cmpuint (s.h.done, ==, 3);
  }
  hub_destroy (&s.h);
}

/* While many workers are busy a job stays queued for one of them, though
 * others are idle.  pool_wake_idle wakes an idle one.
 */
static void
test_hurry (gconstpointer unused G_GNUC_UNUSED)
{
  enum { BUSY = 130, IDLE = 20 };
  struct work works[BUSY], queued, piece;
  struct scene s;

  scene_start (&s, BUSY + IDLE);
  for (unsigned i = 0; i < BUSY; i++)
    push (&s, &works[i], i, true, POOL_WRITE);
  pool_wake_idle (s.p);
  hub_wait (&s.h, BUSY, 0);
  wait_idle (s.p, IDLE);

  /* A busy worker takes it when its own job is done. */
  push (&s, &queued, 500, true, POOL_AHEAD);
  g_assert_cmpuint (pool_idle (s.p), ==, IDLE);
  hub_allow (&s.h, 1);
  hub_wait (&s.h, BUSY, 1);

  push (&s, &works[0], 501, true, POOL_AHEAD);
  g_assert_cmpuint (pool_idle (s.p), ==, IDLE);
  pool_wake_idle (s.p);
  hub_wait (&s.h, BUSY + 1, 1);
  push (&s, &queued, 502, true, POOL_AHEAD);
  g_assert_true (pool_cancel (s.p, &queued.job));

  /* A piece never stays queued.  Nor does a job that it overtakes. */
  push (&s, &queued, 503, true, POOL_AHEAD);
  piece = hub_work (&s.h, 504, true);
  g_assert_true (pool_try_push (s.p, &piece.job, POOL_PIECE));
  hub_wait (&s.h, BUSY + 3, 1);
  hub_allow (&s.h, HUB_MOST);
  hub_wait (&s.h, 0, BUSY + 4);
  scene_end (&s);
}

static void
wait_threads (struct pool *p, unsigned n)
{
  for (unsigned i = 0; pool_threads (p) != n; i++) {
    g_assert_cmpuint (i, <, 1000 * HUB_DEADLINE_SECONDS);
    g_usleep (1000);
  }
}

/* Threads start as jobs need them, and stay for later jobs. */
static void
test_on_demand (gconstpointer unused G_GNUC_UNUSED)
{
  enum { JOBS = 5 };
  struct work works[JOBS];
  struct scene s;

  scene_start (&s, 20);
  g_assert_cmpuint (pool_threads (s.p), ==, 1);
  g_assert_cmpuint (pool_idle (s.p), ==, 20);
  for (unsigned n = 1; n <= JOBS; n++) {
    push (&s, &works[n - 1], n, true, POOL_WRITE);
    hub_wait (&s.h, n, 0);
    g_assert_cmpuint (pool_threads (s.p), ==, n);
    g_assert_cmpuint (pool_idle (s.p), ==, 20 - n);
  }
  hub_allow (&s.h, JOBS);
  hub_wait (&s.h, 0, JOBS);
  wait_idle (s.p, 20);
  push (&s, &works[0], 9, true, POOL_WRITE);
  hub_wait (&s.h, 1, JOBS);
  g_assert_cmpuint (pool_threads (s.p), ==, JOBS);
  hub_allow (&s.h, 1);
  scene_end (&s);
}

/* Threads that are not needed for idle_ns end, but for one.  Those that work
 * stay.
 */
static void
test_idle (gconstpointer unused G_GNUC_UNUSED)
{
  enum { JOBS = 6 };
  struct work works[JOBS];
  struct scene s;

  s.p = start_pool (20, 1000000);
  hub_init (&s.h);
  for (unsigned round = 0; round < 3; round++) {
    unsigned done = round * JOBS;

    for (unsigned i = 0; i < JOBS; i++)
      push (&s, &works[i], i, true, POOL_WRITE);
    hub_wait (&s.h, JOBS, done);
    hub_allow (&s.h, JOBS - 2);
    hub_wait (&s.h, 2, done + JOBS - 2);
    wait_threads (s.p, 2);
    hub_allow (&s.h, 2);
    hub_wait (&s.h, 0, done + JOBS);
    wait_threads (s.p, 1);
  }
  scene_end (&s);
}

/* The system refuses a thread, once.  After idle_ns the pool says again that it
 * has threads: a large request asks for no more than it says (fanout.c).
 */
static void
test_refused (gconstpointer unused G_GNUC_UNUSED)
{
  struct work first, second;
  struct scene s;

  s.p = start_pool (20, 100000000);
  hub_init (&s.h);
  push (&s, &first, 1, true, POOL_WRITE);
  hub_wait (&s.h, 1, 0);
  is_refused = true;
  push (&s, &second, 2, true, POOL_WRITE);
  is_refused = false;
  g_assert_cmpuint (pool_threads (s.p), ==, 1);
  g_assert_cmpuint (pool_idle (s.p), ==, 0);
  hub_allow (&s.h, 2);
  hub_wait (&s.h, 0, 2);
  wait_idle (s.p, 20);
  scene_end (&s);
}

static atomic_int policy;

static void
note_policy (struct job *job G_GNUC_UNUSED)
{
  policy = sched_getscheduler (0);
}

/* Threads of the pool do not interrupt others, unless the user has chosen a
 * policy for all of nbdkit.
 */
static void
test_policy (gconstpointer unused G_GNUC_UNUSED)
{
  int own = sched_getscheduler (0);
  struct job job = { .run = note_policy };
  struct pool *p = start_pool (1, HUB_IDLE_NS);

  policy = -1;
  pool_push (p, &job, POOL_AHEAD);
  while (policy == -1)
    g_usleep (1000);
  g_assert_cmpint (policy, ==, own == SCHED_OTHER ? SCHED_BATCH : own);
  pool_free (p);
}

static const struct {
  const char *path;
  void (*test) (gconstpointer);
  unsigned argument;
} tests[] = {
  { "/pool/order", test_order, 0 },
  { "/pool/cancel", test_cancel, 0 },
  { "/pool/try-push", test_try_push, 0 },
  { "/pool/limit/1", test_limit, 1 },
  { "/pool/limit/7", test_limit, 7 },
  { "/pool/limit/200", test_limit, 200 },
  { "/pool/free", test_free, 0 },
  { "/pool/hurry", test_hurry, 0 },
  { "/pool/on-demand", test_on_demand, 0 },
  { "/pool/idle", test_idle, 0 },
  { "/pool/refused", test_refused, 0 },
  { "/pool/policy", test_policy, 0 },
};

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  /* Each pool gets threads of its own.  Else GLib hands some on to the next
   * pool, and ThreadSanitizer does not see that.
   */
  g_thread_pool_set_max_unused_threads (0);
  for (unsigned i = 0; i < G_N_ELEMENTS (tests); i++)
    g_test_add_data_func (tests[i].path, GUINT_TO_POINTER (tests[i].argument),
                          tests[i].test);
  return g_test_run ();
}
