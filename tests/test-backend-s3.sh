# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool over the S3 plugin and a private s3rver: one object that is read,
# and a device of many objects.
. "$TESTS_DIR/functions.sh"
# shellcheck source-path=SCRIPTDIR source=backend-functions.sh
. "$TESTS_DIR/backend-functions.sh"

kind=s3
# For a plugin that is a script, nbdkit runs itself again, without the
# sanitizer's runtime (plugin-preload.c).  With the runtime, Python would wait
# for ever in setlocale.
case $VARIANT in
  asan | tsan) skip_all "Python does not start beside a sanitizer" ;;
esac
backend_have $kind || skip_all "$backend_missing"
# By default boto3 tries five times, for seconds.  Two tries are the least: when
# the last one ends with a closed connection, the S3 plugin of nbdkit 1.32 says
# that the operation has succeeded.  The second one finds a server or none.
export AWS_MAX_ATTEMPTS=2
mib=4
make_image
cp --sparse=never image "$disk"
mv "$disk" image
cp image "$disk"

backend_start $kind "$disk" || skip_all "$backend_missing"
clients=(nbdcopy-synchronous qemu-img)
for_contexts with_name test_reads
for_contexts with_name test_killed_read

backend_stop $kind

# nbdkit 1.32 allows no larger object: all blocks of the device have this size.
# nbdcopy does not respect that where it writes zeroes.
write_options=(--sparse=0)
clients=(nbdcopy qemu-img)
backend_object_size=64K objects=$backend_dir/s3/objects/bucket/disk
disk_wipe () { rm -rf "$objects"; }
disk_used ()
{
  find "$objects" -name '*_object' -printf '%s\n' 2>/dev/null |
    awk '{ n += $1 } END { print n + 0 }'
}
# An object that is not there is all zeroes.
disk_save ()
{
  local path number
  : >"$1"
  truncate -s ${mib}M "$1"
  for path in "$objects"/*._S3rver_object; do
    [ -e "$path" ] || continue
    number=${path##*/}
    dd if="$path" of="$1" bs=64K seek=$((16#${number%%.*})) conv=notrunc \
      status=none
  done
}

test_objects ()
{
  with_name test_writes
  with_name test_killed_write
  with_name test_contract
  with_name test_retry_write
}
backend_start $kind "$disk" || skip_all "$backend_missing"
for_contexts test_objects
done_testing
