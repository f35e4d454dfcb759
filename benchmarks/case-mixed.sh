# A random reader beside a sequential writer: what the writer costs the reader.
# shellcheck shell=bash disable=SC2034,SC2154
title="A random reader alone, and beside a sequential writer on another connection, 64 ms"
rounds=3
seconds=8

plan_mixed () {
  local server contestant job
  job="--rw=randread --bs=4k --iodepth=1 --runtime=$seconds --time_based --norandommap --offset=50%"
  for contestant in hooks threads; do
    server=$(asyncpool 64 2G 64ms asyncpool-write=behind)
    [ $contestant = hooks ] || server=$(asyncpool_threads 64 2G 64ms asyncpool-write=behind)
    plan "4 KiB random reads" "alone: $contestant" read "$(limit 1 4)" "$server" "fio $job"
    plan "4 KiB random reads" "beside: $contestant" read "$(limit 1 4)" "$server" "beside $job"
  done
}

mean_ms () { # MEDIANS CONTESTANT
  pick "$1" "4 KiB random reads" "$2" read 11
}

summary_mixed () { # CSV MEDIANS
  local contestant
  echo "Mean latency of the reader, alone / beside the writer (1 / 1.5 = 0.667):"
  for contestant in hooks threads; do
    check "asyncpool, $contestant" \
      "$(ratio "$(mean_ms "$2" "alone: $contestant")" "$(mean_ms "$2" "beside: $contestant")")" 0.667
  done
}

notes_mixed () {
  cat <<'EOF'
The writer uses 128 KiB requests, one at a time, write-behind, in the first half of the device; all
64 buffers are in flight on its behalf. The reader reads the other half. CPU/GB and sw/op are per
byte and request of the reader and mean nothing beside the writer.
EOF
}

plot_mixed () { # MEDIANS
  local contestant
  gnuplot_bars 640 360
  echo "\$data << EOD"
  for contestant in hooks threads; do
    echo "\"$contestant\" $(mean_ms "$1" "alone: $contestant") $(mean_ms "$1" "beside: $contestant")"
  done
  cat <<'EOF'
EOD
set title "Random 4 KiB reads of a 64 ms device: mean latency" font ",15"
set ylabel "ms"
set yrange [0:120]
set key top left Left reverse
plot $data using 2:xtic(1) title "alone" lc rgb "#8fc0e8", \
  '' using 3 title "beside a sequential writer" lc rgb "#1f6fb4", \
  96 with lines dt 2 lw 2 lc rgb "#c03020" title "goal: 1.5 x 64 ms"
EOF
}
