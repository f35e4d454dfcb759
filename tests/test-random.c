/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Random requests on several connections, checked by a shadow copy of the
 * device, in many configurations.
 *
 * No two requests in flight have a common byte, unless both read.  So the data
 * of a read is known when it is sent, whichever connection sends it.  Now and
 * then the test waits for all requests and flushes, and then compares the
 * plugin's memory itself.
 *
 * The data of a range that was trimmed, or whose change failed, is not known
 * until it is written again.
 */
#include "in-flight.h"

#define SIZE (16 * MIB)

struct config {
  const char *path;
  const char *below, *plugin;
  const char *parameters;
  unsigned connections;
  uint32_t minimum, maximum;    /* the plugin's block sizes, 0 if it has none */
  bool names;                   /* each connection has its own export name */
  bool errors;                  /* has the error filter, which a file enables */
};

struct run {
  const struct config *config;
  struct server server;
  struct in_flight in_flight;
  uint64_t next_read[CONNECTIONS_MAX], next_write[CONNECTIONS_MAX];
  char *shadow;
  bool *known;
  char *error_file;
  bool has_errors;              /* the file is there */
  unsigned done[KINDS], failed[KINDS];
};

static int
draw (int from, int to)
{
  return g_test_rand_int_range (from, to);
}

/* Comparison with the shadow copy. */

static void
set_known (struct run *r, uint64_t offset, uint64_t count, bool is_known)
{
  memset (r->known + offset, is_known, count * sizeof *r->known);
}

static void
check (struct run *r, const char *source, const char *data, uint64_t offset,
       uint64_t count)
{
  const char *expected = r->shadow + offset;

  for (uint64_t i = 0; i < count; i++) {
    if (data[i] == expected[i] || !r->known[offset + i])
      continue;
    fprintf (stderr, "# %s of %" PRIu64 "+%" PRIu64 ": wrong at %" PRIu64
             ": %#x, not %#x\n", source, offset, count, offset + i,
             (unsigned char) data[i], (unsigned char) expected[i]);
    if (!r->config->plugin)
      gate_print (r->server.gate);
    abort ();
  }
}

static void
check_device (struct run *r)
{
  if (!r->config->plugin)
    check (r, "device", server_device (&r->server), 0, SIZE);
}

/* Requests. */

static void
complete (void *data, struct operation *o)
{
  struct run *r = data;
  int error = o->request.error;

  r->done[o->kind]++;
  if (!error) {
    if (o->kind == READ)
      check (r, "read", o->buf, o->offset, o->count);
    return;
  }
  r->failed[o->kind]++;
  if (!r->config->errors || error != ENOSPC)
    g_error ("%s at %" PRIu64 "+%" PRIu64 " failed: %s", kind_names[o->kind],
             o->offset, o->count, g_strerror (error));
  if (o->kind != READ && o->kind != FLUSH)
    set_known (r, o->offset, o->count, false);
}

static void
progress (struct run *r, bool wait)
{
  in_flight_progress (&r->in_flight, wait, complete, r);
}

static void
wait_for_all (struct run *r)
{
  while (r->in_flight.n > 0)
    progress (r, true);
}

static enum kind
draw_kind (void)
{
  int percent = draw (0, 100);

  return percent < 40 ? READ : percent < 86 ? WRITE : percent < 92 ? ZERO
    : percent < 97 ? TRIM : FLUSH;
}

static uint64_t
draw_count (struct run *r, enum kind kind)
{
  uint64_t count = draw (1, (1 << draw (0, 23)) + 1);

  if (draw (0, 4) == 0)         /* a power of two, as clients send */
    count = 4096 << draw (0, 7);
  count = MIN (count, 4 * MIB);
  if (r->config->maximum && kind <= WRITE)
    count = MIN (count, r->config->maximum);
  if (r->config->minimum)
    count = MAX (count / r->config->minimum, 1) * r->config->minimum;
  return count;
}

/* A stream goes on, or the range is anywhere. */
static bool
draw_range (struct run *r, struct operation *o)
{
  const bool has_stream = o->kind <= WRITE;
  uint64_t *next = o->kind == READ ? &r->next_read[o->connection]
    : &r->next_write[o->connection];

  o->count = draw_count (r, o->kind);
  if (has_stream && draw (0, 3) > 0) {
    if (*next + o->count > SIZE)
      *next = 0;
    o->offset = *next;
  }
  else
    o->offset = draw (0, (int) (SIZE - o->count + 1));
  if (r->config->minimum)
    o->offset -= o->offset % r->config->minimum;
  if (in_flight_conflicts (&r->in_flight, o->kind, o->offset, o->count))
    return false;
  if (has_stream)
    *next = o->offset + o->count;
  return true;
}

/* Changes the shadow copy, and draws the flags. */
static uint32_t
begin_change (struct run *r, struct operation *o)
{
  uint32_t flags = 0;
  char *shadow = r->shadow + o->offset;

  if (nbd_can_fua (r->in_flight.nbd[o->connection]) == 1 && draw (0, 10) == 0)
    flags |= LIBNBD_CMD_FLAG_FUA;
  set_known (r, o->offset, o->count, o->kind != TRIM);
  if (o->kind == WRITE) {
    fill (shadow, o->count, (unsigned) g_test_rand_int ());
    o->buf = g_malloc (o->count);
    memcpy (o->buf, shadow, o->count);
  }
  else if (o->kind == ZERO) {
    memset (shadow, 0, o->count);
    if (g_test_rand_bit ())
      flags |= LIBNBD_CMD_FLAG_NO_HOLE;
  }
  return flags;
}

static void
send_one (struct run *r)
{
  struct in_flight *f = &r->in_flight;
  struct operation o = { .connection = draw (0, f->n_connections),
                         .kind = draw_kind () };
  uint32_t flags = 0;

  if (!in_flight_can_send (f, o.kind, o.connection)
      || (o.kind != FLUSH && !draw_range (r, &o)))
    return;
  if (o.kind != READ && o.kind != FLUSH)
    flags = begin_change (r, &o);
  in_flight_send (f, o, flags);
}

/* With nothing in flight, a flush succeeds, or fails because a write did.  If
 * it succeeds, all data is in the plugin.
 */
static void
checkpoint (struct run *r, bool must_succeed)
{
  const struct in_flight *f = &r->in_flight;
  struct nbd_handle *nbd = f->nbd[draw (0, f->n_connections)];

  wait_for_all (r);
  if (nbd_can_flush (nbd) != 1)
    return;
  for (unsigned c = 0; r->config->names && c < f->n_connections; c++)
    if (f->nbd[c] != nbd)               /* a flush covers one name */
      nbd_ok (nbd_flush (f->nbd[c], 0));
  if (nbd_flush (nbd, 0) == -1) {
    if (must_succeed || !r->has_errors)
      g_error ("flush: %s", nbd_get_error ());
    g_assert_cmpint (nbd_get_errno (), ==, ENOSPC);
    r->failed[FLUSH]++;
    return;
  }
  check_device (r);
}

/* Runs. */

static void
switch_errors (struct run *r, bool on)
{
  if (!r->config->errors)
    return;
  if (on)
    g_assert_true (g_file_set_contents (r->error_file, "", 0, NULL));
  else
    g_unlink (r->error_file);
  r->has_errors = on;
}

/* The filter defers writes only to a device that it has seen to be slow. */
static void
warm_up (struct run *r, struct nbd_handle *nbd)
{
  for (unsigned i = 0; i < 8; i++) {
    nbd_ok (nbd_pwrite (nbd, r->shadow, 4096, i * 4096, 0));
    nbd_ok (nbd_pread (nbd, r->shadow, 4096, i * 4096, 0));
  }
}

static void
start (struct run *r)
{
  static const char *const names[CONNECTIONS_MAX] = { "a", "b", "c", "d" };
  const struct config *config = r->config;
  g_autofree char *error = NULL, *parameters = NULL;

  r->error_file = g_strdup_printf ("%s/nbdkit-async-errors.%ld",
                                   g_get_tmp_dir (), (long) getpid ());
  switch_errors (r, false);
  error = g_strdup_printf ("error-pwrite=ENOSPC error-pwrite-rate=0.3 "
                           "error-file=%s", r->error_file);
  parameters = g_strdup_printf ("size=%u %s %s", (unsigned) SIZE,
                                config->parameters,
                                config->errors ? error : "");
  server_start_with (&r->server, NULL, config->below, config->plugin,
                     parameters);
  r->in_flight.n_connections = config->connections;
  for (unsigned c = 0; c < config->connections; c++) {
    r->in_flight.nbd[c] = client_connect_export (&r->server, config->names
                                                 ? names[c] : "");
    warm_up (r, r->in_flight.nbd[c]);
  }
}

/* Some thousand requests, as far as the time allows. */
static void
run_requests (struct run *r)
{
  static const unsigned depths[] = { 1, 1, 1, 2, 2, 4, 8, IN_FLIGHT_MAX };
  const unsigned steps = client_is_slow () ? 1000 : 4000;
  const gint64 end_us = g_get_monotonic_time ()
    + (client_is_slow () ? 8 : 5) * G_USEC_PER_SEC;
  unsigned depth = 1;

  for (unsigned step = 0; step < steps && g_get_monotonic_time () < end_us;
       step++) {
    if (step % 100 == 0) {
      depth = depths[draw (0, G_N_ELEMENTS (depths))];
      if (step % 400 == 0)
        checkpoint (r, false);
      switch_errors (r, step % 300 == 0 && step % 1200 != 0);
    }
    while (r->in_flight.n >= depth)
      progress (r, true);
    send_one (r);
    progress (r, false);
  }
  wait_for_all (r);
}

static void
read_all (struct run *r, unsigned connection)
{
  uint64_t largest = MIB / 4;

  if (r->config->maximum)
    largest = MIN (largest, r->config->maximum);
  for (uint64_t offset = 0; offset < SIZE; offset += largest) {
    in_flight_send (&r->in_flight, (struct operation) {
      .kind = READ, .connection = connection, .offset = offset,
      .count = MIN (largest, SIZE - offset) }, 0);
    progress (r, true);
  }
}

static void
test_random (gconstpointer data)
{
  const struct config *config = data;
  struct run run = { .config = config }, *r = &run;

  alarm (2 * CASE_SECONDS);
  r->shadow = g_malloc0 (SIZE);
  r->known = g_new (bool, SIZE);
  set_known (r, 0, SIZE, true);
  start (r);
  run_requests (r);
  switch_errors (r, false);
  for (unsigned c = 0; c < config->connections; c++)
    if (nbd_can_flush (r->in_flight.nbd[c]) == 1)
      nbd_ok (nbd_flush (r->in_flight.nbd[c], 0));
  checkpoint (r, true);
  for (unsigned c = 0; c < config->connections; c++)
    read_all (r, c);
  g_test_message ("read %u, written %u, zeroed %u, trimmed %u, flushed %u; "
                  "failed: %u writes, %u flushes", r->done[READ],
                  r->done[WRITE], r->done[ZERO], r->done[TRIM],
                  r->done[FLUSH], r->failed[WRITE], r->failed[FLUSH]);
  for (unsigned c = 0; c < config->connections; c++)
    client_close (r->in_flight.nbd[c]);
  if (!config->plugin)
    server_device (&r->server);         /* its memory outlives the server */
  server_terminate (&r->server);
  server_wait (&r->server);
  check_device (r);
  server_free (&r->server);
  in_flight_destroy (&r->in_flight);
  g_free (r->shadow);
  g_free (r->known);
  g_free (r->error_file);
}

/* Parameters of most configurations. */
#define BEHIND "asyncpool-write=behind "
#define BUFFERS(n) "asyncpool-buffers=" #n " "
#define SMALL_BUFFERS(n) BUFFERS (n) "asyncpool-buffer-size=64k "
#define SMALL_SLAB SMALL_BUFFERS (16) "delay=500us "

static const struct config configs[] = {
  { .path = "/random/behind",
    .parameters = BEHIND SMALL_SLAB,
    .connections = 4 },
  { .path = "/random/behind-defaults",
    .parameters = BEHIND "delay=1ms",
    .connections = 2 },
  { .path = "/random/auto",
    .parameters = SMALL_SLAB,
    .connections = 3 },
  { .path = "/random/through",
    .parameters = BUFFERS (16) "asyncpool-write=through delay=500us",
    .connections = 3 },
  { .path = "/random/one-connection",
    .parameters = BEHIND SMALL_BUFFERS (8) "delay=500us",
    .connections = 1 },
  { .path = "/random/one-buffer",
    .parameters = BEHIND SMALL_BUFFERS (1) "delay=300us",
    .connections = 3 },
  { .path = "/random/two-buffers",
    .parameters = BEHIND SMALL_BUFFERS (2) "delay=300us",
    .connections = 4 },
  { .path = "/random/few-buffers-many-threads",
    .parameters = BEHIND BUFFERS (4)
      "asyncpool-buffer-size=128k asyncpool-threads=16 delay=300us",
    .connections = 4 },
  { .path = "/random/many-buffers-few-threads",
    .parameters = BEHIND SMALL_BUFFERS (64) "asyncpool-threads=3 delay=1ms",
    .connections = 4 },
  { .path = "/random/one-thread",
    .parameters = BEHIND BUFFERS (8) "asyncpool-threads=1 delay=300us",
    .connections = 2 },
  { .path = "/random/read-direct",
    .parameters = BEHIND BUFFERS (16) "asyncpool-read=direct delay=500us",
    .connections = 2 },
  { .path = "/random/large-buffers",
    .parameters = BEHIND BUFFERS (4) "asyncpool-buffer-size=4M delay=2ms",
    .connections = 2 },
  { .path = "/random/names",
    .parameters = BEHIND SMALL_SLAB,
    .connections = 3, .names = true },
  { .path = "/random/without-flush",
    .parameters = BEHIND SMALL_SLAB
      "flush=0 fua=none zero=0 trim=0 extents=0 multi_conn=0",
    .connections = 1 },
  { .path = "/random/fua-emulated",
    .parameters = BEHIND SMALL_SLAB "fua=emulate",
    .connections = 3 },
  { .path = "/random/block-sizes",
    .below = "--filter=blocksize-policy",
    .parameters = BEHIND BUFFERS (16)
      "delay=500us blocksize-minimum=4096 blocksize-preferred=64k "
      "blocksize-maximum=1M blocksize-error-policy=error",
    .connections = 3, .minimum = 4096, .maximum = MIB },
  { .path = "/random/small-maximum",
    .parameters = BEHIND BUFFERS (16)
      "delay=500us minimum=512 preferred=4096 maximum=48k",
    .connections = 3, .minimum = 512, .maximum = 48 * KIB },
  { .path = "/random/errors",
    .below = "--filter=error",
    .parameters = BEHIND SMALL_SLAB,
    .connections = 3, .errors = true },
  { .path = "/random/errors-two-buffers",
    .below = "--filter=error",
    .parameters = BEHIND SMALL_BUFFERS (2) "delay=500us",
    .connections = 2, .errors = true },
  { .path = "/random/errors-auto",
    .below = "--filter=error",
    .parameters = SMALL_SLAB,
    .connections = 3, .errors = true },
  { .path = "/random/delaymem-slow",
    .plugin = "delaymem.so",
    .parameters = BEHIND "delay=200us",
    .connections = 4 },
  { .path = "/random/delaymem-fast",
    .plugin = "delaymem.so",
    .parameters = BEHIND "delay=0",
    .connections = 4 },
  { .path = "/random/delaymem-synchronous",
    .plugin = "delaymem.so",
    .parameters = BEHIND "delay=200us io-threads=0",
    .connections = 4 },
  { .path = "/random/hooks-two-buffers",
    .plugin = "delaymem.so",
    .parameters = BEHIND SMALL_BUFFERS (2) "delay=300us",
    .connections = 4 },
  { .path = "/random/hooks-auto",
    .plugin = "delaymem.so",
    .parameters = SMALL_SLAB,
    .connections = 3 },
  { .path = "/random/hooks-through",
    .plugin = "delaymem.so",
    .parameters = BUFFERS (16) "asyncpool-write=through delay=500us",
    .connections = 3 },
  { .path = "/random/hooks-names",
    .plugin = "delaymem.so",
    .parameters = BEHIND SMALL_SLAB "io-threads=5",
    .connections = 3, .names = true },
  /* A filter is below: the threads of nbdkit and of the pool wait for the
   * replies of the hooks.
   */
  { .path = "/random/hooks-awaited",
    .plugin = "tests/async-gate.so", .below = "--filter=nofilter",
    .parameters = BEHIND SMALL_BUFFERS (16) "delay=300us",
    .connections = 3 },
};

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (unsigned i = 0; i < G_N_ELEMENTS (configs); i++)
    g_test_add_data_func (configs[i].path, &configs[i], test_random);
  return g_test_run ();
}
