/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Statistics (filter/stats.h), through the report that stats_print writes.
 *
 * Not its job: which operation of the filter counts as what (test-stats.sh).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "stats.h"
#include "table.h"

/* The rest of the report's only line that begins with NAME. */
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

/* A line of the report for one kind of operation. */
struct line {
  unsigned long count, bytes;
  double min, mean, p50, p99, max;      /* ms */
  unsigned long min_bytes, max_bytes, mean_bytes;
};

/* The line of this name, which has N_FIELDS fields. */
static struct line
scan_line (const struct stats *s, const char *name, int n_fields)
{
  g_autofree char *text = print_line (s, name);
  struct line l = { 0 };
  int n = sscanf (text, "%lu %lu %lf %lf %lf %lf %lf %lu..%lu, mean %lu",
                  &l.count, &l.bytes, &l.min, &l.mean, &l.p50, &l.p99, &l.max,
                  &l.min_bytes, &l.max_bytes, &l.mean_bytes);

  g_assert_cmpint (n, ==, n_fields);
  return l;
}

/* A latency of EXPECTED ms.  The machine may add up to 20 ms while the test
 * notes it.
 */
static void
assert_ms (double got, double expected, double tolerance)
{
  g_assert_cmpfloat (got, >=, expected * (1 - tolerance));
  g_assert_cmpfloat (got, <=, expected * (1 + tolerance) + 20);
}

/* Latencies of 1 to 1000 ms, not in order. */
static void
test_quantiles (void)
{
  struct stats *s = stats_new ();
  struct line l;

  for (unsigned i = 0; i < 1000; i++) {
    uint64_t ms = (i * 7 + 500) % 1000 + 1;

    stats_end (s, STATS_READ, clock_ns () - ms * 1000000, 10);
  }
  g_assert_cmpuint (stats_count (s, STATS_READ), ==, 1000);
  g_assert_cmpuint (stats_count (s, STATS_WRITE), ==, 0);
  l = scan_line (s, "read ", 7);
  g_assert_cmpuint (l.count, ==, 1000);
  g_assert_cmpuint (l.bytes, ==, 10000);
  assert_ms (l.min, 1, 0);
  assert_ms (l.mean, 500.5, 0);
  assert_ms (l.p50, 500, 0.125);
  assert_ms (l.p99, 990, 0.125);
  assert_ms (l.max, 1000, 0);
  stats_free (s);
}

/* The median of latencies near a power of two, where the histogram's buckets
 * begin and end.  It is not below the latency, as the quantile is the upper end
 * of a bucket.  A longer operation keeps it from being clipped to the maximum.
 */
static void
check_median (uint64_t ns)
{
  struct stats *s = stats_new ();
  struct line l;

  for (unsigned i = 0; i < 3; i++)
    stats_end (s, STATS_TRIM, clock_ns () - ns, 1);
  stats_end (s, STATS_TRIM, clock_ns () - 4 * ns, 1);
  l = scan_line (s, "trim ", 7);
  assert_ms (l.p50, ns / 1e6, 0.125);
  g_assert_cmpfloat (l.p50, >=, ns / 1e6 - 0.001);
  stats_free (s);
}

static void
test_buckets (void)
{
  /* Below 2^25 ns the time that the machine adds is too large a part. */
  for (unsigned power = 25; power < 40; power++)
    for (int d = -1; d <= 1; d++)
      check_median ((UINT64_C (1) << power) + d);
}

/* Five writes in flight together, of 1000 to 5000 bytes. */
static void
test_device (void)
{
  struct stats *s = stats_new ();
  g_autofree char *in_flight = NULL;
  uint64_t start_ns[5];
  unsigned peak;
  double mean;
  struct line l;

  for (unsigned i = 0; i < 5; i++)
    start_ns[i] = stats_begin_device (s);
  g_usleep (20000);             /* much longer than begin and end take */
  for (unsigned i = 0; i < 5; i++)
    g_assert_cmpuint (stats_end_device (s, STATS_DEVICE_WRITE, start_ns[i],
                                        1000 * (i + 1)),
                      >=, start_ns[i] + 20000000);
  /* Later ones do not add to the peak. */
  stats_end_device (s, STATS_DEVICE_READ, stats_begin_device (s), 1);
  l = scan_line (s, "plugin write ", 10);
  g_assert_cmpuint (l.count, ==, 5);
  g_assert_cmpuint (l.bytes, ==, 15000);
  g_assert_cmpuint (l.min_bytes, ==, 1000);
  g_assert_cmpuint (l.max_bytes, ==, 5000);
  g_assert_cmpuint (l.mean_bytes, ==, 3000);
  in_flight = print_line (s, "in the plugin: ");
  g_assert_cmpint (sscanf (in_flight, "peak %u, mean %lf", &peak, &mean), ==,
                   2);
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

/* More threads than there are shards: no count is lost. */
static void
test_threads (void)
{
  struct stats *s = stats_new ();
  GThread *threads[20];
  struct line l;

  for (unsigned i = 0; i < G_N_ELEMENTS (threads); i++)
    threads[i] = g_thread_new (NULL, count_many, s);
  for (unsigned i = 0; i < G_N_ELEMENTS (threads); i++)
    g_thread_join (threads[i]);
  g_assert_cmpuint (stats_counter (s, STATS_COALESCED), ==, 400000);
  g_assert_cmpuint (stats_counter (s, STATS_DEFERRED), ==, 0);
  l = scan_line (s, "write ", 7);
  g_assert_cmpuint (l.count, ==, 200000);
  g_assert_cmpuint (l.bytes, ==, 600000);
  stats_free (s);
}

static void
assert_line_has (const struct stats *s, const char *name, const char *text)
{
  g_autofree char *line = print_line (s, name);

  g_assert_nonnull (strstr (line, text));
}

/* The report has each line once, and each counter in its place. */
static void
test_lines (void)
{
  static const char *const names[] = {
    "asyncpool statistics", "operation ", "read ", "write ", "zero ", "trim ",
    "flush ", "extents ", "cache ", "plugin read ", "plugin write ",
    "plugin extents ", "buffer wait ", "in the plugin: ", "read-ahead: ",
    "write-behind: ", "block status: ", "zeroes: ", "barriers: ",
  };
  struct stats *s = stats_new ();

  for (unsigned i = 0; i < G_N_ELEMENTS (names); i++)
    g_free (print_line (s, names[i]));
  /* Without operations there are no sizes. */
  assert_line_has (s, "plugin read ", "-  -");
  assert_line_has (s, "plugin write ", "-  -");
  for (enum stats_counter c = 0; c < STATS_COUNTERS; c++)
    stats_add (s, c, 1000000 >> c);
  assert_line_has (s, "read-ahead: ", "1000000 bytes issued, "
                   "500000 used, 500000 wasted, 250000 operations failed");
  assert_line_has (s, "write-behind: ", "125000 writes held, "
                   "62500 of them combined, 15625 deferred errors");
  assert_line_has (s, "barriers: ", "31250 operations");
  assert_line_has (s, "block status: ", "3906 requests answered without the "
                   "plugin, 1953 questions asked ahead");
  assert_line_has (s, "zeroes: ", "976 reads, 488 bytes, answered without "
                   "the plugin");
  stats_free (s);
}

static const struct test tests[] = {
  { "/statistics/quantiles-are-within-12-percent", .run = test_quantiles },
  { "/statistics/medians-at-powers-of-two", .run = test_buckets },
  { "/statistics/operations-in-flight", .run = test_device },
  { "/statistics/no-thread's-count-is-lost", .run = test_threads },
  { "/statistics/the-report-has-all-lines", .run = test_lines },
};

TABLE_MAIN (tests)
