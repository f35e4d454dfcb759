/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Block status: see extents.h.
 */
#include <errno.h>

#include "clock.h"
#include "dispatch.h"
#include "extents.h"
#include "lock.h"

/* The sets. */

void
extents_init (struct engine *e)
{
  lock_init_ranked (&e->extents.lock, LOCK_INNER);
}

void
extents_destroy (struct engine *e)
{
  lock_destroy (&e->extents.lock);
}

/* Updates in_use after a change of the sets or the questions.  Wants the lock.
 */
static void
count_locked (struct extents *x)
{
  unsigned n = x->questions.length;

  QUEUE_FOREACH (struct device_extents, d, &x->sets, link)
    n += d->set.n;
  if (n != atomic_load (&x->in_use))
    atomic_store (&x->in_use, n);
}

static bool
is_in_use (struct engine *e)
{
  return atomic_load (&e->extents.in_use) > 0;
}

static void
clear_locked (struct extents *x, struct device_extents *d)
{
  extentset_clear (&d->set);
  if (d->is_linked)
    g_queue_unlink (&x->sets, &d->link);
  d->is_linked = false;
}

void
extents_forget (struct device *d)
{
  struct extents *x = &d->export->engine->extents;

  LOCK_IN_SCOPE (&x->lock);
  clear_locked (x, &d->extents);
  count_locked (x);
}

static void
drop_locked (struct extents *x, uint64_t offset, uint64_t end)
{
  QUEUE_FOREACH (struct device_extents, d, &x->sets, link) {
    extentset_drop (&d->set, offset, end);
    if (d->set.n == 0)
      clear_locked (x, d);
  }
}

/* While a set has extents, each change takes the lock.  So drops the sets when
 * all answers are too old.  Wants the lock.
 */
static void
drop_old_locked (struct engine *e)
{
  struct extents *x = &e->extents;

  if (x->sets.length > 0 && clock_ns () > x->newest_ns + e->config.status_ns)
    drop_locked (x, 0, UINT64_MAX);
}

void
extents_change (struct engine *e, uint64_t offset, uint64_t end)
{
  struct extents *x = &e->extents;

  if (!is_in_use (e))
    return;
  LOCK_IN_SCOPE (&x->lock);
  drop_old_locked (e);
  drop_locked (x, offset, end);
  QUEUE_FOREACH (struct question, q, &x->questions, link)
    changes_add (&q->changes, offset, end);
  count_locked (x);
}

/* An answer that was asked for before this time is too old. */
static uint64_t
since (const struct engine *e)
{
  uint64_t now_ns = clock_ns (), age_ns = e->config.status_ns;

  return now_ns > age_ns ? now_ns - age_ns : 0;
}

/* Where the known extents from OFFSET on end.  Wants the lock. */
static uint64_t
known_end_locked (const struct extentset *s, uint64_t offset, uint64_t since_ns)
{
  for (int i = extentset_find (s, offset, since_ns); i >= 0;
       i = extentset_next (s, i, since_ns))
    offset = s->at[i].to;
  return offset;
}

/* Copies the known extents of the range to ANSWER, from OFFSET to the first
 * gap.  Returns false if there are none.
 */
static bool
look_up (struct device *d, uint64_t offset, uint64_t end, bool is_one,
         struct extentset *answer)
{
  const struct extentset *s = &d->extents.set;
  uint64_t since_ns = since (d->export->engine);
  unsigned type = 0;

  LOCK_IN_SCOPE (&d->export->engine->extents.lock);
  for (int i = extentset_find (s, offset, since_ns);
       i >= 0 && s->at[i].from < end; i = extentset_next (s, i, since_ns)) {
    struct extent a = { .from = MAX (s->at[i].from, offset),
                        .to = MIN (s->at[i].to, end), .type = s->at[i].type };

    if (is_one && answer->n > 0 && a.type != type)
      break;
    type = a.type;
    if (!extentset_add (answer, a))
      break;
  }
  return answer->n > 0;
}

/* Answers. */

static void
report_data (struct extentset *answer, uint64_t from, uint64_t to,
             uint64_t offset, uint64_t end)
{
  struct extent x = { .from = MAX (from, offset), .to = MIN (to, end) };

  if (x.from < x.to)
    extentset_add (answer, x);
}

/* Reports waiting data as data.  Wants engine.lock. */
static void
report_waiting (struct engine *e, struct extentset *answer, uint64_t offset,
                uint64_t end)
{
  BUFFERS_FOREACH (b, e, offset, end) {
    for (unsigned i = 0; buf_is_waiting (b) && i < buf_n_pieces (b); i++) {
      struct span p = buf_piece (b, i);

      report_data (answer, b->base + p.lo, b->base + p.hi, offset, end);
    }
  }
}

/* Whether the filter may serve the connection kept answers there.  Wants
 * engine.lock.
 */
static bool
may_use (struct conn *c, uint64_t offset, uint64_t end)
{
  return c->shares && !device_hides_own (c, offset, end);
}

static bool
answer_from_set (struct conn *c, uint64_t offset, uint64_t end, bool is_one,
                 struct extentset *answer)
{
  struct engine *e = c->engine;

  if (!is_in_use (e))
    return false;
  ENGINE_LOCK_THEN_DISPATCH (e);
  if (!may_use (c, offset, end)
      || !look_up (c->device, offset, end, is_one, answer))
    return false;
  report_waiting (e, answer, offset, end);
  stats_add (e->stats, STATS_EXTENTS_KEPT, 1);
  return true;
}

/* Questions. */

/* Whether to keep answers.  On a fast device they save nothing. */
static bool
may_keep (struct conn *c)
{
  return c->engine->config.read == READ_AHEAD
    && (speed_wait_ns (c->backend.extents_speed) > 0
        || speed_wait_ns (c->backend.read_speed) > 0);
}

/* Wants the lock. */
static void
begin_locked (struct question *q, struct conn *c, uint64_t from, uint64_t to)
{
  struct extents *x = &c->engine->extents;

  *q = (struct question) {
    .conn = c, .id = ++x->last_id, .from = from, .to = to,
    .asked_ns = clock_ns (), .link.data = q
  };
  g_queue_push_tail_link (&x->questions, &q->link);
  count_locked (x);
}

/* Wants the lock. */
static void
end_locked (struct question *q)
{
  struct extents *x = &q->conn->engine->extents;

  g_queue_unlink (&x->questions, &q->link);
  count_locked (x);
  cond_broadcast (&x->answered);
}

/* Keeps an answer, except where the plugin's data has changed or is changing.
 * Wants engine.lock and extents.lock.
 */
static void
keep_locked (const struct question *q, const struct extentset *answer)
{
  struct engine *e = q->conn->engine;
  struct device_extents *d = &q->conn->device->extents;
  struct extents *x = &e->extents;

  if (!q->conn->shares || !may_keep (q->conn)
      || atomic_load (&e->order.unregistered) > 0)
    return;
  d->set.max = EXTENTS_KEPT;
  for (unsigned i = 0; i < answer->n; i++) {
    struct extent a = answer->at[i];

    a.asked_ns = q->asked_ns;
    extentset_add (&d->set, a);
  }
  for (unsigned i = 0; i < q->changes.n; i++)
    extentset_drop (&d->set, q->changes.at[i].from, q->changes.at[i].to);
  QUEUE_FOREACH (struct direct, o, &e->order.directs, link)
    extentset_drop (&d->set, o->offset, o->end);
  x->newest_ns = MAX (x->newest_ns, q->asked_ns);
  if (!d->is_linked) {
    d->is_linked = true;
    d->link.data = d;
    g_queue_push_tail_link (&x->sets, &d->link);
  }
  if (d->set.n == 0)
    clear_locked (x, d);
}

/* How many bytes a question is about; 0: as many as the client's.  Wants the
 * lock.
 */
static uint64_t
window_locked (const struct conn *c)
{
  if (clock_ns () < c->extents.narrow_ns)
    return 0;
  return MAX (c->extents.window, EXTENTS_WINDOW_MIN);
}

/* Makes the next question four times as long.  If this answer was full, the
 * next question is as long as the range that the answer covers.  Wants the
 * lock.
 */
static void
adapt_locked (struct conn *c, const struct question *q,
              const struct extentset *answer)
{
  uint64_t window = answer->n < answer->max ? 4 * (q->to - q->from)
    : answer->at[answer->n - 1].to - q->from;

  c->extents.window = CLAMP (window, EXTENTS_WINDOW_MIN, EXTENTS_WINDOW_MAX);
}

/* The end of a range to ask for, at or after END. */
static uint64_t
limit (const struct conn *c, uint64_t from, uint64_t end, uint64_t window)
{
  uint64_t to = MIN (from + window, c->backend.size);

  return MAX (to - (to - from) % c->backend.min_block, end);
}

struct asked {
  struct extentset *answer;
  uint64_t end;                 /* the end of the extents so far */
};

/* Adds an extent.  If there is no room for it, the answer ends before it. */
static void
add (void *vp, uint64_t offset, uint64_t end, unsigned type)
{
  struct asked *a = vp;
  struct extent x = { .from = offset, .to = end, .type = type };

  if (offset == a->end && extentset_add (a->answer, x))
    a->end = end;
}

/* Asks the plugin.  ANSWER gets at least one extent, from FROM on. */
static int
ask_plugin (struct conn *c, uint64_t from, uint64_t to, bool is_one,
            struct extentset *answer)
{
  struct asked a = { .answer = answer, .end = from };
  int err = backend_extents (&c->backend, to - from, from, is_one, add, &a);

  if (err)
    extentset_clear (answer);
  return err;
}

/* The question has ended.  An empty ANSWER means that it has failed.  Wants
 * engine.lock and extents.lock.
 */
static void
answered_locked (struct question *q, const struct extentset *answer)
{
  if (answer->n > 0) {
    keep_locked (q, answer);
    adapt_locked (q->conn, q, answer);
  }
  else
    q->conn->extents.narrow_ns = clock_ns ()
      + q->conn->engine->config.status_ns;
  end_locked (q);
}

/* Cuts the plugin's answer to the client's range, and reports changes and
 * waiting data in it as data.  Wants engine.lock.
 */
static void
correct (const struct question *q, struct extentset *answer, uint64_t end)
{
  extentset_drop (answer, end, UINT64_MAX);
  for (unsigned i = 0; i < q->changes.n; i++)
    report_data (answer, q->changes.at[i].from, q->changes.at[i].to, q->from,
                 end);
  report_waiting (q->conn->engine, answer, q->from, end);
}

/* Asks the plugin; if IS_WIDE, about more than the client's range.  If the data
 * that this connection sees cannot be shown, reports all as data.
 */
static int
ask (struct conn *c, uint64_t offset, uint64_t end, bool is_one, bool is_wide,
     struct extentset *answer)
{
  struct engine *e = c->engine;
  struct question q;
  bool is_shown;
  int err;

  {
    LOCK_IN_SCOPE (&e->extents.lock);
    begin_locked (&q, c, offset,
                  is_wide ? limit (c, offset, end, window_locked (c)) : end);
  }
  is_wide = q.to > end;
  /* A deferred write may complete at any time.  From here on the question notes
   * it.  If it has completed before, this shows it.
   */
  is_shown = device_show_own (c, offset, q.to) == 0;
  err = is_shown ? ask_plugin (c, offset, q.to, is_one && !is_wide, answer) : 0;
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    {
      LOCK_IN_SCOPE (&e->extents.lock);
      answered_locked (&q, answer);
    }
    if (err == 0)
      correct (&q, answer, end);
  }
  if (!is_shown)
    report_data (answer, offset, end, offset, end);
  /* The plugin may have an answer about the client's own range. */
  return err && is_wide ? ask (c, offset, end, is_one, false, answer) : err;
}

/* Asking ahead. */

/* Takes back a question ahead that no worker has begun.  Returns whether it
 * did.  Wants the lock.
 */
static bool
cancel_ahead_locked (struct conn *c)
{
  if (!c->extents.is_ahead
      || !pool_cancel (c->pool, &c->extents.ahead.job))
    return false;
  c->extents.is_ahead = false;
  end_locked (&c->extents.ahead);
  return true;
}

static void
do_ahead (struct job *job)
{
  struct question *q = (struct question *) job;
  struct conn *c = q->conn;
  struct engine *e = c->engine;
  struct extentset answer = { .max = EXTENTS_ANSWER };

  ask_plugin (c, q->from, q->to, false, &answer);
  {
    ENGINE_LOCK_THEN_DISPATCH (e);
    LOCK_IN_SCOPE (&e->extents.lock);
    c->extents.is_ahead = false;
    answered_locked (q, &answer);       /* last: the connection may be freed */
  }
  extentset_clear (&answer);
}

/* Whether the client asks in sequence.  If not, the next question is about
 * EXTENTS_WINDOW_MIN again.
 */
static bool
is_sequential (struct conn *c, uint64_t offset)
{
  LOCK_IN_SCOPE (&c->engine->extents.lock);
  if (offset > 0 && c->extents.next == offset)
    return true;
  c->extents.window = 0;
  return false;
}

/* Whether a worker can ask ahead without delaying other work. */
static bool
has_workers (const struct conn *c)
{
  const struct backend *b = &c->backend;

  return b->serial ? b->contexts && contexts_are_usable (b->contexts)
    : b->hooks == NULL;
}

/* A client's request has ended at END.  If the client asks in sequence
 * (GOES_ON) and the known extents end soon or will soon be too old, asks about
 * the bytes behind them.
 */
static void
ask_ahead (struct conn *c, bool goes_on, uint64_t end)
{
  struct extents *x = &c->engine->extents;
  const struct extentset *s = &c->device->extents.set;
  /* An answer that is older than half of its time is renewed. */
  uint64_t since_ns = since (c->engine) + c->engine->config.status_ns / 2;
  uint64_t from, size, window;

  LOCK_IN_SCOPE (&x->lock);
  c->extents.next = end;
  window = window_locked (c);
  size = c->backend.size - c->backend.size % c->backend.min_block;
  if (!goes_on || c->extents.is_ahead || end >= size || !c->shares
      || window == 0 || !has_workers (c)
      || extentset_find (s, MIN (end + window / 4, size - 1), since_ns) >= 0)
    return;
  from = known_end_locked (s, end, since_ns);
  if (from >= size)
    return;
  from -= from % c->backend.min_block;  /* so the question is not empty */
  begin_locked (&c->extents.ahead, c, from,
                limit (c, from, from, window));
  c->extents.is_ahead = true;
  c->extents.ahead.job.run = do_ahead;
  stats_add (c->engine->stats, STATS_EXTENTS_AHEAD, 1);
  pool_push (c->pool, &c->extents.ahead.job, POOL_AHEAD);
}

void
extents_close (struct conn *c)
{
  LOCK_IN_SCOPE (&c->engine->extents.lock);
  cancel_ahead_locked (c);
}

void
extents_wait (struct conn *c)
{
  struct extents *x = &c->engine->extents;

  LOCK_IN_SCOPE (&x->lock);
  while (c->extents.is_ahead)
    cond_wait (&x->answered, lock_alone (&x->lock));
}

/* Requests. */

/* This connection's question about a byte, with this ID unless ID is 0.
 * Ignores questions of other connections, which may hang.  Wants the lock.
 */
static struct question *
find_locked (struct conn *c, uint64_t offset, uint64_t id)
{
  QUEUE_FOREACH (struct question, q, &c->engine->extents.questions, link) {
    if (q->conn == c && q->from <= offset && offset < q->to
        && (id == 0 || q->id == id))
      return q;
  }
  return NULL;
}

/* If a question of this connection about the byte is under way, waits for its
 * end.  Returns whether it waited.
 */
static bool
wait_for_question (struct conn *c, uint64_t offset)
{
  struct extents *x = &c->engine->extents;
  struct question *q;
  uint64_t id;

  LOCK_IN_SCOPE (&x->lock);
  q = find_locked (c, offset, 0);
  if (q == NULL || (q == &c->extents.ahead && cancel_ahead_locked (c)))
    return false;
  for (id = q->id; find_locked (c, offset, id); )
    cond_wait (&x->answered, lock_alone (&x->lock));
  return true;
}

/* Asks the plugin about the data that this connection sees. */
static int
ask_own (struct conn *c, uint64_t offset, uint64_t end, bool is_one,
         bool is_wide, struct extentset *answer)
{
  if (is_wide || c->backend.contexts
      || atomic_load (&c->engine->buffers.deferring) > 0)
    return ask (c, offset, end, is_one, is_wide, answer);
  /* No acknowledged data waits in buffers, and there is one context. */
  return ask_plugin (c, offset, end, is_one, answer);
}

static int
serve (struct conn *c, uint64_t offset, uint64_t end, bool is_one,
       struct extentset *answer)
{
  bool goes_on;
  int err;

  if (!may_keep (c))
    return ask_own (c, offset, end, is_one, false, answer);
  goes_on = is_sequential (c, offset);
  if (!answer_from_set (c, offset, end, is_one, answer)
      && !(wait_for_question (c, offset)
           && answer_from_set (c, offset, end, is_one, answer))
      && (err = ask_own (c, offset, end, is_one, true, answer)) != 0)
    return err;
  if (answer->n > 0)
    end = answer->at[is_one ? 0 : answer->n - 1].to;
  ask_ahead (c, goes_on, end);
  return 0;
}

int
extents_serve (struct conn *c, uint32_t count, uint64_t offset, bool is_one,
               struct extentset *answer)
{
  uint64_t end = offset + count;
  int err = serve (c, offset, end, is_one, answer);
  int gap;

  if (err)
    return err;
  /* If memory was short, an extent may be missing: end the answer there. */
  gap = extentset_find (answer, offset, 0);
  if (gap < 0) {
    extentset_clear (answer);
    return extentset_add (answer, (struct extent) { offset, end, 0, 0 })
      ? 0 : ENOMEM;
  }
  while (gap >= 0) {
    end = answer->at[gap].to;
    gap = extentset_next (answer, gap, 0);
  }
  extentset_drop (answer, end, UINT64_MAX);
  return 0;
}

/* Zeroes. */

static bool
is_zero (const struct extentset *s, int i)
{
  return i >= 0 && (s->at[i].type & BACKEND_ZERO);
}

static uint64_t
zeroes_end_locked (const struct conn *c, uint64_t offset)
{
  const struct extentset *s = &c->device->extents.set;
  uint64_t since_ns = since (c->engine);

  for (int i = extentset_find (s, offset, since_ns); is_zero (s, i);
       i = extentset_next (s, i, since_ns))
    offset = s->at[i].to;
  return offset;
}

uint64_t
extents_zeroes_end (struct conn *c, uint64_t offset)
{
  if (!is_in_use (c->engine))
    return offset;
  LOCK_IN_SCOPE (&c->engine->extents.lock);
  return zeroes_end_locked (c, offset);
}

uint64_t
extents_zeroes_begin (struct conn *c, uint64_t offset)
{
  const struct extentset *s = &c->device->extents.set;
  uint64_t since_ns;

  if (offset == 0 || !is_in_use (c->engine))
    return offset;
  since_ns = since (c->engine);
  LOCK_IN_SCOPE (&c->engine->extents.lock);
  for (int i = extentset_find (s, offset - 1, since_ns);
       is_zero (s, i) && s->at[i].to >= offset
         && s->at[i].asked_ns >= since_ns; i--)
    offset = s->at[i].from;
  return offset;
}

uint64_t
extents_zeroes (struct conn *c, uint64_t offset, uint64_t end)
{
  const struct extentset *s = &c->device->extents.set;
  uint64_t n = 0;

  if (offset >= end || !is_in_use (c->engine))
    return 0;
  LOCK_IN_SCOPE (&c->engine->extents.lock);
  for (unsigned i = extentset_first (s, offset);
       i < s->n && s->at[i].from < end; i++)
    if (is_zero (s, i))
      n += MIN (s->at[i].to, end) - MAX (s->at[i].from, offset);
  return n;
}

static bool
have_waiting (struct engine *e, uint64_t offset, uint64_t end)
{
  BUFFERS_FOREACH (b, e, offset, end)
    if (buf_is_waiting (b))
      return true;
  return false;
}

bool
extents_reads_zero (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;

  if (extents_zeroes_end (c, offset) < end)
    return false;
  ENGINE_LOCK_THEN_DISPATCH (e);
  return may_use (c, offset, end) && !have_waiting (e, offset, end)
    && extents_zeroes_end (c, offset) >= end;
}
