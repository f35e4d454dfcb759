/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rules for the number of operations in flight that test-limit compares: the
 * filter's own and well-known ones.
 *
 * The well-known ones are small versions for a client that counts operations:
 *   AIMD       one more per round, half after an error
 *   Vegas      Brakmo and Peterson 1995; parameters of Netflix's
 *              concurrency-limits
 *   Gradient2  Netflix's concurrency-limits, with a window of a round
 *   BBR        Cardwell et al. 2016, without pacing: in flight is twice the
 *              product of the largest rate and the least time
 * A round has as many completions as the limit.
 */
#ifndef TESTS_LIMIT_RULES_H
#define TESTS_LIMIT_RULES_H

#include <math.h>

#include <glib.h>

#include "limit.h"
#include "limit-device.h"

enum { ROUNDS = 10 };

struct rule {
  const struct rule_ops *ops;
  unsigned most;
  double value;
  struct limit limit;           /* the filter's */
  /* The round. */
  uint64_t round_ns;
  double sum_ns;
  unsigned n, errors;
  bool hit;
  /* Of rules that compare times: the least and the usual ones. */
  double least_ns, usual_ns;
  unsigned samples, rounds;
  /* BBR. */
  double rates[ROUNDS], best_rate;
  unsigned stale;
  uint64_t least_at_ns;
  enum { BBR_STARTS, BBR_PROBES, BBR_MEASURES } state;
};

/* A round has ended. */
struct rule_ops {
  const char *name;
  double start;
  void (*round) (struct rule *, uint64_t now_ns);
};

static void
aimd_round (struct rule *r, uint64_t now_ns)
{
  (void) now_ns;
  if (r->errors)
    r->value /= 2;
  else if (r->hit)
    r->value++;
}

static void
vegas_round (struct rule *r, uint64_t now_ns)
{
  double mean_ns = r->sum_ns / MAX (r->n, 1), step = MAX (log10 (r->value), 1);
  double queue;

  (void) now_ns;
  if (r->errors) {
    r->value -= step;
    return;
  }
  if (!r->least_ns || mean_ns < r->least_ns || r->rounds % 30 == 29)
    r->least_ns = mean_ns;
  queue = r->value * (1 - r->least_ns / mean_ns);
  if (!r->hit)
    return;
  if (queue <= step)
    r->value += 6 * step;
  else if (queue < 3 * step)
    r->value += step;
  else if (queue > 6 * step)
    r->value -= step;
}

static void
gradient2_round (struct rule *r, uint64_t now_ns)
{
  double mean_ns = r->sum_ns / MAX (r->n, 1), gradient;

  (void) now_ns;
  if (r->n == 0)
    return;
  r->usual_ns += (mean_ns - r->usual_ns) * 2 / (MIN (++r->samples, 600) + 1);
  if (r->usual_ns > 2 * mean_ns)
    r->usual_ns *= 0.95;
  if (!r->hit)
    return;
  gradient = CLAMP (1.5 * r->usual_ns / mean_ns, 0.5, 1);
  r->value += 0.2 * (r->value * gradient + 4 - r->value);
}

static double
bbr_rate (struct rule *r)
{
  double rate = 0;

  for (unsigned i = 0; i < ROUNDS; i++)
    rate = MAX (rate, r->rates[i]);
  return rate;
}

/* Has 4 in flight for a moment, and forgets the least time. */
static void
bbr_measure (struct rule *r, uint64_t now_ns)
{
  if (r->state != BBR_MEASURES)
    r->stale = r->value / 4 + 2;
  r->state = BBR_MEASURES;
  r->value = 4;
  if (--r->stale > 0)
    return;
  r->least_ns = r->sum_ns / r->n;
  r->least_at_ns = now_ns;
  r->state = BBR_PROBES;
}

static void
bbr_round (struct rule *r, uint64_t now_ns)
{
  double mean_ns = r->sum_ns / MAX (r->n, 1);

  if (r->n == 0)
    return;
  if (r->state != BBR_MEASURES)
    r->rates[r->rounds % ROUNDS] =
      (double) r->n / MAX (now_ns - r->round_ns, 1);
  if (!r->least_ns || mean_ns <= r->least_ns) {
    r->least_ns = mean_ns;
    r->least_at_ns = now_ns;
  }
  if (r->state == BBR_STARTS) {
    r->stale = bbr_rate (r) < r->best_rate * 1.25 ? r->stale + 1 : 0;
    r->best_rate = MAX (r->best_rate, bbr_rate (r));
    r->value *= 2;
    if (r->stale < 3)
      return;
    r->state = BBR_PROBES;
  }
  if (r->state == BBR_MEASURES || now_ns > r->least_at_ns + 10 * S_NS)
    bbr_measure (r, now_ns);
  if (r->state == BBR_PROBES)
    r->value = 2 * bbr_rate (r) * r->least_ns
      * (r->rounds % 8 == 0 ? 1.25 : r->rounds % 8 == 1 ? 0.75 : 1);
}

static const struct rule_ops rule_ops[] = {
  { "n=64", 64, NULL },
  { "n=1024", 1024, NULL },
  { "AIMD", 20, aimd_round },
  { "Vegas", 20, vegas_round },
  { "Grad.2", 20, gradient2_round },
  { "BBR", 20, bbr_round },
  { "limit.c", 0, NULL },
};
enum { RULES = G_N_ELEMENTS (rule_ops), RULE_OURS = RULES - 1 };

static inline bool
rule_is_ours (const struct rule *r)
{
  return r->ops == &rule_ops[RULE_OURS];
}

static inline unsigned
rule_value (struct rule *r)
{
  return rule_is_ours (r) ? limit_value (&r->limit) : (unsigned) r->value;
}

static inline void
rule_hit (struct rule *r)
{
  r->hit = true;
  if (rule_is_ours (r))
    limit_hit (&r->limit);
}

/* Without OPS, the limit is fixed, at MOST. */
static inline void
rule_init (struct rule *r, const struct rule_ops *ops, unsigned most)
{
  *r = (struct rule) { .ops = ops, .most = most, .value = most };
  if (ops)
    r->value = MIN (ops->start, most);
  if (rule_is_ours (r))
    limit_init (&r->limit, true, most, OPERATION_BYTES, true);
}

static inline void
rule_note (struct rule *r, uint32_t bytes, uint64_t start_ns, uint64_t now_ns,
           int err)
{
  if (rule_is_ours (r)) {
    limit_note (&r->limit, bytes, start_ns, now_ns, err);
    return;
  }
  if (err)
    r->errors++;
  else {
    r->sum_ns += now_ns - start_ns;
    r->n++;
  }
  if (r->n + r->errors >= r->value) {
    if (r->ops && r->ops->round)
      r->ops->round (r, now_ns);
    r->rounds++;
    r->round_ns = now_ns;
    r->sum_ns = r->n = r->errors = 0;
    r->hit = false;
  }
  r->value = CLAMP (r->value, MIN (1, r->most), r->most);
}

#endif /* TESTS_LIMIT_RULES_H */
