/* SPDX-License-Identifier: BSD-3-Clause */

/* The full slab.  Safety 3 and 6 of the contract:
 *
 *   Failed data never fills the slab so that a client hangs: a request gets an
 *   error, never silence.
 *
 *   Memory is bounded: the slab is all that grows with load, and its size is
 *   known at start.  When it is full, writers wait and prefetched data gives
 *   way.
 *
 * The slab has four buffers here.
 */
#include "cases.h"

#define SMALL \
  "asyncpool-buffers=4 asyncpool-buffer-size=64k asyncpool-write=behind"

/* A's held writes fill the slab; the result is the rule that holds them. */
static int
fill_slab (struct scene *c, const char *data)
{
  int held = gate_hold (c->gate, GATE_WRITE, 0, FAR);

  write_units (c->a, data, 4, 0);
  gate_wait_held (c->gate, held, 4);
  return held;
}

/* Each write past the fourth waits for a buffer.  Other requests are served. */
static void
play_writers_wait (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (6 * UNIT, 1);
  struct request fifth, sixth;
  int held;

  scene_start (&c, t);
  held = fill_slab (&c, data);
  fifth = send_write (c.a, data + 4 * UNIT, UNIT, 4 * UNIT, 0);
  round_trips (c.b);
  assert_reads (c.b, data, UNIT, 0);
  nbd_ok (nbd_zero (c.b, UNIT, FAR, 0));
  g_assert_false (request_is_done (&fifth));
  g_assert_cmpuint (gate_started (c.gate, GATE_WRITE, 0, FAR), ==, 4);

  gate_pass (c.gate, held, 1);
  assert_succeeds (&fifth);
  g_assert_cmpuint (gate_ended (c.gate, GATE_WRITE, 0, FAR), ==, 1);
  sixth = send_write (c.a, data + 5 * UNIT, UNIT, 5 * UNIT, 0);
  round_trips (c.b);
  g_assert_false (request_is_done (&sixth));
  gate_release (c.gate, held);
  assert_succeeds (&sixth);
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, 6 * UNIT, 0);
  scene_stop (&c);
}

/* Prefetched data fills the slab, and gives way to writes.  With the slab full
 * of dirty data reads are served.
 */
static void
play_shared (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (4 * UNIT, 1);

  scene_start (&c, t);
  read_units (c.b, FAR, FAR + 8 * UNIT);
  /* A write that waits too long for a prefetch in flight goes through. */
  round_trips (c.b);
  gate_wait_ended (c.gate, GATE_READ, ANYWHERE,
                   gate_started (c.gate, GATE_READ, ANYWHERE));
  fill_slab (&c, data);
  read_units (c.b, FAR + 8 * UNIT, FAR + 16 * UNIT);
  assert_reads (c.b, data, 4 * UNIT, 0);
  scene_stop (&c);
}

/* The slab is full of data that fails. */
static void
play_failed (const struct setup *t)
{
  struct scene c;
  struct nbd_handle *third;
  g_autofree char *data = filled (5 * UNIT, 1), *other = filled (UNIT, 2);
  struct request fifth;
  int held, failing;

  scene_start (&c, t);
  third = client_connect_export (&c.s, "other");
  held = fill_slab (&c, data);
  fifth = send_write (c.a, data + 4 * UNIT, UNIT, 4 * UNIT, 0);
  round_trips (c.b);
  g_assert_false (request_is_done (&fifth));
  failing = gate_fail (c.gate, GATE_WRITE, 0, FAR, ENOSPC, -1);
  gate_release (c.gate, held);
  g_assert_cmpint (request_wait (&fifth), ==, ENOSPC);

  /* Writes go through, and get their own errors. */
  gate_wait_ended (c.gate, GATE_WRITE, 0, 4 * UNIT, 4);
  nbd_fails (nbd_pwrite (c.a, other, UNIT, 5 * UNIT, 0), ENOSPC);
  nbd_fails (nbd_pwrite (c.b, other, 1000, 5 * UNIT, 0), ENOSPC);
  nbd_ok (nbd_pwrite (c.b, other, UNIT, ELSEWHERE, 0));
  assert_reads (c.a, other, UNIT, ELSEWHERE);
  assert_reads (c.a, data, 4 * UNIT, 0);
  /* So do writes of an export of which nothing has failed, and reads. */
  for (unsigned i = 1; i < 4; i++)
    nbd_ok (nbd_pwrite (third, other, UNIT, ELSEWHERE + i * UNIT, 0));
  read_units (c.b, FAR, FAR + 16 * UNIT);
  nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  nbd_fails (nbd_flush (c.b, 0), ENOSPC);
  assert_reads (c.b, data, 4 * UNIT, 0);

  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, 4 * UNIT, 0);
  client_close (third);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "writers-wait", play_writers_wait, .plugins = BOTH,
    .setup = { .mode = SMALL } },
  { "shared", play_shared, .plugins = BOTH, .setup = { .mode = SMALL } },
  { "failed", play_failed, .plugins = BOTH, .setup = { .mode = SMALL } },
};

CASES_MAIN (rows)
