/* SPDX-License-Identifier: BSD-3-Clause
 * interleave: the same load on several servers, in turns of some milliseconds.
 * It is the client of case-overhead.sh.
 *
 *   interleave RW BYTES DEPTH SECONDS URI...
 *
 * RW is read, write, randread or randwrite.  For each URI it prints a line:
 * bytes, seconds.
 *
 * fio takes 0.3 s to start, and a shared machine changes its speed in that
 * time.  A slowdown that lasts longer than a turn reaches all servers alike, so
 * the ratio of their speeds is known better than each speed.
 *
 * A turn ends when its time is over and nothing is in flight any more; the wait
 * for that is inside its time.  No server has two turns in a row.  With an even
 * number of servers each follows each other one equally often.
 */

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libnbd.h>

#define TURN_NS UINT64_C (30000000)

enum { MAX_SERVERS = 8, MAX_DEPTH = 1024 };

struct server;

struct request {
  struct server *server;        /* constant */
  char *buf;                    /* constant; shared with the other servers, as
                                   only one of them has its turn */
  struct request *next_free;
};

struct server {
  struct nbd_handle *nbd;
  uint64_t size;
  uint64_t offset;              /* of the next request in sequence */
  struct request requests[MAX_DEPTH];
  struct request *free;
  unsigned in_flight;
  uint64_t n_done, ns;
};

static struct server servers[MAX_SERVERS];
static bool is_write, is_random;
static uint32_t bytes;
static unsigned depth;

static _Noreturn void
die (const char *message)
{
  fprintf (stderr, "interleave: %s\n", message);
  exit (1);
}

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

static void
put_free (struct request *r)
{
  r->next_free = r->server->free;
  r->server->free = r;
}

static void
connect_to (struct server *s, const char *uri, char *bufs)
{
  int64_t size;

  s->nbd = nbd_create ();
  if (s->nbd == NULL || nbd_connect_uri (s->nbd, uri) == -1
      || (size = nbd_get_size (s->nbd)) == -1)
    die (nbd_get_error ());
  s->size = (uint64_t) size / bytes * bytes;
  if (s->size == 0)
    die ("the device is smaller than a request");
  for (unsigned i = 0; i < depth; i++) {
    s->requests[i] = (struct request) {
      .server = s, .buf = bufs + (size_t) i * bytes
    };
    put_free (&s->requests[i]);
  }
}

static uint64_t
next_offset (struct server *s)
{
  uint64_t offset = s->offset;

  if (is_random)
    return (uint64_t) random () % (s->size / bytes) * bytes;
  s->offset = (offset + bytes) % s->size;
  return offset;
}

static int
completed (void *vr, int *error)
{
  struct request *r = vr;

  if (*error)
    die (strerror (*error));
  r->server->in_flight--;
  r->server->n_done++;
  put_free (r);
  return 1;                     /* libnbd frees the command */
}

static void
send_one (struct server *s)
{
  struct request *r = s->free;
  nbd_completion_callback done = { .callback = completed, .user_data = r };
  uint64_t offset = next_offset (s);

  s->free = r->next_free;
  s->in_flight++;
  if ((is_write ? nbd_aio_pwrite (s->nbd, r->buf, bytes, offset, done, 0)
       : nbd_aio_pread (s->nbd, r->buf, bytes, offset, done, 0)) == -1)
    die (nbd_get_error ());
}

/* The Ith of N servers in a round: 0 1 n-1 2 n-2 ... in round 0.  Each further
 * round begins one server later.
 */
static unsigned
server_of_turn (unsigned round, unsigned i, unsigned n)
{
  return (round + (i % 2 ? (i + 1) / 2 : n - i / 2)) % n;
}

static void
take_turn (struct server *s)
{
  uint64_t start = now_ns (), now = start;

  do {
    while (s->free && now - start < TURN_NS)
      send_one (s);
    if (nbd_poll (s->nbd, -1) == -1)
      die (nbd_get_error ());
    now = now_ns ();
  } while (s->in_flight > 0 || now - start < TURN_NS);
  s->ns += now - start;
}

int
main (int argc, char **argv)
{
  unsigned n = argc > 5 ? (unsigned) argc - 5 : 0;
  uint64_t end;
  char *bufs;

  if (n < 1 || n > MAX_SERVERS)
    die ("usage: interleave read|write|randread|randwrite BYTES DEPTH SECONDS"
         " URI...");
  is_write = strstr (argv[1], "write");
  is_random = strstr (argv[1], "rand");
  bytes = (uint32_t) atoi (argv[2]);
  depth = (unsigned) atoi (argv[3]);
  if (bytes < 1 || depth < 1 || depth > MAX_DEPTH)
    die ("BYTES is at least 1, DEPTH from 1 to 1024");
  bufs = aligned_alloc (4096, ((size_t) bytes * depth + 4095) / 4096 * 4096);
  if (bufs == NULL)
    die ("no memory");
  memset (bufs, 'x', (size_t) bytes * depth);
  for (unsigned i = 0; i < n; i++)
    connect_to (&servers[i], argv[5 + i], bufs);

  end = now_ns () + (uint64_t) atoi (argv[4]) * 1000000000;
  for (unsigned round = 0; now_ns () < end; round++)
    for (unsigned i = 0; i < n; i++)
      take_turn (&servers[server_of_turn (round, i, n)]);
  for (unsigned i = 0; i < n; i++) {
    printf ("%" PRIu64 " %.6f\n", servers[i].n_done * bytes,
            (double) servers[i].ns / 1e9);
    nbd_shutdown (servers[i].nbd, 0);
    nbd_close (servers[i].nbd);
  }
  free (bufs);
  return 0;
}
