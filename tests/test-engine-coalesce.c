/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Coalescing: small deferred writes join in one buffer, and the plugin gets one
 * operation for them.
 *
 * A deferred write stays in an OPEN buffer, which grows by adjacent writes.
 * The buffer is written when it is full, after the linger time, or when a flush
 * or an overlapping request needs it.
 */
#include <signal.h>
#include <sys/mman.h>

#include "world.h"

/* Adjacent and overlapping writes are one operation.  Writes with a gap between
 * them are two.
 */
static void
test_join (struct world *w)
{
  struct engine_config c = config (8, 2, WRITE_BEHIND, READ_DIRECT);
  struct gate_op op;

  c.buffer_size = 128 * KIB;
  world_init (w, 1024 * KIB, c);
  for (unsigned i = 0; i < 32; i++)
    do_write (w, 0, 4096, 128 * KIB + i * 4096, 1);
  gate_wait_ended (w->gate, GATE_WRITE, ANYWHERE, 1);      /* without a flush */
  op = gate_op (w->gate, GATE_WRITE, ANYWHERE, 0);
  g_assert_cmpuint (op.offset, ==, 128 * KIB);
  g_assert_cmpuint (op.count, ==, 128 * KIB);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 1);
  assert_device (w->f, 128 * KIB, 128 * KIB, 1);
  assert_counter (w, STATS_DEFERRED, 32);
  assert_counter (w, STATS_COALESCED, 31);

  /* In reverse, and overlapping. */
  gate_forget (w->gate);
  do_write (w, 0, 4096, 8192, 2);
  do_write (w, 0, 8192, 4096, 3);
  do_write (w, 0, 6144, 0, 4);
  assert_reads (w, 1, PARTS ({ 0, 6144, 4 }, { 6144, 6144, 3 },
                             { 12288, 4096, OLD }));
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 1);
  assert_devices (w->f, PARTS ({ 0, 6144, 4 }, { 6144, 6144, 3 },
                               { 12288, 4096, OLD }));

  /* With a gap. */
  gate_forget (w->gate);
  do_write (w, 0, 4096, 0, 5);
  do_write (w, 0, 4096, 8192, 5);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 2);
  assert_device (w->f, 2048, 6144, 3);
}

/* A write over several units is deferred in several buffers. */
static void
test_over_units (struct world *w)
{
  int hold;

  open_writeback (w, 8 * U, 8, 4);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, 2 * U, U / 2, 1);
  assert_reads (w, 1, PARTS ({ 0, U / 2, OLD }, { U / 2, 2 * U, 1 },
                             { 5 * U / 2, U, OLD }));
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 3);
  assert_device (w->f, 2 * U, U / 2, 1);
}

/* A buffer that does not grow any more is written after the linger time. */
static void
test_linger (struct world *w)
{
  struct engine_config c = config (8, 2, WRITE_BEHIND, READ_DIRECT);

  c.linger_ns = 0;
  world_init (w, 8 * U, c);
  for (unsigned i = 1; i < 3; i++) {
    do_write (w, 0, 4096, 4096, i);
    gate_wait_ended (w->gate, GATE_WRITE, ANYWHERE, i);    /* without a flush */
    assert_device (w->f, 4096, 4096, i);
  }
}

/* The linger time counts from the first write in the buffer. */
static void
test_linger_join (struct world *w)
{
  uint64_t since;

  open_writeback (w, 8 * U, 8, 2);
  do_write (w, 0, 4096, 0, 1);
  since = open_since_ns (w);
  do_write (w, 0, 4096, 4096, 1);
  g_assert_cmpuint (open_since_ns (w), ==, since);
}

/* Which buffer a write may join. */

/* A write joins a READY buffer, which waits for an older one, if it overwrites
 * only bytes that this buffer has.
 */
static void
test_join_ready (struct world *w)
{
  struct task *waiter;
  int hold;

  open_writeback (w, 8 * U, 8, 2);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 0, 1);
  do_write (w, 0, 8192, 4096, 2);
  waiter = start_blocked (w, 1, DRAIN, U, 0, 0);
  assert_states (w, BUF_READY, 0, U, 1);
  do_write (w, 0, 4096, 4096, 3);
  do_read (w, 0, 4096, 4096, 3);
  gate_release (w->gate, hold);
  task_ends (waiter, false);
  do_flush (w, 0);
  assert_devices (w->f, PARTS ({ 0, 4096, 1 }, { 4096, 4096, 3 },
                               { 8192, 4096, 2 }, { 12288, 4096, 1 }));
  assert_started (w, GATE_WRITE, ANYWHERE, 2);
}

/* Writers that wait for a buffer join the one that another writer gets. */
static void
test_join_waiting (struct world *w)
{
  enum { N = 4 };
  struct task *writers[N];
  int hold;

  open_writeback (w, 32 * U, 8, 8);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 0, 8, 1);
  gate_wait_held (w->gate, hold, 8);
  for (unsigned i = 0; i < N; i++)
    writers[i] = start_blocked (w, 0, WRITE, 4096, 16 * U + i * 4096, 2);
  gate_pass (w->gate, hold, 1);
  for (unsigned i = 0; i < N; i++)
    task_ends (writers[i], 0);
  gate_release (w->gate, hold);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, 16 * U, U, 1);
  assert_devices (w->f, PARTS ({ 0, 8 * U, 1 }, { 16 * U, N * 4096, 2 }));
}

/* A write joins no buffer but the youngest one with these bytes. */
static void
test_join_youngest (struct world *w)
{
  struct task *waiter;
  int hold;

  open_writeback (w, 8 * U, 8, 2);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  do_write (w, 0, U, 0, 1);
  do_write (w, 0, 8192, 4096, 2);
  waiter = start_blocked (w, 1, DRAIN, U, 0, 0);        /* none is OPEN */
  do_write (w, 1, 4096, 4096, 3);
  do_write (w, 0, 4096, 4096, 4);
  do_read (w, 0, 4096, 4096, 4);
  gate_release (w->gate, hold);
  task_ends (waiter, false);
  do_flush (w, 0);
  assert_device (w->f, 4096, 4096, 4);
}

/* A write joins one buffer and overlaps an older one.  The older one grows no
 * more, as the younger one waits for it.
 */
static void
test_join_overlaps (struct world *w)
{
  open_writeback (w, 8 * U, 8, 2);
  do_write (w, 0, 4096, 0, 1);
  do_write (w, 1, 4096, 8192, 2);
  do_write (w, 1, 8192, 2048, 3);
  gate_wait_ended (w->gate, GATE_WRITE, 0, 2048, 1);       /* without a flush */
  assert_states (w, BUF_OPEN, 0, U, 1);
  do_flush (w, 0);
  assert_started (w, GATE_WRITE, ANYWHERE, 2);
  assert_devices (w->f, PARTS ({ 0, 2048, 1 }, { 2048, 8192, 3 },
                               { 10240, 2048, 2 }));
}

/* The copy of a write into its buffer.
 *
 * The data of this write is a page that no thread may read.  So the copy stops
 * in the handler of SIGSEGV, until the gate is opened.
 */

static struct {
  char *page;
  struct sigaction old;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool is_entered, is_open;
} copy_gate = {
  .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER
};

static void
on_fault (int signal, siginfo_t *info, void *context G_GNUC_UNUSED)
{
  char *at = info->si_addr;

  if (at < copy_gate.page || at >= copy_gate.page + U) {
    sigaction (signal, &(struct sigaction) { .sa_handler = SIG_DFL }, NULL);
    return;
  }
  pthread_mutex_lock (&copy_gate.lock);
  copy_gate.is_entered = true;
  pthread_cond_broadcast (&copy_gate.changed);
  while (!copy_gate.is_open)
    pthread_cond_wait (&copy_gate.changed, &copy_gate.lock);
  pthread_mutex_unlock (&copy_gate.lock);
  mprotect (copy_gate.page, U, PROT_READ | PROT_WRITE);
}

static void *
write_gated (void *vp)
{
  struct world *w = vp;

  return GINT_TO_POINTER (request (w, 0, WRITE, copy_gate.page, U, 0));
}

/* Starts a write of the first unit, with tag 1, whose copy stops. */
static pthread_t
start_copy (struct world *w)
{
  struct sigaction new = {
    .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER
  };
  pthread_t writer;

  copy_gate.page = mmap (NULL, U, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  g_assert_true (copy_gate.page != MAP_FAILED);
  fill (copy_gate.page, U, 0, 1);
  copy_gate.is_entered = copy_gate.is_open = false;
  g_assert_cmpint (mprotect (copy_gate.page, U, PROT_NONE), ==, 0);
  sigaction (SIGSEGV, &new, &copy_gate.old);

  g_assert_cmpint (pthread_create (&writer, NULL, write_gated, w), ==, 0);
  LOCK_IN_SCOPE (&copy_gate.lock);
  while (!copy_gate.is_entered)
    pthread_cond_wait (&copy_gate.changed, &copy_gate.lock);
  return writer;
}

/* Lets it go on, and waits for the end of the write. */
static void
end_copy (pthread_t writer)
{
  void *err;

  {
    LOCK_IN_SCOPE (&copy_gate.lock);
    copy_gate.is_open = true;
    pthread_cond_broadcast (&copy_gate.changed);
  }
  pthread_join (writer, &err);
  g_assert_cmpint (GPOINTER_TO_INT (err), ==, 0);
  sigaction (SIGSEGV, &copy_gate.old, NULL);
  munmap (copy_gate.page, U);
}

/* During the copy no other write joins, reads wait, and a flush does not write
 * the buffer.
 */
static void
test_copying (struct world *w)
{
  struct task *read, *flush;
  pthread_t writer;

  open_writeback (w, 8 * U, 8, 4);
  writer = start_copy (w);
  read = start_blocked (w, 1, READ, 4096, 4096, 2);
  do_write (w, 0, 4096, 4096, 2);
  g_assert_cmpuint (count_state (w, BUF_OPEN, 0, U)
                    + count_state (w, BUF_READY, 0, U), ==, 2);
  flush = start_blocked_flush (w, 1);
  assert_started (w, GATE_WRITE, ANYWHERE, 0);
  end_copy (writer);
  task_ends (read, 0);
  task_ends (flush, 0);
  assert_device (w->f, 4096, 0, 1);
  assert_device (w->f, 4096, 4096, 2);
}

/* During the copy a writer that waits for a buffer leaves this one OPEN: others
 * may join it.
 */
static void
test_copying_full (struct world *w)
{
  struct task *write;
  pthread_t writer;
  int hold;

  open_writeback (w, 32 * U, 8, 8);
  hold = gate_hold (w->gate, GATE_WRITE, ANYWHERE);
  write_units (w, 0, 8, 7, 1);
  writer = start_copy (w);
  write = start_blocked (w, 0, WRITE, 4096, 20 * U, 3);
  assert_states (w, BUF_OPEN, 0, U, 1);
  end_copy (writer);
  gate_release (w->gate, hold);
  task_ends (write, 0);
  do_flush (w, 0);
  assert_devices (w->f, PARTS ({ 0, U, 1 }, { 20 * U, 4096, 3 }));
}

/* During the copy another device's zero replaces the data, as it waits a
 * bounded time only.  The buffer is free after the copy.
 */
static void
test_copying_dropped (struct world *w)
{
  pthread_t writer;

  open_names (w, 8 * U, config_impatient (READ_DIRECT));
  writer = start_copy (w);
  do_zero (w, 1, U, 0);
  end_copy (writer);
  assert_free (w, 8);
  assert_device (w->f, U, 0, 0);
  flush_fails (w, 0, EIO);
}

static const struct test tests[] = {
  { "coalesce/join", test_join },
  { "coalesce/over-units", test_over_units },
  { "coalesce/linger", test_linger },
  { "coalesce/linger-join", test_linger_join },
  { "coalesce/join-ready", test_join_ready },
  { "coalesce/join-waiting", test_join_waiting },
  { "coalesce/join-youngest", test_join_youngest },
  { "coalesce/join-overlaps", test_join_overlaps },
  { "coalesce/copying", test_copying },
  { "coalesce/copying-full", test_copying_full },
  { "coalesce/copying-dropped", test_copying_dropped },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
