/* No plugin, but what tests/nbdkit-run loads into nbdkit beside a sanitizer's runtime:
 * - programs that nbdkit starts with --run do not inherit the runtime (a shell dies of libtsan);
 * - modules stay loaded to the end, so that reports about them name functions.
 * - leaks are looked for at the end without a change of nbdkit's exit status, as nbdkit leaks
 *   itself; tests/run tells whose leak it is.
 * - where a sanitizer is loaded, and an error was put into words, glibc's lock on the locale stays
 *   taken: p11-kit, which GnuTLS brings along, would wait for it at the end for ever;
 * - gcc's UBSan beside ASan does not look at log_path, so it is told.
 */
#include <dlfcn.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPORT __attribute__ ((visibility ("default")))

EXPORT int dlclose (void *handle);

int
dlclose (void *handle)
{
  (void) handle;
  return 0;
}

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>

static void __attribute__ ((destructor))
preload_end (void)
{
  __lsan_do_recoverable_leak_check ();
}
#endif

EXPORT void
freelocale (locale_t locale)
{
  (void) locale;
}

static void
set_ubsan_log (void)
{
  void *library = dlopen ("libubsan.so.1", RTLD_LAZY | RTLD_NOLOAD);
  const char *reports = getenv ("REPORTS");
  void (*set_report_path) (const char *);
  static char path[4096];

  if (!library || !reports)
    return;
  *(void **) &set_report_path = dlsym (library, "__sanitizer_set_report_path");
  snprintf (path, sizeof path, "%s/ubsan", reports);
  if (set_report_path)
    set_report_path (path);
}

static void __attribute__ ((constructor))
preload_init (void)
{
  set_ubsan_log ();
  unsetenv ("LD_PRELOAD");
}
