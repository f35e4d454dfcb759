# The end of clients and of the server, with data that waits: nothing acknowledged is lost.
. "$TESTS_DIR/functions.sh"
require "$PYTHON" cmp
have_python || skip_all "$missing is not installed"

pool="--filter=$FILTER"
behind="asyncpool-write=behind asyncpool-buffers=32 asyncpool-buffer-size=64k"

# Writes without flush: first two, so that the device is known to be slow, then 24 that may wait.
cat >write.py <<'END'
for i in range(2):
    h.pwrite(data(i), i * UNIT)
for i in range(2, 26):
    h.pwrite(data(i), i * UNIT)
h.pwrite(data(26, 5000), 26 * UNIT + 777)
END
"$PYTHON" - <<'END'
import random
UNIT = 65536
out = b"".join(random.Random(i).randbytes(UNIT) for i in range(26))
out += bytes(777) + random.Random(26).randbytes(5000)
open("expected", "wb").write(out + bytes((1 << 22) - len(out)))
END

new_disk () { rm -f "$1" && truncate -s 4M "$1"; }

# 1. A polite disconnect; h.shutdown waits until the server has closed the connection.
new_disk disk1
# shellcheck disable=SC2086
server_start one "$pool" --filter=delay file disk1 wdelay=20ms $behind
check "disconnect: write" nbd_python "$uri" <<END
$(cat write.py)
h.shutdown()
END
check "disconnect: all of it is in the file" cmp disk1 expected
check "disconnect: the server ends well" server_stop one

# 2. SIGTERM. The delay filter's sleep fails from then on, gate.so's does not.
new_disk disk2
# shellcheck disable=SC2086
server_start two "$pool" "$GATE" device=disk2 size=4M delay=20ms $behind
check "SIGTERM: write" nbd_python "$uri" <<END
$(cat write.py)
import signal
os.kill(${server_pid[two]}, signal.SIGTERM)
END
rc=0; wait "${server_job[two]}" || rc=$?
is "SIGTERM: status" $rc 0
check "SIGTERM: all of it is in the file" cmp disk2 expected
is "SIGTERM: no message" "$(cat two.log)" ""

# 3. The same over a device that refuses after SIGTERM: what is missing was told.
new_disk disk3
# shellcheck disable=SC2086
server_start three "$pool" --filter=delay file disk3 wdelay=20ms $behind
check "refused: write" nbd_python "$uri" <<END
$(cat write.py)
import signal
os.kill(${server_pid[three]}, signal.SIGTERM)
END
rc=0; wait "${server_job[three]}" || rc=$?
is "refused: status" $rc 0
cat >told.py <<'END'
import re, sys
log = open("three.log").read()
told = set()
for offset, length in re.findall(r"offset (\d+), length (\d+)", log):
    told.update(range(int(offset), int(offset) + int(length)))
a, b = open("disk3", "rb").read(), open("expected", "rb").read()
missing = [i for i in range(len(b)) if a[i] != b[i] and i not in told]
print(len(told), "bytes told,", len(missing), "missing and not told", missing[:1])
sys.exit(len(missing) > 0)
END
check "refused: what is missing was told" "$PYTHON" told.py

# 4. The end of --run, with clients that leave without a word.
new_disk disk4
cat >client.py <<'END'
import nbd, os, random, sys
UNIT = 65536
def data(seed, count=UNIT):
    return random.Random(seed).randbytes(count)
h = nbd.NBD()
h.connect_uri(sys.argv[1])
exec(open("write.py").read())
os._exit(0)
END
rc=0
# shellcheck disable=SC2086
"$NBDKIT" -U - "$pool" "$GATE" device="$TEST_DIR/disk4" size=4M delay=20ms $behind \
  --run "cd '$TEST_DIR' && $PYTHON client.py \"\$uri\"" >run.out 2>&1 || rc=$?
is "--run: status" $rc 0
is "--run: no message" "$(cat run.out)" ""
check "--run: all of it is in the file" cmp disk4 expected

# 5. In the background, as a daemon: threads are started after the fork.
new_disk disk5
# shellcheck disable=SC2086
check "daemon: starts" "$NBDKIT" -U "$TEST_DIR/five.sock" -P five.pid "$pool" \
  "$GATE" device="$TEST_DIR/disk5" size=4M delay=5ms $behind
check "daemon: write, read, flush" nbd_python "nbd+unix:///?socket=$TEST_DIR/five.sock" <<END
$(cat write.py)
for i in range(26):
    assert h.pread(UNIT, i * UNIT) == data(i)
h.flush()
h.shutdown()
END
check "daemon: all of it is in the file" cmp disk5 expected
for ((i = 0; i < 600; i++)); do [ -s five.pid ] && break; sleep 0.1; done
pid=$(cat five.pid)
kill "$pid"
for ((i = 0; i < 600; i++)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
check "daemon: ends" test ! -e "/proc/$pid"

# 6. The filter is unloaded in a normal run, many times, and at different moments of its threads.
rounds=20; [ -z "$slow" ] || rounds=3
bad=0
for ((i = 0; i < rounds; i++)); do
  # shellcheck disable=SC2086
  "$NBDKIT" -U - "$pool" "$GATE" size=4M delay=1ms $behind asyncpool-threads=$((i % 7 * 8 + 1)) \
    --run "cd '$TEST_DIR' && $PYTHON client.py \"\$uri\"" >unload.out 2>&1 || bad=$((bad + 1))
  [ ! -s unload.out ] || { bad=$((bad + 1)); diag <unload.out; }
done
is "unloaded $rounds times without a word" $bad 0
check "unloaded with nothing done" "$NBDKIT" -U - "$pool" "$GATE" --run true
is "unloaded with nothing done: no message" "$(cat check.out)" ""

# 7. Clients come and go, all at once.
# shellcheck disable=SC2086
server_start seven "$pool" "$GATE" size=4M delay=1ms $behind
check "many clients" nbd_python "$uri" <<'END'
import threading
def client(n):
    g = nbd.NBD()
    g.connect_uri(sys.argv[1])
    for i in range(4):
        g.pwrite(data(n * 10 + i, 4096), (n * 4 + i) * 4096)
    g.shutdown()
for round in range(2):
    threads = [threading.Thread(target=client, args=(n,)) for n in range(24)]
    for t in threads: t.start()
    for t in threads: t.join()
for n in range(24):
    for i in range(4):
        assert h.pread(4096, (n * 4 + i) * 4096) == data(n * 10 + i, 4096)
h.shutdown()
END
check "many clients: the server ends well" server_stop seven

# 8. Read-only.
# shellcheck disable=SC2086
server_start eight -r "$pool" "$GATE" size=4M delay=1ms $behind
check "read-only" nbd_python "$uri" <<'END'
assert h.is_read_only()
for i in range(32):
    h.pread(UNIT, i * UNIT)
h.set_strict_mode(0)
try:
    h.pwrite(data(1), 0)
    sys.exit("written")
except nbd.Error as e:
    assert e.errno == "EPERM", e.errno
h.shutdown()
END
check "read-only: the server ends well" server_stop eight

# 9. Clients that break off with requests in flight.
if survives_break; then
  new_disk disk9
  # shellcheck disable=SC2086
  server_start nine "$pool" "$GATE" device=disk9 size=4M delay=5ms $behind
  ended=0
  for ((i = 0; i < 10; i++)); do
    nbd_python "$uri" <<'END' || ended=1
for i in range(26):
    h.pwrite(data(i), i * UNIT)
h.pwrite(data(26, 5000), 26 * UNIT + 777)
buf = nbd.Buffer(UNIT)
for i in range(64):
    h.aio_pread(buf, i % 32 * UNIT)
END
  done
  is "broken off: the server went on" $ended 0
  check "broken off: and ends well" server_stop nine
  check "broken off: what was acknowledged is in the file" cmp disk9 expected
else
  skip "broken off" "$missing is not installed"
fi
done_testing
