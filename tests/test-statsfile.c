/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file that asyncpool-stats names (filter/statsfile.h).  The filter
 * rewrites it, and it is complete at any time.  The server goes on when a write
 * fails.
 *
 * Functions of this file take the place of the C library's, and let a file
 * system fail or hang.  The contents of the file are not its job.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib.h>
#include <glib/gstdio.h>

#include "clock.h"
#include "statsfile.h"
#include "table.h"

#define MS_NS UINT64_C (1000000)
#define MINUTE_NS UINT64_C (60000000000)

/* Of a report: several writes of a slow file system. */
static atomic_uint n_lines = 2000;

/* The file system. */

static atomic_int write_error, rename_error;    /* 0: none */
static atomic_bool hangs;
static atomic_uint n_hanging;

__attribute__ ((visibility ("default"))) ssize_t
write (int fd, const void *buf, size_t n)
{
  ssize_t (*real) (int, const void *, size_t);
  bool is_report = n > 0 && *(const char *) buf == '<';

  *(void **) &real = dlsym (RTLD_NEXT, "write");
  if (!is_report)
    return real (fd, buf, n);
  if (hangs) {
    n_hanging++;
    while (hangs)
      g_usleep (1000);
    n_hanging--;
  }
  if (write_error) {
    errno = write_error;
    /* A part is there, as on a full disk. */
    return real (fd, buf, 1) == 1 ? (errno = write_error, -1) : -1;
  }
  return real (fd, buf, n);
}

__attribute__ ((visibility ("default"))) int
renameat (int from_dir, const char *from, int to_dir, const char *to)
{
  int (*real) (int, const char *, int, const char *);

  *(void **) &real = dlsym (RTLD_NEXT, "renameat");
  if (rename_error == 0)
    return real (from_dir, from, to_dir, to);
  errno = rename_error;
  return -1;
}

static atomic_bool no_thread;

__attribute__ ((visibility ("default"))) int
pthread_create (pthread_t *id, const pthread_attr_t *attr,
                void *(*run) (void *), void *arg)
{
  int (*real) (pthread_t *, const pthread_attr_t *, void *(*) (void *), void *);

  *(void **) &real = dlsym (RTLD_NEXT, "pthread_create");
  return no_thread ? EAGAIN : real (id, attr, run, arg);
}

/* The server. */

static atomic_uint n_printed;
static atomic_uint n_logged[STATSFILE_HANGS + 1];
static atomic_int logged_error;

/* "<N" ... "N>" */
static void
print (FILE *fp)
{
  unsigned n = ++n_printed;

  fprintf (fp, "<%u\n", n);
  for (unsigned i = 0; i < n_lines; i++)
    fprintf (fp, "line %u of %u\n", i, n);
  fprintf (fp, "%u>\n", n);
}

static void
note (enum statsfile_event event, int err)
{
  logged_error = err;
  n_logged[event]++;
}

static const struct statsfile_calls calls = { print, note };

/* The number of the report that TEXT is: it must be a whole one. */
static unsigned
number_of (const char *text)
{
  unsigned n = 0;
  g_autofree char *end = NULL;

  g_assert_cmpint (sscanf (text, "<%u\n", &n), ==, 1);
  end = g_strdup_printf ("\nline %u of %u\n%u>\n", n_lines - 1, n, n);
  g_assert_true (g_str_has_suffix (text, end));
  return n;
}

static unsigned
read_report (const char *name)
{
  g_autofree char *text = NULL;

  g_assert_true (g_file_get_contents (name, &text, NULL, NULL));
  return number_of (text);
}

/* Waits for a report after N. */
static void
wait_for_report (const char *name, unsigned n)
{
  uint64_t until_ns = clock_ns () + MINUTE_NS;

  while (read_report (name) <= n && clock_ns () < until_ns)
    ;
  g_assert_cmpuint (read_report (name), >, n);
}

static void
wait_for (atomic_uint *counter, unsigned n)
{
  uint64_t until_ns = clock_ns () + MINUTE_NS;

  while (*counter < n && clock_ns () < until_ns)
    g_usleep (1000);
  g_assert_cmpuint (*counter, >=, n);
}

static unsigned
count_entries (const char *directory)
{
  DIR *d = opendir (directory);
  unsigned n = 0;

  g_assert_nonnull (d);
  while (readdir (d))
    n++;
  closedir (d);
  return n;
}

struct place {
  char *dir, *file, *temporary;
  unsigned n_open;
};

static struct place
begin (void)
{
  struct place p;

  p.dir = g_dir_make_tmp ("statsfile.XXXXXX", NULL);
  g_assert_nonnull (p.dir);
  p.file = g_build_filename (p.dir, "stats", NULL);
  p.temporary = g_strconcat (p.file, ".new", NULL);
  n_printed = 0;
  logged_error = 0;
  for (unsigned i = 0; i < G_N_ELEMENTS (n_logged); i++)
    n_logged[i] = 0;
  p.n_open = count_entries ("/proc/self/fd");
  return p;
}

static void
end (struct place *p)
{
  g_assert_cmpuint (count_entries ("/proc/self/fd"), ==, p->n_open);
  g_unlink (p->temporary);
  g_unlink (p->file);
  g_rmdir (p->dir);
  g_free (p->dir);
  g_free (p->file);
  g_free (p->temporary);
}

static void
assert_logged (unsigned only_at_end, unsigned failed, unsigned hangs_)
{
  g_assert_cmpuint (n_logged[STATSFILE_ONLY_AT_END], ==, only_at_end);
  g_assert_cmpuint (n_logged[STATSFILE_FAILED], ==, failed);
  g_assert_cmpuint (n_logged[STATSFILE_HANGS], ==, hangs_);
}

static struct statsfile *
open_stats (const char *name)
{
  struct statsfile *s;

  g_assert_cmpint (statsfile_open (name, &calls, &s), ==, 0);
  return s;
}

/* Tests. */

/* The file is there from the start, and again and again, and at the end.  It is
 * whole whenever it is read.
 */
static void
test_rewritten (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);

  g_assert_cmpuint (read_report (p.file), ==, 1);
  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for_report (p.file, 100);
  statsfile_end (s);
  g_assert_cmpuint (read_report (p.file), ==, n_printed);
  g_assert_cmpuint (count_entries (p.dir), ==, 3);      /* ., .. and the file */
  assert_logged (0, 0, 0);
  end (&p);
}

/* Within a period it is not rewritten, and the end does not wait for one. */
static void
test_period (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);

  statsfile_start (s, 60 * MINUTE_NS, MINUTE_NS);
  wait_for_report (p.file, 1);  /* as soon as the thread starts */
  g_usleep (20000);
  g_assert_cmpuint (n_printed, ==, 2);
  statsfile_end (s);
  g_assert_cmpuint (read_report (p.file), ==, 3);
  end (&p);
}

/* Opened, and never started. */
static void
test_not_started (void)
{
  struct place p = begin ();

  statsfile_free (open_stats (p.file));
  g_assert_cmpuint (read_report (p.file), ==, 1);
  statsfile_end (open_stats (p.file));
  g_assert_cmpuint (read_report (p.file), ==, 3);
  end (&p);
}

/* An old file keeps its rights, whatever the umask is, and its owner. A reader
 * that has it open reads it to its end. What a killed server has left is no
 * obstacle.
 */
static void
test_old_file (void)
{
  struct place p = begin ();
  struct statsfile *s;
  struct stat st;
  char old[4] = "";
  int fd;

  g_assert_true (g_file_set_contents (p.file, "old", -1, NULL));
  g_assert_true (g_file_set_contents (p.temporary, "partial", -1, NULL));
  g_assert_cmpint (chmod (p.file, 0666), ==, 0);
  if (geteuid () == 0)
    g_assert_cmpint (chown (p.file, 1, 2), ==, 0);
  fd = open (p.file, O_RDONLY | O_CLOEXEC);
  s = open_stats (p.file);
  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for_report (p.file, 2);
  g_assert_cmpint (read (fd, old, 3), ==, 3);
  g_assert_cmpstr (old, ==, "old");
  close (fd);
  g_assert_cmpint (stat (p.file, &st), ==, 0);
  g_assert_cmpuint (st.st_mode & 0777, ==, 0666);
  if (geteuid () == 0)
    g_assert_true (st.st_uid == 1 && st.st_gid == 2);
  statsfile_end (s);
  g_assert_cmpuint (count_entries (p.dir), ==, 3);
  end (&p);
}

/* A symbolic link stays one.  The file that it names is replaced. */
static void
test_link (void)
{
  struct place p = begin (), other = begin ();
  g_autofree char *link_name = g_build_filename (other.dir, "link", NULL);
  struct statsfile *s;

  g_assert_cmpint (symlink (p.file, link_name), ==, 0);
  s = open_stats (link_name);
  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for_report (p.file, 3);
  statsfile_end (s);
  g_assert_true (g_file_test (link_name, G_FILE_TEST_IS_SYMLINK));
  g_unlink (link_name);
  end (&other);
  end (&p);
}

/* The server changes its directory. */
static void
test_relative (void)
{
  struct place p = begin ();
  g_autofree char *here = g_get_current_dir ();
  struct statsfile *s;

  g_assert_cmpint (chdir (p.dir), ==, 0);
  s = open_stats ("stats");
  g_assert_cmpint (chdir (here), ==, 0);
  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for_report (p.file, 3);
  statsfile_end (s);
  end (&p);
}

/* The disk is full for a while.  The last whole report stays. */
static void
test_full (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);
  unsigned n;

  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for_report (p.file, 3);
  write_error = ENOSPC;
  wait_for (&n_logged[STATSFILE_FAILED], 1);
  n = n_printed;
  wait_for (&n_printed, n + 10);
  g_assert_cmpuint (read_report (p.file), <=, n);
  g_assert_cmpint (logged_error, ==, ENOSPC);
  write_error = 0;
  wait_for_report (p.file, n + 10);
  write_error = ENOSPC;
  statsfile_end (s);
  write_error = 0;
  read_report (p.file);
  assert_logged (0, 1, 0);
  g_assert_cmpuint (count_entries (p.dir), ==, 3);
  end (&p);
}

/* It is full from the start. */
static void
test_full_at_start (void)
{
  struct place p = begin ();
  struct statsfile *s;

  write_error = ENOSPC;
  s = open_stats (p.file);
  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for (&n_printed, 5);
  assert_logged (0, 1, 0);
  write_error = 0;
  wait_for (&n_printed, 10);
  statsfile_end (s);
  read_report (p.file);
  assert_logged (0, 1, 0);
  end (&p);
}

/* The last write fails, and none before. */
static void
test_full_at_end (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);

  statsfile_start (s, 60 * MINUTE_NS, MINUTE_NS);
  wait_for_report (p.file, 1);
  write_error = ENOSPC;
  statsfile_end (s);
  write_error = 0;
  g_assert_cmpuint (read_report (p.file), ==, 2);
  assert_logged (0, 1, 0);
  end (&p);
}

/* The directory is removed. */
static void
test_removed (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);
  unsigned n;

  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for_report (p.file, 3);
  /* The thread may make a file meanwhile. */
  do {
    g_unlink (p.file);
    g_unlink (p.temporary);
  } while (g_rmdir (p.dir) == -1);
  wait_for (&n_logged[STATSFILE_FAILED], 1);
  n = n_printed;
  wait_for (&n_printed, n + 10);
  g_assert_cmpint (logged_error, ==, ENOENT);
  statsfile_end (s);
  assert_logged (0, 1, 0);
  end (&p);
}

/* The server's next user may not replace the file.  It is written in place, at
 * the end, through the handle of the first user.
 */
static void
test_refused (unsigned err)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);

  rename_error = err;
  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for (&n_logged[STATSFILE_ONLY_AT_END], 1);
  g_assert_cmpint (logged_error, ==, err);
  g_assert_cmpuint (read_report (p.file), ==, 1);
  n_lines = 1000;               /* nothing of the longer one is left */
  statsfile_end (s);
  rename_error = 0;
  g_assert_cmpuint (read_report (p.file), ==, 3);
  n_lines = 2000;
  g_assert_cmpuint (count_entries (p.dir), ==, 3);
  assert_logged (1, 0, 0);
  end (&p);
}

/* The place of FILE.new is taken, and stays so. */
static void
test_taken (void)
{
  struct place p = begin ();
  struct statsfile *s;

  g_assert_cmpint (mkdir (p.temporary, 0700), ==, 0);
  s = open_stats (p.file);
  g_assert_cmpint (logged_error, ==, EISDIR);
  statsfile_start (s, MS_NS, MINUTE_NS);
  statsfile_end (s);
  read_report (p.file);
  assert_logged (1, 0, 0);
  g_assert_cmpint (rmdir (p.temporary), ==, 0);
  end (&p);
}

/* Not even the first user may. */
static void
test_refused_at_start (void)
{
  struct place p = begin ();
  struct statsfile *s;
  g_autofree char *text = NULL;

  g_assert_true (g_file_set_contents (p.file, "old", -1, NULL));
  rename_error = EPERM;
  s = open_stats (p.file);
  assert_logged (1, 0, 0);
  statsfile_start (s, MS_NS, MINUTE_NS);
  g_assert_true (g_file_get_contents (p.file, &text, NULL, NULL));
  g_assert_cmpstr (text, ==, "");
  statsfile_end (s);
  rename_error = 0;
  read_report (p.file);
  assert_logged (1, 0, 0);
  end (&p);
}

/* The system allows no thread more. */
static void
test_no_thread (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);

  no_thread = true;
  statsfile_start (s, MS_NS, MINUTE_NS);
  no_thread = false;
  g_assert_cmpint (logged_error, ==, EAGAIN);
  statsfile_end (s);
  g_assert_cmpuint (read_report (p.file), ==, 2);
  assert_logged (1, 0, 0);
  end (&p);
}

/* Later such an error is like any other one. */
static void
test_refused_later (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);
  unsigned n;

  statsfile_start (s, MS_NS, MINUTE_NS);
  wait_for_report (p.file, 3);
  rename_error = EACCES;
  wait_for (&n_logged[STATSFILE_FAILED], 1);
  rename_error = 0;
  n = n_printed;
  wait_for_report (p.file, n + 1);
  statsfile_end (s);
  assert_logged (0, 1, 0);
  end (&p);
}

/* The file system hangs: the end waits for its time and no longer.  After it
 * nothing is printed or logged, and the thread frees what it has.
 */
static void
test_hangs (void)
{
  struct place p = begin ();
  struct statsfile *s = open_stats (p.file);
  uint64_t start_ns;
  unsigned n;

  statsfile_start (s, MS_NS, 50 * MS_NS);
  wait_for_report (p.file, 3);
  hangs = true;
  wait_for (&n_hanging, 1);
  n = n_printed;
  start_ns = clock_ns ();
  statsfile_end (s);
  g_assert_cmpuint (clock_ns () - start_ns, >=, 50 * MS_NS);
  g_assert_cmpuint (clock_ns () - start_ns, <, MINUTE_NS / 2);
  assert_logged (0, 0, 1);
  write_error = ENOSPC;
  hangs = false;
  /* The thread closes its handles when it ends. */
  for (unsigned i = 0; i < 60000
         && count_entries ("/proc/self/fd") != p.n_open; i++)
    g_usleep (1000);
  write_error = 0;
  g_assert_cmpuint (n_printed, ==, n);
  assert_logged (0, 0, 1);
  end (&p);
}

/* Something else than a regular file: written once, in place. */
static void
test_fifo (void)
{
  struct place p = begin ();
  struct statsfile *s;
  char buf[65536] = "";
  size_t n = 0;
  ssize_t r;
  int fd;

  g_assert_cmpint (mkfifo (p.file, 0600), ==, 0);
  fd = open (p.file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  s = open_stats (p.file);
  statsfile_start (s, MS_NS, MINUTE_NS);
  g_usleep (20000);
  g_assert_cmpuint (n_printed, ==, 0);
  statsfile_end (s);
  while ((r = read (fd, buf + n, sizeof buf - 1 - n)) > 0)
    n += r;
  g_assert_cmpint (r, ==, 0);
  close (fd);
  g_assert_cmpuint (number_of (buf), ==, 1);
  assert_logged (0, 0, 0);
  end (&p);
}

/* A name in /dev is appended to, though it may be a regular file. */
static void
test_dev (void)
{
  struct place p = begin ();
  struct statsfile *s;
  g_autofree char *name = NULL, *text = NULL;
  int fd = open (p.file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

  g_assert_cmpint (write (fd, "old\n", 4), ==, 4);
  name = g_strdup_printf ("/dev/fd/%d", fd);
  s = open_stats (name);
  statsfile_start (s, MS_NS, MINUTE_NS);
  g_usleep (20000);
  statsfile_end (s);
  close (fd);
  g_assert_true (g_file_get_contents (p.file, &text, NULL, NULL));
  g_assert_true (g_str_has_prefix (text, "old\n<"));
  g_assert_cmpuint (number_of (text + 4), ==, 1);
  end (&p);
}

static void
test_errors (void)
{
  struct place p = begin ();
  struct statsfile *s;
  g_autofree char *below = g_build_filename (p.dir, "no", "stats", NULL);

  g_assert_cmpint (statsfile_open (p.dir, &calls, &s), ==, EISDIR);
  g_assert_cmpint (statsfile_open (below, &calls, &s), ==, ENOENT);
  g_assert_cmpuint (n_printed, ==, 0);
  end (&p);
}

static const struct test tests[] = {
  { "/statsfile/rewritten", .run = test_rewritten },
  { "/statsfile/period", .run = test_period },
  { "/statsfile/not-started", .run = test_not_started },
  { "/statsfile/old-file", .run = test_old_file },
  { "/statsfile/link", .run = test_link },
  { "/statsfile/relative", .run = test_relative },
  { "/statsfile/full", .run = test_full },
  { "/statsfile/full/at-start", .run = test_full_at_start },
  { "/statsfile/full/at-end", .run = test_full_at_end },
  { "/statsfile/removed", .run = test_removed },
  { "/statsfile/refused", .run_each = test_refused,
    .values = { EACCES, EPERM, EROFS, EBUSY, ENAMETOOLONG } },
  { "/statsfile/refused/at-start", .run = test_refused_at_start },
  { "/statsfile/refused/taken", .run = test_taken },
  { "/statsfile/refused/later", .run = test_refused_later },
  { "/statsfile/no-thread", .run = test_no_thread },
  { "/statsfile/hangs", .run = test_hangs },
  { "/statsfile/fifo", .run = test_fifo },
  { "/statsfile/dev", .run = test_dev },
  { "/statsfile/errors", .run = test_errors },
};

TABLE_MAIN (tests)
