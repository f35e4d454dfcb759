# SPDX-License-Identifier: BSD-3-Clause
# User-mode Linux for guest.sh: Debian's kernel as a process.  It has one
# processor and no devices.  It copies at the machine's own speed, while
# emulation is several times slower than the things to be measured.
# shellcheck shell=bash disable=SC2034,SC2154  # after guest.sh
#
#   uml_accel                       sets $guest_accel to (uml) where it runs
#   uml_boot SECONDS MIB IMAGE LOG  for guest_boot

uml_tree=$guest_dir/uml
uml_preload=""                  # uml-xstate.c, where it is needed

uml_fetch () {
  [ -x "$uml_tree/usr/bin/linux.uml" ] ||
    guest_download user-mode-linux uml || return 1
  mkdir -p "$uml_tree/lib"
  ln -sfn ../usr/lib/uml/modules "$uml_tree/lib/modules"
}

# Its memory is a file that must be executable.  The kernel and each of its
# processes are processes here that wait for each other.  On one processor that
# is two to three times as fast as on two.
uml_boot () {
  local cpu
  cpu=$(taskset -c -p $$ | sed 's/.*[^0-9]//')
  TMPDIR=/dev/shm LD_PRELOAD=$uml_preload timeout --foreground -k 5 "$1" \
    taskset -c "$cpu" "$uml_tree/usr/bin/linux.uml" "mem=$2M" initrd="$3" \
    con=null con0=null,fd:1 loglevel=4 panic=-1 </dev/null >"$4" 2>&1
}

# Without the preload first, so that it is used only where it is needed.
uml_accel () {
  local tmp accel=("${guest_accel[@]}")
  uml_fetch >&2 || { echo "no user-mode Linux: $guest_missing" >&2; return 0; }
  tmp=$(mktemp -d)
  guest_probe_image "$tmp"
  guest_accel=(uml)
  uml_preload=""
  if ! guest_boot 20 256 "$tmp/image" "$tmp/log"; then
    uml_preload=$uml_tree/xstate.so
    "${CC:-cc}" -O2 -Wall -Werror -shared -fPIC -o "$uml_preload" \
      "$guest_source/uml-xstate.c" &&
      guest_boot 20 256 "$tmp/image" "$tmp/log" || guest_accel=("${accel[@]}")
  fi
  if [ "${guest_accel[0]}" != uml ]; then
    echo "user-mode Linux does not run here: $(tail -n 1 "$tmp/log")" >&2
  else
    guest_tree=$uml_tree
    [ -z "$uml_preload" ] ||
      echo "user-mode Linux needs uml-xstate.c on this processor" >&2
  fi
  rm -rf "$tmp"
}
