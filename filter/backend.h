/* The device below: one connection's way into the plugin.
 *
 * The rest of the filter knows the plugin only through this table, so that it runs in a unit test
 * against a fake.  Every call is timed here, for the statistics and for pace.h.
 *
 * Callbacks: offset and count in bytes, inside the device.  They return 0 or a positive errno and
 * may be called from any thread, several at a time.
 */
#ifndef ASYNCPOOL_BACKEND_H
#define ASYNCPOOL_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

struct pace;
struct stats;

enum { BACKEND_FUA = 1, BACKEND_MAY_TRIM = 2, BACKEND_FAST_ZERO = 4 };

struct backend_ops {
  int (*pread) (void *handle, void *buf, uint32_t count, uint64_t offset);
  int (*pwrite) (void *handle, const void *buf, uint32_t count, uint64_t offset, unsigned flags);
  int (*zero) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*trim) (void *handle, uint32_t count, uint64_t offset, unsigned flags);
  int (*flush) (void *handle);
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
  struct stats *stats;
};

extern int backend_pread (struct backend *, void *buf, uint32_t count, uint64_t offset);
extern int backend_pwrite (struct backend *, const void *buf, uint32_t count, uint64_t offset,
                           unsigned flags);

#endif
