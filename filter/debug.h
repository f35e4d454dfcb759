/* What `nbdkit -D asyncpool.buffers=1 -D asyncpool.streams=1 -v` shows.
 *
 * The sink is nbdkit_debug in the filter and NULL in unit tests; the flags are set by nbdkit, which
 * finds them by name.  Formats are built only where a flag is on.
 */
#ifndef ASYNCPOOL_DEBUG_H
#define ASYNCPOOL_DEBUG_H

#include <inttypes.h>

extern int asyncpool_debug_buffers, asyncpool_debug_streams;
extern void (*debug_sink) (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));

#define debug_if(flag, ...) do { if ((flag) && debug_sink) debug_sink (__VA_ARGS__); } while (0)
#define debug_buffers(...) debug_if (asyncpool_debug_buffers, __VA_ARGS__)
#define debug_streams(...) debug_if (asyncpool_debug_streams, __VA_ARGS__)

#endif
