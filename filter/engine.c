/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The birth and the end of the engine: see engine.h.
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
  err = buffers_init (e, config->buffers, config->buffer_size);
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
