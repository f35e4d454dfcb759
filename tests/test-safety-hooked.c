/* All of test-safety again, over a plugin with async hooks. */
#define GATE_MODULE "tests/async-gate.so"
#define HOOKED 1
#include "test-safety.c"
