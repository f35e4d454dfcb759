# SPDX-License-Identifier: BSD-3-Clause
#
# Clients leave and the server ends while writes are deferred: no acknowledged
# data is lost.
. "$TESTS_DIR/functions.sh"
require "$PYTHON" cmp
require_python

pool="--filter=$FILTER"
behind=(asyncpool-write=behind asyncpool-buffers=32 asyncpool-buffer-size=64k)

# The client of most scenarios.  It does not flush.  The first two writes show
# that the device is slow, so that the filter defers the others.
cat >write.py <<'END'
for i in range(26):
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

new_disk () { rm -f disk && truncate -s 4M disk; }
# A device whose operations still succeed after SIGTERM: those of the delay
# filter fail then.
gate=("$GATE" "device=$TEST_DIR/disk" size=4M)

# writes NAME [URI] <PROGRAM: write.py, and then this.
writes ()
{
  cat write.py - >program.py
  check "$1: the client writes" nbd_python "${2:-$uri}" <program.py
}
has_all () { check "$1: the file has all data" cmp disk expected; }

# The shell command of nbdkit --run for write.py alone.
run_client="'$PYTHON' '$TESTS_DIR/nbd_python.py' \"\$uri\""
run_client+=" <'$TEST_DIR/write.py'"

# A client disconnects.  h.shutdown waits until the server has closed the
# connection.
name="disconnect"
new_disk
server_start pool "$pool" --filter=delay file disk wdelay=20ms "${behind[@]}"
writes "$name" <<'END'
h.shutdown()
END
has_all "$name"
stops "$name"

# SIGTERM comes while a client is connected.
terminates ()
{
  writes "$1" <<END
import signal
os.kill(${server_pid[pool]}, signal.SIGTERM)
END
  check "$1: nbdkit ends without error" server_wait pool
}
name="SIGTERM"
new_disk
server_start pool "$pool" "${gate[@]}" delay=20ms "${behind[@]}"
terminates "$name"
has_all "$name"
says_nothing "$name" pool.log

# After SIGTERM the device refuses writes, and nbdkit reports the data that is
# missing.
name="SIGTERM, writes fail"
new_disk
server_start pool "$pool" --filter=delay file disk wdelay=20ms "${behind[@]}"
terminates "$name"
cat >reported.py <<'END'
import re, sys
log = open("pool.log").read()
reported = set()
for offset, length in re.findall(r"offset (\d+), length (\d+)", log):
    reported.update(range(int(offset), int(offset) + int(length)))
a, b = open("disk", "rb").read(), open("expected", "rb").read()
missing = [i for i in range(len(b)) if a[i] != b[i] and i not in reported]
print(len(reported), "bytes reported,", len(missing),
      "missing and not reported", missing[:1])
sys.exit(len(missing) > 0)
END
check "$name: the log has the data that is missing" "$PYTHON" reported.py

# The command of --run ends, and its client breaks off.
name="--run"
new_disk
check "$name: nbdkit ends without error" "$NBDKIT" -U - "$pool" "${gate[@]}" \
  delay=20ms "${behind[@]}" --run "$run_client"
says_nothing "$name" check.out
has_all "$name"

# nbdkit is a daemon: it forks, and then starts its threads.
name="daemon"
new_disk
check "$name: nbdkit starts" \
  "$NBDKIT" -U "$TEST_DIR/daemon.sock" -P daemon.pid "$pool" \
  "${gate[@]}" delay=5ms "${behind[@]}"
writes "$name" "nbd+unix:///?socket=$TEST_DIR/daemon.sock" <<'END'
for i in range(26):
    assert h.pread(UNIT, i * UNIT) == data(i)
h.flush()
h.shutdown()
END
has_all "$name"
# wait_until COMMAND...: for a minute.
wait_until ()
{
  local i
  for ((i = 0; i < 600; i++)); do
    "$@" 2>/dev/null && return
    sleep 0.1
  done
}
wait_until test -s daemon.pid
pid=$(cat daemon.pid)
kill "$pid"
wait_until not kill -0 "$pid"
check "$name: nbdkit ends" test ! -e "/proc/$pid"

# nbdkit unloads the filter at many different moments of the filter's threads.
rounds=20; [ -z "$slow" ] || rounds=3
bad=0
for ((i = 0; i < rounds; i++)); do
  "$NBDKIT" -U - "$pool" "$GATE" size=4M delay=1ms "${behind[@]}" \
    asyncpool-threads=$((i % 7 * 8 + 1)) --run "$run_client" \
    >unload.out 2>&1 || bad=$((bad + 1))
  [ ! -s unload.out ] || { bad=$((bad + 1)); diag <unload.out; }
done
is "unload: nbdkit ends $rounds times without error or message" $bad 0
name="unload without a request"
check "$name: nbdkit ends without error" \
  "$NBDKIT" -U - "$pool" "$GATE" --run true
says_nothing "$name" check.out

name="many clients at once"
server_start pool "$pool" "$GATE" size=4M delay=1ms "${behind[@]}"
check "$name: each reads its data" nbd_python "$uri" <<'END'
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
stops "$name"

# A web server answers its first connection, and no other one.  So the opening
# of a further context stalls, and the curl plugin's timeout ends it.
name="a context stalls"
cat >stall.py <<'END'
import http.server, re, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = 0
    def setup(self):
        super().setup()
        Handler.count += 1
        if Handler.count > 1:
            open("stalled", "w").close()
            threading.Event().wait()
    def do_GET(self):
        m = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = int(m[2]) - int(m[1]) + 1 if m else 64 << 20
        time.sleep(0.005)               # a slow device
        self.send_response(206 if m else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(bytes(size))
    do_HEAD = do_GET
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
END
cat >until_stalled.py <<'END'
i = 0
while not os.path.exists("stalled"):
    h.pread(UNIT, i % 1024 * UNIT)
    i += 1
END
if "$NBDKIT" curl http://127.0.0.1/ --dump-plugin 2>/dev/null |
   grep -q '^thread_model=serialize_requests'; then
  mkfifo port
  "$PYTHON" stall.py >port &
  web=$!
  read -r port <port
  check "$name: nbdkit ends" timeout 60 "$NBDKIT" -r -U - "$pool" \
    curl "http://127.0.0.1:$port/" timeout=1 asyncpool-contexts=4 \
    --run "${run_client/write.py/until_stalled.py}"
  check "$name: a context has stalled" test -e stalled
  kill $web
else
  skip "$name" "needs a curl plugin that serves one request at a time"
fi

name="read-only"
server_start pool -r "$pool" "$GATE" size=4M delay=1ms "${behind[@]}"
check "$name: reads succeed and a write fails" nbd_python "$uri" <<'END'
assert h.is_read_only()
for i in range(32):
    h.pread(UNIT, i * UNIT)
h.set_strict_mode(0)
assert fails(h.pwrite, data(1), 0) == errno.EPERM
h.shutdown()
END
stops "$name"

# Clients break off with requests in flight.
name="clients break off"
if survives_break; then
  new_disk
  server_start pool "$pool" "${gate[@]}" delay=5ms "${behind[@]}"
  { cat write.py; cat <<'END'; } >break.py
buf = nbd.Buffer(UNIT)
for i in range(64):
    h.aio_pread(buf, i % 32 * UNIT)
END
  bad=0
  for ((i = 0; i < 10; i++)); do
    nbd_python "$uri" <break.py || bad=1
  done
  is "$name: the server serves the next one" $bad 0
  stops "$name"
  has_all "$name"
else
  skip_missing "$name"
fi
done_testing
