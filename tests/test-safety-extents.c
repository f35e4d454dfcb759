/* SPDX-License-Identifier: BSD-3-Clause */

/* Block status over dirty data.
 *
 * Block status must not report a hole where an acknowledged write is dirty.
 * The device is one hole in the beginning.
 */
#include <stdatomic.h>

#include "cases.h"

struct status {
  uint64_t hole_at;             /* the first byte of a hole, or UINT64_MAX */
  uint64_t hole_end;            /* the end of the last hole */
};

static int
note_extents (void *user_data, const char *context, uint64_t offset,
              uint32_t *entries, size_t n, int *error)
{
  struct status *status = user_data;

  (void) context;
  (void) error;
  for (size_t i = 0; i < n; i += 2) {
    bool is_hole = entries[i + 1] & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO);

    if (is_hole && status->hole_at == UINT64_MAX)
      status->hole_at = offset;
    offset += entries[i];
    if (is_hole)
      status->hole_end = offset;
  }
  return 0;
}

/* The reply goes to *STATUS. */
static struct request
send_block_status (struct nbd_handle *nbd, struct status *status,
                   uint64_t count, uint64_t offset)
{
  *status = (struct status) { .hole_at = UINT64_MAX };
  return request_sent (nbd, nbd_aio_block_status
                       (nbd, count, offset,
                        (nbd_extent_callback) { .callback = note_extents,
                                                .user_data = status },
                        NBD_NULL_COMPLETION, 0));
}

static struct status
block_status (struct nbd_handle *nbd, uint64_t count, uint64_t offset)
{
  struct status status;
  struct request request = send_block_status (nbd, &status, count, offset);

  assert_succeeds (&request);
  return status;
}

static uint64_t
first_hole (struct nbd_handle *nbd, uint64_t count, uint64_t offset)
{
  return block_status (nbd, count, offset).hole_at;
}

/* A's write is held.  B's request may wait for it, or know better than the
 * plugin.
 */
static void
play_in_flight (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct status status;
  struct request request;
  int held;

  scene_start (&c, t);
  g_assert_cmpuint (first_hole (c.a, MIB, 0), ==, 0);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  request = send_block_status (c.b, &status, MIB, 0);
  round_trips (c.b);
  gate_release (c.gate, held);
  assert_succeeds (&request);
  g_assert_cmpuint (status.hole_at, >=, UNIT);
  scene_stop (&c);
}

static void
play_failed (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  int failing;

  scene_start (&c, t);
  failing = gate_fail (c.gate, GATE_WRITE, MIB, UNIT, ENOSPC, -1);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, MIB, 0));
  gate_wait_ended (c.gate, GATE_WRITE, MIB, UNIT, 1);
  g_assert_cmpuint (first_hole (c.b, UNIT, MIB), ==, UINT64_MAX);
  g_assert_cmpuint (first_hole (c.b, MIB, MIB), !=, MIB);
  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.b, 0));
  g_assert_cmpuint (first_hole (c.b, MIB, MIB), ==, MIB + UNIT);
  scene_stop (&c);
}

/* A plugin may report more than the request asks for: no hole in dirty data
 * there, either.
 */
static void
play_beyond_request (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (512, 1);
  struct status status;

  scene_start_alone (&c, t);
  hold_deferred (&c, c.a, data, 512, 1024);
  status = block_status (c.a, 512, 0);
  g_assert_cmpuint (status.hole_at, ==, 0);
  g_assert_cmpuint (status.hole_end, <=, 1024);
  scene_stop (&c);
}

/* Random requests of two clients, each on a thread of its own, and a model.  A
 * client changes every second group of blocks, so it knows what it must read
 * there.  Each asks for the block status of all of them.
 */
enum { BLOCK = 4096, BLOCKS = 256, GROUP = 8 };

struct model {
  /* A client's own: the byte that fills the block. */
  char byte[BLOCKS];
  /* Counts up before each change and after it.  So an odd number is a change
   * that is not acknowledged yet.
   */
  atomic_uint version[BLOCKS];
  atomic_bool is_data[BLOCKS];  /* acknowledged */
};

struct player {
  struct nbd_handle *nbd;
  struct model *model;
  unsigned me;
  GRand *rand;
  char buf[GROUP * BLOCK], expected[GROUP * BLOCK];
  unsigned n_status;            /* its requests for block status */
  unsigned n_holes;             /* seen, so that the test is about something */
};

struct blocks {
  unsigned at, n;
};

static bool
chance (struct player *p, unsigned percent)
{
  return g_rand_int_range (p->rand, 0, 100) < (int) percent;
}

/* Some blocks of one group of the player's own. */
static struct blocks
pick (struct player *p)
{
  unsigned group = g_rand_int_range (p->rand, 0, BLOCKS / GROUP / 2);
  unsigned from = g_rand_int_range (p->rand, 0, GROUP);

  return (struct blocks) {
    (2 * group + p->me) * GROUP + from,
    g_rand_int_range (p->rand, 1, GROUP - from + 1)
  };
}

static void
play_change (struct player *p)
{
  struct blocks b = pick (p);
  bool is_data = chance (p, 60);
  char byte = is_data ? g_rand_int_range (p->rand, 1, 127) : 0;
  uint32_t fua = chance (p, 10) ? LIBNBD_CMD_FLAG_FUA : 0;

  for (unsigned i = b.at; i < b.at + b.n; i++)
    atomic_fetch_add (&p->model->version[i], 1);
  memset (p->buf, byte, b.n * BLOCK);
  if (is_data)
    nbd_ok (nbd_pwrite (p->nbd, p->buf, b.n * BLOCK, b.at * BLOCK, fua));
  else if (chance (p, 50))
    nbd_ok (nbd_zero (p->nbd, b.n * BLOCK, b.at * BLOCK, fua));
  else
    nbd_ok (nbd_trim (p->nbd, b.n * BLOCK, b.at * BLOCK, fua));
  for (unsigned i = b.at; i < b.at + b.n; i++) {
    p->model->byte[i] = byte;
    atomic_store (&p->model->is_data[i], is_data);
    atomic_fetch_add (&p->model->version[i], 1);
  }
}

static void
play_read (struct player *p)
{
  struct blocks b = pick (p);

  for (unsigned i = 0; i < b.n; i++)
    memset (p->expected + i * BLOCK, p->model->byte[b.at + i], BLOCK);
  nbd_ok (nbd_pread (p->nbd, p->buf, b.n * BLOCK, b.at * BLOCK, 0));
  g_assert_true (memcmp (p->buf, p->expected, b.n * BLOCK) == 0);
}

static int
note_holes (void *is_hole, const char *context, uint64_t offset,
            uint32_t *entries, size_t n, int *error)
{
  (void) context;
  (void) error;
  for (size_t i = 0; i < n; i += 2) {
    uint64_t end = MIN (offset + entries[i], BLOCKS * BLOCK);

    for (uint64_t at = offset; entries[i + 1] && at < end; at += BLOCK)
      ((bool *) is_hole)[at / BLOCK] = true;
    offset += entries[i];
  }
  return 0;
}

static void
play_status (struct player *p)
{
  unsigned from = chance (p, 50) ? 0 : g_rand_int_range (p->rand, 0, BLOCKS);
  unsigned version[BLOCKS];
  bool was_data[BLOCKS], is_hole[BLOCKS] = { false };

  p->n_status++;
  for (unsigned i = 0; i < BLOCKS; i++) {
    version[i] = atomic_load (&p->model->version[i]);
    was_data[i] = version[i] % 2 == 0 && atomic_load (&p->model->is_data[i]);
  }
  nbd_ok (nbd_block_status (p->nbd, (BLOCKS - from) * BLOCK, from * BLOCK,
                            (nbd_extent_callback) { .callback = note_holes,
                                                    .user_data = is_hole },
                            0));
  for (unsigned i = 0; i < BLOCKS; i++) {
    p->n_holes += is_hole[i];
    if (is_hole[i] && was_data[i])
      g_assert_cmpuint (atomic_load (&p->model->version[i]), !=, version[i]);
  }
}

static void *
play_requests (void *vp)
{
  struct player *p = vp;

  for (unsigned n = client_is_slow () ? 300 : 1500; n > 0; n--) {
    if (chance (p, 60))
      play_status (p);
    else if (chance (p, 50))
      play_read (p);
    else if (chance (p, 95))
      play_change (p);
    else
      nbd_ok (nbd_flush (p->nbd, 0));
  }
  return NULL;
}

static void
play_random (const struct setup *t)
{
  struct scene c;
  struct model model = { 0 };
  struct player players[2] = { 0 };
  pthread_t threads[2];

  scene_start (&c, t);
  for (unsigned i = 0; i < 2; i++) {
    players[i] = (struct player) {
      .nbd = i == 0 ? c.a : c.b, .model = &model, .me = i,
      .rand = g_rand_new_with_seed (g_test_rand_int ())
    };
    g_assert_cmpint (pthread_create (&threads[i], NULL, play_requests,
                                     &players[i]), ==, 0);
  }
  for (unsigned i = 0; i < 2; i++) {
    pthread_join (threads[i], NULL);
    g_assert_cmpuint (players[i].n_holes, >, 0);
    g_rand_free (players[i].rand);
  }
  /* The answers of some requests were kept. */
  g_assert_cmpuint (gate_started (c.gate, GATE_EXTENTS, ANYWHERE), <,
                    players[0].n_status + players[1].n_status);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "in-flight", play_in_flight, .plugins = BOTH },
  { "failed", play_failed, .plugins = BOTH },
  { "beyond-request", play_beyond_request, .plugins = BOTH },
  { "random", play_random, .plugins = BOTH, .relations = ALL_RELATIONS,
    .setup = { .words = "slow_extents=1" } },
};

CASES_MAIN (rows)
