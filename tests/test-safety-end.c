/* SPDX-License-Identifier: BSD-3-Clause */

/* The end of a connection and of the server.  Safety 5 of the contract:
 *
 *   Disconnect, the end of nbdkit --run, and SIGTERM write out what was
 *   acknowledged.  What cannot be written by then is logged with offset and
 *   length.
 *
 * Not here: nbdkit --run, see test-lifecycle.sh.
 */
#include "cases.h"

/* A leaves with dirty data.  The data is still served, and B's flush waits for
 * it.
 */
static void
play_disconnect (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (3 * UNIT, 1);
  struct request flush;
  int held;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (c.a, data + UNIT, 5000, UNIT, 0));
  nbd_ok (nbd_pwrite (c.a, data + 2 * UNIT, UNIT, 2 * UNIT, 0));
  /* Sent: nbd_shutdown would wait for the server. */
  nbd_ok (nbd_aio_disconnect (c.a, 0));
  gate_wait_held (c.gate, held, 3);
  assert_reads (c.b, data, UNIT + 5000, 0);
  flush = send_flush (c.b);
  assert_waits_for (&c, &flush, held);
  assert_on_device (&c, data, UNIT + 5000, 0);
  assert_on_device (&c, data + 2 * UNIT, UNIT, 2 * UNIT);
  nbd_close (c.a);
  c.a = NULL;
  scene_stop (&c);
}

/* The server ends with dirty data of both.  On a signal nbdkit 1.32.5 may or
 * may not wait for its clients to go.
 */
static void
play_sigterm (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (4 * UNIT, 1);
  int held;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (c.b, data + UNIT, 5000, UNIT, 0));
  nbd_ok (nbd_pwrite (c.a, data + 2 * UNIT, UNIT, 2 * UNIT, 0));
  nbd_ok (nbd_pwrite (c.b, data + 3 * UNIT, 1, 3 * UNIT, 0));
  server_device (&c.s);
  server_terminate (&c.s);
  nbd_close (c.a);
  nbd_close (c.b);
  gate_wait_held (c.gate, held, 4);
  gate_release (c.gate, held);
  server_wait (&c.s);
  assert_on_device (&c, data, UNIT + 5000, 0);
  assert_on_device (&c, data + 2 * UNIT, UNIT + 1, 2 * UNIT);
  server_free (&c.s);
}

/* The server ends with data that fails: it logs offset and length. */
static void
play_sigterm_failed (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start_alone (&c, t);
  gate_fail (c.gate, GATE_WRITE, 5 * UNIT, UNIT, ENOSPC, -1);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 5 * UNIT, 0));
  gate_wait_ended (c.gate, GATE_WRITE, 5 * UNIT, UNIT, 1);
  scene_terminate (&c);
  if (count_messages (&c.s, "327680") == 0
      || count_messages (&c.s, "65536") == 0)
    server_print_messages (&c.s);
  g_assert_cmpuint (count_messages (&c.s, "327680"), >, 0);
  g_assert_cmpuint (count_messages (&c.s, "65536"), >, 0);
  server_free (&c.s);
}

static const struct row rows[] = {
  { "disconnect", play_disconnect, .plugins = BOTH },
  { "sigterm", play_sigterm, .plugins = BOTH },
  { "sigterm-with-failed-data", play_sigterm_failed, .plugins = BOTH },
};

CASES_MAIN (rows)
