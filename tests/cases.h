/* SPDX-License-Identifier: BSD-3-Clause */

/* A test program's table of cases, and their run.
 *
 * A row of the table names a scenario and its setup.  A row with axes (plugins,
 * relations, changes, errors, variants) is one case for each value of each
 * axis.  The name of a case is /PLUGIN/ROW, with a value of each axis after it.
 *
 * Each case runs in a process of its own.  So the other cases still run when
 * one fails or hangs.
 */
#ifndef TESTS_CASES_H
#define TESTS_CASES_H

#include "scene.h"

/* Axes are sets, of BIT (SAME_DEVICE), BIT (BY_WRITE) and so on. */
#define BIT(i) (1U << (i))

enum { POOL, HOOKS, PLUGINS };
static const char *const plugins[PLUGINS] = { "pool", "hooks" };
#define BOTH (BIT (POOL) | BIT (HOOKS))

#define ALL_RELATIONS (BIT (RELATIONS) - 1)
#define OTHER_DEVICES (ALL_RELATIONS & ~BIT (SAME_DEVICE))
#define UNNAMED (BIT (SAME_DEVICE) | BIT (ONE_NAME))
#define NAMED (BIT (TWO_NAMES) | BIT (TWO_NAMES_ALONE))

#define ALL_CHANGES (BIT (CHANGES) - 1)

enum {
  OF_ENOSPC, OF_EIO, OF_EPERM, OF_EROFS, OF_EINVAL, OF_ENOMEM, ERRORS
};
static const struct {
  const char *name;
  int value;
} errors[ERRORS] = {
  [OF_ENOSPC] = { "enospc", ENOSPC },
  [OF_EIO] = { "eio", EIO },
  [OF_EPERM] = { "eperm", EPERM },
  [OF_EROFS] = { "erofs", EROFS },
  [OF_EINVAL] = { "einval", EINVAL },
  [OF_ENOMEM] = { "enomem", ENOMEM },
};

struct row {
  const char *name;
  void (*play) (const struct setup *);
  unsigned plugins;
  /* Further axes.  0: the setup has the value. */
  unsigned relations, changes, errors;
  const char *const *variants;  /* names, with a NULL after the last */
  struct setup setup;
};

struct test_case {
  void (*play) (const struct setup *);
  struct setup setup;
};

static void
run_case (gconstpointer data)
{
  const struct test_case *t = data;
  pid_t pid = fork ();
  int status;

  g_assert_cmpint (pid, !=, -1);
  if (pid == 0) {
    dup2 (STDERR_FILENO, STDOUT_FILENO);        /* not a part of the TAP */
    alarm (client_is_slow () ? CASE_SECONDS : 30);
    t->play (&t->setup);
    _exit (0);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  if (status == 0)
    return;
  if (WIFSIGNALED (status))
    fprintf (stderr, "# %s: ended by signal %d (%s)\n", g_test_get_path (),
             WTERMSIG (status), WTERMSIG (status) == SIGALRM
             ? "not done in time" : g_strsignal (WTERMSIG (status)));
  g_test_fail ();
}

/* Whether the axis has value I.  An axis that is not there has one value. */
static bool
axis_has (unsigned axis, unsigned i)
{
  return axis ? (axis & BIT (i)) != 0 : i == 0;
}

static void
add_case (const struct row *row, struct setup setup, unsigned plugin,
          unsigned relation, unsigned how, unsigned error)
{
  struct test_case *t = g_new (struct test_case, 1);
  g_autoptr (GString) path = g_string_new ("");

  g_string_printf (path, "/%s/%s", plugins[plugin], row->name);
  setup.is_hooked = plugin == HOOKS;
  if (row->relations || !setup.relation)
    setup.relation = &relations[relation];
  if (row->relations)
    g_string_append_printf (path, "/%s", relations[relation].name);
  if (row->changes) {
    setup.how = how;
    g_string_append_printf (path, "/%s", changes[how]);
  }
  if (row->errors) {
    setup.error = errors[error].value;
    g_string_append_printf (path, "/%s", errors[error].name);
  }
  if (row->variants)
    g_string_append_printf (path, "/%s", row->variants[setup.variant]);
  *t = (struct test_case) { .play = row->play, .setup = setup };
  g_test_add_data_func_full (path->str, t, run_case, g_free);
}

static void
add_variants (const struct row *row, unsigned plugin, unsigned relation,
              unsigned how, unsigned error)
{
  struct setup setup = row->setup;

  if (!row->variants)
    add_case (row, setup, plugin, relation, how, error);
  for (unsigned i = 0; row->variants && row->variants[i]; i++) {
    setup.variant = i;
    add_case (row, setup, plugin, relation, how, error);
  }
}

static void
add_row (const struct row *row)
{
  for (unsigned p = 0; p < PLUGINS; p++)
    for (unsigned r = 0; axis_has (row->plugins, p) && r < RELATIONS; r++)
      for (unsigned h = 0; axis_has (row->relations, r) && h < CHANGES; h++)
        for (unsigned e = 0; axis_has (row->changes, h) && e < ERRORS; e++)
          if (axis_has (row->errors, e))
            add_variants (row, p, r, h, e);
}

/* The result is for main to return. */
static int
run_cases (int argc, char **argv, const struct row *rows, unsigned n)
{
  g_autoptr (GPtrArray) arguments = g_ptr_array_new ();
  int n_arguments = argc + 1;

  for (int i = 0; i < argc; i++)
    g_ptr_array_add (arguments, argv[i]);
  g_ptr_array_add (arguments, (char[]) { "-k" });       /* keep going */
  g_ptr_array_add (arguments, NULL);
  argv = (char **) arguments->pdata;
  g_test_init (&n_arguments, &argv, NULL);
  for (unsigned i = 0; i < n; i++)
    add_row (&rows[i]);
  return g_test_run ();
}

#define CASES_MAIN(rows) \
  int \
  main (int argc, char **argv) \
  { \
    return run_cases (argc, argv, rows, G_N_ELEMENTS (rows)); \
  }

#endif /* TESTS_CASES_H */
