# Memory above the device under load: the slab, 64 KiB per thread, and nothing that grows.
. "$TESTS_DIR/functions.sh"
[ -z "$slow" ] || skip_all "sanitizers and valgrind need their own memory"
require qemu-img

# What stays is code, GLib, statistics, and the requests that nbdkit's own threads hold: those are
# in the measurement without the filter too.
constant_kib=4096

# peak_kib FILTER PARAMETERS...: a device that has no memory, under load; the most that nbdkit ever
# had.
peak_kib ()
{
  server_start memory -t 16 "--filter=$1" --filter=delay null 1T rdelay=1ms wdelay=1ms "${@:2}" \
    >&2 || return 1
  {
    qemu-img bench -f raw -t none -c 2000 -d 64 -s 128k -w "$uri"
    qemu-img bench -f raw -t none -c 2000 -d 64 -s 128k "$uri"
    qemu-img bench -f raw -t none -c 200 -d 16 -s 4M -w "$uri"
    qemu-img bench -f raw -t none -c 200 -d 16 -s 4M "$uri"
    qemu-img bench -f raw -t none -c 3000 -d 1 -s 4k -w "$uri"
    qemu-img bench -f raw -t none -c 1000 -d 1 -s 64k "$uri"
    qemu-img bench -f raw -t none -c 3000 -d 64 -s 4k -S 1M -w --flush-interval=500 "$uri"
  } >bench.log 2>&1
  awk '/^VmHWM:/ { print $2 }' "/proc/${server_pid[memory]}/status"
  server_stop memory >&2
}

without=$(peak_kib nofilter)
diag <<<"without: $without KiB"
check "measured" test "$without" -gt 0
for setting in "64 128 64" "256 64 16" "8 1024 8"; do
  read -r buffers kib threads <<<"$setting"
  with=$(peak_kib "$FILTER" asyncpool-write=behind "asyncpool-buffers=$buffers" \
         "asyncpool-buffer-size=${kib}k" "asyncpool-threads=$threads")
  bound=$((without + buffers * kib + threads * 64 + constant_kib))
  diag <<<"$buffers buffers of $kib KiB, $threads threads: $with KiB, allowed $bound"
  check "$buffers buffers of $kib KiB" test "$with" -le "$bound"
done
done_testing
