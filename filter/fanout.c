#include <pthread.h>
#include <glib.h>

#include "backend.h"
#include "fanout.h"
#include "guard.h"
#include "pool.h"
#include "split.h"

/* On the caller's stack: more hands than this do not help one request noticeably. */
enum { MAX_PIECES = 64 };

struct request {
  /* Constant while pieces run. */
  struct backend *backend;
  char *read_to;                /* one of these two */
  const char *write_from;
  uint64_t offset;
  /* Under the lock. */
  pthread_mutex_t lock;
  pthread_cond_t done;
  unsigned running;
};

struct piece {
  struct job job;
  struct request *request;
  struct split_piece at;
  int err;                      /* published by request.lock */
};

static int
piece_do (struct request *r, struct split_piece at)
{
  uint64_t skip = at.offset - r->offset;

  if (r->read_to)
    return backend_pread (r->backend, r->read_to + skip, at.count, at.offset);
  return backend_pwrite (r->backend, r->write_from + skip, at.count, at.offset, 0);
}

static void
piece_run (struct job *job)
{
  struct piece *p = (struct piece *) job;
  int err = piece_do (p->request, p->at);

  LOCK_IN_SCOPE (&p->request->lock);
  p->err = err;
  if (--p->request->running == 0)
    pthread_cond_signal (&p->request->done);
}

/* Gives pieces to idle workers, the last first.  Returns how many are left, from the front: they are
 * neighbours, and the caller does them as one.
 */
static unsigned
hand_out (struct pool *pool, struct request *r, struct piece *pieces, unsigned n)
{
  LOCK_IN_SCOPE (&r->lock);
  for (; n > 1; n--) {
    pieces[n - 1].request = r;
    pieces[n - 1].job.run = piece_run;
    if (!pool_try_push (pool, &pieces[n - 1].job, POOL_PIECE))
      break;
    r->running++;
  }
  return n;
}

static void
wait_all (struct request *r)
{
  LOCK_IN_SCOPE (&r->lock);
  while (r->running > 0)
    pthread_cond_wait (&r->done, &r->lock);
}

static int
fanout (struct pool *pool, struct request *r, uint32_t unit, uint32_t count)
{
  struct piece pieces[MAX_PIECES] = { 0 };
  struct split_piece mine = { .offset = r->offset };
  unsigned idle = pool_idle (pool);     /* asked once: it changes, and MIN () evaluates twice */
  unsigned hands = MIN (1 + idle, MAX_PIECES);
  unsigned n = MIN (split_max (unit, count, r->offset), hands);
  unsigned left;
  int err;

  for (unsigned i = 0; i < n; i++)
    pieces[i].at = split_piece (unit, count, r->offset, n, i);
  left = hand_out (pool, r, pieces, n);
  for (unsigned i = 0; i < left; i++)
    mine.count += pieces[i].at.count;
  err = piece_do (r, mine);
  wait_all (r);
  for (unsigned i = left; i < n && err == 0; i++)
    if (pieces[i].err)
      err = piece_do (r, pieces[i].at);
  return err;
}

static int
run (struct pool *pool, struct request *r, uint32_t unit, uint32_t count)
{
  int err;

  pthread_mutex_init (&r->lock, NULL);
  pthread_cond_init (&r->done, NULL);
  err = fanout (pool, r, unit, count);
  pthread_cond_destroy (&r->done);
  pthread_mutex_destroy (&r->lock);
  return err;
}

int
fanout_pread (struct pool *pool, struct backend *b, uint32_t unit,
              void *buf, uint32_t count, uint64_t offset)
{
  struct request r = { .backend = b, .read_to = buf, .offset = offset };

  if (split_max (unit, count, offset) <= 1)
    return backend_pread (b, buf, count, offset);
  return run (pool, &r, unit, count);
}

int
fanout_pwrite (struct pool *pool, struct backend *b, uint32_t unit,
               const void *buf, uint32_t count, uint64_t offset)
{
  struct request r = { .backend = b, .write_from = buf, .offset = offset };

  if (split_max (unit, count, offset) <= 1)
    return backend_pwrite (b, buf, count, offset, 0);
  return run (pool, &r, unit, count);
}
