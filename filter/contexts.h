/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Contexts: further handles into a plugin that serves one call at a time for
 * each handle (nbdkit's SERIALIZE_REQUESTS).
 *
 * Every connection has a context of its own, which its requests use.  A struct
 * contexts has up to max more, and a pool of as many threads.  Background work
 * runs on these threads only.  So no background work is in front of a demand
 * read, and no two calls are in the plugin with one context.
 *
 * A thread leases a context before it takes a job (contexts_lease), and gives
 * it back when there is no job left.  It opens a context if none is free; its
 * job stays queued meanwhile, so that another thread can take it.  If no
 * context can be had the thread uses the connection's own one, in turn with
 * that connection's requests (backend.c).  So each job ends.
 *
 *   a context is: free, or leased by one thread; a leased one may be broken
 *   (an operation failed with an error that another context may not have).  A
 *   broken one is closed, not used again.
 *
 * After a failed open there is no other try for config.context_retry_ns.  That
 * time doubles with each further failure, six times at most.  A context that
 * breaks before its first success counts as a failed open.
 *
 * Connections share contexts if they name the same export and the plugin says
 * multi-conn.  Contexts stay for config.context_idle_ns when no connection uses
 * them, so that short connections do not open new ones.
 *
 * Lock: contexts.lock, a leaf.  No call into the plugin is made with it.
 */
#ifndef ASYNCPOOL_CONTEXTS_H
#define ASYNCPOOL_CONTEXTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "backend.h"
#include "cond.h"
#include "pool.h"

struct engine;

struct contexts {
  /* Constant. */
  struct engine *engine;
  struct backend like;          /* a new context must answer as this one */
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
  pthread_mutex_t lock;
  struct cond freed;            /* a context is free, or none is leased */
  GQueue free;                  /* the latest used first */
  unsigned leased, opening;
  unsigned failures;            /* since a new context has worked */
  bool is_logged;               /* a failed open; until all are open */
  bool is_ending;               /* open no more */
  /* Atomic, written under the lock. */
  atomic_uint n_open;           /* free and leased ones */
  atomic_uint_fast64_t closed_until_ns; /* no open before this time */
};

/* For conn_open.  *CP: contexts that are not shared yet.  EAGAIN: the threads
 * cannot be started.  ENOMEM.
 */
extern int contexts_new (struct engine *, const char *export_name,
                         const struct backend *like, unsigned max,
                         struct contexts **cp);
/* Wants engine.lock.  Returns FRESH, or the ones to use in its place: then
 * contexts_free FRESH, without the lock.
 */
extern struct contexts *contexts_join (struct contexts *fresh);
/* A connection does not use them any more.  Wants engine.lock. */
extern void contexts_put (struct contexts *);
/* Ends the threads and closes all contexts.  No job is queued.  Without locks.
 */
extern void contexts_free (struct contexts *);

/* Whether background work makes sense: a context is open, or may be opened now.
 */
extern bool contexts_are_usable (struct contexts *);
/* How many threads would serve a job at once.  If there are fewer than WANTED,
 * opens contexts in the background.
 */
extern unsigned contexts_ready (struct contexts *, unsigned wanted);

/* Leases.  The pool calls these around a thread's jobs. */
extern void contexts_lease (void *contexts);
extern void contexts_release (void *contexts);
/* The handle of this thread's lease; NULL: none. */
extern void *contexts_leased (void);
/* An operation with this thread's lease has completed. */
extern void contexts_note (int err);

/* At engine.contexts_check_ns: closes contexts that were not used for
 * config.context_idle_ns, on a thread of the engine's pool.  Wants engine.lock.
 */
extern void contexts_close_idle (struct engine *, uint64_t now_ns);

#endif
