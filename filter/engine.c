#include <errno.h>
#include <string.h>

#include "ahead.h"
#include "behind.h"
#include "buffers.h"
#include "copy.h"
#include "engine.h"
#include "fanout.h"
#include "guard.h"
#include "handover.h"
#include "split.h"

/* Birth and death. */

int
engine_new (const struct engine_config *config, struct engine **ep)
{
  struct engine *e = g_new0 (struct engine, 1);
  int err;

  e->config = *config;
  guard_init (&e->lock);

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

/* A connection that a hook, or a thread that has replied to one, still does something for. */
static struct conn *
first_hooked (struct engine *e)
{
  for (unsigned i = 0; i < e->config.buffers; i++)
    if (e->bufs[i].hooked)
      return e->bufs[i].conn;
  for (GList *l = e->conns.head; l; l = l->next)
    if (((struct conn *) l->data)->resuming > 0)
      return l->data;
  return NULL;
}

/* nbdkit may leave connections open when it ends: what the plugin still does for them uses the slab. */
static void
wait_for_hooks (struct engine *e)
{
  struct conn *c;

  ENGINE_LOCK_IN_SCOPE (e);
  while ((c = first_hooked (e)) != NULL) {
    backend_set_gone (&c->backend);
    engine_wait_plugin (c, &e->progress);
  }
}

static void
report_lost (const GQueue *q, behind_report *report)
{
  for (GList *l = q->head; l; l = l->next) {
    struct buf *b = l->data;

    report (b->export->name, buf_start (b), b->hi - b->lo, false);
  }
}

void
engine_stop (struct engine *e, behind_report *report)
{
  if (e->pool == NULL)
    return;
  {
    ENGINE_LOCK_IN_SCOPE (e);
    e->stopping = true;
    cond_signal (&e->linger);
  }
  pthread_join (e->linger_thread, NULL);
  wait_for_hooks (e);
  pool_free (e->pool);
  e->pool = NULL;
  report_lost (&e->failed, report);
  report_lost (&e->dirty, report);      /* of connections that nbdkit did not close */
}

static void
free_export (struct export *x)
{
  g_free (x->name);
  g_free (x);
}

static void
free_conn (struct conn *c)
{
  pthread_mutex_destroy (&c->streams_lock);
  g_free (c);
}

void
engine_free (struct engine *e)
{
  GList *l;

  while (atomic_load (&e->waking) > 0)  /* for microseconds, if at all */
    g_thread_yield ();
  while ((l = g_queue_pop_head_link (&e->conns)) != NULL)
    free_conn (l->data);
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

/* Does what a connection says of its export fit this one? */
static bool
is_same_export (const struct export *a, const struct export *x)
{
  return a->shared && x->shared && a->tls == x->tls && a->size == x->size && a->unit == x->unit
    && a->min_block == x->min_block && strcmp (a->name, x->name) == 0;
}

/* Puts it on the list, or frees it where it is there already.  Wants the lock. */
static struct export *
get_export (struct engine *e, struct export *x)
{
  for (GList *l = e->exports.head; l; l = l->next) {
    struct export *known = l->data;

    if (is_same_export (known, x)) {
      free_export (x);
      known->refs++;
      return known;
    }
  }
  x->link.data = x;
  x->refs = 1;
  g_queue_push_tail_link (&e->exports, &x->link);
  return x;
}

/* Exports without a connection and without FAILED data are forgotten.  Wants the lock. */
static void
put_export (struct engine *e, struct export *x)
{
  if (--x->refs > 0)
    return;
  g_queue_unlink (&e->exports, &x->link);
  free_export (x);
}

/* Wants no lock.  NULL: no memory. */
static struct export *
new_export (const struct engine *e, const char *name, bool tls, const struct backend *b)
{
  struct export *x = g_try_new0 (struct export, 1);
  size_t size = strlen (name) + 1;      /* up to 4 KiB, from a client: g_strdup would abort */

  if (x == NULL || (x->name = g_try_malloc (size)) == NULL) {
    g_free (x);
    return NULL;
  }
  memcpy (x->name, name, size);
  x->shared = b->shared;
  x->tls = tls;
  x->size = b->size;
  x->unit = unit_of (e, b);
  x->min_block = b->min_block;
  return x;
}

int
conn_open (struct engine *e, const char *export_name, bool tls, const struct backend *backend,
           struct conn **cp)
{
  struct export *x;
  struct conn *c;

  if (backend->min_block > e->config.buffer_size)
    return EINVAL;
  x = new_export (e, export_name, tls, backend);
  c = g_try_new0 (struct conn, 1);
  if (c == NULL || x == NULL) {
    if (x)
      free_export (x);
    g_free (c);
    return ENOMEM;
  }
  c->engine = e;
  c->backend = *backend;
  c->unit = x->unit;
  c->backend.stats = e->stats;
  c->backend.pieces = &e->pieces;
  c->backend.max_pieces = e->config.buffers;
  c->link.data = c;
  c->lost = UINT64_MAX;
  guard_init (&c->streams_lock);

  ENGINE_LOCK_IN_SCOPE (e);
  c->export = get_export (e, x);
  c->backend.pace_read = &c->export->pace_read;
  c->backend.pace_write = &c->export->pace_write;
  g_queue_push_tail_link (&e->conns, &c->link);
  if (e->config.write == WRITE_BEHIND) {
    atomic_store (&c->behind, true);
    atomic_fetch_add (&e->deferring, 1);
  }
  *cp = c;
  return 0;
}

void
conn_close (struct conn *c, behind_report *report)
{
  struct engine *e = c->engine;

  backend_set_gone (&c->backend);
  behind_close (c, report);
  {
    ENGINE_LOCK_IN_SCOPE (e);
    buffers_drop_conn (c, 0, UINT64_MAX);
    while (c->n_reading + c->resuming > 0)
      engine_wait_plugin (c, &e->progress);
    g_queue_unlink (&e->conns, &c->link);
    if (atomic_load (&c->behind))
      atomic_fetch_sub (&e->deferring, 1);
    put_export (e, c->export);
  }
  free_conn (c);
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

/* Every request is between these two. */

/* Bursts come once per latency; 1 ms covers what the scheduler does. */
static uint64_t
epoch_ns (struct pace *pace)
{
  return 1000000 + 4 * pace_wait_ns (pace);
}

static uint64_t
begin (struct conn *c, struct pace *pace)
{
  uint64_t now = stats_now_ns ();

  depth_begin (&c->depth, 1, now, epoch_ns (pace));
  return now;
}

static void
end (struct conn *c, enum stats_kind kind, uint64_t start_ns, uint64_t bytes)
{
  depth_end (&c->depth, 1);
  stats_end (c->engine->stats, kind, start_ns, bytes);
}

/* Whether other threads could help this client: the device waits, and the client does not keep as
 * many requests in flight itself.
 */
static bool
is_worth (struct conn *c, struct pace *pace)
{
  return pace_wait_ns (pace) > 0 && depth_peak (&c->depth) < c->engine->config.buffers;
}

/* Reads. */

/* What was read ahead is not served any longer than this: someone beside the server may have changed
 * the device, and without us a client would see that.
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
  uint64_t now_ns;
  char *buf;
  uint64_t offset, end;
  unsigned n;
  struct pin *pins, few[32];
};

enum { PINS_READY, PINS_AGAIN, PINS_NO_MEMORY };

/* Pins every buffer that holds a part of what is wanted, by place and age.  Wants the lock. */
static int
pin_all (struct read *r, uint64_t now_ns)
{
  struct engine *e = r->c->engine;
  struct buf *b, *next;
  unsigned n = 0;

  for (b = buffers_first (e, r->offset, r->end); b; b = next) {
    next = buffers_next (b, r->offset, r->end);
    if (b->export != r->c->export)
      continue;
    if (b->fillers > 0) {
      engine_wait (e, &b->changed);
      return PINS_AGAIN;
    }
    if (b->state == BUF_CLEAN && now_ns > b->since_ns + AHEAD_MAX_AGE_NS)
      buffers_remove (b);
    else
      n++;
  }
  if (n > G_N_ELEMENTS (r->few)) {
    r->pins = g_try_new (struct pin, n);
    if (r->pins == NULL)
      return PINS_NO_MEMORY;
  }
  for (b = buffers_first (e, r->offset, r->end); b; b = buffers_next (b, r->offset, r->end))
    if (b->export == r->c->export) {
      buffers_pin (b);
      r->pins[r->n++] = (struct pin) {
        .b = b, .from = MAX (buf_start (b), r->offset), .to = MIN (buf_end (b), r->end),
        .reading = b->state == BUF_READING
      };
    }
  return PINS_READY;
}

/* Dirty data of another export in the range.  It may be the same device: then it must be there
 * before we read.  Wants the lock.
 */
static bool
others_dirty (struct read *r)
{
  struct engine *e = r->c->engine;

  for (struct buf *b = buffers_first (e, r->offset, r->end); b;
       b = buffers_next (b, r->offset, r->end))
    if (b->export != r->c->export && buf_is_dirty (b))
      return true;
  return false;
}

static int
read_device (struct conn *c, void *buf, uint32_t count, uint64_t offset)
{
  int err;

  atomic_fetch_add_explicit (&c->direct_reads, 1, memory_order_relaxed);
  if (is_worth (c, c->backend.pace_read))
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
    ahead_missed (r->c, r->missed, r->now_ns);
    r->missed = NULL;
  }
  return read_device (r->c, r->buf + (from - r->offset), to - from, from);
}

/* The first pin at or after I that alone holds all that is wanted of its unit.  Data of which only a
 * part waits is laid over what the plugin has.
 */
static unsigned
next_whole (const struct read *r, unsigned i)
{
  uint64_t unit = r->c->unit;

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

/* From the buffers.  What was still to be read ahead, and failed, comes from the plugin after all, but
 * not where we have given up just that.
 */
static int
read_pins (struct read *r, bool *waited)
{
  struct engine *e = r->c->engine;
  int err = 0;

  for (unsigned i = 0; i < r->n && err == 0; i++) {
    struct pin *p = &r->pins[i];
    bool good = true, given_up = false;

    if (p->reading) {
      ENGINE_LOCK_IN_SCOPE (e);
      *waited |= p->b->state == BUF_READING;
      good = ahead_wait (r->c, p->b);
      given_up = was_given_up (r->c, p->b);
    }
    if (good)
      copy_bytes (r->buf + (p->from - r->offset), p->b->data + (p->from - p->b->base), p->to - p->from);
    else if (given_up)
      err = ESHUTDOWN;
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
  int how, err;

  r.c = c;
  r.missed = missed;
  r.now_ns = now_ns;
  r.buf = buf;
  r.offset = offset;
  r.end = offset + count;
  r.n = 0;
  r.pins = r.few;
  engine_lock (e);
  if (others_dirty (&r)) {
    engine_unlock (e);
    behind_settle (c, r.offset, r.end);
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
  uint64_t now = begin (c, c->backend.pace_read);
  struct stream *s = NULL;
  bool waited = false, covered = false;
  int err;

  if (e->config.read == READ_AHEAD && pace_wait_ns (c->backend.pace_read) > 0)
    s = ahead_note (c, count, offset, now, &covered);
  if (atomic_load (&e->in_tree) > 0)
    err = read_buffered (c, covered ? s : NULL, buf, count, offset, now, &waited);
  else {
    if (covered)
      ahead_missed (c, s, now);
    waited = true;
    err = read_device (c, buf, count, offset);
  }
  if (s)
    ahead_answered (c, s, count, waited, now);
  end (c, STATS_READ, now, count);
  return err;
}

/* Writes. */

/* What does not wait: to the plugin, in order with what waits. */
static int
write_through (struct conn *c, const void *buf, uint32_t count, uint64_t offset, unsigned flags)
{
  struct mutator m;
  int err;

  mutator_begin (c, &m, count, offset);
  if (flags == 0 && is_worth (c, c->backend.pace_write))
    err = fanout_pwrite (c->engine->pool, &c->backend, c->unit, buf, count, offset);
  else
    err = backend_pwrite (&c->backend, buf, count, offset, flags);
  mutator_end (c, &m, err, buf, false);
  return err;
}

/* Clients that keep more in flight than the buffers hold would only wait for these.  Not so small
 * writes, of which most join a buffer.
 */
static bool
may_wait (struct conn *c, uint32_t count, uint64_t offset, unsigned flags)
{
  uint32_t mask = c->backend.min_block - 1;

  return atomic_load (&c->behind) && flags == 0 && ((count | offset) & mask) == 0
    && !atomic_load (&c->export->failing) && is_worth (c, c->backend.pace_write)
    && (count < c->unit || depth_peak (&c->engine->filling) <= c->engine->config.buffers);
}

static int
write_all (struct conn *c, const char *buf, uint32_t count, uint64_t offset, unsigned flags,
           uint64_t now_ns)
{
  uint32_t done = 0;

  if (may_wait (c, count, offset, flags))
    while (done < count) {
      uint32_t n = MIN (c->unit - (offset + done) % c->unit, count - done);

      if (!behind_write (c, buf + done, n, offset + done, &now_ns))
        break;
      done += n;
    }
  return done < count ? write_through (c, buf + done, count - done, offset + done, flags) : 0;
}

int
engine_write (struct conn *c, const void *buf, uint32_t count, uint64_t offset, unsigned flags)
{
  uint64_t now = begin (c, c->backend.pace_write);
  /* Of a device that does not wait nothing is held: it is spared the shared counter. */
  bool waits = pace_wait_ns (c->backend.pace_write) > 0;
  int err;

  if (flags & BACKEND_FUA)
    knows_flush (c);
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
  uint64_t now = begin (c, c->backend.pace_write);
  struct mutator m;
  int err;

  if (flags & BACKEND_FUA)
    knows_flush (c);
  mutator_begin (c, &m, count, offset);
  err = (kind == STATS_ZERO ? ops->zero : ops->trim) (c->backend.handle, count, offset, flags);
  mutator_end (c, &m, err, NULL, kind == STATS_TRIM);
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
engine_flush (struct conn *c)
{
  uint64_t now = begin (c, c->backend.pace_write);
  int err;

  knows_flush (c);
  err = behind_drain (c);
  if (err == 0 && c->backend.can_flush)
    err = c->backend.ops->flush (c->backend.handle);
  if (err == 0)
    behind_flushed (c);
  end (c, STATS_FLUSH, now, 0);
  return err;
}

bool
engine_settle (struct conn *c, uint32_t count, uint64_t offset)
{
  return atomic_load (&c->engine->deferring) > 0 && behind_settle (c, offset, offset + count);
}
