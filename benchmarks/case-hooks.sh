# Threads or async hooks: four ways to serve one device.
# shellcheck shell=bash disable=SC2034,SC2154
title="Threads or async hooks: one device, one client, four ways"
rounds=3
seconds=8

plan_hooks () {
  local big name n
  big=$(fits 12)
  for name in write+flush read; do
    for n in 64 1024; do
      plan_hooks_row "one at a time N=$n" $n 1 $name "$big"
      plan_hooks_row "$n in flight N=$n" $n $n $name "$big"
    done
    plan "one at a time N=1024" "client at delay 0" $name "" "-t 1 $(delaymem 1G 0)" \
      "$(hooks_job $name 1 --time_based)"
    plan_hooks_fast "one at a time delay 0" 1 $name
    plan_hooks_fast "64 in flight delay 0" 64 $name
  done
}

hooks_job () { # WORKLOAD DEPTH [OPTIONS OF READS]
  if [ "$1" = read ]; then fio_read 128k "$2" 1 "${3:-}"; else fio_write 128k "$2"; fi
}

# A client with one request at a time is served best by one thread of nbdkit's. The filter's threads
# see N requests at once only where nbdkit has -t N; with hooks its default is enough, and in sequence
# one thread is, as the patch of 2017 had.
plan_hooks_row () { # CLIENT N DEPTH WORKLOAD BIG
  local job size=2G write="" threads="-t 1 " hooks="-t 1 "
  job=$(hooks_job "$4" "$3")
  [ "$2" = 64 ] || size=$5
  [ "$4" = read ] || write=asyncpool-write=behind
  [ "$3" = 1 ] || threads="-t $2 " hooks=""
  plan "$1" "nbdkit -t 1" "$4" "$(limit 1 128)" "-t 1 $(delaymem 256M 64ms)" "$job"
  plan "$1" "nbdkit -t N" "$4" "$(limit "$2" 128)" "-t $2 $(delaymem "$size" 64ms)" "$job"
  plan "$1" "asyncpool on threads" "$4" "$(limit "$2" 128)" \
    "$threads$(asyncpool_threads "$2" "$size" 64ms $write)" "$job"
  plan "$1" "asyncpool on hooks" "$4" "$(limit "$2" 128)" \
    "$hooks$(asyncpool "$2" "$size" 64ms $write)" "$job"
  [ "$3" = 1 ] || plan "$1" "asyncpool on hooks -t 1" "$4" "$(limit "$2" 128)" \
    "-t 1 $(asyncpool "$2" "$size" 64ms $write)" "$job"
}

plan_hooks_fast () { # CLIENT DEPTH WORKLOAD
  local job
  job=$(fio_job "${3%+flush}" 128k "$2" --time_based)
  plan "$1" "nbdkit -t 1" "$3" "" "-t 1 $(delaymem 1G 0)" "$job"
  plan "$1" "nbdkit -t N" "$3" "" "$(delaymem 1G 0)" "$job"
  plan "$1" "asyncpool on threads" "$3" "" "$(asyncpool_threads 64 1G 0)" "$job"
  plan "$1" "asyncpool on hooks" "$3" "" "$(asyncpool 64 1G 0)" "$job"
}

at_most () { # WHAT VALUE GOAL
  awk -v what="$1" -v value="$2" -v goal="$3" 'BEGIN {
    printf "  %-44s %7.3f  goal <= %-5s  %s\n", what, value, goal,
      (value == "NaN" ? "no figure" : value + 0 <= goal + 0 ? "reached" : "MISSED") }'
}

hooks_pick () { # MEDIANS CLIENT CONTESTANT WORKLOAD COLUMN
  pick "$1" "$2" "asyncpool on $3" "$4" "$5"
}

summary_hooks () { # CSV MEDIANS
  local name one="one at a time N=1024" best how n mbs cpu
  echo "One at a time, 1024 buffers, against the lesser of 2097 MB/s and the client at delay 0:"
  for name in write+flush read; do
    best=$(lesser 2097 "$(pick "$2" "$one" "client at delay 0" $name)")
    check "hooks, $name, of $best MB/s" "$(ratio "$(hooks_pick "$2" "$one" hooks $name 5)" "$best")" 0.90
    at_most "$name, threads in the server (-t 1, and 8)" "$(hooks_pick "$2" "$one" hooks $name 8)" 9
    at_most "$name, CPU/GB, hooks / threads" "$(ratio "$(hooks_pick "$2" "$one" hooks $name 7)" \
      "$(hooks_pick "$2" "$one" threads $name 7)")" 1
    at_most "$name, switches per op, hooks / threads" "$(ratio \
      "$(hooks_pick "$2" "$one" hooks $name 10)" "$(hooks_pick "$2" "$one" threads $name 10)")" 1
  done
  echo "Deep client, against the patch of 2017 as rebuilt on a machine of this kind:"
  for how in "hooks -t 1" hooks; do
    hooks_mark "$2" "$how" 64 write+flush 130 0.46
    hooks_mark "$2" "$how" 64 read 130 0.46
    hooks_mark "$2" "$how" 1024 write+flush 1985 0.37
    hooks_mark "$2" "$how" 1024 read 1890 0.43
    at_most "$how, 1024, write p99 in ms" \
      "$(hooks_pick "$2" "1024 in flight N=1024" "$how" write+flush 12)" 91
  done
  echo "The same, each over nbdkit -t N beside it; goals: the patch over nbdkit -t N beside that:"
  for how in "hooks -t 1" hooks; do
    while read -r n name mbs cpu; do hooks_ratio "$2" "$how" "$n" "$name" "$mbs" "$cpu"; done <<'EOF'
64 write+flush 0.995 0.885
64 read 0.995 0.855
1024 write+flush 1.093 0.740
1024 read 1.011 0.878
EOF
    at_most "$how, 1024, write p99" "$(hooks_over "$2" "$how" 1024 write+flush 12)" 0.349
  done
}

hooks_mark () { # MEDIANS HOW N WORKLOAD MBS CPU
  local client="$3 in flight N=$3"
  check "$2, $3, $4, of $5 MB/s" "$(ratio "$(hooks_pick "$1" "$client" "$2" "$4" 5)" "$5")" 1
  at_most "$2, $3, $4, CPU s/GB" "$(hooks_pick "$1" "$client" "$2" "$4" 7)" "$6"
}

# No machine is as fast as another one: what is left of that when stock nbdkit is the measure.
hooks_ratio () { # MEDIANS HOW N WORKLOAD MBS CPU
  check "$2, $3, $4, MB/s" "$(hooks_over "$1" "$2" "$3" "$4" 5)" "$5"
  at_most "$2, $3, $4, CPU/GB" "$(hooks_over "$1" "$2" "$3" "$4" 7)" "$6"
}

hooks_over () { # MEDIANS HOW N WORKLOAD COLUMN
  local client="$3 in flight N=$3"
  ratio "$(hooks_pick "$1" "$client" "$2" "$4" "$5")" "$(pick "$1" "$client" "nbdkit -t N" "$4" "$5")"
}

notes_hooks () {
  cat <<'EOF'
N: nbdkit's -t, asyncpool's buffers and threads. The device: with hooks delaymem io-threads=2, its
default; else io-threads=0, where the calling thread waits. Where one request comes at a time to
asyncpool nbdkit has -t 1; where N come at once, -t N for asyncpool on threads and its default of 16
for asyncpool on hooks, unless it says -t 1; that default also at delay 0. Writes use
asyncpool-write=behind, as fio sends its only flush at the end. At delay 0 asyncpool has 64 buffers.
EOF
}

plot_hooks () { # MEDIANS
  gnuplot_bars 1100 430
  cat <<'EOF'
set multiplot layout 1,3 title "One device of 64 ms, 1024 x 128 KiB: threads or async hooks" font ",16"
set yrange [0:*]
set xtics rotate by 25 right font ",11"
set bmargin 6
set key above horizontal Left reverse samplen 1 font ",11"
EOF
  hooks_panel "$1" 5 "MB/s" "*"
  # nbdkit -t 1024 with one request at a time is far off these scales.
  hooks_panel "$1" 7 "server CPU seconds per GB" 1
  hooks_panel "$1" 10 "context switches per operation" 8
}

hooks_panel () { # MEDIANS COLUMN TITLE TOP
  local client name contestant
  echo "\$data$2 << EOD"
  for client in "one at a time N=1024" "1024 in flight N=1024"; do
    for name in write+flush read; do
      echo "\"${name%+flush}, ${client% N=*}\" $(
        for contestant in "nbdkit -t N" "asyncpool on threads" "asyncpool on hooks"; do
          pick "$1" "$client" "$contestant" $name "$2"
        done | paste -s -d ' ')"
    done
  done
  cat <<EOF
EOD
set title "$3" font ",13"
set yrange [0:$4]
plot \$data$2 using 2:xtic(1) title "-t 1024" lc rgb "#b0b0b0", \\
  '' using 3 title "on threads" lc rgb "#8fc0e8", \\
  '' using 4 title "on hooks" lc rgb "#1f6fb4"
EOF
}
