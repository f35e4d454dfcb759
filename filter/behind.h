/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Write-back: acknowledged writes that wait in buffers, and the order in which all writes reach
 * the plugin.
 *
 * Not its job: reads (engine.h), which buffer gives way (buffers.h).
 * Functions are called without locks, but for those that say so.  They return 0 or a positive errno;
 * ESHUTDOWN where engine_wait_plugin says so.
 */
#ifndef ASYNCPOOL_BEHIND_H
#define ASYNCPOOL_BEHIND_H

#include "state.h"

/* Copies a write that lies within one unit into a buffer; waits for one if need
 * be, and *NOW_NS is later then.  EAGAIN if the write cannot be deferred: then
 * nothing was copied, and it must be a direct write (mutator_*).
 */
extern int behind_write (struct conn *, const void *buf, uint32_t count, uint64_t offset,
                         uint64_t *now_ns);

/* A write, zero or trim goes straight to the plugin: between begin and end.  If begin fails there is no
 * operation and no end.  ERR: the plugin's answer.
 */
extern int mutator_begin (struct conn *, struct mutator *, uint32_t count, uint64_t offset);
extern void mutator_end (struct conn *, struct mutator *, int err);

/* Dispatches the dirty data of [OFFSET, END) and waits until none of it is
 * dirty; for that of other devices no longer than config.others_ns.
 */
extern int behind_settle (struct conn *, uint64_t offset, uint64_t end);
/* Whether data of the connection's device is left there because it failed. */
extern bool behind_has_failed (struct conn *, uint64_t offset, uint64_t end);

/* Between the two the caller flushes the plugin, if it can flush.  begin has
 * all dirty data of this export name written, and tries this device's failed
 * data again.  If it fails, data that another try may write still waits, and
 * the caller does not flush the plugin.  end: ERR is the flush's result so far;
 * returns the errno for the client.
 */
extern int behind_flush_begin (struct conn *);
extern int behind_flush_end (struct conn *, int err);

/* The connection ends: writes all of its data, and tries failed data again on
 * this thread.  Data that fails once more is kept where another connection has
 * the device.  Otherwise it is dropped, and the next flush of the export name
 * returns the error if none has yet.  config.report is called in both cases.
 * Takes the connection off its device.
 */
extern void behind_close (struct conn *);

/* Sends buffers on their way that have not grown for a while, until the engine stops (a thread). */
extern void *behind_linger (void *engine);

#endif
