/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/async: the requests of nbdkit.
 *
 * A thread of nbdkit waits for the reply, for as long as the client is there.
 * When the client has gone it waits for grace_ms, and anew after each reply to
 * a request that was in flight then.  A plugin without async_cancel works on
 * copies, which have a bound.  Most times here are fake, and long.
 */
#include "async-rig.h"

#define HOUR_MS (3600 * 1000)
#define START_NS (1000 * MS)    /* of fake time */

/* A plugin with async_cancel gets nbdkit's buffer, another one a copy.  A read
 * that fills it gets the data either way.
 */
static void
test_buffers (void)
{
  static struct rig_call c;
  char buf[COUNT];
  uint64_t reqid;

  for (int can_cancel = 0; can_cancel < 2; can_cancel++) {
    rig_begin (can_cancel);
    rig.hook_does = REPLY_AT_ONCE;
    g_assert_cmpint (rig.plugin.pwrite (HANDLE, buf, COUNT, 0, 0), ==, 0);
    g_assert_cmpint (rig.buf == buf, ==, can_cancel);

    rig.hook_does = REPLY_LATER;
    reqid = rig_call_start (&c);
    g_assert_cmpint (rig.buf == c.buf, ==, can_cancel);
    memset (rig.buf, 6, COUNT);
    nbdkit_async_reply (HANDLE, reqid);
    assert_call_reads (&c, 6);
    rig_end ();
  }
}

/* Requests fail with ENOMEM, for a filter and for nbdkit. */
static void
test_out_of_memory (void)
{
  struct rig_io r;
  char buf[COUNT];

  for (int can_cancel = 0; can_cancel < 2; can_cancel++) {
    rig_begin (can_cancel);
    rig.hook_does = REPLY_READ_AT_ONCE;
    rig.memory_is_out = true;
    rig_io_start (&r);
    g_assert_cmpuint (rig_n_done (&r), ==, 1);
    g_assert_cmpint (r.err, ==, ENOMEM);
    g_assert_cmpint (rig.plugin.pread (HANDLE, buf, COUNT, 0, 0), ==, -1);
    g_assert_cmpint (errno, ==, ENOMEM);
    g_assert_cmpint (rig.nbdkit_err, ==, ENOMEM);
    rig.memory_is_out = false;
    g_assert_cmpint (rig.plugin.pread (HANDLE, buf, COUNT, 0, 0), ==, 0);
    rig_end ();
  }
}

/* A hook that fills nothing shows no memory that was in use before. */
static void
test_unfilled (gconstpointer can_cancel)
{
  char data[COUNT] = { 0 };

  rig_begin (can_cancel);
  rig.hook_does = REPLY_AT_ONCE;
  g_assert_cmpint (rig.plugin.pread (HANDLE, data, COUNT, 0, 0), ==, 0);
  for (unsigned i = 0; i < COUNT; i++)
    g_assert_cmpint (data[i], ==, 0);
  rig_end ();
}

/* The client is there. */

/* A reply may take as long as it likes.  The library asks about the client
 * every LOOK_NS, not more often.
 */
static void
test_slow_reply (gconstpointer can_cancel)
{
  const unsigned looks = 1000;
  static struct rig_call c;
  uint64_t reqid;

  rig_begin (can_cancel);
  rig.fake_ns = START_NS;
  rig.timeouts_left = looks;
  reqid = rig_call_start (&c);
  RIG_WAIT (rig.is_time_still || c.is_over);
  g_assert_false (rig_call_is_over (&c));
  g_assert_cmpuint (rig.n_asked, ==, looks);
  g_assert_cmpuint (rig_now_ns (), ==, START_NS + looks * LOOK_NS);
  rig_reply_read (reqid, 8);
  assert_call_reads (&c, 8);
  g_assert_cmpuint (rig.n_cancelled, ==, 0);
  g_assert_cmpstr (rig.log, ==, "");
  rig_end ();
}

/* The client has gone. */

/* Returns when the library noticed it.  The grace time must be so long that
 * this function sees it.
 */
static uint64_t
client_leaves (void)
{
  uint64_t left = 0;

  rig_client_goes ();
  for (; !left; g_usleep (1000)) {
    LOCK_IN_SCOPE (&lock);
    left = leaving ? leaving->progress_ns : 0;
  }
  return left;
}

/* A reply within the grace time counts. */
static void
test_reply_in_grace (gconstpointer can_cancel)
{
  static struct rig_call c;
  uint64_t reqid;

  rig_begin (can_cancel);
  rig_set_grace (HOUR_MS);
  reqid = rig_call_start (&c);
  client_leaves ();
  rig_reply_read (reqid, 9);
  assert_call_reads (&c, 9);
  rig_end ();
}

/* Replies to requests that were in flight when the client left prolong its
 * wait.  Replies to later ones do not, or a busy neighbour would prolong it
 * forever.
 */
static void
test_grace (void)
{
  enum { OLD = 40 };
  static struct rig_call c;
  static struct rig_io old[OLD];
  const uint64_t grace = 300 * MS;
  uint64_t reqids[OLD], last_progress, longest_gap = 0, left;
  struct rig_io new;

  rig_begin (true);
  rig_set_grace (grace / MS);
  for (unsigned i = 0; i < OLD; i++)
    reqids[i] = rig_io_start (&old[i]);
  rig_call_start (&c);
  left = client_leaves ();
  last_progress = left;
  for (unsigned i = 0; i < OLD; i++) {
    uint64_t now = rig_now_ns ();

    longest_gap = MAX (longest_gap, now - last_progress);
    last_progress = now;
    nbdkit_async_reply (HANDLE, reqids[i]);
    g_usleep (20000);
  }
  g_assert_cmpuint (last_progress - left, >, 2 * grace);
  rig.hook_does = REPLY_AT_ONCE;
  while (!rig_call_is_over (&c)) {
    rig_io_start (&new);
    g_usleep (10000);
  }
  pthread_join (c.thread, NULL);
  g_assert_cmpint (c.result, ==, -1);
  g_assert_cmpint (c.err, ==, ESHUTDOWN);
  g_assert_cmpuint (rig.n_cancelled, ==, 1);
  if (longest_gap < grace * 2 / 3)
    g_assert_cmpuint (c.over_ns, >=, last_progress + grace);
  else
    g_test_skip ("the machine was too slow to make progress");
  rig_end ();
}

/* Makes a call that waits in fake time look at the clock. */
static void
look_again (uint64_t reqid, unsigned timeouts)
{
  LOCK_IN_SCOPE (&lock);
  LOCK_IN_SCOPE (&rig.lock);
  rig.is_time_still = false;
  rig.timeouts_left = timeouts;
  cond_broadcast (&find_locked (reqid)->changed);
}

/* A reply from inside async_cancel does not prolong the wait of the others. */
static void
test_cancelled_in_grace (gconstpointer does)
{
  enum { HELD = 5 };
  static struct rig_call c[HELD];
  uint64_t reqids[HELD];

  rig_begin (true);
  rig_set_grace (HOUR_MS);
  rig.cancel_does = GPOINTER_TO_UINT (does);
  rig.fake_ns = START_NS;
  for (unsigned i = 0; i < HELD; i++) {
    rig.is_time_still = false;
    reqids[i] = rig_call_start (&c[i]);
    RIG_WAIT (rig.is_time_still);
  }
  rig_client_goes ();
  for (unsigned i = 0; i < HELD; i++) {
    look_again (reqids[i], 1);
    RIG_WAIT (rig.is_time_still);
  }
  for (unsigned i = 0; i < HELD; i++) {
    look_again (reqids[i], 2 * HELD);
    pthread_join (c[i].thread, NULL);
    g_assert_cmpint (c[i].result, ==, 0);
    g_assert_cmpuint (c[i].over_ns, ==, START_NS + LOOK_NS + HOUR_MS * MS);
  }
  g_assert_cmpuint (rig.n_cancelled, ==, HELD);
  g_assert_cmpstr (rig.log, ==, "");
  rig_end ();
}

/* Nor does a reply to a request that was cancelled. */
static void
test_reply_after_cancel (void)
{
  static struct rig_call c;
  struct rig_io gone;
  uint64_t reqid, reqid_gone, left;

  rig_begin (true);
  rig_set_grace (HOUR_MS);
  reqid_gone = rig_io_start (&gone);
  g_assert_true (rig.driver->give_up (&gone.io));
  reqid = rig_call_start (&c);
  left = client_leaves ();
  nbdkit_async_reply (HANDLE, reqid_gone);
  {
    LOCK_IN_SCOPE (&lock);
    g_assert_cmpuint (leaving->progress_ns, ==, left);
  }
  rig_reply_read (reqid, 9);
  assert_call_reads (&c, 9);
  rig_end ();
}

/* The bound of copies that wait for a late reply. */

/* No thread reads or fills the buffers of these large requests. */
static char no_buf;

static uint64_t
abandon_read (uint32_t count)
{
  rig.timeouts_left = 4;
  g_assert_cmpint (rig.plugin.pread (HANDLE, &no_buf, count, 0, 0), ==, -1);
  g_assert_cmpint (errno, ==, ESHUTDOWN);
  return rig.reqid;
}

static void
assert_refused (uint32_t count)
{
  uint64_t before = rig.reqid;

  g_assert_cmpint (rig.plugin.pread (HANDLE, &no_buf, count, 0, 0), ==, -1);
  g_assert_cmpint (errno, ==, ENOMEM);
  g_assert_cmpint (rig.nbdkit_err, ==, ENOMEM);
  g_assert_cmpint (rig.plugin.pwrite (HANDLE, &no_buf, count, 0, 0), ==, -1);
  g_assert_cmpint (errno, ==, ENOMEM);
  g_assert_cmpuint (rig.reqid, ==, before);     /* no hook ran */
}

/* The bound holds to the byte.  The log has one line until a late reply has
 * made room.
 */
static void
test_bound (void)
{
  const uint32_t most = ABANDONED_MAX_BYTES / 4;
  const char *line = "async: replies owed";
  uint64_t owed[4], last;

  rig_begin (false);
  rig.fake_ns = START_NS;
  rig.client_is_gone = true;
  for (unsigned i = 0; i < 4; i++)
    owed[i] = abandon_read (i == 3 ? most - COUNT : most);
  assert_refused (COUNT + 1);
  assert_refused (most);
  g_assert_cmpint (rig_said (line), ==, 1);
  last = abandon_read (COUNT);  /* fits exactly */
  assert_refused (1);
  g_assert_cmpint (rig_said (line), ==, 1);

  nbdkit_async_reply (HANDLE, last);
  rig.hook_does = REPLY_AT_ONCE;
  g_assert_cmpint (rig.plugin.pread (HANDLE, rig.data, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (rig_said (line), ==, 1);
  assert_refused (COUNT + 1);
  g_assert_cmpint (rig_said (line), ==, 2);
  for (unsigned i = 0; i < 4; i++)
    nbdkit_async_reply_read (HANDLE, owed[i], most, rig.data);
  g_assert_cmpuint (abandoned_bytes, ==, 0);
  g_assert_cmpint (rig_said (UNKNOWN), ==, 0);
  rig_end ();
}

static const struct rig_test tests[] = {
  { "buffers", .run = test_buffers },
  { "out-of-memory", .run = test_out_of_memory },
  { "unfilled/cancel", .run_with = test_unfilled, .arg = WITH_CANCEL },
  { "unfilled/copy", .run_with = test_unfilled, .arg = WITHOUT_CANCEL },
  { "slow-reply/cancel", .run_with = test_slow_reply, .arg = WITH_CANCEL },
  { "slow-reply/copy", .run_with = test_slow_reply, .arg = WITHOUT_CANCEL },
  { "reply-in-grace/cancel", .run_with = test_reply_in_grace,
    .arg = WITH_CANCEL },
  { "reply-in-grace/copy", .run_with = test_reply_in_grace,
    .arg = WITHOUT_CANCEL },
  { "grace", .run = test_grace },
  { "grace/cancel-replies", .run_with = test_cancelled_in_grace,
    .arg = GUINT_TO_POINTER (REPLY_AT_ONCE) },
  { "grace/cancel-replies-read", .run_with = test_cancelled_in_grace,
    .arg = GUINT_TO_POINTER (REPLY_READ_AT_ONCE) },
  { "grace/reply-after-cancel", .run = test_reply_after_cancel },
  { "bound", .run = test_bound },
};

int
main (int argc, char **argv)
{
  return rig_run (argc, argv, "async-wait", tests, G_N_ELEMENTS (tests));
}
