/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Serving one read: see read.h.
 *
 * 1. Under the lock, pin every buffer that holds a part of the request.
 * 2. Read from the plugin the bytes that no buffer holds.
 * 3. Copy from the pinned buffers, by offset and age: newer data overwrites.
 * 4. Under the lock, unpin.
 */
#include <errno.h>
#include <string.h>

#include "dispatch.h"
#include "fanout.h"
#include "read.h"
#include "readahead.h"
#include "stream.h"

/* The filter serves prefetched data no longer than this.  The device may change
 * beside the server, and without the filter a client would see that.
 */
#define AHEAD_MAX_AGE_NS UINT64_C (5000000000)

struct pin {
  struct buf *b;
  uint64_t from, to;            /* the part of the request that it serves */
  bool reading;                 /* it was READING when it was pinned */
  bool whole;                   /* it holds all bytes that the request wants of
                                 * its unit, or of what was prefetched */
};

struct read {
  struct conn *c;
  struct stream *covered;       /* told once that a buffer is missing; then
                                 * NULL */
  char *buf;
  uint64_t offset, end;
  uint64_t now_ns;              /* when it came */
  bool whole;                   /* refusable: the plugin gets the whole request,
                                 * and waiting data is copied over its answer */
  unsigned n;
  struct pin *pins, few[32];
};

/* Whether the request may be served from this buffer. */
static bool
may_read (const struct read *r, const struct buf *b)
{
  struct conn *c = r->c;

  if (b->device != c->device)
    return false;
  if (buf_is_waiting (b))
    return true;
  if (r->whole)
    return false;
  if (b->conn == c && c->backend.contexts == NULL)
    return true;
  return c->shares && !device_hides_own (c, MAX (buf_start (b), r->offset),
                                         MIN (buf_first_end (b), r->end));
}

static void
pin_pieces (struct read *r, struct buf *b)
{
  for (unsigned i = 0; i < buf_n_pieces (b); i++) {
    struct span s = buf_piece (b, i);
    struct pin p = {
      .b = b, .from = MAX (b->base + s.lo, r->offset),
      .to = MIN (b->base + s.hi, r->end), .reading = b->state == BUF_READING
    };

    if (p.from >= p.to)
      continue;
    p.whole = !buf_is_waiting (b)
      || (p.from == MAX (b->base, r->offset)
          && p.to == MIN (b->base + r->c->device->unit, r->end));
    buffers_pin (b);
    r->pins[r->n++] = p;
  }
}

/* Pins every buffer that holds a part of the request, by place and age.
 * EAGAIN: it had to wait.  ENOMEM.  Wants the lock, may release it meanwhile.
 */
static int
try_pin_all (struct read *r)
{
  struct engine *e = r->c->engine;
  unsigned n = 0;

  BUFFERS_FOREACH (b, e, r->offset, r->end) {
    if (!may_read (r, b))
      continue;
    if (b->fillers > 0) {
      engine_wait (e, &b->changed);
      return EAGAIN;
    }
    if (b->state == BUF_CLEAN && r->now_ns > b->since_ns + AHEAD_MAX_AGE_NS)
      buffers_remove (b);
    else
      n += buf_n_pieces (b);
  }
  if (n > G_N_ELEMENTS (r->few)) {
    r->pins = g_try_new (struct pin, n);
    if (r->pins == NULL)
      return ENOMEM;
  }
  BUFFERS_FOREACH (b, e, r->offset, r->end)
    if (may_read (r, b))
      pin_pieces (r, b);
  return 0;
}

static int
pin_all (struct read *r)
{
  int err = 0;

  ENGINE_LOCK_THEN_DISPATCH (r->c->engine);
  /* It may be the same device: the plugin must have that dirty data then. */
  if (buffers_others_have (r->c->device, BUF_DIRTY, r->offset, r->end))
    err = order_drain_locked (r->c, r->offset, r->end);
  if (err)
    return err;
  while ((err = try_pin_all (r)) == EAGAIN)
    ;
  return err;
}

/* A part of the request, from the plugin. */
static int
read_device (struct read *r, uint64_t from, uint64_t to)
{
  struct conn *c = r->c;
  char *buf = r->buf + (from - r->offset);
  uint32_t count = to - from;
  int err = device_show_own (c, from, to);

  if (err)
    return err;
  if (r->covered) {
    readahead_missed (c, r->covered);
    r->covered = NULL;
  }
  atomic_fetch_add_explicit (&c->direct_reads, 1, memory_order_relaxed);
  /* Of a closed connection, the pool may be gone. */
  if (!(atomic_load (&c->calls) & CONN_CLOSED) && conn_gains (c, false)
      && !conn_is_refusable (c, count, from)
      && !(c->backend.contexts && device_hides_own (c, from, to)))
    err = fanout_pread (c->pool, &c->backend, conn_piece (c, count), buf, count,
                        from);
  else
    err = backend_pread (&c->backend, buf, count, from);
  atomic_fetch_sub_explicit (&c->direct_reads, 1, memory_order_relaxed);
  return err;
}

/* The end of the gap that begins at FROM; FROM if there is none.  *TO: how far
 * the buffers reach from FROM on.  Where waiting data holds a part only, it is
 * copied over the plugin's data.
 */
static uint64_t
gap_end (const struct read *r, uint64_t from, uint64_t *to)
{
  uint64_t end = r->end;

  *to = from;
  for (unsigned i = 0; i < r->n && !r->whole; i++) {
    const struct pin *p = &r->pins[i];

    if (p->whole && p->from <= *to)
      *to = MAX (*to, p->to);
    else if (p->whole)
      end = MIN (end, p->from);
  }
  return *to > from ? from : end;
}

/* Reads from the plugin the bytes that no buffer holds.  The pins are in order
 * of their buffers' bases; a large buffer may begin to hold bytes far behind
 * its base.
 */
static int
read_gaps (struct read *r)
{
  int err = 0;

  for (uint64_t from = r->offset, end, to; from < r->end && err == 0;
       from = MAX (end, to)) {
    end = gap_end (r, from, &to);
    if (end > from)
      err = read_device (r, from, end);
  }
  return err;
}

/* Copies from the buffers.  If a prefetch has failed, reads from the plugin
 * after all.
 */
static int
copy_pins (struct read *r, struct stream_late *late)
{
  int err = 0;

  for (unsigned i = 0; i < r->n && err == 0; i++) {
    struct pin *p = &r->pins[i];
    struct buf *b = p->b;
    bool is_good = true;

    if (p->reading) {
      ENGINE_LOCK_THEN_DISPATCH (r->c->engine);
      if (b->state == BUF_READING)
        err = readahead_wait (r->c, b, r->now_ns, late);
      is_good = b->err == 0;
    }
    if (err)
      break;
    if (is_good)
      memcpy (r->buf + (p->from - r->offset), b->data + (p->from - b->base),
              p->to - p->from);
    else
      err = read_device (r, p->from, p->to);
  }
  return err;
}

/* A stream does not read the same bytes again, so a prefetched buffer that is
 * read is better used for the next ones.
 */
static void
unpin_all (struct read *r)
{
  struct engine *e = r->c->engine;

  if (r->n == 0)                /* spare a client the lock */
    return;
  ENGINE_LOCK_THEN_DISPATCH (e);
  for (unsigned i = 0; i < r->n; i++) {
    struct pin *p = &r->pins[i];

    if (p->b->state == BUF_CLEAN && !p->b->dropped) {
      p->b->used += p->to - p->from;
      stats_add (e->stats, STATS_AHEAD_USED, p->to - p->from);
      if (p->b->used >= p->b->hi)
        buffers_remove (p->b);
    }
    buffers_unpin (p->b);
  }
}

static int
serve_buffered (struct read *r, struct stream_late *late)
{
  int err = pin_all (r);

  if (err)
    return err;
  err = read_gaps (r);
  if (err == 0)
    err = copy_pins (r, late);
  unpin_all (r);
  if (r->pins != r->few)
    g_free (r->pins);
  return err;
}

int
read_serve (struct conn *c, struct stream *covered, void *buf, uint32_t count,
            uint64_t offset, uint64_t now_ns, struct stream_late *late)
{
  struct read r;                /* few is large: not initialized */

  r.c = c;
  r.covered = covered;
  r.buf = buf;
  r.offset = offset;
  r.end = offset + count;
  r.now_ns = now_ns;
  r.whole = conn_is_refusable (c, count, offset);
  r.n = 0;
  r.pins = r.few;
  if (!r.whole && extents_reads_zero (c, r.offset, r.end)) {
    memset (buf, 0, count);
    stats_add (c->engine->stats, STATS_ZERO_READS, 1);
    stats_add (c->engine->stats, STATS_ZERO_BYTES, count);
    return 0;
  }
  if (buffers_may_have (c->engine, r.offset, r.end))
    return serve_buffered (&r, late);
  return read_device (&r, r.offset, r.end);
}
