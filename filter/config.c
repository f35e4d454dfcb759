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

enum {
  DEFAULT_BUFFERS = 64, MAX_BUFFERS = 65536,
  DEFAULT_BUFFER_SIZE = 128 * 1024,
  DEFAULT_CONTEXTS = 4, MAX_CONTEXTS = 128,
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

/* To start a thread takes about 50 us, and to touch a buffer again 10 us: next
 * to nothing once in ten seconds.
 */
#define IDLE_NS UINT64_C (10000000000)

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

/* A number with an optional K or M; nbdkit_parse_size says less about what is
 * allowed.
 */
static int
parse_buffer_size (const char *key, const char *value, uint32_t *r)
{
  char *end;
  unsigned long long n = strtoull (value, &end, 10);
  unsigned shift = 0;

  if (strchr ("kK", *end) && *end)
    shift = 10;
  else if (strchr ("mM", *end) && *end)
    shift = 20;
  if (*value < '0' || *value > '9' || end[shift > 0] != '\0'
      || n > MAX_BUFFER_SIZE || (n <<= shift) < MIN_BUFFER_SIZE
      || n > MAX_BUFFER_SIZE || (n & (n - 1)) != 0) {
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
  nbdkit_error ("%s=%s: unknown parameter: must be asyncpool-buffers, "
                "asyncpool-buffer-size, asyncpool-threads, "
                "asyncpool-contexts, asyncpool-write, asyncpool-read or "
                "asyncpool-stats", key, value);
  return -1;
}

void
config_complete (struct config *c)
{
  if (c->engine.buffers == 0)
    c->engine.buffers = DEFAULT_BUFFERS;
  if (c->engine.buffer_size == 0) {
    c->engine.buffer_size = DEFAULT_BUFFER_SIZE;
    c->buffer_size_word = "128K";
  }
  if (c->engine.threads == 0)
    c->engine.threads = c->engine.buffers;
  c->contexts_given = c->engine.contexts != 0;
  if (c->engine.contexts == 0)
    c->engine.contexts = DEFAULT_CONTEXTS;
  c->engine.idle_ns = IDLE_NS;
  c->engine.linger_ns = LINGER_NS;
  c->engine.others_ns = OTHERS_NS;
  c->engine.status_ns = STATUS_NS;
  c->engine.context_idle_ns = CONTEXT_IDLE_NS;
  c->engine.context_retry_ns = CONTEXT_RETRY_NS;
}

void
config_free (struct config *c)
{
  free (c->stats_file);
  c->stats_file = NULL;
}
