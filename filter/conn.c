/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Connections and their requests: see conn.h.
 */
#include <errno.h>
#include <limits.h>

#include "clock.h"
#include "dispatch.h"
#include "fanout.h"
#include "flush.h"
#include "lock.h"
#include "read.h"
#include "readahead.h"

/* The life of a connection. */

/* The largest power of two that is not larger than a buffer or the plugin's
 * largest block.
 */
static uint32_t
unit_of (const struct engine *e, const struct backend *b)
{
  uint32_t unit = e->config.buffer_size;

  while (unit > b->max_block)
    unit /= 2;
  return unit;
}

/* A context has one operation in flight.  A wait for it is not in the time that
 * operations take, so the limit does not see that queue.
 */
static unsigned
most_in_flight (const struct engine *e, const struct backend *b,
                unsigned n_buffers)
{
  unsigned most = e->config.adapts_to;

  if (most == 0)
    return e->config.buffers;
  most = MIN (most, n_buffers);
  return b->serial ? MIN (most, CONN_PER_CONTEXT * e->config.contexts) : most;
}

static void
set_large (const struct engine *e, const struct backend *b, struct limit *l,
           bool beside)
{
  limit_set_large (l, e->config.large_size,
                   most_in_flight (e, b, e->config.large_buffers),
                   b->serial ? e->config.contexts : UINT_MAX, beside);
}

/* Raises deferring before it sets defers: so direct_begin misses no connection
 * that defers.  Wants the lock.
 */
static void
defer_from_now_on (struct conn *c)
{
  if (atomic_load (&c->defers))
    return;
  atomic_fetch_add (&c->engine->buffers.deferring, 1);
  atomic_store (&c->defers, true);
}

/* The contexts that the connection uses.  NULL: it has its own one only. */
static struct contexts *
join_contexts (struct engine *e, const char *export_name,
               const struct backend *backend)
{
  struct contexts *s, *fresh;
  unsigned more = e->config.contexts - 1;
  int err;

  if (!backend->serial || !backend->may_open || more == 0)
    return NULL;
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    s = contexts_find (e, export_name, backend, more);
  }
  if (s)
    return s;
  err = contexts_new (e, export_name, backend, more, &fresh);
  if (err) {
    e->config.log_no_contexts (export_name, err);
    return NULL;
  }
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    s = contexts_join (fresh);
  }
  if (s != fresh)
    contexts_free (fresh);
  return s;
}

static void
join (struct conn *c, struct device *fresh_device,
      const struct backend *backend, struct contexts *contexts)
{
  struct engine *e = c->engine;
  struct device *d;

  ENGINE_LOCK_THEN_DISPATCH (e);
  c->device = d = device_join (fresh_device);
  atomic_init (&c->show_error, d->show_error);
  c->shares = d->size == backend->size && d->unit == c->unit
    && d->min_block == backend->min_block
    && d->large_units == c->large_units;
  c->backend = *backend;
  c->backend.stats = e->stats;
  c->backend.pieces = &e->pieces;
  c->backend.max_pieces = e->config.buffers;
  c->backend.read_speed = &d->read_speed;
  c->backend.write_speed = &d->write_speed;
  c->backend.read_limit = &d->read_limit;
  c->backend.write_limit = &d->write_limit;
  c->backend.extents_speed = &d->extents_speed;
  lock_init (&c->backend.own_lock);
  c->backend.contexts = contexts;
  c->pool = contexts ? contexts->pool : e->pool;
  g_queue_push_tail_link (&e->conns, &c->link);
  if (e->config.write == WRITE_BEHIND)
    defer_from_now_on (c);
}

int
conn_open (struct engine *e, const char *export_name,
           const struct backend *backend, struct conn **cp)
{
  struct device *d;
  struct conn *c;
  uint32_t unit;

  if (backend->min_block > e->config.buffer_size)
    return EINVAL;
  unit = unit_of (e, backend);
  d = device_new (e, export_name, unit,
                  most_in_flight (e, backend, e->config.buffers));
  c = g_try_new0 (struct conn, 1);
  if (c == NULL || d == NULL) {
    if (d)
      device_discard (d);
    g_free (c);
    return ENOMEM;
  }
  c->engine = e;
  c->unit = unit;
  c->large_units = d->large_units = 1;
  if (e->config.large_buffers > 0
      && backend->max_block >= e->config.large_size) {
    c->large_units = d->large_units = e->config.large_size / unit;
    set_large (e, backend, &d->read_limit, true);
    limit_has_large (&d->read_limit, true);
    set_large (e, backend, &d->write_limit, false);
  }
  d->shared = backend->shared;
  d->size = backend->size;
  d->min_block = backend->min_block;
  c->link.data = c;
  c->evicted_at = UINT64_MAX;
  lock_init_ranked (&c->streams_lock, LOCK_OUTER);
  lock_init_ranked (&c->wrote_lock, LOCK_LEAF);

  join (c, d, backend, join_contexts (e, export_name, backend));
  *cp = c;
  return 0;
}

bool
conn_enter (struct conn *c)
{
  if (atomic_fetch_add (&c->calls, CONN_CALL) & CONN_CLOSED) {
    conn_leave (c);
    return false;
  }
  dispatch_set_conn (c);
  backend_begin_call ();
  return true;
}

void
conn_leave (struct conn *c)
{
  struct engine *e = c->engine;

  dispatch_set_conn (NULL);
  if (atomic_fetch_sub (&c->calls, CONN_CALL) == CONN_CALL + CONN_CLOSED) {
    ENGINE_LOCK_THEN_DISPATCH (e);
    cond_broadcast (&e->order.progress);
  }
}

void
conn_close (struct conn *c)
{
  struct engine *e = c->engine;

  backend_set_gone (&c->backend);       /* calls under way may give up */
  if (atomic_fetch_or (&c->calls, CONN_CLOSED) & CONN_CLOSED)
    return;
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    while (atomic_load (&c->calls) != CONN_CLOSED)
      engine_wait (e, &e->order.progress);
  }
  extents_close (c);
  dispatch_set_conn (c);
  backend_begin_call ();
  flush_close (c);
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    buffers_drop_conn (c, 0, UINT64_MAX);
    if (atomic_exchange (&c->defers, false))
      atomic_fetch_sub (&e->buffers.deferring, 1);
  }
  dispatch_set_conn (NULL);
}

void
conn_wait_for_prefetches (struct conn *c)
{
  struct engine *e = c->engine;

  dispatch_set_conn (c);
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    while (c->n_reading > 0)
      engine_wait_end (c, &e->order.progress);
  }
  dispatch_set_conn (NULL);
  extents_wait (c);
}

void
conn_free (struct conn *c)
{
  conn_wait_for_prefetches (c);
  {
    ENGINE_LOCK_THEN_DISPATCH (c->engine);
    g_queue_unlink (&c->engine->conns, &c->link);
    device_put (c->device);
    /* engine_stop frees them all. */
    if (c->backend.contexts && !c->engine->stopping)
      contexts_put (c->backend.contexts);
  }
  pthread_mutex_destroy (&c->backend.own_lock);
  lock_destroy (&c->streams_lock);
  lock_destroy (&c->wrote_lock);
  g_free (c);
}

/* The frame of every request. */

/* Bursts come once per latency; 1 ms covers the scheduler's delays. */
static uint64_t
epoch_ns (struct speed *s)
{
  return 1000000 + 4 * speed_wait_ns (s);
}

/* KiB of data that the request would pass through buffers. */
static unsigned
kib_of (enum stats_kind kind, uint32_t count)
{
  return kind == STATS_READ || kind == STATS_WRITE ? count / 1024 : 0;
}

/* False: the connection has ended. */
static bool
begin (struct conn *c, enum stats_kind kind, uint32_t count, uint64_t *now_ns)
{
  struct speed *s = kind == STATS_READ
    ? c->backend.read_speed : c->backend.write_speed;

  if (!conn_enter (c))
    return false;
  *now_ns = clock_ns ();
  depth_begin (&c->depth, 1, *now_ns, epoch_ns (s));
  depth_begin (&c->depth_kib, kib_of (kind, count), *now_ns, epoch_ns (s));
  return true;
}

static void
end (struct conn *c, enum stats_kind kind, uint32_t count, uint64_t start_ns)
{
  depth_end (&c->depth, 1);
  depth_end (&c->depth_kib, kib_of (kind, count));
  stats_end (c->engine->stats, kind, start_ns, count);
  conn_leave (c);
}

/* Whether there is a thread that may call the plugin beside the client's
 * requests.
 */
static bool
has_hands (const struct conn *c)
{
  return !c->backend.serial
    || (c->backend.contexts && contexts_are_usable (c->backend.contexts));
}

static bool
is_allowed (unsigned n, struct limit *l)
{
  if (n <= limit_in_usual (l))
    return true;
  limit_hit (l);
  return false;
}

bool
conn_gains (struct conn *c, bool is_write)
{
  struct backend *b = &c->backend;

  return speed_wait_ns (is_write ? b->write_speed : b->read_speed) > 0
    && has_hands (c)
    && is_allowed (depth_peak (&c->depth) + 1,
                   is_write ? b->write_limit : b->read_limit);
}

uint32_t
conn_piece (struct conn *c, uint32_t count)
{
  const struct contexts *s = c->backend.contexts;
  uint64_t piece = c->unit, depth = MAX (depth_peak (&c->depth), 1);

  while (s && count * depth > piece * s->max && piece < count)
    piece *= 2;
  return piece;
}

bool
conn_may_call_for (const struct conn *c, const struct conn *other)
{
  return other == c
    || (other->backend.hooks == NULL && !other->backend.serial);
}

bool
conn_writes_alone (const struct conn *c)
{
  return c->backend.contexts && !c->device->shared;
}

bool
conn_is_refusable (const struct conn *c, uint32_t count, uint64_t offset)
{
  const struct backend *b = &c->backend;

  return ((offset | count) & (b->min_block - 1)) != 0 || count > b->max_block;
}

/* Counts a read or a write of a device that copies (speed.h).  No thread makes
 * it faster, so it is passed on.
 */
static void
note_fast (struct conn *c, struct speed *s)
{
  if (speed_is_known (s) && speed_wait_ns (s) == 0)
    stats_add (c->engine->stats, STATS_FAST, 1);
}

/* A flush or a FUA write shows that the client expects a volatile cache. */
static void
enable_writeback (struct conn *c)
{
  if (c->engine->config.write == WRITE_AUTO
      && !atomic_load_explicit (&c->defers, memory_order_relaxed)) {
    ENGINE_LOCK_THEN_DISPATCH (c->engine);
    defer_from_now_on (c);
  }
}

/* Reads. */

/* Whether buffers can make a request of COUNT bytes faster.  While the device
 * waits, the client's other requests in flight go on.  To pass their data
 * through buffers would cost about 3/4 ns per byte.  If that takes longer than
 * the wait, buffers make the client slower.
 */
static bool
buffers_gain (struct conn *c, struct speed *s, uint32_t count)
{
  uint64_t all = (uint64_t) depth_peak (&c->depth_kib) * 1024;
  bool has_others = depth_peak (&c->depth) > 1 && all > count;
  uint64_t others = has_others ? all - count : 0;

  return speed_wait_ns (s) > others * 3 / 4;
}

/* The client waits for the device, or nothing is known yet and this is its only
 * request.
 */
static bool
may_wait (struct conn *c, uint32_t count)
{
  struct speed *s = c->backend.read_speed;

  return buffers_gain (c, s, count)
    || (!speed_is_known (s) && depth_peak (&c->depth) == 1);
}

static bool
may_prefetch (struct conn *c, uint32_t count, uint64_t offset)
{
  return c->engine->config.read == READ_AHEAD && c->shares
    && may_wait (c, count) && has_hands (c)
    && !conn_is_refusable (c, count, offset);
}

int
conn_read (struct conn *c, void *buf, uint32_t count, uint64_t offset)
{
  uint64_t now_ns;
  struct stream *s = NULL;
  struct stream_late late = { 0 };
  bool covered = false;
  int err;

  if (!begin (c, STATS_READ, count, &now_ns))
    return ESHUTDOWN;
  note_fast (c, c->backend.read_speed);
  if (may_prefetch (c, count, offset))
    s = readahead_note (c, count, offset, now_ns, &covered, &late);
  err = read_serve (c, covered ? s : NULL, buf, count, offset, now_ns,
                    &late);
  if (s)
    readahead_advance (c, s, count, err, &late, now_ns);
  end (c, STATS_READ, count, now_ns);
  return err;
}

int
conn_read_closed (struct conn *c, void *buf, uint32_t count, uint64_t offset)
{
  struct stream_late late = { 0 };

  return read_serve (c, NULL, buf, count, offset, clock_ns (), &late);
}

/* Writes. */

/* Straight to the plugin, in order with waiting data. */
static int
write_through (struct conn *c, const void *buf, uint32_t count,
               uint64_t offset, unsigned flags)
{
  struct direct d;
  int err = direct_begin (c, &d, count, offset);

  if (err)
    return err;
  if (flags == 0 && conn_gains (c, true)
      && !conn_writes_alone (c) && !conn_is_refusable (c, count, offset))
    err = fanout_pwrite (c->pool, &c->backend, conn_piece (c, count), buf,
                         count, offset);
  else
    err = backend_pwrite (&c->backend, buf, count, offset, flags);
  direct_end (c, &d, err);
  return err;
}

/* If all clients keep more in flight than the limit allows, deferred writes
 * would only wait for buffers.  Writes below a unit do not count, as most of
 * them join a buffer.
 */
static bool
may_defer (struct conn *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return atomic_load (&c->defers) && c->shares && flags == 0
    && !conn_writes_alone (c)
    && !conn_is_refusable (c, count, offset)
    && !atomic_load (&c->device->failing)
    && buffers_gain (c, c->backend.write_speed, count)
    && conn_gains (c, true)
    && (count < c->unit
        || is_allowed (depth_peak (&c->engine->writeback.filling),
                       c->backend.write_limit));
}

static int
write_all (struct conn *c, const char *buf, uint32_t count, uint64_t offset,
           unsigned flags, uint64_t now_ns)
{
  struct device *d = c->device;
  unsigned losses = atomic_load (&d->losses);
  uint32_t done = 0;
  int err = may_defer (c, count, offset, flags) ? 0 : EAGAIN;

  while (done < count && err == 0) {
    uint32_t n = MIN (c->unit - (offset + done) % c->unit, count - done);

    err = writeback_hold (c, buf + done, n, offset + done, &now_ns);
    if (err == 0)
      done += n;
  }
  if (err == EAGAIN)
    err = write_through (c, buf + done, count - done, offset + done, flags);
  if (err || done == 0)
    return err;
  flush_note_answer (c, offset, offset + done);
  /* While this write waits for a buffer or writes its rest, one flush can
   * return the error of its first bytes, and a second one can drop them.  So
   * the check is needed.
   *
   * Between it and nbdkit's answer, this is still possible: one flush ends with
   * the error, and after that a second one begins, drops the data and ends with
   * the error.  A flush after the answer succeeds then.  Or one flush ends
   * there with the error, and all connections of the device end without another
   * one.  The next client of the export gets no error then.
   */
  return atomic_load (&d->losses) != losses ? atomic_load (&d->loss) : 0;
}

int
conn_write (struct conn *c, const void *buf, uint32_t count, uint64_t offset,
            unsigned flags)
{
  struct depth *filling = &c->engine->writeback.filling;
  struct speed *s = c->backend.write_speed;
  uint64_t now_ns;
  bool is_slow;
  int err;

  if (!begin (c, STATS_WRITE, count, &now_ns))
    return ESHUTDOWN;
  note_fast (c, s);
  if (flags & BACKEND_FUA)
    enable_writeback (c);
  /* A fast device defers nothing: spare it the shared counter. */
  is_slow = speed_wait_ns (s) > 0;
  if (is_slow)
    depth_begin (filling, count / c->unit, now_ns, epoch_ns (s));
  err = write_all (c, buf, count, offset, flags, now_ns);
  if (is_slow)
    depth_end (filling, count / c->unit);
  end (c, STATS_WRITE, count, now_ns);
  return err;
}

static int
zero_or_trim (struct conn *c, enum stats_kind kind, uint32_t count,
              uint64_t offset, unsigned flags)
{
  struct direct d;
  uint64_t now_ns;
  int err;

  if (!begin (c, kind, count, &now_ns))
    return ESHUTDOWN;
  if (flags & BACKEND_FUA)
    enable_writeback (c);
  err = direct_begin (c, &d, count, offset);
  if (err == 0) {
    err = kind == STATS_ZERO
      ? backend_zero (&c->backend, count, offset, flags)
      : backend_trim (&c->backend, count, offset, flags);
    direct_end (c, &d, err);
  }
  end (c, kind, count, now_ns);
  return err;
}

int
conn_zero (struct conn *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return zero_or_trim (c, STATS_ZERO, count, offset, flags);
}

int
conn_trim (struct conn *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return zero_or_trim (c, STATS_TRIM, count, offset, flags);
}

int
conn_flush (struct conn *c, bool is_own)
{
  uint64_t now_ns;
  int err;

  if (!begin (c, STATS_FLUSH, 0, &now_ns))
    return ESHUTDOWN;
  if (is_own)
    enable_writeback (c);
  err = flush_begin (c);
  if (err == 0)
    err = device_flush (c);
  if (err == 0)
    err = device_take_show_error (c);
  err = flush_end (c, err);
  end (c, STATS_FLUSH, 0, now_ns);
  return err;
}

int
conn_extents (struct conn *c, uint32_t count, uint64_t offset, bool is_one,
              struct extentset *answer)
{
  uint64_t start_ns = clock_ns ();
  int err;

  if (!conn_enter (c))
    return ESHUTDOWN;
  err = extents_serve (c, count, offset, is_one, answer);
  stats_end (c->engine->stats, STATS_EXTENTS, start_ns, count);
  conn_leave (c);
  return err;
}
