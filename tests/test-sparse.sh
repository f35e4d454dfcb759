# SPDX-License-Identifier: BSD-3-Clause
#
# A sparse image, from which a client reads the data and not the holes: the
# filter prefetches little of the holes.
. "$TESTS_DIR/functions.sh"
require nbdcopy

# copies PIECE BYTES DATA: an image with 64 pieces of data.  The stats filter
# below asyncpool counts what is read.
copies ()
{
  local read total=$(($2 * 64))
  # nbdkit sets uri for its command.
  # shellcheck disable=SC2016
  check "$1: nbdcopy reads the image" \
    "$NBDKIT" -U - "--filter=$FILTER" --filter=stats \
    --filter=delay data "$3" rdelay=2ms statsfile=stats.txt \
    --run 'nbdcopy --synchronous "$uri" null:'
  diag <stats.txt
  read=$(awk '$1 == "read:" && $7 == "MiB," { print $6 }' stats.txt)
  check "$1: the plugin reads at most a quarter more than the data" \
    awk -v read="$read" -v total=$total \
    'BEGIN { exit !(read > 0 && read * 1048576 <= total * 1.25) }'
}

copies "1 MiB in 16" 1048576 'data=(0x55*1048576@^16777216)*64'
copies "256 KiB in 4 MiB" 262144 'data=(0x55*262144@^4194304)*64'
done_testing
