/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A bounded set of extents: what a plugin has answered about block status.
 *
 *     |data |hole      |        |hole |data |
 *     0     1M         16M      32M   48M   49M
 *      \___ asked at t1 _/        \_ at t2 _/
 *
 * The extents are sorted by offset, and no two overlap.  A new extent replaces
 * the parts of others that it overlaps.  If there is no room for it, the
 * extents of the oldest answer leave the set.  A range that is not in the set
 * is unknown.
 *
 * It has no lock: the caller serializes all calls.
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

/* Empty if all fields but max are zero. */
struct extentset {
  unsigned max;                 /* constant */
  unsigned n, room;
  struct extent *at;
};

/* Empties the set and frees its memory. */
extern void extentset_clear (struct extentset *);
/* Removes the range from the set. */
extern void extentset_drop (struct extentset *, uint64_t from, uint64_t to);
/* Returns false if there is no room or no memory.  The range is then not in the
 * set.  To make room, it removes older answers, but no extent of the same one.
 */
extern bool extentset_add (struct extentset *, struct extent);
/* The index of the first extent that ends after OFFSET; n: there is none. */
extern unsigned extentset_first (const struct extentset *, uint64_t offset);
/* The index of the extent that includes the byte, or -1.  Ignores an extent
 * that was asked for before SINCE_NS.
 */
extern int extentset_find (const struct extentset *, uint64_t offset,
                           uint64_t since_ns);
/* The index of the extent that follows AT without a gap, or -1.  Ignores an
 * extent that was asked for before SINCE_NS.
 */
extern int extentset_next (const struct extentset *, int at,
                           uint64_t since_ns);

#endif
