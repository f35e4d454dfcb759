/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Deferred writes, the order of writes, flush and the end of a connection: see behind.h.  The states and
 * the rules of order are in state.h.
 */
#include <errno.h>
#include <string.h>

#include "behind.h"
#include "buffers.h"
#include "clock.h"
#include "debug.h"
#include "handover.h"
#include "lock.h"

/* At most so many buffers wait to grow: as many as there are places for streams of reads. */
enum { OPEN_MAX_BUFS = STREAMS };

static void kick (struct engine *, uint64_t offset, uint64_t end);
static void wake_writers (struct engine *);
static bool write_queued (struct conn *, uint64_t offset, uint64_t end);

/* Waits until some dirty data is written or fails, or a mutator ends.  Returns
 * as engine_wait_plugin does.  Wants the lock, lets go of it meanwhile.
 */
static int
wait_for_progress (struct conn *c, uint64_t until_ns)
{
  struct engine *e = c->engine;
  int err;

  pool_hurry (e->pool);
  e->progress_waiters++;
  err = engine_wait_plugin (c, &e->progress, until_ns);
  e->progress_waiters--;
  return err;
}

/* Giving buffers to workers. */

/* The plugin has taken a write, zero or trim of DEVICE: those bytes leave all
 * waiting data that is not younger than SEQ.  Such data of DEVICE has failed
 * before.  That of another device has failed, too, or was still dirty when the
 * wait for it ended (settle); that device's next flush returns an error.  Wants
 * the lock.
 */
static void
supersede (struct device *device, uint64_t seq, uint64_t offset, uint64_t end)
{
  struct engine *e = device->export->engine;
  struct buf *b, *next;

  for (b = buffers_first (e, offset, end); b; b = next) {
    uint64_t from = buf_start (b), to = buf_limit (b);

    next = buffers_next (b, offset, end);
    if (!buf_is_waiting (b) || b->seq > seq)
      continue;
    if (b->device != device) {
      atomic_store (&b->device->lost, b->err ? b->err : EIO);
      atomic_store (&b->device->failing, true);
      b->device->lost_by_name |= b->device->export != device->export;
      wake_writers (e);
    }
    buffers_cut (b, offset, end);
    kick (e, from, to);         /* what has waited for it */
  }
}

static void
set_failed (struct buf *b)
{
  struct engine *e = b->engine;

  b->claimed = false;
  b->failed_seq = ++e->seq;
  atomic_store (&b->device->failing, true);
  buffers_set_state (b, BUF_FAILED);
  wake_writers (e);             /* they must not wait for failed data */
}

/* The write of bytes [OFFSET, END) of a WRITING buffer has completed.  Newer
 * data may have replaced some of them meanwhile.  Wants the lock.
 */
static void
written (struct buf *b, uint64_t offset, uint64_t end, int err)
{
  struct engine *e = b->engine;
  struct device *device = b->device;
  uint64_t from = MIN (offset, buf_start (b)), to = MAX (end, buf_limit (b)), seq = b->seq;

  debug_buffers ("written %#" PRIx64 "..%#" PRIx64 ": error %d", offset, end, err);
  b->err = err;
  if (err)
    stats_add (e->stats, STATS_DEFERRED_ERRORS, 1);
  if (b->dropped) {
    buffers_set_state (b, BUF_TAKEN);
    buffers_put_if_unused (b);
  }
  else if (err)
    set_failed (b);
  else {
    buffers_set_state (b, BUF_READY);   /* the other pieces */
    b->failed_seq = MIN (b->failed_seq, 1);     /* long ago: a flush waits for their next try */
    buffers_cut (b, offset, end);
    supersede (device, seq, offset, end);
  }
  kick (e, from, to);
  cond_broadcast (&e->progress);
}

static void
written_behind (struct backend_io *io, int err)
{
  struct buf *b = buf_of_io (io);
  struct engine *e = b->engine;

  ENGINE_LOCK_IN_SCOPE (e);
  b->hooked = false;
  written (b, io->hook.offset, io->hook.offset + io->hook.count, err);
}

/* Whether the first piece of a READY buffer has to wait: for older dirty data, or a mutator. */
static bool
must_wait (struct buf *b)
{
  struct engine *e = b->engine;
  uint64_t offset = buf_start (b), end = buf_end (b);

  if (b->fillers > 0)
    return true;
  for (struct buf *o = buffers_first (e, offset, end); o; o = buffers_next (o, offset, end))
    if (o != b && (o->state == BUF_WRITING || (buf_is_dirty (o) && o->seq < b->seq)))
      return true;
  for (GList *l = e->mutators.head; l; l = l->next) {
    struct mutator *m = l->data;

    if (m->running && ranges_overlap (m->offset, m->end, offset, end))
      return true;
  }
  return false;
}

static void
give_to_worker (struct buf *b)
{
  struct engine *e = b->engine;

  buffers_set_state (b, BUF_WRITING);
  handover (b, true, POOL_WRITE, written_behind);
  if (e->progress_waiters + e->writers.length > 0)
    pool_hurry (e->pool);
}

/* Looks again at the READY buffers in a range, where something has changed.  Wants the lock. */
static void
kick (struct engine *e, uint64_t offset, uint64_t end)
{
  for (struct buf *b = buffers_first (e, offset, end); b; b = buffers_next (b, offset, end))
    if (b->state == BUF_READY && !b->claimed && !must_wait (b))
      give_to_worker (b);
}

/* An OPEN buffer grows no more.  Wants the lock. */
static void
submit (struct buf *b)
{
  buffers_set_state (b, BUF_READY);
  kick (b->engine, buf_start (b), buf_end (b));
}

/* The OPEN buffers in a range BUT one: what overlaps them now must not wait for them to grow.  Wants
 * the lock.
 */
static void
submit_others (struct engine *e, const struct buf *but, uint64_t offset, uint64_t end)
{
  struct buf *b, *next;

  for (b = buffers_first (e, offset, end); b; b = next) {
    next = buffers_next (b, offset, end);
    if (b->state == BUF_OPEN && b != but)
      submit (b);
  }
}

static void
submit_all (struct engine *e)
{
  GList *l;

  while ((l = g_queue_peek_head_link (&e->open)) != NULL)
    submit (l->data);
}

/* When the linger thread has something to do next: the oldest OPEN buffer has
 * waited long enough to grow, or a job has waited long enough for a worker
 * (see pool.h).  UINT64_MAX: nothing.
 */
static uint64_t
next_due_ns (const struct engine *e)
{
  const struct buf *open = e->open.head ? e->open.head->data : NULL;
  uint64_t since = MIN (open ? open->since_ns : UINT64_MAX, e->patient_since_ns);

  return since == UINT64_MAX ? since : since + e->config.linger_ns;
}

void *
behind_linger (void *vp)
{
  struct engine *e = vp;

  ENGINE_LOCK_IN_SCOPE (e);
  while (!e->stopping) {
    uint64_t due = next_due_ns (e), now;

    if (due == UINT64_MAX) {
      e->linger_idle = true;
      engine_wait (e, &e->linger);
      e->linger_idle = false;
      continue;
    }
    now = clock_ns ();
    if (now < due)
      engine_wait_until (e, &e->linger, due);
    else if (e->open.head && ((struct buf *) e->open.head->data)->since_ns + e->config.linger_ns <= now)
      submit (e->open.head->data);
    if (now >= due) {           /* it has waited long enough: now a worker takes it */
      e->patient_since_ns = UINT64_MAX;
      pool_hurry (e->pool);
    }
  }
  return NULL;
}

/* Holding writes. */

/* Noted before what others have prefetched there is dropped: nothing old can be prefetched in between. */
static void
note_change (struct conn *c, uint64_t offset, uint64_t end)
{
  LOCK_IN_SCOPE (&c->wrote_lock);
  changes_add (&c->wrote, offset, end);
}

static bool
mutator_overlaps (struct engine *e, uint64_t offset, uint64_t end)
{
  for (GList *l = e->mutators.head; l; l = l->next) {
    struct mutator *m = l->data;

    if (ranges_overlap (m->offset, m->end, offset, end))
      return true;
  }
  return false;
}

/* Whether there is waiting data of another device in the range. */
static bool
others_wait (const struct device *d, uint64_t offset, uint64_t end)
{
  struct engine *e = d->export->engine;

  for (struct buf *b = buffers_first (e, offset, end); b; b = buffers_next (b, offset, end))
    if (b->device != d && buf_is_waiting (b))
      return true;
  return false;
}

/* The buffer of this connection that the write can join, the youngest there: an OPEN one that it
 * touches, or a READY one that it only overwrites.  No copy from or into the bytes in common may be
 * under way.
 */
static struct buf *
find_join (struct conn *c, uint64_t base, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;
  struct buf *found = NULL;
  uint64_t youngest = 0;

  for (struct buf *b = buffers_first (e, base, base + c->unit); b;
       b = buffers_next (b, base, base + c->unit)) {
    bool overlaps = buf_overlaps (b, offset, end);

    if (overlaps && buf_is_waiting (b))
      youngest = MAX (youngest, b->seq);
    if (b->conn != c || b->base != base || (overlaps && (b->pins > 0 || b->fillers > 0)))
      continue;
    if ((b->state == BUF_OPEN && buf_start (b) <= end && offset <= buf_end (b))
        || (b->state == BUF_READY && !b->claimed && buf_start (b) <= offset && end <= buf_end (b)))
      found = b;
  }
  return found && found->seq >= youngest ? found : NULL;
}

/* The buffer for a write, new or joined, its range widened for it; it has a filler more.  NULL if the
 * write may not wait, or, *IS_FULL, there is none.  Wants the lock.
 */
static struct buf *
reserve (const struct writer *w, uint64_t now_ns, bool *is_full)
{
  struct conn *c = w->conn;
  struct engine *e = c->engine;
  struct buf *b;

  *is_full = false;
  if (atomic_load (&c->device->failing) || atomic_load (&e->unregistered) > 0
      || mutator_overlaps (e, w->offset, w->end) || others_wait (c->device, w->offset, w->end))
    return NULL;
  if ((b = find_join (c, w->base, w->offset, w->end)) != NULL) {
    submit_others (e, b, w->offset, w->end);
    b->lo = MIN (b->lo, w->offset - w->base);
    b->hi = MAX (b->hi, w->end - w->base);
    stats_add (e->stats, STATS_COMBINED, 1);
  }
  else if ((b = buffers_take_for_write (e)) != NULL) {
    submit_others (e, b, w->offset, w->end);
    buffers_enter (b, BUF_OPEN, c, w->base, w->offset - w->base, w->end - w->base);
    b->since_ns = now_ns;
  }
  else {
    *is_full = true;
    return NULL;
  }
  b->fillers++;
  note_change (c, w->offset, w->end);
  buffers_drop (e, w->offset, w->end);
  return b;
}

/* A copy into the buffer has ended.  Wants the lock. */
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
    kick (e, buf_start (b), buf_limit (b));
    return;
  }
  if (b->hi == b->conn->unit || buf_end (b) == b->conn->backend.size)
    submit (b);
  else if (e->open.length > OPEN_MAX_BUFS || e->writers.length > 0)
    submit (e->open.head->data);
  if (e->linger_idle && e->open.length > 0)
    cond_signal (&e->linger);
}

/* Into what was reserved for it.  Wants the lock, lets go of it meanwhile. */
static void
fill (struct buf *b, const struct writer *w)
{
  struct engine *e = b->engine;

  engine_unlock (e);
  memcpy (b->data + (w->offset - w->base), w->data, w->end - w->offset);
  engine_lock (e);
  filled (b);
  stats_add (e->stats, STATS_BEHIND, 1);
}

/* It waits no longer: it has a buffer, or goes to the plugin.  Any other free
 * buffer is the next writer's.  Wants the lock.
 */
static void
dequeue (struct writer *w)
{
  struct engine *e = w->conn->engine;

  g_queue_unlink (&e->writers, &w->link);
  e->writer_called = false;
  if (e->free.length + e->clean.length > 0)
    buffers_call_writer (e);
}

static void
wake_writers (struct engine *e)
{
  for (GList *l = e->writers.head; l; l = l->next)
    cond_signal (&((struct writer *) l->data)->woken);
}

/* How long a writer waits while only other devices use buffers.  Its own device
 * would do the write in about half of that.
 */
static uint64_t
others_patience_ns (struct conn *c)
{
  return 2 * pace_wait_ns (c->backend.pace_write);
}

/* Waits until a buffer may have become free.  EAGAIN if there is nothing to
 * wait for.  Wants the lock, lets go of it meanwhile.
 */
static int
wait_for_space (struct writer *w, uint64_t now_ns)
{
  struct conn *c = w->conn;
  struct engine *e = c->engine;
  uint64_t until, idle;
  int err;

  submit_all (e);
  if (!w->waits || c->device->n_dirty > 0)
    w->until_ns = now_ns + others_patience_ns (c);
  if (e->failed.length == e->config.buffers || now_ns >= w->until_ns)
    return EAGAIN;
  pool_hurry (e->pool);
  if (!w->waits) {
    w->waits = true;
    w->link.data = w;
    g_queue_push_tail_link (&e->writers, &w->link);
  }
  e->writer_called = false;     /* it may be for one that does something else just now: call the first, too */
  until = w->until_ns;
  idle = buffers_idle_ns (e);   /* not at once: a pinned one may have been due long ago */
  until = MIN (until, MAX (idle, now_ns + 1000000));
  err = engine_wait_plugin (c, &w->woken, until);
  e->writer_called = false;
  if (err == ETIMEDOUT)
    write_queued (c, 0, UINT64_MAX);
  return err == ESHUTDOWN ? err : 0;
}

int
behind_write (struct conn *c, const void *buf, uint32_t count, uint64_t offset, uint64_t *now_ns)
{
  struct engine *e = c->engine;
  struct writer w = {
    .conn = c, .base = offset / c->unit * c->unit, .offset = offset, .end = offset + count, .data = buf
  };
  uint64_t start_ns = *now_ns;
  struct buf *b = NULL;
  bool is_full;
  int err = 0;

  ENGINE_LOCK_IN_SCOPE (e);
  while (err == 0 && (b = reserve (&w, *now_ns, &is_full)) == NULL) {
    err = is_full ? wait_for_space (&w, *now_ns) : EAGAIN;
    if (is_full)
      *now_ns = clock_ns ();
  }
  if (w.waits)
    dequeue (&w);
  if (*now_ns > start_ns)
    stats_note (e->stats, STATS_SPACE_WAIT, *now_ns - start_ns, count);
  if (b)
    fill (b, &w);
  return err;
}

/* Writes, zeroes and trims that go straight to the plugin. */

/* Does a write of the connection's device in the range that waits for a worker: all of them may be busy with
 * another device's, which hangs.  False: there is none.  Wants the lock, lets go of it meanwhile.
 */
static bool
write_queued (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;

  if (!pool_has_queued (e->pool, POOL_WRITE))
    return false;
  for (struct buf *b = buffers_first (e, offset, end); b; b = buffers_next (b, offset, end))
    if (b->device == c->device && b->state == BUF_WRITING && !b->hooked
        && pool_cancel (e->pool, &b->job)) {
      engine_unlock (e);
      backend_io_do (&b->io);
      engine_lock (e);
      return true;
    }
  return false;
}

/* What kinds of dirty data there are. */
enum { OWN = 1, OTHERS = 2 };

/* Waits while DIRTY finds data of the connection's own device.  For data of
 * other devices it waits until *UNTIL_NS at most (0: config.others_ns from
 * now).  Returns as engine_wait_plugin does, but 0 for ETIMEDOUT.  Wants the
 * lock, lets go of it meanwhile.
 */
static int
wait_while (struct conn *c, unsigned (*dirty) (struct conn *, const void *), const void *what,
            uint64_t offset, uint64_t end, uint64_t *until_ns)
{
  struct engine *e = c->engine;
  bool is_late = false;
  unsigned kinds;
  int err = 0;

  while ((kinds = dirty (c, what)) != 0) {
    if (err == ETIMEDOUT && kinds == OTHERS) {
      if (is_late)
        break;
      is_late = true;
      engine_unlock (e);
      e->config.late (c->device->export->name);
      engine_lock (e);
      continue;
    }
    if (*until_ns == 0) {
      stats_add (e->stats, STATS_BARRIERS, 1);
      *until_ns = clock_ns () + e->config.others_ns;
    }
    if ((kinds & OWN) && write_queued (c, offset, end))
      continue;
    err = wait_for_progress (c, kinds & OWN ? UINT64_MAX : *until_ns);
    if (err == ESHUTDOWN)
      return err;
  }
  return 0;
}

struct settled {
  uint64_t seq, offset, end;
};

/* Dirty data in the range that is not younger than seq. */
static unsigned
dirty_in_range (struct conn *c, const void *what)
{
  const struct settled *s = what;
  struct engine *e = c->engine;
  unsigned kinds = 0;

  for (struct buf *b = buffers_first (e, s->offset, s->end); b; b = buffers_next (b, s->offset, s->end))
    if (buf_is_dirty (b) && b->seq <= s->seq)
      kinds |= b->device == c->device ? OWN : OTHERS;
  return kinds;
}

/* Waits until none of the data that is in the range now is dirty any more; as
 * wait_while.
 */
static int
settle (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;
  struct settled s = { e->seq, offset, end };
  uint64_t until_ns = 0;

  submit_others (e, NULL, offset, end);
  return wait_while (c, dirty_in_range, &s, offset, end, &until_ns);
}

/* What another device has READY in the range did not move in time.  It has failed: it does not wait for the
 * operation that comes now, which may hang in its turn.  Wants the lock.
 */
static void
fail_others (const struct device *d, uint64_t offset, uint64_t end)
{
  struct engine *e = d->export->engine;

  for (struct buf *b = buffers_first (e, offset, end); b; b = buffers_next (b, offset, end))
    if (b->device != d && b->state == BUF_READY && !b->claimed && b->fillers == 0) {
      b->err = b->err ? b->err : EIO;
      set_failed (b);
      cond_broadcast (&e->progress);
    }
}

int
mutator_begin (struct conn *c, struct mutator *m, uint32_t count, uint64_t offset)
{
  struct engine *e = c->engine;
  int err;

  *m = (struct mutator) {
    .device = c->device, .offset = offset, .end = offset + count, .link.data = m
  };
  /* The common case, no connection may defer writes: no lock.  Sequentially
   * consistent with reserve (): either we see that one may, or it sees us and
   * defers nothing.
   */
  atomic_fetch_add (&e->unregistered, 1);
  if (atomic_load (&e->deferring) == 0)
    return 0;
  atomic_fetch_sub (&e->unregistered, 1);

  ENGINE_LOCK_IN_SCOPE (e);
  g_queue_push_tail_link (&e->mutators, &m->link);
  err = settle (c, m->offset, m->end);
  m->running = err == 0;
  if (err)
    g_queue_unlink (&e->mutators, &m->link);
  else
    fail_others (c->device, offset, m->end);
  return err;
}

void
mutator_end (struct conn *c, struct mutator *m, int err)
{
  struct engine *e = c->engine;

  note_change (c, m->offset, m->end);
  if (!m->running) {
    /* The plugin's data has changed; whoever began to read ahead before is seen here, whoever
     * begins now reads the new data.
     */
    atomic_thread_fence (memory_order_seq_cst);
    if (atomic_load (&e->in_tree) > 0) {
      ENGINE_LOCK_IN_SCOPE (e);
      buffers_drop (e, m->offset, m->end);
    }
    atomic_fetch_sub (&e->unregistered, 1);
    return;
  }
  ENGINE_LOCK_IN_SCOPE (e);
  if (err == 0)
    supersede (c->device, UINT64_MAX, m->offset, m->end);
  buffers_drop (e, m->offset, m->end);
  g_queue_unlink (&e->mutators, &m->link);
  kick (e, m->offset, m->end);
  cond_broadcast (&e->progress);
}

int
behind_settle (struct conn *c, uint64_t offset, uint64_t end)
{
  ENGINE_LOCK_IN_SCOPE (c->engine);
  return settle (c, offset, end);
}

bool
behind_has_failed (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;

  ENGINE_LOCK_IN_SCOPE (e);
  for (struct buf *b = buffers_first (e, offset, end); b; b = buffers_next (b, offset, end))
    if (b->state == BUF_FAILED && b->device == c->device)
      return true;
  return false;
}

/* Failed data. */

/* Whether this connection could write the buffer itself: the first one of its device may have had other
 * limits.
 */
static bool
can_write (const struct conn *c, const struct buf *b)
{
  const struct backend *k = &c->backend;
  uint32_t mask = k->min_block - 1;

  return k->can_write && buf_limit (b) <= k->size && ((buf_start (b) | buf_end (b)) & mask) == 0
    && b->hi - b->lo <= k->max_block;
}

/* An error that another try cannot change. */
static bool
is_permanent (int err)
{
  return err == EPERM || err == EROFS || err == EINVAL;
}

/* Failed data of a device, not younger than SEQ: the oldest FAILED buffer, or a
 * dirty one that is being tried again.
 */
static struct buf *
find_failed (const struct device *d, uint64_t seq)
{
  for (GList *l = d->export->engine->failed.head; l; l = l->next) {
    struct buf *b = l->data;

    if (b->device == d && b->seq <= seq)
      return b;
  }
  for (GList *l = d->export->dirty.head; l; l = l->next) {
    struct buf *b = l->data;

    if (b->device == d && b->seq <= seq && b->failed_seq > 0)
      return b;
  }
  return NULL;
}

static bool
is_of_device (const struct conn *c, const struct buf *b)
{
  return b->device == c->device;
}

/* Takes a FAILED buffer over if its connection has ended or is about to: the end
 * does not wait for it then.  False: this connection cannot write it.
 */
static bool
take_over (struct conn *c, struct buf *b)
{
  if (b->conn == c || (b->conn && atomic_load (&b->conn->backend.gone_ns) == 0))
    return true;
  if (!can_write (c, b))
    return false;
  b->conn = c;
  return true;
}

/* Has workers try the device's failed data again, but for what no connection
 * can write.
 */
static void
retry_failed (struct conn *c, bool (*is_meant) (const struct conn *, const struct buf *))
{
  struct engine *e = c->engine;

  for (GList *l = e->failed.head, *next; l; l = next) {
    struct buf *b = l->data;

    next = l->next;
    if (!is_meant (c, b))
      continue;
    /* What has to wait the flush tries itself: it does not wait without end. */
    if (take_over (c, b) && !must_wait (b))
      buffers_set_state (b, BUF_READY);
  }
  kick (e, 0, UINT64_MAX);
}

/* Tries a piece of a FAILED buffer again, through the connection that wrote the data: before a flush it may be
 * the only one to see it.  The calling thread, which is nbdkit's, does it: there the plugin knows the
 * connection, and its error is not lost.  But a hook is not called on another connection's thread; it is given
 * the operation, and its error is the plugin's in any case.  Wants the lock, lets go of it meanwhile.
 */
static int
try_again (struct conn *c, struct buf *b)
{
  struct engine *e = c->engine;
  uint64_t until_ns = clock_ns () + e->config.others_ns, offset, end;
  bool is_superseded;
  struct conn *via;
  int err = 0;

  via = b->conn;
  /* READY, so that new mutators wait for it, and this thread waits for those
   * that run.  The bytes that these change leave this buffer.
   */
  b->claimed = true;
  buffers_set_state (b, BUF_READY);
  buffers_pin (b);
  while (!b->dropped && must_wait (b) && err == 0)
    err = wait_for_progress (c, until_ns);
  is_superseded = b->dropped;
  buffers_unpin (b);
  if (is_superseded)
    return 0;
  if (err) {
    set_failed (b);
    kick (e, buf_start (b), buf_limit (b));
    cond_broadcast (&e->progress);
    return err == ETIMEDOUT ? b->err : err;
  }
  b->claimed = false;
  if (via != c && via->backend.hooks) {
    give_to_worker (b);
    return 0;
  }
  buffers_set_state (b, BUF_WRITING);
  offset = buf_start (b);
  end = buf_end (b);
  engine_unlock (e);
  err = backend_pwrite (&via->backend, b->data + (offset - b->base), end - offset, offset, 0);
  engine_lock (e);
  written (b, offset, end, err);
  return err;
}

/* A log line for each piece of what is, or was, in a buffer. */
struct report {
  struct engine *engine;
  const char *name;
  uint64_t base;
  int err;
  GArray *pieces;
};

static struct report
report_of (const struct buf *b)
{
  struct report r = {
    b->engine, b->device->export->name, b->base, b->err,
    g_array_new (FALSE, FALSE, sizeof (struct span))
  };

  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span p = buf_piece (b, i);

    g_array_append_val (r.pieces, p);
  }
  return r;
}

/* Wants the lock, lets go of it meanwhile: a log may be slow.  Its export stays. */
static void
report (struct report r, bool kept)
{
  engine_unlock (r.engine);
  for (unsigned i = 0; i < r.pieces->len; i++) {
    struct span p = g_array_index (r.pieces, struct span, i);

    r.engine->config.report (r.name, r.base + p.lo, p.hi - p.lo, r.err, kept);
  }
  g_array_unref (r.pieces);
  engine_lock (r.engine);
}

/* A FAILED buffer is given up.  Wants the lock, lets go of it meanwhile. */
static void
lose (struct buf *b)
{
  struct report r = report_of (b);

  if (!b->reported)
    atomic_store (&b->device->export->lost, b->err);
  buffers_remove (b);
  report (r, false);
}

/* Flush. */

/* The dirty data of the export name that a flush waits for.  Not data that has
 * failed since the flush began, nor data of other devices that has ever failed.
 */
static unsigned
dirty_for_flush (struct conn *c, const void *what)
{
  uint64_t seq = *(const uint64_t *) what;
  unsigned kinds = 0;

  for (GList *l = c->device->export->dirty.head; l && !(kinds & OWN); l = l->next) {
    struct buf *b = l->data;

    if (b->seq > seq)
      break;
    if (b->device == c->device && b->failed_seq <= seq)
      kinds |= OWN;
    else if (b->device != c->device && b->failed_seq == 0)
      kinds |= OTHERS;
  }
  return kinds;
}

static void
submit_export (const struct export *x)
{
  for (GList *l = x->engine->open.head, *next; l; l = next) {
    struct buf *b = l->data;

    next = l->next;
    if (b->device->export == x)
      submit (b);
  }
}

/* Whether a flush that began at SEQ tries a FAILED buffer again.  Another connection's hook it gives it to
 * once: that error is the plugin's.
 */
static bool
may_try (struct conn *c, struct buf *b, uint64_t seq)
{
  return take_over (c, b)
    && (b->conn == c || b->conn->backend.hooks == NULL || b->failed_seq <= seq);
}

int
behind_flush_begin (struct conn *c)
{
  struct engine *e = c->engine;
  bool side_by_side = false;
  int err, first = 0;
  struct buf *b;
  uint64_t seq, until_ns = 0;   /* one bound for all waits for other devices */

  if (atomic_load (&e->deferring) == 0)
    return 0;
  ENGINE_LOCK_IN_SCOPE (e);
  seq = e->seq;
  submit_export (c->device->export);
  err = wait_while (c, dirty_for_flush, &seq, 0, UINT64_MAX, &until_ns);
  while (err == 0 && (b = find_failed (c->device, seq)) != NULL) {
    if (b->state == BUF_FAILED && may_try (c, b, seq))
      err = try_again (c, b);
    else if (b->state == BUF_FAILED || b->failed_seq > seq)
      err = b->err;
    if (err && err != ESHUTDOWN && b->state == BUF_FAILED && is_permanent (b->err)) {
      first = first ? first : err;
      err = 0;
      b->reported = true;
      lose (b);
    }
    /* The device takes writes again. */
    else if (err == 0 && !side_by_side) {
      side_by_side = true;
      retry_failed (c, is_of_device);
    }
    if (err == 0)
      err = wait_while (c, dirty_for_flush, &seq, 0, UINT64_MAX, &until_ns);
  }
  return first ? first : err;
}

int
behind_flush_end (struct conn *c, int err)
{
  struct device *d = c->device;
  int lost = 0, lost_before;

  if (!atomic_load (&d->failing) && atomic_load (&d->export->lost) == 0)
    return err;
  ENGINE_LOCK_IN_SCOPE (c->engine);
  if (err != ESHUTDOWN) {
    d->lost_by_name = false;
    lost = atomic_exchange (&d->lost, 0);
    lost_before = atomic_exchange (&d->export->lost, 0);
    lost = lost ? lost : lost_before;
  }
  if (err == 0)
    err = lost;
  if (err == 0 && find_failed (d, UINT64_MAX) == NULL)
    atomic_store (&d->failing, false);
  /* ESHUTDOWN may be the end of this client: it hears of nothing. */
  for (GList *l = c->engine->failed.head; err && err != ESHUTDOWN && l; l = l->next)
    if (((struct buf *) l->data)->device == d)
      ((struct buf *) l->data)->reported = true;
  return err;
}

/* The end of a connection. */

/* Failed data that the end of a connection has to care for. */
static bool
is_for_end (const struct conn *c, const struct buf *b)
{
  return b->conn == c || (b->device == c->device && c->device->conns == 1);
}

static struct buf *
failed_of (const struct conn *c)
{
  for (GList *l = c->engine->failed.head; l; l = l->next) {
    struct buf *b = l->data;

    if (is_for_end (c, b))
      return b;
  }
  return NULL;
}

void
behind_close (struct conn *c)
{
  struct engine *e = c->engine;
  bool is_given_up = false;
  struct buf *b;

  ENGINE_LOCK_IN_SCOPE (e);
  submit_export (c->device->export);
  /* Workers first: on this thread, whose client has gone, filters below that sleep fail at once. */
  retry_failed (c, is_for_end);
  for (;;) {
    /* Each time: while we reported, another connection may have tried our failed data again. */
    while (c->n_dirty > 0) {
      pool_hurry (e->pool);
      is_given_up |= engine_wait_end (c, &e->progress);
    }
    b = failed_of (c);
    if (b == NULL)
      break;
    if (!is_given_up && take_over (c, b) && try_again (c, b) == 0)
      continue;
    if (b->state != BUF_FAILED)         /* newer data has replaced it */
      continue;
    if (c->device->conns == 1)
      lose (b);
    else {
      b->conn = NULL;
      report (report_of (b), true);
    }
  }
  /* A client of another name has replaced data here: the next one of this name is to hear of it. */
  if (--c->device->conns == 0 && c->device->lost_by_name && atomic_load (&c->device->lost))
    atomic_store (&c->device->export->lost, atomic_load (&c->device->lost));
}
