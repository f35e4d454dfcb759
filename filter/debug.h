/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The lines of `nbdkit -D asyncpool.buffers=1 -D asyncpool.streams=1 -v`.
 *
 * nbdkit finds the flags by name and sets them.  The sink is nbdkit_debug in
 * the filter and NULL in unit tests.  A line is built only if its flag is set.
 * The format must be a string literal.
 */
#ifndef ASYNCPOOL_DEBUG_H
#define ASYNCPOOL_DEBUG_H

#include <inttypes.h>

extern int asyncpool_debug_buffers, asyncpool_debug_streams;
extern void (*debug_sink) (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));

#define debug_if(flag, ...)                     \
  do {                                          \
    if ((flag) && debug_sink)                   \
      debug_sink ("asyncpool: " __VA_ARGS__);   \
  } while (0)
#define debug_buffers(...) debug_if (asyncpool_debug_buffers, __VA_ARGS__)
#define debug_streams(...) debug_if (asyncpool_debug_streams, __VA_ARGS__)

#endif
