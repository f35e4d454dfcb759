# SPDX-License-Identifier: BSD-3-Clause
# The table of the 2017 patch.
# shellcheck shell=bash disable=SC2034,SC2154
title="The 2017 table: 64 ms per operation, requests of 128 KiB"
rounds=3
seconds=12

workloads=(write+flush read "read 2 streams" "read 4 streams")

plan_table2017 () {
  local name big
  big=$(fits 8)
  for name in "${workloads[@]}"; do plan_one_at_a_time "$name" "$big"; done
  for name in "${workloads[@]}"; do plan_deep 64 "$name" 2G; done
  for name in "${workloads[@]}"; do plan_deep 1024 "$name" "$big"; done
}

plan_one_at_a_time () { # WORKLOAD BIG
  local n job
  job=$(fio_workload "$1" 128k 1)
  plan "one at a time" "nbdkit -t 1" "$1" "$(limit "$(streams "$1")" 128)" \
    "-t 1 $(delaymem 256M 64ms)" "$job"
  for n in 64 1024; do
    plan "one at a time" "nbdkit -t $n" "$1" "$(limit $n 128)" \
      "-t $n $(delaymem 256M 64ms)" "$job"
  done
  plan "one at a time" "asyncpool 64 buffers" "$1" "$(limit 64 128)" \
    "-t 1 $(asyncpool 64 2G 64ms "$(behind "$1")")" "$job"
  plan "one at a time" "asyncpool 1024 buffers" "$1" "$(limit 1024 128)" \
    "-t 1 $(asyncpool 1024 "$2" 64ms "$(behind "$1")")" "$job"
  plan "one at a time" "nbdkit at delay 0" "$1" "" "-t 1 $(delaymem 1G 0)" \
    "$(fio_workload "$1" 128k 1 --time_based)"
}

# N requests in flight in all.  Each stream has its own connection with its
# share of depth and threads.
plan_deep () { # N WORKLOAD SIZE
  local n share job
  n=$(streams "$2")
  share=$(($1 / n))
  job=$(fio_workload "$2" 128k $share)
  [ "$1" != 64 ] || plan "$1 in flight" "nbdkit -t 1" "$2" \
    "$(limit "$n" 128)" "-t 1 $(delaymem 256M 64ms)" "$job"
  plan "$1 in flight" "nbdkit -t $1" "$2" "$(limit "$1" 128)" \
    "-t $share $(delaymem "$3" 64ms)" "$job"
  plan "$1 in flight" "asyncpool $1 buffers" "$2" "$(limit "$1" 128)" \
    "-t $share $(asyncpool "$1" "$3" 64ms)" "$job"
  plan "$1 in flight" "nbdkit at delay 0" "$2" "" "$(delaymem 1G 0)" \
    "$(fio_workload "$2" 128k $share --time_based)"
}

# MB/s, or NaN.
published () { # BUFFERS WORKLOAD
  case $1/$2 in
    1/write+flush | 1/read) echo 1.9;;
    64/write+flush | 64/read) echo 120;;
    1024/write+flush) echo 1800;;
    1024/read) echo 865;;       # 825 MiB/s
    1024/"read 2 streams") echo 1600;;
    1024/"read 4 streams") echo 1900;;
    *) echo NaN;;
  esac
}

extra_table2017 () {
  local n name mbs limit
  for n in 1 64 1024; do
    for name in "${workloads[@]}"; do
      mbs=$(published $n "$name")
      [ "$mbs" != NaN ] || continue
      limit=$(limit $n 128)
      echo "published,2017,$n buffers $name,as published,$limit,$(
        figures "$limit" "$mbs - - - - -" "- -" - - "- - -"),,"
    done
  done
}

summary_table2017 () {
  local n name one="one at a time" goal=0.97
  echo "One at a time, of the lesser of the limit and the same client at" \
    "delay 0:"
  for n in 64 1024; do
    for name in "${workloads[@]}"; do
      goal_of_best "$n buffers, $name" \
        "$(pick "$one" "asyncpool $n buffers" "$name")" \
        "$(lesser "$(limit $n 128)" \
          "$(pick "$one" "nbdkit at delay 0" "$name")")" $goal
    done
    goal=0.90
  done
  echo "Deep client, asyncpool / nbdkit -t N (0.995: the same, but for noise):"
  for n in 64 1024; do
    for name in "${workloads[@]}"; do
      goal "$n in flight, $name" "$(deep_ratio $n "$name" mbs)" ">=" 0.995 \
        "CPU/GB x $(printf %.5s "$(deep_ratio $n "$name" cpu_s_per_gb)")"
    done
  done
}

deep_ratio () { # N WORKLOAD COLUMN
  ratio "$(pick "$1 in flight" "asyncpool $1 buffers" "$2" "$3")" \
    "$(pick "$1 in flight" "nbdkit -t $1" "$2" "$3")"
}

notes_table2017 () {
  cat <<'END'
one at a time: each stream waits for its reply before it sends the next request.
There, asyncpool and nbdkit at delay 0 have -t 1, as the manual advises for
clients that write, or read one file in sequence.  Writes use
asyncpool-write=behind: the default defers writes from the client's first flush
on, and fio sends its only one at the end.  N in flight: N requests in all,
nbdkit -t N.  With S streams each has its own connection, N/S requests and
-t N/S.  write+flush: the flush is inside the time.  Reads go through the device
once, so the start of the window counts.  More than 100 % of the limit: with the
filter a deep client can have more in flight than there are buffers, -t N beside
them.
END
}

plot_table2017 () {
  local n
  gnuplot_bars 1040 470
  cat <<'END'
set multiplot layout 1,2 \
  title "A device with 64 ms per operation, 128 KiB requests" font ",16"
set key at graph 0.5,-0.23 center top maxrows 3 Left reverse samplen 1.5
set bmargin 7.5
set xrange [-0.6:3.6]
set ylabel "MB/s"
set yrange [0:*]
END
  for n in 64 1024; do plot_panel $n; done
}

plot_panel () { # N
  local name
  echo "\$data$1 << EOD"
  for name in "${workloads[@]}"; do
    echo "\"$(sed 's/ /\\n/; s/+/\\n+ /' <<<"$name")\"" \
      "$(pick "one at a time" "nbdkit -t $1" "$name")" \
      "$(pick "one at a time" "asyncpool $1 buffers" "$name")" \
      "$(pick "$1 in flight" "nbdkit -t $1" "$name")" \
      "$(pick "$1 in flight" "asyncpool $1 buffers" "$name")" \
      "$(published "$1" "$name")"
  done
  cat <<END
EOD
set title "$1 buffers (asyncpool) or threads (nbdkit -t $1)" font ",14"
set yrange [0:$(limit "$1" 128) * 1.15]
END
  plot "data$1" "-t $1, one at a time=#b0b0b0" \
    "asyncpool, one at a time=#1f6fb4" "-t $1, $1 in flight=#e0d8c0" \
    "asyncpool, $1 in flight=#8fc0e8" \
    "'' using 0:6 with points pt 7 ps 1.1 lc rgb '#c03020' \
title '2017, as published'" "$(limit_line "$(limit "$1" 128)" limit)"
}
