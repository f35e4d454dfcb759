/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The rig for unit tests of plugin/async: the library, alone in a program, with
 * a fake on every side.
 *
 *   nbdkit       collects the lines of the log, and says whether the client has
 *                gone.  A thread of nbdkit's is a struct rig_call.
 *   the plugin   has hooks that do as rig.hook_does and rig.cancel_does say.
 *   the filter   has requests: struct rig_io.
 *   memory       runs out where rig.memory_is_out says so.
 *   time         is real, or fake and passes at once (rig.fake_ns).
 *
 * A gate stops a thread at a certain place, so that a test can bring about one
 * order of events.  Waiting has no deadline: tests/run ends a test that hangs.
 *
 * This is a header because each test program compiles the library into itself,
 * and sees its internals.
 */
#ifndef TESTS_ASYNC_RIG_H
#define TESTS_ASYNC_RIG_H

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <glib.h>

#include "clock.h"
#include "cond.h"
#include "lock.h"

/* The library.  Its headers are included above, with the real functions. */

static void *rig_malloc (size_t size);
static void *rig_calloc (size_t n, size_t size);
static void *rig_memcpy (void *to, const void *from, size_t n);
static uint64_t rig_now_ns (void);
static bool rig_wait_until (struct cond *, pthread_mutex_t *, uint64_t);

#define malloc rig_malloc
#define calloc rig_calloc
#define memcpy rig_memcpy
#define clock_ns rig_now_ns
#define cond_wait_until rig_wait_until
#include "../plugin/async/requests.c"
#include "../plugin/async/nbdkit-async.c"
#undef malloc
#undef calloc
#undef memcpy
#undef clock_ns
#undef cond_wait_until

#define RIG_FUNCTION static G_GNUC_UNUSED

#define COUNT 4096              /* bytes of a request */

/* Lines of the log. */
#define UNKNOWN "replied to before or is unknown"
#define FAILED_LATE "failed after the reply"

/* The acts of a hook. */
enum rig_does {
  REPLY_LATER,                  /* the test replies */
  REPLY_AT_ONCE,
  REPLY_READ_AT_ONCE,           /* with rig.data */
  FAIL,                         /* with ENOSPC */
  FAIL_AFTER_REPLY,
};

struct rig_gate {
  bool is_closed;
  bool is_reached;              /* a thread waits there */
};

static struct {
  pthread_mutex_t lock;
  /* Under the lock. */
  char *log;                    /* lines of nbdkit_error */
  bool client_is_gone;
  unsigned n_asked;             /* whether the client has gone */
  struct rig_gate hook;         /* in each hook, before it does anything */
  struct rig_gate copy;         /* before each memcpy of the library */
  uint64_t reqid;               /* of the last hook */
  void *buf;
  bool is_in_hook;
  unsigned n_cancelled;         /* calls of async_cancel */
  unsigned n_cancelled_in_hook;
  uint64_t fake_ns;             /* 0: time is real */
  unsigned timeouts_left;       /* of fake time, before it stands still */
  bool is_time_still;
  /* Constant while other threads run. */
  enum rig_does hook_does, cancel_does;
  bool memory_is_out, open_fails;
  int nbdkit_err;               /* nbdkit_set_error's */
  struct nbdkit_plugin plugin;
  struct nbdkit_async hooks;
  const struct nbdkit_async_driver *driver;
  char data[COUNT];
} rig = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* The handle of the only connection. */
#define HANDLE ((void *) &rig)

/* Waits for another thread. */
#define RIG_WAIT(condition)                     \
  do {                                          \
    pthread_mutex_lock (&rig.lock);             \
    while (!(condition)) {                      \
      pthread_mutex_unlock (&rig.lock);         \
      g_usleep (1000);                          \
      pthread_mutex_lock (&rig.lock);           \
    }                                           \
    pthread_mutex_unlock (&rig.lock);           \
  } while (0)

/* Gates. */

RIG_FUNCTION void
rig_pass (struct rig_gate *g)
{
  pthread_mutex_lock (&rig.lock);
  g->is_reached = g->is_closed;
  pthread_mutex_unlock (&rig.lock);
  RIG_WAIT (!g->is_closed);
}

RIG_FUNCTION void
rig_close (struct rig_gate *g)
{
  LOCK_IN_SCOPE (&rig.lock);
  *g = (struct rig_gate) { .is_closed = true };
}

RIG_FUNCTION void
rig_open (struct rig_gate *g)
{
  LOCK_IN_SCOPE (&rig.lock);
  *g = (struct rig_gate) { false, false };
}

/* Memory. */

/* Memory that was in use before. */
static void *
rig_malloc (size_t size)
{
  void *p = rig.memory_is_out ? NULL : malloc (size);

  return p ? memset (p, 0xaa, size) : NULL;
}

static void *
rig_calloc (size_t n, size_t size)
{
  return rig.memory_is_out ? NULL : calloc (n, size);
}

static void *
rig_memcpy (void *to, const void *from, size_t n)
{
  rig_pass (&rig.copy);
  return memcpy (to, from, n);
}

/* Time. */

static uint64_t
rig_now_ns (void)
{
  LOCK_IN_SCOPE (&rig.lock);
  return rig.fake_ns ? rig.fake_ns : clock_ns ();
}

static bool
rig_wait_until (struct cond *cond, pthread_mutex_t *mutex, uint64_t until_ns)
{
  bool is_real, is_over;

  pthread_mutex_lock (&rig.lock);
  is_real = rig.fake_ns == 0;
  is_over = !is_real && rig.timeouts_left > 0;
  rig.is_time_still = !is_real && !is_over;
  if (is_over) {
    rig.timeouts_left--;
    rig.fake_ns = until_ns;
  }
  pthread_mutex_unlock (&rig.lock);
  return !is_over &&
    cond_wait_until (cond, mutex, is_real ? until_ns : UINT64_MAX);
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
  LOCK_IN_SCOPE (&rig.lock);
  old = rig.log;
  rig.log = g_strconcat (old, line, "\n", NULL);
  g_free (old);
  g_free (line);
}

/* How often the log has TEXT. */
RIG_FUNCTION int
rig_said (const char *text)
{
  int n = 0;

  LOCK_IN_SCOPE (&rig.lock);
  for (const char *p = rig.log; (p = strstr (p, text)) != NULL; p++)
    n++;
  return n;
}

void
(nbdkit_set_error) (int err)
{
  rig.nbdkit_err = err;
}

/* The library's way to ask whether the client is still there. */
int
nbdkit_nanosleep (unsigned sec, unsigned nsec)
{
  LOCK_IN_SCOPE (&rig.lock);
  g_assert_cmpuint (sec, ==, 0);
  g_assert_cmpuint (nsec, ==, 1);
  rig.n_asked++;
  errno = ESHUTDOWN;
  return rig.client_is_gone ? -1 : 0;
}

/* The plugin. */

RIG_FUNCTION int
rig_do (enum rig_does does, void *conn, uint64_t reqid)
{
  switch (does) {
  case REPLY_LATER:
    return 0;
  case REPLY_AT_ONCE:
    nbdkit_async_reply (conn, reqid);
    return 0;
  case REPLY_READ_AT_ONCE:
    nbdkit_async_reply_read (conn, reqid, COUNT, rig.data);
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
rig_async_pread (void *conn, uint64_t reqid, bool flush, void *handle,
                 void *buf, uint32_t count, uint64_t offset)
{
  int r;

  (void) flush;
  (void) count;
  (void) offset;
  g_assert_true (handle == HANDLE);
  pthread_mutex_lock (&rig.lock);
  rig.reqid = reqid;
  rig.buf = buf;
  rig.is_in_hook = true;
  pthread_mutex_unlock (&rig.lock);
  rig_pass (&rig.hook);
  r = rig_do (rig.hook_does, conn, reqid);
  LOCK_IN_SCOPE (&rig.lock);
  rig.is_in_hook = false;
  return r;
}

static int
rig_async_pwrite (void *conn, uint64_t reqid, bool flush, void *handle,
                  const void *buf, uint32_t count, uint64_t offset)
{
  return rig_async_pread (conn, reqid, flush, handle, (void *) (uintptr_t) buf,
                          count, offset);
}

RIG_FUNCTION void
rig_note_cancel (void *conn, void *handle)
{
  LOCK_IN_SCOPE (&rig.lock);
  g_assert_true (conn == HANDLE);
  g_assert_true (handle == HANDLE);
  rig.n_cancelled++;
  rig.n_cancelled_in_hook += rig.is_in_hook;
}

static void
rig_async_cancel (void *conn, uint64_t reqid, void *handle)
{
  rig_note_cancel (conn, handle);
  rig_do (rig.cancel_does, conn, reqid);
}

static void *
rig_plugin_open (int readonly)
{
  (void) readonly;
  return rig.open_fails ? NULL : HANDLE;
}

/* A test begins with a fresh plugin, with async_cancel or without. */
RIG_FUNCTION void
rig_begin (bool can_cancel)
{
  memset (&rig, 0, sizeof rig);
  pthread_mutex_init (&rig.lock, NULL);
  rig.log = g_strdup ("");
  opened = NULL;
  rig.plugin = (struct nbdkit_plugin) {
    ._struct_size = sizeof rig.plugin, ._api_version = 2,
    .name = "test", .open = rig_plugin_open,
  };
  rig.hooks = (struct nbdkit_async) {
    .async_pread = rig_async_pread, .async_pwrite = rig_async_pwrite,
    .async_cancel = can_cancel ? rig_async_cancel : NULL,
    .grace_ms = 1 + can_cancel,
  };
  g_assert_true (nbdkit_async_register (&rig.plugin, &rig.hooks,
                                        sizeof rig.hooks) == &rig.plugin);
  rig.driver = nbdkit_async_get_driver ();
  g_assert_true (rig.driver->can_read && rig.driver->can_write);
  g_assert_cmpuint (rig.driver->grace_ns, ==, (1 + can_cancel) * MS);
}

/* As .config may. */
RIG_FUNCTION void
rig_set_grace (uint32_t ms)
{
  rig.hooks.grace_ms = ms;
  g_assert_cmpint (rig.plugin.get_ready (), ==, 0);
  g_assert_cmpuint (rig.driver->grace_ns, ==, ms * MS);
}

RIG_FUNCTION void
rig_end (void)
{
  g_assert_null (leaving);
  rig.plugin.unload ();
  g_free (rig.log);
}

/* Replies to a read with rig.data, all bytes VALUE. */
RIG_FUNCTION void
rig_reply_read (uint64_t reqid, int value)
{
  nbdkit_async_reply_read (HANDLE, reqid, COUNT,
                           memset (rig.data, value, COUNT));
}

/* A request of the filter. */

struct rig_io {
  struct nbdkit_async_io io;
  char buf[COUNT];
  unsigned n_done;              /* atomic: calls of io.done */
  int err;
};

RIG_FUNCTION void
rig_io_done (struct nbdkit_async_io *io, int err)
{
  struct rig_io *r = (struct rig_io *) io;

  r->err = err;
  __atomic_add_fetch (&r->n_done, 1, __ATOMIC_RELEASE);
}

RIG_FUNCTION unsigned
rig_n_done (const struct rig_io *r)
{
  return __atomic_load_n (&r->n_done, __ATOMIC_ACQUIRE);
}

RIG_FUNCTION void
rig_io_init (struct rig_io *r)
{
  memset (r, 0, sizeof *r);
  r->io = (struct nbdkit_async_io) {
    .handle = HANDLE, .buf = r->buf, .count = COUNT, .done = rig_io_done,
  };
}

/* Returns the number of the request. */
RIG_FUNCTION uint64_t
rig_io_start (struct rig_io *r)
{
  rig_io_init (r);
  rig.driver->start (&r->io);
  return rig.reqid;
}

RIG_FUNCTION void *
rig_start_in_thread (void *io)
{
  rig.driver->start (io);
  return NULL;
}

/* Starts it in a thread that stops in the hook. */
RIG_FUNCTION pthread_t
rig_io_start_held (struct rig_io *r)
{
  pthread_t starter;

  rig_close (&rig.hook);
  rig_io_init (r);
  pthread_create (&starter, NULL, rig_start_in_thread, r);
  RIG_WAIT (rig.hook.is_reached);
  return starter;
}

/* Opens the gate where a thread is held, and waits for the thread's end. */
RIG_FUNCTION void
rig_release (struct rig_gate *g, pthread_t thread)
{
  rig_open (g);
  pthread_join (thread, NULL);
}

RIG_FUNCTION void *
rig_reply_in_thread (void *reqid)
{
  nbdkit_async_reply_read (HANDLE, *(uint64_t *) reqid, COUNT, rig.data);
  return NULL;
}

/* Replies in a thread that stops before the copy of the data. */
RIG_FUNCTION pthread_t
rig_reply_held (void)
{
  pthread_t replier;

  rig_close (&rig.copy);
  pthread_create (&replier, NULL, rig_reply_in_thread, &rig.reqid);
  RIG_WAIT (rig.copy.is_reached);
  return replier;
}

/* A request of nbdkit: a read by a thread that waits for the reply. */

struct rig_call {
  pthread_t thread;
  char buf[COUNT];
  bool is_over;                 /* under rig.lock */
  uint64_t over_ns;
  int result, err;
};

RIG_FUNCTION void *
rig_call_in_thread (void *arg)
{
  struct rig_call *c = arg;

  c->result = rig.plugin.pread (HANDLE, c->buf, COUNT, 0, 0);
  c->err = errno;
  c->over_ns = rig_now_ns ();
  LOCK_IN_SCOPE (&rig.lock);
  c->is_over = true;
  return NULL;
}

/* Returns the number of the request. */
RIG_FUNCTION uint64_t
rig_call_start (struct rig_call *c)
{
  uint64_t reqid;

  memset (c, 0, sizeof *c);
  rig.reqid = 0;
  pthread_create (&c->thread, NULL, rig_call_in_thread, c);
  RIG_WAIT (rig.reqid != 0);
  LOCK_IN_SCOPE (&rig.lock);
  reqid = rig.reqid;
  return reqid;
}

RIG_FUNCTION bool
rig_call_is_over (const struct rig_call *c)
{
  LOCK_IN_SCOPE (&rig.lock);
  return c->is_over;
}

/* Waits for the call's end: a success with this data. */
#define assert_call_reads(call, value)                                  \
  do {                                                                  \
    char expected_[COUNT];                                              \
    pthread_join ((call)->thread, NULL);                                \
    g_assert_cmpint ((call)->result, ==, 0);                            \
    g_assert_cmpmem ((call)->buf, COUNT,                                \
                     memset (expected_, value, COUNT), COUNT);          \
  } while (0)

RIG_FUNCTION void
rig_client_goes (void)
{
  LOCK_IN_SCOPE (&rig.lock);
  rig.client_is_gone = true;
}

/* Tests. */

struct rig_test {
  const char *name;
  void (*run) (void);
  void (*run_with) (gconstpointer arg);         /* in place of run */
  gconstpointer arg;
};

/* Arguments of tests with both kinds of plugin. */
#define WITH_CANCEL "cancel"
#define WITHOUT_CANCEL NULL

RIG_FUNCTION int
rig_run (int argc, char **argv, const char *prefix,
         const struct rig_test *tests, unsigned n)
{
  g_test_init (&argc, &argv, NULL);
  for (unsigned i = 0; i < n; i++) {
    g_autofree char *path = g_strdup_printf ("/%s/%s", prefix, tests[i].name);

    if (tests[i].run)
      g_test_add_func (path, tests[i].run);
    else
      g_test_add_data_func (path, tests[i].arg, tests[i].run_with);
  }
  return g_test_run ();
}

#endif /* TESTS_ASYNC_RIG_H */
