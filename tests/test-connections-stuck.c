/* SPDX-License-Identifier: BSD-3-Clause */

/* A's device does not move, and B is of another device.  Of safety 9 of the
 * contract:
 *
 *   Data is never shared, but order is kept, reads wait for dirty data [...].
 *   One connection's trouble never stops or changes another one's data.
 *
 * Where B overlaps A's dirty data it waits, but not for ever.  Elsewhere it
 * does not wait.
 */
#include "cases.h"

/* A bound for a request that may wait for another connection.  The filter waits
 * 3 s, and a busy machine adds some.
 */
#define BOUND_MS (client_is_slow () ? 90000 : 12000)
/* A bound for a request that must not wait for another connection. */
#define PROMPT_MS (client_is_slow () ? 60000 : 2500)

static bool
has_names (const struct setup *t)
{
  return strcmp (t->relation->export_a, t->relation->export_b) != 0;
}

/* A's dirty data fills the slab, and B works on. */
static void
play_full_slab (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (BUFFERS * UNIT, 1);
  g_autofree char *other = filled (UNIT, 2), *got = g_malloc (UNIT);
  int held;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  write_units (c.a, data, BUFFERS, 0);
  gate_wait_held (c.gate, held, BUFFERS);
  for (unsigned i = 0; i < 4; i++)
    assert_succeeds_within (send_write (c.b, other, UNIT,
                                        ELSEWHERE + i * UNIT, 0), PROMPT_MS);
  assert_succeeds_within (send_write (c.b, other, 512, ELSEWHERE + MIB, 0),
                          PROMPT_MS);
  assert_succeeds_within (send_write (c.b, other, UNIT, ELSEWHERE + 2 * MIB,
                                      LIBNBD_CMD_FLAG_FUA), PROMPT_MS);
  assert_succeeds_within (send_read (c.b, got, UNIT, ELSEWHERE), PROMPT_MS);
  assert_same (got, other, UNIT);
  assert_succeeds_within (send_zero (c.b, UNIT, ELSEWHERE, 0), PROMPT_MS);
  assert_succeeds_within (send_trim (c.b, UNIT, ELSEWHERE + UNIT, 0),
                          PROMPT_MS);
  if (has_names (t))
    assert_succeeds_within (send_flush (c.b), PROMPT_MS);
  g_assert_cmpuint (gate_held (c.gate, held), ==, BUFFERS);
  gate_release (c.gate, held);
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, BUFFERS * UNIT, 0);
  scene_stop (&c);
}

/* A flush waits for dirty data of its own export name, and of no other. */
static void
play_flush_waits (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct request flush;
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  flush = send_flush (c.b);
  if (has_names (t))
    wait_within (&flush, PROMPT_MS);
  else if (!client_is_slow ()) {
    assert_waits_for (&c, &flush, held);
    assert_on_device (&c, data, UNIT, 0);
  }
  gate_release (c.gate, held);
  assert_succeeds (&flush);
  scene_stop (&c);
}

/* A's dirty data is written before B's requests that overlap it. */
static void
play_order (const struct setup *t)
{
  const uint64_t place = 4 * UNIT;
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = filled (UNIT, 2);
  g_autofree char *got = g_malloc (UNIT);
  struct request read, newer;
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c, c.a, old, UNIT, 0);
  read = send_read (c.b, got, UNIT, 0);
  round_trips (c.b);
  gate_release (c.gate, held);
  assert_succeeds (&read);
  assert_same (got, old, UNIT);

  held = hold_deferred (&c, c.a, old, UNIT, place);
  newer = send_write (c.b, data, UNIT, place,
                      t->how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0);
  round_trips (c.b);
  gate_release (c.gate, held);
  assert_succeeds (&newer);
  nbd_ok (nbd_flush (c.b, 0));
  g_assert_cmpuint (gate_started (c.gate, GATE_WRITE, place, UNIT), ==, 2);
  g_assert_cmpuint (gate_op (c.gate, GATE_WRITE, place, UNIT, 0).end, <,
                    gate_op (c.gate, GATE_WRITE, place, UNIT, 1).start);
  assert_on_device (&c, data, UNIT, place);
  assert_reads (c.a, data, UNIT, place);
  scene_stop (&c);
}

/* Each request of B gets an answer in bounded time, success or error. */
static void
play_bounded (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *other = filled (UNIT, 2);
  g_autofree char *got = g_malloc (UNIT);
  struct request r;
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  r = send_read (c.b, got, UNIT, 0);
  wait_within (&r, BOUND_MS);
  r = send_flush (c.b);
  wait_within (&r, BOUND_MS);
  if (t->how == BY_ZERO)
    r = send_zero (c.b, UNIT / 2, 0, 0);
  else if (t->how == BY_TRIM)
    r = send_trim (c.b, UNIT / 2, 0, 0);
  else                          /* elsewhere, as the rule would hold it, too */
    r = send_write (c.b, other, UNIT, 4 * UNIT, LIBNBD_CMD_FLAG_FUA);
  wait_within (&r, BOUND_MS);
  g_assert_cmpuint (gate_held (c.gate, held), >=, 1);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "full-slab", play_full_slab, .plugins = BOTH,
    .relations = OTHER_DEVICES },
  { "flush-waits", play_flush_waits, .plugins = BOTH,
    .relations = OTHER_DEVICES },
  { "order", play_order, .plugins = BIT (POOL), .relations = OTHER_DEVICES,
    .changes = BIT (BY_WRITE) | BIT (BY_FUA) },
  /* A case takes seconds: one of each. */
  { "bounded", play_bounded, .plugins = BOTH,
    .relations = BIT (ONE_NAME), .changes = BIT (BY_FUA) },
  { "bounded", play_bounded, .plugins = BIT (POOL),
    .relations = BIT (TWO_NAMES), .changes = BIT (BY_ZERO) },
  { "bounded", play_bounded, .plugins = BIT (POOL),
    .relations = BIT (TWO_NAMES_ALONE), .changes = BIT (BY_TRIM) },
};

CASES_MAIN (rows)
