# asyncpool-stats: all of its lines, and numbers that agree with what was done.
. "$TESTS_DIR/functions.sh"
require "$PYTHON"
have_python || skip_all "$missing is not installed"

server_start stats "--filter=$FILTER" "$GATE" size=8M delay=20ms asyncpool-stats=stats.txt \
  asyncpool-write=behind asyncpool-buffers=4 asyncpool-buffer-size=64k
check "work" nbd_python "$uri" <<'END'
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
check "ends well" server_stop stats
diag <stats.txt
# count LABEL FIELD
count () { awk -v label="$1" -v field="$2" 'index ($0, label) == 1 {
  sub (label, "x"); print $field }' stats.txt; }
is "reads" "$(count 'read ' 2)" 32
is "bytes read" "$(count 'read ' 3)" $((32 * 65536))
is "writes" "$(count 'write ' 2)" 50
is "zeroes" "$(count 'zero ' 2)" 2
is "trims" "$(count 'trim ' 2)" 1
is "flushes" "$(count 'flush ' 2)" 2
for kind in read write zero trim flush; do
  check "latencies of $kind are in order" \
    awk -v kind=$kind '$1 == kind && $4 >= 0 && $8 > 0 && $4 <= $5 && $4 <= $6 && $6 <= $7 && $7 <= $8 { good = 1 }
                       END { exit !good }' stats.txt
done
for word in 'p50' 'p99' 'plugin read' 'plugin write' 'buffer wait' 'peak' 'read-ahead' 'issued' \
            'used' 'wasted' 'write-behind' 'combined' 'deferred errors' 'barriers' 'extents'; do
  check "says: $word" grep -q -- "$word" stats.txt
done
check "used some read-ahead" grep -qE 'read-ahead: .*, [1-9][0-9]* used' stats.txt
check "combined some writes" grep -qE '[1-9][0-9]* of them combined' stats.txt
check "waited for buffers" test "$(count 'buffer wait ' 2)" -gt 0
check "plugin wrote less often than the client" test "$(count 'plugin write ' 2)" -lt 50

"$NBDKIT" -U - "--filter=$FILTER" memory 1M asyncpool-stats=- --run true >stderr.txt 2>&1
check "to standard error" grep -q 'plugin write' stderr.txt
is "to standard error: no warning" "$(grep -c warning stderr.txt)" 0

# The file is opened once, at the start, as the command line names it.
one () { timeout -k 1 100 "$NBDKIT" -U - "--filter=$FILTER" memory 1M "$@" --run true; }
mkfifo fifo
cat fifo >from-fifo &
one asyncpool-stats=fifo >fifo.log 2>&1
is "to a FIFO: status" $? 0
wait $!
check "to a FIFO" grep -q 'plugin write' from-fifo
one asyncpool-stats=/dev/stdout 2>&1 | cat >from-stdout
check "to /dev/stdout" grep -q 'plugin write' from-stdout
echo earlier >log
one asyncpool-stats=/dev/stdout >>log 2>&1
check "to /dev/stdout, a log" grep -q 'plugin write' log
check "to /dev/stdout, a log: what was there stays" grep -q earlier log
if [ "$(id -u)" = 0 ] && id nobody >/dev/null 2>&1; then
  mkdir -m 755 root-only
  check "to a file of root's" one -u nobody asyncpool-stats=root-only/stats
  check "to a file of root's: is there" grep -q 'plugin write' root-only/stats
else
  skip "to a file of root's" "needs root and a user nobody"
fi

# In the background there is no standard error: what reads it sees its end.
daemon ()
{
  rm -f daemon.sock daemon.pid
  daemon_says=$("$NBDKIT" -U "$TEST_DIR/daemon.sock" -P daemon.pid "--filter=$FILTER" \
    memory 1M "$@" 2>&1)
  is "daemon $*: starts" $? 0
  # It writes the file before the filter's threads start, and that before it serves.
  check "daemon $*: serves" nbd_python "nbd+unix:///?socket=$TEST_DIR/daemon.sock" </dev/null
  kill "$(cat daemon.pid)"
}
daemon asyncpool-stats=-
check "daemon: says that nothing is written" \
  grep -q '^nbdkit: warning: asyncpool-stats=-: nothing is written' \
  <<<"$daemon_says"
daemon asyncpool-stats=stats2.txt
is "daemon with a file: says nothing" "$daemon_says" ""
server_start without "--filter=$FILTER" memory 1M
check "ends well without" server_stop without
is "without the parameter nothing is said" "$(cat without.log)" ""
done_testing
