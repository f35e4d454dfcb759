/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The slab: the one mapping that holds data, page aligned.
 *
 * Not its job: how it is divided into buffers (buffers.h).
 */
#ifndef ASYNCPOOL_SLAB_H
#define ASYNCPOOL_SLAB_H

#include <stddef.h>

struct slab {
  char *data;
  size_t size;                  /* bytes */
};

/* Maps the slab.  Each page takes memory at its first use.  Returns 0 or an
 * errno.  If the slab is larger than the machine's memory, it returns ENOMEM:
 * the kernel might map it, but could not provide the memory later.
 */
extern int slab_init (struct slab *, size_t size);
/* Gives the memory of a buffer back to the system.  The buffer then reads as
 * zeroes, and takes memory at its next use.
 */
extern void slab_give_back (char *buffer, size_t size);
extern void slab_destroy (struct slab *);

#endif
