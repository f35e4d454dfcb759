/* SPDX-License-Identifier: BSD-3-Clause */
/* What each block of crash.so's device may hold, for test-crash.c.
 *
 * Every write has a number, and every block that it writes names this number,
 * so that a block tells its origin.  A block's history is the list of its
 * writes, oldest first; these are never in flight together.  Two members of
 * the list have a part:
 *
 * - stable: the newest that was acknowledged.  A read returns it, or one that
 *   failed after it.
 * - floor: the newest that a flush or FUA promised.  The durable block holds
 *   it, or any later one.
 *
 * A block that was trimmed may hold any older data, but never another block's.
 * Number 0 is the empty device.
 */
#ifndef TESTS_CRASH_MODEL_H
#define TESTS_CRASH_MODEL_H

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <glib.h>

#include "crash.h"

enum { WORDS = CRASH_BLOCK / 8 };
enum { FOREIGN = -1, ZEROES = 0 };      /* of a block, in place of a number */

enum kind { READ, WRITE, ZERO, TRIM, FLUSH };
static const char *const kind_names[] = {
  "read", "write", "zero", "trim", "flush",
};

enum state { IN_FLIGHT, GOOD, FAILED };
static const char *const state_names[] = { "in flight", "good", "failed" };

/* A write, zero or trim.  Its number is its index in the model's array. */
struct write {
  enum kind kind;
  enum state state;
  bool fua;
  bool reported;                /* its client had an error from a flush since */
  unsigned client;
  unsigned sent, settled;       /* moments; the later one is greater */
  uint64_t offset, count;
};

struct block {
  GArray *history;              /* unsigned: numbers of writes */
  unsigned stable, floor;
};

struct model {
  unsigned now;
  GArray *writes;
  struct block blocks[CRASH_BLOCKS];
};

static inline struct write *
model_get (const struct model *m, unsigned number)
{
  return &g_array_index (m->writes, struct write, number);
}

static inline unsigned
block_get (const struct block *b, unsigned i)
{
  return g_array_index (b->history, unsigned, i);
}

/* A new write is sent; the result is its number. */
static inline unsigned
model_send (struct model *m, const struct write *w)
{
  unsigned number = m->writes->len;

  g_array_append_vals (m->writes, w, 1);
  for (uint64_t i = 0; i < w->count / CRASH_BLOCK; i++)
    g_array_append_val (m->blocks[w->offset / CRASH_BLOCK + i].history, number);
  return number;
}

static inline void
model_init (struct model *m)
{
  struct write nothing = { .kind = ZERO, .state = GOOD, .count = CRASH_SIZE };

  memset (m, 0, sizeof *m);
  m->writes = g_array_new (false, false, sizeof nothing);
  for (unsigned i = 0; i < CRASH_BLOCKS; i++)
    m->blocks[i].history = g_array_new (false, false, sizeof (unsigned));
  model_send (m, &nothing);
}

static inline void
model_destroy (struct model *m)
{
  for (unsigned i = 0; i < CRASH_BLOCKS; i++)
    g_array_unref (m->blocks[i].history);
  g_array_unref (m->writes);
}

/* The write was answered. */
static inline void
model_settle (struct model *m, unsigned number, bool is_good)
{
  struct write *w = model_get (m, number);

  w->state = is_good ? GOOD : FAILED;
  w->settled = ++m->now;
  for (uint64_t i = 0; is_good && i < w->count / CRASH_BLOCK; i++) {
    struct block *b = &m->blocks[w->offset / CRASH_BLOCK + i];

    b->stable = number;
    if (w->fua)
      b->floor = number;
  }
}

/* A flush of this client failed.  If a write of its own was lost to a newer one
 * of another client that is apart, this was what it is told, once.
 */
static inline void
model_flush_failed (struct model *m, unsigned client)
{
  for (unsigned i = 1; i < m->writes->len; i++) {
    struct write *w = model_get (m, i);

    if (w->client == client && w->state == GOOD)
      w->reported = true;
  }
}

/* A flush succeeded that was sent at that moment.  It covers the clients for
 * which the function says so, but what was reported and replaced by others.
 */
static inline void
model_flush (struct model *m, unsigned sent,
             bool (*covers) (void *data, unsigned client), void *data)
{
  for (unsigned block = 0; block < CRASH_BLOCKS; block++) {
    struct block *b = &m->blocks[block];
    unsigned newer = UINT_MAX;          /* the client of the next newer one */

    for (unsigned i = b->history->len; block_get (b, --i) > b->floor;) {
      const struct write *w = model_get (m, block_get (b, i));
      bool is_replaced = w->reported && newer != UINT_MAX
        && newer != w->client;

      newer = w->client;        /* one that failed may have been done in part */
      if (w->state != GOOD || w->settled > sent || is_replaced
          || !covers (data, w->client))
        continue;
      b->floor = block_get (b, i);
      break;
    }
  }
}

/* What a write writes. */
static inline void
model_stamp (char *buf, unsigned number, uint64_t offset, uint64_t count)
{
  uint64_t *words = (uint64_t *) (void *) buf;

  for (uint64_t i = 0; i < count / 8; i++) {
    uint64_t block = (offset + i * 8) / CRASH_BLOCK;

    words[i] = ((uint64_t) number << 32 | block) ^ (i % WORDS) << 56;
  }
}

/* The number of the write that the whole block is of. */
static inline int
model_origin (const char *data, uint64_t block)
{
  uint64_t words[WORDS];

  memcpy (words, data, sizeof words);
  for (unsigned i = 1; i < WORDS; i++)
    if (words[i] != (words[0] ? words[0] ^ (uint64_t) i << 56 : 0))
      return FOREIGN;
  if (words[0] == 0)
    return ZEROES;
  return (uint32_t) words[0] == block ? (int) (words[0] >> 32) : FOREIGN;
}

/* What a client must see that does not share failed data with others: the
 * newest that was acknowledged to itself.  (What is promised to another one may
 * be written while the read is under way.)
 */
static inline unsigned
model_own (const struct model *m, uint64_t block, unsigned client)
{
  const struct block *b = &m->blocks[block];
  unsigned i = b->history->len - 1;

  while (i > 0 && (model_get (m, block_get (b, i))->state != GOOD
                   || model_get (m, block_get (b, i))->client != client))
    i--;
  return block_get (b, i);
}

/* Whether the block may hold this where NUMBER or a later write is due. */
static inline bool
model_may_hold (const struct model *m, uint64_t block, int found,
                unsigned number)
{
  const struct block *b = &m->blocks[block];

  for (unsigned i = b->history->len; i-- > 0 && block_get (b, i) >= number;) {
    unsigned n = block_get (b, i);
    enum kind kind = model_get (m, n)->kind;

    if (kind == TRIM ? found != FOREIGN
        : kind == ZERO ? found == ZEROES : found == (int) n)
      return true;
  }
  return false;
}

static inline void
model_print (const struct model *m, uint64_t block)
{
  const struct block *b = &m->blocks[block];

  fprintf (stderr, "# block %" PRIu64 " at %#" PRIx64 ": stable %u, floor %u, "
           "now %u, history:\n", block, block * CRASH_BLOCK, b->stable,
           b->floor, m->now);
  for (unsigned i = b->history->len - MIN (b->history->len, 8);
       i < b->history->len; i++) {
    const struct write *w = model_get (m, block_get (b, i));

    fprintf (stderr, "#   %u: %s%s by client %u at %#" PRIx64 "+%#" PRIx64
             ", sent %u, %s %u\n", block_get (b, i), kind_names[w->kind],
             w->fua ? " FUA" : "", w->client, w->offset, w->count, w->sent,
             state_names[w->state], w->settled);
  }
}

#endif /* TESTS_CRASH_MODEL_H */
