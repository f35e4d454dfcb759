# TLS is nbdkit's own affair, and stays so.
. "$TESTS_DIR/functions.sh"
require psktool nbdcopy nbdinfo cmp
"$NBDKIT" --dump-config | grep -q '^tls=yes' || skip_all "nbdkit was built without TLS"

random_file image 3
psktool -u alice -p keys.psk >/dev/null 2>&1
server_start tls --tls=require --tls-psk="$TEST_DIR/keys.psk" "--filter=$FILTER" "$GATE" size=3M \
  asyncpool-write=behind
good="nbds+unix://alice@/?socket=$TEST_DIR/tls.sock&tls-psk-file=$TEST_DIR/keys.psk"
check "copy in" nbdcopy --flush image "$good"
check "copy out" nbdcopy --synchronous "$good" out
check "the same" cmp image out
rc=0; nbdinfo --size "$uri" >/dev/null 2>&1 || rc=1
is "without TLS nobody comes in" $rc 1
check "ends well" server_stop tls
done_testing
