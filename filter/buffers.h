/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which buffer holds which bytes: states, the tree, the queues, and which
 * connection or writer gets a buffer next.
 *
 * Not its job: calls into the plugin (dispatch.h), the order of writes
 * (order.h), the choice of what to prefetch (readahead.h).
 *
 * The filter divides a device into units: aligned pieces of the size of a
 * buffer, or smaller if the plugin's largest block is smaller.  A buffer holds
 * bytes of one unit of one device: [lo, hi), and the pieces in rest.  A large
 * buffer holds a prefetch of several units, or the data of a group (order.h).
 * The large buffer of a group is TAKEN.
 *
 *   state     the buffer holds
 *   FREE      nothing
 *   TAKEN     nothing: taken for use, or dropped while a copy still uses it
 *   READING   nothing yet: a prefetch is queued or in flight
 *   CLEAN     prefetched data that no write has touched since
 *   OPEN      deferred writes; more writes may join
 *   READY     deferred writes that wait for older overlapping operations, or
 *             until fewer writes of the device are in flight
 *   WRITING   deferred writes, dispatched
 *   FAILED    deferred writes that the plugin refused
 *
 * OPEN, READY and WRITING are the dirty states.  "Waiting data" is dirty or
 * FAILED: the client has its answer, and the plugin does not have the data.
 * buffers_set_state has the table of allowed transitions.
 *
 * Invariants (engine_check in check.h verifies them):
 * 1. A buffer is in the tree, ordered by (base, seq), if it is not FREE, TAKEN
 *    or dropped.
 * 2. Waiting data overlaps no CLEAN buffer, and no READING one in the tree, of
 *    the same device.  A write drops those before it is answered.
 * 3. No read pins a buffer with fillers, and no such buffer is dispatched.  A
 *    buffer with pins is not reused.
 * order.h has the invariants about overlapping writes.
 *
 * A dropped buffer was taken out of the tree.  It becomes FREE as soon as no
 * operation and no copy uses it.
 *
 * All functions want engine.lock, except init, destroy and buffers_may_have.
 * Other modules may walk the queues under the lock; only this one changes them.
 */
#ifndef ASYNCPOOL_BUFFERS_H
#define ASYNCPOOL_BUFFERS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <glib.h>

#include "backend.h"
#include "cond.h"
#include "pool.h"
#include "queue.h"
#include "slab.h"

struct conn;
struct device;
struct engine;

enum buf_state {
  BUF_FREE, BUF_TAKEN, BUF_READING, BUF_CLEAN,
  BUF_OPEN, BUF_READY, BUF_WRITING, BUF_FAILED,
  BUF_STATES
};

/* Sets of states. */
#define BUF_BIT(state) (1u << BUF_##state)
enum {
  BUF_DIRTY = BUF_BIT (OPEN) | BUF_BIT (READY) | BUF_BIT (WRITING),
  BUF_WAITING = BUF_DIRTY | BUF_BIT (FAILED),
  BUF_ANY = (1u << BUF_STATES) - 1
};

/* Bytes within a unit. */
struct span {
  uint32_t lo, hi;
};

struct buf {
  /* The dispatched operation: in READING, in WRITING without a group, and in
   * the large buffer of a group.
   */
  struct job job;               /* first: the pool hands it back */
  struct backend_io io;
  /* Constant. */
  struct engine *engine;
  char *data;                   /* the byte at base */
  bool is_large;
  /* Under engine.lock.  A prefetch uses base, hi and conn without it: they do
   * not change in READING.  A dispatched write uses io.hook, and a group its
   * buffers' base, next and io.hook, which do not change until it ends.
   */
  enum buf_state state;
  bool dropped;
  struct device *device;
  struct conn *conn;            /* its backend does the operations; NULL: it has
                                 * ended and left this FAILED data */
  uint64_t base;                /* device offset of data: that of the unit, or
                                 * a prefetch within it */
  uint32_t lo, hi;
  GArray *rest;                 /* struct span: the pieces after hi, where newer
                                 * data replaced bytes between; or NULL */
  uint64_t seq;                 /* age */
  uint64_t failed_seq;          /* buffers.seq at its last failure, or 0 */
  uint64_t since_ns;            /* READING: prefetch dispatched at; CLEAN:
                                 * prefetched at; OPEN: first write at; FREE:
                                 * freed at */
  uint64_t memory_of;           /* device.id of its latest use; 0: it has no
                                 * memory */
  uint32_t used;                /* prefetched bytes that were read or skipped */
  uint32_t skipped;             /* the latter of them */
  unsigned fillers;             /* copies into it under way */
  unsigned pins;                /* reads that copy from it */
  int err;                      /* the plugin's latest error about it, or 0 */
  uint64_t reported_seq;        /* buffers.seq when a flush returned the error
                                 * of this failed data, or 0: none has since
                                 * the data was answered */
  struct writer *awaited;       /* OPEN: a writer that was called to it */
  bool claimed;                 /* READY: a flush writes it on its own thread */
  bool overtaken;               /* WRITING: newer data of another device has
                                 * replaced bytes of it, see order.h */
  bool hooked;                  /* an async hook does its operation */
  struct buf *group;            /* WRITING: the large buffer of its group, or
                                 * NULL */
  struct buf *next;             /* the next buffer of its group; in the large
                                 * buffer the first one; NULL: none */
  GTreeNode *node;
  GList link;                   /* in the queue of its state, if that has one */
  GList dirty_link;             /* in export.dirty */
  struct cond changed;          /* READING ended, fillers or pins fell to 0 */
};

/* A write that is to be deferred, on the stack of its thread. */
struct writer {
  /* Constant. */
  struct conn *conn;
  uint64_t base, offset, end;   /* within the unit at base */
  const char *data;             /* the byte at offset */
  /* Under engine.lock. */
  uint64_t until_ns;            /* end of its wait for other devices */
  bool waits;                   /* it is in buffers.writers */
  struct cond woken;            /* a buffer became free, or none will, or there
                                 * is one to join */
  struct buf *called_to;        /* the one to join; NULL: none */
  GList link;                   /* in buffers.writers, while it waits */
};

/* FREE buffers of one size. */
struct free_buffers {
  GQueue queue;                 /* youngest first: it is in the CPU's cache, and
                                 * those that are not needed stay at the end */
  GList *last_used;             /* the last one with memory.  All before it have
                                 * memory, those behind it were never used or
                                 * have given it back; NULL: none has memory */
};

struct buffers {
  /* Constant after buffers_init. */
  struct slab slab;
  struct buf *all;
  unsigned n;                   /* their number, large ones included */
  uint32_t place;               /* bytes of the largest buffer */
  unsigned counters_bits;       /* the number of counters is 2 to the power of
                                 * this */
  /* Under engine.lock. */
  GTree *tree;
  struct free_buffers free[2];  /* the usual ones, and the large ones */
  uint64_t give_back_ns;        /* when to look for unused memory; UINT64_MAX:
                                 * there is none */
  GQueue reading, clean, open;  /* oldest first */
  GQueue failed;                /* by seq */
  uint64_t seq;                 /* of the latest event, see buffers_next_seq */
  unsigned n_ahead;             /* READING and CLEAN buffers in the tree that
                                 * are not large */
  unsigned for_writers;         /* usual buffers that prefetches leave free, as
                                 * writers took them from prefetches */
  uint64_t taken_ns;            /* when a writer last took one */
  unsigned readers;             /* connections with conn.ahead_units > 0 */
  GQueue writers;               /* that wait for a buffer, oldest first */
  bool writer_called;           /* one was woken and has not run yet */
  /* Atomic, written under the lock.  A thread that reads 0 need not take it. */
  atomic_uint *counters;        /* of buffers in the tree, see
                                 * buffers_may_have */
  atomic_uint deferring;        /* connections that may defer writes, and
                                 * buffers of waiting data */
};

static inline bool
buf_is_dirty (const struct buf *b)
{
  return BUF_DIRTY >> b->state & 1;
}

static inline bool
buf_is_waiting (const struct buf *b)
{
  return BUF_WAITING >> b->state & 1;
}

static inline uint64_t
buf_start (const struct buf *b)
{
  return b->base + b->lo;
}

static inline uint64_t
buf_first_end (const struct buf *b)
{
  return b->base + b->hi;
}

static inline bool
ranges_overlap (uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
  return a < b_end && b < a_end;
}

/* The pieces of a buffer, in order: [lo, hi), then those in rest. */
static inline unsigned
buf_n_pieces (const struct buf *b)
{
  return 1 + (b->rest ? b->rest->len : 0);
}

static inline struct span
buf_piece (const struct buf *b, unsigned i)
{
  if (i > 0)
    return g_array_index (b->rest, struct span, i - 1);
  return (struct span) { b->lo, b->hi };
}

/* The end of the last piece. */
static inline uint64_t
buf_end (const struct buf *b)
{
  return b->base + buf_piece (b, buf_n_pieces (b) - 1).hi;
}

static inline bool
buf_overlaps (const struct buf *b, uint64_t offset, uint64_t end)
{
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span p = buf_piece (b, i);

    if (ranges_overlap (b->base + p.lo, b->base + p.hi, offset, end))
      return true;
  }
  return false;
}

static inline struct buf *
buf_of_io (struct backend_io *io)
{
  return (struct buf *) ((char *) io - offsetof (struct buf, io));
}

/* Allocates the buffers that engine.config says.  0 or ENOMEM. */
extern int buffers_init (struct engine *);
extern void buffers_destroy (struct engine *);

/* The buffers in the tree that overlap [OFFSET, END), by offset and age. */
extern struct buf *buffers_first (struct engine *, uint64_t offset,
                                  uint64_t end);
extern struct buf *buffers_next (struct buf *, uint64_t offset, uint64_t end);
/* B is each of them.  The body may remove it. */
#define BUFFERS_FOREACH(b, e, offset, end)                              \
  for (struct buf *b = buffers_first (e, offset, end), *b##_next;       \
       b && (b##_next = buffers_next (b, offset, end), true);           \
       b = b##_next)
/* Whether the tree may have such a buffer.  Needs no lock.  False: the plugin
 * has all data of the range that was acknowledged before the call, and no
 * earlier prefetch of it is left.  So a demand read or a direct operation needs
 * no lock then.  Under load it can wait longer for that than for the plugin.
 *
 * A place is an aligned piece of the device, as large as the largest buffer. No
 * buffer crosses the border of a place.  Each place has one counter of its
 * buffers in the tree.  Several places share a counter, and the answer for many
 * places is always true.  So it may be true without such a buffer.
 */
extern bool buffers_may_have (struct engine *, uint64_t offset, uint64_t end);
/* Whether one of them is in one of the STATES: buffers of this device, or of
 * any other.
 */
extern bool buffers_have (const struct device *, unsigned states,
                          uint64_t offset, uint64_t end);
extern bool buffers_others_have (const struct device *, unsigned states,
                                 uint64_t offset, uint64_t end);

/* Taking a buffer.
 *
 * Prefetches and writes have half of the usual buffers each while both want
 * more.  While prefetches have more than half, a writer without a free buffer
 * takes one from them.  Prefetches leave that many buffers free until no writer
 * has taken one from them for STREAM_IDLE_NS.  Otherwise the next write would
 * take the same buffer again, and each write would cost a read.  Both may evict
 * prefetched data whose connection has followed no stream for STREAM_IDLE_NS.
 *
 * The first two return a buffer that is TAKEN, for buffers_enter, or NULL.
 */
extern struct buf *buffers_take_for_write (struct engine *);
/* UNITS: of the prefetch.  Without a large buffer for several units, it may
 * return a usual one, for one unit.
 */
extern struct buf *buffers_take_for_ahead (struct conn *, unsigned units);
/* A large buffer for a group, or NULL.  It is TAKEN until buffers_put_group. */
extern struct buf *buffers_take_for_group (struct conn *);
extern void buffers_put_group (struct buf *);
/* How many units the connection may have prefetched.  The connections that read
 * have equal parts of the buffers, and those of a device have equal parts of
 * its limit.  The smaller part counts.  *UNITS: of a prefetch, at most.  If the
 * limit counts large operations, and there is a large buffer for each reader,
 * that is as many as a large buffer holds, otherwise 1.
 */
extern unsigned buffers_share (const struct conn *, uint32_t *units);
/* Removes prefetched data of connections that follow no stream any more. */
extern void buffers_evict_idle (struct engine *, uint64_t now_ns);
/* When the first buffer becomes idle in that sense; UINT64_MAX: none will. */
extern uint64_t buffers_idle_ns (const struct engine *);

/* Writers that wait for a buffer, or until their device has room. */

/* Whether the device has fewer dirty buffers than its limit, or than twice the
 * limit if that counts large writes.
 */
extern bool buffers_have_room (struct device *);

extern void buffers_add_writer (struct writer *);
/* The writer runs: another one may be called. */
extern void buffers_writer_runs (struct writer *);
/* The writer has a buffer, or needs none.  If another buffer is free, wakes the
 * next writer.
 */
extern void buffers_remove_writer (struct writer *);
/* Wakes one writer.  Not one for each free buffer: other requests mostly take
 * the buffers before the writers run.  A woken writer wakes the next one where
 * more buffers are free.
 */
extern void buffers_call_writer (struct engine *);
/* Wakes all: there may be no buffer to wait for any more. */
extern void buffers_wake_writers (struct engine *);

/* The life of a buffer. */

/* Puts a TAKEN buffer into the tree as READING or OPEN, for bytes [LO, HI) of
 * the unit at BASE.
 */
extern void buffers_enter (struct buf *, enum buf_state, struct conn *,
                           uint64_t base, uint32_t lo, uint32_t hi);
/* The time of an event, as a number that counts up. */
extern uint64_t buffers_next_seq (struct engine *);
/* Changes the state, and with it the queues and counts. */
extern void buffers_set_state (struct buf *, enum buf_state);
/* Takes the buffer out of the tree.  It becomes FREE, now or when its last user
 * is done.
 */
extern void buffers_remove (struct buf *);
/* Bytes [OFFSET, END) of waiting data are not to be written any more.  Removes
 * the buffer if none are left.
 */
extern void buffers_cut (struct buf *, uint64_t offset, uint64_t end);
/* Removes all prefetched data in the range, as the plugin's data has changed.
 * It may remove more.
 */
extern void buffers_drop (struct engine *, uint64_t offset, uint64_t end);
/* The same for data that other connections than this one have prefetched; their
 * streams prefetch it again.
 */
extern void buffers_drop_others (struct engine *, const struct conn *but,
                                 uint64_t offset, uint64_t end);
/* The same for data of this connection that it does not want.  In a buffer that
 * goes on behind END the part before END counts as used.
 */
extern void buffers_drop_conn (struct conn *, uint64_t offset, uint64_t end);

/* Calls buffers_evict_idle, gives back the memory of some buffers that have
 * been FREE for config.idle_ns, and sets give_back_ns.  It makes a system call
 * for each buffer, so release the lock before the next call.
 */
extern void buffers_give_back (struct engine *, uint64_t now_ns);

extern void buffers_pin (struct buf *);
extern void buffers_unpin (struct buf *);
/* An operation or a copy that used the buffer has ended: frees it if it is
 * dropped and unused.
 */
extern void buffers_put_if_unused (struct buf *);

#endif
