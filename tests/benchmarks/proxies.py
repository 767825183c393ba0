# SPDX-License-Identifier: MIT
"""Measure what the proxy costs, beside LiteLLM's: python3 -m tests.benchmarks.proxies [--quick]

Both stand before the same loopback server, with the same file as their configuration, and are
called over raw sockets by the same callers, in turn: direct (no proxy), ours, litellm, direct,
... The bound stands behind each figure, and "!" marks one that was missed.

- ready: from the start of the process to its first answer
- memory: resident, after 1,000 calls
- rate: small calls answered in a second, to 8 callers at once
- call: a small call on a warm connection
- first, later: from when the upstream sends a stream's first chunk, or a later one, until the
  caller has it, beyond what it takes without a proxy; chunks are 5 ms apart
- latest: the same for 99 of 100 later chunks
- streams: 64 streams of 200 chunks at once: seconds for all, and how many came whole
- slow: a call's time while 200 others send a request's head byte by byte, beside without them

LiteLLM's takes part where it can be imported: run this with the Python of an environment that
has litellm[proxy]. A run without options writes its part of tests/benchmarks/RESULTS.md.
"""
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from .__main__ import RESULTS, Process, amount, digits, processor
from .server import PACED, STREAMS, piece

CALLERS, CALLS, AT_ONCE, SLOW = 8, 1000, 64, 200
HEADING = "# The proxy"
COMMANDS = {
    "ours": ["-m", "synthetic_client", "proxy"],
    "litellm": ["-c", "from litellm import run_server; run_server()"],
}
ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "no_proxy": "*",
               "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}


class Subject:
    """A proxy in a process of its own; `prefix` leads to an answer of the server's."""

    def __init__(self, name, port, folder):
        self.name, self.upstream, self.port, self.process = name, port, port, None
        self.config = os.path.join(folder, "config.json")
        base = f"http://127.0.0.1:{port}/"
        rows = [{"model_name": answer, "litellm_params": {
            "model": "openai/m", "api_key": "key", "api_base": base + answer}}
            for answer in ["call", PACED, *STREAMS]]
        with open(self.config, "w") as file:
            json.dump({"model_list": rows}, file)

    def start(self):
        """Start it; return the seconds until it has answered."""
        if self.name == "direct":
            return 0.0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *COMMANDS[self.name], "--config", self.config, "--host", "127.0.0.1",
             "--port", str(self.port)], env=dict(os.environ, **ENVIRONMENT),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            with contextlib.suppress(OSError), Caller(self) as caller:
                caller.call("GET", "/health/liveliness")
                return time.perf_counter() - begun
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended before it answered")
            time.sleep(0.005)

    def stop(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line[:5] == "VmRSS")


class Caller:
    """A connection to a subject."""

    def __init__(self, subject):
        self.subject = subject
        self.sock = socket.create_connection(("127.0.0.1", subject.port), 30)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.file.close()
        self.sock.close()

    def send(self, method, path, body=b""):
        head = (f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        self.sock.sendall(head.encode() + body)
        status = self.file.readline()
        fields = {}
        for line in iter(self.file.readline, b"\r\n"):
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        if b" 200 " not in status:
            raise ConnectionError(status)
        return fields

    def ask(self, answer, stream=False):
        path = "/v1/chat/completions"
        if self.subject.name == "direct":
            path = f"/{answer}/chat/completions"
        message = {"role": "user", "content": "What is the capital of France?"}
        body = {"model": answer, "messages": [message], "stream": stream}
        return self.send("POST", path, json.dumps(body).encode())

    def call(self, *request):
        fields = self.send(*request) if request else self.ask("call")
        body = self.file.read(int(fields[b"content-length"]))
        assert request or b"Paris." in body

    def pieces(self, answer):
        """Yield a stream's data lines with the time at which each was there."""
        self.ask(answer, stream=True)
        rest = b""
        while True:
            size = int(self.file.readline(), 16)
            data = self.file.read(size + 2)[:-2]
            now = time.monotonic()
            if not size:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        yield choices[0]["delta"]["content"], now


def run_rate(subject, seconds):
    """Return the calls answered in a second, to CALLERS at once."""
    ends = time.perf_counter() + seconds

    def work(_):
        count = 0
        with Caller(subject) as caller:
            while time.perf_counter() < ends:
                caller.call()
                count += 1
        return count
    begun = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        total = sum(pool.map(work, range(CALLERS)))
    return total / (time.perf_counter() - begun)


def run_call(subject, count):
    """Return the median of a call's seconds."""
    samples = []
    with Caller(subject) as caller:
        caller.call()
        for _ in range(count):
            begun = time.perf_counter()
            caller.call()
            samples.append(time.perf_counter() - begun)
    return statistics.median(samples)


def run_lags(subject, count):
    """Return the seconds from sending to having: of first chunks, and of later ones."""
    first, later = [], []
    with Caller(subject) as caller:
        for _ in range(count):
            lags = [now - float(sent) for sent, now in caller.pieces(PACED)]
            first.append(lags[0])
            later += lags[1:]
    return first, later


def run_streams(subject):
    """Return the seconds for AT_ONCE streams at once, and how many of them were whole."""
    wanted = [piece(index) for index in range(STREAMS["short"])]

    def work(_):
        with contextlib.suppress(OSError, ValueError), Caller(subject) as caller:
            return [text for text, _ in caller.pieces("short")] == wanted
        return False
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        whole = sum(pool.map(work, range(AT_ONCE)))
    return time.perf_counter() - begun, whole


@contextlib.contextmanager
def slow_callers(subject):
    """Have SLOW others send a head, a byte each half a second; who is shut out comes again."""
    stopping = threading.Event()
    sockets = [socket.create_connection(("127.0.0.1", subject.port)) for _ in range(SLOW)]

    def drip():
        while not stopping.wait(0.5):
            for place, sock in enumerate(sockets):
                try:
                    sock.sendall(b"GET /v1/models HTTP/1.1\r\n"[place % 20:place % 20 + 1])
                except OSError:
                    sock.close()
                    sockets[place] = socket.create_connection(("127.0.0.1", subject.port))
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        time.sleep(1)
        yield
    finally:
        stopping.set()
        thread.join()
        for sock in sockets:
            sock.close()


def measure(subject, quick):
    """Return one round's figures of a subject that runs."""
    figures = {"rate": run_rate(subject, 1 if quick else 3), "call": run_call(subject, 200)}
    figures["first"], figures["later"] = run_lags(subject, 5 if quick else 20)
    figures["streams"] = run_streams(subject)
    if subject.process is not None:
        alone = run_call(subject, 200)
        with slow_callers(subject):
            figures["slow"] = run_call(subject, 200) / alone
    return figures


def percentile(samples, share):
    return sorted(samples)[min(int(len(samples) * share), len(samples) - 1)]


def mark(text, good, bound):
    return f"{text} ({bound}){'' if good else '!'}"


def compare(ours, theirs, more, bound):
    """Return the cell for how many times better ours is."""
    ratio = ours / theirs if more else theirs / ours
    return mark(digits(ratio), ratio >= bound, f">= {bound:g}")


def tabulate(ready, memory, rounds):
    """Return the rows of the table."""
    def middle(name, figure):
        return statistics.median(one[figure] for one in rounds[name])

    def lag(name, figure, share):
        def of(who):
            return percentile(
                [lag for one in rounds[who] for lag in one[figure]], share)
        return of(name) - of("direct")

    names = [name for name in rounds if name != "direct"]
    both = len(names) == 2
    rows = []

    def add(figure, values, shown, more, bound):
        ratio = compare(values[0], values[1], more, bound) if both and bound else ""
        rows.append([figure, *map(shown, values), *[""] * (not both), ratio])

    def seconds(value):
        return amount(value, "s")
    add("ready", [ready[name] for name in names], seconds, False, 20)
    add("memory", [memory[name] for name in names], lambda value: amount(value, "B"), False, 10)
    add("rate", [middle(name, "rate") for name in names], "{:.0f}/s".format, True, 25)
    add("call", [middle(name, "call") for name in names], seconds, False, None)
    for figure, kind, share in (("first", "first", 0.5), ("later", "later", 0.5),
                                ("latest", "later", 0.99)):
        values = [lag(name, kind, share) for name in names]
        add(figure, values, lambda value: f"{value * 1000:+.2f} ms", False, None)
        rows[-1][1] = mark(rows[-1][1], values[0] <= 0.002, "<= 2 ms")
    whole = [min(one["streams"][1] for one in rounds[name]) for name in names]
    taken = [statistics.median(one["streams"][0] for one in rounds[name]) for name in names]
    rows.append(["streams", *[f"{amount(seconds_, 's')}, {count} whole"
                              for seconds_, count in zip(taken, whole)], *[""] * (2 - both)])
    rows[-1][1] = mark(rows[-1][1], whole[0] == AT_ONCE, f"all {AT_ONCE}")
    add("slow", [middle(name, "slow") for name in names], "x {:.2f}".format, False, None)
    rows[-1][1] = mark(rows[-1][1], middle("ours", "slow") <= 1.5, "<= 1.5")
    return rows


def section(rows, load):
    """Return this part of RESULTS.md."""
    import importlib.metadata
    versions = [f"- litellm {importlib.metadata.version('litellm')}"] * bool(rows[0][2])
    table = [["figure", "ours", "litellm", "litellm/ours"], ["---"] * 4, *rows]
    return "\n".join([
        HEADING, "", f"- {datetime.date.today()}, load {load:.1f} before",
        f"- {processor()}, {os.cpu_count()} cores, {platform.system()}",
        f"- {platform.python_implementation()} {platform.python_version()}", *versions, "",
        *(f"| {' | '.join(row)} |" for row in table), "", __doc__])


def kept():
    """Return this part of RESULTS.md as it is there."""
    with open(RESULTS, encoding="utf-8") as file:
        _, found, rest = file.read().partition(HEADING)
    return found + rest


def main():
    quick, load = "--quick" in sys.argv[1:], os.getloadavg()[0]
    server = Process("tests.benchmarks.server")
    names = ["direct", "ours"] + ["litellm"] * (importlib.util.find_spec("litellm") is not None)
    rounds, ready, memory = {name: [] for name in names}, {}, {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(server.close)
        port = server.answer()
        subjects = {name: Subject(name, port, folder) for name in names}
        for name, subject in subjects.items():
            stack.callback(subject.stop)
            times = []
            for _ in range({"ours": 5, "litellm": 1 if quick else 3}.get(name, 1)):
                subject.stop()
                times.append(subject.start())
            ready[name] = statistics.median(times)
        for name in names[1:]:
            with Caller(subjects[name]) as caller:
                for _ in range(CALLS):
                    caller.call()
            memory[name] = subjects[name].memory()
        for _ in range(1 if quick else 3):
            for name in names:
                rounds[name].append(measure(subjects[name], quick))
    text = section(tabulate(ready, memory, rounds), load)
    print(text.partition("\n\nMeasure")[0])
    if not quick:
        with open(RESULTS, encoding="utf-8") as file:
            before = file.read().partition(HEADING)[0].rstrip("\n")
        with open(RESULTS, "w", encoding="utf-8") as file:
            file.write(f"{before}\n\n{text}")


if __name__ == "__main__":
    main()
