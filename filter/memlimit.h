/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How much memory the server may use.
 *
 * Not its job: which part of it the filter takes (config.c).
 */
#ifndef ASYNCPOOL_MEMLIMIT_H
#define ASYNCPOOL_MEMLIMIT_H

#include <stdint.h>

/* In bytes: the machine's memory, or the least limit of the process's control
 * groups if that is less.  Reads ROOT/proc and ROOT/sys: "" for the real ones.
 */
extern uint64_t memlimit_bytes (const char *root);

#endif
