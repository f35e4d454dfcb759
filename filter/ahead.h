/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Read-ahead: buffers that are filled before a client asks.
 *
 * Not its job: which bytes to read ahead (stream.h), how reads use them (engine.h).
 */
#ifndef ASYNCPOOL_AHEAD_H
#define ASYNCPOOL_AHEAD_H

#include "state.h"

/* A client reads [OFFSET, OFFSET + COUNT): notes the stream and begins to read ahead of it.  Called
 * without locks.  Returns what to pass to ahead_answered, or NULL if this read continues no stream.
 * COVERED: it takes the stream further, and all of it should have been read ahead.
 */
extern struct stream *ahead_note (struct conn *, uint32_t count, uint64_t offset, uint64_t now_ns,
                                  bool *covered);
/* It was covered, but a buffer is missing: it was needed for a write.  There may be more such holes
 * before it comes to the end of what was read ahead: begins to fill them.
 */
extern void ahead_missed (struct conn *, struct stream *);
/* That read has ended with ERR, and buffers may have become free: reads on ahead.
 * WAITED: it had to wait for the plugin.
 */
extern void ahead_answered (struct conn *, struct stream *, uint32_t count, int err,
                            bool waited, uint64_t now_ns);
/* Waits, for a request of this connection, until a READING buffer, which the
 * caller has pinned, is read.  Reads it on the calling thread if no worker has
 * begun.  Wants engine.lock, lets go of it meanwhile.  0, also where the plugin
 * failed to read it (buf.err); ESHUTDOWN as engine_wait_plugin.
 */
extern int ahead_wait (struct conn *, struct buf *);

#endif
