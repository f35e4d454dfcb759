/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Between nbdkit and the engine: the flags of operations, the abilities that a
 * connection shows, how long an unflushed write is deferred, and the end of a
 * connection.  Through nbdkit, over gate.so.
 *
 * Not its job: the contract (test-safety-*.c, test-connections-*.c).
 */
#include "client.h"
#include "table.h"

#define SLAB "asyncpool-buffers=16 asyncpool-buffer-size=64k"
#define BEHIND SLAB " asyncpool-write=behind"
#define THROUGH SLAB " asyncpool-write=through"

/* The device's last megabyte is for warm_up and round_trips. */
#define WARM (63 * MIB)

/* nbdkit's flags, as gate.so logs them. */
enum { MAY_TRIM = 1, FUA = 2, FAST_ZERO = 8 };

/* The filter defers writes only to a device that it has seen to be slow. */
static void
warm_up (struct server *s, struct nbd_handle *nbd)
{
  g_autofree char *buf = g_malloc0 (UNIT / 2);

  nbd_ok (nbd_pwrite (nbd, buf, UNIT / 2, WARM, 0));
  nbd_ok (nbd_pread (nbd, buf, UNIT / 2, WARM, 0));
  gate_wait_ended (s->gate, GATE_WRITE, WARM, UNIT / 2, 1);
  gate_forget (s->gate);
}

static struct nbd_handle *
start (struct server *s, const char *options, const char *parameters)
{
  struct nbd_handle *nbd;

  alarm (CASE_SECONDS);
  server_start (s, options, parameters);
  nbd = client_connect (s);
  if (nbd_is_read_only (nbd) == 0)
    warm_up (s, nbd);
  return nbd;
}

static void
stop (struct server *s, struct nbd_handle *nbd)
{
  client_close (nbd);
  server_stop (s);
}

/* Flags. */

/* The flags of the only change since the last call, which is of this KIND. */
static unsigned
flags_at_plugin (struct server *s, unsigned kind)
{
  struct gate_op op;
  unsigned n;

  gate_wait_ended (s->gate, kind, 0, WARM, 1);
  n = gate_started (s->gate, GATE_CHANGE, 0, WARM);
  if (n != 1)
    gate_print (s->gate);
  g_assert_cmpuint (n, ==, 1);
  op = gate_op (s->gate, GATE_CHANGE, 0, WARM, 0);
  g_assert_cmpuint (op.kind, ==, kind);
  gate_forget (s->gate);
  return op.flags & (MAY_TRIM | FUA | FAST_ZERO);
}

static void
zero_flags (struct server *s, struct nbd_handle *nbd)
{
  static const struct {
    uint32_t client;
    unsigned plugin;
  } flags[] = {
    { 0, MAY_TRIM },
    { LIBNBD_CMD_FLAG_NO_HOLE, 0 },
    { LIBNBD_CMD_FLAG_FAST_ZERO, MAY_TRIM | FAST_ZERO },
    { LIBNBD_CMD_FLAG_FUA, MAY_TRIM | FUA },
    { LIBNBD_CMD_FLAG_NO_HOLE | LIBNBD_CMD_FLAG_FAST_ZERO, FAST_ZERO },
    { LIBNBD_CMD_FLAG_NO_HOLE | LIBNBD_CMD_FLAG_FUA, FUA },
    { LIBNBD_CMD_FLAG_FAST_ZERO | LIBNBD_CMD_FLAG_FUA,
      MAY_TRIM | FAST_ZERO | FUA },
    { LIBNBD_CMD_FLAG_NO_HOLE | LIBNBD_CMD_FLAG_FAST_ZERO
      | LIBNBD_CMD_FLAG_FUA, FAST_ZERO | FUA },
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (flags); i++) {
    nbd_ok (nbd_zero (nbd, UNIT, 0, flags[i].client));
    g_assert_cmphex (flags_at_plugin (s, GATE_ZERO), ==, flags[i].plugin);
  }
}

static void
write_flags (struct server *s, struct nbd_handle *nbd, uint64_t count)
{
  g_autofree char *data = filled (count, 1);

  nbd_ok (nbd_pwrite (nbd, data, count, 0, LIBNBD_CMD_FLAG_FUA));
  g_assert_cmphex (flags_at_plugin (s, GATE_WRITE), ==, FUA);
  nbd_ok (nbd_pwrite (nbd, data, count, 0, 0));
  g_assert_cmphex (flags_at_plugin (s, GATE_WRITE), ==, 0);
}

static void
trim_flags (struct server *s, struct nbd_handle *nbd)
{
  nbd_ok (nbd_trim (nbd, UNIT, 0, 0));
  g_assert_cmphex (flags_at_plugin (s, GATE_TRIM), ==, 0);
  nbd_ok (nbd_trim (nbd, UNIT, 0, LIBNBD_CMD_FLAG_FUA));
  g_assert_cmphex (flags_at_plugin (s, GATE_TRIM), ==, FUA);
}

static void
test_flags (gconstpointer parameters)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, NULL, parameters);

  zero_flags (&s, nbd);
  write_flags (&s, nbd, UNIT);
  write_flags (&s, nbd, 512);
  trim_flags (&s, nbd);
  stop (&s, nbd);
}

/* Abilities of a connection. */

/* The plugin has read this unit once, for this connection. */
static void
assert_read_by (struct server *s, uint64_t offset, unsigned conn)
{
  g_assert_cmpuint (gate_started (s->gate, GATE_READ, offset, UNIT), ==, 1);
  g_assert_cmpuint (gate_op (s->gate, GATE_READ, offset, UNIT, 0).conn, ==,
                    conn);
}

/* Without multi-conn the filter gives no data of one connection to another:
 * each has the plugin's own view of the device.  So B reads prefetched data of
 * A from the plugin, and waits for A's deferred write and reads from the plugin
 * then.
 */
static void
test_no_multi_conn (gconstpointer export)
{
  const uint64_t ahead = 8 * UNIT, dirty = 32 * UNIT;
  struct server s;
  struct nbd_handle *a = start (&s, NULL, BEHIND " multi_conn=0"), *b;
  g_autofree char *buf = g_malloc (UNIT);
  struct request read;
  int held;

  b = client_connect_export (&s, export);
  g_assert_cmpint (nbd_can_multi_conn (a), ==, 0);
  g_assert_cmpint (nbd_can_multi_conn (b), ==, 0);
  for (uint64_t offset = 0; offset + UNIT < ahead; offset += UNIT)
    nbd_ok (nbd_pread (a, buf, UNIT, offset, 0));
  gate_wait_ended (s.gate, GATE_READ, ahead, UNIT, 1);
  gate_forget (s.gate);
  nbd_ok (nbd_pread (b, buf, UNIT, ahead, 0));
  assert_read_by (&s, ahead, 2);

  fill (buf, UNIT, 1);
  held = gate_hold (s.gate, GATE_WRITE, dirty, UNIT);
  nbd_ok (nbd_pwrite (a, buf, UNIT, dirty, 0));
  gate_wait_held (s.gate, held, 1);
  memset (buf, 0, UNIT);
  read = send_read (b, buf, UNIT, dirty);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&read), ==, 0);
  assert_read_by (&s, dirty, 2);
  assert_same (buf, server_device (&s) + dirty, UNIT);
  client_close (b);
  stop (&s, a);
}

/* A flush is offered if the plugin has one, or if the filter may defer writes.
 */
static void
test_can_flush (void)
{
  static const struct {
    const char *options, *parameters;
    int expected;
  } cases[] = {
    { NULL, BEHIND " flush=0 fua=none", 1 },
    { NULL, SLAB " flush=0 fua=none", 1 },
    { NULL, THROUGH " flush=0 fua=none", 0 },
    { "-r", BEHIND " flush=0 fua=none", 0 },
    { "-r", SLAB " flush=0 fua=none", 0 },
    { "-r", THROUGH " flush=0 fua=none", 0 },
    { NULL, THROUGH, 1 },
    { "-r", BEHIND, 1 },
    { "-r", THROUGH, 1 },
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (cases); i++) {
    struct server s;
    struct nbd_handle *nbd = start (&s, cases[i].options, cases[i].parameters);

    g_test_message ("%s %s", cases[i].options, cases[i].parameters);
    g_assert_cmpint (nbd_can_flush (nbd), ==, cases[i].expected);
    stop (&s, nbd);
  }
}

/* How long an unflushed write is deferred. */

/* 100 ms, as the manual says.  A busy machine makes it longer, but not in each
 * of twenty tries.  It never makes it shorter.
 */
static void
test_unflushed_write (void)
{
  enum { TRIES = 20 };
  struct server s;
  struct nbd_handle *nbd = start (&s, NULL, BEHIND);
  g_autofree char *data = filled (512, 1);
  gint64 best_us = G_MAXINT64;

  for (unsigned i = 0; i < TRIES && best_us > 600000; i++) {
    gint64 start_us = g_get_monotonic_time ();

    nbd_ok (nbd_pwrite (nbd, data, 512, 2 * i * UNIT, 0));
    gate_wait_started (s.gate, GATE_WRITE, 2 * i * UNIT, UNIT, 1);
    best_us = MIN (best_us, g_get_monotonic_time () - start_us);
  }
  g_assert_cmpint (best_us, <=, 600000);
  g_assert_cmpint (best_us, >=, 90000);         /* other writes can join it */
  stop (&s, nbd);
}

/* More than 128 busy workers, and a flush. */

#define MANY 135
#define MANY_BUSY "asyncpool-buffers=256 asyncpool-threads=180 " \
  "asyncpool-buffer-size=64k asyncpool-write=behind"

/* A client whose writes keep MANY workers busy until the test releases HELD. */
static struct nbd_handle *
start_busy (struct server *s, int *held)
{
  struct nbd_handle *nbd = start (s, NULL, MANY_BUSY);
  g_autofree char *data = filled (UNIT, 1);

  *held = gate_hold (s->gate, GATE_WRITE, 0, MANY * UNIT);
  for (unsigned i = 0; i < MANY; i++)
    nbd_ok (nbd_pwrite (nbd, data, UNIT, i * UNIT, 0));
  /* The last write may stay queued for a worker that completes another. */
  gate_wait_held (s->gate, *held, MANY - 1);
  return nbd;
}

/* A queued write starts when a flush waits for it. */
static void
test_queued_write (void)
{
  struct server s;
  struct request flush;
  int held;
  struct nbd_handle *nbd = start_busy (&s, &held);

  flush = send_flush (nbd);
  gate_wait_held (s.gate, held, MANY);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  stop (&s, nbd);
}

/* Writes that are ordered after an older one start when that one completes. */
static void
test_ordered_writes (void)
{
  const uint64_t offset = 512 * UNIT;
  struct server s;
  struct request flush;
  int held, older, younger;
  struct nbd_handle *nbd = start_busy (&s, &held);
  g_autofree char *data = filled (UNIT, 2);

  older = gate_hold (s.gate, GATE_WRITE, offset, UNIT);
  nbd_ok (nbd_pwrite (nbd, data, UNIT, offset, 0));
  for (unsigned i = 0; i < 4; i++)
    nbd_ok (nbd_pwrite (nbd, data, 4096, offset + 2 * i * 4096, 0));
  flush = send_flush (nbd);
  gate_wait_held (s.gate, older, 1);
  younger = gate_hold (s.gate, GATE_WRITE, offset, UNIT);
  gate_release (s.gate, older);
  gate_wait_held (s.gate, younger, 4);
  gate_release (s.gate, younger);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  stop (&s, nbd);
}

/* While a flush waits, no write stays queued, not even a newer one. */
static void
test_newer_writes (void)
{
  struct server s;
  struct request flush;
  int held, newer;
  struct nbd_handle *a = start_busy (&s, &held), *b = client_connect (&s);
  g_autofree char *data = filled (UNIT, 2);

  newer = gate_hold (s.gate, GATE_WRITE, 512 * UNIT, 4 * UNIT);
  flush = send_flush (a);
  gate_wait_held (s.gate, held, MANY);
  round_trips (a);
  for (unsigned i = 0; i < 4; i++)
    nbd_ok (nbd_pwrite (b, data, UNIT, (512 + i) * UNIT, 0));
  gate_wait_held (s.gate, newer, 4);
  gate_release (s.gate, newer);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  client_close (b);
  stop (&s, a);
}

/* The end of a connection. */

/* nbdkit skips the filter's .finalize if that of an outer filter fails.  The
 * deferred writes reach the plugin nevertheless.
 */
static void
test_close_without_finalize (void)
{
  g_autofree char *failfinal = client_module ("FAILFINAL",
                                              "tests/failfinal.so");
  g_autofree char *options = g_strdup_printf ("--filter=%s", failfinal);
  struct server s;
  struct nbd_handle *nbd = start (&s, options, BEHIND);
  g_autofree char *data = filled (2 * UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, 2 * UNIT);

  nbd_ok (nbd_pwrite (nbd, data, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (nbd, data + UNIT, 5000, UNIT, 0));
  nbd_ok (nbd_aio_disconnect (nbd, 0));
  gate_wait_held (s.gate, held, 2);
  gate_release (s.gate, held);
  gate_wait_ended (s.gate, GATE_WRITE, 0, 2 * UNIT, 2);
  nbd_close (nbd);
  wait_message (&s, "as it should", 1);
  assert_same (server_device (&s), data, UNIT + 5000);
  server_stop (&s);
}

static const struct test tests[] = {
  { "/seam/flags-reach-the-plugin/behind",
    .run_with = test_flags, .data = BEHIND },
  { "/seam/flags-reach-the-plugin/auto",
    .run_with = test_flags, .data = SLAB },
  { "/seam/flags-reach-the-plugin/through",
    .run_with = test_flags, .data = THROUGH },
  { "/seam/no-multi-conn-no-shared-data/one-name",
    .run_with = test_no_multi_conn, .data = "" },
  { "/seam/no-multi-conn-no-shared-data/two-names",
    .run_with = test_no_multi_conn, .data = "other" },
  { "/seam/a-flush-is-offered-where-it-has-work", .run = test_can_flush },
  { "/seam/an-unflushed-write-waits-100-ms", .run = test_unflushed_write },
  { "/seam/a-flush-starts/queued-writes", .run = test_queued_write },
  { "/seam/a-flush-starts/ordered-writes", .run = test_ordered_writes },
  { "/seam/a-flush-starts/newer-writes", .run = test_newer_writes },
  { "/seam/a-close-without-finalize-writes",
    .run = test_close_without_finalize },
};

TABLE_MAIN (tests)
