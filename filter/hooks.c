/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The plugin's hooks, and the loaded filters: see hooks.h.
 */
#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <string.h>

#include <glib.h>

#include "hooks.h"

/* nbdkit's filters that repeat a failed flush.  The files of all filters are
 * named nbdkit-NAME-filter.so.
 */
static const char *const repeaters[] = { "retry", "retry-request" };

/* A plugin whose read-only contexts all show the same data.  It says multi-conn
 * for them from nbdkit 1.33.8 on.  Earlier ones do not.
 */
static const char same_if_read_only[] = "nbdkit-curl-plugin.so";

struct found {
  unsigned plugins;
  bool same_if_read_only;       /* one of them is that plugin */
  unsigned others;              /* filters, and objects that dlopen refuses */
  unsigned repeaters;           /* a bit for each of the list */
  nbdkit_async_driver_function *get_driver;
};

static struct found below;      /* at the time of hooks_load */

/* The address of a symbol that this very object defines, not one that it
 * depends on.
 */
static void *
own_symbol (void *dl, const char *file, const char *name)
{
  void *symbol = dlsym (dl, name);
  Dl_info info;

  if (symbol == NULL || dladdr (symbol, &info) == 0
      || strcmp (info.dli_fname, file) != 0)
    return NULL;
  return symbol;
}

/* dl_iterate_phdr holds the linker's lock: only collect names.  The program
 * itself has none.
 */
static int
collect (struct dl_phdr_info *info, size_t size G_GNUC_UNUSED, void *files)
{
  if (info->dlpi_name[0] != '\0'
      && !g_str_has_prefix (info->dlpi_name, "linux-vdso"))
    g_ptr_array_add (files, g_strdup (info->dlpi_name));
  return 0;
}

static unsigned
repeater_bit (const char *base)
{
  for (unsigned i = 0; i < G_N_ELEMENTS (repeaters); i++) {
    g_autofree char *name = g_strdup_printf ("nbdkit-%s-filter.so",
                                             repeaters[i]);

    if (strcmp (base, name) == 0)
      return 1U << i;
  }
  return 0;
}

static void
look_into (const char *file, const char *self, struct found *found)
{
  g_autofree char *base = g_path_get_basename (file);
  void *dl = dlopen (file, RTLD_LAZY | RTLD_NOLOAD);

  found->repeaters |= repeater_bit (base);
  found->same_if_read_only |= strcmp (base, same_if_read_only) == 0;
  if (dl == NULL) {
    found->others++;
    return;
  }
  if (own_symbol (dl, file, "plugin_init")) {
    found->plugins++;
    found->get_driver =
      (nbdkit_async_driver_function *) own_symbol (dl, file,
                                                   "nbdkit_async_driver_v1");
  }
  if (strcmp (file, self) != 0 && own_symbol (dl, file, "filter_init"))
    found->others++;
  dlclose (dl);                 /* nbdkit keeps it loaded */
}

static struct found
look (void)
{
  g_autoptr (GPtrArray) files = g_ptr_array_new_with_free_func (g_free);
  struct found found = { 0 };
  Dl_info self;

  if (dladdr (&below, &self) == 0)
    self.dli_fname = "";
  dl_iterate_phdr (collect, files);
  for (unsigned i = 0; i < files->len; i++)
    look_into (files->pdata[i], self.dli_fname, &found);
  return found;
}

void
hooks_load (void)
{
  below = look ();
}

const struct nbdkit_async_driver *
hooks_find (const char **why_not)
{
  struct found found = look ();
  const struct nbdkit_async_driver *driver =
    found.get_driver ? found.get_driver () : NULL;

  *why_not = found.plugins != 1 ? "the plugin is not found"
    : driver == NULL || !(driver->can_read || driver->can_write)
    ? "the plugin has no async hooks"
    : !driver->can_cancel ? "the plugin has no async_cancel"
    : below.others > 0 ? "another filter is below"
    : NULL;
  return *why_not ? NULL : driver;
}

bool
hooks_same_if_read_only (void)
{
  /* The repeaters change no data. */
  return below.same_if_read_only && below.plugins == 1
    && below.others == (unsigned) __builtin_popcount (below.repeaters);
}

bool
hooks_is_topmost (void)
{
  return look ().others == below.others;
}

const char *
hooks_repeater_above (void)
{
  unsigned above = look ().repeaters & ~below.repeaters;

  return above ? repeaters[g_bit_nth_lsf (above, -1)] : NULL;
}
