/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Buffers: see buffers.h.
 */
#include <errno.h>

#include "buffers.h"
#include "clock.h"
#include "engine.h"

/* The first bounds system calls, the second pages: under the lock. */
enum { GIVE_BACK_AT_ONCE = 16, GIVE_BACK_BYTES = 2 * 1024 * 1024 };
/* Even with all buffers in the tree, at most one counter in four is in use. */
enum { COUNTERS_PER_BUFFER = 4 };
/* From so many places on, the tree is faster. */
enum { MANY_PLACES = 256 };

static gint
compare (gconstpointer ap, gconstpointer bp, gpointer data G_GNUC_UNUSED)
{
  const struct buf *a = ap, *b = bp;

  if (a->base != b->base)
    return a->base < b->base ? -1 : 1;
  return a->seq < b->seq ? -1 : a->seq > b->seq;
}

int
buffers_init (struct engine *e, unsigned n, uint32_t size)
{
  struct buffers *s = &e->buffers;
  int err = slab_init (&s->slab, n, size);

  if (err)
    return err;
  s->counters_bits = g_bit_storage (COUNTERS_PER_BUFFER * n - 1);
  s->counters = g_try_new0 (atomic_uint, (gsize) 1 << s->counters_bits);
  if (s->counters == NULL)
    return ENOMEM;
  s->all = g_try_new0 (struct buf, n);
  if (s->all == NULL)
    return ENOMEM;
  s->n = n;
  s->give_back_ns = UINT64_MAX;
  s->tree = g_tree_new_full (compare, NULL, NULL, NULL);
  for (unsigned i = 0; i < n; i++) {
    struct buf *b = &s->all[i];

    b->engine = e;
    b->data = s->slab.data + (size_t) i * size;
    b->link.data = b->dirty_link.data = b;
    g_queue_push_tail_link (&s->free, &b->link);
  }
  return 0;
}

void
buffers_destroy (struct engine *e)
{
  if (e->buffers.tree)
    g_tree_unref (e->buffers.tree);
  g_free (e->buffers.all);
  g_free (e->buffers.counters);
  slab_destroy (&e->buffers.slab);
}

/* The tree. */

static struct buf *
overlapping_from (GTreeNode *node, uint64_t offset, uint64_t end)
{
  for (; node; node = g_tree_node_next (node)) {
    struct buf *b = g_tree_node_key (node);

    if (b->base >= end)
      return NULL;
    if (buf_overlaps (b, offset, end))
      return b;
  }
  return NULL;
}

struct buf *
buffers_first (struct engine *e, uint64_t offset, uint64_t end)
{
  /* A buffer that overlaps may begin up to a buffer size before. */
  uint32_t size = e->config.buffer_size;
  struct buf key = { .base = offset < size ? 0 : offset - size + 1 };

  return overlapping_from (g_tree_lower_bound (e->buffers.tree, &key), offset,
                           end);
}

struct buf *
buffers_next (struct buf *b, uint64_t offset, uint64_t end)
{
  return overlapping_from (g_tree_node_next (b->node), offset, end);
}

/* Adjacent places have counters far apart, so that the threads of one stream
 * share no cache line (Knuth's multiplicative hash).
 */
static atomic_uint *
counter_of (struct buffers *s, uint64_t offset)
{
  uint64_t hash = offset / s->slab.size * UINT64_C (0x9e3779b97f4a7c15);

  return &s->counters[hash >> (64 - s->counters_bits)];
}

bool
buffers_may_have (struct engine *e, uint64_t offset, uint64_t end)
{
  struct buffers *s = &e->buffers;

  if ((end - offset) / s->slab.size >= MANY_PLACES)
    return true;
  for (offset -= offset % s->slab.size; offset < end; offset += s->slab.size)
    if (atomic_load (counter_of (s, offset)) > 0)
      return true;
  return false;
}

static bool
have (const struct device *d, bool is_other, unsigned states, uint64_t offset,
      uint64_t end)
{
  BUFFERS_FOREACH (b, d->export->engine, offset, end)
    if ((b->device != d) == is_other && states >> b->state & 1)
      return true;
  return false;
}

bool
buffers_have (const struct device *d, unsigned states, uint64_t offset,
              uint64_t end)
{
  return have (d, false, states, offset, end);
}

bool
buffers_others_have (const struct device *d, unsigned states, uint64_t offset,
                     uint64_t end)
{
  return have (d, true, states, offset, end);
}

/* States. */

/* The queue where a buffer of this state is, if any. */
static GQueue *
queue_of (struct engine *e, enum buf_state state)
{
  switch (state) {
  case BUF_FREE: return &e->buffers.free;
  case BUF_READING: return &e->buffers.reading;
  case BUF_CLEAN: return &e->buffers.clean;
  case BUF_OPEN: return &e->buffers.open;
  case BUF_FAILED: return &e->buffers.failed;
  default: return NULL;
  }
}

/* FAILED and dirty buffers are in order of age.  Almost always the new one is
 * the youngest: search from there.
 */
static void
insert_by_age (GQueue *q, GList *link)
{
  struct buf *b = link->data;
  GList *after = q->tail;

  while (after && ((struct buf *) after->data)->seq > b->seq)
    after = after->prev;
  if (after)
    g_queue_insert_after_link (q, after, link);
  else
    g_queue_push_head_link (q, link);
}

#ifdef ASYNCPOOL_DEBUG
/* The states that may follow. */
static const unsigned followers[BUF_STATES] = {
  [BUF_FREE] = BUF_BIT (TAKEN),
  [BUF_TAKEN] = BUF_BIT (FREE) | BUF_BIT (READING) | BUF_BIT (OPEN),
  [BUF_READING] = BUF_BIT (CLEAN) | BUF_BIT (TAKEN),
  [BUF_CLEAN] = BUF_BIT (TAKEN),
  [BUF_OPEN] = BUF_BIT (READY),
  [BUF_READY] = BUF_BIT (WRITING) | BUF_BIT (FAILED) | BUF_BIT (TAKEN),
  /* READY: a piece is written, and there are others. */
  [BUF_WRITING] = BUF_BIT (READY) | BUF_BIT (FAILED) | BUF_BIT (TAKEN),
  [BUF_FAILED] = BUF_BIT (READY) | BUF_BIT (TAKEN),
};

#define check_transition(from, to) g_assert (followers[from] >> (to) & 1)
#else
#define check_transition(from, to) ((void) 0)
#endif

void
buffers_set_state (struct buf *b, enum buf_state state)
{
  struct engine *e = b->engine;
  GQueue *from = queue_of (e, b->state), *to = queue_of (e, state);
  bool was_dirty = buf_is_dirty (b), was_waiting = buf_is_waiting (b);

  check_transition (b->state, state);
  if (from)
    g_queue_unlink (from, &b->link);
  b->state = state;
  if (state == BUF_FAILED)
    insert_by_age (to, &b->link);
  else if (state == BUF_FREE)
    g_queue_push_head_link (to, &b->link);
  else if (to)
    g_queue_push_tail_link (to, &b->link);

  if (buf_is_dirty (b) && !was_dirty) {
    insert_by_age (&b->device->export->dirty, &b->dirty_link);
    b->conn->n_dirty++;
    b->device->n_dirty++;
  }
  else if (!buf_is_dirty (b) && was_dirty) {
    g_queue_unlink (&b->device->export->dirty, &b->dirty_link);
    b->conn->n_dirty--;
    b->device->n_dirty--;
  }
  if (buf_is_waiting (b) != was_waiting)
    atomic_fetch_add (&e->buffers.deferring, was_waiting ? -1 : 1);
}

/* Writers. */

bool
buffers_have_room (struct device *d)
{
  return d->n_dirty < limit_value (&d->write_limit);
}

/* The first writer whose device has room.  Prefer one that sleeps: any other
 * looks for a buffer before it sleeps.
 */
static struct writer *
first_writer (const struct buffers *s)
{
  struct writer *awake = NULL;

  QUEUE_FOREACH (struct writer, w, &s->writers, link) {
    if (!buffers_have_room (w->conn->device))
      continue;
    if (cond_is_waited_for (&w->woken))
      return w;
    awake = w;
  }
  return awake;
}

void
buffers_call_writer (struct engine *e)
{
  struct writer *w;

  if (e->buffers.writer_called || (w = first_writer (&e->buffers)) == NULL)
    return;
  e->buffers.writer_called = true;
  cond_signal (&w->woken);
}

void
buffers_wake_writers (struct engine *e)
{
  QUEUE_FOREACH (struct writer, w, &e->buffers.writers, link)
    cond_signal (&w->woken);
}

void
buffers_writer_runs (struct writer *w)
{
  w->conn->engine->buffers.writer_called = false;
}

void
buffers_add_writer (struct writer *w)
{
  struct buffers *s = &w->conn->engine->buffers;

  if (!w->waits) {
    w->waits = true;
    w->link.data = w;
    g_queue_push_tail_link (&s->writers, &w->link);
  }
  buffers_writer_runs (w);
}

void
buffers_remove_writer (struct writer *w)
{
  struct buffers *s = &w->conn->engine->buffers;

  if (!w->waits)
    return;
  g_queue_unlink (&s->writers, &w->link);
  s->writer_called = false;
  if (s->free.length + s->clean.length > 0)
    buffers_call_writer (w->conn->engine);
}

/* Freeing. */

static void
put (struct buf *b)
{
  struct engine *e = b->engine;

  b->dropped = false;
  b->conn = NULL;
  b->since_ns = clock_ns ();
  buffers_set_state (b, BUF_FREE);
  if (e->buffers.last_used == NULL)
    e->buffers.last_used = &b->link;
  buffers_call_writer (e);
}

void
buffers_give_back (struct engine *e, uint64_t now_ns)
{
  struct buffers *s = &e->buffers;
  unsigned left = CLAMP (GIVE_BACK_BYTES / s->slab.size, 1,
                         GIVE_BACK_AT_ONCE);

  buffers_evict_idle (e, now_ns);
  for (; s->last_used; s->last_used = s->last_used->prev) {
    struct buf *b = s->last_used->data;

    s->give_back_ns = MAX (b->since_ns + e->config.idle_ns, now_ns);
    if (s->give_back_ns > now_ns || left-- == 0)
      return;
    slab_give_back (&s->slab, b->data);
    b->memory_of = 0;
  }
  s->give_back_ns =
    s->free.length < s->n ? now_ns + e->config.idle_ns : UINT64_MAX;
}

void
buffers_put_if_unused (struct buf *b)
{
  if (b->dropped && b->pins + b->fillers == 0 && b->state == BUF_TAKEN)
    put (b);
}

/* Stops a prefetch that no worker has begun. */
static bool
cancel_reading (struct buf *b)
{
  if (!pool_cancel (b->conn->pool, &b->job))
    return false;
  b->conn->n_reading--;
  b->hooked = false;            /* if a worker was to start its hook */
  b->err = ECANCELED;
  cond_broadcast (&b->changed);
  return true;
}

static bool
is_ahead (const struct buf *b)
{
  return b->state == BUF_READING || b->state == BUF_CLEAN;
}

/* Prefetched data leaves. */
static void
note_waste (const struct buf *b)
{
  struct stats *stats = b->engine->stats;
  uint32_t n_read = b->used - b->skipped;

  if (b->state != BUF_CLEAN || b->err)
    return;
  if (n_read < b->hi)
    stats_add (stats, STATS_AHEAD_WASTED, b->hi - n_read);
  if (n_read == 0)
    stats_add (stats, STATS_AHEAD_UNREAD, 1);
}

void
buffers_remove (struct buf *b)
{
  note_waste (b);
  if (is_ahead (b)) {
    b->engine->buffers.n_ahead--;
    if (--b->conn->n_ahead == 0) {
      b->engine->buffers.readers--;
      b->device->readers--;
    }
  }
  g_tree_remove (b->engine->buffers.tree, b);
  b->node = NULL;
  atomic_fetch_sub (counter_of (&b->engine->buffers, b->base), 1);
  b->dropped = true;
  b->claimed = false;
  if (b->rest)
    g_array_unref (b->rest);
  b->rest = NULL;
  if (b->state != BUF_WRITING
      && (b->state != BUF_READING || cancel_reading (b)))
    buffers_set_state (b, BUF_TAKEN);
  buffers_put_if_unused (b);
}

static void
add_piece (GArray *pieces, uint64_t base, uint64_t from, uint64_t to)
{
  struct span p = { from - base, to - base };

  if (from < to)
    g_array_append_val (pieces, p);
}

void
buffers_cut (struct buf *b, uint64_t offset, uint64_t end)
{
  GArray *left;

  if (offset <= buf_start (b) && buf_end (b) <= end) {
    buffers_remove (b);
    return;
  }
  left = g_array_new (FALSE, FALSE, sizeof (struct span));
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span p = buf_piece (b, i);
    uint64_t from = b->base + p.lo, to = b->base + p.hi;

    add_piece (left, b->base, from, CLAMP (offset, from, to));
    add_piece (left, b->base, CLAMP (end, from, to), to);
  }
  b->lo = g_array_index (left, struct span, 0).lo;
  b->hi = g_array_index (left, struct span, 0).hi;
  g_array_remove_index (left, 0);
  if (b->rest)
    g_array_unref (b->rest);
  b->rest = NULL;
  if (left->len > 0)
    b->rest = g_steal_pointer (&left);
  g_clear_pointer (&left, g_array_unref);
}

/* Frees prefetched data that a client may still want: its stream learns of it.
 */
static void
evict (struct buf *b)
{
  b->conn->evicted_at = MIN (b->conn->evicted_at, b->base);
  buffers_remove (b);
}

void
buffers_drop (struct engine *e, uint64_t offset, uint64_t end)
{
  BUFFERS_FOREACH (b, e, offset, end) {
    if (is_ahead (b))
      buffers_remove (b);
  }
}

void
buffers_drop_others (struct engine *e, const struct conn *but,
                     uint64_t offset, uint64_t end)
{
  BUFFERS_FOREACH (b, e, offset, end) {
    if (is_ahead (b) && b->conn != but)
      evict (b);
  }
}

void
buffers_drop_conn (struct conn *c, uint64_t offset, uint64_t end)
{
  BUFFERS_FOREACH (b, c->engine, offset, end) {
    if (b->conn != c || !is_ahead (b))
      continue;
    if (buf_first_end (b) > end) {
      uint32_t skipped = end - MAX (buf_start (b), offset);

      b->used += skipped;
      b->skipped += skipped;
    }
    if (buf_first_end (b) <= end || (b->state == BUF_CLEAN && b->used >= b->hi))
      buffers_remove (b);
  }
}

static struct buf *
take_free (struct engine *e)
{
  GList *link = g_queue_peek_head_link (&e->buffers.free);

  if (link == NULL)
    return NULL;
  if (link == e->buffers.last_used)
    e->buffers.last_used = NULL;
  buffers_set_state (link->data, BUF_TAKEN);
  return link->data;
}

/* When a CLEAN buffer is idle: its connection follows no stream any more. */
static uint64_t
idle_ns (const struct buf *b)
{
  return MAX (b->since_ns, b->conn->read_ns) + STREAM_IDLE_NS;
}

uint64_t
buffers_idle_ns (const struct engine *e)
{
  uint64_t first = UINT64_MAX;

  QUEUE_FOREACH (struct buf, b, &e->buffers.clean, link)
    first = MIN (first, idle_ns (b));
  return first;
}

void
buffers_evict_idle (struct engine *e, uint64_t now_ns)
{
  QUEUE_FOREACH (struct buf, b, &e->buffers.clean, link) {
    if (b->since_ns + STREAM_IDLE_NS >= now_ns)
      return;
    if (b->pins == 0 && idle_ns (b) < now_ns)
      buffers_remove (b);
  }
}

/* Whether prefetches have more than their half. */
static bool
is_much_ahead (const struct engine *e)
{
  return e->buffers.n_ahead > e->config.buffers / 2;
}

/* Frees the buffer that was prefetched last, as its stream comes to the others
 * first.  Considers only connections with more than SHARE buffers.
 */
static bool
evict_clean (struct engine *e, unsigned share)
{
  for (GList *l = e->buffers.clean.tail; l; l = l->prev) {
    struct buf *b = l->data;

    if (b->pins == 0 && b->conn->n_ahead > share) {
      evict (b);
      return true;
    }
  }
  return false;
}

/* Frees the last prefetch that is queued, if no client waits for it.  The
 * workers begin with the first one: if the last one has begun, all have.
 */
static bool
evict_reading (struct engine *e)
{
  for (GList *l = e->buffers.reading.tail; l; l = l->prev) {
    struct buf *b = l->data;

    if (b->dropped || b->pins > 0)
      continue;
    if (!cancel_reading (b))
      return false;
    buffers_set_state (b, BUF_CLEAN);
    evict (b);
    return true;
  }
  return false;
}

struct buf *
buffers_take_for_write (struct engine *e)
{
  struct buf *b = take_free (e);

  if (b || e->buffers.n_ahead == 0)
    return b;
  buffers_evict_idle (e, clock_ns ());
  b = take_free (e);
  if (b == NULL && is_much_ahead (e)
      && (evict_reading (e) || evict_clean (e, 0)))
    b = take_free (e);
  return b;
}

unsigned
buffers_share (const struct conn *c)
{
  struct engine *e = c->engine;
  struct device *d = c->device;
  bool is_new = c->n_ahead == 0;
  unsigned limit = limit_value (&d->read_limit);

  return MIN (e->config.buffers / (e->buffers.readers + is_new),
              MAX (limit / (d->readers + is_new), 1));
}

struct buf *
buffers_take_for_ahead (struct conn *c)
{
  struct engine *e = c->engine;
  unsigned share = buffers_share (c);
  struct buf *b;

  if (c->n_ahead >= share
      || (e->buffers.writers.length > 0 && is_much_ahead (e)))
    return NULL;
  b = take_free (e);
  if (b == NULL && evict_clean (e, share))
    b = take_free (e);
  return b;
}

uint64_t
buffers_next_seq (struct engine *e)
{
  return ++e->buffers.seq;
}

void
buffers_enter (struct buf *b, enum buf_state state, struct conn *c,
               uint64_t base, uint32_t lo, uint32_t hi)
{
  struct engine *e = b->engine;

  b->conn = c;
  b->device = c->device;
  b->base = base;
  b->lo = lo;
  b->hi = hi;
  b->seq = buffers_next_seq (e);
  b->used = b->skipped = 0;
  b->err = 0;
  b->failed_seq = 0;
  b->reported_seq = 0;
  /* A plugin that does not fill the buffer shows no bytes of another device. */
  if (b->memory_of != 0 && b->memory_of != c->device->id)
    b->io.clear_bytes = e->buffers.slab.size;
  b->memory_of = c->device->id;
  if (e->buffers.give_back_ns == UINT64_MAX) {
    e->buffers.give_back_ns = clock_ns () + e->config.idle_ns;
    writeback_wake (e);
  }
  buffers_set_state (b, state);
  if (state == BUF_READING) {
    c->n_reading++;
    e->buffers.n_ahead++;
    if (c->n_ahead++ == 0) {
      e->buffers.readers++;
      c->device->readers++;
    }
  }
  b->node = g_tree_insert_node (e->buffers.tree, b, b);
  atomic_fetch_add (counter_of (&e->buffers, base), 1);
  /* Pairs with the fence in direct_end: a prefetch that direct_end does not see
   * reads the new data.
   */
  atomic_thread_fence (memory_order_seq_cst);
}

void
buffers_pin (struct buf *b)
{
  b->pins++;
}

void
buffers_unpin (struct buf *b)
{
  if (--b->pins > 0)
    return;
  cond_broadcast (&b->changed);
  buffers_put_if_unused (b);
  if (b->state == BUF_CLEAN)
    buffers_call_writer (b->engine);    /* it may be evicted now */
}
