/* SPDX-License-Identifier: BSD-3-Clause
 *
 * latency: times as the command line writes them, and waiting for a moment
 * on the monotonic clock.
 *
 * Not its job: which operations wait, and shutdown (delaymem.c).
 * No state, no locks.
 */

#ifndef DELAYMEM_LATENCY_H
#define DELAYMEM_LATENCY_H

#include <stdint.h>

#define LATENCY_NS_PER_S UINT64_C (1000000000)

/* An hour: longer than any device, and small enough that no sum overflows. */
#define LATENCY_MAX_NS (3600 * LATENCY_NS_PER_S)

/* Reads DIGITS[.DIGITS][s|ms|us|ns], seconds without a unit, exactly.
 * Returns 0, EINVAL (not such a time, or finer than 1 ns) or
 * ERANGE (more than LATENCY_MAX_NS).
 */
extern int latency_parse (const char *str, uint64_t *ns);

/* Waits until the monotonic clock shows WHEN_NS; signals do not end it. */
extern void latency_sleep_until (uint64_t when_ns);

#endif /* DELAYMEM_LATENCY_H */
