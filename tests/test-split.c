/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Cutting a request into pieces for several workers (filter/split.h).
 *
 * The pieces cover the request in order, without gaps.  The cuts are at
 * multiples of the unit, and the pieces' numbers of units differ by one at
 * most.
 */
#include "split.h"
#include "table.h"

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)

/* A request touches a unit if it has a byte of it. */
static void
test_units (void)
{
  g_assert_cmpuint (split_max (512, 0, 77), ==, 0);
  g_assert_cmpuint (split_max (512, 1, 511), ==, 1);
  g_assert_cmpuint (split_max (512, 2, 511), ==, 2);
  g_assert_cmpuint (split_max (512, 1024, 512), ==, 2);
}

static void
check_pieces (uint32_t unit, uint32_t count, uint64_t offset, uint32_t n)
{
  uint64_t next = offset, units = split_max (unit, count, offset);

  for (uint32_t i = 0; i < n; i++) {
    struct split_piece p = split_piece (unit, count, offset, n, i);
    uint64_t touched = split_max (unit, p.count, p.offset);

    g_assert_cmpuint (p.offset, ==, next);
    g_assert_cmpuint (p.count, >, 0);
    if (i > 0)
      g_assert_cmpuint (p.offset % unit, ==, 0);
    g_assert_cmpuint (touched, >=, units / n);
    g_assert_cmpuint (touched, <=, units / n + 1);
    next += p.count;
  }
  g_assert_cmpuint (next, ==, offset + count);
}

/* Requests of random sizes, near these offsets, in all numbers of pieces. */
static void
test_random (void)
{
  static const uint32_t units[] = { 512, 64 * KIB, 128 * KIB, 1 << 30 };
  static const uint64_t bases[] = {
    0, 1, 5 * MIB - 1, UINT64_C (1) << 40, INT64_MAX - 64 * MIB
  };

  for (unsigned u = 0; u < G_N_ELEMENTS (units); u++)
    for (unsigned b = 0; b < G_N_ELEMENTS (bases); b++)
      for (unsigned i = 0; i < 50; i++) {
        uint64_t largest = i % 2 ? 32 * MIB : 4 * MIN (units[u], MIB);
        uint32_t count = g_test_rand_int_range (1, largest);
        uint64_t offset = bases[b] + g_test_rand_int_range (0, MIB);
        uint32_t max = split_max (units[u], count, offset);

        for (uint32_t n = 1; n <= MIN (max, 70); n++)
          check_pieces (units[u], count, offset, n);
        check_pieces (units[u], count, offset, max);
      }
}

/* The largest request, from the start of a unit and from its end. */
static void
test_largest (void)
{
  for (uint32_t n = 1; n < 70; n++) {
    check_pieces (64 * KIB, UINT32_MAX, 0, n);
    check_pieces (64 * KIB, UINT32_MAX, 64 * KIB - 1, n);
  }
}

static const struct test tests[] = {
  { "/split/counts-the-units", .run = test_units },
  { "/split/pieces-are-alike", .run = test_random },
  { "/split/pieces-of-the-largest-request", .run = test_largest },
};

TABLE_MAIN (tests)
