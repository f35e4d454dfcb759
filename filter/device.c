/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Devices, exports, and the changes that a flush shows: see device.h.
 */
#include <string.h>

#include "buffers.h"
#include "device.h"
#include "dispatch.h"
#include "engine.h"
#include "lock.h"

static void
free_export (struct export *x)
{
  g_free (x->name);
  g_free (x);
}

struct device *
device_new (struct engine *e, const char *export_name, uint32_t unit,
            unsigned most)
{
  struct device *d = g_try_new0 (struct device, 1);
  struct export *x = g_try_new0 (struct export, 1);
  size_t size = strlen (export_name) + 1;
  /* A client chooses it, up to 4 KiB: g_strdup would abort without memory. */
  char *name = g_try_malloc (size);

  if (d == NULL || x == NULL || name == NULL) {
    g_free (d);
    g_free (x);
    g_free (name);
    return NULL;
  }
  memcpy (name, export_name, size);
  x->name = name;
  x->engine = e;
  x->link.data = x;
  d->export = x;
  d->unit = unit;
  limit_init (&d->read_limit, e->config.adapts_to > 0, most, unit, false);
  limit_init (&d->write_limit, e->config.adapts_to > 0, most, unit, true);
  limit_pair (&d->read_limit, &d->write_limit);
  d->link.data = d;
  return d;
}

static void
free_device (struct device *d)
{
  limit_destroy (&d->read_limit);
  limit_destroy (&d->write_limit);
  g_free (d);
}

void
device_discard (struct device *d)
{
  free_export (d->export);
  free_device (d);
}

/* Puts FRESH on the list, or frees it where the name is known. */
static struct export *
join_export (struct export *fresh)
{
  struct engine *e = fresh->engine;

  QUEUE_FOREACH (struct export, x, &e->exports, link) {
    if (strcmp (x->name, fresh->name) == 0) {
      free_export (fresh);
      return x;
    }
  }
  g_queue_push_tail_link (&e->exports, &fresh->link);
  if (e->forgot_changes)
    changes_add (&fresh->gone, 0, UINT64_MAX);
  return fresh;
}

static struct device *
find_shared (const struct engine *e, const struct device *fresh)
{
  for (GList *l = e->devices.head; fresh->shared && l; l = l->next) {
    struct device *d = l->data;

    if (d->export == fresh->export && d->shared && d->conns > 0)
      return d;
  }
  return NULL;
}

struct device *
device_join (struct device *fresh)
{
  struct engine *e = fresh->export->engine;
  struct device *d;

  fresh->export = join_export (fresh->export);
  d = find_shared (e, fresh);
  if (d)
    free_device (fresh);
  else {
    d = fresh;
    d->id = buffers_next_seq (e);
    g_queue_push_tail_link (&e->devices, &d->link);
    d->export->devices++;
  }
  d->conns++;
  d->refs++;
  return d;
}

/* A client can make up export names.  So of those that have no connection, the
 * filter remembers only this many with lost data, and this many without.
 */
enum { UNUSED_EXPORTS_MAX = 64 };

/* Forgets names without a connection: those without lost data or changes that a
 * flush has to show, and the oldest of both kinds beyond UNUSED_EXPORTS_MAX.
 * So changes push out no error of lost data.  Once changes are forgotten, the
 * first flush of a new name drops all prefetched data, as the name may be one
 * of those.
 */
static void
forget_exports (struct engine *e)
{
  unsigned n_lost = 0, n_changed = 0;

  for (GList *l = e->exports.tail, *prev; l; l = prev) {
    struct export *x = l->data;
    bool is_changed = x->gone.n + x->gone_flushing.n > 0;

    prev = l->prev;
    if (x->devices == 0
        && (atomic_load (&x->lost) != 0 ? ++n_lost > UNUSED_EXPORTS_MAX
            : !is_changed || ++n_changed > UNUSED_EXPORTS_MAX)) {
      e->forgot_changes |= is_changed;
      g_queue_unlink (&e->exports, l);
      free_export (x);
    }
  }
}

void
device_put (struct device *d)
{
  struct engine *e = d->export->engine;

  if (--d->refs > 0)
    return;
  g_queue_unlink (&e->devices, &d->link);
  if (--d->export->devices == 0) {      /* to the end: it was left last */
    g_queue_unlink (&e->exports, &d->export->link);
    g_queue_push_tail_link (&e->exports, &d->export->link);
  }
  e->last_read_limit = e->last_write_limit = (struct stats_limit) { 0 };
  limit_show (&d->read_limit, &e->last_read_limit);
  limit_show (&d->write_limit, &e->last_write_limit);
  extents_forget (d);
  free_device (d);
  forget_exports (e);
}

void
device_free_exports (struct engine *e)
{
  GList *l;

  while ((l = g_queue_pop_head_link (&e->exports)) != NULL)
    free_export (l->data);
}

/* Changes that a flush shows. */

void
device_note_change (struct conn *c, uint64_t offset, uint64_t end)
{
  LOCK_IN_SCOPE (&c->wrote_lock);
  changes_add (&c->wrote, offset, end);
  if (conn_writes_alone (c))
    changes_add (&c->wrote_alone, offset, end);
}

static bool
has_unflushed (struct conn *c, uint64_t offset, uint64_t end)
{
  LOCK_IN_SCOPE (&c->wrote_lock);
  return changes_overlap (&c->wrote, offset, end)
    || changes_overlap (&c->flushing, offset, end)
    || changes_overlap (&c->wrote_alone, offset, end);
}

bool
device_hides_own (struct conn *c, uint64_t offset, uint64_t end)
{
  return (c->backend.can_flush || !c->device->shared)
    && has_unflushed (c, offset, end);
}

void
device_note_gone (struct conn *c)
{
  struct export *x = c->device->export;

  if (!c->device->shared)
    return;
  changes_add_all (&x->gone_flushing, &c->flushing);
  /* No call changes it any more: no lock. */
  changes_add_all (&x->gone, &c->wrote);
}

/* A flush is about to begin. */
static void
begin_flush (struct device *d)
{
  struct engine *e = d->export->engine;
  struct export *x = d->export;

  ENGINE_LOCK_THEN_DISPATCH (e);
  d->flushes++;
  x->flushes++;
  if (d->shared) {
    changes_add_all (&x->gone_flushing, &x->gone);
    x->gone.n = 0;
  }
  QUEUE_FOREACH (struct conn, c, &e->conns, link) {
    if (c->device != d)
      continue;
    LOCK_IN_SCOPE (&c->wrote_lock);
    changes_add_all (&c->flushing, &c->wrote);
    c->wrote.n = 0;
  }
}

/* The changes of C can be seen everywhere now. */
static void
show_changes (struct conn *c, bool is_last)
{
  /* Its own prefetches used other contexts, if it has some. */
  const struct conn *but = c->backend.contexts ? NULL : c;

  for (unsigned i = 0; i < c->flushing.n; i++) {
    buffers_drop_others (c->engine, but, c->flushing.at[i].from,
                         c->flushing.at[i].to);
    extents_change (c->engine, c->flushing.at[i].from, c->flushing.at[i].to);
  }
  if (is_last) {
    LOCK_IN_SCOPE (&c->wrote_lock);
    c->flushing.n = 0;
  }
}

/* A flush has failed.  Another one that is under way may have begun before the
 * changes: only a later one shows them.
 */
static void
put_back (struct device *d)
{
  changes_add_all (&d->export->gone, &d->export->gone_flushing);
  QUEUE_FOREACH (struct conn, c, &d->export->engine->conns, link) {
    if (c->device != d)
      continue;
    LOCK_IN_SCOPE (&c->wrote_lock);
    changes_add_all (&c->wrote, &c->flushing);
  }
}

static void
end_flush (struct device *d, int err)
{
  struct export *x = d->export;
  struct engine *e = x->engine;
  bool is_last, is_last_of_name;

  ENGINE_LOCK_THEN_DISPATCH (e);
  /* If not, another flush is to show some of the changes. */
  is_last = --d->flushes == 0;
  is_last_of_name = --x->flushes == 0;
  if (err) {
    put_back (d);
    return;
  }
  QUEUE_FOREACH (struct conn, c, &e->conns, link) {
    if (c->device == d)
      show_changes (c, is_last);
  }
  for (unsigned i = 0; d->shared && i < x->gone_flushing.n; i++) {
    buffers_drop (e, x->gone_flushing.at[i].from, x->gone_flushing.at[i].to);
    extents_change (e, x->gone_flushing.at[i].from, x->gone_flushing.at[i].to);
  }
  if (d->shared && is_last_of_name)
    x->gone_flushing.n = 0;
}

int
device_flush (struct conn *c)
{
  int err = 0;

  begin_flush (c->device);
  if (c->backend.can_flush)
    err = backend_flush (&c->backend);
  end_flush (c->device, err);
  return err;
}

/* A client may send its flush on any connection, and the plugin may return an
 * error only once.
 */
static void
note_show_error (struct device *d, int err)
{
  struct engine *e = d->export->engine;

  ENGINE_LOCK_THEN_DISPATCH (e);
  d->show_error = err;
  QUEUE_FOREACH (struct conn, c, &e->conns, link) {
    if (c->device == d)
      atomic_store (&c->show_error, err);
  }
}

int
device_take_show_error (struct conn *c)
{
  if (atomic_load (&c->show_error) == 0)
    return 0;
  /* Both under the lock, so that no later error is cleared. */
  ENGINE_LOCK_THEN_DISPATCH (c->engine);
  c->device->show_error = 0;
  return atomic_exchange (&c->show_error, 0);
}

int
device_show_own (struct conn *c, uint64_t offset, uint64_t end)
{
  int err;

  if (c->backend.contexts == NULL || !c->device->shared
      || !device_hides_own (c, offset, end))
    return 0;
  err = device_flush (c);
  if (err)
    note_show_error (c->device, err);
  return err;
}
