/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where to cut a request into pieces (pure).
 */
#ifndef ASYNCPOOL_SPLIT_H
#define ASYNCPOOL_SPLIT_H

#include <stdint.h>

struct split_piece {
  uint64_t offset;
  uint32_t count;
};

/* The number of units that the request touches: the most pieces that it can be
 * cut into.
 */
static inline uint32_t
split_max (uint32_t unit, uint32_t count, uint64_t offset)
{
  return count == 0 ? 0 : (offset + count - 1) / unit - offset / unit + 1;
}

/* Piece I of N of the request.  The cuts are at multiples of UNIT, the sizes
 * alike within one unit, and no piece is empty.  N is at most split_max ().
 */
static inline struct split_piece
split_piece (uint32_t unit, uint32_t count, uint64_t offset, uint32_t n,
             uint32_t i)
{
  uint64_t first = offset / unit;
  uint64_t units = split_max (unit, count, offset);
  uint64_t from = i == 0 ? offset : (first + units * i / n) * unit;
  uint64_t to = i + 1 == n ? offset + count
    : (first + units * (i + 1) / n) * unit;

  return (struct split_piece) { .offset = from, .count = to - from };
}

#endif
