/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How many operations of one kind (reads, or writes) the filter keeps in flight
 * on a device.  The limit follows what the device bears.
 *
 * Not its job: which operations those are (readahead.c, writeback.c).
 *
 * A device that serves more operations at a time takes no longer for each.  One
 * that does not queues them, and each takes longer.  So the limit looks only at
 * how long operations take, against BASE: what they take without a queue.  It
 * changes once per epoch.  An epoch has some operations that all began in it,
 * so that they show the effect of the latest change.
 *
 *   mean time            the limit, if it was in the way
 *   to 1.15 x base       grows: by an eighth, then by more and more, at last to
 *                        the double, until it is cut
 *   to 1.3 x base        stays
 *   above                is cut to what the device served without a queue
 *                        (Little's law: limit x base / mean), and 1/8 more
 *
 * The epoch after a cut tells a queue from a device that became slower.  If the
 * operations are quicker now, it was a queue.  If not, the cut is taken back,
 * and the base is what they take now.
 *
 * An error that may come from too much load halves the limit.  For a minute it
 * then stays below the number at which the error came.
 *
 * Sources: Vegas and Netflix's concurrency-limits compare times in this way;
 * BBR estimates the product of rate and delay.  tests/test-limit.c has these
 * rules and this one over models of devices.
 *
 * All functions may be called by any thread, with or without engine.lock.
 */
#ifndef ASYNCPOOL_LIMIT_H
#define ASYNCPOOL_LIMIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lock.h"

enum { LIMIT_LEAST = 4, LIMIT_START = 64 };

enum limit_reason {
  LIMIT_IS_FIXED, LIMIT_STARTS, LIMIT_GROWS, LIMIT_STAYS, LIMIT_WAS_CUT,
  LIMIT_HAD_ERROR, LIMIT_IS_MOST,
  LIMIT_REASONS
};

struct limit {
  /* Constant after limit_init. */
  unsigned most;
  uint32_t whole_bytes;
  /* Atomic, written under the lock. */
  atomic_uint value;
  atomic_uint reason;           /* enum limit_reason: the latest change */
  atomic_bool hit;              /* it was in the way in this epoch */
  /* Under the lock, a leaf. */
  struct lock lock;
  uint64_t base_ns;             /* 0: not known yet */
  uint64_t epoch_ns;            /* when the epoch began */
  uint64_t sum_ns;              /* the time of its operations */
  unsigned n;                   /* their number */
  unsigned streak;              /* growths since the last cut */
  unsigned before;              /* the limit before the cut that is examined;
                                 * or 0 */
  uint64_t before_ns;           /* the mean time then */
  unsigned ceiling;             /* until ceiling_until_ns */
  uint64_t ceiling_until_ns;
};

/* ADAPTS: the limit follows the device, from LIMIT_START on and up to MOST.  If
 * not, it is MOST.  WHOLE_BYTES: the size of a usual operation; the limit looks
 * at operations of about that size.
 */
extern void limit_init (struct limit *, bool adapts, unsigned most,
                        uint32_t whole_bytes);
extern void limit_destroy (struct limit *);
extern unsigned limit_value (struct limit *);
/* The filter wanted to have more in flight. */
extern void limit_hit (struct limit *);
/* An operation of COUNT bytes began at START_NS and has ended at END_NS. */
extern void limit_note (struct limit *, uint32_t count, uint64_t start_ns,
                        uint64_t end_ns, int err);

#endif
