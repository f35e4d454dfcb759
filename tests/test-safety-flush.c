/* SPDX-License-Identifier: BSD-3-Clause */

/* Flush and FUA.  Safety 1 of the contract:
 *
 *   A reply to a flush or a FUA write means what NBD says: everything answered
 *   before it (on every connection, where multi-conn is advertised) has been
 *   written by the plugin, and then the plugin's own flush succeeded.
 *
 * The scenarios hold a write in the plugin, and look at what the server has
 * answered meanwhile.
 */
#include "cases.h"

/* A write is deferred and held.  A flush waits for it, and for the plugin's own
 * flush after it.
 */
static void
play_flush_waits (const struct setup *t)
{
  const bool has_flush = !t->words;     /* the plugin */
  struct scene c;
  g_autofree char *data = filled (t->count, 1);
  struct request flush;
  struct gate_op write;
  uint64_t answered;
  int held;

  scene_start (&c, t);
  held = gate_hold (c.gate, GATE_WRITE, 0, FAR);
  nbd_ok (nbd_pwrite (c.a, data, t->count, t->offset, 0));
  g_assert_cmpuint (gate_ended (c.gate, GATE_WRITE, t->offset, t->count),
                    ==, 0);
  flush = send_flush (t->is_by_b ? c.b : c.a);
  gate_wait_held (c.gate, held, 1);
  assert_waits (&flush);
  g_assert_cmpuint (gate_started (c.gate, GATE_FLUSH, ANYWHERE), ==, 0);
  assert_reads (c.b, data, t->count, t->offset);

  gate_release (c.gate, held);
  assert_succeeds (&flush);
  answered = gate_now (c.gate);
  write = one_op (&c, GATE_WRITE, t->offset, t->count);
  if (has_flush) {
    struct gate_op op = one_op (&c, GATE_FLUSH, ANYWHERE);

    g_assert_cmpuint (write.end, <, op.start);
    g_assert_cmpuint (op.end, <, answered);
  }
  else
    g_assert_cmpuint (gate_started (c.gate, GATE_FLUSH, ANYWHERE), ==, 0);
  g_assert_cmpuint (write.end, !=, 0);
  g_assert_cmpuint (write.end, <, answered);
  assert_on_device (&c, data, t->count, t->offset);
  scene_stop (&c);
}

/* Each flush calls the plugin's flush, waits for it, and returns its error. */
static void
play_flush_of_plugin (const struct setup *t)
{
  struct scene c;
  struct request flush;
  int held;

  scene_start_alone (&c, t);
  nbd_ok (nbd_flush (c.a, 0));
  g_assert_cmpuint (gate_ended (c.gate, GATE_FLUSH, ANYWHERE), ==, 1);
  gate_fail (c.gate, GATE_FLUSH, ANYWHERE, ENOSPC, 1);
  nbd_fails (nbd_flush (c.a, 0), ENOSPC);
  gate_fail (c.gate, GATE_FLUSH, ANYWHERE, EIO, 1);
  nbd_fails (nbd_flush (c.a, 0), EIO);
  nbd_ok (nbd_flush (c.a, 0));

  held = gate_hold (c.gate, GATE_FLUSH, ANYWHERE);
  flush = send_flush (c.a);
  gate_wait_held (c.gate, held, 1);
  assert_waits_for (&c, &flush, held);
  scene_stop (&c);
}

/* A flush waits for writes acknowledged before it, and for no later ones.  Else
 * a busy neighbour could delay it for ever.
 */
static void
play_flush_ends_among_writers (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct request flush;
  int before, after;

  scene_start (&c, t);
  before = hold_deferred (&c, c.a, data, UNIT, 0);
  flush = send_flush (c.a);
  round_trips (c.a);
  after = hold_deferred (&c, c.b, data, UNIT, UNIT);
  gate_release (c.gate, before);
  assert_succeeds (&flush);
  g_assert_cmpuint (gate_held (c.gate, after), ==, 1);
  scene_stop (&c);
}

/* FUA. */

/* A FUA write waits for its operation, which this returns.  *ANSWERED is the
 * time of its reply.
 */
static struct gate_op
fua_waits (struct scene *c, uint64_t *answered)
{
  g_autofree char *data = filled (UNIT, 1);
  int held = gate_hold (c->gate, GATE_WRITE, 0, FAR);
  struct request write;
  struct gate_op op;

  write = send_write (c->a, data, UNIT, 0, LIBNBD_CMD_FLAG_FUA);
  gate_wait_held (c->gate, held, 1);
  assert_waits_for (c, &write, held);
  *answered = gate_now (c->gate);
  op = one_op (c, GATE_WRITE, 0, UNIT);
  g_assert_cmpuint (op.end, <, *answered);
  return op;
}

static void
play_fua_native (const struct setup *t)
{
  struct scene c;
  uint64_t answered;

  scene_start_alone (&c, t);
  g_assert_cmpuint (fua_waits (&c, &answered).flags & FLAG_FUA, ==, FLAG_FUA);
  scene_stop (&c);
}

/* The plugin has no FUA: a flush follows the write. */
static void
play_fua_emulated (const struct setup *t)
{
  struct scene c;
  struct gate_op write, flush;
  uint64_t answered;

  scene_start_alone (&c, t);
  write = fua_waits (&c, &answered);
  flush = one_op (&c, GATE_FLUSH, ANYWHERE);
  g_assert_cmpuint (write.end, <, flush.start);
  g_assert_cmpuint (flush.end, <, answered);
  scene_stop (&c);
}

/* A FUA write over dirty data: the plugin writes the dirty data first, and
 * never again.
 */
static void
play_fua_over_dirty (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *newer = filled (UNIT, 2);
  struct request write;
  int held;

  scene_start_alone (&c, t);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  write = send_write (c.a, newer, UNIT / 2, UNIT / 4, LIBNBD_CMD_FLAG_FUA);
  assert_waits (&write);
  g_assert_cmpuint (gate_started (c.gate, GATE_WRITE, 0, UNIT), ==, 1);
  gate_release (c.gate, held);
  assert_succeeds (&write);
  memcpy (data + UNIT / 4, newer, UNIT / 2);
  assert_on_device (&c, data, UNIT, 0);
  assert_no_collisions (&c);
  assert_reads (c.a, data, UNIT, 0);
  scene_stop (&c);
}

#define NO_FLUSH "flush=0 fua=none"

static const struct row rows[] = {
  { "flush/waits", play_flush_waits, .plugins = BOTH,
    .setup = { .count = UNIT } },
  { "flush/waits/partial", play_flush_waits, .plugins = BOTH,
    .setup = { .count = 4 * KIB + 17, .offset = 100 } },
  { "flush/covers-other-connections", play_flush_waits, .plugins = BOTH,
    .setup = { .count = UNIT, .offset = UNIT, .is_by_b = true } },
  { "flush/covers-other-connections/partial", play_flush_waits, .plugins = BOTH,
    .setup = { .count = 5000, .offset = UNIT + 1000, .is_by_b = true } },
  { "flush/plugin-without-flush", play_flush_waits, .plugins = BOTH,
    .setup = { .words = NO_FLUSH, .count = UNIT } },
  { "flush/plugin-without-flush/partial", play_flush_waits, .plugins = BOTH,
    .setup = { .words = NO_FLUSH, .count = 3000, .offset = 1,
               .is_by_b = true } },
  { "flush/of-the-plugin", play_flush_of_plugin, .plugins = BOTH },
  { "flush/ends-among-writers", play_flush_ends_among_writers,
    .plugins = BOTH },
  { "fua/native", play_fua_native, .plugins = BOTH },
  { "fua/emulated", play_fua_emulated, .plugins = BOTH,
    .setup = { .words = "fua=emulate" } },
  { "fua/over-dirty", play_fua_over_dirty, .plugins = BOTH },
};

CASES_MAIN (rows)
