# SPDX-License-Identifier: BSD-3-Clause
#
# asyncpool's parameters: a bad one ends nbdkit with one line that has the
# parameter, the value and the values that are allowed.
. "$TESTS_DIR/functions.sh"

# start ARGUMENT...: nbdkit starts and ends at once.
above=()                        # options with filters above asyncpool
start ()
{
  "$NBDKIT" -U - "${above[@]}" "--filter=$FILTER" memory 1M "$@" --run true
}

# Bad parameters.

# refuses PARAMETER=VALUE... ALLOWED: the message is about the first one, and
# has the pattern ALLOWED.
refuses ()
{
  local rc=0 allowed=${*: -1} first=$1
  set -- "${@:1:$#-1}"
  start "$@" >refused.out 2>&1 || rc=$?
  is "$*: is refused" $rc 1
  is "$*: the message is one line" "$(wc -l <refused.out)" 1
  check "$*: the message has the parameter" \
    grep -qF -- "${first%%=*}" refused.out
  check "$*: the message has the value" grep -qF -- "${first#*=}" refused.out
  check "$*: the message has the allowed values" \
    grep -qE -- "$allowed" refused.out
  diag <refused.out
}

all='asyncpool-memory.*asyncpool-buffers.*asyncpool-buffer-size'
all+='.*asyncpool-threads'
all+='.*asyncpool-write.*asyncpool-read.*asyncpool-stats'
refuses asyncpool-foo=bar "$all"
for n in 0 -1 abc 1000000000 1.5 '' 10x ' 5' 99999999999999999999999; do
  refuses "asyncpool-buffers=$n" 'from 1 to [0-9]+'
  refuses "asyncpool-threads=$n" 'from 1 to [0-9]+'
done
for size in 100000 4096 32k 1T 0 -1 abc 64kk 3M 128M 18446744073709551616 64k5 \
  ''
do
  refuses "asyncpool-buffer-size=$size" 'power of two from 64K to'
done
for size in 0 -1 abc 1023K 1048575 2000G 1T 1MM '' 99999999999999999999; do
  refuses "asyncpool-memory=$size" 'from 1M to 1024G'
done
refuses asyncpool-memory=8M asyncpool-buffers=65 'enough for 65 buffers of 128K'
refuses asyncpool-memory=7M asyncpool-buffer-size=2M \
  'enough for 4 buffers of 2M'
for word in maybe Behind '' 1; do
  refuses "asyncpool-write=$word" 'auto, behind or through'
  refuses "asyncpool-read=$word" 'ahead or direct'
done
refuses "asyncpool-stats=$TEST_DIR/no/such/file" 'must be a file'
refuses "asyncpool-stats=$TEST_DIR" 'must be a file'
refuses "asyncpool-stats=" '.'

# A filter above that repeats a failed flush.
for filter in retry retry-request; do
  above=("--filter=$filter")
  refuses asyncpool-write=behind \
    "auto or through, or --filter=$filter must be after asyncpool"
  check "$filter above: nbdkit starts" start
  is "$filter above: one line says that no write is deferred" \
    "$(grep -c 'no write is deferred.*after asyncpool' check.out)/$(
      wc -l <check.out)" 1/1
  check "$filter above, asyncpool-write=through: nbdkit starts" \
    start asyncpool-write=through
  says_nothing "$filter above, asyncpool-write=through" check.out
done
above=()

# A slab that is larger than memory.
memory_mib=$(awk '/^MemTotal:|^SwapTotal:/ { sum += $2 }
  END { print int (sum / 1024) }' /proc/meminfo)
n=$((memory_mib * 2 / 64 + 1))
if [ $n -le 65536 ]; then
  refuses "asyncpool-buffers=$n" asyncpool-buffer-size=64M 'must fit'
else
  skip "a slab larger than memory is refused" \
    "this machine has more memory than a slab can have"
fi

n=$((memory_mib / 1024 * 2 + 1))
if [ $n -le 1024 ]; then
  refuses "asyncpool-memory=${n}G" asyncpool-buffer-size=64M 'must fit'
else
  skip "a slab larger than memory is refused" \
    "this machine has more memory than a slab can have"
fi

# More threads than can start.

# refuses_threads NAME MESSAGE [PARAMETER...]: nbdkit ends before it runs the
# command.  MESSAGE is the beginning.
refuses_threads ()
{
  local rc=0 name=$1 message=$2
  shift 2
  (ulimit -s 8192 -v 450000
   exec "$NBDKIT" -U - "--filter=$FILTER" memory 1M "$@" \
     --run 'echo it runs') >refused.out 2>&1 || rc=$?
  is "too many threads, $name: refused" $rc 1
  is "too many threads, $name: the message has the reason" \
    "$(sed 's/, one for each buffer//
       s/\(system allows\|65 threads\): .*/\1/' refused.out)" \
    "nbdkit: error: $message"
}
start_with_little ()
{
  (ulimit -s 8192 -v 450000; start)
}
if [ "$slow" ]; then
  skip "too many threads are refused" \
    "sanitizers and valgrind need more address space"
else
  most="must be a number of threads that the system allows"
  refuses_threads "threads given" "asyncpool-threads=300: $most" \
    asyncpool-threads=300
  refuses_threads "buffers given" "asyncpool-buffers=300: $most" \
    asyncpool-buffers=300 asyncpool-buffer-size=64k
  refuses_threads "both given" "asyncpool-threads=300: $most" \
    asyncpool-buffers=200 asyncpool-buffer-size=64k asyncpool-threads=300
  # Memory and threads as there are, if none are given.
  check "little memory: nbdkit starts" start_with_little
fi

# A container with a limit, the same in both versions of cgroups.  The server is
# in a mount namespace of its own.
cat >in_container <<'END'
mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory || exit
echo 67108864 >/sys/fs/cgroup/memory.max
echo 67108864 >/sys/fs/cgroup/memory/memory.limit_in_bytes
exec "$@"
END
start_in_container ()
{
  unshare -m bash in_container "$NBDKIT" -U - "--filter=$FILTER" memory 1M \
    asyncpool-stats=container --run true
}
if [ "$(id -u)" = 0 ] && [ -r /proc/self/cgroup ] &&
   unshare -m mount -t tmpfs none /sys/fs/cgroup 2>/dev/null; then
  check "a container's limit: nbdkit starts" start_in_container
  is "a container's limit: a sixteenth of it is the default" \
    "$(grep -o '^buffers: [0-9]*' container)" "buffers: 32"
else
  skip "a container's limit" "needs root and a mount namespace"
fi

# A third of the memory is for buffers of 1M, the rest for buffers of 128K.

# buffers_are NUMBER PARAMETER=VALUE...
buffers_are ()
{
  local number=$1
  shift
  "$NBDKIT" -U - "--filter=$FILTER" memory 1M asyncpool-stats=- "$@" \
    --run true 2>stats
  check "$*: $number buffers" grep -q "^buffers: $number in all" stats
}
buffers_are $((256 + 16)) asyncpool-memory=48M
buffers_are $((2048 + 128)) asyncpool-memory=384M
buffers_are 376 asyncpool-memory=47M
buffers_are 64 asyncpool-memory=64M asyncpool-buffer-size=1M
buffers_are 512 asyncpool-memory=64M asyncpool-buffer-size=128K
buffers_are 10 asyncpool-memory=64M asyncpool-buffers=10

# Good parameters.

# accepts [PARAMETER=VALUE...]
accepts ()
{
  local name=${*:-no parameter}
  check "$name: is accepted" start "$@"
  says_nothing "$name" check.out
}
accepts
for n in 1 2 3 100 65536; do
  if [ $n = 65536 ] && [ "$(getconf LONG_BIT)" = 32 ]; then
    skip "a slab of 4 GiB is accepted" "no room for it in 32 bits of address"
    continue
  fi
  accepts asyncpool-buffers=$n asyncpool-threads=2 asyncpool-buffer-size=64k
done
accepts asyncpool-threads=1
accepts asyncpool-threads=200
for size in 64k 64K 65536 128k 1M 1m 64M; do
  accepts asyncpool-buffer-size=$size asyncpool-buffers=2
done
for size in 1M 1m 1048576 1024k 1G 1g; do accepts asyncpool-memory=$size; done
accepts asyncpool-memory=8M asyncpool-buffers=64
accepts asyncpool-memory=8M asyncpool-buffer-size=2M
for word in auto behind through; do accepts asyncpool-write=$word; done
for word in ahead direct; do accepts asyncpool-read=$word; done
accepts "asyncpool-stats=$TEST_DIR/stats"
# Of two the last one counts.
accepts asyncpool-buffers=5 asyncpool-buffers=7

# With one thread small writes are coalesced, too.
if have_python && server_start threads -t 1 "--filter=$FILTER" --filter=delay \
    memory 8M wdelay=2ms asyncpool-threads=1 \
    "asyncpool-stats=$TEST_DIR/one.stats"; then
  nbd_python "$uri" <<'END'
h.flush()
h.pwrite(bytes(4096), 0)
for i in range(256):
    h.pwrite(bytes(4096), 1048576 + i * 4096)
h.flush()
h.shutdown()
END
  server_stop threads
  check "one thread: small writes are coalesced" \
    awk '/^plugin write/ { exit !($3 < 100) }' "$TEST_DIR/one.stats"
else
  skip_missing "one thread"
fi

# Help.

"$NBDKIT" "--filter=$FILTER" memory --help >help.out 2>&1
ok $? "--help succeeds"
for parameter in memory buffers buffer-size threads write read stats; do
  check "--help has asyncpool-$parameter" \
    grep -q "asyncpool-$parameter=" help.out
done
done_testing
