# SPDX-License-Identifier: BSD-3-Clause
#
# Thread models other than parallel: asyncpool passes all requests on, and says
# so once.
. "$TESTS_DIR/functions.sh"
require nbdcopy nbdinfo cmp
random_file image 2

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

for model in serialize_connections serialize_all_requests serialize_requests; do
  passes_on "$model" "--filter=$FILTER" "$GATE" thread_model=$model
done
passes_on "noparallel below" "--filter=$FILTER" --filter=noparallel "$GATE"
passes_on "noparallel above" --filter=noparallel "--filter=$FILTER" "$GATE"

server_start pool "--filter=$FILTER" "$GATE" size=2M asyncpool-write=behind
copies_in "parallel"
stops "parallel"
says_nothing "parallel" pool.log

# Statistics of a filter that passes all requests on.
check "noparallel, asyncpool-stats: nbdkit ends without error" \
  "$NBDKIT" -U - "--filter=$FILTER" --filter=noparallel memory 1M \
  asyncpool-stats=stats --run true
done_testing
