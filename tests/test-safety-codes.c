/* SPDX-License-Identifier: BSD-3-Clause */

/* Error codes.  Safety 7 of the contract:
 *
 *   The client gets the plugin's errno (ENOSPC stays ENOSPC); for deferred data
 *   the flush gets it.
 *
 * A plugin gives an error in errno, or by nbdkit_set_error (set-error).  Not
 * here: the errors of deferred data, see test-safety-errors.c.
 */
#include "cases.h"

static const int codes[] = { ENOSPC, EPERM, EIO, ENOMEM };

/* Each kind of request fails. */
static void
play_requests (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);

  scene_start_alone (&c, t);
  for (unsigned i = 0; i < G_N_ELEMENTS (codes); i++) {
    int e = codes[i];

    gate_fail (c.gate, GATE_READ, 0, UNIT, e, 1);
    nbd_fails (nbd_pread (c.a, data, UNIT, 0, 0), e);
    gate_fail (c.gate, GATE_WRITE, 0, UNIT, e, 1);
    nbd_fails (nbd_pwrite (c.a, data, UNIT, 0, LIBNBD_CMD_FLAG_FUA), e);
    gate_fail (c.gate, GATE_ZERO, 0, UNIT, e, 1);
    nbd_fails (nbd_zero (c.a, UNIT, 0, 0), e);
    gate_fail (c.gate, GATE_TRIM, 0, UNIT, e, 1);
    nbd_fails (nbd_trim (c.a, UNIT, 0, 0), e);
    gate_fail (c.gate, GATE_FLUSH, ANYWHERE, e, 1);
    nbd_fails (nbd_flush (c.a, 0), e);
    gate_fail (c.gate, GATE_CACHE, 0, UNIT, e, 1);
    nbd_fails (nbd_cache (c.a, UNIT, 0, 0), e);
  }
  scene_stop (&c);
}

/* Of a large request one piece fails, each time that it is tried. */
static void
play_piece (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (MIB, 1);

  scene_start_alone (&c, t);
  for (unsigned i = 0; i < G_N_ELEMENTS (codes); i++) {
    int e = codes[i];
    int failing = gate_fail (c.gate, GATE_READ | GATE_WRITE,
                             8 * MIB + MIB / 2 + 7, 1, e, -1);

    nbd_fails (nbd_pread (c.a, data, MIB, 8 * MIB, 0), e);
    if (t->mode)                /* THROUGH */
      nbd_fails (nbd_pwrite (c.a, data, MIB, 8 * MIB, 0), e);
    gate_release (c.gate, failing);
    nbd_ok (nbd_pread (c.a, data, MIB, 8 * MIB, 0));
  }
  scene_stop (&c);
}

/* A plugin sets an error and succeeds.  A later call of the same request fails
 * and sets none: that error must not be the old one.
 */
static void
play_old_error (const struct setup *t)
{
  struct server s;
  struct nbd_handle *nbd;
  g_autofree char *buf = filled (2 * UNIT, 1);

  server_start_with (&s, NULL, NULL, "tests/olderror.so", t->mode);
  nbd = client_connect (&s);
  for (unsigned i = 0; i < 10; i++) {   /* the filter sees that it is slow */
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

#define SET_ERROR "errno_is_preserved=0"

static const struct row rows[] = {
  { "requests/through", play_requests, .plugins = BOTH,
    .setup = { .mode = THROUGH } },
  { "requests/through/set-error", play_requests, .plugins = BOTH,
    .setup = { .mode = THROUGH, .words = SET_ERROR } },
  { "requests/behind", play_requests, .plugins = BOTH },
  { "requests/behind/set-error", play_requests, .plugins = BOTH,
    .setup = { .words = SET_ERROR } },
  { "piece/through", play_piece, .plugins = BOTH,
    .setup = { .mode = THROUGH } },
  { "piece/through/set-error", play_piece, .plugins = BOTH,
    .setup = { .mode = THROUGH, .words = SET_ERROR } },
  { "piece/behind", play_piece, .plugins = BOTH },
  { "piece/behind/set-error", play_piece, .plugins = BOTH,
    .setup = { .words = SET_ERROR } },
  { "old-error/write", play_old_error, .plugins = BIT (POOL),
    .setup = { .mode = THROUGH, .how = BY_WRITE } },
  { "old-error/read", play_old_error, .plugins = BIT (POOL),
    .setup = { .mode = THROUGH, .how = BY_ZERO } },
};

CASES_MAIN (rows)
