/* SPDX-License-Identifier: BSD-3-Clause */

/* Calls that fail when a test says so, and memory that is missing.
 *
 * This header defines GLib's g_try_malloc functions.  So the filter, which is
 * linked with the same program, gets them in place of GLib's.  The Makefile
 * lets the linker put __wrap_calloc in place of the filter's calloc.
 *
 * Not its job: operations of the plugin (gate.h).
 */
#ifndef TESTS_INJECT_H
#define TESTS_INJECT_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <glib.h>

/* Zeroed memory: no call fails. */
struct injector {
  atomic_uint calls;            /* since inject */
  atomic_uint from, to;         /* these fail, the first is 1; from 0: none */
};

/* Counts from now on.  TIMES calls from the Nth on fail; -1: without an end. */
G_GNUC_UNUSED static void
inject (struct injector *i, unsigned n, int times)
{
  atomic_store (&i->from, 0);
  atomic_store (&i->calls, 0);
  atomic_store (&i->to, times < 0 ? UINT_MAX : n + times - 1);
  atomic_store (&i->from, n);
}

/* No call fails any more.  Returns how many there were. */
G_GNUC_UNUSED static unsigned
inject_end (struct injector *i)
{
  atomic_store (&i->from, 0);
  return atomic_load (&i->calls);
}

G_GNUC_UNUSED static bool
inject_fails (struct injector *i)
{
  unsigned n = atomic_fetch_add (&i->calls, 1) + 1;
  unsigned from = atomic_load (&i->from);

  return from > 0 && n >= from && n <= atomic_load (&i->to);
}

static struct injector inject_memory;

extern void *__real_calloc (size_t n, size_t size);
extern void *__wrap_calloc (size_t n, size_t size);

void *
__wrap_calloc (size_t n, size_t size)
{
  return inject_fails (&inject_memory) ? NULL : __real_calloc (n, size);
}

gpointer
g_try_malloc_n (gsize n, gsize size)
{
  return __wrap_calloc (n, size);
}

gpointer
g_try_malloc0_n (gsize n, gsize size)
{
  return __wrap_calloc (n, size);
}

gpointer
g_try_malloc (gsize size)
{
  return __wrap_calloc (1, size);
}

gpointer
g_try_malloc0 (gsize size)
{
  return __wrap_calloc (1, size);
}

gpointer
g_try_realloc_n (gpointer at, gsize n, gsize size)
{
  return inject_fails (&inject_memory) ? NULL : g_realloc_n (at, n, size);
}

#endif /* TESTS_INJECT_H */
