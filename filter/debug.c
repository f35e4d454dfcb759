/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The flags and the sink of debug lines: see debug.h.  The locks that a thread
 * holds: see lock.h.
 */
#include "debug.h"
#include "lock.h"

__attribute__ ((visibility ("default"))) int asyncpool_debug_buffers;
__attribute__ ((visibility ("default"))) int asyncpool_debug_streams;
void (*debug_sink) (const char *fmt, ...);
#ifdef ASYNCPOOL_DEBUG
__thread unsigned lock_held;
#endif
