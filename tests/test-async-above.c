/* SPDX-License-Identifier: BSD-3-Clause
 *
 * asyncpool over a plugin whose replies are wrong, late or missing.  The gate
 * tells async-gate.so how to reply.  test-async has the same without asyncpool.
 */
#define GATE_MODULE "tests/async-gate.so"
#include "client.h"

#include "async-gate.h"

#define BEHIND "asyncpool-buffers=16 asyncpool-buffer-size=64k " \
  "asyncpool-write=behind "
#define BUFFERS 16
#define UNITS 24                /* more than there are buffers */
#define NOT_WRITTEN "could not be written"
#define NOT_WRITTEN_AT_CLOSE "offset 131072, length 65536, " NOT_WRITTEN \
  " before its connection ended"
#define NOT_WRITTEN_AT_ALL "offset 131072, length 65536, " NOT_WRITTEN \
  " and is lost"

/* Starts over async-gate.so, whose operations are slow enough for the filter to
 * dispatch them.
 */
static struct nbd_handle *
start (struct server *s, const char *parameters)
{
  g_autofree char *all = g_strconcat (BEHIND, parameters, NULL);
  g_autofree char *data = g_malloc0 (UNIT);
  const char *message = "async hooks do the work of: reads writes";
  struct nbd_handle *nbd;

  alarm (CASE_SECONDS);
  server_start_with (s, "-v", NULL, NULL, all);
  nbd = client_connect (s);
  nbd_ok (nbd_pwrite (nbd, data, UNIT, 60 * MIB, 0));
  nbd_ok (nbd_pread (nbd, data, UNIT, 60 * MIB, 0));
  gate_forget (s->gate);
  if (strstr (parameters, "cancel=0"))
    message = "thread pool does the work: the plugin has no async_cancel";
  g_assert_cmpuint (count_messages (s, message), ==, 1);
  return nbd;
}

static void
write_units (struct nbd_handle *nbd, const char *data, unsigned n,
             uint64_t offset)
{
  for (unsigned i = 0; i < n; i++)
    nbd_ok (nbd_pwrite (nbd, data + i * UNIT, UNIT, offset + i * UNIT, 0));
}

/* Reads one unit at a time, which is a stream. */
static void
read_units (struct nbd_handle *nbd, const char *data, unsigned n,
            uint64_t offset)
{
  for (unsigned i = 0; i < n; i++)
    assert_reads (nbd, data + i * UNIT, UNIT, offset + i * UNIT);
}

/* The data is right, also with second replies and replies to other requests. */
static void
strange_replies (const char *parameters, int command, const char *message)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters);
  g_autofree char *data = filled (UNITS * UNIT, command);
  int rule = -1;

  if (command)
    rule = gate_fail (s.gate, GATE_READ | GATE_WRITE, ANYWHERE, command, -1);
  write_units (nbd, data, UNITS, 0);
  nbd_ok (nbd_flush (nbd, 0));
  assert_same (server_device (&s), data, UNITS * UNIT);
  read_units (nbd, data, UNITS, 0);
  nbd_ok (nbd_pwrite (nbd, data, UNITS * UNIT, 8 * MIB, 0));
  assert_reads (nbd, data, UNITS * UNIT, 8 * MIB);
  if (command)
    gate_release (s.gate, rule);
  client_close (nbd);
  server_terminate (&s);
  server_wait (&s);
  if (message)
    g_assert_cmpuint (count_messages (&s, message), >, 0);
  else
    g_assert_cmpuint (count_messages (&s, ": error: async:"), ==, 0);
  server_free (&s);
}

static void
test_replies (void)
{
  static const char *const parameters[] = {
    "", "reads=reply", "in=hook", "in=hook reads=reply", "cancel=0"
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (parameters); i++) {
    strange_replies (parameters[i], 0, NULL);
    strange_replies (parameters[i], ASYNC_TWICE, UNKNOWN);
    strange_replies (parameters[i], ASYNC_RACE, UNKNOWN);
    strange_replies (parameters[i], ASYNC_UNKNOWN, UNKNOWN);
    strange_replies (parameters[i], ASYNC_FOREIGN, UNKNOWN);
  }
}

/* A flush returns the error of a deferred write.  A prefetch has no error. */
static void
errors_arrive (const char *parameters)
{
  static const int codes[] = { ENOSPC, EPERM, EIO, EINVAL, ENOMEM, ESHUTDOWN };
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters);
  g_autofree char *data = filled (4 * UNIT, 1);

  for (unsigned i = 0; i < G_N_ELEMENTS (codes); i++) {
    uint64_t at = i * MIB;
    int rule = gate_fail (s.gate, GATE_WRITE, at, MIB, codes[i], -1);

    nbd_ok (nbd_pwrite (nbd, data, UNIT, at, 0));
    nbd_fails (nbd_flush (nbd, 0), codes[i]);
    nbd_fails (nbd_pwrite (nbd, data, UNIT, at + 2 * UNIT, 0), codes[i]);
    nbd_fails (nbd_pwrite (nbd, data, 4 * UNIT, at + 4 * UNIT, 0), codes[i]);
    assert_reads (nbd, data, UNIT, at);
    gate_release (s.gate, rule);
    nbd_ok (nbd_flush (nbd, 0));
    assert_same (server_device (&s) + at, data, UNIT);

    rule = gate_fail (s.gate, GATE_READ, at + 8 * UNIT, 4 * UNIT, codes[i], -1);
    nbd_fails (nbd_pread (nbd, data, UNIT, at + 10 * UNIT, 0), codes[i]);
    nbd_fails (nbd_pread (nbd, data, 4 * UNIT, at + 6 * UNIT, 0), codes[i]);
    gate_release (s.gate, rule);
    nbd_ok (nbd_pread (nbd, data, 4 * UNIT, at + 8 * UNIT, 0));
    fill (data, 4 * UNIT, 1);
  }
  client_close (nbd);
  server_stop (&s);
}

static void
test_errors (void)
{
  errors_arrive ("");
  errors_arrive ("errors=set");
  errors_arrive ("errors=kept in=hook return=1");
  errors_arrive ("errors=set cancel=0");
}

/* A prefetch fails or gets wrong data.  The client's own read gets the right
 * data, also a read that waits for this prefetch.
 */
static void
ahead_fails (struct server *s, struct nbd_handle *nbd, int command,
             bool is_waited_for, uint64_t at)
{
  g_autofree char *data = filled (UNITS * UNIT, command + is_waited_for);
  g_autofree char *got = g_malloc0 (UNIT);
  struct request read;
  int held = -1;

  write_units (nbd, data, UNITS, at);
  nbd_ok (nbd_flush (nbd, 0));
  gate_fail (s->gate, GATE_READ, at + 3 * UNIT, UNIT, command, 1);
  if (is_waited_for)
    held = gate_hold (s->gate, GATE_READ, at + 3 * UNIT, UNIT);
  read_units (nbd, data, 2, at);
  if (is_waited_for) {
    gate_wait_held (s->gate, held, 1);
    read = send_read (nbd, got, UNIT, at + 3 * UNIT);
    round_trips (nbd);
    gate_release (s->gate, held);
    g_assert_cmpint (request_wait (&read), ==, 0);
    assert_same (got, data + 3 * UNIT, UNIT);
  }
  gate_wait_ended (s->gate, GATE_READ, at + 3 * UNIT, UNIT, 1);
  read_units (nbd, data + 2 * UNIT, UNITS - 2, at + 2 * UNIT);
}

static void
test_ahead_fails (void)
{
  static const int commands[] = { ENOSPC, ASYNC_SHORT, ASYNC_LONG, ASYNC_NULL };
  struct server s;
  /* With reads=reply, a wrong reply leaves the buffer unfilled.  A limit that
   * adapts may leave no room for a prefetch behind the first two reads.
   */
  struct nbd_handle *nbd = start (&s, "reads=reply asyncpool-buffers=256");

  for (unsigned i = 0; i < 2 * G_N_ELEMENTS (commands); i++)
    ahead_fails (&s, nbd, commands[i / 2], i % 2, i * 4 * MIB);
  client_close (nbd);
  server_stop (&s);
}

/* Missing replies. */

enum missing {
  AHEAD,                        /* a prefetch */
  WAITED_FOR,                   /* a prefetch, and a read waits for it */
  BEHIND_WRITE,                 /* a deferred write */
  FLUSHED,                      /* a deferred write, and a flush waits for it */
  LARGE_READ, LARGE_WRITE,      /* a part of a large request */
  MISSING
};

/* Starts an operation whose reply is missing. */
static void
begin_missing (struct server *s, struct nbd_handle *nbd, enum missing what,
               char *buf)
{
  bool is_read = what == AHEAD || what == WAITED_FOR || what == LARGE_READ;
  unsigned kind = is_read ? GATE_READ : GATE_WRITE;

  gate_fail (s->gate, kind, 2 * UNIT, 6 * UNIT, ASYNC_NEVER, -1);
  switch (what) {
  case AHEAD: case WAITED_FOR:
    nbd_ok (nbd_pread (nbd, buf, UNIT, 0, 0));
    nbd_ok (nbd_pread (nbd, buf, UNIT, UNIT, 0));
    gate_wait_ended (s->gate, GATE_READ, 2 * UNIT, UNIT, 1);
    if (what == WAITED_FOR)
      send_read (nbd, buf, UNIT, 2 * UNIT);
    break;
  case BEHIND_WRITE: case FLUSHED:
    nbd_ok (nbd_pwrite (nbd, buf, UNIT, 2 * UNIT, 0));
    gate_wait_ended (s->gate, GATE_WRITE, 2 * UNIT, UNIT, 1);
    if (what == FLUSHED)
      send_flush (nbd);
    break;
  case LARGE_READ:
    send_read (nbd, buf, 8 * UNIT, 0);
    gate_wait_ended (s->gate, GATE_READ, 2 * UNIT, UNIT, 1);
    break;
  case LARGE_WRITE:
    send_write (nbd, buf, 8 * UNIT, 0, 0);
    while (gate_started (s->gate, GATE_WRITE, 2 * UNIT, UNIT) == 0)
      nbd_ok (nbd_poll (nbd, 10));      /* sends the rest of the request */
    break;
  case MISSING:
    g_assert_not_reached ();
  }
}

/* The client goes or the server ends.  Both take a bounded time, and disturb no
 * other client.
 */
static void
missing_reply (enum missing what, const char *parameters, bool on_sigterm)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters), *other;
  g_autofree char *buf = filled (8 * UNIT, 1), *data = filled (UNITS * UNIT, 2);
  bool is_deferred = what == BEHIND_WRITE || what == FLUSHED;

  begin_missing (&s, nbd, what, buf);
  if (on_sigterm) {             /* nbdkit still waits for idle clients to go */
    server_terminate (&s);
    client_leave (nbd);
    server_wait (&s);
  }
  else {
    client_leave (nbd);
    other = client_connect (&s);
    do {
      write_units (other, data, UNITS, 8 * MIB);
      read_units (other, data, UNITS, 8 * MIB);
    } while (count_messages (&s, GIVEN_UP) == 0);
    gate_release_all (s.gate);
    nbd_ok (nbd_flush (other, 0));
    assert_same (server_device (&s) + 8 * MIB, data, UNITS * UNIT);
    /* The acknowledged write stays, and the other connection's flush writes it.
     */
    if (is_deferred) {
      assert_reads (other, buf, UNIT, 2 * UNIT);
      assert_same (server_device (&s) + 2 * UNIT, buf, UNIT);
    }
    client_close (other);
    server_terminate (&s);
    server_wait (&s);
  }
  g_assert_cmpuint (count_messages (&s, GIVEN_UP), >, 0);
  /* Another client's flush may write it before the connection ends. */
  if (is_deferred && on_sigterm) {
    g_assert_cmpuint (count_messages (&s, NOT_WRITTEN_AT_CLOSE), ==, 0);
    g_assert_cmpuint (count_messages (&s, NOT_WRITTEN_AT_ALL), ==, 1);
  }
  if (!is_deferred)
    g_assert_cmpuint (count_messages (&s, NOT_WRITTEN), ==, 0);
  server_free (&s);
}

static void
test_missing (gconstpointer what)
{
  /* Only with write-through does a large write wait for its parts. */
  const char *through = GPOINTER_TO_UINT (what) == LARGE_WRITE
    ? "asyncpool-write=through" : "";
  g_autofree char *cancels = g_strconcat ("grace=50 ", through, NULL);
  g_autofree char *cannot = g_strconcat ("grace=50 cancel=0 ", through, NULL);

  missing_reply (GPOINTER_TO_UINT (what), cancels, false);
  missing_reply (GPOINTER_TO_UINT (what), cancels, true);
  /* On the filter's own threads nbdkit reports only a shutdown. */
  missing_reply (GPOINTER_TO_UINT (what), cannot, true);
}

/* The filter gives up prefetch, and uses the buffers for deferred writes.  Then
 * the late replies come.  They are ignored, and free none of these buffers.
 */
static void
test_late (void)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, "grace=50"), *other;
  g_autofree char *old = filled (16 * UNIT, 1);
  g_autofree char *data = filled (UNITS * UNIT, 2);
  g_autofree char *new = filled (UNITS * UNIT, 3);
  const uint64_t rest = BUFFERS * UNIT;
  struct request one_more;
  int held, writing;
  unsigned late;

  write_units (nbd, old, 16, 0);
  nbd_ok (nbd_flush (nbd, 0));
  held = gate_hold (s.gate, GATE_READ, 2 * UNIT, 14 * UNIT);
  nbd_ok (nbd_pread (nbd, old, UNIT, 0, 0));
  nbd_ok (nbd_pread (nbd, old + UNIT, UNIT, UNIT, 0));
  gate_wait_held (s.gate, held, 1);
  client_leave (nbd);
  other = client_connect (&s);
  while (count_messages (&s, GIVEN_UP) == 0)
    write_units (other, data, UNITS, 8 * MIB);
  nbd_ok (nbd_flush (other, 0));
  writing = gate_hold (s.gate, GATE_WRITE, ANYWHERE);
  write_units (other, new, BUFFERS, 8 * MIB);
  gate_wait_held (s.gate, writing, BUFFERS);
  one_more = send_write (other, new + rest, UNIT, 8 * MIB + rest, 0);
  late = gate_held (s.gate, held);
  gate_release (s.gate, held);
  gate_wait_ended (s.gate, GATE_READ, 2 * UNIT, 14 * UNIT, late);
  round_trips (other);
  g_assert_false (request_is_done (&one_more));
  gate_release (s.gate, writing);
  g_assert_cmpint (request_wait (&one_more), ==, 0);
  write_units (other, new + rest, UNITS - BUFFERS, 8 * MIB + rest);
  read_units (other, new, UNITS, 8 * MIB);
  nbd_ok (nbd_flush (other, 0));
  assert_same (server_device (&s) + 8 * MIB, new, UNITS * UNIT);
  read_units (other, old, 16, 0);
  client_close (other);
  server_terminate (&s);
  server_wait (&s);
  g_assert_cmpuint (count_messages (&s, UNKNOWN), ==, 0);
  server_free (&s);
}

int
main (int argc, char **argv)
{
  static const char *const names[MISSING] = {
    "ahead", "waited-for", "behind", "flushed", "large-read", "large-write"
  };

  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/above/replies", test_replies);
  g_test_add_func ("/above/errors", test_errors);
  g_test_add_func ("/above/ahead-fails", test_ahead_fails);
  for (unsigned i = 0; i < MISSING; i++) {
    g_autofree char *path = g_strdup_printf ("/above/missing/%s", names[i]);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_missing);
  }
  g_test_add_func ("/above/late", test_late);
  return g_test_run ();
}
