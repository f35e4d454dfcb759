/* SPDX-License-Identifier: BSD-3-Clause
 *
 * replay.so: the device of record.so after a power cut.
 *
 * The export name is MOMENT.SEED, a moment of the log (record.h) and a number.
 * Each connection has its own image, and may write to it.  The image has all
 * changes that were durable at this moment.  Of the others, complete or in
 * flight, it has
 *
 *   SEED 0       none
 *   SEED 1       all
 *   odd SEED     some, and of these some sectors
 *   even SEED    some, each as a whole
 *
 * Changes go into the image in the order in which they completed.  A sector
 * then holds its durable data or that of a later change.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "record.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS

enum kind { READ, WRITE, ZERO, TRIM, FLUSH };   /* of operations.h */

static char *path;
static int64_t size;
static const char *log_start;
static uint64_t log_bytes;

struct image {
  uint64_t moment, seed, draws;
  uint32_t percent;             /* of the changes that are not durable */
  char *data;
};

static uint32_t
draw (struct image *i, uint32_t limit)
{
  uint64_t x = i->seed * UINT64_C (0x9e3779b97f4a7c15)
    + ++i->draws * UINT64_C (0xbf58476d1ce4e5b9);

  x = (x ^ x >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C (0x94d049bb133111eb);
  return (x ^ x >> 31) % limit;
}

/* The record at *AT.  *AT becomes its end.  Returns NULL at the end. */
static const struct record *
next_record (uint64_t *at, struct record *r)
{
  if (log_bytes - *at < sizeof *r)
    return NULL;
  memcpy (r, log_start + *at, sizeof *r);
  *at += sizeof *r + record_data (r);
  return *at <= log_bytes ? r : NULL;
}

/* Changes that ended by this moment are durable. */
static uint64_t
find_durable (const struct image *i)
{
  struct record r;
  uint64_t durable = 0;

  for (uint64_t at = 0; next_record (&at, &r) && at <= i->moment;)
    if (r.kind == FLUSH && r.started > durable)
      durable = r.started;
  return durable;
}

static void
apply (struct image *i, const struct record *r, const char *data,
       uint32_t from, uint32_t count)
{
  char *to = i->data + r->offset + from;

  if (r->kind == WRITE)
    memcpy (to, data + from, count);
  else
    memset (to, 0, count);
}

/* A change that may be there. */
static void
apply_some (struct image *i, const struct record *r, const char *data)
{
  uint32_t n;

  if (i->seed == 0 || (i->seed > 1 && draw (i, 100) >= i->percent))
    return;
  for (uint32_t from = 0; from < r->count; from += n) {
    n = r->count - from;
    if (i->seed > 1 && i->seed % 2 == 1) {
      n = n < RECORD_SECTOR ? n : RECORD_SECTOR;
      if (draw (i, 2))
        continue;
    }
    apply (i, r, data, from, n);
  }
}

static void
build (struct image *i)
{
  uint64_t durable = find_durable (i), at = 0;
  const char *data;
  struct record r;

  i->percent = (const uint32_t []) { 10, 50, 90 } [draw (i, 3)];
  while (next_record (&at, &r)) {
    data = log_start + at - record_data (&r);
    if (r.kind == FLUSH)
      continue;
    if (at <= durable || (at <= i->moment && r.fua))
      apply (i, &r, data, 0, r.count);
    else if (at <= i->moment || r.started < i->moment)
      apply_some (i, &r, data);
  }
}

/* Callbacks. */

static int
replay_config (const char *key, const char *value)
{
  if (strcmp (key, "log") == 0) {
    path = nbdkit_absolute_path (value);
    return path ? 0 : -1;
  }
  if (strcmp (key, "size") == 0) {
    size = nbdkit_parse_size (value);
    return size == -1 ? -1 : 0;
  }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

#define replay_config_help "size=BYTES log=FILE"

static int
replay_get_ready (void)
{
  struct stat st;
  int fd = path ? open (path, O_RDONLY | O_CLOEXEC) : -1;
  void *map;

  if (fd == -1 || fstat (fd, &st) == -1) {
    nbdkit_error ("log=%s: %m", path ? path : "");
    return -1;
  }
  log_bytes = st.st_size;
  map = mmap (NULL, log_bytes, PROT_READ, MAP_SHARED, fd, 0);
  close (fd);
  if (map == MAP_FAILED) {
    nbdkit_error ("log=%s: mmap: %m", path);
    return -1;
  }
  log_start = map;
  return 0;
}

static void
replay_unload (void)
{
  free (path);
}

static void *
replay_open (int readonly)
{
  struct image *i = calloc (1, sizeof *i);
  const char *name = nbdkit_export_name ();

  (void) readonly;
  if (!i || !name || sscanf (name, "%" SCNu64 ".%" SCNu64, &i->moment,
                             &i->seed) != 2) {
    nbdkit_error ("export name %s: must be MOMENT.SEED", name ? name : "");
    free (i);
    return NULL;
  }
  i->data = calloc (1, size);
  if (!i->data) {
    nbdkit_error ("%m");
    free (i);
    return NULL;
  }
  build (i);
  return i;
}

static void
replay_close (void *handle)
{
  struct image *i = handle;

  free (i->data);
  free (i);
}

static int64_t
replay_get_size (void *handle)
{
  (void) handle;
  return size;
}

static int
replay_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  struct image *i = handle;

  (void) flags;
  memcpy (buf, i->data + offset, count);
  return 0;
}

static int
replay_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  struct image *i = handle;

  (void) flags;
  memcpy (i->data + offset, buf, count);
  return 0;
}

static int
replay_flush (void *handle, uint32_t flags)
{
  (void) handle;
  (void) flags;
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "replay",
  .version = "1",
  .config = replay_config,
  .config_help = replay_config_help,
  .get_ready = replay_get_ready,
  .unload = replay_unload,
  .open = replay_open,
  .close = replay_close,
  .get_size = replay_get_size,
  .pread = replay_pread,
  .pwrite = replay_pwrite,
  .flush = replay_flush,
};

/* nbdkit's macro declares no prototype, and clang asks for one. */
extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
