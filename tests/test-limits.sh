# SPDX-License-Identifier: BSD-3-Clause
#
# nbdkit under low limits of the system (RLIMIT_AS, RLIMIT_NOFILE and
# RLIMIT_NPROC): it does not start and says why, or it serves clients.  It may
# refuse a client while a limit holds.  It serves the client when the limit is
# raised.
#
# Not here: the filter's messages about too many threads (test-parameters.sh).
. "$TESTS_DIR/functions.sh"
require "$PYTHON" prlimit
require_python
[ -z "$slow" ] || skip_all "sanitizers and valgrind need more address space"

export MALLOC_ARENA_MAX=1       # arenas take address space at random
umask 0                         # for the server's user
chmod 777 "$TEST_DIR"

# nbdkit with a limit.  Nothing here forks.
cat >limited <<'END'
#!/bin/bash
exec $LIMITED nbdkit "$@"
END
chmod +x limited
export LIMITED=
NBDKIT=$TEST_DIR/limited

gate=("--filter=$FILTER" "$GATE" size=8M delay=300us
  asyncpool-buffer-size=64k asyncpool-write=behind)

client ()
{
  timeout 30 "$PYTHON" "$TESTS_DIR/nbd_python.py" "$uri" \
    >client.out 2>&1 <<'END'
for i in range(40):
    h.pwrite(data(i), i * UNIT)
h.flush()
for i in range(40):
    assert h.pread(UNIT, i * UNIT) == data(i)
h.shutdown()
END
}

# Of nbdkit 1.32, with or without filters.
is_known_abort ()
{
  ! survives_break && grep -q raw_send_socket pool.log
}

# hard LIMIT: a limit that the server can be given.
hard () { prlimit --noheadings --output=HARD "--$1"; }

# ended_cleanly: the server has ended with status 1 and has said why.  127: the
# dynamic linker has.
ended_cleanly ()
{
  local rc=0
  wait "${server_job[pool]}" || rc=$?
  { [ $rc = 1 ] || [ $rc = 127 ]; } && [ -s pool.log ] ||
    { echo "status $rc"; cat pool.log; return 1; }
}

declare -A outcomes

# outcome NAME ARGUMENT...: starts nbdkit and sends a client.  The result is
# counted in outcomes: refused, served, or dropped (the client).
outcome ()
{
  local name=$1 result rc=0
  shift
  if ! server_start pool "$@" >start.out; then
    check "$name: nbdkit ends, and says why" ended_cleanly
    result=refused
  elif client; then
    result=served
    stops "$name"
  elif is_known_abort; then
    result=dropped
    wait "${server_job[pool]}"
  else
    result=dropped
    check "$name: nbdkit says why it drops the client" test -s pool.log
    $as_user prlimit --pid "${server_pid[pool]}" "--$limit=$(hard $limit):"
    check "$name: nbdkit serves the next client" client
    stops "$name"
  fi
  outcomes[$result]=$((${outcomes[$result]:-0} + 1))
  echo "# $name: $result: $(head -n 1 pool.log)"
}

# sweep NAME LIMIT VALUE...: with each value of a limit.  One must be too low,
# and one high enough.
sweep ()
{
  local name=$1 limit=$2 value
  shift 2
  outcomes=()
  for value; do
    LIMITED="$as_user prlimit --$limit=$value:"
    outcome "$name: $limit=$value" "${gate[@]}" "${arguments[@]}"
  done
  check "$name: some values are too low" test "${outcomes[refused]:-0}" -gt 0
  check "$name: some values are enough" test "${outcomes[served]:-0}" -gt 0
}

as_user='' arguments=()
mib=$((1 << 20))
sweep "address space" as $((200 * mib)) $((500 * mib)) $((850 * mib)) \
  $((1500 * mib))

# The sweep has stacks of 65 threads, which need more than the slab.
name="no memory for the buffers"
LIMITED="prlimit --as=$((850 * mib)):"
refuses ()
{
  server_start pool "$@" || { ended_cleanly; return; }
  server_stop pool
  return 1
}
check "$name: nbdkit ends, and says why" \
  refuses "${gate[@]}" asyncpool-buffers=16384 asyncpool-threads=1
check "$name: the message has the parameters and the bytes" grep -q \
  'asyncpool-buffers=16384 asyncpool-buffer-size=64k: .* 1073741824 bytes' \
  pool.log

sweep "files" nofile 5 9 20

# Processes.  The limit counts those of one user, and root has none.
if [ "$(id -u)" != 0 ]; then
  skip "processes" "needs root, to use a user without processes"
elif ! have setpriv; then
  skip_missing "processes"
else
  as_user="setpriv --reuid=54321 --regid=54321 --clear-groups"
  if $as_user test -r "$FILTER" -a -r "$GATE"; then
    sweep "processes" nproc 1 3 5 20 90
    arguments=(thread_model=serialize_requests asyncpool-contexts=4)
    sweep "processes, contexts" nproc 2 4 20
    # Enough for the client, but not for contexts.
    LIMITED="$as_user prlimit --nproc=4:"
    name="no threads for contexts"
    server_start pool "${gate[@]}" "${arguments[@]}"
    check "$name: a client is served" client
    check "$name: the message has the reason" grep -q \
      'cannot start a thread for further contexts: .*without read-ahead' \
      pool.log
    stops "$name"
  else
    skip "processes" "another user cannot read the modules"
  fi
fi
done_testing
