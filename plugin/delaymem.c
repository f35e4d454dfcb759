/* SPDX-License-Identifier: BSD-3-Clause
 *
 * delaymem: an in-memory device where every operation takes a while.
 *
 * This file is the glue: options, what waits for how long, and nbdkit's
 * callbacks.  The bytes are in store, times and clock in latency.
 *
 * An operation is applied on arrival and answered when its time is over,
 * counted from the arrival: copying is part of the latency, not added to it.
 * Therefore nothing that ends a wait early can lose data.
 *
 * State: the options and the store are written before the first connection
 * and constant from then on.  No locks here.
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

#include "latency.h"
#include "store.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define DEFAULT_SIZE (INT64_C (1) << 30)
#define DEFAULT_DELAY_NS UINT64_C (64000000)
#define NOT_GIVEN UINT64_MAX

/* The end of every wait is a plain sleep, because nbdkit_nanosleep logs an
 * error per call when the server shuts down.  So only longer waits are cut
 * short, and shutdown takes up to this long: less than a person notices.
 */
#define PLAIN_SLEEP_NS UINT64_C (250000000)

static int64_t size = DEFAULT_SIZE;
static uint64_t delay_ns = DEFAULT_DELAY_NS;
static uint64_t rdelay_ns = NOT_GIVEN;
static uint64_t wdelay_ns = NOT_GIVEN;
static bool populate;

static struct store *store;

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

  nbdkit_error ("unknown parameter '%s': delaymem has size, delay, rdelay, "
                "wdelay and populate", key);
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
  return 0;
}

#define delaymem_config_help                                            \
  "[size=]<SIZE>   (default 1G) Size of the device.\n"                  \
  "delay=<TIME>    (default 64ms) How long each operation takes.\n"     \
  "rdelay=<TIME>   (default: delay) The same for reads only.\n"         \
  "wdelay=<TIME>   (default: delay) The same for writes, zeroes, trims.\n" \
  "populate=<BOOL> (default false) Take all memory at the start.\n"     \
  "<TIME> is 64ms, 250us, 10ns, 1.5s or 1.5 (seconds), 3600s at most."

static void
delaymem_dump_plugin (void)
{
  printf ("delaymem_default_size=%" PRIi64 "\n", DEFAULT_SIZE);
  printf ("delaymem_default_delay=%" PRIu64 "ms\n",
          DEFAULT_DELAY_NS / 1000000);
  printf ("delaymem_max_delay=%" PRIu64 "s\n",
          LATENCY_MAX_NS / LATENCY_NS_PER_S);
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

/* After the fork: pages taken before it would be copied at the first write,
 * for as long as the parent lives (nbdkit --run).
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
  return 0;
}

static void
delaymem_unload (void)
{
  store_free (store);
}

/* Waiting. */

/* Without a delay, no clock is asked. */
static uint64_t
arrival (uint64_t delay)
{
  return delay ? latency_now_ns () : 0;
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
    now = latency_now_ns ();
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

/* Data.  What is written is at once as durable as it will ever be, so FUA
 * asks for nothing more.
 */

static int
delaymem_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  const uint64_t start = arrival (rdelay_ns);

  (void) handle;
  (void) flags;
  store_read (store, buf, count, offset);
  wait_for_the_rest (start, rdelay_ns);
  return 0;
}

static int
delaymem_pwrite (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  const uint64_t start = arrival (wdelay_ns);

  (void) handle;
  (void) flags;
  store_write (store, buf, count, offset);
  wait_for_the_rest (start, wdelay_ns);
  return 0;
}

static int
delaymem_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const uint64_t start = arrival (wdelay_ns);
  const bool may_trim = flags & NBDKIT_FLAG_MAY_TRIM;

  (void) handle;
  /* Where pages must stay, zeroing fills them as a write would. */
  if ((flags & NBDKIT_FLAG_FAST_ZERO) && !may_trim) {
    nbdkit_set_error (EOPNOTSUPP);
    errno = EOPNOTSUPP;
    return -1;
  }
  store_zero (store, count, offset, may_trim);
  wait_for_the_rest (start, wdelay_ns);
  return 0;
}

static int
delaymem_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const uint64_t start = arrival (wdelay_ns);

  (void) handle;
  (void) flags;
  store_zero (store, count, offset, true);
  wait_for_the_rest (start, wdelay_ns);
  return 0;
}

static int
delaymem_flush (void *handle, uint32_t flags)
{
  (void) handle;
  (void) flags;
  return 0;
}

/* The device would read, but has no faster place to put it. */
static int
delaymem_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle;
  (void) count;
  (void) offset;
  (void) flags;
  wait_for_the_rest (arrival (rdelay_ns), rdelay_ns);
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

static struct nbdkit_plugin plugin = {
  .name              = "delaymem",
  .longname          = "nbdkit in-memory device with latency",
  .description       = "A device in memory where each operation takes a while.",
  .unload            = delaymem_unload,
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

NBDKIT_REGISTER_PLUGIN (plugin)
