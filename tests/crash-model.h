/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A model of crash.so's device, for test-crash.c: what each block may hold.
 *
 * A write, zero or trim is a change, and has a number.  A write fills its
 * blocks with its number, so that a block names its origin.  The model has a
 * history for each block: the numbers of its changes, oldest first.  Changes
 * of one block are never in flight together.  Two of them are special:
 *
 * - acknowledged: the newest that succeeded.  A read returns it, or one after
 *   it, which has failed and may be there in part.
 * - promised: the newest that a flush or FUA covers.  The durable block holds
 *   it, or any later one, as a device may write more than it must.
 *
 * A trimmed block may hold any older data, but never another block's.  Change 0
 * is the empty device.
 *
 * Not its job: which connections a flush covers (test-crash.c).
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
#include "in-flight.h"

enum { WORDS = CRASH_BLOCK / 8 };
enum { FOREIGN = -1, ZEROES = 0 };      /* of a block, in place of a number */

enum state { IN_FLIGHT, SUCCEEDED, FAILED };
static const char *const state_names[] = { "in flight", "succeeded", "failed" };

/* A change's number is its index in the model's array. */
struct change {
  enum kind kind;               /* WRITE, ZERO or TRIM */
  enum state state;
  bool fua;
  bool reported;                /* a later flush of its client failed */
  unsigned client;
  unsigned sent, completed;     /* moments; the later one is greater */
  uint64_t offset, count;
};

struct block {
  GArray *history;              /* unsigned: numbers of changes */
  unsigned acknowledged, promised;
};

struct model {
  unsigned now;
  GArray *changes;
  struct block blocks[CRASH_BLOCKS];
};

static inline struct change *
model_get (const struct model *m, unsigned number)
{
  return &g_array_index (m->changes, struct change, number);
}

/* The number of the block's Ith change. */
static inline unsigned
block_get (const struct block *b, unsigned i)
{
  return g_array_index (b->history, unsigned, i);
}

/* A change is sent.  Returns its number. */
static inline unsigned
model_send (struct model *m, const struct change *c)
{
  unsigned number = m->changes->len;

  g_array_append_vals (m->changes, c, 1);
  for (uint64_t i = 0; i < c->count / CRASH_BLOCK; i++)
    g_array_append_val (m->blocks[c->offset / CRASH_BLOCK + i].history, number);
  return number;
}

static inline void
model_init (struct model *m)
{
  struct change empty = {
    .kind = ZERO, .state = SUCCEEDED, .count = CRASH_SIZE
  };

  memset (m, 0, sizeof *m);
  m->changes = g_array_new (false, false, sizeof empty);
  for (unsigned i = 0; i < CRASH_BLOCKS; i++)
    m->blocks[i].history = g_array_new (false, false, sizeof (unsigned));
  model_send (m, &empty);
}

static inline void
model_destroy (struct model *m)
{
  for (unsigned i = 0; i < CRASH_BLOCKS; i++)
    g_array_unref (m->blocks[i].history);
  g_array_unref (m->changes);
}

/* The change has its reply. */
static inline void
model_complete (struct model *m, unsigned number, bool success)
{
  struct change *c = model_get (m, number);

  c->state = success ? SUCCEEDED : FAILED;
  c->completed = ++m->now;
  for (uint64_t i = 0; success && i < c->count / CRASH_BLOCK; i++) {
    struct block *b = &m->blocks[c->offset / CRASH_BLOCK + i];

    b->acknowledged = number;
    if (c->fua)
      b->promised = number;
  }
}

/* A flush of this client failed.  This error may report the client's lost
 * changes, which newer data of another device has superseded.  It is reported
 * once, so a later flush may succeed.
 */
static inline void
model_flush_failed (struct model *m, unsigned client)
{
  for (unsigned i = 1; i < m->changes->len; i++) {
    struct change *c = model_get (m, i);

    if (c->client == client && c->state == SUCCEEDED)
      c->reported = true;
  }
}

/* A flush that was sent at this moment has succeeded.  It covers the clients
 * for which the function says so, but no change that was reported and that
 * another client superseded.  Newer changes of the same client may lie between
 * these two: they share the fate of the older one where both wait for a retry,
 * and a newer one that failed leaves the older one waiting.
 */
static inline void
model_flush (struct model *m, unsigned sent,
             bool (*covers) (void *data, unsigned client), void *data)
{
  for (unsigned block = 0; block < CRASH_BLOCKS; block++) {
    struct block *b = &m->blocks[block];
    unsigned newest = UINT_MAX; /* the client of the newest change */
    bool is_mixed = false;      /* newer changes have several clients */

    for (unsigned i = b->history->len; block_get (b, --i) > b->promised;) {
      const struct change *c = model_get (m, block_get (b, i));
      bool is_superseded = c->reported && newest != UINT_MAX
        && (is_mixed || newest != c->client);

      /* If it failed, a part may be there. */
      is_mixed |= newest != UINT_MAX && newest != c->client;
      newest = newest == UINT_MAX ? c->client : newest;
      if (c->state != SUCCEEDED || c->completed > sent || is_superseded
          || !covers (data, c->client))
        continue;
      b->promised = block_get (b, i);
      break;
    }
  }
}

/* The data of a write.  Each word has the number, the block and its place in
 * the block.
 */
static inline void
model_stamp (char *buf, unsigned number, uint64_t offset, uint64_t count)
{
  uint64_t *words = (uint64_t *) (void *) buf;

  for (uint64_t i = 0; i < count / 8; i++) {
    uint64_t block = (offset + i * 8) / CRASH_BLOCK;

    words[i] = ((uint64_t) number << 32 | block) ^ (i % WORDS) << 56;
  }
}

/* The number of the write that has written all of the block. */
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

/* The newest change that was acknowledged to this client: the least that it
 * reads where it shares no failed data with others.
 */
static inline unsigned
model_own (const struct model *m, uint64_t block, unsigned client)
{
  const struct block *b = &m->blocks[block];
  unsigned i = b->history->len - 1;

  while (i > 0 && (model_get (m, block_get (b, i))->state != SUCCEEDED
                   || model_get (m, block_get (b, i))->client != client))
    i--;
  return block_get (b, i);
}

/* Whether the block may have this origin where change LEAST or a later one is
 * due.
 */
static inline bool
model_may_hold (const struct model *m, uint64_t block, int origin,
                unsigned least)
{
  const struct block *b = &m->blocks[block];

  for (unsigned i = b->history->len; i-- > 0 && block_get (b, i) >= least;) {
    unsigned n = block_get (b, i);
    enum kind kind = model_get (m, n)->kind;

    if (kind == TRIM ? origin != FOREIGN
        : kind == ZERO ? origin == ZEROES : origin == (int) n)
      return true;
  }
  return false;
}

static inline void
model_print (const struct model *m, uint64_t block)
{
  const struct block *b = &m->blocks[block];

  fprintf (stderr, "# block %" PRIu64 " at %#" PRIx64 ": acknowledged %u, "
           "promised %u, now %u, history:\n", block, block * CRASH_BLOCK,
           b->acknowledged, b->promised, m->now);
  for (unsigned i = b->history->len - MIN (b->history->len, 8);
       i < b->history->len; i++) {
    const struct change *c = model_get (m, block_get (b, i));

    fprintf (stderr, "#   %u: %s%s by client %u at %#" PRIx64 "+%#" PRIx64
             ", sent %u, %s %u\n", block_get (b, i), kind_names[c->kind],
             c->fua ? " FUA" : "", c->client, c->offset, c->count, c->sent,
             state_names[c->state], c->completed);
  }
}

#endif /* TESTS_CRASH_MODEL_H */
