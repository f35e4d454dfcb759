/* A plugin with one fault of the kind that parameter fault= names, for test-runner.sh, which sees
 * whether the runner notices. */
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
count (void *arg)
{
  (void) arg;
  for (int i = 0; i < 1000; i++)
    shared++;
  return NULL;
}

static int
broken_after_fork (void)
{
  pthread_t threads[2];
  volatile char *volatile lost;

  if (strcmp (fault, "leak") == 0) {
    lost = g_malloc (1000);     /* GLib has no frame pointers */
    lost = NULL;
  }
  else if (strcmp (fault, "foreign leak") == 0) {
    /* A thread that is strdup and no more: nothing of this file is in the
     * stack of what it leaks.
     */
    if (pthread_create (&threads[0], NULL,
                        (void *(*) (void *)) (void (*) (void)) strdup,
                        foreign) != 0)
      return -1;
    pthread_join (threads[0], NULL);
  }
  else if (strcmp (fault, "overflow") == 0) {
    lost = malloc (10);
    lost[10] = 'x';
    free ((void *) (uintptr_t) lost);
  }
  else if (strcmp (fault, "undefined") == 0)
    limit = limit + 1;
  else if (strcmp (fault, "race") == 0) {
    for (int i = 0; i < 2; i++)
      if (pthread_create (&threads[i], NULL, count, NULL) != 0)
        return -1;
    for (int i = 0; i < 2; i++)
      pthread_join (threads[i], NULL);
  }
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
broken_pread (void *handle, void *buf, uint32_t size, uint64_t offset, uint32_t flags)
{
  (void) handle;
  (void) offset;
  (void) flags;
  memset (buf, 0, size);
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

/* nbdkit's macro has no prototype for what it defines; clang wants one. */
extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
