/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The worker threads: one exclusive GThreadPool, and the queues of jobs.
 *
 * GLib starts the threads and gives each one task, which lasts as long as the
 * thread.  The jobs are in queues of our own.  A thread that is called takes
 * the most urgent job, then the next, until there is none.  So pool_cancel can
 * take a queued job back: a demand read never waits behind background work.
 * All that a job publishes passes through pool.lock, which thread checkers see.
 *
 * The pool starts a thread for a job if all others are at work.  A thread that
 * was not needed for idle_ns ends, unless it is the last one.  If the system
 * refuses a thread, the job waits for the others, and the pool starts none for
 * idle_ns.
 *
 * To wake a thread costs more than anything else here.  If many threads are at
 * work, one of them ends its job soon and takes the next one without a wake-up.
 * So with N threads at work, N / 128 jobs may stay queued.  They stay for a
 * 128th of a latency if the threads end their jobs evenly.  They cost a 128th
 * of the throughput if all jobs end at once.  Callers that wait for a job call
 * pool_wake_idle.  If no caller waits, the write-back thread does so, as the
 * threads at work may hang.
 *
 * A job belongs to its submitter until run () is called or pool_cancel ()
 * succeeds; run () may free or queue it again.  A job must not wait for
 * another job that is only queued.
 *
 * Lock: pool.lock, a leaf: taken with or without engine.lock.
 */
#ifndef ASYNCPOOL_POOL_H
#define ASYNCPOOL_POOL_H

#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

/* Most urgent first: a client waits for a piece, a flush may wait for a write.
 */
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

/* Starts and ends THREADS threads, to learn before a fork whether the system
 * allows them.  Returns 0 or an errno.
 */
extern int pool_try_threads (unsigned threads);
/* Starts the first of at most MAX_THREADS threads.  NULL with a GError if the
 * system does not allow that.
 */
extern struct pool *pool_new (unsigned max_threads, uint64_t idle_ns,
                              GError **);
/* A thread calls BEFORE with DATA before it takes a job, and AFTER when it has
 * found no more.  Both are called without locks.  Another thread may take the
 * job meanwhile.  To be set before the first push.
 */
extern void pool_set_around (struct pool *, void (*before) (void *data),
                             void (*after) (void *data), void *data);
/* Waits for the jobs that run.  No job may be queued that has no thread on its
 * way.
 */
extern void pool_free (struct pool *);
/* Returns false if the job waits for a busy thread although others are idle. */
extern bool pool_push (struct pool *, struct job *, enum pool_queue);
/* Queues the job only if a thread is idle or can be started, so that it starts
 * at once.  Returns whether it did.
 */
extern bool pool_try_push (struct pool *, struct job *, enum pool_queue);
/* Calls a thread for each queued job, as far as there are threads. */
extern void pool_wake_idle (struct pool *);
/* Takes a job back that has not started.  False: it has, or was not queued. */
extern bool pool_cancel (struct pool *, struct job *);
/* Whether jobs of that queue wait for a thread. */
extern bool pool_has_queued (struct pool *, enum pool_queue);
/* How many further threads could take a job now, idle ones and ones that are
 * not started: advice, it may have changed already.
 */
extern unsigned pool_idle (struct pool *);
/* How many threads there are, and how many of them are called or work. */
extern unsigned pool_threads (struct pool *);
extern unsigned pool_busy (struct pool *);

#endif
