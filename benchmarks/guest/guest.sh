# SPDX-License-Identifier: BSD-3-Clause
# A Linux guest for tests and benchmarks that need a kernel of their own.  The
# kernel is Debian's package, unpacked in build/guest and never installed.  The
# initramfs holds programs of this machine.  QEMU, or user-mode Linux (uml.sh),
# runs it without a disk and for a limited time.
# shellcheck shell=bash disable=SC2034  # the caller reads $guest_missing
#
#   guest_fetch      downloads and unpacks the kernel; may need the network
#   guest_require    checks that all is there
#   guest_image IMAGE MODULES JOB FILE...
#                    makes an initramfs that runs JOB as /job.  FILE is the name
#                    of a program, a path, or PATH=NAME_IN_THE_GUEST.  Its
#                    shared libraries come along.
#   guest_accel      finds QEMU's accelerator; $guest_accel has its options
#   uml_accel        sets $guest_accel to user-mode Linux where that runs
#   guest_boot SECONDS MIB IMAGE LOG QEMU_OPTION...
#                    boots, runs the job and powers off; succeeds if the job did
#
# After a failure of the first three, $guest_missing has the reason.  A job
# marks its results with `@ ' at the start of a line, as the console carries
# other text.

guest_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest_dir=$(cd "$guest_source/../.." && pwd)/build/guest
guest_missing=""
guest_accel=()
guest_tree=$guest_dir/kernel    # the kernel's package, unpacked
guest_path=$PATH:/usr/sbin:/sbin

# shellcheck source-path=SCRIPTDIR source=uml.sh
. "$guest_source/uml.sh"

guest_kernel () { ls "$guest_dir"/kernel/boot/vmlinuz-* 2>/dev/null; }
guest_version () { ls "$guest_tree/lib/modules"; }

# Prints the missing part of the kernel, or nothing.
guest_lacks () {
  [ -n "$(guest_kernel)" ] || { echo "boot/vmlinuz-*"; return; }
  [ -d "$guest_tree/lib/modules" ] || echo "lib/modules"
}

# The reason of a failure is kept for guest_require.
guest_fetch () {
  [ -n "$(guest_lacks)" ] || return 0
  if guest_fetch_kernel; then
    rm -f "$guest_dir/missing"
  else
    echo "$guest_missing" >"$guest_dir/missing"
    return 1
  fi
}

guest_fetch_kernel () {
  local meta=linux-image-cloud-amd64 package
  guest_has_apt || return 1
  # The package that the metapackage stands for today.
  package=$(apt-cache depends $meta 2>/dev/null |
    awk '$1 == "Depends:" && /linux-image-[0-9]/ { print $2; exit }')
  [ -n "$package" ] ||
    { guest_missing="apt knows no $meta (apt-get update?)"; return 1; }
  guest_download "$package" kernel || return 1
  # Debian 13's package has no /lib.
  [ -e "$guest_tree/lib" ] || ln -s usr/lib "$guest_tree/lib"
  [ -z "$(guest_lacks)" ] ||
    { guest_missing="package $package has no $(guest_lacks)"; return 1; }
}

guest_has_apt () {
  local arch
  type -P apt-get dpkg-deb >/dev/null || {
    guest_missing="the kernel is a Debian package, and this machine has no apt"
    return 1
  }
  arch=$(dpkg --print-architecture)
  [ "$arch" = amd64 ] || {
    guest_missing="the kernel is for amd64, and apt's packages are for $arch"
    return 1
  }
}

guest_download () { # PACKAGE DIRECTORY
  local new=$guest_dir/new
  guest_has_apt || return 1
  rm -rf "$new" && mkdir -p "$new/$2"
  # As root, apt would download as a user that cannot write here.
  (cd "$new" && timeout 300 apt-get -q \
    -o APT::Sandbox::User="$(id -un)" download "$1") \
    >"$guest_dir/download.log" 2>&1 || {
    guest_missing="apt-get download $1 failed, see build/guest/download.log"
    return 1
  }
  dpkg-deb -x "$new"/*.deb "$new/$2"
  rm -rf "${guest_dir:?}/$2"
  mv "$new/$2" "$guest_dir/$2"
  rm -rf "$new"
}

guest_require () {
  local program
  for program in qemu-system-x86_64 busybox nbd-client mke2fs cpio dash \
    modprobe xz timeout; do
    guest_find $program || return 1
  done
  # A dynamic one could not report that its libraries are missing.
  ! ldd "$(type -P busybox)" >/dev/null 2>&1 || {
    guest_missing="busybox is not linked statically (package busybox-static)"
    return 1
  }
  [ -z "$(guest_lacks)" ] || {
    guest_missing="no $(guest_lacks) in build/guest/kernel:\
 $(cat "$guest_dir/missing" 2>/dev/null || echo "make deps was not run")"
    return 1
  }
}

# Leaves the path of a program in $guest_found.
guest_find () { # NAME
  guest_found=$(PATH=$guest_path type -P "$1") ||
    { guest_missing="$1 is not installed (make deps)"; return 1; }
}

# Prints the files of the modules in the order of insertion.  Modules that the
# kernel has built in have none.
guest_modules () { # NAME...
  local version name list PATH=$guest_path
  version=$(guest_version) || return 1
  [ -e "$guest_tree/lib/modules/$version/modules.dep" ] ||
    depmod -b "$guest_tree" "$version" || return 1
  list=$(for name; do
    modprobe -d "$guest_tree" -S "$version" --show-depends "$name" || exit 1
  done) || return 1
  awk '$1 == "insmod" && !seen[$2]++ { print $2 }' <<<"$list"
}

guest_copy_modules () { # ROOT NAME...
  local root=$1 files file name
  shift
  files=$(guest_modules "$@") || return 1
  for file in $files; do
    name=$(basename "${file%.xz}")
    if [ "$name" = "$(basename "$file")" ]; then cp "$file" "$root/modules/"
    else xz -dc "$file" >"$root/modules/$name"; fi || return 1
    echo "$name" >>"$root/modules/list"
  done
}

# Debian's layout: everything below /usr, with links in place of the old
# directories.
guest_copy_file () { # ROOT FILE
  local file=${2%%=*} name=${2#*=} library
  if [[ $file != */* ]]; then
    guest_find "$file" || return 1
    file=$guest_found name=$guest_found
  fi
  name=$(guest_name "$name")
  mkdir -p "$1$(dirname "$name")"
  cp -L "$file" "$1$name" || return 1
  { ldd "$file" 2>/dev/null || :; } |
    awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' |
    while read -r library; do
      name=$(guest_name "$library")
      [ -e "$1$name" ] || {
        mkdir -p "$1$(dirname "$name")"
        cp -L "$library" "$1$name" || exit 1
      }
    done
}

guest_name () { # PATH
  case $1 in
    /bin/* | /sbin/* | /lib*) echo "/usr$1";;
    *) echo "$1";;
  esac
}

guest_image () { # IMAGE MODULES JOB FILE...
  local image=$1 root rc=0
  shift
  root=$(mktemp -d)
  guest_missing=""
  if ! { guest_fill "$root/tree" "$@" && guest_pack "$root/tree" >"$image"; } \
    2>"$root/errors"; then
    cat "$root/errors" >&2
    guest_missing="no image for the guest:\
 ${guest_missing:-$(tail -n 1 "$root/errors")}"
    rc=1
  fi
  rm -rf "$root"
  return $rc
}

guest_pack () { # ROOT
  (cd "$1" && find . | cpio -o -H newc -R 0:0 --quiet)
}

guest_fill () { # ROOT MODULES JOB FILE...
  local root=$1 modules=$2 job=$3 file
  shift 3
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64} \
    "$root"/{bb,dev,proc,sys,tmp,mnt,run,etc,modules}
  for file in bin sbin lib lib64; do ln -s "usr/$file" "$root/$file"; done
  guest_copy_file "$root" "$(type -P busybox)=/usr/bin/busybox" || return 1
  # busybox's own shell prefers its applets to the programs that were copied.
  guest_copy_file "$root" "$(type -P dash)=/usr/bin/sh" || return 1
  : >"$root/etc/mtab"
  : >"$root/modules/list"
  # shellcheck disable=SC2086
  [ -z "$modules" ] || guest_copy_modules "$root" $modules || return 1
  cp "$guest_source/init" "$root/init" && cp "$job" "$root/job" || return 1
  chmod +x "$root/init" "$root/job"
  for file; do guest_copy_file "$root" "$file" || return 1; done
}

guest_qemu () { # SECONDS IMAGE LOG OPTION...
  local seconds=$1 image=$2 log=$3
  shift 3
  # panic=-1 and -no-reboot: a kernel that panics ends QEMU at once.  In the
  # foreground: a signal to our process group ends QEMU.
  timeout --foreground -k 5 "$seconds" qemu-system-x86_64 -display none \
    -monitor none -serial "file:$log" -nodefaults -no-user-config -no-reboot \
    -kernel "$(guest_kernel)" -initrd "$image" "$@" </dev/null
}

# no_timer_check: on a busy machine the emulated timer can be late, and the
# kernel would panic.
guest_append="console=ttyS0 loglevel=4 panic=-1 mitigations=off no_timer_check"

# A kernel can hang under KVM where /dev/kvm looks well, so only a boot tells.
guest_accel () {
  local tmp
  # One processor: under TCG, calls between the guest's processors cost more
  # than the second one brings.  (A pipe between two processes: 355 MB/s with
  # one, 20 with two.)  Without erms and fsrm the kernel copies by words; TCG
  # does `rep movsb' byte by byte.  (Writing to tmpfs: 210 and 104 MB/s.)
  guest_accel=(-accel tcg -smp 1 -cpu "max,-erms,-fsrm")
  [ -r /dev/kvm ] && [ -w /dev/kvm ] || return 0
  tmp=$(mktemp -d)
  guest_probe_image "$tmp"
  if guest_qemu 10 "$tmp/image" "$tmp/log" -accel kvm -cpu host -m 256 \
    -nic none -append "$guest_append" 2>/dev/null &&
    grep -q '^@ status 0' "$tmp/log"; then
    guest_accel=(-accel kvm -cpu host -smp 2)
  fi
  rm -rf "$tmp"
}

# For a guest that does nothing.
guest_probe_image () { # DIRECTORY
  echo 'exit 0' >"$1/job"
  guest_image "$1/image" "" "$1/job"
}

guest_boot () {
  local seconds=$1 mib=$2 image=$3 log=$4
  shift 4
  if [ "${guest_accel[0]}" = uml ]; then
    uml_boot "$seconds" "$mib" "$image" "$log" || :
  else
    guest_qemu "$seconds" "$image" "$log" "${guest_accel[@]}" -m "$mib" \
      -append "$guest_append" "$@" || :
  fi
  # The guest's own word, as user-mode Linux now and then aborts when it halts.
  grep -aq '^@ status 0' "$log"
}
