/* SPDX-License-Identifier: BSD-3-Clause
 *
 * delaymem: a device in memory with a latency per operation.
 *
 * This file has the parameters, the latency of each operation and nbdkit's
 * callbacks.  store.c has the bytes.  latency.c parses times and sleeps.
 * service.c has the operations that wait in a queue.
 *
 * An operation of nbdkit is applied when it arrives, and its thread sleeps for
 * the rest of the latency.  An operation of asyncpool goes to the queue.  A
 * service thread applies it near the end of its latency and then replies.
 * Either way the latency counts from the arrival and includes the copying.  An
 * early end of the wait still applies the operation, so that no accepted write
 * is lost.
 *
 * State: parameters, store and service are constant from the first connection
 * on.  There are no locks here.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <nbdkit-async.h>

#include "clock.h"
#include "latency.h"
#include "service.h"
#include "store.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC

#define DEFAULT_SIZE (INT64_C (1) << 30)
#define DEFAULT_DELAY_NS UINT64_C (64000000)
#define DEFAULT_IO_THREADS 2
#define NOT_GIVEN UINT64_MAX
#define FAST_BLOCK (UINT64_C (128) * 1024)
#define MAX_FAST 1000000

/* The last part of every wait is a plain sleep, because nbdkit_nanosleep logs
 * an error per call when the server shuts down.  Only the part before it is cut
 * short, so shutdown takes up to this long.
 */
#define PLAIN_SLEEP_NS UINT64_C (250000000)

static int64_t size = DEFAULT_SIZE;
static const char *size_text = "1G"; /* as it was given, for messages */
static uint64_t delay_ns = DEFAULT_DELAY_NS;
static uint64_t rdelay_ns = NOT_GIVEN;
static uint64_t wdelay_ns = NOT_GIVEN;
static unsigned fast;           /* one block in FAST has no delay; 0: none */
static bool populate;
static unsigned io_threads = DEFAULT_IO_THREADS;

static struct store *store;
static struct service *service; /* NULL without io-threads */

/* Parameters. */

static int
config_size (const char *value)
{
  int64_t r = nbdkit_parse_size (value);

  if (r > 0) {
    size = r;
    size_text = value;
    return 0;
  }
  nbdkit_error ("size=%s: must be a number greater than 0, "
                "with one of the suffixes b, s, k, M, G, T, P, E or none",
                value);
  return -1;
}

static int
config_delay (const char *key, const char *value, uint64_t *ns)
{
  int err = latency_parse (value, ns);

  if (err == ERANGE)
    nbdkit_error ("%s=%s: must be at most 3600s (one hour)", key, value);
  else if (err)
    nbdkit_error ("%s=%s: must be a time such as 64ms, 250us, 10ns, 1.5s "
                  "or 1.5 (seconds), from 0 to 3600s in steps of 1ns",
                  key, value);
  return err ? -1 : 0;
}

static int
config_populate (const char *value)
{
  int r = nbdkit_parse_bool (value);

  if (r == -1) {                /* nbdkit does not name the parameter */
    nbdkit_error ("populate=%s: must be true or false", value);
    return -1;
  }
  populate = r;
  return 0;
}

/* nbdkit_parse_unsigned does not name the parameter. */
static int
config_number (const char *key, const char *value, unsigned most, unsigned *to)
{
  const size_t digits = strspn (value, "0123456789");
  const unsigned long n = strtoul (value, NULL, 10);

  if (digits == 0 || value[digits] != '\0' || n > most) {
    nbdkit_error ("%s=%s: must be a number from 0 to %u", key, value, most);
    return -1;
  }
  *to = (unsigned) n;
  return 0;
}

static int
delaymem_config (const char *key, const char *value)
{
  if (strcmp (key, "size") == 0)
    return config_size (value);
  if (strcmp (key, "delay") == 0)
    return config_delay (key, value, &delay_ns);
  if (strcmp (key, "rdelay") == 0)
    return config_delay (key, value, &rdelay_ns);
  if (strcmp (key, "wdelay") == 0)
    return config_delay (key, value, &wdelay_ns);
  if (strcmp (key, "populate") == 0)
    return config_populate (value);
  if (strcmp (key, "io-threads") == 0)
    return config_number (key, value, SERVICE_MAX_THREADS, &io_threads);
  if (strcmp (key, "fast") == 0)
    return config_number (key, value, MAX_FAST, &fast);

  nbdkit_error ("unknown parameter '%s': delaymem has size, delay, rdelay, "
                "wdelay, fast, populate and io-threads", key);
  return -1;
}

/* Here, so that the order of the parameters does not matter. */
static int
delaymem_config_complete (void)
{
  if (rdelay_ns == NOT_GIVEN)
    rdelay_ns = delay_ns;
  if (wdelay_ns == NOT_GIVEN)
    wdelay_ns = delay_ns;
  return io_threads > 0 ? 0 : nbdkit_async_disable ();
}

#define delaymem_config_help \
  "[size=]<SIZE>   (default 1G) Size of the device.\n" \
  "delay=<TIME>    (default 64ms) How long each operation takes.\n" \
  "rdelay=<TIME>   (default: delay) The same for reads only.\n" \
  "wdelay=<TIME>   (default: delay) The same for writes, zeroes, trims.\n" \
  "fast=<N>        (default 0) One block of 128 KiB in N takes no time.\n" \
  "                0: none.\n" \
  "populate=<BOOL> (default false) Take all memory at the start.\n" \
  "io-threads=<N>  (default 2) Threads that serve the operations of\n" \
  "                asyncpool, 64 at most.  0: no hooks, each operation\n" \
  "                sleeps on a thread.\n" \
  "<TIME> is 64ms, 250us, 10ns, 1.5s or 1.5 (seconds), 3600s at most."

static void
delaymem_dump_plugin (void)
{
  printf ("delaymem_default_size=%" PRIi64 "\n", DEFAULT_SIZE);
  printf ("delaymem_default_delay=%" PRIu64 "ms\n",
          DEFAULT_DELAY_NS / 1000000);
  printf ("delaymem_max_delay=%" PRIu64 "s\n",
          LATENCY_MAX_NS / LATENCY_NS_PER_S);
  printf ("delaymem_default_io_threads=%d\n", DEFAULT_IO_THREADS);
  printf ("delaymem_extent_granularity=%" PRIu64 "\n", STORE_PAGE_BYTES);
}

/* Memory. */

/* The number after PREFIX in FILE; UINT64_MAX: none. */
static uint64_t
number_in_file (const char *file, const char *prefix)
{
  const size_t n = strlen (prefix);
  uint64_t r = UINT64_MAX;
  char line[128];
  FILE *fp = fopen (file, "re");

  if (fp == NULL)
    return UINT64_MAX;
  while (r == UINT64_MAX && fgets (line, sizeof line, fp))
    if (strncmp (line, prefix, n) == 0)
      sscanf (&line[n], "%" SCNu64, &r);
  fclose (fp);
  return r;
}

static uint64_t
min_u64 (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* How much the kernel says it can give before it kills a process. */
static uint64_t
available_bytes (void)
{
  uint64_t r = number_in_file ("/proc/meminfo", "MemAvailable:");

  r = r > UINT64_MAX / 1024 ? UINT64_MAX : r * 1024;
  r = min_u64 (r, number_in_file ("/sys/fs/cgroup/memory.max", ""));
  return min_u64 (r, number_in_file
                  ("/sys/fs/cgroup/memory/memory.limit_in_bytes", ""));
}

static int
delaymem_get_ready (void)
{
  const uint64_t available = populate ? available_bytes () : UINT64_MAX;

  if ((uint64_t) size > available) {
    nbdkit_error ("populate=true: size=%s does not fit into "
                  "the available memory of %" PRIu64 " bytes",
                  size_text, available);
    return -1;
  }
  store = store_new ((uint64_t) size);
  if (store == NULL) {
    nbdkit_error ("size=%s: cannot reserve that many bytes: %m: must fit into "
                  "the free address space, commonly a little less than 128T",
                  size_text);
    return -1;
  }
  return 0;
}

/* Operations. */

enum kind { READ, WRITE, ZERO, TRIM, CACHE };

/* The block in which an operation begins decides whether it is fast. */
static uint64_t
delay_of (const struct service_op *op)
{
  if (fast > 0 && op->offset / FAST_BLOCK % fast == 0)
    return 0;
  return op->kind == READ || op->kind == CACHE ? rdelay_ns : wdelay_ns;
}

/* FUA needs nothing more: memory is as durable as this device gets. */
static void
apply (const struct service_op *op)
{
  switch ((enum kind) op->kind) {
  case READ:
    store_read (store, op->buf.to, op->count, op->offset);
    break;
  case WRITE:
    store_write (store, op->buf.from, op->count, op->offset);
    break;
  case ZERO:
    store_zero (store, op->count, op->offset,
                op->flags & NBDKIT_FLAG_MAY_TRIM);
    break;
  case TRIM:
    store_zero (store, op->count, op->offset, true);
    break;
  case CACHE:                   /* there is no faster place */
    break;
  }
}

/* Zeroing pages that must stay is as slow as a write. */
static bool
is_refused (const struct service_op *op)
{
  return op->kind == ZERO && (op->flags & NBDKIT_FLAG_FAST_ZERO) &&
    !(op->flags & NBDKIT_FLAG_MAY_TRIM);
}

static int
fail (int err)
{
  errno = err;                  /* last: .errno_is_preserved */
  return -1;
}

/* Threads. */

static void
reply (const struct service_op *op)
{
  nbdkit_async_reply (op->conn, op->reqid);
}

/* The shortest sleep fails when the server shuts down, and logs that. */
static bool
is_shutting_down (void)
{
  return nbdkit_nanosleep (0, 1) == -1;
}

static const struct service_calls service_calls = {
  .apply = apply,
  .reply = reply,
  .is_shutting_down = is_shutting_down,
};

static int
start_threads (void)
{
  int r;

  service = service_new (&service_calls);
  r = service ? service_start (service, io_threads) : errno;
  if (r != 0) {
    errno = r;
    nbdkit_error ("io-threads=%u: cannot start a thread: %m", io_threads);
    return -1;
  }
  return 0;
}

/* After the fork, because threads do not survive it.  Also, while the parent
 * lives, the kernel would copy pages from before the fork at their first write.
 */
static int
delaymem_after_fork (void)
{
  int r = populate ? store_populate (store) : 0;

  if (r != 0) {
    errno = r;
    nbdkit_error ("populate=true: cannot take %" PRIi64 " bytes of memory: %m",
                  size);
    return -1;
  }
  return io_threads > 0 ? start_threads () : 0;
}

/* nbdkit before 1.26 has no .cleanup.  .unload ends the threads then. */
#define HAS_CLEANUP (NBDKIT_VERSION_MAJOR > 1 || NBDKIT_VERSION_MINOR >= 26)

#if HAS_CLEANUP
static void
delaymem_cleanup (void)
{
  if (service)
    service_stop (service);
}
#endif

static void
delaymem_unload (void)
{
  service_free (service);
  store_free (store);
}

/* Waiting. */

/* The operation is done already.  If the server shuts down or the client is
 * gone, only the reply comes sooner.
 */
static void
wait_for_the_rest (uint64_t arrival_ns, uint64_t delay)
{
  const uint64_t end_ns = arrival_ns + delay;
  uint64_t now, ns;

  if (delay > PLAIN_SLEEP_NS) {
    now = clock_ns ();
    ns = end_ns - PLAIN_SLEEP_NS > now ? end_ns - PLAIN_SLEEP_NS - now : 0;
    if (ns > 0 && nbdkit_nanosleep ((unsigned) (ns / LATENCY_NS_PER_S),
                                    (unsigned) (ns % LATENCY_NS_PER_S)) == -1)
      return;
  }
  latency_sleep_until (end_ns);
}

/* Connections. */

static void *
delaymem_open (int readonly)
{
  (void) readonly;              /* nbdkit itself refuses writes then */
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
delaymem_get_size (void *handle)
{
  (void) handle;
  return size;
}

static int
answer_yes (void *handle)
{
  (void) handle;
  return 1;
}

static int
delaymem_can_fua (void *handle)
{
  (void) handle;
  return NBDKIT_FUA_NATIVE;
}

static int
delaymem_can_cache (void *handle)
{
  (void) handle;
  return NBDKIT_CACHE_NATIVE;
}

/* Data, on nbdkit's threads. */

static int
do_sync (const struct service_op *op)
{
  const uint64_t delay = delay_of (op);
  const uint64_t start = delay ? clock_ns () : 0;

  if (is_refused (op))
    return fail (EOPNOTSUPP);
  apply (op);
  if (delay)
    wait_for_the_rest (start, delay);
  return 0;
}

static int
delaymem_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  return do_sync (&(struct service_op) {
      handle, 0, READ, flags, count, offset, { .to = buf } });
}

static int
delaymem_pwrite (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  return do_sync (&(struct service_op) {
      handle, 0, WRITE, flags, count, offset, { .from = buf } });
}

#define DEFINE_RANGE_CALLBACK(op, kind)                                 \
  static int                                                            \
  delaymem_##op (void *handle, uint32_t count, uint64_t offset,         \
                 uint32_t flags)                                        \
  {                                                                     \
    return do_sync (&(struct service_op) {                              \
        handle, 0, kind, flags, count, offset, { NULL } });             \
  }
DEFINE_RANGE_CALLBACK (zero, ZERO)
DEFINE_RANGE_CALLBACK (trim, TRIM)
DEFINE_RANGE_CALLBACK (cache, CACHE)

/* Callbacks that do not wait. */

static int
delaymem_flush (void *handle, uint32_t flags)
{
  (void) handle;
  (void) flags;
  return 0;
}

static int
delaymem_extents (void *handle, uint32_t count, uint64_t offset,
                  uint32_t flags, struct nbdkit_extents *extents)
{
  const uint64_t end = offset + count;
  uint64_t n;
  bool written;

  (void) handle;
  for (; offset < end; offset += n) {
    n = store_run (store, end - offset, offset, &written);
    if (nbdkit_add_extent (extents, offset, n, written ? 0 :
                           NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO) == -1)
      return -1;
    if (flags & NBDKIT_FLAG_REQ_ONE)
      break;
  }
  return 0;
}

/* Data, for asyncpool. */

/* Without a delay there is nothing to queue for. */
static int
do_async (const struct service_op *op)
{
  const uint64_t delay = delay_of (op);
  int r;

  if (delay == 0) {
    apply (op);
    reply (op);
    return 0;
  }
  r = service_submit (service, op, delay);
  return r == 0 ? 0 : fail (r);
}

static int
hook_pread (void *conn, uint64_t reqid, bool flush, void *handle,
            void *buf, uint32_t count, uint64_t offset)
{
  (void) flush;
  (void) handle;
  return do_async (&(struct service_op) {
      conn, reqid, READ, 0, count, offset, { .to = buf } });
}

static int
hook_pwrite (void *conn, uint64_t reqid, bool flush, void *handle,
             const void *buf, uint32_t count, uint64_t offset)
{
  (void) flush;
  (void) handle;
  return do_async (&(struct service_op) {
      conn, reqid, WRITE, 0, count, offset, { .from = buf } });
}

/* A cancelled operation is done all the same, only sooner. */
static void
hook_cancel (void *conn, uint64_t reqid, void *handle)
{
  struct service_op op;

  (void) handle;
  if (service && service_cancel (service, conn, reqid, &op)) {
    apply (&op);
    reply (&op);
  }
}

static struct nbdkit_plugin plugin = {
  .name              = "delaymem",
  .longname          = "nbdkit in-memory device with latency",
  .description       = "A device in memory with a latency per operation.",
  .unload            = delaymem_unload,
#if HAS_CLEANUP
  .cleanup           = delaymem_cleanup,
#endif
  .config            = delaymem_config,
  .config_complete   = delaymem_config_complete,
  .config_help       = delaymem_config_help,
  .magic_config_key  = "size",
  .dump_plugin       = delaymem_dump_plugin,
  .get_ready         = delaymem_get_ready,
  .after_fork        = delaymem_after_fork,
  .open              = delaymem_open,
  .get_size          = delaymem_get_size,
  .can_multi_conn    = answer_yes,
  .can_fast_zero     = answer_yes,
  .can_fua           = delaymem_can_fua,
  .can_cache         = delaymem_can_cache,
  .pread             = delaymem_pread,
  .pwrite            = delaymem_pwrite,
  .zero              = delaymem_zero,
  .trim              = delaymem_trim,
  .flush             = delaymem_flush,
  .cache             = delaymem_cache,
  .extents           = delaymem_extents,
  .errno_is_preserved = 1,
};

static struct nbdkit_async hooks = {
  .async_pread       = hook_pread,
  .async_pwrite      = hook_pwrite,
  .async_cancel      = hook_cancel,
  .grace_ms          = 1,       /* hook_cancel leaves nothing to wait for */
  .prefer_callbacks  = true,
};

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
