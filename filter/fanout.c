/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fan-out of one request: see fanout.h.
 */
#include <pthread.h>
#include <glib.h>

#include "backend.h"
#include "clock.h"
#include "cond.h"
#include "contexts.h"
#include "fanout.h"
#include "lock.h"
#include "pool.h"
#include "split.h"
#include "stats.h"

/* They are on the caller's stack.  More would not help one request noticeably.
 */
enum { MAX_PIECES = 64 };

struct request {
  /* Constant while pieces run. */
  struct backend *backend;
  bool is_write;
  char *buf;
  uint64_t offset;
  bool hooked;                  /* the plugin's async hooks do the pieces */
  /* Under the lock. */
  struct lock lock;
  struct cond done;
  unsigned running;
};

struct piece {
  struct job job;               /* first */
  struct backend_io io;
  struct request *request;
  struct split_piece at;
  int err;                      /* published by request.lock */
};

static int
piece_do (struct request *r, struct split_piece at)
{
  char *buf = r->buf + (at.offset - r->offset);

  if (r->is_write)
    return backend_pwrite (r->backend, buf, at.count, at.offset, 0);
  return backend_pread (r->backend, buf, at.count, at.offset);
}

static void
piece_run (struct job *job)
{
  backend_io_do (&((struct piece *) job)->io);
}

static void
piece_done (struct backend_io *io, int err)
{
  struct piece *p =
    (struct piece *) ((char *) io - offsetof (struct piece, io));

  if (p->request->hooked)
    atomic_fetch_sub (io->backend->pieces, 1);
  LOCK_IN_SCOPE (&p->request->lock);
  p->err = err;
  if (--p->request->running == 0)
    cond_signal (&p->request->done);
}

static void
piece_init (struct piece *p, struct request *r)
{
  p->request = r;
  p->job.run = piece_run;
  p->io.backend = r->backend;
  p->io.done = piece_done;
  p->io.hook.is_write = r->is_write;
  p->io.hook.buf = r->buf + (p->at.offset - r->offset);
  p->io.hook.count = p->at.count;
  p->io.hook.offset = p->at.offset;
}

static void
count_running (struct request *r, int n)
{
  LOCK_IN_SCOPE (&r->lock);
  r->running += n;
}

/* All requests together have no more pieces in hooks than there are buffers. */
static bool
may_start (struct backend *b)
{
  if (atomic_fetch_add (b->pieces, 1) < b->max_pieces)
    return true;
  atomic_fetch_sub (b->pieces, 1);
  return false;
}

/* Gives pieces to hooks or idle workers, the last one first.  Returns how many
 * are left at the front: the caller does them as one.
 */
static unsigned
hand_out (struct pool *pool, struct request *r, struct piece *pieces,
          unsigned n)
{
  for (; n > 1; n--) {
    struct piece *p = &pieces[n - 1];

    piece_init (p, r);
    if (r->hooked && !may_start (r->backend))
      break;
    count_running (r, 1);
    if (r->hooked)
      backend_io_start (&p->io);
    else if (!pool_try_push (pool, &p->job, POOL_PIECE)) {
      count_running (r, -1);
      break;
    }
  }
  return n;
}

/* Does pieces on this thread that no worker has begun: a context that was free
 * may be used for other work now.
 */
static void
take_back (struct pool *pool, struct request *r, struct piece *pieces,
           unsigned from, unsigned n)
{
  for (unsigned i = from; i < n && !r->hooked; i++)
    if (pool_cancel (pool, &pieces[i].job))
      piece_run (&pieces[i].job);
}

/* The pieces from FROM to N are running, or have run. */
static void
wait_all (struct request *r, struct piece *pieces, unsigned from, unsigned n)
{
  for (;;) {
    {
      LOCK_IN_SCOPE (&r->lock);
      while (r->running > 0)
        if (!r->hooked)
          cond_wait (&r->done, lock_alone (&r->lock));
        else if (!cond_wait_until (&r->done, lock_alone (&r->lock),
                                   clock_ns () + BACKEND_POLL_NS))
          break;
      if (r->running == 0)
        return;
    }
    if (backend_is_silent (r->backend))
      for (unsigned i = from; i < n; i++)
        backend_io_give_up (&pieces[i].io);
  }
}

/* How many pieces would start at once, beside the caller's. */
static unsigned
idle_hands (struct pool *pool, const struct request *r, unsigned wanted)
{
  struct contexts *contexts = r->backend->contexts;

  if (r->hooked)
    return wanted;
  return contexts ? contexts_ready (contexts, wanted) : pool_idle (pool);
}

static int
fanout (struct pool *pool, struct request *r, uint32_t unit, uint32_t count)
{
  struct piece pieces[MAX_PIECES] = { 0 };
  struct split_piece mine = { .offset = r->offset };
  unsigned wanted = MIN (split_max (unit, count, r->offset), MAX_PIECES);
  unsigned hands = 1 + idle_hands (pool, r, wanted - 1);
  unsigned n = MIN (wanted, hands);
  unsigned left;
  int err;

  for (unsigned i = 0; i < n; i++)
    pieces[i].at = split_piece (unit, count, r->offset, n, i);
  left = hand_out (pool, r, pieces, n);
  for (unsigned i = 0; i < left; i++)
    mine.count += pieces[i].at.count;
  err = piece_do (r, mine);
  take_back (pool, r, pieces, left, n);
  wait_all (r, pieces, left, n);
  for (unsigned i = left; i < n && err == 0; i++)
    if (pieces[i].err)
      err = r->hooked ? pieces[i].err : piece_do (r, pieces[i].at);
  return err;
}

static int
run (struct pool *pool, struct request *r, uint32_t unit, uint32_t count)
{
  int err;

  lock_init_ranked (&r->lock, LOCK_LEAF);
  err = fanout (pool, r, unit, count);
  lock_destroy (&r->lock);
  return err;
}

static int
request_do (struct pool *pool, struct backend *b, bool is_write,
            uint32_t unit, char *buf, uint32_t count, uint64_t offset)
{
  struct request r = {
    .backend = b, .is_write = is_write, .buf = buf, .offset = offset,
    .hooked = backend_has_hook (b, is_write)
  };

  if (split_max (unit, count, offset) <= 1)
    return piece_do (&r, (struct split_piece) { offset, count });
  return run (pool, &r, unit, count);
}

int
fanout_pread (struct pool *pool, struct backend *b, uint32_t unit,
              void *buf, uint32_t count, uint64_t offset)
{
  return request_do (pool, b, false, unit, buf, count, offset);
}

int
fanout_pwrite (struct pool *pool, struct backend *b, uint32_t unit,
               const void *buf, uint32_t count, uint64_t offset)
{
  /* The buffer of a write is only read. */
  return request_do (pool, b, true, unit, (char *) (uintptr_t) buf, count,
                     offset);
}
