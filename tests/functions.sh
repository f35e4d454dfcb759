# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
#
# For tests/test-*.sh: results in TAP, and nbdkit on a socket.  A test begins
# with `. "$TESTS_DIR/functions.sh"' and ends with `done_testing'.
#
# NBDKIT, BUILD, VARIANT, TOOL and TEST_DIR (a directory of this test's own)
# come from tests/run.
#
# Not its job: deadlines, and findings of the sanitizers and valgrind
# (tests/run).

set -u
# The filter under test.  With a stock one (FILTER=nofilter) a test shows
# whether it is right without asyncpool.
FILTER=${FILTER:-${ASYNCPOOL:-$BUILD/asyncpool.so}}
DELAYMEM=$BUILD/delaymem.so
GATE=$BUILD/tests/gate.so
PYTHON=/usr/bin/python3         # the one that has libnbd's bindings
slow=; [ "$VARIANT$TOOL" = plain ] || slow=1
cd "$TEST_DIR" || exit 2

# Results.

tap_count=0 tap_failed=0

# ok STATUS NAME: one line of TAP.  Returns the status.
ok ()
{
  tap_count=$((tap_count + 1))
  if [ "$1" = 0 ]; then
    echo "ok $tap_count - $2"
  else
    tap_failed=$((tap_failed + 1))
    echo "not ok $tap_count - $2"
  fi
  return "$1"
}

# not COMMAND...: the command must fail.
not () { ! "$@"; }

# check NAME COMMAND...: the command must succeed.  Its output is in check.out,
# and is printed if it does not: on stderr, as prove hides what a test says on
# stdout.
check ()
{
  local name=$1 rc=0
  shift
  "$@" >check.out 2>&1 || rc=$?
  ok "$rc" "$name" ||
    { echo "status $rc of: $*"; tail -n 30 check.out; } | diag >&2
}

# is NAME GOT EXPECTED
is ()
{
  local rc=0
  [ "$2" = "$3" ] || rc=1
  ok $rc "$1" || { echo "got:      $2"; echo "expected: $3"; } | diag >&2
  return $rc
}

diag () { sed 's/^/# /'; }

# skip NAME REASON
skip ()
{
  tap_count=$((tap_count + 1))
  echo "ok $tap_count - $1 # SKIP $2"
}

skip_all ()
{
  echo "1..0 # SKIP $1"
  exit 0
}

done_testing ()
{
  echo "1..$tap_count"
  exit $((tap_failed > 0))
}

# Programs that a test needs.

# have COMMAND...: for a part of a test, with skip_missing.
# require COMMAND...: for all of it.
have ()
{
  local command
  for command; do
    command -v "$command" >/dev/null ||
      { missing="$command is not installed"; return 1; }
  done
}
have_python ()
{
  "$PYTHON" -c 'import nbd' 2>/dev/null ||
    { missing="python3 with libnbd is not installed"; return 1; }
}
require () { have "$@" || skip_all "$missing"; }
require_python () { have_python || skip_all "$missing"; }

skip_missing () { skip "$1" "$missing"; }

# nbdkit before 1.33.10 aborts when a client breaks off with requests in flight.
survives_break ()
{
  local minor
  minor=$("$NBDKIT" --version | sed 's/.* 1\.\([0-9]*\).*/\1/')
  [ "$minor" -ge 34 ] ||
    { missing="nbdkit 1.$minor aborts when a client breaks off"; return 1; }
}

# Servers.

declare -A server_pid server_job
server_port=

# server_start NAME ARGUMENT...: nbdkit in the foreground as our child, on
# $TEST_DIR/NAME.sock, or on server_port of 127.0.0.1 if that is set.  Its log
# is NAME.log, its address $uri.  Its pidfile is a FIFO, which tells one of two
# events: its process id once it is ready, or its end.
server_start ()
{
  local name=$1 line='' listen
  shift
  listen=(-U "$TEST_DIR/$name.sock")
  [ -z "$server_port" ] || listen=(-i 127.0.0.1 -p "$server_port")
  rm -f "$name.fifo" "$name.sock"
  mkfifo "$name.fifo"
  {
    "$NBDKIT" -f "${listen[@]}" -P "$TEST_DIR/$name.fifo" "$@" \
      >"$name.log" 2>&1 </dev/null
    rc=$?
    # The FIFO may have no reader any more.  Opened both ways, it does not wait.
    echo "ended $rc" 1<>"$name.fifo"
    exit $rc
  } &
  server_job[$name]=$!
  exec 9<>"$name.fifo"
  read -r -t 120 line <&9
  exec 9<&-
  case $line in
    '' | ended*)
      echo "# nbdkit did not start: ${line:-no answer}"
      diag <"$name.log"
      return 1 ;;
  esac
  server_pid[$name]=$line
  uri="nbd+unix:///?socket=$TEST_DIR/$name.sock"
}

# server_wait NAME: returns nbdkit's exit status.
server_wait ()
{
  local rc=0
  wait "${server_job[$1]}" || rc=$?
  [ $rc = 0 ] || { echo "# nbdkit's status: $rc"; diag <"$1.log" | tail -n 30; }
  return $rc
}

# server_stop NAME: SIGTERM; returns nbdkit's exit status.
server_stop ()
{
  kill -TERM "${server_pid[$1]}" || return 1
  server_wait "$1"
}

# stops NAME [SERVER]: the check that SERVER (pool) ends without error.
stops () { check "$1: the server ends without error" server_stop "${2:-pool}"; }

# says_nothing NAME FILE: the check that FILE, nbdkit's output, is empty.
says_nothing () { is "$1: nbdkit says nothing" "$(cat "$2")" ""; }

# Clients.

# random_file NAME MIB
random_file () { head -c "$(($2 << 20))" /dev/urandom >"$1"; }

# Options of nbdcopy for one request at a time.
single=(--synchronous --connections=1 --requests=1)

# copies_in NAME [OPTION...]: the check that nbdcopy writes file image to $uri.
copies_in ()
{
  local name=$1
  shift
  check "$name: nbdcopy${1:+ $1} writes the image" \
    nbdcopy "$@" --flush image "$uri"
}

# copies_out NAME [OPTION...]: the checks that nbdcopy reads file out from $uri,
# and that it is the same as image.
copies_out ()
{
  local name=$1
  shift
  rm -f out
  check "$name: nbdcopy${1:+ $1} reads the image" nbdcopy "$@" "$uri" out
  check "$name: the image is unchanged" cmp image out
}

# nbd_python URI <PROGRAM: nbd_python.py says what the program has.
nbd_python () { "$PYTHON" "$TESTS_DIR/nbd_python.py" "$1"; }
