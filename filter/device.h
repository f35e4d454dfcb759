/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Devices and exports: which connections see the same data.
 *
 * Two connections have the same device if they name the same export and the
 * plugin says multi-conn for both, or counts as if it did (next.h).  They have
 * one struct device then, and share all that is in it.  A connection whose size
 * or blocks differ from those of the device (conn.shares is false) only reads
 * waiting data from its buffers.  It neither prefetches nor defers.
 *
 * All other connections may reach the same disk: many plugins ignore the export
 * name, and some give each connection a disk of its own.  They have a struct
 * device each.  The filter never serves or retries data across devices, but it
 * keeps the order (order.h).
 *
 * Until a flush, the plugin may show old data through other connections of the
 * device than the one that made the change.  So a connection that has changed
 * bytes does not read data that another one has prefetched there (read.c).  A
 * flush drops the data that others have prefetched in changed ranges.
 *
 * The same holds for the contexts of one connection (contexts.h).  What a
 * connection has changed may be invisible through another context than the one
 * that has written it.  So a read of such bytes flushes the plugin first
 * (device_show_own).  Without multi-conn a flush does not help: the
 * connection's own context does all its writes, and its reads of bytes that it
 * has ever changed.
 */
#ifndef ASYNCPOOL_DEVICE_H
#define ASYNCPOOL_DEVICE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <glib.h>

#include "changes.h"
#include "extents.h"
#include "limit.h"
#include "speed.h"

struct conn;
struct engine;

/* An export name that a client gave. */
struct export {
  /* Constant. */
  struct engine *engine;
  char *name;
  /* Under engine.lock. */
  unsigned devices;
  unsigned flushes;             /* under way, of all its devices */
  struct changes gone, gone_flushing;   /* conn.wrote and conn.flushing of
                                         * connections with multi-conn that have
                                         * ended */
  GQueue dirty;                 /* OPEN, READY and WRITING buffers, by seq */
  atomic_int lost;              /* written under the lock: the error of data
                                 * that was dropped at the end of its last
                                 * connection, or that of device.show_error,
                                 * until a flush returns it */
  GList link;                   /* in engine.exports */
};

struct device {
  /* Constant. */
  struct export *export;
  uint64_t id;                  /* > 0, no other device ever has it */
  bool shared;                  /* backend.shared */
  uint64_t size;
  uint32_t unit, min_block;
  uint32_t large_units;         /* as conn.large_units */
  /* Under engine.lock. */
  unsigned refs;                /* all connections */
  unsigned n_dirty;             /* its dirty buffers */
  unsigned readers;             /* connections with conn.ahead_units > 0 */
  unsigned n_overtaken;         /* its overtaken buffers */
  unsigned n_writes;            /* writes of dirty buffers in flight */
  bool has_held_back;           /* a READY buffer may wait for the end of one of
                                 * these */
  unsigned flushes;             /* under way */
  bool lost_by_name;            /* the data in lost was replaced through another
                                 * export name */
  int show_error;               /* of a flush of the filter's own, until a flush
                                 * of a client returns it */
  GList link;                   /* in engine.devices */
  struct device_extents extents;        /* under extents.lock */
  /* How many READING and CLEAN buffers it may have, and how many dirty ones and
   * writes of these.
   */
  struct limit read_limit, write_limit;
  /* Atomic. */
  atomic_uint conns;            /* written under the lock: connections that have
                                 * not ended */
  struct speed read_speed, write_speed, extents_speed;
  atomic_int lost;              /* written under the lock: the error of failed
                                 * data that another device has replaced, until
                                 * a flush returns it */
  atomic_uint losses;           /* written under the lock: how often data was
                                 * given up */
  atomic_int loss;              /* the error of the latest one; written before
                                 * losses */
  atomic_bool failing;          /* written under the lock: a deferred write
                                 * failed, and no flush has succeeded since */
};

/* A new connection's device: an export and a device without connections.  NULL:
 * no memory.  device_join or device_discard it.  MOST: operations of one kind
 * in flight.
 */
extern struct device *device_new (struct engine *, const char *export_name,
                                  uint32_t unit, unsigned most);
extern void device_discard (struct device *);
/* Wants engine.lock.  Returns the device of the new connection: FRESH, or one
 * that it shares; then FRESH is freed.
 */
extern struct device *device_join (struct device *fresh);
/* A connection is freed.  Wants engine.lock. */
extern void device_put (struct device *);
/* Frees all exports. */
extern void device_free_exports (struct engine *);

/* The connection has changed the range.  Call it before the data that others
 * have prefetched there is dropped.  Takes a leaf lock.
 */
extern void device_note_change (struct conn *, uint64_t offset, uint64_t end);
/* Whether another context than the one that has written them may show old data
 * in place of this connection's changes there.  Takes a leaf lock.
 */
extern bool device_hides_own (struct conn *, uint64_t offset, uint64_t end);
/* A connection ends, and changes nothing any more: the next flush of the export
 * shows its changes.  Wants engine.lock.
 */
extern void device_note_gone (struct conn *);
/* The plugin's flush.  When it has succeeded, all connections and contexts see
 * the changes that the plugin had when it began.
 */
extern int device_flush (struct conn *);
/* Before a call with any context that depends on the bytes there: flushes the
 * plugin if it may hide this connection's changes.  If that fails, the next
 * flush on each connection of the device returns the error, too, also on one
 * that opens before a flush has returned it.  Nothing to do without contexts.
 */
extern int device_show_own (struct conn *, uint64_t offset, uint64_t end);
/* For a client's flush: the error of such a flush of the filter's own, once for
 * each connection.  0: none.
 */
extern int device_take_show_error (struct conn *);

#endif
