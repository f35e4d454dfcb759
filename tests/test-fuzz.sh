# SPDX-License-Identifier: BSD-3-Clause
#
# Replays the fuzzer's corpus (fuzz/run): nbdkit neither crashes nor hangs, and
# ends without error.
. "$TESTS_DIR/functions.sh"
fuzz=$TESTS_DIR/fuzz
export ASYNCPOOL=$FILTER

# replay KIND [OPTION...]
replay ()
{
  local session rc
  for session in "$fuzz"/corpus/*; do
    rc=0
    timeout -k 10 120 "$fuzz/server" "$@" <"$session" >replies 2>messages ||
      rc=$?
    [ $rc = 0 ] || { echo "$session: status $rc"; cat messages; return 1; }
  done
}

options=()
! survives_break || options=(-t 16)
for kind in pool hooks contexts; do
  check "$kind: each session ends" replay $kind
  [ ${#options[@]} = 0 ] ||
    check "$kind ${options[*]}: each session ends" replay $kind "${options[@]}"
done
done_testing
