/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of the engine, over the fake device of fake.h.
 *
 * What must happen is shown by gates and by the order in the fake's log.  What must not happen yet
 * is shown when the thread that might do it sleeps (task_wait_blocked).
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <glib.h>

#include "buffers.h"
#include "engine.h"
#include "fake.h"
#include "handover.h"
#include "guard.h"

#define KIB UINT64_C (1024)
#define U (64 * KIB)            /* the unit of most tests */

enum { CONNS = 6, OLD = 200 };  /* OLD: the tag of what the device holds at first */

/* One engine over one or two devices. */
struct world {
  struct fake *f, *f2;
  struct engine *e;
  struct conn *c[CONNS];
};

static GPtrArray *reports;      /* what was reported: "export:offset+length:kept" */

/* A log that is slow: who reports waits while hold is set. */
static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool hold;
  unsigned entered;
} report_gate = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void
report_gate_set (bool hold)
{
  LOCK_IN_SCOPE (&report_gate.lock);
  report_gate.hold = hold;
  report_gate.entered = 0;
  pthread_cond_broadcast (&report_gate.changed);
}

static atomic_uint n_late;

static void
note_late (const char *export_name G_GNUC_UNUSED)
{
  atomic_fetch_add (&n_late, 1);
}

static void
report (const char *export_name, uint64_t offset, uint32_t count, int err, bool kept)
{
  g_assert_cmpint (err, >, 0);
  g_ptr_array_add (reports, g_strdup_printf ("%s:%" PRIu64 "+%" PRIu32 ":%s", export_name, offset,
                                             count, kept ? "kept" : "lost"));
  LOCK_IN_SCOPE (&report_gate.lock);
  report_gate.entered++;
  pthread_cond_broadcast (&report_gate.changed);
  while (report_gate.hold)
    pthread_cond_wait (&report_gate.changed, &report_gate.lock);
}

/* Every byte of the device depends on its place and on the tag. */
static uint8_t
byte_at (unsigned tag, uint64_t offset)
{
  return tag == 0 ? 0 : tag * 31 + (offset >> 8) * 7 + offset;
}

static void
fill (void *vbuf, uint32_t count, uint64_t offset, unsigned tag)
{
  uint8_t *buf = vbuf;

  for (uint32_t i = 0; i < count; i++)
    buf[i] = byte_at (tag, offset + i);
}

static void
assert_filled (const void *vbuf, uint32_t count, uint64_t offset, unsigned tag)
{
  const uint8_t *buf = vbuf;

  for (uint32_t i = 0; i < count; i++)
    if (buf[i] != byte_at (tag, offset + i))
      g_error ("at %" PRIu64 ": found %u, tag %u has %u", offset + i, buf[i], tag,
               byte_at (tag, offset + i));
}

/* Buffers wait to grow for ever, so that what a test finds does not depend on how fast it is. */
static struct engine_config
config (unsigned buffers, unsigned threads, enum write_mode write, enum read_mode read)
{
  return (struct engine_config) { .buffers = buffers, .buffer_size = U, .threads = threads,
                                  .write = write, .read = read, .linger_ns = UINT64_C (3600000000000),
                                  .others_ns = UINT64_C (3600000000000), .report = report, .late = note_late };
}

/* ... or not at all. */
static struct engine_config
config_hasty (unsigned buffers, unsigned threads, enum write_mode write, enum read_mode read)
{
  struct engine_config c = config (buffers, threads, write, read);

  c.linger_ns = 0;
  return c;
}

/* test-hooked.c is this file again, with all over async hooks. */
#ifndef HOOKED
#define HOOKED false
#endif
static const bool hooked = HOOKED;

static struct backend
backend_of (struct fake *f, unsigned i)
{
  struct backend b = fake_backend (f, i);

  if (hooked)
    fake_hook (&b, UINT64_C (3600000000000));
  return b;
}

static void
world_open_on (struct world *w, unsigned i, const char *export, struct fake *f)
{
  struct backend b = backend_of (f, i);

  g_assert_cmpint (conn_open (w->e, export, &b, &w->c[i]), ==, 0);
  fake_make_slow (w->c[i]);
}

static void
world_open (struct world *w, unsigned i, const char *export)
{
  world_open_on (w, i, export, w->f);
}

/* A case that hangs names itself. */
static char case_name[256];

static void
on_alarm (int signal)
{
  static const char text[] = "Bail out! hangs: ";

  (void) signal;
  if (write (STDERR_FILENO, text, sizeof text - 1) == -1
      || write (STDERR_FILENO, case_name, strlen (case_name)) == -1
      || write (STDERR_FILENO, "\n", 1) == -1)
    _exit (2);
  abort ();
}

static void
start_alarm (void)
{
  const char *variant = g_getenv ("VARIANT"), *tool = g_getenv ("TOOL");
  bool slow = g_test_thorough () || (tool && *tool) || (variant && strcmp (variant, "plain") != 0);

  g_strlcpy (case_name, g_test_get_path (), sizeof case_name);
  signal (SIGALRM, on_alarm);
  alarm (slow ? 300 : 30);
}

static void
world_start (struct world *w, uint64_t size, struct engine_config c)
{
  start_alarm ();
  *w = (struct world) { 0 };
  w->f = fake_new (size);
  fill (fake_data (w->f), size, 0, OLD);
  g_assert_cmpint (engine_new (&c, &w->e), ==, 0);
  g_assert_cmpint (engine_start (w->e), ==, 0);
  g_ptr_array_set_size (reports, 0);
  atomic_store (&n_late, 0);
}

/* Two connections of one export. */
static void
world_init (struct world *w, uint64_t size, struct engine_config c)
{
  world_start (w, size, c);
  world_open (w, 0, "");
  world_open (w, 1, "");
}

/* Finalize and close. */
static void
conn_end (struct conn *c)
{
  conn_close (c);
  conn_free (c);
}

static void
world_close (struct world *w, unsigned i)
{
  engine_check (w->e);
  conn_end (w->c[i]);
  w->c[i] = NULL;
  engine_check (w->e);
}

/* nbdkit ends, and has closed no connection. */
static void
world_stop (struct world *w)
{
  engine_stop (w->e);
  for (unsigned i = 0; i < CONNS; i++)
    if (w->c[i])
      conn_free (w->c[i]);
  memset (w->c, 0, sizeof w->c);
}

static void
world_end (struct world *w)
{
  for (unsigned i = 0; i < CONNS; i++)
    if (w->c[i])
      world_close (w, i);
  engine_stop (w->e);
  engine_free (w->e);
  alarm (0);
  fake_free (w->f);
  if (w->f2)
    fake_free (w->f2);
}

static void
world_end_clean (struct world *w)
{
  world_end (w);
  g_assert_cmpuint (reports->len, ==, 0);
}

/* Requests. */

enum kind { READ, WRITE, FUA, ZERO, TRIM, FLUSH, SETTLE, CLOSE, FINALIZE, STOP };

static bool
call_settle (struct conn *c, uint32_t count, uint64_t offset)
{
  bool r;

  g_assert_true (conn_enter (c));
  r = engine_settle (c, count, offset);
  conn_leave (c);
  return r;
}

static int
request (struct world *w, unsigned i, enum kind kind, void *buf, uint32_t count, uint64_t offset)
{
  struct conn *c = w->c[i];

  switch (kind) {
  case READ: return engine_read (c, buf, count, offset);
  case WRITE: return engine_write (c, buf, count, offset, 0);
  case FUA: return engine_write (c, buf, count, offset, BACKEND_FUA);
  case ZERO: return engine_zero (c, count, offset, 0);
  case TRIM: return engine_trim (c, count, offset, 0);
  case FLUSH: return engine_flush (c, true);
  case SETTLE: return call_settle (c, count, offset);
  case CLOSE: conn_end (c); w->c[i] = NULL; return 0;
  case FINALIZE: conn_close (c); return 0;
  case STOP: engine_stop (w->e); return 0;
  }
  g_assert_not_reached ();
}

/* A request with the bytes of TAG, or one that must find them. */
static int
try_request (struct world *w, unsigned i, enum kind kind, uint32_t count, uint64_t offset,
             unsigned tag)
{
  g_autofree char *buf = g_malloc (count + 1);
  int err;

  fill (buf, count, offset, kind == READ ? 255 : tag);
  err = request (w, i, kind, buf, count, offset);
  if (kind == READ && err == 0)
    assert_filled (buf, count, offset, tag);
  return err;
}

static void
do_request (struct world *w, unsigned i, enum kind kind, uint32_t count, uint64_t offset,
            unsigned tag)
{
  g_assert_cmpint (try_request (w, i, kind, count, offset, tag), ==, 0);
  engine_check (w->e);
}

static void
assert_device (struct fake *f, uint32_t count, uint64_t offset, unsigned tag)
{
  g_autofree char *buf = g_malloc (count);

  fake_peek (f, buf, count, offset);
  assert_filled (buf, count, offset, tag);
}

/* What stands at which place. */
struct part {
  uint64_t offset;
  uint32_t count;
  unsigned tag;
};

/* Reads all parts, which are neighbours, as one. */
static void
assert_reads (struct world *w, unsigned i, const struct part *parts, unsigned n)
{
  uint64_t offset = parts[0].offset, end = parts[n - 1].offset + parts[n - 1].count;
  g_autofree char *buf = g_malloc (end - offset);

  g_assert_cmpint (engine_read (w->c[i], buf, end - offset, offset), ==, 0);
  for (unsigned p = 0; p < n; p++)
    assert_filled (buf + (parts[p].offset - offset), parts[p].count, parts[p].offset, parts[p].tag);
  engine_check (w->e);
}

static void
assert_devices (struct fake *f, const struct part *parts, unsigned n)
{
  for (unsigned p = 0; p < n; p++)
    assert_device (f, parts[p].count, parts[p].offset, parts[p].tag);
}

/* A request on a thread of its own. */

struct task {
  pthread_t thread;
  struct world *w;
  unsigned i;
  enum kind kind;
  uint32_t count;
  uint64_t offset;
  unsigned tag;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  pid_t tid;                    /* under the lock, as the rest */
  bool done;
  int err;
};

static void *
task_run (void *vp)
{
  struct task *t = vp;
  int err;

  {
    LOCK_IN_SCOPE (&t->lock);
    t->tid = syscall (SYS_gettid);
    pthread_cond_broadcast (&t->changed);
  }
  err = try_request (t->w, t->i, t->kind, t->count, t->offset, t->tag);
  {
    LOCK_IN_SCOPE (&t->lock);
    t->err = err;
    t->done = true;
    pthread_cond_broadcast (&t->changed);
  }
  return NULL;
}

static struct task *
task_start (struct world *w, unsigned i, enum kind kind, uint32_t count, uint64_t offset,
            unsigned tag)
{
  struct task *t = g_new0 (struct task, 1);

  t->w = w;
  t->i = i;
  t->kind = kind;
  t->count = count;
  t->offset = offset;
  t->tag = tag;
  pthread_mutex_init (&t->lock, NULL);
  pthread_cond_init (&t->changed, NULL);
  g_assert_cmpint (pthread_create (&t->thread, NULL, task_run, t), ==, 0);
  return t;
}

/* The state of a thread and how often it gave up the CPU. */
static char
thread_state (pid_t tid, unsigned long *switches)
{
  g_autofree char *path = g_strdup_printf ("/proc/self/task/%d/status", (int) tid);
  g_autofree char *text = NULL;
  const char *state, *n;

  if (!g_file_get_contents (path, &text, NULL, NULL))
    return 0;                   /* ended */
  state = strstr (text, "State:\t");
  n = strstr (text, "\nvoluntary_ctxt_switches:");
  g_assert_true (state && n);
  *switches = strtoul (n + strlen ("\nvoluntary_ctxt_switches:"), NULL, 10);
  return state[strlen ("State:\t")];
}

/* Waits until the task sleeps, and makes sure that it stays so without being woken: whatever it
 * waits for, it is not a moment's work.  It must not have ended.
 */
static void
task_wait_blocked (struct task *t)
{
  unsigned long last = 0, now = 0;
  unsigned quiet = 0;

  for (;;) {
    char state;

    pthread_mutex_lock (&t->lock);
    while (t->tid == 0)
      pthread_cond_wait (&t->changed, &t->lock);
    g_assert_false (t->done);
    pthread_mutex_unlock (&t->lock);
    state = thread_state (t->tid, &now);
    quiet = state == 'S' && now == last ? quiet + 1 : 0;
    last = now;
    if (quiet == 5)
      break;
    g_usleep (2000);
  }
  engine_check (t->w->e);
}

static int
task_end (struct task *t)
{
  struct timespec ts;
  int err;

  clock_gettime (CLOCK_REALTIME, &ts);
  ts.tv_sec += 100;
  pthread_mutex_lock (&t->lock);
  while (!t->done)
    if (pthread_cond_timedwait (&t->changed, &t->lock, &ts) == ETIMEDOUT)
      g_error ("a request (kind %u, offset %" PRIu64 ") does not end", t->kind, t->offset);
  pthread_mutex_unlock (&t->lock);
  pthread_join (t->thread, NULL);
  pthread_cond_destroy (&t->changed);
  pthread_mutex_destroy (&t->lock);
  err = t->err;
  engine_check (t->w->e);
  g_free (t);
  return err;
}

/* A look at the buffers. */

static unsigned
count_state (struct world *w, enum buf_state state, uint64_t offset, uint64_t count)
{
  unsigned n = 0;

  LOCK_IN_SCOPE (&w->e->lock);
  for (unsigned i = 0; i < w->e->config.buffers; i++) {
    const struct buf *b = &w->e->bufs[i];

    n += b->state == state && b->node && buf_overlaps (b, offset, offset + count);
  }
  return n;
}

/* Waits until a buffer in the range has that state: workers finish on their own time. */
static void
wait_state (struct world *w, enum buf_state state, uint64_t offset, uint64_t count, unsigned n)
{
  for (unsigned i = 0; count_state (w, state, offset, count) < n; i++) {
    if (i > 100000)
      g_error ("no buffer of state %u at %" PRIu64, state, offset);
    g_usleep (1000);
  }
  engine_check (w->e);
}

static void
assert_order (struct fake_op before, struct fake_op after)
{
  g_assert_cmpuint (before.end, !=, 0);
  g_assert_cmpuint (before.end, <, after.start);
}

static bool
is_failing (struct world *w, unsigned i)
{
  return atomic_load (&w->c[i]->device->failing);
}

/* Leaves COUNT bytes of TAG at OFFSET, which belong to one unit, FAILED. */
static void
make_failed (struct world *w, unsigned i, uint32_t count, uint64_t offset, unsigned tag, int err)
{
  uint64_t base = offset / U * U;
  int rule = fake_fail (w->f, FAKE_WRITE, offset, count, err, -1);
  struct task *flush;

  do_request (w, i, WRITE, count, offset, tag);
  flush = task_start (w, i, FLUSH, 0, 0, 0);
  g_assert_cmpint (task_end (flush), ==, err);
  wait_state (w, BUF_FAILED, base, U, 1);
  fake_release (w->f, rule);
  fake_forget (w->f);
}

/* Flush. */

static void
test_flush_waits (gconstpointer data)
{
  bool can_flush = GPOINTER_TO_INT (data);
  struct world w;
  struct task *flush;
  int hold;

  world_start (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < 2; i++) {
    struct backend b = backend_of (w.f, i);

    b.can_flush = can_flush;
    g_assert_cmpint (conn_open (w.e, "", &b, &w.c[i]), ==, 0);
    fake_make_slow (w.c[i]);
  }
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, 4096, 0, 1);        /* OPEN */
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, U), ==, 1);
  do_request (&w, 0, WRITE, U, U, 2);           /* full, so WRITING */
  fake_wait_held (w.f, hold, 1);
  /* The other connection's flush covers them. */
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 2);
  task_wait_blocked (flush);
  fake_pass (w.f, hold, 1);
  fake_wait_ended (w.f, FAKE_WRITE, 0, 0, 1);
  task_wait_blocked (flush);
  g_assert_cmpuint (fake_started (w.f, FAKE_FLUSH, 0, 0), ==, 0);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  assert_device (w.f, 4096, 0, 1);
  assert_device (w.f, U, U, 2);
  g_assert_cmpuint (fake_started (w.f, FAKE_FLUSH, 0, 0), ==, can_flush);
  if (can_flush)
    for (unsigned i = 0; i < 2; i++)
      assert_order (fake_op (w.f, FAKE_WRITE, 0, 0, i), fake_op (w.f, FAKE_FLUSH, 0, 0, 0));
  world_end_clean (&w);
}

static void
test_flush_error (void)
{
  struct world w;
  int fail;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_FLUSH, 0, 0, ENOSPC, 1);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ENOSPC);
  fake_release (w.f, fail);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

/* A flush waits for what was there when it came, not for what comes after. */
static void
test_flush_ends (void)
{
  struct world w;
  struct task *flush;
  int hold, hold2;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, U);
  hold2 = fake_hold (w.f, FAKE_WRITE, U, U);
  do_request (&w, 0, WRITE, U, 0, 1);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  do_request (&w, 1, WRITE, U, U, 2);
  fake_wait_held (w.f, hold2, 1);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  fake_release (w.f, hold2);
  world_end_clean (&w);
}

/* Small writes. */

static void
test_merge (void)
{
  struct engine_config c = config (8, 2, WRITE_BEHIND, READ_DIRECT);
  struct world w;
  struct fake_op op;

  c.buffer_size = 128 * KIB;
  world_init (&w, MAX (8 * U, 1024 * KIB), c);
  for (unsigned i = 0; i < 32; i++)
    do_request (&w, 0, WRITE, 4096, 128 * KIB + i * 4096, 1);
  fake_wait_ended (w.f, FAKE_WRITE, 0, 0, 1);   /* full: nobody had to flush */
  op = fake_op (w.f, FAKE_WRITE, 0, 0, 0);
  g_assert_cmpuint (op.offset, ==, 128 * KIB);
  g_assert_cmpuint (op.count, ==, 128 * KIB);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 1);
  assert_device (w.f, 128 * KIB, 128 * KIB, 1);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_BEHIND), ==, 32);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_COMBINED), ==, 31);

  /* Backwards, and over one another. */
  fake_forget (w.f);
  do_request (&w, 0, WRITE, 4096, 8192, 2);
  do_request (&w, 0, WRITE, 8192, 4096, 3);
  do_request (&w, 0, WRITE, 6144, 0, 4);
  assert_reads (&w, 1, (struct part[]) {
      { 0, 6144, 4 }, { 6144, 6144, 3 }, { 12288, 4096, OLD } }, 3);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 1);
  assert_devices (w.f, (struct part[]) {
      { 0, 6144, 4 }, { 6144, 6144, 3 }, { 12288, 4096, OLD } }, 3);

  /* With a gap between them they are two. */
  fake_forget (w.f);
  do_request (&w, 0, WRITE, 4096, 0, 5);
  do_request (&w, 0, WRITE, 4096, 8192, 5);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 2);
  assert_device (w.f, 2048, 6144, 3);
  world_end_clean (&w);
}

/* A write over one that waits behind another joins it, once more. */
static void
test_join_ready (void)
{
  struct world w;
  struct task *settle;
  int hold;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, U, 0, 1);
  do_request (&w, 0, WRITE, 8192, 4096, 2);
  settle = task_start (&w, 1, SETTLE, U, 0, 0);
  task_wait_blocked (settle);
  g_assert_cmpuint (count_state (&w, BUF_READY, 0, U), ==, 1);
  do_request (&w, 0, WRITE, 4096, 4096, 3);
  do_request (&w, 0, READ, 4096, 4096, 3);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (settle), ==, false);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_devices (w.f, (struct part[]) {
      { 0, 4096, 1 }, { 4096, 4096, 3 }, { 8192, 4096, 2 }, { 12288, 4096, 1 } }, 4);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 2);
  world_end_clean (&w);
}

/* A write that reaches over units waits in several buffers. */
static void
test_write_over_units (void)
{
  struct world w;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, 2 * U, U / 2, 1);
  assert_reads (&w, 1, (struct part[]) {
      { 0, U / 2, OLD }, { U / 2, 2 * U, 1 }, { 5 * U / 2, U, OLD } }, 3);
  fake_release (w.f, hold);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 3);
  assert_device (w.f, 2 * U, U / 2, 1);
  world_end_clean (&w);
}

static void
test_linger (void)
{
  struct world w;

  world_init (&w, 8 * U, config_hasty (8, 2, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 1; i < 3; i++) {
    do_request (&w, 0, WRITE, 4096, 4096, i);
    fake_wait_ended (w.f, FAKE_WRITE, 0, 0, i); /* nobody flushes */
    assert_device (w.f, 4096, 4096, i);
  }
  world_end_clean (&w);
}

/* So many buffers wait to grow, and no more. */
static void
test_open_max (void)
{
  struct world w;

  world_init (&w, 32 * U, config (32, 2, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < STREAMS; i++)
    do_request (&w, 0, WRITE, 4096, i * U, 1);
  do_request (&w, 0, WRITE, 4096, STREAMS * U, 1);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, 32 * U), <=, STREAMS);
  fake_wait_ended (w.f, FAKE_WRITE, 0, U, 1);   /* the oldest */
  world_end_clean (&w);
}

/* The order of writes. */

static void
test_overlap_order (gconstpointer data)
{
  unsigned second = GPOINTER_TO_UINT (data);    /* the connection of the second write */
  struct world w;
  struct task *flush;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, U, 0, 1);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, second, WRITE, 4096, 4096, 2);        /* OPEN behind WRITING */
  do_request (&w, 1 - second, WRITE, 4096, 6144, 3);    /* the former is READY now */
  do_request (&w, 0, WRITE, U, U, 4);                   /* far: does not wait */
  fake_wait_held (w.f, hold, 2);
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, U), ==, 1);
  g_assert_cmpuint (count_state (&w, BUF_READY, 0, U), ==, 2);
  {
    struct part parts[] = { { 0, 4096, 1 }, { 4096, 2048, 2 }, { 6144, 4096, 3 },
                            { 10240, U - 10240, 1 }, { U, U, 4 } };

    assert_reads (&w, 0, parts, 5);
    fake_pass (w.f, hold, 1);                           /* the first */
    fake_wait_held (w.f, hold, 2);
    assert_reads (&w, 1, parts, 5);
    task_wait_blocked (flush);
    g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, U), ==, 2);
    fake_release (w.f, hold);
    g_assert_cmpint (task_end (flush), ==, 0);
    assert_reads (&w, 1, parts, 5);
    assert_devices (w.f, parts, 5);
  }
  for (unsigned i = 0; i < 2; i++)
    assert_order (fake_op (w.f, FAKE_WRITE, 0, U, i), fake_op (w.f, FAKE_WRITE, 0, U, i + 1));
  g_assert_cmpuint (fake_collisions (w.f), ==, 0);
  world_end_clean (&w);
}

static const char *const kind_names[] = {
  "read", "write", "fua", "zero", "trim", "flush", "settle", "close"
};

static unsigned
fake_kind (enum kind kind)
{
  return kind == ZERO ? FAKE_ZERO : kind == TRIM ? FAKE_TRIM : FAKE_WRITE;
}

/* What stands in the device after a mutator with that tag: a trim of the fake's leaves 0xdd. */
static void
assert_mutated (struct world *w, enum kind kind, uint32_t count, uint64_t offset, unsigned tag)
{
  g_autofree char *buf = g_malloc (count);

  if (kind != TRIM) {
    do_request (w, 0, READ, count, offset, kind == ZERO ? 0 : tag);
    do_request (w, 1, READ, count, offset, kind == ZERO ? 0 : tag);
    assert_device (w->f, count, offset, kind == ZERO ? 0 : tag);
    return;
  }
  for (unsigned i = 0; i < 2; i++) {
    g_assert_cmpint (engine_read (w->c[i], buf, count, offset), ==, 0);
    for (uint32_t n = 0; n < count; n++)
      g_assert_cmphex ((uint8_t) buf[n], ==, 0xdd);
  }
}

static void
test_mutator_waits (gconstpointer data)
{
  enum kind kind = GPOINTER_TO_UINT (data);
  struct world w;
  struct task *mutator;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, U);
  do_request (&w, 0, WRITE, U, 0, 1);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 0, WRITE, 4096, U, 2);        /* OPEN: the mutator has to submit it */
  do_request (&w, 0, WRITE, 4096, 3 * U, 2);    /* OPEN, and stays so */
  mutator = task_start (&w, 1, kind, U, U / 2, 3);
  task_wait_blocked (mutator);
  fake_wait_ended (w.f, FAKE_WRITE, U, U, 1);
  g_assert_cmpuint (fake_started (w.f, fake_kind (kind), U / 2, U), ==, kind == FUA ? 2 : 0);
  /* Far away nobody waits for anything, neither a mutator nor a write. */
  do_request (&w, 1, kind, U, 4 * U, 4);
  do_request (&w, 0, WRITE, 4096, 6 * U, 4);
  assert_mutated (&w, kind, U, 4 * U, 4);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (mutator), ==, 0);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 3 * U, U), ==, 1);
  assert_mutated (&w, kind, U, U / 2, 3);
  assert_device (w.f, U / 2, 0, 1);
  for (unsigned i = 0; i < 2; i++)
    assert_order (fake_op (w.f, FAKE_WRITE, 0, 2 * U, i),
                  fake_op (w.f, fake_kind (kind), U / 2, U, kind == FUA ? 2 : 0));
  world_end_clean (&w);
}

/* A younger write to the mutator's range is not held behind, so that neither can wait for the other
 * for ever: it goes to the plugin beside it, as it would without us.  One elsewhere is held.
 */
static void
test_write_beside (gconstpointer data)
{
  enum kind kind = GPOINTER_TO_UINT (data);
  struct world w;
  struct task *mutator;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, fake_kind (kind), 0, 4096);
  mutator = task_start (&w, 0, kind, U, 0, 1);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 1, WRITE, 4096, 4096, 2);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, 4096, 4096), ==, 1);
  do_request (&w, 0, WRITE, 4096, U, 3);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, U, U), ==, 0);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (mutator), ==, 0);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  /* The mutator was answered last, and reached the device last. */
  assert_mutated (&w, kind, U, 0, 1);
  assert_device (w.f, 4096, U, 3);
  world_end_clean (&w);
}

/* Extents: what waits in the range is written first, what waits elsewhere is not. */
static void
test_settle (void)
{
  struct world w;
  struct task *settle;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  do_request (&w, 0, WRITE, 4096, 2 * U, 1);
  g_assert_false (call_settle (w.c[1], U, U));
  settle = task_start (&w, 1, SETTLE, U, 0, 0);
  fake_wait_held (w.f, hold, 1);
  task_wait_blocked (settle);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 2 * U, U), ==, 1);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (settle), ==, false);
  assert_device (w.f, 4096, 0, 1);
  do_request (&w, 0, FLUSH, 0, 0, 0);

  make_failed (&w, 0, 4096, 0, 2, EIO);
  g_assert_true (call_settle (w.c[1], U, 0));
  g_assert_false (call_settle (w.c[1], U, U));
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_false (call_settle (w.c[1], U, 0));
  world_end_clean (&w);
}

/* Write modes. */

static void
test_auto (gconstpointer data)
{
  enum kind kind = GPOINTER_TO_UINT (data);     /* what shows that the client knows of caches */
  struct world w;

  world_init (&w, 8 * U, config (8, 2, WRITE_AUTO, READ_DIRECT));
  do_request (&w, 0, WRITE, 4096, 0, 1);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, 0, 0), ==, 1);
  g_assert_true (pthread_equal (fake_op (w.f, FAKE_WRITE, 0, 0, 0).thread, pthread_self ()));
  do_request (&w, 0, kind, kind == FLUSH ? 0 : 4096, 7 * U, 2);
  fake_forget (w.f);
  do_request (&w, 0, WRITE, 4096, 0, 3);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, U), ==, 1);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 0);
  /* That says nothing about another client, but it sees the data. */
  do_request (&w, 1, WRITE, 4096, U, 3);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, U, U), ==, 1);
  do_request (&w, 1, READ, 4096, 0, 3);
  world_end_clean (&w);
}

static void
test_through (void)
{
  struct world w;

  world_init (&w, 8 * U, config (8, 2, WRITE_THROUGH, READ_DIRECT));
  do_request (&w, 0, FLUSH, 0, 0, 0);
  do_request (&w, 0, FUA, 4096, 0, 1);
  g_assert_cmpuint (fake_op (w.f, FAKE_WRITE, 0, 0, 0).flags, ==, BACKEND_FUA);
  for (unsigned i = 2; i < 6; i++) {
    do_request (&w, 0, WRITE, 4096, 0, i);
    g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, 0, 0), ==, i);
    assert_device (w.f, 4096, 0, i);
  }
  world_end_clean (&w);
}

/* One connection has learnt of flushes while the write of another, which had no need to register,
 * is under way: no write may wait as long as that one runs.
 */
static void
test_unregistered_first (void)
{
  struct world w;
  struct task *first, *second;
  int hold;

  world_init (&w, 8 * U, config (8, 2, WRITE_AUTO, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  first = task_start (&w, 0, WRITE, 4096, 0, 1);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  second = task_start (&w, 1, WRITE, 4096, 0, 2);
  fake_wait_held (w.f, hold, 2);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_BEHIND), ==, 0);
  fake_pass (w.f, hold, 1);
  g_assert_cmpint (task_end (first), ==, 0);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (second), ==, 0);
  do_request (&w, 0, READ, 4096, 0, 2);
  fake_forget (w.f);
  do_request (&w, 1, WRITE, 4096, 0, 3);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 0);
  world_end_clean (&w);
}

/* Where handing over cannot win, it does not hand over. */
static void
test_fast (void)
{
  struct world w;
  char *buf = g_malloc (4 * U);

  world_start (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  fake_set_fast (w.f, true);
  for (unsigned i = 0; i < 2; i++) {
    struct backend b = backend_of (w.f, i);

    g_assert_cmpint (conn_open (w.e, "", &b, &w.c[i]), ==, 0);
    pace_note (w.c[i]->backend.pace_read, 1, 1);
    pace_note (w.c[i]->backend.pace_write, 1, 1);
  }
  fill (buf, 4 * U, 0, 1);
  g_assert_cmpint (engine_write (w.c[0], buf, 4 * U, 0, 0), ==, 0);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, 0, 0), ==, 1);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 1, READ, U, i * U, 1);
  do_request (&w, 0, READ, 4 * U, 0, 1);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 0, 0), ==, 5);
  for (unsigned i = 0; i < 6; i++)
    g_assert_true (pthread_equal (fake_op (w.f, FAKE_ANY, 0, 0, i).thread, pthread_self ()));
  g_free (buf);
  world_end_clean (&w);
}

/* Reads. */

/* A part of a unit waits, in each state; the rest is in the device or on its way to it. */
static void
test_read_states (gconstpointer data)
{
  enum buf_state state = GPOINTER_TO_UINT (data);
  struct part parts[] = {
    { 0, U + 4096, OLD }, { U + 4096, 4096, 1 }, { U + 8192, 4096, OLD }, { U + 12288, 4096, 2 },
    { U + 16384, 2 * U, OLD }
  };
  struct world w;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, state == BUF_FAILED ? 1 : 0);
  if (state == BUF_FAILED) {
    fake_release (w.f, hold);
    hold = fake_fail (w.f, FAKE_WRITE, 0, 0, EIO, -1);
  }
  do_request (&w, 0, WRITE, 4096, U + 4096, 1);
  do_request (&w, 0, WRITE, 4096, U + 12288, 2);
  if (state == BUF_WRITING) {
    do_request (&w, 0, WRITE, 4096, U + 4096, 1);       /* still joins */
    for (unsigned i = 0; i < 2; i++)                    /* others' writes make them go */
      do_request (&w, 1, WRITE, 4096, U + (i ? 12288 : 4096), i ? 2 : 1);
    fake_wait_held (w.f, hold, 2);
  }
  else if (state == BUF_FAILED)
    g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, EIO);
  g_assert_cmpuint (count_state (&w, state, U, U), ==, 2);
  for (unsigned i = 0; i < 2; i++) {
    assert_reads (&w, i, parts, 5);
    assert_reads (&w, i, parts + 1, 1);
    assert_reads (&w, i, parts + 1, 3);
    assert_reads (&w, i, (struct part[]) { { U + 5000, 1000, 1 } }, 1);
    assert_reads (&w, i, (struct part[]) {
        { U + 2000, 2096, OLD }, { U + 4096, 1000, 1 } }, 2);
    assert_reads (&w, i, (struct part[]) {
        { U + 12388, 3996, 2 }, { U + 16384, 100, OLD } }, 2);
  }
  fake_release (w.f, hold);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_devices (w.f, parts, 5);
  assert_reads (&w, 0, parts, 5);
  world_end_clean (&w);
}

/* More buffers in one read than it has places for without asking for memory. */
static void
test_read_many (void)
{
  struct world w;

  world_init (&w, 80 * U, config (80, 4, WRITE_BEHIND, READ_DIRECT));
  {
    int hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
    g_autofree char *buf = g_malloc (80 * U);

    for (unsigned i = 0; i < 70; i++)
      do_request (&w, 0, WRITE, 4096, i * U, i + 1);
    g_assert_cmpint (engine_read (w.c[1], buf, 80 * U, 0), ==, 0);
    for (unsigned i = 0; i < 80; i++) {
      assert_filled (buf + i * U, 4096, i * U, i < 70 ? i + 1 : OLD);
      assert_filled (buf + i * U + 4096, U - 4096, i * U + 4096, OLD);
    }
    fake_release (w.f, hold);
  }
  world_end_clean (&w);
}

/* A read that came before does not keep a writer from answering, and the writer does not change
 * what the read has found.
 */
static void
test_read_pins (void)
{
  struct world w;
  struct task *read;
  int hold, hold_write;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_READ, U, U);
  hold_write = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  do_request (&w, 0, WRITE, 4096, U - 8192, OLD);       /* OPEN */
  read = task_start (&w, 1, READ, 8192 + 100, U - 8192, OLD);
  fake_wait_held (w.f, hold, 1);
  /* Its bytes are pinned: the write goes to another buffer. */
  do_request (&w, 0, WRITE, 4096, U - 8192, 2);
  do_request (&w, 0, READ, 4096, U - 8192, 2);
  fake_release (w.f, hold_write);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, U - 8192, 4096), ==, 2);
  assert_device (w.f, 4096, U - 8192, 2);
  do_request (&w, 0, WRITE, U, 2 * U, 3);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  world_end_clean (&w);
}

/* Reading ahead. */

/* Two reads at the beginning of the device make a stream: everything else is then read ahead. */
static void
start_stream (struct world *w, unsigned i)
{
  do_request (w, i, READ, U, 0, OLD);
  do_request (w, i, READ, U, U, OLD);
}

static void
test_ahead (void)
{
  struct world w;
  uint64_t size = 7 * U + 4096 + 512;   /* the last unit is a short one */

  world_init (&w, size, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, size - 2 * U, 6);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, 0), ==, 6);
  /* No further operation for any of it: of all of a buffer, a part, and both connections. */
  do_request (&w, 1, READ, 4096, 5 * U + 1, OLD);
  do_request (&w, 0, READ, U, 2 * U, OLD);
  do_request (&w, 0, READ, 2 * U, 3 * U, OLD);
  do_request (&w, 0, READ, U / 2, 5 * U, OLD);
  do_request (&w, 0, READ, U / 2 + U, 5 * U + U / 2, OLD);
  do_request (&w, 0, READ, 4096 + 512, 7 * U, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, 0), ==, 6);
  /* What was read wholly is not kept. */
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 0, size), ==, 0);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_AHEAD_BYTES), ==, size - 2 * U);
  world_end_clean (&w);
}

/* A read over units that are read ahead, dirty in part, and in the device only. */
static void
test_ahead_mixed (void)
{
  struct world w;
  int hold;

  world_init (&w, 8 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 6 * U, 6);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 1, WRITE, 4096, 3 * U + 4096, 1);     /* one unit with dirty data */
  do_request (&w, 1, ZERO, 4096, 5 * U, 0);             /* one in no buffer */
  do_request (&w, 1, WRITE, U, 6 * U, 2);               /* one all dirty */
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 0, 8 * U), ==, 3);
  fake_forget (w.f);
  assert_reads (&w, 0, (struct part[]) {
      { 2 * U + 100, U - 100 + 4096, OLD }, { 3 * U + 4096, 4096, 1 },
      { 3 * U + 8192, 2 * U - 8192, OLD }, { 5 * U, 4096, 0 }, { 5 * U + 4096, U - 4096, OLD },
      { 6 * U, U, 2 }, { 7 * U, U - 1, OLD } }, 7);
  /* The plugin was asked for nothing but what no buffer holds. */
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 0, 0), ==, 2);
  g_assert_cmpuint (fake_op (w.f, FAKE_READ, 0, 0, 0).offset, ==, 3 * U);
  g_assert_cmpuint (fake_op (w.f, FAKE_READ, 0, 0, 0).count, ==, U);
  g_assert_cmpuint (fake_op (w.f, FAKE_READ, 0, 0, 1).offset, ==, 5 * U);
  g_assert_cmpuint (fake_op (w.f, FAKE_READ, 0, 0, 1).count, ==, U);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* What is being read ahead is made stale by KIND, from that connection, while connections may hold
 * writes (BEHIND) or none does, so that nothing registers.
 */
struct stale {
  enum kind kind;
  unsigned conn;
  bool behind;
  bool in_flight;               /* else it is CLEAN already */
};

static void
test_stale (gconstpointer data)
{
  const struct stale *s = data;
  struct world w;
  int hold;

  world_init (&w, 4 * U, config (16, 4, s->behind ? WRITE_BEHIND : WRITE_THROUGH, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 2);                /* both have read the old data */
  if (!s->in_flight) {
    fake_release (w.f, hold);
    wait_state (&w, BUF_CLEAN, 2 * U, 2 * U, 2);
  }
  do_request (&w, s->conn, s->kind, 4096, 3 * U - 2048, 1);     /* of both units a part */
  g_assert_cmpuint (count_state (&w, BUF_READING, 0, 4 * U), ==, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 0, 4 * U), ==, 0);
  if (s->in_flight) {
    /* New data is there before the stale read is done, and after. */
    fake_pass (w.f, hold, 2);
    fake_release (w.f, hold);
    fake_wait_ended (w.f, FAKE_READ, 2 * U, 0, 2);
  }
  engine_check (w.e);
  if (s->kind != WRITE || !s->behind)
    assert_mutated (&w, s->kind, 4096, 3 * U - 2048, 1);
  for (unsigned i = 0; i < 2 && s->kind != TRIM; i++)
    assert_reads (&w, i, (struct part[]) {
        { 2 * U, U - 2048, OLD }, { 3 * U - 2048, 4096, s->kind == ZERO ? 0 : 1 },
        { 3 * U + 2048, U - 2048, OLD } }, 3);
  world_end_clean (&w);
}

/* A read that waits for what is read ahead while it is made stale. */
static void
test_stale_pinned (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_init (&w, 3 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  read = task_start (&w, 0, READ, U / 2, 2 * U, OLD);
  task_wait_blocked (read);
  do_request (&w, 1, WRITE, U / 2, 2 * U + U / 2, 1);
  task_wait_blocked (read);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  do_request (&w, 0, READ, U / 2, 2 * U + U / 2, 1);
  do_request (&w, 0, READ, U / 2, 2 * U, OLD);
  world_end_clean (&w);
}

/* A client with several requests in flight, that all wait for what is read ahead, has the whole slab
 * read ahead: its requests put nothing into the plugin.
 */
static void
test_ahead_deep (void)
{
  struct world w;
  int hold;

  world_init (&w, 64 * U, config (16, 16, WRITE_BEHIND, READ_AHEAD));
  for (unsigned i = 0; i < 7; i++)      /* as if */
    depth_begin (&w.c[0]->depth, 1, stats_now_ns (), UINT64_MAX / 2);
  w.c[0]->streams.window = 16;
  hold = fake_hold (w.f, FAKE_READ, 24 * U, 0);
  for (unsigned i = 0; i < 24; i++)
    do_request (&w, 0, READ, U, i * U, OLD);
  wait_state (&w, BUF_READING, 24 * U, 40 * U, 12);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* A read does not wait behind queued background work: it does it itself. */
static void
test_ahead_takes_over (void)
{
  struct world w;
  struct fake_op op;
  int hold;

  world_init (&w, 8 * U, config (16, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, U);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);                /* the only worker */
  g_assert_cmpuint (count_state (&w, BUF_READING, 0, 8 * U), ==, 6);
  do_request (&w, 0, READ, U, 4 * U, OLD);
  op = fake_op (w.f, FAKE_READ, 4 * U, U, 0);
  g_assert_true (pthread_equal (op.thread, pthread_self ()));
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, 0), ==, 2);
  /* Another connection's read does it for itself; the worker has not moved. */
  do_request (&w, 1, READ, 4096, 5 * U, OLD);
  g_assert_true (pthread_equal (fake_op (w.f, FAKE_READ, 5 * U, U, 0).thread, pthread_self ()));
  fake_release (w.f, hold);
  wait_state (&w, BUF_CLEAN, 2 * U, 6 * U, 4);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, 0), ==, 6);
  world_end_clean (&w);
}

/* Reading ahead fails: who needs the data asks himself, and learns why. */
static void
test_ahead_fails (void)
{
  struct world w;
  struct task *read;
  int fail, hold;

  world_init (&w, 4 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  fail = fake_fail (w.f, FAKE_READ, 2 * U, 0, ENOMEDIUM, -1);
  hold = fake_hold (w.f, FAKE_READ, 2 * U, U);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  read = task_start (&w, 1, READ, U, 2 * U, OLD);
  task_wait_blocked (read);
  fake_wait_ended (w.f, FAKE_READ, 3 * U, U, 1);
  fake_pass (w.f, hold, 1);
  fake_wait_held (w.f, hold, 1);                /* the reader's own */
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, ENOMEDIUM);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_AHEAD_FAILED), ==, 2);
  g_assert_cmpint (try_request (&w, 0, READ, U, 3 * U, OLD), ==, ENOMEDIUM);
  g_assert_cmpint (try_request (&w, 1, READ, 4 * U, 0, OLD), ==, ENOMEDIUM);
  fake_release (w.f, fail);
  do_request (&w, 0, READ, 4 * U, 0, OLD);
  world_end_clean (&w);
}

/* Where all reads fail, the plugin sees each client's read, and few ahead: those of
 * the window at first, and next to none after the first error of the client's.
 */
static void
test_ahead_fails_all (void)
{
  struct world w;

  world_init (&w, 256 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  for (unsigned i = 0; i < 64; i++)
    do_request (&w, 0, READ, U, i * U, OLD);
  fake_fail (w.f, FAKE_READ, 80 * U, 0, EIO, -1);
  for (unsigned i = 64; i < 80; i++)
    do_request (&w, 0, READ, U, i * U, OLD);
  for (unsigned i = 80; i < 208; i++)
    g_assert_cmpint (try_request (&w, 0, READ, U, i * U, OLD), ==, EIO);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 80 * U, 0), <=, 128 + 32);
  world_end_clean (&w);
}

static void
wait_free (struct world *w, unsigned n)
{
  for (unsigned i = 0;; i++) {
    {
      LOCK_IN_SCOPE (&w->e->lock);
      if (w->e->free.length >= n)
        break;
    }
    if (i > 100000)
      g_error ("no %u free buffers", n);
    g_usleep (1000);
  }
  engine_check (w->e);
}

/* The client goes on within what was read ahead: what it comes to is not read
 * again, what it has skipped is given up at the second read there.
 */
static void
test_ahead_skip (void)
{
  struct world w;

  world_init (&w, 64 * U, config (16, 16, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 8 * U, 8);
  do_request (&w, 0, READ, U, 5 * U + U / 2, OLD);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 8 * U), ==, 8);  /* may come back */
  do_request (&w, 0, READ, U, 6 * U + U / 2, OLD);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 5 * U), ==, 0);
  do_request (&w, 0, READ, 2 * U + U / 2, 7 * U + U / 2, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, 8 * U), ==, 8);
  world_end_clean (&w);
}

/* A stream that was left, with all buffers.  A single read elsewhere takes none
 * of them, another stream what it needs, from the far end.
 */
static void
test_ahead_left (void)
{
  struct world w;

  world_init (&w, 64 * U, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 8 * U, 8);
  do_request (&w, 0, READ, U, 40 * U, OLD);
  do_request (&w, 0, READ, U, 41 * U, OLD);     /* as far as the first one came */
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 8 * U), ==, 8);
  do_request (&w, 0, READ, U, 42 * U, OLD);
  wait_state (&w, BUF_CLEAN, 43 * U, 2 * U, 2);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 6 * U), ==, 6);
  do_request (&w, 0, READ, 20 * U, 0, OLD);
  world_end_clean (&w);
}

/* As if reading ahead had just failed. */
static void
stop_ahead (struct conn *c)
{
  LOCK_IN_SCOPE (&c->streams_lock);
  c->streams.failed = true;
  c->streams.answered = 0;
}

/* Another connection's stream has an equal part, though the first one has all. */
static void
test_ahead_share (void)
{
  struct world w;

  world_init (&w, 64 * U, config (16, 16, WRITE_BEHIND, READ_AHEAD));
  w.c[0]->streams.window = w.c[1]->streams.window = 16;
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 16 * U, 16);
  do_request (&w, 1, READ, U, 30 * U, OLD);
  do_request (&w, 1, READ, U, 31 * U, OLD);
  wait_state (&w, BUF_CLEAN, 32 * U, 16 * U, 8);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 16 * U), ==, 8);
  do_request (&w, 0, READ, U, 2 * U, OLD);      /* it has no more */
  g_assert_cmpuint (w.c[0]->n_ahead, <=, 8);
  g_assert_cmpuint (w.c[1]->n_ahead, ==, 8);
  world_end_clean (&w);
}

/* While a writer waits, and reads have more than half, a free buffer is the
 * writer's.
 */
static void
test_ahead_writers (void)
{
  struct world w;
  struct writer writer = { .link.data = &writer };
  struct buf *b;

  world_init (&w, 64 * U, config (4, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 4 * U, 4);
  stop_ahead (w.c[0]);
  for (unsigned i = 0; i < 2; i++) {
    do_request (&w, 0, READ, U, (2 + i) * U, OLD);
    LOCK_IN_SCOPE (&w.e->lock);
    g_queue_push_tail_link (&w.e->writers, &writer.link);
    b = buffers_take_for_ahead (w.c[0]);
    g_assert_cmpint (b != NULL, ==, i == 1);    /* 3 of 4 are ahead, then 2 */
    g_queue_unlink (&w.e->writers, &writer.link);
    if (b)
      buffers_put (b);
  }
  world_end_clean (&w);
}

/* Writes made stale what comes next: the first read that misses one has all of them read again. */
static void
test_ahead_hole (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_init (&w, 64 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 8 * U, 8);
  for (unsigned i = 0; i < 3; i++)
    do_request (&w, 1, WRITE, 4096, (3 + 2 * i) * U, OLD);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 8 * U), ==, 5);
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 8 * U);
  do_request (&w, 0, READ, U, 2 * U, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, 8 * U), ==, 8);
  read = task_start (&w, 0, READ, U, 3 * U, OLD);
  fake_wait_held (w.f, hold, 3);        /* its own and two more, all at once */
  task_wait_blocked (read);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  world_end_clean (&w);
}

/* A short stream beside a long one, which has all but what the short one uses. */
static void
test_ahead_beside (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_init (&w, 64 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  do_request (&w, 0, READ, 512, 60 * U, OLD);
  do_request (&w, 0, READ, 512, 60 * U + 512, OLD);
  wait_state (&w, BUF_CLEAN, 60 * U, 4 * U, 4);
  w.c[0]->streams.window = 16;
  hold = fake_hold (w.f, FAKE_READ, U, U);
  do_request (&w, 0, READ, U, 0, OLD);
  read = task_start (&w, 0, READ, U, U, OLD);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 0, READ, 512, 60 * U + 1024, OLD);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  do_request (&w, 0, READ, 512, 60 * U + 1536, OLD);
  do_request (&w, 0, READ, U, 2 * U, OLD);
  wait_state (&w, BUF_CLEAN, 3 * U, 12 * U, 12);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 15 * U, 10 * U), ==, 0);
  world_end_clean (&w);
}

/* Requests that nothing helps: the plugin's error code, on the thread that asked. */
static void
test_errors (void)
{
  struct world w;

  world_init (&w, 8 * U, config (8, 4, WRITE_THROUGH, READ_DIRECT));
  fake_fail (w.f, FAKE_READ, 5 * U, U, ENOMEDIUM, -1);
  fake_fail (w.f, FAKE_WRITE, 5 * U, U, ENOSPC, -1);
  fake_fail (w.f, FAKE_ZERO, 5 * U, U, EDQUOT, -1);
  fake_fail (w.f, FAKE_TRIM, 5 * U, U, ENOTSUP, -1);
  for (uint64_t offset = 0; offset <= 5 * U; offset += 5 * U) {
    uint32_t count = offset == 0 ? 8 * U : 4096;

    g_assert_cmpint (try_request (&w, 0, READ, count, offset, OLD), ==, ENOMEDIUM);
    g_assert_cmpint (try_request (&w, 0, WRITE, count, offset, OLD), ==, ENOSPC);
    g_assert_cmpint (try_request (&w, 0, FUA, count, offset, OLD), ==, ENOSPC);
    g_assert_cmpint (try_request (&w, 0, ZERO, count, offset, OLD), ==, EDQUOT);
    g_assert_cmpint (try_request (&w, 0, TRIM, count, offset, OLD), ==, ENOTSUP);
  }
  g_assert_true (pthread_equal (fake_op (w.f, FAKE_READ, 5 * U, U, 1).thread, pthread_self ()));
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

/* Failed writes. */

static void
test_failed (gconstpointer data)
{
  unsigned retries = GPOINTER_TO_UINT (data);   /* how often the flush's tries fail */
  struct part parts[] = { { 0, 4096, OLD }, { 4096, 4096, 1 }, { 8192, 4096, OLD } };
  struct world w;
  struct task *write;
  int fail, hold;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 4096, 4096, ENOSPC, 1 + retries);
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  g_assert_true (call_settle (w.c[1], U, 0));
  wait_state (&w, BUF_FAILED, 0, U, 1);
  g_assert_true (is_failing (&w, 0));
  assert_reads (&w, 0, parts, 3);
  assert_reads (&w, 1, parts, 3);
  assert_device (w.f, 4096, 4096, OLD);
  /* From now on writes go through, on all connections. */
  hold = fake_hold (w.f, FAKE_WRITE, 4 * U, U);
  for (unsigned i = 0; i < 2; i++) {
    write = task_start (&w, i, WRITE, 4096, 4 * U, 5);
    fake_wait_held (w.f, hold, 1);
    task_wait_blocked (write);
    fake_pass (w.f, hold, 1);
    g_assert_cmpint (task_end (write), ==, 0);
  }
  fake_release (w.f, hold);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_DEFERRED_ERRORS), ==, 1);
  fake_forget (w.f);

  if (retries > 0) {
    /* The flush tries itself, for the sake of the error code. */
    g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, ENOSPC);
    g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, U), ==, 1);
    /* But another connection's hook it does not call. */
    g_assert_true (!pthread_equal (fake_op (w.f, FAKE_WRITE, 0, U, 0).thread, pthread_self ()) == hooked);
    g_assert_cmpuint (fake_op (w.f, FAKE_WRITE, 0, U, 0).conn, ==, 0);
    g_assert_cmpuint (fake_started (w.f, FAKE_FLUSH, 0, 0), ==, 0);
    g_assert_true (is_failing (&w, 0));
    assert_reads (&w, 0, parts, 3);
    fake_release (w.f, fail);
    fake_forget (w.f);
  }
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_order (fake_op (w.f, FAKE_WRITE, 0, U, 0), fake_op (w.f, FAKE_FLUSH, 0, 0, 0));
  assert_devices (w.f, parts, 3);
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, 8 * U), ==, 0);
  g_assert_false (is_failing (&w, 0));
  do_request (&w, 0, WRITE, 4096, 4096, 2);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, U), ==, 1);
  world_end_clean (&w);
}

/* Until a flush has succeeded, not only until the data is written. */
static void
test_failing_sticks (void)
{
  struct world w;
  int fail;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, 4096, 0, 1, EIO);
  do_request (&w, 1, WRITE, 4096, 0, 2);        /* takes its place */
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, 8 * U), ==, 0);
  g_assert_true (is_failing (&w, 0));
  fail = fake_fail (w.f, FAKE_FLUSH, 0, 0, EIO, -1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, EIO);
  g_assert_true (is_failing (&w, 0));
  do_request (&w, 1, WRITE, 4096, 0, 3);
  assert_device (w.f, 4096, 0, 3);
  fake_release (w.f, fail);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_false (is_failing (&w, 0));
  world_end_clean (&w);
}

/* A write fails while the plugin flushes: that flush has nothing to do with it, and does not end
 * the state either.
 */
static void
test_failing_meanwhile (void)
{
  struct world w;
  struct task *flush;
  int hold, fail;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_FLUSH, 0, 0);
  fail = fake_fail (w.f, FAKE_WRITE, 0, U, EIO, 1);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 1, WRITE, U, 0, 1);
  wait_state (&w, BUF_FAILED, 0, U, 1);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  g_assert_true (is_failing (&w, 0));
  fake_release (w.f, fail);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_false (is_failing (&w, 0));
  world_end_clean (&w);
}

/* A younger write that overlaps data which failed is tried all the same.  What it has written leaves the older
 * data; the flush writes the rest of that.
 */
static void
test_failed_order (void)
{
  struct part parts[] = { { 0, 4096, 1 }, { 4096, 2048, 2 }, { 6144, 4096, 3 },
                          { 10240, U - 10240, 1 } };
  struct world w;
  int hold, fail;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, EIO, 1);
  do_request (&w, 0, WRITE, U, 0, 1);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 0, WRITE, 4096, 4096, 2);
  do_request (&w, 1, WRITE, 4096, 6144, 3);     /* overlaps both */
  {
    struct task *settle = task_start (&w, 0, SETTLE, U, 0, 0);  /* all are READY or WRITING */

    task_wait_blocked (settle);
    fake_release (w.f, hold);
    g_assert_cmpint (task_end (settle), ==, true);
  }
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, U), ==, 1);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 3);
  for (unsigned i = 0; i < 2; i++)
    assert_order (fake_op (w.f, FAKE_WRITE, 0, U, i), fake_op (w.f, FAKE_WRITE, 0, U, i + 1));
  assert_reads (&w, 0, parts, 4);
  assert_reads (&w, 1, parts, 4);
  fake_release (w.f, fail);
  fake_forget (w.f);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 2);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 4096, 6144), ==, 0);
  assert_devices (w.f, parts, 4);
  world_end_clean (&w);
}

/* Of several that failed, the flush returns the error of the oldest that it cannot write. */
static void
test_failed_several (void)
{
  struct world w;
  int fail0, fail1, hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  fail0 = fake_fail (w.f, FAKE_WRITE, 0, U, ENOSPC, -1);
  fail1 = fake_fail (w.f, FAKE_WRITE, U, U, EIO, -1);
  do_request (&w, 0, WRITE, U, U, 1);
  do_request (&w, 1, WRITE, U, 0, 2);
  do_request (&w, 0, WRITE, U, 2 * U, 3);
  fake_wait_held (w.f, hold, 3);
  fake_release (w.f, hold);
  wait_state (&w, BUF_FAILED, 0, 2 * U, 2);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, EIO);
  fake_release (w.f, fail1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ENOSPC);
  assert_device (w.f, U, U, 1);
  do_request (&w, 0, READ, U, 0, 2);
  fake_release (w.f, fail0);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_device (w.f, U, 0, 2);
  world_end_clean (&w);
}

/* A write, zero or trim that goes through over failed data: its bytes count, of the whole or a part
 * of the buffer.  With FLUSHING a flush comes while it runs, and tries the failed data again.
 */
struct super {
  enum kind kind;
  uint64_t offset;
  uint32_t count;
  bool flushing;
};

static void
test_supersede (gconstpointer data)
{
  const struct super *s = data;
  uint64_t lo = U + 8192, hi = U + 8192 + 16384;        /* what failed */
  uint64_t from = MAX (s->offset, lo), to = MIN (s->offset + s->count, hi);
  unsigned tag = s->kind == ZERO ? 0 : 2;
  struct world w;
  struct task *mutator, *flush = NULL;
  struct part parts[] = { { lo, from - lo, 1 }, { from, to - from, tag }, { to, hi - to, 1 } };
  unsigned already = fake_kind (s->kind) == FAKE_WRITE, written;
  int hold;

  world_init (&w, 4 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, hi - lo, lo, 1, EIO);
  hold = fake_hold (w.f, fake_kind (s->kind), from, to - from);
  mutator = task_start (&w, 1, s->kind, s->count, s->offset, 2);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 0, READ, hi - lo, lo, 1);     /* it is not answered yet */
  if (s->flushing) {
    flush = task_start (&w, 0, FLUSH, 0, 0, 0);
    task_wait_blocked (flush);
    g_assert_cmpuint (count_state (&w, BUF_READY, lo, hi - lo), ==, 1);
    g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, from, to - from), ==, already);
  }
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (mutator), ==, 0);
  written = fake_started (w.f, FAKE_WRITE, from, to - from);
  if (s->kind == TRIM) {
    parts[1].count = 0;                         /* anything may stand there */
    if (to - from == hi - lo)
      parts[0].count = parts[2].count = 0;
  }
  for (unsigned p = 0; p < 3; p++)
    if (parts[p].count > 0)
      for (unsigned i = 0; i < 2; i++)
        do_request (&w, i, READ, parts[p].count, parts[p].offset, parts[p].tag);
  if (s->kind != TRIM)
    assert_reads (&w, 0, parts, 3);
  if (flush)
    g_assert_cmpint (task_end (flush), ==, 0);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_devices (w.f, parts, 3);
  if (s->kind != TRIM)
    assert_device (w.f, s->count, s->offset, tag);
  /* What was replaced is not written again. */
  g_assert_cmpuint (written, ==, already);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, from, to - from), ==, written);
  g_assert_cmpuint (fake_collisions (w.f), ==, 0);
  world_end_clean (&w);
}

/* A through write that the plugin refuses replaces nothing. */
static void
test_supersede_error (void)
{
  struct world w;
  int fail;

  world_init (&w, 4 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, 4096, 0, 1, EIO);
  fail = fake_fail (w.f, FAKE_CHANGE, 0, 0, ENOSPC, -1);
  for (enum kind kind = WRITE; kind <= TRIM; kind++)
    g_assert_cmpint (try_request (&w, 1, kind, U, 0, 2), ==, ENOSPC);
  do_request (&w, 0, READ, 4096, 0, 1);
  fake_release (w.f, fail);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_device (w.f, 4096, 0, 1);
  world_end_clean (&w);
}

/* A read that copies from failed data keeps its buffer from being used again when newer data replaces it; the
 * newer write does not wait for that, and new reads see it.
 */
static void
test_supersede_pinned (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_init (&w, 4 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, 8192, 0, OLD, EIO);
  hold = fake_hold (w.f, FAKE_READ, 8192, U);
  read = task_start (&w, 0, READ, U, 0, OLD);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 1, WRITE, 8192, 0, 2);
  do_request (&w, 0, READ, 4096, 0, 2);
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, U), ==, 0);
  g_assert_cmpuint (w.e->free.length, ==, 7);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  g_assert_cmpuint (w.e->free.length, ==, 8);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_device (w.f, 8192, 0, 2);
  world_end_clean (&w);
}

/* Failed data outlives its connection while another one has the device. */
static void
test_orphan (void)
{
  struct world w;
  int fail;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  world_close (&w, 0);
  g_assert_cmpuint (reports->len, ==, 1);
  g_assert_cmpstr (g_ptr_array_index (reports, 0), ==, ":4096+4096:kept");
  do_request (&w, 1, READ, 4096, 4096, 1);
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, ENOSPC);
  world_open (&w, 2, "");
  world_close (&w, 1);                          /* an orphan once more */
  do_request (&w, 2, READ, 4096, 4096, 1);
  fake_release (w.f, fail);
  fake_forget (w.f);
  do_request (&w, 2, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_op (w.f, FAKE_WRITE, 0, 0, 0).conn, ==, 2);
  assert_device (w.f, 4096, 4096, 1);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* When the last connection ends it is dropped.  A later client does not see it, and hears of it once. */
static void
test_lost (void)
{
  struct world w;
  int fail;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 2, "other");
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  fake_forget (w.f);
  world_close (&w, 1);
  world_close (&w, 0);
  g_assert_cmpuint (reports->len, ==, 1);
  g_assert_cmpstr (g_ptr_array_index (reports, 0), ==, ":4096+4096:lost");
  /* A worker's try, and then the last one, on this thread. */
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 2);
  g_assert_true (pthread_equal (fake_op (w.f, FAKE_WRITE, 0, 0, 1).thread, pthread_self ()));
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, 4 * U), ==, 0);
  fake_release (w.f, fail);
  do_request (&w, 2, FLUSH, 0, 0, 0);           /* not its name */
  world_open (&w, 3, "");
  do_request (&w, 3, READ, 4096, 4096, OLD);
  do_request (&w, 3, WRITE, 4096, 4096, 3);
  g_assert_cmpint (try_request (&w, 3, FLUSH, 0, 0, 0), ==, ENOSPC);
  do_request (&w, 3, FLUSH, 0, 0, 0);
  assert_device (w.f, 4096, 4096, 3);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* What a flush has reported before is not reported to the next client. */
static void
test_lost_reported (void)
{
  struct world w;
  int fail;

  world_start (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 0, "");
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ENOSPC);
  world_close (&w, 0);
  g_assert_cmpuint (reports->len, ==, 1);
  fake_release (w.f, fail);
  world_open (&w, 1, "");
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* A client makes up names and loses data under each: the last ones are remembered, no more. */
static void
test_lost_names (void)
{
  struct world w;
  int fail;

  world_start (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  for (unsigned i = 0; i < 70; i++) {
    g_autofree char *name = g_strdup_printf ("name %u", i);

    world_open (&w, 0, name);
    do_request (&w, 0, WRITE, 4096, 0, 1);
    world_close (&w, 0);
  }
  g_assert_cmpuint (w.e->exports.length, ==, 64);
  fake_release (w.f, fail);
  world_open (&w, 0, "name 5");
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_open (&w, 1, "name 6");
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, ENOSPC);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* An error that no other try can change is reported, and then the data is dropped. */
static void
test_permanent (gconstpointer data)
{
  int err = GPOINTER_TO_INT (data), fail;
  struct world w;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 0, 2 * U, err, -1);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  do_request (&w, 1, WRITE, 4096, U, 1);
  do_request (&w, 1, WRITE, 4096, 2 * U, 1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, err);
  g_assert_cmpuint (reports->len, ==, 2);
  g_assert_cmpstr (g_ptr_array_index (reports, 0), ==, ":0+4096:lost");
  g_assert_cmpstr (g_ptr_array_index (reports, 1), ==, ":65536+4096:lost");
  g_ptr_array_set_size (reports, 0);
  do_request (&w, 0, READ, 4096, 0, OLD);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_assert_false (is_failing (&w, 0));
  assert_device (w.f, 4096, 2 * U, 1);
  fake_release (w.f, fail);
  world_end_clean (&w);
}

/* ... or the end of any later connection writes it. */
static void
test_orphan_at_close (void)
{
  struct world w;
  int fail;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  world_close (&w, 0);
  fake_release (w.f, fail);
  world_close (&w, 1);
  assert_device (w.f, 4096, 4096, 1);
  g_assert_cmpuint (reports->len, ==, 1);
  g_ptr_array_set_size (reports, 0);

  world_open (&w, 0, "");
  do_request (&w, 0, FLUSH, 0, 0, 0);           /* nothing was lost */
  world_end_clean (&w);
}

/* While a connection that ends reports one of its failed writes, another one tries that again. */
static void
test_close_beside_retry (void)
{
  struct world w;
  struct task *close, *flush;
  int fail, hold;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  do_request (&w, 0, WRITE, 4096, U + 4096, 2);
  report_gate_set (true);
  close = task_start (&w, 0, CLOSE, 0, 0, 0);
  {
    LOCK_IN_SCOPE (&report_gate.lock);
    while (report_gate.entered == 0)
      pthread_cond_wait (&report_gate.changed, &report_gate.lock);
  }
  fake_release (w.f, fail);
  fake_forget (w.f);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  report_gate_set (false);
  fake_wait_held (w.f, hold, 2);
  for (unsigned i = 0; i < 2; i++)
    g_assert_cmpuint (fake_op (w.f, FAKE_WRITE, 0, 0, i).conn, ==, 1 - i);
  task_wait_blocked (flush);
  task_wait_blocked (close);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (close), ==, 0);
  g_assert_cmpint (task_end (flush), ==, 0);
  assert_device (w.f, 4096, 4096, 1);
  assert_device (w.f, 4096, U + 4096, 2);
  g_assert_cmpuint (reports->len, ==, 1);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* A connection waits at its end for what another one tries again of its data. */
static void
test_close_after_retry (void)
{
  struct world w;
  struct task *close, *flush;
  int hold;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, 4096, 4096, 1, ENOSPC);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  g_assert_cmpuint (fake_op (w.f, FAKE_WRITE, 0, U, 0).conn, ==, 0);
  close = task_start (&w, 0, CLOSE, 0, 0, 0);
  task_wait_blocked (close);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (close), ==, 0);
  g_assert_cmpint (task_end (flush), ==, 0);
  assert_device (w.f, 4096, 4096, 1);
  world_end_clean (&w);
}

/* A connection that cannot write does not take over, and its flush says so. */
static void
test_orphan_readonly (void)
{
  struct world w;
  struct backend b;
  int fail;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  b = backend_of (w.f, 2);
  b.can_write = false;
  g_assert_cmpint (conn_open (w.e, "", &b, &w.c[2]), ==, 0);
  world_close (&w, 1);
  world_close (&w, 0);
  fake_release (w.f, fail);
  fake_forget (w.f);
  do_request (&w, 2, READ, 4096, 4096, 1);
  g_assert_cmpint (try_request (&w, 2, FLUSH, 0, 0, 0), ==, ENOSPC);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 0);
  world_open (&w, 3, "");
  do_request (&w, 3, FLUSH, 0, 0, 0);
  do_request (&w, 2, FLUSH, 0, 0, 0);
  assert_device (w.f, 4096, 4096, 1);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* Where the plugin does not say that connections see one device, each is for itself. */
static void
test_not_shared (void)
{
  struct world w;
  int hold;

  world_start (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < 3; i++) {
    struct backend b = backend_of (w.f, i);

    b.shared = false;
    g_assert_cmpint (conn_open (w.e, "x", &b, &w.c[i]), ==, 0);
    fake_make_slow (w.c[i]);
  }
  /* It may be one device all the same: what is dirty is written before another one reads. */
  do_request (&w, 0, WRITE, 4096, 0, 1);
  do_request (&w, 1, READ, 4096, 0, 1);
  assert_device (w.f, 4096, 0, 1);
  /* What failed is the connection's own affair, and ends with it. */
  hold = fake_fail (w.f, FAKE_WRITE, 0, U, EIO, -1);
  do_request (&w, 0, WRITE, 4096, 0, 2);
  g_assert_true (call_settle (w.c[0], U, 0));
  wait_state (&w, BUF_FAILED, 0, U, 1);
  do_request (&w, 0, READ, 4096, 0, 2);
  do_request (&w, 1, READ, 4096, 0, 1);
  g_assert_false (is_failing (&w, 1));
  do_request (&w, 1, ZERO, 4096, U, 0);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  world_close (&w, 0);
  g_assert_cmpuint (reports->len, ==, 1);
  g_assert_cmpstr (g_ptr_array_index (reports, 0), ==, "x:0+4096:lost");
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, 4 * U), ==, 0);
  fake_release (w.f, hold);
  do_request (&w, 2, READ, 4096, 0, 1);
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, EIO);       /* the same name: a loss */
  do_request (&w, 2, FLUSH, 0, 0, 0);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* Connections of one name have the same device if both say multi-conn, whatever else they say.  One that
 * cannot use the buffers of the first neither reads ahead nor defers, and sees and covers all that waits.
 */
static void
test_same_name (gconstpointer data)
{
  unsigned what = GPOINTER_TO_UINT (data);
  struct world w;
  struct backend b;
  int fail, hold;

  world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_AHEAD));
  b = backend_of (w.f, 2);
  switch (what) {
  case 0: b.size = 3 * U; break;
  case 1: b.max_block = U / 2; break;
  case 2: b.min_block = 512; break;
  case 3: b.shared = false; break;
  }
  g_assert_cmpint (conn_open (w.e, "", &b, &w.c[2]), ==, 0);
  fake_make_slow (w.c[2]);
  g_assert_true (w.c[0]->device == w.c[1]->device);
  g_assert_true ((w.c[0]->device == w.c[2]->device) == (what < 3));
  g_assert_true (w.c[2]->shares == (what == 3));
  if (what < 3) {
    fail = fake_fail (w.f, FAKE_WRITE, 0, U, ENOSPC, -1);
    do_request (&w, 0, WRITE, 4096, 4096, 1);
    g_assert_true (call_settle (w.c[0], U, 0));
    g_assert_cmpint (try_request (&w, 2, FLUSH, 0, 0, 0), ==, ENOSPC);
    do_request (&w, 2, READ, 4096, 4096, 1);
    fake_release (w.f, fail);
    do_request (&w, 2, FLUSH, 0, 0, 0);
    assert_device (w.f, 4096, 4096, 1);
    hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
    do_request (&w, 0, WRITE, 4096, 0, 2);
    do_request (&w, 2, READ, 4096, 0, 2);       /* dirty, in its buffer */
    fake_release (w.f, hold);
    do_request (&w, 2, WRITE, 4096, 2048, 3);   /* after that */
    assert_device (w.f, 2048, 0, 2);
    assert_device (w.f, 4096, 2048, 3);
    for (unsigned i = 0; i < 3; i++)
      do_request (&w, 2, READ, 4096, 2 * U + i * 4096, OLD);
    g_assert_cmpuint (atomic_load (&w.e->in_tree), ==, 0);
    do_request (&w, 0, FLUSH, 0, 0, 0);
    do_request (&w, 0, READ, U / 2, U, OLD);
    do_request (&w, 0, READ, U / 2, U + U / 2, OLD);
    wait_state (&w, BUF_CLEAN, 2 * U, U, 1);
    do_request (&w, 2, READ, 4096, 2 * U, OLD);         /* not what the others prefetch */
    g_assert_cmpuint (fake_op (w.f, FAKE_READ, 2 * U, 4096, fake_started (w.f, FAKE_READ, 2 * U, 4096)
                               - 1).conn, ==, 2);
  }
  world_end_clean (&w);
}

/* Likewise when the one without multi-conn came first. */
static void
test_same_name_first (void)
{
  struct world w;
  struct backend b;

  world_start (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_AHEAD));
  b = backend_of (w.f, 0);
  b.shared = false;
  g_assert_cmpint (conn_open (w.e, "", &b, &w.c[0]), ==, 0);
  world_open (&w, 1, "");
  g_assert_true (w.c[0]->device != w.c[1]->device);
  world_end_clean (&w);
}

/* Tried again by a flush, and refused again, while a zero to the same bytes and another flush wait: the zero
 * is what stands there in any case, and nothing waits for ever.
 */
static void
test_flush_and_zero (gconstpointer data)
{
  uint32_t count = GPOINTER_TO_UINT (data);     /* what the zero takes of 8192 bytes */

  for (unsigned n = 0; n < 10; n++) {
    struct world w;
    struct task *flush, *second, *zero;
    int hold, fail;

    world_init (&w, 4 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
    make_failed (&w, 0, 8192, 0, 1, EIO);
    hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
    fail = fake_fail (w.f, FAKE_WRITE, 0, 0, EIO, 1);
    flush = task_start (&w, n & 1, FLUSH, 0, 0, 0);
    fake_wait_held (w.f, hold, 1);
    zero = task_start (&w, 0, ZERO, count, 0, 0);
    task_wait_blocked (zero);
    second = task_start (&w, 1, FLUSH, 0, 0, 0);
    task_wait_blocked (second);
    fake_release (w.f, hold);
    g_assert_cmpint (task_end (zero), ==, 0);
    {
      /* A hook's answer is good for the flushes of both connections.  One that
       * looks late finds the data replaced, or written.
       */
      int err = task_end (flush), err2 = task_end (second);

      g_assert_true (err == EIO || (hooked && err == 0));
      g_assert_true (err2 == 0 || (hooked && err2 == EIO));
    }
    do_request (&w, 1, READ, count, 0, 0);
    do_request (&w, 0, FLUSH, 0, 0, 0);
    assert_device (w.f, count, 0, 0);
    if (count < 8192)
      assert_device (w.f, 8192 - count, count, 1);
    fake_release (w.f, fail);
    g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, 4 * U), ==, 0);
    g_assert_cmpuint (fake_collisions (w.f), ==, 0);
    world_end_clean (&w);
  }
}

/* The slab. */

/* Writes that would fill more than all buffers, together and on whichever connection, are not held:
 * in the plugin they are in flight at once, in the buffers they would wait for each other.
 */
static void
test_filling (void)
{
  struct world w;
  struct task *large, *other;
  int hold;

  world_init (&w, 32 * U, config (4, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, 4 * U, 0, 1);
  g_assert_cmpuint (w.c[0]->device->n_dirty, ==, 4);
  fake_release (w.f, hold);
  do_request (&w, 0, FLUSH, 0, 0, 0);

  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  large = task_start (&w, 0, WRITE, 5 * U, 8 * U, 2);
  fake_wait_held (w.f, hold, 1);
  task_wait_blocked (large);
  other = task_start (&w, 1, WRITE, U, 16 * U, 2);
  fake_wait_held (w.f, hold, fake_started (w.f, FAKE_WRITE, 8 * U, 5 * U) + 1);
  task_wait_blocked (other);
  g_assert_cmpuint (w.c[0]->device->n_dirty, ==, 0);
  do_request (&w, 1, WRITE, 4096, 20 * U, 2);   /* of small ones many fill one buffer */
  g_assert_cmpuint (w.c[0]->device->n_dirty, ==, 1);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (large), ==, 0);
  g_assert_cmpint (task_end (other), ==, 0);
  do_request (&w, 0, FLUSH, 0, 0, 0);

  atomic_store (&w.e->filling.epoch_ns, 0);     /* all that was long ago */
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 1, WRITE, U, 0, 3);
  g_assert_cmpuint (w.c[0]->device->n_dirty, ==, 1);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* The buffer that became free last is taken first, of however many there are. */
static void
test_reuse (void)
{
  struct world w;
  struct buf *b = NULL;

  world_init (&w, 8 * U, config (4, 4, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < 3; i++) {
    int hold = fake_hold (w.f, FAKE_WRITE, 0, 0);

    do_request (&w, 0, WRITE, U, i * U, 1);
    engine_lock (w.e);
    if (i == 0)
      b = buffers_first (w.e, 0, U);
    g_assert_true (buffers_first (w.e, i * U, (i + 1) * U) == b);
    engine_unlock (w.e);
    fake_release (w.f, hold);
    do_request (&w, 0, FLUSH, 0, 0, 0);
  }
  world_end_clean (&w);
}

/* A writer waits for a buffer and gets the first that becomes free. */
static void
test_space (void)
{
  struct world w;
  struct task *write;
  int hold;

  world_init (&w, 8 * U, config (4, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, WRITE, i == 3 ? 4096 : U, i * U, 1);     /* the last one stays OPEN */
  write = task_start (&w, 1, WRITE, U, 5 * U, 2);
  fake_wait_held (w.f, hold, 4);                /* the writer has sent it on */
  task_wait_blocked (write);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 5 * U, U), ==, 0);
  fake_pass (w.f, hold, 1);
  g_assert_cmpint (task_end (write), ==, 0);
  do_request (&w, 0, READ, U, 5 * U, 2);
  g_assert_cmpuint (stats_count (w.e->stats, STATS_SPACE_WAIT), ==, 1);
  fake_release (w.f, hold);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

/* Writers wait, and buffers become free, one by one: each is the first writer's.
 * While others wait no buffer is kept for more to come.
 */
static void
test_space_in_order (void)
{
  struct world w;
  struct task *write[3];
  int hold;

  world_init (&w, 8 * U, config (4, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  fake_wait_held (w.f, hold, 4);
  for (unsigned i = 0; i < 3; i++) {
    write[i] = task_start (&w, i % 2, WRITE, 4096, (5 + i) * U, 2 + i);
    task_wait_blocked (write[i]);
  }
  for (unsigned i = 0; i < 3; i++) {
    fake_pass (w.f, hold, 1);
    g_assert_cmpint (task_end (write[i]), ==, 0);
    if (i < 2)
      fake_wait_held (w.f, hold, 4);
  }
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 7 * U, U), ==, 1);
  for (unsigned i = 0; i < 3; i++)
    do_request (&w, 0, READ, 4096, (5 + i) * U, 2 + i);
  g_assert_cmpuint (stats_count (w.e->stats, STATS_SPACE_WAIT), ==, 3);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_BEHIND), ==, 7);
  fake_release (w.f, hold);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

/* Everything fails while writers wait: they are answered, by an error or by the plugin. */
static void
test_slab_failed (gconstpointer data)
{
  bool other = GPOINTER_TO_INT (data);          /* the waiting one is of another export */
  struct world w;
  struct task *write;
  int hold, fail;

  world_init (&w, 8 * U, config (4, 4, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 2, "other");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 4 * U);
  fail = fake_fail (w.f, FAKE_WRITE, 0, 6 * U, EIO, -1);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  write = task_start (&w, other ? 2 : 1, WRITE, U, 5 * U, 2);
  task_wait_blocked (write);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (write), ==, EIO);
  wait_state (&w, BUF_FAILED, 0, 4 * U, 4);
  for (unsigned i = 0; i < 3; i++) {
    g_assert_cmpint (try_request (&w, i, WRITE, 4096, 5 * U, 3), ==, EIO);
    do_request (&w, i, WRITE, U, 7 * U, i);
    do_request (&w, i, READ, U, 7 * U, i);
    do_request (&w, i, ZERO, U, 7 * U, 0);
  }
  do_request (&w, 1, READ, 4 * U, 0, 1);
  /* Reading ahead finds no buffer, and goes without. */
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, EIO);
  fake_release (w.f, fail);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, 4 * U, 0, 1);
  do_request (&w, 0, WRITE, 4096, 0, 2);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, U), ==, 1);
  world_end_clean (&w);
}

static gint
compare_bases (gconstpointer ap, gconstpointer bp, gpointer data G_GNUC_UNUSED)
{
  const struct buf *a = ap, *b = bp;

  return a->base < b->base ? -1 : 1;
}

/* As if what has been read ahead had been read in order, and so much earlier. */
static void
make_older (struct world *w, uint64_t ns)
{
  LOCK_IN_SCOPE (&w->e->lock);
  g_queue_sort (&w->e->clean, compare_bases, NULL);
  for (GList *l = w->e->clean.head; l; l = l->next)
    ((struct buf *) l->data)->since_ns -= ns;
}

/* As if no stream had been followed for so long. */
static void
stop_reading (struct world *w, uint64_t ns)
{
  LOCK_IN_SCOPE (&w->e->lock);
  for (unsigned i = 0; i < CONNS; i++)
    if (w->c[i])
      w->c[i]->read_ns -= MIN (ns, w->c[i]->read_ns);
}

/* Two writers wait, and two buffers become free at once: the first calls the
 * second.  Nothing else does.
 */
static void
test_space_two (void)
{
  struct world w;
  struct task *read, *write[2];
  int hold_read, hold_write;

  world_init (&w, 16 * U, config (4, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 4 * U, 4);
  make_older (&w, 0);
  hold_read = fake_hold (w.f, FAKE_READ, 4 * U, U);
  hold_write = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 2; i++)
    do_request (&w, 1, WRITE, U, (10 + i) * U, 1);
  stop_ahead (w.c[0]);
  read = task_start (&w, 0, READ, 3 * U, 2 * U, OLD);   /* two buffers, and one unit that is held */
  fake_wait_held (w.f, hold_read, 1);
  for (unsigned i = 0; i < 2; i++) {
    write[i] = task_start (&w, 1, WRITE, U, (12 + i) * U, 1);
    task_wait_blocked (write[i]);
  }
  fake_release (w.f, hold_read);
  g_assert_cmpint (task_end (read), ==, 0);
  for (unsigned i = 0; i < 2; i++)
    g_assert_cmpint (task_end (write[i]), ==, 0);
  fake_release (w.f, hold_write);
  world_end_clean (&w);
}

/* A slow reader finds what was read for it long ago; who has gone elsewhere leaves
 * nothing behind.
 */
static void
test_ahead_slow (void)
{
  struct world w;

  world_init (&w, 64 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 8 * U, 8);
  make_older (&w, 2 * STREAM_IDLE_NS);
  do_request (&w, 0, READ, U, 2 * U, OLD);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 3 * U, 7 * U), ==, 7);
  make_older (&w, 2 * STREAM_IDLE_NS);
  stop_reading (&w, 2 * STREAM_IDLE_NS);
  do_request (&w, 1, READ, U, 40 * U, OLD);
  do_request (&w, 1, READ, U, 41 * U, OLD);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 3 * U, 7 * U), ==, 0);
  world_end_clean (&w);
}

/* What was read ahead gives way to writers, the far end first, until each have
 * half; and all of it where nobody comes for it.  The stream knows what it has
 * lost.
 */
static void
test_evict_clean (void)
{
  struct world w;
  struct task *write;
  int hold;

  world_init (&w, 16 * U, config (4, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 4 * U, 4);
  make_older (&w, 0);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 2; i++) {
    do_request (&w, 1, WRITE, U, (10 + i) * U, 1);
    g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, (3 - i) * U), ==, 3 - i);
    g_assert_cmpuint (count_state (&w, BUF_CLEAN, 0, 16 * U), ==, 3 - i);
  }
  g_assert_cmpuint (stats_count (w.e->stats, STATS_SPACE_WAIT), ==, 0);
  write = task_start (&w, 1, WRITE, U, 12 * U, 1);
  task_wait_blocked (write);
  g_assert_cmpuint (w.c[0]->lost, ==, 4 * U);
  make_older (&w, STREAM_IDLE_NS);
  stop_reading (&w, STREAM_IDLE_NS);
  g_assert_cmpint (task_end (write), ==, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 0, 16 * U), ==, 0);
  do_request (&w, 1, WRITE, U, 13 * U, 1);
  fake_release (w.f, hold);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  do_request (&w, 0, READ, U, 2 * U, OLD);
  wait_state (&w, BUF_CLEAN, 4 * U, 2 * U, 2);
  world_end_clean (&w);
}

/* A writer looks again when prefetched data becomes idle, though no buffer becomes free before that: this
 * device would have it wait for an hour.
 */
static void
test_evict_idle (void)
{
  struct world w;
  struct task *write;
  int hold;

  world_init (&w, 16 * U, config (4, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 4 * U, 4);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 2; i++)
    do_request (&w, 1, WRITE, U, (10 + i) * U, 1);
  pace_note (w.c[1]->backend.pace_write, UINT64_C (3600000000000), 1);
  write = task_start (&w, 1, WRITE, U, 12 * U, 1);
  g_assert_cmpint (task_end (write), ==, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 0, 16 * U), <, 2);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, 0, 0), ==, 0);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* So does what waits to be read ahead: the worker never gets it. */
static void
test_evict_reading (void)
{
  struct world w;
  int hold;

  world_init (&w, 8 * U, config (4, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, U);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  g_assert_cmpuint (count_state (&w, BUF_READING, 0, 8 * U), ==, 4);
  do_request (&w, 1, WRITE, 4096, 7 * U, 1);
  g_assert_cmpuint (count_state (&w, BUF_READING, 0, 8 * U), ==, 3);
  do_request (&w, 1, WRITE, 4096, 0, 1);
  g_assert_cmpuint (count_state (&w, BUF_READING, 0, 8 * U), ==, 2);
  fake_release (w.f, hold);
  wait_state (&w, BUF_CLEAN, 2 * U, 2 * U, 2);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 4 * U, 2 * U), ==, 0);
  do_request (&w, 0, READ, U, 4 * U, OLD);
  world_end_clean (&w);
}

/* While a writer waits nothing new is read ahead. */
static void
test_writer_first (void)
{
  struct world w;
  struct task *write;
  int hold;

  world_init (&w, 16 * U, config (4, 4, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, WRITE, U, (12 + i) * U, 1);
  write = task_start (&w, 0, WRITE, U, 11 * U, 2);
  task_wait_blocked (write);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 1, READ, U, i * U, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 0, 0), ==, 4);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (write), ==, 0);
  world_end_clean (&w);
}

/* Close. */

static void
test_close_drains (void)
{
  struct world w;
  struct task *task;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  do_request (&w, 0, WRITE, U, U, 1);
  task = task_start (&w, 0, CLOSE, 0, 0, 0);
  fake_wait_held (w.f, hold, 2);
  task_wait_blocked (task);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (task), ==, 0);
  assert_device (w.f, 4096, 0, 1);
  assert_device (w.f, U, U, 1);
  world_end_clean (&w);

  world_init (&w, 4 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  task = task_start (&w, 0, CLOSE, 0, 0, 0);
  task_wait_blocked (task);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (task), ==, 0);
  if (!hooked)                  /* that was taken back */
    g_assert_cmpuint (fake_started (w.f, FAKE_READ, 3 * U, U), ==, 0);
  do_request (&w, 1, READ, 2 * U, 2 * U, OLD);
  world_end_clean (&w);
}

/* The end of a connection is one more try, whatever the error was. */
static void
test_close_retries (gconstpointer data)
{
  int err = GPOINTER_TO_INT (data);
  struct world w;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, U, U, 1, err);
  world_close (&w, 0);
  assert_device (w.f, U, U, 1);
  world_end_clean (&w);
}

/* Sizes. */

static void
test_max_block (void)
{
  struct engine_config c = config (16, 4, WRITE_BEHIND, READ_AHEAD);
  struct world w;
  struct backend b;
  uint32_t max = 96 * KIB;      /* and no power of two */

  c.buffer_size = 256 * KIB;
  world_start (&w, 2048 * KIB, c);
  b = backend_of (w.f, 0);
  b.max_block = max;
  g_assert_cmpint (conn_open (w.e, "", &b, &w.c[0]), ==, 0);
  fake_make_slow (w.c[0]);
  for (unsigned i = 0; i < 16; i++)
    do_request (&w, 0, WRITE, 16 * KIB, 512 * KIB + i * 16 * KIB, 1);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 4);
  for (unsigned i = 0; i < 4; i++)
    g_assert_cmpuint (fake_op (w.f, FAKE_WRITE, 0, 0, i).count, ==, U);
  for (uint64_t offset = 0; offset < 512 * KIB; offset += 32 * KIB)
    do_request (&w, 0, READ, 32 * KIB, offset, OLD);
  do_request (&w, 0, READ, 32 * KIB, 512 * KIB, 1);
  world_close (&w, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 0, 0), >, 4);
  for (unsigned i = 0; i < fake_started (w.f, FAKE_ANY, 0, 0); i++)
    g_assert_cmpuint (fake_op (w.f, FAKE_ANY, 0, 0, i).count, <=, max);
  world_end_clean (&w);
}

static void
test_min_block (void)
{
  struct world w;
  struct backend b;

  world_start (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  b = backend_of (w.f, 0);
  b.min_block = 4096;
  g_assert_cmpint (conn_open (w.e, "", &b, &w.c[0]), ==, 0);
  fake_make_slow (w.c[0]);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 0);
  /* Not whole blocks: the client's own affair, in the order of things. */
  do_request (&w, 0, WRITE, 512, 1024, 2);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, 0, 0), ==, 2);
  do_request (&w, 0, WRITE, 4096, 512, 3);
  g_assert_cmpuint (fake_ended (w.f, FAKE_WRITE, 0, 0), ==, 3);
  assert_devices (w.f, (struct part[]) { { 0, 512, 1 }, { 512, 4096, 3 }, { 4608, 100, OLD } }, 3);
  world_close (&w, 0);

  b.min_block = 2 * U;
  g_assert_cmpint (conn_open (w.e, "", &b, &w.c[0]), ==, EINVAL);
  w.c[0] = NULL;
  world_end_clean (&w);
}

static void
open_with (struct world *w, uint32_t min_block, uint32_t max_block)
{
  struct backend b = backend_of (w->f, 0);

  b.min_block = min_block;
  b.max_block = max_block;
  g_assert_cmpint (conn_open (w->e, "", &b, &w->c[0]), ==, 0);
  fake_make_slow (w->c[0]);
}

/* Exactly one operation of KIND, the whole request. */
static void
assert_whole (struct world *w, unsigned kind, uint32_t count, uint64_t offset)
{
  struct fake_op op = fake_op (w->f, kind, 0, 0, 0);

  g_assert_cmpuint (fake_started (w->f, kind, 0, 0), ==, 1);
  g_assert_cmpuint (op.offset, ==, offset);
  g_assert_cmpuint (op.count, ==, count);
}

/* A request that the plugin may refuse reaches it whole.  If the plugin does
 * refuse it, nothing has changed.  Waiting data is laid over what it reads.
 */
static void
test_refusable (gconstpointer data)
{
  unsigned what = GPOINTER_TO_UINT (data);
  uint64_t offset = what == 1 ? 512 : 0;
  uint32_t count = what == 0 ? 3 * U + 512 : 3 * U;
  struct world w;
  int fail, hold;

  world_start (&w, 16 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  open_with (&w, 4096, what == 2 ? 2 * U : UINT32_MAX);
  fail = fake_fail (w.f, FAKE_ANY, offset, 512, EINVAL, -1);
  g_assert_cmpint (try_request (&w, 0, WRITE, count, offset, 1), ==, EINVAL);
  assert_whole (&w, FAKE_WRITE, count, offset);
  assert_device (w.f, 16 * U, 0, OLD);
  g_assert_cmpint (try_request (&w, 0, READ, count, offset, 1), ==, EINVAL);
  assert_whole (&w, FAKE_READ, count, offset);
  fake_release (w.f, fail);

  fake_forget (w.f);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, U, U, 2);           /* all of its unit */
  do_request (&w, 0, WRITE, 4096, 2 * U, 3);    /* a part */
  assert_reads (&w, 0, (struct part[]) {
      { offset, U - offset, OLD }, { U, U, 2 }, { 2 * U, 4096, 3 },
      { 2 * U + 4096, count + offset - 2 * U - 4096, OLD } }, 4);
  assert_whole (&w, FAKE_READ, count, offset);
  fake_release (w.f, hold);

  do_request (&w, 0, FLUSH, 0, 0, 0);
  fake_forget (w.f);
  do_request (&w, 0, WRITE, count, offset, 4);
  assert_whole (&w, FAKE_WRITE, count, offset);
  do_request (&w, 0, WRITE, U, 0, 5);           /* deferred as ever */
  do_request (&w, 0, WRITE, count, offset, 6);  /* in order */
  assert_device (w.f, offset, 0, 5);
  assert_device (w.f, count, offset, 6);
  world_end_clean (&w);
}

/* Neither does it make a stream, nor is it served from one. */
static void
test_refusable_ahead (void)
{
  struct world w;

  world_start (&w, 64 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  open_with (&w, 4096, U);
  for (unsigned i = 0; i < 8; i++)
    do_request (&w, 0, READ, 2 * U, i * 2 * U, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 0, 0), ==, 8);
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 2 * U, 2);
  fill (fake_data (w.f) + 2 * U, 2 * U, 2 * U, 1);      /* something else did */
  do_request (&w, 0, READ, 2 * U, 2 * U, 1);
  world_end_clean (&w);
}

static void
test_odd_size (void)
{
  struct world w;
  uint64_t size = 3 * U + 4096 + 512;

  world_init (&w, size, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  do_request (&w, 0, WRITE, 512, size - 512, 1);        /* the end of the device is a full buffer */
  fake_wait_ended (w.f, FAKE_WRITE, 0, 0, 1);
  do_request (&w, 0, WRITE, 4096, 3 * U, 2);
  assert_reads (&w, 1, (struct part[]) {
      { 2 * U, U, OLD }, { 3 * U, 4096, 2 }, { size - 512, 512, 1 } }, 3);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_devices (w.f, (struct part[]) {
      { 2 * U, U, OLD }, { 3 * U, 4096, 2 }, { size - 512, 512, 1 } }, 3);
  world_end_clean (&w);
}

/* Memory. */
static void
test_too_large (void)
{
  struct engine_config c = config (UINT32_MAX, 4, WRITE_BEHIND, READ_AHEAD);
  struct engine *e;

  c.buffer_size = UINT32_C (1) << 31;
  g_assert_cmpint (engine_new (&c, &e), ==, ENOMEM);
}

/* Exports. */

/* Two names of one device: each reads what was written by the other name. */
static void
test_exports (void)
{
  struct world w;
  struct task *read, *write;
  int hold, hold_read;

  world_start (&w, 4 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  hold_read = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 1);
  fake_wait_held (w.f, hold_read, 2);
  do_request (&w, 0, WRITE, 4096, 2 * U, 1);            /* makes what "b" reads ahead stale */
  fake_release (w.f, hold_read);
  read = task_start (&w, 1, READ, 4096, 2 * U, 1);
  fake_wait_held (w.f, hold, 1);                        /* the read has sent the write on */
  task_wait_blocked (read);
  do_request (&w, 1, READ, 4096, 3 * U, OLD);           /* elsewhere it waits for nothing */
  fake_pass (w.f, hold, 1);
  g_assert_cmpint (task_end (read), ==, 0);
  /* Overlapping writes keep their order. */
  fake_forget (w.f);
  do_request (&w, 0, WRITE, 4096, 2 * U, 1);
  write = task_start (&w, 1, WRITE, 2048, 2 * U, 2);
  fake_wait_held (w.f, hold, 1);
  task_wait_blocked (write);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (write), ==, 0);
  assert_device (w.f, 2048, 2 * U, 2);
  assert_device (w.f, 2048, 2 * U + 2048, 1);
  assert_order (fake_op (w.f, FAKE_WRITE, 0, 0, 0), fake_op (w.f, FAKE_WRITE, 0, 0, 1));
  assert_reads (&w, 0, (struct part[]) {
      { 2 * U, 2048, 2 }, { 2 * U + 2048, 2048, 1 } }, 2);
  world_end_clean (&w);
}

/* What the other name is writing is not read ahead: it would be stale afterwards. */
static void
test_exports_ahead (void)
{
  struct world w;
  int hold;

  world_start (&w, 4 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, U, 2 * U, 1);
  fake_wait_held (w.f, hold, 1);
  start_stream (&w, 1);
  wait_state (&w, BUF_CLEAN, 3 * U, U, 1);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, U), ==, 0);
  fake_release (w.f, hold);
  fake_wait_ended (w.f, FAKE_WRITE, 0, 0, 1);
  assert_reads (&w, 1, (struct part[]) {
      { U, U, OLD }, { 2 * U, U, 1 }, { 3 * U, U, OLD } }, 3);
  world_end_clean (&w);
}

/* Failed data of one device is tried again while a newer write of another is under way: it waits for that,
 * which replaces it.  Its flush returns the error once.
 */
static void
test_exports_retry (void)
{
  struct world w;
  struct task *flush, *write;
  int hold;

  world_start (&w, 4 * U, config (16, 4, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  make_failed (&w, 0, 4096, 0, 1, EIO);
  fake_forget (w.f);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  write = task_start (&w, 1, WRITE, U, 0, 2);
  fake_wait_held (w.f, hold, 1);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (write), ==, 0);
  g_assert_cmpint (task_end (flush), ==, EIO);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 1);
  assert_device (w.f, U, 0, 2);
  world_end_clean (&w);
}

/* Two names of two devices: data never crosses.  What one writes with success removes the other's failed data,
 * as it might be one device, and the other's flush says so once.
 */
static void
test_devices (gconstpointer data)
{
  struct part parts[] = { { 0, 1024, 1 }, { 1024, 1024, OLD }, { 2048, 2048, 1 } };
  enum kind kind = GPOINTER_TO_UINT (data);
  struct world w;
  int fail;

  world_start (&w, 4 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  w.f2 = fake_new (4 * U);
  fill (fake_data (w.f2), 4 * U, 0, OLD);
  world_open (&w, 0, "a");
  world_open (&w, 1, "a");
  world_open_on (&w, 2, "b", w.f2);
  make_failed (&w, 0, 4096, 0, 1, EIO);
  do_request (&w, 2, READ, 4096, 0, OLD);
  fail = fake_fail (w.f2, FAKE_CHANGE, 0, 0, EPERM, -1);
  g_assert_cmpint (try_request (&w, 2, kind, 1024, 1024, 3), ==, EPERM);
  do_request (&w, 1, READ, 4096, 0, 1);                 /* nothing has changed */
  fake_release (w.f2, fail);
  do_request (&w, 2, kind, 1024, 1024, 3);
  assert_reads (&w, 1, parts, 3);
  do_request (&w, 2, FLUSH, 0, 0, 0);
  assert_reads (&w, 1, parts, 3);
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ENOSPC);
  fake_release (w.f, fail);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_devices (w.f, parts, 3);
  make_failed (&w, 0, 4096, 0, 1, EIO);
  do_request (&w, 2, kind, 8192, 0, 2);                 /* all of it */
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, U), ==, 0);
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, EIO);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_devices (w.f, parts, 3);
  world_end_clean (&w);
}

/* Async hooks. */

/* As many operations as there are buffers, with one thread. */
static void
test_hooks_in_flight (void)
{
  struct world w;
  struct task *write;
  int hold;

  world_init (&w, 16 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, count_state (&w, BUF_READING, 0, 16 * U));
  g_assert_cmpuint (fake_peak (w.f), >=, 6);
  fake_release (w.f, hold);
  do_request (&w, 0, READ, 6 * U, 2 * U, OLD);

  world_close (&w, 0);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 8; i++)
    do_request (&w, 1, WRITE, U, i * U, 1);
  fake_wait_held (w.f, hold, 8);
  write = task_start (&w, 1, WRITE, U, 8 * U, 1);
  task_wait_blocked (write);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (write), ==, 0);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, 9 * U, 0, 1);
  world_end_clean (&w);
}

/* The pieces of one request, likewise; their errors are the plugin's, at the first try. */
static void
test_hooks_pieces (void)
{
  struct world w;
  struct task *task;
  int rule;

  world_init (&w, 16 * U, config (8, 1, WRITE_THROUGH, READ_DIRECT));
  for (unsigned k = READ; k <= WRITE; k++) {
    rule = fake_hold (w.f, FAKE_READ | FAKE_WRITE, 0, 0);
    task = task_start (&w, 0, k, 8 * U, U / 2, k == READ ? OLD : 1);
    fake_wait_held (w.f, rule, 9);
    fake_release (w.f, rule);
    g_assert_cmpint (task_end (task), ==, 0);
    rule = fake_fail (w.f, FAKE_READ | FAKE_WRITE, 5 * U, 1, EPERM, 1);
    g_assert_cmpint (try_request (&w, 0, k, 8 * U, U / 2, 1), ==, EPERM);
    fake_release (w.f, rule);
  }
  assert_device (w.f, 3 * U, U / 2, 1);
  world_end_clean (&w);
}

/* A client that is there waits for as long as the plugin takes. */
static void
test_hooks_patient (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_init (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  read = task_start (&w, 0, READ, U, 2 * U, OLD);
  fake_wait_asked (w.f, 3);
  task_wait_blocked (read);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  world_end_clean (&w);
}

/* Two connections whose plugin has no time to reply once the client has gone. */
static void
world_init_hasty (struct world *w, uint64_t size, struct engine_config c)
{
  world_start (w, size, c);
  for (unsigned i = 0; i < 2; i++) {
    struct backend b = fake_backend (w->f, i);

    fake_hook (&b, 0);
    g_assert_cmpint (conn_open (w->e, "", &b, &w->c[i]), ==, 0);
    fake_make_slow (w->c[i]);
  }
}

/* One that has gone does not; another one reads the same bytes. */
static void
test_hooks_lost_read (void)
{
  struct world w;
  struct task *read;
  unsigned n;
  int hold;

  world_init_hasty (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  n = count_state (&w, BUF_READING, 0, 8 * U);
  fake_wait_held (w.f, hold, n);
  read = task_start (&w, 0, READ, 2 * U, 2 * U, OLD);
  task_wait_blocked (read);
  fake_set_gone (w.f, true);
  g_assert_cmpint (task_end (read), ==, ESHUTDOWN);
  world_close (&w, 0);
  g_assert_cmpuint (fake_ended (w.f, FAKE_READ, 2 * U, 0), ==, 0);
  g_assert_cmpuint (w.e->reading.length, ==, 0);
  fake_set_gone (w.f, false);
  fake_release (w.f, hold);
  do_request (&w, 1, READ, 8 * U, 0, OLD);
  world_end_clean (&w);
}

/* A connection ends although an acknowledged write is not replied to; that is kept for another one. */
static void
test_hooks_lost_write (void)
{
  struct world w;
  int hold;

  world_init_hasty (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_WRITE, U, U);
  do_request (&w, 0, WRITE, U, U, 1);
  do_request (&w, 0, WRITE, U, 3 * U, 1);
  fake_wait_held (w.f, hold, 1);
  while (count_state (&w, BUF_WRITING, 3 * U, U) > 0)   /* there is no grace for that one either */
    g_usleep (1000);
  world_close (&w, 0);
  g_assert_cmpuint (reports->len, ==, 1);
  g_assert_cmpstr (reports->pdata[0], ==, ":65536+65536:kept");
  assert_device (w.f, U, 3 * U, 1);
  do_request (&w, 1, READ, U, U, 1);
  fake_release (w.f, hold);
  fake_wait_ended (w.f, FAKE_WRITE, U, U, 1);
  assert_device (w.f, U, U, OLD);       /* the fake respects that it was given up */
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, U, U, 1);
  world_end (&w);
  g_assert_cmpuint (reports->len, ==, 1);
}

/* What was not replied to in time is not waited for twice: neither the flush nor the end tries again.
 * Not so what the plugin itself has refused with that very code, see test_close_retries.
 */
static void
test_hooks_lost_once (void)
{
  struct world w;
  int hold;

  world_init_hasty (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_WRITE, U, U);
  do_request (&w, 0, WRITE, U, U, 1);
  fake_wait_held (w.f, hold, 1);
  fake_set_gone (w.f, true);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ESHUTDOWN);
  world_close (&w, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, U, U), ==, 1);
  g_assert_cmpuint (reports->len, ==, 1);
  fake_set_gone (w.f, false);
  fake_release (w.f, hold);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, U, U, 1);
  world_end (&w);
  g_assert_cmpuint (reports->len, ==, 1);
}

/* The connection's client went long ago, its plugin has been silent ever since, and the grace time is
 * shorter than that, but longer than a test takes.  The next wait looks at that at once.
 */
static void
make_hopeless (struct conn *c)
{
  fake_hook (&c->backend, stats_now_ns () / 2);
  atomic_store (&c->backend.gone_ns, 1);
  atomic_store (&c->backend.alive_ns, 1);
}

/* The grace time is each operation's own: what failed and is tried once more at the end has all of it,
 * however long ago the client has gone.
 */
static void
test_hooks_grace (void)
{
  struct world w;
  struct task *close;
  int hold;

  world_init (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, U, U, 1, EIO);
  make_hopeless (w.c[0]);
  hold = fake_hold (w.f, FAKE_WRITE, U, U);
  close = task_start (&w, 0, CLOSE, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  task_wait_blocked (close);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (close), ==, 0);
  assert_device (w.f, U, U, 1);
  world_end_clean (&w);
}

static const struct nbdkit_async_driver *real;

/* DRIVER becomes the connection's: as its own one, which is `real' then, but for GIVE_UP. */
static void
replace_give_up (struct conn *c, struct nbdkit_async_driver *driver,
                 bool (*give_up) (struct nbdkit_async_io *))
{
  real = c->backend.hooks;
  *driver = *real;
  driver->give_up = give_up;
  c->backend.hooks = driver;
}

/* A driver whose plugin gives a sign of life when something is given up. */
static bool
give_up_lively (struct nbdkit_async_io *io)
{
  bool given_up = real->give_up (io);

  atomic_store (&((struct backend_io *) io)->backend->alive_ns, stats_now_ns ());
  return given_up;
}

/* Giving up stops when there is hope again. */
static void
test_hooks_hope (void)
{
  struct nbdkit_async_driver driver;
  struct world w;
  struct task *close;
  int hold;

  world_init (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 2; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  fake_wait_held (w.f, hold, 2);
  make_hopeless (w.c[0]);
  replace_give_up (w.c[0], &driver, give_up_lively);
  close = task_start (&w, 0, CLOSE, 0, 0, 0);
  wait_state (&w, BUF_FAILED, 0, 2 * U, 1);
  task_wait_blocked (close);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (close), ==, 0);
  g_assert_cmpuint (reports->len, ==, 1);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, 2 * U, 0, 1);
  world_end (&w);
  g_assert_cmpuint (reports->len, ==, 1);
}

/* A driver whose plugin replies, on a thread of its own, to what it is to give up. */
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

/* Such a reply is no sign that the others will be replied to. */
static void
test_hooks_cancelled (void)
{
  struct nbdkit_async_driver driver;
  struct world w;
  int hold;

  world_init (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  fake_wait_held (w.f, hold, 4);
  make_hopeless (w.c[0]);
  replace_give_up (w.c[0], &driver, give_up_replying);
  /* One after the other was replied to, and no more than its own last try is waited for. */
  engine_lock (w.e);
  while (w.e->failed.length < 4) {
    engine_wait_end (w.c[0], &w.e->progress);
    g_assert_true (w.e->failed.length == 0 || w.e->failed.length == 4);
  }
  engine_unlock (w.e);
  fake_release (w.f, hold);
  world_close (&w, 0);
  assert_device (w.f, 4 * U, 0, 1);
  world_end_clean (&w);
}

/* A driver that is late: what it was to give up has failed, and another connection tries it again. */
static struct late {
  struct world *w;
  int hold, fail;
  struct task *flush;
} late;

static bool
give_up_late (struct nbdkit_async_io *io)
{
  struct world *w = late.w;

  late.fail = fake_fail (w->f, FAKE_WRITE, 0, 0, EIO, 1);
  fake_pass (w->f, late.hold, 1);
  wait_state (w, BUF_FAILED, 0, U, 1);
  late.flush = task_start (w, 1, FLUSH, 0, 0, 0);
  fake_wait_held (w->f, late.hold, 1);
  return real->give_up (io);
}

/* Then nothing is given up: the other connection has taken it over, and the end does not wait for that. */
static void
test_hooks_given_up_late (void)
{
  struct nbdkit_async_driver driver;
  struct world w;
  struct task *close;

  world_init (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  fake_hook (&w.c[1]->backend, UINT64_MAX / 2);
  late = (struct late) { .w = &w, .hold = fake_hold (w.f, FAKE_WRITE, 0, 0) };
  do_request (&w, 0, WRITE, U, 0, 1);
  fake_wait_held (w.f, late.hold, 1);
  make_hopeless (w.c[0]);
  replace_give_up (w.c[0], &driver, give_up_late);
  close = task_start (&w, 0, CLOSE, 0, 0, 0);
  fake_wait_ended (w.f, FAKE_WRITE, 0, 0, 1);
  fake_wait_held (w.f, late.hold, 1);   /* the flush's own */
  g_assert_cmpint (task_end (close), ==, 0);
  fake_release (w.f, late.hold);
  g_assert_cmpint (task_end (late.flush), ==, 0);
  assert_device (w.f, U, 0, 1);
  world_end (&w);
}

/* A plugin with a hook for writes only: what a worker does later with a buffer that a hook has given up
 * is nothing that was given up.
 */
static void
test_hooks_one_kind (void)
{
  struct nbdkit_async_driver driver;
  struct world w;
  struct task *read;
  int hold;

  world_init_hasty (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  driver = *w.c[0]->backend.hooks;
  driver.can_read = false;
  w.c[0]->backend.hooks = w.c[1]->backend.hooks = &driver;
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < 8; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  fake_wait_held (w.f, hold, 8);
  fake_set_gone (w.f, true);
  world_close (&w, 0);
  fake_set_gone (w.f, false);
  fake_release (w.f, hold);
  do_request (&w, 1, ZERO, 8 * U, 0, 0);        /* in place of what failed */

  hold = fake_hold (w.f, FAKE_READ, 2 * U, U);
  do_request (&w, 1, READ, U, 0, 0);
  do_request (&w, 1, READ, U, U, 0);
  fake_wait_held (w.f, hold, 1);
  read = task_start (&w, 1, READ, U, 2 * U, 0);
  task_wait_blocked (read);
  fake_fail (w.f, FAKE_READ, 2 * U, U, EIO, 1);
  fake_pass (w.f, hold, 1);
  fake_wait_held (w.f, hold, 1);                /* the reader's own */
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  world_end (&w);
}

/* A piece of a request that waits. */
static void
test_hooks_lost_piece (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_init_hasty (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_READ, 5 * U, U);
  read = task_start (&w, 0, READ, 8 * U, 0, OLD);
  fake_wait_held (w.f, hold, 1);
  fake_set_gone (w.f, true);
  g_assert_cmpint (task_end (read), ==, ESHUTDOWN);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* nbdkit may end without closing a connection. */
static void
test_hooks_stop (void)
{
  struct world w;
  int hold;

  world_init_hasty (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  world_stop (&w);
  g_assert_cmpuint (fake_ended (w.f, FAKE_READ, 2 * U, 0), ==, 0);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* Buffers that hooks have been at, and are not any more: what failed is tried again. */
static void
test_hooks_stop_idle (void)
{
  struct world w;

  world_init_hasty (&w, 8 * U, config (8, 1, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, U, 1);
  make_failed (&w, 1, U, 6 * U, 1, ENOSPC);
  world_stop (&w);
  assert_device (w.f, U, 6 * U, 1);
  world_end_clean (&w);
}

static void
add_hooks (void)
{
  g_test_add_func ("/engine/hooks/in-flight", test_hooks_in_flight);
  g_test_add_func ("/engine/hooks/pieces", test_hooks_pieces);
  g_test_add_func ("/engine/hooks/patient", test_hooks_patient);
  g_test_add_func ("/engine/hooks/lost-read", test_hooks_lost_read);
  g_test_add_func ("/engine/hooks/lost-write", test_hooks_lost_write);
  g_test_add_func ("/engine/hooks/lost-once", test_hooks_lost_once);
  g_test_add_func ("/engine/hooks/grace", test_hooks_grace);
  g_test_add_func ("/engine/hooks/hope", test_hooks_hope);
  g_test_add_func ("/engine/hooks/cancelled", test_hooks_cancelled);
  g_test_add_func ("/engine/hooks/given-up-late", test_hooks_given_up_late);
  g_test_add_func ("/engine/hooks/one-kind", test_hooks_one_kind);
  g_test_add_func ("/engine/hooks/lost-piece", test_hooks_lost_piece);
  g_test_add_func ("/engine/hooks/stop", test_hooks_stop);
  g_test_add_func ("/engine/hooks/stop-idle", test_hooks_stop_idle);
}

/* At random: threads that use all connections, each in its own part of the device, beside what only
 * is read.  A thread's own bytes must be what it last wrote, whatever the others do and whatever
 * fails.
 */

enum { RANDOM_THREADS = 4, RANDOM_CONNS = 3 };
/* The device: stripes that the threads have in turn, a region per thread, one that is read only. */
#define STRIPE (8 * KIB)
#define STRIPES (4 * U)
#define REGION (4 * U)
#define READ_ONLY (STRIPES + RANDOM_THREADS * REGION)
#define RANDOM_SIZE (READ_ONLY + 8 * U + 512)
#define BLOCK UINT64_C (512)

struct random_config {
  struct engine_config engine;
  bool failures, exports;
};

struct random_world {
  struct world w;
  const struct random_config *config;
  unsigned ops;
  pthread_rwlock_t conn_lock[RANDOM_CONNS];     /* held for writing to close and open it again */
  uint8_t *shadow;              /* each byte used by its owner only */
  bool *known;                  /* per block: the device may hold anything else there */
  atomic_uint errors, done;
};

struct random_thread {
  pthread_t thread;
  struct random_world *r;
  unsigned self;
  GRand *rand;
};

static bool
is_mine (const struct random_thread *t, uint64_t block)
{
  uint64_t offset = block * BLOCK;

  if (offset < STRIPES)
    return offset / STRIPE % RANDOM_THREADS == t->self;
  return offset < READ_ONLY && (offset - STRIPES) / REGION == t->self;
}

/* A range of whole blocks that the thread may change. */
static void
choose_own (struct random_thread *t, uint64_t *offset, uint32_t *count)
{
  uint64_t base, size;

  if (g_rand_boolean (t->rand)) {
    base = (g_rand_int_range (t->rand, 0, STRIPES / STRIPE / RANDOM_THREADS) * RANDOM_THREADS
            + t->self) * STRIPE;
    size = STRIPE;
  }
  else {
    base = STRIPES + t->self * REGION;
    size = REGION;
  }
  *count = g_rand_int_range (t->rand, 1, (g_rand_int_range (t->rand, 0, 8) ? 16 : size / BLOCK) + 1)
    * BLOCK;
  *offset = base + g_rand_int_range (t->rand, 0, (size - *count) / BLOCK + 1) * BLOCK;
}

/* What was read, or stands in the device, against what the thread knows. */
static void
check_own (struct random_thread *t, const uint8_t *buf, uint32_t count, uint64_t offset,
           const char *where)
{
  struct random_world *r = t->r;

  for (uint64_t o = offset / BLOCK * BLOCK; o < offset + count; o += BLOCK) {
    uint64_t from = MAX (o, offset), to = MIN (o + BLOCK, offset + count);

    if (o < READ_ONLY && (!is_mine (t, o / BLOCK) || !r->known[o / BLOCK]))
      continue;
    if (memcmp (buf + (from - offset), r->shadow + from, to - from) != 0)
      g_error ("thread %u: %s: block at %" PRIu64 " is not what was written last", t->self, where,
               o);
  }
}

/* What the request changes, by the plugin's answer. */
static void
note_own (struct random_thread *t, enum kind kind, uint32_t count, uint64_t offset,
          const uint8_t *buf, int err)
{
  struct random_world *r = t->r;
  bool known = err == 0 && kind != TRIM;

  if (err)
    atomic_fetch_add (&r->errors, 1);
  for (uint64_t b = offset / BLOCK; b < (offset + count) / BLOCK; b++)
    r->known[b] = known;
  if (kind == ZERO)
    memset (r->shadow + offset, 0, count);
  else if (kind != TRIM)
    memcpy (r->shadow + offset, buf, count);
}

static void
random_read (struct random_thread *t, unsigned i)
{
  struct random_world *r = t->r;
  unsigned how = g_rand_int_range (t->rand, 0, 3);
  uint64_t offset;
  uint32_t count;
  g_autofree uint8_t *buf = NULL;
  int err;

  if (how == 0) {               /* anything */
    offset = g_rand_int_range (t->rand, 0, RANDOM_SIZE - 1);
    count = g_rand_int_range (t->rand, 1, MIN (3 * U, RANDOM_SIZE - offset) + 1);
  }
  else if (how == 1)
    choose_own (t, &offset, &count);
  else {                        /* sequential, to be read ahead of */
    uint64_t base = g_rand_boolean (t->rand) ? STRIPES + t->self * REGION : READ_ONLY;

    buf = g_malloc (8 * KIB);
    for (offset = base; offset < base + REGION; offset += 8 * KIB)
      if ((err = engine_read (r->w.c[i], buf, 8 * KIB, offset)) == 0)
        check_own (t, buf, 8 * KIB, offset, "sequential read");
      else
        g_assert_true (r->config->failures);
    return;
  }
  buf = g_malloc (count);
  if ((err = engine_read (r->w.c[i], buf, count, offset)) == 0)
    check_own (t, buf, count, offset, "read");
  else
    g_assert_true (r->config->failures);
}

static void
random_change (struct random_thread *t, unsigned i, enum kind kind)
{
  struct random_world *r = t->r;
  uint64_t offset;
  uint32_t count;
  g_autofree uint8_t *buf = NULL;
  int err;

  choose_own (t, &offset, &count);
  buf = g_malloc (count);
  for (uint32_t n = 0; n < count; n += 4) {
    uint32_t v = g_rand_int (t->rand);

    memcpy (buf + n, &v, 4);
  }
  err = request (&r->w, i, kind, buf, count, offset);
  note_own (t, kind, count, offset, buf, err);
}

/* After a flush all that this thread has written is in the device. */
static void
random_flush (struct random_thread *t, unsigned i)
{
  struct random_world *r = t->r;
  g_autofree uint8_t *buf = NULL;

  unsigned other = i == 2 ? 0 : 2;
  int err = engine_flush (r->w.c[i], true);

  if (err == 0 && r->config->exports) { /* a flush covers one name */
    pthread_rwlock_rdlock (&r->conn_lock[other]);
    err = engine_flush (r->w.c[other], true);
    pthread_rwlock_unlock (&r->conn_lock[other]);
  }
  if (err) {
    g_assert_true (r->config->failures);
    return;
  }
  buf = g_malloc (RANDOM_SIZE);
  fake_peek (r->w.f, buf, RANDOM_SIZE, 0);
  check_own (t, buf, RANDOM_SIZE, 0, "device after flush");
}

static const char *
random_export (const struct random_config *c, unsigned i)
{
  return c->exports && i == 2 ? "other" : "";
}

static void
random_reopen (struct random_thread *t, unsigned i)
{
  struct random_world *r = t->r;

  pthread_rwlock_unlock (&r->conn_lock[i]);
  pthread_rwlock_wrlock (&r->conn_lock[i]);
  conn_end (r->w.c[i]);
  {
    struct backend b = backend_of (r->w.f, i);

    g_assert_cmpint (conn_open (r->w.e, random_export (r->config, i), &b, &r->w.c[i]), ==,
                     0);
  }
}

static void *
random_run (void *vp)
{
  struct random_thread *t = vp;
  struct random_world *r = t->r;

  for (unsigned n = 0; n < r->ops; n++) {
    unsigned i = g_rand_int_range (t->rand, 0, RANDOM_CONNS);
    unsigned what = g_rand_int_range (t->rand, 0, 1000);

    /* Failures come for a time, in the second quarter and the third. */
    if (r->config->failures && t->self == 0 && n == r->ops / 4)
      fake_fail_some (r->w.f, FAKE_ANY, 200, g_rand_int (t->rand));
    if (r->config->failures && t->self == 0 && n == r->ops / 4 * 3)
      fake_fail_some (r->w.f, 0, 0, 0);

    pthread_rwlock_rdlock (&r->conn_lock[i]);
    if (what < 350)
      random_change (t, i, WRITE);
    else if (what < 400)
      random_change (t, i, FUA);
    else if (what < 450)
      random_change (t, i, ZERO);
    else if (what < 480)
      random_change (t, i, TRIM);
    else if (what < 530)
      random_flush (t, i);
    else if (what < 535 && !r->config->failures)
      random_reopen (t, i);
    else if (what < 560) {
      uint64_t offset = g_rand_int_range (t->rand, 0, RANDOM_SIZE - U);

      (void) call_settle (r->w.c[i], U, offset);
    }
    else
      random_read (t, i);
    pthread_rwlock_unlock (&r->conn_lock[i]);
  }
  atomic_fetch_add (&r->done, 1);
  return NULL;
}

static void
test_random (gconstpointer data)
{
  const struct random_config *c = data;
  struct random_thread threads[RANDOM_THREADS];
  struct random_world r = { .config = c };
  g_autofree uint8_t *buf = g_malloc (RANDOM_SIZE);

  r.ops = g_test_thorough () ? 20000 : 600;
  world_start (&r.w, RANDOM_SIZE, c->engine);
  for (unsigned i = 0; i < RANDOM_CONNS; i++) {
    pthread_rwlock_init (&r.conn_lock[i], NULL);
    world_open (&r.w, i, random_export (c, i));
  }
  r.shadow = g_malloc (RANDOM_SIZE);
  fill (r.shadow, RANDOM_SIZE, 0, OLD);
  r.known = g_new (bool, RANDOM_SIZE / BLOCK);
  memset (r.known, true, RANDOM_SIZE / BLOCK);
  for (unsigned i = 0; i < RANDOM_THREADS; i++) {
    threads[i] = (struct random_thread) {
      .r = &r, .self = i, .rand = g_rand_new_with_seed (g_test_rand_int ())
    };
    g_assert_cmpint (pthread_create (&threads[i].thread, NULL, random_run, &threads[i]), ==, 0);
  }
  while (atomic_load (&r.done) < RANDOM_THREADS) {
    engine_check (r.w.e);
    g_usleep (500);
  }
  for (unsigned i = 0; i < RANDOM_THREADS; i++)
    pthread_join (threads[i].thread, NULL);

  /* Cured: a flush of each connection succeeds, and everything is in the device. */
  fake_fail_some (r.w.f, 0, 0, 0);
  engine_check (r.w.e);
  for (unsigned i = 0; i < RANDOM_CONNS; i++)
    g_assert_cmpint (engine_flush (r.w.c[i], true), ==, 0);
  for (unsigned i = 0; i < RANDOM_THREADS; i++) {
    for (unsigned n = 0; n < RANDOM_CONNS; n++) {
      g_assert_cmpint (engine_read (r.w.c[n], buf, RANDOM_SIZE, 0), ==, 0);
      check_own (&threads[i], buf, RANDOM_SIZE, 0, "read at the end");
    }
    fake_peek (r.w.f, buf, RANDOM_SIZE, 0);
    check_own (&threads[i], buf, RANDOM_SIZE, 0, "device at the end");
    g_rand_free (threads[i].rand);
  }
  engine_check (r.w.e);
  /* No client had two changes of the same bytes under way, so the device must not see any. */
  g_assert_cmpuint (fake_collisions (r.w.f), ==, 0);
  g_test_message ("%u operations, %u at once, %u client errors, behind %" PRIu64 ", combined %"
                  PRIu64 ", ahead used %" PRIu64 ", deferred errors %" PRIu64
                  ", space waits %" PRIu64,
                  fake_started (r.w.f, FAKE_ANY, 0, 0), fake_peak (r.w.f),
                  atomic_load (&r.errors), stats_counter (r.w.e->stats, STATS_BEHIND),
                  stats_counter (r.w.e->stats, STATS_COMBINED),
                  stats_counter (r.w.e->stats, STATS_AHEAD_USED),
                  stats_counter (r.w.e->stats, STATS_DEFERRED_ERRORS),
                  stats_count (r.w.e->stats, STATS_SPACE_WAIT));
  g_free (r.known);
  g_free (r.shadow);
  world_end_clean (&r.w);
}

/* The list. */

static void
add_by_kind (const char *name, void (*test) (gconstpointer), enum kind from, enum kind to)
{
  for (enum kind kind = from; kind <= to; kind++) {
    g_autofree char *path = g_strdup_printf ("/engine/%s/%s", name, kind_names[kind]);

    g_test_add_data_func (path, GUINT_TO_POINTER (kind), test);
  }
}

static void
add_stale (void)
{
  for (unsigned n = 0; n < 32; n++) {
    static const enum kind kinds[] = { WRITE, FUA, ZERO, TRIM };
    struct stale *s = g_new (struct stale, 1);
    g_autofree char *path = NULL;

    *s = (struct stale) { .kind = kinds[n & 3], .conn = n >> 2 & 1, .behind = n & 8,
                          .in_flight = n & 16 };
    path = g_strdup_printf ("/engine/stale/%s/%s-connection/%s/%s", kind_names[s->kind],
                            s->conn ? "other" : "same", s->behind ? "behind" : "unregistered",
                            s->in_flight ? "in-flight" : "there");
    g_test_add_data_func_full (path, s, test_stale, g_free);
  }
}

static void
add_supersede (void)
{
  static const struct { const char *name; uint64_t offset; uint32_t count; } places[] = {
    { "exactly", U + 8192, 16384 }, { "wholly", U, U }, { "wider", U / 2, 2 * U },
    { "head", U + 4096, 8192 }, { "tail", U + 16384, U }, { "middle", U + 12288, 4096 },
  };

  for (enum kind kind = WRITE; kind <= TRIM; kind++)
    for (unsigned i = 0; i < G_N_ELEMENTS (places); i++)
      for (unsigned flushing = 0; flushing < 2; flushing++) {
        struct super *s = g_new (struct super, 1);
        g_autofree char *path = g_strdup_printf ("/engine/supersede/%s/%s%s", kind_names[kind],
                                                 places[i].name, flushing ? "/flushing" : "");

        *s = (struct super) { .kind = kind, .offset = places[i].offset, .count = places[i].count,
                              .flushing = flushing };
        g_test_add_data_func_full (path, s, test_supersede, g_free);
      }
}

/* Between connections: the rules of state.h. */

static void
open_unshared (struct world *w, unsigned i, const char *name)
{
  struct backend b = backend_of (w->f, i);

  b.shared = false;
  g_assert_cmpint (conn_open (w->e, name, &b, &w->c[i]), ==, 0);
  fake_make_slow (w->c[i]);
}

static struct engine_config
config_impatient (enum read_mode read)
{
  struct engine_config c = config (8, 4, WRITE_BEHIND, read);

  c.others_ns = 50000000;
  return c;
}

/* Another device's dirty data is waited for, but not without end. Then it counts as failed where newer data
 * is written, and its connection hears of it.
 */
static void
test_others_bound (gconstpointer data)
{
  enum kind kind = GPOINTER_TO_UINT (data);
  struct world w;
  struct task *flush;
  int hold;

  world_start (&w, 8 * U, config_impatient (READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 2048);  /* not what "b" writes */
  do_request (&w, 0, WRITE, 8192, 0, 1);
  do_request (&w, 1, READ, 4096, 0, OLD);
  fake_wait_held (w.f, hold, 1);
  if (kind == FUA)
    do_request (&w, 1, kind, 4096, 4096, 2);
  else
    g_assert_cmpint (try_request (&w, 1, kind, 8192, 0, 2), ==, 0);     /* all of it */
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);                    /* its own device it waits for */
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, EIO);
  g_assert_cmpuint (atomic_exchange (&n_late, 0), ==, 2);
  engine_check (w.e);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (w.e->free.length, ==, 8);
  world_end_clean (&w);
}

/* A flush waits for dirty data of its own name, by whichever device, and for no other name's. */
static void
test_flush_names (void)
{
  struct world w;
  struct task *flush;
  int hold;

  world_start (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  for (unsigned i = 0; i < 3; i++)
    open_unshared (&w, i, i < 2 ? "a" : "b");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, U, 0, 1);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 2, FLUSH, 0, 0, 0);
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  assert_device (w.f, U, 0, 1);
  world_end_clean (&w);
}

/* ... for another device's of that name not without end, and not for what it tries again and again. */
static void
test_flush_names_bound (void)
{
  struct world w;
  struct task *flush;
  int hold;

  world_start (&w, 8 * U, config_impatient (READ_DIRECT));
  open_unshared (&w, 0, "a");
  open_unshared (&w, 1, "a");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, U, 0, 1);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_assert_cmpuint (atomic_exchange (&n_late, 0), ==, 1);
  fake_release (w.f, hold);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  w.e->config.others_ns = UINT64_C (3600000000000);
  make_failed (&w, 0, U, 0, 2, EIO);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  world_end_clean (&w);
}

/* One flush of a device does not wait for what another one tries again and again: it waits for one try that
 * ends after it began.
 */
static void
test_flush_starved (void)
{
  struct world w;
  struct task *looper, *flush;
  int hold, fail;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, U, 0, 1, EIO);
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, EIO, 1);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  looper = task_start (&w, 0, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  engine_lock (w.e);                            /* the second does not run between */
  fake_pass (w.f, hold, 1);
  fake_wait_ended (w.f, FAKE_WRITE, 0, 0, 1);
  engine_unlock (w.e);
  g_assert_cmpint (task_end (looper), ==, EIO);
  looper = task_start (&w, 0, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);                /* one of them tries, the other ends or waits for it */
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (looper), ==, 0);
  task_end (flush);
  fake_release (w.f, fail);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

/* A flush does not answer for what failed after it began. */
static void
test_flush_later (void)
{
  struct world w;
  struct task *flush;
  int hold, fail;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, U, U, EIO, -1);
  hold = fake_hold (w.f, FAKE_WRITE, 0, U);
  do_request (&w, 0, WRITE, U, 0, 1);
  fake_wait_held (w.f, hold, 1);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  do_request (&w, 1, WRITE, U, U, 2);
  wait_state (&w, BUF_FAILED, U, U, 1);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, EIO);
  fake_release (w.f, fail);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

/* What another connection has changed is not served from what was read ahead of the flush that shows it. */
static void
test_flush_shows (gconstpointer data)
{
  enum write_mode mode = GPOINTER_TO_UINT (data);
  struct world w;
  int fail;

  world_init (&w, 64 * U, config (16, 4, mode, READ_AHEAD));
  do_request (&w, 1, WRITE, 4096, 3 * U, OLD);
  do_request (&w, 0, WRITE, 4096, 5 * U, OLD);
  call_settle (w.c[0], 64 * U, 0);      /* deferred ones are written, and not flushed */
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 4 * U, 4);
  /* Its own change the other one reads itself, and no more than that. */
  do_request (&w, 1, READ, 4096, 3 * U, OLD);
  g_assert_cmpuint (fake_op (w.f, FAKE_READ, 3 * U, 4096, 1).conn, ==, 1);
  do_request (&w, 1, READ, 4096, 3 * U + 4096, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 3 * U + 4096, 4096), ==, 1);
  /* A flush that fails shows nothing, and the next one does. */
  fail = fake_fail (w.f, FAKE_FLUSH, 0, 0, EIO, 1);
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, EIO);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 4 * U), ==, 4);
  fake_release (w.f, fail);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 3 * U, U), ==, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 4 * U), ==, 3);
  for (unsigned i = 2; i < 6; i++)
    do_request (&w, 0, READ, U, i * U, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 3 * U, U), ==, 3);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 5 * U, U), ==, 1);   /* its own change it sees */
  world_end_clean (&w);
}

/* The same for what is read ahead while the plugin flushes. A client that is alone keeps its window. */
static void
test_flush_shows_later (void)
{
  struct world w;
  struct task *flush;
  int hold;

  world_init (&w, 64 * U, config (16, 4, WRITE_THROUGH, READ_AHEAD));
  do_request (&w, 1, TRIM, 4096, 3 * U, 0);
  do_request (&w, 1, WRITE, 4096, 3 * U, OLD);
  hold = fake_hold (w.f, FAKE_FLUSH, 0, 0);
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 4 * U, 4);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 4 * U), ==, 3);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 4 * U), ==, 3);
  /* What a connection has changed that has ended since. */
  do_request (&w, 1, ZERO, 4096, 6 * U, 0);
  world_close (&w, 1);
  do_request (&w, 0, READ, U, 2 * U, OLD);
  wait_state (&w, BUF_CLEAN, 6 * U, U, 1);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  g_assert_cmpuint (count_state (&w, BUF_CLEAN, 6 * U, U), ==, 0);
  world_end_clean (&w);
}

/* The end of a connection waits for the calls under way; later ones get an error. */
static void
test_late_calls (void)
{
  struct world w;
  struct task *read, *close;
  struct conn *c;
  char buf[512];
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_AHEAD));
  c = w.c[0];
  hold = fake_hold (w.f, FAKE_READ, 0, 0);
  read = task_start (&w, 0, READ, U, 0, OLD);
  fake_wait_held (w.f, hold, 1);
  close = task_start (&w, 0, FINALIZE, 0, 0, 0);
  task_wait_blocked (close);
  g_assert_cmpint (engine_write (c, buf, 512, 0, 0), ==, ESHUTDOWN);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  g_assert_cmpint (task_end (close), ==, 0);
  for (enum kind kind = READ; kind <= FLUSH; kind++)
    g_assert_cmpint (request (&w, 0, kind, buf, 512, 0), ==, ESHUTDOWN);
  g_assert_false (conn_enter (c));
  /* A filter that takes no error has its data, the newest. */
  do_request (&w, 1, WRITE, 4096, 0, 3);
  g_assert_cmpint (engine_read_late (c, buf, 512, 0), ==, 0);
  assert_filled (buf, 512, 0, 3);
  conn_free (c);
  w.c[0] = NULL;
  world_end_clean (&w);
}

/* A client may leave while what is read ahead for it hangs: its data is written,
 * and nbdkit lets go of it before conn_free waits.
 */
static void
test_leave (void)
{
  struct world w;
  struct task *close;
  int hold;

  world_init (&w, 64 * U, config (16, 16, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 14 * U);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 0, WRITE, 4096, 40 * U, 3);
  conn_close (w.c[0]);
  assert_device (w.f, 4096, 40 * U, 3);
  close = task_start (&w, 0, CLOSE, 0, 0, 0);
  task_wait_blocked (close);
  do_request (&w, 1, READ, U, 20 * U + 512, OLD);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (close), ==, 0);
  world_end_clean (&w);
}

/* nbdkit ends: it waits for what is read ahead, though that connection was
 * finalized.
 */
static void
test_stop_waits (void)
{
  struct world w;
  struct task *stop;
  int hold;

  world_init (&w, 64 * U, config (16, 16, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, 0);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  conn_close (w.c[0]);
  stop = task_start (&w, 0, STOP, 0, 0, 0);
  task_wait_blocked (stop);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (stop), ==, 0);
  g_assert_cmpuint (w.e->reading.length, ==, 0);
  world_end_clean (&w);
}

/* A filter above flushes a connection whose client has not: its writes are not deferred for that. */
static void
test_others_flush (void)
{
  struct world w;

  world_init (&w, 8 * U, config (8, 4, WRITE_AUTO, READ_AHEAD));
  g_assert_cmpint (engine_flush (w.c[0], false), ==, 0);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  assert_device (w.f, 4096, 0, 1);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  do_request (&w, 0, WRITE, 4096, 0, 2);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, U), ==, 1);
  world_end_clean (&w);
}

/* A writer does not wait for buffers that another device keeps. */
static void
test_others_buffers (void)
{
  struct world w;
  struct task *write;
  int hold;

  world_start (&w, 32 * U, config (8, 8, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 16 * U);
  for (unsigned i = 0; i < 8; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  fake_wait_held (w.f, hold, 8);
  do_request (&w, 1, WRITE, U, 20 * U, 2);
  assert_device (w.f, U, 20 * U, 2);
  write = task_start (&w, 0, WRITE, U, 9 * U, 1);       /* its own device's it does wait for */
  task_wait_blocked (write);
  g_usleep (2 * 128000);                                /* twice what the other one waits */
  task_wait_blocked (write);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (write), ==, 0);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

/* Data that another connection's request sends on its way is not handed to a hook on that one's thread. */
static void
test_others_thread (void)
{
  struct world w;
  struct task *read;

  world_start (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  do_request (&w, 0, WRITE, 4096, 0, 1);
  read = task_start (&w, 1, READ, 4096, 0, 1);
  pthread_join (read->thread, NULL);
  g_assert_false (pthread_equal (fake_op (w.f, FAKE_WRITE, 0, 0, 0).thread, read->thread));
  g_free (read);
  world_end_clean (&w);
}

/* nbdkit ends with connections open: what they hold is written. */
static void
test_stop_open (void)
{
  struct world w;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  do_request (&w, 0, WRITE, 4096, 8192, 1);
  do_request (&w, 1, WRITE, U, U, 2);
  fake_fail (w.f, FAKE_WRITE, 3 * U, U, ENOSPC, -1);
  do_request (&w, 1, WRITE, 4096, 3 * U + 8192, 3);
  world_stop (&w);
  assert_device (w.f, 4096, 8192, 1);
  assert_device (w.f, U, U, 2);
  g_assert_cmpuint (reports->len, ==, 1);
  g_assert_cmpstr (g_ptr_array_index (reports, 0), ==, ":204800+4096:lost");
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* Newer data in the middle of failed data leaves two pieces, and each is written, read and reported. */
static void
test_pieces (void)
{
  struct part parts[] = { { 4096, 4096, 1 }, { 8192, 4096, 2 }, { 12288, 4096, 1 }, { 16384, 512, 3 },
                          { 16896, 3584, 1 } };
  struct world w;
  int fail;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, 16384, 4096, 1, ENOSPC);
  do_request (&w, 1, WRITE, 4096, 8192, 2);
  do_request (&w, 1, FUA, 512, 16384, 3);
  assert_reads (&w, 0, parts, 5);
  assert_reads (&w, 1, parts, 5);
  fail = fake_fail (w.f, FAKE_WRITE, 12288, 4096, ENOSPC, -1);
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, ENOSPC);
  assert_reads (&w, 1, parts, 5);
  assert_device (w.f, 4096, 4096, 1);
  world_close (&w, 1);
  world_close (&w, 0);
  g_assert_cmpuint (reports->len, ==, 2);
  g_assert_cmpstr (g_ptr_array_index (reports, 0), ==, ":12288+4096:lost");
  g_assert_cmpstr (g_ptr_array_index (reports, 1), ==, ":16896+3584:lost");
  fake_release (w.f, fail);
  g_ptr_array_set_size (reports, 0);
  world_end_clean (&w);
}

/* What a worker is to try again waits for a direct operation, which replaces a part of it: the rest goes on. */
static void
test_pieces_wait (void)
{
  struct world w;
  struct task *zero, *flush;
  int hold, fail;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, EIO, -1);
  do_request (&w, 0, WRITE, 4096, 3 * U, 1);
  do_request (&w, 0, WRITE, 8192, 0, 1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, EIO);
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, 4 * U), ==, 2);
  fake_release (w.f, fail);
  hold = fake_hold (w.f, FAKE_ZERO, 0, 0);
  zero = task_start (&w, 1, ZERO, 4096, 0, 0);
  fake_wait_held (w.f, hold, 1);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  wait_state (&w, BUF_READY, 0, U, 1);
  task_wait_blocked (flush);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (zero), ==, 0);
  g_assert_cmpint (task_end (flush), ==, 0);
  assert_device (w.f, 4096, 0, 0);
  assert_device (w.f, 4096, 4096, 1);
  world_end_clean (&w);
}

/* Two direct operations over one piece of failed data, while a flush tries it again: it waits for both, and
 * writes what neither has replaced.  For one elsewhere it does not wait.
 */
static void
test_pieces_two (gconstpointer data)
{
  uint32_t count = GPOINTER_TO_UINT (data);     /* what each of them takes of 16384 bytes */
  struct part parts[] = { { 0, count, 0 }, { count, 8192 - count, 1 }, { 8192, count, 0 },
                          { 8192 + count, 8192 - count, 1 } };
  struct world w;
  struct task *far, *zero[2], *flush;
  int hold_far, hold[2];

  world_init (&w, 4 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, 16384, 0, 1, EIO);
  hold_far = fake_hold (w.f, FAKE_ZERO, 3 * U, U);
  far = task_start (&w, 0, ZERO, U, 3 * U, 0);
  fake_wait_held (w.f, hold_far, 1);
  for (unsigned i = 0; i < 2; i++) {
    hold[i] = fake_hold (w.f, FAKE_ZERO, i * 8192, 8192);
    zero[i] = task_start (&w, i, ZERO, count, i * 8192, 0);
    fake_wait_held (w.f, hold[i], 1);
  }
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  for (unsigned i = 0; i < 2; i++) {
    task_wait_blocked (flush);
    g_assert_cmpuint (count_state (&w, BUF_READY, 0, U), ==, 1);
    g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 0);
    fake_release (w.f, hold[i]);
    g_assert_cmpint (task_end (zero[i]), ==, 0);
  }
  g_assert_cmpint (task_end (flush), ==, 0);
  fake_release (w.f, hold_far);
  g_assert_cmpint (task_end (far), ==, 0);
  for (unsigned i = 0; i < 4; i++) {
    if (parts[i].count == 0)
      continue;
    assert_device (w.f, parts[i].count, parts[i].offset, parts[i].tag);
    g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, parts[i].offset, parts[i].count), ==, parts[i].tag);
  }
  assert_reads (&w, 1, parts, 4);
  g_assert_cmpuint (count_state (&w, BUF_FAILED, 0, 4 * U), ==, 0);
  g_assert_cmpuint (fake_collisions (w.f), ==, 0);
  world_end_clean (&w);
}

/* A connection that cannot write flushes while failed data has to wait for a direct write: it waits as well. */
static void
test_readonly_waits (void)
{
  struct world w;
  struct backend b;
  struct task *zero, *flush;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  b = backend_of (w.f, 2);
  b.can_write = false;
  g_assert_cmpint (conn_open (w.e, "", &b, &w.c[2]), ==, 0);
  make_failed (&w, 0, 8192, 0, 1, EIO);
  hold = fake_hold (w.f, FAKE_ZERO, 0, 0);
  zero = task_start (&w, 1, ZERO, 4096, 0, 0);
  fake_wait_held (w.f, hold, 1);
  flush = task_start (&w, 2, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (zero), ==, 0);
  g_assert_cmpint (task_end (flush), ==, 0);
  assert_device (w.f, 4096, 0, 0);
  assert_device (w.f, 4096, 4096, 1);
  world_end_clean (&w);
}

/* Data that waits for its own device when another one stops waiting for it has failed: its flush does not wait
 * without end for what the other one does then.
 */
static void
test_others_ready (void)
{
  struct world w;
  struct task *settle, *zero, *flush;
  int hold, hold_zero;

  world_start (&w, 8 * U, config_impatient (READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  hold_zero = fake_hold (w.f, FAKE_ZERO, 0, 0);
  do_request (&w, 1, WRITE, 8192, 0, 1);
  settle = task_start (&w, 1, SETTLE, 4096, 0, 0);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 1, WRITE, 8192, 4096, 2);     /* waits for the first */
  zero = task_start (&w, 0, ZERO, 4096, 8192, 0);
  fake_wait_held (w.f, hold_zero, 1);           /* it does not wait any longer, and hangs */
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (settle), ==, false);
  g_assert_cmpint (task_end (flush), ==, EIO);
  fake_release (w.f, hold_zero);
  g_assert_cmpint (task_end (zero), ==, 0);
  g_assert_cmpint (try_request (&w, 1, FLUSH, 0, 0, 0), ==, EIO);       /* the zero has replaced a part */
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, 4096, 0, 1);
  assert_device (w.f, 4096, 4096, 2);
  assert_device (w.f, 4096, 8192, 0);
  world_end_clean (&w);
}

/* What failed and has to wait for another device's write, which hangs: the flush has its error in the end. */
static void
test_others_hang (void)
{
  struct world w;
  struct task *zero;
  int hold, fail;

  world_start (&w, 8 * U, config_impatient (READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, -1);
  do_request (&w, 0, WRITE, 4096, 3 * U, 1);
  do_request (&w, 0, WRITE, 8192, 0, 1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ENOSPC);
  fake_release (w.f, fail);
  hold = fake_hold (w.f, FAKE_ZERO, 0, 0);
  zero = task_start (&w, 1, ZERO, 4096, 0, 0);
  fake_wait_held (w.f, hold, 1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ENOSPC);
  assert_device (w.f, 4096, 3 * U, 1);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (zero), ==, 0);
  do_request (&w, 0, READ, 4096, 4096, 1);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, ENOSPC);    /* of what the zero has replaced */
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_device (w.f, 4096, 4096, 1);
  world_end_clean (&w);
}

/* At the end of a connection workers try what failed, and its own thread only what fails once more: a filter that
 * sleeps fails there, as the client has gone.
 */
static void
test_close_workers (void)
{
  struct world w;
  int fail;

  world_start (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 0, "");
  make_failed (&w, 0, 4096, 0, 1, ENOSPC);
  fail = fake_fail (w.f, FAKE_WRITE, 0, 0, ENOSPC, 1);
  world_close (&w, 0);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 2);
  for (unsigned i = 0; i < 2; i++)
    g_assert_true (!pthread_equal (fake_op (w.f, FAKE_WRITE, 0, 0, i).thread, pthread_self ())
                   == (i == 0 && !hooked));
  assert_device (w.f, 4096, 0, 1);
  fake_release (w.f, fail);
  world_end_clean (&w);
}

/* All workers are busy with another device, which hangs: a flush, a writer and a direct write do themselves what
 * is queued for the workers.
 */
static void
test_others_workers (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_start (&w, 16 * U, config (8, 1, WRITE_BEHIND, READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  hold = fake_hold (w.f, FAKE_READ, 0, 0);
  read = task_start (&w, 0, READ, 2 * U, 0, OLD);
  fake_wait_held (w.f, hold, 2);
  do_request (&w, 1, WRITE, U, 8 * U, 1);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, U, 8 * U, 1);
  do_request (&w, 1, WRITE, U, 9 * U, 2);
  do_request (&w, 1, FUA, 4096, 9 * U, 3);
  for (unsigned i = 0; i < 10; i++)             /* more than there are buffers */
    do_request (&w, 1, WRITE, U, (6 + i) * U, 4);
  do_request (&w, 1, FLUSH, 0, 0, 0);
  assert_device (w.f, 10 * U, 6 * U, 4);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (read), ==, 0);
  world_end_clean (&w);
}

/* With many threads at work a write may be left for one of them. Where they hang, an idle one takes it. */
static void
test_patient (void)
{
  enum { THREADS = 200 };
  struct engine_config c = config (THREADS, THREADS, WRITE_BEHIND, READ_DIRECT);
  struct world w;
  int hold;

  c.linger_ns = 1000000;
  world_init (&w, (THREADS + 1) * U, c);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  for (unsigned i = 0; i < THREADS - 20; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  fake_wait_held (w.f, hold, hooked ? 1 : THREADS - 20);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* A page that stops the thread which reads it, until it is let go. */
static struct {
  char *page;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool is_entered, is_open;
} copy_gate = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void
on_fault (int signal, siginfo_t *info, void *context)
{
  char *at = info->si_addr;

  (void) context;
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

static void
copy_gate_close (const struct sigaction *new, struct sigaction *old)
{
  copy_gate.page = mmap (NULL, U, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  g_assert_true (copy_gate.page != MAP_FAILED);
  fill (copy_gate.page, U, 0, 1);
  copy_gate.is_entered = copy_gate.is_open = false;
  g_assert_cmpint (mprotect (copy_gate.page, U, PROT_NONE), ==, 0);
  sigaction (SIGSEGV, new, old);
}

static void
copy_gate_wait (void)
{
  LOCK_IN_SCOPE (&copy_gate.lock);
  while (!copy_gate.is_entered)
    pthread_cond_wait (&copy_gate.changed, &copy_gate.lock);
}

static void
copy_gate_open (void)
{
  LOCK_IN_SCOPE (&copy_gate.lock);
  copy_gate.is_open = true;
  pthread_cond_broadcast (&copy_gate.changed);
}

static void *
write_gated (void *vp)
{
  struct world *w = vp;

  return GINT_TO_POINTER (engine_write (w->c[0], copy_gate.page, U, 0, 0));
}

/* While a write is copied into its buffer another one to the same bytes does not join it, reads wait, and a
 * flush does not write the buffer.
 */
static void
test_copying (void)
{
  struct sigaction old, new = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
  struct world w;
  struct task *read, *flush;
  pthread_t writer;
  void *err;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  copy_gate_close (&new, &old);
  g_assert_cmpint (pthread_create (&writer, NULL, write_gated, &w), ==, 0);
  copy_gate_wait ();

  read = task_start (&w, 1, READ, 4096, 4096, 2);
  task_wait_blocked (read);
  do_request (&w, 0, WRITE, 4096, 4096, 2);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, U) + count_state (&w, BUF_READY, 0, U), ==, 2);
  flush = task_start (&w, 1, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  g_assert_cmpuint (fake_started (w.f, FAKE_WRITE, 0, 0), ==, 0);
  copy_gate_open ();
  pthread_join (writer, &err);
  g_assert_cmpint (GPOINTER_TO_INT (err), ==, 0);
  g_assert_cmpint (task_end (read), ==, 0);
  g_assert_cmpint (task_end (flush), ==, 0);
  sigaction (SIGSEGV, &old, NULL);
  assert_device (w.f, 4096, 0, 1);
  assert_device (w.f, 4096, 4096, 2);
  munmap (copy_gate.page, U);
  world_end_clean (&w);
}

/* Limits, exact figures, and what happens just at a limit. */

static void
test_block_limits (void)
{
  struct world w;

  world_start (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  open_with (&w, 4096, U);
  g_assert_cmpuint (w.c[0]->unit, ==, U);
  do_request (&w, 0, WRITE, 512, 4096, 2);      /* the offset is aligned, the length is not */
  assert_device (w.f, 512, 4096, 2);
  world_close (&w, 0);
  open_with (&w, U, UINT32_MAX);
  world_end_clean (&w);
}

/* What is left of a block at the end of the device is not read ahead. */
static void
test_block_end (void)
{
  struct world w;

  world_start (&w, 3 * U + 4096 + 512, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  open_with (&w, 4096, UINT32_MAX);
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 2 * U, 2);
  for (unsigned i = 0; i < fake_started (w.f, FAKE_ANY, 0, 0); i++)
    g_assert_cmpuint (fake_op (w.f, FAKE_ANY, 0, 0, i).count % 4096, ==, 0);
  world_end_clean (&w);
}

/* Block status waits for data that is READY as for data that is being written. */
static void
test_settle_ready (void)
{
  struct world w;
  struct task *first, *settle;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, 8192, 0, 1);
  first = task_start (&w, 1, SETTLE, 4096, 0, 0);
  fake_wait_held (w.f, hold, 1);
  do_request (&w, 0, WRITE, 8192, 4096, 2);
  settle = task_start (&w, 1, SETTLE, 4096, 8192, 0);
  task_wait_blocked (settle);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (first), ==, false);
  g_assert_cmpint (task_end (settle), ==, false);
  world_end_clean (&w);
}

/* A write joins the youngest data of those bytes, or none. */
static void
test_join_youngest (void)
{
  struct world w;
  struct task *settle;
  int hold;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  do_request (&w, 0, WRITE, U, 0, 1);
  do_request (&w, 0, WRITE, 8192, 4096, 2);
  settle = task_start (&w, 1, SETTLE, U, 0, 0);
  task_wait_blocked (settle);                   /* both are on their way */
  do_request (&w, 1, WRITE, 4096, 4096, 3);
  do_request (&w, 0, WRITE, 4096, 4096, 4);
  do_request (&w, 0, READ, 4096, 4096, 4);
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (settle), ==, false);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  assert_device (w.f, 4096, 4096, 4);
  world_end_clean (&w);
}

/* A direct operation that fails may have changed a part: what was read ahead there is stale. */
static void
test_stale_failed (gconstpointer data)
{
  enum write_mode mode = GPOINTER_TO_UINT (data);
  struct world w;
  int fail;

  for (enum kind kind = FUA; kind <= TRIM; kind++) {
    world_init (&w, 4 * U, config (16, 4, mode, READ_AHEAD));
    start_stream (&w, 0);
    wait_state (&w, BUF_CLEAN, 2 * U, 2 * U, 2);
    fail = fake_fail (w.f, FAKE_ANY & ~FAKE_READ, 0, 0, EIO, -1);
    g_assert_cmpint (try_request (&w, 0, kind, 4096, 3 * U - 2048, 1), ==, EIO);
    g_assert_cmpuint (count_state (&w, BUF_CLEAN, 2 * U, 2 * U), ==, 0);
    fake_release (w.f, fail);
    world_end_clean (&w);
  }
}

/* A zero or a trim says nothing of whether the client flushes; with FUA it does, and the plugin has the flag. */
static void
test_auto_clear (void)
{
  struct world w;

  world_init (&w, 8 * U, config (8, 2, WRITE_AUTO, READ_DIRECT));
  do_request (&w, 0, ZERO, 4096, 0, 0);
  do_request (&w, 0, TRIM, 4096, 0, 0);
  do_request (&w, 0, WRITE, 4096, 0, 3);
  assert_device (w.f, 4096, 0, 3);
  fake_forget (w.f);
  g_assert_cmpint (engine_zero (w.c[0], 4096, 0, BACKEND_FUA), ==, 0);
  g_assert_cmpuint (fake_op (w.f, FAKE_ZERO, 0, 0, 0).flags, ==, BACKEND_FUA);
  g_assert_cmpint (engine_trim (w.c[1], 4096, 0, BACKEND_FUA), ==, 0);
  g_assert_cmpuint (fake_op (w.f, FAKE_TRIM, 0, 0, 0).flags, ==, BACKEND_FUA);
  for (unsigned i = 0; i < 2; i++) {
    do_request (&w, i, WRITE, 4096, i * U, 4);
    g_assert_cmpuint (count_state (&w, BUF_OPEN, i * U, U), ==, 1);
  }
  world_end_clean (&w);
}

/* Five seconds. */
static void
test_ahead_age (void)
{
  struct world w;

  world_init (&w, 4 * U, config (16, 4, WRITE_THROUGH, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 2 * U, 2);
  make_older (&w, UINT64_C (5100000000));
  do_request (&w, 0, READ, U, 2 * U, OLD);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 2 * U, U), ==, 2);
  world_end_clean (&w);
}

static void
test_exact_counts (void)
{
  struct world w;
  struct task *flush, *write;
  int first, rest;

  world_init (&w, 8 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  start_stream (&w, 0);
  wait_state (&w, BUF_CLEAN, 2 * U, 6 * U, 4);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, READ, U / 2, 2 * U + i * U / 2, OLD);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_AHEAD_USED), ==, 2 * U);
  world_end_clean (&w);

  world_init (&w, 8 * U, config (4, 4, WRITE_BEHIND, READ_DIRECT));
  first = fake_hold (w.f, FAKE_WRITE, 0, U);
  rest = fake_hold (w.f, FAKE_WRITE, U, 0);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  task_wait_blocked (flush);
  write = task_start (&w, 1, WRITE, U, 5 * U, 2);
  task_wait_blocked (write);
  fake_release (w.f, first);
  g_assert_cmpint (task_end (write), ==, 0);
  task_wait_blocked (flush);
  fake_release (w.f, rest);
  g_assert_cmpint (task_end (flush), ==, 0);
  g_assert_cmpuint (stats_counter (w.e->stats, STATS_BARRIERS), ==, 1);
  g_assert_cmpuint (stats_count (w.e->stats, STATS_SPACE_WAIT), ==, 1);
  world_end_clean (&w);
}

/* The time to grow counts from the first write. */
static void
test_linger_join (void)
{
  struct world w;
  uint64_t since;

  world_init (&w, 8 * U, config (8, 2, WRITE_BEHIND, READ_DIRECT));
  do_request (&w, 0, WRITE, 4096, 0, 1);
  since = ((struct buf *) w.e->open.head->data)->since_ns;
  do_request (&w, 0, WRITE, 4096, 4096, 1);
  g_assert_cmpuint (((struct buf *) w.e->open.head->data)->since_ns, ==, since);
  world_end_clean (&w);
}

/* A writer that waits for a buffer when a write fails writes through. */
static void
test_failing_waiter (void)
{
  struct world w;
  struct task *write;
  int first, rest, fail;

  world_init (&w, 8 * U, config (4, 4, WRITE_BEHIND, READ_DIRECT));
  first = fake_hold (w.f, FAKE_WRITE, 0, U);
  rest = fake_hold (w.f, FAKE_WRITE, U, 3 * U);
  fail = fake_fail (w.f, FAKE_WRITE, 0, U, EIO, -1);
  for (unsigned i = 0; i < 4; i++)
    do_request (&w, 0, WRITE, U, i * U, 1);
  write = task_start (&w, 1, WRITE, U, 5 * U, 2);
  task_wait_blocked (write);
  fake_release (w.f, first);
  g_assert_cmpint (task_end (write), ==, 0);
  assert_device (w.f, U, 5 * U, 2);
  fake_release (w.f, rest);
  fake_release (w.f, fail);
  do_request (&w, 0, FLUSH, 0, 0, 0);
  world_end_clean (&w);
}

static void
put_in_flight (struct conn *c, unsigned n)
{
  for (unsigned i = 0; i < n; i++)
    depth_begin (&c->depth, 1, stats_now_ns (), UINT64_MAX / 2);
}

/* A client with three quarters of the buffers in flight is not read ahead for. */
static void
test_ahead_quarter (gconstpointer data)
{
  unsigned in_flight = GPOINTER_TO_UINT (data);
  struct world w;

  world_init (&w, 64 * U, config (16, 16, WRITE_BEHIND, READ_AHEAD));
  put_in_flight (w.c[0], in_flight);
  for (unsigned i = 0; i < 24; i++)
    do_request (&w, 0, READ, U, i * U, OLD);
  wait_free (&w, 0);
  g_assert_true ((fake_started (w.f, FAKE_READ, 24 * U, 0) == 0) == (in_flight == 12));
  world_end_clean (&w);
}

/* Reads in bursts that arrive in reverse are one stream. */
static void
test_ahead_slack (void)
{
  struct world w;

  world_init (&w, 64 * U, config (32, 16, WRITE_BEHIND, READ_AHEAD));
  put_in_flight (w.c[0], 3);
  for (unsigned i = 0; i < 24; i++)
    do_request (&w, 0, READ, U, (i / 4 * 4 + 3 - i % 4) * U, OLD);
  g_assert_cmpuint (stream_active (&w.c[0]->streams, stats_now_ns ()), ==, 1);
  world_end_clean (&w);
}

/* A client with as many requests in flight as there are buffers is not helped. */
static void
test_worth (gconstpointer data)
{
  unsigned in_flight = GPOINTER_TO_UINT (data);
  struct world w;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  put_in_flight (w.c[0], in_flight);
  do_request (&w, 0, WRITE, 4096, 0, 1);
  g_assert_cmpuint (count_state (&w, BUF_OPEN, 0, U), ==, in_flight < 7);
  world_end_clean (&w);
}

/* An operation that fails says nothing of the device's speed. */
static void
test_pace_failed (void)
{
  struct world w;
  int fail;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  fail = fake_fail (w.f, FAKE_READ | FAKE_WRITE, 0, 0, EIO, 2);
  fake_set_fast (w.f, true);
  g_assert_cmpint (try_request (&w, 0, READ, U, 0, OLD), ==, EIO);
  g_assert_cmpint (try_request (&w, 0, FUA, U, 0, OLD), ==, EIO);
  g_assert_cmpuint (pace_wait_ns (w.c[0]->backend.pace_read), >, 0);
  g_assert_cmpuint (pace_wait_ns (w.c[0]->backend.pace_write), >, 0);
  fake_release (w.f, fail);
  world_end_clean (&w);
}

/* A second flush that ends while the first one tries failed data again does not let writes wait again. */
static void
test_failing_busy (void)
{
  struct world w;
  struct task *flush;
  int hold;

  world_init (&w, 8 * U, config (8, 4, WRITE_BEHIND, READ_DIRECT));
  make_failed (&w, 0, 4096, 0, 1, EIO);
  hold = fake_hold (w.f, FAKE_WRITE, 0, 0);
  flush = task_start (&w, 0, FLUSH, 0, 0, 0);
  fake_wait_held (w.f, hold, 1);
  g_assert_cmpint (behind_flush_end (w.c[1], 0), ==, 0);        /* as one that had nothing to wait for */
  g_assert_true (is_failing (&w, 0));
  fake_release (w.f, hold);
  g_assert_cmpint (task_end (flush), ==, 0);
  world_end_clean (&w);
}

/* A copy that another device's newer data does not wait for any longer. */
static void
test_copying_dropped (void)
{
  struct sigaction old, new = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
  struct world w;
  pthread_t writer;
  void *err;

  world_start (&w, 8 * U, config_impatient (READ_DIRECT));
  world_open (&w, 0, "a");
  world_open (&w, 1, "b");
  copy_gate_close (&new, &old);
  g_assert_cmpint (pthread_create (&writer, NULL, write_gated, &w), ==, 0);
  copy_gate_wait ();
  g_assert_cmpint (try_request (&w, 1, ZERO, U, 0, 0), ==, 0);
  engine_check (w.e);
  copy_gate_open ();
  pthread_join (writer, &err);
  g_assert_cmpint (GPOINTER_TO_INT (err), ==, 0);
  sigaction (SIGSEGV, &old, NULL);
  munmap (copy_gate.page, U);
  g_assert_cmpuint (w.e->free.length, ==, 8);
  assert_device (w.f, U, 0, 0);
  g_assert_cmpint (try_request (&w, 0, FLUSH, 0, 0, 0), ==, EIO);
  world_end_clean (&w);
}

/* A read of another connection takes over what waits for a worker: through its own connection. */
static void
test_takes_over_others (void)
{
  struct world w;
  struct task *read;
  int hold;

  world_init (&w, 16 * U, config (16, 1, WRITE_BEHIND, READ_AHEAD));
  hold = fake_hold (w.f, FAKE_READ, 2 * U, U);
  start_stream (&w, 0);
  fake_wait_held (w.f, hold, 1);
  read = task_start (&w, 1, READ, U, 3 * U, OLD);
  g_assert_cmpint (task_end (read), ==, 0);
  if (!hooked)                  /* hooks let nothing wait for a worker */
    g_assert_cmpuint (fake_op (w.f, FAKE_READ, 3 * U, U, 0).conn, ==, 1);
  fake_release (w.f, hold);
  world_end_clean (&w);
}

/* Where reading ahead has failed it does not go on. */
static void
test_ahead_fails_ends (void)
{
  struct world w;
  int fail;

  world_init (&w, 64 * U, config (16, 1, WRITE_BEHIND, READ_AHEAD));
  fail = fake_fail (w.f, FAKE_READ, 2 * U, 0, EIO, -1);
  start_stream (&w, 0);
  wait_free (&w, 16);
  fake_release (w.f, fail);
  fake_forget (w.f);
  do_request (&w, 0, READ, U, 2 * U, OLD);
  wait_free (&w, 16);
  g_assert_cmpuint (fake_started (w.f, FAKE_READ, 0, 0), ==, 1);
  world_end_clean (&w);
}

static void
add_between (void)
{
  static const struct { const char *name; GTestFunc run; } cases[] = {
    { "between/flush-names", test_flush_names },
    { "between/flush-names-bound", test_flush_names_bound },
    { "between/flush-starved", test_flush_starved },
    { "between/flush-later", test_flush_later },
    { "between/flush-shows-later", test_flush_shows_later },
    { "between/late-calls", test_late_calls },
    { "between/others-flush", test_others_flush },
    { "between/others-buffers", test_others_buffers },
    { "between/others-thread", test_others_thread },
    { "between/stop-open", test_stop_open },
    { "between/others-ready", test_others_ready },
    { "between/others-workers", test_others_workers },
    { "between/others-hang", test_others_hang },
    { "failed/close-workers", test_close_workers },
    { "failed/pieces", test_pieces },
    { "failed/pieces-wait", test_pieces_wait },
    { "failed/readonly-waits", test_readonly_waits },
    { "failed/waiter", test_failing_waiter },
    { "failed/busy", test_failing_busy },
    { "limit/patient", test_patient },
    { "limit/copying", test_copying },
    { "limit/copying-dropped", test_copying_dropped },
    { "limit/takes-over-others", test_takes_over_others },
    { "limit/ahead-fails-ends", test_ahead_fails_ends },
    { "exports/same-name-first", test_same_name_first },
    { "limit/blocks", test_block_limits },
    { "limit/block-at-end", test_block_end },
    { "limit/settle-ready", test_settle_ready },
    { "limit/join-youngest", test_join_youngest },
    { "limit/auto-clear", test_auto_clear },
    { "limit/ahead-age", test_ahead_age },
    { "limit/ahead-slack", test_ahead_slack },
    { "limit/counts", test_exact_counts },
    { "limit/linger-join", test_linger_join },
    { "limit/pace-failed", test_pace_failed },
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autofree char *path = g_strdup_printf ("/engine/%s", cases[i].name);

    g_test_add_func (path, cases[i].run);
  }
  g_test_add_data_func ("/engine/between/flush-shows/direct", GUINT_TO_POINTER (WRITE_THROUGH), test_flush_shows);
  g_test_add_data_func ("/engine/between/flush-shows/deferred", GUINT_TO_POINTER (WRITE_BEHIND), test_flush_shows);
  add_by_kind ("between/others-bound", test_others_bound, FUA, TRIM);
  g_test_add_data_func ("/engine/failed/pieces-two/part", GUINT_TO_POINTER (4096), test_pieces_two);
  g_test_add_data_func ("/engine/failed/pieces-two/all", GUINT_TO_POINTER (8192), test_pieces_two);
  for (unsigned i = 6; i <= 7; i++) {
    g_autofree char *path = g_strdup_printf ("/engine/limit/worth-%u", i);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_worth);
  }
  for (unsigned i = 11; i <= 12; i++) {
    g_autofree char *path = g_strdup_printf ("/engine/limit/ahead-quarter-%u", i);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_ahead_quarter);
  }
  g_test_add_data_func ("/engine/limit/stale-failed/direct", GUINT_TO_POINTER (WRITE_THROUGH), test_stale_failed);
  g_test_add_data_func ("/engine/limit/stale-failed/deferred", GUINT_TO_POINTER (WRITE_BEHIND), test_stale_failed);
}

static void
add_random (void)
{
  static const struct {
    const char *name;
    unsigned buffers, threads;
    enum write_mode write;
    bool failures, exports;
  } configs[] = {
    { "behind", 32, 8, WRITE_BEHIND, false, false },
    { "auto", 12, 4, WRITE_AUTO, false, false },
    { "through", 12, 4, WRITE_THROUGH, false, false },
    { "few-buffers", 6, 2, WRITE_BEHIND, false, false },
    { "one-thread", 16, 1, WRITE_BEHIND, false, false },
    { "failing", 24, 4, WRITE_BEHIND, true, false },
    { "failing-few", 8, 2, WRITE_AUTO, true, false },
    { "exports", 24, 4, WRITE_BEHIND, false, true },
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (configs); i++) {
    g_autofree char *path = g_strdup_printf ("/engine/random/%s", configs[i].name);

    struct random_config *c = g_new0 (struct random_config, 1);

    c->engine = config (configs[i].buffers, configs[i].threads, configs[i].write, READ_AHEAD);
    c->engine.linger_ns = 1000000;
    c->failures = configs[i].failures;
    c->exports = configs[i].exports;
    g_test_add_data_func_full (path, c, test_random, g_free);
  }
}

int
main (int argc, char *argv[])
{
  int r;

  g_test_init (&argc, &argv, NULL);
  /* Each engine gets threads of its own: GLib would hand some on, unseen by ThreadSanitizer. */
  g_thread_pool_set_max_unused_threads (0);
  reports = g_ptr_array_new_with_free_func (g_free);
  g_test_add_data_func ("/engine/flush/plugin-can", GINT_TO_POINTER (true), test_flush_waits);
  g_test_add_data_func ("/engine/flush/plugin-cannot", GINT_TO_POINTER (false), test_flush_waits);
  g_test_add_func ("/engine/flush/error", test_flush_error);
  g_test_add_func ("/engine/flush/ends", test_flush_ends);
  g_test_add_func ("/engine/write/merge", test_merge);
  g_test_add_func ("/engine/write/join-ready", test_join_ready);
  g_test_add_func ("/engine/write/over-units", test_write_over_units);
  g_test_add_func ("/engine/write/linger", test_linger);
  g_test_add_func ("/engine/write/open-max", test_open_max);
  g_test_add_data_func ("/engine/order/same-connection", GUINT_TO_POINTER (0), test_overlap_order);
  g_test_add_data_func ("/engine/order/other-connection", GUINT_TO_POINTER (1), test_overlap_order);
  add_by_kind ("mutator-waits", test_mutator_waits, FUA, TRIM);
  add_by_kind ("write-beside", test_write_beside, FUA, TRIM);
  g_test_add_func ("/engine/settle", test_settle);
  g_test_add_data_func ("/engine/auto/fua", GUINT_TO_POINTER (FUA), test_auto);
  g_test_add_data_func ("/engine/auto/flush", GUINT_TO_POINTER (FLUSH), test_auto);
  g_test_add_func ("/engine/through", test_through);
  g_test_add_func ("/engine/unregistered-first", test_unregistered_first);
  g_test_add_func ("/engine/fast", test_fast);
  g_test_add_data_func ("/engine/read/open", GUINT_TO_POINTER (BUF_OPEN), test_read_states);
  g_test_add_data_func ("/engine/read/writing", GUINT_TO_POINTER (BUF_WRITING), test_read_states);
  g_test_add_data_func ("/engine/read/failed", GUINT_TO_POINTER (BUF_FAILED), test_read_states);
  g_test_add_func ("/engine/read/many", test_read_many);
  g_test_add_func ("/engine/read/pins", test_read_pins);
  g_test_add_func ("/engine/ahead/used", test_ahead);
  g_test_add_func ("/engine/ahead/mixed", test_ahead_mixed);
  g_test_add_func ("/engine/ahead/deep", test_ahead_deep);
  if (!hooked)                  /* hooks leave nothing queued */
    g_test_add_func ("/engine/ahead/takes-over", test_ahead_takes_over);
  g_test_add_func ("/engine/ahead/fails", test_ahead_fails);
  g_test_add_func ("/engine/ahead/fails-all", test_ahead_fails_all);
  g_test_add_func ("/engine/ahead/skip", test_ahead_skip);
  g_test_add_func ("/engine/ahead/share", test_ahead_share);
  g_test_add_func ("/engine/ahead/slow", test_ahead_slow);
  g_test_add_func ("/engine/ahead/writers", test_ahead_writers);
  g_test_add_func ("/engine/close/leave", test_leave);
  g_test_add_func ("/engine/close/stop-waits", test_stop_waits);
  g_test_add_func ("/engine/ahead/left", test_ahead_left);
  g_test_add_func ("/engine/ahead/hole", test_ahead_hole);
  g_test_add_func ("/engine/ahead/beside", test_ahead_beside);
  add_stale ();
  g_test_add_func ("/engine/stale/pinned", test_stale_pinned);
  g_test_add_func ("/engine/errors", test_errors);
  for (unsigned i = 0; i < 2; i++) {
    g_autofree char *path = g_strdup_printf ("/engine/failed/retries-%u", i);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_failed);
  }
  g_test_add_func ("/engine/failed/sticks", test_failing_sticks);
  g_test_add_func ("/engine/failed/meanwhile", test_failing_meanwhile);
  g_test_add_func ("/engine/failed/order", test_failed_order);
  g_test_add_func ("/engine/failed/several", test_failed_several);
  add_supersede ();
  g_test_add_func ("/engine/supersede/error", test_supersede_error);
  g_test_add_func ("/engine/supersede/pinned", test_supersede_pinned);
  g_test_add_func ("/engine/orphan/flush", test_orphan);
  g_test_add_func ("/engine/orphan/close", test_orphan_at_close);
  g_test_add_func ("/engine/orphan/close-beside-retry", test_close_beside_retry);
  g_test_add_func ("/engine/orphan/close-after-retry", test_close_after_retry);
  g_test_add_func ("/engine/orphan/readonly", test_orphan_readonly);
  g_test_add_data_func ("/engine/flush-and-zero/all", GUINT_TO_POINTER (8192), test_flush_and_zero);
  g_test_add_data_func ("/engine/flush-and-zero/part", GUINT_TO_POINTER (4096),
                        test_flush_and_zero);
  g_test_add_func ("/engine/exports/not-shared", test_not_shared);
  for (unsigned i = 0; i < 4; i++) {
    static const char *const names[] = { "size", "max-block", "min-block", "multi-conn" };
    g_autofree char *path = g_strdup_printf ("/engine/exports/same-name/%s", names[i]);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_same_name);
  }
  g_test_add_func ("/engine/lost/once", test_lost);
  g_test_add_func ("/engine/lost/reported", test_lost_reported);
  g_test_add_func ("/engine/lost/names", test_lost_names);
  g_test_add_data_func ("/engine/lost/EPERM", GINT_TO_POINTER (EPERM), test_permanent);
  g_test_add_data_func ("/engine/lost/EROFS", GINT_TO_POINTER (EROFS), test_permanent);
  g_test_add_data_func ("/engine/lost/EINVAL", GINT_TO_POINTER (EINVAL), test_permanent);
  g_test_add_func ("/engine/slab/filling", test_filling);
  g_test_add_func ("/engine/slab/reuse", test_reuse);
  g_test_add_func ("/engine/slab/space", test_space);
  g_test_add_func ("/engine/slab/in-order", test_space_in_order);
  g_test_add_data_func ("/engine/slab/failed", GINT_TO_POINTER (false), test_slab_failed);
  g_test_add_data_func ("/engine/slab/failed-other", GINT_TO_POINTER (true), test_slab_failed);
  g_test_add_func ("/engine/slab/evict-clean", test_evict_clean);
  g_test_add_func ("/engine/slab/evict-idle", test_evict_idle);
  g_test_add_func ("/engine/slab/two-writers", test_space_two);
  if (!hooked)
    g_test_add_func ("/engine/slab/evict-reading", test_evict_reading);
  g_test_add_func ("/engine/slab/writer-first", test_writer_first);
  g_test_add_func ("/engine/slab/too-large", test_too_large);
  g_test_add_func ("/engine/close/drains", test_close_drains);
  g_test_add_data_func ("/engine/close/retries/EIO", GINT_TO_POINTER (EIO), test_close_retries);
  g_test_add_data_func ("/engine/close/retries/ESHUTDOWN", GINT_TO_POINTER (ESHUTDOWN),
                        test_close_retries);
  g_test_add_func ("/engine/size/max-block", test_max_block);
  g_test_add_func ("/engine/size/min-block", test_min_block);
  g_test_add_func ("/engine/size/odd", test_odd_size);
  for (unsigned i = 0; i < 3; i++) {
    static const char *const names[] = { "count", "offset", "max-block" };
    g_autofree char *path
      = g_strdup_printf ("/engine/size/refusable-%s", names[i]);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_refusable);
  }
  g_test_add_func ("/engine/size/refusable-ahead", test_refusable_ahead);
  g_test_add_func ("/engine/exports/one-device", test_exports);
  g_test_add_func ("/engine/exports/ahead", test_exports_ahead);
  g_test_add_func ("/engine/exports/retry", test_exports_retry);
  if (hooked)
    add_hooks ();
  add_between ();
  add_random ();
  add_by_kind ("exports/two-devices", test_devices, WRITE, TRIM);
  r = g_test_run ();
  g_ptr_array_unref (reports);
  return r;
}
