# Every command in the README that starts nbdkit, as it stands there.
. "$TESTS_DIR/functions.sh"
require nbdcopy qemu-img

top=$TESTS_DIR/..
# Recipes name what lies at the top; the modules under test stand in for that.
cp "$BUILD/asyncpool.so" "$BUILD/delaymem.so" .
# A `nbdkit' that finds the real one by its full name, not itself.
NBDKIT_PROGRAM=$(command -v nbdkit)
export NBDKIT_PROGRAM
mkdir bin
printf '#!/bin/sh\nexec "%s" "$@"\n' "$NBDKIT" >bin/nbdkit
chmod +x bin/nbdkit

# What the recipes call $image and $socket: some data, and a server far away that has it.
export image=$TEST_DIR/disk.img socket=$TEST_DIR/far.sock
random_file disk.img 8
server_start far "$DELAYMEM" size=16M delay=5ms
check "the far server has data" nbdcopy disk.img "$uri"

n=0
while IFS= read -r command; do
  n=$((n + 1))
  check "recipe $n: ${command:0:60}" env PATH="$TEST_DIR/bin:$PATH" bash -c "$command"
  # Each prints its statistics: the client sent one at a time, and several were in flight.
  mv check.out recipe.out
  check "recipe $n had several in flight" \
    awk '/^in the plugin: peak/ { good = $5 + 0 > 1 } END { exit !good }' recipe.out
done < <(sed -n 's/^    \(nbdkit .*--run.*\)/\1/p' "$top/README")
is "the README has four recipes" "$n" 4
check "the far server ends well" server_stop far
done_testing
