/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "latency.h"

static const struct {
  const char *name;
  uint64_t ns;
} units[] = {
  { "", LATENCY_NS_PER_S },
  { "s", LATENCY_NS_PER_S },
  { "ms", 1000000 },
  { "us", 1000 },
  { "ns", 1 },
};

/* Not isdigit, which asks the locale. */
static int
is_digit (char c)
{
  return c >= '0' && c <= '9';
}

static uint64_t
unit_ns (const char *name)
{
  for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
    if (strcmp (units[i].name, name) == 0)
      return units[i].ns;
  return 0;
}

/* Integers all the way: strtod would take hex, inf, nan and the locale's
 * decimal point, and 0.1 would not be 100000000 ns.
 */
int
latency_parse (const char *str, uint64_t *ns)
{
  size_t whole = 0, fraction = 0;
  const char *end;
  uint64_t unit, r = 0;

  while (is_digit (str[whole]))
    whole++;
  end = &str[whole];
  if (*end == '.') {
    end++;
    while (is_digit (end[fraction]))
      fraction++;
    if (fraction == 0)
      return EINVAL;
    end += fraction;
  }
  unit = unit_ns (end);
  if (whole == 0 || unit == 0)
    return EINVAL;

  for (size_t i = 0; i < whole; i++) {
    r = r * 10 + (uint64_t) (str[i] - '0');
    if (r > LATENCY_MAX_NS / unit)
      return ERANGE;
  }
  r *= unit;

  for (const char *p = end - fraction; p < end; p++) {
    if (unit < 10 && *p != '0')
      return EINVAL;
    unit /= 10;
    r += unit * (uint64_t) (*p - '0');
  }
  if (r > LATENCY_MAX_NS)
    return ERANGE;

  *ns = r;
  return 0;
}

void
latency_sleep_until (uint64_t when_ns)
{
  const struct timespec ts = {
    .tv_sec = (time_t) (when_ns / LATENCY_NS_PER_S),
    .tv_nsec = (long) (when_ns % LATENCY_NS_PER_S),
  };

  /* The deadline is absolute, so going on after a signal costs nothing. */
  while (clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
    ;
}
