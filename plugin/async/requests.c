/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Requests, from the start to a reply or until they are given up.
 *
 * A request comes from nbdkit or from a filter.  nbdkit's is a callback, whose
 * thread waits for the reply (nbdkit_async_perform).  A filter's is an io, and
 * io->done tells the filter of the end (nbdkit_async_start).
 *
 * Each request has a slot:
 *
 *   state       the plugin             left by                     a reply
 *   FREE        owes nothing           the next request: OWED      is reported
 *   OWED        owes a reply           a reply, or giving up       ends it
 *   CANCELLING  is in async_cancel     a reply, or the hook's end  ends it
 *   COPYING     is in .._reply_read    that call                   is reported
 *   ANSWERED    has replied            the request's thread: FREE  is reported
 *   ABANDONED   owes a late reply      that reply: FREE            ends it
 *   CANCELLED   was told               the next request: OWED      is ignored
 *
 * A filter's request is ANSWERED only while its hook runs.  Otherwise the reply
 * makes the slot FREE and then calls io->done.
 *
 * Rules:
 * 1. A slot's memory stays until .unload, and a request's number contains the
 *    index of its slot.  So a reply to any number finds a slot without touching
 *    memory that may be gone.
 * 2. A number is used once: 44 bits of it last for 200 days at a million
 *    requests per second.
 * 3. OWED and CANCELLING are left once, under the lock.  That decides between a
 *    reply and giving up.  The reply touches the requester's buffer and io only
 *    if it comes first.
 * 4. A request is not given up while its hook runs, so that the plugin can
 *    cancel everything that its hooks have started.
 *
 * One lock covers the table, all slots and io->reqid.  No thread holds it while
 * it calls the plugin, the filter or nbdkit, or while it copies data.
 *
 * The requester owns its buffer.  A plugin with async_cancel works on that
 * buffer.  For another plugin nbdkit_async_perform makes a copy, which belongs
 * to the slot for as long as the plugin may use it.  The copies of ABANDONED
 * requests have a bound, because each client that breaks off may leave some.
 * Copies of requests that are in flight when the bound is reached may exceed
 * it.  There are no more of these than nbdkit has threads.
 */

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "cond.h"
#include "internal.h"

#define INDEX_BITS 20           /* a million in flight */
#define CHUNK 256               /* slots */
#define CHUNKS ((1 << INDEX_BITS) / CHUNK)

/* How often a waiting thread asks nbdkit whether its client is still there. */
#define LOOK_NS (250 * MS)

/* The copies of four of the largest requests that nbdkit accepts. */
#define ABANDONED_MAX_BYTES (4 * (UINT64_C (64) << 20))

enum state { FREE, OWED, CANCELLING, COPYING, ANSWERED, ABANDONED, CANCELLED };

struct slot {
  /* Constant. */
  struct cond changed;          /* state or in_hook */
  uint32_t index;
  /* Under the lock. */
  enum state state;
  struct slot *next_free;       /* FREE, CANCELLED */
  uint64_t reqid;               /* of the request in it, or of the last one */
  struct operation op;
  void *copy;                   /* perform's; NULL: the plugin uses op.buf */
  struct nbdkit_async_io *io;   /* a filter's; NULL: perform waits */
  bool in_hook;
  int err;                      /* ANSWERED */
  /* While perform waits on behalf of a client that has gone. */
  struct slot *next_leaving;
  uint64_t newest;              /* number of requests started until then */
  uint64_t progress_ns;         /* last reply to one, or when the client left */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under the lock. */
static struct slot *chunks[CHUNKS];
static uint32_t n_slots;
static struct slot *first_free, **free_end = &first_free;
static struct slot *leaving;
static uint64_t n_started;
static uint64_t abandoned_bytes;        /* of copies of ABANDONED requests */
static bool is_bound_reported;          /* since the last late reply */

static const char *const kind_names[] = {
  "read", "write", "flush", "zero", "trim", "cache"
};

/* Slots. */

static void
set_state_locked (struct slot *s, enum state to)
{
  static const unsigned allowed[] = {
    [FREE] = 1 << OWED,
    [OWED] = 1 << CANCELLING | 1 << COPYING | 1 << ANSWERED | 1 << ABANDONED |
      1 << FREE,
    [CANCELLING] = 1 << COPYING | 1 << ANSWERED | 1 << CANCELLED | 1 << FREE,
    [COPYING] = 1 << ANSWERED | 1 << FREE,
    [ANSWERED] = 1 << FREE,
    [ABANDONED] = 1 << FREE,
    [CANCELLED] = 1 << OWED,
  };

  assert (allowed[s->state] & 1U << to);
  s->state = to;
}

/* The slot is used again as late as possible. */
static void
add_free_last_locked (struct slot *s)
{
  s->next_free = NULL;
  *free_end = s;
  free_end = &s->next_free;
}

static void
end_locked (struct slot *s)
{
  set_state_locked (s, FREE);
  s->io = NULL;
  s->copy = NULL;
  s->next_free = first_free;
  first_free = s;
  if (!s->next_free)
    free_end = &s->next_free;
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

/* The slot that has, or had last, the request REQID; NULL: none. */
static struct slot *
find_locked (uint64_t reqid)
{
  uint32_t index = reqid & ((1 << INDEX_BITS) - 1);
  struct slot *s = index < n_slots ? slot_at_locked (index) : NULL;

  return s && s->reqid == reqid ? s : NULL;
}

/* NULL: memory is out, or the table is full. */
static struct slot *
start (const struct operation *op, void *copy, struct nbdkit_async_io *io)
{
  struct slot *s = NULL;

  pthread_mutex_lock (&lock);
  if (first_free || grow_locked ()) {
    s = first_free;
    first_free = s->next_free;
    if (!first_free)
      free_end = &first_free;
    set_state_locked (s, OWED);
    s->reqid = ++n_started << INDEX_BITS | s->index;
    s->op = *op;
    s->copy = copy;
    s->io = io;
    s->in_hook = true;
  }
  if (io)
    io->reqid = s ? s->reqid : 0;
  pthread_mutex_unlock (&lock);
  return s;
}

void
nbdkit_async_free_requests (void)
{
  for (uint32_t i = 0; i < n_slots; i++)
    free (slot_at_locked (i)->copy);
  for (uint32_t i = 0; i < n_slots; i += CHUNK)
    free (chunks[i / CHUNK]);
  n_slots = 0;
  first_free = NULL;
  free_end = &first_free;
  abandoned_bytes = 0;
  is_bound_reported = false;
}

/* Replies. */

/* The plugin makes progress, so requests whose clients have left get more time.
 * Replies to requests that began after a client left do not count for it,
 * because they could make it wait forever.
 */
static void
note_progress_locked (uint64_t reqid)
{
  uint64_t now = leaving ? clock_ns () : 0;

  for (struct slot *s = leaving; s; s = s->next_leaving)
    if (reqid >> INDEX_BITS <= s->newest)
      s->progress_ns = now;
}

static uint64_t
copy_bytes (const struct slot *s)
{
  return s->copy ? s->op.count : 0;
}

/* A late reply, for which no thread waits. */
static void
take_late_and_unlock (struct slot *s)
{
  void *copy = NULL;

  if (s->state == ABANDONED) {
    note_progress_locked (s->reqid);
    abandoned_bytes -= copy_bytes (s);
    is_bound_reported = false;
    copy = s->copy;
    end_locked (s);
  }
  pthread_mutex_unlock (&lock);
  free (copy);
}

/* Returns the slot that waits for this reply, with the lock held.  Returns NULL
 * without the lock when there is nothing left to do.
 */
static struct slot *
find_owed_and_lock (const void *conn, uint64_t reqid)
{
  struct slot *s;

  nbdkit_async_error = 0;       /* errors are for one reply */
  pthread_mutex_lock (&lock);
  s = find_locked (reqid);
  if (s && s->op.handle == conn)
    switch (s->state) {
    case OWED:
      note_progress_locked (reqid);
      return s;
    case CANCELLING:            /* not progress: giving up asked for it */
      return s;
    case ABANDONED:
    case CANCELLED:
      take_late_and_unlock (s);
      return NULL;
    case FREE:
    case COPYING:
    case ANSWERED:
      break;
    }
  pthread_mutex_unlock (&lock);
  nbdkit_error ("async: reply to request %#" PRIx64
                ", which was replied to before or is unknown: ignored", reqid);
  return NULL;
}

static void
settle_and_unlock (struct slot *s, int err)
{
  /* The filter may close the handle after done, so a hook ends before that. */
  struct nbdkit_async_io *io = s->in_hook ? NULL : s->io;

  if (io)
    end_locked (s);
  else {
    set_state_locked (s, ANSWERED);
    s->err = err;
  }
  pthread_mutex_unlock (&lock);
  cond_broadcast (&s->changed);
  if (io)
    io->done (io, err);
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
  reply (conn, reqid, nbdkit_async_take_error (errno));
}

void
nbdkit_async_reply_errno (void *conn, uint64_t reqid, int err)
{
  if (err <= 0)
    nbdkit_error ("async: nbdkit_async_reply_errno: %d is not an error: EIO is "
                  "taken", err);
  reply (conn, reqid, err > 0 ? err : EIO);
}

/* Whether a reply with data is the one that the request asked for. */
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
  set_state_locked (s, COPYING);
  pthread_mutex_unlock (&lock);
  err = is_data_for (&op, count, buf) ? 0 : EIO;
  if (!err && buf != op.buf)
    memcpy (op.buf, buf, count);
  pthread_mutex_lock (&lock);
  s->op.buf = NULL;             /* has its data: collect leaves it alone */
  settle_and_unlock (s, err);
}

/* Requests of both kinds. */

/* Returns with the lock held. */
static void
call_hook_and_lock (struct slot *s, const struct operation *op, void *buf)
{
  int err = nbdkit_async_call_hook (op, buf, s->reqid);

  pthread_mutex_lock (&lock);
  if (err && s->state != OWED) {
    pthread_mutex_unlock (&lock);
    nbdkit_error ("async: the hook of a %s, offset %" PRIu64 ", length %" PRIu32
                  ", failed after the reply: the reply counts",
                  kind_names[op->kind], op->offset, op->count);
    pthread_mutex_lock (&lock);
  }
  else if (err) {
    set_state_locked (s, ANSWERED);
    s->err = err;
  }
  s->in_hook = false;
  cond_broadcast (&s->changed);
}

/* Calls async_cancel without the lock.  Returns whether no reply came. */
static bool
cancel_locked (struct slot *s)
{
  void *handle = s->op.handle;
  uint64_t reqid = s->reqid;

  set_state_locked (s, CANCELLING);
  pthread_mutex_unlock (&lock);
  nbdkit_async_hooks.async_cancel (handle, reqid, handle);
  pthread_mutex_lock (&lock);
  return s->reqid == reqid && s->state == CANCELLING;
}

/* Of a slot that is OWED.  Returns false if a reply came first after all,
 * perhaps from inside async_cancel.
 */
static bool
give_up_and_unlock (struct slot *s)
{
  struct operation op = s->op;

  if (!nbdkit_async_hooks.async_cancel) {
    set_state_locked (s, ABANDONED);
    abandoned_bytes += copy_bytes (s);
  }
  else if (cancel_locked (s)) {
    set_state_locked (s, CANCELLED);
    add_free_last_locked (s);   /* so that a late reply finds it CANCELLED */
  }
  else {
    pthread_mutex_unlock (&lock);
    return false;
  }
  s->io = NULL;
  pthread_mutex_unlock (&lock);
  nbdkit_error ("async: the plugin did not reply to a %s, offset %" PRIu64
                ", length %" PRIu32 ": given up", kind_names[op.kind],
                op.offset, op.count);
  return true;
}

/* Requests of nbdkit. */

/* nbdkit has no other function that tells this.  It logs a line when the client
 * has left, so the caller does not ask again then.
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

static void
add_leaving_locked (struct slot *s)
{
  s->newest = n_started;
  s->progress_ns = clock_ns ();
  s->next_leaving = leaving;
  leaving = s;
}

static void
remove_leaving_locked (const struct slot *s)
{
  struct slot **p = &leaving;

  while (*p != s)
    p = &(*p)->next_leaving;
  *p = s->next_leaving;
}

/* Returns false when there is no reply, and the plugin had its time. */
static bool
wait_for_reply_locked (struct slot *s)
{
  uint64_t now, until = clock_ns () + LOOK_NS;
  bool has_left = false, is_in_time = true;

  while (is_in_time && (s->state == OWED || s->state == COPYING)) {
    if (cond_wait_until (&s->changed, &lock, until))
      continue;
    if (!has_left && client_has_left_locked ()) {
      has_left = true;
      add_leaving_locked (s);
    }
    now = clock_ns ();
    until = now + LOOK_NS;
    if (has_left && s->state == OWED) {
      until = s->progress_ns + nbdkit_async_hooks.grace_ms * MS;
      is_in_time = now < until;
    }
  }
  if (has_left)
    remove_leaving_locked (s);
  return is_in_time;
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

/* Whether the plugin owes too many late replies for another copy. */
static bool
is_refused (const struct operation *op)
{
  uint64_t bytes;
  bool refused, is_news;

  pthread_mutex_lock (&lock);
  bytes = abandoned_bytes;
  refused = bytes + op->count > ABANDONED_MAX_BYTES;
  is_news = refused && !is_bound_reported;
  is_bound_reported |= refused;
  pthread_mutex_unlock (&lock);
  if (is_news)
    nbdkit_error ("async: replies owed by the plugin to requests that were "
                  "given up: %" PRIu64 " bytes are kept for them, and a %s of %"
                  PRIu32 " bytes is refused: at most %" PRIu64
                  " bytes are kept, until the plugin replies", bytes,
                  kind_names[op->kind], op->count, ABANDONED_MAX_BYTES);
  return refused;
}

int
nbdkit_async_perform (const struct operation *op)
{
  bool has_data = op->kind == READ || op->kind == WRITE;
  void *copy = NULL;
  struct slot *s;

  if (has_data && !nbdkit_async_hooks.async_cancel) {
    copy = is_refused (op) ? NULL : malloc (op->count);
    if (!copy)
      return ENOMEM;
    if (op->kind == WRITE)
      memcpy (copy, op->buf, op->count);
    else                        /* a hook may fill a part only */
      memset (copy, 0, op->count);
  }
  s = start (op, copy, NULL);
  if (!s) {
    free (copy);
    return ENOMEM;
  }
  call_hook_and_lock (s, op, copy ? copy : op->buf);
  while (!wait_for_reply_locked (s)) {
    if (give_up_and_unlock (s))
      return ESHUTDOWN;
    pthread_mutex_lock (&lock);
  }
  return collect_and_unlock (s);
}

/* Requests of a filter. */

void
nbdkit_async_start (struct nbdkit_async_io *io)
{
  struct operation op = { io->is_write ? WRITE : READ, io->handle, io->buf,
                          io->count, io->offset, 0 };
  struct slot *s = start (&op, NULL, io);
  bool is_over;
  int err;

  if (!s) {
    io->done (io, ENOMEM);
    return;
  }
  call_hook_and_lock (s, &op, op.buf);
  is_over = s->state == ANSWERED;
  err = s->err;
  if (is_over)
    end_locked (s);
  pthread_mutex_unlock (&lock);
  if (is_over)                  /* else the reply has io, which may be gone */
    io->done (io, err);
}

bool
nbdkit_async_give_up (struct nbdkit_async_io *io)
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
