/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Async hooks: operations without a thread, and plugins that do not reply.
 *
 * With hooks as many operations are in flight as there are buffers.  While its
 * client is there, a request waits as long as the plugin takes.  Once the
 * client has gone, the plugin has a grace time to reply.  Then the operations
 * are given up, and failed data is kept as after any error.
 *
 * Not here: rules that hold with and without hooks.  All other test-engine-*
 * run over both.
 */
#include "clock.h"
#include "dispatch.h"
#include "world.h"

/* One thread has as many operations in flight as there are buffers. */
static void
test_in_flight (struct world *w)
{
  struct task *write;
  int hold;

  open_readahead (w, 16 * U, 8, 1);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, 0);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, count_state (w, BUF_READING, 0, 16 * U));
  g_assert_cmpuint (gate_peak (w->gate), >=, 6);
  gate_release (w->gate, hold);
  do_read (w, 0, 6 * U, 2 * U, OLD);

  world_close (w, 0);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 1, 0, 8, 1);
  gate_wait_held (w->gate, hold, 8);
  write = start_blocked (w, 1, WRITE, U, 8 * U, 1);
  gate_release (w->gate, hold);
  task_ends (write, 0);
  do_flush (w, 1);
  assert_device (w->f, 9 * U, 0, 1);
}

/* The pieces of one request are in flight at once.  An error is the plugin's,
 * at the first try.
 */
static void
test_pieces (struct world *w)
{
  struct task *task;
  int rule;

  world_init (w, 16 * U, config (8, 1, WRITE_THROUGH, READ_DIRECT));
  for (enum kind kind = READ; kind <= WRITE; kind++) {
    rule = gate_hold (w->gate, GATE_READ | GATE_WRITE, ANYWHERE);
    task = task_start (w, 0, kind, 8 * U, U / 2, kind == READ ? OLD : 1);
    gate_wait_held (w->gate, rule, 9);
    gate_release (w->gate, rule);
    task_ends (task, 0);
    rule = gate_fail (w->gate, GATE_READ | GATE_WRITE, 5 * U, 1, EPERM, 1);
    request_fails (w, 0, kind, 8 * U, U / 2, 1, EPERM);
    gate_release (w->gate, rule);
  }
  assert_device (w->f, 3 * U, U / 2, 1);
}

/* While its client is there, a request waits as long as the plugin takes. */
static void
test_no_bound (struct world *w)
{
  struct task *read;
  int hold;

  open_readahead (w, 8 * U, 8, 1);
  hold = gate_hold (w->gate, GATE_READ, 2 * U, 0);
  start_stream (w, 0);
  read = task_start (w, 0, READ, U, 2 * U, OLD);
  fake_wait_asked (w->f, 3);
  task_wait_blocked (read);
  gate_release (w->gate, hold);
  task_ends (read, 0);
}

/* The client has gone, and there is no grace time. */

/* Two connections of one device, whose plugin has no time to reply once the
 * client has gone.
 */
static void
open_hasty (struct world *w, uint64_t size, struct engine_config c)
{
  world_start (w, size, c);
  for (unsigned i = 0; i < 2; i++) {
    struct backend b = world_backend (w, i);

    fake_hook (&b, 0);
    world_open_as (w, i, "", &b);
  }
}

/* The connection ends, though prefetches are not replied to.  Another
 * connection reads the same bytes.
 */
static void
test_lost_read (struct world *w)
{
  struct task *read;
  unsigned n;
  int hold;

  open_hasty (w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = gate_hold (w->gate, GATE_READ, 2 * U, 0);
  start_stream (w, 0);
  n = count_state (w, BUF_READING, 0, 8 * U);
  gate_wait_held (w->gate, hold, n);
  read = start_blocked (w, 0, READ, 2 * U, 2 * U, OLD);
  fake_set_gone (w->f, true);
  task_ends (read, ESHUTDOWN);
  world_close (w, 0);
  assert_ended (w, GATE_READ, 2 * U, 0, 0);
  g_assert_cmpuint (count_reading (w), ==, 0);
  fake_set_gone (w->f, false);
  gate_release (w->gate, hold);
  do_read (w, 1, 8 * U, 0, OLD);
}

/* A request ends, though one piece of it is not replied to. */
static void
test_lost_piece (struct world *w)
{
  struct task *read;
  int hold;

  open_hasty (w, 8 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  hold = gate_hold (w->gate, GATE_READ, 5 * U, U);
  read = start_held (w, hold, 0, READ, 8 * U, 0, OLD);
  fake_set_gone (w->f, true);
  task_ends (read, ESHUTDOWN);
  gate_release (w->gate, hold);
}

/* The connection ends, though an acknowledged write is not replied to.  The
 * data is kept for another connection.
 */
static void
test_lost_write (struct world *w)
{
  int hold;

  open_hasty (w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = gate_hold (w->gate, GATE_WRITE, U, U);
  do_write (w, 0, U, U, 1);
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_held (w->gate, hold, 1);
  /* The other write has no grace time either. */
  while (count_state (w, BUF_WRITING, 3 * U, U) > 0)
    g_usleep (1000);
  world_close (w, 0);
  assert_reports (":65536+65536:kept");
  assert_device (w->f, U, 3 * U, 1);
  do_read (w, 1, U, U, 1);
  gate_release (w->gate, hold);
  gate_wait_ended (w->gate, GATE_WRITE, U, U, 1);
  assert_device (w->f, U, U, OLD);      /* it was given up */
  do_flush (w, 1);
  assert_device (w->f, U, U, 1);
}

/* A write that was given up is not waited for twice: neither the flush nor the
 * end tries it again.  (Data that the plugin itself refuses with ESHUTDOWN is
 * tried: close/retries.)
 */
static void
test_lost_once (struct world *w)
{
  int hold;

  open_hasty (w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = gate_hold (w->gate, GATE_WRITE, U, U);
  do_write (w, 0, U, U, 1);
  gate_wait_held (w->gate, hold, 1);
  fake_set_gone (w->f, true);
  flush_fails (w, 0, ESHUTDOWN);
  world_close (w, 0);
  assert_started (w, GATE_WRITE, U, U, 1);
  assert_reports (":65536+65536:kept");
  fake_set_gone (w->f, false);
  gate_release (w->gate, hold);
  do_flush (w, 1);
  assert_device (w->f, U, U, 1);
}

/* A plugin has a hook for writes only.  A worker uses a buffer that was given
 * up before, and its operation is not given up.
 */
static void
test_one_kind (struct world *w)
{
  struct nbdkit_async_driver driver;
  struct task *read;
  int hold;

  open_hasty (w, 8 * U, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  driver = *w->c[0]->backend.hooks;
  driver.can_read = false;
  w->c[0]->backend.hooks = w->c[1]->backend.hooks = &driver;
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 8, 1);
  gate_wait_held (w->gate, hold, 8);
  fake_set_gone (w->f, true);
  world_close (w, 0);
  assert_n_reports (8);
  fake_set_gone (w->f, false);
  gate_release (w->gate, hold);
  do_zero (w, 1, 8 * U, 0);     /* supersedes the failed data */

  hold = gate_hold (w->gate, GATE_READ, 2 * U, U);
  do_read (w, 1, U, 0, 0);
  do_read (w, 1, U, U, 0);
  gate_wait_held (w->gate, hold, 1);
  read = start_blocked (w, 1, READ, U, 2 * U, 0);
  gate_fail (w->gate, GATE_READ, 2 * U, U, EIO, 1);
  gate_pass (w->gate, hold, 1);
  gate_wait_held (w->gate, hold, 1);       /* the demand read */
  gate_release (w->gate, hold);
  task_ends (read, 0);
}

/* The server ends with a connection open and a prefetch not replied to. */
static void
test_stop (struct world *w)
{
  int hold;

  open_hasty (w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = start_held_stream (w, 0);
  world_stop (w);
  assert_ended (w, GATE_READ, 2 * U, 0, 0);
  gate_release (w->gate, hold);
}

/* The server ends with buffers that hooks have used.  Failed data is tried
 * again.
 */
static void
test_stop_idle (struct world *w)
{
  open_hasty (w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  start_stream (w, 0);
  wait_state (w, BUF_CLEAN, 2 * U, U, 1);
  make_failed (w, 1, U, 6 * U, 1, ENOSPC);
  world_stop (w);
  assert_device (w->f, U, 6 * U, 1);
}

/* The grace time is over. */

/* As if the client of connection I had gone long ago, and the plugin had been
 * silent ever since.  The grace time is shorter than that, but longer than a
 * test takes.  The next wait finds that at once.
 */
static void
make_silent (struct world *w, unsigned i)
{
  struct backend *b = &w->c[i]->backend;

  fake_hook (b, clock_ns () / 2);
  atomic_store (&b->gone_ns, 1);
  atomic_store (&b->alive_ns, 1);
}

static const struct nbdkit_async_driver *real;
static struct nbdkit_async_driver driver;

/* The driver of connection I becomes DRIVER: as before, which is REAL, but for
 * give_up.
 */
static void
replace_give_up (struct world *w, unsigned i,
                 bool (*give_up) (struct nbdkit_async_io *))
{
  struct backend *b = &w->c[i]->backend;

  real = b->hooks;
  driver = *real;
  driver.give_up = give_up;
  b->hooks = &driver;
}

/* The grace time is each operation's own: a retry at the end has all of it,
 * however long ago the client has gone.
 */
static void
test_grace (struct world *w)
{
  struct task *close;
  int hold;

  open_writeback (w, 8 * U, 8, 1);
  make_failed (w, 0, U, U, 1, EIO);
  make_silent (w, 0);
  hold = gate_hold (w->gate, GATE_WRITE, U, U);
  close = start_close (w, 0);
  gate_wait_held (w->gate, hold, 1);
  task_wait_blocked (close);
  g_usleep (2 * BACKEND_POLL_NS / 1000);        /* it has looked once more */
  task_wait_blocked (close);
  gate_release (w->gate, hold);
  task_ends (close, 0);
  assert_device (w->f, U, U, 1);
}

/* The plugin replies to something while an operation is given up. */
static bool
give_up_alive (struct nbdkit_async_io *io)
{
  bool given_up = real->give_up (io);

  atomic_store (&((struct backend_io *) io)->backend->alive_ns,
                clock_ns ());
  return given_up;
}

/* Giving up stops when the plugin replies to something. */
static void
test_reply (struct world *w)
{
  struct task *close;
  int hold;

  open_writeback (w, 8 * U, 8, 1);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 2, 1);
  gate_wait_held (w->gate, hold, 2);
  make_silent (w, 0);
  replace_give_up (w, 0, give_up_alive);
  close = start_close (w, 0);
  wait_state (w, BUF_FAILED, 0, 2 * U, 1);
  task_wait_blocked (close);
  gate_release (w->gate, hold);
  task_ends (close, 0);
  assert_n_reports (1);
  do_flush (w, 1);
  assert_device (w->f, 2 * U, 0, 1);
}

/* The plugin replies, on another thread, to the operation that is given up. */
static void *
reply_error (void *io)
{
  ((struct nbdkit_async_io *) io)->done (io, EIO);
  return NULL;
}

static bool
give_up_replying (struct nbdkit_async_io *io)
{
  pthread_t thread;

  if (real->give_up (io)) {
    g_assert_cmpint (pthread_create (&thread, NULL, reply_error, io), ==, 0);
    pthread_join (thread, NULL);
  }
  return false;
}

/* A reply to an operation that is being given up is no sign of life: the others
 * are given up as well.
 */
static void
test_cancelled (struct world *w)
{
  int hold;

  open_writeback (w, 8 * U, 8, 1);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 4, 1);
  gate_wait_held (w->gate, hold, 4);
  make_silent (w, 0);
  replace_give_up (w, 0, give_up_replying);
  /* All of them have been given up when the lock is free again. */
  engine_lock (w->e);
  while (w->e->buffers.failed.length < 4) {
    engine_wait_end (w->c[0], &w->e->order.progress);
    g_assert_true (w->e->buffers.failed.length == 0
                   || w->e->buffers.failed.length == 4);
  }
  engine_unlock_and_dispatch (w->e);
  gate_release (w->gate, hold);
  world_close (w, 0);
  assert_device (w->f, 4 * U, 0, 1);
}

static struct late {
  struct world *w;
  int hold, fail;
  struct task *flush;
} late;

/* The operation completes, fails, and is tried again before it is given up. */
static bool
give_up_late (struct nbdkit_async_io *io)
{
  struct world *w = late.w;

  late.fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, EIO, 1);
  gate_pass (w->gate, late.hold, 1);
  wait_state (w, BUF_FAILED, 0, U, 1);
  late.flush = start_flush (w, 1);
  gate_wait_held (w->gate, late.hold, 1);
  return real->give_up (io);
}

/* An operation completes and fails while it is being given up, and another
 * connection tries its data again.  Nothing is given up then, and the end does
 * not wait for that retry.
 */
static void
test_given_up_late (struct world *w)
{
  struct task *close;

  open_writeback (w, 8 * U, 8, 1);
  fake_hook (&w->c[1]->backend, UINT64_MAX / 2);
  late = (struct late) {
    .w = w, .hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE)
  };
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, late.hold, 1);
  make_silent (w, 0);
  replace_give_up (w, 0, give_up_late);
  close = start_close (w, 0);
  gate_wait_ended (w->gate, GATE_WRITE, ANYWHERE, 1);
  gate_wait_held (w->gate, late.hold, 1);  /* the flush's retry */
  task_ends (close, 0);
  gate_release (w->gate, late.hold);
  task_ends (late.flush, 0);
  assert_device (w->f, U, 0, 1);
}

static const struct test tests[] = {
  { "in-flight", test_in_flight, .on = HOOKS_ONLY },
  { "pieces", test_pieces, .on = HOOKS_ONLY },
  { "no-bound", test_no_bound, .on = HOOKS_ONLY },
  { "lost-read", test_lost_read, .on = HOOKS_ONLY },
  { "lost-piece", test_lost_piece, .on = HOOKS_ONLY },
  { "lost-write", test_lost_write, .on = HOOKS_ONLY },
  { "lost-once", test_lost_once, .on = HOOKS_ONLY },
  { "one-kind", test_one_kind, .on = HOOKS_ONLY },
  { "stop", test_stop, .on = HOOKS_ONLY },
  { "stop-idle", test_stop_idle, .on = HOOKS_ONLY },
  { "grace", test_grace, .on = HOOKS_ONLY },
  { "reply", test_reply, .on = HOOKS_ONLY },
  { "cancelled", test_cancelled, .on = HOOKS_ONLY },
  { "given-up-late", test_given_up_late, .on = HOOKS_ONLY },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
