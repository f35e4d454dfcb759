/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory or threads are missing: the engine returns an error and leaves nothing
 * behind, and it works once they are there.
 *
 * This program replaces the functions that can fail: those of inject.h,
 * pthread_create, and the filter's mmap.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <glib.h>

#include "engine.h"
#include "fake.h"
#include "inject.h"
#include "table.h"

#define U UINT64_C (65536)      /* the unit */
#define HOUR_NS UINT64_C (3600000000000)

enum { BUFFERS = 64, THREADS = 4, CONTEXTS = 4 };

static struct injector inject_maps, inject_threads;

extern void *__real_mmap (void *at, size_t size, int protection, int flags,
                          int fd, off_t offset);
extern void *__wrap_mmap (void *at, size_t size, int protection, int flags,
                          int fd, off_t offset);

void *
__wrap_mmap (void *at, size_t size, int protection, int flags, int fd,
             off_t offset)
{
  if (!inject_fails (&inject_maps))
    return __real_mmap (at, size, protection, flags, fd, offset);
  errno = ENOMEM;
  return MAP_FAILED;
}

/* Visible, as GLib calls it too. */
__attribute__ ((visibility ("default"))) int
pthread_create (pthread_t *id, const pthread_attr_t *attr,
                void *(*run) (void *), void *arg)
{
  int (*real) (pthread_t *, const pthread_attr_t *, void *(*) (void *), void *);

  *(void **) &real = dlsym (RTLD_NEXT, "pthread_create");
  return inject_fails (&inject_threads) ? EAGAIN : real (id, attr, run, arg);
}

static unsigned n_no_contexts;  /* how often the log says so */

static void
log_no_contexts (const char *export_name G_GNUC_UNUSED, int err)
{
  g_assert_cmpint (err, >, 0);
  n_no_contexts++;
}

static void
log_context (const char *export_name G_GNUC_UNUSED, unsigned n_open,
             unsigned max)
{
  g_assert_cmpuint (n_open, ==, 0);
  g_assert_cmpuint (max, ==, CONTEXTS - 1);
}

static struct engine_config
config (void)
{
  return (struct engine_config) {
    .buffers = BUFFERS, .buffer_size = U, .threads = THREADS,
    .write = WRITE_BEHIND, .read = READ_DIRECT,
    .idle_ns = HOUR_NS, .linger_ns = HOUR_NS,
    .others_ns = HOUR_NS, .contexts = CONTEXTS,
    .context_idle_ns = HOUR_NS, .context_retry_ns = HOUR_NS,
    .log_context = log_context, .log_no_contexts = log_no_contexts
  };
}

static struct engine *
new_engine (void)
{
  const struct engine_config c = config ();
  struct engine *e;

  g_assert_cmpint (engine_new (&c, &e), ==, 0);
  return e;
}

/* No memory for the counters, for the buffers, for the statistics, or for a
 * slab of terabytes.
 */
static void
test_new (void)
{
  struct engine_config c = config ();
  struct engine *e;

  for (unsigned n = 1; n <= 3; n++) {
    inject (&inject_memory, n, 1);
    g_assert_cmpint (engine_new (&c, &e), ==, ENOMEM);
    g_assert_cmpuint (inject_end (&inject_memory), ==, n);
  }
  inject (&inject_memory, 4, 1);
  engine_free (new_engine ());
  g_assert_cmpuint (inject_end (&inject_memory), ==, 3);
  inject (&inject_maps, 1, 1);
  g_assert_cmpint (engine_new (&c, &e), ==, ENOMEM);
  g_assert_cmpuint (inject_end (&inject_maps), ==, 1);
  c.buffers = UINT_MAX;
  c.buffer_size = 1U << 31;
  g_assert_cmpint (engine_new (&c, &e), ==, ENOMEM);
}

/* The first worker, or the write-back thread, does not start. */
static void
test_start (void)
{
  for (unsigned n = 1; n <= THREADS + 1; n++) {
    inject (&inject_threads, n, 1);
    g_assert_cmpint (pool_try_threads (THREADS + 1), ==, EAGAIN);
    g_assert_cmpuint (inject_end (&inject_threads), ==, n);
  }
  g_assert_cmpint (pool_try_threads (THREADS + 1), ==, 0);
  for (unsigned n = 1; n <= 2; n++) {
    struct engine *e = new_engine ();

    inject (&inject_threads, n, 1);
    g_assert_cmpint (engine_start (e), ==, EAGAIN);
    g_assert_cmpuint (inject_end (&inject_threads), ==, n);
    g_assert_null (e->pool);
    g_assert_cmpint (engine_start (e), ==, 0);
    engine_stop (e);
    engine_free (e);
  }
}

static void
job_ran (struct job *job)
{
  job->run = NULL;
}

struct held {
  struct job job;               /* first */
  pthread_mutex_t *gate;        /* it waits for this one */
};

static void
pass_gate (struct job *job)
{
  struct held *h = (struct held *) job;

  LOCK_IN_SCOPE (h->gate);
}

/* Further threads are refused: the pool has one, and asks again after IDLE_NS.
 */
static void
check_refused (uint64_t idle_ns)
{
  g_autoptr (GError) error = NULL;
  struct pool *p = pool_new (THREADS, idle_ns, &error);
  struct job jobs[2] = { { .run = job_ran }, { .run = job_ran } };
  pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
  struct held held = { .job.run = pass_gate, .gate = &gate };
  bool asks_again = idle_ns == 0;

  g_assert_nonnull (p);
  pthread_mutex_lock (&gate);
  pool_push (p, &held.job, POOL_WRITE);
  inject (&inject_threads, 1, -1);
  pool_push (p, &jobs[0], POOL_WRITE);
  g_assert_cmpuint (inject_end (&inject_threads), ==, 1);
  g_assert_cmpuint (pool_threads (p), ==, 1);
  g_assert_cmpuint (pool_idle (p), ==, asks_again ? THREADS - 1 : 0);
  g_assert_true (pool_try_push (p, &jobs[1], POOL_PIECE) == asks_again);
  if (!asks_again)
    g_assert_cmpuint (pool_threads (p), ==, 1);
  pthread_mutex_unlock (&gate);
  while (pool_has_queued (p, POOL_WRITE) || pool_has_queued (p, POOL_PIECE))
    g_usleep (1000);
  pool_free (p);
  g_assert_null (jobs[0].run);
  g_assert_true ((jobs[1].run == NULL) == asks_again);
}

static void
test_refused (void)
{
  check_refused (HOUR_NS);
  check_refused (0);
}

/* No further thread starts: one does all. */
static void
test_one_thread (void)
{
  const uint64_t size = BUFFERS * U;
  struct engine *e = new_engine ();
  struct fake *f = fake_new (size);
  struct backend b = fake_backend (f, 0);
  g_autofree char *buf = g_malloc0 (size);
  struct conn *c;

  g_assert_cmpint (engine_start (e), ==, 0);
  g_assert_cmpint (conn_open (e, "", &b, &c), ==, 0);
  fake_make_slow (c);
  inject (&inject_threads, 1, -1);
  memset (buf, 'x', size);
  for (uint64_t offset = 0; offset < size; offset += U)
    g_assert_cmpint (conn_write (c, buf, U, offset, 0), ==, 0);
  g_assert_cmpint (conn_flush (c, true), ==, 0);
  g_assert_cmpmem (fake_data (f), size, buf, size);
  g_assert_cmpuint (pool_threads (e->pool), ==, 1);
  g_assert_cmpuint (inject_end (&inject_threads), ==, 1);
  conn_close (c);
  conn_free (c);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

/* A connection that lacks one of its allocations does not open. */
static void
test_open (void)
{
  struct engine *e = new_engine ();
  struct fake *f = fake_new (U);
  struct backend b = fake_backend (f, 0);
  struct conn *c;
  unsigned n = 1;

  g_assert_cmpint (engine_start (e), ==, 0);
  for (;; n++) {
    inject (&inject_memory, n, 1);
    if (conn_open (e, "name", &b, &c) == 0)
      break;
    g_assert_cmpuint (inject_end (&inject_memory), >=, n);
    g_assert_cmpuint (e->conns.length + e->devices.length + e->exports.length,
                      ==, 0);
  }
  g_assert_cmpuint (inject_end (&inject_memory), ==, 4);
  g_assert_cmpuint (n, ==, 5);
  conn_close (c);
  conn_free (c);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

/* A read needs memory for its pins if it is of many buffers. */
static void
test_pins (void)
{
  const uint64_t size = BUFFERS * U;
  struct engine *e = new_engine ();
  struct fake *f = fake_new (size);
  struct backend b = fake_backend (f, 0);
  g_autofree char *buf = g_malloc0 (size);
  struct conn *c;
  int hold;

  g_assert_cmpint (engine_start (e), ==, 0);
  g_assert_cmpint (conn_open (e, "", &b, &c), ==, 0);
  fake_make_slow (c);
  hold = gate_hold (fake_gate (f), GATE_WRITE, 0, 0);
  for (uint64_t offset = 0; offset < size; offset += U)
    g_assert_cmpint (conn_write (c, "x", 1, offset, 0), ==, 0);
  inject (&inject_memory, 1, 1);
  g_assert_cmpint (conn_read (c, buf, size, 0), ==, ENOMEM);
  g_assert_cmpuint (inject_end (&inject_memory), ==, 1);
  engine_check (e);
  g_assert_cmpint (conn_read (c, buf, size, 0), ==, 0);
  for (uint64_t offset = 0; offset < size; offset += U)
    g_assert_cmpint (buf[offset], ==, 'x');
  gate_release (fake_gate (f), hold);
  conn_close (c);
  conn_free (c);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

/* Writes and flushes, and closes the connection. */
static void
use (struct conn *c, struct fake *f)
{
  fake_make_slow (c);
  g_assert_cmpint (conn_write (c, "x", 1, 0, 0), ==, 0);
  g_assert_cmpint (conn_flush (c, true), ==, 0);
  g_assert_cmpint (fake_data (f)[0], ==, 'x');
  conn_close (c);
  conn_free (c);
}

/* A connection whose contexts lack memory or a thread opens, and its own
 * context does all.
 */
static void
test_contexts (void)
{
  struct engine *e = new_engine ();
  struct fake *f = fake_new (U);
  struct backend b = fake_backend (f, 0);
  struct conn *c;
  unsigned n_logged = 0;

  g_assert_cmpint (engine_start (e), ==, 0);
  fake_serialize (&b);
  n_no_contexts = 0;
  inject (&inject_threads, 1, 1);
  g_assert_cmpint (conn_open (e, "", &b, &c), ==, 0);
  g_assert_cmpuint (inject_end (&inject_threads), ==, 1);
  g_assert_null (c->backend.contexts);
  g_assert_cmpuint (n_no_contexts, ==, ++n_logged);
  use (c, f);
  for (unsigned n = 5; n <= 6; n++) {   /* after those of test_open */
    inject (&inject_memory, n, 1);
    g_assert_cmpint (conn_open (e, "", &b, &c), ==, 0);
    g_assert_cmpuint (inject_end (&inject_memory), >=, n);
    g_assert_null (c->backend.contexts);
    g_assert_cmpuint (n_no_contexts, ==, ++n_logged);
    use (c, f);
  }
  g_assert_cmpint (conn_open (e, "", &b, &c), ==, 0);
  g_assert_nonnull (c->backend.contexts);
  use (c, f);
  g_assert_cmpuint (n_no_contexts, ==, n_logged);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

/* A context that lacks memory is like one that cannot be opened. */
static void
test_context (void)
{
  struct engine *e = new_engine ();
  struct fake *f = fake_new (U);
  struct backend b = fake_backend (f, 0);
  g_autofree char *buf = g_malloc0 (U);
  struct conn *c;

  g_assert_cmpint (engine_start (e), ==, 0);
  fake_serialize (&b);
  g_assert_cmpint (conn_open (e, "", &b, &c), ==, 0);
  fake_make_slow (c);
  inject (&inject_memory, 1, -1);
  g_assert_cmpint (conn_write (c, buf, U, 0, 0), ==, 0);
  gate_wait_ended (fake_gate (f), GATE_WRITE, 0, U, 1);
  g_assert_cmpuint (inject_end (&inject_memory), ==, 1);
  g_assert_cmpuint (fake_n_opened (f), ==, 0);
  use (c, f);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

/* A connection that shares contexts starts no threads. */
static void
test_shared (void)
{
  struct engine *e = new_engine ();
  struct fake *f = fake_new (U);
  struct backend b[2] = { fake_backend (f, 0), fake_backend (f, 1) };
  struct conn *c[2];

  g_assert_cmpint (engine_start (e), ==, 0);
  for (unsigned i = 0; i < 2; i++) {
    fake_serialize (&b[i]);
    inject (&inject_threads, 0, 0);
    g_assert_cmpint (conn_open (e, "", &b[i], &c[i]), ==, 0);
    g_assert_cmpuint (inject_end (&inject_threads), ==, i == 0);
  }
  g_assert_true (c[0]->backend.contexts == c[1]->backend.contexts);
  for (unsigned i = 0; i < 2; i++)
    use (c[i], f);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

static const struct test tests[] = {
  { "/faults/no-memory-for-the-engine", .run = test_new },
  { "/faults/no-thread-at-the-start", .run = test_start },
  { "/faults/no-further-thread", .run = test_refused },
  { "/faults/one-thread-does-all", .run = test_one_thread },
  { "/faults/no-memory-for-a-connection", .run = test_open },
  { "/faults/no-memory-for-pins", .run = test_pins },
  { "/faults/no-contexts", .run = test_contexts },
  { "/faults/no-memory-for-a-context", .run = test_context },
  { "/faults/shared-contexts", .run = test_shared },
};

int
main (int argc, char **argv)
{
  /* GLib keeps no idle thread that it would use instead of a new one. */
  g_thread_pool_set_max_unused_threads (0);
  return run_table (argc, argv, tests, G_N_ELEMENTS (tests));
}
