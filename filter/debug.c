/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The flags and the sink of debug lines: see debug.h.
 */
#include "debug.h"

__attribute__ ((visibility ("default"))) int asyncpool_debug_buffers;
__attribute__ ((visibility ("default"))) int asyncpool_debug_streams;
void (*debug_sink) (const char *fmt, ...);
