# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool calls the plugin's async hooks if, and only if, it sits directly on
# the plugin.  Operations by hooks need no thread, and all end before the server
# does.
. "$TESTS_DIR/functions.sh"
require nbdcopy cmp

hooks="the plugin's async hooks do the work of: reads writes"
threads="the thread pool does the work: another filter is below"
serial="does not serve requests in parallel"
contexts=") do the work: the plugin or"
random_file image 4

# Every stock filter, above and below.

# parameters_for FILTER: prints the parameters that it needs to start.
parameters_for ()
{
  case $1 in
    ddrescue) : >map; echo "ddrescue-mapfile=map" ;;
    delay) echo "delay-read=1ms" ;;
    error) echo "error-rate=0%" ;;
    exitwhen) echo "exit-when-file-created=never" ;;
    exportname) echo "exportname=x" ;;
    ext2) echo "ext2file=/x" ;;
    extentlist) echo "0 1048576 0" >list; echo "extentlist=list" ;;
    log) echo "logfile=log-filter" ;;
    luks) echo "passphrase=x" ;;
    partition) echo "partition=1" ;;
    pause) echo "pause-control=pause.sock" ;;
    protect) echo "protect=0-1023" ;;
    rate) echo "rate=1G" ;;
    stats) echo "statsfile=stats-filter" ;;
    tar) echo "tar-entry=x" ;;
    *) ;;
  esac
}

# message STOCK ARGUMENT...: prints asyncpool's message at its start, beside the
# stock filter ('' for none).  nbdkit may fail later.
message ()
{
  local stock=$1
  shift
  # shellcheck disable=SC2046
  "$NBDKIT" -v -f -U - "$@" "$DELAYMEM" size=4M delay=1ms \
    $(parameters_for "$stock") --run true 2>&1 </dev/null |
    grep -E "asyncpool: (warning: )?the" | sed "s/.*asyncpool: //" | sort -u
}

# starts_alone FILTER: without asyncpool.
starts_alone ()
{
  # shellcheck disable=SC2046
  "$NBDKIT" -f -U - --filter="$1" "$DELAYMEM" size=4M \
    $(parameters_for "$1") --run true >alone 2>&1 </dev/null
}

# check_message NAME FILTER MESSAGE EXPECTED: or the message says that the
# server serves no requests in parallel, so there is no use for hooks.  A
# filter that does not start alone is skipped.  It needs a parameter that
# parameters_for does not have.
check_message ()
{
  case $3 in
    "$4" | *"$serial"* | *"$contexts"*) ok 0 "$1" ;;
    *)
      if starts_alone "$2"; then
        ok 1 "$1" || echo "# $3"
      else
        skip "$1" "does not start alone: $(grep -m 1 error: alone)"
      fi ;;
  esac
}

is "directly on the plugin: hooks" "$(message '' --filter="$FILTER")" "$hooks"
for path in "$(pkg-config --variable=filterdir nbdkit)"/nbdkit-*-filter.so; do
  filter=${path##*/nbdkit-}
  filter=${filter%-filter.so}
  [ "$filter" != asyncpool ] || continue
  check_message "$filter between: no hooks" "$filter" \
    "$(message "$filter" --filter="$FILTER" --filter="$filter")" "$threads"
  check_message "$filter above: hooks" "$filter" \
    "$(message "$filter" --filter="$filter" --filter="$FILTER")" "$hooks"
done

# The operations.

# copies NAME ARGUMENT...: an image, in and out.  The statistics have hooked,
# the number of operations by hooks.
copies ()
{
  local name=$1
  shift
  rm -f stats
  server_start pool --filter="$FILTER" "$@" size=4M delay=2ms \
    asyncpool-stats="$TEST_DIR/stats" asyncpool-write=behind
  copies_in "$name"
  copies_out "$name"
  stops "$name"
  hooked=$(sed -n 's/^async hooks: \([0-9]*\) .*/\1/p' stats)
}

copies "hooks" "$DELAYMEM"
ok $((hooked == 0)) "hooks: they do operations"
copies "io-threads=0" "$DELAYMEM" io-threads=0
is "io-threads=0: hooks do no operation" "$hooked" 0
for filter in nofilter swab; do
  copies "$filter between" --filter="$filter" "$DELAYMEM"
  is "$filter between: hooks do no operation" "$hooked" 0
done

# An asyncpool that is loaded before counts from when nbdkit registers it.
if [ -z "$slow" ]; then
  # For nbdkit alone: no other program has the symbols that they need.
  LD_PRELOAD="$DELAYMEM:$FILTER" "${NBDKIT_PROGRAM:-nbdkit}" -v -f -U - \
    --filter="$FILTER" --filter=offset "$DELAYMEM" size=4M --run true \
    >preloaded 2>&1
  check "asyncpool preloaded, and a filter between: no hooks" \
    grep -q "$threads" preloaded
else
  skip "asyncpool preloaded" "the sanitizers and valgrind preload themselves"
fi

"$NBDKIT" -f -U - --filter="$FILTER" --filter="$FILTER" "$DELAYMEM" --run true \
  >twice 2>&1
ok $(($? == 0)) "asyncpool twice: is refused"
check "asyncpool twice: the message says so" \
  grep -q "filter=asyncpool: must be given only once" twice

if ! have_python; then
  skip_missing "threads, waits and clients that leave"
  done_testing
fi

# serves ARGUMENT...: asyncpool on delaymem.
serves () { server_start pool --filter="$FILTER" "$DELAYMEM" "$@"; }

# Threads: 1024 operations in flight need none of their own.
name="1024 buffers"
serves size=1G delay=20ms asyncpool-buffers=1024
n_threads=$(nbd_python "$uri" <<PYTHON
for i in range(64):
    h.pread(131072, i * 131072)
for line in open("/proc/${server_pid[pool]}/status"):
    if line.startswith("Threads"):
        print(line.split()[1])
PYTHON
)
check "$name: the server has at most 24 threads" test "$n_threads" -le 24
stops "$name"

# Waits: a hook's operation takes its time.  A flush waits for a deferred write.
# The write before it shows that the device is slow.
name="a hook's write"
serves size=4M delay=200ms asyncpool-write=behind \
  asyncpool-stats="$TEST_DIR/waits"
waited=$(nbd_python "$uri" <<'PYTHON'
h.pwrite(bytes(UNIT), 0)
start = time.monotonic()
h.pwrite(data(1), 1 << 20)
h.flush()
print(time.monotonic() - start)
PYTHON
)
check "$name: takes its time, $waited s" \
  awk -v s="$waited" 'BEGIN { exit !(s >= 0.2) }'
stops "$name"
check "$name: is in the statistics" grep -q "^async hooks: 1 " waits

# SIGTERM while a read waits.  It has 8 buffers, and hooks read 7 of them.
name="SIGTERM while hooks wait"
serves -v size=4M rdelay=5
nbd_python "$uri" >waited 2>&1 <<'PYTHON' &
h.pread(1, 0)
start = time.monotonic()
assert h.pread(8 << 17, 1 << 20) == bytes(8 << 17)
print(time.monotonic() - start)
PYTHON
until grep -q "asyncpool: pread count=1048576" pool.log; do sleep 0.01; done
stops "$name"
check "$name: the read succeeds" wait $!
check "$name: the read takes less than its 5 s: $(<waited)" \
  awk '{ exit !($1 < 5) }' waited

# A client leaves while hooks write its acknowledged data.  delaymem completes
# operations that it is asked to cancel.
client_leaves ()
{
  serves size=4M rdelay=50ms wdelay=400ms asyncpool-write=behind
  # Beside the writes, a stream of reads and its prefetch.
  check "$1: writes are acknowledged" nbd_python "$uri" <<PYTHON
for i in range(8):
    h.pwrite(data(i), i * UNIT)
for i in range(32):
    h.aio_pread(nbd.Buffer(UNIT), (i + 16) * UNIT)
$2
PYTHON
  check "$1: the next client reads the data" nbd_python "$uri" <<'PYTHON'
for i in range(8):
    assert h.pread(UNIT, i * UNIT) == data(i), i
h.shutdown()
PYTHON
  stops "$1"
  is "$1: the server reports no lost operation" \
    "$(grep -cE "given up|could not be written" pool.log)" 0
}
client_leaves "a client disconnects" "h.shutdown()"
if survives_break; then
  client_leaves "a client breaks off" ""
else
  skip_missing "a client breaks off"
fi
done_testing
