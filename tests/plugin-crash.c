/* SPDX-License-Identifier: BSD-3-Clause
 *
 * crash.so: a device with a volatile write cache that survives the server.
 *
 * crash.h describes the device.  A write, zero or trim is a change: it alters
 * `written' when it completes.  A flush copies to `durable' all changes that
 * had completed when the flush started.  A change with FUA copies its own
 * range.  Without flush there is no cache: a change that completes is durable.
 *
 * The device does no more than nbdkit's rules ask for.  So test-crash.c sees
 * the damage where a filter relies on more:
 *
 * - without multi_conn a flush covers the changes of its own connection only;
 * - an operation that fails has changed the first half of its range;
 * - a trim clears every other block.
 *
 * With serial=1 the thread model is SERIALIZE_REQUESTS.  Two calls at once on
 * one handle then count as a violation.
 *
 * With hooks=1 reads, writes and flushes are asynchronous hooks, and the
 * plugin's own threads carry them out.
 *
 * Lock: the device's lock guards both images and the dirty marks.
 *
 * Not its job: which data a block must hold (crash-model.h).
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "crash.h"
#include "operations.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC

static struct {
  char *device;
  unsigned delay_us;
  int flush, fua, zero, trim, multi_conn, hooks, serial;
  uint32_t minimum;             /* block size, 0: none is told */
} config = {
  .flush = 1, .fua = NBDKIT_FUA_NATIVE, .zero = 1, .trim = 1, .multi_conn = 1,
};

static struct crash_device *device;

/* Blocks that have changed since they were copied to `durable'.  With
 * multi_conn all connections share one array.
 */
static bool all_dirty[CRASH_BLOCKS];

struct handle {
  atomic_int n_calls;
  bool *dirty;
  bool own_dirty[CRASH_BLOCKS];
};

/* The device. */

static uint32_t
draw (uint32_t limit)
{
  static _Atomic uint32_t counter;
  uint32_t x = atomic_fetch_add (&counter, 1) * UINT32_C (2654435769);

  return limit ? (x ^ x >> 15) * UINT32_C (2246822519) % limit : 0;
}

/* At least delay_us, as asyncpool defers only for a device that stays slow. */
static void
delay (void)
{
  uint64_t us = config.delay_us + draw (config.delay_us);
  struct timespec left = { .tv_sec = us / 1000000,
                           .tv_nsec = us % 1000000 * 1000 };

  while (us && nanosleep (&left, &left) == -1 && errno == EINTR)
    ;
}

static bool
fails (void)
{
  return draw (100) < atomic_load (&device->fail_percent);
}

static bool
violates_block_size (const struct operation *o)
{
  return config.minimum && (o->offset | o->count) & (config.minimum - 1);
}

/* test-crash.c numbers its changes, and the number is in the upper half of a
 * written block's first word.  A block must not go back to an older write.
 */
static void
check_order (const char *block, const char *data)
{
  uint64_t before, after;

  memcpy (&before, block, sizeof before);
  memcpy (&after, data, sizeof after);
  if (after >> 32 && after >> 32 < before >> 32)
    atomic_fetch_add (&device->steps_back, 1);
}

static void
change_block (struct handle *h, const struct operation *o, uint64_t block)
{
  char *to = device->written + block * CRASH_BLOCK;
  const char *data = o->data;

  pthread_mutex_lock (&device->lock);
  if (o->kind == WRITE)
    check_order (to, data + (block * CRASH_BLOCK - o->offset));
  if (o->kind == WRITE)
    memcpy (to, data + (block * CRASH_BLOCK - o->offset), CRASH_BLOCK);
  else if (o->kind == ZERO || block % 2 == 0)
    memset (to, 0, CRASH_BLOCK);
  if (o->fua || !config.flush)
    memcpy (device->durable + block * CRASH_BLOCK, to, CRASH_BLOCK);
  else
    h->dirty[block] = true;
  pthread_mutex_unlock (&device->lock);
}

static int
change (struct handle *h, const struct operation *o)
{
  uint64_t first = o->offset / CRASH_BLOCK, n = o->count / CRASH_BLOCK;
  int err = 0;

  delay ();
  if (fails ()) {
    err = ENOSPC;
    n /= 2;
  }
  for (uint64_t i = 0; i < n; i++)
    change_block (h, o, first + i);
  return err;
}

static int
flush (struct handle *h)
{
  bool covered[CRASH_BLOCKS];

  pthread_mutex_lock (&device->lock);
  memcpy (covered, h->dirty, sizeof covered);
  pthread_mutex_unlock (&device->lock);
  delay ();
  if (fails ())
    return ENOSPC;
  for (uint64_t i = 0; i < CRASH_BLOCKS; i++) {
    if (!covered[i])
      continue;
    pthread_mutex_lock (&device->lock);
    memcpy (device->durable + i * CRASH_BLOCK,
            device->written + i * CRASH_BLOCK, CRASH_BLOCK);
    h->dirty[i] = false;
    pthread_mutex_unlock (&device->lock);
  }
  return 0;
}

/* Returns 0 or an errno. */
static int
do_operation (struct handle *h, const struct operation *o)
{
  if (o->kind == FLUSH)
    return flush (h);
  if (violates_block_size (o)) {
    atomic_fetch_add (&device->violations, 1);
    return EINVAL;
  }
  if (o->kind != READ)
    return change (h, o);
  pthread_mutex_lock (&device->lock);
  memcpy (o->buf, device->written + o->offset, o->count);
  pthread_mutex_unlock (&device->lock);
  delay ();
  return 0;
}

static int
operate (void *handle, const struct operation *o)
{
  struct handle *h = handle;
  int err;

  if (atomic_fetch_add (&h->n_calls, 1) > 0 && config.serial)
    atomic_fetch_add (&device->violations, 1);
  err = do_operation (h, o);
  atomic_fetch_sub (&h->n_calls, 1);
  return err;
}

/* Parameters. */

static const struct {
  const char *name;
  int *value;
} switches[] = {
  { "flush", &config.flush },
  { "zero", &config.zero },
  { "trim", &config.trim },
  { "multi_conn", &config.multi_conn },
  { "hooks", &config.hooks },
  { "serial", &config.serial },
};

static int
parse_fua (const char *value)
{
  static const char *const names[] = { "none", "emulate", "native" };

  for (int i = 0; i < 3; i++)
    if (strcmp (value, names[i]) == 0) {
      config.fua = i;
      return 0;
    }
  nbdkit_error ("fua=%s: must be none, emulate or native", value);
  return -1;
}

static int
crash_config (const char *key, const char *value)
{
  for (size_t i = 0; i < sizeof switches / sizeof switches[0]; i++)
    if (strcmp (key, switches[i].name) == 0) {
      *switches[i].value = nbdkit_parse_bool (value);
      return *switches[i].value == -1 ? -1 : 0;
    }
  if (strcmp (key, "gate") == 0)        /* client.h passes it to every gate */
    return 0;
  if (strcmp (key, "device") == 0) {
    config.device = nbdkit_absolute_path (value);
    return config.device ? 0 : -1;
  }
  if (strcmp (key, "delay") == 0)       /* in microseconds */
    return nbdkit_parse_unsigned (key, value, &config.delay_us);
  if (strcmp (key, "minimum") == 0)
    return nbdkit_parse_uint32_t (key, value, &config.minimum);
  if (strcmp (key, "fua") == 0)
    return parse_fua (value);
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

#define crash_config_help \
  "device=FILE                       A new file: struct crash_device.\n" \
  "delay=MICROSECONDS minimum=BYTES  Of every operation.\n" \
  "fua=none|emulate|native flush|zero|trim=BOOL\n" \
  "multi_conn|hooks|serial=BOOL"

static int
crash_config_complete (void)
{
  if (!config.device) {
    nbdkit_error ("device=FILE is missing");
    return -1;
  }
  return config.hooks ? 0 : nbdkit_async_disable ();
}

static int
crash_thread_model (void)
{
  return config.serial ? NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS
    : NBDKIT_THREAD_MODEL_PARALLEL;
}

/* Lifetimes. */

static int
crash_get_ready (void)
{
  pthread_mutexattr_t attr;
  int fd = open (config.device, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

  if (fd == -1 || ftruncate (fd, sizeof *device) == -1) {
    nbdkit_error ("%s: %m", config.device);
    if (fd != -1)
      close (fd);
    return -1;
  }
  device = mmap (NULL, sizeof *device, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                 0);
  close (fd);
  if (device == MAP_FAILED) {
    nbdkit_error ("mmap: %m");
    return -1;
  }
  pthread_mutexattr_init (&attr);
  pthread_mutexattr_setpshared (&attr, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init (&device->lock, &attr);
  pthread_mutexattr_destroy (&attr);
  return 0;
}

static int
crash_after_fork (void)
{
  return config.hooks ? hooks_start () : 0;
}

static void
crash_unload (void)
{
  hooks_end ();
  if (device)
    munmap (device, sizeof *device);
  free (config.device);
}

static void *
crash_open (int readonly)
{
  struct handle *h = calloc (1, sizeof *h);

  (void) readonly;
  if (h)
    h->dirty = config.multi_conn ? all_dirty : h->own_dirty;
  return h;
}

static void
crash_close (void *handle)
{
  free (handle);
}

/* Abilities. */

static int64_t
crash_get_size (void *handle)
{
  (void) handle;
  return CRASH_SIZE;
}

static int
crash_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                  uint32_t *maximum)
{
  (void) handle;
  *minimum = config.minimum;
  *preferred = config.minimum ? 4096 : 0;
  *maximum = config.minimum ? UINT32_MAX : 0;
  return 0;
}

#define ABILITY(name, value) \
  static int \
  crash_ ## name (void *handle) \
  { \
    (void) handle; \
    return value; \
  }
ABILITY (can_flush, config.flush)
ABILITY (can_fua, config.fua)
ABILITY (can_zero, config.zero)
ABILITY (can_trim, config.trim)
ABILITY (can_multi_conn, config.multi_conn)
ABILITY (can_cache, NBDKIT_CACHE_EMULATE)

static struct nbdkit_plugin plugin = {
  .name = "crash",
  .version = "1",
  .config = crash_config,
  .config_complete = crash_config_complete,
  .config_help = crash_config_help,
  .thread_model = crash_thread_model,
  .get_ready = crash_get_ready,
  .after_fork = crash_after_fork,
  .unload = crash_unload,
  .open = crash_open,
  .close = crash_close,
  .get_size = crash_get_size,
  .block_size = crash_block_size,
  .can_flush = crash_can_flush,
  .can_fua = crash_can_fua,
  .can_zero = crash_can_zero,
  .can_trim = crash_can_trim,
  .can_multi_conn = crash_can_multi_conn,
  .can_cache = crash_can_cache,
  .pread = plugin_pread,
  .pwrite = plugin_pwrite,
  .zero = plugin_zero,
  .trim = plugin_trim,
  .flush = plugin_flush,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
