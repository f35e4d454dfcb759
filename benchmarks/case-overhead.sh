# What the filter costs where it cannot win: no latency.
# shellcheck shell=bash disable=SC2034,SC2154
title="Cost where it cannot win: delay 0, with and without the filter"
rounds=7
seconds=2

# CELL: kib depth rw
overhead_cells () {
  local kib depth rw
  for kib in 4 128; do
    for depth in 1 16 64; do
      for rw in read write randread randwrite; do echo "$kib $depth $rw"; done
    done
  done
}

# What a cell is called in the CSV: "4 KiB depth 16" is the client, "randread" the workload.
plan_overhead () {
  local kib depth rw job
  while read -r kib depth rw; do
    job=$(fio_job "$rw" "${kib}k" "$depth" --time_based)
    case $rw in rand*) job+=" --norandommap";; *write) job+=" --end_fsync=1";; esac
    plan "$kib KiB depth $depth" nbdkit "$rw" "" "$(delaymem 1G 0)" "$job"
    plan "$kib KiB depth $depth" asyncpool "$rw" "" "$(asyncpool_threads 64 1G 0)" "$job"
    plan "$kib KiB depth $depth" "nbdkit again" "$rw" "" "$(delaymem 1G 0)" "$job"
  done <<<"$(overhead_cells)"
}

# One line per cell: client,workload,none,filter,ratio,noise. ratio: filter / mean of the two
# runs around it; noise: the lesser / the greater of these two, which should be the same.
overhead_ratios () { # CSV MEDIANS
  local kib depth rw client
  while read -r kib depth rw; do
    client="$kib KiB depth $depth"
    echo "$client,$rw,$(pick "$2" "$client" nbdkit "$rw"),$(pick "$2" "$client" asyncpool "$rw"),$(
      overhead_rounds "$1" "$client" "$rw" | cut -d' ' -f1 | median),$(
      overhead_rounds "$1" "$client" "$rw" | cut -d' ' -f2 | median)"
  done <<<"$(overhead_cells)"
}

overhead_rounds () { # CSV CLIENT WORKLOAD: a line "RATIO NOISE" for each round
  awk -F, -v client="$2" -v workload="$3" '
    $2 == client && $4 == workload { mbs[$1, $3] = $6; rounds[$1] }
    END {
      for (r in rounds) {
        a = mbs[r, "nbdkit"]; b = mbs[r, "asyncpool"]; c = mbs[r, "nbdkit again"]
        print b / ((a + c) / 2), (a < c ? a / c : c / a)
      }
    }' "$1"
}

summary_overhead () { # CSV MEDIANS
  overhead_ratios "$1" "$2" | awk -F, "$awk_number"'
    BEGIN { printf "%-18s %-10s %9s %9s %7s %7s\n", "", "", "no filter", "asyncpool", "ratio", "noise" }
    {
      printf "%-18s %-10s %9s %9s %7.3f %7.3f%s\n", $1, $2, number ($3), number ($4), $5, $6,
        ($5 < 0.95 ? "  MISSED (goal >= 0.95)" : "")
      if ($5 < 0.95) missed++
    }
    END { printf "%d of %d cells reach 0.95\n", NR - missed, NR }'
}

notes_overhead () {
  cat <<'EOF'
MB/s. Each round runs without the filter, with it, and without again. ratio: with it / the mean of
the two runs around it, median of the rounds. noise: the lesser of these two runs / the greater,
median: what two equal runs differ by on this machine. 16 threads (nbdkit's default) at every
depth, for all: without latency more threads than cores gain nothing. asyncpool with its defaults
(64 buffers, auto).
EOF
}

plot_overhead () { # MEDIANS CSV
  gnuplot_head 900 480
  echo "\$data << EOD"
  overhead_ratios "$2" "$1" | awk -F, '{ sub (" depth ", " x ", $1); print "\"" $2 " " $1 "\"", $5, $6 }'
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
  '' using 0:3 with points pt 7 ps 0.7 lc rgb "#c06000" title "noise: two equal runs", \
  1 with lines lw 1 lc rgb "#333333" notitle, \
  0.95 with lines dt 2 lw 2 lc rgb "#c03020" title "goal: 0.95"
EOF
}
