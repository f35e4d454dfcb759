/* The parameters on nbdkit's command line.  nbdkit-asyncpool-filter(1) gives the reasons. */
#ifndef ASYNCPOOL_CONFIG_H
#define ASYNCPOOL_CONFIG_H

#include <stdio.h>

#include "state.h"

struct config {
  struct engine_config engine;
  char *stats_file;             /* "-" for standard error, NULL for none */
};

/* 1: this parameter is ours and was taken; 0: it is not ours; -1: it is wrong, nbdkit_error was
 * called.
 */
extern int config_set (struct config *, const char *key, const char *value);
/* All parameters are there: fills in the defaults. */
extern void config_complete (struct config *);
extern void config_free (struct config *);

#define CONFIG_HELP                                                                             \
  "asyncpool-buffers=N          Number of buffers (default 64).\n"                              \
  "asyncpool-buffer-size=SIZE   Size of a buffer, a power of two (default 128K).\n"             \
  "asyncpool-threads=N          Number of threads (default: as buffers).\n"                     \
  "asyncpool-write=auto|behind|through\n"                                                       \
  "                             When a write may be answered before the plugin has it\n"        \
  "                             (default auto: after the client has sent its first flush).\n"   \
  "asyncpool-read=ahead|direct  Whether to read ahead of sequential readers (default ahead).\n" \
  "asyncpool-stats=FILE         Write statistics there at the end (- is standard error).\n"

#endif
