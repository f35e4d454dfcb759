/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Flush, failed data, and the end of a connection: see flush.h.
 */
#include <errno.h>

#include "clock.h"
#include "dispatch.h"
#include "flush.h"

/* Failed data. */

/* Whether this connection could write all pieces of the buffer itself: the
 * first one of its device may have had other limits.
 */
static bool
can_write (const struct conn *c, const struct buf *b)
{
  if (!c->backend.can_write || buf_end (b) > c->backend.size)
    return false;
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span p = buf_piece (b, i);

    if (conn_is_refusable (c, p.hi - p.lo, b->base + p.lo))
      return false;
  }
  return true;
}

/* An error that another try hardly changes.  EINVAL is not one of them:
 * nbdkit's nbd plugin returns it when its server has gone.  Another connection
 * may write the data then.
 */
static bool
is_permanent (int err)
{
  return err == EPERM || err == EROFS;
}

/* Whether a flush that began at SEQ drops a FAILED buffer.  It has tried the
 * buffer in vain, and an earlier flush had returned the error before this one
 * began.  The first error alone is not enough: that flush may end before the
 * client has the answer to the write.
 */
static bool
is_hopeless (const struct buf *b, uint64_t seq)
{
  return is_permanent (b->err) && b->failed_seq > seq
    && b->reported_seq > 0 && b->reported_seq <= seq;
}

/* Failed data of a device, not younger than SEQ: the oldest FAILED buffer, or a
 * dirty one that is being tried again.
 */
static struct buf *
find_failed (const struct device *d, uint64_t seq)
{
  QUEUE_FOREACH (struct buf, b, &d->export->engine->buffers.failed, link) {
    if (b->device == d && b->seq <= seq)
      return b;
  }
  QUEUE_FOREACH (struct buf, b, &d->export->dirty, dirty_link) {
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

/* Takes a FAILED buffer over if its connection has ended or is about to end.
 * That end does not wait for the buffer then.  False: this connection cannot
 * write it.
 */
static bool
take_over (struct conn *c, struct buf *b)
{
  if (b->conn == c
      || (b->conn && atomic_load (&b->conn->backend.gone_ns) == 0))
    return true;
  if (!can_write (c, b))
    return false;
  b->conn = c;
  return true;
}

/* Has workers try failed data again, if this connection or the buffer's own one
 * can write it.  Wants the lock.
 */
static void
retry_all (struct conn *c,
           bool (*is_meant) (const struct conn *, const struct buf *))
{
  struct engine *e = c->engine;

  QUEUE_FOREACH (struct buf, b, &e->buffers.failed, link) {
    /* The flush itself tries data that has to wait: its wait has a bound. */
    if (is_meant (c, b) && take_over (c, b) && order_can_dispatch_locked (b))
      buffers_set_state (b, BUF_READY);
  }
  order_dispatch_locked (e, 0, UINT64_MAX);
}

/* Waits until a claimed READY buffer may be written.  False: it could not, and
 * it is FAILED, with the reason in *ERR; or newer data has replaced it, with
 * *ERR 0.
 */
static bool
wait_for_turn (struct conn *c, struct buf *b, int *err)
{
  struct engine *e = c->engine;
  uint64_t until_ns = clock_ns () + e->config.others_ns;
  bool is_replaced;

  *err = 0;
  buffers_pin (b);
  while (!b->dropped && !order_can_dispatch_locked (b) && *err == 0)
    *err = order_wait_progress_locked (c, until_ns);
  is_replaced = b->dropped;
  buffers_unpin (b);
  if (is_replaced) {
    *err = 0;
    return false;
  }
  if (*err == 0)
    return true;
  order_fail_locked (b);
  order_dispatch_locked (e, buf_start (b), buf_end (b));
  cond_broadcast (&e->order.progress);
  if (*err == ETIMEDOUT)
    *err = b->err;
  return false;
}

/* Tries a piece of a FAILED buffer again, through the buffer's connection.
 * Until that connection flushes again, it may be the only one that sees the
 * data.  The calling thread does it, because it is nbdkit's: there the plugin's
 * error is not lost.  But another connection's hook or serial handle must not
 * be used on this thread (conn_may_call_for): such an operation is dispatched.
 * Releases the lock meanwhile.
 */
static int
try_again (struct conn *c, struct buf *b)
{
  struct engine *e = c->engine;
  struct conn *via = b->conn;
  uint64_t offset, end;
  int err;

  /* READY: new direct operations wait for it, and it waits for those that run.
   * The bytes that these change leave the buffer.
   */
  b->claimed = true;
  buffers_set_state (b, BUF_READY);
  if (!wait_for_turn (c, b, &err))
    return err;
  b->claimed = false;
  if (!conn_may_call_for (c, via)) {
    order_write_locked (b);
    return 0;
  }
  buffers_set_state (b, BUF_WRITING);
  b->io.hook.offset = offset = buf_start (b);
  b->io.hook.count = b->hi - b->lo;
  end = buf_first_end (b);
  engine_unlock_and_dispatch (e);
  err = backend_pwrite (&via->backend, b->data + (offset - b->base),
                        end - offset, offset, 0);
  engine_lock (e);
  order_written_locked (b, offset, end, err);
  return err;
}

/* Logs each piece of a FAILED buffer that could not be written, and gives the
 * buffer up if it is not KEPT.  Releases the lock meanwhile, as a log may be
 * slow.  The export stays.  So does b->rest with a reference: buffers_cut makes
 * a new one.
 */
static void
log_failed (struct buf *b, bool kept)
{
  struct engine *e = b->engine;
  const char *name = b->device->export->name;
  uint64_t base = b->base;
  struct span first = { b->lo, b->hi };
  g_autoptr (GArray) rest = b->rest ? g_array_ref (b->rest) : NULL;
  int err = b->err;

  if (!kept)
    buffers_remove (b);
  engine_unlock_and_dispatch (e);
  for (unsigned i = 0; i < 1 + (rest ? rest->len : 0); i++) {
    struct span p = i == 0 ? first : g_array_index (rest, struct span, i - 1);

    e->config.log_unwritten (name, base + p.lo, p.hi - p.lo, err, kept);
  }
  engine_lock (e);
}

/* Wants the lock, releases it meanwhile. */
static void
lose (struct buf *b)
{
  struct device *d = b->device;

  if (b->reported_seq == 0)
    atomic_store (&d->export->lost, b->err);
  atomic_store (&d->loss, b->err);
  atomic_fetch_add (&d->losses, 1);
  log_failed (b, false);
}

/* Flush. */

/* The dirty data of the export name that a flush waits for.  It does not wait
 * for data that has failed since the flush began, nor for data of other devices
 * that has ever failed.
 */
static unsigned
dirty_for_flush (struct conn *c, const void *what)
{
  uint64_t seq = *(const uint64_t *) what;
  unsigned kinds = 0;

  for (GList *l = c->device->export->dirty.head; l && !(kinds & DIRTY_OWN);
       l = l->next) {
    struct buf *b = l->data;

    if (b->seq > seq)
      break;
    if (b->device == c->device && b->failed_seq <= seq)
      kinds |= DIRTY_OWN;
    else if (b->device != c->device && b->failed_seq == 0)
      kinds |= DIRTY_OTHERS;
  }
  return kinds;
}

static void
submit_export (const struct export *x)
{
  QUEUE_FOREACH (struct buf, b, &x->engine->buffers.open, link) {
    if (b->device->export == x)
      order_submit_locked (b);
  }
}

/* Whether a flush that began at SEQ tries a FAILED buffer again.  It has
 * another connection's operation dispatched only once.
 */
static bool
may_try (struct conn *c, struct buf *b, uint64_t seq)
{
  return take_over (c, b)
    && (conn_may_call_for (c, b->conn) || b->failed_seq <= seq);
}

int
flush_begin (struct conn *c)
{
  struct engine *e = c->engine;
  struct device *d = c->device;
  bool is_retried = false;
  int err, first_err = 0;
  unsigned losses;
  struct buf *b;
  uint64_t seq, until_ns = 0;   /* one bound for all waits for other devices */

  if (atomic_load (&e->buffers.deferring) == 0)
    return 0;
  ENGINE_LOCK_THEN_DISPATCH (e);
  seq = e->buffers.seq;
  losses = atomic_load (&d->losses);
  submit_export (d->export);
  err = order_wait_locked (c, dirty_for_flush, &seq, 0, UINT64_MAX, &until_ns);
  while (err == 0 && (b = find_failed (d, seq)) != NULL) {
    if (b->state == BUF_FAILED && may_try (c, b, seq))
      err = try_again (c, b);
    else if (b->state == BUF_FAILED || b->failed_seq > seq)
      err = b->err;
    if (err && err != ESHUTDOWN && b->state == BUF_FAILED
        && is_hopeless (b, seq)) {
      first_err = first_err ? first_err : err;
      err = 0;
      lose (b);
    }
    else if (err == 0 && !is_retried) { /* the plugin may take writes again */
      is_retried = true;
      retry_all (c, is_of_device);
    }
    if (err == 0)
      err = order_wait_locked (c, dirty_for_flush, &seq, 0, UINT64_MAX,
                               &until_ns);
  }
  /* Another flush may have dropped data that this one waited for. */
  if (err == 0 && first_err == 0 && atomic_load (&d->losses) != losses)
    err = atomic_load (&d->loss);
  return first_err ? first_err : err;
}

/* The error of lost data, which this flush returns. */
static int
take_lost (struct device *d)
{
  int by_device = atomic_exchange (&d->lost, 0);
  int by_export = atomic_exchange (&d->export->lost, 0);

  d->lost_by_name = false;
  return by_device ? by_device : by_export;
}

int
flush_end (struct conn *c, int err)
{
  struct device *d = c->device;
  int lost;

  if (!atomic_load (&d->failing) && atomic_load (&d->export->lost) == 0)
    return err;
  /* The client may have gone: the next flush returns the error. */
  if (err == ESHUTDOWN)
    return err;
  ENGINE_LOCK_THEN_DISPATCH (c->engine);
  lost = take_lost (d);
  if (err == 0)
    err = lost;
  if (err == 0 && find_failed (d, UINT64_MAX) == NULL)
    atomic_store (&d->failing, false);
  for (GList *l = c->engine->buffers.failed.head; err && l; l = l->next) {
    struct buf *b = l->data;

    if (b->device == d)
      b->reported_seq = buffers_next_seq (c->engine);
  }
  return err;
}

void
flush_note_answer (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;

  if (!atomic_load (&c->device->failing))
    return;
  ENGINE_LOCK_THEN_DISPATCH (e);
  BUFFERS_FOREACH (b, e, offset, end)
    if (b->device == c->device && buf_is_waiting (b))
      b->reported_seq = 0;
}

/* The end of a connection. */

/* Failed data that the end of a connection has to care for. */
static bool
is_for_end (const struct conn *c, const struct buf *b)
{
  return b->conn == c || (b->device == c->device && c->device->conns == 1);
}

static struct buf *
find_for_end (const struct conn *c)
{
  QUEUE_FOREACH (struct buf, b, &c->engine->buffers.failed, link) {
    if (is_for_end (c, b))
      return b;
  }
  return NULL;
}

/* Waits until the connection may have less dirty data.  Returns whether hooks
 * were given up.  Workers may wait for a context that cannot be had, or hang
 * for another device, so that from UNTIL_NS on this thread does what is queued.
 */
static bool
wait_for_workers (struct conn *c, uint64_t until_ns)
{
  struct engine *e = c->engine;

  pool_wake_idle (c->pool);
  if (c->backend.hooks)
    return engine_wait_end (c, &e->order.progress);
  if (clock_ns () < until_ns)
    engine_wait_until (e, &e->order.progress, until_ns);
  else if (!order_do_queued_locked (c, 0, UINT64_MAX))
    engine_wait (e, &e->order.progress);
  return false;
}

void
flush_close (struct conn *c)
{
  struct engine *e = c->engine;
  struct device *d = c->device;
  bool is_given_up = false;
  uint64_t until_ns = clock_ns () + e->config.others_ns;
  struct buf *b;

  ENGINE_LOCK_THEN_DISPATCH (e);
  submit_export (d->export);
  /* Workers first: on this thread, whose client has gone, filters below that
   * sleep fail at once.
   */
  retry_all (c, is_for_end);
  for (;;) {
    /* Each time: another connection may have tried this one's failed data again
     * during the log.
     */
    while (c->n_dirty > 0)
      is_given_up |= wait_for_workers (c, until_ns);
    b = find_for_end (c);
    if (b == NULL)
      break;
    if (!is_given_up && take_over (c, b) && try_again (c, b) == 0)
      continue;
    if (b->state != BUF_FAILED)         /* newer data has replaced it */
      continue;
    if (d->conns == 1)
      lose (b);
    else {
      b->conn = NULL;
      log_failed (b, true);
    }
  }
  /* Now: a new connection of the name may have another device from here on. */
  device_note_gone (c);
  /* A client of another name has replaced data here: the next client of this
   * name is to hear of it.
   */
  if (--d->conns > 0)
    return;
  if (d->lost_by_name && atomic_load (&d->lost))
    atomic_store (&d->export->lost, atomic_load (&d->lost));
  else if (d->show_error)
    atomic_store (&d->export->lost, d->show_error);
}
