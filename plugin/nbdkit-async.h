/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit-async: asynchronous hooks for nbdkit plugins, on a stock nbdkit (1.24 or later).
 *
 * The idea, and the names of async_pread, async_pwrite and the three replies, come from a patch to
 * nbdkit of 2017 that was never merged.  A hook starts an operation and returns; the plugin owes a
 * reply, which it gives later, from any thread.  Where this departs from the patch, and why, is in
 * nbdkit-async-plugin(3).
 *
 *   #define NBDKIT_API_VERSION 2
 *   #include <nbdkit-plugin.h>
 *   #include <nbdkit-async.h>
 *   #define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC
 *
 *   static struct nbdkit_plugin plugin = { .name = "example", .open = ..., .get_size = ... };
 *   static struct nbdkit_async hooks = { .async_pread = ..., .async_pwrite = ... };
 *   NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
 *
 * Link with libnbdkit-async.a (pkg-config nbdkit-async).  The result is an ordinary plugin: without
 * asyncpool nbdkit's worker threads wait for the replies (in flight: nbdkit -t); with the asyncpool
 * filter directly above, the filter drives the hooks and no thread waits.
 */
#ifndef NBDKIT_ASYNC_H
#define NBDKIT_ASYNC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <nbdkit-plugin.h>

#include <nbdkit-async-driver.h>

#if NBDKIT_API_VERSION != 2
#error "nbdkit-async.h: define NBDKIT_API_VERSION as 2 before nbdkit-plugin.h is included"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The thread model of a plugin with hooks: for nbdkit the parallel one, as hooks are called from
 * several threads at once.
 */
#define NBDKIT_THREAD_MODEL_ASYNC NBDKIT_THREAD_MODEL_PARALLEL

/* The hooks.  All may be NULL; what is left out is done by the callback of the same name in struct
 * nbdkit_plugin, if there is one.  Where both are there the hook is used (but see prefer_callbacks).
 *
 * conn, reqid: to be handed back with the reply; mean nothing to the plugin.  reqid never repeats.
 * handle: what .open returned.  .close is called when all requests on it were replied to or given up.
 * count, offset: bytes, inside the device.  count is at least 1 and below 4 GiB.
 * buf: COUNT bytes, the plugin's until it has replied: a read fills them, a write reads them only.
 * flush: write through to permanent storage (FUA), as far as .can_fua says NBDKIT_FUA_NATIVE.
 * flags: NBDKIT_FLAG_* as for the callback of the same name.
 *
 * Called from any thread, several at a time, with no lock held, after .open and before .close.  Must
 * not wait for another reply.  Return 0: the plugin owes exactly one reply (it may have given it
 * already).  Return -1: failed, and there will be no reply; the error is what nbdkit_set_error or
 * (with .errno_is_preserved) errno says, else EIO.
 */
struct nbdkit_async {
  int (*async_pread) (void *conn, uint64_t reqid, bool flush, void *handle,
                      void *buf, uint32_t count, uint64_t offset);
  int (*async_pwrite) (void *conn, uint64_t reqid, bool flush, void *handle,
                       const void *buf, uint32_t count, uint64_t offset);
  /* Not in the patch. */
  int (*async_flush) (void *conn, uint64_t reqid, void *handle, uint32_t flags);
  int (*async_zero) (void *conn, uint64_t reqid, void *handle,
                     uint32_t count, uint64_t offset, uint32_t flags);
  int (*async_trim) (void *conn, uint64_t reqid, void *handle,
                     uint32_t count, uint64_t offset, uint32_t flags);
  int (*async_cache) (void *conn, uint64_t reqid, void *handle,
                      uint32_t count, uint64_t offset, uint32_t flags);
  /* This reply is not waited for any longer.  It may be given now, from inside this hook, and counts
   * then.  When the hook returns, the plugin does not touch the request's buf, a write, zero or trim
   * has taken effect or never will, and a reply that still comes is ignored.  Called after the
   * request's hook has returned, from any thread, and only for requests that were not replied to when
   * the call began.  Without this hook nbdkit's requests run on copies of their data, which are kept
   * until the reply comes, however late, and asyncpool does not drive the hooks.
   */
  void (*async_cancel) (void *conn, uint64_t reqid, void *handle);

  /* How long, in ms, replies are waited for on behalf of a client that has gone or while the server
   * shuts down, counted from then or from the last reply to any request of the time before, whichever
   * was later; one that is given while async_cancel runs does not count.  0: 30000.  .config may set
   * it.
   */
  uint32_t grace_ms;

  /* True: hooks may be called from inside a reply, on the thread that gives it, and so inside the hook or
   * the async_cancel that gave it.  Replies are given with no lock held that a hook takes, and neither
   * errno nor nbdkit_set_error's value outlives one.  asyncpool then copies the data of a write that
   * waits for a buffer, up to 256 KiB, and starts it where another has ended, with no thread to wake
   * first.  Inside a reply inside a reply no hook is called.
   */
  bool reentrant;

  /* True: where both are there, nbdkit's own requests use the callback, and hooks are for asyncpool,
   * which starts reads and writes.  A thread of nbdkit's waits for each of its own in any case, and this
   * spares it the way through another one.  Callbacks and hooks run side by side then, on one handle,
   * too, and what runs in a callback is not cancelled.
   */
  bool prefer_callbacks;
};

/* nbdkit loads plugins with RTLD_GLOBAL: what is linked into this one stays its own. */
#pragma GCC visibility push(hidden)

/* The replies.  From any thread, also before the hook has returned, and holding any lock of the
 * plugin's, as no reply calls a hook (but see reentrant); exactly one for each request.  A second one,
 * or one to an unknown request, is reported in nbdkit's log and does nothing.  They never block for a
 * client.
 */

/* Done.  Of a read: BUF of the hook has been filled. */
extern void nbdkit_async_reply (void *conn, uint64_t reqid);
/* A read is done; copies the COUNT bytes at BUF, which are the plugin's again on return.  COUNT must
 * be what the hook was given: anything else is answered with EIO and reported.
 */
extern void nbdkit_async_reply_read (void *conn, uint64_t reqid, uint32_t count, const void *buf);
/* Failed.  The error is what this thread said last with nbdkit_set_error, or (with
 * .errno_is_preserved) errno; EIO where there is none.
 */
extern void nbdkit_async_reply_error (void *conn, uint64_t reqid);
/* Failed with ERR, a positive errno.  Not in the patch. */
extern void nbdkit_async_reply_errno (void *conn, uint64_t reqid, int err);

/* nbdkit keeps what nbdkit_set_error says for its own threads only.  This keeps it for any.  A source
 * file that does not include this header, and calls nbdkit_set_error for a hook or a reply, calls
 * nbdkit's: the error becomes EIO, as if nothing had been said.
 */
extern void nbdkit_async_set_error (int err);
#define nbdkit_set_error(err) nbdkit_async_set_error (err)

/* From now on the callbacks are used and not the hooks, also by asyncpool.  Only from .config or
 * .config_complete.  Returns -1, having said why, where a hook has no callback of the same name.
 */
extern int nbdkit_async_disable (void);

/* Behind NBDKIT_REGISTER_ASYNC_PLUGIN. */
extern struct nbdkit_plugin *nbdkit_async_register (struct nbdkit_plugin *,
                                                    const struct nbdkit_async *);
extern const struct nbdkit_async_driver *nbdkit_async_get_driver (void);

#pragma GCC visibility pop

/* What the macro below defines.  nbdkit 1.24 has no name for this attribute. */
#define NBDKIT_ASYNC_PUBLIC __attribute__ ((visibility ("default")))
NBDKIT_ASYNC_PUBLIC extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_ASYNC_PUBLIC extern const struct nbdkit_async_driver *nbdkit_async_driver_v1 (void);

#ifdef __cplusplus
}
#endif

/* In place of NBDKIT_REGISTER_PLUGIN: both arguments are variables, not pointers.  Defines
 * plugin_init, as that does, and the one symbol by which asyncpool finds the hooks.
 */
#define NBDKIT_REGISTER_ASYNC_PLUGIN(plugin, hooks)                             \
  NBDKIT_CXX_LANG_C NBDKIT_ASYNC_PUBLIC                                         \
  struct nbdkit_plugin *                                                        \
  plugin_init (void)                                                            \
  {                                                                             \
    (plugin)._struct_size = sizeof (plugin);                                    \
    (plugin)._api_version = NBDKIT_API_VERSION;                                 \
    (plugin)._thread_model = THREAD_MODEL;                                      \
    return nbdkit_async_register (&(plugin), &(hooks));                         \
  }                                                                             \
  NBDKIT_CXX_LANG_C NBDKIT_ASYNC_PUBLIC                                         \
  const struct nbdkit_async_driver *                                            \
  nbdkit_async_driver_v1 (void)                                                 \
  {                                                                             \
    return nbdkit_async_get_driver ();                                          \
  }

#endif
