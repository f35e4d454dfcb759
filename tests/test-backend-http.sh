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

# may_open YES [OPTION...] -- [FILTER...]: whether the filter may open further
# contexts without a parameter.
may_open ()
{
  local expected=$1 found=no
  shift
  name="$kind, no parameter: $*"
  parameters=()
  serve -v "$@" -- || return
  copies_out "$name" "${single[@]}"
  stops "$name"
  # A fast server gets no background work, so perhaps none was opened.
  ! grep -q 'the contexts (32) do the work' pool.log ||
    grep -q 'one context for this connection' pool.log || found=yes
  is "$name: further contexts" $found "$expected"
}

# The filter knows that all read-only connections of this plugin show the same
# data.
test_alone ()
{
  if "$NBDKIT" --dump-plugin curl | grep -q '^thread_model=parallel'; then
    skip "$kind, no parameter" "the plugin needs no contexts"
    return
  fi
  may_open yes -r --
  may_open yes -r -- retry
  may_open no --
  may_open no -r -- rate
}

for kind in http https; do
  backend_start $kind "$disk" ||
    { skip "$kind" "$backend_missing"; continue; }
  [ $kind = http ] || refuses_strangers
  for_contexts test_http
  test_alone
  backend_stop $kind
done
done_testing
