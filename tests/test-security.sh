# SPDX-License-Identifier: BSD-3-Clause
#
# What one client can see and use of others.
#
# nbdkit-async(1) has a section SECURITY.  These tests show its sentences:
#
#   whose data a client gets      this one, connections-names, engine-devices
#   failed prefetches             this one, engine-readahead, async-giveup
#   errors and names in the log   connections-lost
#   memory, threads               this one, memory, engine-contexts, extents
#   export names                  engine-close (lost-names)
#   streams                       stream
#   parts of the buffers          engine-readahead (share), engine-slab (half,
#                                 evict-idle)
#   waits for others              connections-stuck, engine-devices (bound)
#   a plugin that hangs           connections-stuck (full-slab), engine-devices
#                                 (workers, buffers)
#   clients that do not read      clients
#   limits of nbdkit              this one, tls
. "$TESTS_DIR/functions.sh"
require "$PYTHON"
require_python
pool="--filter=$FILTER"

# Each client has an export of its own, and gets no data of another one.  One
# read of ten fails below asyncpool, and the sizes are no multiples of a buffer.
name="exports"
mkdir exports
n_exports=8
for ((i = 0; i < n_exports; i++)); do
  truncate -s $((1000000 + 70000 * i + i)) exports/$i
done
server_start pool "$pool" --filter=error --filter=delay file \
  dir="$TEST_DIR/exports" delay-read=1ms delay-write=1ms \
  error-pread-rate=10% asyncpool-write=behind asyncpool-buffers=6 \
  asyncpool-buffer-size=64k
rounds=2; [ -z "$slow" ] || rounds=1
cat >client.py <<'END'
import nbd, random, sys
socket, export, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
h = nbd.NBD()
h.set_export_name(export)
h.connect_unix(socket)
size = h.get_size()
draw = random.Random(export)
wanted = bytearray(draw.randbytes(size))
def each(step):
    return ((i, min(step, size - i)) for i in range(0, size, step))
for at, count in each(50000):
    h.pwrite(wanted[at:at + count], at)
h.flush()
failed = 0
for turn in range(rounds):
    for at, count in each(draw.choice((4096, 30000, 65536))):
        if draw.random() < 0.1:
            small = draw.randbytes(min(100, count))
            h.pwrite(small, at)
            wanted[at:at + len(small)] = small
        while True:
            try:
                got = h.pread(count, at)
                break
            except nbd.Error:
                failed += 1
        if got != wanted[at:at + count]:
            sys.exit(f"export {export}: {count} bytes at {at} differ")
    h.flush()
h.shutdown()
print(f"export {export}: {failed} reads have failed")
END
all_exports ()
{
  local i rc=0 jobs=()
  for ((i = 0; i < n_exports; i++)); do
    "$PYTHON" client.py pool.sock $i $rounds &
    jobs+=($!)
  done
  for i in "${jobs[@]}"; do
    wait "$i" || rc=1
  done
  return $rc
}
check "$name: each client gets the data of its export" all_exports
cp check.out said
check "$name: reads have failed, too" grep -q ': [1-9][0-9]* reads' said
stops "$name"

# What connections cost: some read, write and flush, each with a name of its
# own.
#
# cost FILTER [PARAMETER...]: writes threads, and KiB of memory, to file cost.
n_conns=100; [ -z "$slow" ] || n_conns=10
cost ()
{
  server_start pool -t 2 "--filter=$1" "$GATE" size=64M delay=300us \
    "${@:2}" || return 1
  PYTHONPATH=$TESTS_DIR "$PYTHON" - "${server_pid[pool]}" "$n_conns" \
    <<'END' >cost
import nbd_raw as raw, sys
pid, n = sys.argv[1], int(sys.argv[2])
def use():
    with open(f"/proc/{pid}/status") as f:
        status = dict(line.split(":", 1) for line in f)
    return int(status["Threads"]), int(status["RssAnon"].split()[0])
def clients(n):
    some = [raw.Client("pool.sock", export=b"x%d" % i) for i in range(n)]
    for i, c in enumerate(some):
        assert c.call(raw.WRITE, i * 65536, 4096, 0, bytes(4096)) == b""
        assert c.call(raw.FLUSH) == b""
        for at in range(4):
            assert len(c.call(raw.READ, (i * 4 + at) * 4096, 4096)) == 4096
    return some
first = clients(5)
before = use()
more = clients(n)
after = use()
print(after[0] - before[0], after[1] - before[1])
for c in first + more:
    c.leave()
END
  server_stop pool
}
name="connections"
export MALLOC_ARENA_MAX=1       # memory then depends less on the scheduler
check "$name: without asyncpool" cost nofilter
read -r threads_without kib_without <cost
check "$name: with asyncpool" cost "$FILTER" asyncpool-buffers=4 \
  asyncpool-threads=4
read -r threads_with kib_with <cost
diag <<<"$n_conns connections: $kib_without KiB, with asyncpool $kib_with KiB"
is "$name: asyncpool has no thread for each" "$threads_with" "$threads_without"
[ -n "$slow" ] ||
  check "$name: asyncpool takes at most 8 KiB for each" \
    test "$kib_with" -le $((kib_without + 8 * n_conns))

# nbdkit's limits.  The log filter below asyncpool notes whom the plugin gets.
# connects: whether a client gets through.
connects () { nbd_python "$uri" <<<"h.pread(512, 0); h.shutdown()"; }
# limited FILTER PARAMETER...: above asyncpool, which has contexts.
limited ()
{
  rm -f requests
  server_start pool "--filter=$1" "$pool" --filter=log "$GATE" size=1M \
    thread_model=serialize_requests delay=1ms asyncpool-write=behind \
    asyncpool-contexts=4 logfile="$TEST_DIR/requests" "${@:2}"
}
name="ip filter"
limited ip deny=any
check "$name: it refuses a client" not connects
stops "$name"
is "$name: the plugin is not opened" "$(grep -c ' Connect ' requests)" 0

name="limit filter"
limited limit limit=1
check "$name: one client gets through, and no second one" nbd_python "$uri" \
  <<'END'
for i in range(8):
    h.pwrite(data(i), i * UNIT)
g = nbd.NBD()
try:
    g.connect_uri(sys.argv[1])
    sys.exit("a second client gets through")
except nbd.Error:
    pass
h.flush()
h.shutdown()
END
check "$name: contexts do not count" connects
stops "$name"
check "$name: there were contexts" \
  test "$(grep -c ' Connect ' requests)" -gt 2
done_testing
