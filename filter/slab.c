/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The slab: see slab.h.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include "slab.h"

int
slab_init (struct slab *s, size_t size)
{
  size_t pages = sysconf (_SC_PHYS_PAGES), page = sysconf (_SC_PAGESIZE);

  if (size / page > pages)
    return ENOMEM;
  s->data = mmap (NULL, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (s->data == MAP_FAILED)
    return errno;
  s->size = size;
  return 0;
}

void
slab_give_back (char *buffer, size_t size)
{
  /* It fails only for memory that the process has locked: it stays. */
  if (madvise (buffer, size, MADV_DONTNEED) == -1)
    memset (buffer, 0, size);
}

void
slab_destroy (struct slab *s)
{
  if (s->data)
    munmap (s->data, s->size);
  s->data = NULL;
}
