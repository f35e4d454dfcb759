/* SPDX-License-Identifier: BSD-3-Clause
 *
 * olderror.so: a plugin that fails without an error, on a thread where an older
 * operation has set one.
 *
 * Each operation calls nbdkit_set_error (ENOSPC) and succeeds.  A write at ARM
 * arms the plugin.  From then on an operation that touches [BAD, BAD_END) fails
 * and sets no error.  nbdkit takes that for EIO.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

enum { SIZE = 1 << 20, ARM = 512 << 10, BAD = 64 << 10, BAD_END = 128 << 10 };

static char device[SIZE];
static atomic_bool is_armed;

static int
operate (uint64_t offset, uint32_t count)
{
  usleep (5000);
  if (atomic_load (&is_armed) && offset < BAD_END && BAD < offset + count)
    return -1;
  nbdkit_set_error (ENOSPC);
  return 0;
}

static void *
olderror_open (int readonly)
{
  (void) readonly;
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
olderror_get_size (void *handle)
{
  (void) handle;
  return SIZE;
}

static int
olderror_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  (void) handle;
  (void) flags;
  if (operate (offset, count) == -1)
    return -1;
  memcpy (buf, device + offset, count);
  return 0;
}

static int
olderror_pwrite (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  (void) handle;
  (void) flags;
  if (operate (offset, count) == -1)
    return -1;
  memcpy (device + offset, buf, count);
  if (offset == ARM)
    atomic_store (&is_armed, true);
  return 0;
}

static int
olderror_flush (void *handle, uint32_t flags)
{
  (void) handle;
  (void) flags;
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "olderror",
  .open = olderror_open,
  .get_size = olderror_get_size,
  .pread = olderror_pread,
  .pwrite = olderror_pwrite,
  .flush = olderror_flush,
};

/* nbdkit's macro declares no prototype, and clang asks for one. */
extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
