/* SPDX-License-Identifier: BSD-3-Clause */

/* async-gate.so: gate.so with asynchronous hooks.  It has all parameters of
 * gate.so, and these:
 *
 *   in=thread|hook     reply from one of its threads, or before the hook
 *                      returns
 *   reads=buffer|reply fill the hook's buffer, or give the data to
 *                      nbdkit_async_reply_read
 *   errors=errno       fail by nbdkit_async_reply_errno
 *   errors=set|kept|none
 *                      fail by nbdkit_async_reply_error, after
 *                      nbdkit_set_error, with errno, or with neither
 *   return=BOOL        in=hook: fail by returning -1 instead
 *   cancel=BOOL        has async_cancel (true)
 *   grace=MS           nbdkit_async.grace_ms
 *   threads=N          32
 *
 * nbdkit reads the list of hooks and callbacks before it gives parameters.
 * Words in ASYNC_GATE_WITHOUT take one away: a hook ("async_zero"), a callback
 * ("zero") or errno_is_preserved ("errno").
 *
 * gate_fail can command more than errors here, see async-gate.h.
 */
#include <stdio.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <nbdkit-async.h>

#undef NBDKIT_REGISTER_PLUGIN
#define NBDKIT_REGISTER_PLUGIN(plugin)
#include "plugin-gate.c"

#include "async-gate.h"

static struct {
  int in_hook, reads_by_reply, errors, by_return, cancel;
  unsigned threads, grace_ms;
} async_config = { .cancel = 1, .threads = 32 };

static const char *const places[] = { "thread", "hook" };
static const char *const ways_of_reads[] = { "buffer", "reply" };
enum { BY_ERRNO, BY_SET_ERROR, BY_KEPT_ERRNO, BY_NOTHING };
static const char *const ways_of_errors[] = { "errno", "set", "kept", "none" };

struct request {
  struct request *next;
  void *conn;
  uint64_t reqid;
  struct handle *handle;
  char *own;                    /* device */
  struct operation o;
  unsigned id;                  /* in the gate's log */
  void *sample;                 /* a read's data at its start */
  bool is_taken;
  bool is_counted;              /* in handle->in_flight */
};

static pthread_mutex_t requests_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t requests_changed = PTHREAD_COND_INITIALIZER;
/* Under the lock: the requests that may touch their buffers. */
static struct request *requests, **requests_end = &requests;
static bool is_ending;

static pthread_t *threads;
static unsigned n_threads;

/* Replies. */

static void
reply_unknown (void)
{
  int no_conn;

  nbdkit_async_reply (NULL, 0);
  nbdkit_async_reply (&no_conn, UINT64_MAX);
  nbdkit_async_reply_read (&no_conn, 12345, 1, &no_conn);
  nbdkit_async_reply_error (&no_conn, UINT64_C (1) << 20);
  nbdkit_async_reply_errno (NULL, UINT64_C (77) << 40, ENOSPC);
}

static void
say_error (int error)
{
  errno = 0;
  if (async_config.errors == BY_SET_ERROR) {
    nbdkit_set_error (error);
    errno = EIO;
  }
  if (async_config.errors == BY_KEPT_ERRNO)
    errno = error;
}

static void
reply_failed (const struct request *r, int error)
{
  if (async_config.errors == BY_ERRNO) {
    nbdkit_async_reply_errno (r->conn, r->reqid, error);
    return;
  }
  say_error (error);
  nbdkit_async_reply_error (r->conn, r->reqid);
}

static void
reply_done (const struct request *r)
{
  if (r->o.kind == GATE_READ && async_config.reads_by_reply)
    nbdkit_async_reply_read (r->conn, r->reqid, r->o.count, r->sample);
  else
    nbdkit_async_reply (r->conn, r->reqid);
}

static void *
reply_in_thread (void *request)
{
  reply_done (request);
  return NULL;
}

static void
reply_in_race (struct request *r)
{
  pthread_t other;

  if (pthread_create (&other, NULL, reply_in_thread, r) != 0)
    return;
  reply_done (r);
  pthread_join (other, NULL);
}

static void
reply_as_commanded (struct request *r, int command)
{
  const void *data = r->sample ? r->sample : r->own;

  switch (command) {
  case ASYNC_NEVER:
    return;
  case ASYNC_RACE:
    reply_in_race (r);
    return;
  case ASYNC_SHORT:
    nbdkit_async_reply_read (r->conn, r->reqid, r->o.count - 1, data);
    return;
  case ASYNC_LONG:
    nbdkit_async_reply_read (r->conn, r->reqid, r->o.count + 1, data);
    return;
  case ASYNC_NULL:
    nbdkit_async_reply_read (r->conn, r->reqid, r->o.count, NULL);
    return;
  case ASYNC_DATA:
    nbdkit_async_reply_read (r->conn, r->reqid, r->o.count, data);
    return;
  case ASYNC_NO_ERROR:
    nbdkit_async_reply_errno (r->conn, r->reqid, 0);
    return;
  case ASYNC_UNSAID:
    errno = 0;
    nbdkit_async_reply_error (r->conn, r->reqid);
    return;
  case ASYNC_UNKNOWN:
    reply_unknown ();
    break;
  case ASYNC_FOREIGN:
    nbdkit_async_reply ((char *) r->conn + 1, r->reqid);
    break;
  }
  reply_done (r);
  if (command == ASYNC_TWICE)
    reply_done (r);
}

/* Operations. */

static void
add_request (struct request *r)
{
  pthread_mutex_lock (&requests_lock);
  r->next = NULL;
  *requests_end = r;
  requests_end = &r->next;
  pthread_cond_signal (&requests_changed);
  pthread_mutex_unlock (&requests_lock);
}

/* False: a cancel has removed it. */
static bool
remove_request_locked (uint64_t reqid)
{
  struct request **p;

  for (p = &requests; *p && (*p)->reqid != reqid; p = &(*p)->next)
    ;
  if (!*p)
    return false;
  if (requests_end == &(*p)->next)
    requests_end = p;
  if ((*p)->is_counted)
    atomic_fetch_sub (&(*p)->handle->in_flight, 1);
  *p = (*p)->next;
  return true;
}

/* Touches the buffer and the device, unless a cancel came before. */
static void
carry_out (struct request *r, int error)
{
  const struct operation *o = &r->o;

  pthread_mutex_lock (&requests_lock);
  if (remove_request_locked (r->reqid)) {
    if (error && o->kind == GATE_READ)
      memset (o->buffer, 0xee, o->count);
    else if (o->kind == GATE_READ && !async_config.reads_by_reply)
      memcpy (o->buffer, r->sample, o->count);
    else if (!error)
      change_device (r->own, o);
  }
  pthread_mutex_unlock (&requests_lock);
}

/* The result is the hook's, where a hook runs it. */
static int
run_request (struct request *r)
{
  struct gate_verdict verdict = gate_op_pass (gate, r->id);
  bool is_command = verdict.err >= ASYNC_GATE_COMMANDS;
  int error = verdict.err, result = 0;

  if (!verdict.was_held)
    plain_sleep (config.delay_us);
  if (breaks_block_size (&r->o)) {
    gate_violation (gate);
    error = EINVAL;
  }
  carry_out (r, is_command ? 0 : error);
  gate_op_end (gate, r->id, is_command ? 0 : error);
  if (is_command)
    reply_as_commanded (r, error);
  else if (!error)
    reply_done (r);
  else if (!async_config.by_return)
    reply_failed (r, error);
  else {
    say_error (error);
    result = -1;
  }
  if (error == ASYNC_RETURN_TOO)
    result = -1;
  return result;
}

static void
free_request (struct request *r)
{
  int saved = errno;

  free (r->sample);
  free (r);
  errno = saved;
}

static int
start_request (void *conn, uint64_t reqid, void *handle, struct operation o)
{
  struct request *r = calloc (1, sizeof *r);
  struct handle *h = handle;
  char *own = find_device ();
  int result = 0;

  g_assert_nonnull (r);
  if (!own) {
    free (r);
    nbdkit_set_error (EIO);
    return -1;
  }
  r->own = own;
  r->conn = conn;
  r->reqid = reqid;
  r->handle = h;
  r->o = o;
  /* Without async_cancel a request that is given up may outlive its
   * connection.
   */
  r->is_counted = async_config.cancel || !async_config.grace_ms;
  if (atomic_load (&h->closed))
    gate_violation (gate);
  if (r->is_counted)
    atomic_fetch_add (&h->in_flight, 1);
  if (o.kind == GATE_READ) {
    r->sample = malloc (o.count);
    g_assert_nonnull (r->sample);
    memcpy (r->sample, own + o.offset, o.count);
  }
  r->is_taken = async_config.in_hook;
  r->id = log_start (h, &o, true);
  add_request (r);
  if (async_config.in_hook) {
    result = run_request (r);
    free_request (r);
  }
  return result;
}

static void *
service (void *arg)
{
  struct request *r;

  (void) arg;
  pthread_mutex_lock (&requests_lock);
  for (;;) {
    for (r = requests; r && r->is_taken; r = r->next)
      ;
    if (!r && is_ending)
      break;
    if (!r) {
      pthread_cond_wait (&requests_changed, &requests_lock);
      continue;
    }
    r->is_taken = true;
    pthread_mutex_unlock (&requests_lock);
    run_request (r);
    free_request (r);
    pthread_mutex_lock (&requests_lock);
  }
  pthread_mutex_unlock (&requests_lock);
  return NULL;
}

/* Hooks. */

static int
async_pread (void *conn, uint64_t reqid, bool flush, void *handle, void *buf,
             uint32_t count, uint64_t offset)
{
  if (flush)
    gate_violation (gate);
  return start_request (conn, reqid, handle, (struct operation) {
      .kind = GATE_READ, .offset = offset, .count = count, .buffer = buf });
}

static int
async_pwrite (void *conn, uint64_t reqid, bool flush, void *handle,
              const void *buf, uint32_t count, uint64_t offset)
{
  return start_request (conn, reqid, handle, (struct operation) {
      .kind = GATE_WRITE, .flags = flush ? NBDKIT_FLAG_FUA : 0,
      .offset = offset, .count = count, .data = buf });
}

static int
async_flush (void *conn, uint64_t reqid, void *handle, uint32_t flags)
{
  return start_request (conn, reqid, handle, (struct operation) {
      .kind = GATE_FLUSH, .flags = flags });
}

#define RANGE_HOOK(name, NAME) \
  static int \
  async_ ## name (void *conn, uint64_t reqid, void *handle, uint32_t count, \
                  uint64_t offset, uint32_t flags) \
  { \
    return start_request (conn, reqid, handle, (struct operation) { \
        .kind = GATE_ ## NAME, .flags = flags, .offset = offset, \
        .count = count }); \
  }
RANGE_HOOK (zero, ZERO)
RANGE_HOOK (trim, TRIM)
RANGE_HOOK (cache, CACHE)

/* A request that no thread has taken yet is freed here.  A thread that runs one
 * frees it itself.
 */
static void
async_cancel (void *conn, uint64_t reqid, void *handle)
{
  struct request *r;
  bool is_free = false;

  (void) conn;
  (void) handle;
  pthread_mutex_lock (&requests_lock);
  for (r = requests; r && r->reqid != reqid; r = r->next)
    ;
  if (r) {
    is_free = !r->is_taken;
    remove_request_locked (reqid);
  }
  pthread_mutex_unlock (&requests_lock);
  if (is_free)
    free_request (r);
}

static struct nbdkit_async hooks = {
  .async_pread = async_pread,
  .async_pwrite = async_pwrite,
  .async_flush = async_flush,
  .async_zero = async_zero,
  .async_trim = async_trim,
  .async_cache = async_cache,
  .async_cancel = async_cancel,
};

/* The callbacks that differ from those of gate.so. */

static int
async_gate_config (const char *key, const char *value)
{
  if (strcmp (key, "in") == 0)
    return choose (key, value, places, 2, &async_config.in_hook);
  if (strcmp (key, "reads") == 0)
    return choose (key, value, ways_of_reads, 2, &async_config.reads_by_reply);
  if (strcmp (key, "errors") == 0)
    return choose (key, value, ways_of_errors, 4, &async_config.errors);
  if (strcmp (key, "return") == 0)
    return (async_config.by_return = nbdkit_parse_bool (value)) == -1 ? -1 : 0;
  if (strcmp (key, "cancel") == 0)
    return (async_config.cancel = nbdkit_parse_bool (value)) == -1 ? -1 : 0;
  if (strcmp (key, "grace") == 0)
    return nbdkit_parse_unsigned (key, value, &async_config.grace_ms);
  if (strcmp (key, "threads") == 0)
    return nbdkit_parse_unsigned (key, value, &async_config.threads);
  return gate_config (key, value);
}

static int
async_gate_config_complete (void)
{
  hooks.grace_ms = async_config.grace_ms;
  if (!async_config.cancel)
    hooks.async_cancel = NULL;
  return 0;
}

static int
async_gate_after_fork (void)
{
  threads = calloc (async_config.threads, sizeof *threads);
  for (unsigned i = 0; threads && i < async_config.threads; i++, n_threads++)
    if (pthread_create (&threads[i], NULL, service, NULL) != 0)
      break;
  return n_threads == async_config.threads ? 0 : -1;
}

/* A held request ends when the test releases it, or when the test ends. */
static void
async_gate_unload (void)
{
  pthread_mutex_lock (&requests_lock);
  is_ending = true;
  pthread_cond_broadcast (&requests_changed);
  pthread_mutex_unlock (&requests_lock);
  for (unsigned i = 0; i < n_threads; i++)
    pthread_join (threads[i], NULL);
  free (threads);
  gate_unload ();
}

static void
async_gate_dump_plugin (void)
{
  puts ("gate_own_line=1");
}

/* Before plugin_init. */
static void __attribute__ ((constructor))
take_away (void)
{
  const char *without = g_getenv ("ASYNC_GATE_WITHOUT");
  g_auto (GStrv) words = g_strsplit (without ? without : "", " ", -1);

  plugin.config = async_gate_config;
  plugin.config_complete = async_gate_config_complete;
  plugin.after_fork = async_gate_after_fork;
  plugin.unload = async_gate_unload;
  plugin.dump_plugin = async_gate_dump_plugin;
  for (char **w = words; *w; w++) {
    if (strcmp (*w, "errno") == 0)
      plugin.errno_is_preserved = 0;
#define WITHOUT(name) \
    if (strcmp (*w, #name) == 0) { \
      plugin.name = NULL; \
      plugin.can_ ## name = NULL; \
    } \
    if (strcmp (*w, "async_" #name) == 0) \
      hooks.async_ ## name = NULL
    WITHOUT (flush);
    WITHOUT (zero);
    WITHOUT (trim);
    WITHOUT (cache);
#undef WITHOUT
    if (strcmp (*w, "async_pread") == 0)
      hooks.async_pread = NULL;
    if (strcmp (*w, "async_pwrite") == 0)
      hooks.async_pwrite = NULL;
    if (strcmp (*w, "pread") == 0)
      plugin.pread = NULL;
    if (strcmp (*w, "pwrite") == 0)
      plugin.pwrite = NULL;
  }
}

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
