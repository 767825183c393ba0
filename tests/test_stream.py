# SPDX-License-Identifier: MIT
"""Streams: what is handed over and when, how they end, and what is left when they break."""
import contextlib
import copy
import gc
import gzip
import json
import random
import socket
import threading
import time
import unittest

from . import synthetic_client as sc
from .server import Server, answer, at_once, chunk, chunks, completion, trace_memory
from .test_schema import CHUNK, TOOLS, VLLM, mutate_gently, mutate_wildly
from .together import together

QUOTAS = '{"subscription": {"limit": 5, "requests": 1, "renewsAt": "2026-08-19T20:18:11.436Z"}}'
EVENT_STREAM = {"Content-Type": "text/event-stream"}
HEL = [chunk("", role="assistant"), chunk("He"), chunk("l")]  # what had come before each fault


def usage_chunk(**usage):
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [], "usage": usage}


class StreamCase(unittest.TestCase):
    def serve(self, answers):
        server = Server(answers)
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        return server

    def stream(self, answers, params=None, **options):
        """Return the stream that a server with such answers gives."""
        stream = self.serve(answers).client(**options).stream_chat("hi", **(params or {}))
        self.addCleanup(stream.close)
        return stream

    def wait_for(self, expected, notes):
        """Wait until a handler has noted what is expected."""
        limit = time.monotonic() + 5
        while not notes and time.monotonic() < limit:
            time.sleep(0.002)
        self.assertEqual(notes, expected)


class Reading(StreamCase):
    def test_request(self):
        """stream_chat asks for a stream, with the parameters of chat."""
        server = self.serve([chunks("a")])
        server.client().stream_chat("hi", temperature=0).close()
        self.assertEqual(server.requests[0].json, {
            "model": "hf:test/model", "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0, "stream": True})

    def test_sends_at_once(self):
        """A refused request raises in stream_chat, before any loop."""
        for status, error in ((401, sc.AuthenticationError), (404, sc.NotFoundError)):
            server = self.serve([answer(status, {"error": "no"})])
            with self.assertRaises(error):
                server.client().stream_chat("hi")

    def test_chunks(self):
        """Iterating gives each chunk as the server sent it, then ends, again and again."""
        sent = chunks("a", "b")
        stream = self.stream([sent])
        self.assertIs(iter(stream), stream)
        found = list(stream)
        self.assertTrue(all(type(c) is sc.ChatCompletionChunk for c in found))
        self.assertEqual([c.to_dict() for c in found], sent)
        self.assertEqual(list(stream), [])
        self.assertIsNone(next(stream, None))

    def test_texts(self):
        """texts() gives the non-empty pieces of choice 0 alone."""
        stream = self.stream([[
            chunk(role="assistant"), chunk(""), chunk("a"), chunk("x", index=1), chunk(None),
            chunk(reasoning_content="r"), {"choices": []}, {"choices": None}, {"id": "x"},
            {"choices": [None]}, {"choices": [{"index": 0, "delta": None}]},
            {"choices": [{"index": 0, "delta": {"content": None}}]},
            {"choices": [{"index": 1, "delta": {"content": "y"}},
                         {"index": 0, "delta": {"content": "b"}}]},
            chunk("c"), chunk(finish_reason="stop")]])
        self.assertEqual(list(stream.texts()), ["a", "b", "c"])
        self.assertEqual([c.message.content for c in stream.completion().choices], ["abc", "xy"])

    def test_partial_at_each_step(self):
        """partial is the answer so far, from before the first chunk to after the last."""
        stream = self.stream([chunks("a", "b", "c")])
        self.assertEqual(stream.partial.text, "")
        seen = [(c.text, stream.partial.text) for c in stream]
        self.assertEqual(seen, [("a", "a"), ("b", "ab"), ("c", "abc"), ("", "abc")])
        self.assertIsInstance(stream.partial, sc.ChatCompletion)
        self.assertEqual(stream.partial, stream.completion())

    def test_partial_does_not_change_later(self):
        """A partial that was taken stays as it was when the stream goes on."""
        stream = self.stream([[chunk("a", role="assistant"), chunk("b"), chunk("c", "stop")]])
        next(stream)
        before = stream.partial
        list(stream)
        self.assertEqual(before.text, "a")
        self.assertIsNone(before.choices[0].finish_reason)

    def test_completion(self):
        """completion() reads what is left and returns the whole answer, every time."""
        for start in (0, 1, 3):
            with self.subTest(read_before=start):
                stream = self.stream([chunks("a", "b", "c")])
                for _ in range(start):
                    next(stream)
                whole = stream.completion()
                self.assertIsInstance(whole, sc.ChatCompletion)
                self.assertEqual(whole.text, "abc")
                self.assertEqual(whole.object, "chat.completion")
                self.assertEqual(whole.choices[0].message.role, "assistant")
                self.assertEqual((whole.id, whole.created, whole.model),
                                 ("chatcmpl-1", 1, "hf:test/model"))
                self.assertEqual(stream.completion(), whole)
                self.assertEqual(list(stream), [])

    def test_completion_within_texts(self):
        """completion() called inside a loop over texts() reads the rest; the loop then ends."""
        stream, seen = self.stream([chunks("a", "b", "c")]), []
        for text in stream.texts():
            seen.append(text)
            self.assertEqual(stream.completion().text, "abc")
        self.assertEqual(seen, ["a"])

    def test_meta(self):
        """meta holds status, headers in any case, request id, attempts and quotas."""
        stream = self.stream(lambda conn: conn.send_sse(chunks("a"), headers={
            "X-Request-Id": "r1", "X-Synthetic-Quotas": QUOTAS}))
        for meta in (stream.meta, stream.completion().meta):
            self.assertEqual((meta.status, meta.request_id, meta.attempts), (200, "r1", 1))
            self.assertEqual(meta.headers["x-REQUEST-id"], "r1")
            self.assertEqual(meta.headers["Content-Type"], "text/event-stream")
            self.assertIn("CONTENT-TYPE", meta.headers)
            self.assertEqual(meta.quotas.subscription.limit, 5)

    def test_meta_without_headers(self):
        """Without such headers quotas and request_id are None, and request-id is the second."""
        self.assertIsNone(self.stream([chunks("a")]).meta.quotas)
        self.assertIsNone(self.stream([chunks("a")]).meta.request_id)
        for value in ("", "{", "[1]", "null", '{"subscription": 3}'):
            stream = self.stream(lambda conn: conn.send_sse(chunks("a"), headers={
                "request-id": "r2", "x-synthetic-quotas": value}))
            self.assertEqual(stream.meta.request_id, "r2")
            self.assertEqual(stream.completion().text, "a")

    def test_usage(self):
        """Usage is found on the last chunk and on one of its own after it."""
        last = dict(chunk(finish_reason="stop"), usage={"prompt_tokens": 3})
        self.assertEqual(self.stream([[chunk("a"), last]]).completion().usage.prompt_tokens, 3)
        items = chunks("a") + [usage_chunk(prompt_tokens=4)]
        self.assertEqual(self.stream([items]).completion().usage.prompt_tokens, 4)
        items = [dict(chunk("a"), usage={"prompt_tokens": 5}), chunk("b"), chunk("", "stop")]
        self.assertEqual(self.stream([items]).completion().usage.prompt_tokens, 5)
        items = [dict(chunk("a"), usage=None), last, dict(chunk(), usage=None)]
        self.assertEqual(self.stream([items]).completion().usage.prompt_tokens, 3)
        self.assertIsNone(self.stream([chunks("a")]).completion().usage)

    def test_a_stream_returns_its_connection(self):
        """A stream that was read to its end gives its connection to the next call."""
        server = self.serve([chunks("a"), chunks("b"), completion("c"), chunks("d")])
        client = server.client()
        self.assertEqual("".join(client.stream_chat("hi").texts()), "a")
        self.assertEqual(client.stream_chat("hi").completion().text, "b")
        self.assertEqual(client.chat("hi").text, "c")
        with client.stream_chat("hi") as stream:
            self.assertEqual(len(list(stream)), 2)
        self.assertEqual(server.connections, 1)

    def test_streams_side_by_side(self):
        """Two open streams of one client do not mix."""
        client = self.serve(lambda conn: conn.send_sse(chunks(*conn.json["user"]))).client()
        one, two = client.stream_chat("hi", user="abc"), client.stream_chat("hi", user="xyz")
        self.assertEqual(list(zip(one.texts(), two.texts())),
                         [("a", "x"), ("b", "y"), ("c", "z")])

    def test_repr(self):
        """A stream's repr holds neither key nor text."""
        stream = self.stream([chunks("secret text")])
        next(stream)
        self.assertNotIn("syn_test", repr(stream))
        self.assertNotIn("secret text", repr(stream))


class Promptness(StreamCase):
    def in_turns(self, pieces, chunked=True, head=None):
        """Send each piece when the chunk of the one before has reached the caller."""
        arrived = threading.Event()

        def handler(conn):
            conn.raw(head) if head else conn.start_sse(chunked)
            for piece in pieces:
                conn.part(piece)
                if not conn.wait(arrived, 3):
                    return conn.reset()
                arrived.clear()
            conn.wait(5)  # the end of the body never comes

        texts = []
        for text in self.stream(handler).texts():
            texts.append(text)
            arrived.set()
        return texts

    @staticmethod
    def events(end=b"\n\n", last=b"data: [DONE]\n\n"):
        data = [b"data: " + json.dumps(chunk(text)).encode() + end for text in "abc"]
        return data[:2] + [data[2] + last]

    def test_each_chunk_at_its_blank_line(self):
        """A chunk is handed over when its blank line has come, in both kinds of framing."""
        for chunked in (True, False):
            for end in (b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\r"):
                with self.subTest(chunked=chunked, end=end):
                    self.assertEqual(self.in_turns(self.events(end), chunked), ["a", "b", "c"])

    def test_chunk_before_its_frame_has_ended(self):
        """A chunk is handed over while the rest of its HTTP chunk, or of its body, is to come."""
        pieces = self.events()
        size = sum(map(len, pieces)) + 1
        start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        for head in (start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size,
                     start + b"Content-Length: %d\r\n\r\n" % size):
            with self.subTest(head):
                self.assertEqual(self.in_turns(pieces, False, head), ["a", "b", "c"])

    def test_chunk_before_the_next_is_whole(self):
        """The first half of the next event does not hold a chunk back."""
        whole = b"".join(self.events())
        first = whole.index(b"\n\n") + 2
        second = whole.index(b"\n\n", first) + 2
        pieces = [whole[:first + 9], whole[first + 9:second + 30], whole[second + 30:]]
        self.assertEqual(self.in_turns(pieces), ["a", "b", "c"])

    def test_events_in_one_write(self):
        """Several events in one write all arrive."""
        data = b"".join(self.events())
        for texts in (self.stream(lambda conn: conn.send_sse([data], done=False)).texts(),
                      self.stream(answer(200, data, EVENT_STREAM)).texts()):
            self.assertEqual(list(texts), ["a", "b", "c"])

    def test_chunk_before_broken_event(self):
        """Chunks that came in one write with a broken event are handed over before it raises."""
        data = b"".join(self.events(last=b"data: {\n\n"))
        stream, seen = self.stream(lambda conn: conn.send_sse([data])), []
        with self.assertRaises(sc.ResponseError) as caught:
            for text in stream.texts():
                seen.append(text)
        self.assertEqual(seen, ["a", "b", "c"])
        self.assertEqual(caught.exception.partial.text, "abc")


class Closing(StreamCase):
    def until_gone(self):
        """A handler that sends two chunks and notes whether the client then goes."""
        gone = []

        def handler(conn):
            with contextlib.suppress(OSError):  # of a client that has gone already
                conn.start_sse()
                conn.event(chunk("a"))
                conn.event(chunk("b"))
            gone.append(conn.gone(6))
            conn.close()
        return gone, self.serve(handler)

    def test_close_frees_the_connection(self):
        """close() ends the connection at once; more closing is harmless."""
        gone, server = self.until_gone()
        stream = server.client().stream_chat("hi")
        next(stream)
        stream.close()
        self.wait_for([True], gone)
        stream.close()

    def test_close_before_the_first_chunk(self):
        """close() before anything was read ends the connection too."""
        gone, server = self.until_gone()
        stream = server.client().stream_chat("hi")
        stream.close()
        self.wait_for([True], gone)
        self.assertEqual(list(stream), [])

    def test_leaving_the_with(self):
        """Leaving the with block ends the connection, by an exception too."""
        for error in (None, KeyError("x")):
            gone, server = self.until_gone()
            try:
                with server.client().stream_chat("hi") as stream:
                    next(stream)
                    if error:
                        raise error
            except KeyError as caught:
                self.assertIs(caught, error)
            self.wait_for([True], gone)
            self.assertEqual(list(stream), [])

    def test_dropping(self):
        """A stream that is dropped, before or after its first chunk, ends its connection."""
        for read in (0, 1):
            gone, server = self.until_gone()
            stream = server.client().stream_chat("hi")
            for _ in range(read):
                next(stream)
            del stream
            gc.collect()
            self.wait_for([True], gone)

    def test_dropping_the_texts(self):
        """Breaking out of `for text in stream_chat(...).texts()` ends the connection."""
        gone, server = self.until_gone()
        for _ in server.client().stream_chat("hi").texts():
            break
        gc.collect()
        self.wait_for([True], gone)

    def test_after_close(self):
        """After close() iteration ends quietly, and completion() refuses half an answer."""
        _, server = self.until_gone()
        stream = server.client().stream_chat("hi")
        texts = stream.texts()
        next(texts)
        stream.close()
        self.assertEqual(list(texts), [])
        self.assertEqual(list(stream), [])
        self.assertEqual(stream.partial.text, "a")
        with self.assertRaises(sc.StreamInterruptedError) as caught:
            stream.completion()
        self.assertEqual(caught.exception.partial.text, "a")

    def test_after_close_of_a_whole_answer(self):
        """completion() still gives an answer that was whole when the stream was closed."""
        stream = self.stream([chunks("a", "b")])
        list(stream)
        stream.close()
        self.assertEqual(stream.completion().text, "ab")

    def test_close_from_another_thread(self):
        """close() in another thread wakes a reader that waits for bytes, and it ends quietly."""
        arrived, ended = threading.Event(), []
        _, server = self.until_gone()
        stream = server.client(timeout=30).stream_chat("hi")

        def read():
            try:
                for text in stream.texts():
                    if text == "b":
                        arrived.set()
                ended.append("quietly")
            except BaseException as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        self.assertTrue(arrived.wait(5))
        time.sleep(0.05)  # so that the reader is in recv()
        stream.close()
        reader.join(3)
        self.assertFalse(reader.is_alive(), "the reader still waits")
        self.assertEqual(ended, ["quietly"])
        with self.assertRaises(sc.StreamInterruptedError):
            stream.completion()

    def test_close_waits_for_the_read_to_end(self):
        """A socket's number is free for another only when no thread reads from it any more."""
        numbers = []

        class Late(socket.socket):
            __slots__ = ()

            def recv_into(self, *args):
                try:
                    return super().recv_into(*args)
                finally:
                    time.sleep(0.05)
                    numbers.append(self.fileno())

        _, server = self.until_gone()
        stream = server.client(timeout=30).stream_chat("hi")
        next(stream)
        stream._response._connection.sock.__class__ = Late
        reader = threading.Thread(target=list, args=(stream,))
        reader.start()
        time.sleep(0.05)  # so that the reader is in recv()
        stream.close()
        reader.join(3)
        self.assertTrue(numbers)
        self.assertNotIn(-1, numbers)


class GoodEnds(StreamCase):
    def test_done_without_finish_reason(self):
        """[DONE] ends a stream well, whatever finish_reason said."""
        self.assertEqual(self.stream([[chunk("a")]]).completion().text, "a")

    def test_done_alone(self):
        """[DONE] alone is an answer without choices."""
        whole = self.stream([[]]).completion()
        self.assertEqual((whole.choices, whole.text), ([], ""))

    def test_done_is_enough(self):
        """After [DONE] nothing more is waited for."""
        for chunked in (True, False):
            ended = threading.Event()

            def handler(conn):
                conn.start_sse(chunked)
                conn.event(chunk("a"))
                conn.event("[DONE]")
                in_time.append(conn.wait(ended, 3))
            in_time = []
            self.assertEqual(self.stream(handler).completion().text, "a")
            ended.set()
            self.wait_for([True], in_time)

    def test_framed_end_with_finish_reason(self):
        """Without [DONE] a body that ends as its framing says is whole when choices finished."""
        data = b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks("a", "b"))
        for handler in (
            lambda conn: conn.send_sse(chunks("a", "b"), done=False),
            lambda conn: conn.send_sse(chunks("a", "b"), done=False, chunked=False),
            answer(200, data, EVENT_STREAM),
            lambda conn: (conn.raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
                                   + data), conn.close()),
            lambda conn: conn.send_sse(chunks("a", "b") + [usage_chunk(total_tokens=1)],
                                       done=False),
        ):
            stream = self.stream(handler)
            self.assertEqual("".join(stream.texts()), "ab")
            self.assertEqual(stream.completion().choices[0].finish_reason, "stop")

    def test_all_choices_asked_for(self):
        """Without [DONE] all n choices must have come and finished."""
        items = [chunk("a", "stop"), chunk("b", "stop", index=1)]
        whole = self.stream(lambda conn: conn.send_sse(items, done=False), {"n": 2}).completion()
        self.assertEqual([c.message.content for c in whole.choices], ["a", "b"])
        stream = self.stream(lambda conn: conn.send_sse(items[:1], done=False), {"n": 2})
        with self.assertRaises(sc.StreamInterruptedError):
            stream.completion()

    def test_what_follows_done(self):
        """Events after [DONE] reach neither the caller nor the next call."""
        answers = [lambda conn: conn.send_sse(chunks("a") + ["[DONE]", chunk("b")]),
                   completion("next")]
        client = self.serve(answers).client()
        self.assertEqual(client.stream_chat("hi").completion().text, "a")
        self.assertEqual(client.chat("hi").text, "next")

    def test_events_without_data(self):
        """Comments, names, retry, ids and empty data reach nobody and break nothing."""
        noise = [b": ping\n\n", b":\n\n", b"event: ping\n\n", b"retry: 1000\n\n", b"id: 3\n\n",
                 b"data:\n\n", b"data\n\n", b"data: \n\n", b"\n\n\n", b"id: 4\n: c\nretry: 1\n\n",
                 b"event: x\ndata:\n\n", b"foo: bar\n\n"]
        items = []
        for item in chunks("a", "b"):
            items += noise + [item]
        stream = self.stream([items + noise])
        self.assertEqual([c.text for c in stream], ["a", "b", ""])
        self.assertEqual(stream.completion().text, "ab")

    def test_loose_chunks(self):
        """White space around a chunk, raw control characters and a null error do no harm."""
        raw = json.dumps(chunk("a\tb")).replace("\\t", "\t")
        stream = self.stream([["  %s \t" % raw, dict(chunk("c", "stop"), error=None)]])
        self.assertEqual(list(stream.texts()), ["a\tb", "c"])

    def test_many_pings(self):
        """Keep-alive comments may outweigh max_response_bytes many times over."""
        data = b": ping\n\n" * 2000
        stream = self.stream([[data, chunk("a"), data, chunk("b", "stop"), data]],
                             max_response_bytes=4000)
        self.assertEqual(stream.completion().text, "ab")

    def test_long_answer(self):
        """A stream may be longer than max_response_bytes: the limit is for one event."""
        stream = self.stream([chunks(*["x" * 100] * 200)], max_response_bytes=2000)
        self.assertEqual(len(stream.completion().text), 20000)


def with_fault(fault, **options):
    """A handler that sends the first chunks, then whatever `fault` does."""
    def handler(conn):
        conn.start_sse(**options)
        for item in HEL:
            conn.event(item)
        fault(conn)
    return handler


def sends(*items):
    def fault(conn):
        for item in items:
            conn.event(item)
        conn.end_sse()
    return fault


def short_body(conn):
    data = b"".join(b"data: " + json.dumps(c).encode() + b"\n\n"
                    for c in HEL + [chunk(finish_reason="stop")])
    conn.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
             b"Content-Length: %d\r\n\r\n" % (len(data) + 1) + data)
    conn.close()


def gzip_body(damage):
    def handler(conn):
        data = b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in HEL)
        packer = gzip.zlib.compressobj(9, gzip.zlib.DEFLATED, 31)
        body = packer.compress(data) + packer.flush(gzip.zlib.Z_SYNC_FLUSH)
        conn.start_sse(headers={"Content-Encoding": "gzip"})
        conn.part(body)
        conn.part(damage)
        conn.end_sse(done=False)
    return handler


def drip(conn):
    """Send comments for ever: never silent, never done."""
    while True:
        conn.event(b": ping\n\n")
        conn.wait(0.05)


FINISH = chunk(finish_reason="stop")
INTERRUPTED = [
    ("the body ends, no finish_reason, no [DONE]",
     with_fault(lambda conn: conn.end_sse(done=False))),
    ("the connection closes within the chunked framing", with_fault(lambda conn: conn.close())),
    ("the connection closes within an event",
     with_fault(lambda conn: (conn.part(b'data: {"choices": [{'), conn.close()))),
    ("the body ends within an event",
     with_fault(lambda conn: (conn.part(b"data: [DO"), conn.end_sse(done=False)))),
    ("the body ends within the blank line after [DONE]",
     with_fault(lambda conn: (conn.part(b"data: [DONE]\n"), conn.end_sse(done=False)))),
    ("finish_reason came, but the framing broke off",
     with_fault(lambda conn: (conn.event(FINISH), conn.close()))),
    ("a body without framing ends before its finish_reason",
     with_fault(lambda conn: conn.end_sse(done=False), chunked=False)),
    ("a body shorter than its Content-Length, though finish_reason came", short_body),
    ("a reset", with_fault(lambda conn: conn.reset())),
    ("an HTTP chunk without a size", with_fault(lambda conn: (conn.raw(b"zz\r\n"), conn.close()))),
    ("an HTTP chunk cut", with_fault(lambda conn: (conn.raw(b"ff\r\ndata: "), conn.close()))),
    ("one of two choices has no finish_reason",
     with_fault(lambda conn: (conn.event(chunk("x", index=1)), conn.event(FINISH),
                              conn.end_sse(done=False)))),
    ("compressed data cut", gzip_body(b"")),
]
NONSENSE = [
    ("a chunk that is no JSON", with_fault(sends('{"choices": '))),
    ("a chunk with more behind it", with_fault(sends('{"choices": []} x'))),
    ("a chunk of plain text", with_fault(sends("hello"))),
    ("a chunk that is a list", with_fault(sends("[1]"))),
    ("a chunk that is a number", with_fault(sends("3"))),
    ("a chunk that is null", with_fault(sends("null"))),
    ("a chunk that is a string", with_fault(sends('"x"'))),
    ("choices of the wrong type", with_fault(sends({"choices": 3}))),
    ("a delta of the wrong type", with_fault(sends({"choices": [{"delta": "x"}]}))),
    ("JSON nested without end", with_fault(sends("[" * 100000))),
    ("an event over the limit", with_fault(sends(chunk("x" * 5000)))),
    ("an event over the limit without an end",
     with_fault(lambda conn: (conn.part(b"data: " + b"x" * 5000), conn.wait(5)))),
    ("an error as a string", with_fault(sends({"error": "backend died"}))),
    ("an error as an object", with_fault(sends({"error": {"message": "backend died"}}))),
    ("an error with a code in words",
     with_fault(sends({"error": {"message": "backend died", "code": "oops"}}))),
    ("event: error", with_fault(sends(b'event: error\ndata: {"message": "backend died"}\n\n'))),
    ("event: error with a nested error",
     with_fault(sends(b'event: error\ndata: {"error": {"message": "backend died"}}\n\n'))),
    ("event: error with text", with_fault(sends(b"event: error\ndata: backend died\n\n"))),
    ("an error beside choices", with_fault(sends(dict(FINISH, error="backend died")))),
]
STATUS = [
    (429, sc.RateLimitError, {"error": {"message": "backend died", "code": 429}}),
    (503, sc.InternalServerError, {"error": {"message": "backend died", "code": "503"}}),
    (400, sc.BadRequestError, {"error": {"message": "backend died", "code": 400}, "choices": []}),
    (401, sc.AuthenticationError, dict(FINISH, error={"message": "backend died", "code": 401})),
]


class BadEnds(StreamCase):
    def check(self, handler, kind, **options):
        """However it is read, the stream raises `kind` with what had come."""
        errors = []

        def check(read):
            stream = self.stream(handler, **options)
            with self.assertRaises(kind) as caught:
                read(stream)
            error = caught.exception
            self.assertIsInstance(error.partial, sc.ChatCompletion)
            self.assertEqual(error.partial.text, "Hel")
            self.assertEqual(error.partial, stream.partial)
            self.assertEqual(error.attempts, 1)
            self.assertNotIn("\n", str(error))
            for again in (list, lambda stream: stream.completion()):
                with self.assertRaises(sc.SyntheticError, msg="then it passed for whole"):
                    again(stream)
            errors.append(error)

        at_once(self, check, [list, lambda stream: list(stream.texts()),
                              lambda stream: stream.completion()])
        return errors[0]

    def test_interrupted(self):
        """A body that breaks off is a StreamInterruptedError with what had come."""
        for name, handler in INTERRUPTED:
            with self.subTest(name):
                self.check(handler, sc.StreamInterruptedError)

    def test_nonsense(self):
        """What is no chunk, and an error without a status, is a ResponseError."""
        for name, handler in NONSENSE:
            with self.subTest(name):
                error = self.check(handler, sc.ResponseError, max_response_bytes=4000)
                if "error" in name:
                    self.assertIn("backend died", str(error))

    def test_error_with_a_status(self):
        """An error object with a numeric code is that status's error; its body is kept."""
        for status, kind, body in STATUS:
            with self.subTest(status):
                error = self.check(with_fault(sends(body)), kind)
                self.assertEqual((error.status_code, error.message), (status, "backend died"))
                self.assertEqual(error.body, body)

    def test_compression_broken(self):
        """Damaged compression is an error that keeps what had come."""
        self.check(gzip_body(b"\xff" * 40), (sc.StreamInterruptedError, sc.ResponseError))

    def test_silence(self):
        """Silence past the time-out is an APITimeoutError of phase "silence"."""
        error = self.check(with_fault(lambda conn: conn.gone()), sc.APITimeoutError, timeout=0.1)
        self.assertEqual(error.phase, "silence")
        self.assertIsInstance(error, TimeoutError)

    def test_deadline(self):
        """A stream that is never silent still ends at the deadline."""
        start = time.monotonic()
        error = self.check(with_fault(drip), sc.APITimeoutError, deadline=0.15)
        self.assertEqual(error.phase, "deadline")
        self.assertLess(time.monotonic() - start, 3)

    def test_deadline_of_one_call(self):
        """timeout and deadline given to stream_chat go before the client's."""
        for option, phase, fault in (("timeout", "silence", lambda conn: conn.gone()),
                                     ("deadline", "deadline", drip)):
            stream = self.stream(with_fault(fault), {option: 0.1})
            with self.assertRaises(sc.APITimeoutError) as caught:
                list(stream)
            self.assertEqual(caught.exception.phase, phase)

    def test_slow_reader(self):
        """The time-out counts the server's silence, not the time a caller takes for a chunk."""
        stream = self.stream([chunks("a", "b")], timeout=0.1)
        for _ in stream:
            time.sleep(0.12)
        self.assertEqual(stream.completion().text, "ab")

    def test_nothing_came(self):
        """A stream without one event is an error, never an empty answer."""
        for handler in (lambda conn: conn.send_sse([], done=False),
                        lambda conn: conn.send_sse([], done=False, chunked=False),
                        lambda conn: conn.send_sse([b": ping\n\n"], done=False),
                        answer(200, b"", EVENT_STREAM)):
            with self.assertRaises((sc.StreamInterruptedError, sc.ResponseError)):
                list(self.stream(handler))

    def test_no_retry_once_begun(self):
        """A stream that broke is not asked for again."""
        server = self.serve(with_fault(lambda conn: conn.close()))
        with self.assertRaises(sc.StreamInterruptedError):
            list(server.client(max_retries=3).stream_chat("hi"))
        self.assertEqual(len(server.requests), 1)


class NoStream(StreamCase):
    def test_html(self):
        """A page of HTML with status 200 is a ResponseError."""
        for kind in ("text/html", "text/html; charset=utf-8"):
            page = answer(200, "<html>\n<title>Sign in</title></html>", {"Content-Type": kind})
            with self.assertRaises(sc.ResponseError) as caught:
                list(self.stream(page))
            self.assertNotIn("\n", str(caught.exception))

    def test_falsely_labelled(self):
        """A page or JSON that calls itself an event stream is a ResponseError too."""
        for body in (b"<html>\n<title>Sign in</title></html>", b' {"detail": "no"}', b"[]"):
            with self.assertRaises(sc.ResponseError) as caught:
                list(self.stream(answer(200, body, EVENT_STREAM)))
            self.assertNotIn("\n", str(caught.exception))

    def test_json_that_is_no_completion(self):
        """JSON where a stream was asked for, and no completion, is a ResponseError."""
        for body in (b"", b"{}", b"[]", b"null", b"3", b'"x"', b'{"choices": 3}', b"{",
                     b'{"choices": null}', b'{"data": []}', b'{"choices": ["x"]}'):
            with self.subTest(body):
                with self.assertRaises(sc.ResponseError):
                    list(self.stream(answer(200, body, {"Content-Type": "application/json"})))

    def test_json_that_is_an_error(self):
        """An error object with status 200 is raised by its own code."""
        for body, kind in (({"error": "no"}, sc.ResponseError),
                           ({"error": {"message": "no", "code": 429}}, sc.RateLimitError)):
            with self.assertRaises(kind) as caught:
                list(self.stream([body]))
            self.assertEqual(caught.exception.body, body)

    def test_json_completion(self):
        """A whole completion in place of a stream becomes one chunk, and the end."""
        stream = self.stream([completion("hello")])
        found = list(stream)
        self.assertEqual(len(found), 1)
        self.assertIsInstance(found[0], sc.ChatCompletionChunk)
        self.assertEqual((found[0].text, found[0].choices[0].finish_reason), ("hello", "stop"))
        self.assertEqual(stream.completion().text, "hello")
        self.assertEqual(stream.completion().usage.total_tokens, 3)
        self.assertEqual(list(self.stream([completion("hello")]).texts()), ["hello"])

    def test_json_completion_without_indexes(self):
        """Choices of a whole completion that name no index are told apart by their place."""
        body = {"choices": [{"message": {"content": text}} for text in "ab"]}
        whole = self.stream([body]).completion()
        self.assertEqual([(c.index, c.message.content) for c in whole.choices],
                         [(0, "a"), (1, "b")])

    def test_json_completion_of_no_text(self):
        """A fault in a whole completion's text is an error that knows its attempts."""
        body = {"choices": [{"message": {"content": 3}}]}
        with self.assertRaises(sc.ResponseError) as caught:
            list(self.stream([body]))
        self.assertEqual(caught.exception.attempts, 1)

    def test_json_completion_with_everything(self):
        """Tool calls, reasoning, logprobs and further choices survive on that way."""
        for body in (TOOLS, VLLM):
            expected = sc.ChatCompletion.from_dict(copy.deepcopy(body))
            self.assertEqual(summary(self.stream([body]).completion()), summary(expected))


def call(index=Ellipsis, id=Ellipsis, name=Ellipsis, arguments=Ellipsis, **fields):
    """A piece of a tool call, with only what is given."""
    if index is not Ellipsis:
        fields["index"] = index
    if id is not Ellipsis:
        fields["id"] = id
    function = {}
    if name is not Ellipsis:
        function["name"] = name
    if arguments is not Ellipsis:
        function["arguments"] = arguments
    if function:
        fields["function"] = function
    return fields


# name, the tool_calls of one chunk after the other, the calls put together
TOOL_CALLS = [
    ("whole", [[call(0, "a", "f", "{}")]], [("a", "f", "{}")]),
    ("arguments in pieces", [[call(0, "a", "f", "")], [call(0, arguments='{"x"')],
                             [call(0, arguments=": 1}")]], [("a", "f", '{"x": 1}')]),
    ("no arguments", [[call(0, "a", "f", "")]], [("a", "f", "")]),
    ("arguments missing", [[call(0, "a", "f")]], [("a", "f", "")]),
    ("arguments null", [[call(0, "a", "f", None)]], [("a", "f", "")]),
    ("arguments null, then text", [[call(0, "a", "f", None)], [call(0, arguments="{}")]],
     [("a", "f", "{}")]),
    ("arguments null at the end", [[call(0, "a", "f", "{}")], [call(0, arguments=None)]],
     [("a", "f", "{}")]),
    ("non-ASCII arguments", [[call(0, "a", "f", '{"x": "\u20ac')],
                             [call(0, arguments='\u2028"}')]],
     [("a", "f", '{"x": "\u20ac\u2028"}')]),
    ("two in order", [[call(0, "a", "f", "1")], [call(1, "b", "g", "2")]],
     [("a", "f", "1"), ("b", "g", "2")]),
    ("two in one chunk", [[call(0, "a", "f", "1"), call(1, "b", "g", "2")]],
     [("a", "f", "1"), ("b", "g", "2")]),
    ("two interleaved", [[call(0, "a", "f", "1")], [call(1, "b", "g", "2")],
                         [call(0, arguments="3")], [call(1, arguments="4")]],
     [("a", "f", "13"), ("b", "g", "24")]),
    ("two interleaved in one chunk",
     [[call(0, "a", "f"), call(1, "b", "g")], [call(1, arguments="4"), call(0, arguments="3")]],
     [("a", "f", "3"), ("b", "g", "4")]),
    ("two pieces of one call in one chunk", [[call(0, "a", "f", "1"), call(0, arguments="2")]],
     [("a", "f", "12")]),
    ("index from 1", [[call(1, "a", "f", "1")], [call(2, "b", "g", "2")],
                      [call(1, arguments="3")]], [("a", "f", "13"), ("b", "g", "2")]),
    ("indexes with a gap", [[call(0, "a", "f", "1")], [call(5, "b", "g", "2")],
                            [call(5, arguments="3")]], [("a", "f", "1"), ("b", "g", "23")]),
    ("the later index first", [[call(1, "b", "g", "2")], [call(0, "a", "f", "1")],
                               [call(1, arguments="3")]], [("a", "f", "1"), ("b", "g", "23")]),
    ("no index", [[call(id="a", name="f", arguments="1")], [call(arguments="2")]],
     [("a", "f", "12")]),
    ("index null", [[call(None, "a", "f", "1")], [call(None, arguments="2")]],
     [("a", "f", "12")]),
    ("no index, each piece with its id",
     [[call(id="a", name="f", arguments="1")], [call(id="a", arguments="2")]],
     [("a", "f", "12")]),
    ("no index, two ids", [[call(id="a", name="f", arguments="1")],
                           [call(id="b", name="g", arguments="2")]],
     [("a", "f", "1"), ("b", "g", "2")]),
    ("no index, two ids in one chunk", [[call(id="a", name="f", arguments="1"),
                                         call(id="b", name="g", arguments="2")]],
     [("a", "f", "1"), ("b", "g", "2")]),
    ("no index, two ids interleaved",
     [[call(id="a", name="f")], [call(id="b", name="g")], [call(id="a", arguments="1")],
      [call(id="b", arguments="2")], [call(id="a", arguments="3")]],
     [("a", "f", "13"), ("b", "g", "2")]),
    ("no index and no id: the first", [[call(0, "a", "f", "1")], [call(1, "b", "g", "2")],
                                       [call(arguments="3")]],
     [("a", "f", "13"), ("b", "g", "2")]),
    ("no index, the id of the second", [[call(0, "a", "f", "1")], [call(1, "b", "g", "2")],
                                        [call(id="b", arguments="3")]],
     [("a", "f", "1"), ("b", "g", "23")]),
    ("no index at first, 0 later", [[call(id="a", name="f")], [call(0, arguments="1")]],
     [("a", "f", "1")]),
    ("index 1 at first, none later", [[call(1, "a", "f")], [call(arguments="1")]],
     [("a", "f", "1")]),
    ("id repeated", [[call(0, "a", "f", "1")], [call(0, "a", arguments="2")],
                     [call(0, "a", arguments="3")]], [("a", "f", "123")]),
    ("name repeated", [[call(0, "a", "f", "1")], [call(0, name="f", arguments="2")]],
     [("a", "f", "12")]),
    ("all repeated", [[call(0, "a", "f", "1", type="function")],
                      [call(0, "a", "f", "2", type="function")]], [("a", "f", "12")]),
    ("id null or empty later", [[call(0, "a", "f", "1")], [call(0, None, arguments="2")],
                                [call(0, "", arguments="3")]], [("a", "f", "123")]),
    ("name null or empty later", [[call(0, "a", "f", "1")], [call(0, name=None, arguments="2")],
                                  [call(0, name="", arguments="3")]], [("a", "f", "123")]),
    ("id late", [[call(0, name="f", arguments="1")], [call(0, "a", arguments="2")]],
     [("a", "f", "12")]),
    ("name late", [[call(0, "a", arguments="1")], [call(0, name="f", arguments="2")]],
     [("a", "f", "12")]),
    ("no id at all", [[call(0, name="f", arguments="1")], [call(0, arguments="2")]],
     [(None, "f", "12")]),
    ("type null", [[call(0, "a", "f", "1", type=None)], [call(0, arguments="2", type=None)]],
     [("a", "f", "12")]),
    ("function null", [[call(0, "a", "f", "1")], [call(0, function=None)],
                       [call(0, arguments="2")]], [("a", "f", "12")]),
    ("another id at a known index", [[call(0, "a", "f", "1")], [call(0, "b", "g", "2")]],
     [("a", "f", "1"), ("b", "g", "2")]),
    ("another id at a known index, one chunk", [[call(0, "a", "f", "1"), call(0, "b", "g", "2")]],
     [("a", "f", "1"), ("b", "g", "2")]),
    ("another id at a known index, then pieces",
     [[call(0, "a", "f", "1")], [call(0, "b", "g", "2")], [call(0, arguments="3")]],
     [("a", "f", "1"), ("b", "g", "23")]),
    ("another id at a known index, then both by id",
     [[call(0, "a", "f", "1")], [call(0, "b", "g", "2")], [call(0, "a", arguments="3")],
      [call(0, "b", arguments="4")]],
     [("a", "f", "13"), ("b", "g", "24")]),
    ("one id at two indexes", [[call(0, "a", "f", "1")], [call(1, "a", "g", "2")],
                               [call(0, arguments="3")], [call(1, arguments="4")]],
     [("a", "f", "13"), ("a", "g", "24")]),
    ("one function called twice", [[call(0, "a", "f", "1")], [call(1, "b", "f", "1")]],
     [("a", "f", "1"), ("b", "f", "1")]),
    ("a null item later", [[call(0, "a", "f", "1")], [None], [call(0, arguments="2")]],
     [("a", "f", "12")]),
    ("a null item alone", [[None]], []),
    ("empty and null lists between", [[call(0, "a", "f", "1")], [], None,
                                      [call(0, arguments="2")]], [("a", "f", "12")]),
    ("none", [[], None], []),
]


def summary(whole):
    """What must be the same in an answer however it came."""
    return (whole.id, whole.object, whole.created, whole.model, whole.system_fingerprint,
            whole.usage and whole.usage.to_dict(),
            [(c.index, c.message.role, c.message.content or None,
              c.message.reasoning_content or None, c.message.refusal, tool_calls(c.message),
              c.finish_reason, c.logprobs) for c in whole.choices])


def tool_calls(message):
    return [(t.id, t.function.name, t.function.arguments or "") for t in message.tool_calls]


class Accumulating(StreamCase):
    def whole(self, items):
        return self.stream([items]).completion()

    def test_tool_calls(self):
        """Tool calls are put together from every way servers cut them."""
        for name, pieces, expected in TOOL_CALLS:
            for index in (0, 1):
                items = [chunk(tool_calls=piece, index=index) for piece in pieces]
                items.append(chunk(finish_reason="tool_calls", index=index))
                with self.subTest(name, choice=index):
                    (choice,) = self.whole(items).choices
                    self.assertEqual(choice.index, index)
                    self.assertEqual(tool_calls(choice.message), expected)

    def test_tool_call_to_send_back(self):
        """Calls from a stream can be parsed and go back as the service takes them."""
        pieces = [[call(0, "a", "f", '{"x"', type="function")], [call(0, arguments=": 1}")]]
        message = self.whole([chunk(tool_calls=p, role="assistant") for p in pieces]
                             + [chunk(finish_reason="tool_calls")]).choices[0].message
        self.assertEqual(message.tool_calls[0].function.parse(), {"x": 1})
        self.assertIsInstance(message.tool_calls[0], sc.ToolCall)
        self.assertEqual(message.to_param(), {
            "role": "assistant", "content": None, "tool_calls": [
                {"id": "a", "type": "function",
                 "function": {"name": "f", "arguments": '{"x": 1}'}}]})

    def test_tool_calls_of_two_choices(self):
        """Equal indexes and ids in two choices do not mix."""
        items = [chunk(tool_calls=[call(0, "a", "f", "1")]),
                 chunk(tool_calls=[call(0, "a", "f", "2")], index=1),
                 chunk(tool_calls=[call(0, arguments="3")]),
                 chunk(tool_calls=[call(0, arguments="4")], index=1)]
        self.assertEqual([tool_calls(c.message) for c in self.whole(items).choices],
                         [[("a", "f", "13")], [("a", "f", "24")]])

    def test_choices_in_any_order(self):
        """Choices come out by index, each with its own text and finish_reason."""
        whole = self.whole([chunk("b", index=1), chunk("a"), chunk("B", "length", index=1),
                            chunk("A", "stop")])
        self.assertEqual([(c.index, c.message.content, c.finish_reason) for c in whole.choices],
                         [(0, "aA", "stop"), (1, "bB", "length")])

    def test_two_choices_in_one_chunk(self):
        """One chunk may carry pieces of several choices."""
        both = chunk("b", index=1)["choices"] + chunk("a")["choices"]
        whole = self.whole([dict(chunk(), choices=both)] * 2)
        self.assertEqual([c.message.content for c in whole.choices], ["aa", "bb"])

    def test_roles(self):
        """A repeated role is not doubled, an absent one is the assistant's."""
        for items in ([chunk("a", role="assistant"), chunk("b", role="assistant")],
                      [chunk("a"), chunk("b", role=None)],
                      [chunk("a", role="assistant"), chunk("b", role="")]):
            message = self.whole(items).choices[0].message
            self.assertEqual((message.role, message.content), ("assistant", "ab"))
        message = self.whole([chunk("a", role="model"), chunk("b", role=None)]).choices[0].message
        self.assertEqual(message.role, "model")

    def test_reasoning(self):
        """Reasoning under either name, or both, is put together once."""
        for pieces in ([{"reasoning": "a"}, {"reasoning": "b"}],
                       [{"reasoning_content": "a"}, {"reasoning_content": "b"}],
                       [{"reasoning": "a", "reasoning_content": "a"},
                        {"reasoning": "b", "reasoning_content": "b"}],
                       [{"reasoning": "a"}, {"reasoning_content": "b"}]):
            message = self.whole([chunk(**p) for p in pieces]).choices[0].message
            self.assertEqual(message.reasoning_content, "ab")
            self.assertIn(message.content, (None, ""))
        message = self.whole([chunk("a", reasoning="r"), chunk("b")]).choices[0].message
        self.assertEqual((message.content, message.reasoning_content), ("ab", "r"))

    def test_refusal(self):
        """A refusal's pieces are joined."""
        whole = self.whole([chunk(refusal="I "), chunk(refusal=None), chunk(refusal="can't")])
        self.assertEqual(whole.choices[0].message.refusal, "I can't")

    def test_logprobs(self):
        """logprobs of all chunks are in the whole answer, in order."""
        items = []
        for token in "ab":
            items.append(chunk(token))
            items[-1]["choices"][0]["logprobs"] = {
                "content": [{"token": token, "logprob": -1.0}], "refusal": None}
        items.append(chunk(finish_reason="stop"))
        items[-1]["choices"][0]["logprobs"] = None
        logprobs = self.whole(items).choices[0].logprobs
        self.assertEqual([entry["token"] for entry in logprobs["content"]], ["a", "b"])
        self.assertIsNone(self.whole(chunks("a")).choices[0].logprobs)

    def test_finish_reason_stays(self):
        """A null finish_reason after the real one does not erase it."""
        whole = self.whole([chunk("a", "length"), chunk("")])
        self.assertEqual(whole.choices[0].finish_reason, "length")

    def test_missing_index_of_a_choice(self):
        """A choice without an index is the first."""
        whole = self.whole([{"choices": [{"delta": {"content": "a"}}]},
                            {"choices": [{"index": None, "delta": {"content": "b"}}]},
                            chunk("c", "stop")])
        self.assertEqual([c.message.content for c in whole.choices], ["abc"])

    def test_unknown_fields(self):
        """Fields without an attribute are kept in the whole answer, on every level."""
        tool_calls = [call(0, "a", "f", "", extra_field=2)]
        first = dict(chunk("a", annotations=[1], tool_calls=tool_calls), provider="p")
        first["choices"][0]["stop_reason"] = "x"
        whole = self.whole([first, chunk("b", "stop", annotations=[2])])
        message = whole.choices[0].message
        self.assertEqual(whole["provider"], "p")
        self.assertEqual(whole.choices[0]["stop_reason"], "x")
        self.assertEqual(message["annotations"], [1, 2])
        self.assertEqual(message.tool_calls[0]["extra_field"], 2)
        self.assertNotIn("index", message.tool_calls[0].to_dict())

    def test_types_of_tool_calls(self):
        """A call's type is kept as it came first, and "function" where none came."""
        for types, expected in ((["custom", None], "custom"), ([None, "custom"], "custom"),
                                ([None, None], "function")):
            items = [chunk(tool_calls=[call(0, "a", "f", "1", type=t)]) for t in types]
            self.assertEqual(self.whole(items).choices[0].message.tool_calls[0].type, expected)

    def test_news_beside_text(self):
        """What a chunk of text brings beside it, usage or a new field, is not passed over."""
        middle = [dict(chunk("b"), usage={"total_tokens": 5}),
                  dict(chunk("c"), usage={"total_tokens": 9}), dict(chunk("d"), timings={"n": 1})]
        whole = self.whole([chunk("a")] + middle + [chunk("e", "stop")])
        self.assertEqual(whole.text, "abcde")
        self.assertEqual(whole.usage.total_tokens, 9)
        self.assertEqual(whole.extra["timings"], {"n": 1})

    def test_late_head(self):
        """id, model and the like are found on whichever chunk has them first."""
        head = {"id": "x", "model": "m", "created": 5, "system_fingerprint": "fp",
                "service_tier": "t"}
        whole = self.whole([{"choices": []}, dict(head, choices=[]),
                            {"choices": chunk("a", "stop")["choices"]}])
        for name, value in head.items():
            self.assertEqual(whole[name], value)

    def test_to_dict(self):
        """A streamed answer's to_dict() reads back as an equal answer."""
        whole = self.whole(chunks("a", "b") + [usage_chunk(total_tokens=3)])
        again = sc.ChatCompletion.from_dict(json.loads(whole.to_json()))
        self.assertEqual(summary(again), summary(whole))
        self.assertEqual(again, whole)


class RandomAnswers(StreamCase):
    def test_cut_answers(self):
        """A random answer, cut into random chunks and bytes, comes out as it was."""
        rng, script = random.Random(21), {}

        def handler(conn):
            if not conn.json.get("stream"):
                return conn.send_json(script["body"])
            conn.start_sse(script["chunked"])
            for piece in script["pieces"]:
                conn.part(piece)
            conn.end_sse(done=False)

        client = self.serve(handler).client()
        for _ in range(60):
            body = random_answer(rng)
            data = random_bytes(cut_answer(body, rng), rng)
            script.update(body=body, pieces=random_pieces(data, rng), chunked=rng.random() < 0.5)
            whole = client.stream_chat("hi").completion()
            self.assertEqual(summary(whole), summary(client.chat("hi")), body)

    def test_random_chunks(self):
        """Whatever JSON the chunks are, the stream ends in an answer or in our own errors."""
        rng, script = random.Random(22), {}
        client = self.serve(lambda conn: conn.send_sse(script["items"])).client()
        finished = 0
        for _ in range(80):
            items = [copy.deepcopy(rng.choice((CHUNK, chunk("a"), chunk("b", index=1))))
                     for _ in range(4)]
            for item in items:
                rng.choice((mutate_gently, mutate_gently, mutate_wildly))(item, rng)
            script["items"] = items
            try:
                whole = client.stream_chat("hi").completion()
                self.assertIsInstance(whole.text, str)
                json.dumps(whole.to_dict())
                repr(whole)
                finished += 1
            except sc.SyntheticError as error:
                self.assertIsInstance(error.partial, sc.ChatCompletion, items)
                json.dumps(error.partial.to_dict())
            except Exception as error:
                self.fail("%r for %s" % (error, json.dumps(items)))
        self.assertGreater(finished, 25)


def random_text(rng, longest=40):
    return "".join(rng.choice("ab \n\r\"\\{}\u00e9\u20ac\u2028\U0001f600:") for _ in
                   range(rng.randint(1, longest)))


def random_answer(rng):
    """A completion with any of the parts that an answer can have."""
    choices = []
    for index in range(rng.choice((1, 1, 2, 3))):
        message = {"role": "assistant", "content": rng.choice((None, random_text(rng)))}
        if rng.random() < 0.5:
            message["reasoning_content"] = random_text(rng)
        if rng.random() < 0.5:
            message["tool_calls"] = [
                {"id": "call_%d" % i, "type": "function",
                 "function": {"name": "f%d" % i, "arguments": rng.choice(("", random_text(rng)))}}
                for i in range(rng.randint(1, 3))]
        logprobs = None
        if message["content"] and rng.random() < 0.3:
            logprobs = {"content": [{"token": c, "logprob": -0.5} for c in message["content"]]}
        choices.append({"index": index, "message": message, "logprobs": logprobs,
                        "finish_reason": rng.choice(("stop", "length", "tool_calls"))})
    return {"id": "x", "object": "chat.completion", "created": 7, "model": "m",
            "system_fingerprint": rng.choice((None, "fp")), "choices": choices,
            "usage": rng.choice((None, {"prompt_tokens": 1, "total_tokens": 2}))}


def text_pieces(text, rng):
    while text:
        size = rng.randint(1, 8)
        yield text[:size]
        text = text[size:]


def choice_pieces(choice, rng):
    """One choice as a list of stream choices."""
    message, deltas = choice["message"], [{"role": "assistant"}]
    for key in ("reasoning_content", "content"):
        names = rng.choice((("reasoning",), ("reasoning_content",), ("reasoning",
                            "reasoning_content"))) if key != "content" else (key,)
        for piece in text_pieces(message.get(key) or "", rng):
            deltas.append(dict.fromkeys(names, piece))
    for i, tool in enumerate(message.get("tool_calls", ())):
        function = {"name": tool["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [dict(tool, index=i, function=function)]})
        for piece in text_pieces(tool["function"]["arguments"], rng):
            deltas.append({"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
    pieces = [{"index": choice["index"], "delta": d, "finish_reason": None} for d in deltas]
    if choice["logprobs"]:
        entries = list(choice["logprobs"]["content"])
        for piece in pieces:
            size = len(piece["delta"].get("content", ""))
            if size:
                piece["logprobs"] = {"content": entries[:size]}
                del entries[:size]
    pieces.append({"index": choice["index"], "delta": {}, "finish_reason":
                   choice["finish_reason"]})
    return pieces


def cut_answer(body, rng):
    """A completion as the chunks of a stream, its choices interleaved."""
    queues = [choice_pieces(choice, rng) for choice in body["choices"]]
    head = {key: body[key] for key in ("id", "created", "model", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    while any(queues):
        queue = rng.choice([q for q in queues if q])
        yield dict(head, choices=[queue.pop(0)])
    if body["usage"]:
        yield dict(head, choices=[], usage=body["usage"])


def random_bytes(items, rng):
    """Chunks as an event stream with any line ends, comments between, and its [DONE]."""
    data = b"\xef\xbb\xbf" if rng.random() < 0.3 else b""
    for text in [json.dumps(item, ensure_ascii=rng.random() < 0.5) for item in items] + ["[DONE]"]:
        end = rng.choice((b"\n", b"\r\n", b"\r"))
        data += rng.choice((b"", b"", b": ping" + end + end, b"id: 1" + end))
        data += rng.choice((b"data: ", b"data:")) + text.encode() + end + end
    return data


def random_pieces(data, rng):
    while data:
        size = rng.choice((1, 2, 7, 60, 400))
        yield data[:size]
        data = data[size:]


class Memory(StreamCase):
    def test_chunks_are_not_kept(self):
        """Memory grows by the text and at most 64 bytes for each chunk that has passed."""
        count, start, text = 5000, 2000, "four"
        block = b"".join(b"data: " + json.dumps(chunk(text)).encode() + b"\n\n"
                         for _ in range(500))

        def handler(conn):
            conn.start_sse(chunked=False)
            for _ in range(count // 500):
                conn.raw(block)
            conn.end_sse()

        stream = self.stream(handler)
        traced_memory = trace_memory(self)
        for passed, _ in enumerate(stream, 1):
            if passed == start:
                before = traced_memory()[0]
            elif passed == count:
                grown = traced_memory()[0] - before
        self.assertEqual(stream.completion().text, text * count)
        self.assertLess(grown / (count - start) - len(text), 64)


load_tests = together("BadEnds")

if __name__ == "__main__":
    unittest.main()
