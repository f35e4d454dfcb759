/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/async/nbdkit-async.c: what a filter does with it, giving up, memory that runs out.
 * It is included, with functions of this file in the place of nbdkit's; the test is the plugin too.
 */
#include <glib.h>

#include "asleep.h"
#include "clock.h"
#include "lock.h"
#include "service.h"

static void *test_malloc (size_t size);
static void *test_calloc (size_t n, size_t size);
static void *test_memcpy (void *to, const void *from, size_t n);

/* Its own headers must be there before. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t test_clock_ns (void);
static bool test_wait_until (struct cond *cond, pthread_mutex_t *mutex, uint64_t until_ns);

#define malloc test_malloc
#define calloc test_calloc
#define memcpy test_memcpy
#define clock_ns test_clock_ns
#define cond_wait_until test_wait_until
#include "../plugin/async/requests.c"
#include "../plugin/async/nbdkit-async.c"
#undef malloc
#undef calloc
#undef memcpy
#undef clock_ns
#undef cond_wait_until

#define COUNT 4096

static pthread_mutex_t test_lock = PTHREAD_MUTEX_INITIALIZER;
/* Under it. */
static char *messages;
static bool client_is_gone;
static bool is_hook_held, is_hook_waiting;
static bool is_copy_held, is_copy_waiting;
static bool is_reply_held, is_reply_waiting;
static unsigned n_cancelled;
static uint64_t cancelled_in_hook;
static uint64_t last_reqid;
static void *last_buf;
static bool is_in_hook;
static unsigned n_asked;        /* whether the client has gone */
static unsigned timeouts_left;
static bool is_time_still;
static uint64_t fake_ns;        /* 0: time is real */
/* Set before. */
static bool memory_is_out;
static enum does { REPLY_LATER, REPLY_AT_ONCE, REPLY_READ_AT_ONCE, FAIL, FAIL_AFTER_REPLY }
  hook_does, cancel_does;
static struct service *service; /* delaymem's, instead of hook_does and cancel_does */
static int nbdkit_err;

static struct nbdkit_plugin test_plugin;
static struct nbdkit_async test_hooks;
static const struct nbdkit_async_driver *driver;
static char data[COUNT];
static int a_handle;
#define HANDLE ((void *) &a_handle)

static void *
test_malloc (size_t size)
{
  return memory_is_out ? NULL : malloc (size);
}

static void *
test_calloc (size_t n, size_t size)
{
  return memory_is_out ? NULL : calloc (n, size);
}

/* nbdkit. */

G_GNUC_PRINTF (1, 2) void
nbdkit_error (const char *format, ...)
{
  va_list args;
  char *line, *old;

  va_start (args, format);
  line = g_strdup_vprintf (format, args);
  va_end (args);
  LOCK_IN_SCOPE (&test_lock);
  old = messages;
  messages = g_strconcat (old, line, "\n", NULL);
  g_free (old);
  g_free (line);
}

void
(nbdkit_set_error) (int err)
{
  nbdkit_err = err;
}

int
nbdkit_nanosleep (unsigned sec, unsigned nsec)
{
  LOCK_IN_SCOPE (&test_lock);
  g_assert_cmpuint (sec, ==, 0);
  g_assert_cmpuint (nsec, ==, 1);
  n_asked++;
  errno = ESHUTDOWN;
  return client_is_gone ? -1 : 0;
}

/* Time. */

static uint64_t
test_clock_ns (void)
{
  LOCK_IN_SCOPE (&test_lock);
  return fake_ns ? fake_ns : clock_ns ();
}

/* Fake time goes by at once, until there are no timeouts left: then it stands still. */
static bool
test_wait_until (struct cond *cond, pthread_mutex_t *mutex, uint64_t until_ns)
{
  bool is_real, is_over;

  pthread_mutex_lock (&test_lock);
  is_real = fake_ns == 0;
  is_over = !is_real && timeouts_left > 0;
  is_time_still = !is_real && !is_over;
  if (is_over) {
    timeouts_left--;
    fake_ns = until_ns;
  }
  pthread_mutex_unlock (&test_lock);
  return !is_over && cond_wait_until (cond, mutex, is_real ? until_ns : UINT64_MAX);
}

static int
times_said (const char *text)
{
  int n = 0;

  LOCK_IN_SCOPE (&test_lock);
  for (const char *p = messages; (p = strstr (p, text)) != NULL; p++)
    n++;
  return n;
}

static bool
was_said (const char *text)
{
  return times_said (text) > 0;
}

#define UNKNOWN "replied to before or is unknown"

/* Waits for what another thread does; tests/run ends what does not happen. */
#define WAIT_UNTIL(condition)                   \
  do {                                          \
    pthread_mutex_lock (&test_lock);            \
    while (!(condition)) {                      \
      pthread_mutex_unlock (&test_lock);        \
      g_usleep (1000);                          \
      pthread_mutex_lock (&test_lock);          \
    }                                           \
    pthread_mutex_unlock (&test_lock);          \
  } while (0)

static void *
test_memcpy (void *to, const void *from, size_t n)
{
  pthread_mutex_lock (&test_lock);
  is_copy_waiting = is_copy_held;
  pthread_mutex_unlock (&test_lock);
  WAIT_UNTIL (!is_copy_held);
  return memcpy (to, from, n);
}

/* The plugin. */

static int
answer (enum does what, void *conn, uint64_t reqid)
{
  switch (what) {
  case REPLY_LATER:
    return 0;
  case REPLY_AT_ONCE:
    nbdkit_async_reply (conn, reqid);
    return 0;
  case REPLY_READ_AT_ONCE:
    nbdkit_async_reply_read (conn, reqid, COUNT, data);
    return 0;
  case FAIL_AFTER_REPLY:
    nbdkit_async_reply (conn, reqid);
    nbdkit_set_error (ENOSPC);
    return -1;
  case FAIL:
    nbdkit_set_error (ENOSPC);
    return -1;
  }
  return -1;
}

static int
hook (void *conn, uint64_t reqid, void *buf)
{
  int result;

  pthread_mutex_lock (&test_lock);
  last_reqid = reqid;
  last_buf = buf;
  is_in_hook = true;
  is_hook_waiting = is_hook_held;
  pthread_mutex_unlock (&test_lock);
  WAIT_UNTIL (!is_hook_held);
  result = service
    ? service_submit (service, &(struct service_op) { .conn = conn, .reqid = reqid }, 1)
    : answer (hook_does, conn, reqid);
  LOCK_IN_SCOPE (&test_lock);
  is_in_hook = false;
  return result;
}

static int
hook_pread (void *conn, uint64_t reqid, bool flush, void *handle, void *buf, uint32_t count,
            uint64_t offset)
{
  (void) flush;
  (void) count;
  (void) offset;
  g_assert_true (handle == HANDLE);
  return hook (conn, reqid, buf);
}

static int
hook_pwrite (void *conn, uint64_t reqid, bool flush, void *handle, const void *buf, uint32_t count,
             uint64_t offset)
{
  return hook_pread (conn, reqid, flush, handle, (void *) (uintptr_t) buf, count, offset);
}

static void
hook_cancel (void *conn, uint64_t reqid, void *handle)
{
  {
    LOCK_IN_SCOPE (&test_lock);
    g_assert_true (conn == HANDLE);
    g_assert_true (handle == HANDLE);
    n_cancelled++;
    cancelled_in_hook += is_in_hook;
  }
  if (service)
    service_cancel (service, conn, reqid, &(struct service_op) { 0 });
  else
    answer (cancel_does, conn, reqid);
}

static bool open_fails;

static void *
plugin_open (int readonly)
{
  (void) readonly;
  return open_fails ? NULL : HANDLE;
}

static void
begin (bool can_cancel)
{
  messages = g_strdup ("");
  is_copy_held = is_copy_waiting = is_reply_held = is_reply_waiting = false;
  client_is_gone = is_hook_held = is_hook_waiting = is_in_hook = memory_is_out = open_fails = false;
  hook_does = cancel_does = REPLY_LATER;
  n_cancelled = cancelled_in_hook = 0;
  last_reqid = 0;
  n_asked = timeouts_left = 0;
  fake_ns = 0;
  is_time_still = false;
  nbdkit_err = 0;
  opened = NULL;
  test_plugin = (struct nbdkit_plugin) { ._struct_size = sizeof test_plugin, ._api_version = 2,
                                         .name = "test", .open = plugin_open };
  test_hooks = (struct nbdkit_async) { .async_pread = hook_pread, .async_pwrite = hook_pwrite,
                                       .async_cancel = can_cancel ? hook_cancel : NULL,
                                       .grace_ms = 1 + can_cancel };
  g_assert_true (nbdkit_async_register (&test_plugin, &test_hooks,
                                         sizeof test_hooks) == &test_plugin);
  driver = nbdkit_async_get_driver ();
  g_assert_true (driver->can_read && driver->can_write);
  g_assert_cmpuint (driver->grace_ns, ==, (1 + can_cancel) * MS);
}

/* As .config may. */
static void
set_grace (uint32_t ms)
{
  test_hooks.grace_ms = ms;
  g_assert_cmpint (test_plugin.get_ready (), ==, 0);
  g_assert_cmpuint (driver->grace_ns, ==, ms * MS);
}

static void
end (void)
{
  g_assert_null (leaving);
  test_plugin.unload ();
  g_free (messages);
}

/* Requests of a filter. */

struct test_io {
  struct nbdkit_async_io io;
  char buf[COUNT];
  unsigned n_done;              /* atomic */
  int err;
};

static void
io_done (struct nbdkit_async_io *io, int err)
{
  struct test_io *t = (struct test_io *) io;

  t->err = err;
  __atomic_add_fetch (&t->n_done, 1, __ATOMIC_RELEASE);
}

static unsigned
n_done (const struct test_io *t)
{
  return __atomic_load_n (&t->n_done, __ATOMIC_ACQUIRE);
}

static void
io_init (struct test_io *t)
{
  memset (t, 0, sizeof *t);
  t->io = (struct nbdkit_async_io) { .handle = HANDLE, .buf = t->buf, .count = COUNT,
                                     .done = io_done };
}

static void
test_claim (void)
{
  void *handle;

  begin (true);
  g_assert_false (driver->claim (&handle));
  g_assert_true (test_plugin.open (0) == HANDLE);
  g_assert_true (driver->claim (&handle));
  g_assert_true (handle == HANDLE);
  g_assert_false (driver->claim (&handle));
  test_plugin.open (0);
  open_fails = true;
  g_assert_null (test_plugin.open (0));
  g_assert_false (driver->claim (&handle));
  end ();
}

static void
test_start (void)
{
  struct test_io t;

  begin (true);
  io_init (&t);
  driver->start (&t.io);
  g_assert_true (last_buf == t.buf);
  g_assert_cmpuint (n_done (&t), ==, 0);
  nbdkit_async_reply_read (HANDLE, last_reqid, COUNT, memset (data, 7, COUNT));
  g_assert_cmpuint (n_done (&t), ==, 1);
  g_assert_cmpint (t.err, ==, 0);
  g_assert_cmpmem (t.buf, COUNT, data, COUNT);
  g_assert_false (driver->give_up (&t.io));

  t.io.is_write = true;
  driver->start (&t.io);
  nbdkit_async_reply_errno (HANDLE, last_reqid, EPERM);
  g_assert_cmpuint (n_done (&t), ==, 2);
  g_assert_cmpint (t.err, ==, EPERM);
  g_assert_cmpstr (messages, ==, "");
  end ();
}

static void
free_io (struct nbdkit_async_io *io, int err)
{
  LOCK_IN_SCOPE (&test_lock);
  g_assert_false (is_in_hook);
  g_assert_cmpint (err, ==, hook_does == FAIL ? ENOSPC : 0);
  g_free (io);
}

/* A request that is replied to inside its hook is done after the hook has
 * returned and before start has.  The library touches the io no more.
 */
static void
test_reply_in_hook (void)
{
  begin (true);
  for (hook_does = REPLY_AT_ONCE; hook_does <= FAIL_AFTER_REPLY; hook_does++) {
    struct test_io *t = g_new (struct test_io, 1);

    io_init (t);
    t->io.done = free_io;
    driver->start (&t->io);
    g_assert_cmpint (was_said ("failed after the reply"), ==, hook_does == FAIL_AFTER_REPLY);
  }
  end ();
}

static void *
start_in_thread (void *io)
{
  driver->start (io);
  return NULL;
}

static void
start_and_hold (struct test_io *t, pthread_t *starter)
{
  is_hook_held = true;
  is_hook_waiting = false;
  io_init (t);
  pthread_create (starter, NULL, start_in_thread, t);
  WAIT_UNTIL (is_hook_waiting);
}

static void
release_hook (pthread_t starter)
{
  pthread_mutex_lock (&test_lock);
  is_hook_held = false;
  pthread_mutex_unlock (&test_lock);
  pthread_join (starter, NULL);
}

/* Another thread replies while the hook still runs.  It goes on with the handle, which the filter lets
 * be closed after done: so that is called when the hook has returned. */
static void
test_reply_beside_hook (void)
{
  struct test_io t;
  pthread_t starter;

  begin (true);
  for (int is_error = 0; is_error < 2; is_error++)
    for (int fails = 0; fails < 2; fails++) {
      hook_does = fails ? FAIL : REPLY_LATER;
      start_and_hold (&t, &starter);
      if (is_error)
        nbdkit_async_reply_errno (HANDLE, last_reqid, EPERM);
      else
        nbdkit_async_reply_read (HANDLE, last_reqid, COUNT, memset (data, 7, COUNT));
      g_assert_cmpuint (n_done (&t), ==, 0);
      g_assert_false (driver->give_up (&t.io));
      g_assert_cmpuint (n_done (&t), ==, 0);
      release_hook (starter);
      g_assert_cmpuint (n_done (&t), ==, 1);
      g_assert_cmpint (t.err, ==, is_error ? EPERM : 0);
      if (!is_error)
        g_assert_cmpmem (t.buf, COUNT, data, COUNT);
      g_assert_cmpint (times_said ("failed after the reply"), ==, is_error + fails); /* so far */
      g_assert_false (driver->give_up (&t.io));
      nbdkit_async_reply (HANDLE, last_reqid);
      g_assert_cmpuint (n_done (&t), ==, 1);
    }
  g_assert_cmpuint (n_cancelled, ==, 0);
  end ();
}

static pthread_barrier_t barrier;

static void *
reply_in_thread (void *reqid)
{
  pthread_barrier_wait (&barrier);
  nbdkit_async_reply_read (HANDLE, *(uint64_t *) reqid, COUNT, data);
  return NULL;
}

/* A reply on a thread of its own, which stops at the copy. */
static pthread_t
start_reply_and_hold (void)
{
  pthread_t replier;

  is_copy_held = true;
  pthread_create (&replier, NULL, reply_in_thread, &last_reqid);
  pthread_barrier_wait (&barrier);
  WAIT_UNTIL (is_copy_waiting);
  return replier;
}

static void
release_reply (pthread_t replier)
{
  pthread_mutex_lock (&test_lock);
  is_copy_held = false;
  pthread_mutex_unlock (&test_lock);
  pthread_join (replier, NULL);
}

/* The reply begins while the hook runs, and ends after it. */
static void
test_reply_past_hook (void)
{
  struct test_io t;
  pthread_t starter, replier;

  begin (true);
  pthread_barrier_init (&barrier, NULL, 2);
  start_and_hold (&t, &starter);
  replier = start_reply_and_hold ();
  release_hook (starter);
  g_assert_cmpuint (n_done (&t), ==, 0);
  release_reply (replier);
  g_assert_cmpuint (n_done (&t), ==, 1);
  g_assert_cmpint (t.err, ==, 0);
  pthread_barrier_destroy (&barrier);
  end ();
}

/* A second reply, when the request's slot has another one in it. */
static void
test_reply_to_former (void)
{
  struct test_io t;
  uint64_t former;

  begin (true);
  io_init (&t);
  driver->start (&t.io);
  former = last_reqid;
  nbdkit_async_reply (HANDLE, former);
  driver->start (&t.io);
  g_assert_cmpuint (last_reqid, !=, former);
  g_assert_cmpuint (last_reqid % (1 << INDEX_BITS), ==, former % (1 << INDEX_BITS));
  nbdkit_async_reply (HANDLE, former);
  nbdkit_async_reply_read (HANDLE, former, COUNT, data);
  g_assert_cmpuint (n_done (&t), ==, 1);
  g_assert_true (was_said (UNKNOWN));
  nbdkit_async_reply (HANDLE, last_reqid);
  g_assert_cmpuint (n_done (&t), ==, 2);
  end ();
}

/* Many in flight; no number comes twice. */
static void
test_numbers (void)
{
  const unsigned n = 3 * CHUNK + 5;
  g_autofree struct test_io *t = g_new (struct test_io, n);
  g_autofree uint64_t *reqids = g_new (uint64_t, n);
  g_autoptr (GHashTable) seen = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, NULL);

  begin (true);
  for (unsigned round = 0; round < 5; round++) {
    for (unsigned i = 0; i < n; i++) {
      io_init (&t[i]);
      driver->start (&t[i].io);
      reqids[i] = last_reqid;
      g_assert_true (g_hash_table_add (seen, g_memdup2 (&last_reqid, sizeof last_reqid)));
    }
    for (unsigned i = 0; i < n; i++) {
      unsigned k = (i * 7 + round) % n;

      g_assert_cmpuint (n_done (&t[k]), ==, 0);
      nbdkit_async_reply (HANDLE, reqids[k]);
      g_assert_cmpuint (n_done (&t[k]), ==, 1);
    }
  }
  g_assert_cmpuint (n_slots, ==, 4 * CHUNK);
  g_assert_cmpstr (messages, ==, "");
  end ();
}

static void
test_give_up (gconstpointer can_cancel)
{
  static const char zeroes[COUNT];
  struct test_io t;
  uint64_t former;

  begin (can_cancel);
  io_init (&t);
  driver->start (&t.io);
  former = last_reqid;
  g_assert_true (driver->give_up (&t.io));
  g_assert_cmpuint (n_cancelled, ==, can_cancel ? 1 : 0);
  g_assert_true (was_said ("a read, offset 0, length 4096: given up"));
  nbdkit_async_reply_read (HANDLE, former, COUNT, memset (data, 7, COUNT));
  g_assert_cmpmem (t.buf, COUNT, zeroes, COUNT);
  g_assert_cmpuint (n_done (&t), ==, 0);
  g_assert_false (was_said (UNKNOWN));
  /* The reply ended what was abandoned. */
  driver->start (&t.io);
  nbdkit_async_reply (HANDLE, last_reqid);
  g_assert_cmpuint (n_done (&t), ==, 1);
  /* A plugin may reply to what it was told to cancel, so as long as it goes this is recognised. */
  nbdkit_async_reply (HANDLE, former);
  g_assert_cmpint (was_said (UNKNOWN), ==, !can_cancel);
  end ();
}

static void *
give_up_in_thread (void *io)
{
  return GINT_TO_POINTER (driver->give_up (io));
}

/* A plugin cannot cancel what its hook is just about to start. */
static void
test_give_up_in_hook (void)
{
  struct test_io t;
  pthread_t starter, other;
  void *answer;

  begin (true);
  for (int fails = 0; fails < 2; fails++) {
    hook_does = fails ? FAIL : REPLY_LATER;
    start_and_hold (&t, &starter);
    pthread_create (&other, NULL, give_up_in_thread, &t);
    g_usleep (20000);           /* if it does not wait, this shows it */
    release_hook (starter);
    pthread_join (other, &answer);
    g_assert_cmpint (GPOINTER_TO_INT (answer), ==, !fails);
    g_assert_cmpuint (n_done (&t), ==, fails);
  }
  g_assert_cmpuint (n_cancelled, ==, 1);
  g_assert_cmpuint (cancelled_in_hook, ==, 0);
  end ();
}

/* The data of a reply is on its way into the buffer: too late to give up, or to reply. */
static void
test_give_up_in_reply (void)
{
  struct test_io t;
  pthread_t replier;

  begin (true);
  pthread_barrier_init (&barrier, NULL, 2);
  io_init (&t);
  driver->start (&t.io);
  replier = start_reply_and_hold ();
  g_assert_false (driver->give_up (&t.io));
  nbdkit_async_reply (HANDLE, last_reqid);
  g_assert_true (was_said (UNKNOWN));
  g_assert_cmpuint (n_done (&t), ==, 0);
  release_reply (replier);
  g_assert_cmpuint (n_done (&t), ==, 1);
  g_assert_cmpint (t.err, ==, 0);
  g_assert_cmpuint (n_cancelled, ==, 0);
  pthread_barrier_destroy (&barrier);
  end ();
}

/* A reply and giving up at the same time: one of them wins. */
static void
test_race (gconstpointer can_cancel)
{
  const unsigned rounds = 1000;
  unsigned n_replied = 0;
  static struct test_io t;

  begin (can_cancel);
  pthread_barrier_init (&barrier, NULL, 2);
  memset (data, 7, COUNT);
  for (unsigned i = 0; i < rounds; i++) {
    pthread_t replier;
    bool replied;

    io_init (&t);
    driver->start (&t.io);
    pthread_create (&replier, NULL, reply_in_thread, &last_reqid);
    pthread_barrier_wait (&barrier);
    for (volatile unsigned wait = i % 100 * 100; wait > 0; wait--)
      ;                         /* so that all parts of a reply are met */
    replied = !driver->give_up (&t.io);
    n_replied += replied;
    if (replied)
      while (n_done (&t) == 0)
        ;
    else
      /* Nobody else touches it from here on; the sanitizer sees it if one does. */
      memset (t.buf, 1, COUNT);
    pthread_join (replier, NULL);
    g_assert_cmpuint (n_done (&t), ==, replied);
    g_assert_cmpint (t.buf[COUNT - 1], ==, replied ? 7 : 1);
  }
  g_test_message ("%u of %u replies were first", n_replied, rounds);
  g_assert_false (was_said (UNKNOWN));
  pthread_barrier_destroy (&barrier);
  end ();
}

/* Requests of nbdkit. */

struct call {
  pthread_t thread;
  char buf[COUNT];
  uint64_t offset;
  bool is_over;                 /* under test_lock */
  uint64_t over_ns;
  int result, err;
};

static void *
call_in_thread (void *arg)
{
  struct call *c = arg;

  c->result = test_plugin.pread (HANDLE, c->buf, COUNT, c->offset, 0);
  c->err = errno;
  c->over_ns = test_clock_ns ();
  LOCK_IN_SCOPE (&test_lock);
  c->is_over = true;
  return NULL;
}

/* The result is its number. */
static uint64_t
call_start (struct call *c)
{
  uint64_t reqid;

  memset (c, 0, sizeof *c);
  last_reqid = 0;
  pthread_create (&c->thread, NULL, call_in_thread, c);
  WAIT_UNTIL (last_reqid != 0);
  LOCK_IN_SCOPE (&test_lock);
  reqid = last_reqid;
  return reqid;
}

static bool
is_over (const struct call *c)
{
  LOCK_IN_SCOPE (&test_lock);
  return c->is_over;
}

static void
client_goes (void)
{
  LOCK_IN_SCOPE (&test_lock);
  client_is_gone = true;
}

/* The result is when that was noticed.  The grace time must be so long that this is seen. */
static uint64_t
client_leaves (void)
{
  uint64_t left = 0;

  client_goes ();
  for (; !left; g_usleep (1000)) {
    LOCK_IN_SCOPE (&lock);
    left = leaving ? leaving->progress_ns : 0;
  }
  return left;
}

/* What async_cancel replies to was not given up: of a filter, and of nbdkit. */
static void
test_reply_in_cancel (void)
{
  static struct call c;
  struct test_io t;

  begin (true);
  cancel_does = REPLY_READ_AT_ONCE;
  memset (data, 5, COUNT);
  io_init (&t);
  driver->start (&t.io);
  g_assert_false (driver->give_up (&t.io));
  g_assert_cmpuint (n_done (&t), ==, 1);
  g_assert_cmpint (t.err, ==, 0);
  g_assert_cmpmem (t.buf, COUNT, data, COUNT);
  g_assert_false (driver->give_up (&t.io));
  g_assert_cmpuint (n_done (&t), ==, 1);

  call_start (&c);
  client_goes ();
  pthread_join (c.thread, NULL);
  g_assert_cmpint (c.result, ==, 0);
  g_assert_cmpmem (c.buf, COUNT, data, COUNT);
  g_assert_cmpuint (n_cancelled, ==, 2);
  g_assert_cmpstr (messages, ==, "");
  end ();
}

static void
serve (const struct service_op *op)
{
  (void) op;
}

static void
reply_served (const struct service_op *op)
{
  pthread_mutex_lock (&test_lock);
  is_reply_waiting = is_reply_held;
  pthread_mutex_unlock (&test_lock);
  WAIT_UNTIL (!is_reply_held);
  nbdkit_async_reply (op->conn, op->reqid);
}

/* The service thread goes on when async_cancel waits for it; if that does not, this shows it. */
static void
release_served (void)
{
  WAIT_UNTIL (n_asleep > 0 || messages[0] != '\0');
  pthread_mutex_lock (&test_lock);
  is_reply_held = is_reply_waiting = false;
  pthread_mutex_unlock (&test_lock);
}

/* What a service thread of delaymem's has done, and not yet replied to, is not given up. */
static void
test_served_in_cancel (void)
{
  static const struct service_calls calls = { .apply = serve, .reply = reply_served };
  static struct call c;
  struct test_io t;
  pthread_t other;
  void *answer;

  begin (true);
  service = service_new (&calls);
  g_assert_cmpint (service_start (service, 1), ==, 0);
  is_reply_held = true;
  io_init (&t);
  driver->start (&t.io);
  WAIT_UNTIL (is_reply_waiting);
  pthread_create (&other, NULL, give_up_in_thread, &t);
  release_served ();
  pthread_join (other, &answer);
  g_assert_cmpstr (messages, ==, "");
  g_assert_false (answer);
  g_assert_cmpuint (n_done (&t), ==, 1);
  g_assert_cmpint (t.err, ==, 0);

  is_reply_held = true;
  call_start (&c);
  WAIT_UNTIL (is_reply_waiting);
  client_goes ();
  release_served ();
  pthread_join (c.thread, NULL);
  g_assert_cmpstr (messages, ==, "");
  g_assert_cmpint (c.result, ==, 0);
  g_assert_cmpuint (n_cancelled, ==, 2);
  g_clear_pointer (&service, service_free);
  end ();
}

/* Replies to what was under way when the client left prolong its wait; others do not, or a busy
 * neighbour would prolong it for ever. */
static void
test_grace (void)
{
  enum { OLD = 40 };
  static struct call c;
  static struct test_io old[OLD];
  const uint64_t grace = 300 * MS;
  uint64_t reqids[OLD], last_progress, longest_gap = 0, left;
  struct test_io new;

  begin (true);
  set_grace (grace / MS);
  for (unsigned i = 0; i < OLD; i++) {
    io_init (&old[i]);
    driver->start (&old[i].io);
    reqids[i] = last_reqid;
  }
  call_start (&c);
  left = client_leaves ();
  last_progress = left;
  for (unsigned i = 0; i < OLD; i++) {
    uint64_t now = test_clock_ns ();

    longest_gap = MAX (longest_gap, now - last_progress);
    last_progress = now;
    nbdkit_async_reply (HANDLE, reqids[i]);
    g_usleep (20000);
  }
  g_assert_cmpuint (last_progress - left, >, 2 * grace);
  hook_does = REPLY_AT_ONCE;
  while (!is_over (&c)) {
    io_init (&new);
    driver->start (&new.io);
    g_usleep (10000);
  }
  pthread_join (c.thread, NULL);
  g_assert_cmpint (c.result, ==, -1);
  g_assert_cmpint (c.err, ==, ESHUTDOWN);
  g_assert_cmpuint (n_cancelled, ==, 1);
  if (longest_gap < grace * 2 / 3)
    g_assert_cmpuint (c.over_ns, >=, last_progress + grace);
  else
    g_test_skip ("the machine was too slow to make progress");
  end ();
}

/* Which of the two does nbdkit's requests. */

static unsigned n_hooked, n_called;

static int
count_hook (void *conn, uint64_t reqid)
{
  n_hooked++;
  nbdkit_async_reply (conn, reqid);
  return 0;
}

static int
count_pread (void *conn, uint64_t reqid, bool flush, void *handle, void *buf, uint32_t count,
             uint64_t offset)
{
  (void) flush; (void) handle; (void) buf; (void) count; (void) offset;
  return count_hook (conn, reqid);
}

static int
count_pwrite (void *conn, uint64_t reqid, bool flush, void *handle, const void *buf, uint32_t count,
              uint64_t offset)
{
  (void) flush; (void) handle; (void) buf; (void) count; (void) offset;
  return count_hook (conn, reqid);
}

static int
count_flush (void *conn, uint64_t reqid, void *handle, uint32_t flags)
{
  (void) handle; (void) flags;
  return count_hook (conn, reqid);
}

static int
count_range (void *conn, uint64_t reqid, void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle; (void) count; (void) offset; (void) flags;
  return count_hook (conn, reqid);
}

static int
call_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle; (void) buf; (void) count; (void) offset; (void) flags;
  n_called++;
  return 0;
}

static int
call_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle; (void) buf; (void) count; (void) offset; (void) flags;
  n_called++;
  return 0;
}

static int
call_flush (void *handle, uint32_t flags)
{
  (void) handle; (void) flags;
  n_called++;
  return 0;
}

static int
call_range (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle; (void) count; (void) offset; (void) flags;
  n_called++;
  return 0;
}

/* Each kind of request once, with all hooks. */
static void
ask_for_all (bool has_callbacks, bool prefer_callbacks)
{
  struct nbdkit_plugin *p = &test_plugin;
  struct nbdkit_async counting = {
    .async_pread = count_pread, .async_pwrite = count_pwrite, .async_flush = count_flush,
    .async_zero = count_range, .async_trim = count_range, .async_cache = count_range,
    .prefer_callbacks = prefer_callbacks,
  };

  test_hooks = counting;
  *p = (struct nbdkit_plugin) { ._struct_size = sizeof *p, ._api_version = 2, .name = "test" };
  if (has_callbacks) {
    p->pread = call_pread;
    p->pwrite = call_pwrite;
    p->flush = call_flush;
    p->zero = p->trim = p->cache = call_range;
  }
  nbdkit_async_register (p, &test_hooks, sizeof test_hooks);
  n_hooked = n_called = 0;
  g_assert_cmpint (p->pread (HANDLE, data, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->pwrite (HANDLE, data, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->flush (HANDLE, 0), ==, 0);
  g_assert_cmpint (p->zero (HANDLE, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->trim (HANDLE, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->cache (HANDLE, COUNT, 0, 0), ==, 0);
}

static void
test_prefer_callbacks (void)
{
  struct test_io t;

  begin (false);
  ask_for_all (true, false);
  g_assert_cmpuint (n_hooked, ==, 6);
  g_assert_cmpuint (n_called, ==, 0);
  ask_for_all (false, true);
  g_assert_cmpuint (n_hooked, ==, 6);
  ask_for_all (true, true);
  g_assert_cmpuint (n_hooked, ==, 0);
  g_assert_cmpuint (n_called, ==, 6);
  /* A filter's request is a hook's all the same. */
  io_init (&t);
  nbdkit_async_get_driver ()->start (&t.io);
  g_assert_cmpuint (t.n_done, ==, 1);
  g_assert_cmpuint (n_hooked, ==, 1);
  end ();
}

/* Lets a call that waits in fake time look at the clock. */
static void
look_again (uint64_t reqid, unsigned timeouts)
{
  LOCK_IN_SCOPE (&lock);
  LOCK_IN_SCOPE (&test_lock);
  is_time_still = false;
  timeouts_left = timeouts;
  cond_broadcast (&find_locked (reqid)->changed);
}

/* What is replied to from inside async_cancel does not prolong the wait of the others. */
static void
test_grace_of_cancelled (gconstpointer does)
{
  enum { HELD = 5 };
  const uint64_t grace = 3600 * 1000 * MS, start_ns = 1000 * MS;
  static struct call c[HELD];
  uint64_t reqids[HELD];

  begin (true);
  set_grace (grace / MS);
  cancel_does = GPOINTER_TO_UINT (does);
  fake_ns = start_ns;
  for (unsigned i = 0; i < HELD; i++) {
    is_time_still = false;
    reqids[i] = call_start (&c[i]);
    WAIT_UNTIL (is_time_still);
  }
  client_goes ();
  for (unsigned i = 0; i < HELD; i++) {
    look_again (reqids[i], 1);
    WAIT_UNTIL (is_time_still);
  }
  for (unsigned i = 0; i < HELD; i++) {
    look_again (reqids[i], 2 * HELD);
    pthread_join (c[i].thread, NULL);
    g_assert_cmpint (c[i].result, ==, 0);
    g_assert_cmpuint (c[i].over_ns, ==, start_ns + LOOK_NS + grace);
  }
  g_assert_cmpuint (n_cancelled, ==, HELD);
  g_assert_cmpstr (messages, ==, "");
  end ();
}

/* While the client and the server are there, a reply may take as long as it likes; and they are asked
 * about every LOOK_NS, not more. */
static void
test_slow_reply (gconstpointer can_cancel)
{
  const unsigned looks = 1000;
  const uint64_t start_ns = 1000 * MS;
  static struct call c;
  uint64_t reqid;

  begin (can_cancel);
  fake_ns = start_ns;
  timeouts_left = looks;
  reqid = call_start (&c);
  WAIT_UNTIL (is_time_still || c.is_over);
  g_assert_false (is_over (&c));
  g_assert_cmpuint (n_asked, ==, looks);
  g_assert_cmpuint (test_clock_ns (), ==, start_ns + looks * LOOK_NS);
  nbdkit_async_reply_read (HANDLE, reqid, COUNT, memset (data, 8, COUNT));
  pthread_join (c.thread, NULL);
  g_assert_cmpint (c.result, ==, 0);
  g_assert_cmpmem (c.buf, COUNT, data, COUNT);
  g_assert_cmpuint (n_cancelled, ==, 0);
  g_assert_cmpstr (messages, ==, "");
  end ();
}

/* A request that waits on after its client has left gets the reply, too. */
static void
test_reply_in_grace (gconstpointer can_cancel)
{
  static struct call c;
  uint64_t reqid;

  begin (can_cancel);
  set_grace (3600 * 1000);
  reqid = call_start (&c);
  client_leaves ();
  nbdkit_async_reply_read (HANDLE, reqid, COUNT, memset (data, 9, COUNT));
  pthread_join (c.thread, NULL);
  g_assert_cmpint (c.result, ==, 0);
  g_assert_cmpmem (c.buf, COUNT, data, COUNT);
  end ();
}

static void
test_out_of_memory (void)
{
  struct test_io t;
  char buf[COUNT];

  for (int can_cancel = 0; can_cancel < 2; can_cancel++) {
    begin (can_cancel);
    hook_does = REPLY_READ_AT_ONCE;
    memory_is_out = true;
    io_init (&t);
    driver->start (&t.io);
    g_assert_cmpuint (n_done (&t), ==, 1);
    g_assert_cmpint (t.err, ==, ENOMEM);
    g_assert_cmpint (test_plugin.pread (HANDLE, buf, COUNT, 0, 0), ==, -1);
    g_assert_cmpint (errno, ==, ENOMEM);
    g_assert_cmpint (nbdkit_err, ==, ENOMEM);
    memory_is_out = false;
    g_assert_cmpint (test_plugin.pread (HANDLE, buf, COUNT, 0, 0), ==, 0);
    end ();
  }
}

/* A plugin with async_cancel gets nbdkit's buffer, another one a copy. */
static void
test_buffers (void)
{
  char buf[COUNT];

  for (int can_cancel = 0; can_cancel < 2; can_cancel++) {
    begin (can_cancel);
    hook_does = REPLY_AT_ONCE;
    g_assert_cmpint (test_plugin.pwrite (HANDLE, buf, COUNT, 0, 0), ==, 0);
    g_assert_cmpint (last_buf == buf, ==, can_cancel);
    end ();
  }
}

/* What test_bound leaves behind: no thread reads or fills these buffers. */
static uint64_t
abandon_read (uint32_t count)
{
  static char none;

  timeouts_left = 4;
  g_assert_cmpint (test_plugin.pread (HANDLE, &none, count, 0, 0), ==, -1);
  g_assert_cmpint (errno, ==, ESHUTDOWN);
  return last_reqid;
}

static void
assert_refused (uint32_t count)
{
  uint64_t before = last_reqid;
  static char none;

  g_assert_cmpint (test_plugin.pread (HANDLE, &none, count, 0, 0), ==, -1);
  g_assert_cmpint (errno, ==, ENOMEM);
  g_assert_cmpint (nbdkit_err, ==, ENOMEM);
  g_assert_cmpint (test_plugin.pwrite (HANDLE, &none, count, 0, 0), ==, -1);
  g_assert_cmpint (errno, ==, ENOMEM);
  g_assert_cmpuint (last_reqid, ==, before);    /* the hook did not run */
}

/* Copies that wait for late replies have a bound, to the byte. */
static void
test_bound (void)
{
  const uint32_t most = ABANDONED_MAX_BYTES / 4;
  const char *line = "async: replies owed";
  uint64_t owed[4], last;

  begin (false);
  fake_ns = 1000 * MS;
  client_is_gone = true;
  for (unsigned i = 0; i < 4; i++)
    owed[i] = abandon_read (i == 3 ? most - COUNT : most);
  assert_refused (COUNT + 1);
  assert_refused (most);
  g_assert_cmpint (times_said (line), ==, 1);
  last = abandon_read (COUNT);  /* fits exactly */
  assert_refused (1);
  g_assert_cmpint (times_said (line), ==, 1);
  /* A late reply makes room, and then there is news again. */
  nbdkit_async_reply (HANDLE, last);
  hook_does = REPLY_AT_ONCE;
  g_assert_cmpint (test_plugin.pread (HANDLE, data, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (times_said (line), ==, 1);
  assert_refused (COUNT + 1);
  g_assert_cmpint (times_said (line), ==, 2);
  for (unsigned i = 0; i < 4; i++)
    nbdkit_async_reply_read (HANDLE, owed[i], most, data);
  g_assert_cmpuint (abandoned_bytes, ==, 0);
  g_assert_false (was_said (UNKNOWN));
  end ();
}

static void
test_register (void)
{
  struct nbdkit_plugin old = { ._struct_size = sizeof old, ._api_version = 1, .name = "old" };
  struct nbdkit_plugin empty = { ._struct_size = sizeof empty, ._api_version = 2, .name = "empty" };

  begin (true);
  g_assert_null (nbdkit_async_register (&old, &test_hooks, sizeof test_hooks));
  g_assert_true (was_said ("old: async hooks need NBDKIT_API_VERSION 2"));
  g_assert_true (nbdkit_async_register (&empty, &test_hooks, sizeof test_hooks)
                 == &empty);
  g_assert_null (empty.open);   /* nbdkit says so */
  g_assert_null (empty.flush);
  g_assert_nonnull (empty.pread);
  end ();
}

static void
register_fresh (struct nbdkit_plugin fresh, const void *hooks_given,
                size_t size)
{
  test_plugin = fresh;
  test_plugin._struct_size = sizeof test_plugin;
  test_plugin._api_version = 2;
  test_plugin.name = "test";
  g_assert_true (nbdkit_async_register (&test_plugin, hooks_given, size)
                 == &test_plugin);
  g_assert_true (nbdkit_async_get_driver () == driver);
}

/* What the author changes counts until .get_ready, and no longer. */
static int
get_ready_and_change (void)
{
  test_hooks.grace_ms = 7;
  test_hooks.async_pwrite = NULL;
  return -1;
}

static void
test_changes (void)
{
  begin (true);
  register_fresh ((struct nbdkit_plugin) { .get_ready = get_ready_and_change,
                                           .pwrite = call_pwrite },
                  &test_hooks, sizeof test_hooks);
  test_hooks.async_pread = NULL;
  nbdkit_async_get_driver ();
  g_assert_false (driver->can_read);
  test_hooks.async_cancel = NULL;
  test_hooks.grace_ms = 5;
  g_assert_cmpint (test_plugin.get_ready (), ==, -1);
  for (int i = 0; i < 2; i++) {
    g_assert_true (driver->can_write);
    g_assert_false (driver->can_cancel);
    g_assert_cmpuint (driver->grace_ns, ==, 5 * MS);
    g_assert_true (nbdkit_async_get_driver () == driver);
  }
  hook_does = REPLY_AT_ONCE;
  n_called = 0;
  g_assert_cmpint (test_plugin.pwrite (HANDLE, data, COUNT, 0, 0), ==, 0);
  g_assert_cmpuint (n_called, ==, 0);
  end ();
}

/* .config may switch all of them off, also those that came later. */
static void
test_disable (void)
{
  begin (true);
  register_fresh ((struct nbdkit_plugin) { .pread = call_pread },
                  &test_hooks, sizeof test_hooks);
  g_assert_cmpint (nbdkit_async_disable (), ==, -1);
  g_assert_true (was_said ("there is async_pwrite, but no .pwrite"));
  test_hooks.async_pwrite = NULL;
  g_assert_cmpint (nbdkit_async_disable (), ==, 0);
  g_assert_cmpint (test_plugin.get_ready (), ==, 0);
  nbdkit_async_get_driver ();
  g_assert_false (driver->can_read || driver->can_write || driver->can_cancel);
  n_called = 0;
  g_assert_cmpint (test_plugin.pread (HANDLE, data, COUNT, 0, 0), ==, 0);
  g_assert_cmpuint (n_called, ==, 1);
  end ();
}

/* A plugin's header may have fewer fields.  What is behind its struct is not
 * looked at: there are other things, or no memory at all.
 */
static void
register_older (const void *bytes, size_t size)
{
  register_fresh ((struct nbdkit_plugin) { 0 }, bytes, size);
  g_assert_cmpint (test_plugin.get_ready (), ==, 0);
  g_assert_true (driver->can_read && driver->can_write);
}

static void
test_older_header (void)
{
  const size_t until_flush = offsetof (struct nbdkit_async, async_flush),
    until_grace = offsetof (struct nbdkit_async, grace_ms),
    until_prefer_callbacks = offsetof (struct nbdkit_async, prefer_callbacks);
  struct nbdkit_async all;
  g_autofree void *exact = NULL;

  begin (true);
  memset (&all, 0xff, sizeof all);
  all.async_pread = hook_pread;
  all.async_pwrite = hook_pwrite;
  exact = g_memdup2 (&all, until_flush);
  for (int is_exact = 0; is_exact < 2; is_exact++) {
    register_older (is_exact ? exact : &all, until_flush);
    g_assert_false (driver->can_cancel);
    g_assert_null (test_plugin.flush);
    g_assert_cmpuint (driver->grace_ns, ==, DEFAULT_GRACE_MS * MS);
  }
  all.async_cancel = hook_cancel;
  register_older (&all, until_grace);
  g_assert_true (driver->can_cancel);
  g_assert_nonnull (test_plugin.flush);
  g_assert_cmpuint (driver->grace_ns, ==, DEFAULT_GRACE_MS * MS);
  all.grace_ms = 5;
  register_older (&all, until_prefer_callbacks);
  g_assert_cmpuint (driver->grace_ns, ==, 5 * MS);
  hook_does = REPLY_AT_ONCE;
  g_assert_cmpint (test_plugin.pread (HANDLE, data, COUNT, 0, 0), ==, 0);
  end ();
}

int
main (int argc, char **argv)
{
  void *can_cancel = &test_hooks;

  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/async-driver/claim", test_claim);
  g_test_add_func ("/async-driver/start", test_start);
  g_test_add_func ("/async-driver/prefer-callbacks", test_prefer_callbacks);
  g_test_add_func ("/async-driver/reply-in-hook", test_reply_in_hook);
  g_test_add_func ("/async-driver/reply-beside-hook", test_reply_beside_hook);
  g_test_add_func ("/async-driver/reply-past-hook", test_reply_past_hook);
  g_test_add_func ("/async-driver/reply-to-former", test_reply_to_former);
  g_test_add_func ("/async-driver/numbers", test_numbers);
  g_test_add_data_func ("/async-driver/give-up/cancel", can_cancel, test_give_up);
  g_test_add_func ("/async-driver/give-up/cancel-replies", test_reply_in_cancel);
  g_test_add_func ("/async-driver/give-up/served", test_served_in_cancel);
  g_test_add_data_func ("/async-driver/give-up/abandon", NULL, test_give_up);
  g_test_add_func ("/async-driver/give-up/in-hook", test_give_up_in_hook);
  g_test_add_func ("/async-driver/give-up/in-reply", test_give_up_in_reply);
  g_test_add_data_func ("/async-driver/race/cancel", can_cancel, test_race);
  g_test_add_data_func ("/async-driver/race/abandon", NULL, test_race);
  g_test_add_func ("/async-driver/grace", test_grace);
  g_test_add_data_func ("/async-driver/grace/cancel-replies", GUINT_TO_POINTER (REPLY_AT_ONCE),
                        test_grace_of_cancelled);
  g_test_add_data_func ("/async-driver/grace/cancel-replies-read",
                        GUINT_TO_POINTER (REPLY_READ_AT_ONCE), test_grace_of_cancelled);
  g_test_add_data_func ("/async-driver/slow-reply/cancel", can_cancel, test_slow_reply);
  g_test_add_data_func ("/async-driver/slow-reply/copy", NULL, test_slow_reply);
  g_test_add_data_func ("/async-driver/reply-in-grace/cancel", can_cancel, test_reply_in_grace);
  g_test_add_data_func ("/async-driver/reply-in-grace/copy", NULL, test_reply_in_grace);
  g_test_add_func ("/async-driver/out-of-memory", test_out_of_memory);
  g_test_add_func ("/async-driver/buffers", test_buffers);
  g_test_add_func ("/async-driver/bound", test_bound);
  g_test_add_func ("/async-driver/register", test_register);
  g_test_add_func ("/async-driver/register/changes", test_changes);
  g_test_add_func ("/async-driver/register/disable", test_disable);
  g_test_add_func ("/async-driver/register/older-header", test_older_header);
  return g_test_run ();
}
