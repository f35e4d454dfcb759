/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A device in memory, below the engine in the same process.  It holds,
 * releases and fails operations on command, and logs them.
 *
 * Rules say which operations to hold or to fail: by kind, and by the range that
 * they touch.  A held read has copied its data already, and a held write has
 * not changed the device yet.  A device may choose any such order, and this one
 * shows mistakes best.  One clock numbers the starts and ends of operations, so
 * a test compares numbers to know which came first.
 *
 * Speed.  Every operation takes longer than a copy (speed.h), so the engine
 * takes the device for a slow one, unless fake_set_fast says otherwise.
 *
 * Hooks.  With fake_hook reads and writes are asynchronous, each on a thread of
 * its own.  Every second one that no rule holds is done by the caller, which
 * gets the reply before start returns.
 *
 * Each wait has a deadline, at which it ends the test program.
 */
#ifndef TESTS_FAKE_H
#define TESTS_FAKE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "check.h"
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
  pthread_t thread;             /* called the plugin */
  uint64_t start, end;          /* by the clock; end 0: not yet */
};

struct fake;

extern struct fake *fake_new (uint64_t size);
extern void fake_free (struct fake *);
/* For conn_open.  CONN, 0 to 15, stands for the connection in the log. */
extern struct backend fake_backend (struct fake *, unsigned conn);
extern void fake_set_fast (struct fake *, bool);
/* Gives a backend async hooks.  GRACE_NS: as in nbdkit-async-driver.h. */
extern void fake_hook (struct backend *, uint64_t grace_ns);
/* The result of backend_ops.is_gone, for all connections. */
extern void fake_set_gone (struct fake *, bool);
/* Waits until the engine has asked for it N times. */
extern void fake_wait_asked (struct fake *, unsigned n);
/* The bytes of the device.  A change of them is no operation. */
extern char *fake_data (struct fake *);
/* A copy of some of them, at a moment between two operations. */
extern void fake_peek (struct fake *, void *buf, uint32_t count,
                       uint64_t offset);

/* A range of the device is OFFSET and COUNT.  COUNT 0: to the end of the
 * device.  A flush has no range, and every range matches it.
 */
#define ANYWHERE 0, 0

/* Rules.  These return a number for fake_release. */
extern int fake_hold (struct fake *, unsigned kinds, uint64_t offset,
                      uint64_t count);
/* Fails the next TIMES operations; -1: all, until the rule is released. */
extern int fake_fail (struct fake *, unsigned kinds, uint64_t offset,
                      uint64_t count, int err, int times);
/* Fails PER_MILLE of the operations.  A write changes a part of its range
 * before it fails.
 */
extern void fake_fail_some (struct fake *, unsigned kinds, unsigned per_mille,
                            uint32_t seed);
/* The rule ends: the operations that it holds go on. */
extern void fake_release (struct fake *, int rule);
/* Lets N held operations go on, the longest held first.  The rule stays. */
extern void fake_pass (struct fake *, int rule, unsigned n);
/* Waits until it holds N operations. */
extern void fake_wait_held (struct fake *, int rule, unsigned n);

/* The log: how many operations have started, or ended. */
extern unsigned fake_started (struct fake *, unsigned kinds, uint64_t offset,
                              uint64_t count);
extern unsigned fake_ended (struct fake *, unsigned kinds, uint64_t offset,
                            uint64_t count);
extern void fake_wait_ended (struct fake *, unsigned kinds, uint64_t offset,
                             uint64_t count, unsigned n);
/* The Nth operation (from 0) that started and matches. */
extern struct fake_op fake_op (struct fake *, unsigned kinds, uint64_t offset,
                               uint64_t count, unsigned n);
/* Empties the log. */
extern void fake_forget (struct fake *);
/* The most operations that were in the device at once. */
extern unsigned fake_peak (struct fake *);
/* How often a change began while another change of the same bytes ran. */
extern unsigned fake_collisions (struct fake *);

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
