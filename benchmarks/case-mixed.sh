# SPDX-License-Identifier: BSD-3-Clause
# The cost of a sequential writer for a random reader on another connection.
# shellcheck shell=bash disable=SC2034,SC2154
title="A random reader alone, and beside a sequential writer, 64 ms"
rounds=3
seconds=8

plan_mixed () {
  local device contestant job client="4 KiB random reads"
  job="--rw=randread --bs=4k --iodepth=1 --runtime=$seconds --time_based"
  job+=" --norandommap --offset=50%"
  for contestant in hooks threads; do
    device=asyncpool
    [ $contestant = hooks ] || device=asyncpool_threads
    device=$($device 64 2G 64ms asyncpool-write=behind)
    plan "$client" "alone: $contestant" read "$(limit 1 4)" "$device" "fio $job"
    plan "$client" "beside: $contestant" read "$(limit 1 4)" "$device" \
      "beside $job"
  done
}

mean_ms () { # CONTESTANT
  pick "4 KiB random reads" "$1" read lat_mean_ms
}

summary_mixed () {
  local contestant
  echo "Mean latency of the reader, alone / beside the writer" \
    "(1 / 1.5 = 0.667):"
  for contestant in hooks threads; do
    goal "asyncpool, $contestant" "$(ratio "$(mean_ms "alone: $contestant")" \
      "$(mean_ms "beside: $contestant")")" ">=" 0.667
  done
}

notes_mixed () {
  cat <<'END'
The writer sends 128 KiB requests, one at a time, to the first half of the
device.  They are deferred, and all 64 buffers are in flight for it.  The reader
reads the other half.  CPU/GB and sw/op are per byte and request of the reader.
They mean nothing beside the writer.
END
}

plot_mixed () {
  local contestant
  gnuplot_bars 640 360
  echo "\$data << EOD"
  for contestant in hooks threads; do
    echo "\"$contestant\" $(mean_ms "alone: $contestant")" \
      "$(mean_ms "beside: $contestant")"
  done
  cat <<'END'
EOD
set title "Random 4 KiB reads of a 64 ms device: mean latency" font ",15"
set ylabel "ms"
set yrange [0:120]
set key top left Left reverse
END
  plot data "alone=#8fc0e8" "beside a sequential writer=#1f6fb4" \
    '96 with lines dt 2 lw 2 lc rgb "#c03020" title "goal: 1.5 x 64 ms"'
}
