/* All tests of the engine again, over a plugin whose async hooks may be called inside its replies. */
#define HOOKED true
#define REENTRANT true
#include "test-engine.c"
