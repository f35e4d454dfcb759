# SPDX-License-Identifier: BSD-3-Clause
#
# benchmarks/delay-proxy: its round trip and rate are as exact as a benchmark
# needs, the bytes are unchanged, and it breaks connections when it is told to.
#
# delay_proxy.py has the clients and the server.  A check of a time or a speed
# is made again if it fails, as the machine may be busy.
. "$TESTS_DIR/functions.sh"
PROXY=$BUILD/benchmarks/delay-proxy
"$PYTHON" -c '' 2>/dev/null || skip_all "python3 is not installed"

# peers NAME CASE [ARGUMENT...]: the check that the case succeeds.
peers ()
{
  local name=$1
  shift
  check "$name" "$PYTHON" "$TESTS_DIR/delay_proxy.py" "$PROXY" "$@"
  # The figures.
  diag <check.out
}

for rtt in 20 64; do
  peers "rtt $rtt ms: a round trip takes that time" round-trip "$rtt"
  peers "rtt $rtt ms: the first byte takes two round trips" first-byte "$rtt"
done
if [ "$slow" ]; then
  skip "300 MB/s get through" "a sanitizer or valgrind takes time of its own"
else
  peers "300 MB/s get through at rtt 20 ms" speed 300
fi
peers "a rate of 5 MB/s holds in both directions" rate 5
peers "a rate of 60 MB/s holds in both directions" rate 60
peers "each connection has the rate for itself" rate-each
peers "64 connections: all bytes are unchanged" unchanged tcp
peers "64 connections on unix sockets: all bytes are unchanged" unchanged unix
peers "1000 connections" many
peers "a half-close stays one" half-close tcp
peers "a half-close on unix sockets stays one" half-close unix
peers "a reset reaches the other side after the bytes before it" reset
peers "a server that is not there resets the client" no-server
peers "--buffer is the bound of the bytes on their way" bound
peers "SIGUSR1 cuts all connections, and no later one" cut tcp
peers "SIGUSR1 cuts all connections on unix sockets" cut unix
peers "SIGUSR2 refuses new connections, then accepts again" refuse tcp
peers "SIGUSR2 refuses new connections on unix sockets" refuse unix
peers "SIGHUP changes the round trip and the rate" change
peers "SIGTERM ends at once" terminate
peers "--stats counts connections and bytes" stats

# fails_with MESSAGE ARGUMENT...
fails_with ()
{
  local rc=0
  "$PROXY" "${@:2}" >refused.out 2>&1 || rc=$?
  is "$1 it does not start" $rc 1
  check "$1 this begins the message" grep -qF -- "delay-proxy: $1" refused.out
}
to=(127.0.0.1:0 127.0.0.1:1)
fails_with "usage:" "${to[@]}"
fails_with "--rtt=20: " --rtt=20 "${to[@]}"
fails_with "--rtt=-1s: " --rtt=-1s "${to[@]}"
fails_with "--rate=0: " --rtt=1s --rate=0 "${to[@]}"
fails_with "--rate=1T: " --rtt=1s --rate=1T "${to[@]}"
fails_with "localhost: " --rtt=1s localhost "${to[1]}"
fails_with "127.0.0.1:65536: " --rtt=1s 127.0.0.1:65536 "${to[1]}"
fails_with "bind: " --rtt=1s /nowhere/socket "${to[1]}"

# refuses_change MESSAGE LINES: SIGHUP ends the proxy with this message.
refuses_change ()
{
  local pid rc=0
  printf '%s\n' "$2" >changes
  rm -f ready
  mkfifo ready
  "$PROXY" --rtt=1ms --changes=changes "${to[@]}" >ready 2>refused.out &
  pid=$!
  read -r _ <ready
  kill -HUP $pid
  wait $pid || rc=$?
  is "$1 SIGHUP ends the proxy" $rc 1
  check "$1 this begins the message" grep -qF -- "delay-proxy: $1" refused.out
}
refuses_change "--rtt=20: " rtt=20
refuses_change "--changes=changes: delay: " delay=20ms
refuses_change "--changes=changes: a line " rtt
done_testing
