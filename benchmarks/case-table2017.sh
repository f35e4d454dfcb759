# The table of the 2017 patch.
# shellcheck shell=bash disable=SC2034,SC2154
title="The 2017 table: a device with 64 ms per operation, requests of 128 KiB"
rounds=3
seconds=12

plan_table2017 () {
  local streams big
  big=$(fits 8)
  for streams in 0 1 2 4; do plan_one_at_a_time "$streams" "$big"; done
  for streams in 0 1 2 4; do plan_deep 64 "$streams" 2G; done
  for streams in 0 1 2 4; do plan_deep 1024 "$streams" "$big"; done
}

plan_one_at_a_time () { # STREAMS BIG
  local n job name write=""
  job=$(workload_job "$1" 1)
  name=$(workload "$1")
  [ "$1" != 0 ] || write=asyncpool-write=behind
  plan "one at a time" "nbdkit -t 1" "$name" "$(limit $(($1 > 1 ? $1 : 1)) 128)" \
    "-t 1 $(delaymem 256M 64ms)" "$job"
  for n in 64 1024; do
    plan "one at a time" "nbdkit -t $n" "$name" "$(limit $n 128)" \
      "-t $n $(delaymem 256M 64ms)" "$job"
  done
  plan "one at a time" "asyncpool 64 buffers" "$name" "$(limit 64 128)" \
    "-t 1 $(asyncpool 64 2G 64ms $write)" "$job"
  plan "one at a time" "asyncpool 1024 buffers" "$name" "$(limit 1024 128)" \
    "-t 1 $(asyncpool 1024 "$2" 64ms $write)" "$job"
  plan "one at a time" "nbdkit at delay 0" "$name" "" "-t 1 $(delaymem 1G 0)" \
    "$(workload_job "$1" 1 --time_based)"
}

# N requests in flight in all: each stream has a connection with its share of depth and threads.
plan_deep () { # N STREAMS SIZE
  local share=$(($1 / ($2 > 1 ? $2 : 1))) job name
  job=$(workload_job "$2" $share)
  name=$(workload "$2")
  [ "$1" != 64 ] || plan "$1 in flight" "nbdkit -t 1" "$name" \
    "$(limit $(($2 > 1 ? $2 : 1)) 128)" "-t 1 $(delaymem 256M 64ms)" "$job"
  plan "$1 in flight" "nbdkit -t $1" "$name" "$(limit "$1" 128)" \
    "-t $share $(delaymem "$3" 64ms)" "$job"
  plan "$1 in flight" "asyncpool $1 buffers" "$name" "$(limit "$1" 128)" \
    "-t $share $(asyncpool "$1" "$3" 64ms)" "$job"
  plan "$1 in flight" "nbdkit at delay 0" "$name" "" "$(delaymem 1G 0)" \
    "$(workload_job "$2" $share --time_based)"
}

published () { # BUFFERS STREAMS: MB/s
  case $1/$2 in
    1/*) echo 1.9;;
    64/0 | 64/1) echo 120;;
    1024/0) echo 1800;;
    1024/1) echo 865;;  # 825 MiB/s
    1024/2) echo 1600;;
    1024/4) echo 1900;;
    *) echo NaN;;
  esac
}

extra_table2017 () {
  local n streams mbs
  for n in 1 64 1024; do
    for streams in 0 1 2 4; do
      mbs=$(published $n $streams)
      case $n/$streams/$mbs in
        1/[24]/* | */NaN) ;;
        *) echo "published,2017,$n buffers $(workload $streams),\
as published,$(limit $n 128),$mbs,$(awk -v a="$mbs" -v b="$(limit $n 128)" \
'BEGIN { printf "%.2f", 100 * a / b }'),,,,,,,,,,,";;
      esac
    done
  done
}

summary_table2017 () { # CSV MEDIANS
  local n streams name one="one at a time" best
  echo "One at a time, against the lesser of the limit and the same client at delay 0:"
  for n in 64 1024; do
    for streams in 0 1 2 4; do
      name=$(workload $streams)
      best=$(lesser "$(limit $n 128)" "$(pick "$2" "$one" "nbdkit at delay 0" "$name")")
      check "$n buffers, $name, of $best MB/s" \
        "$(ratio "$(pick "$2" "$one" "asyncpool $n buffers" "$name")" "$best")" \
        "$([ $n = 64 ] && echo 0.97 || echo 0.90)"
    done
  done
  echo "Deep client, asyncpool / nbdkit -t N (0.995: the same, but for noise):"
  for n in 64 1024; do
    for streams in 0 1 2 4; do summary_deep "$2" $n "$(workload $streams)"; done
  done
}

# The ratios of all figures that should not be worse than with threads alone.
summary_deep () { # MEDIANS N WORKLOAD
  local cpu
  cpu=$(ratio "$(pick "$1" "$2 in flight" "asyncpool $2 buffers" "$3" 7)" \
    "$(pick "$1" "$2 in flight" "nbdkit -t $2" "$3" 7)")
  check "$2 in flight, $3" \
    "$(ratio "$(pick "$1" "$2 in flight" "asyncpool $2 buffers" "$3")" \
      "$(pick "$1" "$2 in flight" "nbdkit -t $2" "$3")")" 0.995 "CPU/GB x ${cpu:0:5}"
}

notes_table2017 () {
  cat <<'EOF'
one at a time: each stream waits for its reply before it sends the next request. asyncpool, and nbdkit
at delay 0, have -t 1 then, as the manual advises for clients that write, or read one file in sequence.
Writes use asyncpool-write=behind: the default, auto, holds writes behind once the client has sent a flush,
and fio sends the only one at the end. N in flight: N requests in all, nbdkit -t N; with S streams
each has its own connection, N/S requests and -t N/S. write+flush: the flush is inside the time.
Reads go through the device once: the start of the window counts. More than 100 % of the limit:
with the filter a deep client can have more in flight than there are buffers, -t N beside them.
EOF
}

plot_table2017 () { # MEDIANS
  gnuplot_bars 1040 470
  cat <<'EOF'
set multiplot layout 1,2 title "A device with 64 ms per operation, 128 KiB requests" font ",16"
set key at graph 0.5,-0.23 center top maxrows 3 Left reverse samplen 1.5
set bmargin 7.5
set xrange [-0.6:3.6]
set ylabel "MB/s"
set yrange [0:*]
EOF
  plot_panel "$1" 64
  plot_panel "$1" 1024
}

plot_panel () { # MEDIANS N
  local streams name
  echo "\$data$2 << EOD"
  for streams in 0 1 2 4; do
    name=$(workload $streams)
    echo "\"$(echo "$name" | sed 's/ /\\n/; s/+/\\n+ /')\"" \
      "$(pick "$1" "one at a time" "nbdkit -t $2" "$name")" \
      "$(pick "$1" "one at a time" "asyncpool $2 buffers" "$name")" \
      "$(pick "$1" "$2 in flight" "nbdkit -t $2" "$name")" \
      "$(pick "$1" "$2 in flight" "asyncpool $2 buffers" "$name")" \
      "$(published "$2" $streams)"
  done
  cat <<EOF
EOD
set title "$2 buffers (asyncpool) or threads (nbdkit -t $2)" font ",14"
set yrange [0:$(limit "$2" 128) * 1.15]
plot \$data$2 using 2:xtic(1) title "-t $2, one at a time" lc rgb "#b0b0b0", \\
  '' using 3 title "asyncpool, one at a time" lc rgb "#1f6fb4", \\
  '' using 4 title "-t $2, $2 in flight" lc rgb "#e0d8c0", \\
  '' using 5 title "asyncpool, $2 in flight" lc rgb "#8fc0e8", \\
  '' using 0:6 with points pt 7 ps 1.1 lc rgb "#c03020" title "2017, as published", \\
  $(limit "$2" 128) with lines dt 2 lw 2 lc rgb "#333333" title "limit $(limit "$2" 128) MB/s"
EOF
}
