/* SPDX-License-Identifier: BSD-3-Clause
 *
 * clock: the monotonic clock in nanoseconds.
 */

#ifndef NBDKIT_ASYNC_CLOCK_H
#define NBDKIT_ASYNC_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t
clock_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

#endif /* NBDKIT_ASYNC_CLOCK_H */
