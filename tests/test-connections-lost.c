/* SPDX-License-Identifier: BSD-3-Clause */

/* Deferred data that fails, and the end of its connection.  Of safety 9 of the
 * contract:
 *
 *   One connection's trouble never stops or changes another one's data.
 *
 * While a connection of the same device is there, the filter keeps failed data
 * and retries it.  When the last one ends, the data is tried once more, logged
 * and dropped.  The error goes to the next flush of its export name, once.
 */
#include "cases.h"

/* NBD has no EROFS. */
static int
nbd_error (int error)
{
  return error == EROFS ? EPERM : error;
}

/* Errors with which a second flush that fails drops the data. */
static bool
is_final (int error)
{
  return error == EPERM || error == EROFS;
}

/* Another device gets no failed data in reads, and its flush does not retry
 * it.
 */
static void
play_not_shared (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);
  unsigned tries;
  int failing;

  scene_start (&c, t);
  failing = fail_deferred (&c, c.a, data, UNIT, 0, ENOSPC);
  tries = gate_started (c.gate, GATE_WRITE, 0, UNIT);
  assert_reads (c.a, data, UNIT, 0);
  assert_reads (c.b, zeroes, UNIT, 0);
  nbd_ok (nbd_flush (c.b, 0));
  g_assert_cmpuint (gate_started (c.gate, GATE_WRITE, 0, UNIT), ==, tries);
  nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

/* A is the last connection of its device, and B is of another device. */

/* A leaves with data that the device never takes. */
static void
lose (struct scene *c, const struct setup *t)
{
  g_autofree char *data = filled (UNIT, 1);
  unsigned tries;

  scene_start (c, t);
  fail_deferred (c, c->a, data, UNIT, 0, t->error);
  tries = gate_ended (c->gate, GATE_WRITE, 0, UNIT);
  scene_leave (c, &c->a);
  g_assert_cmpuint (gate_ended (c->gate, GATE_WRITE, 0, UNIT), >, tries);
  assert_messages (&c->s, "length 65536", 1);
}

/* Clients of A's export, one after another.  The first one's flush returns
 * ERROR, if there is one.  Nothing is left of the lost data.
 */
static void
later_clients_flush (struct scene *c, const struct setup *t, int error)
{
  g_autofree char *data = filled (UNIT, 2), *zeroes = g_malloc0 (UNIT);

  for (unsigned i = 0; i < 3; i++) {
    struct nbd_handle *nbd =
      client_connect_export (&c->s, t->relation->export_a);

    nbd_ok (nbd_pwrite (nbd, data, UNIT, 4 * UNIT, 0));
    if (i == 0 && error)
      nbd_fails (nbd_flush (nbd, 0), error);
    nbd_ok (nbd_flush (nbd, 0));
    assert_on_device (c, data, UNIT, 4 * UNIT);
    assert_reads (nbd, zeroes, UNIT, 0);
    client_close (nbd);
  }
  gate_release_all (c->gate);
  nbd_ok (nbd_flush (c->b, 0));
  assert_on_device (c, zeroes, UNIT, 0);
}

static void
play_lost (const struct setup *t)
{
  struct scene c;

  lose (&c, t);
  if (strcmp (t->relation->export_a, t->relation->export_b) != 0)
    nbd_ok (nbd_flush (c.b, 0));        /* another name: no error for it */
  later_clients_flush (&c, t, t->error);
  scene_stop (&c);
}

/* A's flush has returned the error already. */
static void
play_reported (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start (&c, t);
  fail_deferred (&c, c.a, data, UNIT, 0, t->error);
  nbd_fails (nbd_flush (c.a, 0), t->error);
  scene_leave (&c, &c.a);
  later_clients_flush (&c, t, 0);
  scene_stop (&c);
}

/* nbdkit's protect filter refuses the write. */
static void
play_protected (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (512, 1);

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, data, 512, 0, 0));
  scene_leave (&c, &c.a);
  later_clients_flush (&c, t, EPERM);
  scene_stop (&c);
}

/* A leaves, and B of the same device stays. */
static void
play_left_to_other (const struct setup *t)
{
  const int e = nbd_error (t->error);
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);
  const char *expected = is_final (t->error) ? zeroes : data;
  int failing;

  scene_start (&c, t);
  failing = fail_deferred (&c, c.a, data, UNIT, 0, t->error);
  scene_leave (&c, &c.a);
  for (unsigned i = 0; i < 2; i++) {
    assert_reads (c.b, data, UNIT, 0);
    nbd_fails (nbd_flush (c.b, 0), e);
  }
  if (!is_final (t->error))
    gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.b, 0));
  nbd_ok (nbd_flush (c.b, 0));
  assert_reads (c.b, expected, UNIT, 0);
  assert_on_device (&c, expected, UNIT, 0);
  scene_stop (&c);
}

/* A's own flushes return a final error.  The second one drops the data. */
static void
play_refused (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);
  int failing;

  scene_start (&c, t);
  failing = fail_deferred (&c, c.a, data, UNIT, 0, t->error);
  nbd_fails (nbd_flush (c.a, 0), nbd_error (t->error));
  assert_reads (c.a, data, UNIT, 0);
  nbd_fails (nbd_flush (c.a, 0), nbd_error (t->error));
  nbd_ok (nbd_flush (c.a, 0));
  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.a, 0));
  assert_reads (c.a, zeroes, UNIT, 0);
  assert_on_device (&c, zeroes, UNIT, 0);
  scene_stop (&c);
}

/* The last try succeeds: nothing is lost, and there is no error. */
static void
play_recovered (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start (&c, t);
  gate_release (c.gate, fail_deferred (&c, c.a, data, UNIT, 0, t->error));
  scene_leave (&c, &c.a);
  assert_on_device (&c, data, UNIT, 0);
  nbd_ok (nbd_flush (c.b, 0));
  assert_reads (c.b, data, UNIT, 0);
  assert_messages (&c.s, "length", 0);
  scene_stop (&c);
}

/* A client chooses its export name.  It can forge no line in the log, and no
 * escape sequence.
 */
static const struct relation evil = {
  .export_a = "evil\nnbdkit: all is well\033[2J", .export_b = "",
  .words = "multi_conn=1"
};
#define EVIL_IN_LOG "evil\\nnbdkit: all is well\\033[2J"

static void
play_log (const struct setup *t)
{
  g_autofree char *log = NULL, *data = filled (UNIT, 1);
  struct scene c;

  if (t->end == TERMINATE) {
    scene_start (&c, t);
    fail_deferred (&c, c.a, data, UNIT, 0, ENOSPC);
    scene_terminate (&c);
  }
  else
    lose (&c, t);
  log = server_messages (&c.s);
  if (!strstr (log, EVIL_IN_LOG))
    server_print_messages (&c.s);
  g_assert_nonnull (strstr (log, EVIL_IN_LOG));
  g_assert_null (strchr (log, '\033'));
  g_assert_false (g_str_has_prefix (log, "nbdkit: all is well"));
  g_assert_null (strstr (log, "\nnbdkit: all is well"));
  assert_messages (&c.s, "length 65536", 1);
  if (t->end == TERMINATE)
    server_free (&c.s);
  else
    scene_stop (&c);
}

#define FINAL (BIT (OF_EPERM) | BIT (OF_EROFS))
#define SOME (BIT (OF_ENOSPC) | BIT (OF_EIO) | BIT (OF_EPERM))
#define ALL (FINAL | SOME | BIT (OF_EINVAL))

static const struct row rows[] = {
  { "not-shared", play_not_shared, .plugins = BIT (POOL),
    .relations = OTHER_DEVICES },
  { "lost", play_lost, .plugins = BIT (POOL),
    .relations = OTHER_DEVICES, .errors = SOME },
  { "lost", play_lost, .plugins = BIT (HOOKS),
    .relations = OTHER_DEVICES, .errors = BIT (OF_ENOSPC) },
  { "reported", play_reported, .plugins = BIT (POOL),
    .relations = OTHER_DEVICES, .errors = SOME },
  { "protected", play_protected, .plugins = BIT (POOL),
    .relations = OTHER_DEVICES,
    .setup = { .below = "--filter=protect", .words = "protect=0-511" } },
  { "left-to-other", play_left_to_other, .plugins = BIT (POOL),
    .errors = ALL },
  { "refused", play_refused, .plugins = BIT (POOL),
    .relations = UNNAMED, .errors = FINAL },
  { "recovered", play_recovered, .plugins = BIT (POOL), .errors = ALL },
  { "recovered", play_recovered, .plugins = BIT (POOL),
    .relations = BIT (ONE_NAME), .errors = BIT (OF_EIO) },
  { "log/leaves", play_log, .plugins = BIT (POOL),
    .setup = { .relation = &evil, .error = ENOSPC, .end = LEAVE } },
  { "log/server-ends", play_log, .plugins = BIT (POOL),
    .setup = { .relation = &evil, .error = ENOSPC, .end = TERMINATE } },
};

CASES_MAIN (rows)
