# For tests/test-*.sh: `. "$TESTS_DIR/functions.sh"`. TAP, and nbdkit on a socket.
# shellcheck shell=bash
#
# NBDKIT, BUILD, VARIANT, TOOL and TEST_DIR (a directory of this test's own) come from tests/run.

set -u
# The filter under test; a stock one (nofilter) shows whether a test is right without it.
FILTER=${FILTER:-${ASYNCPOOL:-$BUILD/asyncpool.so}}
DELAYMEM=$BUILD/delaymem.so
GATE=$BUILD/tests/gate.so
PYTHON=/usr/bin/python3         # the one that has libnbd's bindings
slow=; [ "$VARIANT$TOOL" = plain ] || slow=1
cd "$TEST_DIR" || exit 2

tap_count=0 tap_failed=0

# ok STATUS NAME: one line of TAP for a status.
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

# check NAME COMMAND...: the command must succeed; its output is shown if it does not.
check ()
{
  local name=$1 rc=0
  shift
  "$@" >check.out 2>&1 || rc=$?
  ok "$rc" "$name" || { echo "# status $rc of: $*"; sed 's/^/# /' check.out | tail -n 30; }
}

# is NAME GOT EXPECTED
is ()
{
  local rc=0
  [ "$2" = "$3" ] || rc=1
  ok $rc "$1" || { echo "# got:      $2"; echo "# expected: $3"; }
}

diag () { sed 's/^/# /'; }

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

# have COMMAND...: for a part of a test, with skip. require COMMAND...: for all of it.
have ()
{
  local command
  for command; do
    command -v "$command" >/dev/null || { missing=$command; return 1; }
  done
}
require () { have "$@" || skip_all "$missing is not installed"; }

done_testing ()
{
  echo "1..$tap_count"
  exit $((tap_failed > 0))
}

# server_start NAME ARGUMENT...: nbdkit in the foreground as our child, on $TEST_DIR/NAME.sock.
# Its log is NAME.log, its address $uri. Two events can come through the FIFO that it takes for
# its pidfile: its process id once it is ready, or its end.
# With server_port set it listens on this port of 127.0.0.1 in place of the socket.
declare -A server_pid server_job
server_port=
server_start ()
{
  local name=$1 line='' listen
  shift
  listen=(-U "$TEST_DIR/$name.sock")
  [ -z "$server_port" ] || listen=(-i 127.0.0.1 -p "$server_port")
  rm -f "$name.fifo" "$name.sock"
  mkfifo "$name.fifo"
  { "$NBDKIT" -f "${listen[@]}" -P "$TEST_DIR/$name.fifo" "$@" >"$name.log" 2>&1 </dev/null
    rc=$?
    # Nobody may read any more: opened both ways, this does not wait.
    echo "ended $rc" 1<>"$name.fifo"
    exit $rc; } &
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

# server_stop NAME: SIGTERM; the result is nbdkit's exit status.
server_stop ()
{
  local rc=0
  kill -TERM "${server_pid[$1]}" || return 1
  wait "${server_job[$1]}" || rc=$?
  [ $rc = 0 ] || { echo "# nbdkit's status: $rc"; diag <"$1.log" | tail -n 30; }
  return $rc
}

# random_file NAME MIB
random_file () { head -c "$(($2 << 20))" /dev/urandom >"$1"; }

# nbd_python URI <<program: a python program with h, a connection, data(seed) and UNIT.
# It is not disconnected at the end unless the program does that.
nbd_python ()
{
  "$PYTHON" -c 'import nbd, os, sys, time
UNIT = 65536
def data(seed, count=UNIT):
    import random
    return random.Random(seed).randbytes(count)
h = nbd.NBD()
h.connect_uri(sys.argv[1])
exec(sys.stdin.read())
sys.stdout.flush()
os._exit(0)' "$1"
}
# A client that breaks off with requests in flight makes nbdkit before 1.33.10 abort.
survives_break ()
{
  local minor
  minor=$("$NBDKIT" --version | sed 's/.* 1\.\([0-9]*\).*/\1/')
  [ "$minor" -ge 34 ] || { missing="an nbdkit that survives it (1.$minor aborts)"; return 1; }
}
have_python () { "$PYTHON" -c 'import nbd' 2>/dev/null || { missing="python3 with libnbd"; return 1; }; }
