/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The engine: all connections, their buffers and the threads behind them.
 *
 * filter/README says how the parts work together.  Nothing here knows nbdkit.
 *
 * Functions in filter/ return 0 or a positive errno unless they say otherwise.
 *
 * Locks, from the outside to the inside (ranks, see lock.h; statsfile.lock has
 * none, and is outside all of these):
 *   engine.lock         everything marked so; never held across a call into
 *                       the plugin, released by engine_unlock_and_dispatch
 *   conn.wrote_lock     leaf
 *   extents.lock        then leaves only, see extents.h
 *   contexts.lock       leaf
 *   limit.lock          leaf
 *   pool's lock         leaf; fanout.c's and asyncpool.c's locks, too
 *   conn.streams_lock   then extents.lock at most; never held together with
 *                       engine.lock
 */
#ifndef ASYNCPOOL_ENGINE_H
#define ASYNCPOOL_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "buffers.h"
#include "conn.h"
#include "contexts.h"
#include "device.h"
#include "extents.h"
#include "lock.h"
#include "order.h"
#include "pool.h"
#include "speed.h"
#include "stats.h"
#include "writeback.h"

enum write_mode { WRITE_AUTO, WRITE_BEHIND, WRITE_THROUGH };
enum read_mode { READ_AHEAD, READ_DIRECT };

struct engine_config {
  unsigned buffers;
  unsigned adapts_to;           /* the numbers in flight follow the device, up
                                 * to this; 0: they are BUFFERS */
  uint32_t buffer_size;         /* bytes, a power of two, at least 64 KiB */
  unsigned large_buffers;       /* further ones, for large operations */
  uint32_t large_size;          /* bytes, a power of two, a multiple of
                                 * buffer_size */
  unsigned threads;             /* at most */
  uint64_t idle_ns;             /* after this, unused threads end and unused
                                 * memory is given back */
  enum write_mode write;
  enum read_mode read;
  unsigned contexts;            /* of a serialized plugin, for one connection,
                                 * its own included */
  uint64_t context_idle_ns;     /* an unused context is closed after this */
  uint64_t context_retry_ns;    /* after the first failed open */
  uint64_t linger_ns;           /* how long an OPEN buffer waits for more */
  uint64_t others_ns;           /* how long an operation waits for dirty data of
                                 * another device */
  uint64_t status_ns;           /* how long an answer about block status is
                                 * used */
  /* Logs acknowledged data that could not be written; KEPT: it is tried again.
   * Called without locks, as is log_overdue.
   */
  void (*log_unwritten) (const char *export_name, uint64_t offset,
                         uint32_t count, int err, bool kept);
  /* Logs that a request of this export goes on, though another device's data
   * is not written after others_ns.
   */
  void (*log_overdue) (const char *export_name);
  /* Logs that no further context can be opened at present, beside N_OPEN of MAX
   * ones.
   */
  void (*log_context) (const char *export_name, unsigned n_open, unsigned max);
  /* Logs that a connection has its own context only, as no thread for further
   * ones can be started.
   */
  void (*log_no_contexts) (const char *export_name, int err);
};

struct engine {
  /* Constant after engine_start. */
  struct engine_config config;
  struct pool *pool;
  struct stats *stats;

  struct lock lock;
  /* Each has its own rules, see its header. */
  struct buffers buffers;
  struct order order;
  struct writeback writeback;
  struct extents extents;
  /* Under the lock. */
  GQueue conns, devices, exports, contexts;
  struct stats_limit last_read_limit, last_write_limit; /* of the device that
                                 * ended last */
  bool forgot_changes;          /* see forget_exports in device.c */
  uint64_t contexts_check_ns;   /* when to look for idle ones */
  GQueue starts;                /* see dispatch.h */
  bool stopping;
  /* Atomic. */
  atomic_uint pieces;           /* see backend.h */
};

/* Allocates the slab (ENOMEM: it does not fit).  No thread runs yet. */
extern int engine_new (const struct engine_config *, struct engine **);
/* Starts the threads, after the server has forked. */
extern int engine_start (struct engine *);
/* Ends the connections that are still open, then the threads. */
extern void engine_stop (struct engine *);
/* What the engine does at this moment, for the statistics.  From engine_new to
 * engine_free.
 */
extern void engine_now (struct engine *, struct stats_now *);
/* After engine_stop, when all connections are freed. */
extern void engine_free (struct engine *);

#endif
