/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The order of writes, zeroes and trims: see order.h.
 */
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "debug.h"
#include "dispatch.h"
#include "order.h"

int
order_wait_progress_locked (struct conn *c, uint64_t until_ns)
{
  struct engine *e = c->engine;
  int err;

  pool_wake_idle (e->pool);
  e->order.waiters++;
  err = engine_wait_plugin (c, &e->order.progress, until_ns);
  e->order.waiters--;
  return err;
}

/* Completion. */

/* The plugin has taken a write, zero or trim of DEVICE: those bytes leave all
 * waiting data that is not younger than SEQ.  Such data of DEVICE has failed
 * before.  Data of another device has failed too, or was still dirty when the
 * wait for it ended; that device's next flush returns an error.
 */
static void
supersede (struct device *device, uint64_t seq, uint64_t offset, uint64_t end)
{
  struct engine *e = device->export->engine;

  BUFFERS_FOREACH (b, e, offset, end) {
    uint64_t from = buf_start (b), to = buf_end (b);

    if (!buf_is_waiting (b) || b->seq > seq)
      continue;
    if (b->device != device) {
      atomic_store (&b->device->lost, b->err ? b->err : EIO);
      atomic_store (&b->device->failing, true);
      b->device->lost_by_name |= b->device->export != device->export;
      b->device->n_overtaken += b->state == BUF_WRITING && !b->overtaken;
      b->overtaken = b->state == BUF_WRITING;
      buffers_wake_writers (e);
    }
    buffers_cut (b, offset, end);
    order_dispatch_locked (e, from, to);        /* what has waited for it */
  }
}

void
order_fail_locked (struct buf *b)
{
  struct engine *e = b->engine;

  b->claimed = false;
  b->failed_seq = buffers_next_seq (e);
  atomic_store (&b->device->failing, true);
  buffers_set_state (b, BUF_FAILED);
  buffers_wake_writers (e);     /* they must not wait for failed data */
}

void
order_written_locked (struct buf *b, uint64_t offset, uint64_t end, int err)
{
  struct engine *e = b->engine;
  struct device *device = b->device;
  /* Newer data may have replaced some bytes meanwhile. */
  uint64_t from = MIN (offset, buf_start (b)), to = MAX (end, buf_end (b));
  uint64_t seq = b->seq;

  /* Also after an error, and if it was overtaken.  First, see ask (). */
  device_note_change (b->conn, offset, end);
  extents_change (e, from, to);
  debug_buffers ("written %#" PRIx64 "..%#" PRIx64 ": %s", offset, end,
                 err ? strerror (err) : "ok");
  if (err)                      /* else other pieces may keep an older one */
    b->err = err;
  device->n_overtaken -= b->overtaken;
  b->overtaken = false;
  if (err)
    stats_add (e->stats, STATS_DEFERRED_ERRORS, 1);
  if (b->dropped) {
    buffers_set_state (b, BUF_TAKEN);
    buffers_put_if_unused (b);
  }
  else if (err)
    order_fail_locked (b);
  else {
    buffers_set_state (b, BUF_READY);   /* for the other pieces */
    /* As if it had failed long ago: a flush under way then waits for the next
     * try of the other pieces.
     */
    b->failed_seq = MIN (b->failed_seq, 1);
    buffers_cut (b, offset, end);
    supersede (device, seq, offset, end);
  }
  order_dispatch_locked (e, from, to);
  /* It has failed before, and the next piece has to wait.  A flush tries it:
   * its wait has a bound.
   */
  if (b->state == BUF_READY && b->failed_seq > 0) {
    buffers_set_state (b, BUF_FAILED);
    buffers_wake_writers (e);
    order_dispatch_locked (e, from, to);        /* what has waited for it */
  }
  cond_broadcast (&e->order.progress);
}

/* Dispatch. */

/* The end of a connection does not wait for the limit, as the writes in flight
 * may hang.
 */
static bool
may_write (const struct buf *b)
{
  struct device *d = b->device;

  return d->n_writes < limit_value (&d->write_limit)
    || atomic_load (&b->conn->backend.gone_ns) != 0;
}

/* Whether only the limit may be in the way of a buffer. */
static bool
is_ready (const struct buf *b)
{
  return b->state == BUF_READY && !b->claimed && order_can_dispatch_locked (b);
}

/* Dispatches a buffer that is ready, or holds it back. */
static void
write_if_allowed (struct buf *b)
{
  if (!is_ready (b))
    return;
  if (may_write (b))
    order_write_locked (b);
  else
    b->device->has_held_back = true;
}

/* A write has ended.  Dispatches the oldest READY buffers, up to the limit. */
static void
write_ended (struct device *d)
{
  d->n_writes--;
  if (!d->has_held_back)
    return;
  d->has_held_back = false;
  QUEUE_FOREACH (struct buf, b, &d->export->dirty, dirty_link) {
    if (b->device == d)
      write_if_allowed (b);
  }
}

static void
written (struct buf *b, int err)
{
  const struct nbdkit_async_io *io = &b->io.hook;

  order_written_locked (b, io->offset, io->offset + io->count, err);
}

static void
write_done (struct backend_io *io, int err)
{
  struct buf *b = buf_of_io (io);
  struct device *d = b->device;

  ENGINE_LOCK_THEN_DISPATCH (b->engine);
  b->hooked = false;
  written (b, err);
  write_ended (d);
}

/* Groups. */

static void
group_done (struct backend_io *io, int err)
{
  struct buf *group = buf_of_io (io), *next;
  struct device *d = group->device;

  ENGINE_LOCK_THEN_DISPATCH (group->engine);
  group->hooked = false;
  for (struct buf *b = group->next; b; b = next) {
    next = b->next;
    b->group = b->next = NULL;
    written (b, err);
  }
  buffers_put_group (group);
  write_ended (d);
}

/* Not failed data: with others it may fail again. */
static bool
can_be_in_group (const struct buf *b)
{
  return b->lo == 0 && b->hi == b->device->unit && b->failed_seq == 0;
}

/* The buffer at BASE that can be in a group with B, or NULL. */
static struct buf *
find_adjacent (const struct buf *b, uint64_t base)
{
  BUFFERS_FOREACH (o, b->engine, base, base + b->device->unit)
    if (o->conn == b->conn && can_be_in_group (o) && is_ready (o))
      return o;
  return NULL;
}

static void
add_to_group (struct buf *group, struct buf **last, struct buf *b)
{
  buffers_set_state (b, BUF_WRITING);
  b->io.hook.offset = b->base;
  b->io.hook.count = b->hi;
  b->group = group;
  *last = b;
}

/* Dispatches B and the adjacent buffers in one operation, which does not cross
 * a multiple of the large size.  False: there is no adjacent buffer, or no free
 * large one.
 */
static bool
write_group (struct buf *b)
{
  struct device *d = b->device;
  uint64_t bytes = (uint64_t) d->unit * d->large_units, unit = d->unit;
  uint64_t begin = b->base, end = b->base + unit;
  struct buf *group, **last;

  if (!limit_is_large (&d->write_limit) || !can_be_in_group (b))
    return false;
  while (begin % bytes > 0 && find_adjacent (b, begin - unit))
    begin -= unit;
  while (end % bytes > 0 && find_adjacent (b, end))
    end += unit;
  if (end - begin == unit || (group = buffers_take_for_group (b->conn)) == NULL)
    return false;
  group->base = begin;
  group->lo = 0;
  group->hi = end - begin;
  last = &group->next;
  for (uint64_t base = begin; base < end; base += unit) {
    struct buf *o = base == b->base ? b : find_adjacent (b, base);

    add_to_group (group, last, o);
    last = &o->next;
  }
  dispatch_buf (group, true, POOL_WRITE, group_done);
  return true;
}

bool
order_can_dispatch_locked (const struct buf *b)
{
  struct engine *e = b->engine;
  uint64_t offset = buf_start (b), end = buf_first_end (b);

  if (b->fillers > 0)
    return false;
  BUFFERS_FOREACH (o, e, offset, end)
    if (o != b && (o->state == BUF_WRITING
                   || (buf_is_dirty (o) && o->seq < b->seq)))
      return false;
  QUEUE_FOREACH (struct direct, d, &e->order.directs, link) {
    if (d->running && ranges_overlap (d->offset, d->end, offset, end))
      return false;
  }
  return true;
}

void
order_write_locked (struct buf *b)
{
  struct engine *e = b->engine;

  b->device->n_writes++;
  if (!write_group (b)) {
    buffers_set_state (b, BUF_WRITING);
    dispatch_buf (b, true, POOL_WRITE, write_done);
  }
  if (e->order.waiters + e->buffers.writers.length > 0)
    pool_wake_idle (e->pool);
}

void
order_dispatch_locked (struct engine *e, uint64_t offset, uint64_t end)
{
  BUFFERS_FOREACH (b, e, offset, end)
    write_if_allowed (b);
}

void
order_submit_locked (struct buf *b)
{
  buffers_set_state (b, BUF_READY);
  order_dispatch_locked (b->engine, buf_start (b), buf_first_end (b));
}

void
order_submit_range_locked (struct engine *e, const struct buf *but,
                           uint64_t offset, uint64_t end)
{
  BUFFERS_FOREACH (b, e, offset, end) {
    if (b->state == BUF_OPEN && b != but)
      order_submit_locked (b);
  }
}

/* For a drain of a range: dispatches what the limits hold back there, as the
 * writes in flight may hang.
 */
static void
write_held_back (struct engine *e, uint64_t offset, uint64_t end)
{
  BUFFERS_FOREACH (b, e, offset, end)
    if (is_ready (b))
      order_write_locked (b);
}

bool
order_do_queued_locked (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;

  if (!pool_has_queued (c->pool, POOL_WRITE))
    return false;
  BUFFERS_FOREACH (b, e, offset, end) {
    struct buf *op = b->group ? b->group : b;

    if (b->device == c->device && b->state == BUF_WRITING && !op->hooked
        && conn_may_call_for (c, b->conn)
        && pool_cancel (b->conn->pool, &op->job)) {
      engine_unlock_and_dispatch (e);
      dispatch_do (op);
      engine_lock (e);
      return true;
    }
  }
  return false;
}

/* Draining. */

int
order_wait_locked (struct conn *c,
                   unsigned (*dirty) (struct conn *, const void *),
                   const void *what, uint64_t offset, uint64_t end,
                   uint64_t *until_ns)
{
  struct engine *e = c->engine;
  bool is_logged = false;
  unsigned kinds;
  int err = 0;

  while ((kinds = dirty (c, what)) != 0) {
    if (err == ETIMEDOUT && kinds == DIRTY_OTHERS) {
      if (is_logged)
        break;
      is_logged = true;
      engine_unlock_and_dispatch (e);
      e->config.log_overdue (c->device->export->name);
      engine_lock (e);
      continue;
    }
    if (*until_ns == 0) {
      stats_add (e->stats, STATS_BARRIERS, 1);
      *until_ns = clock_ns () + e->config.others_ns;
    }
    if (end != UINT64_MAX)
      write_held_back (e, offset, end);
    if ((kinds & DIRTY_OWN) && order_do_queued_locked (c, offset, end))
      continue;
    err = order_wait_progress_locked (c, kinds & DIRTY_OWN ? UINT64_MAX
                                      : *until_ns);
    if (err == ESHUTDOWN)
      return err;
  }
  return 0;
}

struct drained {
  uint64_t seq, offset, end;
};

/* Whether an overtaken write of the device is in flight in the range: the tree
 * does not have those bytes any more.
 */
static bool
is_overtaken (const struct device *d, uint64_t offset, uint64_t end)
{
  if (d->n_overtaken == 0)
    return false;
  QUEUE_FOREACH (struct buf, b, &d->export->dirty, dirty_link) {
    const struct nbdkit_async_io *io = &b->io.hook;

    if (b->overtaken && b->device == d
        && ranges_overlap (io->offset, io->offset + io->count, offset, end))
      return true;
  }
  return false;
}

/* Dirty data in the range that is not younger than seq. */
static unsigned
dirty_in_range (struct conn *c, const void *what)
{
  const struct drained *d = what;
  struct engine *e = c->engine;
  unsigned kinds = is_overtaken (c->device, d->offset, d->end) ? DIRTY_OWN : 0;

  BUFFERS_FOREACH (b, e, d->offset, d->end)
    if (buf_is_dirty (b) && b->seq <= d->seq)
      kinds |= b->device == c->device ? DIRTY_OWN : DIRTY_OTHERS;
  return kinds;
}

int
order_drain_locked (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;
  uint64_t unit = e->config.buffer_size, until_ns = 0;
  struct drained d = { e->buffers.seq, offset, end };

  order_submit_range_locked (e, NULL, offset, end);
  /* What is in the range may have to wait for older data of the same unit. */
  return order_wait_locked (c, dirty_in_range, &d, offset / unit * unit,
                            (end + unit - 1) / unit * unit, &until_ns);
}

/* Direct operations. */

/* READY data of another device in the range was not dispatched in time.  Makes
 * it FAILED, so that it does not wait for the direct operation that runs now.
 * That one may hang, too.
 */
static void
fail_others (const struct device *d, uint64_t offset, uint64_t end)
{
  struct engine *e = d->export->engine;

  BUFFERS_FOREACH (b, e, offset, end)
    if (b->device != d && b->state == BUF_READY && !b->claimed
        && b->fillers == 0) {
      b->err = b->err ? b->err : EIO;
      order_fail_locked (b);
      order_dispatch_locked (e, buf_start (b), buf_end (b));
      cond_broadcast (&e->order.progress);
    }
}

bool
direct_overlaps_locked (struct engine *e, uint64_t offset, uint64_t end)
{
  if (atomic_load (&e->order.unregistered) > 0)
    return true;
  QUEUE_FOREACH (struct direct, d, &e->order.directs, link) {
    if (ranges_overlap (d->offset, d->end, offset, end))
      return true;
  }
  return false;
}

int
direct_begin (struct conn *c, struct direct *d, uint32_t count,
              uint64_t offset)
{
  struct engine *e = c->engine;
  int err;

  *d = (struct direct) {
    .device = c->device, .offset = offset, .end = offset + count,
    .link.data = d
  };
  /* Commonly no connection may defer writes, and this takes no lock.  The order
   * is sequentially consistent with direct_overlaps_locked: either this thread
   * sees a connection that defers, or that connection sees this operation and
   * does not defer.
   */
  atomic_fetch_add (&e->order.unregistered, 1);
  if (atomic_load (&e->buffers.deferring) == 0) {
    extents_change (e, d->offset, d->end);
    return 0;
  }
  atomic_fetch_sub (&e->order.unregistered, 1);

  ENGINE_LOCK_THEN_DISPATCH (e);
  g_queue_push_tail_link (&e->order.directs, &d->link);
  extents_change (e, d->offset, d->end);
  err = order_drain_locked (c, d->offset, d->end);
  d->running = err == 0;
  if (err)
    g_queue_unlink (&e->order.directs, &d->link);
  else
    fail_others (c->device, offset, d->end);
  return err;
}

void
direct_end (struct conn *c, struct direct *d, int err)
{
  struct engine *e = c->engine;

  device_note_change (c, d->offset, d->end);
  if (!d->running) {            /* it is unregistered */
    /* The plugin's data has changed.  This thread sees a prefetch that began
     * before the fence.  A later one reads the new data.
     */
    atomic_thread_fence (memory_order_seq_cst);
    extents_change (e, d->offset, d->end);
    if (buffers_may_have (e, d->offset, d->end)) {
      ENGINE_LOCK_THEN_DISPATCH (e);
      buffers_drop (e, d->offset, d->end);
    }
    atomic_fetch_sub (&e->order.unregistered, 1);
    return;
  }
  ENGINE_LOCK_THEN_DISPATCH (e);
  if (err == 0)
    supersede (c->device, UINT64_MAX, d->offset, d->end);
  buffers_drop (e, d->offset, d->end);
  extents_change (e, d->offset, d->end);
  g_queue_unlink (&e->order.directs, &d->link);
  order_dispatch_locked (e, d->offset, d->end);
  cond_broadcast (&e->order.progress);
}
