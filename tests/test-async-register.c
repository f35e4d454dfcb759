/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/async: registration, and the choice between hooks and
 * callbacks.
 *
 * The author gives the library a struct of hooks, and may change it until
 * .get_ready.  The struct may come from an older header.  Where a hook and a
 * callback are both there, the hook does nbdkit's requests, unless the author
 * prefers callbacks or has disabled the hooks.
 */
#include "async-rig.h"

/* Callbacks and hooks that count their calls. */

static unsigned n_hooked, n_called;

static int
count_hook (void *conn, uint64_t reqid)
{
  n_hooked++;
  nbdkit_async_reply (conn, reqid);
  return 0;
}

static int
hook_pread (void *conn, uint64_t reqid, bool flush, void *handle, void *buf,
            uint32_t count, uint64_t offset)
{
  (void) flush; (void) handle; (void) buf; (void) count; (void) offset;
  return count_hook (conn, reqid);
}

static int
hook_pwrite (void *conn, uint64_t reqid, bool flush, void *handle,
             const void *buf, uint32_t count, uint64_t offset)
{
  (void) flush; (void) handle; (void) buf; (void) count; (void) offset;
  return count_hook (conn, reqid);
}

static int
hook_flush (void *conn, uint64_t reqid, void *handle, uint32_t flags)
{
  (void) handle; (void) flags;
  return count_hook (conn, reqid);
}

static int
hook_range (void *conn, uint64_t reqid, void *handle, uint32_t count,
            uint64_t offset, uint32_t flags)
{
  (void) handle; (void) count; (void) offset; (void) flags;
  return count_hook (conn, reqid);
}

static int
call_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
            uint32_t flags)
{
  (void) handle; (void) buf; (void) count; (void) offset; (void) flags;
  n_called++;
  return 0;
}

static int
call_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  (void) handle; (void) buf; (void) count; (void) offset; (void) flags;
  n_called++;
  return 0;
}

static int
call_flush (void *handle, uint32_t flags)
{
  (void) handle; (void) flags;
  n_called++;
  return 0;
}

static int
call_range (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle; (void) count; (void) offset; (void) flags;
  n_called++;
  return 0;
}

static void
register_fresh (struct nbdkit_plugin fresh, const void *given_hooks,
                size_t size)
{
  rig.plugin = fresh;
  rig.plugin._struct_size = sizeof rig.plugin;
  rig.plugin._api_version = 2;
  rig.plugin.name = "test";
  g_assert_true (nbdkit_async_register (&rig.plugin, given_hooks, size)
                 == &rig.plugin);
  g_assert_true (nbdkit_async_get_driver () == rig.driver);
}

/* Hooks or callbacks. */

/* Sends each kind of request once, with all hooks. */
static void
ask_for_all (bool has_callbacks, bool prefer_callbacks)
{
  static const struct nbdkit_plugin callbacks = {
    .pread = call_pread, .pwrite = call_pwrite, .flush = call_flush,
    .zero = call_range, .trim = call_range, .cache = call_range,
  };
  struct nbdkit_plugin *p = &rig.plugin;

  rig.hooks = (struct nbdkit_async) {
    .async_pread = hook_pread, .async_pwrite = hook_pwrite,
    .async_flush = hook_flush, .async_zero = hook_range,
    .async_trim = hook_range, .async_cache = hook_range,
    .prefer_callbacks = prefer_callbacks,
  };
  register_fresh (has_callbacks ? callbacks : (struct nbdkit_plugin) { 0 },
                  &rig.hooks, sizeof rig.hooks);
  n_hooked = n_called = 0;
  g_assert_cmpint (p->pread (HANDLE, rig.data, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->pwrite (HANDLE, rig.data, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->flush (HANDLE, 0), ==, 0);
  g_assert_cmpint (p->zero (HANDLE, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->trim (HANDLE, COUNT, 0, 0), ==, 0);
  g_assert_cmpint (p->cache (HANDLE, COUNT, 0, 0), ==, 0);
}

static void
test_prefer_callbacks (void)
{
  struct rig_io r;

  rig_begin (false);
  ask_for_all (true, false);
  g_assert_cmpuint (n_hooked, ==, 6);
  g_assert_cmpuint (n_called, ==, 0);
  ask_for_all (false, true);
  g_assert_cmpuint (n_hooked, ==, 6);
  ask_for_all (true, true);
  g_assert_cmpuint (n_hooked, ==, 0);
  g_assert_cmpuint (n_called, ==, 6);
  /* A filter's request goes to the hook all the same. */
  rig_io_init (&r);
  nbdkit_async_get_driver ()->start (&r.io);
  g_assert_cmpuint (r.n_done, ==, 1);
  g_assert_cmpuint (n_hooked, ==, 1);
  rig_end ();
}

/* .config may disable all hooks, if each has a callback. */
static void
test_disable (void)
{
  rig_begin (true);
  register_fresh ((struct nbdkit_plugin) { .pread = call_pread },
                  &rig.hooks, sizeof rig.hooks);
  g_assert_cmpint (nbdkit_async_disable (), ==, -1);
  g_assert_cmpint (rig_said ("there is async_pwrite, but no .pwrite"), >, 0);
  rig.hooks.async_pwrite = NULL;
  g_assert_cmpint (nbdkit_async_disable (), ==, 0);
  g_assert_cmpint (rig.plugin.get_ready (), ==, 0);
  nbdkit_async_get_driver ();
  g_assert_false (rig.driver->can_read || rig.driver->can_write ||
                  rig.driver->can_cancel);
  n_called = 0;
  g_assert_cmpint (rig.plugin.pread (HANDLE, rig.data, COUNT, 0, 0), ==, 0);
  g_assert_cmpuint (n_called, ==, 1);
  rig_end ();
}

/* Registration. */

static void
test_register (void)
{
  struct nbdkit_plugin old = {
    ._struct_size = sizeof old, ._api_version = 1, .name = "old",
  };
  struct nbdkit_plugin empty = {
    ._struct_size = sizeof empty, ._api_version = 2, .name = "empty",
  };

  rig_begin (true);
  g_assert_null (nbdkit_async_register (&old, &rig.hooks, sizeof rig.hooks));
  g_assert_cmpint (rig_said ("old: async hooks need NBDKIT_API_VERSION 2"),
                   >, 0);
  g_assert_true (nbdkit_async_register (&empty, &rig.hooks, sizeof rig.hooks)
                 == &empty);
  g_assert_null (empty.open);   /* nbdkit reports it */
  g_assert_null (empty.flush);
  g_assert_nonnull (empty.pread);
  rig_end ();
}

static int
get_ready_and_change (void)
{
  rig.hooks.grace_ms = 7;
  rig.hooks.async_pwrite = NULL;
  return -1;
}

/* The author's changes count until .get_ready, and not any longer. */
static void
test_changes (void)
{
  rig_begin (true);
  register_fresh ((struct nbdkit_plugin) { .get_ready = get_ready_and_change,
                                           .pwrite = call_pwrite },
                  &rig.hooks, sizeof rig.hooks);
  rig.hooks.async_pread = NULL;
  nbdkit_async_get_driver ();
  g_assert_false (rig.driver->can_read);
  rig.hooks.async_cancel = NULL;
  rig.hooks.grace_ms = 5;
  g_assert_cmpint (rig.plugin.get_ready (), ==, -1);
  for (int i = 0; i < 2; i++) {
    g_assert_true (rig.driver->can_write);
    g_assert_false (rig.driver->can_cancel);
    g_assert_cmpuint (rig.driver->grace_ns, ==, 5 * MS);
    g_assert_true (nbdkit_async_get_driver () == rig.driver);
  }
  rig.hook_does = REPLY_AT_ONCE;
  n_called = 0;
  g_assert_cmpint (rig.plugin.pwrite (HANDLE, rig.data, COUNT, 0, 0), ==, 0);
  g_assert_cmpuint (n_called, ==, 0);
  rig_end ();
}

static void
register_older (const void *bytes, size_t size)
{
  register_fresh ((struct nbdkit_plugin) { 0 }, bytes, size);
  g_assert_cmpint (rig.plugin.get_ready (), ==, 0);
  g_assert_true (rig.driver->can_read && rig.driver->can_write);
}

/* A plugin's header may have fewer fields.  The library does not look behind
 * its struct: there are other things, or no memory at all.
 */
static void
test_older_header (void)
{
  const size_t until_flush = offsetof (struct nbdkit_async, async_flush),
    until_grace = offsetof (struct nbdkit_async, grace_ms),
    until_prefer_callbacks = offsetof (struct nbdkit_async, prefer_callbacks);
  struct nbdkit_async all;
  g_autofree void *exact = NULL;

  rig_begin (true);
  memset (&all, 0xff, sizeof all);
  all.async_pread = rig_async_pread;
  all.async_pwrite = rig_async_pwrite;
  exact = g_memdup2 (&all, until_flush);
  for (int is_exact = 0; is_exact < 2; is_exact++) {
    register_older (is_exact ? exact : &all, until_flush);
    g_assert_false (rig.driver->can_cancel);
    g_assert_null (rig.plugin.flush);
    g_assert_cmpuint (rig.driver->grace_ns, ==, DEFAULT_GRACE_MS * MS);
  }
  all.async_cancel = rig_async_cancel;
  register_older (&all, until_grace);
  g_assert_true (rig.driver->can_cancel);
  g_assert_nonnull (rig.plugin.flush);
  g_assert_cmpuint (rig.driver->grace_ns, ==, DEFAULT_GRACE_MS * MS);
  all.grace_ms = 5;
  register_older (&all, until_prefer_callbacks);
  g_assert_cmpuint (rig.driver->grace_ns, ==, 5 * MS);
  rig.hook_does = REPLY_AT_ONCE;
  g_assert_cmpint (rig.plugin.pread (HANDLE, rig.data, COUNT, 0, 0), ==, 0);
  rig_end ();
}

static const struct rig_test tests[] = {
  { "register", .run = test_register },
  { "changes", .run = test_changes },
  { "older-header", .run = test_older_header },
  { "disable", .run = test_disable },
  { "prefer-callbacks", .run = test_prefer_callbacks },
};

int
main (int argc, char **argv)
{
  return rig_run (argc, argv, "async-register", tests, G_N_ELEMENTS (tests));
}
