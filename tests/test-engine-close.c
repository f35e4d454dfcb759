/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The end of a connection, and of the server: acknowledged data is written.
 *
 * A connection that ends waits for its calls under way and writes its dirty
 * data.  It tries failed data once more.  Data that fails again is kept for
 * other connections of the device, or is lost with the last one.  Both are
 * reported.
 */
#include "world.h"

/* A connection ends. */

/* The end writes dirty data. */
static void
test_writes (struct world *w)
{
  struct task *close;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 4096, 0, 1);
  do_write (w, 0, U, U, 1);
  close = start_close (w, 0);
  gate_wait_held (w->gate, hold, 2);
  task_wait_blocked (close);
  gate_release (w->gate, hold);
  task_ends (close, 0);
  assert_device (w->f, 4096, 0, 1);
  assert_device (w->f, U, U, 1);
}

/* The end waits for a prefetch under way.  A prefetch that waits for a worker
 * is taken back.
 */
static void
test_prefetches (struct world *w)
{
  struct task *close;
  int hold;

  open_readahead (w, 4 * U, 8, 1);
  hold = start_held_stream (w, 0);
  close = start_blocked_close (w, 0);
  gate_release (w->gate, hold);
  task_ends (close, 0);
  if (!w->hooked)
    assert_started (w, GATE_READ, 3 * U, U, 0);
  do_read (w, 1, 2 * U, 2 * U, OLD);
}

/* All threads hang in the plugin for another device.  The end of a connection
 * writes its queued data on its own thread.
 */
static void
test_hanging_threads (struct world *w)
{
  struct engine_config c = config_impatient (READ_DIRECT);
  int hold;

  c.threads = 1;
  open_names (w, 16 * U, c);
  hold = gate_hold (w->gate, GATE_WRITE, 0, U);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_write (w, 1, U, 8 * U, 2);
  world_close (w, 1);
  assert_device (w->f, U, 8 * U, 2);
  gate_release (w->gate, hold);
  do_flush (w, 0);
}

/* The end waits for the calls under way.  Later calls fail. */
static void
test_late_calls (struct world *w)
{
  struct extentset answer = { .max = EXTENTS_ANSWER };
  struct task *read, *close;
  char buf[512];
  int hold;

  open_readahead (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_READ, ANYWHERE);
  read = start_held (w, hold, 0, READ, U, 0, OLD);
  close = start_blocked (w, 0, FINALIZE, 0, 0, 0);
  g_assert_cmpint (request (w, 0, WRITE, buf, 512, 0), ==, ESHUTDOWN);
  gate_release (w->gate, hold);
  task_ends (read, 0);
  task_ends (close, 0);
  for (enum kind kind = READ; kind <= FLUSH; kind++)
    g_assert_cmpint (request (w, 0, kind, buf, 512, 0), ==, ESHUTDOWN);
  g_assert_cmpint (conn_extents (w->c[0], 512, 0, false, &answer), ==,
                   ESHUTDOWN);
  g_assert_cmpuint (answer.n, ==, 0);
  g_assert_false (conn_enter (w->c[0]));

  /* A filter above that takes no error still gets data, the newest. */
  do_write (w, 1, 4096, 0, 3);
  g_assert_cmpint (conn_read_closed (w->c[0], buf, 512, 0), ==, 0);
  assert_filled (buf, 512, 0, 3);
}

/* A client may leave while its prefetches hang: conn_close writes its data and
 * does not wait for them.  After that, conn_free waits.
 */
static void
test_leave (struct world *w)
{
  struct task *close;
  int hold;

  open_readahead (w, 64 * U, 16, 16);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, 14 * U);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, 1);
  do_write (w, 0, 4096, 40 * U, 3);
  conn_close (w->c[0]);
  assert_device (w->f, 4096, 40 * U, 3);
  close = start_blocked_close (w, 0);
  do_read (w, 1, U, 20 * U + 512, OLD);         /* others go on */
  gate_release (w->gate, hold);
  task_ends (close, 0);
}

/* With failed data. */

/* The end tries once more, whatever the error was. */
static void
test_retries (struct world *w)
{
  open_writeback (w, 8 * U, 8, 2);
  make_failed (w, 0, U, U, 1, w->arg);
  world_close (w, 0);
  assert_device (w->f, U, U, 1);
}

/* Workers try failed data first.  The connection's own thread tries only data
 * that fails once more.  A filter that sleeps fails on that thread, as its
 * client has gone.
 */
static void
test_workers (struct world *w)
{
  int fail;

  world_start (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  world_open (w, 0, "");
  make_failed (w, 0, 4096, 0, 1, ENOSPC);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, 1);
  world_close (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 2);
  for (unsigned i = 0; i < 2; i++) {
    bool is_worker = i == 0 && !w->hooked;

    g_assert_true (is_on_this_thread
                   (gate_op (w->gate, GATE_WRITE, ANYWHERE, i))
                   == !is_worker);
  }
  assert_device (w->f, 4096, 0, 1);
  gate_release (w->gate, fail);
}

/* Failed data outlives its connection while another one has the device.  The
 * next flush writes it, through its own connection.
 */
static void
test_kept (struct world *w)
{
  int fail;

  open_writeback (w, 4 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  do_write (w, 0, 4096, 4096, 1);
  world_close (w, 0);
  assert_reports (":4096+4096:kept");
  do_read (w, 1, 4096, 4096, 1);
  flush_fails (w, 1, ENOSPC);

  world_open (w, 2, "");
  world_close (w, 1);           /* takes it over, and ends without success */
  assert_reports (":4096+4096:kept");
  do_read (w, 2, 4096, 4096, 1);
  gate_release (w->gate, fail);
  gate_forget (w->gate);
  do_flush (w, 2);
  g_assert_cmpuint (gate_op (w->gate, GATE_WRITE, ANYWHERE, 0).conn, ==, 2);
  assert_device (w->f, 4096, 4096, 1);
}

/* The end of another connection writes it as well. */
static void
test_kept_close (struct world *w)
{
  int fail;

  open_writeback (w, 4 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  do_write (w, 0, 4096, 4096, 1);
  world_close (w, 0);
  assert_reports (":4096+4096:kept");
  gate_release (w->gate, fail);
  world_close (w, 1);
  assert_device (w->f, 4096, 4096, 1);

  world_open (w, 0, "");
  do_flush (w, 0);              /* nothing was lost */
}

/* A connection that cannot write does not take failed data over.  Its flushes
 * return the error, and drop nothing, as they cannot try.
 */
static void
test_kept_readonly (struct world *w)
{
  struct backend b;
  int err = w->arg, fail;

  open_writeback (w, 4 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, err, -1);
  do_write (w, 0, 4096, 4096, 1);
  b = world_backend (w, 2);
  b.can_write = false;
  world_open_as (w, 2, "", &b);
  world_close (w, 1);
  world_close (w, 0);
  assert_reports (":4096+4096:kept");
  gate_release (w->gate, fail);
  gate_forget (w->gate);
  do_read (w, 2, 4096, 4096, 1);
  for (unsigned i = 0; i < 2; i++)
    flush_fails (w, 2, err);
  assert_started (w, GATE_WRITE, ANYWHERE, 0);
  world_open (w, 3, "");
  do_flush (w, 3);
  do_flush (w, 2);
  assert_device (w->f, 4096, 4096, 1);
}

/* A connection that ends reports failed data while another one tries it
 * again.
 */
static void
test_beside_retry (struct world *w)
{
  struct task *close, *flush;
  int fail, hold;

  open_writeback (w, 4 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  do_write (w, 0, 4096, 4096, 1);
  do_write (w, 0, 4096, U + 4096, 2);
  report_gate_close ();
  close = start_close (w, 0);
  report_gate_wait ();
  gate_release (w->gate, fail);
  gate_forget (w->gate);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  flush = start_held_flush (w, hold, 1);
  report_gate_open ();
  gate_wait_held (w->gate, hold, 2);
  for (unsigned i = 0; i < 2; i++)
    g_assert_cmpuint (gate_op (w->gate, GATE_WRITE, ANYWHERE, i).conn, ==,
                      1 - i);
  task_wait_blocked (flush);
  task_wait_blocked (close);
  gate_release (w->gate, hold);
  task_ends (close, 0);
  task_ends (flush, 0);
  assert_device (w->f, 4096, 4096, 1);
  assert_device (w->f, 4096, U + 4096, 2);
  assert_n_reports (1);
}

/* A connection that ends waits for another one's retry of its data. */
static void
test_after_retry (struct world *w)
{
  struct task *close, *flush;
  int hold;

  open_writeback (w, 4 * U, 8, 2);
  make_failed (w, 0, 4096, 4096, 1, ENOSPC);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  flush = start_held_flush (w, hold, 1);
  g_assert_cmpuint (gate_op (w->gate, GATE_WRITE, 0, U, 0).conn, ==, 0);
  close = start_blocked_close (w, 0);
  gate_release (w->gate, hold);
  task_ends (close, 0);
  task_ends (flush, 0);
  assert_device (w->f, 4096, 4096, 1);
}

/* Failed data is lost with the last connection.  The next client of this name
 * reads old data, and its first flush returns the error.
 */
static void
test_lost (struct world *w)
{
  int fail;

  open_writeback (w, 4 * U, 8, 2);
  world_open (w, 2, "other");
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  do_write (w, 0, 4096, 4096, 1);
  world_close (w, 1);           /* has it written */
  wait_state (w, BUF_FAILED, 0, U, 1);
  gate_forget (w->gate);
  world_close (w, 0);
  assert_reports (":4096+4096:lost");
  /* A worker tries, and then this thread. */
  assert_started (w, GATE_WRITE, ANYWHERE, 2);
  g_assert_true (is_on_this_thread
                 (gate_op (w->gate, GATE_WRITE, ANYWHERE, 1)));
  assert_states (w, BUF_FAILED, 0, 4 * U, 0);
  gate_release (w->gate, fail);

  do_flush (w, 2);              /* not its name */
  world_open (w, 3, "");
  do_read (w, 3, 4096, 4096, OLD);
  do_write (w, 3, 4096, 4096, 3);
  flush_fails (w, 3, ENOSPC);
  do_flush (w, 3);
  assert_device (w->f, 4096, 4096, 3);
}

/* A loss that a flush has returned before is not returned to the next
 * client.
 */
static void
test_lost_reported (struct world *w)
{
  int fail;

  world_start (w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  world_open (w, 0, "");
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  do_write (w, 0, 4096, 4096, 1);
  flush_fails (w, 0, ENOSPC);
  world_close (w, 0);
  assert_reports (":4096+4096:lost");
  gate_release (w->gate, fail);
  world_open (w, 1, "");
  do_flush (w, 1);
}

/* A client makes up names and loses data under each.  The latest names are
 * remembered, and no more.
 */
static void
test_lost_names (struct world *w)
{
  int fail;

  world_start (w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, ENOSPC, -1);
  for (unsigned i = 0; i < 70; i++) {
    g_autofree char *name = g_strdup_printf ("name %u", i);

    world_open (w, 0, name);
    do_write (w, 0, 4096, 0, 1);
    world_close (w, 0);
  }
  assert_n_reports (70);
  g_assert_cmpuint (count_exports (w), ==, 64);
  gate_release (w->gate, fail);
  /* Names without a loss do not count. */
  for (unsigned i = 0; i < 70; i++) {
    g_autofree char *name = g_strdup_printf ("other %u", i);

    world_open (w, 0, name);
    do_write (w, 0, 4096, 0, 1);
    world_close (w, 0);
  }
  world_open (w, 0, "name 5");
  do_flush (w, 0);
  world_open (w, 1, "name 6");
  flush_fails (w, 1, ENOSPC);
  do_flush (w, 1);
}

/* The server ends. */

/* The server ends with connections open: their data is written, or reported as
 * lost.
 */
static void
test_stop_open (struct world *w)
{
  open_writeback (w, 8 * U, 8, 4);
  do_write (w, 0, 4096, 8192, 1);
  do_write (w, 1, U, U, 2);
  gate_fail (w->gate, GATE_WRITE, 3 * U, U, ENOSPC, -1);
  do_write (w, 1, 4096, 3 * U + 8192, 3);
  world_stop (w);
  assert_device (w->f, 4096, 8192, 1);
  assert_device (w->f, U, U, 2);
  assert_reports (":204800+4096:lost");
}

/* The end of the server waits for prefetches, also those of a finalized
 * connection.
 */
static void
test_stop_waits (struct world *w)
{
  struct task *stop;
  int hold;

  open_readahead (w, 64 * U, 16, 16);
  hold = start_held_stream (w, 0);
  conn_close (w->c[0]);
  stop = start_blocked (w, 0, STOP, 0, 0, 0);
  gate_release (w->gate, hold);
  task_ends (stop, 0);
  g_assert_cmpuint (count_reading (w), ==, 0);
}

static const struct test tests[] = {
  { "close/hanging-threads", test_hanging_threads, .on = POOL_ONLY },
  { "close/writes", test_writes },
  { "close/prefetches", test_prefetches },
  { "close/late-calls", test_late_calls },
  { "close/leave", test_leave },
  { "close/retries/EIO", test_retries, EIO },
  { "close/retries/ESHUTDOWN", test_retries, ESHUTDOWN },
  { "close/workers", test_workers },
  { "close/kept", test_kept },
  { "close/kept-close", test_kept_close },
  { "close/kept-readonly/ENOSPC", test_kept_readonly, ENOSPC },
  { "close/kept-readonly/EPERM", test_kept_readonly, EPERM },
  { "close/beside-retry", test_beside_retry },
  { "close/after-retry", test_after_retry },
  { "close/lost", test_lost },
  { "close/lost-reported", test_lost_reported },
  { "close/lost-names", test_lost_names },
  { "close/stop-open", test_stop_open },
  { "close/stop-waits", test_stop_waits },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
