/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The judge of a simulation: see judge.h.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <glib.h>

#include "device.h"
#include "judge.h"
#include "sim.h"

const char *const request_names[] = {
  "read", "write", "fua", "zero", "trim", "flush", "extents", "reopen"
};

/* A change of one cell. */
struct change {
  struct request *by;
  uint64_t replaced;            /* when a read has shown that another change
                                 * came later; 0: none has */
  bool is_lost;
};

static struct {
  bool hides, fails;
  uint64_t time;
  struct request first[2];      /* the device's data at the start */
  GPtrArray *requests;
  GArray *changes[CELLS];       /* struct change */
  int doubt;                    /* the cell that a failure is about; -1 */
} judge;

uint64_t
judge_time (void)
{
  return ++judge.time;
}

void
judge_start (bool hides, bool fails)
{
  judge.hides = hides;
  judge.fails = fails;
  judge.time = 1;
  judge.doubt = -1;
  judge.requests = g_ptr_array_new_with_free_func (g_free);
  for (unsigned i = 0; i < 2; i++)
    judge.first[i] = (struct request) {
      .kind = WRITE, .to = CELLS, .value = i, .sent = 1, .answered = 1
    };
  for (unsigned i = 0; i < CELLS; i++) {
    struct change c = { .by = &judge.first[device_volatile (i).value] };

    judge.changes[i] = g_array_new (FALSE, FALSE, sizeof c);
    g_array_append_val (judge.changes[i], c);
  }
}

void
judge_stop (void)
{
  for (unsigned i = 0; i < CELLS; i++)
    g_array_unref (judge.changes[i]);
  g_ptr_array_unref (judge.requests);
}

static void
print_request (const struct request *r)
{
  printf ("  %6" PRIu64 " to %6" PRIu64 "  client %u.%u, connection %u of "
          "device %u: %s", r->sent, r->answered, r->client, r->number, r->conn,
          r->device, request_names[r->kind]);
  if (r->kind != FLUSH && r->kind != REOPEN)
    printf (" of cells %u to %u", r->from, r->to - 1);
  if (r->kind == WRITE || r->kind == FUA)
    printf (", value %" PRIu64, r->value);
  if (r->err)
    printf (": %s", strerror (r->err));
  putchar ('\n');
}

void
judge_print (void)
{
  puts ("Requests, each with the times at which it was sent and answered:");
  for (unsigned i = 0; i < judge.requests->len; i++)
    print_request (judge.requests->pdata[i]);
  if (judge.doubt < 0)
    return;
  printf ("Changes of cell %d:\n", judge.doubt);
  for (unsigned i = 0; i < judge.changes[judge.doubt]->len; i++)
    print_request (g_array_index (judge.changes[judge.doubt], struct change,
                                  i).by);
}

static bool
is_change (enum request_kind kind)
{
  return kind == WRITE || kind == FUA || kind == ZERO || kind == TRIM;
}

struct request *
judge_send (struct request request)
{
  struct request *r = g_memdup2 (&request, sizeof request);

  r->sent = judge_time ();
  g_ptr_array_add (judge.requests, r);
  if (is_change (r->kind))
    for (unsigned i = r->from; i < r->to; i++) {
      struct change c = { .by = r };

      g_array_append_val (judge.changes[i], c);
    }
  return r;
}

/* Whether all that the connection sees from BEFORE on includes CHANGE. */
static bool
is_flushed_between (const struct request *change, uint64_t before)
{
  for (unsigned i = 0; i < judge.requests->len; i++) {
    const struct request *f = judge.requests->pdata[i];

    if (f->kind == FLUSH && f->answered && f->err == 0
        && f->device == change->device && f->sent > change->answered
        && f->answered < before)
      return true;
  }
  return false;
}

/* Whether a reader on CONN of DEVICE that asks at time SENT must see the
 * change, or a later one.
 */
static bool
must_see (unsigned cell, const struct change *c, unsigned conn,
          unsigned device, uint64_t sent)
{
  const struct request *by = c->by;

  if (by->answered == 0 || by->err || c->is_lost || by->answered >= sent)
    return false;
  /* If it has failed, another connection's change may have replaced it, which
   * this connection need not see.
   */
  if ((judge.hides || by->device != device) && by->device != 0
      && device_has_failed (cell, by->sent))
    return false;
  return !judge.hides || by->conn == conn || by->device == 0
    || is_flushed_between (by, sent);
}

static bool
is_replaced (unsigned cell, const struct change *c, const struct request *r)
{
  GArray *all = judge.changes[cell];

  if (c->replaced && c->replaced < r->sent)
    return true;
  for (unsigned i = 0; i < all->len && c->by->answered; i++) {
    const struct change *n = &g_array_index (all, struct change, i);

    if (c->by->answered < n->by->sent
        && must_see (cell, n, r->conn, r->device, r->sent))
      return true;
  }
  return false;
}

/* A read has returned the value of this change. */
static void
note_read (unsigned cell, const struct change *seen, const struct request *r)
{
  GArray *all = judge.changes[cell];

  if (judge.hides || judge.fails || seen->by->kind == TRIM
      || seen->by->answered == 0)
    return;
  for (unsigned i = 0; i < all->len; i++) {
    struct change *c = &g_array_index (all, struct change, i);

    if (c != seen && c->by->answered && c->by->answered < r->sent
        && c->by->value != seen->by->value && c->replaced == 0
        && c->by->kind != TRIM)
      c->replaced = judge.time;
  }
}

static void
check_read (unsigned cell, uint64_t value, const struct request *r)
{
  GArray *all = judge.changes[cell];

  for (unsigned i = all->len; i-- > 0;) {
    const struct change *c = &g_array_index (all, struct change, i);

    if ((c->by->value != value && c->by->kind != TRIM)
        || is_replaced (cell, c, r))
      continue;
    note_read (cell, c, r);
    return;
  }
  judge.doubt = cell;
  sim_fail ("client %u.%u: %s of cell %u returns %" PRIu64
            ", which was replaced", r->client, r->number,
            request_names[r->kind], cell, value);
}

/* Whether CELL, with VALUE, is at least as new as CHANGE. */
static bool
is_as_new (unsigned cell, uint64_t value, const struct request *change)
{
  GArray *all = judge.changes[cell];

  for (unsigned i = 0; i < all->len; i++) {
    const struct request *by = g_array_index (all, struct change, i).by;

    if ((by->value == value || by->kind == TRIM)
        && (by->answered == 0 || by->answered >= change->sent))
      return true;
  }
  return false;
}

/* Whether a flush of the change's export name has failed after its answer.  Of
 * several flushes at once only one returns the error.  Its answer may come
 * after that of the flush that was sent at SENT.
 */
static bool
is_reported (const struct request *change, uint64_t sent)
{
  for (unsigned i = 0; i < judge.requests->len; i++) {
    const struct request *f = judge.requests->pdata[i];

    if (f->kind == FLUSH && f->name == change->name && f->sent != sent
        && (f->answered == 0 || (f->err && f->answered > change->answered)))
      return true;
  }
  return false;
}

/* All successful changes that were answered before SENT are in the data.
 * DEVICE, CONN: only theirs; 0: all.
 */
static void
check_data (struct cell (*data) (unsigned), const char *what, unsigned device,
            unsigned conn, unsigned from, unsigned to, uint64_t sent)
{
  for (unsigned cell = from; cell < to; cell++) {
    GArray *all = judge.changes[cell];
    uint64_t value = data (cell).value;

    for (unsigned i = 1; i < all->len; i++) {
      const struct change *c = &g_array_index (all, struct change, i);
      const struct request *by = c->by;

      if (by->answered == 0 || by->answered > sent || by->err
          || by->kind == TRIM || (device && by->device != device)
          || (conn && by->conn != conn) || is_as_new (cell, value, by)
          || (c->is_lost && (device == 0 || is_reported (by, sent))))
        continue;
      judge.doubt = cell;
      sim_fail ("%s: cell %u has %" PRIu64 ", without value %" PRIu64
                " of client %u.%u", what, cell, value, by->value, by->client,
                by->number);
    }
  }
}

void
judge_answer (struct request *r, int err, const void *buf)
{
  r->err = err;
  if (err && !judge.fails)
    sim_fail ("client %u.%u: %s fails: %s", r->client, r->number,
              request_names[r->kind], strerror (err));
  if (r->kind == READ && err == 0)
    for (unsigned i = r->from; i < r->to; i++)
      check_read (i, cell_value (buf, i - r->from), r);
  if (r->kind == FLUSH && err == 0)
    check_data (device_durable, "after a flush the durable data", r->device, 0,
                0, CELLS, r->sent);
  r->answered = judge_time ();
  for (unsigned i = r->from; r->kind == FUA && err == 0 && i < r->to; i++)
    if (!is_as_new (i, device_durable (i).value, r))
      sim_fail ("client %u.%u: a FUA write of cell %u is not durable",
                r->client, r->number, i);
}

void
judge_zeroes (const struct request *r, unsigned from, unsigned to)
{
  for (unsigned i = from; i < to; i++)
    check_read (i, 0, r);
}

void
judge_lost (unsigned from, unsigned to)
{
  if (!judge.fails)
    sim_fail ("data is lost without an error");
  /* Nothing tells which of the changes it is.  The plugin may even have taken
   * it, as an operation that fails may change any cell.
   */
  for (unsigned i = from; i < to; i++) {
    GArray *all = judge.changes[i];

    for (unsigned k = 1; k < all->len; k++) {
      struct change *c = &g_array_index (all, struct change, k);

      c->is_lost |= c->by->answered != 0;
      c->replaced = 0;
    }
  }
}

void
judge_written (unsigned conn)
{
  check_data (device_volatile, conn ? "at the end of a connection the device"
              : "at the end the device", 0, conn, 0, CELLS, judge.time);
}
