# Small requests, one at a time.
# shellcheck shell=bash disable=SC2034,SC2154
title="Small requests: sequential, one at a time, 64 ms per operation, 64 buffers of 128 KiB"
rounds=3
seconds=8

plan_small () {
  local name kib job
  for name in write+flush read; do
    for kib in 4 16 64 128; do
      job=$(fio_write ${kib}k 1)
      [ $name = write+flush ] || job=$(fio_read ${kib}k 1 1)
      plan "$kib KiB" "nbdkit" $name "$(limit 1 $kib)" "$(delaymem 256M 64ms)" "$job"
      plan "$kib KiB" "asyncpool 64 buffers" $name "$(limit 64 128)" \
        "$(asyncpool 64 2G 64ms "$([ $name = read ] || echo asyncpool-write=behind)")" "$job"
      [ $name = write+flush ] || job+=" --time_based"
      plan "$kib KiB" "nbdkit at delay 0" $name "" "$(delaymem 1G 0)" "$job"
    done
  done
}

summary_small () { # CSV MEDIANS
  local name kib best
  echo "asyncpool, against the lesser of its 128 KiB figure and this client at delay 0:"
  for name in write+flush read; do
    for kib in 4 16 64; do
      best=$(lesser "$(pick "$2" "128 KiB" "asyncpool 64 buffers" $name)" \
        "$(pick "$2" "$kib KiB" "nbdkit at delay 0" $name)")
      check "$kib KiB, $name, of $best MB/s" \
        "$(ratio "$(pick "$2" "$kib KiB" "asyncpool 64 buffers" $name)" "$best")" 0.90
    done
  done
}

notes_small () {
  cat <<'EOF'
limit: without the filter 1 request / 64 ms; asyncpool combines small requests, so 64 x 128 KiB /
64 ms. nbdkit at delay 0: what this client can send and receive at most. Writes use
asyncpool-write=behind; the final flush is inside the time.
EOF
}

plot_small () { # MEDIANS
  local name kib contestant
  gnuplot_bars 800 480
  echo "\$data << EOD"
  for kib in 4 16 64 128; do
    echo "\"$kib KiB\"" "$(for name in write+flush read; do
      for contestant in nbdkit "asyncpool 64 buffers" "nbdkit at delay 0"; do
        pick "$1" "$kib KiB" "$contestant" $name
      done
    done | tr '\n' ' ')"
  done
  cat <<EOF
EOD
set title "Sequential requests of 4 to 128 KiB, one at a time, 64 ms per operation" font ",16"
set logscale y
set yrange [0.03:*]
set ylabel "MB/s, log scale"
set key outside below horizontal Left reverse maxrows 4 samplen 1.5
plot \$data using 2:xtic(1) title "no filter: write+flush" lc rgb "#909090", \\
  '' using 3 title "asyncpool: write+flush" lc rgb "#1f6fb4", \\
  '' using 4 title "delay 0: write+flush" lc rgb "#e0a060", \\
  '' using 5 title "no filter: read" lc rgb "#d0d0d0", \\
  '' using 6 title "asyncpool: read" lc rgb "#8fc0e8", \\
  '' using 7 title "delay 0: read" lc rgb "#f0d8b8", \\
  $(limit 64 128) with lines dt 2 lw 2 lc rgb "#333333" title "limit of 64 buffers: $(limit 64 128) MB/s"
EOF
}
