/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The device below: one connection's way into the plugin.
 *
 * The rest of the filter knows the plugin only through this table, so that it runs in a unit test
 * against a fake.  Every call is timed here, for the statistics and for pace.h.
 *
 * Callbacks: offset and count in bytes, inside the device.  They return 0 or a positive errno and
 * may be called from any thread, several at a time.
 *
 * A read or write is either called, and the calling thread waits; or it is a backend_io.  One of
 * those is done on whichever thread calls backend_io_do, or, where we may drive the plugin's async
 * hooks, started by backend_io_start; then no thread waits, and the plugin replies when it likes.
 */
#ifndef ASYNCPOOL_BACKEND_H
#define ASYNCPOOL_BACKEND_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-async-driver.h>

struct pace;
struct stats;

enum { BACKEND_FUA = 1, BACKEND_MAY_TRIM = 2, BACKEND_FAST_ZERO = 4 };

struct backend_ops {
  int (*pread) (void *handle, void *buf, uint32_t count, uint64_t offset);
  int (*pwrite) (void *handle, const void *buf, uint32_t count, uint64_t offset, unsigned flags);
  int (*zero) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*trim) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*flush) (void *handle);
  /* Whether the client of this thread has gone or the server shuts down. */
  bool (*is_gone) (void *handle);
};

struct backend {
  const struct backend_ops *ops;
  void *handle;
  uint64_t size;                /* bytes */
  uint32_t min_block;           /* power of two, 1 where the plugin has no constraint */
  uint32_t max_block;           /* UINT32_MAX where it has none */
  bool can_write, can_flush;
  bool shared;                  /* all connections to this export see one device (multi-conn) */
  struct pace *pace_read, *pace_write;
  atomic_uint *pieces;          /* of requests, that hooks are at, of all connections */
  unsigned max_pieces;
  struct stats *stats;
  const struct nbdkit_async_driver *hooks;      /* NULL where we may not drive any */
  void *hooks_handle;
  /* Atomic. */
  atomic_uint_fast64_t gone_ns;         /* the connection began to end, 0: has not */
  atomic_uint_fast64_t alive_ns;        /* a hook's last reply, or start since then */
};

struct backend_io {
  struct nbdkit_async_io hook;  /* first; buf, count, offset, is_write are the caller's to set */
  struct backend *backend;
  /* Called once, on any thread.  A hook's: the plugin may hold locks, see backend_may_start. */
  void (*done) (struct backend_io *, int err);
  uint64_t start_ns, end_ns;    /* end: when done is called */
  atomic_bool giving_up;        /* its reply may be given by whichever thread the plugin has */
};

extern int backend_pread (struct backend *, void *buf, uint32_t count, uint64_t offset);
extern int backend_pwrite (struct backend *, const void *buf, uint32_t count, uint64_t offset,
                           unsigned flags);

/* Does it on this thread, done () included. */
extern void backend_io_do (struct backend_io *);
/* Whether there is a hook for it. */
extern bool backend_has_hook (const struct backend *, bool is_write);
/* Calls the hook.  Hold no lock that done () takes. */
extern void backend_io_start (struct backend_io *);
/* Whether it may be called here: not inside a reply. */
extern bool backend_may_start (void);

/* The calling thread begins a call for a connection: forgets what it knew of a
 * client that has gone.
 */
extern void backend_begin_call (void);
/* A call that waits for a hook's reply checks every BACKEND_POLL_NS whether to
 * go on.  It gives up when the thread's client has gone or this connection
 * ends, and the grace time has passed since then, since the plugin's last reply
 * to any hook and since the last start.  The thread's client need not be this
 * connection's: giving up ends this call only, and nothing that belongs to the
 * connection.  Call without locks.
 */
#define BACKEND_POLL_NS UINT64_C (250000000)
/* The connection ends. */
extern void backend_set_gone (struct backend *);
extern bool backend_is_hopeless (struct backend *);
/* Then this ends what was started: calls done (io, ESHUTDOWN), unless the plugin replies just now. */
extern void backend_io_give_up (struct backend_io *);

#endif
