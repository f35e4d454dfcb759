#include <errno.h>
#include <string.h>

#include "behind.h"
#include "buffers.h"
#include "copy.h"
#include "debug.h"
#include "handover.h"

/* At most so many buffers wait to grow: as many as there are places for streams of reads. */
enum { OPEN_MAX_BUFS = STREAMS };

/* What is copied for a writer by who has written a buffer, which may be a thread of the plugin's.  More
 * takes longer than a thread takes to wake.
 */
enum { SERVE_MAX_BYTES = 256 * 1024 };

static void kick (struct engine *, uint64_t offset, uint64_t end);
static void serve_writer (struct engine *, uint64_t now_ns);
static void wake_writers (struct engine *);

/* Waiting for dirty data or a mutator.  Wants the lock, lets go of it meanwhile. */
static void
wait_for_progress (struct conn *c)
{
  struct engine *e = c->engine;

  pool_hurry (e->pool);
  e->progress_waiters++;
  engine_wait_plugin (c, &e->progress);
  e->progress_waiters--;
}

/* Giving buffers to workers. */

/* What WRITING buffers end as.  Wants the lock. */
static void
written (struct buf *b, int err)
{
  struct engine *e = b->engine;
  uint64_t offset = buf_start (b), end = buf_end (b);

  debug_buffers ("written %#" PRIx64 "..%#" PRIx64 ": error %d", offset, end, err);
  b->err = err;
  if (err == 0)
    buffers_remove (b);
  else {
    stats_add (e->stats, STATS_DEFERRED_ERRORS, 1);
    atomic_store (&b->export->failing, true);
    buffers_set_state (b, BUF_FAILED);
    wake_writers (e);           /* they must not wait for failed data */
  }
  kick (e, offset, end);
  cond_broadcast (&e->progress);
}

static void
written_behind (struct backend_io *io, int err)
{
  struct buf *b = buf_of_io (io);
  struct engine *e = b->engine;
  bool may_start = backend_may_start (io->backend);
  uint64_t end_ns = io->end_ns;

  ENGINE_LOCK_IN_SCOPE (e);
  b->hooked = false;
  /* Not where it had become another client's meanwhile, see can_retry: that one may well try again. */
  b->given_up = io->given_up && atomic_load (&b->conn->backend.gone_ns) != 0;
  written (b, err);
  if (may_start)
    serve_writer (e, end_ns);
}

/* What a READY buffer has to wait for. */
enum verdict { GO, WAIT, FAIL };

static enum verdict
judge (struct buf *b)
{
  struct engine *e = b->engine;
  uint64_t offset = buf_start (b), end = buf_end (b);
  enum verdict v = b->fillers > 0 ? WAIT : GO;

  for (struct buf *o = buffers_first (e, offset, end); o; o = buffers_next (o, offset, end)) {
    if (o == b)
      continue;
    if (o->state == BUF_WRITING || (buf_is_dirty (o) && o->seq < b->seq))
      v = WAIT;
    /* Behind data that failed it stays behind.  Between two exports this says nothing: they are
     * most likely two devices.
     */
    else if (o->state == BUF_FAILED && o->seq < b->seq && o->export == b->export)
      return FAIL;
  }
  for (GList *l = e->mutators.head; l && v == GO; l = l->next) {
    struct mutator *m = l->data;

    if (m->running && ranges_overlap (m->offset, m->end, offset, end))
      v = WAIT;
  }
  return v;
}

static void
give_to_worker (struct buf *b)
{
  struct engine *e = b->engine;

  buffers_set_state (b, BUF_WRITING);
  handover (b, true, POOL_WRITE, written_behind);
  if (e->progress_waiters + e->writers.length > 0)
    pool_hurry (e->pool);
}

/* Looks again at the READY buffers in a range, where something has changed.  Wants the lock. */
static void
kick (struct engine *e, uint64_t offset, uint64_t end)
{
  struct buf *b = buffers_first (e, offset, end);

  while (b) {
    enum verdict v = b->state == BUF_READY && !b->claimed ? judge (b) : WAIT;

    if (v == GO)
      give_to_worker (b);
    if (v != FAIL) {
      b = buffers_next (b, offset, end);
      continue;
    }
    buffers_set_state (b, BUF_FAILED);
    b->err = EIO;               /* nobody has tried: the flush that does learns the true one */
    cond_broadcast (&e->progress);
    wake_writers (e);
    /* Again from the start, and as far as this one reached: others may wait behind it. */
    offset = MIN (offset, buf_start (b));
    end = MAX (end, buf_end (b));
    b = buffers_first (e, offset, end);
  }
}

/* An OPEN buffer grows no more.  Wants the lock. */
static void
submit (struct buf *b)
{
  buffers_set_state (b, BUF_READY);
  kick (b->engine, buf_start (b), buf_end (b));
}

/* The OPEN buffers in a range BUT one: what overlaps them now must not wait for them to grow.  Wants
 * the lock.
 */
static void
submit_others (struct engine *e, const struct buf *but, uint64_t offset, uint64_t end)
{
  struct buf *b, *next;

  for (b = buffers_first (e, offset, end); b; b = next) {
    next = buffers_next (b, offset, end);
    if (b->state == BUF_OPEN && b != but)
      submit (b);
  }
}

static void
submit_all (struct engine *e)
{
  GList *l;

  while ((l = g_queue_peek_head_link (&e->open)) != NULL)
    submit (l->data);
}

void *
behind_linger (void *vp)
{
  struct engine *e = vp;

  ENGINE_LOCK_IN_SCOPE (e);
  while (!e->stopping) {
    GList *l = g_queue_peek_head_link (&e->open);
    uint64_t due;

    if (l == NULL) {
      e->linger_idle = true;
      engine_wait (e, &e->linger);
      e->linger_idle = false;
      continue;
    }
    due = ((struct buf *) l->data)->since_ns + e->config.linger_ns;
    if (stats_now_ns () >= due)
      submit (l->data);
    else
      engine_wait_until (e, &e->linger, due);
  }
  return NULL;
}

/* Holding writes. */

static bool
mutator_overlaps (struct engine *e, uint64_t offset, uint64_t end)
{
  for (GList *l = e->mutators.head; l; l = l->next) {
    struct mutator *m = l->data;

    if (ranges_overlap (m->offset, m->end, offset, end))
      return true;
  }
  return false;
}

/* The buffer of this connection that the write can join, the youngest there: an OPEN one that it
 * touches, or a READY one that it only overwrites.  No copy from or into the bytes in common may be
 * under way.
 */
static struct buf *
find_join (struct conn *c, uint64_t base, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;
  struct buf *found = NULL;
  uint64_t youngest = 0;

  for (struct buf *b = buffers_first (e, base, base + c->unit); b;
       b = buffers_next (b, base, base + c->unit)) {
    bool overlaps = buf_overlaps (b, offset, end);

    if (overlaps && buf_is_waiting (b))
      youngest = MAX (youngest, b->seq);
    if (b->conn != c || b->base != base || (overlaps && (b->pins > 0 || b->fillers > 0)))
      continue;
    if ((b->state == BUF_OPEN && buf_start (b) <= end && offset <= buf_end (b))
        || (b->state == BUF_READY && !b->claimed && buf_start (b) <= offset && end <= buf_end (b)))
      found = b;
  }
  return found && found->seq >= youngest ? found : NULL;
}

/* The buffer for a write, new or joined, its range widened for it; it has a filler more.  NULL if the
 * write may not wait, or, *IS_FULL, there is none.  Wants the lock.
 */
static struct buf *
reserve (const struct writer *w, uint64_t now_ns, bool *is_full)
{
  struct conn *c = w->conn;
  struct engine *e = c->engine;
  struct buf *b;

  *is_full = false;
  if (atomic_load (&c->export->failing) || atomic_load (&e->unregistered) > 0
      || mutator_overlaps (e, w->offset, w->end))
    return NULL;
  if ((b = find_join (c, w->base, w->offset, w->end)) != NULL) {
    submit_others (e, b, w->offset, w->end);
    b->lo = MIN (b->lo, w->offset - w->base);
    b->hi = MAX (b->hi, w->end - w->base);
    stats_add (e->stats, STATS_COMBINED, 1);
  }
  else if ((b = buffers_take_for_write (e)) != NULL) {
    submit_others (e, b, w->offset, w->end);
    buffers_enter (b, BUF_OPEN, c, w->base, w->offset - w->base, w->end - w->base);
    b->since_ns = now_ns;
  }
  else {
    *is_full = true;
    return NULL;
  }
  b->fillers++;
  buffers_drop (e, w->offset, w->end);
  return b;
}

/* A copy into the buffer has ended.  Wants the lock. */
static void
filled (struct buf *b)
{
  struct engine *e = b->engine;

  if (--b->fillers > 0)
    return;
  cond_broadcast (&b->changed);
  if (b->claimed)
    cond_broadcast (&e->progress);      /* a flush waits to write it */
  if (b->state != BUF_OPEN) {
    kick (e, buf_start (b), buf_end (b));
    return;
  }
  if (b->hi == b->conn->unit || buf_end (b) == b->conn->backend.size)
    submit (b);
  else if (e->open.length > OPEN_MAX_BUFS || e->writers.length > 0)
    submit (e->open.head->data);
  if (e->linger_idle && e->open.length > 0)
    cond_signal (&e->linger);
}

/* Into what was reserved for it.  Wants the lock, lets go of it meanwhile. */
static void
fill (struct buf *b, const struct writer *w)
{
  struct engine *e = b->engine;

  engine_unlock (e);
  copy_bytes (b->data + (w->offset - w->base), w->data, w->end - w->offset);
  engine_lock (e);
  filled (b);
  stats_add (e->stats, STATS_BEHIND, 1);
}

/* It waits no longer, for the buffer that it has, or the plugin.  What else there is is the next one's.
 * Wants the lock.
 */
static void
dequeue (struct writer *w, enum writer_state state)
{
  struct engine *e = w->conn->engine;

  g_queue_unlink (&e->writers, &w->link);
  w->state = state;
  /* Who was called since we have the lock was called for that buffer. */
  e->writer_called = false;
  e->wake[WAKE_WRITER] = NULL;
  if (e->free.length + e->clean.length > 0)
    buffers_call_writer (e);
}

/* A buffer became free, and this thread may hand it over: for the first that waits.  Wants the lock, lets
 * go of it meanwhile.
 */
static void
serve_writer (struct engine *e, uint64_t now_ns)
{
  struct writer *w = g_queue_peek_head (&e->writers);
  struct buf *b;
  bool is_full;

  if (w == NULL || w->end - w->offset > SERVE_MAX_BYTES)
    return;
  b = reserve (w, now_ns, &is_full);
  if (b == NULL)
    return;                     /* it was called, and finds out itself */
  dequeue (w, WRITER_SERVING);
  fill (b, w);
  w->state = WRITER_SERVED;
  wake_later (e, WAKE_WRITER, w->woken);
}

static void
wake_writers (struct engine *e)
{
  for (GList *l = e->writers.head; l; l = l->next)
    cond_broadcast (((struct writer *) l->data)->woken);
}

/* Waits until it is served, or a buffer may have become free.  False if there is nothing to wait for.
 * Wants the lock, lets go of it meanwhile.
 */
static bool
wait_for_space (struct writer *w)
{
  struct conn *c = w->conn;
  struct engine *e = c->engine;
  uint64_t fresh;

  submit_all (e);
  if (e->failed.length == e->config.buffers)
    return false;
  pool_hurry (e->pool);
  if (w->state == WRITER_NEW) {
    w->state = WRITER_WAITING;
    w->woken = &e->writer_woken[e->n_writers++ % WRITER_CONDS];
    w->link.data = w;
    g_queue_push_tail_link (&e->writers, &w->link);
  }
  e->writer_called = false;     /* it may be for one that does something else just now: call the first, too */
  fresh = buffers_fresh_until (e);
  if (fresh > 0 && (c->backend.hooks == NULL || fresh < c->look_ns + BACKEND_POLL_NS))
    /* Not at once: a pinned one may have been due long ago. */
    engine_wait_until (e, w->woken, MAX (fresh, stats_now_ns () + 1000000));
  else
    engine_wait_plugin (c, w->woken);
  while (w->state == WRITER_SERVING)
    engine_wait (e, w->woken);
  if (w->state == WRITER_WAITING)
    e->writer_called = false;
  return true;
}

bool
behind_write (struct conn *c, const void *buf, uint32_t count, uint64_t offset, uint64_t *now_ns)
{
  struct engine *e = c->engine;
  struct writer w = {
    .conn = c, .base = offset / c->unit * c->unit, .offset = offset, .end = offset + count, .data = buf
  };
  uint64_t start_ns = *now_ns;
  struct buf *b = NULL;
  bool is_full;

  ENGINE_LOCK_IN_SCOPE (e);
  while (w.state != WRITER_SERVED && (b = reserve (&w, *now_ns, &is_full)) == NULL && is_full
         && wait_for_space (&w))
    *now_ns = stats_now_ns ();
  if (w.state == WRITER_WAITING)
    dequeue (&w, WRITER_NEW);
  if (*now_ns > start_ns)
    stats_note (e->stats, STATS_SPACE_WAIT, *now_ns - start_ns, count);
  if (b)
    fill (b, &w);
  return b || w.state == WRITER_SERVED;
}

/* Writes, zeroes and trims that go straight to the plugin. */

/* Dirty data in the range that is not younger than SEQ. */
static bool
is_dirty_until (struct engine *e, uint64_t seq, uint64_t offset, uint64_t end)
{
  for (struct buf *b = buffers_first (e, offset, end); b; b = buffers_next (b, offset, end))
    if (buf_is_dirty (b) && b->seq <= seq)
      return true;
  return false;
}

/* Waits until nothing that is in the range now is dirty any more.  Wants the lock. */
static void
settle (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;
  uint64_t seq = e->seq;

  submit_others (e, NULL, offset, end);
  if (!is_dirty_until (e, seq, offset, end))
    return;
  stats_add (e->stats, STATS_BARRIERS, 1);
  do
    wait_for_progress (c);
  while (is_dirty_until (e, seq, offset, end));
}

void
mutator_begin (struct conn *c, struct mutator *m, uint32_t count, uint64_t offset)
{
  struct engine *e = c->engine;

  *m = (struct mutator) { .offset = offset, .end = offset + count, .link.data = m };
  /* The common case, no connection may hold writes behind: no lock.  Sequentially consistent with
   * reserve (): either we see that one may, or it sees us and holds nothing.
   */
  atomic_fetch_add (&e->unregistered, 1);
  if (atomic_load (&e->deferring) == 0)
    return;
  atomic_fetch_sub (&e->unregistered, 1);

  ENGINE_LOCK_IN_SCOPE (e);
  g_queue_push_tail_link (&e->mutators, &m->link);
  settle (c, m->offset, m->end);
  m->running = true;
}

/* The plugin has newer data than what waits there: a later try must not bring the old back.  All of
 * the export that waits in the range of a running mutator is older than it, and has FAILED before (a
 * flush may have made it READY again).  Wants the lock, lets go of it meanwhile.
 */
static void
supersede (struct conn *c, struct mutator *m, const char *new_data, bool trimmed)
{
  struct engine *e = c->engine;
  struct buf *b, *next;

  for (b = buffers_first (e, m->offset, m->end); b; b = next) {
    uint64_t from = MAX (buf_start (b), m->offset), to = MIN (buf_end (b), m->end);

    next = buffers_next (b, m->offset, m->end);
    if (!buf_is_waiting (b) || b->export != c->export)
      continue;
    if (b->fillers > 0) {       /* another mutator is at it */
      engine_wait (e, &b->changed);
      next = buffers_first (e, m->offset, m->end);
    }
    else if (from == buf_start (b) && to == buf_end (b)) {
      if (b->conn == NULL)
        b->export->refs--;
      buffers_remove (b);
    }
    else if (!trimmed) {        /* after a trim the old data is as good as any */
      b->fillers++;             /* keeps the buffer as and where it is, and new readers away */
      while (b->pins > 0)
        engine_wait (e, &b->changed);
      if (new_data)
        copy_bytes (b->data + (from - b->base), new_data + (from - m->offset), to - from);
      else
        memset (b->data + (from - b->base), 0, to - from);
      next = buffers_next (b, m->offset, m->end);
      filled (b);
    }
  }
}

void
mutator_end (struct conn *c, struct mutator *m, int err, const void *new_data, bool trimmed)
{
  struct engine *e = c->engine;

  if (!m->running) {
    /* The plugin's data has changed; whoever began to read ahead before is seen here, whoever
     * begins now reads the new data.
     */
    atomic_thread_fence (memory_order_seq_cst);
    if (atomic_load (&e->in_tree) > 0) {
      ENGINE_LOCK_IN_SCOPE (e);
      buffers_drop (e, m->offset, m->end);
    }
    atomic_fetch_sub (&e->unregistered, 1);
    return;
  }
  ENGINE_LOCK_IN_SCOPE (e);
  if (err == 0)
    supersede (c, m, new_data, trimmed);
  buffers_drop (e, m->offset, m->end);
  g_queue_unlink (&e->mutators, &m->link);
  kick (e, m->offset, m->end);
  cond_broadcast (&e->progress);
}

bool
behind_settle (struct conn *c, uint64_t offset, uint64_t end)
{
  struct engine *e = c->engine;

  ENGINE_LOCK_IN_SCOPE (e);
  settle (c, offset, end);
  for (struct buf *b = buffers_first (e, offset, end); b; b = buffers_next (b, offset, end))
    if (b->state == BUF_FAILED && b->export == c->export)
      return true;
  return false;
}

/* Flush. */

/* The oldest FAILED buffer of the export that is not younger than SEQ. */
static struct buf *
oldest_failed (struct engine *e, const struct export *export, uint64_t seq)
{
  for (GList *l = e->failed.head; l; l = l->next) {
    struct buf *b = l->data;

    if (b->export == export && b->seq <= seq)
      return b;
  }
  return NULL;
}

/* Whether there is a way to write a FAILED buffer.  Where its client is gone C takes it over: who
 * waits for it then waits as long as C lives, and the connection that ends does not.
 */
static bool
can_retry (struct conn *c, struct buf *b)
{
  if (b->conn == c || !c->backend.can_write)
    return b->conn != NULL;
  if (b->conn == NULL)
    b->export->refs--;
  else if (atomic_load (&b->conn->backend.gone_ns) == 0)
    return true;
  b->conn = c;
  b->given_up = false;
  return true;
}

/* Everything of the export that failed is tried again. */
static void
retry_failed (struct conn *c)
{
  struct engine *e = c->engine;

  for (GList *l = e->failed.head, *next; l; l = next) {
    struct buf *b = l->data;

    next = l->next;
    if (b->export == c->export && !was_given_up (c, b) && can_retry (c, b))
      buffers_set_state (b, BUF_READY);
  }
  kick (e, 0, UINT64_MAX);
}

static void
wait_for_dirty (struct conn *c, uint64_t seq)
{
  struct engine *e = c->engine;
  bool waited = false;
  GList *l;

  while ((l = g_queue_peek_head_link (&e->dirty)) != NULL
         && ((struct buf *) l->data)->seq <= seq) {
    waited = true;
    wait_for_progress (c);
  }
  if (waited)
    stats_add (e->stats, STATS_BARRIERS, 1);
}

/* One FAILED buffer is written by the caller, a thread of nbdkit's, on which the plugin's error code
 * is not lost.  Wants the lock, lets go of it meanwhile.
 */
static int
write_myself (struct conn *c, struct buf *b)
{
  struct engine *e = c->engine;
  uint64_t seq = b->seq;
  int err;

  if (was_given_up (c, b) || !can_retry (c, b))
    return b->err;
  /* READY, so that new mutators wait for it and the ones that run come to an end; one of these may
   * put its data in the place of ours, which is then gone.
   */
  b->claimed = true;
  buffers_set_state (b, BUF_READY);
  while (b->claimed && b->seq == seq && judge (b) != GO)
    wait_for_progress (c);
  if (!b->claimed || b->seq != seq)
    return 0;
  b->claimed = false;
  b->given_up = false;
  buffers_set_state (b, BUF_WRITING);
  engine_unlock (e);
  err = backend_pwrite (&b->conn->backend, b->data + b->lo, b->hi - b->lo, buf_start (b), 0);
  engine_lock (e);
  written (b, err);
  return err;
}

int
behind_drain (struct conn *c)
{
  struct engine *e = c->engine;
  struct buf *b;
  uint64_t seq;
  int err;

  if (atomic_load (&e->deferring) == 0)
    return 0;
  ENGINE_LOCK_IN_SCOPE (e);
  seq = e->seq;
  submit_all (e);
  retry_failed (c);
  wait_for_dirty (c, seq);
  while ((b = oldest_failed (e, c->export, seq)) != NULL) {
    if ((err = write_myself (c, b)) != 0)
      return err;
    wait_for_dirty (c, seq);
  }
  return 0;
}

/* Data of the export that was refused, and is not written yet. */
static bool
has_failed (struct engine *e, const struct export *export)
{
  if (oldest_failed (e, export, UINT64_MAX))
    return true;
  for (GList *l = e->dirty.head; l; l = l->next) {      /* another flush tries it right now */
    struct buf *b = l->data;

    if (b->export == export && b->err)
      return true;
  }
  return false;
}

void
behind_flushed (struct conn *c)
{
  struct engine *e = c->engine;

  if (!atomic_load (&c->export->failing))
    return;
  ENGINE_LOCK_IN_SCOPE (e);
  if (!has_failed (e, c->export))
    atomic_store (&c->export->failing, false);
}

static struct buf *
failed_of (const struct conn *c)
{
  for (GList *l = c->engine->failed.head; l; l = l->next)
    if (((struct buf *) l->data)->conn == c)
      return l->data;
  return NULL;
}

void
behind_close (struct conn *c, behind_report *report)
{
  struct engine *e = c->engine;
  struct buf *b;

  engine_lock (e);
  submit_all (e);
  retry_failed (c);
  for (;;) {
    bool kept = c->export->shared;
    uint64_t offset, end;

    /* Each time: while we reported, another connection may have tried our failed data again. */
    while (c->n_dirty > 0)
      wait_for_progress (c);
    b = failed_of (c);
    if (b == NULL)
      break;
    offset = buf_start (b);
    end = buf_end (b);
    b->conn = NULL;
    if (kept)
      b->export->refs++;
    else
      buffers_remove (b);       /* no other connection could write it, or may see it */
    engine_unlock (e);
    report (c->export->name, offset, end - offset, kept);
    engine_lock (e);
  }
  engine_unlock (e);
}
