/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The statistics as text, and in Prometheus' text format.
 *
 * Two tables have each value once: its name, its help, its place in the text.
 * To add a value, add a field to struct stats_now or a stats_counter, and a row
 * to the table.  Only the manual also lists the values.
 *
 * Not its job: counting (stats.h), files (statsfile.h).
 */
#ifndef ASYNCPOOL_REPORT_H
#define ASYNCPOOL_REPORT_H

#include <stdbool.h>
#include <stdio.h>

#include "stats.h"

extern void report_text (const struct stats *, const struct stats_now *,
                         FILE *);
/* FILE_NAME: its last part, without .prom, is the label `server'. */
extern void report_prom (const struct stats *, const struct stats_now *,
                         const char *file_name, FILE *);
/* Whether a file of that name is to have Prometheus' format. */
extern bool report_is_prom (const char *file_name);

#endif
