/* Sequential streams in what one connection reads (pure: takes values, returns values).
 *
 * A table of STREAMS places.  Each read either continues a stream or takes the place that was
 * longest unused.  A read continues a stream when it begins where the stream ends, give or take
 * SLACK bytes: a client that keeps several requests in flight sends them in order, and they arrive
 * here out of order by as many positions as there are requests in flight; a client with one request
 * at a time has no slack, so that random reads near each other are no stream.
 *
 * window: how far ahead of the stream to read, in units.  It starts at WINDOW_MIN when a second read
 * continues the first.  It doubles, up to what the caller allows, when a read had to wait although
 * it was in the window, and a quarter of the window has been read and answered.  So a slow reader has
 * a small window, and a client that sends many requests at once shows how many before it is taken
 * for one that waits for us.  It ends with the stream (stream_end, or its place taken), and starts
 * small again.
 *
 * jump: a read that continues no stream may begin in what was read ahead for one that has a window, or
 * as far behind that (ext4 leaves out 8 MiB at a superblock's copy), the nearest if there are several.
 * That changes nothing yet: it may be a random read, or a look ahead, and takes a place as any other
 * does.  When a second read continues it, and the stream has stayed where it was, then the stream has
 * jumped: it goes on there with its window, and what it skipped is left, but for SLACK bytes.  answered
 * begins again: a window grows by nothing but what was read in sequence since the last jump.  So single
 * reads, however many, neither take a window nor end one.
 *
 * began_ns: whether one stream was read from since another began tells whether they are read side by
 * side or one after the other.  A client with several requests in flight sends the last ones of a stream
 * and the first ones of the next together, and they come in any order; so a stream that has become twice
 * as long counts as begun when it had half of that.
 *
 * Invariants: end only grows in the life of a stream, answered too but for jumps, the window too
 * while the caller allows no less; ahead is a multiple of the unit; all that the stream wants below
 * it has been handed out by stream_plan.
 *
 * Not its job: buffers, locks.  The caller serializes.
 */
#ifndef ASYNCPOOL_STREAM_H
#define ASYNCPOOL_STREAM_H

#include <stdbool.h>
#include <stdint.h>

enum { STREAMS = 16, WINDOW_MIN = 4 };
#define STREAM_IDLE_NS UINT64_C (1000000000)

struct stream {
  uint64_t start;               /* first byte read since the last jump */
  uint64_t end;                 /* furthest byte read + 1 */
  uint64_t answered;            /* bytes read in sequence and answered */
  uint64_t ahead;               /* handed out for reading ahead up to here */
  uint64_t began_ns, last_ns;   /* time when it was at most half as long as now, and of the last read */
  uint64_t half, half_ns;       /* where began_ns moves to when it is twice as long as there */
  uint32_t window;              /* units; 0 = not sequential yet */
  bool waited;                  /* a read had to wait since the window was doubled */
  bool cut;                     /* it lacked buffers when it was last planned */
  uint64_t jumped;              /* end of the stream in whose window it began; 0 = in none */
  bool left;                    /* another has its window, see stream_succeed */
  bool stays;                   /* it was left and went on: not to be left again */
  bool used;
};

struct streams {
  struct stream s[STREAMS];
};

struct stream_range {
  uint64_t from, to;            /* bytes; empty if from == to */
};

/* A read.  Returns the stream that it continues, or NULL.  *LEFT is what was read ahead and nobody
 * will ask for: for another stream whose place was taken, or what this one has skipped.
 */
extern struct stream *stream_note (struct streams *, uint64_t offset, uint32_t count,
                                   uint64_t slack, uint64_t now_ns, struct stream_range *left);
/* A read that continued this stream is answered; WAITED: it had to wait for the plugin. */
extern void stream_answered (struct stream *, uint32_t count, bool waited);
/* What to read ahead now, with a window of at most MAX_WINDOW units in a device of SIZE bytes. */
extern struct stream_range stream_plan (struct stream *, uint32_t unit, uint32_t max_window,
                                        uint64_t size);
/* There was no buffer for what begins at OFFSET: plan it again later. */
extern void stream_cut (struct stream *, uint64_t offset);
/* What was read ahead at OFFSET is gone: whose it was plans it again. */
extern void stream_lost (struct streams *, uint64_t offset);
/* Of those that lack buffers the one that was last read from, or NULL; not one from which nothing was
 * read since the latest began.
 */
extern struct stream *stream_hungry (struct streams *);
/* Reading [FROM, TO) ahead failed: ends that stream. */
extern void stream_end (struct streams *, uint64_t from, uint64_t to);
/* How many streams with a window were read from within STREAM_IDLE_NS. */
extern unsigned stream_active (const struct streams *, uint64_t now_ns);
/* How many of the connection's SHARE of buffers are for this stream: what the others leave, of which
 * each takes its window, but no more than an equal part.  A few reads in sequence, of a directory or a
 * superblock, are a stream, too, for a second; a large one need not do with half for that.  Others are
 * those that have been read from since this one began: who reads one file after another has one.
 */
extern uint32_t stream_part (const struct streams *, const struct stream *, uint32_t share,
                             uint64_t now_ns);
/* Whether this stream follows another (a file's next piece, or the next file): nothing was read from
 * that one since this began, and this is WINDOW_MIN units long.  Then that one is left, and this one has
 * its window, as far as that was earned by reading as many units.  Returns what was read ahead there, for
 * dropping, empty if there is none; where this one began within it, it has what lies behind its start.
 * It can be wrong once for each stream: who reads in turn here and there shows it by coming back.
 */
extern struct stream_range stream_succeed (struct streams *, struct stream *, uint32_t unit);
/* This stream finds no buffers for BYTES.  Of a stream that was not read from since
 * this one began the far end is given up: returns it, for dropping, empty if there is none.  So that one
 * loses no more than the new one has shown need for, in case that it goes on after all.
 */
extern struct stream_range stream_take (struct streams *, const struct stream *, uint32_t unit,
                                        uint64_t bytes);

/* How many streams there are on all connections: who shares the slab.  Each connection is counted when
 * it reads, in epochs of STREAM_IDLE_NS; the larger of this epoch's count and the last one's holds.
 */
struct stream_count {
  unsigned last, now;           /* streams read from in the last epoch and in this one */
};

struct stream_census {
  uint64_t epoch;
  struct stream_count all;
};

struct stream_counted {         /* what one connection has contributed */
  uint64_t epoch;
  struct stream_count own;
};

/* This connection has MINE (at least 1): returns its share of BUFFERS.  NOW_NS may lie before that of an
 * earlier call.
 */
extern unsigned stream_census (struct stream_census *, struct stream_counted *, unsigned mine,
                               unsigned buffers, uint64_t now_ns);

#endif
