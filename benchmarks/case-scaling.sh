# SPDX-License-Identifier: BSD-3-Clause
# asyncpool's number of buffers against the limit.
# shellcheck shell=bash disable=SC2034,SC2154
title="Scaling: buffers against the limit; 128 KiB, one at a time, 64 ms"
rounds=3
seconds=8

scaling_buffers=(1 2 4 8 16 32 64 128 256 512 1024)

plan_scaling () {
  local name n size big
  big=$(fits 8)
  for name in write+flush read; do
    for n in "${scaling_buffers[@]}"; do
      size=2G
      [ "$n" -lt 128 ] || size=$big
      plan "one at a time" "$n buffers" $name "$(limit "$n" 128)" \
        "$(asyncpool "$n" "$size" 64ms "$(behind $name)")" \
        "$(fio_workload $name 128k 1)"
    done
    plan "one at a time" "nbdkit at delay 0" $name "" "$(delaymem 1G 0)" \
      "$(fio_workload $name 128k 1 --time_based)"
  done
}

notes_scaling () {
  cat <<'END'
nbdkit at delay 0: the same client on the device without latency and without the
filter.  It can send no more than that.  Writes use asyncpool-write=behind; the
final flush is inside the time.  Reads go through the device once, so the start
of the window counts.
END
}

plot_scaling () {
  local name n
  gnuplot_head 800 520
  for name in write+flush read; do
    echo "\$${name%%+*} << EOD"
    for n in "${scaling_buffers[@]}"; do
      echo "$n $(pick "one at a time" "$n buffers" $name)"
    done
    echo EOD
  done
  cat <<END
set title "One request at a time (128 KiB), 64 ms per operation" font ",16"
set logscale xy 2
set logscale y 10
set grid xtics ytics lc rgb "#dddddd" lt 1
set xrange [0.8:1300]
set yrange [1:4000]
set xtics (1,2,4,8,16,32,64,128,256,512,1024)
set xlabel "asyncpool-buffers"
set ylabel "MB/s"
set key bottom right Left reverse
one = $(limit 1 128)
write0 = $(pick "one at a time" "nbdkit at delay 0" write+flush)
read0 = $(pick "one at a time" "nbdkit at delay 0" read)
END
  cat <<'END'
plot x * one with lines dt 2 lw 2 lc rgb "#333333" \
    title "limit: buffers x 128 KiB / 64 ms", \
  write0 with lines dt 3 lw 2 lc rgb "#c06000" \
    title sprintf ("this client at delay 0, write: %.0f MB/s", write0), \
  read0 with lines dt 3 lw 2 lc rgb "#1f6fb4" \
    title sprintf ("this client at delay 0, read: %.0f MB/s", read0), \
  $write with linespoints pt 5 ps 0.8 lw 2 lc rgb "#c06000" \
    title "asyncpool, write+flush", \
  $read with linespoints pt 7 ps 0.8 lw 2 lc rgb "#1f6fb4" \
    title "asyncpool, read"
END
}
