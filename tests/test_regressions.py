# SPDX-License-Identifier: MIT
"""Faults that were found from outside, each with the smallest case that showed it."""

import gzip
import json
import os
import pickle
import socket
import ssl
import threading
import unittest
import warnings
from unittest import mock

from . import synthetic_client as sc
from .server import KEY, Proxy, Server, answer, chunk, chunks, completion, trace_memory

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Desynchronised(unittest.TestCase):
    def test_bytes_behind_an_answer(self):
        """Bytes behind an answer are never the answer to the next request, over TLS neither."""
        first, stale = (json.dumps(completion(text)).encode() for text in ("first", "STALE"))

        def handler(conn):
            if len(conn.server.requests) > 1:
                conn.send_json(completion("second"))
                return
            conn.raw(HEAD % len(first))
            conn.wait(0.05)  # for the rest to come in one TLS record
            conn.raw(first + HEAD % len(stale) + stale)

        for tls in (None, "localhost"):
            with self.subTest(tls=tls), Server(handler, tls=tls) as server:
                client = server.client()
                self.assertEqual(client.chat("a").text, "first")
                self.assertEqual(client.chat("b").text, "second")

    def test_switched_protocols(self):
        """After a 101 a connection speaks no HTTP any more, and is not used again."""
        def switch(conn):
            conn.raw(b"HTTP/1.1 101 Switching\r\n\r\n" + HEAD % 2 + b"{}")

        with Server([switch, completion("second")]) as server:
            client = server.client()
            self.assertRaises(sc.APIStatusError, client.chat, "a")
            self.assertEqual(client.chat("b").text, "second")
            self.assertEqual(server.connections, 2)

    @unittest.skipUnless(hasattr(os, "fork"), "this system has no fork")
    def test_stream_that_a_child_finishes(self):
        """A child that reads its parent's stream to the end keeps no connection of the parent."""
        with Server([chunks("a", "b")]) as server:
            client = server.client()
            stream = client.stream_chat("x")
            next(stream)
            with warnings.catch_warnings():  # the server's threads: new Pythons warn of them
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                try:
                    stream.completion()
                    os._exit(len(client._way._idle))
                finally:
                    os._exit(99)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            stream.close()


class Waiting(unittest.TestCase):
    def test_retry_on_an_idle_connection(self):
        """After an attempt that could not connect, one on a kept connection has its own time."""
        finish, kept = threading.Event(), threading.Event()

        def handler(conn):
            if conn.json.get("stream"):
                conn.start_sse()
                conn.event(chunk("a"))
                conn.wait(finish)
                conn.event(chunk(finish_reason="stop"))
                conn.end_sse()
            else:
                kept.set()
                conn.wait(0.3)
                conn.send_json(completion("late"))

        with Server(handler) as server:
            client = server.client(connect_timeout=0.2, max_retries=1)
            stream = client.stream_chat("x")
            next(stream)
            server.listener.shutdown(socket.SHUT_RDWR)  # who connects now is refused

            def free():
                finish.set()
                stream.completion()

            timer = threading.Timer(0.1, free)  # within the wait before the second attempt
            timer.start()
            self.assertEqual(client.chat("y").text, "late")
            timer.join()
            self.assertTrue(kept.is_set())

    def test_bodies_that_cannot_come(self):
        """A 204 that calls itself chunked has no body to wait for."""
        with Server([b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n"]) as server:
            self.assertIsNone(server.client(timeout=5).request("DELETE", "x"))

    def test_tls_that_breaks_behind_a_proxy(self):
        """A proxy's answer to CONNECT is no answer of the server: what breaks then is retried."""
        def handler(conn):
            conn.raw(b"HTTP/1.1 200 ok\r\n\r\n")
            conn.sock.recv(9)  # a reset before may hit wrap_socket(), which leaks before 3.13
            conn.reset()

        with Server(handler) as proxy:
            client = sc.SyntheticClient(KEY, base_url="https://x.test/v1", model="m",
                                        proxy=proxy.origin, max_retries=1)
            with self.assertRaises(sc.APIConnectionError) as caught:
                client.chat("a")
            self.assertEqual(caught.exception.attempts, 2)


class PlainHTTP(unittest.TestCase):
    def test_keys_that_come_later(self):
        """A key that the environment or one call brings is refused on plain http, too."""
        with Proxy() as proxy:
            client = sc.SyntheticClient(base_url="http://x.test/v1", model="m", proxy=proxy.url)
            with self.assertRaisesRegex(sc.ConfigurationError, "allow_http"):
                client.chat("a", extra_headers={"Authorization": "Bearer abc"})
            packed = pickle.dumps(client)
            with mock.patch.dict(os.environ, SYNTHETIC_API_KEY=KEY):
                with self.assertRaisesRegex(sc.ConfigurationError, "allow_http"):
                    pickle.loads(packed).chat("a")
            self.assertEqual(proxy.connections, 0)


class Answers(unittest.TestCase):
    def error(self, *answers, **params):
        with Server(list(answers)) as server:
            with self.assertRaises(sc.SyntheticError) as caught:
                server.client().chat("a", **params)
            return caught.exception

    def test_odd_redirects(self):
        """A target that cannot be read is a redirect that is not followed."""
        for target in (b"/v1/\xe9", b"http://[bad", b"//[::1", b"/a b", b"/\x01"):
            with self.subTest(target):
                error = self.error(b"HTTP/1.1 307 x\r\nContent-Length: 0\r\nLocation: " + target
                                   + b"\r\n\r\n")
                self.assertIs(type(error), sc.APIStatusError)
                self.assertEqual(error.status_code, 307)

    def test_headers_of_an_error_inside(self):
        """An error inside a 200 has what the answer's headers say."""
        headers = {"x-request-id": "R1", "retry-after": "7",
                   "x-synthetic-quotas": '{"rollingFiveHourLimit": {"limited": true}}'}
        body = {"error": {"message": "m", "code": 429}}
        error = self.error(answer(200, body, headers))
        self.assertIs(type(error), sc.RateLimitError)
        self.assertEqual((error.request_id, error.retry_after), ("R1", 7))
        self.assertTrue(error.quotas.rolling_five_hour_limit.limited)
        self.assertIn("rolling five-hour limit is used up", str(error))
        with Server([lambda conn: conn.send_sse([chunk("a"), body], headers=headers)]) as server:
            with self.assertRaises(sc.RateLimitError) as caught:
                list(server.client().stream_chat("a"))
            self.assertEqual(caught.exception.request_id, "R1")
            self.assertEqual(caught.exception.partial.text, "a")

    def test_error_where_events_should_be(self):
        """An error object that calls itself an event stream is that error."""
        body = b'{"error": {"message": "m", "code": 429}}'
        with Server([answer(200, body, {"Content-Type": "text/event-stream"})]) as server:
            self.assertRaises(sc.RateLimitError, list, server.client().stream_chat("a"))

    def test_error_behind_a_byte_order_mark(self):
        """An error's body may begin with a byte order mark, as an answer's may."""
        error = self.error(answer(400, b'\xef\xbb\xbf{"error": "m"}'))
        self.assertEqual((error.message, error.body), ("m", {"error": "m"}))

    def test_error_that_comes_in_pieces(self):
        """An error where events should be is read whole, however long and slow it comes."""
        body = json.dumps({"error": {"message": "m" * 2000, "code": 429}}).encode()

        def handler(conn):
            conn.start_sse()
            for piece in (body[:1], body[1:9], body[9:]):
                conn.part(piece)
                conn.wait(0.02)
            conn.end_sse(done=False)

        with Server(handler) as server:
            with self.assertRaises(sc.RateLimitError) as caught:
                list(server.client().stream_chat("a"))
            self.assertEqual(caught.exception.message, "m" * 2000)

    def test_many_small_chunks(self):
        """A body in tiny chunks costs memory by its bytes, not by its chunks."""
        body = b"".join(b"2\r\n  \r\n" for _ in range(10000)) + b"2\r\n{}\r\n0\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with Server([head + body]) as server:
            client = server.client()
            client.request("GET", "x")
            traced_memory = trace_memory(self)
            client.request("GET", "x")
            self.assertLess(traced_memory()[1], 400_000)

    def test_odd_header_lines(self):
        """Header lines without a name, without a colon, or folded do no harm."""
        body = json.dumps(completion("a")).encode()
        head = (b"HTTP/1.1 200\r\n: x\r\n : y\r\nno colon\r\nX-Request-Id : r1\r\n\tfolded: z\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body))
        with Server([lambda conn: conn.raw(head + body)]) as server:
            reply = server.client().chat("a")
        self.assertEqual((reply.text, reply.meta.request_id), ("a", "r1"))
        self.assertEqual(set(reply.meta.headers), {"x-request-id", "content-length"})

    def test_long_words(self):
        """A long text without spaces is quoted, cut, and not left out."""
        error = self.error(answer(400, {"error": "\u6a21\u578b" * 400}))
        self.assertIn("\u6a21\u578b", str(error))
        self.assertLess(len(str(error)), 500)

    def test_percent_encoded_key(self):
        """A key echoed as URLs have it is masked."""
        with Server([answer(401, {"error": "key ab%2Fcd%2Befgh0123"})]) as server:
            with self.assertRaises(sc.AuthenticationError) as caught:
                server.client(api_key="ab/cd+efgh0123").chat("a")
        self.assertIn("key ***", str(caught.exception))

    def test_bytes_behind_gzip(self):
        """A line end behind a gzip body is passed over."""
        body = gzip.compress(json.dumps(completion("a")).encode()) + b"\r\n"
        with Server([answer(200, body, {"Content-Encoding": "gzip"})]) as server:
            self.assertEqual(server.client().chat("a").text, "a")

    def test_choices_asked_for_by_extra_body(self):
        """Choices that extra_body asks for are waited for, too."""
        with Server([lambda conn: conn.send_sse([chunk("a", "stop")], done=False)]) as server:
            stream = server.client().stream_chat("a", extra_body={"n": 2})
            self.assertRaises(sc.StreamInterruptedError, stream.completion)


class Arguments(unittest.TestCase):
    def test_refused(self):
        """Values that cannot work are refused when the client is made."""
        for settings in (
            {"proxy": "http://u:p@a..b:80"}, {"proxy": "http://h\0:80"},
            {"proxy": "http://h:99999"}, {"proxy": "http://h:0"},
            {"base_url": "http://[:::::]:1/v1"}, {"base_url": "http://a\0b/v1"},
            {"base_url": "http://\x7f/"}, {"ca_file": os.path.abspath(__file__)},
        ):
            with self.subTest(settings):
                with self.assertRaises(sc.ConfigurationError):
                    sc.SyntheticClient(**settings)

    def test_models_that_are_none(self):
        """A route without a model names no model."""
        for model in ("synthetic/", "  "):
            with self.assertRaisesRegex(sc.ConfigurationError, "SYNTHETIC_MODEL"):
                sc.SyntheticClient(KEY).chat("a", model=model)

    def test_empty_certificate_variable(self):
        """An empty SSL_CERT_FILE counts as not set."""
        if not os.path.isfile(ssl.get_default_verify_paths().openssl_cafile):
            self.skipTest("this Python's OpenSSL has no bundle of its own")
        from importlib import import_module
        transport = import_module(sc.__name__ + ".transport")
        with mock.patch.dict(os.environ, SSL_CERT_FILE=""):
            self.assertTrue(transport._make_context(None).get_ca_certs())


if __name__ == "__main__":
    unittest.main()
