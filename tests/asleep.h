/* SPDX-License-Identifier: BSD-3-Clause */

/* Counts the threads of the program that wait on a struct cond.
 *
 * A function in place of the C library's syscall counts the waits, as nothing
 * else tells which threads wait.  One file of a program includes it.
 */
#ifndef ASLEEP_H
#define ASLEEP_H

#include <dlfcn.h>
#include <stdarg.h>
#include <stdatomic.h>

#include "cond.h"

static atomic_uint n_asleep;    /* until a wakeup */
static atomic_uint n_napping;   /* until a wakeup or a moment */

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
