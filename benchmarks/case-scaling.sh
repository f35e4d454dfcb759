# Buffers against the limit.
# shellcheck shell=bash disable=SC2034,SC2154
title="Scaling: asyncpool's buffers against the limit, one 128 KiB request at a time, 64 ms"
rounds=3
seconds=8

plan_scaling () {
  local name job n size big write
  big=$(fits 8)
  for name in write+flush read; do
    for n in 1 2 4 8 16 32 64 128 256 512 1024; do
      size=2G write=asyncpool-write=behind job=$(fio_write 128k 1)
      [ $n -lt 128 ] || size=$big
      [ $name != read ] || write="" job=$(fio_read 128k 1 1)
      plan "one at a time" "$n buffers" $name "$(limit $n 128)" \
        "$(asyncpool $n "$size" 64ms $write)" "$job"
    done
    [ $name != read ] || job+=" --time_based"
    plan "one at a time" "nbdkit at delay 0" $name "" "$(delaymem 1G 0)" "$job"
  done
}

notes_scaling () {
  cat <<'EOF'
nbdkit at delay 0: the same client on the device without latency and without the filter; more than
that it cannot send. Writes use asyncpool-write=behind; the final flush is inside the time. Reads
go through the device once: the start of the window counts.
EOF
}

plot_scaling () { # MEDIANS
  local name n
  gnuplot_head 800 520
  for name in write+flush read; do
    echo "\$${name%%+*} << EOD"
    for n in 1 2 4 8 16 32 64 128 256 512 1024; do
      echo "$n $(pick "$1" "one at a time" "$n buffers" $name)"
    done
    echo EOD
  done
  cat <<EOF
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
write0 = $(pick "$1" "one at a time" "nbdkit at delay 0" write+flush)
read0 = $(pick "$1" "one at a time" "nbdkit at delay 0" read)
plot x * $(limit 1 128) with lines dt 2 lw 2 lc rgb "#333333" title "limit: buffers x 128 KiB / 64 ms", \\
  write0 with lines dt 3 lw 2 lc rgb "#c06000" title sprintf ("this client at delay 0, write: %.0f MB/s", write0), \\
  read0 with lines dt 3 lw 2 lc rgb "#1f6fb4" title sprintf ("this client at delay 0, read: %.0f MB/s", read0), \\
  \$write with linespoints pt 5 ps 0.8 lw 2 lc rgb "#c06000" title "asyncpool, write+flush", \\
  \$read with linespoints pt 7 ps 0.8 lw 2 lc rgb "#1f6fb4" title "asyncpool, read"
EOF
}
