/* SPDX-License-Identifier: BSD-3-Clause */

/* Block sizes.  Operations keep the plugin's minimum and maximum block size.
 *
 * The plugin fails and counts an operation that does not, and server_free
 * asserts that it has counted none.
 */
#include "cases.h"

/* Writes of the minimum, one at a time, are coalesced. */
static void
play_small (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (MIB, 1);

  scene_start_alone (&c, t);
  for (uint64_t offset = 0; offset < MIB; offset += 4096)
    nbd_ok (nbd_pwrite (c.a, data + offset, 4096, offset, 0));
  nbd_ok (nbd_pwrite (c.a, data, 5 * 4096, 3 * MIB + 4096 * 13, 0));
  nbd_ok (nbd_flush (c.a, 0));
  g_assert_cmpuint (gate_started (c.gate, GATE_WRITE, 0, MIB), <, 64);
  for (uint64_t offset = 0; offset < MIB; offset += 28 * KIB)
    nbd_ok (nbd_pread (c.a, data, 28 * KIB, offset, 0));
  scene_stop (&c);
}

/* The maximum is smaller than a buffer. */
static void
play_below_buffer (const struct setup *t)
{
  const uint64_t step = 32 * KIB;
  struct scene c;
  g_autofree char *data = filled (MIB, 1);

  scene_start_alone (&c, t);
  for (uint64_t offset = 0; offset < MIB; offset += step)
    nbd_ok (nbd_pwrite (c.a, data + offset, step, offset, 0));
  nbd_ok (nbd_flush (c.a, 0));
  for (uint64_t offset = 0; offset < MIB; offset += step)
    assert_reads (c.a, data + offset, step, offset);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "small", play_small, .plugins = BOTH,
    .setup = { .words = "minimum=4096 preferred=16k maximum=128k" } },
  { "below-buffer", play_below_buffer, .plugins = BOTH,
    .setup = { .words = "minimum=512 preferred=512 maximum=48k" } },
};

CASES_MAIN (rows)
