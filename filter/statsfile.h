/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file that asyncpool-stats names.
 *
 * A regular file is rewritten periodically: a thread writes a new file beside
 * it (FILE.new), and renames that.  So a reader, and the disk after the server
 * was killed, have a complete file at any time.  The directory is opened
 * before the server changes its directory and its user.
 *
 *   how the file is written       when
 *   replaced, by the thread       it is a regular file, and its directory lets
 *                                 the server's user make files
 *   in place, at the end only     anything else: standard error, a FIFO, all
 *                                 names in /dev, a directory without rights
 *
 * No request and no other thread ever waits for the file system.  The end of
 * the server waits for a limited time: after that the thread is left to itself.
 *
 * Not its job: what is printed.  Nothing here knows nbdkit.
 *
 * Lock: statsfile.lock.  PRINT is called with it, so it is outside all locks of
 * the engine.  It is never held while the file system is used.
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
