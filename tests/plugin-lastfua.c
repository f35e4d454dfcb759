/* SPDX-License-Identifier: BSD-3-Clause
 *
 * lastfua.so: a filter that cuts writes, zeroes and trims into pieces of
 * 64 KiB.
 *
 * If the layer below answers can_fua with NBDKIT_FUA_EMULATE, only the last
 * piece has FUA, as nbdkit-filter(3) allows: nbdkit emulates FUA by a flush,
 * which covers all pieces.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

enum { PIECE = 65536 };

/* The flags of a piece.  LEFT bytes are left, with this piece. */
static uint32_t
piece_flags (nbdkit_next *next, uint32_t flags, uint32_t left)
{
  if (left > PIECE && next->can_fua (next) == NBDKIT_FUA_EMULATE)
    flags &= ~NBDKIT_FLAG_FUA;
  return flags;
}

static uint32_t
piece_count (uint32_t left)
{
  return left < PIECE ? left : PIECE;
}

static int
lastfua_pwrite (nbdkit_next *next, void *handle, const void *buf,
                uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  (void) handle;
  for (uint32_t done = 0; done < count; done += PIECE)
    if (next->pwrite (next, (const char *) buf + done,
                      piece_count (count - done), offset + done,
                      piece_flags (next, flags, count - done), err) == -1)
      return -1;
  return 0;
}

static int
lastfua_zero (nbdkit_next *next, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  (void) handle;
  for (uint32_t done = 0; done < count; done += PIECE)
    if (next->zero (next, piece_count (count - done), offset + done,
                    piece_flags (next, flags, count - done), err) == -1)
      return -1;
  return 0;
}

static int
lastfua_trim (nbdkit_next *next, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  (void) handle;
  for (uint32_t done = 0; done < count; done += PIECE)
    if (next->trim (next, piece_count (count - done), offset + done,
                    piece_flags (next, flags, count - done), err) == -1)
      return -1;
  return 0;
}

static struct nbdkit_filter filter = {
  .name = "lastfua",
  .pwrite = lastfua_pwrite,
  .zero = lastfua_zero,
  .trim = lastfua_trim,
};

/* nbdkit's macro declares no prototype, and clang asks for one. */
extern struct nbdkit_filter *filter_init (void);
NBDKIT_REGISTER_FILTER (filter)
