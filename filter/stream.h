/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sequential streams in what one connection reads, and how far to read ahead
 * of each (pure: takes values, returns values).
 *
 * Detection.  A table of STREAMS places.  A read continues a stream when it
 * begins where that ends, give or take SLACK bytes: a client that keeps several
 * requests in flight sends them in order, and they arrive here out of order by
 * as many positions.  A client with one request at a time has no slack, so that
 * random reads near each other are no stream.  Any other read takes the place
 * that was longest unused.  A second read makes it a stream.
 *
 * Window: how many units the streams of this connection may be ahead of their
 * reads.  It starts at WINDOW_MIN and doubles, up to what the caller allows,
 * when a read had to wait for the plugin, and a quarter of the window has been
 * read since it was doubled last; where half of it has, twice.  So a slow reader has a small
 * window.  It is the connection's: the next file is read as fast as the last.
 *
 * Likely end: a stream reads no further ahead than seven of eight earlier
 * streams of the connection went that had come as far as it has; one that has
 * come further than all of them, half as much as it has read.  So no more than
 * about a quarter of what is read ahead is left unread, whatever the client
 * skips: of 1 MiB of data every 16 MiB nothing is read behind the end of each.
 *
 * A stream has ended when nothing was read from it in the second half of the
 * life of the one that asks: who reads two files side by side has two streams,
 * who reads one after the other has one.
 *
 * Invariants: end only grows in the life of a stream; ahead is a multiple of the
 * unit; all between end and ahead has been handed out by stream_plan, or cut.
 *
 * Not its job: buffers, locks.  The caller serializes.
 *
 * Ideas: Linux's page-cache readahead (a window that doubles), ZFS's zfetch (a
 * few streams, tolerance for reordering).
 */
#ifndef ASYNCPOOL_STREAM_H
#define ASYNCPOOL_STREAM_H

#include <stdbool.h>
#include <stdint.h>

enum { STREAMS = 16, WINDOW_MIN = 4 };
#define STREAM_IDLE_NS UINT64_C (1000000000)

struct stream {
  uint64_t start, end;          /* first byte read; furthest byte read + 1 */
  uint64_t ahead;               /* handed out for reading ahead up to here */
  uint64_t began_ns, last_ns;   /* time of the first and of the last read */
  bool used;
  bool is_sequential;           /* a second read has continued it */
};

struct streams {
  struct stream s[STREAMS];
  uint32_t window;              /* units; 0 = WINDOW_MIN */
  uint64_t answered;            /* bytes of streams since the window was doubled */
  bool waited;                  /* a read had to wait since then */
  bool failed;                  /* reading ahead failed, and too little was read since */
};

struct stream_range {
  uint64_t from, to;            /* bytes; empty if from == to */
};

/* A read.  Returns the stream that it continues, or NULL.  *LEFT is what was
 * read ahead and nobody will ask for: for another stream whose place was taken,
 * or what this one has skipped.
 */
extern struct stream *stream_note (struct streams *, uint64_t offset,
                                   uint32_t count, uint64_t slack,
                                   uint64_t now_ns, struct stream_range *left);
/* A read that continued a stream is answered.  WAITED: it had to wait for the
 * plugin.
 */
extern void stream_answered (struct streams *, uint32_t count, bool waited);
/* It failed. */
extern void stream_failed (struct streams *);
/* What to read ahead now for S, of a connection that may be SHARE units ahead
 * with all of its streams, in a device of SIZE bytes.
 */
extern struct stream_range stream_plan (struct streams *, struct stream *s,
                                        uint32_t unit, uint32_t share,
                                        uint64_t size, uint64_t now_ns);
/* There was no buffer for what begins at OFFSET: plan it again later. */
extern void stream_cut (struct stream *, uint64_t offset);
/* What was read ahead at OFFSET is gone: whose it was plans it again. */
extern void stream_lost (struct streams *, uint64_t offset);
/* Reading [FROM, TO) ahead failed: ends that stream.  Nothing is read ahead
 * before WINDOW_MIN units were read in sequence without an error.
 */
extern void stream_end (struct streams *, uint64_t from, uint64_t to);
/* How many streams were read from within STREAM_IDLE_NS. */
extern unsigned stream_active (const struct streams *, uint64_t now_ns);
/* S finds no buffers for BYTES.  Of a stream that has ended the far end is given
 * up: returns it, for dropping, empty if there is none.  So that one loses no
 * more than S has shown need for, in case that it goes on after all.
 */
extern struct stream_range stream_take (struct streams *, const struct stream *s,
                                        uint32_t unit, uint64_t bytes);

#endif
