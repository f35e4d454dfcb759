# SPDX-License-Identifier: BSD-3-Clause
#
# delaymem through NBD: its parameters, its data, the latency of each kind of
# operation, and the end of operations that wait.
. "$TESTS_DIR/functions.sh"

# client NAME [ARGUMENT...] <PROGRAM: the check that the program succeeds with a
# server with these arguments, and that the server ends without error.  The
# program has SERVER_PID in its environment.
client ()
{
  have_python || { skip_missing "$1"; return; }
  check "$1" run_client "${@:2}"
}
run_client ()
{
  local rc=0
  server_start delaymem "$DELAYMEM" "$@" || return
  SERVER_PID=${server_pid[delaymem]} nbd_python "$uri" || rc=$?
  server_stop delaymem || rc=$?
  return $rc
}

# Parameters.

# start ARGUMENT...: nbdkit starts and ends at once, with output in start.out.
start () { "$NBDKIT" -U - "$DELAYMEM" "$@" --run true >start.out 2>&1; }

# refuses ARGUMENT MESSAGE: the message is a line of its own.
refuses ()
{
  check "$1: is refused" refused_with "$2" "$1"
}
refused_with ()
{
  ! start "$2" && grep -xF "nbdkit: error: $1" start.out ||
    { cat start.out; return 1; }
}

# accepts NAME SIZE ARGUMENT...: the device has this many bytes.
accepts () { check "$1: is accepted" has_size "${@:2}"; }
has_size ()
{
  # nbdkit sets uri for its command.
  # shellcheck disable=SC2016
  "$NBDKIT" -U - "$DELAYMEM" "${@:2}" --run 'nbdinfo --size "$uri"' \
    >size.out 2>&1 && [ "$(<size.out)" = "$1" ] || { cat size.out; return 1; }
}

times="must be a time such as 64ms, 250us, 10ns, 1.5s or 1.5 (seconds),"
times+=" from 0 to 3600s in steps of 1ns"
sizes="must be a number greater than 0, with one of the suffixes"
sizes+=" b, s, k, M, G, T, P, E or none"

accepts "no parameter (1G)" 1073741824
accepts "size=10M" 10485760 size=10M
accepts "10M without size=" 10485760 10M
accepts "size=1" 1 size=1
accepts "size=4097" 4097 size=4097
accepts "all parameters" 1048576 \
        size=1M delay=1.5 rdelay=10ns wdelay=250us populate=true io-threads=1
accepts "io-threads=0" 1048576 size=1M io-threads=0
accepts "io-threads=64" 1048576 size=1M io-threads=64
refuses size=0 "size=0: $sizes"
refuses size=-1 "size=-1: $sizes"
refuses size=big "size=big: $sizes"
refuses size=1Q "size=1Q: $sizes"
refuses size=8E "size=8E: $sizes"
# Sanitizers and valgrind need address space of their own.
if [ "$slow" ]; then
  skip "size=4E: is refused" "not under a tool"
else
  message="size=4E: cannot reserve that many bytes: Cannot allocate memory:"
  message+=" must fit into the free address space, commonly a little less than"
  message+=" 128T"
  refuses size=4E "$message"
fi
for key in delay rdelay wdelay; do
  for value in -1 inf nan 0x10 1e3 64msx .5 1h 0.5ns 1,5 ''; do
    refuses "$key=$value" "$key=$value: $times"
  done
  refuses "$key=3601" "$key=3601: must be at most 3600s (one hour)"
done
for value in -1 65 18446744073709551616 x 2x +2 ' 2' 0x2 ''; do
  refuses "io-threads=$value" \
    "io-threads=$value: must be a number from 0 to 64"
  is "io-threads=$value: the message is one line" \
    "$(grep -c "nbdkit: error:" start.out)" 1
done
for value in -1 1000001 x ''; do
  refuses "fast=$value" "fast=$value: must be a number from 0 to 1000000"
done
refuses populate=perhaps "populate=perhaps: must be true or false"
message="unknown parameter 'wait': delaymem has size, delay, rdelay, wdelay,"
message+=" fast, populate and io-threads"
refuses wait=1 "$message"

"$NBDKIT" "$DELAYMEM" populate=true size=1P --run true >start.out 2>&1
message="populate=true: size=1P does not fit into the available"
message+=" memory of [0-9]* bytes"
check "populate=true with more than the memory: is refused" \
  grep "^nbdkit: error: $message\$" start.out

# --dump-plugin and --help.

# has_lines FILE PATTERN...: the file has a line for each of the patterns.
has_lines ()
{
  local pattern
  for pattern in "${@:2}"; do
    grep -q "^$pattern" "$1" || { echo "no $pattern"; cat "$1"; return 1; }
  done
}
dump_plugin_has ()
{
  "$NBDKIT" --dump-plugin "$DELAYMEM" >dump.out 2>&1 &&
    has_lines dump.out "thread_model=parallel$" "errno_is_preserved=1$" \
      "delaymem_default_size=1073741824$" "delaymem_default_delay=64ms$" \
      "delaymem_max_delay=3600s$" "delaymem_default_io_threads=2$" \
      "delaymem_extent_granularity=4096$"
}
check "--dump-plugin has the defaults and the limits" dump_plugin_has
help_has ()
{
  "$NBDKIT" --help "$DELAYMEM" >help.out 2>&1 &&
    has_lines help.out '\[size=\]<SIZE>' 'populate=<BOOL>' 'io-threads=<N>'
}
check "--help has the parameters" help_has

# Data.

client "the export has all abilities" delay=0 <<'END'
assert h.can_multi_conn() and h.can_fua() and h.can_flush() and h.can_trim()
assert h.can_zero() and h.can_fast_zero() and h.can_cache() and h.can_df()
assert not h.is_read_only() and not h.is_rotational()
h.flush()
h.cache(4096, 0)
END

client "writes, zeroes, trims and extents agree" delay=0 size=1M <<'END'
HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
assert extents(1 << 20, 0) == [(1 << 20, HOLE)]
h.pwrite(b"x" * 200000, 5000, nbd.CMD_FLAG_FUA)
assert h.pread(1 << 20, 0) == \
    bytes(5000) + b"x" * 200000 + bytes((1 << 20) - 205000)
assert extents(1 << 20, 0) == [(4096, HOLE), (204800, 0), (839680, HOLE)], \
    extents(1 << 20, 0)
assert extents(1 << 20, 0, nbd.CMD_FLAG_REQ_ONE) == [(4096, HOLE)]
assert extents(100000, 5000, nbd.CMD_FLAG_REQ_ONE)[0][1] == 0
h.trim(8192, 8000)              # it has one whole page, at 8192
assert h.pread(8192, 8000) == bytes(8192)
assert h.pread(3000, 5000) == b"x" * 3000
assert h.pread(8, 16192) == b"x" * 8
assert extents(16384, 4096) == [(4096, 0), (4096, HOLE), (8192, 0)] or \
    extents(16384, 4096)[:2] == [(4096, 0), (4096, HOLE)]
h.zero(4096, 16384, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 16384) == bytes(4096)
assert extents(4096, 16384)[0][1] == 0
h.zero(1 << 20, 0, nbd.CMD_FLAG_FUA)
assert h.pread(1 << 20, 0) == bytes(1 << 20)
assert extents(1 << 20, 0) == [(1 << 20, HOLE)]
END

client "populate=true leaves a hole" populate=true delay=0 size=1M <<'END'
assert extents(1 << 20, 0) == [(1 << 20, nbd.STATE_HOLE | nbd.STATE_ZERO)]
assert h.pread(1 << 20, 0) == bytes(1 << 20)
END

client "the last bytes of an odd size work" size=70001 delay=0 <<'END'
h.pwrite(b"abc", 69998)
assert h.pread(4, 69997) == b"\0abc"
h.set_strict_mode(0)
assert fails(h.pwrite, b"abcd", 69998) == errno.ENOSPC
assert fails(h.pread, 4, 69998) == errno.EINVAL
h.trim(70001 - 65536, 65536)
assert extents(70001, 0) == [(70001, nbd.STATE_HOLE | nbd.STATE_ZERO)]
END

client "fast zero trims, or fails with ENOTSUP" \
       size=1M rdelay=0 wdelay=0 <<'END'
h.pwrite(b"x" * 8192, 0)
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
err = fails(h.zero, 4096, 4096, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert err in (errno.ENOTSUP, errno.EOPNOTSUPP), err
assert h.pread(8192, 0) == bytes(4096) + b"x" * 4096
END

client "-r makes the export read-only" -r size=1M delay=0 <<'END'
assert h.is_read_only()
assert h.pread(100, 0) == bytes(100)
h.set_strict_mode(0)
assert fails(h.pwrite, b"x", 0) == errno.EPERM
END

client "one connection reads data that another one wrote" delay=0 <<'END'
other = nbd.NBD()
other.connect_uri(sys.argv[1])
h.pwrite(b"there", 12345)
h.flush()
assert other.pread(5, 12345) == b"there"
END

name="1 TiB takes less than 50 MB of memory"
if [ "$slow" ]; then
  skip "$name" "not under a tool"
elif [ "$(getconf LONG_BIT)" = 32 ]; then
  skip "$name" "no room for it in 32 bits of address"
else
  client "$name" size=1T delay=0 <<'END'
size = 1 << 40
assert h.get_size() == size
for at in range(0, size, size >> 6):
    h.pwrite(b"x", at)
h.pwrite(b"end", size - 3)
assert h.pread(3, size - 3) == b"end"
# The hole up to 4 GiB.  Newer servers report it in parts.
at = 4096
for step in range(64):
    length, state = extents((1 << 32) - at, at)[0]
    assert state == nbd.STATE_HOLE | nbd.STATE_ZERO
    at += length
    if at == 1 << 32:
        break
assert at == 1 << 32, (step, at)
status = open("/proc/%s/status" % os.environ["SERVER_PID"]).read()
assert int(status.split("VmRSS:")[1].split()[0]) < 50000, status
END
fi

# Latency.  The bounds are lower ones, as an upper one depends on the machine.
# An operation of one hour that must not wait has the test's deadline.

client "by default each operation takes 64 ms" size=1M <<'END'
for f in [lambda: h.pread(4096, 0), lambda: h.pwrite(b"x" * 4096, 0),
          lambda: h.zero(4096, 0), lambda: h.trim(4096, 0),
          lambda: h.cache(4096, 0)]:
    t = elapsed(f)
    assert t >= 0.064, t
END

client "flush, extents and a fast zero that fails do not wait" \
       size=1M delay=3600 <<'END'
h.flush()
extents(1 << 20, 0)
h.set_strict_mode(0)
assert fails(h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
END

client "rdelay is for reads, and overrides delay" rdelay=150ms delay=0 <<'END'
assert elapsed(h.pread, 1, 0) >= 0.15
assert elapsed(h.cache, 1, 0) >= 0.15
END

client "rdelay is not for writes, zeroes and trims" rdelay=3600 delay=0 <<'END'
h.pwrite(b"x", 0)
h.zero(1, 0)
h.trim(1, 0)
END

client "wdelay is for writes, zeroes and trims, and overrides delay" \
       delay=0 wdelay=150ms <<'END'
assert elapsed(h.pwrite, b"x", 0) >= 0.15
assert elapsed(h.zero, 1, 0) >= 0.15
assert elapsed(h.trim, 1, 0) >= 0.15
END

client "wdelay is not for reads" delay=0 wdelay=3600 <<'END'
h.pread(1, 0)
h.cache(1, 0)
END

client "fast=3: an operation that begins in each third block is fast" \
       delay=150ms fast=3 size=2M <<'END'
k = 131072
for i in range(7):
    t = elapsed(h.pread, 1, i * k + k - 1)
    assert (t < 0.15) == (i % 3 == 0), (i, t)
assert elapsed(h.pwrite, b"x" * 2 * k, 3 * k) < 0.15
END

client "an operation may take 400 ms" delay=400ms <<'END'
assert elapsed(h.pread, 1, 0) >= 0.4
END

# One after another they would take 16 s.
client "operations wait side by side" delay=1s <<'END'
buf = nbd.Buffer(4096)
def many():
    cookies = [h.aio_pread(buf, 4096 * i) for i in range(16)]
    for c in cookies:
        while not h.aio_command_completed(c):
            h.poll(-1)
t = elapsed(many)
assert 1 <= t < 16, t
END

# The end of operations that wait.

# SIGTERM comes while writes of one hour wait.  A read shows that the plugin has
# them.  They must succeed, and the server must end soon.
shutdown ()
{
  server_start shutdown -v "$DELAYMEM" size=1M "wdelay=$1" rdelay=0 || return
  nbd_python "$uri" <<END || return
import signal
hs = [h]
for i in range(3):
    hs.append(nbd.NBD())
    hs[-1].connect_uri(sys.argv[1])
commands = []
for i in range(16):
    buf = nbd.Buffer.from_bytearray(bytearray(b"%04d" % i))
    commands.append((hs[i % 4], hs[i % 4].aio_pwrite(buf, i * 4), buf))
expected = b"".join(b"%04d" % i for i in range(16))
while h.pread(64, 0) != expected:
    for other in hs[1:]:
        other.poll(0)
os.kill(${server_pid[shutdown]}, signal.SIGTERM)
end = time.monotonic() + 60
for client, cookie, buf in commands:
    while not client.aio_command_completed(cookie):     # raises if it failed
        client.poll(-1)
for client in hs:
    try:
        client.shutdown()
    except nbd.Error:           # the server may have hung up first
        pass
while os.path.exists("/proc/${server_pid[shutdown]}"):
    assert time.monotonic() < end
    time.sleep(0.01)
END
  server_wait shutdown
}
for delay in 3600 100ms; do
  name="wdelay=$delay: SIGTERM completes the writes, and the server ends"
  if have_python; then
    check "$name" shutdown $delay
  else
    skip_missing "$name"
  fi
done
check "SIGTERM: nbdkit does not complain about short waits" \
  not grep -s "aborting sleep" shutdown.log

# A client disconnects while its operations wait.  It does not break off, as
# that makes nbdkit 1.32 abort now and then.
client "the operations of a client that disconnects end soon" --filter=log \
  wdelay=60 rdelay=0 logfile="$TEST_DIR/requests" <<'END'
other = nbd.NBD()
other.connect_uri(sys.argv[1])
bufs = [nbd.Buffer.from_bytearray(bytearray(b"%04d" % i)) for i in range(8)]
for i in range(8):
    other.aio_pwrite(bufs[i], i * 4)
other.aio_trim(4, 32)
other.aio_zero(4, 36)
expected = b"".join(b"%04d" % i for i in range(8)) + bytes(8)
# When a client disconnects, nbdkit drops the requests that it has not read yet.
# The log has a request before the plugin has it, so the data is looked at too.
while (sum(" id=" in l and "..." in l for l in open("requests")) < 10
       or h.pread(40, 0) != expected):
    other.poll(1)
other.aio_disconnect()
start = time.monotonic()
while not (other.aio_is_closed() or other.aio_is_dead()):
    try:
        other.poll(-1)
    except nbd.Error:
        break
assert time.monotonic() - start < 30
assert h.pread(40, 0) == expected
END

done_testing
