/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Random requests of several clients: each reads the data that it wrote last.
 *
 * Threads send requests through all connections, each thread to its own parts
 * of the device.  A thread has a copy of these bytes.  It also knows which
 * blocks are unknown: those after a trim, and after a change that failed.  Each
 * read, and the device after each flush, must agree with the copy.
 *
 * Not here: whole servers (test-random.c, test-crash.c).
 */
#include "world.h"

enum { THREADS = 4, RANDOM_CONNS = 3 };

/* The device: stripes that the threads own in turn, a region for each thread,
 * and bytes that no thread changes.
 */
#define STRIPE (8 * KIB)
#define STRIPES (4 * U)
#define REGION (4 * U)
#define READ_ONLY (STRIPES + THREADS * REGION)
#define SIZE (READ_ONLY + 8 * U + 512)
#define BLOCK UINT64_C (512)

static const struct setup {
  const char *name;
  unsigned buffers, threads;
  enum write_mode write;
  bool fails;                   /* operations fail for a while */
  bool two_names;               /* the last connection has another name */
} setups[] = {
  { "deferred", 32, 8, WRITE_BEHIND, false, false },
  { "auto", 12, 4, WRITE_AUTO, false, false },
  { "through", 12, 4, WRITE_THROUGH, false, false },
  { "few-buffers", 6, 2, WRITE_BEHIND, false, false },
  { "one-thread", 16, 1, WRITE_BEHIND, false, false },
  { "failing", 24, 4, WRITE_BEHIND, true, false },
  { "failing-few", 8, 2, WRITE_AUTO, true, false },
  { "two-names", 24, 4, WRITE_BEHIND, false, true },
};

struct run {
  struct world *w;
  const struct setup *setup;
  unsigned ops;                 /* of each thread */
  /* Held for writing to close and open the connection. */
  pthread_rwlock_t conn_lock[RANDOM_CONNS];
  /* Each byte and block is used by its owner only. */
  uint8_t *copy;
  bool *known;
  atomic_uint errors, done;
};

struct client {
  pthread_t thread;
  struct run *r;
  unsigned self;
  GRand *rand;
};

static bool
is_mine (const struct client *c, uint64_t block)
{
  uint64_t offset = block * BLOCK;

  if (offset < STRIPES)
    return offset / STRIPE % THREADS == c->self;
  return offset < READ_ONLY && (offset - STRIPES) / REGION == c->self;
}

/* A range of whole blocks that this thread owns. */
static void
choose_own (struct client *c, uint64_t *offset, uint32_t *count)
{
  uint64_t base, size;
  unsigned most;

  if (g_rand_boolean (c->rand)) {
    base = g_rand_int_range (c->rand, 0, STRIPES / STRIPE / THREADS);
    base = (base * THREADS + c->self) * STRIPE;
    size = STRIPE;
  }
  else {
    base = STRIPES + c->self * REGION;
    size = REGION;
  }
  most = g_rand_int_range (c->rand, 0, 8) ? 16 : size / BLOCK;
  *count = g_rand_int_range (c->rand, 1, most + 1) * BLOCK;
  *offset = base
    + g_rand_int_range (c->rand, 0, (size - *count) / BLOCK + 1) * BLOCK;
}

/* Compares data from a read, or from the device, with this thread's copy. */
static void
check_own (struct client *c, const uint8_t *buf, uint32_t count,
           uint64_t offset, const char *where)
{
  struct run *r = c->r;

  for (uint64_t o = offset / BLOCK * BLOCK; o < offset + count; o += BLOCK) {
    uint64_t from = MAX (o, offset), to = MIN (o + BLOCK, offset + count);

    if (o < READ_ONLY && (!is_mine (c, o / BLOCK) || !r->known[o / BLOCK]))
      continue;
    if (memcmp (buf + (from - offset), r->copy + from, to - from) != 0)
      g_error ("thread %u: %s: block at %" PRIu64 " is not what was written "
               "last", c->self, where, o);
  }
}

/* A change of this thread's blocks has ended. */
static void
note_own (struct client *c, enum kind kind, uint32_t count, uint64_t offset,
          const uint8_t *buf, int err)
{
  struct run *r = c->r;
  bool known = err == 0 && kind != TRIM;

  if (err)
    atomic_fetch_add (&r->errors, 1);
  for (uint64_t b = offset / BLOCK; b < (offset + count) / BLOCK; b++)
    r->known[b] = known;
  if (kind == ZERO)
    memset (r->copy + offset, 0, count);
  else if (kind != TRIM)
    memcpy (r->copy + offset, buf, count);
}

static void
read_and_check (struct client *c, unsigned i, uint8_t *buf, uint32_t count,
                uint64_t offset)
{
  if (request (c->r->w, i, READ, buf, count, offset) == 0)
    check_own (c, buf, count, offset, "read");
  else
    g_assert_true (c->r->setup->fails);
}

static void
random_read (struct client *c, unsigned i)
{
  g_autofree uint8_t *buf = NULL;
  uint64_t offset;
  uint32_t count;

  if (g_rand_boolean (c->rand)) {
    offset = g_rand_int_range (c->rand, 0, SIZE - 1);
    count = g_rand_int_range (c->rand, 1, MIN (3 * U, SIZE - offset) + 1);
  }
  else
    choose_own (c, &offset, &count);
  buf = g_malloc (count);
  read_and_check (c, i, buf, count, offset);
}

/* Reads in sequence, for which data is prefetched. */
static void
random_stream (struct client *c, unsigned i)
{
  uint64_t base = g_rand_boolean (c->rand) ? STRIPES + c->self * REGION
    : READ_ONLY;
  g_autofree uint8_t *buf = g_malloc (8 * KIB);

  for (uint64_t offset = base; offset < base + REGION; offset += 8 * KIB)
    read_and_check (c, i, buf, 8 * KIB, offset);
}

static void
random_change (struct client *c, unsigned i, enum kind kind)
{
  g_autofree uint8_t *buf = NULL;
  uint64_t offset;
  uint32_t count;
  int err;

  choose_own (c, &offset, &count);
  buf = g_malloc (count);
  for (uint32_t n = 0; n < count; n += 4) {
    uint32_t v = g_rand_int (c->rand);

    memcpy (buf + n, &v, 4);
  }
  err = request (c->r->w, i, kind, buf, count, offset);
  note_own (c, kind, count, offset, buf, err);
}

/* After a flush, all that this thread has written is in the device. */
static void
random_flush (struct client *c, unsigned i)
{
  struct run *r = c->r;
  unsigned other = i == 2 ? 0 : 2;
  g_autofree uint8_t *buf = NULL;
  int err = request (r->w, i, FLUSH, NULL, 0, 0);

  if (err == 0 && r->setup->two_names) {        /* a flush covers one name */
    pthread_rwlock_rdlock (&r->conn_lock[other]);
    err = request (r->w, other, FLUSH, NULL, 0, 0);
    pthread_rwlock_unlock (&r->conn_lock[other]);
  }
  if (err) {
    g_assert_true (r->setup->fails);
    return;
  }
  buf = g_malloc (SIZE);
  fake_peek (r->w->f, buf, SIZE, 0);
  check_own (c, buf, SIZE, 0, "device after flush");
}

static void
open_random (struct run *r, unsigned i)
{
  struct backend b = world_backend (r->w, i);
  const char *name = r->setup->two_names && i == 2 ? "other" : "";

  g_assert_cmpint (conn_open (r->w->e, name, &b, &r->w->c[i]), ==, 0);
}

static void
random_reopen (struct client *c, unsigned i)
{
  struct run *r = c->r;

  pthread_rwlock_unlock (&r->conn_lock[i]);
  pthread_rwlock_wrlock (&r->conn_lock[i]);
  request (r->w, i, CLOSE, NULL, 0, 0);
  open_random (r, i);
}

/* Request N of this thread. */
static void
random_request (struct client *c, unsigned n)
{
  struct run *r = c->r;
  unsigned i = g_rand_int_range (c->rand, 0, RANDOM_CONNS);
  unsigned what = g_rand_int_range (c->rand, 0, 1000);

  /* Failures come for a while, in the second quarter and the third. */
  if (r->setup->fails && c->self == 0 && n == r->ops / 4)
    gate_fail_some (r->w->gate, GATE_ANY, 200, g_rand_int (c->rand));
  if (r->setup->fails && c->self == 0 && n == r->ops / 4 * 3)
    gate_fail_some (r->w->gate, 0, 0, 0);

  pthread_rwlock_rdlock (&r->conn_lock[i]);
  if (what < 350)
    random_change (c, i, WRITE);
  else if (what < 400)
    random_change (c, i, FUA);
  else if (what < 450)
    random_change (c, i, ZERO);
  else if (what < 480)
    random_change (c, i, TRIM);
  else if (what < 530)
    random_flush (c, i);
  else if (what < 535 && !r->setup->fails)
    random_reopen (c, i);
  else if (what < 560)
    drain (r->w, i, U, g_rand_int_range (c->rand, 0, SIZE - U));
  else if (what < 850)
    random_read (c, i);
  else
    random_stream (c, i);
  pthread_rwlock_unlock (&r->conn_lock[i]);
}

static void *
run_client (void *vp)
{
  struct client *c = vp;

  for (unsigned n = 0; n < c->r->ops; n++)
    random_request (c, n);
  atomic_fetch_add (&c->r->done, 1);
  return NULL;
}

static void
run_clients (struct run *r, struct client *clients)
{
  for (unsigned i = 0; i < THREADS; i++) {
    clients[i] = (struct client) {
      .r = r, .self = i, .rand = g_rand_new_with_seed (g_test_rand_int ())
    };
    g_assert_cmpint (pthread_create (&clients[i].thread, NULL, run_client,
                                     &clients[i]), ==, 0);
  }
  while (atomic_load (&r->done) < THREADS) {
    engine_check (r->w->e);
    g_usleep (500);
  }
  for (unsigned i = 0; i < THREADS; i++)
    pthread_join (clients[i].thread, NULL);
  engine_check (r->w->e);
}

/* Operations succeed again: so does a flush of each connection, and all data is
 * in the device.
 */
static void
check_end (struct run *r, struct client *clients)
{
  g_autofree uint8_t *buf = g_malloc (SIZE);

  gate_fail_some (r->w->gate, 0, 0, 0);
  for (unsigned i = 0; i < RANDOM_CONNS; i++)
    g_assert_cmpint (request (r->w, i, FLUSH, NULL, 0, 0), ==, 0);
  for (unsigned i = 0; i < THREADS; i++) {
    for (unsigned n = 0; n < RANDOM_CONNS; n++) {
      g_assert_cmpint (request (r->w, n, READ, buf, SIZE, 0), ==, 0);
      check_own (&clients[i], buf, SIZE, 0, "read at the end");
    }
    fake_peek (r->w->f, buf, SIZE, 0);
    check_own (&clients[i], buf, SIZE, 0, "device at the end");
    g_rand_free (clients[i].rand);
  }
  engine_check (r->w->e);
  /* No two requests changed the same bytes at once, so the plugin has not seen
   * that either.
   */
  assert_no_collisions (r->w);
}

static void
print_counters (struct run *r)
{
  const struct stats *s = r->w->e->stats;

  g_test_message ("%u operations, %u at once, %u client errors, deferred %"
                  PRIu64 ", coalesced %" PRIu64 ", prefetch used %" PRIu64
                  ", deferred errors %" PRIu64 ", waits for a buffer %" PRIu64,
                  gate_started (r->w->gate, GATE_ANY, ANYWHERE),
                  gate_peak (r->w->gate), atomic_load (&r->errors),
                  stats_counter (s, STATS_DEFERRED),
                  stats_counter (s, STATS_COALESCED),
                  stats_counter (s, STATS_AHEAD_USED),
                  stats_counter (s, STATS_DEFERRED_ERRORS),
                  stats_count (s, STATS_SPACE_WAIT));
}

static void
test_random (struct world *w)
{
  const struct setup *s = &setups[w->arg];
  struct engine_config c = config (s->buffers, s->threads, s->write,
                                   READ_AHEAD);
  struct run r = {
    .w = w, .setup = s, .ops = g_test_thorough () ? 20000 : 600
  };
  struct client clients[THREADS];

  c.linger_ns = 1000000;
  world_start (w, SIZE, c);
  for (unsigned i = 0; i < RANDOM_CONNS; i++) {
    pthread_rwlock_init (&r.conn_lock[i], NULL);
    open_random (&r, i);
    fake_make_slow (w->c[i]);
  }
  r.copy = g_malloc (SIZE);
  fill (r.copy, SIZE, 0, OLD);
  r.known = g_new (bool, SIZE / BLOCK);
  memset (r.known, true, SIZE / BLOCK);

  run_clients (&r, clients);
  check_end (&r, clients);
  print_counters (&r);

  for (unsigned i = 0; i < RANDOM_CONNS; i++)
    pthread_rwlock_destroy (&r.conn_lock[i]);
  g_free (r.known);
  g_free (r.copy);
}

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  for (unsigned i = 0; i < G_N_ELEMENTS (setups); i++) {
    g_autofree char *name = g_strdup_printf ("random/%s", setups[i].name);

    tests_add (&(struct test) { name, test_random, i }, 1);
  }
  return tests_run ();
}
