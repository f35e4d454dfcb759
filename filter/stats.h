/* Statistics: counted always, printed at shutdown where asyncpool-stats asks for it.
 *
 * Counters are sharded by thread, so that counting costs no traffic between CPUs.  Latencies go into
 * a histogram with 8 steps per power of two: a quantile is right within 12 %.
 *
 * "In flight" is about operations that are in the plugin: the peak as counted, the mean by Little's
 * law, the sum of all their times over the time from the first one's start to the last one's end.
 */
#ifndef ASYNCPOOL_STATS_H
#define ASYNCPOOL_STATS_H

#include <stdint.h>
#include <stdio.h>

enum stats_kind {
  STATS_READ, STATS_WRITE, STATS_ZERO, STATS_TRIM, STATS_FLUSH, STATS_EXTENTS, STATS_CACHE,
  STATS_DEVICE_READ, STATS_DEVICE_WRITE,
  STATS_SPACE_WAIT,             /* writers that waited for a buffer */
  STATS_KINDS
};

enum stats_counter {
  STATS_AHEAD_BYTES,            /* read ahead */
  STATS_AHEAD_USED,             /* of these, bytes that a client then read */
  STATS_AHEAD_FAILED,           /* operations */
  STATS_BEHIND,                 /* client writes (or their parts within a unit) held behind */
  STATS_COMBINED,               /* of these, joined to one that waited already */
  STATS_BARRIERS,               /* operations that had to wait for writes before them */
  STATS_DEFERRED_ERRORS,        /* writes held behind that the plugin refused */
  STATS_HOOKED,                 /* operations that the plugin's async hooks did, no thread of ours */
  STATS_COUNTERS
};

struct stats;

extern struct stats *stats_new (void);
extern void stats_free (struct stats *);
/* One operation of KIND over BYTES, started at START_NS (clock_ns), has ended.  Returns when: not
 * every clock is cheap to read.
 */
extern uint64_t stats_end (struct stats *, enum stats_kind, uint64_t start_ns, uint64_t bytes);
/* As that, where it is known that it took NS. */
extern void stats_note (struct stats *, enum stats_kind, uint64_t ns, uint64_t bytes);
extern void stats_add (struct stats *, enum stats_counter, uint64_t n);
/* An operation in the plugin: begin returns its start time, end when it has ended. */
extern uint64_t stats_begin_device (struct stats *);
extern uint64_t stats_end_device (struct stats *, enum stats_kind, uint64_t start_ns,
                                  uint64_t bytes);
extern uint64_t stats_counter (const struct stats *, enum stats_counter);
extern uint64_t stats_count (const struct stats *, enum stats_kind);
extern void stats_print (const struct stats *, FILE *);

#endif
