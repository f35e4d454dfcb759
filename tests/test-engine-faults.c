/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Faults at every point: one scenario of requests runs again and again, and
 * each time another call fails.
 *
 * A fault is a kind of call, a number N, an error and a length.  The Nth call
 * of that kind fails, and those after it: once, three times, until the requests
 * are done, or until all connections are closed.  After the requests both
 * connections flush, or they close without a flush.  A first run without a
 * fault counts the calls.
 *
 * A model judges.  It has the data that was acknowledged for each block.  Each
 * request returns the right data, or the fault's error.  It may return that
 * error only if a call failed during the request, and if the call is one that
 * the request needs.  After the fault a flush succeeds, and the device has all
 * data that was acknowledged.  Where it does not, the log says that the data is
 * lost, and a flush has returned the error.
 *
 * Not here: random requests of several clients at once (test-engine-random.c).
 */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "inject.h"
#include "world.h"

/* The scenario. */

enum { EXTENTS = STOP + 1, OPEN };

#define BLOCK (4 * KIB)
#define UNITS 14
#define SIZE (UNITS * U)
#define BLOCKS (SIZE / BLOCK)

/* Step I writes the tag I + 1.  Changes are whole blocks of one unit. */
static const struct step {
  unsigned conn;
  unsigned kind;                /* enum kind, EXTENTS or OPEN */
  uint64_t offset;
  uint32_t count;
} steps[] = {
  { 0, WRITE, 0, U },
  { 0, WRITE, U, BLOCK },
  { 1, WRITE, U + BLOCK, BLOCK },
  { 1, READ, U, 4 * BLOCK },
  { 0, WRITE, 2 * BLOCK, BLOCK },
  { 0, READ, 0, U },
  { 0, FLUSH },
  { 1, READ, 8 * U, U },
  { 1, READ, 9 * U, U },
  { 1, READ, 10 * U, U },
  { 1, READ, 11 * U, U },
  { 0, EXTENTS, 0, 4 * U },
  { 0, ZERO, 2 * U, U },
  { 1, TRIM, 3 * U, U },
  { 1, FUA, 4 * U, 2 * BLOCK },
  { 0, WRITE, 2 * U + BLOCK, BLOCK },
  { 1, READ, 2 * U, U },
  { 1, EXTENTS, 2 * U, 2 * U },
  { 0, READ, 11 * U, 3 * U },           /* in pieces */
  { 1, WRITE, 5 * U, U },
  { 1, WRITE, 6 * U, 2 * BLOCK },
  { 1, CLOSE },
  { 0, READ, 5 * U, U },
  { 1, OPEN },
  { 1, FLUSH },
  { 0, WRITE, 7 * U, 2 * BLOCK },
  { 1, ZERO, 7 * U + BLOCK, BLOCK },
  { 1, READ, 7 * U, U },
  { 0, FLUSH },
};

enum { STEPS = G_N_ELEMENTS (steps) };

/* Faults. */

enum length { ONCE, THRICE, REQUESTS, UNFLUSHED, ALL, LENGTHS };

static const char *const length_names[] = {
  "once", "three times", "until the requests are done",
  "until the requests are done, with no flush",
  "until the connections are closed"
};

static struct injector opens;

static const struct call {
  const char *name;
  unsigned gate;                /* operations of these kinds, or */
  struct injector *injector;
  int err;                      /* the only one; 0: no request fails */
} calls[] = {
  { "read", GATE_READ }, { "write", GATE_WRITE }, { "zero", GATE_ZERO },
  { "trim", GATE_TRIM }, { "flush", GATE_FLUSH }, { "extents", GATE_EXTENTS },
  { "change", GATE_CHANGE }, { "any", GATE_ANY },
  { "open", .injector = &opens },
  { "memory", .injector = &inject_memory, .err = ENOMEM },
};

/* The first calls are of one kind of operation each. */
enum { EACH = 6, SOME = 8, CALLS = G_N_ELEMENTS (calls) };

static const struct error {
  const char *name;
  int value;
} errors[] = {
  { "eio", EIO }, { "enospc", ENOSPC }, { "eperm", EPERM }, { "erofs", EROFS },
  { "eshutdown", ESHUTDOWN }, { "einval", EINVAL }, { "enomem", ENOMEM },
  { "eopnotsupp", EOPNOTSUPP },
};

/* Runs. */

struct run {
  struct world *w;
  const struct call *call;      /* NULL: no fault */
  int err;
  enum length length;
  bool is_settled;              /* workers are idle before each step */
  /* For each block the tags that it may have, as bits (bit_of), and those that
   * it may have had.
   */
  uint32_t tags[BLOCKS], past[BLOCKS];
  bool shows[2];                /* the connection's next flush returns the error
                                 * of an earlier one (conn.show_error) */
  bool shows_next;              /* that of the next connection, too
                                 * (device.show_error) */
  unsigned forgiven;            /* deferred errors before the last flush that
                                 * succeeded */
  bool is_last_close;
  bool is_reported;             /* a flush has returned the error */
  unsigned n_lost, n_kept;      /* reports */
  unsigned sent[STATS_KINDS];
  unsigned direct_errors;       /* of writes */
};

static struct run *now;         /* for the log */
static char what[200];          /* the run and its step */

static void
on_abort (int signal G_GNUC_UNUSED)
{
  if (write (STDERR_FILENO, what, strlen (what)) == -1)
    _exit (2);
}

static void fail (const char *format, ...) G_GNUC_PRINTF (1, 2);

static void
fail (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  vfprintf (stderr, format, args);
  va_end (args);
  fprintf (stderr, "\n");
  gate_print (now->w->gate);
  abort ();
}

/* The model. */

#define ZEROES 31U
#define ANYTHING UINT32_MAX

/* A set of tags as bits: bit 0 is OLD, bit 31 is zeroes. */
static uint32_t
bit_of (unsigned tag)
{
  return UINT32_C (1) << (tag == OLD ? 0 : tag == 0 ? ZEROES : tag);
}

static unsigned
tag_of (unsigned bit)
{
  return bit == 0 ? OLD : bit == ZEROES ? 0 : bit;
}

/* A sample of the block's bytes. */
static bool
has_tag (const char *block, uint64_t offset, unsigned tag)
{
  for (unsigned i = 0; i < BLOCK; i += 61) {
    char expected;

    fill (&expected, 1, offset + i, tag);
    if (block[i] != expected)
      return false;
  }
  return true;
}

static bool
is_allowed (uint32_t tags, const char *block, uint64_t offset)
{
  if (tags == ANYTHING)
    return true;
  for (unsigned bit = 0; bit < 32; bit++)
    if ((tags >> bit & 1) && has_tag (block, offset, tag_of (bit)))
      return true;
  return false;
}

static void
check_data (const struct run *r, const char *buf, uint32_t count,
            uint64_t offset, const char *where)
{
  for (uint32_t i = 0; i < count; i += BLOCK)
    if (!is_allowed (r->tags[(offset + i) / BLOCK], buf + i, offset + i))
      fail ("%s: the block at %" PRIu64 " is not what was acknowledged "
            "(tags %#x)", where, offset + i, r->tags[(offset + i) / BLOCK]);
}

static void
check_device (const struct run *r, uint32_t count, uint64_t offset)
{
  g_autofree char *buf = g_malloc (count);

  fake_peek (r->w->f, buf, count, offset);
  check_data (r, buf, count, offset, "device");
}

static void
acknowledge (struct run *r, uint32_t count, uint64_t offset, uint32_t tags)
{
  for (uint64_t b = offset / BLOCK; b < (offset + count) / BLOCK; b++) {
    r->tags[b] = tags;
    r->past[b] |= tags;
  }
}

static void
log_unwritten (const char *export_name G_GNUC_UNUSED, uint64_t offset,
               uint32_t count, int err, bool kept)
{
  struct run *r = now;

  if (err != r->err)
    fail ("the log has error %d", err);
  if (!kept && !r->is_last_close && err != EPERM && err != EROFS)
    fail ("the log gives data up that can be tried again");
  if (!kept && !r->is_last_close && !r->is_reported)
    fail ("the log gives data up before a flush has returned the error");
  r->n_kept += kept;
  r->n_lost += !kept;
  for (uint64_t b = offset / BLOCK; b < (offset + count) / BLOCK; b++)
    if (!kept)
      r->tags[b] = r->past[b];
}

/* One run. */

static bool
is_memory (const struct run *r)
{
  return r->call && r->call->injector == &inject_memory;
}

static bool
is_idle (struct world *w)
{
  if (count_state (w, BUF_READY, 0, SIZE) > 0
      || count_state (w, BUF_WRITING, 0, SIZE) > 0
      || count_reading (w) + gate_running (w->gate) > 0)
    return false;
  LOCK_IN_SCOPE (&w->e->extents.lock);
  return w->e->extents.questions.length == 0;
}

static void
settle (struct run *r)
{
  while (!is_idle (r->w))
    g_usleep (20);
  engine_check (r->w->e);
}

static const struct backend_ops *real_ops;

static void *
open_or_fail (const struct backend *like, const char *export_name)
{
  return inject_fails (&opens) ? NULL : real_ops->open (like, export_name);
}

/* False: memory is missing. */
static bool
open_conn (struct run *r, unsigned i)
{
  static struct backend_ops failing;
  struct backend b = world_backend (r->w, i);
  int err;

  if (real_ops != b.ops) {      /* only once, as threads of other connections
                                 * read it */
    real_ops = b.ops;
    failing = *b.ops;
    failing.open = open_or_fail;
  }
  b.ops = &failing;
  err = conn_open (r->w->e, "", &b, &r->w->c[i]);
  if (err && (err != ENOMEM || !is_memory (r)))
    fail ("a connection does not open: error %d", err);
  if (err)
    return false;
  fake_make_slow (r->w->c[i]);
  r->shows[i] = r->shows_next;
  return true;
}

static unsigned
n_failed (const struct run *r, unsigned kinds)
{
  return gate_failed (r->w->gate, kinds, ANYWHERE);
}

/* The plugin's flushes that have succeeded. */
static unsigned
n_flushed (const struct run *r)
{
  return gate_started (r->w->gate, GATE_FLUSH, ANYWHERE)
    - n_failed (r, GATE_FLUSH);
}

static unsigned
deferred_errors (const struct run *r)
{
  return n_failed (r, GATE_WRITE) - r->direct_errors;
}

/* The operations whose errors a request may return. */
static unsigned
kinds_for (const struct run *r, unsigned kind)
{
  switch (kind) {
  case READ: return GATE_READ | (r->w->serial ? GATE_FLUSH : 0);
  case WRITE: case FUA: return GATE_WRITE;
  case ZERO: return GATE_ZERO;
  case TRIM: return GATE_TRIM;
  case FLUSH: return GATE_WRITE | GATE_FLUSH;
  case EXTENTS: return GATE_EXTENTS;
  default: return 0;
  }
}

static void
check_extents (const struct run *r, const struct step *s,
               const struct extentset *answer)
{
  uint64_t at = s->offset;

  if (answer->n == 0)
    fail ("no extents");
  for (unsigned i = 0; i < answer->n; i++) {
    const struct extent *x = &answer->at[i];

    if (x->from != at || x->to <= x->from || x->to > s->offset + s->count)
      fail ("the extent at %" PRIu64 " is at %" PRIu64, at, x->from);
    at = x->to;
    for (uint64_t b = x->from / BLOCK; x->type && b < x->to / BLOCK; b++)
      if (!(r->tags[b] & bit_of (0)))
        fail ("data at block %" PRIu64 " is reported as a hole", b);
  }
}

static int
send_extents (struct run *r, const struct step *s)
{
  struct extentset answer = { .max = EXTENTS_ANSWER };
  int err = conn_extents (r->w->c[s->conn], s->count, s->offset, false,
                          &answer);

  if (err == 0)
    check_extents (r, s, &answer);
  extentset_clear (&answer);
  return err;
}

/* What an answer without an error means. */
static void
note_success (struct run *r, const struct step *s, unsigned tag,
              const char *buf, bool is_failing)
{
  switch (s->kind) {
  case READ: check_data (r, buf, s->count, s->offset, "read"); break;
  case ZERO: acknowledge (r, s->count, s->offset, bit_of (0)); break;
  case TRIM: acknowledge (r, s->count, s->offset, ANYTHING); break;
  case FLUSH:
    check_device (r, SIZE, 0);
    r->forgiven = deferred_errors (r);
    break;
  case WRITE: case FUA:
    acknowledge (r, s->count, s->offset, bit_of (tag));
    if (s->kind == FUA || is_failing)   /* a direct write */
      check_device (r, s->count, s->offset);
    break;
  }
}

/* Whether the plugin was asked about the client's range last.  If it does not
 * answer a question about more, the filter asks about that.
 */
static bool
is_asked_alone (const struct run *r, const struct step *s)
{
  struct gate *g = r->w->gate;
  unsigned n = gate_started (g, GATE_EXTENTS, ANYWHERE);
  struct gate_op op = gate_op (g, GATE_EXTENTS, ANYWHERE, n - 1);

  return op.err && op.offset == s->offset && op.count == s->count;
}

/* A request fails only if an operation for it has failed meanwhile, or if a
 * flush returns the error of an earlier one.
 */
static void
check_error (struct run *r, const struct step *s, int err, unsigned failed)
{
  bool is_shown = s->kind == FLUSH
    && (r->shows[s->conn] || !r->is_settled);

  if (err != r->err)
    fail ("error %d", err);
  if (is_memory (r)) {
    if (s->kind != READ && s->kind != EXTENTS)
      fail ("no memory");
    return;
  }
  if (failed == 0 && !is_shown)
    fail ("error %d, though nothing has failed for the request", err);
  if (s->kind == EXTENTS && !is_asked_alone (r, s))
    fail ("error %d, though the plugin may have an answer", err);
  /* After ESHUTDOWN the next flush returns the error again: the client of this
   * one may have gone.
   */
  r->is_reported |= s->kind == FLUSH && err != ESHUTDOWN;
  r->direct_errors += s->kind == WRITE || s->kind == FUA;
}

static unsigned
stats_kind (unsigned kind)
{
  switch (kind) {
  case READ: return STATS_READ;
  case WRITE: case FUA: return STATS_WRITE;
  case ZERO: return STATS_ZERO;
  case TRIM: return STATS_TRIM;
  case FLUSH: return STATS_FLUSH;
  default: return STATS_EXTENTS;
  }
}

/* Sends a request and checks its answer, which it returns. */
static int
send (struct run *r, const struct step *s, unsigned tag)
{
  struct world *w = r->w;
  g_autofree char *buf = g_malloc (s->count + 1);
  unsigned kinds = kinds_for (r, s->kind), before = n_failed (r, kinds);
  unsigned flushes = n_failed (r, GATE_FLUSH), lost = r->n_lost;
  unsigned flushed = n_flushed (r);
  bool is_failing = r->is_settled && deferred_errors (r) > r->forgiven;
  int err;

  if (s->kind == READ)
    memset (buf, 0xee, s->count);
  else
    fill (buf, s->count, s->offset, tag);
  err = s->kind == EXTENTS ? send_extents (r, s)
    : request (w, s->conn, s->kind, buf, s->count, s->offset);
  r->sent[stats_kind (s->kind)]++;
  if (err)
    check_error (r, s, err, n_failed (r, kinds) - before);
  else
    note_success (r, s, tag, buf, is_failing);
  if (s->kind == FLUSH && r->n_lost > lost && err == 0)
    fail ("the flush has lost data, and returns no error");
  if (s->kind == FLUSH && err == 0 && r->shows[s->conn])
    fail ("the flush returns no error of an earlier one");
  /* A write may have failed and then succeeded: the plugin's flush is last. */
  if (s->kind == FLUSH
      && (n_failed (r, kinds) == before || n_flushed (r) > flushed)) {
    r->shows_next &= !r->shows[s->conn];
    r->shows[s->conn] = false;
  }
  /* A flush that the filter sends by itself. */
  if (w->serial && (s->kind == READ || s->kind == EXTENTS)
      && n_failed (r, GATE_FLUSH) > flushes)
    r->shows[0] = r->shows[1] = r->shows_next = true;
  engine_check (w->e);
  return err;
}

/* A connection that does not open leaves the requests to the other one. */
static void
do_step (struct run *r, unsigned i)
{
  struct step s = steps[i];
  struct world *w = r->w;

  if (r->is_settled)
    settle (r);
  if (s.kind != OPEN && w->c[s.conn] == NULL)
    s.conn = 0;
  if (s.kind == CLOSE)
    world_close (w, s.conn);
  else if (s.kind == OPEN)
    open_conn (r, s.conn);
  else
    send (r, &s, i + 1);
}

/* A flush; the fault is over.  Returns whether it returned the error. */
static bool
flush_after (struct run *r, unsigned i)
{
  const struct step flush = { i, FLUSH };

  return send (r, &flush, 0) != 0;
}

/* Both connections can flush, and the device has all data. */
static void
check_after (struct run *r)
{
  for (unsigned i = 0; i < 2; i++) {
    const struct step read = { i, READ, 0, SIZE };

    if (r->w->c[i] == NULL && !open_conn (r, i))
      fail ("a connection does not open after the fault");
    if (i == 0 && send (r, &read, 0) != 0)
      fail ("a read fails after the fault");
    if (flush_after (r, i) && flush_after (r, i))
      fail ("a second flush fails after the fault");
    if (i == 1 && send (r, &read, 0) != 0)
      fail ("a read fails after the fault");
  }
}

static void
close_all (struct run *r)
{
  for (unsigned i = 2; i-- > 0; ) {
    r->is_last_close = i == 0;
    if (r->w->c[i])
      world_close (r->w, i);
  }
}

/* All connections are closed.  The next one gets the error of lost data, or of
 * a flush of the filter's own, if no flush has returned it.
 */
static void
check_reopened (struct run *r)
{
  bool is_lost = (r->n_lost > 0 && !r->is_reported) || r->shows_next, fails;

  check_device (r, SIZE, 0);
  open_conn (r, 0);
  r->shows[0] = is_lost;
  fails = flush_after (r, 0);
  if (is_lost && !fails)
    fail ("no flush returns an earlier error");
  if (flush_after (r, 0))
    fail ("a second flush fails after the fault");
}

static void
check_count (const struct run *r, enum stats_kind kind, unsigned n)
{
  uint64_t count = stats_count (r->w->e->stats, kind);

  if (count != n)
    fail ("statistics: kind %u: %" PRIu64 ", not %u", kind, count, n);
}

static void
check_statistics (const struct run *r)
{
  struct gate *g = r->w->gate;
  const struct stats *s = r->w->e->stats;
  unsigned failed = n_failed (r, GATE_WRITE);

  if (failed > 0 && r->call && !(r->call->gate & GATE_WRITE))
    fail ("another call has failed");
  for (unsigned i = STATS_READ; i <= STATS_EXTENTS; i++)
    check_count (r, i, r->sent[i]);
  check_count (r, STATS_DEVICE_READ, gate_started (g, GATE_READ, ANYWHERE));
  check_count (r, STATS_DEVICE_WRITE, gate_started (g, GATE_WRITE, ANYWHERE));
  check_count (r, STATS_DEVICE_EXTENTS,
               gate_started (g, GATE_EXTENTS, ANYWHERE));
  if (stats_counter (s, STATS_DEFERRED_ERRORS) != deferred_errors (r))
    fail ("statistics: %" PRIu64 " deferred errors, not %u",
          stats_counter (s, STATS_DEFERRED_ERRORS), deferred_errors (r));
  if (stats_counter (s, STATS_AHEAD_FAILED) > n_failed (r, GATE_READ))
    fail ("statistics: too many failed prefetches");
}

static void
start_run (struct run *r)
{
  struct world *w = r->w;
  struct engine_config c = config (12, 2, WRITE_BEHIND, READ_AHEAD);

  now = r;
  c.log_unwritten = log_unwritten;
  c.context_retry_ns = 1000000;
  world_start (w, SIZE, c);
  fake_set_fast (w->f, true);
  for (unsigned b = 0; b < BLOCKS; b++)
    r->tags[b] = r->past[b] = bit_of (OLD);
  open_conn (r, 0);
  open_conn (r, 1);
}

static int rule;

/* From the Nth call on. */
static void
start_fault (struct run *r, unsigned n)
{
  int times = r->length == ONCE ? 1 : r->length == THRICE ? 3 : -1;

  if (r->call->injector)
    inject (r->call->injector, n, times);
  else
    rule = gate_fail_nth (r->w->gate, r->call->gate, n, r->err, times);
}

static void
end_fault (struct run *r)
{
  if (r->call->injector)
    inject_end (r->call->injector);
  else
    gate_release (r->w->gate, rule);
}

static void
play (struct run *r, unsigned n)
{
  struct world *w = r->w;
  unsigned n_lost;

  start_run (r);
  start_fault (r, n);
  for (unsigned i = 0; i < STEPS; i++) {
    snprintf (what, sizeof what, "# %s: call %u fails %s%s: step %u\n",
              g_test_get_path (), n, length_names[r->length],
              r->is_settled ? "" : ", racing", i);
    do_step (r, i);
  }
  if (r->length == ALL)
    close_all (r);
  settle (r);
  end_fault (r);
  if (r->length == UNFLUSHED) {
    n_lost = r->n_lost;
    close_all (r);
    if (r->n_lost > n_lost)
      fail ("data is lost after the fault");
  }
  if (r->length >= UNFLUSHED)
    check_reopened (r);
  else
    check_after (r);
  settle (r);
  check_statistics (r);
  world_end (w);
}

/* How many calls of the kind a run without a fault makes. */
static unsigned
count_calls (struct world *w, const struct call *call)
{
  struct run r = { .w = w, .is_settled = true };
  unsigned n;

  start_run (&r);
  if (call->injector)
    inject (call->injector, 0, 0);
  for (unsigned i = 0; i < STEPS; i++)
    do_step (&r, i);
  settle (&r);
  n = call->injector ? inject_end (call->injector)
    : gate_started (w->gate, call->gate, ANYWHERE);
  g_assert_cmpuint (n, >, 0);
  g_assert_cmpuint (r.n_lost + r.n_kept, ==, 0);
  world_end (w);
  return n;
}

/* A part of all runs: of the faults of one N and length some errors. */
static bool
is_chosen (const struct run *r, unsigned n, unsigned error)
{
  unsigned kind = r->call - calls, turn = n + r->length + error;

  if (g_test_thorough () || kind >= SOME)
    return true;
  if (kind >= EACH)
    return turn % 16 == r->is_settled;
  return turn % (r->is_settled ? 8 : 16) == 0;
}

static void
test_fault (struct world *w)
{
  const struct call *call = &calls[w->arg / 100];
  unsigned error = w->arg % 100;
  unsigned n = count_calls (w, call), played = 0;

  if (call->injector == &opens)
    n = MAX (n, 3);             /* racing, there may be more */
  signal (SIGABRT, on_abort);
  for (unsigned i = 0; i < n * LENGTHS * 2; i++) {
    struct run r = {
      .w = w, .call = call, .length = i / 2 % LENGTHS, .is_settled = i % 2 == 0,
      .err = call->injector ? call->err : errors[error].value
    };

    if (!is_chosen (&r, i / 2 / LENGTHS + 1, error))
      continue;
    play (&r, i / 2 / LENGTHS + 1);
    played++;
  }
  g_test_message ("%u calls, %u scenarios", n, played);
}

/* Operations that hang. */

/* Of a client's request, or in the background. */
enum { PREFETCH = OPEN + 1 };

static const struct hang {
  const char *name;
  unsigned kind, gate;
} hangs[] = {
  { "read", READ, GATE_READ }, { "prefetch", PREFETCH, GATE_READ },
  { "write", WRITE, GATE_WRITE }, { "fua", FUA, GATE_WRITE },
  { "zero", ZERO, GATE_ZERO }, { "trim", TRIM, GATE_TRIM },
  { "flush", FLUSH, GATE_FLUSH }, { "extents", EXTENTS, GATE_EXTENTS },
};

static gpointer
ask_extents (gpointer c)
{
  struct extentset answer = { .max = EXTENTS_ANSWER };

  g_assert_cmpint (conn_extents (c, U, 0, false, &answer), ==, 0);
  extentset_clear (&answer);
  return NULL;
}

/* Requests of all kinds, elsewhere on the device. */
static void
work_elsewhere (struct world *w, unsigned i, unsigned gate)
{
  struct extentset answer = { .max = EXTENTS_ANSWER };

  do_write (w, i, U, 32 * U, 1);
  do_write (w, i, BLOCK, 33 * U, 2);
  do_fua (w, i, U, 34 * U, 3);
  do_zero (w, i, U, 35 * U);
  do_request (w, i, TRIM, U, 36 * U, 0);
  for (unsigned u = 40; u < 46; u++)
    do_read (w, i, U, u * U, OLD);
  g_assert_cmpint (conn_extents (w->c[i], U, 50 * U, false, &answer), ==, 0);
  extentset_clear (&answer);
  if (gate != GATE_FLUSH) {     /* contexts flush before they read this */
    do_read (w, i, U, 32 * U, 1);
    do_read (w, i, U, 34 * U, 3);
  }
}

/* An operation of connection 0 hangs.  Connection 1 of the same device works
 * on, ends and is opened again.  Its flush waits only for a deferred write.
 */
static void
test_hang (struct world *w)
{
  const struct hang *h = &hangs[w->arg];
  struct task *task = NULL, *flush;
  GThread *asker = NULL;
  int hold;

  world_init (w, 64 * U, config (16, 4, WRITE_BEHIND, READ_AHEAD));
  hold = gate_hold (w->gate, h->gate, h->kind == PREFETCH ? 2 * U : 0, 8 * U);
  if (h->kind == PREFETCH)
    start_stream (w, 0);
  else if (h->kind == WRITE)
    do_write (w, 0, U, 0, 1);
  else if (h->kind == EXTENTS)
    asker = g_thread_new (NULL, ask_extents, w->c[0]);
  else
    task = start_held (w, hold, 0, h->kind, h->kind == FLUSH ? 0 : U, 0,
                       h->kind == READ ? OLD : 1);
  gate_wait_held (w->gate, hold, 1);
  work_elsewhere (w, 1, h->gate);
  if (h->kind == WRITE) {
    flush = start_blocked_flush (w, 1);
    gate_release (w->gate, hold);
    task_ends (flush, 0);
    return;
  }
  if (h->kind != FLUSH)
    do_flush (w, 1);
  world_close (w, 1);
  world_open (w, 1, "");
  work_elsewhere (w, 1, h->gate);
  g_assert_cmpuint (gate_held (w->gate, hold), >=, 1);
  gate_release (w->gate, hold);
  if (task)
    task_ends (task, 0);
  if (asker)
    g_thread_join (asker);
}

static void
add_test (unsigned call, const char *error, unsigned i, unsigned on)
{
  g_autofree char *name
    = g_strdup_printf ("faults/%s%s%s", calls[call].name, error ? "/" : "",
                       error ? error : "");

  tests_add (&(struct test) { name, test_fault, call * 100 + i, on }, 1);
}

int
main (int argc, char *argv[])
{
  tests_init (&argc, &argv);
  for (unsigned i = 0; i < SOME; i++)
    for (unsigned k = 0; k < G_N_ELEMENTS (errors); k++)
      add_test (i, errors[k].name, k, ON_ALL);
  for (unsigned i = SOME; i < CALLS; i++)
    add_test (i, NULL, 0, calls[i].injector == &opens ? CONTEXTS_ONLY : ON_ALL);
  for (unsigned i = 0; i < G_N_ELEMENTS (hangs); i++) {
    g_autofree char *name = g_strdup_printf ("faults/hang/%s", hangs[i].name);

    tests_add (&(struct test) { name, test_hang, i }, 1);
  }
  return tests_run ();
}
