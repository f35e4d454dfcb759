/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Streams and their prefetches: see stream.h.
 */
#include <stddef.h>

#include "stream.h"

static uint64_t
min (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* Of two with the same gap a stream is better than a single read. */
static bool
is_better (const struct stream *s, uint64_t gap, const struct stream *best,
           uint64_t least)
{
  return gap < least
    || (gap == least && best && s->is_sequential && !best->is_sequential);
}

/* Whether a read at OFFSET may be an overtaken read of S. */
static bool
may_be_behind (const struct stream *s, uint64_t offset, uint64_t slack)
{
  return s->behind < slack && s->is_sequential && s->start <= offset
    && offset < s->end;
}

static struct stream *
find (struct streams *t, uint64_t offset, uint64_t slack)
{
  struct stream *best = NULL;
  uint64_t least = UINT64_MAX;

  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *s = &t->s[i];
    uint64_t gap = offset > s->end ? offset - s->end : s->end - offset;
    uint64_t most = may_be_behind (s, offset, slack) ? MAX_BEHIND : slack;

    if (s->used && gap <= most && is_better (s, gap, best, least)) {
      best = s;
      least = gap;
    }
  }
  return best;
}

/* A free place, or the one that was unused for longest. */
static struct stream *
take_place (struct streams *t)
{
  struct stream *oldest = &t->s[0];

  for (unsigned i = 0; i < STREAMS; i++) {
    if (!t->s[i].used)
      return &t->s[i];
    if (t->s[i].last_ns < oldest->last_ns)
      oldest = &t->s[i];
  }
  return oldest;
}

/* How far S has come. */
static uint64_t
run_of (const struct stream *s)
{
  return s->end - s->start;
}

/* Whether O has ended, as S sees it.  The requests that a client sends together
 * come in any order, so the end of O and the beginning of S may overlap.
 */
static bool
has_ended (const struct stream *o, const struct stream *s)
{
  return o->used && o != s && (o->is_sequential || !o->is_first)
    && o->last_ns < s->began_ns + (s->last_ns - s->began_ns) / 2;
}

/* S may begin in data prefetched for a stream that has ended.  S takes that
 * data over.  If the gap is small, as a file system's own blocks are, S
 * continues that stream.  Returns the gap.
 */
static struct stream_range
join (struct streams *t, struct stream *s)
{
  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *o = &t->s[i];
    struct stream_range gap = { o->end, s->start };

    if (!has_ended (o, s) || s->start < o->end || o->ahead <= s->start)
      continue;
    if (s->ahead < o->ahead)
      s->ahead = o->ahead;
    o->ahead = 0;
    if (gap.to - gap.from <= run_of (o) / 8) {
      s->start = o->start;
      *o = (struct stream) { 0 };
    }
    return gap;
  }
  return (struct stream_range) { 0 };
}

/* Whether the client reads less than half of what S passes.  Each connection
 * may see an equal part of its reads only.
 */
static bool
leaves_out_most (const struct streams *t, const struct stream *s)
{
  return s->read * 2 * (t->conns ? t->conns : 1) < s->passed;
}

struct stream *
stream_note (struct streams *t, uint64_t offset, uint32_t count, uint64_t slack,
             uint64_t now_ns, struct stream_range *left)
{
  struct stream *s = find (t, offset, slack);
  uint64_t end = offset + count, run;

  *left = (struct stream_range) { 0 };
  if (s == NULL) {
    s = take_place (t);
    if (s->used && s->ahead > s->end)
      *left = (struct stream_range) { .from = s->end, .to = s->ahead };
    *s = (struct stream) {
      .used = true, .is_first = !t->has_begun, .start = offset, .end = end,
      .passed = count, .read = count, .began_ns = now_ns, .last_ns = now_ns
    };
    t->has_begun = true;
    return NULL;
  }
  run = run_of (s);
  if (s->end > offset + slack)
    s->behind += count;
  if (end > s->end) {
    s->behind -= min (s->behind, (end - s->end) / 8);
    s->end = end;
  }
  if (offset < s->start)
    s->start = offset;          /* the first reads came out of order */
  s->read += count;
  s->passed += run_of (s) - run;
  if (s->passed > MAX_BEHIND + 2 * slack) {     /* the recent ones count */
    s->read /= 2;
    s->passed /= 2;
  }
  s->last_ns = now_ns;
  if (!s->is_sequential)
    *left = join (t, s);
  s->is_sequential = true;
  return leaves_out_most (t, s) ? NULL : s;
}

void
stream_skip (struct streams *t, uint64_t from, uint64_t to)
{
  struct stream *nearest = NULL;

  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *s = &t->s[i];

    if (s->used && from <= s->end && s->end <= to
        && (nearest == NULL || nearest->end < s->end))
      nearest = s;
  }
  if (nearest) {
    nearest->read += to - nearest->end;
    nearest->passed += to - nearest->end;
    nearest->end = to;
  }
}

void
stream_skip_ahead (struct stream *s, uint64_t offset)
{
  if (s->ahead < offset)
    s->ahead = offset;
}

void
stream_waited (struct stream_late *l, uint64_t planned_ns, uint64_t read_ns,
               uint64_t plugin_ns)
{
  uint64_t ahead_ns = read_ns > planned_ns ? read_ns - planned_ns : 0;
  unsigned doublings = (ahead_ns < plugin_ns) + (ahead_ns / 2 < plugin_ns);

  l->waited = true;
  if (doublings > l->doublings) {
    l->doublings = doublings;
    l->planned_ns = planned_ns;
  }
}

void
stream_missed (struct stream_late *l, uint64_t read_ns)
{
  *l = (struct stream_late) {
    .waited = true, .doublings = 2, .planned_ns = read_ns
  };
}

void
stream_answered (struct streams *t, uint32_t count,
                 const struct stream_late *late)
{
  t->answered += count;
  t->waited |= late->waited;
  if (late->planned_ns >= t->grown_ns && late->doublings > t->doublings)
    t->doublings = late->doublings;
}

void
stream_read_failed (struct streams *t)
{
  t->answered = 0;
}

static bool
is_active (const struct stream *s, uint64_t now_ns)
{
  return s->is_sequential && now_ns < s->last_ns + STREAM_IDLE_NS;
}

unsigned
stream_active (const struct streams *t, uint64_t now_ns)
{
  unsigned n = 0;

  for (unsigned i = 0; i < STREAMS; i++)
    n += is_active (&t->s[i], now_ns);
  return n;
}

static bool
is_beside (const struct stream *o, const struct stream *s, uint64_t now_ns)
{
  return o != s && is_active (o, now_ns) && !has_ended (o, s);
}

/* The share, less the units that the streams beside S are ahead.  For each of
 * them no more than an equal part counts.
 */
static uint32_t
part_of (const struct streams *t, const struct stream *s, uint32_t unit,
         uint32_t share, uint64_t now_ns)
{
  uint32_t equal, left = share;
  unsigned n = 1;

  for (unsigned i = 0; i < STREAMS; i++)
    n += is_beside (&t->s[i], s, now_ns);
  equal = share / n;
  for (unsigned i = 0; i < STREAMS; i++) {
    const struct stream *o = &t->s[i];

    if (is_beside (o, s, now_ns) && o->ahead > o->end)
      left -= min ((o->ahead - o->end + unit - 1) / unit, equal);
  }
  return left;
}

/* Where S is likely to end, see stream.h. */
static uint64_t
likely_end (const struct streams *t, const struct stream *s)
{
  uint64_t run = run_of (s), runs[STREAMS];
  unsigned n = 0, n_ended = 0;

  for (unsigned i = 0; i < STREAMS; i++) {
    const struct stream *o = &t->s[i];
    unsigned j;

    if (!has_ended (o, s))
      continue;
    n_ended++;
    if (run_of (o) < run)
      continue;
    for (j = n++; j > 0 && runs[j - 1] > run_of (o); j--)
      runs[j] = runs[j - 1];
    runs[j] = run_of (o);
  }
  if (n_ended == 0)
    return UINT64_MAX;
  return n == 0 ? s->end + run / 2 : s->start + runs[n / 8];
}

/* Doubles the window as often as is due, as far as the share and what was read
 * allow.  The rest stays due, unless the share is at most half of the window.
 */
static void
grow (struct streams *t, uint32_t unit, uint32_t share)
{
  uint32_t was;

  if (t->window == 0 || t->failed)
    t->window = WINDOW_MIN;
  if (t->failed) {              /* there were no prefetches: this says nothing
                                 * about the window */
    t->waited = false;
    t->doublings = 0;
  }
  t->failed = false;
  was = t->window;
  t->wants_more = t->waited && t->window >= share;
  for (; t->doublings > 0 && t->window < share
         && t->answered / unit >= t->window / 8; t->doublings--)
    t->window *= 2;
  if (t->window > was) {
    t->answered = 0;
    t->grown_ns = t->now_ns;
  }
  if (was / 2 >= share)         /* the share was too small, not the window */
    t->doublings = 0;
  t->waited = false;
}

uint32_t
stream_operation (const struct streams *t)
{
  uint32_t units = 1;

  while (units < t->most_units && t->window > units * t->operations)
    units *= 2;
  return units;
}

/* How far to prefetch for S, if it may be AHEAD units ahead: to the end of an
 * operation.  The operations are so small that at least two fit.
 */
static uint64_t
furthest (const struct streams *t, const struct stream *s, uint32_t unit,
          uint32_t ahead)
{
  uint32_t units = stream_operation (t);

  while (units > 1 && 2 * units > ahead)
    units /= 2;
  return (s->end / unit + ahead) / units * units * unit;
}

struct stream_range
stream_plan (struct streams *t, struct stream *s, uint32_t unit, uint32_t share,
             uint64_t size, uint64_t now_ns)
{
  struct stream_range r;
  uint64_t to;

  t->wants_more = false;
  if (share == 0 || !s->is_sequential
      || (t->failed && t->answered < WINDOW_MIN * (uint64_t) unit))
    return (struct stream_range) { 0 };
  grow (t, unit, share);
  /* At most as many as the share holds large ones. */
  t->operations = min (OPERATIONS, share / (t->most_units ? t->most_units : 1));
  to = furthest (t, s, unit,
                 min (t->window, part_of (t, s, unit, share, now_ns)));
  to = min (to + s->zeroes, size);
  to = min (to, likely_end (t, s));
  r.from = s->end / unit * unit;
  if (r.from < s->ahead)
    r.from = s->ahead;
  if (to <= s->end || to <= r.from)
    return (struct stream_range) { 0 };
  s->ahead = (to + unit - 1) / unit * unit;
  r.to = min (s->ahead, size);
  return r;
}

void
stream_cut (struct stream *s, uint64_t offset)
{
  if (offset < s->ahead)
    s->ahead = offset;
}

void
stream_lost (struct streams *t, uint64_t offset)
{
  for (unsigned i = 0; i < STREAMS; i++)
    if (t->s[i].used && t->s[i].start <= offset)
      stream_cut (&t->s[i], offset);
}

void
stream_prefetch_failed (struct streams *t, uint64_t from, uint64_t to)
{
  t->failed = true;
  t->answered = 0;
  for (unsigned i = 0; i < STREAMS; i++)
    if (t->s[i].used && from < t->s[i].ahead && t->s[i].end < to)
      t->s[i] = (struct stream) { 0 };  /* its reads plan nothing */
}

struct stream_range
stream_take (struct streams *t, const struct stream *s, uint32_t unit,
             uint64_t bytes)
{
  struct stream *from = NULL;
  struct stream_range r;

  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *o = &t->s[i];

    /* Not the bytes that S reads or prefetches. */
    if (o->ahead > o->end && has_ended (o, s)
        && (o->ahead <= s->end || s->ahead <= o->end)
        && (from == NULL || o->last_ns < from->last_ns))
      from = o;
  }
  if (from == NULL)
    return (struct stream_range) { 0 };
  r.to = from->ahead;
  r.from = from->end / unit * unit;
  bytes = (bytes + unit - 1) / unit * unit;
  if (r.to - r.from > bytes)
    r.from = r.to - bytes;
  from->ahead = r.from;
  return r;
}
