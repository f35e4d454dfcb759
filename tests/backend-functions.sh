# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
#
# For tests/test-backend-*.sh: asyncpool in front of a real storage server,
# which is killed in the middle of a copy and comes back.  A test sources this
# after functions.sh, and calls the functions below `Tests'.
#
# BACKEND_PARAMETERS has further parameters of the filter, between spaces.
#
# Not its job: the servers (benchmarks/backends.sh).

# shellcheck source-path=SCRIPTDIR source=../benchmarks/backends.sh
. "$TESTS_DIR/../benchmarks/backends.sh"
require nbdcopy cmp ps
require_python
PATH=$PATH:/usr/sbin:/sbin
backend_dir=$TEST_DIR/backends
trap backend_stop_all EXIT

name='' kind=''             # of the test, and of its server
parameters=()               # of asyncpool
patience=300                # seconds to wait for a step that takes one or two:
                            # a disk may stall for minutes

# The image, and parameters of the rate filter.  copy_stopped limits the client
# to 2 MB/s until it is in the middle.
mib=8
rate=("rate-file=$TEST_DIR/rate" burstiness=0.1)

make_image ()
{
  mkdir tree
  cp "$TESTS_DIR"/*.[ch] tree/
  head -c $((mib << 18)) /dev/urandom >tree/random
  truncate -s 1M tree/sparse
  if have mke2fs; then
    check "mke2fs makes the image" mke2fs -q -t ext4 -d tree image ${mib}M
  else
    skip_missing "mke2fs makes the image"
    random_file image $mib
  fi
}

# The values of asyncpool-contexts to test.  The empty one, without the
# parameter, is for a filter that has none.
contexts=('')
! "$NBDKIT" "--filter=$FILTER" null --help 2>/dev/null |
  grep -q asyncpool-contexts || contexts=(1 4)

# The file that the server serves.  The tests look into it behind the server's
# back.  disk_wipe makes it all zeroes; disk_used prints how many bytes of it
# have been written; disk_save FILE copies it.
disk=$TEST_DIR/disk
disk_wipe () { : >"$disk"; truncate -s ${mib}M "$disk"; }
disk_used () { echo $(($(stat -c '%b * %B' "$disk"))); }
disk_save () { cp "$disk" "$1"; }

# nbdkit.

# serve [OPTION...] -- [FILTER...] -- [PARAMETER...]: nbdkit with asyncpool and
# the plugin.  The options are nbdkit's, with the filters above asyncpool.
serve ()
{
  local options=() filters=()
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  while [ "$1" != -- ]; do filters+=("--filter=$1"); shift; done
  shift
  server_start pool "${options[@]}" "--filter=$FILTER" "${filters[@]}" \
    "${backend_plugin[@]}" "${parameters[@]}" "$@" ||
    ok 1 "$name: nbdkit starts"
}

# pages_of FILE: each page of FILE is that of the image, or zeroes.
pages_of ()
{
  "$PYTHON" - image "$1" <<'END'
import sys
page = 4096
image, copy = (open(name, "rb").read() for name in sys.argv[1:])
assert len(copy) <= len(image)
for i in range(0, len(copy), page):
    got = copy[i:i + page]
    assert got == image[i:i + page] or got == bytes(len(got)), i
END
}

# Events.

# out_used: the bytes that the client has written to its file.
out_used ()
{
  local used=0
  [ ! -e out ] || used=$(($(stat -c '%b * %B' out)))
  echo $used
}

# enough FUNCTION: the function prints 1 MiB at least.
enough () { [ "$("$1")" -ge $((1 << 20)) ]; }

# copy_stopped FUNCTION COMMAND...: starts the command, a client, and stops it
# in the middle: once FUNCTION prints enough.
copy_stopped ()
{
  local used=$1
  shift
  echo 16M >rate
  "$@" >copy.out 2>&1 &
  client=$!
  backend_poll $patience enough "$used"
  kill -STOP $client
  ok $? "$name: the client is in the middle of the copy"
  echo 100G >rate
}

# copy_finish: lets it run on, and sets rc to its exit status.  A client that
# hangs has none.
copy_finish ()
{
  kill -CONT $client
  rc=hangs
  ! backend_poll $patience backend_none_alive $client || rc=0
  [ $rc = 0 ] || kill -KILL $client
  wait $client || [ "$rc" = hangs ] || rc=$?
  [ $rc = 0 ] || diag <copy.out
}

# Tests.

write_options=()            # of nbdcopy, for writing

# reads CLIENT, writes CLIENT: the copies out and in.
reads ()
{
  case $1 in
    nbdcopy) copies_out "$name" ;;
    nbdcopy-*) copies_out "$name" "${single[@]}" ;;
    qemu-img)
      rm -f out
      check "$name: qemu-img reads the image" \
        qemu-img convert -f raw -O raw "$uri" out
      check "$name: the image is unchanged" cmp image out ;;
  esac
}
writes ()
{
  case $1 in
    nbdcopy) copies_in "$name" "${write_options[@]}" ;;
    nbdcopy-*) copies_in "$name" "${single[@]}" "${write_options[@]}" ;;
    qemu-img)
      check "$name: qemu-img writes the image" \
        qemu-img convert -n -f raw -O raw image "$uri" ;;
  esac
}

# Those with which the image is copied.
clients=(nbdcopy-synchronous nbdcopy qemu-img)

# has_client CLIENT
has_client () { have "${1%-synchronous}" || { skip_missing "$name"; false; }; }

# test_reads: each client reads the image.
test_reads ()
{
  local client label=$name
  serve -r -- -- || return
  for client in "${clients[@]}"; do
    name="$label, $client"
    has_client "$client" || continue
    reads "$client"
  done
  name=$label
  stops "$name"
}

# test_writes: each client writes the image.  It is the server's file then, and
# the client reads it back.
test_writes ()
{
  local client label=$name
  for client in "${clients[@]}"; do
    name="$label, $client"
    has_client "$client" || continue
    disk_wipe
    serve -- -- || continue
    writes "$client"
    disk_save saved
    check "$name: the server has the image" cmp image saved
    reads "$client"
    stops "$name"
  done
  name=$label
}

# test_killed_read: the server dies while a client reads, and comes back for
# the next client.
test_killed_read ()
{
  name+=", killed while a client reads"
  rm -f out
  # Fewer buffers than would hold the rest of the image.
  serve -r --filter=rate -- -- "${rate[@]}" asyncpool-buffers=8 || return
  copy_stopped out_used nbdcopy "${single[@]}" "$uri" out
  backend_kill "$kind"
  copy_finish
  # What was read before is there: the client's last request has failed.
  is "$name: the client gets an error" "$rc" 1
  check "$name: no data that it got is wrong" pages_of out
  check "$name: the server comes back" backend_restart "$kind"
  copies_out "$name, the next client"
  stops "$name"
}

# flushes_or_lost: the last connection has ended with dirty data that could not
# be written.  So this is logged as lost, and the next flush returns the error.
flushes_or_lost ()
{
  nbdcopy "${write_options[@]}" --flush image "$uri" ||
    grep -q "is lost" pool.log
}

# test_killed_write: the same while a client writes.
test_killed_write ()
{
  name+=", killed while a client writes"
  disk_wipe
  serve --filter=rate -- -- "${rate[@]}" asyncpool-write=behind || return
  copy_stopped disk_used nbdcopy "${single[@]}" "${write_options[@]}" \
    --flush image "$uri"
  backend_kill "$kind"
  copy_finish
  is "$name: the client gets an error" "$rc" 1
  disk_save saved
  check "$name: no data that the server got is wrong" pages_of saved
  check "$name: the server comes back" backend_restart "$kind"
  check "$name: the next flush fails only if data was lost" flushes_or_lost
  copies_in "$name, the next client" "${write_options[@]}"
  disk_save saved
  check "$name: the server has the image" cmp image saved
  stops "$name"
}

# test_retry_read, test_retry_write: with the retry filter below asyncpool the
# copy completes after the server has come back.
test_retry_read ()
{
  name+=", reading with retry"
  rm -f out
  serve -r --filter=rate -- retry -- "${rate[@]}" \
    retry-delay=1 retries=60 retry-exponential=no || return
  copy_stopped out_used nbdcopy "$@" "$uri" out
  backend_kill "$kind"
  check "$name: the server comes back" backend_restart "$kind"
  copy_finish
  is "$name: the copy completes" "$rc" 0
  check "$name: the client has the image" cmp image out
  stops "$name"
}
test_retry_write ()
{
  name+=", writing with retry"
  disk_wipe
  serve --filter=rate -- retry -- "${rate[@]}" asyncpool-write=behind \
    retry-delay=1 retries=60 retry-exponential=no || return
  copy_stopped disk_used nbdcopy "$@" "${write_options[@]}" \
    --flush image "$uri"
  backend_kill "$kind"
  check "$name: the server comes back" backend_restart "$kind"
  copy_finish
  is "$name: the copy completes" "$rc" 0
  disk_save saved
  check "$name: the server has the image" cmp image saved
  stops "$name"
}

# The client of test_contract.  ask (QUESTION) has the shell do something.
contract_client ()
{
  cat <<'END'
import json

asks, answers = open("ask", "w"), open("answer")
def ask(question):
    print(question, file=asks, flush=True)
    assert answers.readline() == "done\n"

acknowledged = {}
def write(first, last):
    for i in range(first, last):
        if fails(h.pwrite, data(i), i * UNIT) == 0:
            acknowledged[i] = i
def matches(i):
    return bytes(h.pread(UNIT, i * UNIT)) == data(i)

# Before the server dies.
write(0, 16)
h.flush()
assert sorted(acknowledged) == list(range(16))
write(16, 32)
assert sorted(acknowledged) == list(range(32))

ask("kill")
write(32, 48)
# A flush may succeed only if all that was acknowledged is there.
flushed = fails(h.flush) == 0
if flushed:
    ask("compare " + " ".join(map(str, acknowledged)))

# What a read gets is right, or it gets an error.
for i in acknowledged:
    fails(lambda: None if matches(i) else 1 / 0)

# The next client, with the first one still there.
ask("restart")
old, h = h, nbd.NBD()
h.connect_uri(sys.argv[1])
for i in acknowledged:
    assert matches(i), i
# While the old connection ends, its dead session may do the first try.
old.shutdown()
assert any(fails(h.flush) == 0 for n in range(1000))
for i in acknowledged:
    assert matches(i), i
ask("compare " + " ".join(map(str, acknowledged)))

# It writes as if nothing had happened.
write(0, 64)
h.flush()
assert sorted(acknowledged) == list(range(64))
ask("compare " + " ".join(map(str, acknowledged)))
h.shutdown()
END
}

# compare UNIT...: the server's file has what contract_client writes there.
compare ()
{
  disk_save saved
  "$PYTHON" - "$@" <<'END'
import random, sys
disk = open("saved", "rb").read()
for i in map(int, sys.argv[1:]):
    assert disk[i << 16:(i + 1) << 16] == random.Random(i).randbytes(65536), i
END
}

# test_contract: what is acknowledged when the server dies is there after the
# next flush that succeeds.
test_contract ()
{
  local question pid rc=0
  name+=", acknowledged data"
  disk_wipe
  serve -- -- || return
  rm -f ask answer
  mkfifo ask answer
  exec 7<>ask 8<>answer
  {
    status=0
    contract_client | nbd_python "$uri" >client.out 2>&1 || status=$?
    echo end >&7
    exit $status
  } &
  pid=$!
  while read -r -t $patience question <&7; do
    # shellcheck disable=SC2086
    case $question in
      kill) backend_kill "$kind" ;;
      restart)
        check "$name: the server comes back" backend_restart "$kind" ;;
      compare*) check "$name: the server has it" $question ;;
      end) break ;;
    esac
    echo "done" >&8
  done
  exec 7<&- 8<&-
  wait $pid || rc=$?
  ok $rc "$name: no client sees other data" || diag <client.out >&2
  stops "$name"
}

# for_contexts COMMAND...: with each value of asyncpool-contexts.
for_contexts ()
{
  local n label=$kind
  for n in "${contexts[@]}"; do
    # shellcheck disable=SC2206
    parameters=(${BACKEND_PARAMETERS:-} ${n:+asyncpool-contexts=$n})
    name=$label${n:+, contexts=$n}
    "$@"
  done
}

# with_name COMMAND...: the command may add to the name.
with_name ()
{
  local label=$name
  "$@"
  name=$label
}
