/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Two questions that decide whether other threads can help a client, answered
 * from recent measurements.
 *
 * struct speed: does the device wait, or does it copy?  To hand a request to
 * another thread costs a wake-up, about 10 us.  An operation counts as a copy
 * if it takes no longer than SPEED_COPY_NS plus its bytes at 1 GB/s.  Another
 * thread could not do it sooner.  A longer operation is slow.
 *
 * A device waits if more than one operation in SPEED_SLOW was slow lately.  The
 * bound is low, because some blocks of a slow device may be fast: holes, and
 * blocks in a cache.  An operation of a fast device may look slow if its thread
 * lost the processor.  On two busy cores with 16 threads, at most one in 280
 * did.  The very first operation decides alone.
 *
 * struct depth: how many requests does this client keep in flight by itself?
 * It is the peak of the last two epochs.  An epoch is some device latencies
 * long, so that a client counts as deep between the bursts that it sends.
 * Others of this type count the data of these requests, and the buffers that
 * all clients' writes in flight would fill.
 *
 * Both are advice.  All fields are atomics without order: a lost update costs
 * speed for a moment, never correctness.
 */
#ifndef ASYNCPOOL_SPEED_H
#define ASYNCPOOL_SPEED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* The score: a slow operation adds SPEED_SLOW to it, a fast one takes 1 away.
 */
enum {
  SPEED_SLOW = 64, SPEED_WAITS = 3 * SPEED_SLOW, SPEED_MOST = 4 * SPEED_SLOW
};
#define SPEED_COPY_NS UINT64_C (100000)

struct speed {
  atomic_uint score;            /* 0 to SPEED_MOST; the device waits from
                                 * SPEED_WAITS on */
  atomic_bool known;            /* there was a first operation */
  atomic_uint_fast64_t wait_ns; /* how much longer than a copy the latest slow
                                 * operations took: a mean of about 8; 0: none
                                 * was slow yet */
};

/* A successful operation of COUNT bytes took TOOK_NS. */
extern void speed_note (struct speed *, uint64_t took_ns, uint32_t count);
/* How long the device waits, in ns; 0: it copies, or that is unknown. */
extern uint64_t speed_wait_ns (struct speed *);
/* Whether the first operation has completed. */
extern bool speed_is_known (struct speed *);

struct depth {
  atomic_uint in_flight;
  atomic_uint peak, last_peak;
  atomic_uint_fast64_t epoch_ns;
};

/* MORE requests, or whatever is counted; 0 only looks at the clock. */
extern void depth_begin (struct depth *, unsigned more, uint64_t now_ns,
                         uint64_t epoch_ns);
extern void depth_end (struct depth *, unsigned more);
extern unsigned depth_peak (struct depth *);

#endif
