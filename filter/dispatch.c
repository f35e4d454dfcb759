/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Dispatching operations, and waiting for their completion: see dispatch.h.
 */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "clock.h"
#include "dispatch.h"

static __thread const struct conn *serving;
/* When this call is to check its client again; 0: not set. */
static __thread uint64_t check_ns;

void
dispatch_set_conn (const struct conn *c)
{
  serving = c;
  check_ns = 0;
}

/* Copies a group's data into its large buffer just before the operation, as the
 * thread does not hold the lock then.
 */
static void
copy_group (struct buf *b)
{
  for (const struct buf *m = b->next; m; m = m->next)
    memcpy (b->data + (m->base - b->base), m->data, m->io.hook.count);
}

void
dispatch_do (struct buf *b)
{
  copy_group (b);
  backend_io_do (&b->io);
}

static void
dispatch_start (struct buf *b)
{
  copy_group (b);
  backend_io_start (&b->io);
}

static void
do_job (struct job *job)
{
  dispatch_do ((struct buf *) job);
}

static void
start_job (struct job *job)
{
  dispatch_start ((struct buf *) job);
}

void
dispatch_buf (struct buf *b, bool is_write, enum pool_queue q,
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
  else if (!pool_push (b->conn->pool, &b->job, q) && is_write)
    writeback_note_queued (e);
}

static void
start_all (struct engine *e, GQueue *starts)
{
  GList *l;

  while ((l = g_queue_pop_head_link (starts)) != NULL) {
    struct buf *b = l->data;

    if (backend_may_start () && (serving == NULL || serving == b->conn))
      dispatch_start (b);
    else {
      b->job.run = start_job;
      if (!pool_push (e->pool, &b->job, POOL_PIECE))
        pool_wake_idle (e->pool);
    }
  }
}

void
engine_unlock_and_dispatch (struct engine *e)
{
  GQueue starts = e->starts;

  engine_check_debug (e);
  g_queue_init (&e->starts);
  lock_drop (&e->lock);
  lock_assert_none ();
  start_all (e, &starts);
}

/* Dispatches before a wait.  Returns whether there was something to start. */
static bool
dispatched (struct engine *e)
{
  if (e->starts.length == 0)
    return false;
  engine_unlock_and_dispatch (e);
  engine_lock (e);
  return true;
}

void
engine_wait (struct engine *e, struct cond *cond)
{
  engine_wait_until (e, cond, UINT64_MAX);
}

bool
engine_wait_until (struct engine *e, struct cond *cond, uint64_t until_ns)
{
  if (dispatched (e))
    return false;
  engine_check_debug (e);
  return !cond_wait_until (cond, lock_alone (&e->lock), until_ns);
}

/* The connection's client has gone.  Wants the lock, releases it meanwhile. */
static void
give_up_all (struct conn *c)
{
  struct engine *e = c->engine;

  for (unsigned i = 0; i < e->buffers.n; i++) {
    struct buf *b = &e->buffers.all[i];

    if (!b->hooked || b->conn != c)
      continue;
    buffers_pin (b);            /* so that it is not reused */
    engine_unlock_and_dispatch (e);
    backend_io_give_up (&b->io);
    engine_lock (e);
    buffers_unpin (b);
    /* A new start or a reply of the plugin begins a new grace time. */
    if (!backend_is_silent (&c->backend))
      return;
  }
}

/* The plugin's hooks may never reply, so check the client now and then.  Wants
 * the lock, releases it meanwhile.
 */
static int
wait_hooks (struct conn *c, struct cond *cond, uint64_t until_ns)
{
  struct engine *e = c->engine;
  bool is_silent;

  /* A time per call, not per wait: other connections may wake it very often. */
  if (check_ns == 0)
    check_ns = clock_ns () + BACKEND_POLL_NS;
  if (until_ns <= check_ns)
    return engine_wait_until (e, cond, until_ns) ? ETIMEDOUT : 0;
  if (!engine_wait_until (e, cond, check_ns))
    return 0;
  check_ns = clock_ns () + BACKEND_POLL_NS;
  engine_unlock_and_dispatch (e);
  is_silent = backend_is_silent (&c->backend);
  engine_lock (e);
  return is_silent ? ESHUTDOWN : 0;
}

int
engine_wait_plugin (struct conn *c, struct cond *cond, uint64_t until_ns)
{
  struct engine *e = c->engine;

  if (c->backend.hooks)
    return wait_hooks (c, cond, until_ns);
  return engine_wait_until (e, cond, until_ns) ? ETIMEDOUT : 0;
}

bool
engine_wait_end (struct conn *c, struct cond *cond)
{
  if (engine_wait_plugin (c, cond, UINT64_MAX) != ESHUTDOWN)
    return false;
  give_up_all (c);
  return true;
}
