/* SPDX-License-Identifier: BSD-3-Clause
 *
 * For plugins of tests: callbacks and asynchronous hooks that all end in one
 * function, operate, which the plugin defines.
 *
 * nbdkit's threads call it from the callbacks.  With hooks the plugin's own
 * threads call it: hooks_start starts them, hooks_end joins them.  Where the
 * plugin has called nbdkit_async_disable, they have nothing to do.
 *
 * Lock: requests_lock guards the queue of the hooks' requests.
 */
#ifndef TESTS_OPERATIONS_H
#define TESTS_OPERATIONS_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#include <nbdkit-async.h>

enum { HOOK_THREADS = 16 };

enum kind { READ, WRITE, ZERO, TRIM, FLUSH };

struct operation {
  enum kind kind;
  bool fua;
  uint32_t count;
  uint64_t offset;
  const void *data;             /* WRITE */
  void *buf;                    /* READ */
};

/* Returns 0 or an errno. */
static int operate (void *handle, const struct operation *);

/* Callbacks. */

/* Returns what a callback returns. */
static int
result (int err)
{
  errno = err;
  return err ? -1 : 0;
}

static int
plugin_pread (void *h, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  (void) flags;
  return result (operate (h, &(struct operation) {
    .kind = READ, .count = count, .offset = offset, .buf = buf }));
}

static int
plugin_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  return result (operate (h, &(struct operation) {
    .kind = WRITE, .fua = flags & NBDKIT_FLAG_FUA, .count = count,
    .offset = offset, .data = buf }));
}

static int
plugin_zero (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return result (operate (h, &(struct operation) {
    .kind = ZERO, .fua = flags & NBDKIT_FLAG_FUA, .count = count,
    .offset = offset }));
}

static int
plugin_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return result (operate (h, &(struct operation) {
    .kind = TRIM, .fua = flags & NBDKIT_FLAG_FUA, .count = count,
    .offset = offset }));
}

static int
plugin_flush (void *h, uint32_t flags)
{
  (void) flags;
  return result (operate (h, &(struct operation) { .kind = FLUSH }));
}

/* Hooks. */

struct request {
  struct request *next;
  void *conn;
  uint64_t reqid;
  void *handle;
  struct operation o;
};

static pthread_mutex_t requests_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t requests_changed = PTHREAD_COND_INITIALIZER;
static struct request *requests, **requests_end = &requests;
static unsigned n_running;
static bool is_ending;

static pthread_t threads[HOOK_THREADS];
static unsigned n_threads;

static int
start_request (void *conn, uint64_t reqid, void *handle, struct operation o)
{
  struct request *r = malloc (sizeof *r);

  if (!r)
    return result (ENOMEM);
  *r = (struct request) { .conn = conn, .reqid = reqid, .handle = handle,
                          .o = o };
  pthread_mutex_lock (&requests_lock);
  *requests_end = r;
  requests_end = &r->next;
  pthread_cond_broadcast (&requests_changed);
  pthread_mutex_unlock (&requests_lock);
  return 0;
}

static int
async_pread (void *conn, uint64_t reqid, bool fua, void *handle, void *buf,
             uint32_t count, uint64_t offset)
{
  (void) fua;
  return start_request (conn, reqid, handle, (struct operation) {
    .kind = READ, .count = count, .offset = offset, .buf = buf });
}

static int
async_pwrite (void *conn, uint64_t reqid, bool fua, void *handle,
              const void *buf, uint32_t count, uint64_t offset)
{
  return start_request (conn, reqid, handle, (struct operation) {
    .kind = WRITE, .fua = fua, .count = count, .offset = offset,
    .data = buf });
}

static int
async_flush (void *conn, uint64_t reqid, void *handle, uint32_t flags)
{
  (void) flags;
  return start_request (conn, reqid, handle,
                        (struct operation) { .kind = FLUSH });
}

/* Waits for all requests, as each ends within milliseconds. */
static void
async_cancel (void *conn, uint64_t reqid, void *handle)
{
  (void) conn;
  (void) reqid;
  (void) handle;
  pthread_mutex_lock (&requests_lock);
  while (requests || n_running > 0)
    pthread_cond_wait (&requests_changed, &requests_lock);
  pthread_mutex_unlock (&requests_lock);
}

static void
run_request (struct request *r)
{
  int err = operate (r->handle, &r->o);

  if (err)
    nbdkit_async_reply_errno (r->conn, r->reqid, err);
  else
    nbdkit_async_reply (r->conn, r->reqid);
  free (r);
}

/* A thread of the plugin. */
static void *
run_requests (void *arg)
{
  struct request *r;

  (void) arg;
  pthread_mutex_lock (&requests_lock);
  while (requests || !is_ending) {
    r = requests;
    if (!r) {
      pthread_cond_wait (&requests_changed, &requests_lock);
      continue;
    }
    requests = r->next;
    if (!requests)
      requests_end = &requests;
    n_running++;
    pthread_mutex_unlock (&requests_lock);
    run_request (r);
    pthread_mutex_lock (&requests_lock);
    n_running--;
    pthread_cond_broadcast (&requests_changed);
  }
  pthread_mutex_unlock (&requests_lock);
  return NULL;
}

static struct nbdkit_async hooks = {
  .async_pread = async_pread,
  .async_pwrite = async_pwrite,
  .async_flush = async_flush,
  .async_cancel = async_cancel,
};

static int
hooks_start (void)
{
  while (n_threads < HOOK_THREADS) {
    if (pthread_create (&threads[n_threads], NULL, run_requests, NULL) != 0)
      return -1;
    n_threads++;
  }
  return 0;
}

static void
hooks_end (void)
{
  pthread_mutex_lock (&requests_lock);
  is_ending = true;
  pthread_cond_broadcast (&requests_changed);
  pthread_mutex_unlock (&requests_lock);
  while (n_threads > 0)
    pthread_join (threads[--n_threads], NULL);
}

#endif /* TESTS_OPERATIONS_H */
