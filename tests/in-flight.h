/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The requests of a random test that are in flight, on several connections.
 *
 * No two of them have a common byte, unless both read.  So the order of the
 * changes of each byte is known, whichever connection sends them.
 *
 * Not its job: which requests are sent, and which data they must return.
 */
#ifndef TESTS_IN_FLIGHT_H
#define TESTS_IN_FLIGHT_H

#include "client.h"

enum { CONNECTIONS_MAX = 4, IN_FLIGHT_MAX = 16 };

enum kind { READ, WRITE, ZERO, TRIM, FLUSH, KINDS };
static const char *const kind_names[KINDS] = {
  "read", "write", "zero", "trim", "flush",
};

struct operation {
  struct request request;       /* nbd NULL: not in use */
  enum kind kind;
  unsigned connection;
  uint64_t offset, count;
  char *buf;                    /* of a read or a write; freed at the end */
  /* For the program's own use. */
  unsigned client, number, sent;
};

struct in_flight {
  struct nbd_handle *nbd[CONNECTIONS_MAX];
  unsigned n_connections;
  struct operation ops[IN_FLIGHT_MAX];
  unsigned n;
};

CLIENT_FUNCTION bool
in_flight_conflicts (const struct in_flight *f, enum kind kind,
                     uint64_t offset, uint64_t count)
{
  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++) {
    const struct operation *o = &f->ops[i];

    if (o->request.nbd && offset < o->offset + o->count
        && o->offset < offset + count && (kind != READ || o->kind != READ))
      return true;
  }
  return false;
}

CLIENT_FUNCTION bool
in_flight_has_connection (const struct in_flight *f, unsigned connection)
{
  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
    if (f->ops[i].request.nbd == f->nbd[connection])
      return true;
  return false;
}

/* Whether the server offers requests of this kind. */
CLIENT_FUNCTION bool
in_flight_can_send (const struct in_flight *f, enum kind kind,
                    unsigned connection)
{
  struct nbd_handle *nbd = f->nbd[connection];

  switch (kind) {
  case ZERO:
    return nbd_can_zero (nbd) == 1;
  case TRIM:
    return nbd_can_trim (nbd) == 1;
  case FLUSH:
    return nbd_can_flush (nbd) == 1;
  default:
    return true;
  }
}

static struct request
send_operation (struct nbd_handle *nbd, struct operation *o, uint32_t flags)
{
  switch (o->kind) {
  case READ:
    o->buf = g_malloc (o->count);
    return send_read (nbd, o->buf, o->count, o->offset);
  case WRITE:
    return send_write (nbd, o->buf, o->count, o->offset, flags);
  case ZERO:
    return send_zero (nbd, o->count, o->offset, flags);
  case TRIM:
    return send_trim (nbd, o->count, o->offset, flags);
  default:
    return send_flush (nbd);
  }
}

/* A write has its data in BUF. */
CLIENT_FUNCTION void
in_flight_send (struct in_flight *f, struct operation o, uint32_t flags)
{
  unsigned i;

  for (i = 0; f->ops[i].request.nbd; i++)
    ;
  o.request = send_operation (f->nbd[o.connection], &o, flags);
  f->ops[i] = o;
  f->n++;
}

/* Completes the operations whose replies have come, and waits for one of them
 * if WAIT.
 */
CLIENT_FUNCTION void
in_flight_progress (struct in_flight *f, bool wait,
                    void (*complete) (void *data, struct operation *),
                    void *data)
{
  bool some = false;

  do {
    for (unsigned c = 0; c < f->n_connections; c++)
      nbd_ok (nbd_poll (f->nbd[c], wait && !some && f->n_connections == 1));
    for (unsigned i = 0; i < IN_FLIGHT_MAX; i++) {
      struct operation *o = &f->ops[i];

      if (!o->request.nbd || !request_is_done (&o->request))
        continue;
      f->n--;
      complete (data, o);
      g_free (o->buf);
      memset (o, 0, sizeof *o);
      some = true;
    }
    if (wait && !some && f->n_connections > 1)
      g_usleep (50);
  } while (wait && !some && f->n > 0);
}

CLIENT_FUNCTION void
in_flight_destroy (struct in_flight *f)
{
  for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
    g_free (f->ops[i].buf);
}

#endif /* TESTS_IN_FLIGHT_H */
