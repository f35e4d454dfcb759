/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Threads and time of a simulation.
 *
 * All threads are fibers on one thread of the process, and one of them runs at
 * a time.  A seed decides which one runs next, wherever a thread could lose the
 * processor: at each lock, wait, wake-up and atomic operation.  The clock is
 * virtual.  It moves on when all fibers wait, or earlier by chance, as on a
 * busy machine.  So the same seed always gives the same run.
 *
 * Two kinds of schedule, chosen by the seed: each switch picks a fiber at
 * random, or the fiber with the highest priority runs and priorities change now
 * and then.  The second kind finds errors that need one very slow thread.
 *
 * A simulation ends its process if it fails: if all fibers wait for each other,
 * or if it takes too many steps.
 */
#ifndef SIMULATE_SIM_H
#define SIMULATE_SIM_H

#include <stdbool.h>
#include <stdint.h>

struct fiber;

/* Runs MAIN as the first fiber, until it returns.  No other fiber may be left.
 */
extern void sim_run (uint64_t seed, void (*main) (void *), void *arg);

extern struct fiber *sim_spawn (const char *name, void (*run) (void *),
                                void *arg);
extern void sim_join (struct fiber *);
/* Nothing joins it. */
extern void sim_detach (struct fiber *);

/* Nanoseconds. */
extern uint64_t sim_now_ns (void);
extern void sim_sleep (uint64_t ns);

/* From the seed: 0 to N - 1, and true once in N times. */
extern uint64_t sim_random (uint64_t n);
extern bool sim_one_in (uint64_t n);

/* Ends the process: prints the message, then calls sim_on_failure. */
extern void sim_fail (const char *format, ...)
  __attribute__ ((noreturn, format (printf, 1, 2)));
extern void (*sim_on_failure) (void);

/* Another fiber may run here. */
extern int sim_points_left;
extern void sim_switch (void);
static inline void
sim_point (void)
{
  if (--sim_points_left <= 0)
    sim_switch ();
}

/* A place where fibers wait.  Zeroed memory is one without waiters. */
struct sim_place {
  unsigned waiters;
};
/* Returns false if UNTIL_NS has passed; UINT64_MAX: never. */
extern bool sim_wait (struct sim_place *, uint64_t until_ns);
/* Wakes up to N of the waiters, in any order. */
extern void sim_wake (struct sim_place *, unsigned n);

/* A mutex.  Zeroed memory is one that is not locked. */
struct sim_mutex {
  struct fiber *owner;
  struct sim_place place;
};
extern void sim_mutex_lock (struct sim_mutex *);
extern bool sim_mutex_try_lock (struct sim_mutex *);
extern void sim_mutex_unlock (struct sim_mutex *);

#endif
