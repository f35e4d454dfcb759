# The runner itself: a finding fails a test whose own result is "ok", and so does a hang.
. "$TESTS_DIR/functions.sh"

cat >innocent.sh <<'END'
. "$TESTS_DIR/functions.sh"
server_start a "$BUILD/tests/broken.so" "fault=$FAULT" >/dev/null && server_stop a >/dev/null
ok 0 "nothing noticed"
done_testing
END
echo "echo ok 1; echo 1..1; sleep 1000" >hang.sh

# run_with FAULT: the runner's status; what it said is in run.out.
run_with ()
{
  env FAULT="$1" TEST_DIR= REPORTS= "$TESTS_DIR/run" --one "$TEST_DIR/innocent.sh" >run.out 2>&1
  local rc=$?
  [ "$rc" = 0 ] && echo pass || echo fail
}

case $TOOL:$VARIANT in
  valgrind:*) seen=(leak overflow) ;;
  :asan) seen=(leak overflow undefined) ;;
  :tsan) seen=(race) ;;
  *) seen=() ;;
esac

is "no fault" "$(run_with none)" pass || diag <run.out
[ "$TOOL:$VARIANT" != :asan ] ||
  is "a leak of others" "$(run_with "foreign leak")" pass || diag <run.out
for fault in "${seen[@]}"; do
  is "$fault" "$(run_with "$fault")" fail
  check "$fault: the finding is shown" grep -q 'broken\.c' run.out
done

rc=0
TEST_TIMEOUT=1 "$TESTS_DIR/run" --one "$TEST_DIR/hang.sh" >run.out 2>&1 || rc=$?
is "hang" $rc 124
check "hang: said so" grep -q 'not done in time' run.out
done_testing
