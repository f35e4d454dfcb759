/* SPDX-License-Identifier: BSD-3-Clause
 *
 * store: a sparse array of bytes in memory that knows what was written.
 *
 * Not its job: waiting, options, nbdkit.  Ranges given to it lie within
 * its size; nbdkit checks that before it calls a plugin.
 *
 * A page (4 KiB) is in one of two states:
 *
 *   hole     bit clear; all its bytes are zero; memory only if populated
 *   written  bit set; its bytes are what was last written or zeroed
 *
 *   hole -> written     store_write
 *   written -> hole     store_zero with give_back, if it covers the page
 *
 * 4 KiB, as file systems and page tables use it: what a client trims in
 * its own blocks is given back whole, and extents are exact for it.
 *
 * A chunk (64 KiB) has the bits of its 16 pages in one 16-bit word, and
 * one lock, which it shares with every STRIPES-th chunk.
 *
 * Invariants:
 * 1. A hole reads as zeroes.
 * 2. Bytes of a chunk are touched, and its word stored, under its lock.
 * 3. Bytes past the size are never written.
 *
 * Locks: one stripe at a time, nothing else is taken under it.  The words
 * may be loaded without it (extents): all that was answered is in them.
 * Concurrent calls on one range are each atomic per chunk, as on a disk.
 */

#ifndef DELAYMEM_STORE_H
#define DELAYMEM_STORE_H

#include <stdbool.h>
#include <stdint.h>

#define STORE_PAGE_BYTES UINT64_C (4096)

struct store;

/* The memory is reserved, not taken.  NULL with errno set on failure. */
extern struct store *store_new (uint64_t size);
extern void store_free (struct store *st);

/* Takes all memory now; what is a hole stays one.  Returns 0 or an errno. */
extern int store_populate (struct store *st);

extern void store_read (struct store *st, void *buf,
                        uint64_t count, uint64_t offset);
extern void store_write (struct store *st, const void *buf,
                         uint64_t count, uint64_t offset);

/* Makes the range read as zeroes.  With give_back pages wholly inside
 * become holes and lose their memory; without it holes stay holes and
 * written pages stay written.
 */
extern void store_zero (struct store *st, uint64_t count, uint64_t offset,
                        bool give_back);

/* How many bytes from offset on, at most count, are alike: all written or
 * all holes.
 */
extern uint64_t store_run (struct store *st, uint64_t count, uint64_t offset,
                           bool *written);

#endif /* DELAYMEM_STORE_H */
