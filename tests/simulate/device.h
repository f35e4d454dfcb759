/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The plugin of a simulation: a device whose operations take simulated time,
 * fail and hang, as the seed says.
 *
 * The device consists of cells of CELL bytes.  All words of a cell have the
 * same value, so that a torn cell is seen.  A value is a number that only one
 * write has; 0: zeroes.  Each change of a cell gets a version.
 *
 * The device has a volatile cache.  A flush makes the changes durable that had
 * completed when it began.  No other change becomes durable, so nothing hides a
 * missing flush.  If the device hides, a handle shows the changes of others
 * only after a flush.
 *
 * A failed change has changed any of its cells.
 */
#ifndef SIMULATE_DEVICE_H
#define SIMULATE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"

enum { CELL = 64, UNIT = 4096, CELLS = 16 * UNIT / CELL };

enum plugin_kind { POOL, HOOKS, CONTEXTS };

struct device_setup {
  enum plugin_kind kind;
  bool hides;
  bool fails;
  uint64_t latency_ns;          /* of most operations */
  unsigned hang_one_in;
};

struct cell {
  uint64_t value, version;
};

/* There is one device at a time. */
extern void device_start (const struct device_setup *);
extern void device_stop (void);
/* No more errors or hangs. */
extern void device_heal (void);
/* Whether a change of the cell has failed since AT, a time of judge.h. */
extern bool device_has_failed (unsigned cell, uint64_t at);
extern struct cell device_volatile (unsigned cell);
extern struct cell device_durable (unsigned cell);

extern struct backend device_open (bool shared);
extern void device_close (struct backend *);

extern void cells_fill (void *buf, unsigned n, uint64_t value);
/* Fails if the cell is torn. */
extern uint64_t cell_value (const void *buf, unsigned i);

#endif
