/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The statistics in two formats: see report.h.
 */
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include <glib.h>

#include "limit.h"
#include "report.h"

#define PREFIX "nbdkit_asyncpool_"
#define SUFFIX ".prom"

/* Bounds of the histograms' buckets: 2^16 ns (66 us) to 2^34 ns (17 s), each
 * four times the one before.  They tell memory from a disk, and a disk from a
 * network.  They are few, as each is a series for each kind.  Powers of two are
 * bounds of the buckets in stats.c, too, so the counts are exact.
 */
enum { FIRST_POWER = 16, LAST_POWER = 34, POWER_STEP = 2 };

/* One line of the text and one histogram for each kind of operation.  Kinds of
 * one family are neighbours.
 */
struct family {
  const char *name, *help, *bytes_help;
};

static const struct family
  requests = { "request", "Time that clients waited for requests.",
               "Bytes of clients' requests." },
  operations = { "operation", "Time that the plugin took for operations.",
                 "Bytes of operations of the plugin." },
  waits = { "buffer_wait", "Time that writers waited for a buffer.",
            "Bytes of the writers that waited for a buffer." };

static const struct kind_row {
  const struct family *family;
  const char *kind;             /* the label, or NULL */
  const char *text;
} kinds[STATS_KINDS] = {
  [STATS_READ] = { &requests, "read", "read" },
  [STATS_WRITE] = { &requests, "write", "write" },
  [STATS_ZERO] = { &requests, "zero", "zero" },
  [STATS_TRIM] = { &requests, "trim", "trim" },
  [STATS_FLUSH] = { &requests, "flush", "flush" },
  [STATS_EXTENTS] = { &requests, "extents", "extents" },
  [STATS_CACHE] = { &requests, "cache", "cache" },
  [STATS_DEVICE_READ] = { &operations, "read", "plugin read" },
  [STATS_DEVICE_WRITE] = { &operations, "write", "plugin write" },
  [STATS_DEVICE_EXTENTS] = { &operations, "extents", "plugin extents" },
  [STATS_SPACE_WAIT] = { &waits, NULL, "buffer wait" },
};

/* Why a limit is what it is. */
static const char *const reasons[LIMIT_REASONS] = {
  [LIMIT_IS_FIXED] = "it is fixed, or there is no device",
  [LIMIT_STARTS] = "it has its first value",
  [LIMIT_GROWS] = "it grew, as operations took no longer",
  [LIMIT_STAYS] = "operations queue a little",
  [LIMIT_TESTS] = "a test of the number or the size",
  [LIMIT_WAS_CUT] = "it was cut, as operations queued",
  [LIMIT_HAD_ERROR] = "it was halved after an error",
  [LIMIT_IS_MOST] = "it is at its bound",
};

/* All other values.  A counter only grows; any other value is a gauge. */
static const struct row {
  const char *name;             /* without PREFIX; a counter also gets _total */
  const char *label;            /* beside `server', or NULL */
  const char *help;             /* NULL: the row before has the same name */
  const char *line;             /* the text's line; NULL: that of the row before
                                 */
  const char *text;             /* @ is the value */
  bool is_counter;
  enum stats_counter counter;
  size_t now;                   /* the field of struct stats_now */
  unsigned decimals;            /* in the text */
  double scale;                 /* of the text; 0: 1 */
  const char *const *words;     /* the text has the word of this number */
} rows[] = {
#define COUNTER(c) .is_counter = true, .counter = STATS_##c
#define NOW(field) .now = offsetof (struct stats_now, field)
  { "operations_in_flight_max", NULL,
    "Most operations that the plugin had at once.",
    "in the plugin", "peak @", NOW (peak) },
  { "operations_in_flight_mean", NULL,
    "Mean of the operations in flight, from the first start to the last end.",
    NULL, "mean @ operations in flight", NOW (mean), .decimals = 1 },
  { "operations_in_flight", NULL, "Operations that the plugin has now.",
    NULL, "@ now", NOW (in_flight) },

  { "fast_plugin_requests", NULL,
    "Reads and writes that the filter passed on, as the plugin is fast.",
    "fast plugin", "@ reads and writes passed on", COUNTER (FAST) },
  { "read_ahead_bytes", NULL, "Prefetched bytes.",
    "read-ahead", "@ bytes issued", COUNTER (AHEAD_BYTES) },
  { "read_ahead_used_bytes", NULL, "Prefetched bytes that clients read.",
    NULL, "@ used", COUNTER (AHEAD_USED) },
  { "read_ahead_wasted_bytes", NULL,
    "Prefetched bytes that were dropped before a client read them.",
    NULL, "@ wasted", COUNTER (AHEAD_WASTED) },
  { "read_ahead_failures", NULL, "Prefetches that failed.",
    NULL, "@ operations failed", COUNTER (AHEAD_FAILED) },
  { "read_ahead_wasted_operations", NULL,
    "Prefetches that were dropped before a client read any byte of them.",
    NULL, "@ operations wasted", COUNTER (AHEAD_UNREAD) },
  { "read_ahead_hit_ratio", NULL,
    "Part of the bytes read by clients that was prefetched.",
    "hit rate", "@ % of the bytes that clients read were prefetched",
    NOW (hit_ratio), .decimals = 1, .scale = 100 },

  { "deferred_writes", NULL,
    "Deferred writes, counted once for each buffer that a write needs.",
    "write-back", "@ writes deferred", COUNTER (DEFERRED) },
  { "coalesced_writes", NULL,
    "Deferred writes that were coalesced with an earlier one.",
    NULL, "@ of them coalesced", COUNTER (COALESCED) },
  { "deferred_write_errors", NULL,
    "How often the plugin refused deferred data.",
    NULL, "@ deferred errors", COUNTER (DEFERRED_ERRORS) },

  { "extents_kept_requests", NULL,
    "Requests for block status answered without the plugin.",
    "block status", "@ requests answered without the plugin",
    COUNTER (EXTENTS_KEPT) },
  { "extents_ahead_operations", NULL,
    "Questions about block status that the filter asked ahead.",
    NULL, "@ questions asked ahead", COUNTER (EXTENTS_AHEAD) },
  { "zero_reads", NULL, "Reads of known zeroes, answered without the plugin.",
    "zeroes", "@ reads", COUNTER (ZERO_READS) },
  { "zero_read_bytes", NULL,
    "Bytes of the reads of known zeroes, answered without the plugin.",
    NULL, "@ bytes, answered without the plugin", COUNTER (ZERO_BYTES) },
  { "hooked_operations", NULL, "Operations that async hooks did.",
    "async hooks",
    "@ operations in the plugin without a thread of the pool",
    COUNTER (HOOKED) },
  { "barriers", NULL, "Requests that waited for older dirty data.",
    "barriers", "@ requests waited for older dirty data", COUNTER (BARRIERS) },

  { "waiting_bytes", "state=\"dirty\"",
    "Acknowledged bytes that the plugin does not have now.",
    "waiting data", "@ bytes dirty", NOW (dirty_bytes) },
  { "waiting_bytes", "state=\"failed\"", NULL,
    NULL, "@ bytes failed", NOW (failed_bytes) },
  { "waiting_writers", NULL, "Writers that wait for a buffer now.",
    NULL, "@ writers wait for a buffer", NOW (writers) },
  { "buffers", NULL, "Buffers, in use or free.",
    "buffers", "@ in all", NOW (buffers) },
  { "buffers_now", "state=\"free\"", "Buffers in each state now.",
    NULL, "@ free", NOW (buffers_free) },
  { "buffers_now", "state=\"reading\"", NULL,
    NULL, "@ reading", NOW (buffers_reading) },
  { "buffers_now", "state=\"clean\"", NULL,
    NULL, "@ clean", NOW (buffers_clean) },
  { "buffers_now", "state=\"dirty\"", NULL,
    NULL, "@ dirty", NOW (buffers_dirty) },
  { "buffers_now", "state=\"failed\"", NULL,
    NULL, "@ failed", NOW (buffers_failed) },
  { "buffers_now", "state=\"taken\"", NULL,
    NULL, "@ taken", NOW (buffers_taken) },
  { "limit", "kind=\"read\"",
    "Largest limit of a device, in operations of limit_operation_bytes.",
    "limit", "@ reads", NOW (read_limit.value) },
  { "limit", "kind=\"write\"", NULL,
    NULL, "@ writes", NOW (write_limit.value) },
  { "limit_reason", "kind=\"read\"",
    "Why: 0 fixed or no device, 1 its first value, 2 it grew, 3 operations "
    "queue a little or a test without gain, 4 a test, 5 operations queued, "
    "6 an error, 7 it is at its bound.",
    "limit of reads", "@", NOW (read_limit.reason), .words = reasons },
  { "limit_reason", "kind=\"write\"", NULL,
    "limit of writes", "@", NOW (write_limit.reason), .words = reasons },
  { "limit_base_seconds", "kind=\"read\"",
    "What an operation takes without a queue; 0: not known.",
    "without a queue", "@ ms for a read", NOW (read_limit.base),
    .decimals = 3, .scale = 1000 },
  { "limit_base_seconds", "kind=\"write\"", NULL,
    NULL, "@ ms for a write", NOW (write_limit.base),
    .decimals = 3, .scale = 1000 },
  { "limit_operation_bytes", "kind=\"read\"",
    "The size of the operations that the limit counts.",
    "largest operation", "@ bytes prefetched", NOW (read_limit.bytes) },
  { "limit_operation_bytes", "kind=\"write\"", NULL,
    NULL, "@ bytes written", NOW (write_limit.bytes) },
  { "threads", NULL, "Threads that call the plugin for the filter.",
    "threads", "@ in all", NOW (threads) },
  { "threads_busy", NULL, "Those of the threads that are at work now.",
    NULL, "@ at work", NOW (threads_busy) },
  { "connections", NULL, "Connections of clients now.",
    "clients", "@ connections", NOW (connections) },
  { "contexts", NULL, "Further contexts that are open now.",
    NULL, "@ further contexts", NOW (contexts) },
#undef COUNTER
#undef NOW
};

static double
row_value (const struct row *r, const struct stats *s,
           const struct stats_now *now)
{
  if (r->is_counter)
    return stats_counter (s, r->counter);
  return *(const double *) (const void *) ((const char *) now + r->now);
}

/* Text. */

static void
print_kind (const struct stats *s, enum stats_kind kind, FILE *fp)
{
  struct stats_sum t;

  stats_sum_up (s, kind, &t);
  fprintf (fp, "%-14s %10" PRIu64 " %14" PRIu64, kinds[kind].text, t.count,
           t.bytes);
  if (t.count > 0)
    fprintf (fp, " %9.3f %9.3f %9.3f %9.3f %9.3f", t.min_ns / 1e6,
             t.ns / 1e6 / t.count, stats_quantile_ms (&t, 0.5),
             stats_quantile_ms (&t, 0.99), t.max_ns / 1e6);
  else
    fprintf (fp, " %9s %9s %9s %9s %9s", "-", "-", "-", "-", "-");
  if (kind == STATS_DEVICE_READ || kind == STATS_DEVICE_WRITE) {
    if (t.count > 0)
      fprintf (fp, "  %" PRIu64 "..%" PRIu64 ", mean %" PRIu64, t.min_bytes,
               t.max_bytes, t.bytes / t.count);
    else
      fprintf (fp, "  -");
  }
  fputc ('\n', fp);
}

void
report_text (const struct stats *s, const struct stats_now *now, FILE *fp)
{
  fprintf (fp, "asyncpool statistics (latency in ms)\n");
  fprintf (fp, "%-14s %10s %14s %9s %9s %9s %9s %9s  %s\n", "operation",
           "count", "bytes", "min", "mean", "p50", "p99", "max",
           "size in bytes");
  for (unsigned k = 0; k < STATS_KINDS; k++)
    print_kind (s, k, fp);
  for (const struct row *r = rows; r < rows + G_N_ELEMENTS (rows); r++) {
    const char *at = strchr (r->text, '@');
    double value = row_value (r, s, now);

    if (r->line)
      fprintf (fp, "%s%s: ", r > rows ? "\n" : "", r->line);
    else
      fprintf (fp, ", ");
    fprintf (fp, "%.*s", (int) (at - r->text), r->text);
    if (r->words)
      fprintf (fp, "%s%s", r->words[(unsigned) value], at + 1);
    else
      fprintf (fp, "%.*f%s", (int) r->decimals,
               value * (r->scale ? r->scale : 1), at + 1);
  }
  fputc ('\n', fp);
}

/* Prometheus' text format. */

static void
print_head (FILE *fp, const char *name, const char *suffix, const char *type,
            const char *help)
{
  fprintf (fp, "# HELP " PREFIX "%s%s %s\n# TYPE " PREFIX "%s%s %s\n", name,
           suffix, help, name, suffix, type);
}

static void
print_label (FILE *fp, const char *name, const char *suffix,
             const char *server, const char *kind)
{
  fprintf (fp, PREFIX "%s%s{server=\"%s\"", name, suffix, server);
  if (kind)
    fprintf (fp, ",kind=\"%s\"", kind);
}

static void
print_histogram (const struct kind_row *k, const struct stats_sum *t,
                 const char *server, FILE *fp)
{
  const char *name = k->family->name;

  for (unsigned p = FIRST_POWER; p <= LAST_POWER; p += POWER_STEP) {
    print_label (fp, name, "_duration_seconds_bucket", server, k->kind);
    fprintf (fp, ",le=\"%.9f\"} %" PRIu64 "\n", (UINT64_C (1) << p) / 1e9,
             stats_below (t, p));
  }
  print_label (fp, name, "_duration_seconds_bucket", server, k->kind);
  fprintf (fp, ",le=\"+Inf\"} %" PRIu64 "\n", t->count);
  print_label (fp, name, "_duration_seconds_sum", server, k->kind);
  fprintf (fp, "} %.9f\n", t->ns / 1e9);
  print_label (fp, name, "_duration_seconds_count", server, k->kind);
  fprintf (fp, "} %" PRIu64 "\n", t->count);
}

/* Kinds FROM to TO are of one family. */
static void
print_family (const struct stats *s, unsigned from, unsigned to,
              const char *server, FILE *fp)
{
  const struct family *f = kinds[from].family;
  struct stats_sum t;

  print_head (fp, f->name, "_duration_seconds", "histogram", f->help);
  for (unsigned k = from; k < to; k++) {
    stats_sum_up (s, k, &t);
    print_histogram (&kinds[k], &t, server, fp);
  }
  print_head (fp, f->name, "_bytes_total", "counter", f->bytes_help);
  for (unsigned k = from; k < to; k++) {
    stats_sum_up (s, k, &t);
    print_label (fp, f->name, "_bytes_total", server, kinds[k].kind);
    fprintf (fp, "} %" PRIu64 "\n", t.bytes);
  }
}

static void
print_row (const struct row *r, double value, const char *server, FILE *fp)
{
  const char *suffix = r->is_counter ? "_total" : "";

  if (r->help)
    print_head (fp, r->name, suffix, r->is_counter ? "counter" : "gauge",
                r->help);
  print_label (fp, r->name, suffix, server, NULL);
  fprintf (fp, "%s%s} %.*f\n", r->label ? "," : "", r->label ? r->label : "",
           r->decimals > 0 ? 6 : 0, value);
}

bool
report_is_prom (const char *file_name)
{
  return g_str_has_suffix (file_name, SUFFIX);
}

/* The files of several servers may be in one directory.  The label keeps their
 * series apart.
 */
static char *
server_label (const char *file_name)
{
  g_autofree char *base = g_path_get_basename (file_name);
  g_autofree char *valid = NULL;
  GString *label = g_string_new ("");

  if (report_is_prom (base))
    base[strlen (base) - strlen (SUFFIX)] = '\0';
  valid = g_utf8_make_valid (base, -1);
  for (const char *p = valid; *p; p++)
    switch (*p) {
    case '\n': g_string_append (label, "\\n"); break;
    case '\\': case '"': g_string_append_c (label, '\\');
      /* fallthrough */
    default: g_string_append_c (label, *p);
    }
  return g_string_free (label, FALSE);
}

void
report_prom (const struct stats *s, const struct stats_now *now,
             const char *file_name, FILE *fp)
{
  g_autofree char *server = server_label (file_name);

  for (unsigned from = 0, to; from < STATS_KINDS; from = to) {
    for (to = from + 1; to < STATS_KINDS; to++)
      if (kinds[to].family != kinds[from].family)
        break;
    print_family (s, from, to, server, fp);
  }
  for (const struct row *r = rows; r < rows + G_N_ELEMENTS (rows); r++)
    print_row (r, row_value (r, s, now), server, fp);
}
