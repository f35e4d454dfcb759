/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fan-out: one request that a client waits for, over several idle workers.
 *
 * The request is cut at multiples of UNIT, into no more pieces than there are
 * idle workers and the caller, which does one piece itself.  A request within
 * one unit, or without an idle worker, is one call on the caller's thread.
 * All pieces have ended when it returns.
 *
 * A piece that fails on a worker is done again on the caller's thread, and
 * that result counts: nbdkit keeps a plugin's error code per thread of its
 * own, and on any other thread every error reads EIO.
 *
 * Where the filter may drive the plugin's async hooks, these do the pieces: at
 * most 64 of a request, and of all requests as many as there are buffers.
 * Their errors are the plugin's own.
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
