/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory or threads are missing: the engine returns an error and leaves nothing
 * behind, and it works once they are there.
 *
 * This program replaces the functions that can fail: it defines GLib's
 * g_try_malloc functions and pthread_create itself, and the Makefile lets the
 * linker put __wrap_calloc in place of the filter's calloc.
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
#include "table.h"

#define U UINT64_C (65536)      /* the unit */

enum { BUFFERS = 64, THREADS = 4 };

/* 0: no call fails.  N: the Nth call from now on fails. */
static atomic_int fail_memory, fail_thread;

static bool
fails (atomic_int *n)
{
  return atomic_load (n) > 0 && atomic_fetch_sub (n, 1) == 1;
}

extern void *__real_calloc (size_t n, size_t size);
extern void *__wrap_calloc (size_t n, size_t size);

void *
__wrap_calloc (size_t n, size_t size)
{
  return fails (&fail_memory) ? NULL : __real_calloc (n, size);
}

gpointer
g_try_malloc_n (gsize n, gsize size)
{
  return __wrap_calloc (n, size);
}

gpointer
g_try_malloc0_n (gsize n, gsize size)
{
  return g_try_malloc_n (n, size);
}

gpointer
g_try_malloc (gsize size)
{
  return g_try_malloc_n (1, size);
}

gpointer
g_try_malloc0 (gsize size)
{
  return g_try_malloc_n (1, size);
}

/* Visible, as GLib calls it too. */
__attribute__ ((visibility ("default"))) int
pthread_create (pthread_t *id, const pthread_attr_t *attr,
                void *(*run) (void *), void *arg)
{
  int (*real) (pthread_t *, const pthread_attr_t *, void *(*) (void *), void *);

  *(void **) &real = dlsym (RTLD_NEXT, "pthread_create");
  return fails (&fail_thread) ? EAGAIN : real (id, attr, run, arg);
}

static struct engine_config
config (void)
{
  return (struct engine_config) {
    .buffers = BUFFERS, .buffer_size = U, .threads = THREADS,
    .write = WRITE_BEHIND, .read = READ_DIRECT,
    .linger_ns = UINT64_C (3600000000000), .others_ns = UINT64_C (3600000000000)
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

/* No memory for the buffers, for the statistics, or for a slab of terabytes. */
static void
test_new (void)
{
  struct engine_config c = config ();
  struct engine *e;

  for (int n = 1; n <= 2; n++) {
    atomic_store (&fail_memory, n);
    g_assert_cmpint (engine_new (&c, &e), ==, ENOMEM);
    g_assert_cmpint (atomic_load (&fail_memory), ==, 0);
  }
  atomic_store (&fail_memory, 3);
  engine_free (new_engine ());
  g_assert_cmpint (atomic_exchange (&fail_memory, 0), ==, 1);
  c.buffers = UINT_MAX;
  c.buffer_size = 1U << 31;
  g_assert_cmpint (engine_new (&c, &e), ==, ENOMEM);
}

/* One of the workers, or the linger thread, does not start. */
static void
test_start (void)
{
  for (int n = 1; n <= THREADS + 1; n++) {
    struct engine *e = new_engine ();

    g_assert_cmpint (pool_try_threads (THREADS + 1), ==, 0);
    atomic_store (&fail_thread, n);
    g_assert_cmpint (pool_try_threads (THREADS + 1), ==, EAGAIN);
    g_assert_cmpint (atomic_load (&fail_thread), ==, 0);
    atomic_store (&fail_thread, n);
    g_assert_cmpint (engine_start (e), ==, EAGAIN);
    g_assert_cmpint (atomic_load (&fail_thread), ==, 0);
    g_assert_null (e->pool);
    g_assert_cmpint (engine_start (e), ==, 0);
    engine_stop (e);
    engine_free (e);
  }
}

/* The kernel refuses to populate the slab: its pages come at first use. */
static void
test_populate (void)
{
  struct engine *e = new_engine ();
  char *slab = e->buffers.slab.data;

  g_assert_cmpint (mprotect (slab, BUFFERS * U, PROT_READ), ==, 0);
  g_assert_cmpint (engine_start (e), ==, 0);
  g_assert_cmpint (mprotect (slab, BUFFERS * U, PROT_READ | PROT_WRITE), ==, 0);
  slab[0] = 1;
  engine_stop (e);
  engine_free (e);
}

/* A connection that lacks one of its allocations does not open. */
static void
test_open (void)
{
  struct engine *e = new_engine ();
  struct fake *f = fake_new (U);
  struct backend b = fake_backend (f, 0);
  struct conn *c;
  int n = 1;

  g_assert_cmpint (engine_start (e), ==, 0);
  for (;; n++) {
    atomic_store (&fail_memory, n);
    if (conn_open (e, "name", &b, &c) == 0)
      break;
    g_assert_cmpint (atomic_load (&fail_memory), ==, 0);
    g_assert_cmpuint (e->conns.length + e->devices.length + e->exports.length,
                      ==, 0);
  }
  atomic_store (&fail_memory, 0);
  g_assert_cmpint (n, ==, 5);   /* it needs four */
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
  atomic_store (&fail_memory, 1);
  g_assert_cmpint (conn_read (c, buf, size, 0), ==, ENOMEM);
  g_assert_cmpint (atomic_load (&fail_memory), ==, 0);
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

static const struct test tests[] = {
  { "/faults/no-memory-for-the-engine", .run = test_new },
  { "/faults/no-thread-at-the-start", .run = test_start },
  { "/faults/no-pages-at-the-start", .run = test_populate },
  { "/faults/no-memory-for-a-connection", .run = test_open },
  { "/faults/no-memory-for-pins", .run = test_pins },
};

int
main (int argc, char **argv)
{
  /* GLib keeps no idle thread that it would use instead of a new one. */
  g_thread_pool_set_max_unused_threads (0);
  return run_table (argc, argv, tests, G_N_ELEMENTS (tests));
}
