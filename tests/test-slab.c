/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The slab's mapping (filter/slab.h).
 *
 * Not its job: which request gets a buffer of it (test-engine-slab.c).
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "slab.h"
#include "table.h"

enum { BUFFERS = 3, SIZE = 65536 };

static void
test_mapping (void)
{
  struct slab s = { 0 };
  size_t page = sysconf (_SC_PAGESIZE);

  g_assert_cmpint (slab_init (&s, BUFFERS * SIZE), ==, 0);
  g_assert_cmpuint ((uintptr_t) s.data % page, ==, 0);
  for (size_t i = 0; i < BUFFERS * SIZE; i++)
    g_assert_cmpint (s.data[i], ==, 0);
  memset (s.data, 1, BUFFERS * SIZE);
  slab_give_back (s.data + SIZE, SIZE);
  for (size_t i = 0; i < BUFFERS * SIZE; i++)
    g_assert_cmpint (s.data[i], ==, i / SIZE != 1);
  slab_destroy (&s);
  g_assert_null (s.data);
  slab_destroy (&s);            /* once more does nothing */
}

/* More bytes than the machine has. */
static void
test_too_large (void)
{
  struct slab s = { 0 };
  size_t page = sysconf (_SC_PAGESIZE), pages = sysconf (_SC_PHYS_PAGES);

  g_assert_cmpint (slab_init (&s, (pages + 1) * page), ==, ENOMEM);
  g_assert_cmpint (slab_init (&s, SIZE_MAX), ==, ENOMEM);
  slab_destroy (&s);
}

static const struct test tests[] = {
  { "/slab/is-aligned-and-zero", .run = test_mapping },
  { "/slab/too-large-is-an-error", .run = test_too_large },
};

TABLE_MAIN (tests)
