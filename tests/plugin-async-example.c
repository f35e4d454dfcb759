/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An in-memory disk with one service thread: the example of
 * nbdkit-async-plugin(3).
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <nbdkit-async.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC

struct request {
  struct request *next;
  void *conn;
  uint64_t reqid;
  void *to;
  const void *from;
  uint32_t count;
};

static char disk[16 << 20];
static pthread_t thread;
static bool has_thread;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct request *first, **last = &first;
static bool is_ending;

/* The bytes are copied under the lock, so that cancel finds a request in the
 * queue or over.
 */
static void *
serve (void *arg)
{
  struct request *r;

  (void) arg;
  pthread_mutex_lock (&lock);
  while ((r = first) != NULL || !is_ending) {
    if (!r) {
      pthread_cond_wait (&changed, &lock);
      continue;
    }
    if (!(first = r->next))
      last = &first;
    memcpy (r->to, r->from, r->count);
    pthread_mutex_unlock (&lock);
    nbdkit_async_reply (r->conn, r->reqid);
    free (r);
    pthread_mutex_lock (&lock);
  }
  pthread_mutex_unlock (&lock);
  return NULL;
}

static int
queue (void *conn, uint64_t reqid, void *to, const void *from, uint32_t count)
{
  struct request *r = malloc (sizeof *r);

  if (!r) {
    nbdkit_set_error (ENOMEM);
    return -1;
  }
  *r = (struct request) { NULL, conn, reqid, to, from, count };
  pthread_mutex_lock (&lock);
  *last = r;
  last = &r->next;
  pthread_cond_signal (&changed);
  pthread_mutex_unlock (&lock);
  return 0;
}

static int
example_pread (void *conn, uint64_t reqid, bool flush, void *handle,
               void *buf, uint32_t count, uint64_t offset)
{
  (void) flush;
  (void) handle;
  return queue (conn, reqid, buf, disk + offset, count);
}

static int
example_pwrite (void *conn, uint64_t reqid, bool flush, void *handle,
                const void *buf, uint32_t count, uint64_t offset)
{
  (void) flush;
  (void) handle;
  return queue (conn, reqid, disk + offset, buf, count);
}

static void
example_cancel (void *conn, uint64_t reqid, void *handle)
{
  struct request **p, *r;

  (void) conn;
  (void) handle;
  pthread_mutex_lock (&lock);
  for (p = &first; (r = *p) != NULL && r->reqid != reqid; p = &r->next)
    ;
  if (r && !(*p = r->next))
    last = p;
  pthread_mutex_unlock (&lock);
  free (r);
}

/* Threads are started here, as nbdkit forks before. */
static int
example_after_fork (void)
{
  has_thread = pthread_create (&thread, NULL, serve, NULL) == 0;
  if (!has_thread)
    nbdkit_error ("cannot start a thread");
  return has_thread ? 0 : -1;
}

static void
example_unload (void)
{
  pthread_mutex_lock (&lock);
  is_ending = true;
  pthread_cond_signal (&changed);
  pthread_mutex_unlock (&lock);
  if (has_thread)
    pthread_join (thread, NULL);
}

static void *
example_open (int readonly)
{
  (void) readonly;
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
example_get_size (void *handle)
{
  (void) handle;
  return sizeof disk;
}

static struct nbdkit_plugin plugin = {
  .name = "example",
  .after_fork = example_after_fork,
  .unload = example_unload,
  .open = example_open,
  .get_size = example_get_size,
};

static struct nbdkit_async hooks = {
  .async_pread = example_pread,
  .async_pwrite = example_pwrite,
  .async_cancel = example_cancel,
};

NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
