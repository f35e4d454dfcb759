/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Statistics: see stats.h.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "clock.h"
#include "stats.h"

enum { SHARDS = 8, STEPS = 8, POWERS = 40, BUCKETS = STEPS * POWERS };

struct kind {
  atomic_uint_fast64_t bucket[BUCKETS]; /* operations by latency */
  atomic_uint_fast64_t bytes, ns;
  /* Of one operation; min: 0 = none yet. */
  atomic_uint_fast64_t min_ns, max_ns, min_bytes, max_bytes;
};

struct shard {
  struct kind kind[STATS_KINDS];
  atomic_uint_fast64_t counter[STATS_COUNTERS];
};

struct stats {
  struct shard shard[SHARDS];
  atomic_uint next_shard;       /* of the next new thread */
  atomic_uint in_flight, peak;
  atomic_uint_fast64_t first_ns, last_ns;
};

#define load(p) atomic_load_explicit (p, memory_order_relaxed)
#define store(p, v) atomic_store_explicit (p, v, memory_order_relaxed)
#define add(p, v) atomic_fetch_add_explicit (p, v, memory_order_relaxed)

static struct shard *
my_shard (struct stats *s)
{
  static __thread unsigned mine;        /* + 1; 0 = not chosen yet */

  if (mine == 0)
    mine = add (&s->next_shard, 1) % SHARDS + 1;
  return &s->shard[mine - 1];
}

static unsigned
bucket_of (uint64_t ns)
{
  unsigned power, b;

  if (ns < STEPS)
    return ns;
  power = 63 - __builtin_clzll (ns);
  b = (uint64_t) (power - 2) * STEPS + ((ns >> (power - 3)) & (STEPS - 1));
  return b < BUCKETS ? b : BUCKETS - 1;
}

/* Where a bucket begins. */
static uint64_t
bucket_ns (unsigned b)
{
  unsigned power;

  if (b < STEPS)
    return b;
  power = b / STEPS + 2;
  return (UINT64_C (1) << power) + ((uint64_t) (b % STEPS) << (power - 3));
}

struct stats *
stats_new (void)
{
  return calloc (1, sizeof (struct stats));
}

void
stats_free (struct stats *s)
{
  free (s);
}

/* Threads that share a shard may race for its extremes.  One is lost then, of
 * very many.
 */
static void
note_extremes (atomic_uint_fast64_t *min, atomic_uint_fast64_t *max, uint64_t v)
{
  if (v > load (max))
    store (max, v);
  if (v > 0 && (v < load (min) || load (min) == 0))
    store (min, v);
}

void
stats_note (struct stats *s, enum stats_kind kind, uint64_t ns, uint64_t bytes)
{
  struct kind *k = &my_shard (s)->kind[kind];

  add (&k->bucket[bucket_of (ns)], 1);
  add (&k->ns, ns);
  add (&k->bytes, bytes);
  note_extremes (&k->min_ns, &k->max_ns, ns);
  note_extremes (&k->min_bytes, &k->max_bytes, bytes);
}

uint64_t
stats_end (struct stats *s, enum stats_kind kind, uint64_t start_ns,
           uint64_t bytes)
{
  uint64_t now = clock_ns ();

  stats_note (s, kind, now - start_ns, bytes);
  return now;
}

void
stats_add (struct stats *s, enum stats_counter c, uint64_t n)
{
  add (&my_shard (s)->counter[c], n);
}

uint64_t
stats_begin_device (struct stats *s)
{
  uint64_t now = clock_ns ();
  unsigned n = add (&s->in_flight, 1) + 1;

  if (n > load (&s->peak))
    store (&s->peak, n);
  if (load (&s->first_ns) == 0)
    store (&s->first_ns, now);
  return now;
}

uint64_t
stats_end_device (struct stats *s, enum stats_kind kind, uint64_t start_ns,
                  uint64_t bytes)
{
  uint64_t now = clock_ns ();

  add (&s->in_flight, -1);
  store (&s->last_ns, now);
  stats_note (s, kind, now - start_ns, bytes);
  return now;
}

uint64_t
stats_counter (const struct stats *s, enum stats_counter c)
{
  uint64_t n = 0;

  for (unsigned i = 0; i < SHARDS; i++)
    n += load (&s->shard[i].counter[c]);
  return n;
}

/* One kind over all shards. */
struct sum {
  uint64_t bucket[BUCKETS];
  uint64_t count, bytes, ns, min_ns, max_ns, min_bytes, max_bytes;
};

static void
sum_up (const struct stats *s, enum stats_kind kind, struct sum *t)
{
  *t = (struct sum) { 0 };
  for (unsigned i = 0; i < SHARDS; i++) {
    const struct kind *k = &s->shard[i].kind[kind];
    uint64_t min_ns = load (&k->min_ns), max_ns = load (&k->max_ns);
    uint64_t min_bytes = load (&k->min_bytes), max_bytes = load (&k->max_bytes);

    for (unsigned b = 0; b < BUCKETS; b++) {
      t->bucket[b] += load (&k->bucket[b]);
      t->count += load (&k->bucket[b]);
    }
    t->bytes += load (&k->bytes);
    t->ns += load (&k->ns);
    if (max_ns > t->max_ns)
      t->max_ns = max_ns;
    if (min_ns > 0 && (t->min_ns == 0 || min_ns < t->min_ns))
      t->min_ns = min_ns;
    if (max_bytes > t->max_bytes)
      t->max_bytes = max_bytes;
    if (min_bytes > 0 && (t->min_bytes == 0 || min_bytes < t->min_bytes))
      t->min_bytes = min_bytes;
  }
}

uint64_t
stats_count (const struct stats *s, enum stats_kind kind)
{
  struct sum t;

  sum_up (s, kind, &t);
  return t.count;
}

/* The operations of a bucket count as spread evenly over it. */
static double
quantile_ms (const struct sum *t, double q)
{
  uint64_t seen = 0, want = q * t->count;

  for (unsigned b = 0; b < BUCKETS; seen += t->bucket[b++])
    if (seen + t->bucket[b] > want) {
      double from = bucket_ns (b), to = bucket_ns (b + 1);

      from = from > t->min_ns ? from : t->min_ns;
      to = to < t->max_ns ? to : t->max_ns;
      return (from + (to - from) * (want - seen + 1) / t->bucket[b]) / 1e6;
    }
  return t->max_ns / 1e6;
}

static void
print_kind (const struct stats *s, enum stats_kind kind, const char *name,
            FILE *fp)
{
  struct sum t;

  sum_up (s, kind, &t);
  fprintf (fp, "%-14s %10" PRIu64 " %14" PRIu64, name, t.count, t.bytes);
  if (t.count > 0)
    fprintf (fp, " %9.3f %9.3f %9.3f %9.3f %9.3f", t.min_ns / 1e6,
             t.ns / 1e6 / t.count, quantile_ms (&t, 0.5),
             quantile_ms (&t, 0.99), t.max_ns / 1e6);
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
stats_print (const struct stats *s, FILE *fp)
{
  static const char *const names[STATS_KINDS] = {
    [STATS_READ] = "read", [STATS_WRITE] = "write", [STATS_ZERO] = "zero",
    [STATS_TRIM] = "trim", [STATS_FLUSH] = "flush", [STATS_EXTENTS] = "extents",
    [STATS_CACHE] = "cache", [STATS_DEVICE_READ] = "plugin read",
    [STATS_DEVICE_WRITE] = "plugin write",
    [STATS_DEVICE_EXTENTS] = "plugin extents",
    [STATS_SPACE_WAIT] = "buffer wait",
  };
  uint64_t span = load (&s->last_ns) - load (&s->first_ns), busy = 0;
  uint64_t ahead = stats_counter (s, STATS_AHEAD_BYTES);
  uint64_t used = stats_counter (s, STATS_AHEAD_USED);

  fprintf (fp, "asyncpool statistics (latency in ms)\n");
  fprintf (fp, "%-14s %10s %14s %9s %9s %9s %9s %9s  %s\n", "operation",
           "count", "bytes", "min", "mean", "p50", "p99", "max",
           "size in bytes");
  for (unsigned k = 0; k < STATS_KINDS; k++)
    print_kind (s, k, names[k], fp);
  for (unsigned i = 0; i < SHARDS; i++)
    busy += load (&s->shard[i].kind[STATS_DEVICE_READ].ns)
      + load (&s->shard[i].kind[STATS_DEVICE_WRITE].ns);
  fprintf (fp, "in the plugin: peak %u, mean %.1f operations in flight\n",
           load (&s->peak), span > 0 ? (double) busy / span : 0.0);
  fprintf (fp, "read-ahead: %" PRIu64 " bytes issued, %" PRIu64 " used, %"
           PRIu64 " wasted, %" PRIu64 " operations failed\n",
           ahead, used, ahead > used ? ahead - used : 0,
           stats_counter (s, STATS_AHEAD_FAILED));
  fprintf (fp, "write-behind: %" PRIu64 " writes held, %" PRIu64
           " of them combined, %" PRIu64 " deferred errors\n",
           stats_counter (s, STATS_DEFERRED),
           stats_counter (s, STATS_COALESCED),
           stats_counter (s, STATS_DEFERRED_ERRORS));
  fprintf (fp, "block status: %" PRIu64 " requests answered without the plugin,"
           " %" PRIu64 " questions asked ahead\n",
           stats_counter (s, STATS_EXTENTS_KEPT),
           stats_counter (s, STATS_EXTENTS_AHEAD));
  fprintf (fp, "zeroes: %" PRIu64 " reads, %" PRIu64
           " bytes, answered without the plugin\n",
           stats_counter (s, STATS_ZERO_READS),
           stats_counter (s, STATS_ZERO_BYTES));
  fprintf (fp, "async hooks: %" PRIu64
           " operations in the plugin without a thread of the pool\n",
           stats_counter (s, STATS_HOOKED));
  fprintf (fp, "barriers: %" PRIu64
           " operations waited for writes before them\n",
           stats_counter (s, STATS_BARRIERS));
}
