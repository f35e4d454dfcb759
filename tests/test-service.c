/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/service: the deadline queue and the service threads.
 *
 * No test waits for a delay of an hour: it stops the service, or cancels the
 * operation.  tests/run ends a test that hangs.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "asleep.h"
#include "clock.h"
#include "latency.h"
#include "service.h"

#define HOUR_NS (3600 * LATENCY_NS_PER_S)
#define MS_NS UINT64_C (1000000)

/* An operation's conn points to one of these. */
struct job {
  uint64_t due_ns;              /* no reply before this time */
  bool may_be_early;
  unsigned char *buf;           /* set to the number of the job's reqid */
  size_t count;
  struct service *cancel_in_reply;
  /* Under the lock. */
  bool hold_apply, hold_reply;
  unsigned applying, applied, replying, replied;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static uint64_t order[100];     /* of replies, by reqid */
static unsigned n_replied;
static bool is_down;
static unsigned n_asked;

static void
set (bool *flag, bool value)
{
  pthread_mutex_lock (&lock);
  *flag = value;
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&lock);
}

static void
count_and_hold (unsigned *counter, const bool *held)
{
  pthread_mutex_lock (&lock);
  ++*counter;
  pthread_cond_broadcast (&changed);
  while (held && *held)
    pthread_cond_wait (&changed, &lock);
  pthread_mutex_unlock (&lock);
}

static void
wait_for (const unsigned *counter, unsigned n)
{
  pthread_mutex_lock (&lock);
  while (*counter < n)
    pthread_cond_wait (&changed, &lock);
  pthread_mutex_unlock (&lock);
}

static void
wait_asleep (unsigned n)
{
  while (atomic_load (&n_asleep) < n)
    g_usleep (1000);
}

static unsigned
get (const unsigned *counter)
{
  unsigned r;

  pthread_mutex_lock (&lock);
  r = *counter;
  pthread_mutex_unlock (&lock);
  return r;
}

static void
apply (const struct service_op *op)
{
  struct job *job = op->conn;

  count_and_hold (&job->applying, &job->hold_apply);
  if (job->buf)
    memset (job->buf, (int) op->reqid, job->count);
  count_and_hold (&job->applied, NULL);
}

static bool
cancel (struct service *sv, struct job *job, uint64_t reqid)
{
  struct service_op op;

  return service_cancel (sv, job, reqid, &op);
}

static void
reply (const struct service_op *op)
{
  struct job *job = op->conn;

  if (!job->may_be_early)
    g_assert_cmpuint (clock_ns (), >=, job->due_ns);
  count_and_hold (&job->replying, &job->hold_reply);
  if (job->cancel_in_reply)
    g_assert_false (cancel (job->cancel_in_reply, job, op->reqid));
  pthread_mutex_lock (&lock);
  if (n_replied < G_N_ELEMENTS (order))
    order[n_replied++] = op->reqid;
  pthread_mutex_unlock (&lock);
  count_and_hold (&job->replied, NULL);
}

static bool
ask (void)
{
  bool r;

  pthread_mutex_lock (&lock);
  r = is_down;
  n_asked++;
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&lock);
  return r;
}

static const struct service_calls calls = { .apply = apply, .reply = reply };
static const struct service_calls asking_calls = {
  .apply = apply, .reply = reply, .is_shutting_down = ask,
};

static struct service *
start_with (const struct service_calls *c, unsigned threads)
{
  struct service *sv = service_new (c);

  g_assert_nonnull (sv);
  g_assert_cmpint (service_start (sv, threads), ==, 0);
  n_replied = n_asked = 0;
  is_down = false;
  return sv;
}

static struct service *
start (unsigned threads)
{
  return start_with (&calls, threads);
}

static void
submit_work (struct service *sv, struct job *job, uint64_t reqid,
             uint64_t delay_ns, uint32_t count)
{
  struct service_op op = {
    .conn = job, .reqid = reqid, .kind = 7, .flags = 8,
    .count = count, .offset = 10,
  };

  job->due_ns = clock_ns () + delay_ns;
  g_assert_cmpint (service_submit (sv, &op, delay_ns), ==, 0);
}

static void
submit (struct service *sv, struct job *job, uint64_t reqid, uint64_t delay_ns)
{
  submit_work (sv, job, reqid, delay_ns, 9);
}

static void
submit_long (struct service *sv, struct job *job, uint64_t reqid,
             uint64_t delay_ns)
{
  job->may_be_early = true;
  submit (sv, job, reqid, delay_ns);
}

/* 64 operations, minutes apart, in an order that the heap must sort. */
static uint64_t
mixed (unsigned i)
{
  return (i * 37 + 11) % 64;
}

static void
submit_mixed (struct service *sv, struct job *jobs)
{
  for (unsigned i = 0; i < 64; i++)
    submit_long (sv, &jobs[i], mixed (i),
                 HOUR_NS + mixed (i) * 60 * LATENCY_NS_PER_S);
}

static void
test_order (void)
{
  struct service *sv = start (1);
  struct job jobs[64] = { 0 };

  submit_mixed (sv, jobs);
  service_stop (sv);
  g_assert_cmpuint (n_replied, ==, 64);
  for (unsigned i = 0; i < 64; i++)
    g_assert_cmpuint (order[i], ==, i);
  service_free (sv);
}

/* A short delay overtakes a long one, also while a thread leads for that. */
static void
test_overtake (void)
{
  struct service *sv = start (2);
  struct job slow = { 0 }, quick[8] = { 0 };

  submit_long (sv, &slow, 1, HOUR_NS);
  for (unsigned i = 0; i < 8; i++) {
    submit (sv, &quick[i], 2, MS_NS);
    wait_for (&quick[i].replied, 1);
    g_usleep (2000);
  }
  g_assert_cmpuint (get (&slow.applying), ==, 0);
  service_free (sv);
  g_assert_cmpuint (slow.replied, ==, 1);
}

static void
test_cancel_queued (void)
{
  struct service *sv = start (2);
  struct job jobs[64] = { 0 };
  struct service_op op;
  unsigned n = 0;

  submit_mixed (sv, jobs);
  g_assert_false (service_cancel (sv, &jobs[0], mixed (1), &op));
  g_assert_false (service_cancel (sv, &jobs[1], mixed (0), &op));
  for (unsigned i = 0; i < 64; i += 3) {
    g_assert_true (service_cancel (sv, &jobs[i], mixed (i), &op));
    g_assert_true (op.conn == &jobs[i]);
    g_assert_cmpuint (op.reqid, ==, mixed (i));
    g_assert_cmpuint (op.kind, ==, 7);
    g_assert_cmpuint (op.flags, ==, 8);
    g_assert_cmpuint (op.count, ==, 9);
    g_assert_cmpuint (op.offset, ==, 10);
    g_assert_false (service_cancel (sv, &jobs[i], mixed (i), &op));
  }
  service_stop (sv);
  for (unsigned i = 0; i < 64; i++) {
    g_assert_cmpuint (jobs[i].applied, ==, i % 3 != 0);
    g_assert_cmpuint (jobs[i].replied, ==, i % 3 != 0);
    n += jobs[i].replied;
  }
  g_assert_cmpuint (n_replied, ==, n);
  service_free (sv);

  /* The rest is still sorted, wherever one was taken out.  One thread shows it.
   */
  for (unsigned out = 0; out < 64; out++) {
    sv = start (1);
    submit_mixed (sv, jobs);
    g_assert_true (cancel (sv, &jobs[out], mixed (out)));
    service_free (sv);
    g_assert_cmpuint (n_replied, ==, 63);
    for (unsigned i = 1; i < 63; i++)
      g_assert_cmpuint (order[i], >, order[i - 1]);
  }
}

struct canceller {
  struct service *sv;
  struct job *job;
};

static void *
run_canceller (void *arg)
{
  struct canceller *c = arg;

  g_assert_false (cancel (c->sv, c->job, 1));
  g_assert_cmpuint (get (&c->job->replied), ==, 1);
  return NULL;
}

/* Two threads cancel an operation that is served.  Both wait for the reply. */
static void
test_cancel_serving (gconstpointer in_reply)
{
  struct service *sv = start (1);
  struct job job = { .hold_apply = !in_reply, .hold_reply = in_reply };
  struct canceller c = { .sv = sv, .job = &job };
  pthread_t threads[2];

  submit (sv, &job, 1, 1);
  wait_for (in_reply ? &job.replying : &job.applying, 1);
  for (unsigned i = 0; i < 2; i++)
    g_assert_cmpint (pthread_create (&threads[i], NULL, run_canceller, &c),
                     ==, 0);
  wait_asleep (2);
  set (in_reply ? &job.hold_reply : &job.hold_apply, false);
  for (unsigned i = 0; i < 2; i++)
    pthread_join (threads[i], NULL);
  g_assert_false (cancel (sv, &job, 1));
  service_free (sv);
  g_assert_cmpuint (job.replied, ==, 1);
}

/* A thread that cancels from inside its own reply does not wait. */
static void
test_cancel_in_reply (void)
{
  struct service *sv = start (1);
  struct job job = { .cancel_in_reply = sv };

  submit (sv, &job, 1, 1);
  wait_for (&job.replied, 1);
  service_free (sv);
}

/* While one thread is held up, another one serves new operations. */
static void
test_held_up (void)
{
  struct service *sv = start (3);
  struct job stuck[2] = { { .hold_apply = true }, { .hold_reply = true } };
  struct job job = { 0 };
  unsigned n = 0;

  submit (sv, &stuck[0], 1, MS_NS);
  wait_for (&stuck[0].applying, 1);
  g_usleep (1000);              /* longer than it should take */
  do {
    submit (sv, &job, 3, 1);
    n++;
    g_usleep (1000);
  } while (get (&job.replied) == 0);
  wait_for (&job.replied, n);
  submit_work (sv, &stuck[1], 2, MS_NS, 1 << 20);
  wait_for (&stuck[1].replying, 1);
  do {
    submit (sv, &job, 3, 1);
    n++;
    g_usleep (1000);
  } while (get (&job.replied) < n);
  set (&stuck[0].hold_apply, false);
  set (&stuck[1].hold_reply, false);
  service_free (sv);
  g_assert_cmpuint (job.replied, ==, n);
  g_assert_cmpuint (stuck[0].replied, ==, 1);
  g_assert_cmpuint (stuck[1].replied, ==, 1);
}

/* Threads share operations that are due at the same time.  Each operation is
 * held until all have begun.
 */
static void
test_shared (void)
{
  struct service *sv = start (8);
  struct job jobs[8];

  for (unsigned i = 0; i < 8; i++) {
    jobs[i] = (struct job) { .hold_apply = true };
    submit_work (sv, &jobs[i], i, 20 * MS_NS, 8 << 20);
  }
  for (unsigned i = 0; i < 8; i++)
    wait_for (&jobs[i].applying, 1);
  for (unsigned i = 0; i < 8; i++)
    set (&jobs[i].hold_apply, false);
  for (unsigned i = 0; i < 8; i++)
    wait_for (&jobs[i].replied, 1);
  service_free (sv);
}

static void
test_stop (void)
{
  struct job *jobs = g_new0 (struct job, 5000);
  struct service *sv = start (4);

  for (unsigned i = 0; i < 5000; i++)
    submit_long (sv, &jobs[i], i, i % 2 ? HOUR_NS : 10 * MS_NS);
  service_stop (sv);
  for (unsigned i = 0; i < 5000; i++) {
    g_assert_cmpuint (jobs[i].applied, ==, 1);
    g_assert_cmpuint (jobs[i].replied, ==, 1);
  }
  service_free (sv);
  g_free (jobs);
}

/* Free without stop, stop without start, both with an empty queue. */
static void
test_empty (void)
{
  struct service *sv;

  service_free (NULL);
  service_free (service_new (&calls));
  service_free (start (SERVICE_MAX_THREADS));
  sv = service_new (&calls);
  service_stop (sv);
  service_free (sv);
}

static void
test_shutdown (void)
{
  struct service *sv = start_with (&asking_calls, 3);
  struct job jobs[50] = { 0 }, later = { 0 };
  unsigned asked;

  for (unsigned i = 0; i < 50; i++)
    submit_long (sv, &jobs[i], i, HOUR_NS + i);
  wait_for (&n_asked, 2);
  g_assert_cmpuint (get (&jobs[0].applying), ==, 0);
  set (&is_down, true);
  for (unsigned i = 0; i < 50; i++)
    wait_for (&jobs[i].replied, 1);
  asked = get (&n_asked);
  submit_long (sv, &later, 50, HOUR_NS);
  wait_for (&later.replied, 1);
  /* A napping thread would ask again. */
  while (n_asleep + n_napping < 3)
    g_usleep (1000);
  g_assert_cmpuint (n_napping, ==, 0);
  g_assert_cmpuint (get (&n_asked), ==, asked);
  service_free (sv);
}

/* Submits one job after another, and cancels some.  Frees the buffer as soon as
 * that is allowed, so that a sanitizer reports a later access.
 */
struct client {
  struct service *sv;
  unsigned seed;
  unsigned n_cancelled;
};

static void *
run_client (void *arg)
{
  struct client *c = arg;
  struct service_op op;
  struct job job;
  bool was_queued;

  for (unsigned i = 0; i < 300; i++) {
    const uint64_t delay_ns = (uint64_t) rand_r (&c->seed) % (2 * MS_NS) + 1;

    job = (struct job) { .count = 1000, .buf = g_malloc0 (1000) };
    submit_work (c->sv, &job, i, delay_ns,
                 (uint32_t) rand_r (&c->seed) % (1 << 20));
    was_queued = false;
    if (i % 2) {
      if (i % 4 == 1)
        g_usleep (delay_ns / 1000);
      was_queued = service_cancel (c->sv, &job, i, &op);
      g_clear_pointer (&job.buf, g_free);
    }
    c->n_cancelled += was_queued;
    if (!was_queued) {
      wait_for (&job.replied, 1);
      g_assert_cmpuint (job.applied, ==, 1);
    }
    g_assert_cmpuint (job.applied + was_queued, ==, 1);
    g_free (job.buf);
  }
  return NULL;
}

static void
test_many (gconstpointer data)
{
  struct service *sv = start (GPOINTER_TO_UINT (data));
  struct client c[16] = { 0 };
  pthread_t threads[16];
  unsigned n = 0;

  for (unsigned i = 0; i < 16; i++) {
    c[i] = (struct client) { .sv = sv, .seed = i };
    g_assert_cmpint (pthread_create (&threads[i], NULL, run_client, &c[i]),
                     ==, 0);
  }
  for (unsigned i = 0; i < 16; i++) {
    pthread_join (threads[i], NULL);
    n += c[i].n_cancelled;
  }
  g_test_message ("%u cancelled while queued", n);
  service_free (sv);
}

/* No reply is early, with many delays and sizes in the queue. */
static void
test_never_early (void)
{
  struct service *sv = start (2);
  struct job jobs[500] = { 0 };
  unsigned seed = 1;

  for (unsigned i = 0; i < 500; i++)
    submit_work (sv, &jobs[i], i, (uint64_t) rand_r (&seed) % (100 * MS_NS) + 1,
                 1U << rand_r (&seed) % 25);
  for (unsigned i = 0; i < 500; i++)
    wait_for (&jobs[i].replied, 1);
  service_free (sv);
}

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/service/order", test_order);
  g_test_add_func ("/service/overtake", test_overtake);
  g_test_add_func ("/service/cancel-queued", test_cancel_queued);
  g_test_add_data_func ("/service/cancel-applying", NULL,
                        test_cancel_serving);
  g_test_add_data_func ("/service/cancel-replying", "in reply",
                        test_cancel_serving);
  g_test_add_func ("/service/cancel-in-reply", test_cancel_in_reply);
  g_test_add_func ("/service/held-up", test_held_up);
  g_test_add_func ("/service/shared", test_shared);
  g_test_add_func ("/service/stop", test_stop);
  g_test_add_func ("/service/empty", test_empty);
  g_test_add_func ("/service/shutdown", test_shutdown);
  g_test_add_data_func ("/service/many/1", GUINT_TO_POINTER (1), test_many);
  g_test_add_data_func ("/service/many/2", GUINT_TO_POINTER (2), test_many);
  g_test_add_data_func ("/service/many/64", GUINT_TO_POINTER (64), test_many);
  g_test_add_func ("/service/never-early", test_never_early);
  return g_test_run ();
}
