# SPDX-License-Identifier: BSD-3-Clause
# One measured run, for benchmarks/run: servers, clients, and the row of the
# CSV that they make.  $tmp is a directory, $seconds the length of a run.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154      # with lib.sh

# Servers.  A run has one, number 0, or several side by side.  Server N has a
# directory $tmp/serverN with its socket, pid file, log and rusage.

server_pids=() server_times=() server_uris=()

# server_launch leaves it without its first answer, for a clock that begins
# before the server.
server_launch () { # ARGUMENTS
  local i=${#server_times[@]} dir tries=0
  dir=$tmp/server$i
  rm -rf "$dir"
  mkdir "$dir"
  server_uris[i]="nbd+unix:///?socket=$dir/socket"
  # GNU time reports the rusage of an exited child.  It counts every thread,
  # also those that ended with their connection and are gone from /proc.
  command time -q -o "$dir/usage" -f '%w %c' \
    nbdkit -f -U "$dir/socket" -P "$dir/pid" "$@" 2>"$dir/log" &
  server_times[i]=$!
  until [ -s "$dir/pid" ]; do
    kill -0 "${server_times[i]}" 2>/dev/null ||
      die "nbdkit $* did not start: $(cat "$dir/log")"
    [ $((tries++)) -lt 3000 ] || die "nbdkit $* has no pid file after 60 s"
    sleep 0.02
  done
  server_pids[i]=$(cat "$dir/pid")
}

server_start () { # ARGUMENTS
  local i=${#server_times[@]}
  server_launch "$@"
  # The answer comes when the device is populated.  --list starts no threads
  # for requests.
  timeout 180 nbdinfo --list "${server_uris[i]}" >/dev/null ||
    die "nbdkit $* does not answer: $(cat "$tmp/server$i/log")"
}

servers_stop () {
  local i log rc
  for i in "${!server_pids[@]}"; do
    rc=0 log=$tmp/server$i/log
    kill "${server_pids[i]}" || die "the server is gone: $(cat "$log")"
    wait "${server_times[i]}" || rc=$?
    [ $rc = 0 ] || die "nbdkit's exit status is $rc: $(cat "$log")"
    cat "$log" >>"$tmp/messages"
  done
  server_pids=() server_times=()
}

# A number from /proc/PID/status of server 0.
server_status () { # FIELD
  awk -v field="$1:" '$1 == field { print $2; found = 1 } END { exit !found }' \
    "/proc/${server_pids[0]}/status" || die "no $1 of the server"
}

# Of all threads of server 0 that live.  One may end meanwhile.
server_switches () {
  { cat "/proc/${server_pids[0]}"/task/*/status 2>/dev/null || :; } |
    awk '/_ctxt_switches:/ { n += $2 } END { print n + 0; exit !NR }' ||
    die "no threads of the server"
}

# CPU seconds of a server with all of its threads, also those that have ended,
# from its CPU clock.  utime + stime in /proc/PID/stat are the same sum in steps
# of 10 ms.
server_cpu () { # N
  perl -MTime::HiRes=clock_gettime -e 'use integer;
    my $clock = (~int ($ARGV[0]) << 3) | 2;
    my $s = clock_gettime ($clock); exit 1 if $s < 0;
    printf "%.6f", $s' "${server_pids[$1]}" || die "no CPU time of the server"
}

# KiB that an idle server without filter needs with a device of this size.
declare -A idle_kib=()
measure_idle () { # SIZE
  [ -z "${idle_kib[$1]:-}" ] || return 0
  # shellcheck disable=SC2046
  server_start $(delaymem "$1" 0)
  idle_kib[$1]=$(server_status VmRSS)
  servers_stop
}

# Clients.  client_NAME leaves its figures in $result: MB/s, mean and p99
# latency in ms, operations, bytes, seconds; `-' is not known.  $threads is the
# largest number of the server's threads meanwhile.

client_pid="" writer_pid=""

client_wait () {
  local rc=0 key value
  threads=0
  while kill -0 "$client_pid" 2>/dev/null; do
    while read -r key value _; do
      [ "$key" != Threads: ] || [ "$value" -le "$threads" ] || threads=$value
    done 2>/dev/null <"/proc/${server_pids[0]}/status" || :
    progress
    sleep 0.2
  done
  wait "$client_pid" || rc=$?
  client_pid=""
  [ $rc = 0 ] || die "the client's exit status is $rc: $command:" \
    "$(cat "$tmp/client.log" "$tmp/server0/log")"
}

client_seconds () { echo $((seconds * 2 + 180)); }

fio_result () {
  jq -er '.jobs[0] |
    if .error != 0 then error ("fio: error \(.error)") else . end |
    (if .read.total_ios > 0 then .read else .write end) |
    [.bw_bytes / 1e6, .lat_ns.mean / 1e6,
     .clat_ns.percentile["99.000000"] / 1e6,
     .total_ios, .io_bytes, .runtime / 1e3] |
    if any (. == null or . <= 0) then error ("fio: a number is missing: \(.)")
    else . end |
    map (tostring) | join (" ")' "$tmp/client.json" ||
    die "no result of fio: $command"
}

client_fio () { # OPTIONS
  timeout "$(client_seconds)" fio --name=job --ioengine=nbd \
    --uri="${server_uris[0]}" --group_reporting --output-format=json \
    --output="$tmp/client.json" "$@" >"$tmp/client.log" 2>&1 &
  client_pid=$!
  client_wait
  result=$(fio_result)
}

# fio beside another connection that writes sequentially, one request at a time.
client_beside () { # OPTIONS
  local rc=0
  timeout "$(client_seconds)" fio --name=writer --ioengine=nbd \
    --uri="${server_uris[0]}" --rw=write --bs=128k --time_based --size=50% \
    --runtime=$((seconds + 3)) --end_fsync=1 >"$tmp/writer.log" 2>&1 &
  writer_pid=$!
  sleep 1                       # its start is not measured
  client_fio "$@"
  wait $writer_pid || rc=$?
  writer_pid=""
  [ $rc = 0 ] ||
    die "the writer's exit status is $rc: $(cat "$tmp/writer.log")"
}

# A whole command, from start to exit.  Its latencies are not known.
# $clock_from is an earlier start, in microseconds.
clock_from=""
now_us () { echo "${EPOCHREALTIME/[.,]/}"; }
client_timed () { # BYTES OPERATIONS COMMAND...
  local bytes=$1 operations=$2
  shift 2
  {
    from=${clock_from:-$(now_us)}
    timeout "$(client_seconds)" "$@"
    echo $(($(now_us) - from)) >"$tmp/us"
  } >"$tmp/client.log" 2>&1 &
  client_pid=$!
  client_wait
  result=$(awk -v b="$bytes" -v n="$operations" -v us="$(cat "$tmp/us")" \
    'BEGIN { print b / us, "-", "-", n, b, us / 1e6 }')
}

client_nbdcopy () { # MIB write|read
  local mib=$1 uri=${server_uris[0]}
  case $2 in
    write)
      head -c "${mib}M" /dev/urandom >"$tmp/data"
      set -- --flush "$tmp/data" "$uri";;
    read) set -- --no-extents "$uri" null:;;
  esac
  client_timed $((mib << 20)) $((mib * 4)) nbdcopy --synchronous "$@"
}

# qemu-img with COUNT requests of KIB each.  It puts in the address for URI,
# a file with that much data for IMAGE, and a file to write for COPY.
client_qemu () { # COUNT KIB COMMAND...
  local count=$1 kib=$2 image
  shift 2
  image=$tmp/image.$((count * kib))
  if [[ " $* " = *" IMAGE "* ]] && [ ! -e "$image" ]; then
    head -c "$((count * kib))K" /dev/urandom >"$image"
  fi
  set -- "${@/#URI/${server_uris[0]}}"
  set -- "${@/#IMAGE/$image}"
  client_timed $((count * kib * 1024)) "$count" \
    qemu-img "${@/#COPY/$tmp/copy}"
}

# For the exit trap.  GNU time's child is the server, also before that has
# written its pid file.
kill_all () {
  local pid
  for pid in "${server_times[@]}"; do pkill -9 -P "$pid" || :; done
  for pid in $client_pid $writer_pid; do kill "$pid" 2>/dev/null || :; done
}

# One run: a row for the CSV in $row.
measure () { # ROUND PLANNED
  local client contestant workload limit server command
  local size idle cpu threads result kib
  IFS='|' read -r client contestant workload limit server command <<<"$2"
  size=${server##* size=}
  size=${size%% *}
  measure_idle "$size"
  # shellcheck disable=SC2086
  server_start $server
  idle=$(server_switches)
  cpu=$(server_cpu 0)
  # shellcheck disable=SC2086
  "client_${command%% *}" ${command#* }
  cpu+=" $(server_cpu 0)"
  kib=$(server_status VmHWM)
  kib=$((kib - idle_kib[$size]))
  [ "$threads" -gt 0 ] || die "no thread count: $command"
  servers_stop
  row="$1,$client,$contestant,$workload,$limit,$(
    figures "${limit:--}" "$result" "$cpu" "$threads" "$kib" \
      "$(cat "$tmp/server0/usage") $idle"),$server,$command"
}

# The columns of a row from mbs to runtime_s.  `-' is not known.
figures () { # LIMIT RESULT "CPU_BEFORE CPU_AFTER" THREADS KIB SWITCHES
  # SWITCHES: "VOLUNTARY INVOLUNTARY IDLE"
  # shellcheck disable=SC2048,SC2086
  set -- $*
  [ $# = 14 ] || die "14 figures are wanted: $*"
  awk -v OFS=, '
    function known (format, x) { return x == "-" ? "" : sprintf (format, x) }
    {
      limit = $1; mbs = $2; mean = $3; p99 = $4; ops = $5; bytes = $6
      seconds = $7; cpu = $9 == "-" ? "-" : ($9 - $8) * 1e9 / bytes
      threads = $10; mb = $11 == "-" ? "-" : $11 * 1.024e-3
      switches = $12 == "-" ? "-" : ($12 + $13 - $14) / ops
      print known ("%.3f", mbs),
        known ("%.2f", limit == "-" || mbs == "-" ? "-" : 100 * mbs / limit),
        known ("%.4f", cpu), known ("%d", threads), known ("%.1f", mb),
        known ("%.3f", switches), known ("%.4f", mean), known ("%.4f", p99),
        known ("%s", ops), known ("%s", bytes), known ("%.3f", seconds)
    }' <<<"$*"
}
