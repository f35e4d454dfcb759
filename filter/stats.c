/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Statistics: see stats.h.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "clock.h"
#include "stats.h"

enum { SHARDS = 8, STEPS = STATS_STEPS, BUCKETS = STATS_BUCKETS };

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

void
stats_sum_up (const struct stats *s, enum stats_kind kind, struct stats_sum *t)
{
  *t = (struct stats_sum) { 0 };
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
  struct stats_sum t;

  stats_sum_up (s, kind, &t);
  return t.count;
}

/* The operations of a bucket count as spread evenly over it. */
double
stats_quantile_ms (const struct stats_sum *t, double q)
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

uint64_t
stats_below (const struct stats_sum *t, unsigned power)
{
  uint64_t n = 0;

  for (unsigned b = 0; b < (power - 2) * STEPS; b++)
    n += t->bucket[b];
  return n;
}

/* The time that operations of this kind have taken, or the bytes of them. */
static void
add_up (const struct stats *s, enum stats_kind kind, uint64_t *ns,
        uint64_t *bytes)
{
  for (unsigned i = 0; i < SHARDS; i++) {
    *ns += load (&s->shard[i].kind[kind].ns);
    *bytes += load (&s->shard[i].kind[kind].bytes);
  }
}

void
stats_fill (const struct stats *s, struct stats_now *now)
{
  uint64_t first = load (&s->first_ns), last = load (&s->last_ns);
  uint64_t busy = 0, device_bytes = 0, read_ns = 0, read_bytes = 0;
  uint64_t used = stats_counter (s, STATS_AHEAD_USED);

  add_up (s, STATS_DEVICE_READ, &busy, &device_bytes);
  add_up (s, STATS_DEVICE_WRITE, &busy, &device_bytes);
  add_up (s, STATS_READ, &read_ns, &read_bytes);
  now->in_flight = load (&s->in_flight);
  now->peak = load (&s->peak);
  now->mean = last > first ? (double) busy / (last - first) : 0;
  /* Reads under way are not in read_bytes yet. */
  now->hit_ratio = used < read_bytes ? (double) used / read_bytes : used > 0;
}
