# SPDX-License-Identifier: BSD-3-Clause
# Small requests, one at a time.
# shellcheck shell=bash disable=SC2034,SC2154
title="Small sequential requests, one at a time, 64 ms, 64 buffers of 128 KiB"
rounds=3
seconds=8

plan_small () {
  local name kib job
  for name in write+flush read; do
    for kib in 4 16 64 128; do
      job=$(fio_workload $name ${kib}k 1)
      plan "$kib KiB" "nbdkit" $name "$(limit 1 $kib)" "$(delaymem 256M 64ms)" \
        "$job"
      plan "$kib KiB" "asyncpool 64 buffers" $name "$(limit 64 128)" \
        "$(asyncpool 64 2G 64ms "$(behind $name)")" "$job"
      plan "$kib KiB" "nbdkit at delay 0" $name "" "$(delaymem 1G 0)" \
        "$(fio_workload $name ${kib}k 1 --time_based)"
    done
  done
}

summary_small () {
  local name kib
  echo "asyncpool, of the lesser of its 128 KiB figure and this client at" \
    "delay 0:"
  for name in write+flush read; do
    for kib in 4 16 64; do
      goal_of_best "$kib KiB, $name" \
        "$(pick "$kib KiB" "asyncpool 64 buffers" $name)" \
        "$(lesser "$(pick "128 KiB" "asyncpool 64 buffers" $name)" \
          "$(pick "$kib KiB" "nbdkit at delay 0" $name)")" 0.90
    done
  done
}

notes_small () {
  cat <<'END'
limit: without the filter 1 request / 64 ms.  asyncpool coalesces small
requests, so its limit is 64 x 128 KiB / 64 ms.  nbdkit at delay 0: the most
that this client can send and receive.  Writes use asyncpool-write=behind; the
final flush is inside the time.
END
}

plot_small () {
  local name kib contestant
  gnuplot_bars 800 480
  echo "\$data << EOD"
  for kib in 4 16 64 128; do
    echo "\"$kib KiB\"" "$(for name in write+flush read; do
      for contestant in nbdkit "asyncpool 64 buffers" "nbdkit at delay 0"; do
        pick "$kib KiB" "$contestant" $name
      done
    done | tr '\n' ' ')"
  done
  cat <<'END'
EOD
set title "Sequential requests of 4 to 128 KiB, one at a time, \
64 ms per operation" font ",16"
set logscale y
set yrange [0.03:*]
set ylabel "MB/s, log scale"
set key outside below horizontal Left reverse maxrows 4 samplen 1.5
END
  plot data "no filter: write+flush=#909090" "asyncpool: write+flush=#1f6fb4" \
    "delay 0: write+flush=#e0a060" "no filter: read=#d0d0d0" \
    "asyncpool: read=#8fc0e8" "delay 0: read=#f0d8b8" \
    "$(limit_line "$(limit 64 128)" "limit of 64 buffers")"
}
