/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The plugin of a simulation: see device.h.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <glib.h>

#include "device.h"
#include "judge.h"
#include "sim.h"

struct handle {
  struct nbdkit_async_driver driver;
  bool is_serial, is_busy;
  struct cell view[CELLS];      /* if the device hides */
};

enum kind { K_READ, K_WRITE, K_ZERO, K_TRIM, K_FLUSH, K_EXTENTS, K_OPEN };

static struct {
  struct device_setup setup;
  bool is_healed;
  struct cell cells[CELLS], durable[CELLS], shown[CELLS];
  uint64_t failed_at[CELLS];
  uint64_t version;
  uint64_t bad_until_ns;        /* operations of bad_kinds fail */
  unsigned bad_kinds;
  int bad_err;
  GPtrArray *handles, *asyncs;
} dev;

/* Cells. */

void
cells_fill (void *buf, unsigned n, uint64_t value)
{
  uint64_t *words = buf;

  for (unsigned i = 0; i < n * (CELL / 8); i++)
    words[i] = value;
}

uint64_t
cell_value (const void *buf, unsigned i)
{
  const uint64_t *words = (const uint64_t *) buf + i * (CELL / 8);

  for (unsigned k = 1; k < CELL / 8; k++)
    if (words[k] != words[0])
      sim_fail ("a cell is torn: it has %" PRIu64 " and %" PRIu64, words[0],
                words[k]);
  return words[0];
}

struct cell
device_volatile (unsigned cell)
{
  return dev.cells[cell];
}

struct cell
device_durable (unsigned cell)
{
  return dev.durable[cell];
}

bool
device_has_failed (unsigned cell, uint64_t at)
{
  return dev.failed_at[cell] > at;
}

/* Time and errors. */

void
device_start (const struct device_setup *setup)
{
  memset (&dev, 0, sizeof dev);
  dev.setup = *setup;
  dev.handles = g_ptr_array_new_with_free_func (g_free);
  dev.asyncs = g_ptr_array_new ();
  /* Half of the units are holes. */
  for (unsigned i = 0; i < CELLS; i++)
    if (i / (UNIT / CELL) % 2 == 0)
      dev.cells[i] = (struct cell) { 1, 0 };
  memcpy (dev.durable, dev.cells, sizeof dev.cells);
  memcpy (dev.shown, dev.cells, sizeof dev.cells);
}

void
device_stop (void)
{
  if (dev.asyncs->len > 0)
    sim_fail ("an operation of a hook is left");
  if (dev.handles->len > 0)
    sim_fail ("%u contexts are left open", dev.handles->len);
  g_ptr_array_unref (dev.handles);
  g_ptr_array_unref (dev.asyncs);
}

void
device_heal (void)
{
  dev.is_healed = true;
}

static void
take_time (void)
{
  uint64_t ns = dev.setup.latency_ns;

  if (ns == 0) {
    sim_point ();
    return;
  }
  ns = ns / 2 + sim_random (ns);
  if (!dev.is_healed && dev.setup.hang_one_in
      && sim_one_in (dev.setup.hang_one_in))
    ns += UINT64_C (1000000) * sim_random (10000);
  sim_sleep (ns);
}

static int
draw_error (enum kind kind)
{
  static const int errors[] = {
    EIO, EIO, EIO, ENOSPC, ENOSPC, EPERM, EINVAL, ESHUTDOWN
  };
  int err;

  if (!dev.setup.fails || dev.is_healed)
    return 0;
  if (sim_now_ns () < dev.bad_until_ns && dev.bad_kinds >> kind & 1)
    return dev.bad_err;
  if (!sim_one_in (40))
    return 0;
  err = errors[sim_random (G_N_ELEMENTS (errors))];
  if (sim_one_in (4)) {
    dev.bad_until_ns = sim_now_ns () + sim_random (20) * dev.setup.latency_ns;
    dev.bad_kinds = sim_random (256);
    dev.bad_err = err;
  }
  return err;
}

static void
begin (struct handle *h)
{
  if (h->is_serial && h->is_busy)
    sim_fail ("a serialized handle has two calls");
  h->is_busy = true;
}

static void
end (struct handle *h)
{
  h->is_busy = false;
}

/* Operations.  Each works on the first half of its cells, waits, and works on
 * the second one.
 */

static bool
is_given_up (struct nbdkit_async_io *const *io)
{
  return io && *io == NULL;
}

static void
change_one (struct handle *h, unsigned i, uint64_t value)
{
  dev.cells[i] = (struct cell) { value, ++dev.version };
  if (dev.setup.hides)
    h->view[i] = dev.cells[i];
}

static void
change_some (struct handle *h, enum kind kind, unsigned from, unsigned to,
             unsigned base, const void *buf, int err)
{
  for (unsigned i = from; i < to; i++) {
    if (err) {
      dev.failed_at[i] = judge_time ();
      if (sim_one_in (2))
        continue;
    }
    if (kind == K_WRITE)
      change_one (h, i, cell_value (buf, i - base));
    else if (kind == K_ZERO || sim_one_in (2))  /* a trim may do nothing */
      change_one (h, i, 0);
  }
}

static void
make_durable (unsigned i, struct cell cell)
{
  if (cell.version > dev.durable[i].version)
    dev.durable[i] = cell;
}

static int
change (struct handle *h, enum kind kind, const void *buf, uint32_t count,
        uint64_t offset, unsigned flags, struct nbdkit_async_io *const *io)
{
  unsigned from = offset / CELL, to = from + count / CELL;
  unsigned half = from + sim_random (to - from);
  int err;

  begin (h);
  take_time ();
  err = draw_error (kind);
  if (!is_given_up (io))
    change_some (h, kind, from, half, from, buf, err);
  take_time ();
  if (!is_given_up (io))
    change_some (h, kind, half, to, from, buf, err);
  if (err == 0 && flags & BACKEND_FUA)
    for (unsigned i = from; i < to; i++)
      make_durable (i, dev.cells[i]);
  end (h);
  return err;
}

static void
read_some (const struct handle *h, unsigned from, unsigned to, unsigned base,
           char *buf)
{
  for (unsigned i = from; i < to; i++)
    cells_fill (buf + (i - base) * CELL, 1,
                (dev.setup.hides ? h->view[i] : dev.cells[i]).value);
}

static int
do_read (struct handle *h, void *buf, uint32_t count, uint64_t offset,
         struct nbdkit_async_io *const *io)
{
  unsigned from = offset / CELL, to = from + count / CELL;
  unsigned half = from + sim_random (to - from);
  int err;

  begin (h);
  take_time ();
  if (!is_given_up (io))
    read_some (h, from, half, from, buf);
  take_time ();
  err = draw_error (K_READ);
  if (!is_given_up (io)) {
    read_some (h, half, to, from, buf);
    if (err)
      memset (buf, 0xbb, count);
  }
  end (h);
  return err;
}

static int
device_pread (void *h, void *buf, uint32_t count, uint64_t offset)
{
  return do_read (h, buf, count, offset, NULL);
}

static int
device_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset,
               unsigned flags)
{
  return change (h, K_WRITE, buf, count, offset, flags, NULL);
}

static int
device_zero (void *h, uint32_t count, uint64_t offset, unsigned flags)
{
  return change (h, K_ZERO, NULL, count, offset, flags, NULL);
}

static int
device_trim (void *h, uint32_t count, uint64_t offset, unsigned flags)
{
  return change (h, K_TRIM, NULL, count, offset, flags, NULL);
}

static void
show (struct cell *view, const struct cell *data)
{
  for (unsigned i = 0; i < CELLS; i++)
    if (data[i].version > view[i].version)
      view[i] = data[i];
}

static int
device_flush (void *vh)
{
  g_autofree struct cell *data = g_memdup2 (dev.cells, sizeof dev.cells);
  struct handle *h = vh;
  int err;

  begin (h);
  take_time ();
  err = draw_error (K_FLUSH);
  for (unsigned i = 0; i < CELLS && err == 0; i++)
    make_durable (i, data[i]);
  if (err == 0 && dev.setup.hides) {
    show (dev.shown, data);
    for (unsigned i = 0; i < dev.handles->len; i++)
      show (((struct handle *) dev.handles->pdata[i])->view, data);
  }
  end (h);
  return err;
}

static int
device_extents (void *vh, uint32_t count, uint64_t offset, bool is_one,
                backend_add_extent *add, void *to)
{
  struct handle *h = vh;
  unsigned end_cell = (offset + count) / CELL;
  const struct cell *data;
  g_autofree struct cell *copy = NULL;
  int err;

  begin (h);
  take_time ();
  data = copy = g_memdup2 (dev.setup.hides ? h->view : dev.cells,
                           sizeof dev.cells);
  take_time ();
  err = draw_error (K_EXTENTS);
  end (h);
  for (unsigned i = offset / CELL, k; err == 0 && i < end_cell; i = k) {
    bool is_zero = data[i].value == 0;

    for (k = i + 1; k < end_cell && (data[k].value == 0) == is_zero; k++)
      ;
    add (to, i * CELL, k * CELL, is_zero ? BACKEND_HOLE | BACKEND_ZERO : 0);
    if (is_one)
      break;
  }
  return err;
}

static bool
device_is_gone (void *h G_GNUC_UNUSED)
{
  return false;
}

/* Handles. */

static struct handle *
new_handle (void)
{
  struct handle *h = g_new0 (struct handle, 1);

  memcpy (h->view, dev.shown, sizeof h->view);
  h->is_serial = dev.setup.kind == CONTEXTS;
  g_ptr_array_add (dev.handles, h);
  return h;
}

static void *
device_open_more (const struct backend *like G_GNUC_UNUSED,
                  const char *export_name G_GNUC_UNUSED)
{
  take_time ();
  return draw_error (K_OPEN) ? NULL : new_handle ();
}

static void
close_handle (void *vh)
{
  struct handle *h = vh;

  take_time ();
  if (h->is_busy && h->is_serial)
    sim_fail ("a handle is closed during a call");
  if (!g_ptr_array_remove_fast (dev.handles, h))
    sim_fail ("a handle is closed twice");
}

static const struct backend_ops ops = {
  .pread = device_pread, .pwrite = device_pwrite, .zero = device_zero,
  .trim = device_trim, .flush = device_flush, .extents = device_extents,
  .is_gone = device_is_gone, .open = device_open_more, .close = close_handle,
};

/* Hooks. */

struct async {
  struct nbdkit_async_io *io;   /* NULL: it was given up */
};

static void
run_async (void *va)
{
  struct async *a = va;
  struct nbdkit_async_io *io = a->io;
  int err = io->is_write
    ? change (io->handle, K_WRITE, io->buf, io->count, io->offset, 0, &a->io)
    : do_read (io->handle, io->buf, io->count, io->offset, &a->io);

  g_ptr_array_remove_fast (dev.asyncs, a);
  if (a->io)
    io->done (io, err);
  g_free (a);
}

static void
start_async (struct nbdkit_async_io *io)
{
  struct async *a = g_new0 (struct async, 1);

  a->io = io;
  g_ptr_array_add (dev.asyncs, a);
  if (sim_one_in (3))
    run_async (a);
  else
    sim_detach (sim_spawn ("hook", run_async, a));
}

static bool
give_up_async (struct nbdkit_async_io *io)
{
  for (unsigned i = 0; i < dev.asyncs->len; i++) {
    struct async *a = dev.asyncs->pdata[i];

    if (a->io == io) {
      a->io = NULL;
      return true;
    }
  }
  return false;
}

struct backend
device_open (bool shared)
{
  struct handle *h = new_handle ();
  struct backend b = {
    .ops = &ops, .handle = h, .size = CELLS * CELL, .min_block = 1,
    .max_block = UINT32_MAX, .can_write = true, .can_flush = true,
    .shared = shared,
  };

  if (dev.setup.kind == CONTEXTS)
    b.serial = b.may_open = true;
  if (dev.setup.kind == HOOKS) {
    h->driver = (struct nbdkit_async_driver) {
      .can_read = true, .can_write = true, .can_cancel = true,
      .grace_ns = UINT64_C (3600000000000), .start = start_async,
      .give_up = give_up_async
    };
    b.hooks = &h->driver;
    b.hooks_handle = h;
  }
  return b;
}

void
device_close (struct backend *b)
{
  close_handle (b->handle);
}
