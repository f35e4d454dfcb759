/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The slab: the one mapping that holds data, COUNT buffers of SIZE bytes, page
 * aligned.
 *
 * Not its job: what each buffer is used for (buffers.h).
 */
#ifndef ASYNCPOOL_SLAB_H
#define ASYNCPOOL_SLAB_H

#include <stddef.h>

struct slab {
  char *data;
  size_t count, size;
};

/* Maps the slab.  Each page takes memory at its first use.  Returns 0 or an
 * errno.  If the slab is larger than the machine's memory, it returns ENOMEM:
 * the kernel might map it, but could not provide the memory later.
 */
extern int slab_init (struct slab *, size_t count, size_t size);
/* Gives the memory of a buffer back to the system.  The buffer then reads as
 * zeroes, and takes memory at its next use.
 */
extern void slab_give_back (struct slab *, char *buffer);
extern void slab_destroy (struct slab *);

#endif
