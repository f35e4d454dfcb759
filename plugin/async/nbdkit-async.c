/* SPDX-License-Identifier: BSD-3-Clause
 *
 * libnbdkit-async.a: what is behind nbdkit-async.h and nbdkit-async-driver.h.
 * It is linked into each plugin, so each plugin has its own table of requests.
 *
 * A request comes from nbdkit, through a callback that waits for the reply
 * (perform), or from a filter, which is told by io->done (driver_start).  Each
 * has a slot from its start to its end:
 *
 *   state      the plugin             left by                     a reply
 *   FREE       owes nothing           start_locked: OWED          is reported
 *   OWED       is to reply            a reply, or giving up       ends it
 *   CANCELLING is in async_cancel     a reply, or the hook's end  ends it
 *   COPYING    is in .._reply_read    that call                   is reported
 *   ANSWERED   has replied            perform's thread: FREE      is reported
 *   ABANDONED  owes a reply for none  a reply: FREE               ends it
 *   CANCELLED  was told               start_locked: OWED          is ignored
 *
 * A filter's request is ANSWERED only while its hook runs.  Otherwise the reply
 * makes it FREE and then calls done.
 *
 * 1. A slot's memory stays until .unload, and the number of a request has its
 *    slot's index in it.  So the reply to any number is looked up without
 *    touching anything that may be gone.
 * 2. Numbers are not used again: 44 bits of them last 200 days at a million
 *    requests per second.
 * 3. OWED or CANCELLING is left once for COPYING, ANSWERED or FREE, or for
 *    ABANDONED or CANCELLED, under the lock.  That decides between a reply and
 *    giving up.  A reply that wins touches the requester's buffer and io, one
 *    that loses does not.
 * 4. A request is not given up while its hook is running, so that a plugin can
 *    cancel whatever its hooks have started.
 *
 * The one lock covers the table, all slots, and io->reqid.  No call into the
 * plugin, the filter or nbdkit, and no copy of data, is made with it held.
 *
 * Buffers belong to the requester.  A plugin with async_cancel works on them.
 * Another one gets a copy from perform, which stays with the slot for as long
 * as the plugin may use it.
 *
 * Copies of ABANDONED requests have a bound, as each client that breaks off may
 * leave some.  While they have reached it, perform makes no more copies.  The
 * copies of requests that are under way at that moment may come on top: perform
 * makes no more of them than nbdkit has threads.
 */

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "clock.h"
#include "cond.h"
#include "nbdkit-async.h"

#define INDEX_BITS 20           /* a million in flight */
#define CHUNK 256               /* slots */
#define CHUNKS ((1 << INDEX_BITS) / CHUNK)

#define MS UINT64_C (1000000)
#define DEFAULT_GRACE_MS 30000
/* How often a request that waits asks whether its client is still there. */
#define LOOK_NS (250 * MS)

/* The copies of four of the largest requests that nbdkit accepts. */
#define ABANDONED_MAX_BYTES (4 * (UINT64_C (64) << 20))

enum kind { READ, WRITE, FLUSH, ZERO, TRIM, CACHE };

static const char *const kind_names[] = {
  "read", "write", "flush", "zero", "trim", "cache"
};

enum state { FREE, OWED, CANCELLING, COPYING, ANSWERED, ABANDONED, CANCELLED };

struct operation {
  enum kind kind;
  void *handle;
  void *buf;                    /* the requester's */
  uint32_t count;
  uint64_t offset;
  uint32_t flags;
};

struct slot {
  /* Constant. */
  struct cond changed;
  uint32_t index;
  /* Under the lock. */
  enum state state;
  struct slot *next_free;
  uint64_t reqid;               /* of the request in it, or of the last one */
  struct operation op;
  void *copy;                   /* perform's; NULL: there is async_cancel */
  struct nbdkit_async_io *io;   /* a filter's; NULL: perform waits */
  bool in_hook;
  int err;                      /* ANSWERED */
  /* While perform waits on behalf of a client that has gone. */
  struct slot *next_leaving;
  uint64_t newest;              /* of the requests that were under way then */
  uint64_t progress_ns;         /* last reply to one, or when the client left */
};

/* Constant from .get_ready on, before there are threads. */
static struct nbdkit_plugin *plugin;
static struct nbdkit_plugin author;     /* before the wrappers were put in */
static const struct nbdkit_async *given;        /* NULL: disabled */
static size_t given_size;       /* smaller if its header is older than ours */
static bool is_given_final;     /* the author changes nothing any more */
static struct nbdkit_async hooks;       /* the copy that is used */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under the lock. */
static struct slot *chunks[CHUNKS];
static uint32_t n_slots;
static struct slot *first_free, *last_free;
static struct slot *leaving;
static uint64_t n_started;
static uint64_t abandoned_bytes;        /* of copies of ABANDONED requests */
static bool is_bound_reported;  /* since the last late reply */

static __thread int thread_error;
static __thread void *opened;

static uint64_t
grace_ns (void)
{
  return (hooks.grace_ms ? hooks.grace_ms : DEFAULT_GRACE_MS) * MS;
}

/* Slots. */

static void
add_free_locked (struct slot *s)
{
  s->next_free = first_free;
  first_free = s;
  if (!last_free)
    last_free = s;
}

/* To be used again as late as possible, so that a late reply to it is
 * recognised.
 */
static void
add_free_last_locked (struct slot *s)
{
  s->next_free = NULL;
  if (last_free)
    last_free->next_free = s;
  else
    first_free = s;
  last_free = s;
}

static bool
grow_locked (void)
{
  struct slot *chunk;

  if (n_slots == CHUNKS * CHUNK || !(chunk = calloc (CHUNK, sizeof *chunk)))
    return false;
  chunks[n_slots / CHUNK] = chunk;
  for (unsigned i = 0; i < CHUNK; i++) {
    chunk[i].index = n_slots++;
    add_free_last_locked (&chunk[i]);
  }
  return true;
}

static struct slot *
slot_at_locked (uint32_t index)
{
  return &chunks[index / CHUNK][index % CHUNK];
}

static struct slot *
start_locked (const struct operation *op, void *copy,
              struct nbdkit_async_io *io)
{
  struct slot *s;

  if (!first_free && !grow_locked ())
    return NULL;
  s = first_free;
  first_free = s->next_free;
  if (!first_free)
    last_free = NULL;
  s->state = OWED;
  s->reqid = ++n_started << INDEX_BITS | s->index;
  s->op = *op;
  s->copy = copy;
  s->io = io;
  s->in_hook = true;
  return s;
}

static struct slot *
find_locked (uint64_t reqid)
{
  uint32_t index = reqid & ((1 << INDEX_BITS) - 1);
  struct slot *s = index < n_slots ? slot_at_locked (index) : NULL;

  return s && s->reqid == reqid ? s : NULL;
}

static void
end_locked (struct slot *s)
{
  s->state = FREE;
  s->io = NULL;
  s->copy = NULL;
  add_free_locked (s);
}

/* The plugin replied to a request, so it makes progress: requests whose clients
 * have left get more time.  Replies to requests that began after a client left
 * do not count for it, as they could make it wait for ever.
 */
static void
note_progress_locked (uint64_t reqid)
{
  uint64_t now = leaving ? clock_ns () : 0;

  for (struct slot *s = leaving; s; s = s->next_leaving)
    if (reqid >> INDEX_BITS <= s->newest)
      s->progress_ns = now;
}

static void
leave_locked (struct slot *s)
{
  s->newest = n_started;
  s->progress_ns = clock_ns ();
  s->next_leaving = leaving;
  leaving = s;
}

static void
left_locked (const struct slot *s)
{
  struct slot **p = &leaving;

  while (*p && *p != s)
    p = &(*p)->next_leaving;
  if (*p)
    *p = s->next_leaving;
}

/* Errors of the plugin's threads. */

void
nbdkit_async_set_error (int err)
{
  thread_error = err;
  (nbdkit_set_error) (err);     /* for callbacks */
}

static int
take_error (int saved_errno)
{
  int err = thread_error;

  thread_error = 0;
  if (err <= 0 && plugin->errno_is_preserved)
    err = saved_errno;
  return err > 0 ? err : EIO;
}

/* Replies. */

static void
report_unknown (uint64_t reqid)
{
  nbdkit_error ("async: reply to request %#" PRIx64
                ", which was replied to before or is unknown: ignored", reqid);
}

static void
settle_and_unlock (struct slot *s, int err)
{
  /* While its hook runs a filter's request goes on, for the handle is not
   * closed before it ends.
   */
  struct nbdkit_async_io *io = s->in_hook ? NULL : s->io;

  if (io)
    end_locked (s);
  else {
    s->err = err;
    s->state = ANSWERED;
  }
  pthread_mutex_unlock (&lock);
  cond_broadcast (&s->changed);
  if (io)
    io->done (io, err);
}

/* A request without a copy has no part in the count. */
static void
count_abandoned_locked (const struct slot *s, int sign)
{
  if (s->copy)
    abandoned_bytes += sign * (int64_t) s->op.count;
}

/* A late reply: no thread waits for it. */
static void
ignore_and_unlock (struct slot *s)
{
  void *copy = NULL;

  note_progress_locked (s->reqid);
  if (s->state == ABANDONED) {
    count_abandoned_locked (s, -1);
    is_bound_reported = false;
    copy = s->copy;
    end_locked (s);
  }
  pthread_mutex_unlock (&lock);
  free (copy);
}

/* With the lock, the slot that waits for this reply.  Without, NULL: all is
 * done.
 */
static struct slot *
find_owed_and_lock (const void *conn, uint64_t reqid)
{
  struct slot *s;

  thread_error = 0;             /* errors are for one reply */
  pthread_mutex_lock (&lock);
  s = find_locked (reqid);
  if (s && s->op.handle == conn)
    switch (s->state) {
    case OWED:
      note_progress_locked (reqid);
      return s;
    case CANCELLING:            /* no progress: giving up asked for it */
      return s;
    case ABANDONED:
    case CANCELLED:
      ignore_and_unlock (s);
      return NULL;
    case FREE:
    case COPYING:
    case ANSWERED:
      break;
    }
  pthread_mutex_unlock (&lock);
  report_unknown (reqid);
  return NULL;
}

static void
reply (const void *conn, uint64_t reqid, int err)
{
  struct slot *s = find_owed_and_lock (conn, reqid);

  if (s)
    settle_and_unlock (s, err);
}

void
nbdkit_async_reply (void *conn, uint64_t reqid)
{
  reply (conn, reqid, 0);
}

void
nbdkit_async_reply_error (void *conn, uint64_t reqid)
{
  reply (conn, reqid, take_error (errno));
}

void
nbdkit_async_reply_errno (void *conn, uint64_t reqid, int err)
{
  if (err <= 0)
    nbdkit_error ("async: nbdkit_async_reply_errno: %d is not an error: EIO is "
                  "taken", err);
  reply (conn, reqid, err > 0 ? err : EIO);
}

/* Whether a reply with data is what the request asked for. */
static bool
is_data_for (const struct operation *op, uint32_t count, const void *buf)
{
  if (op->kind == READ && count == op->count && buf)
    return true;
  nbdkit_error ("async: nbdkit_async_reply_read: %" PRIu32 " bytes%s for a %s "
                "of %" PRIu32 " bytes at offset %" PRIu64
                ": taken for an error", count, buf ? "" : " at NULL",
                kind_names[op->kind], op->count, op->offset);
  return false;
}

void
nbdkit_async_reply_read (void *conn, uint64_t reqid, uint32_t count,
                         const void *buf)
{
  struct slot *s = find_owed_and_lock (conn, reqid);
  struct operation op;
  int err;

  if (!s)
    return;
  op = s->op;
  s->state = COPYING;
  pthread_mutex_unlock (&lock);
  err = is_data_for (&op, count, buf) ? 0 : EIO;
  if (!err && buf != op.buf)
    memcpy (op.buf, buf, count);
  pthread_mutex_lock (&lock);
  /* The requester has its data: perform is not to fetch it from its copy, which
   * was not filled.
   */
  s->op.buf = NULL;
  settle_and_unlock (s, err);
}

/* Hooks. */

static int
call_hook (const struct operation *op, void *buf, uint64_t reqid)
{
  void *h = op->handle;
  bool fua = op->flags & NBDKIT_FLAG_FUA;
  int r = -1;

  thread_error = 0;
  errno = 0;
  switch (op->kind) {
  case READ:
    r = hooks.async_pread (h, reqid, fua, h, buf, op->count, op->offset);
    break;
  case WRITE:
    r = hooks.async_pwrite (h, reqid, fua, h, buf, op->count, op->offset);
    break;
  case FLUSH:
    r = hooks.async_flush (h, reqid, h, op->flags);
    break;
  case ZERO:
    r = hooks.async_zero (h, reqid, h, op->count, op->offset, op->flags);
    break;
  case TRIM:
    r = hooks.async_trim (h, reqid, h, op->count, op->offset, op->flags);
    break;
  case CACHE:
    r = hooks.async_cache (h, reqid, h, op->count, op->offset, op->flags);
    break;
  }
  return r == 0 ? 0 : take_error (errno);
}

static void
report_failed_after_reply (const struct operation *op)
{
  nbdkit_error ("async: the hook of a %s, offset %" PRIu64 ", length %" PRIu32
                ", failed after the reply: the reply counts",
                kind_names[op->kind], op->offset, op->count);
}

/* Of a slot that is OWED.  False: a reply has won after all, perhaps from
 * inside async_cancel.
 */
static bool
give_up_and_unlock (struct slot *s)
{
  bool is_cancelled = hooks.async_cancel;
  struct operation op = s->op;
  uint64_t reqid = s->reqid;
  void *copy = NULL;

  if (is_cancelled) {
    s->state = CANCELLING;
    pthread_mutex_unlock (&lock);
    hooks.async_cancel (op.handle, reqid, op.handle);
    pthread_mutex_lock (&lock);
    if (s->reqid != reqid || s->state != CANCELLING) {
      pthread_mutex_unlock (&lock);
      return false;
    }
    s->state = CANCELLED;
    copy = s->copy;
    s->copy = NULL;
    add_free_last_locked (s);
  }
  else {
    s->state = ABANDONED;
    count_abandoned_locked (s, 1);
  }
  s->io = NULL;
  pthread_mutex_unlock (&lock);
  free (copy);
  nbdkit_error ("async: the plugin did not reply to a %s, offset %" PRIu64
                ", length %" PRIu32 ": given up", kind_names[op.kind],
                op.offset, op.count);
  return true;
}

/* Requests of nbdkit. */

static int
result (int err)
{
  if (err == 0)
    return 0;
  (nbdkit_set_error) (err);
  errno = err;                  /* for threads that nbdkit knows nothing of */
  return -1;
}

/* nbdkit says so in no other way.  It logs a line when a client has left, so
 * the caller does not ask again then.
 */
static bool
client_has_left_locked (void)
{
  bool r;

  pthread_mutex_unlock (&lock);
  r = nbdkit_nanosleep (0, 1) == -1 && errno == ESHUTDOWN;
  pthread_mutex_lock (&lock);
  return r;
}

/* False: there is no reply, and the plugin had its time. */
static bool
wait_for_reply_locked (struct slot *s)
{
  uint64_t until = clock_ns () + LOOK_NS;
  bool has_left = false, given_up = false;

  while (!given_up && (s->state == OWED || s->state == COPYING)) {
    if (cond_wait_until (&s->changed, &lock, until))
      continue;
    if (!has_left && client_has_left_locked ()) {
      has_left = true;
      leave_locked (s);
    }
    until = has_left ? s->progress_ns + grace_ns () : clock_ns () + LOOK_NS;
    given_up = s->state == OWED && until <= clock_ns ();
    if (s->state == COPYING)
      until = clock_ns () + LOOK_NS;
  }
  if (has_left)
    left_locked (s);
  return !given_up;
}

/* From the reply to the caller. */
static int
collect_and_unlock (struct slot *s)
{
  void *copy = s->copy, *buf = s->op.buf;
  uint32_t count = s->op.count;
  bool is_read = s->op.kind == READ;
  int err = s->err;

  end_locked (s);
  pthread_mutex_unlock (&lock);
  if (copy && is_read && buf && err == 0)
    memcpy (buf, copy, count);
  free (copy);
  return err;
}

static int
perform_with (const struct operation *op, void *copy)
{
  struct slot *s;
  uint64_t reqid;
  bool has_failed_late;
  int err;

  pthread_mutex_lock (&lock);
  s = start_locked (op, copy, NULL);
  reqid = s ? s->reqid : 0;
  pthread_mutex_unlock (&lock);
  if (!s) {
    free (copy);
    return ENOMEM;
  }
  err = call_hook (op, copy ? copy : op->buf, reqid);
  pthread_mutex_lock (&lock);
  s->in_hook = false;
  has_failed_late = err && s->state != OWED;
  if (err && s->state == OWED) {
    s->state = ANSWERED;
    s->err = err;
  }
  if (has_failed_late) {
    pthread_mutex_unlock (&lock);
    report_failed_after_reply (op);
    pthread_mutex_lock (&lock);
  }
  while (!wait_for_reply_locked (s)) {
    if (give_up_and_unlock (s))
      return ESHUTDOWN;
    pthread_mutex_lock (&lock);
  }
  return collect_and_unlock (s);
}

/* Whether the plugin owes too many replies for another copy. */
static bool
are_copies_too_many (const struct operation *op)
{
  uint64_t bytes;
  bool is_news = false;

  pthread_mutex_lock (&lock);
  bytes = abandoned_bytes;
  if (bytes + op->count > ABANDONED_MAX_BYTES) {
    is_news = !is_bound_reported;
    is_bound_reported = true;
  }
  pthread_mutex_unlock (&lock);
  if (is_news)
    nbdkit_error ("async: replies owed by the plugin to requests that were "
                  "given up: %" PRIu64 " bytes are kept for them, and a %s of %"
                  PRIu32 " bytes is refused: at most %" PRIu64
                  " bytes are kept, until the plugin replies", bytes,
                  kind_names[op->kind], op->count, ABANDONED_MAX_BYTES);
  return bytes + op->count > ABANDONED_MAX_BYTES;
}

static int
perform (const struct operation *op)
{
  bool has_data = op->kind == READ || op->kind == WRITE;
  void *copy = NULL;

  if (has_data && !hooks.async_cancel) {
    copy = are_copies_too_many (op) ? NULL : malloc (op->count);
    if (!copy)
      return result (ENOMEM);
    if (op->kind == WRITE)
      memcpy (copy, op->buf, op->count);
  }
  return result (perform_with (op, copy));
}

#define IS_HOOKED(op) \
  (hooks.async_##op && !(hooks.prefer_callbacks && author.op))

static int
wrap_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  if (!IS_HOOKED (pread))
    return author.pread (handle, buf, count, offset, flags);
  return perform (&(struct operation) { READ, handle, buf, count, offset,
                                        flags });
}

static int
wrap_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  void *data = (void *) (uintptr_t) buf;        /* only read */

  if (!IS_HOOKED (pwrite))
    return author.pwrite (handle, buf, count, offset, flags);
  return perform (&(struct operation) { WRITE, handle, data, count, offset,
                                        flags });
}

static int
wrap_flush (void *handle, uint32_t flags)
{
  if (!IS_HOOKED (flush))
    return author.flush (handle, flags);
  return perform (&(struct operation) { FLUSH, handle, NULL, 0, 0, flags });
}

static int
wrap_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (!IS_HOOKED (zero))
    return author.zero (handle, count, offset, flags);
  return perform (&(struct operation) { ZERO, handle, NULL, count, offset,
                                        flags });
}

static int
wrap_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (!IS_HOOKED (trim))
    return author.trim (handle, count, offset, flags);
  return perform (&(struct operation) { TRIM, handle, NULL, count, offset,
                                        flags });
}

static int
wrap_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  if (!IS_HOOKED (cache))
    return author.cache (handle, count, offset, flags);
  return perform (&(struct operation) { CACHE, handle, NULL, count, offset,
                                        flags });
}

/* Requests of a filter. */

static bool
driver_claim (void **handle)
{
  *handle = opened;
  opened = NULL;
  return *handle != NULL;
}

static void
driver_start (struct nbdkit_async_io *io)
{
  struct operation op = { io->is_write ? WRITE : READ, io->handle, io->buf,
                          io->count, io->offset, 0 };
  struct slot *s;
  bool is_owed, is_over, has_failed_late;
  int err;

  pthread_mutex_lock (&lock);
  s = start_locked (&op, NULL, io);
  io->reqid = s ? s->reqid : 0;
  pthread_mutex_unlock (&lock);
  if (!s) {
    io->done (io, ENOMEM);
    return;
  }
  err = call_hook (&op, op.buf, s->reqid);
  pthread_mutex_lock (&lock);
  s->in_hook = false;
  is_owed = s->state == OWED;
  is_over = s->state == ANSWERED || (is_owed && err);
  has_failed_late = err && !is_owed;
  if (s->state == ANSWERED)
    err = s->err;
  if (is_over)
    end_locked (s);             /* else io is the replier's, and may be gone */
  pthread_mutex_unlock (&lock);
  cond_broadcast (&s->changed);
  if (has_failed_late)
    report_failed_after_reply (&op);
  if (is_over)
    io->done (io, err);
}

static bool
driver_give_up (struct nbdkit_async_io *io)
{
  struct slot *s;
  uint64_t reqid;

  pthread_mutex_lock (&lock);
  reqid = io->reqid;
  while ((s = find_locked (reqid)) != NULL && s->state == OWED && s->in_hook)
    cond_wait (&s->changed, &lock);
  if (s && s->state == OWED)
    return give_up_and_unlock (s);
  pthread_mutex_unlock (&lock);
  return false;
}

static struct nbdkit_async_driver own_driver = {
  .claim = driver_claim,
  .start = driver_start,
  .give_up = driver_give_up,
};

/* Copies what the author gave.  The author may change it until .get_ready, so
 * it is copied each time it is looked at until then, and never after.  Fields
 * that the plugin's header does not know are zero.
 */
static void
read_hooks (void)
{
  if (is_given_final)
    return;
  memset (&hooks, 0, sizeof hooks);
  if (given)
    memcpy (&hooks, given,
            given_size < sizeof hooks ? given_size : sizeof hooks);
  own_driver.can_read = hooks.async_pread;
  own_driver.can_write = hooks.async_pwrite;
  own_driver.can_cancel = hooks.async_cancel;
  own_driver.grace_ns = grace_ns ();
}

const struct nbdkit_async_driver *
nbdkit_async_get_driver (void)
{
  if (!plugin)
    return NULL;
  read_hooks ();
  return &own_driver;
}

/* The plugin. */

static void *
wrap_open (int readonly)
{
  opened = NULL;
  return opened = author.open (readonly);
}

/* nbdkit calls this before it forks, and before any filter's .get_ready. */
static int
wrap_get_ready (void)
{
  read_hooks ();
  is_given_final = true;
  return author.get_ready ? author.get_ready () : 0;
}

/* The plugin's threads have ended with its own .unload: no reply comes any
 * more.
 */
static void
wrap_unload (void)
{
  if (author.unload)
    author.unload ();
  for (uint32_t i = 0; i < n_slots; i++)
    free (slot_at_locked (i)->copy);
  for (uint32_t i = 0; i < n_slots; i += CHUNK)
    free (chunks[i / CHUNK]);
  n_slots = 0;
  first_free = last_free = NULL;
  abandoned_bytes = 0;
  is_bound_reported = false;
}

static void
print_hook (const char *name, bool is_there)
{
  if (is_there)
    printf ("has_async_%s=1\n", name);
}

static void
wrap_dump_plugin (void)
{
  read_hooks ();
  print_hook ("pread", hooks.async_pread);
  print_hook ("pwrite", hooks.async_pwrite);
  print_hook ("flush", hooks.async_flush);
  print_hook ("zero", hooks.async_zero);
  print_hook ("trim", hooks.async_trim);
  print_hook ("cache", hooks.async_cache);
  print_hook ("cancel", hooks.async_cancel);
  if (author.dump_plugin)
    author.dump_plugin ();
}

/* A hook that has no callback to take its place; NULL: none. */
static const char *
find_hook_alone (void)
{
  return hooks.async_pread && !author.pread ? "pread" :
    hooks.async_pwrite && !author.pwrite ? "pwrite" :
    hooks.async_flush && !author.flush ? "flush" :
    hooks.async_zero && !author.zero ? "zero" :
    hooks.async_trim && !author.trim ? "trim" :
    hooks.async_cache && !author.cache ? "cache" : NULL;
}

/* The wrappers stay where nbdkit has them, and find no hooks. */
int
nbdkit_async_disable (void)
{
  const char *missing;

  read_hooks ();
  missing = find_hook_alone ();
  if (missing) {
    nbdkit_error ("nbdkit_async_disable: there is async_%s, but no .%s to take "
                  "its place", missing, missing);
    return -1;
  }
  given = NULL;
  read_hooks ();
  return 0;
}

/* nbdkit copies the struct when this returns.  It reports a NULL, and which
 * callback it misses.
 */
struct nbdkit_plugin *
nbdkit_async_register (struct nbdkit_plugin *p, const struct nbdkit_async *h,
                       size_t size)
{
  if (p->_api_version != 2) {
    nbdkit_error ("%s: async hooks need NBDKIT_API_VERSION 2, this plugin has "
                  "%d", p->name ? p->name : "plugin", p->_api_version);
    return NULL;
  }
  plugin = p;
  /* It may have been compiled with an older header, which knew less. */
  memcpy (&author, p, p->_struct_size < sizeof author
          ? p->_struct_size : sizeof author);
  given = h;
  given_size = size;
  is_given_final = false;
  read_hooks ();
  if (hooks.async_pread)
    p->pread = wrap_pread;
  if (hooks.async_pwrite)
    p->pwrite = wrap_pwrite;
  if (hooks.async_flush)
    p->flush = wrap_flush;
  if (hooks.async_zero)
    p->zero = wrap_zero;
  if (hooks.async_trim)
    p->trim = wrap_trim;
  if (hooks.async_cache)
    p->cache = wrap_cache;
  if (p->open)
    p->open = wrap_open;
  p->get_ready = wrap_get_ready;
  p->unload = wrap_unload;
  p->dump_plugin = wrap_dump_plugin;
  return p;
}
