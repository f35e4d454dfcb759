/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The slab: which request gets a buffer, and which one waits.
 *
 * The number of buffers is fixed.  Prefetched data gives way to writers until
 * both have half of the buffers.  When no buffer is free, or the device is at
 * its limit, a writer waits (back-pressure).  When all buffers hold failed
 * data, no request waits: it gets an error, or goes to the plugin.  A buffer
 * that is not used for a while gives its memory back.
 */
#include <time.h>

#include "buffers.h"
#include "clock.h"
#include "world.h"

/* The buffer that became free last is taken first. */
static void
test_reuse (struct world *w)
{
  const void *first = NULL;

  open_writeback (w, 8 * U, 4, 4);
  for (unsigned i = 0; i < 3; i++) {
    int hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);

    do_write (w, 0, U, i * U, 1);
    if (i == 0)
      first = buffer_of_unit (w, 0);
    g_assert_true (buffer_of_unit (w, i) == first);
    gate_release (w->gate, hold);
    do_flush (w, 0);
  }
}

/* Writes that would fill more than all buffers, on whichever connection, are
 * direct.  The plugin does them at once; in the buffers they would wait for
 * each other.
 */
static void
test_filling (struct world *w)
{
  struct task *large, *other;
  int hold;

  open_writeback (w, 32 * U, 4, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 4 * U, 0, 1);
  g_assert_cmpuint (count_dirty (w, 0), ==, 4);
  gate_release (w->gate, hold);
  do_flush (w, 0);

  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  large = start_held (w, hold, 0, WRITE, 5 * U, 8 * U, 2);
  task_wait_blocked (large);
  other = task_start (w, 1, WRITE, U, 16 * U, 2);
  gate_wait_held (w->gate, hold,
                  gate_started (w->gate, GATE_WRITE, 8 * U, 5 * U) + 1);
  task_wait_blocked (other);
  g_assert_cmpuint (count_dirty (w, 0), ==, 0);
  do_write (w, 1, 4096, 20 * U, 2);     /* many small ones fill one buffer */
  g_assert_cmpuint (count_dirty (w, 0), ==, 1);
  gate_release (w->gate, hold);
  task_ends (large, 0);
  task_ends (other, 0);
  do_flush (w, 0);

  /* As if it were long ago. */
  atomic_store (&w->e->writeback.filling.epoch_ns, 0);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 1, U, 0, 3);
  g_assert_cmpuint (count_dirty (w, 0), ==, 1);
  gate_release (w->gate, hold);
}

/* Back-pressure. */

/* As if a write took an hour: a writer that waits looks again when something
 * wakes it, and not before.
 */
static void
make_very_slow (struct world *w)
{
  for (unsigned i = 0; i < CONNS; i++)
    if (w->c[i])
      speed_note (w->c[i]->backend.write_speed, HOUR_NS, 1);
  make_older (w, -HOUR_NS);     /* no prefetched data is idle in time, either */
}

/* A writer waits for a buffer, and gets the first that becomes free.  OPEN
 * buffers are written meanwhile.
 */
static void
test_wait (struct world *w)
{
  struct task *write;
  int hold;

  open_writeback (w, 8 * U, 4, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 3, 1);
  do_write (w, 0, 4096, 3 * U, 1);      /* OPEN */
  make_very_slow (w);
  write = task_start (w, 1, WRITE, U, 5 * U, 2);
  gate_wait_held (w->gate, hold, 4);       /* the writer has it written */
  task_wait_blocked (write);
  assert_started (w, GATE_WRITE, 5 * U, U, 0);
  gate_pass (w->gate, hold, 1);
  task_ends (write, 0);
  do_read (w, 0, U, 5 * U, 2);
  assert_noted (w, STATS_SPACE_WAIT, 1);
  gate_release (w->gate, hold);
  do_flush (w, 0);
}

/* Several writers wait.  Each buffer that becomes free goes to the first of
 * them.  No buffer is kept OPEN while others wait.
 */
static void
test_wait_order (struct world *w)
{
  struct task *write[3];
  int hold;

  open_writeback (w, 8 * U, 4, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 4, 1);
  gate_wait_held (w->gate, hold, 4);
  make_patient (w, 0);
  for (unsigned i = 0; i < 3; i++)
    write[i] = start_blocked (w, i % 2, WRITE, 4096, (5 + i) * U, 2 + i);
  for (unsigned i = 0; i < 3; i++) {
    gate_pass (w->gate, hold, 1);
    task_ends (write[i], 0);
    if (i < 2)
      gate_wait_held (w->gate, hold, 4);
  }
  assert_states (w, BUF_OPEN, 7 * U, U, 1);
  for (unsigned i = 0; i < 3; i++)
    do_read (w, 0, 4096, (5 + i) * U, 2 + i);
  assert_noted (w, STATS_SPACE_WAIT, 3);
  assert_counter (w, STATS_DEFERRED, 7);
  gate_release (w->gate, hold);
  do_flush (w, 0);
}

/* The statistics count one barrier for a flush that waits, and one wait for a
 * buffer.
 */
static void
test_wait_counters (struct world *w)
{
  struct task *flush, *write;
  int first, rest;

  open_writeback (w, 8 * U, 4, 4);
  first = gate_hold (w->gate, GATE_WRITE, 0, U);
  rest = gate_hold (w->gate, GATE_WRITE, U, 0);
  write_units (w, 0, 0, 4, 1);
  flush = start_blocked_flush (w, 0);
  write = start_blocked (w, 1, WRITE, U, 5 * U, 2);
  gate_release (w->gate, first);
  task_ends (write, 0);
  task_wait_blocked (flush);
  gate_release (w->gate, rest);
  task_ends (flush, 0);
  assert_counter (w, STATS_BARRIERS, 1);
  assert_noted (w, STATS_SPACE_WAIT, 1);
}

/* Two writers wait, and one read makes two buffers free at once.  The first
 * writer wakes the second; nothing else does.
 */
static void
test_wait_two (struct world *w)
{
  struct task *read, *write[2];
  int hold_read, hold_write;

  open_readahead (w, 16 * U, 4, 4);
  prefetch (w, 0, 4);
  make_older (w, 0);
  hold_read = gate_hold (w->gate, GATE_READ, 4 * U, U);
  hold_write = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 1, 10, 2, 1);
  stop_readahead (w, 0);
  /* It uses up two buffers, and waits for the unit that is held. */
  read = start_held (w, hold_read, 0, READ, 3 * U, 2 * U, OLD);
  make_very_slow (w);
  for (unsigned i = 0; i < 2; i++)
    write[i] = start_blocked (w, 1, WRITE, U, (12 + i) * U, 1);
  gate_release (w->gate, hold_read);
  task_ends (read, 0);
  for (unsigned i = 0; i < 2; i++)
    task_ends (write[i], 0);
  gate_release (w->gate, hold_write);
}

/* All buffers hold failed data while a writer waits.  It gets an error.
 * Requests elsewhere go to the plugin.
 */
static void
test_failed (struct world *w)
{
  bool other = w->arg;          /* the waiting one is of another export */
  struct task *write;
  int hold, fail;

  open_writeback (w, 8 * U, 4, 4);
  world_open (w, 2, "other");
  hold = gate_hold (w->gate, GATE_WRITE, 0, 4 * U);
  fail = gate_fail (w->gate, GATE_WRITE, 0, 6 * U, EIO, -1);
  write_units (w, 0, 0, 4, 1);
  make_patient (w, other ? 2 : 1);
  write = start_blocked (w, other ? 2 : 1, WRITE, U, 5 * U, 2);
  gate_release (w->gate, hold);
  task_ends (write, EIO);
  wait_state (w, BUF_FAILED, 0, 4 * U, 4);
  for (unsigned i = 0; i < 3; i++) {
    request_fails (w, i, WRITE, 4096, 5 * U, 3, EIO);
    do_write (w, i, U, 7 * U, i);
    do_read (w, i, U, 7 * U, i);
    do_zero (w, i, U, 7 * U);
  }
  do_read (w, 1, 4 * U, 0, 1);
  flush_fails (w, 1, EIO);
  gate_release (w->gate, fail);
  do_flush (w, 1);
  assert_device (w->f, 4 * U, 0, 1);
  do_write (w, 0, 4096, 0, 2);
  assert_states (w, BUF_OPEN, 0, U, 1);
}

/* With many threads at work a write may be left for one of them.  Where they
 * hang, an idle thread takes it.
 */
static void
test_threads (struct world *w)
{
  enum { THREADS = 200 };
  struct engine_config c = config (THREADS, THREADS, WRITE_BEHIND, READ_DIRECT);
  int hold;

  c.linger_ns = 1000000;
  world_init (w, (THREADS + 1) * U, c);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, THREADS - 20, 1);
  gate_wait_held (w->gate, hold, w->hooked ? 1 : THREADS - 20);
  gate_release (w->gate, hold);
}

/* Prefetched data and writers. */

/* Prefetched data gives way to writers, the far end first, until each have
 * half, and all of it once its client reads no more.  The stream prefetches
 * again the units that it has lost.
 */
static void
test_evict (struct world *w)
{
  struct task *write;
  int hold;

  open_readahead (w, 16 * U, 4, 4);
  prefetch (w, 0, 4);
  make_older (w, 0);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  for (unsigned i = 0; i < 2; i++) {
    do_write (w, 1, U, (10 + i) * U, 1);
    assert_states (w, BUF_CLEAN, 2 * U, (3 - i) * U, 3 - i);
    assert_states (w, BUF_CLEAN, 0, 16 * U, 3 - i);
  }
  assert_noted (w, STATS_SPACE_WAIT, 0);
  write = start_blocked (w, 1, WRITE, U, 12 * U, 1);
  g_assert_cmpuint (w->c[0]->evicted_at, ==, 4 * U);  /* the first of them */
  make_older (w, STREAM_IDLE_NS);
  stop_reading (w, STREAM_IDLE_NS);
  task_ends (write, 0);
  assert_states (w, BUF_CLEAN, 0, 16 * U, 0);
  do_write (w, 1, U, 13 * U, 1);
  gate_release (w->gate, hold);
  do_flush (w, 1);
  do_read (w, 0, U, 2 * U, OLD);
  wait_state (w, BUF_CLEAN, 4 * U, 2 * U, 2);
}

/* Prefetched data that reads copy from does not give way.  It does once a read
 * has ended and has left a part of it.
 */
static void
test_evict_pinned (struct world *w)
{
  struct task *read[2], *write;
  int hold[2], hold_write;

  open_readahead (w, 16 * U, 3, 3);
  prefetch (w, 0, 3);
  make_older (w, 0);
  stop_readahead (w, 0);
  stop_readahead (w, 1);
  hold_write = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 1, U, 10 * U, 1);        /* in place of unit 4 */
  hold[0] = gate_hold (w->gate, GATE_READ, U, U);
  hold[1] = gate_hold (w->gate, GATE_READ, 4 * U, U);
  for (unsigned i = 0; i < 2; i++)      /* of units 2 and 3 each a part */
    read[i] = start_held (w, hold[i], i, READ, U, (1 + 2 * i) * U + 512, OLD);
  make_very_slow (w);
  write = start_blocked (w, 1, WRITE, U, 11 * U, 1);
  assert_states (w, BUF_CLEAN, 2 * U, 2 * U, 2);
  gate_release (w->gate, hold[0]);
  task_ends (read[0], 0);
  task_ends (write, 0);
  assert_states (w, BUF_CLEAN, 2 * U, 2 * U, 1);
  gate_release (w->gate, hold[1]);
  task_ends (read[1], 0);
  gate_release (w->gate, hold_write);
}

/* A writer looks again when prefetched data becomes idle, though no buffer
 * becomes free before.
 */
static void
test_evict_idle (struct world *w)
{
  int hold;

  open_readahead (w, 16 * U, 4, 4);
  prefetch (w, 0, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 1, 10, 2, 1);
  make_patient (w, 1);
  do_write (w, 1, U, 12 * U, 1);
  g_assert_cmpuint (count_state (w, BUF_CLEAN, 0, 16 * U), <, 2);
  assert_ended (w, GATE_WRITE, ANYWHERE, 0);
  gate_release (w->gate, hold);
}

/* Prefetches that wait for a worker give way as well, and no worker reads
 * them.
 */
static void
test_evict_reading (struct world *w)
{
  int hold;

  open_readahead (w, 8 * U, 4, 1);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, U);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, 1);
  assert_states (w, BUF_READING, 0, 8 * U, 4);
  do_write (w, 1, 4096, 7 * U, 1);
  assert_states (w, BUF_READING, 0, 8 * U, 3);
  do_write (w, 1, 4096, 0, 1);
  assert_states (w, BUF_READING, 0, 8 * U, 2);
  gate_release (w->gate, hold);
  wait_state (w, BUF_CLEAN, 2 * U, 2 * U, 2);
  do_flush (w, 0);
  assert_started (w, GATE_READ, 4 * U, 2 * U, 0);
  do_read (w, 0, U, 4 * U, OLD);
}

/* Prefetches do not take back what a writer took from them, until no writer has
 * taken one for STREAM_IDLE_NS.
 */
static void
test_half (struct world *w)
{
  int hold;

  open_readahead (w, 64 * U, 4, 4);
  prefetch (w, 0, 4);
  make_older (w, 0);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 1, 40, 2, 1);
  gate_release (w->gate, hold);
  do_flush (w, 1);
  do_read (w, 0, U, 2 * U, OLD);
  conn_wait_for_prefetches (w->c[0]);
  assert_states (w, BUF_CLEAN, 0, 64 * U, 2);
  assert_started (w, GATE_READ, 5 * U, U, 1);
  make_older (w, STREAM_IDLE_NS);
  do_read (w, 0, U, 3 * U, OLD);
  wait_state (w, BUF_CLEAN, 4 * U, 4 * U, 4);
}

/* While a writer waits in a full slab, nothing new is prefetched. */
static void
test_writer_first (struct world *w)
{
  struct task *write;
  int hold;

  open_readahead (w, 16 * U, 4, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 12, 4, 1);
  write = start_blocked (w, 0, WRITE, U, 11 * U, 2);
  for (unsigned i = 0; i < 4; i++)
    do_read (w, 1, U, i * U, OLD);
  assert_started (w, GATE_READ, ANYWHERE, 4);
  gate_release (w->gate, hold);
  task_ends (write, 0);
}

/* The limits of a device. */

/* A device has no more dirty buffers than its limit.  Its writers wait while
 * other buffers are free, and writers of another device do not.
 */
static void
test_limit_writes (struct world *w)
{
  struct engine_config c = config (16, 8, WRITE_BEHIND, READ_DIRECT);
  struct task *write[2];
  int hold[2];

  c.adapts_to = 3;
  open_names (w, 32 * U, c);
  hold[0] = gate_hold (w->gate, GATE_WRITE, 0, 10 * U);
  hold[1] = gate_hold (w->gate, GATE_WRITE, 20 * U, 0);
  make_very_slow (w);
  for (unsigned i = 0; i < 2; i++) {
    write_units (w, i, 20 * i, 3, 1);
    gate_wait_held (w->gate, hold[i], 3);
    write[i] = start_blocked (w, i, WRITE, 4096, (20 * i + 5) * U, 2);
  }
  assert_states (w, BUF_WRITING, 0, 32 * U, 6);
  g_assert_true (atomic_load (&w->c[0]->device->write_limit.hit));
  gate_pass (w->gate, hold[1], 1);
  task_ends (write[1], 0);
  task_wait_blocked (write[0]);
  gate_pass (w->gate, hold[0], 1);
  task_ends (write[0], 0);
  for (unsigned i = 0; i < 2; i++)
    gate_release (w->gate, hold[i]);
  do_flush (w, 0);
  do_flush (w, 1);
}

/* While a device is at its limit, small writes of another device still grow one
 * buffer.  To write that one would make no room.
 */
static void
test_limit_coalesce (struct world *w)
{
  struct engine_config c = config (16, 8, WRITE_BEHIND, READ_DIRECT);
  struct task *write;
  int hold;

  c.adapts_to = 3;
  open_names (w, 32 * U, c);
  hold = gate_hold (w->gate, GATE_WRITE, 0, 10 * U);
  make_very_slow (w);
  do_write (w, 1, 4096, 20 * U, 2);
  write_units (w, 0, 0, 3, 1);
  gate_wait_held (w->gate, hold, 3);
  write = start_blocked (w, 0, WRITE, 4096, 5 * U, 1);
  for (unsigned i = 1; i < 8; i++)
    do_write (w, 1, 4096, 20 * U + i * 4096, 2);
  assert_states (w, BUF_OPEN, 20 * U, U, 1);
  gate_release (w->gate, hold);
  task_ends (write, 0);
  do_flush (w, 1);
  assert_started (w, GATE_WRITE, 20 * U, U, 1);
  do_flush (w, 0);
}

/* Nor does it have more prefetched buffers. */
static void
test_limit_reads (struct world *w)
{
  struct engine_config c = config (16, 8, WRITE_BEHIND, READ_AHEAD);
  int hold;

  c.adapts_to = 3;
  world_init (w, 64 * U, c);
  hold = start_held_stream (w, 0);
  gate_wait_held (w->gate, hold, 3);
  assert_states (w, BUF_READING, 0, 64 * U, 3);
  gate_release (w->gate, hold);
  wait_state (w, BUF_CLEAN, 0, 64 * U, 3);
  for (unsigned i = 2; i < 30; i++) {
    do_read (w, 0, U, i * U, OLD);
    LOCK_IN_SCOPE (&w->e->lock);
    g_assert_cmpuint (w->e->buffers.n_ahead, <=, 3);
  }
}

/* Buffers that are not used for a while give their memory back. */
static void
test_give_back (struct world *w)
{
  struct engine_config c = config (8, 4, WRITE_BEHIND, READ_DIRECT);
  const struct buf *b;
  int hold;

  c.idle_ns = 1000000;
  world_init (w, 8 * U, c);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 0, 1);
  b = buffer_of_unit (w, 0);
  do_write (w, 0, U, U, 2);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  wait_without_memory (w);
  for (unsigned i = 0; i < U; i++)
    g_assert_cmpint (b->data[i], ==, 0);
  do_write (w, 0, U, 0, 3);
  do_flush (w, 0);
  do_read (w, 0, U, 0, 3);
}

/* So does prefetched data of a client that has stopped reading. */
static void
test_give_back_clean (struct world *w)
{
  struct engine_config c = config (8, 4, WRITE_BEHIND, READ_AHEAD);

  c.idle_ns = 1000000;
  world_init (w, 64 * U, c);
  prefetch (w, 0, 4);
  make_older (w, STREAM_IDLE_NS);
  stop_reading (w, STREAM_IDLE_NS);
  wait_without_memory (w);
  assert_states (w, BUF_CLEAN, 0, 64 * U, 0);
  do_read (w, 0, U, 2 * U, OLD);
}

static uint64_t
thread_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

/* To look for unused memory takes no longer in a large slab. */
static void
test_give_back_large (struct world *w)
{
  enum { BUFFERS = 16384, LOOKS = 1000 };
  struct engine_config c = config (BUFFERS, 4, WRITE_BEHIND, READ_DIRECT);
  uint64_t start_ns;

  c.idle_ns = HOUR_NS;
  world_init (w, 8 * U, c);
  do_write (w, 0, U, 0, 1);
  do_flush (w, 0);
  LOCK_IN_SCOPE (&w->e->lock);
  start_ns = thread_ns ();
  for (unsigned i = 0; i < LOOKS; i++)
    buffers_give_back (w->e, clock_ns ());
  g_assert_cmpuint (thread_ns () - start_ns, <, LOOKS * 30000);
}

static const struct test tests[] = {
  { "slab/reuse", test_reuse },
  { "slab/filling", test_filling },
  { "slab/wait", test_wait },
  { "slab/wait-order", test_wait_order },
  { "slab/wait-counters", test_wait_counters },
  { "slab/wait-two", test_wait_two },
  { "slab/failed", test_failed, false },
  { "slab/failed-other", test_failed, true },
  { "slab/threads", test_threads, .on = PARALLEL },
  { "slab/evict", test_evict },
  { "slab/evict-pinned", test_evict_pinned },
  { "slab/evict-idle", test_evict_idle },
  { "slab/evict-reading", test_evict_reading, .on = POOL_ONLY },
  { "slab/half", test_half },
  { "slab/writer-first", test_writer_first },
  { "slab/limit-writes", test_limit_writes },
  { "slab/limit-reads", test_limit_reads },
  { "slab/limit-coalesce", test_limit_coalesce },
  { "slab/give-back", test_give_back },
  { "slab/give-back-clean", test_give_back_clean },
  { "slab/give-back-large", test_give_back_large },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
