# SPDX-License-Identifier: BSD-3-Clause
# Linux's own NBD client and ext4 in a guest, asyncpool here.  Data that the
# guest has fsynced is there after an unmount, after a reset of the guest, and
# after guest and server are killed at once.  guest-kernel.sh is the guest's
# part.
. "$TESTS_DIR/functions.sh"
. "$TESTS_DIR/../benchmarks/guest/guest.sh"
guest_require || skip_all "$guest_missing"

boot_seconds=120
PATH=$guest_path
guest_image image "nbd virtio_net virtio_pci" "$TESTS_DIR/guest-kernel.sh" \
  nbd-client mkfs.ext4 e2fsck timeout || skip_all "$guest_missing"
# The guest needs a network device, which user-mode Linux does not have.
guest_accel
echo "# guest: $(basename "$(guest_kernel)"), QEMU ${guest_accel[*]}"
kernel_arguments=$guest_append

# tcp_server NAME ARGUMENT...: on a port that is free; the guest sees it at
# 10.0.2.2.
tcp_server ()
{
  local try
  for try in 1 2 3 4 5; do
    server_port=$((20000 + RANDOM % 12000))
    ! server_start "$@" || return 0
    echo "# port $server_port, try $try"
  done
  return 1
}

# guest_start PHASE CONNECTIONS [OPTION...]: the guest with that job of
# guest-kernel.sh.  The console goes to PHASE.log.
guest_start ()
{
  local phase=$1
  guest_append="$kernel_arguments job=$phase port=$server_port connections=$2"
  shift 2
  guest_boot $boot_seconds 384 image "$phase.log" \
    -nic user,model=virtio-net-pci "$@"
}

# boot PHASE [CONNECTIONS [OPTION...]]: the same, and prints the console.
boot ()
{
  local phase=$1 connections=${2:-1} rc=0
  shift; [ $# = 0 ] || shift
  guest_start "$phase" "$connections" "$@" || rc=$?
  tr -d '\r' <"$phase.log" | tail -n 60
  return $rc
}

not () { ! "$@"; }
said () { grep -aq "$1" "$2"; }
recovered='EXT4-fs (nbd0): recovery complete'

# In the guest: write, fsync, unmount, e2fsck, mount again, compare.
for connections in 1 4; do
  check "asyncpool on delaymem starts" tcp_server "plain$connections" \
    --filter="$FILTER" "$DELAYMEM" size=192M delay=10ms \
    asyncpool-stats="stats$connections"
  check "ext4 over $connections connections: write, fsync, unmount, e2fsck,\
 compare" boot plain $connections
  check "the server ends well" server_stop "plain$connections"
  # Otherwise this has tested nothing of the filter.
  check "writes were deferred" \
    grep -E '^write-back: [1-9]' "stats$connections"
done

# The guest is reset while it writes.  QEMU does not end; the server and its
# memory live on.
check "asyncpool on delaymem starts" tcp_server reset --filter="$FILTER" \
  "$DELAYMEM" size=192M delay=10ms
check "a reset guest finds the data that it fsynced" \
  boot reset 1 -action reboot=reset
check "the journal was replayed" said "$recovered" reset.log
check "the server ends well" server_stop reset

# Guest and server are killed at once: only the data that the plugin had is
# left.
disk_server ()
{
  tcp_server "$1" --filter="$FILTER" --filter=delay file disk wdelay=20ms
}
cut () # SERVER
{
  local n=0 qemu
  rm -f cut.log
  guest_start cut 1 -pidfile qemu.pid &
  until said '^@ synced' cut.log 2>/dev/null; do
    n=$((n + 1))
    if [ $n -ge $((boot_seconds * 10)) ] || ! kill -0 $!; then
      cat cut.log
      return 1
    fi
    sleep 0.1
  done
  read -r qemu <qemu.pid
  kill -KILL "${server_pid[$1]}" "$qemu"
  wait $! "${server_job[$1]}"
  ! said '^@ status' cut.log
}
truncate -s 192M disk
check "asyncpool on a file starts" disk_server disk1
check "guest and server are killed after an fsync, in the middle of writes" \
  cut disk1
check "the server starts again" disk_server disk2
check "the fsynced data is on the disk" boot compare
check "the journal was replayed" said "$recovered" compare.log
check "the server ends well" server_stop disk2
check "e2fsck of the file" e2fsck -f -n disk

# The same must fail with a server that answers flushes and does nothing, or the
# above shows nothing.  It gets an empty file system that the guest uses, so
# that the comparison fails, not the mount.
truncate -s 192M lie
check "an empty file system" mke2fs -q -t ext4 -b 4096 lie
check "a server that drops flushes starts" tcp_server lie1 --filter="$FILTER" \
  --filter=cache file lie cache=unsafe
check "guest and server are killed after an fsync that was dropped" cut lie1
check "the server starts again" tcp_server lie2 file lie
check "the fsynced data is missing" not boot compare
check "by the comparison" said '^@ failed: compare' compare.log
check "the server ends well" server_stop lie2
done_testing
