#include <stddef.h>

#include "stream.h"

/* Of two that end in one place one has only looked ahead there: the one without a window. */
static bool
is_better (const struct stream *s, uint64_t gap, const struct stream *best, uint64_t least)
{
  return gap < least || (gap == least && best && s->window > best->window);
}

static struct stream *
find (struct streams *t, uint64_t offset, uint64_t slack)
{
  struct stream *best = NULL;
  uint64_t least = UINT64_MAX;

  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *s = &t->s[i];
    uint64_t gap = offset > s->end ? offset - s->end : s->end - offset;

    if (s->used && gap <= slack && is_better (s, gap, best, least)) {
      best = s;
      least = gap;
    }
  }
  return best;
}

/* Where the stream ends in whose window OFFSET is, or as far behind that, 0 if in none. */
static uint64_t
end_before (const struct streams *t, uint64_t offset)
{
  uint64_t nearest = 0;

  for (unsigned i = 0; i < STREAMS; i++) {
    const struct stream *s = &t->s[i];

    if (s->used && s->window > 0 && s->end < offset && s->end < s->ahead
        && offset - s->end < 2 * (s->ahead - s->end) && s->end > nearest)
      nearest = s->end;
  }
  return nearest;
}

/* The second read of TARGET: is it where a stream has jumped to?  Then returns that stream, which
 * goes on from there; nobody but the table knows TARGET yet.
 */
static struct stream *
jump (struct streams *t, struct stream *target, uint64_t slack, struct stream_range *left)
{
  uint64_t start = target->start, to;

  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *s = &t->s[i];

    if (s->used && s->window > 0 && s->end == target->jumped) {
      to = start - slack < s->ahead ? start - slack : s->ahead;
      if (start > slack && to > s->end)
        *left = (struct stream_range) { .from = s->end, .to = to };
      s->start = start;
      s->end = target->end;
      s->answered = target->answered;
      s->began_ns = target->began_ns;   /* as any that begins here, see stream_take */
      s->half = target->half;
      s->half_ns = target->half_ns;
      *target = (struct stream) { 0 };
      return s;
    }
  }
  return target;
}

/* A free place, or the one that was longest unused. */
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

struct stream *
stream_note (struct streams *t, uint64_t offset, uint32_t count, uint64_t slack,
             uint64_t now_ns, struct stream_range *left)
{
  struct stream *s = find (t, offset, slack);
  uint64_t end = offset + count;

  *left = (struct stream_range) { 0 };
  if (s == NULL) {
    uint64_t jumped = end_before (t, offset);

    s = take_place (t);
    if (s->used && s->ahead > s->end)
      *left = (struct stream_range) { .from = s->end, .to = s->ahead };
    *s = (struct stream) { .used = true, .start = offset, .end = end, .answered = count, .began_ns = now_ns,
                           .last_ns = now_ns, .half = end, .half_ns = now_ns, .jumped = jumped };
    return NULL;
  }
  if (s->left) {
    s->left = false;
    s->stays = true;
  }
  if (s->window == 0 && s->jumped > 0)
    s = jump (t, s, slack, left);
  if (end > s->end)
    s->end = end;
  if (offset < s->start)
    s->start = offset;          /* the first ones came out of order */
  if (s->end - s->start >= 2 * (s->half - s->start)) {
    s->began_ns = s->half_ns;
    s->half = s->end;
    s->half_ns = now_ns;
  }
  s->last_ns = now_ns;
  if (s->window == 0)
    s->window = WINDOW_MIN;
  return s;
}

void
stream_answered (struct stream *s, uint32_t count, bool waited)
{
  s->answered += count;
  s->waited |= waited;
}

struct stream_range
stream_plan (struct stream *s, uint32_t unit, uint32_t max_window, uint64_t size)
{
  struct stream_range r;
  uint64_t to;

  s->cut = false;
  if (max_window == 0 || s->window == 0)
    return (struct stream_range) { 0 };
  while (s->waited && s->window < max_window && s->answered / unit >= s->window / 4)
    s->window *= 2;
  s->waited = false;
  if (s->window > max_window)
    s->window = max_window;

  r.from = s->end / unit * unit;
  if (r.from < s->ahead)
    r.from = s->ahead;
  to = (s->end / unit + s->window) * unit;
  r.to = to < size ? to : size;
  if (r.from >= r.to)
    return (struct stream_range) { 0 };
  s->ahead = to;
  return r;
}

void
stream_cut (struct stream *s, uint64_t offset)
{
  if (offset < s->ahead)
    s->ahead = offset;
  s->cut = s->used;
}

void
stream_lost (struct streams *t, uint64_t offset)
{
  for (unsigned i = 0; i < STREAMS; i++)
    if (t->s[i].used && t->s[i].end <= offset && offset < t->s[i].ahead)
      stream_cut (&t->s[i], offset);
}

/* Whether nothing was read from O since S began. */
static bool
is_silent (const struct stream *o, const struct stream *s)
{
  return o->used && o->last_ns < s->began_ns;
}

struct stream *
stream_hungry (struct streams *t)
{
  struct stream *last = &t->s[0], *hungry = NULL;

  for (unsigned i = 1; i < STREAMS; i++)
    if (t->s[i].last_ns > last->last_ns)
      last = &t->s[i];
  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *s = &t->s[i];

    if (s->cut && !is_silent (s, last) && (hungry == NULL || s->last_ns > hungry->last_ns))
      hungry = s;
  }
  return hungry;
}

void
stream_end (struct streams *t, uint64_t from, uint64_t to)
{
  for (unsigned i = 0; i < STREAMS; i++)
    if (t->s[i].used && from < t->s[i].ahead && t->s[i].end < to)
      t->s[i] = (struct stream) { 0 };  /* who still has it plans nothing */
}

static bool
is_active (const struct stream *s, uint64_t now_ns)
{
  return s->used && !s->left && s->window > 0 && now_ns < s->last_ns + STREAM_IDLE_NS;
}

unsigned
stream_active (const struct streams *t, uint64_t now_ns)
{
  unsigned n = 0;

  for (unsigned i = 0; i < STREAMS; i++)
    n += is_active (&t->s[i], now_ns);
  return n;
}

/* Whether O, of the same table, is to have a part beside S. */
static bool
is_beside (const struct stream *o, const struct stream *s, uint64_t now_ns)
{
  return o != s && is_active (o, now_ns) && o->last_ns >= s->began_ns;
}

uint32_t
stream_part (const struct streams *t, const struct stream *s, uint32_t share, uint64_t now_ns)
{
  uint32_t equal, left = share;
  unsigned n = 1;

  for (unsigned i = 0; i < STREAMS; i++)
    n += is_beside (&t->s[i], s, now_ns);
  equal = share / n;
  for (unsigned i = 0; i < STREAMS; i++)
    if (is_beside (&t->s[i], s, now_ns))
      left -= t->s[i].window < equal ? t->s[i].window : equal;
  return left;
}

/* It is silent since S began, and S does not come to it. */
static bool
is_left (const struct stream *o, const struct stream *s)
{
  return is_silent (o, s) && (o->ahead <= s->end || s->ahead <= o->end);
}

struct stream_range
stream_succeed (struct streams *t, struct stream *s, uint32_t unit)
{
  struct stream_range r = { 0 };
  uint64_t earned;

  for (unsigned i = 0; i < STREAMS && s->end - s->start >= WINDOW_MIN * unit; i++) {
    struct stream *o = &t->s[i];
    bool is_within = o->end <= s->start && s->end < o->ahead;

    if (s->stays || o->stays || o->window <= s->window || !is_active (o, s->began_ns)
        || !(is_left (o, s) || (is_within && is_silent (o, s))))
      continue;
    earned = o->answered / unit;
    if (earned <= s->window)
      continue;
    s->window = o->window < earned ? o->window : earned;
    if (is_within && s->ahead < o->ahead)
      s->ahead = o->ahead;
    if (o->ahead > o->end) {
      r = (struct stream_range) { .from = o->end, .to = o->ahead };
      if (r.from <= s->start && s->start < r.to)
        r.to = s->start;
    }
    o->left = true;
    o->cut = false;
    o->ahead = 0;
    break;
  }
  return r;
}

struct stream_range
stream_take (struct streams *t, const struct stream *s, uint32_t unit, uint64_t bytes)
{
  struct stream *from = NULL;
  struct stream_range r;

  for (unsigned i = 0; i < STREAMS; i++) {
    struct stream *o = &t->s[i];

    if (o->ahead > o->end && is_left (o, s) && (from == NULL || o->last_ns < from->last_ns))
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

/* Begins EPOCH for a count that was last made in FROM. */
static void
count_turn (struct stream_count *n, uint64_t from, uint64_t epoch)
{
  n->last = from + 1 == epoch ? n->now : 0;
  n->now = 0;
}

static unsigned
count_largest (const struct stream_count *n)
{
  return n->last > n->now ? n->last : n->now;
}

unsigned
stream_census (struct stream_census *t, struct stream_counted *c, unsigned mine, unsigned buffers,
               uint64_t now_ns)
{
  uint64_t epoch = now_ns / STREAM_IDLE_NS;

  /* Only forward: a time is when a request came, and requests do not end in that order. */
  if (epoch > t->epoch) {
    count_turn (&t->all, t->epoch, epoch);
    t->epoch = epoch;
  }
  if (c->epoch < t->epoch) {
    count_turn (&c->own, c->epoch, t->epoch);
    c->epoch = t->epoch;
  }
  if (mine > c->own.now) {
    t->all.now += mine - c->own.now;
    c->own.now = mine;
  }
  return (uint64_t) buffers * count_largest (&c->own) / count_largest (&t->all);
}
