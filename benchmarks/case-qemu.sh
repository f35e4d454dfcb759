# QEMU's NBD client: qemu-img bench with 1 and 64 requests at a time, convert in both directions.
# shellcheck shell=bash disable=SC2034,SC2154
title="QEMU as the client: qemu-img bench -d 1 and -d 64, 128 KiB, and convert; 64 ms per operation"
rounds=3
seconds=2                       # about: a server gets as many requests as it can do in that time

plan_qemu () {
  qemu_bench 1 write+flush
  qemu_bench 1 read
  qemu_bench 64 write+flush
  qemu_bench 64 read
  qemu_convert "convert" write+flush 1
  qemu_convert "convert -W" write+flush 8
  qemu_convert "convert" read 8
}

# Little's law for what is in flight: what QEMU has, 16 at most for a connection, and no more than
# nbdkit has threads.
qemu_limit () { # KIB IN_FLIGHT [THREADS]
  local n=$2
  [ "$n" -le 16 ] || n=16
  [ "$n" -le "${3:-16}" ] || n=$3
  limit "$n" "$1"
}

# QEMU flushes when it closes what it has written. asyncpool-write=auto waits for a first flush, so
# that row has one after each 16 writes; with -d 64 after 64, as QEMU refuses fewer than -d.
qemu_bench () { # DEPTH WORKLOAD
  local n limit write="" behind=""
  [ "$2" = read ] || write="-w " behind=asyncpool-write=behind
  for n in 1 16 64; do
    limit=$(qemu_limit 128 "$1" $n)
    qemu_plan_bench "$1" "nbdkit -t $n" "$2" "$limit" "$limit" "-t $n $(delaymem 1G 64ms)" "$write"
  done
  # Twice as long where it gets there: the start of a stream takes 0.3 s.
  limit=$(limit 64 128)
  qemu_plan_bench "$1" "asyncpool 64 buffers" "$2" "$limit" $(($1 > 1 ? 131 : 262)) \
    "$(asyncpool 64 1G 64ms $behind)" "$write"
  if [ "$2" != read ]; then
    n=$(($1 > 16 ? $1 : 16))
    qemu_plan_bench "$1" "asyncpool write=auto" "$2" "$limit" $((n * 2)) \
      "$(asyncpool 64 1G 64ms)" "$write--flush-interval=$n "
  fi
  qemu_plan_bench "$1" "nbdkit at delay 0" "$2" "" 1000 "$(delaymem 1G 0)" "$write"
}

# SPEED in MB/s, about what to expect: as many requests as that makes, at most the device once.
qemu_plan_bench () { # DEPTH CONTESTANT WORKLOAD LIMIT SPEED SERVER OPTIONS
  local count
  count=$(awk -v mbs="$5" -v s="$seconds" 'BEGIN { n = int (mbs * s / 0.131072)
    print (n < 24 ? 24 : n > 8192 ? 8192 : n) }')
  plan "bench -d $1" "$2" "$3" "$4" "$6" "qemu $count 128 bench -f raw $7-d $1 -s 128k -c $count URI"
}

# convert has 8 requests of up to 2 MiB in flight, but writes in order, one at a time, without -W.
# What the device tells of holes would keep QEMU from reading at all, hence noextents.
qemu_convert () { # CLIENT WORKLOAD IN_FLIGHT
  local n limit held="" command="$1 -n -f raw -O raw IMAGE URI" filter=""
  [ "$2" != read ] || command="$1 -f raw -O raw URI COPY" filter=--filter=noextents
  for n in 1 16 64; do
    limit=$(qemu_limit 2048 "$3" $n)
    qemu_plan_convert "$1" "nbdkit -t $n" "$2" "$limit" "$limit" "${filter:+$filter }-t $n" delaymem 64ms
  done
  if [ "$2" = read ]; then
    qemu_plan_convert "$1" "asyncpool 64 buffers" "$2" "$limit" "$limit" "$filter" "asyncpool 64" 64ms
  else
    # One at a time is held; more than the buffers hold is passed on.
    [ "$3" != 1 ] || held=$(limit 64 128)
    qemu_plan_convert "$1" "asyncpool 64 buffers" "$2" "${held:-$limit}" "${held:-$limit}" "" \
      "asyncpool 64" 64ms asyncpool-write=behind
    qemu_plan_convert "$1" "asyncpool write=auto" "$2" "$limit" "$limit" "" "asyncpool 64" 64ms
  fi
  qemu_plan_convert "$1" "nbdkit at delay 0" "$2" "" 1000 "$filter" delaymem 0
}

# Of two sizes, as each needs an idle server's memory for comparison. The device is as large as the
# image: convert reads all of it.
qemu_plan_convert () { # CLIENT CONTESTANT WORKLOAD LIMIT SPEED OPTIONS DEVICE DELAY [PARAMETERS]
  local mib=$((seconds * 128))
  [ "${5%.*}" -ge 100 ] || mib=$((seconds * 32))
  # shellcheck disable=SC2086
  plan "$1" "$2" "$3" "$4" "${6:+$6 }$($7 ${mib}M "$8" ${9:-})" "qemu $((mib / 2)) 2048 $command"
}

qemu_pairs=("bench -d 1,write+flush" "bench -d 1,read" "bench -d 64,write+flush" "bench -d 64,read"
  "convert,write+flush" "convert -W,write+flush" "convert,read")

qemu_best () { # MEDIANS CLIENT WORKLOAD: the fastest nbdkit -t N
  local n
  for n in 1 16 64; do pick "$1" "$2" "nbdkit -t $n" "$3"; done | sort -g | tail -n 1
}

summary_qemu () { # CSV MEDIANS
  local pair client name best
  echo "asyncpool, 64 buffers; bench -d 1: of the lesser of its limit and QEMU at delay 0; the others:"
  echo "of the best nbdkit -t N:"
  for pair in "${qemu_pairs[@]}"; do
    client=${pair%,*} name=${pair#*,}
    best=$(qemu_best "$2" "$client" "$name")
    [ "$client" != "bench -d 1" ] ||
      best=$(lesser "$(limit 64 128)" "$(pick "$2" "$client" "nbdkit at delay 0" "$name")")
    check "$client, $name, of $best MB/s" \
      "$(ratio "$(pick "$2" "$client" "asyncpool 64 buffers" "$name")" "$best")" 0.90
  done
}

notes_qemu () {
  cat <<'EOF'
MB/s: of the whole qemu-img, from start to exit; writes end with the flush that QEMU sends when it
closes the device. limit: QEMU has at most 16 requests in flight on a connection, whatever -d is;
convert 8 of 2 MiB, without -W one when it writes. The device takes 64 ms for 2 MiB, too. asyncpool:
64 x 128 KiB, or what the client itself has in flight where its requests are passed on (convert read,
convert -W, convert with write=auto). asyncpool writes with asyncpool-write=behind; write=auto is the default:
bench flushes after each 16 writes there (64 with -d 64), convert only at its end.
sw/op of convert: per 2 MiB.
EOF
}

plot_qemu () { # MEDIANS
  local pair contestant
  gnuplot_bars 1100 500
  echo "\$data << EOD"
  for pair in "${qemu_pairs[@]}"; do
    echo "\"${pair/,/\\n}\" $(for contestant in "nbdkit -t 1" "nbdkit -t 16" "nbdkit -t 64" \
      "asyncpool 64 buffers" "asyncpool write=auto" "nbdkit at delay 0"; do
        pick "$1" "${pair%,*}" "$contestant" "${pair#*,}"
      done | paste -s -d ' ')"
  done
  cat <<EOF
EOD
set title "QEMU's NBD client, 64 ms per operation" font ",16"
set logscale y
set yrange [1:*]
set ylabel "MB/s, log scale"
set bmargin 4
set key above horizontal Left reverse samplen 1.5
plot \$data using 2:xtic(1) title "nbdkit -t 1" lc rgb "#d0d0d0", \\
  '' using 3 title "-t 16" lc rgb "#a8a8a8", \\
  '' using 4 title "-t 64" lc rgb "#808080", \\
  '' using 5 title "asyncpool 64 buffers (writes: behind)" lc rgb "#1f6fb4", \\
  '' using 6 title "asyncpool write=auto" lc rgb "#8fc0e8", \\
  '' using 7 title "delay 0" lc rgb "#e0a060", \\
  $(limit 64 128) with lines dt 2 lw 2 lc rgb "#333333" title "limit of 64 buffers: $(limit 64 128) MB/s"
EOF
}
