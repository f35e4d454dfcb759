/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Read-ahead: which units are prefetched for a reader, and how they are used.
 *
 * Two reads in sequence make a stream.  From then on the units behind it are
 * prefetched, as many as the window allows.  A demand read takes the data from
 * a CLEAN buffer, waits for one that is being read, or goes to the plugin.
 *
 * Not here: the rules of streams and windows (test-stream.c), and how
 * prefetched data gives way to writers (test-engine-slab.c).
 */
#include "world.h"

/* Prefetched data is used. */

/* All of the device is prefetched once, also its short last unit, and both
 * connections read from it.
 */
static void
test_used (struct world *w)
{
  uint64_t size = 7 * U + 4096 + 512;   /* the last unit is a short one */

  open_readahead (w, size, 16, 4);
  start_stream (w, 0);
  wait_state (w, BUF_CLEAN, 2 * U, size - 2 * U, 6);
  assert_started (w, GATE_READ, 2 * U, 0, 6);

  /* All of a buffer, a part of it, and several, by both connections. */
  do_read (w, 1, 4096, 5 * U + 1, OLD);
  do_read (w, 0, U, 2 * U, OLD);
  do_read (w, 0, 2 * U, 3 * U, OLD);
  do_read (w, 0, U / 2, 5 * U, OLD);
  do_read (w, 0, U / 2 + U, 5 * U + U / 2, OLD);
  do_read (w, 0, 4096 + 512, 7 * U, OLD);

  assert_started (w, GATE_READ, 2 * U, 0, 6);
  /* A buffer that was read as a whole is not kept. */
  assert_states (w, BUF_CLEAN, 0, size, 0);
  assert_counter (w, STATS_AHEAD_BYTES, size - 2 * U);
}

/* One read takes its units from prefetched, dirty and no buffers.  The plugin
 * is asked only for units that no buffer holds.
 */
static void
test_mixed (struct world *w)
{
  int hold;

  open_readahead (w, 8 * U, 16, 4);
  prefetch (w, 0, 6);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 1, 4096, 3 * U + 4096, 1);       /* a part of unit 3 is dirty */
  do_zero (w, 1, 4096, 5 * U);                  /* unit 5 is in no buffer */
  do_write (w, 1, U, 6 * U, 2);                 /* all of unit 6 is dirty */
  assert_states (w, BUF_CLEAN, 0, 8 * U, 3);
  gate_forget (w->gate);
  assert_reads (w, 0, PARTS ({ 2 * U + 100, U - 100 + 4096, OLD },
                             { 3 * U + 4096, 4096, 1 },
                             { 3 * U + 8192, 2 * U - 8192, OLD },
                             { 5 * U, 4096, 0 },
                             { 5 * U + 4096, U - 4096, OLD }, { 6 * U, U, 2 },
                             { 7 * U, U - 1, OLD }));
  assert_started (w, GATE_READ, ANYWHERE, 2);
  g_assert_cmpuint (gate_op (w->gate, GATE_READ, ANYWHERE, 0).offset, ==,
                    3 * U);
  g_assert_cmpuint (gate_op (w->gate, GATE_READ, ANYWHERE, 0).count, ==, U);
  g_assert_cmpuint (gate_op (w->gate, GATE_READ, ANYWHERE, 1).offset, ==,
                    5 * U);
  g_assert_cmpuint (gate_op (w->gate, GATE_READ, ANYWHERE, 1).count, ==, U);
  gate_release (w->gate, hold);
}

/* A client skips some prefetched units.  The skipped units are dropped at
 * its second read behind them.
 */
static void
test_skip (struct world *w)
{
  open_readahead (w, 64 * U, 16, 16);
  prefetch (w, 0, 8);
  do_read (w, 0, U, 5 * U + U / 2, OLD);
  assert_states (w, BUF_CLEAN, 2 * U, 8 * U, 8);        /* it may come back */
  do_read (w, 0, U, 6 * U + U / 2, OLD);
  assert_states (w, BUF_CLEAN, 2 * U, 5 * U, 0);
  do_read (w, 0, 2 * U + U / 2, 7 * U + U / 2, OLD);
  assert_started (w, GATE_READ, 2 * U, 8 * U, 8);
}

/* Writes have made some units stale.  The first read that misses one has all of
 * them prefetched again.
 */
static void
test_hole (struct world *w)
{
  struct task *read;
  int hold;

  open_readahead (w, 64 * U, 32, 4);
  prefetch (w, 0, 8);
  for (unsigned i = 0; i < 3; i++)
    do_write (w, 1, 4096, (3 + 2 * i) * U, OLD);
  do_flush (w, 1);
  assert_states (w, BUF_CLEAN, 2 * U, 8 * U, 5);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, 8 * U);
  do_read (w, 0, U, 2 * U, OLD);
  assert_started (w, GATE_READ, 2 * U, 8 * U, 8);
  read = task_start (w, 0, READ, U, 3 * U, OLD);
  gate_wait_held (w->gate, hold, 3);       /* all at once */
  task_wait_blocked (read);
  gate_release (w->gate, hold);
  task_ends (read, 0);
}

/* Prefetched data is served for five seconds, and not any longer. */
static void
test_age (struct world *w)
{
  world_init (w, 4 * U, config (16, 4, WRITE_THROUGH, READ_AHEAD));
  prefetch (w, 0, 2);
  make_older (w, UINT64_C (5100000000));
  do_read (w, 0, U, 2 * U, OLD);
  assert_started (w, GATE_READ, 2 * U, U, 2);
}

/* The statistics count the bytes of prefetched data that clients read. */
static void
test_counter (struct world *w)
{
  open_readahead (w, 8 * U, 16, 4);
  start_stream (w, 0);
  wait_state (w, BUF_CLEAN, 2 * U, 6 * U, 4);
  for (unsigned i = 0; i < 4; i++)
    do_read (w, 0, U / 2, 2 * U + i * U / 2, OLD);
  assert_counter (w, STATS_AHEAD_USED, 2 * U);
}

/* A demand read does not wait behind queued prefetches. */

/* The only worker is busy.  A read of a unit that waits for this worker reads
 * the unit itself.
 */
static void
test_takes_over (struct world *w)
{
  int hold;

  open_readahead (w, 8 * U, 16, 1);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, U);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, 1);       /* the only worker */
  assert_states (w, BUF_READING, 0, 8 * U, 6);
  do_read (w, 0, U, 4 * U, OLD);
  g_assert_true (is_on_this_thread (gate_op (w->gate, GATE_READ, 4 * U, U, 0)));
  assert_started (w, GATE_READ, 2 * U, 0, 2);
  /* So does a read of another connection.  The worker is still held. */
  do_read (w, 1, 4096, 5 * U, OLD);
  g_assert_true (is_on_this_thread (gate_op (w->gate, GATE_READ, 5 * U, U, 0)));
  gate_release (w->gate, hold);
  wait_state (w, BUF_CLEAN, 2 * U, 6 * U, 4);
  assert_started (w, GATE_READ, 2 * U, 0, 6);
}

/* A read of another connection does so through its own connection. */
static void
test_takes_over_others (struct world *w)
{
  struct task *read;
  int hold;

  open_readahead (w, 16 * U, 16, 1);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, U);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, 1);
  read = task_start (w, 1, READ, U, 3 * U, OLD);
  task_ends (read, 0);
  if (!w->hooked)               /* with hooks no prefetch waits for a worker */
    g_assert_cmpuint (gate_op (w->gate, GATE_READ, 3 * U, U, 0).conn, ==, 1);
  gate_release (w->gate, hold);
}

/* Prefetches that fail. */

/* A read that waits for a failed prefetch asks the plugin itself, and returns
 * the plugin's error.
 */
static void
test_fails (struct world *w)
{
  struct task *read;
  int fail, hold;

  open_readahead (w, 4 * U, 16, 4);
  fail = gate_fail (w->gate, GATE_READ, 2 * U, 0, ENOMEDIUM, -1);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, U);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, 1);
  read = start_blocked (w, 1, READ, U, 2 * U, OLD);
  gate_wait_ended (w->gate, GATE_READ, 3 * U, U, 1);
  gate_pass (w->gate, hold, 1);
  gate_wait_held (w->gate, hold, 1);       /* the demand read */
  gate_release (w->gate, hold);
  task_ends (read, ENOMEDIUM);
  assert_counter (w, STATS_AHEAD_FAILED, 2);
  request_fails (w, 0, READ, U, 3 * U, OLD, ENOMEDIUM);
  request_fails (w, 1, READ, 4 * U, 0, OLD, ENOMEDIUM);
  gate_release (w->gate, fail);
  do_read (w, 0, 4 * U, 0, OLD);
}

/* A failed prefetch ends its stream. */
static void
test_fails_ends (struct world *w)
{
  int fail;

  open_readahead (w, 64 * U, 16, 1);
  fail = gate_fail (w->gate, GATE_READ, 2 * U, 0, EIO, -1);
  start_stream (w, 0);
  wait_free (w, 16);
  gate_release (w->gate, fail);
  gate_forget (w->gate);
  do_read (w, 0, U, 2 * U, OLD);
  wait_free (w, 16);
  assert_started (w, GATE_READ, ANYWHERE, 1);
}

/* Where all reads fail, the plugin gets each client's read, and few
 * prefetches.
 */
static void
test_fails_all (struct world *w)
{
  open_readahead (w, 256 * U, 16, 4);
  for (unsigned i = 0; i < 64; i++)
    do_read (w, 0, U, i * U, OLD);
  gate_fail (w->gate, GATE_READ, 80 * U, 0, EIO, -1);
  for (unsigned i = 64; i < 80; i++)
    do_read (w, 0, U, i * U, OLD);
  for (unsigned i = 80; i < 208; i++)
    request_fails (w, 0, READ, U, i * U, OLD, EIO);
  g_assert_cmpuint (gate_started (w->gate, GATE_READ, 80 * U, 0), <=, 128 + 32);
}

/* How far, and for which client. */

/* A client with several requests in flight, which all wait for prefetched data,
 * has the whole slab prefetched.  Its requests put nothing into the plugin.
 */
static void
test_deep (struct world *w)
{
  int hold;

  open_readahead (w, 64 * U, 16, 16);
  put_in_flight (w, 0, 7, 0);
  set_window (w, 0, 16);
  hold = gate_hold (w->gate, GATE_READ, 24 * U, 0);
  for (unsigned i = 0; i < 24; i++)
    do_read (w, 0, U, i * U, OLD);
  wait_state (w, BUF_READING, 24 * U, 40 * U, 12);
  gate_release (w->gate, hold);
}

/* A client with three quarters of the buffers in flight has nothing
 * prefetched.
 */
static void
test_quarter (struct world *w)
{
  unsigned in_flight = w->arg;
  int hold;

  open_readahead (w, 64 * U, 16, 16);
  put_in_flight (w, 0, in_flight, 0);
  hold = gate_hold (w->gate, GATE_READ, 24 * U, 0);
  for (unsigned i = 0; i < 24; i++)
    do_read (w, 0, U, i * U, OLD);
  assert_states (w, BUF_READING, 24 * U, U, in_flight < 12);
  gate_release (w->gate, hold);
}

/* Reads in bursts, each in reverse, are one stream for a client with several
 * requests in flight.
 */
static void
test_slack (struct world *w)
{
  open_readahead (w, 64 * U, 32, 16);
  put_in_flight (w, 0, 3, 0);
  for (unsigned i = 0; i < 24; i++)
    do_read (w, 0, U, (i / 4 * 4 + 3 - i % 4) * U, OLD);
  g_assert_cmpuint (count_streams (w, 0), ==, 1);
}

/* A slow reader finds data that was prefetched for it long ago.  The data of a
 * client that reads elsewhere is dropped.
 */
static void
test_slow (struct world *w)
{
  open_readahead (w, 64 * U, 16, 4);
  prefetch (w, 0, 8);
  make_older (w, 2 * STREAM_IDLE_NS);
  do_read (w, 0, U, 2 * U, OLD);
  assert_states (w, BUF_CLEAN, 3 * U, 7 * U, 7);
  make_older (w, 2 * STREAM_IDLE_NS);
  stop_reading (w, 2 * STREAM_IDLE_NS);
  do_read (w, 1, U, 40 * U, OLD);
  do_read (w, 1, U, 41 * U, OLD);
  assert_states (w, BUF_CLEAN, 3 * U, 7 * U, 0);
}

/* Several streams share the buffers. */

/* A stream was left while it has all buffers.  Single reads elsewhere take none
 * of them, and another stream takes as many as it needs, from the far end.
 */
static void
test_left (struct world *w)
{
  open_readahead (w, 64 * U, 8, 4);
  prefetch (w, 0, 8);
  do_read (w, 0, U, 40 * U, OLD);
  do_read (w, 0, U, 41 * U, OLD);       /* no further than the first stream */
  assert_states (w, BUF_CLEAN, 2 * U, 8 * U, 8);
  do_read (w, 0, U, 42 * U, OLD);
  wait_state (w, BUF_CLEAN, 43 * U, 2 * U, 2);
  assert_states (w, BUF_CLEAN, 2 * U, 6 * U, 6);
  do_read (w, 0, 20 * U, 0, OLD);
}

/* Another connection's stream gets an equal share, though the first stream has
 * all buffers.
 */
static void
test_share (struct world *w)
{
  open_readahead (w, 64 * U, 16, 16);
  set_window (w, 0, 16);
  set_window (w, 1, 16);
  prefetch (w, 0, 16);
  do_read (w, 1, U, 30 * U, OLD);
  do_read (w, 1, U, 31 * U, OLD);
  wait_state (w, BUF_CLEAN, 32 * U, 16 * U, 8);
  assert_states (w, BUF_CLEAN, 2 * U, 16 * U, 8);
  do_read (w, 0, U, 2 * U, OLD);
  g_assert_cmpuint (count_prefetched (w, 0), <=, 8);
  g_assert_cmpuint (count_prefetched (w, 1), ==, 8);
}

/* A short stream keeps the buffers that it uses.  A long one gets the rest. */
static void
test_beside (struct world *w)
{
  struct task *read;
  int hold;

  open_readahead (w, 64 * U, 16, 4);
  do_read (w, 0, 512, 60 * U, OLD);
  do_read (w, 0, 512, 60 * U + 512, OLD);
  wait_state (w, BUF_CLEAN, 60 * U, 4 * U, 4);
  set_window (w, 0, 16);
  hold = gate_hold (w->gate, GATE_READ, U, U);
  do_read (w, 0, U, 0, OLD);
  read = start_held (w, hold, 0, READ, U, U, OLD);
  do_read (w, 0, 512, 60 * U + 1024, OLD);
  gate_release (w->gate, hold);
  task_ends (read, 0);
  do_read (w, 0, 512, 60 * U + 1536, OLD);
  do_read (w, 0, U, 2 * U, OLD);
  wait_state (w, BUF_CLEAN, 3 * U, 12 * U, 12);
  assert_states (w, BUF_CLEAN, 15 * U, 10 * U, 0);
}

static const struct test tests[] = {
  { "readahead/used", test_used },
  { "readahead/mixed", test_mixed },
  { "readahead/skip", test_skip },
  { "readahead/hole", test_hole },
  { "readahead/age", test_age },
  { "readahead/counter", test_counter },
  { "readahead/takes-over", test_takes_over, .on = POOL_ONLY },
  { "readahead/takes-over-others", test_takes_over_others },
  { "readahead/fails", test_fails },
  { "readahead/fails-ends", test_fails_ends },
  { "readahead/fails-all", test_fails_all },
  { "readahead/deep", test_deep },
  { "readahead/quarter/11", test_quarter, 11 },
  { "readahead/quarter/12", test_quarter, 12 },
  { "readahead/slack", test_slack },
  { "readahead/slow", test_slow },
  { "readahead/left", test_left },
  { "readahead/share", test_share },
  { "readahead/beside", test_beside },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
