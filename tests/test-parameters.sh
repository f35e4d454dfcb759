# Parameters: bad ones end nbdkit with one line that says which, what was given, what is allowed.
. "$TESTS_DIR/functions.sh"

# start ARGUMENT...: starts and ends at once.
start () { "$NBDKIT" -U - "--filter=$FILTER" memory 1M "$@" --run true; }

# bad PARAMETER=VALUE... ALLOWED: the last is what the message must say is allowed.
bad ()
{
  local rc=0 allowed=${*: -1} first=$1
  set -- "${@:1:$#-1}"
  start "$@" >bad.out 2>&1 || rc=$?
  case $rc in
    0) ok 1 "$*: refused" ;;
    1) ok 0 "$*: refused" ;;
    *) ok 1 "$*: refused"; echo "# status $rc" ;;
  esac
  is "$*: one line" "$(wc -l <bad.out)" 1
  check "$*: names the parameter" grep -qF -- "${first%%=*}" bad.out
  check "$*: names the value" grep -qF -- "${first#*=}" bad.out
  check "$*: says what is allowed" grep -qE -- "$allowed" bad.out
  diag <bad.out
}

bad asyncpool-foo=bar 'asyncpool-buffers.*asyncpool-buffer-size.*asyncpool-threads.*asyncpool-write.*asyncpool-read.*asyncpool-stats'
for count in 0 -1 abc 1000000000 1.5 '' 10x ' 5' 99999999999999999999999; do
  bad "asyncpool-buffers=$count" 'from 1 to [0-9]+'
  bad "asyncpool-threads=$count" 'from 1 to [0-9]+'
done
for bytes in 100000 4096 32k 1T 0 -1 abc 64kk 3M 128M 18446744073709551616 64k5 ''; do
  bad "asyncpool-buffer-size=$bytes" 'power of two from 64K to'
done
for word in maybe Behind '' 1; do
  bad "asyncpool-write=$word" 'auto, behind or through'
  bad "asyncpool-read=$word" 'ahead or direct'
done
bad "asyncpool-stats=$TEST_DIR/no/such/file" 'must be a file'
bad "asyncpool-stats=$TEST_DIR" 'must be a file'
bad "asyncpool-stats=" '.'

# A slab larger than memory.
memory_mib=$(awk '/^MemTotal:|^SwapTotal:/ { sum += $2 } END { print int (sum / 1024) }' /proc/meminfo)
count=$((memory_mib * 2 / 64 + 1))
if [ $count -le 65536 ]; then
  bad "asyncpool-buffers=$count" asyncpool-buffer-size=64M 'must fit'
else
  skip "slab larger than memory" "this machine has more memory than a slab can be"
fi

# Threads that cannot be started: nbdkit ends before it runs the command.
# few_threads NAME SAYS [PARAMETER...]: SAYS is how the message begins.
few_threads ()
{
  local rc=0 name=$1 says=$2
  shift 2
  (ulimit -s 8192 -v 450000
   exec "$NBDKIT" -U - "--filter=$FILTER" memory 1M "$@" --run 'echo it runs') \
    >few.out 2>&1 || rc=$?
  is "too many threads, $name: refused" $rc 1
  is "too many threads, $name: message" "$(sed 's/, one for each buffer//
    s/\(system allows\|65 threads\): .*/\1/' few.out)" "nbdkit: error: $says"
}
if [ "$slow" ]; then
  skip "too many threads" "sanitizers and valgrind need more address space"
else
  most="must be a number of threads that the system allows"
  few_threads "threads given" "asyncpool-threads=300: $most" \
    asyncpool-threads=300
  few_threads "buffers given" "asyncpool-buffers=300: $most" \
    asyncpool-buffers=300 asyncpool-buffer-size=64k
  few_threads "both given" "asyncpool-threads=300: $most" \
    asyncpool-buffers=200 asyncpool-buffer-size=64k asyncpool-threads=300
  few_threads "none given" "asyncpool: cannot start 65 threads"
fi

# Good ones.
good ()
{
  check "$*: accepted" start "$@"
  is "$*: no message" "$(cat check.out)" ""
}
good
for count in 1 2 3 100 65536; do
  if [ $count = 65536 ] && [ "$(getconf LONG_BIT)" = 32 ]; then
    skip "a slab of 4 GiB" "no room for it in 32 bits of address"
    continue
  fi
  good asyncpool-buffers=$count asyncpool-threads=2 asyncpool-buffer-size=64k
done
good asyncpool-threads=1
good asyncpool-threads=200
for bytes in 64k 64K 65536 128k 1M 1m 64M; do
  good asyncpool-buffer-size=$bytes asyncpool-buffers=2
done
for word in auto behind through; do good asyncpool-write=$word; done
for word in ahead direct; do good asyncpool-read=$word; done
good "asyncpool-stats=$TEST_DIR/stats"
good asyncpool-buffers=5 asyncpool-buffers=7    # the last one counts

"$NBDKIT" "--filter=$FILTER" memory --help >help.out 2>&1
ok $? "help"
for parameter in buffers buffer-size threads write read stats; do
  check "help: asyncpool-$parameter" grep -q "asyncpool-$parameter=" help.out
done
done_testing
