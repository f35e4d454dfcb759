/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The configurations of test-crash.c: a round draws one from its seed.
 *
 * It has the plugin's abilities, asyncpool's parameters, filters above and
 * below asyncpool, and the connections.  The same seed draws the same
 * configuration and the same requests.
 */
#ifndef TESTS_CRASH_CONFIG_H
#define TESTS_CRASH_CONFIG_H

#include "in-flight.h"

enum { CRASH_CONNECTIONS_MAX = 3 };

/* The four tests.  In the middle two, changes and flushes fail. */
enum ending { KILLED, KILLED_ERRORS, KILLED_ERRORS_OTHER_DEVICES, TERMINATED };

struct config {
  enum ending ending;
  GRand *rand;
  unsigned n_connections;
  bool names;                   /* each connection has its own export name */
  bool one_device;              /* the plugin has multi-conn */
  unsigned offers;              /* to filters above */
  GString *above, *below, *parameters;
};

/* A random number from 0 to LIMIT - 1. */
static int
config_draw (struct config *c, int limit)
{
  return g_rand_int_range (c->rand, 0, limit);
}

/* One of the words. */
#define DRAW(c, ...) \
  ((const char *[]) { __VA_ARGS__ }) \
    [config_draw (c, G_N_ELEMENTS (((const char *[]) { __VA_ARGS__ })))]

static bool
has_errors (const struct config *c)
{
  return c->ending == KILLED_ERRORS || c->ending == KILLED_ERRORS_OTHER_DEVICES;
}

static bool
has_other_devices (const struct config *c)
{
  return c->ending == KILLED_ERRORS_OTHER_DEVICES;
}

static void
add (GString *s, const char *prefix, const char *value)
{
  g_string_append_printf (s, " %s%s", prefix, value);
}

/* What filters above may need. */
enum {
  FLUSHES = 1, FUA = 2, NATIVE = 4, NO_ERRORS = 8, ENDS_BY_KILL = 16,
  ONE_DEVICE = 32, PARALLEL = 64,
};

/* Parallel, with hooks, or one call at a time and further contexts. */
static void
draw_kind (struct config *c)
{
  const char *kind = DRAW (c, "", "hooks=1", "serial=1");

  add (c->parameters, "", kind);
  if (strcmp (kind, "serial=1") == 0) {
    c->offers &= ~PARALLEL;
    add (c->parameters, "asyncpool-contexts=", DRAW (c, "1", "2", "4"));
  }
}

static void
draw_plugin (struct config *c)
{
  GString *p = c->parameters;
  bool can_flush = config_draw (c, 5) > 0;
  const char *fua = can_flush ? DRAW (c, "none", "emulate", "native", "native")
    : DRAW (c, "none", "native");

  c->one_device = has_other_devices (c) ? c->names
    : config_draw (c, 3) > 0
      || (c->ending == KILLED_ERRORS && c->n_connections > 1);
  c->offers = PARALLEL | (can_flush ? FLUSHES : 0)
    | (strcmp (fua, "none") ? FUA : 0)
    | (strcmp (fua, "native") == 0 ? NATIVE : 0)
    | (!has_errors (c) ? NO_ERRORS : 0)
    | (!has_other_devices (c) ? ONE_DEVICE : 0)
    | (c->ending != TERMINATED ? ENDS_BY_KILL : 0);
  add (p, "fua=", fua);
  add (p, "flush=", can_flush ? "1" : "0");
  add (p, "multi_conn=", c->one_device ? "1" : "0");
  draw_kind (c);
  add (p, "zero=", DRAW (c, "0", "1", "1"));
  add (p, "trim=", DRAW (c, "0", "1", "1"));
  add (p, "delay=", DRAW (c, "0", "150", "250", "250", "400", "700"));
  if (!has_other_devices (c) && config_draw (c, 4) == 0)
    add (p, "minimum=", DRAW (c, "512", "4096"));
}

static void
draw_asyncpool (struct config *c)
{
  GString *p = c->parameters;

  add (p, "asyncpool-write=", DRAW (c, "auto", "behind", "behind"));
  add (p, "asyncpool-buffers=", DRAW (c, "2", "4", "8", "16", "64"));
  add (p, "asyncpool-buffer-size=", DRAW (c, "64k", "128k"));
  if (config_draw (c, 4) == 0)
    add (p, "asyncpool-threads=", DRAW (c, "1", "3", "8"));
}

/* Filters above asyncpool.  The second mask is what the layers above lose.
 *
 * - multi-conn tracks which connections are dirty, but forgets writes that are
 *   in flight during a flush, so its tracking is off.  It leaks memory if a
 *   client is connected at the end.  It calls flush on other connections'
 *   handles, whatever the thread model.
 * - fuamode=force does not ask whether the layer below can flush, as multi-conn
 *   expects.
 * - cache keeps data whose write failed.
 * - blocksize with minblock writes back what it has read, which a client of
 *   another device may have changed meanwhile.
 */
static const struct {
  const char *name, *parameters;
  unsigned needs, spoils;
} above[] = {
  { "blocksize", "minblock=4096", ONE_DEVICE, 0 },
  { "blocksize", "minblock=4096 maxdata=16k", ONE_DEVICE, 0 },
  { "blocksize", "maxdata=8k maxlen=32k", 0, 0 },
  { "multi-conn", "multi-conn-mode=emulate multi-conn-track-dirty=off",
    FLUSHES | ENDS_BY_KILL | ONE_DEVICE | PARALLEL, NATIVE },
  { "cache", "cache=writethrough", NO_ERRORS, 0 },
  { "fua", "fuamode=emulate", FLUSHES, 0 },
  { "fua", "fuamode=native", FUA, 0 },
  { "fua", "fuamode=force", NATIVE, FLUSHES },
  { "nozero", "zeromode=emulate", 0, 0 },
  { "log", "logfile=/dev/null", 0, 0 },
  { "readahead", "", 0, 0 },
  { "tests/split.so", "", 0, 0 },
};

static void
draw_above (struct config *c)
{
  unsigned i = config_draw (c, G_N_ELEMENTS (above));
  g_autofree char *split = client_module ("SPLIT", above[i].name);
  bool is_ours = strchr (above[i].name, '/');

  if (above[i].needs & ~c->offers || strstr (c->above->str, above[i].name))
    return;
  c->offers &= ~above[i].spoils;
  add (c->above, "--filter=", is_ours ? split : above[i].name);
  add (c->parameters, "", above[i].parameters);
}

static void
draw_below (struct config *c)
{
  if (config_draw (c, 4) > 0)
    return;
  if (has_errors (c)) {
    add (c->below, "--filter=", "error");
    add (c->parameters, "error-pwrite=ENOSPC error-pwrite-rate=", "0.05");
  }
  else if (!strstr (c->parameters->str, "minimum=")) {
    add (c->below, "--filter=", "blocksize-policy");
    add (c->parameters, "blocksize-error-policy=error blocksize-preferred=",
         "4096");
    add (c->parameters, "blocksize-minimum=", DRAW (c, "512", "4096"));
    add (c->parameters, "blocksize-maximum=", DRAW (c, "256k", "1M"));
  }
}

static void
config_init (struct config *c, enum ending ending, uint32_t seed)
{
  c->ending = ending;
  c->rand = g_rand_new_with_seed_array ((guint32[]) { seed, ending }, 2);
  c->n_connections = 1 + config_draw (c, CRASH_CONNECTIONS_MAX);
  c->names = ending != KILLED_ERRORS && config_draw (c, 3) == 0;
  if (has_other_devices (c))
    c->n_connections = MAX (c->n_connections, 2);
  c->above = g_string_new ("");
  c->below = g_string_new ("");
  c->parameters = g_string_new ("");
  add (c->above, "-t ", DRAW (c, "1", "2", "4", "8", "16", "16"));
  draw_plugin (c);
  draw_asyncpool (c);
  for (int n = config_draw (c, 4) - 1; n > 0; n--)
    draw_above (c);
  draw_below (c);
}

static void
config_destroy (struct config *c)
{
  g_string_free (c->above, true);
  g_string_free (c->below, true);
  g_string_free (c->parameters, true);
  g_rand_free (c->rand);
}

#endif /* TESTS_CRASH_CONFIG_H */
