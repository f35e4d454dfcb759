# SPDX-License-Identifier: BSD-3-Clause
# asyncpool with no parameter, beside hand-set numbers and beside no filter.
#
# A cell is a device and a client.  All contestants run one after another in
# each cell.  delaymem is the device, alone or with a limit:
#   none      delaymem, with the offset filter between it and asyncpool.  That
#             keeps asyncpool from calling delaymem's hooks.
#   rate      nbdkit's nbd plugin, delay-proxy with a rate, and a second nbdkit
#             with delaymem.  nbdkit's rate filter is not used: with 1024
#             operations in flight it takes 1.6 processors.
#   servers   the same without the proxy.  The second nbdkit has that many
#             threads, so later operations wait in its socket.
# Others are real servers behind delay-proxy (backends.sh), and a link that
# changes during the run (reaction).
# shellcheck shell=bash disable=SC2034,SC2154
# shellcheck source-path=SCRIPTDIR source=case-backends.sh
. benchmarks/case-backends.sh
title="No parameter beside hand-set numbers and no filter"
rounds=3
seconds=2                       # and ten latencies

auto_kinds=${AUTO_KINDS-delaymem reaction nbdkit ssh http s3}
auto_latencies=${AUTO_LATENCIES:-0 0.1 1 5 20 64 300}
auto_limits=${AUTO_LIMITS:-none rate servers}
auto_shapes=${AUTO_SHAPES:-}
auto_rtts=${AUTO_RTTS:-5 20 64 150}
auto_grid=${AUTO_GRID:-16 64 256 1024 16x1024 64x1024}
auto_contexts=${AUTO_CONTEXTS:-4x128 16x128 32x128 16x1024 32x1024}
auto_threads=${AUTO_THREADS:-16}
auto_rate=${AUTO_RATE:-100}     # MB/s
auto_servers=${AUTO_SERVERS:-16}
auto_parameters=${AUTO_PARAMETERS:-} # of the contestant without parameters
auto_size=${AUTO_SIZE:-1G}
auto_only=${AUTO_ONLY:-.}
backends_mib=${AUTO_MIB:-512}

# The goals, of the best of the grid and of no filter.  A cell is not repeated
# if one round is clear: both ratios are AUTO_CLEAR above, or one is far below.
auto_goal_best=0.90 auto_goal_none=0.95
auto_clear=0.05 auto_far=0.25
auto_repeat=${AUTO_REPEAT:-}    # not empty: repeat all cells
auto_goal_beside=1.5            # of the latency of a read without other load

if [ -n "${AUTO_QUICK:-}" ]; then
  rounds=1 seconds=1
fi

# The cells.

auto_shapes_of () { # KIND MS LIMIT
  local all=$auto_shapes beside=""
  case $2,$3 in 20,* | 64,none) beside=" beside";; esac
  case $1,$3 in
    reaction,*) all=1-read;;
    delaymem,none)
      all=${all:-1-read 1-write 4-read deep-read deep-write random mixed$beside}
      ;;
    delaymem,*) all=${all:-1-read 1-write deep-read mixed$beside};;
    *) all=${all:-1-read 1-write deep-read random};;
  esac
  if [ "$1" = delaymem ] || backends_can_write "$1"; then echo "$all"
  else printf '%s\n' $all | grep -v -e write -e mixed -e beside
  fi
}

auto_quick_cells () {
  local kind ms limit shape
  while read -r kind ms limit shape; do
    echo "$kind $ms $limit $shape"
  done <<'LIST'
delaymem 0 none 1-read
delaymem 0 none deep-read
delaymem 5 none 1-read
delaymem 64 none 1-read
delaymem 64 none 1-write
delaymem 64 none 4-read
delaymem 64 none deep-read
delaymem 64 none mixed
delaymem 20 rate 1-read
delaymem 20 servers 1-read
nbdkit 64 none 1-read
ssh 20 none 1-read
http 20 none 1-read
LIST
}

auto_all_cells () { # lines KIND MS LIMIT SHAPE
  local kind ms limit shape
  for kind in $auto_kinds; do
    case $kind in
      reaction)
        for limit in latency bandwidth; do
          for shape in $(auto_shapes_of reaction 20 "$limit"); do
            echo "reaction 20 $limit $shape"
          done
        done;;
      delaymem)
        for ms in $auto_latencies; do
          for limit in $auto_limits; do
            for shape in $(auto_shapes_of delaymem "$ms" "$limit"); do
              echo "delaymem $ms $limit $shape"
            done
          done
        done;;
      *)
        for ms in $auto_rtts; do
          for shape in $(auto_shapes_of "$kind" "$ms" none); do
            echo "$kind $ms none $shape"
          done
        done;;
    esac
  done
}

auto_workload () { # KIND MS LIMIT
  case $3 in
    none) echo "$1 $2 ms";;
    rate) echo "$1 $2 ms $auto_rate MB/s";;
    servers) echo "$1 $2 ms $auto_servers servers";;
    *) echo "$1 $2 ms $3 changes";;
  esac
}

# The plan.

plan_auto () {
  local kind ms limit shape missing=""
  auto_begin
  while read -r kind ms limit shape; do
    [[ "$(auto_workload "$kind" "$ms" "$limit"), $shape" =~ $auto_only ]] ||
      continue
    if [ "$kind" != delaymem ] && [ "$kind" != reaction ] &&
        ! backend_have "$kind"; then
      [[ $missing = *"$kind "* ]] ||
        echo "benchmarks: no $kind: $backend_missing" >&2
      missing+="$kind "
      continue
    fi
    auto_plan_cell "$kind" "$ms" "$limit" "$shape"
  done < <(if [ -n "${AUTO_QUICK:-}" ]; then auto_quick_cells
           else auto_all_cells; fi)
  [ ${#PLAN[@]} -gt 0 ] || die "AUTO_ONLY=$auto_only: no such cell"
}

auto_plan_cell () { # KIND MS LIMIT SHAPE
  local grid=$auto_grid n write="" command device
  device=$(auto_plugin "$@")
  command=$(auto_job "$4" "$2" "$3")
  ! auto_writes "$4" || write=" asyncpool-write=behind"
  case $1 in ssh | http*) grid=$auto_contexts;; esac
  auto_plan "$@" "no parameter" \
    "--filter=./asyncpool.so $device${auto_parameters:+ $auto_parameters}$write"
  for n in $grid; do
    auto_plan "$@" "$n" \
      "--filter=./asyncpool.so $device $(auto_numbers "$1" "$n")$write"
  done
  auto_plan "$@" "no filter" "$device"
  [ "$4" != beside ] || {
    command=$(auto_job alone "$2" "$3")
    auto_plan "$@" alone "$device"
  }
}

auto_writes () { # SHAPE
  case $1 in *write | mixed | beside) ;; *) return 1;; esac
}

auto_plan () { # KIND MS LIMIT SHAPE CONTESTANT SERVER
  local read_only=""
  auto_writes "$4" || read_only="-r "
  plan "$4" "$5" "$(auto_workload "$1" "$2" "$3")" "" \
    "$read_only-t $auto_threads $6" "$command"
}

# What follows asyncpool's own --filter.
auto_plugin () { # KIND MS LIMIT SHAPE
  case $1,$3 in
    delaymem,none)
      echo "--filter=offset ./delaymem.so $(auto_device "$4") delay=$2ms" \
        "io-threads=0 offset=0";;
    delaymem,* | reaction,*) echo "nbd socket=\$LINK shared=true";;
    *) echo "\$BACKEND";;
  esac
}

# A device that is never written needs no memory: delaymem's holes are zeroed
# in the client's buffer.  So a stream never comes to the end of it.
auto_device () { # SHAPE
  if auto_writes "$1"; then echo "size=$auto_size populate=true"
  else echo "size=64G"
  fi
}

# N or NxKIB: N buffers, or contexts.  asyncpool-buffers makes the number fixed
# also where contexts bound it.
auto_numbers () { # KIND N
  local n=${2%x*} kib=128 numbers
  [[ $2 != *x* ]] || kib=${2#*x}
  numbers="asyncpool-contexts=$n asyncpool-buffers=64"
  case $1 in
    ssh) ;;
    http*)
      ! backends_is_parallel "$1" ||
        numbers="asyncpool-buffers=$n connections=$n";;
    *) numbers="asyncpool-buffers=$n";;
  esac
  [ "$kib" = 128 ] || numbers+=" asyncpool-buffer-size=${kib}K"
  echo "$numbers"                # one line, as a plan is one
}

# A phase of a link that changes, in seconds.
auto_phase () { echo $((seconds * 2)); }

auto_job () { # SHAPE MS LIMIT
  local ms job latencies=10
  # The 99th percentile needs some hundred reads.
  case $1 in beside | alone) latencies=210;; esac
  ms=$(awk -v s="$seconds" -v ms="$2" -v n="$latencies" \
    'BEGIN { print s * 1000 + n * ms }')
  case $3 in
    latency | bandwidth) ms=$(($(auto_phase) * 3000));;
  esac
  job="--bs=128k --iodepth=1 --runtime=${ms}ms"
  case $1 in
    4-*) job=${job/iodepth=1/iodepth=4};;
    deep-*) job=${job/iodepth=1/iodepth=64};;
  esac
  case $1 in
    *-read) echo "fio --rw=read $job";;
    *-write) echo "fio --rw=write $job --time_based --end_fsync=1";;
    random)
      echo "fio --rw=randread --norandommap --bs=4k --iodepth=16" \
        "--runtime=${ms}ms --time_based";;
    mixed)
      echo "fio --rw=read $job --time_based --size=75%" \
        "--name=writer --ioengine=nbd --uri=\$URI --rw=write $job" \
        "--time_based --offset=75% --end_fsync=1";;
    alone)
      echo "fio --rw=randread --norandommap --bs=4k --iodepth=1 --size=10%" \
        "--runtime=${ms}ms --time_based --startdelay=1s";;
    beside)                     # its load begins first
      job="--ioengine=nbd --uri=\$URI --bs=128k --iodepth=1 --time_based"
      job+=" --runtime=$((ms + 1000))ms"
      echo "$(auto_job alone "$2" "$3")" \
        "--name=reader --rw=read $job --offset=10% --size=40%" \
        "--name=writer --rw=write $job --offset=50% --end_fsync=1";;
  esac
}

# Devices.

auto_tmp="" auto_inner="" auto_inner_key="" auto_link="" auto_changer=""
auto_served=""                  # KIND and direction of the last real server

# The command, with the variables that choose.
auto_run_command () {
  local name text=""
  for name in "${!AUTO_@}"; do text+="$name='${!name}' "; done
  echo "command: ${text}benchmarks/run -r $rounds -s $seconds auto"
}

# Other work on the machine makes ratios wrong.
auto_load () { # WHEN
  local load
  read -r load _ </proc/loadavg
  echo "load average $1: $load"
}

auto_begin () {
  auto_run_command >>"$tmp/machine"
  auto_load "at the start" >>"$tmp/machine"
  auto_tmp=$tmp/auto
  mkdir -p "$auto_tmp"
  [ -e "$auto_tmp/ready" ] || mkfifo "$auto_tmp/ready"
  unset SSH_AUTH_SOCK           # that of the user
  # shellcheck source-path=SCRIPTDIR source=backends.sh
  . benchmarks/backends.sh
  declare -gA backend_pids=() backend_ports=() backend_files=()
  backend_max_startups=${BACKENDS_MAX_STARTUPS:-}
  make -s VARIANT=plain build/plain/benchmarks/delay-proxy >&2 ||
    die "benchmarks/delay-proxy.c does not build"
}

end_auto () {
  auto_load "at the end" >>"$tmp/machine"
  auto_link_stop
  auto_inner_stop
  end_backends
}

# The second nbdkit, which keeps running for the runs of a cell.
auto_inner_start () { # THREADS DELAYMEM...
  local tries=0
  [ "$auto_inner_key" != "$*" ] || return 0
  auto_inner_stop
  rm -f "$auto_tmp/inner" "$auto_tmp/inner.pid"
  nbdkit -f -U "$auto_tmp/inner" -P "$auto_tmp/inner.pid" -t "$1" \
    ./delaymem.so "${@:2}" io-threads=0 2>"$auto_tmp/inner.log" &
  auto_inner=$!
  until [ -s "$auto_tmp/inner.pid" ]; do
    { kill -0 "$auto_inner" 2>/dev/null && [ $((tries++)) -lt 3000 ]; } ||
      die "the second nbdkit does not start: $(cat "$auto_tmp/inner.log")"
    sleep 0.02
  done
  timeout 180 nbdinfo --size "nbd+unix:///?socket=$auto_tmp/inner" >/dev/null ||
    die "the second nbdkit does not answer: $(cat "$auto_tmp/inner.log")"
  auto_inner_key=$*
}

auto_inner_stop () {
  [ -n "$auto_inner" ] || return 0
  kill "$auto_inner" 2>/dev/null || :
  wait "$auto_inner" 2>/dev/null || :
  auto_inner="" auto_inner_key=""
}

auto_link_start () { # OPTION...
  rm -f "$auto_tmp/link"
  build/plain/benchmarks/delay-proxy "$@" "$auto_tmp/link" "$auto_tmp/inner" \
    >"$auto_tmp/ready" &
  auto_link=$!
  read -r _ <"$auto_tmp/ready" || die "delay-proxy does not start"
}

auto_link_stop () {
  local pid
  for pid in $auto_changer $auto_link; do
    kill "$pid" 2>/dev/null || :
    wait "$pid" 2>/dev/null || :
  done
  auto_changer="" auto_link=""
}

# What a workload needs beside the server of a contestant.
auto_device_start () { # WORKLOAD SHAPE
  local kind ms limit device
  read -r kind ms _ limit _ <<<"$1"
  # Words.
  # shellcheck disable=SC2207
  device=($(auto_device "$2"))
  auto_socket=$auto_tmp/inner
  case "$1" in
    *servers) auto_inner_start "$limit" "${device[@]}" "delay=${ms}ms";;
    delaymem*MB/s)
      auto_inner_start 1100 "${device[@]}" "delay=${ms}ms"
      auto_link_start --rtt=0us "--rate=${limit}M"
      auto_socket=$auto_tmp/link;;
    reaction*)
      auto_inner_start 1100 "${device[@]}" delay=0
      auto_link_start "--rtt=${ms}ms" --rate=200M \
        "--changes=$auto_tmp/changes"
      auto_socket=$auto_tmp/link;;
    delaymem*) ;;
    *)
      backends_begin
      auto_serve "$kind" "$(auto_direction "$2")"
      backends_proxy_start "$kind" "$ms";;
  esac
}

# Readers change nothing, so the next one finds the server as it is.
auto_serve () { # KIND WORKLOAD
  [ "$auto_served $2" != "$* read" ] || return 0
  backends_server "$1" "$2" "$backends_mib"
  auto_served=$*
}

auto_direction () { # SHAPE
  if auto_writes "$1"; then echo write; else echo read; fi
}

# Changes the link of a reaction at the end of the first phase, and back at the
# end of the second one.  It notes when.
auto_change () { # LIMIT
  local there back
  case $1 in
    latency) there=rtt=100ms back=rtt=20ms;;
    bandwidth) there=rate=50M back=rate=200M;;
  esac
  : >"$auto_tmp/changed"
  {
    for line in $there $back; do
      sleep "$(auto_phase)"
      echo "$line" >"$auto_tmp/changes"
      kill -HUP "$auto_link"
      echo "$(($(now_us) / 1000))" >>"$auto_tmp/changed"
    done
  } &
  auto_changer=$!
}

# A run.

auto_words () { # WORD...: sets $words
  local word
  words=()
  for word; do
    case $word in
      \$BACKEND) words+=("${backend_plugin[@]}"); continue;;
    esac
    word=${word//\$LINK/$auto_socket}
    words+=("${word//\$URI/${server_uris[0]:-}}")
  done
}

measure_auto () { # ROUND PLANNED
  local client contestant workload server command words kind ms what
  local cpu threads result auto_socket logs shape flush
  IFS='|' read -r client contestant workload _ server command <<<"$2"
  read -r kind ms _ what _ <<<"$workload"
  row=""
  ! auto_is_clear "$1" "$client" "$workload" || return 0
  auto_device_start "$workload" "$client"
  # shellcheck disable=SC2086
  auto_words $server
  server_start "${words[@]}"
  cpu=$(server_cpu 0)
  # shellcheck disable=SC2086
  auto_words ${command#fio }
  rm -f "$auto_tmp"/bw_bw.*
  logs=("--write_bw_log=$auto_tmp/bw" --log_avg_msec=100 --bwavgtime=100)
  if [ "$kind" = reaction ]; then
    logs+=(--log_unix_epoch=1)
    auto_change "$what"
  fi
  # Each job of a command has options of its own.
  auto_all_jobs "${logs[@]}"
  client_fio "${words[@]}"
  cpu+=" $(server_cpu 0)"
  shape=$client
  [ "$contestant" != alone ] || shape=alone
  result=$(auto_result "$shape" <"$tmp/client.json") ||
    die "no result of fio: $command"
  flush=$(auto_flush "$command" <"$tmp/client.json")
  servers_stop
  auto_link_stop
  backends_proxy_stop
  auto_row "$1"
}

auto_all_jobs () { # OPTION...: adds them to all jobs in $words
  local word all=()
  for word in "${words[@]}"; do
    [[ $word != --name=* ]] || all+=("$@")
    all+=("$word")
  done
  words=("${all[@]}" "$@")
}

auto_row () { # ROUND
  local to_90
  if [ "$kind" = reaction ]; then
    auto_keep_samples "$1" "$contestant" "$what"
    to_90=""
  else
    to_90=$(auto_bins 0 "$auto_tmp"/bw_bw.*.log | auto_to_90 "$ms")
  fi
  row="$1,$client,$contestant,$workload,,$(
    figures - "$result" "$cpu" "$threads" - "- - -")"
  row+=",$server,$command,,,$to_90,$flush"
}

# Seconds from the end of the run time to the end of the final flush.  fio does
# not report the flush itself.
auto_flush () { # COMMAND <JSON
  local ms=${1##*--runtime=}
  [[ $1 = *--end_fsync=1* ]] || return 0
  jq -r --argjson ms "${ms%%ms*}" \
    '[.jobs[].write.runtime - $ms, 0] | max / 1e3'
}

# As fio_result does, of all jobs.  A reader and a writer side by side count as
# twice the slower one, as for a copy.  Latencies are those of the first job
# that reads, or of the writer.
auto_result () { # SHAPE <JSON
  jq -er --arg shape "$1" '
    def ios: map (.total_ios) | add;
    if any (.jobs[]; .error != 0) then error ("fio has an error") else . end |
    [.jobs[].read] as $r | [.jobs[].write] as $w |
    ($r | map (.bw_bytes) | add) as $read |
    ($w | map (.bw_bytes) | add) as $write |
    (if $shape == "mixed" or $shape == "beside" then 2 * ([$read, $write] | min)
     else $read + $write end) as $speed |
    (if ($r | ios) > 0 then $r else $w end |
     map (select (.total_ios > 0)) | .[0]) as $one |
    [$speed / 1e6, $one.lat_ns.mean / 1e6,
     $one.clat_ns.percentile["99.000000"] / 1e6,
     ($r + $w | ios), ([($r + $w)[].io_bytes] | add),
     ([($r + $w)[].runtime] | max / 1e3)] |
    if any (. == null or . <= 0) then error ("a number is missing: \(.)")
    else . end | map (tostring) | join (" ")'
}

# Samples.

# The logs of fio as lines of MS MB/s, one for each 100 ms from BASE on: the sum
# over all files.  fio's own samples are a little longer or shorter.
auto_bins () { # BASE_MS FILE...
  awk -F', *' -v base="$1" '
    FNR == 1 {
      from = base > 0 ? $1 - base - 100 : 0
      if (from < 0) from = 0
      if (NR == 1 || from < first) first = from
    }
    {
      to = $1 - base
      for (b = int (from / 100); b * 100 < to; b++) {
        lo = b * 100 > from ? b * 100 : from
        hi = (b + 1) * 100 < to ? (b + 1) * 100 : to
        mbs[b] += $2 * 1.024e-3 * (hi - lo) / 100
      }
      if (to > from) from = to
      if (to > last) last = to
    }
    END {
      n = int ((last + 50) / 100)
      for (b = int (first / 100); b < n; b++) print b * 100, mbs[b] + 0
    }' "${@:2}"
}

# Seconds until the rate of one latency (100 ms at least) reaches 90 % of the
# final rate, the mean of the last half.  Empty if there is none.
auto_to_90 () { # LATENCY_MS [BINS_TO_SKIP] <BINS
  awk -v ms="$1" -v skip="${2:-0}" '
    NR <= skip { next }
    { mbs[++n] = $2 }
    END {
      w = ms > 100 ? int ((ms + 99) / 100) : 1
      for (i = int (n / 2) + 1; i <= n; i++) { final += mbs[i]; count++ }
      if (count == 0 || final == 0) exit
      for (i = 1; i <= n; i++) {
        sum += mbs[i] - (i > w ? mbs[i - w] : 0)
        if (sum / w >= 0.9 * final / count) {
          printf "%.1f", (i + skip) / 10
          exit
        }
      }
    }'
}

# With times from the beginning of the first phase.
auto_keep_samples () { # ROUND CONTESTANT LIMIT
  local base
  base=$(($(head -n 1 "$auto_tmp/changed") - $(auto_phase) * 1000))
  auto_bins "$base" "$auto_tmp"/bw_bw.*.log |
    awk -v OFS=, -v begin="$1,$3,$2" -v phase="$(auto_phase)" \
      '{ print begin, phase, $1, $2 }' >>"$tmp/samples"
}

# Ratios.

# A line per cell of the CSV: client,workload,none,auto,best,its name,
# auto / best,auto / none, seconds to 90 % of auto and of best, then NAME=MB/s
# for each of the grid.  MB/s are medians of the rounds.  best is the one of the
# grid with the highest median.  A ratio is the median of the ratios of the
# rounds.
auto_cells () { # CSV [ROUNDS]
  awk -F, -v OFS=, -v most="${2:-0}" "$awk_median"'
    function of_rounds (value, contestant,    r, n, v) {
      for (r = 1; r <= rounds; r++)
        if (value[cell, contestant, r] != "")
          v[++n] = value[cell, contestant, r] + 0
      return median(v, n + 0)
    }
    function ratio (contestant,    r, n, v) {
      for (r = 1; r <= rounds; r++)
        if (mbs[cell, "no parameter", r] != "" && mbs[cell, contestant, r] > 0)
          v[++n] = mbs[cell, "no parameter", r] / mbs[cell, contestant, r]
      return median(v, n + 0)
    }
    NR == 1 || (most > 0 && $1 > most) { next }
    {
      cell = $2 OFS $4
      if (!(cell in seen)) { seen[cell]; order[++cells] = cell }
      if (!((cell, $3) in known)) {
        known[cell, $3]
        name[cell, ++names[cell]] = $3
      }
      mbs[cell, $3, $1] = $6
      to_90[cell, $3, $1] = $21
      if ($1 + 0 > rounds) rounds = $1 + 0
    }
    END {
      for (c = 1; c <= cells; c++) {
        cell = order[c]
        best = "" ; best_mbs = 0; grid = ""
        for (i = 1; i <= names[cell]; i++) {
          one = name[cell, i]
          if (one ~ /^(no parameter|no filter|alone)$/) continue
          x = of_rounds(mbs, one)
          grid = grid OFS one "=" x
          if (x > best_mbs) { best_mbs = x; best = one }
        }
        print cell, of_rounds(mbs, "no filter"),
          of_rounds(mbs, "no parameter"), best_mbs, best, ratio(best),
          ratio("no filter"), of_rounds(to_90, "no parameter"),
          of_rounds(to_90, best) grid
      }
    }' "$1"
}

# The same for another column of the CSV, in place of MB/s.
auto_cells_of () { # COLUMN CSV
  awk -F, -v OFS=, -v column="$1" '{ $6 = $column; print }' "$2" |
    auto_cells /dev/stdin
}

auto_is_clear () { # ROUND CLIENT WORKLOAD
  [ "$1" -gt 1 ] && [ -z "$auto_repeat" ] && [ "$2" != beside ] || return 1
  auto_cells "$tmp/rows" $(($1 - 1)) |
    awk -F, -v client="$2" -v workload="$3" -v best="$auto_goal_best" \
      -v none="$auto_goal_none" -v clear="$auto_clear" -v far="$auto_far" '
      $1 == client && $2 == workload {
        good = $7 >= best + clear && $8 >= none + clear
        bad = $7 < best - far || $8 < none - far
      }
      END { exit !(good || bad) }'
}

# The report.

summary_auto () {
  auto_cells "$csv" | awk -F, -v goal_best="$auto_goal_best" \
    -v goal_none="$auto_goal_none" "$awk_number"'
    function ratio (x, goal) {
      return x == "" ? "-" : sprintf ("%.3f%s", x, (x < goal ? "!" : " "))
    }
    {
      if ($7 >= goal_best) best++
      if ($8 >= goal_none) none++
      if ($7 < goal_best || $8 < goal_none)
        missed[++n] = sprintf ("  %-30s %-11s %8s %8s  %-10s %8s", $2, $1,
          ratio ($7, goal_best), ratio ($8, goal_none), "of " $6, number ($4))
    }
    END {
      printf "no parameter / best of the grid >= %.2f: %d of %d cells\n",
        goal_best, best, NR
      printf "no parameter / no filter        >= %.2f: %d of %d cells\n",
        goal_none, none, NR
      if (!n) exit
      printf "\n  %-42s %8s %8s  %-10s %8s\n", n " cells that miss:", "/ best ",
        "/ none ", "", "MB/s"
      for (i = 1; i <= n; i++) print missed[i]
    }'
  auto_beside
  auto_writers
  auto_reaction
}

# The latencies of the random reader, in those that it has alone: a line for
# each cell.
auto_beside () {
  local column contestant
  grep -q '^[0-9]*,beside,' "$csv" || return 0
  for contestant in "no parameter" "no filter"; do
    # Columns: lat_mean_ms, lat_p99_ms.
    for column in 12 13; do
      awk -F, -v OFS=, -v one="$contestant" '
        NR > 1 && $2 != "beside" { next }
        $3 == one { $3 = "no parameter"; print; next }
        $3 == "alone" { $3 = "no filter"; print }
        NR == 1' "$csv" >"$tmp/beside"
      auto_cells_of $column "$tmp/beside" | sed "s/^/$contestant $column,/"
    done
  done | awk -F, -v goal="$auto_goal_beside" "$awk_number"'
    function ratio (what,    x) {
      x = ratios[cell, what]
      return x == "" ? "-" : sprintf ("%.2f%s", x, (x > goal ? "!" : " "))
    }
    !($3 in seen) { seen[$3]; order[++n] = $3 }
    { alone[$3, $1] = $4; ratios[$3, $1] = $9 }
    END {
      for (i = 1; i <= n; i++)
        if ((x = ratios[order[i], "no parameter 13"]) != "" && x <= goal) good++
      printf "\np99 of a random reader beside load / alone <= %.1f: ", goal
      printf "%d of %d cells\n\n", good, n
      printf "  %-27s%17s%16s%15s\n", "", "alone, ms", "no parameter",
        "no filter"
      printf "  %-27s%9s%8s%8s%8s%7s%8s\n", "", "mean", "p99", "mean", "p99",
        "mean", "p99"
      for (i = 1; i <= n; i++) {
        cell = order[i]
        printf "  %-27s%9s%8s%9s%8s%8s%8s\n", cell,
          number (alone[cell, "no parameter 12"]),
          number (alone[cell, "no parameter 13"]), ratio ("no parameter 12"),
          ratio ("no parameter 13"), ratio ("no filter 12"),
          ratio ("no filter 13")
      }
    }'
}

# The p99 of a write, and the final flush, in latencies of the device.  Where
# a reader is beside the writer, the latencies of the CSV are those of the
# reader.
auto_writers () {
  # Columns: lat_p99_ms, flush_s.
  { auto_cells_of 13 "$csv" | sed 's/^/p99,/'
    auto_cells_of 22 "$csv" | sed 's/^/flush,/'; } | awk -F, "$awk_number"'
    function latencies (x) { return number (x == "" ? x : x / ms) }
    function figures (p99, flush) {
      return sprintf ("%8s%8s", latencies (p99),
        latencies (flush == "" ? "" : flush * 1000))
    }
    { split ($3, w, " "); ms = w[2]; cell = $3 OFS $2 }
    ms == 0 { next }
    $1 == "p99" {
      if ($2 ~ /-write$/) { auto[cell] = $5; none[cell] = $4 }
      next
    }
    $4 != "" || $5 != "" {
      if (!n++) {
        printf "\n%-37s%16s%8s%16s\n", "Writers, in latencies",
          "no parameter", "", "no filter"
        printf "%-37s%8s%8s%8s%8s%8s\n", "", "p99", "flush", "s", "p99",
          "flush"
      }
      printf "  %-26s%-9s%s%8s%s\n", $3, $2, figures (auto[cell], $5),
        $5 == "" ? "-" : sprintf ("%.3f", $5), figures (none[cell], $4)
    }'
}

# For each phase of a reaction its mean MB/s, and the time to 90 % of its final
# rate.  Data that was on its way at a change still comes at the old rate, so
# 300 ms do not count then.
auto_reaction () {
  local kind contestant phase times rate from n
  [ -s "$samples" ] || return 0
  printf '\n%-26s%s\n' "Reaction, of 3 phases" \
    "  MB/s in each phase    s to 90 % of its final rate"
  while IFS=, read -r kind contestant phase; do
    rate="" times=""
    for n in 0 1 2; do
      from=$((n * phase * 1000))
      auto_phase_of "$kind" "$contestant" $from $((from + phase * 1000)) \
        >"$tmp/phase"
      rate+=$(awk '{ s += $2 } END { printf "%8.1f", NR ? s / NR : 0 }' \
        "$tmp/phase")
      times+=$(printf '%8s' "$(auto_to_90 100 $((n > 0 ? 3 : 0)) \
        <"$tmp/phase")")
    done
    printf '  %-10s %-13s%s  %s\n' "$kind" "$contestant" "$rate" "$times"
  done < <(awk -F, '!(($2, $3) in seen) { seen[$2, $3]; print $2 "," $3 "," $4 }
    ' "$samples")
}

# Bins of a phase, in the mean of all rounds.
auto_phase_of () { # KIND CONTESTANT FROM_MS TO_MS
  awk -F, -v kind="$1" -v contestant="$2" -v from="$3" -v to="$4" '
    $2 == kind && $3 == contestant && $5 >= from && $5 < to {
      sum[$5] += $6
      count[$5]++
    }
    END {
      for (ms = from; ms < to; ms += 100)
        if (ms in sum) print ms, sum[ms] / count[ms]
    }' "$samples"
}

table_auto () {
  auto_cells "$csv" | awk -F, -v goal_best="$auto_goal_best" \
    -v goal_none="$auto_goal_none" "$awk_number"'
    function ratio (x, goal) {
      return x == "" ? "-" : sprintf ("%.2f%s", x, (x < goal ? "!" : " "))
    }
    function seconds (x) { return x == "" ? "-" : sprintf ("%.1f", x) }
    {
      head = sprintf ("  %-11s %6s %6s", "MB/s", "none", "auto")
      line = sprintf ("  %-11s %6s %6s", $1, number ($3), number ($4))
      for (i = 11; i <= NF; i++) {
        split ($i, f, "=")
        head = head sprintf (" %6s", f[1])
        line = line sprintf (" %6s", number (f[2]))
      }
      head = head sprintf ("  %-6s %-6s %4s %5s", "/best", "/none", "to90",
        "best")
      if ($2 != section) print "\n" $2
      if ($2 != section || head != last) print head
      section = $2
      last = head
      print line sprintf ("  %-6s %-6s %4s %5s", ratio ($7, goal_best),
        ratio ($8, goal_none), seconds ($9), seconds ($10))
    }'
  cat <<END

none: no filter.  auto: asyncpool with no parameter.  16 ...: asyncpool with
that number of buffers of 128 KiB, 16x1024: of 1024 KiB.  For ssh, http and
https 16x128 is that many contexts with buffers of 128 KiB.
/best: auto over the best of these numbers.  /none: auto over no filter.  !: the
goal is missed: $auto_goal_best of the best, and $auto_goal_none of no filter.
to90: seconds until auto, and the best, reach 90 % of their final rate.
END
}

notes_auto () {
  cat <<END
Clients: N-read and N-write send N sequential requests of 128 KiB at a time,
deep-read and deep-write 64.  random sends 16 random reads of 4 KiB.  mixed is a
reader and a writer, each one at a time; its figure is twice the slower one.
beside is mixed with a third client, one random read of 4 KiB at a time, whose
latencies are shown; alone is that client without filter and without the others.
Runs last some seconds and ten latencies; their start and the final flush are
inside the time.  The random reader of beside begins a second later, and reads
for 200 latencies more.  flush: from the end of the run time to the end of the
final flush, with the requests that were in flight.  All servers have nbdkit
-t $auto_threads.  Writers have asyncpool-write=behind, as fio flushes only at
the end.

Ratios are medians of the rounds' ratios.  A cell that is clear after a round is
not repeated, except beside.  to90 has the mean of one latency, and of 100 ms at
least, from fio's log.  Reaction: 20 ms and 200 MB/s; for the second third of
the run 100 ms or 50 MB/s.
END
}

# One server for each device and one command for each client, as there are some
# hundred pairs.
commands_auto () {
  echo
  echo "Commands (URI=nbd+unix:///?socket=\$SOCKET):"
  awk -F, '
    NR == 1 { next }
    $3 == "no parameter" && !($17 in servers) {
      servers[$17]
      print "  nbdkit -U $SOCKET " $17
    }
    {
      n = split ($17, w, " ")
      numbers = ""
      for (i = 1; i <= n; i++)
        if (w[i] ~ /^(asyncpool-(buffers|contexts|buffer-size)|connections)=/)
          numbers = numbers " " w[i]
    }
    $3 !~ /^(no |alone)/ && !(($3, numbers) in seen) {
      seen[$3, numbers]
      grid = grid "\n  " $3 ":" numbers
    }
    !(($2, $18) in clients) {
      clients[$2, $18]
      command = $18
      name = $3 == "alone" ? $3 : $2
      sub (/^fio /, "fio --name=job --ioengine=nbd --uri=$URI ", command)
      list = list "\n  " name ": " command
    }
    END { print grid "\n" list }' "$csv"
  cat <<'END'

$LINK: a second nbdkit with delaymem, or delay-proxy in front of it, as the head
of case-auto.sh says.  $BACKEND: the plugin and its parameters, as
benchmarks/backends.sh sets them.  Each fio also has --write_bw_log,
--log_avg_msec=100 and --bwavgtime=100.
END
}

# A point for each cell, and the reactions.
plot_auto () {
  local shapes=() shape i=0 kind contestant rows=1
  mapfile -t shapes < <(auto_cells "$csv" | cut -d, -f1 | sort -u)
  [ ! -s "$samples" ] || rows=2
  gnuplot_head 1200 $((rows * 480))
  for shape in "${shapes[@]}"; do
    echo "\$shape$((i++)) << EOD"
    auto_cells "$csv" | awk -F, -v shape="$shape" '
      !($2 in at) { at[$2] = n++ }
      $1 == shape && $7 != "" && $8 != "" { print at[$2], $7, $8 }'
    echo EOD
  done
  i=0
  while IFS=, read -r kind contestant; do
    echo "\$reaction$((i++)) << EOD"
    auto_phase_of "$kind" "$contestant" 0 1000000
    echo EOD
  done < <(auto_reactions)
  echo "set multiplot layout $rows,2"
  auto_plot_ratios "the best hand-set number" 2 "$auto_goal_best"
  auto_plot_ratios "no filter" 3 "$auto_goal_none"
  [ $rows = 1 ] || auto_plot_reactions
  echo "unset multiplot"
}

auto_reactions () { # lines KIND,CONTESTANT
  [ ! -s "$samples" ] ||
    awk -F, '!(($2, $3) in seen) { seen[$2, $3]; print $2 "," $3 }' "$samples" |
    sort -s -t, -k1,1
}

auto_plot_ratios () { # TEXT COLUMN GOAL
  local i start=plot
  cat <<END
set title "No parameter / $1" font ",14"
set logscale y
set yrange [*:*]
set ylabel "ratio, log scale"
set xtics rotate by 60 right font ",9"
set xtics ($(auto_cells "$csv" | awk -F, '!($2 in at) {
  printf "%s\"%s\" %d", (n ? ", " : ""), $2, n; at[$2] = n++ }'))
set xrange [-0.7:$(auto_cells "$csv" | cut -d, -f2 | sort -u | wc -l)]
set bmargin 10
set key above horizontal Left reverse samplen 1 font ",10"
END
  for i in "${!shapes[@]}"; do
    printf '%s $shape%d using ($1 + 0.%d):%d with points pt 7 ps 0.8 lc %d' \
      "$start" "$i" "$((i % 8))" "$2" $((i + 1))
    printf ' title "%s"' "${shapes[i]}"
    start=$', \\\n '
  done
  printf ', \\\n  %s with lines dt 2 lw 2 lc rgb "#c03020" title "goal: %s"\n' \
    "$3" "$3"
}

auto_plot_reactions () {
  local kind contestant last="" i=0 n line more=""
  local colors=(c03020 009e73 c06000 8fc0e8 a070c0 777777)
  while IFS=, read -r kind contestant; do
    if [ "$kind" != "$last" ]; then
      last=$kind more="" n=0
      cat <<END

unset logscale
unset xtics
set xtics autofreq nomirror norotate font ",11"
set xrange [0:*]
set yrange [0:*]
set bmargin 3
set xlabel "seconds"
set ylabel "MB/s"
set title "One sequential reader; $kind changes for a third" font ",14"
plot \\
END
    fi
    line="lw 1 lc rgb \"#${colors[n++ % ${#colors[@]}]}\""
    [ "$contestant" != "no parameter" ] || line='lw 3 lc rgb "#1f6fb4"'
    printf '%s  $reaction%d using ($1 / 1000):2 with lines %s title "%s"' \
      "$more" "$i" "$line" "$contestant"
    more=$', \\\n'
    i=$((i + 1))
  done < <(auto_reactions)
  echo
}
