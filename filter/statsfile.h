/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file that asyncpool-stats names.
 *
 * A thread rewrites a regular file periodically: it writes a new file beside it
 * (FILE.new), and renames that.  So the file is complete at any time, also
 * after the server was killed.  statsfile_open opens the directory before the
 * server changes its directory and its user.
 *
 *   how the file is written       when
 *   replaced, by the thread       it is a regular file, and its directory lets
 *                                 the server's user make files
 *   in place, at the end only     anything else: standard error, a FIFO, all
 *                                 names in /dev, a mount point, a directory
 *                                 without rights, or where FILE.new is a
 *                                 directory
 *
 * No request and no other thread ever waits for the file system.  When the
 * server ends, it waits for the last write for a limited time.  After that it
 * leaves the thread alone, and the thread frees the struct.
 *
 * Not its job: what is printed.  Nothing here knows nbdkit.
 *
 * Lock: statsfile.lock.  The thread holds it while it calls PRINT, so this lock
 * is outside all locks of the engine.  The thread never holds it while it uses
 * the file system.
 */
#ifndef ASYNCPOOL_STATSFILE_H
#define ASYNCPOOL_STATSFILE_H

#include <stdint.h>
#include <stdio.h>

struct statsfile;

enum statsfile_event {
  STATSFILE_ONLY_AT_END,        /* the file cannot be replaced */
  STATSFILE_FAILED,             /* it could not be written; logged once */
  STATSFILE_HANGS,              /* the last write has not ended in time */
};

struct statsfile_calls {
  void (*print) (FILE *);       /* prints the statistics as they are now */
  void (*log) (enum statsfile_event, int err);
};

/* Opens the file; `-' is standard error.  Writes a first report if the file can
 * be replaced.  Call it before the server changes its user.
 */
extern int statsfile_open (const char *name, const struct statsfile_calls *,
                           struct statsfile **);
/* Starts the thread, after the server has forked.  Without a file that can be
 * replaced it does nothing.  The thread waits for PERIOD_NS after each rewrite.
 */
extern void statsfile_start (struct statsfile *, uint64_t period_ns,
                             uint64_t end_ns);
/* Writes the file for the last time, ends the thread and frees.  If the thread
 * has not ended after END_NS, logs that.
 */
extern void statsfile_end (struct statsfile *);
/* Frees without writing, if statsfile_start was not called. */
extern void statsfile_free (struct statsfile *);

#endif
