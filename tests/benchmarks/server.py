# SPDX-License-Identifier: MIT
"""The benchmark's server: answers rendered once, sent as they are, a thread a connection.

It runs in a process of its own (`python -m tests.benchmarks.server`), prints its port and ends
with its stdin. The first part of a request's path names the answer: `/call/v1/chat/completions`.
It does as little as a server can, so that what is timed is the client.
"""
import contextlib
import json
import socket
import sys
import threading
import time

STREAMS = {"stream": 2000, "short": 200, "huge": 50100, "first": 10}     # name: pieces of text
FIRST_PAUSE = 0.005     # seconds between the first chunk of "first" and the rest
LATENCY = 0.02          # seconds before the answer of "late", else that of "call"
PACED, PACE = "paced", 0.005    # a stream of 50 chunks, so many seconds apart, that tell the time
FRAME = 65536           # bytes in one frame of the chunked coding

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n\r\n"
COMMON = {"id": "chatcmpl-df82c3a1e5b94f0d8a7c6b5e4d3c2b1a", "created": 1771750032,
          "model": "nvidia/Kimi-K2.5-NVFP4"}
USAGE = {"prompt_tokens": 57, "total_tokens": 263, "completion_tokens": 206,
         "prompt_tokens_details": None}


def piece(index):
    """Return the text of one chunk; most differ, as they do in life."""
    return f" word{index % 1000}"


def dump(choices, **fields):
    """Render an answer or a chunk in the shape that Synthetic (vLLM) sends."""
    return json.dumps(dict(COMMON, choices=choices, **fields), separators=(",", ":")).encode()


def completion():
    """Render a small whole answer."""
    message = {"role": "assistant", "content": "Paris.", "refusal": None, "tool_calls": [],
               "reasoning": None, "reasoning_content": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop",
              "stop_reason": None, "token_ids": None}
    return dump([choice], object="chat.completion", usage=USAGE, service_tier=None,
                system_fingerprint=None)


def event(text, finish_reason=None):
    """Render one event of a stream, about 250 bytes."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None,
              "finish_reason": finish_reason, "token_ids": None}
    return b"data: " + dump([choice], object="chat.completion.chunk") + b"\n\n"


def frames(body):
    """Render `body` in the chunked coding, in large frames."""
    cuts = [body[start:start + FRAME] for start in range(0, len(body), FRAME)]
    return b"".join(b"%x\r\n%s\r\n" % (len(cut), cut) for cut in cuts)


def render():
    """Return every answer as the list of its writes, by name."""
    body = completion()
    call = HEAD % (b"application/json", b"Content-Length: %d" % len(body)) + body
    answers = {b"call": [call], b"late": [b"", call]}
    head = HEAD % (b"text/event-stream; charset=utf-8", b"Transfer-Encoding: chunked")
    usage = b"data: " + dump([], object="chat.completion.chunk", usage=USAGE) + b"\n\n"
    for name, count in STREAMS.items():
        events = [event(piece(index)) for index in range(count)]
        events += [event("", "stop"), usage, b"data: [DONE]\n\n"]
        parts = [events[:1], events[1:]] if name == "first" else [events]
        writes = [frames(b"".join(part)) for part in parts]
        writes[0] = head + writes[0]
        writes[-1] += b"0\r\n\r\n"
        answers[name.encode()] = writes
    return answers


def paced():
    """Yield the writes of a stream whose texts are the times at which they are sent."""
    yield HEAD % (b"text/event-stream", b"Transfer-Encoding: chunked")
    for _ in range(50):
        time.sleep(PACE)
        yield frames(event(repr(time.monotonic())))
    yield frames(event("", "stop") + b"data: [DONE]\n\n") + b"0\r\n\r\n"


def serve(connection, answers):
    """Answer the requests of one connection until the client closes it."""
    with connection, contextlib.suppress(ConnectionError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                data = connection.recv(65536)
                if not data:
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            while len(received) < length:
                received += connection.recv(65536)
            received = received[length:]
            name = head.split(b"/", 2)[1]
            if name == PACED.encode():
                for write in paced():
                    connection.sendall(write)
                continue
            first, *rest = answers[name]
            connection.sendall(first)
            for write in rest:
                time.sleep(LATENCY if name == b"late" else FIRST_PAUSE)
                connection.sendall(write)


def main():
    """Serve on a free port until stdin ends."""
    answers = render()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, answers), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
