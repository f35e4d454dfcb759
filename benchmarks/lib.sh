# SPDX-License-Identifier: BSD-3-Clause
# What benchmarks/run and benchmarks/report share: the words in which a case
# plans its runs, the columns of the results, errors and progress.  measure.sh
# performs the runs; report makes tables and plots of them.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154      # run, report and the cases use these
#
# A case is a file case-NAME.sh.  It sets $title and its defaults $rounds and
# $seconds; with $brief set, the terminal gets the summary only.  It defines:
#   plan_NAME        calls `plan' for each run of a round; runs that are to be
#                    compared stand next to each other
#   measure_NAME ROUND PLANNED
#                    (optional) performs a planned run in its own way and
#                    leaves rows for the CSV in $row, or nothing.  It may add
#                    to $tmp/samples, which becomes CASE.samples.
#   rows_NAME        (in place of plan_NAME) prints rows for the CSV
#   extra_NAME       (optional) prints rows that are not measured
#   notes_NAME       prints the text below the table
#   summary_NAME     (optional) prints the text above the table
#   table_NAME       (optional) prints a table in place of the usual one
#   commands_NAME    (optional) prints the commands in place of the usual list
#   plot_NAME        (optional) prints a gnuplot script, or nothing
#   end_NAME         (optional) ends what the case has started, also after an
#                    error
# benchmarks/report calls notes, summary, table, commands and plot.  $csv,
# $medians and $samples are its files.

columns=round,client,contestant,workload,limit_mbs,mbs,pct_limit,cpu_s_per_gb
columns+=,threads,mem_above_mb,switches_per_op,lat_mean_ms,lat_p99_ms,ops,bytes
columns+=,runtime_s,server,command,connections,backend_bytes,to_90_s,flush_s

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

defined () { [ "$(type -t "$1")" = function ]; }

# Arithmetic in awk, for the report and for cases.

# Of v[1..n], which it sorts.
awk_median='
  function median (v, n,    i, j, x) {
    for (i = 2; i <= n; i++) {
      x = v[i]
      for (j = i - 1; j >= 1 && v[j] > x; j--) v[j + 1] = v[j]
      v[j + 1] = x
    }
    return n == 0 ? "" : n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
  }'

# Three significant digits, as the noise allows no more; "-" for no figure.
awk_number='
  function number (x) {
    if (x == "") return "-"
    if (x >= 99.95) return sprintf ("%.0f", x)
    if (x >= 9.995) return sprintf ("%.1f", x)
    return sprintf ("%.2f", x)
  }'

# The plan.

PLAN=()

# plan CLIENT CONTESTANT WORKLOAD LIMIT SERVER COMMAND
# LIMIT is in MB/s, and empty where there is none.  SERVER is what follows
# `nbdkit'.  COMMAND is a client of measure.sh with its arguments.
plan () {
  local IFS='|'
  [ $# = 6 ] || die "plan: $# arguments: $*"
  [[ "$*" != *[,$'\n']* ]] ||
    die "plan: no commas or newlines, the results are CSV: $*"
  PLAN+=("$*")
}

# Little's law in MB/s.
limit () { # IN_FLIGHT KIB [MS]
  awk -v n="$1" -v kib="$2" -v ms="${3:-64}" \
    'BEGIN { printf "%.2f", n * kib * 1.024 / ms }'
}

# A size, halved until it fits into free memory with 2 GiB to spare.
fits () { # GIB
  local gib=$1 free
  free=$(awk '/^MemAvailable:/ { print int ($2 / 1048576) }' /proc/meminfo)
  while [ "$gib" -gt 1 ] && [ $((gib + 2)) -gt "$free" ]; do
    gib=$((gib / 2))
  done
  [ "$gib" = "$1" ] ||
    echo "benchmarks: not enough memory for ${1}G: the device has ${gib}G" >&2
  echo "${gib}G"
}

# The device as stock nbdkit knows devices: the calling thread waits.
delaymem () { # SIZE DELAY
  echo "./delaymem.so size=$1 delay=$2 populate=true io-threads=0"
}

# asyncpool with its defaults: it drives the async hooks of the same device.  No
# BUFFERS: the number in flight follows the device.
asyncpool () { # BUFFERS SIZE DELAY [PARAMETERS]
  echo "--filter=./asyncpool.so ./delaymem.so size=$2 delay=$3" \
    "populate=true${1:+ asyncpool-buffers=$1}${4:+ $4}"
}

# asyncpool with its thread pool, as over any plugin without hooks.
asyncpool_threads () { # BUFFERS SIZE DELAY [PARAMETERS]
  echo "--filter=./asyncpool.so $(delaymem "$2" "$3")" \
    "asyncpool-buffers=$1${4:+ $4}"
}

# fio sends its only flush at the end.  asyncpool's default defers writes from
# the first flush on, so a writer needs this.
behind () { # WORKLOAD
  [[ $1 = read* ]] || echo asyncpool-write=behind
}

# Workloads are `write+flush', `read' and `read N streams'.
streams () { # WORKLOAD
  case $1 in
    *streams) echo "${1//[!0-9]/}";;
    *) echo 1;;
  esac
}

fio_job () { # RW BLOCK DEPTH [OPTIONS]
  echo "fio --rw=$1 --bs=$2 --iodepth=$3 --runtime=$seconds${4:+ $4}"
}

# Writes go round the device until the time is over.  The flush after them is
# timed, too.  Reads end at the end of the device, as a jump back to its start
# would begin a new stream.  Each stream has its own connection and part of the
# device.
fio_workload () { # WORKLOAD BLOCK DEPTH [OPTIONS OF READS]
  local n part options=""
  n=$(streams "$1")
  part=$((100 / n))
  [ "$n" = 1 ] ||
    options="--numjobs=$n --size=$part% --offset_increment=$part%"
  case $1 in
    write*) fio_job write "$2" "$3" "--time_based --end_fsync=1";;
    *) fio_job read "$2" "$3" "$options${4:+${options:+ }$4}";;
  esac
}

# Progress on stderr: one line that is written over on a terminal, else a line
# for each run.

progress_text="" progress_open=""

progress_start () { # TEXT
  progress_text=$1
  if [ -t 2 ]; then progress; else echo "$progress_text" >&2; fi
}

progress () {
  [ -t 2 ] || return 0
  progress_open=1
  printf '\r\033[K%.*s' "$((${COLUMNS:-80} - 1))" \
    "$progress_text, $((SECONDS - run_started)) s" >&2
}

progress_end () {
  [ -z "$progress_open" ] || printf '\r\033[K' >&2
  progress_open=""
}
