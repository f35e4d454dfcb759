/* Write-behind: acknowledged writes that wait in buffers, and the order in which all writes reach
 * the plugin.
 *
 * Not its job: reads (engine.h), which buffer gives way (buffers.h).
 * Functions are called without locks, but for those that say so.
 */
#ifndef ASYNCPOOL_BEHIND_H
#define ASYNCPOOL_BEHIND_H

#include "state.h"

/* Copies a write that lies within one unit into a buffer, waits for one if need be: *NOW_NS is later
 * then.  False if it may not wait: then nothing was copied, and it must go to the plugin (mutator_*).
 */
extern bool behind_write (struct conn *, const void *buf, uint32_t count, uint64_t offset,
                          uint64_t *now_ns);

/* A write, zero or trim goes straight to the plugin: between begin and end.  NEW_DATA is what stands
 * there after success, NULL for zeroes; TRIMMED if that is undefined; ERR the plugin's answer.
 */
extern void mutator_begin (struct conn *, struct mutator *, uint32_t count, uint64_t offset);
extern void mutator_end (struct conn *, struct mutator *, int err, const void *new_data,
                         bool trimmed);

/* Sends what waits in [OFFSET, END) now on its way, of all connections, and waits until none of that
 * is dirty.  Returns true if some of the connection's export is left there because it failed.
 */
extern bool behind_settle (struct conn *, uint64_t offset, uint64_t end);

/* All data that waits now, of every connection, is written, failed data of this export is tried
 * again.  0, or the errno of the plugin; then the failed data still waits.
 */
extern int behind_drain (struct conn *);
/* The plugin has flushed after a drain: if nothing has failed since, writes may wait again. */
extern void behind_flushed (struct conn *);

/* The connection ends: writes all of its data.  What fails is passed to REPORT; it is kept for the
 * next connection to a shared export, and lost otherwise.
 */
typedef void behind_report (const char *export_name, uint64_t offset, uint32_t count, bool kept);
extern void behind_close (struct conn *, behind_report *);

/* Sends buffers on their way that have not grown for a while, until the engine stops (a thread). */
extern void *behind_linger (void *engine);

#endif
