# Devices that are fast here and there.
# shellcheck shell=bash disable=SC2034,SC2154
title="Judgement: a device with fast blocks, one request of 128 KiB at a time, 64 ms"
rounds=2
seconds=5

# One fast block in so many; 0: none.
judgement_fast=(0 64 8 4 2)

plan_judgement () {
  local n name job write
  for name in write+flush read; do
    job=$(fio_write 128k 1) write=asyncpool-write=behind
    [ $name != read ] || job=$(fio_read 128k 1 1) write=""
    for n in "${judgement_fast[@]}"; do
      plan "one at a time" "nbdkit fast=$n" $name "" "$(delaymem 256M 64ms) fast=$n" "$job"
      plan "one at a time" "asyncpool fast=$n" $name "" \
        "$(asyncpool 64 2G 64ms "$write") fast=$n" "$job"
    done
  done
}

# judgement_pick MEDIANS CONTESTANT NAME
judgement_pick () { pick "$1" "one at a time" "$2" "$3"; }

summary_judgement () { # CSV MEDIANS
  local n name
  echo "asyncpool, one fast block in N / none fast:"
  for name in write+flush read; do
    for n in "${judgement_fast[@]:1}"; do
      check "$name, one in $n" "$(ratio "$(judgement_pick "$2" "asyncpool fast=$n" $name)" \
        "$(judgement_pick "$2" "asyncpool fast=0" $name)")" 0.8
    done
  done
}

notes_judgement () {
  cat <<'EOF'
fast=N: one block of 128 KiB in N takes no time, the others 64 ms (fast=0: all of them). With 64 buffers
the limit is 131 MB/s where none is fast.
EOF
}

plot_judgement () { # MEDIANS
  local n name c
  gnuplot_head 800 480
  echo "\$data << EOD"
  for n in "${judgement_fast[@]}"; do
    [ "$n" = 0 ] && printf none || printf '"one in %s"' "$n"
    for name in write+flush read; do
      for c in nbdkit asyncpool; do
        printf ' %s' "$(judgement_pick "$1" "$c fast=$n" $name)"
      done
    done
    echo
  done
  cat <<'EOF'
EOD
set title "A device of which some blocks take no time, one request of 128 KiB at a time" font ",16"
set ylabel "MB/s"
set yrange [0:*]
set style data histograms
set style histogram clustered gap 1
set style fill solid 1 border -1
set key above horizontal Left reverse samplen 1.5
plot $data using 2:xtic(1) title "nbdkit, write" lc rgb "#c06000", \
  '' using 3 title "asyncpool, write" lc rgb "#f0c090", \
  '' using 4 title "nbdkit, read" lc rgb "#1f6fb4", \
  '' using 5 title "asyncpool, read" lc rgb "#8fc0e8"
EOF
}
