# SPDX-License-Identifier: BSD-3-Clause
#
# TLS: a client with a key gets through nbdkit and asyncpool, and no other.
. "$TESTS_DIR/functions.sh"
require psktool nbdcopy nbdinfo cmp
"$NBDKIT" --dump-config | grep -q '^tls=yes' ||
  skip_all "nbdkit was built without TLS"

random_file image 3
psktool -u alice -p keys.psk >/dev/null 2>&1
server_start pool --tls=require --tls-psk="$TEST_DIR/keys.psk" \
  "--filter=$FILTER" "$GATE" size=3M asyncpool-write=behind
plain_uri=$uri
uri="nbds+unix://alice@/?socket=$TEST_DIR/pool.sock"
uri+="&tls-psk-file=$TEST_DIR/keys.psk"
copies_in "with a key"
copies_out "with a key" --synchronous
rc=0; nbdinfo --size "$plain_uri" >/dev/null 2>&1 || rc=1
is "a client without TLS is refused" $rc 1
stops "TLS"
done_testing
