/* SPDX-License-Identifier: BSD-3-Clause */

/* Several connections, through nbdkit over gate.so: what they share, what they
 * never share, and what becomes of data that the plugin has refused.
 *
 * A case is a function and a setup.  Each runs in a process of its own, so
 * that one that fails or hangs does not keep the others from running.
 * Not its job: one connection alone, see test-safety.c.
 */
#include "client.h"

#define AUTO "asyncpool-buffers=16 asyncpool-buffer-size=64k"
#define BEHIND AUTO " asyncpool-write=behind"
#define THROUGH AUTO " asyncpool-write=through"

#define FAR (16 * MIB)          /* before it: where the cases work */
#define ELSEWHERE (24 * MIB)

/* Nothing that waits for another connection may take longer than 3 s; a busy
 * machine gets some more.
 */
#define BOUND_MS (client_is_slow () ? 90000 : 12000)
/* What does not wait for another connection at all. */
#define PROMPT_MS (client_is_slow () ? 60000 : 2500)

/* How two connections are related. */
struct relation {
  const char *name, *export_a, *export_b, *parameters;
  bool is_same;                 /* the same device */
};

enum { SAME_DEVICE, ONE_NAME, TWO_NAMES, TWO_NAMES_ALONE, RELATIONS };

static const struct relation relations[RELATIONS] = {
  [SAME_DEVICE] = { "same-device", "", "", "multi_conn=1", true },
  [ONE_NAME] = { "one-name", "", "", "multi_conn=0", false },
  [TWO_NAMES] = { "two-names", "a", "b", "multi_conn=1", false },
  [TWO_NAMES_ALONE] = { "two-names-alone", "a", "b", "multi_conn=0", false },
};

enum change { BY_WRITE, BY_FUA, BY_ZERO, BY_TRIM, CHANGES };
static const char *const changes[CHANGES] = { "write", "fua", "zero", "trim" };

enum ending { LEAVE, FLUSH, BREAK, TERMINATE };

struct setup {
  const struct relation *relation;
  enum change how;
  enum ending end;
  int error;
  bool hooks;
  const char *words;            /* parameters of the case's own */
};

struct scene {
  struct server s;
  struct nbd_handle *a, *b;
};

/* The filter defers writes only to a device that it has seen to be slow. */
static void
warm_up (struct server *s, struct nbd_handle *nbd)
{
  uint64_t offset = nbd_get_size (nbd) - MIB;
  g_autofree char *buf = g_malloc0 (UNIT / 2);

  nbd_ok (nbd_pwrite (nbd, buf, UNIT / 2, offset, 0));
  nbd_ok (nbd_pread (nbd, buf, UNIT / 2, offset, 0));
  gate_wait_ended (s->gate, GATE_WRITE, offset, UNIT / 2, 1);
  gate_forget (s->gate);
}

static struct nbd_handle *
connect_warm (struct server *s, const char *export)
{
  struct nbd_handle *nbd = client_connect_export (s, export);

  warm_up (s, nbd);
  return nbd;
}

/* OPTIONS and BELOW are filters, see server_start_with. */
static void
scene_start_with (struct scene *c, const struct setup *t, const char *options,
                  const char *below, const char *parameters)
{
  g_autofree char *module = client_module ("ASYNC_GATE", "tests/async-gate.so");
  g_autofree char *words = g_strjoin (" ", parameters, t->relation->parameters,
                                      t->words, NULL);

  if (t->hooks)
    g_setenv ("GATE", module, true);
  server_start_with (&c->s, options, below, NULL, words);
  c->a = connect_warm (&c->s, t->relation->export_a);
  c->b = connect_warm (&c->s, t->relation->export_b);
}

static void
scene_start (struct scene *c, const struct setup *t)
{
  scene_start_with (c, t, NULL, NULL, BEHIND);
}

static void
scene_stop (struct scene *c)
{
  gate_release_all (c->s.gate);
  if (c->a)
    client_close (c->a);
  if (c->b)
    client_close (c->b);
  server_stop (&c->s);
}

/* Waits until the plugin has closed N connections. */
static void
wait_closed (struct server *s, unsigned n)
{
  while (gate_closed (s->gate) < n) {
    if (waitpid (s->pid, NULL, WNOHANG) != 0) {
      fprintf (stderr, "# the server has ended\n");
      client_abort ();
    }
    g_usleep (1000);
  }
}

/* A is the first connection to end: waits until the server is done with it. */
static void
a_leaves (struct scene *c)
{
  client_close (c->a);
  c->a = NULL;
  wait_closed (&c->s, 1);
}

/* The server's device, with clients that leave without a word. */
static const char *
terminated (struct scene *c)
{
  const char *device = server_device (&c->s);

  gate_release_all (c->s.gate);
  server_terminate (&c->s);
  nbd_close (c->a);
  nbd_close (c->b);
  server_wait (&c->s);
  return device;
}

/* Writes what the device refuses, by a rule that it returns: the write is
 * acknowledged, and has failed.
 */
static int
fail_deferred (struct server *s, struct nbd_handle *nbd, const char *data,
               uint64_t count, uint64_t offset, int error)
{
  int rule = gate_fail (s->gate, GATE_WRITE, offset, count, error, -1);
  unsigned n = gate_ended (s->gate, GATE_WRITE, offset, count);

  nbd_ok (nbd_pwrite (nbd, data, count, offset, 0));
  gate_wait_ended (s->gate, GATE_WRITE, offset, count, n + 1);
  round_trips (nbd);
  return rule;
}

/* Writes what the device takes only when the rule that this returns ends. */
static int
hold_deferred (struct server *s, struct nbd_handle *nbd, const char *data,
               uint64_t count, uint64_t offset)
{
  int rule = gate_hold (s->gate, GATE_WRITE, offset, count);

  nbd_ok (nbd_pwrite (nbd, data, count, offset, 0));
  gate_wait_held (s->gate, rule, 1);
  return rule;
}

/* Changes [offset, offset + count); DATA is what is there then. */
static void
change (struct nbd_handle *nbd, enum change how, char *data, uint64_t count,
        uint64_t offset)
{
  if (how == BY_WRITE || how == BY_FUA) {
    fill (data, count, 1000 + how);
    nbd_ok (nbd_pwrite (nbd, data, count, offset,
                        how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0));
    return;
  }
  memset (data, 0, count);      /* gate.so's trim makes zeroes, too */
  if (how == BY_ZERO)
    nbd_ok (nbd_zero (nbd, count, offset, 0));
  else
    nbd_ok (nbd_trim (nbd, count, offset, 0));
}

static void
wait_within (struct request *r, int ms)
{
  gint64 end_us = g_get_monotonic_time () + ms * INT64_C (1000);

  while (!request_is_done (r)) {
    if (g_get_monotonic_time () > end_us) {
      fprintf (stderr, "# no answer within %d ms\n", ms);
      client_abort ();
    }
    nbd_ok (nbd_poll (r->nbd, 100));
  }
}

#define succeeds_within(sent, ms) \
  do { \
    struct request r_ = sent; \
    wait_within (&r_, ms); \
    g_assert_cmpint (r_.error, ==, 0); \
  } while (0)

/* Data that failed, and newer data of whichever connection. */

/* The newer data stays, whatever is tried again later.  Whoever lost data to
 * another device's connection is told once.
 */
static void
expect_superseded (struct scene *c, const struct setup *t, const char *data,
                   uint64_t count)
{
  if (t->end == TERMINATE) {
    assert_same (terminated (c), data, count);
    server_free (&c->s);
    return;
  }
  if (t->end == FLUSH) {
    if (!t->relation->is_same)
      nbd_fails (nbd_flush (c->a, 0), ENOSPC);
    nbd_ok (nbd_flush (c->a, 0));
    assert_reads (c->a, data, count, 0);
  }
  else
    a_leaves (c);
  assert_reads (c->b, data, count, 0);
  nbd_ok (nbd_flush (c->b, 0));
  assert_same (server_device (&c->s), data, count);
  scene_stop (c);
}

static void
play_superseded (const struct setup *t)
{
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = g_malloc (UNIT);

  scene_start (&c, t);
  gate_release (c.s.gate, fail_deferred (&c.s, c.a, old, UNIT, 0, ENOSPC));
  change (c.b, t->how, data, UNIT, 0);
  nbd_ok (nbd_flush (c.b, 0));
  assert_same (server_device (&c.s), data, UNIT);
  expect_superseded (&c, t, data, UNIT);
}

/* The older write fails only when the newer one waits for it. */
static void
play_superseded_in_flight (const struct setup *t)
{
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = filled (UNIT, 2);
  struct request newer;
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c.s, c.a, old, UNIT, 0);
  newer = send_write (c.b, data, UNIT, 0,
                      t->how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0);
  round_trips (c.b);
  gate_fail (c.s.gate, GATE_WRITE, 0, UNIT, ENOSPC, 1);
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&newer), ==, 0);
  if (t->relation->is_same && t->how == BY_WRITE) {
    /* One order of writes: the newer one waits behind the one that failed. */
    nbd_ok (nbd_flush (c.a, 0));
    assert_same (server_device (&c.s), data, UNIT);
    scene_stop (&c);
    return;
  }
  nbd_ok (nbd_flush (c.b, 0));
  expect_superseded (&c, t, data, UNIT);
}

/* Of the rest of the older data nothing is lost. */
static void
play_superseded_partly (const struct setup *t)
{
  const uint64_t from = 16 * KIB, count = 8 * KIB;
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start (&c, t);
  gate_release (c.s.gate, fail_deferred (&c.s, c.a, data, UNIT, 0, ENOSPC));
  change (c.b, t->how, data + from, count, from);
  nbd_ok (nbd_flush (c.b, 0));
  if (!t->relation->is_same)
    nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  nbd_ok (nbd_flush (c.a, 0));
  if (t->how == BY_TRIM)        /* anything may stand there */
    memcpy (data + from, server_device (&c.s) + from, count);
  assert_same (server_device (&c.s), data, UNIT);
  assert_reads (c.a, data, UNIT, 0);
  assert_reads (c.b, data, UNIT, 0);
  scene_stop (&c);
}

/* Three connections: the third one's data is newer than what the first two
 * have lost, each of which is told.
 */
static void
play_superseded_by_third (const struct setup *t)
{
  struct scene c;
  struct nbd_handle *third;
  g_autofree char *old = filled (UNIT, 1), *data = g_malloc (UNIT);
  int failing;

  scene_start (&c, t);
  third = connect_warm (&c.s, *t->relation->export_a ? "third" : "");
  failing = fail_deferred (&c.s, c.a, old, UNIT, 0, ENOSPC);
  gate_release (c.s.gate, failing);
  failing = fail_deferred (&c.s, c.b, old, UNIT, 4 * UNIT, ENOSPC);
  gate_release (c.s.gate, failing);
  for (unsigned i = 0; i < 5; i += 4)
    change (third, t->how, data, UNIT, i * UNIT);
  nbd_ok (nbd_flush (third, 0));
  nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_fails (nbd_flush (c.b, 0), ENOSPC);
  nbd_ok (nbd_flush (c.b, 0));
  nbd_ok (nbd_flush (third, 0));
  assert_same (server_device (&c.s), data, UNIT);
  assert_same (server_device (&c.s) + 4 * UNIT, data, UNIT);
  client_close (third);
  scene_stop (&c);
}

/* A connection breaks, or is closed, with a request in the plugin.  Its client
 * connects again and writes the same place.
 */
static void
play_reconnect (const struct setup *t)
{
  struct scene c;
  struct nbd_handle *again;
  g_autofree char *old = filled (UNIT, 1), *data = g_malloc (UNIT);
  g_autofree char *got = g_malloc (UNIT);
  int failing, held;

  scene_start_with (&c, t, "-t 1", NULL, BEHIND);
  failing = fail_deferred (&c.s, c.a, old, UNIT, 0, ENOSPC);
  gate_release (c.s.gate, failing);
  held = gate_hold (c.s.gate, GATE_READ, ELSEWHERE, UNIT);
  send_read (c.a, got, UNIT, ELSEWHERE);
  gate_wait_held (c.s.gate, held, 1);
  if (t->end == LEAVE)
    client_leave (c.a);
  else
    nbd_close (c.a);
  c.a = NULL;
  again = client_connect_export (&c.s, t->relation->export_a);
  change (again, t->how, data, UNIT, 0);
  nbd_ok (nbd_flush (again, 0));
  gate_release (c.s.gate, held);
  wait_closed (&c.s, 1);
  assert_reads (again, data, UNIT, 0);
  nbd_ok (nbd_flush (again, 0));
  assert_same (server_device (&c.s), data, UNIT);
  client_close (again);
  scene_stop (&c);
}

/* Failed data of another device is neither served nor tried again. */
static void
play_not_shared (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);
  unsigned tries;
  int failing;

  scene_start (&c, t);
  failing = fail_deferred (&c.s, c.a, data, UNIT, 0, ENOSPC);
  tries = gate_started (c.s.gate, GATE_WRITE, 0, UNIT);
  assert_reads (c.a, data, UNIT, 0);
  assert_reads (c.b, zeroes, UNIT, 0);
  nbd_ok (nbd_flush (c.b, 0));
  g_assert_cmpuint (gate_started (c.s.gate, GATE_WRITE, 0, UNIT), ==, tries);
  nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  gate_release (c.s.gate, failing);
  nbd_ok (nbd_flush (c.a, 0));
  assert_same (server_device (&c.s), data, UNIT);
  scene_stop (&c);
}

/* Data that is lost. */

/* A leaves with data that the device never takes, as the last one of its
 * device: that is tried once more, logged and dropped.  B is elsewhere.
 */
static void
lose (struct scene *c, const struct setup *t, bool is_reported)
{
  g_autofree char *data = filled (UNIT, 1);
  unsigned tries;

  scene_start (c, t);
  fail_deferred (&c->s, c->a, data, UNIT, 0, t->error);
  if (is_reported)
    nbd_fails (nbd_flush (c->a, 0), t->error);
  tries = gate_ended (c->s.gate, GATE_WRITE, 0, UNIT);
  a_leaves (c);
  if (is_reported)              /* it may have been dropped then */
    return;
  g_assert_cmpuint (gate_ended (c->s.gate, GATE_WRITE, 0, UNIT), >, tries);
  assert_messages (&c->s, "length 65536", 1);
}

/* One client of A's export after another; then nothing is left of that data. */
static void
later_clients_flush (struct scene *c, const char *export, int first_error)
{
  g_autofree char *data = filled (UNIT, 2), *zeroes = g_malloc0 (UNIT);

  for (unsigned i = 0; i < 3; i++) {
    struct nbd_handle *nbd = client_connect_export (&c->s, export);

    nbd_ok (nbd_pwrite (nbd, data, UNIT, 4 * UNIT, 0));
    if (i == 0 && first_error)
      nbd_fails (nbd_flush (nbd, 0), first_error);
    nbd_ok (nbd_flush (nbd, 0));
    assert_same (server_device (&c->s) + 4 * UNIT, data, UNIT);
    assert_reads (nbd, zeroes, UNIT, 0);
    client_close (nbd);
  }
  gate_release_all (c->s.gate);
  nbd_ok (nbd_flush (c->b, 0));
  assert_same (server_device (&c->s), zeroes, UNIT);
}

static void
play_lost (const struct setup *t)
{
  struct scene c;

  lose (&c, t, false);
  if (strcmp (t->relation->export_a, t->relation->export_b) != 0)
    nbd_ok (nbd_flush (c.b, 0));        /* of another name: it is not told */
  later_clients_flush (&c, t->relation->export_a, t->error);
  scene_stop (&c);
}

/* A flush has told already. */
static void
play_lost_and_reported (const struct setup *t)
{
  struct scene c;

  lose (&c, t, true);
  later_clients_flush (&c, t->relation->export_a, 0);
  scene_stop (&c);
}

/* The same through nbdkit's protect filter, which never lets it pass. */
static void
play_protected (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (512, 1);

  scene_start_with (&c, t, NULL, "--filter=protect", BEHIND);
  nbd_ok (nbd_pwrite (c.a, data, 512, 0, 0));
  a_leaves (&c);
  later_clients_flush (&c, t->relation->export_a, EPERM);
  scene_stop (&c);
}

/* A leaves, and B of the same device stays.  Errors that no later try can mend
 * are told once.
 */
static void
play_left_to_other (const struct setup *t)
{
  bool is_final = t->error == EPERM || t->error == EROFS || t->error == EINVAL;
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);
  int failing;

  scene_start (&c, t);
  failing = fail_deferred (&c.s, c.a, data, UNIT, 0, t->error);
  a_leaves (&c);
  assert_reads (c.b, data, UNIT, 0);
  /* NBD has no EROFS. */
  nbd_fails (nbd_flush (c.b, 0), t->error == EROFS ? EPERM : t->error);
  if (!is_final) {
    nbd_fails (nbd_flush (c.b, 0), t->error);
    gate_release (c.s.gate, failing);
  }
  nbd_ok (nbd_flush (c.b, 0));
  nbd_ok (nbd_flush (c.b, 0));
  assert_reads (c.b, is_final ? zeroes : data, UNIT, 0);
  assert_same (server_device (&c.s), is_final ? zeroes : data, UNIT);
  scene_stop (&c);
}

/* The same with the connection's own flush. */
static void
play_refused (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);
  int failing;

  scene_start (&c, t);
  failing = fail_deferred (&c.s, c.a, data, UNIT, 0, t->error);
  nbd_fails (nbd_flush (c.a, 0), t->error == EROFS ? EPERM : t->error);
  nbd_ok (nbd_flush (c.a, 0));
  gate_release (c.s.gate, failing);
  nbd_ok (nbd_flush (c.a, 0));
  assert_reads (c.a, zeroes, UNIT, 0);
  assert_same (server_device (&c.s), zeroes, UNIT);
  scene_stop (&c);
}

/* The last try is successful: then nothing is lost, and no one is told. */
static void
play_recovered (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start (&c, t);
  gate_release (c.s.gate, fail_deferred (&c.s, c.a, data, UNIT, 0, t->error));
  a_leaves (&c);
  assert_same (server_device (&c.s), data, UNIT);
  nbd_ok (nbd_flush (c.b, 0));
  assert_reads (c.b, data, UNIT, 0);
  assert_messages (&c.s, "length", 0);
  scene_stop (&c);
}

/* An export name is the client's: it makes no line, and no colour, in a log. */
static void
play_log (const struct setup *t)
{
  static const struct relation evil = {
    .export_a = "evil\nnbdkit: all is well\033[2J", .export_b = "",
    .parameters = "multi_conn=1"
  };
  const struct setup of_evil = { .relation = &evil, .error = ENOSPC };
  g_autofree char *log = NULL;
  struct scene c;

  if (t->end == TERMINATE) {
    g_autofree char *data = filled (UNIT, 1);

    scene_start (&c, &of_evil);
    fail_deferred (&c.s, c.a, data, UNIT, 0, ENOSPC);
    server_terminate (&c.s);
    nbd_close (c.a);
    nbd_close (c.b);
    server_wait (&c.s);
  }
  else
    lose (&c, &of_evil, false);
  log = server_messages (&c.s);
  if (!strstr (log, "evil\\nnbdkit: all is well\\033[2J"))
    server_print_messages (&c.s);
  g_assert_nonnull (strstr (log, "evil\\nnbdkit: all is well\\033[2J"));
  g_assert_null (strchr (log, '\033'));
  g_assert_false (g_str_has_prefix (log, "nbdkit: all is well"));
  g_assert_null (strstr (log, "\nnbdkit: all is well"));
  assert_messages (&c.s, "length 65536", 1);
  if (t->end == TERMINATE)
    server_free (&c.s);
  else
    scene_stop (&c);
}

/* One device of which two connections are told something else. */

static const struct {
  const char *name;
  struct gate_geometry first, second;
} geometries[] = {
  { "size", { .size = 32 * MIB }, { 0 } },
  { "shrunk", { 0 }, { .size = 32 * MIB } },
  { "minimum", { 0 }, { .minimum = 4096 } },
  { "maximum", { 0 }, { .maximum = 32 * KIB } },
};

/* SETUP.error says which of them. */
static void
scene_start_geometry (struct scene *c, const struct setup *t)
{
  server_start (&c->s, NULL, BEHIND " multi_conn=1");
  gate_set_geometry (c->s.gate, geometries[t->error].first);
  c->a = connect_warm (&c->s, "");
  gate_set_geometry (c->s.gate, geometries[t->error].second);
  c->b = connect_warm (&c->s, "");
  g_assert_cmpint (nbd_can_multi_conn (c->a), ==, 1);
  g_assert_cmpint (nbd_can_multi_conn (c->b), ==, 1);
}

/* In requests that keep the smallest maximum. */
static void
assert_reads_small (struct nbd_handle *nbd, const char *data)
{
  for (uint64_t at = 0; at < UNIT; at += UNIT / 2)
    assert_reads (nbd, data + at, UNIT / 2, at);
}

static void
play_geometry_failed (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  int failing;

  scene_start_geometry (&c, t);
  failing = fail_deferred (&c.s, c.a, data, UNIT, 0, ENOSPC);
  assert_reads_small (c.b, data);
  nbd_fails (nbd_flush (c.b, 0), ENOSPC);
  gate_release (c.s.gate, failing);
  nbd_ok (nbd_flush (c.b, 0));
  assert_same (server_device (&c.s), data, UNIT);
  nbd_ok (nbd_flush (c.a, 0));
  assert_reads_small (c.b, data);
  scene_stop (&c);
}

static void
play_geometry_dirty (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct request flush;
  char block[4096];
  int held;

  scene_start_geometry (&c, t);
  held = hold_deferred (&c.s, c.a, data, UNIT, 0);
  assert_reads_small (c.b, data);
  g_assert_cmpuint (gate_held (c.s.gate, held), ==, 1);
  flush = send_flush (c.b);
  for (unsigned i = 0; i < 24; i++)     /* round trips with whole blocks */
    nbd_ok (nbd_pread (c.b, block, sizeof block,
                       ELSEWHERE + i * 7 % 24 * 16 * KIB, 0));
  g_assert_false (request_is_done (&flush));
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  assert_same (server_device (&c.s), data, UNIT);
  scene_stop (&c);
}

static void
play_geometry_order (const struct setup *t)
{
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = filled (UNIT, 2);
  struct request newer;
  int held;

  scene_start_geometry (&c, t);
  held = hold_deferred (&c.s, c.a, old, UNIT, 0);
  newer = send_write (c.b, data, UNIT / 2, 0, 0);       /* a direct one */
  assert_reads_small (c.b, old);
  g_assert_false (request_is_done (&newer));
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&newer), ==, 0);
  nbd_ok (nbd_pwrite (c.b, data + UNIT / 2, UNIT / 2, UNIT / 2, 0));
  assert_reads_small (c.a, data);
  assert_reads_small (c.b, data);
  nbd_ok (nbd_flush (c.a, 0));
  assert_same (server_device (&c.s), data, UNIT);
  scene_stop (&c);
}

/* Plugins that look up the export's name in each operation. */

/* Exports a and b are devices of their own. */
static const char *
device_b (struct scene *c)
{
  return server_device (&c->s) + 64 * MIB;
}

/* The pool's threads have no export name.  What they cannot write is written
 * by a thread that has one.
 */
static void
play_by_name (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.b, data, UNIT, 0, 0));
  gate_wait_ended (c.s.gate, GATE_WRITE, 0, UNIT, 1);
  assert_reads (c.b, data, UNIT, 0);
  assert_reads (c.a, zeroes, UNIT, 0);
  if (t->end == FLUSH)
    nbd_ok (nbd_flush (c.b, 0));
  else {
    client_close (c.b);
    c.b = NULL;
    wait_closed (&c.s, 1);
  }
  assert_same (device_b (&c), data, UNIT);
  assert_same (server_device (&c.s), zeroes, UNIT);
  scene_stop (&c);
}

/* Both exports have data of their own at one place. */
static void
play_by_name_both (const struct setup *t)
{
  struct scene c;
  g_autofree char *of_a = filled (UNIT, 1), *of_b = filled (UNIT, 2);

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, of_a, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (c.b, of_b, UNIT, 8 * UNIT, 0));
  nbd_ok (nbd_flush (c.b, 0));
  nbd_ok (nbd_flush (c.a, 0));
  assert_same (server_device (&c.s), of_a, UNIT);
  assert_same (device_b (&c) + 8 * UNIT, of_b, UNIT);
  for (unsigned i = 0; i < 2; i++) {
    nbd_ok (nbd_pwrite (c.a, of_a, UNIT, 16 * UNIT, LIBNBD_CMD_FLAG_FUA));
    nbd_ok (nbd_pwrite (c.b, of_b, UNIT, 16 * UNIT, LIBNBD_CMD_FLAG_FUA));
  }
  assert_reads (c.a, of_a, UNIT, 16 * UNIT);
  assert_reads (c.b, of_b, UNIT, 16 * UNIT);
  for (uint64_t at = 0; at < 24 * UNIT; at += UNIT) {
    assert_reads (c.a, server_device (&c.s) + at, UNIT, at);
    assert_reads (c.b, device_b (&c) + at, UNIT, at);
  }
  scene_stop (&c);
}

/* A hook that is called on B's thread takes B's device. */
enum { B_FLUSHES, B_WRITES, B_ZEROES, B_READS, B_LEAVES, A_LEAVES, ACTS };
static const char *const acts[ACTS] = {
  "b-flushes", "b-writes", "b-zeroes", "b-reads", "b-leaves", "a-leaves"
};

/* SETUP.error says what is done.  True: the act may drop A's data. */
static bool
act (struct scene *c, int what)
{
  g_autofree char *buf = filled (4096, 7);

  switch (what) {
  case B_FLUSHES:
    nbd_ok (nbd_flush (c->b, 0));
    break;
  case B_WRITES:
    nbd_ok (nbd_pwrite (c->b, buf, 4096, 8192, LIBNBD_CMD_FLAG_FUA));
    return true;
  case B_ZEROES:
    nbd_ok (nbd_zero (c->b, 4096, 8192, 0));
    return true;
  case B_READS:
    nbd_ok (nbd_pread (c->b, buf, 4096, 8192, 0));
    break;
  case B_LEAVES:
    client_close (c->b);
    c->b = NULL;
    wait_closed (&c->s, 1);
    break;
  case A_LEAVES:
    a_leaves (c);
    break;
  }
  return false;
}

static void
play_hook_by_name (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (4096, 1);
  bool may_drop, is_told = false;

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, data, 4096, 8192, 0));
  may_drop = act (&c, t->error);
  if (c.a)
    is_told = nbd_flush (c.a, 0) == -1;
  g_assert_true (may_drop || !is_told);
  g_assert_cmpint (memcmp (device_b (&c) + 8192, data, 4096), !=, 0);
  if (!is_told)
    assert_same (server_device (&c.s) + 8192, data, 4096);
  scene_stop (&c);
}

/* A device that does not move. */

/* A has filled the slab, and B of another device works on. */
static void
play_full_slab (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (16 * UNIT, 1), *other = filled (UNIT, 2);
  g_autofree char *got = g_malloc (UNIT);
  int held;

  scene_start (&c, t);
  held = gate_hold (c.s.gate, GATE_WRITE, 0, FAR);
  for (unsigned i = 0; i < 16; i++)
    nbd_ok (nbd_pwrite (c.a, data + i * UNIT, UNIT, i * UNIT, 0));
  gate_wait_held (c.s.gate, held, 16);
  for (unsigned i = 0; i < 4; i++)
    succeeds_within (send_write (c.b, other, UNIT, ELSEWHERE + i * UNIT, 0),
                     PROMPT_MS);
  succeeds_within (send_write (c.b, other, 512, ELSEWHERE + MIB, 0),
                   PROMPT_MS);
  succeeds_within (send_write (c.b, other, UNIT, ELSEWHERE + 2 * MIB,
                               LIBNBD_CMD_FLAG_FUA), PROMPT_MS);
  succeeds_within (send_read (c.b, got, UNIT, ELSEWHERE), PROMPT_MS);
  assert_same (got, other, UNIT);
  succeeds_within (send_zero (c.b, UNIT, ELSEWHERE, 0), PROMPT_MS);
  succeeds_within (send_trim (c.b, UNIT, ELSEWHERE + UNIT, 0), PROMPT_MS);
  if (strcmp (t->relation->export_a, t->relation->export_b) != 0)
    succeeds_within (send_flush (c.b), PROMPT_MS);
  g_assert_cmpuint (gate_held (c.s.gate, held), ==, 16);
  gate_release (c.s.gate, held);
  nbd_ok (nbd_flush (c.a, 0));
  assert_same (server_device (&c.s), data, 16 * UNIT);
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
  held = hold_deferred (&c.s, c.a, data, UNIT, 0);
  flush = send_flush (c.b);
  if (strcmp (t->relation->export_a, t->relation->export_b) != 0)
    wait_within (&flush, PROMPT_MS);
  else if (!client_is_slow ()) {
    round_trips (c.b);
    g_assert_false (request_is_done (&flush));
    gate_release (c.s.gate, held);
    g_assert_cmpint (request_wait (&flush), ==, 0);
    assert_same (server_device (&c.s), data, UNIT);
  }
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  scene_stop (&c);
}

/* Dirty data of another device is written before what overlaps it. */
static void
play_order (const struct setup *t)
{
  struct scene c;
  g_autofree char *old = filled (UNIT, 1), *data = filled (UNIT, 2);
  g_autofree char *got = g_malloc (UNIT);
  struct request read, newer;
  struct gate_op ops[2];
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c.s, c.a, old, UNIT, 0);
  read = send_read (c.b, got, UNIT, 0);
  round_trips (c.b);
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&read), ==, 0);
  assert_same (got, old, UNIT);

  held = hold_deferred (&c.s, c.a, old, UNIT, 4 * UNIT);
  newer = send_write (c.b, data, UNIT, 4 * UNIT,
                      t->how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0);
  round_trips (c.b);
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&newer), ==, 0);
  nbd_ok (nbd_flush (c.b, 0));
  g_assert_cmpuint (gate_started (c.s.gate, GATE_WRITE, 4 * UNIT, UNIT),
                    ==, 2);
  for (unsigned i = 0; i < 2; i++)
    ops[i] = gate_op (c.s.gate, GATE_WRITE, 4 * UNIT, UNIT, i);
  g_assert_cmpuint (ops[0].end, <, ops[1].start);
  assert_same (server_device (&c.s) + 4 * UNIT, data, UNIT);
  assert_reads (c.a, data, UNIT, 4 * UNIT);
  scene_stop (&c);
}

/* B gets an answer, whichever, though A's device never answers. */
static void
play_bounded (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *other = filled (UNIT, 2);
  g_autofree char *got = g_malloc (UNIT);
  struct request r;
  int held;

  scene_start (&c, t);
  held = hold_deferred (&c.s, c.a, data, UNIT, 0);
  r = send_read (c.b, got, UNIT, 0);
  wait_within (&r, BOUND_MS);
  r = send_flush (c.b);
  wait_within (&r, BOUND_MS);
  /* The rule would hold B's write, too. */
  if (t->how == BY_ZERO)
    r = send_zero (c.b, UNIT / 2, 0, 0);
  else if (t->how == BY_TRIM)
    r = send_trim (c.b, UNIT / 2, 0, 0);
  else
    r = send_write (c.b, other, UNIT, 4 * UNIT, LIBNBD_CMD_FLAG_FUA);
  wait_within (&r, BOUND_MS);
  g_assert_cmpuint (gate_held (c.s.gate, held), >=, 1);
  scene_stop (&c);
}

/* Multi-conn: what one has flushed the others see. */

/* Changes the device behind the server's back, as the flush of a plugin does
 * that keeps each connection's writes to itself until then.
 */
static void
poke (struct server *s, const char *data, uint64_t count, uint64_t offset)
{
  int fd = open (s->device_path, O_WRONLY | O_CLOEXEC);

  g_assert_cmpint (fd, !=, -1);
  g_assert_cmpint (pwrite (fd, data, count, offset), ==, count);
  close (fd);
}

/* B reads towards [8 UNIT, 9 UNIT), which is read ahead before A's flush.
 * SETUP.how BY_WRITE: it has come by then; else it is still in the plugin.
 */
static void
play_flush_is_seen (const struct setup *t)
{
  const uint64_t target = 8 * UNIT;
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *old = g_malloc0 (UNIT);
  g_autofree char *got = g_malloc (UNIT);
  struct request read;
  int held = -1;

  scene_start_with (&c, t, NULL, t->words ? "--filter=multi-conn" : NULL,
                    BEHIND);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, target, 0));
  gate_wait_ended (c.s.gate, GATE_WRITE, target, UNIT, 1);
  poke (&c.s, old, UNIT, target);
  if (t->how != BY_WRITE)
    held = gate_hold (c.s.gate, GATE_READ, target, UNIT);
  for (uint64_t offset = 0; offset + UNIT < target; offset += UNIT)
    nbd_ok (nbd_pread (c.b, got, UNIT, offset, 0));
  if (held == -1)
    gate_wait_ended (c.s.gate, GATE_READ, target, UNIT, 1);
  else
    gate_wait_held (c.s.gate, held, 1);
  poke (&c.s, data, UNIT, target);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_ok (nbd_pread (c.b, got, UNIT, target - UNIT, 0));
  read = send_read (c.b, got, UNIT, target);
  if (held != -1)
    gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&read), ==, 0);
  assert_same (got, data, UNIT);
  scene_stop (&c);
}

/* nbdkit's multi-conn filter above asyncpool. */

/* B leaves while A's connection, the older one, is flushed on B's thread: that
 * is nothing to A, however short the plugin's grace time is.
 */
static void
play_flusher_leaves (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  int held;

  scene_start_with (&c, t, "--filter=multi-conn", NULL, BEHIND);
  nbd_ok (nbd_flush (c.a, 0));
  held = gate_hold (c.s.gate, GATE_WRITE, 0, FAR);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (c.a, data, 4096, 4 * UNIT, 0));
  nbd_ok (nbd_pwrite (c.b, data, 4096, ELSEWHERE, 0));
  gate_wait_held (c.s.gate, held, 1);
  send_flush (c.b);
  round_trips (c.b);
  client_leave (c.b);
  c.b = NULL;
  /* What must not happen has no event: this is several times the grace time,
   * in which A's hooks reply to nothing.
   */
  g_usleep (2 * G_USEC_PER_SEC);
  gate_release (c.s.gate, held);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_ok (nbd_flush (c.a, 0));
  assert_same (server_device (&c.s), data, UNIT);
  assert_same (server_device (&c.s) + 4 * UNIT, data, 4096);
  scene_stop (&c);
}

/* Whether a write is answered before the plugin has it. */
static bool
is_deferred (struct server *s, struct nbd_handle *nbd, uint64_t offset)
{
  g_autofree char *data = filled (UNIT, offset);
  int held = gate_hold (s->gate, GATE_WRITE, offset, UNIT);
  struct request write = send_write (nbd, data, UNIT, offset, 0);
  bool is_early;

  gate_wait_held (s->gate, held, 1);
  round_trips (nbd);
  is_early = request_is_done (&write);
  gate_release (s->gate, held);
  g_assert_cmpint (request_wait (&write), ==, 0);
  return is_early;
}

/* Flushes until a write is deferred.  With a filter above, a thread that has
 * served no other request yet does not know whose flush it serves, so the first
 * flush may not be enough.
 */
static void
flush_until_deferred (struct server *s, struct nbd_handle *nbd, uint64_t offset)
{
  for (unsigned i = 0; i < 100; i++) {
    nbd_ok (nbd_flush (nbd, 0));
    if (is_deferred (s, nbd, offset))
      return;
  }
  g_error ("no write is deferred after 100 flushes");
}

/* A's flush says nothing of whether B's client knows what a flush is. */
static void
play_flush_of_other (const struct setup *t)
{
  struct scene c;

  scene_start_with (&c, t, "--filter=multi-conn", NULL, AUTO);
  g_assert_false (is_deferred (&c.s, c.a, 0));
  g_assert_false (is_deferred (&c.s, c.b, UNIT));
  flush_until_deferred (&c.s, c.a, 2 * UNIT);
  g_assert_false (is_deferred (&c.s, c.b, 3 * UNIT));
  nbd_ok (nbd_flush (c.a, 0));
  g_assert_false (is_deferred (&c.s, c.b, 4 * UNIT));
  flush_until_deferred (&c.s, c.b, 5 * UNIT);
  scene_stop (&c);
}

/* A's flush writes B's deferred data. */
static void
play_flush_for_all (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct request flush;
  int held;

  scene_start_with (&c, t, "--filter=multi-conn", NULL, BEHIND);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, ELSEWHERE, 0));
  held = hold_deferred (&c.s, c.b, data, UNIT, 0);
  flush = send_flush (c.a);
  round_trips (c.a);
  g_assert_false (request_is_done (&flush));
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  assert_same (server_device (&c.s), data, UNIT);
  scene_stop (&c);
}

/* Filters above that use what nbdkit allows them. */

/* A filter that sets FUA on the last piece only. */
static void
play_last_fua (const struct setup *t)
{
  static const unsigned kinds[CHANGES] = {
    GATE_WRITE, GATE_WRITE, GATE_ZERO, GATE_TRIM
  };
  g_autofree char *module = client_module ("LASTFUA", "tests/lastfua.so");
  g_autofree char *options = g_strdup_printf ("--filter=%s", module);
  const unsigned kind = kinds[t->how];
  struct scene c;
  g_autofree char *data = filled (4 * UNIT, 1);
  struct request request;
  struct gate_op ops[8], flushes[8];
  unsigned n, n_flushes;
  uint64_t answered;
  int held;

  scene_start_with (&c, t, options, NULL, AUTO);
  nbd_ok (nbd_flush (c.a, 0));
  gate_forget (c.s.gate);
  held = gate_hold (c.s.gate, kind, 0, UNIT);
  if (kind == GATE_ZERO)
    request = send_zero (c.a, 4 * UNIT, 0, LIBNBD_CMD_FLAG_FUA);
  else if (kind == GATE_TRIM)
    request = send_trim (c.a, 4 * UNIT, 0, LIBNBD_CMD_FLAG_FUA);
  else
    request = send_write (c.a, data, 4 * UNIT, 0, LIBNBD_CMD_FLAG_FUA);
  while (gate_held (c.s.gate, held) == 0)
    nbd_ok (nbd_poll (c.a, 10));        /* more than a socket's buffer */
  round_trips (c.a);
  g_assert_false (request_is_done (&request));
  gate_release (c.s.gate, held);
  g_assert_cmpint (request_wait (&request), ==, 0);
  answered = gate_now (c.s.gate);
  n = gate_started (c.s.gate, kind, 0, 4 * UNIT);
  n_flushes = gate_started (c.s.gate, GATE_FLUSH, EVERYTHING);
  g_assert_cmpuint (n, ==, 4);
  for (unsigned i = 0; i < n; i++)
    ops[i] = gate_op (c.s.gate, kind, 0, 4 * UNIT, i);
  for (unsigned i = 0; i < MIN (n_flushes, G_N_ELEMENTS (flushes)); i++)
    flushes[i] = gate_op (c.s.gate, GATE_FLUSH, EVERYTHING, i);
  for (unsigned i = 0; i < n; i++) {
    bool is_durable = ops[i].flags & 2; /* NBDKIT_FLAG_FUA */

    for (unsigned k = 0; k < MIN (n_flushes, G_N_ELEMENTS (flushes)); k++)
      is_durable |= flushes[k].end && ops[i].end < flushes[k].start
        && flushes[k].end < answered;
    g_assert_true (ops[i].end && is_durable);
  }
  if (kind == GATE_WRITE)
    assert_same (server_device (&c.s), data, 4 * UNIT);
  scene_stop (&c);
}

/* The readahead filter's thread, over the cache filter, reads through asyncpool
 * also after .finalize.
 */
static void
play_late_calls (const struct setup *t)
{
  struct server s;
  g_autofree char *buf = g_malloc (UNIT);
  struct nbd_handle *nbd;

  (void) t;
  g_setenv ("MALLOC_PERTURB_", "165", true);    /* so that it shows */
  server_start (&s, "--filter=readahead --filter=cache", "delay=30ms");
  for (unsigned i = 0; i < 12; i++) {
    nbd = client_connect (&s);
    for (unsigned k = 0; k < 5; k++)    /* where the cache has nothing yet */
      nbd_ok (nbd_pread (nbd, buf, UNIT, i * 4 * MIB + k * 8 * UNIT, 0));
    client_close (nbd);
    wait_closed (&s, i + 1);
  }
  server_stop (&s);
}

/* A plugin that sets an error and succeeds: that error is not the one of a
 * later call of the same request, which sets none.
 */
static void
play_old_error (const struct setup *t)
{
  struct server s;
  struct nbd_handle *nbd;
  g_autofree char *buf = filled (2 * UNIT, 1);

  server_start_with (&s, NULL, NULL, "tests/olderror.so", THROUGH);
  nbd = client_connect (&s);
  for (unsigned i = 0; i < 10; i++) {   /* it is seen to be slow */
    nbd_ok (nbd_pwrite (nbd, buf, UNIT, 4 * UNIT, 0));
    nbd_ok (nbd_pread (nbd, buf, UNIT, 4 * UNIT, 0));
  }
  nbd_ok (nbd_pwrite (nbd, buf, 512, 8 * UNIT, 0));
  if (t->how == BY_WRITE)
    nbd_fails (nbd_pwrite (nbd, buf, 2 * UNIT, 0, 0), EIO);
  else
    nbd_fails (nbd_pread (nbd, buf, 2 * UNIT, 0, 0), EIO);
  client_close (nbd);
  server_stop (&s);
}

/* Running. */

struct test_case {
  void (*play) (const struct setup *);
  struct setup setup;
};

static void
run (gconstpointer data)
{
  const struct test_case *t = data;
  pid_t pid = fork ();
  int status;

  g_assert_cmpint (pid, !=, -1);
  if (pid == 0) {
    dup2 (STDERR_FILENO, STDOUT_FILENO);        /* not a part of the TAP */
    alarm (client_is_slow () ? CASE_SECONDS : 30);
    t->play (&t->setup);
    _exit (0);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  if (WIFSIGNALED (status) && WTERMSIG (status) == SIGALRM)
    g_test_message ("not done in time");
  if (status != 0)
    g_test_fail ();
}

static void G_GNUC_PRINTF (3, 4)
add (void (*play) (const struct setup *), struct setup setup,
     const char *format, ...)
{
  struct test_case *t = g_new (struct test_case, 1);
  g_autofree char *name = NULL, *path = NULL;
  va_list args;

  va_start (args, format);
  name = g_strdup_vprintf (format, args);
  va_end (args);
  if (setup.relation == NULL)
    setup.relation = &relations[SAME_DEVICE];
  *t = (struct test_case) { .play = play, .setup = setup };
  path = g_strdup_printf ("/connections/%s%s", name,
                          setup.hooks ? "-hooks" : "");
  g_test_add_data_func_full (path, t, run, g_free);
}

#define SETUP(r, h, ...) \
  ((struct setup) { .relation = r, .how = h, __VA_ARGS__ })

static void
add_superseded (void)
{
  for (unsigned i = 0; i < RELATIONS; i++) {
    const struct relation *r = &relations[i];

    for (enum change how = 0; how < CHANGES; how++) {
      for (int hooks = 0; hooks < 2; hooks++)
        add (play_superseded, SETUP (r, how, .end = LEAVE, .hooks = hooks),
             "superseded/%s-%s-leaves", r->name, changes[how]);
      add (play_superseded, SETUP (r, how, .end = FLUSH),
           "superseded/%s-%s-flushes", r->name, changes[how]);
      add (play_superseded_partly, SETUP (r, how), "superseded-partly/%s-%s",
           r->name, changes[how]);
    }
    add (play_superseded, SETUP (r, BY_WRITE, .end = TERMINATE),
         "superseded/%s-write-server-ends", r->name);
    for (enum change how = BY_WRITE; how <= BY_FUA; how++)
      for (int hooks = 0; hooks < 2; hooks++)
        add (play_superseded_in_flight, SETUP (r, how, .hooks = hooks),
             "superseded-in-flight/%s-%s", r->name, changes[how]);
    if (!r->is_same)
      for (enum change how = BY_WRITE; how <= BY_ZERO; how++)
        add (play_superseded_by_third, SETUP (r, how),
             "superseded-by-third/%s-%s", r->name, changes[how]);
  }
  for (enum change how = 0; how < CHANGES; how++)
    for (unsigned i = SAME_DEVICE; i <= ONE_NAME; i++) {
      add (play_reconnect, SETUP (&relations[i], how, .end = BREAK),
           "reconnect/%s-%s-broken", relations[i].name, changes[how]);
      add (play_reconnect, SETUP (&relations[i], how, .end = LEAVE),
           "reconnect/%s-%s-closed", relations[i].name, changes[how]);
    }
}

static void
add_lost (void)
{
  static const struct {
    const char *name;
    int error;
  } errors[] = {
    { "enospc", ENOSPC }, { "eio", EIO }, { "eperm", EPERM },
    { "erofs", EROFS }, { "einval", EINVAL },
  };

  for (unsigned i = ONE_NAME; i < RELATIONS; i++) {
    const struct relation *r = &relations[i];

    for (unsigned k = 0; k < 3; k++) {
      struct setup setup = SETUP (r, BY_WRITE, .error = errors[k].error);

      add (play_lost, setup, "lost/%s-%s", r->name, errors[k].name);
      add (play_lost_and_reported, setup, "lost-and-reported/%s-%s", r->name,
           errors[k].name);
    }
    add (play_lost, SETUP (r, BY_WRITE, .error = ENOSPC, .hooks = true),
         "lost/%s-enospc", r->name);
    add (play_not_shared, SETUP (r, BY_WRITE), "not-shared/%s", r->name);
    add (play_protected, SETUP (r, BY_WRITE, .words = "protect=0-511"),
         "protected/%s", r->name);
  }
  for (unsigned k = 0; k < G_N_ELEMENTS (errors); k++) {
    struct setup setup = SETUP (NULL, BY_WRITE, .error = errors[k].error);

    add (play_left_to_other, setup, "left-to-other/%s", errors[k].name);
    add (play_recovered, setup, "recovered/%s", errors[k].name);
  }
  for (unsigned i = SAME_DEVICE; i <= ONE_NAME; i++)
    for (unsigned k = 2; k < G_N_ELEMENTS (errors); k++)
      add (play_refused, SETUP (&relations[i], BY_WRITE,
                                .error = errors[k].error),
           "refused/%s-%s", relations[i].name, errors[k].name);
  add (play_recovered, SETUP (&relations[ONE_NAME], BY_WRITE, .error = EIO),
       "recovered/one-name");
  add (play_log, SETUP (NULL, BY_WRITE, .end = LEAVE), "log/leaves");
  add (play_log, SETUP (NULL, BY_WRITE, .end = TERMINATE), "log/server-ends");
}

static void
add_devices (void)
{
  for (int i = 0; i < (int) G_N_ELEMENTS (geometries); i++) {
    struct setup setup = SETUP (NULL, BY_WRITE, .error = i);
    const char *name = geometries[i].name;

    add (play_geometry_failed, setup, "geometry/%s-failed", name);
    add (play_geometry_dirty, setup, "geometry/%s-dirty", name);
    add (play_geometry_order, setup, "geometry/%s-order", name);
  }
  for (unsigned i = TWO_NAMES; i <= TWO_NAMES_ALONE; i++) {
    const struct relation *r = &relations[i];

    add (play_by_name, SETUP (r, BY_WRITE, .end = LEAVE, .words = "by_name=1"),
         "by-name/%s-leaves", r->name);
    add (play_by_name, SETUP (r, BY_WRITE, .end = FLUSH, .words = "by_name=1"),
         "by-name/%s-flushes", r->name);
    add (play_by_name_both, SETUP (r, BY_WRITE, .words = "by_name=1"),
         "by-name/%s-both", r->name);
    for (int what = 0; what < ACTS; what++)
      add (play_hook_by_name,
           SETUP (r, BY_WRITE, .error = what, .hooks = true,
                  .words = "by_name=1"),
           "by-name/%s-%s", r->name, acts[what]);
  }
  for (unsigned i = ONE_NAME; i < RELATIONS; i++) {
    const struct relation *r = &relations[i];

    for (int hooks = 0; hooks < 2; hooks++) {
      struct setup setup = SETUP (r, BY_FUA, .hooks = hooks);

      add (play_full_slab, setup, "full-slab/%s", r->name);
      add (play_flush_waits, setup, "flush-waits/%s", r->name);
    }
    add (play_bounded, SETUP (r, BY_FUA + i - ONE_NAME), "bounded/%s-%s",
         r->name, changes[BY_FUA + i - ONE_NAME]);
    add (play_order, SETUP (r, BY_WRITE), "order/%s-write", r->name);
    add (play_order, SETUP (r, BY_FUA), "order/%s-fua", r->name);
  }
}

#define EMULATE "multi-conn-mode=emulate"

static void
add_filters (void)
{
  const struct relation *r = &relations[ONE_NAME];

  add (play_bounded, SETUP (r, BY_FUA, .hooks = true), "bounded/one-name-fua");
  add (play_flush_is_seen, SETUP (NULL, BY_WRITE), "flush-is-seen/come");
  add (play_flush_is_seen, SETUP (NULL, BY_ZERO), "flush-is-seen/in-flight");
  add (play_flush_is_seen, SETUP (NULL, BY_WRITE, .hooks = true),
       "flush-is-seen/come");
  add (play_flush_is_seen, SETUP (r, BY_WRITE, .words = EMULATE),
       "flush-is-seen/emulated");
  add (play_flusher_leaves, SETUP (r, BY_WRITE, .words = EMULATE),
       "multi-conn/flusher-leaves");
  add (play_flusher_leaves,
       SETUP (r, BY_WRITE, .words = EMULATE " grace=300", .hooks = true),
       "multi-conn/flusher-leaves");
  add (play_flush_of_other, SETUP (r, BY_WRITE, .words = EMULATE),
       "multi-conn/flush-of-other");
  add (play_flush_of_other,
       SETUP (r, BY_WRITE, .words = EMULATE, .hooks = true),
       "multi-conn/flush-of-other");
  add (play_flush_for_all, SETUP (r, BY_WRITE, .words = EMULATE),
       "multi-conn/flush-for-all");
  for (enum change how = BY_FUA; how < CHANGES; how++) {
    add (play_last_fua, SETUP (NULL, how, .words = "fua=emulate"),
         "last-fua/emulate-%s", changes[how]);
    add (play_last_fua, SETUP (NULL, how, .words = "fua=native"),
         "last-fua/native-%s", changes[how]);
  }
  add (play_last_fua,
       SETUP (NULL, BY_FUA, .words = "fua=emulate asyncpool-write=behind"),
       "last-fua/behind");
  add (play_late_calls, SETUP (NULL, BY_WRITE), "late-calls");
  add (play_old_error, SETUP (NULL, BY_WRITE), "old-error/write");
  add (play_old_error, SETUP (NULL, BY_ZERO), "old-error/read");
}

int
main (int argc, char **argv)
{
  const char *dir = g_getenv ("TEST_DIR");
  g_autoptr (GPtrArray) arguments = g_ptr_array_new ();
  int n;

  for (int i = 0; i < argc; i++)
    g_ptr_array_add (arguments, argv[i]);
  g_ptr_array_add (arguments, (char[]) { "-k" });       /* goes on */
  g_ptr_array_add (arguments, NULL);
  n = argc + 1;
  argv = (char **) arguments->pdata;
  if (dir)                      /* what a case leaves behind goes with it */
    g_setenv ("TMPDIR", dir, true);
  g_test_init (&n, &argv, NULL);
  add_superseded ();
  add_lost ();
  add_devices ();
  add_filters ();
  return g_test_run ();
}
