# Other ways to serve a client that waits for each reply.
# shellcheck shell=bash disable=SC2034,SC2154
title="Alternatives for a client that sends one request at a time, 64 ms per operation"
rounds=3
seconds=8

alternatives=("nbdkit" "nbdkit -t 64" "readahead over cache" "readahead over cow" "cache writeback"
  "asyncpool 64 buffers")

plan_alternatives () {
  local client name
  for client in fio nbdcopy; do
    for contestant in "${alternatives[@]}"; do alternative_write $client "$contestant"; done
    for contestant in "${alternatives[@]}"; do alternative_read $client "$contestant"; done
  done
}

# alternative_server CONTESTANT SIZE [PARAMETERS]
alternative_server () {
  local device
  device=$(delaymem "$2" 64ms)${3:+ $3}
  case $1 in
    nbdkit) echo "$device";;
    "nbdkit -t 64") echo "-t 64 $device";;
    "readahead over cache") echo "--filter=readahead --filter=cache $device";;
    "readahead over cow") echo "--filter=readahead --filter=cow $device cow-on-cache=true";;
    "cache writeback") echo "--filter=cache $device cache=writeback";;
    asyncpool*) echo "--filter=./asyncpool.so $device asyncpool-buffers=64";;
  esac
}

# As much as a contestant moves in some seconds: time limits do not stop the flush of the cache
# filter. What is written to cow never reaches the device, so it does not compete.
alternative_write () { # CLIENT CONTESTANT
  local size=1G job mib=16 parameters=""
  job=$(fio_write 128k 1)
  case $2 in
    *cow) return;;
    *cache*) job="fio --rw=write --bs=128k --iodepth=1 --size=16M --end_fsync=1";;
    asyncpool*) mib=256 parameters=asyncpool-write=behind;;
  esac
  [ "$1" = fio ] || size=${mib}M job="nbdcopy $mib write"
  plan "$1" "$2" write+flush "$(limit 64 128)" "$(alternative_server "$2" $size $parameters)" "$job"
}

alternative_read () { # CLIENT CONTESTANT
  local size=1G job mib=16
  job=$(fio_read 128k 1 1)
  case $2 in asyncpool*) mib=256;; esac
  [ "$1" = fio ] || size=${mib}M job="nbdcopy $mib read"
  plan "$1" "$2" read "$(limit 64 128)" "$(alternative_server "$2" $size)" "$job"
}

notes_alternatives () {
  cat <<'EOF'
limit: of 64 in flight, for all. fio sends 128 KiB, `nbdcopy --synchronous' 256 KiB, each one at a
time. Amounts: fio as much as fits into the time, 16 MiB where the cache filter's writeback must
be flushed (block after block, 16 s); nbdcopy 16 MiB, with asyncpool 256 MiB. write+flush: the
flush is inside the time. readahead over cow does not write to the device at all, so it has no
write row. asyncpool writes with asyncpool-write=behind: the default, auto, waits for the client's
first flush.
EOF
}

plot_alternatives () { # MEDIANS
  local contestant client name
  gnuplot_bars 900 480
  echo "\$data << EOD"
  for contestant in "${alternatives[@]}"; do
    echo "\"$(echo "$contestant" | sed 's/ over /\\nover /; s/ write/\\nwrite/; s/ 64 b/\\n64 b/')\"" \
      "$(for client in fio nbdcopy; do
        for name in write+flush read; do pick "$1" $client "$contestant" $name; done
      done | tr '\n' ' ')"
  done
  cat <<EOF
EOD
set title "One request at a time, 64 ms per operation" font ",16"
set logscale y
set yrange [0.5:400]
set ylabel "MB/s, log scale"
set bmargin 4
set key at graph 0.02,0.8 left top Left reverse samplen 1.5
plot \$data using 2:xtic(1) title "fio, 128 KiB: write+flush" lc rgb "#1f6fb4", \\
  '' using 3 title "fio, 128 KiB: read" lc rgb "#8fc0e8", \\
  '' using 4 title "nbdcopy --synchronous, 256 KiB: write+flush" lc rgb "#c06000", \\
  '' using 5 title "nbdcopy --synchronous, 256 KiB: read" lc rgb "#f0c090", \\
  $(limit 64 128) with lines dt 2 lw 2 lc rgb "#333333" title "limit of 64 in flight: $(limit 64 128) MB/s"
EOF
}
