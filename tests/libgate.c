/* SPDX-License-Identifier: BSD-3-Clause */

/* The gate, see gate.h.
 *
 * struct gate has no pointers, so that two processes can map it.  All of it is
 * under its one lock, and each change is broadcast on its one condition.  The
 * lock is robust: a test program that dies with it leaves the server running.
 *
 * An operation goes through these states:
 *
 *   started   in the log and in RUNNING; gate_op_start
 *   held      HELD_BY names a rule, which counts it; within gate_op_pass
 *   passed    no rule holds it; gate_op_pass has returned
 *   ended     END is set, and it has left RUNNING; gate_op_end
 *
 * Nothing here calls the filter or nbdkit: the file is linked with test
 * programs and with test plugins.
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

enum {
  OPS = 65536,                  /* a longer log forgets the oldest */
  PRINTED_OPS = 200,
  RUNNING = 4096,
  RULES = 64,                   /* bits of entry.passed */
  DEADLINE_SECONDS = 60         /* ends a hang; a busy machine needs less */
};

enum { NO_RULE = -1 };

#ifdef ASYNCPOOL_DEBUG
/* For plugins, which do not have the filter's (lock.h). */
__attribute__ ((weak)) __thread unsigned lock_held;
#endif

struct rule {
  bool is_active, holds;        /* else it fails */
  unsigned kinds;
  uint64_t offset, count;
  uint64_t since;               /* the clock when it was made */
  unsigned skip;                /* operations that do not fail first */
  int err, times;               /* times: failures left, or -1 */
  unsigned held, left;          /* held now; held and gone on since */
};

struct entry {
  struct gate_op op;
  int held_by;                  /* a rule, or NO_RULE */
  uint64_t passed;              /* rules that have let it go on, as bits */
};

struct gate {
  /* Constant. */
  pid_t owner;                  /* the test program */
  bool is_mapped;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Under the lock. */
  uint64_t clock;
  unsigned n_ops, forgotten;    /* the log is [forgotten, n_ops) */
  unsigned n_running, peak, collisions;
  unsigned some_kinds, some_per_mille;
  uint64_t some_state;
  unsigned violations, closed;
  struct gate_geometry geometry;
  struct rule rules[RULES];
  unsigned running[RUNNING];    /* operations, in the order of their starts */
  struct entry ops[OPS];        /* operation I is at I % OPS */
};

/* The lock. */

static struct gate *
lock (struct gate *g)
{
  int err = pthread_mutex_lock (&g->lock);

  if (err == EOWNERDEAD)
    err = pthread_mutex_consistent (&g->lock);
  g_assert_cmpint (err, ==, 0);
  return g;
}

static void
unlock_scope (struct gate **g)
{
  pthread_mutex_unlock (&(*g)->lock);
}

#define LOCK_GATE_IN_SCOPE(g) \
  struct gate *locked_ G_GNUC_UNUSED \
  __attribute__ ((cleanup (unlock_scope))) = lock (g)

/* Waits for a change, and at most a second, so that a lost wakeup or a dead
 * process costs no more.
 */
static void
wait_locked (struct gate *g)
{
  struct timespec until;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec++;
  if (pthread_cond_timedwait (&g->changed, &g->lock, &until) == EOWNERDEAD)
    pthread_mutex_consistent (&g->lock);
}

static gint64
deadline_us (void)
{
  return g_get_monotonic_time ()
    + (gint64) DEADLINE_SECONDS * G_USEC_PER_SEC;
}

static void print_locked (struct gate *g);

/* One wait of a loop for N of WHAT. */
static void
wait_until_locked (struct gate *g, gint64 until_us, unsigned n,
                   const char *what)
{
  wait_locked (g);
  if (g_get_monotonic_time () < until_us)
    return;
  fprintf (stderr, "# gate: waited in vain for %u %s\n", n, what);
  print_locked (g);
  abort ();
}

/* Making and freeing. */

static void
init (struct gate *g, bool is_mapped)
{
  int shared = is_mapped ? PTHREAD_PROCESS_SHARED : PTHREAD_PROCESS_PRIVATE;
  pthread_mutexattr_t mutex_attr;
  pthread_condattr_t cond_attr;

  g->owner = getpid ();
  g->is_mapped = is_mapped;
  pthread_mutexattr_init (&mutex_attr);
  pthread_mutexattr_setpshared (&mutex_attr, shared);
  if (is_mapped)
    pthread_mutexattr_setrobust (&mutex_attr, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init (&g->lock, &mutex_attr);
  pthread_mutexattr_destroy (&mutex_attr);
  pthread_condattr_init (&cond_attr);
  pthread_condattr_setpshared (&cond_attr, shared);
  pthread_condattr_setclock (&cond_attr, CLOCK_MONOTONIC);
  pthread_cond_init (&g->changed, &cond_attr);
  pthread_condattr_destroy (&cond_attr);
}

static struct gate *
map (const char *path, int flags)
{
  int fd = open (path, O_RDWR | O_CLOEXEC | flags, 0600);
  void *p = MAP_FAILED;

  if (fd != -1 && (!(flags & O_CREAT)
                   || ftruncate (fd, sizeof (struct gate)) == 0))
    p = mmap (NULL, sizeof (struct gate), PROT_READ | PROT_WRITE, MAP_SHARED,
              fd, 0);
  if (p == MAP_FAILED)
    perror (path);
  if (fd != -1)
    close (fd);
  return p == MAP_FAILED ? NULL : p;
}

struct gate *
gate_new (void)
{
  struct gate *g = g_new0 (struct gate, 1);

  init (g, false);
  return g;
}

struct gate *
gate_create (const char *path)
{
  struct gate *g = map (path, O_CREAT | O_TRUNC);

  g_assert_nonnull (g);
  init (g, true);
  return g;
}

struct gate *
gate_attach (const char *path)
{
  return map (path, 0);
}

void
gate_free (struct gate *g)
{
  if (!g)
    return;
  if (g->is_mapped) {
    munmap (g, sizeof *g);
    return;
  }
  pthread_cond_destroy (&g->changed);
  pthread_mutex_destroy (&g->lock);
  g_free (g);
}

/* The log. */

static struct entry *
entry (struct gate *g, unsigned op)
{
  return &g->ops[op % OPS];
}

static unsigned
first_op_locked (struct gate *g)
{
  return MAX (g->forgotten, g->n_ops - MIN (g->n_ops, OPS));
}

static bool
touches (const struct gate_op *op, unsigned kinds, uint64_t offset,
         uint64_t count)
{
  if (!(kinds & op->kind))
    return false;
  return op->kind == GATE_FLUSH
    || ((count == 0 || op->offset < offset + count)
        && offset < op->offset + op->count);
}

enum which { STARTED, ENDED, FAILED };

static unsigned
count_locked (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count,
              enum which which)
{
  unsigned n = 0;

  for (unsigned i = first_op_locked (g); i != g->n_ops; i++) {
    const struct gate_op *op = &entry (g, i)->op;

    n += touches (op, kinds, offset, count)
      && (which == STARTED || (op->end && (which == ENDED || op->err)));
  }
  return n;
}

static void
wait_count (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count,
            unsigned n, enum which which)
{
  g_autofree char *what =
    g_strdup_printf ("of kinds %#x to %s at %#" PRIx64 "+%#" PRIx64, kinds,
                     which == ENDED ? "end" : "start", offset, count);
  gint64 until_us = deadline_us ();

  LOCK_GATE_IN_SCOPE (g);
  while (count_locked (g, kinds, offset, count, which) < n)
    wait_until_locked (g, until_us, n, what);
}

unsigned
gate_started (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count)
{
  LOCK_GATE_IN_SCOPE (g);
  return count_locked (g, kinds, offset, count, STARTED);
}

unsigned
gate_ended (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count)
{
  LOCK_GATE_IN_SCOPE (g);
  return count_locked (g, kinds, offset, count, ENDED);
}

unsigned
gate_failed (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count)
{
  LOCK_GATE_IN_SCOPE (g);
  return count_locked (g, kinds, offset, count, FAILED);
}

void
gate_wait_started (struct gate *g, unsigned kinds, uint64_t offset,
                   uint64_t count, unsigned n)
{
  wait_count (g, kinds, offset, count, n, STARTED);
}

void
gate_wait_ended (struct gate *g, unsigned kinds, uint64_t offset,
                 uint64_t count, unsigned n)
{
  wait_count (g, kinds, offset, count, n, ENDED);
}

struct gate_op
gate_op (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count,
         unsigned n)
{
  LOCK_GATE_IN_SCOPE (g);
  for (unsigned i = first_op_locked (g); i != g->n_ops; i++)
    if (touches (&entry (g, i)->op, kinds, offset, count) && n-- == 0)
      return entry (g, i)->op;
  print_locked (g);
  g_error ("gate: no such operation");
}

void
gate_forget (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  g->forgotten = g->n_ops;
}

static void
print_locked (struct gate *g)
{
  unsigned first = first_op_locked (g);

  fprintf (stderr, "# gate: rules\n");
  for (unsigned i = 0; i < RULES; i++) {
    const struct rule *r = &g->rules[i];

    if (r->is_active || r->held)
      fprintf (stderr, "#   %u: %s kinds %#x at %#" PRIx64 "+%#" PRIx64
               "%s, %u held\n", i, r->holds ? "hold" : "fail", r->kinds,
               r->offset, r->count, r->is_active ? "" : " (released)",
               r->held);
  }
  fprintf (stderr, "# gate: start end kind flags conn offset+count err\n");
  if (g->n_ops - first > PRINTED_OPS)
    first = g->n_ops - PRINTED_OPS;
  for (unsigned i = first; i != g->n_ops; i++) {
    const struct gate_op *op = &entry (g, i)->op;

    fprintf (stderr, "#   %" PRIu64 " %" PRIu64 " kind %#x flags %#x%s c%u %#"
             PRIx64 "+%#" PRIx64 " %d\n", op->start, op->end, op->kind,
             op->flags, op->is_hooked ? " hooked" : "", op->conn, op->offset,
             op->count, op->err);
  }
}

void
gate_print (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  print_locked (g);
}

/* Rules. */

static int
add_rule (struct gate *g, struct rule rule)
{
  LOCK_GATE_IN_SCOPE (g);
  for (unsigned i = 0; i < RULES; i++) {
    struct rule *r = &g->rules[i];

    if (r->is_active || r->held > 0)
      continue;
    *r = rule;
    r->is_active = true;
    r->since = g->clock;
    return i;
  }
  print_locked (g);
  g_error ("gate: too many rules");
}

int
gate_hold (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count)
{
  return add_rule (g, (struct rule) { .holds = true, .kinds = kinds,
                                      .offset = offset, .count = count });
}

int
gate_fail (struct gate *g, unsigned kinds, uint64_t offset, uint64_t count,
           int err, int times)
{
  return add_rule (g, (struct rule) { .kinds = kinds, .offset = offset,
                                      .count = count, .err = err,
                                      .times = times });
}

int
gate_fail_nth (struct gate *g, unsigned kinds, unsigned n, int err, int times)
{
  return add_rule (g, (struct rule) { .kinds = kinds, .skip = n - 1,
                                      .err = err, .times = times });
}

void
gate_fail_some (struct gate *g, unsigned kinds, unsigned per_mille,
                uint32_t seed)
{
  LOCK_GATE_IN_SCOPE (g);
  g->some_kinds = kinds;
  g->some_per_mille = per_mille;
  g->some_state = seed;
}

void
gate_release (struct gate *g, int rule)
{
  LOCK_GATE_IN_SCOPE (g);
  g->rules[rule].is_active = false;
  pthread_cond_broadcast (&g->changed);
}

void
gate_release_all (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  for (unsigned i = 0; i < RULES; i++)
    g->rules[i].is_active = false;
  pthread_cond_broadcast (&g->changed);
}

void
gate_pass (struct gate *g, int rule, unsigned n)
{
  gint64 until_us = deadline_us ();
  struct rule *r = &g->rules[rule];
  unsigned left, passed = 0;

  LOCK_GATE_IN_SCOPE (g);
  left = r->left + n;
  for (unsigned i = 0; i < g->n_running && passed < n; i++) {
    struct entry *e = entry (g, g->running[i]);

    if (e->held_by == rule) {
      e->passed |= UINT64_C (1) << rule;
      passed++;
    }
  }
  if (passed < n)
    print_locked (g);
  g_assert_cmpuint (passed, ==, n);
  pthread_cond_broadcast (&g->changed);
  while (r->left < left)
    wait_until_locked (g, until_us, n, "to go on");
}

unsigned
gate_held (struct gate *g, int rule)
{
  LOCK_GATE_IN_SCOPE (g);
  return g->rules[rule].held;
}

void
gate_wait_held (struct gate *g, int rule, unsigned n)
{
  g_autofree char *what = g_strdup_printf ("to be held by rule %d", rule);
  gint64 until_us = deadline_us ();

  LOCK_GATE_IN_SCOPE (g);
  while (g->rules[rule].held < n)
    wait_until_locked (g, until_us, n, what);
}

/* Operations. */

static void
count_collisions_locked (struct gate *g, const struct gate_op *op)
{
  if (!(op->kind & GATE_CHANGE) || op->count == 0)
    return;
  for (unsigned i = 0; i < g->n_running; i++)
    g->collisions += touches (&entry (g, g->running[i])->op, GATE_CHANGE,
                              op->offset, op->count);
}

unsigned
gate_op_start (struct gate *g, struct gate_op op)
{
  unsigned id;

  LOCK_GATE_IN_SCOPE (g);
  id = g->n_ops++;
  op.start = ++g->clock;
  op.end = 0;
  count_collisions_locked (g, &op);
  *entry (g, id) = (struct entry) { .op = op, .held_by = NO_RULE };
  g_assert_cmpuint (g->n_running, <, RUNNING);
  g->running[g->n_running++] = id;
  g->peak = MAX (g->peak, g->n_running);
  pthread_cond_broadcast (&g->changed);
  return id;
}

/* The first rule that holds the operation, or NO_RULE. */
static int
holding_rule_locked (struct gate *g, const struct entry *e)
{
  for (unsigned i = 0; i < RULES; i++) {
    const struct rule *r = &g->rules[i];

    if (r->is_active && r->holds && e->op.start > r->since
        && !(e->passed & UINT64_C (1) << i)
        && touches (&e->op, r->kinds, r->offset, r->count))
      return i;
  }
  return NO_RULE;
}

/* The test program has died: no one releases its rules. */
static bool
is_orphan (struct gate *g)
{
  return g->is_mapped && kill (g->owner, 0) == -1 && errno == ESRCH;
}

static void
be_held_locked (struct gate *g, struct entry *e, int rule)
{
  struct rule *r = &g->rules[rule];

  e->held_by = rule;
  r->held++;
  /* Once: held operations that broadcast again wake each other for ever. */
  pthread_cond_broadcast (&g->changed);
  do
    wait_locked (g);
  while (holding_rule_locked (g, e) == rule && !is_orphan (g));
  e->held_by = NO_RULE;
  r->held--;
  r->left++;
  pthread_cond_broadcast (&g->changed);
}

static int
failing_rule_locked (struct gate *g, const struct gate_op *op)
{
  for (unsigned i = 0; i < RULES; i++) {
    struct rule *r = &g->rules[i];

    if (!r->is_active || r->holds
        || !touches (op, r->kinds, r->offset, r->count))
      continue;
    if (r->skip > 0) {
      r->skip--;
      continue;
    }
    if (r->times > 0 && --r->times == 0)
      r->is_active = false;
    return i;
  }
  return NO_RULE;
}

/* SplitMix64. */
static unsigned
random_per_mille_locked (struct gate *g)
{
  uint64_t x = g->some_state += UINT64_C (0x9e3779b97f4a7c15);

  x = (x ^ x >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C (0x94d049bb133111eb);
  return (x ^ x >> 31) % 1000;
}

struct gate_verdict
gate_op_pass (struct gate *g, unsigned op)
{
  struct entry *e = entry (g, op);
  struct gate_verdict verdict = { 0 };
  int rule;

  LOCK_GATE_IN_SCOPE (g);
  while ((rule = holding_rule_locked (g, e)) != NO_RULE && !is_orphan (g)) {
    verdict.was_held = true;
    be_held_locked (g, e, rule);
  }
  rule = failing_rule_locked (g, &e->op);
  if (rule != NO_RULE)
    verdict.err = g->rules[rule].err;
  else if (e->op.kind & g->some_kinds
           && random_per_mille_locked (g) < g->some_per_mille) {
    verdict.err = EIO;
    verdict.is_by_chance = true;
  }
  return verdict;
}

bool
gate_would_hold (struct gate *g, struct gate_op op)
{
  struct entry e = { .op = op };

  LOCK_GATE_IN_SCOPE (g);
  e.op.start = g->clock + 1;
  return holding_rule_locked (g, &e) != NO_RULE;
}

void
gate_op_end (struct gate *g, unsigned op, int err)
{
  struct gate_op *o = &entry (g, op)->op;
  unsigned i = 0;

  LOCK_GATE_IN_SCOPE (g);
  o->err = err;
  o->end = ++g->clock;
  while (i < g->n_running && g->running[i] != op)
    i++;
  g_assert_cmpuint (i, <, g->n_running);
  for (g->n_running--; i < g->n_running; i++)
    g->running[i] = g->running[i + 1];
  pthread_cond_broadcast (&g->changed);
}

/* Counts and answers. */

uint64_t
gate_now (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  return ++g->clock;
}

unsigned
gate_peak (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  return g->peak;
}

unsigned
gate_running (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  return g->n_running;
}

unsigned
gate_collisions (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  return g->collisions;
}

void
gate_set_geometry (struct gate *g, struct gate_geometry geometry)
{
  LOCK_GATE_IN_SCOPE (g);
  g->geometry = geometry;
}

struct gate_geometry
gate_geometry (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  return g->geometry;
}

void
gate_violation (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  g->violations++;
}

unsigned
gate_violations (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  return g->violations;
}

void
gate_count_closed (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  g->closed++;
  pthread_cond_broadcast (&g->changed);
}

unsigned
gate_closed (struct gate *g)
{
  LOCK_GATE_IN_SCOPE (g);
  return g->closed;
}
