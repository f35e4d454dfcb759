# SPDX-License-Identifier: BSD-3-Clause
# Power cuts under SQLite, in its journal modes.  record.so, below asyncpool,
# records all that the plugin was given.  replay.so builds crash images from
# this.  In each, SQLite must recover, and have all transactions whose commit
# has returned before.  Then the server is killed over the file plugin, again
# and again.  crash_sqlite.py has the client and the checks.
#
#   CRASH_POINTS=N    images of each database (`all': four at each flush)
#   CRASH_STEPS=N     transactions of each
#   CRASH_SEED=N      the images' seed
#   CRASH_KILLS=N     times that the server is killed, in each of two modes
#
# Not its job: file systems (test-crash-real.sh).
# shellcheck disable=SC2034  # record uses the arrays by name
. "$TESTS_DIR/functions.sh"
require_python
"$PYTHON" -c 'import apsw' 2>/dev/null ||
  skip_all "python3 with apsw is not installed"

steps=${CRASH_STEPS:-40} points=${CRASH_POINTS:-40}
[ -z "$slow" ] || steps=15 points=10
seed=${CRASH_SEED:-$((RANDOM + 1))}
echo "# CRASH_SEED=$seed"
record=("$BUILD/tests/record.so" size=32M delay=300)
pool=("--filter=$FILTER" "${record[@]}" asyncpool-buffers=16)
contexts=("${pool[@]}" serial=1 asyncpool-contexts=4)
hooks=("${pool[@]}" hooks=1)
# A plugin that answers flushes and makes nothing durable.
lie=("${pool[@]}" lie=1)

# sqlite COMMAND SERVER ARGUMENT...
sqlite ()
{
  "$PYTHON" "$TESTS_DIR/crash_sqlite.py" "$1" "$TEST_DIR/$2.sock" "${@:3}"
}

# record KIND MODE: runs the transactions.
record ()
{
  local -n arguments=$1
  rm -f log.acks
  server_start record "${arguments[@]}" log=log
  check "$1, $2: $steps transactions" sqlite write record "$2" "$steps" log
  stops "$1, $2" record
}

# replay MODE: checks the images.
replay ()
{
  server_start replay "$BUILD/tests/replay.so" size=32M log=log
  sqlite check replay "$1" log "$points" "$seed"
}

images=0
# recovers KIND MODE
recovers ()
{
  record "$1" "$2"
  check "$1, $2: SQLite recovers in all images" replay "$2"
  diag <check.out
  images=$((images + $(sed -n 's/ images of .*//p' check.out)))
  stops "$1, $2, images" replay
}

if [ -n "${CRASH_LONG:-}" ]; then
  kinds="pool contexts hooks" modes="wal delete truncate persist"
  for kind in $kinds; do
    for mode in $modes; do recovers "$kind" "$mode"; done
  done
else
  recovers pool wal
  recovers contexts wal
  recovers hooks wal
  recovers pool delete
  recovers contexts truncate
  recovers hooks persist
fi
echo "# $images crash images"

# Otherwise the above shows nothing.
record lie wal
lacks ()
{
  ! replay wal >lie.out 2>&1 && grep -qE 'is missing|no such' lie.out
}
check "lie, wal: transactions are missing in images" lacks
stops "lie, wal, images" replay

# The server is killed in the middle and starts again, on a file.
file_server ()
{
  server_start file "--filter=$FILTER" --filter=delay file disk wdelay=2ms \
    asyncpool-buffers=16
}
acks () { cat disk.acks 2>/dev/null | wc -l; }
# kill_server N: once there are N acknowledged transactions.
kill_server ()
{
  until [ "$(acks)" -ge "$1" ]; do
    kill -0 "$client" || return 1
    sleep 0.05
  done
  kill -KILL "${server_pid[file]}"
  ! wait "$client" && ! wait "${server_job[file]}"
}
kills=${CRASH_KILLS:-5}; [ -z "$slow" ] || kills=2
for mode in wal delete; do
  rm -f disk disk.acks
  truncate -s 32M disk
  for ((n = 1; n <= kills; n++)); do
    check "kill $n, $mode: the server starts" file_server
    sqlite write file $mode 100000 disk >client.out 2>&1 &
    client=$!
    check "kill $n, $mode: the server is killed" \
      kill_server $(($(acks) + 2 + RANDOM % 12))
    check "kill $n, $mode: the server starts again" file_server
    check "kill $n, $mode: every acknowledged transaction is there" \
      sqlite verify file $mode disk
    stops "kill $n, $mode" file
  done
  echo "# $kills kills, $(acks) transactions"
done
done_testing
