# SPDX-License-Identifier: BSD-3-Clause
#
# The recipes in README: each works as it stands there, and has several
# operations in flight.  The commands in the manuals: each that needs no other
# server than an NBD server works as it stands there.
. "$TESTS_DIR/functions.sh"
require nbdcopy qemu-img perl

# Recipes name modules at the top directory.  Those under test take their place.
cp "$BUILD/asyncpool.so" "$BUILD/delaymem.so" .
# The `nbdkit' of the recipes is $NBDKIT, which finds the real one by its full
# name.
NBDKIT_PROGRAM=$(command -v nbdkit)
export NBDKIT_PROGRAM
# It also logs in to the ssh server of this test.
mkdir bin
cat >bin/nbdkit <<END
#!/bin/bash
for arg; do
  [ "\$arg" != ssh ] || set -- "\$@" \$ssh_parameters
done
exec "$NBDKIT" "\$@"
END
chmod +x bin/nbdkit

# $image and $socket of the recipes: a file, and another NBD server with data.
export image=$TEST_DIR/disk.img socket=$TEST_DIR/far.sock
random_file disk.img 8
server_start far "$DELAYMEM" size=16M delay=5ms
check "the other server takes data" nbdcopy disk.img "$uri"

# A web server and an ssh server with the same file, 5 ms away.
# shellcheck source-path=SCRIPTDIR source=../benchmarks/backends.sh
. "$TESTS_DIR/../benchmarks/backends.sh"
backend_dir=$TEST_DIR/backends
mkdir "$backend_dir"

# start_backend KIND: returns 1 if it cannot run, and sets missing.
start_backend ()
{
  local port
  missing=$backend_missing
  backend_have "$1" && backend_start "$1" "$image" ||
    { missing=$backend_missing; return 1; }
  mkfifo "proxy.$1"
  "$BUILD/benchmarks/delay-proxy" --rtt=5ms 127.0.0.1:0 \
    "127.0.0.1:$backend_port" >"proxy.$1" &
  proxies+=($!)
  read -r port <"proxy.$1"
  backend_connect "$1" "$port"
}
proxies=()
start_backend http && export url=$backend_url || url=
no_http=$missing
start_backend ssh && export disk=$image ssh_host=127.0.0.1 \
  ssh_parameters="${backend_plugin[*]:2}" || ssh_host=
no_ssh=$missing

# missing_for RECIPE: sets missing to the reason why it cannot run.
missing_for ()
{
  missing=
  case $1 in
    *" curl "*) [ "$url" ] || missing=$no_http ;;
    *" ssh "*) [ "$ssh_host" ] || missing=$no_ssh ;;
  esac
  [ "$missing" ]
}

# is_deep FILE: the statistics have several operations in flight.
is_deep ()
{
  awk '/^in the plugin: peak/ { good = $5 + 0 > 1 } END { exit !good }' "$1"
}

# run_recipe RECIPE: up to five times.  On a loaded machine a copy may end
# before the filter has opened a further context.
run_recipe ()
{
  local try
  for try in {1..5}; do
    env PATH="$TEST_DIR/bin:$PATH" bash -c "$1" || return
    ! is_deep check.out || return 0
    echo "try $try: one operation at a time"
  done
}

n=0
while IFS= read -r recipe; do
  n=$((n + 1))
  if missing_for "$recipe"; then
    skip_missing "recipe $n works: ${recipe:0:60}"
    continue
  fi
  check "recipe $n works: ${recipe:0:60}" run_recipe "$recipe"
  # The statistics have the depth.
  mv check.out recipe.out
  check "recipe $n has several operations in flight" is_deep recipe.out
done < <(sed -n 's/^    \(nbdkit .*--run.*\)/\1/p' "$TESTS_DIR/../README")
is "README has seven recipes" "$n" 7
kill "${proxies[@]}" 2>/dev/null
backend_stop_all

# The manuals.  Their `nbdkit' takes the modules under test, a small device in
# place of the default one, and the other server in place of example.com.  A
# server without --run is on ./sock, and has $alive open until it ends.  Its
# pidfile is a FIFO, as it can write that after its parent has ended.  Files of
# statistics are in the current directory.  Their `watch' looks once.
mkdir manuals
alive=$TEST_DIR/alive
mkfifo "$alive" pid
export FILTER DELAYMEM NBDKIT alive
cat >manuals/nbdkit <<'END'
#!/bin/bash
args=() run=
for arg; do
  case $arg in
    --filter=asyncpool) arg=--filter=$FILTER ;;
    delaymem) args+=("$DELAYMEM"); arg=size=16M ;;
    PLUGIN) args+=("$DELAYMEM" delay=20ms); arg=size=16M ;;
    uri=nbd*://example.com*) arg=uri=nbd+unix:///?socket=$socket ;;
    asyncpool-stats=/var/lib/prometheus/*) arg=asyncpool-stats=${arg##*/} ;;
    --run) run=1 ;;
  esac
  args+=("$arg")
done
[ "$run" ] || exec "$NBDKIT" -U sock -P pid "${args[@]}" 7>"$alive"
exec "$NBDKIT" "${args[@]}"
END
cat >manuals/watch <<'END'
#!/bin/bash
[ "$1" = -n ] && [ "$2" -gt 0 ] && "${@:3}" | grep -q 'clients: 0 connections'
END
chmod +x manuals/nbdkit manuals/watch

# manual_commands FILE...: the commands, with a NUL byte after each.
manual_commands ()
{
  perl -00 -ne '
    $head = $1 if /^=head1 (.*)/;
    print "$_\0" if /^ nbdkit / && $head ne "SYNOPSIS"' "$@"
}

# A newline without a backslash ends a command, also inside --run '...'.
lines_are_commands ()
{
  local line
  while IFS= read -r line; do
    bash -n -c "$line" || { echo "not a command: $line"; return 1; }
  done <<<"${1//\\$'\n'/ }"
}

serves () { nbdinfo --size "nbd+unix:///?socket=$PWD/sock"; }

# The server ends when nothing has the other end of $alive open.
ends ()
{
  local id
  read -r -t 100 id <&7 && kill "$id" && timeout 100 cat <&8
}

# run_manual NAME COMMAND
run_manual ()
{
  rm -f sock
  # Opened both ways first: then no open waits for the other end.
  exec 9<>"$alive" 8<"$alive" 7<>pid
  check "$1: works" \
    env PATH="$TEST_DIR/manuals:$PATH" bash -c "$2" 7>&- 8<&- 9>&-
  exec 9>&-
  # A server without --run.
  if [ -S sock ]; then
    check "$1: serves" serves
    check "$1: ends" ends
  fi
  exec 8<&- 7>&-
}

n=0
while IFS= read -r -d '' command; do
  n=$((n + 1))
  # shellcheck disable=SC2086
  words=$(echo ${command//\\/})
  name="manual $n: ${words:0:60}"
  check "$name: each line is a command" lines_are_commands "$command"
  case $words in
    *" delaymem"* | *" PLUGIN "* | *" nbd uri="*)
      run_manual "$name" "$command" ;;
    *) skip "$name" "needs another server" ;;
  esac
done < <(manual_commands "$TESTS_DIR"/../{,*/,*/*/}*.pod)
check "the manuals have commands" test "$n" -ge 10
check "the manual's file for node_exporter is correct" \
  "$PYTHON" "$TESTS_DIR/prometheus.py" check disk1.prom
stops "the other server" far
done_testing
