/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Contexts: further handles of a plugin that takes one call at a time for each.
 * The fake device asserts that no handle has two calls, and that each context
 * is closed.
 *
 * Connection 0 has the device of 64 units with 16 buffers and up to four
 * contexts beside its own.
 */
#include "clock.h"
#include "world.h"

enum { MORE = 4 };

static void
open_contexts (struct world *w, struct engine_config c)
{
  world_start (w, 64 * U, c);
  world_open (w, 0, "");
}

/* After a failed open there is no other try for an hour. */
static struct engine_config
config_for (unsigned more, enum read_mode read)
{
  struct engine_config c = config (16, more, WRITE_BEHIND, read);

  c.context_retry_ns = HOUR_NS;
  return c;
}

static void
set_context_retry (struct world *w, uint64_t ns)
{
  LOCK_IN_SCOPE (&w->c[0]->backend.contexts->lock);
  w->e->config.context_retry_ns = ns;
}

static struct engine_config
contexts_config (void)
{
  return config_for (MORE, READ_AHEAD);
}

/* Opening. */

/* Contexts are opened by background work only, and no more than there are. */
static void
test_lazy (struct world *w)
{
  int hold;

  open_contexts (w, contexts_config ());
  do_read (w, 0, 4096, 0, OLD);
  do_request (w, 0, ZERO, 4096, 0, 0);
  do_flush (w, 0);
  g_assert_cmpuint (fake_n_opened (w->f), ==, 0);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 1, 8, 1);
  gate_wait_held (w->gate, hold, MORE);
  g_assert_cmpuint (fake_n_opened (w->f), ==, MORE);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_device (w->f, 8 * U, U, 1);
  g_assert_cmpuint (fake_n_opened (w->f), ==, MORE);
}

/* At most eight are opened at a time, and all in the end. */
static void
test_burst (struct world *w)
{
  enum { MANY = 20 };
  int hold;

  world_start (w, 64 * U, config (40, MANY, WRITE_BEHIND, READ_DIRECT));
  world_open (w, 0, "");
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  fake_hang_opens (w->f, true);
  write_units (w, 0, 0, MANY, 1);
  fake_wait_opening (w->f, 8);
  fake_hang_opens (w->f, false);
  gate_wait_held (w->gate, hold, MANY);
  g_assert_cmpuint (fake_n_opened (w->f), ==, MANY);
  g_assert_cmpuint (fake_peak_opening (w->f), ==, 8);
  gate_release (w->gate, hold);
  do_flush (w, 0);
}

/* A large request has so many pieces that all the requests of its client find
 * contexts.
 */
static void
test_pieces (struct world *w)
{
  struct engine_config c = contexts_config ();

  c.contexts = 9;
  open_contexts (w, c);
  g_assert_cmpuint (conn_piece (w->c[0], U), ==, U);
  g_assert_cmpuint (conn_piece (w->c[0], 8 * U), ==, U);
  g_assert_cmpuint (conn_piece (w->c[0], 9 * U), ==, 2 * U);
  put_in_flight (w, 0, 4, U);
  g_assert_cmpuint (conn_piece (w->c[0], U), ==, U);
  g_assert_cmpuint (conn_piece (w->c[0], 8 * U), ==, 4 * U);
  g_assert_cmpuint (conn_piece (w->c[0], 512 * U), ==, 256 * U);
}

/* A demand read is served though each context is at work. */
static void
test_demand (struct world *w)
{
  int hold;

  open_contexts (w, contexts_config ());
  hold = gate_hold (w->gate, GATE_READ, 2 * U, 16 * U);
  start_stream (w, 0);
  gate_wait_held (w->gate, hold, MORE);
  do_read (w, 0, U, 40 * U, OLD);
  do_write (w, 0, U, 41 * U, 1);
  gate_release (w->gate, hold);
}

/* Connections of one export use the same contexts, also one after the other. */
static void
test_kept (struct world *w)
{
  open_contexts (w, contexts_config ());
  prefetch (w, 0, 4);
  world_open (w, 1, "");
  world_close (w, 0);
  fake_wait_n_contexts (w->f, fake_n_opened (w->f));
  for (unsigned i = 0; i < 3; i++) {
    unsigned n = fake_n_opened (w->f);

    write_units (w, 1, 20, 4, i);
    do_flush (w, 1);
    world_close (w, 1);
    world_open (w, 1, "");
    g_assert_cmpuint (n, <=, MORE);
  }
  g_assert_cmpuint (fake_n_opened (w->f), <=, MORE);
  g_assert_cmpuint (fake_n_contexts (w->f), ==, fake_n_opened (w->f));
}

/* Other names, and plugins without multi-conn, have contexts of their own.  The
 * latter are closed when their connection ends.
 */
static void
test_apart (struct world *w)
{
  world_start (w, 64 * U, config_for (1, READ_AHEAD));
  world_open (w, 0, "a");
  prefetch (w, 0, 2);
  fake_wait_n_contexts (w->f, 1);
  world_open (w, 1, "b");
  prefetch (w, 1, 2);
  fake_wait_n_contexts (w->f, 2);
  world_open_unshared (w, 2, "b");
  prefetch (w, 2, 2);
  fake_wait_n_contexts (w->f, 3);
  world_close (w, 2);
  fake_wait_n_contexts (w->f, 2);
}

/* Idle contexts are closed, and opened again. */
static void
test_idle (struct world *w)
{
  struct engine_config c = contexts_config ();

  c.context_idle_ns = 20000000;
  open_contexts (w, c);
  for (unsigned i = 0; i < 3; i++) {
    write_units (w, 0, 10, 8, i);
    while (fake_n_opened (w->f) <= i)   /* before the flush writes itself */
      g_usleep (1000);
    do_flush (w, 0);
    fake_wait_n_contexts (w->f, 0);
  }
  assert_device (w->f, 8 * U, 10 * U, 2);
  world_close (w, 0);
}

/* Contexts that cannot be opened. */

/* Without any, the connection's own context does all, and that is logged once.
 * There is another try later.
 */
static void
test_none (struct world *w)
{
  open_contexts (w, contexts_config ());
  fake_set_openable (w->f, 0);
  fake_hang_opens (w->f, true);         /* else the flush may be first */
  write_units (w, 0, 0, 4, 1);
  fake_wait_opening (w->f, 1);
  fake_hang_opens (w->f, false);
  wait_contexts_logged ();
  do_flush (w, 0);
  assert_device (w->f, 4 * U, 0, 1);
  write_units (w, 0, 0, 4, 2);          /* not deferred */
  assert_device (w->f, 4 * U, 0, 2);
  for (unsigned i = 10; i < 20; i++)
    do_read (w, 0, U, i * U, OLD);
  assert_contexts_logged (1);
  wait_failures (w, 1);
  atomic_store (&w->c[0]->backend.contexts->closed_until_ns, 0);
  set_context_retry (w, 0);     /* the next one is old enough at once */
  fake_set_openable (w->f, 1);
  do_write (w, 0, U, 0, 3);
  gate_wait_ended (w->gate, GATE_WRITE, 0, U, 3);
  wait_failures (w, 0);
  write_units (w, 0, 1, 3, 3);
  do_flush (w, 0);
  g_assert_cmpuint (fake_n_opened (w->f), ==, 1);
  assert_device (w->f, 4 * U, 0, 3);
}

/* When all have been open, the next failure is logged again. */
static void
test_logged_again (struct world *w)
{
  int fail;

  open_contexts (w, config_for (1, READ_DIRECT));
  for (unsigned i = 0; i < 2; i++) {
    fake_set_openable (w->f, 0);
    do_write (w, 0, U, 0, 1);
    wait_contexts_logged ();
    do_flush (w, 0);
    assert_contexts_logged (1);
    atomic_store (&w->c[0]->backend.contexts->closed_until_ns, 0);
    fake_set_openable (w->f, 1);
    fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, EIO, 1);
    do_write (w, 0, U, U, 1);
    wait_state (w, BUF_FAILED, U, U, 1);
    gate_release (w->gate, fail);
    fake_wait_n_contexts (w->f, 0);
    do_flush (w, 0);
    atomic_store (&w->c[0]->backend.contexts->closed_until_ns, 0);
  }
}

/* With some, the work goes on with these. */
static void
test_some (struct world *w)
{
  int hold;

  open_contexts (w, contexts_config ());
  fake_set_openable (w->f, 2);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 8, 1);
  gate_wait_held (w->gate, hold, 2);
  do_read (w, 0, U, 40 * U, OLD);
  wait_contexts_logged ();
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_device (w->f, 8 * U, 0, 1);
  g_assert_cmpuint (fake_n_opened (w->f), ==, 2);
  assert_contexts_logged (1);
}

/* Contexts that break. */

/* An operation that fails ends its context, if another one may do better. */
static void
test_breaks (struct world *w)
{
  int err = w->arg;
  bool is_replaced = err == EIO;
  unsigned n;
  int fail;

  world_start (w, 64 * U, config_for (1, READ_DIRECT));
  world_open (w, 0, "");
  do_write (w, 0, U, 0, 1);
  gate_wait_ended (w->gate, GATE_WRITE, 0, U, 1);
  do_flush (w, 0);
  n = fake_n_opened (w->f);
  g_assert_cmpuint (n, ==, 1);
  set_context_retry (w, 0);     /* it is old enough */
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, err, 1);
  do_write (w, 0, U, U, 2);
  wait_state (w, BUF_FAILED, U, U, 1);
  do_read (w, 0, U, U, 2);
  do_flush (w, 0);                      /* with the connection's own context */
  gate_release (w->gate, fail);
  assert_device (w->f, U, U, 2);
  do_write (w, 0, U, 2 * U, 3);
  gate_wait_ended (w->gate, GATE_WRITE, 2 * U, U, 1);
  do_flush (w, 0);
  assert_device (w->f, U, 2 * U, 3);
  g_assert_cmpuint (fake_n_opened (w->f), ==, n + is_replaced);
}

enum { AT_FIRST, SOON, LATER };

/* A thread does not use a broken context for its next job.  A context counts as
 * a failed open if it breaks before its first success, or soon after its
 * opening.
 */
static void
test_breaks_between (struct world *w)
{
  struct engine_config c = config_for (1, READ_DIRECT);
  unsigned n_worked = w->arg != AT_FIRST, is_replaced = w->arg == LATER;
  int hold, fail;

  if (is_replaced)              /* each context is old enough */
    c.context_retry_ns = 0;
  open_contexts (w, c);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  fail = gate_fail (w->gate, GATE_WRITE, n_worked * U, U, EIO, 1);
  write_units (w, 0, 0, n_worked + 2, 1);
  gate_wait_held (w->gate, hold, 1);
  gate_release (w->gate, hold);
  wait_state (w, BUF_FAILED, n_worked * U, U, 1);
  gate_wait_ended (w->gate, GATE_WRITE, (n_worked + 1) * U, U, 1);
  g_assert_cmpuint (fake_n_opened (w->f), ==, 1 + is_replaced);
  wait_failures (w, 1 - is_replaced);
  gate_release (w->gate, fail);
  do_flush (w, 0);
}

/* Each context works once and then breaks.  The time between tries to open
 * doubles, so their number is bounded.
 */
static void
test_breaks_again (struct world *w)
{
  struct engine_config c = config_for (1, READ_DIRECT);
  int fail;

  open_contexts (w, c);
  for (unsigned i = 0; i < 5; i++) {
    do_write (w, 0, U, 0, 1);
    gate_wait_ended (w->gate, GATE_WRITE, 0, U, 1);
    do_flush (w, 0);
    fail = gate_fail (w->gate, GATE_WRITE, U, U, EIO, 1);
    do_write (w, 0, U, U, 1);
    gate_wait_ended (w->gate, GATE_WRITE, U, U, 1);
    fake_wait_n_contexts (w->f, 0);
    gate_release (w->gate, fail);
    do_flush (w, 0);
    wait_failures (w, i + 1);
    g_assert_cmpuint (fake_n_opened (w->f), ==, i + 1);
    do_write (w, 0, U, 0, 2);   /* does not open one */
    g_assert_cmpuint (fake_n_opened (w->f), ==, i + 1);
    atomic_store (&w->c[0]->backend.contexts->closed_until_ns, 0);
    gate_forget (w->gate);
  }
}

/* All break and none can be opened: what waits in the queue is written with the
 * connection's own context.
 */
static void
test_all_break (struct world *w)
{
  int hold, fail;

  open_contexts (w, contexts_config ());
  hold = gate_hold (w->gate, GATE_WRITE, 0, MORE * U);
  fail = gate_fail (w->gate, GATE_WRITE, 0, MORE * U, EIO, MORE);
  write_units (w, 0, 0, 10, 1);
  gate_wait_held (w->gate, hold, MORE);
  fake_set_openable (w->f, 0);
  gate_release (w->gate, hold);
  wait_state (w, BUF_FAILED, 0, MORE * U, MORE);
  gate_wait_ended (w->gate, GATE_WRITE, MORE * U, 6 * U, 6);
  gate_release (w->gate, fail);
  do_flush (w, 0);
  assert_device (w->f, 10 * U, 0, 1);
  fake_wait_n_contexts (w->f, 0);
}

/* What contexts show. */

/* A read, and block status, flush first what another context has written. */
static void
test_hidden (struct world *w)
{
  open_contexts (w, contexts_config ());
  fake_hide (w->f);
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_ended (w->gate, GATE_WRITE, 3 * U, U, 1);
  wait_free (w, 16);
  do_read (w, 0, 4096, 3 * U, 1);
  assert_started (w, GATE_FLUSH, ANYWHERE, 1);
  do_read (w, 0, 4096, 3 * U, 1);
  do_read (w, 0, U, 9 * U, OLD);
  assert_started (w, GATE_FLUSH, ANYWHERE, 1);  /* nothing is hidden */

  do_write (w, 0, 4096, 5 * U, 2);
  g_assert_false (drain (w, 0, U, 5 * U));
  do_read (w, 0, 4096, 5 * U, 2);
  assert_started (w, GATE_FLUSH, ANYWHERE, 2);
  do_write (w, 0, 4096, 5 * U, 3);
  do_read (w, 0, 4096, 5 * U, 3);               /* from the buffer */
  assert_started (w, GATE_FLUSH, ANYWHERE, 2);
}

/* Connection 0 reads what it has changed, and the flush for that fails. */
static void
fail_own_flush (struct world *w)
{
  int fail;

  open_contexts (w, contexts_config ());
  fake_hide (w->f);
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_ended (w->gate, GATE_WRITE, 3 * U, U, 1);
  wait_free (w, 16);
  fail = gate_fail (w->gate, GATE_FLUSH, ANYWHERE, ENOSPC, 1);
  world_open (w, 1, "");
  request_fails (w, 0, READ, 4096, 3 * U, 1, ENOSPC);
  gate_release (w->gate, fail);
}

/* The error of such a flush is the read's, and that of the next flush on each
 * connection of the device, also on one that opens later.
 */
static void
test_hidden_error (struct world *w)
{
  fail_own_flush (w);
  world_open (w, 2, "");
  flush_fails (w, 2, ENOSPC);
  do_flush (w, 2);
  world_open (w, 3, "");
  do_flush (w, 3);              /* a flush has returned it */
  flush_fails (w, 1, ENOSPC);
  do_flush (w, 1);
  flush_fails (w, 0, ENOSPC);
  do_flush (w, 0);
  do_read (w, 0, 4096, 3 * U, 1);
}

/* The client reconnects in between. */
static void
test_hidden_error_gone (struct world *w)
{
  fail_own_flush (w);
  world_close (w, 0);
  world_close (w, 1);
  world_open (w, 0, "");
  flush_fails (w, 0, ENOSPC);
  do_flush (w, 0);
}

/* A flush that returns the error of the filter's own flush has not succeeded:
 * after failed data, writes stay direct until a flush succeeds.
 */
static void
test_hidden_failing (struct world *w)
{
  int fail;

  open_contexts (w, contexts_config ());
  fake_hide (w->f);
  make_failed (w, 0, 4096, 9 * U, 2, EIO);
  do_write (w, 0, U, 3 * U, 1);
  fail = gate_fail (w->gate, GATE_FLUSH, ANYWHERE, ENOSPC, 1);
  request_fails (w, 0, READ, 4096, 3 * U, 1, ENOSPC);
  gate_release (w->gate, fail);
  flush_fails (w, 0, ENOSPC);
  assert_device (w->f, 4096, 9 * U, 2);
  g_assert_true (is_failing (w, 0));
  do_flush (w, 0);
  g_assert_false (is_failing (w, 0));
}

/* A stream over changed bytes reads the new ones, though contexts show the old
 * ones.
 */
static void
test_hidden_stream (struct world *w)
{
  open_contexts (w, contexts_config ());
  fake_hide (w->f);
  prefetch (w, 0, 4);
  do_fua (w, 0, 4096, 40 * U, 1);
  do_write (w, 0, U, 42 * U, 2);
  gate_wait_ended (w->gate, GATE_WRITE, 42 * U, U, 1);
  for (unsigned i = 2; i < 40; i++)
    do_read (w, 0, U, i * U, OLD);
  assert_started (w, GATE_READ, 40 * U, U, 0);  /* no prefetch, as of no use */
  assert_reads (w, 0, PARTS ({ 40 * U, 4096, 1 },
                             { 40 * U + 4096, U - 4096, OLD }));
  do_read (w, 0, U, 41 * U, OLD);
  do_read (w, 0, U, 42 * U, 2);
}

/* Without multi-conn the connection's own context does all writes, and the
 * reads of what was ever written.  The contexts read the rest.  The plugin may
 * have no flush.
 */
static void
test_unshared (struct world *w)
{
  struct backend b;

  world_start (w, 64 * U, contexts_config ());
  b = world_backend (w, 0);
  b.shared = false;
  b.can_flush = w->arg;
  world_open_as (w, 0, "", &b);
  fake_hide (w->f);
  prefetch (w, 0, 4);
  g_assert_cmpuint (fake_n_opened (w->f), >, 0);
  do_write (w, 0, U, 4 * U, 1);
  g_assert_true (is_on_this_thread (gate_op (w->gate, GATE_WRITE, 4 * U, U,
                                             0)));
  do_flush (w, 0);
  g_assert_true (device_hides_own (w->c[0], 4 * U, 5 * U));
  for (unsigned i = 2; i < 10; i++)
    do_read (w, 0, U, i * U, i == 4 ? 1 : OLD);
  do_write (w, 0, 4096, 6 * U, 1);
  assert_reads (w, 0, PARTS ({ 3 * U, U, OLD }, { 4 * U, U, 1 },
                             { 5 * U, U, OLD }, { 6 * U, 4096, 1 }));
  /* Nor does it read pieces of a large request with them. */
  do_write (w, 0, U, 43 * U, 1);
  wait_failures (w, 0);
  assert_reads (w, 0, PARTS ({ 40 * U, 3 * U, OLD }, { 43 * U, U, 1 }));
}

/* Opens that hang. */

/* Writes unit N with a context of its own, and holds it in the plugin. */
static int
hold_write (struct world *w, unsigned n)
{
  int hold = gate_hold (w->gate, GATE_WRITE, n * U, U);

  do_write (w, 0, U, n * U, 1);
  gate_wait_held (w->gate, hold, 1);
  return hold;
}

/* Two contexts are open and one of them is free again.  A thread still opens a
 * third one, for a job that is done.  Returns the rule that holds the other.
 */
static int
hang_third_open (struct world *w)
{
  int first, other;

  open_contexts (w, contexts_config ());
  first = hold_write (w, 0);
  other = hold_write (w, 1);
  fake_hang_opens (w->f, true);
  do_write (w, 0, U, 2 * U, 1);
  fake_wait_opening (w->f, 1);
  gate_release (w->gate, first);
  gate_wait_ended (w->gate, GATE_WRITE, 2 * U, U, 1);
  wait_free (w, 15);
  return other;
}

/* A job does not wait for an open if a context is free. */
static void
test_hang_free (struct world *w)
{
  int other = hang_third_open (w);

  do_write (w, 0, U, 3 * U, 1);
  gate_wait_ended (w->gate, GATE_WRITE, 3 * U, U, 1);
  fake_hang_opens (w->f, false);
  gate_release (w->gate, other);
}

/* A thread that could not open one uses another one that became free. */
static void
test_hang_fails (struct world *w)
{
  int other = hang_third_open (w);

  fake_set_openable (w->f, 0);
  fake_hang_opens (w->f, false);
  wait_contexts_logged ();
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_ended (w->gate, GATE_WRITE, 3 * U, U, 1);
  gate_release (w->gate, other);
  assert_contexts_logged (1);
}

/* A thread that could not open one tries again when the time has come, though
 * nobody else needs anything.
 */
static void
test_hang_retry (struct world *w)
{
  struct engine_config c = contexts_config ();
  int hold;

  c.context_retry_ns = 50000000;
  open_contexts (w, c);
  hold = hold_write (w, 0);
  fake_set_openable (w->f, 0);
  do_write (w, 0, U, 2 * U, 1);
  wait_contexts_logged ();
  fake_set_openable (w->f, MORE);
  gate_wait_ended (w->gate, GATE_WRITE, 2 * U, U, 1);
  gate_release (w->gate, hold);
  assert_contexts_logged (1);
}

/* The end of a connection writes its data, though no context can be had. */
static void
test_hang_close (struct world *w)
{
  struct engine_config c = contexts_config ();

  c.others_ns = 50000000;
  open_contexts (w, c);
  fake_hang_opens (w->f, true);
  write_units (w, 0, 0, 8, 1);
  fake_wait_opening (w->f, MORE);
  do_read (w, 0, U, 40 * U, OLD);
  world_close (w, 0);
  assert_device (w->f, 8 * U, 0, 1);
  fake_hang_opens (w->f, false);
}

/* Opens that fail side by side count as one. */
static void
test_fail_together (struct world *w)
{
  open_contexts (w, contexts_config ());
  fake_hang_opens (w->f, true);
  write_units (w, 0, 0, 8, 1);
  fake_wait_opening (w->f, MORE);
  fake_set_openable (w->f, 0);
  fake_hang_opens (w->f, false);
  do_flush (w, 0);
  wait_failures (w, 1);
  assert_contexts_logged (1);
}

/* The end. */

/* nbdkit may end with connections open, and free them later. */
static void
test_stop (struct world *w)
{
  open_contexts (w, contexts_config ());
  prefetch (w, 0, 4);
  write_units (w, 0, 20, 4, 1);
  world_stop (w);
  assert_device (w->f, 4 * U, 20 * U, 1);
}

/* A client that names many exports leaves no threads behind. */
static void
test_names (struct world *w)
{
  world_start (w, 64 * U, contexts_config ());
  for (unsigned i = 0; i < 100; i++) {
    g_autofree char *name = g_strdup_printf ("%u", i);

    world_open (w, 0, name);
    do_read (w, 0, U, 0, OLD);
    world_close (w, 0);
  }
  wait_n_sets (w, 0);
}

/* Flushes of two connections. */

static unsigned flushes_fail;
static const struct backend_ops *real_ops;

static int
flush_or_fail (void *handle)
{
  if (flushes_fail == 0)
    return real_ops->flush (handle);
  flushes_fail--;
  return EIO;
}

/* A flush that fails leaves the changes to a later flush, not to one that began
 * before it.
 */
static void
test_flush_fails (struct world *w)
{
  static struct backend_ops failing;
  struct backend b;
  struct task *first;
  int hold;

  world_start (w, 64 * U, contexts_config ());
  world_open (w, 1, "");
  b = world_backend (w, 0);
  real_ops = b.ops;
  failing = *b.ops;
  failing.flush = flush_or_fail;
  b.ops = &failing;
  world_open_as (w, 0, "", &b);
  fake_hide (w->f);
  hold = gate_hold (w->gate, GATE_FLUSH, ANYWHERE);
  first = start_held_flush (w, hold, 1);
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_ended (w->gate, GATE_WRITE, 3 * U, U, 1);
  wait_free (w, 16);
  flushes_fail = 1;
  flush_fails (w, 0, EIO);
  gate_release (w->gate, hold);
  task_ends (first, 0);
  do_read (w, 0, 4096, 3 * U, 1);
  assert_started (w, GATE_FLUSH, ANYWHERE, 2);
}

/* A write that another export name has overtaken changes the plugin's data,
 * too, when it ends.
 */
static void
test_overtaken (struct world *w)
{
  struct engine_config c = contexts_config ();
  int hold;

  c.others_ns = 50000000;
  open_contexts (w, c);
  world_open (w, 1, "b");
  hold = gate_hold (w->gate, GATE_WRITE, 3 * U, U);
  do_write (w, 0, U, 3 * U, 1);
  gate_wait_held (w->gate, hold, 1);
  do_zero (w, 1, U, 3 * U);
  assert_late (1);
  gate_release (w->gate, hold);
  gate_wait_ended (w->gate, GATE_WRITE, 3 * U, U, 1);
  wait_free (w, 16);
  g_assert_true (device_hides_own (w->c[0], 3 * U, 4 * U));
  flush_fails (w, 0, EIO);
}

/* A model of one client, which sends one request at a time. */
static void
test_model (struct world *w)
{
  enum { BLOCK = 4096, BLOCKS = 16 * 16 };
  unsigned steps = g_test_thorough () ? 10000 : 400;
  bool is_shared = w->arg;
  unsigned model[BLOCKS];

  world_start (w, BLOCKS * BLOCK, contexts_config ());
  if (is_shared)
    world_open (w, 0, "");
  else
    world_open_unshared (w, 0, "");
  fake_hide (w->f);
  for (unsigned i = 0; i < BLOCKS; i++)
    model[i] = OLD;
  for (unsigned step = 0; step < steps; step++) {
    unsigned at = g_test_rand_int_range (0, BLOCKS);
    unsigned n = g_test_rand_int_range (1, MIN (48, BLOCKS - at) + 1);
    unsigned kind = g_test_rand_int_range (0, 16), tag = step % 199 + 1;

    switch (kind) {
    case 0: do_flush (w, 0); break;
    case 1: drain (w, 0, n * BLOCK, at * BLOCK); break;
    case 2: do_zero (w, 0, n * BLOCK, at * BLOCK); tag = 0; break;
    case 3: do_fua (w, 0, n * BLOCK, at * BLOCK, tag); break;
    case 4: case 5: case 6: case 7:
      do_write (w, 0, n * BLOCK, at * BLOCK, tag);
      break;
    case 8:                     /* a stream */
      for (unsigned i = 0; i < BLOCKS; i++)
        do_read (w, 0, BLOCK, i * BLOCK, model[i]);
      break;
    default:
      for (unsigned i = at; i < at + n; i++)
        do_read (w, 0, BLOCK, i * BLOCK, model[i]);
    }
    for (unsigned i = at; i < at + n && kind >= 2 && kind <= 7; i++)
      model[i] = tag;
    if (step % 100 == 99)
      fake_make_slow (w->c[0]);
  }
  do_flush (w, 0);
  for (unsigned i = 0; i < BLOCKS; i++)
    assert_device (w->f, BLOCK, i * BLOCK, model[i]);
}

static const struct test tests[] = {
  { "contexts/lazy", test_lazy, .on = CONTEXTS_ONLY },
  { "contexts/burst", test_burst, .on = CONTEXTS_ONLY },
  { "contexts/pieces", test_pieces, .on = CONTEXTS_ONLY },
  { "contexts/demand", test_demand, .on = CONTEXTS_ONLY },
  { "contexts/kept", test_kept, .on = CONTEXTS_ONLY },
  { "contexts/apart", test_apart, .on = CONTEXTS_ONLY },
  { "contexts/idle", test_idle, .on = CONTEXTS_ONLY },
  { "contexts/none", test_none, .on = CONTEXTS_ONLY },
  { "contexts/logged-again", test_logged_again, .on = CONTEXTS_ONLY },
  { "contexts/some", test_some, .on = CONTEXTS_ONLY },
  { "contexts/breaks/eio", test_breaks, EIO, CONTEXTS_ONLY },
  { "contexts/breaks/enospc", test_breaks, ENOSPC, CONTEXTS_ONLY },
  { "contexts/breaks/first", test_breaks_between, AT_FIRST, CONTEXTS_ONLY },
  { "contexts/breaks/soon", test_breaks_between, SOON, CONTEXTS_ONLY },
  { "contexts/breaks/later", test_breaks_between, LATER, CONTEXTS_ONLY },
  { "contexts/breaks/again", test_breaks_again, .on = CONTEXTS_ONLY },
  { "contexts/all-break", test_all_break, .on = CONTEXTS_ONLY },
  { "contexts/hidden/read", test_hidden, .on = CONTEXTS_ONLY },
  { "contexts/hidden/error", test_hidden_error, .on = CONTEXTS_ONLY },
  { "contexts/hidden/error-gone", test_hidden_error_gone,
    .on = CONTEXTS_ONLY },
  { "contexts/hidden/failing", test_hidden_failing, .on = CONTEXTS_ONLY },
  { "contexts/hidden/stream", test_hidden_stream, .on = CONTEXTS_ONLY },
  { "contexts/hang/free", test_hang_free, .on = CONTEXTS_ONLY },
  { "contexts/hang/fails", test_hang_fails, .on = CONTEXTS_ONLY },
  { "contexts/hang/retry", test_hang_retry, .on = CONTEXTS_ONLY },
  { "contexts/hang/close", test_hang_close, .on = CONTEXTS_ONLY },
  { "contexts/fail-together", test_fail_together, .on = CONTEXTS_ONLY },
  { "contexts/stop", test_stop, .on = CONTEXTS_ONLY },
  { "contexts/names", test_names, .on = CONTEXTS_ONLY },
  { "contexts/flush-fails", test_flush_fails, .on = CONTEXTS_ONLY },
  { "contexts/overtaken", test_overtaken, .on = CONTEXTS_ONLY },
  { "contexts/unshared/flush", test_unshared, true, CONTEXTS_ONLY },
  { "contexts/unshared/no-flush", test_unshared, false, CONTEXTS_ONLY },
  { "contexts/model/shared", test_model, true, CONTEXTS_ONLY },
  { "contexts/model/unshared", test_model, false, CONTEXTS_ONLY },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
