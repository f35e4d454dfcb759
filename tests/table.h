/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A test program's table of tests.
 *
 * A row has one of three functions: run without an argument, run_each with
 * each of the values in turn, run_with with the data.  A row with values is one
 * test for each value, and the value is the last part of its path.
 *
 * Not its job: cases of many axes, each in a process of its own (cases.h).
 */
#ifndef TESTS_TABLE_H
#define TESTS_TABLE_H

#include <glib.h>

struct test {
  const char *path;
  void (*run) (void);
  void (*run_each) (unsigned value);
  unsigned values[10];          /* ends at the first 0 */
  void (*run_with) (gconstpointer data);
  gconstpointer data;
};

struct test_of_value {
  const struct test *test;
  unsigned value;
};

static void
run_value (gconstpointer data)
{
  const struct test_of_value *v = data;

  v->test->run_each (v->value);
}

static void
add_values (const struct test *t)
{
  for (unsigned i = 0; i < G_N_ELEMENTS (t->values) && t->values[i]; i++) {
    g_autofree char *path = g_strdup_printf ("%s/%u", t->path, t->values[i]);
    struct test_of_value *v = g_new (struct test_of_value, 1);

    *v = (struct test_of_value) { .test = t, .value = t->values[i] };
    g_test_add_data_func_full (path, v, run_value, g_free);
  }
}

/* What main returns. */
static int
run_table (int argc, char **argv, const struct test *tests, unsigned n)
{
  g_test_init (&argc, &argv, NULL);
  for (unsigned i = 0; i < n; i++) {
    const struct test *t = &tests[i];

    if (t->run)
      g_test_add_func (t->path, t->run);
    else if (t->run_each)
      add_values (t);
    else
      g_test_add_data_func (t->path, t->data, t->run_with);
  }
  return g_test_run ();
}

#define TABLE_MAIN(tests) \
  int \
  main (int argc, char **argv) \
  { \
    return run_table (argc, argv, tests, G_N_ELEMENTS (tests)); \
  }

#endif /* TESTS_TABLE_H */
