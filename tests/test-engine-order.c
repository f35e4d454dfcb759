/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Order: overlapping writes reach the plugin in the order of their answers.
 *
 * A direct operation is a FUA write, a zero, a trim, or a write that is not
 * deferred.  It waits for older dirty data that it overlaps.  Block status
 * waits for dirty data in its range as well, which is a drain.
 */
#include "world.h"

/* Overlapping deferred writes, of the same connection or another one, are
 * written one after the other.  Reads see the newest data at all times.
 */
static void
test_overlap (struct world *w)
{
  unsigned second = w->arg;     /* the connection of the second write */
  struct task *flush;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  /* It flushes.  A flush may do a queued write with its own context, and a read
   * of that connection then waits for it.
   */
  world_open (w, 2, "");
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_write (w, second, 4096, 4096, 2);          /* OPEN */
  do_write (w, 1 - second, 4096, 6144, 3);      /* makes that READY */
  do_write (w, 0, U, U, 4);                     /* elsewhere: is written */
  gate_wait_held (w->gate, hold, 2);
  flush = start_blocked_flush (w, 2);
  assert_started (w, GATE_WRITE, 0, U, 1);
  assert_states (w, BUF_READY, 0, U, 2);
  {
    struct part parts[] = { { 0, 4096, 1 }, { 4096, 2048, 2 },
                            { 6144, 4096, 3 }, { 10240, U - 10240, 1 },
                            { U, U, 4 } };

    assert_reads (w, 0, parts, 5);
    gate_pass (w->gate, hold, 1);
    gate_wait_held (w->gate, hold, 2);
    assert_reads (w, 1, parts, 5);
    task_wait_blocked (flush);
    assert_started (w, GATE_WRITE, 0, U, 2);
    gate_release (w->gate, hold);
    task_ends (flush, 0);
    assert_reads (w, 1, parts, 5);
    assert_devices (w->f, parts, 5);
  }
  for (unsigned i = 0; i < 2; i++)
    assert_order (gate_op (w->gate, GATE_WRITE, 0, U, i),
                  gate_op (w->gate, GATE_WRITE, 0, U, i + 1));
  assert_no_collisions (w);
}

/* A direct operation waits for the dirty data that it overlaps, and for none
 * elsewhere.
 */
static void
test_direct_waits (struct world *w)
{
  enum kind kind = w->arg;
  struct task *direct;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, 0, U);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_write (w, 0, 4096, U, 2);          /* OPEN: is written on its behalf */
  do_write (w, 0, 4096, 3 * U, 2);      /* OPEN, and stays so */
  direct = start_blocked (w, 1, kind, U, U / 2, 3);
  gate_wait_ended (w->gate, GATE_WRITE, U, U, 1);
  assert_started (w, fake_kind (kind), U / 2, U, kind == FUA ? 2 : 0);

  /* Elsewhere neither a direct operation nor a write waits. */
  do_request (w, 1, kind, U, 4 * U, 4);
  do_write (w, 0, 4096, 6 * U, 4);
  assert_changed (w, kind, U, 4 * U, 4);

  gate_release (w->gate, hold);
  task_ends (direct, 0);
  assert_states (w, BUF_OPEN, 3 * U, U, 1);
  assert_changed (w, kind, U, U / 2, 3);
  assert_device (w->f, U / 2, 0, 1);
  for (unsigned i = 0; i < 2; i++)
    assert_order (gate_op (w->gate, GATE_WRITE, 0, 2 * U, i),
                  gate_op (w->gate, fake_kind (kind), U / 2, U,
                           kind == FUA ? 2 : 0));
}

/* A write that overlaps a direct operation under way is direct as well, so that
 * neither can wait for the other for ever.  The plugin gets both at once, as
 * without the filter.  A write elsewhere is deferred.
 */
static void
test_write_beside (struct world *w)
{
  enum kind kind = w->arg;
  struct task *direct;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, fake_kind (kind), 0, 4096);
  direct = start_held (w, hold, 0, kind, U, 0, 1);
  do_write (w, 1, 4096, 4096, 2);
  assert_ended (w, GATE_WRITE, 4096, 4096, 1);
  do_write (w, 0, 4096, U, 3);
  assert_started (w, GATE_WRITE, U, U, 0);
  gate_release (w->gate, hold);
  task_ends (direct, 0);
  do_flush (w, 0);
  /* The direct operation was answered last, and changed the device last. */
  assert_changed (w, kind, U, 0, 1);
  assert_device (w->f, 4096, U, 3);
}

/* A direct write is under way, and registered nowhere, as no connection defers
 * writes yet.  Until it ends, no write is deferred.
 */
static void
test_unregistered (struct world *w)
{
  struct task *first, *second;
  int hold;

  world_init (w, 8 * U, config (8, 2, WRITE_AUTO, READ_DIRECT));
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  first = start_held (w, hold, 0, WRITE, 4096, 0, 1);
  do_flush (w, 1);
  second = task_start (w, 1, WRITE, 4096, 0, 2);
  gate_wait_held (w->gate, hold, 2);
  assert_counter (w, STATS_DEFERRED, 0);
  gate_pass (w->gate, hold, 1);
  task_ends (first, 0);
  gate_release (w->gate, hold);
  task_ends (second, 0);
  do_read (w, 0, 4096, 0, 2);
  gate_forget (w->gate);
  do_write (w, 1, 4096, 0, 3);
  assert_started (w, GATE_WRITE, ANYWHERE, 0);
}

/* A flush tries failed data again, which fails again, while a zero of the same
 * bytes and another flush wait.  The zero's bytes win, and no request waits for
 * ever.
 */
static void
test_flush_and_zero (struct world *w)
{
  uint32_t count = w->arg;      /* bytes that the zero takes of 8192 */

  for (unsigned n = 0; n < 10; n++) {
    struct task *flush, *second, *zero;
    int hold, fail;

    open_writeback (w, 4 * U, 8, 2);
    make_failed (w, 0, 8192, 0, 1, EIO);
    hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
    fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, EIO, 1);
    flush = start_held_flush (w, hold, n & 1);
    zero = start_blocked (w, 0, ZERO, count, 0, 0);
    second = start_blocked_flush (w, 1);
    gate_release (w->gate, hold);
    task_ends (zero, 0);
    {
      /* Both flushes return the error of an operation that was dispatched.  A
       * flush that looks late finds the data superseded, or written.
       */
      bool is_dispatched = w->hooked || w->serial;
      int err = task_end (flush), err2 = task_end (second);

      g_assert_true (err == EIO || (is_dispatched && err == 0));
      g_assert_true (err2 == 0 || (is_dispatched && err2 == EIO));
    }
    do_read (w, 1, count, 0, 0);
    do_flush (w, 0);
    assert_device (w->f, count, 0, 0);
    if (count < 8192)
      assert_device (w->f, 8192 - count, count, 1);
    gate_release (w->gate, fail);
    assert_states (w, BUF_FAILED, 0, 4 * U, 0);
    assert_no_collisions (w);
    world_end (w);
  }
}

/* Drains. */

/* A drain writes dirty data in its range, and none elsewhere.  It says whether
 * failed data is left in the range.
 */
static void
test_drain (struct world *w)
{
  struct task *waiter;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 4096, 0, 1);
  do_write (w, 0, 4096, 2 * U, 1);
  g_assert_false (drain (w, 1, U, U));
  waiter = start_held (w, hold, 1, DRAIN, U, 0, 0);
  task_wait_blocked (waiter);
  assert_states (w, BUF_OPEN, 2 * U, U, 1);
  gate_release (w->gate, hold);
  task_ends (waiter, false);
  assert_device (w->f, 4096, 0, 1);
  do_flush (w, 0);

  make_failed (w, 0, 4096, 0, 2, EIO);
  g_assert_true (drain (w, 1, U, 0));
  g_assert_false (drain (w, 1, U, U));
  do_flush (w, 0);
  g_assert_false (drain (w, 1, U, 0));
}

/* A drain waits for READY data as it does for data that is being written. */
static void
test_drain_ready (struct world *w)
{
  struct task *first, *waiter;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 8192, 0, 1);
  first = start_held (w, hold, 1, DRAIN, 4096, 0, 0);
  do_write (w, 0, 8192, 4096, 2);
  waiter = start_blocked (w, 1, DRAIN, 4096, 8192, 0);
  gate_release (w->gate, hold);
  task_ends (first, false);
  task_ends (waiter, false);
}

static const struct test tests[] = {
  { "order/same-connection", test_overlap, 0 },
  { "order/other-connection", test_overlap, 1 },
  { "order/direct-waits/fua", test_direct_waits, FUA },
  { "order/direct-waits/zero", test_direct_waits, ZERO },
  { "order/direct-waits/trim", test_direct_waits, TRIM },
  { "order/write-beside/fua", test_write_beside, FUA },
  { "order/write-beside/zero", test_write_beside, ZERO },
  { "order/write-beside/trim", test_write_beside, TRIM },
  { "order/unregistered", test_unregistered },
  { "order/flush-and-zero/all", test_flush_and_zero, 8192 },
  { "order/flush-and-zero/part", test_flush_and_zero, 4096 },
  { "order/drain", test_drain },
  { "order/drain-ready", test_drain_ready },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
