/* SPDX-License-Identifier: BSD-3-Clause
 *
 * record.so: a device in memory that keeps a log of all changes and flushes.
 *
 * record.h describes the log.  LOG.flushes gets a line for each flush and each
 * change with FUA: the moments before and after it completes.
 *
 * The plugin does no more than nbdkit's rules ask for.  Operations take
 * `delay', and complete in any order.  With serial=1 the thread model is
 * SERIALIZE_REQUESTS, and two calls at once on one handle end the server.  With
 * hooks=1 the plugin has asynchronous hooks.  With lie=1 a flush makes nothing
 * durable, so that images show what is then lost.
 *
 * Lock: `lock' guards the device and the log.
 *
 * Not its job: images of crashes (plugin-replay.c).
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "operations.h"
#include "record.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC

static struct {
  char *log;
  int64_t size;
  unsigned delay_us;
  int fua, serial, hooks, lie;
} config = { .fua = 1 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *disk;
static uint64_t now;            /* the length of the log */
static int log_fd = -1, flushes_fd = -1;

struct handle {
  atomic_int n_calls;
};

static void
fail (const char *message)
{
  nbdkit_error ("%s: %m", message);
  abort ();
}

static uint64_t
get_now (void)
{
  uint64_t r;

  pthread_mutex_lock (&lock);
  r = now;
  pthread_mutex_unlock (&lock);
  return r;
}

static void
append (const struct record *r, const void *data)
{
  struct iovec v[] = {
    { .iov_base = (void *) (uintptr_t) r, .iov_len = sizeof *r },
    { .iov_base = (void *) (uintptr_t) data, .iov_len = record_data (r) },
  };
  uint64_t before = now;

  now += sizeof *r + record_data (r);
  if (writev (log_fd, v, 2) != (ssize_t) (now - before))
    fail (config.log);
  if ((r->kind == FLUSH || r->fua)
      && dprintf (flushes_fd, "%llu %llu\n", (unsigned long long) before,
                  (unsigned long long) now) < 0)
    fail (config.log);
}

/* `delay' to twice as long, so that the order changes. */
static void
delay (void)
{
  static _Atomic uint32_t counter;
  uint32_t x = atomic_fetch_add (&counter, 1) * UINT32_C (2654435769);
  uint64_t us = config.delay_us;
  struct timespec left;

  us += us ? (x ^ x >> 15) * UINT32_C (2246822519) % us : 0;
  left = (struct timespec) { .tv_sec = us / 1000000,
                             .tv_nsec = us % 1000000 * 1000 };
  while (us && nanosleep (&left, &left) == -1 && errno == EINTR)
    ;
}

static void
complete (const struct operation *o, uint64_t started)
{
  bool lies = o->kind == FLUSH && config.lie;
  struct record r = { .started = lies ? 0 : started, .offset = o->offset,
                      .count = o->count, .kind = o->kind, .fua = o->fua };

  pthread_mutex_lock (&lock);
  if (o->kind == READ)
    memcpy (o->buf, disk + o->offset, o->count);
  else if (o->kind == WRITE)
    memcpy (disk + o->offset, o->data, o->count);
  else if (o->kind != FLUSH)
    memset (disk + o->offset, 0, o->count);
  if (o->kind != READ)
    append (&r, o->data);
  pthread_mutex_unlock (&lock);
}

static int
operate (void *handle, const struct operation *o)
{
  struct handle *h = handle;
  uint64_t started = get_now ();

  if (atomic_fetch_add (&h->n_calls, 1) > 0 && config.serial)
    fail ("two calls on one handle");
  delay ();
  complete (o, started);
  atomic_fetch_sub (&h->n_calls, 1);
  return 0;
}

/* Parameters. */

static int
record_config (const char *key, const char *value)
{
  if (strcmp (key, "log") == 0) {
    config.log = nbdkit_absolute_path (value);
    return config.log ? 0 : -1;
  }
  if (strcmp (key, "size") == 0) {
    config.size = nbdkit_parse_size (value);
    return config.size == -1 ? -1 : 0;
  }
  if (strcmp (key, "delay") == 0)       /* in microseconds */
    return nbdkit_parse_unsigned (key, value, &config.delay_us);
  if (strcmp (key, "fua") == 0)
    return nbdkit_parse_int (key, value, &config.fua);
  if (strcmp (key, "serial") == 0)
    return nbdkit_parse_int (key, value, &config.serial);
  if (strcmp (key, "hooks") == 0)
    return nbdkit_parse_int (key, value, &config.hooks);
  if (strcmp (key, "lie") == 0)
    return nbdkit_parse_int (key, value, &config.lie);
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

#define record_config_help \
  "size=BYTES log=FILE delay=MICROSECONDS fua|serial|hooks|lie=0|1"

static int
record_config_complete (void)
{
  if (!config.log || !config.size) {
    nbdkit_error ("size=BYTES and log=FILE must be given");
    return -1;
  }
  return config.hooks ? 0 : nbdkit_async_disable ();
}

static int
record_thread_model (void)
{
  return config.serial ? NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS
    : NBDKIT_THREAD_MODEL_PARALLEL;
}

/* Lifetimes. */

static int
create (const char *suffix)
{
  char name[4096];
  int fd;

  snprintf (name, sizeof name, "%s%s", config.log, suffix);
  fd = open (name, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
  if (fd == -1)
    nbdkit_error ("%s: %m", name);
  return fd;
}

static int
record_get_ready (void)
{
  disk = calloc (1, config.size);
  log_fd = create ("");
  flushes_fd = create (".flushes");
  return disk && log_fd != -1 && flushes_fd != -1 ? 0 : -1;
}

static int
record_after_fork (void)
{
  return config.hooks ? hooks_start () : 0;
}

static void
record_unload (void)
{
  hooks_end ();
  free (disk);
  free (config.log);
}

static void *
record_open (int readonly)
{
  (void) readonly;
  return calloc (1, sizeof (struct handle));
}

static void
record_close (void *handle)
{
  free (handle);
}

/* Abilities. */

static int64_t
record_get_size (void *handle)
{
  (void) handle;
  return config.size;
}

static int
record_can_fua (void *handle)
{
  (void) handle;
  return config.fua ? NBDKIT_FUA_NATIVE : NBDKIT_FUA_EMULATE;
}

static int
record_can_multi_conn (void *handle)
{
  (void) handle;
  return 1;
}

static struct nbdkit_plugin plugin = {
  .name = "record",
  .version = "1",
  .config = record_config,
  .config_complete = record_config_complete,
  .config_help = record_config_help,
  .thread_model = record_thread_model,
  .get_ready = record_get_ready,
  .after_fork = record_after_fork,
  .unload = record_unload,
  .open = record_open,
  .close = record_close,
  .get_size = record_get_size,
  .can_fua = record_can_fua,
  .can_multi_conn = record_can_multi_conn,
  .pread = plugin_pread,
  .pwrite = plugin_pwrite,
  .zero = plugin_zero,
  .trim = plugin_trim,
  .flush = plugin_flush,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
