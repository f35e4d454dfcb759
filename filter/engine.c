/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Connections, and what each request of a client does: see engine.h.
 */
#include <errno.h>
#include <string.h>

#include "ahead.h"
#include "behind.h"
#include "buffers.h"
#include "clock.h"
#include "engine.h"
#include "fanout.h"
#include "handover.h"
#include "lock.h"
#include "split.h"

/* Birth and death. */

int
engine_new (const struct engine_config *config, struct engine **ep)
{
  struct engine *e = g_new0 (struct engine, 1);
  int err;

  e->config = *config;
  e->patient_since_ns = UINT64_MAX;
  lock_init (&e->lock);

  err = slab_init (&e->slab, config->buffers, config->buffer_size);
  if (err == 0)
    err = buffers_init (e);
  if (err == 0 && (e->stats = stats_new ()) == NULL)
    err = ENOMEM;
  if (err) {
    engine_free (e);
    return err;
  }
  *ep = e;
  return 0;
}

int
engine_start (struct engine *e)
{
  g_autoptr (GError) error = NULL;
  int err;

  slab_populate (&e->slab);
  e->pool = pool_new (e->config.threads, &error);
  if (e->pool == NULL)
    return EAGAIN;
  err = pthread_create (&e->linger_thread, NULL, behind_linger, e);
  if (err) {
    pool_free (e->pool);
    e->pool = NULL;
  }
  return err;
}

/* Waits until nothing is read ahead through the connection any more. */
static void
wait_for_reads (struct conn *c)
{
  struct engine *e = c->engine;

  handover_set_conn (c);
  {
    ENGINE_LOCK_IN_SCOPE (e);
    while (c->n_reading > 0)
      engine_wait_end (c, &e->progress);
  }
  handover_set_conn (NULL);
}

/* nbdkit may leave connections open when it ends: they end here. */
static void
close_all (struct engine *e)
{
  for (GList *l = e->conns.head; l; l = l->next) {
    conn_close (l->data);
    wait_for_reads (l->data);
  }
}

void
engine_stop (struct engine *e)
{
  if (e->pool == NULL)
    return;
  close_all (e);
  {
    ENGINE_LOCK_IN_SCOPE (e);
    e->stopping = true;
    cond_signal (&e->linger);
  }
  pthread_join (e->linger_thread, NULL);
  pool_free (e->pool);
  e->pool = NULL;
}

static void
free_export (struct export *x)
{
  g_free (x->name);
  g_free (x);
}

void
engine_free (struct engine *e)
{
  GList *l;

  while ((l = g_queue_pop_head_link (&e->exports)) != NULL)
    free_export (l->data);
  buffers_destroy (e);
  slab_destroy (&e->slab);
  stats_free (e->stats);
  pthread_mutex_destroy (&e->lock);
  g_free (e);
}

/* Connections. */

/* The largest power of two that neither a buffer nor the plugin's largest block is smaller than. */
static uint32_t
unit_of (const struct engine *e, const struct backend *b)
{
  uint32_t unit = e->config.buffer_size;

  while (unit > b->max_block)
    unit /= 2;
  return unit;
}

/* A client can make up export names.  So the errors of lost data are kept for
 * this many names without a connection.
 */
enum { LOST_EXPORTS_MAX = 64 };

/* Forgets names without a connection: those without a loss, and the oldest that are too many.  Wants the
 * lock.
 */
static void
forget_exports (struct engine *e)
{
  unsigned lost = 0;

  for (GList *l = e->exports.tail, *prev; l; l = prev) {
    struct export *x = l->data;

    prev = l->prev;
    if (x->devices == 0 && (atomic_load (&x->lost) == 0 || ++lost > LOST_EXPORTS_MAX)) {
      g_queue_unlink (&e->exports, l);
      free_export (x);
    }
  }
}

/* Wants the lock.  Puts FRESH on the list, or frees it where the name is known. */
static struct export *
get_export (struct engine *e, struct export *fresh)
{
  for (GList *l = e->exports.head; l; l = l->next) {
    struct export *x = l->data;

    if (strcmp (x->name, fresh->name) == 0) {
      free_export (fresh);
      return x;
    }
  }
  g_queue_push_tail_link (&e->exports, &fresh->link);
  return fresh;
}

/* The device of a new connection: FRESH, or one that it shares; then FRESH is freed.  Wants the lock. */
static struct device *
get_device (struct export *x, struct device *fresh)
{
  struct engine *e = x->engine;

  for (GList *l = e->devices.head; fresh->shared && l; l = l->next) {
    struct device *d = l->data;

    if (d->export == x && d->shared && d->conns > 0) {
      g_free (fresh);
      d->conns++;
      d->refs++;
      return d;
    }
  }
  fresh->export = x;
  fresh->conns = fresh->refs = 1;
  fresh->link.data = fresh;
  g_queue_push_tail_link (&e->devices, &fresh->link);
  x->devices++;
  return fresh;
}

/* Wants the lock. */
static void
put_device (struct device *d)
{
  struct engine *e = d->export->engine;

  if (--d->refs > 0)
    return;
  g_queue_unlink (&e->devices, &d->link);
  if (--d->export->devices == 0) {      /* to the end of the list: it was left last */
    g_queue_unlink (&e->exports, &d->export->link);
    g_queue_push_tail_link (&e->exports, &d->export->link);
  }
  g_free (d);
  forget_exports (e);
}

/* Wants no lock.  NULL: no memory. */
static struct export *
new_export (struct engine *e, const char *name)
{
  struct export *x = g_try_new0 (struct export, 1);
  size_t size = strlen (name) + 1;      /* up to 4 KiB, from a client: g_strdup would abort */

  if (x == NULL || (x->name = g_try_malloc (size)) == NULL) {
    g_free (x);
    return NULL;
  }
  memcpy (x->name, name, size);
  x->engine = e;
  x->link.data = x;
  return x;
}

int
conn_open (struct engine *e, const char *export_name, const struct backend *backend, struct conn **cp)
{
  struct export *x;
  struct device *d;
  struct conn *c;

  if (backend->min_block > e->config.buffer_size)
    return EINVAL;
  x = new_export (e, export_name);
  d = g_try_new0 (struct device, 1);
  c = g_try_new0 (struct conn, 1);
  if (c == NULL || d == NULL || x == NULL) {
    if (x)
      free_export (x);
    g_free (d);
    g_free (c);
    return ENOMEM;
  }
  d->shared = backend->shared;
  d->size = backend->size;
  d->unit = unit_of (e, backend);
  d->min_block = backend->min_block;
  c->engine = e;
  c->backend = *backend;
  c->unit = d->unit;
  c->backend.stats = e->stats;
  c->backend.pieces = &e->pieces;
  c->backend.max_pieces = e->config.buffers;
  c->link.data = c;
  c->lost = UINT64_MAX;
  lock_init (&c->streams_lock);
  lock_init (&c->wrote_lock);

  ENGINE_LOCK_IN_SCOPE (e);
  c->device = d = get_device (get_export (e, x), d);
  c->shares = d->size == backend->size && d->unit == c->unit && d->min_block == backend->min_block;
  c->backend.pace_read = &d->pace_read;
  c->backend.pace_write = &d->pace_write;
  g_queue_push_tail_link (&e->conns, &c->link);
  if (e->config.write == WRITE_BEHIND) {
    atomic_store (&c->behind, true);
    atomic_fetch_add (&e->deferring, 1);
  }
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
  handover_set_conn (c);
  backend_begin_call ();
  return true;
}

void
conn_leave (struct conn *c)
{
  struct engine *e = c->engine;

  handover_set_conn (NULL);
  if (atomic_fetch_sub (&c->calls, CONN_CALL) == CONN_CALL + CONN_CLOSED) {
    ENGINE_LOCK_IN_SCOPE (e);
    cond_broadcast (&e->progress);
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
    ENGINE_LOCK_IN_SCOPE (e);
    while (atomic_load (&c->calls) != CONN_CLOSED)
      engine_wait (e, &e->progress);
  }
  handover_set_conn (c);
  backend_begin_call ();
  behind_close (c);
  {
    ENGINE_LOCK_IN_SCOPE (e);
    buffers_drop_conn (c, 0, UINT64_MAX);
    if (atomic_exchange (&c->behind, false))
      atomic_fetch_sub (&e->deferring, 1);
  }
  handover_set_conn (NULL);
}

void
conn_free (struct conn *c)
{
  wait_for_reads (c);
  {
    ENGINE_LOCK_IN_SCOPE (c->engine);
    g_queue_unlink (&c->engine->conns, &c->link);
    changes_add_all (&c->device->gone_flushing, &c->flushing);
    changes_add_all (&c->device->gone, &c->wrote);      /* no call changes it any more */
    put_device (c->device);
  }
  pthread_mutex_destroy (&c->streams_lock);
  pthread_mutex_destroy (&c->wrote_lock);
  g_free (c);
}

/* A flush or a FUA write shows that the client knows of volatile caches. */
static void
knows_flush (struct conn *c)
{
  struct engine *e = c->engine;

  if (atomic_load_explicit (&c->behind, memory_order_relaxed) || e->config.write != WRITE_AUTO)
    return;
  ENGINE_LOCK_IN_SCOPE (e);
  if (!atomic_load (&c->behind)) {
    atomic_fetch_add (&e->deferring, 1);
    atomic_store (&c->behind, true);
  }
}

/* Changes that other connections may not see before a flush.
 *
 * Through another connection of the device the plugin may show old data until
 * a flush.  So a connection that has changed bytes is not served what another
 * one has prefetched of them (may_read), and a flush drops what others have
 * prefetched of its connections' changes.  A client that is alone loses
 * nothing.
 */

/* A flush of the device begins: when it ends, all connections see the changes
 * that were answered before.
 */
static void
begin_showing (struct device *d)
{
  struct engine *e = d->export->engine;

  ENGINE_LOCK_IN_SCOPE (e);
  d->flushes++;
  changes_add_all (&d->gone_flushing, &d->gone);
  d->gone.n = 0;
  for (GList *l = e->conns.head; l; l = l->next) {
    struct conn *c = l->data;

    if (c->device != d)
      continue;
    LOCK_IN_SCOPE (&c->wrote_lock);
    changes_add_all (&c->flushing, &c->wrote);
    c->wrote.n = 0;
  }
}

static void
end_showing (struct device *d, int err)
{
  struct engine *e = d->export->engine;

  ENGINE_LOCK_IN_SCOPE (e);
  d->flushes--;
  for (GList *l = e->conns.head; err == 0 && l; l = l->next) {
    struct conn *c = l->data;

    if (c->device != d)
      continue;
    for (unsigned i = 0; i < c->flushing.n; i++)
      buffers_drop_others (c, c->flushing.at[i].from, c->flushing.at[i].to);
    if (d->flushes == 0)        /* else another flush is to show some of it */
      c->flushing.n = 0;
  }
  for (unsigned i = 0; err == 0 && i < d->gone_flushing.n; i++)
    buffers_drop (e, d->gone_flushing.at[i].from, d->gone_flushing.at[i].to);
  if (err == 0 && d->flushes == 0)
    d->gone_flushing.n = 0;
}

/* Every request is between these two. */

/* Bursts come once per latency; 1 ms covers what the scheduler does. */
static uint64_t
epoch_ns (struct pace *pace)
{
  return 1000000 + 4 * pace_wait_ns (pace);
}

/* False: the connection has ended. */
static bool
begin (struct conn *c, struct pace *pace, uint64_t *now_ns)
{
  if (!conn_enter (c))
    return false;
  *now_ns = clock_ns ();
  depth_begin (&c->depth, 1, *now_ns, epoch_ns (pace));
  return true;
}

static void
end (struct conn *c, enum stats_kind kind, uint64_t start_ns, uint64_t bytes)
{
  depth_end (&c->depth, 1);
  stats_end (c->engine->stats, kind, start_ns, bytes);
  conn_leave (c);
}

/* Whether other threads could help this client: the device waits, and the client does not keep as
 * many requests in flight itself.
 */
static bool
is_worth (struct conn *c, struct pace *pace)
{
  return pace_wait_ns (pace) > 0 && depth_peak (&c->depth) < c->engine->config.buffers;
}

/* Whether the plugin may refuse the request for its place or size.  It gets
 * such a request whole, so that it refuses all of it or nothing.
 */
static bool
is_refusable (const struct conn *c, uint32_t count, uint64_t offset)
{
  const struct backend *b = &c->backend;

  return ((offset | count) & (b->min_block - 1)) != 0 || count > b->max_block;
}

/* Reads. */

/* Prefetched data is not served any longer than this: something beside the
 * server may have changed the device, and without the filter a client would see
 * that.
 */
#define AHEAD_MAX_AGE_NS UINT64_C (5000000000)

struct pin {
  struct buf *b;
  uint64_t from, to;            /* what the request wants of it */
  bool reading;                 /* it was not there yet */
};

struct read {
  struct conn *c;
  struct stream *missed;        /* where to say that a buffer is missing; NULL: nowhere, or done */
  char *buf;
  uint64_t offset, end;
  bool whole;                   /* refusable: waiting data is laid over it */
  unsigned n;
  struct pin *pins, few[32];
};

enum { PINS_READY, PINS_AGAIN, PINS_NO_MEMORY };

/* Whether bytes [OFFSET, END) have changes of this connection that no flush has shown.  Wants the lock. */
static bool
has_unshown (struct conn *c, uint64_t offset, uint64_t end)
{
  LOCK_IN_SCOPE (&c->wrote_lock);
  return changes_overlap (&c->wrote, offset, end) || changes_overlap (&c->flushing, offset, end);
}

/* Whether the request may be served from this buffer. */
static bool
may_read (const struct read *r, const struct buf *b)
{
  struct conn *c = r->c;

  if (b->device != c->device)
    return false;
  if (buf_is_waiting (b))
    return true;
  if (r->whole)
    return false;
  if (b->conn == c)
    return true;
  return c->shares && !(c->backend.can_flush && has_unshown (c, MAX (buf_start (b), r->offset),
                                                             MIN (buf_end (b), r->end)));
}

static void
pin_pieces (struct read *r, struct buf *b)
{
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span s = buf_piece (b, i);
    struct pin p = {
      .b = b, .from = MAX (b->base + s.lo, r->offset), .to = MIN (b->base + s.hi, r->end),
      .reading = b->state == BUF_READING
    };

    if (p.from >= p.to)
      continue;
    buffers_pin (b);
    r->pins[r->n++] = p;
  }
}

/* Pins every buffer that holds a part of what is wanted, by place and age.  Wants the lock. */
static int
pin_all (struct read *r, uint64_t now_ns)
{
  struct engine *e = r->c->engine;
  struct buf *b, *next;
  unsigned n = 0;

  for (b = buffers_first (e, r->offset, r->end); b; b = next) {
    next = buffers_next (b, r->offset, r->end);
    if (!may_read (r, b))
      continue;
    if (b->fillers > 0) {
      engine_wait (e, &b->changed);
      return PINS_AGAIN;
    }
    if (b->state == BUF_CLEAN && now_ns > b->since_ns + AHEAD_MAX_AGE_NS)
      buffers_remove (b);
    else
      n += buf_n_pieces (b);
  }
  if (n > G_N_ELEMENTS (r->few)) {
    r->pins = g_try_new (struct pin, n);
    if (r->pins == NULL)
      return PINS_NO_MEMORY;
  }
  for (b = buffers_first (e, r->offset, r->end); b; b = buffers_next (b, r->offset, r->end))
    if (may_read (r, b))
      pin_pieces (r, b);
  return PINS_READY;
}

/* Dirty data of another device in the range.  It may be the same device: then it must be there
 * before we read.  Wants the lock.
 */
static bool
others_dirty (struct read *r)
{
  struct engine *e = r->c->engine;

  for (struct buf *b = buffers_first (e, r->offset, r->end); b;
       b = buffers_next (b, r->offset, r->end))
    if (b->device != r->c->device && buf_is_dirty (b))
      return true;
  return false;
}

static int
read_device (struct conn *c, void *buf, uint32_t count, uint64_t offset)
{
  int err;

  atomic_fetch_add_explicit (&c->direct_reads, 1, memory_order_relaxed);
  if (is_worth (c, c->backend.pace_read) && !is_refusable (c, count, offset))
    err = fanout_pread (c->engine->pool, &c->backend, c->unit, buf, count, offset);
  else
    err = backend_pread (&c->backend, buf, count, offset);
  atomic_fetch_sub_explicit (&c->direct_reads, 1, memory_order_relaxed);
  return err;
}

/* A part of the request, from the plugin. */
static int
read_part (struct read *r, uint64_t from, uint64_t to)
{
  if (r->missed) {
    ahead_missed (r->c, r->missed);
    r->missed = NULL;
  }
  return read_device (r->c, r->buf + (from - r->offset), to - from, from);
}

/* The first pin at or after I that alone holds all that is wanted of its unit.
 * Data of which only a part waits is laid over what the plugin has.
 */
static unsigned
next_whole (const struct read *r, unsigned i)
{
  uint64_t unit = r->c->device->unit;

  if (r->whole)
    return r->n;
  for (; i < r->n; i++) {
    uint64_t base = r->pins[i].b->base;

    if (r->pins[i].from == MAX (base, r->offset) && r->pins[i].to == MIN (base + unit, r->end))
      break;
  }
  return i;
}

/* From the plugin, what no buffer holds. */
static int
read_gaps (struct read *r, bool *waited)
{
  uint64_t from = r->offset;
  int err = 0;

  for (unsigned i = next_whole (r, 0); err == 0 && i < r->n; i = next_whole (r, i + 1)) {
    if (from < r->pins[i].from) {
      *waited = true;
      err = read_part (r, from, r->pins[i].from);
    }
    from = MAX (from, r->pins[i].to);
  }
  if (err == 0 && from < r->end) {
    *waited = true;
    err = read_part (r, from, r->end);
  }
  return err;
}

/* From the buffers.  What was still to be read ahead, and failed, comes from the plugin after all. */
static int
read_pins (struct read *r, bool *waited)
{
  struct engine *e = r->c->engine;
  int err = 0;

  for (unsigned i = 0; i < r->n && err == 0; i++) {
    struct pin *p = &r->pins[i];
    bool good = true;

    if (p->reading) {
      ENGINE_LOCK_IN_SCOPE (e);
      *waited |= p->b->state == BUF_READING;
      err = ahead_wait (r->c, p->b);
      good = p->b->err == 0;
    }
    if (err)
      break;
    if (good)
      memcpy (r->buf + (p->from - r->offset), p->b->data + (p->from - p->b->base), p->to - p->from);
    else
      err = read_part (r, p->from, p->to);
  }
  return err;
}

/* What a stream has read it does not read again: the buffer is better used for what comes. */
static void
unpin_all (struct read *r)
{
  struct engine *e = r->c->engine;

  ENGINE_LOCK_IN_SCOPE (e);
  for (unsigned i = 0; i < r->n; i++) {
    struct pin *p = &r->pins[i];

    if (p->b->state == BUF_CLEAN && !p->b->dropped) {
      p->b->used += p->to - p->from;
      stats_add (e->stats, STATS_AHEAD_USED, p->to - p->from);
      if (p->b->used >= p->b->hi)
        buffers_remove (p->b);
    }
    buffers_unpin (p->b);
  }
}

static int
read_buffered (struct conn *c, struct stream *missed, void *buf, uint32_t count, uint64_t offset,
               uint64_t now_ns, bool *waited)
{
  struct engine *e = c->engine;
  struct read r;                /* not initialized as a whole: few is large */
  int how, err = 0;

  r.c = c;
  r.missed = missed;
  r.buf = buf;
  r.offset = offset;
  r.end = offset + count;
  r.whole = is_refusable (c, count, offset);
  r.n = 0;
  r.pins = r.few;
  engine_lock (e);
  if (others_dirty (&r)) {
    engine_unlock (e);
    err = behind_settle (c, r.offset, r.end);
    if (err)
      return err;
    engine_lock (e);
  }
  while ((how = pin_all (&r, now_ns)) == PINS_AGAIN)
    ;
  engine_unlock (e);
  if (how == PINS_NO_MEMORY)
    return ENOMEM;

  err = read_gaps (&r, waited);
  if (err == 0)
    err = read_pins (&r, waited);
  unpin_all (&r);
  if (r.pins != r.few)
    g_free (r.pins);
  return err;
}

int
engine_read (struct conn *c, void *buf, uint32_t count, uint64_t offset)
{
  struct engine *e = c->engine;
  uint64_t now;
  struct stream *s = NULL;
  bool waited = false, covered = false;
  int err;

  if (!begin (c, c->backend.pace_read, &now))
    return ESHUTDOWN;
  if (e->config.read == READ_AHEAD && c->shares
      && pace_wait_ns (c->backend.pace_read) > 0
      && !is_refusable (c, count, offset))
    s = ahead_note (c, count, offset, now, &covered);
  if (atomic_load (&e->in_tree) > 0)
    err = read_buffered (c, covered ? s : NULL, buf, count, offset, now, &waited);
  else {
    if (covered)
      ahead_missed (c, s);
    waited = true;
    err = read_device (c, buf, count, offset);
  }
  if (s)
    ahead_answered (c, s, count, err, waited, now);
  end (c, STATS_READ, now, count);
  return err;
}

int
engine_read_late (struct conn *c, void *buf, uint32_t count, uint64_t offset)
{
  bool waited;

  return read_buffered (c, NULL, buf, count, offset, clock_ns (), &waited);
}

/* Writes. */

/* What does not wait: to the plugin, in order with what waits. */
static int
write_through (struct conn *c, const void *buf, uint32_t count, uint64_t offset, unsigned flags)
{
  struct mutator m;
  int err = mutator_begin (c, &m, count, offset);

  if (err)
    return err;
  if (flags == 0 && is_worth (c, c->backend.pace_write)
      && !is_refusable (c, count, offset))
    err = fanout_pwrite (c->engine->pool, &c->backend, c->unit, buf, count, offset);
  else
    err = backend_pwrite (&c->backend, buf, count, offset, flags);
  mutator_end (c, &m, err);
  return err;
}

/* Clients that keep more in flight than the buffers hold would only wait for these.  Not so small
 * writes, of which most join a buffer.
 */
static bool
may_wait (struct conn *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return atomic_load (&c->behind) && c->shares && flags == 0
    && !is_refusable (c, count, offset) && !atomic_load (&c->device->failing)
    && is_worth (c, c->backend.pace_write)
    && (count < c->unit
        || depth_peak (&c->engine->filling) <= c->engine->config.buffers);
}

static int
write_all (struct conn *c, const char *buf, uint32_t count, uint64_t offset, unsigned flags,
           uint64_t now_ns)
{
  uint32_t done = 0;
  int err = may_wait (c, count, offset, flags) ? 0 : EAGAIN;

  while (done < count && err == 0) {
    uint32_t n = MIN (c->unit - (offset + done) % c->unit, count - done);

    err = behind_write (c, buf + done, n, offset + done, &now_ns);
    if (err == 0)
      done += n;
  }
  if (err == EAGAIN)
    err = write_through (c, buf + done, count - done, offset + done, flags);
  return err;
}

int
engine_write (struct conn *c, const void *buf, uint32_t count, uint64_t offset, unsigned flags)
{
  uint64_t now;
  bool waits;
  int err;

  if (!begin (c, c->backend.pace_write, &now))
    return ESHUTDOWN;
  if (flags & BACKEND_FUA)
    knows_flush (c);
  /* Writes to a fast device are not deferred: they need not touch the shared
   * counter.
   */
  waits = pace_wait_ns (c->backend.pace_write) > 0;
  if (waits)
    depth_begin (&c->engine->filling, count / c->unit, now, epoch_ns (c->backend.pace_write));
  err = write_all (c, buf, count, offset, flags, now);
  if (waits)
    depth_end (&c->engine->filling, count / c->unit);
  end (c, STATS_WRITE, now, count);
  return err;
}

/* A zero or a trim. */
static int
clear (struct conn *c, enum stats_kind kind, uint32_t count, uint64_t offset, unsigned flags)
{
  const struct backend_ops *ops = c->backend.ops;
  struct mutator m;
  uint64_t now;
  int err;

  if (!begin (c, c->backend.pace_write, &now))
    return ESHUTDOWN;
  if (flags & BACKEND_FUA)
    knows_flush (c);
  err = mutator_begin (c, &m, count, offset);
  if (err == 0) {
    err = (kind == STATS_ZERO ? ops->zero : ops->trim) (c->backend.handle, count, offset, flags);
    mutator_end (c, &m, err);
  }
  end (c, kind, now, count);
  return err;
}

int
engine_zero (struct conn *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return clear (c, STATS_ZERO, count, offset, flags);
}

int
engine_trim (struct conn *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return clear (c, STATS_TRIM, count, offset, flags);
}

int
engine_flush (struct conn *c, bool is_own)
{
  uint64_t now;
  int err;

  if (!begin (c, c->backend.pace_write, &now))
    return ESHUTDOWN;
  if (is_own)
    knows_flush (c);
  begin_showing (c->device);
  err = behind_flush_begin (c);
  if (err == 0 && c->backend.can_flush)
    err = c->backend.ops->flush (c->backend.handle);
  end_showing (c->device, err);
  err = behind_flush_end (c, err);
  end (c, STATS_FLUSH, now, 0);
  return err;
}

bool
engine_settle (struct conn *c, uint32_t count, uint64_t offset)
{
  if (atomic_load (&c->engine->deferring) == 0)
    return false;
  behind_settle (c, offset, offset + count);
  return behind_has_failed (c, offset, offset + count);
}
