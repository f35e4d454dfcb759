/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Statistics: always counted; printed (report.h) if asyncpool-stats asks for
 * them.
 *
 * Counters are sharded by thread, so that counting costs no traffic between
 * CPUs.  Latencies go into a histogram with 8 steps per power of two, so that a
 * quantile is right within 12 %.
 *
 * Operations are "in flight" while they are in the plugin.  The peak is
 * counted.  The mean follows from Little's law: the sum of all their times,
 * divided by the time from the first start to the last end.
 */
#ifndef ASYNCPOOL_STATS_H
#define ASYNCPOOL_STATS_H

#include <stdint.h>

enum stats_kind {
  /* Requests. */
  STATS_READ, STATS_WRITE, STATS_ZERO, STATS_TRIM, STATS_FLUSH, STATS_EXTENTS,
  STATS_CACHE,
  /* Operations. */
  STATS_DEVICE_READ, STATS_DEVICE_WRITE, STATS_DEVICE_EXTENTS,
  STATS_SPACE_WAIT,             /* writers that waited for a buffer */
  STATS_KINDS
};

enum stats_counter {
  STATS_FAST,                   /* reads and writes while the plugin is fast */
  STATS_AHEAD_BYTES,            /* prefetched */
  STATS_AHEAD_USED,             /* prefetched bytes that a client then read */
  STATS_AHEAD_WASTED,           /* those that were dropped before that */
  STATS_AHEAD_UNREAD,           /* prefetches that no client read from */
  STATS_AHEAD_FAILED,           /* failed prefetches */
  STATS_DEFERRED,               /* client writes, or their parts in one unit */
  STATS_COALESCED,              /* deferred writes that joined an earlier one */
  STATS_BARRIERS,               /* requests that waited for older dirty data */
  STATS_DEFERRED_ERRORS,        /* deferred writes that the plugin refused */
  STATS_HOOKED,                 /* operations of async hooks */
  STATS_EXTENTS_KEPT,           /* block status without a question to the
                                 * plugin */
  STATS_EXTENTS_AHEAD,          /* questions asked ahead */
  STATS_ZERO_READS,             /* reads of known zeroes, without the plugin */
  STATS_ZERO_BYTES,             /* their bytes */
  STATS_COUNTERS
};

struct stats;

/* The limit of a device, see limit.h. */
struct stats_limit {
  double value;                 /* buffers */
  double reason;                /* enum limit_reason */
  double base;                  /* seconds; 0: not known */
  double bytes;                 /* of one operation, at most */
};

/* What holds at one moment.  engine_now fills it.  report.c has a row for each
 * field.
 */
struct stats_now {
  /* From the engine. */
  double buffers, buffers_free, buffers_reading, buffers_clean, buffers_dirty,
    buffers_failed, buffers_taken;
  double dirty_bytes, failed_bytes;
  double writers;               /* that wait for a buffer */
  double threads, threads_busy;
  double connections, contexts;
  struct stats_limit read_limit, write_limit;
  /* From the counters (stats_fill). */
  double in_flight, peak, mean; /* operations */
  double hit_ratio;             /* of the bytes that clients read */
};

/* 8 steps for each power of two, and 40 powers. */
enum { STATS_STEPS = 8, STATS_BUCKETS = STATS_STEPS * 40 };

/* One kind over all shards. */
struct stats_sum {
  uint64_t bucket[STATS_BUCKETS];       /* operations by latency */
  uint64_t count, bytes, ns, min_ns, max_ns, min_bytes, max_bytes;
};

extern struct stats *stats_new (void);
extern void stats_free (struct stats *);
/* One operation of KIND over BYTES, started at START_NS, has ended.  Returns
 * the time (clock_ns).
 */
extern uint64_t stats_end (struct stats *, enum stats_kind, uint64_t start_ns,
                           uint64_t bytes);
/* The same for one that took NS. */
extern void stats_note (struct stats *, enum stats_kind, uint64_t ns,
                        uint64_t bytes);
extern void stats_add (struct stats *, enum stats_counter, uint64_t n);
/* Around an operation in the plugin: begin returns its start time, end the time
 * when it has ended.
 */
extern uint64_t stats_begin_device (struct stats *);
extern uint64_t stats_end_device (struct stats *, enum stats_kind,
                                  uint64_t start_ns, uint64_t bytes);
extern uint64_t stats_counter (const struct stats *, enum stats_counter);
extern uint64_t stats_count (const struct stats *, enum stats_kind);
extern void stats_sum_up (const struct stats *, enum stats_kind,
                          struct stats_sum *);
extern double stats_quantile_ms (const struct stats_sum *, double q);
/* How many took less than 2^POWER ns; POWER is from 3 to 41. */
extern uint64_t stats_below (const struct stats_sum *, unsigned power);
/* Sets the fields that follow from the counters. */
extern void stats_fill (const struct stats *, struct stats_now *);

#endif
