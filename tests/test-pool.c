/* SPDX-License-Identifier: BSD-3-Clause */
/* Unit tests of the pool of workers, and of fan-out over it. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include <glib.h>

#include "backend.h"
#include "fake.h"
#include "fanout.h"
#include "lock.h"
#include "pool.h"
#include "split.h"

/* Threads that end give back memory of GLib's, by means that ThreadSanitizer does not see. */
const char *__tsan_default_suppressions (void) __attribute__ ((visibility ("default")));
const char *
__tsan_default_suppressions (void)
{
  return "race_top:interceptor_free$\n";
}

enum { MANY = 300, DEADLINE_SECONDS = 100 };

/* Where jobs meet: they say that they run, and wait to be let go. */
struct hub {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Under the lock. */
  unsigned running, peak, done, allowed;        /* allowed: so many may end, of those that wait */
  unsigned order[MANY], n;      /* the names of the jobs as they started */
};

struct work {
  struct job job;               /* first */
  struct hub *hub;
  unsigned name;
  bool waits;
};

static void
work_run (struct job *job)
{
  struct work *w = (struct work *) job;
  struct hub *h = w->hub;

  LOCK_IN_SCOPE (&h->lock);
  g_assert_cmpuint (h->n, <, MANY);
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

static void
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

static void
hub_destroy (struct hub *h)
{
  pthread_cond_destroy (&h->changed);
  pthread_mutex_destroy (&h->lock);
}

static void
hub_allow (struct hub *h, unsigned n)
{
  LOCK_IN_SCOPE (&h->lock);
  h->allowed += n;
  pthread_cond_broadcast (&h->changed);
}

/* Waits until RUNNING jobs run and DONE have ended. */
static void
hub_wait (struct hub *h, unsigned running, unsigned done)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  ts.tv_sec += DEADLINE_SECONDS;
  LOCK_IN_SCOPE (&h->lock);
  while (h->running != running || h->done != done)
    if (pthread_cond_timedwait (&h->changed, &h->lock, &ts) == ETIMEDOUT)
      g_error ("%u run, not %u, and %u are done, not %u", h->running, running, h->done, done);
}

static struct pool *
start (unsigned threads)
{
  g_autoptr (GError) error = NULL;
  struct pool *p = pool_new (threads, &error);

  g_assert_no_error (error);
  return p;
}

static void
push (struct pool *p, struct hub *h, struct work *w, unsigned name, bool waits, enum pool_queue q)
{
  *w = (struct work) { .hub = h, .name = name, .waits = waits, .job.run = work_run };
  pool_push (p, &w->job, q);
}

/* A token may be on its way back for a moment after the last job is done. */
static void
wait_idle (struct pool *p, unsigned n)
{
  for (unsigned i = 0; pool_idle (p) != n; i++) {
    g_assert_cmpuint (i, <, 1000 * DEADLINE_SECONDS);
    g_usleep (1000);
  }
}

static void
test_order (void)
{
  static const enum pool_queue queues[] = {
    POOL_AHEAD, POOL_AHEAD, POOL_WRITE, POOL_PIECE, POOL_AHEAD, POOL_WRITE, POOL_PIECE
  };
  static const unsigned expected[] = { 99, 3, 6, 2, 5, 0, 1, 4 };
  struct work first, works[G_N_ELEMENTS (queues)];
  struct pool *p = start (1);
  struct hub h;

  hub_init (&h);
  push (p, &h, &first, 99, true, POOL_AHEAD);
  hub_wait (&h, 1, 0);
  for (unsigned i = 0; i < G_N_ELEMENTS (queues); i++)
    push (p, &h, &works[i], i, false, queues[i]);
  hub_allow (&h, 1);
  hub_wait (&h, 0, 8);
  for (unsigned i = 0; i < 8; i++)
    g_assert_cmpuint (h.order[i], ==, expected[i]);
  pool_free (p);
  hub_destroy (&h);
}

static void
test_cancel (void)
{
  struct work running, queued, other;
  struct pool *p = start (1);
  struct hub h;

  hub_init (&h);
  push (p, &h, &running, 1, true, POOL_WRITE);
  hub_wait (&h, 1, 0);
  push (p, &h, &queued, 2, false, POOL_AHEAD);
  push (p, &h, &other, 3, false, POOL_AHEAD);
  g_assert_false (pool_cancel (p, &running.job));
  g_assert_true (pool_cancel (p, &queued.job));
  g_assert_false (pool_cancel (p, &queued.job));
  hub_allow (&h, 1);
  hub_wait (&h, 0, 2);
  g_assert_false (pool_cancel (p, &running.job));
  /* It is the submitter's, who may queue it again. */
  pool_push (p, &queued.job, POOL_PIECE);
  hub_wait (&h, 0, 3);
  g_assert_cmpuint (h.order[0], ==, 1);
  g_assert_cmpuint (h.order[1], ==, 3);
  g_assert_cmpuint (h.order[2], ==, 2);
  wait_idle (p, 1);
  pool_free (p);
  hub_destroy (&h);
}

static void
test_try_push (void)
{
  struct work works[3];
  struct work extra = { .name = 9, .job.run = work_run };
  struct pool *p = start (2);
  struct hub h;

  hub_init (&h);
  extra.hub = &h;
  g_assert_cmpuint (pool_idle (p), ==, 2);
  push (p, &h, &works[0], 0, true, POOL_WRITE);
  hub_wait (&h, 1, 0);
  g_assert_cmpuint (pool_idle (p), ==, 1);
  works[1] = (struct work) { .hub = &h, .name = 1, .waits = true, .job.run = work_run };
  g_assert_true (pool_try_push (p, &works[1].job, POOL_PIECE));
  g_assert_cmpuint (pool_idle (p), ==, 0);      /* at once: nobody else gets that thread */
  g_assert_false (pool_try_push (p, &extra.job, POOL_PIECE));
  g_assert_false (pool_cancel (p, &extra.job));
  hub_wait (&h, 2, 0);
  g_assert_false (pool_try_push (p, &extra.job, POOL_PIECE));
  hub_allow (&h, 2);
  hub_wait (&h, 0, 2);
  wait_idle (p, 2);
  g_assert_true (pool_try_push (p, &extra.job, POOL_PIECE));
  hub_wait (&h, 0, 3);
  pool_free (p);
  hub_destroy (&h);
}

static void
test_limit (gconstpointer data)
{
  unsigned threads = GPOINTER_TO_UINT (data);
  struct work works[MANY];
  struct pool *p = start (threads);
  struct hub h;

  hub_init (&h);
  for (unsigned i = 0; i < MANY; i++)
    push (p, &h, &works[i], i, true, i % POOL_QUEUES);
  pool_wake_idle (p);
  hub_wait (&h, threads, 0);
  for (unsigned i = 0; i < 10; i++) {
    hub_allow (&h, 1);
    hub_wait (&h, threads, i + 1);
  }
  hub_allow (&h, MANY - 10);
  hub_wait (&h, 0, MANY);
  g_assert_cmpuint (h.peak, ==, threads);
  wait_idle (p, threads);
  pool_free (p);
  hub_destroy (&h);
}

static void *
free_pool (void *p)
{
  pool_free (p);
  return NULL;
}

/* Frees wait for what runs. */
static void
test_free (void)
{
  struct work works[3];
  struct pool *p = start (3);
  struct hub h;
  pthread_t thread;

  hub_init (&h);
  for (unsigned i = 0; i < 3; i++)
    push (p, &h, &works[i], i, true, POOL_WRITE);
  hub_wait (&h, 3, 0);
  g_assert_cmpint (pthread_create (&thread, NULL, free_pool, p), ==, 0);
  hub_allow (&h, 3);
  pthread_join (thread, NULL);
  {
    LOCK_IN_SCOPE (&h.lock);
    g_assert_cmpuint (h.done, ==, 3);
  }
  hub_destroy (&h);
}

/* Where many are at work a job may wait for one of them; who cannot wait says so. */
static void
test_hurry (void)
{
  enum { BUSY = 130 };
  struct work works[BUSY], patient, urgent;
  struct pool *p = start (BUSY + 20);
  struct hub h;

  hub_init (&h);
  for (unsigned i = 0; i < BUSY; i++)
    push (p, &h, &works[i], i, true, POOL_WRITE);
  pool_wake_idle (p);
  hub_wait (&h, BUSY, 0);
  wait_idle (p, 20);
  push (p, &h, &patient, 500, true, POOL_AHEAD);
  g_assert_cmpuint (pool_idle (p), ==, 20);     /* it stays queued */
  hub_allow (&h, 1);                            /* until one of those at work is done */
  hub_wait (&h, BUSY, 1);
  push (p, &h, &works[0], 501, true, POOL_AHEAD);
  g_assert_cmpuint (pool_idle (p), ==, 20);
  pool_wake_idle (p);
  hub_wait (&h, BUSY + 1, 1);
  push (p, &h, &patient, 502, true, POOL_AHEAD);
  g_assert_true (pool_cancel (p, &patient.job));
  /* A piece is never patient, nor is it overtaken by what was. */
  push (p, &h, &patient, 503, true, POOL_AHEAD);
  urgent = (struct work) { .hub = &h, .name = 504, .waits = true, .job.run = work_run };
  g_assert_true (pool_try_push (p, &urgent.job, POOL_PIECE));
  hub_wait (&h, BUSY + 3, 1);
  hub_allow (&h, MANY);
  hub_wait (&h, 0, BUSY + 4);
  pool_free (p);
  hub_destroy (&h);
}

/* Fan-out. */

#define UNIT UINT64_C (65536)

/* A device, a pool with some of its workers busy, and one request on a thread of its own. */
struct scene {
  struct fake *f;
  struct backend b;
  struct speed pace;
  struct pool *p;
  struct hub h;
  struct work busy[16];
  unsigned n_busy;
  /* The request. */
  pthread_t thread;
  bool write;
  char *buf;
  uint32_t count;
  uint64_t offset;
  int err;
  atomic_bool done;
};

static uint8_t
byte_at (uint64_t offset, bool written)
{
  return (offset >> 8) * 7 + offset + (written ? 99 : 0);
}

static void
scene_start (struct scene *s, unsigned threads, unsigned busy)
{
  memset (s, 0, sizeof *s);
  s->f = fake_new (32 * UNIT);
  for (uint64_t i = 0; i < 32 * UNIT; i++)
    fake_data (s->f)[i] = byte_at (i, false);
  s->b = fake_backend (s->f, 0);
  s->b.read_speed = s->b.write_speed = &s->pace;
  s->b.stats = stats_new ();
  s->p = start (threads);
  hub_init (&s->h);
  s->n_busy = busy;
  for (unsigned i = 0; i < busy; i++)
    push (s->p, &s->h, &s->busy[i], i, true, POOL_WRITE);
  hub_wait (&s->h, busy, 0);
}

static void
scene_end (struct scene *s)
{
  hub_allow (&s->h, s->n_busy);
  hub_wait (&s->h, 0, s->n_busy);
  pool_free (s->p);
  hub_destroy (&s->h);
  stats_free (s->b.stats);
  fake_free (s->f);
}

static void *
request_run (void *vp)
{
  struct scene *s = vp;

  if (s->write)
    s->err = fanout_pwrite (s->p, &s->b, UNIT, s->buf, s->count, s->offset);
  else
    s->err = fanout_pread (s->p, &s->b, UNIT, s->buf, s->count, s->offset);
  atomic_store (&s->done, true);
  return NULL;
}

static void
request_start (struct scene *s, bool write, uint32_t count, uint64_t offset)
{
  s->write = write;
  s->count = count;
  s->offset = offset;
  s->buf = g_malloc (count);
  for (uint32_t i = 0; i < count; i++)
    s->buf[i] = write ? byte_at (offset + i, true) : 0;
  g_assert_cmpint (pthread_create (&s->thread, NULL, request_run, s), ==, 0);
}

/* Ends it, and looks at what was read or written if it was successful. */
static int
request_end (struct scene *s)
{
  pthread_join (s->thread, NULL);
  if (s->err == 0) {
    if (s->write)
      fake_peek (s->f, s->buf, s->count, s->offset);
    for (uint32_t i = 0; i < s->count; i++)
      g_assert_cmphex ((uint8_t) s->buf[i], ==, byte_at (s->offset + i, s->write));
  }
  g_free (s->buf);
  return s->err;
}

static unsigned
kind_of (bool write)
{
  return write ? FAKE_WRITE : FAKE_READ;
}

/* With IDLE workers beside it a request of UNITS units is so many operations, all at once. */
static void
check_pieces (bool write, unsigned threads, unsigned busy, uint32_t count, uint64_t offset)
{
  unsigned expected = MIN (threads - busy + 1, split_max (UNIT, count, offset));
  struct scene s;
  uint64_t covered = 0;
  unsigned by_caller = 0, fewest = UINT_MAX, most = 0;
  int hold;

  scene_start (&s, threads, busy);
  hold = fake_hold (s.f, FAKE_ANY, 0, 0);
  request_start (&s, write, count, offset);
  fake_wait_held (s.f, hold, expected);
  g_assert_cmpuint (fake_started (s.f, FAKE_ANY, 0, 0), ==, expected);
  fake_release (s.f, hold);
  g_assert_cmpint (request_end (&s), ==, 0);
  g_assert_cmpuint (fake_ended (s.f, kind_of (write), 0, 0), ==, expected);
  for (unsigned i = 0; i < expected; i++) {
    struct fake_op op = fake_op (s.f, FAKE_ANY, 0, 0, i);

    g_assert_true (op.offset == offset || op.offset % UNIT == 0);
    g_assert_true (op.offset + op.count == offset + count || (op.offset + op.count) % UNIT == 0);
    covered += op.count;
    by_caller += pthread_equal (op.thread, s.thread) != 0;
    fewest = MIN (fewest, split_max (UNIT, op.count, op.offset));
    most = MAX (most, split_max (UNIT, op.count, op.offset));
  }
  g_assert_cmpuint (covered, ==, count);
  /* Busy workers get no piece, so no thread does the pieces of several. */
  g_assert_cmpuint (most - fewest, <=, 1);
  g_assert_cmpuint (by_caller, ==, 1);
  scene_end (&s);
}

static void
test_pieces (gconstpointer data)
{
  bool write = GPOINTER_TO_INT (data);

  check_pieces (write, 4, 0, 8 * UNIT, UNIT);
  check_pieces (write, 4, 0, 8 * UNIT, 100);
  check_pieces (write, 4, 0, 2 * UNIT, UNIT / 2);
  check_pieces (write, 4, 3, 8 * UNIT, UNIT);
  check_pieces (write, 4, 4, 8 * UNIT, UNIT);   /* nobody idle: one */
  check_pieces (write, 16, 2, 3 * UNIT, 0);
  check_pieces (write, 16, 0, 31 * UNIT, 5);
  check_pieces (write, 4, 0, UNIT, UNIT);       /* within one unit */
  check_pieces (write, 4, 0, 1, UNIT - 1);
}

/* A request of UNITS units, of which hooks do no more than MAX_PIECES. */
static void
check_hooked_pieces (bool write, unsigned units, unsigned max_pieces)
{
  unsigned by_hooks = MIN (max_pieces, units - 1);
  atomic_uint pieces = 0;
  struct fake_op op;
  struct scene s;
  int hold;

  scene_start (&s, 1, 0);
  fake_hook (&s.b, 0);
  s.b.pieces = &pieces;
  s.b.max_pieces = max_pieces;
  for (unsigned round = 0; round < 2; round++) {        /* the first gives all back */
    hold = fake_hold (s.f, FAKE_ANY, 0, 0);
    request_start (&s, write, units * UNIT, 0);
    fake_wait_held (s.f, hold, by_hooks + 1);
    g_assert_cmpuint (fake_started (s.f, FAKE_ANY, 0, 0), ==, by_hooks + 1);
    g_assert_cmpuint (atomic_load (&pieces), ==, by_hooks);
    op = fake_op (s.f, FAKE_ANY, 0, UNIT, 0);
    g_assert_cmpuint (op.offset, ==, 0);        /* the caller does the rest as one */
    g_assert_cmpuint (op.count, ==, (units - by_hooks) * UNIT);
    g_assert_true (pthread_equal (op.thread, s.thread));
    fake_release (s.f, hold);
    g_assert_cmpint (request_end (&s), ==, 0);
    g_assert_cmpuint (atomic_load (&pieces), ==, 0);
    fake_forget (s.f);
  }
  scene_end (&s);
}

static void
test_hooked_pieces (gconstpointer data)
{
  bool write = GPOINTER_TO_INT (data);

  check_hooked_pieces (write, 8, 1);
  check_hooked_pieces (write, 8, 5);
  check_hooked_pieces (write, 8, 6);
  check_hooked_pieces (write, 8, 7);    /* exactly as many as there are */
  check_hooked_pieces (write, 8, 100);
}

/* Two requests share the bound. */
static void
test_hooked_bound (gconstpointer data)
{
  bool write = GPOINTER_TO_INT (data);
  atomic_uint pieces = 3;       /* of another request */
  struct scene s;
  int hold;

  scene_start (&s, 1, 0);
  fake_hook (&s.b, 0);
  s.b.pieces = &pieces;
  s.b.max_pieces = 4;
  hold = fake_hold (s.f, FAKE_ANY, 0, 0);
  request_start (&s, write, 8 * UNIT, 0);
  fake_wait_held (s.f, hold, 2);
  g_assert_cmpuint (fake_started (s.f, FAKE_ANY, 0, 0), ==, 2);
  fake_release (s.f, hold);
  g_assert_cmpint (request_end (&s), ==, 0);
  g_assert_cmpuint (atomic_load (&pieces), ==, 3);
  scene_end (&s);
}

/* A worker's piece that fails is done again by the caller; that counts. */
static void
test_repeat (gconstpointer data)
{
  bool write = GPOINTER_TO_INT (data);
  struct scene s;
  struct fake_op op;

  scene_start (&s, 4, 0);
  fake_fail (s.f, FAKE_ANY, 4 * UNIT, UNIT, EIO, 1);
  request_start (&s, write, 5 * UNIT, 0);       /* five pieces: the fifth fails */
  g_assert_cmpint (request_end (&s), ==, 0);
  g_assert_cmpuint (fake_started (s.f, FAKE_ANY, 0, 0), ==, 6);
  op = fake_op (s.f, FAKE_ANY, 4 * UNIT, UNIT, 0);
  g_assert_cmpint (op.err, ==, EIO);
  g_assert_false (pthread_equal (op.thread, s.thread));
  op = fake_op (s.f, FAKE_ANY, 4 * UNIT, UNIT, 1);
  g_assert_cmpuint (op.offset, ==, 4 * UNIT);
  g_assert_cmpuint (op.count, ==, UNIT);
  g_assert_true (pthread_equal (op.thread, s.thread));
  scene_end (&s);
}

/* The error of the first in the order of offsets, whichever came first. */
static void
test_error_order (gconstpointer data)
{
  bool write = GPOINTER_TO_INT (data);
  struct scene s;
  int hold;

  scene_start (&s, 4, 0);
  fake_fail (s.f, FAKE_ANY, 2 * UNIT, UNIT, ENOSPC, -1);
  fake_fail (s.f, FAKE_ANY, 4 * UNIT, UNIT, ENOMEDIUM, -1);
  hold = fake_hold (s.f, FAKE_ANY, 2 * UNIT, UNIT);
  request_start (&s, write, 5 * UNIT, 0);
  fake_wait_held (s.f, hold, 1);
  fake_wait_ended (s.f, FAKE_ANY, 4 * UNIT, UNIT, 1);
  fake_release (s.f, hold);
  g_assert_cmpint (request_end (&s), ==, ENOSPC);
  scene_end (&s);
}

/* All pieces have ended when it returns, also where the caller's own has failed. */
static void
test_waits_for_all (gconstpointer data)
{
  bool write = GPOINTER_TO_INT (data);
  struct scene s;
  uint64_t waited;
  int hold;

  scene_start (&s, 4, 0);
  fake_fail (s.f, FAKE_ANY, 0, UNIT, ENOSPC, -1);
  hold = fake_hold (s.f, FAKE_ANY, UNIT, 4 * UNIT);
  request_start (&s, write, 5 * UNIT, 0);
  fake_wait_held (s.f, hold, 4);
  fake_wait_ended (s.f, FAKE_ANY, 0, UNIT, 1);
  for (unsigned i = 0; i < 4; i++) {
    g_assert_false (atomic_load (&s.done));
    fake_pass (s.f, hold, 1);
    fake_wait_ended (s.f, FAKE_ANY, UNIT, 4 * UNIT, i + 1);
  }
  waited = fake_ended (s.f, FAKE_ANY, 0, 0);
  g_assert_cmpint (request_end (&s), ==, ENOSPC);
  g_assert_cmpuint (waited, ==, 5);
  g_assert_cmpuint (fake_ended (s.f, FAKE_ANY, 0, 0), ==, 5);
  scene_end (&s);
}

struct churn {
  struct pool *p;
  atomic_bool stop;
};

static void
nothing (struct job *job G_GNUC_UNUSED)
{
}

static void *
churn_run (void *vp)
{
  struct churn *c = vp;
  struct job job = { .run = nothing };

  while (!atomic_load (&c->stop)) {
    pool_push (c->p, &job, POOL_WRITE);
    while (!pool_cancel (c->p, &job) && pool_idle (c->p) < 3)
      ;
    wait_idle (c->p, 3);
  }
  return NULL;
}

/* The number of idle workers changes all the time: still every piece lies within the request, which
 * the fake sees to, and each byte is in one of them.
 */
static void
test_churn (gconstpointer data)
{
  bool write = GPOINTER_TO_INT (data);
  struct scene s;
  struct churn c = { 0 };
  pthread_t thread;

  scene_start (&s, 3, 0);
  fake_set_fast (s.f, true);
  c.p = s.p;
  g_assert_cmpint (pthread_create (&thread, NULL, churn_run, &c), ==, 0);
  for (unsigned i = 0; i < 60000; i++) {
    uint64_t offset = UNIT - 100 - i % 7;       /* two units, and two workers beside the caller */
    uint8_t buf[200];

    memset (buf, i, sizeof buf);
    if (write)
      g_assert_cmpint (fanout_pwrite (s.p, &s.b, UNIT, buf, sizeof buf, offset), ==, 0);
    else
      g_assert_cmpint (fanout_pread (s.p, &s.b, UNIT, buf, sizeof buf, offset), ==, 0);
    g_assert_cmpint (memcmp (buf, fake_data (s.f) + offset, sizeof buf), ==, 0);
  }
  atomic_store (&c.stop, true);
  pthread_join (thread, NULL);
  scene_end (&s);
}

/* The way into the plugin. */

static void
io_done (struct backend_io *io, int err)
{
  g_assert_cmpint (err, ==, ENOSPC);
  *(bool *) (io + 1) = true;
}

/* A refusal says nothing of how long the device takes. */
static void
test_failures_have_no_pace (void)
{
  struct {
    struct backend_io io;       /* first */
    bool done;
  } one = { 0 };
  char buf[512] = { 0 };
  struct scene s;
  uint64_t wait;

  scene_start (&s, 1, 0);
  fake_set_fast (s.f, true);
  speed_note (&s.pace, 64000000, sizeof buf);
  wait = speed_wait_ns (&s.pace);
  g_assert_cmpuint (wait, >, 0);
  fake_fail (s.f, FAKE_ANY, 0, 0, ENOSPC, -1);
  g_assert_cmpint (backend_pread (&s.b, buf, sizeof buf, 0), ==, ENOSPC);
  g_assert_cmpuint (speed_wait_ns (&s.pace), ==, wait);
  g_assert_cmpint (backend_pwrite (&s.b, buf, sizeof buf, 0, 0), ==, ENOSPC);
  g_assert_cmpuint (speed_wait_ns (&s.pace), ==, wait);
  for (int write = 0; write < 2; write++) {
    one.io = (struct backend_io) { .backend = &s.b, .done = io_done };
    one.io.hook.buf = buf;
    one.io.hook.count = sizeof buf;
    one.io.hook.is_write = write;
    one.done = false;
    backend_io_do (&one.io);
    g_assert_true (one.done);
    g_assert_cmpuint (speed_wait_ns (&s.pace), ==, wait);
  }
  scene_end (&s);
}

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  /* Each pool gets threads of its own: GLib would hand some on, unseen by ThreadSanitizer. */
  g_thread_pool_set_max_unused_threads (0);
  g_test_add_func ("/pool/order", test_order);
  g_test_add_func ("/pool/cancel", test_cancel);
  g_test_add_func ("/pool/try-push", test_try_push);
  g_test_add_data_func ("/pool/limit/1", GUINT_TO_POINTER (1), test_limit);
  g_test_add_data_func ("/pool/limit/7", GUINT_TO_POINTER (7), test_limit);
  g_test_add_data_func ("/pool/limit/200", GUINT_TO_POINTER (200), test_limit);
  g_test_add_func ("/pool/free", test_free);
  g_test_add_func ("/pool/hurry", test_hurry);
  g_test_add_func ("/backend/failures-have-no-pace", test_failures_have_no_pace);
  for (int write = 0; write < 2; write++) {
    const char *kind = write ? "write" : "read";
    static const struct { const char *name; void (*test) (gconstpointer); } tests[] = {
      { "pieces", test_pieces }, { "repeat", test_repeat }, { "error-order", test_error_order },
      { "waits-for-all", test_waits_for_all }, { "churn", test_churn },
      { "hooked/pieces", test_hooked_pieces }, { "hooked/bound", test_hooked_bound },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS (tests); i++) {
      g_autofree char *path = g_strdup_printf ("/fanout/%s/%s", tests[i].name, kind);

      g_test_add_data_func (path, GINT_TO_POINTER (write), tests[i].test);
    }
  }
  return g_test_run ();
}
