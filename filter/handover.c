/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Handing operations over, and waiting for them: see handover.h.
 */
#include <errno.h>
#include <stddef.h>

#include "buffers.h"
#include "clock.h"
#include "handover.h"
#include "lock.h"

static __thread const struct conn *serving;
static __thread uint64_t look_ns;       /* when this call is to look at its client again; 0: not set */

void
handover_set_conn (const struct conn *c)
{
  serving = c;
  look_ns = 0;
}

static void
do_job (struct job *job)
{
  backend_io_do (&((struct buf *) job)->io);
}

static void
start_job (struct job *job)
{
  backend_io_start (&((struct buf *) job)->io);
}

void
handover (struct buf *b, bool is_write, enum pool_queue q,
          void (*done) (struct backend_io *, int err))
{
  struct engine *e = b->engine;

  b->io.backend = &b->conn->backend;
  b->io.done = done;
  b->io.hook.is_write = is_write;
  b->io.hook.buf = b->data + b->lo;
  b->io.hook.count = b->hi - b->lo;
  b->io.hook.offset = buf_start (b);
  b->hooked = backend_has_hook (b->io.backend, is_write);
  b->job.run = do_job;
  if (b->hooked) {
    b->job.link.data = b;
    g_queue_push_tail_link (&e->starts, &b->job.link);
  }
  else if (!pool_push (e->pool, &b->job, q) && is_write && e->patient_since_ns == UINT64_MAX) {
    e->patient_since_ns = clock_ns ();
    if (e->linger_idle)
      cond_signal (&e->linger);
  }
}

static void
start (struct engine *e, GQueue *starts)
{
  GList *l;

  while ((l = g_queue_pop_head_link (starts)) != NULL) {
    struct buf *b = l->data;

    if (backend_may_start () && (serving == NULL || serving == b->conn))
      backend_io_start (&b->io);
    else {
      b->job.run = start_job;
      pool_push (e->pool, &b->job, POOL_PIECE);
    }
  }
}

void
engine_unlock (struct engine *e)
{
  GQueue starts = e->starts;

  g_queue_init (&e->starts);
  pthread_mutex_unlock (&e->lock);
  start (e, &starts);
}

/* Whether there was something to start first. */
static bool
started (struct engine *e)
{
  if (e->starts.length == 0)
    return false;
  engine_unlock (e);
  engine_lock (e);
  return true;
}

void
engine_wait (struct engine *e, struct cond *cond)
{
  if (!started (e))
    cond_wait (cond, &e->lock);
}

bool
engine_wait_until (struct engine *e, struct cond *cond, uint64_t until_ns)
{
  return !started (e) && !cond_wait_until (cond, &e->lock, until_ns);
}

/* Giving up. */

/* Its client has gone.  Wants the lock, lets go of it meanwhile. */
static void
give_up_all (struct conn *c)
{
  struct engine *e = c->engine;

  for (unsigned i = 0; i < e->config.buffers; i++) {
    struct buf *b = &e->bufs[i];

    if (!b->hooked || b->conn != c)
      continue;
    buffers_pin (b);            /* so that it is not reused */
    engine_unlock (e);
    backend_io_give_up (&b->io);
    engine_lock (e);
    buffers_unpin (b);
    /* Something was started, or the plugin has replied: they have their grace time. */
    if (!backend_is_hopeless (&c->backend))
      return;
  }
}

/* The plugin's hooks may never reply, so look now and then.  Wants the lock, lets go of it meanwhile. */
static int
look (struct conn *c, struct cond *cond, uint64_t until_ns)
{
  struct engine *e = c->engine;
  bool hopeless;

  /* Not each wait's own time: other connections may wake us all the time. */
  if (look_ns == 0)
    look_ns = clock_ns () + BACKEND_POLL_NS;
  if (until_ns <= look_ns)
    return engine_wait_until (e, cond, until_ns) ? ETIMEDOUT : 0;
  if (!engine_wait_until (e, cond, look_ns))
    return 0;
  look_ns = clock_ns () + BACKEND_POLL_NS;
  engine_unlock (e);            /* starts what waits to be started, too */
  hopeless = backend_is_hopeless (&c->backend);
  engine_lock (e);
  return hopeless ? ESHUTDOWN : 0;
}

int
engine_wait_plugin (struct conn *c, struct cond *cond, uint64_t until_ns)
{
  struct engine *e = c->engine;

  if (c->backend.hooks)
    return look (c, cond, until_ns);
  if (until_ns != UINT64_MAX)
    return engine_wait_until (e, cond, until_ns) ? ETIMEDOUT : 0;
  engine_wait (e, cond);
  return 0;
}

bool
engine_wait_end (struct conn *c, struct cond *cond)
{
  if (engine_wait_plugin (c, cond, UINT64_MAX) != ESHUTDOWN)
    return false;
  give_up_all (c);
  return true;
}
