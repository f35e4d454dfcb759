# SPDX-License-Identifier: BSD-3-Clause
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
      hooks_plan "one at a time N=$n" $n 1 $name "$big"
      hooks_plan "$n in flight N=$n" $n $n $name "$big"
    done
    plan "one at a time N=1024" "client at delay 0" $name "" \
      "-t 1 $(delaymem 1G 0)" "$(fio_workload $name 128k 1 --time_based)"
    hooks_plan_fast "one at a time delay 0" 1 $name
    hooks_plan_fast "64 in flight delay 0" 64 $name
  done
}

# One thread of nbdkit is best for a client that sends one request at a time.
# For N at once the filter's thread pool needs nbdkit -t N.  With hooks nbdkit's
# default is enough, and -t 1 in sequence, as the patch of 2017 had.
hooks_plan () { # CLIENT N DEPTH WORKLOAD BIG
  local job size=2G write threads="-t 1 " hooks="-t 1 " limit
  job=$(fio_workload "$4" 128k "$3")
  write=$(behind "$4")
  limit=$(limit "$2" 128)
  [ "$2" = 64 ] || size=$5
  [ "$3" = 1 ] || threads="-t $2 " hooks=""
  plan "$1" "nbdkit -t 1" "$4" "$(limit 1 128)" "-t 1 $(delaymem 256M 64ms)" \
    "$job"
  plan "$1" "nbdkit -t N" "$4" "$limit" "-t $2 $(delaymem "$size" 64ms)" "$job"
  plan "$1" "asyncpool on threads" "$4" "$limit" \
    "$threads$(asyncpool_threads "$2" "$size" 64ms "$write")" "$job"
  plan "$1" "asyncpool on hooks" "$4" "$limit" \
    "$hooks$(asyncpool "$2" "$size" 64ms "$write")" "$job"
  [ "$3" = 1 ] || plan "$1" "asyncpool on hooks -t 1" "$4" "$limit" \
    "-t 1 $(asyncpool "$2" "$size" 64ms "$write")" "$job"
}

hooks_plan_fast () { # CLIENT DEPTH WORKLOAD
  local job
  job=$(fio_job "${3%+flush}" 128k "$2" --time_based)
  plan "$1" "nbdkit -t 1" "$3" "" "-t 1 $(delaymem 1G 0)" "$job"
  plan "$1" "nbdkit -t N" "$3" "" "$(delaymem 1G 0)" "$job"
  plan "$1" "asyncpool on threads" "$3" "" "$(asyncpool_threads 64 1G 0)" "$job"
  plan "$1" "asyncpool on hooks" "$3" "" "$(asyncpool 64 1G 0)" "$job"
}

summary_hooks () {
  local name one="one at a time N=1024" how n mbs cpu patch_mbs patch_cpu
  echo "One at a time, 1024 buffers, of the lesser of 2097 MB/s and the" \
    "client at delay 0:"
  for name in write+flush read; do
    goal_of_best "hooks, $name" "$(hooks_pick "$one" hooks $name mbs)" \
      "$(lesser 2097 "$(pick "$one" "client at delay 0" $name)")" 0.90
    goal "$name, threads in the server (-t 1, and 8)" \
      "$(hooks_pick "$one" hooks $name threads)" "<=" 9
    goal "$name, CPU/GB, hooks / threads" \
      "$(hooks_over_threads $name cpu_s_per_gb)" "<=" 1
    goal "$name, switches per op, hooks / threads" \
      "$(hooks_over_threads $name switches_per_op)" "<=" 1
  done
  echo "Deep client, against the patch of 2017 on a machine of this kind:"
  for how in "hooks -t 1" hooks; do
    hooks_patch | while read -r n name patch_mbs patch_cpu mbs cpu; do
      goal_of_best "$how, $n, $name" \
        "$(hooks_pick "$n in flight N=$n" "$how" "$name" mbs)" "$patch_mbs" 1
      goal "$how, $n, $name, CPU s/GB" \
        "$(hooks_pick "$n in flight N=$n" "$how" "$name" cpu_s_per_gb)" \
        "<=" "$patch_cpu"
    done
    goal "$how, 1024, write p99 in ms" \
      "$(hooks_pick "1024 in flight N=1024" "$how" write+flush lat_p99_ms)" \
      "<=" 91
  done
  # One machine is not as fast as another; stock nbdkit is the measure here.
  echo "The same, each over nbdkit -t N on the same machine:"
  for how in "hooks -t 1" hooks; do
    hooks_patch | while read -r n name patch_mbs patch_cpu mbs cpu; do
      goal "$how, $n, $name, MB/s" "$(hooks_over "$how" "$n" "$name" mbs)" \
        ">=" "$mbs"
      goal "$how, $n, $name, CPU/GB" \
        "$(hooks_over "$how" "$n" "$name" cpu_s_per_gb)" "<=" "$cpu"
    done
    goal "$how, 1024, write p99" \
      "$(hooks_over "$how" 1024 write+flush lat_p99_ms)" "<=" 0.349
  done
}

# The patch: MB/s, CPU s/GB, and both over nbdkit -t N beside it.
hooks_patch () {
  cat <<'END'
64 write+flush 130 0.46 0.995 0.885
64 read 130 0.46 0.995 0.855
1024 write+flush 1985 0.37 1.093 0.740
1024 read 1890 0.43 1.011 0.878
END
}

hooks_pick () { # CLIENT hooks|threads... WORKLOAD COLUMN
  pick "$1" "asyncpool on $2" "$3" "$4"
}

hooks_over_threads () { # WORKLOAD COLUMN
  ratio "$(hooks_pick "one at a time N=1024" hooks "$1" "$2")" \
    "$(hooks_pick "one at a time N=1024" threads "$1" "$2")"
}

hooks_over () { # HOW N WORKLOAD COLUMN
  ratio "$(hooks_pick "$2 in flight N=$2" "$1" "$3" "$4")" \
    "$(pick "$2 in flight N=$2" "nbdkit -t N" "$3" "$4")"
}

notes_hooks () {
  cat <<'END'
N: nbdkit's -t, asyncpool's buffers and threads.  The device: with hooks
delaymem io-threads=2, its default; else io-threads=0, where the calling thread
waits.  nbdkit in front of asyncpool has -t 1 where one request comes at a time.
Where N come at once it has -t N for asyncpool on threads, and its default of 16
for asyncpool on hooks, unless the row says -t 1.  At delay 0 it has its default
too, and asyncpool has 64 buffers.  Writes use asyncpool-write=behind, as fio
sends its only flush at the end.
END
}

plot_hooks () {
  gnuplot_bars 1100 430
  cat <<'END'
set multiplot layout 1,3 \
  title "One device of 64 ms, 1024 x 128 KiB: threads or async hooks" \
  font ",16"
set yrange [0:*]
set xtics rotate by 25 right font ",11"
set bmargin 6
set key above horizontal Left reverse samplen 1 font ",11"
END
  hooks_panel mbs "MB/s" "*"
  # nbdkit -t 1024 with one request at a time is far off these scales.
  hooks_panel cpu_s_per_gb "server CPU seconds per GB" 1
  hooks_panel switches_per_op "context switches per operation" 8
}

hooks_panel () { # COLUMN TITLE TOP
  local client name contestant
  echo "\$$1 << EOD"
  for client in "one at a time N=1024" "1024 in flight N=1024"; do
    for name in write+flush read; do
      echo "\"${name%+flush}, ${client% N=*}\" $(
        for contestant in "nbdkit -t N" "asyncpool on threads" \
          "asyncpool on hooks"; do
          pick "$client" "$contestant" $name "$1"
        done | paste -s -d ' ')"
    done
  done
  cat <<END
EOD
set title "$2" font ",13"
set yrange [0:$3]
END
  plot "$1" "-t 1024=#b0b0b0" "on threads=#8fc0e8" "on hooks=#1f6fb4"
}
