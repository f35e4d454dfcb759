/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The log of record.so, from which replay.so builds images: all changes and
 * flushes, in the order in which they completed.
 *
 * The log is a series of records.  The data of a write follows its record.  A
 * moment is an offset in the log.  An operation completes at the end of its
 * record.  It started at its moment `started'.  So at a moment
 *
 * - a change is complete if its record ends there or before;
 * - a change is in flight if it has started and is not complete;
 * - a complete change is durable if a complete flush started after its end, or
 *   if it has FUA itself.
 */
#ifndef TESTS_RECORD_H
#define TESTS_RECORD_H

#include <stdint.h>

#define RECORD_SECTOR 512       /* bytes; the unit of a power cut */

struct record {
  uint64_t started;
  uint64_t offset;
  uint32_t count;
  uint8_t kind;                 /* enum kind of operations.h */
  uint8_t fua;
  uint16_t zero;
};

/* Bytes of data that follow. */
#define record_data(r) ((r)->kind == WRITE ? (r)->count : 0)

#endif /* TESTS_RECORD_H */
