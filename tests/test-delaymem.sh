#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# delaymem.so from outside, through NBD.  BUILD is the directory with the
# module, NBDKIT the command that runs nbdkit.

: "${BUILD:=build/plain}"
: "${NBDKIT:=nbdkit}"
python=/usr/bin/python3
plugin=$(realpath "$BUILD")/delaymem.so
export plugin
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
n=0
failed=0

ok ()                           # STATUS NAME: one line of TAP
{
  n=$((n + 1))
  if [ "$1" -eq 0 ]; then
    echo "ok $n - $2"
  else
    failed=1
    echo "not ok $n - $2"
    sed 's/^/# /' "$dir/out"
  fi
}

skip ()
{
  n=$((n + 1))
  echo "ok $n - $1 # SKIP $2"
}

# Sanitizers and valgrind need their own room, and do not map terabytes.
has_tool ()
{
  [ -n "${TOOL:-}" ] || [ "${VARIANT:-plain}" != plain ]
}

serve ()                        # COMMAND [ARGUMENT...]: run against a server
{
  local command=$1
  shift
  $NBDKIT -U - "$plugin" "$@" --run "$command" >"$dir/out" 2>&1
}

# A python program with h, connected, and elapsed (f): how long f takes.
cat >"$dir/client.py" <<'END'
import errno, nbd, os, sys, time
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
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
    return [(r[i], r[i+1]) for i in range(0, len(r), 2)]
exec(sys.stdin.read())
END

have_python ()                  # NAME: counts it as skipped without
{
  "$python" -c 'import nbd' 2>/dev/null && return
  skip "$1" "python3 with libnbd is not installed"
  return 1
}

client ()                       # NAME [ARGUMENT...] <program
{
  local name=$1
  shift
  have_python "$name" || return
  cat >"$dir/program.py"
  serve "$python $dir/client.py \"\$uri\" <$dir/program.py" "$@"
  ok $? "$name"
}

# Refuses ARGUMENT at start, with the line "nbdkit: error: LINE".
refuses ()                      # ARGUMENT LINE
{
  serve true "$1"
  local status=$?
  [ $status -ne 0 ] && grep -qxF "nbdkit: error: $2" "$dir/out"
  ok $? "refused: $1"
}

accepts ()                      # NAME SIZE ARGUMENT...: as this many bytes
{
  local name=$1 size=$2
  shift 2
  serve "nbdinfo --size \"\$uri\"" "$@" && [ "$(cat "$dir/out")" = "$size" ]
  ok $? "$name"
}

times="must be a time such as 64ms, 250us, 10ns, 1.5s or 1.5 (seconds), from 0 to 3600s in steps of 1ns"
sizes="must be a number greater than 0, with one of the suffixes b, s, k, M, G, T, P, E or none"

# Parameters.
accepts "no parameter: 1G" 1073741824
accepts "size=10M" 10485760 size=10M
accepts "the size alone" 10485760 10M
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
if has_tool; then
  skip "refused: size=4E" "not under a tool"
else
  refuses size=4E "size=4611686018427387904: cannot reserve that many bytes of address space: Cannot allocate memory"
fi
for key in delay rdelay wdelay; do
  for value in -1 inf nan 0x10 1e3 64msx .5 1h 0.5ns 1,5 ''; do
    refuses "$key=$value" "$key=$value: $times"
  done
  refuses "$key=3601" "$key=3601: must be at most 3600s (one hour)"
done
for value in -1 65 18446744073709551616 x 2x +2 ' 2' 0x2 ''; do
  refuses "io-threads=$value" "io-threads=$value: must be a number from 0 to 64"
  [ "$(grep -c "nbdkit: error:" "$dir/out")" = 1 ]
  ok $? "one line"
done
for value in -1 1000001 x ''; do
  refuses "fast=$value" "fast=$value: must be a number from 0 to 1000000"
done
refuses populate=perhaps "populate=perhaps: must be true or false"
refuses wait=1 "unknown parameter 'wait': delaymem has size, delay, rdelay, wdelay, fast, populate and io-threads"

$NBDKIT "$plugin" populate=true size=1P --run true >"$dir/out" 2>&1
grep -q "^nbdkit: error: populate=true: size=1125899906842624 does not fit into the available memory of [0-9]* bytes$" "$dir/out"
ok $? "refused: populate=true with more than the memory"

# What it says of itself.
$NBDKIT --dump-plugin "$plugin" >"$dir/out" 2>&1 &&
  grep -qx "thread_model=parallel" "$dir/out" &&
  grep -qx "errno_is_preserved=1" "$dir/out" &&
  grep -qx "delaymem_default_size=1073741824" "$dir/out" &&
  grep -qx "delaymem_default_delay=64ms" "$dir/out" &&
  grep -qx "delaymem_max_delay=3600s" "$dir/out" &&
  grep -qx "delaymem_default_io_threads=2" "$dir/out" &&
  grep -qx "delaymem_extent_granularity=4096" "$dir/out"
ok $? "--dump-plugin"
$NBDKIT --help "$plugin" >"$dir/out" 2>&1 &&
  grep -q "^\[size=\]<SIZE>" "$dir/out" && grep -q "^populate=<BOOL>" "$dir/out" &&
  grep -q "^io-threads=<N>" "$dir/out"
ok $? "--help"

client "flags of the export" delay=0 <<'END'
assert h.can_multi_conn() and h.can_fua() and h.can_flush() and h.can_trim()
assert h.can_zero() and h.can_fast_zero() and h.can_cache() and h.can_df()
assert not h.is_read_only() and not h.is_rotational()
h.flush()
h.cache(4096, 0)
END

# Data.
client "data, zeroes, trims and extents" delay=0 size=1M <<'END'
HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
assert extents(1 << 20, 0) == [(1 << 20, HOLE)]
h.pwrite(b"x" * 200000, 5000, nbd.CMD_FLAG_FUA)
assert h.pread(1 << 20, 0) == \
    bytes(5000) + b"x" * 200000 + bytes((1 << 20) - 205000)
assert extents(1 << 20, 0) == [(4096, HOLE), (204800, 0), (839680, HOLE)], \
    extents(1 << 20, 0)
assert extents(1 << 20, 0, nbd.CMD_FLAG_REQ_ONE) == [(4096, HOLE)]
assert extents(100000, 5000, nbd.CMD_FLAG_REQ_ONE)[0][1] == 0
h.trim(8192, 8000)                      # one whole page: 8192
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

client "populate=true is not data" populate=true delay=0 size=1M <<'END'
assert extents(1 << 20, 0) == [(1 << 20, nbd.STATE_HOLE | nbd.STATE_ZERO)]
assert h.pread(1 << 20, 0) == bytes(1 << 20)
END

client "the last bytes of an odd size" size=70001 delay=0 <<'END'
h.pwrite(b"abc", 69998)
assert h.pread(4, 69997) == b"\0abc"
h.set_strict_mode(0)
assert fails(h.pwrite, b"abcd", 69998) == errno.ENOSPC
assert fails(h.pread, 4, 69998) == errno.EINVAL
h.trim(70001 - 65536, 65536)
assert extents(70001, 0) == [(70001, nbd.STATE_HOLE | nbd.STATE_ZERO)]
END

client "fast zero where it is fast, ENOTSUP at once where not" \
       size=1M rdelay=0 wdelay=0 <<'END'
h.pwrite(b"x" * 8192, 0)
h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
err = fails(h.zero, 4096, 4096, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert err in (errno.ENOTSUP, errno.EOPNOTSUPP), err
assert h.pread(8192, 0) == bytes(4096) + b"x" * 4096
END

client "read-only" -r size=1M delay=0 <<'END'
assert h.is_read_only()
assert h.pread(100, 0) == bytes(100)
h.set_strict_mode(0)
assert fails(h.pwrite, b"x", 0) == errno.EPERM
END

client "what is written on one connection is read on another" delay=0 <<'END'
other = nbd.NBD()
other.connect_uri(sys.argv[1])
h.pwrite(b"there", 12345)
h.flush()
assert other.pread(5, 12345) == b"there"
END

if has_tool; then
  skip "1 TiB takes almost no memory" "not under a tool"
elif [ "$(getconf LONG_BIT)" = 32 ]; then
  skip "1 TiB takes almost no memory" "no room for it in 32 bits of address"
else
  client "1 TiB takes almost no memory" -P "$dir/pid" size=1T delay=0 <<'END'
size = 1 << 40
assert h.get_size() == size
for at in range(0, size, size >> 6):
    h.pwrite(b"x", at)
h.pwrite(b"end", size - 3)
assert h.pread(3, size - 3) == b"end"
# The hole up to 4 GiB: newer servers tell it in parts.
at = 4096
for step in range(64):
    length, state = extents((1 << 32) - at, at)[0]
    assert state == nbd.STATE_HOLE | nbd.STATE_ZERO
    at += length
    if at == 1 << 32:
        break
assert at == 1 << 32, (step, at)
pid = open(os.path.dirname(sys.argv[0]) + "/pid").read().strip()
status = open("/proc/%s/status" % pid).read()
assert int(status.split("VmRSS:")[1].split()[0]) < 50000, status
END
  rm -f "$dir/pid"
fi

# Latency.  Only lower bounds: an upper one depends on the machine.
client "by default everything that should waits for 64 ms" size=1M <<'END'
for f in [lambda: h.pread(4096, 0), lambda: h.pwrite(b"x" * 4096, 0),
          lambda: h.zero(4096, 0), lambda: h.trim(4096, 0),
          lambda: h.cache(4096, 0)]:
    t = elapsed(f)
    assert t >= 0.064, t
END

# Were they not, this took two hours, and the test's time is limited.
client "flush, extents and a refused fast zero do not wait" \
       size=1M delay=3600 <<'END'
h.flush()
extents(1 << 20, 0)
h.set_strict_mode(0)
assert fails(h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
END

client "rdelay is for reads, before delay" rdelay=150ms delay=0 <<'END'
assert elapsed(h.pread, 1, 0) >= 0.15
assert elapsed(h.cache, 1, 0) >= 0.15
END

client "rdelay leaves writes alone" rdelay=3600 delay=0 <<'END'
h.pwrite(b"x", 0)
h.zero(1, 0)
h.trim(1, 0)
END

client "wdelay is for writes, zeroes and trims, after delay" \
       delay=0 wdelay=150ms <<'END'
assert elapsed(h.pwrite, b"x", 0) >= 0.15
assert elapsed(h.zero, 1, 0) >= 0.15
assert elapsed(h.trim, 1, 0) >= 0.15
END

client "wdelay leaves reads alone" delay=0 wdelay=3600 <<'END'
h.pread(1, 0)
h.cache(1, 0)
END

client "one block in three is fast, where an operation begins" \
       delay=150ms fast=3 size=2M <<'END'
k = 131072
for i in range(7):
    t = elapsed(h.pread, 1, i * k + k - 1)
    assert (t < 0.15) == (i % 3 == 0), (i, t)
assert elapsed(h.pwrite, b"x" * 2 * k, 3 * k) < 0.15
END

client "a wait longer than its plain part" delay=400ms <<'END'
assert elapsed(h.pread, 1, 0) >= 0.4
END

# One after the other they would take 16 x 1 s; measured against a second
# run of the clock that the machine's load moves as well.
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

# Shutdown while a write of one hour is under way: then the server must end
# soon and still say that it was done.  That it was taken is seen by reading.
cat >"$dir/shutdown.py" <<'END'
import nbd, os, signal, subprocess, sys
dir, nbdkit, plugin = sys.argv[1], sys.argv[2].split(), sys.argv[3]
socket, pidfile, log = dir + "/socket", dir + "/pid", dir + "/log"
server = subprocess.Popen(nbdkit + ["-f", "-v", "-U", socket, "-P", pidfile,
                                    plugin, "size=1M", "wdelay=" + sys.argv[4],
                                    "rdelay=0"],
                          stderr=open(log, "w"))
while not os.path.exists(pidfile):      # nbdkit writes it when it listens
    assert server.poll() is None
hs = []
for i in range(4):
    h = nbd.NBD()
    h.connect_unix(socket)
    hs.append(h)
commands = []
for i in range(16):
    h = hs[i % 4]
    buf = nbd.Buffer.from_bytearray(bytearray(b"%04d" % i))
    commands.append((h, h.aio_pwrite(buf, i * 4), buf))
expected = b"".join(b"%04d" % i for i in range(16))
while hs[0].pread(64, 0) != expected:
    for h in hs[1:]:
        h.poll(0)
os.kill(int(open(pidfile).read()), signal.SIGTERM)
for h, cookie, buf in commands:
    while not h.aio_command_completed(cookie):  # raises if it failed
        h.poll(-1)
for h in hs:
    try:
        h.shutdown()
    except nbd.Error:           # the server may have hung up first
        pass
assert server.wait(60) == 0
END
for delay in 3600 100ms; do
  have_python "shutdown answers what it has taken, wdelay=$delay" || continue
  "$python" "$dir/shutdown.py" "$dir" "$NBDKIT" "$plugin" $delay \
            >"$dir/out" 2>&1
  status=$?
  ok $status "shutdown answers what it has taken, without waiting, wdelay=$delay"
  rm -f "$dir/socket" "$dir/pid"
done
! grep -qs "aborting sleep" "$dir/log"
ok $? "shutdown says nothing about short waits"

# The client goes, with what it had sent still waiting.  A broken connection
# would make nbdkit 1.32 abort now and then, so it takes its leave.
rm -f "$dir/requests"
LOG="$dir/requests" client "what a client has left behind is done soon" --filter=log \
  wdelay=60 rdelay=0 logfile="$dir/requests" <<'END'
other = nbd.NBD()
other.connect_uri(sys.argv[1])
bufs = [nbd.Buffer.from_bytearray(bytearray(b"%04d" % i)) for i in range(8)]
for i in range(8):
    other.aio_pwrite(bufs[i], i * 4)
other.aio_trim(4, 32)
other.aio_zero(4, 36)
# What nbdkit has read, but not handed to the plugin, it drops when the client takes its leave.
while sum(" id=" in l and "..." in l for l in open(os.environ["LOG"])) < 10:
    other.poll(1)
other.aio_disconnect()
start = time.monotonic()
while not (other.aio_is_closed() or other.aio_is_dead()):
    try:
        other.poll(-1)
    except nbd.Error:
        break
assert time.monotonic() - start < 30
assert h.pread(40, 0) == b"".join(b"%04d" % i for i in range(8)) + bytes(8)
END

echo "1..$n"
exit $failed
