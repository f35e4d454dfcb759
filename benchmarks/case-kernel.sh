# Linux's own NBD client, ext4, dd and cat: the experiment of 2017 as it was made.
# shellcheck shell=bash disable=SC2034,SC2154
title="The kernel as the client: nbd-client, mkfs.ext4, dd conv=fsync, drop_caches, cat; 64 ms"
rounds=1

kernel_files=2000
kernel_seconds=2700
# Of the device, the large file, and the first one beside it: the other two have half of that. dd's first
# second goes to the page cache alone, so it is to be large, and those that are read side by side are all
# to last as long as the reading; under emulation that would take too long.
kernel_device=1G
kernel_mib=512
kernel_other_mib=96
# The guest's memory holds the device as well. With less the kernel reclaims pages while dd writes, and
# the processor is the limit.
kernel_guest_mib () { echo $((kernel_mib * 2 + 4608)); }

# As large as this machine's memory allows.
kernel_sizes () {
  local available
  available=$(awk '/^MemAvailable:/ { print int ($2 / 1024) }' /proc/meminfo)
  if [ "$available" -gt 20480 ]; then kernel_device=8G kernel_mib=4608 kernel_other_mib=1152
  elif [ "$available" -gt 16384 ]; then kernel_device=6G kernel_mib=3072 kernel_other_mib=1152
  elif [ "$available" -gt 12288 ]; then kernel_device=4G kernel_mib=2560 kernel_other_mib=384
  else kernel_device=4G kernel_mib=1536
  fi
}

# kernel_plan CLIENT: a line for each contestant, see guest/kernel-job.sh. Slow ones get small files,
# so that they take seconds; -t 1 also gets few of the tree's and a small device for a small journal.
kernel_plan () {
  local n size=$kernel_device
  echo "$1|nbdkit -t 1|4|2|100|-t 1 $(delaymem 256M 64ms)"
  echo "$1|nbdkit -t 16|32|32|$kernel_files|-t 16 $(delaymem 1G 64ms)"
  echo "$1|nbdkit -t 64|64|64|$kernel_files|-t 64 $(delaymem 1G 64ms)"
  echo "$1|nbdkit -t 1024|128|64|$kernel_files|-t 1024 $(delaymem 1G 64ms)"
  for n in 64 1024; do
    echo "$1|asyncpool $n buffers|$kernel_mib|$kernel_other_mib|$kernel_files|$(asyncpool $n $size 64ms)${KERNEL_STATS:+ asyncpool-stats=-}"
  done
  echo "$1|asyncpool at no latency|$kernel_mib|$kernel_other_mib|$kernel_files|$(asyncpool 64 $size 0)"
  echo "$1|no latency no filter|$kernel_mib|$kernel_other_mib|$kernel_files|$(delaymem $size 0)"
}

kernel_limit () { # CONTESTANT
  case $1 in
    *"no latency"*) ;;
    *) limit "$(grep -o '[0-9]*' <<<"$1" | tail -n 1)" 128;;
  esac
}

# The machine's own kernel where that may be used, else a guest.
rows_kernel () {
  local round where rc=0 dir=$tmp/job
  mkdir -p "$dir"
  cp asyncpool.so delaymem.so "$dir/"
  benchmarks/guest/tree $kernel_files "$dir/tree.tar"
  if kernel_is_ours; then where=here; else where=guest; kernel_find_guest; fi
  [ $where = guest ] && [ "${guest_accel[1]:-}" = tcg ] || kernel_sizes
  { kernel_plan default; kernel_plan tuned; } | grep -E "${KERNEL_ONLY:-.}" >"$dir/plan"
  [ $where = here ] || kernel_guest "$dir"
  for ((round = 1; round <= rounds; round++)); do
    echo "kernel: round $round/$rounds, in $([ $where = here ] && echo "this machine's kernel" ||
      echo "a guest, ${guest_accel[*]}"); two minutes for each contestant" >&2
    : >"$tmp/console"
    kernel_follow
    "kernel_run_$where" "$dir" || rc=$?
    kill "$follower" || :
    cp "$tmp/console" "$out/kernel.console"
    [ $rc = 0 ] || die "kernel, status $rc: $(grep -a '^@ fail' "$tmp/console" || tail -n 30 "$tmp/console")"
    kernel_rows "$round" <"$tmp/console"
  done
  kernel_describe $where >>"$out/kernel.machine"
}

# Only where nobody uses the device, and where it can be used: a container may see it in /sys, and no
# more than that.
kernel_is_ours () {
  [ "$(id -u)" = 0 ] && [ -z "${KERNEL_GUEST:-}" ] || return 1
  PATH=$PATH:/usr/sbin:/sbin
  type -P nbd-client >/dev/null && type -P mkfs.ext4 >/dev/null && type -P e2fsck >/dev/null &&
    { [ -e /sys/block/nbd0 ] || modprobe nbd 2>/dev/null; } &&
    [ -w /sys/block/nbd0/queue/read_ahead_kb ] && [ -b /dev/nbd0 ] &&
    [ -w /proc/sys/vm/drop_caches ] && [ ! -e /sys/block/nbd0/pid ]
}

# Progress: each row as it comes, until $follower is killed.
kernel_follow () {
  tail -f --pid=$$ -n +1 "$tmp/console" > >(awk -F, '/^@ row,/ {
      printf "  %s, %s: %s %.1f %s\n", $2, $3, $4, ($5 > 0 ? $5 / $6 / 1000 : $6 / 1000), ($5 > 0 ? "MB/s" : "s")
      fflush ()
    }' >&2) 2>/dev/null &
  follower=$!
}

# In the foreground: what is typed to end the benchmark ends the job, too, and it cleans up.
kernel_run_here () {
  JOB_DIR=$1 timeout --foreground -k 60 $kernel_seconds sh benchmarks/guest/kernel-job.sh \
    >"$tmp/console" 2>&1 </dev/null
}

kernel_find_guest () {
  # shellcheck source=guest/guest.sh
  . benchmarks/guest/guest.sh
  # shellcheck source=guest/uml.sh
  . benchmarks/guest/uml.sh
  mkdir -p "$guest_dir"
  { guest_fetch && guest_require; } || die "no guest: $guest_missing"
  guest_accel
  [ "${guest_accel[1]}" = kvm ] || uml_accel
}

kernel_guest () { # DIRECTORY
  local program files=()
  for program in nbd-client mkfs.ext4 e2fsck nbdkit dd cat cmp tar timeout md5sum sync stat split; do
    files+=("$(PATH=$PATH:/usr/sbin:/sbin type -P $program)") ||
      die "$program is missing: make deps"
  done
  for program in asyncpool.so delaymem.so tree.tar plan; do
    files+=("$1/$program=/$program")
  done
  guest_image "$tmp/image" nbd benchmarks/guest/kernel-job.sh "${files[@]}"
}

kernel_run_guest () {
  guest_boot $kernel_seconds "$(kernel_guest_mib)" "$tmp/image" "$tmp/console" -nic none &&
    ! grep -aq '^@ fail' "$tmp/console"
}

kernel_describe () { # WHERE
  tr -d '\r' <"$tmp/console" | awk -F, '/^@ default,/ { text = text " " $2 "=" $3 }
    END { print "kernel defaults of the queue:" text }'
  if [ "$1" = here ]; then echo "client: this machine's kernel"
  else
    echo "client: guest with Linux $(guest_version)," \
      "$([ "${guest_accel[0]}" = uml ] && echo user-mode || echo "QEMU ${guest_accel[*]}"), $(kernel_guest_mib) MiB"
  fi
}

# Rows for the CSV. `tree job' is the time of untar, sync, reading back and deletion for all files,
# from the time per file of what was done of each.
kernel_rows () { # ROUND, console on stdin
  tr -d '\r' | awk -F, -v OFS=, '/^@ row,/ { print $2, $3, $4, $5, $6, $7, $8 }' |
    while IFS=, read -r client contestant workload bytes ms ops busy; do
      echo "$1,kernel $client,$contestant,$workload,$(kernel_limit "$contestant"),$bytes,$ms,$ops,$busy"
    done | awk -F, -v OFS=, -v files=$kernel_files '
      function row(mbs, pct, ops, bytes, s) {
        print $1, $2, $3, $4, ops ? "" : $5, mbs, pct, "", "", "", "", "", "", ops, bytes, s, "", "busy " $9 "%"
      }
      $6 > 0 { mbs = $6 / $7 / 1000; row(sprintf("%.3f", mbs), $5 ? sprintf("%.2f", 100 * mbs / $5) : "", "", $6, $7 / 1000); next }
      { row("", "", $8, "", $7 / 1000) }
      $4 != "mkfs+mount" { job[$3] += $7 / 1000 / $8 * files }
      $4 == "delete" { s = job[$3]; job[$3] = 0; $4 = "tree job"; row("", "", files, "", sprintf("%.2f", s)) }'
}

table_kernel () { # MEDIANS
  awk -F, "$awk_number"'
    {
      if (!($1 in clients)) { clients[$1]; client[++c] = $1 }
      if (!(($1, $2) in seen)) { seen[$1, $2]; list[$1, ++n[$1]] = $2 }
      value[$1, $2, $3] = $5 != "" ? $5 : $3 == "read back" ? $13 / $15 : $15
    }
    END {
      for (i = 1; i <= c; i++) {
        k = client[i]
        printf "\n%-24s %8s %7s %7s %7s  | %7s %7s %7s %7s %7s\n", k, "write", "read", "read", "read",
          "mkfs", "untar+", "read b.", "delete", "job"
        printf "%-24s %8s %7s %7s %7s  | %7s %7s %7s %7s %7s\n", "", "MB/s", "1 file", "2 files",
          "4 files", "s", "sync s", "files/s", "s", "s"
        for (j = 1; j <= n[k]; j++) {
          t = list[k, j]
          printf "  %-22s %8s %7s %7s %7s  | %7s %7s %7s %7s %7s\n", t, number(value[k, t, "write+fsync"]),
            number(value[k, t, "read 1 file"]), number(value[k, t, "read 2 files"]),
            number(value[k, t, "read 4 files"]), number(value[k, t, "mkfs+mount"]),
            number(value[k, t, "untar+sync"]), number(value[k, t, "read back"]),
            number(value[k, t, "delete"]), number(value[k, t, "tree job"])
        }
      }
    }' "$1"
}

kernel_best () { # MEDIANS CLIENT: the time of the fastest nbdkit -t N for the tree
  awk -F, -v client="$2" '$1 == client && $2 ~ /^nbdkit/ && $3 == "tree job" &&
    (best == "" || $15 < best) { best = $15 } END { print best == "" ? "NaN" : best }' "$1"
}

summary_kernel () { # CSV MEDIANS
  local name client best
  echo "Kernel defaults, 64 buffers, against the lesser of 131 MB/s and the kernel at delay 0:"
  for name in write+fsync "read 1 file" "read 2 files" "read 4 files"; do
    best=$(lesser 131 "$(pick "$2" "kernel default" "no latency no filter" "$name")")
    [ -z "${KERNEL_ONLY:-}" ] || [ "$best" != NaN ] || continue         # the contestant was left out
    check "$name, of $best MB/s" "$(ratio \
      "$(pick "$2" "kernel default" "asyncpool 64 buffers" "$name")" "$best")" 0.90
  done
  echo "The tree, time of the best nbdkit -t N / time of asyncpool:"
  for client in default tuned; do
    best=$(kernel_best "$2" "kernel $client")
    [ -z "${KERNEL_ONLY:-}" ] || [ "$best" != NaN ] || continue
    check "kernel $client, 64 buffers" "$(ratio "$best" \
      "$(pick "$2" "kernel $client" "asyncpool 64 buffers" "tree job" 15)")" 1
  done
}

notes_kernel () {
  cat <<EOF
For each contestant: nbdkit on a Unix socket, nbd-client, mkfs.ext4 -b 4096; dd if=/dev/zero
of=zeros bs=128k conv=fsync; echo 1 >drop_caches; cat zeros, for at most 45 s; the same with 2 and 4
files at once, for at most 20 s. Then a tree of $kernel_files small files: tar -x and sync; drop_caches
with 3, as inodes and directories are to be read from the device as well; md5sum -c of all files one
after another, for at most 4 s; drop_caches again, rm -r and sync. job: these three, for all files, by
the time per file of what was done of them (-t 1 has 100 files). After each contestant: umount, e2fsck -f.
asyncpool as it is by default. tuned: read_ahead_kb=16384 wbt_lat_usec=0 nr_requests=1024.
2017: 120 MB/s with 64 buffers, 1.8 GB/s with 1024, on a patched nbdkit and a machine's own kernel.
EOF
}

plot_kernel () { # MEDIANS
  local contestant name client
  gnuplot_bars 1100 460
  cat <<'EOF'
set multiplot layout 1,2 title "Linux's own NBD client, ext4, 64 ms per operation" font ",16"
set logscale y
set yrange [0.5:5000]
set ylabel "MB/s"
set xtics rotate by 25 right font ",11"
set bmargin 7
set key above horizontal Left reverse samplen 1 font ",11"
EOF
  for name in write+fsync "read 1 file"; do
    kernel_panel "$1" "$name"
  done
}

kernel_panel () { # MEDIANS WORKLOAD
  local contestant client
  # shellcheck disable=SC2016
  echo '$data << EOD'
  for contestant in "nbdkit -t 1" "nbdkit -t 16" "nbdkit -t 64" "nbdkit -t 1024" \
    "asyncpool 64 buffers" "asyncpool 1024 buffers" "no latency no filter"; do
    echo "\"$contestant\" $(for client in default tuned; do
      pick "$1" "kernel $client" "$contestant" "$2"; done | paste -s -d ' ')"
  done
  cat <<EOF
EOD
set title "$2" font ",13"
plot \\
EOF
  # KERNEL_ONLY may have left out one of them; a histogram without a point is an error.
  ! grep -q "^kernel default," "$1" ||
    echo "  \$data using 2:xtic(1) title 'kernel defaults' lc rgb '#8fc0e8', \\"
  ! grep -q "^kernel tuned," "$1" ||
    echo "  \$data using 3:xtic(1) title 'tuned' lc rgb '#1f6fb4', \\"
  cat <<'EOF'
  131.07 with lines dt 2 lc rgb "#c04040" title "limit of 64 buffers", \
  2097 with lines dt 3 lc rgb "#c04040" title "of 1024", \
  120 with lines dt 4 lc rgb "#408040" title "2017: 64", \
  1800 with lines dt 5 lc rgb "#408040" title "2017: 1024"
EOF
}
