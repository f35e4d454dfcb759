/* SPDX-License-Identifier: BSD-3-Clause
 *
 * delaymem: an in-memory device where every operation takes a while.
 *
 * This file is the glue: options, what waits for how long, and nbdkit's
 * callbacks.  The bytes are in store, times and clock in latency, operations
 * that wait in service.
 *
 * An operation of nbdkit's own is applied on arrival, and the thread that
 * nbdkit called sleeps for the rest of its time.  One that asyncpool starts is
 * queued on arrival, applied by a service thread near the end of its time, and
 * answered then.  Either way the time counts from the arrival, and copying is
 * part of the latency, not added to it; and what ends a wait early applies the
 * operation if that is still to do, so nothing that was taken is lost.
 *
 * State: the options, the store and the service are written before the first
 * connection and constant from then on.  No locks here.
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
#define FAST_BLOCK (128 * 1024)
#define MAX_FAST 1000000

/* The end of every wait is a plain sleep, because nbdkit_nanosleep logs an
 * error per call when the server shuts down.  So only longer waits are cut
 * short, and shutdown takes up to this long: less than a person notices.
 */
#define PLAIN_SLEEP_NS UINT64_C (250000000)

static int64_t size = DEFAULT_SIZE;
static uint64_t delay_ns = DEFAULT_DELAY_NS;
static uint64_t rdelay_ns = NOT_GIVEN;
static uint64_t wdelay_ns = NOT_GIVEN;
static unsigned fast;           /* one block in so many has no delay; 0: none */
static bool populate;
static unsigned io_threads = DEFAULT_IO_THREADS;

static struct store *store;
static struct service *service; /* NULL without io-threads */

/* Options. */

static int
config_size (const char *value)
{
  int64_t r = nbdkit_parse_size (value);

  if (r > 0)
    size = r;
  else                          /* for r < 0 nbdkit has said why */
    nbdkit_error ("size=%s: must be a number greater than 0, "
                  "with one of the suffixes b, s, k, M, G, T, P, E or none",
                  value);
  return r > 0 ? 0 : -1;
}

static int
config_delay (const char *key, const char *value, uint64_t *ns)
{
  switch (latency_parse (value, ns)) {
  case 0:
    return 0;
  case ERANGE:
    nbdkit_error ("%s=%s: must be at most 3600s (one hour)", key, value);
    return -1;
  default:
    nbdkit_error ("%s=%s: must be a time such as 64ms, 250us, 10ns, 1.5s "
                  "or 1.5 (seconds), from 0 to 3600s in steps of 1ns",
                  key, value);
    return -1;
  }
}

static int
config_populate (const char *value)
{
  int r = nbdkit_parse_bool (value);

  if (r == -1) {                /* nbdkit's line does not name the parameter */
    nbdkit_error ("populate=%s: must be true or false", value);
    return -1;
  }
  populate = r;
  return 0;
}

/* Not nbdkit_parse_unsigned, whose line does not name the parameter. */
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

/* Here, not in config, so that the order on the command line is free. */
static int
delaymem_config_complete (void)
{
  if (rdelay_ns == NOT_GIVEN)
    rdelay_ns = delay_ns;
  if (wdelay_ns == NOT_GIVEN)
    wdelay_ns = delay_ns;
  return io_threads > 0 ? 0 : nbdkit_async_disable ();
}

#define delaymem_config_help                                            \
  "[size=]<SIZE>   (default 1G) Size of the device.\n"                  \
  "delay=<TIME>    (default 64ms) How long each operation takes.\n"     \
  "rdelay=<TIME>   (default: delay) The same for reads only.\n"         \
  "wdelay=<TIME>   (default: delay) The same for writes, zeroes, trims.\n" \
  "fast=<N>        (default 0) One block of 128 KiB in N takes no time. 0: none.\n" \
  "populate=<BOOL> (default false) Take all memory at the start.\n"     \
  "io-threads=<N>  (default 2) Threads that serve what asyncpool starts, 64\n" \
  "                at most. 0: no hooks, each operation sleeps on a thread.\n" \
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

/* The number after PREFIX in a line of FILE, times SCALE; UINT64_MAX if there
 * is none.
 */
static uint64_t
number_in_file (const char *file, const char *prefix, uint64_t scale)
{
  uint64_t r = UINT64_MAX;
  const char *number;
  char line[128];
  FILE *fp = fopen (file, "re");

  if (fp == NULL)
    return UINT64_MAX;
  while (r == UINT64_MAX && fgets (line, sizeof line, fp)) {
    if (strncmp (line, prefix, strlen (prefix)) != 0)
      continue;
    number = line + strlen (prefix);
    number += strspn (number, " ");
    if (*number >= '0' && *number <= '9')
      r = strtoull (number, NULL, 10);
  }
  fclose (fp);
  return r > UINT64_MAX / scale ? UINT64_MAX : r * scale;
}

/* What can be taken before the kernel kills someone, as far as it says. */
static uint64_t
available_bytes (void)
{
  const uint64_t limits[] = {
    number_in_file ("/proc/meminfo", "MemAvailable:", 1024),
    number_in_file ("/sys/fs/cgroup/memory.max", "", 1),
    number_in_file ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "", 1),
  };
  uint64_t r = UINT64_MAX;

  for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++)
    if (limits[i] < r)
      r = limits[i];
  return r;
}

static int
delaymem_get_ready (void)
{
  const uint64_t available = populate ? available_bytes () : UINT64_MAX;

  if ((uint64_t) size > available) {
    nbdkit_error ("populate=true: size=%" PRIi64 " does not fit into "
                  "the available memory of %" PRIu64 " bytes",
                  size, available);
    return -1;
  }
  store = store_new ((uint64_t) size);
  if (store == NULL) {
    nbdkit_error ("size=%" PRIi64 ": cannot reserve that many bytes of "
                  "address space: %m", size);
    return -1;
  }
  return 0;
}

/* What an operation is. */

enum kind { READ, WRITE, ZERO, TRIM, CACHE };

/* Where an operation begins decides whether it is fast. */
static uint64_t
delay_of (const struct service_op *op)
{
  if (fast > 0 && op->offset / FAST_BLOCK % fast == 0)
    return 0;
  return op->kind == READ || op->kind == CACHE ? rdelay_ns : wdelay_ns;
}

/* What is written is at once as durable as it will ever be, so FUA asks for
 * nothing more.
 */
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
  case CACHE:     /* it would read, but has no faster place to put it */
    break;
  }
}

/* Where pages must stay, zeroing fills them as a write would. */
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

/* The shortest sleep fails when the server shuts down; it logs that. */
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

/* After the fork: pages taken before it would be copied at the first write,
 * for as long as the parent lives (nbdkit --run), and threads would be gone.
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

/* Before nbdkit 1.26 there is no .cleanup, and .unload ends the threads. */
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

/* Without a delay, no clock is asked. */
static uint64_t
arrival (uint64_t delay)
{
  return delay ? clock_ns () : 0;
}

/* The operation is done already; if the server shuts down or the client is
 * gone, it is only answered sooner.
 */
static void
wait_for_the_rest (uint64_t arrival_ns, uint64_t delay)
{
  uint64_t now, long_part;

  if (delay == 0)
    return;
  if (delay > PLAIN_SLEEP_NS) {
    now = clock_ns ();
    long_part = arrival_ns + delay - PLAIN_SLEEP_NS;
    long_part = long_part > now ? long_part - now : 0;
    if (long_part > 0 &&
        nbdkit_nanosleep ((unsigned) (long_part / LATENCY_NS_PER_S),
                          (unsigned) (long_part % LATENCY_NS_PER_S)) == -1)
      return;
  }
  latency_sleep_until (arrival_ns + delay);
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

/* Data, synchronously. */

static int
do_sync (const struct service_op *op)
{
  const uint64_t delay = delay_of (op);
  const uint64_t start = arrival (delay);

  if (is_refused (op))
    return fail (EOPNOTSUPP);
  apply (op);
  wait_for_the_rest (start, delay);
  return 0;
}

static int
delaymem_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  (void) handle;
  (void) flags;
  return do_sync (&(struct service_op) {
      .kind = READ, .buf.to = buf, .count = count, .offset = offset,
    });
}

static int
delaymem_pwrite (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  (void) handle;
  (void) flags;
  return do_sync (&(struct service_op) {
      .kind = WRITE, .buf.from = buf, .count = count, .offset = offset,
    });
}

static int
delaymem_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle;
  return do_sync (&(struct service_op) {
      .kind = ZERO, .count = count, .offset = offset, .flags = flags,
    });
}

static int
delaymem_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle;
  return do_sync (&(struct service_op) {
      .kind = TRIM, .count = count, .offset = offset, .flags = flags,
    });
}

static int
delaymem_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle;
  return do_sync (&(struct service_op) {
      .kind = CACHE, .count = count, .offset = offset, .flags = flags,
    });
}

/* What does not wait. */

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

/* Data, asynchronously. */

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
      .conn = conn, .reqid = reqid, .kind = READ,
      .buf.to = buf, .count = count, .offset = offset,
    });
}

static int
hook_pwrite (void *conn, uint64_t reqid, bool flush, void *handle,
             const void *buf, uint32_t count, uint64_t offset)
{
  (void) flush;
  (void) handle;
  return do_async (&(struct service_op) {
      .conn = conn, .reqid = reqid, .kind = WRITE,
      .buf.from = buf, .count = count, .offset = offset,
    });
}

/* What was taken is done, and answered, only sooner. */
static void
hook_cancel (void *conn, uint64_t reqid, void *handle)
{
  struct service_op op;

  (void) handle;
  if (service && service_cancel (service, conn, reqid, &op)) {
    apply (&op);
    nbdkit_async_reply (conn, reqid);
  }
}

static struct nbdkit_plugin plugin = {
  .name              = "delaymem",
  .longname          = "nbdkit in-memory device with latency",
  .description       = "A device in memory where each operation takes a while.",
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
  .grace_ms          = 1,       /* cancelled is done, so there is nothing to wait for */
  .prefer_callbacks  = true,
};

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
