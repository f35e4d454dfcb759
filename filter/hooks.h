/* Finding the plugin's async hooks (nbdkit-async-driver.h), and being sure that no other filter stands
 * between us and the plugin: what we started through hooks would go past it.
 *
 * nbdkit loads the plugin first, then the filters from the innermost to the outermost, and the dynamic
 * linker lists objects in the order in which they were loaded.  So we sit on the plugin if no other
 * filter was loaded before us.
 */
#ifndef ASYNCPOOL_HOOKS_H
#define ASYNCPOOL_HOOKS_H

#include <nbdkit-async-driver.h>

/* NULL, and in *WHY_NOT a word on the reason, where we must not drive hooks.  Call once all filters
 * are loaded.
 */
extern const struct nbdkit_async_driver *hooks_find (const char **why_not);

#endif
