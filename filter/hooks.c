#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <glib.h>

#include "hooks.h"

/* The address of a symbol that this very object defines, not one that it depends on. */
static void *
own_symbol (void *dl, const char *file, const char *name)
{
  void *symbol = dlsym (dl, name);
  Dl_info info;

  if (symbol == NULL || dladdr (symbol, &info) == 0 || strcmp (info.dli_fname, file) != 0)
    return NULL;
  return symbol;
}

/* Within dl_iterate_phdr the linker's lock is held: only collect. */
static int
collect (struct dl_phdr_info *info, size_t size G_GNUC_UNUSED, void *files)
{
  if (info->dlpi_name[0] != '\0')
    g_ptr_array_add (files, g_strdup (info->dlpi_name));
  return 0;
}

const struct nbdkit_async_driver *
hooks_find (const char **why_not)
{
  g_autoptr (GPtrArray) files = g_ptr_array_new_with_free_func (g_free);
  nbdkit_async_driver_function *get_driver = NULL;
  const struct nbdkit_async_driver *driver;
  unsigned plugins = 0, filters = 0;
  bool us = false;
  Dl_info self;

  if (dladdr (&hooks_find, &self) == 0)
    self.dli_fname = "";
  dl_iterate_phdr (collect, files);
  for (unsigned i = 0; i < files->len && !us; i++) {
    const char *file = files->pdata[i];
    void *dl = dlopen (file, RTLD_LAZY | RTLD_NOLOAD);

    if (dl == NULL)
      continue;
    if (own_symbol (dl, file, "plugin_init")) {
      plugins++;
      get_driver = (nbdkit_async_driver_function *) own_symbol (dl, file, "nbdkit_async_driver_v1");
    }
    us = strcmp (file, self.dli_fname) == 0;
    if (!us && own_symbol (dl, file, "filter_init"))
      filters++;
    dlclose (dl);               /* nbdkit keeps it loaded */
  }
  *why_not = plugins != 1 || !us ? "the plugin is not found"
    : get_driver == NULL ? "the plugin has no async hooks"
    : filters > 0 ? "another filter is below"
    : NULL;
  if (*why_not)
    return NULL;
  driver = get_driver ();
  if (driver && (driver->can_read || driver->can_write))
    return driver;
  *why_not = "the plugin uses no async hooks";
  return NULL;
}
