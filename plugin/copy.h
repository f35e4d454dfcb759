/* SPDX-License-Identifier: BSD-3-Clause
 *
 * copy: memcpy, but never at a tenth of its speed.
 *
 * glibc copies 4 KiB and more by REP MOVSB where the processor is good at that.  AMD's Zen 3
 * is, but for one case: where the target lies 1 to 31 bytes behind the source, modulo 4096, it takes
 * 7 to 20 times as long (128 KiB: 46 to 77 us in place of 4 to 7).  Just so lie a page-aligned block,
 * of the slab or the device, and a large block of malloc's, which begins 16 bytes into a page: what
 * nbdkit has for each request's data.  Smaller pieces are copied by a loop of loads and stores.
 */

#ifndef NBDKIT_ASYNC_COPY_H
#define NBDKIT_ASYNC_COPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void
copy_bytes (void *to, const void *from, size_t count)
{
  const size_t behind = ((uintptr_t) to - (uintptr_t) from) % 4096, piece = 2048;
  size_t n;

  if (behind < 1 || behind > 31) {
    memcpy (to, from, count);
    return;
  }
  for (size_t done = 0; done < count; done += n) {
    n = count - done < piece ? count - done : piece;
    __asm__ ("" : "+r" (n));    /* or gcc, knowing n, puts a REP MOVS here */
    memcpy ((char *) to + done, (const char *) from + done, n);
  }
}

#endif /* NBDKIT_ASYNC_COPY_H */
