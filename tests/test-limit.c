/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The filter's rule for the number of operations in flight (filter/limit.c) and
 * well-known rules, over models of devices in virtual time.
 *
 *     test-limit --table [--model NAME]    compares all rules
 *     test-limit --data DIR                the limits over time, for the plot
 *     test-limit --random-seed N           the test with another seed
 *
 * A client keeps as many operations in flight as the limit allows.  Without an
 * argument, the program tests that the filter's rule reaches its marks.
 *
 * Not its job: the engine, which asks for the limit.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "limit-device.h"
#include "limit-rules.h"

enum { PHASES = 3, CLIENTS = 2, MOST = 2048, MOST_LARGE = 256, BINS = 400 };

/* What the filter's rule has to reach, beside the best fixed number. */
struct marks {
  double rate;                  /* in the second half of each phase */
  double wait;                  /* the time of a demand read / alone */
  double worst_wait;            /* of all runs; 0: no mark */
  unsigned latencies;           /* until 0.9 of that rate, with that wait; 800,
                                 * the length of a phase: no mark */
  double errors;                /* per operation */
};

struct model {
  const char *name;
  struct device phase[PHASES];  /* ends at the first without a latency */
  struct marks marks;
  unsigned wants[PHASES];       /* 0: as many as it gets */
  unsigned clients;             /* 0: one */
  bool large;                   /* operations may have LARGE_BYTES */
  unsigned most_large;          /* of LARGE_BYTES; 0: MOST_LARGE */
  bool later;                   /* the last client has no data for large ones
                                 * until its limit is no longer new */
};

/* What one client is, or both together. */
struct bin {
  unsigned done;                /* in OPERATION_BYTES */
  unsigned errors, probes;
  double wait;                  /* sum of time / time alone */
  double limit;                 /* at its end */
};

struct run {
  const struct model *model;
  unsigned phases;
  unsigned n_bins;              /* of each phase */
  uint64_t bin_ns[PHASES];
  struct bin bins[PHASES][BINS];
};

struct operation {
  uint64_t end_ns, start_ns;
  uint32_t bytes;
  unsigned client;
  int err;
};

struct client {
  struct rule rule;
  bool is_large;                /* a fixed number of large operations */
  unsigned in_flight;
};

static uint64_t random_seed = 7;

struct simulation {
  uint64_t now_ns;
  struct device_state state;
  struct client client[CLIENTS];
  struct operation *heap;       /* the first to end is heap[0] */
  unsigned n;
};

static void
heap_push (struct simulation *s, struct operation op)
{
  unsigned i = s->n++;

  for (; i && s->heap[(i - 1) / 2].end_ns > op.end_ns; i = (i - 1) / 2)
    s->heap[i] = s->heap[(i - 1) / 2];
  s->heap[i] = op;
}

static struct operation
heap_pop (struct simulation *s)
{
  struct operation first = s->heap[0], last = s->heap[--s->n];
  unsigned i = 0, child;

  while ((child = 2 * i + 1) < s->n) {
    if (child + 1 < s->n && s->heap[child + 1].end_ns < s->heap[child].end_ns)
      child++;
    if (last.end_ns <= s->heap[child].end_ns)
      break;
    s->heap[i] = s->heap[child];
    i = child;
  }
  s->heap[i] = last;
  return first;
}

static unsigned
model_clients (const struct model *m)
{
  return MAX (m->clients, 1);
}

static unsigned
model_most_large (const struct model *m)
{
  return m->most_large ? m->most_large : MOST_LARGE;
}

static uint32_t
operation_bytes (struct client *c)
{
  return c->is_large
    || (rule_is_ours (&c->rule) && limit_is_large (&c->rule.limit))
    ? LARGE_BYTES : OPERATION_BYTES;
}

/* Begins what the client wants, as far as its limit allows. */
static void
fill (struct simulation *s, const struct device *d, unsigned client,
      unsigned wants)
{
  struct client *c = &s->client[client];

  if (!wants)
    wants = UINT_MAX;
  while (c->in_flight < MIN (wants, rule_value (&c->rule))) {
    struct operation op = { .start_ns = s->now_ns, .client = client,
                            .bytes = operation_bytes (c) };

    op.end_ns = device_begin (d, &s->state, s->now_ns, client, op.bytes,
                              &op.err);
    heap_push (s, op);
    c->in_flight++;
  }
  if (c->in_flight < wants)
    rule_hit (&c->rule);
}

static void
end_first (struct simulation *s, struct bin *bin)
{
  struct operation op = heap_pop (s);
  struct client *c = &s->client[op.client];

  s->now_ns = op.end_ns;
  device_end (&s->state);
  rule_note (&c->rule, op.bytes, op.start_ns, s->now_ns, op.err);
  if (rule_is_ours (&c->rule) && !limit_is_new (&c->rule.limit))
    limit_has_large (&c->rule.limit, true);
  c->in_flight--;
  if (op.err)
    bin->errors++;
  else
    bin->done += op.bytes / OPERATION_BYTES;
}

static void
probe (struct simulation *s, const struct device *d, uint64_t at_ns,
       struct bin *bin)
{
  double alone_ns = device_alone_ns (d);

  bin->wait += 1 + device_wait_ns (d, &s->state, at_ns) / alone_ns;
  bin->probes++;
}

static void
run_phase (struct simulation *s, struct run *run, unsigned phase)
{
  const struct model *m = run->model;
  const struct device *d = &m->phase[phase];
  uint64_t start_ns = s->now_ns, bin_ns = run->bin_ns[phase];
  uint64_t probe_ns = device_alone_ns (d) * 0.37, probe_at_ns = start_ns;

  if (phase && d->servers != m->phase[phase - 1].servers)
    for (unsigned i = 0; i < SERVERS_MAX; i++)
      s->state.server_free_ns[i] = s->now_ns;
  for (unsigned b = 0; b < run->n_bins; b++) {
    struct bin *bin = &run->bins[phase][b];
    uint64_t end_ns = start_ns + (b + 1) * bin_ns;

    do {
      for (unsigned i = 0; i < model_clients (m); i++)
        fill (s, d, i, m->wants[phase]);
      for (; probe_at_ns < MIN (s->heap[0].end_ns, end_ns);
           probe_at_ns += probe_ns)
        probe (s, d, probe_at_ns, bin);
      if (s->heap[0].end_ns < end_ns)
        end_first (s, bin);
    } while (s->heap[0].end_ns < end_ns);
    s->now_ns = end_ns;
    for (unsigned i = 0; i < model_clients (m); i++)
      bin->limit += rule_value (&s->client[i].rule);
  }
}

static void
client_init (struct client *c, const struct model *m,
             const struct rule_ops *ops, unsigned most, bool is_large,
             bool is_last)
{
  c->is_large = is_large;
  rule_init (&c->rule, ops, most);
  if (m->large && rule_is_ours (&c->rule)) {
    limit_set_large (&c->rule.limit, LARGE_BYTES, model_most_large (m), MOST,
                     !is_last);
    limit_has_large (&c->rule.limit, !m->later || !is_last);
  }
}

/* OPS: NULL for a fixed number, MOST, of operations that are large or not. */
static struct run *
run_model (const struct model *m, const struct rule_ops *ops, unsigned most,
           bool is_large, unsigned n_bins)
{
  struct run *run = g_new0 (struct run, 1);
  struct simulation s = { .state.seed = random_seed };

  run->model = m;
  run->n_bins = n_bins;
  s.heap = g_new (struct operation, CLIENTS * (MOST + 1));
  for (unsigned i = 0; i < CLIENTS; i++)
    client_init (&s.client[i], m, ops, most, is_large,
                 i + 1 == model_clients (m));
  if (model_clients (m) == 2 && rule_is_ours (&s.client[0].rule))
    limit_pair (&s.client[0].rule.limit, &s.client[1].rule.limit);
  for (; run->phases < PHASES && m->phase[run->phases].latency_ms;
       run->phases++) {
    uint64_t alone_ns = device_alone_ns (&m->phase[run->phases]);

    run->bin_ns[run->phases] = MAX (2 * alone_ns, 2 * MS_NS);
    run_phase (&s, run, run->phases);
  }
  g_free (s.heap);
  return run;
}

/* Figures of a run. */

/* Operations per second in bins FROM to BINS. */
static double
phase_rate (const struct run *run, unsigned phase, unsigned from)
{
  double done = 0;

  for (unsigned b = from; b < BINS; b++)
    done += run->bins[phase][b].done;
  return done * S_NS / (run->bin_ns[phase] * (BINS - from));
}

static double
phase_wait (const struct run *run, unsigned phase)
{
  double wait = 0, probes = 0;

  for (unsigned b = BINS / 2; b < BINS; b++) {
    wait += run->bins[phase][b].wait;
    probes += run->bins[phase][b].probes;
  }
  return wait / MAX (probes, 1);
}

static double
phase_errors (const struct run *run, unsigned phase)
{
  double errors = 0, done = 0;

  for (unsigned b = 0; b < BINS; b++) {
    errors += run->bins[phase][b].errors;
    done += run->bins[phase][b].done;
  }
  return errors / MAX (errors + done, 1);
}

/* Time alone until two bins have that rate at least and that wait at most. */
static unsigned
phase_reach (const struct run *run, unsigned phase, double rate, double wait)
{
  uint64_t alone_ns = device_alone_ns (&run->model->phase[phase]);

  for (unsigned b = 0; b + 1 < BINS; b++) {
    const struct bin *bin = &run->bins[phase][b];

    if ((double) (bin[0].done + bin[1].done) * S_NS
        >= 2 * rate * run->bin_ns[phase]
        && bin[0].wait + bin[1].wait <= wait * (bin[0].probes + bin[1].probes))
      return (b + 1) * run->bin_ns[phase] / alone_ns;
  }
  return 2 * BINS;
}

struct best {
  double rate[PHASES];
  unsigned number[PHASES];
};

/* The best fixed number of each phase, of operations of one size. */
static struct best
find_best_of (const struct model *m, bool is_large)
{
  struct best best = { 0 };
  unsigned most = is_large ? model_most_large (m) : MOST, worse = 0;

  for (unsigned n = 1, step = 1; n <= most && worse < 8; n += step) {
    g_autofree struct run *run = run_model (m, NULL, n, is_large, BINS);

    step = n >= 64 ? n : n == 8 * step ? 2 * step : step;
    worse++;
    for (unsigned p = 0; p < run->phases; p++) {
      double rate = phase_rate (run, p, BINS / 2);

      if (rate > best.rate[p] * 1.005) {
        best.rate[p] = rate;
        best.number[p] = n;
        worse = 0;
      }
    }
  }
  return best;
}

static struct best
find_best (const struct model *m)
{
  struct best best = find_best_of (m, false);
  struct best large = m->large ? find_best_of (m, true) : best;

  for (unsigned p = 0; p < PHASES; p++)
    if (large.rate[p] > best.rate[p]) {
      best.rate[p] = large.rate[p];
      best.number[p] = large.number[p];
    }
  return best;
}

/* Marks of models with a queue, without one, and with a long tail.  An epoch
 * lasts 5 ms at least, so the first models take more latencies.
 */
#define QUEUE .marks = { .rate = 0.95, .wait = 1.5, .latencies = 80 }
#define NO_QUEUE(n) .marks = { .rate = 0.95, .wait = 1.01, .latencies = n }
#define TAIL .marks = { .rate = 0.9, .wait = 1.6, .latencies = 120 }
/* Reads and writes, of which each limit sees only its own part of the queue. */
#define SHARED \
  .marks = { .rate = 0.95, .wait = 1.6, .worst_wait = 2.5, .latencies = 80 }
#define LARGE(w) .marks = { .rate = 0.93, .wait = w, .latencies = 80 }
#define LATER_LARGE(n) .marks = { .rate = 0.95, .wait = 1.5, .latencies = n }
/* Less than LIMIT_LEAST: three operations wait, and the demand read. */
#define FEWER(w) .marks = { .rate = 0.95, .wait = w, .latencies = 300 }

static const struct model models[] = {
  { "0.2 ms", { { .latency_ms = 0.2 } }, NO_QUEUE (250) },
  { "1 ms", { { .latency_ms = 1 } }, NO_QUEUE (50) },
  { "20 ms", { { .latency_ms = 20 } }, NO_QUEUE (25) },
  { "64 ms", { { .latency_ms = 64 } }, NO_QUEUE (25) },
  { "300 ms", { { .latency_ms = 300 } }, NO_QUEUE (25) },
  { "100 MB/s", { { .latency_ms = 20, .mb_per_s = 100 } }, QUEUE },
  { "1000 per s", { { .latency_ms = 20, .per_s = 1000, .burst = 500 } },
    QUEUE },
  { "1 server", { { .latency_ms = 20, .servers = 1 } }, FEWER (6) },
  { "2 servers", { { .latency_ms = 20, .servers = 2 } }, FEWER (3) },
  { "4 servers", { { .latency_ms = 20, .servers = 4 } }, QUEUE },
  { "16 servers", { { .latency_ms = 20, .servers = 16 } }, QUEUE },
  { "64 servers", { { .latency_ms = 20, .servers = 64 } }, QUEUE },
  { "tail", { { .latency_ms = 20, .cv = 1 } }, TAIL },
  { "tail, 4 servers",
    { { .latency_ms = 20, .cv = 1, .servers = 4 } }, TAIL },
  { "tail, 16 servers",
    { { .latency_ms = 20, .cv = 1, .servers = 16 } }, TAIL },
  { "late, 0.2 ms", { { .latency_ms = 0.2, .late = 0.01 } }, NO_QUEUE (350) },
  { "late, 20 ms", { { .latency_ms = 20, .late = 0.05 } }, NO_QUEUE (25) },
  { "late, 16 servers",
    { { .latency_ms = 20, .late = 0.05, .servers = 16 } }, QUEUE },
  { "32, then errors", { { .latency_ms = 20, .refuses_above = 32 } },
    .marks = { .rate = 0.95, .wait = 1.01, .latencies = 40,
               .errors = 0.005 } },
  { "20, 100, 20 ms",
    { { .latency_ms = 20, .servers = 64 },
      { .latency_ms = 100, .servers = 64 },
      { .latency_ms = 20, .servers = 64 } }, QUEUE },
  { "64, 8, 64 servers",
    { { .latency_ms = 20, .servers = 64 },
      { .latency_ms = 20, .servers = 8 },
      { .latency_ms = 20, .servers = 64 } }, QUEUE },
  { "200, 50, 200 MB/s",
    { { .latency_ms = 20, .mb_per_s = 200 },
      { .latency_ms = 20, .mb_per_s = 50 },
      { .latency_ms = 20, .mb_per_s = 200 } }, QUEUE },
  { "10 wanted, then all",
    { { .latency_ms = 20, .servers = 64 },
      { .latency_ms = 20, .servers = 64 } }, QUEUE, .wants = { 10 } },
  { "two, 16 servers", { { .latency_ms = 20, .servers = 16 } }, SHARED,
    .clients = 2 },
  { "two, 64 servers", { { .latency_ms = 20, .servers = 64 } }, SHARED,
    .clients = 2 },
  { "two, 100 MB/s", { { .latency_ms = 20, .mb_per_s = 100 } }, SHARED,
    .clients = 2 },
  /* One direction has a queue.  Operations of the other one wait in it, too. */
  { "two, 100 MB/s duplex",
    { { .latency_ms = 20, .mb_per_s = 100, .duplex = true } },
    .marks = { .rate = 0.6, .wait = 1.6, .worst_wait = 2.5, .latencies = 800 },
    .clients = 2 },
  /* With large operations.  A test of their size is a queue for a while. */
  { "large, 0.2 ms", { { .latency_ms = 0.2 } }, NO_QUEUE (250),
    .large = true },
  { "large, 20 ms", { { .latency_ms = 20 } }, NO_QUEUE (25), .large = true },
  { "large, 300 ms", { { .latency_ms = 300 } }, NO_QUEUE (25), .large = true },
  { "large, 10 MB/s", { { .latency_ms = 20, .mb_per_s = 10 } },
    .marks = { .rate = 0.95, .wait = 4, .latencies = 400 },
    .large = true },
  { "large, 100 MB/s", { { .latency_ms = 20, .mb_per_s = 100 } }, LARGE (1.7),
    .large = true },
  { "large, 1000 MB/s", { { .latency_ms = 20, .mb_per_s = 1000 } }, QUEUE,
    .large = true },
  { "large, 1 server", { { .latency_ms = 20, .servers = 1 } },
    .marks = { .rate = 0.87, .wait = 8, .latencies = 80 }, .large = true },
  { "large, 4 servers", { { .latency_ms = 20, .servers = 4 } }, LARGE (2),
    .large = true },
  { "large, 16 servers", { { .latency_ms = 20, .servers = 16 } }, QUEUE,
    .large = true },
  { "large, 64 servers", { { .latency_ms = 20, .servers = 64 } }, QUEUE,
    .large = true },
  { "large, 1000 per s",
    { { .latency_ms = 20, .per_s = 1000, .burst = 500 } }, QUEUE,
    .large = true },
  { "large, tail, 16 servers",
    { { .latency_ms = 20, .cv = 1, .servers = 16 } },
    .marks = { .rate = 0.9, .wait = 1.6, .latencies = 400 }, .large = true },
  /* At their bound, large ones have no queue. */
  { "16 large, 16 servers", { { .latency_ms = 20, .servers = 16 } }, QUEUE,
    .large = true, .most_large = 16 },
  { "16 large, 64 servers", { { .latency_ms = 20, .servers = 64 } },
    .marks = { .rate = 0.95, .wait = 1.5, .latencies = 120 },
    .large = true, .most_large = 16 },
  { "later large, 20 ms", { { .latency_ms = 20 } }, NO_QUEUE (25),
    .large = true, .later = true },
  { "later large, 10 MB/s", { { .latency_ms = 20, .mb_per_s = 10 } },
    .marks = { .rate = 0.95, .wait = 4, .latencies = 400 },
    .large = true, .later = true },
  { "later large, 100 MB/s", { { .latency_ms = 20, .mb_per_s = 100 } },
    LARGE (1.7), .large = true, .later = true },
  { "later large, 4 servers", { { .latency_ms = 20, .servers = 4 } },
    .marks = { .rate = 0.93, .wait = 2, .latencies = 70 },
    .large = true, .later = true },
  { "later large, 16 servers", { { .latency_ms = 20, .servers = 16 } },
    LATER_LARGE (42), .large = true, .later = true },
  { "later large, 64 servers", { { .latency_ms = 20, .servers = 64 } },
    LATER_LARGE (42), .large = true, .later = true },
  { "later large, tail, 16 servers",
    { { .latency_ms = 20, .cv = 1, .servers = 16 } },
    .marks = { .rate = 0.85, .wait = 1.6, .latencies = 420 },
    .large = true, .later = true },
  { "large, 16 servers, 100 MB/s, 16 servers",
    { { .latency_ms = 20, .servers = 16 },
      { .latency_ms = 20, .mb_per_s = 100 },
      { .latency_ms = 20, .servers = 16 } },
    .marks = { .rate = 0.93, .wait = 1.7, .latencies = 600 }, .large = true },
  /* As reads and writes do. */
  { "two, large, 20 ms", { { .latency_ms = 20 } }, NO_QUEUE (25),
    .clients = 2, .large = true },
  { "two, large, 4 servers", { { .latency_ms = 20, .servers = 4 } },
    .marks = { .rate = 0.95, .wait = 5, .latencies = 800 },
    .clients = 2, .large = true },
  { "two, large, 16 servers", { { .latency_ms = 20, .servers = 16 } },
    QUEUE, .clients = 2, .large = true },
  { "two, large, 64 servers", { { .latency_ms = 20, .servers = 64 } },
    QUEUE, .clients = 2, .large = true },
  { "two, large, 100 MB/s", { { .latency_ms = 20, .mb_per_s = 100 } },
    .marks = { .rate = 0.95, .wait = 2.5, .worst_wait = 3, .latencies = 150 },
    .clients = 2, .large = true },
  { "two, large, 100 MB/s duplex",
    { { .latency_ms = 20, .mb_per_s = 100, .duplex = true } },
    .marks = { .rate = 0.55, .wait = 6, .worst_wait = 7, .latencies = 800 },
    .clients = 2, .large = true },
  { "two, later large, 16 servers", { { .latency_ms = 20, .servers = 16 } },
    LATER_LARGE (62), .clients = 2, .large = true, .later = true },
  { "two, later large, 100 MB/s", { { .latency_ms = 20, .mb_per_s = 100 } },
    .marks = { .rate = 0.95, .wait = 2.5, .worst_wait = 3, .latencies = 120 },
    .clients = 2, .large = true, .later = true },
  { "two, later large, 100 MB/s duplex",
    { { .latency_ms = 20, .mb_per_s = 100, .duplex = true } },
    .marks = { .rate = 0.6, .wait = 2.5, .worst_wait = 5, .latencies = 800 },
    .clients = 2, .large = true, .later = true },
  { "two, 0.2 ms", { { .latency_ms = 0.2 } }, NO_QUEUE (250), .clients = 2 },
  { "two, 20 ms", { { .latency_ms = 20 } }, NO_QUEUE (25), .clients = 2 },
};

/* Figures of one phase in several runs; the median counts. */
enum { RUNS = 3 };

static int
compare_doubles (const void *a, const void *b)
{
  double x = *(const double *) a, y = *(const double *) b;

  return (x > y) - (x < y);
}

static double
median (double v[RUNS])
{
  qsort (v, RUNS, sizeof v[0], compare_doubles);
  return v[RUNS / 2];
}

static void
check_phase (struct run **runs, unsigned phase, double best)
{
  const struct marks *marks = &runs[0]->model->marks;
  double rate[RUNS], wait[RUNS], errors[RUNS], reach[RUNS];

  for (unsigned i = 0; i < RUNS; i++) {
    rate[i] = phase_rate (runs[i], phase, BINS / 2) / best;
    wait[i] = phase_wait (runs[i], phase);
    errors[i] = phase_errors (runs[i], phase);
    reach[i] = phase_reach (runs[i], phase, 0.9 * best, 1.1 * marks->wait);
  }
  g_test_message ("phase %u: rate %.3f wait %.2f errors %.4f reach %.0f", phase,
                  median (rate), median (wait), median (errors),
                  median (reach));
  g_assert_cmpfloat (median (rate), >=, marks->rate);
  g_assert_cmpfloat (median (wait), <=, marks->wait);
  if (marks->worst_wait)
    g_assert_cmpfloat (wait[RUNS - 1], <=, marks->worst_wait);
  g_assert_cmpfloat (median (errors), <=, marks->errors);
  g_assert_cmpfloat (median (reach), <=, marks->latencies);
}

/* The filter's rule reaches the model's marks. */
static void
check_model (gconstpointer data)
{
  const struct model *m = data;
  struct best best = find_best (m);
  struct run *runs[RUNS];
  uint64_t seed = random_seed;

  for (unsigned i = 0; i < RUNS; i++) {
    random_seed = seed + i * 1000;
    runs[i] = run_model (m, &rule_ops[RULE_OURS], MOST, false, BINS);
  }
  random_seed = seed;
  for (unsigned p = 0; p < runs[0]->phases; p++)
    check_phase (runs, p, best.rate[p]);
  for (unsigned i = 0; i < RUNS; i++)
    g_free (runs[i]);
}

/* All rules. */

static struct run *
run_rule (const struct model *m, unsigned rule, unsigned n_bins)
{
  const struct rule_ops *ops = &rule_ops[rule];
  bool is_fixed = rule != RULE_OURS && !ops->round;

  return run_model (m, is_fixed ? NULL : ops,
                    is_fixed ? (unsigned) ops->start : MOST, false, n_bins);
}

/* Of the phase with the worst one. */
struct figures {
  double rate, whole, wait, errors;
  unsigned reach;
};

static struct figures
get_figures (const struct model *m, const struct best *best, unsigned rule)
{
  g_autofree struct run *run = run_rule (m, rule, BINS);
  struct figures f = { .rate = INFINITY, .whole = INFINITY };

  for (unsigned p = 0; p < run->phases; p++) {
    unsigned reach = phase_reach (run, p, 0.9 * best->rate[p], INFINITY);

    f.rate = MIN (f.rate, phase_rate (run, p, BINS / 2) / best->rate[p]);
    f.whole = MIN (f.whole, phase_rate (run, p, 0) / best->rate[p]);
    f.wait = MAX (f.wait, phase_wait (run, p));
    f.errors = MAX (f.errors, phase_errors (run, p));
    f.reach = MAX (f.reach, reach);
  }
  return f;
}

static void
print_head (const char *text)
{
  printf ("%s\n\n%-20s", text, "");
  for (unsigned r = 0; r < RULES; r++)
    printf ("%8.7s", rule_ops[r].name);
  printf ("\n");
}

static void
print_steady (const struct figures *f)
{
  printf ("%4.0f %3.*f", 100 * f->rate, f->wait < 9.95, MIN (f->wait, 999));
}

static void
print_whole (const struct figures *f)
{
  if (f->reach < 2 * BINS)
    printf ("%4.0f %3u", 100 * f->whole, f->reach);
  else
    printf ("%4.0f   -", 100 * f->whole);
}

static void
print_errors (const struct figures *f)
{
  printf ("%8.2f", 100 * f->errors);
}

/* The other rules know only one size of operations. */
static bool
is_in_table (const struct model *m, const char *name)
{
  return !m->large && (!name || strstr (m->name, name));
}

static void
print_table (const char *name)
{
  static struct figures f[G_N_ELEMENTS (models)][RULES];
  static const struct {
    const char *head;
    void (*print) (const struct figures *);
  } parts[] = {
    { "Rate in % of the best fixed number in flight, and a demand read's time "
      "/ its\ntime alone, in the second half of each phase; the worst phase.",
      print_steady },
    { "Rate in % over whole phases, and latencies until 90 % of the best rate "
      "(-:\nmore than 800); the worst phase.", print_whole },
    { "Errors in % of the operations.", print_errors },
  };

  for (unsigned i = 0; i < G_N_ELEMENTS (models); i++)
    if (is_in_table (&models[i], name)) {
      struct best best = find_best (&models[i]);

      for (unsigned r = 0; r < RULES; r++)
        f[i][r] = get_figures (&models[i], &best, r);
    }
  for (unsigned part = 0; part < G_N_ELEMENTS (parts); part++) {
    print_head (parts[part].head);
    for (unsigned i = 0; i < G_N_ELEMENTS (models); i++) {
      if (!is_in_table (&models[i], name)
          || (part == 2 && f[i][0].errors == 0))
        continue;
      printf ("%-20s", models[i].name);
      for (unsigned r = 0; r < RULES; r++)
        parts[part].print (&f[i][r]);
      printf ("\n");
    }
    printf ("\n");
  }
}

/* The limits over time: a line has the time in latencies of the first phase,
 * and the limit of each rule.
 */
static void
write_data (const char *dir, const char *file, const char *model)
{
  enum { DATA_BINS = 75 };
  g_autofree char *path = g_strconcat (dir, "/", file, NULL);
  FILE *out = fopen (path, "w");
  struct run *runs[RULES];
  unsigned i = 0;
  double at_ns = 0;

  g_assert_nonnull (out);
  while (strcmp (models[i].name, model) != 0)
    i++;
  for (unsigned r = 0; r < RULES; r++)
    runs[r] = run_rule (&models[i], r, DATA_BINS);
  for (unsigned p = 0; p < runs[0]->phases; p++)
    for (unsigned b = 0; b < DATA_BINS; b++) {
      at_ns += runs[0]->bin_ns[p];
      fprintf (out, "%.0f", at_ns / device_alone_ns (&models[i].phase[0]));
      for (unsigned r = 0; r < RULES; r++)
        fprintf (out, "\t%.0f", runs[r]->bins[p][b].limit);
      fprintf (out, "\n");
    }
  for (unsigned r = 0; r < RULES; r++)
    g_free (runs[r]);
  fclose (out);
}

static void
write_all_data (const char *dir)
{
  write_data (dir, "latency.tsv", "64 ms");
  write_data (dir, "bandwidth.tsv", "100 MB/s");
  write_data (dir, "tail.tsv", "tail, 16 servers");
  write_data (dir, "changes.tsv", "64, 8, 64 servers");
}

/* Small operations are not held back for ever by what usual ones, or errors,
 * have made of the limit.  Each takes 20 ms, however many are in flight.
 */
static void
check_small (gconstpointer unused G_GNUC_UNUSED)
{
  enum { SMALL = 4096, TIME_NS = 20000000 };
  uint64_t now_ns = TIME_NS;
  struct limit l;

  limit_init (&l, true, MOST, OPERATION_BYTES, true);
  for (unsigned i = 0; i < 5000; i++, now_ns += 100000 * limit_value (&l)) {
    limit_hit (&l);             /* the device does one after the other */
    limit_note (&l, OPERATION_BYTES, now_ns - 100000 * limit_value (&l),
                now_ns, 0);
  }
  g_assert_cmpuint (limit_value (&l), <, 10);
  for (unsigned i = 0; i < 5000; i++) {
    limit_hit (&l);
    now_ns += TIME_NS / limit_value (&l);
    limit_note (&l, SMALL, now_ns - TIME_NS, now_ns, 0);
  }
  g_assert_cmpuint (limit_value (&l), >, LIMIT_START);
  limit_note (&l, OPERATION_BYTES, now_ns - TIME_NS, now_ns, 0);
  g_assert_cmpuint (limit_value (&l), ==, LIMIT_START);
  limit_destroy (&l);
}

/* A device that fails for a while is no device with too much load. */
static void
check_outage (gconstpointer unused G_GNUC_UNUSED)
{
  uint64_t now_ns = 1;
  struct limit l;

  limit_init (&l, true, MOST, OPERATION_BYTES, true);
  limit_note (&l, OPERATION_BYTES, now_ns, now_ns + 1, 0);
  for (unsigned i = 0; i < 100; i++, now_ns += 2)
    limit_note (&l, OPERATION_BYTES, now_ns, now_ns + 1, EIO);
  g_assert_cmpuint (limit_value (&l), ==, LIMIT_START / 2);
  limit_destroy (&l);
}

/* Notes operations that take TIME_NS, as many at once as the limit allows,
 * until the limit is tested, or for 100 latencies.
 */
static void
note_until_test (struct limit *l, uint64_t time_ns, uint64_t *now_ns)
{
  unsigned n = 100 * limit_value (l);

  while (n-- > 0 && atomic_load (&l->reason) != LIMIT_TESTS) {
    limit_hit (l);
    *now_ns += time_ns / limit_value (l);
    limit_note (l, OPERATION_BYTES, *now_ns - time_ns, *now_ns, 0);
  }
}

/* Lets the limit grow, then makes it test.  Returns the limit before that. */
static unsigned
start_test (struct limit *l, uint64_t time_ns, uint64_t *now_ns)
{
  unsigned before;

  while (limit_value (l) < 4 * LIMIT_START)
    note_until_test (l, 10 * MS_NS, now_ns);
  before = limit_value (l);
  note_until_test (l, time_ns, now_ns);
  g_assert_cmpuint (limit_value (l), <, before);
  return before;
}

/* While one limit is tested, the other one of the device is lower, too.  A test
 * that gets no operations is given up.
 */
static void
check_given_up (gconstpointer unused G_GNUC_UNUSED)
{
  uint64_t now_ns = 10 * MS_NS;
  struct limit l, other;
  unsigned before;

  limit_init (&l, true, MOST, OPERATION_BYTES, true);
  limit_init (&other, true, MOST, OPERATION_BYTES, true);
  limit_pair (&l, &other);
  before = start_test (&l, 20 * MS_NS, &now_ns);
  g_assert_cmpuint (limit_value (&other), <, LIMIT_START);
  for (unsigned i = 0; i < 10; i++, now_ns += 20 * MS_NS)
    limit_note (&other, OPERATION_BYTES, now_ns - 20 * MS_NS, now_ns, 0);
  g_assert_cmpuint (limit_value (&other), <, LIMIT_START);
  now_ns += 2000 * MS_NS;
  limit_note (&other, OPERATION_BYTES, now_ns - 20 * MS_NS, now_ns, 0);
  g_assert_cmpuint (limit_value (&other), ==, LIMIT_START);
  g_assert_cmpuint (limit_value (&l), >=, before);
  limit_destroy (&l);
  limit_destroy (&other);
}

/* Neither does it last for ever if the limit sees only operations of a size
 * that it does not look at.
 */
static void
check_given_up_alone (gconstpointer unused G_GNUC_UNUSED)
{
  uint64_t now_ns = 10 * MS_NS;
  struct limit l;
  unsigned before;

  limit_init (&l, true, MOST, OPERATION_BYTES, false);
  before = start_test (&l, 20 * MS_NS, &now_ns);
  now_ns += 2000 * MS_NS;
  limit_note (&l, 4096, now_ns - 20 * MS_NS, now_ns, 0);
  g_assert_cmpuint (limit_value (&l), >=, before);
  limit_destroy (&l);
}

/* An error in a test does not hold the limit near what the test had. */
static void
check_error_in_test (gconstpointer unused G_GNUC_UNUSED)
{
  uint64_t now_ns = 10 * MS_NS;
  struct limit l;
  unsigned before;

  limit_init (&l, true, MOST, OPERATION_BYTES, false);
  before = start_test (&l, 80 * MS_NS, &now_ns);
  g_assert_cmpuint (limit_value (&l), <, before / 2);
  now_ns += 500 * MS_NS;
  limit_note (&l, OPERATION_BYTES, now_ns - 20 * MS_NS, now_ns, EIO);
  g_assert_cmpuint (limit_value (&l), >=, before / 2);
  limit_destroy (&l);
}

/* Notes operations of the size that the limit counts, as note_until_test,
 * until limit_is_large is WANTED.  Each takes TIME_NS, or longer if a device of
 * 100 MB/s has a queue.
 */
static void
note_until_size (struct limit *l, bool wanted, uint64_t time_ns,
                 uint64_t *now_ns)
{
  for (unsigned n = 0; n < 10000 && limit_is_large (l) != wanted; n++) {
    uint32_t bytes = limit_is_large (l) ? LARGE_BYTES : OPERATION_BYTES;
    uint64_t busy_ns = bytes * 10;      /* 100 MB/s */

    limit_hit (l);
    *now_ns += busy_ns;
    limit_note (l, bytes, *now_ns - MAX (busy_ns * limit_value (l), time_ns),
                *now_ns, 0);
  }
  g_assert_true (limit_is_large (l) == wanted);
}

/* An error or a lack of operations in a size test ends it.  The size is as
 * before.  So is the limit, but an error halves it.
 */
static void
check_size_undone (gconstpointer data)
{
  int err = GPOINTER_TO_INT (data);
  uint64_t now_ns = 10 * MS_NS;
  struct limit l, other;
  unsigned before;

  limit_init (&l, true, MOST, OPERATION_BYTES, false);
  limit_init (&other, true, MOST, OPERATION_BYTES, true);
  limit_pair (&l, &other);
  limit_set_large (&l, LARGE_BYTES, MOST_LARGE, MOST, true);
  limit_set_large (&other, LARGE_BYTES, MOST_LARGE, MOST, false);
  limit_has_large (&l, true);
  g_assert_true (limit_is_large (&l));
  note_until_size (&l, false, 20 * MS_NS, &now_ns);
  g_assert_cmpint (atomic_load (&l.reason), ==, LIMIT_TESTS);
  before = l.before;
  now_ns += err ? 1 : 10000 * MS_NS;
  limit_note (&l, 4096, now_ns - 1, now_ns, err);
  g_assert_true (limit_is_large (&l));
  g_assert_cmpuint (limit_value (&l), ==, err ? LIMIT_LEAST : before);
  g_assert_cmpuint (other.size_interval, ==, 0);
  /* Later it is tested again, and usual ones are as good. */
  note_until_size (&l, false, 20 * MS_NS, &now_ns);
  while (atomic_load (&l.reason) == LIMIT_TESTS) {
    limit_hit (&l);
    now_ns += OPERATION_BYTES * 10;
    limit_note (&l, OPERATION_BYTES,
                now_ns - OPERATION_BYTES * 10 * limit_value (&l), now_ns, 0);
  }
  g_assert_false (limit_is_large (&l));
  /* Bytes bound the device, so the other limit need not test it soon. */
  g_assert_cmpuint (other.size_interval, ==, 64);
  limit_destroy (&l);
  limit_destroy (&other);
}

/* Of writes that wait in a queue: epochs until they test the size. */
static unsigned
epochs_until_size_test (bool has_reads)
{
  uint64_t now_ns = 10000 * MS_NS;
  struct limit reads, writes;

  limit_init (&reads, true, MOST, OPERATION_BYTES, false);
  limit_init (&writes, true, MOST, OPERATION_BYTES, true);
  limit_pair (&reads, &writes);
  limit_set_large (&reads, LARGE_BYTES, MOST_LARGE, MOST, true);
  limit_set_large (&writes, LARGE_BYTES, MOST_LARGE, MOST, false);
  limit_has_large (&reads, true);
  if (has_reads)
    limit_note (&reads, LARGE_BYTES, now_ns - 20 * MS_NS, now_ns, 0);
  for (unsigned n = 0; n < 100000 && !writes.size_test; n++) {
    if (!limit_is_new (&writes))
      limit_has_large (&writes, true);
    limit_hit (&writes);
    now_ns += OPERATION_BYTES * 10;
    limit_note (&writes, OPERATION_BYTES,
                now_ns - MAX (OPERATION_BYTES * 10 * limit_value (&writes),
                              20 * MS_NS), now_ns, 0);
  }
  g_assert_cmpint (writes.size_test, ==, SIZE_BEFORE);
  limit_destroy (&reads);
  limit_destroy (&writes);
  return writes.size_age;
}

/* Each of 16 contexts has one operation at a time, which takes 20 ms.  The time
 * of an operation does not show that others wait for a context.
 */
static void
check_size_contexts (gconstpointer unused G_GNUC_UNUSED)
{
  enum { CONTEXTS = 16 };
  uint64_t now_ns = 20 * MS_NS;
  struct limit l;

  limit_init (&l, true, 4 * CONTEXTS, OPERATION_BYTES, true);
  limit_set_large (&l, LARGE_BYTES, 4 * CONTEXTS, CONTEXTS, false);
  for (unsigned n = 0; n < 3000 && !limit_is_large (&l); n++) {
    if (!limit_is_new (&l))
      limit_has_large (&l, true);
    limit_hit (&l);
    now_ns += 20 * MS_NS / CONTEXTS;
    limit_note (&l, OPERATION_BYTES, now_ns - 20 * MS_NS, now_ns, 0);
  }
  g_assert_true (limit_is_large (&l));
  g_assert_cmpuint (limit_value (&l), ==, CONTEXTS);
  limit_destroy (&l);
}

/* Reads come first with their base, but not for ever: there may be no more. */
static void
check_size_waits (gconstpointer unused G_GNUC_UNUSED)
{
  g_assert_cmpuint (epochs_until_size_test (false), <, 8);
  g_assert_cmpuint (epochs_until_size_test (true), >=, 8);
}

/* A limit of writes after 1000 operations.  HIT: it was in the way of them. */
static void
init_used (struct limit *l, unsigned most, bool hit, int err)
{
  uint64_t now_ns = 100 * MS_NS;

  limit_init (l, true, most, OPERATION_BYTES, true);
  limit_set_large (l, LARGE_BYTES, MOST_LARGE, MOST, false);
  for (unsigned i = 0; i < 1000; i++) {
    if (hit)
      limit_hit (l);
    now_ns += MS_NS;
    limit_note (l, OPERATION_BYTES, now_ns - 20 * MS_NS, now_ns, err);
  }
}

/* A new limit changes to large operations, with as many bytes, as soon as there
 * is data for them.
 */
static void
check_begins_large (gconstpointer data)
{
  unsigned most = GPOINTER_TO_UINT (data);
  struct limit l;

  init_used (&l, most, false, 0);
  limit_has_large (&l, false);
  g_assert_true (limit_is_new (&l));
  g_assert_cmpuint (limit_in_usual (&l), ==, MIN (most, LIMIT_START));
  limit_has_large (&l, true);
  g_assert_false (limit_is_new (&l));
  g_assert_true (limit_is_large (&l));
  g_assert_cmpuint (limit_in_usual (&l), ==, MIN (most, LIMIT_START));
  limit_destroy (&l);
}

/* A limit that was in the way for an epoch, or had an error, is no longer new.
 * Then data for large operations does not change it at once.
 */
static void
check_begins_usual (gconstpointer data)
{
  int err = GPOINTER_TO_INT (data);
  struct limit l;

  init_used (&l, MOST, err == 0, err);
  g_assert_false (limit_is_new (&l));
  limit_has_large (&l, true);
  g_assert_false (limit_is_large (&l));
  limit_destroy (&l);
}

/* A new limit does not change to large operations in a test of the other limit,
 * nor while it counts small ones.  After that, it does.
 */
static void
check_begins_later (gconstpointer unused G_GNUC_UNUSED)
{
  enum { SMALL = 4096 };
  uint64_t now_ns = 10 * MS_NS;
  struct limit l, other;

  limit_init (&l, true, MOST, OPERATION_BYTES, true);
  limit_init (&other, true, MOST, OPERATION_BYTES, false);
  limit_pair (&l, &other);
  limit_set_large (&l, LARGE_BYTES, MOST_LARGE, MOST, false);
  start_test (&other, 20 * MS_NS, &now_ns);
  limit_has_large (&l, true);
  g_assert_false (limit_is_large (&l));
  now_ns += 2000 * MS_NS;       /* the end of the test */
  for (unsigned i = 0; i < 1000; i++) {
    limit_hit (&l);
    now_ns += MS_NS;
    limit_note (&l, SMALL, now_ns - MS_NS, now_ns, 0);
  }
  g_assert_true (l.is_small);
  limit_has_large (&l, true);
  g_assert_false (limit_is_large (&l));
  limit_note (&l, OPERATION_BYTES, now_ns - MS_NS, now_ns, 0);
  limit_has_large (&l, true);
  g_assert_true (limit_is_large (&l));
  limit_destroy (&l);
  limit_destroy (&other);
}

/* At its bound of large operations, and without a queue, a limit changes to
 * usual ones, as more bytes may be in flight with them.  If usual ones are in
 * flight beside the large ones, it does not change, but says so.
 */
static void
check_most_large (gconstpointer data)
{
  bool beside = GPOINTER_TO_INT (data);
  enum { FEW = 64, UNITS = LARGE_BYTES / OPERATION_BYTES };
  uint64_t now_ns = 20 * MS_NS;
  bool bears_more = false;
  unsigned most = 0;
  struct limit l;

  limit_init (&l, true, MOST, OPERATION_BYTES, true);
  limit_set_large (&l, LARGE_BYTES, FEW, MOST, beside);
  limit_has_large (&l, true);
  for (unsigned i = 0; i < 10000 && limit_is_large (&l); i++) {
    if (most < FEW)             /* there was no operation at the bound */
      g_assert_false (limit_bears_more (&l));
    bears_more |= limit_bears_more (&l);
    most = MAX (most, limit_value (&l));
    limit_hit (&l);
    now_ns += 20 * MS_NS / limit_value (&l);
    limit_note (&l, LARGE_BYTES, now_ns - 20 * MS_NS, now_ns, 0);
  }
  g_assert_cmpuint (most, ==, FEW);
  g_assert_cmpint (limit_is_large (&l), ==, beside);
  g_assert_cmpint (bears_more, ==, beside);
  if (!beside)
    g_assert_cmpuint (limit_value (&l), ==, 2 * FEW * UNITS);
  limit_destroy (&l);
}

/* A client that never has large operations gets the limit that it would have
 * without them.
 */
static void
check_never_large (gconstpointer unused G_GNUC_UNUSED)
{
  uint64_t now_ns = 20 * MS_NS;
  struct limit l;

  limit_init (&l, true, MOST, OPERATION_BYTES, false);
  limit_set_large (&l, LARGE_BYTES, MOST_LARGE, MOST, true);
  limit_has_large (&l, true);
  g_assert_cmpuint (limit_in_usual (&l), ==, LIMIT_START);
  for (unsigned i = 0; i < 100000; i++) {
    limit_hit (&l);
    now_ns += 20 * MS_NS / limit_in_usual (&l);
    limit_note (&l, OPERATION_BYTES, now_ns - 20 * MS_NS, now_ns, 0);
  }
  g_assert_cmpuint (limit_in_usual (&l), ==, MOST);
  limit_destroy (&l);
}

/* So does a client that stops having them while the limit is at its bound. */
static void
check_no_longer_large (gconstpointer unused G_GNUC_UNUSED)
{
  enum { FEW = 8, UNITS = LARGE_BYTES / OPERATION_BYTES };
  uint64_t now_ns = 20 * MS_NS;
  struct limit l;

  limit_init (&l, true, FEW * UNITS, OPERATION_BYTES, true);
  limit_set_large (&l, LARGE_BYTES, FEW, MOST, false);
  limit_has_large (&l, true);
  g_assert_cmpuint (limit_value (&l), ==, FEW);
  for (unsigned i = 0; i < 8 * FEW + 128; i++) {
    now_ns += MS_NS;
    limit_note (&l, OPERATION_BYTES, now_ns - 20 * MS_NS, now_ns, 0);
  }
  g_assert_false (limit_is_large (&l));
  g_assert_false (l.is_small);
  limit_destroy (&l);
}

/* With a fixed number, and without large buffers, operations are not large. */
static void
check_not_large (gconstpointer unused G_GNUC_UNUSED)
{
  struct limit l;

  limit_init (&l, false, MOST, OPERATION_BYTES, false);
  limit_set_large (&l, LARGE_BYTES, MOST_LARGE, MOST, true);
  limit_has_large (&l, true);
  g_assert_false (limit_is_large (&l));
  g_assert_cmpuint (limit_value (&l), ==, MOST);
  limit_destroy (&l);
  limit_init (&l, true, MOST, OPERATION_BYTES, false);
  limit_set_large (&l, LARGE_BYTES, 0, MOST, true);
  limit_has_large (&l, true);
  g_assert_false (limit_is_large (&l));
  limit_destroy (&l);
}

static void
add_tests (void)
{
  g_test_add_data_func ("/limit/size-error", GINT_TO_POINTER (EIO),
                        check_size_undone);
  g_test_add_data_func ("/limit/size-given-up", NULL, check_size_undone);
  g_test_add_data_func ("/limit/size-contexts", NULL, check_size_contexts);
  g_test_add_data_func ("/limit/size-waits", NULL, check_size_waits);
  g_test_add_data_func ("/limit/begins-large", GUINT_TO_POINTER (MOST),
                        check_begins_large);
  g_test_add_data_func ("/limit/begins-large-few", GUINT_TO_POINTER (32),
                        check_begins_large);
  g_test_add_data_func ("/limit/begins-usual", NULL, check_begins_usual);
  g_test_add_data_func ("/limit/begins-usual-error", GINT_TO_POINTER (EIO),
                        check_begins_usual);
  g_test_add_data_func ("/limit/begins-later", NULL, check_begins_later);
  g_test_add_data_func ("/limit/most-large", NULL, check_most_large);
  g_test_add_data_func ("/limit/most-large-beside", GINT_TO_POINTER (true),
                        check_most_large);
  g_test_add_data_func ("/limit/never-large", NULL, check_never_large);
  g_test_add_data_func ("/limit/no-longer-large", NULL, check_no_longer_large);
  g_test_add_data_func ("/limit/not-large", NULL, check_not_large);
  g_test_add_data_func ("/limit/given-up", NULL, check_given_up);
  g_test_add_data_func ("/limit/given-up-alone", NULL, check_given_up_alone);
  g_test_add_data_func ("/limit/error-in-test", NULL, check_error_in_test);
  g_test_add_data_func ("/limit/outage", NULL, check_outage);
  g_test_add_data_func ("/limit/small", NULL, check_small);
  for (unsigned i = 0; i < G_N_ELEMENTS (models); i++) {
    g_autofree char *name = g_strdelimit (g_strdup (models[i].name), "/", 'p');
    g_autofree char *path = g_strconcat ("/limit/", name, NULL);

    g_test_add_data_func (path, &models[i], check_model);
  }
}

int
main (int argc, char **argv)
{
  g_autofree char *dir = NULL, *name = NULL;
  gboolean table = FALSE;
  gint64 seed = 0;
  GOptionEntry entries[] = {
    { "table", 0, 0, G_OPTION_ARG_NONE, &table, NULL, NULL },
    { "model", 0, 0, G_OPTION_ARG_STRING, &name, NULL, NULL },
    { "data", 0, 0, G_OPTION_ARG_FILENAME, &dir, NULL, NULL },
    { "random-seed", 0, 0, G_OPTION_ARG_INT64, &seed, NULL, NULL },
    { 0 }
  };
  g_autoptr (GOptionContext) context = g_option_context_new (NULL);

  g_option_context_add_main_entries (context, entries, NULL);
  g_option_context_set_ignore_unknown_options (context, TRUE);
  if (!g_option_context_parse (context, &argc, &argv, NULL))
    return 2;
  if (seed)
    random_seed = seed;
  if (dir)
    write_all_data (dir);
  if (table)
    print_table (name);
  if (dir || table)
    return 0;
  g_test_init (&argc, &argv, NULL);
  add_tests ();
  return g_test_run ();
}
