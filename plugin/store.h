/* SPDX-License-Identifier: BSD-3-Clause
 *
 * store: a sparse array of bytes in memory that knows which pages have data.
 *
 * Ranges must lie within its size: nbdkit checks that before it calls a plugin.
 *
 * A page (4 KiB) is in one of two states:
 *
 *   hole     bit clear; all its bytes are zero; has memory only if populated
 *   written  bit set; its bytes are those last written or zeroed
 *
 *   hole -> written     store_write
 *   written -> hole     store_zero with give_back, if it covers the page
 *
 * File systems and page tables use 4 KiB too.  So a client that trims its own
 * blocks gives their memory back, and sees exact extents.
 *
 * A chunk (64 KiB) has the bits of its 16 pages in one 16-bit word.  It shares
 * a lock with every STRIPES-th chunk.
 *
 * Invariants:
 * 1. A hole reads as zeroes.
 * 2. A thread touches the bytes of a chunk, and stores its word, only under the
 *    chunk's lock.
 * 3. Bytes past the size are never written.
 *
 * A thread holds one lock at a time.  It may load words without the lock: they
 * show the effect of every operation that has a reply.  Concurrent operations
 * on one range are atomic per chunk, as on a disk.
 */

#ifndef DELAYMEM_STORE_H
#define DELAYMEM_STORE_H

#include <stdbool.h>
#include <stdint.h>

#define STORE_PAGE_BYTES UINT64_C (4096)

struct store;

/* Reserves the memory and does not take it.  Returns NULL with errno set on
 * failure.
 */
extern struct store *store_new (uint64_t size);
extern void store_free (struct store *st);

/* Takes all memory now.  Holes stay holes.  Returns 0 or an errno. */
extern int store_populate (struct store *st);

extern void store_read (struct store *st, void *buf,
                        uint64_t count, uint64_t offset);
extern void store_write (struct store *st, const void *buf,
                         uint64_t count, uint64_t offset);

/* Makes the range read as zeroes.  With give_back, pages that lie wholly inside
 * become holes and lose their memory.  Without it, no page changes its state.
 */
extern void store_zero (struct store *st, uint64_t count, uint64_t offset,
                        bool give_back);

/* Returns how many bytes from OFFSET on, COUNT at most, are all written or all
 * holes.
 */
extern uint64_t store_run (struct store *st, uint64_t count, uint64_t offset,
                           bool *written);

#endif /* DELAYMEM_STORE_H */
