# SPDX-License-Identifier: BSD-3-Clause
# Real storage servers behind a link with latency: nbdkit's plugin with and
# without asyncpool, and the programs that a user would take instead.
# backends.sh has the servers, delay-proxy is the link.
#
# The whole matrix takes hours, so the default is a part of it:
#   * The client that sends one request at a time meets all contestants.  The
#     other clients meet no filter and the fastest asyncpool.
#   * HTTPS is HTTP with more CPU time, and one NBD server stands for three.
#   * S3 is left out: s3rver, one process, is slower than any link.
#   * 5 ms says less than 20, and at 150 ms each run takes twice as long.
#   * Programs that take a minute for some MiB are left out.
# Variables choose other parts, see benchmarks/README.
# shellcheck shell=bash disable=SC2034,SC2154
title="Real servers behind a link with latency: ssh, HTTP, NBD, S3"
rounds=1                        # of ten minutes
seconds=4                       # about, for slow contestants

backends_kinds=${BACKENDS_KINDS:-ssh http nbdkit}
backends_rtts=${BACKENDS_RTTS:-20 64}
backends_mib=${BACKENDS_MIB:-256}
backends_only=${BACKENDS_ONLY:-.}
backends_all=${BACKENDS_ALL:-}  # not empty: all contestants

# What each kind gets.

# curl is parallel from nbdkit 1.36 on, with connections of its own.
backends_is_parallel () { # KIND
  case $1 in
    ssh) false;;
    http*) nbdkit --dump-plugin curl | grep -q '^thread_model=parallel';;
  esac
}

# The parameters for N operations of KIB at once.
backends_parameters () { # KIND N KIB
  local n=$2 list=()
  [ "$3" = 128 ] || list+=("asyncpool-buffer-size=$(($3 / 1024))M")
  case $1 in
    ssh) list+=("asyncpool-contexts=$n");;
    http*)
      if backends_is_parallel "$1"
      then list+=("asyncpool-threads=$n" "connections=$n")
      else list+=("asyncpool-contexts=$n")
      fi;;
    *) list+=("asyncpool-buffers=$n");;
  esac
  echo "${list[*]}"
}

# N x KIB for asyncpool, the one for all clients last.
backends_sizes () { # KIND WORKLOAD
  local all=$backends_all
  case $1 in
    ssh) echo "${all:+1x128 16x1024 64x128} 4x128 16x128 32x128";;
    http*) echo "${all:+1x128 32x128 4x1024} 4x128 16x128 16x1024 32x1024";;
    s3) echo "${all:+16x128 64x1024} 64x128 16x1024";;
    *) echo "${all:+1024x128 256x1024} 64x128 64x1024 256x128";;
  esac
}

backends_can_write () { # KIND
  [[ $1 != http* ]] && [ "$1" != s3 ]
}

# KiB in flight without a filter.  The ssh plugin moves 128 KiB at once.  curl
# gets one request of the client at a time, or 16 where it is parallel.
backends_plain_kib () { # KIND CLIENT
  local request=256 n=1
  case $2 in
    "4 at a time") request=128 n=4;;
    nbdcopy) n=64;;
    qemu-img) request=2048 n=8;;
  esac
  case $1 in
    ssh) request=128 n=1;;
    http*) backends_is_parallel "$1" || n=1;;
  esac
  echo $((request * n))
}

# Clients of nbdkit: their commands.
backends_client () { # CLIENT WORKLOAD
  local one="--connections=1 --requests"
  case $1,$2 in
    "one at a time,read")
      echo "nbdcopy --synchronous --no-extents $one=1 \$URI null:";;
    "one at a time,write")
      echo "nbdcopy --synchronous --flush $one=1 \$FILE \$URI";;
    "4 at a time,read")
      echo "nbdcopy --no-extents --request-size=131072 $one=4 \$URI null:";;
    nbdcopy,read) echo "nbdcopy --no-extents \$URI null:";;
    nbdcopy,write) echo "nbdcopy --flush \$FILE \$URI";;
    qemu-img,read) echo "qemu-img convert -f raw -O raw \$URI \$OUT";;
    qemu-img,write) echo "qemu-img convert -n -f raw -O raw \$FILE \$URI";;
  esac
}

# What a user would take instead: CLIENT|CONTESTANT|KIB|COMMAND.  KIB is about
# what it has in flight, for the size of its run.  `A & B' mounts, and reads.
backends_tools () { # KIND WORKLOAD
  local sshfs="sshfs -f -p \$PORT \$SSH \$HOST:\$DIR \$MNT &"
  local mount="rclone mount \$SFTP :sftp:\$DIR \$MNT &"
  local read="dd if=\$MNT/disk of=/dev/null bs=256k"
  local write="dd if=\$FILE of=\$MNT/disk bs=256k conv=fsync"
  local streams="--multi-thread-streams 8 --multi-thread-cutoff 1M" ca=""
  local qemu="ssh://\$HOST:\$PORT\$DIR/disk?host_key_check=no"
  case $1,$2 in
    ssh,read)
      echo "mount|sshfs|230|$sshfs $read"
      echo "mount|rclone mount|850|$mount $read"
      echo "copy|scp|1700|scp -P \$PORT \$SSH \$HOST:\$DIR/disk \$OUT"
      echo "copy|rclone copyto 8 streams|3000|rclone copyto \$SFTP $streams" \
        ":sftp:\$DIR/disk \$OUT"
      echo "copy|lftp pget -n 8|2000|lftp -c \$LFTP"
      [ -z "$backends_all" ] || echo "copy|qemu-img ssh:|8|qemu-img convert" \
        "-f raw -O raw $qemu \$OUT";;
    ssh,write)
      echo "mount|rclone mount|850|$mount $write"
      echo "copy|scp|1700|scp -P \$PORT \$SSH \$FILE \$HOST:\$DIR/disk"
      [ -n "$backends_all" ] || return 0
      echo "mount|sshfs|850|$sshfs $write"
      echo "copy|qemu-img ssh:|105|qemu-img convert -n -f raw -O raw \$FILE" \
        "$qemu";;
    http*)
      [ "$1" = http ] || ca=1
      echo "copy|curl|9999|curl -sS ${ca:+--cacert \$CA} -o \$OUT \$URL"
      echo "copy|aria2c -x16|9999|aria2c -q -x16 -s16 -k1M" \
        "--file-allocation=none ${ca:+--ca-certificate=\$CA}" \
        "--dir=/ --out=\$OUT \$URL"
      echo "copy|rclone copyto 8 streams|9999|rclone copyto" \
        "--config /dev/null ${ca:+--ca-cert \$CA} --http-url \$URL/../" \
        "$streams :http:disk \$OUT"
      [ -z "$backends_all" ] || [ -n "$ca" ] ||
        echo "copy|qemu-img http:|2000|qemu-img convert -f raw -O raw \$URL" \
          "\$OUT";;
    s3,read)
      echo "copy|rclone copyto 8 streams|9999|rclone copyto \$S3 $streams" \
        ":s3:bucket/disk \$OUT";;
    *,read)
      echo "copy|nbdcopy itself|9999|nbdcopy --no-extents \$URL null:"
      echo "copy|qemu-img -m 16 itself|9999|qemu-img convert -m 16 -f raw" \
        "-O raw \$URL \$OUT";;
    *,write)
      echo "copy|nbdcopy itself|9999|nbdcopy --flush \$FILE \$URL"
      echo "copy|qemu-img -m 16 itself|9999|qemu-img convert -n -m 16 -W" \
        "-f raw -O raw \$FILE \$URL";;
  esac
}

# The plan.

plan_backends () {
  local kind rtt rw
  unset SSH_AUTH_SOCK           # that of the user
  # shellcheck source-path=SCRIPTDIR source=backends.sh
  . benchmarks/backends.sh
  # A function's `declare' is local, and so is that of a file that it reads.
  declare -gA backend_pids=() backend_ports=() backend_files=()
  backend_max_startups=${BACKENDS_MAX_STARTUPS:-}
  for kind in $backends_kinds; do
    if ! backend_have "$kind"; then
      plan none none "$kind" "" "" "- $backend_missing"
      continue
    fi
    for rw in read write; do
      [ $rw = read ] || backends_can_write "$kind" || continue
      for rtt in $backends_rtts; do
        backends_plan_one "$kind" $rw "$rtt"
        backends_plan_others "$kind" $rw "$rtt"
      done
    done
  done
  [ ${#PLAN[@]} -gt 0 ] || die "BACKENDS_ONLY=$backends_only: no such row"
}

# MiB that a run moves: all, or a power of two for the time of a slow one.
backends_run_mib () { # KIB RTT
  local mib=4
  [ $(($1 * 1024 / $2)) -lt 20000 ] || mib=$backends_mib
  while [ $((mib * 1048 * $2)) -lt $(($1 * 1024 * seconds)) ]; do
    mib=$((mib * 2))
  done
  [ "$mib" -le "$backends_mib" ] || mib=$backends_mib
  echo "$mib"
}

backends_plan () { # KIND WORKLOAD RTT CLIENT CONTESTANT KIB SERVER COMMAND
  local limit=""
  [[ "$1 $4: $5" =~ $backends_only ]] || return 0
  [ "$4" != "one at a time" ] || limit=$(limit 1 "$6" "$3")
  plan "$4" "$5" "$1 $2 $3 ms" "$limit" "$7" \
    "$(backends_run_mib "$6" "$3") MiB: ${8//  / }"
}

# nbdkit with a filter and the client that goes with it.
backends_plan_nbdkit () { # KIND WORKLOAD RTT CLIENT CONTESTANT KIB SERVER
  local server="${7:+$7 }"
  backends_can_write "$1" || server="-r $server"
  backends_plan "$1" "$2" "$3" "$4" "$5" "$6" "${server% }" \
    "$(backends_client "$4" "$2")"
}

backends_plan_asyncpool () { # KIND WORKLOAD RTT CLIENT NxKIB
  local n=${5%x*} kib=${5#*x} name more
  more=$(backends_parameters "$1" "$n" "$kib")
  [ "$2" = read ] || more+="${more:+ }asyncpool-write=behind"
  name="asyncpool $n x $kib KiB"
  [ "$kib" = 128 ] || name="asyncpool $n x $((kib / 1024)) MiB"
  # The ssh plugin moves 128 KiB in each round trip.
  [ "$1" != ssh ] || kib=128
  backends_plan_nbdkit "$1" "$2" "$3" "$4" "$name" $((n * kib)) \
    "--filter=./asyncpool.so \$BACKEND${more:+ $more}"
}

backends_plan_one () { # KIND WORKLOAD RTT
  local one="one at a time" size kib client name command
  kib=$(backends_plain_kib "$1" "$one")
  backends_plan_nbdkit "$@" "$one" "no filter" "$kib" "\$BACKEND"
  [ "$2" = write ] || backends_plan_nbdkit "$@" "$one" "readahead over cache" \
    "$kib" "--filter=readahead --filter=cache \$BACKEND"
  for size in $(backends_sizes "$1" "$2"); do
    backends_plan_asyncpool "$@" "$one" "$size"
  done
  while IFS='|' read -r client name kib command; do
    backends_plan "$@" "$client" "$name" "$kib" "" "$command"
  done < <(backends_tools "$1" "$2")
}

backends_plan_others () { # KIND WORKLOAD RTT
  local client sizes
  sizes=$(backends_sizes "$1" "$2")
  for client in nbdcopy qemu-img "4 at a time"; do
    [ "$2" = read ] || [ -n "$backends_all" ] || continue
    [ -n "$(backends_client "$client" "$2")" ] || continue
    backends_plan_nbdkit "$@" "$client" "no filter" \
      "$(backends_plain_kib "$1" "$client")" "\$BACKEND"
    backends_plan_asyncpool "$@" "$client" "${sizes##* }"
  done
}

# A run.  All files are in $backends_tmp, on a tmpfs where there is one:
# master, the data; data-N, its first N MiB; disk/disk, which the servers serve.

backends_tmp="" backends_agent="" backends_proxy="" backends_key=""

backends_begin () {
  local dir=/dev/shm
  [ -z "$backends_tmp" ] || return 0
  [ -w $dir ] || dir=$tmp
  backends_tmp=$(mktemp -d "$dir/nbdkit-async.XXXXXX")
  backend_dir=$backends_tmp/servers
  mkdir "$backend_dir" "$backends_tmp/disk" "$backends_tmp/mnt"
  head -c "${backends_mib}M" /dev/urandom >"$backends_tmp/master"
  mkfifo "$backends_tmp/ready"
  make -s VARIANT=plain build/plain/benchmarks/delay-proxy >&2 ||
    die "benchmarks/delay-proxy.c does not build"
  : >"$backends_tmp/empty"
}

end_backends () {
  [ -n "$backends_tmp" ] || return 0
  umount -l "$backends_tmp/mnt" 2>/dev/null
  backends_proxy_stop
  [ -z "$backends_agent" ] || kill "$backends_agent"
  backend_stop_all
  rm -rf "$backends_tmp"
  backends_tmp="" backends_agent=""
}

# These open the file for each connection; the others keep the size that it had
# at their start.
backends_reopens () { # KIND
  case $1 in ssh | http* | nbdkit) ;; *) false;; esac
}

backends_server () { # KIND WORKLOAD MIB
  local data=$backends_tmp/data-$3 disk=$backends_tmp/disk/disk key="$*"
  [ -e "$data" ] || head -c "$3M" "$backends_tmp/master" >"$data"
  if [ "$2" = write ]; then
    rm -f "$disk"
    truncate -s "$3M" "$disk"
  else
    cmp -s "$data" "$disk" || cp "$data" "$disk"
  fi
  if backends_reopens "$1"; then key=$1
  elif [ "$2" = write ]; then backends_key=""
  fi
  [ "$backends_key" != "$key" ] || return 0
  backend_stop_all || :
  rm -rf "${backend_dir:?}/$1"
  backend_start "$1" "$disk" || die "$backend_missing"
  backends_key=$key backends_server_port=$backend_port
  if [ "$1" = ssh ]; then backends_ssh_agent; fi
}

# qemu-img takes the key from it.  nbdkit does not see the agent, as each login
# would ask it.
backends_ssh_agent () {
  if [ -z "$backends_agent" ]; then
    ssh-agent -D -a "$backends_tmp/agent" >/dev/null 2>&1 &
    backends_agent=$!
    backend_poll 5 test -S "$backends_tmp/agent" ||
      die "ssh-agent does not start"
  fi
  SSH_AUTH_SOCK=$backends_tmp/agent ssh-add -q "$backend_dir/ssh/user" ||
    die "ssh-add: no key"
}

# The link, for one run.  Its numbers come at its end.
backends_proxy_start () { # KIND RTT
  local port
  build/plain/benchmarks/delay-proxy --rtt="$2ms" \
    --stats="$backends_tmp/stats" 127.0.0.1:0 \
    "127.0.0.1:$backends_server_port" >"$backends_tmp/ready" &
  backends_proxy=$!
  read -r port <"$backends_tmp/ready" || die "delay-proxy does not start"
  backend_connect "$1" "$port" || die "$1: $backend_missing"
}

backends_proxy_stop () {
  [ -n "$backends_proxy" ] || return 0
  kill "$backends_proxy" 2>/dev/null || :
  wait "$backends_proxy" 2>/dev/null || :
  backends_proxy=""
}

# A command with the variables of its words, in $words.
backends_words () { # COMMAND...
  local word user dir=$backends_tmp/disk key=$backend_dir/ssh/user ssh
  user=$(id -un)
  ssh=(-F none -o "IdentityFile=$key"
    -o "UserKnownHostsFile=$backend_dir/ssh/known_hosts")
  words=()
  for word; do
    case $word in
      \$BACKEND) words+=("${backend_plugin[@]}"); continue;;
      \$SSH) words+=("${ssh[@]}"); continue;;
      \$SFTP)
        words+=(--config /dev/null --sftp-host 127.0.0.1
          --sftp-port "$backend_port" --sftp-user "$user"
          --sftp-key-file "$key" --sftp-disable-hashcheck)
        continue;;
      \$S3)
        words+=(--config /dev/null --s3-provider Other --s3-access-key-id
          S3RVER --s3-secret-access-key S3RVER --s3-endpoint
          "http://127.0.0.1:$backend_port")
        continue;;
      \$LFTP)
        words+=("set sftp:connect-program 'ssh -a -x ${ssh[*]}'; pget -n 8 \
sftp://$user:@127.0.0.1:$backend_port$dir/disk -o $backends_tmp/out")
        continue;;
    esac
    word=${word//\$URL\/..\//${backend_url%disk}}
    word=${word//\$URL/$backend_url}
    word=${word//\$URI/${server_uris[0]:-}}
    word=${word//\$FILE/$backends_tmp/data-$mib}
    word=${word//\$OUT/$backends_tmp/out}
    word=${word//\$DIR/$dir}
    word=${word//\$MNT/$backends_tmp/mnt}
    word=${word//\$PORT/$backend_port}
    word=${word//\$HOST/$user@127.0.0.1}
    word=${word//\$CA/$backend_dir/https/ca.pem}
    words+=("$word")
  done
}

# One run of nbdkit and its client: figures in $mbs_and_more.
backends_run_nbdkit () { # SERVER COMMAND
  local threads result words
  # shellcheck disable=SC2086
  backends_words $1
  clock_from=$(now_us)
  server_launch "${words[@]}"
  # shellcheck disable=SC2086
  backends_words $2
  client_timed $((mib << 20)) - "${words[@]}"
  clock_from=""
  cpu=$(server_cpu 0)
  servers_stop
  run_result=$result run_threads=$threads
}

# A mounted file system and a command that uses it.  It runs in a shell of its
# own, under a time limit.
backends_mounted () { # DIRECTORY MOUNT... & COMMAND...
  local dir=$1 mount=() pid rc=0 tries=0
  shift
  while [ "$1" != "&" ]; do mount+=("$1"); shift; done
  shift
  "${mount[@]}" &
  pid=$!
  until mountpoint -q "$dir"; do
    { [ $((tries++)) -lt 500 ] && kill -0 $pid; } || return 1
    sleep 0.02
  done
  "$@" || rc=$?
  umount "$dir" || fusermount3 -u "$dir" || rc=$?
  wait $pid || :
  return $rc
}

# Another program: it may be missing, and it may fail.  Then $missing says so.
backends_run_tool () { # COMMAND
  local words timer from rc=0 patience=$((seconds * 5 + 30))
  timer=$(type -P time)
  type -P "${1%% *}" >/dev/null ||
    { missing="${1%% *} is not installed"; return; }
  # shellcheck disable=SC2086
  backends_words $1
  if [[ " ${words[*]} " = *" & "* ]]; then
    export -f backends_mounted
    words=(bash -c 'backends_mounted "$@"' - "$backends_tmp/mnt" "${words[@]}")
  fi
  unset AWS_CA_BUNDLE           # rclone's S3 client rejects it
  local -x SSH_AUTH_SOCK=$backends_tmp/agent
  rm -f "$backends_tmp/out"
  {
    from=$(now_us)
    timeout -k 5 $patience "$timer" -q -o "$tmp/usage" -f '%U %S' \
      "${words[@]}" || rc=$?
    echo $(($(now_us) - from)) >"$tmp/us"
    exit $rc
  } >"$tmp/client.log" 2>&1 </dev/null &
  client_pid=$!
  while kill -0 $client_pid 2>/dev/null; do progress; sleep 0.1; done
  wait $client_pid || rc=$?
  client_pid=""
  umount -l "$backends_tmp/mnt" 2>/dev/null || :
  case $rc in
    0) ;;
    124 | 137) missing="not ready after $patience s"; return;;
    *) missing="status $rc: $(tail -n 1 "$tmp/client.log" | tr ',|' ';/')"
       return;;
  esac
  cpu=$(awk '{ print $1 + $2 }' "$tmp/usage")
  run_threads=- run_result=$(awk -v b=$((mib << 20)) -v us="$(cat "$tmp/us")" \
    'BEGIN { print b / us, "-", "-", "-", b, us / 1e6 }')
}

backends_is_equal () { # WORKLOAD COMMAND
  case $1,$2 in
    write,*) cmp "$backends_tmp/data-$mib" "$backends_tmp/disk/disk";;
    *\$OUT*) cmp "$backends_tmp/data-$mib" "$backends_tmp/out";;
  esac || die "the copy differs: $2"
}

measure_backends () { # ROUND PLANNED
  local client contestant workload limit server command kind rw rtt mib
  local cpu="" run_result="" run_threads="" missing="" figures=,,,,,,,,,,
  IFS='|' read -r client contestant workload limit server command <<<"$2"
  read -r kind rw rtt _ <<<"$workload"
  if [ "$client" = none ]; then
    row="$1,$client,$contestant,$workload,,$figures,,$command,,"
    return
  fi
  mib=${command%% *}
  backends_begin
  backends_server "$kind" "$rw" "$mib"
  backends_proxy_start "$kind" "$rtt"
  command=${command#*: }
  if [ -n "$server" ]; then backends_run_nbdkit "$server" "$command"
  else backends_run_tool "$command"
  fi
  backends_proxy_stop
  if [ -z "$missing" ]; then
    [[ "$rw $command" != write* && "$command" != *\$OUT* ]] ||
      backends_is_equal "$rw" "$command"
    figures=$(figures "${limit:--}" "$run_result" "0 $cpu" "$run_threads" - \
      "- - -")
    figures+=",$server,$mib MiB: $command,$(awk '
      /^connections / { n = $2 } /^bytes_/ { b += $2 }
      END { printf "%d,%d", n, b }' "$backends_tmp/stats")"
  else
    figures+=",,- $missing,,"
  fi
  row="$1,$client,$contestant,$workload,$limit,$figures"
}

# The report.

# The rows of one kind and workload, in the order of the plan: the speed at each
# round trip, and the other figures at the longest one.
table_backends () {
  awk -F, -v rtts="$(backends_rtts_of_csv)" "$awk_number"'
    BEGIN { n = split (rtts, rtt, " ") }
    FNR == NR {                 # the CSV: reasons, and the data of a run
      if ($18 ~ /^- /) reason[$2, $3, $4] = substr ($18, 3)
      if ($2 == "none") print "\n" $4 ": not measured: " reason[$2, $3, $4]
      split ($18, words, " ")
      if (words[1] != "-") mib[$2, $3, $4] = words[1]
      next
    }
    $1 == "none" { next }
    {
      split ($3, w, " ")
      section = w[1] ", " w[2]
      key = section SUBSEP $1 SUBSEP $2
      if (!(section in sections)) {
        sections[section]
        name[++count] = section
      }
      if (!(key in keys)) {
        keys[key]
        row[section, ++rows[section]] = $1 SUBSEP $2
      }
      mbs[key, w[3]] = $5
      why[key, w[3]] = reason[$1, $2, $3]
      if (w[3] == rtt[n])
        more[key] = sprintf ("%6s %5s %6s %6s %6s", number ($6),
          (mib[$1, $2, $3] == "" ? "-" : mib[$1, $2, $3]), number ($7),
          ($16 == "" ? "-" : $16),
          ($17 == "" ? "-" : sprintf ("%.2f", $17 / $14)))
    }
    END {
      for (s = 1; s <= count; s++) {
        section = name[s]
        printf "\n%-30s", section ", MB/s at"
        for (i = 1; i <= n; i++) printf " %7s", rtt[i] " ms"
        printf " %6s %5s %6s %6s %6s\n", "% of l", "MiB", "CPU/GB", "conns",
          "x data"
        client = ""
        for (i = 1; i <= rows[section]; i++) {
          split (row[section, i], f, SUBSEP)
          if (f[1] != client) print "  " f[1]
          client = f[1]
          key = section SUBSEP row[section, i]
          printf "    %-26s", f[2]
          text = ""
          for (j = 1; j <= n; j++) {
            printf " %7s", number (mbs[key, rtt[j]])
            if (why[key, rtt[j]] != "") text = why[key, rtt[j]]
          }
          print " " more[key] (text == "" ? "" : "  " text)
        }
      }
    }' "$csv" "$medians"
  cat <<'END'

MB/s: 10^6 bytes, of the whole command: from the start of nbdkit to the exit of
its client, or of the program that is named.  At the longest round trip: % of l:
of the limit, which is in flight x size / round trip; MiB: the data of the run;
CPU/GB: CPU seconds of nbdkit, or of the program, per 10^9 bytes; conns: TCP
connections to the server; x data: bytes on them, of both directions, over the
data.
END
}

backends_rtts_of_csv () {
  awk -F, 'NR > 1 && $2 != "none" { split ($4, w, " "); print w[3] }' "$csv" |
    sort -n -u | paste -s -d ' '
}

# "KIND WORKLOAD RTT ms", a line for each in the CSV.
backends_workloads () {
  awk -F, '$1 != "none" && !($3 in seen) { seen[$3]; print $3 }' "$medians"
}

# The greatest speed, and its contestant.
backends_best () { # CLIENT WORKLOAD PATTERN
  awk -F, -v client="$1" -v workload="$2" -v pattern="$3" '
    $1 == client && $3 == workload && $2 ~ pattern && $5 > best {
      best = $5; name = $2
    }
    END { print (best == "" ? "NaN" : best), name }' "$medians"
}

backends_goal_of_best () { # WORKLOAD CLIENT TEXT
  local mbs name other_mbs other
  read -r other_mbs other < <(backends_best "$2" "$1" .)
  read -r mbs name < <(backends_best "one at a time" "$1" '^asyncpool')
  [ "$mbs" != NaN ] && [ "$other_mbs" != NaN ] || return 0
  goal "$1, of the best $3" "$(ratio "$mbs" "$other_mbs")" ">=" 1 \
    "${name#asyncpool } / $other"
}

# Of another contestant, or FACTOR times of it.
backends_goal_of () { # WORKLOAD CONTESTANT OTHER FACTOR GOAL TEXT
  local one="one at a time" mbs other
  mbs=$(pick "$one" "$2" "$1") other=$(pick "$one" "$3" "$1")
  [ "$mbs" != NaN ] && [ "$other" != NaN ] || return 0
  goal "$1, $6" "$(ratio "$(ratio "$mbs" "$other")" "$4")" ">=" "$5"
}

summary_backends () {
  local workload size
  echo "The fastest asyncpool with one request at a time, over the others:"
  while read -r workload; do
    backends_goal_of_best "$workload" mount mount
    backends_goal_of_best "$workload" copy program
  done < <(backends_workloads)
  echo "16 contexts over no filter, and contexts over linear growth from 4:"
  while read -r workload; do
    case $workload in
      ssh*) size=11;;
      http*) size=12;;
      *) continue;;
    esac
    backends_goal_of "$workload" "asyncpool 16 x 128 KiB" "no filter" 1 \
      $size "16 / no filter"
    for size in 16 32; do
      backends_goal_of "$workload" "asyncpool $size x 128 KiB" \
        "asyncpool 4 x 128 KiB" $((size / 4)) 0.85 "$size / 4 of linear"
    done
  done < <(backends_workloads)
}

notes_backends () {
  cat <<'END'
Each server is a private one on the loopback interface, its file on a tmpfs.
delay-proxy adds the round trip.  It limits neither the rate nor the bytes in
flight.  A real link also has slow start and losses, which slow a stream down.

N x SIZE: asyncpool with buffers of SIZE and N operations in flight.  Over ssh
and curl up to nbdkit 1.34 these are N contexts.  Over curl from 1.36 on they
are N threads and connections, and over parallel plugins N buffers.  `one at a
time' is nbdcopy --synchronous with requests of 256 KiB, `4 at a time' nbdcopy
with four of 128 KiB.  nbdcopy flushes only at its end, so asyncpool writes with
asyncpool-write=behind.  A slow contestant moves less data (MiB), so its start
is a larger part of its time.  `itself': without nbdkit.  `rclone mount' over
HTTP is left out, as it needs a directory index.
END
  awk -F, '
    NR > 1 && $17 == "" && $18 !~ /^- / {
      split ($4, w, " ")
      command = $18
      sub (/^[0-9]+ MiB: /, "", command)
      if ((w[1], $3, command) in seen) next
      seen[w[1], $3, command]
      if (!n++) print "\nOther programs:"
      print "  " w[1] ": " $3 "\n      " command
    }' "$csv"
  cat <<'END'

$BACKEND: the plugin and its parameters, as benchmarks/backends.sh sets them.
$SSH, $SFTP, $S3: options for the address and the keys.  $LFTP: pget -n 8 of
the file.
END
}

# A line for each workload: its name, then the columns of the plot.
backends_plot_data () {
  local workload client pattern
  while read -r workload; do
    printf '"%s\\n%s" %s\n' "${workload% * ms}" "${workload#* * }" "$({
      pick "one at a time" "no filter" "$workload"
      pick "one at a time" "readahead over cache" "$workload"
      for pattern in "^asyncpool (4|64) x 128 KiB" "^asyncpool"; do
        backends_best "one at a time" "$workload" "$pattern"
      done
      for client in mount copy; do backends_best $client "$workload" .; done
    } | cut -d' ' -f1 | paste -s -d ' ')"
  done < <(backends_workloads)
}

plot_backends () {
  local data i found="" items=("no filter=#d0d0d0"
    "readahead over cache=#a8a8a8" "asyncpool 4 contexts or 64 buffers=#8fc0e8"
    "fastest asyncpool=#1f6fb4" "fastest mount=#f0c090"
    "fastest copying program=#c06000")
  data=$(backends_plot_data)
  # gnuplot wants a figure in each column.
  for i in "${!items[@]}"; do
    if awk -v i="$i" '$(NF - 5 + i) > 0 && $(NF - 5 + i) != "NaN" { f = 1 }
      END { exit !f }' <<<"$data"
    then found=1
    else items[i]=""
    fi
  done
  [ -n "$found" ] || return 0
  gnuplot_bars 1100 500
  printf '%s\n' "\$data << EOD" "$data" EOD
  cat <<'END'
set title "Real servers behind a link, MB/s with start-up" font ",16"
set logscale y
set yrange [1:*]
set ylabel "MB/s, log scale"
set bmargin 4
set key above horizontal Left reverse samplen 1.5
END
  plot data "${items[@]}"
}
