# SPDX-License-Identifier: BSD-3-Clause
# asyncpool on a 64 ms device, in under a minute.
# shellcheck shell=bash disable=SC2034,SC2154
title="64 ms per operation, and a client that sends one request at a time"
rounds=1
seconds=3
brief=1

plan_demo () {
  local name big fast
  big=$(fits 4)
  for name in write+flush read; do
    fast=""
    [ $name != read ] || fast=--time_based
    demo_plan "nbdkit -t 1" $name 1 "-t 1 $(delaymem 256M 64ms)"
    demo_plan "nbdkit -t 64" $name 64 "-t 64 $(delaymem 256M 64ms)"
    demo_plan "asyncpool" $name "" \
      "$(asyncpool "" "$big" 64ms "$(behind $name)")"
    demo_plan "asyncpool 64 buffers" $name 64 \
      "$(asyncpool 64 1G 64ms "$(behind $name)")"
    demo_plan "asyncpool 1024 buffers" $name 1024 \
      "$(asyncpool 1024 "$big" 64ms "$(behind $name)")"
    demo_plan "nbdkit at delay 0" $name "" "$(delaymem 1G 0)" $fast
  done
}

# nbdkit alone is at its speed at once, so its runs are shorter.
demo_plan () { # CONTESTANT WORKLOAD IN_FLIGHT SERVER [OPTIONS OF READS]
  local seconds=$seconds
  [[ $1 = asyncpool* ]] || seconds=$(((seconds + 1) / 2))
  plan "one at a time" "$1" "$2" "${3:+$(limit "$3" 128)}" "$4" \
    "$(fio_workload "$2" 128k 1 "${@:5}")"
}

# A bar per row, relative to the fastest.
summary_demo () {
  awk -F, "$awk_number"'
    { if ($5 > most) most = $5; row[NR] = $0 }
    END {
      for (i = 1; i <= NR; i++) {
        split (row[i], f, ",")
        if (f[3] != section)
          printf "%s%-32s %8s  %s\n", (i > 1 ? "\n" : ""), f[3], "MB/s",
            "% of limit"
        section = f[3]
        bar = ""
        for (n = int (f[5] / most * 28 + 0.5); n > 0; n--) bar = bar "#"
        printf "  %-30s %8s %5s %%  |%s\n", f[2], number (f[5]), number (f[6]),
          bar
      }
    }' "$medians"
}

notes_demo () {
  cat <<'END'
Little's law: limit = in flight x 128 KiB / 64 ms.  That is 2 MB/s for 1 in
flight, 131 for 64 and 2097 for 1024.  "asyncpool" has no parameter: it starts
with 8 MiB in flight, and finds more within the run.  "nbdkit at delay 0" is the
same client on a device without latency, where nothing works ahead on another
processor.
asyncpool writes with asyncpool-write=behind.  The final flush and the start-up
of each run are inside its time.
END
}
