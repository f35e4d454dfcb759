# Filters above and below asyncpool: what is copied in comes out.
. "$TESTS_DIR/functions.sh"
require nbdcopy cmp

size=6; [ -z "$slow" ] || size=2
random_file image $size
pool="asyncpool-write=behind asyncpool-buffers=16"

# round NAME: copies in as one client and out as another, deep and one request at a time.
round ()
{
  if [ "$1" = "$2" ]; then
    check "$3: copy in" nbdcopy --flush image "$uri"
    rm -f out
    check "$3: copy out" nbdcopy --connections=1 --requests=1 --synchronous "$uri" out
  else
    check "$3: copy in, one at a time" nbdcopy --connections=1 --requests=1 --synchronous --flush \
      image "$uri"
    rm -f out
    check "$3: copy out, deep" nbdcopy "$uri" out
  fi
  check "$3: the same" cmp image out
}

# both NAME ARGUMENT...
both ()
{
  local name=$1
  shift
  # shellcheck disable=SC2086
  server_start pool "$@" $pool || { ok 1 "$name: starts"; return; }
  round deep deep "$name"
  check "$name: ends well" server_stop pool
  # shellcheck disable=SC2086
  server_start pool "$@" $pool || { ok 1 "$name: starts"; return; }
  round single deep "$name"
  check "$name: ends well" server_stop pool
}

gate () { device=("$GATE" "size=$1" delay=300us); }
F=--filter=$FILTER
gate ${size}M
both "alone" "$F" "${device[@]}"
for filter in cow cache readahead noparallel nofilter blocksize noextents nozero fua; do
  both "$filter above" --filter=$filter "$F" "${device[@]}"
done
for filter in cow cache noparallel nofilter blocksize noextents nozero fua retry; do
  both "$filter below" "$F" --filter=$filter "${device[@]}"
done
both "delay above" --filter=delay "$F" "${device[@]}" delay-write=1ms delay-read=1ms
both "delay below" "$F" --filter=delay "${device[@]}" delay-write=1ms delay-read=1ms
both "error below" "$F" --filter=error "${device[@]}" error-rate=0%
both "blocksize-policy below" "$F" --filter=blocksize-policy "${device[@]}" \
  blocksize-minimum=4096 blocksize-preferred=64k blocksize-maximum=2M blocksize-error-policy=error
both "blocksize-policy above" --filter=blocksize-policy "$F" "${device[@]}" \
  blocksize-minimum=512 blocksize-preferred=4k blocksize-maximum=1M
both "blocksize below, small" "$F" --filter=blocksize "${device[@]}" minblock=4k maxdata=32k
gate $((size + 2))M
both "offset above" --filter=offset "$F" "${device[@]}" offset=1M range=${size}M
both "offset below" "$F" --filter=offset "${device[@]}" offset=1048577 range=${size}M
both "truncate above" --filter=truncate "$F" "${device[@]}" truncate=${size}M
both "truncate below" "$F" --filter=truncate "${device[@]}" truncate=${size}M

if have sfdisk; then
  for where in above below; do
    rm -f disk; truncate -s $((size + 2))M disk
    echo "2048,$((size * 2048))" | sfdisk -q disk >/dev/null 2>&1
    if [ $where = above ]; then
      both "partition above" --filter=partition "$F" --filter=delay file disk partition=1 wdelay=1ms
    else
      both "partition below" "$F" --filter=partition --filter=delay file disk partition=1 wdelay=1ms
    fi
    check "partition $where: in the file" cmp -n $((size << 20)) -i $((2048 * 512)):0 disk image
  done
else
  skip partition "$missing is not installed"
fi
done_testing
