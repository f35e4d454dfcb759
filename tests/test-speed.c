/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Two estimates that decide whether other threads can help (filter/speed.h).
 *
 * The speed of a device: it waits, or it copies.  The first operation decides.
 * After that, a device that copies needs several slow operations among few fast
 * ones to count as one that waits.
 *
 * The depth of a client: the peak of its requests in flight, in two epochs.
 */
#include <stdbool.h>

#include "speed.h"
#include "table.h"

#define MIB UINT32_C (1048576)

/* The speed of a device. */

/* The longest operation that counts as a copy of 1 MiB, and how much longer a
 * slow one takes.
 */
#define COPY_NS (SPEED_COPY_NS + MIB)
#define WAIT_NS 5000

/* N_SLOW operations, then N_FAST operations. */
static void
note (struct speed *s, unsigned n_slow, unsigned n_fast)
{
  for (unsigned i = 0; i < n_slow; i++)
    speed_note (s, COPY_NS + WAIT_NS, MIB);
  for (unsigned i = 0; i < n_fast; i++)
    speed_note (s, COPY_NS, MIB);
}

static void
test_first (void)
{
  struct speed s = { 0 };

  g_assert_cmpuint (speed_wait_ns (&s), ==, 0); /* is not known */
  note (&s, 1, 0);
  g_assert_cmpuint (speed_wait_ns (&s), ==, WAIT_NS);
  speed_note (&s, COPY_NS + WAIT_NS + 800, MIB);
  g_assert_cmpuint (speed_wait_ns (&s), ==, WAIT_NS + 100);
}

/* A device that waits has fast operations.  Only a long run of them changes the
 * estimate.
 */
static void
test_fast_run (void)
{
  struct speed s = { 0 };

  note (&s, 2, SPEED_SLOW);
  g_assert_cmpuint (speed_wait_ns (&s), >, 0);
  note (&s, 0, 1);
  g_assert_cmpuint (speed_wait_ns (&s), ==, 0);
  note (&s, 1, 0);
  g_assert_cmpuint (speed_wait_ns (&s), ==, WAIT_NS);
}

/* One operation in N is slow: up to SPEED_SLOW the device waits. */
static void
test_one_slow (unsigned n)
{
  bool waits = n <= SPEED_SLOW;
  struct speed s = { 0 };

  note (&s, 0, 1);
  for (unsigned i = 0; i < 400; i++) {
    note (&s, 1, 0);
    if (!waits || i >= 200)
      g_assert_cmpint (speed_wait_ns (&s) > 0, ==, waits);
    note (&s, 0, n - 1);
    if (!waits || i >= 200)
      g_assert_cmpint (speed_wait_ns (&s) > 0, ==, waits);
  }
}

/* One operation in N is fast: the device waits. */
static void
test_one_fast (unsigned n)
{
  struct speed s = { 0 };

  note (&s, 0, 1);
  note (&s, 2 * 4, 0);
  for (unsigned i = 0; i < 100; i++) {
    note (&s, n - 1, 1);
    g_assert_cmpuint (speed_wait_ns (&s), ==, WAIT_NS);
  }
}

/* The depth of a client. */

enum { EPOCH_NS = 1000 };

/* N requests that are in flight together, and end. */
static void
burst (struct depth *d, unsigned n, uint64_t now_ns)
{
  for (unsigned i = 0; i < n; i++)
    depth_begin (d, 1, now_ns, EPOCH_NS);
  for (unsigned i = 0; i < n; i++)
    depth_end (d, 1);
}

/* The peak lasts for the epoch and the next one.  So a client counts as deep
 * between its bursts.
 */
static void
test_peak (void)
{
  uint64_t now_ns = 1000000;
  struct depth d = { 0 };

  depth_begin (&d, 1, now_ns, EPOCH_NS);
  g_assert_cmpuint (depth_peak (&d), ==, 1);
  for (unsigned i = 0; i < 7; i++)
    depth_begin (&d, 1, now_ns + 1, EPOCH_NS);
  g_assert_cmpuint (depth_peak (&d), ==, 8);
  for (unsigned i = 0; i < 8; i++)
    depth_end (&d, 1);
  g_assert_cmpuint (depth_peak (&d), ==, 8);

  now_ns += EPOCH_NS + 2;
  depth_begin (&d, 1, now_ns, EPOCH_NS);
  g_assert_cmpuint (depth_peak (&d), ==, 8);
  depth_begin (&d, 1, now_ns, EPOCH_NS);
  depth_end (&d, 1);
  depth_end (&d, 1);

  now_ns += EPOCH_NS + 2;
  depth_begin (&d, 1, now_ns, EPOCH_NS);
  g_assert_cmpuint (depth_peak (&d), ==, 2);
  depth_end (&d, 1);

  burst (&d, 5, now_ns);
  g_assert_cmpuint (depth_peak (&d), ==, 5);
}

/* After a pause of two epochs or more, nothing is left of the peak. */
static void
test_pause (void)
{
  uint64_t now_ns = 1000000;
  struct depth d = { 0 };

  burst (&d, 5, now_ns);
  g_assert_cmpuint (depth_peak (&d), ==, 5);
  depth_begin (&d, 1, now_ns + 10 * EPOCH_NS, EPOCH_NS);
  g_assert_cmpuint (depth_peak (&d), ==, 1);
  depth_end (&d, 1);
}

static const struct test tests[] = {
  { "/speed/the-first-operation-decides", .run = test_first },
  { "/speed/a-run-of-fast-operations-is-a-copy", .run = test_fast_run },
  { "/speed/one-slow-in", .run_each = test_one_slow,
    .values = { 2, 4, 8, 16, 32, 64, 128, 256 } },
  { "/speed/one-fast-in", .run_each = test_one_fast,
    .values = { 2, 4, 8, 16, 32, 64, 128, 256 } },
  { "/depth/the-peak-lasts-two-epochs", .run = test_peak },
  { "/depth/a-pause-clears-the-peak", .run = test_pause },
};

TABLE_MAIN (tests)
