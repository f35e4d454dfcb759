/* SPDX-License-Identifier: BSD-3-Clause
 *
 * latency: parses times of the command line, and sleeps until a moment.
 *
 * Which operations wait, and for how long, is up to delaymem.c.  There is no
 * state and there are no locks.
 */

#ifndef DELAYMEM_LATENCY_H
#define DELAYMEM_LATENCY_H

#include <stdint.h>

#define LATENCY_NS_PER_S UINT64_C (1000000000)

/* One hour: no device is slower, and no sum of two times overflows. */
#define LATENCY_MAX_NS (3600 * LATENCY_NS_PER_S)

/* Reads DIGITS[.DIGITS][s|ms|us|ns], seconds without a unit, exactly.  Returns
 * 0, EINVAL (not such a time, or finer than 1 ns) or ERANGE (more than
 * LATENCY_MAX_NS).
 */
extern int latency_parse (const char *str, uint64_t *ns);

/* WHEN_NS is a time of clock_ns.  Signals do not end the sleep. */
extern void latency_sleep_until (uint64_t when_ns);

#endif /* DELAYMEM_LATENCY_H */
