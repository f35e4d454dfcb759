# SPDX-License-Identifier: BSD-3-Clause
#
# The arithmetic of the benchmark's case auto, with made-up figures: medians,
# ratios, goals, the time to 90 % of a rate, and which cells are repeated.
#
# Not its job: measured runs.
. "$TESTS_DIR/functions.sh"
unset "${!AUTO_@}"

# auto FUNCTION [ARGUMENT...]: calls a function of the case.
auto ()
{
  # The function's arguments.
  # shellcheck disable=SC2016
  (cd "$TESTS_DIR/.." && tmp=$TEST_DIR bash -euc \
    '. benchmarks/lib.sh; load_case auto; "$@"' - "$@")
}

# row ROUND CLIENT CONTESTANT MB/S [SECONDS]
row ()
{
  local figures=,,17,,,70,90,100,1000,1
  echo "$1,$2,$3,delaymem 64 ms,,$4,$figures,-t 16 x,fio y,,,${5:-}"
}

# row_ms ROUND CLIENT CONTESTANT WORKLOAD MEAN_MS P99_MS [FLUSH_SECONDS]
row_ms ()
{
  local server="-t 16 x,fio y $3"
  echo "$1,$2,$3,$4,,100,,,17,,,$5,$6,100,1000,1,$server,,,,${7:-}"
}
(cd "$TESTS_DIR/.." && bash -c '. benchmarks/lib.sh; echo "$columns"') >auto.csv
{
  # 0.90 exactly, and the speed of a goal that is met.
  row 1 1-read "no parameter" 90 0.4
  row 1 1-read 16 50
  row 1 1-read 64 100 0.2
  row 1 1-read "no filter" 2
  # Below both goals.
  row 1 deep-read "no parameter" 89
  row 1 deep-read 16 100
  row 1 deep-read 64 99
  row 1 deep-read "no filter" 94
  # 64 is the best by its median.  The ratios of the rounds are 1, 0.5 and 1.5.
  # The ratio of the medians is 0.5.
  for numbers in "1 100 120 100 50" "2 50 10 100 50" "3 30 20 20 60"; do
    read -r n auto a b none <<<"$numbers"
    row "$n" random "no parameter" "$auto"
    row "$n" random 16 "$a"
    row "$n" random 64 "$b"
    row "$n" random "no filter" "$none"
  done
} >>auto.csv
echo "CPU: made up" >auto.machine

auto auto_cells "$TEST_DIR/auto.csv" >cells.out
is "a cell has figures, ratios, times and the grid" \
  "$(grep '^1-read' cells.out)" \
  "1-read,delaymem 64 ms,2,90,100,64,0.9,45,0.4,0.2,16=50,64=100"
is "a ratio is the median of the rounds' ratios" \
  "$(grep '^random' cells.out | cut -d, -f3-8)" "50,50,100,64,1,1"
is "without the later rounds another one is the best" \
  "$(auto auto_cells "$TEST_DIR/auto.csv" 1 |
     grep '^random' | cut -d, -f3-8)" "50,100,120,16,0.833333,2"

# The report.
if ! command -v gnuplot >/dev/null; then
  skip "the report" "gnuplot is not installed"
else
  check "the report is made" \
    "$TESTS_DIR/../benchmarks/report" "$TEST_DIR" auto
  check "the cells that reach the first goal are counted" grep -qxF \
    "no parameter / best of the grid >= 0.90: 2 of 3 cells" auto.txt
  check "the cells that reach the second goal are counted" grep -qxF \
    "no parameter / no filter        >= 0.95: 2 of 3 cells" auto.txt
  check "a cell that misses them is listed, with marks" grep -qE \
    "^  delaymem 64 ms +deep-read +0\.890! +0\.947! +of 16 +89\.0$" auto.txt
  is "no other cell is listed" \
    "$(sed -n '/cells that miss/,/^$/p' auto.txt | grep -c delaymem)" 1
  check "the table has a line for a cell" grep -qE \
    "^  1-read +2\.00 +90\.0 +50\.0 +100 +0\.90 +45\.00 +0\.4 +0\.2$" auto.txt
  check "the table marks a missed goal" grep -qE \
    "^  deep-read .* 0\.89! +0\.95! +- +-$" auto.txt
  check "the plot is made" test -s auto.svg
  check "without such cells there is no line for a random reader" not \
    grep -q "random reader beside" auto.txt
  check "without a flush there are no lines for writers" not \
    grep -q "^Writers" auto.txt

  # A random reader beside load, and writers.
  mkdir beside
  cp auto.machine beside/
  {
    head -n 1 auto.csv
    # The ratios of the rounds are 3, 1.5 and 1: the median just meets the goal.
    for numbers in "1 10 30" "2 20 30" "3 40 40"; do
      read -r n alone auto <<<"$numbers"
      row_ms "$n" beside "no parameter" "delaymem 20 ms" 22 "$auto" 0.05
      row_ms "$n" beside 16 "delaymem 20 ms" 90 90 0.09
      row_ms "$n" beside "no filter" "delaymem 20 ms" 24 "$alone" 0.03
      row_ms "$n" beside alone "delaymem 20 ms" 20 "$alone"
    done
    row_ms 1 beside "no parameter" "delaymem 64 ms" 80 160 0.2
    row_ms 1 beside 16 "delaymem 64 ms" 90 90 0.9
    row_ms 1 beside "no filter" "delaymem 64 ms" 64 64 0.1
    row_ms 1 beside alone "delaymem 64 ms" 64 100
    row_ms 1 1-write "no parameter" "delaymem 64 ms" 32 128 0.64
    row_ms 1 1-write 16 "delaymem 64 ms" 90 90 0.9
    row_ms 1 1-write "no filter" "delaymem 64 ms" 64 96 0.032
    row_ms 1 1-write "no parameter" "delaymem 0 ms" 32 128 0.64
  } >beside/auto.csv
  "$TESTS_DIR/../benchmarks/report" "$TEST_DIR/beside" auto >/dev/null
  check "the cells are counted in which the random reader is fast" grep -qxF \
    "p99 of a random reader beside load / alone <= 1.5: 1 of 2 cells" \
    beside/auto.txt
  check "its latencies are ratios, medians of the rounds" grep -qE \
    "^  delaymem 20 ms +20\.0 +20\.0 +1\.10 +1\.50 +1\.20 +1\.00 *$" \
    beside/auto.txt
  check "a latency above the mark has a mark" grep -qE \
    "^  delaymem 64 ms +64\.0 +100 +1\.25 +1\.60! +1\.00 +0\.64 *$" \
    beside/auto.txt
  check "a write and the final flush are in latencies" grep -qE \
    "^  delaymem 64 ms +1-write +2\.00 +10\.0 +0\.640 +1\.50 +0\.50$" \
    beside/auto.txt
  check "beside a reader there is the flush alone" grep -qE \
    "^  delaymem 20 ms +beside +- +2\.50 +0\.050 +- +1\.50$" beside/auto.txt
  check "no latency is no unit" not \
    grep -q "^  delaymem 0 ms .* 0\.640" beside/auto.txt
  check "the reader alone is not in the grid" not \
    grep -q "^  MB/s .* alone" beside/auto.txt
  check "the reader alone has its own command" grep -qE \
    "^  alone: fio .* y alone$" beside/auto.txt
fi

# Which cells are repeated.
cp auto.csv rows
clear () { auto auto_is_clear "$1" "$2" "delaymem 64 ms"; }
check "the first round is never left out" not clear 1 1-read
check "a cell at a goal is repeated" not clear 2 1-read
check "a cell below a goal is repeated" not clear 2 deep-read
row 1 4-read "no parameter" 96 >>rows
row 1 4-read 16 100 >>rows
row 1 4-read "no filter" 97 >>rows
check "a cell just above its second goal is repeated" not clear 2 4-read
row 1 mixed "no parameter" 96 >>rows
row 1 mixed 16 100 >>rows
row 1 mixed "no filter" 95 >>rows
check "a cell above both goals is not repeated" clear 2 mixed
row 1 far "no parameter" 40 >>rows
row 1 far 16 100 >>rows
row 1 far "no filter" 2 >>rows
check "a cell far below a goal is not repeated" clear 2 far
check "another cell is repeated" not clear 2 unknown
row 1 beside "no parameter" 96 >>rows
row 1 beside 16 100 >>rows
row 1 beside "no filter" 2 >>rows
check "a random reader beside load is repeated" not clear 2 beside

# The jobs of a random reader beside load.
auto auto_job beside 20 none >job.out
is "the load begins a second earlier and ends with the reader" \
  "$(grep -oE "(startdelay|runtime)=[0-9a-z]+" job.out | tr '\n' ' ')" \
  "runtime=6200ms startdelay=1s runtime=7200ms runtime=7200ms "
is "the reader alone has the same job" \
  "$(auto auto_job alone 20 none)" "$(sed 's/ --name=reader.*//' job.out)"

# Samples of 100 ms, from fio's log in KiB/s.
{
  echo "100, 1000, 0, 0, 0"
  echo "250, 2000, 0, 0, 0"
  echo "400, 3000, 0, 0, 0"
} >one.log
printf '200, 500, 1, 0, 0\n' >two.log
is "logs become samples of 100 ms" \
  "$(auto auto_bins 0 "$TEST_DIR/one.log" | tr '\n' ' ')" \
  "0 1.024 100 2.048 200 2.56 300 3.072 "
is "two logs are added" \
  "$(auto auto_bins 0 "$TEST_DIR/one.log" "$TEST_DIR/two.log" |
     head -n 2 | tr '\n' ' ')" "0 1.536 100 2.56 "
sed 's/^/1795935000/' one.log >epoch.log
is "a log can have the time of day" \
  "$(auto auto_bins 1795935000000 "$TEST_DIR/epoch.log" | tr '\n' ' ')" \
  "0 1.024 100 2.048 200 2.56 300 3.072 "

to_90 () { tr ' ' '\n' <<<"$1" | sed 's/^/0 /' | auto auto_to_90 "${@:2}"; }
is "90 % of the last half's mean" "$(to_90 "1 50 89 90 100 100 100 100" 64)" 0.4
is "a latency's mean counts, not one burst" \
  "$(to_90 "0 0 90 0 0 300 0 0 300 0 0 300" 300)" 0.6
is "samples at the beginning can be left out" \
  "$(to_90 "100 100 100 20 100 100 100 100" 64 3)" 0.5
is "there is no time without data" "$(to_90 "0 0 0 0" 64)" ""

# fio's results.
result () # SHAPE READ_BYTES WRITE_BYTES [FUNCTION ARGUMENT]
{
  local one='"error": 0, "read": {"total_ios": %d, "bw_bytes": %d,
    "io_bytes": %d, "runtime": 2000, "lat_ns": {"mean": 2e6},
    "clat_ns": {"percentile": {"99.000000": 3e6}}},
    "write": {"total_ios": %d, "bw_bytes": %d, "io_bytes": %d,
    "runtime": 2000, "lat_ns": {"mean": 4e6},
    "clat_ns": {"percentile": {"99.000000": 5e6}}}'
  # shellcheck disable=SC2059
  { printf '{"jobs": [{'
    printf "$one" "$2" "$2" "$2" 0 0 0
    printf '}, {'
    printf "$one" 0 0 0 "$3" "$3" "$3"
    printf '}]}'; } | auto "${4:-auto_result}" "${5:-$1}"
}
if ! command -v jq >/dev/null; then
  skip "results of fio" "jq is not installed"
else
  is "the jobs are added" "$(result deep-read 3000000 0)" \
    "3 2 3 3000000 3000000 2"
  is "beside a random reader, too" "$(result beside 3000000 1000000)" \
    "2 2 3 4000000 4000000 2"
  is "the final flush ends after the run time" \
    "$(result 1-write 0 9 auto_flush "fio --runtime=9ms --name=writer \
      --runtime=1750ms --end_fsync=1")" 0.25
  is "a flush takes no less than nothing" \
    "$(result 1-write 0 9 auto_flush "fio --runtime=2001ms --end_fsync=1")" 0
  is "without a flush there is no time of it" \
    "$(result 1-read 9 0 auto_flush "fio --runtime=1750ms")" ""
  is "a reader and a writer count twice the slower one" \
    "$(result mixed 3000000 1000000)" "2 2 3 4000000 4000000 2"
  check "a result without data is an error" not result 1-read 0 0
fi
done_testing
