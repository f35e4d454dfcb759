/* SPDX-License-Identifier: BSD-3-Clause */

/* For test programs that talk NBD: a server of their own, connections, and
 * requests in flight.
 *
 * A header, not a library: tests/lib*.c are linked into plugins too, which
 * have no libnbd.  A failure aborts the program, and its server dies with it.
 *
 * Not its job: scenarios that several test programs share, see scene.h.
 */
#ifndef TESTS_CLIENT_H
#define TESTS_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <glib.h>
#include <glib/gstdio.h>
#include <libnbd.h>

#include "gate.h"

#define KIB UINT64_C (1024)
#define MIB (KIB * KIB)
#define UNIT (64 * KIB)         /* asyncpool-buffer-size of most tests */

/* Ends a hang.  Valgrind on a busy machine needs less. */
#define CASE_SECONDS 120

#define CLIENT_FUNCTION static G_GNUC_UNUSED

struct server {
  char *dir, *socket, *log, *gate_path, *device_path;
  pid_t pid;
  struct gate *gate;
  char *device;                 /* gate.so's memory, from server_device */
  size_t device_size;
};

/* A slow build gets less work, not more time. */
CLIENT_FUNCTION bool
client_is_slow (void)
{
  const char *variant = g_getenv ("VARIANT"), *tool = g_getenv ("TOOL");

  return (variant && *variant && strcmp (variant, "plain") != 0)
    || (tool && *tool);
}

CLIENT_FUNCTION char *
client_module (const char *variable, const char *file)
{
  const char *build = g_getenv ("BUILD"), *other = g_getenv (variable);

  if (other)
    return g_strdup (other);
  return g_build_filename (build ? build : "build/plain", file, NULL);
}

/* Starts nbdkit with the whole command line.  Its socket listens already, so
 * that clients can connect at once.
 */
CLIENT_FUNCTION void
server_exec (struct server *s, char *const *arguments)
{
  struct sockaddr_un name = { .sun_family = AF_UNIX };
  int listener = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  g_assert_cmpuint (strlen (s->socket), <, sizeof name.sun_path);
  strcpy (name.sun_path, s->socket);
  g_assert_cmpint (bind (listener, (struct sockaddr *) &name, sizeof name),
                   ==, 0);
  g_assert_cmpint (listen (listener, 64), ==, 0);
  s->pid = fork ();
  g_assert_cmpint (s->pid, !=, -1);
  if (s->pid == 0) {
    char pid[32];
    int log = open (s->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

    alarm (0);
    snprintf (pid, sizeof pid, "%ld", (long) getpid ());
    setenv ("LISTEN_PID", pid, 1);
    setenv ("LISTEN_FDS", "1", 1);
    if (log == -1 || dup2 (log, 1) == -1 || dup2 (log, 2) == -1)
      _exit (126);
    if (listener == 3)
      fcntl (3, F_SETFD, 0);
    else if (dup2 (listener, 3) == -1)
      _exit (126);
    execvp (arguments[0], arguments);
    _exit (127);
  }
  close (listener);
}

/* A directory, a gate, and names for the rest. */
CLIENT_FUNCTION void
server_init (struct server *s)
{
  memset (s, 0, sizeof *s);
  s->dir = g_dir_make_tmp ("gate.XXXXXX", NULL);
  g_assert_nonnull (s->dir);
  s->socket = g_build_filename (s->dir, "socket", NULL);
  s->log = g_build_filename (s->dir, "log", NULL);
  s->gate_path = g_build_filename (s->dir, "gate", NULL);
  s->device_path = g_build_filename (s->dir, "device", NULL);
  s->gate = gate_create (s->gate_path);
}

/* With FILTER set, a stock filter takes asyncpool's place.  So one sees whether
 * a test is right without asyncpool.
 */
static inline void
add_words (GPtrArray *arguments, const char *words)
{
  g_auto (GStrv) list = g_strsplit_set (words ? words : "", " ", -1);
  bool is_asyncpool = !g_getenv ("FILTER");

  for (char **word = list; *word; word++)
    if (**word && (is_asyncpool || !g_str_has_prefix (*word, "asyncpool-")))
      g_ptr_array_add (arguments, g_strdup (*word));
}

/* nbdkit OPTIONS --filter=asyncpool BELOW MODULE PARAMETERS, words separated by
 * blanks.  Filters among OPTIONS are above asyncpool, BELOW has the filters
 * below it.  A gate.so IS_GATED: it gets the server's gate and device.
 */
CLIENT_FUNCTION void
server_start_module (struct server *s, const char *module, bool is_gated,
                     const char *options, const char *below,
                     const char *parameters)
{
  g_autoptr (GPtrArray) arguments = g_ptr_array_new_with_free_func (g_free);
  g_autofree char *filter =
    client_module (g_getenv ("FILTER") ? "FILTER" : "ASYNCPOOL",
                   "asyncpool.so");
  const char *nbdkit = g_getenv ("NBDKIT");

  server_init (s);
  g_ptr_array_add (arguments, g_strdup (nbdkit ? nbdkit : "nbdkit"));
  add_words (arguments, "-f --exit-with-parent");
  if (g_getenv ("TEST_VERBOSE"))
    add_words (arguments, "-v -D asyncpool.buffers=1");
  add_words (arguments, options);
  g_ptr_array_add (arguments, g_strdup_printf ("--filter=%s", filter));
  add_words (arguments, below);
  g_ptr_array_add (arguments,
                   client_module (is_gated ? "GATE" : "PLUGIN", module));
  if (is_gated) {
    g_ptr_array_add (arguments, g_strdup_printf ("gate=%s", s->gate_path));
    g_ptr_array_add (arguments, g_strdup_printf ("device=%s", s->device_path));
  }
  add_words (arguments, parameters);
  g_ptr_array_add (arguments, NULL);
  server_exec (s, (char *const *) arguments->pdata);
}

/* A test program may define another gate. */
#ifndef GATE_MODULE
#define GATE_MODULE "tests/gate.so"
#endif

/* PLUGIN NULL: GATE_MODULE. */
CLIENT_FUNCTION void
server_start_with (struct server *s, const char *options, const char *below,
                   const char *plugin, const char *parameters)
{
  server_start_module (s, plugin ? plugin : GATE_MODULE, !plugin, options,
                       below, parameters);
}

CLIENT_FUNCTION void
server_start (struct server *s, const char *options, const char *parameters)
{
  server_start_with (s, options, NULL, NULL, parameters);
}

CLIENT_FUNCTION char *
server_messages (const struct server *s)
{
  char *text = NULL;

  g_file_get_contents (s->log, &text, NULL, NULL);
  return text ? text : g_strdup ("");
}

CLIENT_FUNCTION void
server_print_messages (const struct server *s)
{
  g_autofree char *text = server_messages (s);
  g_auto (GStrv) lines = g_strsplit (text, "\n", -1);

  for (char **line = lines; *line && **line; line++)
    fprintf (stderr, "# nbdkit: %s\n", *line);
}

CLIENT_FUNCTION unsigned
count_messages (const struct server *s, const char *text)
{
  g_autofree char *log = server_messages (s);
  unsigned n = 0;

  for (const char *p = log; (p = strstr (p, text)) != NULL; p++)
    n++;
  return n;
}

/* For events that show in the server's log only. */
CLIENT_FUNCTION void
wait_message (const struct server *s, const char *text, unsigned n)
{
  while (count_messages (s, text) < n)
    g_usleep (10000);
}

#define assert_messages(s, text, n) \
  do { \
    if (count_messages (s, text) != (n)) \
      server_print_messages (s); \
    g_assert_cmpuint (count_messages (s, text), ==, n); \
  } while (0)

/* Messages of nbdkit-async's library. */
#define UNKNOWN "replied to before or is unknown"
#define GIVEN_UP ": given up"

/* gate.so's memory as a file.  It exists once a client has connected. */
CLIENT_FUNCTION const char *
server_device (struct server *s)
{
  struct stat st;
  int fd;

  if (s->device)
    return s->device;
  fd = open (s->device_path, O_RDWR | O_CLOEXEC);
  g_assert_cmpint (fd, !=, -1);
  g_assert_cmpint (fstat (fd, &st), ==, 0);
  s->device_size = st.st_size;
  s->device = mmap (NULL, s->device_size, PROT_READ, MAP_SHARED, fd, 0);
  g_assert_true (s->device != MAP_FAILED);
  close (fd);
  return s->device;
}

CLIENT_FUNCTION void
server_terminate (struct server *s)
{
  g_assert_cmpint (kill (s->pid, SIGTERM), ==, 0);
}

/* Waits for its end, and expects success. */
CLIENT_FUNCTION void
server_wait (struct server *s)
{
  int status;

  g_assert_cmpint (waitpid (s->pid, &status, 0), ==, s->pid);
  if (status != 0 || g_getenv ("TEST_VERBOSE"))
    server_print_messages (s);
  g_assert_cmpint (status, ==, 0);
  s->pid = 0;
}

CLIENT_FUNCTION void
server_free (struct server *s)
{
  g_assert_cmpuint (gate_violations (s->gate), ==, 0);
  if (s->device)
    munmap (s->device, s->device_size);
  gate_free (s->gate);
  g_unlink (s->gate_path);
  g_unlink (s->device_path);
  g_unlink (s->socket);
  g_unlink (s->log);
  g_rmdir (s->dir);
  g_free (s->gate_path);
  g_free (s->device_path);
  g_free (s->socket);
  g_free (s->log);
  g_free (s->dir);
}

CLIENT_FUNCTION void
server_stop (struct server *s)
{
  gate_release_all (s->gate);
  server_terminate (s);
  server_wait (s);
  server_free (s);
}

/* The server whose messages are printed when a connection fails. */
static const struct server *client_server;

CLIENT_FUNCTION G_GNUC_NORETURN void
client_abort (void)
{
  if (client_server)
    server_print_messages (client_server);
  abort ();
}

/* Connections. */

#define nbd_ok(call) \
  do { \
    if ((call) == -1) { \
      fprintf (stderr, "# %s:%d: %s: %s\n", __FILE__, __LINE__, #call, \
               nbd_get_error ()); \
      client_abort (); \
    } \
  } while (0)

/* The call must fail, with this errno. */
#define nbd_fails(call, expected) \
  do { \
    if ((call) != -1) \
      g_error ("%s:%d: %s: should have failed", __FILE__, __LINE__, #call); \
    g_assert_cmpint (nbd_get_errno (), ==, expected); \
  } while (0)

CLIENT_FUNCTION struct nbd_handle *
client_connect_export (struct server *s, const char *export)
{
  struct nbd_handle *nbd = nbd_create ();

  g_assert_nonnull (nbd);
  client_server = s;
  nbd_ok (nbd_set_export_name (nbd, export));
  nbd_ok (nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION));
  if (nbd_connect_unix (nbd, s->socket) == -1) {
    fprintf (stderr, "# connect: %s\n", nbd_get_error ());
    client_abort ();
  }
  return nbd;
}

CLIENT_FUNCTION struct nbd_handle *
client_connect (struct server *s)
{
  return client_connect_export (s, "");
}

/* Sends NBD_CMD_DISC, and waits until the server has closed the socket. */
CLIENT_FUNCTION void
client_close (struct nbd_handle *nbd)
{
  nbd_ok (nbd_shutdown (nbd, 0));
  nbd_close (nbd);
}

/* Sends NBD_CMD_DISC, perhaps with a request in flight. */
CLIENT_FUNCTION void
client_leave (struct nbd_handle *nbd)
{
  nbd_ok (nbd_aio_disconnect (nbd, 0));
  nbd_close (nbd);
}

/* A request in flight. */
struct request {
  struct nbd_handle *nbd;
  int64_t cookie;
  bool done;
  int error;
};

CLIENT_FUNCTION struct request
request_sent (struct nbd_handle *nbd, int64_t cookie)
{
  nbd_ok (cookie);
  return (struct request) { .nbd = nbd, .cookie = cookie };
}

CLIENT_FUNCTION struct request
send_write (struct nbd_handle *nbd, const void *buf, size_t count,
            uint64_t offset, uint32_t flags)
{
  return request_sent (nbd, nbd_aio_pwrite (nbd, buf, count, offset,
                                            NBD_NULL_COMPLETION, flags));
}

CLIENT_FUNCTION struct request
send_read (struct nbd_handle *nbd, void *buf, size_t count, uint64_t offset)
{
  return request_sent (nbd, nbd_aio_pread (nbd, buf, count, offset,
                                           NBD_NULL_COMPLETION, 0));
}

CLIENT_FUNCTION struct request
send_flush (struct nbd_handle *nbd)
{
  return request_sent (nbd, nbd_aio_flush (nbd, NBD_NULL_COMPLETION, 0));
}

CLIENT_FUNCTION struct request
send_zero (struct nbd_handle *nbd, size_t count, uint64_t offset,
           uint32_t flags)
{
  return request_sent (nbd, nbd_aio_zero (nbd, count, offset,
                                          NBD_NULL_COMPLETION, flags));
}

CLIENT_FUNCTION struct request
send_trim (struct nbd_handle *nbd, size_t count, uint64_t offset,
           uint32_t flags)
{
  return request_sent (nbd, nbd_aio_trim (nbd, count, offset,
                                          NBD_NULL_COMPLETION, flags));
}

static inline bool
request_check (struct request *r)
{
  int answer;

  if (r->done)
    return true;
  answer = nbd_aio_command_completed (r->nbd, r->cookie);
  if (answer == 0)
    return false;
  r->done = true;
  r->error = answer == -1 ? nbd_get_errno () : 0;
  return true;
}

/* Whether the reply has come. */
CLIENT_FUNCTION bool
request_is_done (struct request *r)
{
  while (!request_check (r) && nbd_poll (r->nbd, 0) == 1)
    ;
  return r->done;
}

/* The error of the reply, 0 for success. */
CLIENT_FUNCTION int
request_wait (struct request *r)
{
  while (!request_check (r))
    nbd_ok (nbd_poll (r->nbd, 1000));
  return r->error;
}

/* Requests that go all the way to the plugin and back.  On the connection of a
 * request that the server must not answer yet: if the server has answered it,
 * that reply comes before theirs.
 */
CLIENT_FUNCTION void
round_trips (struct nbd_handle *nbd)
{
  char sector[512];
  uint64_t size = nbd_get_size (nbd);

  /* No sequential reader takes these steps. */
  for (unsigned i = 0; i < 24; i++)
    nbd_ok (nbd_pread (nbd, sector, sizeof sector,
                       size - MIB + (i * 7 % 24) * 16 * KIB + 8 * KIB, 0));
}

CLIENT_FUNCTION void
fill (void *buf, size_t count, unsigned seed)
{
  uint64_t x = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
  unsigned char *p = buf;

  for (size_t i = 0; i < count; i++) {
    if (i % 8 == 0) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
    }
    p[i] = (unsigned char) (x >> i % 8 * 8);
  }
}

CLIENT_FUNCTION char *
filled (size_t count, unsigned seed)
{
  char *buf = g_malloc (count);

  fill (buf, count, seed);
  return buf;
}

#define assert_same(got, expected, count) \
  client_compare (__FILE__, __LINE__, got, expected, count)

CLIENT_FUNCTION void
client_compare (const char *file, int line, const void *got,
                const void *expected, size_t count)
{
  const unsigned char *g = got, *e = expected;
  size_t i;

  if (memcmp (got, expected, count) == 0)
    return;
  for (i = 0; g[i] == e[i]; i++)
    ;
  fprintf (stderr, "# %s:%d: differs at byte %zu of %zu: got %#x, "
           "expected %#x\n", file, line, i, count, g[i], e[i]);
  abort ();
}

/* A read by NBD. */
#define assert_reads(nbd, expected, count, offset) \
  do { \
    g_autofree char *got_ = g_malloc (count); \
    nbd_ok (nbd_pread (nbd, got_, count, offset, 0)); \
    assert_same (got_, expected, count); \
  } while (0)

#endif /* TESTS_CLIENT_H */
