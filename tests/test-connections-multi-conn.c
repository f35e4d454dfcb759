/* SPDX-License-Identifier: BSD-3-Clause */

/* Multi-conn: a flush of one connection is a flush of all, and the others see
 * the flushed data.  Of safety 1 and 9 of the contract:
 *
 *   A reply to a flush means what NBD says: everything answered before it (on
 *   every connection, where multi-conn is advertised) has been written.
 *
 *   Connections of the same device share everything.
 *
 * nbdkit's multi-conn filter emulates multi-conn: it flushes all connections,
 * each on the thread of the connection that asked for a flush.
 */
#include "cases.h"

/* Changes the device behind the server's back.  So does a plugin that keeps
 * each connection's writes to itself until a flush.
 */
static void
poke (struct scene *c, const char *data, uint64_t count, uint64_t offset)
{
  int fd = open (c->s.device_path, O_WRONLY | O_CLOEXEC);

  g_assert_cmpint (fd, !=, -1);
  g_assert_cmpint (pwrite (fd, data, count, offset), ==, count);
  close (fd);
}

/* B has prefetched old data before A's flush, or its prefetch is in flight
 * then.  After the flush B reads the flushed data.
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

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, target, 0));
  gate_wait_ended (c.gate, GATE_WRITE, target, UNIT, 1);
  poke (&c, old, UNIT, target);
  if (t->is_in_flight)
    held = gate_hold (c.gate, GATE_READ, target, UNIT);
  read_towards (&c, c.b, target);
  if (t->is_in_flight)
    gate_wait_held (c.gate, held, 1);
  else
    gate_wait_ended (c.gate, GATE_READ, target, UNIT, 1);
  poke (&c, data, UNIT, target);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_ok (nbd_pread (c.b, got, UNIT, target - UNIT, 0));
  read = send_read (c.b, got, UNIT, target);
  if (t->is_in_flight)
    gate_release (c.gate, held);
  assert_succeeds (&read);
  assert_same (got, data, UNIT);
  scene_stop (&c);
}

/* nbdkit's multi-conn filter above asyncpool. */

/* B leaves while A, the older connection, is flushed on B's thread.  The flush
 * of A goes on, however short the plugin's grace time is.
 */
static void
play_flusher_leaves (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  int held;

  scene_start (&c, t);
  nbd_ok (nbd_flush (c.a, 0));
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (c.a, data, 4096, 4 * UNIT, 0));
  nbd_ok (nbd_pwrite (c.b, data, 4096, ELSEWHERE, 0));
  gate_wait_held (c.gate, held, 1);
  send_flush (c.b);
  round_trips (c.b);
  client_leave (c.b);
  c.b = NULL;
  /* A failure would have no event.  This is several times the grace time, in
   * which A's hooks reply to nothing.
   */
  g_usleep (2 * G_USEC_PER_SEC);
  gate_release (c.gate, held);
  nbd_ok (nbd_flush (c.a, 0));
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, data, UNIT, 0);
  assert_on_device (&c, data, 4096, 4 * UNIT);
  scene_stop (&c);
}

/* Flushes until a write is deferred.  A thread that has served no other request
 * does not know yet whose flush it serves, so the first flush may not be
 * enough.
 */
static void
flush_until_deferred (struct scene *c, struct nbd_handle *nbd,
                      uint64_t offset)
{
  for (unsigned i = 0; i < 100; i++) {
    nbd_ok (nbd_flush (nbd, 0));
    if (is_deferred (c, nbd, offset))
      return;
  }
  g_error ("no write is deferred after 100 flushes");
}

/* A's flush, which flushes B as well, does not say that B's client flushes. */
static void
play_flush_of_other (const struct setup *t)
{
  struct scene c;

  scene_start (&c, t);
  g_assert_false (is_deferred (&c, c.a, 0));
  g_assert_false (is_deferred (&c, c.b, UNIT));
  flush_until_deferred (&c, c.a, 2 * UNIT);
  g_assert_false (is_deferred (&c, c.b, 3 * UNIT));
  nbd_ok (nbd_flush (c.a, 0));
  g_assert_false (is_deferred (&c, c.b, 4 * UNIT));
  flush_until_deferred (&c, c.b, 5 * UNIT);
  scene_stop (&c);
}

/* A's flush waits for B's dirty data. */
static void
play_flush_for_all (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct request flush;
  int held;

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, ELSEWHERE, 0));
  held = hold_deferred (&c, c.b, data, UNIT, 0);
  flush = send_flush (c.a);
  assert_waits_for (&c, &flush, held);
  assert_on_device (&c, data, UNIT, 0);
  scene_stop (&c);
}

#define FILTER "--filter=multi-conn"
#define EMULATE "multi-conn-mode=emulate"
#define ABOVE .relation = &relations[ONE_NAME], .options = FILTER

static const struct row rows[] = {
  { "flush-is-seen/prefetched", play_flush_is_seen, .plugins = BOTH },
  { "flush-is-seen/in-flight", play_flush_is_seen, .plugins = BIT (POOL),
    .setup = { .is_in_flight = true } },
  { "flush-is-seen/emulated-below", play_flush_is_seen, .plugins = BIT (POOL),
    .setup = { .relation = &relations[ONE_NAME], .below = FILTER,
               .words = EMULATE } },
  { "flusher-leaves", play_flusher_leaves, .plugins = BIT (POOL),
    .setup = { ABOVE, .words = EMULATE } },
  { "flusher-leaves", play_flusher_leaves, .plugins = BIT (HOOKS),
    .setup = { ABOVE, .words = EMULATE " grace=300" } },
  { "flush-of-other", play_flush_of_other, .plugins = BOTH,
    .setup = { ABOVE, .words = EMULATE, .mode = AUTO } },
  { "flush-for-all", play_flush_for_all, .plugins = BIT (POOL),
    .setup = { ABOVE, .words = EMULATE } },
};

CASES_MAIN (rows)
