/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/async: the requests of a filter.
 *
 * A filter claims the handle of a connection, and then starts reads and writes
 * on it.  The library calls io->done once for each: after the hook has returned
 * and after the reply, whichever is later.  The replies here come before, while
 * and after the hook returns.  test-async-giveup has replies that are missing.
 */
#include "async-rig.h"

/* Only the thread that opened a connection can claim its handle, and once. */
static void
test_claim (void)
{
  void *handle;

  rig_begin (true);
  g_assert_false (rig.driver->claim (&handle));
  g_assert_true (rig.plugin.open (0) == HANDLE);
  g_assert_true (rig.driver->claim (&handle));
  g_assert_true (handle == HANDLE);
  g_assert_false (rig.driver->claim (&handle));
  rig.plugin.open (0);
  rig.open_fails = true;
  g_assert_null (rig.plugin.open (0));
  g_assert_false (rig.driver->claim (&handle));
  rig_end ();
}

/* The plugin works on the filter's buffer; its reply calls done. */
static void
test_start (void)
{
  struct rig_io r;
  uint64_t reqid;

  rig_begin (true);
  reqid = rig_io_start (&r);
  g_assert_true (rig.buf == r.buf);
  g_assert_cmpuint (rig_n_done (&r), ==, 0);
  rig_reply_read (reqid, 7);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
  g_assert_cmpint (r.err, ==, 0);
  g_assert_cmpmem (r.buf, COUNT, rig.data, COUNT);
  g_assert_false (rig.driver->give_up (&r.io));

  r.io.is_write = true;
  rig.driver->start (&r.io);
  nbdkit_async_reply_errno (HANDLE, rig.reqid, EPERM);
  g_assert_cmpuint (rig_n_done (&r), ==, 2);
  g_assert_cmpint (r.err, ==, EPERM);
  g_assert_cmpstr (rig.log, ==, "");
  rig_end ();
}

static void
free_io (struct nbdkit_async_io *io, int err)
{
  LOCK_IN_SCOPE (&rig.lock);
  g_assert_false (rig.is_in_hook);
  g_assert_cmpint (err, ==, rig.hook_does == FAIL ? ENOSPC : 0);
  g_free (io);
}

/* A hook replies itself.  Done comes after the hook has returned and before
 * start has.  The library touches the io no more.
 */
static void
test_reply_in_hook (void)
{
  rig_begin (true);
  for (int does = REPLY_AT_ONCE; does <= FAIL_AFTER_REPLY; does++) {
    struct rig_io *r = g_new (struct rig_io, 1);

    rig.hook_does = does;
    rig_io_init (r);
    r->io.done = free_io;
    rig.driver->start (&r->io);
    g_assert_cmpint (rig_said (FAILED_LATE), ==, does == FAIL_AFTER_REPLY);
  }
  rig_end ();
}

static void
reply_beside_hook (bool is_error, bool hook_fails)
{
  const int n_before = rig_said (FAILED_LATE);
  struct rig_io r;
  pthread_t starter;

  rig.hook_does = hook_fails ? FAIL : REPLY_LATER;
  starter = rig_io_start_held (&r);
  if (is_error)
    nbdkit_async_reply_errno (HANDLE, rig.reqid, EPERM);
  else
    rig_reply_read (rig.reqid, 7);
  g_assert_cmpuint (rig_n_done (&r), ==, 0);
  g_assert_false (rig.driver->give_up (&r.io));
  g_assert_cmpuint (rig_n_done (&r), ==, 0);
  rig_release (&rig.hook, starter);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
  g_assert_cmpint (r.err, ==, is_error ? EPERM : 0);
  if (!is_error)
    g_assert_cmpmem (r.buf, COUNT, rig.data, COUNT);
  g_assert_cmpint (rig_said (FAILED_LATE), ==, n_before + hook_fails);
  g_assert_false (rig.driver->give_up (&r.io));
  nbdkit_async_reply (HANDLE, rig.reqid);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
}

/* Another thread replies while the hook still runs.  The hook may still use the
 * handle, which the filter may close after done.  So done comes when the hook
 * has returned.
 */
static void
test_reply_beside_hook (void)
{
  rig_begin (true);
  reply_beside_hook (false, false);
  reply_beside_hook (false, true);
  reply_beside_hook (true, false);
  reply_beside_hook (true, true);
  g_assert_cmpuint (rig.n_cancelled, ==, 0);
  rig_end ();
}

/* The reply begins while the hook runs, and ends after it. */
static void
test_reply_past_hook (void)
{
  struct rig_io r;
  pthread_t starter, replier;

  rig_begin (true);
  starter = rig_io_start_held (&r);
  replier = rig_reply_held ();
  rig_release (&rig.hook, starter);
  g_assert_cmpuint (rig_n_done (&r), ==, 0);
  rig_release (&rig.copy, replier);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
  g_assert_cmpint (r.err, ==, 0);
  rig_end ();
}

/* A second reply comes when the request's slot has another request in it. */
static void
test_reply_to_former (void)
{
  const uint64_t index_mask = (1 << INDEX_BITS) - 1;
  struct rig_io r;
  uint64_t former;

  rig_begin (true);
  former = rig_io_start (&r);
  nbdkit_async_reply (HANDLE, former);
  rig.driver->start (&r.io);
  g_assert_cmpuint (rig.reqid, !=, former);
  g_assert_cmpuint (rig.reqid & index_mask, ==, former & index_mask);
  nbdkit_async_reply (HANDLE, former);
  nbdkit_async_reply_read (HANDLE, former, COUNT, rig.data);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
  g_assert_cmpint (rig_said (UNKNOWN), >, 0);
  nbdkit_async_reply (HANDLE, rig.reqid);
  g_assert_cmpuint (rig_n_done (&r), ==, 2);
  rig_end ();
}

/* Many requests are in flight.  Slots are used again, numbers are not. */
static void
test_numbers (void)
{
  const unsigned n = 3 * CHUNK + 5;
  g_autofree struct rig_io *r = g_new (struct rig_io, n);
  g_autofree uint64_t *reqids = g_new (uint64_t, n);
  g_autoptr (GHashTable) seen =
    g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, NULL);

  rig_begin (true);
  for (unsigned round = 0; round < 5; round++) {
    for (unsigned i = 0; i < n; i++) {
      reqids[i] = rig_io_start (&r[i]);
      g_assert_true (g_hash_table_add
                     (seen, g_memdup2 (&reqids[i], sizeof reqids[i])));
    }
    for (unsigned i = 0; i < n; i++) {
      unsigned k = (i * 7 + round) % n;

      g_assert_cmpuint (rig_n_done (&r[k]), ==, 0);
      nbdkit_async_reply (HANDLE, reqids[k]);
      g_assert_cmpuint (rig_n_done (&r[k]), ==, 1);
    }
  }
  g_assert_cmpuint (n_slots, ==, 4 * CHUNK);
  g_assert_cmpstr (rig.log, ==, "");
  rig_end ();
}

static const struct rig_test tests[] = {
  { "claim", .run = test_claim },
  { "start", .run = test_start },
  { "reply/in-hook", .run = test_reply_in_hook },
  { "reply/beside-hook", .run = test_reply_beside_hook },
  { "reply/past-hook", .run = test_reply_past_hook },
  { "reply/to-former", .run = test_reply_to_former },
  { "numbers", .run = test_numbers },
};

int
main (int argc, char **argv)
{
  return rig_run (argc, argv, "async-filter", tests, G_N_ELEMENTS (tests));
}
