/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The set of extents (filter/extentset.h): its bytes, its order, its bound.
 *
 * An extent is written FROM, TO, TYPE, and the time that it was asked at.
 */
#include "extentset.h"
#include "table.h"

enum { HOLE = 3, DATA = 0, ALWAYS = 0 };

static bool
add (struct extentset *s, uint64_t from, uint64_t to, unsigned type,
     uint64_t asked_ns)
{
  return extentset_add (s, (struct extent) {
      .from = from, .to = to, .type = type, .asked_ns = asked_ns });
}

static void
assert_at (const struct extentset *s, unsigned i, uint64_t from, uint64_t to,
           unsigned type)
{
  g_assert_cmpuint (i, <, s->n);
  g_assert_cmpuint (s->at[i].from, ==, from);
  g_assert_cmpuint (s->at[i].to, ==, to);
  g_assert_cmpuint (s->at[i].type, ==, type);
}

/* Neighbours of one answer and one type are one extent. */
static void
test_join (void)
{
  struct extentset s = { .max = 8 };

  g_assert_true (add (&s, 0, 10, HOLE, 1));
  g_assert_true (add (&s, 10, 20, HOLE, 1));
  g_assert_true (add (&s, 20, 30, DATA, 1));
  g_assert_true (add (&s, 30, 40, DATA, 2));
  g_assert_true (add (&s, 50, 60, DATA, 2));
  g_assert_cmpuint (s.n, ==, 4);
  assert_at (&s, 0, 0, 20, HOLE);
  assert_at (&s, 1, 20, 30, DATA);
  assert_at (&s, 2, 30, 40, DATA);
  extentset_clear (&s);
}

/* New bytes replace old ones, in the middle of an extent and over several. */
static void
test_replace (void)
{
  struct extentset s = { .max = 8 };

  add (&s, 0, 100, HOLE, 1);
  add (&s, 40, 60, DATA, 1);
  g_assert_cmpuint (s.n, ==, 3);
  assert_at (&s, 0, 0, 40, HOLE);
  assert_at (&s, 1, 40, 60, DATA);
  assert_at (&s, 2, 60, 100, HOLE);
  add (&s, 30, 70, HOLE, 2);
  g_assert_cmpuint (s.n, ==, 3);
  assert_at (&s, 0, 0, 30, HOLE);
  assert_at (&s, 1, 30, 70, HOLE);
  assert_at (&s, 2, 70, 100, HOLE);
  extentset_clear (&s);
}

/* A look-up finds the extent of a byte, and the one after it, where they are
 * there and young enough.
 */
static void
test_find (void)
{
  struct extentset s = { .max = 8 };

  add (&s, 10, 20, HOLE, 5);
  add (&s, 20, 30, DATA, 7);
  add (&s, 31, 40, DATA, 7);
  g_assert_cmpint (extentset_find (&s, 9, ALWAYS), ==, -1);
  g_assert_cmpint (extentset_find (&s, 10, 5), ==, 0);
  g_assert_cmpint (extentset_find (&s, 19, 6), ==, -1);
  g_assert_cmpint (extentset_find (&s, 20, ALWAYS), ==, 1);
  g_assert_cmpint (extentset_find (&s, 30, ALWAYS), ==, -1);
  g_assert_cmpint (extentset_find (&s, 40, ALWAYS), ==, -1);
  g_assert_cmpint (extentset_next (&s, 0, 7), ==, 1);
  g_assert_cmpint (extentset_next (&s, 0, 8), ==, -1);
  g_assert_cmpint (extentset_next (&s, 1, ALWAYS), ==, -1);
  g_assert_cmpint (extentset_next (&s, 2, ALWAYS), ==, -1);
  extentset_clear (&s);
}

/* The oldest answer gives way as a whole; extents of the same answer do not. */
static void
test_bound (void)
{
  struct extentset s = { .max = 4 };

  add (&s, 10, 20, HOLE, 2);
  add (&s, 30, 40, HOLE, 1);
  add (&s, 50, 60, HOLE, 1);
  add (&s, 70, 80, HOLE, 3);
  g_assert_true (add (&s, 90, 100, HOLE, 4));
  g_assert_cmpuint (s.n, ==, 3);
  assert_at (&s, 0, 10, 20, HOLE);
  assert_at (&s, 1, 70, 80, HOLE);
  assert_at (&s, 2, 90, 100, HOLE);
  for (unsigned i = 0; i < 3; i++)
    g_assert_true (add (&s, 200 + 20 * i, 210 + 20 * i, HOLE, 5));
  g_assert_true (add (&s, 300, 310, HOLE, 5));
  g_assert_cmpuint (s.n, ==, 4);
  g_assert_false (add (&s, 320, 330, HOLE, 5));
  g_assert_cmpint (extentset_find (&s, 320, ALWAYS), ==, -1);
  g_assert_cmpint (extentset_find (&s, 300, ALWAYS), ==, 3);
  extentset_clear (&s);
}

/* Without room for two pieces the set forgets one, and the dropped bytes too.
 */
static void
test_split_full (void)
{
  struct extentset s = { .max = 1 };

  add (&s, 0, 100, HOLE, 1);
  extentset_drop (&s, 40, 60);
  g_assert_cmpuint (s.n, ==, 1);
  assert_at (&s, 0, 0, 40, HOLE);
  extentset_clear (&s);
}

enum { BYTES = 200, UNKNOWN = 99 };

struct model {
  unsigned type[BYTES];
  uint64_t asked_ns[BYTES];
};

/* All extents of the set are in the model, and in order.  Where the set is not
 * LOSSY all bytes of the model are in the set.
 */
static void
check (const struct extentset *s, const struct model *m, bool lossy)
{
  uint64_t end = 0;

  g_assert_cmpuint (s->n, <=, s->max);
  for (unsigned i = 0; i < s->n; i++) {
    g_assert_cmpuint (s->at[i].from, >=, end);
    g_assert_cmpuint (s->at[i].from, <, s->at[i].to);
    end = s->at[i].to;
  }
  for (unsigned at = 0; at < BYTES; at++) {
    int i = extentset_find (s, at, ALWAYS);

    if (i < 0) {
      g_assert_true (lossy || m->type[at] == UNKNOWN);
      continue;
    }
    g_assert_cmpuint (s->at[i].type, ==, m->type[at]);
    g_assert_cmpuint (s->at[i].asked_ns, ==, m->asked_ns[at]);
  }
}

/* Against a model of one entry per byte. */
static void
test_random (unsigned max)
{
  for (unsigned round = 0; round < 50; round++) {
    struct extentset s = { .max = max };
    struct model m;

    for (unsigned i = 0; i < BYTES; i++)
      m.type[i] = UNKNOWN;
    for (unsigned t = 1; t < 200; t++) {
      uint64_t from = g_test_rand_int_range (0, BYTES);
      uint64_t to = g_test_rand_int_range (from, BYTES + 1);
      unsigned type = g_test_rand_int_range (0, 4);
      bool is_drop = g_test_rand_int_range (0, 4) == 0;

      if (is_drop)
        extentset_drop (&s, from, to);
      else
        add (&s, from, to, type, t / 3);
      for (uint64_t i = from; i < to; i++) {
        m.type[i] = is_drop ? UNKNOWN : type;
        m.asked_ns[i] = t / 3;
      }
      check (&s, &m, max < BYTES);
    }
    extentset_clear (&s);
  }
}

static const struct test tests[] = {
  { "/extents/neighbours-join", .run = test_join },
  { "/extents/new-bytes-replace-old-ones", .run = test_replace },
  { "/extents/look-up", .run = test_find },
  { "/extents/the-oldest-answer-gives-way", .run = test_bound },
  { "/extents/a-full-set-is-split", .run = test_split_full },
  { "/extents/random", .run_each = test_random, .values = { 1, 2, 7, 1000 } },
};

TABLE_MAIN (tests)
