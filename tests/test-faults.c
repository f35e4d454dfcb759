/* SPDX-License-Identifier: BSD-3-Clause
 *
 * No memory and no threads: the engine says so, leaves nothing behind, and
 * works as soon as there are some.
 *
 * This program has functions of its own in place of those that can fail.  The
 * Makefile has the linker put __wrap_calloc in place of the filter's calloc.
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

#define U UINT64_C (65536)      /* the unit */

enum { BUFFERS = 64, THREADS = 4 };

/* 0: none fails.  N: the Nth call from now on does. */
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

/* GLib calls it, too. */
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

static void
test_new (void)
{
  struct engine_config c = config ();
  struct engine *e;

  for (int n = 1; n <= 2; n++) {        /* the buffers, the statistics */
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

/* Whichever of the workers, or the linger thread, cannot be started. */
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

  g_assert_cmpint (mprotect (e->buffers.slab.data, BUFFERS * U, PROT_READ), ==, 0);
  g_assert_cmpint (engine_start (e), ==, 0);
  g_assert_cmpint (mprotect (e->buffers.slab.data, BUFFERS * U, PROT_READ | PROT_WRITE),
                   ==, 0);
  e->buffers.slab.data[0] = 1;
  engine_stop (e);
  engine_free (e);
}

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
  g_assert_cmpint (n, ==, 5);   /* four were needed */
  conn_close (c);
  conn_free (c);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

/* A read over more buffers than it has pins for without memory. */
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
  hold = fake_hold (f, FAKE_WRITE, 0, 0);
  for (uint64_t offset = 0; offset < size; offset += U)
    g_assert_cmpint (conn_write (c, "x", 1, offset, 0), ==, 0);
  atomic_store (&fail_memory, 1);
  g_assert_cmpint (conn_read (c, buf, size, 0), ==, ENOMEM);
  g_assert_cmpint (atomic_load (&fail_memory), ==, 0);
  engine_check (e);
  g_assert_cmpint (conn_read (c, buf, size, 0), ==, 0);
  for (uint64_t offset = 0; offset < size; offset += U)
    g_assert_cmpint (buf[offset], ==, 'x');
  fake_release (f, hold);
  conn_close (c);
  conn_free (c);
  engine_stop (e);
  engine_free (e);
  fake_free (f);
}

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  /* GLib keeps no thread that would be used again. */
  g_thread_pool_set_max_unused_threads (0);
  g_test_add_func ("/faults/new", test_new);
  g_test_add_func ("/faults/start", test_start);
  g_test_add_func ("/faults/populate", test_populate);
  g_test_add_func ("/faults/open", test_open);
  g_test_add_func ("/faults/pins", test_pins);
  return g_test_run ();
}
