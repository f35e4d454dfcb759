/* SPDX-License-Identifier: BSD-3-Clause */
/* A device in memory for unit tests, below the engine in the same process: it holds, releases and
 * fails operations on command, and logs them.
 *
 * Rules say which operations to hold or to fail: by kind, where they touch [offset, offset+count).
 * A held read has copied its data already, a held write has not changed the device yet: of the
 * orders that a device may choose, those that show a mistake best.  One clock numbers the starts
 * and ends of operations, so that "before" and "after" are comparisons.
 *
 * Every operation takes longer than a copy would (pace.h), so that the engine takes it for a device
 * that waits, unless fake_set_fast says otherwise.
 *
 * With hooks (fake_hook) reads and writes are asynchronous: each is done by a thread of its own, or
 * every second one, if no rule holds it, by the caller, who so gets the reply before start returns.
 *
 * What waits does so with a deadline, after which the test program ends.
 */
#ifndef TESTS_FAKE_H
#define TESTS_FAKE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "check.h"
#include "engine.h"

enum {
  FAKE_READ = 1, FAKE_WRITE = 2, FAKE_ZERO = 4, FAKE_TRIM = 8, FAKE_FLUSH = 16,
  FAKE_CHANGE = FAKE_WRITE | FAKE_ZERO | FAKE_TRIM,
  FAKE_ANY = 31
};

struct fake_op {
  unsigned kind, conn, flags;
  uint32_t count;
  uint64_t offset;
  int err;
  bool hooked;
  pthread_t thread;             /* that called; a hook returns before the operation starts */
  uint64_t start, end;          /* end: 0 = not yet */
};

struct fake;

extern struct fake *fake_new (uint64_t size);
extern void fake_free (struct fake *);
/* What conn_open wants; CONN (0 to 15) names the connection in the log. */
extern struct backend fake_backend (struct fake *, unsigned conn);
extern void fake_set_fast (struct fake *, bool);
/* Gives a backend async hooks.  GRACE_NS: as in nbdkit-async-driver.h. */
extern void fake_hook (struct backend *, uint64_t grace_ns);
/* What backend_ops.is_gone says, for all connections. */
extern void fake_set_gone (struct fake *, bool);
/* Waits until that was asked N times. */
extern void fake_wait_asked (struct fake *, unsigned n);
/* The bytes of the device; behind the device's back where it works at the same time. */
extern char *fake_data (struct fake *);
/* A copy of some of them, at a moment between two operations. */
extern void fake_peek (struct fake *, void *buf, uint32_t count, uint64_t offset);

/* A range of the device: OFFSET and COUNT.  COUNT 0: to its end.  Flushes have no
 * range, and every range matches them.
 */
#define ANYWHERE 0, 0

extern int fake_hold (struct fake *, unsigned kinds, uint64_t offset, uint64_t count);
extern int fake_fail (struct fake *, unsigned kinds, uint64_t offset, uint64_t count, int err,
                      int times /* -1: until released */);
/* Fails PER_MILLE of the operations, writes after they have changed a part of their range. */
extern void fake_fail_some (struct fake *, unsigned kinds, unsigned per_mille, uint32_t seed);
/* The rule ends: what it holds goes on. */
extern void fake_release (struct fake *, int rule);
/* Lets N go on that are held, the longest held first.  The rule stays. */
extern void fake_pass (struct fake *, int rule, unsigned n);
extern void fake_wait_held (struct fake *, int rule, unsigned n);

/* How many operations have started, or ended. */
extern unsigned fake_started (struct fake *, unsigned kinds, uint64_t offset, uint64_t count);
extern unsigned fake_ended (struct fake *, unsigned kinds, uint64_t offset, uint64_t count);
extern void fake_wait_ended (struct fake *, unsigned kinds, uint64_t offset, uint64_t count,
                             unsigned n);
/* The Nth operation (from 0) that started and matches. */
extern struct fake_op fake_op (struct fake *, unsigned kinds, uint64_t offset, uint64_t count,
                               unsigned n);
extern void fake_forget (struct fake *);
/* The most operations that were in the device at once, and how often a change began while another
 * one of the same bytes had not ended.
 */
extern unsigned fake_peak (struct fake *);
extern unsigned fake_collisions (struct fake *);

/* The connection's device waits: as if 64 ms had been measured. */
static inline void
fake_make_slow (struct conn *c)
{
  for (unsigned i = 0; i < SPEED_MOST / SPEED_SLOW; i++) {
    speed_note (c->backend.read_speed, 64000000, 1);
    speed_note (c->backend.write_speed, 64000000, 1);
  }
}

#endif
