# SPDX-License-Identifier: BSD-3-Clause
# Power cuts under file systems.  A guest has ext4 or xfs on Linux's NBD client
# and this server.  Some workers there create, replace, grow and remove files,
# and sync each step.  record.so, below asyncpool, records all that the plugin
# was given.  replay.so builds crash images from this.  The guest mounts each:
# the file system must recover, and hold all steps that were acknowledged.  Then
# fsck here must find no fault.  guest-crash.sh is the guest's part.
#
# In the long test (make crash-long), other rows have dm-log-writes between file
# system and client.  It and record.so must agree (crash_witness.py).
#
#   CRASH_STEPS=N     steps of each row
#   CRASH_POINTS=N    images of each row (`all': four at each flush)
#   CRASH_SEED=N      the images' seed
#   CRASH_ROWS=REGEX  rows of the long test, such as `pool.*xfs'
#
# An acknowledged step has a line in `acks': the length of the log after its
# fsync, the worker, the step.  An image of this moment, or of a later one, must
# have the step.
. "$TESTS_DIR/functions.sh"
. "$TESTS_DIR/../benchmarks/guest/guest.sh"
PATH=$guest_path
guest_require || skip_all "$guest_missing"
require e2fsck mkfs.xfs xfs_repair nbdcopy dmsetup

# A step is one of four workers'.
steps=$((${CRASH_STEPS:-20} / 4)) points=${CRASH_POINTS:-8}
seed=${CRASH_SEED:-$((RANDOM + 1))}
echo "# CRASH_SEED=$seed"
size=40M batch=32
# The delay is long for a guest under emulation: when a flush comes, data is
# still dirty.
pool="--filter=$FILTER $BUILD/tests/record.so delay=20000 asyncpool-stats=stats"
contexts="$pool serial=1 asyncpool-contexts=4"
hooks="$pool hooks=1"
emulated="$pool fua=0"
# A plugin that answers flushes and makes nothing durable.
lie="$pool lie=1"

# The guest.

guest_start ()
{
  guest_image image \
    "nbd virtio_net virtio_pci virtio_blk ext4 xfs dm-log-writes" \
    "$TESTS_DIR/guest-crash.sh" nbd-client dmsetup \
    "$BUILD/tests/guest-crash=/usr/bin/guest-crash" || return 1
  truncate -s $size "${images[@]}"
  truncate -s 256M witness.log
  server_start images partitioning "${images[@]}" || return 1
  mkfifo line.in line.out
  exec 7<>line.in 8<>line.out
  guest_accel
  {
    guest_boot "${TEST_TIMEOUT:-600}" 512 image console \
      -nic user,model=virtio-net-pci -serial "pipe:$TEST_DIR/line" \
      -drive "file=nbd:unix:$TEST_DIR/images.sock,format=raw,if=virtio" \
      -drive file=witness.log,format=raw,if=virtio >guest.out 2>&1
    rc=$?
    : >guest.ended
    # For a job that waits.
    echo "done 1" >&8
    exit $rc
  } &
  guest=$!
  guest_answers
}

guest_do () # JOB...
{
  [ ! -e guest.ended ] || return 1
  echo "$*" >&7
  guest_answers
}

# Returns the job's status, or 1 if the guest ends.
guest_answers ()
{
  local word a b
  while read -r word a b <&8; do
    case $word in
      ack)
        echo "$(stat -c %s log) $a $b" >>acks
        echo >&7
        ;;
      bad) echo "image $a ($(sed -n "${a}p" batch.points)): $b" >>bad ;;
      done) return "$a" ;;
    esac
  done
}

guest_end ()
{
  echo end >&7
  wait "$guest"
}

# Recording.

# tcp_server ARGUMENT...: on a port that is free; the guest sees it at 10.0.2.2.
tcp_server ()
{
  local try
  for try in 1 2 3 4 5; do
    server_port=$((20000 + RANDOM % 12000))
    ! server_start record "$@" || break
    server_port="" try=failed
  done
  port=$server_port server_port=""
  [ $try != failed ]
}

make_fs () # FILE-SYSTEM FILE
{
  rm -f "$2"
  truncate -s $size "$2"
  case $1 in
    ext4) mkfs.ext4 -q -b 4096 -J size=4 "$2" ;;
    # The check of the smallest size is for real disks.
    xfs) mkfs.xfs -q --unsupported "$2" ;;
  esac
}

record () # KIND FILE-SYSTEM CONNECTIONS [witness]
{
  rm -f acks
  # shellcheck disable=SC2086
  make_fs "$2" fs && tcp_server ${!1} size=$size log=log &&
    nbdcopy --flush fs "nbd://127.0.0.1:$port" || return 1
  from=$(stat -c %s log)
  guest_do write "$2" "$port" "$3" "$steps" ${4:+"$4"}
}

# Crash images.

# Prints lines MOMENT SEED: after a flush with no other change, and before it
# with none, all, or some of the others.
choose ()
{
  awk -v from="$from" -v points="$points" -v seed="$seed" '
    BEGIN { n = 0 }
    $1 >= from { before[n] = $1; after[n++] = $2 }
    END {
      if (points == "all") points = 4 * n
      for (i = 0; i < points; i++) {
        f = int (i * n / points)
        if (i % 4 == 0) print after[f], 0
        else print before[f], i % 4 == 3 ? int (i / 4) % 2 : seed * 10000 + i
      }
    }' log.flushes
}

# Prints a line for the guest for each line of `batch.points'.
plan ()
{
  awk '
    FILENAME == "acks" { at[n] = $1; worker[n] = $2; step[n++] = $3; next }
    {
      for (w = 0; w < 4; w++) last[w] = -1
      for (i = 0; i < n && at[i] <= $1; i++) last[worker[i]] = step[i]
      print FNR, last[0], last[1], last[2], last[3]
    }' acks batch.points
}

fsck () # FILE-SYSTEM FILE
{
  case $1 in
    ext4) e2fsck -f -n "$2" ;;
    xfs) xfs_repair -n -f "$2" ;;
  esac >fsck.out 2>&1
}

check_batch () # FILE-SYSTEM
{
  local moment image n=0
  while read -r moment image; do
    n=$((n + 1))
    nbdcopy "nbd+unix:///$moment.$image?socket=$TEST_DIR/replay.sock" \
      "image.$n" || return 1
  done <batch.points
  { plan; echo end; } >plan
  # The guest reads this after the job.
  guest_do "$(echo "check $1"; cat plan)" || return 1
  while [ $n -gt 0 ]; do
    fsck "$1" image.$n || {
      echo "image $n ($(sed -n "${n}p" batch.points)): fsck"
      cat fsck.out
    } >>bad
    n=$((n - 1))
  done
}

# Fails if an image is bad.
check_images () # FILE-SYSTEM
{
  local first=1 count
  rm -f bad
  choose >points
  count=$(wc -l <points)
  server_start replay "$BUILD/tests/replay.so" size=$size log=log || return 1
  while [ $first -le "$count" ] && [ ! -s bad ]; do
    tail -n +$first points | head -n $batch >batch.points
    check_batch "$1" || return 1
    first=$((first + batch))
  done
  server_stop replay || return 1
  images_checked=$((images_checked + count))
  echo "$count images of $(awk -v from="$from" '$1 >= from' log.flushes |
    wc -l) flushes"
  [ ! -s bad ] || { cat bad; return 1; }
}

recovers () # KIND FILE-SYSTEM CONNECTIONS
{
  local name="$1, $2, $3 connections" start=$SECONDS
  check "$name: the guest syncs its steps" record "$@"
  stops "$name" record
  # Otherwise this tests nothing of the filter.
  check "$name: writes were deferred" grep -E '^write-back: [1-9]' stats
  check "$name: all images recover" check_images "$2"
  diag <check.out
  echo "# $((SECONDS - start)) s, $(wc -l <acks) acknowledged steps"
}

# The second witness: dm-log-writes in the guest.
witnesses () # KIND FILE-SYSTEM CONNECTIONS
{
  local name="$1, $2, $3 connections, dm-log-writes"
  check "$name: the guest syncs its steps" record "$@" witness
  stops "$name" record
  check "$name: all that it says is flushed is durable" \
    "$PYTHON" "$TESTS_DIR/crash_witness.py" witness.log log acks
  diag <check.out
}

images=() images_checked=0
for ((n = 1; n <= batch; n++)); do images+=("image.$n"); done
check "the guest starts" guest_start || done_testing
if [ -n "${CRASH_LONG:-}" ]; then
  for kind in pool contexts hooks emulated; do
    for fs in ext4 xfs; do
      for connections in 1 4; do
        [[ ! "$kind $fs $connections" =~ ${CRASH_ROWS:-.} ]] ||
          { recovers $kind $fs $connections
            witnesses $kind $fs $connections; }
      done
    done
  done
else
  recovers pool ext4 1
fi
echo "# $images_checked crash images"

# Otherwise the above shows nothing.
check "lie: the guest syncs its steps" record lie ext4 1
stops lie record
lacks () { ! check_images ext4 && grep -qE 'missing|at step|mount' bad; }
check "lie: images are bad" lacks
check "the guest ends well" guest_end
stops images images
done_testing
