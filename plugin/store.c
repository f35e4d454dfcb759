/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See store.h for states, invariants and locks.
 */

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store.h"

#define CHUNK_PAGES UINT64_C (16)
#define CHUNK_BYTES (CHUNK_PAGES * STORE_PAGE_BYTES)

/* Neighbouring chunks have different locks.  There are far more locks than
 * threads that copy at the same time.  They take 16 KiB.
 */
#define STRIPES 256

#define CACHE_LINE_BYTES 64

struct stripe {
  pthread_rwlock_t lock;
} __attribute__ ((aligned (CACHE_LINE_BYTES)));

struct store {
  /* Constant after store_new. */
  uint64_t size;
  uint64_t mapped;              /* size, rounded up to a chunk */
  uint64_t system_page_bytes;
  unsigned char *data;          /* mapped bytes; under the chunk's stripe */
  uint16_t *words;              /* one per chunk; stored under its stripe */
  bool populated;               /* constant once store_populate was called */

  struct stripe stripes[STRIPES];
};

/* The part of a range that lies in one chunk. */
struct piece {
  uint64_t chunk;
  uint64_t offset, count;
  uint16_t touched;             /* pages that the piece touches */
  uint16_t whole;               /* pages that it covers */
};

static void *
map (uint64_t size)
{
  void *p;

  if (size > SIZE_MAX) {
    errno = ENOMEM;
    return NULL;
  }
  p = mmap (NULL, (size_t) size, PROT_READ|PROT_WRITE,
            MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

static uint64_t
words_bytes (const struct store *st)
{
  return st->mapped / CHUNK_BYTES * sizeof st->words[0];
}

static int
init_stripes (struct store *st)
{
  pthread_rwlockattr_t attr;
  int r = pthread_rwlockattr_init (&attr);

  if (r != 0)
    return r;
  /* By default readers go first, so a client that always reads one place would
   * keep a writer out.  No thread takes a stripe twice.
   */
  r = pthread_rwlockattr_setkind_np
    (&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  for (size_t i = 0; r == 0 && i < STRIPES; i++)
    r = pthread_rwlock_init (&st->stripes[i].lock, &attr);
  pthread_rwlockattr_destroy (&attr);
  return r;
}

static int
init (struct store *st, uint64_t size)
{
  st->size = size;
  st->mapped = (size + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
  st->system_page_bytes = (uint64_t) sysconf (_SC_PAGESIZE);
  st->data = map (st->mapped);
  st->words = st->data ? map (words_bytes (st)) : NULL;
  if (st->words == NULL)
    return errno;
  /* With huge pages, 4 KiB written here and there would take 2 MiB each.
   * Kernels without them do not know the advice, so a failure means nothing.
   */
  madvise (st->data, (size_t) st->mapped, MADV_NOHUGEPAGE);
  return init_stripes (st);
}

struct store *
store_new (uint64_t size)
{
  struct store *st;
  int r;

  if (size == 0 || size > INT64_MAX) {
    errno = EINVAL;
    return NULL;
  }
  r = posix_memalign ((void **) &st, CACHE_LINE_BYTES, sizeof *st);
  if (r == 0) {
    memset (st, 0, sizeof *st);
    r = init (st, size);
    if (r == 0)
      return st;
    store_free (st);
  }
  errno = r;
  return NULL;
}

/* Locks are not destroyed: glibc's rwlocks hold nothing outside their memory,
 * and after a failed store_new not all of them are initialized.
 */
void
store_free (struct store *st)
{
  if (st == NULL)
    return;
  if (st->words)
    munmap (st->words, (size_t) words_bytes (st));
  if (st->data)
    munmap (st->data, (size_t) st->mapped);
  free (st);
}

int
store_populate (struct store *st)
{
  const size_t mapped = (size_t) st->mapped;

  st->populated = true;
  /* Every page is taken here, so huge ones only make it faster. */
  madvise (st->data, mapped, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_WRITE
  if (madvise (st->data, mapped, MADV_POPULATE_WRITE) == 0)
    return 0;
  if (errno != EINVAL)
    return errno;
#endif
  /* Linux before 5.14.  No other thread uses the store yet. */
  for (size_t i = 0; i < mapped; i += st->system_page_bytes)
    *(volatile unsigned char *) &st->data[i] = 0;
  return 0;
}

/* Bits from..to-1. */
static uint16_t
bits (uint64_t from, uint64_t to)
{
  return from < to ? (uint16_t) ((1U << to) - (1U << from)) : 0;
}

/* Cuts the first piece off the range.  Returns false if nothing is left. */
static bool
next_piece (const struct store *st, uint64_t *count, uint64_t *offset,
            struct piece *p)
{
  uint64_t start, end;

  if (*count == 0)
    return false;
  p->chunk = *offset / CHUNK_BYTES;
  p->offset = *offset;
  p->count = CHUNK_BYTES - *offset % CHUNK_BYTES;
  if (p->count > *count)
    p->count = *count;
  *offset += p->count;
  *count -= p->count;

  start = p->offset - p->chunk * CHUNK_BYTES;
  end = start + p->count;
  p->touched = bits (start / STORE_PAGE_BYTES,
                     (end + STORE_PAGE_BYTES - 1) / STORE_PAGE_BYTES);
  /* The size may end within a page.  Nothing after it needs to stay. */
  if (*offset == st->size)
    end = CHUNK_BYTES;
  p->whole = bits ((start + STORE_PAGE_BYTES - 1) / STORE_PAGE_BYTES,
                   end / STORE_PAGE_BYTES) & p->touched;
  return true;
}

static pthread_rwlock_t *
lock_of (struct store *st, const struct piece *p)
{
  return &st->stripes[p->chunk % STRIPES].lock;
}

static uint16_t
load_word (const struct store *st, uint64_t chunk)
{
  return __atomic_load_n (&st->words[chunk], __ATOMIC_ACQUIRE);
}

static void
store_word_locked (struct store *st, uint64_t chunk, uint16_t word)
{
  __atomic_store_n (&st->words[chunk], word, __ATOMIC_RELEASE);
}

void
store_read (struct store *st, void *buf, uint64_t count, uint64_t offset)
{
  unsigned char *to = buf;
  struct piece p;

  while (next_piece (st, &count, &offset, &p)) {
    pthread_rwlock_rdlock (lock_of (st, &p));
    /* A read of memory that was never touched would map it.  If all memory is
     * taken, a hole takes as long as data: measurements want that.
     */
    if (st->populated || load_word (st, p.chunk) & p.touched)
      memcpy (to, &st->data[p.offset], p.count);
    else
      memset (to, 0, p.count);
    pthread_rwlock_unlock (lock_of (st, &p));
    to += p.count;
  }
}

void
store_write (struct store *st, const void *buf, uint64_t count,
             uint64_t offset)
{
  const unsigned char *from = buf;
  struct piece p;

  while (next_piece (st, &count, &offset, &p)) {
    pthread_rwlock_wrlock (lock_of (st, &p));
    memcpy (&st->data[p.offset], from, p.count);
    store_word_locked (st, p.chunk, load_word (st, p.chunk) | p.touched);
    pthread_rwlock_unlock (lock_of (st, &p));
    from += p.count;
  }
}

/* Makes COUNT bytes zero and gives the memory of whole system pages back.
 * Bytes in other pages are set to zero, as are all if the kernel does not take
 * the memory (mlock).
 */
static void
give_back_locked (struct store *st, uint64_t start, uint64_t count)
{
  const uint64_t page = st->system_page_bytes;
  const uint64_t end = start + count;
  const uint64_t first = (start + page - 1) / page * page;
  const uint64_t last = end / page * page;

  if (first < last &&
      madvise (&st->data[first], last - first, MADV_DONTNEED) == 0) {
    memset (&st->data[start], 0, first - start);
    memset (&st->data[last], 0, end - last);
  }
  else
    memset (&st->data[start], 0, count);
}

/* Makes the bytes of the piece zero that lie in PAGES. */
static void
zero_pages_locked (struct store *st, const struct piece *p, uint16_t pages)
{
  uint64_t start, end;

  for (; pages; pages &= (uint16_t) (pages - 1)) {
    start = p->chunk * CHUNK_BYTES +
      (uint64_t) __builtin_ctz (pages) * STORE_PAGE_BYTES;
    end = start + STORE_PAGE_BYTES;
    if (start < p->offset)
      start = p->offset;
    if (end > p->offset + p->count)
      end = p->offset + p->count;
    memset (&st->data[start], 0, end - start);
  }
}

void
store_zero (struct store *st, uint64_t count, uint64_t offset, bool give_back)
{
  struct piece p;
  uint16_t word;

  while (next_piece (st, &count, &offset, &p)) {
    /* Without the lock, so that 4 GiB of hole take no time.  A write without a
     * reply may come before or after this.
     */
    if ((load_word (st, p.chunk) & p.touched) == 0)
      continue;

    pthread_rwlock_wrlock (lock_of (st, &p));
    word = load_word (st, p.chunk);
    if (!give_back)
      p.whole = 0;
    if (word & p.whole)
      give_back_locked (st, p.chunk * CHUNK_BYTES +
                        (uint64_t) __builtin_ctz (p.whole) * STORE_PAGE_BYTES,
                        (uint64_t) __builtin_popcount (p.whole) *
                        STORE_PAGE_BYTES);
    zero_pages_locked (st, &p, word & p.touched & ~(unsigned) p.whole);
    store_word_locked (st, p.chunk, word & ~(unsigned) p.whole);
    pthread_rwlock_unlock (lock_of (st, &p));
  }
}

uint64_t
store_run (struct store *st, uint64_t count, uint64_t offset, bool *written)
{
  const uint64_t start = offset;
  const uint64_t page = offset % CHUNK_BYTES / STORE_PAGE_BYTES;
  uint16_t flip, other;
  struct piece p;

  /* After XOR with flip, pages like the first are 0. */
  *written = load_word (st, offset / CHUNK_BYTES) >> page & 1;
  flip = *written ? UINT16_MAX : 0;

  while (next_piece (st, &count, &offset, &p)) {
    other = (load_word (st, p.chunk) ^ flip) & p.touched;
    /* The first page counts as it was, if it changes meanwhile. */
    if (p.offset == start)
      other &= (uint16_t) ~(1U << page);
    if (other)
      return p.chunk * CHUNK_BYTES
        + (uint64_t) __builtin_ctz (other) * STORE_PAGE_BYTES - start;
  }
  return offset - start;
}
