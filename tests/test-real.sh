# Real input, end to end: a file system of real files, and other people's clients.
. "$TESTS_DIR/functions.sh"
require nbdcopy cmp
PATH=$PATH:/usr/sbin:/sbin

pool () { server_start "$1" "--filter=$FILTER" "$DELAYMEM" "size=$bytes" "${@:2}"; }

# The image.
latency=4ms mib=40; [ -z "$slow" ] || { latency=1ms; mib=16; }
if have mke2fs e2fsck; then
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
  check "mke2fs" mke2fs -q -t ext4 -d tree image ${mib}M
else
  skip "mke2fs" "$missing is not installed"
  random_file image $mib
fi
bytes=$(stat -c %s image)

# verify NAME FILE
verify ()
{
  check "$1: the same bit for bit" cmp image "$2"
  if have e2fsck; then
    check "$1: e2fsck is content" e2fsck -fn "$2"
  fi
  rm -f "$2"
}

# In by one client, out by each.
pool one "delay=$latency"
check "nbdcopy in" nbdcopy --flush image "$uri"
check "nbdcopy out" nbdcopy "$uri" out
verify "nbdcopy, nbdcopy" out
check "one at a time out" nbdcopy --synchronous --connections=1 --requests=1 "$uri" out
verify "nbdcopy, one at a time" out
if have qemu-img; then
  check "qemu-img out" qemu-img convert -f raw -O raw "$uri" out
  verify "nbdcopy, qemu-img" out
  check "qemu-img compare" qemu-img compare -f raw -F raw image "$uri"
else
  skip "qemu-img out" "$missing is not installed"
fi
check "ends well" server_stop one

pool two "delay=$latency" asyncpool-write=behind asyncpool-buffers=8
check "one at a time in" nbdcopy --synchronous --connections=1 --requests=1 --flush image "$uri"
check "nbdcopy out again" nbdcopy "$uri" out
verify "one at a time, nbdcopy" out
check "ends well" server_stop two

if have qemu-img; then
  pool three "delay=$latency"
  check "qemu-img in" qemu-img convert -n -f raw -O raw image "$uri"
  check "nbdcopy out" nbdcopy "$uri" out
  verify "qemu-img, nbdcopy" out
  check "qemu-img out" qemu-img convert -f raw -O raw "$uri" out
  verify "qemu-img, qemu-img" out
  check "ends well" server_stop three
else
  skip "qemu-img in" "$missing is not installed"
fi

# Other clients.
bytes=64M
pool four "delay=$latency" asyncpool-write=behind
if have qemu-io; then
  # One command after the other; -P checks what is read, and says so when it differs.
  qemu-io -f raw -c "write -P 1 0 1M" -c "write -P 2 512k 64k" -c "read -P 1 0 512k" \
    -c "read -P 2 512k 64k" -c "flush" -c "write -z 1M 1M" -c "write -P 3 1100k 3k" \
    -c "read -P 0 1M 76k" -c "read -P 3 1100k 3k" -c "discard 4M 1M" -c "aio_write -P 4 5M 1M" \
    -c "aio_write -P 5 6M 1M" -c "aio_flush" -c "read -P 4 5M 1M" -c "read -P 5 6M 1M" \
    -c "write -f -P 6 7M 4k" -c "read -P 6 7M 4k" -c "map" "$uri" >qemu-io.out 2>&1
  rc=$?
  ! grep -qi 'verification failed\|error\|fail' qemu-io.out || rc=1
  ok $rc "qemu-io" || diag <qemu-io.out
else
  skip "qemu-io" "$missing is not installed"
fi
if have nbdinfo; then
  is "nbdinfo --size" "$(nbdinfo --size "$uri")" $((64 << 20))
  check "nbdinfo" nbdinfo "$uri"
  check "nbdinfo --map" nbdinfo --map "$uri"
  for can in flush fua zero trim multi-conn; do
    check "nbdinfo --can $can" nbdinfo --can $can "$uri"
  done
else
  skip "nbdinfo" "$missing is not installed"
fi
if have_python && have nbdsh; then
  # nbdsh takes the first python3 of the PATH.
  check "nbdsh" env "PATH=$(dirname "$PYTHON"):$PATH" nbdsh -u "$uri" -c 'h.pwrite(b"abc" * 1000, 12345)' \
    -c 'assert h.pread(3000, 12345) == b"abc" * 1000' -c 'h.flush()' -c 'h.zero(3000, 12345)' \
    -c 'assert h.pread(3000, 12345) == bytes(3000)' -c 'h.shutdown()'
else
  skip "nbdsh" "$missing is not installed"
fi
if have fio && fio --enghelp 2>/dev/null | grep -qw nbd; then
  amount=32M; [ -z "$slow" ] || amount=4M
  for job in "write 4k 1" "randwrite 4k 16" "write 128k 1" "randwrite 64k 8" "randrw 16k 4"; do
    read -r rw bs depth <<<"$job"
    check "fio verify: $rw, $bs, depth $depth" fio --name=verify --ioengine=nbd --uri="$uri" \
      --rw="$rw" --bs="$bs" --iodepth="$depth" --size="$amount" --io_size="$amount" \
      --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 --time_based=0 \
      --verify_state_save=0 --output=fio.out
  done
else
  skip "fio" "fio with its nbd engine is not installed"
fi
check "ends well" server_stop four
done_testing
