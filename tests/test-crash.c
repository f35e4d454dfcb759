/* SPDX-License-Identifier: BSD-3-Clause */
/* What a power cut leaves: random rounds over crash.so against a model.
 *
 * A round draws a configuration from its seed: plugin, asyncpool, filters above
 * and below, connections.  Random requests follow, several in flight, of which
 * no two touch the same block unless both read.  Clients leave and come back.
 * Then the server is killed, or it is ended in good order.  Every read must
 * agree with the model, crash-model.h.  So must the device, after every flush
 * and FUA that succeeds and after the server's end.
 *
 * A flush promises what had been acknowledged when it was sent: the writes of
 * its own connection, and those of others with the same name where both show
 * multi-conn.  A flush that fails promises nothing.
 *
 * Where writes fail, connections either have the same device, or they are
 * apart: of different names, or without multi-conn.  Those that are apart do
 * not see each other's failed data.  A flush then promises its own
 * connection's writes only, and a read returns at least what this connection
 * wrote.
 *
 *   CRASH_ROUNDS=N   rounds of each test (--seed=... repeats all of them)
 *   CRASH_SEED=N     each test repeats this round only
 *   FILTER=nofilter  the same without asyncpool
 *   SPLIT=nofilter   the same without split.so
 */
#define GATE_MODULE "tests/crash.so"
#include "client.h"

#include "crash-model.h"

enum { CONNECTIONS_MAX = 3, IN_FLIGHT_MAX = 12 };
enum { COUNT_MAX = 256 * 1024 };        /* bytes of a request */
enum { FAILURES_MAX = 8 };              /* rounds, then a test gives up */

struct operation {
  struct request request;       /* nbd NULL: not in use */
  enum kind kind;
  unsigned connection, client, number, sent;
  uint64_t offset, count;
  char *buf;
};

enum ending { KILLED, KILLED_ERRORS, KILLED_APART, TERMINATED };

struct round {
  enum ending ending;
  uint32_t seed;
  GRand *rand;
  bool is_bad;

  /* The configuration. */
  unsigned n_connections;
  bool names;                   /* every connection another export name */
  bool one_device;              /* the plugin has multi-conn */
  unsigned offers;              /* to filters above */
  GString *above, *below, *parameters;

  struct server server;
  struct crash_device *device;
  struct nbd_handle *nbd[CONNECTIONS_MAX];
  unsigned clients[CONNECTIONS_MAX], n_clients; /* ids, never used again */
  bool multi_conn;              /* as the clients see it */
  uint64_t align, count_max;
  uint64_t next[CONNECTIONS_MAX][2];    /* streams of reads and writes */

  struct operation ops[IN_FLIGHT_MAX];
  unsigned in_flight, depth;
  unsigned promises;            /* flushes and FUA that succeeded */
  unsigned failed;
  struct model model;
};

static struct {
  unsigned rounds, bad, promises, failed;
} totals;

static int
draw (struct round *r, int limit)
{
  return g_rand_int_range (r->rand, 0, limit);
}

#define DRAW(r, ...) \
  ((const char *[]) { __VA_ARGS__ }) \
    [draw (r, G_N_ELEMENTS (((const char *[]) { __VA_ARGS__ })))]

static bool
has_errors (const struct round *r)
{
  return r->ending == KILLED_ERRORS || r->ending == KILLED_APART;
}

/* Checks. */

enum { DURABLE = -1, STABLE = -2 };     /* of a block, in place of a client */

static unsigned
number_due (struct round *r, uint64_t block, int client)
{
  const struct block *b = &r->model.blocks[block];

  if (client == DURABLE)
    return b->floor;
  return r->ending == KILLED_APART ? model_own (&r->model, block, client)
    : b->stable;
}

/* Compares an image, or what a client has read of it, and reports the first
 * difference.
 */
static void
check (struct round *r, const char *what, const char *image, uint64_t offset,
       uint64_t count, int client)
{
  pthread_mutex_t *lock = r->server.pid ? &r->device->lock : NULL;

  for (uint64_t i = 0; i < count / CRASH_BLOCK && !r->is_bad; i++) {
    uint64_t block = offset / CRASH_BLOCK + i;
    int found;

    if (lock)
      pthread_mutex_lock (lock);
    found = model_origin (image + i * CRASH_BLOCK, block);
    if (lock)
      pthread_mutex_unlock (lock);
    if (model_may_hold (&r->model, block, found,
                        number_due (r, block, client)))
      continue;
    fprintf (stderr, "# seed %" PRIu32 ": %s: holds %d\n", r->seed, what,
             found);
    model_print (&r->model, block);
    r->is_bad = true;
  }
}

static void
check_durable (struct round *r, const char *what)
{
  check (r, what, r->device->durable, 0, CRASH_SIZE, DURABLE);
}

/* Replies. */

/* The multi-conn filter does not flush on behalf of clients that have gone. */
static bool
is_same_device (struct round *r, unsigned client)
{
  if (r->ending == KILLED_APART || r->names)
    return false;
  for (unsigned c = 0; c < r->n_connections; c++)
    if (r->clients[c] == client)
      return r->multi_conn;
  return r->multi_conn && r->one_device;
}

struct flush {
  struct round *round;
  unsigned client;
};

static bool
covers (void *data, unsigned client)
{
  const struct flush *f = data;

  return client == f->client || is_same_device (f->round, client);
}

static void
settle (struct round *r, struct operation *o)
{
  int error = o->request.error;
  bool is_promise = o->kind == FLUSH
    || (o->kind != READ && model_get (&r->model, o->number)->fua);

  r->in_flight--;
  if (error && (!has_errors (r) || error != ENOSPC)) {
    fprintf (stderr, "# seed %" PRIu32 ": %s at %#" PRIx64 "+%#" PRIx64
             ": %s\n", r->seed, kind_names[o->kind], o->offset, o->count,
             g_strerror (error));
    r->is_bad = true;
  }
  r->failed += error != 0;
  if (o->kind == READ && !error)
    check (r, "read", o->buf, o->offset, o->count, (int) o->client);
  else if (o->kind == FLUSH && error)
    model_flush_failed (&r->model, o->client);
  else if (o->kind == FLUSH)
    model_flush (&r->model, o->sent, covers,
                 &(struct flush) { .round = r, .client = o->client });
  else if (o->kind != READ && o->kind != FLUSH) {
    model_settle (&r->model, o->number, !error);
    if (error && model_get (&r->model, o->number)->fua)
      model_flush_failed (&r->model, o->client);        /* the fua filter's */
  }
  if (is_promise && !error) {
    r->promises++;
    check_durable (r, o->kind == FLUSH ? "after a flush" : "after FUA");
  }
  g_free (o->buf);
  memset (o, 0, sizeof *o);
}

/* Takes the replies that are there; waits for one if told to. */
static void
progress (struct round *r, bool wait)
{
  bool some = false;

  do {
    for (unsigned c = 0; c < r->n_connections; c++)
      nbd_ok (nbd_poll (r->nbd[c], wait && !some && r->n_connections == 1));
    for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
      if (r->ops[i].request.nbd && request_is_done (&r->ops[i].request)) {
        settle (r, &r->ops[i]);
        some = true;
      }
    if (wait && !some && r->n_connections > 1)
      g_usleep (50);
  } while (wait && !some && r->in_flight > 0);
}

/* Requests. */

static bool
conflicts (struct round *r, enum kind kind, uint64_t offset, uint64_t count)
{
  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++) {
    const struct operation *o = &r->ops[i];

    if (o->request.nbd && offset < o->offset + o->count
        && o->offset < offset + count && (kind != READ || o->kind != READ))
      return true;
  }
  return false;
}

/* Where: a stream goes on, or anywhere. */
static bool
draw_range (struct round *r, struct operation *o)
{
  uint64_t *next = &r->next[o->connection][o->kind != READ];
  uint64_t max = 1 << (9 + draw (r, 10));

  o->count = MIN (1 + g_rand_int_range (r->rand, 0, (int) max), COUNT_MAX);
  o->count = MIN (o->count, r->count_max);
  o->count = (o->count + r->align - 1) / r->align * r->align;
  o->offset = *next;
  if (draw (r, 2) || o->offset + o->count > CRASH_SIZE)
    o->offset = (uint64_t) draw (r, CRASH_SIZE) / r->align * r->align;
  o->count = MIN (o->count, CRASH_SIZE - o->offset);
  if (conflicts (r, o->kind, o->offset, o->count))
    return false;
  *next = (o->offset + o->count) % CRASH_SIZE;
  return true;
}

static void
send_request (struct round *r, struct operation *o, uint32_t flags)
{
  struct nbd_handle *nbd = r->nbd[o->connection];

  switch (o->kind) {
  case READ:
    o->buf = g_malloc (o->count);
    o->request = send_read (nbd, o->buf, o->count, o->offset);
    break;
  case WRITE:
    o->buf = g_malloc (o->count);
    model_stamp (o->buf, o->number, o->offset, o->count);
    o->request = send_write (nbd, o->buf, o->count, o->offset, flags);
    break;
  case ZERO:
    o->request = send_zero (nbd, o->count, o->offset, flags);
    break;
  case TRIM:
    o->request = send_trim (nbd, o->count, o->offset, flags);
    break;
  default:
    o->request = send_flush (nbd);
  }
  r->in_flight++;
}

static void
send_one (struct round *r)
{
  static const enum kind kinds[] = {    /* as often as each is here */
    READ, READ, READ, READ, READ, READ, ZERO, TRIM, FLUSH,
    WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE,
  };
  struct operation o = { .kind = kinds[draw (r, G_N_ELEMENTS (kinds))],
                         .connection = draw (r, r->n_connections),
                         .sent = ++r->model.now };
  struct nbd_handle *nbd = r->nbd[o.connection];
  uint32_t flags = 0;
  unsigned i;

  o.client = r->clients[o.connection];
  if ((o.kind == ZERO && nbd_can_zero (nbd) != 1)
      || (o.kind == TRIM && nbd_can_trim (nbd) != 1)
      || (o.kind == FLUSH && nbd_can_flush (nbd) != 1)
      || (o.kind != FLUSH && !draw_range (r, &o)))
    return;
  if (o.kind != READ && o.kind != FLUSH) {
    if (nbd_can_fua (nbd) == 1 && draw (r, 8) == 0)
      flags |= LIBNBD_CMD_FLAG_FUA;
    o.number = model_send (&r->model, &(struct write) {
      .kind = o.kind, .fua = flags, .client = o.client, .sent = o.sent,
      .offset = o.offset, .count = o.count });
    if (o.kind == ZERO && draw (r, 2))
      flags |= LIBNBD_CMD_FLAG_NO_HOLE;
  }
  for (i = 0; r->ops[i].request.nbd; i++)
    ;
  r->ops[i] = o;
  send_request (r, &r->ops[i], flags);
}

/* Configurations. */

/* What filters above may need. */
enum {
  FLUSHES = 1, FUA = 2, NATIVE = 4, RELIABLE = 8, ENDS_BY_KILL = 16,
  NOT_APART = 32,
};

static void
add (GString *s, const char *prefix, const char *value)
{
  g_string_append_printf (s, " %s%s", prefix, value);
}

static void
draw_plugin (struct round *r)
{
  GString *p = r->parameters;
  bool can_flush = draw (r, 5) > 0;
  const char *fua = can_flush ? DRAW (r, "none", "emulate", "native", "native")
    : DRAW (r, "none", "native");

  r->one_device = r->ending == KILLED_APART ? r->names
    : draw (r, 3) > 0 || (r->ending == KILLED_ERRORS && r->n_connections > 1);
  r->offers = (can_flush ? FLUSHES : 0) | (strcmp (fua, "none") ? FUA : 0)
    | (strcmp (fua, "native") == 0 ? NATIVE : 0)
    | (!has_errors (r) ? RELIABLE : 0)
    | (r->ending != KILLED_APART ? NOT_APART : 0)
    | (r->ending != TERMINATED ? ENDS_BY_KILL : 0);
  add (p, "fua=", fua);
  add (p, "flush=", can_flush ? "1" : "0");
  add (p, "multi_conn=", r->one_device ? "1" : "0");
  add (p, "hooks=", DRAW (r, "0", "1"));
  add (p, "zero=", DRAW (r, "0", "1", "1"));
  add (p, "trim=", DRAW (r, "0", "1", "1"));
  add (p, "delay=", DRAW (r, "0", "150", "250", "250", "400", "700"));
  if (r->ending != KILLED_APART && draw (r, 4) == 0)
    add (p, "minimum=", DRAW (r, "512", "4096"));
}

static void
draw_asyncpool (struct round *r)
{
  GString *p = r->parameters;

  add (p, "asyncpool-write=", DRAW (r, "auto", "behind", "behind"));
  add (p, "asyncpool-buffers=", DRAW (r, "2", "4", "8", "16", "64"));
  add (p, "asyncpool-buffer-size=", DRAW (r, "64k", "128k"));
  if (draw (r, 4) == 0)
    add (p, "asyncpool-threads=", DRAW (r, "1", "3", "8"));
}

/* Filters above asyncpool.
 *
 * multi-conn tracks which connections are dirty, but forgets writes that are
 * in flight during a flush, so its tracking is off.  It leaks memory where a
 * client is there at the end.  fuamode=force does not ask whether what is below
 * can flush, as multi-conn expects.  cache keeps data whose write failed.
 * With minblock blocksize writes back what it reads, which other clients that
 * are apart may have written.
 */
static const struct {
  const char *name, *parameters;
  unsigned needs, spoils;
} above[] = {
  { "blocksize", "minblock=4096", NOT_APART, 0 },
  { "blocksize", "minblock=4096 maxdata=16k", NOT_APART, 0 },
  { "blocksize", "maxdata=8k maxlen=32k", 0, 0 },
  { "multi-conn", "multi-conn-mode=emulate multi-conn-track-dirty=off",
    FLUSHES | ENDS_BY_KILL | NOT_APART, NATIVE },
  { "cache", "cache=writethrough", RELIABLE, 0 },
  { "fua", "fuamode=emulate", FLUSHES, 0 },
  { "fua", "fuamode=native", FUA, 0 },
  { "fua", "fuamode=force", NATIVE, FLUSHES },
  { "nozero", "zeromode=emulate", 0, 0 },
  { "log", "logfile=/dev/null", 0, 0 },
  { "readahead", "", 0, 0 },
  { "tests/split.so", "", 0, 0 },
};

static void
draw_above (struct round *r)
{
  unsigned i = draw (r, G_N_ELEMENTS (above));
  g_autofree char *split = client_module ("SPLIT", above[i].name);
  bool is_ours = strchr (above[i].name, '/');

  if (above[i].needs & ~r->offers || strstr (r->above->str, above[i].name))
    return;
  r->offers &= ~above[i].spoils;
  add (r->above, "--filter=", is_ours ? split : above[i].name);
  add (r->parameters, "", above[i].parameters);
}

static void
draw_below (struct round *r)
{
  if (draw (r, 4) > 0)
    return;
  if (has_errors (r)) {
    add (r->below, "--filter=", "error");
    add (r->parameters, "error-pwrite=ENOSPC error-pwrite-rate=", "0.05");
  }
  else if (!strstr (r->parameters->str, "minimum=")) {
    add (r->below, "--filter=", "blocksize-policy");
    add (r->parameters, "blocksize-error-policy=error blocksize-preferred=",
         "4096");
    add (r->parameters, "blocksize-minimum=", DRAW (r, "512", "4096"));
    add (r->parameters, "blocksize-maximum=", DRAW (r, "256k", "1M"));
  }
}

static void
draw_configuration (struct round *r)
{
  r->n_connections = 1 + draw (r, CONNECTIONS_MAX);
  r->names = r->ending != KILLED_ERRORS && draw (r, 3) == 0;
  if (r->ending == KILLED_APART)
    r->n_connections = MAX (r->n_connections, 2);
  r->above = g_string_new ("");
  r->below = g_string_new ("");
  r->parameters = g_string_new ("");
  add (r->above, "-t ", DRAW (r, "1", "2", "4", "8", "16", "16"));
  draw_plugin (r);
  draw_asyncpool (r);
  for (int n = draw (r, 4) - 1; n > 0; n--)
    draw_above (r);
  draw_below (r);
}

/* Rounds. */

static void
map_device (struct round *r)
{
  int fd = open (r->server.device_path, O_RDWR | O_CLOEXEC);

  r->device = mmap (NULL, sizeof *r->device, PROT_READ | PROT_WRITE,
                    MAP_SHARED, fd, 0);
  g_assert_true (r->device != MAP_FAILED);
  close (fd);
}

static void
join (struct round *r, unsigned c)
{
  const char *name = (const char *[]) { "a", "b", "c" } [c];

  r->nbd[c] = client_connect_export (&r->server, r->names ? name : "");
  r->clients[c] = r->n_clients++;
}

/* A client leaves and comes back.  Where its data can fail it does so only
 * while another connection has the same device, which keeps that data.
 */
static void
rejoin_one (struct round *r)
{
  unsigned c = draw (r, r->n_connections);

  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
    if (r->ops[i].request.nbd == r->nbd[c])
      return;
  if (r->ending == KILLED_APART
      || (has_errors (r) && (!r->one_device || r->n_connections < 2)))
    return;
  client_close (r->nbd[c]);
  join (r, c);
}

static void
begin (struct round *r)
{
  int64_t minimum, maximum;

  model_init (&r->model);
  server_start_with (&r->server, r->above->str, r->below->str, NULL,
                     r->parameters->str);
  for (unsigned c = 0; c < r->n_connections; c++)
    join (r, c);
  r->multi_conn = nbd_can_multi_conn (r->nbd[0]) == 1;
  minimum = nbd_get_block_size (r->nbd[0], LIBNBD_SIZE_MINIMUM);
  maximum = nbd_get_block_size (r->nbd[0], LIBNBD_SIZE_MAXIMUM);
  r->align = MAX (CRASH_BLOCK, minimum);
  r->count_max = maximum > 0 ? MIN (COUNT_MAX, maximum) : COUNT_MAX;
  map_device (r);
}

static void
run_requests (struct round *r)
{
  static const unsigned depths[] = { 1, 1, 2, 4, 8, IN_FLIGHT_MAX };
  int steps = 40 + draw (r, client_is_slow () ? 80 : 300);
  int more = r->ending != TERMINATED && draw (r, 2) ? 100 : 0;
  unsigned promises = UINT_MAX;

  for (int step = 0; step < steps + more && !r->is_bad; step++) {
    if (step % 25 == 0) {
      r->depth = depths[draw (r, G_N_ELEMENTS (depths))];
      if (has_errors (r))
        atomic_store (&r->device->fail_percent, draw (r, 3) ? 0 : 20);
    }
    if (step == steps)          /* on to the next promise, and kill it then */
      promises = r->promises;
    while (r->in_flight >= r->depth)
      progress (r, true);
    send_one (r);
    progress (r, false);
    if (draw (r, 50) == 0)
      rejoin_one (r);
    if (r->promises > promises)
      break;
  }
  if (r->ending == TERMINATED)
    while (r->in_flight > 0)
      progress (r, true);
}

/* Not while a block changes: a device does not tear these either. */
static void
kill_server (struct round *r)
{
  int status;

  if (draw (r, 2))
    g_usleep (draw (r, 2000));
  pthread_mutex_lock (&r->device->lock);
  g_assert_cmpint (kill (r->server.pid, SIGKILL), ==, 0);
  g_assert_cmpint (waitpid (r->server.pid, &status, 0), ==, r->server.pid);
  r->server.pid = 0;
  if (!WIFSIGNALED (status) || WTERMSIG (status) != SIGKILL)
    client_abort ();
  for (unsigned c = 0; c < r->n_connections; c++)
    nbd_close (r->nbd[c]);
  check_durable (r, "killed");
}

static void
end_server (struct round *r)
{
  bool clients_first = draw (r, 2);

  if (!clients_first)
    server_terminate (&r->server);
  for (unsigned c = 0; c < r->n_connections; c++)
    if (clients_first)
      client_close (r->nbd[c]);
    else
      nbd_close (r->nbd[c]);
  if (clients_first)
    server_terminate (&r->server);
  server_wait (&r->server);
  check (r, "ended", r->device->written, 0, CRASH_SIZE, STABLE);
  check_durable (r, "ended");
}

static void
end (struct round *r)
{
  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
    g_free (r->ops[i].buf);
  totals.rounds++;
  totals.bad += r->is_bad;
  totals.promises += r->promises;
  totals.failed += r->failed;
  munmap (r->device, sizeof *r->device);
  server_free (&r->server);
  model_destroy (&r->model);
  g_string_free (r->above, true);
  g_string_free (r->below, true);
  g_string_free (r->parameters, true);
  g_rand_free (r->rand);
  g_free (r);
}

static char words[2048];        /* what the round has drawn */

/* Where the server is lost, or hangs, the seed is still told. */
static void
print_words (int sig)
{
  if (write (STDERR_FILENO, words, strlen (words)) == -1
      || write (STDERR_FILENO, "\n", 1) == -1)
    _exit (1);
  signal (sig, SIG_DFL);
  raise (sig);
}

static void
run_round (enum ending ending, uint32_t seed)
{
  struct round *r = g_new0 (struct round, 1);

  alarm (CASE_SECONDS);
  r->ending = ending;
  r->seed = seed;
  r->rand = g_rand_new_with_seed_array ((guint32[]) { seed, ending }, 2);
  draw_configuration (r);
  snprintf (words, sizeof words, "# seed %" PRIu32 ": %u connections%s:%s;%s;"
            "%s", seed, r->n_connections, r->names ? " with names" : "",
            r->above->str, r->below->str, r->parameters->str);
  g_test_message ("%s", words + 2);
  begin (r);
  run_requests (r);
  if (ending == TERMINATED && !r->is_bad)
    end_server (r);
  else
    kill_server (r);
  g_assert_cmpuint (atomic_load (&r->device->violations), ==, 0);
  if (r->is_bad) {
    fprintf (stderr, "%s\n", words);
    g_test_fail ();
  }
  end (r);
}

static void
test_crash (gconstpointer data)
{
  const char *wanted = g_getenv ("CRASH_ROUNDS");
  const char *seed = g_getenv ("CRASH_SEED");
  unsigned n = wanted ? (unsigned) atoi (wanted) : client_is_slow () ? 6 : 24;

  memset (&totals, 0, sizeof totals);
  for (unsigned i = 0; i < n && totals.bad < FAILURES_MAX; i++)
    run_round (GPOINTER_TO_INT (data), seed ? strtoul (seed, NULL, 10)
               : (uint32_t) g_test_rand_int ());
  g_test_message ("%u rounds, %u bad: %u flushes and FUA succeeded, "
                  "%u requests failed", totals.rounds, totals.bad,
                  totals.promises, totals.failed);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  signal (SIGABRT, print_words);
  signal (SIGALRM, print_words);
  g_test_add_data_func ("/crash/killed", GINT_TO_POINTER (KILLED), test_crash);
  g_test_add_data_func ("/crash/killed-errors",
                        GINT_TO_POINTER (KILLED_ERRORS), test_crash);
  g_test_add_data_func ("/crash/killed-errors-apart",
                        GINT_TO_POINTER (KILLED_APART), test_crash);
  g_test_add_data_func ("/crash/terminated", GINT_TO_POINTER (TERMINATED),
                        test_crash);
  return g_test_run ();
}
