/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The limit: see limit.h.
 */
#include <errno.h>

#include <glib.h>

#include "limit.h"

enum { MIN_SAMPLES = 8 };
/* Long enough that a delay of the scheduler changes no mean. */
#define EPOCH_MIN_NS UINT64_C (5000000)
#define CEILING_NS UINT64_C (60000000000)

#define load(p) atomic_load_explicit (p, memory_order_relaxed)
#define store(p, v) atomic_store_explicit (p, v, memory_order_relaxed)

void
limit_init (struct limit *l, bool adapts, unsigned most, uint32_t whole_bytes)
{
  *l = (struct limit) { .most = most, .whole_bytes = whole_bytes };
  lock_init_ranked (&l->lock, LOCK_LEAF);
  store (&l->value, adapts ? MIN (LIMIT_START, most) : most);
  store (&l->reason, adapts ? LIMIT_STARTS : LIMIT_IS_FIXED);
}

void
limit_destroy (struct limit *l)
{
  lock_destroy (&l->lock);
}

unsigned
limit_value (struct limit *l)
{
  return load (&l->value);
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
  value = CLAMP (value, MIN (LIMIT_LEAST, l->most), l->most);
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
cut (struct limit *l, uint64_t mean_ns)
{
  unsigned value = load (&l->value);
  uint64_t served = value * l->base_ns / mean_ns;

  l->streak = 0;
  l->before = value;
  l->before_ns = mean_ns;
  set (l, served + served / 8 + 1, LIMIT_WAS_CUT);
}

/* The epoch after a cut has ended.  A queue: a third of the time above the base
 * has gone, at least.
 */
static void
judge_cut (struct limit *l, uint64_t mean_ns)
{
  if (mean_ns + (l->before_ns - l->base_ns) / 3 > l->before_ns) {
    l->base_ns = MIN (mean_ns, l->before_ns);
    set (l, l->before, LIMIT_STAYS);
  }
  l->before = 0;
}

static void
note_base (struct limit *l, uint64_t mean_ns)
{
  if (l->base_ns == 0)
    l->base_ns = mean_ns;
  else if (mean_ns < l->base_ns)
    l->base_ns -= (l->base_ns - mean_ns + 3) / 4;
}

static void
begin_epoch (struct limit *l, uint64_t now_ns)
{
  l->epoch_ns = now_ns;
  l->sum_ns = l->n = 0;
  store (&l->hit, false);
}

static void
end_epoch (struct limit *l, uint64_t now_ns)
{
  uint64_t mean_ns = l->sum_ns / l->n;

  note_base (l, mean_ns);
  if (l->before)
    judge_cut (l, mean_ns);
  else if (load (&l->hit)) {
    if (mean_ns * 20 <= l->base_ns * 23)
      grow (l, now_ns);
    else if (mean_ns * 10 > l->base_ns * 13)
      cut (l, mean_ns);
    else
      set (l, load (&l->value), LIMIT_STAYS);
  }
  begin_epoch (l, now_ns);
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
  unsigned value = load (&l->value);

  l->ceiling = MAX (value - value / 4, LIMIT_LEAST);
  l->ceiling_until_ns = now_ns + CEILING_NS;
  l->streak = l->before = 0;
  set (l, value / 2, LIMIT_HAD_ERROR);
  begin_epoch (l, now_ns);
}

void
limit_note (struct limit *l, uint32_t count, uint64_t start_ns,
            uint64_t end_ns, int err)
{
  if (load (&l->reason) == LIMIT_IS_FIXED)
    return;
  if (err ? !is_about_load (err)
      : count < l->whole_bytes / 2 || count > l->whole_bytes)
    return;
  LOCK_IN_SCOPE (&l->lock);
  if (start_ns < l->epoch_ns)
    return;
  if (err) {
    back_off (l, end_ns);
    return;
  }
  l->sum_ns += end_ns - start_ns;
  l->n++;
  if (l->n >= MAX (load (&l->value) / 2, MIN_SAMPLES)
      && end_ns >= l->epoch_ns + EPOCH_MIN_NS)
    end_epoch (l, end_ns);
}
