/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A bounded set of extents: what a plugin has answered about block status.
 *
 *     |data |hole      |        |hole |data |
 *     0     1M         16M      32M   48M   49M
 *      \___ asked at t1 _/        \_ at t2 _/
 *
 * The extents are in order of their place, and no two overlap.  A new one
 * replaces the bytes that it overlaps.  Where there is no room, those that were
 * asked for longest ago leave the set.  Bytes may leave the set at any time:
 * the set does not know about them then.
 *
 * Pure: the caller serializes.
 */
#ifndef ASYNCPOOL_EXTENTSET_H
#define ASYNCPOOL_EXTENTSET_H

#include <stdbool.h>
#include <stdint.h>

struct extent {
  uint64_t from, to;            /* bytes, from < to */
  uint64_t asked_ns;            /* the same for all extents of one answer */
  unsigned type;                /* BACKEND_HOLE, BACKEND_ZERO */
};

/* Zeroed but for max: empty. */
struct extentset {
  unsigned max;                 /* constant */
  unsigned n, room;
  struct extent *at;
};

/* Frees the memory. */
extern void extentset_clear (struct extentset *);
extern void extentset_drop (struct extentset *, uint64_t from, uint64_t to);
/* Returns false where there is no room, or no memory: the range is not in the
 * set then.  Extents of the same answer do not give way.
 */
extern bool extentset_add (struct extentset *, struct extent);
/* The index of the first extent that ends after OFFSET; n: there is none. */
extern unsigned extentset_first (const struct extentset *, uint64_t offset);
/* The index of the extent that has the byte, if it is no older than SINCE_NS;
 * or -1.
 */
extern int extentset_find (const struct extentset *, uint64_t offset,
                           uint64_t since_ns);
/* The extent that follows AT without a gap, if it is no older than SINCE_NS; or
 * -1.
 */
extern int extentset_next (const struct extentset *, int at,
                           uint64_t since_ns);

#endif
