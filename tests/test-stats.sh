# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool-stats: the statistics have all lines, agree with the requests, and
# go to any kind of file.  A regular file is rewritten while the server runs, as
# text or in Prometheus' format, whatever becomes of its directory.  The debug
# flags show their lines.
#
# Not here: each value in both formats (test-statistics.c), and file systems
# that fail or hang (test-statsfile.c).
. "$TESTS_DIR/functions.sh"
require_python

prometheus () { "$PYTHON" "$TESTS_DIR/prometheus.py" "$@"; }
# metric FILE NAME [LABELS]
metric () { prometheus get "$@"; }
# wait_until COMMAND...: for two minutes.
wait_until ()
{
  local i
  for ((i = 0; i < 1200; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  return 1
}

# Lines and numbers.

cat >client.py <<'END'
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
# serves_client FILE: the statistics of a server and client.py.
serves_client ()
{
  server_start stats "--filter=$FILTER" "$GATE" size=8M delay=20ms \
    asyncpool-stats="$1" asyncpool-write=behind asyncpool-buffers=4 \
    asyncpool-buffer-size=64k
  check "$1: a client reads, writes, zeroes, trims and flushes" \
    nbd_python "$uri" <client.py
  stops "$1: the client has left" stats
  says_nothing "$1" stats.log
}
serves_client stats.txt
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
  'fast plugin: 0 reads' 'read-ahead' 'issued' 'used' 'wasted' 'write-back' \
  'coalesced' 'deferred errors' 'barriers' 'plugin extents' 'block status' \
  'zeroes' 'hit rate' 'waiting data' 'buffers: 4 in all' 'threads' 'clients'
do
  check "the statistics have $word" grep -q -- "$word" stats.txt
done
check "some of the prefetched data was used" \
  grep -qE 'read-ahead: .*, [1-9][0-9]* used' stats.txt
check "some writes were coalesced" \
  grep -qE '[1-9][0-9]* of them coalesced' stats.txt
check "some requests waited for a buffer" \
  test "$(field 'buffer wait ' 2)" -gt 0
check "the plugin has fewer writes than the client" \
  test "$(field 'plugin write ' 2)" -lt 50

# Prometheus' format.

serves_client stats.prom
check "stats.prom: is correct" prometheus check stats.prom
if have promtool; then
  promtool check metrics <stats.prom >promtool.out 2>&1
  is "stats.prom: promtool finds nothing" "$?$(cat promtool.out)" 0
else
  skip_missing "stats.prom: promtool finds nothing"
fi
while read -r _ _ name _; do
  check "the manual has $name" grep -qE "^ ${name#nbdkit_asyncpool_}( |\$)" \
    "$TESTS_DIR/../filter/nbdkit-asyncpool-filter.pod"
done < <(grep '^# TYPE' stats.prom)
# The requests were the same.
for kind in read write zero trim flush extents cache; do
  is "stats.prom: $kind has as many requests as in stats.txt" \
    "$(metric stats.prom request_duration_seconds_count kind=$kind)" \
    "$(field "$kind " 2)"
  is "stats.prom: $kind has as many bytes as in stats.txt" \
    "$(metric stats.prom request_bytes_total kind=$kind)" \
    "$(field "$kind " 3)"
done
is "stats.prom: has all buffers" "$(metric stats.prom buffers)" 4
is "stats.prom: at the end all are free" \
  "$(metric stats.prom buffers_now state=free)" 4

# While the server runs.

cat >stay.py <<'END'
for i in range(32):
    h.pread(UNIT, i * UNIT)
while not os.path.exists("leave"):
    time.sleep(0.01)
h.shutdown()
END
# stays [URI]: a client that has read 32 units, and is there until leaves.
stays ()
{
  rm -f leave
  nbd_python "${1:-$uri}" <stay.py >stay.out 2>&1 &
  client=$!
}
# leaves NAME: it had no error.
leaves ()
{
  touch leave
  check "$1: the client had no error" wait "$client"
}
# reports_client FILE: it is complete, and has the client that stays.
reports_client ()
{
  case $1 in
    *.prom)
      prometheus check "$1" &&
        [ "$(metric "$1" request_bytes_total kind=read)" = 2097152 ] &&
        [ "$(metric "$1" connections)" = 1 ] ;;
    *)
      grep -qE '^read +32 +2097152 ' "$1" &&
        grep -qx 'clients: 1 connections, 0 further contexts' "$1" ;;
  esac
}
slow_gate=("--filter=$FILTER" "$GATE" size=8M delay=20ms)

for file in live.txt live.prom; do
  name="$file, while the server runs"
  server_start live "${slow_gate[@]}" asyncpool-stats=$file
  check "$name: is complete from the start" test -s $file
  stays
  check "$name: has the client" wait_until reports_client $file
  if [ $file = live.prom ]; then
    cp $file earlier.prom
    check "$name: each of its versions is complete, counters only grow" \
      prometheus watch $file 2
    diag <check.out
    check "$name: no counter is smaller at the end" \
      prometheus grows earlier.prom $file
  fi
  leaves "$name"
  stops "$name" live
  says_nothing "$name" live.log
  check "$name: no other file is left" not compgen -G "$file.*"
done

name="SIGKILL"
# The shell's "Killed" is not of interest.
server_start live "${slow_gate[@]}" asyncpool-stats=live.prom 2>/dev/null
stays
check "$name: the file has the client" wait_until reports_client live.prom
kill -KILL "${server_pid[live]}"
check "$name: the file is complete, and has the client" \
  reports_client live.prom
touch leave
wait "$client"
server_wait live >/dev/null

name="--run"
# rewritten.sh FILE: waits until it is.  Each version has its own inode.
cat >rewritten.sh <<'END'
old=$(stat -c %i "$1")
for ((i = 0; i < 1200; i++)); do
  [ "$(stat -c %i "$1")" = "$old" ] || exit 0
  sleep 0.1
done
exit 1
END
check "$name: the file is rewritten" \
  "$NBDKIT" -U - "${slow_gate[@]}" asyncpool-stats=run.prom \
  --run "ls -l /proc/self/fd >fds; bash rewritten.sh run.prom"
says_nothing "$name" check.out
check "$name: the file is correct" prometheus check run.prom
check "$name: the command has no handle of the file" not grep -q 'run\.' fds
check "$name: the command has no handle of the directory" \
  not grep -q "$TEST_DIR\$" fds

# The file cannot be written.

# complains_once NAME PATTERN: the server's log is one line, about this.
complains_once ()
{
  is "$1: the log has one line" "$(wc -l <live.log)" 1
  check "$1: the line is about $2" grep -q "$2" live.log
}
# serves NAME: requests are served.
serves () { check "$1: requests are served" nbd_python "$uri" <client.py; }

name="removed directory"
mkdir removed
server_start live "${slow_gate[@]}" asyncpool-stats=removed/stats.prom
check "$name: the directory is removed" wait_until rm -r removed
check "$name: the server says so" \
  wait_until grep -q 'asyncpool-stats=removed/stats.prom' live.log
serves "$name"
stops "$name" live
complains_once "$name" 'cannot be written: No such file'
check "$name: nothing is written elsewhere" \
  not compgen -G '*stats.prom.new'

# The server is in a mount namespace of its own.
name="full disk"
mkdir full
if [ "$(id -u)" = 0 ] && unshare -m mount -t tmpfs none full 2>/dev/null; then
  cat >in_namespace <<END
#!/bin/bash
exec unshare -m bash -c '
  mount -t tmpfs -o size=128k none "$TEST_DIR/full" && exec "\$@"' bash \
  "$NBDKIT" "\$@"
END
  chmod +x in_namespace
  NBDKIT=$TEST_DIR/in_namespace \
    server_start live "${slow_gate[@]}" asyncpool-stats=full/stats.prom
  full=/proc/${server_pid[live]}/root$TEST_DIR/full
  check "$name: the file is complete" prometheus check "$full/stats.prom"
  not dd if=/dev/zero of="$full/filler" bs=4k 2>/dev/null
  check "$name: the server says so" \
    wait_until grep -q 'asyncpool-stats=full/stats.prom' live.log
  check "$name: the file is still complete" \
    prometheus check "$full/stats.prom"
  check "$name: no partial file is left" not test -e "$full/stats.prom.new"
  stays
  rm "$full/filler"
  check "$name: the file is rewritten when there is room" \
    wait_until reports_client "$full/stats.prom"
  leaves "$name"
  stops "$name" live
  complains_once "$name" 'cannot be written: No space left'
else
  skip "$name" "needs root and a mount namespace"
fi

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

if [ "$(id -u)" = 0 ] && id nobody >/dev/null 2>&1; then
  chmod 711 .
  name="a file that only root can make"
  mkdir -m 755 root-only
  check "$name: nbdkit -u nobody ends without error" \
    serve_once -u nobody asyncpool-stats=root-only/stats
  is "$name: one line says that it is written at the end only" \
    "$(grep -c 'written at the end only: Permission denied' check.out)/$(
      wc -l <check.out)" 1/1
  has_stats "$name" root-only/stats
  is "$name: no other file is left" "$(ls root-only)" stats

  name="-u nobody, a directory of its own"
  mkdir -m 755 nobodys
  chown nobody nobodys
  check "$name: the file is rewritten" \
    "$NBDKIT" -u nobody -U - "--filter=$FILTER" memory 1M \
    asyncpool-stats=nobodys/s.prom --run 'bash rewritten.sh nobodys/s.prom'
  says_nothing "$name" check.out
  check "$name: the file is correct" prometheus check nobodys/s.prom
  is "$name: it belongs to nobody, and others may read it" \
    "$(stat -c %U/%a nobodys/s.prom)" nobody/644
else
  skip "-u nobody" "needs root and a user nobody"
fi

# Daemons.

# daemon ARGUMENT...: nbdkit in the background.  Its messages until it serves
# are in daemon.log.
daemon ()
{
  rm -f daemon.sock daemon.pid
  # A pipe, which ends when the daemon has closed its standard error.
  "$NBDKIT" -U "$TEST_DIR/daemon.sock" -P daemon.pid "--filter=$FILTER" \
    memory 2M "$@" 2>&1 | cat >daemon.log
  is "daemon, $*: nbdkit starts" "${PIPESTATUS[0]}" 0
  # It writes the pidfile before it serves.
  check "daemon, $*: serves" nbd_python "$daemon_uri" </dev/null
}
daemon_uri="nbd+unix:///?socket=$TEST_DIR/daemon.sock"
# daemon_ends NAME
daemon_ends ()
{
  local pid
  pid=$(cat daemon.pid)
  kill "$pid"
  check "$1: nbdkit ends" wait_until not kill -0 "$pid"
}
daemon asyncpool-stats=-
check "daemon, asyncpool-stats=-: warns that it writes no statistics" \
  grep -q '^nbdkit: warning: asyncpool-stats=-: nothing is written' daemon.log
daemon_ends "daemon, asyncpool-stats=-"
# A relative name: the daemon changes its directory.
daemon asyncpool-stats=stats2.txt
name="daemon, asyncpool-stats=stats2.txt"
says_nothing "$name" daemon.log
stays "$daemon_uri"
check "$name: is rewritten" wait_until reports_client stats2.txt
leaves "$name"
daemon_ends "$name"
check "$name: is written at the end" \
  grep -q '^clients: 0 connections' stats2.txt

# Without the parameter.

server_start without "--filter=$FILTER" memory 1M
stops "no asyncpool-stats" without
says_nothing "no asyncpool-stats" without.log

# A buffer size that is given is the size of the prefetches.

server_start size "--filter=$FILTER" "$GATE" size=16M delay=20ms \
  asyncpool-buffer-size=1M asyncpool-stats=size.txt
check "buffer size: a client reads" nbd_python "$uri" <<'END'
for i in range(128):
    h.pread(UNIT, i * UNIT)
h.shutdown()
END
stops "buffer size" size
check "buffer size: the plugin has reads of a buffer" \
  grep -q '^plugin read .*\.\.1048576,' size.txt

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
