# SPDX-License-Identifier: MIT
"""Coverage-guided fuzzing of what reads a server's bytes, with atheris.

    python3 tests/peers/fuzz.py TARGET -max_total_time=60

TARGET is one of those below; what follows goes to libFuzzer. It exits with 0 where nothing was
found, else it prints the fault and the input. (Not by `-m`: `tests` imports the package, and it
has to be imported here, to be instrumented.)
"""
import importlib
import json
import math
import os
import pickle
import random
import sys
import tempfile
from datetime import datetime, timezone

import atheris

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
with atheris.instrument_imports(include=["synthetic_client", "email"]):
    import email.utils  # noqa: F401  (reads dates)

    import synthetic_client as sc

    errors, http1, retry, schema, sse, stream = (
        importlib.import_module("synthetic_client." + name)
        for name in ("errors", "http1", "retry", "schema", "sse", "stream"))

KINDS = [schema.ChatCompletion, schema.ChatCompletionChunk, schema.Quotas, schema.Model,
         schema.SearchResult, schema.EmbeddingResponse]
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
SEEDS = {
    "sse": [b'data: {"a": 1}\n\n: x\nid: 7\nretry: 10\nevent: e\r\ndata\rdata:  y\n\r\n'],
    "objects": [json.dumps(seed).encode() for seed in (
        {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "x",
         "tool_calls": [{"id": "t", "type": "function", "function": {
             "name": "f", "arguments": "{}"}}]}, "finish_reason": "stop"}],
         "usage": {"prompt_tokens": 1, "prompt_tokens_details": None}},
        {"choices": [{"index": 1, "delta": {"reasoning": "r", "content": None}}]},
        {"data": [{"index": 0, "embedding": [0.5]}], "object": "list"},
        {"rollingFiveHourLimit": {"nextTickAt": "2026-01-01T00:00:00.000Z", "limited": True},
         "weeklyTokenLimit": {"remainingCredits": "$24.00"}},
        {"id": "m", "pricing": {"prompt": "$0.00000055"}, "created": 1766361600})],
    "faults": [b'{"error": {"message": "m", "code": 429, "type": "t", "param": null}}',
               b'{"detail": [{"loc": ["body"], "msg": "m"}]}', b"<html><title>502</title>",
               b'{"error": "text"}', b'{"error": {"error": {"detail": 1}}}'],
    "waits": [b"120", b"1.5", b"Fri, 31 Dec 1999 23:59:59 GMT", b"Fri, 31 Dec 99 25:61 -9999",
              b"Sunday, 06-Nov-94 08:49:37 GMT"],
    "http": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n",
             b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nContent-Encoding: deflate\r\n\r\nabc"],
    "streams": [b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a",'
                b'"function":{"name":"f","arguments":"{"}}]}}]}\n\ndata: [DONE]\n\n'],
}


def sse_target(data):
    """Events are the same however the bytes are cut."""
    cuts = random.Random(len(data)).choices(range(len(data) + 1), k=3)
    places = [0, *sorted(cuts), len(data)]
    whole = sse.SSEParser().feed(data)
    parser = sse.SSEParser()
    assert whole == [event for start, end in zip(places, places[1:])
                     for event in parser.feed(data[start:end])]


def objects_target(data):
    """What from_dict accepts it gives back, and what it does not is a ResponseError."""
    given = errors.parse_body(data.decode("utf-8", "replace"))
    if not isinstance(given, dict):
        return
    for kind in KINDS:
        try:
            made = kind.from_dict(given)
        except sc.ResponseError:
            continue
        assert repr(made.to_dict()) == repr(given) or made.to_dict() == given or has_nan(given)
        repr(made)
        made.to_json()


def has_nan(value):
    return "NaN" in json.dumps(value)


def faults_target(data):
    """Any body makes an error of one line that pickles, whatever the status."""
    text = data.decode("utf-8", "replace")
    body = errors.parse_body(text)
    for status in (400, 401, 429, 503):
        check(errors.status_error(status, body))
    for read in (lambda: errors.raise_fault(body), lambda: errors.parse_answer(data),
                 lambda: errors.raise_fault(body, flat=True)):
        try:
            read()
        except sc.SyntheticError as error:
            check(error)


def check(error):
    line = str(error)
    assert line and line.isprintable() and len(line) < 600, line
    errors.scrub(error, errors.spellings("syn_secret_key"))
    try:
        again = pickle.loads(pickle.dumps(error))
    except RecursionError:
        return  # a body nested deep; pickle's limit
    assert type(again) is type(error) and str(again) == str(error)


def waits_target(data):
    """Any Retry-After is a number of seconds, or none."""
    for name in ("retry-after", "retry-after-ms"):
        seconds = retry.parse_retry_after({name: data.decode("latin-1")}, NOW)
        assert seconds is None or 0 <= seconds < math.inf


class Bytes:
    """Stands in for a connection that has all its bytes at once."""

    def __init__(self, data):
        self.source = http1.io.BytesIO(data)
        for name in ("readinto", "readable", "closed", "seekable", "writable", "close"):
            setattr(self, name, getattr(self.source, name))

    def cut(self):
        pass

    def explain(self, error):
        if isinstance(error, (EOFError, OSError, ValueError, http1.NotHTTP)):
            return sc.StreamInterruptedError("cut")
        return None


def http_target(data):
    """Any bytes are an answer, no HTTP, or a cut one."""
    try:
        http1.Response(Bytes(data), "POST").read(1 << 20)
    except (http1.NotHTTP, ConnectionError, sc.SyntheticError):
        pass


def streams_target(data):
    """Any events end well, or as one of our errors, with what had come."""
    raw = b"HTTP/1.1 200 OK\r\n\r\n" + data
    made = stream.ChatStream(http1.Response(Bytes(raw), "POST"), schema.Meta())
    try:
        made.completion().to_json()
    except sc.SyntheticError as error:
        error.partial.to_json()
        check(error)


def main(target, *arguments):
    def one(data):
        try:
            globals()[target + "_target"](data)
        except RecursionError:
            raise AssertionError("recursion") from None

    corpus = os.path.join(tempfile.gettempdir(), "synthetic-client-fuzz", target)  # grows
    os.makedirs(corpus, exist_ok=True)
    for number, seed in enumerate(SEEDS[target]):
        with open(os.path.join(corpus, str(number)), "wb") as file:
            file.write(seed)
    atheris.Setup(["fuzz", "-artifact_prefix=" + corpus + "-", *arguments, corpus], one)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main(*sys.argv[1:])
