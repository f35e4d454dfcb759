/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See service.h for states, invariants and locks.
 */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "clock.h"
#include "cond.h"
#include "latency.h"
#include "lock.h"
#include "service.h"

/* 10 GB/s, the best that one CPU reaches.  A thread takes an operation early by
 * the time of its copy at this speed, so that the copy lies within the delay.
 */
#define COPY_BYTES_PER_NS 10

/* The copy may take ten times as long if the memory is new.  From this size on,
 * other threads expect that it does.
 */
#define LONG_BYTES (UINT32_C (1) << 20)

/* A thread may wake late by this part of the delay.  One wake-up then serves
 * all operations that are due meanwhile, which saves a timer and two context
 * switches for each.  At 64 ms it is 250 us, less than a busy scheduler adds,
 * and 0.4 % of the throughput.
 */
#define SLACK_PART 256
#define MAX_SLACK_NS UINT64_C (1000000)

/* The cost of waking another thread.  A smaller delay does not justify it. */
#define CALL_NS UINT64_C (50000)

/* How often a thread calls is_shutting_down, as often as requests.c asks. */
#define ASK_NS UINT64_C (250000000)

#define FIRST_CAPACITY 64

struct queued {
  uint64_t latest_ns;           /* a thread must take it by then */
  uint64_t earliest_ns;         /* a thread may take it from then on */
  uint64_t deadline_ns;         /* of the reply */
  struct service_op op;
};

/* A thread and the operation that it serves. */
struct slot {
  struct service *sv;           /* constant */
  pthread_t thread;             /* constant */
  struct queued q;              /* written by the thread under the lock */
  bool is_serving;              /* under the lock: q has no reply yet */
};

struct service {
  /* Constant after service_new. */
  const struct service_calls *calls;

  /* Constant while threads run. */
  unsigned threads;
  struct slot slots[SERVICE_MAX_THREADS];

  pthread_mutex_t lock;
  struct cond lead;             /* the leading thread waits */
  struct cond called;           /* idle threads wait */
  struct cond replied;          /* service_cancel waits */

  /* Under the lock. */
  struct queued *heap;          /* by latest_ns */
  size_t n, capacity;
  uint64_t look_ns;
  bool leading;
  unsigned idle;                /* idle threads that are not called */
  unsigned calls_pending;       /* called threads that have not woken yet */
  unsigned cancelling;          /* threads that wait for a reply */
  bool hurry;                   /* everything is due */
  bool stopping;
};

static uint64_t
min_ns (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* The heap. */

static void
put_up_locked (struct service *sv, size_t i, const struct queued *q)
{
  for (; i > 0 && sv->heap[(i - 1) / 2].latest_ns > q->latest_ns;
       i = (i - 1) / 2)
    sv->heap[i] = sv->heap[(i - 1) / 2];
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
  put_up_locked (sv, sv->n++, q);
  return 0;
}

/* The gap goes down to the end.  The last operation goes there and then up: it
 * mostly stays there, as it came late.
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
    put_up_locked (sv, i, &sv->heap[n]);
}

/* Threads. */

static bool
has_due_locked (const struct service *sv, uint64_t now)
{
  return sv->n > 0 && (sv->hurry || sv->heap[0].earliest_ns <= now);
}

/* Returns true if the caller is to signal CALLED.  It does so best without the
 * lock, which the woken thread needs.
 */
static bool
call_idle_locked (struct service *sv)
{
  if (sv->idle == 0)
    return false;
  sv->idle--;
  sv->calls_pending++;
  return true;
}

/* When a thread that serves OP looks at the queue again. */
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

static void
lead_locked (struct service *sv, uint64_t now)
{
  bool ask = false;

  sv->leading = true;
  sv->look_ns = sv->n > 0 ? sv->heap[0].latest_ns : UINT64_MAX;
  if (sv->n > 0 && sv->calls->is_shutting_down &&
      sv->look_ns > now + ASK_NS) {
    sv->look_ns = now + ASK_NS;
    ask = true;
  }
  now = sv->look_ns;
  cond_wait_until (&sv->lead, &sv->lock, now);
  if (ask && !sv->stopping && clock_ns () >= now) {
    /* A signal is lost meanwhile, but this thread looks at the queue next. */
    pthread_mutex_unlock (&sv->lock);
    ask = sv->calls->is_shutting_down ();
    pthread_mutex_lock (&sv->lock);
    sv->hurry |= ask;
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
    else if (sv->stopping)      /* everything is due then, so nothing is left */
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

/* The threads block all signals, which are for the server's own threads. */
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

/* Makes sure that a thread looks at the queue by WHEN.  Returns the condition
 * that the caller is to signal, or NULL.  In a hurry the leading thread has an
 * empty queue, so any time is before look_ns.
 */
static struct cond *
call_by_locked (struct service *sv, uint64_t when, uint64_t now)
{
  /* A serving thread should be back by look_ns, but may be late. */
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
  const uint64_t copy_ns = min_ns (op->count / COPY_BYTES_PER_NS, delay_ns);
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
    waiting = call_by_locked (sv, q.latest_ns, now);
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

/* Looks at all operations: it is rare, and the queue is not long. */
bool
service_cancel (struct service *sv, void *conn, uint64_t reqid,
                struct service_op *op)
{
  struct slot *slot;
  struct queued q;
  bool found = false;

  pthread_mutex_lock (&sv->lock);
  for (size_t i = 0; i < sv->n && !found; i++)
    if (is_named (&sv->heap[i].op, conn, reqid)) {
      remove_locked (sv, i, &q);
      *op = q.op;
      found = true;
    }
  sv->cancelling++;
  for (slot = sv->slots; !found && slot < &sv->slots[sv->threads]; slot++)
    while (slot->is_serving && is_named (&slot->q.op, conn, reqid) &&
           !pthread_equal (slot->thread, pthread_self ()))
      cond_wait (&sv->replied, &sv->lock);
  sv->cancelling--;
  pthread_mutex_unlock (&sv->lock);
  return found;
}
