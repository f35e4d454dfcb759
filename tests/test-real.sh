# SPDX-License-Identifier: BSD-3-Clause
#
# Real data and real clients: an ext4 file system goes in by one client and out
# by another, and stock NBD clients verify their own data.
. "$TESTS_DIR/functions.sh"
require nbdcopy cmp
PATH=$PATH:/usr/sbin:/sbin

# serve SIZE [PARAMETER...]
serve ()
{
  server_start pool "--filter=$FILTER" "$DELAYMEM" "size=$1" \
    "delay=$latency" "${@:2}"
}

# The image.

latency=4ms mib=40; [ -z "$slow" ] || { latency=1ms mib=16; }

# make_tree: this project, header files, random files, links, a sparse file.
make_tree ()
{
  local i
  mkdir tree
  cp -r "$TESTS_DIR/.." tree/project 2>/dev/null
  rm -rf tree/project/build tree/project/.git
  cp -r /usr/include tree/ 2>/dev/null
  while [ "$(du -sm tree | cut -f1)" -gt $((mib * 6 / 10)) ]; do
    find tree/include -mindepth 1 -maxdepth 1 | head -n 40 | xargs -r rm -rf
    [ -n "$(ls tree/include)" ] || break
  done
  mkdir tree/generated
  for i in 1 2 3 4 5 6 7 8 9 10; do
    head -c $((i * i * 4321)) /dev/urandom >"tree/generated/random $i"
    ln -s "random $i" "tree/generated/link $i"
  done
  truncate -s 3M tree/generated/sparse
}

if have mke2fs e2fsck; then
  make_tree
  check "mke2fs makes the image" mke2fs -q -t ext4 -d tree image ${mib}M
else
  skip_missing "mke2fs makes the image"
  random_file image $mib
fi
bytes=$(stat -c %s image)

# check_out NAME: of the file `out', which is the same as the image.
check_out ()
{
  if have e2fsck; then
    check "$1: e2fsck finds no error" e2fsck -fn out
  fi
  rm -f out
}
# reads NAME [OPTION...]: by nbdcopy.
reads ()
{
  copies_out "$@"
  check_out "$1"
}
qemu_reads ()
{
  check "$1: qemu-img reads the image" qemu-img convert -f raw -O raw "$uri" out
  check "$1: the image is unchanged" cmp image out
  check_out "$1"
}

name="nbdcopy writes"
serve "$bytes"
copies_in "$name"
reads "$name"
reads "$name" "${single[@]}"
if have qemu-img; then
  qemu_reads "$name"
  check "$name: qemu-img compares the image" \
    qemu-img compare -f raw -F raw image "$uri"
else
  skip_missing "qemu-img reads"
fi
stops "$name"

name="nbdcopy --synchronous writes"
serve "$bytes" asyncpool-write=behind asyncpool-buffers=8
copies_in "$name" "${single[@]}"
reads "$name"
stops "$name"

name="qemu-img writes"
if have qemu-img; then
  serve "$bytes"
  check "$name: the image" qemu-img convert -n -f raw -O raw image "$uri"
  reads "$name"
  qemu_reads "$name"
  stops "$name"
else
  skip_missing "$name"
fi

# Clients that verify their own data.

serve 64M asyncpool-write=behind

# One command after the other.  -P compares the data, and prints a message if
# it differs.
run_qemu_io ()
{
  local rc
  qemu-io -f raw \
    -c "write -P 1 0 1M" -c "write -P 2 512k 64k" \
    -c "read -P 1 0 512k" -c "read -P 2 512k 64k" -c "flush" \
    -c "write -z 1M 1M" -c "write -P 3 1100k 3k" \
    -c "read -P 0 1M 76k" -c "read -P 3 1100k 3k" -c "discard 4M 1M" \
    -c "aio_write -P 4 5M 1M" -c "aio_write -P 5 6M 1M" -c "aio_flush" \
    -c "read -P 4 5M 1M" -c "read -P 5 6M 1M" \
    -c "write -f -P 6 7M 4k" -c "read -P 6 7M 4k" -c "map" "$uri" \
    >qemu-io.out 2>&1
  rc=$?
  cat qemu-io.out
  [ $rc = 0 ] && ! grep -qi 'verification failed\|error\|fail' qemu-io.out
}
if have qemu-io; then
  check "qemu-io verifies its data" run_qemu_io
else
  skip_missing "qemu-io"
fi
if have nbdinfo; then
  is "nbdinfo --size prints the size" "$(nbdinfo --size "$uri")" $((64 << 20))
  check "nbdinfo works" nbdinfo "$uri"
  check "nbdinfo --map works" nbdinfo --map "$uri"
  for can in flush fua zero trim multi-conn; do
    check "nbdinfo --can $can succeeds" nbdinfo --can $can "$uri"
  done
else
  skip_missing "nbdinfo"
fi
if have_python && have nbdsh; then
  # nbdsh takes the first python3 of the PATH.
  check "nbdsh verifies its data" \
    env "PATH=$(dirname "$PYTHON"):$PATH" nbdsh -u "$uri" \
    -c 'h.pwrite(b"abc" * 1000, 12345)' \
    -c 'assert h.pread(3000, 12345) == b"abc" * 1000' \
    -c 'h.flush()' -c 'h.zero(3000, 12345)' \
    -c 'assert h.pread(3000, 12345) == bytes(3000)' -c 'h.shutdown()'
else
  skip_missing "nbdsh"
fi
# fio_verifies RW SIZE DEPTH
fio_verifies ()
{
  check "fio verifies its data: $1, $2, depth $3" \
    fio --name=verify --ioengine=nbd --uri="$uri" \
    --rw="$1" --bs="$2" --iodepth="$3" --size="$amount" --io_size="$amount" \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 \
    --time_based=0 --verify_state_save=0 --output=fio.out
}
if have fio && fio --enghelp 2>/dev/null | grep -qw nbd; then
  amount=32M; [ -z "$slow" ] || amount=4M
  fio_verifies write 4k 1
  fio_verifies randwrite 4k 16
  fio_verifies write 128k 1
  fio_verifies randwrite 64k 8
  fio_verifies randrw 16k 4
else
  skip "fio" "fio with its nbd engine is not installed"
fi
stops "real clients"
done_testing
