#include "debug.h"

__attribute__ ((visibility ("default"))) int asyncpool_debug_buffers;
__attribute__ ((visibility ("default"))) int asyncpool_debug_streams;
void (*debug_sink) (const char *fmt, ...);
