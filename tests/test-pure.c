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

#include "copy.h"
#include "pace.h"
#include "slab.h"
#include "split.h"
#include "stats.h"
#include "stream.h"

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)
#define SECOND UINT64_C (1000000000)

/* Copying. */

/* Every distance modulo a page near 0, over the end of a piece; nothing beside it is touched. */
static void
test_copy (void)
{
  static const size_t counts[] = { 0, 1, 2047, 2048, 2049, 4095, 10000 };
  enum { SPACE = 16384 };
  g_autofree uint8_t *from = g_malloc (SPACE), *to = g_malloc (2 * SPACE), *want = g_malloc (SPACE);

  for (size_t i = 0; i < SPACE; i++)
    from[i] = g_test_rand_int ();
  for (size_t behind = 0; behind < 40; behind++)
    for (unsigned n = 0; n < G_N_ELEMENTS (counts); n++) {
      uint8_t *target = to + (((uintptr_t) from - (uintptr_t) to) % 4096 + behind);

      memset (to, 0xEE, 2 * SPACE);
      memset (want, 0xEE, SPACE);
      memcpy (want, from, counts[n]);
      copy_bytes (target, from, counts[n]);
      g_assert_cmpmem (target, counts[n] + 100, want, counts[n] + 100);
      if (target > to)
        g_assert_cmpuint (target[-1], ==, 0xEE);
    }
}

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
    stream_answered (s, count, true);
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
  g_assert_cmpuint (s->window, ==, WINDOW_MIN);
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
    uint32_t last = 0;
    struct stream *s = NULL;

    for (unsigned i = 0; i < 4 * 4000; i++) {
      s = note (&t, i * (unit / 4), unit / 4, 0, i);
      if (i == 0)
        continue;
      (void) stream_plan (s, unit, maxima[m], UINT64_MAX / 2);
      g_assert_cmpuint (s->window, <=, maxima[m]);
      g_assert_cmpuint (s->window, >=, last);
      if (i == 1)
        g_assert_cmpuint (s->window, ==, MIN (WINDOW_MIN, maxima[m]));
      else if (s->window != last) {
        g_assert_cmpuint (s->window, ==, MIN (2 * last, maxima[m]));
        g_assert_cmpuint (i + 1, >=, last / 4 * 4);     /* quarters of a unit that were read */
      }
      last = s->window;
    }
    g_assert_cmpuint (last, ==, maxima[m]);
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
    stream_answered (s, unit, i == 50);
    (void) stream_plan (s, unit, 64, UINT64_MAX / 2);
    if (i < 50)
      g_assert_cmpuint (s->window, ==, WINDOW_MIN);
    else
      g_assert_cmpuint (s->window, >, WINDOW_MIN);
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
  r = stream_plan (s, 64 * KIB, 0, MIB);
  g_assert_cmpuint (r.from, ==, r.to);
  r = stream_plan (s, 64 * KIB, 8, MIB);
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
          struct stream_range r = stream_plan (s, unit, g_test_rand_int_range (1, 70), size);

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
  struct stream_range r = stream_plan (s, unit, 8, 100 * MIB), again;

  g_assert_cmpuint (r.to - r.from, >=, 4 * unit);
  stream_cut (s, r.from + 2 * unit);           /* there were two buffers */
  again = stream_plan (s, unit, 8, 100 * MIB);
  g_assert_cmpuint (again.from, ==, r.from + 2 * unit);
  g_assert_cmpuint (again.to, >=, r.to);
  stream_cut (s, again.to);                    /* nothing of it */
  again = stream_plan (s, unit, 8, 100 * MIB);
  g_assert_cmpuint (again.from, ==, again.to);
  stream_cut (s, r.from);                      /* there was none */
  again = stream_plan (s, unit, 8, 100 * MIB);
  g_assert_cmpuint (again.from, <, again.to);
  g_assert_cmpuint (again.from, ==, r.from);
}

static void
test_stream_end (gconstpointer data)
{
  uint32_t count = GPOINTER_TO_UINT (data), unit = 64 * KIB;
  struct streams t = { 0 };
  struct stream *other = begin_stream (&t, 50 * MIB, count), *s = begin_stream (&t, 0, count);
  struct stream_range r = stream_plan (s, unit, 8, 100 * MIB);

  stream_plan (other, unit, 8, 100 * MIB);
  stream_end (&t, r.from, r.from + unit);
  g_assert_cmpuint (stream_active (&t, 3), ==, 1);
  /* Who still has it gets nothing. */
  stream_answered (s, MIB, true);
  r = stream_plan (s, unit, 100, 100 * MIB);
  g_assert_cmpuint (r.from, ==, r.to);
  g_assert_null (note (&t, 2 * count, count, 0, 4));
  g_assert_true (note (&t, 50 * MIB + 2 * count, count, 0, 5) == other);
  /* It starts small again. */
  s = note (&t, 3 * count, count, 0, 6);
  g_assert_nonnull (s);
  g_assert_cmpuint (s->window, ==, WINDOW_MIN);
}

/* Jumps.  The stream has read units 0 and 1, and 2 to 9 are read ahead: its window is 8. */

#define U (64 * KIB)

static struct stream *
begin_to_jump (struct streams *t)
{
  struct stream *s = begin_stream (t, 0, U);
  struct stream_range r = stream_plan (s, U, 8, 10000 * MIB);

  g_assert_cmpuint (r.to, ==, 10 * U);
  g_assert_cmpuint (s->window, ==, 8);
  return s;
}

struct jump {
  const char *name;
  uint64_t to, slack;
  bool taken;
  struct stream_range left;
};

static const struct jump jumps[] = {
  { "inside", 5 * U, 0, true, { 2 * U, 5 * U } },
  { "odd", 5 * U + 512, 0, true, { 2 * U, 5 * U + 512 } },
  { "first-byte", 2 * U + 1, 0, true, { 2 * U, 2 * U + 1 } },
  { "last-byte", 10 * U - 1, 0, true, { 2 * U, 10 * U - 1 } },
  { "edge", 10 * U, 0, true, { 2 * U, 10 * U } },
  { "far", 18 * U - 1, 0, true, { 2 * U, 10 * U } },
  { "far-edge", 18 * U, 0, false, { 0 } },
  { "beyond", 1000 * U, 0, false, { 0 } },
  { "backwards", 0, 0, false, { 0 } },
  { "slack", 5 * U, U, true, { 2 * U, 4 * U } },
  { "slack-most", 5 * U, 3 * U - 1, true, { 2 * U, 2 * U + 1 } },
};

static void
test_stream_jump (gconstpointer data)
{
  const struct jump *j = data;
  struct streams t = { 0 };
  struct stream *s = begin_to_jump (&t), *got;
  struct stream_range left, r;

  g_assert_null (stream_note (&t, j->to, U, j->slack, 3, &left));
  g_assert_cmpuint (left.from, ==, left.to);
  g_assert_cmpuint (s->end, ==, 2 * U);                 /* nothing yet */
  g_assert_cmpuint (stream_active (&t, 3), ==, 1);
  got = stream_note (&t, j->to + U, U, j->slack, 4, &left);
  g_assert_cmpuint (left.from, ==, j->left.from);
  g_assert_cmpuint (left.to, ==, j->left.to);
  g_assert_true ((got == s) == j->taken);
  g_assert_cmpuint (stream_active (&t, 4), ==, j->taken ? 1 : 2);
  g_assert_cmpuint (got->window, ==, j->taken ? 8 : WINDOW_MIN);
  g_assert_cmpuint (got->end, ==, j->to + 2 * U);
  g_assert_cmpuint (got->answered, ==, U);              /* not what was skipped or before */
  g_assert_cmpuint (got->began_ns, ==, 3);
  if (!j->taken)
    return;
  stream_answered (s, U, false);
  r = stream_plan (s, U, 8, 10000 * MIB);
  g_assert_cmpuint (r.from, ==, MAX (10, s->end / U) * U);
  g_assert_cmpuint (r.to, ==, (s->end / U + 8) * U);
  g_assert_true (note (&t, s->end, U, j->slack, 5) == s);
  g_assert_null (note (&t, j->to + U, U, 0, 6));        /* none is left there */
}

/* With enough slack it is no jump, and nothing is left. */
static void
test_stream_jump_slack (void)
{
  struct streams t = { 0 };
  struct stream *s = begin_to_jump (&t);

  g_assert_true (note (&t, 5 * U, U, 3 * U, 3) == s);
  g_assert_cmpuint (s->end, ==, 6 * U);
  g_assert_true (note (&t, 3 * U, U, 3 * U, 4) == s);   /* was overtaken */
  g_assert_cmpuint (s->end, ==, 6 * U);
  /* It may be more for the second read of a jump. */
  stream_plan (s, U, 8, 10000 * MIB);
  g_assert_null (note (&t, 9 * U, U, 0, 5));
  g_assert_true (note (&t, 10 * U, U, 10 * U, 6) == s);
}

/* In the windows of two streams: of the nearer one, unless it continues one. */
static void
test_stream_jump_two (void)
{
  struct streams t = { 0 };
  struct stream *b = begin_stream (&t, 6 * U, U), *a;
  struct stream_range left;

  stream_plan (b, U, 8, 10000 * MIB);
  a = begin_to_jump (&t);
  g_assert_true (note (&t, 8 * U, U, 0, 4) == b);       /* inside what is ahead of the other one */
  g_assert_true (note (&t, 2 * U, U, 0, 5) == a);
  g_assert_null (note (&t, 9 * U + 512, 512, 0, 6));
  g_assert_true (stream_note (&t, 9 * U + 1024, 512, 0, 7, &left) == b);
  g_assert_cmpuint (left.from, ==, 9 * U);
  g_assert_cmpuint (left.to, ==, 9 * U + 512);
  g_assert_null (note (&t, 8 * U, 512, 0, 8));          /* behind that one now */
  g_assert_true (stream_note (&t, 8 * U + 512, 512, 0, 9, &left) == a);
  g_assert_cmpuint (left.from, ==, 3 * U);
  g_assert_cmpuint (left.to, ==, 8 * U);
}

/* Single reads ahead leave the stream where it is; the first that is continued is the jump. */
static void
test_stream_jump_again (void)
{
  struct streams t = { 0 };
  struct stream *s = begin_to_jump (&t), *other;
  struct stream_range left;

  g_assert_null (note (&t, 4 * U, U, 0, 3));
  g_assert_null (note (&t, 6 * U, U, 0, 4));
  g_assert_null (note (&t, 8 * U, U, 0, 5));
  g_assert_cmpuint (s->end, ==, 2 * U);
  g_assert_true (stream_note (&t, 7 * U, U, 0, 6, &left) == s);
  g_assert_cmpuint (left.from, ==, 2 * U);
  g_assert_cmpuint (left.to, ==, 6 * U);
  g_assert_cmpuint (s->window, ==, 8);
  other = note (&t, 5 * U, U, 0, 7);                    /* it has gone from there */
  g_assert_true (other && other != s);
  g_assert_cmpuint (other->window, ==, WINDOW_MIN);
  g_assert_cmpuint (s->end, ==, 8 * U);
}

/* Who goes on in his own place keeps his window, whoever begins to read in it; and where he comes to
 * what he has looked at before.
 */
static void
test_stream_jump_beside (void)
{
  struct streams t = { 0 };
  struct stream *s, *other;

  note (&t, 5 * U, U, 0, 0);                            /* gets the first place */
  s = begin_to_jump (&t);
  g_assert_null (note (&t, 8 * U, U, 0, 3));
  for (unsigned i = 2; i < 6; i++)
    g_assert_true (note (&t, i * U, U, 0, 2 + i) == s);
  g_assert_true (note (&t, 6 * U, U, 0, 8) == s);       /* both ended there */
  g_assert_cmpuint (s->window, ==, 8);
  other = note (&t, 9 * U, U, 0, 9);
  g_assert_true (other && other != s);
  g_assert_cmpuint (other->window, ==, WINDOW_MIN);
  g_assert_true (note (&t, 7 * U, U, 0, 10) == s);
}

/* Random reads in a window, also in pairs, cost nobody the window, nor make one grow. */
static void
test_stream_jump_random (gconstpointer data)
{
  unsigned reads = GPOINTER_TO_UINT (data);             /* in a row */
  struct streams t = { 0 };
  struct stream *s = begin_to_jump (&t);
  unsigned now_ns = 10;

  for (unsigned i = 0; i < 1000; i++) {
    uint64_t offset = s->end + g_test_rand_int_range (1, 15) * UINT64_C (16384) + 4096;

    for (unsigned n = 0; n < reads; n++, offset += 2048) {
      struct stream_range left;
      struct stream *got = stream_note (&t, offset, 2048, 0, ++now_ns, &left);

      g_assert_true (got == (n > 0 ? s : NULL));
      if (got) {
        stream_answered (s, 2048, true);
        (void) stream_plan (s, U, 64, 10000 * MIB);
      }
    }
    g_assert_cmpuint (s->window, ==, 8);
    if (reads == 1) {
      g_assert_true (stream_note (&t, s->end, U, 0, ++now_ns, &(struct stream_range) { 0 }) == s);
      (void) stream_plan (s, U, 8, 10000 * MIB);
    }
  }
  g_assert_cmpuint (stream_active (&t, now_ns), ==, 1);
}

#undef U

/* Streams with these windows and times of the last read; the first one began at time 10. */
static void
make_streams (struct streams *t, const uint32_t *window, const uint64_t *last_ns, unsigned n)
{
  *t = (struct streams) { 0 };
  for (unsigned i = 0; i < n; i++)
    t->s[i] = (struct stream) { .used = true, .end = i * 1024 * MIB + 1000, .window = window[i],
                                .ahead = i * 1024 * MIB + window[i] * 64 * KIB,
                                .began_ns = i == 0 ? 10 : 1, .last_ns = last_ns[i] };
}

/* What is left beside small streams, an equal part beside large ones, all beside those that were not
 * read from since it began, or not for long.
 */
static void
test_stream_part (void)
{
  const uint64_t old = 20 + STREAM_IDLE_NS;
  struct streams t;

  make_streams (&t, (uint32_t[]) { 4, 4, 0 }, (uint64_t[]) { 20, 20, 20 }, 3);
  g_assert_cmpuint (stream_part (&t, &t.s[0], 64, 20), ==, 60);
  make_streams (&t, (uint32_t[]) { 4, 64 }, (uint64_t[]) { 20, 20 }, 2);
  g_assert_cmpuint (stream_part (&t, &t.s[0], 64, 20), ==, 32);
  g_assert_cmpuint (stream_part (&t, &t.s[1], 64, 20), ==, 60);
  make_streams (&t, (uint32_t[]) { 4, 64, 8, 64 }, (uint64_t[]) { 20, 20, 20, 20 }, 4);
  g_assert_cmpuint (stream_part (&t, &t.s[0], 64, 20), ==, 64 - 16 - 8 - 16);
  g_assert_cmpuint (stream_part (&t, &t.s[0], 0, 20), ==, 0);
  make_streams (&t, (uint32_t[]) { 4, 64 }, (uint64_t[]) { 20, 9 }, 2);
  g_assert_cmpuint (stream_part (&t, &t.s[0], 64, 20), ==, 64);
  make_streams (&t, (uint32_t[]) { 4, 64 }, (uint64_t[]) { old, 20 }, 2);
  g_assert_cmpuint (stream_part (&t, &t.s[0], 64, old - 1), ==, 32);
  g_assert_cmpuint (stream_part (&t, &t.s[0], 64, old), ==, 64);
  g_assert_cmpuint (stream_part (&t, &t.s[1], 64, 19), ==, 60);         /* a time from before */
}

/* The far end of who was left longest ago, in units, and nothing of one that goes on. */
static void
test_stream_take (void)
{
  const uint64_t far = 1024 * MIB;
  struct stream_range r;
  struct streams t;

  make_streams (&t, (uint32_t[]) { 4, 8, 8, 8 }, (uint64_t[]) { 20, 10, 9, 8 }, 4);
  r = stream_take (&t, &t.s[0], 64 * KIB, 2 * 64 * KIB + 512);
  g_assert_cmpuint (r.to, ==, 3 * far + 8 * 64 * KIB);
  g_assert_cmpuint (r.from, ==, r.to - 3 * 64 * KIB);
  g_assert_cmpuint (t.s[3].ahead, ==, r.from);
  r = stream_take (&t, &t.s[0], 64 * KIB, far);
  g_assert_cmpuint (r.to, ==, 3 * far + 5 * 64 * KIB);
  g_assert_cmpuint (r.from, ==, 3 * far);
  r = stream_take (&t, &t.s[0], 64 * KIB, far);
  g_assert_cmpuint (r.to, ==, 2 * far + 8 * 64 * KIB);
  r = stream_take (&t, &t.s[0], 64 * KIB, far);
  g_assert_cmpuint (r.from, ==, r.to);
  g_assert_cmpuint (t.s[1].ahead, ==, far + 8 * 64 * KIB);

  /* Not what it comes to itself. */
  make_streams (&t, (uint32_t[]) { 4, 8 }, (uint64_t[]) { 20, 9 }, 2);
  t.s[0].end = t.s[1].end + 64 * KIB;
  t.s[0].ahead = t.s[1].ahead + 64 * KIB;
  r = stream_take (&t, &t.s[0], 64 * KIB, far);
  g_assert_cmpuint (r.from, ==, r.to);
  t.s[0].end = t.s[1].ahead;
  r = stream_take (&t, &t.s[0], 64 * KIB, far);
  g_assert_cmpuint (r.to, ==, far + 8 * 64 * KIB);
}

/* Who is followed by another, of some length, ends, and leaves it the window that it has earned. */
static void
test_stream_succeed (void)
{
  const uint32_t unit = 64 * KIB;
  struct stream_range r;
  struct streams t;

  make_streams (&t, (uint32_t[]) { 4, 64 }, (uint64_t[]) { 20, 9 }, 2);
  t.s[1].answered = 1000 * unit;
  t.s[0].start = 100 * MIB;
  t.s[0].end = t.s[0].start + 4 * unit - 1;     /* too short */
  r = stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (r.from, ==, r.to);
  t.s[0].end++;
  t.s[1].last_ns = 10;                          /* not left */
  stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (t.s[0].window, ==, 4);
  t.s[1].last_ns = 9;
  t.s[1].answered = 4 * unit;                   /* not earned */
  stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (t.s[0].window, ==, 4);
  t.s[0].began_ns = t.s[1].last_ns + STREAM_IDLE_NS;    /* long ago */
  t.s[1].answered = 1000 * unit;
  stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (t.s[0].window, ==, 4);
  t.s[0].began_ns--;
  r = stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (t.s[0].window, ==, 64);
  g_assert_cmpuint (r.from, ==, 1024 * MIB + 1000);
  g_assert_cmpuint (r.to, ==, 1024 * MIB + 64 * unit);
  g_assert_true (t.s[1].left);

  /* Within what was read ahead there: that is kept. */
  make_streams (&t, (uint32_t[]) { 4, 64 }, (uint64_t[]) { 20, 9 }, 2);
  t.s[1].answered = 1000 * unit;
  t.s[0].start = 1024 * MIB + 30 * unit;
  t.s[0].end = 1024 * MIB + 34 * unit;
  t.s[0].ahead = 1024 * MIB + 38 * unit;
  r = stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (t.s[0].window, ==, 64);
  g_assert_cmpuint (t.s[0].ahead, ==, 1024 * MIB + 64 * unit);
  g_assert_cmpuint (r.from, ==, 1024 * MIB + 1000);
  g_assert_cmpuint (r.to, ==, t.s[0].start);
  g_assert_true (t.s[1].left);

  /* It began there, and has come out of it: what it reads just now is not dropped. */
  make_streams (&t, (uint32_t[]) { 4, 64 }, (uint64_t[]) { 20, 9 }, 2);
  t.s[1].answered = 1000 * unit;
  t.s[0].start = 1024 * MIB + 62 * unit;
  t.s[0].end = t.s[1].ahead + 2 * unit;
  t.s[0].ahead = t.s[0].end + 4 * unit;
  r = stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (r.from, ==, 1024 * MIB + 1000);
  g_assert_cmpuint (r.to, ==, t.s[0].start);

  make_streams (&t, (uint32_t[]) { 4, 64 }, (uint64_t[]) { 20, 9 }, 2);
  t.s[1].answered = 20 * unit;
  t.s[0].end = t.s[0].start + 4 * unit;
  stream_succeed (&t, &t.s[0], unit);
  g_assert_cmpuint (t.s[0].window, ==, 20);
}

/* A last read of the one stream comes after the first ones of the next. */
static void
test_stream_late (void)
{
  const uint32_t unit = 64 * KIB;
  struct stream_range left;
  struct stream *s = NULL;
  struct streams t = { 0 };

  for (unsigned i = 0; i < 100; i++)
    if ((s = stream_note (&t, i * unit, unit, 8 * unit, i, &left)) != NULL) {
      stream_answered (s, unit, true);
      stream_plan (s, unit, 32, 1024 * MIB);
    }
  g_assert_cmpuint (s->window, ==, 32);
  for (unsigned i = 0; i < 7; i++) {
    s = stream_note (&t, 512 * MIB + i * unit, unit, 8 * unit, 100 + 2 * i, &left);
    if (i < 4)
      stream_note (&t, (100 + i) * unit, unit, 8 * unit, 101 + 2 * i, &left);
    if (s)
      stream_succeed (&t, s, unit);
  }
  g_assert_cmpuint (s->window, ==, WINDOW_MIN); /* side by side until a moment ago */
  for (unsigned i = 7; i < 16; i++) {
    s = stream_note (&t, 512 * MIB + i * unit, unit, 8 * unit, 100 + 2 * i, &left);
    stream_succeed (&t, s, unit);
  }
  g_assert_cmpuint (s->window, ==, 32);
}

/* Who reads here and there in turn has two streams, and at most once one takes the other's window. */
static void
test_stream_in_turn (void)
{
  const uint32_t unit = 64 * KIB;
  struct stream_range left;
  struct streams t = { 0 };
  uint64_t now = 0;
  unsigned taken = 0;

  for (unsigned turn = 0; turn < 20; turn++)
    for (unsigned i = 0; i < 32; i++) {
      struct stream *s = stream_note (&t, turn % 2 * 512 * MIB + (turn / 2 * 32 + i) * unit, unit, 0, now++, &left);

      if (s == NULL)
        continue;
      stream_answered (s, unit, true);
      left = stream_succeed (&t, s, unit);
      taken += left.from < left.to;
      stream_plan (s, unit, 32, 1024 * MIB);
    }
  g_assert_cmpuint (taken, <=, 1);
  g_assert_cmpuint (stream_active (&t, now), ==, 2);
}

/* Who lacked buffers, of several the last one read from, until it is planned again. */
static void
test_stream_hungry (void)
{
  struct streams t;

  make_streams (&t, (uint32_t[]) { 4, 8, 8 }, (uint64_t[]) { 20, 30, 10 }, 3);
  g_assert_null (stream_hungry (&t));
  for (unsigned i = 0; i < 3; i++)
    stream_cut (&t.s[i], t.s[i].end + 1);
  g_assert_true (stream_hungry (&t) == &t.s[1]);
  stream_plan (&t.s[1], 64 * KIB, 64, 9 * 1024 * MIB);
  g_assert_true (stream_hungry (&t) == &t.s[0]);
  t.s[1].began_ns = 25;                         /* the others have been left for it */
  g_assert_null (stream_hungry (&t));
  t.s[1].began_ns = 1;
  stream_end (&t, 0, 500 * MIB);
  g_assert_true (stream_hungry (&t) == &t.s[2]);
}

/* Every stream is counted, whoever reads, at the turn of an epoch too, and forgotten after two. */
static void
test_stream_census (void)
{
  const uint64_t t0 = 5 * STREAM_IDLE_NS;
  struct stream_census census = { 0 };
  struct stream_counted c[4] = { 0 };

  for (unsigned i = 0; i < 4; i++)
    g_assert_cmpuint (stream_census (&census, &c[i], 2, 60, t0 + i), ==, 60 / (i + 1));
  g_assert_cmpuint (stream_census (&census, &c[0], 3, 90, t0 + 9), ==, 30);
  g_assert_cmpuint (stream_census (&census, &c[1], 1, 90, t0 + 9), ==, 20);
  /* The next epoch begins with one of them, and with requests that came before it did. */
  g_assert_cmpuint (stream_census (&census, &c[0], 1, 90, t0 + STREAM_IDLE_NS), ==, 30);
  g_assert_cmpuint (stream_census (&census, &c[1], 2, 90, t0 + STREAM_IDLE_NS - 1), ==, 20);
  g_assert_cmpuint (stream_census (&census, &c[0], 3, 90, t0 + STREAM_IDLE_NS + 1), ==, 30);
  /* Two of four went on. */
  g_assert_cmpuint (stream_census (&census, &c[0], 3, 90, t0 + 2 * STREAM_IDLE_NS), ==, 54);
  g_assert_cmpuint (stream_census (&census, &c[3], 2, 90, t0 + 9 * STREAM_IDLE_NS), ==, 90);
}

static void
test_stream_recycling (void)
{
  uint32_t unit = 64 * KIB;
  struct streams t = { 0 };
  struct stream *s[STREAMS];
  struct stream_range plan[STREAMS], left;

  for (unsigned i = 0; i < STREAMS; i++) {
    note (&t, i * 100 * MIB, unit, 0, 2 * i);
    s[i] = note (&t, i * 100 * MIB + unit, unit, 0, 2 * i + 1);
    plan[i] = stream_plan (s[i], unit, 8, 10000 * MIB);
  }
  g_assert_true (note (&t, 2 * unit, unit, 0, 1000) == s[0]);   /* the second is the oldest now */
  g_assert_null (stream_note (&t, 9000 * MIB, unit, 0, 1001, &left));
  g_assert_cmpuint (left.from, ==, plan[1].from);
  g_assert_cmpuint (left.to, ==, plan[1].to);
  /* Nothing was read ahead for the newcomer, but its neighbour goes next. */
  g_assert_null (stream_note (&t, 9100 * MIB, unit, 0, 1002, &left));
  g_assert_cmpuint (left.from, ==, plan[2].from);
  g_assert_true (stream_note (&t, 9000 * MIB + unit, unit, 0, 1003, &left) == s[1]);
  g_assert_cmpuint (left.from, ==, left.to);
  g_assert_cmpuint (s[1]->window, ==, WINDOW_MIN);
}

/* Pace. */

static void
test_pace (void)
{
  uint64_t slow = PACE_COPY_NS + MIB + 5000, fast = PACE_COPY_NS + MIB;
  struct pace p = { 0 };

  g_assert_cmpuint (pace_wait_ns (&p), ==, 0);  /* unknown */
  pace_note (&p, slow, MIB);
  g_assert_cmpuint (pace_wait_ns (&p), ==, 5000);       /* the first one decides */
  pace_note (&p, slow + 1000, MIB);
  g_assert_cmpuint (pace_wait_ns (&p), ==, 6000);
  pace_note (&p, fast, MIB);                    /* one fast one turns it off */
  g_assert_cmpuint (pace_wait_ns (&p), ==, 0);
  for (unsigned i = 1; i < PACE_RUN; i++) {
    pace_note (&p, slow, MIB);
    g_assert_cmpuint (pace_wait_ns (&p), ==, 0);
  }
  pace_note (&p, slow, MIB);                    /* so many in a row turn it on */
  g_assert_cmpuint (pace_wait_ns (&p), ==, 5000);

  p = (struct pace) { 0 };
  pace_note (&p, fast, MIB);
  g_assert_cmpuint (pace_wait_ns (&p), ==, 0);
  for (unsigned i = 0; i < 10 * PACE_RUN; i++) {        /* one slow among fast ones */
    pace_note (&p, i % PACE_RUN ? slow : fast, MIB);
    g_assert_cmpuint (pace_wait_ns (&p), ==, 0);
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
    stats_end (s, STATS_READ, stats_now_ns () - i * UINT64_C (1000000), 10);
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
        stats_end (s, STATS_TRIM, stats_now_ns () - ns, 1);
      stats_end (s, STATS_TRIM, stats_now_ns () - 4 * ns, 1);   /* not clipped to the maximum */
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
    stats_add (s, STATS_COMBINED, 2);
    stats_end (s, STATS_WRITE, stats_now_ns (), 3);
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
  g_assert_cmpuint (stats_counter (s, STATS_COMBINED), ==, 400000);
  g_assert_cmpuint (stats_counter (s, STATS_BEHIND), ==, 0);
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
  g_test_add_func ("/copy", test_copy);
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
  g_test_add_func ("/stream/succeed", test_stream_succeed);
  g_test_add_func ("/stream/late", test_stream_late);
  g_test_add_func ("/stream/in-turn", test_stream_in_turn);
  g_test_add_func ("/stream/hungry", test_stream_hungry);
  g_test_add_func ("/stream/census", test_stream_census);
  g_test_add_data_func ("/stream/end/units", GUINT_TO_POINTER (65536), test_stream_end);
  g_test_add_data_func ("/stream/end/small", GUINT_TO_POINTER (4096), test_stream_end);
  g_test_add_func ("/stream/recycling", test_stream_recycling);
  for (unsigned i = 0; i < G_N_ELEMENTS (jumps); i++) {
    g_autofree char *path = g_strdup_printf ("/stream/jump/%s", jumps[i].name);

    g_test_add_data_func (path, &jumps[i], test_stream_jump);
  }
  g_test_add_func ("/stream/jump/within-slack", test_stream_jump_slack);
  g_test_add_func ("/stream/jump/two", test_stream_jump_two);
  g_test_add_func ("/stream/jump/again", test_stream_jump_again);
  g_test_add_func ("/stream/jump/beside", test_stream_jump_beside);
  g_test_add_data_func ("/stream/jump/random", GUINT_TO_POINTER (1), test_stream_jump_random);
  g_test_add_data_func ("/stream/jump/random-pairs", GUINT_TO_POINTER (2), test_stream_jump_random);
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
