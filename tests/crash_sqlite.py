# SPDX-License-Identifier: BSD-3-Clause
#
# SQLite on an NBD device without a file system, for test-crash-sqlite.sh.
#
#   crash_sqlite.py write SOCKET MODE TRANSACTIONS LOG
#   crash_sqlite.py check SOCKET MODE LOG POINTS SEED
#   crash_sqlite.py verify SOCKET MODE LOG
#
# `write' runs transactions in a journal mode of SQLite.  The server has
# record.so, which writes LOG.  LOG.acks gets a line for each transaction when
# its commit has returned: the length of LOG, and the transaction's number.
#
# `write' goes on with a database that is there.
#
# `check' opens the database in crash images of replay.so: POINTS of them, or
# `all', which is four at each flush.  SQLite recovers.  The database must be
# sound, and have all transactions whose line in LOG.acks is from before the
# crash.  SEED draws the images.  The status is 1 if an image is bad.
#
# `verify' checks the database on the device itself, against all of LOG.acks.
#
# A VFS of SQLite's keeps each file in a region of the device.  The region's
# first sector has the file's size.  A sync is a flush.
import os
import struct
import sys

import apsw
import nbd

DATA = 4096                     # where a region's data begins
REGIONS = {"db": (0, 12 << 20), "db-journal": (12 << 20, 8 << 20),
           "db-wal": (20 << 20, 12 << 20)}
KEPT = 40                       # rows
BAD_MAX = 5                     # images, then `check' gives up


def connect(socket, export=""):
    h = nbd.NBD()
    h.set_export_name(export)
    h.connect_unix(socket)
    return h


class File:
    """A region of the device.  SQLite calls the methods with an x."""

    def __init__(self, h, name):
        self.h = h
        self.start, self.room = REGIONS[name]
        self.size, = struct.unpack("<Q", h.pread(8, self.start))

    def set_size(self, size, flags=0):
        assert size <= self.room - DATA
        if size != self.size:
            self.size = size
            sector = struct.pack("<Q", size).ljust(512, b"\0")
            self.h.pwrite(sector, self.start, flags)

    # As in a file system, old data does not come back when the file grows.  The
    # caller flushes before that.
    def shrink(self, size):
        old = self.size
        self.set_size(size, nbd.CMD_FLAG_FUA)
        if old > size:
            self.h.zero(old - size, self.start + DATA + size)

    def xRead(self, amount, offset):
        n = max(0, min(amount, self.size - offset))
        return self.h.pread(n, self.start + DATA + offset) if n else b""

    def xWrite(self, data, offset):
        self.h.pwrite(data, self.start + DATA + offset)
        self.set_size(max(self.size, offset + len(data)))

    def xTruncate(self, size):
        self.shrink(size)

    def xSync(self, flags):
        self.h.flush()

    def xFileSize(self):
        return self.size

    def xSectorSize(self):
        return 512

    def xDeviceCharacteristics(self):
        return 0

    def xFileControl(self, op, ptr):
        return False

    def xCheckReservedLock(self):
        return False

    def xLock(self, level):
        pass

    def xUnlock(self, level):
        pass

    def xClose(self):
        pass


class VFS(apsw.VFS):
    def __init__(self, h):
        self.h = h
        super().__init__("nbd", "")

    def xOpen(self, name, flags):
        if isinstance(name, apsw.URIFilename):
            name = name.filename()
        return File(self.h, os.path.basename(name))

    # A journal without data is none.
    def xAccess(self, name, flags):
        return File(self.h, os.path.basename(name)).size > 0

    def xDelete(self, name, sync):
        File(self.h, os.path.basename(name)).shrink(0)
        self.h.flush()

    def xFullPathname(self, name):
        return name


def database(mode, cache_size):
    db = apsw.Connection("db", vfs="nbd")
    # Exclusive: WAL then needs no shared memory.
    for pragma in ("locking_mode=exclusive", "journal_mode=" + mode,
                   "synchronous=extra", "temp_store=memory",
                   "wal_autocheckpoint=20", "cache_size=%d" % cache_size):
        db.execute("PRAGMA " + pragma).fetchall()
    return db


def row(n):
    return "%d " % n + chr(65 + n % 26) * (200 + n * 577 % 9000)


def transaction(db, n):
    with db:
        db.execute("INSERT INTO t VALUES (?, ?)", (n, row(n)))
        db.execute("UPDATE last SET n = ? WHERE id = ?", (n, n % 5))
        db.execute("DELETE FROM t WHERE n = ?", (n - KEPT,))


# Returns the number of the next transaction, or 0.
def create(db):
    if db.execute("SELECT count (*) FROM sqlite_schema").fetchone() != (0,):
        return db.execute("SELECT max (n) + 1 FROM last").fetchone()[0]
    with db:
        db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, data);"
                   "CREATE INDEX i ON t (data);"
                   "CREATE TABLE last (id INTEGER PRIMARY KEY, n);"
                   "INSERT INTO last VALUES (0,0),(1,0),(2,0),(3,0),(4,0);")
    return 0


def write(socket, mode, transactions, log):
    vfs = VFS(connect(socket))
    db = database(mode, 10)     # pages
    first = create(db)
    with open(log + ".acks", "a", buffering=1) as acks:
        for n in range(first, first + int(transactions) + 1):
            if n > 0:
                transaction(db, n)
            acks.write("%d %d\n" % (os.stat(log).st_size, n))
    vfs.h.shutdown()            # SQLite itself does not close the database
    os._exit(acks.close() or 0)


# Returns the reason if the image is bad.
def find_fault(db, least):
    answer = db.execute("PRAGMA integrity_check").fetchall()
    if answer != [("ok",)]:
        return "integrity_check: %s" % answer[:3]
    rows = db.execute("SELECT n, data FROM t ORDER BY n").fetchall()
    last = rows[-1][0] if rows else 0
    if last < least:
        return "transaction %d is missing, the last one is %d" % (least, last)
    if rows != [(n, row(n)) for n in range(max(1, last - KEPT + 1), last + 1)]:
        return "rows %s" % [r[0] for r in rows]
    for i, n in db.execute("SELECT id, n FROM last"):
        if n != max(0, last - (last - i) % 5):
            return "last %d is %d, but row %d is there" % (i, n, last)
    return None


def check_image(socket, mode, name, least):
    vfs = VFS(connect(socket, name))
    try:
        db = database(mode, 10000)
        fault = find_fault(db, least)
        db.close()
    except apsw.Error as e:
        fault = repr(e)
    vfs.unregister()
    vfs.h.shutdown()
    if fault:
        print("image %s: %s" % (name or "of the device", fault))
    return fault is not None


def verify(socket, mode, log):
    sys.exit(check_image(socket, mode, "", read_pairs(log + ".acks")[-1][1]))


# Yields moments and seeds: after a flush with no other change, and before it
# with none, all, or some of the others.
def choose(flushes, points, seed):
    points = 4 * len(flushes) if points == "all" else int(points)
    for i in range(points):
        before, after = flushes[i * len(flushes) // points]
        if i % 4 == 0:
            yield after, 0
        else:
            yield before, i // 4 % 2 if i % 4 == 3 else int(seed) * 10000 + i


def read_pairs(path):
    with open(path) as f:
        return [tuple(map(int, line.split())) for line in f]


def check(socket, mode, log, points, seed):
    acks = read_pairs(log + ".acks")
    flushes = [f for f in read_pairs(log + ".flushes") if f[0] >= acks[0][0]]
    images = bad = 0
    for moment, image in choose(flushes, points, seed):
        least = max(n for at, n in acks if at <= moment)
        images += 1
        bad += check_image(socket, mode, "%d.%d" % (moment, image), least)
        if bad >= BAD_MAX:
            break
    print("%d images of %d flushes, %d bad" % (images, len(flushes), bad))
    sys.exit(bad > 0)


{"write": write, "check": check, "verify": verify}[sys.argv[1]](*sys.argv[2:])
