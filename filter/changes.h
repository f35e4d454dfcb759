/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A small set of changed ranges of a device.  It covers all of them.  If there
 * are too many, it also covers the bytes between the nearest ones.
 *
 * Pure: the caller serializes.
 */
#ifndef ASYNCPOOL_CHANGES_H
#define ASYNCPOOL_CHANGES_H

#include <stdbool.h>
#include <stdint.h>

/* As many as there are streams of one connection. */
enum { CHANGES_MAX = 16 };

struct change {
  uint64_t from, to;            /* bytes, from < to */
};

/* Empty when zeroed.  The ranges are in order of offset, and no two touch. */
struct changes {
  unsigned n;
  struct change at[CHANGES_MAX];
};

extern void changes_add (struct changes *, uint64_t from, uint64_t to);
extern void changes_add_all (struct changes *, const struct changes *more);
extern bool changes_overlap (const struct changes *, uint64_t from,
                             uint64_t to);

#endif
