/* SPDX-License-Identifier: BSD-3-Clause */

/* Commands to async-gate.so beside holding and failing.
 *
 * A test gives one of them to gate_fail in place of an error.  The operation
 * itself succeeds, unless the command's comment says otherwise.
 */
#ifndef TESTS_ASYNC_GATE_H
#define TESTS_ASYNC_GATE_H

enum {
  ASYNC_GATE_COMMANDS = 100000,
  ASYNC_NEVER,                  /* no reply */
  ASYNC_TWICE,                  /* two replies */
  ASYNC_RACE,                   /* two replies by two threads at once */
  ASYNC_UNKNOWN,                /* first, replies to requests that do not
                                   exist, of all kinds */
  ASYNC_FOREIGN,                /* first, a reply with the right number and a
                                   wrong conn */
  /* The reply is nbdkit_async_reply_read, which fails all but reads, with: */
  ASYNC_SHORT,                  /* one byte too few: a read fails */
  ASYNC_LONG,                   /* one byte too many: a read fails */
  ASYNC_NULL,                   /* no data: a read fails */
  ASYNC_DATA,                   /* the right size: only a read succeeds */
  ASYNC_UNSAID,                 /* nbdkit_async_reply_error with no error said
                                   before */
  ASYNC_NO_ERROR,               /* nbdkit_async_reply_errno with 0 */
  ASYNC_RETURN_TOO              /* in=hook: the hook fails after its reply */
};

#endif /* TESTS_ASYNC_GATE_H */
