# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool-stats: the statistics have all lines, agree with the requests, and
# go to any kind of file.  The lines of the debug flags.
. "$TESTS_DIR/functions.sh"
require_python

# Lines and numbers.

server_start stats "--filter=$FILTER" "$GATE" size=8M delay=20ms \
  asyncpool-stats=stats.txt asyncpool-write=behind asyncpool-buffers=4 \
  asyncpool-buffer-size=64k
check "a client reads, writes, zeroes, trims and flushes" \
  nbd_python "$uri" <<'END'
for i in range(32):
    h.pwrite(data(i), i * UNIT)
for i in range(16):
    h.pwrite(data(i, 4096), 4 * UNIT + i * 4096)
h.flush()
for i in range(32):
    h.pread(UNIT, i * UNIT)
h.zero(UNIT, 0)
h.trim(UNIT, UNIT)
h.pwrite(data(1), 0, nbd.CMD_FLAG_FUA)
h.pwrite(data(1), 0)
h.zero(UNIT, 0)
h.flush()
h.shutdown()
END
stops "the client has left" stats
diag <stats.txt

# field LABEL N: prints a field of the line.
field ()
{
  awk -v label="$1" -v field="$2" 'index ($0, label) == 1 {
    sub (label, "x"); print $field }' stats.txt
}
is "read has the number of requests" "$(field 'read ' 2)" 32
is "read has the bytes" "$(field 'read ' 3)" $((32 * 65536))
is "write has the number of requests" "$(field 'write ' 2)" 50
is "zero has the number of requests" "$(field 'zero ' 2)" 2
is "trim has the number of requests" "$(field 'trim ' 2)" 1
is "flush has the number of requests" "$(field 'flush ' 2)" 2
for kind in read write zero trim flush; do
  check "$kind has latencies in ascending order" \
    awk -v kind=$kind '
      $1 == kind && $4 >= 0 && $8 > 0 && $4 <= $5 && $4 <= $6 && $6 <= $7 &&
        $7 <= $8 { good = 1 }
      END { exit !good }' stats.txt
done
for word in 'p50' 'p99' 'plugin read' 'plugin write' 'buffer wait' 'peak' \
  'read-ahead' 'issued' 'used' 'wasted' 'write-behind' 'combined' \
  'deferred errors' 'barriers' 'plugin extents' 'block status' 'zeroes'
do
  check "the statistics have $word" grep -q -- "$word" stats.txt
done
check "some of the prefetched data was used" \
  grep -qE 'read-ahead: .*, [1-9][0-9]* used' stats.txt
check "some writes were coalesced" \
  grep -qE '[1-9][0-9]* of them combined' stats.txt
check "some requests waited for a buffer" \
  test "$(field 'buffer wait ' 2)" -gt 0
check "the plugin has fewer writes than the client" \
  test "$(field 'plugin write ' 2)" -lt 50

# Kinds of files.

# has_stats NAME FILE
has_stats () { check "$1: has the statistics" grep -q 'plugin write' "$2"; }

name="standard error"
"$NBDKIT" -U - "--filter=$FILTER" memory 1M asyncpool-stats=- --run true \
  >stderr.txt 2>&1
has_stats "$name" stderr.txt
is "$name: has no warning" "$(grep -c warning stderr.txt)" 0

# nbdkit opens the file once, at the start, by the name of the command line.
serve_once ()
{
  timeout -k 1 100 "$NBDKIT" -U - "--filter=$FILTER" memory 1M "$@" --run true
}

name="FIFO"
mkfifo fifo
cat fifo >from-fifo &
serve_once asyncpool-stats=fifo >fifo.log 2>&1
is "$name: nbdkit ends without error" $? 0
wait $!
has_stats "$name" from-fifo

name="/dev/stdout, a pipe"
serve_once asyncpool-stats=/dev/stdout 2>&1 | cat >from-stdout
has_stats "$name" from-stdout

name="/dev/stdout, a log"
echo earlier >log
serve_once asyncpool-stats=/dev/stdout >>log 2>&1
has_stats "$name" log
check "$name: keeps its earlier lines" grep -q earlier log

name="a file that only root can make"
if [ "$(id -u)" = 0 ] && id nobody >/dev/null 2>&1; then
  mkdir -m 755 root-only
  check "$name: nbdkit -u nobody ends without error" \
    serve_once -u nobody asyncpool-stats=root-only/stats
  has_stats "$name" root-only/stats
else
  skip "$name" "needs root and a user nobody"
fi

# Daemons.

# daemon ARGUMENT...: nbdkit in the background.  Its messages until it serves
# are in daemon.log.
daemon ()
{
  rm -f daemon.sock daemon.pid
  # A pipe, which ends when the daemon has closed its standard error.
  "$NBDKIT" -U "$TEST_DIR/daemon.sock" -P daemon.pid "--filter=$FILTER" \
    memory 1M "$@" 2>&1 | cat >daemon.log
  is "daemon, $*: nbdkit starts" "${PIPESTATUS[0]}" 0
  # It writes the pidfile before it serves.
  check "daemon, $*: serves" \
    nbd_python "nbd+unix:///?socket=$TEST_DIR/daemon.sock" </dev/null
  kill "$(cat daemon.pid)"
}
daemon asyncpool-stats=-
check "daemon, asyncpool-stats=-: warns that it writes no statistics" \
  grep -q '^nbdkit: warning: asyncpool-stats=-: nothing is written' daemon.log
daemon asyncpool-stats=stats2.txt
says_nothing "daemon, asyncpool-stats=stats2.txt" daemon.log

# Without the parameter.

server_start without "--filter=$FILTER" memory 1M
stops "no asyncpool-stats" without
says_nothing "no asyncpool-stats" without.log

# Debug flags.

server_start debug -v -D asyncpool.buffers=1 -D asyncpool.streams=1 \
  "--filter=$FILTER" "$GATE" size=8M delay=20ms asyncpool-write=behind
check "debug flags: a client reads and writes" nbd_python "$uri" <<'END'
for i in range(8):
    h.pwrite(data(i), i * UNIT)
h.flush()
for i in range(8):
    h.pread(UNIT, i * UNIT)
h.shutdown()
END
stops "debug flags" debug
for line in 'written 0.*: ok' 'prefetched 0.*: ok' 'stream at 0.*'; do
  check "debug flags: the log has \"asyncpool: $line\"" \
    grep -q "debug: asyncpool: $line" debug.log
  check "debug flags: no such line is without asyncpool:" \
    not grep -v "asyncpool: $line" <(grep "$line" debug.log)
done
done_testing
