# What the filter costs where it cannot win: no latency.
# shellcheck shell=bash disable=SC2034,SC2154
title="Cost where it cannot win: delay 0, with and without the filter"
rounds=5
seconds=8

overhead_contestants=(nbdkit "empty filter" asyncpool "nbdkit again")

# CELL: kib depth rw
overhead_cells () {
  local kib depth rw
  for kib in 4 128; do
    for depth in 1 16 64; do
      for rw in read write randread randwrite; do echo "$kib $depth $rw"; done
    done
  done
}

# All servers run for a whole round, as the client needs them side by side. nofilter is nbdkit's own
# filter that does nothing: what it costs is what any filter costs.
rows_overhead () {
  local round kib depth rw done=0 all
  make -s VARIANT=plain build/plain/benchmarks/interleave >&2 || die "benchmarks/interleave.c does not build"
  all=$((rounds * $(overhead_cells | wc -l)))
  case_started=$SECONDS
  for ((round = 1; round <= rounds; round++)); do
    servers_start "$(delaymem 256M 0)" "--filter=nofilter $(delaymem 256M 0)" \
      "$(asyncpool_threads 64 256M 0)" "$(delaymem 256M 0)"
    while read -r kib depth rw; do
      run_started=$SECONDS
      progress_start "overhead: round $round/$rounds, $kib KiB depth $depth $rw,\
 $(eta $done $((all - done))) left"
      overhead_cell "$round" "$kib" "$depth" "$rw"
      done=$((done + 1))
    done <<<"$(overhead_cells)"
    servers_stop
  done
  progress_end
}

# What a cell is called in the CSV: "4 KiB depth 16" is the client, "randread" the workload.
overhead_cell () { # ROUND KIB DEPTH RW
  local i cpu=() server command="interleave $4 $(($2 * 1024)) $3 $seconds"
  for i in "${!overhead_contestants[@]}"; do server_select $i; cpu[i]=$(server_cpu); done
  # shellcheck disable=SC2086
  timeout $((seconds + 180)) build/plain/benchmarks/$command "${server_uris[@]}" >"$tmp/turns" &
  client_pid=$!
  wait "$client_pid" || die "$command: exit status $?"
  client_pid=""
  for i in "${!overhead_contestants[@]}"; do
    server_select $i
    cpu[i]+=" $(server_cpu)"
    server=${server_arguments[i]}
    awk -v line=$((i + 1)) -v cpu="${cpu[i]}" -v OFS=, \
      -v start="$1,$2 KiB depth $3,${overhead_contestants[i]},$4," -v end="$server,$command" '
      NR == line {
        split (cpu, c, " ")
        print start, sprintf ("%.3f", $1 / $2 / 1e6), "", sprintf ("%.4f", (c[2] - c[1]) * 1e9 / $1),
          "", "", "", "", "", "", $1, $2, end
        found = 1
      }
      END { exit !found }' "$tmp/turns" || die "no result of $command"
  done
}

# One line per cell: client,workload,none,asyncpool,ratio,empty,noise. ratio, empty: asyncpool and the
# empty filter / the mean of the two without; noise: the lesser of these two / the greater.
overhead_ratios () { # CSV MEDIANS
  local kib depth rw client n
  while read -r kib depth rw; do
    client="$kib KiB depth $depth"
    echo "$client,$rw,$(mean "$(pick "$2" "$client" nbdkit "$rw")" \
      "$(pick "$2" "$client" "nbdkit again" "$rw")"),$(pick "$2" "$client" asyncpool "$rw"),$(
      for n in 1 2 3; do overhead_rounds "$1" "$client" "$rw" | cut -d' ' -f$n | median; done | paste -sd,)"
  done <<<"$(overhead_cells)"
}

mean () { awk -v a="$1" -v b="$2" 'BEGIN { print (a + b) / 2 }'; }

overhead_rounds () { # CSV CLIENT WORKLOAD: a line "RATIO EMPTY NOISE" for each round
  awk -F, -v client="$2" -v workload="$3" '
    $2 == client && $4 == workload { mbs[$1, $3] = $6; rounds[$1] }
    END {
      for (r in rounds) {
        a = mbs[r, "nbdkit"]; c = mbs[r, "nbdkit again"]
        print mbs[r, "asyncpool"] / ((a + c) / 2), mbs[r, "empty filter"] / ((a + c) / 2),
          (a < c ? a / c : c / a)
      }
    }' "$1"
}

summary_overhead () { # CSV MEDIANS
  overhead_ratios "$1" "$2" | awk -F, "$awk_number"'
    BEGIN {
      printf "%-18s %-10s %9s %9s %7s %7s %7s\n", "MB/s", "", "no filter", "asyncpool", "ratio", "empty", "noise"
    }
    {
      printf "%-18s %-10s %9s %9s %7.3f %7.3f %7.3f%s\n", $1, $2, number ($3), number ($4), $5, $6, $7,
        ($5 < 0.95 ? "  MISSED (goal >= 0.95)" : "")
      if ($5 < 0.95) missed++
      if ($5 < 0.95 * $6) behind++
    }
    END {
      printf "%d of %d cells reach 0.95 of no filter, %d 0.95 of the empty filter\n",
        NR - missed, NR, NR - behind
    }'
}

table_overhead () { # MEDIANS
  local kib depth rw client
  echo
  echo "CPU seconds of the server per GB   no filter   empty asyncpool"
  while read -r kib depth rw; do
    client="$kib KiB depth $depth"
    printf '%-18s %-14s %10.2f %7.2f %9.2f\n' "$client" "$rw" "$(
      mean "$(pick "$1" "$client" nbdkit "$rw" 7)" "$(pick "$1" "$client" "nbdkit again" "$rw" 7)")" \
      "$(pick "$1" "$client" "empty filter" "$rw" 7)" "$(pick "$1" "$client" asyncpool "$rw" 7)"
  done <<<"$(overhead_cells)"
}

notes_overhead () {
  cat <<'EOF'
MB/s. Four servers, without a filter, with nbdkit's filter that does nothing (nofilter), with
asyncpool, and without again, have turns of 30 ms of the same client (benchmarks/interleave.c, on libnbd:
fio takes longer to start than this machine stays the same). They share the seconds that are the last
word of a command below; each round has new servers. ratio: asyncpool / the mean of the two without,
median of the rounds. empty: the same of nofilter. noise: the lesser of the two without / the greater,
median: what equal servers differ by. 16 threads (nbdkit's default) at every depth, for all: without
latency more threads than cores gain nothing. asyncpool with its defaults (64 buffers, auto), on its
thread pool.
EOF
}

plot_overhead () { # MEDIANS CSV
  gnuplot_head 900 480
  echo "\$data << EOD"
  overhead_ratios "$2" "$1" | awk -F, '{ sub (" depth ", " x ", $1); print "\"" $2 " " $1 "\"", $5, $6, $7 }'
  cat <<'EOF'
EOD
set title "Delay 0: throughput with asyncpool / without (request size x depth)" font ",16"
set ylabel "ratio (1 = no cost)"
set xrange [-0.7:23.7]
set yrange [0:*]
set xtics rotate by 50 right font ",11"
set bmargin 8
set rmargin 3
set style fill solid 1 border -1
set boxwidth 0.7
set key above horizontal Left reverse samplen 1.5
plot $data using 0:2:xtic(1) with boxes lc rgb "#8fc0e8" title "asyncpool / no filter", \
  '' using 0:3 with points pt 7 ps 0.7 lc rgb "#333333" title "an empty filter / no filter", \
  '' using 0:4 with points pt 6 ps 0.7 lc rgb "#c06000" title "noise: two equal servers", \
  1 with lines lw 1 lc rgb "#333333" notitle, \
  0.95 with lines dt 2 lw 2 lc rgb "#c03020" title "goal: 0.95"
EOF
}
