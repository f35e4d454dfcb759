# SPDX-License-Identifier: BSD-3-Clause
#
# Stock filters above and below asyncpool: an image that a client writes is the
# image that a client reads.
. "$TESTS_DIR/functions.sh"
require nbdcopy cmp

size=6; [ -z "$slow" ] || size=2        # of the image, in MiB
random_file image $size
F=--filter=$FILTER

# serves NAME ARGUMENT...
serves ()
{
  server_start pool "${@:2}" asyncpool-write=behind asyncpool-buffers=16 ||
    { ok 1 "$1: the server starts"; return 1; }
}

# copies NAME ARGUMENT...: many requests in flight write and one at a time
# reads, then the other way round.
copies ()
{
  serves "$@" || return
  copies_in "$1"
  copies_out "$1" "${single[@]}"
  stops "$1"
  serves "$@" || return
  copies_in "$1" "${single[@]}"
  copies_out "$1"
  stops "$1"
}

# above FILTER [PARAMETER...], below FILTER [PARAMETER...]: over the device.
above ()
{
  local parameters="${*:2}"
  copies "$1 above asyncpool${parameters:+, $parameters}" \
    "--filter=$1" "$F" "${device[@]}" "${@:2}"
}
below ()
{
  local parameters="${*:2}"
  copies "$1 below asyncpool${parameters:+, $parameters}" \
    "$F" "--filter=$1" "${device[@]}" "${@:2}"
}

device=("$GATE" "size=${size}M" delay=300us)
copies "asyncpool alone" "$F" "${device[@]}"
for filter in cow cache readahead noparallel nofilter blocksize noextents \
  nozero fua
do
  above $filter
done
for filter in cow cache noparallel nofilter blocksize noextents nozero fua \
  retry
do
  below $filter
done
above delay delay-write=1ms delay-read=1ms
below delay delay-write=1ms delay-read=1ms
below error error-rate=0%
below blocksize-policy blocksize-minimum=4096 blocksize-preferred=64k \
  blocksize-maximum=2M blocksize-error-policy=error
above blocksize-policy blocksize-minimum=512 blocksize-preferred=4k \
  blocksize-maximum=1M
below blocksize minblock=4k maxdata=32k

device=("$GATE" "size=$((size + 2))M" delay=300us)
above offset offset=1M range=${size}M
below offset offset=1048577 range=${size}M
above truncate truncate=${size}M
below truncate truncate=${size}M

# partition_on WHERE: the partition on a disk in a file.
partition_on ()
{
  device=(--filter=delay file disk wdelay=1ms)
  rm -f disk; truncate -s $((size + 2))M disk
  echo "2048,$((size * 2048))" | sfdisk -q disk >/dev/null 2>&1
  "$1" partition partition=1
  check "partition $1 asyncpool: the image is in the partition" \
    cmp -n $((size << 20)) -i $((2048 * 512)):0 disk image
}
if have sfdisk; then
  partition_on above
  partition_on below
else
  skip_missing "partition"
fi
done_testing
