# Under a minute: what asyncpool does for a 64 ms device.
# shellcheck shell=bash disable=SC2034,SC2154
title="A device with 64 ms per operation, and a client that sends one request at a time"
rounds=1
seconds=3
brief=1

plan_demo () {
  local name job big write short
  big=$(fits 4)
  for name in write+flush read; do
    if [ $name = read ]; then
      job=$(fio_read 128k 1 1) write=""
    else
      job=$(fio_write 128k 1) write=asyncpool-write=behind
    fi
    # For the rows that have nothing to get going.
    short="${job/--runtime=$seconds/--runtime=$(((seconds + 1) / 2))}"
    plan "one at a time" "nbdkit -t 1" $name "$(limit 1 128)" "-t 1 $(delaymem 256M 64ms)" "$short"
    plan "one at a time" "nbdkit -t 64" $name "$(limit 64 128)" "-t 64 $(delaymem 256M 64ms)" "$short"
    plan "one at a time" "asyncpool 64 buffers" $name "$(limit 64 128)" \
      "$(asyncpool 64 1G 64ms $write)" "$job"
    plan "one at a time" "asyncpool 1024 buffers" $name "$(limit 1024 128)" \
      "$(asyncpool 1024 "$big" 64ms $write)" "$job"
    plan "one at a time" "nbdkit at delay 0" $name "" "$(delaymem 1G 0)" \
      "$short$([ $name != read ] || echo " --time_based")"
  done
}

# A bar per row, of the fastest.
summary_demo () { # CSV MEDIANS
  awk -F, "$awk_number"'
    { if ($5 > most) most = $5; row[NR] = $0 }
    END {
      for (i = 1; i <= NR; i++) {
        split (row[i], f, ",")
        if (f[3] != section) printf "%s%-32s %8s  %s\n", (i > 1 ? "\n" : ""), f[3], "MB/s", "% of limit"
        section = f[3]
        bar = ""
        for (n = int (f[5] / most * 40 + 0.5); n > 0; n--) bar = bar "#"
        printf "  %-30s %8s %5s %%  |%s\n", f[2], number (f[5]), number (f[6]), bar
      }
    }' "$2"
}

notes_demo () {
  cat <<'EOF'
Little's law: limit = in flight x 128 KiB / 64 ms: 2 MB/s for 1 in flight, 131 for 64, 2097 for 1024.
"nbdkit at delay 0" is the same client on a device without latency: what it can send where nothing works
ahead for it on the other processor.
asyncpool writes with asyncpool-write=behind; the final flush is inside the time.
EOF
}
