/* SPDX-License-Identifier: BSD-3-Clause
 *
 * broken.so: a plugin with a fault, for test-runner.sh, which checks that
 * tests/run reports it.
 *
 * Parameter fault is none, leak, foreign leak, overflow, undefined or race.
 */
#include <glib.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static const char *fault = "none";
static char foreign[] = "foreign";
static volatile int shared;
static volatile int limit = INT_MAX;

static int
broken_config (const char *key, const char *value)
{
  (void) key;
  fault = value;
  return 0;
}

static void *
increment (void *arg)
{
  (void) arg;
  for (int i = 0; i < 1000; i++)
    shared++;
  return NULL;
}

static int
run_threads (unsigned n, void *(*run) (void *), void *arg)
{
  pthread_t threads[2];

  for (unsigned i = 0; i < n; i++)
    if (pthread_create (&threads[i], NULL, run, arg) != 0)
      return -1;
  for (unsigned i = 0; i < n; i++)
    pthread_join (threads[i], NULL);
  return 0;
}

static int
broken_after_fork (void)
{
  volatile char *volatile lost;

  if (strcmp (fault, "leak") == 0) {
    lost = g_malloc (1000);     /* GLib has no frame pointers */
    lost = NULL;
  }
  else if (strcmp (fault, "foreign leak") == 0)
    /* The thread runs strdup alone, so no function of this file is in the stack
     * of the leak.
     */
    return run_threads (1, (void *(*) (void *)) (void (*) (void)) strdup,
                        foreign);
  else if (strcmp (fault, "overflow") == 0) {
    lost = malloc (10);
    lost[10] = 'x';
    free ((void *) (uintptr_t) lost);
  }
  else if (strcmp (fault, "undefined") == 0)
    limit = limit + 1;
  else if (strcmp (fault, "race") == 0)
    return run_threads (2, increment, NULL);
  return 0;
}

static void *
broken_open (int readonly)
{
  (void) readonly;
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
broken_get_size (void *handle)
{
  (void) handle;
  return 512;
}

static int
broken_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  (void) handle;
  (void) offset;
  (void) flags;
  memset (buf, 0, count);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "broken",
  .config = broken_config,
  .after_fork = broken_after_fork,
  .open = broken_open,
  .get_size = broken_get_size,
  .pread = broken_pread,
};

/* nbdkit's macro declares no prototype, and clang asks for one. */
extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
