/* SPDX-License-Identifier: BSD-3-Clause
 * delay-proxy: a TCP proxy that adds a round-trip time and a bandwidth limit.
 * Tests and benchmarks put it in front of a server on the same machine.
 *
 *   delay-proxy --rtt=20ms [OPTION...] LISTEN CONNECT
 *
 * LISTEN and CONNECT are IPV4:PORT, or the path of a unix socket.  A path must
 * contain a slash.
 *
 *   --rtt=TIME     with a unit: us, ms or s
 *   --rate=N       bytes per second, for each connection and direction
 *   --buffer=N     bytes on their way, for each connection and direction (256M)
 *   --stats=FILE   at the end, write the numbers of connections and bytes
 *                  (- is stderr)
 *   --changes=FILE   lines rtt=TIME and rate=N, which SIGHUP reads
 *
 * N may end with k, M or G, the powers of 1000.
 *
 * The proxy prints one line when it listens: the port, or the path.  With port
 * 0 the kernel chooses the port.  On a signal the proxy does this:
 *
 *   SIGUSR1   cuts all present connections: both sides get a reset.  Then it
 *             prints "cut" and their number.
 *   SIGUSR2   refuses new connections, and prints "refuse".  The next SIGUSR2
 *             accepts them again, and prints "accept".
 *   SIGHUP    reads --changes=FILE, and prints "change".  The new numbers are
 *             for bytes that the proxy has not read yet.
 *   SIGTERM, SIGINT   cuts all connections, and ends at once.
 *
 * The model is a link with a queue.  A byte enters the queue when the proxy
 * reads it.  With --rate the bytes leave the queue one after another, in
 * packets that take 1 ms at this rate (at least 1448 bytes, at most 64 KiB).
 * The proxy writes a packet half of the round trip after it has left the queue.
 *
 * An end of data and a reset cross the link like a packet.  So a half-close
 * stays a half-close.  A reset also drops the bytes on their way to the side
 * that sent it.  A unix socket has no reset: its other end sees a close.
 *
 * Only --buffer limits the bytes in flight.  It counts some bytes more for each
 * packet.  At this limit the proxy reads no more from the sender until bytes
 * leave.  The sender then waits, as with TCP's flow control.
 *
 * TCP takes one round trip to connect.  Here connect () returns at once.  The
 * proxy connects to the server 1.5 round trips later, when the first data of
 * the client would arrive.  So the first byte from the server comes two round
 * trips after connect (), as over a real link.  If the proxy cannot reach the
 * server, the client gets a reset at that time.
 *
 * The model has no slow start, lost packets, window or jitter.  It is not exact
 * on a busy machine: if the proxy gets a processor late, the delay is longer.
 *
 * Packaged programs do not do this.  netem needs a kernel module that many
 * machines lack.  User-mode Linux has the module, but it has only one, slow
 * processor.  Proxies in user space limit the bytes in flight by their buffers,
 * or wait between reading and writing, which limits the rate.
 */

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NEVER UINT64_MAX

enum {
  MIN_PACKET = 1448, MAX_PACKET = 65536,
  READS_PER_TURN = 16,          /* then other connections have their turn */
  MAX_EVENTS = 256,
};

struct packet {
  struct packet *next;
  uint64_t due_ns;
  size_t count, sent;           /* count 0 is the end of the data */
  char data[];
};

/* One end of a connection, with the packets that come from it. */
struct side {
  struct conn *conn;
  int fd;                       /* -1: not connected yet, or failed */
  bool is_readable, is_writable; /* until the kernel says EAGAIN */
  bool has_ended, end_is_sent;
  struct packet *first, **last;
  size_t bytes;                 /* of its packets */
  uint64_t link_free_ns;        /* when the link has sent its packets */
};

enum { CLIENT, SERVER };

struct conn {
  struct side sides[2];
  uint64_t connect_ns;          /* NEVER: done */
  uint64_t reset_ns;            /* NEVER: no side has failed */
  uint64_t due_ns;              /* the next time to call conn_run */
  unsigned pos;                 /* in the heap */
  struct conn *next_dead;
};

struct address {
  union {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_un un;
  };
  socklen_t len;
};

static uint64_t rtt_ns = NEVER, rate, max_bytes = 256000000;
static size_t max_packet = MAX_PACKET;
static const char *stats_file, *changes_file;
static struct address listen_to, connect_to;
static int epoll_fd, listener = -1;
static bool is_refusing;

/* All connections.  No heap[i] is due before heap[i/2]; heap[0] is unused. */
static struct conn **heap;
static unsigned n_conns, heap_size;
/* Events may still point to these. */
static struct conn *dead;

static uint64_t n_accepted, n_bytes[2];
static unsigned most_conns;

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

/* The heap. */

static void
heap_put (struct conn *c, unsigned pos)
{
  heap[pos] = c;
  c->pos = pos;
}

/* Move C to its place after a change of its due_ns. */
static void
heap_sift (struct conn *c)
{
  unsigned i = c->pos, child;

  for (; i > 1 && heap[i / 2]->due_ns > c->due_ns; i /= 2)
    heap_put (heap[i / 2], i);
  for (; (child = 2 * i) <= n_conns; i = child) {
    if (child < n_conns && heap[child + 1]->due_ns < heap[child]->due_ns)
      child++;
    if (heap[child]->due_ns >= c->due_ns)
      break;
    heap_put (heap[child], i);
  }
  heap_put (c, i);
}

static void
heap_add (struct conn *c)
{
  if (n_conns + 2 > heap_size) {
    heap_size = heap_size ? 2 * heap_size : 64;
    heap = realloc (heap, heap_size * sizeof *heap);
    if (heap == NULL)
      errx (1, "no memory");
  }
  heap_put (c, ++n_conns);
  heap_sift (c);
}

static void
heap_remove (struct conn *c)
{
  struct conn *last = heap[n_conns--];

  if (last == c)
    return;
  heap_put (last, c->pos);
  heap_sift (last);
}

/* Packets. */

static struct side *
other (struct side *s)
{
  return &s->conn->sides[s == &s->conn->sides[CLIENT]];
}

/* Send COUNT bytes that arrive now over the link.  Returns when they are at the
 * other end.
 */
static uint64_t
cross_link (struct side *s, size_t count)
{
  uint64_t now = now_ns ();

  if (s->link_free_ns < now)
    s->link_free_ns = now;
  if (rate)
    s->link_free_ns += count * UINT64_C (1000000000) / rate;
  return s->link_free_ns + rtt_ns / 2;
}

static void
packet_add (struct side *s, const char *data, size_t count)
{
  struct packet *p = malloc (sizeof *p + count);

  if (p == NULL)
    errx (1, "no memory");
  *p = (struct packet) { .count = count, .due_ns = cross_link (s, count) };
  memcpy (p->data, data, count);
  *s->last = p;
  s->last = &p->next;
  s->bytes += sizeof *p + count;
}

static void
packet_remove_first (struct side *s)
{
  struct packet *p = s->first;

  s->first = p->next;
  if (s->first == NULL)
    s->last = &s->first;
  s->bytes -= sizeof *p + p->count;
  free (p);
}

static void
packets_drop (struct side *s)
{
  while (s->first)
    packet_remove_first (s);
}

/* Connections. */

static void
side_init (struct conn *c, int which)
{
  struct side *s = &c->sides[which];

  s->conn = c;
  s->fd = -1;
  s->last = &s->first;
}

static void
side_watch (struct side *s, int fd)
{
  struct epoll_event e = {
    .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s
  };

  s->fd = fd;
  if (epoll_ctl (epoll_fd, EPOLL_CTL_ADD, fd, &e) == -1)
    err (1, "epoll_ctl");
}

/* S got a reset or the like: the other side learns of it after the bytes that
 * came before.
 */
static void
side_failed (struct side *s)
{
  struct conn *c = s->conn;

  close (s->fd);
  s->fd = -1;
  packets_drop (other (s));
  c->reset_ns = c->reset_ns == NEVER ? cross_link (s, 0) : 0;
}

/* End the connection.  A close with a linger time of 0 is a reset. */
static void
conn_end (struct conn *c, bool with_reset)
{
  struct linger none = { .l_onoff = 1, .l_linger = 0 };

  for (int i = 0; i < 2; i++) {
    struct side *s = &c->sides[i];

    packets_drop (s);
    if (s->fd != -1) {
      if (with_reset)
        setsockopt (s->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
      close (s->fd);
      s->fd = -1;
    }
  }
  heap_remove (c);
  c->next_dead = dead;
  dead = c;
}

static int
new_socket (const struct address *a)
{
  int fd = socket (a->sa.sa_family,
                   SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

  if (fd == -1)
    err (1, "socket");
  return fd;
}

/* Small packets are not delayed further.  It fails for unix sockets only. */
static void
set_nodelay (int fd)
{
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &(int) { 1 }, sizeof (int));
}

static void
conn_connect (struct conn *c)
{
  int fd = new_socket (&connect_to);

  set_nodelay (fd);
  c->connect_ns = NEVER;
  if (connect (fd, &connect_to.sa, connect_to.len) == 0
      || errno == EINPROGRESS)
    side_watch (&c->sides[SERVER], fd);
  else if (errno == EAGAIN) {   /* a unix socket's queue is full */
    close (fd);
    c->connect_ns = now_ns () + 1000000;
  }
  else {
    c->sides[SERVER].fd = fd;
    side_failed (&c->sides[SERVER]);
  }
}

static bool
can_receive (const struct side *s)
{
  return s->is_readable && s->fd != -1 && !s->has_ended
    && s->bytes < max_bytes && s->conn->reset_ns == NEVER;
}

static void
receive (struct side *s)
{
  static char buf[MAX_PACKET];

  for (int i = 0; i < READS_PER_TURN && can_receive (s); i++) {
    ssize_t n = recv (s->fd, buf, max_packet, 0);

    if (n >= 0) {
      packet_add (s, buf, (size_t) n);
      s->has_ended = n == 0;
    }
    else if (errno == EAGAIN)
      s->is_readable = false;
    else
      side_failed (s);
  }
}

static bool
can_deliver (struct side *s)
{
  return s->first && other (s)->is_writable && other (s)->fd != -1;
}

static void
deliver (struct side *s)
{
  struct side *to = other (s);
  uint64_t now = now_ns ();

  while (can_deliver (s) && s->first->due_ns <= now) {
    struct packet *p = s->first;
    ssize_t n = 0;

    if (p->count == 0) {
      shutdown (to->fd, SHUT_WR);
      s->end_is_sent = true;
    }
    else if ((n = send (to->fd, p->data + p->sent, p->count - p->sent,
                        MSG_NOSIGNAL)) >= 0)
      n_bytes[s - s->conn->sides] += (uint64_t) n;
    else if (errno == EAGAIN) {
      to->is_writable = false;
      return;
    }
    else {
      side_failed (to);
      return;
    }
    p->sent += (size_t) n;
    if (p->sent == p->count)
      packet_remove_first (s);
  }
}

/* Do all that can be done now, and note the time of the next. */
static void
conn_run (struct conn *c)
{
  if (c->connect_ns <= now_ns ())
    conn_connect (c);
  for (int i = 0; i < 2; i++) {
    receive (&c->sides[i]);
    deliver (&c->sides[i]);
  }
  if (c->reset_ns <= now_ns ()) {
    conn_end (c, true);
    return;
  }
  if (c->sides[CLIENT].end_is_sent && c->sides[SERVER].end_is_sent) {
    conn_end (c, false);
    return;
  }

  c->due_ns = c->connect_ns < c->reset_ns ? c->connect_ns : c->reset_ns;
  for (int i = 0; i < 2; i++) {
    struct side *s = &c->sides[i];

    if (can_receive (s))
      c->due_ns = now_ns ();
    else if (can_deliver (s) && s->first->due_ns < c->due_ns)
      c->due_ns = s->first->due_ns;
  }
  heap_sift (c);
}

static void
conn_event (struct side *s, uint32_t events)
{
  if (s->fd == -1)              /* ended in this turn */
    return;
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
    s->is_readable = true;
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
    s->is_writable = true;
  /* Otherwise recv gets the error, after the bytes that came before it. */
  if ((events & EPOLLERR) && !can_receive (s))
    side_failed (s);
  conn_run (s->conn);
}

static void
accept_all (void)
{
  int fd;

  while ((fd = accept4 (listener, NULL, NULL,
                        SOCK_NONBLOCK | SOCK_CLOEXEC)) != -1) {
    struct conn *c = calloc (1, sizeof *c);

    if (c == NULL)
      errx (1, "no memory");
    set_nodelay (fd);
    side_init (c, CLIENT);
    side_init (c, SERVER);
    c->connect_ns = c->due_ns = now_ns () + rtt_ns + rtt_ns / 2;
    c->reset_ns = NEVER;
    heap_add (c);
    side_watch (&c->sides[CLIENT], fd);
    n_accepted++;
    if (most_conns < n_conns)
      most_conns = n_conns;
  }
  if (errno != EAGAIN && errno != ECONNABORTED && errno != EINVAL)
    err (1, "accept");
}

/* The listening socket. */

/* Without listen the socket keeps its address, and the kernel refuses. */
static void
bind_listener (void)
{
  struct epoll_event e = { .events = EPOLLIN, .data.ptr = &listener };

  listener = new_socket (&listen_to);
  setsockopt (listener, SOL_SOCKET, SO_REUSEADDR, &(int) { 1 }, sizeof (int));
  if (bind (listener, &listen_to.sa, listen_to.len) == -1)
    err (1, "bind");
  if (listen_to.sa.sa_family == AF_INET)
    getsockname (listener, &listen_to.sa, &listen_to.len);
  if (!is_refusing && listen (listener, SOMAXCONN) == -1)
    err (1, "listen");
  if (!is_refusing && epoll_ctl (epoll_fd, EPOLL_CTL_ADD, listener, &e) == -1)
    err (1, "epoll_ctl");
}

static void
close_listener (void)
{
  close (listener);
  if (listen_to.sa.sa_family == AF_UNIX)
    unlink (listen_to.un.sun_path);
}

/* The link's numbers. */

struct unit { const char *suffix; double factor; };
static const struct unit time_units[] = {
  { "us", 1e3 }, { "ms", 1e6 }, { "s", 1e9 }, { NULL, 0 }
};
static const struct unit byte_units[] = {
  { "", 1 }, { "k", 1e3 }, { "M", 1e6 }, { "G", 1e9 }, { NULL, 0 }
};

static uint64_t
parse (const char *name, const char *text, const struct unit *u, double min)
{
  char *end;
  double value = strtod (text, &end);

  for (; u->suffix; u++)
    if (end != text && strcmp (end, u->suffix) == 0
        && value * u->factor >= min && value * u->factor <= 1e18)
      return (uint64_t) (value * u->factor);
  errx (1, "%s=%s: not a time such as 20ms, or a number such as 1 or 2.5M",
        name, text);
}

/* Return false if NAME is neither rtt nor rate. */
static bool
set_link (const char *name, const char *value)
{
  if (strcmp (name, "rtt") == 0)
    rtt_ns = parse ("--rtt", value, time_units, 0);
  else if (strcmp (name, "rate") == 0)
    rate = parse ("--rate", value, byte_units, 1);
  else
    return false;
  max_packet = MAX_PACKET;
  if (rate && rate / 1000 < MAX_PACKET)
    max_packet = rate / 1000 < MIN_PACKET ? MIN_PACKET : rate / 1000;
  return true;
}

static void
read_changes (void)
{
  FILE *f = changes_file ? fopen (changes_file, "r") : NULL;
  char name[8], value[32];
  int n;

  if (f == NULL)
    err (1, "--changes=%s", changes_file ? changes_file : "");
  while ((n = fscanf (f, " %7[^= \n]=%31s", name, value)) == 2)
    if (!set_link (name, value))
      errx (1, "--changes=%s: %s: neither rtt nor rate", changes_file, name);
  if (n != EOF)
    errx (1, "--changes=%s: a line is not NAME=VALUE", changes_file);
  fclose (f);
}

/* Signals. */

static unsigned
cut_all (void)
{
  unsigned n;

  /* Connections that the kernel has accepted count, too. */
  if (!is_refusing)
    accept_all ();
  n = n_conns;
  while (n_conns > 0)
    conn_end (heap[n_conns], true);
  return n;
}

static void
toggle_refusing (void)
{
  if (!is_refusing)
    accept_all ();
  is_refusing = !is_refusing;
  close_listener ();
  bind_listener ();
}

static void
write_stats (void)
{
  FILE *f = strcmp (stats_file, "-") ? fopen (stats_file, "w") : stderr;

  if (f == NULL)
    err (1, "%s", stats_file);
  fprintf (f, "connections %" PRIu64 "\nmost_at_once %u\n"
           "bytes_to_server %" PRIu64 "\nbytes_to_client %" PRIu64 "\n",
           n_accepted, most_conns, n_bytes[CLIENT], n_bytes[SERVER]);
  if (fflush (f) != 0 || (f != stderr && fclose (f) != 0))
    err (1, "%s", stats_file);
}

static void
free_dead (void)
{
  while (dead) {
    struct conn *c = dead;

    dead = c->next_dead;
    free (c);
  }
}

static void
handle_signal (int signal_fd)
{
  struct signalfd_siginfo info;

  if (read (signal_fd, &info, sizeof info) != sizeof info)
    return;
  if (info.ssi_signo == SIGUSR1)
    printf ("cut %u\n", cut_all ());
  else if (info.ssi_signo == SIGHUP) {
    read_changes ();
    puts ("change");
  }
  else if (info.ssi_signo == SIGUSR2) {
    toggle_refusing ();
    puts (is_refusing ? "refuse" : "accept");
  }
  else {
    cut_all ();
    free_dead ();
    free (heap);
    close_listener ();
    if (stats_file)
      write_stats ();
    exit (0);
  }
}

/* Start. */

static struct address
parse_address (const char *text)
{
  struct address a = { .len = 0 };
  const char *colon = strrchr (text, ':');
  char host[INET_ADDRSTRLEN] = "", *end;
  unsigned long port;

  if (strchr (text, '/')) {
    a.un.sun_family = AF_UNIX;
    a.len = sizeof a.un;
    if (strlen (text) >= sizeof a.un.sun_path)
      errx (1, "%s: too long for a unix socket", text);
    strcpy (a.un.sun_path, text);
    return a;
  }
  a.in.sin_family = AF_INET;
  a.len = sizeof a.in;
  if (colon && (size_t) (colon - text) < sizeof host) {
    memcpy (host, text, (size_t) (colon - text));
    port = strtoul (colon + 1, &end, 10);
    a.in.sin_port = htons ((uint16_t) port);
    if (colon[1] >= '0' && colon[1] <= '9' && *end == '\0' && port <= 65535
        && inet_pton (AF_INET, host, &a.in.sin_addr) == 1)
      return a;
  }
  errx (1, "%s: neither IPV4:PORT nor a path with a slash", text);
}

static void
parse_options (int argc, char **argv)
{
  static const struct option options[] = {
    { "rtt", required_argument, NULL, 't' },
    { "rate", required_argument, NULL, 'r' },
    { "buffer", required_argument, NULL, 'b' },
    { "stats", required_argument, NULL, 's' },
    { "changes", required_argument, NULL, 'c' },
    { NULL, 0, NULL, 0 }
  };
  int c;

  while ((c = getopt_long (argc, argv, "", options, NULL)) != -1)
    switch (c) {
    case 't': set_link ("rtt", optarg); break;
    case 'r': set_link ("rate", optarg); break;
    case 'b': max_bytes = parse ("--buffer", optarg, byte_units, 1); break;
    case 's': stats_file = optarg; break;
    case 'c': changes_file = optarg; break;
    default: exit (1);
    }
  if (argc - optind != 2 || rtt_ns == NEVER)
    errx (1, "usage: delay-proxy --rtt=TIME [--rate=N] [--buffer=N]"
          " [--stats=FILE] [--changes=FILE] LISTEN CONNECT");
  listen_to = parse_address (argv[optind]);
  connect_to = parse_address (argv[optind + 1]);
}

static int
watch_signals (void)
{
  sigset_t set;

  signal (SIGPIPE, SIG_IGN);    /* the reader of our lines may have gone */
  sigemptyset (&set);
  sigaddset (&set, SIGTERM);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGUSR1);
  sigaddset (&set, SIGUSR2);
  sigprocmask (SIG_BLOCK, &set, NULL);
  return signalfd (-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void
set_timer (int timer_fd)
{
  uint64_t ns = n_conns ? heap[1]->due_ns : NEVER;
  struct itimerspec t = { .it_value = { 0, 0 } };

  if (ns != NEVER) {            /* zero would mean never */
    t.it_value.tv_sec = (time_t) (ns / 1000000000);
    t.it_value.tv_nsec = (long) (ns % 1000000000) + (ns == 0);
  }
  timerfd_settime (timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

int
main (int argc, char **argv)
{
  struct epoll_event events[MAX_EVENTS], e = { .events = EPOLLIN };
  struct rlimit files;
  int signal_fd, timer_fd;

  parse_options (argc, argv);
  setvbuf (stdout, NULL, _IOLBF, 0);
  getrlimit (RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit (RLIMIT_NOFILE, &files);
  /* Memory of packets is used again, and not returned to the kernel. */
  mallopt (M_TRIM_THRESHOLD, 1 << 30);

  epoll_fd = epoll_create1 (EPOLL_CLOEXEC);
  signal_fd = watch_signals ();
  timer_fd = timerfd_create (CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  e.data.ptr = &signal_fd;
  epoll_ctl (epoll_fd, EPOLL_CTL_ADD, signal_fd, &e);
  /* Edge-triggered: it needs no read. */
  e.events = EPOLLIN | EPOLLET;
  e.data.ptr = &timer_fd;
  epoll_ctl (epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
  bind_listener ();
  if (listen_to.sa.sa_family == AF_INET)
    printf ("%u\n", ntohs (listen_to.in.sin_port));
  else
    puts (listen_to.un.sun_path);

  for (;;) {
    uint64_t now;
    int n;

    set_timer (timer_fd);
    n = epoll_wait (epoll_fd, events, MAX_EVENTS, -1);
    for (int i = 0; i < n; i++)
      if (events[i].data.ptr == &listener)
        accept_all ();
      else if (events[i].data.ptr == &signal_fd)
        handle_signal (signal_fd);
      else if (events[i].data.ptr != &timer_fd)
        conn_event (events[i].data.ptr, events[i].events);
    now = now_ns ();
    while (n_conns > 0 && heap[1]->due_ns <= now)
      conn_run (heap[1]);
    free_dead ();
  }
}
