/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How many operations of one kind (reads, or writes) the filter keeps in flight
 * on a device.  The limit follows what the device bears.
 *
 * Not its job: which operations those are (readahead.c, writeback.c).
 *
 * If a device serves more operations at a time, each takes no longer.  If it
 * does not, they wait in a queue, and each takes longer.  So the limit follows
 * the time that operations take, compared with BASE: their time without a
 * queue.  The limit changes once per epoch.
 *
 *   mean time of the epoch    the limit, if it was in the way
 *   to 1.15 x base            grows: by an eighth, and faster from the third
 *                             growth on, until it doubles; at the start it
 *                             doubles at once
 *   to 1.35 x base            stays: reads and writes that share a queue would
 *                             otherwise take turns to grow it
 *   above                     test with as many as the device serves without a
 *                             queue (Little's law: limit x base / mean)
 *   any, when the base is     test with half as many, or with as many as the
 *   50 epochs old             device serves without a queue if that is less
 *
 * A test is one epoch with fewer operations in flight.  If these take about as
 * long as the base, the base is confirmed.  Otherwise the base was wrong, or
 * the device has changed.  Then the next epoch has half as many, and so on,
 * until one mean time is like the one before it.  That time is the new base.
 * After a test, the limit becomes the number of operations that the device
 * served before the test in the time of the base, and 1/8 more.
 *
 * So a wrong base lasts for a while only.  The first base is the shortest time
 * in the first epoch.  It may be too short, or include a queue of the other
 * direction.  So it is tested when a mean time is above 1.35 x base, and at the
 * latest after 8 epochs.  The next tests follow after 8, 16 and 32 epochs.
 *
 * An epoch first waits for operations that show the latest change of the limit.
 * It lasts until the mean time is known to a sixteenth, so it is longer on a
 * device whose times vary.  One operation counts as 8 x base at most, because
 * one that hangs says nothing about a queue.  Before the first test there is no
 * such bound, as the first base may be too short.
 *
 * The limit looks at operations of one size at a time: large ones, about a
 * whole buffer, or small writes.  A large one is a prefetch of several units,
 * or the write of a group (order.h).  A device may bear many more small writes.
 * So if writes have been small for a while, the limit starts again, for them.
 * With the next whole one it starts again, too.  Small is less than half of the
 * size that the limit is about.
 *
 * Large operations are better where the number of operations bounds a device,
 * such as a server with few connections.  There the time of an operation hardly
 * grows with its size.  Whole buffers are better where bytes bound the device,
 * and LIMIT_LEAST large operations are already a queue.  So the limit of reads
 * begins with large ones.  If a limit falls to LIMIT_LEAST + 1 large ones, it
 * tests whole buffers.  With whole buffers, it tests large ones if there is a
 * queue (a mean time above 1.15 x base), and data for them (limit_has_large).
 * If whole operations have ended for a while, and no large one, as with a
 * client that reads at random, the limit starts again with whole buffers.
 *
 * A test of the size measures the rate in bytes, changes the size, waits until
 * the operations from before have ended, and measures the rate again.  Reads
 * and writes may share a queue.  There, more bytes of one kind in flight slow
 * down the other kind.  So a test measures two rates: of its own kind, and of
 * reads and writes together.  It keeps large operations if each rate is at
 * least 1.1 times as high.  It keeps whole buffers if one of the two rates is
 * at least 0.9 times as high.  Otherwise the size and the limit are as before.
 *
 * A test of the size needs a base that was tested.  If the other limit still
 * has its first base, it comes first, for 8 epochs at most.  After a test, the
 * next one follows 64 epochs later.  If whole buffers were better, that is so
 * for the other limit, too: bytes probably bound both kinds.  From then on,
 * each test that does not change the size makes the wait four times as long, up
 * to 1024 epochs.
 *
 * An error that may come from too much load halves the limit; in a test, that
 * is the limit before the test.  For a minute the limit then grows at most to
 * the middle between the one that had the error and the highest one without
 * errors.  If no operation has succeeded since the last such error, the device
 * fails whatever its load is.  That does not count.
 *
 * Reads and writes have a limit each.  They may share a queue of the device, or
 * pass through two queues, as on a link with one in each direction.  So while
 * one limit is tested, the other one is lower by the same factor, and learns
 * nothing.  In a test of the size, the other one keeps its value, and learns
 * nothing.  The epoch of a test begins when the operations from before have had
 * the time to end.  A test that gets too few operations to end is given up.
 *
 * Sources: Vegas and Netflix's concurrency-limits compare times in this way.
 * BBR measures the time without a queue by having fewer in flight.
 * tests/test-limit.c compares these rules with this one over models of devices.
 *
 * All functions may be called by any thread, with or without engine.lock.
 */
#ifndef ASYNCPOOL_LIMIT_H
#define ASYNCPOOL_LIMIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lock.h"
#include "stats.h"

enum { LIMIT_LEAST = 4, LIMIT_START = 64 };

enum limit_reason {
  LIMIT_IS_FIXED, LIMIT_STARTS, LIMIT_GROWS, LIMIT_STAYS, LIMIT_TESTS,
  LIMIT_WAS_CUT, LIMIT_HAD_ERROR, LIMIT_IS_MOST,
  LIMIT_REASONS
};

struct limit {
  /* Constant after limit_init and limit_set_large. */
  unsigned most, most_large;    /* the latter is 0 if there are no large ones */
  uint32_t whole_bytes, large_bytes;
  unsigned at_once;             /* operations that the plugin gets at a time, at
                                 * most */
  bool has_small;
  struct limit *other;          /* of the device's other kind, or NULL */
  struct lock *lock;            /* a leaf: own_lock, or that of OTHER */
  struct lock own_lock;
  /* Atomic, written under the lock. */
  atomic_uint value;
  atomic_uint reason;           /* enum limit_reason: the latest change */
  atomic_bool is_large;         /* all of this is about large operations */
  /* Atomic. */
  atomic_bool hit;              /* the limit was in the way in this epoch */
  atomic_bool has_large;        /* see limit_has_large */
  /* Under the lock. */
  unsigned kept;                /* the value to return to after the test of
                                 * OTHER; 0: it has none */
  uint64_t base_ns;             /* 0: not known yet */
  bool is_base_tested;          /* it is the mean time of a test, and no longer
                                 * the shortest time of the first epoch */
  unsigned age;                 /* epochs since it was measured */
  unsigned interval;            /* the age at which it is measured again */
  unsigned streak;              /* growths since the last cut */
  unsigned good;                /* the latest limit without errors */
  bool has_worked;              /* an operation has, since the latest error */
  unsigned ceiling;             /* until ceiling_until_ns */
  uint64_t ceiling_until_ns;
  unsigned before;              /* the limit before the test; 0: no test */
  uint64_t before_ns;           /* the mean time then */
  enum size_test {
    SIZE_IS_NOT_TESTED, SIZE_BEFORE, SIZE_CHANGES, SIZE_AFTER
  } size_test;                  /* the step of a test of the size: it measures
                                 * the rate, waits for the operations from
                                 * before the change, measures again */
  uint64_t moved[2];            /* bytes of the operations that ended in this
                                 * step: of this kind, of reads and writes */
  uint64_t before_elapsed_ns;
  double before_rate[2];        /* bytes per ns, as in moved */
  uint64_t before_base_ns;
  unsigned size_age;            /* epochs since the size was tested */
  unsigned size_interval;       /* the age at which it is tested again */
  /* The epoch: */
  uint64_t epoch_ns;            /* when it began */
  unsigned begun;               /* operations that began and ended in it */
  unsigned skip;                /* how many of those it waits for */
  uint64_t sum_ns;              /* the time of operations after these */
  double squares;
  uint64_t least_ns;            /* the shortest time, of all that ended */
  unsigned n;                   /* their number */
  /* Small operations: */
  bool is_small;                /* all of this is about them */
  unsigned since_whole;         /* how many ended since the latest whole one */
  /* Large operations: */
  unsigned since_large;         /* how many whole ones ended since the latest
                                 * large one */
};

/* ADAPTS: the limit follows the device, from LIMIT_START on and up to MOST.  If
 * not, it is MOST.  WHOLE_BYTES: the size of a usual operation; the limit looks
 * at operations of about that size.  HAS_SMALL: the filter may have smaller
 * ones in flight, too.
 */
extern void limit_init (struct limit *, bool adapts, unsigned most,
                        uint32_t whole_bytes, bool has_small);
/* The filter may also have operations of up to BYTES in flight, and at most
 * MOST of these.  BEGINS: the limit begins with them.  The plugin gets AT_ONCE
 * operations of any size at a time, at most.  Call it before the first
 * operation.
 */
extern void limit_set_large (struct limit *, uint32_t bytes, unsigned most,
                             unsigned at_once, bool begins);
extern void limit_destroy (struct limit *);
/* Makes them the two limits of a device: one is lower while the other is
 * tested.  Call it before the first operation.  They share a lock, so destroy
 * both at the same time.
 */
extern void limit_pair (struct limit *, struct limit *);
extern unsigned limit_value (struct limit *);
/* The same in operations of WHOLE_BYTES. */
extern unsigned limit_wholes (struct limit *);
/* Whether limit_value counts large operations.  If so, the filter uses them. */
extern bool limit_is_large (struct limit *);
/* Sets *SHOWN to the limit if it is larger than that. */
extern void limit_show (struct limit *, struct stats_limit *shown);
/* The filter wanted to have more in flight. */
extern void limit_hit (struct limit *);
/* Tells the limit whether the filter has data for large operations.  If not,
 * the limit does not test them.  The first value is BEGINS.
 */
extern void limit_has_large (struct limit *, bool);
/* An operation of COUNT bytes began at START_NS and has ended at END_NS. */
extern void limit_note (struct limit *, uint32_t count, uint64_t start_ns,
                        uint64_t end_ns, int err);

#endif
