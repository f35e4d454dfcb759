/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reads: the newest data, wherever it is.
 *
 * A read takes waiting data from buffers, prefetched data from buffers, and the
 * rest from the plugin.  A change of the device makes prefetched data of these
 * bytes stale: it is dropped, also when it is still being read.
 */
#include "world.h"

/* Parts of a unit are in buffers of a state, and the rest is in the device.
 * Each connection reads the newest bytes, of any part.
 */
static void
test_states (struct world *w)
{
  enum buf_state state = w->arg;
  struct part parts[] = {
    { 0, U + 4096, OLD }, { U + 4096, 4096, 1 }, { U + 8192, 4096, OLD },
    { U + 12288, 4096, 2 }, { U + 16384, 2 * U, OLD }
  };
  int rule;

  open_writeback (w, 8 * U, 8, 4);
  rule = state == BUF_FAILED
    ? gate_fail (w->gate, GATE_WRITE, ANYWHERE, EIO, -1)
    : gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 4096, U + 4096, 1);
  do_write (w, 0, 4096, U + 12288, 2);
  if (state == BUF_WRITING) {
    do_write (w, 0, 4096, U + 4096, 1);         /* joins */
    do_write (w, 1, 4096, U + 4096, 1);         /* has that written */
    do_write (w, 1, 4096, U + 12288, 2);
    gate_wait_held (w->gate, rule, 2);
  }
  else if (state == BUF_FAILED)
    flush_fails (w, 0, EIO);
  assert_states (w, state, U, U, 2);
  for (unsigned i = 0; i < 2; i++) {
    assert_reads (w, i, parts, 5);
    assert_reads (w, i, parts + 1, 1);
    assert_reads (w, i, parts + 1, 3);
    assert_reads (w, i, PARTS ({ U + 5000, 1000, 1 }));
    assert_reads (w, i, PARTS ({ U + 2000, 2096, OLD }, { U + 4096, 1000, 1 }));
    assert_reads (w, i, PARTS ({ U + 12388, 3996, 2 },
                               { U + 16384, 100, OLD }));
  }
  gate_release (w->gate, rule);
  do_flush (w, 1);
  assert_devices (w->f, parts, 5);
  assert_reads (w, 0, parts, 5);
}

/* A read from more buffers than it has places for without an allocation. */
static void
test_many (struct world *w)
{
  g_autofree char *buf = g_malloc (80 * U);
  int hold;

  open_writeback (w, 80 * U, 80, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  for (unsigned i = 0; i < 70; i++)
    do_write (w, 0, 4096, i * U, i + 1);
  g_assert_cmpint (request (w, 1, READ, buf, 80 * U, 0), ==, 0);
  for (unsigned i = 0; i < 80; i++) {
    assert_filled (buf + i * U, 4096, i * U, i < 70 ? i + 1 : OLD);
    assert_filled (buf + i * U + 4096, U - 4096, i * U + 4096, OLD);
  }
  gate_release (w->gate, hold);
}

/* A read pins the buffers that it copies from.  A later write to these bytes
 * takes another buffer, so neither waits for the other.
 */
static void
test_pins (struct world *w)
{
  struct task *read;
  int hold, hold_write;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_READ, U, U);
  hold_write = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 4096, 0, 1);
  do_write (w, 0, 4096, U - 8192, OLD); /* OPEN */
  read = start_held (w, hold, 1, READ, 8192 + 100, U - 8192, OLD);
  do_write (w, 0, 4096, U - 8192, 2);
  do_read (w, 0, 4096, U - 8192, 2);
  gate_release (w->gate, hold_write);
  do_flush (w, 0);
  assert_ended (w, GATE_WRITE, U - 8192, 4096, 2);
  assert_device (w->f, 4096, U - 8192, 2);
  do_write (w, 0, U, 2 * U, 3);
  gate_release (w->gate, hold);
  task_ends (read, 0);
}

/* Stale prefetched data. */

struct stale {
  enum kind kind;               /* of the request that changes the device */
  unsigned conn;                /* through this connection; 0 prefetches */
  bool deferring;               /* connections defer writes */
  bool in_flight;               /* the prefetch is under way, or else CLEAN */
};

/* Each combination of its fields, from a number. */
static struct stale
stale_of (unsigned n)
{
  static const enum kind kinds[] = { WRITE, FUA, ZERO, TRIM };

  return (struct stale) {
    .kind = kinds[n & 3], .conn = n >> 2 & 1, .deferring = n & 8,
    .in_flight = n & 16
  };
}

/* A change of bytes in two prefetched units drops both.  Reads afterwards see
 * the change.
 */
static void
test_stale (struct world *w)
{
  struct stale s = stale_of (w->arg);
  int hold;

  world_init (w, 4 * U,
              config (16, 4, s.deferring ? WRITE_BEHIND : WRITE_THROUGH,
                      READ_AHEAD));
  hold = gate_hold (w->gate, GATE_READ, 2 * U, 0);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, 2);       /* both have the old data */
  if (!s.in_flight) {
    gate_release (w->gate, hold);
    wait_state (w, BUF_CLEAN, 2 * U, 2 * U, 2);
  }

  do_request (w, s.conn, s.kind, 4096, 3 * U - 2048, 1);
  assert_states (w, BUF_READING, 0, 4 * U, 0);
  assert_states (w, BUF_CLEAN, 0, 4 * U, 0);
  if (s.in_flight) {
    gate_pass (w->gate, hold, 2);
    gate_release (w->gate, hold);
    gate_wait_ended (w->gate, GATE_READ, 2 * U, 0, 2);
  }
  engine_check (w->e);

  if (s.kind != WRITE || !s.deferring)
    assert_changed (w, s.kind, 4096, 3 * U - 2048, 1);
  for (unsigned i = 0; i < 2 && s.kind != TRIM; i++)
    assert_reads (w, i, PARTS ({ 2 * U, U - 2048, OLD },
                               { 3 * U - 2048, 4096, s.kind == ZERO ? 0 : 1 },
                               { 3 * U + 2048, U - 2048, OLD }));
}

/* A direct operation that fails may have changed a part.  So it makes
 * prefetched data stale as well.
 */
static void
test_stale_failed (struct world *w)
{
  enum write_mode mode = w->arg;
  int fail;

  for (enum kind kind = FUA; kind <= TRIM; kind++) {
    world_init (w, 4 * U, config (16, 4, mode, READ_AHEAD));
    prefetch (w, 0, 2);
    fail = gate_fail (w->gate, GATE_ANY & ~GATE_READ, ANYWHERE, EIO, -1);
    request_fails (w, 0, kind, 4096, 3 * U - 2048, 1, EIO);
    assert_states (w, BUF_CLEAN, 2 * U, 2 * U, 0);
    gate_release (w->gate, fail);
    world_end (w);
  }
}

/* A read waits for prefetched data that becomes stale meanwhile.  It gets the
 * old data, as it came before, and later reads get the new data.
 */
static void
test_stale_pinned (struct world *w)
{
  struct task *read;
  int hold;

  open_readahead (w, 3 * U, 16, 4);
  hold = start_held_stream (w, 0);
  read = start_blocked (w, 0, READ, U / 2, 2 * U, OLD);
  do_write (w, 1, U / 2, 2 * U + U / 2, 1);
  task_wait_blocked (read);
  gate_release (w->gate, hold);
  task_ends (read, 0);
  do_read (w, 0, U / 2, 2 * U + U / 2, 1);
  do_read (w, 0, U / 2, 2 * U, OLD);
}

/* A read that no buffer overlaps does not wait for the lock. */
static void
test_no_lock (struct world *w)
{
  struct task *read;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 2 * U, 1);
  assert_states (w, BUF_WRITING, 2 * U, U, 1);
  {
    LOCK_IN_SCOPE (&w->e->lock);
    read = task_start (w, 1, READ, U, U, OLD);
    gate_wait_ended (w->gate, GATE_READ, U, U, 1);
  }
  task_ends (read, 0);
  gate_release (w->gate, hold);
}

static void
add_stale (void)
{
  for (unsigned n = 0; n < 32; n++) {
    struct stale s = stale_of (n);
    g_autofree char *name
      = g_strdup_printf ("read/stale/%s/%s-connection/%s/%s",
                         kind_names[s.kind], s.conn ? "other" : "same",
                         s.deferring ? "deferring" : "unregistered",
                         s.in_flight ? "in-flight" : "clean");

    tests_add (&(struct test) { name, test_stale, n }, 1);
  }
}

static const struct test tests[] = {
  { "read/open", test_states, BUF_OPEN },
  { "read/writing", test_states, BUF_WRITING },
  { "read/failed", test_states, BUF_FAILED },
  { "read/many", test_many },
  { "read/pins", test_pins },
  { "read/stale-failed/direct", test_stale_failed, WRITE_THROUGH },
  { "read/stale-failed/deferred", test_stale_failed, WRITE_BEHIND },
  { "read/stale-pinned", test_stale_pinned },
  { "read/no-lock", test_no_lock },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  add_stale ();
  return tests_run ();
}
