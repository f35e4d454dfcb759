/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "cond.h"
#include "latency.h"
#include "lock.h"
#include "service.h"

/* An operation is taken so early that copying lies within its delay, by
 * this much per byte: 10 GB/s, what one CPU copies at best.
 */
#define COPY_BYTES_PER_NS 10

/* It may well take ten times that, where memory is new.  From this size on
 * nobody is left to wait for it.
 */
#define LONG_BYTES (UINT32_C (1) << 20)

/* A thread may wake late by this part of the delay: one wake-up then serves
 * all that has become due meanwhile, and with it go a timer, two context
 * switches and some 10 us each.  At 64 ms it is 250 us: less than the
 * scheduler adds on a busy machine, and 0.4 % of the throughput.  At most
 * 1 ms, as a second would otherwise be late by more than one can see of it.
 */
#define SLACK_PART 256
#define MAX_SLACK_NS UINT64_C (1000000)

/* What waking another thread takes.  To be late by less is no reason to. */
#define CALL_NS UINT64_C (50000)

/* How often it is asked for a shutdown: as the library's own waits do. */
#define ASK_NS UINT64_C (250000000)

#define FIRST_CAPACITY 64

struct queued {
  uint64_t latest_ns;           /* a thread must take it by then */
  uint64_t earliest_ns;         /* a thread may take it from then on */
  uint64_t deadline_ns;         /* the reply */
  struct service_op op;
};

/* A thread and the operation it serves. */
struct slot {
  struct service *sv;           /* constant */
  pthread_t thread;             /* constant */
  struct queued q;              /* written by the thread under the lock */
  bool is_serving;              /* under the lock: q was not replied to */
};

struct service {
  /* Constant after service_new. */
  const struct service_calls *calls;

  /* Constant while threads run. */
  unsigned threads;
  struct slot slots[SERVICE_MAX_THREADS];

  pthread_mutex_t lock;
  struct cond lead;             /* for who leads */
  struct cond called;           /* for who is idle */
  struct cond replied;          /* for who cancels */

  /* Under the lock. */
  struct queued *heap;
  size_t n, capacity;
  uint64_t look_ns;
  bool leading;
  unsigned idle;                /* threads that wait and are not called */
  unsigned calls_pending;       /* threads called that have not woken yet */
  unsigned cancelling;          /* who waits for a reply */
  bool hurry;                   /* everything is due */
  bool stopping;
};

/* The heap, by latest_ns. */

static void
put_up (struct service *sv, size_t i, const struct queued *q)
{
  for (; i > 0; i = (i - 1) / 2) {
    if (sv->heap[(i - 1) / 2].latest_ns <= q->latest_ns)
      break;
    sv->heap[i] = sv->heap[(i - 1) / 2];
  }
  sv->heap[i] = *q;
}

static int
add_locked (struct service *sv, const struct queued *q)
{
  struct queued *heap;
  size_t capacity;

  if (sv->n == sv->capacity) {
    capacity = sv->capacity ? 2 * sv->capacity : FIRST_CAPACITY;
    heap = reallocarray (sv->heap, capacity, sizeof heap[0]);
    if (heap == NULL)
      return ENOMEM;
    sv->heap = heap;
    sv->capacity = capacity;
  }
  put_up (sv, sv->n++, q);
  return 0;
}

/* The hole goes down to the end, where the last one is put and goes up: it
 * mostly belongs there, having come late.
 */
static void
remove_locked (struct service *sv, size_t i, struct queued *q)
{
  const size_t n = --sv->n;
  size_t child;

  *q = sv->heap[i];
  while ((child = 2 * i + 1) < n) {
    if (child + 1 < n &&
        sv->heap[child + 1].latest_ns < sv->heap[child].latest_ns)
      child++;
    sv->heap[i] = sv->heap[child];
    i = child;
  }
  if (i < n)
    put_up (sv, i, &sv->heap[n]);
}

/* Threads. */

static bool
has_due_locked (const struct service *sv, uint64_t now)
{
  return sv->n > 0 && (sv->hurry || sv->heap[0].earliest_ns <= now);
}

/* True: who waits is to be signalled.  Best without the lock, as he wants it. */
static bool
call_idle_locked (struct service *sv)
{
  if (sv->idle == 0)
    return false;
  sv->idle--;
  sv->calls_pending++;
  return true;
}

/* When who serves it looks at the queue again. */
static uint64_t
back_ns (const struct service_op *op, uint64_t now)
{
  const uint64_t ns = op->count / COPY_BYTES_PER_NS;

  return now + CALL_NS + (op->count < LONG_BYTES ? ns : 10 * ns);
}

static void
serve_locked (struct service *sv, struct slot *me, uint64_t now)
{
  const struct queued *q = &me->q;
  bool hurry, call = false;

  remove_locked (sv, 0, &me->q);
  me->is_serving = true;
  hurry = sv->hurry;
  if (!sv->leading) {
    sv->look_ns = back_ns (&q->op, now);
    if (sv->n > 0 && (hurry || sv->heap[0].latest_ns < sv->look_ns))
      call = call_idle_locked (sv);
  }
  pthread_mutex_unlock (&sv->lock);
  if (call)
    cond_signal (&sv->called);

  sv->calls->apply (&q->op);
  if (!hurry && now < q->deadline_ns && clock_ns () < q->deadline_ns)
    latency_sleep_until (q->deadline_ns);
  sv->calls->reply (&q->op);

  pthread_mutex_lock (&sv->lock);
  me->is_serving = false;
  if (sv->cancelling > 0)
    cond_broadcast (&sv->replied);
}

/* Still leading while it asks: a signal is lost then, but the queue is
 * looked at right after.
 */
static void
ask_locked (struct service *sv)
{
  bool r;

  pthread_mutex_unlock (&sv->lock);
  r = sv->calls->is_shutting_down ();
  pthread_mutex_lock (&sv->lock);
  if (r)
    sv->hurry = true;
}

static void
lead_locked (struct service *sv, uint64_t now)
{
  bool ask = false;

  sv->leading = true;
  sv->look_ns = UINT64_MAX;
  if (sv->n == 0)
    cond_wait (&sv->lead, &sv->lock);
  else {
    sv->look_ns = sv->heap[0].latest_ns;
    if (sv->calls->is_shutting_down && sv->look_ns > now + ASK_NS) {
      sv->look_ns = now + ASK_NS;
      ask = true;
    }
    now = sv->look_ns;
    cond_wait_until (&sv->lead, &sv->lock, now);
    if (ask && !sv->stopping && clock_ns () >= now)
      ask_locked (sv);
  }
  sv->leading = false;
}

static void
idle_locked (struct service *sv)
{
  sv->idle++;
  while (sv->calls_pending == 0 && !sv->stopping)
    cond_wait (&sv->called, &sv->lock);
  if (sv->calls_pending > 0)
    sv->calls_pending--;
  else
    sv->idle--;
}

static void *
run (void *slot)
{
  struct slot *me = slot;
  struct service *sv = me->sv;
  uint64_t now;

  pthread_mutex_lock (&sv->lock);
  for (;;) {
    now = clock_ns ();
    if (has_due_locked (sv, now))
      serve_locked (sv, me, now);
    else if (sv->stopping)      /* all is due then, so there is nothing */
      break;
    else if (!sv->leading)
      lead_locked (sv, now);
    else
      idle_locked (sv);
  }
  pthread_mutex_unlock (&sv->lock);
  return NULL;
}

struct service *
service_new (const struct service_calls *calls)
{
  struct service *sv = calloc (1, sizeof *sv);

  if (sv == NULL)
    return NULL;
  sv->calls = calls;
  lock_init (&sv->lock);
  return sv;
}

void
service_free (struct service *sv)
{
  if (sv == NULL)
    return;
  service_stop (sv);
  pthread_mutex_destroy (&sv->lock);
  free (sv->heap);
  free (sv);
}

/* Signals are the server's: they go to its threads. */
int
service_start (struct service *sv, unsigned threads)
{
  sigset_t all, before;
  struct slot *slot;
  int r = 0;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  while (r == 0 && sv->threads < threads) {
    slot = &sv->slots[sv->threads];
    slot->sv = sv;
    r = pthread_create (&slot->thread, NULL, run, slot);
    if (r == 0)
      sv->threads++;
  }
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (r != 0)
    service_stop (sv);
  return r;
}

void
service_stop (struct service *sv)
{
  pthread_mutex_lock (&sv->lock);
  sv->hurry = sv->stopping = true;
  cond_signal (&sv->lead);
  cond_broadcast (&sv->called);
  pthread_mutex_unlock (&sv->lock);
  while (sv->threads > 0)
    pthread_join (sv->slots[--sv->threads].thread, NULL);
}

/* The caller's side. */

static uint64_t
min_ns (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* Who is to be signalled, if anyone, so that a thread looks at the queue by
 * WHEN.  In a hurry too: then who leads has an empty queue, and anything is
 * before UINT64_MAX.
 */
static struct cond *
see_to_it_locked (struct service *sv, uint64_t when, uint64_t now)
{
  /* Who serves should be back by look_ns, but may be held up. */
  if (when >= sv->look_ns && (sv->leading || sv->look_ns >= now))
    return NULL;
  if (!sv->leading && !call_idle_locked (sv))
    return NULL;
  sv->look_ns = when;
  return sv->leading ? &sv->lead : &sv->called;
}

int
service_submit (struct service *sv, const struct service_op *op,
                uint64_t delay_ns)
{
  const uint64_t now = clock_ns ();
  const uint64_t slack_ns = min_ns (delay_ns / SLACK_PART, MAX_SLACK_NS);
  const uint64_t copy_ns =
    min_ns (op->count / COPY_BYTES_PER_NS, delay_ns);
  struct queued q = {
    .deadline_ns = now + delay_ns,
    .earliest_ns = now + delay_ns - copy_ns,
    .latest_ns = now + delay_ns - copy_ns + slack_ns,
    .op = *op,
  };
  struct cond *waiting = NULL;
  int r;

  pthread_mutex_lock (&sv->lock);
  r = add_locked (sv, &q);
  if (r == 0)
    waiting = see_to_it_locked (sv, q.latest_ns, now);
  pthread_mutex_unlock (&sv->lock);
  if (waiting)
    cond_signal (waiting);
  return r;
}

static bool
is_named (const struct service_op *op, const void *conn, uint64_t reqid)
{
  return op->reqid == reqid && op->conn == conn;
}

/* Not for himself. */
static void
wait_replied_locked (struct service *sv, const struct slot *slot,
                     const void *conn, uint64_t reqid)
{
  if (pthread_equal (slot->thread, pthread_self ()))
    return;
  sv->cancelling++;
  while (slot->is_serving && is_named (&slot->q.op, conn, reqid))
    cond_wait (&sv->replied, &sv->lock);
  sv->cancelling--;
}

/* Looks at all there are: it is rare, and the queue is not long. */
bool
service_cancel (struct service *sv, void *conn, uint64_t reqid,
                struct service_op *op)
{
  struct queued q;
  bool found = false;

  pthread_mutex_lock (&sv->lock);
  for (size_t i = 0; i < sv->n && !found; i++)
    if (is_named (&sv->heap[i].op, conn, reqid)) {
      remove_locked (sv, i, &q);
      *op = q.op;
      found = true;
    }
  for (unsigned i = 0; i < sv->threads && !found; i++)
    if (is_named (&sv->slots[i].q.op, conn, reqid))
      wait_replied_locked (sv, &sv->slots[i], conn, reqid);
  pthread_mutex_unlock (&sv->lock);
  return found;
}
