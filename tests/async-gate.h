/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What tests command async-gate.so to do beside holding and failing: gate_fail with one of these for
 * its error. The operation itself succeeds, unless said otherwise.
 */
#ifndef TESTS_ASYNC_GATE_H
#define TESTS_ASYNC_GATE_H

enum {
  ASYNC_GATE_COMMANDS = 100000,
  ASYNC_NEVER,                  /* no reply */
  ASYNC_TWICE,
  ASYNC_RACE,                   /* two threads reply, as closely as it goes */
  ASYNC_UNKNOWN,                /* before, replies of all kinds to requests that there are not */
  ASYNC_FOREIGN,                /* before, one with the right number and a wrong conn */
  ASYNC_SHORT,                  /* nbdkit_async_reply_read with a byte less, */
  ASYNC_LONG,                   /* a byte more, */
  ASYNC_NULL,                   /* and without data: a read fails; others too, as they are no read */
  ASYNC_DATA,                   /* with as many bytes as it should be: only a read succeeds */
  ASYNC_UNSAID,                 /* nbdkit_async_reply_error, and nothing said before */
  ASYNC_NO_ERROR,               /* nbdkit_async_reply_errno with 0 */
  ASYNC_RETURN_TOO,             /* in=hook: the hook fails after it has replied */
};

/* In the flags of the gate's log: came by a hook, not by the callback of the same name. */
#define ASYNC_GATE_BY_HOOK (1U << 30)

#endif /* TESTS_ASYNC_GATE_H */
