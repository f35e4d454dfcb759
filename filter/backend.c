/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Calls into the plugin and its async hooks: see backend.h.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include <glib.h>

#include "backend.h"
#include "clock.h"
#include "contexts.h"
#include "limit.h"
#include "lock.h"
#include "speed.h"
#include "stats.h"

/* How many replies this thread is inside of. */
static __thread unsigned replying;
/* When this call saw that its client has gone; 0: it has not. */
static __thread uint64_t client_gone_ns;

/* An operation has completed.  Returns when. */
static uint64_t
note (struct backend *b, bool is_write, uint64_t start_ns, uint32_t count,
      int err)
{
  enum stats_kind kind = is_write ? STATS_DEVICE_WRITE : STATS_DEVICE_READ;
  struct speed *speed = is_write ? b->write_speed : b->read_speed;
  uint64_t end_ns = stats_end_device (b->stats, kind, start_ns, count);

  if (err == 0)
    speed_note (speed, end_ns - start_ns, count);
  /* Nothing is in flight on a device that copies, but what clients send. */
  if (speed_wait_ns (speed) > 0)
    limit_note (is_write ? b->write_limit : b->read_limit, count, start_ns,
                end_ns, err);
  return end_ns;
}

bool
backend_is_like (const struct backend *a, const struct backend *b)
{
  return a->size == b->size && a->min_block == b->min_block
    && a->max_block == b->max_block && a->can_write == b->can_write
    && a->can_flush == b->can_flush && a->shared == b->shared
    && a->readonly == b->readonly;
}

void
backend_begin_own (struct backend *b)
{
  lock_assert_none ();
  if (b->serial)
    pthread_mutex_lock (&b->own_lock);
}

void
backend_end_own (struct backend *b)
{
  if (b->serial)
    pthread_mutex_unlock (&b->own_lock);
}

/* The context for a call: this thread's lease, or the connection's own one. */
static void *
begin_call (struct backend *b)
{
  void *handle = b->contexts ? contexts_leased () : NULL;

  lock_assert_none ();
  if (handle)
    return handle;
  backend_begin_own (b);
  return b->handle;
}

/* Returns ERR, the call's. */
static int
end_call (struct backend *b, const void *handle, int err)
{
  if (handle == b->handle)
    backend_end_own (b);
  else
    contexts_note (err);
  return err;
}

/* A wait for the handle is not the plugin's time. */
static int
do_pread (struct backend *b, void *buf, uint32_t count, uint64_t offset,
          uint64_t *start_ns, uint64_t *end_ns)
{
  void *handle = begin_call (b);
  int err;

  *start_ns = stats_begin_device (b->stats);
  err = b->ops->pread (handle, buf, count, offset);
  *end_ns = note (b, false, *start_ns, count, err);
  return end_call (b, handle, err);
}

static int
do_pwrite (struct backend *b, const void *buf, uint32_t count, uint64_t offset,
           unsigned flags, uint64_t *start_ns, uint64_t *end_ns)
{
  void *handle = begin_call (b);
  int err;

  *start_ns = stats_begin_device (b->stats);
  err = b->ops->pwrite (handle, buf, count, offset, flags);
  *end_ns = note (b, true, *start_ns, count, err);
  return end_call (b, handle, err);
}

int
backend_pread (struct backend *b, void *buf, uint32_t count, uint64_t offset)
{
  uint64_t start_ns, end_ns;

  return do_pread (b, buf, count, offset, &start_ns, &end_ns);
}

int
backend_pwrite (struct backend *b, const void *buf, uint32_t count,
                uint64_t offset, unsigned flags)
{
  uint64_t start_ns, end_ns;

  return do_pwrite (b, buf, count, offset, flags, &start_ns, &end_ns);
}

int
backend_zero (struct backend *b, uint32_t count, uint64_t offset,
              unsigned flags)
{
  void *handle = begin_call (b);

  return end_call (b, handle, b->ops->zero (handle, count, offset, flags));
}

int
backend_trim (struct backend *b, uint32_t count, uint64_t offset,
              unsigned flags)
{
  void *handle = begin_call (b);

  return end_call (b, handle, b->ops->trim (handle, count, offset, flags));
}

int
backend_flush (struct backend *b)
{
  void *handle = begin_call (b);

  return end_call (b, handle, b->ops->flush (handle));
}

int
backend_extents (struct backend *b, uint32_t count, uint64_t offset,
                 bool is_one, backend_add_extent *add, void *to)
{
  void *handle = begin_call (b);
  uint64_t start = clock_ns (), end;
  int err = b->ops->extents (handle, count, offset, is_one, add, to);

  end_call (b, handle, err);
  end = stats_end (b->stats, STATS_DEVICE_EXTENTS, start, count);
  if (err == 0)
    speed_note (b->extents_speed, end - start, 0);
  return err;
}

static void
note_io (struct backend_io *io, int err)
{
  io->end_ns = note (io->backend, io->hook.is_write, io->start_ns,
                     io->hook.count, err);
}

static void
clear (struct backend_io *io)
{
  if (io->clear_bytes == 0 || io->hook.is_write)
    return;
  memset (io->hook.buf, 0, io->clear_bytes);
  io->clear_bytes = 0;
}

void
backend_io_do (struct backend_io *io)
{
  struct nbdkit_async_io *h = &io->hook;
  struct backend *b = io->backend;
  int err;

  clear (io);
  err = h->is_write
    ? do_pwrite (b, h->buf, h->count, h->offset, 0, &io->start_ns, &io->end_ns)
    : do_pread (b, h->buf, h->count, h->offset, &io->start_ns, &io->end_ns);
  io->done (io, err);           /* last: it may free or reuse io */
}

/* Hooks. */

bool
backend_has_hook (const struct backend *b, bool is_write)
{
  return b->hooks && (is_write ? b->hooks->can_write : b->hooks->can_read);
}

bool
backend_may_start (void)
{
  return replying == 0;
}

static void
replied (struct nbdkit_async_io *h, int err)
{
  struct backend_io *io = (struct backend_io *) h;

  note_io (io, err);
  /* A reply to backend_io_give_up does not show that the plugin is alive. */
  if (!atomic_load (&io->giving_up))
    atomic_store_explicit (&io->backend->alive_ns, io->end_ns,
                           memory_order_relaxed);
  replying++;                   /* replies nest, where hooks reply at once */
  io->done (io, err);
  replying--;
}

void
backend_io_start (struct backend_io *io)
{
  struct backend *b = io->backend;

  lock_assert_none ();
  clear (io);
  io->hook.handle = b->hooks_handle;
  io->hook.done = replied;
  io->start_ns = stats_begin_device (b->stats);
  if (atomic_load (&b->gone_ns) != 0)
    atomic_store (&b->alive_ns, io->start_ns);
  stats_add (b->stats, STATS_HOOKED, 1);
  b->hooks->start (&io->hook);
}

void
backend_set_gone (struct backend *b)
{
  if (atomic_load (&b->gone_ns) == 0)
    atomic_store (&b->gone_ns, clock_ns ());
}

void
backend_begin_call (void)
{
  client_gone_ns = 0;
}

bool
backend_is_silent (struct backend *b)
{
  uint64_t gone = atomic_load (&b->gone_ns), alive = atomic_load (&b->alive_ns);

  if (gone == 0)
    gone = client_gone_ns;
  if (gone == 0) {
    lock_assert_none ();
    if (b->ops->is_gone (b->handle))
      client_gone_ns = clock_ns ();
    return false;
  }
  return clock_ns () >= MAX (gone, alive) + b->hooks->grace_ns;
}

void
backend_io_give_up (struct backend_io *io)
{
  bool is_given_up;

  lock_assert_none ();
  atomic_store (&io->giving_up, true);
  is_given_up = io->backend->hooks->give_up (&io->hook);
  atomic_store (&io->giving_up, false);
  if (!is_given_up)
    return;
  note_io (io, ESHUTDOWN);
  io->done (io, ESHUTDOWN);
}
