/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The parameters on nbdkit's command line.  nbdkit-asyncpool-filter(1) has the
 * reasons for the defaults.
 *
 * filter/README says how to add one.
 */
#ifndef ASYNCPOOL_CONFIG_H
#define ASYNCPOOL_CONFIG_H

#include <stdio.h>

#include "engine.h"

struct config {
  struct engine_config engine;
  /* Set by config_complete. */
  bool buffers_given, buffer_size_given, contexts_given;
  unsigned threads_given;       /* asyncpool-threads; 0: not given */
  uint64_t memory;              /* bytes; 0: not given */
  const char *memory_word;      /* as it is given */
  const char *buffer_size_word; /* as it is given, or the default */
  char *stats_file;             /* "-" for standard error, NULL for none */
};

/* 1: the parameter was taken; 0: it is not ours; -1: it is wrong, and
 * nbdkit_error was called.
 */
extern int config_set (struct config *, const char *key, const char *value);
/* After the last parameter: fills in the defaults.  -1: nbdkit_error was
 * called.
 */
extern int config_complete (struct config *);
/* After the slab could not be mapped: halves its size, if no parameter says how
 * large it is.  Returns whether it did.
 */
extern bool config_try_less (struct config *);
extern void config_free (struct config *);

#define CONFIG_HELP \
  "asyncpool-memory=SIZE       Memory for data, at most (default: 384M,\n" \
  "                            or a sixteenth of the memory of the machine\n" \
  "                            or the container if that is less).\n" \
  "asyncpool-buffers=N         A fixed number of buffers, all of them in\n" \
  "                            flight (default: what fits into the memory;\n" \
  "                            those in flight follow the device).\n" \
  "asyncpool-buffer-size=SIZE  Size of all buffers (default: 128K, and a\n" \
  "                            third of the memory in buffers of 1M for\n" \
  "                            large operations).\n" \
  "asyncpool-threads=N         Number of threads, at most (default: one per\n" \
  "                            buffer; N turns async hooks off).\n" \
  "asyncpool-contexts=N        Contexts of a plugin that serves one request\n" \
  "                            at a time in each (default: 32 if the\n" \
  "                            plugin says multi-conn, or for curl with\n" \
  "                            -r; else no further ones).\n" \
  "asyncpool-write=MODE        auto (default): defer writes after the\n" \
  "                            first flush; behind: from the start;\n" \
  "                            through: never.\n" \
  "asyncpool-read=MODE         ahead (default): prefetch for sequential\n" \
  "                            readers; direct: never.\n" \
  "asyncpool-stats=FILE        Write statistics to FILE every 5 seconds and\n" \
  "                            at the end.  - is standard error, at the end\n" \
  "                            only.  *.prom selects Prometheus' text format.\n"

#endif
