# SPDX-License-Identifier: BSD-3-Clause
#
# The clients and the server of test-delay-proxy.sh.
#
#   delay_proxy.py PROXY CASE [ARGUMENT...]
#
# A case prints its figures.  It fails by an exception.  No wait has a time
# limit: tests/run ends a test that hangs.
import atexit
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

PROXY = sys.argv[1]
MB = 1000000


class Proxy:
    """A proxy with its options; its server is the socket that listens here."""

    def __init__(self, *options, family='tcp', server=True):
        if family == 'tcp':
            self.listener = socket.create_server(('127.0.0.1', 0), backlog=1100)
            there = '127.0.0.1:%d' % self.listener.getsockname()[1]
            here = '127.0.0.1:0'
        else:
            there, here = os.path.abspath('there'), os.path.abspath('here')
            for path in there, here:
                if os.path.exists(path):
                    os.unlink(path)
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(there)
            self.listener.listen(1100)
        if not server:
            self.listener.close()
        self.process = subprocess.Popen([PROXY, *options, here, there],
                                        stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        line = self.line()
        self.address = ('127.0.0.1', int(line)) if family == 'tcp' else line

    def line(self):
        return self.process.stdout.readline().rstrip()

    def signal(self, number):
        """Returns the line that the proxy prints for the signal."""
        self.process.send_signal(number)
        return self.line()

    def connect(self):
        tcp = isinstance(self.address, tuple)
        s = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        s.connect(self.address)
        if tcp:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def pair(self):
        """A client's connection, and the server's end of it."""
        client = self.connect()
        return client, self.listener.accept()[0]

    def end(self):
        self.process.terminate()
        status = self.process.wait()
        assert status == 0, 'status %d' % status


def until_right(measure, is_right, times=15):
    """Measures again, up to TIMES, until the figure is right."""
    for _ in range(times):
        figure = measure()
        print(figure)
        if is_right(figure):
            return
    raise AssertionError('never right')


def within(figure, wanted):
    """Within 5 %, and never better than wanted by more than 0.1 %."""
    return 0.999 * wanted <= figure <= 1.05 * wanted


def read_all(s):
    """All bytes up to the end."""
    parts = []
    while part := s.recv(1 << 20):
        parts.append(part)
    return b''.join(parts)


def read_exactly(s, count):
    data = s.recv(count, socket.MSG_WAITALL)
    assert len(data) == count, 'only %d of %d bytes' % (len(data), count)
    return data


def is_reset(s):
    """Whether the next read finds a reset; on a unix socket, an end."""
    try:
        return s.recv(1) == b'' and s.family == socket.AF_UNIX
    except ConnectionResetError:
        return True


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.close()


def send_until_reset(s):
    try:
        while True:
            s.sendall(bytes(1000))
    except (ConnectionResetError, BrokenPipeError):
        pass


def in_thread(f, *args):
    t = threading.Thread(target=f, args=args, daemon=True)
    t.start()
    return t


def echo(s):
    """Sends back all it reads, until the proxy ends."""
    try:
        while data := s.recv(1 << 16):
            s.sendall(data)
    except ConnectionResetError:
        pass


def round_trip(ms):
    proxy = Proxy('--rtt=%sms' % ms)
    client, server = proxy.pair()
    in_thread(echo, server)

    def ping():
        start = time.monotonic()
        client.sendall(b'x')
        read_exactly(client, 1)
        return 1000 * (time.monotonic() - start)
    # Other work on the machine only adds to a time.
    until_right(lambda: min(ping() for _ in range(15)),
                lambda t: within(t, float(ms)))
    proxy.end()


def first_byte(ms):
    proxy = Proxy('--rtt=%sms' % ms)

    def greet():
        for _ in range(1000):
            proxy.listener.accept()[0].sendall(b'x')
    in_thread(greet)

    def connect():
        start = time.monotonic()
        read_exactly(proxy.connect(), 1)
        return 1000 * (time.monotonic() - start)
    until_right(lambda: min(connect() for _ in range(7)),
                lambda t: within(t, 2 * float(ms)))
    proxy.end()


def transfer(sender, receiver, count):
    """MB/s from the first byte sent to the last one received."""
    block = bytes(1 << 18)
    count = count // len(block) * len(block)

    def send():
        for _ in range(count // len(block)):
            sender.sendall(block)
    start = time.monotonic()
    in_thread(send)
    buf = bytearray(len(block))
    got = 0
    while got < count:
        n = receiver.recv_into(buf)
        assert n > 0, 'end after %d bytes' % got
        got += n
    return got / (time.monotonic() - start) / MB


def speed(wanted):
    proxy = Proxy('--rtt=20ms')
    client, server = proxy.pair()
    for ends in (client, server), (server, client):
        until_right(lambda: transfer(*ends, 500 * MB),
                    lambda s: s >= float(wanted), times=30)
    proxy.end()


def rate(wanted):
    proxy = Proxy('--rtt=20ms', '--rate=%sM' % wanted)
    wanted = float(wanted)
    client, server = proxy.pair()
    for ends in (client, server), (server, client):
        # A busy machine only adds time.
        until_right(lambda: max(transfer(*ends, int(wanted * MB))
                                for _ in range(3)),
                    lambda s: 0.95 * wanted <= s <= 1.05 * wanted, times=5)
    proxy.end()


def rate_each():
    """Four connections at once, both ways, need 0.5 s like one, and not 2."""
    proxy = Proxy('--rtt=20ms', '--rate=2M')
    pairs = [proxy.pair() for _ in range(4)]

    def all_at_once():
        start = time.monotonic()
        threads = [in_thread(transfer, *ends, MB)
                   for a, b in pairs for ends in ((a, b), (b, a))]
        for t in threads:
            t.join()
        return time.monotonic() - start
    until_right(all_at_once, lambda t: 0.4 <= t <= 1, times=5)
    proxy.end()


def unchanged(family):
    """Each connection carries 0.5 MB in each direction, in random pieces."""
    proxy = Proxy('--rtt=5ms', family=family)
    pairs = [proxy.pair() for _ in range(64)]
    n_right = []

    def send(s, data, rnd):
        while data:
            n = rnd.choice((1, 100, 5000, 70000, 200000))
            s.sendall(data[:n])
            data = data[n:]
        s.shutdown(socket.SHUT_WR)

    def receive(s, expected):
        if read_all(s) == expected:
            n_right.append(1)
    threads = []
    for i, pair in enumerate(pairs):
        for a, b in pair, pair[::-1]:
            rnd = random.Random(len(threads))
            data = rnd.randbytes(MB // 2)
            threads += [in_thread(send, a, data, rnd),
                        in_thread(receive, b, data)]
    for t in threads:
        t.join()
    print('%d of 128 are unchanged' % len(n_right))
    assert len(n_right) == 128
    proxy.end()


def many():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    proxy = Proxy('--rtt=20ms')
    clients = [proxy.connect() for _ in range(1000)]
    for i, s in enumerate(clients):
        s.sendall(struct.pack('i', i))
    servers = [proxy.listener.accept()[0] for _ in clients]
    for s in servers:
        s.sendall(read_exactly(s, 4))
    for i, s in enumerate(clients):
        assert struct.unpack('i', read_exactly(s, 4)) == (i,)
    assert proxy.signal(signal.SIGUSR1) == 'cut 1000'
    proxy.end()


def half_close(family):
    proxy = Proxy('--rtt=20ms', family=family)
    client, server = proxy.pair()
    for a, b in (client, server), proxy.pair()[::-1]:
        start = time.monotonic()
        a.sendall(b'question')
        a.shutdown(socket.SHUT_WR)
        assert read_all(b) == b'question'
        assert time.monotonic() - start >= 0.01, 'the end was early'
        b.sendall(b'answer')
        assert read_exactly(a, 6) == b'answer'
        b.shutdown(socket.SHUT_WR)
        assert read_all(a) == b''
    proxy.end()


def reset_():
    proxy = Proxy('--rtt=200ms')
    pairs = proxy.pair(), proxy.pair()[::-1]
    for a, b in pairs:
        # One byte each way, so that the proxy has read all before the reset.
        a.sendall(b'x')
        read_exactly(b, 1)
        a.sendall(b'before')
        b.sendall(b'x')
        read_exactly(a, 1)
        start = time.monotonic()
        reset(a)
        assert read_exactly(b, 6) == b'before'
        assert is_reset(b)
        took = time.monotonic() - start
        print('the reset took', took)
        assert took >= 0.1
    # A reset after the end of the data.
    a, b = proxy.pair()
    a.shutdown(socket.SHUT_WR)
    assert read_all(b) == b''
    reset(a)
    errors = select.poll()
    errors.register(b, 0)
    errors.poll()
    # A write to a side that has gone.
    a, b = proxy.pair()
    a.close()
    assert read_all(b) == b''
    send_until_reset(b)
    proxy.end()


def no_server():
    for family in 'tcp', 'unix':
        proxy = Proxy('--rtt=20ms', family=family, server=False)
        client = proxy.connect()
        client.sendall(b'x')
        assert is_reset(client)
        proxy.end()


def bound():
    """Bytes for ten seconds of the link: the sender has to wait."""
    sent = {}
    for size in '2M', '100M':
        proxy = Proxy('--rtt=20s', '--buffer=' + size, family='unix')
        client = proxy.connect()
        client.settimeout(0.5)
        n = 0
        try:
            while n < 50 * MB:
                n += client.send(bytes(MB))
        except socket.timeout:
            pass
        sent[size] = n
        proxy.end()
    print(sent)
    assert sent['2M'] < 4 * MB
    assert sent['100M'] >= 50 * MB


def cut(family):
    proxy = Proxy('--rtt=1ms', family=family)
    ends = [s for _ in range(10) for s in proxy.pair()]
    assert proxy.signal(signal.SIGUSR1) == 'cut 10'
    for s in ends:
        assert is_reset(s)
    client, server = proxy.pair()
    client.sendall(b'x')
    read_exactly(server, 1)
    # A connection that the proxy sees only after the signal.
    os.kill(proxy.process.pid, signal.SIGSTOP)
    os.waitpid(proxy.process.pid, os.WUNTRACED)
    os.kill(proxy.process.pid, signal.SIGUSR1)
    late = proxy.connect()
    os.kill(proxy.process.pid, signal.SIGCONT)
    assert proxy.line() == 'cut 2'
    assert is_reset(late)
    proxy.end()
    # The client is connected, the proxy is not yet.
    proxy = Proxy('--rtt=100s', family=family)
    client = proxy.connect()
    assert proxy.signal(signal.SIGUSR1) == 'cut 1'
    assert is_reset(client)
    proxy.end()


def refuse(family):
    proxy = Proxy('--rtt=1ms', family=family)
    client, server = proxy.pair()
    for _ in range(3):
        assert proxy.signal(signal.SIGUSR2) == 'refuse'
        try:
            proxy.connect()
            raise AssertionError('a connection was accepted')
        except ConnectionRefusedError:
            pass
        client.sendall(b'x')
        read_exactly(server, 1)
        assert proxy.signal(signal.SIGUSR2) == 'accept'
        a, b = proxy.pair()
        a.sendall(b'x')
        read_exactly(b, 1)
    proxy.end()


def change():
    """The round trip and the rate of a connection that stays."""
    proxy = Proxy('--rtt=20ms', '--changes=changes')
    client, server = proxy.pair()

    def link(lines):
        with open('changes', 'w') as f:
            f.write(lines)
        assert proxy.signal(signal.SIGHUP) == 'change'

    def there_and_back():
        start = time.monotonic()
        client.sendall(b'x')
        read_exactly(server, 1)
        server.sendall(b'x')
        read_exactly(client, 1)
        return 1000 * (time.monotonic() - start)
    for ms in 60, 10:
        link('rtt=%dms\n' % ms)
        until_right(there_and_back, lambda t: within(t, ms))
    link('rtt=1ms\nrate=5M\n')
    for wanted in 5, 20:
        link('rate=%dM\n' % wanted)
        until_right(lambda: transfer(client, server, wanted * MB // 2),
                    lambda s: 0.9 * wanted <= s <= 1.05 * wanted, times=5)
    proxy.end()


def terminate():
    proxy = Proxy('--rtt=1ms')
    pair = proxy.pair()
    proxy.end()
    assert is_reset(pair[0]) and is_reset(pair[1])
    proxy = Proxy('--rtt=10000s', family='unix')
    client = proxy.connect()
    client.sendall(bytes(MB))
    proxy.end()
    assert not os.path.exists('here')


def stats():
    proxy = Proxy('--rtt=1ms', '--stats=stats')
    for n in 2, 1:
        pairs = [proxy.pair() for _ in range(n)]
        for client, server in pairs:
            client.sendall(bytes(MB))
            read_exactly(server, MB)
            server.sendall(bytes(1000))
            read_exactly(client, 1000)
        proxy.signal(signal.SIGUSR1)
    proxy.end()
    with open('stats') as f:
        got = f.read()
    print(got)
    assert got == ('connections 3\nmost_at_once 2\nbytes_to_server 3000000\n'
                   'bytes_to_client 3000\n')


cases = {
    'round-trip': round_trip, 'first-byte': first_byte, 'speed': speed,
    'rate': rate, 'rate-each': rate_each, 'unchanged': unchanged, 'many': many,
    'half-close': half_close, 'reset': reset_, 'no-server': no_server,
    'bound': bound, 'cut': cut, 'refuse': refuse, 'change': change,
    'terminate': terminate, 'stats': stats,
}
cases[sys.argv[2]](*sys.argv[3:])
