/* SPDX-License-Identifier: BSD-3-Clause */

/* Failed data, and newer data of whichever connection.  Of safety 9 of the
 * contract:
 *
 *   Data is never shared, but order is kept, reads wait for dirty data, and
 *   newer data supersedes older failed data.
 *
 * A's deferred write fails.  B changes the same place.  B's data stays,
 * whatever is retried later.  A client that lost data to another device's
 * connection gets the error once.
 */
#include "cases.h"

/* B's DATA stays on the device when A ends as the setup says. */
static void
expect_superseded (struct scene *c, const struct setup *t, const char *data)
{
  if (t->end == TERMINATE) {
    gate_release_all (c->gate);
    assert_same (scene_terminate (c), data, UNIT);
    server_free (&c->s);
    return;
  }
  if (t->end == FLUSH) {
    if (!t->relation->is_same)
      nbd_fails (nbd_flush (c->a, 0), ENOSPC);
    nbd_ok (nbd_flush (c->a, 0));
    assert_reads (c->a, data, UNIT, 0);
  }
  else
    scene_leave (c, &c->a);
  assert_reads (c->b, data, UNIT, 0);
  nbd_ok (nbd_flush (c->b, 0));
  assert_on_device (c, data, UNIT, 0);
  scene_stop (c);
}

static void
play_superseded (const struct setup *t)
{
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = g_malloc (UNIT);

  scene_start (&c, t);
  gate_release (c.gate, fail_deferred (&c, c.a, old, UNIT, 0, ENOSPC));
  change (c.b, t->how, data, UNIT, 0);
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, UNIT, 0);
  expect_superseded (&c, t, data);
}

/* The older write fails only when the newer one waits for it. */
static void
play_in_flight (const struct setup *t)
{
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = filled (UNIT, 2);
  struct request newer;
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c, c.a, old, UNIT, 0);
  newer = send_write (c.b, data, UNIT, 0,
                      t->how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0);
  round_trips (c.b);
  gate_fail (c.gate, GATE_WRITE, 0, UNIT, ENOSPC, 1);
  gate_release (c.gate, held);
  assert_succeeds (&newer);
  if (t->relation->is_same && t->how == BY_WRITE) {
    /* One order of writes: the newer one waits behind the failed one. */
    nbd_ok (nbd_flush (c.a, 0));
    assert_on_device (&c, data, UNIT, 0);
    scene_stop (&c);
    return;
  }
  nbd_ok (nbd_flush (c.b, 0));
  expect_superseded (&c, t, data);
}

/* The newer data is a part of the range.  The rest of the older data stays. */
static void
play_partly (const struct setup *t)
{
  const uint64_t from = 16 * KIB, count = 8 * KIB;
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start (&c, t);
  gate_release (c.gate, fail_deferred (&c, c.a, data, UNIT, 0, ENOSPC));
  change (c.b, t->how, data + from, count, from);
  nbd_ok (nbd_flush (c.b, 0));
  if (!t->relation->is_same)
    nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  nbd_ok (nbd_flush (c.a, 0));
  if (t->how == BY_TRIM)        /* anything may be there */
    memcpy (data + from, server_device (&c.s) + from, count);
  assert_on_device (&c, data, UNIT, 0);
  assert_reads (c.a, data, UNIT, 0);
  assert_reads (c.b, data, UNIT, 0);
  scene_stop (&c);
}

/* The same while A's flush writes the rest: one piece is on the device, the
 * next one waits for B's change.  The error is the plugin's.
 */
static void
play_between_pieces (const struct setup *t)
{
  const uint64_t from = 16 * KIB, count = 8 * KIB, next = from + count;
  struct scene c;
  struct request flush, newer;
  g_autofree char *data = filled (UNIT, 1);
  int held;

  scene_start (&c, t);
  gate_release (c.gate, fail_deferred (&c, c.a, data, UNIT, 0, ENOSPC));
  change (c.b, BY_WRITE, data + from, count, from);
  held = gate_hold (c.gate, GATE_WRITE, next, count);
  fill (data + next, count, 2);
  newer = send_write (c.b, data + next, count, next, 0);
  gate_wait_held (c.gate, held, 1);
  flush = send_flush (c.a);
  gate_wait_ended (c.gate, GATE_WRITE, 0, from, 2);
  assert_waits (&flush);
  gate_release (c.gate, held);
  assert_succeeds (&newer);
  g_assert_cmpint (request_wait (&flush), ==, ENOSPC);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

/* A third connection's data is newer than failed data of A and of B.  Each of
 * them gets its error.
 */
static void
play_by_third (const struct setup *t)
{
  const uint64_t of_b = 4 * UNIT;
  struct scene c;
  struct nbd_handle *third;
  g_autofree char *old = filled (UNIT, 1), *data = g_malloc (UNIT);

  scene_start (&c, t);
  third = connect_warm (&c.s, *t->relation->export_a ? "third" : "");
  gate_release (c.gate, fail_deferred (&c, c.a, old, UNIT, 0, ENOSPC));
  gate_release (c.gate, fail_deferred (&c, c.b, old, UNIT, of_b, ENOSPC));
  change (third, t->how, data, UNIT, 0);
  change (third, t->how, data, UNIT, of_b);
  nbd_ok (nbd_flush (third, 0));
  nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_fails (nbd_flush (c.b, 0), ENOSPC);
  nbd_ok (nbd_flush (c.b, 0));
  nbd_ok (nbd_flush (third, 0));
  assert_on_device (&c, data, UNIT, 0);
  assert_on_device (&c, data, UNIT, of_b);
  client_close (third);
  scene_stop (&c);
}

/* A connection breaks, or is closed, with a request in the plugin.  Its client
 * connects again and changes the same place.
 */
static void
play_reconnect (const struct setup *t)
{
  struct scene c;
  struct nbd_handle *again;
  g_autofree char *old = filled (UNIT, 1), *data = g_malloc (UNIT);
  g_autofree char *got = g_malloc (UNIT);
  int held;

  scene_start (&c, t);
  gate_release (c.gate, fail_deferred (&c, c.a, old, UNIT, 0, ENOSPC));
  held = gate_hold (c.gate, GATE_READ, ELSEWHERE, UNIT);
  send_read (c.a, got, UNIT, ELSEWHERE);
  gate_wait_held (c.gate, held, 1);
  if (t->end == LEAVE)
    client_leave (c.a);
  else
    nbd_close (c.a);
  c.a = NULL;
  again = client_connect_export (&c.s, t->relation->export_a);
  change (again, t->how, data, UNIT, 0);
  nbd_ok (nbd_flush (again, 0));
  gate_release (c.gate, held);
  wait_closed (&c.s, 1);
  assert_reads (again, data, UNIT, 0);
  nbd_ok (nbd_flush (again, 0));
  assert_on_device (&c, data, UNIT, 0);
  client_close (again);
  scene_stop (&c);
}

#define WRITES (BIT (BY_WRITE) | BIT (BY_FUA))

static const struct row rows[] = {
  { "superseded/leaves", play_superseded, .plugins = BOTH,
    .relations = ALL_RELATIONS, .changes = ALL_CHANGES,
    .setup = { .end = LEAVE } },
  { "superseded/flushes", play_superseded, .plugins = BIT (POOL),
    .relations = ALL_RELATIONS, .changes = ALL_CHANGES,
    .setup = { .end = FLUSH } },
  { "superseded/server-ends", play_superseded, .plugins = BIT (POOL),
    .relations = ALL_RELATIONS, .changes = BIT (BY_WRITE),
    .setup = { .end = TERMINATE } },
  { "in-flight", play_in_flight, .plugins = BOTH,
    .relations = ALL_RELATIONS, .changes = WRITES },
  { "partly", play_partly, .plugins = BIT (POOL),
    .relations = ALL_RELATIONS, .changes = ALL_CHANGES },
  { "between-pieces", play_between_pieces, .plugins = BOTH,
    .relations = OTHER_DEVICES },
  { "by-third", play_by_third, .plugins = BIT (POOL),
    .relations = OTHER_DEVICES, .changes = WRITES | BIT (BY_ZERO) },
  { "reconnect/broken", play_reconnect, .plugins = BIT (POOL),
    .relations = UNNAMED, .changes = ALL_CHANGES,
    .setup = { .end = BREAK, .options = "-t 1" } },
  { "reconnect/closed", play_reconnect, .plugins = BIT (POOL),
    .relations = UNNAMED, .changes = ALL_CHANGES,
    .setup = { .end = LEAVE, .options = "-t 1" } },
};

CASES_MAIN (rows)
