/* SPDX-License-Identifier: BSD-3-Clause */

/* One device, of which A and B learn another size or other block sizes.
 *
 * A plugin may report a new size to each connection.  The connections are of
 * the same device all the same, and share everything.
 */
#include "cases.h"

static const struct {
  struct gate_geometry of_a, of_b;
} geometries[] = {
  { { .size = 32 * MIB }, { 0 } },
  { { 0 }, { .size = 32 * MIB } },
  { { 0 }, { .minimum = 4096 } },
  { { 0 }, { .maximum = 32 * KIB } },
};

static const char *const names[] = {
  "size", "shrunk", "minimum", "maximum", NULL
};

static void
start (struct scene *c, const struct setup *t)
{
  scene_start_server (c, t, NULL);
  gate_set_geometry (c->gate, geometries[t->variant].of_a);
  c->a = connect_warm (&c->s, "");
  gate_set_geometry (c->gate, geometries[t->variant].of_b);
  c->b = connect_warm (&c->s, "");
  g_assert_cmpint (nbd_can_multi_conn (c->a), ==, 1);
  g_assert_cmpint (nbd_can_multi_conn (c->b), ==, 1);
}

/* A unit, in requests that keep the smallest maximum. */
static void
assert_reads_small (struct nbd_handle *nbd, const char *data)
{
  for (uint64_t at = 0; at < UNIT; at += UNIT / 2)
    assert_reads (nbd, data + at, UNIT / 2, at);
}

/* B reads A's failed data, and B's flush retries it. */
static void
play_failed (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  int failing;

  start (&c, t);
  failing = fail_deferred (&c, c.a, data, UNIT, 0, ENOSPC);
  assert_reads_small (c.b, data);
  nbd_fails (nbd_flush (c.b, 0), ENOSPC);
  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, UNIT, 0);
  nbd_ok (nbd_flush (c.a, 0));
  assert_reads_small (c.b, data);
  scene_stop (&c);
}

/* B reads A's dirty data, and B's flush waits for it. */
static void
play_dirty (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct request flush;
  char block[4096];
  int held;

  start (&c, t);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  assert_reads_small (c.b, data);
  g_assert_cmpuint (gate_held (c.gate, held), ==, 1);
  flush = send_flush (c.b);
  for (unsigned i = 0; i < 24; i++)     /* round trips of whole blocks */
    nbd_ok (nbd_pread (c.b, block, sizeof block,
                       ELSEWHERE + i * 7 % 24 * 16 * KIB, 0));
  g_assert_false (request_is_done (&flush));
  gate_release (c.gate, held);
  assert_succeeds (&flush);
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

/* B's write comes after A's dirty data that it overlaps. */
static void
play_order (const struct setup *t)
{
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = filled (UNIT, 2);
  struct request newer;
  int held;

  start (&c, t);
  held = hold_deferred (&c, c.a, old, UNIT, 0);
  newer = send_write (c.b, data, UNIT / 2, 0, 0);       /* direct */
  assert_reads_small (c.b, old);
  g_assert_false (request_is_done (&newer));
  gate_release (c.gate, held);
  assert_succeeds (&newer);
  nbd_ok (nbd_pwrite (c.b, data + UNIT / 2, UNIT / 2, UNIT / 2, 0));
  assert_reads_small (c.a, data);
  assert_reads_small (c.b, data);
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "failed", play_failed, .plugins = BIT (POOL), .variants = names },
  { "dirty", play_dirty, .plugins = BIT (POOL), .variants = names },
  { "order", play_order, .plugins = BIT (POOL), .variants = names },
};

CASES_MAIN (rows)
