# SPDX-License-Identifier: BSD-3-Clause
#
# Memory under load: the slab, 64 KiB for each thread, and a constant.
. "$TESTS_DIR/functions.sh"
[ -z "$slow" ] || skip_all "sanitizers and valgrind need memory of their own"
require qemu-img

# Code, GLib and statistics.  The requests that nbdkit's own threads hold are in
# the measurement without the filter, too.
constant_kib=4096

# bench COUNT DEPTH SIZE [OPTION...]: requests of this size.
bench ()
{
  qemu-img bench -f raw -t none -c "$1" -d "$2" -s "$3" "${@:4}" "$uri"
}

# peak_kib FILTER PARAMETER...: prints the most memory that nbdkit has had under
# load, over a device without memory.
peak_kib ()
{
  server_start memory -t 16 "--filter=$1" --filter=delay null 1T \
    rdelay=1ms wdelay=1ms "${@:2}" >&2 || return 1
  {
    bench 2000 64 128k -w
    bench 2000 64 128k
    bench 200 16 4M -w
    bench 200 16 4M
    bench 3000 1 4k -w
    bench 1000 1 64k
    bench 3000 64 4k -S 1M -w --flush-interval=500
  } >bench.log 2>&1
  awk '/^VmHWM:/ { print $2 }' "/proc/${server_pid[memory]}/status"
  server_stop memory >&2
}

without=$(peak_kib nofilter)
diag <<<"without asyncpool: $without KiB"
check "nbdkit without asyncpool uses memory" test "$without" -gt 0
for setting in "64 128 64" "256 64 16" "8 1024 8"; do
  read -r buffers kib threads <<<"$setting"
  with=$(peak_kib "$FILTER" asyncpool-write=behind \
         "asyncpool-buffers=$buffers" "asyncpool-buffer-size=${kib}k" \
         "asyncpool-threads=$threads")
  bound=$((without + buffers * kib + threads * 64 + constant_kib))
  name="$buffers buffers of $kib KiB"
  diag <<<"$name, $threads threads: $with KiB, at most $bound"
  check "$name: memory is bounded" test "$with" -le "$bound"
done
done_testing
