/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The plugin as nbdkit and a filter see it.  This file has the registration, a
 * wrapper in place of each callback that has a hook, and the driver.
 * requests.c has the requests that the hooks do.
 *
 * The library is linked into each plugin, so each plugin has its own state.
 * Everything here is written by .get_ready at the latest, before there are
 * threads, and constant from then on.  There are no locks.
 */

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

#define DEFAULT_GRACE_MS 30000

/* The operations that have a hook and a callback of the same name. */
#define FOR_EACH_OPERATION(X) \
  X (pread) X (pwrite) X (flush) X (zero) X (trim) X (cache)

struct nbdkit_async nbdkit_async_hooks;
static struct nbdkit_async *const hooks = &nbdkit_async_hooks;

__thread int nbdkit_async_error;

static struct nbdkit_plugin *plugin;
static struct nbdkit_plugin author;     /* before the wrappers were put in */
static const struct nbdkit_async *given;        /* NULL: disabled */
static size_t given_size;       /* smaller if its header is older than ours */
static bool is_given_final;     /* the author changes nothing any more */

/* The handle that .open returned last on this thread; NULL: claimed. */
static __thread void *opened;

/* Errors. */

void
nbdkit_async_set_error (int err)
{
  nbdkit_async_error = err;
  (nbdkit_set_error) (err);     /* for callbacks */
}

int
nbdkit_async_take_error (int errno_now)
{
  int err = nbdkit_async_error;

  nbdkit_async_error = 0;
  if (err <= 0 && plugin->errno_is_preserved)
    err = errno_now;
  return err > 0 ? err : EIO;
}

/* Hooks. */

int
nbdkit_async_call_hook (const struct operation *op, void *buf, uint64_t reqid)
{
  void *h = op->handle;
  bool fua = op->flags & NBDKIT_FLAG_FUA;
  int r = -1;

  nbdkit_async_error = 0;
  errno = 0;
  switch (op->kind) {
  case READ:
    r = hooks->async_pread (h, reqid, fua, h, buf, op->count, op->offset);
    break;
  case WRITE:
    r = hooks->async_pwrite (h, reqid, fua, h, buf, op->count, op->offset);
    break;
  case FLUSH:
    r = hooks->async_flush (h, reqid, h, op->flags);
    break;
  case ZERO:
    r = hooks->async_zero (h, reqid, h, op->count, op->offset, op->flags);
    break;
  case TRIM:
    r = hooks->async_trim (h, reqid, h, op->count, op->offset, op->flags);
    break;
  case CACHE:
    r = hooks->async_cache (h, reqid, h, op->count, op->offset, op->flags);
    break;
  }
  return r == 0 ? 0 : nbdkit_async_take_error (errno);
}

/* Wrappers of the data callbacks.  nbdkit's calls go to the hook or to the
 * author's callback.
 */

#define IS_HOOKED(op) \
  (hooks->async_##op && !(hooks->prefer_callbacks && author.op))

static int
perform (const struct operation *op)
{
  int err = nbdkit_async_perform (op);

  if (err == 0)
    return 0;
  (nbdkit_set_error) (err);
  errno = err;                  /* on threads that nbdkit does not know */
  return -1;
}

static int
wrap_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  if (!IS_HOOKED (pread))
    return author.pread (handle, buf, count, offset, flags);
  return perform (&(struct operation) { READ, handle, buf, count, offset,
                                        flags });
}

static int
wrap_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  void *data = (void *) (uintptr_t) buf;        /* only read */

  if (!IS_HOOKED (pwrite))
    return author.pwrite (handle, buf, count, offset, flags);
  return perform (&(struct operation) { WRITE, handle, data, count, offset,
                                        flags });
}

static int
wrap_flush (void *handle, uint32_t flags)
{
  if (!IS_HOOKED (flush))
    return author.flush (handle, flags);
  return perform (&(struct operation) { FLUSH, handle, NULL, 0, 0, flags });
}

#define DEFINE_RANGE_WRAPPER(op, kind)                                      \
  static int                                                                \
  wrap_##op (void *handle, uint32_t count, uint64_t offset, uint32_t flags) \
  {                                                                         \
    if (!IS_HOOKED (op))                                                    \
      return author.op (handle, count, offset, flags);                      \
    return perform (&(struct operation) { kind, handle, NULL, count,        \
                                          offset, flags });                 \
  }
DEFINE_RANGE_WRAPPER (zero, ZERO)
DEFINE_RANGE_WRAPPER (trim, TRIM)
DEFINE_RANGE_WRAPPER (cache, CACHE)

/* The driver. */

static bool
claim (void **handle)
{
  *handle = opened;
  opened = NULL;
  return *handle != NULL;
}

static struct nbdkit_async_driver own_driver = {
  .claim = claim,
  .start = nbdkit_async_start,
  .give_up = nbdkit_async_give_up,
};

/* Copies the author's struct.  The author may change it until .get_ready, so
 * each call until then makes a new copy.  Fields that the plugin's header does
 * not know are zero.
 */
static void
read_hooks (void)
{
  if (is_given_final)
    return;
  memset (hooks, 0, sizeof *hooks);
  if (given)
    memcpy (hooks, given,
            given_size < sizeof *hooks ? given_size : sizeof *hooks);
  if (hooks->grace_ms == 0)
    hooks->grace_ms = DEFAULT_GRACE_MS;
  own_driver.can_read = hooks->async_pread;
  own_driver.can_write = hooks->async_pwrite;
  own_driver.can_cancel = hooks->async_cancel;
  own_driver.grace_ns = hooks->grace_ms * MS;
}

const struct nbdkit_async_driver *
nbdkit_async_get_driver (void)
{
  if (!plugin)
    return NULL;
  read_hooks ();
  return &own_driver;
}

/* Wrappers of the other callbacks. */

static void *
wrap_open (int readonly)
{
  opened = NULL;
  return opened = author.open (readonly);
}

/* nbdkit calls this before it forks, and before any filter's .get_ready. */
static int
wrap_get_ready (void)
{
  read_hooks ();
  is_given_final = true;
  return author.get_ready ? author.get_ready () : 0;
}

/* The author's .unload ends the plugin's threads: no reply comes after it. */
static void
wrap_unload (void)
{
  if (author.unload)
    author.unload ();
  nbdkit_async_free_requests ();
}

static void
wrap_dump_plugin (void)
{
  read_hooks ();
#define PRINT_HOOK(op)                          \
  if (hooks->async_##op)                        \
    printf ("has_async_" #op "=1\n");
  FOR_EACH_OPERATION (PRINT_HOOK)
  PRINT_HOOK (cancel)
  if (author.dump_plugin)
    author.dump_plugin ();
}

/* Registration. */

/* A hook without a callback that could take its place; NULL: none. */
static const char *
find_hook_alone (void)
{
#define RETURN_IF_ALONE(op)                     \
  if (hooks->async_##op && !author.op)          \
    return #op;
  FOR_EACH_OPERATION (RETURN_IF_ALONE)
  return NULL;
}

/* The wrappers stay where nbdkit has them, and find no hooks. */
int
nbdkit_async_disable (void)
{
  const char *alone;

  read_hooks ();
  alone = find_hook_alone ();
  if (alone) {
    nbdkit_error ("nbdkit_async_disable: there is async_%s, but no .%s to take "
                  "its place", alone, alone);
    return -1;
  }
  given = NULL;
  read_hooks ();
  return 0;
}

/* nbdkit copies the struct when this returns.  It reports a NULL result, and
 * each required callback that is missing.
 */
struct nbdkit_plugin *
nbdkit_async_register (struct nbdkit_plugin *p, const struct nbdkit_async *h,
                       size_t size)
{
  if (p->_api_version != 2) {
    nbdkit_error ("%s: async hooks need NBDKIT_API_VERSION 2, this plugin has "
                  "%d", p->name ? p->name : "plugin", p->_api_version);
    return NULL;
  }
  plugin = p;
  /* It may have been compiled with an older header, which knew less. */
  memcpy (&author, p, p->_struct_size < sizeof author
          ? p->_struct_size : sizeof author);
  given = h;
  given_size = size;
  is_given_final = false;
  read_hooks ();
#define WRAP_HOOKED(op)                         \
  if (hooks->async_##op)                        \
    p->op = wrap_##op;
  FOR_EACH_OPERATION (WRAP_HOOKED)
  if (p->open)
    p->open = wrap_open;
  p->get_ready = wrap_get_ready;
  p->unload = wrap_unload;
  p->dump_plugin = wrap_dump_plugin;
  return p;
}
