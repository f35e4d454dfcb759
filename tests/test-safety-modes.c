/* SPDX-License-Identifier: BSD-3-Clause */

/* Which writes are deferred: asyncpool-write=auto and through.
 *
 * A client without flushes never asks for its data to be written.  So auto
 * defers a connection's writes after its first flush or FUA write only, and
 * through never.  All other programs have behind.
 */
#include "cases.h"

static void
play_auto (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start (&c, t);
  g_assert_false (is_deferred (&c, c.a, 0));
  g_assert_false (is_deferred (&c, c.a, UNIT));
  nbd_ok (nbd_flush (c.a, 0));
  g_assert_true (is_deferred (&c, c.a, 2 * UNIT));
  /* A's flush says nothing about B's client. */
  g_assert_false (is_deferred (&c, c.b, 3 * UNIT));
  nbd_ok (nbd_pwrite (c.b, data, UNIT, 4 * UNIT, LIBNBD_CMD_FLAG_FUA));
  g_assert_true (is_deferred (&c, c.b, 5 * UNIT));
  scene_stop (&c);
}

static void
play_through (const struct setup *t)
{
  struct scene c;

  scene_start_alone (&c, t);
  nbd_ok (nbd_flush (c.a, 0));
  g_assert_false (is_deferred (&c, c.a, 0));
  g_assert_cmpint (nbd_can_flush (c.a), ==, 1);
  scene_stop (&c);
}

/* The plugin has no flush, and the filter needs none. */
static void
play_without_flush (const struct setup *t)
{
  struct scene c;

  scene_start_alone (&c, t);
  g_assert_cmpint (nbd_can_flush (c.a), ==, 0);
  scene_stop (&c);
}

/* /pool and /hooks differ: the filter drives async-gate.so by its hooks. */
static void
play_plugin (const struct setup *t)
{
  const bool is_hooked = t->is_hooked && !g_getenv ("FILTER");
  struct scene c;

  scene_start_server (&c, t, "-v");
  c.a = client_connect (&c.s);
  assert_messages (&c.s, "async hooks do the work of: reads writes",
                   is_hooked);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "plugin", play_plugin, .plugins = BOTH },
  { "auto", play_auto, .plugins = BOTH, .setup = { .mode = AUTO } },
  { "through", play_through, .plugins = BOTH, .setup = { .mode = THROUGH } },
  { "through/without-flush", play_without_flush, .plugins = BOTH,
    .setup = { .mode = THROUGH, .words = "flush=0 fua=none" } },
};

CASES_MAIN (rows)
