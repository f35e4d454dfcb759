/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The data that all parts of the engine share.  Read this page first.
 *
 * A device is seen in units: aligned pieces of the size of a buffer (or
 * less, where the plugin's largest block is smaller).  A buffer holds bytes
 * of one unit of one device: [lo, hi), and what is in rest.
 *
 *   state     what the buffer holds                             next
 *   FREE      nothing                                           TAKEN
 *   TAKEN     nothing: about to be used, or dropped and pinned  READING, OPEN, FREE
 *   READING   is being read ahead, or waits for a worker to     CLEAN, TAKEN
 *   CLEAN     read ahead, and nobody has written there since    TAKEN
 *   OPEN      acknowledged writes, may still grow               READY
 *   READY     acknowledged, waits for older overlapping ones    WRITING, TAKEN
 *   WRITING   acknowledged, given to a worker                   TAKEN, READY, FAILED
 *   FAILED    acknowledged, and the plugin refused it           READY, WRITING, TAKEN
 *
 * OPEN, READY and WRITING are the dirty states.  "Waiting data" is dirty or FAILED.
 *
 * Two connections have the same device, or they may have the same device:
 * see struct device.
 *
 * Invariants (engine_check in tests/libfake.c checks them):
 * 1. A buffer is in the tree, ordered by (base, seq), if it is not FREE, TAKEN
 *    or dropped.
 * 2. Waiting data overlaps no CLEAN buffer, and no READING one in the tree, of
 *    the same device: a write drops those (buffers_drop) before it is answered.
 * 3. Waiting data of two devices never overlaps: a write over waiting data of
 *    another device is a direct write.
 * 4. No two overlapping pieces are being written; one that is overlaps no
 *    older dirty data, but such as has failed before and waits.
 * 5. Newer data wins: when the plugin has taken a write, zero or trim, those
 *    bytes leave all older FAILED buffers, of every device (supersede).  They
 *    leave FAILED data in no other way than this, by being written, and when
 *    they are lost, which is logged and reported by a flush.
 * 6. While a mutator runs, no piece of its device's waiting data that overlaps
 *    it is being written, and none begins to be.
 * 7. A buffer with fillers > 0 is neither read from nor given to a worker.
 *    While pins > 0 it is not reused.
 *
 * A dropped buffer was taken out of the tree.  It is FREE as soon as no
 * operation and no copy uses it.
 *
 * A mutator is a write, zero or trim that goes straight to the plugin while
 * there may be waiting data.  It first waits for the older dirty data that it
 * overlaps; then it runs.  From its registration on, every write to its range
 * is a mutator too.  It waits for dirty data of its own device as long as that
 * takes, and for that of other devices no longer than config.others_ns.
 *
 * Locks: engine.lock guards all that is marked so; never held across a call into the plugin, so let
 * go of it by what handover.h has.
 * conn.streams_lock and the pool's lock are leaves; the former is never held with engine.lock.
 */
#ifndef ASYNCPOOL_STATE_H
#define ASYNCPOOL_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "backend.h"
#include "changes.h"
#include "cond.h"
#include "pace.h"
#include "pool.h"
#include "slab.h"
#include "stats.h"
#include "stream.h"

enum write_mode { WRITE_AUTO, WRITE_BEHIND, WRITE_THROUGH };
enum read_mode { READ_AHEAD, READ_DIRECT };

struct engine_config {
  unsigned buffers;
  uint32_t buffer_size;         /* bytes, a power of two, at least 64 KiB */
  unsigned threads;
  enum write_mode write;
  enum read_mode read;
  uint64_t linger_ns;           /* how long an OPEN buffer waits to grow */
  uint64_t others_ns;           /* how long to wait for another device's data */
  /* Logs acknowledged data that could not be written; KEPT: it is tried again.
   * Called without locks, as is late.
   */
  void (*report) (const char *export_name, uint64_t offset, uint32_t count,
                  int err, bool kept);
  /* Logs that a request of this export goes on though other devices' data is
   * not written after others_ns.
   */
  void (*late) (const char *export_name);
};

enum buf_state {
  BUF_FREE, BUF_TAKEN, BUF_READING, BUF_CLEAN, BUF_OPEN, BUF_READY, BUF_WRITING, BUF_FAILED
};

/* Bytes within a unit. */
struct span {
  uint32_t lo, hi;
};

struct buf {
  struct job job;               /* first: the pool hands it back; used in READING and WRITING */
  struct backend_io io;         /* used likewise */
  /* Constant. */
  struct engine *engine;
  char *data;                   /* byte 0 of the unit */
  /* Under engine.lock.  An operation on the buffer uses base, hi, conn and data
   * without it.
   */
  enum buf_state state;
  bool dropped;
  struct device *device;
  struct conn *conn;            /* does the operations; NULL: FAILED, ended */
  uint64_t base;                /* device offset of the unit */
  uint32_t lo, hi;
  GArray *rest;                 /* more pieces behind hi, of data that failed; or NULL */
  uint64_t seq;                 /* age */
  uint64_t failed_seq;          /* engine.seq when the plugin refused it last, or 0 */
  uint64_t since_ns;            /* CLEAN: read at; OPEN: its first write came then, or could go on then */
  uint32_t used;                /* bytes that clients have read, or skipped */
  unsigned fillers;             /* copies into it under way */
  unsigned pins;                /* reads that copy from it */
  int err;                      /* the plugin's last answer about it */
  bool reported;                /* FAILED: a flush has returned an error since */
  bool claimed;                 /* READY: a flush will write it on its own thread */
  bool hooked;                  /* READING, WRITING: an async hook does it */
  GTreeNode *node;
  GList link;                   /* in the queue of its state, if that has one */
  GList dirty_link;             /* in engine.dirty */
  struct cond changed;          /* READING ended, fillers or pins dropped to 0 */
};

/* An export name that a client gave, and what belongs to no single connection. */
struct export {
  /* Constant. */
  struct engine *engine;
  char *name;
  /* Under engine.lock. */
  unsigned devices;
  GQueue dirty;                 /* OPEN, READY and WRITING buffers, by seq */
  atomic_int lost;              /* the error of data that was dropped when its last
                                 * connection ended and that no flush has reported */
  GList link;                   /* in engine.exports */
};

/* Between two connections there are two relations.
 *
 * They have the same device if they name the same export and the plugin says
 * multi-conn for both.  They have one struct device then and share everything
 * in it.  A connection whose size or blocks differ from those of the first
 * one cannot use its buffers: it reads waiting data from them, and neither
 * reads ahead nor defers (conn.shares).
 *
 * All others may have the same device: many plugins do not look at the name,
 * and some give each connection a disk of its own.  They have a struct device
 * each.  Data is never served or retried across devices.  Order is kept: dirty
 * data is written before a newer overlapping operation of another device.
 */
struct device {
  /* Constant. */
  struct export *export;
  bool shared;
  uint64_t size;
  uint32_t unit, min_block;
  /* Under engine.lock. */
  unsigned conns;               /* that have not ended */
  unsigned refs;                /* all */
  unsigned n_dirty;             /* its dirty buffers */
  unsigned flushes;             /* under way */
  struct changes gone, gone_flushing;   /* conn.wrote and .flushing of ended connections */
  GList link;                   /* in engine.devices */
  struct pace pace_read, pace_write;    /* atomic */
  /* Written under engine.lock. */
  atomic_int lost;              /* the error of failed data that newer data of another
                                 * device has replaced, until a flush returns it */
  bool lost_by_name;            /* under engine.lock: that device has another export name */
  atomic_bool failing;          /* a deferred write failed, and no flush has succeeded since */
};

struct conn {
  /* Constant from conn_open on. */
  struct engine *engine;
  struct device *device;
  struct backend backend;
  uint32_t unit;
  bool shares;                  /* it may use the device's buffers */
  /* Atomic. */
  atomic_uint calls;            /* twice the calls under way, and CONN_CLOSED */
  atomic_bool behind;           /* its writes may wait */
  atomic_uint direct_reads;     /* reads that the plugin does for the client itself */
  struct depth depth;
  /* Under streams_lock. */
  pthread_mutex_t streams_lock;
  struct streams streams;
  /* Under wrote_lock, a leaf that may be taken under engine.lock: what this connection has
   * changed since the last flush of its device began.
   */
  pthread_mutex_t wrote_lock;
  struct changes wrote;
  /* Under engine.lock. */
  struct changes flushing;      /* what it had changed before, until a flush shows it to all */
  unsigned n_dirty, n_reading;  /* its buffers in these states, READING also where dropped */
  uint64_t lost;                /* first unit read ahead that a write has taken since, or UINT64_MAX */
  unsigned n_ahead;             /* of these, and CLEAN ones, those in the tree */
  uint64_t read_ns;             /* time of its last read that continued a stream */
  GList link;                   /* in engine.conns */
};

enum { CONN_CLOSED = 1, CONN_CALL = 2 };

struct mutator {
  const struct device *device;  /* constant, as is the range */
  uint64_t offset, end;
  bool running;                 /* under engine.lock */
  GList link;                   /* in engine.mutators */
};

/* A write that is to be deferred, on the stack of its thread. */
struct writer {
  /* Constant. */
  struct conn *conn;
  uint64_t base, offset, end;   /* within the unit at base */
  const char *data;             /* the byte at offset */
  uint64_t until_ns;            /* while only other devices use buffers: when it stops waiting */
  /* Under engine.lock. */
  bool waits;                   /* for a buffer */
  struct cond woken;            /* a buffer became free, or none will */
  GList link;                   /* in engine.writers, while it waits */
};

struct engine {
  /* Constant after engine_start. */
  struct engine_config config;
  struct slab slab;
  struct buf *bufs;
  struct pool *pool;
  struct stats *stats;
  pthread_t linger_thread;

  pthread_mutex_t lock;
  /* Under the lock. */
  GTree *tree;
  GQueue free, reading, clean, open, failed;    /* free: youngest first; failed by seq; others oldest first */
  GQueue mutators, conns, devices, exports;
  GQueue starts;                /* see handover.h */
  uint64_t seq;
  unsigned progress_waiters;
  GQueue writers;               /* oldest first */
  bool writer_called;           /* one was woken since the last one began to wait, and has not run yet */
  unsigned readers;             /* connections with n_ahead > 0 */
  unsigned n_ahead;             /* the sum of theirs */
  bool stopping, linger_idle;   /* idle: the thread waits for something to do */
  uint64_t patient_since_ns;    /* a write has no worker on its way; UINT64_MAX: none */
  struct cond progress;         /* dirty data was written or failed, a mutator ended */
  struct cond linger;           /* it has something to do, or the engine stops */

  /* Atomic.  in_tree and deferring are written under the lock; a thread that
   * finds 0 need not take it.
   */
  atomic_uint in_tree;          /* buffers in the tree */
  atomic_uint deferring;        /* connections that may hold writes behind, and waiting data */
  atomic_uint unregistered;     /* writes, zeroes and trims under way that are no mutators */
  atomic_uint pieces;           /* see backend.h */
  struct depth filling;         /* whole buffers that the writes in flight would fill */
};

static inline bool
buf_is_dirty (const struct buf *b)
{
  return b->state == BUF_OPEN || b->state == BUF_READY || b->state == BUF_WRITING;
}

static inline bool
buf_is_waiting (const struct buf *b)
{
  return buf_is_dirty (b) || b->state == BUF_FAILED;
}

static inline uint64_t
buf_start (const struct buf *b)
{
  return b->base + b->lo;
}

static inline uint64_t
buf_end (const struct buf *b)
{
  return b->base + b->hi;
}

static inline bool
ranges_overlap (uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
  return a < b_end && b < a_end;
}

/* The pieces of a buffer, in order: [lo, hi), then those in rest. */
static inline unsigned
buf_n_pieces (const struct buf *b)
{
  return 1 + (b->rest ? b->rest->len : 0);
}

static inline struct span
buf_piece (const struct buf *b, unsigned i)
{
  if (i > 0)
    return g_array_index (b->rest, struct span, i - 1);
  return (struct span) { b->lo, b->hi };
}

/* The end of the last one. */
static inline uint64_t
buf_limit (const struct buf *b)
{
  return b->base + buf_piece (b, buf_n_pieces (b) - 1).hi;
}

static inline bool
buf_overlaps (const struct buf *b, uint64_t offset, uint64_t end)
{
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span p = buf_piece (b, i);

    if (ranges_overlap (b->base + p.lo, b->base + p.hi, offset, end))
      return true;
  }
  return false;
}

#endif
