/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A bounded set of extents: see extentset.h.
 */
#include <string.h>

#include <glib.h>

#include "extentset.h"

enum { FIRST_ROOM = 64 };

void
extentset_clear (struct extentset *s)
{
  g_free (s->at);
  *s = (struct extentset) { .max = s->max };
}

unsigned
extentset_first (const struct extentset *s, uint64_t offset)
{
  unsigned lo = 0, hi = s->n;

  while (lo < hi) {
    unsigned mid = lo + (hi - lo) / 2;

    if (s->at[mid].to <= offset)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

static void
cut_out (struct extentset *s, unsigned from, unsigned to)
{
  if (from == to)
    return;
  memmove (&s->at[from], &s->at[to], (s->n - to) * sizeof s->at[0]);
  s->n -= to - from;
}

static bool
grow (struct extentset *s)
{
  unsigned room = MIN (MAX (2 * s->room, FIRST_ROOM), s->max);
  struct extent *at;

  if (room == s->room)
    return false;
  at = g_try_renew (struct extent, s->at, room);
  if (at == NULL)
    return false;
  s->at = at;
  s->room = room;
  return true;
}

static bool
insert (struct extentset *s, unsigned i, struct extent x)
{
  if (s->n == s->room && !grow (s))
    return false;
  memmove (&s->at[i + 1], &s->at[i], (s->n - i) * sizeof s->at[0]);
  s->at[i] = x;
  s->n++;
  return true;
}

void
extentset_drop (struct extentset *s, uint64_t from, uint64_t to)
{
  unsigned i = extentset_first (s, from), j;

  if (from >= to)
    return;
  if (i < s->n && s->at[i].from < from) {
    struct extent rest = s->at[i];

    s->at[i++].to = from;
    rest.from = to;
    if (rest.to > to) {
      insert (s, i, rest);      /* if there is no room, it is dropped, too */
      return;
    }
  }
  for (j = i; j < s->n && s->at[j].to <= to; j++)
    ;
  cut_out (s, i, j);
  if (i < s->n && s->at[i].from < to)
    s->at[i].from = to;
}

/* Removes the answer that was asked for longest ago, if that was before
 * ASKED_NS.
 */
static bool
evict (struct extentset *s, uint64_t asked_ns)
{
  uint64_t oldest = asked_ns;
  unsigned n = 0;

  for (unsigned i = 0; i < s->n; i++)
    oldest = MIN (oldest, s->at[i].asked_ns);
  if (oldest == asked_ns)
    return false;
  for (unsigned i = 0; i < s->n; i++)
    if (s->at[i].asked_ns != oldest)
      s->at[n++] = s->at[i];
  s->n = n;
  return true;
}

static bool
can_join (const struct extent *a, const struct extent *b)
{
  return a->to == b->from && a->type == b->type && a->asked_ns == b->asked_ns;
}

bool
extentset_add (struct extentset *s, struct extent x)
{
  unsigned i;

  if (x.from >= x.to)
    return true;
  extentset_drop (s, x.from, x.to);
  do {
    i = extentset_first (s, x.from);
    if (i > 0 && can_join (&s->at[i - 1], &x)) {
      s->at[i - 1].to = x.to;
      return true;
    }
    if (insert (s, i, x))
      return true;
  } while (evict (s, x.asked_ns));
  return false;
}

int
extentset_find (const struct extentset *s, uint64_t offset, uint64_t since_ns)
{
  unsigned i = extentset_first (s, offset);

  return i < s->n && s->at[i].from <= offset && s->at[i].asked_ns >= since_ns
    ? (int) i : -1;
}

int
extentset_next (const struct extentset *s, int at, uint64_t since_ns)
{
  unsigned i = at + 1;

  return i < s->n && s->at[i].from == s->at[at].to
    && s->at[i].asked_ns >= since_ns ? (int) i : -1;
}
