/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Block status: what the plugin has answered, kept for a short time.
 *
 * A client asks about the next few hundred KiB, again and again, and waits each
 * time.  On a slow device the filter asks the plugin about a larger range.  It
 * keeps the answers in a set of extents for each device (extentset.h).  A
 * question is one such call into the plugin.
 *
 * For a client that asks in sequence, a worker asks the next question ahead of
 * time.  With async hooks no worker does, as the only worker has to start the
 * hooks of all connections.  Read-ahead leaves known zeroes out, and the filter
 * answers reads of them without the plugin.
 *
 * Not its job: what the extents mean to a stream of reads (readahead.h).
 *
 * The filter uses an answer for config.status_ns, and never reports a hole over
 * newer data:
 * 1. Waiting data (buffers.h) of any device is reported as data, whatever the
 *    plugin has answered.  That is always allowed.
 * 2. A change of any connection of any device takes its range out of all sets
 *    (extents_change).  A direct operation does so before its client has the
 *    answer, a deferred write when it leaves the buffers.
 * 3. While a question is under way, it notes all changes.  Their ranges are
 *    reported as data and not kept.
 * 4. No set has bytes of a direct operation that is in flight.
 * 5. A connection may have changed bytes and no flush has shown this to the
 *    others (device.h).  For its requests about these bytes the filter asks the
 *    plugin.  A flush takes such ranges out of all sets.
 *
 * Lock: extents.lock, for all sets, as a change looks at all of them.  It is
 * taken with or without engine.lock and conn.streams_lock.  Only a pool's lock
 * and contexts.lock are taken while it is held.
 */
#ifndef ASYNCPOOL_EXTENTS_H
#define ASYNCPOOL_EXTENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "changes.h"
#include "cond.h"
#include "extentset.h"
#include "lock.h"
#include "pool.h"

struct conn;
struct device;
struct engine;

/* How many bytes a question is about: the least at first, and four times as
 * many each time.
 */
#define EXTENTS_WINDOW_MIN (UINT64_C (16) << 20)
#define EXTENTS_WINDOW_MAX (UINT64_C (1) << 30)

enum {
  EXTENTS_ANSWER = 2048,        /* extents of one answer, 32 bytes each */
  EXTENTS_KEPT = 4 * EXTENTS_ANSWER     /* of a device: room for the answers
                                         * of several clients */
};

struct extents {
  struct lock lock;
  /* Under the lock. */
  GQueue sets;                  /* struct device_extents that are not empty */
  GQueue questions;             /* struct question: asked, or queued */
  uint64_t last_id;             /* of a question */
  uint64_t newest_ns;           /* when the youngest kept answer was asked */
  struct cond answered;         /* a question has ended */
  /* Atomic, written under the lock: kept extents and questions.  A thread that
   * reads 0 need not take the lock.
   */
  atomic_uint in_use;
};

/* In struct device.  Under extents.lock. */
struct device_extents {
  struct extentset set;
  bool is_linked;
  GList link;                   /* in extents.sets */
};

struct question {
  struct job job;               /* first; queued only if it is asked ahead */
  /* Constant while it is in extents.questions. */
  struct conn *conn;
  uint64_t id;
  uint64_t from, to;
  uint64_t asked_ns;
  GList link;
  /* Under extents.lock. */
  struct changes changes;       /* since it entered extents.questions */
};

/* In struct conn.  Under extents.lock. */
struct conn_extents {
  uint64_t next;                /* where the client's last request ended */
  uint64_t window;              /* 0: EXTENTS_WINDOW_MIN */
  uint64_t narrow_ns;           /* until then no question is about more than
                                 * the client's range, as one has failed */
  struct question ahead;
  bool is_ahead;                /* it is in extents.questions */
};

extern void extents_init (struct engine *);
extern void extents_destroy (struct engine *);
/* A device is freed. */
extern void extents_forget (struct device *);
/* The end of a connection.  extents_close takes back a question ahead that no
 * worker has begun.  extents_wait waits for one that is under way.
 */
extern void extents_close (struct conn *);
extern void extents_wait (struct conn *);

/* Serves a client's request, between conn_enter and conn_leave.  IS_ONE: the
 * first extent is enough.  ANSWER must be empty.  It gets extents that begin at
 * OFFSET, have no gaps, and do not go beyond the request.  Returns 0 or a
 * positive errno.  Wants no lock.
 */
extern int extents_serve (struct conn *, uint32_t count, uint64_t offset,
                          bool is_one, struct extentset *answer);

/* The plugin's data in the range changes, or may just have changed: before and
 * after a direct operation, and after a deferred write.  With or without
 * engine.lock.
 */
extern void extents_change (struct engine *, uint64_t offset, uint64_t end);

/* Whether the whole range is known to read as zeroes through this connection.
 * Wants no lock.
 */
extern bool extents_reads_zero (struct conn *, uint64_t offset, uint64_t end);

/* For read-ahead, advice only.  With or without engine.lock and streams_lock.
 *
 * The end of the zeroes that include the byte at OFFSET; OFFSET: there are
 * none.
 */
extern uint64_t extents_zeroes_end (struct conn *, uint64_t offset);
/* Where the zeroes in front of OFFSET begin; OFFSET: there are none. */
extern uint64_t extents_zeroes_begin (struct conn *, uint64_t offset);
/* How many bytes of the range are known zeroes. */
extern uint64_t extents_zeroes (struct conn *, uint64_t offset, uint64_t end);

#endif
