#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# The guest's part of test-kernel.sh.  The kernel's command line has job=, port=
# and connections=.  The jobs:
#   plain     write, fsync, unmount, e2fsck, mount again, compare
#   reset     the first time: write, fsync, go on writing, reset; the second
#             time as `compare'
#   cut       write, fsync, print `@ synced', go on writing until the guest is
#             killed
#   compare   mount the file system that is there, compare it with the data that
#             `reset' and `cut' have fsynced, e2fsck
# All but `compare' make a file system where there is none.
set -u
read -r words </proc/cmdline
for word in $words; do
  case $word in job=* | port=* | connections=*) eval "$word";; esac
done
: "${job:?}" "${port:?}" "${connections:?}"
ifconfig eth0 10.0.2.15 up

# Data that needs no copy for a comparison: file N has numbers of its own.
big () { seq $(($1 * 1000000)) $(($1 * 1000000 + 150000)); }
small () { seq $(($1 * 1000)) $(($1 * 1000 + $1)); }
files=6 names=120

write ()
{
  n=1
  while [ $n -le $files ]; do
    big $n | dd of=/mnt/big$n bs=64k conv=fsync 2>/dev/null || return 1
    n=$((n + 1))
  done
  mkdir /mnt/small
  n=1
  while [ $n -le $names ]; do
    small $n >/mnt/small/$n || return 1
    n=$((n + 1))
  done
  # All files, and the directory.
  sync
}

compare ()
{
  n=1
  while [ $n -le $files ]; do
    big $n | cmp - /mnt/big$n || return 1
    n=$((n + 1))
  done
  n=1
  while [ $n -le $names ]; do
    small $n | cmp - /mnt/small/$n || return 1
    n=$((n + 1))
  done
}

writes () { read -r _ _ _ _ count _ </sys/block/nbd0/stat; echo "$count"; }

# Creates, fills and removes files in the background, for ever and without a
# flush.  Returns when the device has received some of that.  The kernel's
# default is to wait for seconds before it sends any.
go_on ()
{
  echo 10 >/proc/sys/vm/dirty_writeback_centisecs
  echo 10 >/proc/sys/vm/dirty_expire_centisecs
  before=$(writes)
  while :; do
    mkdir /mnt/more
    for n in 11 12 13 14; do big $n >/mnt/more/$n; done
    rm -rf /mnt/more
  done &
  until [ "$(writes)" -ge $((before + 20)) ]; do sleep 0.1; done
}

checked () { umount /mnt && e2fsck -f -n /dev/nbd0; }

has_ext4 ()
{
  [ "$(dd if=/dev/nbd0 bs=2 skip=540 count=1 2>/dev/null |
    od -An -tx1 | tr -d ' ')" = 53ef ]
}

try () { echo "@ $*"; "$@" || { echo "@ failed: $*"; exit 1; }; }

try nbd-client 10.0.2.2 "$port" /dev/nbd0 -connections "$connections"
# The guest is reset once: the second start finds a file system.
[ "$job" != reset ] || ! has_ext4 || job=compare
if [ "$job" != compare ]; then
  has_ext4 || try mkfs.ext4 -q -b 4096 /dev/nbd0
  try mount /dev/nbd0 /mnt
  try write
fi
case $job in
  plain)
    try checked
    echo 3 >/proc/sys/vm/drop_caches
    try mount /dev/nbd0 /mnt
    try compare
    try checked
    ;;
  reset)
    go_on
    # This does not return.
    echo b >/proc/sysrq-trigger
    try false
    ;;
  cut)
    go_on
    echo "
@ synced"
    wait
    ;;
  compare)
    try mount /dev/nbd0 /mnt
    dmesg | grep EXT4-fs
    try compare
    try checked
    ;;
esac
try nbd-client -d /dev/nbd0
