# SPDX-License-Identifier: MIT
"""The subjects, and the figures measured inside one process.

Each subject lives in a worker of its own (`python -m tests.benchmarks.subjects NAME PORT`), which
reads lines such as `stream 0.3` from stdin: repeat that figure for 0.3 seconds and answer with
the median of one unit, in seconds (bytes for `growth`). Every subject does the same work and
counts the characters of text, so one that loses a chunk is found out.
"""
import functools
import gc
import http.client
import itertools
import json
import os
import statistics
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from .server import LATENCY, STREAMS, piece

MODEL = "hf:zai-org/GLM-4.7"
MESSAGES = [{"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"}]
THREADS, SHARED = 16, 32        # threads, and the short streams that they share out
BATCHES = 50                    # requests for each worker, where there are many
EARLY, LATE = 2000, 50000       # the chunks between which memory is compared


def url(port, answer):
    """Return the base URL under which the server gives `answer`."""
    return f"http://127.0.0.1:{port}/{answer}/v1"


class Floor:
    """Bare http.client with json.loads: what no client can do without."""

    version, model = "", MODEL
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}

    def __init__(self, port):
        self.port, self.idle = port, []

    def post(self, answer, **fields):
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
        body = json.dumps(dict({"model": MODEL, "messages": MESSAGES}, **fields)).encode()
        connection.request("POST", f"/{answer}/v1/chat/completions", body, self.headers)
        return connection, connection.getresponse()

    def call(self):
        connection, response = self.post("call")
        text = json.loads(response.read())["choices"][0]["message"]["content"]
        self.idle.append(connection)
        return text

    def read(self, answer):
        """Read a stream to its end; return the length of its text."""
        connection, response = self.post(answer, stream=True)
        size = 0
        for line in response.read().split(b"\n"):
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                choices = json.loads(line[6:])["choices"]
                if choices:
                    size += len(choices[0]["delta"]["content"] or "")
        self.idle.append(connection)
        return size

    def first(self):
        """Return the first chunk's text and the time at which it was there."""
        connection, response = self.post("first", stream=True)
        line = response.read1().partition(b"\n")[0]
        text, now = json.loads(line[6:])["choices"][0]["delta"]["content"], perf_counter()
        response.read()
        self.idle.append(connection)
        return text, now

    def many(self, workers):
        return LATENCY / workers


class Client:
    """What the real clients have in common: `create` makes OpenAI-shaped objects."""

    model = MODEL

    def call(self):
        return self.create("call").choices[0].message.content

    def read(self, answer):
        size = 0
        for chunk in self.create(answer, stream=True):
            if chunk.choices:
                size += len(chunk.choices[0].delta.content or "")
        return size

    def first(self):
        stream = self.create("first", stream=True)
        text, now = next(stream).choices[0].delta.content, perf_counter()
        for _ in stream:
            pass
        return text, now

    def many(self, workers):
        """Return the seconds that one of many requests takes, by so many workers."""
        count, start = BATCHES * workers, perf_counter()
        texts = list(self.texts(count, workers))
        seconds = perf_counter() - start
        assert texts == ["Paris."] * count
        return seconds / count

    def texts(self, count, workers):
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(lambda _: self.create("late").choices[0].message.content,
                                range(count))


class Ours(Client):
    def __init__(self, port):
        from tests import synthetic_client
        self.version = synthetic_client.__version__
        self.clients = {answer: synthetic_client.SyntheticClient("key", base_url=url(port, answer))
                        for answer in ["call", "late", *STREAMS]}

    def texts(self, count, workers):
        requests = itertools.repeat(MESSAGES, count)
        for result in self.clients["late"].chat_many(requests, model=MODEL, workers=workers):
            yield result.completion.text

    def create(self, answer, stream=False):
        client = self.clients[answer]
        return (client.stream_chat if stream else client.chat)(MESSAGES, model=MODEL)


class OpenAI(Client):
    def __init__(self, port):
        import openai
        self.version = openai.__version__
        self.clients = {answer: openai.OpenAI(api_key="key", base_url=url(port, answer))
                        for answer in ["call", "late", *STREAMS]}

    def create(self, answer, stream=False):
        create = self.clients[answer].chat.completions.create
        return create(model=MODEL, messages=MESSAGES, stream=stream)


class LiteLLM(Client):
    def __init__(self, port):
        import importlib.metadata
        import litellm
        self.version = importlib.metadata.version("litellm")
        self.completion, self.port = litellm.completion, port
        try:
            self.model = "synthetic/" + MODEL
            litellm.get_llm_provider(self.model)
        except litellm.BadRequestError:     # a version that does not know the route
            self.model = "openai/" + MODEL

    def create(self, answer, stream=False):
        return self.completion(self.model, MESSAGES, stream=stream, api_key="key",
                               api_base=url(self.port, answer))


def run_call(subject):
    start = perf_counter()
    text = subject.call()
    seconds = perf_counter() - start
    assert text == "Paris."
    return seconds


def run_streams(subject, answer, workers=None, count=1):
    """Return the seconds that `count` streams take, read by a pool of threads where one is set."""
    start = perf_counter()
    if workers:
        with ThreadPoolExecutor(workers) as pool:
            sizes = list(pool.map(subject.read, [answer] * count))
    else:
        sizes = [subject.read(answer)]
    seconds = perf_counter() - start
    assert set(sizes) == {sum(len(piece(index)) for index in range(STREAMS[answer]))}, sizes
    return seconds


def run_first(subject):
    start = perf_counter()
    text, now = subject.first()
    assert text == piece(0)
    return now - start


def run_growth(subject):
    """Return the bytes by which a passed chunk makes the process grow, beside its text."""
    gc.collect()
    tracemalloc.start()
    size, marks = 0, []
    for number, chunk in enumerate(subject.create("huge", stream=True), 1):
        size += len(chunk.choices[0].delta.content or "") if chunk.choices else 0
        if number in (EARLY, LATE):
            gc.collect()
            marks.append(tracemalloc.get_traced_memory()[0] - size)
    tracemalloc.stop()
    return (marks[1] - marks[0]) / (LATE - EARLY)


SUBJECTS = {"floor": Floor, "ours": Ours, "openai": OpenAI, "litellm": LiteLLM}
RUNS = {
    "call": run_call,
    "stream": lambda subject: run_streams(subject, "stream") / STREAMS["stream"],
    "first": run_first,
    "threads": lambda subject: run_streams(subject, "short", THREADS, SHARED),
    "many1": lambda subject: subject.many(1),
    "many8": lambda subject: subject.many(8),
    "many64": lambda subject: subject.many(64),
    "growth": run_growth,
}


def median(run, least):
    """Repeat `run` for at least `least` seconds; return the median of what it returned."""
    samples, end = [], perf_counter() + least
    while not samples or perf_counter() < end:
        samples.append(run())
    return statistics.median(samples)


def main(name, port):
    """Answer the lines of stdin; what a library prints goes to stderr."""
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    subject = SUBJECTS[name](port)
    print(json.dumps([subject.version, subject.model]), file=reply, flush=True)
    for line in sys.stdin:
        figure, least = line.split()
        value = median(functools.partial(RUNS[figure], subject), float(least))
        print(value, file=reply, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
