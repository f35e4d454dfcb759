# A Linux guest for tests and benchmarks that need a kernel of their own: Debian's kernel package,
# unpacked beside the build and never installed, an initramfs made of this machine's programs, and
# QEMU without a disk, bounded in time.
# shellcheck shell=bash disable=SC2034  # the caller reads $guest_missing
#
#   guest_fetch                          download and unpack the kernel; may need the network
#   guest_require                        is all there? else the reason is in $guest_missing
#   guest_image IMAGE MODULES JOB FILE.. an initramfs in which JOB runs as /job;
#                                        if it fails $guest_missing says why
#   guest_accel                          probe: QEMU's options for the accelerator in $guest_accel
#   guest_boot SECONDS MIB IMAGE LOG OPTION..  boot, run the job, power off; 0 if the job succeeded
#
# uml.sh has another kernel for it, for who needs speed.
#
# The job prints what it found as lines that begin with `@ ', as the console carries other text.
# Where FILE is PATH=NAME it becomes NAME in the guest. The files' shared libraries come along.

guest_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/build/guest
guest_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest_missing=""
guest_accel=()
guest_tree=$guest_dir/kernel    # the kernel's package, unpacked

guest_kernel () { ls "$guest_dir"/kernel/boot/vmlinuz-* 2>/dev/null; }
guest_version () { ls "$guest_tree/lib/modules"; }

# What is not there of the kernel; nothing if all is.
guest_lacks () {
  [ -n "$(guest_kernel)" ] || { echo "boot/vmlinuz-*"; return; }
  [ -d "$guest_tree/lib/modules" ] || echo "lib/modules"
}

# The package that the metapackage stands for today.
guest_package () {
  apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    awk '$1 == "Depends:" && /linux-image-[0-9]/ { print $2; exit }'
}

# The reason of a failure is kept for guest_require.
guest_fetch () {
  [ -n "$(guest_lacks)" ] || return 0
  if guest_fetch_kernel; then rm -f "$guest_dir/missing"
  else
    echo "$guest_missing" >"$guest_dir/missing"
    return 1
  fi
}

guest_fetch_kernel () {
  local package
  guest_has_apt || return 1
  package=$(guest_package)
  [ -n "$package" ] ||
    { guest_missing="apt knows no linux-image-cloud-amd64 (apt-get update?)"; return 1; }
  guest_download "$package" kernel || return 1
  # Debian 13's package has no /lib.
  [ -e "$guest_tree/lib" ] || ln -s usr/lib "$guest_tree/lib"
  [ -z "$(guest_lacks)" ] ||
    { guest_missing="package $package has no $(guest_lacks)"; return 1; }
}

guest_has_apt () {
  type -P apt-get dpkg-deb >/dev/null || {
    guest_missing="the kernel is a Debian package, this machine has no apt"
    return 1
  }
  [ "$(dpkg --print-architecture)" = amd64 ] || {
    guest_missing="the kernel is for amd64, apt's packages here are for\
 $(dpkg --print-architecture)"
    return 1
  }
}

guest_download () { # PACKAGE DIRECTORY
  local new=$guest_dir/new
  guest_has_apt || return 1
  rm -rf "$new" && mkdir -p "$new/$2"
  # As root apt would download as a user who cannot write here.
  (cd "$new" && timeout 300 apt-get -q -o APT::Sandbox::User="$(id -un)" download "$1") \
    >"$guest_dir/download.log" 2>&1 ||
    { guest_missing="apt-get download $1 failed, see build/guest/download.log"; return 1; }
  dpkg-deb -x "$new"/*.deb "$new/$2"
  rm -rf "${guest_dir:?}/$2"
  mv "$new/$2" "$guest_dir/$2"
  rm -rf "$new"
}

guest_require () {
  local program
  for program in qemu-system-x86_64 busybox nbd-client mke2fs cpio dash modprobe xz timeout; do
    PATH=$PATH:/usr/sbin:/sbin command -v $program >/dev/null ||
      { guest_missing="$program is not installed (make deps)"; return 1; }
  done
  # A dynamic one would do as well, but would have to find its libraries to report their absence.
  ! ldd "$(type -P busybox)" >/dev/null 2>&1 ||
    { guest_missing="busybox is not linked statically (package busybox-static)"; return 1; }
  [ -z "$(guest_lacks)" ] || {
    guest_missing="no $(guest_lacks) in build/guest/kernel:\
 $(cat "$guest_dir/missing" 2>/dev/null || echo "make deps was not run")"
    return 1
  }
}

# Module files in the order of insertion; those that the kernel has built in are none.
guest_modules () { # NAME...
  local version name list
  version=$(guest_version) || return 1
  PATH=$PATH:/usr/sbin:/sbin
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
  mkdir -p "$root/modules"
  files=$(guest_modules "$@") || return 1
  for file in $files; do
    name=$(basename "${file%.xz}")
    if [ "$name" = "$(basename "$file")" ]; then cp "$file" "$root/modules/"
    else xz -dc "$file" >"$root/modules/$name"; fi || return 1
    echo "$name" >>"$root/modules/list"
  done
}

# Debian's layout: everything below /usr, with links in place of the old directories.
guest_copy_file () { # ROOT FILE=NAME
  local file=${2%%=*} name=${2#*=} library
  case $name in /bin/* | /sbin/* | /lib/* | /lib64/*) name=/usr$name;; esac
  mkdir -p "$1$(dirname "$name")"
  cp -L "$file" "$1$name" || return 1
  { ldd "$file" 2>/dev/null || :; } | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' |
    while read -r library; do
      case $library in /lib*) name=/usr$library;; *) name=$library;; esac
      [ -e "$1$name" ] || {
        mkdir -p "$1$(dirname "$name")"
        cp -L "$library" "$1$name" || exit 1
      }
    done
}

guest_image () { # IMAGE MODULES JOB FILE...
  local image=$1 root rc=0
  shift
  root=$(mktemp -d)
  if ! { guest_fill "$root/tree" "$@" && guest_pack "$root/tree" >"$image"; } \
       2>"$root/errors"; then
    cat "$root/errors" >&2
    guest_missing="no image for the guest: $(tail -n 1 "$root/errors")"
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
  mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,bb,dev,proc,sys,tmp,mnt,run,etc}
  for file in bin sbin lib lib64; do ln -s "usr/$file" "$root/$file"; done
  guest_copy_file "$root" "$(type -P busybox)=/usr/bin/busybox" || return 1
  # busybox's own shell takes its applets before the programs that were copied.
  guest_copy_file "$root" "$(type -P dash)=/usr/bin/sh" || return 1
  : >"$root/etc/mtab"
  : >"$root/modules.none"
  # shellcheck disable=SC2086
  [ -z "$modules" ] || guest_copy_modules "$root" $modules || return 1
  cp "$guest_source/init" "$root/init" && cp "$job" "$root/job" || return 1
  chmod +x "$root/init" "$root/job"
  for file; do guest_copy_file "$root" "$file" || return 1; done
}

guest_qemu () { # SECONDS IMAGE LOG OPTION...
  local seconds=$1 image=$2 log=$3
  shift 3
  # panic=-1 and -no-reboot: a kernel that panics ends QEMU at once. In the foreground: who ends our
  # process group ends QEMU.
  timeout --foreground -k 5 "$seconds" qemu-system-x86_64 -display none -monitor none -serial "file:$log" \
    -nodefaults -no-user-config -no-reboot -kernel "$(guest_kernel)" -initrd "$image" \
    "$@" </dev/null
}

guest_append="console=ttyS0 loglevel=4 panic=-1 mitigations=off"

# A kernel can hang under KVM where /dev/kvm is there and looks well, so only a boot tells.
guest_accel () {
  local tmp
  # One processor: under TCG the guest's calls from one to another cost more than the second one
  # brings (a pipe between two processes: 355 MB/s with one, 20 with two). Without erms and fsrm the
  # kernel copies by words; TCG does `rep movsb' byte by byte (writing to tmpfs: 210 and 104 MB/s).
  guest_accel=(-accel tcg -smp 1 -cpu "max,-erms,-fsrm")
  [ -r /dev/kvm ] && [ -w /dev/kvm ] || return 0
  tmp=$(mktemp -d)
  echo 'exit 0' >"$tmp/job"
  guest_image "$tmp/image" "" "$tmp/job"
  if guest_qemu 10 "$tmp/image" "$tmp/log" -accel kvm -cpu host -m 256 -nic none \
       -append "$guest_append" 2>/dev/null && grep -q '^@ status 0' "$tmp/log"; then
    guest_accel=(-accel kvm -cpu host -smp 2)
  fi
  rm -rf "$tmp"
}

guest_boot () {
  local seconds=$1 mib=$2 image=$3 log=$4
  shift 4
  if [ "${guest_accel[0]}" = uml ]; then
    uml_boot "$seconds" "$mib" "$image" "$log" || :
  else
    guest_qemu "$seconds" "$image" "$log" "${guest_accel[@]}" -m "$mib" -append "$guest_append" "$@" || :
  fi
  # The guest's own word: user-mode Linux now and then aborts when it halts.
  grep -aq '^@ status 0' "$log"
}
