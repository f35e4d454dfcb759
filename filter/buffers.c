/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The tree and the queues of buffers: see buffers.h, and state.h for the states.
 */
#include <errno.h>
#include <string.h>

#include "buffers.h"
#include "clock.h"
#include "handover.h"

static gint
compare (gconstpointer ap, gconstpointer bp, gpointer data G_GNUC_UNUSED)
{
  const struct buf *a = ap, *b = bp;

  if (a->base != b->base)
    return a->base < b->base ? -1 : 1;
  return a->seq < b->seq ? -1 : a->seq > b->seq;
}

int
buffers_init (struct engine *e)
{
  e->bufs = g_try_new0 (struct buf, e->config.buffers);
  if (e->bufs == NULL)
    return ENOMEM;
  e->tree = g_tree_new_full (compare, NULL, NULL, NULL);
  for (unsigned i = 0; i < e->config.buffers; i++) {
    struct buf *b = &e->bufs[i];

    b->engine = e;
    b->data = e->slab.data + (size_t) i * e->slab.size;
    b->link.data = b->dirty_link.data = b;
    g_queue_push_tail_link (&e->free, &b->link);
  }
  return 0;
}

void
buffers_destroy (struct engine *e)
{
  if (e->tree)
    g_tree_unref (e->tree);
  g_free (e->bufs);
}

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

  return overlapping_from (g_tree_lower_bound (e->tree, &key), offset, end);
}

struct buf *
buffers_next (struct buf *b, uint64_t offset, uint64_t end)
{
  return overlapping_from (g_tree_node_next (b->node), offset, end);
}

/* The queue where a buffer of this state is, if any. */
static GQueue *
queue_of (struct engine *e, enum buf_state state)
{
  switch (state) {
  case BUF_FREE: return &e->free;
  case BUF_READING: return &e->reading;
  case BUF_CLEAN: return &e->clean;
  case BUF_OPEN: return &e->open;
  case BUF_FAILED: return &e->failed;
  default: return NULL;
  }
}

/* FAILED and dirty buffers stand by age.  All but a retried one are the youngest: look from there. */
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

void
buffers_set_state (struct buf *b, enum buf_state state)
{
  struct engine *e = b->engine;
  GQueue *from = queue_of (e, b->state), *to = queue_of (e, state);
  bool was_dirty = buf_is_dirty (b), was_waiting = buf_is_waiting (b);

  if (from)
    g_queue_unlink (from, &b->link);
  b->state = state;
  if (state == BUF_FAILED)
    insert_by_age (to, &b->link);
  else if (state == BUF_FREE)   /* the first to be taken: it is in the processor's cache */
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
    atomic_fetch_add (&e->deferring, was_waiting ? -1 : 1);
}

void
buffers_call_writer (struct engine *e)
{
  GList *l = e->writers.head;

  if (l == NULL || e->writer_called)
    return;
  /* One that sleeps: another may be at something long, and comes back to look in the end. */
  while (l->next && !cond_is_waited_for (&((struct writer *) l->data)->woken))
    l = l->next;
  e->writer_called = true;
  cond_signal (&((struct writer *) l->data)->woken);
}

void
buffers_put (struct buf *b)
{
  b->dropped = false;
  b->conn = NULL;
  buffers_set_state (b, BUF_FREE);
  buffers_call_writer (b->engine);
}

void
buffers_put_if_unused (struct buf *b)
{
  if (b->dropped && b->pins + b->fillers == 0 && b->state == BUF_TAKEN)
    buffers_put (b);
}

/* Stops a READING buffer that no worker has begun. */
static bool
cancel_reading (struct buf *b)
{
  if (!pool_cancel (b->engine->pool, &b->job))
    return false;
  b->conn->n_reading--;
  b->hooked = false;            /* where a reply of the plugin's had it wait for a worker */
  b->err = ECANCELED;
  cond_broadcast (&b->changed);
  return true;
}

static bool
is_ahead (const struct buf *b)
{
  return b->state == BUF_READING || b->state == BUF_CLEAN;
}

void
buffers_remove (struct buf *b)
{
  if (is_ahead (b)) {
    b->engine->n_ahead--;
    if (--b->conn->n_ahead == 0)
      b->engine->readers--;
  }
  g_tree_remove (b->engine->tree, b);
  b->node = NULL;
  atomic_fetch_sub (&b->engine->in_tree, 1);
  b->dropped = true;
  b->claimed = false;
  if (b->rest)
    g_array_unref (b->rest);
  b->rest = NULL;
  if (b->state != BUF_WRITING && (b->state != BUF_READING || cancel_reading (b)))
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

  if (offset <= buf_start (b) && buf_limit (b) <= end) {
    buffers_remove (b);
    return;
  }
  left = g_array_new (FALSE, FALSE, sizeof (struct span));
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span p = buf_piece (b, i);

    add_piece (left, b->base, b->base + p.lo, MIN (b->base + p.hi, MAX (offset, b->base + p.lo)));
    add_piece (left, b->base, MAX (b->base + p.lo, MIN (end, b->base + p.hi)), b->base + p.hi);
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

/* Makes a buffer that was read ahead free, though somebody may come for it: its stream learns of it. */
static void
evict (struct buf *b)
{
  b->conn->lost = MIN (b->conn->lost, b->base);
  buffers_remove (b);
}

void
buffers_drop (struct engine *e, uint64_t offset, uint64_t end)
{
  struct buf *b, *next;

  for (b = buffers_first (e, offset, end); b; b = next) {
    next = buffers_next (b, offset, end);
    if (is_ahead (b))
      buffers_remove (b);
  }
}

void
buffers_drop_others (struct conn *c, uint64_t offset, uint64_t end)
{
  struct buf *b, *next;

  for (b = buffers_first (c->engine, offset, end); b; b = next) {
    next = buffers_next (b, offset, end);
    if (is_ahead (b) && b->conn != c)
      evict (b);
  }
}

void
buffers_drop_conn (struct conn *c, uint64_t offset, uint64_t end)
{
  struct buf *b, *next;

  for (b = buffers_first (c->engine, offset, end); b; b = next) {
    next = buffers_next (b, offset, end);
    if (b->conn != c || !is_ahead (b))
      continue;
    if (buf_end (b) > end)
      b->used += end - MAX (buf_start (b), offset);
    if (buf_end (b) <= end || (b->state == BUF_CLEAN && b->used >= b->hi))
      buffers_remove (b);
  }
}

static struct buf *
take_free (struct engine *e)
{
  GList *link = g_queue_peek_head_link (&e->free);

  if (link == NULL)
    return NULL;
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

  for (GList *l = e->clean.head; l; l = l->next)
    first = MIN (first, idle_ns (l->data));
  return first;
}

void
buffers_evict_idle (struct engine *e, uint64_t now_ns)
{
  for (GList *l = e->clean.head, *next; l; l = next) {
    struct buf *b = l->data;

    next = l->next;
    if (b->since_ns + STREAM_IDLE_NS >= now_ns)
      return;
    if (b->pins == 0 && idle_ns (b) < now_ns)
      buffers_remove (b);
  }
}

/* Whether reads ahead have more than their half. */
static bool
is_much_ahead (const struct engine *e)
{
  return e->n_ahead > e->config.buffers / 2;
}

/* Makes a buffer free that was read ahead: the one that was read last, as its
 * stream comes to the others first.
 */
static bool
evict_clean (struct engine *e)
{
  for (GList *l = e->clean.tail; l; l = l->prev) {
    struct buf *b = l->data;

    if (b->pins == 0) {
      evict (b);
      return true;
    }
  }
  return false;
}

/* Makes the last buffer that waits for a worker to read ahead free, if no client
 * waits for it.  The workers begin with the first: where the last one has begun,
 * all have.
 */
static bool
evict_reading (struct engine *e)
{
  for (GList *l = e->reading.tail; l; l = l->prev) {
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

  if (b || e->n_ahead == 0)
    return b;
  buffers_evict_idle (e, clock_ns ());
  b = take_free (e);
  if (b == NULL && is_much_ahead (e) && (evict_reading (e) || evict_clean (e)))
    b = take_free (e);
  return b;
}

unsigned
buffers_share (const struct conn *c)
{
  struct engine *e = c->engine;

  return e->config.buffers / (e->readers + (c->n_ahead == 0));
}

/* Makes a buffer free that a connection has read ahead beyond its share. */
static bool
evict_surplus (struct engine *e, unsigned share)
{
  for (GList *l = e->clean.tail; l; l = l->prev) {
    struct buf *b = l->data;

    if (b->conn->n_ahead > share && b->pins == 0) {
      evict (b);
      return true;
    }
  }
  return false;
}

struct buf *
buffers_take_for_ahead (struct conn *c)
{
  struct engine *e = c->engine;
  struct buf *b;

  if (e->writers.length > 0 && is_much_ahead (e))
    return NULL;
  b = take_free (e);
  if (b == NULL && c->n_ahead < buffers_share (c) && evict_surplus (e, buffers_share (c)))
    b = take_free (e);
  return b;
}

void
buffers_enter (struct buf *b, enum buf_state state, struct conn *c, uint64_t base,
               uint32_t lo, uint32_t hi)
{
  struct engine *e = b->engine;

  b->conn = c;
  b->device = c->device;
  b->base = base;
  b->lo = lo;
  b->hi = hi;
  b->seq = ++e->seq;
  b->used = 0;
  b->err = 0;
  b->failed_seq = 0;
  b->reported = false;
  buffers_set_state (b, state);
  if (state == BUF_READING) {
    c->n_reading++;
    e->n_ahead++;
    if (c->n_ahead++ == 0)
      e->readers++;
  }
  b->node = g_tree_insert_node (e->tree, b, b);
  atomic_fetch_add (&e->in_tree, 1);
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
