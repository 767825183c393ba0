# SPDX-License-Identifier: MIT
"""Measure what the client costs: python3 -m tests.benchmarks [--quick] [--only NAME]

Each figure is the median of interleaved rounds (floor, ours, openai, litellm, floor, ...) in one
run on one machine, over loopback. "ours/floor" compares with the least that any client in Python
must do and wants to be small; "openai/ours" and "litellm/ours" want to be large. The bound stands
behind each ratio, and "!" marks a bound that was missed. Times belong to the machine, ratios
travel; on a busy machine run it again.

- stream: one chunk of 250 bytes, of 2,000; floor: one bulk read, json.loads for each line
- call: a small answer on a warm connection; floor: http.client with keep-alive, json.loads
- first: a stream's first chunk on a warm connection; floor: http.client, read1, json.loads
- threads: 16 threads read 32 streams of 200 chunks
- import: in a fresh interpreter; floor: import urllib.request, ssl, json, dataclasses
- script: an interpreter's whole life with one call; floor: the same with bare urllib
- memory: the peak of that script
- growth: bytes kept for a chunk that has passed, beside its text (chunks 2,000 to 50,000)
- many1, many8, many64: one of many requests, by so many workers, on a server that takes 20 ms;
  floor: 20 ms / workers, which is ideal; peers: in a pool of threads
- flat: bytes by which one more request raises the peak of a script (requests 1,000 to 100,000)

A peer takes part where it can be imported: run this with the Python of an environment that has
openai and litellm. A run without options writes tests/benchmarks/RESULTS.md.
"""
import argparse
import datetime
import functools
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import namedtuple

from . import fresh, subjects

# floor: ours at most this many times the floor; openai, litellm: they at least this many times
# ours; limit: ours at most this much, and nobody else is measured.
Figure = namedtuple("Figure", "name unit rounds floor openai litellm limit")
FIGURES = (
    Figure("stream", "s", 9, 1.6, 12, 60, None),
    Figure("call", "s", 15, 1.6, 4, 16, None),
    Figure("first", "s", 15, 2, 3, 8, None),
    Figure("threads", "s", 4, None, 9, 35, None),
    Figure("import", "s", 5, 1, 14, 45, None),
    Figure("script", "s", 5, 1.6, 8, 20, None),
    Figure("memory", "B", 1, None, 2.8, 7, None),
    Figure("growth", "B", 1, None, None, None, 64),
    Figure("many1", "s", 4, 1.1, None, None, None),
    Figure("many8", "s", 4, 1.11, None, None, None),
    Figure("many64", "s", 4, 1.43, 2, 8, None),
    Figure("flat", "B", 1, None, None, None, 64),
)
COLUMNS = ("figure", "ours", "floor", "ours/floor", "openai/ours", "litellm/ours")
WIDTHS = (8, 9, 9, 15, 15, 15)
UNITS = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "us")), "B": ((1e6, "MB"), (1e3, "kB"), (1, "B"))}
LEAST = 0.3             # seconds for which a subject repeats a measurement in one round
RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "RESULTS.md")


class Process:
    """A helper process that answers lines with JSON and ends when its stdin is closed."""

    def __init__(self, *arguments):
        self.popen = subprocess.Popen(
            [sys.executable, "-m"] + list(arguments), universal_newlines=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def answer(self):
        line = self.popen.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.popen.args[2:])} ended before it answered")
        return json.loads(line)

    def ask(self, *words):
        print(*words, file=self.popen.stdin, flush=True)
        return self.answer()

    def close(self):
        self.popen.stdin.close()
        self.popen.wait()
        self.popen.stdout.close()


def measure(figure, workers, models, url, rounds):
    """Return the median of each subject over interleaved rounds, after one that warms up."""
    values = {name: [] for name in workers if figure.limit is None or name == "ours"}
    warm_up = int(rounds > 1)
    for _ in range(warm_up + rounds):
        for name, seen in values.items():
            if figure.name in fresh.RUNS:
                run = functools.partial(fresh.run, figure.name, name, url, models[name])
                seen.append(subjects.median(run, LEAST))
            else:
                seen.append(workers[name].ask(figure.name, LEAST))
    return {name: statistics.median(seen[warm_up:]) for name, seen in values.items()}


def amount(value, unit):
    """Write seconds or bytes with three digits."""
    scale, name = next((step for step in UNITS[unit] if value >= step[0]), UNITS[unit][-1])
    return f"{digits(value / scale)} {name}"


def digits(value):
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def row(figure, medians):
    """Return one line's cells, and whether every bound was kept."""
    ours, floor = medians["ours"], medians.get("floor")
    cells = [figure.name, amount(ours, figure.unit), amount(floor, figure.unit) if floor else ""]
    checks = [(ours / floor if floor else None, "<=", figure.floor)]
    for peer in ("openai", "litellm"):
        ratio = medians[peer] / ours if peer in medians else None
        checks.append((ratio, ">=", getattr(figure, peer)))
    if figure.limit is not None:
        cells[1] += f" (<= {figure.limit:g})"
    kept = figure.limit is None or ours <= figure.limit
    for ratio, sign, bound in checks:
        text = "" if ratio is None else digits(ratio)
        if ratio is not None and bound is not None:
            good = ratio <= bound if sign == "<=" else ratio >= bound
            text += f" ({sign} {bound:g}){'' if good else '!'}"
            kept = kept and good
        cells.append(text)
    return cells, kept


def processor():
    """Return the processor's name."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":")[1].strip() for line in lines if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def report(rows, started, load):
    """Return the text of RESULTS.md."""
    table = [[*COLUMNS, "met"], ["---"] * (len(COLUMNS) + 1)]
    table += [[*cells, "yes" if kept else "no"] for cells, kept in rows]
    return "\n".join([
        "# Benchmarks", "",
        f"- {datetime.date.today()}, load {load:.1f} before",
        f"- {processor()}, {os.cpu_count()} cores, {platform.system()}",
        f"- {platform.python_implementation()} {platform.python_version()}",
        *(f"- {name} {version}, asked for `{model}`"
          for name, (version, model) in started.items() if version), "",
        *(f"| {' | '.join(line)} |" for line in table), "", __doc__])


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round each, for a look")
    parser.add_argument("--only", choices=[figure.name for figure in FIGURES], metavar="NAME",
                        help="measure this figure alone")
    return parser.parse_args()


def show(cells):
    print("".join(text.ljust(width) for text, width in zip(cells, WIDTHS)).rstrip(), flush=True)


def main():
    options = parse_arguments()
    os.environ.update(no_proxy="*", LITELLM_LOCAL_MODEL_COST_MAP="True")
    load = os.getloadavg()[0]
    server = Process("tests.benchmarks.server")
    port = server.answer()
    present = [name for name in subjects.SUBJECTS
               if name in ("floor", "ours") or importlib.util.find_spec(name)]
    workers = {name: Process("tests.benchmarks.subjects", name, str(port)) for name in present}
    started = {name: worker.answer() for name, worker in workers.items()}
    models = {name: model for name, (_, model) in started.items()}
    rows = []
    show(COLUMNS)
    for figure in FIGURES:
        if options.only in (None, figure.name):
            rounds = 1 if options.quick else figure.rounds
            medians = measure(figure, workers, models, subjects.url(port, "call"), rounds)
            rows.append(row(figure, medians))
            show(rows[-1][0])
    for process in [*workers.values(), server]:
        process.close()
    if not options.quick and not options.only:
        from .proxies import kept
        proxies = kept()  # theirs is measured by itself
        with open(RESULTS, "w", encoding="utf-8") as file:
            file.write(report(rows, started, load) + ("\n" + proxies if proxies else ""))


if __name__ == "__main__":
    main()
