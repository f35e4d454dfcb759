/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The library of the engine's tests: one engine over the fake device of fake.h,
 * requests, and looks inside.
 *
 * Each program tests one subject.  It has a table of cases, and a case is a
 * function that gets a world.  The world is empty at first: the case opens an
 * engine with connections in it, and the library closes all of it at the
 * end.  A case runs three times: the plugin is used through the thread pool
 * (/pool/...), through its async hooks (/hooks/...), and through contexts of
 * one call at a time (/contexts/...).
 *
 * Data.  Each byte depends on its place and on a tag, a small number.  A
 * request names the tag that it writes or must find.  So a test never compares
 * buffers.
 *
 * Time.  Rules of gate.h hold operations, so a test decides their order.  Where
 * something must happen, the test waits for it.  Where nothing must happen yet,
 * the thread that could do it must sleep (task_wait_blocked).
 *
 * The engine's own fields are used in libworld.c and as little as possible in
 * tests: see the section "Inside the engine".
 */
#ifndef TESTS_WORLD_H
#define TESTS_WORLD_H

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <glib.h>

#include "engine.h"
#include "fake.h"
#include "lock.h"

#define KIB UINT64_C (1024)
#define U (64 * KIB)            /* the unit, which is the size of a buffer */
#define HOUR_NS UINT64_C (3600000000000)

enum {
  CONNS = 6,
  OLD = 200                     /* the tag of all bytes of a new device */
};

/* Cases. */

struct world {
  /* Constant: how the case was registered. */
  bool hooked;                  /* the plugin has async hooks */
  bool serial;                  /* it takes one call at a time per context */
  unsigned arg;                 /* from the table */
  /* Constant while it is open. */
  struct fake *f;               /* the device */
  struct gate *gate;            /* its gate */
  struct fake *f2;              /* a second one, where a test needs it */
  struct engine *e;
  struct conn *c[CONNS];        /* NULL: closed */
};

/* A row of a table leaves out fields that are 0. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

struct test {
  const char *name;
  void (*run) (struct world *);
  unsigned arg;
  /* PARALLEL: the pool and hooks, as one connection has several calls in the
   * plugin.
   */
  enum { ON_ALL, PARALLEL, POOL_ONLY, HOOKS_ONLY, CONTEXTS_ONLY } on;
};

extern void tests_init (int *argc, char ***argv);
extern void tests_add (const struct test *, unsigned n);
extern int tests_run (void);

/* Engines and connections. */

/* An open buffer waits an hour to grow, and a request waits an hour for another
 * device's data.  So no result depends on the speed of the machine.
 */
extern struct engine_config config (unsigned buffers, unsigned threads,
                                    enum write_mode, enum read_mode);
/* Eight buffers, four threads; a request waits 50 ms for another device. */
extern struct engine_config config_impatient (enum read_mode);
/* From now on it waits an hour. */
extern void be_patient (struct world *);

/* Starts an engine without a connection, over a device of SIZE bytes. */
extern void world_start (struct world *, uint64_t size, struct engine_config);
/* Opens connection I (0 to CONNS - 1). */
extern void world_open (struct world *, unsigned i, const char *export_name);
/* The plugin of connection I for conn_open.  A test may change it. */
extern struct backend world_backend (struct world *, unsigned i);
extern void world_open_as (struct world *, unsigned i, const char *export_name,
                           const struct backend *);
/* Over another device, which is the second one. */
extern void world_open_second (struct world *, unsigned i,
                               const char *export_name);
/* Without multi-conn. */
extern void world_open_unshared (struct world *, unsigned i,
                                 const char *export_name);

/* Starts an engine with connections 0 and 1, which share one device. */
extern void world_init (struct world *, uint64_t size, struct engine_config);
/* The same, with deferred writes and no prefetch, or with both. */
extern void open_writeback (struct world *, uint64_t size, unsigned buffers,
                            unsigned threads);
extern void open_readahead (struct world *, uint64_t size, unsigned buffers,
                            unsigned threads);
/* Starts an engine with connection 0 of export "a" and 1 of "b", which possibly
 * have the same device.
 */
extern void open_names (struct world *, uint64_t size, struct engine_config);

/* Finalizes and closes a connection. */
extern void world_close (struct world *, unsigned i);
/* Ends the engine as nbdkit does, with connections open. */
extern void world_stop (struct world *);
/* Closes everything.  No report may be left that no test has asserted. */
extern void world_end (struct world *);

/* Requests. */

enum kind {
  READ, WRITE, FUA, ZERO, TRIM, FLUSH,
  DRAIN,                        /* waits for dirty data only; its result is a
                                 * bool */
  CLOSE, FINALIZE, STOP
};

extern const char *const kind_names[];

/* The kind of the plugin's operation for this request. */
extern unsigned fake_kind (enum kind);

extern int request (struct world *, unsigned i, enum kind, void *buf,
                    uint32_t count, uint64_t offset);
/* Writes the bytes of TAG.  A read that succeeds must find them. */
extern int try_request (struct world *, unsigned i, enum kind, uint32_t count,
                        uint64_t offset, unsigned tag);
/* It must succeed. */
extern void do_request (struct world *, unsigned i, enum kind, uint32_t count,
                        uint64_t offset, unsigned tag);
/* It must return ERR. */
extern void request_fails (struct world *, unsigned i, enum kind,
                           uint32_t count, uint64_t offset, unsigned tag,
                           int err);
extern void do_read (struct world *, unsigned i, uint32_t count,
                     uint64_t offset, unsigned tag);
extern void do_write (struct world *, unsigned i, uint32_t count,
                      uint64_t offset, unsigned tag);
extern void do_fua (struct world *, unsigned i, uint32_t count,
                    uint64_t offset, unsigned tag);
extern void do_zero (struct world *, unsigned i, uint32_t count,
                     uint64_t offset);
extern void do_flush (struct world *, unsigned i);
extern void flush_fails (struct world *, unsigned i, int err);
/* Writes the dirty data in the range.  True: failed data is left there. */
extern bool drain (struct world *, unsigned i, uint32_t count,
                   uint64_t offset);

/* Writes N whole units one by one, from unit FIRST on. */
extern void write_units (struct world *, unsigned i, unsigned first, unsigned n,
                         unsigned tag);
/* Reads the first two units, which makes a stream. */
extern void start_stream (struct world *, unsigned i);
/* The same, and waits until the N units behind them are prefetched. */
extern void prefetch (struct world *, unsigned i, unsigned n);
/* Makes a stream whose prefetches are held, and waits for the first.  Returns
 * the rule of gate.h that holds them.
 */
extern int start_held_stream (struct world *, unsigned i);
/* Leaves COUNT bytes of TAG at OFFSET, within one unit, FAILED with ERR.  The
 * plugin takes writes again afterwards.
 */
extern void make_failed (struct world *, unsigned i, uint32_t count,
                         uint64_t offset, unsigned tag, int err);

/* A request on a thread of its own. */

struct task;

extern struct task *task_start (struct world *, unsigned i, enum kind,
                                uint32_t count, uint64_t offset, unsigned tag);
extern struct task *start_flush (struct world *, unsigned i);
extern struct task *start_close (struct world *, unsigned i);
/* The request must wait for something. */
extern struct task *start_blocked (struct world *, unsigned i, enum kind,
                                   uint32_t count, uint64_t offset,
                                   unsigned tag);
extern struct task *start_blocked_flush (struct world *, unsigned i);
extern struct task *start_blocked_close (struct world *, unsigned i);
/* The plugin gets an operation of the request, which RULE of gate.h holds. */
extern struct task *start_held (struct world *, int rule, unsigned i, enum kind,
                                uint32_t count, uint64_t offset, unsigned tag);
extern struct task *start_held_flush (struct world *, int rule, unsigned i);
/* Waits until the thread sleeps and is not woken for a while.  The request must
 * not have ended.
 */
extern void task_wait_blocked (struct task *);
/* Waits for its end, and returns its result. */
extern int task_end (struct task *);
/* Its result must be ERR. */
extern void task_ends (struct task *, int err);

/* Data. */

/* COUNT bytes of TAG at OFFSET. */
struct part {
  uint64_t offset;
  uint32_t count;
  unsigned tag;
};

/* An array of them and its length, as two arguments. */
#define PARTS(...)                                              \
  (struct part[]) { __VA_ARGS__ },                              \
  sizeof ((struct part[]) { __VA_ARGS__ }) / sizeof (struct part)

extern void fill (void *buf, uint32_t count, uint64_t offset, unsigned tag);
extern void assert_filled (const void *buf, uint32_t count, uint64_t offset,
                           unsigned tag);
/* The bytes of the device. */
extern void assert_device (struct fake *, uint32_t count, uint64_t offset,
                           unsigned tag);
extern void assert_devices (struct fake *, const struct part *, unsigned n);
/* Reads all parts, which are neighbours, with one request. */
extern void assert_reads (struct world *, unsigned i, const struct part *,
                          unsigned n);
/* The device, and reads of both connections, have the bytes that this request
 * leaves: a FUA write of TAG, a zero or a trim.
 */
extern void assert_changed (struct world *, enum kind, uint32_t count,
                            uint64_t offset, unsigned tag);

/* The plugin's operations. */

extern void assert_started (struct world *, unsigned kinds, uint64_t offset,
                            uint64_t count, unsigned n);
extern void assert_ended (struct world *, unsigned kinds, uint64_t offset,
                          uint64_t count, unsigned n);
extern void assert_order (struct gate_op before, struct gate_op after);
/* No two changes of the same bytes were in the plugin at once. */
extern void assert_no_collisions (struct world *);
extern bool is_on_this_thread (struct gate_op);

/* The log. */

/* Asserts all reports, oldest first, and forgets them.  Each is
 * "EXPORT:OFFSET+COUNT:kept", or it ends with "lost".
 */
#define assert_reports(...)                                     \
  assert_report_list ((const char *const[]) { __VA_ARGS__, NULL })
extern void assert_report_list (const char *const *);
/* The same, where only their number is known. */
extern void assert_n_reports (unsigned n);
/* How often a request went on without another device's data. */
extern void assert_late (unsigned n);
/* How often it was logged that no context can be opened. */
extern void wait_contexts_logged (void);
extern void assert_contexts_logged (unsigned n);
/* While the gate is closed the thread that reports waits in the report. */
extern void report_gate_close (void);
extern void report_gate_wait (void);
extern void report_gate_open (void);

/* Inside the engine. */

/* Buffers of STATE that hold a byte of the range. */
extern unsigned count_state (struct world *, enum buf_state, uint64_t offset,
                             uint64_t count);
extern void assert_states (struct world *, enum buf_state, uint64_t offset,
                           uint64_t count, unsigned n);
extern void wait_state (struct world *, enum buf_state, uint64_t offset,
                        uint64_t count, unsigned n);
extern void wait_free (struct world *, unsigned n);
extern void assert_free (struct world *, unsigned n);
/* The time from which the oldest OPEN buffer waits to grow. */
extern uint64_t open_since_ns (struct world *);
/* READING, including dropped ones. */
extern unsigned count_reading (struct world *);
/* In the tree. */
extern unsigned count_held (struct world *);
/* Dirty buffers of connection I's device. */
extern unsigned count_dirty (struct world *, unsigned i);
/* READING and CLEAN buffers of connection I. */
extern unsigned count_prefetched (struct world *, unsigned i);
/* Streams that connection I follows. */
extern unsigned count_streams (struct world *, unsigned i);
/* Export names that the engine remembers. */
extern unsigned count_exports (struct world *);
extern bool is_failing (struct world *, unsigned i);
extern bool has_same_device (struct world *, unsigned i, unsigned j);
/* The first buffer in the unit; only its address means something. */
extern const void *buffer_of_unit (struct world *, unsigned unit);
extern void assert_counter (struct world *, enum stats_counter, uint64_t n);
/* How often a wait of this kind was noted. */
extern void assert_noted (struct world *, enum stats_kind, uint64_t n);

/* Sets of contexts that are kept. */
extern void wait_n_sets (struct world *, unsigned n);
/* How often opening has failed in the first of them, since it last worked. */
extern void wait_failures (struct world *, unsigned n);

/* As if the connection had N more requests of COUNT bytes in flight. */
extern void put_in_flight (struct world *, unsigned i, unsigned n,
                           uint32_t count);
/* As if a write of its device had just taken an hour.  So a writer that waits
 * for a buffer does not look again on its own.
 */
extern void make_patient (struct world *, unsigned i);
/* Waits until no buffer has memory. */
extern void wait_without_memory (struct world *);
/* As if its read-ahead window had grown to N units. */
extern void set_window (struct world *, unsigned i, unsigned n);
/* As if its read-ahead had just failed. */
extern void stop_readahead (struct world *, unsigned i);
/* As if the prefetched buffers, and the latest one that a writer took, were NS
 * older.  Sorts the prefetched buffers by offset.
 */
extern void make_older (struct world *, uint64_t ns);
/* As if no stream had been followed for so long. */
extern void stop_reading (struct world *, uint64_t ns);

#endif
