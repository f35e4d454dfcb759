# SPDX-License-Identifier: BSD-3-Clause
#
# The runner, tests/run: a test whose own result is "ok" fails if a sanitizer or
# valgrind finds a fault, and so does a test that hangs.  Tests leave nothing in
# /tmp.
. "$TESTS_DIR/functions.sh"

cat >passes.sh <<'END'
. "$TESTS_DIR/functions.sh"
server_start broken "$BUILD/tests/broken.so" "fault=$FAULT" >/dev/null &&
  server_stop broken >/dev/null
ok 0 "passes"
done_testing
END
echo "echo ok 1; echo 1..1; sleep 1000" >hangs.sh

# result_with FAULT: prints the runner's result.  Its output is in run.out.
result_with ()
{
  env FAULT="$1" TEST_DIR= REPORTS= \
    "$TESTS_DIR/run" --one "$TEST_DIR/passes.sh" >run.out 2>&1 &&
    echo pass || echo fail
}

case $TOOL:$VARIANT in
  valgrind:*) found=(leak overflow) ;;
  :asan) found=(leak overflow undefined) ;;
  :tsan) found=(race) ;;
  *) found=() ;;
esac

is "a test without a fault passes" "$(result_with none)" pass ||
  diag <run.out >&2
[ "$TOOL:$VARIANT" != :asan ] ||
  is "a test passes if other code leaks" \
    "$(result_with "foreign leak")" pass || diag <run.out >&2
for fault in "${found[@]}"; do
  is "a test fails with fault $fault" "$(result_with "$fault")" fail
  check "fault $fault is shown" grep -q 'broken\.c' run.out
done

# A program, not a script: its name does not end in .sh.
cat >aborts <<'END'
#!/bin/bash
mktemp -d aborts.XXXXXX --tmpdir
kill -ABRT $$
END
chmod +x aborts
check "a program that aborts fails" \
  not env "TMPDIR=$TEST_DIR" "$TESTS_DIR/run" --one "$TEST_DIR/aborts"
check "it leaves no directory behind" not compgen -G 'aborts.*'

# shellcheck disable=SC2016
socket=$("$NBDKIT" -U - memory 1M --run 'echo "$unixsocket"')
is "nbdkit -U - leaves nothing outside the test's directory" \
  "${socket%/*}" "$TEST_DIR"

rc=0
TEST_TIMEOUT=1 "$TESTS_DIR/run" --one "$TEST_DIR/hangs.sh" \
  >run.out 2>&1 || rc=$?
is "a test that hangs fails" $rc 124
check "a message says that it was killed" grep -q 'not done in time' run.out
done_testing
