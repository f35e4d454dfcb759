/* SPDX-License-Identifier: BSD-3-Clause */

/* Block status over dirty data.
 *
 * Block status must not report a hole where an acknowledged write is dirty.
 * The device is one hole in the beginning.
 */
#include "cases.h"

struct status {
  uint64_t hole_at;             /* the first byte of a hole, or UINT64_MAX */
  uint64_t hole_end;            /* the end of the last hole */
};

static int
note_extents (void *user_data, const char *context, uint64_t offset,
              uint32_t *entries, size_t n, int *error)
{
  struct status *status = user_data;

  (void) context;
  (void) error;
  for (size_t i = 0; i < n; i += 2) {
    bool is_hole = entries[i + 1] & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO);

    if (is_hole && status->hole_at == UINT64_MAX)
      status->hole_at = offset;
    offset += entries[i];
    if (is_hole)
      status->hole_end = offset;
  }
  return 0;
}

/* The reply goes to *STATUS. */
static struct request
send_block_status (struct nbd_handle *nbd, struct status *status,
                   uint64_t count, uint64_t offset)
{
  *status = (struct status) { .hole_at = UINT64_MAX };
  return request_sent (nbd, nbd_aio_block_status
                       (nbd, count, offset,
                        (nbd_extent_callback) { .callback = note_extents,
                                                .user_data = status },
                        NBD_NULL_COMPLETION, 0));
}

static struct status
block_status (struct nbd_handle *nbd, uint64_t count, uint64_t offset)
{
  struct status status;
  struct request request = send_block_status (nbd, &status, count, offset);

  assert_succeeds (&request);
  return status;
}

static uint64_t
first_hole (struct nbd_handle *nbd, uint64_t count, uint64_t offset)
{
  return block_status (nbd, count, offset).hole_at;
}

/* A's write is held.  B's request may wait for it, or know better than the
 * plugin.
 */
static void
play_in_flight (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  struct status status;
  struct request request;
  int held;

  scene_start (&c, t);
  g_assert_cmpuint (first_hole (c.a, MIB, 0), ==, 0);
  held = hold_deferred (&c, c.a, data, UNIT, 0);
  request = send_block_status (c.b, &status, MIB, 0);
  round_trips (c.b);
  gate_release (c.gate, held);
  assert_succeeds (&request);
  g_assert_cmpuint (status.hole_at, >=, UNIT);
  scene_stop (&c);
}

static void
play_failed (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (UNIT, 1);
  int failing;

  scene_start (&c, t);
  failing = gate_fail (c.gate, GATE_WRITE, MIB, UNIT, ENOSPC, -1);
  nbd_ok (nbd_pwrite (c.a, data, UNIT, MIB, 0));
  gate_wait_ended (c.gate, GATE_WRITE, MIB, UNIT, 1);
  g_assert_cmpuint (first_hole (c.b, UNIT, MIB), ==, UINT64_MAX);
  g_assert_cmpuint (first_hole (c.b, MIB, MIB), !=, MIB);
  gate_release (c.gate, failing);
  nbd_ok (nbd_flush (c.b, 0));
  g_assert_cmpuint (first_hole (c.b, MIB, MIB), ==, MIB + UNIT);
  scene_stop (&c);
}

/* A plugin may report more than the request asks for: no hole in dirty data
 * there, either.
 */
static void
play_beyond_request (const struct setup *t)
{
  struct scene c;
  g_autofree char *data = filled (512, 1);
  struct status status;

  scene_start_alone (&c, t);
  hold_deferred (&c, c.a, data, 512, 1024);
  status = block_status (c.a, 512, 0);
  g_assert_cmpuint (status.hole_at, ==, 0);
  g_assert_cmpuint (status.hole_end, <=, 1024);
  scene_stop (&c);
}

static const struct row rows[] = {
  { "in-flight", play_in_flight, .plugins = BOTH },
  { "failed", play_failed, .plugins = BOTH },
  { "beyond-request", play_beyond_request, .plugins = BOTH },
};

CASES_MAIN (rows)
