/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Read-ahead: prefetches into buffers, for streams of reads.
 *
 * Not its job: which bytes to prefetch (stream.h), how reads use them (read.h).
 */
#ifndef ASYNCPOOL_READAHEAD_H
#define ASYNCPOOL_READAHEAD_H

#include <stdbool.h>
#include <stdint.h>

struct buf;
struct conn;
struct stream_late;
struct stream;

/* Before a client's read: notes the stream that the read continues, and may
 * start to prefetch for it.  Returns the stream for readahead_advance, or NULL
 * if the read continues none.  *COVERED: the read takes the stream further, and
 * all of it should have been prefetched.  Notes in *LATE a read beyond what was
 * planned.  Wants no lock.
 */
extern struct stream *readahead_note (struct conn *, uint32_t count,
                                      uint64_t offset, uint64_t now_ns,
                                      bool *covered, struct stream_late *late);
/* After that read, with its result: prefetches further.  LATE: as
 * readahead_note and read_serve left it.  NOW_NS: when it came.  Wants no lock.
 */
extern void readahead_advance (struct conn *, struct stream *,
                               uint32_t count, int err,
                               const struct stream_late *late, uint64_t now_ns);
/* The read was covered, but a buffer is missing, because a write needed it.
 * Starts to fill this hole, and others up to the end of the stream's
 * prefetches.  Wants no lock.
 */
extern void readahead_missed (struct conn *, struct stream *);
/* Waits, for a request of this connection, until the prefetch into a READING
 * buffer has completed.  The caller has pinned the buffer.  If no worker has
 * begun, does the prefetch on the calling thread.  Adds the wait to *LATE if
 * the prefetch succeeds.  NOW_NS: when the read came.  Returns 0, also if the
 * prefetch failed (buf.err); ESHUTDOWN as engine_wait_plugin.  Wants
 * engine.lock, releases it meanwhile.
 */
extern int readahead_wait (struct conn *, struct buf *, uint64_t now_ns,
                           struct stream_late *late);

#endif
