/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A random workload over several connections against a shadow copy, for many configurations.
 *
 * Requests in flight never conflict: no range is in flight twice unless all of them read. So the
 * answer to a read is known when it is sent, whichever connection asks. Now and then everything is
 * awaited and flushed, and then the device itself is compared, past the server.
 *
 * What a trim leaves, and what a change that failed leaves, is unknown until it is written again.
 */
#include "client.h"

#define SIZE (16 * MIB)

enum { CONNECTIONS_MAX = 4, IN_FLIGHT_MAX = 16 };

struct config {
  const char *options, *below, *plugin;
  const char *parameters;
  unsigned connections;
  uint32_t minimum, maximum;    /* of the plugin, 0 if it has none */
  bool names;                   /* a different export name for every connection */
  bool errors;                  /* the error filter is below, switched on by a file */
};

enum kind { READ, WRITE, ZERO, TRIM, FLUSH, KINDS };

struct operation {
  struct request request;       /* nbd NULL: not in use */
  enum kind kind;
  uint64_t offset, count;
  char *buf;
};

struct run {
  const struct config *config;
  struct server server;
  struct nbd_handle *nbd[CONNECTIONS_MAX];
  uint64_t next_read[CONNECTIONS_MAX], next_write[CONNECTIONS_MAX];
  struct operation ops[IN_FLIGHT_MAX];
  char *shadow;
  bool *known;
  char *error_file;
  bool failing;                 /* the error filter is on */
  unsigned in_flight, depth, done[KINDS], failed[KINDS];
};

static void
settle (struct run *r, struct operation *o)
{
  int error = o->request.error;

  r->in_flight--;
  r->done[o->kind]++;
  if (error) {
    r->failed[o->kind]++;
    if (!r->config->errors || error != ENOSPC)
      g_error ("kind %d at %" PRIu64 "+%" PRIu64 " failed: %s", o->kind, o->offset, o->count,
               g_strerror (error));
    if (o->kind != READ && o->kind != FLUSH)
      memset (r->known + o->offset, 0, o->count * sizeof *r->known);
  }
  else if (o->kind == READ)
    for (uint64_t i = 0; i < o->count; i++)
      if (o->buf[i] != r->shadow[o->offset + i] && r->known[o->offset + i]) {
        fprintf (stderr, "# read %" PRIu64 "+%" PRIu64 ": wrong at %" PRIu64 ": %#x, not %#x\n",
                 o->offset, o->count, o->offset + i, (unsigned char) o->buf[i],
                 (unsigned char) r->shadow[o->offset + i]);
        if (!r->config->plugin)
          gate_print (r->server.gate);
        abort ();
      }
  g_free (o->buf);
  memset (o, 0, sizeof *o);
}

/* Takes the answers that are there; waits for one if told to. */
static void
progress (struct run *r, bool wait)
{
  bool some = false;

  do {
    for (unsigned c = 0; c < r->config->connections; c++)
      nbd_ok (nbd_poll (r->nbd[c], 0));
    for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
      if (r->ops[i].request.nbd && request_is_done (&r->ops[i].request)) {
        settle (r, &r->ops[i]);
        some = true;
      }
    if (wait && !some && r->in_flight > 0)      /* any of them; others are looked at above */
      for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
        if (r->ops[i].request.nbd) {
          nbd_ok (nbd_poll (r->ops[i].request.nbd, 1));
          break;
        }
  } while (wait && !some && r->in_flight > 0);
}

static bool
conflicts (struct run *r, enum kind kind, uint64_t offset, uint64_t count)
{
  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++) {
    const struct operation *o = &r->ops[i];

    if (o->request.nbd && offset < o->offset + o->count && o->offset < offset + count &&
        (kind != READ || o->kind != READ))
      return true;
  }
  return false;
}

static uint64_t
random_count (struct run *r, enum kind kind)
{
  uint64_t count = UINT64_C (1) << g_test_rand_int_range (0, 23);

  count = g_test_rand_int_range (1, (int) count + 1);
  if (g_test_rand_int_range (0, 4) == 0)        /* what clients send */
    count = 4096 << g_test_rand_int_range (0, 7);
  count = MIN (count, 4 * MIB);
  if (r->config->maximum && kind <= WRITE)
    count = MIN (count, r->config->maximum);
  if (r->config->minimum)
    count = MAX (count / r->config->minimum, 1) * r->config->minimum;
  return count;
}

static void
send_one (struct run *r)
{
  const unsigned c = g_test_rand_int_range (0, r->config->connections);
  const int what = g_test_rand_int_range (0, 100);
  enum kind kind = what < 40 ? READ : what < 86 ? WRITE : what < 92 ? ZERO : what < 97 ? TRIM : FLUSH;
  struct nbd_handle *nbd = r->nbd[c];
  uint64_t count = random_count (r, kind), offset;
  uint64_t *next = kind == READ ? &r->next_read[c] : &r->next_write[c];
  uint32_t flags = 0;
  unsigned i;

  for (i = 0; r->ops[i].request.nbd; i++)
    ;
  if ((kind == TRIM && nbd_can_trim (nbd) != 1) || (kind == ZERO && nbd_can_zero (nbd) != 1))
    return;
  if (kind == FLUSH) {
    if (nbd_can_flush (nbd) != 1)
      return;
    r->ops[i] = (struct operation) { .request = send_flush (nbd), .kind = kind };
    r->in_flight++;
    return;
  }

  if (kind <= WRITE && g_test_rand_int_range (0, 3) > 0) {      /* a stream goes on */
    if (*next + count > SIZE)
      *next = 0;
    offset = *next;
  }
  else
    offset = g_test_rand_int_range (0, (int) (SIZE - count + 1));
  if (r->config->minimum)
    offset -= offset % r->config->minimum;
  if (conflicts (r, kind, offset, count))
    return;
  if (kind <= WRITE)
    *next = offset + count;

  r->ops[i] = (struct operation) { .kind = kind, .offset = offset, .count = count };
  if (kind != READ && nbd_can_fua (nbd) == 1 && g_test_rand_int_range (0, 10) == 0)
    flags |= LIBNBD_CMD_FLAG_FUA;
  switch (kind) {
  case READ:
    r->ops[i].buf = g_malloc (count);
    r->ops[i].request = send_read (nbd, r->ops[i].buf, count, offset);
    break;
  case WRITE:
    fill (r->shadow + offset, count, (unsigned) g_test_rand_int ());
    memset (r->known + offset, 1, count * sizeof *r->known);
    r->ops[i].request = send_write (nbd, r->shadow + offset, count, offset, flags);
    break;
  case ZERO:
    memset (r->shadow + offset, 0, count);
    memset (r->known + offset, 1, count * sizeof *r->known);
    if (g_test_rand_bit ())
      flags |= LIBNBD_CMD_FLAG_NO_HOLE;
    r->ops[i].request = send_zero (nbd, count, offset, flags);
    break;
  default:
    memset (r->known + offset, 0, count * sizeof *r->known);
    r->ops[i].request = send_trim (nbd, count, offset, flags);
    break;
  }
  r->in_flight++;
}

static void
check_device (struct run *r)
{
  const char *device = server_device (&r->server);

  for (uint64_t i = 0; i < SIZE; i++)
    if (device[i] != r->shadow[i] && r->known[i]) {
      fprintf (stderr, "# device: wrong at %" PRIu64 ": %#x, not %#x\n", i,
               (unsigned char) device[i], (unsigned char) r->shadow[i]);
      gate_print (r->server.gate);
      abort ();
    }
}

/* Nothing in flight, all flushed: what a flush has promised is on the device. */
static void
checkpoint (struct run *r, bool must_succeed)
{
  struct nbd_handle *nbd = r->nbd[g_test_rand_int_range (0, r->config->connections)];

  while (r->in_flight > 0)
    progress (r, true);
  if (nbd_can_flush (nbd) != 1)
    return;
  for (unsigned c = 0; r->config->names && c < r->config->connections; c++)
    if (r->nbd[c] != nbd)               /* a flush covers one name */
      nbd_ok (nbd_flush (r->nbd[c], 0));
  if (nbd_flush (nbd, 0) == -1) {
    if (must_succeed || !r->failing)
      g_error ("flush: %s", nbd_get_error ());
    g_assert_cmpint (nbd_get_errno (), ==, ENOSPC);
    r->failed[FLUSH]++;
    return;
  }
  if (!r->config->plugin)
    check_device (r);
}

static void
switch_errors (struct run *r, bool on)
{
  if (!r->config->errors)
    return;
  if (on)
    g_assert_true (g_file_set_contents (r->error_file, "", 0, NULL));
  else
    g_unlink (r->error_file);
  r->failing = on;
}

static void
start (struct run *r)
{
  const struct config *config = r->config;
  g_autofree char *error = NULL, *parameters = NULL;

  r->error_file = g_strdup_printf ("%s/nbdkit-async-errors.%ld", g_get_tmp_dir (),
                                   (long) getpid ());
  switch_errors (r, false);
  error = g_strdup_printf ("error-pwrite=ENOSPC error-pwrite-rate=0.3 error-file=%s",
                           r->error_file);
  parameters = g_strdup_printf ("size=%u %s %s", (unsigned) SIZE, config->parameters,
                                config->errors ? error : "");
  server_start_with (&r->server, config->options, config->below, config->plugin, parameters);
  for (unsigned c = 0; c < config->connections; c++) {
    const char *name = (const char *[]) { "a", "b", "c", "d" } [c];

    r->nbd[c] = client_connect_export (&r->server, config->names ? name : "");
    /* The filter defers only what is slow, and to know that it wants to see some operations. */
    for (unsigned i = 0; i < 8; i++) {
      nbd_ok (nbd_pwrite (r->nbd[c], r->shadow, 4096, i * 4096, 0));
      nbd_ok (nbd_pread (r->nbd[c], r->shadow, 4096, i * 4096, 0));
    }
  }
}

static void
test_random (gconstpointer data)
{
  const struct config *config = data;
  struct run run = { .config = config }, *r = &run;
  const unsigned steps = client_is_slow () ? 1000 : 4000;
  const gint64 budget_us = (client_is_slow () ? 8 : 5) * G_USEC_PER_SEC;
  const gint64 start_us = g_get_monotonic_time ();
  const uint64_t largest
    = config->maximum ? MIN (config->maximum, MIB / 4) : MIB / 4;

  alarm (2 * CASE_SECONDS);
  r->shadow = g_malloc0 (SIZE);
  r->known = g_new (bool, SIZE);
  memset (r->known, 1, SIZE * sizeof *r->known);
  start (r);

  for (unsigned step = 0; step < steps && g_get_monotonic_time () - start_us < budget_us; step++) {
    if (step % 100 == 0) {
      static const unsigned depths[] = { 1, 1, 1, 2, 2, 4, 8, IN_FLIGHT_MAX };

      r->depth = depths[g_test_rand_int_range (0, G_N_ELEMENTS (depths))];
      if (step % 400 == 0)
        checkpoint (r, false);
      switch_errors (r, step % 300 == 0 && step % 1200 != 0);
    }
    while (r->in_flight >= r->depth)
      progress (r, true);
    send_one (r);
    progress (r, false);
  }
  while (r->in_flight > 0)
    progress (r, true);
  switch_errors (r, false);
  for (unsigned c = 0; c < config->connections; c++)
    if (nbd_can_flush (r->nbd[c]) == 1)
      nbd_ok (nbd_flush (r->nbd[c], 0));
  checkpoint (r, true);

  /* All of it once more through every connection. */
  for (unsigned c = 0; c < config->connections; c++)
    for (uint64_t offset = 0, count; offset < SIZE; offset += count) {
      count = MIN (largest, SIZE - offset);
      r->ops[0] = (struct operation) {
        .kind = READ, .offset = offset, .count = count, .buf = g_malloc (count)
      };
      r->ops[0].request = send_read (r->nbd[c], r->ops[0].buf, count, offset);
      r->in_flight++;
      progress (r, true);
    }
  g_test_message ("read %u, written %u, zeroed %u, trimmed %u, flushed %u; failed: %u writes, "
                  "%u flushes", r->done[READ], r->done[WRITE], r->done[ZERO], r->done[TRIM],
                  r->done[FLUSH], r->failed[WRITE], r->failed[FLUSH]);
  for (unsigned c = 0; c < config->connections; c++)
    client_close (r->nbd[c]);
  if (!config->plugin)
    server_device (&r->server);
  server_terminate (&r->server);
  server_wait (&r->server);
  if (!config->plugin)
    check_device (r);
  server_free (&r->server);
  g_free (r->shadow);
  g_free (r->known);
  g_free (r->error_file);
}

static const struct {
  const char *name;
  struct config config;
} cases[] = {
  { "behind", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us",
    .connections = 4 } },
  { "behind-defaults", {
    .parameters = "asyncpool-write=behind delay=1ms", .connections = 2 } },
  { "auto", {
    .parameters = "asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us", .connections = 3 } },
  { "through", {
    .parameters = "asyncpool-write=through asyncpool-buffers=16 delay=500us", .connections = 3 } },
  { "one-connection", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=8 asyncpool-buffer-size=64k delay=500us",
    .connections = 1 } },
  { "one-buffer", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=1 asyncpool-buffer-size=64k delay=300us",
    .connections = 3 } },
  { "two-buffers", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=2 asyncpool-buffer-size=64k delay=300us",
    .connections = 4 } },
  { "few-buffers-many-threads", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=4 asyncpool-buffer-size=128k "
      "asyncpool-threads=16 delay=300us", .connections = 4 } },
  { "many-buffers-few-threads", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=64 asyncpool-buffer-size=64k "
      "asyncpool-threads=3 delay=1ms", .connections = 4 } },
  { "one-thread", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=8 asyncpool-threads=1 delay=300us",
    .connections = 2 } },
  { "read-direct", {
    .parameters = "asyncpool-write=behind asyncpool-read=direct asyncpool-buffers=16 delay=500us",
    .connections = 2 } },
  { "large-buffers", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=4 asyncpool-buffer-size=4M delay=2ms",
    .connections = 2 } },
  { "names", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us",
    .connections = 3, .names = true } },
  { "without-flush", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us "
      "flush=0 fua=none zero=0 trim=0 extents=0 multi_conn=0", .connections = 1 } },
  { "fua-emulated", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us "
      "fua=emulate", .connections = 3 } },
  { "block-sizes", {
    .below = "--filter=blocksize-policy",
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 delay=500us "
      "blocksize-minimum=4096 blocksize-preferred=64k blocksize-maximum=1M "
      "blocksize-error-policy=error", .connections = 3, .minimum = 4096, .maximum = MIB } },
  { "small-maximum", {
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 delay=500us "
      "minimum=512 preferred=4096 maximum=48k", .connections = 3, .minimum = 512,
      .maximum = 48 * KIB } },
  { "errors", {
    .below = "--filter=error",
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us",
    .connections = 3, .errors = true } },
  { "errors-two-buffers", {
    .below = "--filter=error",
    .parameters = "asyncpool-write=behind asyncpool-buffers=2 asyncpool-buffer-size=64k delay=500us",
    .connections = 2, .errors = true } },
  { "errors-auto", {
    .below = "--filter=error",
    .parameters = "asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us",
    .connections = 3, .errors = true } },
  { "delaymem-slow", {
    .plugin = "delaymem.so", .parameters = "asyncpool-write=behind delay=200us",
    .connections = 4 } },
  { "delaymem-fast", {
    .plugin = "delaymem.so", .parameters = "asyncpool-write=behind delay=0", .connections = 4 } },
  { "delaymem-synchronous", {
    .plugin = "delaymem.so", .parameters = "asyncpool-write=behind delay=200us io-threads=0",
    .connections = 4 } },
  { "hooks-two-buffers", {
    .plugin = "delaymem.so",
    .parameters = "asyncpool-write=behind asyncpool-buffers=2 asyncpool-buffer-size=64k delay=300us",
    .connections = 4 } },
  { "hooks-auto", {
    .plugin = "delaymem.so", .parameters = "asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us",
    .connections = 3 } },
  { "hooks-through", {
    .plugin = "delaymem.so", .parameters = "asyncpool-write=through asyncpool-buffers=16 delay=500us",
    .connections = 3 } },
  { "hooks-names", {
    .plugin = "delaymem.so",
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 asyncpool-buffer-size=64k delay=500us "
      "io-threads=5", .connections = 3, .names = true } },
  { "hooks-awaited", {          /* nbdkit's and the pool's threads wait for the replies */
    .plugin = "tests/async-gate.so", .below = "--filter=nofilter",
    .parameters = "asyncpool-write=behind asyncpool-buffers=16 asyncpool-buffer-size=64k delay=300us",
    .connections = 3 } },
};

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (unsigned i = 0; i < G_N_ELEMENTS (cases); i++) {
    g_autofree char *path = g_strdup_printf ("/random/%s", cases[i].name);

    g_test_add_data_func (path, &cases[i].config, test_random);
  }
  return g_test_run ();
}
