/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The birth and the end of the engine, and what it does now: see engine.h.
 */
#include <errno.h>

#include "dispatch.h"
#include "engine.h"
#include "lock.h"

int
engine_new (const struct engine_config *config, struct engine **ep)
{
  struct engine *e = g_new0 (struct engine, 1);
  int err;

  e->config = *config;
  lock_init_ranked (&e->lock, LOCK_OUTER);
  e->contexts_check_ns = UINT64_MAX;
  writeback_init (e);
  extents_init (e);
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

  e->pool = pool_new (e->config.threads, e->config.idle_ns, &error);
  if (e->pool == NULL)
    return EAGAIN;
  err = writeback_start (e);
  if (err) {
    pool_free (e->pool);
    e->pool = NULL;
  }
  return err;
}

static struct contexts *
take_contexts (struct engine *e)
{
  GList *l;

  ENGINE_LOCK_THEN_DISPATCH (e);
  l = g_queue_pop_head_link (&e->contexts);
  return l ? l->data : NULL;
}

void
engine_stop (struct engine *e)
{
  struct contexts *s;

  if (e->pool == NULL)
    return;
  /* nbdkit may leave connections open when it ends. */
  for (GList *l = e->conns.head; l; l = l->next) {
    conn_close (l->data);
    conn_wait_for_prefetches (l->data);
  }
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    e->stopping = true;
    cond_signal (&e->writeback.wake);
  }
  writeback_join (e);
  pool_free (e->pool);
  e->pool = NULL;
  while ((s = take_contexts (e)) != NULL)
    contexts_free (s);
}

/* engine_now looks at so many buffers before it releases the lock for a moment.
 * So a request waits for some 20 us at most, however large the slab is.
 */
enum { BUFFERS_AT_ONCE = 256 };

static void
count_buf (const struct buf *b, struct stats_now *now)
{
  double bytes = 0;

  if (buf_is_waiting (b) && !b->dropped)
    for (unsigned i = 0; i < buf_n_pieces (b); i++)
      bytes += buf_piece (b, i).hi - buf_piece (b, i).lo;
  switch (b->state) {
  case BUF_FREE: now->buffers_free++; break;
  case BUF_READING: now->buffers_reading++; break;
  case BUF_CLEAN: now->buffers_clean++; break;
  case BUF_FAILED:
    now->buffers_failed++;
    now->failed_bytes += bytes;
    break;
  case BUF_OPEN: case BUF_READY: case BUF_WRITING:
    now->buffers_dirty++;
    now->dirty_bytes += bytes;
    break;
  default: now->buffers_taken++;
  }
}

static void
count_threads (struct pool *p, struct stats_now *now)
{
  now->threads += pool_threads (p);
  now->threads_busy += pool_busy (p);
}

void
engine_now (struct engine *e, struct stats_now *now)
{
  *now = (struct stats_now) { .buffers = e->buffers.n };
  for (unsigned i = 0; i < e->buffers.n;) {
    ENGINE_LOCK_THEN_DISPATCH (e);
    for (unsigned n = 0; n < BUFFERS_AT_ONCE && i < e->buffers.n; n++)
      count_buf (&e->buffers.all[i++], now);
  }

  ENGINE_LOCK_THEN_DISPATCH (e);
  now->writers = e->buffers.writers.length;
  now->connections = e->conns.length;
  if (!e->stopping && e->pool)  /* in this order: engine_stop frees it */
    count_threads (e->pool, now);
  if (e->devices.length == 0) {
    now->read_limit = e->last_read_limit;
    now->write_limit = e->last_write_limit;
  }
  QUEUE_FOREACH (struct device, d, &e->devices, link) {
    limit_show (&d->read_limit, &now->read_limit);
    limit_show (&d->write_limit, &now->write_limit);
  }
  QUEUE_FOREACH (struct contexts, s, &e->contexts, link) {
    count_threads (s->pool, now);
    now->contexts += atomic_load (&s->n_open);
  }
  stats_fill (e->stats, now);
}

void
engine_free (struct engine *e)
{
  device_free_exports (e);
  buffers_destroy (e);
  stats_free (e->stats);
  extents_destroy (e);
  lock_destroy (&e->lock);
  g_free (e);
}
