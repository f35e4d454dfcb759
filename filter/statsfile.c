/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file of the statistics: see statsfile.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib.h>

#include "clock.h"
#include "cond.h"
#include "lock.h"
#include "statsfile.h"

struct statsfile {
  /* Constant after statsfile_start. */
  struct statsfile_calls calls;
  uint64_t period_ns, end_ns;
  int dir;                      /* of the file; -1: it cannot be replaced */
  char *base, *temporary;       /* names in the directory */
  mode_t mode;
  uid_t uid;
  gid_t gid;
  bool is_regular;
  bool has_thread;
  pthread_t thread;
  /* The thread's, while there is one. */
  int fd;                       /* for writing in place; -1: none */
  bool is_logged;
  pthread_mutex_t lock;
  struct cond changed;
  /* Under the lock. */
  bool is_ending;               /* the thread is to write once more and end */
  bool has_ended;
  bool is_abandoned;            /* the thread frees the struct */
};

struct text {
  char *text;
  size_t length;
};

/* Wants the lock, if there is a thread. */
static int
print (const struct statsfile *s, struct text *t)
{
  FILE *fp;

  *t = (struct text) { NULL, 0 };
  fp = open_memstream (&t->text, &t->length);
  if (fp == NULL)
    return errno;
  s->calls.print (fp);
  return fclose (fp) == 0 ? 0 : errno;
}

static int
write_all (int fd, const struct text *t)
{
  for (size_t done = 0; done < t->length;) {
    ssize_t n = write (fd, t->text + done, t->length - done);

    if (n == -1 && errno != EINTR)
      return errno;
    done += n == -1 ? 0 : n;
  }
  return 0;
}

static int
write_in_place (const struct statsfile *s, const struct text *t)
{
  int err;

  if (s->is_regular && lseek (s->fd, 0, SEEK_SET) == -1)
    return errno;
  err = write_all (s->fd, t);
  if (err == 0 && s->is_regular && ftruncate (s->fd, t->length) == -1)
    err = errno;
  return err;
}

/* A killed server may have left one. */
static int
open_temporary (const struct statsfile *s)
{
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  int fd = openat (s->dir, s->temporary, flags, s->mode);

  if (fd == -1 && errno == EEXIST
      && unlinkat (s->dir, s->temporary, 0) == 0)
    fd = openat (s->dir, s->temporary, flags, s->mode);
  return fd;
}

static int
replace (const struct statsfile *s, const struct text *t)
{
  int fd = open_temporary (s);
  int err;

  if (fd == -1)
    return errno;
  err = write_all (fd, t);
  /* The same owner as before, where the server's user may set it. */
  (void) !fchown (fd, s->uid, s->gid);
  /* The same rights as before, whatever the umask is. */
  if (err == 0 && fchmod (fd, s->mode) == -1)
    err = errno;
  if (close (fd) == -1 && err == 0)
    err = errno;
  if (err == 0 && renameat (s->dir, s->temporary, s->dir, s->base) == -1)
    err = errno;
  if (err)
    unlinkat (s->dir, s->temporary, 0);
  return err;
}

/* Whether another try cannot succeed: the file can only be written in place.
 * EBUSY: the file itself is a mount point, as in some containers.  EISDIR: the
 * temporary's name is that of a directory.
 */
static bool
is_refused (int err)
{
  return err == EACCES || err == EPERM || err == EROFS || err == EBUSY
    || err == EISDIR || err == ENAMETOOLONG;
}

static void
no_replacing (struct statsfile *s, int err)
{
  if (s->dir != -1)
    close (s->dir);
  s->dir = -1;
  s->calls.log (STATSFILE_ONLY_AT_END, err);
}

static void
note_failure (struct statsfile *s, int err)
{
  if (!s->is_logged)
    s->calls.log (STATSFILE_FAILED, err);
  s->is_logged = true;
}

/* A report that replaces the file, or is written in place at the end. */
static int
write_report (const struct statsfile *s)
{
  struct text t;
  int err = print (s, &t);

  if (err == 0)
    err = s->dir == -1 ? write_in_place (s, &t) : replace (s, &t);
  free (t.text);
  return err;
}

/* Opening. */

static int
open_directory (struct statsfile *s, const char *name)
{
  g_autofree char *directory = NULL;
  char *path = realpath (name, NULL);   /* a link stays one */

  if (path == NULL)
    return errno;
  directory = g_path_get_dirname (path);
  s->base = g_path_get_basename (path);
  s->temporary = g_strconcat (s->base, ".new", NULL);
  free (path);
  s->dir = open (directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
  return s->dir == -1 ? errno : 0;
}

/* The file is a regular one. */
static void
begin_replacing (struct statsfile *s, const char *name)
{
  int err = open_directory (s, name);
  int fd;

  if (err == 0)
    err = write_report (s);
  if (err == 0) {
    /* The server's next user may have no rights in the directory. */
    fd = openat (s->dir, s->base, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    close (s->fd);
    s->fd = fd;
  }
  else if (s->dir == -1 || is_refused (err)) {
    no_replacing (s, err);
    if (ftruncate (s->fd, 0) == -1)
      note_failure (s, errno);
  }
  else
    note_failure (s, err);
}

static int
open_file (struct statsfile *s, const char *name)
{
  bool is_device = g_str_has_prefix (name, "/dev/");
  struct stat st;

  if (strcmp (name, "-") == 0) {
    s->fd = STDERR_FILENO;
    return 0;
  }
  /* /dev/stdout may be a log: append to it.  A FIFO is opened only once. */
  s->fd = open (name, O_WRONLY | O_CREAT | O_CLOEXEC
                | (is_device ? O_APPEND : 0), 0666);
  if (s->fd == -1 || fstat (s->fd, &st) == -1)
    return errno;
  s->is_regular = !is_device && S_ISREG (st.st_mode);
  s->mode = st.st_mode & 0777;
  s->uid = st.st_uid;
  s->gid = st.st_gid;
  if (s->is_regular)
    begin_replacing (s, name);
  return 0;
}

int
statsfile_open (const char *name, const struct statsfile_calls *calls,
                struct statsfile **sp)
{
  struct statsfile *s = g_new0 (struct statsfile, 1);
  int err;

  s->calls = *calls;
  s->dir = s->fd = -1;
  pthread_mutex_init (&s->lock, NULL);
  err = open_file (s, name);
  if (err)
    statsfile_free (s);
  else
    *sp = s;
  return err;
}

void
statsfile_free (struct statsfile *s)
{
  if (s->dir != -1)
    close (s->dir);
  if (s->fd != -1 && s->fd != STDERR_FILENO)
    close (s->fd);
  g_free (s->base);
  g_free (s->temporary);
  pthread_mutex_destroy (&s->lock);
  g_free (s);
}

/* The thread. */

/* Releases the lock while it writes.  Whether the thread goes on. */
static bool
rewrite_locked (struct statsfile *s)
{
  struct text t;
  int err = print (s, &t);

  pthread_mutex_unlock (&s->lock);
  if (err == 0)
    err = replace (s, &t);
  free (t.text);
  pthread_mutex_lock (&s->lock);
  if (s->is_abandoned)          /* nothing to log to */
    return false;
  if (is_refused (err) && s->fd != -1) {
    no_replacing (s, err);
    return false;
  }
  if (err)
    note_failure (s, err);
  else if (s->fd != -1) {
    close (s->fd);
    s->fd = -1;
  }
  return true;
}

static void
wait_locked (struct statsfile *s)
{
  uint64_t until_ns = clock_ns () + s->period_ns;

  while (!s->is_ending && cond_wait_until (&s->changed, &s->lock, until_ns))
    ;
}

static void *
run (void *vp)
{
  struct statsfile *s = vp;
  bool goes_on = true, is_abandoned;

  pthread_mutex_lock (&s->lock);
  while (goes_on && !s->is_abandoned) {
    goes_on = !s->is_ending;
    if (rewrite_locked (s))
      wait_locked (s);
    else
      goes_on = false;
  }
  s->has_ended = true;
  cond_broadcast (&s->changed);
  is_abandoned = s->is_abandoned;
  pthread_mutex_unlock (&s->lock);
  if (is_abandoned)
    statsfile_free (s);
  return NULL;
}

void
statsfile_start (struct statsfile *s, uint64_t period_ns, uint64_t end_ns)
{
  int err;

  if (s->dir == -1)
    return;
  s->period_ns = period_ns;
  s->end_ns = end_ns;
  err = pthread_create (&s->thread, NULL, run, s);
  if (err)
    s->calls.log (STATSFILE_ONLY_AT_END, err);
  s->has_thread = err == 0;
}

/* Whether the thread has ended in time. */
static bool
end_thread (struct statsfile *s)
{
  uint64_t until_ns = clock_ns () + s->end_ns;

  LOCK_IN_SCOPE (&s->lock);
  s->is_ending = true;
  cond_broadcast (&s->changed);
  while (!s->has_ended && cond_wait_until (&s->changed, &s->lock, until_ns))
    ;
  s->is_abandoned = !s->has_ended;
  return s->has_ended;
}

void
statsfile_end (struct statsfile *s)
{
  bool is_written = false;
  int err;

  if (s->has_thread) {
    pthread_t thread = s->thread;
    void (*log) (enum statsfile_event, int err) = s->calls.log;

    if (!end_thread (s)) {
      /* From here on the thread may free it. */
      pthread_detach (thread);
      log (STATSFILE_HANGS, 0);
      return;
    }
    pthread_join (thread, NULL);
    is_written = s->dir != -1;
  }
  err = is_written ? 0 : write_report (s);
  if (err)
    note_failure (s, err);
  statsfile_free (s);
}
