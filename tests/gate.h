/* SPDX-License-Identifier: BSD-3-Clause */

/* The gate of a device: it holds, fails, releases and logs the device's
 * operations as a test commands.
 *
 * A device calls the gate around each operation.  Two kinds of device do: the
 * fake device in the test program's own process (fake.h), and the plugins
 * gate.so and async-gate.so in nbdkit's process.  So a gate lies in plain
 * memory or in a file that two processes map.
 *
 * A test makes rules: "hold each write that touches [offset, offset + count)",
 * "fail the next two".  The gate keeps a log of the operations.  One clock
 * numbers their starts and ends and the moments that a test asks for with
 * gate_now, so "before" and "after" are comparisons, not sleeps.
 *
 * A held read has copied its data already.  A held write has not changed the
 * device yet.  Of the orders that a device may choose, these show most
 * mistakes.
 *
 * Each wait has a deadline.  The test program prints the log and aborts when
 * it passes.
 *
 * Not the gate's job: the device's data, and how long an operation takes.
 */
#ifndef TESTS_GATE_H
#define TESTS_GATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum {
  GATE_READ = 1,
  GATE_WRITE = 2,
  GATE_ZERO = 4,
  GATE_TRIM = 8,
  GATE_FLUSH = 16,
  GATE_EXTENTS = 32,
  GATE_CACHE = 64,
  GATE_CHANGE = GATE_WRITE | GATE_ZERO | GATE_TRIM,
  GATE_ANY = 127
};

struct gate_op {
  unsigned kind, flags;         /* flags: of the device */
  unsigned conn;                /* a name that the device gives */
  bool is_hooked;               /* an asynchronous hook started it */
  int err;                      /* its result, when it has ended */
  uint64_t offset, count;
  pthread_t thread;             /* in the device's process: the caller */
  uint64_t start, end;          /* the clock; end is 0 until it ends */
};

struct gate;

/* In plain memory. */
extern struct gate *gate_new (void);
/* In a file: the test program creates it, the plugin attaches to it. */
extern struct gate *gate_create (const char *path);
extern struct gate *gate_attach (const char *path);
extern void gate_free (struct gate *);

/* Ranges.  A COUNT of 0 is a range without end.  A flush has no range: it
 * touches every range.
 */
#define ANYWHERE 0, 0

/* Rules.  A rule is for the operations of KINDS that touch the range; the
 * result is its name.  A rule that holds is for operations that start after
 * it was made.  A rule that fails is for operations that go on after it was
 * made: a test can hold an operation first, and then decide that it fails.
 */
extern int gate_hold (struct gate *, unsigned kinds, uint64_t offset,
                      uint64_t count);
extern int gate_fail (struct gate *, unsigned kinds, uint64_t offset,
                      uint64_t count, int err,
                      int times /* -1: until released */);
/* Of the operations of KINDS that go on after the rule was made, fails the Nth
 * (from 1) and those after it: TIMES in all.
 */
extern int gate_fail_nth (struct gate *, unsigned kinds, unsigned n, int err,
                          int times /* -1: until released */);
/* Fails PER_MILLE of the operations with EIO, at random. */
extern void gate_fail_some (struct gate *, unsigned kinds, unsigned per_mille,
                            uint32_t seed);
/* The rule ends: the operations that it holds go on. */
extern void gate_release (struct gate *, int rule);
extern void gate_release_all (struct gate *);
/* Lets N held operations go on, the longest held first, and waits until they
 * do.  The rule stays.
 */
extern void gate_pass (struct gate *, int rule, unsigned n);
extern unsigned gate_held (struct gate *, int rule);
extern void gate_wait_held (struct gate *, int rule, unsigned n);

/* The log: how many operations have started, or ended. */
extern unsigned gate_started (struct gate *, unsigned kinds, uint64_t offset,
                              uint64_t count);
extern unsigned gate_ended (struct gate *, unsigned kinds, uint64_t offset,
                            uint64_t count);
extern void gate_wait_started (struct gate *, unsigned kinds, uint64_t offset,
                               uint64_t count, unsigned n);
extern void gate_wait_ended (struct gate *, unsigned kinds, uint64_t offset,
                             uint64_t count, unsigned n);
/* How many of them have ended with an error. */
extern unsigned gate_failed (struct gate *, unsigned kinds, uint64_t offset,
                             uint64_t count);
/* The Nth operation (from 0) in the order of their starts. */
extern struct gate_op gate_op (struct gate *, unsigned kinds, uint64_t offset,
                               uint64_t count, unsigned n);
/* Empties the log.  Operations in the device go on. */
extern void gate_forget (struct gate *);
extern void gate_print (struct gate *);
/* The next number of the clock. */
extern uint64_t gate_now (struct gate *);

/* The most operations that were in the device at once. */
extern unsigned gate_peak (struct gate *);
/* The operations that are in the device now. */
extern unsigned gate_running (struct gate *);
/* How often a change started while another change of the same bytes had not
 * ended.
 */
extern unsigned gate_collisions (struct gate *);

/* The device's side.  An operation starts, passes the gate and ends. */

/* OP says all but the clock.  The result names the operation. */
extern unsigned gate_op_start (struct gate *, struct gate_op op);

struct gate_verdict {
  int err;                      /* 0, or the error to fail with */
  bool is_by_chance;            /* by gate_fail_some */
  bool was_held;
};

/* Waits while a rule holds the operation. */
extern struct gate_verdict gate_op_pass (struct gate *, unsigned op);
/* Whether a rule holds an operation like OP, should it start now. */
extern bool gate_would_hold (struct gate *, struct gate_op op);
extern void gate_op_end (struct gate *, unsigned op, int err);

/* Between a plugin and the test. */

/* The answers that connections get from now on, in place of the plugin's
 * parameters.  A 0 leaves a parameter as it is.  SIZE is at most the
 * plugin's size.
 */
struct gate_geometry {
  uint64_t size;
  uint32_t minimum, maximum;
};
extern void gate_set_geometry (struct gate *, struct gate_geometry);
extern struct gate_geometry gate_geometry (struct gate *);

/* Requests that break a rule of nbdkit: of a wrong block size, or after
 * .close.
 */
extern void gate_violation (struct gate *);
extern unsigned gate_violations (struct gate *);

/* The connections that the plugin has closed. */
extern void gate_count_closed (struct gate *);
extern unsigned gate_closed (struct gate *);

#endif /* TESTS_GATE_H */
