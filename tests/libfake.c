/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The fake device: see fake.h.
 *
 * Test plugins are linked with this file, too, and they have no filter.  So
 * nothing here calls the filter.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include <glib.h>

#include "fake.h"
#include "guard.h"

enum { RULES = 32, CONNS = 16, DEADLINE_SECONDS = 100 };

struct rule {
  bool active, hold;
  unsigned kinds;
  uint64_t offset, end;
  int err, times;
  unsigned held, left;          /* held now; held before, and gone on */
  uint64_t pass_until;          /* operations with such a start may pass */
};

struct handle {
  struct fake *fake;
  unsigned conn;
  struct nbdkit_async_driver driver;
};

struct fake {
  /* Constant. */
  uint64_t size;
  struct handle handles[CONNS];
  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Under the lock. */
  char *data;
  bool fast;
  struct rule rules[RULES];
  GArray *log;
  unsigned forgotten;           /* the log starts here */
  GArray *running;              /* indices in the log */
  uint64_t clock;
  unsigned peak, collisions;
  unsigned some_kinds, some_per_mille;
  GRand *some;
  bool gone;
  unsigned asked;               /* for that */
  GPtrArray *asyncs;            /* under way */
  unsigned n_asyncs;
};

/* An operation that a hook has started. */
struct async {
  struct handle *handle;
  void *buf;
  struct fake_op op;
  /* Under the lock.  NULL once the operation has ended or was given up. */
  struct nbdkit_async_io *io;
};

struct fake *
fake_new (uint64_t size)
{
  struct fake *f = g_new0 (struct fake, 1);
  pthread_condattr_t attr;

  f->size = size;
  f->data = g_malloc0 (size);
  f->log = g_array_new (FALSE, TRUE, sizeof (struct fake_op));
  f->running = g_array_new (FALSE, TRUE, sizeof (unsigned));
  f->some = g_rand_new_with_seed (0);
  f->asyncs = g_ptr_array_new ();
  pthread_mutex_init (&f->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&f->changed, &attr);
  pthread_condattr_destroy (&attr);
  for (unsigned i = 0; i < CONNS; i++)
    f->handles[i] = (struct handle) { .fake = f, .conn = i };
  return f;
}

void
fake_free (struct fake *f)
{
  {
    LOCK_IN_SCOPE (&f->lock);
    while (f->asyncs->len > 0)  /* their threads are about to end */
      pthread_cond_wait (&f->changed, &f->lock);
    g_assert_cmpuint (f->running->len, ==, 0);
  }
  g_ptr_array_unref (f->asyncs);
  pthread_cond_destroy (&f->changed);
  pthread_mutex_destroy (&f->lock);
  g_rand_free (f->some);
  g_array_unref (f->running);
  g_array_unref (f->log);
  g_free (f->data);
  g_free (f);
}

void
fake_set_fast (struct fake *f, bool fast)
{
  LOCK_IN_SCOPE (&f->lock);
  f->fast = fast;
}

char *
fake_data (struct fake *f)
{
  return f->data;
}

void
fake_peek (struct fake *f, void *buf, uint32_t count, uint64_t offset)
{
  LOCK_IN_SCOPE (&f->lock);
  if (count > 0)
    memcpy (buf, f->data + offset, count);
}

/* Operations. */

static struct fake_op *
op_at (struct fake *f, unsigned i)
{
  return &g_array_index (f->log, struct fake_op, i);
}

static bool
touches (const struct fake_op *op, unsigned kinds, uint64_t offset,
         uint64_t end)
{
  return (op->kind & kinds)
    && (op->kind == FAKE_FLUSH
        || ranges_overlap (op->offset, op->offset + op->count, offset, end));
}

static unsigned
op_start (struct fake *f, struct fake_op op)
{
  unsigned i = f->log->len;

  g_assert_cmpuint (op.offset + op.count, <=, f->size);
  g_assert_true (op.kind == FAKE_FLUSH || op.count > 0);
  op.start = ++f->clock;
  if (!op.hooked)
    op.thread = pthread_self ();
  for (unsigned r = 0; r < f->running->len; r++) {
    struct fake_op *other = op_at (f, g_array_index (f->running, unsigned, r));

    if ((op.kind & FAKE_CHANGE)
        && touches (other, FAKE_CHANGE, op.offset, op.offset + op.count))
      f->collisions++;
  }
  g_array_append_val (f->log, op);
  g_array_append_val (f->running, i);
  f->peak = MAX (f->peak, f->running->len);
  pthread_cond_broadcast (&f->changed);
  return i;
}

static struct rule *
holding_rule (struct fake *f, const struct fake_op *op)
{
  for (unsigned i = 0; i < RULES; i++) {
    struct rule *r = &f->rules[i];

    if (r->active && r->hold && touches (op, r->kinds, r->offset, r->end)
        && op->start > r->pass_until)
      return r;
  }
  return NULL;
}

static void
op_hold (struct fake *f, unsigned i)
{
  struct rule *r;

  while ((r = holding_rule (f, op_at (f, i))) != NULL) {
    r->held++;
    /* Once: held operations would wake each other for ever. */
    pthread_cond_broadcast (&f->changed);
    do
      pthread_cond_wait (&f->changed, &f->lock);
    while (holding_rule (f, op_at (f, i)) == r);
    r->held--;
    r->left++;
    pthread_cond_broadcast (&f->changed);
  }
}

static int
op_error (struct fake *f, const struct fake_op *op)
{
  for (unsigned i = 0; i < RULES; i++) {
    struct rule *r = &f->rules[i];

    if (r->active && !r->hold && r->times != 0
        && touches (op, r->kinds, r->offset, r->end)) {
      if (r->times > 0)
        r->times--;
      return r->err;
    }
  }
  return 0;
}

static bool
op_some_fail (struct fake *f, const struct fake_op *op)
{
  return (op->kind & f->some_kinds)
    && (unsigned) g_rand_int_range (f->some, 0, 1000) < f->some_per_mille;
}

static void
nap (uint64_t ns)
{
  struct timespec ts = { .tv_sec = 0, .tv_nsec = ns };

  while (nanosleep (&ts, &ts) == -1 && errno == EINTR)
    ;
}

/* Then its memory may be gone. */
static bool
is_given_up (const struct async *async)
{
  return async && async->io == NULL;
}

/* Changes the device, or decides that the operation fails. */
static int
op_do (struct fake *f, const struct fake_op *op, const char *write_from)
{
  char *at = f->data + op->offset;
  int err = op_error (f, op);

  if (err)
    return err;
  if (op_some_fail (f, op)) {
    if (write_from)
      memset (at, 0xee, op->count / 2);
    return EIO;
  }
  if (write_from)
    memcpy (at, write_from, op->count);
  else if (op->kind == FAKE_ZERO)
    memset (at, 0, op->count);
  else if (op->kind == FAKE_TRIM)
    memset (at, 0xdd, op->count);
  return 0;
}

static void
op_end (struct fake *f, unsigned i, int err)
{
  op_at (f, i)->end = ++f->clock;
  op_at (f, i)->err = err;
  for (unsigned r = 0; r < f->running->len; r++)
    if (g_array_index (f->running, unsigned, r) == i) {
      g_array_remove_index (f->running, r);
      break;
    }
  pthread_cond_broadcast (&f->changed);
}

/* ASYNC: NULL for an operation that its caller waits for. */
static int
operate (void *handle, struct fake_op op, void *read_to, const char *write_from,
         const struct async *async)
{
  struct handle *h = handle;
  struct fake *f = h->fake;
  bool fast;
  unsigned i;
  int err;

  op.conn = h->conn;
  pthread_mutex_lock (&f->lock);
  i = op_start (f, op);
  if (read_to && !is_given_up (async))
    memcpy (read_to, f->data + op.offset, op.count);
  op_hold (f, i);
  if (is_given_up (async))
    read_to = NULL, write_from = NULL;
  err = op_do (f, &op, write_from);
  if (err && read_to)
    memset (read_to, 0xbb, op.count);
  fast = f->fast;
  pthread_mutex_unlock (&f->lock);

  if (!fast)
    nap (PACE_COPY_NS + op.count + 10000);

  LOCK_IN_SCOPE (&f->lock);
  op_end (f, i, err);
  return err;
}

static struct fake_op
new_op (unsigned kind, uint32_t count, uint64_t offset, unsigned flags)
{
  return (struct fake_op) {
    .kind = kind, .count = count, .offset = offset, .flags = flags
  };
}

static int
fake_pread (void *handle, void *buf, uint32_t count, uint64_t offset)
{
  return operate (handle, new_op (FAKE_READ, count, offset, 0), buf, NULL,
                  NULL);
}

static int
fake_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             unsigned flags)
{
  return operate (handle, new_op (FAKE_WRITE, count, offset, flags), NULL, buf,
                  NULL);
}

static int
fake_zero (void *handle, uint32_t count, uint64_t offset, unsigned flags)
{
  return operate (handle, new_op (FAKE_ZERO, count, offset, flags), NULL, NULL,
                  NULL);
}

static int
fake_trim (void *handle, uint32_t count, uint64_t offset, unsigned flags)
{
  return operate (handle, new_op (FAKE_TRIM, count, offset, flags), NULL, NULL,
                  NULL);
}

static int
fake_flush (void *handle)
{
  return operate (handle, new_op (FAKE_FLUSH, 0, 0, 0), NULL, NULL, NULL);
}

static bool
fake_is_gone (void *handle)
{
  struct handle *h = handle;

  LOCK_IN_SCOPE (&h->fake->lock);
  h->fake->asked++;
  pthread_cond_broadcast (&h->fake->changed);
  return h->fake->gone;
}

void
fake_set_gone (struct fake *f, bool gone)
{
  LOCK_IN_SCOPE (&f->lock);
  f->gone = gone;
}

static const struct backend_ops ops = {
  .pread = fake_pread, .pwrite = fake_pwrite, .zero = fake_zero,
  .trim = fake_trim, .flush = fake_flush, .is_gone = fake_is_gone,
};

/* Hooks. */

static __thread unsigned in_reply;

static void *
async_run (void *va)
{
  struct async *a = va;
  struct fake *f = a->handle->fake;
  struct nbdkit_async_io *io;
  bool is_write = a->op.kind == FAKE_WRITE;
  int err = operate (a->handle, a->op, is_write ? NULL : a->buf,
                     is_write ? a->buf : NULL, a);

  {
    LOCK_IN_SCOPE (&f->lock);
    io = a->io;
    a->io = NULL;
  }
  in_reply++;
  if (io)
    io->done (io, err);
  in_reply--;

  LOCK_IN_SCOPE (&f->lock);
  g_ptr_array_remove_fast (f->asyncs, a);
  g_free (a);
  pthread_cond_broadcast (&f->changed);
  return NULL;
}

static void
async_start (struct nbdkit_async_io *io)
{
  struct async *a = g_new0 (struct async, 1);
  struct fake *f;
  pthread_t thread;
  bool here;

  g_assert_cmpuint (in_reply, ==, 0);
  *a = (struct async) {
    .handle = io->handle, .io = io, .buf = io->buf,
    .op = { .kind = io->is_write ? FAKE_WRITE : FAKE_READ, .count = io->count,
            .offset = io->offset, .hooked = true, .thread = pthread_self () }
  };
  f = a->handle->fake;
  {
    struct fake_op now = a->op;

    LOCK_IN_SCOPE (&f->lock);
    g_ptr_array_add (f->asyncs, a);
    now.start = UINT64_MAX;
    here = holding_rule (f, &now) == NULL && ++f->n_asyncs % 2 == 0;
  }
  if (here)
    async_run (a);
  else {
    g_assert_cmpint (pthread_create (&thread, NULL, async_run, a), ==, 0);
    pthread_detach (thread);
  }
}

static bool
async_give_up (struct nbdkit_async_io *io)
{
  struct handle *h = io->handle;

  LOCK_IN_SCOPE (&h->fake->lock);
  for (unsigned i = 0; i < h->fake->asyncs->len; i++) {
    struct async *a = h->fake->asyncs->pdata[i];

    if (a->io == io) {
      a->io = NULL;
      return true;
    }
  }
  return false;
}

void
fake_hook (struct backend *b, uint64_t grace_ns)
{
  struct handle *h = b->handle;

  h->driver = (struct nbdkit_async_driver) {
    .can_read = true, .can_write = true, .can_cancel = true,
    .grace_ns = grace_ns,
    .start = async_start, .give_up = async_give_up
  };
  b->hooks = &h->driver;
  b->hooks_handle = h;
}

struct backend
fake_backend (struct fake *f, unsigned conn)
{
  g_assert_cmpuint (conn, <, CONNS);
  return (struct backend) {
    .ops = &ops, .handle = &f->handles[conn], .size = f->size, .min_block = 1,
    .max_block = UINT32_MAX, .can_write = true, .can_flush = true,
    .shared = true,
  };
}

/* Rules. */

static uint64_t
end_of (const struct fake *f, uint64_t offset, uint64_t count)
{
  return count > 0 ? offset + count : f->size;
}

static int
add_rule (struct fake *f, struct rule rule)
{
  LOCK_IN_SCOPE (&f->lock);
  for (unsigned i = 0; i < RULES; i++)
    if (!f->rules[i].active && f->rules[i].held == 0) {
      f->rules[i] = rule;
      return i;
    }
  g_error ("fake: too many rules");
}

int
fake_hold (struct fake *f, unsigned kinds, uint64_t offset, uint64_t count)
{
  return add_rule (f, (struct rule) {
      .active = true, .hold = true, .kinds = kinds, .offset = offset,
      .end = end_of (f, offset, count)
    });
}

int
fake_fail (struct fake *f, unsigned kinds, uint64_t offset, uint64_t count,
           int err, int times)
{
  return add_rule (f, (struct rule) {
      .active = true, .kinds = kinds, .offset = offset,
      .end = end_of (f, offset, count), .err = err, .times = times
    });
}

void
fake_fail_some (struct fake *f, unsigned kinds, unsigned per_mille,
                uint32_t seed)
{
  LOCK_IN_SCOPE (&f->lock);
  f->some_kinds = kinds;
  f->some_per_mille = per_mille;
  g_rand_set_seed (f->some, seed);
}

void
fake_release (struct fake *f, int rule)
{
  LOCK_IN_SCOPE (&f->lock);
  f->rules[rule].active = false;
  pthread_cond_broadcast (&f->changed);
}

/* One wait for a change, until the deadline. */
static void
wait_locked (struct fake *f, const struct timespec *deadline, const char *what)
{
  if (pthread_cond_timedwait (&f->changed, &f->lock, deadline) == ETIMEDOUT)
    g_error ("fake: waited too long for %s", what);
}

static struct timespec
deadline (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  ts.tv_sec += DEADLINE_SECONDS;
  return ts;
}

void
fake_pass (struct fake *f, int rule, unsigned n)
{
  struct rule *r = &f->rules[rule];
  struct timespec ts = deadline ();
  unsigned left;

  LOCK_IN_SCOPE (&f->lock);
  g_assert_cmpuint (r->held, >=, n);
  left = r->left + n;
  for (unsigned i = 0; i < f->log->len && n > 0; i++) {
    struct fake_op *op = op_at (f, i);

    if (op->end == 0 && op->start > r->pass_until
        && touches (op, r->kinds, r->offset, r->end)) {
      r->pass_until = op->start;
      n--;
    }
  }
  pthread_cond_broadcast (&f->changed);
  /* Operations that are held from here on are others. */
  while (r->left < left)
    wait_locked (f, &ts, "an operation to go on");
}

/* Waiting and looking. */

void
fake_wait_held (struct fake *f, int rule, unsigned n)
{
  struct timespec ts = deadline ();

  LOCK_IN_SCOPE (&f->lock);
  while (f->rules[rule].held < n)
    wait_locked (f, &ts, "an operation to be held");
}

static unsigned
count_locked (struct fake *f, unsigned kinds, uint64_t offset, uint64_t end,
              bool ended)
{
  unsigned n = 0;

  for (unsigned i = f->forgotten; i < f->log->len; i++)
    n += touches (op_at (f, i), kinds, offset, end)
      && (!ended || op_at (f, i)->end != 0);
  return n;
}

unsigned
fake_started (struct fake *f, unsigned kinds, uint64_t offset, uint64_t count)
{
  LOCK_IN_SCOPE (&f->lock);
  return count_locked (f, kinds, offset, end_of (f, offset, count), false);
}

unsigned
fake_ended (struct fake *f, unsigned kinds, uint64_t offset, uint64_t count)
{
  LOCK_IN_SCOPE (&f->lock);
  return count_locked (f, kinds, offset, end_of (f, offset, count), true);
}

void
fake_wait_ended (struct fake *f, unsigned kinds, uint64_t offset,
                 uint64_t count, unsigned n)
{
  struct timespec ts = deadline ();

  LOCK_IN_SCOPE (&f->lock);
  while (count_locked (f, kinds, offset, end_of (f, offset, count), true) < n)
    wait_locked (f, &ts, "an operation to end");
}

void
fake_wait_asked (struct fake *f, unsigned n)
{
  struct timespec ts = deadline ();

  LOCK_IN_SCOPE (&f->lock);
  while (f->asked < n)
    wait_locked (f, &ts, "the engine to ask whether the client has gone");
}

struct fake_op
fake_op (struct fake *f, unsigned kinds, uint64_t offset, uint64_t count,
         unsigned n)
{
  LOCK_IN_SCOPE (&f->lock);
  for (unsigned i = f->forgotten; i < f->log->len; i++)
    if (touches (op_at (f, i), kinds, offset, end_of (f, offset, count))
        && n-- == 0)
      return *op_at (f, i);
  g_error ("fake: there was no such operation");
}

void
fake_forget (struct fake *f)
{
  LOCK_IN_SCOPE (&f->lock);
  f->forgotten = f->log->len;
}

unsigned
fake_peak (struct fake *f)
{
  LOCK_IN_SCOPE (&f->lock);
  return f->peak;
}

unsigned
fake_collisions (struct fake *f)
{
  LOCK_IN_SCOPE (&f->lock);
  return f->collisions;
}

/* The engine's invariants. */

static bool
overlap (const struct buf *a, const struct buf *b)
{
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span p = buf_piece (b, i);

    if (buf_overlaps (a, b->base + p.lo, b->base + p.hi))
      return true;
  }
  return false;
}

/* 1: the tree holds what it should, in order. */
static void
check_tree (struct engine *e)
{
  const struct buf *last = NULL;
  unsigned n = 0, in_tree = 0;

  for (unsigned i = 0; i < e->config.buffers; i++) {
    struct buf *b = &e->bufs[i];
    bool should = b->state != BUF_FREE && b->state != BUF_TAKEN && !b->dropped;

    g_assert_true (should == (b->node != NULL));
    g_assert_true (!b->dropped || b->state == BUF_TAKEN
                   || b->state == BUF_READING || b->state == BUF_WRITING);
    g_assert_true (!b->hooked || b->state == BUF_READING
                   || b->state == BUF_WRITING);
    n += should;
    if (should) {
      g_assert_true (g_tree_node_key (b->node) == b);
      g_assert_cmpuint (b->lo, <, b->hi);
      g_assert_cmpuint (b->hi, <=, e->config.buffer_size);
    }
  }
  for (GTreeNode *node = g_tree_node_first (e->tree); node;
       node = g_tree_node_next (node)) {
    const struct buf *b = g_tree_node_key (node);

    if (last)
      g_assert_true (last->base < b->base
                     || (last->base == b->base && last->seq < b->seq));
    last = b;
    in_tree++;
  }
  g_assert_cmpuint (in_tree, ==, n);
  g_assert_cmpuint (atomic_load (&e->in_tree), ==, n);
}

/* 2, 3 and 4: which may overlap which. */
static void
check_pair (const struct buf *a, const struct buf *b)
{
  if (!overlap (a, b))
    return;
  if (buf_is_waiting (a) && a->device == b->device)
    g_assert_true (b->state != BUF_CLEAN && b->state != BUF_READING);
  if (buf_is_waiting (a) && buf_is_waiting (b))
    g_assert_true (a->device == b->device);
  /* Of several pieces the first is being written. */
  if (a->state == BUF_WRITING && buf_overlaps (b, buf_start (a), buf_end (a))) {
    g_assert_false (b->state == BUF_WRITING && buf_start (b) < buf_end (a)
                    && buf_start (a) < buf_end (b));
    /* What has failed before may be READY again meanwhile: it waits. */
    g_assert_false (buf_is_dirty (b) && b->seq < a->seq && b->failed_seq == 0);
  }
}

/* 6 and 7. */
static void
check_buf (struct engine *e, const struct buf *b)
{
  if (b->fillers > 0)
    g_assert_true (b->state == BUF_OPEN || b->state == BUF_READY || b->dropped);
  if (b->pins > 0)
    g_assert_true (b->state != BUF_FREE);
  if (b->state == BUF_WRITING)
    for (GList *l = e->mutators.head; l; l = l->next) {
      const struct mutator *m = l->data;

      /* Of several pieces the first is being written.  For another device's
       * data the operation waits a bounded time only.
       */
      g_assert_false (m->running && m->device == b->device
                      && ranges_overlap (m->offset, m->end, buf_start (b),
                                         buf_end (b)));
    }
  if (buf_is_dirty (b))
    g_assert_nonnull (b->conn);
  if (b->node)
    g_assert_cmpuint (b->base % b->device->unit, ==, 0);
}

static void
check_sorted (const GQueue *q)
{
  uint64_t seq = 0;

  for (const GList *l = q->head; l; l = l->next) {
    const struct buf *b = l->data;

    g_assert_cmpuint (b->seq, >, seq);
    seq = b->seq;
  }
}

static void
check_queues (struct engine *e)
{
  unsigned n[BUF_FAILED + 1] = { 0 }, waiting = 0, behind = 0,
    dirty_of_exports = 0, readers = 0, all_ahead = 0;

  for (unsigned i = 0; i < e->config.buffers; i++) {
    n[e->bufs[i].state]++;
    waiting += buf_is_waiting (&e->bufs[i]);
  }
  g_assert_cmpuint (e->free.length, ==, n[BUF_FREE]);
  g_assert_cmpuint (e->reading.length, ==, n[BUF_READING]);
  g_assert_cmpuint (e->clean.length, ==, n[BUF_CLEAN]);
  g_assert_cmpuint (e->open.length, ==, n[BUF_OPEN]);
  g_assert_cmpuint (e->failed.length, ==, n[BUF_FAILED]);
  for (GList *l = e->exports.head; l; l = l->next) {
    const struct export *x = l->data;

    dirty_of_exports += x->dirty.length;
    check_sorted (&x->dirty);
  }
  g_assert_cmpuint (dirty_of_exports, ==,
                    n[BUF_OPEN] + n[BUF_READY] + n[BUF_WRITING]);
  g_assert_cmpuint (e->starts.length, ==, 0);
  g_assert_true (!e->writer_called || e->writers.length > 0);
  check_sorted (&e->failed);

  for (GList *l = e->conns.head; l; l = l->next) {
    struct conn *c = l->data;
    unsigned dirty = 0, reading = 0, ahead = 0;

    for (unsigned i = 0; i < e->config.buffers; i++) {
      const struct buf *b = &e->bufs[i];

      dirty += b->conn == c && buf_is_dirty (b);
      reading += b->conn == c && b->state == BUF_READING;
      ahead += b->conn == c && !b->dropped
        && (b->state == BUF_READING || b->state == BUF_CLEAN);
    }
    g_assert_cmpuint (c->n_dirty, ==, dirty);
    g_assert_cmpuint (c->n_reading, ==, reading);
    g_assert_cmpuint (c->n_ahead, ==, ahead);
    readers += ahead > 0;
    all_ahead += ahead;
    behind += atomic_load (&c->behind);
  }
  g_assert_cmpuint (e->readers, ==, readers);
  g_assert_cmpuint (e->n_ahead, ==, all_ahead);
  g_assert_cmpuint (atomic_load (&e->deferring), ==, waiting + behind);
}

void
engine_check (struct engine *e)
{
  LOCK_IN_SCOPE (&e->lock);
  check_tree (e);
  for (unsigned i = 0; i < e->config.buffers; i++) {
    check_buf (e, &e->bufs[i]);
    for (unsigned j = 0; j < e->config.buffers; j++)
      if (i != j && e->bufs[i].node && e->bufs[j].node)
        check_pair (&e->bufs[i], &e->bufs[j]);
  }
  check_queues (e);
}
