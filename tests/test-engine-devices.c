/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Devices: which connections share data, and which rules the others keep.
 *
 * Connections of one export name have the same device if all say multi-conn.
 * They share its buffers.
 *
 * All other connections possibly have the same device.  Between those no data
 * is shared, but order is kept.  Dirty data is written before another device's
 * overlapping request, and newer data supersedes older failed data.  A request
 * waits a bounded time for another device's data.
 */
#include "world.h"

/* The same device. */

/* How connection 2 differs from the others. */
enum differs { SIZE, MAX_BLOCK, MIN_BLOCK, MULTI_CONN };

static void
open_differing (struct world *w, enum differs differs)
{
  struct backend b;

  open_readahead (w, 4 * U, 8, 2);
  b = world_backend (w, 2);
  switch (differs) {
  case SIZE: b.size = 3 * U; break;
  case MAX_BLOCK: b.max_block = U / 2; break;
  case MIN_BLOCK: b.min_block = 512; break;
  case MULTI_CONN: b.shared = false; break;
  }
  world_open_as (w, 2, "", &b);
}

/* Connections of one name have the same device if both say multi-conn, whatever
 * else differs.  But a connection with another size or other block sizes cannot
 * use the buffers of the first one.
 */
static void
test_same_name (struct world *w)
{
  enum differs differs = w->arg;

  open_differing (w, differs);
  g_assert_true (has_same_device (w, 0, 1));
  g_assert_true (has_same_device (w, 0, 2) == (differs != MULTI_CONN));
  g_assert_true (w->c[2]->shares == (differs == MULTI_CONN));
}

/* Such a connection sees and flushes all waiting data.  It neither prefetches
 * nor defers, nor does it use data that the others have prefetched.
 */
static void
test_without_buffers (struct world *w)
{
  int fail, hold;

  open_differing (w, w->arg);

  /* Failed data. */
  fail = gate_fail (w->gate, GATE_WRITE, 0, U, ENOSPC, -1);
  do_write (w, 0, 4096, 4096, 1);
  g_assert_true (drain (w, 0, U, 0));
  flush_fails (w, 2, ENOSPC);
  do_read (w, 2, 4096, 4096, 1);
  gate_release (w->gate, fail);
  do_flush (w, 2);
  assert_device (w->f, 4096, 4096, 1);

  /* Dirty data: a read takes it from its buffer, a write waits for it. */
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 4096, 0, 2);
  do_read (w, 2, 4096, 0, 2);
  gate_release (w->gate, hold);
  do_write (w, 2, 4096, 2048, 3);
  assert_device (w->f, 2048, 0, 2);
  assert_device (w->f, 4096, 2048, 3);

  /* Read-ahead. */
  for (unsigned i = 0; i < 3; i++)
    do_read (w, 2, 4096, 2 * U + i * 4096, OLD);
  g_assert_cmpuint (count_held (w), ==, 0);
  do_flush (w, 0);
  do_read (w, 0, U / 2, U, OLD);
  do_read (w, 0, U / 2, U + U / 2, OLD);
  wait_state (w, BUF_CLEAN, 2 * U, U, 1);
  gate_forget (w->gate);
  do_read (w, 2, 4096, 2 * U, OLD);
  g_assert_cmpuint (gate_op (w->gate, GATE_READ, 2 * U, 4096, 0).conn, ==, 2);
}

/* The same, where the connection without multi-conn comes first. */
static void
test_same_name_first (struct world *w)
{
  world_start (w, 4 * U, config (8, 2, WRITE_BEHIND, READ_AHEAD));
  world_open_unshared (w, 0, "");
  world_open (w, 1, "");
  g_assert_false (has_same_device (w, 0, 1));
}

/* Without multi-conn each connection has a device of its own. */
static void
test_not_shared (struct world *w)
{
  int hold;

  world_start (w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < 3; i++)
    world_open_unshared (w, i, "x");

  /* It may be one device: dirty data is written before another one reads. */
  do_write (w, 0, 4096, 0, 1);
  do_read (w, 1, 4096, 0, 1);
  assert_device (w->f, 4096, 0, 1);

  /* Failed data is served to its own connection only, and lost with it. */
  hold = gate_fail (w->gate, GATE_WRITE, 0, U, EIO, -1);
  do_write (w, 0, 4096, 0, 2);
  g_assert_true (drain (w, 0, U, 0));
  wait_state (w, BUF_FAILED, 0, U, 1);
  do_read (w, 0, 4096, 0, 2);
  do_read (w, 1, 4096, 0, 1);
  g_assert_false (is_failing (w, 1));
  do_zero (w, 1, 4096, U);
  do_flush (w, 1);
  world_close (w, 0);
  assert_reports ("x:0+4096:lost");
  assert_states (w, BUF_FAILED, 0, 4 * U, 0);
  gate_release (w->gate, hold);
  do_read (w, 2, 4096, 0, 1);
  flush_fails (w, 1, EIO);      /* a loss under its name */
  do_flush (w, 2);
  do_flush (w, 1);
}

/* Two names of one device. */

/* Each name reads data that the other name has written, and overlapping writes
 * keep their order.
 */
static void
test_names (struct world *w)
{
  struct task *read, *write;
  int hold, hold_read;

  open_names (w, 4 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  hold_read = gate_hold (w->gate, GATE_READ, 2 * U, 0);
  start_stream (w, 1);
  gate_wait_held (w->gate, hold_read, 2);
  do_write (w, 0, 4096, 2 * U, 1);      /* what "b" prefetches is stale */
  gate_release (w->gate, hold_read);
  read = start_held (w, hold, 1, READ, 4096, 2 * U, 1); /* has it written */
  task_wait_blocked (read);
  do_read (w, 1, 4096, 3 * U, OLD);     /* elsewhere it does not wait */
  gate_pass (w->gate, hold, 1);
  task_ends (read, 0);

  /* Overlapping writes. */
  gate_forget (w->gate);
  do_write (w, 0, 4096, 2 * U, 1);
  write = start_held (w, hold, 1, WRITE, 2048, 2 * U, 2);
  task_wait_blocked (write);
  gate_release (w->gate, hold);
  task_ends (write, 0);
  assert_device (w->f, 2048, 2 * U, 2);
  assert_device (w->f, 2048, 2 * U + 2048, 1);
  assert_order (gate_op (w->gate, GATE_WRITE, ANYWHERE, 0),
                gate_op (w->gate, GATE_WRITE, ANYWHERE, 1));
  assert_reads (w, 0, PARTS ({ 2 * U, 2048, 2 }, { 2 * U + 2048, 2048, 1 }));
}

/* Bytes that the other name is writing are not prefetched. */
static void
test_names_prefetch (struct world *w)
{
  int hold;

  open_names (w, 4 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 2 * U, 1);
  gate_wait_held (w->gate, hold, 1);
  start_stream (w, 1);
  wait_state (w, BUF_CLEAN, 3 * U, U, 1);
  assert_started (w, GATE_READ, 2 * U, U, 0);
  gate_release (w->gate, hold);
  gate_wait_ended (w->gate, GATE_WRITE, ANYWHERE, 1);
  assert_reads (w, 1, PARTS ({ U, U, OLD }, { 2 * U, U, 1 },
                             { 3 * U, U, OLD }));
}

/* A plugin that reports success but fills nothing shows no bytes of another
 * device.  A buffer that has held such bytes, in waiting data too, is cleared.
 */
static void
test_names_unfilled (struct world *w)
{
  world_start (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  world_open (w, 0, "a");
  prefetch (w, 0, 2);
  world_close (w, 0);
  world_open_second (w, 1, "b");
  do_write (w, 1, 512, 0, 1);
  do_flush (w, 1);
  do_write (w, 1, 512, 0, OLD);
  do_flush (w, 1);
  fake_set_filled (w->f2, 2 * U);
  prefetch (w, 1, 2);
  for (unsigned i = 0; i < 2; i++) {
    struct buf *b = buffers_first (w->e, (2 + i) * U, (3 + i) * U);

    for (unsigned at = 0; at < U; at++)
      g_assert_cmpint (b->data[at], ==, 0);
  }
}

/* A flush tries failed data again while a newer write of another name is under
 * way.  It waits for the write, which supersedes the data, and returns the
 * error once.
 */
static void
test_names_retry (struct world *w)
{
  struct task *flush, *write;
  int hold;

  open_names (w, 4 * U, config (16, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (w, 0, 4096, 0, 1, EIO);
  gate_forget (w->gate);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write = start_held (w, hold, 1, WRITE, U, 0, 2);
  flush = start_blocked_flush (w, 0);
  gate_release (w->gate, hold);
  task_ends (write, 0);
  task_ends (flush, EIO);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 1);
  assert_device (w->f, U, 0, 2);
}

/* A request that has another connection's data written does not do so on its
 * own thread.
 */
static void
test_thread (struct world *w)
{
  open_names (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  do_write (w, 0, 4096, 0, 1);
  do_read (w, 1, 4096, 0, 1);
  g_assert_false (is_on_this_thread
                  (gate_op (w->gate, GATE_WRITE, ANYWHERE, 0)));
}

/* Two names of two devices. */

/* Data never crosses.  A successful change through one name removes failed data
 * of the other, as both could be one device.  The flush of the other name says
 * so once.
 */
static void
test_two_devices (struct world *w)
{
  struct part parts[] = { { 0, 1024, 1 }, { 1024, 1024, OLD },
                          { 2048, 2048, 1 } };
  enum kind kind = w->arg;
  int fail;

  world_start (w, 4 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  world_open (w, 0, "a");
  world_open (w, 1, "a");
  world_open_second (w, 2, "b");
  make_failed (w, 0, 4096, 0, 1, EIO);
  do_read (w, 2, 4096, 0, OLD);
  fail = gate_fail (fake_gate (w->f2), GATE_CHANGE, ANYWHERE, EPERM, -1);
  request_fails (w, 2, kind, 1024, 1024, 3, EPERM);
  do_read (w, 1, 4096, 0, 1);   /* nothing has changed */
  gate_release (fake_gate (w->f2), fail);
  do_request (w, 2, kind, 1024, 1024, 3);
  assert_reads (w, 1, parts, 3);
  do_flush (w, 2);
  assert_reads (w, 1, parts, 3);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  flush_fails (w, 0, ENOSPC);
  gate_release (w->gate, fail);
  do_flush (w, 1);
  assert_devices (w->f, parts, 3);

  make_failed (w, 0, 4096, 0, 1, EIO);
  do_request (w, 2, kind, 8192, 0, 2);  /* supersedes all of it */
  assert_states (w, BUF_FAILED, 0, U, 0);
  flush_fails (w, 1, EIO);
  do_flush (w, 0);
  assert_devices (w->f, parts, 3);
}

/* One device hangs. */

/* A request waits a bounded time for another device's dirty data.  A change
 * then takes the place of the dirty data, whose own flush returns an error.
 */
static void
test_bound (struct world *w)
{
  enum kind kind = w->arg;
  struct task *flush;
  int hold;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  hold = gate_hold (w->gate, GATE_WRITE, 0, 2048); /* not what "b" writes */
  do_write (w, 0, 8192, 0, 1);
  do_read (w, 1, 4096, 0, OLD);
  gate_wait_held (w->gate, hold, 1);
  if (kind == FUA)
    do_request (w, 1, kind, 4096, 4096, 2);
  else
    do_request (w, 1, kind, 8192, 0, 2);
  flush = start_blocked_flush (w, 0);
  g_usleep (2 * 50000);                 /* longer than the bound */
  task_wait_blocked (flush);            /* for its own device */
  gate_release (w->gate, hold);
  task_ends (flush, EIO);
  assert_late (2);
  engine_check (w->e);
  do_flush (w, 0);
  assert_free (w, 8);
}

/* A write hangs, and newer data of another device takes the place of its bytes.
 * It is still in flight: the next change of its own device waits for it.
 */
static void
test_bound_in_flight (struct world *w)
{
  enum kind kind = w->arg;
  struct task *second;
  int hold;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  /* Only the first write touches that. */
  hold = gate_hold (w->gate, GATE_WRITE, 8192, 4096);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_fua (w, 1, 4096, 0, 2);
  second = start_blocked (w, 0, kind, 4096, 0, 3);
  assert_started (w, GATE_CHANGE, 0, 4096, 2);
  gate_release (w->gate, hold);
  task_ends (second, 0);
  assert_device (w->f, 4096, 0, kind == ZERO ? 0 : 3);
  assert_device (w->f, U - 4096, 4096, 1);
  assert_late (1);
  flush_fails (w, 0, EIO);
  do_flush (w, 0);
}

/* The same, and flushes that began before that write end in between: the first
 * one returns the error of the replaced bytes, the second one succeeds.
 */
static void
test_bound_in_flight_flushed (struct world *w)
{
  struct task *second, *flushes[2];
  int hold, hold_flush, errors = 0;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  hold_flush = gate_hold (w->gate, GATE_FLUSH, ANYWHERE);
  for (unsigned i = 0; i < 2; i++)
    flushes[i] = start_flush (w, 0);
  gate_wait_held (w->gate, hold_flush, 2);
  hold = gate_hold (w->gate, GATE_WRITE, 8192, 4096);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_fua (w, 1, 4096, 0, 2);
  gate_release (w->gate, hold_flush);
  for (unsigned i = 0; i < 2; i++)
    errors += task_end (flushes[i]);
  g_assert_cmpint (errors, ==, EIO);
  g_assert_false (is_failing (w, 0));
  second = start_blocked (w, 0, WRITE, 4096, 0, 3);
  assert_started (w, GATE_CHANGE, 0, 4096, 2);
  gate_release (w->gate, hold);
  task_ends (second, 0);
  assert_device (w->f, 4096, 0, 3);
  assert_late (1);
  do_flush (w, 0);
}

/* READY data has failed when another device's change stops waiting for it.  Its
 * own flush does not wait for that change, which hangs.
 */
static void
test_bound_ready (struct world *w)
{
  struct task *waiter, *zero, *flush;
  int hold, hold_zero;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  hold_zero = gate_hold (w->gate, GATE_ZERO, ANYWHERE);
  do_write (w, 1, 8192, 0, 1);
  waiter = start_held (w, hold, 1, DRAIN, 4096, 0, 0);
  do_write (w, 1, 8192, 4096, 2);       /* READY behind the first one */
  zero = start_held (w, hold_zero, 0, ZERO, 4096, 8192, 0);
  flush = start_blocked_flush (w, 1);
  gate_release (w->gate, hold);
  task_ends (waiter, false);
  task_ends (flush, EIO);
  gate_release (w->gate, hold_zero);
  task_ends (zero, 0);
  flush_fails (w, 1, EIO);      /* the zero has superseded a part */
  do_flush (w, 1);
  assert_device (w->f, 4096, 0, 1);
  assert_device (w->f, 4096, 4096, 2);
  assert_device (w->f, 4096, 8192, 0);
}

/* The same for a write that the plugin refuses.  Younger READY data that waited
 * for the failed data, and is outside the write, goes on.
 */
static void
test_bound_ready_refused (struct world *w)
{
  struct task *waiters[3];
  int hold;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  hold = gate_hold (w->gate, GATE_WRITE, 0, 4096);
  do_write (w, 0, 8192, 0, 1);
  waiters[0] = start_held (w, hold, 0, DRAIN, 4096, 0, 0);
  for (unsigned i = 1; i < 3; i++) {
    do_write (w, 0, 8192, i * 4096, 1 + i);
    waiters[i] = start_blocked (w, 0, DRAIN, 4096, i * 4096, 0);
  }
  assert_states (w, BUF_READY, 0, U, 2);
  gate_fail (w->gate, GATE_WRITE, 4096, 4096, ENOSPC, 1);
  request_fails (w, 1, FUA, 4096, 4096, 4, ENOSPC);
  task_ends (waiters[2], false);
  gate_release (w->gate, hold);
  task_ends (waiters[1], true);
  task_ends (waiters[0], false);
  do_flush (w, 0);
  assert_devices (w->f, PARTS ({ 0, 4096, 1 }, { 4096, 4096, 2 },
                               { 8192, 8192, 3 }));
  assert_late (1);
}

/* Failed data has to wait for another device's zero, which hangs.  The flush
 * returns its error in the end.
 */
static void
test_bound_retry (struct world *w)
{
  struct task *zero;
  int hold, fail;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  do_write (w, 0, 4096, 3 * U, 1);
  do_write (w, 0, 8192, 0, 1);
  flush_fails (w, 0, ENOSPC);
  gate_release (w->gate, fail);
  hold = gate_hold (w->gate, GATE_ZERO, ANYWHERE);
  zero = start_held (w, hold, 1, ZERO, 4096, 0, 0);
  flush_fails (w, 0, ENOSPC);
  assert_device (w->f, 4096, 3 * U, 1);
  gate_release (w->gate, hold);
  task_ends (zero, 0);
  do_read (w, 0, 4096, 4096, 1);
  flush_fails (w, 0, ENOSPC);   /* the zero has superseded a part */
  do_flush (w, 0);
  assert_device (w->f, 4096, 4096, 1);
}

/* The same for a later piece of failed data, after the flush has written the
 * first one.
 */
static void
test_bound_retry_piece (struct world *w)
{
  struct task *zero;
  int hold, fail;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  fail = gate_fail (w->gate, GATE_WRITE, 0, 4096, ENOSPC, -1);
  do_write (w, 0, 12288, 0, 1);
  flush_fails (w, 0, ENOSPC);
  do_zero (w, 1, 4096, 4096);
  flush_fails (w, 0, ENOSPC);   /* it has superseded a part */
  gate_release (w->gate, fail);
  hold = gate_hold (w->gate, GATE_ZERO, ANYWHERE);
  zero = start_held (w, hold, 1, ZERO, 4096, 8192, 0);
  flush_fails (w, 0, ENOSPC);
  assert_device (w->f, 4096, 0, 1);
  gate_release (w->gate, hold);
  task_ends (zero, 0);
  flush_fails (w, 0, ENOSPC);
  do_flush (w, 0);
  assert_device (w->f, 8192, 4096, 0);
}

/* All workers are busy with another device, which hangs.  A flush, a writer and
 * a direct write do queued writes of their device themselves.  For the latter,
 * that is also older data of the unit that is not in its range, but in the way
 * of data there.
 */
static void
test_workers (struct world *w)
{
  struct task *read;
  int hold;

  open_names (w, 16 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  hold = gate_hold (w->gate, GATE_READ, ANYWHERE);
  read = task_start (w, 0, READ, 2 * U, 0, OLD);
  gate_wait_held (w->gate, hold, 2);
  do_write (w, 1, U, 8 * U, 1);
  do_flush (w, 1);
  assert_device (w->f, U, 8 * U, 1);
  do_write (w, 1, U, 9 * U, 2);
  do_fua (w, 1, 4096, 9 * U, 3);
  do_write (w, 1, 4096, 10 * U - 4096, 2);
  do_write (w, 1, U, 9 * U, 2);
  do_fua (w, 1, 4096, 9 * U, 3);
  assert_devices (w->f, PARTS ({ 9 * U, 4096, 3 },
                               { 9 * U + 4096, U - 4096, 2 }));
  write_units (w, 1, 6, 10, 4); /* more than there are buffers */
  do_flush (w, 1);
  assert_device (w->f, 10 * U, 6 * U, 4);
  gate_release (w->gate, hold);
  task_ends (read, 0);
}

/* A writer does not wait for buffers that another device keeps.  It waits for
 * those of its own device.
 */
static void
test_buffers (struct world *w)
{
  struct task *write;
  int hold;

  open_names (w, 32 * U, config (8, 8, WRITE_BEHIND, READ_DIRECT));
  hold = gate_hold (w->gate, GATE_WRITE, 0, 16 * U);
  write_units (w, 0, 0, 8, 1);
  gate_wait_held (w->gate, hold, 8);
  do_write (w, 1, U, 20 * U, 2);
  assert_device (w->f, U, 20 * U, 2);
  write = start_blocked (w, 0, WRITE, U, 9 * U, 1);
  g_usleep (2 * 128000);        /* twice as long as connection 1 waits */
  task_wait_blocked (write);
  gate_release (w->gate, hold);
  task_ends (write, 0);
  do_flush (w, 0);
}

/* What a flush shows.  Connection 1 has prefetched the old bytes, as the plugin
 * hides the change of connection 0 until a flush of either.
 */

enum { GONE, LEAVING, ALONE, FORGOTTEN };

static void
test_flush_shows (struct world *w)
{
  struct engine_config c = config (16, 4, WRITE_BEHIND, READ_AHEAD);
  struct conn *leaving = NULL;

  world_start (w, 64 * U, c);
  fake_hide (w->f);
  if (w->arg == ALONE) {        /* neither says multi-conn */
    world_open_unshared (w, 0, "");
    world_open_unshared (w, 1, "");
  }
  else
    world_open (w, 0, "");
  do_write (w, 0, U, 2 * U, 1);
  drain (w, 0, U, 2 * U);
  if (w->arg == LEAVING) {      /* nbdkit has not closed it yet */
    leaving = g_steal_pointer (&w->c[0]);
    conn_close (leaving);
    world_open (w, 1, "");
  }
  else if (w->arg != ALONE) {
    world_close (w, 0);
    /* So many other names, each with a change of its own. */
    for (unsigned i = 0; w->arg == FORGOTTEN && i < 70; i++) {
      g_autofree char *name = g_strdup_printf ("%u", i);

      world_open (w, 0, name);
      do_write (w, 0, U, 40 * U, 1);
      world_close (w, 0);
    }
    world_open (w, 1, "");
  }
  prefetch (w, 1, 4);
  do_flush (w, w->arg == ALONE ? 0 : 1);
  do_read (w, 1, U, 2 * U, 1);
  if (leaving)
    conn_free (leaving);
}

static const struct test tests[] = {
  { "devices/same-name/size", test_same_name, SIZE },
  { "devices/same-name/max-block", test_same_name, MAX_BLOCK },
  { "devices/same-name/min-block", test_same_name, MIN_BLOCK },
  { "devices/same-name/multi-conn", test_same_name, MULTI_CONN },
  { "devices/same-name-first", test_same_name_first },
  { "devices/without-buffers/size", test_without_buffers, SIZE },
  { "devices/without-buffers/max-block", test_without_buffers, MAX_BLOCK },
  { "devices/without-buffers/min-block", test_without_buffers, MIN_BLOCK },
  { "devices/not-shared", test_not_shared, .on = PARALLEL },
  { "devices/names", test_names },
  { "devices/names-prefetch", test_names_prefetch },
  { "devices/names-unfilled", test_names_unfilled },
  { "devices/names-retry", test_names_retry },
  { "devices/thread", test_thread },
  { "devices/two-devices/write", test_two_devices, WRITE },
  { "devices/two-devices/fua", test_two_devices, FUA },
  { "devices/two-devices/zero", test_two_devices, ZERO },
  { "devices/two-devices/trim", test_two_devices, TRIM },
  { "devices/bound/fua", test_bound, FUA },
  { "devices/bound/zero", test_bound, ZERO },
  { "devices/bound/trim", test_bound, TRIM },
  { "devices/bound-in-flight/write", test_bound_in_flight, WRITE },
  { "devices/bound-in-flight/zero", test_bound_in_flight, ZERO },
  { "devices/bound-in-flight/flushed", test_bound_in_flight_flushed,
    .on = PARALLEL },
  { "devices/bound-ready", test_bound_ready },
  { "devices/bound-ready-refused", test_bound_ready_refused,
    .on = PARALLEL },
  { "devices/bound-retry", test_bound_retry },
  { "devices/bound-retry-piece", test_bound_retry_piece },
  { "devices/workers", test_workers, .on = PARALLEL },
  { "devices/buffers", test_buffers },
  { "devices/flush-shows/gone", test_flush_shows, GONE },
  { "devices/flush-shows/leaving", test_flush_shows, LEAVING },
  { "devices/flush-shows/alone", test_flush_shows, ALONE },
  { "devices/flush-shows/forgotten", test_flush_shows, FORGOTTEN },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
