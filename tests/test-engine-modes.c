/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which requests the filter helps: write modes, the client, the device's speed.
 *
 * Write-back is for clients that flush.  In the mode auto a connection defers
 * writes after its first flush or FUA write.  The filter leaves a device alone
 * that only copies, and a client that keeps enough requests in flight itself.
 */
#include "world.h"

/* Write modes. */

/* In the mode auto a flush or a FUA write enables write-back for its
 * connection, and for no other.
 */
static void
test_auto (struct world *w)
{
  enum kind kind = w->arg;      /* of the request that enables write-back */

  world_init (w, 8 * U, config (8, 2, WRITE_AUTO, READ_DIRECT));
  do_write (w, 0, 4096, 0, 1);
  assert_ended (w, GATE_WRITE, ANYWHERE, 1);
  g_assert_true (is_on_this_thread
                 (gate_op (w->gate, GATE_WRITE, ANYWHERE, 0)));
  do_request (w, 0, kind, kind == FLUSH ? 0 : 4096, 7 * U, 2);
  gate_forget (w->gate);
  do_write (w, 0, 4096, 0, 3);
  assert_states (w, BUF_OPEN, 0, U, 1);
  assert_started (w, GATE_WRITE, ANYWHERE, 0);

  /* Writes of the other connection are direct, but it reads the data. */
  do_write (w, 1, 4096, U, 3);
  assert_ended (w, GATE_WRITE, U, U, 1);
  do_read (w, 1, 4096, 0, 3);
}

/* A zero or a trim enables write-back only with FUA.  The plugin gets the
 * flag.
 */
static void
test_auto_clear (struct world *w)
{
  world_init (w, 8 * U, config (8, 2, WRITE_AUTO, READ_DIRECT));
  do_zero (w, 0, 4096, 0);
  do_request (w, 0, TRIM, 4096, 0, 0);
  do_write (w, 0, 4096, 0, 3);
  assert_device (w->f, 4096, 0, 3);
  gate_forget (w->gate);
  g_assert_cmpint (conn_zero (w->c[0], 4096, 0, BACKEND_FUA), ==, 0);
  g_assert_cmpuint (gate_op (w->gate, GATE_ZERO, ANYWHERE, 0).flags, ==,
                    BACKEND_FUA);
  g_assert_cmpint (conn_trim (w->c[1], 4096, 0, BACKEND_FUA), ==, 0);
  g_assert_cmpuint (gate_op (w->gate, GATE_TRIM, ANYWHERE, 0).flags, ==,
                    BACKEND_FUA);
  for (unsigned i = 0; i < 2; i++) {
    do_write (w, i, 4096, i * U, 4);
    assert_states (w, BUF_OPEN, i * U, U, 1);
  }
}

/* A flush by a filter above, which the client has not sent, does not enable
 * write-back.
 */
static void
test_auto_above (struct world *w)
{
  world_init (w, 8 * U, config (8, 4, WRITE_AUTO, READ_AHEAD));
  g_assert_cmpint (conn_flush (w->c[0], false), ==, 0);
  do_write (w, 0, 4096, 0, 1);
  assert_device (w->f, 4096, 0, 1);
  do_flush (w, 0);
  do_write (w, 0, 4096, 0, 2);
  assert_states (w, BUF_OPEN, 0, U, 1);
}

/* In the mode through no write is deferred. */
static void
test_through (struct world *w)
{
  world_init (w, 8 * U, config (8, 2, WRITE_THROUGH, READ_DIRECT));
  do_flush (w, 0);
  do_fua (w, 0, 4096, 0, 1);
  g_assert_cmpuint (gate_op (w->gate, GATE_WRITE, ANYWHERE, 0).flags, ==,
                    BACKEND_FUA);
  for (unsigned i = 2; i < 6; i++) {
    do_write (w, 0, 4096, 0, i);
    assert_ended (w, GATE_WRITE, ANYWHERE, i);
    assert_device (w->f, 4096, 0, i);
  }
}

/* Direct operations return the plugin's error codes, of the whole request or a
 * piece.
 */
static void
test_errors (struct world *w)
{
  world_init (w, 8 * U, config (8, 4, WRITE_THROUGH, READ_DIRECT));
  gate_fail (w->gate, GATE_READ, 5 * U, U, ENOMEDIUM, -1);
  gate_fail (w->gate, GATE_WRITE, 5 * U, U, ENOSPC, -1);
  gate_fail (w->gate, GATE_ZERO, 5 * U, U, EDQUOT, -1);
  gate_fail (w->gate, GATE_TRIM, 5 * U, U, ENOTSUP, -1);
  for (uint64_t offset = 0; offset <= 5 * U; offset += 5 * U) {
    uint32_t count = offset == 0 ? 8 * U : 4096;

    request_fails (w, 0, READ, count, offset, OLD, ENOMEDIUM);
    request_fails (w, 0, WRITE, count, offset, OLD, ENOSPC);
    request_fails (w, 0, FUA, count, offset, OLD, ENOSPC);
    request_fails (w, 0, ZERO, count, offset, OLD, EDQUOT);
    request_fails (w, 0, TRIM, count, offset, OLD, ENOTSUP);
  }
  g_assert_true (is_on_this_thread (gate_op (w->gate, GATE_READ, 5 * U, U, 1)));
  do_flush (w, 0);
}

/* Where another thread cannot win. */

/* Over a device that only copies, all requests stay on the client's own
 * thread.
 */
static void
test_fast (struct world *w)
{
  g_autofree char *buf = g_malloc (4 * U);

  world_start (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  fake_set_fast (w->f, true);
  for (unsigned i = 0; i < 2; i++) {
    struct backend b = world_backend (w, i);

    g_assert_cmpint (conn_open (w->e, "", &b, &w->c[i]), ==, 0);
    speed_note (w->c[i]->backend.read_speed, 1, 1);
    speed_note (w->c[i]->backend.write_speed, 1, 1);
  }
  fill (buf, 4 * U, 0, 1);
  g_assert_cmpint (request (w, 0, WRITE, buf, 4 * U, 0), ==, 0);
  assert_ended (w, GATE_WRITE, ANYWHERE, 1);
  for (unsigned i = 0; i < 4; i++)
    do_read (w, 1, U, i * U, 1);
  do_read (w, 0, 4 * U, 0, 1);
  assert_started (w, GATE_READ, ANYWHERE, 5);
  for (unsigned i = 0; i < 6; i++)
    g_assert_true (is_on_this_thread
                   (gate_op (w->gate, GATE_ANY, ANYWHERE, i)));
  assert_counter (w, STATS_FAST, 6);
}

/* Operations that fail say nothing about the device's speed, however many. */
static void
test_speed_failed (struct world *w)
{
  int fail;

  open_writeback (w, 8 * U, 8, 4);
  fail = gate_fail (w->gate, GATE_READ | GATE_WRITE, ANYWHERE, EIO, -1);
  fake_set_fast (w->f, true);
  for (unsigned i = 0; i < 2 * SPEED_SLOW; i++) {
    request_fails (w, 0, READ, U, 0, OLD, EIO);
    request_fails (w, 0, FUA, U, 0, OLD, EIO);
  }
  g_assert_cmpuint (speed_wait_ns (w->c[0]->backend.read_speed), >, 0);
  g_assert_cmpuint (speed_wait_ns (w->c[0]->backend.write_speed), >, 0);
  gate_release (w->gate, fail);
}

/* A client that keeps as many requests in flight as there are buffers is left
 * alone.
 */
static void
test_deep_client (struct world *w)
{
  unsigned in_flight = w->arg;

  open_writeback (w, 8 * U, 8, 4);
  put_in_flight (w, 0, in_flight, 0);
  do_write (w, 0, 4096, 0, 1);
  assert_states (w, BUF_OPEN, 0, U, in_flight < 7);
  assert_counter (w, STATS_FAST, 0);
}

/* The device waits as long as two requests of U bytes take to pass through
 * buffers.
 */
static void
open_short_wait (struct world *w)
{
  uint64_t took_ns = SPEED_COPY_NS + U + 2 * U * 3 / 4;

  open_readahead (w, 8 * U, 16, 4);
  for (unsigned i = 0; i < 200; i++) {
    speed_note (w->c[0]->backend.read_speed, took_ns, U);
    speed_note (w->c[0]->backend.write_speed, took_ns, U);
  }
  fake_set_fast (w->f, true);
}

/* The filter leaves a client alone if its other requests in flight move much
 * data while the device waits.
 */
static void
test_short_wait (struct world *w)
{
  unsigned part = w->arg;
  bool gains = part > 1;
  int hold;

  open_short_wait (w);
  put_in_flight (w, 0, 3, U / part);
  do_write (w, 0, U, 7 * U, 1);
  assert_counter (w, STATS_DEFERRED, gains);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, U);
  do_read (w, 0, U, 0, OLD);
  do_read (w, 0, U, U, OLD);
  assert_states (w, BUF_READING, 2 * U, U, gains);
  gate_release (w->gate, hold);
}

/* A large request that has ended is none of the others. */
static void
test_short_wait_alone (struct world *w)
{
  open_short_wait (w);
  do_read (w, 0, 8 * U, 0, OLD);
  do_write (w, 0, U, 7 * U, 1);
  assert_counter (w, STATS_DEFERRED, 1);
}

static const struct test tests[] = {
  { "modes/auto/fua", test_auto, FUA },
  { "modes/auto/flush", test_auto, FLUSH },
  { "modes/auto/zero-and-trim", test_auto_clear },
  { "modes/auto/filter-above", test_auto_above },
  { "modes/through", test_through },
  { "modes/errors", test_errors },
  { "modes/fast", test_fast },
  { "modes/speed-failed", test_speed_failed },
  { "modes/deep-client/7", test_deep_client, 6 },
  { "modes/deep-client/8", test_deep_client, 7 },
  { "modes/short-wait/large-others", test_short_wait, 1 },
  { "modes/short-wait/small-others", test_short_wait, 2 },
  { "modes/short-wait/alone", test_short_wait_alone },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
