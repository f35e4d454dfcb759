# SPDX-License-Identifier: BSD-3-Clause
#
# The async API as plugin authors get it: the manual's example, the lines of
# --dump-plugin, the installed files, and the reports of mistakes.
. "$TESTS_DIR/functions.sh"
top=$(dirname "$TESTS_DIR")
EXAMPLE=$BUILD/tests/async-example.so
ASYNC_GATE=$BUILD/tests/async-gate.so

# 1. The manual's example is the plugin that test-async runs.
sed -n '/^=head1 EXAMPLE/,/^=head1 HOOKS/p' \
    "$top/plugin/async/nbdkit-async-plugin.pod" |
  sed -n '/^ \/\*/,/^=/{/^=/d;s/^ //;p;}' |
  sed -e :a -e '/^\n*$/{$d;N;ba' -e '}' >listing.c
check "the manual's listing is the example" \
  diff -u "$TESTS_DIR/plugin-async-example.c" listing.c

# 2. --dump-plugin.
hooks ()
{
  "$NBDKIT" --dump-plugin "$@" |
    grep -E '^(has_async|gate_own|thread_model)' | tr '\n' ' '
}
is "dump-plugin: example" "$(hooks "$EXAMPLE")" \
  "thread_model=parallel \
has_async_pread=1 has_async_pwrite=1 has_async_cancel=1 "
is "dump-plugin: all hooks, then the plugin's own lines" \
  "$(hooks "$ASYNC_GATE")" \
  "thread_model=parallel \
has_async_pread=1 has_async_pwrite=1 has_async_flush=1 has_async_zero=1 \
has_async_trim=1 has_async_cache=1 has_async_cancel=1 gate_own_line=1 "
is "dump-plugin: with an older header" "$(hooks "$BUILD/tests/async-old.so")" \
  "thread_model=parallel has_async_pread=1 has_async_pwrite=1 "
ASYNC_GATE_WITHOUT="async_pread async_pwrite async_flush async_zero"
ASYNC_GATE_WITHOUT+=" async_trim async_cache"
is "dump-plugin: no hook" \
  "$(export ASYNC_GATE_WITHOUT; hooks "$ASYNC_GATE")" \
  "thread_model=parallel has_async_cancel=1 gate_own_line=1 "

# 3. The installed files, and plugins that are built with them.
if [ "$VARIANT" != plain ]; then
  skip "installed" "make install takes the plain build"
  done_testing
fi
unset MAKEFLAGS MFLAGS MAKELEVEL
check "make install" \
  make -C "$top" install DESTDIR="$TEST_DIR/root" prefix=/opt/async
is "manual page" "$(ls root/opt/async/share/man/man3)" nbdkit-async-plugin.3
# shellcheck disable=SC2012
is "headers" "$(ls root/opt/async/include | tr '\n' ' ')" \
  "nbdkit-async-driver.h nbdkit-async.h "
PKG_CONFIG_PATH=$(dirname "$(find "$TEST_DIR/root" -name nbdkit-async.pc)")
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR=$TEST_DIR/root
is "the library beside its pkg-config file" \
  "$(cd "$PKG_CONFIG_PATH/.." && ls libnbdkit-async.a)" libnbdkit-async.a
is "pkg-config" "$(pkg-config --libs-only-L nbdkit-async | sed 's/ *$//')" \
  "-L$(dirname "$PKG_CONFIG_PATH")"

# compile COMPILER SOURCE NAME
compile ()
{
  # shellcheck disable=SC2046
  $1 -Wall -Wextra -Werror -shared -fPIC "$2" -o "$3.so" \
    $(pkg-config --cflags --libs nbdkit-async)
}
check "C" compile gcc "$TESTS_DIR/plugin-async-example.c" c
check "C++" compile "g++ -std=c++17" "$TESTS_DIR/plugin-async-cxx.cpp" cxx
unset PKG_CONFIG_SYSROOT_DIR
# nbdkit loads plugins with RTLD_GLOBAL.  Two plugins that are linked with the
# library must not share symbols.
is "visible symbols" \
  "$(nm -D --defined-only c.so | awk '{ print $3 }' | tr '\n' ' ')" \
  "nbdkit_async_driver_v1 plugin_init "
random_file image 16
for plugin in c cxx; do
  server_start $plugin "./$plugin.so" || exit 1
  check "$plugin: write" nbdcopy -- image "$uri"
  check "$plugin: read" nbdcopy "$uri" image.$plugin
  check "$plugin: the same" cmp image image.$plugin
  check "$plugin: ends" server_stop $plugin
done

# 4. Mistakes of an author.
export PKG_CONFIG_SYSROOT_DIR=$TEST_DIR/root
cat >none.c <<'END'
#define THREAD_MODEL NBDKIT_THREAD_MODEL_ASYNC
#ifndef NO_VERSION
#define NBDKIT_API_VERSION 2
#endif
#include <nbdkit-plugin.h>
#include <nbdkit-async.h>
static int64_t get_size (void *handle) { (void) handle; return 512; }
static int
no_pread (void *conn, uint64_t reqid, bool flush, void *handle, void *buf,
          uint32_t count, uint64_t offset)
{
  (void) flush, (void) handle, (void) buf, (void) count, (void) offset;
  nbdkit_async_reply (conn, reqid);
  return 0;
}
static struct nbdkit_plugin plugin = { .name = "none", .get_size = get_size };
static struct nbdkit_async hooks = { .async_pread = no_pread };
#ifdef OLD
struct nbdkit_plugin *
plugin_init (void)
{
  plugin._struct_size = sizeof plugin;
  plugin._api_version = 1;
  return nbdkit_async_register (&plugin, &hooks, sizeof hooks);
}
#else
NBDKIT_REGISTER_ASYNC_PLUGIN (plugin, hooks)
#endif
END
# fails_with TEXT COMMAND...: it must fail with this message.
fails_with ()
{
  local text=$1
  shift
  ! "$@" >said 2>&1 && grep -q "$text" said || { cat said; return 1; }
}
check "without NBDKIT_API_VERSION" fails_with "define NBDKIT_API_VERSION as 2" \
  compile "gcc -DNO_VERSION" none.c none
check "compile: no open" \
  compile "gcc -Wno-missing-field-initializers" none.c none
check "no open: nbdkit says so" \
  fails_with '\.open' "$NBDKIT" -U - ./none.so --run true
check "compile: registered as version 1" \
  compile "gcc -DOLD -Wno-missing-field-initializers" none.c old
check "version 1: the library says so" \
  fails_with "none: async hooks need NBDKIT_API_VERSION 2" \
  "$NBDKIT" -U - ./old.so --run true
done_testing
