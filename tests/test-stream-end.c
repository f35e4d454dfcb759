/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The end of a stream: where it is likely, and what becomes of the data that
 * was prefetched beyond it.
 *
 * A stream is prefetched no further than seven of eight earlier streams went,
 * of those that came as far.  The data that is prefetched for an ended stream
 * serves a later one that begins there, or gives way to it.
 */
#include "reader.h"

/* The likely end. */

/* Earlier streams had these lengths.  The latest has been read so far, and may
 * be prefetched so far ahead.  All are units.
 */
struct history {
  unsigned read, ahead, lengths[8];
};

static void
test_history (gconstpointer data)
{
  const struct history *h = data;
  struct reader c = { .t.window = 16 };
  struct stream_range r;
  struct stream *s;

  for (unsigned i = 0; i < G_N_ELEMENTS (h->lengths) && h->lengths[i]; i++)
    reader_run (&c, (i + 1) * 1000 * MIB, h->lengths[i]);
  s = reader_run (&c, 0, h->read);
  r = reader_plan (&c, s, 16);
  assert_length (r, h->ahead * U);
  if (h->ahead > 0)
    g_assert_cmpuint (r.from, ==, h->read * U);
}

/* A client that reads parts of a device, of MOST units (16: of 1 to 32): at
 * most a quarter of what it reads is prefetched in vain.  To that the first
 * stream adds its window, if the connection's first read is a part of its own.
 */
static void
test_parts (unsigned most)
{
  struct reader c = { 0 };
  unsigned n = 0;
  uint64_t used = 0, unused = 0;

  for (uint64_t part = 0; part < 1000 * MIB; part += 16 * MIB) {
    unsigned length = most < 16 ? most : 1 + n++ * 7 % 32;
    struct stream *s = NULL;

    for (unsigned i = 0; i < length; i++) {
      s = reader_run (&c, part + i * U, 1);
      if (s)
        (void) reader_plan (&c, s, 64);
    }
    used += length;
    if (s && s->ahead > s->end)
      unused += (s->ahead - s->end) / U;
  }
  g_assert_cmpuint (unused, <=, used / 4 + 2 * WINDOW_MIN);
}

/* Two pages together, at random places: only the first pair is prefetched. */
static void
test_pairs (void)
{
  struct reader c = { 0 };
  uint64_t ahead = 0;

  for (unsigned i = 0; i < 1000; i++) {
    uint64_t offset = g_test_rand_int_range (0, 100000) * MIB;
    struct stream_range r;

    (void) reader_read_ahead (&c, offset, 4096, 64);
    r = reader_read_ahead (&c, offset + 4096, 4096, 64);
    ahead += r.to - r.from;
  }
  g_assert_cmpuint (ahead, <=, 8 * U);
}

/* After a long stream the next one has the whole window from its second read
 * on.
 */
static void
test_next (void)
{
  struct reader c = { 0 };
  struct stream *s = NULL;

  for (unsigned i = 0; i < 400; i++) {
    s = reader_run (&c, i * U, 1);
    if (s)
      (void) reader_plan (&c, s, 64);
  }
  g_assert_cmpuint (s->ahead, ==, (400 + 64) * U);
  s = reader_run (&c, 1000 * MIB, 2);
  assert_length (reader_plan (&c, s, 64), 64 * U);
}

/* The last reads of a stream may arrive after the first ones of the next.  A
 * stream has ended if its last read is in the first half of the other one's
 * life.
 */
static void
test_overlap (void)
{
  const uint64_t other = 1000 * MIB;
  struct reader c = { .t.window = 64 };
  struct stream *s, *ended;

  reader_at (&c, 10);
  ended = reader_run (&c, 0, 2);
  reader_at (&c, 20);
  reader_read (&c, other, U);
  g_assert_true (reader_read (&c, 2 * U, U) == ended);  /* at 21 */
  s = reader_read (&c, other + U, U);                   /* at 22 */
  ended->ahead = ended->end + 60 * U;
  /* 21 is in the second half of the life from 20 to 22: side by side. */
  assert_length (reader_plan (&c, s, 64), 32 * U);
  reader_at (&c, 24);
  g_assert_true (reader_read (&c, other + 2 * U, U) == s);
  /* 21 is in the first half of 20 to 24.  Three units are read, as many as of
   * the other stream, which makes this a likely end.
   */
  assert_empty (reader_plan (&c, s, 64));
  g_assert_true (reader_read (&c, other + 3 * U, U) == s);
  assert_empty (reader_plan (&c, s, 64));       /* is far enough ahead */
}

/* Data that was prefetched for an ended stream. */

/* A stream of 16 units was prefetched for 8 more.  Another begins GAP units
 * after its end: it takes over the data, and what is in the gap is left over.
 */
static void
test_join (unsigned gap)
{
  struct reader c = { .t.window = 8 };
  struct stream *ended = reader_run (&c, 0, 16), *s;
  struct stream_range left;

  g_assert_cmpuint (reader_plan (&c, ended, 8).to, ==, 24 * U);
  g_assert_null (reader_read (&c, (16 + gap) * U, U));
  s = reader_note (&c, (17 + gap) * U, U, &left);
  if (gap >= 8) {               /* begins after the prefetched data */
    assert_empty (left);
    g_assert_cmpuint (s->ahead, ==, 0);
    return;
  }
  assert_range (left, 16 * U, (16 + gap) * U);
  g_assert_cmpuint (s->ahead, ==, 24 * U);
  if (gap > 2)
    g_assert_cmpuint (ended->ahead, ==, 0);
  /* After a small gap it is the same stream. */
  g_assert_cmpuint (s->start, ==, gap <= 2 ? 0 : (16 + gap) * U);
}

/* The data of a stream that is still read is not taken over. */
static void
test_no_join (void)
{
  struct reader c = { .t.window = 8 };
  struct stream *other = reader_run (&c, 0, 16), *s;

  (void) reader_plan (&c, other, 8);
  reader_at (&c, 20);
  g_assert_null (reader_read (&c, 18 * U, U));
  reader_at (&c, 29);
  g_assert_true (reader_read (&c, 16 * U, U) == other);
  s = reader_read (&c, 19 * U, U);
  g_assert_cmpuint (s->ahead, ==, 0);
  g_assert_cmpuint (other->ahead, ==, 24 * U);
}

/* Nor is it taken over by a stream that reads the same as that one did. */
static void
test_read_again (void)
{
  struct reader c = { .t.window = 8 };
  struct stream *ended = reader_run (&c, 0, 16), *s;

  (void) reader_plan (&c, ended, 8);
  g_assert_null (reader_read (&c, 4 * U, U));
  s = reader_read (&c, 5 * U, U);
  g_assert_cmpuint (s->ahead, ==, 0);
  g_assert_cmpuint (ended->ahead, ==, 24 * U);
}

/* The data of an ended stream gives way to a later one: from its far end, and
 * no more than is needed.
 */
static void
test_take (void)
{
  struct reader c = { .t.window = 8 };
  struct stream *ended = reader_run (&c, 0, 4), *s;

  g_assert_cmpuint (reader_plan (&c, ended, 8).to, ==, 12 * U);
  s = reader_run (&c, 1000 * MIB, 2);
  assert_range (stream_take (&c.t, s, U, 2 * U + 512), 9 * U, 12 * U);
  g_assert_cmpuint (ended->ahead, ==, 9 * U);

  /* It is read again: side by side with the later one, it keeps the rest. */
  g_assert_true (reader_read (&c, 4 * U, U) == ended);
  assert_empty (stream_take (&c.t, s, U, U));

  /* For the stream after that it has ended. */
  s = reader_run (&c, 2000 * MIB, 2);
  assert_range (stream_take (&c.t, s, U, 100 * U), 5 * U, 9 * U);
  assert_empty (stream_take (&c.t, s, U, 100 * U));
}

/* A stream does not take the data that it will read itself. */
static void
test_take_own (void)
{
  struct reader c = { .t.window = 8 };
  struct stream *ended = reader_run (&c, 100 * U, 2), *s;

  (void) reader_plan (&c, ended, 8);
  s = reader_run (&c, 95 * U, 2);
  s->ahead = 104 * U;
  assert_empty (stream_take (&c.t, s, U, U));
}

/* Errors. */

/* A failed prefetch ends its stream, and no stream before or after it. */
static void
test_failed (unsigned count)
{
  const uint64_t at = 50 * MIB, others[] = { 0, 90 * MIB };
  struct reader c = { 0 };
  struct stream *s, *other[2];
  struct stream_range r;

  reader_read (&c, at, count);
  for (unsigned i = 0; i < 2; i++)
    reader_read (&c, others[i], count);
  for (unsigned i = 0; i < 2; i++)
    other[i] = reader_read (&c, others[i] + count, count);
  s = reader_read (&c, at + count, count);
  r = reader_plan (&c, s, 12);
  for (unsigned i = 0; i < 2; i++)
    (void) reader_plan (&c, other[i], 12);
  stream_prefetch_failed (&c.t, r.from, r.from + U);
  g_assert_cmpuint (stream_active (&c.t, c.now_ns + 1), ==, 2);
  /* A pointer to the ended stream plans nothing. */
  reader_answered (&c, MIB, true);
  assert_empty (reader_plan (&c, s, 100));
  g_assert_null (reader_read (&c, at + 2 * count, count));
  for (unsigned i = 0; i < 2; i++)
    g_assert_true (reader_read (&c, others[i] + 2 * count, count) == other[i]);
  g_assert_nonnull (reader_read (&c, at + 3 * count, count));
}

/* After a failed prefetch there is no other until 4 units were read in sequence
 * without an error.
 */
static void
test_errors (void)
{
  struct reader c = { .t.window = 32 };
  struct stream *s = reader_run (&c, 0, 4);
  struct stream_range r = reader_plan (&c, s, 64), left;

  stream_prefetch_failed (&c.t, r.from, r.from + U);
  for (unsigned i = 4; i < 20; i++) {
    s = stream_note (&c.t, i * U, U, 0, ++c.now_ns, &left);
    if (!s)
      continue;
    if (i % 3 == 0)
      reader_answered (&c, U, true);
    else
      stream_read_failed (&c.t);
    assert_empty (reader_plan (&c, s, 64));
  }
  stream_read_failed (&c.t);
  for (unsigned i = 0; i < WINDOW_MIN; i++) {
    assert_empty (reader_plan (&c, s, 64));
    g_assert_true (reader_read (&c, (20 + i) * U, U) == s);
  }
  r = reader_plan (&c, s, 64);
  g_assert_cmpuint (r.to - r.from, >, 0);
  g_assert_cmpuint (c.t.window, ==, WINDOW_MIN);        /* small again */
}

#define HISTORY(name, n_read, n_ahead, ...) \
  { "/likely-end/" name, .run_with = test_history, \
    .data = &(const struct history) { n_read, n_ahead, { __VA_ARGS__ } } }

static const struct test tests[] = {
  HISTORY ("of-the-first-stream", 3, 16, 0),
  HISTORY ("of-the-second", 3, 6, 9),
  HISTORY ("is-reached", 9, 0, 9),
  HISTORY ("is-passed", 12, 6, 9),
  HISTORY ("after-shorter-streams", 4, 2, 2, 2, 3, 3),
  HISTORY ("is-the-shortest-of-few", 3, 4, 9, 7, 8, 12),
  HISTORY ("is-the-second-shortest-of-eight", 3, 4,
           5, 7, 9, 12, 13, 12, 20, 12),
  HISTORY ("counts-those-that-came-as-far", 4, 8, 2, 2, 2, 12),
  HISTORY ("of-long-streams-is-far", 10, 16, 100, 90, 200),
  { "/likely-end/of-parts", .run_each = test_parts,
    .values = { 2, 4, 8, 16 } },
  { "/likely-end/of-pairs", .run = test_pairs },
  { "/likely-end/of-a-stream-after-a-long-one", .run = test_next },
  { "/likely-end/of-overlapping-streams", .run = test_overlap },
  { "/ended/data-serves-a-stream-after-a-gap-of", .run_each = test_join,
    .values = { 1, 2, 3, 4, 5, 6, 7, 8 } },
  { "/ended/not-while-it-is-read", .run = test_no_join },
  { "/ended/not-where-it-was-read-before", .run = test_read_again },
  { "/ended/data-gives-way-from-its-far-end", .run = test_take },
  { "/ended/data-stays-where-it-will-be-read", .run = test_take_own },
  { "/failed/prefetch-ends-its-stream/read-size", .run_each = test_failed,
    .values = { 4096, U } },
  { "/failed/prefetch-stops-others-for-four-units", .run = test_errors },
};

TABLE_MAIN (tests)
