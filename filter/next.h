/* SPDX-License-Identifier: BSD-3-Clause
 *
 * struct nbdkit_next_ops as a struct backend_ops (backend.h).  The handle of a
 * backend is its nbdkit_next.
 */
#ifndef ASYNCPOOL_NEXT_H
#define ASYNCPOOL_NEXT_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"

struct nbdkit_next_ops;

/* For conn_open: asks the layer below for all that can be asked, once.  nbdkit
 * caches the answers without a lock, so a worker must not be the first to ask.
 * Returns -1 on error: nbdkit_error was called.
 */
extern int next_backend (struct nbdkit_next_ops *, bool readonly,
                         struct backend *);
/* The layer in which next_backend's open opens contexts: before the first
 * connection.
 */
extern void next_set_lower (struct nbdkit_backend *);
/* From now on, read-only contexts count as if the layer below said
 * multi-conn.
 */
extern void next_set_same_if_read_only (void);
/* nbdkit's flags as flags of backend.h. */
extern unsigned next_flags (uint32_t nbdkit_flags);

#endif
