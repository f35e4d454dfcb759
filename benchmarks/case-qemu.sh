# SPDX-License-Identifier: BSD-3-Clause
# QEMU's NBD client: qemu-img bench with 1 and 64 requests at a time, and
# convert in both directions.
# shellcheck shell=bash disable=SC2034,SC2154
title="QEMU as the client: qemu-img bench (128 KiB) and convert; 64 ms"
rounds=3
seconds=2                       # about; see qemu_count

plan_qemu () {
  qemu_bench 1 write+flush
  qemu_bench 1 read
  qemu_bench 64 write+flush
  qemu_bench 64 read
  qemu_convert "convert" write+flush 1
  qemu_convert "convert -W" write+flush 8
  qemu_convert "convert" read 8
}

# In flight is what QEMU has, at most 16 for a connection, and no more than
# nbdkit has threads.
qemu_limit () { # KIB IN_FLIGHT [THREADS]
  local n=$2
  [ "$n" -le 16 ] || n=16
  [ "$n" -le "${3:-16}" ] || n=$3
  limit "$n" "$1"
}

# QEMU flushes when it closes the device.  asyncpool-write=auto waits for a
# first flush, so QEMU flushes after each 16 writes in that row.  With -d 64 it
# refuses less than 64.
qemu_bench () { # DEPTH WORKLOAD
  local n limit write=""
  [ "$2" = read ] || write="-w "
  for n in 1 16 64; do
    limit=$(qemu_limit 128 "$1" $n)
    qemu_plan_bench "$1" "nbdkit -t $n" "$2" "$limit" "$limit" \
      "-t $n $(delaymem 1G 64ms)" "$write"
  done
  # One at a time lasts twice as long, as the start of a stream takes 0.3 s.
  limit=$(limit 64 128)
  qemu_plan_bench "$1" "asyncpool 64 buffers" "$2" "$limit" \
    $(($1 > 1 ? 131 : 262)) "$(asyncpool 64 1G 64ms "$(behind "$2")")" "$write"
  if [ "$2" != read ]; then
    n=$(($1 > 16 ? $1 : 16))
    qemu_plan_bench "$1" "asyncpool write=auto" "$2" "$limit" $((n * 2)) \
      "$(asyncpool 64 1G 64ms)" "$write--flush-interval=$n "
  fi
  qemu_plan_bench "$1" "nbdkit at delay 0" "$2" "" 1000 "$(delaymem 1G 0)" \
    "$write"
}

# The device at most once.
qemu_plan_bench () { # DEPTH CONTESTANT WORKLOAD LIMIT MBS SERVER OPTIONS
  local count
  count=$(qemu_count "$5")
  plan "bench -d $1" "$2" "$3" "$4" "$6" \
    "qemu $count 128 bench -f raw $7-d $1 -s 128k -c $count URI"
}

# As many requests as a server of about that speed does in a run.
qemu_count () { # MBS
  awk -v mbs="$1" -v s="$seconds" 'BEGIN { n = int (mbs * s / 0.131072)
    print (n < 24 ? 24 : n > 8192 ? 8192 : n) }'
}

# convert has 8 requests of up to 2 MiB in flight.  Without -W it writes in
# order, one at a time.  With extents QEMU would not read holes at all, hence
# noextents.
qemu_convert () { # CLIENT WORKLOAD IN_FLIGHT
  local n limit held command="$1 -n -f raw -O raw IMAGE URI" filter=""
  if [ "$2" = read ]; then
    command="$1 -f raw -O raw URI COPY" filter="--filter=noextents "
  fi
  for n in 1 16 64; do
    limit=$(qemu_limit 2048 "$3" $n)
    qemu_plan_convert "$1" "nbdkit -t $n" "$2" "$limit" "$limit" \
      "$filter-t $n " delaymem 64ms
  done
  # asyncpool defers one write at a time.  It passes on more than its buffers
  # hold.
  held=$limit
  [ "$3" != 1 ] || held=$(limit 64 128)
  qemu_plan_convert "$1" "asyncpool 64 buffers" "$2" "$held" "$held" \
    "$filter" "asyncpool 64" 64ms "$(behind "$2")"
  [ "$2" = read ] || qemu_plan_convert "$1" "asyncpool write=auto" "$2" \
    "$limit" "$limit" "" "asyncpool 64" 64ms
  qemu_plan_convert "$1" "nbdkit at delay 0" "$2" "" 1000 "$filter" delaymem 0
}

# The device is as large as the image, as convert reads all of it.  There are
# two sizes, as an idle server is measured for each.
qemu_plan_convert () { # CLIENT CONTESTANT WORKLOAD LIMIT MBS
  # and OPTIONS DEVICE DELAY [PARAMETERS]
  local mib=$((seconds * 128))
  [ "${5%.*}" -ge 100 ] || mib=$((seconds * 32))
  # shellcheck disable=SC2086
  plan "$1" "$2" "$3" "$4" "$6$($7 ${mib}M "$8" ${9:-})" \
    "qemu $((mib / 2)) 2048 $command"
}

qemu_pairs=("bench -d 1,write+flush" "bench -d 1,read" "bench -d 64,write+flush"
  "bench -d 64,read" "convert,write+flush" "convert -W,write+flush"
  "convert,read")

qemu_best () { # CLIENT WORKLOAD: the fastest nbdkit -t N
  local n
  for n in 1 16 64; do pick "$1" "nbdkit -t $n" "$2"; done | sort -g | tail -n 1
}

summary_qemu () {
  local pair client name best
  echo "asyncpool, 64 buffers.  bench -d 1: of the lesser of its limit and" \
    "QEMU at"
  echo "delay 0.  The others: of the best nbdkit -t N."
  for pair in "${qemu_pairs[@]}"; do
    client=${pair%,*} name=${pair#*,}
    best=$(qemu_best "$client" "$name")
    [ "$client" != "bench -d 1" ] || best=$(lesser "$(limit 64 128)" \
      "$(pick "$client" "nbdkit at delay 0" "$name")")
    goal_of_best "$client, $name" \
      "$(pick "$client" "asyncpool 64 buffers" "$name")" "$best" 0.90
  done
}

notes_qemu () {
  cat <<'END'
MB/s: of the whole qemu-img, from start to exit.  Writes end with the flush that
QEMU sends when it closes the device.  limit: QEMU has at most 16 requests in
flight on a connection, whatever -d is.  convert has 8 of 2 MiB; without -W one
when it writes.  The device takes 64 ms for 2 MiB, too.  asyncpool: 64 x 128
KiB, or what the client has in flight where the filter passes requests on
(convert read, convert -W, convert with write=auto).  asyncpool writes with
asyncpool-write=behind; write=auto is the default.  With write=auto, bench
flushes after each 16 writes (64 with -d 64), convert only at its end.  sw/op of
convert: per 2 MiB.
END
}

plot_qemu () {
  local pair contestant
  gnuplot_bars 1100 500
  echo "\$data << EOD"
  for pair in "${qemu_pairs[@]}"; do
    echo "\"${pair/,/\\n}\" $(for contestant in "nbdkit -t 1" "nbdkit -t 16" \
      "nbdkit -t 64" "asyncpool 64 buffers" "asyncpool write=auto" \
      "nbdkit at delay 0"; do
        pick "${pair%,*}" "$contestant" "${pair#*,}"
      done | paste -s -d ' ')"
  done
  cat <<'END'
EOD
set title "QEMU's NBD client, 64 ms per operation" font ",16"
set logscale y
set yrange [1:*]
set ylabel "MB/s, log scale"
set bmargin 4
set key above horizontal Left reverse samplen 1.5
END
  plot data "nbdkit -t 1=#d0d0d0" "-t 16=#a8a8a8" "-t 64=#808080" \
    "asyncpool 64 buffers (writes: behind)=#1f6fb4" \
    "asyncpool write=auto=#8fc0e8" "delay 0=#e0a060" \
    "$(limit_line "$(limit 64 128)" "limit of 64 buffers")"
}
