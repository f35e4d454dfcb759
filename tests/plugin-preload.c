/* SPDX-License-Identifier: BSD-3-Clause
 *
 * preload.so: no plugin.  tests/nbdkit-run loads it into nbdkit, beside a
 * sanitizer's runtime.
 *
 * - Programs that nbdkit starts with --run do not inherit the runtime.  A shell
 *   would crash in libtsan.
 * - Modules stay loaded to the end, so that reports have names of functions.
 * - The check of leaks at the end does not change nbdkit's exit status, as
 *   nbdkit itself leaks.  tests/run decides which leaks count.
 * - freelocale does nothing.  With a sanitizer, glibc's lock on the locale
 *   stays taken after strerror.  p11-kit, a part of GnuTLS, would wait for it
 *   at the end for ever.
 * - With ThreadSanitizer, GLib keeps no unused thread for the next pool.
 *   ThreadSanitizer would not see how GLib hands it on (tests/test-pool.c).
 * - gcc's UBSan beside ASan ignores log_path, so this file sets it.
 */
#include <dlfcn.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <glib.h>

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
#ifdef __SANITIZE_THREAD__
  g_thread_pool_set_max_unused_threads (0);
#endif
  unsetenv ("LD_PRELOAD");
}
