# SPDX-License-Identifier: BSD-3-Clause
#
# The NBD protocol as bytes, for clients that break its rules: messages to the
# server, and a client that reads the replies.
#
# Not its job: what a client may send (libnbd refuses the rest).
import socket
import struct

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
STRUCTURED, SET_META, GO, STARTTLS = 8, 10, 7, 5

# A client waits for so many seconds: a longer silence of the server is a hang.
SILENCE = 60


def option(number, data=b""):
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def name(text):
    return struct.pack(">I", len(text)) + text


def hello(export=b"", structured=False):
    """The messages of a handshake.  The server replies to all but the first.
    """
    messages = [struct.pack(">I", 3)]
    if structured:
        messages.append(option(STRUCTURED))
        messages.append(option(SET_META, name(export) + struct.pack(">I", 1)
                               + name(b"base:allocation")))
    messages.append(option(GO, name(export) + struct.pack(">H", 0)))
    return messages


def request(command, offset=0, count=0, flags=0, cookie=0, data=b""):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset,
                       count) + data


def write(data, offset=0, flags=0, cookie=0):
    return request(WRITE, offset, len(data), flags, cookie, data)


class Client:
    """A connection without structured replies."""

    def __init__(self, path, export=b"", is_open=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SILENCE)
        self.socket.connect(path)
        self.receive(18)
        for message in hello(export) if is_open else []:
            self.send(message)
        if is_open:
            self.read_options(GO)

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, count):
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def read_options(self, number):
        """The replies to an option, up to the last one."""
        while True:
            magic, of, kind, size = struct.unpack(">QIII", self.receive(20))
            self.receive(size)
            assert magic == 0x3e889045565a9 and of == number
            if kind == 1 or kind >> 31:         # ACK, or an error
                return kind

    def reply(self, reads={}):
        """(cookie, error, data).  READS: the count of each read in flight."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698, hex(magic)
        count = reads.get(cookie, 0) if error == 0 else 0
        return cookie, error, self.receive(count)

    def call(self, command, offset=0, count=0, flags=0, data=b""):
        """One request, and its reply.  Returns its error, or a read's data."""
        self.send(request(command, offset, count, flags, 1, data))
        _, error, got = self.reply({1: count} if command == READ else {})
        return error or got

    def drain(self):
        """Reads until the server closes the connection."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass

    def half_close(self):
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        self.socket.close()

    def leave(self):
        """Ends the connection as the protocol wants it.  nbdkit 1.42 may keep
        it open after the request alone, with and without filters.
        """
        self.send(request(DISC))
        self.half_close()
        self.drain()
        self.close()
