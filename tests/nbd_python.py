# SPDX-License-Identifier: BSD-3-Clause
#
# An NBD client for the shell tests (nbd_python in functions.sh).
#
#   nbd_python.py URI <PROGRAM
#
# It runs the python program in its standard input.  The program has:
#
#   h                 a connection to URI
#   UNIT              64 KiB
#   data (seed)       UNIT bytes, or count bytes, that depend on the seed
#   elapsed (f, ...)  the seconds that the call f (...) takes
#   fails (f, ...)    the errno with which the call fails, 0 if it succeeds
#   extents (count, offset, flags)
#                     a list of the extents, (bytes, state) each
#
# At the end the connections break off, unless the program has shut them down.
import errno
import nbd
import os
import random
import sys
import threading
import time

UNIT = 65536


def data(seed, count=UNIT):
    return random.Random(seed).randbytes(count)


def elapsed(f, *args, **kw):
    start = time.monotonic()
    f(*args, **kw)
    return time.monotonic() - start


def fails(f, *args, **kw):
    try:
        f(*args, **kw)
    except nbd.Error as e:
        return e.errnum
    return 0


def extents(count, offset, flags=0):
    r = []
    h.block_status(count, offset, lambda m, o, e, err: r.extend(e), flags)
    return [(r[i], r[i + 1]) for i in range(0, len(r), 2)]


h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
exec(sys.stdin.read())
sys.stdout.flush()
os._exit(0)
