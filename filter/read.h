/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Serving one read: from the buffers that hold a part of it, and from the
 * plugin for the rest; or with zeroes, where these are known (extents.h).
 *
 * Not its job: to prefetch (readahead.h).
 */
#ifndef ASYNCPOOL_READ_H
#define ASYNCPOOL_READ_H

#include <stdint.h>

struct conn;
struct stream_late;
struct stream;

/* COVERED: the stream whose prefetches should hold all of it, or NULL.  Adds
 * to *LATE each prefetch that it had to wait for and that succeeded.  Wants no
 * lock.  Returns 0 or a positive errno.
 */
extern int read_serve (struct conn *, struct stream *covered, void *buf,
                       uint32_t count, uint64_t offset, uint64_t now_ns,
                       struct stream_late *late);

#endif
