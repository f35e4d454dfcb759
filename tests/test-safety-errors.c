/* SPDX-License-Identifier: BSD-3-Clause */

/* Errors of deferred writes.  Safety 3 of the contract:
 *
 *   An acknowledged write is not dropped while the server lives.  A deferred
 *   write that fails stays in the slab, is served to reads, is retried at the
 *   next flush, and a flush that cannot write it returns the plugin's error.
 *   From the first failure until a flush succeeds, writes go through
 *   synchronously.
 *
 * Not here: failed data that fills the slab (test-safety-slab.c), and failed
 * data of another connection (test-connections-lost.c).
 */
#include "cases.h"

/* A's deferred write fails.  The comments follow its data. */
static void
play_failed_write (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *other = filled (UNIT, 2);
  struct request write;
  uint64_t answered;
  int failing, held;

  scene_start (&c, t);
  failing = fail_deferred (&c, c.a, data, UNIT, 0, t->error);

  /* Reads get it. */
  assert_reads (c.a, data, UNIT, 0);
  assert_reads (c.b, data, UNIT, 0);

  /* Writes go through, and get errors at once. */
  nbd_ok (nbd_pwrite (c.b, other, UNIT, FAR, 0));
  answered = gate_now (c.gate);
  g_assert_cmpuint (one_op (&c, GATE_WRITE, FAR, UNIT).end, <, answered);
  held = gate_hold (c.gate, GATE_WRITE, ELSEWHERE, UNIT);
  write = send_write (c.a, other, UNIT, ELSEWHERE, 0);
  gate_wait_held (c.gate, held, 1);
  assert_waits_for (&c, &write, held);
  nbd_fails (nbd_pwrite (c.a, other, UNIT, 0, 0), t->error);
  nbd_fails (nbd_pwrite (c.b, other, 100, 1000, 0), t->error);
  assert_reads (c.b, data, UNIT, 0);

  /* Each flush retries it, and returns its error. */
  nbd_fails (nbd_flush (c.a, 0), t->error);
  nbd_fails (nbd_flush (c.b, 0), t->error);
  assert_reads (c.a, data, UNIT, 0);
  g_assert_cmpuint (gate_started (c.gate, GATE_FLUSH, ANYWHERE), ==, 0);

  /* A flush that can write it succeeds. */
  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, UNIT, 0);
  assert_reads (c.b, data, UNIT, 0);
  nbd_ok (nbd_flush (c.b, 0));

  /* Then writes are deferred again. */
  hold_deferred (&c, c.a, other, UNIT, UNIT);
  scene_stop (&c);
}

/* A change over a part of failed data.  The change stays when the failed data
 * is retried, and so does the rest of the failed data.
 */
static void
play_changed_over (const struct setup *t)
{
  const uint64_t offset = t->offset, count = t->count, end = offset + count;
  struct scene c;
  g_autofree char *data = filled (2 * UNIT, 1);

  scene_start_alone (&c, t);
  gate_release (c.gate, fail_deferred (&c, c.a, data, UNIT, 0, ENOSPC));
  memset (data + UNIT, 0, UNIT);
  change (c.a, t->how, data + offset, count, offset);
  if (t->how == BY_TRIM)        /* anything may be there */
    nbd_ok (nbd_pread (c.a, data + offset, count, offset, 0));

  assert_reads (c.a, data, 2 * UNIT, 0);
  nbd_ok (nbd_flush (c.a, 0));
  if (t->how != BY_TRIM) {
    assert_reads (c.a, data, 2 * UNIT, 0);
    assert_on_device (&c, data, 2 * UNIT, 0);
  }
  assert_reads (c.a, data, offset, 0);
  assert_on_device (&c, data, offset, 0);
  assert_on_device (&c, data + end, 2 * UNIT - end, end);
  scene_stop (&c);
}

/* Acknowledged writes behind a write that fails: the filter keeps all of them,
 * in their order.
 */
static void
play_layers (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *newer = filled (8000, 2);
  int held;

  scene_start_alone (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, 0, 2 * UNIT);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 0, 0));
  gate_wait_held (c.gate, held, 1);
  nbd_ok (nbd_pwrite (c.a, newer, 5000, 3000, 0));
  nbd_ok (nbd_pwrite (c.a, newer + 5000, 3000, UNIT - 1000, 0));
  gate_fail (c.gate, GATE_WRITE, 0, UNIT, ENOSPC, 1);
  gate_release (c.gate, held);
  gate_wait_ended (c.gate, GATE_WRITE, 0, UNIT, 1);
  memcpy (data + 3000, newer, 5000);
  memcpy (data + UNIT - 1000, newer + 5000, 1000);
  assert_reads (c.a, data, UNIT, 0);
  round_trips (c.a);
  assert_reads (c.a, data, UNIT, 0);
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, UNIT, 0);
  assert_on_device (&c, newer + 6000, 2000, UNIT);
  assert_reads (c.a, data, UNIT, 0);
  scene_stop (&c);
}

/* Failed data outlives its connection.  The next connection's flush writes it,
 * or returns the error.
 */
static void
play_disconnected (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  unsigned tries;
  int failing;

  scene_start (&c, t);
  failing = gate_fail (c.gate, GATE_WRITE, 0, UNIT, ENOSPC, -1);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 0, 0));
  nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  tries = gate_ended (c.gate, GATE_WRITE, 0, UNIT);
  client_close (c.a);
  c.a = NULL;
  /* The end of the connection is one more try. */
  gate_wait_ended (c.gate, GATE_WRITE, 0, UNIT, tries + 1);
  assert_reads (c.b, data, UNIT, 0);
  nbd_fails (nbd_flush (c.b, 0), ENOSPC);
  assert_reads (c.b, data, UNIT, 0);
  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.b, 0));
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "failed-write", play_failed_write, .plugins = BOTH,
    .errors = BIT (OF_ENOSPC) | BIT (OF_EIO) },
  { "failed-write/set-error", play_failed_write, .plugins = BOTH,
    .errors = BIT (OF_ENOSPC) | BIT (OF_ENOMEM),
    .setup = { .words = "errno_is_preserved=0" } },
  { "changed-over/within", play_changed_over, .plugins = BOTH,
    .changes = ALL_CHANGES,
    .setup = { .offset = 16 * KIB, .count = 8 * KIB } },
  { "changed-over/end", play_changed_over, .plugins = BOTH,
    .changes = ALL_CHANGES,
    .setup = { .offset = 60 * KIB, .count = 8 * KIB } },
  { "changed-over/most", play_changed_over, .plugins = BOTH,
    .changes = ALL_CHANGES,
    .setup = { .offset = 512, .count = UNIT } },
  { "changed-over/unaligned", play_changed_over, .plugins = BOTH,
    .changes = ALL_CHANGES,
    .setup = { .offset = 1, .count = UNIT + UNIT / 2 } },
  { "layers", play_layers, .plugins = BOTH },
  { "disconnected", play_disconnected, .plugins = BOTH },
};

CASES_MAIN (rows)
