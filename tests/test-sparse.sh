# A client that skips the holes of a sparse image: little is read ahead into them.
. "$TESTS_DIR/functions.sh"
require nbdcopy

# copied NAME SIZE DATA: an image of pieces of SIZE bytes, 64 of them.
copied () {
  local read total=$(($2 * 64))
  check "$1: copied" "$NBDKIT" -U - "--filter=$FILTER" --filter=stats \
    --filter=delay data "$3" rdelay=2ms statsfile=stats.txt \
    --run 'nbdcopy --synchronous "$uri" null:'
  diag <stats.txt
  read=$(awk '$1 == "read:" && $7 == "MiB," { print $6 }' stats.txt)
  check "$1: at most a quarter more" \
    awk -v read="$read" -v total=$total 'BEGIN { exit !(read > 0 && read * 1048576 <= total * 1.25) }'
}

copied "1 MiB in 16" 1048576 'data=(0x55*1048576@^16777216)*64'
copied "256 KiB in 4 MiB" 262144 'data=(0x55*262144@^4194304)*64'
done_testing
