/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The layer below the filter, as a backend: see next.h.
 */
#include <errno.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

#include "next.h"

/* nbdkit's functions return -1 and an error that is never 0; be sure of that.
 */
static int
result (int r, const int *err)
{
  return r == 0 ? 0 : *err > 0 ? *err : EIO;
}

static uint32_t
nbdkit_flags (unsigned flags)
{
  return (flags & BACKEND_FUA ? NBDKIT_FLAG_FUA : 0)
    | (flags & BACKEND_MAY_TRIM ? NBDKIT_FLAG_MAY_TRIM : 0)
    | (flags & BACKEND_FAST_ZERO ? NBDKIT_FLAG_FAST_ZERO : 0);
}

unsigned
next_flags (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? BACKEND_FUA : 0)
    | (flags & NBDKIT_FLAG_MAY_TRIM ? BACKEND_MAY_TRIM : 0)
    | (flags & NBDKIT_FLAG_FAST_ZERO ? BACKEND_FAST_ZERO : 0);
}

/* The server exports it, nbdkit-filter.h does not declare it. */
extern void nbdkit_set_error (int err);

/* nbdkit clears the plugin's nbdkit_set_error before each request.  One request
 * may make several calls, and each has its own error: so clear it here, too.
 */
static nbdkit_next *
begin (void *handle)
{
  nbdkit_set_error (0);
  return handle;
}

static int
next_pread (void *handle, void *buf, uint32_t count, uint64_t offset)
{
  nbdkit_next *next = begin (handle);
  int err = 0;

  return result (next->pread (next, buf, count, offset, 0, &err), &err);
}

static int
next_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             unsigned flags)
{
  nbdkit_next *next = begin (handle);
  int err = 0;

  return result (next->pwrite (next, buf, count, offset,
                              nbdkit_flags (flags), &err), &err);
}

static int
next_zero (void *handle, uint32_t count, uint64_t offset, unsigned flags)
{
  nbdkit_next *next = begin (handle);
  int err = 0;

  return result (next->zero (next, count, offset,
                              nbdkit_flags (flags), &err), &err);
}

static int
next_trim (void *handle, uint32_t count, uint64_t offset, unsigned flags)
{
  nbdkit_next *next = begin (handle);
  int err = 0;

  return result (next->trim (next, count, offset,
                              nbdkit_flags (flags), &err), &err);
}

static int
next_flush (void *handle)
{
  nbdkit_next *next = begin (handle);
  int err = 0;

  return result (next->flush (next, 0, &err), &err);
}

static int
next_extents (void *handle, uint32_t count, uint64_t offset, bool is_one,
              backend_add_extent *add, void *to)
{
  nbdkit_next *next = begin (handle);
  struct nbdkit_extents *asked = nbdkit_extents_new (offset, offset + count);
  int r, err = 0;

  if (asked == NULL)
    return errno;
  r = next->extents (next, count, offset, is_one ? NBDKIT_FLAG_REQ_ONE : 0,
                     asked, &err);
  for (size_t i = 0; r == 0 && i < nbdkit_extents_count (asked); i++) {
    struct nbdkit_extent x = nbdkit_get_extent (asked, i);

    add (to, x.offset, x.offset + x.length,
         (x.type & NBDKIT_EXTENT_HOLE ? BACKEND_HOLE : 0)
         | (x.type & NBDKIT_EXTENT_ZERO ? BACKEND_ZERO : 0));
  }
  nbdkit_extents_free (asked);
  return result (r, &err);
}

/* nbdkit_nanosleep fails if the client of the calling thread has gone, or the
 * server shuts down.
 */
static bool
is_gone (void *handle)
{
  (void) handle;
  return nbdkit_nanosleep (0, 1) == -1;
}

/* Further contexts. */

static nbdkit_backend *lower;
static bool same_if_read_only;

void
next_set_lower (nbdkit_backend *b)
{
  lower = b;
}

void
next_set_same_if_read_only (void)
{
  same_if_read_only = true;
}

static void
next_close (void *handle)
{
  nbdkit_next *next = handle;

  next->finalize (next);
  nbdkit_next_context_close (next);
}

/* Shared: a context of this connection's own, beside its first one, makes
 * nbdkit 1.32 abort.
 */
static void *
next_open (const struct backend *like, const char *export_name)
{
  struct backend b;
  nbdkit_next *next = nbdkit_next_context_open (lower, like->readonly,
                                                export_name, 1);

  if (next == NULL)
    return NULL;
  if (next->prepare (next) == -1) {
    next_close (next);          /* layers below it may be prepared */
    return NULL;
  }
  if (next_backend (next, like->readonly, &b) == 0
      && backend_is_like (&b, like))
    return next;
  nbdkit_debug ("asyncpool: export \"%s\": a further context differs from the "
                "connection's own", export_name);
  next_close (next);
  return NULL;
}

static const struct backend_ops ops = {
  .pread = next_pread, .pwrite = next_pwrite, .zero = next_zero,
  .trim = next_trim, .flush = next_flush, .extents = next_extents,
  .is_gone = is_gone, .open = next_open, .close = next_close,
};

int
next_backend (nbdkit_next *next, bool readonly, struct backend *b)
{
  uint32_t minimum, preferred, maximum;
  int64_t size = next->get_size (next);
  int can_write, can_flush, can_multi_conn;

  if (size == -1 || (can_write = next->can_write (next)) == -1
      || (can_flush = next->can_flush (next)) == -1
      || next->can_fua (next) == -1 || next->can_zero (next) == -1
      || next->can_fast_zero (next) == -1 || next->can_trim (next) == -1
      || next->can_extents (next) == -1 || next->can_cache (next) == -1
      || (can_multi_conn = next->can_multi_conn (next)) == -1
      || next->block_size (next, &minimum, &preferred, &maximum) == -1)
    return -1;
  *b = (struct backend) {
    .ops = &ops, .handle = next, .size = size,
    .min_block = minimum > 0 ? minimum : 1,
    .max_block = maximum > 0 ? maximum : UINT32_MAX,
    .can_write = can_write, .can_flush = can_flush, .readonly = readonly,
    .shared = can_multi_conn || (readonly && same_if_read_only)
  };
  return 0;
}
