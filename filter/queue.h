/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Walking a GQueue of structs.  Each struct has a GList in it, whose data
 * points to the struct.
 */
#ifndef ASYNCPOOL_QUEUE_H
#define ASYNCPOOL_QUEUE_H

#include <glib.h>

static inline void *
queue_data (const GList *l)
{
  return l ? l->data : NULL;
}

/* X is each struct TYPE in the queue, MEMBER its GList.  The body may remove X.
 */
#define QUEUE_FOREACH(type, x, queue, member)                           \
  for (type *x = queue_data ((queue)->head), *x##_next;                 \
       x && (x##_next = queue_data (x->member.next), TRUE); x = x##_next)

#endif
