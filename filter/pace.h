/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Does handing over pay?  Two questions, answered from what was measured a
 * moment ago.
 *
 * pace: is the device one that waits, or one that copies?  Handing a request to
 * another thread costs a wake-up, in the order of 10 us.  An operation that
 * takes no longer than PACE_COPY_NS plus its bytes at 1 GB/s is a copy, and
 * another thread could not do it sooner.  Longer ones are slow.  A device waits
 * if more than one operation in PACE_SLOW was slow lately: some blocks of a slow
 * device may be fast, as holes or in a cache.  Any one operation of a fast
 * device may look slow, where its thread has lost the processor: at most one in
 * 280 did on two busy cores with 16 threads.  The very first
 * operation decides alone.
 *
 * depth: how many requests does this client keep in flight by itself?  The peak
 * of the last two epochs, an epoch being some device latencies long: a client
 * that sends its requests in bursts, one burst per latency, counts as deep
 * between its bursts too.  Likewise the buffers that all clients' writes in
 * flight would fill.
 *
 * Both are advice.  All fields are atomics without order: a lost update costs
 * speed for a moment, never correctness.
 */
#ifndef ASYNCPOOL_PACE_H
#define ASYNCPOOL_PACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* The score: a slow operation adds PACE_SLOW to it, a fast one takes 1 away. */
enum { PACE_SLOW = 64, PACE_WAITS = 3 * PACE_SLOW, PACE_MOST = 4 * PACE_SLOW };
#define PACE_COPY_NS UINT64_C (100000)

struct pace {
  atomic_uint score;            /* 0 to PACE_MOST; from PACE_WAITS on the device waits */
  atomic_bool known;            /* there was a first operation */
  atomic_uint_fast64_t wait_ns; /* of the latest slow one: its time above what copying takes */
};

/* One successful operation of COUNT bytes took TOOK_NS. */
extern void pace_note (struct pace *, uint64_t took_ns, uint32_t count);
/* How long the device waits, in ns; 0 means that it copies, or that it is unknown. */
extern uint64_t pace_wait_ns (struct pace *);

struct depth {
  atomic_uint in_flight;
  atomic_uint peak, last_peak;
  atomic_uint_fast64_t epoch_ns;
};

/* Of MORE requests, or whatever is counted; 0 is a look at the clock. */
extern void depth_begin (struct depth *, unsigned more, uint64_t now_ns, uint64_t epoch_ns);
extern void depth_end (struct depth *, unsigned more);
extern unsigned depth_peak (struct depth *);

#endif
