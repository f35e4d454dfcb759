# SPDX-License-Identifier: BSD-3-Clause
# The cost of the filter on a device without latency, where it cannot win.
# shellcheck shell=bash disable=SC2034,SC2154
title="Overhead: delay 0, with and without the filter"
rounds=5
seconds=8

overhead_contestants=(nbdkit "empty filter" asyncpool "nbdkit again")
overhead_round=""

# One client, interleave, gives all four servers their turns.  So each planned
# run stands for four rows.
plan_overhead () {
  local kib depth rw
  for kib in 4 128; do
    for depth in 1 16 64; do
      for rw in read write randread randwrite; do
        plan "$kib KiB depth $depth" "all" $rw "" "" \
          "interleave $rw $((kib * 1024)) $depth $seconds"
      done
    done
  done
}

# The servers run for a whole round.  nofilter is nbdkit's own filter that does
# nothing: its cost is the cost of any filter.
overhead_servers () { # ROUND
  local device
  [ "$1" != "$overhead_round" ] || return 0
  overhead_round=$1
  make -s VARIANT=plain build/plain/benchmarks/interleave >&2 ||
    die "benchmarks/interleave.c does not build"
  servers_stop
  device=$(delaymem 256M 0)
  overhead_arguments=("$device" "--filter=nofilter $device"
    "$(asyncpool_threads 64 256M 0)" "$device")
  for device in "${overhead_arguments[@]}"; do
    # shellcheck disable=SC2086
    server_start $device
  done
}

measure_overhead () { # ROUND PLANNED
  local client workload command i cpu=() bytes s figures
  overhead_servers "$1"
  IFS='|' read -r client _ workload _ _ command <<<"$2"
  for i in "${!overhead_contestants[@]}"; do cpu[i]=$(server_cpu "$i"); done
  # shellcheck disable=SC2086
  timeout $((seconds + 180)) build/plain/benchmarks/$command \
    "${server_uris[@]}" >"$tmp/turns" &
  client_pid=$!
  wait "$client_pid" || die "$command: exit status $?"
  client_pid="" row=""
  for i in "${!overhead_contestants[@]}"; do
    cpu[i]+=" $(server_cpu "$i")"
    read -r bytes s
    figures=$(figures - "$(awk -v b="$bytes" -v s="$s" \
      'BEGIN { print b / s / 1e6, "- - -", b, s }')" "${cpu[i]}" - - "- - -")
    row+=${row:+$'\n'}$1,$client,${overhead_contestants[i]},$workload,,$figures
    row+=,${overhead_arguments[i]},$command
  done <"$tmp/turns"
}

# A line per cell: client,workload,none,asyncpool,ratio,empty,noise, then CPU/GB
# of none, of the empty filter and of asyncpool.  none is the mean of the two
# servers without a filter.  ratio and empty are asyncpool and the empty filter
# over none.  noise is the lesser of those two servers over the greater.  All
# are medians of the rounds.
overhead_cells () {
  awk -F, -v OFS=, "$awk_median"'
    function of_rounds (value, name,    r, v) {
      for (r = 1; r <= rounds; r++) v[r] = value[cell, r, name]
      return median(v, rounds)
    }
    function none (value) {
      return (of_rounds(value, "nbdkit") + of_rounds(value, "nbdkit again")) / 2
    }
    NR > 1 {
      cell = $2 OFS $4
      if (!(cell in seen)) { seen[cell]; order[++cells] = cell }
      mbs[cell, $1, $3] = $6
      cpu[cell, $1, $3] = $8
      if ($1 + 0 > rounds) rounds = $1 + 0
    }
    END {
      for (i = 1; i <= cells; i++) {
        cell = order[i]
        for (r = 1; r <= rounds; r++) {
          a = mbs[cell, r, "nbdkit"]; b = mbs[cell, r, "nbdkit again"]
          mbs[cell, r, "ratio"] = mbs[cell, r, "asyncpool"] / ((a + b) / 2)
          mbs[cell, r, "empty"] = mbs[cell, r, "empty filter"] / ((a + b) / 2)
          mbs[cell, r, "noise"] = a < b ? a / b : b / a
        }
        print cell, none(mbs), of_rounds(mbs, "asyncpool"),
          of_rounds(mbs, "ratio"), of_rounds(mbs, "empty"),
          of_rounds(mbs, "noise"), none(cpu),
          of_rounds(cpu, "empty filter"), of_rounds(cpu, "asyncpool")
      }
    }' "$csv"
}

summary_overhead () {
  overhead_cells | awk -F, "$awk_number"'
    BEGIN {
      printf "%-18s %-10s %9s %9s %7s %7s %7s\n", "MB/s", "", "no filter",
        "asyncpool", "ratio", "empty", "noise"
    }
    {
      printf "%-18s %-10s %9s %9s %7.3f %7.3f %7.3f%s\n", $1, $2, number ($3),
        number ($4), $5, $6, $7, ($5 < 0.95 ? "  MISSED" : "")
      if ($5 < 0.95) missed++
      if ($5 < 0.95 * $6) behind++
    }
    END {
      printf "Goal: ratio >= 0.95.  %d of %d cells reach it;" \
        " %d reach 0.95 of the empty filter.\n", NR - missed, NR, NR - behind
    }'
}

table_overhead () {
  echo
  overhead_cells | awk -F, '
    BEGIN {
      printf "%-31s %11s %7s %9s\n", "CPU seconds of the server per GB",
        "no filter", "empty", "asyncpool"
    }
    { printf "%-18s %-14s %10.2f %7.2f %9.2f\n", $1, $2, $8, $9, $10 }'
}

notes_overhead () {
  cat <<'END'
Four servers have turns of 30 ms of the same client: without a filter, with
nbdkit's filter that does nothing (nofilter), with asyncpool, and without again.
The client is benchmarks/interleave.c.  The servers share the seconds that are
the last word of a command below; each round has new ones.  ratio: asyncpool /
the mean of the two without.  empty: the same of nofilter.  noise: the lesser of
the two without / the greater.  All servers have nbdkit's default of 16 threads,
as more threads than cores gain nothing without latency.  asyncpool has its
defaults, and uses its thread pool.
END
}

plot_overhead () {
  gnuplot_head 900 480
  echo "\$data << EOD"
  overhead_cells |
    awk -F, '{ sub (" depth ", " x ", $1)
      print "\"" $2 " " $1 "\"", $5, $6, $7 }'
  cat <<'END'
EOD
set title \
  "Delay 0: throughput with asyncpool / without (request size x depth)" \
  font ",16"
set ylabel "ratio (1 = no cost)"
set xrange [-0.7:23.7]
set yrange [0:*]
set xtics rotate by 50 right font ",11"
set bmargin 8
set rmargin 3
set style fill solid 1 border -1
set boxwidth 0.7
set key above horizontal Left reverse samplen 1.5
plot $data using 0:2:xtic(1) with boxes lc rgb "#8fc0e8" \
    title "asyncpool / no filter", \
  '' using 0:3 with points pt 7 ps 0.7 lc rgb "#333333" \
    title "an empty filter / no filter", \
  '' using 0:4 with points pt 6 ps 0.7 lc rgb "#c06000" \
    title "noise: two equal servers", \
  1 with lines lw 1 lc rgb "#333333" notitle, \
  0.95 with lines dt 2 lw 2 lc rgb "#c03020" title "goal: 0.95"
END
}
