/* How many threads of the program wait on a struct cond, by a function in the place of the C library's:
 * nothing else tells which of them do.  For one file of a program.
 */
#ifndef ASLEEP_H
#define ASLEEP_H

#include <dlfcn.h>
#include <stdarg.h>
#include <stdatomic.h>

#include "cond.h"

static atomic_uint n_asleep;    /* until they are called */
static atomic_uint n_napping;   /* until a moment */

long
syscall (long number, ...)
{
  long (*real) (long, ...);
  atomic_uint none = 0, *counter = &none;
  long a[6], r;
  va_list args;

  va_start (args, number);
  for (int i = 0; i < 6; i++)
    a[i] = va_arg (args, long);
  va_end (args);
  *(void **) &real = dlsym (RTLD_NEXT, "syscall");
  if (number == SYS_futex && (int) a[1] == FUTEX_WAIT_BITSET_PRIVATE)
    counter = a[3] ? &n_napping : &n_asleep;
  atomic_fetch_add (counter, 1);
  r = real (number, a[0], a[1], a[2], a[3], a[4], a[5]);
  atomic_fetch_sub (counter, 1);
  return r;
}

#endif
