/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Unit tests of plugin/store, the sparse device, and of plugin/latency, the
 * times of the command line.
 */

#include <errno.h>
#include <locale.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <glib.h>

#include "clock.h"
#include "latency.h"
#include "store.h"

#define PAGE STORE_PAGE_BYTES
#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)
#define TIB (1024 * 1024 * MIB)

/* Valgrind and sanitizers cannot map terabytes, and use memory of their own. */
static bool
has_tool (void)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
  return true;
#else
  const char *tool = g_getenv ("TOOL");
  return tool && *tool;
#endif
}

static struct store *
new_store (uint64_t size)
{
  struct store *st = store_new (size);

  g_assert_nonnull (st);
  return st;
}

static void
fill (struct store *st, int byte, uint64_t count, uint64_t offset)
{
  unsigned char *buf = g_malloc (count);

  memset (buf, byte, count);
  store_write (st, buf, count, offset);
  g_free (buf);
}

static void
assert_bytes (struct store *st, int byte, uint64_t count, uint64_t offset)
{
  unsigned char *buf = g_malloc (count);

  memset (buf, ~byte, count);
  store_read (st, buf, count, offset);
  for (uint64_t i = 0; i < count; i++)
    if (buf[i] != byte)
      g_error ("byte at %" G_GUINT64_FORMAT " is %d, not %d",
               offset + i, buf[i], byte);
  g_free (buf);
}

static void
assert_run (struct store *st, uint64_t count, uint64_t offset,
            bool written, uint64_t expected)
{
  bool is_written;

  g_assert_cmpuint (store_run (st, count, offset, &is_written), ==, expected);
  g_assert_cmpint (is_written, ==, written);
}

static uint64_t
resident_bytes (void)
{
  g_autofree char *statm = NULL;
  char *end;

  g_assert_true (g_file_get_contents ("/proc/self/statm", &statm, NULL, NULL));
  strtoull (statm, &end, 10);
  return strtoull (end, NULL, 10) * (uint64_t) sysconf (_SC_PAGESIZE);
}

static void
test_new_bad (void)
{
  errno = 0;
  g_assert_null (store_new (0));
  g_assert_cmpint (errno, ==, EINVAL);
  errno = 0;
  g_assert_null (store_new (UINT64_MAX));
  g_assert_cmpint (errno, ==, EINVAL);
  if (has_tool ())
    return;
  errno = 0;
  g_assert_null (store_new (UINT64_C (1) << 62));
  g_assert_cmpint (errno, ==, ENOMEM);
  errno = 0;
  g_assert_null (store_new (INT64_MAX));
  g_assert_cmpint (errno, ==, ENOMEM);
}

static void
test_fresh_is_hole (void)
{
  struct store *st = new_store (10 * MIB + 1);

  assert_run (st, 10 * MIB + 1, 0, false, 10 * MIB + 1);
  assert_bytes (st, 0, 1 * MIB, 0);
  assert_bytes (st, 0, 1, 10 * MIB);
  assert_run (st, 10 * MIB + 1, 0, false, 10 * MIB + 1);
  store_free (st);
}

/* Compares every operation with a plain array.  Ranges start and end at, just
 * before and just after pages and chunks.
 */
#define MODEL_SIZE (260 * KIB + 77)
struct model {
  unsigned char bytes[MODEL_SIZE];
  bool written[MODEL_SIZE / PAGE + 1];
};

static void
model_apply (struct model *m, int op, int byte, uint64_t count,
             uint64_t offset)
{
  const uint64_t end = offset + count;

  memset (&m->bytes[offset], byte, count);
  for (uint64_t page = offset / PAGE; page * PAGE < end; page++) {
    const uint64_t page_end = MIN ((page + 1) * PAGE, MODEL_SIZE);

    if (op == 0)
      m->written[page] = true;
    else if (op == 1 && page * PAGE >= offset && page_end <= end)
      m->written[page] = false;
  }
}

static void
model_compare (const struct model *m, struct store *st)
{
  unsigned char *buf = g_malloc (MODEL_SIZE);
  uint64_t n;
  bool written;

  store_read (st, buf, MODEL_SIZE, 0);
  g_assert_cmpmem (buf, MODEL_SIZE, m->bytes, MODEL_SIZE);
  for (uint64_t at = 0; at < MODEL_SIZE; at += n) {
    n = store_run (st, MODEL_SIZE - at, at, &written);
    g_assert_cmpuint (n, >, 0);
    for (uint64_t page = at / PAGE; page * PAGE < at + n; page++)
      g_assert_cmpint (m->written[page], ==, written);
    /* A run is as long as it can be. */
    if (at + n < MODEL_SIZE)
      g_assert_cmpint (m->written[(at + n) / PAGE], !=, written);
  }
  g_free (buf);
}

static void
test_model (void)
{
  static const uint64_t edges[] = { 0, 4096, 8192, 61440, 65536, 131072,
                                    196608, 262144, MODEL_SIZE };
  struct store *st = new_store (MODEL_SIZE);
  struct model *m = g_new0 (struct model, 1);

  for (int i = 0; i < 3000; i++) {
    uint64_t at[2];
    const int op = g_test_rand_int_range (0, 3);
    const int byte = op == 0 ? g_test_rand_int_range (0, 256) : 0;

    for (int j = 0; j < 2; j++) {
      at[j] = edges[g_test_rand_int_range (0, G_N_ELEMENTS (edges))];
      at[j] += (uint64_t) g_test_rand_int_range (0, 3);
      at[j] = MIN (at[j] ? at[j] - 1 : 0, MODEL_SIZE);
    }
    const uint64_t offset = MIN (at[0], at[1]);
    const uint64_t count = MAX (at[0], at[1]) - offset;

    if (count == 0)             /* nbdkit sends no empty operation */
      continue;
    if (op == 0)
      fill (st, byte, count, offset);
    else
      store_zero (st, count, offset, op == 1);
    model_apply (m, op, byte, count, offset);
    model_compare (m, st);
  }
  g_free (m);
  store_free (st);
}

static void
test_runs (void)
{
  struct store *st = new_store (1 * MIB);

  fill (st, 1, 1, 70 * KIB);    /* page 17 = 68..72 KiB */
  assert_run (st, 1 * MIB, 0, false, 68 * KIB);
  assert_run (st, 68 * KIB, 0, false, 68 * KIB);
  assert_run (st, 10, 5, false, 10);
  assert_run (st, 1 * MIB - 69 * KIB, 69 * KIB, true, 3 * KIB);
  assert_run (st, 100, 69 * KIB, true, 100);
  assert_run (st, 1 * MIB - 72 * KIB, 72 * KIB, false, 952 * KIB);
  fill (st, 1, 128 * KIB, 60 * KIB);
  assert_run (st, 1 * MIB - 60 * KIB, 60 * KIB, true, 128 * KIB);
  store_free (st);
}

static void
test_last_page (void)
{
  struct store *st = new_store (PAGE + 100);

  fill (st, 7, PAGE + 100, 0);
  store_zero (st, 100, PAGE, true);
  assert_run (st, PAGE + 100, 0, true, PAGE);
  assert_run (st, 100, PAGE, false, 100);
  assert_bytes (st, 7, PAGE, 0);
  assert_bytes (st, 0, 100, PAGE);

  /* This range does not reach the end, so the page stays. */
  fill (st, 7, 100, PAGE);
  store_zero (st, 99, PAGE, true);
  assert_run (st, 100, PAGE, true, 100);
  assert_bytes (st, 7, 1, PAGE + 99);
  store_free (st);
}

static void
test_zero_keeps (void)
{
  struct store *st = new_store (1 * MIB);

  fill (st, 7, 256 * KIB, 256 * KIB);
  store_zero (st, 1 * MIB, 0, false);
  assert_bytes (st, 0, 1 * MIB, 0);
  assert_run (st, 1 * MIB, 0, false, 256 * KIB);
  assert_run (st, 768 * KIB, 256 * KIB, true, 256 * KIB);
  store_free (st);
}

static void
test_memory (void)
{
  const uint64_t size = 64 * MIB, some = 4 * MIB;
  struct store *st = new_store (size);
  uint64_t before, full;

  if (has_tool ()) {
    g_test_skip ("resident memory means nothing under a tool");
    store_free (st);
    return;
  }
  before = resident_bytes ();
  assert_bytes (st, 0, some, 0);
  store_zero (st, size, 0, true);
  store_zero (st, size, 0, false);
  g_assert_cmpuint (resident_bytes (), <, before + 2 * some);

  for (uint64_t at = 0; at < size; at += MIB)
    fill (st, 1, MIB, at);
  full = resident_bytes ();
  g_assert_cmpuint (full, >=, before + size - some);

  store_zero (st, size / 2, 0, true);
  g_assert_cmpuint (resident_bytes (), <, full - size / 2 + some);
  /* Without give_back memory stays. */
  store_zero (st, size / 2, size / 2, false);
  g_assert_cmpuint (resident_bytes (), >, full - size / 2 - some);
  store_free (st);
  g_assert_cmpuint (resident_bytes (), <, before + some);
}

static void
test_mlocked (void)
{
  struct store *st;

  if (mlockall (MCL_FUTURE) == -1) {
    g_test_skip ("may not lock memory");
    return;
  }
  st = store_new (1 * MIB);
  munlockall ();
  if (st == NULL) {
    g_test_skip ("may not lock 1 MiB");
    return;
  }
  /* The kernel does not take the memory back.  It must read as 0 anyway. */
  fill (st, 7, 1 * MIB, 0);
  mlockall (MCL_CURRENT);
  store_zero (st, 1 * MIB, 0, true);
  munlockall ();
  assert_run (st, 1 * MIB, 0, false, 1 * MIB);
  assert_bytes (st, 0, 1 * MIB, 0);
  /* A read of a hole does not touch memory, so write to one. */
  fill (st, 7, 1, 64 * KIB);
  assert_bytes (st, 0, 4 * KIB - 1, 64 * KIB + 1);
  store_free (st);
}

static void
test_populate (void)
{
  const uint64_t size = 32 * MIB;
  struct store *st = new_store (size);
  uint64_t before = resident_bytes ();

  g_assert_cmpint (store_populate (st), ==, 0);
  if (!has_tool ())
    g_assert_cmpuint (resident_bytes (), >=, before + size - MIB);
  assert_run (st, size, 0, false, size);
  assert_bytes (st, 0, size, 0);
  /* A read of a hole touches memory here. */
  fill (st, 7, 3 * MIB, 1000);
  store_zero (st, 3 * MIB, 1000, true);
  assert_bytes (st, 0, size, 0);
  store_free (st);
}

static void
test_huge (void)
{
  struct store *st;
  uint64_t before;

  if (has_tool ()) {
    g_test_skip ("too much address space for a tool");
    return;
  }
  before = resident_bytes ();
  st = new_store (TIB);
  fill (st, 1, 3, TIB - 3);
  fill (st, 2, 3, TIB / 2);
  assert_bytes (st, 1, 3, TIB - 3);
  assert_bytes (st, 2, 3, TIB / 2);
  assert_run (st, UINT32_MAX, 0, false, UINT32_MAX);
  store_zero (st, UINT32_MAX, TIB - UINT32_MAX, true);
  assert_bytes (st, 0, 3, TIB - 3);
  g_assert_cmpuint (resident_bytes (), <, before + 8 * MIB);
  store_free (st);
}

/* Threads work on the same few chunks.  Each writer fills a range within a
 * chunk with one value.  An operation is atomic per chunk, so a read of
 * such a range sees only one value.
 */
struct worker {
  struct store *st;
  unsigned seed;
};

#define SLOT_BYTES (24 * KIB)

static void *
work (void *arg)
{
  struct worker *w = arg;
  g_autoptr (GRand) rand = g_rand_new_with_seed (w->seed);
  unsigned char buf[SLOT_BYTES];
  bool written;

  for (int i = 0; i < 4000; i++) {
    const uint64_t offset = (uint64_t) g_rand_int_range (rand, 0, 4) * 64 * KIB
      + 10 * KIB + 123;

    switch (g_rand_int_range (rand, 0, 5)) {
    case 0:
      store_zero (w->st, SLOT_BYTES, offset, true);
      break;
    case 1:
      store_zero (w->st, SLOT_BYTES, offset, false);
      break;
    case 2:
      memset (buf, g_rand_int_range (rand, 1, 256), sizeof buf);
      store_write (w->st, buf, sizeof buf, offset);
      break;
    case 3:
      g_assert_cmpuint (store_run (w->st, 200 * KIB, offset, &written), >, 0);
      break;
    default:
      store_read (w->st, buf, sizeof buf, offset);
      for (uint64_t j = 1; j < sizeof buf; j++)
        if (buf[j] != buf[0])
          g_error ("torn: %d beside %d", buf[j], buf[0]);
    }
  }
  return NULL;
}

static void
test_threads (void)
{
  struct store *st = new_store (1 * MIB);
  struct worker workers[8];
  pthread_t threads[8];

  for (unsigned i = 0; i < 8; i++) {
    workers[i] = (struct worker) { st, g_test_rand_int () & 0xffff };
    g_assert_cmpint (pthread_create (&threads[i], NULL, work, &workers[i]),
                     ==, 0);
  }
  for (unsigned i = 0; i < 8; i++)
    pthread_join (threads[i], NULL);
  store_free (st);
}

/* Each thread owns pages beside those of other threads in the same chunk.  They
 * share only the chunk's word, and no bit may get lost.
 */
static void *
own_pages (void *arg)
{
  const struct worker *w = arg;
  unsigned char buf[PAGE];

  memset (buf, (int) w->seed + 1, sizeof buf);
  for (int i = 0; i < 300; i++)
    for (uint64_t page = w->seed; page < 256; page += 8) {
      if (i % 2)
        store_zero (w->st, PAGE, page * PAGE, true);
      else
        store_write (w->st, buf, PAGE, page * PAGE);
    }
  for (uint64_t page = w->seed; page < 256; page += 8)
    if (w->seed % 2)
      store_write (w->st, buf, PAGE, page * PAGE);
  return NULL;
}

static void
test_threads_bits (void)
{
  struct store *st = new_store (1 * MIB);
  struct worker workers[8];
  pthread_t threads[8];

  for (unsigned i = 0; i < 8; i++) {
    workers[i] = (struct worker) { st, i };
    g_assert_cmpint (pthread_create (&threads[i], NULL, own_pages,
                                     &workers[i]), ==, 0);
  }
  for (unsigned i = 0; i < 8; i++)
    pthread_join (threads[i], NULL);
  for (uint64_t page = 0; page < 256; page++) {
    assert_run (st, PAGE, page * PAGE, page % 2, PAGE);
    assert_bytes (st, page % 2 ? (int) (page % 8) + 1 : 0, PAGE, page * PAGE);
  }
  store_free (st);
}

static void
test_times (void)
{
  static const struct { const char *str; uint64_t ns; } good[] = {
    { "0", 0 }, { "0ns", 0 }, { "0.0", 0 }, { "1", 1000000000 },
    { "64ms", 64000000 }, { "250us", 250000 }, { "10ns", 10 },
    { "1.5s", 1500000000 }, { "1.5", 1500000000 }, { "0.1", 100000000 },
    { "0.000000001", 1 }, { "1.000000000000", 1000000000 },
    { "0.5us", 500 }, { "2.000001ms", 2000001 }, { "1.0ns", 1 },
    { "007ms", 7000000 }, { "3600", LATENCY_MAX_NS },
    { "3600.000s", LATENCY_MAX_NS }, { "3600000000000ns", LATENCY_MAX_NS },
  };
  static const struct { const char *str; int err; } bad[] = {
    { "", EINVAL }, { " 1", EINVAL }, { "1 ", EINVAL }, { "1 ms", EINVAL },
    { "-1", EINVAL }, { "+1", EINVAL }, { "inf", EINVAL }, { "nan", EINVAL },
    { "0x10", EINVAL }, { "1e3", EINVAL }, { "1,5", EINVAL },
    { ".5", EINVAL }, { "5.", EINVAL }, { "5.ms", EINVAL },
    { "1.2.3", EINVAL }, { "ms", EINVAL }, { "64msx", EINVAL },
    { "64MS", EINVAL }, { "1m", EINVAL }, { "1h", EINVAL }, { "1ss", EINVAL },
    { "0.5ns", EINVAL }, { "0.0000000001", EINVAL },
    { "0.00000000001", EINVAL }, { "10.01ns", EINVAL },
    { "1.0000000001us", EINVAL }, { "1.00000000009s", EINVAL },
    { "3601", ERANGE }, { "3600.000000001", ERANGE },
    { "3600000000001ns", ERANGE }, { "18446744073709551616ns", ERANGE },
    { "99999999999999999999999999999999999999", ERANGE },
  };
  uint64_t ns;

  for (size_t i = 0; i < G_N_ELEMENTS (good); i++) {
    g_test_message ("'%s'", good[i].str);
    g_assert_cmpint (latency_parse (good[i].str, &ns), ==, 0);
    g_assert_cmpuint (ns, ==, good[i].ns);
  }
  for (size_t i = 0; i < G_N_ELEMENTS (bad); i++) {
    g_test_message ("'%s'", bad[i].str);
    g_assert_cmpint (latency_parse (bad[i].str, &ns), ==, bad[i].err);
  }
}

static void
test_sleep (void)
{
  const uint64_t when = clock_ns () + 20000000;

  latency_sleep_until (when);
  g_assert_cmpuint (clock_ns (), >=, when);
  latency_sleep_until (0);      /* long ago: returns */
}

int
main (int argc, char *argv[])
{
  setlocale (LC_ALL, "");
  g_test_init (&argc, &argv, NULL);
  g_test_add_func ("/store/new-bad", test_new_bad);
  g_test_add_func ("/store/fresh-is-hole", test_fresh_is_hole);
  g_test_add_func ("/store/model", test_model);
  g_test_add_func ("/store/runs", test_runs);
  g_test_add_func ("/store/last-page", test_last_page);
  g_test_add_func ("/store/zero-keeps", test_zero_keeps);
  g_test_add_func ("/store/memory", test_memory);
  g_test_add_func ("/store/mlocked", test_mlocked);
  g_test_add_func ("/store/populate", test_populate);
  g_test_add_func ("/store/huge", test_huge);
  g_test_add_func ("/store/threads", test_threads);
  g_test_add_func ("/store/threads-bits", test_threads_bits);
  g_test_add_func ("/latency/times", test_times);
  g_test_add_func ("/latency/sleep", test_sleep);
  return g_test_run ();
}
