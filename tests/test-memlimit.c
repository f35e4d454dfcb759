/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The memory that the server may use (filter/memlimit.h), over directories that
 * look like /proc and /sys of machines and containers.
 */
#include <unistd.h>

#include <glib/gstdio.h>

#include "memlimit.h"
#include "table.h"

#define MIB (UINT64_C (1) << 20)
#define CGROUP "sys/fs/cgroup/"
#define NO_LIMIT_V1 "9223372036854771712\n"

static uint64_t
machine (void)
{
  return (uint64_t) sysconf (_SC_PHYS_PAGES) * sysconf (_SC_PAGESIZE);
}

struct files {
  struct { const char *path, *text; } at[6];
  uint64_t limit;               /* 0: the machine's memory */
};

/* Removes a file, and the directories above it that are empty. */
static void
remove_file (const char *root, const char *path)
{
  g_autofree char *name = g_build_filename (root, path, NULL);

  g_unlink (name);
  while (!g_str_equal (name, root)) {
    *g_strrstr (name, "/") = '\0';
    g_rmdir (name);
  }
}

static void
test_limit (gconstpointer data)
{
  const struct files *f = data;
  g_autofree char *root = g_dir_make_tmp ("memlimit.XXXXXX", NULL);

  g_assert_nonnull (root);
  for (unsigned i = 0; i < G_N_ELEMENTS (f->at) && f->at[i].path; i++) {
    g_autofree char *name = g_build_filename (root, f->at[i].path, NULL);
    g_autofree char *dir = g_path_get_dirname (name);

    g_assert_cmpint (g_mkdir_with_parents (dir, 0700), ==, 0);
    g_assert_true (g_file_set_contents (name, f->at[i].text, -1, NULL));
  }
  g_assert_cmpuint (memlimit_bytes (root), ==,
                    f->limit ? f->limit : machine ());
  for (unsigned i = 0; i < G_N_ELEMENTS (f->at) && f->at[i].path; i++)
    remove_file (root, f->at[i].path);
  g_assert_false (g_file_test (root, G_FILE_TEST_EXISTS));
}

/* The limit on this machine: more than nothing, and no more than it has. */
static void
test_here (void)
{
  g_assert_cmpuint (memlimit_bytes (""), >, 0);
  g_assert_cmpuint (memlimit_bytes (""), <=, machine ());
}

static const struct files
  none = { .at = { { CGROUP "memory.max", "1048576\n" } } },
  v2 = { .limit = MIB, .at = {
    { "proc/self/cgroup", "0::/a/b\n" },
    { CGROUP "a/b/memory.max", "1048576\n" },
    { CGROUP "a/memory.max", "max\n" } } },
  v2_above = { .limit = MIB, .at = {
    { "proc/self/cgroup", "0::/a/b\n" },
    { CGROUP "a/b/memory.max", "2097152\n" },
    { CGROUP "a/memory.max", "1048576\n" },
    { CGROUP "memory.max", "3145728\n" } } },
  v2_other = { .at = {
    { "proc/self/cgroup", "0::/a\n" },
    { CGROUP "a/memory.max", "max\n" },
    { CGROUP "b/memory.max", "1048576\n" },
    { CGROUP "a/b/memory.max", "1048576\n" } } },
  v2_root = { .limit = MIB, .at = {
    { "proc/self/cgroup", "0::/\n" },
    { CGROUP "memory.max", "1048576\n" } } },
  v2_outside = { .limit = MIB, .at = {
    { "proc/self/cgroup", "0::/docker/4711\n" },
    { CGROUP "memory.max", "1048576\n" } } },
  v2_odd = { .limit = MIB, .at = {
    { "proc/self/cgroup", "0::/a:b c\n" },
    { CGROUP "a:b c/memory.max", "1048576\n" } } },
  v1 = { .limit = MIB, .at = {
    { "proc/self/cgroup", "9:name=systemd:/s\n5:cpu,memory:/a/b\n0::/\n" },
    { CGROUP "memory/a/b/memory.limit_in_bytes", NO_LIMIT_V1 },
    { CGROUP "memory/a/memory.limit_in_bytes", "1048576\n" },
    { CGROUP "memory/memory.limit_in_bytes", NO_LIMIT_V1 },
    { CGROUP "memory/s/memory.limit_in_bytes", "65536\n" } } },
  v1_outside = { .limit = MIB, .at = {
    { "proc/self/cgroup", "4:memory:/docker/4711\n" },
    { CGROUP "memory/memory.limit_in_bytes", "1048576\n" } } },
  v1_unlimited = { .at = {
    { "proc/self/cgroup", "4:memory:/a\n" },
    { CGROUP "memory/a/memory.limit_in_bytes", NO_LIMIT_V1 } } },
  broken = { .at = {
    { "proc/self/cgroup", "0::\nmemory\n\n" },
    { CGROUP "memory.max", "" } } };

static const struct test tests[] = {
  { "/memlimit/no-cgroup", .run_with = test_limit, .data = &none },
  { "/memlimit/v2/own", .run_with = test_limit, .data = &v2 },
  { "/memlimit/v2/above", .run_with = test_limit, .data = &v2_above },
  { "/memlimit/v2/others", .run_with = test_limit, .data = &v2_other },
  { "/memlimit/v2/root", .run_with = test_limit, .data = &v2_root },
  { "/memlimit/v2/outside", .run_with = test_limit, .data = &v2_outside },
  { "/memlimit/v2/odd-name", .run_with = test_limit, .data = &v2_odd },
  { "/memlimit/v1/above", .run_with = test_limit, .data = &v1 },
  { "/memlimit/v1/outside", .run_with = test_limit, .data = &v1_outside },
  { "/memlimit/v1/none", .run_with = test_limit, .data = &v1_unlimited },
  { "/memlimit/broken", .run_with = test_limit, .data = &broken },
  { "/memlimit/here", .run = test_here },
};

TABLE_MAIN (tests)
