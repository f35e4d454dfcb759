/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The guest's program of test-crash-real.sh: an fsync-heavy job on a file
 * system, and the check of crash images of it.
 *
 *   guest-crash write DIRECTORY STEPS [DM_DEVICE]
 *   guest-crash check FILE_SYSTEM
 *
 * The host is on stdin and stdout, a serial line.
 *
 * `write': each of some workers makes STEPS steps in a directory of its own.
 * Between them it changes a file that it does not sync.  A step ends with an
 * fsync.  Then the worker sends `ack WORKER STEP', and waits for a line.
 * DM_DEVICE is the name of a dm-log-writes device.  A mark WORKER_STEP goes
 * into its log before the line is sent.
 *
 * `check': the host sends lines `N ACK...' and a last line `end'.  Partition N
 * of the first disk is an image.  It must hold the steps of each worker up to
 * its ACK, and no part of a step after the next one.  ACK is -1 where nothing
 * is known.  The answer is `bad N REASON' for each bad image.
 *
 * All content is known from a file's number and the position, so no copy of it
 * is needed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/dm-ioctl.h>

#define TTY "/dev/ttyS1"
#define MOUNT "/tmp/check"

enum { WORKERS = 4, SLOTS = 3, LIFE = 15, MAX_BYTES = 1 << 20 };
enum step { CREATE, REPLACE, APPEND, REMOVE, N_STEPS };

/* A file's number is its worker's number times WORKER_FILES, plus the number of
 * the step that has made it.
 */
enum { WORKER_FILES = 1000000, APPENDED = WORKER_FILES - 1 };

static unsigned char data[MAX_BYTES], found[MAX_BYTES + 1];

__attribute__ ((noreturn))
static void
die (const char *message)
{
  perror (message);
  exit (1);
}

static void
fill (unsigned file, size_t offset, size_t count)
{
  for (size_t i = offset; i < offset + count; i++) {
    uint64_t x = ((uint64_t) file << 32 | i / 8)
      * UINT64_C (0x9e3779b97f4a7c15);

    x = (x ^ x >> 32) * UINT64_C (0xd6e8feb86659fd93);
    data[i - offset] = x >> 56 ^ i;
  }
}

static size_t
size_of (int step)
{
  return 1 + step * 7919 % (step % 7 == 0 ? 200000 : 9000);
}

/* Of the file that grows, after a step. */
static size_t
appended_size (int step)
{
  size_t r = 0;

  for (int n = APPEND; n <= step; n += N_STEPS)
    r += 1 + n * 577 % 5000;
  return r;
}

static int
slot_of (int step)
{
  return step / N_STEPS % SLOTS;
}

/* The job. */

static void
sync_path (const char *path)
{
  int fd = open (path, O_RDONLY);

  if (fd == -1 || fsync (fd) == -1 || close (fd) == -1)
    die (path);
}

static void
write_file (const char *path, unsigned file, size_t offset, size_t count,
            bool sync)
{
  int fd = open (path, O_WRONLY | O_CREAT, 0600);

  fill (file, offset, count);
  if (fd == -1 || pwrite (fd, data, count, offset) != (ssize_t) count
      || (sync && fsync (fd) == -1) || close (fd) == -1)
    die (path);
}

static void
step (unsigned first, int n)
{
  char path[32];
  size_t size;

  switch (n % N_STEPS) {
  case CREATE:
    snprintf (path, sizeof path, "f%d", n);
    write_file (path, first + n, 0, size_of (n), true);
    break;
  case REPLACE:
    snprintf (path, sizeof path, "r%d", slot_of (n));
    write_file ("new", first + n, 0, size_of (n), true);
    if (rename ("new", path) == -1)
      die (path);
    break;
  case APPEND:
    size = appended_size (n - 1);
    write_file ("appended", first + APPENDED, size, appended_size (n) - size,
                true);
    return;
  case REMOVE:
    snprintf (path, sizeof path, "f%d", n - LIFE);
    if (n >= LIFE && unlink (path) == -1)
      die (path);
    break;
  }
  sync_path (".");
}

/* Dirty data that no step syncs. */
static void
add_noise (int n)
{
  write_file ("noise", n, n * 28657 % 400000, 1 + n * 4181 % 20000, false);
  if (n % 8 == 0 && truncate ("noise", n * 6765 % 400000) == -1)
    die ("noise");
}

static void
mark (const char *device, unsigned worker, int n)
{
  struct {
    struct dm_ioctl ioctl;
    uint64_t sector;            /* this and the next: struct dm_target_msg */
    char message[64];
  } m = {
    .ioctl = { .version = { DM_VERSION_MAJOR, 0, 0 }, .data_size = sizeof m,
               .data_start = offsetof (typeof (m), sector),
               .target_count = 1 },
  };
  int fd = open ("/dev/mapper/control", O_RDWR);

  snprintf (m.ioctl.name, sizeof m.ioctl.name, "%s", device);
  snprintf (m.message, sizeof m.message, "mark %u_%d", worker, n);
  if (fd == -1 || ioctl (fd, DM_TARGET_MSG, &m) == -1)
    die ("dm");
  close (fd);
}

static void
acknowledge (int tty, unsigned worker, int n)
{
  char c = 0;

  if (flock (tty, LOCK_EX) == -1)
    die (TTY);
  dprintf (tty, "ack %u %d\n", worker, n);
  while (c != '\n')
    if (read (tty, &c, 1) != 1)
      die (TTY);
  flock (tty, LOCK_UN);
}

static int
work (const char *directory, unsigned worker, int steps, const char *device)
{
  int tty = open (TTY, O_RDWR | O_NOCTTY);
  char path[32];

  snprintf (path, sizeof path, "d%u", worker);
  if (tty == -1 || chdir (directory) == -1 || mkdir (path, 0700) == -1)
    die (path);
  sync_path (".");
  if (chdir (path) == -1)
    die (path);
  for (int n = 0; n <= steps; n++) {
    step (worker * WORKER_FILES, n);
    if (device)
      mark (device, worker, n);
    acknowledge (tty, worker, n);
    add_noise (n);
  }
  return 0;
}

static int
write_all (const char *directory, int steps, const char *device)
{
  int status, r = 0;

  if (appended_size (steps) > MAX_BYTES) {
    fprintf (stderr, "%d steps are too many\n", steps);
    return 1;
  }
  for (unsigned worker = 0; worker < WORKERS; worker++)
    switch (fork ()) {
    case -1: die ("fork");
    case 0: exit (work (directory, worker, steps, device));
    }
  while (wait (&status) != -1)
    r |= status;
  return r != 0;
}

/* The check. */

static char reason[256];

/* The first reason of an image counts. */
__attribute__ ((format (printf, 1, 2)))
static bool
wrong (const char *format, ...)
{
  va_list args;

  if (!reason[0]) {
    va_start (args, format);
    vsnprintf (reason, sizeof reason, format, args);
    va_end (args);
  }
  return false;
}

/* Reads the file into `found'.  Returns its size, or -1 if there is none. */
static ssize_t
load (const char *path)
{
  int fd = open (path, O_RDONLY);
  ssize_t size;

  if (fd == -1) {
    if (errno != ENOENT)
      wrong ("%s: %s", path, strerror (errno));
    return -1;
  }
  size = read (fd, found, sizeof found);
  if (size == -1)
    wrong ("%s: %s", path, strerror (errno));
  close (fd);
  return size;
}

/* The first `min' bytes are synced.  Others may be zero: ext4 can show a file's
 * new size before its data.
 */
static bool
has_content (ssize_t size, unsigned file, size_t min, size_t max)
{
  if (size < (ssize_t) min || size > (ssize_t) max)
    return false;
  fill (file, 0, size);
  for (ssize_t i = min; i < size; i++)
    if (found[i] == 0)
      data[i] = 0;
  return memcmp (data, found, size) == 0;
}

/* In the functions below, steps up to `ack' are there.  Step ack + 1 may be,
 * also in part.
 */

static void
check_created (unsigned first, int n, int ack)
{
  char path[32];
  ssize_t size;
  int end = n + LIFE;

  snprintf (path, sizeof path, "d%u/f%d", first / WORKER_FILES, n);
  size = load (path);
  if (size == -1) {
    if (n <= ack && end > ack + 1)
      wrong ("%s is missing at step %d", path, ack);
  }
  else if (end <= ack)
    wrong ("%s is there at step %d", path, ack);
  else if (!has_content (size, first + n, n > ack ? 0 : size_of (n),
                         size_of (n)))
    wrong ("%s at step %d: size %zd or its data", path, ack, size);
}

static void
check_replaced (unsigned first, int slot, int ack)
{
  char path[32];
  ssize_t size;
  int last = -1;

  for (int n = REPLACE; n <= ack; n += N_STEPS)
    if (slot_of (n) == slot)
      last = n;
  snprintf (path, sizeof path, "d%u/r%d", first / WORKER_FILES, slot);
  size = load (path);
  if (size == -1 ? last == -1
      : last != -1 && has_content (size, first + last, size_of (last),
                                   size_of (last)))
    return;
  ack++;
  if (size == -1 || ack % N_STEPS != REPLACE || slot_of (ack) != slot
      || !has_content (size, first + ack, size_of (ack), size_of (ack)))
    wrong ("%s after step %d: not of step %d", path, ack - 1, last);
}

static void
check_worker (unsigned worker, int ack)
{
  unsigned first = worker * WORKER_FILES;
  char path[32];

  for (int n = CREATE; n <= ack + 1; n += N_STEPS)
    check_created (first, n, ack);
  for (int slot = 0; slot < SLOTS; slot++)
    check_replaced (first, slot, ack);
  snprintf (path, sizeof path, "d%u/appended", worker);
  if (!has_content (load (path), first + APPENDED, appended_size (ack),
                    appended_size (ack + 1)) && ack >= APPEND)
    wrong ("%s at step %d: its size or data", path, ack);
}

static void
check_image (const char *file_system, unsigned n, const int acks[])
{
  char path[32];

  snprintf (path, sizeof path, "/dev/vda%u", n);
  if (mount (path, MOUNT, file_system, 0, NULL) == -1) {
    wrong ("mount: %s", strerror (errno));
    return;
  }
  if (chdir (MOUNT) == -1)
    die (MOUNT);
  for (unsigned worker = 0; worker < WORKERS; worker++)
    if (acks[worker] >= 0)
      check_worker (worker, acks[worker]);
  if (chdir ("/") == -1 || umount (MOUNT) == -1)
    die (MOUNT);
}

static int
check_all (const char *file_system)
{
  int acks[WORKERS];
  unsigned n;

  mkdir (MOUNT, 0700);
  while (scanf ("%u %d %d %d %d", &n, &acks[0], &acks[1], &acks[2], &acks[3])
         == 1 + WORKERS) {
    reason[0] = '\0';
    check_image (file_system, n, acks);
    if (reason[0])
      printf ("bad %u %s\n", n, reason);
  }
  return fflush (stdout);
}

int
main (int argc, char *argv[])
{
  if (argc >= 4 && strcmp (argv[1], "write") == 0)
    return write_all (argv[2], atoi (argv[3]), argv[4]);
  if (argc == 3 && strcmp (argv[1], "check") == 0)
    return check_all (argv[2]);
  fprintf (stderr, "see the head of guest-crash.c\n");
  return 2;
}
