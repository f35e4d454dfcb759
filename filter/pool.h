/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The worker threads: one exclusive GThreadPool, and the queues of what they are to do.
 *
 * GLib's own queue holds only tokens, at most one per thread: a token is a worker that will come
 * and take the most urgent job there is, and the next, until there is none.  So a queued job can be
 * taken back (pool_cancel), which is how a read that a client waits for never waits behind
 * background work, and all that a job publishes passes through our mutex, which thread checkers see.
 *
 * Waking a thread costs more than anything else here does.  Where many threads are at work, one of
 * them ends its job soon and takes the next without being woken: with WORKERS at work, WORKERS / 128
 * jobs may stay queued for that.  They stay for a 128th of a latency if the threads end evenly, and
 * cost a 128th of the throughput if all end at once.  What waits for a job calls pool_hurry, and so does
 * the linger thread where none does (engine.patient_since_ns): the threads at work may hang.
 *
 * A job belongs to its submitter until run () is called or pool_cancel () succeeds; run () may free
 * or queue it again.  A job must not wait for another job that is only queued.
 *
 * Lock: pool.lock, a leaf: taken with or without the engine's lock, nothing is taken under it.
 */
#ifndef ASYNCPOOL_POOL_H
#define ASYNCPOOL_POOL_H

#include <stdbool.h>
#include <glib.h>

/* Most urgent first: a client waits for a piece, a flush may wait for a write, nobody for the rest. */
enum pool_queue { POOL_PIECE, POOL_WRITE, POOL_AHEAD, POOL_QUEUES };

struct job {
  /* Under pool.lock. */
  GList link;
  bool queued;
  enum pool_queue queue;
  /* The submitter's. */
  void (*run) (struct job *);
};

struct pool;

/* 0, or the errno if the system does not give THREADS threads: starts and ends
 * them.  For the time before a fork, as no thread survives that.
 */
extern int pool_try_threads (unsigned threads);
/* Starts THREADS threads.  NULL with a GError where the system does not give them. */
extern struct pool *pool_new (unsigned threads, GError **);
/* Waits for what runs; nothing may be queued any more. */
extern void pool_free (struct pool *);
/* True: a thread is on its way to the job, or at work and may take it.  False: only the latter, though
 * others are idle.
 */
extern bool pool_push (struct pool *, struct job *, enum pool_queue);
/* Queues the job only if a thread is idle, so that it starts at once. */
extern bool pool_try_push (struct pool *, struct job *, enum pool_queue);
/* Somebody waits: no job stays queued while there is an idle thread. */
extern void pool_hurry (struct pool *);
/* Takes a job back that has not started.  False: it has, or never was queued. */
extern bool pool_cancel (struct pool *, struct job *);
/* Whether jobs of that queue wait for a thread. */
extern bool pool_has_queued (struct pool *, enum pool_queue);
/* How many threads have nothing to do.  Advice: it may have changed already. */
extern unsigned pool_idle (struct pool *);

#endif
