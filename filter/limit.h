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
 * queue.  The limit changes once per epoch.  If it was in the way, the mean
 * time of the epoch decides:
 *
 *   to 1.15 x base   grows: by an eighth, and faster from the third growth on,
 *                    until it doubles; at the start it doubles at once
 *   to 1.35 x base   stays: reads and writes that share a queue would otherwise
 *                    take turns to grow it
 *   above            base test with as many as the device serves without a
 *                    queue (Little's law: limit x base / mean)
 *
 * A base test is an epoch with fewer operations in flight.  If these take about
 * as long as the base, the base is right.  Otherwise the base was wrong, or the
 * device has changed.  Then the next epoch has half as many, and so on, until a
 * mean time is like the one before it, or the limit is LIMIT_LEAST.  The last
 * mean time is the new base.  After the test, the limit becomes the number of
 * operations that the device served before the test in the time of the base,
 * and 1/8 more, but not more than before the test.
 *
 * A base that is too long would never be noticed, so there is also a base test,
 * with half of the limit or less, when the base is old: after 8 epochs, then
 * after 16 and 32, then every 50.  The first base is the shortest time in the
 * first epoch.  It may be too short, or include a queue of the other direction.
 * So it is tested as soon as a mean time is above 1.35 x base, and again 8
 * epochs later.  Between tests, shorter mean times lower the base.
 *
 * An epoch first waits for operations that show the latest change of the limit.
 * It lasts 5 ms at least, and until the mean time is known to a sixteenth, so
 * it is longer on a device whose times vary, up to a bound.  One operation
 * counts as 8 x base at most, because one that hangs says nothing about a
 * queue.  Before the first base test there is no such bound.
 *
 * The limit counts operations of one size at a time: usual ones, which have a
 * buffer each, large ones, or small writes.  A large one is a prefetch of
 * several units, or the write of a group (order.h).  A small one is less than
 * half of the size that the limit counts.  A device may bear many more small
 * writes.  So after many small writes in a row, the limit starts again, for
 * them.  The next write that is not small starts it again for usual ones.
 *
 * Large operations are better where the number of operations bounds a device,
 * such as a server with few connections.  There the time of an operation hardly
 * grows with its size.  Usual ones are better where bytes bound the device, and
 * LIMIT_LEAST large operations are already a queue.
 *
 * A limit begins with usual operations, and is new.  It is no longer new at the
 * end of the first epoch in which it was in the way, and after an error.  If
 * there is data for large operations (limit_has_large) while it is new, it
 * changes to these at once: a size test would find them late.  They have as
 * many bytes as LIMIT_START usual ones, or there is one for each context.  A
 * limit that counts small writes, or is lower because of the other one's test,
 * does not change.
 *
 * If a limit falls to LIMIT_LEAST + 1 large operations or fewer, it tests usual
 * ones.  If it would grow above the bound of large ones, and more bytes may be
 * in flight with usual ones, it changes to these without a test.  They have as
 * many bytes as the large ones would have.  If the next base test shows that
 * the device serves fewer bytes at a time than the large ones had, these come
 * back, and the limit stays with them at that bound.  The limit of reads does
 * not change: at that bound, usual prefetches are in flight beside the large
 * ones, if the bound has lasted for an epoch.  With usual operations, a limit
 * tests large ones if there is data for them, and operations wait: for the
 * device (a mean time above 1.15 x base), or perhaps because the limit is at
 * its bound.  If many usual operations end and no large one, as with a client
 * that reads at random, the limit starts again with usual ones.
 *
 * A size test measures the rate in bytes, changes the size, waits until as many
 * operations of the new size have ended as are in flight, and measures the rate
 * again.  Reads and writes may share a queue.  There, more bytes of one kind in
 * flight slow down the other kind.  So a test measures two rates: of its own
 * kind, and of reads and writes together.  After a change to large operations,
 * these stay if each of the two rates is at least 1.1 times the earlier one.
 * After a change to usual ones, these stay if one of the two rates is at least
 * 0.9 times the earlier one.  Otherwise the size and the limit are as before.
 *
 * A size test needs a base that was tested.  In the first 8 epochs it also
 * waits for the first base test of the other limit, if that has operations.
 * After a size test, or a change to usual ones without one, the next test
 * follows 64 epochs later at the earliest.
 * Each one that changes nothing makes the wait four times as long, up to 1024
 * epochs.  If it finds usual operations better, bytes probably bound both
 * kinds, so the other limit waits for 64 epochs, too, before it tests large
 * ones.  There is no size test in the minute after an error.
 *
 * An error that may come from too much load halves the limit; in a test, that
 * is the limit before the test.  For a minute the limit then grows at most to
 * the middle between the one that had the error and the highest one without
 * errors.  If no operation has succeeded since the last such error, the device
 * fails whatever its load is.  That does not count.
 *
 * Reads and writes have a limit each.  They may share a queue of the device, or
 * pass through two queues, as on a link with one in each direction.  So in a
 * base test of one limit, the other one is lower by the same factor.  In a size
 * test, the other one keeps its value.  In both it learns nothing but of
 * errors.  The epoch of a test begins when the operations from before have had
 * the time to end.  A test that gets too few operations to end is given up.
 *
 * Sources: Vegas and Netflix's concurrency-limits compare times in this way.
 * BBR measures the time without a queue by having fewer in flight.
 * tests/test-limit.c compares these rules with this one over models of devices.
 *
 * After limit_pair, all functions but limit_destroy may be called by any
 * thread, with or without engine.lock.
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
  uint32_t usual_bytes, large_bytes;
  unsigned at_once;             /* operations that the plugin gets at a time, at
                                 * most */
  bool has_small, beside;
  struct limit *other;          /* of the device's other kind, or NULL */
  struct lock *lock;            /* a leaf: own_lock, or that of OTHER */
  struct lock own_lock;
  /* Atomic, written under the lock. */
  atomic_uint value;
  atomic_uint reason;           /* enum limit_reason: the latest change */
  atomic_bool is_large;         /* this counts large operations */
  atomic_bool is_new;           /* it may begin with large ones */
  atomic_bool bears_more;       /* it is at its bound, and the latest epoch in
                                 * which it was in the way had no queue */
  /* Atomic. */
  atomic_bool hit;              /* the limit was in the way in this epoch */
  atomic_bool has_large;        /* see limit_has_large */
  /* Under the lock. */
  unsigned kept;                /* the value to return to after the test of
                                 * OTHER; 0: OTHER is not tested */
  uint64_t base_ns;             /* 0: not known yet */
  bool is_base_tested;          /* false: it is not known, or is the shortest
                                 * time of the first epoch */
  uint64_t least_ns;            /* the shortest time since the start, or the
                                 * change of the size; UINT64_MAX: none */
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
  bool large_wins;              /* the device serves fewer bytes at a time with
                                 * usual ones than with large ones */
  unsigned from_large;          /* after a change to usual ones without a test,
                                 * until the base test: the limit that it had,
                                 * in usual ones; 0: else */
  unsigned size_age;            /* epochs since the size was tested */
  unsigned size_interval;       /* the age at which it is tested again */
  /* The epoch: */
  uint64_t epoch_ns;            /* when it began */
  unsigned begun;               /* operations that began and ended in it */
  unsigned skip;                /* how many of those it waits for */
  unsigned n;                   /* the operations after these */
  uint64_t sum_ns;              /* their time */
  double squares;
  /* Other sizes: */
  bool is_small;                /* this counts small writes */
  unsigned small_in_a_row;
  unsigned without_large;       /* usual ones that ended since the latest large
                                 * one */
};

/* ADAPTS: the limit follows the device, from LIMIT_START on and up to MOST.  If
 * not, it is MOST.  USUAL_BYTES: the size of a usual operation.  HAS_SMALL: the
 * filter may have smaller ones in flight, too.
 */
extern void limit_init (struct limit *, bool adapts, unsigned most,
                        uint32_t usual_bytes, bool has_small);
/* The filter may also have operations of up to BYTES in flight, and at most
 * MOST of these.  BESIDE: with MOST large ones in flight, it has usual ones in
 * flight, too.  Then the limit does not change to usual ones to grow.  The
 * plugin gets AT_ONCE operations of any size at a time, at most.  Call it
 * before the first operation.
 */
extern void limit_set_large (struct limit *, uint32_t bytes, unsigned most,
                             unsigned at_once, bool beside);
extern void limit_destroy (struct limit *);
/* Makes them the two limits of a device: see above.  Call it before the first
 * operation.  They share a lock, so destroy both at the same time.
 */
extern void limit_pair (struct limit *, struct limit *);
extern unsigned limit_value (struct limit *);
/* The same in operations of USUAL_BYTES. */
extern unsigned limit_in_usual (struct limit *);
/* Whether limit_value counts large operations.  If so, the filter uses them. */
extern bool limit_is_large (struct limit *);
/* Whether the limit is at its bound, and operations have no queue there. */
extern bool limit_bears_more (struct limit *);
/* Sets *SHOWN to the limit if it is larger than that. */
extern void limit_show (struct limit *, struct stats_limit *shown);
/* The filter wanted to have more in flight. */
extern void limit_hit (struct limit *);
/* Whether the limit would change to large operations as soon as there is data
 * for them: see above.
 */
extern bool limit_is_new (struct limit *);
/* Tells the limit whether the filter has data for large operations.  If it has,
 * a new limit changes to them.  If not, no limit tests them.  The first value
 * is false.
 */
extern void limit_has_large (struct limit *, bool);
/* An operation of COUNT bytes began at START_NS and has ended at END_NS. */
extern void limit_note (struct limit *, uint32_t count, uint64_t start_ns,
                        uint64_t end_ns, int err);

#endif
