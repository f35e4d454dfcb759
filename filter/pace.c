/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Pace and depth: see pace.h.
 */
#include "pace.h"

#define load(p) atomic_load_explicit (p, memory_order_relaxed)
#define store(p, v) atomic_store_explicit (p, v, memory_order_relaxed)

void
pace_note (struct pace *p, uint64_t took_ns, uint32_t count)
{
  uint64_t copy_ns = PACE_COPY_NS + count;
  unsigned score = load (&p->score), more = load (&p->known) ? PACE_SLOW : PACE_MOST;

  /* Written only when it changes: a device that copies has this line in every
   * processor's cache.
   */
  if (took_ns <= copy_ns) {
    if (score > 0)
      store (&p->score, score - 1);
  }
  else {
    store (&p->wait_ns, took_ns - copy_ns);
    store (&p->score, score + more < PACE_MOST ? score + more : PACE_MOST);
  }
  if (!load (&p->known))
    store (&p->known, true);
}

uint64_t
pace_wait_ns (struct pace *p)
{
  return load (&p->score) >= PACE_WAITS ? load (&p->wait_ns) : 0;
}

void
depth_begin (struct depth *d, unsigned more, uint64_t now_ns, uint64_t epoch_ns)
{
  unsigned n = atomic_fetch_add_explicit (&d->in_flight, more, memory_order_relaxed) + more;
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
