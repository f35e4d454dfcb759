/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Block status: which answers are kept, and when they are used.
 *
 * An expected answer is a text with one letter for each unit: "." is zeroes,
 * "#" is data, "?" is not answered.  A unit has one state in these tests.  The
 * device is data at first; sparse () makes some units zeroes.
 *
 * Not here: the set itself (test-extents.c).
 */
#include <stdlib.h>

#include "clock.h"
#include "world.h"

#define MIB (1024 * KIB)

enum { N = 8 };                 /* units of the usual device */
/* Long enough for a busy machine.  A test makes answers older, but not older
 * than the machine's clock.
 */
#define AGE_NS UINT64_C (100000000000)

static struct engine_config
config_aging (unsigned threads, enum write_mode write, enum read_mode read)
{
  struct engine_config c = config (16, threads, write, read);

  c.status_ns = AGE_NS;
  return c;
}

/* Units [FROM, FROM + COUNT) of the device are zeroes. */
static void
sparse (struct world *w, unsigned from, unsigned count)
{
  memset (fake_data (w->f) + from * U, 0, count * U);
}

static void
start (struct world *w, unsigned threads, enum read_mode mode)
{
  world_init (w, N * U, config_aging (threads, WRITE_BEHIND, mode));
  sparse (w, 0, N);
}

/* Asks, and returns the answer as a text. */
static char *
ask (struct world *w, unsigned i, unsigned unit, unsigned count, int *err)
{
  struct extentset answer = { .max = EXTENTS_ANSWER };
  char *text = g_strnfill (count, '?');

  *err = conn_extents (w->c[i], count * U, unit * U, false, &answer);
  for (unsigned j = 0; j < answer.n; j++) {
    const struct extent *x = &answer.at[j];

    g_assert_cmpuint (x->from, ==, j == 0 ? unit * U : answer.at[j - 1].to);
    g_assert_cmpuint (x->to, <=, (unit + count) * U);
    for (uint64_t u = x->from / U; u * U < x->to; u++)
      text[u - unit] = x->type ? '.' : '#';
  }
  extentset_clear (&answer);
  return text;
}

static void
assert_answer (struct world *w, unsigned i, unsigned unit, const char *expected)
{
  int err;
  g_autofree char *text = ask (w, i, unit, strlen (expected), &err);

  g_assert_cmpint (err, ==, 0);
  g_assert_cmpstr (text, ==, expected);
  engine_check (w->e);
}

/* How many questions the plugin got. */
static void
assert_asked (struct world *w, unsigned n)
{
  assert_started (w, GATE_EXTENTS, ANYWHERE, n);
}

/* A question on a thread of its own. */
struct asker {
  pthread_t thread;
  struct world *w;
  unsigned i, unit, count;
  char *text;
  int err;
};

static void *
asker_run (void *va)
{
  struct asker *a = va;

  a->text = ask (a->w, a->i, a->unit, a->count, &a->err);
  return NULL;
}

static struct asker *
asker_start (struct world *w, unsigned i, unsigned unit, unsigned count)
{
  struct asker *a = g_new0 (struct asker, 1);

  *a = (struct asker) { .w = w, .i = i, .unit = unit, .count = count };
  g_assert_cmpint (pthread_create (&a->thread, NULL, asker_run, a), ==, 0);
  return a;
}

static void
asker_gets (struct asker *a, const char *expected)
{
  pthread_join (a->thread, NULL);
  g_assert_cmpint (a->err, ==, 0);
  g_assert_cmpstr (a->text, ==, expected);
  g_free (a->text);
  g_free (a);
}

/* As if all answers were so much older. */
static void
make_answers_older (struct world *w, uint64_t ns)
{
  struct extents *x = &w->e->extents;

  LOCK_IN_SCOPE (&x->lock);
  x->newest_ns -= ns;
  for (GList *l = x->sets.head; l; l = l->next) {
    struct extentset *s = &((struct device_extents *) l->data)->set;

    for (unsigned i = 0; i < s->n; i++)
      s->at[i].asked_ns -= ns;
  }
}

/* Answers are kept, and used. */

/* One question is about the whole device.  Both connections use its answer, for
 * a second.
 */
static void
test_kept (struct world *w)
{
  start (w, 4, READ_AHEAD);
  memset (fake_data (w->f) + 2 * U, 1, U);
  assert_answer (w, 0, 0, "..");
  assert_answer (w, 0, 1, ".#..");
  assert_answer (w, 1, 0, "..#.....");
  assert_asked (w, 1);
  assert_counter (w, STATS_EXTENTS_KEPT, 2);
  make_answers_older (w, AGE_NS);
  memset (fake_data (w->f), 1, U);      /* beside the server */
  assert_answer (w, 1, 0, "#.#.....");
  assert_asked (w, 2);
  assert_noted (w, STATS_EXTENTS, 4);
  assert_noted (w, STATS_DEVICE_EXTENTS, 2);
}

/* A client that wants one extent gets one. */
static void
test_one (struct world *w)
{
  struct extentset answer = { .max = EXTENTS_ANSWER };

  start (w, 4, READ_AHEAD);
  memset (fake_data (w->f) + 2 * U, 1, U);
  assert_answer (w, 0, 0, "..");
  g_assert_cmpint (conn_extents (w->c[0], 4 * U, 0, true, &answer), ==, 0);
  g_assert_cmpuint (answer.n, ==, 1);
  g_assert_cmpuint (answer.at[0].to, ==, 2 * U);
  extentset_clear (&answer);
  assert_asked (w, 1);
}

/* As if the device had been fast for a while. */
static void
make_fast (struct conn *c)
{
  for (unsigned i = 0; i < SPEED_MOST; i++) {
    speed_note (c->backend.read_speed, 1, 1);
    speed_note (c->backend.extents_speed, 1, 1);
  }
}

/* A fast device gets each client's own question. */
static void
test_fast (struct world *w)
{
  struct extentset answer = { .max = EXTENTS_ANSWER };

  start (w, 4, READ_AHEAD);
  for (unsigned i = 0; i < 3; i++) {
    make_fast (w->c[0]);
    g_assert_cmpint (conn_extents (w->c[0], 2 * U, U, i == 2, &answer), ==, 0);
    extentset_clear (&answer);
  }
  assert_started (w, GATE_EXTENTS, 0, U, 0);
  assert_started (w, GATE_EXTENTS, U, 2 * U, 3);
  assert_started (w, GATE_EXTENTS, 3 * U, 0, 0);
  g_assert_cmpuint (gate_op (w->gate, GATE_EXTENTS, ANYWHERE, 1).flags, ==, 0);
  g_assert_cmpuint (gate_op (w->gate, GATE_EXTENTS, ANYWHERE, 2).flags, ==, 1);
  assert_counter (w, STATS_EXTENTS_KEPT, 0);
}

/* Newer data. */

/* Dirty data is data, in a kept answer and in a new one.  When the plugin has
 * it, the plugin is asked again.
 */
static void
test_dirty (struct world *w)
{
  int hold;

  start (w, 4, READ_AHEAD);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_held (w->gate, hold, 1);
  assert_answer (w, 1, 0, "...#....");
  assert_asked (w, 1);
  do_write (w, 0, U, 5 * U, 1);
  assert_answer (w, 1, 0, "...#.#..");
  assert_asked (w, 1);
  gate_release (w->gate, hold);
  drain (w, 0, N * U, 0);
  assert_answer (w, 1, 2, ".????");     /* the client asks on from there */
  assert_asked (w, 1);
  assert_answer (w, 1, 3, "#.#..");
  assert_asked (w, 2);
}

/* Failed data is data. */
static void
test_failed (struct world *w)
{
  start (w, 4, READ_AHEAD);
  make_failed (w, 0, U, 3 * U, 1, ENOSPC);
  assert_answer (w, 1, 0, "...#....");
  assert_answer (w, 1, 0, "...#....");
  assert_asked (w, 1);
  do_flush (w, 0);
  assert_answer (w, 1, 3, "#");
}

/* A change of all known bytes leaves nothing to keep, also one that is under
 * way when the plugin answers.  The next request asks the plugin.
 */
static void
test_all_changed (struct world *w)
{
  struct task *zero;
  int hold;

  start (w, 4, READ_AHEAD);
  assert_answer (w, 0, 0, "........");
  do_request (w, 0, FUA, N * U, 0, 1);
  engine_check (w->e);
  g_assert_cmpuint (atomic_load (&w->e->extents.in_use), ==, 0);
  assert_answer (w, 0, 0, "########");
  assert_asked (w, 2);

  hold = gate_hold (w->gate, GATE_ZERO, ANYWHERE);
  zero = start_held (w, hold, 0, ZERO, N * U, 0, 0);
  assert_answer (w, 1, 0, "########");
  g_assert_cmpuint (atomic_load (&w->e->extents.in_use), ==, 0);
  gate_release (w->gate, hold);
  task_ends (zero, 0);
  assert_answer (w, 1, 0, "........");
  assert_asked (w, 4);
}

/* Answers that are too old are not kept beyond the next change, wherever that
 * is.
 */
static void
test_too_old (struct world *w)
{
  start (w, 4, READ_AHEAD);
  assert_answer (w, 0, 0, "........");
  do_request (w, 0, FUA, U, 0, 1);
  g_assert_cmpuint (atomic_load (&w->e->extents.in_use), >, 0);
  make_answers_older (w, AGE_NS + AGE_NS / 10);
  do_request (w, 0, FUA, U, U, 1);
  g_assert_cmpuint (atomic_load (&w->e->extents.in_use), ==, 0);
  engine_check (w->e);
}

/* Acknowledged data that is written while the plugin has a question.  Its
 * answer is older than the data.
 */
static void
test_written_meanwhile (struct world *w)
{
  struct asker *a;
  int hold, hold_write;

  start (w, 4, READ_AHEAD);
  hold_write = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_held (w->gate, hold_write, 1);
  hold = gate_hold (w->gate, GATE_EXTENTS, ANYWHERE);
  a = asker_start (w, 1, 0, N);
  gate_wait_held (w->gate, hold, 1);
  gate_release (w->gate, hold_write);
  drain (w, 0, U, 3 * U);
  gate_release (w->gate, hold);
  asker_gets (a, "...#....");
  assert_answer (w, 1, 4, "....");
  assert_asked (w, 1);
  assert_answer (w, 1, 3, "#");
  assert_asked (w, 2);
}

/* A change is acknowledged while the plugin has the question. */
static void
test_changed_meanwhile (struct world *w)
{
  struct asker *a;
  int hold;

  start (w, 4, READ_AHEAD);
  hold = gate_hold (w->gate, GATE_EXTENTS, ANYWHERE);
  a = asker_start (w, 1, 0, N);
  gate_wait_held (w->gate, hold, 1);
  do_fua (w, 0, U, 3 * U, 1);
  gate_release (w->gate, hold);
  asker_gets (a, "...#....");
  assert_answer (w, 1, 2, ".?");
  assert_asked (w, 1);
  assert_answer (w, 1, 3, "#");
  assert_asked (w, 2);
}

/* A change takes kept answers away when it begins, and again when it ends.
 * Meanwhile no answer is kept there.  ARG: the kind of the request.
 */
static void
test_change (struct world *w)
{
  enum kind kind = w->arg;
  struct task *change;
  int hold;

  start (w, 4, READ_AHEAD);
  memset (fake_data (w->f) + 3 * U, 1, U);
  assert_answer (w, 1, 0, "...#....");
  assert_asked (w, 1);
  hold = gate_hold (w->gate, GATE_CHANGE, ANYWHERE);
  change = start_held (w, hold, 0, kind, U, 3 * U, 2);
  assert_answer (w, 1, 3, "#");
  assert_asked (w, 2);
  assert_answer (w, 1, 3, "#");
  assert_asked (w, 3);
  assert_answer (w, 1, 0, "...");       /* elsewhere it is kept */
  assert_asked (w, 3);
  gate_release (w->gate, hold);
  task_ends (change, 0);
  assert_answer (w, 1, 3, kind == ZERO ? "." : "#");
  assert_asked (w, 4);
}

/* A question is asked while a change runs, and its answer comes after it: it is
 * older than the change.  ARG: the mode of the writes.
 */
static void
test_asked_meanwhile (struct world *w)
{
  struct task *change;
  struct asker *a;
  int hold, hold_change;

  world_init (w, N * U, config_aging (4, w->arg, READ_AHEAD));
  sparse (w, 0, N);
  hold = gate_hold (w->gate, GATE_EXTENTS, ANYWHERE);
  hold_change = gate_hold (w->gate, GATE_CHANGE, ANYWHERE);
  change = start_held (w, hold_change, 0, FUA, U, 3 * U, 2);
  a = asker_start (w, 1, 0, N);
  gate_wait_held (w->gate, hold, 1);
  gate_release (w->gate, hold_change);
  task_ends (change, 0);
  gate_release (w->gate, hold);
  asker_gets (a, "...#....");
  assert_answer (w, 1, 3, "#");
  assert_asked (w, 2);
}

/* A change where no connection defers writes. */
static void
test_change_through (struct world *w)
{
  struct task *change;
  int hold;

  world_init (w, N * U, config_aging (4, WRITE_THROUGH, READ_AHEAD));
  sparse (w, 0, N);
  assert_answer (w, 1, 0, "........");
  hold = gate_hold (w->gate, GATE_CHANGE, ANYWHERE);
  change = start_held (w, hold, 0, WRITE, U, 3 * U, 2);
  assert_answer (w, 1, 3, ".");
  assert_answer (w, 1, 3, ".");
  assert_asked (w, 3);
  gate_release (w->gate, hold);
  task_ends (change, 0);
  assert_answer (w, 1, 3, "#");
  assert_asked (w, 4);
}

/* Another export name may be the same disk. */
static void
test_other_device (struct world *w)
{
  int hold;

  open_names (w, N * U, config_aging (4, WRITE_BEHIND, READ_AHEAD));
  sparse (w, 0, N);
  assert_answer (w, 0, 0, "........");
  assert_answer (w, 1, 0, "........");
  do_fua (w, 0, U, 3 * U, 1);
  assert_answer (w, 1, 0, "...");
  assert_asked (w, 2);
  assert_answer (w, 1, 2, ".??");
  assert_answer (w, 1, 3, "#....");
  assert_asked (w, 3);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 5 * U, 1);
  assert_answer (w, 1, 3, "#.#..");
  gate_release (w->gate, hold);
}

/* Without a flush the plugin may show a change only to the connection that made
 * it.  That connection asks for itself, and a flush shows it to all.
 */
static void
test_unflushed (struct world *w)
{
  start (w, 4, READ_AHEAD);
  do_fua (w, 0, U, 3 * U, 1);
  assert_answer (w, 1, 0, "...#....");  /* as if the plugin had shown that */
  gate_forget (w->gate);
  assert_answer (w, 1, 0, "...#....");
  assert_asked (w, 0);
  assert_answer (w, 0, 0, "...");
  assert_asked (w, 0);
  assert_answer (w, 0, 2, ".#.");
  assert_asked (w, 1);
  g_assert_cmpuint (gate_op (w->gate, GATE_EXTENTS, ANYWHERE, 0).conn, ==, 0);
  do_flush (w, 0);
  gate_forget (w->gate);
  assert_answer (w, 1, 4, "....");
  assert_asked (w, 0);
  assert_answer (w, 1, 3, "#....");
  assert_asked (w, 1);
  assert_answer (w, 0, 3, "#....");
  assert_asked (w, 1);
}

/* What another context has written the plugin may not show before a flush.  The
 * question flushes it first.  If that fails, all is data.
 */
static void
test_hidden (struct world *w)
{
  int fail;

  start (w, 4, READ_AHEAD);
  fake_hide (w->f);
  do_write (w, 0, U, 3 * U, 1);
  drain (w, 0, U, 3 * U);
  assert_started (w, GATE_FLUSH, ANYWHERE, 0);
  assert_answer (w, 0, 0, "...#....");
  assert_started (w, GATE_FLUSH, ANYWHERE, 1);
  do_write (w, 0, U, 5 * U, 1);
  drain (w, 0, U, 5 * U);
  fail = gate_fail (w->gate, GATE_FLUSH, ANYWHERE, EIO, -1);
  assert_answer (w, 0, 4, "###");
  gate_release (w->gate, fail);
  flush_fails (w, 0, EIO);      /* of that flush */
  assert_answer (w, 0, 5, "#.");
}

/* Questions. */

/* Where a larger question fails, the client's own one counts. */
static void
test_error (struct world *w)
{
  int err, fail;
  g_autofree char *text = NULL;

  start (w, 4, READ_AHEAD);
  fail = gate_fail (w->gate, GATE_EXTENTS, 6 * U, U, EIO, -1);
  assert_answer (w, 0, 0, "...");
  assert_asked (w, 2);
  assert_answer (w, 0, 3, "...");       /* not again at once */
  assert_asked (w, 3);
  text = ask (w, 0, 6, 1, &err);
  g_assert_cmpint (err, ==, EIO);
  assert_asked (w, 4);
  gate_release (w->gate, fail);
  assert_answer (w, 0, 6, "..");
}

/* A request waits for a question of its connection about the same bytes, and
 * does not for another connection's.
 */
static void
test_wait (struct world *w)
{
  struct asker *a, *b;
  int hold;

  start (w, 4, READ_AHEAD);
  hold = gate_hold (w->gate, GATE_EXTENTS, ANYWHERE);
  a = asker_start (w, 0, 0, 2);
  gate_wait_held (w->gate, hold, 1);
  b = asker_start (w, 0, 2, 2);
  g_usleep (20000);             /* time for a mistake */
  assert_asked (w, 1);
  gate_release (w->gate, hold);
  asker_gets (a, "..");
  asker_gets (b, "..");
  assert_asked (w, 1);

  make_answers_older (w, AGE_NS);
  hold = gate_hold (w->gate, GATE_EXTENTS, ANYWHERE);
  a = asker_start (w, 0, 0, 2);
  gate_wait_held (w->gate, hold, 1);
  b = asker_start (w, 1, 0, 2);
  gate_wait_held (w->gate, hold, 2);
  gate_release (w->gate, hold);
  asker_gets (a, "..");
  asker_gets (b, "..");
}

/* A sparse device that needs several questions. */
static void
start_large (struct world *w, unsigned threads)
{
  world_init (w, 40 * MIB, config_aging (threads, WRITE_BEHIND, READ_AHEAD));
  sparse (w, 0, 40 * MIB / U);
}

/* The first question goes 16 MiB far.  When a client asks on in sequence, a
 * worker asks the next one.
 */
static void
test_ahead (struct world *w)
{
  struct gate_op op;

  start_large (w, 4);
  assert_answer (w, 0, 0, "..");
  assert_answer (w, 0, 2, "..");
  gate_wait_ended (w->gate, GATE_EXTENTS, 16 * MIB, 0, 1);
  op = gate_op (w->gate, GATE_EXTENTS, 16 * MIB, 0, 0);
  g_assert_cmpuint (op.offset, ==, 16 * MIB);
  g_assert_cmpuint (op.offset + op.count, ==, 40 * MIB);
  g_assert_false (is_on_this_thread (op));
  for (unsigned u = 4; u < 40 * MIB / U; u += 4)
    assert_answer (w, 0, u, "....");
  assert_asked (w, 2);
  assert_counter (w, STATS_EXTENTS_AHEAD, 1);
  /* They are renewed before they are too old. */
  make_answers_older (w, AGE_NS / 2);
  gate_forget (w->gate);
  assert_answer (w, 0, 0, "..");
  assert_asked (w, 0);          /* not in sequence */
  assert_answer (w, 0, 2, "..");
  gate_wait_ended (w->gate, GATE_EXTENTS, 4 * U, U, 1);
  g_assert_cmpuint (gate_op (w->gate, GATE_EXTENTS, ANYWHERE, 0).offset, ==,
                    4 * U);
}

/* Clients may ask about less than the plugin's minimum block.  A question ahead
 * is never empty: nbdkit would abort.
 */
static void
test_ahead_min_block (struct world *w)
{
  const uint64_t size = 40 * MIB;
  struct backend b;

  world_start (w, size, config_aging (4, WRITE_BEHIND, READ_AHEAD));
  b = world_backend (w, 0);
  b.min_block = 4096;
  world_open_as (w, 0, "", &b);
  for (uint64_t at = size - 200; at < size - 50; at += 50) {
    struct extentset answer = { .max = EXTENTS_ANSWER };

    g_assert_cmpint (conn_extents (w->c[0], 50, at, false, &answer), ==, 0);
    extentset_clear (&answer);
  }
  gate_wait_ended (w->gate, GATE_EXTENTS, size - 4096, 3800, 1);
}

/* Requests here and there ask nothing ahead. */
static void
test_ahead_random (struct world *w)
{
  start_large (w, 4);
  for (unsigned u = 0; u + 2 <= 16 * MIB / U; u += 3)
    assert_answer (w, 0, u, "..");
  assert_asked (w, 1);
  assert_counter (w, STATS_EXTENTS_AHEAD, 0);
}

/* The next request waits for a question that a worker has begun. */
static void
test_ahead_wait (struct world *w)
{
  unsigned last = 16 * MIB / U;
  struct asker *a;
  int hold;

  start_large (w, 4);
  assert_answer (w, 0, 0, "..");
  hold = gate_hold (w->gate, GATE_EXTENTS, ANYWHERE);
  assert_answer (w, 0, 2, "..");
  gate_wait_held (w->gate, hold, 1);
  a = asker_start (w, 0, last, 2);
  g_usleep (20000);             /* time for a mistake */
  assert_asked (w, 2);
  gate_release (w->gate, hold);
  asker_gets (a, "..");
  assert_asked (w, 2);
}

/* A question ahead that waits for a worker is asked by the request itself, and
 * the end of the connection takes it back.
 */
static void
test_ahead_queued (struct world *w)
{
  unsigned last = 16 * MIB / U;
  int hold;

  start_large (w, 1);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 1, U, 9 * U, 1); /* the worker hangs in it */
  gate_wait_held (w->gate, hold, 1);
  assert_answer (w, 0, 0, "..");
  assert_answer (w, 0, 2, "..");
  assert_counter (w, STATS_EXTENTS_AHEAD, 1);
  assert_asked (w, 1);
  assert_answer (w, 0, last + 1, "..");
  assert_asked (w, 2);
  assert_answer (w, 0, 0, "..");
  make_answers_older (w, AGE_NS / 2);
  assert_answer (w, 0, 2, "..");
  assert_counter (w, STATS_EXTENTS_AHEAD, 2);
  world_close (w, 0);
  assert_asked (w, 2);
  gate_release (w->gate, hold);
}

/* The end of a connection waits for a question that a worker has begun, in
 * conn_free.
 */
static void
test_ahead_close (struct world *w)
{
  struct task *closing;
  int hold;

  start_large (w, 4);
  assert_answer (w, 0, 0, "..");
  hold = gate_hold (w->gate, GATE_EXTENTS, ANYWHERE);
  assert_answer (w, 0, 2, "..");
  gate_wait_held (w->gate, hold, 1);
  do_request (w, 0, FINALIZE, 0, 0, 0);
  closing = start_blocked_close (w, 0);
  gate_release (w->gate, hold);
  task_ends (closing, 0);
}

/* Over hooks no worker waits for an answer. */
static void
test_ahead_hooks (struct world *w)
{
  start_large (w, 4);
  for (unsigned u = 0; u < 40 * MIB / U; u += 4)
    assert_answer (w, 0, u, "....");
  assert_asked (w, 2);
  assert_counter (w, STATS_EXTENTS_AHEAD, 0);
}

/* Reads of zeroes. */

/* They need no plugin while the answer is fresh, and never hide newer data. */
static void
test_zero_reads (struct world *w)
{
  g_autofree char *buf = g_malloc (2 * U);
  int hold;

  start (w, 4, READ_AHEAD);
  memset (fake_data (w->f) + 7 * U, 1, U);
  do_read (w, 0, U, 0, 0);
  assert_started (w, GATE_READ, ANYWHERE, 1);
  assert_answer (w, 1, 0, ".......#");
  gate_forget (w->gate);
  do_read (w, 0, 2 * U, 0, 0);
  do_read (w, 1, U, 6 * U, 0);
  assert_started (w, GATE_READ, ANYWHERE, 0);
  assert_counter (w, STATS_ZERO_READS, 2);
  assert_counter (w, STATS_ZERO_BYTES, 3 * U);
  g_assert_cmpint (request (w, 0, READ, buf, 2 * U, 6 * U), ==, 0);
  assert_started (w, GATE_READ, 7 * U, U, 1);   /* a part is data */

  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 3 * U, 1);
  assert_reads (w, 1, PARTS ({ 2 * U, U, 0 }, { 3 * U, U, 1 },
                             { 4 * U, U, 0 }));
  gate_release (w->gate, hold);
  do_flush (w, 0);
  do_read (w, 1, U, 3 * U, 1);
  do_fua (w, 0, U, 4 * U, 2);
  do_read (w, 1, U, 4 * U, 2);
  do_read (w, 0, U, 4 * U, 2);

  gate_forget (w->gate);
  do_read (w, 1, U, 5 * U, 0);
  assert_started (w, GATE_READ, 5 * U, U, 0);
  make_answers_older (w, AGE_NS);
  do_read (w, 1, U, 5 * U, 0);
  assert_started (w, GATE_READ, 5 * U, U, 1);
}

/* The plugin may show unflushed data only to the connection that wrote it: that
 * one asks the plugin.  Another connection's answer came before.
 */
static void
test_zero_reads_unflushed (struct world *w)
{
  char *data;

  start (w, 4, READ_AHEAD);
  data = fake_data (w->f);
  do_fua (w, 0, U, 3 * U, 1);
  memset (data + 3 * U, 0, U);  /* connection 1 does not see it yet */
  assert_answer (w, 1, 0, "........");
  fill (data + 3 * U, U, 3 * U, 1);
  do_read (w, 0, U, 3 * U, 1);
  assert_answer (w, 0, 3, "#");
  assert_answer (w, 1, 0, "...#....");  /* 0 has told */
  memset (data + 3 * U, 0, U);
  make_answers_older (w, AGE_NS);
  assert_answer (w, 1, 0, "........");
  fill (data + 3 * U, U, 3 * U, 1);
  do_flush (w, 0);              /* now all see it */
  do_read (w, 1, U, 3 * U, 1);
  assert_answer (w, 1, 0, "...");
  assert_answer (w, 1, 3, "#....");
}

/* Dirty data of what may be the same device is waited for. */
static void
test_zero_reads_other (struct world *w)
{
  struct task *read;
  int hold;

  open_names (w, N * U, config_aging (4, WRITE_BEHIND, READ_AHEAD));
  sparse (w, 0, N);
  assert_answer (w, 1, 0, "........");
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 3 * U, 1);
  read = start_blocked (w, 1, READ, U, 3 * U, 1);
  gate_release (w->gate, hold);
  task_ends (read, 0);
  do_fua (w, 0, U, 4 * U, 2);
  do_read (w, 1, U, 4 * U, 2);
}

/* Read-ahead leaves zeroes out, goes on behind them, and does not count them.
 * The client does not read them.
 */
static void
test_readahead (struct world *w)
{
  /* Two units of data, then a unit of data behind each range of zeroes. */
  enum { FIRST = 2, ZEROES = 20, STEP = ZEROES + 1, RANGES = 24,
         LENGTH = FIRST + RANGES * STEP };
  int err;

  world_init (w, LENGTH * U, config_aging (16, WRITE_BEHIND, READ_AHEAD));
  for (unsigned i = 0; i < RANGES; i++)
    sparse (w, FIRST + i * STEP, ZEROES);
  g_free (ask (w, 1, 0, LENGTH, &err));
  start_stream (w, 0);
  /* The window is 4 units at least. */
  for (unsigned i = 1; i <= 4; i++)
    wait_state (w, BUF_CLEAN, (FIRST + i * STEP - 1) * U, U, 1);
  /* The stream goes on behind the zeroes. */
  for (unsigned i = 1; i <= RANGES; i++) {
    wait_state (w, BUF_CLEAN, (FIRST + i * STEP - 1) * U, U, 1);
    do_read (w, 0, U, (FIRST + i * STEP - 1) * U, OLD);
  }
  do_read (w, 0, U, FIRST * U, 0);      /* a client may read zeroes, too */
  assert_started (w, GATE_READ, FIRST * U, 0, RANGES);
}

static const struct test tests[] = {
  { "extents/kept", test_kept },
  { "extents/one", test_one },
  { "extents/fast", test_fast },
  { "extents/dirty", test_dirty },
  { "extents/failed", test_failed },
  { "extents/all-changed", test_all_changed },
  { "extents/too-old", test_too_old },
  { "extents/written-meanwhile", test_written_meanwhile },
  { "extents/changed-meanwhile", test_changed_meanwhile },
  { "extents/fua", test_change, FUA },
  { "extents/zero", test_change, ZERO },
  { "extents/trim", test_change, TRIM },
  { "extents/asked-meanwhile", test_asked_meanwhile, WRITE_BEHIND },
  { "extents/asked-meanwhile-through", test_asked_meanwhile, WRITE_THROUGH },
  { "extents/change-through", test_change_through },
  { "extents/other-device", test_other_device },
  { "extents/unflushed", test_unflushed, .on = PARALLEL },
  { "extents/hidden", test_hidden, .on = CONTEXTS_ONLY },
  { "extents/error", test_error },
  { "extents/wait", test_wait },
  { "extents/ahead", test_ahead, .on = POOL_ONLY },
  { "extents/ahead-min-block", test_ahead_min_block, .on = POOL_ONLY },
  { "extents/ahead-random", test_ahead_random },
  { "extents/ahead-wait", test_ahead_wait, .on = POOL_ONLY },
  { "extents/ahead-queued", test_ahead_queued, .on = POOL_ONLY },
  { "extents/ahead-close", test_ahead_close, .on = POOL_ONLY },
  { "extents/ahead-hooks", test_ahead_hooks, .on = HOOKS_ONLY },
  { "extents/zero-reads", test_zero_reads },
  { "extents/zero-reads-unflushed", test_zero_reads_unflushed, .on = PARALLEL },
  { "extents/zero-reads-other-device", test_zero_reads_other },
  { "extents/readahead", test_readahead },
};

int
main (int argc, char **argv)
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
