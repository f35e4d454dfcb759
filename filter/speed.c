/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The speed of a device, the depth of a client: see speed.h.
 */
#include "speed.h"

#define load(p) atomic_load_explicit (p, memory_order_relaxed)
#define store(p, v) atomic_store_explicit (p, v, memory_order_relaxed)

void
speed_note (struct speed *s, uint64_t took_ns, uint32_t count)
{
  uint64_t copy_ns = SPEED_COPY_NS + count, mean_ns;
  unsigned score = load (&s->score);
  unsigned more = load (&s->known) ? SPEED_SLOW : SPEED_MOST;

  /* Written only when it changes: a device that copies has this line in every
   * processor's cache.
   */
  if (took_ns <= copy_ns) {
    if (score > 0)
      store (&s->score, score - 1);
  }
  else {
    mean_ns = load (&s->wait_ns);
    if (mean_ns == 0)
      mean_ns = took_ns - copy_ns;
    store (&s->wait_ns, mean_ns - mean_ns / 8 + (took_ns - copy_ns) / 8);
    store (&s->score, score + more < SPEED_MOST ? score + more : SPEED_MOST);
  }
  if (!load (&s->known))
    store (&s->known, true);
}

uint64_t
speed_wait_ns (struct speed *s)
{
  return load (&s->score) >= SPEED_WAITS ? load (&s->wait_ns) : 0;
}

bool
speed_is_known (struct speed *s)
{
  return load (&s->known);
}

void
depth_begin (struct depth *d, unsigned more, uint64_t now_ns,
             uint64_t epoch_ns)
{
  unsigned n = more + atomic_fetch_add_explicit (&d->in_flight, more,
                                                 memory_order_relaxed);
  uint64_t start = load (&d->epoch_ns);

  if (now_ns > start && now_ns - start > epoch_ns) {
    store (&d->epoch_ns, now_ns);
    store (&d->last_peak, now_ns - start > 2 * epoch_ns ? n : load (&d->peak));
    store (&d->peak, n);
  }
  else if (n > load (&d->peak))
    store (&d->peak, n);
}

void
depth_end (struct depth *d, unsigned more)
{
  atomic_fetch_sub_explicit (&d->in_flight, more, memory_order_relaxed);
}

unsigned
depth_peak (struct depth *d)
{
  unsigned a = load (&d->peak), b = load (&d->last_peak);

  return a > b ? a : b;
}
