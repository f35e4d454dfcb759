# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool over the ssh plugin and a private sshd.
. "$TESTS_DIR/functions.sh"
# shellcheck source-path=SCRIPTDIR source=backend-functions.sh
. "$TESTS_DIR/backend-functions.sh"

kind=ssh
backend_have $kind || skip_all "$backend_missing"
make_image
disk_wipe
backend_start $kind "$disk" || skip_all "$backend_missing"

test_ssh ()
{
  with_name test_writes
  cp image "$disk"
  with_name test_killed_read
  with_name test_killed_write
  with_name test_contract
  cp image "$disk"
  with_name test_retry_read
  with_name test_retry_write
}
for_contexts test_ssh
done_testing
