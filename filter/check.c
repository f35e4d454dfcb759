/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The checker of the invariants: see check.h.
 */
#include "check.h"
#include "engine.h"
#include "lock.h"

/* Invariant 1: which buffers are in the tree, and how they are ordered. */
static void
check_tree (struct engine *e)
{
  const struct buf *last = NULL;
  unsigned n = 0, in_tree = 0, counted = 0;

  for (unsigned i = 0; i < e->buffers.n; i++) {
    struct buf *b = &e->buffers.all[i];
    bool should = b->state != BUF_FREE && b->state != BUF_TAKEN && !b->dropped;

    g_assert_true (should == (b->node != NULL));
    g_assert_true (!b->dropped || b->state == BUF_TAKEN
                   || b->state == BUF_READING || b->state == BUF_WRITING);
    g_assert_true (!b->hooked || b->state == BUF_READING
                   || (b->state == BUF_WRITING && b->group == NULL)
                   || (b->state == BUF_TAKEN && b->next));
    g_assert_true (b->group == NULL
                   || (b->state == BUF_WRITING && b->group->is_large));
    n += should;
    if (should) {
      g_assert_true (g_tree_node_key (b->node) == b);
      g_assert_cmpuint (b->lo, <, b->hi);
      g_assert_cmpuint (b->hi, <=, b->is_large ? e->config.large_size
                        : e->config.buffer_size);
      g_assert_cmpuint (b->base / e->buffers.place, ==,
                        (buf_end (b) - 1) / e->buffers.place);
    }
  }
  for (GTreeNode *node = g_tree_node_first (e->buffers.tree); node;
       node = g_tree_node_next (node)) {
    const struct buf *b = g_tree_node_key (node);

    if (last)
      g_assert_true (last->base < b->base
                     || (last->base == b->base && last->seq < b->seq));
    last = b;
    in_tree++;
  }
  g_assert_cmpuint (in_tree, ==, n);
  for (size_t i = 0; i < (size_t) 1 << e->buffers.counters_bits; i++)
    counted += atomic_load (&e->buffers.counters[i]);
  g_assert_cmpuint (counted, ==, n);
}

static bool
overlap (const struct buf *a, const struct buf *b)
{
  for (unsigned i = 0; i < buf_n_pieces (a); i++) {
    struct span p = buf_piece (a, i);

    if (buf_overlaps (b, a->base + p.lo, a->base + p.hi))
      return true;
  }
  return false;
}

/* Invariants 2, 4 and 5: which buffers may overlap. */
static void
check_pair (const struct buf *a, const struct buf *b)
{
  if (!overlap (a, b))
    return;
  if (buf_is_waiting (a) && a->device == b->device)
    g_assert_true (b->state != BUF_CLEAN && b->state != BUF_READING);
  if (buf_is_waiting (a) && buf_is_waiting (b))
    g_assert_true (a->device == b->device);
  /* Of several pieces the first one is being written. */
  if (a->state == BUF_WRITING
      && buf_overlaps (b, buf_start (a), buf_first_end (a))) {
    g_assert_false (b->state == BUF_WRITING && buf_start (b) < buf_first_end (a)
                    && buf_start (a) < buf_first_end (b));
    /* Data that has failed before may be READY again meanwhile: it waits. */
    g_assert_false (buf_is_dirty (b) && b->seq < a->seq && b->failed_seq == 0);
  }
}

static void
check_pairs (struct engine *e)
{
  for (GTreeNode *na = g_tree_node_first (e->buffers.tree); na;
       na = g_tree_node_next (na)) {
    const struct buf *a = g_tree_node_key (na);

    for (GTreeNode *nb = g_tree_node_next (na); nb;
         nb = g_tree_node_next (nb)) {
      const struct buf *b = g_tree_node_key (nb);

      if (b->base >= buf_end (a))
        break;
      check_pair (a, b);
      check_pair (b, a);
    }
  }
}

/* Invariants 3 and 7. */
static void
check_buf (struct engine *e, const struct buf *b)
{
  if (b->fillers > 0)
    g_assert_true (b->state == BUF_OPEN || b->state == BUF_READY || b->dropped);
  if (b->pins > 0)
    g_assert_true (b->state != BUF_FREE);
  if (b->state == BUF_WRITING)
    QUEUE_FOREACH (struct direct, d, &e->order.directs, link) {
      /* Of several pieces the first one is being written. */
      g_assert_false (d->running && d->device == b->device
                      && ranges_overlap (d->offset, d->end, buf_start (b),
                                         buf_first_end (b)));
    }
  if (buf_is_dirty (b))
    g_assert_nonnull (b->conn);
  /* It waits for the end of another write, or else it would be dispatched. */
  if (b->state == BUF_READY && !b->claimed && order_can_dispatch_locked (b))
    g_assert_true (b->device->has_held_back && b->device->n_writes > 0);
  if (b->node)
    g_assert_cmpuint (b->base % b->device->unit, ==, 0);
  if (b->node && !b->is_large)
    g_assert_cmpuint (buf_end (b) - b->base, <=, b->device->unit);
  if (buf_is_waiting (b))
    g_assert_false (b->is_large);
}

static void
check_sorted (const GQueue *q)
{
  uint64_t seq = 0;

  for (const GList *l = q->head; l; l = l->next) {
    const struct buf *b = l->data;

    g_assert_cmpuint (b->seq, >, seq);
    seq = b->seq;
  }
}

static void
check_free (const struct free_buffers *free)
{
  bool is_used = free->last_used != NULL;

  for (const GList *l = free->queue.head; l; l = l->next) {
    const struct buf *b = l->data;

    is_used = is_used && (l->prev == NULL || l->prev != free->last_used);
    g_assert_true (is_used == (b->memory_of != 0));
  }
}

/* The queues hold all buffers of their states. */
static void
check_queues (struct engine *e)
{
  const struct buffers *s = &e->buffers;
  unsigned n[BUF_STATES] = { 0 }, dirty_of_exports = 0;

  for (unsigned i = 0; i < s->n; i++)
    n[s->all[i].state]++;
  g_assert_cmpuint (s->free[0].queue.length + s->free[1].queue.length, ==,
                    n[BUF_FREE]);
  g_assert_cmpuint (s->reading.length, ==, n[BUF_READING]);
  g_assert_cmpuint (s->clean.length, ==, n[BUF_CLEAN]);
  g_assert_cmpuint (s->open.length, ==, n[BUF_OPEN]);
  g_assert_cmpuint (s->failed.length, ==, n[BUF_FAILED]);
  check_free (&s->free[0]);
  check_free (&s->free[1]);
  check_sorted (&s->failed);
  QUEUE_FOREACH (struct export, x, &e->exports, link) {
    dirty_of_exports += x->dirty.length;
    check_sorted (&x->dirty);
  }
  QUEUE_FOREACH (struct device, d, &e->devices, link) {
    unsigned n_overtaken = 0;

    for (unsigned i = 0; i < s->n; i++)
      n_overtaken += s->all[i].overtaken && s->all[i].device == d;
    g_assert_cmpuint (d->n_overtaken, ==, n_overtaken);
  }
  g_assert_cmpuint (dirty_of_exports, ==,
                    n[BUF_OPEN] + n[BUF_READY] + n[BUF_WRITING]);
  g_assert_true (!s->writer_called || s->writers.length > 0);
}

/* The counts of connections, and their sums. */
static void
check_conns (struct engine *e)
{
  const struct buffers *s = &e->buffers;
  unsigned waiting = 0, deferring = 0, readers = 0, n_ahead = 0;

  QUEUE_FOREACH (struct conn, c, &e->conns, link) {
    unsigned dirty = 0, reading = 0, ahead = 0;

    for (unsigned i = 0; i < s->n; i++) {
      const struct buf *b = &s->all[i];

      if (b->conn != c)
        continue;
      dirty += buf_is_dirty (b);
      reading += b->state == BUF_READING;
      if (!b->dropped && (b->state == BUF_READING || b->state == BUF_CLEAN)) {
        ahead += (b->hi + b->device->unit - 1) / b->device->unit;
        n_ahead += !b->is_large;
      }
    }
    g_assert_cmpuint (c->n_dirty, ==, dirty);
    g_assert_cmpuint (c->n_reading, ==, reading);
    g_assert_cmpuint (c->ahead_units, ==, ahead);
    readers += ahead > 0;
    deferring += atomic_load (&c->defers);
  }
  for (unsigned i = 0; i < s->n; i++)
    waiting += buf_is_waiting (&s->all[i]);
  g_assert_cmpuint (s->readers, ==, readers);
  g_assert_cmpuint (s->n_ahead, ==, n_ahead);
  g_assert_cmpuint (atomic_load (&s->deferring), ==, waiting + deferring);
}

/* The sets of extents, and rule 4 of extents.h. */
static void
check_extents (struct engine *e)
{
  struct extents *x = &e->extents;
  unsigned n;

  LOCK_IN_SCOPE (&x->lock);
  n = x->questions.length;
  QUEUE_FOREACH (struct device_extents, d, &x->sets, link) {
    uint64_t end = 0;

    g_assert_cmpuint (d->set.n, >, 0);
    g_assert_cmpuint (d->set.n, <=, EXTENTS_KEPT);
    n += d->set.n;
    for (unsigned i = 0; i < d->set.n; i++) {
      const struct extent *at = &d->set.at[i];

      g_assert_cmpuint (end, <=, at->from);
      g_assert_cmpuint (at->from, <, at->to);
      end = at->to;
      QUEUE_FOREACH (struct direct, o, &e->order.directs, link)
        g_assert_false (ranges_overlap (o->offset, o->end, at->from, at->to));
    }
  }
  g_assert_cmpuint (atomic_load (&x->in_use), ==, n);
}

void
engine_check_locked (struct engine *e)
{
  check_tree (e);
  check_pairs (e);
  for (unsigned i = 0; i < e->buffers.n; i++)
    check_buf (e, &e->buffers.all[i]);
  check_queues (e);
  check_conns (e);
  check_extents (e);
}

void
engine_check (struct engine *e)
{
  LOCK_IN_SCOPE (&e->lock);
  g_assert_cmpuint (e->starts.length, ==, 0);
  engine_check_locked (e);
}
