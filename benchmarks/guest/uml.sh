# User-mode Linux: Debian's kernel as a process. It has one processor and no devices, but copies at the
# machine's own speed, where emulation is several times slower than what is to be measured.
# shellcheck shell=bash disable=SC2034,SC2154  # after guest.sh
#
#   uml_accel                            probe: $guest_accel is (uml) then, else what it was
#   uml_boot SECONDS MIB IMAGE LOG       for guest_boot

uml_tree=$guest_dir/uml

uml_fetch () {
  [ -x "$uml_tree/usr/bin/linux.uml" ] || guest_download user-mode-linux uml || return 1
  mkdir -p "$uml_tree/lib"
  ln -sfn ../usr/lib/uml/modules "$uml_tree/lib/modules"
  "${CC:-cc}" -O2 -Wall -Werror -shared -fPIC -o "$uml_tree/xstate.so" "$guest_source/uml-xstate.c"
}

# Its memory is a file that must be executable. The kernel and each of its processes are processes here
# that wait for each other: on one processor that is two to three times as fast as on two.
uml_boot () {
  TMPDIR=/dev/shm LD_PRELOAD=$uml_tree/xstate.so timeout --foreground -k 5 "$1" \
    taskset -c "$(taskset -c -p $$ | sed 's/.*[^0-9]//')" "$uml_tree/usr/bin/linux.uml" \
    "mem=$2M" initrd="$3" con=null con0=null,fd:1 loglevel=4 panic=-1 </dev/null >"$4" 2>&1
}

uml_accel () {
  local tmp accel=("${guest_accel[@]}")
  uml_fetch >&2 || return 0
  tmp=$(mktemp -d)
  echo 'exit 0' >"$tmp/job"
  guest_image "$tmp/image" "" "$tmp/job"
  guest_accel=(uml)
  if guest_boot 20 256 "$tmp/image" "$tmp/log"; then guest_tree=$uml_tree
  else
    guest_accel=("${accel[@]}")
    echo "no user-mode Linux on this machine: $(tail -n 1 "$tmp/log")" >&2
  fi
  rm -rf "$tmp"
}
