/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Simulation: the filter's engine under a virtual clock and a scheduler that a
 * seed decides.
 *
 * Each seed is one run.  It decides the device, the engine's parameters, the
 * clients' requests, and which thread runs when (simulate/sim.h).  The judge
 * (simulate/judge.h) knows the contract and nothing of the engine.  The
 * engine's own invariants are asserted wherever its lock is released.
 *
 *     test-simulate                      the fixed seeds of `make check'
 *     test-simulate --seeds N [--from S] [--keep-going]
 *                                        N seeds; prints a line now and then
 *     test-simulate --replay S           prints the requests of one run
 *
 * If a run fails, the program removes requests as long as the run still fails,
 * also with other schedules.  It prints the smallest run that it finds.
 *
 * Not here: nbdkit, real threads and real memory order (test-engine-random.c
 * under ThreadSanitizer).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <glib.h>

#include "check.h"
#include "engine.h"
#include "extentset.h"
#include "simulate/device.h"
#include "simulate/judge.h"
#include "simulate/sim.h"

enum {
  CONNS = 4, CLIENTS = 8, REQUESTS = 120,       /* at most; per client */
  UNIT_CELLS = UNIT / CELL,
  FIXED_SEEDS = 1200,           /* of each kind */
  SHRINK_SCHEDULES = 8
};

/* What a seed decides. */

struct step {
  enum request_kind kind;
  unsigned from, to;            /* cells */
  uint64_t think_ns;
};

struct plan {
  struct device_setup device;
  struct engine_config config;
  unsigned n_conns, n_clients, n_names;
  bool is_shared[CONNS];        /* multi-conn */
  uint32_t min_block[CONNS], max_block[CONNS];
  unsigned name[CONNS];
  unsigned large_writes;        /* the first write limit, in large operations;
                                 * 0: it begins with whole buffers */
  unsigned n_steps;
  struct step steps[CLIENTS][REQUESTS];
};

static const char *const names[] = { "", "other" };
static const char *const kind_names[] = { "pool", "hooks", "contexts" };

static gint64 opt_seeds, opt_from, opt_replay = -1;
static gboolean opt_go_on, opt_is_short;

/* Shared with the processes that run seeds. */
static struct {
  uint64_t seed, schedule, runs, requests;
  uint64_t end_ns;              /* the virtual time at the end of a run */
  bool is_skipped[CLIENTS][REQUESTS];
} *shared;

static unsigned
draw (GRand *rand, unsigned from, unsigned to)
{
  return g_rand_int_range (rand, from, to + 1);
}

/* Steps of one client that belong together. */
static unsigned
plan_some (GRand *rand, const struct plan *p, unsigned area, struct step *s,
           unsigned n)
{
  static const enum request_kind kinds[] = {
    READ, READ, READ, WRITE, WRITE, WRITE, WRITE, FUA, ZERO, TRIM, EXTENTS,
    FLUSH
  };
  bool is_stream = draw (rand, 0, 1);
  enum request_kind kind = draw (rand, 0, 1) ? READ : WRITE;
  unsigned size = 1 << draw (rand, 0, draw (rand, 0, 3) ? 4 : 7);
  unsigned at = draw (rand, 0, area * UNIT_CELLS - 1);
  bool thinks = draw (rand, 0, 3) == 0;

  if (p->large_writes > 0 && is_stream && draw (rand, 0, 1)) {
    kind = WRITE;
    size = UNIT_CELLS;
    at = at / UNIT_CELLS * UNIT_CELLS;
  }
  n = MIN (n, draw (rand, 1, is_stream ? 24 : 6));
  for (unsigned i = 0; i < n; i++) {
    s[i].kind = is_stream ? kind : kinds[draw (rand, 0,
                                               G_N_ELEMENTS (kinds) - 1)];
    if (!is_stream) {
      at = draw (rand, 0, area * UNIT_CELLS - 1);
      size = draw (rand, 1, draw (rand, 0, 3) ? 16 : 3 * UNIT_CELLS);
    }
    if (at >= CELLS)
      at = 0;
    s[i].from = at;
    s[i].to = MIN (at + size, CELLS);
    at = s[i].to;
    if (draw (rand, 0, 24) == 0)
      s[i].kind = FLUSH;
    if (draw (rand, 0, 60) == 0)
      s[i].kind = REOPEN;
    s[i].think_ns = thinks ? p->device.latency_ns * draw (rand, 0, 40) / 10
      : 0;
  }
  return n;
}

static void
log_unwritten (const char *export_name G_GNUC_UNUSED, uint64_t offset,
               uint32_t count, int err, bool kept)
{
  if (err <= 0)
    sim_fail ("lost data is logged without an error");
  if (!kept)
    judge_lost (offset / CELL, (offset + count) / CELL);
}

static void
log_overdue (const char *export_name G_GNUC_UNUSED)
{
  sim_fail ("another device's data was waited for for an hour");
}

static void
log_context (const char *export_name G_GNUC_UNUSED,
             unsigned n_open G_GNUC_UNUSED, unsigned max G_GNUC_UNUSED)
{
}

static void
make_plan (struct plan *p, uint64_t seed)
{
  static const uint64_t latencies_us[] = { 0, 50, 1000, 20000, 64000 };
  GRand *rand = g_rand_new_with_seed (seed);
  unsigned area = draw (rand, 1, 16), per_conn;
  bool has_blocks = draw (rand, 0, 4) == 0;

  memset (p, 0, sizeof *p);
  p->device.kind = seed % 3;
  p->device.hides = draw (rand, 0, 3) == 0;
  p->device.fails = draw (rand, 0, 2) == 0;
  p->device.latency_ns
    = 1000 * latencies_us[draw (rand, 0, G_N_ELEMENTS (latencies_us) - 1)];
  p->device.hang_one_in = draw (rand, 0, 1) ? 0 : 200;
  p->config = (struct engine_config) {
    .buffers = draw (rand, 2, draw (rand, 0, 1) ? 6 : 24),
    .adapts_to = draw (rand, 0, 1) ? draw (rand, 1, 24) : 0,
    .buffer_size = UNIT, .threads = draw (rand, 1, 6),
    .write = draw (rand, 0, 4) ? WRITE_BEHIND : draw (rand, 0, 1)
      ? WRITE_AUTO : WRITE_THROUGH,
    .read = draw (rand, 0, 4) ? READ_AHEAD : READ_DIRECT,
    .idle_ns = UINT64_C (1000000) * draw (rand, 1, 1000),
    .linger_ns = UINT64_C (1000000) * draw (rand, 1, 100),
    .others_ns = UINT64_C (3600000000000), .status_ns = 1000000000,
    .contexts = draw (rand, 1, 6),
    .context_idle_ns = UINT64_C (1000000000) * draw (rand, 1, 30),
    .context_retry_ns = UINT64_C (1000000) * draw (rand, 0, 1000),
    .log_unwritten = log_unwritten, .log_overdue = log_overdue,
    .log_context = log_context
  };
  p->n_conns = draw (rand, 1, CONNS);
  /* nbdkit sends requests of a serialized connection one by one. */
  per_conn = p->device.kind == CONTEXTS ? 1
    : draw (rand, 1, CLIENTS / p->n_conns);
  p->n_clients = p->n_conns * per_conn;
  p->n_names = draw (rand, 0, 2) ? 1 : 2;
  for (unsigned i = 0; i < p->n_conns; i++) {
    p->is_shared[i] = draw (rand, 0, 4) > 0;
    p->name[i] = draw (rand, 0, p->n_names - 1);
    p->min_block[i] = has_blocks ? (uint32_t) CELL << draw (rand, 0, 6)
      : 1;
    p->max_block[i] = has_blocks ? (uint32_t) UNIT / 4 << draw (rand, 0, 3)
      : UINT32_MAX;
    has_blocks ^= draw (rand, 0, 6) == 0;       /* for the next ones */
  }
  if (draw (rand, 0, 1)) {
    p->config.large_buffers = draw (rand, 1, 8);
    p->config.large_size = (uint32_t) UNIT << draw (rand, 1, 3);
    p->large_writes = draw (rand, 0, 3);
  }
  if (p->large_writes > 0)
    p->config.write = WRITE_BEHIND;
  p->n_steps = MIN (REQUESTS, 300 / p->n_clients);
  for (unsigned i = 0; i < p->n_clients; i++)
    for (unsigned n = 0; n < p->n_steps;)
      n += plan_some (rand, p, area, &p->steps[i][n], p->n_steps - n);
  g_rand_free (rand);
}

/* A run. */

static struct {
  const struct plan *plan;
  struct engine *engine;
  uint64_t last_value;
  unsigned last_conn;
  struct {
    struct conn *c;
    struct backend backend;
    unsigned id, device;        /* for the judge */
    unsigned calls;
    bool is_closing;
    struct sim_place left;
  } conns[CONNS];
} run;

static void
open_conn (unsigned i)
{
  const struct plan *p = run.plan;
  int err;

  run.conns[i].backend = device_open (p->is_shared[i]);
  run.conns[i].backend.min_block = p->min_block[i];
  run.conns[i].backend.max_block = p->max_block[i];
  run.conns[i].id = ++run.last_conn;
  run.conns[i].device = p->is_shared[i] ? 1 + p->name[i]
    : 100 + run.last_conn;
  err = conn_open (run.engine, names[p->name[i]], &run.conns[i].backend,
                   &run.conns[i].c);
  if (err)
    sim_fail ("conn_open: %s", strerror (err));
  if (p->large_writes > 0 && run.conns[i].c->large_units > 1) {
    struct limit *l = &run.conns[i].c->device->write_limit;

    atomic_store (&l->is_large, true);
    atomic_store (&l->value, p->large_writes);
  }
}

static void
close_conn (unsigned i)
{
  conn_close (run.conns[i].c);
  if (!run.plan->device.fails)
    judge_written (run.conns[i].id);
  conn_free (run.conns[i].c);
  device_close (&run.conns[i].backend);
}

static void
enter_conn (unsigned i)
{
  while (run.conns[i].is_closing)
    sim_wait (&run.conns[i].left, UINT64_MAX);
  run.conns[i].calls++;
}

static void
leave_conn (unsigned i)
{
  run.conns[i].calls--;
  sim_wake (&run.conns[i].left, UINT_MAX);
}

static void
reopen_conn (unsigned i)
{
  while (run.conns[i].is_closing)
    sim_wait (&run.conns[i].left, UINT64_MAX);
  run.conns[i].is_closing = true;
  while (run.conns[i].calls > 0)
    sim_wait (&run.conns[i].left, UINT64_MAX);
  close_conn (i);
  open_conn (i);
  run.conns[i].is_closing = false;
  sim_wake (&run.conns[i].left, UINT_MAX);
}

static void
check_extents (const struct request *r, const struct extentset *set)
{
  for (unsigned i = 0; i < set->n; i++) {
    unsigned from = MAX (set->at[i].from / CELL, r->from);
    unsigned to = MIN (set->at[i].to / CELL, r->to);

    if (set->at[i].type & BACKEND_ZERO && from < to)
      judge_zeroes (r, from, to);
  }
}

static int
do_extents (struct conn *c, const struct request *r, uint32_t count,
            uint64_t offset)
{
  struct extentset set = { .max = EXTENTS_ANSWER };
  int err = conn_extents (c, count, offset, sim_one_in (2), &set);

  if (err == 0)
    check_extents (r, &set);
  extentset_clear (&set);
  return err;
}

static int
do_request (struct conn *c, const struct request *r, void *buf)
{
  uint64_t offset = (uint64_t) r->from * CELL;
  uint32_t count = (r->to - r->from) * CELL;

  switch (r->kind) {
  case READ: return conn_read (c, buf, count, offset);
  case WRITE: return conn_write (c, buf, count, offset, 0);
  case FUA: return conn_write (c, buf, count, offset, BACKEND_FUA);
  case ZERO: return conn_zero (c, count, offset, 0);
  case TRIM: return conn_trim (c, count, offset, 0);
  case FLUSH: return conn_flush (c, true);
  case EXTENTS: return do_extents (c, r, count, offset);
  case REOPEN: break;
  }
  g_assert_not_reached ();
}

/* Returns the answer. */
static int
send (unsigned i, struct request request)
{
  unsigned block = MAX (run.plan->min_block[i] / CELL, 1);
  bool is_write = request.kind == WRITE || request.kind == FUA;
  g_autofree void *buf = NULL;
  struct request *r;
  int err;

  request.from -= request.from % block;
  request.to = (request.to + block - 1) / block * block;
  buf = g_malloc ((request.to - request.from) * CELL + 1);
  request.conn = run.conns[i].id;
  request.device = run.conns[i].device;
  request.name = run.plan->name[i];
  request.value = is_write ? 1000 + ++run.last_value : 0;
  cells_fill (buf, request.to - request.from, is_write ? request.value : 999);
  r = judge_send (request);
  err = do_request (run.conns[i].c, r, buf);
  judge_answer (r, err, buf);
  shared->requests++;
  return err;
}

static void
run_client (void *vn)
{
  unsigned n = GPOINTER_TO_UINT (vn), i = n % run.plan->n_conns;

  for (unsigned k = 0; k < run.plan->n_steps; k++) {
    const struct step *s = &run.plan->steps[n][k];

    if (shared->is_skipped[n][k])
      continue;
    if (s->think_ns)
      sim_sleep (s->think_ns);
    if (s->kind == REOPEN) {
      reopen_conn (i);
      continue;
    }
    enter_conn (i);
    send (i, (struct request) {
      .kind = s->kind, .client = n, .number = k, .from = s->from, .to = s->to
    });
    leave_conn (i);
  }
}

/* A connection cannot write failed data of one with smaller blocks, or with a
 * larger largest block, which has ended.  Its flushes return the error.
 */
static bool
may_be_unable (unsigned i)
{
  const struct plan *p = run.plan;

  for (unsigned k = 0; k < p->n_conns; k++)
    if (p->min_block[k] < p->min_block[i] || p->max_block[k] > p->max_block[i])
      return p->device.fails;
  return false;
}

/* All is well again: a flush succeeds, though some may return old errors
 * first.  Then all data can be read, and is durable.
 */
static void
finish (unsigned i)
{
  struct request flush = { .kind = FLUSH, .client = CLIENTS + i };
  struct request read = { .kind = READ, .client = CLIENTS + i, .to = CELLS };
  int err = 0;

  for (unsigned n = 0; n < 4; n++)
    if ((err = send (i, flush)) == 0)
      break;
  if (err && !may_be_unable (i))
    sim_fail ("flushes go on to fail: %s", strerror (err));
  if (send (i, read))
    sim_fail ("reads go on to fail");
}

static void
run_all (void *unused G_GNUC_UNUSED)
{
  const struct plan *p = run.plan;
  struct fiber *clients[CLIENTS];

  device_start (&p->device);
  judge_start (p->device.hides, p->device.fails);
  if (engine_new (&p->config, &run.engine) || engine_start (run.engine))
    sim_fail ("the engine does not start");
  for (unsigned i = 0; i < p->n_conns; i++)
    open_conn (i);
  for (unsigned n = 0; n < p->n_clients; n++)
    clients[n] = sim_spawn ("client", run_client, GUINT_TO_POINTER (n));
  for (unsigned n = 0; n < p->n_clients; n++)
    sim_join (clients[n]);
  device_heal ();
  for (unsigned i = 0; i < p->n_conns; i++)
    finish (i);
  if (sim_one_in (2))
    close_conn (0);
  else
    run.conns[0].is_closing = true;
  engine_stop (run.engine);
  for (unsigned i = run.conns[0].is_closing ? 0 : 1; i < p->n_conns; i++) {
    conn_free (run.conns[i].c);
    device_close (&run.conns[i].backend);
  }
  engine_free (run.engine);
  judge_written (0);
  judge_stop ();
  device_stop ();
  shared->end_ns = sim_now_ns ();
}

static void
run_seed (uint64_t seed, uint64_t schedule)
{
  static struct plan plan;

  shared->seed = seed;
  shared->schedule = schedule;
  make_plan (&plan, seed);
  memset (&run, 0, sizeof run);
  run.plan = &plan;
  sim_run (schedule, run_all, NULL);
  shared->runs++;
}

/* Processes: a failed run ends its own one. */

static bool
run_in_process (uint64_t from, uint64_t n, unsigned stride, uint64_t schedule,
                bool is_quiet)
{
  int status;
  pid_t pid;

  fflush (stdout);
  pid = fork ();
  g_assert_cmpint (pid, >=, 0);
  if (pid == 0) {
    if (is_quiet && (!freopen ("/dev/null", "w", stdout)
                     || !freopen ("/dev/null", "w", stderr)))
      _exit (2);
    alarm (n == 1 ? 20 : 100);
    for (uint64_t i = 0; i < n; i++)
      run_seed (from + i * stride, schedule ? schedule : from + i * stride);
    fflush (stdout);
    _exit (0);
  }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  return status == 0;
}

/* Whether the run fails with this schedule, or with one of so many others. */
static bool
fails_anyhow (uint64_t seed, uint64_t *schedule, unsigned others)
{
  for (unsigned i = 0; i <= others; i++) {
    uint64_t other = i == 0 ? *schedule : seed * 1000 + i;

    if (!run_in_process (seed, 1, 1, other, true)) {
      *schedule = other;
      return true;
    }
  }
  return false;
}

/* Skips N requests.  Returns how many of them were not skipped before. */
static unsigned
skip (const struct plan *p, unsigned from, unsigned n, bool *before)
{
  unsigned more = 0;

  for (unsigned i = from; i < MIN (from + n, p->n_clients * p->n_steps); i++) {
    bool *is_skipped = &shared->is_skipped[i / p->n_steps][i % p->n_steps];

    before[i] = *is_skipped;
    more += !*is_skipped;
    *is_skipped = true;
  }
  return more;
}

static void
unskip (const struct plan *p, unsigned from, unsigned n, const bool *before)
{
  for (unsigned i = from; i < MIN (from + n, p->n_clients * p->n_steps); i++)
    shared->is_skipped[i / p->n_steps][i % p->n_steps] = before[i];
}

/* Removes requests, first many at once. */
static uint64_t
shrink (uint64_t seed, uint64_t schedule)
{
  g_autofree struct plan *p = g_new (struct plan, 1);
  g_autofree bool *before = NULL;
  unsigned all;

  make_plan (p, seed);
  all = p->n_clients * p->n_steps;
  before = g_new0 (bool, all);
  for (unsigned others = 0; others <= SHRINK_SCHEDULES;
       others += SHRINK_SCHEDULES)
    for (unsigned n = all / 2; n > 0; n /= 2)
      for (unsigned from = 0; from < all; from += n)
        if (skip (p, from, n, before) > 0
            && !fails_anyhow (seed, &schedule, others))
          unskip (p, from, n, before);
  return schedule;
}

static void
print_plan (uint64_t seed)
{
  g_autofree struct plan *p = g_new (struct plan, 1);
  const struct engine_config *c = &p->config;

  make_plan (p, seed);
  printf ("Seed %" PRIu64 ": %s, latency %" PRIu64 " us%s%s; %u buffers, %u "
          "threads, %u contexts, write %u, read %u; connections:", seed,
          kind_names[p->device.kind], p->device.latency_ns / 1000,
          p->device.hides ? ", hides" : "", p->device.fails ? ", fails" : "",
          c->buffers, c->threads, c->contexts, c->write, c->read);
  for (unsigned i = 0; i < p->n_conns; i++)
    printf (" \"%s\"%s blocks %u to %u", names[p->name[i]],
            p->is_shared[i] ? "" : " without multi-conn", p->min_block[i],
            p->max_block[i]);
  putchar ('\n');
}

static void
explain (void)
{
  uint64_t seed = shared->seed, schedule = shared->schedule;

  printf ("Seed %" PRIu64 " fails.  Its smallest form that was found:\n", seed);
  fflush (stdout);
  schedule = shrink (seed, schedule);
  print_plan (seed);
  sim_on_failure = judge_print;
  run_in_process (seed, 1, 1, schedule, false);
}

/* Seeds FROM, FROM + STRIDE ... */
static bool
run_seeds (uint64_t from, uint64_t n, unsigned stride)
{
  enum { AT_ONCE = 300 };
  bool is_good = true;

  for (uint64_t i = 0; i < n; i += AT_ONCE) {
    uint64_t at = from + i * stride, most = MIN (AT_ONCE, n - i);

    while (!run_in_process (at, most, stride, 0, false)) {
      is_good = false;
      if (opt_is_short)
        return false;
      if (!opt_go_on) {
        explain ();
        return false;
      }
      printf ("Seed %" PRIu64 " fails\n", shared->seed);
      most -= (shared->seed - at) / stride + 1;
      at = shared->seed + stride;
    }
    if (stride == 1 && i / AT_ONCE % 20 == 19) {
      printf ("%" PRIu64 " runs, %" PRIu64 " requests\n", shared->runs,
              shared->requests);
      fflush (stdout);
    }
  }
  return is_good;
}

static bool
is_possible (void)
{
  const char *tool = g_getenv ("TOOL");

  if (tool == NULL || *tool == 0)
    return true;
  g_test_skip ("valgrind does not know the stacks of simulated threads");
  return false;
}

static void
test_kind (gconstpointer kind)
{
  if (!is_possible ())
    return;
  g_assert_true (run_seeds (GPOINTER_TO_UINT (kind), FIXED_SEEDS, 3));
  g_test_message ("%" PRIu64 " runs, %" PRIu64 " requests", shared->runs,
                  shared->requests);
}


/* A run does not depend on those before it. */
static void
test_same (void)
{
  if (!is_possible ())
    return;
  for (unsigned seed = 0; seed < 30; seed++) {
    uint64_t end_ns;

    g_assert_true (run_in_process (seed, 1, 1, 0, false));
    end_ns = shared->end_ns;
    g_assert_true (run_in_process (seed % 7, 2, seed - seed % 7, 0, false));
    g_assert_cmpuint (shared->end_ns, ==, end_ns);
  }
}

static const GOptionEntry options[] = {
  { "seeds", 0, 0, G_OPTION_ARG_INT64, &opt_seeds, "How many runs", "N" },
  { "from", 0, 0, G_OPTION_ARG_INT64, &opt_from, "The first seed", "S" },
  { "keep-going", 0, 0, G_OPTION_ARG_NONE, &opt_go_on,
    "Only name the seeds that fail", NULL },
  { "short", 0, 0, G_OPTION_ARG_NONE, &opt_is_short,
    "Stop at a failure, without a word about it", NULL },
  { "replay", 0, 0, G_OPTION_ARG_INT64, &opt_replay, "One run", "S" },
  { NULL, 0, 0, 0, NULL, NULL, NULL }
};

int
main (int argc, char *argv[])
{
  g_autoptr (GOptionContext) context = g_option_context_new (NULL);

  shared = mmap (NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  g_assert_true (shared != MAP_FAILED);
  if (argc > 1 && strcmp (argv[1], "--tap") != 0) {
    bool is_good = true;

    g_option_context_add_main_entries (context, options, NULL);
    if (!g_option_context_parse (context, &argc, &argv, NULL))
      return 2;
    if (opt_replay >= 0) {
      print_plan (opt_replay);
      sim_on_failure = judge_print;
      return !run_in_process (opt_replay, 1, 1, 0, false);
    }
    is_good = run_seeds (opt_from, opt_seeds, 1);
    printf ("%" PRIu64 " runs, %" PRIu64 " requests: %s\n", shared->runs,
            shared->requests, is_good ? "no wrong answer" : "FAILED");
    return !is_good;
  }
  g_test_init (&argc, &argv, NULL);
  for (unsigned i = 0; i < 3; i++) {
    g_autofree char *path = g_strdup_printf ("/%s", kind_names[i]);

    g_test_add_data_func (path, GUINT_TO_POINTER (i), test_kind);
  }
  g_test_add_func ("/same", test_same);
  return g_test_run ();
}
