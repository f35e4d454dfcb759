/* SPDX-License-Identifier: BSD-3-Clause */
/* Both sides of the gate, see gate.h.
 *
 * All state is in the mapping, under its one lock; changes are broadcast on its one condition.
 * The lock is robust: a test program that dies with it does not take the server along.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <glib.h>

#include "gate.h"

#define OPS 65536U              /* a ring: a log of more operations forgets the oldest */
#define RULES 64

/* Far beyond what a loaded machine needs, in valgrind too: it only ends a hang. */
#define DEADLINE_SECONDS 60

struct rule {
  bool active;
  bool hold;                    /* else fail */
  unsigned kinds;
  uint64_t offset;
  uint64_t length;
  int error;
  int times;                    /* failures left, -1 = any number */
  unsigned held;
  unsigned passes;              /* operations that gate_release_some lets go, not yet gone */
};

struct entry {
  struct gate_op op;
  int rule;                     /* that holds it now, or -1 */
};

struct shared {
  pid_t owner;                  /* constant: the test program */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  uint64_t counter;
  unsigned next_op;
  unsigned first_op;            /* the log starts here */
  unsigned violations;
  unsigned closed;              /* connections */
  struct gate_geometry geometry;
  unsigned under_way[GATE_ANY + 1], peak[GATE_ANY + 1];
  struct rule rules[RULES];
  struct entry ops[OPS];
};

struct gate {
  struct shared *s;
};

static void
lock (struct gate *g)
{
  int err = pthread_mutex_lock (&g->s->lock);

  if (err == EOWNERDEAD)
    err = pthread_mutex_consistent (&g->s->lock);
  g_assert_cmpint (err, ==, 0);
}

static void
unlock (struct gate *g)
{
  pthread_mutex_unlock (&g->s->lock);
}

static void
broadcast_locked (struct gate *g)
{
  pthread_cond_broadcast (&g->s->changed);
}

/* Waits for a change, at most a second, so that a lost wakeup costs no more. */
static void
wait_locked (struct gate *g)
{
  struct timespec until;
  int err;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec++;
  err = pthread_cond_timedwait (&g->s->changed, &g->s->lock, &until);
  if (err == EOWNERDEAD)
    pthread_mutex_consistent (&g->s->lock);
}

static struct gate *
map (const char *path, bool create)
{
  struct gate *g;
  void *p;
  int fd = open (path, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0), 0600);

  if (fd == -1 || (create && ftruncate (fd, sizeof *g->s) == -1)) {
    perror (path);
    if (fd != -1)
      close (fd);
    return NULL;
  }
  p = mmap (NULL, sizeof *g->s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close (fd);
  if (p == MAP_FAILED) {
    perror (path);
    return NULL;
  }
  g = g_new0 (struct gate, 1);
  g->s = p;
  return g;
}

struct gate *
gate_create (const char *path)
{
  struct gate *g = map (path, true);
  pthread_mutexattr_t mutex_attr;
  pthread_condattr_t cond_attr;

  g_assert_nonnull (g);
  g->s->owner = getpid ();
  pthread_mutexattr_init (&mutex_attr);
  pthread_mutexattr_setpshared (&mutex_attr, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust (&mutex_attr, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init (&g->s->lock, &mutex_attr);
  pthread_mutexattr_destroy (&mutex_attr);
  pthread_condattr_init (&cond_attr);
  pthread_condattr_setpshared (&cond_attr, PTHREAD_PROCESS_SHARED);
  pthread_condattr_setclock (&cond_attr, CLOCK_MONOTONIC);
  pthread_cond_init (&g->s->changed, &cond_attr);
  pthread_condattr_destroy (&cond_attr);
  return g;
}

struct gate *
gate_attach (const char *path)
{
  return map (path, false);
}

void
gate_free (struct gate *g)
{
  if (!g)
    return;
  munmap (g->s, sizeof *g->s);
  g_free (g);
}

static bool
touches (unsigned kinds, uint64_t offset, uint64_t length, const struct gate_op *op)
{
  if (!(kinds & op->kind))
    return false;
  if (op->kind == GATE_FLUSH)
    return true;
  return op->offset < offset + length && offset < op->offset + op->count;
}

/* The rule that matches first, or -1. */
static int
find_rule_locked (struct gate *g, bool hold, const struct gate_op *op)
{
  for (int i = 0; i < RULES; i++) {
    const struct rule *r = &g->s->rules[i];

    if (r->active && r->hold == hold && touches (r->kinds, r->offset, r->length, op))
      return i;
  }
  return -1;
}

static int
add_rule (struct gate *g, const struct rule *rule)
{
  int i;

  lock (g);
  for (i = 0; i < RULES && (g->s->rules[i].active || g->s->rules[i].held); i++)
    ;
  g_assert_cmpint (i, <, RULES);
  g->s->rules[i] = *rule;
  unlock (g);
  return i;
}

int
gate_hold (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length)
{
  return add_rule (g, &(struct rule) { .active = true, .hold = true, .kinds = kinds,
                                       .offset = offset, .length = length });
}

int
gate_fail (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length, int error, int times)
{
  return add_rule (g, &(struct rule) { .active = true, .kinds = kinds, .offset = offset,
                                       .length = length, .error = error, .times = times });
}

void
gate_release (struct gate *g, int rule)
{
  lock (g);
  g->s->rules[rule].active = false;
  broadcast_locked (g);
  unlock (g);
}

void
gate_release_some (struct gate *g, int rule, unsigned n)
{
  lock (g);
  g->s->rules[rule].passes += n;
  broadcast_locked (g);
  unlock (g);
}

void
gate_release_all (struct gate *g)
{
  lock (g);
  for (int i = 0; i < RULES; i++)
    g->s->rules[i].active = false;
  broadcast_locked (g);
  unlock (g);
}

unsigned
gate_held (struct gate *g, int rule)
{
  unsigned n;

  lock (g);
  n = g->s->rules[rule].held;
  unlock (g);
  return n;
}

/* Where the log starts: at what gate_forget left, or where the ring was overwritten. */
static unsigned
first_locked (struct gate *g)
{
  const struct shared *s = g->s;

  return s->next_op - s->first_op > OPS ? s->next_op - OPS : s->first_op;
}

static unsigned
count_locked (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length, bool ended)
{
  const struct shared *s = g->s;
  unsigned n = 0;

  for (unsigned i = first_locked (g); i != s->next_op; i++) {
    const struct gate_op *op = &s->ops[i % OPS].op;

    n += touches (kinds, offset, length, op) && (!ended || op->end);
  }
  return n;
}

static void
print_locked (struct gate *g)
{
  const struct shared *s = g->s;

  fprintf (stderr, "# gate: rules\n");
  for (int i = 0; i < RULES; i++) {
    const struct rule *r = &s->rules[i];

    if (r->active || r->held)
      fprintf (stderr, "#   %d: %s kinds %#x at %#" PRIx64 "+%#" PRIx64 "%s, %u held\n", i,
               r->hold ? "hold" : "fail", r->kinds, r->offset, r->length,
               r->active ? "" : " (released)", r->held);
  }
  fprintf (stderr, "# gate: operations (start end kind flags connection offset+count error)\n");
  for (unsigned i = s->next_op - first_locked (g) > 200 ? s->next_op - 200 : first_locked (g);
       i != s->next_op; i++) {
    const struct gate_op *op = &s->ops[i % OPS].op;

    fprintf (stderr, "#   %" PRIu64 " %" PRIu64 " kind %#x flags %#x c%u %#" PRIx64 "+%#" PRIx64
             " %d\n", op->start, op->end, op->kind, op->flags, op->connection, op->offset,
             op->count, op->error);
  }
}

void
gate_print (struct gate *g)
{
  lock (g);
  print_locked (g);
  unlock (g);
}

static void
check_deadline_locked (struct gate *g, gint64 start_us, const char *what)
{
  if (g_get_monotonic_time () - start_us < (gint64) DEADLINE_SECONDS * G_USEC_PER_SEC)
    return;
  fprintf (stderr, "# gate: waited in vain for %s\n", what);
  print_locked (g);
  abort ();
}

void
gate_wait_held (struct gate *g, int rule, unsigned n)
{
  gint64 start_us = g_get_monotonic_time ();
  g_autofree char *what = g_strdup_printf ("%u held by rule %d", n, rule);

  lock (g);
  while (g->s->rules[rule].held < n) {
    wait_locked (g);
    check_deadline_locked (g, start_us, what);
  }
  unlock (g);
}

unsigned
gate_started (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length)
{
  unsigned n;

  lock (g);
  n = count_locked (g, kinds, offset, length, false);
  unlock (g);
  return n;
}

unsigned
gate_ended (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length)
{
  unsigned n;

  lock (g);
  n = count_locked (g, kinds, offset, length, true);
  unlock (g);
  return n;
}

static void
wait_count (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length, unsigned n,
            bool ended)
{
  gint64 start_us = g_get_monotonic_time ();
  g_autofree char *what =
    g_strdup_printf ("%u of kinds %#x %s at %#" PRIx64 "+%#" PRIx64, n, kinds,
                     ended ? "ended" : "started", offset, length);

  lock (g);
  while (count_locked (g, kinds, offset, length, ended) < n) {
    wait_locked (g);
    check_deadline_locked (g, start_us, what);
  }
  unlock (g);
}

void
gate_wait_started (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length, unsigned n)
{
  wait_count (g, kinds, offset, length, n, false);
}

void
gate_wait_ended (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length, unsigned n)
{
  wait_count (g, kinds, offset, length, n, true);
}

unsigned
gate_log (struct gate *g, unsigned kinds, uint64_t offset, uint64_t length,
          struct gate_op *ops, unsigned max)
{
  const struct shared *s = g->s;
  unsigned n = 0;

  lock (g);
  for (unsigned i = first_locked (g); i != s->next_op; i++) {
    const struct gate_op *op = &s->ops[i % OPS].op;

    if (!touches (kinds, offset, length, op))
      continue;
    if (n < max)
      ops[n] = *op;
    n++;
  }
  unlock (g);
  return n;
}

void
gate_forget (struct gate *g)
{
  lock (g);
  g->s->first_op = g->s->next_op;
  g->s->violations = 0;
  for (unsigned i = 0; i <= GATE_ANY; i++)
    g->s->peak[i] = g->s->under_way[i];
  unlock (g);
}

uint64_t
gate_now (struct gate *g)
{
  uint64_t now;

  lock (g);
  now = ++g->s->counter;
  unlock (g);
  return now;
}

unsigned
gate_violations (struct gate *g)
{
  unsigned n;

  lock (g);
  n = g->s->violations;
  unlock (g);
  return n;
}

unsigned
gate_peak (struct gate *g, unsigned kind)
{
  unsigned n;

  lock (g);
  n = g->s->peak[kind];
  unlock (g);
  return n;
}

void
gate_set_geometry (struct gate *g, struct gate_geometry geometry)
{
  lock (g);
  g->s->geometry = geometry;
  unlock (g);
}

struct gate_geometry
gate_geometry (struct gate *g)
{
  struct gate_geometry geometry;

  lock (g);
  geometry = g->s->geometry;
  unlock (g);
  return geometry;
}

unsigned
gate_closed (struct gate *g)
{
  unsigned n;

  lock (g);
  n = g->s->closed;
  unlock (g);
  return n;
}

void
gate_count_closed (struct gate *g)
{
  lock (g);
  g->s->closed++;
  broadcast_locked (g);
  unlock (g);
}

unsigned
gate_op_start (struct gate *g, unsigned kind, unsigned flags, unsigned connection,
               uint64_t offset, uint64_t count)
{
  struct shared *s = g->s;
  unsigned i;

  lock (g);
  i = s->next_op++;
  s->ops[i % OPS] = (struct entry) {
    .op = { .kind = kind, .flags = flags, .connection = connection, .offset = offset,
            .count = count, .start = ++s->counter },
    .rule = -1,
  };
  s->under_way[kind]++;
  s->peak[kind] = MAX (s->peak[kind], s->under_way[kind]);
  broadcast_locked (g);
  unlock (g);
  return i;
}

/* Nobody will release anything any more: then nothing is held. */
static bool
is_orphan (struct gate *g)
{
  return kill (g->s->owner, 0) == -1 && errno == ESRCH;
}

/* Whether one that is held longer waits for the same rule. */
static bool
is_longest_held_locked (struct gate *g, unsigned op, int rule)
{
  for (unsigned i = op - MIN (op, OPS - 1); i != op; i++)
    if (g->s->ops[i % OPS].rule == rule)
      return false;
  return true;
}

int
gate_op_pass (struct gate *g, unsigned op, bool *held)
{
  struct shared *s = g->s;
  struct entry *e = &s->ops[op % OPS];
  int i, error = 0;

  *held = false;
  lock (g);
  i = find_rule_locked (g, true, &e->op);
  if (i >= 0) {
    struct rule *r = &s->rules[i];

    *held = true;
    e->rule = i;
    r->held++;
    broadcast_locked (g);
    while (r->active && !(r->passes && is_longest_held_locked (g, op, i)) && !is_orphan (g))
      wait_locked (g);
    if (r->passes)
      r->passes--;
    r->held--;
    e->rule = -1;
    broadcast_locked (g);
  }
  i = find_rule_locked (g, false, &e->op);
  if (i >= 0) {
    struct rule *r = &s->rules[i];

    error = r->error;
    if (r->times > 0 && --r->times == 0)
      r->active = false;
  }
  unlock (g);
  return error;
}

void
gate_op_end (struct gate *g, unsigned op, int error)
{
  struct gate_op *o = &g->s->ops[op % OPS].op;

  lock (g);
  o->error = error;
  o->end = ++g->s->counter;
  g->s->under_way[o->kind]--;
  broadcast_locked (g);
  unlock (g);
}

void
gate_violation (struct gate *g)
{
  lock (g);
  g->s->violations++;
  unlock (g);
}
