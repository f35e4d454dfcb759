/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Flush, failed data, and the end of a connection.
 *
 * Not its job: the order of writes (order.h), the plugin's own flush (conn.c).
 *
 * Functions want no lock, and return 0 or a positive errno; ESHUTDOWN as
 * engine_wait_plugin.
 */
#ifndef ASYNCPOOL_FLUSH_H
#define ASYNCPOOL_FLUSH_H

#include <stdbool.h>
#include <stdint.h>

struct conn;

/* flush_begin has all dirty data of this export name written, and tries this
 * device's failed data again.  If it fails, it has kept the data that another
 * try may write, and all data whose error no earlier flush has returned.
 * Otherwise the caller flushes the plugin, if that can flush.
 */
extern int flush_begin (struct conn *);
/* After that, with the result so far.  Returns the errno for the client. */
extern int flush_end (struct conn *, int err);

/* A write that has deferred the bytes of the range is about to be answered.  If
 * they have failed, a flush may have returned the error already.  That was
 * before the answer, so it does not count: another flush returns the error
 * before one may drop the data.
 */
extern void flush_note_answer (struct conn *, uint64_t offset, uint64_t end);

/* The connection ends: writes all of its data, and tries failed data again.
 * Data that fails once more is kept where another connection has the device.
 * Otherwise it is dropped, and the next flush of the export name returns the
 * error if none has yet.  config.log_unwritten is called in both cases.  Takes
 * the connection off its device.
 */
extern void flush_close (struct conn *);

#endif
