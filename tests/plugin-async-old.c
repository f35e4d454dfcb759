/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A plugin that was compiled with an older nbdkit-async.h, whose struct
 * nbdkit_async ends after async_pwrite.  It is linked with the present library.
 * The bytes behind its struct are not hooks: a call of one would crash it.
 *
 * It is a disk in memory, and replies at once.
 */
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define nbdkit_async todays_nbdkit_async
#include <nbdkit-async.h>
#undef nbdkit_async

#define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC

struct nbdkit_async {
  int (*async_pread) (void *conn, uint64_t reqid, bool flush, void *handle,
                      void *buf, uint32_t count, uint64_t offset);
  int (*async_pwrite) (void *conn, uint64_t reqid, bool flush, void *handle,
                       const void *buf, uint32_t count, uint64_t offset);
};

/* For the compiler it is another struct. */
#define nbdkit_async_register(plugin, hooks, size) \
  nbdkit_async_register (plugin, (const void *) (hooks), size)

static char disk[16 << 20];

static int
old_pread (void *conn, uint64_t reqid, bool flush, void *handle, void *buf,
           uint32_t count, uint64_t offset)
{
  (void) flush;
  (void) handle;
  memcpy (buf, disk + offset, count);
  nbdkit_async_reply (conn, reqid);
  return 0;
}

static int
old_pwrite (void *conn, uint64_t reqid, bool flush, void *handle,
            const void *buf, uint32_t count, uint64_t offset)
{
  (void) flush;
  (void) handle;
  memcpy (disk + offset, buf, count);
  nbdkit_async_reply (conn, reqid);
  return 0;
}

static void *
old_open (int readonly)
{
  (void) readonly;
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
old_get_size (void *handle)
{
  (void) handle;
  return sizeof disk;
}

static struct nbdkit_plugin plugin = {
  .name = "old",
  .open = old_open,
  .get_size = old_get_size,
};

static struct {
  struct nbdkit_async hooks;
  uintptr_t behind[16];
} poisoned = {
  .hooks = { .async_pread = old_pread, .async_pwrite = old_pwrite },
  .behind = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 },
};

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, poisoned.hooks)
