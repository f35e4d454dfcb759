/* SPDX-License-Identifier: BSD-3-Clause */

/* Unit tests of fan-out, see fanout.h: which pieces a large request becomes,
 * which threads or hooks do them, and what their errors become.
 *
 * Each test runs with reads and with writes.
 */
#include <limits.h>

#include "backend.h"
#include "fake.h"
#include "fanout.h"
#include "hub.h"
#include "limit.h"
#include "split.h"

#define UNIT UINT64_C (65536)

/* A device, a pool with some busy workers, and one request on a thread of its
 * own.
 */
struct scene {
  struct fake *f;
  struct gate *gate;            /* the device's */
  struct backend b;
  struct speed pace;
  struct limit limit;
  struct pool *p;
  struct hub h;
  struct work busy[16];
  unsigned n_busy;
  /* The request. */
  pthread_t thread;
  bool is_write;
  char *buf;
  uint32_t count;
  uint64_t offset;
  int err;
  atomic_bool done;
};

static uint8_t
byte_at (uint64_t offset, bool is_written)
{
  return (offset >> 8) * 7 + offset + (is_written ? 99 : 0);
}

static void
scene_start (struct scene *s, bool is_write, unsigned threads, unsigned busy)
{
  memset (s, 0, sizeof *s);
  s->is_write = is_write;
  s->f = fake_new (32 * UNIT);
  s->gate = fake_gate (s->f);
  for (uint64_t i = 0; i < 32 * UNIT; i++)
    fake_data (s->f)[i] = byte_at (i, false);
  s->b = fake_backend (s->f, 0);
  s->b.read_speed = s->b.write_speed = &s->pace;
  limit_init (&s->limit, false, 1000, UNIT, false);
  s->b.read_limit = s->b.write_limit = &s->limit;
  s->b.stats = stats_new ();
  s->p = start_pool (threads, HUB_IDLE_NS);
  hub_init (&s->h);
  s->n_busy = busy;
  for (unsigned i = 0; i < busy; i++) {
    s->busy[i] = hub_work (&s->h, i, true);
    pool_push (s->p, &s->busy[i].job, POOL_WRITE);
  }
  hub_wait (&s->h, busy, 0);
}

static void
scene_end (struct scene *s)
{
  hub_allow (&s->h, s->n_busy);
  hub_wait (&s->h, 0, s->n_busy);
  pool_free (s->p);
  limit_destroy (&s->limit);
  hub_destroy (&s->h);
  stats_free (s->b.stats);
  fake_free (s->f);
}

static int
fanout (struct scene *s, void *buf, uint32_t count, uint64_t offset)
{
  if (s->is_write)
    return fanout_pwrite (s->p, &s->b, UNIT, buf, count, offset);
  return fanout_pread (s->p, &s->b, UNIT, buf, count, offset);
}

static void *
request_run (void *vp)
{
  struct scene *s = vp;

  s->err = fanout (s, s->buf, s->count, s->offset);
  atomic_store (&s->done, true);
  return NULL;
}

static void
request_start (struct scene *s, uint32_t count, uint64_t offset)
{
  s->count = count;
  s->offset = offset;
  s->buf = g_malloc (count);
  for (uint32_t i = 0; i < count; i++)
    s->buf[i] = s->is_write ? byte_at (offset + i, true) : 0;
  g_assert_cmpint (pthread_create (&s->thread, NULL, request_run, s), ==, 0);
}

/* Waits for the request.  If it succeeds its data must be right. */
static int
request_end (struct scene *s)
{
  pthread_join (s->thread, NULL);
  if (s->err == 0) {
    if (s->is_write)
      fake_peek (s->f, s->buf, s->count, s->offset);
    for (uint32_t i = 0; i < s->count; i++)
      g_assert_cmphex ((uint8_t) s->buf[i], ==,
                       byte_at (s->offset + i, s->is_write));
  }
  g_free (s->buf);
  return s->err;
}

/* Pieces. */

/* Each piece begins and ends at a unit, or where the request does.  One piece
 * is the caller's.  Each idle worker gets about the same number of units.
 */
static void
assert_pieces (struct scene *s, unsigned n)
{
  uint64_t covered = 0, end = s->offset + s->count;
  unsigned by_caller = 0, fewest = UINT_MAX, most = 0;

  for (unsigned i = 0; i < n; i++) {
    struct gate_op op = gate_op (s->gate, GATE_ANY, ANYWHERE, i);
    unsigned units = split_max (UNIT, op.count, op.offset);

    g_assert_true (op.offset == s->offset || op.offset % UNIT == 0);
    g_assert_true (op.offset + op.count == end
                   || (op.offset + op.count) % UNIT == 0);
    covered += op.count;
    by_caller += pthread_equal (op.thread, s->thread) != 0;
    fewest = MIN (fewest, units);
    most = MAX (most, units);
  }
  g_assert_cmpuint (covered, ==, s->count);
  g_assert_cmpuint (most - fewest, <=, 1);
  g_assert_cmpuint (by_caller, ==, 1);
}

/* A request becomes one piece for each idle worker and one for the caller, all
 * at once.  Busy workers get none.
 */
static void
check_pieces (bool is_write, unsigned threads, unsigned busy, uint32_t count,
              uint64_t offset)
{
  unsigned kind = is_write ? GATE_WRITE : GATE_READ;
  unsigned n = MIN (threads - busy + 1, split_max (UNIT, count, offset));
  struct scene s;
  int hold;

  scene_start (&s, is_write, threads, busy);
  hold = gate_hold (s.gate, GATE_ANY, ANYWHERE);
  request_start (&s, count, offset);
  gate_wait_held (s.gate, hold, n);
  g_assert_cmpuint (gate_started (s.gate, GATE_ANY, ANYWHERE), ==, n);
  gate_release (s.gate, hold);
  g_assert_cmpint (request_end (&s), ==, 0);
  g_assert_cmpuint (gate_ended (s.gate, kind, 0, 0), ==, n);
  assert_pieces (&s, n);
  scene_end (&s);
}

static void
test_pieces (gconstpointer data)
{
  bool is_write = GPOINTER_TO_INT (data);

  check_pieces (is_write, 4, 0, 8 * UNIT, UNIT);
  check_pieces (is_write, 4, 0, 8 * UNIT, 100);
  check_pieces (is_write, 4, 0, 2 * UNIT, UNIT / 2);
  check_pieces (is_write, 4, 3, 8 * UNIT, UNIT);
  check_pieces (is_write, 4, 4, 8 * UNIT, UNIT);        /* no idle worker */
  check_pieces (is_write, 16, 2, 3 * UNIT, 0);
  check_pieces (is_write, 16, 0, 31 * UNIT, 5);
  check_pieces (is_write, 4, 0, UNIT, UNIT);            /* within one unit */
  check_pieces (is_write, 4, 0, 1, UNIT - 1);
}

/* Hooks do at most MAX_PIECES units of a request, and the caller does the rest
 * as one piece.
 */
static void
check_hooked_pieces (bool is_write, unsigned units, unsigned max_pieces)
{
  unsigned by_hooks = MIN (max_pieces, units - 1);
  atomic_uint pieces = 0;
  struct gate_op op;
  struct scene s;
  int hold;

  scene_start (&s, is_write, 1, 0);
  fake_hook (&s.b, 0);
  s.b.pieces = &pieces;
  s.b.max_pieces = max_pieces;
  /* Twice, as the first request must give back what it took of the bound. */
  for (unsigned round = 0; round < 2; round++) {
    hold = gate_hold (s.gate, GATE_ANY, ANYWHERE);
    request_start (&s, units * UNIT, 0);
    gate_wait_held (s.gate, hold, by_hooks + 1);
    g_assert_cmpuint (gate_started (s.gate, GATE_ANY, ANYWHERE), ==,
                      by_hooks + 1);
    g_assert_cmpuint (atomic_load (&pieces), ==, by_hooks);
    op = gate_op (s.gate, GATE_ANY, 0, UNIT, 0);
    g_assert_cmpuint (op.offset, ==, 0);
    g_assert_cmpuint (op.count, ==, (units - by_hooks) * UNIT);
    g_assert_true (pthread_equal (op.thread, s.thread));
    gate_release (s.gate, hold);
    g_assert_cmpint (request_end (&s), ==, 0);
    g_assert_cmpuint (atomic_load (&pieces), ==, 0);
    gate_forget (s.gate);
  }
  scene_end (&s);
}

static void
test_hooked_pieces (gconstpointer data)
{
  bool is_write = GPOINTER_TO_INT (data);

  check_hooked_pieces (is_write, 8, 1);
  check_hooked_pieces (is_write, 8, 5);
  check_hooked_pieces (is_write, 8, 6);
  check_hooked_pieces (is_write, 8, 7);         /* as many as there are */
  check_hooked_pieces (is_write, 8, 100);
}

/* All requests share the bound. */
static void
test_hooked_bound (gconstpointer data)
{
  atomic_uint pieces = 3;       /* of another request */
  struct scene s;
  int hold;

  scene_start (&s, GPOINTER_TO_INT (data), 1, 0);
  fake_hook (&s.b, 0);
  s.b.pieces = &pieces;
  s.b.max_pieces = 4;
  hold = gate_hold (s.gate, GATE_ANY, ANYWHERE);
  request_start (&s, 8 * UNIT, 0);
  gate_wait_held (s.gate, hold, 2);
  g_assert_cmpuint (gate_started (s.gate, GATE_ANY, ANYWHERE), ==, 2);
  gate_release (s.gate, hold);
  g_assert_cmpint (request_end (&s), ==, 0);
  g_assert_cmpuint (atomic_load (&pieces), ==, 3);
  scene_end (&s);
}

/* Errors. */

/* The caller repeats a worker's failed piece, and its result counts. */
static void
test_repeat (gconstpointer data)
{
  struct scene s;
  struct gate_op op;

  scene_start (&s, GPOINTER_TO_INT (data), 4, 0);
  gate_fail (s.gate, GATE_ANY, 4 * UNIT, UNIT, EIO, 1);
  request_start (&s, 5 * UNIT, 0);      /* five pieces: the fifth fails */
  g_assert_cmpint (request_end (&s), ==, 0);
  g_assert_cmpuint (gate_started (s.gate, GATE_ANY, ANYWHERE), ==, 6);
  op = gate_op (s.gate, GATE_ANY, 4 * UNIT, UNIT, 0);
  g_assert_cmpint (op.err, ==, EIO);
  g_assert_false (pthread_equal (op.thread, s.thread));
  op = gate_op (s.gate, GATE_ANY, 4 * UNIT, UNIT, 1);
  g_assert_cmpuint (op.offset, ==, 4 * UNIT);
  g_assert_cmpuint (op.count, ==, UNIT);
  g_assert_true (pthread_equal (op.thread, s.thread));
  scene_end (&s);
}

/* Of several errors the request returns the first in the order of offsets,
 * whichever came first.
 */
static void
test_error_order (gconstpointer data)
{
  struct scene s;
  int hold;

  scene_start (&s, GPOINTER_TO_INT (data), 4, 0);
  gate_fail (s.gate, GATE_ANY, 2 * UNIT, UNIT, ENOSPC, -1);
  gate_fail (s.gate, GATE_ANY, 4 * UNIT, UNIT, ENOMEDIUM, -1);
  hold = gate_hold (s.gate, GATE_ANY, 2 * UNIT, UNIT);
  request_start (&s, 5 * UNIT, 0);
  gate_wait_held (s.gate, hold, 1);
  gate_wait_ended (s.gate, GATE_ANY, 4 * UNIT, UNIT, 1);
  gate_release (s.gate, hold);
  g_assert_cmpint (request_end (&s), ==, ENOSPC);
  scene_end (&s);
}

/* The request returns when all pieces have ended, also where the caller's own
 * piece has failed.
 */
static void
test_waits_for_all (gconstpointer data)
{
  struct scene s;
  uint64_t waited;
  int hold;

  scene_start (&s, GPOINTER_TO_INT (data), 4, 0);
  gate_fail (s.gate, GATE_ANY, 0, UNIT, ENOSPC, -1);
  hold = gate_hold (s.gate, GATE_ANY, UNIT, 4 * UNIT);
  request_start (&s, 5 * UNIT, 0);
  gate_wait_held (s.gate, hold, 4);
  gate_wait_ended (s.gate, GATE_ANY, 0, UNIT, 1);
  for (unsigned i = 0; i < 4; i++) {
    g_assert_false (atomic_load (&s.done));
    gate_pass (s.gate, hold, 1);
    gate_wait_ended (s.gate, GATE_ANY, UNIT, 4 * UNIT, i + 1);
  }
  waited = gate_ended (s.gate, GATE_ANY, ANYWHERE);
  g_assert_cmpint (request_end (&s), ==, ENOSPC);
  g_assert_cmpuint (waited, ==, 5);
  g_assert_cmpuint (gate_ended (s.gate, GATE_ANY, ANYWHERE), ==, 5);
  scene_end (&s);
}

/* Workers that come and go. */

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

/* The number of idle workers changes all the time.  Each byte of a request is
 * in one of its pieces, and the fake asserts that no piece leaves the device.
 */
static void
test_churn (gconstpointer data)
{
  struct scene s;
  struct churn c = { 0 };
  pthread_t thread;

  scene_start (&s, GPOINTER_TO_INT (data), 3, 0);
  fake_set_fast (s.f, true);
  c.p = s.p;
  g_assert_cmpint (pthread_create (&thread, NULL, churn_run, &c), ==, 0);
  for (unsigned i = 0; i < 60000; i++) {
    uint64_t offset = UNIT - 100 - i % 7;       /* in two units */
    uint8_t buf[200];

    memset (buf, i, sizeof buf);
    g_assert_cmpint (fanout (&s, buf, sizeof buf, offset), ==, 0);
    g_assert_cmpint (memcmp (buf, fake_data (s.f) + offset, sizeof buf),
                     ==, 0);
  }
  atomic_store (&c.stop, true);
  pthread_join (thread, NULL);
  scene_end (&s);
}

/* Failures and the device's speed. */

struct one_io {
  struct backend_io io;         /* first */
  bool done;
};

static void
io_done (struct backend_io *io, int err)
{
  g_assert_cmpint (err, ==, ENOSPC);
  ((struct one_io *) io)->done = true;
}

/* A failed operation says nothing about the speed of the device. */
static void
test_failures_have_no_pace (gconstpointer data)
{
  bool is_write = GPOINTER_TO_INT (data);
  char buf[512] = { 0 };
  struct one_io one = {
    .io = { .done = io_done, .hook = { .buf = buf, .count = sizeof buf,
                                       .is_write = is_write } }
  };
  struct scene s;
  uint64_t wait;

  scene_start (&s, is_write, 1, 0);
  fake_set_fast (s.f, true);
  speed_note (&s.pace, 64000000, sizeof buf);
  wait = speed_wait_ns (&s.pace);
  g_assert_cmpuint (wait, >, 0);
  gate_fail (s.gate, GATE_ANY, ANYWHERE, ENOSPC, -1);
  if (is_write)
    g_assert_cmpint (backend_pwrite (&s.b, buf, sizeof buf, 0, 0), ==, ENOSPC);
  else
    g_assert_cmpint (backend_pread (&s.b, buf, sizeof buf, 0), ==, ENOSPC);
  g_assert_cmpuint (speed_wait_ns (&s.pace), ==, wait);
  one.io.backend = &s.b;
  backend_io_do (&one.io);
  g_assert_true (one.done);
  g_assert_cmpuint (speed_wait_ns (&s.pace), ==, wait);
  scene_end (&s);
}

static const struct {
  const char *name;
  void (*test) (gconstpointer);
} tests[] = {
  { "pieces", test_pieces },
  { "hooked/pieces", test_hooked_pieces },
  { "hooked/bound", test_hooked_bound },
  { "repeat", test_repeat },
  { "error-order", test_error_order },
  { "waits-for-all", test_waits_for_all },
  { "churn", test_churn },
  { "failures-have-no-pace", test_failures_have_no_pace },
};

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  g_thread_pool_set_max_unused_threads (0);     /* see test-pool.c */
  for (unsigned i = 0; i < G_N_ELEMENTS (tests); i++)
    for (int is_write = 0; is_write < 2; is_write++) {
      g_autofree char *path = g_strdup_printf ("/fanout/%s/%s", tests[i].name,
                                               is_write ? "write" : "read");

      g_test_add_data_func (path, GINT_TO_POINTER (is_write), tests[i].test);
    }
  return g_test_run ();
}
