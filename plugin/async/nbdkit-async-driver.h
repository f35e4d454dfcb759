/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The interface through which a filter calls the hooks of a plugin that was
 * made with nbdkit-async.h.  Plugin authors need nothing of this file.
 *
 * The plugin exports nbdkit_async_driver_v1.  Only a filter directly above the
 * plugin may call it, because these operations go past any filter in between.
 */
#ifndef NBDKIT_ASYNC_DRIVER_H
#define NBDKIT_ASYNC_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

/* One read or write.  It belongs to the library from start until done is called
 * or give_up returns true.
 */
struct nbdkit_async_io {
  /* The filter's; constant meanwhile. */
  void *handle;                 /* from claim */
  void *buf;                    /* COUNT bytes; a write only reads them */
  uint32_t count;               /* bytes, 1 to 64 MiB */
  uint64_t offset;              /* bytes */
  bool is_write;
  /* Called once, on any thread.  The call may come before start has returned,
   * but not before the hook has.  ERR: 0 or a positive errno.
   */
  void (*done) (struct nbdkit_async_io *, int err);
  /* The library's. */
  uint64_t reqid;
};

/* Constant from the plugin's .get_ready on, which nbdkit calls before that of
 * any filter.  Neither struct has a size: if one of them changes, the symbol
 * gets another number.
 */
struct nbdkit_async_driver {
  bool can_read, can_write;     /* which hooks are there */
  /* False: start nothing, because give_up could not end an operation. */
  bool can_cancel;
  uint64_t grace_ns;            /* struct nbdkit_async's grace_ms */

  /* Gets the handle of the connection that this thread opened last.  Returns
   * false the second time.  A filter calls it right after its next_open.
   */
  bool (*claim) (void **handle);

  /* Starts an operation.  Every error goes to done: ENOMEM, or the plugin's.
   * The caller holds no lock that done takes.
   */
  void (*start) (struct nbdkit_async_io *);

  /* Ends an operation without a reply, and logs that.  Returns true when done
   * will not be called, and the plugin no longer touches the buffer.  Returns
   * false when done was or will be called, or start was not called.
   *
   * The io must exist during the call.  The call waits for a hook that is still
   * running.  The caller holds no lock that done takes.
   */
  bool (*give_up) (struct nbdkit_async_io *);
};

typedef const struct nbdkit_async_driver *nbdkit_async_driver_function (void);

#endif
