/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Detection: which reads of a connection are a sequential stream.
 *
 * A stream begins with the second of two adjacent reads.  A connection has up
 * to 16 streams at once.  A client that keeps several requests in flight has
 * slack, as its reads arrive out of order.
 */
#include "reader.h"

static void
test_adjacent (void)
{
  struct reader c = { 0 };
  struct stream *s;
  uint64_t latest_ns;

  g_assert_null (reader_read (&c, 1000, 4096));
  g_assert_null (reader_read (&c, 1000 + 4097, 4096));  /* a byte between */
  s = reader_read (&c, 1000 + 4096, 100);
  g_assert_nonnull (s);
  g_assert_true (s->is_sequential);
  g_assert_true (reader_read (&c, 1000 + 4196, 1) == s);
  latest_ns = c.now_ns;
  g_assert_cmpuint (stream_active (&c.t, latest_ns + 1), ==, 1);
  /* The same read again does not continue the stream. */
  g_assert_null (reader_read (&c, 1000 + 4196, 1));
  g_assert_cmpuint (stream_active (&c.t, latest_ns + STREAM_IDLE_NS), ==, 0);
}

static void
test_random (void)
{
  struct reader c = { 0 };

  for (unsigned i = 0; i < 10000; i++)
    g_assert_null (reader_read (&c, g_test_rand_int_range (0, 1000) * MIB,
                                4096));
  g_assert_cmpuint (stream_active (&c.t, c.now_ns), ==, 0);
}

/* A client with 16 requests in flight reads 16 MiB at random.  Many reads are
 * near each other, but hardly any continues a stream.
 */
static void
test_random_near (void)
{
  struct reader c = { .slack = 15 * 2 * 4096 };
  unsigned n = 0;

  for (unsigned i = 0; i < 10000; i++)
    n += reader_read (&c, g_test_rand_int_range (0, 4096) * UINT64_C (4096),
                      4096) != NULL;
  g_assert_cmpuint (n, <, 10000 / 20);
}

/* How many of N reads of 4 KiB continue a stream, if C reads every STEPth. */
static unsigned
count_stepped (struct reader *c, uint64_t *offset, unsigned n, unsigned step)
{
  unsigned continued = 0;

  for (unsigned i = 0; i < n; i++, *offset += step * 4096)
    continued += reader_read (c, *offset, 4096) != NULL;
  return continued;
}

/* A client may read more on other connections of the device. */
static void
test_spread (void)
{
  struct reader c = { .slack = 15 * 2 * 4096, .t.conns = 4 };
  uint64_t offset = 0;

  g_assert_cmpuint (count_stepped (&c, &offset, 10000, 4), >, 9990);
  g_assert_cmpuint (count_stepped (&c, &offset, 10000, 16), <, 2000);
}

/* Only the latest reads count. */
static void
test_changes (void)
{
  struct reader c = { .slack = 15 * 2 * 4096 };
  uint64_t offset = 0;

  g_assert_cmpuint (count_stepped (&c, &offset, 10000, 1), >, 9990);
  g_assert_cmpuint (count_stepped (&c, &offset, 100000, 4), <, 10000);
  g_assert_cmpuint (count_stepped (&c, &offset, 100000, 1), >, 90000);
}

/* N files are read in turns of one unit: each read continues its file's own
 * stream.
 */
static void
test_interleaved (unsigned n)
{
  struct reader c = { 0 };
  struct stream *s[STREAMS];

  for (unsigned round = 0; round < 50; round++)
    for (unsigned i = 0; i < n; i++) {
      struct stream *got = reader_read (&c, i * 1024 * MIB + round * U, U);

      if (round == 0)
        g_assert_null (got);
      else if (round == 1)
        s[i] = got;
      else
        g_assert_true (got == s[i]);
      for (unsigned j = 0; j < i && round == 1; j++)
        g_assert_true (s[j] != got);
    }
  g_assert_cmpuint (stream_active (&c.t, c.now_ns), ==, n);
}

/* A client that keeps DEPTH requests in flight is one stream, in whichever
 * order they arrive.  No request is overtaken by more than DEPTH others.
 */
static void
test_deep (unsigned depth)
{
  struct reader c = { .slack = (depth - 1) * 2 * U };
  g_autofree unsigned *in_flight = g_new (unsigned, depth);
  unsigned next = depth;
  struct stream *s = NULL;

  for (unsigned i = 0; i < depth; i++)
    in_flight[i] = i;
  for (unsigned i = 0; i < 2000; i++) {
    unsigned at = g_test_rand_int_range (0, depth);
    struct stream *got;

    for (unsigned j = 0; j < depth; j++)
      if (in_flight[j] + depth <= next)
        at = j;
    got = reader_read (&c, 10 * MIB + in_flight[at] * U, U);
    in_flight[at] = next++;
    if (i == 0)
      g_assert_null (got);
    else if (i == 1)
      g_assert_nonnull (s = got);
    else
      g_assert_true (got == s);
  }
  g_assert_cmpuint (stream_active (&c.t, c.now_ns), ==, 1);
}

/* Of a client with several in flight, other reads overtake a read, as its
 * thread waits for a processor.  It is no new stream, and plans nothing.
 */
static void
test_behind (void)
{
  struct reader c = { .slack = 6 * U };
  struct stream *s = reader_run (&c, 10 * MIB, 200);
  uint64_t overtaken = s->end - 64 * U;

  for (unsigned i = 0; i < 1000; i++) {
    s = reader_run (&c, s->end, 32);
    (void) reader_plan (&c, s, 64);
    g_assert_true (reader_read (&c, s->end - MAX_BEHIND + i % 50 * U, U) == s);
    assert_empty (reader_plan (&c, s, 64));
  }
  /* These reads continue no stream: one farther behind, one before its start,
   * and those of a client with one request in flight.
   */
  g_assert_null (reader_read (&c, s->end - MAX_BEHIND - U, U));
  g_assert_null (reader_read (&c, s->start - 7 * U, U));
  c.slack = 0;
  g_assert_null (reader_read (&c, s->end - U, U));
  g_assert_null (reader_read (&c, overtaken, U));
}

/* A client with several in flight reads bytes close behind a stream, which
 * advances by ADVANCE units for each of these reads.  They become a stream of
 * their own.
 */
static void
test_again (unsigned advance)
{
  struct reader c = { .slack = 6 * U };
  struct stream *s = reader_run (&c, 0, 32), *again = NULL;

  for (unsigned i = 0; i < 16; i++) {
    again = reader_read (&c, i * U, U);
    for (unsigned j = 0; j < advance; j++)
      g_assert_true (reader_read (&c, s->end, U) == s);
  }
  g_assert_true (again && again != s);
  g_assert_cmpuint (again->end, ==, 16 * U);
}

/* The same when it has read to the end, and begins again. */
static void
test_second_pass (void)
{
  test_again (0);
}

/* With slack, a read continues the stream whose end is nearest. */
static void
test_nearest (void)
{
  struct reader c = { 0 };
  struct stream *a, *b;

  reader_read (&c, 0, 1024);
  reader_read (&c, 8192, 1024);
  a = reader_read (&c, 1024, 1024);
  b = reader_read (&c, 9216, 1024);
  g_assert_true (a && b && a != b);
  c.slack = 8192;
  g_assert_true (reader_read (&c, 4096, 1024) == a);
  g_assert_true (reader_read (&c, 11264, 1024) == b);
}

/* The first two reads of a stream arrive out of order. */
static void
test_first_two (void)
{
  struct reader c = { .slack = 4 * U };
  struct stream *s;

  reader_read (&c, U, U);
  s = reader_read (&c, 0, U);
  g_assert_cmpuint (s->start, ==, 0);
  g_assert_cmpuint (s->end, ==, 2 * U);
}

/* A stream reaches the place of an earlier single read: the next read continues
 * the stream, not the single read.
 */
static void
test_earlier_read (void)
{
  struct reader c = { 0 };
  struct stream *s;

  reader_read (&c, 5 * U, U);
  s = reader_run (&c, 0, 6);
  g_assert_true (reader_read (&c, 6 * U, U) == s);
}

/* When all places are in use, a new read takes the one that was unused for
 * longest.  The prefetched data of that stream is left over.
 */
static void
test_places (void)
{
  struct reader c = { 0 };
  struct stream_range left;
  struct stream *s[STREAMS];

  for (unsigned i = 0; i < STREAMS; i++) {
    reader_read (&c, i * 100 * MIB, U);
    s[i] = reader_read (&c, i * 100 * MIB + U, U);
    s[i]->ahead = s[i]->end + 3 * U;
  }
  /* Now s[1] is unused for longest. */
  g_assert_true (reader_read (&c, 2 * U, U) == s[0]);
  g_assert_null (reader_note (&c, 9000 * MIB, U, &left));
  assert_range (left, 100 * MIB + 2 * U, 100 * MIB + 5 * U);
  g_assert_null (reader_note (&c, 9100 * MIB, U, &left));
  assert_range (left, 200 * MIB + 2 * U, 200 * MIB + 5 * U);
  /* The new stream has prefetched nothing. */
  g_assert_true (reader_read (&c, 9000 * MIB + U, U) == s[1]);
}

/* A read behind zeroes continues the stream that came as far as they begin, and
 * the nearest of several.
 */
static void
test_zeroes (void)
{
  struct reader c = { 0 };
  struct stream *s, *far;

  far = reader_run (&c, 100 * U, 2);
  s = reader_run (&c, 200 * U, 2);
  stream_skip (&c.t, 203 * U, 300 * U);         /* s is not there yet */
  g_assert_cmpuint (s->end, ==, 202 * U);
  stream_skip (&c.t, 102 * U, 300 * U);
  g_assert_true (reader_read (&c, 300 * U, U) == s);
  g_assert_cmpuint (far->end, ==, 102 * U);
}

static const struct test tests[] = {
  { "/stream/adjacent-reads-are-a-stream", .run = test_adjacent },
  { "/stream/random-reads-are-none", .run = test_random },
  { "/stream/random-reads-near-each-other-are-none", .run = test_random_near },
  { "/stream/several-connections-have-one", .run = test_spread },
  { "/stream/the-latest-reads-count", .run = test_changes },
  { "/stream/interleaved-reads-are-several", .run_each = test_interleaved,
    .values = { 8, 16 } },
  { "/stream/a-deep-client-has-one", .run_each = test_deep,
    .values = { 2, 16, 64 } },
  { "/stream/an-overtaken-read-continues-it", .run = test_behind },
  { "/stream/reads-close-behind-one-are-another", .run_each = test_again,
    .values = { 1, 2 } },
  { "/stream/a-second-pass-is-another", .run = test_second_pass },
  { "/stream/the-nearest-continues", .run = test_nearest },
  { "/stream/the-first-two-may-be-out-of-order", .run = test_first_two },
  { "/stream/continues-past-an-earlier-read", .run = test_earlier_read },
  { "/stream/the-longest-unused-gives-way", .run = test_places },
  { "/stream/goes-on-behind-zeroes", .run = test_zeroes },
};

TABLE_MAIN (tests)
