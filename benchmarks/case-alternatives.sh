# SPDX-License-Identifier: BSD-3-Clause
# Other ways to serve a client that waits for each reply.
# shellcheck shell=bash disable=SC2034,SC2154
title="Alternatives for a client that sends one request at a time, 64 ms"
rounds=3
seconds=8

alternatives=("nbdkit" "nbdkit -t 64" "readahead over cache"
  "readahead over cow" "cache writeback" "asyncpool 64 buffers")

plan_alternatives () {
  local client name contestant
  for client in fio nbdcopy; do
    for name in write+flush read; do
      for contestant in "${alternatives[@]}"; do
        alternative_plan $client "$contestant" $name
      done
    done
  done
}

# A contestant gets as much data as it moves in some seconds, because time
# limits do not stop the flush of the cache filter.  The cow filter writes
# nothing to the device, so it has no row for writes.
alternative_plan () { # CLIENT CONTESTANT WORKLOAD
  local size=1G job mib=16 parameters=""
  job=$(fio_workload "$3" 128k 1)
  case $3,$2 in
    write*cow) return;;
    write*cache*)
      job="fio --rw=write --bs=128k --iodepth=1 --size=16M --end_fsync=1";;
    *,asyncpool*) mib=256 parameters=$(behind "$3");;
  esac
  [ "$1" = fio ] || size=${mib}M job="nbdcopy $mib ${3%+flush}"
  plan "$1" "$2" "$3" "$(limit 64 128)" \
    "$(alternative_server "$2" $size "$parameters")" "$job"
}

alternative_server () { # CONTESTANT SIZE [PARAMETERS]
  local device
  device=$(delaymem "$2" 64ms)${3:+ $3}
  case $1 in
    nbdkit) echo "$device";;
    "nbdkit -t 64") echo "-t 64 $device";;
    "readahead over cache") echo "--filter=readahead --filter=cache $device";;
    "readahead over cow")
      echo "--filter=readahead --filter=cow $device cow-on-cache=true";;
    "cache writeback") echo "--filter=cache $device cache=writeback";;
    asyncpool*) echo "--filter=./asyncpool.so $device asyncpool-buffers=64";;
  esac
}

notes_alternatives () {
  cat <<'END'
limit: of 64 in flight, for all.  fio sends 128 KiB and `nbdcopy --synchronous'
256 KiB, one at a time.  fio moves as much as fits into the time.  Where the
cache filter has to flush, that is 16 MiB, block after block, in 16 s.  nbdcopy
moves 16 MiB, with asyncpool 256 MiB.  write+flush: the flush is inside the
time.  readahead over cow writes nothing to the device, so it has no row for
writes.  asyncpool writes with asyncpool-write=behind; its default defers writes
from the client's first flush on.
END
}

plot_alternatives () {
  local contestant client name
  gnuplot_bars 900 480
  echo "\$data << EOD"
  for contestant in "${alternatives[@]}"; do
    echo "\"$(sed 's/ over /\\nover /; s/ write/\\nwrite/; s/ 64 b/\\n64 b/' \
      <<<"$contestant")\"" "$(for client in fio nbdcopy; do
        for name in write+flush read; do pick $client "$contestant" $name; done
      done | tr '\n' ' ')"
  done
  cat <<'END'
EOD
set title "One request at a time, 64 ms per operation" font ",16"
set logscale y
set yrange [0.5:400]
set ylabel "MB/s, log scale"
set bmargin 4
set key at graph 0.02,0.8 left top Left reverse samplen 1.5
END
  plot data "fio, 128 KiB: write+flush=#1f6fb4" "fio, 128 KiB: read=#8fc0e8" \
    "nbdcopy --synchronous, 256 KiB: write+flush=#c06000" \
    "nbdcopy --synchronous, 256 KiB: read=#f0c090" \
    "$(limit_line "$(limit 64 128)" "limit of 64 in flight")"
}
