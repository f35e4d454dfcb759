/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The declarations that the two files of libnbdkit-async.a share.  It is not
 * installed.
 *
 * nbdkit-async.c is the plugin as nbdkit sees it: the registration, wrappers of
 * callbacks, and the calls of the hooks.  requests.c has each request from its
 * start to its end.  All names have the library's prefix, because the files are
 * linked with the author's own.
 */
#ifndef NBDKIT_ASYNC_INTERNAL_H
#define NBDKIT_ASYNC_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "nbdkit-async.h"

#define MS UINT64_C (1000000)   /* ns */

enum kind { READ, WRITE, FLUSH, ZERO, TRIM, CACHE };

struct operation {
  enum kind kind;
  void *handle;
  void *buf;                    /* the requester's; a write only reads it */
  uint32_t count;
  uint64_t offset;
  uint32_t flags;
};

/* In nbdkit-async.c. */

/* The hooks in use.  Constant from .get_ready on. */
extern struct nbdkit_async nbdkit_async_hooks;
/* The error that this thread set last; 0: none since the last reply or hook. */
extern __thread int nbdkit_async_error;
/* Takes that error; else, with .errno_is_preserved, ERRNO_NOW; else EIO. */
extern int nbdkit_async_take_error (int errno_now);
/* BUF: the requester's, or a copy.  Returns 0 or the hook's error. */
extern int nbdkit_async_call_hook (const struct operation *, void *buf,
                                   uint64_t reqid);

/* In requests.c. */

/* One request of nbdkit's, on its thread, until the reply.  Returns 0 or an
 * errno.
 */
extern int nbdkit_async_perform (const struct operation *);
/* struct nbdkit_async_driver describes these. */
extern void nbdkit_async_start (struct nbdkit_async_io *);
extern bool nbdkit_async_give_up (struct nbdkit_async_io *);
/* Call it when no reply comes any more. */
extern void nbdkit_async_free_requests (void);

#endif /* NBDKIT_ASYNC_INTERNAL_H */
