#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# The experiment of 2017, for a machine whose kernel has nbd: the guest of `make
# bench-kernel', or the machine itself, as root.  Each contestant has its own
# nbdkit, nbd device and ext4.  A guest has no bash, so this starts nbdkit
# without measure.sh.
#
# $JOB_DIR (or /) has asyncpool.so, delaymem.so, tree.tar and the plan.  A line
# of the plan:
#   CLIENT|CONTESTANT|MIB|OTHER|FILES|ARGUMENTS OF NBDKIT
# CLIENT is `default' or `tuned'.  MIB is the size of the file written, OTHER of
# the first one beside it; the other two have half of that.  FILES is how many
# files of the tree to write.  Results go out as `@ row,...', see row ().
# shellcheck disable=SC3043
set -u
dir=${JOB_DIR:-}
work=$(mktemp -d /tmp/kernel-job.XXXXXX)
mnt=$work/mnt
device=/dev/nbd0
queue=/sys/block/nbd0/queue
# One file is read to its end, as in 2017, except by the slowest.  Several are
# read side by side until the first could be through.  The notes of
# case-kernel.sh name these times.
one_file_seconds=45
files_seconds=20
tree_seconds=4

now_ms () { awk '{ printf "%d", $1 * 1000 }' /proc/uptime; }
# Of all processors since the start, in ticks: idle and all.
ticks () {
  awk '/^cpu / { n = 0; for (i = 2; i <= 9; i++) n += $i; print $5 + $6, n }' \
    /proc/stat
}
sectors_read () { awk '{ print $3 }' /sys/block/nbd0/stat; }
fail () { echo "@ fail $client, $contestant: $*"; failed=1; }

# The start of a measured stretch.
mark () { ticks=$(ticks) from=$(now_ms); }
# Its end: the result has its time, and how busy the processors were.
row () { # WORKLOAD BYTES [OPERATIONS]
  local ms busy
  ms=$(($(now_ms) - from))
  busy=$(echo "$ticks $(ticks)" | awk '{
    printf "%.0f", ($4 > $2 ? 100 - 100 * ($3 - $1) / ($4 - $2) : 100) }')
  echo "@ row,$client,$contestant,$1,$2,$ms,${3:-},$busy"
}

# 1: the page cache, as in 2017.  3: also inodes and directories.
drop_caches () {
  sync -f "$mnt"
  echo "$1" >/proc/sys/vm/drop_caches
}

# The queue keeps its values after the connection, and the next contestant is to
# find the kernel's own.
tune () {
  for i in read_ahead_kb wbt_lat_usec nr_requests; do
    [ -e "$work/default.$i" ] || cat $queue/$i >"$work/default.$i"
  done
  [ "$client" = tuned ] || return 0
  echo 16384 >$queue/read_ahead_kb
  echo 0 >$queue/wbt_lat_usec
  # For the scheduler; nbd itself takes 128 for each connection.
  echo 1024 >$queue/nr_requests
}
untune () {
  [ "$client" = tuned ] || return 0
  for i in "$work"/default.*; do
    [ ! -e "$i" ] || cat "$i" >"$queue/${i##*/default.}"
  done
}

# Also after an interrupt or a failed contestant: this may be the user's own
# machine.
server=
clean () {
  ! grep -q " $mnt " /proc/mounts || umount "$mnt" || umount -l "$mnt"
  [ -n "$server" ] || return 0
  untune
  nbd-client -d $device >/dev/null 2>&1
  kill "$server" 2>/dev/null && wait "$server"
  server=
  rm -f "$work/sock"
}
trap 'clean; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

start () { # NBDKIT ARGUMENTS
  rm -f "$work/pid"
  (cd "$dir/" && exec nbdkit -f -U "$work/sock" -P "$work/pid" "$@") \
    >"$work/log" 2>&1 &
  server=$!
  while [ ! -s "$work/pid" ]; do
    kill -0 "$server" 2>/dev/null || { cat "$work/log"; return 1; }
    sleep 0.1
  done
  nbd-client -unix "$work/sock" $device >"$work/client.log" 2>&1 ||
    { cat "$work/client.log"; return 1; }
}

stop () {
  umount "$mnt" || fail "umount"
  e2fsck -f -n $device >"$work/fsck" 2>&1 ||
    { fail "e2fsck"; cat "$work/fsck"; }
  untune
  nbd-client -d $device >/dev/null 2>&1
  kill "$server"
  wait "$server" || { fail "nbdkit's status $?"; cat "$work/log"; }
  server=
  rm -f "$work/sock"
}

write_file () { # NAME MIB
  dd if=/dev/zero of="$mnt/$1" bs=128k count=$(($2 * 8)) conv=fsync \
    2>"$work/dd" || { fail "dd"; cat "$work/dd"; }
}

read_files () { # SECONDS WORKLOAD NAME...
  local seconds="$1" workload="$2" start pids="" pid file
  shift 2
  drop_caches 1
  start=$(sectors_read)
  mark
  for file; do
    timeout "$seconds" cat "$mnt/$file" >/dev/null &
    pids="$pids $!"
  done
  complete=1
  for pid in $pids; do wait "$pid" || complete=; done
  # Only the kernel knows how much it has read of a file that was not finished.
  row "$workload" $((($(sectors_read) - start) * 512))
}

# Reading back compares checksums, and may stop early; the files per second are
# known then.
tree () { # FILES
  local read=0 list
  head -n "$1" "$work/names" >"$work/some"
  drop_caches 3
  mark
  mkdir "$mnt/tree"
  tar -x -C "$mnt/tree" -T "$work/some" -f "$dir/tree.tar" || fail "tar"
  sync -f "$mnt"
  row "untar+sync" 0 "$1"
  drop_caches 3
  rm -f "$work"/part.*
  head -n "$1" "$work/sums" | split -l 50 - "$work/part."
  mark
  for list in "$work"/part.*; do
    (cd "$mnt/tree" && md5sum -c "$list" >"$work/sum.log" 2>&1) ||
      { fail "a checksum"; grep -v OK "$work/sum.log"; }
    read=$((read + $(wc -l <"$list")))
    [ $(($(now_ms) - from)) -lt $((tree_seconds * 1000)) ] || break
  done
  row "read back" 0 $read
  drop_caches 3
  mark
  rm -rf "$mnt/tree"
  sync -f "$mnt"
  row "delete" 0 "$1"
}

contestant () { # MIB OTHER FILES ARGUMENTS
  local mib="$1" other="$2" files="$3" i
  shift 3
  start "$@" || { fail "no device"; clean; return; }
  tune
  mark
  mkfs.ext4 -q -b 4096 $device >"$work/mkfs" 2>&1 ||
    { fail mkfs; cat "$work/mkfs"; }
  mount $device "$mnt" || { fail mount; clean; return; }
  row mkfs+mount 0 1
  mark
  write_file zeros "$mib"
  row write+fsync $((mib << 20))
  write_file zeros1 "$other"
  for i in 2 3; do write_file zeros$i $((other / 2)); done
  read_files $one_file_seconds "read 1 file" zeros
  # The page cache now holds the data of these reads.
  [ -z "$complete" ] || cmp -n $((mib << 20)) "$mnt/zeros" /dev/zero ||
    fail "zeros differ"
  read_files $files_seconds "read 2 files" zeros zeros1
  read_files $files_seconds "read 4 files" zeros zeros1 zeros2 zeros3
  rm "$mnt"/zeros*
  tree "$files"
  stop
  sed 's/^/# /' "$work/log"       # statistics, where the plan asks for them
}

# A page of the guest becomes memory of the machine when it is written for the
# first time.  That is to happen before the measuring.
prefault () {
  dd if=/dev/zero of="$work/memory" bs=1M count="$(awk '
    /^MemAvailable:/ { print int ($2 / 1024 * 0.96) }' /proc/meminfo)" \
    2>"$work/dd"
  rm "$work/memory"
}

failed=0
mkdir "$mnt"
[ -n "$dir" ] || prefault
tar -x -C "$work" -f "$dir/tree.tar" ./sums
cut -d' ' -f3- "$work/sums" >"$work/names"
while IFS='|' read -r client contestant mib other files arguments; do
  echo "@ begin $client, $contestant, $(cut -d' ' -f1 /proc/uptime) s"
  # shellcheck disable=SC2086
  contestant "$mib" "$other" "$files" $arguments <&-
done <"$dir/plan"
for i in "$work"/default.*; do
  echo "@ default,${i##*/default.},$(cat "$i")"
done
exit $failed
