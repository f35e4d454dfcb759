# SPDX-License-Identifier: BSD-3-Clause
# A device of which some blocks take no time.  The filter judges a device's
# speed by its operations; fast ones must not mislead it.
# shellcheck shell=bash disable=SC2034,SC2154
title="Some blocks take no time, the others 64 ms; 128 KiB, one at a time"
rounds=2
seconds=5

# One fast block in so many; 0: none.
judgement_fast=(0 64 8 4 2)

plan_judgement () {
  local n name job
  for name in write+flush read; do
    job=$(fio_workload $name 128k 1)
    for n in "${judgement_fast[@]}"; do
      plan "one at a time" "nbdkit fast=$n" $name "" \
        "$(delaymem 256M 64ms) fast=$n" "$job"
      plan "one at a time" "asyncpool fast=$n" $name "" \
        "$(asyncpool 64 2G 64ms "$(behind $name)") fast=$n" "$job"
    done
  done
}

judgement_pick () { # CONTESTANT WORKLOAD
  pick "one at a time" "$@"
}

summary_judgement () {
  local n name none
  echo "asyncpool, one fast block in N / none fast:"
  for name in write+flush read; do
    none=$(judgement_pick "asyncpool fast=0" $name)
    for n in "${judgement_fast[@]:1}"; do
      goal "$name, one in $n" \
        "$(ratio "$(judgement_pick "asyncpool fast=$n" $name)" "$none")" \
        ">=" 0.8
    done
  done
}

notes_judgement () {
  cat <<'END'
fast=N: one block of 128 KiB in N takes no time, the others take 64 ms (fast=0:
all of them).  With 64 buffers the limit is 131 MB/s where none is fast.
END
}

plot_judgement () {
  local n name contestant
  gnuplot_bars 800 480
  echo "\$data << EOD"
  for n in "${judgement_fast[@]}"; do
    [ "$n" = 0 ] && printf none || printf '"one in %s"' "$n"
    for name in write+flush read; do
      for contestant in nbdkit asyncpool; do
        printf ' %s' "$(judgement_pick "$contestant fast=$n" $name)"
      done
    done
    echo
  done
  cat <<'END'
EOD
set title "A device of which some blocks take no time; 128 KiB, one at a time" \
  font ",16"
set ylabel "MB/s"
set yrange [0:*]
set key above horizontal Left reverse samplen 1.5
END
  plot data "nbdkit, write=#c06000" "asyncpool, write=#f0c090" \
    "nbdkit, read=#1f6fb4" "asyncpool, read=#8fc0e8"
}
