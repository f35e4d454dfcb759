# SPDX-License-Identifier: BSD-3-Clause
#
# Compares the log of dm-log-writes in the guest, above the server, with the log
# of record.so, below asyncpool.  For test-crash-real.sh.
#
#   crash_witness.py WITNESS LOG ACKS
#
# dm-log-writes logs a write when a flush that began after its end has
# completed, or when the write itself had FUA.  So all that comes before a mark
# of its log must be durable in LOG (record.h) at that mark's line in ACKS.
#
# A sector must then hold the data of its last write before the mark, or that of
# a later write: of any that the witness has, flushed or not.
#
# The status is 1 if a sector does not.
import hashlib
import struct
import sys

SECTOR = 512
WRITE, FLUSH = 1, 4             # enum kind of operations.h
DISCARD, MARK = 4, 8            # flags of dm-log-writes


def digest(data):
    return hashlib.blake2b(data, digest_size=8).digest()


ZEROES = digest(bytes(SECTOR))


def sectors(start, data):
    for i in range(0, len(data), SECTOR):
        yield start + i // SECTOR, digest(data[i:i + SECTOR])


# Yields (mark, None) or (None, changes): pairs of a sector and its new content.
# A discarded sector's content is None, which is any.
def read_witness(path):
    with open(path, "rb") as f:
        magic, _, entries, unit = struct.unpack("<QQQL", f.read(28))
        assert magic == 0x6a736677736872, "no log of dm-log-writes"
        at = unit
        for _ in range(entries):
            f.seek(at)
            entry = f.read(unit)
            sector, count, flags, data_len = struct.unpack_from("<4Q", entry)
            at += unit
            if flags & MARK:
                yield entry[32:32 + data_len].rstrip(b"\0").decode(), None
            elif flags & DISCARD:
                first = sector * unit // SECTOR
                yield None, [(first + i, None)
                             for i in range(count * unit // SECTOR)]
            else:
                yield None, list(sectors(sector * unit // SECTOR,
                                         f.read(count * unit)))
                at += count * unit


# Returns lists (end, started, fua, changes), and (end, started) of flushes.
def read_log(path):
    changes, flushes = [], []
    with open(path, "rb") as f:
        while header := f.read(24):
            started, offset, count, kind, fua = \
                struct.unpack_from("<QQLBB", header)
            data = f.read(count) if kind == WRITE else b""
            end = f.tell()
            if kind == FLUSH:
                flushes.append((end, started))
            else:
                first = offset // SECTOR
                changes.append((end, fua, list(sectors(first, data)) or [
                    (first + i, ZEROES) for i in range(count // SECTOR)]))
    return changes, flushes


def durable_at(moment, changes, flushes):
    durable = max((s for end, s in flushes if end <= moment), default=0)
    content = {}
    for end, fua, pairs in changes:
        if end <= durable or (fua and end <= moment):
            content.update(pairs)
    return content


def main(witness, log, acks):
    with open(acks) as f:
        moments = {"%s_%s" % (w, n): int(at)
                   for at, w, n in (line.split() for line in f)}
    entries = list(read_witness(witness))
    changes, flushes = read_log(log)
    versions = {}
    for _, pairs in entries:
        for sector, content in pairs or []:
            versions.setdefault(sector, []).append(content)
    seen = {}
    marks = bad = compared = 0
    for mark, pairs in entries:
        for sector, _ in pairs or []:
            seen[sector] = seen.get(sector, 0) + 1
        if mark not in moments:         # the end has a mark, too
            continue
        marks += 1
        content = durable_at(moments[mark], changes, flushes)
        for sector, count in seen.items():
            allowed = versions[sector][count - 1:]
            compared += 1
            if None not in allowed and content.get(sector) not in allowed:
                bad += 1
                if bad < 10:
                    print("mark %s: sector %d is not durable"
                          % (mark, sector))
    print("%d marks, %d sectors compared, %d bad" % (marks, compared, bad))
    sys.exit(bad > 0 or marks == 0)


main(*sys.argv[1:])
