/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The read-ahead window: how many units a connection may be ahead of its reads.
 *
 * It starts at 4 units.  It grows, up to the caller's share, when a read waits
 * for a prefetch that was planned too late, and an eighth of the window was
 * read meanwhile.  Streams that are read side by side divide the share.
 */
#include "reader.h"

/* The window doubles up to the share, whatever that is. */
static void
test_doubles (unsigned share)
{
  struct reader c = { 0 };
  uint32_t last = WINDOW_MIN, quarters_read = 0;        /* of a unit */
  struct stream *s = NULL;

  for (unsigned i = 0; i < 4 * 4000; i++) {
    s = reader_read (&c, i * (U / 4), U / 4);
    if (i == 0)
      continue;
    quarters_read++;
    (void) reader_plan (&c, s, share);
    g_assert_cmpuint (s->ahead, <=, (s->end / U + share) * U);
    if (c.t.window != last) {
      g_assert_true (c.t.window == 2 * last || c.t.window == 4 * last);
      g_assert_cmpuint (quarters_read, >=, c.t.window / 16 * 4);
      quarters_read = 0;
    }
    last = c.t.window;
  }
  g_assert_cmpuint (s->ahead, ==, (s->end / U + share) * U);
}

/* A client that never has to wait keeps the small window. */
static void
test_no_wait (void)
{
  struct reader c = { 0 };

  reader_read (&c, 0, U);
  for (unsigned i = 1; i < 100; i++) {
    c.has_hits = i != 50;
    (void) reader_read_ahead (&c, i * U, U, 64);
    g_assert_cmpuint (c.t.window, ==,
                      i < 50 ? WINDOW_MIN : 4 * WINDOW_MIN);
  }
}

/* How often the window doubles for a read that waits for its prefetch, by the
 * times from the plan to the read, and in the plugin.
 */
static void
test_wait (void)
{
  static const struct { uint64_t ahead_ns, plugin_ns; unsigned doublings; }
  waits[] = {
    { 0, 1000, 2 }, { 999, 1000, 2 }, { 1000, 1000, 1 }, { 1999, 1000, 1 },
    { 2000, 1000, 0 }, { 1000000, 1000, 0 }
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (waits); i++) {
    struct reader c = { .t.window = 64, .has_hits = true };
    struct stream *s = reader_run (&c, 0, 32);
    struct stream_late late = { 0 };

    stream_waited (&late, 5000, 5000 + waits[i].ahead_ns, waits[i].plugin_ns);
    stream_answered (&c.t, U, &late);
    (void) reader_plan (&c, s, 1024);
    g_assert_cmpuint (c.t.window, ==, 64u << waits[i].doublings);
  }
}

/* Of several waits the one with the most doublings counts.  A prefetch may have
 * been planned after the read came.
 */
static void
test_waits (void)
{
  struct stream_late late = { 0 };

  stream_waited (&late, 10, 5000, 1000);
  g_assert_cmpuint (late.doublings, ==, 0);
  stream_waited (&late, 4000, 5000, 1000);
  g_assert_cmpuint (late.doublings, ==, 1);
  g_assert_cmpuint (late.planned_ns, ==, 4000);
  stream_waited (&late, 6000, 5000, 1000);
  stream_waited (&late, 4300, 5000, 1000);
  g_assert_cmpuint (late.doublings, ==, 2);
  g_assert_cmpuint (late.planned_ns, ==, 6000);
}

/* Reads that wait for prefetches planned before the window grew do not let it
 * grow again.
 */
static void
test_grows_once (void)
{
  struct reader c = { .t.window = 16, .has_hits = true };
  struct stream *s = reader_run (&c, 0, 8);
  struct stream_late before = { 0 }, after = { 0 };

  stream_waited (&before, 1, c.now_ns, 1000);
  stream_answered (&c.t, 0, &before);
  (void) reader_plan (&c, s, 1024);
  g_assert_cmpuint (c.t.window, ==, 64);
  stream_missed (&after, c.t.now_ns);
  for (unsigned i = 8; i < 100; i++) {
    s = reader_read (&c, i * U, U);
    stream_answered (&c.t, 0, &before);
    (void) reader_plan (&c, s, 1024);
    g_assert_cmpuint (c.t.window, ==, 64);
  }
  stream_answered (&c.t, 0, &after);
  (void) reader_plan (&c, s, 1024);
  g_assert_cmpuint (c.t.window, ==, 256);
}

/* The window is as large as the share, and a read waits.  The caller learns
 * that a larger share may be of use, whatever the read waits for.  The window
 * grows as soon as it has a larger share.
 */
static void
test_larger_share (void)
{
  struct reader c = { .t.window = 64, .has_hits = true };
  struct stream *s = reader_run (&c, 0, 64);
  struct stream_late late = { 0 };

  stream_waited (&late, 0, 1000000, 1000);
  stream_answered (&c.t, U, &late);
  (void) reader_plan (&c, s, 65);
  g_assert_false (c.t.wants_more);
  stream_answered (&c.t, U, &late);
  (void) reader_plan (&c, s, 64);
  g_assert_true (c.t.wants_more);
  (void) reader_plan (&c, s, 1024);
  g_assert_cmpuint (c.t.window, ==, 64);
  stream_missed (&late, c.now_ns);
  stream_answered (&c.t, U, &late);
  (void) reader_plan (&c, s, 64);
  g_assert_true (c.t.wants_more);
  s = reader_run (&c, 64 * U, 1);
  (void) reader_plan (&c, s, 64);
  g_assert_false (c.t.wants_more);
  (void) reader_plan (&c, s, 65);
  g_assert_cmpuint (c.t.window, ==, 128);
  (void) reader_plan (&c, s, 1024);
  g_assert_cmpuint (c.t.window, ==, 128);
  /* If the share is at most half of the window, a wait says nothing about the
   * window.
   */
  stream_missed (&late, c.now_ns);
  stream_answered (&c.t, 0, &late);
  (void) reader_plan (&c, s, 64);
  s = reader_run (&c, 65 * U, 32);
  (void) reader_plan (&c, s, 1024);
  g_assert_cmpuint (c.t.window, ==, 128);
}

/* A share of no units allows no prefetch. */
static void
test_no_share (void)
{
  struct reader c = { 0 };
  struct stream *s = reader_run (&c, 0, 2);
  struct stream_range r;

  assert_empty (reader_plan (&c, s, 0));
  r = reader_plan (&c, s, 8);
  g_assert_cmpuint (r.from, <, r.to);
}

/* The plans of one stream: each byte ahead of it once, in whole units, no byte
 * beyond the end of the device.
 */
static void
check_plans (uint32_t count, uint64_t size)
{
  struct reader c = { 0 };
  uint64_t offset = 777, done = 0;

  while (offset < size) {
    uint32_t n = MIN (count, size - offset);
    struct stream *s = reader_read (&c, offset, n);
    struct stream_range r;

    offset += n;
    if (!s)
      continue;
    /* Further than a read goes: else the last read overtakes the plans. */
    r = stream_plan (&c.t, s, U, count / U + g_test_rand_int_range (1, 70),
                     size, c.now_ns);
    if (r.from == r.to)
      continue;
    g_assert_cmpuint (r.from, <, r.to);
    g_assert_cmpuint (r.to, <=, size);
    g_assert_cmpuint (r.from % U, ==, 0);
    g_assert_true (r.to % U == 0 || r.to == size);
    g_assert_cmpuint (r.from, >=, offset / U * U);
    if (done > offset)
      g_assert_cmpuint (r.from, ==, done);
    else
      g_assert_cmpuint (r.from, ==, MAX (done, offset / U * U));
    done = r.to;
  }
  if (size / count > 4)
    g_assert_cmpuint (done, ==, size);
}

static void
test_plans (void)
{
  static const uint32_t counts[] = {
    512, 4096, 65536, 100000, 128 * KIB, MIB + 1
  };
  static const uint64_t sizes[] = { 16 * MIB, 16 * MIB + 512, 16 * MIB - 1 };

  for (unsigned c = 0; c < G_N_ELEMENTS (counts); c++)
    for (unsigned z = 0; z < G_N_ELEMENTS (sizes); z++)
      check_plans (counts[c], sizes[z]);
}

/* Streams that are read side by side: a stream gets the share, less the units
 * that the other one is ahead, but that one counts for half of it at most.
 */
static void
test_side_by_side (void)
{
  struct reader c = { .t.window = 64 };
  struct stream *a, *b;
  uint64_t a_ns;

  reader_read (&c, 0, U);
  reader_read (&c, 1000 * MIB, U);
  a = reader_read (&c, U, U);
  a_ns = c.now_ns;
  assert_length (reader_plan (&c, a, 64), 64 * U);
  b = reader_read (&c, 1000 * MIB + U, U);
  assert_length (reader_plan (&c, b, 64), 32 * U);
  stream_cut (a, a->end + 3 * U);
  assert_length (reader_plan (&c, b, 64), (64 - 3 - 32) * U);
  /* A stream has no part from the moment that it is idle. */
  stream_cut (a, a->end + 40 * U);
  stream_cut (b, b->end);
  c.now_ns = a_ns + STREAM_IDLE_NS - 1;
  assert_length (reader_plan (&c, b, 64), 61 * U);
  stream_cut (b, b->end);
  c.now_ns = a_ns + STREAM_IDLE_NS;
  assert_length (reader_plan (&c, b, 64), 64 * U);
}

/* Two files are read in turns of 32 units: both keep their prefetched data. */
static void
test_in_turn (void)
{
  struct reader c = { 0 };
  unsigned misses = 0;

  for (unsigned turn = 0; turn < 20; turn++)
    for (unsigned i = 0; i < 32; i++) {
      uint64_t offset = turn % 2 * 1000 * MIB + (turn / 2 * 32 + i) * U;
      struct stream *s = reader_read (&c, offset, U);

      if (!s)
        continue;
      misses += turn >= 4 && s->ahead < s->end;
      (void) reader_plan (&c, s, 32);
    }
  g_assert_cmpuint (stream_active (&c.t, c.now_ns), ==, 2);
  g_assert_cmpuint (misses, <=, 4);
}

/* There was no buffer for the end of a plan: that part is planned again. */
static void
test_cut (unsigned count)
{
  struct reader c = { 0 };
  struct stream *s;
  struct stream_range r, again;

  reader_read (&c, 0, count);
  s = reader_read (&c, count, count);
  r = reader_plan (&c, s, 8);
  g_assert_cmpuint (r.to - r.from, >=, 4 * U);
  stream_cut (s, r.from + 2 * U);       /* there were two buffers */
  again = reader_plan (&c, s, 8);
  g_assert_cmpuint (again.from, ==, r.from + 2 * U);
  g_assert_cmpuint (again.to, >=, r.to);
  stream_cut (s, again.to);             /* there were buffers for all of it */
  assert_empty (reader_plan (&c, s, 8));
  stream_cut (s, r.from);               /* there was no buffer */
  again = reader_plan (&c, s, 8);
  g_assert_cmpuint (again.from, <, again.to);
  g_assert_cmpuint (again.from, ==, r.from);
}

/* Evicted data is planned again, by the stream that will read it. */
static void
test_evicted (void)
{
  struct reader c = { .t.window = 8 };
  struct stream *s = reader_run (&c, 0, 16);

  g_assert_cmpuint (reader_plan (&c, s, 8).to, ==, 24 * U);
  stream_lost (&c.t, 20 * U);
  assert_range (reader_plan (&c, s, 8), 20 * U, 24 * U);
  stream_lost (&c.t, 15 * U);           /* was read; there may be more */
  assert_range (reader_plan (&c, s, 8), 16 * U, 24 * U);
}

/* Known zeroes do not count for the window, also where the stream is amid
 * them.
 */
static void
test_zeroes (void)
{
  struct reader c = { .t.window = 8 };
  struct stream *s = reader_run (&c, 0, 16);

  s->zeroes = 5 * U;
  assert_range (reader_plan (&c, s, 8), 16 * U, 29 * U);
  s->zeroes = 0;
  stream_skip_ahead (s, 20 * U);        /* they are planned already */
  g_assert_cmpuint (s->ahead, ==, 29 * U);
  stream_skip_ahead (s, 1000 * U);
  s->zeroes = 976 * U;
  assert_empty (reader_plan (&c, s, 8));
  s->zeroes = 980 * U;
  assert_range (reader_plan (&c, s, 8), 1000 * U, 1004 * U);
}

/* A window is divided into more operations first, then into larger ones.  A
 * plan ends where an operation does.
 */
static void
test_operations (void)
{
  static const struct { uint32_t window, units; } steps[] = {
    { 4, 1 }, { 8, 1 }, { 9, 2 }, { 16, 2 }, { 32, 4 }, { 64, 8 }, { 1000, 8 }
  };
  struct reader c = { .t.most_units = 8, .t.operations = 8 };
  struct stream *s = reader_run (&c, 0, 3);
  struct stream_range r;

  c.has_hits = true;
  for (unsigned i = 0; i < G_N_ELEMENTS (steps); i++) {
    c.t.window = steps[i].window;
    g_assert_cmpuint (stream_operation (&c.t), ==, steps[i].units);
  }
  c.t.window = 128;
  assert_range (reader_plan (&c, s, 128), 3 * U, 128 * U);
  for (unsigned i = 3; i < 7; i++)
    assert_empty (reader_read_ahead (&c, i * U, U, 128));
  assert_range (reader_read_ahead (&c, 7 * U, U, 128), 128 * U, 136 * U);
  /* With a small share, operations are so small that two fit. */
  stream_cut (s, s->end);
  r = reader_plan (&c, s, 5);
  assert_range (r, 8 * U, 12 * U);
}

static const struct test tests[] = {
  { "/window/doubles-up-to-the-share", .run_each = test_doubles,
    .values = { 1, 3, 4, 5, 16, 24, 64, 1000 } },
  { "/window/stays-small-where-no-read-waits", .run = test_no_wait },
  { "/window/grows-as-far-as-it-was-too-small", .run = test_wait },
  { "/window/the-worst-wait-counts", .run = test_waits },
  { "/window/grows-once-for-what-was-planned", .run = test_grows_once },
  { "/window/grows-when-the-share-does", .run = test_larger_share },
  { "/window/no-share-no-prefetch", .run = test_no_share },
  { "/window/plans-have-each-byte-once", .run = test_plans },
  { "/window/streams-side-by-side-divide-it", .run = test_side_by_side },
  { "/window/streams-in-turn-keep-their-data", .run = test_in_turn },
  { "/window/a-cut-plan-is-planned-again/read-size", .run_each = test_cut,
    .values = { 4096, U } },
  { "/window/evicted-data-is-planned-again", .run = test_evicted },
  { "/window/zeroes-do-not-count", .run = test_zeroes },
  { "/window/is-divided-into-operations", .run = test_operations },
};

TABLE_MAIN (tests)
