/* SPDX-License-Identifier: BSD-3-Clause
 *
 * asyncpool: nbdkit's callbacks of the filter.
 *
 * Not its job: the work itself (engine.h, conn.h), parameters (config.h), calls
 * into the layer below (next.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

#include "clock.h"
#include "config.h"
#include "debug.h"
#include "engine.h"
#include "hooks.h"
#include "lock.h"
#include "next.h"
#include "report.h"
#include "statsfile.h"

static struct config config;
static struct engine *engine;
static bool pass_through;       /* the thread model allows no call into the
                                 * plugin beside the server's own */
static bool is_serial;          /* it allows one call at a time per context */
static const struct nbdkit_async_driver *hooks; /* NULL: do not drive hooks */
static struct statsfile *stats_file;    /* from get_ready to cleanup, or NULL */
static int early_stderr = -1;   /* for asyncpool-stats=-, until after_fork */

/* With hooks for reads and writes, the pool only starts those hooks that the
 * thread at hand must not start (dispatch.h).
 */
enum { HOOKED_THREADS = 1 };

/* Contexts have threads of their own.  The engine's threads close idle
 * contexts, and write where there is the connection's own context only.
 */
enum { SERIAL_THREADS = 2 };

/* For a person who watches the file, and less than what Prometheus commonly
 * waits between two looks (15 s or more).  One rewrite takes about 1 ms.
 */
#define STATS_PERIOD_NS UINT64_C (5000000000)
/* A file system that has not written a few KiB by then hangs.  What stops a
 * server waits longer (systemd: 90 s).
 */
#define STATS_END_NS UINT64_C (10000000000)

struct handle {
  char *export_name;
  bool is_tls, readonly;
  bool is_hooked;
  void *hooks_handle;           /* the plugin's own handle, if so */
  struct conn *conn;            /* from prepare to close; NULL: pass through */
  GList link;                   /* in handles */
};

/* The connection of this nbdkit thread's latest data request: a filter above
 * may flush one connection on the thread of another one.  Only compared, never
 * dereferenced.
 */
static __thread const struct handle *thread_handle;
static bool is_topmost;         /* no filter is above: each of nbdkit's threads
                                 * serves one connection */

/* All handles.  nbdkit calls no .close when it shuts down: unload frees them.
 */
static GQueue handles = G_QUEUE_INIT;
static struct lock handles_lock = LOCK_INITIALIZER (LOCK_LEAF);

/* The server. */

static int
asyncpool_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
                  const char *key, const char *value)
{
  switch (config_set (&config, key, value)) {
  case 0: return next (nxdata, key, value);
  case 1: return 0;
  default: return -1;
  }
}

static int
asyncpool_config_complete (nbdkit_next_config_complete *next,
                           nbdkit_backend *nxdata)
{
  if (config_complete (&config) == -1)
    return -1;
  return next (nxdata);
}

static void
find_hooks (void)
{
  const char *why_not;

  hooks = hooks_find (&why_not);
  if (hooks && config.threads_given) {
    hooks = NULL;
    why_not = "asyncpool-threads is given";
  }
  if (hooks == NULL) {
    nbdkit_debug ("asyncpool: the thread pool does the work: %s", why_not);
    return;
  }
  nbdkit_debug ("asyncpool: the plugin's async hooks do the work of:%s%s",
                hooks->can_read ? " reads" : "",
                hooks->can_write ? " writes" : "");
  if (hooks->can_read && hooks->can_write)
    config.engine.threads = MIN (config.engine.threads, HOOKED_THREADS);
}

static void
log_unwritten (const char *export_name, uint64_t offset, uint32_t count,
               int err, bool kept)
{
  /* A client chose the name. */
  g_autofree char *name = g_strescape (export_name, NULL);

  if (kept)
    nbdkit_error ("asyncpool: warning: export \"%s\": data at offset %" PRIu64
                  ", length %" PRIu32 ", could not be written before its "
                  "connection ended: %s: each flush of the device tries it "
                  "again", name, offset, count, strerror (err));
  else
    nbdkit_error ("asyncpool: export \"%s\": data at offset %" PRIu64
                  ", length %" PRIu32 ", could not be written and is lost: %s",
                  name, offset, count, strerror (err));
}

static void
log_overdue (const char *export_name)
{
  g_autofree char *name = g_strescape (export_name, NULL);

  nbdkit_error ("asyncpool: warning: export \"%s\": a request has waited %u "
                "seconds for dirty data of another connection, and does not "
                "wait longer", name,
                (unsigned) (config.engine.others_ns / 1000000000));
}

static void
print_stats (FILE *fp)
{
  bool is_prom = report_is_prom (config.stats_file);
  struct stats_now now;

  if (engine == NULL) {
    fprintf (fp, "%sasyncpool: all requests were passed through\n",
             is_prom ? "# " : "");
    return;
  }
  engine_now (engine, &now);
  if (is_prom)
    report_prom (engine->stats, &now, config.stats_file, fp);
  else
    report_text (engine->stats, &now, fp);
}

static void
log_stats (enum statsfile_event event, int err)
{
  const char *name = config.stats_file;

  switch (event) {
  case STATSFILE_ONLY_AT_END:
    nbdkit_error ("asyncpool-stats=%s: warning: it is written at the end only: "
                  "%s: to be rewritten while the server runs, it needs a "
                  "thread, and a directory where the server's user can make "
                  "%s.new and rename it", name, strerror (err), name);
    break;
  case STATSFILE_FAILED:
    nbdkit_error ("asyncpool-stats=%s: cannot be written: %s: further errors "
                  "are not logged", name, strerror (err));
    break;
  case STATSFILE_HANGS:
    nbdkit_error ("asyncpool-stats=%s: was not written at the end: its file "
                  "system does not answer", name);
  }
}

/* Opens the file of the statistics while relative paths, /dev/stdout and the
 * user are still those of the command line.
 */
static int
open_stats (void)
{
  static const struct statsfile_calls calls = { print_stats, log_stats };
  int err;

  if (config.stats_file == NULL || stats_file)
    return 0;
  if (strcmp (config.stats_file, "-") == 0)
    early_stderr = fcntl (STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
  err = statsfile_open (config.stats_file, &calls, &stats_file);
  if (err)
    nbdkit_error ("asyncpool-stats=%s: cannot be opened: %s: must be a file, "
                  "or - for standard error", config.stats_file,
                  strerror (err));
  return err ? -1 : 0;
}

/* In the background nbdkit has replaced standard error, unless -v is given.
 * Says so where the user still sees it.
 */
static void
check_stderr (void)
{
  struct stat was, is;

  if (early_stderr == -1)
    return;
  if (fstat (early_stderr, &was) == 0 && fstat (STDERR_FILENO, &is) == 0
      && (was.st_dev != is.st_dev || was.st_ino != is.st_ino))
    dprintf (early_stderr, "nbdkit: warning: asyncpool-stats=-: nothing is "
             "written, because nbdkit in the background has no standard error: "
             "must be a file\n");
  close (early_stderr);
  early_stderr = -1;
}

static void
log_context (const char *export_name, unsigned n_open, unsigned max)
{
  g_autofree char *name = g_strescape (export_name, NULL);

  nbdkit_error ("asyncpool: warning: export \"%s\": cannot open a further "
                "context now: %u of %u are open", name, n_open + 1, max + 1);
}

static void
log_no_contexts (const char *export_name, int err)
{
  g_autofree char *name = g_strescape (export_name, NULL);

  nbdkit_error ("asyncpool: warning: export \"%s\": cannot start a thread for "
                "further contexts: %s: this connection has one context, "
                "without read-ahead and write-back", name, strerror (err));
}

/* Those that a parameter says, or only the first one; and that of write-back.
 */
static unsigned
threads_to_try (void)
{
  return config.threads_given || config.buffers_given
    ? config.engine.threads + 1 : 2;
}

static int
threads_error (int err)
{
  unsigned n = config.engine.threads;

  if (config.threads_given)
    nbdkit_error ("asyncpool-threads=%u: must be a number of threads that the "
                  "system allows: %s", config.threads_given, strerror (err));
  else if (config.buffers_given && n == config.engine.buffers)
    nbdkit_error ("asyncpool-buffers=%u: must be a number of threads that the "
                  "system allows, one for each buffer: %s", n, strerror (err));
  else
    nbdkit_error ("asyncpool: cannot start %u threads: %s: the system must "
                  "allow them", threads_to_try (), strerror (err));
  return -1;
}

static int
memory_error (int err)
{
  const struct engine_config *e = &config.engine;
  uint64_t bytes = (uint64_t) e->buffers * e->buffer_size
    + (uint64_t) e->large_buffers * e->large_size;

  if (config.buffers_given)
    nbdkit_error ("asyncpool-buffers=%u asyncpool-buffer-size=%s: cannot "
                  "allocate %" PRIu64 " bytes: must fit into memory: %s",
                  config.engine.buffers, config.buffer_size_word, bytes,
                  strerror (err));
  else if (config.memory)
    nbdkit_error ("asyncpool-memory=%s: cannot allocate %" PRIu64 " bytes: "
                  "must fit into memory: %s", config.memory_word, bytes,
                  strerror (err));
  else
    nbdkit_error ("asyncpool: cannot allocate %" PRIu64 " bytes: %s: set "
                  "asyncpool-memory to what the system allows", bytes,
                  strerror (err));
  return -1;
}

/* A filter above that repeats a failed flush would hide the error from the
 * client: asyncpool reports lost data once.
 */
static int
check_above (void)
{
  const char *name = hooks_repeater_above ();

  if (name == NULL || config.engine.write == WRITE_THROUGH)
    return 0;
  if (config.engine.write == WRITE_BEHIND) {
    nbdkit_error ("asyncpool-write=behind: the filter %s is before asyncpool "
                  "on the command line, and would hide lost writes: must be "
                  "auto or through, or --filter=%s must be after asyncpool",
                  name, name);
    return -1;
  }
  nbdkit_error ("asyncpool: warning: no write is deferred: the filter %s is "
                "before asyncpool on the command line, and would hide lost "
                "writes: put --filter=%s after asyncpool", name, name);
  config.engine.write = WRITE_THROUGH;
  return 0;
}

static int
make_engine (int thread_model)
{
  int err;

  is_serial = thread_model == NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS;
  pass_through = thread_model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS
    || (is_serial && config.engine.contexts == 1);
  if (pass_through) {
    nbdkit_error ("asyncpool: warning: %sthe plugin or another filter does not "
                  "serve requests in parallel: all requests are passed through "
                  "unchanged", is_serial ? "asyncpool-contexts=1: " : "");
    return 0;
  }
  if (engine) {
    nbdkit_error ("--filter=asyncpool: must be given only once");
    return -1;
  }
  if (check_above () == -1)
    return -1;
  if (is_serial) {
    nbdkit_debug ("asyncpool: the contexts (%u) do the work: the plugin or "
                  "another filter serves one request at a time",
                  config.engine.contexts);
    if (hooks_same_if_read_only ())
      next_set_same_if_read_only ();
    config.engine.threads = MIN (config.engine.threads, SERIAL_THREADS);
  }
  else
    find_hooks ();
  is_topmost = hooks_is_topmost ();
  config.engine.log_unwritten = log_unwritten;
  config.engine.log_overdue = log_overdue;
  config.engine.log_context = log_context;
  config.engine.log_no_contexts = log_no_contexts;
  do
    err = engine_new (&config.engine, &engine);
  while (err && config_try_less (&config));
  if (err)
    return memory_error (err);
  /* Test it here, as under --run a failure after the fork leaves clients
   * waiting.
   */
  err = pool_try_threads (threads_to_try ());
  return err ? threads_error (err) : 0;
}

static int
asyncpool_get_ready (int thread_model)
{
  debug_sink = nbdkit_debug;
  return make_engine (thread_model) == -1 || open_stats () == -1 ? -1 : 0;
}

static int
asyncpool_after_fork (nbdkit_backend *backend)
{
  int err;

  check_stderr ();
  if (pass_through)
    return 0;
  next_set_lower (backend);
  err = engine_start (engine);
  if (err)
    return threads_error (err);
  if (stats_file)
    statsfile_start (stats_file, STATS_PERIOD_NS, STATS_END_NS);
  return 0;
}

static void
asyncpool_cleanup (nbdkit_backend *backend)
{
  (void) backend;
  if (engine)
    engine_stop (engine);
  if (stats_file)
    statsfile_end (stats_file);
  stats_file = NULL;
}

static void
free_handle (struct handle *h)
{
  if (h->conn)
    conn_free (h->conn);
  free (h->export_name);
  free (h);
}

static void
asyncpool_unload (void)
{
  GList *l;

  while ((l = g_queue_pop_head_link (&handles)) != NULL)
    free_handle (l->data);
  if (engine)
    engine_free (engine);
  engine = NULL;
  if (stats_file)
    statsfile_free (stats_file);
  stats_file = NULL;
  config_free (&config);
}

/* Connections. */

static void *
asyncpool_open (nbdkit_next_open *next, nbdkit_context *context,
                int readonly, const char *exportname, int is_tls)
{
  struct handle *h;
  void *plugin_handle;
  bool is_hooked;

  if (hooks)
    hooks->claim (&plugin_handle);      /* drop what another open has left */
  if (next (context, readonly, exportname) == -1)
    return NULL;
  is_hooked = hooks && hooks->claim (&plugin_handle);
  h = calloc (1, sizeof *h);
  if (h == NULL || (h->export_name = strdup (exportname)) == NULL) {
    nbdkit_error ("asyncpool: cannot open the connection: %m");
    free (h);
    return NULL;
  }
  h->is_tls = is_tls;
  h->readonly = readonly;
  h->is_hooked = is_hooked;
  h->hooks_handle = is_hooked ? plugin_handle : NULL;
  h->link.data = h;
  lock_take (&handles_lock);
  g_queue_push_tail_link (&handles, &h->link);
  lock_drop (&handles_lock);
  thread_handle = h;
  return h;
}

/* Writes out the connection's dirty data, while next is valid. */
static int
asyncpool_finalize (nbdkit_next *next, void *vh)
{
  struct handle *h = vh;

  (void) next;
  if (h->conn)
    conn_close (h->conn);
  return 0;
}

static void
asyncpool_close (void *vh)
{
  struct handle *h = vh;

  /* nbdkit skips finalize if that of an outer filter failed. */
  asyncpool_finalize (NULL, h);
  lock_take (&handles_lock);
  g_queue_unlink (&handles, &h->link);
  lock_drop (&handles_lock);
  free_handle (h);
}

static void
warn_of_name (const char *export_name)
{
  static atomic_bool is_said;
  g_autofree char *name = NULL;

  if (atomic_exchange (&is_said, true))
    return;
  name = g_strescape (export_name, NULL);
  nbdkit_error ("asyncpool: warning: export \"%s\": the filter passes requests "
                "on one at a time: nbdkit tells the plugin no export name for "
                "further contexts: if the plugin serves the same data without "
                "a name, use the default export name", name);
}

static void
warn_of_one_context (void)
{
  static atomic_bool is_said;

  if (!atomic_exchange (&is_said, true))
    nbdkit_error ("asyncpool: warning: the plugin serves one request at a time "
                  "and does not say multi-conn: the filter passes requests on "
                  "one at a time: %sif all contexts show the same data, set "
                  "asyncpool-contexts=N, such as 32",
                  hooks_same_if_read_only ()
                  ? "if clients only read, give nbdkit -r: otherwise, " : "");
}

/* Whether other contexts show the data that this connection's own one shows. */
static bool
may_open (const struct handle *h, const struct backend *b)
{
  const char *why_not = NULL;

  if (h->is_tls)
    why_not = "nbdkit may open further contexts without TLS";
  else if (*h->export_name) {
    /* nbdkit_export_name fails in further contexts, and some plugins (sh) then
     * serve the default export.
     */
    why_not = "nbdkit tells the plugin no export name for further contexts";
    warn_of_name (h->export_name);
  }
  else if (!b->shared && !config.contexts_given) {
    why_not = "the plugin does not say multi-conn";
    warn_of_one_context ();
  }
  if (why_not)
    nbdkit_debug ("asyncpool: one context for this connection: %s", why_not);
  else if (!b->shared)
    nbdkit_debug ("asyncpool: the connection's own context does all writes: "
                  "the plugin does not say multi-conn");
  return why_not == NULL;
}

static int
asyncpool_prepare (nbdkit_next *next, void *vh, int readonly)
{
  struct backend b;
  struct handle *h = vh;
  int err;

  (void) readonly;
  if (pass_through)
    return 0;
  if (next_backend (next, h->readonly, &b) == -1)
    return -1;
  b.serial = is_serial;
  b.may_open = is_serial && may_open (h, &b);
  if (h->is_hooked) {
    b.hooks = hooks;
    b.hooks_handle = h->hooks_handle;
  }
  err = conn_open (engine, h->export_name, &b, &h->conn);
  if (err == EINVAL)
    nbdkit_error ("asyncpool-buffer-size=%s: must be at least the plugin's "
                  "minimum block of %" PRIu32, config.buffer_size_word,
                  b.min_block);
  else if (err)
    nbdkit_error ("asyncpool: cannot open the connection: %s", strerror (err));
  return err ? -1 : 0;
}

/* The plugin's FUA may be a flush after each write (NBDKIT_FUA_EMULATE).  Then
 * a filter above may set FUA on the last piece of a request only, as that flush
 * covers the pieces before.  Here it would not: they may be deferred, and a FUA
 * write does not write them.  So ask for FUA on each piece.
 */
static int
asyncpool_can_fua (nbdkit_next *next, void *vh)
{
  struct handle *h = vh;
  int fua = next->can_fua (next);

  return h->conn && fua == NBDKIT_FUA_EMULATE ? NBDKIT_FUA_NATIVE : fua;
}

static int
asyncpool_can_flush (nbdkit_next *next, void *vh)
{
  struct handle *h = vh;

  /* Where writes may be deferred, a flush drains them. */
  if (h->conn && config.engine.write != WRITE_THROUGH
      && next->can_write (next) == 1)
    return 1;
  return next->can_flush (next);
}

/* Requests. */

/* Returns the connection, or NULL if the filter passes all requests through.
 * Call it for each request except flush and cache, which a filter above may
 * send on another thread.
 */
static struct conn *
serve (struct handle *h)
{
  thread_handle = h;
  return h->conn;
}

/* ERR may be NULL: nbdkit's readahead filter passes none.  If such a call fails
 * the server aborts.
 */
static int
answer (int e, int *err)
{
  if (e && err)
    *err = e;
  return e ? -1 : 0;
}

static int
asyncpool_pread (nbdkit_next *next, void *vh, void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = vh;
  int e;

  if (serve (h) == NULL)
    return next->pread (next, buf, count, offset, flags, err);
  e = conn_read (h->conn, buf, count, offset);
  /* The readahead filter, through the cache filter, reads until its .close.  An
   * error would end the server.
   */
  if (e == ESHUTDOWN && err == NULL)
    e = conn_read_closed (h->conn, buf, count, offset);
  return answer (e, err);
}

static int
asyncpool_pwrite (nbdkit_next *next, void *vh, const void *buf,
                  uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = vh;

  if (serve (h) == NULL)
    return next->pwrite (next, buf, count, offset, flags, err);
  return answer (conn_write (h->conn, buf, count, offset, next_flags (flags)),
                 err);
}

static int
asyncpool_zero (nbdkit_next *next, void *vh, uint32_t count,
                uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = vh;

  if (serve (h) == NULL)
    return next->zero (next, count, offset, flags, err);
  return answer (conn_zero (h->conn, count, offset, next_flags (flags)), err);
}

static int
asyncpool_trim (nbdkit_next *next, void *vh, uint32_t count,
                uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = vh;

  if (serve (h) == NULL)
    return next->trim (next, count, offset, flags, err);
  return answer (conn_trim (h->conn, count, offset, next_flags (flags)), err);
}

static int
asyncpool_flush (nbdkit_next *next, void *vh, uint32_t flags, int *err)
{
  struct handle *h = vh;

  if (h->conn == NULL)
    return next->flush (next, flags, err);
  return answer (conn_flush (h->conn, is_topmost || thread_handle == h), err);
}

static int
add_extents (const struct extentset *answer, struct nbdkit_extents *extents)
{
  for (unsigned i = 0; i < answer->n; i++) {
    const struct extent *x = &answer->at[i];
    uint32_t type = (x->type & BACKEND_HOLE ? NBDKIT_EXTENT_HOLE : 0)
      | (x->type & BACKEND_ZERO ? NBDKIT_EXTENT_ZERO : 0);

    if (nbdkit_add_extent (extents, x->from, x->to - x->from, type) == -1)
      return errno;
  }
  return 0;
}

static int
asyncpool_extents (nbdkit_next *next, void *vh, uint32_t count,
                   uint64_t offset, uint32_t flags,
                   struct nbdkit_extents *extents, int *err)
{
  struct handle *h = vh;
  struct extentset known = { .max = EXTENTS_ANSWER };
  int e;

  if (serve (h) == NULL)
    return next->extents (next, count, offset, flags, extents, err);
  e = conn_extents (h->conn, count, offset, flags & NBDKIT_FLAG_REQ_ONE,
                    &known);
  if (e == 0)
    e = add_extents (&known, extents);
  extentset_clear (&known);
  return answer (e, err);
}

static int
asyncpool_cache (nbdkit_next *next, void *vh, uint32_t count,
                 uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = vh;
  uint64_t start = clock_ns ();
  int r;

  if (h->conn == NULL)
    return next->cache (next, count, offset, flags, err);
  if (!conn_enter (h->conn))
    return err ? answer (ESHUTDOWN, err) : 0;   /* late advice of readahead */
  backend_begin_own (&h->conn->backend);
  r = next->cache (next, count, offset, flags, err);
  backend_end_own (&h->conn->backend);
  stats_end (engine->stats, STATS_CACHE, start, count);
  conn_leave (h->conn);
  return r;
}

static struct nbdkit_filter filter = {
  .name = "asyncpool",
  .longname = "nbdkit asyncpool filter",
  .description = "many operations in flight for a client that sends few",
  .load = hooks_load,
  .unload = asyncpool_unload,
  .config = asyncpool_config,
  .config_complete = asyncpool_config_complete,
  .config_help = CONFIG_HELP,
  .get_ready = asyncpool_get_ready,
  .after_fork = asyncpool_after_fork,
  .cleanup = asyncpool_cleanup,
  .open = asyncpool_open,
  .close = asyncpool_close,
  .prepare = asyncpool_prepare,
  .finalize = asyncpool_finalize,
  .can_flush = asyncpool_can_flush,
  .can_fua = asyncpool_can_fua,
  .pread = asyncpool_pread,
  .pwrite = asyncpool_pwrite,
  .zero = asyncpool_zero,
  .trim = asyncpool_trim,
  .flush = asyncpool_flush,
  .extents = asyncpool_extents,
  .cache = asyncpool_cache,
};

/* nbdkit's macro defines it without a prototype; clang wants one. */
extern struct nbdkit_filter *filter_init (void);
NBDKIT_REGISTER_FILTER (filter)
