#include "backend.h"
#include "pace.h"
#include "stats.h"

int
backend_pread (struct backend *b, void *buf, uint32_t count, uint64_t offset)
{
  uint64_t start = stats_begin_device (b->stats);
  int err = b->ops->pread (b->handle, buf, count, offset);
  uint64_t took_ns = stats_end_device (b->stats, STATS_DEVICE_READ, start, count);

  if (err == 0)
    pace_note (b->pace_read, took_ns, count);
  return err;
}

int
backend_pwrite (struct backend *b, const void *buf, uint32_t count, uint64_t offset,
                unsigned flags)
{
  uint64_t start = stats_begin_device (b->stats);
  int err = b->ops->pwrite (b->handle, buf, count, offset, flags);
  uint64_t took_ns = stats_end_device (b->stats, STATS_DEVICE_WRITE, start, count);

  if (err == 0)
    pace_note (b->pace_write, took_ns, count);
  return err;
}
