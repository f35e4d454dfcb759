/* SPDX-License-Identifier: BSD-3-Clause
 *
 * split.so: a filter that cuts writes and zeroes into pieces of 16 KiB, for
 * test-crash.c.
 *
 * If a flush emulates the plugin's FUA, only the last piece has FUA, as
 * nbdkit-filter(3) allows.  nbdkit itself cuts large zeroes in the same way.
 */
#include <stdbool.h>
#include <stdint.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

enum { PIECE = 16384 };         /* bytes; no smaller than a minimum block */

static int
split_prepare (nbdkit_next *next, void *handle, int readonly)
{
  (void) handle;
  (void) readonly;
  return next->can_fua (next) == -1 ? -1 : 0;
}

static uint32_t
piece_flags (nbdkit_next *next, uint32_t flags, bool is_last)
{
  if (!is_last && next->can_fua (next) == NBDKIT_FUA_EMULATE)
    flags &= ~NBDKIT_FLAG_FUA;
  return flags;
}

static int
split_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  const char *data = buf;

  (void) handle;
  for (uint32_t done = 0, n; done < count; done += n) {
    n = count - done > PIECE ? PIECE : count - done;
    if (next->pwrite (next, data + done, n, offset + done,
                      piece_flags (next, flags, done + n == count), err) == -1)
      return -1;
  }
  return 0;
}

static int
split_zero (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset,
            uint32_t flags, int *err)
{
  (void) handle;
  for (uint32_t done = 0, n; done < count; done += n) {
    n = count - done > PIECE ? PIECE : count - done;
    if (next->zero (next, n, offset + done,
                    piece_flags (next, flags, done + n == count), err) == -1)
      return -1;
  }
  return 0;
}

static struct nbdkit_filter filter = {
  .name = "split",
  .prepare = split_prepare,
  .pwrite = split_pwrite,
  .zero = split_zero,
};

/* nbdkit's macro declares no prototype, and clang asks for one. */
extern struct nbdkit_filter *filter_init (void);
NBDKIT_REGISTER_FILTER (filter)
