/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The order in which changes reach the plugin: deferred writes, and operations
 * that go straight to it.
 *
 * Not its job: to defer writes (writeback.h), flush and retry (flush.h).
 *
 * A direct operation is a write, zero or trim that goes straight to the plugin
 * while there may be waiting data (buffers.h).  From its registration on, every
 * write to its range is a direct operation too.  It first drains the range: it
 * waits for the older dirty data there.  Then it runs.  It waits for dirty data
 * of its own device as long as that takes, and for data of other devices no
 * longer than config.others_ns.  After that bound it may overtake a hanging
 * write of another device.  The overtaken write's bytes leave the tree, but
 * the plugin can still write them.  So its own device defers nothing until that
 * write has ended, and its next direct operation there waits for the end.
 *
 * Invariants (numbers continue those of buffers.h):
 * 4. Waiting data of two devices never overlaps.  A write over waiting data of
 *    another device is a direct operation.
 * 5. No two overlapping pieces are WRITING.  A WRITING one overlaps no older
 *    dirty data, except data that has failed before and waits.
 * 6. Newer data wins.  When the plugin has taken a write, zero or trim, those
 *    bytes leave all older FAILED buffers, of every device (supersede).
 *    Otherwise bytes leave FAILED data only when they are written or lost.  The
 *    filter logs lost data, and a flush returns its error.
 * 7. While a direct operation runs, no piece of its device's waiting data that
 *    overlaps it is WRITING.
 *
 * Functions named _locked want engine.lock; those that wait release it
 * meanwhile.  Waiting functions return 0, or ESHUTDOWN as engine_wait_plugin.
 */
#ifndef ASYNCPOOL_ORDER_H
#define ASYNCPOOL_ORDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "cond.h"

struct buf;
struct conn;
struct device;
struct engine;

struct order {
  /* Under engine.lock. */
  GQueue directs;               /* registered direct operations */
  unsigned waiters;             /* for progress */
  struct cond progress;         /* dirty data was written or failed; a direct
                                 * operation, a call, or the last prefetch of a
                                 * connection ended */
  /* Atomic. */
  atomic_uint unregistered;     /* direct operations under way that are not in
                                 * directs, as no connection defers writes */
};

struct direct {
  const struct device *device;  /* constant, as is the range */
  uint64_t offset, end;
  bool running;                 /* under engine.lock */
  GList link;                   /* in order.directs */
};

/* Around a direct operation.  If begin fails there is no operation and no end.
 * ERR: the plugin's answer.
 */
extern int direct_begin (struct conn *, struct direct *, uint32_t count,
                         uint64_t offset);
extern void direct_end (struct conn *, struct direct *, int err);
/* Whether a direct operation is registered in the range, or may be. */
extern bool direct_overlaps_locked (struct engine *, uint64_t offset,
                                    uint64_t end);

/* Dispatches the dirty data in the range and waits until none of it is dirty.
 * Waits for data of other devices no longer than config.others_ns.
 */
extern int order_drain_locked (struct conn *, uint64_t offset, uint64_t end);

/* Which dirty data there is. */
enum { DIRTY_OWN = 1, DIRTY_OTHERS = 2 };
/* Waits while DIRTY finds data of the connection's own device.  It waits for
 * data of other devices until *UNTIL_NS at most (0: others_ns from now), and
 * then logs that.
 */
extern int order_wait_locked (struct conn *,
                              unsigned (*dirty) (struct conn *, const void *),
                              const void *what, uint64_t offset, uint64_t end,
                              uint64_t *until_ns);
/* Waits until some dirty data is written or fails, or a direct operation ends.
 * Also ETIMEDOUT.
 */
extern int order_wait_progress_locked (struct conn *, uint64_t until_ns);

/* The limit.  A READY buffer is dispatched only while fewer writes of its
 * device are in flight than write_limit allows.  When a write ends, the oldest
 * READY buffers are dispatched, up to the limit.  These do not wait for it: a
 * drain of a range, the end of a connection, a flush that tries failed data
 * again.
 *
 * Groups.  If the limit counts large operations, one operation writes adjacent
 * full READY buffers: a group.  Their data is copied into a large buffer.  Each
 * of the group's buffers stays WRITING until the operation ends.  If it fails,
 * each of them becomes FAILED, and is written alone from then on.
 */

/* An OPEN buffer grows no more: makes it READY, and dispatches it as soon as
 * possible.
 */
extern void order_submit_locked (struct buf *);
/* The same for the OPEN buffers in a range, except BUT. */
extern void order_submit_range_locked (struct engine *, const struct buf *but,
                                       uint64_t offset, uint64_t end);
/* Whether a READY or FAILED buffer's first piece may be dispatched: the buffer
 * has no fillers, and nothing that must come first overlaps the piece.  That is
 * older dirty data, a WRITING buffer or a running direct operation.
 */
extern bool order_can_dispatch_locked (const struct buf *);
/* Something has changed in a range: dispatches the READY buffers there that may
 * be dispatched now.
 */
extern void order_dispatch_locked (struct engine *, uint64_t offset,
                                   uint64_t end);
/* Makes a buffer WRITING and dispatches it, alone or in a group. */
extern void order_write_locked (struct buf *);
/* The write of bytes [OFFSET, END) of a WRITING buffer has completed. */
extern void order_written_locked (struct buf *, uint64_t offset, uint64_t end,
                                  int err);
/* The buffer is FAILED, with buf.err. */
extern void order_fail_locked (struct buf *);
/* Does one queued write of the connection's device in the range on this thread,
 * as all workers may hang in another device.  Releases the lock meanwhile.
 * False: there is none.
 */
extern bool order_do_queued_locked (struct conn *, uint64_t offset,
                                    uint64_t end);

#endif
