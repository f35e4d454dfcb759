/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sequential streams in the reads of one connection, and how far to prefetch
 * for each (pure: the caller serializes).
 *
 * Not its job: buffers, locks.
 *
 * Detection.  A table of STREAMS places.  A read continues a stream if it
 * begins where the stream ends, give or take SLACK bytes.  A client that keeps
 * several requests in flight sends them in order, and they arrive here out of
 * order by as many positions.  If a thread of nbdkit waits for a processor,
 * later reads overtake its read.  So if the client has slack, a read up to
 * MAX_BEHIND bytes behind the end also continues the stream.  After SLACK bytes
 * of such reads, less an eighth of what the stream advances, further ones count
 * as another pass over the bytes.  A client with one request at a time has no
 * slack, so that random reads near each other are no stream.  Any other read
 * takes the place that was unused for longest.  A second read makes it a
 * stream.
 *
 * Reads that are only near each other, as in a small file that is read at
 * random, leave most bytes between them.  So a stream whose latest reads leave
 * out more than half counts as none.  A client may spread its reads over the
 * connections of the device.  Then each stream may leave out more.
 *
 * Window: how many units all streams of the connection may be ahead of their
 * reads.  It starts at WINDOW_MIN, and doubles up to the share that the caller
 * allows.  It grows when a read had to wait.  The window doubles twice if the
 * prefetch was planned less than one plugin time before the read, or not at
 * all, and once if less than two.  If it was planned earlier, it waited for a
 * worker or a processor, and a larger window would only have more prefetches
 * wait.  With contexts, each wait doubles the window twice, as more contexts
 * open only while operations wait for one.
 *
 * A wait counts only if its prefetch was planned after the window last grew.
 * Each doubling also needs an eighth of the window to be read since then; until
 * then it stays due.  So a slow reader has a small window.  The window belongs
 * to the connection: the next file is read as fast as the last one.
 *
 * Zeroes that are known do not count for the window, and a stream goes on
 * behind them.
 *
 * Operations: a growing window first has up to OPERATIONS of them, which grow
 * up to most_units.  After that, a larger window has more of them.  A prefetch
 * waits until the window has room for a whole operation.
 *
 * Likely end: no prefetch goes beyond it, once the connection has an earlier
 * stream.  Of the earlier streams, those count that came as far as this one.
 * Seven of eight of them went at least to the likely end.  If none came as far,
 * the likely end is ahead by half of the length that the client has read.  So
 * no more than about a quarter of the prefetched bytes stay unread, whatever
 * the client skips.
 *
 * End: a stream has ended, as another one sees it, if no read continued it in
 * the second half of the other one's life.  A client that reads two files side
 * by side has two streams; one that reads them one after the other has one.
 *
 * Invariants: end only grows in the life of a stream.  ahead is a multiple of
 * the unit.  All bytes between end and ahead were handed out by stream_plan,
 * or taken over from a stream that has ended, or they are known zeroes.
 *
 * Sources: Linux's page-cache readahead (a window that doubles), ZFS's zfetch
 * (a few streams, tolerance for reordering).
 */
#ifndef ASYNCPOOL_STREAM_H
#define ASYNCPOOL_STREAM_H

#include <stdbool.h>
#include <stdint.h>

enum { STREAMS = 16, WINDOW_MIN = 4, OPERATIONS = 8 };
#define MAX_BEHIND (UINT64_C (8) << 20)
#define STREAM_IDLE_NS UINT64_C (1000000000)

struct stream {
  uint64_t start, end;          /* first byte read; furthest byte read + 1 */
  uint64_t passed;              /* bytes by which it has grown lately */
  uint64_t read;                /* bytes of its reads in that time, and of
                                 * known zeroes */
  uint64_t ahead;               /* handed out for prefetching up to here */
  uint64_t zeroes;              /* bytes between end and ahead that need no
                                 * prefetch, as they are known to be zeroes; the
                                 * caller sets it before stream_plan */
  uint64_t behind;              /* bytes of overtaken reads; for each eight that
                                 * end advances, one less */
  uint64_t began_ns, last_ns;   /* time of the first and of the last read */
  bool used;
  bool is_sequential;           /* a second read has continued it */
  bool is_first;                /* it is the connection's first read: often a
                                 * look at the format, and no stream */
};

/* How much too late the prefetches for a read were planned. */
struct stream_late {
  bool waited;
  unsigned doublings;
  uint64_t planned_ns;          /* when that prefetch was planned; if none was,
                                 * when the read came */
};

struct streams {
  struct stream s[STREAMS];
  bool has_begun;               /* there was a read */
  unsigned conns;               /* connections of the device; 0 = 1; the caller
                                 * sets it before stream_note */
  uint32_t most_units;          /* of one operation, a power of two; 0 = 1; the
                                 * caller sets it before stream_plan */
  uint32_t operations;          /* of a window, at most, until they have
                                 * most_units */
  uint64_t now_ns;              /* time of the plan; the caller sets it before
                                 * stream_plan.  No prefetch of that plan has an
                                 * earlier planned_ns */
  uint32_t window;              /* units; 0 = WINDOW_MIN */
  uint64_t answered;            /* bytes read since the window grew */
  uint64_t grown_ns;            /* when that was */
  unsigned doublings;           /* that are due */
  bool waited;                  /* a read had to, since the last plan */
  bool wants_more;              /* set by stream_plan: a read had to wait, and
                                 * the window was as large as the share */
  bool failed;                  /* a prefetch failed, and too little was read
                                 * since */
};

struct stream_range {
  uint64_t from, to;            /* bytes; empty if from == to */
};

/* A read.  Returns the stream that it continues, or NULL if there is none, or
 * only one that leaves out most bytes.  *LEFT: prefetched bytes that no read
 * will ask for, of a stream whose place was taken, or that this stream has
 * skipped.
 */
extern struct stream *stream_note (struct streams *, uint64_t offset,
                                   uint32_t count, uint64_t slack,
                                   uint64_t now_ns, struct stream_range *left);
/* Bytes [FROM, TO) are zeroes, and a read begins at TO: the stream that has
 * come as far as FROM goes on there.
 */
extern void stream_skip (struct streams *, uint64_t from, uint64_t to);
/* S needs no prefetch up to OFFSET, a multiple of the unit. */
extern void stream_skip_ahead (struct stream *s, uint64_t offset);
/* A read at READ_NS had to wait for a prefetch that was planned at PLANNED_NS.
 * PLUGIN_NS: its time in the plugin; with contexts, its time since the plan.
 */
extern void stream_waited (struct stream_late *, uint64_t planned_ns,
                           uint64_t read_ns, uint64_t plugin_ns);
/* No prefetch was planned for some bytes of a read at READ_NS. */
extern void stream_missed (struct stream_late *, uint64_t read_ns);
/* A read that continued a stream has its answer.  LATE: its waits for
 * prefetches that succeeded, and whether it was missed.
 */
extern void stream_answered (struct streams *, uint32_t count,
                             const struct stream_late *late);
/* It failed. */
extern void stream_read_failed (struct streams *);
/* The range to prefetch now for S, in a device of SIZE bytes.  The connection
 * may be SHARE units ahead with all of its streams together.  NOW_NS: when the
 * latest read came.
 */
extern struct stream_range stream_plan (struct streams *, struct stream *s,
                                        uint32_t unit, uint32_t share,
                                        uint64_t size, uint64_t now_ns);
/* How many units one operation prefetches at present: a power of two.  A range
 * of stream_plan ends at a multiple of that, unless the stream is likely to end
 * before, or has only a small share.
 */
extern uint32_t stream_operation (const struct streams *);
/* There was no buffer from OFFSET on: plan that again later. */
extern void stream_cut (struct stream *, uint64_t offset);
/* Prefetched data at OFFSET, and maybe after it, was evicted: its stream plans
 * it again.
 */
extern void stream_lost (struct streams *, uint64_t offset);
/* The prefetch of [FROM, TO) failed: ends that stream.  No plan is made before
 * WINDOW_MIN units were read in sequence without an error.
 */
extern void stream_prefetch_failed (struct streams *, uint64_t from,
                                    uint64_t to);
/* How many streams were read from within STREAM_IDLE_NS. */
extern unsigned stream_active (const struct streams *, uint64_t now_ns);
/* S finds no buffers for BYTES.  Gives up as many bytes at the far end of a
 * stream that has ended, and returns them for dropping; empty if there is none.
 * No more, because that stream may go on after all.
 */
extern struct stream_range stream_take (struct streams *,
                                        const struct stream *s, uint32_t unit,
                                        uint64_t bytes);

#endif
