/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Groups: adjacent full buffers that wait for the end of another write are
 * written in one operation.  Each buffer stays dirty until the operation ends.
 * If it fails, each buffer becomes FAILED.
 */
#include "dispatch.h"
#include "world.h"

enum { LARGE = 4 };             /* units of a group, at most */

static struct engine_config
config_groups (unsigned threads)
{
  struct engine_config c = config (32, threads, WRITE_BEHIND, READ_DIRECT);

  c.adapts_to = 32;
  c.large_buffers = 2;
  c.large_size = LARGE * U;
  return c;
}

/* Leaves room for N writes of a connection's device in flight, as if 8 - N
 * others were.
 */
static void
set_room (struct world *w, unsigned i, unsigned n)
{
  struct device *d = w->c[i]->device;

  atomic_store (&d->write_limit.reason, LIMIT_IS_FIXED);
  atomic_store (&d->write_limit.value, 8);
  atomic_store (&d->write_limit.is_large, true);
  atomic_store (&d->write_limit.is_new, false);
  LOCK_IN_SCOPE (&w->e->lock);
  d->n_writes = 8 - n;
}

static void
open_groups (struct world *w, unsigned n)
{
  world_init (w, 64 * U, config_groups (4));
  set_room (w, 0, n);
}

/* Holds the write of unit 0, with others behind it up to END. */
static int
hold_first (struct world *w, unsigned end)
{
  int hold = gate_hold (w->gate, GATE_WRITE, 0, U);

  write_units (w, 0, 0, end, 1);
  gate_wait_held (w->gate, hold, 1);
  assert_started (w, GATE_WRITE, ANYWHERE, 1);
  return hold;
}

static void
assert_write (struct world *w, unsigned i, unsigned unit, unsigned n)
{
  struct gate_op op = gate_op (w->gate, GATE_WRITE, ANYWHERE, i);

  g_assert_cmpuint (op.offset, ==, unit * U);
  g_assert_cmpuint (op.count, ==, n * U);
}

/* A group does not cross a multiple of LARGE units, and the oldest data comes
 * first.
 */
static void
test_group (struct world *w)
{
  int hold;

  open_groups (w, 1);
  hold = hold_first (w, 10);
  do_read (w, 1, 10 * U, 0, 1);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 4);
  assert_write (w, 1, 1, 3);
  assert_write (w, 2, 4, 4);
  assert_write (w, 3, 8, 2);
  g_assert_cmpuint (gate_peak (w->gate), ==, 1);
  assert_devices (w->f, PARTS ({ 0, 10 * U, 1 }, { 10 * U, U, OLD }));
  assert_free (w, 34);
}

/* A group reaches back from the oldest data, too. */
static void
test_backwards (struct world *w)
{
  int hold;

  open_groups (w, 1);
  hold = hold_first (w, 1);
  for (unsigned i = 7; i >= 4; i--)
    do_write (w, 0, U, i * U, 1);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 2);
  assert_write (w, 1, 4, 4);
  assert_device (w->f, 4 * U, 4 * U, 1);
}

/* As many writes are in flight as the limit allows, of whatever size. */
static void
test_limit (struct world *w)
{
  int hold;

  open_groups (w, 2);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 12, 1);
  assert_states (w, BUF_READY, 0, 12 * U, 10);
  gate_wait_held (w->gate, hold, 2);
  for (unsigned i = 0; i < 2; i++) {
    gate_pass (w->gate, hold, 1);
    gate_wait_held (w->gate, hold, 2);
  }
  assert_started (w, GATE_WRITE, ANYWHERE, 4);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_device (w->f, 12 * U, 0, 1);
}

/* While as many writes are in flight as the limit allows, as much data again
 * may wait.  So whole groups are ready when a write ends.
 */
static void
test_room (struct world *w)
{
  struct limit *l;
  int hold;

  open_groups (w, 8);
  l = &w->c[0]->device->write_limit;
  atomic_store (&l->value, 2);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 2 * LARGE, 1);
  g_assert_false (atomic_load (&l->hit));
  write_units (w, 0, 2 * LARGE, 2 * LARGE, 1);
  g_assert_true (atomic_load (&l->hit));
  assert_states (w, BUF_READY, 0, 4 * LARGE * U, 4 * LARGE - 2);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 6);
  assert_device (w->f, 4 * LARGE * U, 0, 1);
}

/* The limit of writes changes to large ones when a write continues as much
 * dirty data of its own connection as a large write has.
 */
static void
test_begins (struct world *w)
{
  struct limit *l;
  int hold;

  world_init (w, 64 * U, config_groups (4));
  l = &w->c[0]->device->write_limit;
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, LARGE, 1);
  do_write (w, 0, U, (LARGE + 1) * U, 1);       /* a gap */
  do_write (w, 1, U, LARGE * U, 1);             /* another connection */
  g_assert_false (limit_is_large (l));
  write_units (w, 0, LARGE + 2, LARGE - 1, 1);
  g_assert_false (limit_is_large (l));
  do_write (w, 0, U, (2 * LARGE + 1) * U, 1);
  g_assert_true (limit_is_large (l));
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_device (w->f, (2 * LARGE + 2) * U, 0, 1);
}

/* A buffer that is not full, or is another connection's, ends a group. */
static void
test_ends (struct world *w)
{
  int hold;

  open_groups (w, 1);
  hold = hold_first (w, 2);
  do_write (w, 0, U / 2, 2 * U, 1);
  write_units (w, 0, 3, 3, 1);
  write_units (w, 1, 6, 2, 1);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, 2 * U, U, 1);
  assert_started (w, GATE_WRITE, 4 * U, 4 * U, 2);
  assert_started (w, GATE_WRITE, ANYWHERE, 6);
  assert_devices (w->f, PARTS ({ 0, 5 * U / 2, 1 }, { 5 * U / 2, U / 2, OLD },
                               { 3 * U, 5 * U, 1 }));
}

/* After an error of a group, each of its buffers is written alone. */
static void
test_error (struct world *w)
{
  int hold, fail;

  open_groups (w, 1);
  hold = hold_first (w, 8);
  fail = gate_fail (w->gate, GATE_WRITE, 5 * U, U, EIO, -1);
  gate_release (w->gate, hold);
  gate_wait_ended (w->gate, GATE_WRITE, 4 * U, LARGE * U, 1);
  wait_state (w, BUF_FAILED, 4 * U, LARGE * U, LARGE);
  flush_fails (w, 0, EIO);
  assert_states (w, BUF_FAILED, 5 * U, U, 1);
  assert_states (w, BUF_FAILED, 0, 8 * U, 1);
  gate_release (w->gate, fail);
  do_flush (w, 0);
  assert_device (w->f, 8 * U, 0, 1);
  assert_free (w, 34);
}

/* Newer data waits for the group, and wins. */
static void
test_newer (struct world *w)
{
  struct task *zero;
  int hold, hold_group;

  open_groups (w, 1);
  hold = hold_first (w, 8);
  hold_group = gate_hold (w->gate, GATE_WRITE, 4 * U, LARGE * U);
  gate_release (w->gate, hold);
  gate_wait_held (w->gate, hold_group, 1);
  do_write (w, 0, U, 5 * U, 2);
  do_write (w, 0, U, 6 * U, 2);
  zero = start_blocked (w, 1, ZERO, U, 7 * U, 0);
  assert_reads (w, 1, PARTS ({ 4 * U, U, 1 }, { 5 * U, 2 * U, 2 },
                             { 7 * U, U, 1 }));
  gate_release (w->gate, hold_group);
  task_ends (zero, 0);
  do_flush (w, 0);
  assert_devices (w->f, PARTS ({ 0, 5 * U, 1 }, { 5 * U, 2 * U, 2 },
                               { 7 * U, U, 0 }));
  assert_no_collisions (w);
}

/* Data that a flush writes on its own thread is in no group. */
static void
test_claimed (struct world *w)
{
  struct buf *claimed = NULL;
  int hold;

  open_groups (w, 1);
  hold = hold_first (w, 8);
  {
    LOCK_IN_SCOPE (&w->e->lock);
    BUFFERS_FOREACH (b, w->e, 6 * U, 7 * U)
      claimed = b;
    claimed->claimed = true;
  }
  gate_release (w->gate, hold);
  gate_wait_ended (w->gate, GATE_WRITE, 7 * U, U, 1);
  assert_started (w, GATE_WRITE, 6 * U, U, 0);
  {
    ENGINE_LOCK_THEN_DISPATCH (w->e);
    claimed->claimed = false;
    order_dispatch_locked (w->e, 6 * U, 7 * U);
  }
  do_flush (w, 0);
  assert_device (w->f, 8 * U, 0, 1);
}

/* Without a free large buffer, each buffer is written alone. */
static void
test_no_memory (struct world *w)
{
  struct buf *taken[2];
  int hold;

  open_groups (w, 1);
  {
    LOCK_IN_SCOPE (&w->e->lock);
    for (unsigned i = 0; i < G_N_ELEMENTS (taken); i++)
      taken[i] = buffers_take_for_group (w->c[0]);
    g_assert_null (buffers_take_for_group (w->c[0]));
  }
  hold = hold_first (w, 8);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 8);
  assert_device (w->f, 8 * U, 0, 1);
  LOCK_IN_SCOPE (&w->e->lock);
  for (unsigned i = 0; i < G_N_ELEMENTS (taken); i++)
    buffers_put_group (taken[i]);
}

/* A drain does not wait for the limit: all threads hang in another device, so
 * the writes that are in its way hang in the queue.
 */
static void
test_drain (struct world *w)
{
  int hold;

  open_names (w, 64 * U, config_groups (1));
  set_room (w, 1, 2);
  hold = gate_hold (w->gate, GATE_WRITE, 0, U);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  for (unsigned i = 0; i < 3; i++)
    do_write (w, 1, U, (8 + 2 * i) * U, 2);
  assert_states (w, BUF_READY, 12 * U, U, 1);
  do_zero (w, 1, U, 12 * U);
  do_flush (w, 1);
  assert_devices (w->f, PARTS ({ 8 * U, U, 2 }, { 10 * U, U, 2 },
                               { 12 * U, U, 0 }));
  gate_release (w->gate, hold);
}

/* Nor does a request of what may be the same device: there is no room for the
 * data that is in its way.
 */
static void
test_drain_other (struct world *w)
{
  open_names (w, 64 * U, config_groups (4));
  set_room (w, 0, 0);
  for (unsigned i = 0; i < 2; i++)
    do_write (w, 0, U, (8 + 2 * i) * U, 1);
  assert_states (w, BUF_READY, 0, 64 * U, 2);
  do_read (w, 1, U, 8 * U, 1);
  do_fua (w, 1, 4096, 10 * U, 2);
  assert_devices (w->f, PARTS ({ 8 * U, U, 1 }, { 10 * U, 4096, 2 },
                               { 10 * U + 4096, U - 4096, 1 }));
  do_flush (w, 0);
}

/* The end of a connection does not wait for the limit, either.  Its own hooks
 * and those of another connection, which are in its way, may hang.
 */
static void
test_close_hooks (struct world *w)
{
  struct task *close;
  int hold;

  open_groups (w, 2);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  for (unsigned i = 0; i < 2; i++)
    do_write (w, 0, U, 2 * i * U, 1);
  for (unsigned i = 2; i < 6; i++)
    do_write (w, 1, U, 2 * i * U, 1);
  gate_wait_held (w->gate, hold, 2);
  assert_states (w, BUF_READY, 0, 64 * U, 4);
  close = start_blocked_close (w, 1);
  gate_wait_held (w->gate, hold, 6);
  gate_release (w->gate, hold);
  task_ends (close, 0);
}

/* The end of a connection waits for data that the limit holds back. */
static void
test_close (struct world *w)
{
  struct task *close;
  int hold;

  open_groups (w, 1);
  hold = hold_first (w, 8);
  close = start_blocked_close (w, 0);
  gate_release (w->gate, hold);
  task_ends (close, 0);
  assert_device (w->f, 8 * U, 0, 1);
  assert_free (w, 34);
}

static const struct test tests[] = {
  { "groups/group", test_group },
  { "groups/backwards", test_backwards },
  { "groups/limit", test_limit },
  { "groups/room", test_room },
  { "groups/begins", test_begins },
  { "groups/ends", test_ends },
  { "groups/error", test_error },
  { "groups/newer", test_newer },
  { "groups/claimed", test_claimed },
  { "groups/no-memory", test_no_memory },
  { "groups/drain", test_drain, .on = POOL_ONLY },
  { "groups/drain-other", test_drain_other },
  { "groups/close-hooks", test_close_hooks, .on = HOOKS_ONLY },
  { "groups/close", test_close },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
