/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sizes: the plugin's block sizes, and devices that are no multiple of the
 * unit.
 *
 * Operations keep the plugin's minimum and maximum block size.  A request that
 * the plugin may refuse reaches it whole, so that it does all of it or nothing.
 */
#include "world.h"

/* The last unit of a device is shorter, and a buffer is full at the end of the
 * device.
 */
static void
test_odd (struct world *w)
{
  uint64_t size = 3 * U + 4096 + 512;

  open_readahead (w, size, 8, 4);
  do_write (w, 0, 512, size - 512, 1);  /* fills its buffer */
  gate_wait_ended (w->gate, GATE_WRITE, ANYWHERE, 1);
  do_write (w, 0, 4096, 3 * U, 2);
  assert_reads (w, 1, PARTS ({ 2 * U, U, OLD }, { 3 * U, 4096, 2 },
                             { size - 512, 512, 1 }));
  do_flush (w, 1);
  assert_devices (w->f, PARTS ({ 2 * U, U, OLD }, { 3 * U, 4096, 2 },
                               { size - 512, 512, 1 }));
}

/* Block sizes. */

/* Opens connection 0 over a plugin with these block sizes. */
static void
open_with (struct world *w, uint32_t min_block, uint32_t max_block)
{
  struct backend b = world_backend (w, 0);

  b.min_block = min_block;
  b.max_block = max_block;
  world_open_as (w, 0, "", &b);
}

/* Larger prefetches. */

enum { LARGE = 8, DEVICE_UNITS = 256 };

/* A device of DEVICE_UNITS, with large buffers of LARGE units, too.  However
 * long operations take here, the limit tests no other size.
 */
static void
open_large (struct world *w, unsigned buffers, unsigned more)
{
  struct engine_config c = config (buffers, more, WRITE_BEHIND, READ_AHEAD);

  c.adapts_to = c.large_buffers = buffers;
  c.large_size = LARGE * U;
  world_start (w, DEVICE_UNITS * U, c);
  world_open (w, 0, "");
  w->c[0]->device->read_limit.size_interval = UINT_MAX;
}

static unsigned
count_reads_of (struct world *w, uint32_t count)
{
  unsigned n = 0;

  for (unsigned i = 0; i < gate_started (w->gate, GATE_READ, ANYWHERE); i++)
    n += gate_op (w->gate, GATE_READ, ANYWHERE, i).count == count;
  return n;
}

/* Prefetches become larger with the window, up to a buffer, and no prefetch
 * goes beyond its unit.  Reads of any size find the data, and the plugin reads
 * no byte twice.
 */
static void
test_large (struct world *w)
{
  uint64_t bytes = 0;

  open_large (w, 8, 2);
  start_stream (w, 0);
  set_window (w, 0, 8 * LARGE);
  for (unsigned i = 2; i < 62; i += 4)
    do_read (w, 0, 4 * U, i * U, OLD);
  g_assert_cmpuint (count_reads_of (w, LARGE * U), >=, 4);
  for (unsigned i = 62; i < DEVICE_UNITS - 3; i += 3)
    do_read (w, 0, 3 * U, i * U, OLD);
  for (unsigned i = 0; i < gate_started (w->gate, GATE_READ, ANYWHERE); i++) {
    struct gate_op op = gate_op (w->gate, GATE_READ, ANYWHERE, i);

    g_assert_cmpuint (op.offset % (LARGE * U) + op.count, <=, LARGE * U);
    bytes += op.count;
  }
  g_assert_cmpuint (bytes, <=, DEVICE_UNITS * U);
  do_write (w, 0, 2 * U, 60 * U, 1);
  assert_reads (w, 0, PARTS ({ 58 * U, 2 * U, OLD }, { 60 * U, 2 * U, 1 },
                             { 62 * U, 20 * U, OLD }));
}

/* A large prefetch leaves out what a buffer holds. */
static void
test_large_around (struct world *w)
{
  int hold;

  open_large (w, 8, 2);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 512, 20 * U + 512, 1);
  start_stream (w, 0);
  set_window (w, 0, 8 * LARGE);
  for (unsigned i = 2; i < 20; i++)
    do_read (w, 0, U, i * U, OLD);
  assert_reads (w, 0, PARTS ({ 20 * U, 512, OLD }, { 20 * U + 512, 512, 1 },
                             { 20 * U + KIB, U - KIB, OLD }));
  for (unsigned i = 21; i < 40; i++)
    do_read (w, 0, U, i * U, OLD);
  gate_release (w->gate, hold);
}

/* Without a free large buffer, prefetches have one unit. */
static void
test_large_few (struct world *w)
{
  struct buf *taken[7];
  int hold;

  open_large (w, 8, 2);
  set_window (w, 0, 8 * LARGE);
  {
    LOCK_IN_SCOPE (&w->e->lock);
    for (unsigned i = 0; i < G_N_ELEMENTS (taken); i++)
      taken[i] = buffers_take_for_group (w->c[0]);
  }
  hold = start_held_stream (w, 0);
  assert_states (w, BUF_READING, 0, DEVICE_UNITS * U, 1 + 8);
  {
    LOCK_IN_SCOPE (&w->e->lock);
    for (unsigned i = 0; i < G_N_ELEMENTS (taken); i++)
      buffers_put_group (taken[i]);
  }
  gate_release (w->gate, hold);
  for (unsigned i = 2; i < DEVICE_UNITS; i++)
    do_read (w, 0, U, i * U, OLD);
  g_assert_cmpuint (count_reads_of (w, LARGE * U), >, DEVICE_UNITS / LARGE / 4);
}

/* A client that writes what it has read still finds the rest prefetched. */
static void
test_large_in_place (struct world *w)
{
  uint64_t bytes = 0;

  open_large (w, 8, 2);
  start_stream (w, 0);
  set_window (w, 0, 8 * LARGE);
  for (unsigned i = 2; i < DEVICE_UNITS; i++) {
    do_read (w, 0, U, i * U, OLD);
    conn_wait_for_prefetches (w->c[0]);
    do_write (w, 0, U, i * U, 1);
    do_flush (w, 0);
  }
  for (unsigned i = 0; i < gate_started (w->gate, GATE_READ, ANYWHERE); i++)
    bytes += gate_op (w->gate, GATE_READ, ANYWHERE, i).count;
  g_assert_cmpuint (count_reads_of (w, LARGE * U), >, DEVICE_UNITS / LARGE / 2);
  g_assert_cmpuint (bytes, <, DEVICE_UNITS * U * 5 / 4);
  assert_reads (w, 0, PARTS ({ 0, 2 * U, OLD }, { 2 * U, 30 * U, 1 }));
}

/* Reads in sequence until a large buffer has the bytes from unit LARGE on. */
static void
prefetch_large (struct world *w)
{
  start_stream (w, 0);
  set_window (w, 0, 8 * LARGE);
  for (unsigned i = 2; i < LARGE; i++)
    do_read (w, 0, U, i * U, OLD);
  conn_wait_for_prefetches (w->c[0]);
  g_assert_cmpuint (gate_started (w->gate, GATE_READ, LARGE * U, U), ==, 1);
}

/* The rest of a large prefetch begins at a whole block after a change of less
 * than one.
 */
static void
test_large_min_block (struct world *w)
{
  struct engine_config c = config (8, 2, WRITE_BEHIND, READ_AHEAD);

  c.adapts_to = c.large_buffers = 8;
  c.large_size = LARGE * U;
  world_start (w, DEVICE_UNITS * U, c);
  open_with (w, 4096, UINT32_MAX);
  w->c[0]->device->read_limit.size_interval = UINT_MAX;
  prefetch_large (w);
  do_write (w, 0, 512, LARGE * U, 1);
  assert_reads (w, 0, PARTS ({ LARGE * U, 512, 1 },
                             { LARGE * U + 512, U - 512, OLD }));
  do_read (w, 0, U, (LARGE + 1) * U, OLD);
  g_assert_cmpuint (gate_started (w->gate, GATE_READ, (LARGE + 1) * U, U), ==,
                    1);
  for (unsigned i = 0; i < gate_started (w->gate, GATE_READ, ANYWHERE); i++) {
    struct gate_op op = gate_op (w->gate, GATE_READ, ANYWHERE, i);

    g_assert_cmpuint (op.offset % 4096, ==, 0);
    g_assert_cmpuint (op.count % 4096, ==, 0);
  }
}

/* Failed data is there in place of the beginning of a large prefetch: a read of
 * both needs nothing from the plugin.
 */
static void
test_large_failed (struct world *w)
{
  open_large (w, 8, 2);
  prefetch_large (w);
  make_failed (w, 0, U, LARGE * U, 1, ENOSPC);          /* forgets the reads */
  assert_reads (w, 0, PARTS ({ LARGE * U, U, 1 }, { (LARGE + 1) * U, U, OLD }));
  assert_started (w, GATE_READ, LARGE * U, 2 * U, 0);
}

/* With more readers than large buffers, each reader has a part of the usual
 * ones.
 */
static void
test_large_many_readers (struct world *w)
{
  struct engine_config c = config (8, 2, WRITE_BEHIND, READ_AHEAD);

  c.adapts_to = 8;
  c.large_buffers = 1;
  c.large_size = LARGE * U;
  world_start (w, DEVICE_UNITS * U, c);
  world_open (w, 0, "");
  world_open (w, 1, "");
  for (unsigned i = 0; i < 20; i++)
    for (unsigned n = 0; n < 2; n++)
      do_read (w, n, U, (100 * n + i) * U, OLD);
  g_assert_cmpuint (stats_counter (w->e->stats, STATS_AHEAD_USED), >=, 30 * U);
}

/* If the limit counts usual operations, no prefetch is larger.  What was
 * prefetched before is still read.
 */
static void
test_large_no_more (struct world *w)
{
  unsigned n;

  open_large (w, 8, 2);
  start_stream (w, 0);
  set_window (w, 0, 8 * LARGE);
  for (unsigned i = 2; i < 30; i++)
    do_read (w, 0, U, i * U, OLD);
  conn_wait_for_prefetches (w->c[0]);
  n = count_reads_of (w, LARGE * U);
  g_assert_cmpuint (n, >, 0);
  atomic_store (&w->c[0]->device->read_limit.is_large, false);
  for (unsigned i = 30; i < DEVICE_UNITS; i++)
    do_read (w, 0, U, i * U, OLD);
  g_assert_cmpuint (count_reads_of (w, LARGE * U), ==, n);
}

/* A large buffer gives its memory back, too, and shows no bytes of another
 * device.
 */
static void
test_large_memory (struct world *w)
{
  struct engine_config c = config (4, 2, WRITE_BEHIND, READ_AHEAD);
  const struct buf *b;

  c.adapts_to = c.large_buffers = 4;
  c.large_size = LARGE * U;
  c.idle_ns = 1000000;
  world_start (w, DEVICE_UNITS * U, c);
  world_open (w, 0, "");
  start_stream (w, 0);
  set_window (w, 0, 4 * LARGE);
  for (unsigned i = 2; i < 30; i++)
    do_read (w, 0, U, i * U, OLD);
  b = &w->e->buffers.all[4];
  g_assert_true (b->is_large);
  stop_readahead (w, 0);
  make_older (w, STREAM_IDLE_NS);
  stop_reading (w, STREAM_IDLE_NS);
  wait_without_memory (w);
  for (unsigned i = 0; i < LARGE * U; i++)
    g_assert_cmpint (b->data[i], ==, 0);
  do_read (w, 0, U, 30 * U, OLD);
}

/* No operation is larger than the plugin's maximum block size, which need not
 * be a power of two.
 */
static void
test_max_block (struct world *w)
{
  struct engine_config c = config (16, 4, WRITE_BEHIND, READ_AHEAD);
  uint32_t max = 96 * KIB;

  c.buffer_size = 256 * KIB;
  world_start (w, 2048 * KIB, c);
  open_with (w, 1, max);
  for (unsigned i = 0; i < 16; i++)
    do_write (w, 0, 16 * KIB, 512 * KIB + i * 16 * KIB, 1);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 4);
  for (unsigned i = 0; i < 4; i++)
    g_assert_cmpuint (gate_op (w->gate, GATE_WRITE, ANYWHERE, i).count, ==, U);
  for (uint64_t offset = 0; offset < 512 * KIB; offset += 32 * KIB)
    do_read (w, 0, 32 * KIB, offset, OLD);
  do_read (w, 0, 32 * KIB, 512 * KIB, 1);
  world_close (w, 0);
  g_assert_cmpuint (gate_started (w->gate, GATE_READ, ANYWHERE), >, 4);
  for (unsigned i = 0; i < gate_started (w->gate, GATE_ANY, ANYWHERE); i++)
    g_assert_cmpuint (gate_op (w->gate, GATE_ANY, ANYWHERE, i).count, <=, max);
}

/* Writes that are no whole blocks are direct, in order with deferred ones.  A
 * minimum above the buffer size is refused.
 */
static void
test_min_block (struct world *w)
{
  struct backend b;

  world_start (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  open_with (w, 4096, UINT32_MAX);
  do_write (w, 0, 4096, 0, 1);
  assert_started (w, GATE_WRITE, ANYWHERE, 0);
  /* Not whole blocks. */
  do_write (w, 0, 512, 1024, 2);
  assert_ended (w, GATE_WRITE, ANYWHERE, 2);
  do_write (w, 0, 4096, 512, 3);
  assert_ended (w, GATE_WRITE, ANYWHERE, 3);
  assert_devices (w->f, PARTS ({ 0, 512, 1 }, { 512, 4096, 3 },
                               { 4608, 100, OLD }));
  world_close (w, 0);

  b = world_backend (w, 0);
  b.min_block = 2 * U;
  g_assert_cmpint (conn_open (w->e, "", &b, &w->c[0]), ==, EINVAL);
  w->c[0] = NULL;
}

/* A unit may be as large as the maximum block size, and the minimum as large as
 * a unit.  A write of half blocks is direct, wherever it begins.
 */
static void
test_limits (struct world *w)
{
  world_start (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  open_with (w, 4096, U);
  g_assert_cmpuint (w->c[0]->unit, ==, U);
  do_write (w, 0, 512, 4096, 2);        /* at the beginning of a block */
  assert_device (w->f, 512, 4096, 2);
  world_close (w, 0);
  open_with (w, U, UINT32_MAX);
}

/* A part of a block at the end of the device is not prefetched. */
static void
test_end (struct world *w)
{
  world_start (w, 3 * U + 4096 + 512, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  open_with (w, 4096, UINT32_MAX);
  prefetch (w, 0, 2);
  for (unsigned i = 0; i < gate_started (w->gate, GATE_ANY, ANYWHERE); i++)
    g_assert_cmpuint (gate_op (w->gate, GATE_ANY, ANYWHERE, i).count % 4096,
                      ==, 0);
}

/* Requests that the plugin may refuse. */

/* Which rule the request breaks. */
enum breaks { COUNT, OFFSET, MAX_BLOCK };

/* Exactly one operation of KIND, the whole request. */
static void
assert_whole (struct world *w, unsigned kind, uint32_t count, uint64_t offset)
{
  struct gate_op op = gate_op (w->gate, kind, ANYWHERE, 0);

  assert_started (w, kind, ANYWHERE, 1);
  g_assert_cmpuint (op.offset, ==, offset);
  g_assert_cmpuint (op.count, ==, count);
}

/* Such a request is one operation.  If the plugin refuses it, nothing has
 * changed.  Otherwise waiting data is laid over what it reads, and it keeps its
 * order as a write.
 */
static void
test_refusable (struct world *w)
{
  enum breaks breaks = w->arg;
  uint64_t offset = breaks == OFFSET ? 512 : 0;
  uint32_t count = breaks == COUNT ? 3 * U + 512 : 3 * U;
  int fail, hold;

  world_start (w, 16 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  open_with (w, 4096, breaks == MAX_BLOCK ? 2 * U : UINT32_MAX);

  fail = gate_fail (w->gate, GATE_READ | GATE_WRITE, offset, 512, EINVAL, -1);
  request_fails (w, 0, WRITE, count, offset, 1, EINVAL);
  assert_whole (w, GATE_WRITE, count, offset);
  assert_device (w->f, 16 * U, 0, OLD);
  request_fails (w, 0, READ, count, offset, 1, EINVAL);
  assert_whole (w, GATE_READ, count, offset);
  gate_release (w->gate, fail);

  gate_forget (w->gate);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, U, 2);             /* a whole unit */
  do_write (w, 0, 4096, 2 * U, 3);      /* a part of one */
  assert_reads (w, 0, PARTS ({ offset, U - offset, OLD }, { U, U, 2 },
                             { 2 * U, 4096, 3 },
                             { 2 * U + 4096, count + offset - 2 * U - 4096,
                               OLD }));
  assert_whole (w, GATE_READ, count, offset);
  gate_release (w->gate, hold);

  do_flush (w, 0);
  gate_forget (w->gate);
  do_write (w, 0, count, offset, 4);
  assert_whole (w, GATE_WRITE, count, offset);
  do_write (w, 0, U, 0, 5);             /* deferred */
  do_write (w, 0, count, offset, 6);
  assert_device (w->f, offset, 0, 5);
  assert_device (w->f, count, offset, 6);
}

/* Such a read neither makes a stream nor is served from one. */
static void
test_refusable_stream (struct world *w)
{
  world_start (w, 64 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  open_with (w, 4096, U);
  for (unsigned i = 0; i < 8; i++)
    do_read (w, 0, 2 * U, i * 2 * U, OLD);
  assert_started (w, GATE_READ, ANYWHERE, 8);
  prefetch (w, 0, 2);
  /* Something beside the server changes the device. */
  fill (fake_data (w->f) + 2 * U, 2 * U, 2 * U, 1);
  do_read (w, 0, 2 * U, 2 * U, 1);
}

/* If the device bears more than the large buffers, a reader uses the usual
 * ones, too.
 */
static void
test_bears_more (struct world *w)
{
  enum { BUFFERS = 8 };
  struct limit *l;
  uint32_t units;

  open_large (w, BUFFERS, 4);
  l = &w->c[0]->device->read_limit;
  atomic_store (&l->value, BUFFERS);
  LOCK_IN_SCOPE (&w->e->lock);
  g_assert_cmpuint (buffers_share (w->c[0], &units), ==, BUFFERS * LARGE);
  atomic_store (&l->bears_more, true);
  g_assert_cmpuint (buffers_share (w->c[0], &units), ==,
                    BUFFERS * LARGE + BUFFERS);
}

static const struct test tests[] = {
  { "sizes/odd", test_odd },
  { "sizes/large", test_large },
  { "sizes/large-around", test_large_around },
  { "sizes/large-few", test_large_few },
  { "sizes/large-in-place", test_large_in_place },
  { "sizes/large-min-block", test_large_min_block },
  { "sizes/large-failed", test_large_failed },
  { "sizes/large-many-readers", test_large_many_readers },
  { "sizes/large-no-more", test_large_no_more },
  { "sizes/large-bears-more", test_bears_more, .on = POOL_ONLY },
  { "sizes/large-memory", test_large_memory },
  { "sizes/max-block", test_max_block },
  { "sizes/min-block", test_min_block },
  { "sizes/limits", test_limits },
  { "sizes/end", test_end },
  { "sizes/refusable/count", test_refusable, COUNT },
  { "sizes/refusable/offset", test_refusable, OFFSET },
  { "sizes/refusable/max-block", test_refusable, MAX_BLOCK },
  { "sizes/refusable-stream", test_refusable_stream },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
