/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Flush: what it waits for, and what it shows.
 *
 * A flush is answered when the plugin has all data that was acknowledged before
 * it, and the plugin's own flush has succeeded after that.  It covers all
 * connections of its export name.
 *
 * Not here: flushes that try failed data again (test-engine-failed.c).
 */
#include "dispatch.h"
#include "world.h"

/* A flush waits until the plugin has all dirty data of the device, whichever
 * connection wrote it.  Then the plugin flushes, if it can.
 */
static void
test_waits (struct world *w)
{
  bool can_flush = w->arg;
  struct task *flush;
  int hold;

  world_start (w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < 2; i++) {
    struct backend b = world_backend (w, i);

    b.can_flush = can_flush;
    world_open_as (w, i, "", &b);
  }
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 4096, 0, 1);
  assert_states (w, BUF_OPEN, 0, U, 1);
  do_write (w, 0, U, U, 2);     /* a full buffer is written at once */
  gate_wait_held (w->gate, hold, 1);

  flush = start_flush (w, 1);   /* writes the OPEN buffer */
  gate_wait_held (w->gate, hold, 2);
  task_wait_blocked (flush);
  gate_pass (w->gate, hold, 1);
  gate_wait_ended (w->gate, GATE_WRITE, ANYWHERE, 1);
  task_wait_blocked (flush);
  assert_started (w, GATE_FLUSH, ANYWHERE, 0);
  gate_release (w->gate, hold);
  task_ends (flush, 0);

  assert_device (w->f, 4096, 0, 1);
  assert_device (w->f, U, U, 2);
  assert_started (w, GATE_FLUSH, ANYWHERE, can_flush);
  if (can_flush)
    for (unsigned i = 0; i < 2; i++)
      assert_order (gate_op (w->gate, GATE_WRITE, ANYWHERE, i),
                    gate_op (w->gate, GATE_FLUSH, ANYWHERE, 0));
}

/* A flush waits for data that was dirty when it came, and for no later data. */
static void
test_ends (struct world *w)
{
  struct task *flush;
  int hold, hold_later;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, 0, U);
  hold_later = gate_hold (w->gate, GATE_WRITE, U, U);
  do_write (w, 0, U, 0, 1);
  flush = start_blocked_flush (w, 0);
  do_write (w, 1, U, U, 2);
  gate_wait_held (w->gate, hold_later, 1);
  gate_release (w->gate, hold);
  task_ends (flush, 0);
  gate_release (w->gate, hold_later);
}

/* A flush returns the error of the plugin's flush.  The next one succeeds. */
static void
test_error (struct world *w)
{
  int fail;

  open_writeback (w, 8 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_FLUSH, ANYWHERE, ENOSPC, 1);
  do_write (w, 0, 4096, 0, 1);
  flush_fails (w, 0, ENOSPC);
  gate_release (w->gate, fail);
  do_flush (w, 0);
}

/* A flush returns no error of a write that fails after the flush began.  The
 * next one does.
 */
static void
test_later (struct world *w)
{
  struct task *flush;
  int hold, fail;

  open_writeback (w, 8 * U, 8, 4);
  fail = gate_fail (w->gate, GATE_WRITE, U, U, EIO, -1);
  hold = gate_hold (w->gate, GATE_WRITE, 0, U);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  flush = start_blocked_flush (w, 0);
  do_write (w, 1, U, U, 2);
  wait_state (w, BUF_FAILED, U, U, 1);
  gate_release (w->gate, hold);
  task_ends (flush, 0);
  flush_fails (w, 0, EIO);
  gate_release (w->gate, fail);
  do_flush (w, 0);
}

/* Export names. */

/* A flush waits for dirty data of its own export name, of whichever device, and
 * for that of no other name.
 */
static void
test_names (struct world *w)
{
  struct task *flush;
  int hold;

  world_start (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < 3; i++)
    world_open_unshared (w, i, i < 2 ? "a" : "b");
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_flush (w, 2);
  flush = start_blocked_flush (w, 1);
  gate_release (w->gate, hold);
  task_ends (flush, 0);
  assert_device (w->f, U, 0, 1);
}

/* It waits a bounded time for another device of its name, and not at all for
 * data that this device tries again.
 */
static void
test_names_bound (struct world *w)
{
  struct task *flush;
  int hold;

  world_start (w, 8 * U, config_impatient (READ_DIRECT));
  world_open_unshared (w, 0, "a");
  world_open_unshared (w, 1, "a");
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_flush (w, 1);
  assert_late (1);
  gate_release (w->gate, hold);
  do_flush (w, 0);

  be_patient (w);
  make_failed (w, 0, U, 0, 2, EIO);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  flush = start_held_flush (w, hold, 0);
  do_flush (w, 1);
  gate_release (w->gate, hold);
  task_ends (flush, 0);
}

/* Two flushes of a device try the same failed data in turn.  Each waits for one
 * try that ends after it began, and not for ever.
 */
static void
test_starved (struct world *w)
{
  struct task *first, *second;
  int hold, fail;

  open_writeback (w, 8 * U, 8, 4);
  make_failed (w, 0, U, 0, 1, EIO);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, EIO, 1);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  first = start_held_flush (w, hold, 0);
  second = start_blocked_flush (w, 1);
  engine_lock (w->e);           /* the second flush does not run meanwhile */
  gate_pass (w->gate, hold, 1);
  gate_wait_ended (w->gate, GATE_WRITE, ANYWHERE, 1);
  engine_unlock_and_dispatch (w->e);
  task_ends (first, EIO);

  first = start_flush (w, 0);
  /* One of them tries again, the other one ends or waits for it. */
  gate_wait_held (w->gate, hold, 1);
  gate_release (w->gate, hold);
  task_ends (first, 0);
  task_end (second);
  gate_release (w->gate, fail);
  do_flush (w, 0);
}

/* What a flush shows.
 *
 * Until a flush, the plugin may show a change only to the connection that made
 * it.  So data that another connection has prefetched there may be old.
 */

/* A connection does not read its own changes from data that another one has
 * prefetched.  A flush drops such prefetched data, and no other.
 */
static void
test_shows (struct world *w)
{
  enum write_mode mode = w->arg;
  int fail;

  world_init (w, 64 * U, config (16, 4, mode, READ_AHEAD));
  do_write (w, 1, 4096, 3 * U, OLD);
  do_write (w, 0, 4096, 5 * U, OLD);
  drain (w, 0, 64 * U, 0);      /* deferred writes are done, not flushed */
  prefetch (w, 0, 4);

  /* Connection 1 reads its own change itself, and no more than that. */
  do_read (w, 1, 4096, 3 * U, OLD);
  g_assert_cmpuint (gate_op (w->gate, GATE_READ, 3 * U, 4096, 1).conn, ==, 1);
  do_read (w, 1, 4096, 3 * U + 4096, OLD);
  assert_started (w, GATE_READ, 3 * U + 4096, 4096, 1);

  /* A flush that fails shows nothing, and the next one shows the change. */
  fail = gate_fail (w->gate, GATE_FLUSH, ANYWHERE, EIO, 1);
  flush_fails (w, 1, EIO);
  assert_states (w, BUF_CLEAN, 2 * U, 4 * U, 4);
  gate_release (w->gate, fail);
  do_flush (w, 1);
  assert_states (w, BUF_CLEAN, 3 * U, U, 0);
  assert_states (w, BUF_CLEAN, 2 * U, 4 * U, 3);

  /* Connection 0 reads its own change from its prefetched data. */
  for (unsigned i = 2; i < 6; i++)
    do_read (w, 0, U, i * U, OLD);
  assert_started (w, GATE_READ, 3 * U, U, 3);
  assert_started (w, GATE_READ, 5 * U, U, 1);
}

/* The same holds for data that is prefetched while the plugin flushes, and for
 * changes of a connection that has ended since.  A client that is alone keeps
 * its prefetched data.
 */
static void
test_shows_later (struct world *w)
{
  struct task *flush;
  int hold;

  world_init (w, 64 * U, config (16, 4, WRITE_THROUGH, READ_AHEAD));
  do_request (w, 1, TRIM, 4096, 3 * U, 0);
  do_write (w, 1, 4096, 3 * U, OLD);
  hold = gate_hold (w->gate, GATE_FLUSH, ANYWHERE);
  flush = start_held_flush (w, hold, 1);
  prefetch (w, 0, 4);
  gate_release (w->gate, hold);
  task_ends (flush, 0);
  assert_states (w, BUF_CLEAN, 2 * U, 4 * U, 3);
  do_flush (w, 0);
  do_flush (w, 1);
  assert_states (w, BUF_CLEAN, 2 * U, 4 * U, 3);

  /* A change of a connection that has ended since. */
  do_zero (w, 1, 4096, 6 * U);
  world_close (w, 1);
  do_read (w, 0, U, 2 * U, OLD);
  wait_state (w, BUF_CLEAN, 6 * U, U, 1);
  do_flush (w, 0);
  assert_states (w, BUF_CLEAN, 6 * U, U, 0);
}

static const struct test tests[] = {
  { "flush/plugin-can", test_waits, true },
  { "flush/plugin-cannot", test_waits, false },
  { "flush/ends", test_ends },
  { "flush/error", test_error },
  { "flush/later", test_later },
  { "flush/names", test_names, .on = PARALLEL },
  { "flush/names-bound", test_names_bound, .on = PARALLEL },
  { "flush/starved", test_starved },
  { "flush/shows/direct", test_shows, WRITE_THROUGH, .on = PARALLEL },
  { "flush/shows/deferred", test_shows, WRITE_BEHIND, .on = PARALLEL },
  { "flush/shows-later", test_shows_later },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
