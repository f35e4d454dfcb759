/* Preloaded into user-mode Linux.  It keeps the processor's extended state (XSAVE) of its processes in
 * buffers that older versions made too small for newer processors (AMX), and the machine's kernel takes
 * back no less than all of it (EFAULT).  What does not fit there no process of the guest uses: it stays
 * what it is.
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

  if (syscall (SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all) == -1)
    return -1;
  memcpy (state, part->iov_base, part->iov_len < all.iov_len ? part->iov_len : all.iov_len);
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
  if (request != PTRACE_PEEKTEXT && request != PTRACE_PEEKDATA && request != PTRACE_PEEKUSER)
    return syscall (SYS_ptrace, request, pid, addr, data);
  r = syscall (SYS_ptrace, request, pid, addr, &word);  /* the library returns the word itself */
  return r == -1 ? -1 : word;
}
