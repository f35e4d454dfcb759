/* SPDX-License-Identifier: BSD-3-Clause */

/* Filters above asyncpool that do what nbdkit allows and few filters do: FUA on
 * the last piece only, calls after .finalize, and failed requests once more.
 */
#include "cases.h"

enum { PIECES = 4 };

static struct request
send_fua (struct nbd_handle *nbd, enum change how, const char *data)
{
  const uint64_t count = PIECES * UNIT;

  if (how == BY_ZERO)
    return send_zero (nbd, count, 0, LIBNBD_CMD_FLAG_FUA);
  if (how == BY_TRIM)
    return send_trim (nbd, count, 0, LIBNBD_CMD_FLAG_FUA);
  return send_write (nbd, data, count, 0, LIBNBD_CMD_FLAG_FUA);
}

/* FUA of its own, or a flush after it and before ANSWERED. */
static bool
is_durable (struct scene *c, struct gate_op op, uint64_t answered)
{
  unsigned n = gate_started (c->gate, GATE_FLUSH, ANYWHERE);

  if (!op.end)
    return false;
  if (op.flags & FLAG_FUA)
    return true;
  for (unsigned i = 0; i < n; i++) {
    struct gate_op flush = gate_op (c->gate, GATE_FLUSH, ANYWHERE, i);

    if (flush.end && op.end < flush.start && flush.end < answered)
      return true;
  }
  return false;
}

/* The filter lastfua splits a FUA request in pieces, and sets FUA on the last
 * one.  All pieces must be durable.
 */
static void
play_last_fua (const struct setup *t)
{
  static const unsigned kinds[CHANGES] = {
    GATE_WRITE, GATE_WRITE, GATE_ZERO, GATE_TRIM
  };
  const unsigned kind = kinds[t->how];
  g_autofree char *module = client_module ("LASTFUA", "tests/lastfua.so");
  g_autofree char *options = g_strdup_printf ("--filter=%s", module);
  g_autofree char *data = filled (PIECES * UNIT, 1);
  struct scene c;
  struct request request;
  uint64_t answered;
  int held;

  scene_start_with (&c, t, options);
  nbd_ok (nbd_flush (c.a, 0));
  gate_forget (c.gate);
  held = gate_hold (c.gate, kind, 0, UNIT);
  request = send_fua (c.a, t->how, data);
  while (gate_held (c.gate, held) == 0) /* more than a socket's buffer */
    nbd_ok (nbd_poll (c.a, 10));
  assert_waits_for (&c, &request, held);
  answered = gate_now (c.gate);
  g_assert_cmpuint (gate_started (c.gate, kind, 0, PIECES * UNIT), ==, PIECES);
  for (unsigned i = 0; i < PIECES; i++)
    g_assert_true (is_durable (&c, gate_op (c.gate, kind, 0, PIECES * UNIT, i),
                               answered));
  if (kind == GATE_WRITE)
    assert_on_device (&c, data, PIECES * UNIT, 0);
  scene_stop (&c);
}

/* The thread of the readahead filter, over the cache filter, reads through
 * asyncpool also after .finalize.
 */
static void
play_late_calls (const struct setup *t)
{
  struct server s;
  struct nbd_handle *nbd;

  (void) t;
  g_setenv ("MALLOC_PERTURB_", "165", true);    /* shows use after free */
  server_start (&s, "--filter=readahead --filter=cache", "delay=30ms");
  for (unsigned i = 0; i < 12; i++) {
    nbd = client_connect (&s);
    for (unsigned k = 0; k < 5; k++)    /* the cache has nothing there yet */
      read_units (nbd, i * 4 * MIB + k * 8 * UNIT,
                  i * 4 * MIB + k * 8 * UNIT + UNIT);
    client_close (nbd);
    wait_closed (&s, i + 1);
  }
  server_stop (&s);
}

/* A filter above repeats what fails, also a flush.  The device refuses a write
 * until then: a flush that succeeds has written it.
 */
static void
play_repeated (const struct setup *t)
{
  g_autofree char *data = filled (UNIT, 1);
  struct scene c;

  scene_start_alone (&c, t);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_ok (nbd_pwrite (c.a, data, UNIT, ELSEWHERE, 0));
  nbd_ok (nbd_flush (c.a, 0));
  gate_fail (c.gate, GATE_WRITE, 0, UNIT, t->error, 5);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 0, 0));
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

#define NO_WRITE (ALL_CHANGES & ~BIT (BY_WRITE))

static const struct row rows[] = {
  { "last-fua/emulate", play_last_fua, .plugins = BIT (POOL),
    .changes = NO_WRITE, .setup = { .mode = AUTO, .words = "fua=emulate" } },
  { "last-fua/native", play_last_fua, .plugins = BIT (POOL),
    .changes = NO_WRITE, .setup = { .mode = AUTO, .words = "fua=native" } },
  { "last-fua/behind", play_last_fua, .plugins = BIT (POOL),
    .setup = { .mode = BEHIND, .how = BY_FUA, .words = "fua=emulate" } },
  { "repeated/retry", play_repeated, .plugins = BOTH,
    .setup = { .mode = AUTO, .error = EIO, .options = "-t 1 --filter=retry",
               .words = "retry-delay=1 retry-exponential=no" } },
  { "repeated/retry-request", play_repeated, .plugins = BOTH,
    .setup = { .mode = AUTO, .error = EPERM,
               .options = "-t 1 --filter=retry-request",
               .words = "retry-request-delay=1 retry-request-retries=5" } },
  { "late-calls", play_late_calls, .plugins = BIT (POOL) },
};

CASES_MAIN (rows)
