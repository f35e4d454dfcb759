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
 * are plain calls.  A struct backend_io tells of its end through done ():
 * backend_io_do does the operation on the calling thread.  If the filter may
 * drive the plugin's async hooks, backend_io_start starts it.  Then no thread
 * waits, and the plugin replies later.
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
struct speed;
struct stats;

enum { BACKEND_FUA = 1, BACKEND_MAY_TRIM = 2, BACKEND_FAST_ZERO = 4 };
/* Types of extents; 0: data. */
enum { BACKEND_HOLE = 1, BACKEND_ZERO = 2 };

/* Takes the next extent, bytes [OFFSET, END), of an answer about block status.
 */
typedef void backend_add_extent (void *to, uint64_t offset, uint64_t end,
                                 unsigned type);

/* Offset and count in bytes, inside the device.  They return 0 or a positive
 * errno.  Several threads may call them at a time, also threads that nbdkit has
 * not made; see backend.serial.
 */
struct backend_ops {
  int (*pread) (void *handle, void *buf, uint32_t count, uint64_t offset);
  int (*pwrite) (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, unsigned flags);
  int (*zero) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*trim) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*flush) (void *handle);
  /* IS_ONE: one extent will do.  They begin at OFFSET, have no gaps, and may
   * end anywhere.
   */
  int (*extents) (void *handle, uint32_t count, uint64_t offset, bool is_one,
                  backend_add_extent *, void *to);
  /* Whether the client of this thread has gone or the server shuts down. */
  bool (*is_gone) (void *handle);
  /* A further handle of the export, which answers as LIKE does.  NULL: it
   * cannot be opened.  Several threads may call open and close at a time.
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
  bool shared;                  /* multi-conn */
  bool serial;                  /* one call at a time for each handle */
  bool may_open;                /* other contexts have the same data */
  bool readonly;                /* the connection was opened so */
  const struct nbdkit_async_driver *hooks;      /* NULL: do not drive hooks */
  void *hooks_handle;
  /* The engine's. */
  struct contexts *contexts;    /* NULL: only the handle is used */
  pthread_mutex_t own_lock;     /* if serial: held for a call with the handle */
  struct speed *read_speed, *write_speed, *extents_speed;
  struct stats *stats;
  atomic_uint *pieces;          /* pieces of all connections' requests that are
                                 * in hooks */
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
  uint64_t start_ns, end_ns;    /* end: when done is called */
  atomic_bool giving_up;        /* a reply now may come from async_cancel */
};

/* Whether two handles have the same answers. */
extern bool backend_is_like (const struct backend *, const struct backend *);
/* Around a call with the handle that is none of those below. */
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
/* Whether there is a hook for it. */
extern bool backend_has_hook (const struct backend *, bool is_write);
/* Calls the hook.  Hold no lock that done () takes. */
extern void backend_io_start (struct backend_io *);
/* Whether a hook may be called here: not inside a reply. */
extern bool backend_may_start (void);

/* Giving up.
 *
 * A call that waits for a hook's reply checks every BACKEND_POLL_NS whether to
 * go on.  The plugin is silent if the thread's client has gone or this
 * connection ends, and the grace time has passed since then.  Each reply of a
 * hook, and each start at the end of the connection, begins the grace time
 * again.  The thread may serve the client of another connection.  So if that
 * client goes, only this call ends, and no operation of this connection.  Call
 * these without locks.
 */
#define BACKEND_POLL_NS UINT64_C (250000000)
/* A call for a connection begins on this thread: forgets what the thread knew
 * of a client that has gone.
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
