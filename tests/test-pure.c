/* Unit tests of the parts that take values and return values: splitting, streams, pace, depth,
 * statistics; and of the slab.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "clock.h"
#include "speed.h"
#include "slab.h"
#include "split.h"
#include "stats.h"
#include "stream.h"

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)
#define SECOND UINT64_C (1000000000)

/* Splitting. */

static void
check_split (uint32_t unit, uint32_t count, uint64_t offset, uint32_t n)
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

static void
test_split (void)
{
  static const uint32_t units[] = { 512, 64 * KIB, 128 * KIB, 1 << 30 };
  static const uint64_t bases[] = { 0, 1, 5 * MIB - 1, UINT64_C (1) << 40, INT64_MAX - 64 * MIB };

  g_assert_cmpuint (split_max (512, 0, 77), ==, 0);
  g_assert_cmpuint (split_max (512, 1, 511), ==, 1);
  g_assert_cmpuint (split_max (512, 2, 511), ==, 2);
  g_assert_cmpuint (split_max (512, 1024, 512), ==, 2);
  for (unsigned u = 0; u < G_N_ELEMENTS (units); u++)
    for (unsigned b = 0; b < G_N_ELEMENTS (bases); b++)
      for (unsigned i = 0; i < 50; i++) {
        uint32_t count = g_test_rand_int_range (1, i % 2 ? 32 * MIB : 4 * MIN (units[u], MIB));
        uint64_t offset = bases[b] + g_test_rand_int_range (0, MIB);
        uint32_t max = split_max (units[u], count, offset);

        for (uint32_t n = 1; n <= MIN (max, 70); n++)
          check_split (units[u], count, offset, n);
        check_split (units[u], count, offset, max);
      }
  /* The largest request, from the start of a unit and from its end. */
  for (uint32_t n = 1; n < 70; n++) {
    check_split (64 * KIB, UINT32_MAX, 0, n);
    check_split (64 * KIB, UINT32_MAX, 64 * KIB - 1, n);
  }
}

/* Streams. */

static struct stream *
note (struct streams *t, uint64_t offset, uint32_t count, uint64_t slack, uint64_t now_ns)
{
  struct stream_range left;
  struct stream *s = stream_note (t, offset, count, slack, now_ns, &left);

  g_assert_cmpuint (left.from, ==, left.to);
  if (s)
    stream_answered (t, count, true);
  return s;
}

static void
test_stream_detection (void)
{
  struct streams t = { 0 };
  struct stream *s;

  g_assert_null (note (&t, 1000, 4096, 0, 1));
  g_assert_null (note (&t, 1000 + 4097, 4096, 0, 2));   /* one byte beside it */
  s = note (&t, 1000 + 4096, 100, 0, 3);
  g_assert_nonnull (s);
  g_assert_true (s->is_sequential);
  g_assert_true (note (&t, 1000 + 4196, 1, 0, 4) == s);
  g_assert_cmpuint (stream_active (&t, 5), ==, 1);
  /* Reading it once more is another one's affair. */
  g_assert_null (note (&t, 1000 + 4196, 1, 0, 6));
  g_assert_cmpuint (stream_active (&t, 4 + STREAM_IDLE_NS), ==, 0);
}

static void
test_stream_random (void)
{
  struct streams t = { 0 };

  for (unsigned i = 0; i < 10000; i++)
    g_assert_null (note (&t, g_test_rand_int_range (0, 1000) * MIB, 4096, 0, i));
  g_assert_cmpuint (stream_active (&t, 10000), ==, 0);
}

static void
test_stream_interleaved (gconstpointer data)
{
  unsigned n = GPOINTER_TO_UINT (data);
  struct streams t = { 0 };
  struct stream *s[STREAMS];
  uint64_t now_ns = 0;

  for (unsigned round = 0; round < 50; round++)
    for (unsigned i = 0; i < n; i++) {
      struct stream *got = note (&t, i * 1024 * MIB + round * 128 * KIB, 128 * KIB, 0, ++now_ns);

      if (round == 0)
        g_assert_null (got);
      else if (round == 1)
        s[i] = got;
      else
        g_assert_true (got == s[i]);
      for (unsigned j = 0; j < i && round == 1; j++)
        g_assert_true (s[j] != got);
    }
  g_assert_cmpuint (stream_active (&t, now_ns), ==, n);
}

/* A client that keeps DEPTH requests in flight: they arrive in any order that this allows. */
static void
test_stream_deep (gconstpointer data)
{
  unsigned depth = GPOINTER_TO_UINT (data), next = depth, *window = g_new (unsigned, depth);
  uint32_t count = 128 * KIB;
  uint64_t slack = (depth - 1) * UINT64_C (2) * count, now_ns = 0;
  struct streams t = { 0 };
  struct stream *s = NULL;

  for (unsigned i = 0; i < depth; i++)
    window[i] = i;
  for (unsigned i = 0; i < 2000; i++) {
    unsigned at = g_test_rand_int_range (0, depth);
    struct stream *got;

    /* None is overtaken for ever: one slot is answered last at the latest after DEPTH others. */
    for (unsigned j = 0; j < depth; j++)
      if (window[j] + depth <= next)
        at = j;
    got = note (&t, 10 * MIB + (uint64_t) window[at] * count, count, slack, ++now_ns);
    window[at] = next++;
    if (i == 0)
      g_assert_null (got);
    else if (i == 1)
      g_assert_nonnull (s = got);
    else
      g_assert_true (got == s);
  }
  g_assert_cmpuint (stream_active (&t, now_ns), ==, 1);
  g_free (window);
}

/* With slack the nearest stream is meant. */
static void
test_stream_nearest (void)
{
  struct streams t = { 0 };
  struct stream *a, *b;

  note (&t, 0, 1024, 0, 1);
  note (&t, 8192, 1024, 0, 2);
  a = note (&t, 1024, 1024, 0, 3);
  b = note (&t, 9216, 1024, 0, 4);
  g_assert_true (a && b && a != b);
  g_assert_true (note (&t, 4096, 1024, 8192, 5) == a);
  g_assert_true (note (&t, 11264, 1024, 8192, 6) == b);
}

static void
test_stream_window (void)
{
  static const uint32_t maxima[] = { 1, 3, 4, 5, 16, 24, 64, 1000 };
  uint32_t unit = 128 * KIB;

  for (unsigned m = 0; m < G_N_ELEMENTS (maxima); m++) {
    struct streams t = { 0 };
    uint32_t last = WINDOW_MIN, since = 0;
    struct stream *s = NULL;

    for (unsigned i = 0; i < 4 * 4000; i++) {
      s = note (&t, i * (unit / 4), unit / 4, 0, i);
      if (i == 0)
        continue;
      since++;
      (void) stream_plan (&t, s, unit, maxima[m], UINT64_MAX / 2, i);
      g_assert_cmpuint (s->ahead, <=, (s->end / unit + maxima[m]) * unit);
      if (t.window != last) {
        g_assert_true (t.window == 2 * last || t.window == 4 * last);
        /* Quarters of a unit that were read. */
        g_assert_cmpuint (since, >=, t.window / 8 * 4);
        since = 0;
      }
      last = t.window;
    }
    g_assert_cmpuint (s->ahead, ==, (s->end / unit + maxima[m]) * unit);
  }
}

/* A reader that never has to wait keeps its small window. */
static void
test_stream_window_slow (void)
{
  uint32_t unit = 64 * KIB;
  struct streams t = { 0 };

  for (unsigned i = 0; i < 100; i++) {
    struct stream_range left;
    struct stream *s = stream_note (&t, i * unit, unit, 0, i, &left);

    if (s == NULL)
      continue;
    stream_answered (&t, unit, i == 50);
    (void) stream_plan (&t, s, unit, 64, UINT64_MAX / 2, i);
    if (i < 50)
      g_assert_cmpuint (t.window, ==, WINDOW_MIN);
    else
      g_assert_cmpuint (t.window, ==, 4 * WINDOW_MIN);
  }
}

/* A window that the caller forbids. */
static void
test_stream_window_none (void)
{
  struct streams t = { 0 };
  struct stream *s;
  struct stream_range r;

  note (&t, 0, 4096, 0, 1);
  s = note (&t, 4096, 4096, 0, 2);
  r = stream_plan (&t, s, 64 * KIB, 0, MIB, 2);
  g_assert_cmpuint (r.from, ==, r.to);
  r = stream_plan (&t, s, 64 * KIB, 8, MIB, 2);
  g_assert_cmpuint (r.from, <, r.to);
}

/* Everything ahead of the reader is handed out once, in units, and nothing beyond the device. */
static void
test_stream_plan (void)
{
  static const uint32_t counts[] = { 512, 4096, 65536, 100000, 128 * KIB, MIB + 1 };
  static const uint64_t sizes[] = { 16 * MIB, 16 * MIB + 512, 16 * MIB - 1 };
  uint32_t unit = 128 * KIB;

  for (unsigned c = 0; c < G_N_ELEMENTS (counts); c++)
    for (unsigned z = 0; z < G_N_ELEMENTS (sizes); z++) {
      struct streams t = { 0 };
      uint64_t offset = 777, size = sizes[z], done = 0;
      unsigned now_ns = 0;

      while (offset < size) {
        uint32_t count = MIN (counts[c], size - offset);
        struct stream *s = note (&t, offset, count, 0, ++now_ns);

        offset += count;
        if (s) {
          struct stream_range r = stream_plan (&t, s, unit, g_test_rand_int_range (1, 70), size, now_ns);

          if (r.from == r.to)
            continue;
          g_assert_cmpuint (r.from, <, r.to);
          g_assert_cmpuint (r.to, <=, size);
          g_assert_cmpuint (r.from % unit, ==, 0);
          g_assert_true (r.to % unit == 0 || r.to == size);
          g_assert_cmpuint (r.from, >=, offset / unit * unit);
          if (done > offset)
            g_assert_cmpuint (r.from, ==, done);        /* neither twice nor with a gap */
          else
            g_assert_cmpuint (r.from, ==, MAX (done, offset / unit * unit));
          done = r.to;
        }
      }
      if (size / counts[c] > 4)
        g_assert_cmpuint (done, ==, size);
    }
}

static struct stream *
begin_stream (struct streams *t, uint64_t offset, uint32_t count)
{
  note (t, offset, count, 0, 1);
  return note (t, offset + count, count, 0, 2);
}

static void
test_stream_cut (gconstpointer data)
{
  uint32_t count = GPOINTER_TO_UINT (data), unit = 64 * KIB;    /* of a read */
  struct streams t = { 0 };
  struct stream *s = begin_stream (&t, 0, count);
  struct stream_range r = stream_plan (&t, s, unit, 8, 100 * MIB, 2), again;

  g_assert_cmpuint (r.to - r.from, >=, 4 * unit);
  stream_cut (s, r.from + 2 * unit);           /* there were two buffers */
  again = stream_plan (&t, s, unit, 8, 100 * MIB, 2);
  g_assert_cmpuint (again.from, ==, r.from + 2 * unit);
  g_assert_cmpuint (again.to, >=, r.to);
  stream_cut (s, again.to);                    /* nothing of it */
  again = stream_plan (&t, s, unit, 8, 100 * MIB, 2);
  g_assert_cmpuint (again.from, ==, again.to);
  stream_cut (s, r.from);                      /* there was none */
  again = stream_plan (&t, s, unit, 8, 100 * MIB, 2);
  g_assert_cmpuint (again.from, <, again.to);
  g_assert_cmpuint (again.from, ==, r.from);
}

static void
test_stream_end (gconstpointer data)
{
  uint32_t count = GPOINTER_TO_UINT (data), unit = 64 * KIB;
  struct streams t = { 0 };
  struct stream *other = begin_stream (&t, 50 * MIB, count), *s = begin_stream (&t, 0, count);
  struct stream_range r = stream_plan (&t, s, unit, 8, 100 * MIB, 2);

  stream_plan (&t, other, unit, 8, 100 * MIB, 2);
  stream_end (&t, r.from, r.from + unit);
  g_assert_cmpuint (stream_active (&t, 3), ==, 1);
  /* Who still has it gets nothing. */
  stream_answered (&t, MIB, true);
  r = stream_plan (&t, s, unit, 100, 100 * MIB, 3);
  g_assert_cmpuint (r.from, ==, r.to);
  g_assert_null (note (&t, 2 * count, count, 0, 4));
  g_assert_true (note (&t, 50 * MIB + 2 * count, count, 0, 5) == other);
  g_assert_nonnull (note (&t, 3 * count, count, 0, 6));
}

/* Earlier streams.  U is both the unit and the size of a read. */

#define U (64 * KIB)
#define FAR_END (UINT64_C (1) << 40)

/* N reads in sequence from OFFSET on, each a nanosecond after the last one. */
static struct stream *
run (struct streams *t, uint64_t offset, unsigned n, uint64_t *now_ns)
{
  struct stream_range left;
  struct stream *s = NULL;

  for (unsigned i = 0; i < n; i++) {
    s = stream_note (t, offset + i * U, U, 0, ++*now_ns, &left);
    if (s)
      stream_answered (t, U, true);
  }
  return s;
}

/* A table of earlier runs, how far a new one has come, and how far it may read
 * ahead.
 */
static const struct likely {
  const char *name;
  unsigned runs[8], come, ahead;
} likely[] = {
  { "first", { 0 }, 3, 16 },
  { "one", { 9 }, 3, 6 },
  { "at-its-end", { 9 }, 9, 0 },
  { "further-than-all", { 9 }, 12, 6 },
  { "too-short-ones", { 2, 2, 3, 3 }, 4, 2 },
  { "all-of-few", { 9, 7, 8, 12 }, 3, 4 },
  { "seven-of-eight", { 5, 7, 9, 12, 13, 12, 20, 12 }, 3, 4 },
  { "of-those-that-came-as-far", { 2, 2, 2, 12 }, 4, 8 },
  { "long", { 100, 90, 200 }, 10, 16 },
};

static void
test_stream_likely (gconstpointer data)
{
  const struct likely *l = data;
  struct streams t = { .window = 16 };
  struct stream_range r;
  struct stream *s;
  uint64_t now_ns = 0;

  for (unsigned i = 0; i < G_N_ELEMENTS (l->runs) && l->runs[i] > 0; i++)
    run (&t, (i + 1) * 1000 * MIB, l->runs[i], &now_ns);
  s = run (&t, 0, l->come, &now_ns);
  r = stream_plan (&t, s, U, 16, FAR_END, now_ns);
  g_assert_cmpuint (r.to - r.from, ==, l->ahead * U);
  if (l->ahead > 0)
    g_assert_cmpuint (r.from, ==, l->come * U);
}

/* Runs of one length: what is left unread is a small part of what was read. */
static void
test_stream_sparse (gconstpointer data)
{
  unsigned most = GPOINTER_TO_UINT (data), n = 0;
  uint64_t now_ns = 0, used = 0, unused = 0;
  struct streams t = { 0 };

  for (uint64_t offset = 0; offset < 1000 * MIB; offset += 16 * MIB) {
    unsigned length = most < 16 ? most : 1 + n++ * 7 % 32;
    struct stream_range left;
    struct stream *s = NULL;

    for (unsigned i = 0; i < length; i++) {
      s = stream_note (&t, offset + i * U, U, 0, ++now_ns, &left);
      if (s == NULL)
        continue;
      stream_answered (&t, U, true);
      stream_plan (&t, s, U, 64, FAR_END, now_ns);
    }
    used += length;
    if (s && s->ahead > s->end)
      unused += (s->ahead - s->end) / U;
  }
  g_assert_cmpuint (unused, <=, used / 4);
}

/* Two pages read together, here and there, are not read ahead, but the first time. */
static void
test_stream_pairs (void)
{
  struct streams t = { 0 };
  uint64_t now_ns = 0, ahead = 0;

  for (unsigned i = 0; i < 1000; i++) {
    uint64_t offset = g_test_rand_int_range (0, 100000) * MIB;
    struct stream_range left, r;
    struct stream *s;

    stream_note (&t, offset, 4096, 0, ++now_ns, &left);
    s = stream_note (&t, offset + 4096, 4096, 0, ++now_ns, &left);
    if (s == NULL)
      continue;
    stream_answered (&t, 4096, true);
    r = stream_plan (&t, s, U, 64, FAR_END, now_ns);
    ahead += r.to - r.from;
  }
  g_assert_cmpuint (ahead, <=, 8 * U);
}

/* The next stream is read ahead as the last one was, at once. */
static void
test_stream_next (void)
{
  struct streams t = { 0 };
  uint64_t now_ns = 0;
  struct stream_range r;
  struct stream *s = NULL;

  for (unsigned i = 0; i < 400; i++) {
    struct stream_range left;

    s = stream_note (&t, i * U, U, 0, ++now_ns, &left);
    if (s) {
      stream_answered (&t, U, true);
      stream_plan (&t, s, U, 64, FAR_END, now_ns);
    }
  }
  g_assert_cmpuint (s->ahead, ==, (400 + 64) * U);
  s = run (&t, 1000 * MIB, 2, &now_ns);
  r = stream_plan (&t, s, U, 64, FAR_END, now_ns);
  g_assert_cmpuint (r.to - r.from, ==, 64 * U);
}

/* The first reads of a stream, and the last ones of the one before, overlap: what
 * was read in the first half of its life has ended.
 */
static void
test_stream_overlap (void)
{
  struct streams t = { .window = 64 };
  struct stream_range left;
  struct stream *s, *o;

  note (&t, 0, U, 0, 10);
  o = note (&t, U, U, 0, 11);
  note (&t, 1000 * MIB, U, 0, 20);
  g_assert_true (note (&t, 2 * U, U, 0, 21) == o);
  s = note (&t, 1000 * MIB + U, U, 0, 22);
  o->ahead = o->end + 60 * U;
  /* It was read in the second half of a life from 20 to 22. */
  left = stream_plan (&t, s, U, 64, FAR_END, 22);
  g_assert_cmpuint (left.to - left.from, ==, 32 * U);
  g_assert_true (note (&t, 1000 * MIB + 2 * U, U, 0, 24) == s);
  left = stream_plan (&t, s, U, 64, FAR_END, 24);
  g_assert_cmpuint (left.from, ==, left.to);    /* three have been read, as that had */
  g_assert_true (note (&t, 1000 * MIB + 3 * U, U, 0, 25) == s);
  left = stream_plan (&t, s, U, 64, FAR_END, 25);
  g_assert_cmpuint (left.from, ==, left.to);    /* four are ahead already */
}

/* A read that begins in what was read ahead for a stream that ended: U units after
 * its 16th.
 */
static void
test_stream_join (gconstpointer data)
{
  unsigned gap = GPOINTER_TO_UINT (data);
  struct streams t = { .window = 8 };
  uint64_t now_ns = 0;
  struct stream *o = run (&t, 0, 16, &now_ns), *s;
  struct stream_range r = stream_plan (&t, o, U, 8, FAR_END, now_ns), left;

  g_assert_cmpuint (r.to, ==, 24 * U);
  g_assert_null (note (&t, (16 + gap) * U, U, 0, ++now_ns));
  s = stream_note (&t, (17 + gap) * U, U, 0, ++now_ns, &left);
  if (gap >= 8) {               /* behind it */
    g_assert_cmpuint (left.from, ==, left.to);
    g_assert_cmpuint (s->ahead, ==, 0);
    return;
  }
  g_assert_cmpuint (left.from, ==, 16 * U);
  g_assert_cmpuint (left.to, ==, (16 + gap) * U);
  g_assert_cmpuint (s->ahead, ==, 24 * U);
  if (gap > 2)
    g_assert_cmpuint (o->ahead, ==, 0);
  /* A small gap is no end. */
  g_assert_cmpuint (s->start, ==, gap <= 2 ? 0 : (16 + gap) * U);
}

/* Nor is anything joined that somebody still reads. */
static void
test_stream_join_beside (void)
{
  struct streams t = { .window = 8 };
  uint64_t now_ns = 0;
  struct stream *o = run (&t, 0, 16, &now_ns), *s;

  stream_plan (&t, o, U, 8, FAR_END, now_ns);
  g_assert_null (note (&t, 18 * U, U, 0, 20));
  g_assert_true (note (&t, 16 * U, U, 0, 29) == o);
  s = note (&t, 19 * U, U, 0, 30);
  g_assert_cmpuint (s->ahead, ==, 0);
  g_assert_cmpuint (o->ahead, ==, 24 * U);
}

/* Streams that are read side by side: each has what it is ahead, and no more than an
 * equal part.
 */
static void
test_stream_part (void)
{
  struct streams t = { .window = 64 };
  struct stream_range r, left;
  struct stream *a, *b;

  note (&t, 0, U, 0, 1);
  note (&t, 1000 * MIB, U, 0, 2);
  a = note (&t, U, U, 0, 3);
  r = stream_plan (&t, a, U, 64, FAR_END, 3);
  g_assert_cmpuint (r.to - r.from, ==, 64 * U);
  b = note (&t, 1000 * MIB + U, U, 0, 4);
  r = stream_plan (&t, b, U, 64, FAR_END, 4);
  g_assert_cmpuint (r.to - r.from, ==, 32 * U);
  stream_cut (a, a->end + 3 * U);               /* a small one */
  left = stream_plan (&t, b, U, 64, FAR_END, 4);
  g_assert_cmpuint (left.to - left.from, ==, (64 - 3 - 32) * U);
  /* One that is idle has no part, at the second and not before. */
  stream_cut (a, a->end + 40 * U);
  stream_cut (b, b->end);
  r = stream_plan (&t, b, U, 64, FAR_END, 3 + STREAM_IDLE_NS - 1);
  g_assert_cmpuint (r.to - r.from, ==, 61 * U);
  stream_cut (b, b->end);
  r = stream_plan (&t, b, U, 64, FAR_END, 3 + STREAM_IDLE_NS);
  g_assert_cmpuint (r.to - r.from, ==, 64 * U);
}

/* What was left gives way, from its far end, and no more than is needed; not what
 * is beside S, nor what S comes to.
 */
static void
test_stream_take (void)
{
  struct streams t = { .window = 8 };
  uint64_t now_ns = 0;
  struct stream *a = run (&t, 0, 4, &now_ns), *s;
  struct stream_range r = stream_plan (&t, a, U, 8, FAR_END, now_ns);

  g_assert_cmpuint (r.to, ==, 12 * U);
  s = run (&t, 1000 * MIB, 2, &now_ns);
  r = stream_take (&t, s, U, 2 * U + 512);
  g_assert_cmpuint (r.from, ==, 9 * U);
  g_assert_cmpuint (r.to, ==, 12 * U);
  g_assert_cmpuint (a->ahead, ==, 9 * U);
  g_assert_true (note (&t, 4 * U, U, 0, now_ns) == a);          /* it goes on */
  r = stream_take (&t, s, U, U);
  g_assert_cmpuint (r.from, ==, r.to);
  s = run (&t, 2000 * MIB, 2, &now_ns);
  r = stream_take (&t, s, U, 100 * U);
  g_assert_cmpuint (r.from, ==, 5 * U);
  g_assert_cmpuint (r.to, ==, 9 * U);
  r = stream_take (&t, s, U, 100 * U);
  g_assert_cmpuint (r.from, ==, r.to);

  t = (struct streams) { .window = 8 };
  a = run (&t, 100 * U, 2, &now_ns);
  stream_plan (&t, a, U, 8, FAR_END, now_ns);
  s = run (&t, 98 * U - 3 * U, 2, &now_ns);
  s->ahead = 104 * U;
  r = stream_take (&t, s, U, U);
  g_assert_cmpuint (r.from, ==, r.to);
}

/* Two that are read in turn, 32 units each: both keep what is ahead of them. */
static void
test_stream_in_turn (void)
{
  struct streams t = { 0 };
  uint64_t now_ns = 0, missed = 0;

  for (unsigned turn = 0; turn < 20; turn++)
    for (unsigned i = 0; i < 32; i++) {
      uint64_t offset = turn % 2 * 1000 * MIB + (turn / 2 * 32 + i) * U;
      struct stream_range left;
      struct stream *s = stream_note (&t, offset, U, 0, ++now_ns, &left);

      g_assert_cmpuint (left.from, ==, left.to);
      if (s == NULL)
        continue;
      missed += turn >= 4 && s->ahead < s->end;
      stream_answered (&t, U, true);
      stream_plan (&t, s, U, 32, FAR_END, now_ns);
    }
  g_assert_cmpuint (stream_active (&t, now_ns), ==, 2);
  g_assert_cmpuint (missed, <=, 4);
}

/* After an error there is no reading ahead until enough was read without one. */
static void
test_stream_errors (void)
{
  struct streams t = { .window = 32 };
  uint64_t now_ns = 0;
  struct stream *s = run (&t, 0, 4, &now_ns);
  struct stream_range r = stream_plan (&t, s, U, 64, FAR_END, now_ns), left;

  stream_end (&t, r.from, r.from + U);
  for (unsigned i = 4; i < 20; i++) {
    s = stream_note (&t, i * U, U, 0, ++now_ns, &left);
    if (s == NULL)
      continue;
    if (i % 3 == 0)
      stream_answered (&t, U, true);
    else
      stream_failed (&t);
    r = stream_plan (&t, s, U, 64, FAR_END, now_ns);
    g_assert_cmpuint (r.from, ==, r.to);
  }
  stream_failed (&t);
  for (unsigned i = 0; i < WINDOW_MIN; i++) {
    r = stream_plan (&t, s, U, 64, FAR_END, now_ns);
    g_assert_cmpuint (r.from, ==, r.to);
    g_assert_true (note (&t, (20 + i) * U, U, 0, ++now_ns) == s);
  }
  r = stream_plan (&t, s, U, 64, FAR_END, now_ns);
  g_assert_cmpuint (r.to - r.from, >, 0);
  g_assert_cmpuint (t.window, <=, 4 * WINDOW_MIN);      /* small again */
}

/* What is gone is planned again, by the stream that is to come there. */
static void
test_stream_lost (void)
{
  struct streams t = { .window = 8 };
  uint64_t now_ns = 0;
  struct stream *s = run (&t, 0, 16, &now_ns);
  struct stream_range r = stream_plan (&t, s, U, 8, FAR_END, now_ns);

  g_assert_cmpuint (r.to, ==, 24 * U);
  stream_lost (&t, 15 * U);
  g_assert_cmpuint (s->ahead, ==, 24 * U);
  stream_lost (&t, 20 * U);
  r = stream_plan (&t, s, U, 8, FAR_END, now_ns);
  g_assert_cmpuint (r.from, ==, 20 * U);
  g_assert_cmpuint (r.to, ==, 24 * U);
}

/* A stream comes to what was looked at before: it goes on, not the single read. */
static void
test_stream_looked_at (void)
{
  struct streams t = { 0 };
  uint64_t now_ns = 10;
  struct stream *s;

  note (&t, 5 * U, U, 0, 1);
  s = run (&t, 0, 6, &now_ns);
  g_assert_true (note (&t, 6 * U, U, 0, 20) == s);
}

/* The first two came out of order. */
static void
test_stream_first_two (void)
{
  struct streams t = { 0 };
  struct stream *s;

  note (&t, U, U, 4 * U, 1);
  s = note (&t, 0, U, 4 * U, 2);
  g_assert_cmpuint (s->start, ==, 0);
  g_assert_cmpuint (s->end, ==, 2 * U);
}

static void
test_stream_recycling (void)
{
  struct streams t = { 0 };
  struct stream *s[STREAMS];
  struct stream_range plan[STREAMS], left;

  for (unsigned i = 0; i < STREAMS; i++) {
    note (&t, i * 100 * MIB, U, 0, 2 * i);
    s[i] = note (&t, i * 100 * MIB + U, U, 0, 2 * i + 1);
    plan[i] = stream_plan (&t, s[i], U, 8, FAR_END, 2 * i + 1);
    stream_cut (s[i], s[i]->end);
    s[i]->ahead = s[i]->end + 3 * U;
    plan[i] = (struct stream_range) { s[i]->end, s[i]->ahead };
  }
  g_assert_true (note (&t, 2 * U, U, 0, 1000) == s[0]); /* the second is the oldest now */
  g_assert_null (stream_note (&t, 9000 * MIB, U, 0, 1001, &left));
  g_assert_cmpuint (left.from, ==, plan[1].from);
  g_assert_cmpuint (left.to, ==, plan[1].to);
  /* Nothing was read ahead for the newcomer, but its neighbour goes next. */
  g_assert_null (stream_note (&t, 9100 * MIB, U, 0, 1002, &left));
  g_assert_cmpuint (left.from, ==, plan[2].from);
  g_assert_true (stream_note (&t, 9000 * MIB + U, U, 0, 1003, &left) == s[1]);
  g_assert_cmpuint (left.from, ==, left.to);
}

/* Pace. */

static void
note_pace (struct speed *p, unsigned n_slow, unsigned n_fast)
{
  for (unsigned i = 0; i < n_slow; i++)
    speed_note (p, SPEED_COPY_NS + MIB + 5000, MIB);
  for (unsigned i = 0; i < n_fast; i++)
    speed_note (p, SPEED_COPY_NS + MIB, MIB);
}

static void
test_pace (void)
{
  struct speed p = { 0 };

  g_assert_cmpuint (speed_wait_ns (&p), ==, 0);  /* unknown */
  note_pace (&p, 1, 0);
  g_assert_cmpuint (speed_wait_ns (&p), ==, 5000);       /* the first one decides */
  speed_note (&p, SPEED_COPY_NS + MIB + 6000, MIB);
  g_assert_cmpuint (speed_wait_ns (&p), ==, 6000);
  note_pace (&p, 0, SPEED_SLOW);                 /* some fast ones in a row do not */
  g_assert_cmpuint (speed_wait_ns (&p), >, 0);
  note_pace (&p, 0, 1);                         /* one more does */
  g_assert_cmpuint (speed_wait_ns (&p), ==, 0);
  note_pace (&p, 1, 0);
  g_assert_cmpuint (speed_wait_ns (&p), ==, 5000);
}

/* One operation in N is slow: from SPEED_SLOW on that is a device that copies. */
static void
test_pace_mix (gconstpointer data)
{
  unsigned n = GPOINTER_TO_UINT (data);
  bool waits = n <= SPEED_SLOW;
  struct speed p = { 0 };

  note_pace (&p, 0, 1);
  for (unsigned i = 0; i < 400; i++) {
    note_pace (&p, 1, 0);
    if (!waits || i >= 200)
      g_assert_cmpint (speed_wait_ns (&p) > 0, ==, waits);
    note_pace (&p, 0, n - 1);
    if (!waits || i >= 200)
      g_assert_cmpint (speed_wait_ns (&p) > 0, ==, waits);
  }
}

/* One fast operation in N. */
static void
test_pace_fast (gconstpointer data)
{
  unsigned n = GPOINTER_TO_UINT (data);
  struct speed p = { 0 };

  note_pace (&p, 0, 1);
  note_pace (&p, 2 * 4, 0);
  for (unsigned i = 0; i < 100; i++) {
    note_pace (&p, n - 1, 1);
    g_assert_cmpuint (speed_wait_ns (&p), ==, 5000);
  }
}

static void
test_depth (void)
{
  uint64_t epoch = 1000, now = 1000000;
  struct depth d = { 0 };

  depth_begin (&d, 1, now, epoch);
  g_assert_cmpuint (depth_peak (&d), ==, 1);
  for (unsigned i = 0; i < 7; i++)
    depth_begin (&d, 1, now + 1, epoch);
  g_assert_cmpuint (depth_peak (&d), ==, 8);
  for (unsigned i = 0; i < 8; i++)
    depth_end (&d, 1);
  g_assert_cmpuint (depth_peak (&d), ==, 8);    /* between the bursts */
  /* The next epoch remembers it, the one after does not. */
  now += epoch + 2;
  depth_begin (&d, 1, now, epoch);
  g_assert_cmpuint (depth_peak (&d), ==, 8);
  depth_begin (&d, 1, now, epoch);
  depth_end (&d, 1);
  depth_end (&d, 1);
  now += epoch + 2;
  depth_begin (&d, 1, now, epoch);
  g_assert_cmpuint (depth_peak (&d), ==, 2);
  depth_end (&d, 1);
  /* After a long pause nothing is left. */
  for (unsigned i = 0; i < 5; i++)
    depth_begin (&d, 1, now, epoch);
  for (unsigned i = 0; i < 5; i++)
    depth_end (&d, 1);
  g_assert_cmpuint (depth_peak (&d), ==, 5);
  now += 10 * epoch;
  depth_begin (&d, 1, now, epoch);
  g_assert_cmpuint (depth_peak (&d), ==, 1);
  depth_end (&d, 1);
}

/* Statistics. */

/* The line of the report that begins with NAME. */
static char *
print_line (const struct stats *s, const char *name)
{
  char *text = NULL, *line = NULL;
  size_t length;
  FILE *fp = open_memstream (&text, &length);
  char **lines;

  stats_print (s, fp);
  fclose (fp);
  lines = g_strsplit (text, "\n", -1);
  for (unsigned i = 0; lines[i]; i++)
    if (g_str_has_prefix (lines[i], name)) {
      g_assert_null (line);
      line = g_strdup (lines[i] + strlen (name));
    }
  g_strfreev (lines);
  free (text);
  if (line == NULL)
    g_error ("no line \"%s\"", name);
  return line;
}

/* A latency of V ms, and what the machine may add while it is noted. */
static void
assert_ms (double got, double v, double tolerance)
{
  g_assert_cmpfloat (got, >=, v * (1 - tolerance));
  g_assert_cmpfloat (got, <=, v * (1 + tolerance) + 20);
}

static void
test_stats_quantiles (void)
{
  struct stats *s = stats_new ();
  g_autofree char *line = NULL;
  unsigned long count, bytes;
  double min, mean, p50, p99, max;

  for (unsigned i = 1; i <= 1000; i++)
    stats_end (s, STATS_READ, clock_ns () - i * UINT64_C (1000000), 10);
  g_assert_cmpuint (stats_count (s, STATS_READ), ==, 1000);
  g_assert_cmpuint (stats_count (s, STATS_WRITE), ==, 0);
  line = print_line (s, "read ");
  g_assert_cmpint (sscanf (line, "%lu %lu %lf %lf %lf %lf %lf", &count, &bytes, &min, &mean, &p50,
                           &p99, &max), ==, 7);
  g_assert_cmpuint (count, ==, 1000);
  g_assert_cmpuint (bytes, ==, 10000);
  assert_ms (min, 1, 0);
  assert_ms (mean, 500.5, 0);
  assert_ms (p50, 500, 0.125);
  assert_ms (p99, 990, 0.125);
  assert_ms (max, 1000, 0);
  stats_free (s);
}

/* At every power of two, where buckets begin and end. */
static void
test_stats_buckets (void)
{
  for (unsigned power = 25; power < 40; power++)        /* below, noise is too large */
    for (int d = -1; d <= 1; d++) {
      uint64_t ns = (UINT64_C (1) << power) + d;
      struct stats *s = stats_new ();
      g_autofree char *line = NULL;
      double p50;

      for (unsigned i = 0; i < 3; i++)
        stats_end (s, STATS_TRIM, clock_ns () - ns, 1);
      stats_end (s, STATS_TRIM, clock_ns () - 4 * ns, 1);   /* not clipped to the maximum */
      line = print_line (s, "trim ");
      g_assert_cmpint (sscanf (line, "%*u %*u %*f %*f %lf", &p50), ==, 1);
      assert_ms (p50, ns / 1e6, 0.125);
      g_assert_cmpfloat (p50, >=, ns / 1e6 - 0.001);    /* the upper end of the bucket */
      stats_free (s);
    }
}

static void
test_stats_device (void)
{
  struct stats *s = stats_new ();
  g_autofree char *line = NULL, *flight = NULL;
  unsigned long count, bytes, smallest, largest, mean_bytes;
  uint64_t start[5];
  unsigned peak;
  double mean;

  for (unsigned i = 0; i < 5; i++)
    start[i] = stats_begin_device (s);
  g_usleep (20000);                             /* so that the times are not all noise */
  for (unsigned i = 0; i < 5; i++)
    g_assert_cmpuint (stats_end_device (s, STATS_DEVICE_WRITE, start[i], 1000 * (i + 1)), >=,
                      start[i] + 20000000);
  line = print_line (s, "plugin write ");
  g_assert_cmpint (sscanf (line, "%lu %lu %*f %*f %*f %*f %*f %lu..%lu, mean %lu", &count, &bytes,
                           &smallest, &largest, &mean_bytes), ==, 5);
  g_assert_cmpuint (count, ==, 5);
  g_assert_cmpuint (bytes, ==, 15000);
  g_assert_cmpuint (smallest, ==, 1000);
  g_assert_cmpuint (largest, ==, 5000);
  g_assert_cmpuint (mean_bytes, ==, 3000);
  flight = print_line (s, "in the plugin: ");
  g_assert_cmpint (sscanf (flight, "peak %u, mean %lf", &peak, &mean), ==, 2);
  g_assert_cmpuint (peak, ==, 5);
  g_assert_cmpfloat (mean, >=, 3);
  g_assert_cmpfloat (mean, <=, 5);
  stats_free (s);
}

static void *
count_many (void *vp)
{
  struct stats *s = vp;

  for (unsigned i = 0; i < 10000; i++) {
    stats_add (s, STATS_COALESCED, 2);
    stats_end (s, STATS_WRITE, clock_ns (), 3);
  }
  return NULL;
}

static void
test_stats_threads (void)
{
  struct stats *s = stats_new ();
  GThread *threads[20];         /* more than there are shards */
  g_autofree char *line = NULL;
  unsigned long count, bytes;

  for (unsigned i = 0; i < G_N_ELEMENTS (threads); i++)
    threads[i] = g_thread_new (NULL, count_many, s);
  for (unsigned i = 0; i < G_N_ELEMENTS (threads); i++)
    g_thread_join (threads[i]);
  g_assert_cmpuint (stats_counter (s, STATS_COALESCED), ==, 400000);
  g_assert_cmpuint (stats_counter (s, STATS_DEFERRED), ==, 0);
  line = print_line (s, "write ");
  g_assert_cmpint (sscanf (line, "%lu %lu", &count, &bytes), ==, 2);
  g_assert_cmpuint (count, ==, 200000);
  g_assert_cmpuint (bytes, ==, 600000);
  stats_free (s);
}

static void
test_stats_lines (void)
{
  static const char *const names[] = {
    "asyncpool statistics", "operation ", "read ", "write ", "zero ", "trim ", "flush ", "extents ",
    "cache ", "plugin read ", "plugin write ", "buffer wait ", "in the plugin: ", "read-ahead: ",
    "write-behind: ", "barriers: ",
  };
  struct stats *s = stats_new ();
  g_autofree char *ahead = NULL, *behind = NULL, *barriers = NULL;

  for (unsigned i = 0; i < G_N_ELEMENTS (names); i++)
    g_free (print_line (s, names[i]));
  for (enum stats_counter c = 0; c < STATS_COUNTERS; c++)
    stats_add (s, c, 1000 >> c);
  ahead = print_line (s, "read-ahead: ");
  g_assert_nonnull (strstr (ahead, "1000 bytes issued, 500 used, 500 wasted, "
                            "250 operations failed"));
  behind = print_line (s, "write-behind: ");
  g_assert_nonnull (strstr (behind, "125 writes held, 62 of them combined, 15 deferred errors"));
  barriers = print_line (s, "barriers: ");
  g_assert_nonnull (strstr (barriers, "31 operations"));
  stats_free (s);
}

/* The slab. */

static void
test_slab (void)
{
  struct slab s = { 0 };
  size_t page = sysconf (_SC_PAGESIZE), pages = sysconf (_SC_PHYS_PAGES);

  g_assert_cmpint (slab_init (&s, 3, 64 * KIB), ==, 0);
  g_assert_cmpuint ((uintptr_t) s.data % page, ==, 0);
  slab_populate (&s);
  for (size_t i = 0; i < 3 * 64 * KIB; i++)
    g_assert_cmpint (s.data[i], ==, 0);
  memset (s.data, 1, 3 * 64 * KIB);
  slab_destroy (&s);
  g_assert_null (s.data);
  slab_destroy (&s);

  /* More than the machine has, and more than a size can say. */
  g_assert_cmpint (slab_init (&s, pages + 1, page), ==, ENOMEM);
  g_assert_cmpint (slab_init (&s, SIZE_MAX / 4, 8), ==, ENOMEM);
  g_assert_cmpint (slab_init (&s, SIZE_MAX / 16 + 2, 32), ==, ENOMEM);
  slab_destroy (&s);
}

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/split", test_split);
  g_test_add_func ("/stream/detection", test_stream_detection);
  g_test_add_func ("/stream/random", test_stream_random);
  g_test_add_data_func ("/stream/interleaved/8", GUINT_TO_POINTER (8), test_stream_interleaved);
  g_test_add_data_func ("/stream/interleaved/16", GUINT_TO_POINTER (16), test_stream_interleaved);
  g_test_add_data_func ("/stream/deep/2", GUINT_TO_POINTER (2), test_stream_deep);
  g_test_add_data_func ("/stream/deep/16", GUINT_TO_POINTER (16), test_stream_deep);
  g_test_add_data_func ("/stream/deep/64", GUINT_TO_POINTER (64), test_stream_deep);
  g_test_add_func ("/stream/nearest", test_stream_nearest);
  g_test_add_func ("/stream/window", test_stream_window);
  g_test_add_func ("/stream/window/slow", test_stream_window_slow);
  g_test_add_func ("/stream/window/none", test_stream_window_none);
  g_test_add_func ("/stream/plan", test_stream_plan);
  g_test_add_data_func ("/stream/cut/units", GUINT_TO_POINTER (65536), test_stream_cut);
  g_test_add_data_func ("/stream/cut/small", GUINT_TO_POINTER (4096), test_stream_cut);
  g_test_add_func ("/stream/part", test_stream_part);
  g_test_add_func ("/stream/take", test_stream_take);
  g_test_add_func ("/stream/in-turn", test_stream_in_turn);
  g_test_add_data_func ("/stream/end/units", GUINT_TO_POINTER (65536), test_stream_end);
  g_test_add_data_func ("/stream/end/small", GUINT_TO_POINTER (4096), test_stream_end);
  g_test_add_func ("/stream/recycling", test_stream_recycling);
  for (unsigned i = 0; i < G_N_ELEMENTS (likely); i++) {
    g_autofree char *path = g_strdup_printf ("/stream/likely/%s", likely[i].name);

    g_test_add_data_func (path, &likely[i], test_stream_likely);
  }
  for (unsigned i = 2; i <= 16; i *= 2) {
    g_autofree char *path = g_strdup_printf ("/stream/sparse/%u", i);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_stream_sparse);
  }
  g_test_add_func ("/stream/pairs", test_stream_pairs);
  g_test_add_func ("/stream/next", test_stream_next);
  g_test_add_func ("/stream/overlap", test_stream_overlap);
  for (unsigned i = 1; i <= 8; i++) {
    g_autofree char *path = g_strdup_printf ("/stream/join/%u", i);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_stream_join);
  }
  g_test_add_func ("/stream/join/beside", test_stream_join_beside);
  g_test_add_func ("/stream/errors", test_stream_errors);
  g_test_add_func ("/stream/lost", test_stream_lost);
  g_test_add_func ("/stream/looked-at", test_stream_looked_at);
  g_test_add_func ("/stream/first-two", test_stream_first_two);
  for (unsigned i = 2; i <= 256; i *= 2) {
    g_autofree char *slow = g_strdup_printf ("/pace/one-slow-in/%u", i);
    g_autofree char *fast = g_strdup_printf ("/pace/one-fast-in/%u", i);

    g_test_add_data_func (slow, GUINT_TO_POINTER (i), test_pace_mix);
    g_test_add_data_func (fast, GUINT_TO_POINTER (i), test_pace_fast);
  }
  g_test_add_func ("/pace", test_pace);
  g_test_add_func ("/depth", test_depth);
  g_test_add_func ("/stats/quantiles", test_stats_quantiles);
  g_test_add_func ("/stats/buckets", test_stats_buckets);
  g_test_add_func ("/stats/device", test_stats_device);
  g_test_add_func ("/stats/threads", test_stats_threads);
  g_test_add_func ("/stats/lines", test_stats_lines);
  g_test_add_func ("/slab", test_slab);
  return g_test_run ();
}
