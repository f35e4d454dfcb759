/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Fibers, their schedule and the virtual clock: see sim.h and threads.h.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include <glib.h>

#include "sim.h"
#include "threads.h"

enum {
  STACK_BYTES = 96 * 1024,
  SPURIOUS = 200,               /* one wait in so many ends without a signal */
  NO_THREAD = 10                /* one further thread in so many is refused */
};
#define STEPS_MAX UINT64_C (3000000)
#define BUSY_NS UINT64_C (200000000)    /* a thread is late by this at most */

struct fiber {
  const char *name;
  void (*run) (void *);
  void *arg;
  ucontext_t context;
  char *stack;
  char *tls;
  uint64_t priority;
  unsigned index;               /* in fibers */
  bool is_over, is_detached, is_woken;
  struct sim_place *waits_for;  /* NULL: it can run */
  uint64_t until_ns;
  struct sim_place end;
};

static struct {
  uint64_t random;
  uint64_t now_ns, steps;
  bool by_priority;
  unsigned points;              /* between two switches, about */
  GPtrArray *fibers;            /* all that have not ended */
  struct fiber *current;
  GPtrArray *stacks;            /* for later fibers */
  ucontext_t host;
} sim;

int sim_points_left;
void (*sim_on_failure) (void);

/* The copies of the thread-local variables. */
extern char tls_begin[] __asm__ ("__start_simulated_tls");
extern char tls_end[] __asm__ ("__stop_simulated_tls");

/* Random numbers: splitmix64. */

static uint64_t
next_random (void)
{
  uint64_t x = sim.random += UINT64_C (0x9e3779b97f4a7c15);

  x = (x ^ x >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C (0x94d049bb133111eb);
  return x ^ x >> 31;
}

uint64_t
sim_random (uint64_t n)
{
  return next_random () % n;
}

bool
sim_one_in (uint64_t n)
{
  return sim_random (n) == 0;
}

void
sim_fail (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  fputs ("simulation: ", stdout);
  vprintf (format, args);
  putchar ('\n');
  va_end (args);
  if (sim_on_failure)
    sim_on_failure ();
  fflush (stdout);
  _exit (1);
}

/* The schedule. */

static void
fail_hang (const char *why)
{
  for (unsigned i = 0; i < sim.fibers->len; i++) {
    const struct fiber *f = sim.fibers->pdata[i];

    printf ("  %s%s", f->name, f->waits_for ? " waits" : "");
    if (f->waits_for && f->until_ns != UINT64_MAX)
      printf (" until %" PRIu64 " us", f->until_ns / 1000);
    putchar ('\n');
  }
  sim_fail ("%s at %" PRIu64 " us", why, sim.now_ns / 1000);
}

/* The waiting fiber whose time comes first. */
static struct fiber *
first_sleeper (void)
{
  struct fiber *first = NULL;

  for (unsigned i = 0; i < sim.fibers->len; i++) {
    struct fiber *f = sim.fibers->pdata[i];

    if (f->waits_for && f->until_ns != UINT64_MAX
        && (first == NULL || f->until_ns < first->until_ns))
      first = f;
  }
  return first;
}

static void
wake (struct fiber *f)
{
  f->waits_for->waiters--;
  f->waits_for = NULL;
}

/* Moves the clock on to the time of a waiting fiber, by MOST_NS at most.
 * False: there is none.
 */
static bool
pass_time (uint64_t most_ns)
{
  struct fiber *f = first_sleeper ();

  if (f == NULL || (f->until_ns > sim.now_ns
                    && f->until_ns - sim.now_ns > most_ns))
    return false;
  sim.now_ns = MAX (sim.now_ns, f->until_ns);
  f->is_woken = false;
  wake (f);
  return true;
}

static struct fiber *
choose (void)
{
  struct fiber *best = NULL;
  unsigned n = sim.fibers->len, i = sim_random (n);

  for (unsigned k = 0; k < n; k++, i = i + 1 == n ? 0 : i + 1) {
    struct fiber *f = sim.fibers->pdata[i];

    if (f->waits_for)
      continue;
    if (!sim.by_priority)
      return f;
    if (best == NULL || f->priority > best->priority)
      best = f;
  }
  return best;
}

static void
resume (struct fiber *f)
{
  struct fiber *from = sim.current;
  size_t size = tls_end - tls_begin;

  if (f == from)
    return;
  memcpy (from->tls, tls_begin, size);
  memcpy (tls_begin, f->tls, size);
  sim.current = f;
  swapcontext (&from->context, &f->context);
}

static void
run_another (void)
{
  struct fiber *f;

  if (++sim.steps > STEPS_MAX)
    fail_hang ("does not end");
  sim.now_ns += 1 + next_random () % 1024;
  sim_points_left = 1 + sim_random (2 * sim.points);
  if (sim_one_in (64))
    pass_time (BUSY_NS);
  while ((f = choose ()) == NULL)
    if (!pass_time (UINT64_MAX))
      fail_hang ("all threads wait");
  resume (f);
}

void
sim_switch (void)
{
  if (sim.by_priority)
    sim.current->priority = next_random () >> 1;
  run_another ();
}

/* Fibers. */

static void
start (void)
{
  struct fiber *f = sim.current;

  f->run (f->arg);
  f->is_over = true;
  sim_wake (&f->end, UINT_MAX);
  g_ptr_array_remove_index_fast (sim.fibers, f->index);
  if (f->index < sim.fibers->len)
    ((struct fiber *) sim.fibers->pdata[f->index])->index = f->index;
  if (sim.fibers->len == 0)
    setcontext (&sim.host);
  run_another ();               /* it is in no list: never resumed */
  abort ();
}

static GPtrArray *dead;         /* whose stacks can be reused at the next spawn
                                 * of another one */

static void
release (struct fiber *f)
{
  g_ptr_array_add (sim.stacks, f->stack);
  g_free (f->tls);
  g_free (f);
}

struct fiber *
sim_spawn (const char *name, void (*run) (void *), void *arg)
{
  struct fiber *f = g_new0 (struct fiber, 1);

  for (unsigned i = 0; i < dead->len; i++) {
    struct fiber *d = dead->pdata[i];

    if (!d->is_over || d == sim.current)
      continue;
    release (d);
    g_ptr_array_remove_index_fast (dead, i--);
  }
  f->name = name;
  f->run = run;
  f->arg = arg;
  f->tls = g_malloc0 (tls_end - tls_begin + 1);
  f->stack = sim.stacks->len > 0
    ? g_ptr_array_steal_index_fast (sim.stacks, sim.stacks->len - 1)
    : g_malloc (STACK_BYTES);
  f->priority = next_random ();
  f->index = sim.fibers->len;
  g_ptr_array_add (sim.fibers, f);
  getcontext (&f->context);
  f->context.uc_stack.ss_sp = f->stack;
  f->context.uc_stack.ss_size = STACK_BYTES;
  makecontext (&f->context, start, 0);
  return f;
}

void
sim_join (struct fiber *f)
{
  while (!f->is_over)
    sim_wait (&f->end, UINT64_MAX);
  release (f);
}

void
sim_detach (struct fiber *f)
{
  g_ptr_array_add (dead, f);
}

void
sim_run (uint64_t seed, void (*main) (void *), void *arg)
{
  static char *main_tls;
  struct fiber *first;

  sim.random = seed;
  sim.now_ns = UINT64_C (1000000000);
  sim.steps = 0;
  sim.by_priority = sim_one_in (2);
  sim.points = 1 << sim_random (7);
  if (sim.fibers == NULL) {
    sim.fibers = g_ptr_array_new ();
    sim.stacks = g_ptr_array_new ();
    dead = g_ptr_array_new ();
    main_tls = g_malloc0 (tls_end - tls_begin + 1);
  }
  sim.current = first = sim_spawn ("main", main, arg);
  sim_points_left = 1;
  memset (tls_begin, 0, tls_end - tls_begin);
  swapcontext (&sim.host, &sim.current->context);
  /* Not the current fiber: a detached one may end last. */
  release (first);
  sim.current = NULL;
  (void) main_tls;
}

/* Time. */

uint64_t
sim_now_ns (void)
{
  return sim.now_ns++;
}

void
sim_sleep (uint64_t ns)
{
  struct sim_place nowhere = { 0 };

  sim_wait (&nowhere, sim.now_ns + ns);
}

/* Waiting. */

bool
sim_wait (struct sim_place *p, uint64_t until_ns)
{
  struct fiber *f = sim.current;

  p->waiters++;
  f->waits_for = p;
  f->until_ns = until_ns;
  f->is_woken = true;
  run_another ();
  return f->is_woken;
}

void
sim_wake (struct sim_place *p, unsigned n)
{
  unsigned all = sim.fibers->len, i;

  if (p->waiters == 0)
    return;
  i = sim_random (all);
  for (unsigned k = 0; k < all && n > 0 && p->waiters > 0;
       k++, i = i + 1 == all ? 0 : i + 1) {
    struct fiber *f = sim.fibers->pdata[i];

    if (f->waits_for == p) {
      wake (f);
      n--;
    }
  }
}

void
sim_mutex_lock (struct sim_mutex *m)
{
  sim_point ();
  if (m->owner == sim.current)
    sim_fail ("%s locks a mutex twice", sim.current->name);
  while (m->owner)
    sim_wait (&m->place, UINT64_MAX);
  m->owner = sim.current;
}

bool
sim_mutex_try_lock (struct sim_mutex *m)
{
  sim_point ();
  if (m->owner)
    return false;
  m->owner = sim.current;
  return true;
}

static void
unlock (struct sim_mutex *m)
{
  if (m->owner != sim.current)
    sim_fail ("%s unlocks a mutex that it does not hold", sim.current->name);
  m->owner = NULL;
  sim_wake (&m->place, UINT_MAX);
}

void
sim_mutex_unlock (struct sim_mutex *m)
{
  unlock (m);
  sim_point ();
}

bool
simulate_cond_wait (struct sim_place *p, pthread_mutex_t *m, uint64_t until_ns)
{
  bool is_in_time = true;

  unlock (simulate_mutex (m));
  if (sim_one_in (SPURIOUS))
    sim_switch ();
  else
    is_in_time = sim_wait (p, until_ns);
  sim_mutex_lock (simulate_mutex (m));
  return is_in_time;
}

/* Threads of the filter. */

struct thread {
  struct fiber *fiber;
  void *(*run) (void *);
  void *arg;
};

static void
run_thread (void *vt)
{
  struct thread *t = vt;

  t->run (t->arg);
}

int
simulate_thread_create (pthread_t *id, void *(*run) (void *), void *arg)
{
  struct thread *t = g_new0 (struct thread, 1);

  t->run = run;
  t->arg = arg;
  t->fiber = sim_spawn ("thread", run_thread, t);
  *id = (pthread_t) t;
  return 0;
}

int
simulate_thread_join (pthread_t id)
{
  struct thread *t = (struct thread *) id;

  sim_join (t->fiber);
  g_free (t);
  return 0;
}

struct simulated_pool {
  GFunc run;
  gpointer user_data;
  GQueue queue;
  struct sim_place pushed;
  bool is_ending;
  unsigned threads, max_threads;
  GPtrArray *fibers;
};

static void
run_worker (void *vp)
{
  struct simulated_pool *p = vp;

  for (;;) {
    gpointer data;

    if (p->threads > p->max_threads) {
      p->threads--;
      return;
    }
    data = g_queue_pop_head (&p->queue);
    if (data)
      p->run (data, p->user_data);
    else if (p->is_ending)
      return;
    else
      sim_wait (&p->pushed, UINT64_MAX);
  }
}

struct simulated_pool *
simulate_pool_new (GFunc run, gpointer user_data, unsigned threads)
{
  struct simulated_pool *p = g_new0 (struct simulated_pool, 1);

  p->run = run;
  p->user_data = user_data;
  p->fibers = g_ptr_array_new ();
  simulate_pool_set_max (p, threads, NULL);
  return p;
}

void
simulate_pool_set_max (struct simulated_pool *p, unsigned threads,
                       GError **error)
{
  p->max_threads = threads;
  for (; p->threads < threads; p->threads++) {
    if (error && sim_one_in (NO_THREAD)) {
      g_set_error_literal (error, G_THREAD_ERROR, G_THREAD_ERROR_AGAIN,
                           "no thread");
      return;
    }
    g_ptr_array_add (p->fibers, sim_spawn ("worker", run_worker, p));
  }
}

void
simulate_pool_push (struct simulated_pool *p, gpointer data)
{
  g_queue_push_tail (&p->queue, data);
  sim_wake (&p->pushed, 1);
  sim_point ();
}

void
simulate_pool_free (struct simulated_pool *p)
{
  p->is_ending = true;
  sim_wake (&p->pushed, UINT_MAX);
  for (unsigned i = 0; i < p->fibers->len; i++)
    sim_join (p->fibers->pdata[i]);
  g_ptr_array_unref (p->fibers);
  g_free (p);
}
