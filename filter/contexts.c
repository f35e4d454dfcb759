/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Contexts of serialized plugins: see contexts.h.
 */
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "contexts.h"
#include "debug.h"
#include "engine.h"
#include "lock.h"
#include "queue.h"

enum {
  MAX_DOUBLINGS = 6,            /* of the time between tries to open */
  MAX_OPENING = 8               /* opens at a time: sshd refuses some of more
                                 * than ten logins */
};

struct context {
  void *handle;
  /* Used by the thread that leases it. */
  bool has_worked, is_new;      /* is_new: it has not reset failures yet */
  bool is_broken;
  uint64_t opened_ns;
  uint64_t used_ns;             /* under contexts.lock, as is the link */
  struct job closer;
  const struct backend_ops *ops;
  GList link;                   /* in contexts.free */
};

/* This thread's lease. */
static __thread struct context *leased;

/* Life. */

int
contexts_new (struct engine *e, const char *export_name,
              const struct backend *like, unsigned max, struct contexts **cp)
{
  g_autoptr (GError) error = NULL;
  struct contexts *s = g_try_new0 (struct contexts, 1);
  size_t size = strlen (export_name) + 1;
  char *name = g_try_malloc (size);

  if (s == NULL || name == NULL) {
    g_free (s);
    g_free (name);
    return ENOMEM;
  }
  s->engine = e;
  s->like = *like;
  memcpy (name, export_name, size);
  s->export_name = name;
  s->max = max;
  s->link.data = s;
  lock_init_ranked (&s->lock, LOCK_LEAF);
  s->pool = pool_new (max, e->config.idle_ns, &error);
  if (s->pool == NULL) {
    contexts_free (s);
    return EAGAIN;
  }
  pool_set_around (s->pool, contexts_lease, contexts_release, s);
  *cp = s;
  return 0;
}

static bool
is_for (const struct contexts *s, const char *export_name,
        const struct backend *like, unsigned max)
{
  return s->like.shared && like->shared && s->max == max
    && backend_is_like (&s->like, like)
    && strcmp (s->export_name, export_name) == 0;
}

struct contexts *
contexts_find (struct engine *e, const char *export_name,
               const struct backend *like, unsigned max)
{
  QUEUE_FOREACH (struct contexts, s, &e->contexts, link) {
    if (is_for (s, export_name, like, max)) {
      s->refs++;
      return s;
    }
  }
  return NULL;
}

struct contexts *
contexts_join (struct contexts *fresh)
{
  struct engine *e = fresh->engine;
  struct contexts *s = contexts_find (e, fresh->export_name, &fresh->like,
                                      fresh->max);

  if (s)
    return s;
  g_queue_push_tail_link (&e->contexts, &fresh->link);
  fresh->refs = 1;
  if (e->contexts.length == 1) {
    e->contexts_check_ns = clock_ns () + e->config.context_idle_ns;
    writeback_wake (e);
  }
  return fresh;
}

void
contexts_put (struct contexts *s)
{
  struct engine *e = s->engine;

  if (--s->refs > 0 || (s->like.shared && atomic_load (&s->n_open) > 0))
    return;
  /* No other connection may use them, or none is open: free them soon. */
  e->contexts_check_ns = 0;
  writeback_wake (e);
}

static void
close_one (struct job *job)
{
  struct context *x =
    (struct context *) ((char *) job - offsetof (struct context, closer));

  lock_assert_none ();
  x->ops->close (x->handle);
  g_free (x);
}

static void
log_open (const struct contexts *s, const char *what)
{
  debug_if (true, "%s a context: %u of %u are open", what,
            atomic_load (&s->n_open) + 1, s->max + 1);
}

/* To close it. */
static struct context *
pop_free (struct contexts *s)
{
  struct context *x;

  LOCK_IN_SCOPE (&s->lock);
  x = queue_data (s->free.head);
  if (x) {
    g_queue_unlink (&s->free, &x->link);
    atomic_fetch_sub (&s->n_open, 1);
    log_open (s, "closed");
  }
  return x;
}

void
contexts_free (struct contexts *s)
{
  struct context *x;

  if (s->pool) {
    {
      LOCK_IN_SCOPE (&s->lock);
      s->is_ending = true;
      cond_broadcast (&s->freed);
    }
    /* In parallel, as each close may take a round trip or two. */
    while ((x = pop_free (s)) != NULL) {
      x->closer.run = close_one;
      pool_push (s->pool, &x->closer, POOL_AHEAD);
    }
    pool_free (s->pool);
    while ((x = pop_free (s)) != NULL)  /* a thread had it until now */
      close_one (&x->closer);
  }
  lock_destroy (&s->lock);
  g_free (s->export_name);
  g_free (s);
}

/* Opening. */

/* An open has failed, or a context has not lasted.  Further failures before
 * closed_until_ns have the same cause, and do not count.
 */
static void
defer_opens_locked (struct contexts *s)
{
  uint64_t wait_ns = s->engine->config.context_retry_ns << s->failures;

  if (clock_ns () < atomic_load (&s->closed_until_ns))
    return;
  s->failures = MIN (s->failures + 1, MAX_DOUBLINGS);
  atomic_store (&s->closed_until_ns, clock_ns () + wait_ns);
}

static bool
may_open_locked (const struct contexts *s)
{
  return !s->is_ending && s->opening < MAX_OPENING
    && atomic_load (&s->n_open) + s->opening < s->max
    && clock_ns () >= atomic_load (&s->closed_until_ns);
}

static bool
has_lasted (const struct contexts *s, const struct context *x)
{
  return x->has_worked
    && clock_ns () >= x->opened_ns + s->engine->config.context_retry_ns;
}

/* NULL: the open failed, or there is no memory. */
static struct context *
open_one (struct contexts *s)
{
  struct context *x = g_try_new0 (struct context, 1);

  if (x == NULL)
    return NULL;
  x->ops = s->like.ops;
  x->link.data = x;
  x->is_new = true;
  lock_assert_none ();
  x->handle = x->ops->open (&s->like, s->export_name);
  x->opened_ns = clock_ns ();
  if (x->handle == NULL)
    g_clear_pointer (&x, g_free);
  return x;
}

/* Opens a context.  Releases the lock meanwhile.  NULL: the open failed. */
static struct context *
open_locked (struct contexts *s)
{
  struct context *x;
  bool must_log = false;
  unsigned n;

  s->opening++;
  lock_drop (&s->lock);
  x = open_one (s);
  lock_take (&s->lock);
  s->opening--;
  if (x) {
    if (atomic_fetch_add (&s->n_open, 1) + 1 == s->max)
      s->is_logged = false;
    log_open (s, "opened");
    cond_signal (&s->freed);    /* another thread may open one now */
    return x;
  }
  must_log = !s->is_logged;
  s->is_logged = true;
  n = atomic_load (&s->n_open);
  defer_opens_locked (s);
  cond_broadcast (&s->freed);
  lock_drop (&s->lock);
  if (must_log)
    s->engine->config.log_context (s->export_name, n, s->max);
  lock_take (&s->lock);
  return NULL;
}

/* Leases. */

/* Closes this thread's context, which is broken. */
static void
close_broken (struct contexts *s)
{
  struct context *x = leased;

  leased = NULL;
  {
    LOCK_IN_SCOPE (&s->lock);
    s->leased--;
    atomic_fetch_sub (&s->n_open, 1);
    log_open (s, "closed");
    if (has_lasted (s, x))
      s->failures = 0;
    else
      defer_opens_locked (s);
    cond_broadcast (&s->freed);
  }
  close_one (&x->closer);
}

/* When a thread that waits for a context may open one.  UINT64_MAX: it is
 * signalled before.
 */
static uint64_t
next_open_ns_locked (const struct contexts *s)
{
  uint64_t at_ns = atomic_load (&s->closed_until_ns);

  return atomic_load (&s->n_open) + s->opening < s->max
    && at_ns > clock_ns () ? at_ns : UINT64_MAX;
}

void
contexts_lease (void *vs)
{
  struct contexts *s = vs;
  struct context *x;

  if (leased && leased->is_broken)
    close_broken (s);
  if (leased)
    return;
  LOCK_IN_SCOPE (&s->lock);
  while (!s->is_ending) {
    GList *l = g_queue_pop_head_link (&s->free);
    bool may_open = l == NULL && may_open_locked (s);

    x = l ? l->data : may_open ? open_locked (s) : NULL;
    if (x) {
      s->leased++;
      leased = x;
      return;
    }
    if (may_open)               /* a context may be free now */
      continue;
    if (s->leased + s->opening == 0)
      return;
    cond_wait_until (&s->freed, lock_alone (&s->lock),
                     next_open_ns_locked (s));
  }
}

void
contexts_release (void *vs)
{
  struct contexts *s = vs;

  if (leased == NULL)
    return;
  if (leased->is_broken) {
    close_broken (s);
    return;
  }
  LOCK_IN_SCOPE (&s->lock);
  s->leased--;
  leased->used_ns = clock_ns ();
  if (leased->is_new && has_lasted (s, leased)) {
    leased->is_new = false;
    s->failures = 0;
  }
  g_queue_push_head_link (&s->free, &leased->link);
  leased = NULL;
  cond_signal (&s->freed);
}

void *
contexts_leased (void)
{
  return leased ? leased->handle : NULL;
}

/* False: the error is about the request or the device, and another context
 * would return it, too.
 */
static bool
is_about_context (int err)
{
  return err != ENOSPC && err != EPERM && err != EROFS
    && err != EOPNOTSUPP;
}

void
contexts_note (int err)
{
  if (err == 0)
    leased->has_worked = true;
  else if (is_about_context (err))
    leased->is_broken = true;
}

/* Advice. */

bool
contexts_are_usable (struct contexts *s)
{
  return atomic_load (&s->n_open) > 0
    || clock_ns () >= atomic_load (&s->closed_until_ns);
}

/* A job that makes a thread call contexts_lease, which opens a context. */
static void
nothing (struct job *job)
{
  g_free (job);
}

unsigned
contexts_ready (struct contexts *s, unsigned wanted)
{
  unsigned free, more = 0;

  {
    LOCK_IN_SCOPE (&s->lock);
    free = s->free.length;
    if (free < wanted && s->opening == 0 && may_open_locked (s))
      more = MIN (wanted - free, s->max - atomic_load (&s->n_open));
  }
  for (unsigned i = 0; i < more; i++) {
    struct job *job = g_try_new0 (struct job, 1);

    if (job == NULL)
      break;
    job->run = nothing;
    pool_push (s->pool, job, POOL_AHEAD);
  }
  return free;
}

/* Idle contexts. */

/* Closes the contexts that no thread has used for IDLE_NS. */
static void
close_unused (struct contexts *s, uint64_t now_ns, uint64_t idle_ns)
{
  for (;;) {
    struct context *x;

    {
      LOCK_IN_SCOPE (&s->lock);
      x = queue_data (s->free.tail);
      if (x == NULL || x->used_ns + idle_ns > now_ns)
        return;
      g_queue_unlink (&s->free, &x->link);
      atomic_fetch_sub (&s->n_open, 1);
      log_open (s, "closed");
    }
    close_one (&x->closer);
  }
}

/* Takes the contexts off the engine's list, if no connection uses them and they
 * cannot be shared or none is open.  Returns whether it did.
 */
static bool
take_off (struct contexts *s)
{
  struct engine *e = s->engine;
  bool is_unused;

  LOCK_IN_SCOPE (&e->lock);
  s->is_closing = false;
  is_unused = s->refs == 0
    && (!s->like.shared || atomic_load (&s->n_open) == 0);
  if (is_unused)
    g_queue_unlink (&e->contexts, &s->link);
  return is_unused;
}

static void
close_idle (struct job *job)
{
  struct contexts *s =
    (struct contexts *) ((char *) job - offsetof (struct contexts, closer));

  close_unused (s, clock_ns (), s->engine->config.context_idle_ns);
  if (take_off (s))
    contexts_free (s);
}

void
contexts_close_idle (struct engine *e, uint64_t now_ns)
{
  QUEUE_FOREACH (struct contexts, s, &e->contexts, link) {
    if (s->is_closing)
      continue;
    s->is_closing = true;
    s->closer.run = close_idle;
    pool_push (e->pool, &s->closer, POOL_AHEAD);
  }
  e->contexts_check_ns =
    e->contexts.length > 0 ? now_ns + e->config.context_idle_ns
    : UINT64_MAX;
}
