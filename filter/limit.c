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
/* Epochs from one measurement of the base to the next: the first time, and at
 * most.
 */
enum { INTERVAL_FIRST = 8, INTERVAL_MOST = 50 };
/* The same for tests of the size. */
enum { SIZE_INTERVAL_FIRST = 64, SIZE_INTERVAL_MOST = 1024 };
/* In this time, delays of the scheduler are the same in every epoch. */
#define EPOCH_MIN_NS UINT64_C (5000000)
/* However fast the device is, a test may take a few epochs. */
#define TEST_MORE_NS (8 * EPOCH_MIN_NS)
/* A test is given up after so many latencies, and TEST_MORE_NS. */
enum { LONG_TEST_LATENCIES = 64 };
/* A test of the size measures each rate until so many times the limit of
 * operations have ended.
 */
enum { SIZE_TEST_ROUNDS = 3 };
#define CEILING_NS UINT64_C (60000000000)

#define load(p) atomic_load_explicit (p, memory_order_relaxed)
#define store(p, v) atomic_store_explicit (p, v, memory_order_relaxed)

void
limit_init (struct limit *l, bool adapts, unsigned most, uint32_t usual_bytes,
            bool has_small)
{
  unsigned value = adapts ? MIN (LIMIT_START, most) : most;

  *l = (struct limit) { .most = most, .usual_bytes = usual_bytes,
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

unsigned
limit_in_usual (struct limit *l)
{
  unsigned units = load (&l->is_large) ? l->large_bytes / l->usual_bytes : 1;

  return load (&l->value) * units;
}

bool
limit_is_large (struct limit *l)
{
  return load (&l->is_large);
}

bool
limit_bears_more (struct limit *l)
{
  return load (&l->bears_more);
}

void
limit_show (struct limit *l, struct stats_limit *shown)
{
  LOCK_IN_SCOPE (l->lock);
  if (load (&l->value) > shown->value)
    *shown = (struct stats_limit) {
      load (&l->value), load (&l->reason), l->base_ns / 1e9,
      load (&l->is_large) ? l->large_bytes : l->usual_bytes
    };
}

void
limit_hit (struct limit *l)
{
  if (!load (&l->hit))
    store (&l->hit, true);
}

static unsigned
most_of (const struct limit *l)
{
  return load (&l->is_large) ? l->most_large : l->most;
}

static void
set (struct limit *l, uint64_t value, enum limit_reason reason)
{
  unsigned old = load (&l->value), most = most_of (l);

  value = CLAMP (value, MIN (LIMIT_LEAST, most), most);
  l->skip = value / 4;
  /* A growth does not wait for more: a step would take two latencies. */
  if (reason != LIMIT_GROWS)
    l->skip = MAX (l->skip, value - MIN (old, value));
  store (&l->value, value);
  store (&l->reason, value == most ? LIMIT_IS_MOST : reason);
  store (&l->bears_more, false);
}

static void
begin_epoch (struct limit *l, uint64_t from_ns)
{
  l->epoch_ns = from_ns;
  l->sum_ns = l->squares = 0;
  l->n = l->begun = 0;
  store (&l->hit, false);
}

/* The size. */

static void
change_size (struct limit *l)
{
  store (&l->is_large, !load (&l->is_large));
  l->base_ns = l->good = l->from_large = 0;
  l->is_base_tested = false;
  l->least_ns = UINT64_MAX;
}

/* Whether the limit counts large operations, but more bytes could be in flight
 * with usual ones.  Not if these are in flight beside the large ones.
 */
static bool
usual_are_more (const struct limit *l)
{
  return load (&l->is_large) && !l->beside && !l->large_wins
    && l->most / (l->large_bytes / l->usual_bytes) > l->most_large;
}

/* If the limit is new, it counts large operations from now on: one for each
 * context, also for those that are not open yet, as they open only while there
 * is work for them.
 */
static void
begin_large (struct limit *l)
{
  uint64_t bytes;

  if (!load (&l->is_new) || l->is_small || l->kept)
    return;
  bytes = (uint64_t) load (&l->value) * l->usual_bytes;
  store (&l->is_new, false);
  change_size (l);
  set (l, l->at_once < l->most_large ? l->at_once : bytes / l->large_bytes,
       LIMIT_STARTS);
  l->skip = load (&l->value) / 2;
  begin_epoch (l, l->epoch_ns);
}

void
limit_set_large (struct limit *l, uint32_t bytes, unsigned most,
                 unsigned at_once, bool beside)
{
  if (load (&l->reason) == LIMIT_IS_FIXED || most == 0)
    return;
  l->large_bytes = bytes;
  l->at_once = at_once;
  l->most_large = most;
  l->beside = beside;
  store (&l->is_new, true);
}

bool
limit_is_new (struct limit *l)
{
  return load (&l->is_new);
}

void
limit_has_large (struct limit *l, bool has_large)
{
  if (load (&l->has_large) != has_large)
    store (&l->has_large, has_large);
  if (has_large && load (&l->is_new)) {
    LOCK_IN_SCOPE (l->lock);
    begin_large (l);
  }
}

/* Operations take as long as without a queue. */
static void
grow (struct limit *l, uint64_t now_ns)
{
  unsigned value = load (&l->value), eighths = 1u << MIN (l->streak / 2, 3);
  unsigned next = value + MAX (value * eighths / 8, 1);

  if (now_ns < l->ceiling_until_ns)
    next = MIN (next, MAX (l->ceiling, value));
  if (next > l->most_large && usual_are_more (l)) {
    unsigned units = l->large_bytes / l->usual_bytes;

    next *= units;
    change_size (l);
    l->from_large = l->most_large * units;
    l->size_age = 0;
    l->size_interval = SIZE_INTERVAL_FIRST;
  }
  l->streak++;
  set (l, next, LIMIT_GROWS);
}

/* The other limit learns nothing for a while. */
static void
keep_other (struct limit *l)
{
  struct limit *o = l->other;

  if (o && o->kept == 0)
    o->kept = load (&o->value);
}

/* Lowers the other limit by the same factor as this one. */
static void
lower_other (struct limit *l)
{
  struct limit *o = l->other;

  keep_other (l);
  if (o)
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
  l->size_test = SIZE_IS_NOT_TESTED;
  raise_other (l, now_ns);
}

/* Tests of the size. */

/* Whether to wait for the first base test of the other limit.  Only if it has
 * had operations, and not for long: there may be no more.
 */
static bool
other_is_first (const struct limit *l)
{
  const struct limit *o = l->other;

  return o && o->least_ns < UINT64_MAX && !o->is_base_tested
    && l->size_age < INTERVAL_FIRST;
}

static bool
size_is_due (const struct limit *l, uint64_t now_ns)
{
  return l->most_large > 0 && !l->is_small && l->size_age >= l->size_interval
    && l->is_base_tested && !other_is_first (l)
    && now_ns >= l->ceiling_until_ns
    && (load (&l->is_large) ? load (&l->value) <= LIMIT_LEAST + 1
        : load (&l->has_large));
}

static void
measure (struct limit *l, enum size_test step, uint64_t from_ns)
{
  l->size_test = step;
  l->moved[0] = l->moved[1] = 0;
  begin_epoch (l, from_ns);
}

static void
begin_size_test (struct limit *l, uint64_t mean_ns, uint64_t now_ns)
{
  l->before = load (&l->value);
  l->before_ns = mean_ns;
  l->before_base_ns = l->base_ns;
  keep_other (l);
  measure (l, SIZE_BEFORE, now_ns);
}

/* How many operations of the other size to test.  Usual ones: three times as
 * many as a large one has units, so they have fewer bytes than LIMIT_LEAST
 * large ones.  Large ones: 1.5 times the bytes that the device serves without a
 * queue, and one operation more.  With only the same bytes in flight, the rate
 * could not rise.  If the contexts bound the operations, as many as there are
 * contexts.
 */
static unsigned
n_of_other_size (const struct limit *l)
{
  uint64_t units = l->large_bytes / l->usual_bytes;
  uint64_t served = l->before * MIN (l->base_ns, l->before_ns) / l->before_ns;

  if (load (&l->is_large))
    return 3 * units;
  return l->before > l->at_once ? l->at_once : served * 3 / 2 / units + 1;
}

/* Goes back to the size before its test. */
static void
undo_size_test (struct limit *l)
{
  if (l->size_test != SIZE_BEFORE)
    change_size (l);
  l->base_ns = l->before_base_ns;
  l->is_base_tested = true;
  l->size_interval = MAX (l->size_interval, SIZE_INTERVAL_FIRST);
  l->size_age = 0;
}

/* The end of a test. */

static void
give_up_test (struct limit *l, uint64_t now_ns)
{
  if (l->size_test)
    undo_size_test (l);
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
  if (l->age == l->interval) {
    l->base_ns = mean_ns;
    l->is_base_tested = true;
  }
  if (!is_base && load (&l->value) > LIMIT_LEAST) {
    set (l, load (&l->value) / 2, LIMIT_TESTS);
    lower_other (l);
    return;
  }
  if (l->age == l->interval) {
    l->age = 0;
    l->interval = MIN (2 * l->interval, INTERVAL_MOST);
  }
  if (served < l->from_large) { /* the number of operations is the bound */
    l->large_wins = true;
    change_size (l);
    served = l->before = l->most_large;
  }
  l->from_large = 0;
  served += served / 8 + 1;
  if (served < l->before)
    l->streak = 0;
  set (l, MIN (served, l->before),
       served < l->before ? LIMIT_WAS_CUT : LIMIT_STAYS);
  end_test (l, now_ns);
}

/* Whether the tested size stays.  Compares two rates with those of the other
 * size: of this kind, and of reads and writes together.
 */
static bool
is_good_enough (const struct limit *l, uint64_t elapsed_ns)
{
  double own = l->moved[0] / (l->before_rate[0] * elapsed_ns);
  double both = l->moved[1] / (l->before_rate[1] * elapsed_ns);

  return load (&l->is_large) ? MIN (own, both) >= 1.1 : MAX (own, both) >= 0.9;
}

static void
judge_size_test (struct limit *l, uint64_t elapsed_ns, uint64_t now_ns)
{
  struct limit *o = l->other;
  bool is_large = load (&l->is_large);

  if (!load (&l->hit)) {
    give_up_test (l, now_ns);
    return;
  }
  if (is_good_enough (l, elapsed_ns)) {
    l->size_interval = SIZE_INTERVAL_FIRST;
    l->size_age = 0;
    l->interval = INTERVAL_FIRST;
    l->streak = STREAK_TO_DOUBLE;
    /* The base will include a queue if the device has one: measure it soon. */
    l->age = is_large ? 0 : l->interval;
    set (l, load (&l->value), LIMIT_STAYS);
  }
  else {
    l->size_interval = MIN (4 * l->size_interval, SIZE_INTERVAL_MOST);
    undo_size_test (l);
    set (l, l->before, LIMIT_STAYS);
  }
  /* If bytes bound one kind, they probably bound the other one, too. */
  if (o && !load (&l->is_large) && !load (&o->is_large)
      && o->size_interval < SIZE_INTERVAL_FIRST) {
    o->size_interval = SIZE_INTERVAL_FIRST;
    o->size_age = 0;
  }
  end_test (l, now_ns);
  begin_epoch (l, now_ns);
}

/* Whether the new size has moved far less than the old one in the same time. */
static bool
is_clear (const struct limit *l, uint64_t elapsed_ns)
{
  return l->size_test == SIZE_AFTER && elapsed_ns >= l->before_elapsed_ns
    && 2.0 * l->moved[1] < l->before_rate[1] * elapsed_ns;
}

/* An operation has ended in a test of the size.  IS_OF_SIZE: the size that is
 * used at present.
 */
static void
note_size_test (struct limit *l, bool is_of_size, uint32_t count,
                uint64_t start_ns, uint64_t now_ns)
{
  uint64_t elapsed_ns = now_ns - l->epoch_ns;
  unsigned value = load (&l->value);

  if (now_ns < l->epoch_ns)
    return;
  l->moved[0] += count;
  l->moved[1] += count;
  l->begun += is_of_size && start_ns >= l->epoch_ns;
  if (elapsed_ns >= LONG_TEST_LATENCIES * l->before_ns + TEST_MORE_NS)
    give_up_test (l, now_ns);
  else if (l->size_test == SIZE_CHANGES) {
    if (l->begun >= value)      /* those from before the change have ended */
      measure (l, SIZE_AFTER, now_ns);
  }
  else if (!is_clear (l, elapsed_ns)
           && (elapsed_ns < TEST_MORE_NS
               || l->begun < SIZE_TEST_ROUNDS * value))
    return;
  else if (l->size_test == SIZE_AFTER)
    judge_size_test (l, elapsed_ns, now_ns);
  else if (!load (&l->hit))
    give_up_test (l, now_ns);
  else {
    unsigned n = n_of_other_size (l);

    for (unsigned i = 0; i < G_N_ELEMENTS (l->moved); i++)
      l->before_rate[i] = (double) l->moved[i] / elapsed_ns;
    l->before_elapsed_ns = elapsed_ns;
    change_size (l);
    set (l, n, LIMIT_TESTS);
    measure (l, SIZE_CHANGES, now_ns);
  }
}

static void
change (struct limit *l, uint64_t mean_ns, uint64_t now_ns)
{
  unsigned value = load (&l->value);
  unsigned served = (value * l->base_ns + mean_ns / 2) / mean_ns;
  bool has_queue = mean_ns * 20 > l->base_ns * 23;
  bool is_long = mean_ns * 20 > l->base_ns * 27;

  if (!l->is_small)
    store (&l->is_new, false);
  l->good = MAX (l->good, value);
  if (is_long && !l->is_base_tested)    /* now; judge_test doubles it */
    l->age = l->interval = INTERVAL_FIRST / 2;
  /* At its bound, operations may wait where their times do not show it: for a
   * context.
   */
  if ((has_queue || value == most_of (l)) && size_is_due (l, now_ns))
    begin_size_test (l, mean_ns, now_ns);
  else if (l->age == l->interval)
    begin_test (l, MIN (served, value / 2), mean_ns);
  else if (is_long)
    begin_test (l, served, mean_ns);
  else if (!has_queue && (value < most_of (l) || usual_are_more (l)))
    grow (l, now_ns);
  else {
    set (l, value, LIMIT_STAYS);
    store (&l->bears_more, !has_queue);
  }
}

static void
end_epoch (struct limit *l, uint64_t now_ns)
{
  uint64_t mean_ns = MAX (l->sum_ns / l->n, 1);

  if (l->base_ns == 0)
    l->base_ns = l->least_ns;
  if (l->before) {
    judge_test (l, mean_ns, now_ns);
    if (l->before == 0 && load (&l->is_large) && size_is_due (l, now_ns))
      begin_size_test (l, mean_ns, now_ns);
  }
  else {
    if (mean_ns < l->base_ns)
      l->base_ns -= (l->base_ns - mean_ns + 1) / 2;
    if (load (&l->hit))
      change (l, mean_ns, now_ns);
    l->age = MIN (l->age + 1, l->interval);
    l->size_age++;
  }
  /* The epoch of a test leaves time for the operations from before to end. */
  begin_epoch (l, now_ns + (l->before ? mean_ns * 5 / 4 : 0));
}

/* Gives up a test of either limit that has lasted for too long: longer than an
 * epoch of operations whose times vary, or with less than one round.
 */
static void
end_long_test (struct limit *l, uint64_t now_ns)
{
  struct limit *t = l->kept ? l->other : l;
  uint64_t latencies = t->begun < load (&t->value) ? LONG_TEST_LATENCIES / 4
    : LONG_TEST_LATENCIES;

  if (t->before && now_ns >= t->epoch_ns + latencies * t->before_ns
      + TEST_MORE_NS)
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
  store (&l->is_new, false);
  l->from_large = 0;
  if (l->before) {              /* fewer are no reason for the error */
    if (l->size_test)
      undo_size_test (l);
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
 * operations is enough, but at least a quarter of the limit, between
 * LIMIT_LEAST and MIN_SAMPLES.  With more, a step of a small limit would take
 * two latencies.
 */
static bool
is_known (const struct limit *l, uint64_t elapsed_ns)
{
  double n = l->n, mean = l->sum_ns / n;
  unsigned value = load (&l->value), rest = value - l->skip;
  unsigned least = MIN_SAMPLES;

  if (l->streak >= STREAK_TO_DOUBLE) {
    rest /= 4;
    least = CLAMP (value / 4, LIMIT_LEAST, MIN_SAMPLES);
  }
  if (n < MAX (rest, least) || elapsed_ns < EPOCH_MIN_NS)
    return false;
  return (l->squares / n - mean * mean) * 256 <= mean * mean * n
    || (n >= 8 * value + 128 && elapsed_ns >= 4 * EPOCH_MIN_NS);
}

static void
note (struct limit *l, uint64_t time_ns)
{
  if (l->is_base_tested)
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
  store (&l->is_large, false);
  l->is_small = is_small;
  l->base_ns = l->age = l->good = l->ceiling_until_ns = 0;
  l->is_base_tested = l->large_wins = false;
  l->least_ns = UINT64_MAX;
  l->from_large = 0;
  l->interval = INTERVAL_FIRST;
  l->streak = STREAK_TO_DOUBLE;
  set (l, LIMIT_START, LIMIT_STARTS);
  if (l->kept)                  /* after the test of the other one */
    l->kept = load (&l->value);
  begin_epoch (l, now_ns);
}

/* While the limit counts large operations, there may be none: starts again
 * after many usual ones.  Not in a test, nor if the limit is at its bound: then
 * there are usual prefetches beside the large ones.
 */
static void
look_for_large (struct limit *l, uint32_t count, uint64_t now_ns)
{
  unsigned value = load (&l->value);

  if (count > l->usual_bytes || l->before
      || (l->beside && value == l->most_large))
    l->without_large = 0;
  else if (count >= l->usual_bytes / 2
           && ++l->without_large >= 8 * value + 128) {
    start_again (l, false, now_ns);
    l->without_large = l->size_age = 0;
    l->size_interval = SIZE_INTERVAL_FIRST;
  }
}

/* Whether the limit counts operations of this size now. */
static bool
is_about_size (struct limit *l, bool is_small, uint64_t now_ns)
{
  l->small_in_a_row = is_small ? l->small_in_a_row + 1 : 0;
  if (is_small == l->is_small)
    return true;
  if (is_small && l->small_in_a_row < 8 * load (&l->value) + 128)
    return false;
  start_again (l, is_small, now_ns);
  return true;
}

void
limit_note (struct limit *l, uint32_t count, uint64_t start_ns,
            uint64_t end_ns, int err)
{
  uint32_t size;
  bool is_small;

  if (load (&l->reason) == LIMIT_IS_FIXED || (err && !is_about_load (err)))
    return;
  LOCK_IN_SCOPE (l->lock);
  if (err) {
    if (start_ns >= l->epoch_ns && l->has_worked)
      back_off (l, end_ns);
    return;
  }
  l->has_worked |= start_ns >= l->epoch_ns;
  /* Operations of any size: with a lower limit, there may be no other ones. */
  end_long_test (l, end_ns);
  if (load (&l->is_large))
    look_for_large (l, count, end_ns);
  size = load (&l->is_large) ? l->large_bytes : l->usual_bytes;
  is_small = count < size / 2;
  if (l->kept && l->other->size_test && end_ns >= l->other->epoch_ns)
    l->other->moved[1] += count;
  if (l->size_test) {
    note_size_test (l, count <= size && !is_small, count, start_ns, end_ns);
    return;
  }
  if (count > size || (is_small && !l->has_small))
    return;
  if (l->kept || !is_about_size (l, is_small, end_ns))
    return;
  l->begun += start_ns >= l->epoch_ns;
  l->least_ns = MIN (l->least_ns, MAX (end_ns - start_ns, 1));
  if (l->begun < MAX (l->skip, 1))
    return;
  note (l, end_ns - start_ns);
  if (is_known (l, end_ns - l->epoch_ns))
    end_epoch (l, end_ns);
}
