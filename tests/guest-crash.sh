#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# The guest's part of test-crash-real.sh.  It does what the host says on the
# second serial line:
#   write FILE-SYSTEM PORT CONNECTIONS STEPS [witness]
#   check FILE-SYSTEM
#   end
# and answers `done STATUS', also once at the start.  guest-crash.c has the two
# jobs.  With `witness' the file system is on dm-log-writes, which logs to the
# disk /dev/vdb.
set -u
ifconfig eth0 10.0.2.15 up
# The kernel's default is to wait for seconds before it writes.
echo 10 >/proc/sys/vm/dirty_writeback_centisecs
echo 20 >/proc/sys/vm/dirty_expire_centisecs
stty -F /dev/ttyS1 raw -echo 115200
exec 3<>/dev/ttyS1
echo "done 0" >&3

write () # FILE-SYSTEM PORT CONNECTIONS STEPS [witness]
{
  device=/dev/nbd0 name=
  nbd-client 10.0.2.2 "$2" $device -connections "$3" || return 1
  if [ -n "${5:-}" ]; then
    name=log device=/dev/mapper/log
    export DM_DISABLE_UDEV=1
    dmsetup create $name --table \
      "0 $(cat /sys/block/nbd0/size) log-writes /dev/nbd0 /dev/vdb" || return 1
  fi
  mount -t "$1" $device /mnt &&
    guest-crash write /mnt "$4" $name <&3 >&3 && umount /mnt || return 1
  [ -z "$name" ] || dmsetup remove $name || return 1
  nbd-client -d /dev/nbd0
}

while read -r job words <&3; do
  echo "$job $words"
  [ "$job" != end ] || exit 0
  # shellcheck disable=SC2086
  case $job in
    write) write $words ;;
    check) guest-crash check $words <&3 >&3 ;;
  esac
  echo "done $?" >&3
done
