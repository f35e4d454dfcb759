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
result () # SHAPE READ_BYTES WRITE_BYTES
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
    printf '}]}'; } | auto auto_result "$1"
}
if ! command -v jq >/dev/null; then
  skip "results of fio" "jq is not installed"
else
  is "the jobs are added" "$(result deep-read 3000000 0)" \
    "3 2 3 3000000 3000000 2"
  is "a reader and a writer count twice the slower one" \
    "$(result mixed 3000000 1000000)" "2 2 3 4000000 4000000 2"
  check "a result without data is an error" not result 1-read 0 0
fi
done_testing
