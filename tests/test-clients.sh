# SPDX-License-Identifier: BSD-3-Clause
#
# Hostile clients (hostile.py): wrong, broken and stalled sessions, many
# connections, and clients that break off.  The server neither crashes nor
# hangs, and keeps no thread, file descriptor or memory.  No client gets data of
# another one, and a well-behaved client beside them works on.
. "$TESTS_DIR/functions.sh"
require "$PYTHON"
require_python

pool="--filter=$FILTER"
setting=(asyncpool-write=behind asyncpool-buffers=8 asyncpool-buffer-size=64k)
step=9 more_step=19 clients=200 slack=slack=1024
if [ -n "$slow" ]; then
  step=17 more_step=29 clients=30 slack=
fi
threads=(-t 4)
export MALLOC_ARENA_MAX=1       # memory then depends less on the scheduler

# plays SERVER SCENARIO [OPTION...]
plays ()
{
  check "$1: $2" "$PYTHON" "$TESTS_DIR/hostile.py" "$TEST_DIR/pool.sock" \
    "${server_pid[pool]}" "${@:2}"
  diag <check.out
}
# breaks_off SERVER SCENARIO [OPTION...]: with requests in flight.
breaks_off ()
{
  if survives_break; then
    plays "$@"
  else
    skip_missing "$1: $2"
  fi
}
# ends SERVER: the end of nbdkit.
ends ()
{
  stops "$1"
  # Some sessions name an export, whole or cut off.
  is "$1: asyncpool logs nothing else" "$(grep asyncpool pool.log |
    grep -v 'warning: export "x*": the filter passes')" ""
}

name="pool"
server_start pool "${threads[@]}" "$pool" "$DELAYMEM" 64M delay=5ms \
  populate=true "${setting[@]}"
plays "$name" refused
plays "$name" truncated step=$step
plays "$name" stalls
plays "$name" half_closed
plays "$name" never_reads
plays "$name" many clients=$clients $slack
plays "$name" storm $slack
breaks_off "$name" never_reads breaks
breaks_off "$name" breaks_off breaks
ends "$name"

name="contexts"
server_start pool "${threads[@]}" "$pool" "$GATE" size=64M delay=5ms \
  thread_model=serialize_requests asyncpool-contexts=4 "${setting[@]}"
plays "$name" truncated step=$more_step
plays "$name" half_closed
plays "$name" never_reads
plays "$name" many clients=$((clients / 4)) $slack
plays "$name" storm $slack
breaks_off "$name" breaks_off breaks
ends "$name"

# After a wrong request nbdkit breaks off itself, and the requests before it may
# be in flight.
name="garbage"
survives_break || threads=(-t 1)
server_start pool "${threads[@]}" "$pool" "$DELAYMEM" 1M delay=1ms \
  populate=true "${setting[@]}"
plays "$name" garbage alone step=$step
plays "$name" noise alone
ends "$name"

name="TLS"
if have psktool && "$NBDKIT" --dump-config | grep -q '^tls=yes'; then
  psktool -u alice -p keys.psk >/dev/null 2>&1
  # ASan keeps up to 256 MiB of freed memory.  GnuTLS frees much, so the server
  # would grow until ASan keeps that much.
  export ASAN_OPTIONS="${ASAN_OPTIONS:-}:quarantine_size_mb=8"
  server_start pool --tls=require --tls-psk="$TEST_DIR/keys.psk" "$pool" \
    "$DELAYMEM" 64M delay=5ms populate=true "${setting[@]}"
  plays "$name" tls "tls=$TEST_DIR/keys.psk"
  ends "$name"
else
  skip "$name" "psktool is not installed, or nbdkit was built without TLS"
fi
done_testing
