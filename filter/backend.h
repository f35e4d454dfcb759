/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The backend: one connection's way into the plugin, and the only caller of
 * its data operations, except cache (asyncpool.c).
 *
 * Reads, writes and block status are timed here, for the statistics and for
 * speed.h.  The rest of the filter knows the plugin only through struct
 * backend_ops, so that it runs in a unit test over a fake.
 *
 * There are two kinds of reads and writes.  backend_pread and backend_pwrite
 * return when the operation has completed.  An operation in a struct backend_io
 * calls done () when it completes.  backend_io_do does it on the calling
 * thread.  If the filter may drive the plugin's async hooks, backend_io_start
 * starts it.  Then no thread waits, and the plugin replies later.
 */
#ifndef ASYNCPOOL_BACKEND_H
#define ASYNCPOOL_BACKEND_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-async-driver.h>

struct backend;
struct contexts;
struct limit;
struct speed;
struct stats;

enum { BACKEND_FUA = 1, BACKEND_MAY_TRIM = 2, BACKEND_FAST_ZERO = 4 };
/* Types of extents; 0: data. */
enum { BACKEND_HOLE = 1, BACKEND_ZERO = 2 };

/* Takes the next extent, bytes [OFFSET, END), of an answer about block status.
 */
typedef void backend_add_extent (void *to, uint64_t offset, uint64_t end,
                                 unsigned type);

/* Offset and count are in bytes, inside the device.  Functions that return int
 * return 0 or a positive errno.  Several threads may call them at a time, but
 * see backend.serial.  Threads that nbdkit has not made may call them, too.
 */
struct backend_ops {
  int (*pread) (void *handle, void *buf, uint32_t count, uint64_t offset);
  int (*pwrite) (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, unsigned flags);
  int (*zero) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*trim) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*flush) (void *handle);
  /* Calls the function for each extent.  The extents begin at OFFSET, have no
   * gaps, and may end before or after the range.  IS_ONE: one is enough.
   */
  int (*extents) (void *handle, uint32_t count, uint64_t offset, bool is_one,
                  backend_add_extent *, void *to);
  /* Whether the client of this thread has gone or the server shuts down. */
  bool (*is_gone) (void *handle);
  /* Opens a further handle of the export that is like LIKE (backend_is_like).
   * NULL: it cannot.  Several threads may call open and close at a time.
   */
  void *(*open) (const struct backend *like, const char *export_name);
  void (*close) (void *handle);
};

struct backend {
  const struct backend_ops *ops;
  void *handle;
  /* The plugin's answers. */
  uint64_t size;                /* bytes */
  uint32_t min_block;           /* power of two, 1: no constraint */
  uint32_t max_block;           /* UINT32_MAX: no constraint */
  bool can_write, can_flush;
  bool shared;                  /* multi-conn, or as if (next.h) */
  bool serial;                  /* one call at a time for each handle */
  bool may_open;                /* further contexts may be opened */
  bool readonly;                /* nbdkit opened the connection read-only */
  const struct nbdkit_async_driver *hooks;      /* NULL: do not drive hooks */
  void *hooks_handle;
  /* The engine sets these. */
  struct contexts *contexts;    /* NULL: all calls use the handle */
  pthread_mutex_t own_lock;     /* if serial: held for a call with the handle */
  struct speed *read_speed, *write_speed, *extents_speed;
  struct limit *read_limit, *write_limit;
  struct stats *stats;
  atomic_uint *pieces;          /* how many pieces of requests of all
                                 * connections are in hooks */
  unsigned max_pieces;
  /* Atomic. */
  atomic_uint_fast64_t gone_ns; /* when the connection began to end; 0: not */
  atomic_uint_fast64_t alive_ns;        /* a hook's last reply, or its last
                                         * start after gone_ns */
};

struct backend_io {
  struct nbdkit_async_io hook;  /* first; the caller sets buf, count, offset and
                                 * is_write */
  struct backend *backend;
  /* Called once, on any thread.  For a hook's operation the plugin may hold
   * locks, see backend_may_start.
   */
  void (*done) (struct backend_io *, int err);
  uint32_t clear_bytes;         /* a read clears so many at hook.buf first */
  uint64_t start_ns, end_ns;    /* of its time in the plugin; set before done */
  atomic_bool giving_up;        /* a reply now may come from async_cancel */
};

/* Whether the plugin's answers about two handles are the same. */
extern bool backend_is_like (const struct backend *, const struct backend *);
/* To be called before and after any other call with the connection's own handle
 * than those below.
 */
extern void backend_begin_own (struct backend *);
extern void backend_end_own (struct backend *);

extern int backend_pread (struct backend *, void *buf, uint32_t count,
                          uint64_t offset);
extern int backend_pwrite (struct backend *, const void *buf, uint32_t count,
                           uint64_t offset, unsigned flags);
extern int backend_zero (struct backend *, uint32_t count, uint64_t offset,
                         unsigned flags);
extern int backend_trim (struct backend *, uint32_t count, uint64_t offset,
                         unsigned flags);
extern int backend_flush (struct backend *);
extern int backend_extents (struct backend *, uint32_t count, uint64_t offset,
                            bool is_one, backend_add_extent *, void *to);

/* Does the operation on this thread, done () included. */
extern void backend_io_do (struct backend_io *);
/* Whether the filter may drive the plugin's hook for reads or for writes. */
extern bool backend_has_hook (const struct backend *, bool is_write);
/* Calls the hook.  Hold no lock that done () takes. */
extern void backend_io_start (struct backend_io *);
/* Whether a hook may be called here: not inside a reply. */
extern bool backend_may_start (void);

/* Giving up.
 *
 * A call that waits for a hook's reply checks every BACKEND_POLL_NS whether to
 * wait longer.  The plugin is silent if the thread's client has gone or this
 * connection ends, and the grace time has passed since then.  Each reply of a
 * hook begins the grace time again.  So does each start of a hook while the
 * connection ends.
 *
 * The thread may serve the client of another connection.  So if that client has
 * gone, only this call ends, and the operations of this connection go on.  Call
 * these functions without locks.
 */
#define BACKEND_POLL_NS UINT64_C (250000000)
/* A call for a connection begins on this thread.  Forgets that the client of an
 * earlier call has gone.
 */
extern void backend_begin_call (void);
/* The connection ends. */
extern void backend_set_gone (struct backend *);
extern bool backend_is_silent (struct backend *);
/* Ends a started operation: calls done (io, ESHUTDOWN), unless the plugin
 * replies just now.
 */
extern void backend_io_give_up (struct backend_io *);

#endif
