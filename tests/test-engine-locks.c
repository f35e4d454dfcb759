/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The ranks of the engine's locks (lock.h), which debug builds assert.
 *
 * Each case takes locks in an order that filter/README forbids, in a process of
 * its own.  The process must abort, although no other thread takes a lock.
 * All other tests of the engine show that the allowed orders pass.
 */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend.h"
#include "dispatch.h"
#include "world.h"

static void
engine_in_streams (struct world *w)
{
  LOCK_IN_SCOPE (&w->c[0]->streams_lock);
  LOCK_IN_SCOPE (&w->e->lock);
}

static void
streams_in_engine (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  LOCK_IN_SCOPE (&w->c[0]->streams_lock);
}

static void
engine_in_extents (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->extents.lock);
  LOCK_IN_SCOPE (&w->e->lock);
}

static void
extents_in_leaf (struct world *w)
{
  LOCK_IN_SCOPE (&w->c[0]->wrote_lock);
  LOCK_IN_SCOPE (&w->e->extents.lock);
}

static void
pool_in_leaf (struct world *w)
{
  LOCK_IN_SCOPE (&w->c[0]->wrote_lock);
  pool_idle (w->e->pool);
}

static void
wait_in_extents (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->extents.lock);
  cond_wait_until (&w->e->extents.answered, lock_alone (&w->e->lock), 1);
}

static void
call_in_engine (struct world *w)
{
  LOCK_IN_SCOPE (&w->e->lock);
  backend_flush (&w->c[0]->backend);
}

static void
call_in_leaf (struct world *w)
{
  LOCK_IN_SCOPE (&w->c[0]->wrote_lock);
  backend_flush (&w->c[0]->backend);
}

static void (*const orders[]) (struct world *) = {
  engine_in_streams, streams_in_engine, engine_in_extents, extents_in_leaf,
  pool_in_leaf, wait_in_extents, call_in_engine, call_in_leaf
};

static void
test_forbidden (struct world *w)
{
  pid_t pid;
  int status;

#ifndef ASYNCPOOL_DEBUG
  g_test_skip ("only debug builds check the order of locks");
  return;
#endif
  open_writeback (w, 8 * U, 8, 1);
  pid = fork ();
  g_assert_cmpint (pid, !=, -1);
  if (pid == 0) {
    if (freopen ("/dev/null", "w", stderr) == NULL)
      _exit (2);
    orders[w->arg] (w);
    _exit (0);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_true (WIFSIGNALED (status) && WTERMSIG (status) == SIGABRT);
}

static const struct test tests[] = {
  { "locks/engine-in-streams", test_forbidden, 0, POOL_ONLY },
  { "locks/streams-in-engine", test_forbidden, 1, POOL_ONLY },
  { "locks/engine-in-extents", test_forbidden, 2, POOL_ONLY },
  { "locks/extents-in-leaf", test_forbidden, 3, POOL_ONLY },
  { "locks/pool-in-leaf", test_forbidden, 4, POOL_ONLY },
  { "locks/wait-in-extents", test_forbidden, 5, POOL_ONLY },
  { "locks/call-in-engine", test_forbidden, 6, POOL_ONLY },
  { "locks/call-in-leaf", test_forbidden, 7, POOL_ONLY },
};

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  tests_add (tests, G_N_ELEMENTS (tests));
  return tests_run ();
}
