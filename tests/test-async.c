/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Plugins with async hooks as a client sees them, without asyncpool: nbdkit's
 * own threads wait for the replies.  The gate tells async-gate.so how and when
 * to reply.  test-async-above has the same with asyncpool.
 */
#include "client.h"

#include "async-gate.h"

#define N 12                    /* requests in flight, of nbdkit's 16 */

/* PLUGIN NULL: async-gate.so, without the hooks and callbacks in WITHOUT. */
static struct nbd_handle *
start_with (struct server *s, const char *plugin, const char *without,
            const char *parameters)
{
  g_autoptr (GPtrArray) arguments = g_ptr_array_new_with_free_func (g_free);
  const char *nbdkit = g_getenv ("NBDKIT");
  const char *file = plugin ? plugin : "tests/async-gate.so";

  alarm (CASE_SECONDS);
  server_init (s);
  g_setenv ("ASYNC_GATE_WITHOUT", without ? without : "", TRUE);
  g_ptr_array_add (arguments, g_strdup (nbdkit ? nbdkit : "nbdkit"));
  add_words (arguments, "-f --exit-with-parent");
  if (g_getenv ("TEST_VERBOSE"))
    add_words (arguments, "-v");
  g_ptr_array_add (arguments, client_module ("ASYNC_PLUGIN", file));
  if (!plugin) {
    g_ptr_array_add (arguments, g_strdup_printf ("gate=%s", s->gate_path));
    g_ptr_array_add (arguments, g_strdup_printf ("device=%s", s->device_path));
  }
  add_words (arguments, parameters);
  g_ptr_array_add (arguments, NULL);
  server_exec (s, (char *const *) arguments->pdata);
  return client_connect (s);
}

static struct nbd_handle *
start (struct server *s, const char *parameters)
{
  return start_with (s, NULL, NULL, parameters);
}

static void
stop (struct server *s, struct nbd_handle *nbd)
{
  client_close (nbd);
  server_stop (s);
}

/* Hooks did all operations in the log, or callbacks did. */
static void
assert_by_hook (struct server *s, unsigned kinds, bool by_hook)
{
  unsigned n = gate_started (s->gate, kinds, ANYWHERE);

  g_assert_cmpuint (n, >, 0);
  for (unsigned i = 0; i < n; i++)
    g_assert_cmpint (gate_op (s->gate, kinds, ANYWHERE, i).is_hooked,
                     ==, by_hook);
}

/* Replies. */

/* libnbd sends the rest of a large request only when it is called again. */
static void
wait_sent_and_held (struct server *s, struct nbd_handle *nbd, int rule)
{
  while (gate_held (s->gate, rule) == 0)
    nbd_ok (nbd_poll (nbd, 10));
}

/* Holds each request, and releases them in another order. */
static void
replies_in_any_order (const char *parameters)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters);
  g_autofree char *data = filled (N * UNIT, 1), *got = g_malloc0 (N * UNIT);
  struct request requests[N];
  int held[N];

  for (int round = 0; round < 2; round++) {
    gate_forget (s.gate);
    for (unsigned i = 0; i < N; i++) {
      held[i] = gate_hold (s.gate, GATE_ANY, i * UNIT, UNIT);
      requests[i] = round == 0
        ? send_write (nbd, data + i * UNIT, UNIT, i * UNIT, 0)
        : send_read (nbd, got + i * UNIT, UNIT, i * UNIT);
    }
    for (unsigned i = 0; i < N; i++)
      wait_sent_and_held (&s, nbd, held[i]);
    for (unsigned i = 0; i < N; i++) {
      unsigned k = (i * 5 + 7) % N;

      round_trips (nbd);
      g_assert_false (request_is_done (&requests[k]));
      gate_release (s.gate, held[k]);
      g_assert_cmpint (request_wait (&requests[k]), ==, 0);
    }
    assert_by_hook (&s, round == 0 ? GATE_WRITE : GATE_READ, true);
  }
  assert_same (got, data, N * UNIT);
  assert_same (server_device (&s), data, N * UNIT);
  assert_messages (&s, "async:", 0);
  stop (&s, nbd);
}

static void
test_any_order (void)
{
  replies_in_any_order ("delay=0");
  replies_in_any_order ("delay=0 reads=reply");
  replies_in_any_order ("delay=0 cancel=0");
  replies_in_any_order ("delay=0 cancel=0 reads=reply");
}

/* Many requests on two connections; the plugin's 32 threads reply. */
static void
replies_of_many (const char *plugin, const char *parameters)
{
  const unsigned rounds = client_is_slow () ? 20 : 200;
  struct server s;
  struct nbd_handle *nbd[2] = { start_with (&s, plugin, NULL, parameters) };
  g_autofree char *shadow = g_malloc0 (2 * N * UNIT);
  g_autofree char *got = g_malloc (2 * N * UNIT);
  struct request requests[2 * N];

  nbd[1] = client_connect (&s);
  for (unsigned round = 0; round < rounds; round++) {
    bool is_write = round % 2 == 0;

    for (unsigned i = 0; i < 2 * N; i++) {
      uint64_t at = i * UNIT;
      uint64_t count = is_write ? 1 + (round * 7919 + i * 31) % UNIT : UNIT;

      if (is_write)
        fill (shadow + at, count, round * 100 + i);
      requests[i] = is_write
        ? send_write (nbd[i % 2], shadow + at, count, at, 0)
        : send_read (nbd[i % 2], got + at, count, at);
    }
    for (unsigned i = 0; i < 2 * N; i++)
      g_assert_cmpint (request_wait (&requests[i]), ==, 0);
    if (!is_write)
      assert_same (got, shadow, 2 * N * UNIT);
  }
  assert_messages (&s, "async:", 0);
  client_close (nbd[1]);
  stop (&s, nbd[0]);
}

static void
test_many (void)
{
  replies_of_many (NULL, "delay=0");
  replies_of_many (NULL, "delay=0 reads=reply cancel=0");
  replies_of_many (NULL, "delay=0 in=hook");
  replies_of_many (NULL, "delay=0 in=hook reads=reply");
  replies_of_many (NULL, "delay=0 in=hook cancel=0");
}

static void
test_documented_plugins (void)
{
  replies_of_many ("tests/async-example.so", NULL);
  replies_of_many ("tests/async-cxx.so", NULL);
}

/* The plugin has only the hooks that its header knew. */
static void
test_older_header (void)
{
  struct server s;
  struct nbd_handle *nbd = start_with (&s, "tests/async-old.so", NULL, NULL);

  g_assert_cmpint (nbd_can_flush (nbd), ==, 0);
  g_assert_cmpint (nbd_can_trim (nbd), ==, 0);
  stop (&s, nbd);
  replies_of_many ("tests/async-old.so", NULL);
}

/* The library reports and ignores a second reply, or one to an unknown request.
 */
static void
reply_too_many (const char *parameters, int command, unsigned messages)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters);
  g_autofree char *data = filled (UNIT, command);

  for (unsigned i = 0; i < 3; i++) {
    gate_fail (s.gate, GATE_WRITE, 0, UNIT, command, 1);
    nbd_ok (nbd_pwrite (nbd, data, UNIT, 0, 0));
    gate_fail (s.gate, GATE_READ, 0, UNIT, command, 1);
    assert_reads (nbd, data, UNIT, 0);
    gate_fail (s.gate, GATE_FLUSH, ANYWHERE, command, 1);
    nbd_ok (nbd_flush (nbd, 0));
  }
  round_trips (nbd);
  client_close (nbd);
  gate_release_all (s.gate);
  server_terminate (&s);
  server_wait (&s);
  assert_messages (&s, UNKNOWN, 9 * messages);
  server_free (&s);
}

static void
test_too_many (void)
{
  static const char *const parameters[] = {
    "delay=0", "delay=0 reads=reply", "delay=0 in=hook",
    "delay=0 cancel=0 reads=reply"
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (parameters); i++) {
    reply_too_many (parameters[i], ASYNC_TWICE, 1);
    reply_too_many (parameters[i], ASYNC_RACE, 1);
    reply_too_many (parameters[i], ASYNC_UNKNOWN, 5);
    reply_too_many (parameters[i], ASYNC_FOREIGN, 1);
  }
}

/* nbdkit_async_reply_read with a wrong length, or for a write or flush. */
static void
wrong_replies (const char *parameters)
{
  const unsigned kinds = GATE_READ | GATE_WRITE | GATE_FLUSH;
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters);
  g_autofree char *data = filled (UNIT, 1);

  nbd_ok (nbd_pwrite (nbd, data, UNIT, 0, 0));
  for (int command = ASYNC_SHORT; command <= ASYNC_NULL; command++) {
    gate_fail (s.gate, kinds, 0, UNIT, command, 3);
    nbd_fails (nbd_pread (nbd, data, UNIT, 0, 0), EIO);
    nbd_fails (nbd_pwrite (nbd, data, UNIT, 0, 0), EIO);
    nbd_fails (nbd_flush (nbd, 0), EIO);
  }
  gate_fail (s.gate, kinds, 0, UNIT, ASYNC_DATA, 3);
  nbd_ok (nbd_pread (nbd, data, UNIT, 0, 0));
  nbd_fails (nbd_pwrite (nbd, data, UNIT, 0, 0), EIO);
  nbd_fails (nbd_flush (nbd, 0), EIO);
  assert_messages (&s, "nbdkit_async_reply_read", 11);
  gate_fail (s.gate, GATE_READ, 0, UNIT, ASYNC_NO_ERROR, 1);
  nbd_fails (nbd_pread (nbd, data, UNIT, 0, 0), EIO);
  assert_messages (&s, "0 is not an error", 1);
  nbd_ok (nbd_pread (nbd, data, UNIT, 0, 0));
  stop (&s, nbd);
}

static void
test_wrong_replies (void)
{
  wrong_replies ("delay=0");
  wrong_replies ("delay=0 in=hook cancel=0");
}

/* Errors. */

static void
errors_arrive (const char *without, const char *parameters)
{
  static const int codes[] = { ENOSPC, EPERM, EIO, EINVAL, ENOMEM, ESHUTDOWN };
  struct server s;
  struct nbd_handle *nbd = start_with (&s, NULL, without, parameters);
  g_autofree char *data = filled (UNIT, 1);

  for (unsigned i = 0; i < G_N_ELEMENTS (codes); i++) {
    gate_fail (s.gate, GATE_ANY, 0, UNIT, codes[i], 6);
    nbd_fails (nbd_pread (nbd, data, UNIT, 0, 0), codes[i]);
    nbd_fails (nbd_pwrite (nbd, data, UNIT, 0, 0), codes[i]);
    nbd_fails (nbd_flush (nbd, 0), codes[i]);
    nbd_fails (nbd_zero (nbd, UNIT, 0, 0), codes[i]);
    nbd_fails (nbd_trim (nbd, UNIT, 0, 0), codes[i]);
    nbd_fails (nbd_cache (nbd, UNIT, 0, 0), codes[i]);
    nbd_ok (nbd_pread (nbd, data, UNIT, 0, 0));
  }
  gate_fail (s.gate, GATE_ZERO, 0, UNIT, EOPNOTSUPP, 1);
  nbd_fails (nbd_zero (nbd, UNIT, 0, LIBNBD_CMD_FLAG_FAST_ZERO), EOPNOTSUPP);
  /* Without the flag nbdkit writes zeroes instead. */
  gate_fail (s.gate, GATE_ZERO, 0, UNIT, EOPNOTSUPP, 1);
  nbd_ok (nbd_zero (nbd, UNIT, 0, 0));
  assert_messages (&s, "async:", 0);
  stop (&s, nbd);
}

static void
test_errors (void)
{
  errors_arrive (NULL, "delay=0 errors=errno");
  errors_arrive (NULL, "delay=0 errors=errno in=hook");
  errors_arrive (NULL, "delay=0 errors=set");
  errors_arrive (NULL, "delay=0 errors=set cancel=0");
  errors_arrive (NULL, "delay=0 errors=kept");
  errors_arrive (NULL, "delay=0 errors=set in=hook return=1");
  errors_arrive (NULL, "delay=0 errors=kept in=hook return=1");
  errors_arrive ("errno", "delay=0 errors=errno");
  errors_arrive ("errno", "delay=0 errors=set");
  errors_arrive ("errno", "delay=0 errors=set in=hook return=1");
}

/* The error is EIO if the plugin set none, or set it in a way that does not
 * count.
 */
static void
is_eio (const char *without, const char *parameters)
{
  struct server s;
  struct nbd_handle *nbd = start_with (&s, NULL, without, parameters);
  char sector[512] = { 0 };

  gate_fail (s.gate, GATE_READ | GATE_WRITE, ANYWHERE, ENOSPC, 2);
  nbd_fails (nbd_pread (nbd, sector, sizeof sector, 0, 0), EIO);
  nbd_fails (nbd_pwrite (nbd, sector, sizeof sector, 0, 0), EIO);
  nbd_ok (nbd_pwrite (nbd, sector, sizeof sector, 0, 0));
  stop (&s, nbd);
}

static void
test_errors_unsaid (void)
{
  struct server s;
  struct nbd_handle *nbd;
  char sector[512] = { 0 };

  is_eio (NULL, "delay=0 errors=none");
  is_eio (NULL, "delay=0 errors=none in=hook return=1");
  is_eio ("errno", "delay=0 errors=kept");
  is_eio ("errno", "delay=0 errors=kept in=hook return=1");

  /* An error is for one reply. */
  nbd = start (&s, "delay=0 errors=set threads=1");
  gate_fail (s.gate, GATE_WRITE, ANYWHERE, ENOSPC, 1);
  nbd_fails (nbd_pwrite (nbd, sector, sizeof sector, 0, 0), ENOSPC);
  gate_fail (s.gate, GATE_WRITE, ANYWHERE, ASYNC_UNSAID, 1);
  nbd_fails (nbd_pwrite (nbd, sector, sizeof sector, 0, 0), EIO);
  stop (&s, nbd);
}

/* A hook replies and then fails. */
static void
test_error_after_reply (void)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, "delay=0 in=hook");
  char sector[512] = { 0 };

  gate_fail (s.gate, GATE_WRITE, ANYWHERE, ASYNC_RETURN_TOO, 1);
  nbd_ok (nbd_pwrite (nbd, sector, sizeof sector, 512, 0));
  assert_messages (&s, "write, offset 512, length 512, failed after the reply",
                   1);
  nbd_ok (nbd_pwrite (nbd, sector, sizeof sector, 0, 0));
  stop (&s, nbd);
}

/* Hooks and callbacks. */

static void
one_of_each (struct nbd_handle *nbd)
{
  g_autofree char *data = filled (UNIT, 3);

  nbd_ok (nbd_pwrite (nbd, data, UNIT, UNIT, 0));
  nbd_ok (nbd_pwrite (nbd, data, UNIT, 0, LIBNBD_CMD_FLAG_FUA));
  assert_reads (nbd, data, UNIT, 0);
  nbd_ok (nbd_flush (nbd, 0));
  nbd_ok (nbd_zero (nbd, 4096, 0,
                    LIBNBD_CMD_FLAG_FUA | LIBNBD_CMD_FLAG_NO_HOLE));
  nbd_ok (nbd_trim (nbd, 4096, 8192, LIBNBD_CMD_FLAG_FUA));
  nbd_ok (nbd_cache (nbd, UNIT, 0, 0));
  memset (data, 0, 4096);
  memset (data + 8192, 0, 4096);
  assert_reads (nbd, data, UNIT, 0);
}

static void
test_hooks (void)
{
  const unsigned fua = 2;       /* NBDKIT_FLAG_FUA */
  struct server s;
  struct nbd_handle *nbd = start (&s, "delay=0");
  struct gate_op ops[6];

  one_of_each (nbd);
  assert_by_hook (&s, GATE_ANY & ~GATE_EXTENTS, true);
  g_assert_cmpuint (gate_started (s.gate, GATE_ANY & ~GATE_READ, ANYWHERE),
                    ==, G_N_ELEMENTS (ops));
  for (unsigned i = 0; i < G_N_ELEMENTS (ops); i++)
    ops[i] = gate_op (s.gate, GATE_ANY & ~GATE_READ, ANYWHERE, i);
  g_assert_cmpuint (ops[0].kind, ==, GATE_WRITE);
  g_assert_cmpuint (ops[0].flags & fua, ==, 0);
  g_assert_cmpuint (ops[1].kind, ==, GATE_WRITE);
  g_assert_cmpuint (ops[1].flags & fua, ==, fua);
  g_assert_cmpuint (ops[2].kind, ==, GATE_FLUSH);
  g_assert_cmpuint (ops[3].kind, ==, GATE_ZERO);
  g_assert_cmpuint (ops[3].flags & 7, ==, fua); /* not MAY_TRIM */
  g_assert_cmpuint (ops[4].kind, ==, GATE_TRIM);
  g_assert_cmpuint (ops[4].flags & fua, ==, fua);
  g_assert_cmpuint (ops[5].kind, ==, GATE_CACHE);
  stop (&s, nbd);
}

/* Without a hook, the callback does the operation. */
static void
test_callbacks (void)
{
  static const struct {
    const char *hook;
    unsigned kind;
  } hooks[] = {
    { "async_pread", GATE_READ }, { "async_pwrite", GATE_WRITE },
    { "async_flush", GATE_FLUSH }, { "async_zero", GATE_ZERO },
    { "async_trim", GATE_TRIM }, { "async_cache", GATE_CACHE },
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (hooks); i++) {
    char sector[512] = { 0 };
    struct server s;
    /* The callbacks set errors by nbdkit_set_error, which is the library's. */
    struct nbd_handle *nbd =
      start_with (&s, NULL, hooks[i].hook, "delay=0 errno_is_preserved=0");

    one_of_each (nbd);
    assert_by_hook (&s, hooks[i].kind, false);
    assert_by_hook (&s, GATE_ANY & ~GATE_EXTENTS & ~hooks[i].kind, true);
    if (hooks[i].kind != GATE_FLUSH) {
      gate_fail (s.gate, hooks[i].kind, 0, UNIT, ENOSPC, 1);
      nbd_fails (hooks[i].kind == GATE_ZERO ? nbd_zero (nbd, 512, 0, 0)
                 : hooks[i].kind == GATE_TRIM ? nbd_trim (nbd, 512, 0, 0)
                 : hooks[i].kind == GATE_CACHE ? nbd_cache (nbd, 512, 0, 0)
                 : hooks[i].kind == GATE_READ
                 ? nbd_pread (nbd, sector, 512, 0, 0)
                 : nbd_pwrite (nbd, sector, 512, 0, 0), ENOSPC);
    }
    stop (&s, nbd);
  }
}

/* With async_pread and async_pwrite only, nbdkit writes zeroes by writes. */
static void
test_write_zeroes (void)
{
  struct server s;
  struct nbd_handle *nbd =
    start_with (&s, NULL, "pread pwrite zero trim flush cache async_zero "
                "async_trim async_flush async_cache", "delay=0 fua=none");
  g_autofree char *data = filled (4 * UNIT, 1);

  nbd_ok (nbd_pwrite (nbd, data, 4 * UNIT, 0, 0));
  g_assert_cmpint (nbd_can_zero (nbd), ==, 1);
  g_assert_cmpint (nbd_can_flush (nbd), ==, 0);
  g_assert_cmpint (nbd_can_trim (nbd), ==, 0);
  nbd_ok (nbd_zero (nbd, 2 * UNIT + 4096, 512, 0));
  nbd_fails (nbd_zero (nbd, UNIT, 0, LIBNBD_CMD_FLAG_FAST_ZERO), EOPNOTSUPP);
  memset (data + 512, 0, 2 * UNIT + 4096);
  assert_reads (nbd, data, 4 * UNIT, 0);
  assert_by_hook (&s, GATE_READ | GATE_WRITE, true);
  gate_fail (s.gate, GATE_WRITE, 0, UNIT, ENOSPC, 1);
  nbd_fails (nbd_zero (nbd, UNIT, 0, 0), ENOSPC);
  stop (&s, nbd);
}

/* A client that does not read its replies does not delay another client. */
static void
test_slow_reader (void)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, "delay=0 threads=2");
  struct nbd_handle *slow = client_connect (&s);
  const size_t count = 4 * MIB;
  g_autofree char *bufs = g_malloc (16 * count), *data = filled (UNIT, 1);
  struct request requests[16];

  for (unsigned i = 0; i < G_N_ELEMENTS (requests); i++)
    requests[i] = send_read (slow, bufs + i * count, count, i * (3 * MIB));
  gate_wait_ended (s.gate, GATE_READ, ANYWHERE, G_N_ELEMENTS (requests));
  nbd_ok (nbd_pwrite (nbd, data, UNIT, 0, 0));
  nbd_ok (nbd_flush (nbd, 0));
  assert_reads (nbd, data, UNIT, 0);
  round_trips (nbd);
  for (unsigned i = 0; i < G_N_ELEMENTS (requests); i++)
    g_assert_cmpint (request_wait (&requests[i]), ==, 0);
  client_close (slow);
  stop (&s, nbd);
}

/* Missing and late replies. */

/* A client goes while its request is held.  The library gives it up, and the
 * reply comes later.
 */
static void
late_reply (const char *parameters)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters), *gone;
  g_autofree char *data = filled (UNIT, 1), *got = g_malloc (UNIT);
  static const unsigned kinds[] = { GATE_WRITE, GATE_READ, GATE_FLUSH };
  static const char *const lines[] = {
    "did not reply to a write, offset 131072, length 65536" GIVEN_UP,
    "did not reply to a read, offset 131072, length 65536" GIVEN_UP,
    "did not reply to a flush, offset 0, length 0" GIVEN_UP,
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (kinds); i++) {
    int held = gate_hold (s.gate, kinds[i], 2 * UNIT, UNIT);

    gone = client_connect (&s);
    if (i == 0)
      send_write (gone, data, UNIT, 2 * UNIT, 0);
    else if (i == 1)
      send_read (gone, got, UNIT, 2 * UNIT);
    else
      send_flush (gone);
    gate_wait_held (s.gate, held, 1);
    client_leave (gone);
    wait_message (&s, lines[i], 1);
    round_trips (nbd);
    gate_release (s.gate, held);
    gate_wait_ended (s.gate, kinds[i], 2 * UNIT, UNIT, 1);
    nbd_ok (nbd_flush (nbd, 0));
    round_trips (nbd);
  }
  client_close (nbd);
  server_terminate (&s);
  server_wait (&s);
  assert_messages (&s, GIVEN_UP, 3);
  assert_messages (&s, UNKNOWN, 0);
  server_free (&s);
}

static void
test_late (void)
{
  late_reply ("delay=0 grace=100");
  late_reply ("delay=0 grace=100 reads=reply");
  late_reply ("delay=0 grace=100 cancel=0");
  late_reply ("delay=0 grace=100 cancel=0 reads=reply");
}

/* A cancelled write has no effect.  Without async_cancel the write still takes
 * effect, from the copy of its data.
 */
static void
test_cancel (void)
{
  g_autofree char *data = filled (UNIT, 1), *zeroes = g_malloc0 (UNIT);

  for (int cancel = 0; cancel < 2; cancel++) {
    struct server s;
    struct nbd_handle *nbd =
      start (&s, cancel ? "grace=1" : "grace=1 cancel=0");
    struct nbd_handle *other = client_connect (&s);
    int held = gate_hold (s.gate, GATE_WRITE, ANYWHERE);

    send_write (nbd, data, UNIT, 0, 0);
    gate_wait_held (s.gate, held, 1);
    client_leave (nbd);
    wait_message (&s, GIVEN_UP, 1);
    gate_release (s.gate, held);
    /* The read comes after the held write. */
    gate_wait_ended (s.gate, GATE_WRITE, ANYWHERE, 1);
    assert_reads (other, cancel ? zeroes : data, UNIT, 0);
    stop (&s, other);
  }
}

/* A client goes, or the server ends, while a reply is missing.  Both take a
 * bounded time.
 */
static void
missing_reply (const char *parameters, unsigned kind, bool on_sigterm)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters);
  g_autofree char *data = filled (UNIT, 1);

  gate_fail (s.gate, kind, ANYWHERE, ASYNC_NEVER, -1);
  if (kind == GATE_WRITE)
    send_write (nbd, data, UNIT, 0, 0);
  else if (kind == GATE_READ)
    send_read (nbd, data, UNIT, 0);
  else
    send_zero (nbd, UNIT, 0, 0);
  gate_wait_ended (s.gate, kind, ANYWHERE, 1);
  /* After a signal nbdkit may still wait for its clients to go. */
  if (on_sigterm)
    server_terminate (&s);
  else
    client_leave (nbd);
  wait_message (&s, GIVEN_UP, 1);
  if (on_sigterm)
    nbd_close (nbd);
  else
    server_terminate (&s);
  server_wait (&s);
  assert_messages (&s, GIVEN_UP, 1);
  server_free (&s);
}

static void
test_missing (void)
{
  for (int on_sigterm = 0; on_sigterm < 2; on_sigterm++) {
    missing_reply ("delay=0 grace=50", GATE_WRITE, on_sigterm);
    missing_reply ("delay=0 grace=50 cancel=0", GATE_READ, on_sigterm);
    missing_reply ("delay=0 grace=50 cancel=0", GATE_WRITE, on_sigterm);
    missing_reply ("delay=0 grace=50", GATE_ZERO, on_sigterm);
  }
}

/* A client that has sent all of its requests may close its sending side and
 * still read.  It counts as gone, but gets the replies of the grace time.
 */
static void
half_closed (const char *parameters)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, parameters);
  g_autofree char *data = filled (UNIT, 1), *got = g_malloc0 (UNIT);
  struct request write, read;
  int held;

  nbd_ok (nbd_pwrite (nbd, data, UNIT, 0, 0));
  held = gate_hold (s.gate, GATE_READ | GATE_WRITE, ANYWHERE);
  read = send_read (nbd, got, UNIT, 0);
  write = send_write (nbd, data, UNIT, UNIT, 0);
  gate_wait_held (s.gate, held, 2);
  g_assert_cmpint (shutdown (nbd_aio_get_fd (nbd), SHUT_WR), ==, 0);
  wait_message (&s, "aborting sleep because of connection close", 2);
  g_usleep (1000 * 1000);       /* the library knows, and waits for replies */
  g_assert_false (request_is_done (&read) || request_is_done (&write));
  gate_release (s.gate, held);
  g_assert_cmpint (request_wait (&read), ==, 0);
  g_assert_cmpint (request_wait (&write), ==, 0);
  assert_same (got, data, UNIT);
  assert_same (server_device (&s) + UNIT, data, UNIT);
  assert_messages (&s, GIVEN_UP, 0);
  nbd_close (nbd);
  server_stop (&s);
}

static void
test_half_closed (void)
{
  half_closed ("delay=0");
  half_closed ("delay=0 cancel=0");
}

/* Clients that break off leave copies of their data with a plugin that cannot
 * cancel.  At the bound new requests fail until the plugin replies.
 */
static void
test_bound (void)
{
  enum { MOST = 64 * MIB, FIT = 4 };
  const char *line = "async: replies owed";
  struct server s;
  struct nbd_handle *nbd =
    start (&s, "delay=0 grace=1 cancel=0 size=64M"), *gone;
  g_autofree char *data = g_malloc (MOST);
  int held = gate_hold (s.gate, GATE_READ, ANYWHERE);

  fill (data, UNIT, 1);
  for (unsigned i = 0; i < FIT; i++) {
    gone = client_connect (&s);
    send_read (gone, data + UNIT, MOST - UNIT, UNIT);
    gate_wait_held (s.gate, held, i + 1);
    client_leave (gone);
    wait_message (&s, GIVEN_UP, i + 1);
  }
  nbd_ok (nbd_pwrite (nbd, data, UNIT, 0, 0));  /* fits into the rest */
  assert_messages (&s, line, 0);
  for (unsigned i = 0; i < 3; i++) {
    nbd_fails (nbd_pwrite (nbd, data, 5 * UNIT, 0, 0), ENOMEM);
    nbd_fails (nbd_pread (nbd, data, 5 * UNIT, 0, 0), ENOMEM);
    nbd_ok (nbd_flush (nbd, 0));        /* has no data to copy */
  }
  assert_messages (&s, line, 1);
  gate_release (s.gate, held);
  gate_wait_ended (s.gate, GATE_READ, ANYWHERE, FIT);
  /* The replies come after that. */
  while (nbd_pread (nbd, data, MOST, 0, 0) == -1) {
    g_assert_cmpint (nbd_get_errno (), ==, ENOMEM);
    g_usleep (10000);
  }
  assert_messages (&s, UNKNOWN, 0);
  stop (&s, nbd);
}

/* At its end the server waits for the replies that the plugin owes. */
static void
test_end_waits (void)
{
  struct server s;
  struct nbd_handle *nbd = start (&s, "delay=0");
  g_autofree char *data = filled (UNIT, 1);
  int held = gate_hold (s.gate, GATE_WRITE, ANYWHERE);

  send_write (nbd, data, UNIT, 0, 0);
  gate_wait_held (s.gate, held, 1);
  server_device (&s);
  server_terminate (&s);
  wait_message (&s, "aborting sleep", 1);
  gate_release (s.gate, held);
  nbd_close (nbd);
  server_wait (&s);
  assert_same (s.device, data, UNIT);
  assert_messages (&s, GIVEN_UP, 0);
  server_free (&s);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);

  g_test_add_func ("/async/replies/any-order", test_any_order);
  g_test_add_func ("/async/replies/many", test_many);
  g_test_add_func ("/async/replies/too-many", test_too_many);
  g_test_add_func ("/async/replies/wrong", test_wrong_replies);
  g_test_add_func ("/async/replies/late", test_late);
  g_test_add_func ("/async/replies/missing", test_missing);
  g_test_add_func ("/async/replies/end-waits", test_end_waits);
  g_test_add_func ("/async/replies/half-closed", test_half_closed);
  g_test_add_func ("/async/replies/bound", test_bound);
  g_test_add_func ("/async/cancel", test_cancel);
  g_test_add_func ("/async/errors/codes", test_errors);
  g_test_add_func ("/async/errors/unsaid", test_errors_unsaid);
  g_test_add_func ("/async/errors/after-reply", test_error_after_reply);
  g_test_add_func ("/async/hooks/all", test_hooks);
  g_test_add_func ("/async/hooks/left-out", test_callbacks);
  g_test_add_func ("/async/hooks/write-zeroes", test_write_zeroes);
  g_test_add_func ("/async/slow-reader", test_slow_reader);
  g_test_add_func ("/async/documented-plugins", test_documented_plugins);
  g_test_add_func ("/async/older-header", test_older_header);
  return g_test_run ();
}
