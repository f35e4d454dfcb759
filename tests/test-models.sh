# SPDX-License-Identifier: BSD-3-Clause
#
# Thread models other than parallel.  asyncpool opens contexts where the plugin
# serves one request at a time on each connection.  With any other model it
# passes all requests on, and says so once.
. "$TESTS_DIR/functions.sh"
require nbdcopy nbdinfo cmp
random_file image 2

# copies NAME ARGUMENT...: by two clients, with the log filter below asyncpool.
copies ()
{
  local name=$1
  shift
  rm -f requests
  server_start pool "$@" size=2M delay=300us asyncpool-write=behind \
    logfile="$TEST_DIR/requests"
  copies_in "$name" "${single[@]}"
  copies_out "$name" "${single[@]}"
  stops "$name"
}
logged=("--filter=$FILTER" --filter=log)
# has_contexts MIN MAX: how often the plugin was opened.
has_contexts ()
{
  local n
  n=$(grep -c ' Connect ' requests)
  echo "$n contexts"
  [ "$n" -ge "$1" ] && [ "$n" -le "$2" ]
}

# passes_on NAME ARGUMENT...
passes_on ()
{
  local name=$1
  shift
  server_start pool "$@" size=2M delay=300us asyncpool-write=behind
  copies_in "$name"
  copies_out "$name"
  # One connection more.
  nbdinfo "$uri" >/dev/null 2>&1
  stops "$name"
  is "$name: asyncpool says so once" "$(grep -c asyncpool pool.log)" 1
  is "$name: nbdkit says nothing else" "$(wc -l <pool.log)" 1
}

for model in serialize_connections serialize_all_requests; do
  passes_on "$model" "--filter=$FILTER" "$GATE" thread_model=$model
done
passes_on "one context" "--filter=$FILTER" "$GATE" \
  thread_model=serialize_requests asyncpool-contexts=1
passes_on "noparallel" "--filter=$FILTER" --filter=noparallel "$GATE" \
  serialize=all-requests

# One request at a time on each connection.

copies "serialize_requests" "${logged[@]}" "$GATE" \
  thread_model=serialize_requests asyncpool-contexts=6
says_nothing "serialize_requests" pool.log
# Both clients' own, and the contexts that both share.
check "serialize_requests: up to five contexts more" has_contexts 4 7

copies "noparallel above" --filter=noparallel "${logged[@]}" "$GATE" \
  serialize=requests
says_nothing "noparallel above" pool.log
check "noparallel above: up to fifteen contexts more" has_contexts 4 17

copies "no multi-conn" "${logged[@]}" "$GATE" multi_conn=0 \
  thread_model=serialize_requests
is "no multi-conn: asyncpool says so once" "$(grep -c multi-conn pool.log)" 1
is "no multi-conn: nbdkit says nothing else" "$(wc -l <pool.log)" 1
check "no multi-conn: one context for each client" has_contexts 2 2

copies "no multi-conn, contexts given" "${logged[@]}" "$GATE" multi_conn=0 \
  thread_model=serialize_requests asyncpool-contexts=3
says_nothing "no multi-conn, contexts given" pool.log
check "no multi-conn, contexts given: some are opened" has_contexts 3 6

# The plugin sh serves the export that the client names.  nbdkit does not tell
# it the name in further contexts.
cat >names.sh <<'END'
#!/bin/bash
case $1 in
  thread_model) echo serialize_requests ;;
  open) echo "$3" ;;
  get_size) echo 2M ;;
  can_write | can_flush | can_multi_conn) ;;
  pread)
    sleep 0.005
    dd if="export.$2" iflag=skip_bytes,count_bytes,fullblock bs=64k skip="$4" \
      count="$3" status=none ;;
  pwrite)
    sleep 0.005
    dd of="export.$2" oflag=seek_bytes conv=notrunc bs=64k seek="$4" \
      status=none ;;
  flush) ;;
  *) exit 2 ;;
esac
END
chmod +x names.sh
truncate -s 2M export. export.b
cp image export.a
server_start pool "--filter=$FILTER" sh names.sh asyncpool-write=behind \
  asyncpool-contexts=4
check "export names: nbdcopy reads" nbdcopy "${single[@]}" \
  "nbd+unix:///a?socket=$TEST_DIR/pool.sock" out
check "export names: it reads the export that it names" cmp image out
check "export names: nbdcopy writes" nbdcopy --flush "${single[@]}" image \
  "nbd+unix:///b?socket=$TEST_DIR/pool.sock"
check "export names: it writes the export that it names" cmp image export.b
check "export names: no other export changes" \
  cmp export. <(head -c 2M /dev/zero)
stops "export names"
is "export names: asyncpool says so once" \
  "$(grep -c 'use the default export name' pool.log)" 1
is "export names: nbdkit says nothing else" "$(wc -l <pool.log)" 1

# All requests in parallel.

server_start pool "--filter=$FILTER" "$GATE" size=2M asyncpool-write=behind
copies_in "parallel"
stops "parallel"
says_nothing "parallel" pool.log

# Statistics of a filter that passes all requests on.
check "noparallel, asyncpool-stats: nbdkit ends without error" \
  "$NBDKIT" -U - "--filter=$FILTER" --filter=noparallel memory 1M \
  serialize=all-requests asyncpool-stats=stats --run true
is "noparallel, asyncpool-stats: the file says why there are none" \
  "$(cat stats)" "asyncpool: all requests were passed through"
done_testing
