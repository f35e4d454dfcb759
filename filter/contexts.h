/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Contexts: further handles into a plugin that serves one call at a time for
 * each handle (nbdkit's SERIALIZE_REQUESTS).
 *
 * Every connection has a context of its own, which its requests use.  A struct
 * contexts has up to max more, and a pool of as many threads.  Background work
 * runs on these threads only.  So a demand read does not wait behind background
 * work, and the plugin never has two calls with one context.
 *
 * A thread leases a context before it takes a job (contexts_lease), and gives
 * it back when there is no job left.  It opens a context if none is free.  The
 * job stays queued meanwhile, so that another thread can take it.  If no
 * context is open and none can be opened, the thread uses the connection's own
 * context, in turn with that connection's requests (backend.c).  So each job
 * ends.
 *
 * A context is free, or leased by one thread.  A leased context breaks if an
 * operation fails with an error that another context may not have.  The thread
 * then closes it.
 *
 * After a failed open the filter does not try again for
 * config.context_retry_ns.  That time doubles with each further failure, six
 * times at most.  A context counts as a failed open if it breaks before its
 * first success, or within config.context_retry_ns of its opening.  So a server
 * that takes logins and then fails does not get one login after another.
 *
 * Connections share contexts if they name the same export, have the same
 * properties (backend_is_like) and the plugin says multi-conn.  Shared contexts
 * stay open for config.context_idle_ns after their last use, also when no
 * connection is left.  So short connections do not each open new contexts.
 *
 * Lock: contexts.lock, a leaf.  Release it before a call into the plugin.
 */
#ifndef ASYNCPOOL_CONTEXTS_H
#define ASYNCPOOL_CONTEXTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "backend.h"
#include "cond.h"
#include "lock.h"
#include "pool.h"

struct engine;

struct contexts {
  /* Constant. */
  struct engine *engine;
  struct backend like;          /* a new context must be like it
                                 * (backend_is_like) */
  char *export_name;
  unsigned max;
  struct pool *pool;            /* max threads */
  /* Under engine.lock. */
  unsigned refs;                /* connections */
  bool is_closing;              /* a job that closes idle contexts is queued or
                                 * runs */
  struct job closer;
  GList link;                   /* in engine.contexts */
  /* Under the lock. */
  struct lock lock;
  struct cond freed;            /* a context is free, or none is leased, or an
                                 * open has ended */
  GQueue free;                  /* the most recently used first */
  unsigned leased, opening;
  unsigned failures;            /* since the last new context that lasted */
  bool is_logged;               /* a failed open was logged; false again when
                                 * all are open */
  bool is_ending;               /* lease and open no more */
  /* Atomic, written under the lock. */
  atomic_uint n_open;           /* free and leased ones */
  atomic_uint_fast64_t closed_until_ns; /* no open before this time */
};

/* For conn_open.  Returns contexts that the connection shares, and counts it.
 * NULL: there are none.  Wants engine.lock.
 */
extern struct contexts *contexts_find (struct engine *, const char *export_name,
                                       const struct backend *like,
                                       unsigned max);
/* Sets *CP to contexts that no connection uses yet.  Returns 0, ENOMEM, or
 * EAGAIN if the threads cannot be started.  Call it without locks.
 */
extern int contexts_new (struct engine *, const char *export_name,
                         const struct backend *like, unsigned max,
                         struct contexts **cp);
/* Wants engine.lock.  Returns FRESH, or what contexts_find now finds in its
 * place.  In that case call contexts_free (FRESH), without the lock.
 */
extern struct contexts *contexts_join (struct contexts *fresh);
/* A connection does not use them any more.  Wants engine.lock. */
extern void contexts_put (struct contexts *);
/* Ends the threads and closes all contexts.  Call it without locks, when no job
 * is queued.
 */
extern void contexts_free (struct contexts *);

/* Whether background work can run: a context is open, or may be opened now. */
extern bool contexts_are_usable (struct contexts *);
/* Returns how many contexts are free, so that a job would start at once.  If
 * there are fewer than WANTED, opens contexts in the background.
 */
extern unsigned contexts_ready (struct contexts *, unsigned wanted);

/* Leases.  A thread of the pool calls these before and after its jobs. */
extern void contexts_lease (void *contexts);
extern void contexts_release (void *contexts);
/* The handle of this thread's context; NULL: it has no lease. */
extern void *contexts_leased (void);
/* An operation with this thread's context has completed, with ERR or 0. */
extern void contexts_note (int err);

/* Closes contexts that were idle for config.context_idle_ns, on a thread of the
 * engine's pool.  Call it at engine.contexts_check_ns.  Wants engine.lock.
 */
extern void contexts_close_idle (struct engine *, uint64_t now_ns);

#endif
