/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/common/cond.h.  A lost signal makes a test hang, and
 * tests/run ends it.
 */
#include <glib.h>

#include "asleep.h"
#include "clock.h"
#include "latency.h"
#include "lock.h"

#define HOUR_NS (3600 * LATENCY_NS_PER_S)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A ring of threads, each of which waits for its turn.  Signals arrive at every
 * moment between the unlock and the sleep, with the mutex and without.
 */
enum { THREADS = 4, ROUNDS = 5000 };
enum { IS_SHARED = 1, IS_TIMED = 2 };

static struct {
  struct cond turned[THREADS];  /* is_shared: all use the first */
  bool is_shared, is_timed;
  /* Under the lock. */
  unsigned turn;
} ring;

static struct cond *
turned_to (unsigned i)
{
  return &ring.turned[ring.is_shared ? 0 : i % THREADS];
}

static void
wake_next (unsigned me)
{
  if (ring.is_shared)
    cond_broadcast (turned_to (me + 1));
  else
    cond_signal (turned_to (me + 1));
}

static void *
run_in_ring (void *vp)
{
  const unsigned me = GPOINTER_TO_UINT (vp);

  for (unsigned i = 0; i < ROUNDS; i++) {
    const bool with_mutex = i % 2;

    pthread_mutex_lock (&lock);
    while (ring.turn % THREADS != me)
      if (ring.is_timed)
        g_assert_true (cond_wait_until (turned_to (me), &lock,
                                        clock_ns () + HOUR_NS));
      else
        cond_wait (turned_to (me), &lock);
    ring.turn++;
    if (with_mutex)
      wake_next (me);
    pthread_mutex_unlock (&lock);
    if (!with_mutex)
      wake_next (me);
  }
  return NULL;
}

static void
test_ring (gconstpointer flags)
{
  pthread_t threads[THREADS];

  ring.turn = 0;
  ring.is_shared = GPOINTER_TO_UINT (flags) & IS_SHARED;
  ring.is_timed = GPOINTER_TO_UINT (flags) & IS_TIMED;
  for (unsigned i = 0; i < THREADS; i++)
    g_assert_cmpint (pthread_create (&threads[i], NULL, run_in_ring,
                                     GUINT_TO_POINTER (i)), ==, 0);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join (threads[i], NULL);
  g_assert_cmpuint (ring.turn, ==, THREADS * ROUNDS);
}

/* A signal wakes any one of the waiters; a broadcast wakes all. */
static struct {
  struct cond came;
  unsigned tokens, taken;       /* under the lock */
} shop;

static void *
take_token (void *vp G_GNUC_UNUSED)
{
  LOCK_IN_SCOPE (&lock);
  while (shop.tokens == 0)
    cond_wait (&shop.came, &lock);
  shop.tokens--;
  shop.taken++;
  return NULL;
}

static void
put_tokens (unsigned n)
{
  LOCK_IN_SCOPE (&lock);
  shop.tokens += n;
}

static unsigned
taken (void)
{
  LOCK_IN_SCOPE (&lock);
  return shop.taken;
}

static void
test_wake (void)
{
  pthread_t threads[THREADS];

  for (unsigned i = 0; i < THREADS; i++)
    g_assert_cmpint (pthread_create (&threads[i], NULL, take_token, NULL),
                     ==, 0);
  while (n_asleep < THREADS)
    g_usleep (1000);
  put_tokens (1);
  cond_signal (&shop.came);
  while (taken () < 1)
    g_usleep (1000);
  g_assert_cmpuint (n_asleep, ==, THREADS - 1);
  put_tokens (THREADS - 1);
  cond_broadcast (&shop.came);
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join (threads[i], NULL);
  g_assert_cmpuint (taken (), ==, THREADS);
}

/* A deadline ends the wait, and the mutex is locked again.  An earlier signal
 * does not end it.
 */
static void
test_deadline (void)
{
  struct cond c = { 0 };
  uint64_t until;

  LOCK_IN_SCOPE (&lock);
  g_assert_false (cond_wait_until (&c, &lock, 0));
  g_assert_cmpint (pthread_mutex_trylock (&lock), ==, EBUSY);
  cond_signal (&c);
  cond_broadcast (&c);
  until = clock_ns () + 20000000;
  while (cond_wait_until (&c, &lock, until))
    ;
  g_assert_cmpuint (clock_ns (), >=, until);
  g_assert_cmpint (pthread_mutex_trylock (&lock), ==, EBUSY);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_data_func ("/cond/ring/signal", GUINT_TO_POINTER (0), test_ring);
  g_test_add_data_func ("/cond/ring/broadcast", GUINT_TO_POINTER (IS_SHARED),
                        test_ring);
  g_test_add_data_func ("/cond/ring/signal-until", GUINT_TO_POINTER (IS_TIMED),
                        test_ring);
  g_test_add_data_func ("/cond/ring/broadcast-until",
                        GUINT_TO_POINTER (IS_SHARED | IS_TIMED), test_ring);
  g_test_add_func ("/cond/wake", test_wake);
  g_test_add_func ("/cond/deadline", test_deadline);
  return g_test_run ();
}
