# Functions that benchmarks/run, benchmarks/report and the cases share: the plan of a case,
# starting and stopping the server, one measured run.
# shellcheck shell=bash
# Set by benchmarks/run: $tmp (a directory), $run_started.
# shellcheck disable=SC2034,SC2154
#
# A case is a file case-NAME.sh that sets $title, $rounds and $seconds (defaults), perhaps $brief
# (only the summary goes to the terminal), and defines
#   plan_NAME                      one call of `plan' for each run of a round; runs that are to
#                                  be compared stand next to each other
#   rows_NAME                      (in place of it) rows for the CSV, measured in its own way
#   extra_NAME                     (optional) rows for the CSV that are not measured
#   notes_NAME                     text below the table
#   summary_NAME CSV MEDIANS       (optional) text above the table
#   table_NAME MEDIANS             (optional) in place of the usual table
#   plot_NAME MEDIANS CSV          (optional) a gnuplot script

die () {
  progress_end
  printf 'benchmarks: %s\n' "$*" >&2
  exit 1
}

title="" rounds=0 seconds=0 brief=""

load_case () { # NAME
  brief=""
  # shellcheck source=/dev/null
  . "benchmarks/case-$1.sh"
}

# The plan.

PLAN=()

# plan CLIENT CONTESTANT WORKLOAD LIMIT SERVER COMMAND
# LIMIT in MB/s, empty where there is none. SERVER: what follows `nbdkit'. COMMAND: the client,
# fio's options without engine, address and output, `nbdcopy MIB write|read', or `qemu COUNT KIB
# COMMAND', see client_qemu.
plan () {
  local IFS='|'
  [ $# = 6 ] || die "plan: $# arguments: $*"
  [[ "$*" != *,* ]] || die "plan: no commas, the results are CSV: $*"
  PLAN+=("$*")
}

# limit IN_FLIGHT KIB [MS]: Little's law in MB/s.
limit () {
  awk -v n="$1" -v kib="$2" -v ms="${3:-64}" 'BEGIN { printf "%.2f", n * kib * 1.024 / ms }'
}

# fits SIZE_GIB: the size, halved until it fits into free memory with 2 GiB to spare.
fits () {
  local gib=$1 free
  free=$(awk '/^MemAvailable:/ { print int ($2 / 1048576) }' /proc/meminfo)
  while [ "$gib" -gt 1 ] && [ $((gib + 2)) -gt "$free" ]; do gib=$((gib / 2)); done
  [ "$gib" = "$1" ] || echo "benchmarks: free memory: device of ${gib}G in place of ${1}G" >&2
  echo "${gib}G"
}

# The device as stock nbdkit knows devices: synchronous, the calling thread waits.
delaymem () { # SIZE DELAY
  echo "./delaymem.so size=$1 delay=$2 populate=true io-threads=0"
}

# asyncpool as it is by default: it drives the async hooks of the same device.
asyncpool () { # BUFFERS SIZE DELAY [PARAMETERS]
  echo "--filter=./asyncpool.so ./delaymem.so size=$2 delay=$3 populate=true asyncpool-buffers=$1${4:+ $4}"
}

# asyncpool with its thread pool, as over any plugin without hooks.
asyncpool_threads () { # BUFFERS SIZE DELAY [PARAMETERS]
  echo "--filter=./asyncpool.so $(delaymem "$2" "$3") asyncpool-buffers=$1${4:+ $4}"
}

fio_job () { # RW BLOCK DEPTH [OPTIONS]
  echo "fio --rw=$1 --bs=$2 --iodepth=$3 --runtime=$seconds${4:+ $4}"
}

# Writes go round the device until the time is over, then flush; the flush is timed, too.
fio_write () { # BLOCK DEPTH
  fio_job write "$1" "$2" "--time_based --end_fsync=1"
}

# Reads end at the end of the device: a jump back to the start would be another stream.
# Each stream has a connection and a part of the device of its own.
fio_read () { # BLOCK DEPTH STREAMS [OPTIONS]
  local part=$((100 / $3)) streams=""
  [ "$3" = 1 ] || streams="--numjobs=$3 --size=$part% --offset_increment=$part%"
  fio_job read "$1" "$2" "$streams${4:+ $4}"
}

# The workloads of the 2017 table: 0 streams are the writer.
workload () { # STREAMS
  case $1 in
    0) echo "write+flush";;
    1) echo "read";;
    *) echo "read $1 streams";;
  esac
}

workload_job () { # STREAMS DEPTH_OF_EACH [OPTIONS_OF_READS]
  if [ "$1" = 0 ]; then fio_write 128k "$2"; else fio_read 128k "$2" "$1" "${3:-}"; fi
}

# The server.

server_pid="" time_pid=""

server_start () { # ARGUMENTS
  local n=0
  server_pid="" time_pid=""
  rm -f "$tmp/socket" "$tmp/pid" "$tmp/usage"
  # GNU time: the rusage of an exited child counts every thread, also those that ended with
  # their connection and are gone from /proc.
  command time -q -o "$tmp/usage" -f '%w %c' \
    nbdkit -f -U "$tmp/socket" -P "$tmp/pid" "$@" 2>"$tmp/log" &
  time_pid=$!
  until [ -s "$tmp/pid" ]; do
    kill -0 $time_pid 2>/dev/null || die "nbdkit $* did not start: $(cat "$tmp/log")"
    [ $((n++)) -lt 600 ] || die "nbdkit $* has no pid file after 60 s"
    sleep 0.1
  done
  server_pid=$(cat "$tmp/pid")
  # The answer comes when the device is populated; --list starts no threads for requests.
  timeout 180 nbdinfo --list "nbd+unix:///?socket=$tmp/socket" >/dev/null ||
    die "nbdkit $* does not answer: $(cat "$tmp/log")"
}

server_stop () {
  local rc=0
  kill "$server_pid" || die "the server is gone: $(cat "$tmp/log")"
  wait "$time_pid" || rc=$?
  server_pid="" time_pid=""
  [ $rc = 0 ] || die "nbdkit's exit status $rc: $(cat "$tmp/log")"
  cat "$tmp/log" >>"$tmp/messages"
}

# Several servers side by side, for a case with a client of its own. What is above is about the one
# that was selected last.
server_pids=() server_times=() server_uris=() server_arguments=()

servers_start () { # ARGUMENTS OF THE FIRST, OF THE SECOND...
  local top=$tmp tmp i
  server_arguments=("$@")
  for i in "${!server_arguments[@]}"; do
    tmp=$top/server$i
    mkdir -p "$tmp"
    # shellcheck disable=SC2086
    server_start ${server_arguments[i]}
    server_pids[i]=$server_pid server_times[i]=$time_pid
    server_uris[i]="nbd+unix:///?socket=$tmp/socket"
  done
}

server_select () { # INDEX
  server_pid=${server_pids[$1]} time_pid=${server_times[$1]}
}

servers_stop () {
  local top=$tmp tmp i
  for i in "${!server_pids[@]}"; do
    tmp=$top/server$i
    server_select "$i"
    server_stop
    cat "$tmp/messages" >>"$top/messages"
    rm "$tmp/messages"
  done
  server_pids=()
}

# For the exit trap: nothing may stay behind, nor a server that has no pid file yet.
server_kill () {
  local pid
  [ -z "$time_pid" ] || pkill -9 -P "$time_pid" || :
  for pid in $server_pid "${server_pids[@]}"; do kill -9 "$pid" 2>/dev/null || :; done
  [ -z "$client_pid" ] || kill "$client_pid" 2>/dev/null || :
}

server_status () { # FIELD: a number from /proc/PID/status
  awk -v field="$1:" '$1 == field { print $2; found = 1 } END { exit !found }' \
    "/proc/$server_pid/status" || die "no $1 of the server"
}

# Of all threads that live; one may end while we read.
server_switches () {
  { cat "/proc/$server_pid"/task/*/status 2>/dev/null || :; } |
    awk '/_ctxt_switches:/ { n += $2 } END { print n + 0; exit !NR }' || die "no threads of the server"
}

# CPU seconds of the whole process with its threads of the past, from its CPU clock: the same
# sum as utime + stime in /proc/PID/stat, which counts in steps of 10 ms.
server_cpu () {
  perl -MTime::HiRes=clock_gettime -e 'use integer; my $clock = (~int ($ARGV[0]) << 3) | 2;
    my $s = clock_gettime ($clock); exit 1 if $s < 0; printf "%.6f", $s' "$server_pid" ||
    die "no CPU time of the server"
}

# KiB that a server without filter and without client needs with a device of this size.
declare -A idle_kib=()
measure_idle () { # SIZE
  [ -z "${idle_kib[$1]:-}" ] || return 0
  # shellcheck disable=SC2046
  server_start $(delaymem "$1" 0)
  idle_kib[$1]=$(server_status VmRSS)
  server_stop
}

# The client.

client_pid=""

# Wait for the client; meanwhile look at the server's threads and keep progress alive.
client_wait () {
  local rc=0 key value
  threads=0
  while kill -0 "$client_pid" 2>/dev/null; do
    while read -r key value _; do
      [ "$key" != Threads: ] || [ "$value" -le "$threads" ] || threads=$value
    done 2>/dev/null <"/proc/$server_pid/status" || :
    progress
    sleep 0.2
  done
  wait "$client_pid" || rc=$?
  client_pid=""
  [ $rc = 0 ] || die "client's exit status $rc: $command: $(cat "$tmp/client.log" "$tmp/log")"
}

# Print: MB/s, mean and p99 latency in ms, operations, bytes, seconds.
fio_result () {
  jq -er '.jobs[0] | if .error != 0 then error ("fio: error \(.error)") else . end |
    (if .read.total_ios > 0 then .read else .write end) |
    [.bw_bytes / 1e6, .lat_ns.mean / 1e6, .clat_ns.percentile["99.000000"] / 1e6,
     .total_ios, .io_bytes, .runtime / 1e3] |
    if any (. == null or . <= 0) then error ("fio: a number is missing: \(.)") else . end |
    map (tostring) | join (" ")' "$tmp/client.json" || die "no result of fio: $command"
}

client_fio () { # OPTIONS
  timeout $((seconds * 2 + 180)) fio --name=job --ioengine=nbd \
    --uri="nbd+unix:///?socket=$tmp/socket" --group_reporting --output-format=json \
    --output="$tmp/client.json" "$@" >"$tmp/client.log" 2>&1 &
  client_pid=$!
  client_wait
  result=$(fio_result)
}

# As client_fio, while another connection writes sequentially, one request at a time.
client_beside () { # OPTIONS
  local writer rc=0
  timeout $((seconds * 2 + 180)) fio --name=writer --ioengine=nbd \
    --uri="nbd+unix:///?socket=$tmp/socket" --rw=write --bs=128k --time_based --size=50% \
    --runtime=$((seconds + 3)) --end_fsync=1 >"$tmp/writer.log" 2>&1 &
  writer=$!
  sleep 1                       # its start is not measured
  client_fio "$@"
  wait $writer || rc=$?
  [ $rc = 0 ] || die "the writer's exit status $rc: $(cat "$tmp/writer.log")"
}

# A command as a whole, from start to exit. Its latencies are not known.
client_timed () { # BYTES OPERATIONS COMMAND...
  local bytes=$1 operations=$2
  shift 2
  {
    from=${EPOCHREALTIME/[.,]/}
    timeout $((seconds * 2 + 180)) "$@"
    echo $((${EPOCHREALTIME/[.,]/} - from)) >"$tmp/us"
  } >"$tmp/client.log" 2>&1 &
  client_pid=$!
  client_wait
  result=$(awk -v b="$bytes" -v n="$operations" -v us="$(cat "$tmp/us")" \
    'BEGIN { print b / us, "-", "-", n, b, us / 1e6 }')
}

client_nbdcopy () { # MIB write|read
  local mib=$1 uri="nbd+unix:///?socket=$tmp/socket"
  case $2 in
    write) head -c "${mib}M" /dev/urandom >"$tmp/data"; set -- --flush "$tmp/data" "$uri";;
    read) set -- --no-extents "$uri" null:;;
  esac
  client_timed $((mib << 20)) $((mib * 4)) nbdcopy --synchronous "$@"
}

# qemu-img, COUNT requests of KIB each. URI, IMAGE (that much data) and COPY are put in.
client_qemu () { # COUNT KIB COMMAND...
  local count=$1 kib=$2 image
  shift 2
  image=$tmp/image.$((count * kib))
  if [[ " $* " = *" IMAGE "* ]] && [ ! -e "$image" ]; then
    head -c "$((count * kib))K" /dev/urandom >"$image"
  fi
  set -- "${@/#URI/nbd+unix:///?socket=$tmp/socket}"
  set -- "${@/#IMAGE/$image}"
  client_timed $((count * kib * 1024)) "$count" qemu-img "${@/#COPY/$tmp/copy}"
}

# One run.

columns=round,client,contestant,workload,limit_mbs,mbs,pct_limit,cpu_s_per_gb,threads
columns+=,mem_above_mb,switches_per_op,lat_mean_ms,lat_p99_ms,ops,bytes,runtime_s,server,command

# measure ROUND PLANNED: a row for the CSV in $row.
measure () {
  local round=$1 client contestant workload limit server command threads result
  local size idle cpu switches peak_kib
  IFS='|' read -r client contestant workload limit server command <<<"$2"
  size=${server##* size=}
  size=${size%% *}
  measure_idle "$size"
  # shellcheck disable=SC2086
  {
    server_start $server
    set -- $command
  }
  idle=$(server_switches)
  cpu=$(server_cpu)
  "client_$1" "${@:2}"
  cpu+=" $(server_cpu)"
  peak_kib=$(server_status VmHWM)
  [ "$threads" -gt 0 ] || die "no thread count: $command"
  server_stop
  switches=$(cat "$tmp/usage")
  row="$round,$client,$contestant,$workload,$limit"
  row+=,$(derive "$result" "$cpu" "$switches $idle" "$((peak_kib - idle_kib[$size]))")
  row+=",$server,$command"
}

# derive "MBS MEAN P99 OPS BYTES SECONDS" "CPU_BEFORE CPU_AFTER" "VOLUNTARY INVOLUNTARY IDLE" KIB
# The figures of a row, from mbs to runtime_s. Anything missing is an error.
derive () {
  # shellcheck disable=SC2086
  set -- $1 $2 $3 $4
  [ $# = 12 ] || die "figures are missing: $*"
  awk -v limit="$limit" -v threads="$threads" -v OFS=, -v v="$*" 'BEGIN {
    split (v, a, " ")
    print sprintf ("%.3f", a[1]), limit ? sprintf ("%.2f", 100 * a[1] / limit) : "",
      sprintf ("%.4f", (a[8] - a[7]) * 1e9 / a[5]), threads, sprintf ("%.1f", a[12] * 1.024e-3),
      sprintf ("%.3f", (a[9] + a[10] - a[11]) / a[4]), a[2] == "-" ? "" : sprintf ("%.4f", a[2]),
      a[3] == "-" ? "" : sprintf ("%.4f", a[3]), a[4], a[5], sprintf ("%.3f", a[6])
  }'
}

# Reports.

# Three significant digits are what the noise allows; "-" where there is no figure.
awk_number='
  function number (x) {
    if (x == "") return "-"
    if (x >= 99.95) return sprintf ("%.0f", x)
    if (x >= 9.995) return sprintf ("%.1f", x)
    return sprintf ("%.2f", x)
  }'

# One number of the medians: pick MEDIANS CLIENT CONTESTANT WORKLOAD [COLUMN], NaN without.
pick () {
  awk -F, -v client="$2" -v contestant="$3" -v workload="$4" -v column="${5:-5}" '
    $1 == client && $2 == contestant && $3 == workload { n = $column }
    END { print n == "" ? "NaN" : n }' "$1"
}

median () { # of the numbers on stdin
  sort -g | awk '{ v[NR] = $1 }
    END { print NR == 0 ? "NaN" : (v[int ((NR + 1) / 2)] + v[int (NR / 2) + 1]) / 2 }'
}

# check WHAT VALUE GOAL [TEXT]: a line of the summary.
check () {
  awk -v what="$1" -v value="$2" -v goal="$3" -v text="${4:-}" 'BEGIN {
    printf "  %-44s %7.3f  goal >= %-5s  %s%s\n", what, value, goal,
      (value == "NaN" ? "no figure" : value + 0 >= goal + 0 ? "reached" : "MISSED"),
      (text == "" ? "" : "  " text) }'
}

ratio () { awk -v a="$1" -v b="$2" 'BEGIN { print (a == "NaN" || b == "NaN" ? "NaN" : a / b) }'; }
lesser () { awk -v a="$1" -v b="$2" 'BEGIN { print (a == "NaN" || b == "NaN" ? "NaN" : a < b ? a : b) }'; }

gnuplot_head () { # WIDTH HEIGHT
  cat <<EOF
set terminal svg size $1,$2 dynamic enhanced font "sans-serif,13" background rgb "white"
set border 3 lc rgb "#555555"
set tics nomirror
set grid ytics lc rgb "#dddddd" lt 1
EOF
}

# For columns side by side.
gnuplot_bars () { # WIDTH HEIGHT
  gnuplot_head "$@"
  cat <<'EOF'
set style data histograms
set style histogram clustered gap 1
set style fill solid 1 border -1
set boxwidth 0.9
EOF
}

# Progress, on stderr: one line that is written over on a terminal, else a line per run.

progress_text="" progress_open=""

progress_start () { # TEXT
  progress_text=$1
  if [ -t 2 ]; then progress; else echo "$progress_text" >&2; fi
}

progress () {
  [ -t 2 ] || return 0
  progress_open=1
  printf '\r\033[K%.*s' "$((${COLUMNS:-100} - 1))" \
    "$progress_text, $((SECONDS - run_started)) s" >&2
}

progress_end () {
  [ -z "$progress_open" ] || printf '\r\033[K' >&2
  progress_open=""
}
