/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit-async: asynchronous hooks for nbdkit plugins, on a stock nbdkit (1.24
 * or later).  nbdkit-async-plugin(3) is the manual.
 *
 * A hook starts an operation and returns.  The plugin replies later, from any
 * thread.
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
 * ordinary plugin.  Without asyncpool each request occupies a thread of nbdkit
 * until the reply, so nbdkit -t is the queue depth.  With the asyncpool filter
 * directly above the plugin, the filter calls the hooks and no thread waits.
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

/* The thread model of a plugin with hooks.  nbdkit sees the parallel model,
 * because several threads call hooks at the same time.
 */
#define NBDKIT_THREAD_MODEL_ASYNC NBDKIT_THREAD_MODEL_PARALLEL

/* The hooks.
 *
 * Each may be NULL.  nbdkit's callback of the same name then does the work, if
 * the plugin has it.  Where both are there, the library uses the hook (but see
 * prefer_callbacks).
 *
 * Arguments:
 *   conn, reqid   name the request; the plugin passes them to the reply.  They
 *                 have no other meaning.  No reqid comes twice.
 *   handle        the result of .open.  nbdkit calls .close when every request
 *                 on it has its reply or is given up.
 *   count         bytes: 1 to 64 MiB for a read or write, else below 4 GiB
 *   offset        bytes; offset + count is at most the size of the device
 *   buf           COUNT bytes, which the plugin may use until its reply.  A
 *                 read fills them.  A write only reads them.
 *   flush         the write must be on permanent storage before the reply
 *                 (FUA).  Only where .can_fua returns NBDKIT_FUA_NATIVE.
 *   flags         NBDKIT_FLAG_* as for the callback of the same name
 *
 * Result: 0 when the plugin has taken the operation.  It then replies exactly
 * once, or has replied already.  -1 when the operation has failed and no reply
 * follows.  The error is the one that the hook gave nbdkit_set_error; else,
 * with .errno_is_preserved, errno; else EIO.
 *
 * Threads: any thread calls hooks, several at a time, with no lock held, after
 * .open and before .close of the handle.  A hook must not wait for the reply to
 * another request.
 *
 * asyncpool calls hooks on threads that nbdkit does not know.  So a hook must
 * not ask nbdkit about the connection: nbdkit_export_name, nbdkit_is_tls,
 * nbdkit_peer_*, nbdkit_nanosleep, nbdkit_disconnect and nbdkit_*_intern do not
 * work there.  A plugin asks in .open and keeps the result in its handle.
 * asyncpool never calls a hook for one connection on nbdkit's thread of another
 * one.
 *
 * Compatibility: new fields are added only behind the old sizeof, and no field
 * is removed or changes its meaning.  The plugin passes the size that it was
 * compiled with, and the library reads no byte behind it.  So an object file
 * that was compiled with an older header works with a newer library: fields
 * that it does not know are zero.  The library ignores fields that it does not
 * know itself.
 *
 * .config and .config_complete may change the variable.  The library copies it
 * for the last time before .get_ready.  A hook that is NULL at registration
 * stays unused by nbdkit.  A hook may be set to NULL only where there is a
 * callback of the same name.
 */
struct nbdkit_async {
  int (*async_pread) (void *conn, uint64_t reqid, bool flush, void *handle,
                      void *buf, uint32_t count, uint64_t offset);
  int (*async_pwrite) (void *conn, uint64_t reqid, bool flush, void *handle,
                       const void *buf, uint32_t count, uint64_t offset);
  int (*async_flush) (void *conn, uint64_t reqid, void *handle, uint32_t flags);
  int (*async_zero) (void *conn, uint64_t reqid, void *handle,
                     uint32_t count, uint64_t offset, uint32_t flags);
  int (*async_trim) (void *conn, uint64_t reqid, void *handle,
                     uint32_t count, uint64_t offset, uint32_t flags);
  int (*async_cache) (void *conn, uint64_t reqid, void *handle,
                      uint32_t count, uint64_t offset, uint32_t flags);

  /* The library stops waiting for this reply.  The plugin may give it from
   * inside this hook, and then it counts.  When the hook returns, the plugin no
   * longer touches the request's buf.  A write, zero or trim has then taken
   * effect, or never will.  The library ignores a reply that still comes.
   *
   * Any thread calls this hook, after the request's own hook has returned, and
   * only for requests that had no reply when the call began.
   *
   * Without this hook, nbdkit's requests run on copies of their data, and
   * asyncpool does not call hooks.  A copy stays until the reply comes, however
   * late.  Copies that only wait for a late reply take 256 MiB at most, four
   * times the largest request.  A read or write whose copy would exceed that
   * fails with ENOMEM, and nbdkit's log says so.  This ends when the plugin has
   * replied to some of the older requests.  Requests that are in flight when
   * the bound is reached may exceed it when they are given up.
   */
  void (*async_cancel) (void *conn, uint64_t reqid, void *handle);

  /* How long the library waits for replies when the client has gone or the
   * server shuts down, in ms.  0: 30000.  The time begins at that moment, and
   * again at each reply to a request that was in flight at that moment.  A
   * reply that comes while async_cancel runs does not count.  A client that has
   * closed its sending side counts as gone, but replies within this time reach
   * it.
   */
  uint32_t grace_ms;

  /* True: if there are a hook and a callback of the same name, nbdkit's own
   * requests use the callback.  Only asyncpool uses the hook, for reads and
   * writes.  A thread of nbdkit waits for each of nbdkit's own requests in any
   * case.  If it does the work itself, no other thread has to wake it.
   * Callbacks and hooks then run side by side, also on one handle.  An
   * operation in a callback is not cancelled.
   */
  bool prefer_callbacks;
};

/* nbdkit loads plugins with RTLD_GLOBAL.  Hidden symbols keep each plugin's
 * library its own.
 */
#pragma GCC visibility push(hidden)

/* The replies.
 *
 * Each request gets exactly one.  A second reply, or one to an unknown request,
 * does nothing but write a line to nbdkit's log.
 *
 * Threads: any thread may reply, also before the hook has returned.  It may
 * hold any lock of the plugin, because no reply calls a hook.  A reply never
 * waits for a client.  No reply is allowed after .unload.
 */

/* Success.  For a read: the plugin has filled the hook's buf. */
extern void nbdkit_async_reply (void *conn, uint64_t reqid);

/* Success of a read.  The library copies COUNT bytes from BUF, which is the
 * plugin's again on return.  COUNT must be the hook's.  Otherwise, and for a
 * request that is not a read, the request fails with EIO and the log says so.
 */
extern void nbdkit_async_reply_read (void *conn, uint64_t reqid,
                                     uint32_t count, const void *buf);

/* Failure.  The error is the last one that this thread gave nbdkit_set_error
 * since its last reply; else, with .errno_is_preserved, errno; else EIO.
 */
extern void nbdkit_async_reply_error (void *conn, uint64_t reqid);

/* Failure with ERR, a positive errno.  Any other number counts as EIO, and the
 * log says so.
 */
extern void nbdkit_async_reply_errno (void *conn, uint64_t reqid, int err);

/* Sets the error of this thread's next reply or failed hook: a positive errno.
 * It works on any thread.  nbdkit's own function works on nbdkit's threads
 * only.  A source file that does not include this header calls nbdkit's, and
 * the error becomes EIO.
 */
extern void nbdkit_async_set_error (int err);
#define nbdkit_set_error(err) nbdkit_async_set_error (err)

/* From now on nbdkit and asyncpool use the callbacks and no hook.  Call it only
 * in .config or .config_complete.  Returns 0; or -1, with a line in the log,
 * if a hook has no callback of the same name.
 */
extern int nbdkit_async_disable (void);

/* For NBDKIT_REGISTER_ASYNC_PLUGIN only.  SIZE: that of struct nbdkit_async in
 * the header that the plugin was compiled with.  Returns NULL, with a line in
 * the log, if the plugin's API version is not 2.
 */
extern struct nbdkit_plugin *
nbdkit_async_register (struct nbdkit_plugin *, const struct nbdkit_async *,
                       size_t size);
extern const struct nbdkit_async_driver *nbdkit_async_get_driver (void);

#pragma GCC visibility pop

/* The macro below defines these.  nbdkit 1.24 has no name for the attribute. */
#define NBDKIT_ASYNC_PUBLIC __attribute__ ((visibility ("default")))
NBDKIT_ASYNC_PUBLIC extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_ASYNC_PUBLIC extern const struct nbdkit_async_driver *
nbdkit_async_driver_v1 (void);

#ifdef __cplusplus
}
#endif

/* Use it in place of NBDKIT_REGISTER_PLUGIN.  Both arguments are variables, not
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
