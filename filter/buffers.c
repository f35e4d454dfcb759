/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Buffers: see buffers.h.
 */
#include <errno.h>

#include "buffers.h"
#include "clock.h"
#include "engine.h"

/* At one time, under the lock: at most GIVE_BACK_BYTES.  Each buffer counts as
 * GIVE_BACK_LEAST at least, as it needs a system call.
 */
enum { GIVE_BACK_LEAST = 128 * 1024, GIVE_BACK_BYTES = 2 * 1024 * 1024 };
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

static uint32_t
size_of (const struct buf *b)
{
  const struct engine_config *c = &b->engine->config;

  return b->is_large ? c->large_size : c->buffer_size;
}

/* Returns false on overflow. */
static bool
add_bytes (size_t *bytes, unsigned n, uint32_t size)
{
  size_t more;

  return !__builtin_mul_overflow (n, size, &more)
    && !__builtin_add_overflow (*bytes, more, bytes);
}

int
buffers_init (struct engine *e)
{
  const struct engine_config *c = &e->config;
  struct buffers *s = &e->buffers;
  unsigned n = c->buffers + c->large_buffers;
  size_t bytes = 0;
  char *data;
  int err;

  if (!add_bytes (&bytes, c->buffers, c->buffer_size)
      || !add_bytes (&bytes, c->large_buffers, c->large_size))
    return ENOMEM;
  err = slab_init (&s->slab, bytes);
  if (err)
    return err;
  s->place = c->large_buffers > 0 ? c->large_size : c->buffer_size;
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
  data = s->slab.data;
  for (unsigned i = 0; i < n; i++) {
    struct buf *b = &s->all[i];

    b->engine = e;
    b->is_large = i >= c->buffers;
    b->data = data;
    data += size_of (b);
    b->link.data = b->dirty_link.data = b;
    g_queue_push_tail_link (&s->free[b->is_large].queue, &b->link);
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
  /* A buffer that overlaps begins in the same place or later. */
  struct buf key = { .base = offset - offset % e->buffers.place };

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
  uint64_t hash = offset / s->place * UINT64_C (0x9e3779b97f4a7c15);

  return &s->counters[hash >> (64 - s->counters_bits)];
}

bool
buffers_may_have (struct engine *e, uint64_t offset, uint64_t end)
{
  struct buffers *s = &e->buffers;

  if ((end - offset) / s->place >= MANY_PLACES)
    return true;
  for (offset -= offset % s->place; offset < end; offset += s->place)
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

/* The queue that holds the buffer in this state, or NULL. */
static GQueue *
queue_of (struct buf *b, enum buf_state state)
{
  struct buffers *s = &b->engine->buffers;

  switch (state) {
  case BUF_FREE: return &s->free[b->is_large].queue;
  case BUF_READING: return &s->reading;
  case BUF_CLEAN: return &s->clean;
  case BUF_OPEN: return &s->open;
  case BUF_FAILED: return &s->failed;
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
  GQueue *from = queue_of (b, b->state), *to = queue_of (b, state);
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
  unsigned in_flight = limit_in_usual (&d->write_limit);

  /* For large writes, as much again waits: then whole groups are ready when
   * writes end.
   */
  return d->n_dirty
    < (limit_is_large (&d->write_limit) ? 2 * in_flight : in_flight);
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
  if (s->free[false].queue.length + s->clean.length > 0)
    buffers_call_writer (w->conn->engine);
}

/* Freeing. */

static void
put (struct buf *b)
{
  struct free_buffers *free = &b->engine->buffers.free[b->is_large];

  b->dropped = false;
  b->conn = NULL;
  b->since_ns = clock_ns ();
  buffers_set_state (b, BUF_FREE);
  if (free->last_used == NULL)
    free->last_used = &b->link;
  if (!b->is_large)
    buffers_call_writer (b->engine);
}

/* Gives memory back until *LEFT is used up; the last buffer may exceed it.
 * Returns when the next buffer is due; UINT64_MAX: none has memory.
 */
static uint64_t
give_back (struct engine *e, struct free_buffers *free, uint64_t now_ns,
           int *left)
{
  for (; free->last_used; free->last_used = free->last_used->prev) {
    struct buf *b = free->last_used->data;
    uint64_t due_ns = MAX (b->since_ns + e->config.idle_ns, now_ns);

    if (due_ns > now_ns || *left <= 0)
      return due_ns;
    *left -= MAX (size_of (b), GIVE_BACK_LEAST);
    slab_give_back (b->data, size_of (b));
    b->memory_of = 0;
  }
  return UINT64_MAX;
}

void
buffers_give_back (struct engine *e, uint64_t now_ns)
{
  struct buffers *s = &e->buffers;
  int left = GIVE_BACK_BYTES;
  uint64_t due_ns[2];

  buffers_evict_idle (e, now_ns);
  for (unsigned i = 0; i < 2; i++)
    due_ns[i] = give_back (e, &s->free[i], now_ns, &left);
  s->give_back_ns = MIN (due_ns[0], due_ns[1]);
  if (s->give_back_ns == UINT64_MAX
      && s->free[0].queue.length + s->free[1].queue.length < s->n)
    s->give_back_ns = now_ns + e->config.idle_ns;
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

/* How many units the prefetch has. */
static unsigned
buf_units (const struct buf *b)
{
  return (b->hi + b->device->unit - 1) / b->device->unit;
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
    b->engine->buffers.n_ahead -= !b->is_large;
    b->conn->ahead_units -= buf_units (b);
    if (b->conn->ahead_units == 0) {
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
    uint32_t block = b->device->min_block;
    uint64_t rest = (end + block - 1) / block * block;

    /* A client that writes what it has read still wants the rest. */
    if (b->is_large && b->state == BUF_CLEAN && b->pins == 0
        && offset <= buf_start (b) && rest < buf_first_end (b)) {
      b->lo = rest - b->base;
      b->used = MAX (b->used, b->lo);
    }
    else if (is_ahead (b))
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
take_free (struct engine *e, bool is_large)
{
  struct free_buffers *free = &e->buffers.free[is_large];
  GList *link = g_queue_peek_head_link (&free->queue);

  if (link == NULL)
    return NULL;
  if (link == free->last_used)
    free->last_used = NULL;
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
  if (e->buffers.taken_ns + STREAM_IDLE_NS < now_ns)
    e->buffers.for_writers = 0;
  QUEUE_FOREACH (struct buf, b, &e->buffers.clean, link) {
    if (b->since_ns + STREAM_IDLE_NS >= now_ns)
      return;
    if (b->pins == 0 && idle_ns (b) < now_ns)
      buffers_remove (b);
  }
}

/* Frees the buffer of that size that was prefetched last, as its stream comes
 * to the others first.  Considers only connections with more than SHARE units.
 */
static bool
evict_clean (struct engine *e, bool is_large, unsigned share)
{
  for (GList *l = e->buffers.clean.tail; l; l = l->prev) {
    struct buf *b = l->data;

    if (b->is_large == is_large && b->pins == 0
        && b->conn->ahead_units > share) {
      evict (b);
      return true;
    }
  }
  return false;
}

/* For a writer: frees the last prefetch that is queued, if no client waits for
 * it.  The workers begin with the first one: if the last one has begun, all
 * have.
 */
static bool
evict_reading (struct engine *e)
{
  for (GList *l = e->buffers.reading.tail; l; l = l->prev) {
    struct buf *b = l->data;

    if (b->is_large || b->dropped || b->pins > 0)
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
  struct buffers *s = &e->buffers;
  struct buf *b = take_free (e, false);
  uint64_t now_ns;

  if (b || s->n_ahead == 0)
    return b;
  now_ns = clock_ns ();
  buffers_evict_idle (e, now_ns);
  b = take_free (e, false);
  if (b || s->n_ahead <= e->config.buffers / 2)
    return b;
  s->for_writers = MIN (s->for_writers + 1, e->config.buffers / 2);
  s->taken_ns = now_ns;
  if (evict_reading (e) || evict_clean (e, false, 0))
    b = take_free (e, false);
  return b;
}

unsigned
buffers_share (const struct conn *c, uint32_t *units)
{
  struct engine *e = c->engine;
  struct device *d = c->device;
  bool is_new = c->ahead_units == 0;
  unsigned readers = e->buffers.readers + is_new;
  unsigned of_device = d->readers + is_new;

  if (limit_is_large (&d->read_limit)
      && e->config.large_buffers / readers > 0) {
    unsigned limit = limit_value (&d->read_limit);
    /* If memory is the bound, and not contexts, use the rest of it, too. */
    unsigned more = limit < e->config.large_buffers || c->backend.contexts
      || !limit_bears_more (&d->read_limit) ? 0 : e->config.buffers;

    *units = c->large_units;
    return MIN (e->config.large_buffers / readers, MAX (limit / of_device, 1))
      * *units + more / readers;
  }
  *units = 1;
  return MIN (e->config.buffers / readers,
              MAX (limit_in_usual (&d->read_limit) / of_device, 1));
}

struct buf *
buffers_take_for_ahead (struct conn *c, unsigned units)
{
  bool is_large = units > 1;
  struct engine *e = c->engine;
  uint32_t most;
  unsigned share = buffers_share (c, &most);
  struct buf *b = NULL;

  if (c->ahead_units + units > share)
    return NULL;
  if (is_large
      || e->buffers.n_ahead + e->buffers.for_writers < e->config.buffers)
    b = take_free (e, is_large);
  if (b == NULL && evict_clean (e, is_large, share))
    b = take_free (e, is_large);
  return b == NULL && is_large ? buffers_take_for_ahead (c, 1) : b;
}

uint64_t
buffers_next_seq (struct engine *e)
{
  return ++e->buffers.seq;
}

/* The connection uses a buffer that was taken for it. */
static void
begin_use (struct buf *b, struct conn *c)
{
  struct engine *e = b->engine;

  b->conn = c;
  b->device = c->device;
  /* A plugin that does not fill the buffer shows no bytes of another device. */
  if (b->memory_of != 0 && b->memory_of != c->device->id)
    b->io.clear_bytes = size_of (b);
  b->memory_of = c->device->id;
  if (e->buffers.give_back_ns == UINT64_MAX) {
    e->buffers.give_back_ns = clock_ns () + e->config.idle_ns;
    writeback_wake (e);
  }
}

struct buf *
buffers_take_for_group (struct conn *c)
{
  struct buf *b = take_free (c->engine, true);

  if (b)
    begin_use (b, c);
  return b;
}

void
buffers_put_group (struct buf *b)
{
  b->next = NULL;
  b->dropped = true;
  buffers_put_if_unused (b);
}

void
buffers_enter (struct buf *b, enum buf_state state, struct conn *c,
               uint64_t base, uint32_t lo, uint32_t hi)
{
  struct engine *e = b->engine;

  begin_use (b, c);
  b->base = base;
  b->lo = lo;
  b->hi = hi;
  b->seq = buffers_next_seq (e);
  b->used = b->skipped = 0;
  b->err = 0;
  b->failed_seq = 0;
  b->reported_seq = 0;
  buffers_set_state (b, state);
  if (state == BUF_READING) {
    c->n_reading++;
    e->buffers.n_ahead += !b->is_large;
    if (c->ahead_units == 0) {
      e->buffers.readers++;
      c->device->readers++;
    }
    c->ahead_units += buf_units (b);
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
  if (b->state == BUF_CLEAN && !b->is_large)
    buffers_call_writer (b->engine);    /* it may be evicted now */
}
