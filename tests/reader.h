/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A client that reads, for the tests of filter/stream.h: its streams, and a
 * clock that advances by 1 ns with each read.
 *
 * The unit is U bytes, and most reads are of one unit.
 */
#ifndef TESTS_READER_H
#define TESTS_READER_H

#include <inttypes.h>

#include <glib.h>

#include "stream.h"
#include "table.h"

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)
#define U (128 * KIB)           /* the unit */
#define FAR_END (UINT64_C (1) << 40)

#define READER_FUNCTION static G_GNUC_UNUSED

struct reader {
  struct streams t;
  uint64_t now_ns;              /* of the latest read */
  uint64_t slack;
  bool has_hits;                /* its reads are of planned bytes */
};

#define assert_empty(range) \
  do { \
    struct stream_range empty_ = (range); \
    g_assert_cmpuint (empty_.from, ==, empty_.to); \
  } while (0)

#define assert_range(range, expected_from, expected_to) \
  do { \
    struct stream_range range_ = (range); \
    g_assert_cmpuint (range_.from, ==, expected_from); \
    g_assert_cmpuint (range_.to, ==, expected_to); \
  } while (0)

#define assert_length(range, expected) \
  do { \
    struct stream_range range_ = (range); \
    g_assert_cmpuint (range_.to - range_.from, ==, expected); \
  } while (0)

/* The next read is at this moment. */
READER_FUNCTION void
reader_at (struct reader *c, uint64_t now_ns)
{
  c->now_ns = now_ns - 1;
}

/* The latest read has its answer.  MISSED: its bytes were not planned. */
READER_FUNCTION void
reader_answered (struct reader *c, uint32_t count, bool missed)
{
  struct stream_late late = { 0 };

  if (missed)
    stream_missed (&late, c->now_ns);
  stream_answered (&c->t, count, &late);
}

/* A read: returns its stream and the range LEFT, as stream_note does. */
READER_FUNCTION struct stream *
reader_note (struct reader *c, uint64_t offset, uint32_t count,
             struct stream_range *left)
{
  struct stream *s = stream_note (&c->t, offset, count, c->slack, ++c->now_ns,
                                  left);

  if (s)
    reader_answered (c, count, !c->has_hits);
  return s;
}

/* A read after which no prefetched data is left over. */
READER_FUNCTION struct stream *
reader_read (struct reader *c, uint64_t offset, uint32_t count)
{
  struct stream_range left;
  struct stream *s = reader_note (c, offset, count, &left);

  assert_empty (left);
  return s;
}

/* Reads N units in sequence, and returns the stream of the last read. */
READER_FUNCTION struct stream *
reader_run (struct reader *c, uint64_t offset, unsigned n)
{
  struct stream_range left;
  struct stream *s = NULL;

  for (unsigned i = 0; i < n; i++)
    s = reader_note (c, offset + i * U, U, &left);
  return s;
}

/* The range to prefetch now for S. */
READER_FUNCTION struct stream_range
reader_plan (struct reader *c, struct stream *s, uint32_t share)
{
  c->t.now_ns = c->now_ns;
  return stream_plan (&c->t, s, U, share, FAR_END, c->now_ns);
}

/* Reads and plans, as the filter does.  Returns the planned range. */
READER_FUNCTION struct stream_range
reader_read_ahead (struct reader *c, uint64_t offset, uint32_t count,
                   uint32_t share)
{
  struct stream_range left;
  struct stream *s = reader_note (c, offset, count, &left);

  return s ? reader_plan (c, s, share) : (struct stream_range) { 0 };
}

#endif /* TESTS_READER_H */
