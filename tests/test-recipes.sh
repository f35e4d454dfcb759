# SPDX-License-Identifier: BSD-3-Clause
#
# The recipes in README: each works as it stands there, and has several
# operations in flight.
. "$TESTS_DIR/functions.sh"
require nbdcopy qemu-img

# Recipes name modules at the top directory.  Those under test take their place.
cp "$BUILD/asyncpool.so" "$BUILD/delaymem.so" .
# The `nbdkit' of the recipes is $NBDKIT, which finds the real one by its full
# name.
NBDKIT_PROGRAM=$(command -v nbdkit)
export NBDKIT_PROGRAM
mkdir bin
printf '#!/bin/sh\nexec "%s" "$@"\n' "$NBDKIT" >bin/nbdkit
chmod +x bin/nbdkit

# $image and $socket of the recipes: a file, and another NBD server with data.
export image=$TEST_DIR/disk.img socket=$TEST_DIR/far.sock
random_file disk.img 8
server_start far "$DELAYMEM" size=16M delay=5ms
check "the other server takes data" nbdcopy disk.img "$uri"

n=0
while IFS= read -r recipe; do
  n=$((n + 1))
  check "recipe $n works: ${recipe:0:60}" \
    env PATH="$TEST_DIR/bin:$PATH" bash -c "$recipe"
  # The client sends one request at a time.  The statistics have the depth.
  mv check.out recipe.out
  check "recipe $n has several operations in flight" \
    awk '/^in the plugin: peak/ { good = $5 + 0 > 1 } END { exit !good }' \
    recipe.out
done < <(sed -n 's/^    \(nbdkit .*--run.*\)/\1/p' "$TESTS_DIR/../README")
is "README has four recipes" "$n" 4
stops "the other server" far
done_testing
