# SPDX-License-Identifier: BSD-3-Clause
#
# A strict reader of Prometheus' text format, for the shell tests.
#
#   prometheus.py check FILE      the grammar, and the conventions of names
#   prometheus.py grows FILE LATER
#                                 both, and no counter is smaller in LATER
#   prometheus.py get FILE NAME [LABELS]
#                                 the value of a series without its label server
#   prometheus.py watch FILE N    reads FILE again and again, for two minutes at
#                                 most, until it was replaced N times: each time
#                                 it is correct, and counters only grow
#
# It is stricter than Prometheus: HELP and TYPE come before all series of a
# metric, these series follow one another, and a counter's name ends in _total.
import os
import re
import sys
import time

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
VALUE = r"[0-9]+(?:\.[0-9]+)?"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
SERIES = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ({VALUE})")
PREFIX = "nbdkit_asyncpool_"


class Wrong(Exception):
    pass


def need(condition, line, what):
    if not condition:
        raise Wrong(f"{what}: {line!r}")


class Metric:
    def __init__(self, name):
        self.name = name
        self.type = None
        self.series = {}        # (name, labels) -> value

    def suffixes(self):
        return ["_bucket", "_sum", "_count"] if self.type == "histogram" \
            else [""]


def check_name(m, line):
    name = m.name
    need(name.startswith(PREFIX), line, "no prefix")
    need(name.endswith("_total") == (m.type == "counter"), line,
         "_total is for counters")
    need(not re.search(r"_(ms|us|ns|milli\w*|micro\w*|kb|mb|percent)(_|$)",
                       name), line, "not a base unit")
    if m.type == "histogram":
        need(name.endswith("_seconds"), line, "no unit")


def check_histogram(m):
    groups = {}
    for (name, labels), value in m.series.items():
        rest = tuple(l for l in labels if l[0] != "le")
        g = groups.setdefault(rest, {"buckets": []})
        if name.endswith("_bucket"):
            le = dict(labels).get("le")
            need(le is not None, name, "no le")
            g["buckets"].append((float(le), value))
        else:
            need(rest == labels, name, "le without a bucket")
            g[name[len(m.name):]] = value
    for labels, g in groups.items():
        bounds = [b for b, _ in g["buckets"]]
        counts = [n for _, n in g["buckets"]]
        need(bounds == sorted(set(bounds)), m.name, "bounds not in order")
        need(counts == sorted(counts), m.name, "not cumulative")
        need(bounds[-1] == float("inf"), m.name, "no bucket +Inf")
        need("_sum" in g and "_count" in g, m.name, "no sum or no count")
        need(counts[-1] == g["_count"], m.name, "count is not that of +Inf")


def parse(text):
    """The metrics by name; raises Wrong."""
    metrics = {}
    m = None
    need(text.endswith("\n"), text[-40:], "no newline at the end")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            found = re.fullmatch(rf"# HELP ({NAME}) ([^\\]+)", line)
            need(found, line, "bad HELP")
            need(m is None or m.series, line, "the metric before has no series")
            need(found[1] not in metrics, line, "metric twice")
            need(found[2].strip() == found[2] and found[2].endswith("."), line,
                 "help is no sentence")
            m = metrics[found[1]] = Metric(found[1])
        elif line.startswith("# TYPE "):
            found = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|histogram)",
                                 line)
            need(found and m and found[1] == m.name and m.type is None, line,
                 "bad TYPE")
            m.type = found[2]
            check_name(m, line)
        else:
            found = SERIES.fullmatch(line)
            need(found and m and m.type, line, "bad series")
            need(found[1] in [m.name + s for s in m.suffixes()], line,
                 "series of another metric")
            labels = tuple(re.findall(LABEL, found[2] or ""))
            names = [name for name, _ in labels]
            need(len(set(names)) == len(names), line, "label twice")
            need(names[:1] == ["server"], line, "no label server")
            key = (found[1], labels)
            need(key not in m.series, line, "series twice")
            m.series[key] = float(found[len(found.groups())])
    need(m and m.series, text[-40:], "the last metric has no series")
    for m in metrics.values():
        if m.type == "histogram":
            check_histogram(m)
    return metrics


def read(name):
    with open(name, encoding="utf-8", newline="") as f:
        return parse(f.read())


def check_grows(before, after):
    need(list(before) == list(after), "", "other metrics")
    for name, m in before.items():
        later = after[name]
        need(list(m.series) == list(later.series), name, "other series")
        for key, value in m.series.items():
            need(m.type == "gauge" or later.series[key] >= value, key,
                 f"{value} became {later.series[key]}")


def watch(name, wanted):
    seen, last, n_reads = set(), None, 0
    until = time.monotonic() + 120
    while len(seen) <= wanted:
        need(time.monotonic() < until, name, f"replaced {len(seen)} times only")
        with open(name, encoding="utf-8", newline="") as f:
            st = os.fstat(f.fileno())
            metrics = parse(f.read())
        if last:
            check_grows(last, metrics)
        last = metrics
        seen.add((st.st_ino, st.st_mtime_ns))
        n_reads += 1
    print(n_reads, "reads")


def get(name, metric, labels=""):
    for m in read(name).values():
        for (series, have), value in m.series.items():
            rest = ",".join(f"{k}={v}" for k, v in have[1:])
            if series == PREFIX + metric and rest == labels:
                print(f"{value:.9f}".rstrip("0").rstrip("."))
                return
    raise Wrong(f"no series {metric} {labels}")


try:
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "check":
        read(*arguments)
    elif command == "grows":
        check_grows(read(arguments[0]), read(arguments[1]))
    elif command == "get":
        get(*arguments)
    elif command == "watch":
        watch(arguments[0], int(arguments[1]))
    else:
        sys.exit("prometheus.py: wrong command")
except Wrong as e:
    sys.exit(f"prometheus.py: {e}")
