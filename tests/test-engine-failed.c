/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Failed writes: a deferred write that fails is kept, served and tried again.
 *
 * The data stays in a FAILED buffer.  The next flush tries it again, and
 * returns the plugin's error if it fails again.  From the first failure until a
 * flush succeeds, the device is "failing", and its writes are direct.  A newer
 * change of the same bytes supersedes failed data.  After EPERM or EROFS, a
 * flush that fails again drops data whose error an earlier flush has returned.
 *
 * Not here: failed data at the end of a connection (test-engine-close.c), and
 * of possibly the same device (test-engine-devices.c).
 */
#include "flush.h"
#include "world.h"

/* Failure and retry. */

/* A write fails.  It is read all the same, writes are direct from then on, and
 * the flush tries it again: with success at once, or after one more failure.
 */
static void
test_retry (struct world *w)
{
  unsigned retries = w->arg;    /* how often the flush's tries fail */
  struct part parts[] = { { 0, 4096, OLD }, { 4096, 4096, 1 },
                          { 8192, 4096, OLD } };
  int fail, hold;

  open_writeback (w, 8 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, 4096, 4096, ENOSPC, 1 + retries);
  do_write (w, 0, 4096, 4096, 1);
  g_assert_true (drain (w, 1, U, 0));
  wait_state (w, BUF_FAILED, 0, U, 1);
  g_assert_true (is_failing (w, 0));
  assert_reads (w, 0, parts, 3);
  assert_reads (w, 1, parts, 3);
  assert_device (w->f, 4096, 4096, OLD);

  /* From now on writes are direct, on all connections. */
  hold = gate_hold (w->gate, GATE_WRITE, 4 * U, U);
  for (unsigned i = 0; i < 2; i++) {
    struct task *write = start_held (w, hold, i, WRITE, 4096, 4 * U, 5);

    task_wait_blocked (write);
    gate_pass (w->gate, hold, 1);
    task_ends (write, 0);
  }
  gate_release (w->gate, hold);
  assert_counter (w, STATS_DEFERRED_ERRORS, 1);
  gate_forget (w->gate);

  if (retries > 0) {
    struct gate_op op;

    /* The flush tries on its own thread, where no error code is lost.  But it
     * uses no hook, and no serial handle, of another connection there.
     */
    flush_fails (w, 1, ENOSPC);
    assert_started (w, GATE_WRITE, 0, U, 1);
    op = gate_op (w->gate, GATE_WRITE, 0, U, 0);
    g_assert_true (is_on_this_thread (op) == !(w->hooked || w->serial));
    g_assert_cmpuint (op.conn, ==, 0);
    assert_started (w, GATE_FLUSH, ANYWHERE, 0);
    g_assert_true (is_failing (w, 0));
    assert_reads (w, 0, parts, 3);
    gate_release (w->gate, fail);
    gate_forget (w->gate);
  }
  do_flush (w, 1);
  assert_order (gate_op (w->gate, GATE_WRITE, 0, U, 0),
                gate_op (w->gate, GATE_FLUSH, ANYWHERE, 0));
  assert_devices (w->f, parts, 3);
  assert_states (w, BUF_FAILED, 0, 8 * U, 0);
  g_assert_false (is_failing (w, 0));
  do_write (w, 0, 4096, 4096, 2);
  assert_states (w, BUF_OPEN, 0, U, 1);
}

/* Of several failed writes the flush returns the error of the oldest that it
 * cannot write.
 */
static void
test_several (struct world *w)
{
  int fail_first, fail_second, hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  fail_second = gate_fail (w->gate, GATE_WRITE, 0, U, ENOSPC, -1);
  fail_first = gate_fail (w->gate, GATE_WRITE, U, U, EIO, -1);
  do_write (w, 0, U, U, 1);
  do_write (w, 1, U, 0, 2);
  do_write (w, 0, U, 2 * U, 3);
  gate_wait_held (w->gate, hold, 3);
  gate_release (w->gate, hold);
  wait_state (w, BUF_FAILED, 0, 2 * U, 2);
  flush_fails (w, 0, EIO);
  gate_release (w->gate, fail_first);
  flush_fails (w, 0, ENOSPC);
  assert_device (w->f, U, U, 1);
  do_read (w, 0, U, 0, 2);
  gate_release (w->gate, fail_second);
  do_flush (w, 0);
  assert_device (w->f, U, 0, 2);
}

/* A younger write that overlaps failed data is written all the same.  The flush
 * writes only the rest of the failed data.
 */
static void
test_order (struct world *w)
{
  struct part parts[] = { { 0, 4096, 1 }, { 4096, 2048, 2 }, { 6144, 4096, 3 },
                          { 10240, U - 10240, 1 } };
  struct task *waiter;
  int hold, fail;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, EIO, 1);
  do_write (w, 0, U, 0, 1);
  gate_wait_held (w->gate, hold, 1);
  do_write (w, 0, 4096, 4096, 2);
  do_write (w, 1, 4096, 6144, 3);       /* overlaps both */
  waiter = start_blocked (w, 0, DRAIN, U, 0, 0);        /* none is OPEN */
  gate_release (w->gate, hold);
  task_ends (waiter, true);
  assert_states (w, BUF_FAILED, 0, U, 1);
  assert_started (w, GATE_WRITE, ANYWHERE, 3);
  for (unsigned i = 0; i < 2; i++)
    assert_order (gate_op (w->gate, GATE_WRITE, 0, U, i),
                  gate_op (w->gate, GATE_WRITE, 0, U, i + 1));
  assert_reads (w, 0, parts, 4);
  assert_reads (w, 1, parts, 4);
  gate_release (w->gate, fail);
  gate_forget (w->gate);
  do_flush (w, 1);
  assert_started (w, GATE_WRITE, ANYWHERE, 2);
  assert_started (w, GATE_WRITE, 4096, 6144, 0);
  assert_devices (w->f, parts, 4);
}

/* An error that another try hardly changes.  The first flush that returns it
 * keeps the data: the write's answer may still be on its way to the client.
 * Once the client has it, the next flush returns the error, and only then the
 * data is lost.
 */
static void
test_permanent (struct world *w)
{
  int err = w->arg, fail;

  open_writeback (w, 4 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, 0, 2 * U, err, -1);
  do_write (w, 0, 4096, 0, 1);
  do_write (w, 0, 4096, U, 1);
  do_write (w, 1, 4096, 2 * U, 1);
  flush_fails (w, 1, err);
  assert_n_reports (0);
  for (unsigned i = 0; i < 2; i++)
    do_read (w, i, 4096, 0, 1);
  /* The client gets the answers of its writes here, and flushes. */
  flush_fails (w, 0, err);
  assert_reports (":0+4096:lost", ":65536+4096:lost");
  do_read (w, 0, 4096, 0, OLD);
  do_flush (w, 1);
  g_assert_false (is_failing (w, 0));
  assert_device (w->f, 4096, 2 * U, 1);
  gate_release (w->gate, fail);
}

/* The plugin takes the data after all. */
static void
test_permanent_ends (struct world *w)
{
  open_writeback (w, 4 * U, 8, 2);
  make_failed (w, 0, 4096, 0, 1, EPERM);
  do_flush (w, 1);
  assert_device (w->f, 4096, 0, 1);
  g_assert_false (is_failing (w, 0));
}

/* Two flushes at once.  One returns the error before the other one's try fails.
 * The other one began before that, and keeps the data as well.
 */
static void
test_permanent_at_once (struct world *w)
{
  struct task *first, *second;
  int fail, hold;

  open_writeback (w, 4 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, 0, U, EPERM, -1);
  do_write (w, 0, 4096, 0, 1);
  g_assert_true (drain (w, 0, U, 0));
  hold = gate_hold (w->gate, GATE_WRITE, 0, U);
  first = start_held_flush (w, hold, 0);
  second = start_blocked_flush (w, 1);
  gate_pass (w->gate, hold, 1);
  task_ends (first, EPERM);
  gate_release (w->gate, hold);
  task_ends (second, EPERM);
  assert_n_reports (0);
  do_read (w, 1, 4096, 0, 1);
  flush_fails (w, 1, EPERM);
  assert_reports (":0+4096:lost");
  do_flush (w, 0);
  gate_release (w->gate, fail);
}

/* The same after an earlier flush has returned the error: the first one drops
 * the data that the second one waits for.  Both return the error.
 */
static void
test_dropped_meanwhile (struct world *w)
{
  struct task *first, *second;
  int fail, hold;

  open_writeback (w, 4 * U, 8, 2);
  fail = gate_fail (w->gate, GATE_WRITE, 0, U, EPERM, -1);
  do_write (w, 0, 4096, 0, 1);
  flush_fails (w, 1, EPERM);
  hold = gate_hold (w->gate, GATE_WRITE, 0, U);
  first = start_held_flush (w, hold, 0);
  second = start_blocked_flush (w, 1);
  gate_release (w->gate, hold);
  task_ends (first, EPERM);
  task_ends (second, EPERM);
  assert_reports (":0+4096:lost");
  do_flush (w, 1);
  gate_release (w->gate, fail);
}

/* A connection that cannot write flushes while failed data waits for a direct
 * operation.  The flush waits as well.
 */
static void
test_readonly (struct world *w)
{
  struct backend b;
  struct task *zero, *flush;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  b = world_backend (w, 2);
  b.can_write = false;
  world_open_as (w, 2, "", &b);
  make_failed (w, 0, 8192, 0, 1, EIO);
  hold = gate_hold (w->gate, GATE_ZERO, ANYWHERE);
  zero = start_held (w, hold, 1, ZERO, 4096, 0, 0);
  flush = start_blocked_flush (w, 2);
  gate_release (w->gate, hold);
  task_ends (zero, 0);
  task_ends (flush, 0);
  assert_device (w->f, 4096, 0, 0);
  assert_device (w->f, 4096, 4096, 1);
}

/* The device is failing. */

/* A device is failing until a flush succeeds, and not only until its failed
 * data is gone.
 */
static void
test_sticks (struct world *w)
{
  int fail;

  open_writeback (w, 8 * U, 8, 2);
  make_failed (w, 0, 4096, 0, 1, EIO);
  do_write (w, 1, 4096, 0, 2);          /* supersedes it */
  assert_states (w, BUF_FAILED, 0, 8 * U, 0);
  g_assert_true (is_failing (w, 0));
  fail = gate_fail (w->gate, GATE_FLUSH, ANYWHERE, EIO, -1);
  flush_fails (w, 0, EIO);
  g_assert_true (is_failing (w, 0));
  do_write (w, 1, 4096, 0, 3);
  assert_device (w->f, 4096, 0, 3);
  gate_release (w->gate, fail);
  do_flush (w, 0);
  g_assert_false (is_failing (w, 0));
}

/* A write fails while the plugin flushes.  That flush succeeds, but the device
 * is failing until the next one.
 */
static void
test_meanwhile (struct world *w)
{
  struct task *flush;
  int hold, fail;

  open_writeback (w, 8 * U, 8, 2);
  hold = gate_hold (w->gate, GATE_FLUSH, ANYWHERE);
  fail = gate_fail (w->gate, GATE_WRITE, 0, U, EIO, 1);
  flush = start_held_flush (w, hold, 0);
  do_write (w, 1, U, 0, 1);
  wait_state (w, BUF_FAILED, 0, U, 1);
  gate_release (w->gate, hold);
  task_ends (flush, 0);
  g_assert_true (is_failing (w, 0));
  gate_release (w->gate, fail);
  do_flush (w, 0);
  g_assert_false (is_failing (w, 0));
}

/* A flush ends while another one tries failed data again.  The device is still
 * failing.
 */
static void
test_busy (struct world *w)
{
  struct task *flush;
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  make_failed (w, 0, 4096, 0, 1, EIO);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  flush = start_held_flush (w, hold, 0);
  /* As a flush that found nothing to wait for. */
  g_assert_cmpint (flush_end (w->c[1], 0), ==, 0);
  g_assert_true (is_failing (w, 0));
  gate_release (w->gate, hold);
  task_ends (flush, 0);
}

/* A writer waits for a buffer when a write fails.  Its own write is direct
 * then.
 */
static void
test_waiter (struct world *w)
{
  struct task *write;
  int first, rest, fail;

  open_writeback (w, 8 * U, 4, 4);
  first = gate_hold (w->gate, GATE_WRITE, 0, U);
  rest = gate_hold (w->gate, GATE_WRITE, U, 3 * U);
  fail = gate_fail (w->gate, GATE_WRITE, 0, U, EIO, -1);
  write_units (w, 0, 0, 4, 1);
  write = start_blocked (w, 1, WRITE, U, 5 * U, 2);
  gate_release (w->gate, first);
  task_ends (write, 0);
  assert_device (w->f, U, 5 * U, 2);
  gate_release (w->gate, rest);
  gate_release (w->gate, fail);
  do_flush (w, 0);
}

/* Newer data supersedes failed data. */

/* The range of the FAILED data. */
enum { FAILED_FROM = U + 8192, FAILED_TO = FAILED_FROM + 16384 };

/* The direct operation, in relation to that. */
static const struct place {
  const char *name;
  uint64_t offset;
  uint32_t count;
} places[] = {
  { "exactly", U + 8192, 16384 }, { "wholly", U, U }, { "wider", U / 2, 2 * U },
  { "head", U + 4096, 8192 }, { "tail", U + 16384, U },
  { "middle", U + 12288, 4096 },
};

struct super {
  enum kind kind;
  const struct place *at;
  bool flushing;                /* a flush comes while the operation runs */
};

/* Each combination of its fields, from a number. */
static struct super
super_of (unsigned n)
{
  return (struct super) {
    .kind = WRITE + n / 2 / G_N_ELEMENTS (places),
    .at = &places[n / 2 % G_N_ELEMENTS (places)], .flushing = n & 1
  };
}

/* A direct operation over failed data replaces these bytes, and only these.  A
 * flush that comes meanwhile waits for the operation, and writes the rest.
 */
static void
test_supersede (struct world *w)
{
  struct super s = super_of (w->arg);
  uint32_t count = s.at->count;
  uint64_t offset = s.at->offset, lo = FAILED_FROM, hi = FAILED_TO;
  uint64_t from = MAX (offset, lo), to = MIN (offset + count, hi);
  unsigned tag = s.kind == ZERO ? 0 : 2;
  struct part parts[] = { { lo, from - lo, 1 }, { from, to - from, tag },
                          { to, hi - to, 1 } };
  unsigned already = fake_kind (s.kind) == GATE_WRITE, written;
  struct task *direct, *flush = NULL;
  int hold;

  open_writeback (w, 4 * U, 8, 4);
  make_failed (w, 0, hi - lo, lo, 1, EIO);
  hold = gate_hold (w->gate, fake_kind (s.kind), from, to - from);
  direct = start_held (w, hold, 1, s.kind, count, offset, 2);
  do_read (w, 0, hi - lo, lo, 1);       /* it is not answered yet */
  if (s.flushing) {
    flush = start_blocked_flush (w, 0);
    assert_states (w, BUF_READY, lo, hi - lo, 1);
    assert_started (w, GATE_WRITE, from, to - from, already);
  }
  gate_release (w->gate, hold);
  task_ends (direct, 0);
  written = gate_started (w->gate, GATE_WRITE, from, to - from);
  if (s.kind == TRIM)
    parts[1].count = 0;         /* the device may hold anything there */
  for (unsigned p = 0; p < 3; p++)
    if (parts[p].count > 0)
      for (unsigned i = 0; i < 2; i++)
        do_read (w, i, parts[p].count, parts[p].offset, parts[p].tag);
  if (s.kind != TRIM)
    assert_reads (w, 0, parts, 3);
  if (flush)
    task_ends (flush, 0);
  do_flush (w, 0);
  assert_devices (w->f, parts, 3);
  if (s.kind != TRIM)
    assert_device (w->f, count, offset, tag);
  /* Superseded data is not written again. */
  g_assert_cmpuint (written, ==, already);
  assert_started (w, GATE_WRITE, from, to - from, written);
  assert_no_collisions (w);
}

/* An operation that the plugin refuses replaces nothing. */
static void
test_supersede_error (struct world *w)
{
  int fail;

  open_writeback (w, 4 * U, 8, 4);
  make_failed (w, 0, 4096, 0, 1, EIO);
  fail = gate_fail (w->gate, GATE_CHANGE, ANYWHERE, ENOSPC, -1);
  for (enum kind kind = WRITE; kind <= TRIM; kind++)
    request_fails (w, 1, kind, U, 0, 2, ENOSPC);
  do_read (w, 0, 4096, 0, 1);
  gate_release (w->gate, fail);
  do_flush (w, 0);
  assert_device (w->f, 4096, 0, 1);
}

/* A read that copies from failed data keeps the buffer from reuse.  The newer
 * write does not wait for the read, and new reads see the newer data.
 */
static void
test_supersede_pinned (struct world *w)
{
  struct task *read;
  int hold;

  open_writeback (w, 4 * U, 8, 4);
  make_failed (w, 0, 8192, 0, OLD, EIO);
  hold = gate_hold (w->gate, GATE_READ, 8192, U);
  read = start_held (w, hold, 0, READ, U, 0, OLD);
  do_write (w, 1, 8192, 0, 2);
  do_read (w, 0, 4096, 0, 2);
  assert_states (w, BUF_FAILED, 0, U, 0);
  assert_free (w, 7);
  gate_release (w->gate, hold);
  task_ends (read, 0);
  assert_free (w, 8);
  do_flush (w, 0);
  assert_device (w->f, 8192, 0, 2);
}

/* Newer data in the middle of failed data leaves two pieces.  Each is written,
 * read and reported.
 */
static void
test_pieces (struct world *w)
{
  struct part parts[] = { { 4096, 4096, 1 }, { 8192, 4096, 2 },
                          { 12288, 4096, 1 }, { 16384, 512, 3 },
                          { 16896, 3584, 1 } };
  int fail;

  open_writeback (w, 8 * U, 8, 4);
  make_failed (w, 0, 16384, 4096, 1, ENOSPC);
  do_write (w, 1, 4096, 8192, 2);
  do_fua (w, 1, 512, 16384, 3);
  assert_reads (w, 0, parts, 5);
  assert_reads (w, 1, parts, 5);
  fail = gate_fail (w->gate, GATE_WRITE, 12288, 4096, ENOSPC, -1);
  flush_fails (w, 1, ENOSPC);
  assert_reads (w, 1, parts, 5);
  assert_device (w->f, 4096, 4096, 1);
  world_close (w, 1);
  world_close (w, 0);
  assert_reports (":12288+4096:lost", ":16896+3584:lost");
  gate_release (w->gate, fail);
}

/* A flush has workers try failed data again.  One buffer waits for a direct
 * operation, which replaces a part of it.  The rest is written.
 */
static void
test_pieces_wait (struct world *w)
{
  struct task *zero, *flush;
  int hold, fail;

  open_writeback (w, 8 * U, 8, 4);
  fail = gate_fail (w->gate, GATE_WRITE, ANYWHERE, EIO, -1);
  do_write (w, 0, 4096, 3 * U, 1);
  do_write (w, 0, 8192, 0, 1);
  flush_fails (w, 0, EIO);
  assert_states (w, BUF_FAILED, 0, 4 * U, 2);
  gate_release (w->gate, fail);
  hold = gate_hold (w->gate, GATE_ZERO, ANYWHERE);
  zero = start_held (w, hold, 1, ZERO, 4096, 0, 0);
  flush = start_flush (w, 0);
  wait_state (w, BUF_READY, 0, U, 1);
  task_wait_blocked (flush);
  gate_release (w->gate, hold);
  task_ends (zero, 0);
  task_ends (flush, 0);
  assert_device (w->f, 4096, 0, 0);
  assert_device (w->f, 4096, 4096, 1);
}

/* Two direct operations are under way over one buffer of failed data.  A flush
 * waits for both, and writes the bytes that neither has replaced.  It does not
 * wait for an operation elsewhere.
 */
static void
test_pieces_two (struct world *w)
{
  uint32_t count = w->arg;      /* bytes that each of them takes of 16384 */
  struct part parts[] = { { 0, count, 0 }, { count, 8192 - count, 1 },
                          { 8192, count, 0 },
                          { 8192 + count, 8192 - count, 1 } };
  struct task *far, *zero[2], *flush;
  int hold_far, hold[2];

  open_writeback (w, 4 * U, 8, 4);
  make_failed (w, 0, 16384, 0, 1, EIO);
  hold_far = gate_hold (w->gate, GATE_ZERO, 3 * U, U);
  far = start_held (w, hold_far, 0, ZERO, U, 3 * U, 0);
  for (unsigned i = 0; i < 2; i++) {
    hold[i] = gate_hold (w->gate, GATE_ZERO, i * 8192, 8192);
    zero[i] = start_held (w, hold[i], i, ZERO, count, i * 8192, 0);
  }
  flush = start_flush (w, 0);
  for (unsigned i = 0; i < 2; i++) {
    task_wait_blocked (flush);
    assert_states (w, BUF_READY, 0, U, 1);
    assert_started (w, GATE_WRITE, ANYWHERE, 0);
    gate_release (w->gate, hold[i]);
    task_ends (zero[i], 0);
  }
  task_ends (flush, 0);
  gate_release (w->gate, hold_far);
  task_ends (far, 0);
  for (unsigned i = 0; i < 4; i++) {
    if (parts[i].count == 0)
      continue;
    assert_device (w->f, parts[i].count, parts[i].offset, parts[i].tag);
    assert_started (w, GATE_WRITE, parts[i].offset, parts[i].count,
                    parts[i].tag);
  }
  assert_reads (w, 1, parts, 4);
  assert_states (w, BUF_FAILED, 0, 4 * U, 0);
  assert_no_collisions (w);
}

static void
add_supersede (void)
{
  for (unsigned n = 0; n < 4 * 2 * G_N_ELEMENTS (places); n++) {
    struct super s = super_of (n);
    g_autofree char *name
      = g_strdup_printf ("failed/supersede/%s/%s%s", kind_names[s.kind],
                         s.at->name, s.flushing ? "/flushing" : "");

    tests_add (&(struct test) { name, test_supersede, n }, 1);
  }
}

/* A write has deferred its first part, which fails.  Flushes of another
 * connection return the error while the second part is under way.
 */

enum part_case {
  PART_ONE_FLUSH,               /* the write succeeds */
  PART_TWO_FLUSHES,             /* the second one drops the data */
  PART_CLOSE                    /* the connections end without another flush */
};

static void
test_part (struct world *w)
{
  enum part_case part = w->arg;
  int err = part == PART_CLOSE ? ENOSPC : EPERM, other, fail, hold;
  struct task *write;

  /* Another device has one of two buffers, and the first part gets the other
   * one.  So the second part is direct.
   */
  open_writeback (w, 8 * U, 2, 2);
  world_open (w, 2, "other");
  other = gate_hold (w->gate, GATE_WRITE, 0, U);
  do_write (w, 2, U, 0, 1);
  gate_wait_held (w->gate, other, 1);
  fail = gate_fail (w->gate, GATE_WRITE, 4 * U, U, err, -1);
  hold = gate_hold (w->gate, GATE_WRITE, 5 * U, U);
  write = start_held (w, hold, 0, WRITE, U + 4096, 4 * U, 1);
  flush_fails (w, 1, err);
  assert_n_reports (0);
  if (part == PART_TWO_FLUSHES) {
    flush_fails (w, 1, err);
    assert_reports (":262144+65536:lost");
  }
  gate_release (w->gate, hold);
  /* A later flush succeeds, so the write must not. */
  task_ends (write, part == PART_TWO_FLUSHES ? err : 0);
  if (part == PART_ONE_FLUSH) {
    /* The client has heard of no error since the answer. */
    flush_fails (w, 1, err);
    assert_n_reports (0);
    do_read (w, 0, U + 4096, 4 * U, 1);
    flush_fails (w, 0, err);
    assert_reports (":262144+65536:lost");
  }
  else if (part == PART_CLOSE) {
    world_close (w, 0);
    world_close (w, 1);
    assert_reports (":262144+65536:kept", ":262144+65536:lost");
    world_open (w, 0, "");
    flush_fails (w, 0, err);
  }
  do_flush (w, 0);
  gate_release (w->gate, fail);
  gate_release (w->gate, other);
}

static const struct test tests[] = {
  { "failed/retries/0", test_retry, 0 },
  { "failed/retries/1", test_retry, 1 },
  { "failed/part/one-flush", test_part, PART_ONE_FLUSH },
  { "failed/part/two-flushes", test_part, PART_TWO_FLUSHES },
  { "failed/part/close", test_part, PART_CLOSE },
  { "failed/several", test_several },
  { "failed/order", test_order },
  { "failed/permanent/EPERM", test_permanent, EPERM },
  { "failed/permanent/EROFS", test_permanent, EROFS },
  { "failed/permanent-ends", test_permanent_ends },
  { "failed/permanent-at-once", test_permanent_at_once },
  { "failed/dropped-meanwhile", test_dropped_meanwhile },
  { "failed/readonly", test_readonly },
  { "failed/sticks", test_sticks },
  { "failed/meanwhile", test_meanwhile },
  { "failed/busy", test_busy },
  { "failed/waiter", test_waiter },
  { "failed/supersede-error", test_supersede_error },
  { "failed/supersede-pinned", test_supersede_pinned, .on = PARALLEL },
  { "failed/pieces", test_pieces },
  { "failed/pieces-wait", test_pieces_wait },
  { "failed/pieces-two/part", test_pieces_two, 4096, .on = PARALLEL },
  { "failed/pieces-two/all", test_pieces_two, 8192, .on = PARALLEL },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  add_supersede ();
  return tests_run ();
}
