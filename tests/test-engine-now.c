/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The statistics of one moment (engine_now): each buffer, thread and operation
 * is counted once, by what it does.  Prefetched data that no client has read is
 * counted when it leaves.
 *
 * Not here: how the values are printed (test-statistics.c).
 */
#include "world.h"

/* The values of now; buffers are in one state each. */
static struct stats_now
look (struct world *w)
{
  struct stats_now now;

  engine_now (w->e, &now);
  g_assert_cmpfloat (now.buffers, ==, w->e->buffers.n);
  g_assert_cmpfloat (now.buffers_free + now.buffers_reading + now.buffers_clean
                     + now.buffers_dirty + now.buffers_failed
                     + now.buffers_taken, ==, now.buffers);
  return now;
}

static void
wait_none_reading (struct world *w)
{
  while (count_reading (w) > 0)
    g_usleep (1000);
}

static void
test_idle (struct world *w)
{
  struct stats_now now;

  open_readahead (w, 64 * U, 600, 4);   /* engine_now looks 256 at a time */
  now = look (w);
  g_assert_cmpfloat (now.buffers_free, ==, 600);
  g_assert_cmpfloat (now.connections, ==, 2);
  g_assert_cmpfloat (now.dirty_bytes + now.failed_bytes + now.in_flight
                     + now.writers + now.hit_ratio, ==, 0);
  world_close (w, 1);
  g_assert_cmpfloat (look (w).connections, ==, 1);
}

static void
test_prefetch (struct world *w)
{
  int hold;
  struct stats_now now;

  open_readahead (w, 64 * U, 16, 4);
  hold = start_held_stream (w, 0);
  now = look (w);
  g_assert_cmpfloat (now.buffers_reading, ==, count_reading (w));
  g_assert_cmpfloat (now.in_flight, >, 0);
  g_assert_cmpfloat (now.in_flight, <=, now.buffers_reading);
  gate_release (w->gate, hold);
  wait_none_reading (w);
  now = look (w);
  g_assert_cmpfloat (now.buffers_clean, ==, count_held (w));
  g_assert_cmpfloat (now.buffers_clean, >, 0);
}

/* The threads of the pool that are in the plugin, and the rest of them. */
static void
test_threads (struct world *w)
{
  struct stats_now now;
  int hold;

  open_writeback (w, 64 * U, 16, 4);
  now = look (w);
  g_assert_cmpfloat (now.threads, ==, 1);
  g_assert_cmpfloat (now.threads_busy, ==, 0);
  g_assert_cmpfloat (now.read_limit.value, ==, 16);
  g_assert_cmpfloat (now.write_limit.value, ==, 16);
  g_assert_cmpfloat (now.write_limit.reason, ==, LIMIT_IS_FIXED);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 3, 1);
  gate_wait_held (w->gate, hold, 3);
  now = look (w);
  g_assert_cmpfloat (now.threads, ==, 3);
  g_assert_cmpfloat (now.threads_busy, ==, 3);
  g_assert_cmpfloat (now.in_flight, ==, 3);
  g_assert_cmpfloat (now.buffers_dirty, ==, 3);
  g_assert_cmpfloat (now.dirty_bytes, ==, 3 * U);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  now = look (w);
  g_assert_cmpfloat (now.in_flight + now.dirty_bytes, ==, 0);
}

/* Contexts have threads of their own. */
static void
test_contexts (struct world *w)
{
  struct stats_now now;

  open_readahead (w, 8 * U, 16, 4);
  prefetch (w, 0, 6);
  now = look (w);
  g_assert_cmpfloat (now.contexts, >, 0);
  g_assert_cmpfloat (now.contexts, <=, w->e->config.contexts - 1);
  g_assert_cmpfloat (now.threads, >, 1);
  g_assert_cmpfloat (now.threads, <=, 1 + w->e->config.contexts - 1);
}

/* Bytes, and not buffers, are waiting.  A newer change replaces some. */
static void
test_waiting (struct world *w)
{
  struct stats_now now;

  open_writeback (w, 64 * U, 16, 4);
  do_write (w, 0, 4096, 0, 1);
  do_write (w, 0, 1000, U, 1);
  now = look (w);
  g_assert_cmpfloat (now.buffers_dirty, ==, 2);
  g_assert_cmpfloat (now.dirty_bytes, ==, 5096);
  do_flush (w, 0);
  make_failed (w, 0, 4096, 4096, 1, ENOSPC);
  now = look (w);
  g_assert_cmpfloat (now.buffers_failed, ==, 1);
  g_assert_cmpfloat (now.failed_bytes, ==, 4096);
  g_assert_cmpfloat (now.dirty_bytes, ==, 0);
  do_fua (w, 0, 1024, 5120, 2); /* two pieces are left */
  g_assert_cmpfloat (look (w).failed_bytes, ==, 3072);
  do_flush (w, 0);
  g_assert_cmpfloat (look (w).failed_bytes, ==, 0);
}

static void
test_writers (struct world *w)
{
  struct task *write;
  int hold;

  open_writeback (w, 64 * U, 2, 2);
  make_patient (w, 0);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 2, 1);
  gate_wait_held (w->gate, hold, 2);
  write = start_blocked (w, 0, WRITE, U, 2 * U, 1);
  g_assert_cmpfloat (look (w).writers, ==, 1);
  gate_release (w->gate, hold);
  task_ends (write, 0);
  g_assert_cmpfloat (look (w).writers, ==, 0);
}

/* Wasted prefetches. */

static void
assert_waste (struct world *w, uint64_t bytes, unsigned unread)
{
  assert_counter (w, STATS_AHEAD_WASTED, bytes);
  assert_counter (w, STATS_AHEAD_UNREAD, unread);
}

/* A stream is read to its end, but for one unit and a half. */
static void
test_waste (struct world *w)
{
  uint64_t used;

  open_readahead (w, 8 * U, 16, 4);
  prefetch (w, 0, 6);
  do_read (w, 0, U, 2 * U, OLD);
  assert_waste (w, 0, 0);       /* a client may still read the rest */
  do_read (w, 0, U / 2, 3 * U, OLD);
  do_zero (w, 1, 4096, 3 * U);
  assert_waste (w, U / 2, 0);
  do_zero (w, 1, 4096, 4 * U);
  assert_waste (w, U / 2 + U, 1);
  do_read (w, 0, U, 5 * U, OLD);
  world_close (w, 0);           /* drops the last two */
  assert_waste (w, U / 2 + 3 * U, 3);
  used = stats_counter (w->e->stats, STATS_AHEAD_USED);
  assert_counter (w, STATS_AHEAD_BYTES, used + U / 2 + 3 * U);
}

/* A client skips a part of a unit: those bytes are wasted, and no others. */
static void
test_skipped (struct world *w)
{
  open_readahead (w, 64 * U, 16, 16);
  prefetch (w, 0, 8);
  do_read (w, 0, U, 5 * U + U / 2, OLD);
  do_read (w, 0, U, 6 * U + U / 2, OLD);
  assert_states (w, BUF_CLEAN, 2 * U, 4 * U, 0);
  assert_waste (w, 3 * U + U / 2, 3);
}

/* A prefetch becomes stale before it has its data. */
static void
test_stale (struct world *w)
{
  int hold;

  open_readahead (w, 4 * U, 16, 4);
  hold = start_held_stream (w, 0);
  do_zero (w, 1, 4096, 2 * U);
  assert_waste (w, 0, 0);
  gate_release (w->gate, hold);
  wait_none_reading (w);
  assert_waste (w, U, 1);
}

/* A failed one has no data to waste. */
static void
test_failed (struct world *w)
{
  int fail;

  open_readahead (w, 4 * U, 16, 4);
  fail = gate_fail (w->gate, GATE_READ, 2 * U, 2 * U, EIO, -1);
  start_stream (w, 0);
  wait_none_reading (w);
  g_assert_cmpuint (stats_counter (w->e->stats, STATS_AHEAD_FAILED), >, 0);
  assert_waste (w, 0, 0);
  gate_release (w->gate, fail);
}

static const struct test tests[] = {
  { "now/idle", test_idle },
  { "now/prefetch", test_prefetch },
  { "now/threads", test_threads, .on = POOL_ONLY },
  { "now/contexts", test_contexts, .on = CONTEXTS_ONLY },
  { "now/waiting", test_waiting },
  { "now/writers", test_writers, .on = PARALLEL },
  { "now/waste", test_waste },
  { "now/waste/skipped", test_skipped },
  { "now/waste/stale", test_stale, .on = PARALLEL },
  { "now/waste/failed", test_failed },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
