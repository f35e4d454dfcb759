/* SPDX-License-Identifier: BSD-3-Clause */

/* A scene: nbdkit with asyncpool over a gate plugin, and connections A and B.
 * Beside it, the steps that the scenarios of several test programs share.
 *
 * A struct setup says how a scene starts and what differs between the cases of
 * one scenario.  cases.h makes the setups from a table.
 *
 * The device has 64 MiB.  Scenarios work before FAR, and at ELSEWHERE where
 * they need a place that no rule touches.  The last MiB is for warming up and
 * for round trips.
 */
#ifndef TESTS_SCENE_H
#define TESTS_SCENE_H

#include "client.h"

#define AUTO "asyncpool-buffers=16 asyncpool-buffer-size=64k"
#define BEHIND AUTO " asyncpool-write=behind"
#define THROUGH AUTO " asyncpool-write=through"
enum { BUFFERS = 16 };

#define FAR (16 * MIB)
#define ELSEWHERE (24 * MIB)

enum { FLAG_FUA = 2 };          /* NBDKIT_FLAG_FUA, as the gate logs it */

/* How the devices of A and B are related. */
struct relation {
  const char *name, *export_a, *export_b, *words;
  bool is_same;                 /* the same device */
};

enum { SAME_DEVICE, ONE_NAME, TWO_NAMES, TWO_NAMES_ALONE, RELATIONS };

static const struct relation relations[RELATIONS] G_GNUC_UNUSED = {
  [SAME_DEVICE] = { "same-device", "", "", "multi_conn=1", true },
  [ONE_NAME] = { "one-name", "", "", "multi_conn=0", false },
  [TWO_NAMES] = { "two-names", "a", "b", "multi_conn=1", false },
  [TWO_NAMES_ALONE] = { "two-names-alone", "a", "b", "multi_conn=0", false },
};

enum change { BY_WRITE, BY_FUA, BY_ZERO, BY_TRIM, CHANGES };
static const char *const changes[CHANGES] G_GNUC_UNUSED = {
  "write", "fua", "zero", "trim"
};

enum ending { LEAVE, FLUSH, BREAK, TERMINATE };

struct setup {
  /* The server. */
  bool is_hooked;               /* async-gate.so, else gate.so */
  const char *mode;             /* asyncpool's parameters; NULL: BEHIND */
  const char *words;            /* more parameters */
  const char *options, *below;  /* see server_start_module */
  const struct relation *relation;      /* in a table, NULL: SAME_DEVICE */
  /* The scenario. */
  enum change how;
  enum ending end;
  int error;
  unsigned variant;             /* of the list that the case has */
  uint64_t offset, count;
  bool is_by_b;                 /* B does it, else A */
  bool is_in_flight;            /* else the operation has ended */
};

struct scene {
  struct server s;
  struct gate *gate;
  struct nbd_handle *a, *b;     /* NULL: not there (any more) */
};

/* Starting and stopping. */

/* The filter defers writes only for a device that it has seen to be slow. */
CLIENT_FUNCTION void
warm_up (struct server *s, struct nbd_handle *nbd)
{
  uint64_t offset = nbd_get_size (nbd) - MIB;
  g_autofree char *buf = g_malloc0 (UNIT / 2);

  nbd_ok (nbd_pwrite (nbd, buf, UNIT / 2, offset, 0));
  nbd_ok (nbd_pread (nbd, buf, UNIT / 2, offset, 0));
  gate_wait_ended (s->gate, GATE_WRITE, offset, UNIT / 2, 1);
  gate_forget (s->gate);
}

CLIENT_FUNCTION struct nbd_handle *
connect_warm (struct server *s, const char *export)
{
  struct nbd_handle *nbd = client_connect_export (s, export);

  warm_up (s, nbd);
  return nbd;
}

/* OPTIONS are in place of the setup's. */
CLIENT_FUNCTION void
scene_start_server (struct scene *c, const struct setup *t,
                    const char *options)
{
  g_autofree char *all = g_strjoin (" ", t->mode ? t->mode : BEHIND,
                                    t->relation->words, t->words, NULL);

  memset (c, 0, sizeof *c);
  server_start_module (&c->s, t->is_hooked ? "tests/async-gate.so"
                       : "tests/gate.so", true, options, t->below, all);
  c->gate = c->s.gate;
}

CLIENT_FUNCTION void
scene_start_with (struct scene *c, const struct setup *t, const char *options)
{
  scene_start_server (c, t, options);
  c->a = connect_warm (&c->s, t->relation->export_a);
  c->b = connect_warm (&c->s, t->relation->export_b);
}

CLIENT_FUNCTION void
scene_start (struct scene *c, const struct setup *t)
{
  scene_start_with (c, t, t->options);
}

/* Without B. */
CLIENT_FUNCTION void
scene_start_alone (struct scene *c, const struct setup *t)
{
  scene_start_server (c, t, t->options);
  c->a = connect_warm (&c->s, t->relation->export_a);
}

CLIENT_FUNCTION void
scene_stop (struct scene *c)
{
  gate_release_all (c->gate);
  if (c->a)
    client_close (c->a);
  if (c->b)
    client_close (c->b);
  server_stop (&c->s);
}

/* Ends the server by SIGTERM, and the clients without a word.  The result is
 * the device after it; server_free comes next.
 */
CLIENT_FUNCTION const char *
scene_terminate (struct scene *c)
{
  const char *device = server_device (&c->s);

  server_terminate (&c->s);
  nbd_close (c->a);
  if (c->b)
    nbd_close (c->b);
  server_wait (&c->s);
  return device;
}

/* Waits until the plugin has closed N connections. */
CLIENT_FUNCTION void
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

/* One of the connections ends, as the first one: waits until the server has
 * closed it.
 */
CLIENT_FUNCTION void
scene_leave (struct scene *c, struct nbd_handle **nbd)
{
  client_close (*nbd);
  *nbd = NULL;
  wait_closed (&c->s, 1);
}

/* Changes. */

/* Changes [OFFSET, OFFSET + COUNT).  DATA becomes the content of the range. */
CLIENT_FUNCTION void
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

/* Writes data that the device refuses, by a rule that this returns: the write
 * is acknowledged, and has failed.
 */
CLIENT_FUNCTION int
fail_deferred (struct scene *c, struct nbd_handle *nbd, const char *data,
               uint64_t count, uint64_t offset, int error)
{
  int rule = gate_fail (c->gate, GATE_WRITE, offset, count, error, -1);
  unsigned n = gate_ended (c->gate, GATE_WRITE, offset, count);

  nbd_ok (nbd_pwrite (nbd, data, count, offset, 0));
  gate_wait_ended (c->gate, GATE_WRITE, offset, count, n + 1);
  /* The filter has noted the failure when these are over. */
  round_trips (nbd);
  return rule;
}

/* Writes data that the device holds, by a rule that this returns. */
CLIENT_FUNCTION int
hold_deferred (struct scene *c, struct nbd_handle *nbd, const char *data,
               uint64_t count, uint64_t offset)
{
  int rule = gate_hold (c->gate, GATE_WRITE, offset, count);

  nbd_ok (nbd_pwrite (nbd, data, count, offset, 0));
  gate_wait_held (c->gate, rule, 1);
  return rule;
}

/* Writes N units of DATA one at a time, from OFFSET on. */
CLIENT_FUNCTION void
write_units (struct nbd_handle *nbd, const char *data, unsigned n,
             uint64_t offset)
{
  for (uint64_t at = 0; at < n * UNIT; at += UNIT)
    nbd_ok (nbd_pwrite (nbd, data + at, UNIT, offset + at, 0));
}

/* Reads [OFFSET, END) in units, one at a time: a sequential reader. */
CLIENT_FUNCTION void
read_units (struct nbd_handle *nbd, uint64_t offset, uint64_t end)
{
  g_autofree char *buf = g_malloc (UNIT);

  for (; offset < end; offset += UNIT)
    nbd_ok (nbd_pread (nbd, buf, UNIT, offset, 0));
}

/* Reads sequentially up to the unit before TARGET, until the filter has
 * started to prefetch the unit at TARGET.
 */
CLIENT_FUNCTION void
read_towards (struct scene *c, struct nbd_handle *nbd, uint64_t target)
{
  read_units (nbd, 0, target - UNIT);
  gate_wait_started (c->gate, GATE_READ, target, UNIT, 1);
}

/* Whether a write is answered before the plugin has it. */
CLIENT_FUNCTION bool
is_deferred (struct scene *c, struct nbd_handle *nbd, uint64_t offset)
{
  g_autofree char *data = filled (UNIT, offset);
  int held = gate_hold (c->gate, GATE_WRITE, offset, UNIT);
  struct request write = send_write (nbd, data, UNIT, offset, 0);
  bool is_early;

  gate_wait_held (c->gate, held, 1);
  round_trips (nbd);
  is_early = request_is_done (&write);
  gate_release (c->gate, held);
  g_assert_cmpint (request_wait (&write), ==, 0);
  return is_early;
}

/* Expectations. */

/* The server does not answer the request yet. */
#define assert_waits(request) \
  do { \
    round_trips ((request)->nbd); \
    g_assert_false (request_is_done (request)); \
  } while (0)

#define assert_succeeds(request) \
  g_assert_cmpint (request_wait (request), ==, 0)

/* The request waits for the operation that the rule holds. */
#define assert_waits_for(c, request, rule) \
  do { \
    assert_waits (request); \
    gate_release ((c)->gate, rule); \
    assert_succeeds (request); \
  } while (0)

CLIENT_FUNCTION void
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

#define assert_succeeds_within(sent, ms) \
  do { \
    struct request r_ = sent; \
    wait_within (&r_, ms); \
    g_assert_cmpint (r_.error, ==, 0); \
  } while (0)

#define assert_on_device(c, expected, count, offset) \
  assert_same (server_device (&(c)->s) + (offset), expected, count)

/* The only operation of that kind there. */
CLIENT_FUNCTION struct gate_op
one_op (struct scene *c, unsigned kinds, uint64_t offset, uint64_t count)
{
  unsigned n = gate_started (c->gate, kinds, offset, count);

  if (n != 1)
    gate_print (c->gate);
  g_assert_cmpuint (n, ==, 1);
  return gate_op (c->gate, kinds, offset, count, 0);
}

/* No two overlapping changes were in the plugin at once. */
CLIENT_FUNCTION void
assert_no_collisions (struct scene *c)
{
  if (gate_collisions (c->gate) > 0)
    gate_print (c->gate);
  g_assert_cmpuint (gate_collisions (c->gate), ==, 0);
}

#endif /* TESTS_SCENE_H */
