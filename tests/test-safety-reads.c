/* SPDX-License-Identifier: BSD-3-Clause */

/* Reads.  Safety 2 of the contract:
 *
 *   A read returns the last acknowledged write, zero or trim to that range,
 *   whichever connection sent it and wherever the data is (plugin, slab, in
 *   flight).  The filter is never weaker than the same server without it.
 *
 * Dirty data is in the slab and not on the device.  Prefetched data is in the
 * slab, and a change makes it stale.
 */
#include "cases.h"

/* Dirty data. */

/* Layers of writes: one in the plugin, the others behind it or still open. */
static const struct {
  uint64_t offset, count;
} layers[] = {
  { UNIT, UNIT },
  { UNIT + 1000, 3000 },
  { 2 * UNIT - 512, 1024 },
  { 200000, 1 },
  { 4 * UNIT + 77, UNIT },
  { 4 * UNIT + 4096, 4096 },
  { 5 * UNIT, 8192 },
  { 5 * UNIT + 8192, 4096 },
  { 5 * UNIT + 4096, 4096 },
};

/* Reads that cut the layers in every way, by both connections. */
static void
read_pieces (struct scene *c, const char *expected, uint64_t size)
{
  for (unsigned i = 0; i < 200; i++) {
    uint64_t offset = g_test_rand_int_range (0, size - 1);
    uint64_t most = MIN (size - offset, 2 * UNIT);
    uint64_t count = g_test_rand_int_range (1, most + 1);

    assert_reads (i % 2 ? c->a : c->b, expected + offset, count, offset);
  }
}

static void
play_dirty (const struct setup *t)
{
  const uint64_t size = 6 * UNIT;
  struct scene c;
  g_autofree char *data = filled (size, 1);
  int held;

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, data, size, 0, 0));
  nbd_ok (nbd_flush (c.a, 0));
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  for (unsigned i = 0; i < G_N_ELEMENTS (layers); i++) {
    uint64_t offset = layers[i].offset, count = layers[i].count;

    fill (data + offset, count, 100 + i);
    nbd_ok (nbd_pwrite (i % 3 == 2 ? c.b : c.a, data + offset, count, offset,
                        0));
    assert_reads (c.b, data, size, 0);
  }
  read_pieces (&c, data, size);
  g_assert_cmpuint (gate_held (c.gate, held), >, 0);
  gate_release (c.gate, held);
  assert_reads (c.a, data, size, 0);
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, size, 0);
  assert_no_collisions (&c);
  assert_reads (c.a, data, size, 0);
  scene_stop (&c);
}

/* Prefetched data. */

/* The place that is prefetched. */
#define TARGET (8 * UNIT)

/* The unit at TARGET is prefetched, or its prefetch is in flight: it has the
 * old data.  Then the unit is changed.
 */
static void
play_stale (const struct setup *t)
{
  const uint64_t size = 32 * UNIT;
  struct scene c;
  g_autofree char *old = filled (size, 7), *data = g_malloc (UNIT);
  g_autofree char *got = g_malloc (UNIT);
  struct request read;
  int held = -1;

  scene_start (&c, t);
  write_units (c.a, old, size / UNIT, 0);
  nbd_ok (nbd_flush (c.a, 0));
  gate_forget (c.gate);

  if (t->is_in_flight)
    held = gate_hold (c.gate, GATE_READ, TARGET, UNIT);
  read_towards (&c, c.a, TARGET);
  if (t->is_in_flight)
    gate_wait_held (c.gate, held, 1);
  else
    gate_wait_ended (c.gate, GATE_READ, TARGET, UNIT, 1);

  change (t->is_by_b ? c.b : c.a, t->how, data, UNIT, TARGET);
  read = send_read (c.a, got, UNIT, TARGET);
  if (t->is_in_flight)
    gate_release (c.gate, held);
  assert_succeeds (&read);
  assert_same (got, data, UNIT);
  assert_reads (c.b, data, UNIT, TARGET);
  /* The neighbours are unchanged. */
  assert_reads (c.a, old + TARGET - UNIT, UNIT, TARGET - UNIT);
  assert_reads (c.a, old + TARGET + UNIT, UNIT, TARGET + UNIT);
  scene_stop (&c);
}

/* A demand read waits for a prefetch in flight.  Meanwhile B's write to the
 * same bytes is acknowledged.  Either answer is right, but later reads see the
 * write.
 */
static void
play_stale_while_waited_for (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 5), *got = g_malloc (UNIT);
  struct request read;
  int held, writing;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_READ, TARGET, UNIT);
  writing = gate_hold (c.gate, GATE_WRITE, TARGET, UNIT);
  read_towards (&c, c.a, TARGET);
  gate_wait_held (c.gate, held, 1);
  read = send_read (c.a, got, UNIT, TARGET);
  round_trips (c.a);
  nbd_ok (nbd_pwrite (c.b, data, UNIT, TARGET, 0));
  /* The plugin's reads are held, so this is the dirty data. */
  assert_reads (c.b, data, UNIT, TARGET);
  gate_release (c.gate, writing);
  gate_release (c.gate, held);
  assert_succeeds (&read);
  assert_reads (c.a, data, UNIT, TARGET);
  scene_stop (&c);
}

/* A failed prefetch. */

/* The client does not see the error: its own read succeeds. */
static void
play_failed_prefetch (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 5);

  scene_start_alone (&c, t);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, TARGET, 0));
  nbd_ok (nbd_flush (c.a, 0));
  gate_forget (c.gate);
  gate_fail (c.gate, GATE_READ, TARGET, UNIT, EIO, 1);
  read_towards (&c, c.a, TARGET);
  gate_wait_ended (c.gate, GATE_READ, TARGET, UNIT, 1);
  assert_reads (c.a, data, UNIT, TARGET);
  scene_stop (&c);
}

/* Nor does it when its read waits for that prefetch. */
static void
play_failed_prefetch_waited_for (const struct setup *t)
{
  struct scene c;
  g_autofree char *got = g_malloc (UNIT);
  struct request read;
  int held;

  scene_start_alone (&c, t);
  held = gate_hold (c.gate, GATE_READ, TARGET, UNIT);
  read_towards (&c, c.a, TARGET);
  gate_wait_held (c.gate, held, 1);
  read = send_read (c.a, got, UNIT, TARGET);
  assert_waits (&read);
  gate_fail (c.gate, GATE_READ, TARGET, UNIT, EIO, 1);
  gate_release (c.gate, held);
  assert_succeeds (&read);
  scene_stop (&c);
}

/* The client gets the error of its own read. */
static void
play_failed_read (const struct setup *t)
{
  struct scene c;
  g_autofree char *got = g_malloc (UNIT);

  scene_start_alone (&c, t);
  gate_fail (c.gate, GATE_READ, TARGET, UNIT, EPERM, -1);
  read_units (c.a, 0, TARGET);
  nbd_fails (nbd_pread (c.a, got, UNIT, TARGET, 0), EPERM);
  scene_stop (&c);
}

/* Export names of a plugin that ignores them may be one device. */

/* B's read waits for A's dirty data.  B's flush does not, as a flush is for its
 * own export name.
 */
static void
play_names_read_waits (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 5), *got = g_malloc (UNIT);
  struct request flush, read;
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  read = send_read (c.b, got, UNIT, 0);
  nbd_ok (nbd_flush (c.b, 0));
  g_assert_false (request_is_done (&read));
  flush = send_flush (c.a);
  assert_waits (&flush);
  gate_release (c.gate, held);
  assert_succeeds (&read);
  assert_same (got, data, UNIT);
  assert_succeeds (&flush);
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

/* The last write counts, whichever connection sent it. */
static void
play_names_last_write (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = g_malloc (UNIT);

  scene_start (&c, t);
  for (unsigned i = 0; i < 10; i++) {
    struct nbd_handle *first = i % 2 ? c.a : c.b, *last = i % 2 ? c.b : c.a;

    fill (data, UNIT, 50 + i);
    nbd_ok (nbd_pwrite (first, data, UNIT, UNIT, 0));
    nbd_ok (nbd_pwrite (last, data, 1000, UNIT + 500, 0));
    memmove (data + 500, data, 1000);
    assert_reads (first, data, UNIT, UNIT);
  }
  nbd_ok (nbd_flush (c.a, 0));
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, UNIT, UNIT);
  scene_stop (&c);
}

/* B's write makes A's prefetched data stale. */
static void
play_names_stale (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 5);

  scene_start (&c, t);
  read_towards (&c, c.a, TARGET);
  gate_wait_ended (c.gate, GATE_READ, TARGET, UNIT, 1);
  nbd_ok (nbd_pwrite (c.b, data, UNIT, TARGET, 0));
  assert_reads (c.a, data, UNIT, TARGET);
  scene_stop (&c);
}

#define WITH_NAMES { .relation = &relations[TWO_NAMES] }

static const struct row rows[] = {
  { "dirty", play_dirty, .plugins = BOTH },
  { "stale/by-a", play_stale, .plugins = BOTH, .changes = ALL_CHANGES },
  { "stale/by-b", play_stale, .plugins = BOTH, .changes = ALL_CHANGES,
    .setup = { .is_by_b = true } },
  { "stale/in-flight/by-a", play_stale, .plugins = BOTH, .changes = ALL_CHANGES,
    .setup = { .is_in_flight = true } },
  { "stale/in-flight/by-b", play_stale, .plugins = BOTH, .changes = ALL_CHANGES,
    .setup = { .is_in_flight = true, .is_by_b = true } },
  { "stale/through/by-a", play_stale, .plugins = BOTH,
    .setup = { .mode = THROUGH } },
  { "stale/through/by-b", play_stale, .plugins = BOTH,
    .setup = { .mode = THROUGH, .is_by_b = true } },
  { "stale/through/in-flight/by-a", play_stale, .plugins = BOTH,
    .setup = { .mode = THROUGH, .is_in_flight = true } },
  { "stale/through/in-flight/by-b", play_stale, .plugins = BOTH,
    .setup = { .mode = THROUGH, .is_in_flight = true, .is_by_b = true } },
  { "stale/while-waited-for", play_stale_while_waited_for, .plugins = BOTH },
  { "failed/prefetch", play_failed_prefetch, .plugins = BOTH },
  { "failed/prefetch-waited-for", play_failed_prefetch_waited_for,
    .plugins = BOTH },
  { "failed/read", play_failed_read, .plugins = BOTH },
  { "names/read-waits", play_names_read_waits, .plugins = BOTH,
    .setup = WITH_NAMES },
  { "names/last-write", play_names_last_write, .plugins = BOTH,
    .setup = WITH_NAMES },
  { "names/stale", play_names_stale, .plugins = BOTH, .setup = WITH_NAMES },
};

CASES_MAIN (rows)
