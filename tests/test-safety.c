/* SPDX-License-Identifier: BSD-3-Clause */
/* The contract's points under "Safety", each with a gate that shows the order. Black box: nbdkit
 * with asyncpool over gate.so, and several connections.
 */
#include "client.h"

#ifndef HOOKED
#define HOOKED 0
#endif

/* The parameters of most of these tests. */
#define SLAB "asyncpool-buffers=16 asyncpool-buffer-size=64k"
#define BEHIND SLAB " asyncpool-write=behind"
#define THROUGH SLAB " asyncpool-write=through"

/* The device's last megabyte is for warming up and round trips. */
#define WARM (63 * MIB)
#define FAR (32 * MIB)

/* The filter holds data only for a device that it has seen to be slow. */
static void
warm_up (struct server *s, struct nbd_handle *nbd)
{
  g_autofree char *buf = g_malloc0 (UNIT / 2);

  alarm (CASE_SECONDS);
  nbd_ok (nbd_pwrite (nbd, buf, UNIT / 2, WARM, 0));
  nbd_ok (nbd_pread (nbd, buf, UNIT / 2, WARM, 0));
  gate_wait_ended (s->gate, GATE_WRITE, WARM, UNIT / 2, 1);
  gate_forget (s->gate);
}

static struct nbd_handle *
start (struct server *s, const char *parameters)
{
  struct nbd_handle *nbd;

  alarm (CASE_SECONDS);
  server_start (s, NULL, parameters);
  nbd = client_connect (s);
  warm_up (s, nbd);
  return nbd;
}

/* The only operation of that kind there. */
static struct gate_op
one_op (struct server *s, unsigned kinds, uint64_t offset, uint64_t count)
{
  unsigned n = gate_started (s->gate, kinds, offset, count);

  if (n != 1)
    gate_print (s->gate);
  g_assert_cmpuint (n, ==, 1);
  return gate_op (s->gate, kinds, offset, count, 0);
}

/* No two overlapping changes were in the plugin at once. */
static void
assert_no_overlap (struct server *s)
{
  g_assert_cmpuint (gate_collisions (s->gate), ==, 0);
}

/* 1. Flush. */

static void
flush_waits (const char *parameters, uint64_t count, uint64_t offset, bool by_other)
{
  struct server s;
  struct nbd_handle *a = start (&s, parameters), *b = client_connect (&s);
  struct nbd_handle *flusher = by_other ? b : a;
  g_autofree char *data = filled (count, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);
  struct request flush;
  struct gate_op write;
  uint64_t answered;

  nbd_ok (nbd_pwrite (a, data, count, offset, 0));
  g_assert_cmpuint (gate_ended (s.gate, GATE_WRITE, offset, count), ==, 0);
  flush = send_flush (flusher);
  gate_wait_held (s.gate, held, 1);
  round_trips (flusher);
  g_assert_false (request_is_done (&flush));
  g_assert_cmpuint (gate_started (s.gate, GATE_FLUSH, EVERYTHING), ==, 0);
  assert_reads (b, data, count, offset);

  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  answered = gate_now (s.gate);
  write = one_op (&s, GATE_WRITE, offset, count);
  if (strstr (parameters, "flush=0"))
    g_assert_cmpuint (gate_started (s.gate, GATE_FLUSH, EVERYTHING), ==, 0);
  else {
    struct gate_op op = one_op (&s, GATE_FLUSH, EVERYTHING);

    g_assert_cmpuint (write.end, <, op.start);
    g_assert_cmpuint (op.end, <, answered);
  }
  g_assert_cmpuint (write.end, !=, 0);
  g_assert_cmpuint (write.end, <, answered);
  assert_same (server_device (&s) + offset, data, count);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

static void
test_flush_waits (void)
{
  flush_waits (BEHIND, UNIT, 0, false);
}

static void
test_flush_waits_partial (void)
{
  flush_waits (BEHIND, 4 * KIB + 17, 100, false);
}

static void
test_flush_covers_others (void)
{
  flush_waits (BEHIND, UNIT, UNIT, true);
  flush_waits (BEHIND, 5000, UNIT + 1000, true);
}

static void
test_flush_without_plugins (void)
{
  flush_waits (BEHIND " flush=0 fua=none", UNIT, 0, false);
  flush_waits (BEHIND " flush=0 fua=none", 3000, 1, true);
}

/* The plugin's own flush counts: always called, its error handed on. */
static void
test_flush_of_plugin (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  int held;
  struct request flush;

  nbd_ok (nbd_flush (a, 0));
  g_assert_cmpuint (gate_ended (s.gate, GATE_FLUSH, EVERYTHING), ==, 1);
  gate_fail (s.gate, GATE_FLUSH, EVERYTHING, ENOSPC, 1);
  nbd_fails (nbd_flush (a, 0), ENOSPC);
  gate_fail (s.gate, GATE_FLUSH, EVERYTHING, EIO, 1);
  nbd_fails (nbd_flush (a, 0), EIO);
  nbd_ok (nbd_flush (a, 0));

  held = gate_hold (s.gate, GATE_FLUSH, EVERYTHING);
  flush = send_flush (a);
  gate_wait_held (s.gate, held, 1);
  round_trips (a);
  g_assert_false (request_is_done (&flush));
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  client_close (a);
  server_stop (&s);
}

/* A flush answers for what was acknowledged before it, and not for what comes after, or a busy
 * neighbour could keep it for ever. */
static void
test_flush_ends_among_writers (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *data = filled (UNIT, 1);
  int before = gate_hold (s.gate, GATE_WRITE, 0, UNIT);
  int after = gate_hold (s.gate, GATE_WRITE, UNIT, UNIT);
  struct request flush;

  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  gate_wait_held (s.gate, before, 1);
  flush = send_flush (a);
  round_trips (a);
  nbd_ok (nbd_pwrite (b, data, UNIT, UNIT, 0));
  gate_wait_held (s.gate, after, 1);
  gate_release (s.gate, before);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  g_assert_cmpuint (gate_held (s.gate, after), ==, 1);
  gate_release (s.gate, after);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* FUA. */

static void
fua_waits (const char *parameters, bool native)
{
  struct server s;
  struct nbd_handle *a = start (&s, parameters);
  g_autofree char *data = filled (UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);
  struct request write;
  struct gate_op op;
  uint64_t answered;

  write = send_write (a, data, UNIT, 0, LIBNBD_CMD_FLAG_FUA);
  gate_wait_held (s.gate, held, 1);
  round_trips (a);
  g_assert_false (request_is_done (&write));
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&write), ==, 0);
  answered = gate_now (s.gate);
  op = one_op (&s, GATE_WRITE, 0, UNIT);
  g_assert_cmpuint (op.end, <, answered);
  if (native)
    g_assert_cmpuint (op.flags & 2, ==, 2);     /* NBDKIT_FLAG_FUA */
  else {
    struct gate_op flush = one_op (&s, GATE_FLUSH, EVERYTHING);

    g_assert_cmpuint (op.end, <, flush.start);
    g_assert_cmpuint (flush.end, <, answered);
  }
  client_close (a);
  server_stop (&s);
}

static void
test_fua (void)
{
  fua_waits (BEHIND, true);
  fua_waits (BEHIND " fua=emulate", false);
}

/* FUA over data that waits: that goes first, and stays out afterwards. */
static void
test_fua_over_waiting (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  g_autofree char *first = filled (UNIT, 1), *second = filled (UNIT, 2);
  int held = gate_hold (s.gate, GATE_WRITE, 0, UNIT);
  struct request write;

  nbd_ok (nbd_pwrite (a, first, UNIT, 0, 0));
  gate_wait_held (s.gate, held, 1);
  write = send_write (a, second, UNIT / 2, UNIT / 4, LIBNBD_CMD_FLAG_FUA);
  round_trips (a);
  g_assert_false (request_is_done (&write));
  g_assert_cmpuint (gate_started (s.gate, GATE_WRITE, 0, UNIT), ==, 1);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&write), ==, 0);
  memcpy (first + UNIT / 4, second, UNIT / 2);
  assert_same (server_device (&s), first, UNIT);
  assert_no_overlap (&s);
  assert_reads (a, first, UNIT, 0);
  client_close (a);
  server_stop (&s);
}

/* 2. Reads. */

/* Layers of writes, held in the plugin, waiting for each other, and not yet sent; read in pieces
 * that cut them in every way, by both connections. */
static void
test_read_waiting (void)
{
  const uint64_t size = 6 * UNIT;
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *shadow = filled (size, 1), *got = g_malloc (size);
  static const struct {
    unsigned offset, count;
  } writes[] = {
    { 65536, 65536 }, { 65536 + 1000, 3000 }, { 131072 - 512, 1024 }, { 200000, 1 },
    { 262144 + 77, 65536 }, { 262144 + 4096, 4096 }, { 65536 * 5, 8192 }, { 65536 * 5 + 8192, 4096 },
    { 65536 * 5 + 4096, 4096 },
  };
  int held;

  /* What the device has below. */
  nbd_ok (nbd_pwrite (a, shadow, size, 0, 0));
  nbd_ok (nbd_flush (a, 0));
  held = gate_hold (s.gate, GATE_WRITE, 0, FAR);
  for (unsigned i = 0; i < G_N_ELEMENTS (writes); i++) {
    fill (shadow + writes[i].offset, writes[i].count, 100 + i);
    nbd_ok (nbd_pwrite (i % 3 == 2 ? b : a, shadow + writes[i].offset, writes[i].count,
                        writes[i].offset, 0));
    assert_reads (b, shadow, size, 0);
  }
  for (unsigned i = 0; i < 200; i++) {
    uint64_t offset = g_test_rand_int_range (0, size - 1);
    uint64_t count = g_test_rand_int_range (1, MIN (size - offset, 2 * UNIT) + 1);

    nbd_ok (nbd_pread (i % 2 ? a : b, got, count, offset, 0));
    assert_same (got, shadow + offset, count);
  }
  g_assert_cmpuint (gate_held (s.gate, held), >, 0);
  gate_release (s.gate, held);
  assert_reads (a, shadow, size, 0);
  nbd_ok (nbd_flush (b, 0));
  assert_same (server_device (&s), shadow, size);
  assert_no_overlap (&s);
  assert_reads (a, shadow, size, 0);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* A sequential reader, until the plugin was asked for the unit at TARGET, which it has not read. */
static void
read_until_ahead (struct server *s, struct nbd_handle *nbd, uint64_t target)
{
  g_autofree char *buf = g_malloc (UNIT);

  for (uint64_t offset = 0; offset + UNIT < target; offset += UNIT)
    nbd_ok (nbd_pread (nbd, buf, UNIT, offset, 0));
  gate_wait_started (s->gate, GATE_READ, target, UNIT, 1);
}

enum change { BY_WRITE, BY_FUA, BY_ZERO, BY_TRIM, CHANGES };

/* Changes [offset, offset+UNIT), and puts what is expected there then into data. */
static void
change (struct nbd_handle *nbd, enum change how, char *data, uint64_t offset)
{
  if (how == BY_WRITE || how == BY_FUA) {
    fill (data, UNIT, 1000 + how);
    nbd_ok (nbd_pwrite (nbd, data, UNIT, offset, how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0));
  }
  else {
    memset (data, 0, UNIT);     /* gate.so's trim makes zeroes too */
    if (how == BY_ZERO)
      nbd_ok (nbd_zero (nbd, UNIT, offset, 0));
    else
      nbd_ok (nbd_trim (nbd, UNIT, offset, 0));
  }
}

/* Data that was read ahead, or is being read (what the plugin will answer is the old data), and
 * then is changed. */
static void
stale (const char *parameters, bool in_flight, bool by_other, enum change how)
{
  const uint64_t target = 8 * UNIT, size = 32 * UNIT;
  struct server s;
  struct nbd_handle *a = start (&s, parameters), *b = client_connect (&s);
  g_autofree char *old = filled (size, 7), *data = g_malloc (UNIT), *got = g_malloc (UNIT);
  struct request read;
  int held = -1;

  warm_up (&s, b);
  for (uint64_t at = 0; at < size; at += UNIT)
    nbd_ok (nbd_pwrite (a, old + at, UNIT, at, 0));
  nbd_ok (nbd_flush (a, 0));
  gate_forget (s.gate);

  if (in_flight)
    held = gate_hold (s.gate, GATE_READ, target, UNIT);
  read_until_ahead (&s, a, target);
  if (in_flight)
    gate_wait_held (s.gate, held, 1);
  else
    gate_wait_ended (s.gate, GATE_READ, target, UNIT, 1);

  change (by_other ? b : a, how, data, target);
  read = send_read (a, got, UNIT, target);
  if (in_flight)
    gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&read), ==, 0);
  assert_same (got, data, UNIT);
  assert_reads (b, data, UNIT, target);
  /* Its neighbours are as they were. */
  assert_reads (a, old + target - UNIT, UNIT, target - UNIT);
  assert_reads (a, old + target + UNIT, UNIT, target + UNIT);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

static void
test_stale (gconstpointer in_flight)
{
  for (int by_other = 0; by_other < 2; by_other++)
    for (enum change how = 0; how < CHANGES; how++) {
      stale (BEHIND, GPOINTER_TO_INT (in_flight), by_other, how);
      if (how == BY_WRITE)
        stale (THROUGH, GPOINTER_TO_INT (in_flight), by_other, how);
    }
}

/* A demand read that waits for a read ahead under way, while another connection's write to the same
 * bytes is acknowledged: either answer is right, but later reads see the write. */
static void
test_stale_while_waited_for (void)
{
  const uint64_t target = 8 * UNIT;
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *data = filled (UNIT, 5), *got = g_malloc (UNIT);
  int held = gate_hold (s.gate, GATE_READ, target, UNIT);
  int waiting = gate_hold (s.gate, GATE_WRITE, target, UNIT);
  struct request read;

  read_until_ahead (&s, a, target);
  gate_wait_held (s.gate, held, 1);
  read = send_read (a, got, UNIT, target);
  round_trips (a);
  nbd_ok (nbd_pwrite (b, data, UNIT, target, 0));
  assert_reads (b, data, UNIT, target);         /* of what waits: the plugin's reads are held */
  gate_release (s.gate, waiting);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&read), ==, 0);
  assert_reads (a, data, UNIT, target);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* What fails to be read ahead is the client's own affair later. */
static void
test_failed_read_ahead (void)
{
  const uint64_t target = 8 * UNIT;
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  g_autofree char *data = filled (UNIT, 5), *got = g_malloc (UNIT);

  nbd_ok (nbd_pwrite (a, data, UNIT, target, 0));
  nbd_ok (nbd_flush (a, 0));
  gate_forget (s.gate);
  gate_fail (s.gate, GATE_READ, target, UNIT, EIO, 1);
  read_until_ahead (&s, a, target);
  gate_wait_ended (s.gate, GATE_READ, target, UNIT, 1);
  assert_reads (a, data, UNIT, target);

  /* Also if it waits for just that. */
  {
    int held = gate_hold (s.gate, GATE_READ, 24 * UNIT, UNIT);
    struct request read;

    for (uint64_t offset = target; offset < 23 * UNIT; offset += UNIT)
      nbd_ok (nbd_pread (a, got, UNIT, offset, 0));
    gate_wait_held (s.gate, held, 1);
    read = send_read (a, got, UNIT, 24 * UNIT);
    round_trips (a);
    g_assert_false (request_is_done (&read));
    gate_fail (s.gate, GATE_READ, 24 * UNIT, UNIT, EIO, 1);
    gate_release (s.gate, held);
    g_assert_cmpint (request_wait (&read), ==, 0);
  }

  gate_fail (s.gate, GATE_READ, 40 * UNIT, UNIT, EPERM, -1);
  for (uint64_t offset = 25 * UNIT; offset < 40 * UNIT; offset += UNIT)
    nbd_ok (nbd_pread (a, got, UNIT, offset, 0));
  nbd_fails (nbd_pread (a, got, UNIT, 40 * UNIT, 0), EPERM);
  client_close (a);
  server_stop (&s);
}

/* Different export names of a plugin that ignores them may be one device. */
static void
test_export_names (void)
{
  const uint64_t target = 8 * UNIT;
  struct server s;
  struct nbd_handle *a, *b;
  g_autofree char *data = filled (UNIT, 5), *newer = filled (UNIT, 6), *got = g_malloc (UNIT);
  struct request flush, read;
  int held;

  alarm (CASE_SECONDS);
  server_start (&s, NULL, BEHIND);
  a = client_connect_export (&s, "a");
  b = client_connect_export (&s, "b");
  warm_up (&s, a);
  warm_up (&s, b);

  /* A read waits until the other's dirty data is written; a flush is for its own name only. */
  held = gate_hold (s.gate, GATE_WRITE, 0, UNIT);
  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  gate_wait_held (s.gate, held, 1);
  read = send_read (b, got, UNIT, 0);
  nbd_ok (nbd_flush (b, 0));
  g_assert_false (request_is_done (&read));
  flush = send_flush (a);
  round_trips (a);
  g_assert_false (request_is_done (&flush));
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&read), ==, 0);
  assert_same (got, data, UNIT);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  assert_same (server_device (&s), data, UNIT);

  /* The last write counts, whoever sent it. */
  for (unsigned i = 0; i < 10; i++) {
    fill (newer, UNIT, 50 + i);
    nbd_ok (nbd_pwrite (i % 2 ? a : b, newer, UNIT, UNIT, 0));
    nbd_ok (nbd_pwrite (i % 2 ? b : a, newer, 1000, UNIT + 500, 0));
    memmove (newer + 500, newer, 1000);
    assert_reads (i % 2 ? a : b, newer, UNIT, UNIT);
  }
  nbd_ok (nbd_flush (a, 0));
  nbd_ok (nbd_flush (b, 0));
  assert_same (server_device (&s) + UNIT, newer, UNIT);

  /* What one has read ahead the other makes stale. */
  read_until_ahead (&s, a, target);
  gate_wait_ended (s.gate, GATE_READ, target, UNIT, 1);
  nbd_ok (nbd_pwrite (b, data, UNIT, target, 0));
  assert_reads (a, data, UNIT, target);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* 3. Errors of deferred writes. */

static void
failed_write (const char *parameters, int error)
{
  struct server s;
  struct nbd_handle *a = start (&s, parameters), *b = client_connect (&s);
  g_autofree char *data = filled (UNIT, 1), *other = filled (UNIT, 2);
  int failing = gate_fail (s.gate, GATE_WRITE, 0, UNIT, error, -1), held;
  uint64_t answered;
  struct request write;

  warm_up (&s, b);
  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  gate_wait_ended (s.gate, GATE_WRITE, 0, UNIT, 1);
  /* Kept, and served; a round trip is behind the bookkeeping of the failure. */
  round_trips (a);
  assert_reads (a, data, UNIT, 0);
  assert_reads (b, data, UNIT, 0);

  /* From now on writes are synchronous, and hear of errors at once. */
  nbd_ok (nbd_pwrite (b, other, UNIT, FAR, 0));
  answered = gate_now (s.gate);
  g_assert_cmpuint (one_op (&s, GATE_WRITE, FAR, UNIT).end, <, answered);
  held = gate_hold (s.gate, GATE_WRITE, 2 * FAR - 4 * MIB, UNIT);
  write = send_write (a, other, UNIT, 2 * FAR - 4 * MIB, 0);
  gate_wait_held (s.gate, held, 1);
  round_trips (a);
  g_assert_false (request_is_done (&write));
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&write), ==, 0);
  nbd_fails (nbd_pwrite (a, other, UNIT, 0, 0), error);
  nbd_fails (nbd_pwrite (b, other, 100, 1000, 0), error);
  assert_reads (b, data, UNIT, 0);

  /* Every flush tries again and tells. */
  nbd_fails (nbd_flush (a, 0), error);
  nbd_fails (nbd_flush (b, 0), error);
  assert_reads (a, data, UNIT, 0);
  g_assert_cmpuint (gate_started (s.gate, GATE_FLUSH, EVERYTHING), ==, 0);

  gate_release (s.gate, failing);
  nbd_ok (nbd_flush (a, 0));
  assert_same (server_device (&s), data, UNIT);
  assert_reads (b, data, UNIT, 0);
  nbd_ok (nbd_flush (b, 0));

  /* And writes wait again. */
  held = gate_hold (s.gate, GATE_WRITE, UNIT, UNIT);
  nbd_ok (nbd_pwrite (a, other, UNIT, UNIT, 0));
  gate_wait_held (s.gate, held, 1);
  gate_release (s.gate, held);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

static void
test_failed_write (void)
{
  failed_write (BEHIND, ENOSPC);
  failed_write (BEHIND, EIO);
  failed_write (BEHIND " errno_is_preserved=0", ENOSPC);
  failed_write (BEHIND " errno_is_preserved=0", ENOMEM);
}

/* What is written, zeroed or trimmed over failed data stays, when that is tried again. */
static void
over_failed (enum change how, uint64_t offset, uint64_t count)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  g_autofree char *data = filled (2 * UNIT, 1), *over = filled (count, 2);
  int failing = gate_fail (s.gate, GATE_WRITE, 0, 2 * UNIT, ENOSPC, -1);

  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  gate_wait_ended (s.gate, GATE_WRITE, 0, UNIT, 1);
  round_trips (a);
  gate_release (s.gate, failing);

  memset (data + UNIT, 0, UNIT);
  if (how == BY_ZERO)
    nbd_ok (nbd_zero (a, count, offset, 0));
  else if (how == BY_TRIM)
    nbd_ok (nbd_trim (a, count, offset, 0));
  else
    nbd_ok (nbd_pwrite (a, over, count, offset, how == BY_FUA ? LIBNBD_CMD_FLAG_FUA : 0));
  if (how == BY_TRIM) {         /* leaves anything, but what stands around is untouched */
    nbd_ok (nbd_pread (a, over, count, offset, 0));
    memcpy (data + offset, over, count);
  }
  else if (how == BY_ZERO)
    memset (data + offset, 0, count);
  else
    memcpy (data + offset, over, count);

  assert_reads (a, data, 2 * UNIT, 0);
  nbd_ok (nbd_flush (a, 0));
  if (how != BY_TRIM)
    assert_reads (a, data, 2 * UNIT, 0);
  assert_reads (a, data, offset, 0);
  assert_same (server_device (&s), data, offset);
  if (how != BY_TRIM)
    assert_same (server_device (&s), data, 2 * UNIT);
  assert_same (server_device (&s) + offset + count, data + offset + count,
               2 * UNIT - offset - count);
  client_close (a);
  server_stop (&s);
}

static void
test_over_failed (void)
{
  for (enum change how = 0; how < CHANGES; how++) {
    over_failed (how, 16 * KIB, 8 * KIB);
    over_failed (how, 60 * KIB, 8 * KIB);
    over_failed (how, 512, UNIT);
    over_failed (how, 1, UNIT + UNIT / 2);
  }
}

/* A second acknowledged write behind one that fails: both are kept, in their order. */
static void
test_failed_layers (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  g_autofree char *first = filled (UNIT, 1), *second = filled (UNIT, 2);
  int held = gate_hold (s.gate, GATE_WRITE, 0, 2 * UNIT), failing;

  nbd_ok (nbd_pwrite (a, first, UNIT, 0, 0));
  gate_wait_held (s.gate, held, 1);
  nbd_ok (nbd_pwrite (a, second, 5000, 3000, 0));
  nbd_ok (nbd_pwrite (a, second + 5000, 3000, UNIT - 1000, 0));
  failing = gate_fail (s.gate, GATE_WRITE, 0, UNIT, ENOSPC, 1);
  gate_release (s.gate, held);
  gate_wait_ended (s.gate, GATE_WRITE, 0, UNIT, 1);
  memcpy (first + 3000, second, 5000);
  memcpy (first + UNIT - 1000, second + 5000, 1000);
  assert_reads (a, first, UNIT, 0);
  round_trips (a);
  assert_reads (a, first, UNIT, 0);
  (void) failing;               /* it ended by itself */
  nbd_ok (nbd_flush (a, 0));
  assert_same (server_device (&s), first, UNIT);
  assert_same (server_device (&s) + UNIT, second + 6000, 2000);
  assert_reads (a, first, UNIT, 0);
  client_close (a);
  server_stop (&s);
}

/* Failed data outlives its connection; the next one's flush writes it, or tells. */
static void
test_failed_then_disconnected (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *data = filled (UNIT, 1);
  int failing = gate_fail (s.gate, GATE_WRITE, 0, UNIT, ENOSPC, -1);
  unsigned tries;

  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  nbd_fails (nbd_flush (a, 0), ENOSPC);         /* the filter knows then, not the gate alone */
  tries = gate_ended (s.gate, GATE_WRITE, 0, UNIT);
  client_close (a);
  gate_wait_ended (s.gate, GATE_WRITE, 0, UNIT, tries + 1);     /* the last one of the connection */
  assert_reads (b, data, UNIT, 0);
  nbd_fails (nbd_flush (b, 0), ENOSPC);
  assert_reads (b, data, UNIT, 0);
  gate_release (s.gate, failing);
  nbd_ok (nbd_flush (b, 0));
  assert_same (server_device (&s), data, UNIT);
  client_close (b);
  server_stop (&s);
}

/* 3. and 6. The slab used up. */

#define SMALL "asyncpool-buffers=4 asyncpool-buffer-size=64k asyncpool-write=behind"

static void
test_slab_exhausted (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, SMALL), *b = client_connect (&s);
  g_autofree char *data = filled (6 * UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);
  struct request fifth, sixth;

  for (unsigned i = 0; i < 4; i++)
    nbd_ok (nbd_pwrite (a, data + i * UNIT, UNIT, i * UNIT, 0));
  gate_wait_held (s.gate, held, 4);
  fifth = send_write (a, data + 4 * UNIT, UNIT, 4 * UNIT, 0);
  /* Others go on. */
  round_trips (b);
  assert_reads (b, data, UNIT, 0);
  nbd_ok (nbd_zero (b, UNIT, FAR, 0));
  g_assert_false (request_is_done (&fifth));
  g_assert_cmpuint (gate_started (s.gate, GATE_WRITE, 0, FAR), ==, 4);

  gate_pass (s.gate, held, 1);
  g_assert_cmpint (request_wait (&fifth), ==, 0);
  g_assert_cmpuint (gate_ended (s.gate, GATE_WRITE, 0, FAR), ==, 1);
  sixth = send_write (a, data + 5 * UNIT, UNIT, 5 * UNIT, 0);
  round_trips (b);
  g_assert_false (request_is_done (&sixth));
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&sixth), ==, 0);
  nbd_ok (nbd_flush (b, 0));
  assert_same (server_device (&s), data, 6 * UNIT);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* Readers are served though writers have taken every buffer, and keep reading ahead from starving
 * them: the slab full of what was read ahead gives way to writes. */
static void
test_slab_shared (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, SMALL), *b = client_connect (&s);
  g_autofree char *data = filled (8 * UNIT, 1), *got = g_malloc (UNIT);
  int held;

  for (uint64_t offset = 0; offset < 8 * UNIT; offset += UNIT)
    nbd_ok (nbd_pread (b, got, UNIT, 16 * MIB + offset, 0));
  held = gate_hold (s.gate, GATE_WRITE, 0, FAR);
  for (unsigned i = 0; i < 4; i++)
    nbd_ok (nbd_pwrite (a, data + i * UNIT, UNIT, i * UNIT, 0));
  gate_wait_held (s.gate, held, 4);
  for (uint64_t offset = 8 * UNIT; offset < 16 * UNIT; offset += UNIT)
    nbd_ok (nbd_pread (b, got, UNIT, 16 * MIB + offset, 0));
  assert_reads (b, data, 4 * UNIT, 0);
  gate_release (s.gate, held);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

static void
test_slab_full_of_failed (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, SMALL), *b = client_connect (&s);
  struct nbd_handle *c = client_connect_export (&s, "other");
  g_autofree char *data = filled (6 * UNIT, 1), *other = filled (UNIT, 2);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR), failing;
  struct request fifth;

  for (unsigned i = 0; i < 4; i++)
    nbd_ok (nbd_pwrite (a, data + i * UNIT, UNIT, i * UNIT, 0));
  gate_wait_held (s.gate, held, 4);
  fifth = send_write (a, data + 4 * UNIT, UNIT, 4 * UNIT, 0);
  round_trips (b);
  g_assert_false (request_is_done (&fifth));
  failing = gate_fail (s.gate, GATE_WRITE, 0, FAR, ENOSPC, -1);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&fifth), ==, ENOSPC);

  gate_wait_ended (s.gate, GATE_WRITE, 0, 4 * UNIT, 4);
  nbd_fails (nbd_pwrite (a, other, UNIT, 5 * UNIT, 0), ENOSPC);
  nbd_fails (nbd_pwrite (b, other, 1000, 5 * UNIT, 0), ENOSPC);
  nbd_ok (nbd_pwrite (b, other, UNIT, FAR, 0));
  assert_reads (a, other, UNIT, FAR);
  assert_reads (a, data, 4 * UNIT, 0);
  for (unsigned i = 1; i < 4; i++)      /* an export of which nothing has failed */
    nbd_ok (nbd_pwrite (c, other, UNIT, FAR + i * UNIT, 0));
  for (uint64_t offset = 0; offset < 16 * UNIT; offset += UNIT)
    nbd_ok (nbd_pread (b, other, UNIT, 16 * MIB + offset, 0));
  nbd_fails (nbd_flush (a, 0), ENOSPC);
  nbd_fails (nbd_flush (b, 0), ENOSPC);
  assert_reads (b, data, 4 * UNIT, 0);
  gate_release (s.gate, failing);
  nbd_ok (nbd_flush (b, 0));
  assert_same (server_device (&s), data, 4 * UNIT);
  client_close (a);
  client_close (b);
  client_close (c);
  server_stop (&s);
}

/* 4. Order. */

static void
test_overlapping_writes (void)
{
  const uint64_t size = 4 * UNIT;
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *shadow = g_malloc0 (size);
  static const struct {
    unsigned offset, count;
    bool by_b;
  } writes[] = {
    { 0, 65536, false }, { 32768, 65536, false }, { 0, 65536, true }, { 60000, 12000, true },
    { 65536, 65536, false }, { 65000, 1000, true }, { 0, 3 * 65536, false },
  };
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);

  for (unsigned i = 0; i < G_N_ELEMENTS (writes); i++) {
    fill (shadow + writes[i].offset, writes[i].count, 10 + i);
    nbd_ok (nbd_pwrite (writes[i].by_b ? b : a, shadow + writes[i].offset, writes[i].count,
                        writes[i].offset, 0));
  }
  gate_wait_held (s.gate, held, 1);
  round_trips (a);
  g_assert_cmpuint (gate_started (s.gate, GATE_WRITE, 0, UNIT), ==, 1);
  assert_reads (b, shadow, size, 0);
  gate_pass (s.gate, held, 1);
  gate_wait_ended (s.gate, GATE_WRITE, 0, FAR, 1);
  gate_wait_held (s.gate, held, 1);
  assert_reads (a, shadow, size, 0);
  gate_release (s.gate, held);
  nbd_ok (nbd_flush (a, 0));
  assert_same (server_device (&s), shadow, size);
  assert_no_overlap (&s);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* Zero and trim come after the older write they overlap. */
static void
order_of (bool trim)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *data = filled (2 * UNIT, 1), *got = g_malloc (UNIT);
  unsigned kind = trim ? GATE_TRIM : GATE_ZERO;
  int held = gate_hold (s.gate, GATE_WRITE, 0, UNIT), held_change;
  struct request request, later;

  data[UNIT] |= 1;              /* not what a zero leaves */
  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  gate_wait_held (s.gate, held, 1);
  held_change = gate_hold (s.gate, kind, 0, UNIT);
  request = trim ? send_trim (b, UNIT / 2, UNIT / 4, 0) : send_zero (b, UNIT / 2, UNIT / 4, 0);
  round_trips (b);
  g_assert_false (request_is_done (&request));
  g_assert_cmpuint (gate_started (s.gate, kind, EVERYTHING), ==, 0);
  gate_release (s.gate, held);
  gate_wait_held (s.gate, held_change, 1);
  g_assert_cmpuint (one_op (&s, GATE_WRITE, 0, UNIT).end, <, one_op (&s, kind, 0, UNIT).start);

  /* A write that is sent meanwhile: either may win, but then for everybody. */
  later = send_write (a, data + UNIT, 1000, UNIT / 4 + 500, 0);
  round_trips (a);
  gate_release (s.gate, held_change);
  g_assert_cmpint (request_wait (&request), ==, 0);
  g_assert_cmpint (request_wait (&later), ==, 0);
  memset (data + UNIT / 4, 0, UNIT / 2);
  nbd_ok (nbd_pread (b, got, UNIT, 0, 0));
  if (got[UNIT / 4 + 500] != 0)
    memcpy (data + UNIT / 4 + 500, data + UNIT, 1000);
  assert_same (got, data, UNIT);
  nbd_ok (nbd_flush (b, 0));
  assert_same (server_device (&s), data, UNIT);
  assert_reads (a, data, UNIT, 0);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

static void
test_order_of_zero_and_trim (void)
{
  order_of (false);
  order_of (true);
}

/* A barrier is one only for what it must be. */
static void
test_far_writes_are_no_barrier (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  g_autofree char *data = filled (UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, FAR, 8 * UNIT);

  for (unsigned i = 0; i < 4; i++)
    nbd_ok (nbd_pwrite (a, data, UNIT, FAR + i * UNIT, 0));
  gate_wait_held (s.gate, held, 4);
  nbd_ok (nbd_zero (a, UNIT, 0, 0));
  nbd_ok (nbd_trim (a, UNIT, UNIT, 0));
  nbd_ok (nbd_pwrite (a, data, UNIT, 2 * UNIT, LIBNBD_CMD_FLAG_FUA));
  assert_reads (a, data, UNIT, 2 * UNIT);
  nbd_ok (nbd_cache (a, UNIT, 0, 0));
  g_assert_cmpuint (gate_held (s.gate, held), ==, 4);
  gate_release (s.gate, held);
  client_close (a);
  server_stop (&s);
}

/* 5. The end of a connection and of the server. */

static void
test_disconnect_drains (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *data = filled (3 * UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);
  struct request flush;

  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (a, data + UNIT, 5000, UNIT, 0));
  nbd_ok (nbd_pwrite (a, data + 2 * UNIT, UNIT, 2 * UNIT, 0));
  nbd_ok (nbd_aio_disconnect (a, 0));   /* sent; nbd_shutdown would wait for the server */
  gate_wait_held (s.gate, held, 3);
  /* Gone, but not forgotten. */
  assert_reads (b, data, UNIT + 5000, 0);
  flush = send_flush (b);
  round_trips (b);
  g_assert_false (request_is_done (&flush));
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&flush), ==, 0);
  assert_same (server_device (&s), data, UNIT + 5000);
  assert_same (server_device (&s) + 2 * UNIT, data + 2 * UNIT, UNIT);
  nbd_close (a);
  client_close (b);
  server_stop (&s);
}

/* The server ends while data waits. (It may or may not wait for its clients to go: on a signal
 * 1.32.5 does now the one, now the other.) */
static void
test_sigterm_drains (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *data = filled (4 * UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);

  warm_up (&s, b);
  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  nbd_ok (nbd_pwrite (b, data + UNIT, 5000, UNIT, 0));
  nbd_ok (nbd_pwrite (a, data + 2 * UNIT, UNIT, 2 * UNIT, 0));
  nbd_ok (nbd_pwrite (b, data + 3 * UNIT, 1, 3 * UNIT, 0));
  server_device (&s);
  server_terminate (&s);
  nbd_close (a);
  nbd_close (b);
  gate_wait_held (s.gate, held, 4);
  gate_release (s.gate, held);
  server_wait (&s);
  assert_same (s.device, data, UNIT + 5000);
  assert_same (s.device + 2 * UNIT, data + 2 * UNIT, UNIT + 1);
  server_free (&s);
}

/* What cannot be written by then is told, by offset and length. */
static void
test_sigterm_with_failed_data (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  g_autofree char *data = filled (UNIT, 1), *messages = NULL;

  gate_fail (s.gate, GATE_WRITE, 5 * UNIT, UNIT, ENOSPC, -1);
  nbd_ok (nbd_pwrite (a, data, UNIT, 5 * UNIT, 0));
  gate_wait_ended (s.gate, GATE_WRITE, 5 * UNIT, UNIT, 1);
  server_terminate (&s);
  nbd_close (a);
  server_wait (&s);
  messages = server_messages (&s);
  if (!strstr (messages, "327680") || !strstr (messages, "65536"))
    server_print_messages (&s);
  g_assert_nonnull (strstr (messages, "327680"));       /* offset */
  g_assert_nonnull (strstr (messages, "65536"));        /* length */
  server_free (&s);
}

/* 7. Error codes. */

static const int error_codes[] = { ENOSPC, EPERM, EIO, ENOMEM };

static void
error_codes_arrive (const char *parameters)
{
  struct server s;
  struct nbd_handle *a = start (&s, parameters);
  g_autofree char *data = filled (MIB, 1);

  for (unsigned i = 0; i < G_N_ELEMENTS (error_codes); i++) {
    int e = error_codes[i], piece = (int) (8 * MIB);

    gate_fail (s.gate, GATE_READ, 0, UNIT, e, 1);
    nbd_fails (nbd_pread (a, data, UNIT, 0, 0), e);
    gate_fail (s.gate, GATE_WRITE, 0, UNIT, e, 1);
    nbd_fails (nbd_pwrite (a, data, UNIT, 0, LIBNBD_CMD_FLAG_FUA), e);
    gate_fail (s.gate, GATE_ZERO, 0, UNIT, e, 1);
    nbd_fails (nbd_zero (a, UNIT, 0, 0), e);
    gate_fail (s.gate, GATE_TRIM, 0, UNIT, e, 1);
    nbd_fails (nbd_trim (a, UNIT, 0, 0), e);
    gate_fail (s.gate, GATE_FLUSH, EVERYTHING, e, 1);
    nbd_fails (nbd_flush (a, 0), e);
    gate_fail (s.gate, GATE_CACHE, 0, UNIT, e, 1);
    nbd_fails (nbd_cache (a, UNIT, 0, 0), e);

    /* One piece of many, every time that it is tried. */
    piece = gate_fail (s.gate, GATE_READ | GATE_WRITE, 8 * MIB + MIB / 2 + 7, 1, e, -1);
    nbd_fails (nbd_pread (a, data, MIB, 8 * MIB, 0), e);
    if (strstr (parameters, "through"))
      nbd_fails (nbd_pwrite (a, data, MIB, 8 * MIB, 0), e);
    gate_release (s.gate, piece);
    nbd_ok (nbd_pread (a, data, MIB, 8 * MIB, 0));
  }
  client_close (a);
  server_stop (&s);
}

static void
test_error_codes (void)
{
  error_codes_arrive (THROUGH);
  error_codes_arrive (THROUGH " errno_is_preserved=0");
  error_codes_arrive (BEHIND);
  error_codes_arrive (BEHIND " errno_is_preserved=0");
}

/* Which write is held back: modes. */

/* Whether a write is answered before the plugin has it. */
static bool
is_answered_early (struct server *s, struct nbd_handle *nbd, uint64_t offset)
{
  g_autofree char *data = filled (UNIT, offset);
  int held = gate_hold (s->gate, GATE_WRITE, offset, UNIT);
  struct request write = send_write (nbd, data, UNIT, offset, 0);
  bool early;

  gate_wait_held (s->gate, held, 1);
  round_trips (nbd);
  early = request_is_done (&write);
  gate_release (s->gate, held);
  g_assert_cmpint (request_wait (&write), ==, 0);
  return early;
}

static void
test_auto_mode (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, SLAB), *b = client_connect (&s);
  g_autofree char *data = filled (UNIT, 1);

  g_assert_false (is_answered_early (&s, a, 0));
  g_assert_false (is_answered_early (&s, a, UNIT));
  nbd_ok (nbd_flush (a, 0));
  g_assert_true (is_answered_early (&s, a, 2 * UNIT));
  /* Of another connection this says nothing. */
  g_assert_false (is_answered_early (&s, b, 3 * UNIT));
  nbd_ok (nbd_pwrite (b, data, UNIT, 4 * UNIT, LIBNBD_CMD_FLAG_FUA));
  g_assert_true (is_answered_early (&s, b, 5 * UNIT));
  client_close (a);
  client_close (b);
  server_stop (&s);
}

static void
test_through_mode (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, THROUGH);

  nbd_ok (nbd_flush (a, 0));
  g_assert_false (is_answered_early (&s, a, 0));
  g_assert_cmpint (nbd_can_flush (a), ==, 1);
  client_close (a);
  server_stop (&s);

  a = start (&s, THROUGH " flush=0 fua=none");
  g_assert_cmpint (nbd_can_flush (a), ==, 0);
  client_close (a);
  server_stop (&s);
}

/* Block status. */

struct status {
  uint64_t hole_at;             /* the first byte that is said to be a hole, or UINT64_MAX */
  uint64_t hole_end;            /* the end of the last hole */
};

static int
note_extents (void *user_data, const char *context, uint64_t offset, uint32_t *entries,
              size_t n, int *error)
{
  struct status *status = user_data;

  (void) context;
  (void) error;
  for (size_t i = 0; i < n; i += 2) {
    bool hole = entries[i + 1] & (LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO);

    if (hole && status->hole_at == UINT64_MAX)
      status->hole_at = offset;
    offset += entries[i];
    if (hole)
      status->hole_end = offset;
  }
  return 0;
}

static struct status
block_status (struct nbd_handle *nbd, uint64_t count, uint64_t offset)
{
  struct status status = { .hole_at = UINT64_MAX };

  nbd_ok (nbd_block_status (nbd, count, offset,
                            (nbd_extent_callback) { .callback = note_extents,
                                                    .user_data = &status }, 0));
  return status;
}

static uint64_t
first_hole (struct nbd_handle *nbd, uint64_t count, uint64_t offset)
{
  return block_status (nbd, count, offset).hole_at;
}

static void
test_block_status (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND), *b = client_connect (&s);
  g_autofree char *data = filled (UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR), failing;
  struct status status = { .hole_at = UINT64_MAX };
  struct request request;

  g_assert_cmpuint (first_hole (a, MIB, 0), ==, 0);
  nbd_ok (nbd_pwrite (a, data, UNIT, 0, 0));
  gate_wait_held (s.gate, held, 1);
  /* It may wait for the write, or know better than the plugin. */
  request = request_sent (b, nbd_aio_block_status
                          (b, MIB, 0, (nbd_extent_callback) { .callback = note_extents,
                                                              .user_data = &status },
                           NBD_NULL_COMPLETION, 0));
  round_trips (b);
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&request), ==, 0);
  g_assert_cmpuint (status.hole_at, >=, UNIT);

  failing = gate_fail (s.gate, GATE_WRITE, MIB, UNIT, ENOSPC, -1);
  nbd_ok (nbd_pwrite (a, data, UNIT, MIB, 0));
  gate_wait_ended (s.gate, GATE_WRITE, MIB, UNIT, 1);
  g_assert_cmpuint (first_hole (b, UNIT, MIB), ==, UINT64_MAX);
  g_assert_cmpuint (first_hole (b, MIB, MIB), !=, MIB);
  gate_release (s.gate, failing);
  nbd_ok (nbd_flush (b, 0));
  g_assert_cmpuint (first_hole (b, MIB, MIB), ==, MIB + UNIT);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* A plugin may say more than it was asked for; there, too, no hole where a write waits. */
static void
test_block_status_beyond (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND);
  g_autofree char *data = filled (512, 1);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);
  struct status status;

  nbd_ok (nbd_pwrite (a, data, 512, 1024, 0));
  gate_wait_held (s.gate, held, 1);
  status = block_status (a, 512, 0);
  g_assert_cmpuint (status.hole_at, ==, 0);
  g_assert_cmpuint (status.hole_end, <=, 1024);
  gate_release (s.gate, held);
  client_close (a);
  server_stop (&s);
}

/* Speed, point 3: a demand read never waits behind queued background work. */
static void
test_demand_read_first (void)
{
  const uint64_t target = 8 * UNIT;
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND " asyncpool-threads=1"), *b = client_connect (&s);
  g_autofree char *got = g_malloc (MIB);
  int held = gate_hold (s.gate, GATE_READ, target, UNIT);

  for (uint64_t offset = 0; offset + UNIT < target; offset += UNIT)
    nbd_ok (nbd_pread (a, got, UNIT, offset, 0));
  gate_wait_held (s.gate, held, 1);     /* the only worker */
  nbd_ok (nbd_pread (a, got, UNIT, target + UNIT, 0));  /* is queued behind it, perhaps */
  nbd_ok (nbd_pread (a, got, UNIT, target + 2 * UNIT, 0));
  nbd_ok (nbd_pread (b, got, UNIT, target + 3 * UNIT, 0));
  nbd_ok (nbd_pread (b, got, MIB, FAR, 0));
  nbd_ok (nbd_pread (a, got, 512, FAR + 4 * MIB, 0));
  g_assert_cmpuint (gate_held (s.gate, held), ==, 1);
  gate_release (s.gate, held);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* The same with writes in every worker. */
static void
test_demand_read_beside_writes (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND " asyncpool-threads=2"), *b = client_connect (&s);
  g_autofree char *data = filled (8 * UNIT, 1), *got = g_malloc (MIB);
  int held = gate_hold (s.gate, GATE_WRITE, 0, FAR);

  for (unsigned i = 0; i < 8; i++)
    nbd_ok (nbd_pwrite (a, data + i * UNIT, UNIT, i * UNIT, 0));
  gate_wait_held (s.gate, held, 2);
  for (unsigned i = 0; i < 32; i++)
    nbd_ok (nbd_pread (b, got, UNIT, FAR + i * UNIT, 0));
  nbd_ok (nbd_pread (b, got, MIB, FAR + 8 * MIB, 0));
  nbd_ok (nbd_pread (a, got, MIB, FAR + 9 * MIB, 0));
  assert_reads (b, data, 8 * UNIT, 0);
  gate_release (s.gate, held);
  client_close (a);
  client_close (b);
  server_stop (&s);
}

/* Sub-requests keep the plugin's block sizes; gate.so counts those that do not (server_free). */
static void
test_block_sizes (void)
{
  struct server s;
  struct nbd_handle *a = start (&s, BEHIND " minimum=4096 preferred=16k maximum=128k");
  g_autofree char *data = filled (MIB, 1);
  unsigned n;

  for (uint64_t offset = 0; offset < MIB; offset += 4096)
    nbd_ok (nbd_pwrite (a, data + offset, 4096, offset, 0));
  nbd_ok (nbd_pwrite (a, data, 5 * 4096, 3 * MIB + 4096 * 13, 0));
  nbd_ok (nbd_flush (a, 0));
  n = gate_started (s.gate, GATE_WRITE, 0, MIB);
  g_assert_cmpuint (n, <, 64);  /* 256 writes, combined */
  for (uint64_t offset = 0; offset < MIB; offset += 28 * KIB)
    nbd_ok (nbd_pread (a, data, 28 * KIB, offset, 0));
  client_close (a);
  server_stop (&s);

  /* A maximum below the buffer, and a buffer below the request. */
  a = start (&s, BEHIND " minimum=512 preferred=512 maximum=48k");
  for (uint64_t offset = 0; offset < MIB; offset += 32 * KIB)
    nbd_ok (nbd_pwrite (a, data + offset, 32 * KIB, offset, 0));
  nbd_ok (nbd_flush (a, 0));
  for (uint64_t offset = 0; offset < MIB; offset += 32 * KIB)
    assert_reads (a, data + offset, 32 * KIB, offset);
  client_close (a);
  server_stop (&s);
}

/* Or what runs over async-gate.so would show nothing that gate.so does not. */
static void
test_who_works (void)
{
  const bool is_hooked = HOOKED && !g_getenv ("FILTER");
  struct server s;
  struct nbd_handle *nbd;

  alarm (CASE_SECONDS);
  server_start (&s, "-v", BEHIND);
  nbd = client_connect (&s);
  assert_messages (&s, "async hooks do the work of: reads writes", is_hooked);
  client_close (nbd);
  server_stop (&s);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);

  g_test_add_func ("/safety/who-works", test_who_works);
  g_test_add_func ("/safety/flush/waits", test_flush_waits);
  g_test_add_func ("/safety/flush/waits-partial", test_flush_waits_partial);
  g_test_add_func ("/safety/flush/covers-other-connections", test_flush_covers_others);
  g_test_add_func ("/safety/flush/plugin-without-flush", test_flush_without_plugins);
  g_test_add_func ("/safety/flush/of-the-plugin", test_flush_of_plugin);
  g_test_add_func ("/safety/flush/ends-among-writers", test_flush_ends_among_writers);
  g_test_add_func ("/safety/fua/waits", test_fua);
  g_test_add_func ("/safety/fua/over-waiting-data", test_fua_over_waiting);
  g_test_add_func ("/safety/read/waiting-data", test_read_waiting);
  g_test_add_data_func ("/safety/read/stale", GINT_TO_POINTER (0), test_stale);
  g_test_add_data_func ("/safety/read/stale-in-flight", GINT_TO_POINTER (1), test_stale);
  g_test_add_func ("/safety/read/stale-while-waited-for", test_stale_while_waited_for);
  g_test_add_func ("/safety/read/failed-read-ahead", test_failed_read_ahead);
  g_test_add_func ("/safety/read/export-names", test_export_names);
  g_test_add_func ("/safety/failed/write", test_failed_write);
  g_test_add_func ("/safety/failed/overwritten", test_over_failed);
  g_test_add_func ("/safety/failed/layers", test_failed_layers);
  g_test_add_func ("/safety/failed/disconnected", test_failed_then_disconnected);
  g_test_add_func ("/safety/slab/exhausted", test_slab_exhausted);
  g_test_add_func ("/safety/slab/shared", test_slab_shared);
  g_test_add_func ("/safety/slab/full-of-failed-data", test_slab_full_of_failed);
  g_test_add_func ("/safety/order/overlapping-writes", test_overlapping_writes);
  g_test_add_func ("/safety/order/zero-and-trim", test_order_of_zero_and_trim);
  g_test_add_func ("/safety/order/far-writes-are-no-barrier", test_far_writes_are_no_barrier);
  g_test_add_func ("/safety/end/disconnect", test_disconnect_drains);
  g_test_add_func ("/safety/end/sigterm", test_sigterm_drains);
  g_test_add_func ("/safety/end/sigterm-with-failed-data", test_sigterm_with_failed_data);
  g_test_add_func ("/safety/errors/codes", test_error_codes);
  g_test_add_func ("/safety/mode/auto", test_auto_mode);
  g_test_add_func ("/safety/mode/through", test_through_mode);
  g_test_add_func ("/safety/block-status", test_block_status);
  g_test_add_func ("/safety/block-status-beyond", test_block_status_beyond);
  g_test_add_func ("/safety/block-sizes", test_block_sizes);
  g_test_add_func ("/safety/demand-read/before-read-ahead", test_demand_read_first);
  g_test_add_func ("/safety/demand-read/beside-writes", test_demand_read_beside_writes);
  return g_test_run ();
}
