/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Finds the plugin's async hooks (nbdkit-async-driver.h), and other filters
 * above and below this one.  Operations of hooks would bypass a filter below.
 *
 * nbdkit registers the plugin first, then the filters from the innermost to the
 * outermost, and loads each one right before it registers it.  So the filters
 * that are loaded when nbdkit calls our .load are those below us.
 */
#ifndef ASYNCPOOL_HOOKS_H
#define ASYNCPOOL_HOOKS_H

#include <nbdkit-async-driver.h>

/* Call in .load: notes whether another filter is below. */
extern void hooks_load (void);
/* Call in .get_ready, when the plugin has its parameters.  NULL, with the
 * reason in *WHY_NOT, if the filter must not drive hooks.
 */
extern const struct nbdkit_async_driver *hooks_find (const char **why_not);

/* Whether we know that all read-only contexts show the same data, also if the
 * plugin does not say multi-conn.  No filter below us can change data then.
 * After hooks_load.
 */
extern bool hooks_same_if_read_only (void);

/* Whether no filter is above us, from .get_ready on. */
extern bool hooks_is_topmost (void);

/* The name of a filter above us that repeats a failed flush, from .get_ready
 * on; NULL: there is none.  A filter that is also below us is not found.
 */
extern const char *hooks_repeater_above (void);

#endif
