# SPDX-License-Identifier: BSD-3-Clause
#
# make plot-limit: the limit over time, of each rule of tests/test-limit.c, over
# four models.  dir has the data.
set terminal svg size 900,640 dynamic enhanced font "sans-serif,13" \
  background rgb "white"
set border 3 lc rgb "#555555"
set tics nomirror
set grid ytics lc rgb "#dddddd" lt 1
set multiplot layout 2,2 margins 0.07,0.98,0.1,0.94 spacing 0.08,0.13
set logscale y 2
set yrange [1:4096]
set xrange [0:150]

lines(file) = dir . "/" . file . ".tsv"
array color[5] = [ "#bbbbbb", "#e69f00", "#009e73", "#56b4e9", "#cc3311" ]
array title_of[5] = [ "AIMD", "Vegas", "Gradient2", "BBR", "asyncpool" ]
width(i) = i == 5 ? 3 : 1.5

set title "64 ms, any number at a time"
set ylabel "limit"
set key right bottom samplen 2
plot for [i = 1:5] lines("latency") using 1:(column(i + 3)) with lines \
  lc rgb color[i] lw width(i) title title_of[i], \
  2048 with lines dt 2 lc rgb "#333333" title "served at a time"
set key off
set title "20 ms, then 100 MB/s: 16 at a time"
unset ylabel
plot for [i = 1:5] lines("bandwidth") using 1:(column(i + 3)) with lines \
  lc rgb color[i] lw width(i), \
  16 with lines dt 2 lc rgb "#333333"
set title "16 servers, lognormal times"
set ylabel "limit"
set xlabel "time / latency"
plot for [i = 1:5] lines("tail") using 1:(column(i + 3)) with lines \
  lc rgb color[i] lw width(i), \
  16 with lines dt 2 lc rgb "#333333"
set title "64 servers, 8, 64"
unset ylabel
set xrange [0:450]
plot for [i = 1:5] lines("changes") using 1:(column(i + 3)) with lines \
  lc rgb color[i] lw width(i), \
  (x < 150 ? 64 : x < 300 ? 8 : 64) with lines dt 2 lc rgb "#333333"
unset multiplot
