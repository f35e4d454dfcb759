/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A bounded set of ranges: see changes.h.
 */
#include <string.h>

#include <glib.h>

#include "changes.h"

/* Joins AT and the next range, with the bytes between them. */
static void
join (struct changes *c, unsigned at)
{
  c->at[at].to = MAX (c->at[at].to, c->at[at + 1].to);
  c->n--;
  memmove (&c->at[at + 1], &c->at[at + 2], (c->n - at - 1) * sizeof c->at[0]);
}

/* Makes room for one more. */
static void
join_nearest (struct changes *c)
{
  unsigned nearest = 0;

  for (unsigned i = 1; i + 1 < c->n; i++)
    if (c->at[i + 1].from - c->at[i].to
        < c->at[nearest + 1].from - c->at[nearest].to)
      nearest = i;
  join (c, nearest);
}

void
changes_add (struct changes *c, uint64_t from, uint64_t to)
{
  unsigned i = 0;

  if (from >= to)
    return;
  while (i < c->n && c->at[i].to < from)
    i++;
  if (i < c->n && c->at[i].from <= to) {        /* they touch */
    c->at[i].from = MIN (c->at[i].from, from);
    c->at[i].to = MAX (c->at[i].to, to);
    while (i + 1 < c->n && c->at[i + 1].from <= c->at[i].to)
      join (c, i);
    return;
  }
  if (c->n == CHANGES_MAX) {
    join_nearest (c);
    changes_add (c, from, to);
    return;
  }
  memmove (&c->at[i + 1], &c->at[i], (c->n - i) * sizeof c->at[0]);
  c->at[i] = (struct change) { from, to };
  c->n++;
}

void
changes_add_all (struct changes *c, const struct changes *more)
{
  for (unsigned i = 0; i < more->n; i++)
    changes_add (c, more->at[i].from, more->at[i].to);
}

bool
changes_overlap (const struct changes *c, uint64_t from, uint64_t to)
{
  for (unsigned i = 0; i < c->n; i++)
    if (c->at[i].from < to && from < c->at[i].to)
      return true;
  return false;
}
