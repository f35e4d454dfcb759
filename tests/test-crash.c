/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Power cuts: random rounds of requests over crash.so, checked by a model.
 *
 * The model (crash-model.h) knows all changes of each block, and two of them:
 * the acknowledged one, which reads return, and the promised one, which a
 * flush or FUA has made durable.  A round starts a server with a configuration
 * that it draws from its seed (crash-config.h).  It sends random requests,
 * several in flight, and clients leave and come back.  Then it kills the
 * server, or terminates it.  A check compares blocks with the model: the data
 * of each read, and the whole device after each flush and FUA that succeeds and
 * after the end.  A block may then have its durable data or its written data.
 * No two requests in flight have a common block, unless both read, so the model
 * knows the order of the changes.
 *
 * A flush promises the changes that were acknowledged when it was sent.  It
 * covers its own connection, and those of the same device: same export name,
 * and multi-conn.  A flush that fails promises nothing.
 *
 * Connections of other devices do not see each other's failed data.  Where
 * changes fail, a flush of one covers its own connection only, and a read
 * returns at least what this connection wrote.
 *
 *   CRASH_ROUNDS=N   rounds of each test (--seed=... repeats all of them)
 *   CRASH_SEED=N     each test repeats this round only
 *   FILTER=nofilter  the same without asyncpool
 *   SPLIT=nofilter   the same without split.so
 */
#define GATE_MODULE "tests/crash.so"
#include "in-flight.h"

#include "crash-config.h"
#include "crash-model.h"
#include "table.h"

enum { DEPTH_MAX = 12 };
enum { COUNT_MAX = 256 * 1024 };        /* bytes of a request */
enum { FAILURES_MAX = 8 };              /* rounds, then a test gives up */

struct round {
  struct config config;
  uint32_t seed;
  bool is_bad;

  struct server server;
  struct crash_device *device;
  unsigned clients[CONNECTIONS_MAX], n_clients; /* ids, never used again */
  bool multi_conn;              /* as the clients see it */
  uint64_t align, count_max;
  uint64_t next[CONNECTIONS_MAX][2];    /* streams of reads and changes */

  struct in_flight in_flight;
  unsigned promises;            /* flushes and FUA that succeeded */
  unsigned crashes;             /* moments whose images were checked */
  unsigned failed;
  struct model model;
};

static struct {
  unsigned rounds, bad, crashes, promises, failed;
} totals;

static int
draw (struct round *r, int limit)
{
  return config_draw (&r->config, limit);
}

/* Checks. */

/* Each block must hold this or a later change: the promised one, the
 * acknowledged one, or the one that was acknowledged to this client.
 */
enum { PROMISED = -1, ACKNOWLEDGED = -2 };

static unsigned
least_due (struct round *r, uint64_t block, int client)
{
  const struct block *b = &r->model.blocks[block];

  if (client == PROMISED)
    return b->promised;
  return has_other_devices (&r->config) ? model_own (&r->model, block, client)
    : b->acknowledged;
}

/* While the server runs, a block must not change under the check. */
static int
get_origin (struct round *r, const char *data, uint64_t block)
{
  bool runs = r->server.pid != 0;
  int origin;

  if (runs)
    pthread_mutex_lock (&r->device->lock);
  origin = model_origin (data, block);
  if (runs)
    pthread_mutex_unlock (&r->device->lock);
  return origin;
}

/* Compares an image, or the part that a client has read, with the model.
 * Reports the first difference.
 */
static void
check (struct round *r, const char *when, const char *image, uint64_t offset,
       uint64_t count, int client)
{
  for (uint64_t i = 0; i < count / CRASH_BLOCK && !r->is_bad; i++) {
    uint64_t block = offset / CRASH_BLOCK + i;
    int origin = get_origin (r, image + i * CRASH_BLOCK, block);

    if (model_may_hold (&r->model, block, origin,
                        least_due (r, block, client)))
      continue;
    fprintf (stderr, "# seed %" PRIu32 ": %s: holds %d\n", r->seed, when,
             origin);
    model_print (&r->model, block);
    r->is_bad = true;
  }
}

/* A power cut now may leave each block as it is in `durable' or as it is in
 * `written'.  crash.so finds older data that was in `written' in between.
 */
static void
check_crash (struct round *r, const char *when)
{
  check (r, when, r->device->durable, 0, CRASH_SIZE, PROMISED);
  check (r, when, r->device->written, 0, CRASH_SIZE, PROMISED);
  r->crashes++;
}

/* Replies. */

/* A flush of another client covers this one.  But the multi-conn filter does
 * not flush on behalf of clients that have left.
 */
static bool
is_same_device (struct round *r, unsigned client)
{
  if (has_other_devices (&r->config) || r->config.names)
    return false;
  for (unsigned c = 0; c < r->in_flight.n_connections; c++)
    if (r->clients[c] == client)
      return r->multi_conn;
  return r->multi_conn && r->config.one_device;
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

/* Whether the client waits for another flush, or for FUA, which a filter may do
 * by a flush.
 */
static bool
has_other_flush (struct round *r, const struct operation *o)
{
  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++) {
    const struct operation *other = &r->in_flight.ops[i];

    if (other->request.nbd && other != o && other->client == o->client
        && (other->kind == FLUSH
            || (other->kind != READ
                && model_get (&r->model, other->number)->fua)))
      return true;
  }
  return false;
}

static void
complete_flush (struct round *r, const struct operation *o)
{
  /* Of several flushes at once only one reports lost changes.  Its reply may be
   * the later one.
   */
  if (o->request.error || has_other_flush (r, o))
    model_flush_failed (&r->model, o->client);
  if (o->request.error)
    return;
  model_flush (&r->model, o->sent, covers,
               &(struct flush) { .round = r, .client = o->client });
  r->promises++;
  check_crash (r, "after a flush");
}

static void
complete_change (struct round *r, const struct operation *o)
{
  bool has_failed = o->request.error;

  model_complete (&r->model, o->number, !has_failed);
  if (!model_get (&r->model, o->number)->fua)
    return;
  if (has_failed) {             /* a filter may do FUA by a flush */
    model_flush_failed (&r->model, o->client);
    return;
  }
  r->promises++;
  check_crash (r, "after FUA");
}

static void
complete (void *data, struct operation *o)
{
  struct round *r = data;
  int error = o->request.error;

  if (error && (!has_errors (&r->config) || error != ENOSPC)) {
    fprintf (stderr, "# seed %" PRIu32 ": %s at %#" PRIx64 "+%#" PRIx64
             ": %s\n", r->seed, kind_names[o->kind], o->offset, o->count,
             g_strerror (error));
    r->is_bad = true;
  }
  r->failed += error != 0;
  if (o->kind == FLUSH)
    complete_flush (r, o);
  else if (o->kind != READ)
    complete_change (r, o);
  else if (!error)
    check (r, "read", o->buf, o->offset, o->count, (int) o->client);
}

static void
progress (struct round *r, bool wait)
{
  in_flight_progress (&r->in_flight, wait, complete, r);
}

/* Requests. */

/* A stream goes on, or the range is anywhere. */
static bool
draw_range (struct round *r, struct operation *o)
{
  uint64_t *next = &r->next[o->connection][o->kind != READ];
  int max = 1 << (9 + draw (r, 10));

  o->count = MIN (1 + draw (r, max), COUNT_MAX);
  o->count = MIN (o->count, r->count_max);
  o->count = (o->count + r->align - 1) / r->align * r->align;
  o->offset = *next;
  if (draw (r, 2) || o->offset + o->count > CRASH_SIZE)
    o->offset = (uint64_t) draw (r, CRASH_SIZE) / r->align * r->align;
  o->count = MIN (o->count, CRASH_SIZE - o->offset);
  if (in_flight_conflicts (&r->in_flight, o->kind, o->offset, o->count))
    return false;
  *next = (o->offset + o->count) % CRASH_SIZE;
  return true;
}

/* Gives the change its number, and draws its flags. */
static uint32_t
begin_change (struct round *r, struct operation *o)
{
  uint32_t flags = 0;

  if (nbd_can_fua (r->in_flight.nbd[o->connection]) == 1 && draw (r, 8) == 0)
    flags |= LIBNBD_CMD_FLAG_FUA;
  o->number = model_send (&r->model, &(struct change) {
    .kind = o->kind, .fua = flags, .client = o->client, .sent = o->sent,
    .offset = o->offset, .count = o->count });
  if (o->kind == ZERO && draw (r, 2))
    flags |= LIBNBD_CMD_FLAG_NO_HOLE;
  if (o->kind == WRITE) {
    o->buf = g_malloc (o->count);
    model_stamp (o->buf, o->number, o->offset, o->count);
  }
  return flags;
}

static void
send_one (struct round *r)
{
  static const enum kind kinds[] = {    /* as often as each is here */
    READ, READ, READ, READ, READ, READ, ZERO, TRIM, FLUSH,
    WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE,
  };
  struct in_flight *f = &r->in_flight;
  struct operation o = { .kind = kinds[draw (r, G_N_ELEMENTS (kinds))],
                         .connection = draw (r, f->n_connections),
                         .sent = ++r->model.now };
  uint32_t flags = 0;

  o.client = r->clients[o.connection];
  if (!in_flight_can_send (f, o.kind, o.connection)
      || (o.kind != FLUSH && !draw_range (r, &o)))
    return;
  if (o.kind != READ && o.kind != FLUSH)
    flags = begin_change (r, &o);
  in_flight_send (f, o, flags);
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
  static const char *const names[CRASH_CONNECTIONS_MAX] = { "a", "b", "c" };

  r->in_flight.nbd[c] = client_connect_export (&r->server, r->config.names
                                               ? names[c] : "");
  r->clients[c] = r->n_clients++;
}

/* A client with no request in flight leaves and comes back.  Where its changes
 * can fail, it does so only while another connection of the same device keeps
 * the failed data.
 */
static void
rejoin_one (struct round *r)
{
  unsigned c = draw (r, r->in_flight.n_connections);

  if (in_flight_has_connection (&r->in_flight, c)
      || has_other_devices (&r->config)
      || (has_errors (&r->config)
          && (!r->config.one_device || r->in_flight.n_connections < 2)))
    return;
  client_close (r->in_flight.nbd[c]);
  join (r, c);
}

static void
begin (struct round *r)
{
  const struct config *config = &r->config;
  int64_t minimum, maximum;

  model_init (&r->model);
  server_start_with (&r->server, config->above->str, config->below->str, NULL,
                     config->parameters->str);
  r->in_flight.n_connections = config->n_connections;
  for (unsigned c = 0; c < config->n_connections; c++)
    join (r, c);
  r->multi_conn = nbd_can_multi_conn (r->in_flight.nbd[0]) == 1;
  minimum = nbd_get_block_size (r->in_flight.nbd[0], LIBNBD_SIZE_MINIMUM);
  maximum = nbd_get_block_size (r->in_flight.nbd[0], LIBNBD_SIZE_MAXIMUM);
  r->align = MAX (CRASH_BLOCK, minimum);
  r->count_max = maximum > 0 ? MIN (COUNT_MAX, maximum) : COUNT_MAX;
  map_device (r);
}

/* Some rounds go on after their requests until the next promise, and end just
 * then.
 */
static void
run_requests (struct round *r)
{
  static const unsigned depths[] = { 1, 1, 2, 4, 8, DEPTH_MAX };
  int steps = 40 + draw (r, client_is_slow () ? 80 : 300);
  int more = r->config.ending != TERMINATED && draw (r, 2) ? 100 : 0;
  unsigned depth = 1, promises = UINT_MAX;

  for (int step = 0; step < steps + more && !r->is_bad; step++) {
    if (step % 25 == 0) {
      depth = depths[draw (r, G_N_ELEMENTS (depths))];
      if (has_errors (&r->config))
        atomic_store (&r->device->fail_percent, draw (r, 3) ? 0 : 20);
    }
    if (step == steps)
      promises = r->promises;
    while (r->in_flight.n >= depth)
      progress (r, true);
    send_one (r);
    progress (r, false);
    if (draw (r, 50) == 0)
      rejoin_one (r);
    if (r->promises > promises)
      break;
  }
  while (r->config.ending == TERMINATED && r->in_flight.n > 0)
    progress (r, true);
}

/* Not while a block changes, as a device does not tear its blocks. */
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
  for (unsigned c = 0; c < r->in_flight.n_connections; c++)
    nbd_close (r->in_flight.nbd[c]);
  check_crash (r, "killed");
}

/* The clients leave, and the server gets SIGTERM: in either order. */
static void
end_server (struct round *r)
{
  bool clients_first = draw (r, 2);

  if (!clients_first)
    server_terminate (&r->server);
  for (unsigned c = 0; c < r->in_flight.n_connections; c++)
    if (clients_first)
      client_close (r->in_flight.nbd[c]);
    else
      nbd_close (r->in_flight.nbd[c]);
  if (clients_first)
    server_terminate (&r->server);
  server_wait (&r->server);
  check (r, "ended", r->device->written, 0, CRASH_SIZE, ACKNOWLEDGED);
  check_crash (r, "ended");
}

static void
end (struct round *r)
{
  totals.rounds++;
  totals.bad += r->is_bad;
  totals.crashes += r->crashes;
  totals.promises += r->promises;
  totals.failed += r->failed;
  in_flight_destroy (&r->in_flight);
  munmap (r->device, sizeof *r->device);
  server_free (&r->server);
  model_destroy (&r->model);
  config_destroy (&r->config);
  g_free (r);
}

static char description[2048];  /* of the round, with its seed */

/* Prints the seed if the program aborts or hangs. */
static void
print_description (int sig)
{
  if (write (STDERR_FILENO, description, strlen (description)) == -1
      || write (STDERR_FILENO, "\n", 1) == -1)
    _exit (1);
  signal (sig, SIG_DFL);
  raise (sig);
}

static void
describe (const struct round *r)
{
  const struct config *c = &r->config;

  snprintf (description, sizeof description, "# seed %" PRIu32
            ": %u connections%s:%s;%s;%s", r->seed, c->n_connections,
            c->names ? " with names" : "", c->above->str, c->below->str,
            c->parameters->str);
  g_test_message ("%s", description + 2);
}

static void
run_round (enum ending ending, uint32_t seed)
{
  struct round *r = g_new0 (struct round, 1);

  alarm (CASE_SECONDS);
  r->seed = seed;
  config_init (&r->config, ending, seed);
  describe (r);
  begin (r);
  run_requests (r);
  if (ending == TERMINATED && !r->is_bad)
    end_server (r);
  else
    kill_server (r);
  g_assert_cmpuint (atomic_load (&r->device->violations), ==, 0);
  /* A change that fails may be there in part, before older data is retried. */
  if (!has_errors (&r->config))
    g_assert_cmpuint (atomic_load (&r->device->steps_back), ==, 0);
  if (r->is_bad) {
    fprintf (stderr, "%s\n", description);
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

  signal (SIGABRT, print_description);
  signal (SIGALRM, print_description);
  memset (&totals, 0, sizeof totals);
  for (unsigned i = 0; i < n && totals.bad < FAILURES_MAX; i++)
    run_round (GPOINTER_TO_INT (data), seed ? strtoul (seed, NULL, 10)
               : (uint32_t) g_test_rand_int ());
  g_test_message ("%u rounds, %u bad: %u crash points, %u flushes and FUA "
                  "succeeded, %u requests failed", totals.rounds, totals.bad,
                  totals.crashes, totals.promises, totals.failed);
}

static const struct test tests[] = {
  { "/crash/flushed-data-survives-a-kill",
    .run_with = test_crash, .data = GINT_TO_POINTER (KILLED) },
  { "/crash/flushed-data-survives-a-kill/errors",
    .run_with = test_crash, .data = GINT_TO_POINTER (KILLED_ERRORS) },
  { "/crash/flushed-data-survives-a-kill/errors-other-devices",
    .run_with = test_crash,
    .data = GINT_TO_POINTER (KILLED_ERRORS_OTHER_DEVICES) },
  { "/crash/all-data-survives-sigterm",
    .run_with = test_crash, .data = GINT_TO_POINTER (TERMINATED) },
};

TABLE_MAIN (tests)
