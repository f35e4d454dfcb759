# asyncpool drives the plugin's async hooks if, and only if, it sits directly on the plugin.
. "$TESTS_DIR/functions.sh"
require nbdcopy cmp

hooks="async hooks do the work of: reads writes"
below="thread pool does the work: another filter is below"
serial="does not serve requests in parallel"
random_file image 4

# What a filter wants on the command line to start at all.
parameters ()
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

# What asyncpool said at its start, over or under another filter. (Errors at the end do not matter.)
says () # FILTER...
{
  # shellcheck disable=SC2046
  "$NBDKIT" -v -f -U - "$@" "$DELAYMEM" size=4M delay=1ms $(parameters "$filter") --run true \
    2>&1 </dev/null | grep -E "asyncpool: (warning: )?the" | sed "s/.*asyncpool: //" | sort -u
}

filters=$(ls "$(pkg-config --variable=filterdir nbdkit)" | sed -n 's/^nbdkit-\(.*\)-filter\.so$/\1/p')
is "directly on the plugin: hooks" "$(filter= says --filter="$FILTER")" "the plugin's $hooks"

# placed NAME TEXT EXPECTED: or the text is that the server serializes, and
# nothing is driven at all.  A filter that does not start without asyncpool,
# either, is skipped: it wants a parameter that is not known above.
placed ()
{
  case $2 in
    "$3" | *"$serial"*) ok 0 "$1"; return ;;
  esac
  # shellcheck disable=SC2046
  if "$NBDKIT" -f -U - --filter="$filter" "$DELAYMEM" size=4M \
     $(parameters "$filter") --run true >alone 2>&1 </dev/null; then
    ok 1 "$1" || echo "# $2"
  else
    skip "$1" "does not start alone: $(grep -m 1 error: alone)"
  fi
}

for filter in $filters; do
  [ "$filter" != asyncpool ] || continue
  placed "$filter between: no hooks" \
    "$(says --filter="$FILTER" --filter="$filter")" "the $below"
  placed "$filter above: hooks" \
    "$(says --filter="$filter" --filter="$FILTER")" "the plugin's $hooks"
done

# operations NAME ARGUMENT...: copies in and out, the data is right; sets $hooked from the statistics.
operations ()
{
  local name=$1
  shift
  rm -f out stats
  server_start pool "$@" asyncpool-stats="$TEST_DIR/stats" asyncpool-write=behind
  check "$name: copy in" nbdcopy --flush image "$uri"
  check "$name: copy out" nbdcopy "$uri" out
  check "$name: ends" server_stop pool
  check "$name: the same" cmp image out
  hooked=$(sed -n 's/^async hooks: \([0-9]*\) .*/\1/p' stats)
}

operations "hooks" --filter="$FILTER" "$DELAYMEM" size=4M delay=2ms
ok $((hooked == 0)) "hooks: they did operations"
operations "io-threads=0" --filter="$FILTER" "$DELAYMEM" size=4M delay=2ms io-threads=0
is "io-threads=0: no operation through hooks" "$hooked" 0
for filter in nofilter swab; do
  operations "$filter between" --filter="$FILTER" --filter="$filter" "$DELAYMEM" size=4M delay=2ms
  is "$filter between: no operation through hooks" "$hooked" 0
done

# However asyncpool was loaded before, what counts is who is loaded when nbdkit registers it.
if [ -z "$slow" ]; then
  # For nbdkit alone: no other program could resolve their symbols.
  LD_PRELOAD="$DELAYMEM:$FILTER" "${NBDKIT_PROGRAM:-nbdkit}" -v -f -U - --filter="$FILTER" \
    --filter=offset "$DELAYMEM" size=4M --run true >preloaded 2>&1
  check "preloaded, and a filter between: no hooks" grep -q "$below" preloaded
else
  skip "preloaded" "the sanitizers and valgrind preload themselves"
fi

"$NBDKIT" -f -U - --filter="$FILTER" --filter="$FILTER" "$DELAYMEM" --run true >twice 2>&1
ok $(($? == 0)) "asyncpool twice is refused"
check "... with one clear line" grep -q "filter=asyncpool: must be given only once" twice

# 1024 operations in flight need no threads of their own.
if have_python; then
  server_start pool --filter="$FILTER" "$DELAYMEM" size=1G delay=20ms asyncpool-buffers=1024
  threads=$(nbd_python "$uri" <<PYTHON
for i in range(64):
    h.pread(131072, i * 131072)
print([l.split()[1] for l in open("/proc/${server_pid[pool]}/status") if l.startswith("Threads")][0])
PYTHON
)
  ok $((threads > 16 + 8)) "1024 buffers: $threads threads in the server, 24 at most"
  check "1024 buffers: ends" server_stop pool

  # What delaymem's service threads do, not before its time: a held write, which a flush waits for.
  server_start pool --filter="$FILTER" "$DELAYMEM" size=4M delay=200ms asyncpool-write=behind \
    asyncpool-stats="$TEST_DIR/waits"
  waited=$(nbd_python "$uri" <<'PYTHON'
import time
h.pwrite(bytes(UNIT), 0)        # how slow the device is
start = time.monotonic()
h.pwrite(data(1), 1 << 20)
h.flush()
print(time.monotonic() - start)
PYTHON
)
  check "by a hook: not before its time, $waited s" awk -v s="$waited" 'BEGIN { exit !(s >= 0.2) }'
  check "by a hook: the server ends" server_stop pool
  check "by a hook: it was" grep -q "^async hooks: 1 " waits

  # The second read is of 8 buffers, and 7 of them go by hooks.
  server_start pool -v --filter="$FILTER" "$DELAYMEM" size=4M rdelay=5
  nbd_python "$uri" >waited 2>&1 <<'PYTHON' &
import time
h.pread(1, 0)
start = time.monotonic()
assert h.pread(8 << 17, 1 << 20) == bytes(8 << 17)
print(time.monotonic() - start)
PYTHON
  until grep -q "asyncpool: pread count=1048576" pool.log; do sleep 0.01; done
  check "the server ends in a long wait for hooks" server_stop pool
  check "it has answered first" wait $!
  check "it has not waited for its 5 s: $(<waited)" awk '{ exit !($1 < 5) }' waited

  # The client goes while acknowledged writes are on their way: delaymem does them when cancelled.
  for goes in "takes its leave" "breaks off"; do
    if [ "$goes" = "breaks off" ] && ! survives_break; then
      skip "client $goes" "$missing is not installed"
      continue
    fi
    server_start pool --filter="$FILTER" "$DELAYMEM" size=4M rdelay=50ms wdelay=400ms asyncpool-write=behind
    check "client $goes: writes are acknowledged" nbd_python "$uri" <<PYTHON
for i in range(8):
    h.pwrite(data(i), i * UNIT)
for i in range(32):             # beside them, a stream of reads and what is read ahead for it
    h.aio_pread(nbd.Buffer(UNIT), (i + 16) * UNIT)
if "$goes" == "takes its leave":
    h.shutdown()
PYTHON
    check "client $goes: what was acknowledged is there" nbd_python "$uri" <<'PYTHON'
for i in range(8):
    assert h.pread(UNIT, i * UNIT) == data(i), i
h.shutdown()
PYTHON
    check "client $goes: the server ends" server_stop pool
    is "client $goes: nothing is reported" "$(grep -cE "given up|could not be written" pool.log)" 0
  done
else
  skip "threads, and a client that goes" "$missing is not installed"
fi
done_testing
