/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/async: giving up a request without a reply.
 *
 * Giving up and the reply exclude each other: one of them ends the request, and
 * the other has no effect.  With async_cancel the plugin is told, and may still
 * reply from there.  Without it the request is abandoned, and the library waits
 * for the late reply.
 */
#include "async-rig.h"

#include "asleep.h"
#include "service.h"

static void
test_give_up (gconstpointer can_cancel)
{
  static const char zeroes[COUNT];
  struct rig_io r;
  uint64_t former;

  rig_begin (can_cancel);
  former = rig_io_start (&r);
  g_assert_true (rig.driver->give_up (&r.io));
  g_assert_cmpuint (rig.n_cancelled, ==, can_cancel ? 1 : 0);
  g_assert_cmpint (rig_said ("a read, offset 0, length 4096: given up"), >, 0);

  /* The late reply has no effect, but is known. */
  rig_reply_read (former, 7);
  g_assert_cmpmem (r.buf, COUNT, zeroes, COUNT);
  g_assert_cmpuint (rig_n_done (&r), ==, 0);
  g_assert_cmpint (rig_said (UNKNOWN), ==, 0);
  rig.driver->start (&r.io);
  nbdkit_async_reply (HANDLE, rig.reqid);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);

  /* It ended an abandoned request.  A cancelled one has no end of its own, so
   * the library knows its number until another request needs the slot.
   */
  nbdkit_async_reply (HANDLE, former);
  g_assert_cmpint (rig_said (UNKNOWN) > 0, ==, !can_cancel);
  rig_end ();
}

static void *
give_up_in_thread (void *io)
{
  return GINT_TO_POINTER (rig.driver->give_up (io));
}

/* A plugin cannot cancel an operation that its hook is about to start. */
static void
test_in_hook (void)
{
  struct rig_io r;
  pthread_t starter, other;
  void *answer;

  rig_begin (true);
  for (int fails = 0; fails < 2; fails++) {
    rig.hook_does = fails ? FAIL : REPLY_LATER;
    starter = rig_io_start_held (&r);
    pthread_create (&other, NULL, give_up_in_thread, &r);
    g_usleep (20000);           /* shows a give_up that does not wait */
    rig_release (&rig.hook, starter);
    pthread_join (other, &answer);
    g_assert_cmpint (GPOINTER_TO_INT (answer), ==, !fails);
    g_assert_cmpuint (rig_n_done (&r), ==, fails);
  }
  g_assert_cmpuint (rig.n_cancelled, ==, 1);
  g_assert_cmpuint (rig.n_cancelled_in_hook, ==, 0);
  rig_end ();
}

/* The data of a reply is on its way into the buffer.  It is too late to give
 * up, and for another reply.
 */
static void
test_in_reply (void)
{
  struct rig_io r;
  pthread_t replier;

  rig_begin (true);
  rig_io_start (&r);
  replier = rig_reply_held ();
  g_assert_false (rig.driver->give_up (&r.io));
  nbdkit_async_reply (HANDLE, rig.reqid);
  g_assert_cmpint (rig_said (UNKNOWN), >, 0);
  g_assert_cmpuint (rig_n_done (&r), ==, 0);
  rig_release (&rig.copy, replier);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
  g_assert_cmpint (r.err, ==, 0);
  g_assert_cmpuint (rig.n_cancelled, ==, 0);
  rig_end ();
}

/* async_cancel replies itself, so the request is not given up: neither one of a
 * filter nor one of nbdkit.
 */
static void
test_cancel_replies (void)
{
  static struct rig_call c;
  struct rig_io r;

  rig_begin (true);
  rig.cancel_does = REPLY_READ_AT_ONCE;
  memset (rig.data, 5, COUNT);
  rig_io_start (&r);
  g_assert_false (rig.driver->give_up (&r.io));
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
  g_assert_cmpint (r.err, ==, 0);
  g_assert_cmpmem (r.buf, COUNT, rig.data, COUNT);
  g_assert_false (rig.driver->give_up (&r.io));
  g_assert_cmpuint (rig_n_done (&r), ==, 1);

  rig_call_start (&c);
  rig_client_goes ();
  assert_call_reads (&c, 5);
  g_assert_cmpuint (rig.n_cancelled, ==, 2);
  g_assert_cmpstr (rig.log, ==, "");
  rig_end ();
}

/* delaymem's service. */

static struct service *service;
static struct rig_gate before_reply;

static void
apply_nothing (const struct service_op *op)
{
  (void) op;
}

static void
reply_held (const struct service_op *op)
{
  rig_pass (&before_reply);
  nbdkit_async_reply (op->conn, op->reqid);
}

static int
service_pread (void *conn, uint64_t reqid, bool flush, void *handle, void *buf,
               uint32_t count, uint64_t offset)
{
  (void) flush; (void) handle; (void) buf; (void) count; (void) offset;
  pthread_mutex_lock (&rig.lock);
  rig.reqid = reqid;
  pthread_mutex_unlock (&rig.lock);
  return service_submit (service, &(struct service_op) { .conn = conn,
                                                         .reqid = reqid }, 1);
}

static void
service_async_cancel (void *conn, uint64_t reqid, void *handle)
{
  rig_note_cancel (conn, handle);
  service_cancel (service, conn, reqid, &(struct service_op) { 0 });
}

/* Opens the gate when async_cancel waits for the service thread.  The log shows
 * an async_cancel that does not wait.
 */
static void
open_when_waited_for (void)
{
  RIG_WAIT (n_asleep > 0 || rig.log[0] != '\0');
  rig_open (&before_reply);
}

/* A service thread has done an operation and not replied yet.  async_cancel
 * waits for the reply, so the request is not given up.
 */
static void
test_served (void)
{
  static const struct service_calls calls = {
    .apply = apply_nothing, .reply = reply_held,
  };
  static struct rig_call c;
  struct rig_io r;
  pthread_t other;
  void *answer;

  rig_begin (true);
  rig.hooks.async_pread = service_pread;
  rig.hooks.async_cancel = service_async_cancel;
  g_assert_true (nbdkit_async_get_driver () == rig.driver);
  service = service_new (&calls);
  g_assert_cmpint (service_start (service, 1), ==, 0);

  rig_close (&before_reply);
  rig_io_start (&r);
  RIG_WAIT (before_reply.is_reached);
  pthread_create (&other, NULL, give_up_in_thread, &r);
  open_when_waited_for ();
  pthread_join (other, &answer);
  g_assert_cmpstr (rig.log, ==, "");
  g_assert_false (answer);
  g_assert_cmpuint (rig_n_done (&r), ==, 1);
  g_assert_cmpint (r.err, ==, 0);

  rig_close (&before_reply);
  rig_call_start (&c);
  RIG_WAIT (before_reply.is_reached);
  rig_client_goes ();
  open_when_waited_for ();
  pthread_join (c.thread, NULL);
  g_assert_cmpstr (rig.log, ==, "");
  g_assert_cmpint (c.result, ==, 0);
  g_assert_cmpuint (rig.n_cancelled, ==, 2);
  g_clear_pointer (&service, service_free);
  rig_end ();
}

/* A reply and giving up at the same time. */

static pthread_barrier_t barrier;

static void *
reply_at_barrier (void *reqid)
{
  pthread_barrier_wait (&barrier);
  return rig_reply_in_thread (reqid);
}

/* Returns whether the reply came first.  Giving up begins after DELAY turns of
 * a loop, so that it meets all parts of a reply.
 */
static bool
race (unsigned delay)
{
  static struct rig_io r;
  pthread_t replier;
  bool replied;

  rig_io_start (&r);
  pthread_create (&replier, NULL, reply_at_barrier, &rig.reqid);
  pthread_barrier_wait (&barrier);
  for (volatile unsigned wait = delay; wait > 0; wait--)
    ;
  replied = !rig.driver->give_up (&r.io);
  if (replied)
    while (rig_n_done (&r) == 0)
      ;
  else
    /* No other thread touches it from here on, or a sanitizer reports it. */
    memset (r.buf, 1, COUNT);
  pthread_join (replier, NULL);
  g_assert_cmpuint (rig_n_done (&r), ==, replied);
  g_assert_cmpint (r.buf[COUNT - 1], ==, replied ? 7 : 1);
  return replied;
}

static void
test_race (gconstpointer can_cancel)
{
  const unsigned rounds = 1000;
  unsigned n_replied = 0;

  rig_begin (can_cancel);
  pthread_barrier_init (&barrier, NULL, 2);
  memset (rig.data, 7, COUNT);
  for (unsigned i = 0; i < rounds; i++)
    n_replied += race (i % 100 * 100);
  g_test_message ("%u of %u replies were first", n_replied, rounds);
  g_assert_cmpint (rig_said (UNKNOWN), ==, 0);
  pthread_barrier_destroy (&barrier);
  rig_end ();
}

static const struct rig_test tests[] = {
  { "cancel", .run_with = test_give_up, .arg = WITH_CANCEL },
  { "abandon", .run_with = test_give_up, .arg = WITHOUT_CANCEL },
  { "in-hook", .run = test_in_hook },
  { "in-reply", .run = test_in_reply },
  { "cancel-replies", .run = test_cancel_replies },
  { "served", .run = test_served },
  { "race/cancel", .run_with = test_race, .arg = WITH_CANCEL },
  { "race/abandon", .run_with = test_race, .arg = WITHOUT_CANCEL },
};

int
main (int argc, char **argv)
{
  return rig_run (argc, argv, "async-giveup", tests, G_N_ELEMENTS (tests));
}
