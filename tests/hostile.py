# SPDX-License-Identifier: BSD-3-Clause
#
# Hostile clients beside a well-behaved one (test-clients.sh).
#
#   hostile.py SOCKET PID SCENARIO [OPTION...]
#
# PID is nbdkit.  The scenario is one of the functions below that are named
# play_SCENARIO.  It is played ROUNDS times.  After each round the server has as
# many threads and file descriptors as before, and after the last one not much
# more memory than after the first.
#
#   breaks            the scenario may break off with requests in flight
#   alone             the hostile clients may overwrite all data: there is no
#                     well-behaved client
#   step=N            the scenario takes each Nth byte, for slow builds
#   clients=N         so many clients at once
#   slack=KIB         so much memory may be left
#   tls=FILE          of the pre-shared keys, for clients with TLS
#   measure=SECONDS   prints the speed of the well-behaved client, alone and
#                     while the scenario is played again and again
#   well=SOCKET       of the well-behaved client, if it uses another server
#
# The well-behaved client uses the second half of the device, and checks all
# that it reads.  It prints what it did, and how long its slowest call took.
import errno
import mmap
import nbd
import os
import random
import select
import socket
import struct
import sys
import threading
import time

import nbd_raw as raw

SECTOR, UNIT, MIB = 512, 65536, 1 << 20
ROUNDS = 2
# The well-behaved client waits for others for 3 s at most.  A busy machine adds
# some.
SLOWEST = 20
# The filter and GLib start a few threads late, and keep them for a while.
THREADS_SLACK = 4
# Of a server without clients before.  gate.so's list of operations grows, too.
SLACK_KIB = 32768

path, pid = sys.argv[1], int(sys.argv[2])
options = sys.argv[4:]
breaks, alone = "breaks" in options, "alone" in options


def value(name, default):
    for o in options:
        if o.startswith(name + "="):
            return o[len(name) + 1:]
    return default


step = int(value("step", 1))
n_clients = int(value("clients", 200))
measure = float(value("measure", 0))


def data(seed, count=UNIT):
    return random.Random(seed).randbytes(count)


def client():
    h = nbd.NBD()
    if value("tls", None):
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_username("alice")
        h.set_tls_psk_file(value("tls", None))
    return h


def connect(to=path):
    h = client()
    h.connect_unix(to)
    return h


# The well-behaved client: a process of its own.

class Witness:
    def __init__(self):
        self.shared = mmap.mmap(-1, 16)         # calls, and the slowest of them
        go_on, self.stop = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.stop)
            try:
                self.work(go_on)
            except BaseException as e:
                print("the well-behaved client:", repr(e))
                sys.stdout.flush()
                os._exit(1)
            os._exit(0)
        os.close(go_on)

    def work(self, go_on):
        """A sequential writer and reader, until the pipe is closed."""
        h = connect(value("well", path))
        base = h.get_size() // 2
        blocks = [data(i) for i in range(16)]
        turn = 0
        while True:
            turn += 1
            for call in (self.write, self.read):
                for i in range(base // UNIT):
                    if select.select([go_on], [], [], 0)[0]:
                        h.shutdown()
                        return
                    block = (struct.pack("QQ", turn, i)
                             + blocks[(turn + i) % 16][16:])
                    start = time.monotonic()
                    call(h, block, base + i * UNIT)
                    self.note(time.monotonic() - start)
                start = time.monotonic()
                h.flush()
                self.note(time.monotonic() - start)

    def write(self, h, block, offset):
        h.pwrite(block, offset)

    def read(self, h, block, offset):
        if h.pread(UNIT, offset) != block:
            raise ValueError(f"the data at {offset} differs")

    def note(self, seconds):
        calls, slowest = self.done()
        self.shared[:] = struct.pack("Qd", calls + 1, max(slowest, seconds))

    def done(self):
        return struct.unpack("Qd", self.shared)

    def works(self, calls):
        """Waits until it has done that many calls more."""
        calls += self.done()[0]
        while self.done()[0] < calls:
            assert os.waitpid(self.pid, os.WNOHANG)[0] == 0, "it has ended"
            time.sleep(0.01)

    def end(self):
        os.close(self.stop)
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, status
        calls, slowest = self.done()
        print(f"the well-behaved client: {calls} calls, the slowest took "
              f"{slowest:.3f} s")
        assert slowest < SLOWEST


class NoWitness:
    def works(self, calls):
        time.sleep(calls / 100)

    def end(self):
        pass


# The server's threads, file descriptors and memory.

def used():
    return (len(os.listdir(f"/proc/{pid}/task")),
            len(os.listdir(f"/proc/{pid}/fd")))


def memory_kib():
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("RssAnon:"):
                return int(line.split()[1])


def is_back(most, seconds=60):
    """Waits until the server uses no more than that."""
    end = time.monotonic() + seconds
    while any(now > then for now, then in zip(used(), most)):
        if time.monotonic() > end:
            print("threads and file descriptors:", used(), "at most:", most)
            return False
        time.sleep(0.05)
    return True


# Scenarios.  The well-behaved client works meanwhile, and WITNESS.works waits
# for it.  Each leaves no request in flight when it breaks off, if not `breaks'.

# What a server answers to a wrong request.
REFUSED = (errno.EPERM, errno.ENOMEM, errno.EINVAL, errno.ENOSPC,
           errno.EOVERFLOW, errno.ENOTSUP)


def play_refused(witness):
    """Requests that libnbd refuses to send, one after another."""
    c = raw.Client(path)
    size = connect().get_size()
    kinds = (raw.READ, raw.TRIM, raw.CACHE, raw.WRITE_ZEROES, raw.BLOCK_STATUS)
    for kind in kinds:
        for offset, count in ((size, SECTOR), (size - SECTOR, 2 * SECTOR),
                              (2 ** 64 - SECTOR, SECTOR), (2 ** 63, SECTOR),
                              (2 ** 64 - 1, 2 ** 32 - 1), (0, 2 ** 32 - 1),
                              (0, 0), (size, 0)):
            assert c.call(kind, offset, count) in REFUSED, (kind, offset, count)
        for flags in (1 << 15, 1 << 5, 0xffff):
            assert c.call(kind, 0, SECTOR, flags) in REFUSED, (kind, flags)
    for offset, count in ((size, SECTOR), (size - 1, SECTOR),
                          (2 ** 64 - 1, SECTOR), (0, 0)):
        assert c.call(raw.WRITE, offset, count, 0, bytes(count)) in REFUSED
    assert c.call(raw.READ, 0, 65 * MIB) in REFUSED
    # A flush has no range.
    assert c.call(raw.FLUSH, 1, 1) in REFUSED
    for kind in (8, 9, 255, 2 ** 16 - 1):
        assert c.call(kind, 0, SECTOR) in REFUSED
    # The connection still works, also where requests are not aligned.
    assert c.call(raw.WRITE, 777, 5000, raw.FUA, data(1, 5000)) == b""
    assert c.call(raw.READ, 777, 5000) == data(1, 5000)
    c.leave()


def messages():
    """A session, as messages that the server replies to, except for the first.
    """
    return raw.hello() + [
        raw.write(data(1, 64), 4096),
        raw.write(data(2, 64), 4160, raw.FUA),
        raw.request(raw.READ, 4096, 128),
        raw.request(raw.WRITE_ZEROES, 8192, 4096),
        raw.request(raw.TRIM, 8192, 4096),
        raw.request(raw.CACHE, 0, 4096),
        raw.request(raw.FLUSH),
    ]


def send_messages(c, some):
    for m in some:
        c.send(m)
        if m[:8] == b"IHAVEOPT":
            c.read_options(struct.unpack(">I", m[8:12])[0])
        elif len(m) >= 28:
            kind, count = m[7], struct.unpack(">I", m[24:28])[0]
            assert c.reply({0: count} if kind == raw.READ else {})[1] == 0


def play_truncated(witness):
    """A session that ends at each byte."""
    all_messages = messages()
    for i, m in enumerate(all_messages):
        for cut in range(i % step, len(m), step):
            c = raw.Client(path, is_open=False)
            send_messages(c, all_messages[:i])
            c.send(m[:cut])
            if cut % 2:
                c.half_close()
                c.drain()
            c.close()
    witness.works(1)


def play_garbage(witness):
    """A session in which each byte is wrong once."""
    all_messages = messages()
    for i, m in enumerate(all_messages):
        for at in range(i % step, len(m), step):
            c = raw.Client(path, is_open=False)
            send_messages(c, all_messages[:i])
            bad = bytearray(m)
            bad[at] ^= random.randrange(1, 256)
            try:
                c.send(bytes(bad) + b"".join(all_messages[i + 1:]))
                c.half_close()
            except OSError:             # the server has closed it already
                pass
            c.drain()
            c.close()


def play_noise(witness):
    """Random bytes from the start, and in place of requests."""
    for seed in range(50):
        for is_open in (False, True):
            c = raw.Client(path, is_open=is_open)
            try:
                c.send(data(seed, 1 + seed * 20))
                c.half_close()
            except OSError:
                pass
            c.drain()
            c.close()


def play_half_closed(witness):
    """Sends requests, and closes its sending side.  It gets all replies."""
    for turn in range(5):
        c = raw.Client(path)
        written = {}
        for i in range(24):
            written[i] = data(turn * 100 + i, 4096)
            c.send(raw.write(written[i], (turn * 24 + i) * 4096, cookie=i))
        c.send(raw.request(raw.READ, 16 * MIB, UNIT, cookie=24))
        c.half_close()
        answers = dict(c.reply({24: UNIT})[:2] for i in range(25))
        c.drain()
        c.close()
        other = raw.Client(path)
        for i, error in answers.items():
            # nbdkit does no request of a client that has gone.
            assert error in (0, errno.ESHUTDOWN), error
            if i < 24 and error == 0:
                assert other.call(raw.READ, (turn * 24 + i) * 4096,
                                  4096) == written[i]
        other.leave()


def play_never_reads(witness):
    """Sends requests, and reads no reply for a while."""
    clients = [raw.Client(path) for i in range(4)]
    reads = {i: UNIT for i in range(32)}
    for c in clients:
        for i in reads:
            c.send(raw.request(raw.READ, i * UNIT, UNIT, cookie=i))
    witness.works(100)
    for c in clients:
        if not breaks:
            for i in reads:
                assert c.reply(reads)[1] == 0
            c.leave()
        c.close()


def play_many(witness):
    """Each connection writes data of its own, and reads it."""
    room = 4 * 4096
    clients = [raw.Client(path) for i in range(n_clients)]
    for n, c in enumerate(clients):
        for i in range(4):
            c.send(raw.write(data(4 * n + i, 4096), n * room + i * 4096,
                             cookie=i))
    for c in clients:
        for i in range(4):
            assert c.reply()[1] == 0
        c.send(raw.request(raw.FLUSH))
    for c in clients:
        assert c.reply()[1] == 0
    # Its own, and those of another one.
    for shift in (0, n_clients // 3):
        for n, c in enumerate(clients):
            for i in range(4):
                at = (n + shift) % n_clients * room + i * 4096
                c.send(raw.request(raw.READ, at, 4096, cookie=i))
        for n, c in enumerate(clients):
            for _ in range(4):
                i, error, got = c.reply({i: 4096 for i in range(4)})
                assert error == 0
                assert got == data(4 * ((n + shift) % n_clients) + i, 4096)
    for c in clients:
        c.leave()


def play_storm(witness):
    """Clients that come and go, at each stage of a connection."""
    def come_and_go(n):
        for i in range(12):
            c = raw.Client(path, export=b"x" * (n * i % 4096),
                           is_open=i % 4 > 0)
            if i % 4 > 1:
                assert c.call(raw.READ, n * UNIT, UNIT) != 0
                assert c.call(raw.WRITE, n * UNIT, UNIT, 0, data(n)) == b""
            if i % 4 > 2:
                c.leave()
            c.close()
    failed = []

    def run(n):
        try:
            come_and_go(n)
        except BaseException as e:
            failed.append(repr(e))
    threads = [threading.Thread(target=run, args=(n,)) for n in range(10)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed, failed
    witness.works(1)


def play_stalls(witness):
    """Clients that stop in the middle of a handshake or a request."""
    all_messages = messages()
    clients = []
    for i, m in enumerate(all_messages):
        for cut in (0, 1, len(m) // 2, len(m) - 1):
            c = raw.Client(path, is_open=False)
            send_messages(c, all_messages[:i])
            c.send(m[:cut])
            clients.append(c)
    witness.works(100)
    for c in clients:
        c.close()


def play_breaks_off(witness):
    """Clients that break off with requests in flight."""
    for turn in range(20):
        c = raw.Client(path)
        for i in range(8):
            c.send(raw.request(raw.READ, i * UNIT, UNIT, cookie=i))
            c.send(raw.write(data(i, 4096), i * UNIT, cookie=100 + i))
        if turn % 3 == 1:
            c.send(raw.request(raw.FLUSH))
        if turn % 3 == 2:
            c.send(b"garbage" * 100)
        c.close()
    witness.works(1)


def copy_slowly(source, to):
    """In small pieces, slowly at first: a handshake has some 2000 bytes."""
    n = 0
    while True:
        try:
            piece = source.recv(50)
            to.sendall(piece)
        except OSError:
            return
        if not piece:
            to.close()
            return
        n += 1
        if n < 100:
            time.sleep(0.002)


def connect_slowly():
    near, far = socket.socketpair()
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    for pair in ((far, server), (server, far)):
        threading.Thread(target=copy_slowly, args=pair, daemon=True).start()
    h = client()
    h.connect_socket(near.detach())
    return h


def play_tls(witness):
    """Clients that stop in TLS's handshake, break it, or are slow."""
    start = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)
    clients = []
    for i in range(20):
        c = raw.Client(path, is_open=False)
        c.send(raw.hello()[0])
        c.send(raw.option(raw.STARTTLS))
        assert c.read_options(raw.STARTTLS) == 1
        c.send(start[:i * 5])
        if i % 4 == 3:
            c.send(data(i, 1000))
            c.half_close()
            c.drain()
            c.close()
        else:
            clients.append(c)
    slow = [connect_slowly() for i in range(4)]
    for i, h in enumerate(slow):
        h.pwrite(data(i, 4096), i * 4096)
        h.flush()
    for i, h in enumerate(slow):
        assert h.pread(4096, i * 4096) == data(i, 4096)
        h.shutdown()
    witness.works(100)
    for c in clients:
        c.close()


def main():
    play = globals()["play_" + sys.argv[3]]
    # Over contexts the first clients make the server open some.
    witness = NoWitness() if alone else Witness()
    witness.works(100)
    threads, fds = used()
    most = threads + THREADS_SLACK, fds
    memory = []
    for i in range(ROUNDS):
        play(witness)
        assert is_back(most)
        memory.append(memory_kib())
    witness.end()
    print("memory after each round:", memory, "KiB")
    assert memory[-1] < memory[0] + int(value("slack", SLACK_KIB))


# The speed.

def print_speeds():
    """A scenario goes on for a while, and ends when it has been played."""
    def speed(work):
        begin, start = witness.done()[0], time.monotonic()
        work()
        return ((witness.done()[0] - begin) * UNIT / 1e6
                / (time.monotonic() - start))

    def play():
        end = time.monotonic() + measure
        while time.monotonic() < end:
            globals()["play_" + sys.argv[3]](NoWitness())

    witness = Witness()
    witness.works(100)
    by_itself = speed(lambda: time.sleep(measure))
    beside = speed(play)
    witness.end()
    print(f"{sys.argv[3]}: {by_itself:.1f} MB/s alone, {beside:.1f} MB/s "
          f"beside: {100 * beside / by_itself:.0f} %")


if measure:
    print_speeds()
else:
    main()
sys.stdout.flush()
os._exit(0)
