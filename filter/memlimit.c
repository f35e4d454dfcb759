/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How much memory the server may use: see memlimit.h.
 *
 * A process is in one control group of each hierarchy.  A group's limit holds
 * for the groups below it, too.  In a container, /proc may have the path of the
 * group as the host sees it, while /sys/fs/cgroup has this group as its root.
 * So the walk up to the root goes on where a group is not there.
 */
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "memlimit.h"

/* The least number in FILE of group PATH and of the groups above it.  A group
 * without a limit has a word there, or a very large number.
 */
static uint64_t
least (const char *mount, const char *path, const char *file)
{
  g_autofree char *group = g_strdup (path);
  uint64_t limit = UINT64_MAX;

  for (char *end = group + strlen (group); end; end = strrchr (group, '/')) {
    g_autofree char *name = NULL, *text = NULL;

    *end = '\0';
    name = g_strconcat (mount, group, "/", file, NULL);
    if (g_file_get_contents (name, &text, NULL, NULL)
        && g_ascii_isdigit (*text))
      limit = MIN (limit, g_ascii_strtoull (text, NULL, 10));
  }
  return limit;
}

/* LINE of /proc/self/cgroup is number:controllers:path.  Version 2 has number 0
 * and no controllers.
 */
static uint64_t
limit_of (const char *root, const char *line)
{
  g_auto (GStrv) part = g_strsplit (line, ":", 3);
  g_auto (GStrv) controllers = NULL;
  g_autofree char *mount = NULL;

  if (g_strv_length (part) < 3)
    return UINT64_MAX;
  mount = g_strconcat (root, "/sys/fs/cgroup", NULL);
  if (*part[1] == '\0')
    return least (mount, part[2], "memory.max");
  controllers = g_strsplit (part[1], ",", 0);
  if (!g_strv_contains ((const char *const *) controllers, "memory"))
    return UINT64_MAX;
  g_free (mount);
  mount = g_strconcat (root, "/sys/fs/cgroup/memory", NULL);
  return least (mount, part[2], "memory.limit_in_bytes");
}

uint64_t
memlimit_bytes (const char *root)
{
  uint64_t limit = (uint64_t) sysconf (_SC_PHYS_PAGES)
    * sysconf (_SC_PAGESIZE);
  g_autofree char *name = g_strconcat (root, "/proc/self/cgroup", NULL);
  g_autofree char *text = NULL;
  g_auto (GStrv) lines = NULL;

  if (!g_file_get_contents (name, &text, NULL, NULL))
    return limit;
  lines = g_strsplit (text, "\n", 0);
  for (char **line = lines; *line; line++)
    limit = MIN (limit, limit_of (root, *line));
  return limit;
}
