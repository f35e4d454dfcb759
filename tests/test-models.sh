# Plugins that are not parallel: everything goes through unchanged, and that is said once.
. "$TESTS_DIR/functions.sh"
require nbdcopy nbdinfo cmp
random_file image 2

# passes NAME ARGUMENT...
passes ()
{
  local name=$1
  shift
  server_start model "$@" size=2M delay=300us asyncpool-write=behind
  check "$name: copy in" nbdcopy --flush image "$uri"
  check "$name: copy out" nbdcopy "$uri" out
  check "$name: the same" cmp image out
  nbdinfo "$uri" >/dev/null 2>&1
  check "$name: ends well" server_stop model
  is "$name: said once" "$(grep -c asyncpool model.log)" 1
  is "$name: nothing else is said" "$(wc -l <model.log)" 1
  rm -f out
}
for model in serialize_connections serialize_all_requests serialize_requests; do
  passes $model "--filter=$FILTER" "$GATE" thread_model=$model
done
passes "noparallel below" "--filter=$FILTER" --filter=noparallel "$GATE"
passes "noparallel above" --filter=noparallel "--filter=$FILTER" "$GATE"

server_start model "--filter=$FILTER" "$GATE" size=2M asyncpool-write=behind
check "parallel: copy in" nbdcopy --flush image "$uri"
check "parallel: ends well" server_stop model
is "parallel: nothing is said" "$(cat model.log)" ""

# Statistics of a filter that does nothing.
"$NBDKIT" -U - "--filter=$FILTER" --filter=noparallel memory 1M asyncpool-stats=stats --run true \
  >out.log 2>&1
is "statistics of nothing: status" $? 0
done_testing
