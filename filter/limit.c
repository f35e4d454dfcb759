/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The limit: see limit.h.
 */
#include <errno.h>

#include <glib.h>

#include "limit.h"

enum { MIN_SAMPLES = 8 };
/* After so many growths the limit doubles with each one. */
enum { STREAK_TO_DOUBLE = 6 };
/* Epochs from one measurement of the base to the next: the first time, and
 * later.
 */
enum { INTERVAL_FIRST = 8, INTERVAL_MOST = 50 };
/* In this time, delays of the scheduler are the same in every epoch. */
#define EPOCH_MIN_NS UINT64_C (5000000)
/* However fast the device is, a test may take a few epochs. */
#define TEST_MORE_NS (8 * EPOCH_MIN_NS)
#define CEILING_NS UINT64_C (60000000000)

#define load(p) atomic_load_explicit (p, memory_order_relaxed)
#define store(p, v) atomic_store_explicit (p, v, memory_order_relaxed)

void
limit_init (struct limit *l, bool adapts, unsigned most, uint32_t whole_bytes,
            bool has_small)
{
  unsigned value = adapts ? MIN (LIMIT_START, most) : most;

  *l = (struct limit) { .most = most, .whole_bytes = whole_bytes,
                        .has_small = has_small, .has_worked = true,
                        .skip = value * 3 / 4, .streak = STREAK_TO_DOUBLE,
                        .least_ns = UINT64_MAX, .interval = INTERVAL_FIRST };
  lock_init_ranked (&l->own_lock, LOCK_LEAF);
  l->lock = &l->own_lock;
  store (&l->value, value);
  store (&l->reason, adapts ? LIMIT_STARTS : LIMIT_IS_FIXED);
}

void
limit_destroy (struct limit *l)
{
  lock_destroy (&l->own_lock);
}

void
limit_pair (struct limit *a, struct limit *b)
{
  a->other = b;
  b->other = a;
  b->lock = a->lock;
}

unsigned
limit_value (struct limit *l)
{
  return load (&l->value);
}

void
limit_show (struct limit *l, struct stats_limit *shown)
{
  LOCK_IN_SCOPE (l->lock);
  if (load (&l->value) > shown->value)
    *shown = (struct stats_limit) {
      load (&l->value), load (&l->reason), l->base_ns / 1e9
    };
}

void
limit_hit (struct limit *l)
{
  if (!load (&l->hit))
    store (&l->hit, true);
}

static void
set (struct limit *l, uint64_t value, enum limit_reason reason)
{
  unsigned old = load (&l->value);

  value = CLAMP (value, MIN (LIMIT_LEAST, l->most), l->most);
  l->skip = MAX (value / 4, value - MIN (old, value));
  store (&l->value, value);
  store (&l->reason, value == l->most ? LIMIT_IS_MOST : reason);
}

/* Operations take as long as without a queue. */
static void
grow (struct limit *l, uint64_t now_ns)
{
  unsigned value = load (&l->value), eighths = 1u << MIN (l->streak / 2, 3);
  unsigned next = value + MAX (value * eighths / 8, 1);

  if (now_ns < l->ceiling_until_ns)
    next = MIN (next, MAX (l->ceiling, value));
  l->streak++;
  set (l, next, LIMIT_GROWS);
}

static void
begin_epoch (struct limit *l, uint64_t from_ns)
{
  l->epoch_ns = from_ns;
  l->sum_ns = l->squares = 0;
  l->n = l->begun = 0;
  store (&l->hit, false);
}

/* Lowers the other limit by the same factor as this one. */
static void
lower_other (struct limit *l)
{
  struct limit *o = l->other;

  if (o == NULL)
    return;
  if (o->kept == 0)
    o->kept = load (&o->value);
  store (&o->value, MAX ((uint64_t) o->kept * load (&l->value) / l->before,
                         MIN (LIMIT_LEAST, o->kept)));
}

static void
raise_other (struct limit *l, uint64_t now_ns)
{
  struct limit *o = l->other;

  if (o == NULL || o->kept == 0)
    return;
  store (&o->value, o->kept);
  o->kept = 0;
  begin_epoch (o, now_ns);
}

/* The next epoch has TO, which is fewer. */
static void
begin_test (struct limit *l, uint64_t to, uint64_t mean_ns)
{
  l->before = load (&l->value);
  l->before_ns = mean_ns;
  set (l, to, LIMIT_TESTS);
  lower_other (l);
}

static void
end_test (struct limit *l, uint64_t now_ns)
{
  l->before = 0;
  raise_other (l, now_ns);
}

static void
give_up_test (struct limit *l, uint64_t now_ns)
{
  set (l, l->before, LIMIT_STAYS);
  l->age = 0;                   /* not again at once */
  end_test (l, now_ns);
  begin_epoch (l, now_ns);
}

/* The epoch of a test has ended. */
static void
judge_test (struct limit *l, uint64_t mean_ns, uint64_t now_ns)
{
  uint64_t served = l->before * mean_ns / l->before_ns;
  bool is_base = mean_ns * 5 > l->base_ns * 4 && mean_ns * 3 < l->base_ns * 4;

  if (!is_base)
    l->age = l->interval;
  if (l->age == l->interval)
    l->base_ns = mean_ns;
  if (!is_base && load (&l->value) > LIMIT_LEAST) {
    set (l, load (&l->value) / 2, LIMIT_TESTS);
    lower_other (l);
    return;
  }
  if (l->age == l->interval) {
    l->age = 0;
    l->interval = MIN (2 * l->interval, INTERVAL_MOST);
  }
  served += served / 8 + 1;
  if (served < l->before)
    l->streak = 0;
  set (l, MIN (served, l->before),
       served < l->before ? LIMIT_WAS_CUT : LIMIT_STAYS);
  end_test (l, now_ns);
}

static void
change (struct limit *l, uint64_t mean_ns, uint64_t now_ns)
{
  unsigned value = load (&l->value);

  l->good = MAX (l->good, value);
  if (l->age == l->interval)
    begin_test (l, value / 2, mean_ns);
  else if (mean_ns * 20 > l->base_ns * 27)
    begin_test (l, (value * l->base_ns + mean_ns / 2) / mean_ns, mean_ns);
  else if (mean_ns * 20 <= l->base_ns * 23)
    grow (l, now_ns);
  else
    set (l, value, LIMIT_STAYS);
}

static void
end_epoch (struct limit *l, uint64_t now_ns)
{
  uint64_t mean_ns = MAX (l->sum_ns / l->n, 1);

  if (l->base_ns == 0)
    l->base_ns = l->least_ns;
  if (l->before)
    judge_test (l, mean_ns, now_ns);
  else {
    if (mean_ns < l->base_ns)
      l->base_ns -= (l->base_ns - mean_ns + 1) / 2;
    if (load (&l->hit))
      change (l, mean_ns, now_ns);
    l->age = MIN (l->age + 1, l->interval);
  }
  /* The epoch of a test leaves time for the operations from before to end. */
  begin_epoch (l, now_ns + (l->before ? mean_ns * 5 / 4 : 0));
}

/* Gives up a test of either limit that has lasted for too long.  That is longer
 * than an epoch of operations whose times vary.
 */
static void
end_long_test (struct limit *l, uint64_t now_ns)
{
  struct limit *t = l->kept ? l->other : l;

  if (t->before && now_ns >= t->epoch_ns + 32 * t->before_ns + TEST_MORE_NS)
    give_up_test (t, now_ns);
}

/* Others are about the request or the device, not about load. */
static bool
is_about_load (int err)
{
  return err != ENOSPC && err != EPERM && err != EROFS && err != EINVAL
    && err != EOPNOTSUPP && err != ESHUTDOWN && err != EDQUOT && err != EFBIG;
}

static void
back_off (struct limit *l, uint64_t now_ns)
{
  unsigned value;

  if (l->kept)
    give_up_test (l->other, now_ns);
  if (l->before) {              /* fewer are no reason for the error */
    store (&l->value, l->before);
    end_test (l, now_ns);
  }
  value = load (&l->value);
  if (l->good < value / 2 || l->good >= value)
    l->good = value / 2;
  l->ceiling = MAX ((l->good + value) / 2, LIMIT_LEAST);
  l->ceiling_until_ns = now_ns + CEILING_NS;
  l->streak = 0;
  l->has_worked = false;
  set (l, value / 2, LIMIT_HAD_ERROR);
  begin_epoch (l, now_ns);
}

/* Whether the mean time is known: its standard error is a sixteenth, or the
 * epoch has become too long.  While the limit doubles, a quarter of its
 * operations is enough.
 */
static bool
is_known (const struct limit *l, uint64_t elapsed_ns)
{
  double n = l->n, mean = l->sum_ns / n;
  unsigned value = load (&l->value), rest = value - l->skip;

  if (l->streak >= STREAK_TO_DOUBLE)
    rest /= 4;
  if (n < MAX (rest, MIN_SAMPLES) || elapsed_ns < EPOCH_MIN_NS)
    return false;
  return (l->squares / n - mean * mean) * 256 <= mean * mean * n
    || (n >= 8 * value + 128 && elapsed_ns >= 4 * EPOCH_MIN_NS);
}

static void
note (struct limit *l, uint64_t time_ns)
{
  if (l->base_ns)
    time_ns = MIN (time_ns, 8 * l->base_ns);
  l->sum_ns += time_ns;
  l->squares += (double) time_ns * time_ns;
  l->n++;
}

/* Operations have another size from now on: starts again. */
static void
start_again (struct limit *l, bool is_small, uint64_t now_ns)
{
  if (l->before)
    end_test (l, now_ns);
  l->is_small = is_small;
  l->base_ns = l->age = l->good = l->ceiling_until_ns = 0;
  l->least_ns = UINT64_MAX;
  l->interval = INTERVAL_FIRST;
  l->streak = STREAK_TO_DOUBLE;
  set (l, LIMIT_START, LIMIT_STARTS);
  begin_epoch (l, now_ns);
}

/* Whether the limit is about operations of this size now. */
static bool
is_about_size (struct limit *l, bool is_small, uint64_t now_ns)
{
  l->since_whole = is_small ? l->since_whole + 1 : 0;
  if (is_small == l->is_small)
    return true;
  if (is_small && l->since_whole < 8 * load (&l->value) + 128)
    return false;
  start_again (l, is_small, now_ns);
  return true;
}

void
limit_note (struct limit *l, uint32_t count, uint64_t start_ns,
            uint64_t end_ns, int err)
{
  bool is_small = count < l->whole_bytes / 2;

  if (load (&l->reason) == LIMIT_IS_FIXED || (err && !is_about_load (err)))
    return;
  LOCK_IN_SCOPE (l->lock);
  if (err) {
    if (start_ns >= l->epoch_ns && l->has_worked)
      back_off (l, end_ns);
    return;
  }
  /* Operations of any size: with a lower limit, there may be no other ones. */
  end_long_test (l, end_ns);
  if (count > l->whole_bytes || (is_small && !l->has_small))
    return;
  if (l->kept || !is_about_size (l, is_small, end_ns))
    return;
  if (start_ns >= l->epoch_ns) {
    l->begun++;
    l->has_worked = true;
  }
  l->least_ns = MIN (l->least_ns, MAX (end_ns - start_ns, 1));
  if (l->begun < MAX (l->skip, 1))
    return;
  note (l, end_ns - start_ns);
  if (is_known (l, end_ns - l->epoch_ns))
    end_epoch (l, end_ns);
}
