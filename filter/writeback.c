/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Deferred writes until they are submitted: see writeback.h.
 */
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "dispatch.h"
#include "writeback.h"

/* With many writers, a look at all of them would take longer than it gains. */
enum { JOINERS = 64 };

/* The thread. */

void
writeback_init (struct engine *e)
{
  e->writeback.queued_since_ns = UINT64_MAX;
}

static struct buf *
oldest_open (const struct engine *e)
{
  GList *l = e->buffers.open.head;

  return l ? l->data : NULL;
}

/* When the oldest OPEN buffer has waited for more data for linger_ns, or a
 * queued write for a worker.  UINT64_MAX: never.
 */
static uint64_t
next_due_ns (const struct engine *e)
{
  const struct buf *open = oldest_open (e);
  uint64_t since = MIN (open ? open->since_ns : UINT64_MAX,
                        e->writeback.queued_since_ns);

  return since == UINT64_MAX ? since : since + e->config.linger_ns;
}

static void
do_due (struct engine *e, uint64_t now_ns)
{
  struct buf *open = oldest_open (e);

  if (open && open->since_ns + e->config.linger_ns <= now_ns)
    order_submit_locked (open);
  e->writeback.queued_since_ns = UINT64_MAX;
  pool_wake_idle (e->pool);
}

static void *
run (void *vp)
{
  struct engine *e = vp;
  struct writeback *w = &e->writeback;

  ENGINE_LOCK_THEN_DISPATCH (e);
  while (!e->stopping) {
    uint64_t due_ns = next_due_ns (e), now_ns = clock_ns ();

    if (now_ns >= e->contexts_check_ns)
      contexts_close_idle (e, now_ns);
    if (now_ns >= due_ns) {
      do_due (e, now_ns);
      continue;
    }
    if (now_ns >= e->buffers.give_back_ns) {
      buffers_give_back (e, now_ns);
      engine_unlock_and_dispatch (e);   /* others may run in between */
      engine_lock (e);
      continue;
    }
    w->is_idle = due_ns == UINT64_MAX;
    engine_wait_until (e, &w->wake, MIN (due_ns, MIN (e->contexts_check_ns,
                                         e->buffers.give_back_ns)));
    w->is_idle = false;
  }
  return NULL;
}

int
writeback_start (struct engine *e)
{
  return pthread_create (&e->writeback.thread, NULL, run, e);
}

void
writeback_join (struct engine *e)
{
  pthread_join (e->writeback.thread, NULL);
}

void
writeback_wake (struct engine *e)
{
  cond_signal (&e->writeback.wake);
}

static void
wake_thread (struct engine *e)
{
  if (e->writeback.is_idle)
    cond_signal (&e->writeback.wake);
}

void
writeback_note_queued (struct engine *e)
{
  if (e->writeback.queued_since_ns != UINT64_MAX)
    return;
  e->writeback.queued_since_ns = clock_ns ();
  wake_thread (e);
}

/* Holding a write. */

/* Whether the write can join a buffer of its connection: an OPEN one that it
 * touches, or a READY one that it only overwrites.  Bytes that a read copies
 * out, or another write copies in, must not change meanwhile.
 */
static bool
can_join (const struct writer *w, const struct buf *b)
{
  if (b->conn != w->conn || b->base != w->base
      || (buf_overlaps (b, w->offset, w->end) && b->pins + b->fillers > 0))
    return false;
  if (b->state == BUF_OPEN)
    return buf_start (b) <= w->end && w->offset <= buf_first_end (b);
  return b->state == BUF_READY && !b->claimed
    && buf_start (b) <= w->offset && w->end <= buf_first_end (b);
}

/* The buffer to join.  No younger waiting data may overlap the write. */
static struct buf *
find_join (const struct writer *w)
{
  struct engine *e = w->conn->engine;
  uint64_t unit_end = w->base + w->conn->unit, youngest = 0;
  struct buf *found = NULL;

  BUFFERS_FOREACH (b, e, w->base, unit_end) {
    if (buf_is_waiting (b) && buf_overlaps (b, w->offset, w->end))
      youngest = MAX (youngest, b->seq);
    if (can_join (w, b))
      found = b;
  }
  return found && found->seq >= youngest ? found : NULL;
}

static bool
is_deferrable (const struct writer *w)
{
  struct device *d = w->conn->device;

  return !atomic_load (&d->failing) && d->n_overtaken == 0
    && !direct_overlaps_locked (w->conn->engine, w->offset, w->end)
    && !buffers_others_have (d, BUF_WAITING, w->offset, w->end);
}

/* Whether each of the UNITS before the write is full of dirty data of its
 * connection.  A copy into the last one may be under way.
 */
static bool
follows_own (const struct writer *w, unsigned units)
{
  struct conn *c = w->conn;
  uint64_t bytes = (uint64_t) units * c->unit, next = w->base - bytes;

  if (w->base < bytes)
    return false;
  BUFFERS_FOREACH (b, c->engine, next, w->base)
    if (b->base == next && b->conn == c && buf_is_dirty (b)
        && (b->hi - b->lo == c->unit || next + c->unit == w->base))
      next += c->unit;
  return next == w->base;
}

/* Finds or takes the buffer for a write that may be deferred, widens its range
 * for the write, and counts the write as a filler.  NULL if there is none.
 */
static struct buf *
reserve (const struct writer *w, uint64_t now_ns)
{
  struct conn *c = w->conn;
  struct engine *e = c->engine;
  struct device *d = c->device;
  struct limit *limit = &d->write_limit;
  uint32_t lo = w->offset - w->base, hi = w->end - w->base;
  struct buf *b = find_join (w);

  if (b)
    stats_add (e->stats, STATS_COALESCED, 1);
  else {
    bool is_hit = d->n_dirty >= limit_in_usual (limit);

    if (limit_is_new (limit))   /* there is no test: it must be sure */
      limit_has_large (limit, follows_own (w, c->large_units));
    else if (is_hit)
      limit_has_large (limit, follows_own (w, 1));
    if (is_hit)
      limit_hit (limit);
    if (!buffers_have_room (d) || (b = buffers_take_for_write (e)) == NULL)
      return NULL;
  }
  /* Older data that it overlaps must not wait for more. */
  order_submit_range_locked (e, b, w->offset, w->end);
  if (b->state == BUF_TAKEN) {
    buffers_enter (b, BUF_OPEN, c, w->base, lo, hi);
    b->since_ns = now_ns;
    b->awaited = NULL;
  }
  b->lo = MIN (b->lo, lo);
  b->hi = MAX (b->hi, hi);
  b->fillers++;
  buffers_drop (e, w->offset, w->end);
  return b;
}

/* Wakes a writer that can join the OPEN buffer.  Looks at the first ones only:
 * they wait for the longest.
 */
static void
call_joiner (struct buf *b)
{
  unsigned n = 0;

  QUEUE_FOREACH (struct writer, w, &b->engine->buffers.writers, link) {
    if (w->called_to == NULL && can_join (w, b) && find_join (w) == b) {
      w->called_to = b;
      b->awaited = w;
      cond_signal (&w->woken);
      return;
    }
    if (++n == JOINERS)
      return;
  }
}

/* The writer has joined the buffer that it was called to, or does not join it.
 */
static void
end_call (struct writer *w, const struct buf *joined)
{
  struct buf *b = w->called_to;

  w->called_to = NULL;
  if (b == NULL || b->awaited != w)
    return;
  b->awaited = NULL;
  if (b != joined && b->state == BUF_OPEN)
    order_submit_locked (b);
}

/* A copy into the buffer has ended. */
static void
filled (struct buf *b)
{
  struct engine *e = b->engine;

  if (--b->fillers > 0)
    return;
  cond_broadcast (&b->changed);
  if (b->dropped) {
    buffers_put_if_unused (b);
    return;
  }
  if (b->state != BUF_OPEN) {
    order_dispatch_locked (e, buf_start (b), buf_end (b));
    return;
  }
  if (b->hi == b->conn->unit || buf_first_end (b) == b->conn->backend.size)
    order_submit_locked (b);
  else if (e->buffers.writers.length > 0
           && (e->buffers.free[false].queue.length == 0
               || !buffers_have_room (b->device))) {
    if (b->awaited == NULL)
      call_joiner (b);
    if (b->awaited == NULL)
      order_submit_locked (b);
  }
  if (oldest_open (e))
    wake_thread (e);
}

/* Releases the lock meanwhile. */
static void
fill (struct buf *b, const struct writer *w)
{
  struct engine *e = b->engine;

  engine_unlock_and_dispatch (e);
  memcpy (b->data + (w->offset - w->base), w->data, w->end - w->offset);
  engine_lock (e);
  filled (b);
  stats_add (e->stats, STATS_DEFERRED, 1);
}

/* Back-pressure. */

/* How long a writer waits while only other devices use buffers.  Its own device
 * would do the write in about half of that.  A millisecond at least, as the
 * writer looks again after that time while the device hangs.
 */
static uint64_t
others_wait_ns (struct conn *c)
{
  uint64_t wait_ns = speed_wait_ns (&c->device->write_speed);

  return MAX (2 * wait_ns, 1000000);
}

/* Has the OPEN buffers written that a writer of C waits for: those of its
 * device if that is at its limit, or all.  Not those that a writer is to join,
 * or fills at the moment: filled decides about these.
 */
static void
submit_open (struct conn *c)
{
  bool has_room = buffers_have_room (c->device);

  QUEUE_FOREACH (struct buf, b, &c->engine->buffers.open, link) {
    if (b->awaited == NULL && b->fillers == 0
        && (has_room || b->device == c->device))
      order_submit_locked (b);
  }
}

/* Waits until a buffer may have become free.  EAGAIN if there is nothing to
 * wait for.  Releases the lock meanwhile.
 */
static int
wait_for_buffer (struct writer *w, uint64_t now_ns)
{
  struct conn *c = w->conn;
  struct engine *e = c->engine;
  uint64_t until_ns;
  int err;

  end_call (w, NULL);
  submit_open (c);
  if (!w->waits || c->device->n_dirty > 0)
    w->until_ns = now_ns + others_wait_ns (c);
  if (e->buffers.failed.length == e->config.buffers
      || now_ns >= w->until_ns)
    return EAGAIN;
  pool_wake_idle (e->pool);
  buffers_add_writer (w);
  /* In 1 ms at the earliest: a pinned idle buffer may be due already. */
  until_ns = MIN (w->until_ns, MAX (buffers_idle_ns (e), now_ns + 1000000));
  err = engine_wait_plugin (c, &w->woken, until_ns);
  buffers_writer_runs (w);
  if (err == ETIMEDOUT)
    order_do_queued_locked (c, 0, UINT64_MAX);
  return err == ESHUTDOWN ? err : 0;
}

int
writeback_hold (struct conn *c, const void *buf, uint32_t count,
                uint64_t offset, uint64_t *now_ns)
{
  struct engine *e = c->engine;
  struct writer w = {
    .conn = c, .base = offset / c->unit * c->unit, .offset = offset,
    .end = offset + count, .data = buf
  };
  uint64_t start_ns = *now_ns;
  struct buf *b = NULL;
  int err = 0;

  ENGINE_LOCK_THEN_DISPATCH (e);
  while (err == 0 && b == NULL) {
    if (!is_deferrable (&w))
      err = EAGAIN;
    else if ((b = reserve (&w, *now_ns)) == NULL) {
      err = wait_for_buffer (&w, *now_ns);
      *now_ns = clock_ns ();
    }
  }
  end_call (&w, b);
  buffers_remove_writer (&w);
  if (*now_ns > start_ns)
    stats_note (e->stats, STATS_SPACE_WAIT, *now_ns - start_ns, count);
  if (b)
    fill (b, &w);
  return err;
}
