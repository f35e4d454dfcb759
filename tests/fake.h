/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A device in memory, below the engine in the same process.  It has a gate, by
 * which a test holds, fails and logs its operations: see gate.h.
 *
 * Speed.  Every operation takes longer than a copy (speed.h), so the engine
 * takes the device for a slow one, unless fake_set_fast says otherwise.
 *
 * Hooks.  With fake_hook reads and writes are asynchronous, each on a thread of
 * its own.  Every second one that no rule holds is done by the caller, which
 * gets the reply before start returns.
 *
 * Contexts.  With fake_serialize the device takes one call at a time for each
 * handle, and further handles may be opened.  It asserts that no handle has two
 * calls, and that all further handles are closed at the end.
 *
 * Views.  With fake_hide each handle shows its own changes, and those of other
 * handles only after a flush of any handle.  A new handle shows the data of the
 * last flush.
 */
#ifndef TESTS_FAKE_H
#define TESTS_FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "check.h"
#include "engine.h"
#include "gate.h"

/* Block status: a page is a hole if all of its bytes are 0.  A held question
 * has looked at the data already, as a held read has.
 */
enum { FAKE_PAGE = 4096 };

struct fake;

extern struct fake *fake_new (uint64_t size);
extern void fake_free (struct fake *);
/* For conn_open.  CONN, 0 to 15, stands for the connection in the log. */
extern struct backend fake_backend (struct fake *, unsigned conn);
extern void fake_set_fast (struct fake *, bool);
/* From now on reads at END or behind it succeed, but fill nothing. */
extern void fake_set_filled (struct fake *, uint64_t end);
/* Gives a backend async hooks.  GRACE_NS: as in nbdkit-async-driver.h. */
extern void fake_hook (struct backend *, uint64_t grace_ns);
/* Makes a backend serial; it may open contexts. */
extern void fake_serialize (struct backend *);
extern void fake_hide (struct fake *);
/* From now on N more contexts can be opened, and no more. */
extern void fake_set_openable (struct fake *, unsigned n);
/* From now on opening a context hangs, or goes on. */
extern void fake_hang_opens (struct fake *, bool hang);
/* Waits until at least N of them hang. */
extern void fake_wait_opening (struct fake *, unsigned n);
/* How many opened at once at most. */
extern unsigned fake_peak_opening (struct fake *);
/* Contexts that are open, and those that were ever opened. */
extern unsigned fake_n_contexts (struct fake *);
extern void fake_wait_n_contexts (struct fake *, unsigned n);
extern unsigned fake_n_opened (struct fake *);
/* The result of backend_ops.is_gone, for all connections. */
extern void fake_set_gone (struct fake *, bool);
/* Waits until the engine has asked for it N times. */
extern void fake_wait_asked (struct fake *, unsigned n);
/* In the log its connections are those of fake_backend. */
extern struct gate *fake_gate (struct fake *);
/* The bytes of the device.  A change of them is no operation. */
extern char *fake_data (struct fake *);
/* A copy of some of them, at a moment between two operations. */
extern void fake_peek (struct fake *, void *buf, uint32_t count,
                       uint64_t offset);

/* The connection's device is slow, as if 64 ms had been measured. */
static inline void
fake_make_slow (struct conn *c)
{
  for (unsigned i = 0; i < SPEED_MOST / SPEED_SLOW; i++) {
    speed_note (c->backend.read_speed, 64000000, 1);
    speed_note (c->backend.write_speed, 64000000, 1);
  }
}

#endif
