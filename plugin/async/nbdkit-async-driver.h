/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a filter drives the hooks of a plugin that was made with
 * nbdkit-async.h.  Plugin authors need nothing of this file.
 *
 * The plugin exports nbdkit_async_driver_v1.  It must be called only by a
 * filter that sits directly on the plugin: hooks that are driven go past any
 * filter in between.
 */
#ifndef NBDKIT_ASYNC_DRIVER_H
#define NBDKIT_ASYNC_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

/* One read or write on its way.  The caller's from before start until done is
 * called.
 */
struct nbdkit_async_io {
  /* The caller's; constant while it runs. */
  void *handle;                 /* from claim */
  void *buf;                    /* a write only reads it */
  uint32_t count;               /* bytes */
  uint64_t offset;
  bool is_write;
  /* Called once, from any thread, also before start has returned, but not
   * before the hook has.  ERR: 0 or a positive errno.
   */
  void (*done) (struct nbdkit_async_io *, int err);
  /* The plugin's side. */
  uint64_t reqid;
};

/* Constant from the plugin's .get_ready on, which nbdkit calls before that of
 * any filter.  Neither struct has a size: when one of them changes, the symbol
 * gets another number.
 */
struct nbdkit_async_driver {
  bool can_read, can_write;     /* which hooks are there */
  /* Without it, start nothing: what the plugin does not reply to could not be
   * ended.
   */
  bool can_cancel;
  uint64_t grace_ns;
  /* The handle of the connection that was opened last on this thread, once: a
   * second call says false.  A filter asks right after its next_open.
   */
  bool (*claim) (void **handle);
  /* Starts an operation.  Called with no lock held that done takes. */
  void (*start) (struct nbdkit_async_io *);
  /* Ends one that the plugin does not reply to, and logs that.  True: done
   * will not be called, and the plugin is through with the buffer.  False:
   * done was called, is being called or will be called, or start was not
   * called.  The io must be there meanwhile.  Called with no lock held that done takes.  Waits
   * for a hook that is still running.
   */
  bool (*give_up) (struct nbdkit_async_io *);
};

typedef const struct nbdkit_async_driver *nbdkit_async_driver_function (void);

#endif
