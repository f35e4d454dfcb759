/* SPDX-License-Identifier: BSD-3-Clause
 * A preload for user-mode Linux on processors with a large extended state.
 *
 * Which kernel needs it: one that holds the extended state (XSAVE) of its
 * processes in buffers of fixed size, 2696 bytes.  Debian 12's user-mode Linux
 * 6.1 does.  Newer kernels ask for the size when they start.  AMX makes the
 * state larger (amx_tile in /proc/cpuinfo).  The machine's kernel then refuses
 * to take back a part of the state (EFAULT), and no process of the guest runs.
 *
 * How to see that it is still needed: uml_accel in uml.sh boots without it
 * first, and prints a line if it needs it.  When a machine with AMX does not
 * print that line, remove this file.
 *
 * The preload reads the whole state, replaces its first part by the one that
 * user-mode Linux has, and writes all of it.  No process of the guest uses the
 * rest.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long
set_xstate (pid_t pid, const struct iovec *part)
{
  static char state[1 << 16];
  struct iovec all = { .iov_base = state, .iov_len = sizeof state };
  size_t n = part->iov_len;

  if (syscall (SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all) == -1)
    return -1;
  memcpy (state, part->iov_base, n < all.iov_len ? n : all.iov_len);
  return syscall (SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

long
ptrace (enum __ptrace_request request, ...)
{
  va_list args;
  pid_t pid;
  void *addr, *data;
  long word, r;

  va_start (args, request);
  pid = va_arg (args, pid_t);
  addr = va_arg (args, void *);
  data = va_arg (args, void *);
  va_end (args);

  if (request == PTRACE_SETREGSET && (long) addr == NT_X86_XSTATE)
    return set_xstate (pid, data);
  if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA
      && request != PTRACE_PEEKUSER)
    return syscall (SYS_ptrace, request, pid, addr, data);
  /* The library returns the word itself. */
  r = syscall (SYS_ptrace, request, pid, addr, &word);
  return r == -1 ? -1 : word;
}
