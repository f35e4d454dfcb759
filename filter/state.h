/* The data that all parts of the engine share.  Read this page first.
 *
 * The device is seen in units: aligned pieces of the size of a buffer (or less, where the plugin's
 * largest block is smaller).  A buffer holds bytes [lo, hi) of one unit of one export.
 *
 *   state     what the buffer holds                             next
 *   FREE      nothing                                           TAKEN
 *   TAKEN     nothing: about to be used, or dropped and pinned  READING, OPEN, FREE
 *   READING   is being read ahead, or waits for a worker to     CLEAN, TAKEN
 *   CLEAN     read ahead, and nobody has written there since    TAKEN
 *   OPEN      acknowledged writes, may still grow               READY
 *   READY     acknowledged, waits for older overlapping ones    WRITING, FAILED
 *   WRITING   acknowledged, given to a worker                   TAKEN, FAILED
 *   FAILED    acknowledged, and the plugin refused it           READY, WRITING, TAKEN
 *
 * OPEN, READY and WRITING are the dirty states.  "Waiting data" is dirty or FAILED.
 *
 * Invariants (engine_check in tests/libfake.c checks them):
 * 1. A buffer stands in the tree, ordered by (base, seq), if it is not FREE, TAKEN or dropped.
 * 2. Of one export, waiting data never overlaps a CLEAN buffer, nor a READING one in the tree: who
 *    makes data wait drops those first (buffers_drop), before the write is acknowledged.
 * 3. No two overlapping buffers are WRITING; a WRITING one overlaps no older waiting data.
 * 4. FAILED data is replaced only by what an acknowledged write, zero or trim put in its place.
 * 5. While a mutator runs, no waiting data that overlaps it is WRITING, and none becomes so.
 * 6. A buffer with fillers > 0 is neither read from nor given to a worker.  With pins > 0 its bytes
 *    in [lo, hi) do not change and it is not reused.
 *
 * A dropped buffer was taken out of the tree: it is READING or TAKEN, and FREE as soon as nobody
 * reads from it or into it.
 *
 * A mutator is a write, zero or trim that goes straight to the plugin while there may be waiting
 * data.  It first waits for the older dirty data it overlaps; then it runs.  From its registration
 * on no write to its range is held behind: that becomes a mutator too.
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
};

enum buf_state {
  BUF_FREE, BUF_TAKEN, BUF_READING, BUF_CLEAN, BUF_OPEN, BUF_READY, BUF_WRITING, BUF_FAILED
};

struct buf {
  struct job job;               /* first: the pool hands it back; used in READING and WRITING */
  struct backend_io io;         /* used likewise */
  /* Constant. */
  struct engine *engine;
  char *data;                   /* byte 0 of the unit */
  /* Under engine.lock; base, hi, conn and data are read without it by who reads or writes it. */
  enum buf_state state;
  bool dropped;
  struct export *export;
  struct conn *conn;            /* whose way into the plugin; NULL: it failed and conn is gone */
  uint64_t base;                /* device offset of the unit */
  uint32_t lo, hi;
  uint64_t seq;                 /* age */
  uint64_t since_ns;            /* CLEAN: read at; OPEN: its first write came then, or could go on then */
  uint32_t used;                /* bytes that clients have read, or skipped */
  unsigned fillers;             /* copies into it under way */
  unsigned pins;                /* reads that copy from it */
  int err;                      /* the plugin's last answer about it */
  bool claimed;                 /* READY: a flush will write it on its own thread */
  bool hooked;                  /* READING, WRITING: an async hook does it */
  bool given_up;                /* the last operation was, see handover.h */
  GTreeNode *node;
  GList link;                   /* in the queue of its state, if that has one */
  GList dirty_link;             /* in engine.dirty */
  struct cond changed;          /* READING ended, fillers or pins dropped to 0 */
};

/* One device as far as we know: what connections share that name the same export, where the plugin
 * says that they see one device (multi-conn), and they agree on TLS, size and blocks.  Any other
 * connection has an export of its own.
 *
 * Two exports may be one device all the same, as many plugins do not look at the name.  So dirty
 * data keeps its order, is waited for by reads, and makes what was read ahead stale across exports;
 * but data is served to, failed data is ordered behind, and retried by, its own export only.
 */
struct export {
  /* Constant. */
  char *name;
  bool shared, tls;
  uint64_t size;
  uint32_t unit, min_block;
  /* Under engine.lock. */
  unsigned refs;                /* connections, and FAILED buffers without a connection */
  GList link;                   /* in engine.exports */
  struct pace pace_read, pace_write;    /* atomic */
  atomic_bool failing;          /* written under engine.lock: a deferred write failed, no flush
                                 * has succeeded since */
};

struct conn {
  /* Constant from conn_open on. */
  struct engine *engine;
  struct export *export;
  struct backend backend;
  uint32_t unit;
  /* Atomic. */
  atomic_bool behind;           /* its writes may wait */
  atomic_uint direct_reads;     /* reads that the plugin does for the client itself */
  struct depth depth;
  /* Under streams_lock. */
  pthread_mutex_t streams_lock;
  struct streams streams;
  /* Under engine.lock. */
  unsigned n_dirty, n_reading;  /* its buffers in these states, READING also where dropped */
  uint64_t lost;                /* first unit read ahead that a write has taken since, or UINT64_MAX */
  unsigned resuming;            /* buffers that became free while a thread reads ahead with them */
  struct stream_counted counted;
  uint64_t look_ns;             /* when a waiting request last asked whether the client is there */
  GList link;                   /* in engine.conns */
};

struct mutator {
  uint64_t offset, end;         /* constant */
  bool running;                 /* under engine.lock */
  GList link;                   /* in engine.mutators */
};

/* A write that waits for a buffer, on the stack of its thread.  Who has written a buffer fills it for the
 * first that waits, and sends it on its way, before he wakes that one: the device would wait for it to
 * run.  From SERVING to SERVED the writer's thread waits for him, whatever the hooks that he calls do.
 */
struct writer {
  /* Constant. */
  struct conn *conn;
  uint64_t base, offset, end;   /* within the unit at base */
  const char *data;             /* the byte at offset */
  /* Under engine.lock. */
  enum writer_state { WRITER_NEW, WRITER_WAITING, WRITER_SERVING, WRITER_SERVED } state;
  struct cond *woken;           /* one of engine.writer_woken */
  GList link;                   /* in engine.writers, while WAITING */
};

/* Conditions for writers, which share them where there are more: a writer's own would be gone as soon
 * as he is served, and who wakes him does it after that.
 */
enum { WRITER_CONDS = 64 };

enum wake { WAKE_READERS, WAKE_WRITER, WAKES };

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
  GQueue dirty;                 /* OPEN, READY and WRITING, by seq */
  GQueue mutators, conns, exports;
  GQueue starts;                /* see handover.h */
  struct cond *wake[WAKES];     /* likewise, or NULL */
  uint64_t seq;
  unsigned progress_waiters;
  GQueue writers;               /* oldest first */
  unsigned n_writers;           /* that there ever were */
  bool writer_called;           /* one was woken since the last one began to wait, and has not run yet */
  struct stream_census census;
  bool stopping, linger_idle;   /* idle: the thread waits for an OPEN buffer */
  struct cond writer_woken[WRITER_CONDS];       /* served; or a buffer became free, or none will */
  struct cond progress;         /* dirty data was written or failed, a mutator ended */
  struct cond linger;           /* the first buffer became OPEN, or the engine stops */

  /* Atomic.  in_tree and deferring are written under the lock; who finds 0 need not take it. */
  atomic_uint in_tree;          /* buffers in the tree */
  atomic_uint deferring;        /* connections that may hold writes behind, and waiting data */
  atomic_uint unregistered;     /* writes, zeroes and trims under way that are no mutators */
  atomic_uint pieces;           /* see backend.h */
  atomic_uint waking;           /* threads that let go of the lock, and still wake others */
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

static inline bool
buf_overlaps (const struct buf *b, uint64_t offset, uint64_t end)
{
  return ranges_overlap (buf_start (b), buf_end (b), offset, end);
}

#endif
