/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which buffer holds what: the tree, the queues, and who may have a buffer next.
 *
 * Not its job: calls into the plugin, the order of writes (behind.h), what to read ahead (ahead.h).
 * All functions want engine.lock held, but for init and destroy.
 */
#ifndef ASYNCPOOL_BUFFERS_H
#define ASYNCPOOL_BUFFERS_H

#include "state.h"

extern int buffers_init (struct engine *);
extern void buffers_destroy (struct engine *);

/* The buffers in the tree that overlap [OFFSET, END), by place and age.  Removing the buffer at hand
 * is allowed if the next one was asked for before.
 */
extern struct buf *buffers_first (struct engine *, uint64_t offset, uint64_t end);
extern struct buf *buffers_next (struct buf *, uint64_t offset, uint64_t end);

/* Reads and writes have half of the buffers each while both want more; what was
 * read ahead and nobody has come for in STREAM_IDLE_NS gives way to both.
 */

/* A FREE buffer, taken off the queue: buffers_enter or buffers_put it.  NULL if
 * there is none.
 */
extern struct buf *buffers_take_for_write (struct engine *);
extern struct buf *buffers_take_for_ahead (struct conn *);
/* How many buffers the connection may have read ahead: an equal part for each
 * that reads.
 */
extern unsigned buffers_share (const struct conn *);
/* Removes what no one has come for in that time, and whose connection follows no
 * stream any more.
 */
extern void buffers_evict_idle (struct engine *, uint64_t now_ns);
/* When the first one is idle; UINT64_MAX: there is none. */
extern uint64_t buffers_idle_ns (const struct engine *);
extern void buffers_put (struct buf *);

/* There may be a buffer for a writer that waits: wakes one.  Not one for each buffer, as by the time they
 * run another request has mostly taken it.  Who was called calls the next, where there is more.
 */
extern void buffers_call_writer (struct engine *);

/* Puts a taken buffer into the tree: as READING or OPEN, for bytes [LO, HI) of the unit at BASE. */
extern void buffers_enter (struct buf *, enum buf_state, struct conn *, uint64_t base,
                           uint32_t lo, uint32_t hi);
/* Changes the state, and with it the queues and counts. */
extern void buffers_set_state (struct buf *, enum buf_state);
/* Takes it out of the tree; it becomes FREE, now or when its last reader is done. */
extern void buffers_remove (struct buf *);
/* Bytes [OFFSET, END) of a waiting buffer are no longer to be written.  Removes it if none are left. */
extern void buffers_cut (struct buf *, uint64_t offset, uint64_t end);
/* Removes all that was or is being read ahead there: the plugin's data there has changed. */
extern void buffers_drop (struct engine *, uint64_t offset, uint64_t end);
/* The same, but for what this connection has read ahead itself: its streams read it again. */
extern void buffers_drop_others (struct conn *, uint64_t offset, uint64_t end);
/* This connection wants nothing there of what it reads or has read ahead: removes it.  Of a buffer
 * that goes on behind END that part has been used.
 */
extern void buffers_drop_conn (struct conn *, uint64_t offset, uint64_t end);

extern void buffers_pin (struct buf *);
extern void buffers_unpin (struct buf *);
/* An operation or a copy that used it has ended: FREE if it is dropped and unused. */
extern void buffers_put_if_unused (struct buf *);

#endif
