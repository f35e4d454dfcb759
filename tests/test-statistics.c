/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Statistics (filter/stats.h), through the reports of report.h: the text, and
 * Prometheus' format.
 *
 * Not its job: which operation of the filter counts as what (test-stats.sh),
 * and the grammar of Prometheus' format (tests/prometheus.py).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "limit.h"
#include "report.h"
#include "table.h"

static struct stats_now now;     /* for the reports */

/* As text, or for the file PROM. */
static char *
print (const struct stats *s, const char *prom)
{
  char *text = NULL;
  size_t length;
  FILE *fp = open_memstream (&text, &length);

  if (prom)
    report_prom (s, &now, prom, fp);
  else
    report_text (s, &now, fp);
  fclose (fp);
  return text;
}

/* The rest of the report's only line that begins with NAME. */
static char *
line_of (char *text, const char *name)
{
  char **lines = g_strsplit (text, "\n", -1);
  char *line = NULL;

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

static char *
print_line (const struct stats *s, const char *name)
{
  return line_of (print (s, NULL), name);
}

/* The value of a metric of file a.prom. */
static double
metric (const struct stats *s, const char *name, const char *labels)
{
  g_autofree char *series = g_strdup_printf (
    "nbdkit_asyncpool_%s{server=\"a\"%s} ", name, labels);
  g_autofree char *value = line_of (print (s, "a.prom"), series);

  return g_ascii_strtod (value, NULL);
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
  stats_fill (s, &now);
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
    "plugin extents ", "buffer wait ", "in the plugin: ", "fast plugin: ",
    "read-ahead: ", "write-back: ", "block status: ", "zeroes: ", "barriers: ",
  };
  struct stats *s = stats_new ();

  for (unsigned i = 0; i < G_N_ELEMENTS (names); i++)
    g_free (print_line (s, names[i]));
  /* Without operations there are no sizes. */
  assert_line_has (s, "plugin read ", "-  -");
  assert_line_has (s, "plugin write ", "-  -");
  stats_free (s);
}

/* Every counter and every moment's value has its place in the text, and a
 * metric with the same value.  None is listed twice.
 */
static const struct place {
  const char *metric, *labels, *line, *text;
} counters[STATS_COUNTERS] = {
#define PLACE(c, metric, line, text) \
  [STATS_##c] = { metric "_total", "", line, text }
  PLACE (FAST, "fast_plugin_requests", "fast plugin: ",
         "@ reads and writes passed on"),
  PLACE (AHEAD_BYTES, "read_ahead_bytes", "read-ahead: ", "@ bytes issued"),
  PLACE (AHEAD_USED, "read_ahead_used_bytes", "read-ahead: ", "@ used"),
  PLACE (AHEAD_WASTED, "read_ahead_wasted_bytes", "read-ahead: ",
         "@ wasted"),
  PLACE (AHEAD_UNREAD, "read_ahead_wasted_operations", "read-ahead: ",
         "@ operations wasted"),
  PLACE (AHEAD_FAILED, "read_ahead_failures", "read-ahead: ",
         "@ operations failed"),
  PLACE (DEFERRED, "deferred_writes", "write-back: ", "@ writes deferred"),
  PLACE (COALESCED, "coalesced_writes", "write-back: ",
         "@ of them coalesced"),
  PLACE (BARRIERS, "barriers", "barriers: ", "@ requests"),
  PLACE (DEFERRED_ERRORS, "deferred_write_errors", "write-back: ",
         "@ deferred errors"),
  PLACE (HOOKED, "hooked_operations", "async hooks: ", "@ operations"),
  PLACE (EXTENTS_KEPT, "extents_kept_requests", "block status: ",
         "@ requests answered without the plugin"),
  PLACE (EXTENTS_AHEAD, "extents_ahead_operations", "block status: ",
         "@ questions asked ahead"),
  PLACE (ZERO_READS, "zero_reads", "zeroes: ", "@ reads"),
  PLACE (ZERO_BYTES, "zero_read_bytes", "zeroes: ",
         "@ bytes, answered without the plugin"),
};

static void
check_place (const struct stats *s, const struct place *p, unsigned value)
{
  g_autofree char *number = g_strdup_printf ("%u", value);
  g_auto (GStrv) parts = g_strsplit (p->text, "@", 2);
  g_autofree char *text = g_strjoinv (number, parts);
  g_autofree char *line = print_line (s, p->line);
  g_autofree char *spaced = g_strconcat (" ", line, NULL);
  g_autofree char *wanted = g_strconcat (" ", text, NULL);

  if (strstr (spaced, wanted) == NULL)
    g_error ("\"%s\" has no \"%s\"", line, text);
  g_assert_cmpfloat (metric (s, p->metric, p->labels), ==, value);
}

static void
test_counters (void)
{
  struct stats *s = stats_new ();

  for (enum stats_counter c = 0; c < STATS_COUNTERS; c++)
    stats_add (s, c, 1000 + c);
  for (enum stats_counter c = 0; c < STATS_COUNTERS; c++)
    check_place (s, &counters[c], 1000 + c);
  stats_free (s);
}

static void
test_now (void)
{
  static const struct {
    double *value;
    struct place place;
  } values[] = {
#define BUFFERS(field, state) \
    { &now.buffers_##field, \
      { "buffers_now", ",state=\"" state "\"", "buffers: ", "@ " state } }
    BUFFERS (free, "free"), BUFFERS (reading, "reading"),
    BUFFERS (clean, "clean"), BUFFERS (dirty, "dirty"),
    BUFFERS (failed, "failed"), BUFFERS (taken, "taken"),
    { &now.buffers, { "buffers", "", "buffers: ", "@ in all" } },
    { &now.dirty_bytes, { "waiting_bytes", ",state=\"dirty\"",
                          "waiting data: ", "@ bytes dirty" } },
    { &now.failed_bytes, { "waiting_bytes", ",state=\"failed\"",
                           "waiting data: ", "@ bytes failed" } },
    { &now.writers, { "waiting_writers", "", "waiting data: ",
                      "@ writers wait for a buffer" } },
    { &now.threads, { "threads", "", "threads: ", "@ in all" } },
    { &now.threads_busy, { "threads_busy", "", "threads: ", "@ at work" } },
    { &now.read_limit.value, { "limit", ",kind=\"read\"", "limit: ",
                               "@ reads" } },
    { &now.write_limit.value, { "limit", ",kind=\"write\"", "limit: ",
                                "@ writes" } },
    { &now.read_limit.bytes, { "limit_operation_bytes", ",kind=\"read\"",
                               "largest operation: ",
                               "@ bytes prefetched" } },
    { &now.write_limit.bytes, { "limit_operation_bytes", ",kind=\"write\"",
                                "largest operation: ",
                                "@ bytes written" } },
    { &now.connections, { "connections", "", "clients: ",
                          "@ connections" } },
    { &now.contexts, { "contexts", "", "clients: ", "@ further contexts" } },
    { &now.in_flight, { "operations_in_flight", "", "in the plugin: ",
                        "@ now" } },
    { &now.peak, { "operations_in_flight_max", "", "in the plugin: peak ",
                   "@" } },
  };
  struct stats *s = stats_new ();

  /* With the mean, the hit rate, and two reasons and bases of limits, which
   * follow, these are all.
   */
  g_assert_cmpuint (sizeof now, ==,
                    sizeof (double) * (G_N_ELEMENTS (values) + 6));
  for (unsigned i = 0; i < G_N_ELEMENTS (values); i++)
    *values[i].value = 2000 + i;
  for (unsigned i = 0; i < G_N_ELEMENTS (values); i++)
    check_place (s, &values[i].place, 2000 + i);
  now = (struct stats_now) { .mean = 2.25, .hit_ratio = 0.75 };
  assert_line_has (s, "in the plugin: ", "mean 2.2 operations");
  g_assert_cmpfloat (metric (s, "operations_in_flight_mean", ""), ==, 2.25);
  assert_line_has (s, "hit rate: ", "75.0 % of the bytes");
  g_assert_cmpfloat (metric (s, "read_ahead_hit_ratio", ""), ==, 0.75);
  now = (struct stats_now) {
    .read_limit = { .reason = LIMIT_GROWS, .base = 0.0125 },
    .write_limit = { .reason = LIMIT_HAD_ERROR, .base = 0.003 }
  };
  assert_line_has (s, "limit of reads: ",
                   "it grew, as operations took no longer");
  assert_line_has (s, "limit of writes: ", "it was halved after an error");
  assert_line_has (s, "without a queue: ", "12.500 ms for a read");
  assert_line_has (s, "without a queue: ", "3.000 ms for a write");
  g_assert_cmpfloat (metric (s, "limit_reason", ",kind=\"read\""), ==,
                     LIMIT_GROWS);
  g_assert_cmpfloat (metric (s, "limit_reason", ",kind=\"write\""), ==,
                     LIMIT_HAD_ERROR);
  g_assert_cmpfloat (metric (s, "limit_base_seconds", ",kind=\"read\""), ==,
                     0.0125);
  g_assert_cmpfloat (metric (s, "limit_base_seconds", ",kind=\"write\""), ==,
                     0.003);
  now = (struct stats_now) { 0 };
  stats_free (s);
}

/* The lines of the limits fit into a terminal of 80 columns. */
static void
test_width (void)
{
  static const char *const names[] = {
    "limit: ", "limit of reads: ", "limit of writes: ", "without a queue: ",
    "largest operation: "
  };
  struct stats *s = stats_new ();

  now.read_limit = now.write_limit =
    (struct stats_limit) { .value = 2048, .base = 1.2345, .bytes = 1 << 20 };
  for (unsigned reason = 0; reason < LIMIT_REASONS; reason++) {
    now.read_limit.reason = now.write_limit.reason = reason;
    for (unsigned i = 0; i < G_N_ELEMENTS (names); i++) {
      g_autofree char *line = print_line (s, names[i]);

      g_assert_cmpuint (strlen (names[i]) + strlen (line), <=, 80);
    }
  }
  now = (struct stats_now) { 0 };
  stats_free (s);
}

static void
test_hit_rate (void)
{
  struct stats *s = stats_new ();
  struct stats_now filled;

  stats_fill (s, &filled);
  g_assert_cmpfloat (filled.hit_ratio, ==, 0);
  stats_add (s, STATS_AHEAD_USED, 300);
  stats_fill (s, &filled);      /* the read has not ended yet */
  g_assert_cmpfloat (filled.hit_ratio, ==, 1);
  stats_note (s, STATS_READ, 1, 1200);
  stats_note (s, STATS_DEVICE_READ, 1, 5000);
  stats_note (s, STATS_WRITE, 1, 5000);
  stats_fill (s, &filled);
  g_assert_cmpfloat (filled.hit_ratio, ==, 0.25);
  stats_free (s);
}

/* The kinds of operations: the text and the histograms agree.  An operation
 * counts in each bucket whose bound is not below its latency.
 */
static void
check_kind (enum stats_kind kind, const char *line, const char *family,
            const char *labels)
{
  static const uint64_t latencies_ns[] = {
    1, (1 << 20) - 1, 1 << 20, (1 << 22) - 1, UINT64_C (1) << 34,
    UINT64_C (1) << 40
  };
  static const struct { const char *le; unsigned n; } buckets[] = {
    { "0.000065536", 1 }, { "0.000262144", 1 }, { "0.001048576", 2 },
    { "0.004194304", 4 }, { "0.016777216", 4 }, { "0.067108864", 4 },
    { "0.268435456", 4 }, { "1.073741824", 4 }, { "4.294967296", 4 },
    { "17.179869184", 4 }, { "+Inf", 6 },
  };
  const unsigned n = G_N_ELEMENTS (latencies_ns);
  g_autofree char *bytes = g_strconcat (family, "_bytes_total", NULL);
  g_autofree char *count = g_strconcat (family, "_duration_seconds_count",
                                        NULL);
  g_autofree char *sum = g_strconcat (family, "_duration_seconds_sum", NULL);
  g_autofree char *bucket = g_strconcat (family, "_duration_seconds_bucket",
                                         NULL);
  struct stats *s = stats_new ();
  g_autofree char *text = NULL;
  uint64_t ns = 0;

  for (unsigned i = 0; i < n; i++) {
    stats_note (s, kind, latencies_ns[i], 512);
    ns += latencies_ns[i];
  }
  text = print_line (s, line);
  g_assert_cmpuint (g_ascii_strtoull (text, NULL, 10), ==, n);
  assert_line_has (s, line, " 3072 ");
  g_assert_cmpfloat (metric (s, count, labels), ==, n);
  g_assert_cmpfloat (metric (s, bytes, labels), ==, n * 512);
  g_assert_cmpfloat_with_epsilon (metric (s, sum, labels), ns / 1e9, 1e-9);
  for (unsigned i = 0; i < G_N_ELEMENTS (buckets); i++) {
    g_autofree char *with_le = g_strdup_printf ("%s,le=\"%s\"", labels,
                                                buckets[i].le);

    g_assert_cmpfloat (metric (s, bucket, with_le), ==, buckets[i].n);
  }
  stats_free (s);
}

static void
test_kinds (void)
{
  static const struct { const char *line, *family, *labels; } kinds[] = {
#define REQUEST(name) { name " ", "request", ",kind=\"" name "\"" }
#define OPERATION(name) \
  { "plugin " name " ", "operation", ",kind=\"" name "\"" }
    [STATS_READ] = REQUEST ("read"), [STATS_WRITE] = REQUEST ("write"),
    [STATS_ZERO] = REQUEST ("zero"), [STATS_TRIM] = REQUEST ("trim"),
    [STATS_FLUSH] = REQUEST ("flush"), [STATS_EXTENTS] = REQUEST ("extents"),
    [STATS_CACHE] = REQUEST ("cache"),
    [STATS_DEVICE_READ] = OPERATION ("read"),
    [STATS_DEVICE_WRITE] = OPERATION ("write"),
    [STATS_DEVICE_EXTENTS] = OPERATION ("extents"),
    [STATS_SPACE_WAIT] = { "buffer wait ", "buffer_wait", "" },
  };

  g_assert_cmpuint (G_N_ELEMENTS (kinds), ==, STATS_KINDS);
  for (unsigned k = 0; k < STATS_KINDS; k++)
    check_kind (k, kinds[k].line, kinds[k].family, kinds[k].labels);
}

/* The label is the file's name. */
static void
check_label (const char *file, const char *label)
{
  struct stats *s = stats_new ();
  g_autofree char *series = g_strdup_printf (
    "nbdkit_asyncpool_buffers{server=\"%s\"} ", label);

  g_free (line_of (print (s, file), series));
  stats_free (s);
}

static void
test_label (void)
{
  check_label ("a.prom", "a");
  check_label ("/var/lib/x.d/disk-1.prom", "disk-1");
  check_label ("a.prom.prom", "a.prom");
  check_label ("q\"b\\n\n.prom", "q\\\"b\\\\n\\n");
  check_label ("latin\xe9.prom", "latin\xef\xbf\xbd");
  g_assert_true (report_is_prom ("x/a.prom"));
  g_assert_false (report_is_prom ("a.prometheus"));
  g_assert_false (report_is_prom ("prom"));
}

static const struct test tests[] = {
  { "/statistics/quantiles-are-within-12-percent", .run = test_quantiles },
  { "/statistics/medians-at-powers-of-two", .run = test_buckets },
  { "/statistics/operations-in-flight", .run = test_device },
  { "/statistics/no-thread's-count-is-lost", .run = test_threads },
  { "/statistics/the-report-has-all-lines", .run = test_lines },
  { "/statistics/both-formats/counters", .run = test_counters },
  { "/statistics/both-formats/now", .run = test_now },
  { "/statistics/both-formats/kinds", .run = test_kinds },
  { "/statistics/width", .run = test_width },
  { "/statistics/hit-rate", .run = test_hit_rate },
  { "/statistics/label", .run = test_label },
};

TABLE_MAIN (tests)
