/* SPDX-License-Identifier: BSD-3-Clause */

/* A plugin that looks up the export name in each operation: exports a and b are
 * devices of their own.
 *
 * A thread that nbdkit did not make has no export name, so the plugin fails an
 * operation there.  A thread of the connection must repeat it, and no operation
 * may run on a thread of the other connection.
 */
#include "cases.h"

/* Export a's device is server_device, and b's is behind it. */
static const char *
device_b (struct scene *c)
{
  return server_device (&c->s) + 64 * MIB;
}

/* B's dirty data is written to B's device, by a flush or by the end of B. */
static void
play_written (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.b, data, UNIT, 0, 0));
  gate_wait_ended (c.gate, GATE_WRITE, 0, UNIT, 1);
  assert_reads (c.b, data, UNIT, 0);
  assert_reads (c.a, zeroes, UNIT, 0);
  if (t->end == FLUSH)
    nbd_ok (nbd_flush (c.b, 0));
  else
    scene_leave (&c, &c.b);
  assert_same (device_b (&c), data, UNIT);
  assert_on_device (&c, zeroes, UNIT, 0);
  scene_stop (&c);
}

/* Both exports have data of their own at one place. */
static void
play_both (const struct setup *t)
{
  struct scene c;
  g_autofree char *of_a = filled (UNIT, 1), *of_b = filled (UNIT, 2);

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, of_a, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (c.b, of_b, UNIT, 8 * UNIT, 0));
  nbd_ok (nbd_flush (c.b, 0));
  nbd_ok (nbd_flush (c.a, 0));
  assert_on_device (&c, of_a, UNIT, 0);
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

/* A hook that runs on B's thread would take B's device.  So A's dirty data must
 * not be written there, whatever B does.
 */
enum { B_FLUSHES, B_WRITES, B_ZEROES, B_READS, B_LEAVES, A_LEAVES };
static const char *const acts[] = {
  "b-flushes", "b-writes", "b-zeroes", "b-reads", "b-leaves", "a-leaves", NULL
};

static void
act (struct scene *c, unsigned what)
{
  g_autofree char *buf = filled (4096, 7);

  switch (what) {
  case B_FLUSHES:
    nbd_ok (nbd_flush (c->b, 0));
    break;
  case B_WRITES:
    nbd_ok (nbd_pwrite (c->b, buf, 4096, 8192, LIBNBD_CMD_FLAG_FUA));
    break;
  case B_ZEROES:
    nbd_ok (nbd_zero (c->b, 4096, 8192, 0));
    break;
  case B_READS:
    nbd_ok (nbd_pread (c->b, buf, 4096, 8192, 0));
    break;
  case B_LEAVES:
    scene_leave (c, &c->b);
    break;
  case A_LEAVES:
    scene_leave (c, &c->a);
    break;
  }
}

static void
play_hook (const struct setup *t)
{
  const bool may_drop = t->variant == B_WRITES || t->variant == B_ZEROES;
  struct scene c;
  g_autofree char *data = filled (4096, 1);
  bool is_told = false;

  scene_start (&c, t);
  nbd_ok (nbd_pwrite (c.a, data, 4096, 8192, 0));
  act (&c, t->variant);
  if (c.a)
    is_told = nbd_flush (c.a, 0) == -1;
  g_assert_true (may_drop || !is_told);
  g_assert_cmpint (memcmp (device_b (&c) + 8192, data, 4096), !=, 0);
  if (!is_told)
    assert_on_device (&c, data, 4096, 8192);
  scene_stop (&c);
}

#define BY_NAME "by_name=1"

static const struct row rows[] = {
  { "written/leaves", play_written, .plugins = BIT (POOL), .relations = NAMED,
    .setup = { .words = BY_NAME, .end = LEAVE } },
  { "written/flushes", play_written, .plugins = BIT (POOL), .relations = NAMED,
    .setup = { .words = BY_NAME, .end = FLUSH } },
  { "both", play_both, .plugins = BIT (POOL), .relations = NAMED,
    .setup = { .words = BY_NAME } },
  { "hook", play_hook, .plugins = BIT (HOOKS), .relations = NAMED,
    .variants = acts, .setup = { .words = BY_NAME } },
};

CASES_MAIN (rows)
