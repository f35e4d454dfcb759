/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See latency.h.
 */

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "latency.h"

#define DIGITS "0123456789"     /* isdigit depends on the locale */

static uint64_t
unit_ns (const char *name)
{
  static const struct {
    const char *name;
    uint64_t ns;
  } units[] = {
    { "", LATENCY_NS_PER_S }, { "s", LATENCY_NS_PER_S }, { "ms", 1000000 },
    { "us", 1000 }, { "ns", 1 },
  };

  for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
    if (strcmp (units[i].name, name) == 0)
      return units[i].ns;
  return 0;
}

/* With integers, because strtod accepts hex, inf, nan and the locale's decimal
 * point, and 0.1 would not be 100000000 ns.
 */
int
latency_parse (const char *str, uint64_t *ns)
{
  const size_t whole = strspn (str, DIGITS);
  const bool has_point = str[whole] == '.';
  const char *fraction = &str[whole + has_point];
  const size_t digits = has_point ? strspn (fraction, DIGITS) : 0;
  uint64_t unit = unit_ns (&fraction[digits]), r = 0;

  if (whole == 0 || (has_point && digits == 0) || unit == 0)
    return EINVAL;
  for (size_t i = 0; i < whole; i++) {
    r = r * 10 + (uint64_t) (str[i] - '0');
    if (r > LATENCY_MAX_NS / unit)
      return ERANGE;
  }
  r *= unit;
  for (size_t i = 0; i < digits; i++) {
    if (unit < 10 && fraction[i] != '0')
      return EINVAL;
    unit /= 10;
    r += unit * (uint64_t) (fraction[i] - '0');
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

  while (clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
    ;
}
