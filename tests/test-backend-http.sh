# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool over the curl plugin and a private nginx, without and with TLS.
. "$TESTS_DIR/functions.sh"
# shellcheck source-path=SCRIPTDIR source=backend-functions.sh
. "$TESTS_DIR/backend-functions.sh"

backend_have http || skip_all "$backend_missing"
make_image
cp image "$disk"

# refuses_strangers: the curl plugin knows the server by cainfo only.
refuses_strangers ()
{
  check "$kind: without the authority's certificate nbdkit is refused" \
    not "$NBDKIT" -r -U - curl "url=$backend_url" --run 'nbdinfo "$uri"'
}

test_http ()
{
  with_name test_reads
  with_name test_killed_read
  with_name test_retry_read "${single[@]}"
}

for kind in http https; do
  backend_start $kind "$disk" ||
    { skip "$kind" "$backend_missing"; continue; }
  [ $kind = http ] || refuses_strangers
  for_contexts test_http
  backend_stop $kind
done
done_testing
