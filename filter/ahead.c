/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Read-ahead: see ahead.h.
 */
#include <errno.h>

#include "ahead.h"
#include "buffers.h"
#include "debug.h"
#include "handover.h"
#include "lock.h"

/* A READING buffer has been read. */
static void
filled_ahead (struct backend_io *io, int err)
{
  struct buf *b = buf_of_io (io);
  struct engine *e = b->engine;
  struct conn *c = b->conn;

  if (err == 0)
    stats_add (e->stats, STATS_AHEAD_BYTES, b->hi);
  else {
    /* Whoever needs the data reads it himself and learns why. */
    stats_add (e->stats, STATS_AHEAD_FAILED, 1);
    LOCK_IN_SCOPE (&c->streams_lock);
    stream_end (&c->streams, b->base, b->base + b->hi);
  }

  ENGINE_LOCK_IN_SCOPE (e);
  debug_buffers ("read ahead %#" PRIx64 ": error %d%s", b->base, err, b->dropped ? ", stale" : "");
  b->hooked = false;
  b->err = err;
  b->since_ns = io->end_ns;
  buffers_set_state (b, b->dropped ? BUF_TAKEN : BUF_CLEAN);
  if (b->pins > 0)
    cond_broadcast (&b->changed);
  /* As if it had been pinned for us: frees it if it was dropped and nobody waits. */
  buffers_pin (b);
  if (err && !b->dropped)
    buffers_remove (b);
  buffers_unpin (b);
  c->n_reading--;
  /* Last: from here on the connection may be closed. */
  if (c->n_reading == 0)
    cond_broadcast (&e->progress);
}

int
ahead_wait (struct conn *c, struct buf *b)
{
  struct engine *e = b->engine;
  int err = 0;

  if (b->state == BUF_READING && pool_cancel (e->pool, &b->job)) {
    if (b->conn == c) {
      engine_unlock (e);
      backend_io_do (&b->io);
      engine_lock (e);
    }
    else {
      /* What our connection sees is not what its own may serve: it is given up, and the caller reads. */
      pool_push (e->pool, &b->job, POOL_AHEAD);
      if (!b->dropped)
        buffers_remove (b);
    }
  }
  while (b->state == BUF_READING && err == 0)
    err = engine_wait_plugin (c, &b->changed, UINT64_MAX);
  return err;
}

/* Whether reading ahead there makes no sense: it is there, or about to be written. */
static bool
is_held (struct conn *c, uint64_t base, uint32_t count)
{
  for (struct buf *b = buffers_first (c->engine, base, base + count); b;
       b = buffers_next (b, base, base + count))
    if (b->device == c->device || buf_is_waiting (b))
      return true;
  return false;
}

/* Starts to read RANGE, unit by unit.  Returns where it had to stop. */
static uint64_t
start (struct conn *c, struct stream_range r)
{
  struct engine *e = c->engine;

  ENGINE_LOCK_IN_SCOPE (e);
  /* Who has gone drops what was read ahead once, and waits for the rest. */
  if (e->stopping || atomic_load (&c->backend.gone_ns) != 0)
    return r.from;
  for (; r.from < r.to; r.from += c->unit) {
    uint32_t count = MIN (c->unit, c->backend.size - r.from);
    struct buf *b;

    count -= count % c->device->min_block;      /* what is left at the end no client can ask for */
    if (count == 0 || is_held (c, r.from, count))
      continue;
    b = buffers_take_for_ahead (c);
    if (b == NULL)
      return r.from;
    buffers_enter (b, BUF_READING, c, r.from, 0, count);
    handover (b, false, POOL_AHEAD, filled_ahead);
  }
  return r.to;
}

/* How many units this connection may have ahead of its streams: an equal part of
 * the slab, less the reads that are in the plugin for the client itself.  So the
 * sum stays at what was configured.  (Its reads that wait for what is read ahead
 * add nothing to it.)  A client that keeps three quarters of its share in flight
 * itself is not helped any more: there is less to win than the copies and
 * wake-ups would cost it.  *LOST: see conn.lost, it is the caller's now.
 */
static uint32_t
max_ahead (struct conn *c, unsigned mine, uint64_t now_ns, uint64_t *lost)
{
  struct engine *e = c->engine;
  unsigned depth = depth_peak (&c->depth);
  unsigned surplus = depth > mine ? depth - mine : 0;
  unsigned direct = atomic_load_explicit (&c->direct_reads, memory_order_relaxed);
  unsigned share;

  ENGINE_LOCK_IN_SCOPE (e);
  c->read_ns = MAX (c->read_ns, now_ns);
  buffers_evict_idle (e, now_ns);       /* who has gone elsewhere is no reader */
  *lost = c->lost;
  c->lost = UINT64_MAX;
  share = buffers_share (c);
  if (surplus > 0 && surplus >= share - share / 4)
    return 0;
  /* One direct read per stream is what a client with one request at a time has. */
  return share - (direct > mine ? MIN (direct - mine, share) : 0);
}

static void
drop (struct conn *c, struct stream_range r)
{
  if (r.from == r.to)
    return;
  ENGINE_LOCK_IN_SCOPE (c->engine);
  buffers_drop_conn (c, r.from, r.to);
}

/* For a stream that found no buffers for BYTES. */
static bool
take_from_others (struct conn *c, struct stream *s, uint64_t bytes)
{
  struct stream_range r;

  {
    LOCK_IN_SCOPE (&c->streams_lock);
    r = stream_take (&c->streams, s, c->unit, bytes);
  }
  drop (c, r);
  return r.from < r.to;
}

void
ahead_answered (struct conn *c, struct stream *s, uint32_t count, int err,
                bool waited, uint64_t now_ns)
{
  struct stream_range plan;
  unsigned mine;
  uint32_t share;
  uint64_t stop, lost;

  {
    LOCK_IN_SCOPE (&c->streams_lock);
    if (err)
      stream_failed (&c->streams);
    else
      stream_answered (&c->streams, count, waited);
    mine = MAX (stream_active (&c->streams, now_ns), 1);
  }
  share = max_ahead (c, mine, now_ns, &lost);
  {
    LOCK_IN_SCOPE (&c->streams_lock);
    stream_lost (&c->streams, lost);
    plan = stream_plan (&c->streams, s, c->unit, share, c->backend.size, now_ns);
  }
  if (plan.from == plan.to)
    return;
  stop = start (c, plan);
  if (stop < plan.to && take_from_others (c, s, plan.to - stop))
    stop = start (c, (struct stream_range) { stop, plan.to });
  debug_streams ("stream at %#" PRIx64 "..%#" PRIx64 ": reading ahead, stopped at %#" PRIx64,
                 plan.from, plan.to, stop);
  if (stop < plan.to) {
    LOCK_IN_SCOPE (&c->streams_lock);
    stream_cut (s, stop);
  }
}

void
ahead_missed (struct conn *c, struct stream *s)
{
  struct stream_range r;

  {
    LOCK_IN_SCOPE (&c->streams_lock);
    r.from = s->end / c->unit * c->unit;
    r.to = MIN (s->ahead, c->backend.size);
  }
  if (r.from < r.to)
    start (c, r);       /* as far as there are buffers */
}

struct stream *
ahead_note (struct conn *c, uint32_t count, uint64_t offset, uint64_t now_ns, bool *covered)
{
  uint64_t slack = (uint64_t) (depth_peak (&c->depth) - 1) * 2 * count;
  struct stream_range left;
  struct stream *s;
  bool first;

  /* Advice, not worth a queue: who finds another thread here goes without. */
  if (pthread_mutex_trylock (&c->streams_lock) != 0)
    return NULL;
  s = stream_note (&c->streams, offset, count, slack, now_ns, &left);
  *covered = s && offset + count <= s->ahead && offset + count == s->end;
  first = s && s->ahead < s->end;
  pthread_mutex_unlock (&c->streams_lock);

  drop (c, left);
  /* Before a read that has to wait in the plugin, or with what has become free; any other sets buffers
   * free first.
   */
  if (s && (first || left.from < left.to))
    ahead_answered (c, s, 0, 0, first, now_ns);
  return s;
}
