/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit-async: asynchronous hooks for nbdkit plugins, on a stock nbdkit (1.24
 * or later).
 *
 * The idea, and the names of async_pread, async_pwrite and the three replies,
 * come from a patch to nbdkit of 2017 that was never merged.  A hook starts an
 * operation and returns.  The plugin owes a reply, which it gives later, from
 * any thread.  nbdkit-async-plugin(3) says where this departs from the patch,
 * and why.
 *
 *   #define NBDKIT_API_VERSION 2
 *   #include <nbdkit-plugin.h>
 *   #include <nbdkit-async.h>
 *   #define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC
 *
 *   static struct nbdkit_plugin plugin = {
 *     .name = "example", .open = ..., .get_size = ...
 *   };
 *   static struct nbdkit_async hooks = {
 *     .async_pread = ..., .async_pwrite = ...
 *   };
 *   NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
 *
 * Link with libnbdkit-async.a (pkg-config nbdkit-async).  The result is an
 * ordinary plugin.  Without asyncpool nbdkit's worker threads wait for the
 * replies (in flight: nbdkit -t).  With the asyncpool filter directly above,
 * the filter drives the hooks and no thread waits.
 */
#ifndef NBDKIT_ASYNC_H
#define NBDKIT_ASYNC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <nbdkit-plugin.h>

#include <nbdkit-async-driver.h>

#if NBDKIT_API_VERSION != 2
#error "nbdkit-async.h: define NBDKIT_API_VERSION as 2 before nbdkit-plugin.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The thread model of a plugin with hooks: for nbdkit the parallel one, as
 * hooks are called from several threads at once.
 */
#define NBDKIT_THREAD_MODEL_ASYNC NBDKIT_THREAD_MODEL_PARALLEL

/* Compatibility: fields are only added at the end of this struct, from the old
 * sizeof on (not in its padding), and none is removed or changes its meaning.
 * The plugin passes the size that it was compiled with, and the library reads
 * no byte behind it.  So an object file that was compiled with an older header
 * works with a newer library: fields that it does not know are zero.  Fields
 * that the library does not know are ignored.
 *
 * The variable may be changed in .config and .config_complete.  The library
 * copies it for the last time before it calls .get_ready; later changes have no
 * effect.  A hook that is NULL in plugin_init stays unused by nbdkit.  A hook
 * is set to NULL only where there is a callback of the same name.
 */

/* The hooks.  All may be NULL.  A hook that is left out is done by the callback
 * of the same name in struct nbdkit_plugin, if there is one.  Where both are
 * there the hook is used (but see prefer_callbacks).
 *
 * conn, reqid: to be handed back with the reply.  They mean nothing to the
 *   plugin.  reqid never repeats.
 * handle: what .open returned.  .close is called when all requests on it were
 *   replied to or given up.
 * count, offset: bytes, inside the device.  count is at least 1, below 4 GiB.
 * buf: COUNT bytes, the plugin's until it has replied.  A read fills them, a
 *   write only reads them.
 * flush: write through to permanent storage (FUA), as far as .can_fua says
 *   NBDKIT_FUA_NATIVE.
 * flags: NBDKIT_FLAG_* as for the callback of the same name.
 *
 * Hooks are called from any thread, several at a time, with no lock held, after
 * .open and before .close.  A hook must not wait for another reply.  It returns
 * 0 when the plugin owes exactly one reply (it may have given it already).  It
 * returns -1 when it has failed, and there will be no reply.  The error is what
 * nbdkit_set_error or (with .errno_is_preserved) errno says, else EIO.
 *
 * A hook must not call what asks nbdkit about this thread's connection:
 * nbdkit_export_name, nbdkit_peer_name and all other nbdkit_peer_*,
 * nbdkit_is_tls, nbdkit_nanosleep, nbdkit_disconnect, nbdkit_strdup_intern and
 * the other *_intern.  asyncpool calls hooks from threads that nbdkit does not
 * know: from its pool, from its linger thread, and inside a reply from the
 * plugin's own threads.  There these calls fail, or do not see the
 * connection.  What a plugin needs to know of a connection it keeps in its
 * handle from .open.  asyncpool never calls a hook for one connection on
 * nbdkit's thread of another one.
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
  /* The library waits for this reply no longer.  The plugin may give it now,
   * from inside this hook, and then it counts.  When the hook returns, the
   * plugin does not touch the request's buf, and a write, zero or trim has
   * taken effect or never will.  A reply that still comes is ignored.  The
   * library calls this hook after the request's hook has returned, from any
   * thread, and only for requests that were not replied to when the call began.
   *
   * Without this hook nbdkit's requests run on copies of their data, and
   * asyncpool does not drive the hooks.  A copy is kept until the reply comes,
   * however late.  So that clients that break off do not fill the memory with
   * them, copies that only wait for a late reply have a bound of 256 MiB, as
   * much as four of NBD's largest requests.  A read or write whose copy would
   * exceed it fails with ENOMEM, until the plugin has replied to some of what
   * it owes.  nbdkit's log says so.  Requests that are under way when the bound
   * is reached may come on top when they are given up.
   */
  void (*async_cancel) (void *conn, uint64_t reqid, void *handle);

  /* How long, in ms, the library waits for replies when the client has gone
   * or the server shuts down.  The time begins then, and anew at each reply to
   * a request that was in flight then.  A reply that is given while
   * async_cancel runs does not count.  0: 30000.  A client that has closed its
   * sending side has gone, but replies within this time reach it.
   */
  uint32_t grace_ms;

  /* True: where both are there, nbdkit's own requests use the callback.  The
   * hooks are for asyncpool, which starts reads and writes.  A thread of
   * nbdkit's waits for each of its own requests in any case, and this saves
   * the way through another thread.  Callbacks and hooks run side by side
   * then, also on one handle, and what runs in a callback is not cancelled.
   */
  bool prefer_callbacks;
};

/* nbdkit loads plugins with RTLD_GLOBAL.  Hidden symbols keep each plugin's
 * library its own.
 */
#pragma GCC visibility push(hidden)

/* The replies.  They are given from any thread, also before the hook has
 * returned, and with any lock of the plugin's held, as no reply calls a hook.
 * Each request gets exactly one.  A second one, or one to an unknown request,
 * is reported in nbdkit's log and does nothing.  They never block for a client.
 */

/* Done.  Of a read: BUF of the hook has been filled. */
extern void nbdkit_async_reply (void *conn, uint64_t reqid);
/* A read is done.  Copies the COUNT bytes at BUF, which are the plugin's again
 * on return.  COUNT must be what the hook was given: anything else is answered
 * with EIO and reported.
 */
extern void nbdkit_async_reply_read (void *conn, uint64_t reqid,
                                     uint32_t count, const void *buf);
/* Failed.  The error is what this thread said last with nbdkit_set_error, or
 * (with .errno_is_preserved) errno; EIO where there is none.
 */
extern void nbdkit_async_reply_error (void *conn, uint64_t reqid);
/* Failed with ERR, a positive errno.  Not in the patch. */
extern void nbdkit_async_reply_errno (void *conn, uint64_t reqid, int err);

/* nbdkit keeps what nbdkit_set_error says for its own threads only.  This keeps
 * it for any thread.  A source file that calls nbdkit_set_error for a hook or a
 * reply and does not include this header calls nbdkit's: the error becomes EIO,
 * as if nothing had been said.
 */
extern void nbdkit_async_set_error (int err);
#define nbdkit_set_error(err) nbdkit_async_set_error (err)

/* From now on the callbacks are used and not the hooks, also by asyncpool.
 * Only from .config or .config_complete.  Returns -1, having said why, where a
 * hook has no callback of the same name.
 */
extern int nbdkit_async_disable (void);

/* NBDKIT_REGISTER_ASYNC_PLUGIN calls these.  The size is that of struct
 * nbdkit_async in the header that the plugin was compiled with.
 */
extern struct nbdkit_plugin *
nbdkit_async_register (struct nbdkit_plugin *, const struct nbdkit_async *,
                       size_t);
extern const struct nbdkit_async_driver *nbdkit_async_get_driver (void);

#pragma GCC visibility pop

/* What the macro below defines.  nbdkit 1.24 has no name for this attribute. */
#define NBDKIT_ASYNC_PUBLIC __attribute__ ((visibility ("default")))
NBDKIT_ASYNC_PUBLIC extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_ASYNC_PUBLIC extern const struct nbdkit_async_driver *
nbdkit_async_driver_v1 (void);

#ifdef __cplusplus
}
#endif

/* In place of NBDKIT_REGISTER_PLUGIN.  Both arguments are variables, not
 * pointers.  The macro defines plugin_init, as that one does, and the symbol by
 * which asyncpool finds the hooks.
 */
#define NBDKIT_REGISTER_ASYNC_PLUGIN(plugin, hooks)                         \
  NBDKIT_CXX_LANG_C NBDKIT_ASYNC_PUBLIC                                     \
  struct nbdkit_plugin *                                                    \
  plugin_init (void)                                                        \
  {                                                                         \
    (plugin)._struct_size = sizeof (plugin);                                \
    (plugin)._api_version = NBDKIT_API_VERSION;                             \
    (plugin)._thread_model = THREAD_MODEL;                                  \
    return nbdkit_async_register (&(plugin), &(hooks), sizeof (hooks));     \
  }                                                                         \
  NBDKIT_CXX_LANG_C NBDKIT_ASYNC_PUBLIC                                     \
  const struct nbdkit_async_driver *                                        \
  nbdkit_async_driver_v1 (void)                                             \
  {                                                                         \
    return nbdkit_async_get_driver ();                                      \
  }

#endif
