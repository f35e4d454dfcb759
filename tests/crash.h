/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The device of crash.so: a file that test-crash.c and the plugin both map.
 *
 * The file outlives the server, so it shows what a power cut would leave.  It
 * holds this header and two images of the device: `written' is what reads
 * return, `durable' is what was flushed or written with FUA.
 *
 * Lock: `lock' is held while one block changes, never for longer.  A test that
 * holds it when it kills the server finds no block that is half written.
 */
#ifndef TESTS_CRASH_H
#define TESTS_CRASH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define CRASH_BLOCK 512         /* bytes; the unit of a power cut */
#define CRASH_SIZE (2 << 20)    /* bytes */
#define CRASH_BLOCKS (CRASH_SIZE / CRASH_BLOCK)

struct crash_device {
  pthread_mutex_t lock;         /* shared between processes */
  _Atomic unsigned fail_percent;        /* of changes and flushes: ENOSPC */
  _Atomic unsigned violations;  /* of the block size or the thread model */
  _Atomic unsigned steps_back;  /* blocks that got an older write's data */
  char written[CRASH_SIZE];     /* under the lock */
  char durable[CRASH_SIZE];     /* under the lock */
};

#endif /* TESTS_CRASH_H */
