/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Models of devices, in virtual time, for test-limit.  Each one decides when an
 * operation ends at the moment when it begins: all queues are in order.
 *
 * Not its job: the client, and how many operations it keeps in flight.
 */
#ifndef TESTS_LIMIT_DEVICE_H
#define TESTS_LIMIT_DEVICE_H

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include <glib.h>

#define MS_NS UINT64_C (1000000)
#define S_NS (1000 * MS_NS)

enum {
  SERVERS_MAX = 64, OPERATION_BYTES = 128 * 1024,
  LARGE_BYTES = 8 * OPERATION_BYTES
};

/* What a device is like.  A field that is 0 does not apply. */
struct device {
  double latency_ms;
  unsigned servers;             /* operations at a time; others queue */
  double mb_per_s;              /* shared, before the latency */
  bool duplex;                  /* mb_per_s in each direction.  The second
                                 * client writes: its data goes before the
                                 * latency.  The first one reads: its data comes
                                 * after it.  All operations wait in both
                                 * queues. */
  double per_s;                 /* operations per second, after a burst */
  unsigned burst;
  unsigned refuses_above;       /* in flight: an error in a quarter of the
                                 * latency */
  double cv;                    /* the latency is lognormal: stddev / mean */
  double late;                  /* share of operations 5 to 20 ms late */
};

struct device_state {
  uint64_t seed;
  uint64_t server_free_ns[SERVERS_MAX], pipe_free_ns, back_free_ns, token_ns;
  unsigned in_flight;
};

/* splitmix64, by Sebastiano Vigna. */
static inline uint64_t
random_next (uint64_t *seed)
{
  uint64_t z = *seed += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* In (0, 1]. */
static inline double
random_unit (uint64_t *seed)
{
  return ((random_next (seed) >> 11) + 1) * 0x1p-53;
}

/* Lognormal with mean 1. */
static inline double
random_factor (uint64_t *seed, double cv)
{
  double variance = log (1 + cv * cv);
  double normal = sqrt (-2 * log (random_unit (seed)))
    * cos (2 * G_PI * random_unit (seed));

  return exp (sqrt (variance) * normal - variance / 2);
}

static inline unsigned
device_first_free (const struct device *d, const struct device_state *s)
{
  unsigned first = 0;

  for (unsigned i = 1; i < d->servers; i++)
    if (s->server_free_ns[i] < s->server_free_ns[first])
      first = i;
  return first;
}

static inline uint64_t
device_pipe_ns (const struct device *d, uint32_t bytes)
{
  return d->mb_per_s ? bytes * 1000.0 / d->mb_per_s : 0;
}

/* The mean time of an operation that has the device to itself. */
static inline uint64_t
device_alone_ns (const struct device *d)
{
  return d->latency_ms * MS_NS + device_pipe_ns (d, OPERATION_BYTES);
}

/* How long one that begins at NOW_NS would wait for others. */
static inline uint64_t
device_wait_ns (const struct device *d, const struct device_state *s,
                uint64_t now_ns)
{
  uint64_t start_ns = now_ns, latency_ns = d->latency_ms * MS_NS;

  if (d->per_s && s->token_ns > now_ns + d->burst * (S_NS / d->per_s))
    start_ns = s->token_ns - d->burst * (S_NS / d->per_s);
  if (d->servers)
    start_ns = MAX (start_ns, s->server_free_ns[device_first_free (d, s)]);
  if (d->mb_per_s)
    start_ns = MAX (start_ns, s->pipe_free_ns);
  if (d->duplex)
    start_ns = MAX (start_ns + latency_ns, s->back_free_ns) - latency_ns;
  return start_ns - now_ns;
}

/* An operation begins at NOW_NS.  Returns when it ends. */
static inline uint64_t
device_begin (const struct device *d, struct device_state *s, uint64_t now_ns,
              unsigned client, uint32_t bytes, int *err)
{
  uint64_t latency_ns = d->latency_ms * MS_NS;
  uint64_t pipe_ns = device_pipe_ns (d, bytes);
  uint64_t start_ns = now_ns + device_wait_ns (d, s, now_ns);

  *err = 0;
  if (d->refuses_above && s->in_flight >= d->refuses_above) {
    *err = EAGAIN;
    s->in_flight++;
    return now_ns + latency_ns / 4;
  }
  s->in_flight++;
  latency_ns *= 0.98 + 0.04 * random_unit (&s->seed);
  if (d->cv)
    latency_ns *= random_factor (&s->seed, d->cv);
  if (d->late && random_unit (&s->seed) < d->late)
    latency_ns += 5 * MS_NS + 15 * MS_NS * random_unit (&s->seed);
  if (d->per_s)
    s->token_ns = MAX (s->token_ns, now_ns) + S_NS / d->per_s;
  if (d->servers)
    s->server_free_ns[device_first_free (d, s)] = start_ns + latency_ns;
  if (d->duplex && client == 0)
    return s->back_free_ns = start_ns + latency_ns + pipe_ns;
  if (d->duplex) {
    uint64_t there_ns = MAX (now_ns, s->pipe_free_ns) + pipe_ns;

    s->pipe_free_ns = there_ns;
    return MAX (there_ns + latency_ns, s->back_free_ns);
  }
  if (d->mb_per_s)
    s->pipe_free_ns = start_ns += pipe_ns;
  return start_ns + latency_ns;
}

static inline void
device_end (struct device_state *s)
{
  s->in_flight--;
}

#endif /* TESTS_LIMIT_DEVICE_H */
