# SPDX-License-Identifier: BSD-3-Clause
# Linux's own NBD client, ext4, dd and cat: the experiment of 2017 as it was
# made, and a tree of small files.  guest/kernel-job.sh is the job; this file
# plans it, finds a kernel for it and reads its console.
# shellcheck shell=bash disable=SC2034,SC2154
title="The kernel as the client: ext4, dd conv=fsync, cat, a tree; 64 ms"
rounds=1

kernel_files=2000
kernel_seconds=2700
# The sizes of the device, of the large file, and of the first file beside it;
# the other two have half of that.  These are for emulation, which is slow.
kernel_device=1G
kernel_mib=512
kernel_other_mib=96
# The guest's memory holds the device as well.  With less, the kernel reclaims
# pages while dd writes, and the processor is the limit.
kernel_guest_mib () { echo $((kernel_mib * 2 + 4608)); }

# As large as this machine's memory allows.  dd's first second goes to the page
# cache alone, so the file is to be large.  Files that are read side by side are
# to last as long as the reading.
kernel_sizes () {
  local available
  available=$(awk '/^MemAvailable:/ { print int ($2 / 1024) }' /proc/meminfo)
  if [ "$available" -gt 20480 ]; then
    kernel_device=8G kernel_mib=4608 kernel_other_mib=1152
  elif [ "$available" -gt 16384 ]; then
    kernel_device=6G kernel_mib=3072 kernel_other_mib=1152
  elif [ "$available" -gt 12288 ]; then
    kernel_device=4G kernel_mib=2560 kernel_other_mib=384
  else
    kernel_device=4G kernel_mib=1536
  fi
}

# A line for each contestant, see guest/kernel-job.sh.  Slow ones get small
# files, so that they take seconds.  -t 1 also gets few files of the tree, and a
# small device for a small journal.
kernel_plan () { # CLIENT
  local n sizes="$kernel_mib|$kernel_other_mib|$kernel_files"
  local size=$kernel_device stats=${KERNEL_STATS:+asyncpool-stats=-}
  echo "$1|nbdkit -t 1|4|2|100|-t 1 $(delaymem 256M 64ms)"
  echo "$1|nbdkit -t 16|32|32|$kernel_files|-t 16 $(delaymem 1G 64ms)"
  echo "$1|nbdkit -t 64|64|64|$kernel_files|-t 64 $(delaymem 1G 64ms)"
  echo "$1|nbdkit -t 1024|128|64|$kernel_files|-t 1024 $(delaymem 1G 64ms)"
  for n in 64 1024; do
    echo "$1|asyncpool $n buffers|$sizes|$(asyncpool $n $size 64ms "$stats")"
  done
  echo "$1|asyncpool at no latency|$sizes|$(asyncpool 64 $size 0)"
  echo "$1|no latency no filter|$sizes|$(delaymem $size 0)"
}

kernel_limit () { # CONTESTANT
  case $1 in
    *"no latency"*) echo -;;
    *) limit "$(grep -o '[0-9]*' <<<"$1" | tail -n 1)" 128;;
  esac
}

# In the machine's own kernel where that may be used, else in a guest.
rows_kernel () {
  local round where=here name rc=0 dir=$tmp/job
  name=$(uname -sr)
  mkdir -p "$dir"
  cp asyncpool.so delaymem.so "$dir/"
  benchmarks/guest/tree $kernel_files "$dir/tree.tar"
  if ! kernel_is_ours; then
    where=guest
    kernel_find_guest
    name="a guest, ${guest_accel[*]}"
  fi
  [ "${guest_accel[1]:-}" = tcg ] || kernel_sizes
  { kernel_plan default; kernel_plan tuned; } |
    grep -E "${KERNEL_ONLY:-.}" >"$dir/plan"
  [ $where = here ] || kernel_image "$dir"
  for ((round = 1; round <= rounds; round++)); do
    echo "kernel: round $round/$rounds, in $name;" \
      "two minutes for each contestant" >&2
    : >"$tmp/console"
    kernel_follow
    "kernel_run_$where" "$dir" || rc=$?
    kill "$follower" || :
    cp "$tmp/console" "$out/kernel.console"
    [ $rc = 0 ] || die "kernel, status $rc:" "$(grep -a '^@ fail' \
      "$tmp/console" || tail -n 30 "$tmp/console")"
    kernel_rows "$round" <"$tmp/console"
  done
  kernel_describe $where >>"$tmp/machine"
}

# The device must be unused and usable.  A container may see it in /sys, and no
# more than that.
kernel_is_ours () {
  [ "$(id -u)" = 0 ] && [ -z "${KERNEL_GUEST:-}" ] || return 1
  PATH=$PATH:/usr/sbin:/sbin
  type -P nbd-client >/dev/null && type -P mkfs.ext4 >/dev/null &&
    type -P e2fsck >/dev/null &&
    { [ -e /sys/block/nbd0 ] || modprobe nbd 2>/dev/null; } &&
    [ -w /sys/block/nbd0/queue/read_ahead_kb ] && [ -b /dev/nbd0 ] &&
    [ -w /proc/sys/vm/drop_caches ] && [ ! -e /sys/block/nbd0/pid ]
}

# Progress: each row as it comes, until $follower is killed.
kernel_follow () {
  tail -f --pid=$$ -n +1 "$tmp/console" > >(awk -F, '/^@ row,/ {
      mbs = sprintf ("%.1f MB/s", $5 / $6 / 1000)
      printf "  %s, %s: %s %s\n", $2, $3, $4,
        ($5 > 0 ? mbs : sprintf ("%.1f s", $6 / 1000))
      fflush ()
    }' >&2) 2>/dev/null &
  follower=$!
}

# In the foreground, so that an interrupt ends the job, too, and it cleans up.
kernel_run_here () { # DIRECTORY
  JOB_DIR=$1 timeout --foreground -k 60 $kernel_seconds \
    sh benchmarks/guest/kernel-job.sh >"$tmp/console" 2>&1 </dev/null
}

kernel_find_guest () {
  # shellcheck source-path=SCRIPTDIR source=guest/guest.sh
  . benchmarks/guest/guest.sh
  mkdir -p "$guest_dir"
  { guest_fetch && guest_require; } || die "no guest: $guest_missing"
  guest_accel
  [ "${guest_accel[1]}" = kvm ] || uml_accel
}

kernel_image () { # DIRECTORY
  guest_image "$tmp/image" nbd benchmarks/guest/kernel-job.sh nbd-client \
    mkfs.ext4 e2fsck nbdkit dd cat cmp tar timeout md5sum sync stat split \
    "$1"/{asyncpool.so=/asyncpool.so,delaymem.so=/delaymem.so} \
    "$1"/{tree.tar=/tree.tar,plan=/plan} || die "$guest_missing"
}

kernel_run_guest () {
  guest_boot $kernel_seconds "$(kernel_guest_mib)" "$tmp/image" \
    "$tmp/console" -nic none && ! grep -aq '^@ fail' "$tmp/console"
}

kernel_describe () { # WHERE
  local how
  tr -d '\r' <"$tmp/console" | awk -F, '
    /^@ default,/ { text = text " " $2 "=" $3 }
    END { print "kernel defaults of the queue:" text }'
  if [ "$1" = here ]; then
    echo "client: this machine's kernel"
  else
    how="QEMU ${guest_accel[*]}"
    [ "${guest_accel[0]}" != uml ] || how=user-mode
    echo "client: guest with Linux $(guest_version), $how," \
      "$(kernel_guest_mib) MiB"
  fi
}

# Rows for the CSV.  `tree job' is the time of untar, sync, reading back and
# deletion for all files, from the time per file of those that were done.
kernel_rows () { # ROUND, console on stdin
  local client contestant workload bytes ms ops busy limit mbs
  tr -d '\r' | awk -F, -v files=$kernel_files '
    !/^@ row,/ { next }
    { line = $2; for (i = 3; i <= 8; i++) line = line "|" $i; print line }
    $5 > 0 || $4 == "mkfs+mount" { next }
    { job += $6 / $7 * files }
    $4 == "delete" {
      print $2 "|" $3 "|tree job|0|" job "|" files "|" $8
      job = 0
    }' |
    while IFS='|' read -r client contestant workload bytes ms ops busy; do
      limit=$(kernel_limit "$contestant")
      mbs=$(awk -v b="$bytes" -v ms="$ms" 'BEGIN { print b / ms / 1000 }')
      [ "$bytes" != 0 ] || limit=- bytes=- mbs=-
      echo "$1,kernel $client,$contestant,$workload,${limit#-},$(figures \
        "$limit" "$mbs - - ${ops:--} $bytes $(awk -v ms="$ms" \
          'BEGIN { print ms / 1000 }')" "- -" - - "- - -"),,busy $busy%"
    done
}

table_kernel () {
  awk -F, "$awk_number"'
    function cells (head, a, b, c, d, e, f, g, h, i) {
      printf "%-24s %8s %7s %7s %7s  | %7s %7s %7s %7s %7s\n", head, a, b, c, d,
        e, f, g, h, i
    }
    function of (workload) { return number (value[k, t, workload]) }
    {
      if (!($1 in clients)) { clients[$1]; client[++c] = $1 }
      if (!(($1, $2) in seen)) { seen[$1, $2]; list[$1, ++n[$1]] = $2 }
      value[$1, $2, $3] = $5 != "" ? $5 : $3 == "read back" ? $13 / $15 : $15
    }
    END {
      for (i = 1; i <= c; i++) {
        k = client[i]
        print ""
        cells(k, "write", "read", "read", "read", "mkfs", "untar+", "read b.",
          "delete", "job")
        cells("", "MB/s", "1 file", "2 files", "4 files", "s", "sync s",
          "files/s", "s", "s")
        for (j = 1; j <= n[k]; j++) {
          t = list[k, j]
          cells("  " t, of("write+fsync"), of("read 1 file"),
            of("read 2 files"), of("read 4 files"), of("mkfs+mount"),
            of("untar+sync"), of("read back"), of("delete"), of("tree job"))
        }
      }
    }' "$medians"
}

# The time of the fastest nbdkit -t N for the tree.
kernel_best () { # CLIENT
  awk -F, -v client="$1" '
    $1 == client && $2 ~ /^nbdkit/ && $3 == "tree job" &&
      (best == "" || $15 < best) { best = $15 }
    END { print best == "" ? "NaN" : best }' "$medians"
}

summary_kernel () {
  local name client best
  echo "Kernel defaults, 64 buffers, of the lesser of 131 MB/s and the kernel" \
    "at delay 0:"
  for name in write+fsync "read 1 file" "read 2 files" "read 4 files"; do
    best=$(lesser 131 \
      "$(pick "kernel default" "no latency no filter" "$name")")
    # KERNEL_ONLY may have left it out.
    [ -z "${KERNEL_ONLY:-}" ] || [ "$best" != NaN ] || continue
    goal_of_best "$name" \
      "$(pick "kernel default" "asyncpool 64 buffers" "$name")" "$best" 0.90
  done
  echo "The tree, time of the best nbdkit -t N / time of asyncpool:"
  for client in default tuned; do
    best=$(kernel_best "kernel $client")
    [ -z "${KERNEL_ONLY:-}" ] || [ "$best" != NaN ] || continue
    goal "kernel $client, 64 buffers" "$(ratio "$best" "$(pick \
      "kernel $client" "asyncpool 64 buffers" "tree job" runtime_s)")" ">=" 1
  done
}

notes_kernel () {
  cat <<END
For each contestant: nbdkit on a Unix socket, nbd-client, mkfs.ext4 -b 4096; dd
if=/dev/zero of=zeros bs=128k conv=fsync; echo 1 >drop_caches; cat zeros, for at
most 45 s.  The same with 2 and 4 files at once, for at most 20 s.  Then a tree
of $kernel_files small files: tar -x and sync; drop_caches with 3, so that
inodes and directories come from the device as well; md5sum -c of all files, one
after another, for at most 4 s; drop_caches again, rm -r and sync.  job: these
three for all files, from the time per file of those that were done (-t 1 has
100 files).  After each contestant: umount, e2fsck -f.  asyncpool has its
defaults.  tuned: read_ahead_kb=16384 wbt_lat_usec=0 nr_requests=1024.  2017:
120 MB/s with 64 buffers, 1.8 GB/s with 1024, on a patched nbdkit and a
machine's own kernel.
END
}

plot_kernel () {
  local name
  gnuplot_bars 1100 460
  cat <<'END'
set multiplot layout 1,2 \
  title "Linux's own NBD client, ext4, 64 ms per operation" font ",16"
set logscale y
set yrange [0.5:5000]
set ylabel "MB/s"
set xtics rotate by 25 right font ",11"
set bmargin 7
set key above horizontal Left reverse samplen 1 font ",11"
END
  for name in write+fsync "read 1 file"; do kernel_panel "$name"; done
}

kernel_panel () { # WORKLOAD
  local contestant client default="" tuned=""
  echo "\$data << EOD"
  for contestant in "nbdkit -t 1" "nbdkit -t 16" "nbdkit -t 64" \
    "nbdkit -t 1024" "asyncpool 64 buffers" "asyncpool 1024 buffers" \
    "no latency no filter"; do
    echo "\"$contestant\" $(for client in default tuned; do
      pick "kernel $client" "$contestant" "$1"; done | paste -s -d ' ')"
  done
  cat <<END
EOD
set title "$1" font ",13"
END
  # KERNEL_ONLY may have left out one of them; a histogram without a point is an
  # error.
  ! grep -q "^kernel default," "$medians" || default="kernel defaults=#8fc0e8"
  ! grep -q "^kernel tuned," "$medians" || tuned="tuned=#1f6fb4"
  plot data "$default" "$tuned" \
    '131.07 with lines dt 2 lc rgb "#c04040" title "limit of 64 buffers"' \
    '2097 with lines dt 3 lc rgb "#c04040" title "of 1024"' \
    '120 with lines dt 4 lc rgb "#408040" title "2017: 64"' \
    '1800 with lines dt 5 lc rgb "#408040" title "2017: 1024"'
}
