# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Private storage servers on 127.0.0.1, for tests and benchmarks: real programs
# with keys, configuration, port and log of their own.
#
#   KIND         program                     nbdkit's plugin   device
#   ssh          sshd of OpenSSH, as sftp    ssh               read, write
#   http https   nginx, range requests       curl              read only
#   nbd-server   nbd-server                  nbd               read, write
#   nbdkit       a second nbdkit, file       nbd               read, write
#   qemu-nbd     qemu-nbd                    nbd               read, write
#   s3           s3rver                      S3                read only, or
#                                                              objects
#
# The caller sets backend_dir, a directory.  All files of a server are in
# $backend_dir/KIND.  Its output is in server.log there.  The caller can then
# call:
#
#   backend_start KIND FILE    serves FILE, on a free port
#   backend_stop KIND          sends SIGTERM, and waits for the end
#   backend_kill KIND          sends SIGKILL to the server and its sessions
#   backend_restart KIND       starts it again, on the same port with the same
#                              files
#   backend_connect KIND PORT  sets the variables below for another port: that
#                              of a proxy in front of the server
#   backend_stop_all           stops all servers; for a trap
#
# They return 0, or set backend_missing to the reason.  backend_start,
# backend_restart and backend_connect set these variables:
#
#   backend_pid      the server's process id
#   backend_port     the port to connect to
#   backend_plugin   an array: nbdkit's plugin and its parameters
#   backend_url      for other clients: http:, https:, nbd:, sftp: or s3:
#
# Variables that backend_start reads:
#
#   backend_max_startups   ssh: MaxStartups, for many connections at once.
#                          Empty: sshd's default, 10:30:100.
#   backend_object_size    s3: the device is objects of this size, and can be
#                          written.  It is empty at first and has FILE's size.
#                          Empty: one object with FILE's content.
#   NBDKIT_PROGRAM         nbdkit: the program (nbdkit)
#
# s3rver is an npm package, and no distribution has it.  make deps puts it in
# build/s3rver if npm is installed.  It keeps objects in files, so they survive
# its end.  A server in memory, such as moto, loses them.
#
# As root, sshd needs the directory /run/sshd.  backend_start makes it if it is
# missing.  It is the only file outside $backend_dir.
#
# Not its job: latency (a proxy adds it), nbdkit in front of the server (the
# caller starts it), the results of tests.

declare -A backend_pids=() backend_ports=() backend_files=()
backend_pid='' backend_port='' backend_url='' backend_missing=''
backend_plugin=()
backend_max_startups='' backend_object_size=''
backend_source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
backend_kinds="ssh http https nbd-server nbdkit qemu-nbd s3"

# Programs.

# backend_find PROGRAM...: sets backend_program to the path of the first one
# that is there.
backend_find ()
{
  local name path=$PATH:/usr/sbin:/sbin
  path+=:$backend_source/../build/s3rver/node_modules/.bin
  for name; do
    backend_program=$(PATH=$path type -P "$name") || continue
    return 0
  done
  backend_missing="$1 is not installed"
  return 1
}

# backend_have_plugin NAME: nbdkit has this plugin.
backend_have_plugin ()
{
  "${NBDKIT_PROGRAM:-nbdkit}" --dump-plugin "$1" >/dev/null 2>&1 ||
    { backend_missing="nbdkit's plugin $1 is not installed"; return 1; }
}

# backend_have KIND: returns 0 if all programs of this kind are there.
backend_have ()
{
  case $1 in
    ssh)
      backend_find ssh-keygen && backend_find sshd &&
        backend_have_plugin ssh ;;
    http) backend_find nginx && backend_have_plugin curl ;;
    https)
      backend_find openssl && backend_find nginx && backend_have_plugin curl ;;
    nbd-server | qemu-nbd) backend_find "$1" && backend_have_plugin nbd ;;
    nbdkit)
      backend_find "${NBDKIT_PROGRAM:-nbdkit}" && backend_have_plugin file &&
        backend_have_plugin nbd ;;
    s3)
      backend_find node && backend_find_s3rver && backend_have_plugin S3 &&
        backend_find /usr/bin/python3 ;;
    *) backend_missing="$1 is none of $backend_kinds"; return 1 ;;
  esac
}

backend_find_s3rver ()
{
  backend_find s3rver ||
    { backend_missing="s3rver is not installed (make deps, with npm)"
      return 1; }
}

# Processes and ports.

# backend_children PID: prints the process ids of its children.
backend_children () { ps -o pid= --ppid "$1"; }

# backend_tree PID [stop]: prints the process id and those of all descendants.
# With stop, each is stopped before its children are looked for, so that it
# makes no more.
backend_tree ()
{
  local child
  echo "$1"
  [ "${2:-}" != stop ] || kill -STOP "$1" 2>/dev/null
  for child in $(backend_children "$1"); do
    backend_tree "$child" "${2:-}"
  done
}

# backend_alive PID: a process that has ended and is not waited for, as one has
# whose parent is not this shell, is not alive.
backend_alive ()
{
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  stat=${stat##*) }
  [ "${stat:0:1}" != Z ]
}

# backend_poll SECONDS COMMAND...: waits until the command succeeds.  Returns 1
# if it does not within SECONDS, or up to a second more.
backend_poll ()
{
  local end=$((SECONDS + $1 + 1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.04
  done
}

backend_any_alive ()
{
  local pid
  for pid; do
    ! backend_alive "$pid" || return 0
  done
  return 1
}
backend_none_alive () { ! backend_any_alive "$@"; }

# backend_listens PORT
backend_listens () { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# backend_random_port: one that nothing listens on.  It is below the range from
# which the kernel takes ports for clients, so that it stays free between
# backend_kill and backend_restart.
backend_random_port ()
{
  local tries=50
  backend_port=$((RANDOM % 12000 + 20000))
  while backend_listens "$backend_port"; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || { backend_missing="no port is free"; return 1; }
    backend_port=$((RANDOM % 12000 + 20000))
  done
}

# The servers.  For each kind there are:
#
#   backend_prepare_KIND FILE    makes keys and files
#   backend_run_KIND PORT FILE   starts it as a child, and sets backend_pid
#   backend_connect_KIND PORT    sets backend_plugin and backend_url
#
# They run in $dir, which is $backend_dir/KIND.

# backend_child COMMAND...: starts it.  Disowned, bash does not report its end.
backend_child ()
{
  "$@" >>"$dir/server.log" 2>&1 </dev/null &
  backend_pid=$!
  disown $!
}

# OpenSSH.

backend_prepare_ssh ()
{
  local key
  for key in host user; do
    ssh-keygen -q -t ed25519 -N '' -C "$key" -f "$dir/$key" || return
  done
  cp "$dir/user.pub" "$dir/authorized_keys"
  # Any port: a proxy has another one.
  echo "[127.0.0.1]:* $(cut -d' ' -f1,2 "$dir/host.pub")" >"$dir/known_hosts"
  if [ "$(id -u)" = 0 ]; then
    mkdir -p -m 755 /run/sshd
  fi
}

backend_config_ssh () # PORT
{
  cat <<END
ListenAddress 127.0.0.1:$1
HostKey "$dir/host"
PidFile none
AuthorizedKeysFile "$dir/authorized_keys"
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
LogLevel VERBOSE
Subsystem sftp internal-sftp
END
  [ -z "$backend_max_startups" ] || echo "MaxStartups $backend_max_startups"
}

backend_run_ssh ()
{
  local options=()
  backend_config_ssh "$1" >"$dir/sshd_config"
  backend_find sshd || return
  # OpenSSH 9.8 and later refuse a client for some time after a session has
  # crashed.
  ! "$backend_program" -t -f "$dir/sshd_config" -o PerSourcePenalties=no \
    2>/dev/null || options=(-o PerSourcePenalties=no)
  backend_child "$backend_program" -D -e -f "$dir/sshd_config" "${options[@]}"
}

backend_connect_ssh ()
{
  local user
  user=$(id -un)
  # An empty config: no file of the user's is read.  The timeout is for a busy
  # machine: libssh's own is 10 seconds.
  backend_plugin=(ssh host=127.0.0.1 "port=$1" "user=$user"
    "path=${backend_files[ssh]}" "identity=$dir/user"
    "known-hosts=$dir/known_hosts" config= timeout=60)
  backend_url="sftp://$user@127.0.0.1:$1${backend_files[ssh]}"
}

# nginx.

backend_prepare_http () { :; }

# A certificate for 127.0.0.1, and the authority that has signed it.
backend_prepare_https ()
{
  local new=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
  {
    openssl req -x509 "${new[@]}" -days 30 -subj "/CN=tests of nbdkit-async" \
      -keyout "$dir/ca.key" -out "$dir/ca.pem" &&
      openssl req "${new[@]}" -subj /CN=127.0.0.1 \
        -keyout "$dir/server.key" -out "$dir/server.csr" &&
      echo "subjectAltName = IP:127.0.0.1" >"$dir/san" &&
      openssl x509 -req -days 30 -in "$dir/server.csr" -CA "$dir/ca.pem" \
        -CAkey "$dir/ca.key" -CAcreateserial -extfile "$dir/san" \
        -out "$dir/server.pem"
  } >"$dir/openssl.log" 2>&1
}

# backend_config_nginx KIND PORT FILE.  The access log has one line for each
# request, with the connection's number first.
backend_config_nginx ()
{
  local ssl='' path
  [ "$1" = http ] || ssl=ssl
  [ "$(id -u)" != 0 ] || echo "user root;"
  cat <<END
daemon off;
worker_processes auto;
pid "$dir/nginx.pid";
error_log stderr;
events { worker_connections 1024; }
http {
  log_format requests '\$connection \$request_method \$status \$http_range';
  access_log "$dir/access.log" requests;
END
  for path in client_body proxy fastcgi uwsgi scgi; do
    echo "  ${path}_temp_path \"$dir/tmp\";"
  done
  echo "  server {"
  echo "    listen 127.0.0.1:$2 $ssl;"
  if [ -n "$ssl" ]; then
    echo "    ssl_certificate \"$dir/server.pem\";"
    echo "    ssl_certificate_key \"$dir/server.key\";"
  fi
  echo "    location = /disk { alias \"$3\"; }"
  echo "  }"
  echo "}"
}

backend_run_nginx () # KIND PORT FILE
{
  backend_config_nginx "$@" >"$dir/nginx.conf"
  backend_find nginx || return
  backend_child "$backend_program" -p "$dir" -c "$dir/nginx.conf" -e stderr
}
backend_run_http () { backend_run_nginx http "$@"; }
backend_run_https () { backend_run_nginx https "$@"; }

backend_connect_http ()
{
  backend_url=http://127.0.0.1:$1/disk
  backend_plugin=(curl "url=$backend_url")
}
backend_connect_https ()
{
  backend_url=https://127.0.0.1:$1/disk
  backend_plugin=(curl "url=$backend_url" "cainfo=$dir/ca.pem")
}

# NBD.  nbd-server's export has a name, as it has no default one.

backend_connect_nbd () # PORT [EXPORT]
{
  backend_url=nbd://127.0.0.1:$1/${2:-}
  backend_plugin=(nbd "uri=$backend_url")
}

backend_prepare_nbd-server () { :; }
backend_run_nbd-server ()
{
  cat >"$dir/config" <<END
[generic]
listenaddr = 127.0.0.1
port = $1
[disk]
exportname = $2
flush = true
fua = true
trim = true
multifile = false
END
  # It has no way to stay in the foreground and to serve several clients.
  rm -f "$dir/pid"
  nbd-server -C "$dir/config" -p "$dir/pid" >>"$dir/server.log" 2>&1 \
    </dev/null
  backend_poll 5 test -s "$dir/pid" && backend_pid=$(cat "$dir/pid")
}
backend_connect_nbd-server () { backend_connect_nbd "$1" disk; }

backend_prepare_nbdkit () { :; }
backend_run_nbdkit ()
{
  backend_child "${NBDKIT_PROGRAM:-nbdkit}" -f -i 127.0.0.1 -p "$1" file "$2"
}
backend_connect_nbdkit () { backend_connect_nbd "$1"; }

# --shared=0: any number of clients.
backend_prepare_qemu-nbd () { :; }
backend_run_qemu-nbd ()
{
  backend_child qemu-nbd --persistent --shared=0 --format=raw --discard=unmap \
    --bind=127.0.0.1 --port="$1" "$2"
}
backend_connect_qemu-nbd () { backend_connect_nbd "$1"; }

# S3.

# The keys that s3rver knows.
backend_s3_key=S3RVER

backend_prepare_s3 () { mkdir "$dir/objects"; }

backend_run_s3 ()
{
  local node
  backend_find node || return
  node=$backend_program
  backend_find_s3rver || return
  backend_child "$node" "$(realpath "$backend_program")" \
    --directory "$dir/objects" --address 127.0.0.1 --port "$1" \
    --no-vhost-buckets --configure-bucket bucket
}

# backend_filled_s3 PORT FILE: uploads FILE.
backend_filled_s3 ()
{
  [ -z "$backend_object_size" ] || return 0
  AWS_ACCESS_KEY_ID=$backend_s3_key AWS_SECRET_ACCESS_KEY=$backend_s3_key \
    /usr/bin/python3 - "http://127.0.0.1:$1" "$2" >>"$dir/upload.log" 2>&1 <<END
import boto3, sys
boto3.client("s3", endpoint_url=sys.argv[1]) \
    .upload_file(sys.argv[2], "bucket", "disk")
END
}

backend_connect_s3 ()
{
  backend_url=s3://bucket/disk
  backend_plugin=(S3 "endpoint-url=http://127.0.0.1:$1"
    "access-key=$backend_s3_key" "secret-key=$backend_s3_key"
    bucket=bucket key=disk)
  [ -z "$backend_object_size" ] ||
    backend_plugin+=("object-size=$backend_object_size"
      "size=$(stat -c %s "${backend_files[s3]}")")
}

# For the caller.

# backend_connect KIND PORT
backend_connect ()
{
  local dir=$backend_dir/$1
  backend_port=$2
  "backend_connect_$1" "$2"
}

# backend_serves KIND PORT: the server listens, and greets its clients if its
# protocol has a greeting.  qemu-nbd listens, then opens its file, then greets.
backend_serves ()
{
  case $1 in
    http | https | s3) backend_listens "$2" ;;
    *)
      (exec 3<>"/dev/tcp/127.0.0.1/$2" && read -r -t 1 -N 4 <&3) 2>/dev/null ;;
  esac
}
backend_answers () # KIND PORT
{
  ! backend_alive "$backend_pid" || backend_serves "$1" "$2"
}

# backend_launch KIND PORT: returns 0 once the server serves clients.
backend_launch ()
{
  local dir=$backend_dir/$1 file=${backend_files[$1]}
  backend_pid=
  "backend_run_$1" "$2" "$file" ||
    { backend_missing="$1 does not start"; return 1; }
  backend_pids[$1]=$backend_pid backend_ports[$1]=$2
  if ! backend_poll 30 backend_answers "$1" "$2" ||
     ! backend_alive "$backend_pid"; then
    backend_missing="$1 does not start: $(tail -n 1 "$dir/server.log")"
    backend_kill "$1"
    return 1
  fi
}

# backend_start KIND FILE
backend_start ()
{
  local kind=$1 tries dir=$backend_dir/$1
  backend_missing=
  backend_have "$kind" || return
  backend_files[$kind]=$(realpath "$2")
  if ! [ -d "$dir" ]; then
    mkdir -p "$dir"
    "backend_prepare_$kind" "$2" ||
      { backend_missing="$kind: its files cannot be made"; return 1; }
  fi
  # Another program may take the port first.
  for tries in 1 2 3 4 5; do
    backend_random_port || return
    ! backend_launch "$kind" "$backend_port" || break
    [ "$tries" != 5 ] || return 1
  done
  if [ "$(type -t "backend_filled_$kind")" = function ]; then
    "backend_filled_$kind" "$backend_port" "${backend_files[$kind]}" ||
      { backend_missing="$kind does not take the file"; return 1; }
  fi
  backend_connect "$kind" "$backend_port"
}

backend_restart () # KIND
{
  local kind=$1 tries
  [ -z "${backend_pids[$kind]:-}" ] || backend_stop "$kind"
  for tries in 1 2 3 4 5; do
    ! backend_launch "$kind" "${backend_ports[$kind]}" || break
    [ "$tries" != 5 ] || return 1
    sleep 0.2
  done
  backend_connect "$kind" "${backend_ports[$kind]}"
}

# backend_signal KIND SIGNAL PID...: sends it, and waits for the end of all.
backend_signal ()
{
  local kind=$1 signal=$2
  shift 2
  kill "-$signal" "$@" 2>/dev/null
  backend_poll 20 backend_none_alive "$@" || kill -KILL "$@" 2>/dev/null
  unset "backend_pids[$kind]"
}

backend_stop () # KIND
{
  local pids
  [ -n "${backend_pids[$1]:-}" ] || return 0
  mapfile -t pids < <(backend_tree "${backend_pids[$1]}")
  backend_signal "$1" TERM "${pids[@]}"
}

backend_kill () # KIND
{
  local pids
  [ -n "${backend_pids[$1]:-}" ] || return 0
  mapfile -t pids < <(backend_tree "${backend_pids[$1]}" stop)
  backend_signal "$1" KILL "${pids[@]}"
}

backend_stop_all ()
{
  local kind
  for kind in "${!backend_pids[@]}"; do
    backend_stop "$kind"
  done
}
