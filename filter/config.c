/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Parameters: see config.h.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

#include "config.h"
#include "memlimit.h"

enum {
  MAX_BUFFERS = 65536, MAX_LARGE_BUFFERS = 4096,
  DEFAULT_BUFFER_SIZE = 128 * 1024,
  /* With HTTP, 32 operations of this size in flight are 524 MB/s at 64 ms. */
  LARGE_SIZE = 1024 * 1024,
  DEFAULT_CONTEXTS = 32, MAX_CONTEXTS = 128,
  /* The largest minimum block that a plugin may have: so no buffer is ever
   * smaller than a block.
   */
  MIN_BUFFER_SIZE = 64 * 1024,
  /* The largest request that nbdkit accepts: a larger buffer would never be
   * filled.
   */
  MAX_BUFFER_SIZE = 64 * 1024 * 1024,
  /* A client that fills a buffer more slowly makes ten plugin operations a
   * second at most.
   */
  LINGER_NS = 100000000,
};

/* A thread takes about 50 us to start, and a buffer 10 us to get memory again:
 * next to nothing once in ten seconds.
 */
#define IDLE_NS UINT64_C (10000000000)

/* 2048 buffers: 4 GB/s at 64 ms.  128 large ones: 2 GB/s.  A filter is one of
 * many programs on a machine or in a container: it takes at most a sixteenth.
 */
#define DEFAULT_MEMORY UINT64_C (402653184)
enum { DEFAULT_PART = 16 };
#define MIN_MEMORY UINT64_C (1048576)
#define MAX_MEMORY (UINT64_C (1) << 40)
/* With fewer, no prefetch and no write would be in flight beside the buffers
 * that clients fill and read.
 */
enum { MIN_BUFFERS = 4 };
/* With fewer large ones, there would be little in flight. */
enum { MIN_LARGE_BUFFERS = 16 };

/* A client that pauses for less, or is followed by another one, opens nothing.
 */
#define CONTEXT_IDLE_NS UINT64_C (30000000000)
/* Doubled six times: once a minute at last. */
#define CONTEXT_RETRY_NS UINT64_C (1000000000)

/* A plugin that makes progress has written the data by then.  The time-outs of
 * clients are much longer (30 s in the Linux kernel).
 */
#define OTHERS_NS UINT64_C (3000000000)
/* A client that asks the plugin itself sees at once what changes beside the
 * server.  An answer that is kept for a second saves nearly all questions.
 */
#define STATUS_NS UINT64_C (1000000000)

static int
parse_count (const char *key, const char *value, unsigned max, unsigned *r)
{
  char *end;
  unsigned long long n = strtoull (value, &end, 10);

  if (*value < '0' || *value > '9' || *end != '\0' || n < 1 || n > max) {
    nbdkit_error ("%s=%s: must be a number from 1 to %u", key, value, max);
    return -1;
  }
  *r = n;
  return 1;
}

/* A number of bytes with an optional K, M or G; nbdkit_parse_size says less
 * about what is allowed.  False: it is no number from MIN to MAX.
 */
static bool
parse_size (const char *value, uint64_t min, uint64_t max, uint64_t *r)
{
  static const char suffixes[] = "kKmMgG";
  char *end;
  unsigned long long n = strtoull (value, &end, 10);
  const char *suffix = *end ? strchr (suffixes, *end) : NULL;
  unsigned shift = suffix ? 10 * (1 + (suffix - suffixes) / 2) : 0;

  if (*value < '0' || *value > '9' || end[suffix != NULL] != '\0'
      || n > max >> shift || n << shift < min)
    return false;
  *r = n << shift;
  return true;
}

static int
parse_buffer_size (const char *key, const char *value, uint32_t *r)
{
  uint64_t n;

  if (!parse_size (value, MIN_BUFFER_SIZE, MAX_BUFFER_SIZE, &n)
      || (n & (n - 1)) != 0) {
    nbdkit_error ("%s=%s: must be a power of two from 64K to 64M", key, value);
    return -1;
  }
  *r = n;
  return 1;
}

/* One of N words; *R is its place in the list. */
static int
parse_word (const char *key, const char *value, const char *const words[],
            const char *allowed, unsigned *r)
{
  for (unsigned i = 0; words[i]; i++)
    if (strcmp (value, words[i]) == 0) {
      *r = i;
      return 1;
    }
  nbdkit_error ("%s=%s: must be %s", key, value, allowed);
  return -1;
}

static int
set_stats_file (struct config *c, const char *key, const char *value)
{
  if (*value == '\0') {
    nbdkit_error ("%s=: must be a file, or - for standard error", key);
    return -1;
  }
  free (c->stats_file);
  c->stats_file = strdup (value);
  if (c->stats_file == NULL) {
    nbdkit_error ("%s=%s: %m", key, value);
    return -1;
  }
  return 1;
}

int
config_set (struct config *c, const char *key, const char *value)
{
  static const char *const writes[] = {
    [WRITE_AUTO] = "auto", [WRITE_BEHIND] = "behind",
    [WRITE_THROUGH] = "through", NULL
  };
  static const char *const reads[] = {
    [READ_AHEAD] = "ahead", [READ_DIRECT] = "direct", NULL
  };
  unsigned word;
  int r;

  if (strncmp (key, "asyncpool-", strlen ("asyncpool-")) != 0)
    return 0;
  if (strcmp (key, "asyncpool-buffers") == 0)
    return parse_count (key, value, MAX_BUFFERS, &c->engine.buffers);
  if (strcmp (key, "asyncpool-memory") == 0) {
    c->memory_word = value;             /* nbdkit keeps it */
    if (parse_size (value, MIN_MEMORY, MAX_MEMORY, &c->memory))
      return 1;
    nbdkit_error ("%s=%s: must be a number, alone or with the suffix K, M or "
                  "G, from 1M to 1024G", key, value);
    return -1;
  }
  if (strcmp (key, "asyncpool-threads") == 0)
    return parse_count (key, value, MAX_BUFFERS, &c->engine.threads);
  if (strcmp (key, "asyncpool-contexts") == 0)
    return parse_count (key, value, MAX_CONTEXTS, &c->engine.contexts);
  if (strcmp (key, "asyncpool-buffer-size") == 0) {
    c->buffer_size_word = value;        /* nbdkit keeps it */
    return parse_buffer_size (key, value, &c->engine.buffer_size);
  }
  if (strcmp (key, "asyncpool-stats") == 0)
    return set_stats_file (c, key, value);
  if (strcmp (key, "asyncpool-write") == 0) {
    r = parse_word (key, value, writes, "auto, behind or through", &word);
    if (r == 1)
      c->engine.write = word;
    return r;
  }
  if (strcmp (key, "asyncpool-read") == 0) {
    r = parse_word (key, value, reads, "ahead or direct", &word);
    if (r == 1)
      c->engine.read = word;
    return r;
  }
  nbdkit_error ("%s=%s: unknown parameter: must be asyncpool-memory, "
                "asyncpool-buffers, asyncpool-buffer-size, asyncpool-threads, "
                "asyncpool-contexts, asyncpool-write, asyncpool-read or "
                "asyncpool-stats", key, value);
  return -1;
}

/* How many buffers of a size fit into the memory. */
static uint64_t
n_fit (const struct config *c, uint32_t size)
{
  uint64_t memory = c->memory ? c->memory
    : MIN (DEFAULT_MEMORY, memlimit_bytes ("") / DEFAULT_PART);

  return memory / size;
}

/* A third of the memory is for large buffers, if that is enough for a few and
 * no parameter says otherwise.
 */
static void
set_buffers (struct config *c)
{
  struct engine_config *e = &c->engine;
  uint64_t n = n_fit (c, e->buffer_size);
  uint64_t n_large = n_fit (c, 3 * LARGE_SIZE);

  if (!c->buffer_size_given && n_large >= MIN_LARGE_BUFFERS) {
    e->large_buffers = MIN (n_large, MAX_LARGE_BUFFERS);
    e->large_size = LARGE_SIZE;
    n -= n / 3;
  }
  e->buffers = CLAMP (n, MIN_BUFFERS, MAX_BUFFERS);
  if (!c->threads_given)
    e->threads = e->buffers;
  /* One to fill while one is written. */
  e->adapts_to = MIN (e->buffers, MAX (e->threads, 2));
}

/* Returns -1 after nbdkit_error if the buffers do not fit into the memory. */
static int
check_buffers (const struct config *c)
{
  const struct engine_config *e = &c->engine;

  if (c->memory && n_fit (c, e->buffer_size) < MAX (e->buffers, MIN_BUFFERS)) {
    nbdkit_error ("asyncpool-memory=%s: must be enough for %u buffers of %s",
                  c->memory_word, MAX (e->buffers, MIN_BUFFERS),
                  c->buffer_size_word);
    return -1;
  }
  return 0;
}

int
config_complete (struct config *c)
{
  struct engine_config *e = &c->engine;

  c->buffer_size_given = e->buffer_size != 0;
  c->buffers_given = e->buffers != 0;
  c->threads_given = e->threads;
  if (!c->buffer_size_given) {
    e->buffer_size = DEFAULT_BUFFER_SIZE;
    c->buffer_size_word = "128K";
  }
  if (check_buffers (c) == -1)
    return -1;
  if (!c->buffers_given)
    set_buffers (c);
  else if (!c->threads_given)
    e->threads = e->buffers;
  c->contexts_given = e->contexts != 0;
  if (!c->contexts_given)
    e->contexts = DEFAULT_CONTEXTS;
  e->idle_ns = IDLE_NS;
  e->linger_ns = LINGER_NS;
  e->others_ns = OTHERS_NS;
  e->status_ns = STATUS_NS;
  e->context_idle_ns = CONTEXT_IDLE_NS;
  e->context_retry_ns = CONTEXT_RETRY_NS;
  return 0;
}

bool
config_try_less (struct config *c)
{
  if (c->buffers_given || c->memory)
    return false;
  if (c->engine.buffers <= LIMIT_START)
    return false;
  c->engine.buffers /= 2;
  c->engine.large_buffers /= 2;
  if (!c->threads_given)        /* it may be less, as hooks do the work */
    c->engine.threads = MIN (c->engine.threads, c->engine.buffers);
  c->engine.adapts_to = MIN (c->engine.adapts_to, c->engine.buffers);
  return true;
}

void
config_free (struct config *c)
{
  free (c->stats_file);
  c->stats_file = NULL;
}
