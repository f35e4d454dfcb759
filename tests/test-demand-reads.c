/* SPDX-License-Identifier: BSD-3-Clause */

/* Demand reads beside background work.  Speed 3 of the contract:
 *
 *   A demand read never waits behind queued background work.
 *
 * The background work is held in the plugin, in each worker of a small pool.
 * A demand read that waits for it never ends.
 */
#include "cases.h"

/* The only worker prefetches. */
static void
play_before_prefetch (const struct setup *t)
{
  const uint64_t target = 8 * UNIT;
  struct scene c;
  g_autofree char *got = g_malloc (MIB);
  int held;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_READ, target, UNIT);
  read_units (c.a, 0, target - UNIT);
  gate_wait_held (c.gate, held, 1);
  /* Prefetches of the next units may be queued behind it. */
  nbd_ok (nbd_pread (c.a, got, UNIT, target + UNIT, 0));
  nbd_ok (nbd_pread (c.a, got, UNIT, target + 2 * UNIT, 0));
  nbd_ok (nbd_pread (c.b, got, UNIT, target + 3 * UNIT, 0));
  nbd_ok (nbd_pread (c.b, got, MIB, 2 * FAR, 0));
  nbd_ok (nbd_pread (c.a, got, 512, 2 * FAR + 4 * MIB, 0));
  g_assert_cmpuint (gate_held (c.gate, held), ==, 1);
  scene_stop (&c);
}

/* Both workers write. */
static void
play_beside_writes (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (8 * UNIT, 1), *got = g_malloc (MIB);
  int held;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  write_units (c.a, data, 8, 0);
  gate_wait_held (c.gate, held, 2);
  read_units (c.b, 2 * FAR, 2 * FAR + 32 * UNIT);
  nbd_ok (nbd_pread (c.b, got, MIB, 2 * FAR + 8 * MIB, 0));
  nbd_ok (nbd_pread (c.a, got, MIB, 2 * FAR + 9 * MIB, 0));
  assert_reads (c.b, data, 8 * UNIT, 0);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "before-prefetch", play_before_prefetch, .plugins = BOTH,
    .setup = { .words = "asyncpool-threads=1" } },
  { "beside-writes", play_beside_writes, .plugins = BOTH,
    .setup = { .words = "asyncpool-threads=2" } },
};

CASES_MAIN (rows)
