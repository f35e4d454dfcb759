/* SPDX-License-Identifier: BSD-3-Clause */

/* gate.so: an in-memory plugin for tests.
 *
 * Parameters say which operations it offers, and how.  A test program holds
 * and fails its operations through gate=FILE, see gate.h.
 *
 * Each operation goes in this order: it starts in the log, a read copies its
 * data, it passes the gate, it changes the device, it ends in the log.  An
 * operation that the gate did not hold takes delay=TIME.
 *
 * async-gate.so is this file with asynchronous hooks: plugin-async-gate.c
 * includes it.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <glib.h>

#include "gate.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static struct {
  char *gate, *device;
  int64_t size;
  int64_t delay_us;
  int flush, fua, zero, fast_zero, trim, extents, cache, multi_conn;
  int errors_by_errno, by_name, slow_extents;
  uint32_t minimum, preferred, maximum;
  int thread_model;
} config = {
  .size = 64 << 20, .delay_us = 1000,
  .flush = 1, .fua = NBDKIT_FUA_NATIVE, .zero = 1, .fast_zero = 1, .trim = 1,
  .extents = 1, .cache = NBDKIT_CACHE_NATIVE, .multi_conn = 1,
  .errors_by_errno = 1,
  .thread_model = NBDKIT_THREAD_MODEL_PARALLEL,
};

static struct gate *gate;
static char *device;

/* A handle is freed at the end only, so that the plugin notices an operation
 * after .close.
 */
struct handle {
  unsigned conn;                /* 1, 2, ... in the order of opening */
  _Atomic unsigned in_flight;
  _Atomic bool closed;
  struct handle *next;
};

static _Atomic (struct handle *) handles;

static const struct {
  const char *name;
  int *value;
} switches[] = {
  { "flush", &config.flush },
  { "zero", &config.zero },
  { "fast_zero", &config.fast_zero },
  { "trim", &config.trim },
  { "extents", &config.extents },
  { "multi_conn", &config.multi_conn },
  /* 1: errors in errno.  0: errors by nbdkit_set_error, and EIO in errno.  So
   * nbdkit does on a thread of its own for a plugin without
   * errno_is_preserved.
   */
  { "errno_is_preserved", &config.errors_by_errno },
  /* Block status has the delay, too. */
  { "slow_extents", &config.slow_extents },
  /* Export "b" is a device of its own, in FILE behind the other one.  Each
   * operation looks up its connection's export, and fails where it cannot. */
  { "by_name", &config.by_name },
};

static const char *const models[] = {
  [NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS] = "serialize_connections",
  [NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS] = "serialize_all_requests",
  [NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS] = "serialize_requests",
  [NBDKIT_THREAD_MODEL_PARALLEL] = "parallel",
};

static const char *const three_ways[] = { "none", "emulate", "native" };

static int
choose (const char *key, const char *value, const char *const *names,
        unsigned n, int *result)
{
  for (unsigned i = 0; i < n; i++)
    if (strcmp (value, names[i]) == 0) {
      *result = (int) i;
      return 0;
    }
  nbdkit_error ("%s: not known: %s", key, value);
  return -1;
}

static int
parse_delay (const char *value)
{
  char *end;
  double number = g_ascii_strtod (value, &end);

  if (end == value || number < 0) {
    nbdkit_error ("delay: %s", value);
    return -1;
  }
  if (strcmp (end, "ms") == 0)
    number *= 1e3;
  else if (strcmp (end, "us") != 0)
    number *= 1e6;
  config.delay_us = (int64_t) number;
  return 0;
}

static int
parse_block_size (const char *value, uint32_t *result)
{
  int64_t size = nbdkit_parse_size (value);

  if (size < 0 || size > UINT32_MAX)
    return -1;
  *result = (uint32_t) size;
  return 0;
}

static int
gate_config (const char *key, const char *value)
{
  for (unsigned i = 0; i < G_N_ELEMENTS (switches); i++)
    if (strcmp (key, switches[i].name) == 0) {
      *switches[i].value = nbdkit_parse_bool (value);
      return *switches[i].value == -1 ? -1 : 0;
    }
  if (strcmp (key, "gate") == 0) {
    config.gate = nbdkit_absolute_path (value);
    return config.gate ? 0 : -1;
  }
  if (strcmp (key, "device") == 0) {
    config.device = nbdkit_absolute_path (value);
    return config.device ? 0 : -1;
  }
  if (strcmp (key, "size") == 0) {
    config.size = nbdkit_parse_size (value);
    return config.size == -1 ? -1 : 0;
  }
  if (strcmp (key, "delay") == 0)
    return parse_delay (value);
  if (strcmp (key, "fua") == 0)
    return choose (key, value, three_ways, 3, &config.fua);
  if (strcmp (key, "cache") == 0)
    return choose (key, value, three_ways, 3, &config.cache);
  if (strcmp (key, "minimum") == 0)
    return parse_block_size (value, &config.minimum);
  if (strcmp (key, "preferred") == 0)
    return parse_block_size (value, &config.preferred);
  if (strcmp (key, "maximum") == 0)
    return parse_block_size (value, &config.maximum);
  if (strcmp (key, "thread_model") == 0)
    return choose (key, value, models, G_N_ELEMENTS (models),
                   &config.thread_model);
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

#define gate_config_help \
  "gate=FILE            Commands from a test program.\n" \
  "device=FILE          Keep the data there.\n" \
  "size=SIZE delay=TIME minimum=SIZE preferred=SIZE maximum=SIZE\n" \
  "flush|zero|fast_zero|trim|extents|multi_conn|errno_is_preserved=BOOL\n" \
  "by_name|slow_extents=BOOL\n" \
  "fua|cache=none|emulate|native thread_model=NAME"

static size_t
memory_size (void)
{
  return config.size * (config.by_name ? 2 : 1);
}

/* The device of this thread's connection.  NULL: the thread has no connection.
 */
static char *
find_device (void)
{
  const char *name;

  if (!config.by_name)
    return device;
  name = nbdkit_export_name ();
  if (!name)
    return NULL;
  return strcmp (name, "b") == 0 ? device + config.size : device;
}

static char *
map_device (void)
{
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd = -1;
  void *p;

  if (config.device) {
    flags = MAP_SHARED;
    fd = open (config.device, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd == -1 || ftruncate (fd, memory_size ()) == -1) {
      nbdkit_error ("%s: %m", config.device);
      if (fd != -1)
        close (fd);
      return NULL;
    }
  }
  p = mmap (NULL, memory_size (), PROT_READ | PROT_WRITE, flags, fd, 0);
  if (p == MAP_FAILED)
    nbdkit_error ("mmap: %m");
  if (fd != -1)
    close (fd);
  return p == MAP_FAILED ? NULL : p;
}

static int
gate_get_ready (void)
{
  gate = config.gate ? gate_attach (config.gate) : gate_new ();
  if (!gate) {
    nbdkit_error ("gate: cannot map %s", config.gate);
    return -1;
  }
  device = map_device ();
  return device ? 0 : -1;
}

static void
gate_unload (void)
{
  struct handle *h;

  while ((h = atomic_load (&handles)) != NULL) {
    atomic_store (&handles, h->next);
    free (h);
  }
  if (device)
    munmap (device, memory_size ());
  gate_free (gate);
  free (config.gate);
  free (config.device);
}

static int
gate_thread_model (void)
{
  return config.thread_model;
}

static void *
gate_open (int readonly)
{
  static _Atomic unsigned connections;
  struct handle *h = calloc (1, sizeof *h);

  (void) readonly;
  if (!h)
    return NULL;
  h->conn = atomic_fetch_add (&connections, 1) + 1;
  h->next = atomic_load (&handles);
  while (!atomic_compare_exchange_weak (&handles, &h->next, h))
    ;
  return h;
}

static void
gate_close (void *handle)
{
  struct handle *h = handle;

  atomic_store (&h->closed, true);
  if (atomic_load (&h->in_flight) > 0)
    gate_violation (gate);
  gate_count_closed (gate);
}

static int64_t
gate_get_size (void *handle)
{
  struct gate_geometry told = gate_geometry (gate);

  (void) handle;
  return told.size ? (int64_t) told.size : config.size;
}

static int
gate_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                 uint32_t *maximum)
{
  struct gate_geometry told = gate_geometry (gate);
  uint32_t least = told.minimum ? told.minimum : config.minimum;
  uint32_t most = told.maximum ? told.maximum : config.maximum;

  (void) handle;
  *minimum = least;
  *preferred = config.preferred ? config.preferred : MAX (least, 4096);
  *maximum = most ? most : UINT32_MAX;
  if (!least && !config.preferred && !most)
    *minimum = *preferred = *maximum = 0;
  else if (!least)
    *minimum = 1;
  return 0;
}

#define ANSWER(name, field) \
  static int \
  gate_ ## name (void *handle) \
  { \
    (void) handle; \
    return config.field; \
  }
ANSWER (can_flush, flush)
ANSWER (can_trim, trim)
ANSWER (can_zero, zero)
ANSWER (can_fast_zero, fast_zero)
ANSWER (can_fua, fua)
ANSWER (can_extents, extents)
ANSWER (can_multi_conn, multi_conn)
ANSWER (can_cache, cache)

/* Operations. */

struct operation {
  unsigned kind;
  uint32_t flags;
  uint64_t offset;
  uint32_t count;
  const void *data;             /* GATE_WRITE */
  void *buffer;                 /* GATE_READ */
};

/* The minimum is for all operations that have a range, the maximum for reads
 * and writes only.
 */
static bool
breaks_block_size (const struct operation *o)
{
  if (o->kind == GATE_FLUSH || o->kind == GATE_EXTENTS)
    return false;
  if (config.minimum > 1 &&
      (o->offset % config.minimum != 0 || o->count % config.minimum != 0))
    return true;
  return config.maximum && o->kind & (GATE_READ | GATE_WRITE)
    && o->count > config.maximum;
}

static void
plain_sleep (int64_t us)
{
  struct timespec left = {
    .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000
  };

  while (nanosleep (&left, &left) == -1 && errno == EINTR)
    ;
}

static unsigned
log_start (const struct handle *h, const struct operation *o, bool is_hooked)
{
  return gate_op_start (gate, (struct gate_op) {
      .kind = o->kind, .flags = o->flags, .conn = h->conn,
      .is_hooked = is_hooked, .offset = o->offset, .count = o->count,
      .thread = pthread_self () });
}

static void
change_device (char *own, const struct operation *o)
{
  if (o->kind == GATE_WRITE)
    memcpy (own + o->offset, o->data, o->count);
  else if (o->kind & (GATE_ZERO | GATE_TRIM))
    memset (own + o->offset, 0, o->count);
}

static int
operate (void *handle, const struct operation *o)
{
  struct handle *h = handle;
  unsigned id = log_start (h, o, false);
  char *own = find_device ();
  struct gate_verdict verdict;
  int err;

  atomic_fetch_add (&h->in_flight, 1);
  if (atomic_load (&h->closed))
    gate_violation (gate);
  if (own && o->kind == GATE_READ)
    memcpy (o->buffer, own + o->offset, o->count);
  verdict = gate_op_pass (gate, id);
  err = verdict.err;
  if (!verdict.was_held
      && (o->kind != GATE_EXTENTS || config.slow_extents))
    plain_sleep (config.delay_us);
  if (breaks_block_size (o)) {
    gate_violation (gate);
    err = EINVAL;
  }
  if (!err && !own)
    err = EIO;
  if (!err)
    change_device (own, o);
  gate_op_end (gate, id, err);
  atomic_fetch_sub (&h->in_flight, 1);
  if (!err)
    return 0;
  if (o->kind == GATE_READ)     /* no client may see what a failed read left */
    memset (o->buffer, 0xee, o->count);
  if (config.errors_by_errno)
    errno = err;
  else {
    nbdkit_set_error (err);
    errno = EIO;
  }
  return -1;
}

static int
gate_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  struct operation o = {
    .kind = GATE_READ, .flags = flags, .offset = offset, .count = count,
    .buffer = buf
  };

  return operate (handle, &o);
}

static int
gate_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  struct operation o = {
    .kind = GATE_WRITE, .flags = flags, .offset = offset, .count = count,
    .data = buf
  };

  return operate (handle, &o);
}

static int
operate_on_range (void *handle, unsigned kind, uint32_t count, uint64_t offset,
                  uint32_t flags)
{
  struct operation o = {
    .kind = kind, .flags = flags, .offset = offset, .count = count
  };

  return operate (handle, &o);
}

static int
gate_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return operate_on_range (handle, GATE_ZERO, count, offset, flags);
}

static int
gate_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return operate_on_range (handle, GATE_TRIM, count, offset, flags);
}

static int
gate_flush (void *handle, uint32_t flags)
{
  return operate_on_range (handle, GATE_FLUSH, 0, 0, flags);
}

static int
gate_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return operate_on_range (handle, GATE_CACHE, count, offset, flags);
}

/* A block of 4 KiB that holds only zeroes is a hole. */
static int
look_at_extents (const char *own, uint64_t at, uint64_t end,
                 struct nbdkit_extents *extents)
{
  const uint64_t block = 4096, size = config.size;

  while (at < end) {
    uint64_t from = at / block * block, next = MIN (from + block, size);
    bool is_hole = own[from] == 0
      && memcmp (own + from, own + from + 1, next - from - 1) == 0;
    uint32_t type = is_hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;

    if (nbdkit_add_extent (extents, at, next - at, type) == -1)
      return -1;
    at = next;
  }
  return 0;
}

/* A held question has looked at the device already, as a held read has. */
static int
gate_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
              struct nbdkit_extents *extents)
{
  const char *own = find_device ();

  if (own && look_at_extents (own, offset, offset + count, extents) == -1)
    return -1;
  return operate_on_range (handle, GATE_EXTENTS, count, offset, flags);
}

static struct nbdkit_plugin plugin = {
  .name = "gate",
  .version = "1",
  .config = gate_config,
  .config_help = gate_config_help,
  .get_ready = gate_get_ready,
  .unload = gate_unload,
  .thread_model = gate_thread_model,
  .open = gate_open,
  .close = gate_close,
  .get_size = gate_get_size,
  .block_size = gate_block_size,
  .can_flush = gate_can_flush,
  .can_trim = gate_can_trim,
  .can_zero = gate_can_zero,
  .can_fast_zero = gate_can_fast_zero,
  .can_fua = gate_can_fua,
  .can_extents = gate_can_extents,
  .can_multi_conn = gate_can_multi_conn,
  .can_cache = gate_can_cache,
  .pread = gate_pread,
  .pwrite = gate_pwrite,
  .zero = gate_zero,
  .trim = gate_trim,
  .flush = gate_flush,
  .cache = gate_cache,
  .extents = gate_extents,
  .errno_is_preserved = 1,
};

/* nbdkit's macro has no prototype for what it defines; clang wants one. */
extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
