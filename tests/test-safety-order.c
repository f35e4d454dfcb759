/* SPDX-License-Identifier: BSD-3-Clause */

/* Order.  Safety 4 of the contract:
 *
 *   Overlapping writes reach the plugin in the order in which they were
 *   answered.
 *
 * The same is true for zero and trim.  Where nothing overlaps, nothing waits.
 */
#include "cases.h"

/* Writes of both connections, each of which overlaps an earlier one. */
static const struct {
  uint64_t offset, count;
  bool is_by_b;
} writes[] = {
  { 0, UNIT, false },
  { UNIT / 2, UNIT, false },
  { 0, UNIT, true },
  { 60000, 12000, true },
  { UNIT, UNIT, false },
  { 65000, 1000, true },
  { 0, 3 * UNIT, false },
};

static void
play_overlapping_writes (const struct setup *t)
{
  const uint64_t size = 4 * UNIT;
  struct scene c;
  g_autofree char *data = g_malloc0 (size);
  int held;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  for (unsigned i = 0; i < G_N_ELEMENTS (writes); i++) {
    uint64_t offset = writes[i].offset, count = writes[i].count;

    fill (data + offset, count, 10 + i);
    nbd_ok (nbd_pwrite (writes[i].is_by_b ? c.b : c.a, data + offset, count,
                        offset, 0));
  }
  gate_wait_held (c.gate, held, 1);
  round_trips (c.a);
  g_assert_cmpuint (gate_started (c.gate, GATE_WRITE, 0, UNIT), ==, 1);
  assert_reads (c.b, data, size, 0);
  gate_pass (c.gate, held, 1);
  gate_wait_ended (c.gate, GATE_WRITE, 0, FAR, 1);
  gate_wait_held (c.gate, held, 1);
  assert_reads (c.a, data, size, 0);
  gate_release (c.gate, held);
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, size, 0);
  assert_no_collisions (&c);
  scene_stop (&c);
}

/* B's zero or trim comes after A's older write that it overlaps. */
static void
play_after_write (const struct setup *t)
{
  const bool is_trim = t->how == BY_TRIM;
  const unsigned kind = is_trim ? GATE_TRIM : GATE_ZERO;
  const uint64_t middle = UNIT / 4, written = middle + 500;
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *newer = filled (1000, 2);
  g_autofree char *got = g_malloc (UNIT);
  struct request request, later;
  int held, held_change;

  newer[0] |= 1;                /* no byte that a zero leaves */
  scene_start (&c, t);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  held_change = gate_hold (c.gate, kind, 0, UNIT);
  request = is_trim ? send_trim (c.b, UNIT / 2, middle, 0)
    : send_zero (c.b, UNIT / 2, middle, 0);
  assert_waits (&request);
  g_assert_cmpuint (gate_started (c.gate, kind, ANYWHERE), ==, 0);
  gate_release (c.gate, held);
  gate_wait_held (c.gate, held_change, 1);
  g_assert_cmpuint (one_op (&c, GATE_WRITE, 0, UNIT).end, <,
                    one_op (&c, kind, 0, UNIT).start);

  /* A write that is sent meanwhile comes before or after it, and all reads
   * agree.
   */
  later = send_write (c.a, newer, 1000, written, 0);
  round_trips (c.a);
  gate_release (c.gate, held_change);
  assert_succeeds (&request);
  assert_succeeds (&later);
  memset (data + middle, 0, UNIT / 2);
  nbd_ok (nbd_pread (c.b, got, UNIT, 0, 0));
  if (got[written] != 0)
    memcpy (data + written, newer, 1000);
  assert_same (got, data, UNIT);
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, UNIT, 0);
  assert_reads (c.a, data, UNIT, 0);
  scene_stop (&c);
}

/* Dirty data elsewhere delays no direct operation. */
static void
play_far_writes (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (4 * UNIT, 1);
  int held;

  scene_start_alone (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, FAR, 8 * UNIT);
  write_units (c.a, data, 4, FAR);
  gate_wait_held (c.gate, held, 4);
  nbd_ok (nbd_zero (c.a, UNIT, 0, 0));
  nbd_ok (nbd_trim (c.a, UNIT, UNIT, 0));
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 2 * UNIT, LIBNBD_CMD_FLAG_FUA));
  assert_reads (c.a, data, UNIT, 2 * UNIT);
  nbd_ok (nbd_cache (c.a, UNIT, 0, 0));
  g_assert_cmpuint (gate_held (c.gate, held), ==, 4);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "overlapping-writes", play_overlapping_writes, .plugins = BOTH },
  { "after-write", play_after_write, .plugins = BOTH,
    .changes = BIT (BY_ZERO) | BIT (BY_TRIM) },
  { "far-writes-are-no-barrier", play_far_writes, .plugins = BOTH },
};

CASES_MAIN (rows)
