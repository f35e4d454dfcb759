/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The fake device: see fake.h.  Its rules and its log are a gate's, see gate.h.
 *
 * Test plugins are linked with this file, too, and they have no filter.  So
 * nothing here calls the filter.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <time.h>

#include <glib.h>

#include "fake.h"
#include "lock.h"

enum { CONNS = 16, DEADLINE_SECONDS = 60 };

struct handle {
  struct fake *fake;
  unsigned conn;
  bool serial;
  struct nbdkit_async_driver driver;
  /* Under fake.lock. */
  bool busy;                    /* if serial: in a call */
  char *view;                   /* what it shows; NULL: all changes */
};

struct fake {
  /* Constant. */
  uint64_t size;
  struct gate *gate;
  struct handle handles[CONNS];
  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Under the lock. */
  char *data;
  bool fast;
  uint64_t filled;              /* see fake_set_filled */
  bool gone;
  unsigned openable, n_opened;
  bool opens_hang;
  unsigned opening;             /* calls of open that hang */
  unsigned peak_opening;
  GPtrArray *contexts;          /* struct handle */
  char *flushed;                /* fake_hide: the data at the last flush */
  unsigned asked;               /* for that */
  GPtrArray *asyncs;            /* under way */
  unsigned n_asyncs;
};

/* An operation that a hook has started. */
struct async {
  struct handle *handle;
  void *buf;
  struct gate_op op;
  /* Under the lock.  NULL once the operation has ended or was given up. */
  struct nbdkit_async_io *io;
};

struct fake *
fake_new (uint64_t size)
{
  struct fake *f = g_new0 (struct fake, 1);
  pthread_condattr_t attr;

  f->size = size;
  f->filled = size;
  f->openable = UINT_MAX;
  f->data = g_malloc0 (size);
  f->gate = gate_new ();
  f->asyncs = g_ptr_array_new ();
  f->contexts = g_ptr_array_new ();
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
    g_assert_cmpuint (gate_running (f->gate), ==, 0);
    g_assert_cmpuint (f->contexts->len, ==, 0);
  }
  g_ptr_array_unref (f->asyncs);
  g_ptr_array_unref (f->contexts);
  for (unsigned i = 0; i < CONNS; i++)
    g_free (f->handles[i].view);
  g_free (f->flushed);
  pthread_cond_destroy (&f->changed);
  pthread_mutex_destroy (&f->lock);
  gate_free (f->gate);
  g_free (f->data);
  g_free (f);
}

void
fake_set_fast (struct fake *f, bool fast)
{
  LOCK_IN_SCOPE (&f->lock);
  f->fast = fast;
}

void
fake_set_filled (struct fake *f, uint64_t end)
{
  LOCK_IN_SCOPE (&f->lock);
  f->filled = end;
}

struct gate *
fake_gate (struct fake *f)
{
  return f->gate;
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

static uint64_t
page_end (uint64_t offset)
{
  return (offset / FAKE_PAGE + 1) * FAKE_PAGE;
}

static bool
is_zeroed (const struct handle *h, uint64_t from, uint64_t to)
{
  const char *data = h->view ? h->view : h->fake->data;

  for (uint64_t i = from; i < to; i++)
    if (data[i] != 0)
      return false;
  return true;
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

/* Changes the device and READ_TO as the gate says. */
static void
change (char *at, const struct gate_op *op, struct gate_verdict verdict,
        void *read_to, const char *write_from)
{
  if (verdict.is_by_chance && write_from)
    memset (at, 0xee, op->count / 2);
  if (verdict.err) {
    if (read_to)
      memset (read_to, 0xbb, op->count);
  }
  else if (write_from)
    memcpy (at, write_from, op->count);
  else if (op->kind == GATE_ZERO)
    memset (at, 0, op->count);
  else if (op->kind == GATE_TRIM)
    memset (at, 0xdd, op->count);
}

static void
set_busy (struct handle *h, bool busy)
{
  if (!h->serial)
    return;
  LOCK_IN_SCOPE (&h->fake->lock);
  g_assert_cmpint (h->busy, !=, busy);
  h->busy = busy;
}

/* A flush has succeeded. */
static void
show_all (struct fake *f)
{
  if (f->flushed == NULL)
    return;
  memcpy (f->flushed, f->data, f->size);
  for (unsigned i = 0; i < CONNS; i++)
    memcpy (f->handles[i].view, f->data, f->size);
  for (unsigned i = 0; i < f->contexts->len; i++) {
    struct handle *h = f->contexts->pdata[i];

    memcpy (h->view, f->data, f->size);
  }
}

static void
op_do (struct handle *h, const struct gate_op *op, struct gate_verdict verdict,
       void *read_to, const char *write_from)
{
  change (h->fake->data + op->offset, op, verdict, read_to, write_from);
  if (h->view)
    change (h->view + op->offset, op, verdict, read_to, write_from);
  if (op->kind == GATE_FLUSH && verdict.err == 0)
    show_all (h->fake);
}

/* ASYNC: NULL for an operation that its caller waits for. */
static int
operate (void *handle, struct gate_op op, void *read_to, const char *write_from,
         const struct async *async)
{
  struct handle *h = handle;
  struct fake *f = h->fake;
  struct gate_verdict verdict;
  unsigned i;
  bool fast;

  g_assert_cmpuint (op.offset + op.count, <=, f->size);
  g_assert_true (op.kind == GATE_FLUSH || op.count > 0);
  op.conn = h->conn;
  set_busy (h, true);
  if (!op.is_hooked)
    op.thread = pthread_self ();
  {
    LOCK_IN_SCOPE (&f->lock);
    i = gate_op_start (f->gate, op);
    if (read_to && !is_given_up (async) && op.offset < f->filled)
      memcpy (read_to, (h->view ? h->view : f->data) + op.offset, op.count);
  }
  verdict = gate_op_pass (f->gate, i);
  {
    LOCK_IN_SCOPE (&f->lock);
    if (is_given_up (async))
      read_to = NULL, write_from = NULL;
    op_do (h, &op, verdict, read_to, write_from);
    fast = f->fast;
  }
  if (!fast)
    nap (SPEED_COPY_NS + op.count + 10000);
  set_busy (h, false);
  gate_op_end (f->gate, i, verdict.err);
  return verdict.err;
}

static struct gate_op
new_op (unsigned kind, uint32_t count, uint64_t offset, unsigned flags)
{
  return (struct gate_op) {
    .kind = kind, .count = count, .offset = offset, .flags = flags
  };
}

static int
fake_pread (void *handle, void *buf, uint32_t count, uint64_t offset)
{
  return operate (handle, new_op (GATE_READ, count, offset, 0), buf, NULL,
                  NULL);
}

static int
fake_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             unsigned flags)
{
  return operate (handle, new_op (GATE_WRITE, count, offset, flags), NULL, buf,
                  NULL);
}

static int
fake_zero (void *handle, uint32_t count, uint64_t offset, unsigned flags)
{
  return operate (handle, new_op (GATE_ZERO, count, offset, flags), NULL, NULL,
                  NULL);
}

static int
fake_trim (void *handle, uint32_t count, uint64_t offset, unsigned flags)
{
  return operate (handle, new_op (GATE_TRIM, count, offset, flags), NULL, NULL,
                  NULL);
}

static int
fake_flush (void *handle)
{
  return operate (handle, new_op (GATE_FLUSH, 0, 0, 0), NULL, NULL, NULL);
}

static int
fake_extents (void *handle, uint32_t count, uint64_t offset, bool is_one,
              backend_add_extent *add, void *to)
{
  struct handle *h = handle;
  struct fake *f = h->fake;
  uint64_t end = MIN (offset + count, f->size);
  g_autofree bool *is_hole = NULL;
  int err;

  {
    LOCK_IN_SCOPE (&f->lock);
    is_hole = g_new0 (bool, count / FAKE_PAGE + 2);
    for (uint64_t at = offset, i = 0; at < end; at = page_end (at), i++)
      is_hole[i] = is_zeroed (h, at, MIN (page_end (at), end));
  }
  err = operate (handle, new_op (GATE_EXTENTS, count, offset, is_one), NULL,
                 NULL, NULL);
  if (err)
    return err;
  for (uint64_t at = offset, i = 0, next; at < end; at = next, i++) {
    next = MIN (page_end (at), end);
    add (to, at, next, is_hole[i] ? BACKEND_HOLE | BACKEND_ZERO : 0);
    if (is_one)
      break;
  }
  return 0;
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

/* Contexts. */

static void *
fake_open (const struct backend *like, const char *export_name)
{
  const struct handle *own = like->handle;
  struct fake *f = own->fake;
  struct handle *h;

  g_assert_nonnull (export_name);
  LOCK_IN_SCOPE (&f->lock);
  f->opening++;
  f->peak_opening = MAX (f->peak_opening, f->opening);
  pthread_cond_broadcast (&f->changed);
  while (f->opens_hang)
    pthread_cond_wait (&f->changed, &f->lock);
  f->opening--;
  if (f->openable == 0)
    return NULL;
  f->openable--;
  f->n_opened++;
  h = g_new0 (struct handle, 1);
  *h = (struct handle) { .fake = f, .conn = own->conn, .serial = true };
  if (f->flushed)
    h->view = g_memdup2 (f->flushed, f->size);
  g_ptr_array_add (f->contexts, h);
  pthread_cond_broadcast (&f->changed);
  return h;
}

static void
fake_close (void *handle)
{
  struct handle *h = handle;

  LOCK_IN_SCOPE (&h->fake->lock);
  g_assert_false (h->busy);
  g_assert_true (g_ptr_array_remove_fast (h->fake->contexts, h));
  pthread_cond_broadcast (&h->fake->changed);
  g_free (h->view);
  g_free (h);
}

void
fake_serialize (struct backend *b)
{
  struct handle *h = b->handle;

  h->serial = true;
  b->serial = b->may_open = true;
}

void
fake_set_openable (struct fake *f, unsigned n)
{
  LOCK_IN_SCOPE (&f->lock);
  f->openable = n;
}

void
fake_hang_opens (struct fake *f, bool hang)
{
  LOCK_IN_SCOPE (&f->lock);
  f->opens_hang = hang;
  pthread_cond_broadcast (&f->changed);
}

unsigned
fake_n_contexts (struct fake *f)
{
  LOCK_IN_SCOPE (&f->lock);
  return f->contexts->len;
}

void
fake_hide (struct fake *f)
{
  LOCK_IN_SCOPE (&f->lock);
  f->flushed = g_memdup2 (f->data, f->size);
  for (unsigned i = 0; i < CONNS; i++)
    f->handles[i].view = g_memdup2 (f->data, f->size);
}

unsigned
fake_n_opened (struct fake *f)
{
  LOCK_IN_SCOPE (&f->lock);
  return f->n_opened;
}

static const struct backend_ops ops = {
  .pread = fake_pread, .pwrite = fake_pwrite, .zero = fake_zero,
  .trim = fake_trim, .flush = fake_flush, .extents = fake_extents,
  .is_gone = fake_is_gone, .open = fake_open, .close = fake_close,
};

/* Hooks. */

static __thread unsigned in_reply;

static void *
async_run (void *va)
{
  struct async *a = va;
  struct fake *f = a->handle->fake;
  struct nbdkit_async_io *io;
  bool is_write = a->op.kind == GATE_WRITE;
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
    .op = { .kind = io->is_write ? GATE_WRITE : GATE_READ, .count = io->count,
            .offset = io->offset, .is_hooked = true, .thread = pthread_self () }
  };
  f = a->handle->fake;
  {
    LOCK_IN_SCOPE (&f->lock);
    g_ptr_array_add (f->asyncs, a);
    here = !gate_would_hold (f->gate, a->op) && ++f->n_asyncs % 2 == 0;
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

static struct timespec
deadline (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  ts.tv_sec += DEADLINE_SECONDS;
  return ts;
}

void
fake_wait_n_contexts (struct fake *f, unsigned n)
{
  struct timespec ts = deadline ();

  LOCK_IN_SCOPE (&f->lock);
  while (f->contexts->len != n)
    if (pthread_cond_timedwait (&f->changed, &f->lock, &ts) == ETIMEDOUT)
      g_error ("fake: %u contexts are open, not %u", f->contexts->len, n);
}

unsigned
fake_peak_opening (struct fake *f)
{
  LOCK_IN_SCOPE (&f->lock);
  return f->peak_opening;
}

void
fake_wait_opening (struct fake *f, unsigned n)
{
  struct timespec ts = deadline ();

  LOCK_IN_SCOPE (&f->lock);
  while (f->opening < n)
    if (pthread_cond_timedwait (&f->changed, &f->lock, &ts) == ETIMEDOUT)
      g_error ("fake: waited in vain for an open");
}

void
fake_wait_asked (struct fake *f, unsigned n)
{
  struct timespec ts = deadline ();

  LOCK_IN_SCOPE (&f->lock);
  while (f->asked < n)
    if (pthread_cond_timedwait (&f->changed, &f->lock, &ts) == ETIMEDOUT)
      g_error ("fake: waited in vain for is_gone");
}
