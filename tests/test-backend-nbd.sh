# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool over the nbd plugin and other NBD servers.
. "$TESTS_DIR/functions.sh"
# shellcheck source-path=SCRIPTDIR source=backend-functions.sh
. "$TESTS_DIR/backend-functions.sh"

make_image
disk_wipe

test_nbd ()
{
  with_name test_writes
  with_name test_killed_write
  with_name test_contract
}
test_reading ()
{
  cp image "$disk"
  with_name test_killed_read
  with_name test_retry_read
}

for kind in nbd-server nbdkit qemu-nbd; do
  backend_start $kind "$disk" ||
    { skip "$kind" "$backend_missing"; continue; }
  for_contexts test_nbd
  case $kind in
    # For reads the servers do not differ.
    nbdkit) for_contexts test_reading ;;
    qemu-nbd) for_contexts with_name test_retry_write ;;
  esac
  backend_stop $kind
done
done_testing
