/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The library of the engine's tests: see world.h.
 *
 * The Makefile links it with test-engine-* only, as it calls the engine.
 */
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <glib.h>

#include "buffers.h"
#include "clock.h"
#include "dispatch.h"
#include "world.h"

/* The log. */

static GPtrArray *reports;
static atomic_uint n_late, n_contexts_logged;

static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool is_closed;
  unsigned entered;
} report_gate = {
  .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER
};

static void
report_gate_set (bool is_closed)
{
  LOCK_IN_SCOPE (&report_gate.lock);
  report_gate.is_closed = is_closed;
  report_gate.entered = 0;
  pthread_cond_broadcast (&report_gate.changed);
}

void
report_gate_close (void)
{
  report_gate_set (true);
}

void
report_gate_open (void)
{
  report_gate_set (false);
}

void
report_gate_wait (void)
{
  LOCK_IN_SCOPE (&report_gate.lock);
  while (report_gate.entered == 0)
    pthread_cond_wait (&report_gate.changed, &report_gate.lock);
}

static void
report (const char *export_name, uint64_t offset, uint32_t count, int err,
        bool kept)
{
  g_assert_cmpint (err, >, 0);
  g_ptr_array_add (reports,
                   g_strdup_printf ("%s:%" PRIu64 "+%" PRIu32 ":%s",
                                    export_name, offset, count,
                                    kept ? "kept" : "lost"));
  LOCK_IN_SCOPE (&report_gate.lock);
  report_gate.entered++;
  pthread_cond_broadcast (&report_gate.changed);
  while (report_gate.is_closed)
    pthread_cond_wait (&report_gate.changed, &report_gate.lock);
}

static void
note_late (const char *export_name G_GNUC_UNUSED)
{
  atomic_fetch_add (&n_late, 1);
}

static void
note_context (const char *export_name G_GNUC_UNUSED,
              unsigned n_open G_GNUC_UNUSED, unsigned max G_GNUC_UNUSED)
{
  atomic_fetch_add (&n_contexts_logged, 1);
}

void
wait_contexts_logged (void)
{
  while (atomic_load (&n_contexts_logged) == 0)
    g_usleep (1000);
}

void
assert_contexts_logged (unsigned n)
{
  g_assert_cmpuint (atomic_exchange (&n_contexts_logged, 0), ==, n);
}

void
assert_report_list (const char *const *expected)
{
  unsigned n = 0;

  for (; expected[n]; n++) {
    g_assert_cmpuint (reports->len, >, n);
    g_assert_cmpstr (g_ptr_array_index (reports, n), ==, expected[n]);
  }
  assert_n_reports (n);
}

void
assert_n_reports (unsigned n)
{
  g_assert_cmpuint (reports->len, ==, n);
  g_ptr_array_set_size (reports, 0);
}

void
assert_late (unsigned n)
{
  g_assert_cmpuint (atomic_exchange (&n_late, 0), ==, n);
}

/* Cases. */

struct test_case {
  struct test test;
  bool hooked, serial;
};

static char case_name[256];     /* a case that hangs names itself */

static void
on_alarm (int signal G_GNUC_UNUSED)
{
  static const char text[] = "Bail out! hangs: ";

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
  bool slow = g_test_thorough () || (tool && *tool)
    || (variant && strcmp (variant, "plain") != 0);

  g_strlcpy (case_name, g_test_get_path (), sizeof case_name);
  signal (SIGALRM, on_alarm);
  alarm (slow ? 300 : 30);
}

static void
run_case (gconstpointer data)
{
  const struct test_case *c = data;
  struct world w = {
    .hooked = c->hooked, .serial = c->serial, .arg = c->test.arg
  };

  c->test.run (&w);
  if (w.e)
    world_end (&w);
}

static void
add_case (const struct test *test, const char *kind)
{
  struct test_case *c = g_new (struct test_case, 1);
  g_autofree char *path
    = g_strdup_printf ("/%s/%s", kind, test->name);

  *c = (struct test_case) {
    *test, .hooked = strcmp (kind, "hooks") == 0,
    .serial = strcmp (kind, "contexts") == 0
  };
  c->test.name = NULL;          /* it may be gone when the case runs */
  g_test_add_data_func_full (path, c, run_case, g_free);
}

void
tests_init (int *argc, char ***argv)
{
  g_test_init (argc, argv, NULL);
  /* Each engine gets threads of its own: GLib would hand some on, unseen by
   * ThreadSanitizer.
   */
  g_thread_pool_set_max_unused_threads (0);
  reports = g_ptr_array_new_with_free_func (g_free);
}

void
tests_add (const struct test *tests, unsigned n)
{
  for (unsigned i = 0; i < n; i++) {
    static const unsigned sets[] = {
      [ON_ALL] = 7, [PARALLEL] = 3, [POOL_ONLY] = 1, [HOOKS_ONLY] = 2,
      [CONTEXTS_ONLY] = 4
    };
    static const char *const kinds[] = { "pool", "hooks", "contexts" };

    for (unsigned k = 0; k < G_N_ELEMENTS (kinds); k++)
      if (sets[tests[i].on] >> k & 1)
        add_case (&tests[i], kinds[k]);
  }
}

int
tests_run (void)
{
  int r = g_test_run ();

  g_ptr_array_unref (reports);
  return r;
}

/* Engines and connections. */

struct engine_config
config (unsigned buffers, unsigned threads, enum write_mode write,
        enum read_mode read)
{
  return (struct engine_config) {
    .buffers = buffers, .buffer_size = U, .threads = threads,
    .write = write,
    .read = read, .idle_ns = HOUR_NS, .linger_ns = HOUR_NS,
    .others_ns = HOUR_NS,
    .status_ns = HOUR_NS, .contexts = threads + 1, .context_idle_ns = HOUR_NS,
    .log_unwritten = report, .log_overdue = note_late,
    .log_context = note_context
  };
}

struct engine_config
config_impatient (enum read_mode read)
{
  struct engine_config c = config (8, 4, WRITE_BEHIND, read);

  c.others_ns = 50000000;
  return c;
}

void
be_patient (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  w->e->config.others_ns = HOUR_NS;
}

void
world_start (struct world *w, uint64_t size, struct engine_config c)
{
  start_alarm ();
  g_assert_null (w->e);
  w->f = fake_new (size);
  w->gate = fake_gate (w->f);
  fill (fake_data (w->f), size, 0, OLD);
  g_assert_cmpint (engine_new (&c, &w->e), ==, 0);
  g_assert_cmpint (engine_start (w->e), ==, 0);
  g_ptr_array_set_size (reports, 0);
  atomic_store (&n_late, 0);
}

static struct backend
backend_of (const struct world *w, struct fake *f, unsigned i)
{
  struct backend b = fake_backend (f, i);

  if (w->hooked)
    fake_hook (&b, HOUR_NS);
  if (w->serial)
    fake_serialize (&b);
  return b;
}

struct backend
world_backend (struct world *w, unsigned i)
{
  return backend_of (w, w->f, i);
}

void
world_open_as (struct world *w, unsigned i, const char *export_name,
               const struct backend *b)
{
  g_assert_cmpint (conn_open (w->e, export_name, b, &w->c[i]), ==, 0);
  fake_make_slow (w->c[i]);
}

void
world_open (struct world *w, unsigned i, const char *export_name)
{
  struct backend b = world_backend (w, i);

  world_open_as (w, i, export_name, &b);
}

void
world_open_second (struct world *w, unsigned i, const char *export_name)
{
  struct backend b;

  if (w->f2 == NULL) {
    uint64_t size = world_backend (w, i).size;

    w->f2 = fake_new (size);
    fill (fake_data (w->f2), size, 0, OLD);
  }
  b = backend_of (w, w->f2, i);
  world_open_as (w, i, export_name, &b);
}

void
world_open_unshared (struct world *w, unsigned i, const char *export_name)
{
  struct backend b = world_backend (w, i);

  b.shared = false;
  world_open_as (w, i, export_name, &b);
}

void
world_init (struct world *w, uint64_t size, struct engine_config c)
{
  world_start (w, size, c);
  world_open (w, 0, "");
  world_open (w, 1, "");
}

void
open_writeback (struct world *w, uint64_t size, unsigned buffers,
                unsigned threads)
{
  world_init (w, size, config (buffers, threads, WRITE_BEHIND, READ_DIRECT));
}

void
open_readahead (struct world *w, uint64_t size, unsigned buffers,
                unsigned threads)
{
  world_init (w, size, config (buffers, threads, WRITE_BEHIND, READ_AHEAD));
}

void
open_names (struct world *w, uint64_t size, struct engine_config c)
{
  world_start (w, size, c);
  world_open (w, 0, "a");
  world_open (w, 1, "b");
}

static void
end_connection (struct world *w, unsigned i)
{
  conn_close (w->c[i]);
  conn_free (w->c[i]);
  w->c[i] = NULL;
}

void
world_close (struct world *w, unsigned i)
{
  engine_check (w->e);
  end_connection (w, i);
  engine_check (w->e);
}

void
world_stop (struct world *w)
{
  engine_stop (w->e);
  for (unsigned i = 0; i < CONNS; i++)
    if (w->c[i])
      conn_free (w->c[i]);
  memset (w->c, 0, sizeof w->c);
}

void
world_end (struct world *w)
{
  for (unsigned i = 0; i < CONNS; i++)
    if (w->c[i])
      world_close (w, i);
  engine_stop (w->e);
  engine_free (w->e);
  w->e = NULL;
  alarm (0);
  fake_free (w->f);
  if (w->f2)
    fake_free (w->f2);
  w->f = w->f2 = NULL;
  assert_n_reports (0);
}

/* Requests. */

const char *const kind_names[] = {
  "read", "write", "fua", "zero", "trim", "flush", "drain", "close"
};

unsigned
fake_kind (enum kind kind)
{
  return kind == ZERO ? GATE_ZERO : kind == TRIM ? GATE_TRIM : GATE_WRITE;
}

bool
drain (struct world *w, unsigned i, uint32_t count, uint64_t offset)
{
  struct conn *c = w->c[i];
  bool r;

  g_assert_true (conn_enter (c));
  {
    ENGINE_LOCK_THEN_DISPATCH (c->engine);
    order_drain_locked (c, offset, offset + count);
    r = buffers_have (c->device, BUF_BIT (FAILED), offset, offset + count);
  }
  conn_leave (c);
  return r;
}

int
request (struct world *w, unsigned i, enum kind kind, void *buf, uint32_t count,
         uint64_t offset)
{
  struct conn *c = w->c[i];

  switch (kind) {
  case READ: return conn_read (c, buf, count, offset);
  case WRITE: return conn_write (c, buf, count, offset, 0);
  case FUA: return conn_write (c, buf, count, offset, BACKEND_FUA);
  case ZERO: return conn_zero (c, count, offset, 0);
  case TRIM: return conn_trim (c, count, offset, 0);
  case FLUSH: return conn_flush (c, true);
  case DRAIN: return drain (w, i, count, offset);
  case CLOSE: end_connection (w, i); return 0;
  case FINALIZE: conn_close (c); return 0;
  case STOP: engine_stop (w->e); return 0;
  }
  g_assert_not_reached ();
}

int
try_request (struct world *w, unsigned i, enum kind kind, uint32_t count,
             uint64_t offset, unsigned tag)
{
  g_autofree char *buf = g_malloc (count + 1);
  int err;

  fill (buf, count, offset, kind == READ ? 255 : tag);
  err = request (w, i, kind, buf, count, offset);
  if (kind == READ && err == 0)
    assert_filled (buf, count, offset, tag);
  return err;
}

void
request_fails (struct world *w, unsigned i, enum kind kind, uint32_t count,
               uint64_t offset, unsigned tag, int err)
{
  g_assert_cmpint (try_request (w, i, kind, count, offset, tag), ==, err);
}

void
do_request (struct world *w, unsigned i, enum kind kind, uint32_t count,
            uint64_t offset, unsigned tag)
{
  request_fails (w, i, kind, count, offset, tag, 0);
  engine_check (w->e);
}

void
do_read (struct world *w, unsigned i, uint32_t count, uint64_t offset,
         unsigned tag)
{
  do_request (w, i, READ, count, offset, tag);
}

void
do_write (struct world *w, unsigned i, uint32_t count, uint64_t offset,
          unsigned tag)
{
  do_request (w, i, WRITE, count, offset, tag);
}

void
do_fua (struct world *w, unsigned i, uint32_t count, uint64_t offset,
        unsigned tag)
{
  do_request (w, i, FUA, count, offset, tag);
}

void
do_zero (struct world *w, unsigned i, uint32_t count, uint64_t offset)
{
  do_request (w, i, ZERO, count, offset, 0);
}

void
do_flush (struct world *w, unsigned i)
{
  do_request (w, i, FLUSH, 0, 0, 0);
}

void
flush_fails (struct world *w, unsigned i, int err)
{
  request_fails (w, i, FLUSH, 0, 0, 0, err);
}

void
write_units (struct world *w, unsigned i, unsigned first, unsigned n,
             unsigned tag)
{
  for (unsigned u = first; u < first + n; u++)
    do_write (w, i, U, u * U, tag);
}

void
start_stream (struct world *w, unsigned i)
{
  do_read (w, i, U, 0, OLD);
  do_read (w, i, U, U, OLD);
}

void
prefetch (struct world *w, unsigned i, unsigned n)
{
  start_stream (w, i);
  wait_state (w, BUF_CLEAN, 2 * U, n * U, n);
}

int
start_held_stream (struct world *w, unsigned i)
{
  int rule = gate_hold (w->gate, GATE_READ, 2 * U, 0);

  start_stream (w, i);
  gate_wait_held (w->gate, rule, 1);
  return rule;
}

void
make_failed (struct world *w, unsigned i, uint32_t count, uint64_t offset,
             unsigned tag, int err)
{
  int rule = gate_fail (w->gate, GATE_WRITE, offset, count, err, -1);

  do_write (w, i, count, offset, tag);
  task_ends (start_flush (w, i), err);
  wait_state (w, BUF_FAILED, offset / U * U, U, 1);
  gate_release (w->gate, rule);
  gate_forget (w->gate);
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
  /* Under the lock. */
  pid_t tid;
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

struct task *
task_start (struct world *w, unsigned i, enum kind kind, uint32_t count,
            uint64_t offset, unsigned tag)
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

struct task *
start_flush (struct world *w, unsigned i)
{
  return task_start (w, i, FLUSH, 0, 0, 0);
}

struct task *
start_close (struct world *w, unsigned i)
{
  return task_start (w, i, CLOSE, 0, 0, 0);
}

struct task *
start_blocked (struct world *w, unsigned i, enum kind kind, uint32_t count,
               uint64_t offset, unsigned tag)
{
  struct task *t = task_start (w, i, kind, count, offset, tag);

  task_wait_blocked (t);
  return t;
}

struct task *
start_blocked_flush (struct world *w, unsigned i)
{
  return start_blocked (w, i, FLUSH, 0, 0, 0);
}

struct task *
start_blocked_close (struct world *w, unsigned i)
{
  return start_blocked (w, i, CLOSE, 0, 0, 0);
}

struct task *
start_held (struct world *w, int rule, unsigned i, enum kind kind,
            uint32_t count, uint64_t offset, unsigned tag)
{
  struct task *t = task_start (w, i, kind, count, offset, tag);

  gate_wait_held (w->gate, rule, 1);
  return t;
}

struct task *
start_held_flush (struct world *w, int rule, unsigned i)
{
  return start_held (w, rule, i, FLUSH, 0, 0, 0);
}

/* The state of a thread, and how often it gave up the CPU.  0: it has ended. */
static char
thread_state (pid_t tid, unsigned long *switches)
{
  g_autofree char *path
    = g_strdup_printf ("/proc/self/task/%d/status", (int) tid);
  g_autofree char *text = NULL;
  const char *state, *n;

  if (!g_file_get_contents (path, &text, NULL, NULL))
    return 0;
  state = strstr (text, "State:\t");
  n = strstr (text, "\nvoluntary_ctxt_switches:");
  g_assert_true (state && n);
  *switches = strtoul (n + strlen ("\nvoluntary_ctxt_switches:"), NULL, 10);
  return state[strlen ("State:\t")];
}

void
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

int
task_end (struct task *t)
{
  struct timespec ts;
  int err;

  clock_gettime (CLOCK_REALTIME, &ts);
  ts.tv_sec += 100;
  pthread_mutex_lock (&t->lock);
  while (!t->done)
    if (pthread_cond_timedwait (&t->changed, &t->lock, &ts) == ETIMEDOUT)
      g_error ("a %s (offset %" PRIu64 ") does not end", kind_names[t->kind],
               t->offset);
  pthread_mutex_unlock (&t->lock);
  pthread_join (t->thread, NULL);
  pthread_cond_destroy (&t->changed);
  pthread_mutex_destroy (&t->lock);
  err = t->err;
  engine_check (t->w->e);
  g_free (t);
  return err;
}

void
task_ends (struct task *t, int err)
{
  g_assert_cmpint (task_end (t), ==, err);
}

/* Data. */

static uint8_t
byte_at (unsigned tag, uint64_t offset)
{
  return tag == 0 ? 0 : tag * 31 + (offset >> 8) * 7 + offset;
}

void
fill (void *vbuf, uint32_t count, uint64_t offset, unsigned tag)
{
  uint8_t *buf = vbuf;

  for (uint32_t i = 0; i < count; i++)
    buf[i] = byte_at (tag, offset + i);
}

void
assert_filled (const void *vbuf, uint32_t count, uint64_t offset, unsigned tag)
{
  const uint8_t *buf = vbuf;

  for (uint32_t i = 0; i < count; i++)
    if (buf[i] != byte_at (tag, offset + i))
      g_error ("at %" PRIu64 ": found %u, tag %u has %u", offset + i, buf[i],
               tag, byte_at (tag, offset + i));
}

void
assert_device (struct fake *f, uint32_t count, uint64_t offset, unsigned tag)
{
  g_autofree char *buf = g_malloc (count);

  fake_peek (f, buf, count, offset);
  assert_filled (buf, count, offset, tag);
}

void
assert_devices (struct fake *f, const struct part *parts, unsigned n)
{
  for (unsigned p = 0; p < n; p++)
    assert_device (f, parts[p].count, parts[p].offset, parts[p].tag);
}

void
assert_reads (struct world *w, unsigned i, const struct part *parts, unsigned n)
{
  uint64_t offset = parts[0].offset;
  uint64_t end = parts[n - 1].offset + parts[n - 1].count;
  g_autofree char *buf = g_malloc (end - offset);

  g_assert_cmpint (request (w, i, READ, buf, end - offset, offset), ==, 0);
  for (unsigned p = 0; p < n; p++)
    assert_filled (buf + (parts[p].offset - offset), parts[p].count,
                   parts[p].offset, parts[p].tag);
  engine_check (w->e);
}

/* A trim of the fake device leaves 0xdd. */
static void
assert_trimmed (struct world *w, unsigned i, uint32_t count, uint64_t offset)
{
  g_autofree uint8_t *buf = g_malloc (count);

  g_assert_cmpint (request (w, i, READ, buf, count, offset), ==, 0);
  for (uint32_t n = 0; n < count; n++)
    g_assert_cmphex (buf[n], ==, 0xdd);
}

void
assert_changed (struct world *w, enum kind kind, uint32_t count,
                uint64_t offset, unsigned tag)
{
  tag = kind == ZERO ? 0 : tag;
  for (unsigned i = 0; i < 2; i++)
    if (kind == TRIM)
      assert_trimmed (w, i, count, offset);
    else
      do_read (w, i, count, offset, tag);
  if (kind != TRIM)
    assert_device (w->f, count, offset, tag);
}

/* The plugin's operations. */

void
assert_started (struct world *w, unsigned kinds, uint64_t offset,
                uint64_t count, unsigned n)
{
  g_assert_cmpuint (gate_started (w->gate, kinds, offset, count), ==, n);
}

void
assert_ended (struct world *w, unsigned kinds, uint64_t offset, uint64_t count,
              unsigned n)
{
  g_assert_cmpuint (gate_ended (w->gate, kinds, offset, count), ==, n);
}

void
assert_order (struct gate_op before, struct gate_op after)
{
  g_assert_cmpuint (before.end, !=, 0);
  g_assert_cmpuint (before.end, <, after.start);
}

void
assert_no_collisions (struct world *w)
{
  g_assert_cmpuint (gate_collisions (w->gate), ==, 0);
}

bool
is_on_this_thread (struct gate_op op)
{
  return pthread_equal (op.thread, pthread_self ());
}

/* Inside the engine. */

unsigned
count_state (struct world *w, enum buf_state state, uint64_t offset,
             uint64_t count)
{
  unsigned n = 0;

  LOCK_IN_SCOPE (&w->e->lock);
  for (unsigned i = 0; i < w->e->buffers.n; i++) {
    const struct buf *b = &w->e->buffers.all[i];

    n += b->state == state && b->node
      && buf_overlaps (b, offset, offset + count);
  }
  return n;
}

void
assert_states (struct world *w, enum buf_state state, uint64_t offset,
               uint64_t count, unsigned n)
{
  g_assert_cmpuint (count_state (w, state, offset, count), ==, n);
}

/* Workers complete in their own time. */
void
wait_state (struct world *w, enum buf_state state, uint64_t offset,
            uint64_t count, unsigned n)
{
  for (unsigned i = 0; count_state (w, state, offset, count) < n; i++) {
    if (i > 100000)
      g_error ("no buffer of state %u at %" PRIu64, state, offset);
    g_usleep (1000);
  }
  engine_check (w->e);
}

static unsigned
count_free (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return w->e->buffers.free[0].queue.length
    + w->e->buffers.free[1].queue.length;
}

void
assert_free (struct world *w, unsigned n)
{
  g_assert_cmpuint (count_free (w), ==, n);
}

void
wait_free (struct world *w, unsigned n)
{
  for (unsigned i = 0; count_free (w) < n; i++) {
    if (i > 100000)
      g_error ("no %u free buffers", n);
    g_usleep (1000);
  }
  engine_check (w->e);
}

uint64_t
open_since_ns (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return ((struct buf *) w->e->buffers.open.head->data)->since_ns;
}

unsigned
count_reading (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return w->e->buffers.reading.length;
}

unsigned
count_held (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return g_tree_nnodes (w->e->buffers.tree);
}

unsigned
count_dirty (struct world *w, unsigned i)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return w->c[i]->device->n_dirty;
}

unsigned
count_prefetched (struct world *w, unsigned i)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return w->c[i]->ahead_units;
}

unsigned
count_streams (struct world *w, unsigned i)
{
  LOCK_IN_SCOPE (&w->c[i]->streams_lock);
  return stream_active (&w->c[i]->streams, clock_ns ());
}

unsigned
count_exports (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return w->e->exports.length;
}

bool
is_failing (struct world *w, unsigned i)
{
  return atomic_load (&w->c[i]->device->failing);
}

bool
has_same_device (struct world *w, unsigned i, unsigned j)
{
  return w->c[i]->device == w->c[j]->device;
}

const void *
buffer_of_unit (struct world *w, unsigned unit)
{
  ENGINE_LOCK_THEN_DISPATCH (w->e);
  return buffers_first (w->e, unit * U, (unit + 1) * U);
}

void
assert_counter (struct world *w, enum stats_counter counter, uint64_t n)
{
  g_assert_cmpuint (stats_counter (w->e->stats, counter), ==, n);
}

void
assert_noted (struct world *w, enum stats_kind kind, uint64_t n)
{
  g_assert_cmpuint (stats_count (w->e->stats, kind), ==, n);
}

static unsigned
count_sets (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  return w->e->contexts.length;
}

void
wait_n_sets (struct world *w, unsigned n)
{
  for (unsigned i = 0; count_sets (w) != n; i++) {
    if (i > 10000)
      g_error ("%u sets of contexts, not %u", count_sets (w), n);
    g_usleep (1000);
  }
}

/* UINT_MAX while threads use the contexts. */
static unsigned
count_failures (struct contexts *s)
{
  LOCK_IN_SCOPE (&s->lock);
  return s->opening + s->leased > 0 ? UINT_MAX : s->failures;
}

void
wait_failures (struct world *w, unsigned n)
{
  struct contexts *s = w->e->contexts.head->data;
  unsigned i = 0, failures;

  while ((failures = count_failures (s)) == UINT_MAX) {
    if (i++ > 10000)
      g_error ("contexts are in use");
    g_usleep (1000);
  }
  g_assert_cmpuint (failures, ==, n);
}

void
put_in_flight (struct world *w, unsigned i, unsigned n, uint32_t count)
{
  struct conn *c = w->c[i];

  while (n-- > 0) {
    depth_begin (&c->depth, 1, clock_ns (), UINT64_MAX / 2);
    depth_begin (&c->depth_kib, count / KIB, clock_ns (), UINT64_MAX / 2);
  }
}

void
make_patient (struct world *w, unsigned i)
{
  speed_note (w->c[i]->backend.write_speed, HOUR_NS, 1);
}

void
wait_without_memory (struct world *w)
{
  for (unsigned n = 1; n > 0; g_usleep (1000)) {
    LOCK_IN_SCOPE (&w->e->lock);
    n = 0;
    for (unsigned i = 0; i < w->e->buffers.n; i++)
      n += w->e->buffers.all[i].memory_of != 0;
  }
}

void
set_window (struct world *w, unsigned i, unsigned n)
{
  w->c[i]->streams.window = n;
}

void
stop_readahead (struct world *w, unsigned i)
{
  struct conn *c = w->c[i];

  LOCK_IN_SCOPE (&c->streams_lock);
  c->streams.failed = true;
  c->streams.answered = 0;
}

static gint
compare_bases (gconstpointer ap, gconstpointer bp,
               gpointer data G_GNUC_UNUSED)
{
  const struct buf *a = ap, *b = bp;

  return a->base < b->base ? -1 : 1;
}

void
make_older (struct world *w, uint64_t ns)
{
  LOCK_IN_SCOPE (&w->e->lock);
  g_queue_sort (&w->e->buffers.clean, compare_bases, NULL);
  for (GList *l = w->e->buffers.clean.head; l; l = l->next)
    ((struct buf *) l->data)->since_ns -= ns;
  w->e->buffers.taken_ns -= ns;
}

void
stop_reading (struct world *w, uint64_t ns)
{
  LOCK_IN_SCOPE (&w->e->lock);
  for (unsigned i = 0; i < CONNS; i++)
    if (w->c[i])
      w->c[i]->read_ns -= MIN (ns, w->c[i]->read_ns);
}
