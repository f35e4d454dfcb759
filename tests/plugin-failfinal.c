/* SPDX-License-Identifier: BSD-3-Clause
 *
 * failfinal.so: a filter whose .finalize fails.  nbdkit then does not call the
 * .finalize of the filters below it, and goes on with .close.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-filter.h>

static int
failfinal_finalize (nbdkit_next *next, void *handle)
{
  (void) next;
  (void) handle;
  nbdkit_error ("failfinal: as it should");
  return -1;
}

static struct nbdkit_filter filter = {
  .name = "failfinal",
  .finalize = failfinal_finalize,
};

/* nbdkit's macro declares no prototype, and clang asks for one. */
extern struct nbdkit_filter *filter_init (void);
NBDKIT_REGISTER_FILTER (filter)
