/* SPDX-License-Identifier: BSD-3-Clause
 *
 * asyncpool.c without an nbdkit: a connection that opens when memory runs out.
 *
 * The file is included, with functions of this file in the place of nbdkit's
 * and of those that allocate.  What a connection does is not its job.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <glib.h>

static void *test_calloc (size_t n, size_t size);
static char *test_strdup (const char *s);

#undef strdup
#define calloc test_calloc
#define strdup test_strdup
#include "../filter/asyncpool.c"
#undef calloc
#undef strdup

static unsigned fail_at;        /* this allocation fails; 0: none */
static unsigned n_errors, n_opened;

static bool
is_out_of_memory (void)
{
  if (fail_at == 0 || --fail_at > 0)
    return false;
  errno = ENOMEM;
  return true;
}

static void *
test_calloc (size_t n, size_t size)
{
  return is_out_of_memory () ? NULL : calloc (n, size);
}

static char *
test_strdup (const char *s)
{
  return is_out_of_memory () ? NULL : (strdup) (s);
}

/* nbdkit.  A connection that opens calls the first two and no other. */

void
nbdkit_error (const char *format, ...)
{
  g_assert_cmpstr (format, ==, "asyncpool: cannot open the connection: %m");
  g_assert_cmpint (errno, ==, ENOMEM);
  n_errors++;
}

static int
open_plugin (nbdkit_context *context, int readonly, const char *exportname)
{
  g_assert_null (context);
  g_assert_true (readonly);
  g_assert_cmpstr (exportname, ==, "name");
  n_opened++;
  return 0;
}

/* The rest is only linked. */

#define UNEXPECTED { g_assert_not_reached (); }

void nbdkit_debug (const char *format G_GNUC_UNUSED, ...) UNEXPECTED
int
nbdkit_add_extent (struct nbdkit_extents *x G_GNUC_UNUSED,
                   uint64_t offset G_GNUC_UNUSED, uint64_t n G_GNUC_UNUSED,
                   uint32_t type G_GNUC_UNUSED)
UNEXPECTED
int
config_set (struct config *c G_GNUC_UNUSED, const char *key G_GNUC_UNUSED,
            const char *value G_GNUC_UNUSED)
UNEXPECTED
int
next_backend (nbdkit_next *next G_GNUC_UNUSED, bool readonly G_GNUC_UNUSED,
              struct backend *b G_GNUC_UNUSED)
UNEXPECTED
void next_set_lower (nbdkit_backend *b G_GNUC_UNUSED) UNEXPECTED
unsigned next_flags (uint32_t flags G_GNUC_UNUSED) UNEXPECTED
int config_complete (struct config *c G_GNUC_UNUSED) UNEXPECTED
bool config_try_less (struct config *c G_GNUC_UNUSED) UNEXPECTED
void config_free (struct config *c G_GNUC_UNUSED) UNEXPECTED

/* The handle is allocated first, then its copy of the name.  Without either the
 * open fails, says why, and leaves nothing behind.
 */
static void
test_open (void)
{
  void *handle = NULL;

  for (unsigned n = 1; n <= 2; n++) {
    n_errors = n_opened = 0;
    fail_at = n;
    g_assert_null (filter.open (open_plugin, NULL, true, "name", false));
    g_assert_cmpuint (fail_at, ==, 0);
    g_assert_cmpuint (n_errors, ==, 1);
    g_assert_cmpuint (n_opened, ==, 1);
    g_assert_cmpuint (handles.length, ==, 0);
  }
  n_errors = 0;
  fail_at = 3;
  handle = filter.open (open_plugin, NULL, true, "name", false);
  g_assert_nonnull (handle);
  g_assert_cmpuint (fail_at, ==, 1);    /* there are no more allocations */
  g_assert_cmpuint (n_errors, ==, 0);
  g_assert_cmpuint (handles.length, ==, 1);
  filter.close (handle);
  g_assert_cmpuint (handles.length, ==, 0);
}

int
main (int argc, char *argv[])
{
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/open/no-memory", test_open);
  return g_test_run ();
}
