/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Read-ahead: see readahead.h.
 */
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "debug.h"
#include "dispatch.h"
#include "lock.h"
#include "readahead.h"

/* Completion. */

/* A prefetch has completed.  After an error, a request that needs its data
 * reads from the plugin itself, and gets the plugin's error.
 */
static void
prefetched (struct backend_io *io, int err)
{
  struct buf *b = buf_of_io (io);
  struct engine *e = b->engine;
  struct conn *c = b->conn;

  if (err == 0)
    stats_add (e->stats, STATS_AHEAD_BYTES, b->hi);
  else {
    stats_add (e->stats, STATS_AHEAD_FAILED, 1);
    LOCK_IN_SCOPE (&c->streams_lock);
    stream_prefetch_failed (&c->streams, b->base, b->base + b->hi);
  }

  ENGINE_LOCK_THEN_DISPATCH (e);
  debug_buffers ("prefetched %#" PRIx64 ": %s%s", b->base,
                 err ? strerror (err) : "ok", b->dropped ? ", stale" : "");
  b->hooked = false;
  b->err = err;
  b->since_ns = io->end_ns;
  if (err == 0 && b->dropped) {
    stats_add (e->stats, STATS_AHEAD_WASTED, b->hi);
    stats_add (e->stats, STATS_AHEAD_UNREAD, 1);
  }
  buffers_set_state (b, b->dropped ? BUF_TAKEN : BUF_CLEAN);
  if (b->pins > 0)
    cond_broadcast (&b->changed);
  /* A pin for the time of this function: it is freed below if it is dropped. */
  buffers_pin (b);
  if (err && !b->dropped)
    buffers_remove (b);
  buffers_unpin (b);
  /* Last: from here on the connection may be freed. */
  if (--c->n_reading == 0)
    cond_broadcast (&e->order.progress);
}

int
readahead_wait (struct conn *c, struct buf *b, uint64_t now_ns,
                struct stream_late *late)
{
  struct engine *e = b->engine;
  uint64_t planned_ns = b->since_ns;
  int err = 0;

  if (pool_cancel (b->conn->pool, &b->job)) {
    if (b->conn == c) {
      engine_unlock_and_dispatch (e);
      backend_io_do (&b->io);
      engine_lock (e);
    }
    else {
      /* The plugin may ask on this thread which client it serves, so the thread
       * does no operation of another connection.  The prefetch is given up, and
       * the caller reads for itself.
       */
      pool_push (b->conn->pool, &b->job, POOL_AHEAD);
      if (!b->dropped)
        buffers_remove (b);
    }
  }
  while (b->state == BUF_READING && err == 0)
    err = engine_wait_plugin (c, &b->changed, UINT64_MAX);
  /* With contexts, the time since the plan: more contexts open only while
   * operations wait for one.
   */
  if (err == 0 && b->err == 0)
    stream_waited (late, planned_ns, now_ns, b->io.end_ns
                   - (c->backend.contexts ? planned_ns : b->io.start_ns));
  return err;
}

/* Starting prefetches. */

/* Whether a prefetch there is of no use: the device's data is in a buffer, or
 * the plugin's data is about to change, or another context may show old data.
 */
static bool
is_held (struct conn *c, uint64_t offset, uint64_t end)
{
  const struct device *d = c->device;

  return buffers_have (d, BUF_ANY, offset, end)
    || buffers_others_have (d, BUF_WAITING, offset, end)
    || (c->backend.contexts && device_hides_own (c, offset, end));
}

/* Of the units from OFFSET on, those that are known to be zeroes. */
static uint64_t
n_zeroes (struct conn *c, uint64_t offset)
{
  uint64_t end = extents_zeroes_end (c, offset);

  return (end - offset + (end == c->backend.size ? c->unit - 1 : 0)) / c->unit;
}

/* The end of the unit at FROM, or FROM if the unit needs no prefetch.  No
 * client can ask for bytes behind the device's last whole block.
 */
static uint64_t
unit_end (struct conn *c, uint64_t from)
{
  uint32_t count = MIN (c->unit, c->backend.size - from);
  uint64_t end = from + count - count % c->device->min_block;

  return end > from && n_zeroes (c, from) == 0 && !is_held (c, from, end)
    ? end : from;
}

/* The end of an operation from FROM on, or FROM if the first unit needs none.
 * An operation has BYTES at most, and does not cross a multiple of BYTES.
 */
static uint64_t
operation_end (struct conn *c, uint64_t from, uint64_t to, uint32_t bytes)
{
  uint64_t end = from, next = unit_end (c, from);

  to = MIN (to, from / bytes * bytes + bytes);
  while (end < next) {
    end = next;
    next = end < to ? unit_end (c, end) : end;
  }
  return end;
}

/* Starts to prefetch the range in operations of BYTES.  Returns where it had to
 * stop.
 */
static uint64_t
start (struct conn *c, struct stream_range r, uint32_t bytes)
{
  struct engine *e = c->engine;
  uint64_t end, now_ns = clock_ns ();

  ENGINE_LOCK_THEN_DISPATCH (e);
  /* The end of a connection drops its prefetches once, and waits for the rest.
   */
  if (e->stopping || atomic_load (&c->backend.gone_ns) != 0)
    return r.from;
  for (; r.from < r.to; r.from = MAX (end, r.from + c->unit)) {
    struct buf *b;
    unsigned units;

    end = operation_end (c, r.from, r.to, bytes);
    if (end == r.from) {
      end += n_zeroes (c, r.from) * c->unit;
      continue;
    }
    units = (end - r.from + c->unit - 1) / c->unit;
    b = buffers_take_for_ahead (c, units);
    if (b == NULL)
      return r.from;
    if (units > 1 && !b->is_large)
      end = unit_end (c, r.from);
    buffers_enter (b, BUF_READING, c, r.from, 0, end - r.from);
    b->since_ns = now_ns;
    dispatch_buf (b, false, POOL_AHEAD, prefetched);
  }
  return r.to;
}

/* How many units this connection may be ahead of its streams: an equal part of
 * the buffers, less its demand reads in the plugin, a unit for each.  So the
 * sum stays at the number of buffers.  A client that keeps three quarters of
 * its share in flight gets no prefetches.  Their copies and wake-ups would cost
 * more than it gains.  Large prefetches are better than its own reads, whatever
 * it has in flight.  MINE: its active streams.  *UNITS: as buffers_share.
 * *EVICTED_AT: takes conn.evicted_at.
 */
static unsigned
max_ahead (struct conn *c, unsigned mine, uint64_t now_ns, uint32_t *units,
           uint64_t *evicted_at)
{
  struct engine *e = c->engine;
  unsigned depth = depth_peak (&c->depth);
  unsigned surplus = depth > mine ? depth - mine : 0;
  unsigned direct = atomic_load_explicit (&c->direct_reads,
                                          memory_order_relaxed);
  unsigned share;

  ENGINE_LOCK_THEN_DISPATCH (e);
  c->read_ns = MAX (c->read_ns, now_ns);
  buffers_evict_idle (e, now_ns);
  *evicted_at = c->evicted_at;
  c->evicted_at = UINT64_MAX;
  share = buffers_share (c, units);
  if (*units > 1)
    return share;
  if (surplus > 0 && surplus >= share - share / 4) {
    limit_hit (&c->device->read_limit);
    return 0;
  }
  /* A client with one request at a time has one demand read per stream. */
  return share - (direct > mine ? MIN (direct - mine, share) : 0);
}

static void
drop (struct conn *c, struct stream_range r)
{
  if (r.from == r.to)
    return;
  ENGINE_LOCK_THEN_DISPATCH (c->engine);
  buffers_drop_conn (c, r.from, r.to);
}

/* For a stream that found no buffers for BYTES: frees some of a stream that has
 * ended.  False: there are none.
 */
static bool
take_from_ended (struct conn *c, struct stream *s, uint64_t bytes)
{
  struct stream_range r;

  {
    LOCK_IN_SCOPE (&c->streams_lock);
    r = stream_take (&c->streams, s, c->unit, bytes);
  }
  drop (c, r);
  return r.from < r.to;
}

/* Zeroes are not prefetched, so they do not count for the window: the plan
 * begins behind them.  *BYTES: the size of its operations.
 */
static struct stream_range
plan (struct conn *c, struct stream *s, unsigned share, uint32_t units,
      uint64_t evicted_at, uint64_t now_ns, uint32_t *bytes)
{
  struct stream_range r;
  uint64_t ahead;

  LOCK_IN_SCOPE (&c->streams_lock);
  stream_lost (&c->streams, evicted_at);
  if (s->is_sequential) {
    ahead = MAX (s->ahead, s->end / c->unit * c->unit);
    stream_skip_ahead (s, ahead + n_zeroes (c, ahead) * c->unit);
    s->zeroes = extents_zeroes (c, s->end, s->ahead);
  }
  c->streams.most_units = units;
  c->streams.now_ns = clock_ns ();
  r = stream_plan (&c->streams, s, c->unit, share, c->backend.size, now_ns);
  *bytes = stream_operation (&c->streams) * c->unit;
  if (c->streams.wants_more)
    limit_hit (&c->device->read_limit);
  return r;
}

void
readahead_advance (struct conn *c, struct stream *s, uint32_t count, int err,
                   const struct stream_late *late, uint64_t now_ns)
{
  struct stream_range r;
  unsigned mine, share;
  uint32_t bytes, units;
  uint64_t stop, evicted_at;

  {
    LOCK_IN_SCOPE (&c->streams_lock);
    if (err)
      stream_read_failed (&c->streams);
    else
      stream_answered (&c->streams, count, late);
    mine = MAX (stream_active (&c->streams, now_ns), 1);
  }
  share = max_ahead (c, mine, now_ns, &units, &evicted_at);
  do {
    r = plan (c, s, share, units, evicted_at, now_ns, &bytes);
    evicted_at = UINT64_MAX;
    if (r.from == r.to)
      return;
    stop = start (c, r, bytes);
    if (stop < r.to && take_from_ended (c, s, r.to - stop))
      stop = start (c, (struct stream_range) { stop, r.to }, bytes);
    debug_streams ("stream at %#" PRIx64 "..%#" PRIx64
                   ": prefetching, stopped at %#" PRIx64, r.from, r.to, stop);
    /* Zeroes follow: on behind them. */
  } while (stop == r.to && n_zeroes (c, stop) > 0);
  if (stop < r.to) {
    LOCK_IN_SCOPE (&c->streams_lock);
    stream_cut (s, stop);
  }
}

void
readahead_missed (struct conn *c, struct stream *s)
{
  struct stream_range r;
  uint32_t bytes;

  {
    LOCK_IN_SCOPE (&c->streams_lock);
    r.from = s->end / c->unit * c->unit;
    r.to = MIN (s->ahead, c->backend.size);
    bytes = stream_operation (&c->streams) * c->unit;
  }
  if (r.from < r.to)
    start (c, r, bytes);        /* as far as there are buffers */
}

struct stream *
readahead_note (struct conn *c, uint32_t count, uint64_t offset,
                uint64_t now_ns, bool *covered, struct stream_late *late)
{
  uint64_t slack = (uint64_t) (depth_peak (&c->depth) - 1) * 2 * count;
  struct stream_range left;
  struct stream *s;

  /* Advice, not worth a wait for another thread of this connection. */
  if (!lock_try_take (&c->streams_lock))
    return NULL;
  c->streams.conns = atomic_load (&c->device->conns);
  /* A client that knows the zeroes does not read them. */
  stream_skip (&c->streams, extents_zeroes_begin (c, offset), offset);
  s = stream_note (&c->streams, offset, count, slack, now_ns, &left);
  *covered = s && offset + count <= s->ahead && offset + count == s->end;
  if (s && s->ahead < offset + count)
    stream_missed (late, now_ns);
  lock_drop (&c->streams_lock);

  drop (c, left);
  /* Now, if the read is going to wait in the plugin, or if buffers became free.
   * Any other read frees buffers first (readahead_advance).
   */
  if (s && (late->doublings > 0 || left.from < left.to))
    readahead_advance (c, s, 0, 0, late, now_ns);
  return s;
}
