/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a filter drives the hooks of a plugin that was made with nbdkit-async.h.  Plugin authors need
 * nothing of this file.
 *
 * The plugin exports nbdkit_async_driver_v1.  It must be called only by a filter that sits directly
 * on the plugin: hooks that are driven go past any filter in between.
 */
#ifndef NBDKIT_ASYNC_DRIVER_H
#define NBDKIT_ASYNC_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

/* One read or write on its way.  The caller's from before start until done is called. */
struct nbdkit_async_io {
  /* The caller's; constant while it runs. */
  void *handle;                 /* from claim */
  void *buf;                    /* a write only reads it */
  uint32_t count;               /* bytes */
  uint64_t offset;
  bool is_write;
  /* Called once, from any thread, also before start has returned.  ERR: 0 or a positive errno. */
  void (*done) (struct nbdkit_async_io *, int err);
  /* The plugin's side. */
  uint64_t reqid;
};

enum nbdkit_async_given_up {
  NBDKIT_ASYNC_REPLIED,         /* too late: done is being, or will be, called */
  NBDKIT_ASYNC_CANCELLED,       /* done will not be called, the buffer is not used any more */
  NBDKIT_ASYNC_ABANDONED        /* done will not be called; the plugin may use the buffer for ever */
};

struct nbdkit_async_driver {
  bool can_read, can_write;     /* which hooks are there */
  bool can_cancel;              /* give_up never says ABANDONED */
  uint64_t grace_ns;
  /* The handle of the connection that was opened last on this thread, once: a second call says
   * false.  A filter asks right after its next_open.
   */
  bool (*claim) (void **handle);
  /* Starts an operation.  Called with no lock held that done takes. */
  void (*start) (struct nbdkit_async_io *);
  /* Ends one that the plugin does not reply to, and logs that.  Only after start was called and while
   * done has not returned; the caller sees to that, and holds no lock that done takes.  Waits for a
   * hook that is still running.
   */
  enum nbdkit_async_given_up (*give_up) (struct nbdkit_async_io *);
};

typedef const struct nbdkit_async_driver *nbdkit_async_driver_function (void);

#endif
