/* All tests of the engine again, over a plugin with async hooks, and what concerns hooks alone. */
#define HOOKED true
#include "test-engine.c"
