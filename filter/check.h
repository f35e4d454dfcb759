/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The invariants of buffers.h and order.h, verified on the whole engine.
 */
#ifndef ASYNCPOOL_CHECK_H
#define ASYNCPOOL_CHECK_H

struct engine;

/* Asserts the invariants, and that queues and counts agree with the buffers.
 * For tests.  Wants no lock.
 */
extern void engine_check (struct engine *);
extern void engine_check_locked (struct engine *);

/* Wherever engine.lock is released: in builds with ASYNCPOOL_DEBUG only. */
#ifdef ASYNCPOOL_DEBUG
#define engine_check_debug(e) engine_check_locked (e)
#else
#define engine_check_debug(e) ((void) 0)
#endif

#endif
