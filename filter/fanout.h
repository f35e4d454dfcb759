/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fan-out: spreads one request that a client waits for over several idle
 * workers.
 *
 * The request is cut at multiples of UNIT, into no more pieces than there are
 * idle workers and the caller, which does one piece itself.  A request within
 * one unit, or without an idle worker, is one call on the caller's thread.
 * All pieces have ended when it returns.
 *
 * If a piece fails on a worker, the caller's thread does it again, and that
 * result counts.  nbdkit keeps a plugin's error code only for threads of its
 * own.  On any other thread every error becomes EIO.
 *
 * If the filter may drive the plugin's async hooks, these do the pieces.  A
 * request has at most 64 pieces.  All requests together have at most as many
 * pieces in hooks as there are buffers.  The errors are the plugin's own.
 *
 * Returns 0, or the errno of the first piece in offset order that failed.
 */
#ifndef ASYNCPOOL_FANOUT_H
#define ASYNCPOOL_FANOUT_H

#include <stdint.h>

struct backend;
struct pool;

extern int fanout_pread (struct pool *, struct backend *, uint32_t unit,
                         void *buf, uint32_t count, uint64_t offset);
extern int fanout_pwrite (struct pool *, struct backend *, uint32_t unit,
                          const void *buf, uint32_t count, uint64_t offset);

#endif
