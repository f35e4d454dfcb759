/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The judge of a simulation: a model of the contract, which knows nothing of
 * the filter.
 *
 * It keeps, for each cell, all changes that clients have asked for.  Each has
 * the time at which the client sent it and the time of its answer.
 *
 * A read must return a change that it could see: none that a later change has
 * replaced for certain.  Change B replaces A for certain if A was answered
 * before B was sent, and B has succeeded.  When a read returns B after B was
 * answered, it shows that B comes after all changes that were answered before
 * that read.
 *
 * After a flush, or a FUA write, no cell of the device's durable data is older
 * than any successful change that was answered before the flush was sent.  The
 * filter may log that it has dropped a change.  Then a flush of the same export
 * name must have failed after the change was answered, or be under way.
 *
 * An extent of zeroes is a read of 0.
 *
 * Times are numbers that rise with each event.
 */
#ifndef SIMULATE_JUDGE_H
#define SIMULATE_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

enum request_kind { READ, WRITE, FUA, ZERO, TRIM, FLUSH, EXTENTS, REOPEN };
extern const char *const request_names[];

/* A request of a client. */
struct request {
  enum request_kind kind;
  unsigned client, number;
  unsigned conn;                /* of which it is a part; each opening counts */
  unsigned device;              /* two connections of one device share all */
  unsigned name;                /* of its export */
  unsigned from, to;            /* cells */
  uint64_t value;
  uint64_t sent, answered;      /* 0: not yet */
  int err;
};

extern uint64_t judge_time (void);

/* HIDES: see device.h.  FAILS: errors are allowed. */
extern void judge_start (bool hides, bool fails);
extern void judge_stop (void);

/* The request belongs to the judge until judge_stop. */
extern struct request *judge_send (struct request);
/* BUF: the data of a read. */
extern void judge_answer (struct request *, int err, const void *buf);
/* EXTENTS has said that these cells read as zeroes. */
extern void judge_zeroes (const struct request *, unsigned from, unsigned to);
/* The filter has logged that data of these cells is lost. */
extern void judge_lost (unsigned from, unsigned to);
/* All acknowledged data of the connection, or of all (0), is in the plugin. */
extern void judge_written (unsigned conn);

/* Prints the requests, and where a cell is in doubt, its changes. */
extern void judge_print (void);

#endif
