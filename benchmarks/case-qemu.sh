# QEMU's block layer as the client: qemu-img bench and convert, with and without asyncpool.
# shellcheck shell=bash disable=SC2034,SC2154
title="QEMU as the client: qemu-img bench -d 1 and -d 64, convert in both directions; 64 ms"
rounds=3
seconds=5                       # about: so much is moved that it takes this long without the filter

plan_qemu () {
  local depth name
  for name in write+flush read; do
    for depth in 1 64; do
      qemu_rows "bench -d $depth" $name "bench $depth $name" "" 1G
    done
  done
  qemu_rows "convert to" write+flush "convert to" "asyncpool-write=behind" 512M
  qemu_rows "convert from" read "convert from" "" 512M
}

qemu_rows () { # CLIENT WORKLOAD COMMAND PARAMETERS DEVICE
  local n few=512
  case $1 in
    "bench -d 1") few=$((seconds * 2));;
    "bench -d 64") few=$((seconds * 32));;
  esac
  # A device that has never been written is a hole, and would not be read.
  for n in 16 64; do
    plan "$1" "nbdkit -t $n" "$2" "$(qemu_limit "$1")" "-t $n --filter=noextents $(delaymem "$5" 64ms)" \
      "$3 $few"
  done
  for n in 64 1024; do
    plan "$1" "asyncpool $n buffers" "$2" "$(qemu_limit "$1" $n)" \
      "--filter=noextents $(asyncpool $n "$5" 64ms "$4")" "$3 512"
  done
  plan "$1" "no latency no filter" "$2" "" "--filter=noextents $(delaymem "$5" 0)" "$3 512"
}

# In flight: 1, QEMU's 16 for each NBD connection, or the buffers. convert sends up to 2 MiB at once,
# and the device takes as long for these as for any other.
qemu_limit () { # CLIENT [BUFFERS]
  case $1 in
    "bench -d 1") limit "${2:-1}" 128;;
    "bench -d 64") limit "${2:-16}" 128;;
  esac
}

# The command as a whole, with its start: what someone who waits for it sees.
qemu_client () { # MIB COMMAND...
  local mib=$1 from
  shift
  {
    from=${EPOCHREALTIME/[.,]/}
    timeout 180 "$@"
    echo $((${EPOCHREALTIME/[.,]/} - from)) >"$tmp/us"
  } >"$tmp/client.log" 2>&1 &
  client_pid=$!
  client_wait
  result=$(awk -v mib="$mib" -v us="$(cat "$tmp/us")" 'BEGIN { b = mib * 1048576
    print b / us, "-", "-", b / 131072, b, us / 1e6 }')
}

# Four flushes in a run, as a guest would send them: the first shows asyncpool that this client knows
# of write caches.
client_bench () { # DEPTH WORKLOAD MIB
  local options=()
  [ "$2" = read ] || options=(-w "--flush-interval=$(($3 * 2))")
  qemu_client "$3" qemu-img bench -f raw -t none -c $(($3 * 8)) -s 128k -d "$1" "${options[@]}" \
    "nbd+unix:///?socket=$tmp/socket"
}

# convert does not flush unless it is told to.
client_convert () { # to|from MIB
  local uri="nbd+unix:///?socket=$tmp/socket"
  if [ "$1" = from ]; then
    qemu_client "$2" qemu-img convert -f raw -O raw "$uri" "$tmp/copy"
  else
    [ -e "$tmp/image" ] || head -c "$2M" /dev/urandom >"$tmp/image"
    qemu_client "$2" qemu-img convert -n -f raw -O raw -t writeback "$tmp/image" "$uri"
  fi
}

summary_qemu () { # CSV MEDIANS
  local client name
  echo "asyncpool, 64 buffers, against the best nbdkit -t N:"
  for client in "bench -d 1" "bench -d 64" "convert to" "convert from"; do
    for name in write+flush read; do
      [ "$(pick "$2" "$client" "nbdkit -t 64" $name)" != NaN ] || continue
      check "$client, $name" "$(ratio "$(pick "$2" "$client" "asyncpool 64 buffers" $name)" \
        "$(awk -F, -v client="$client" -v name=$name '$1 == client && $2 ~ /^nbdkit/ && $3 == name &&
          $5 > best { best = $5 } END { print best }' "$2")")" 0.95
    done
  done
}

notes_qemu () {
  cat <<'EOF'
MB/s: of the whole command, with its start. bench: 128 KiB requests; writes with four flushes in a
run. convert: 8 coroutines with up to 2 MiB each, 512 MiB; to the device with -t writeback, as it
flushes only so, and asyncpool-write=behind, as the only flush comes at the end.
The device takes 64 ms for an operation of any size, so that large requests have no limit here.
EOF
}
