/* SPDX-License-Identifier: BSD-3-Clause */
/* The gate: how a test program holds, releases, fails and counts the operations of the test
 * plugin gate.so, whatever process that runs in.
 *
 * Both map one file. A test puts rules in it, "hold every write at [offset, length)", "fail the
 * next two"; the plugin looks at the rules when an operation starts and again when it goes on,
 * and keeps a log. One counter numbers the starts and ends of operations and the moments that
 * a test asks for with gate_now, so that "before" and "after" are comparisons, not sleeps.
 *
 * A held read has already copied its data, a held write has not yet changed the device: of the
 * orders that a device may choose, those that show a mistake best.
 *
 * What waits for something waits with a deadline, after which the test program aborts.
 */
#ifndef TESTS_GATE_H
#define TESTS_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  GATE_READ = 1,
  GATE_WRITE = 2,
  GATE_ZERO = 4,
  GATE_TRIM = 8,
  GATE_FLUSH = 16,              /* has no range: every rule's range matches it */
  GATE_EXTENTS = 32,
  GATE_CACHE = 64,
  GATE_CHANGE = GATE_WRITE | GATE_ZERO | GATE_TRIM,
  GATE_ANY = 127,
};

struct gate_op {
  unsigned kind;
  unsigned flags;               /* NBDKIT_FLAG_* */
  unsigned connection;          /* the plugin's handle: 1, 2, ... in the order of opening */
  int error;                    /* what it was answered with, once it ended */
  uint64_t offset;
  uint64_t count;
  uint64_t start;
  uint64_t end;                 /* 0: not yet */
};

struct gate;

/* The test's side makes the file, the plugin's opens it. */
struct gate *gate_create (const char *path);
struct gate *gate_attach (const char *path);
void gate_free (struct gate *g);

/* Rules: for the kinds given, where they touch [offset, offset+length). The result names it. */
int gate_hold (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length);
int gate_fail (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length,
               int error, int times /* -1: until released */);
/* Ends a rule: held operations go on, failures end. */
void gate_release (struct gate *g, int rule);
/* Lets the n go on that are held longest. The rule stays. */
void gate_release_some (struct gate *g, int rule, unsigned n);
void gate_release_all (struct gate *g);

unsigned gate_held (struct gate *g, int rule);
void gate_wait_held (struct gate *g, int rule, unsigned n);

/* The log: operations of the kinds that touch the range. */
unsigned gate_started (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length);
unsigned gate_ended (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length);
void gate_wait_started (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length,
                        unsigned n);
void gate_wait_ended (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length,
                      unsigned n);
/* Copies up to max of them in the order they started; the result is how many there are. */
unsigned gate_log (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length,
                   struct gate_op *ops, unsigned max);
/* Forgets the log (not what is still under way) and what was counted below. */
void gate_forget (struct gate *g);
void gate_print (struct gate *g);

/* The next number of the counter. */
uint64_t gate_now (struct gate *g);

/* Requests that broke the block sizes which the plugin told, or came after its .close, and the most
 * under way at once. */
unsigned gate_violations (struct gate *g);
unsigned gate_peak (struct gate *g, unsigned kind);

/* What connections are told from now on, in the place of the plugin's
 * parameters; 0 leaves those.  Not more than its size=.
 */
struct gate_geometry {
  uint64_t size;
  uint32_t minimum, maximum;
};
void gate_set_geometry (struct gate *g, struct gate_geometry geometry);

/* How many connections the plugin has closed since its start. */
unsigned gate_closed (struct gate *g);

/* The plugin's side: around every operation. */
unsigned gate_op_start (struct gate *g, unsigned kind, unsigned flags, unsigned connection,
                        uint64_t offset, uint64_t count);
/* Waits while a rule holds the operation; the result is how it is to fail, or 0. *held tells
 * whether it had to wait. */
int gate_op_pass (struct gate *g, unsigned op, bool *held);
void gate_op_end (struct gate *g, unsigned op, int error);
void gate_violation (struct gate *g);
struct gate_geometry gate_geometry (struct gate *g);
void gate_count_closed (struct gate *g);

#endif /* TESTS_GATE_H */
