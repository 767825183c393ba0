# SPDX-License-Identifier: MIT
"""What happens between the client and the wire: connections, proxies, TLS, bodies, time."""

import contextlib
import gzip
import json
import logging
import os
import pickle
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest
import warnings
import zlib
from unittest import mock

from . import synthetic_client as sc
from .server import (
    CA_FILE, DATA, KEY, MODEL, Proxy, Server, answer, answer_when, at_once, chunk, chunks,
    completion, environment, soon, stall, trace_memory
)
from .together import together

OTHER_CA = os.path.join(DATA, "other-ca.pem")


@contextlib.contextmanager
def environ(**changes):
    """Set environment variables, with the tests' own no_proxy taken away."""
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    with mock.patch.dict(os.environ):
        for name in names + tuple(name.upper() for name in names):
            os.environ.pop(name, None)
        os.environ.update(changes)
        yield


@contextlib.contextmanager
def names(*hosts):
    """Let host names stand for 127.0.0.1."""
    real = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        return real("127.0.0.1" if host in hosts else host, *args, **kwargs)

    with mock.patch("socket.getaddrinfo", getaddrinfo):
        yield


@contextlib.contextmanager
def no_network():
    """Fail every name look-up."""
    fault = socket.gaierror(socket.EAI_NONAME, "unknown name")
    with mock.patch("socket.getaddrinfo", side_effect=fault):
        yield


def run_program(program, *arguments, flags=("-W", "error", "-X", "dev")):
    """Run a program of SyntheticClient, strictly; it must end well and print nothing."""
    program = "from %s import SyntheticClient\n%s" % (sc.__name__, program)
    done = subprocess.run(
        [sys.executable] + list(flags) + ["-c", program] + list(arguments), env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=10)
    if done.returncode or done.stdout:
        raise AssertionError("exit %d: %s" % (done.returncode, done.stdout.decode()))


class KeepAlive(unittest.TestCase):

    def test_second_call(self):
        """Later calls to the same origin use the first one's connection."""
        with Server() as server:
            client = server.client()
            for _ in range(3):
                self.assertEqual(client.chat("hi").text, "hello")
            self.assertEqual((server.connections, len(server.requests)), (1, 3))

    def test_after_a_stream(self):
        """A stream read to its end gives its connection back."""
        with Server([chunks("a"), completion(), chunks("b"), completion()]) as server:
            client = server.client()
            for _ in range(2):
                list(client.stream_chat("hi"))
                client.chat("hi")
            self.assertEqual(server.connections, 1)

    def test_late_end_of_a_stream(self):
        """It does so too when the final chunk's framing comes a little after [DONE]."""
        def handler(conn):
            conn.start_sse()
            for item in chunks("a"):
                conn.event(item)
            conn.event("[DONE]")
            conn.wait(0.015)
            conn.end_sse(done=False)

        with Server([handler, completion()]) as server:
            client = server.client()
            list(client.stream_chat("hi"))
            client.chat("hi")
            self.assertEqual(server.connections, 1)

    def test_end_of_a_stream_that_never_comes(self):
        """A stream whose framing never ends after [DONE] ends well, and at once."""
        def handler(conn):
            conn.start_sse()
            for item in chunks("a"):
                conn.event(item)
            conn.event("[DONE]")
            conn.gone()

        with Server([handler, completion()]) as server:
            client = server.client()
            begun = time.monotonic()
            self.assertEqual(client.stream_chat("hi").completion().text, "a")
            self.assertEqual(client.chat("hi").meta.attempts, 1)
            self.assertLess(time.monotonic() - begun, 1)
            self.assertEqual(server.connections, 2)

    def test_bytes_after_the_answer(self):
        """A connection with unasked bytes on it is not used again."""
        extra = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        with Server([lambda conn: (conn.send_json(completion()), conn.raw(extra)),
                     completion("second")]) as server:
            client = server.client()
            client.chat("hi")
            time.sleep(0.02)
            self.assertEqual(client.chat("hi").text, "second")

    def test_unasked_bytes_over_tls(self):
        """Nor is one over TLS, be they in the record of the answer or in one of their own."""
        def together(conn):
            body = json.dumps(completion()).encode()
            conn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s{}" % (len(body), body))

        def behind(conn):  # read to the length that is wanted, its record holds more
            body = json.dumps(completion()).encode()
            conn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            conn.wait(0.05)
            conn.raw(body + b"{}")

        def apart(conn):
            conn.send_json(completion())
            conn.raw(b"{}")

        for first in (together, behind, apart):
            with Server([first, completion("second")], tls="localhost") as server:
                client = server.client()
                client.chat("hi")
                time.sleep(0.02)
                self.assertEqual(client.chat("hi").text, "second")

    def test_without_poll(self):
        """A system without poll() reuses connections too, and sees which were closed."""
        poll = vars(select).pop("poll", None)
        try:
            for tls in (None, "localhost"):
                with Server(tls=tls) as server:
                    client = server.client()
                    client.chat("hi")
                    client.chat("hi")
                    self.assertEqual(server.connections, 1)
            self.check_replaced(lambda conn: conn.close())
        finally:
            if poll:
                select.poll = poll

    def test_after_an_error(self):
        """An error whose body was read leaves the connection for the next call."""
        with Server([answer(404, {"error": "no"}), completion()]) as server:
            client = server.client()
            self.assertRaises(sc.NotFoundError, client.chat, "hi")
            client.chat("hi")
            self.assertEqual(server.connections, 1)

    def test_after_an_empty_answer(self):
        """So does an answer without a body, by its length or its status."""
        for empty in (answer(404, ""), answer(200, ""),
                      lambda conn: conn.raw(b"HTTP/1.1 204 No content\r\n\r\n")):
            with Server([empty, completion()]) as server:
                client = server.client()
                with contextlib.suppress(sc.NotFoundError):
                    self.assertIsNone(client.request("DELETE", "/thing"))
                client.chat("hi")
                self.assertEqual(server.connections, 1)

    def test_through_connect(self):
        """A proxy's tunnel is kept as well: one CONNECT for several calls and streams."""
        with Server([completion(), chunks("a"), completion()], tls="localhost") as server:
            with Proxy(to=server) as proxy:
                client = server.client(proxy=proxy.url)
                client.chat("hi")
                list(client.stream_chat("hi"))
                client.chat("hi")
                self.assertEqual((server.connections, len(server.requests)), (1, 3))
                self.assertEqual((proxy.connections, len(proxy.requests)), (1, 1))

    def test_connection_close(self):
        """A connection that the server says it closes is not used again."""
        closing = answer(headers={"Connection": "close"})
        for first in (lambda conn: (closing(conn), conn.close()), closing):
            with Server([first, completion()]) as server:
                client = server.client()
                client.chat("hi")
                self.assertEqual(client.chat("hi").meta.attempts, 1)
                self.assertEqual(server.connections, 2)

    def check_replaced(self, *endings, **options):
        """Check that a kept connection that ended so is replaced without a retry."""
        for ending in endings:
            with Server([lambda conn: (conn.send_json(completion()), ending(conn)),
                         completion("second")], **options) as server:
                client = server.client()
                client.chat("hi")
                soon(lambda: server.alive == 0)
                reply = client.chat("hi")
                self.assertEqual((reply.text, reply.meta.attempts), ("second", 1))
                self.assertEqual(server.connections, 2)

    def test_stale(self):
        """A connection that the server closed or reset meanwhile is replaced unnoticed."""
        self.check_replaced(lambda conn: conn.close(), lambda conn: conn.reset())

    def test_stale_tls(self):
        """The same over TLS."""
        self.check_replaced(lambda conn: conn.close(), lambda conn: conn.reset(),
                            tls="localhost")

    def test_stale_tunnel(self):
        """A tunnel that was closed meanwhile is replaced with its CONNECT and credentials."""
        with Server([lambda conn: (conn.send_json(completion()), conn.close()), completion()],
                    tls="localhost") as server, Proxy(to=server, auth="u:p") as proxy:
            client = server.client(proxy=proxy.url.replace("//", "//u:p@"))
            client.chat("hi")
            soon(lambda: proxy.alive == 0)
            self.assertEqual(client.chat("hi").meta.attempts, 1)
            self.assertEqual((server.connections, proxy.connections), (2, 2))

    def test_closed_as_the_request_arrives(self):
        """A kept connection that ends on the next request's arrival is replaced unnoticed."""
        for ending in (lambda conn: conn.close(), lambda conn: conn.reset()):
            with Server([completion(), ending, completion("second")]) as server:
                client = server.client()
                client.chat("hi")
                reply = client.chat("hi")
                self.assertEqual((reply.text, reply.meta.attempts), ("second", 1))

    def test_closed_in_mid_request(self):
        """The same while a long request is on its way."""
        def first(conn):
            conn.send_json(completion())
            conn.sock.recv(1)
            conn.reset()

        with Server([first, completion("second")]) as server:
            client = server.client()
            client.chat("hi")
            reply = client.chat("x" * (4 << 20))
            self.assertEqual((reply.text, reply.meta.attempts), ("second", 1))

    def test_replaced_only_once(self):
        """The replacement is a fresh connection: its failure is the call's failure."""
        with Server([completion(), lambda conn: conn.close()]) as server:
            client = server.client()
            client.chat("hi")
            with self.assertRaises(sc.APIConnectionError) as caught:
                client.chat("hi")
            self.assertEqual((caught.exception.attempts, len(server.requests)), (1, 3))

    def test_kept_connection_that_is_silent(self):
        """Silence on a kept connection is silence: the request does not go out twice."""
        with Server([completion(), lambda conn: conn.gone()]) as server:
            client = server.client(timeout=0.2)
            client.chat("hi")
            self.assertRaises(sc.APITimeoutError, client.chat, "hi")
            self.assertEqual(len(server.requests), 2)

    def together(self, client, count):
        """Make so many calls at once, and return their answers' texts."""
        texts = []
        threads = [threading.Thread(target=lambda: texts.append(client.chat("hi").text))
                   for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return texts

    def test_idle_connections(self):
        """At most 32 idle connections are kept."""
        together = threading.Barrier(40)

        def handler(conn):
            together.wait(5)
            conn.send_json(completion())

        with Server(handler) as server:
            client = server.client()
            self.assertEqual(len(self.together(client, 40)), 40)
            self.assertEqual(server.connections, 40)
            self.assertTrue(soon(lambda: server.alive == 32), server.alive)
            client.close()
            self.assertTrue(soon(lambda: server.alive == 0), server.alive)

    def test_several_stale_connections(self):
        """When all kept connections have ended, the next call still counts one attempt."""
        together = threading.Barrier(4)

        def handler(conn):
            together.wait(5)
            conn.send_json(completion())
            conn.close()

        with Server([handler] * 4 + [completion()]) as server:
            client = server.client()
            self.together(client, 4)
            self.assertEqual(client.chat("hi").meta.attempts, 1)

    def test_idle_seconds(self):
        """No connection is used again after 60 s."""
        self.assertEqual(sc.transport.IDLE_SECONDS, 60)
        with Server() as server:
            client = server.client()
            client.chat("hi")
            with mock.patch.object(sc.transport, "IDLE_SECONDS", 0.01):
                time.sleep(0.02)
                self.assertEqual(client.chat("hi").meta.attempts, 1)
            self.assertEqual(server.connections, 2)
            self.assertTrue(soon(lambda: server.alive == 1))

    def test_timeouts_are_the_calls_own(self):
        """A kept connection serves each call with that call's time-outs."""
        def slow(conn):
            conn.wait(0.2)
            conn.send_json(completion())

        with Server([completion(), slow, slow]) as server:
            client = server.client(timeout=0.1)
            client.chat("hi")
            client.chat("hi", timeout=5)
            self.assertRaises(sc.APITimeoutError, client.chat, "hi")
            self.assertEqual(server.connections, 1)

    def test_left_stream(self):
        """A stream left half-way closes its connection; the next call uses another."""
        seen = []

        def handler(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            seen.append(conn.gone())

        with Server([handler, completion()]) as server:
            client = server.client()
            with client.stream_chat("hi") as stream:
                next(stream)
            client.chat("hi")
            self.assertEqual(server.connections, 2)
            self.assertTrue(soon(lambda: seen == [True]))

    def test_stream_that_outlives_its_client(self):
        """A stream may be read after its client's close()."""
        with Server([chunks("a", "b")]) as server:
            client = server.client()
            stream = client.stream_chat("hi")
            client.close()
            self.assertEqual(stream.completion().text, "ab")

    def test_close(self):
        """close() ends the idle connections, twice is as good as once; calls then fail."""
        with Server() as server:
            with server.client() as client:
                client.chat("hi")
                self.assertEqual(server.alive, 1)
            self.assertTrue(soon(lambda: server.alive == 0))
            client.close()
            self.assertRaises(RuntimeError, client.chat, "hi")
            self.assertRaises(RuntimeError, client.stream_chat, "hi")
            self.assertRaises(RuntimeError, client.request, "GET", "/models")
            self.assertEqual(len(server.requests), 1)


class Sharing(unittest.TestCase):
    """Threads, pickles and forks."""

    def test_pickles_share_connections(self):
        """Clients unpickled from equal settings in one process share their connections."""
        with Server() as server:
            data = pickle.dumps(server.client())
            clients = [pickle.loads(data) for _ in range(3)]
            for client in clients:
                self.assertEqual(client.chat("hi").text, "hello")
            self.assertEqual(server.connections, 1)
            for client in clients:
                client.close()

    def test_closing_one_pickle(self):
        """Closing one of them leaves the others in working order."""
        with Server() as server:
            data = pickle.dumps(server.client())
            first, second = pickle.loads(data), pickle.loads(data)
            first.chat("hi")
            first.close()
            self.assertRaises(RuntimeError, first.chat, "hi")
            self.assertEqual(second.chat("hi").text, "hello")
            second.close()

    def test_pickle_with_an_ssl_context(self):
        """A client with an ssl_context refuses to pickle, and says so."""
        client = sc.SyntheticClient(KEY, ssl_context=ssl.create_default_context())
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            with self.assertRaisesRegex(TypeError, "ssl_context"):
                pickle.dumps(client, protocol)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    def test_fork(self):
        """A forked child opens its own connections, and what it closes stays open elsewhere."""
        program = """if 1:
            import os, sys
            client = SyntheticClient("k", base_url=sys.argv[1], ca_file=sys.argv[2], model="m")
            client.chat("parent")
            stream = client.stream_chat("stream")
            next(stream)
            if not os.fork():
                client.chat("child")
                client.close()
                stream.close()
                del stream
                sys.exit(0)
            assert os.wait()[1] == 0
            assert stream.completion().text == "ab"
            client.chat("parent")
        """

        def check(tls):
            said = []

            def handler(conn):
                said.append((conn.sock.getpeername(), conn.json["messages"][0]["content"]))
                conn.send_sse(chunks("a", "b")) if conn.json.get("stream") else answer()(conn)

            with Server(handler, tls=tls) as server:
                # without -X dev: CPython 3.8 itself does not survive a fork with it
                run_program(program, server.base_url, CA_FILE, flags=("-W", "error"))
            peers = {}
            for peer, text in said:
                peers.setdefault(peer, []).append(text)
            self.assertEqual(sorted(peers.values()), [["child"], ["parent", "stream", "parent"]])

        at_once(self, check, [None, "localhost"])


class Proxies(unittest.TestCase):

    def test_plain(self):
        """http_proxy carries plain http, key and all, for a host that is not loopback."""
        with Server() as server, Proxy(to=server) as proxy, environ(http_proxy=proxy.url):
            client = server.client(base_url="http://api.example.test/v1", allow_http=True)
            client.chat("hi")
            self.assertEqual(proxy.requests[0].path,
                             "http://api.example.test/v1/chat/completions")
            self.assertEqual(server.requests[0].headers["host"], "api.example.test")
            self.assertEqual(server.requests[0].headers["authorization"], "Bearer " + KEY)

    def test_tunnel(self):
        """https_proxy carries TLS by CONNECT; key and proxy credentials stay apart."""
        with Server(tls="wrong-host") as server, Proxy(to=server, auth="user:p@s:s") as proxy:
            url = proxy.url.replace("//", "//user:p%40s%3As@")
            with environ(https_proxy=url):
                client = server.client(base_url="https://elsewhere.example/v1")
                client.chat("hi")
            request = proxy.requests[0]
            self.assertEqual((request.method, request.path), ("CONNECT", "elsewhere.example:443"))
            self.assertNotIn("authorization", request.headers)
            self.assertNotIn("proxy-authorization", server.requests[0].headers)
            self.assertEqual(server.requests[0].path, "/v1/chat/completions")
            self.assertEqual(server.requests[0].headers["host"], "elsewhere.example")

    def test_upper_case(self):
        """HTTPS_PROXY counts as https_proxy, and an empty variable as none."""
        with Server(tls="wrong-host") as server, Proxy(to=server) as proxy:
            with environ(HTTPS_PROXY=proxy.url):
                server.client(base_url="https://elsewhere.example/v1").chat("hi")
                self.assertEqual(proxy.connections, 1)
            with environ(https_proxy=""), names("elsewhere.example"):
                url = "https://elsewhere.example:%d/v1" % server.port
                server.client(base_url=url).chat("hi")
                self.assertEqual(proxy.connections, 1)

    def test_no_proxy(self):
        """no_proxy names hosts that are reached directly, and no others."""
        with Server() as server, Proxy(to=server) as proxy, names("api.example.test"):
            url = "http://api.example.test:%d/v1" % server.port
            for no_proxy, wanted in (("api.example.test", 0), (".example.test", 0), ("*", 0),
                                     ("other.test,example.test", 0), ("other.test", 1)):
                with environ(http_proxy=proxy.url, no_proxy=no_proxy):
                    before = proxy.connections
                    server.client(base_url=url, allow_http=True).chat("hi")
                    self.assertEqual(proxy.connections - before, wanted, no_proxy)

    def test_loopback(self):
        """A loopback base_url is never reached through the environment's proxy."""
        with Server() as server, Proxy(to=server) as proxy, environ(http_proxy=proxy.url):
            for host in ("127.0.0.1", "localhost"):
                server.client(base_url="http://%s:%d/v1" % (host, server.port)).chat("hi")
            self.assertEqual((proxy.connections, len(server.requests)), (0, 2))

    def test_given(self):
        """A proxy that is given serves every host, whatever no_proxy says."""
        with Server() as server, Proxy(to=server, auth="u:p") as proxy, environ(no_proxy="*"):
            url = proxy.url.replace("//", "//u:p@")
            server.client(proxy=url).chat("hi")
            self.assertEqual(len(proxy.requests), 1)
            client = server.client(proxy=url, base_url="http://x.test/v1", allow_http=True)
            client.chat("hi")
            self.assertEqual(len(proxy.requests), 2)
            self.assertNotIn("proxy-authorization", server.requests[0].headers)

    def test_user_without_password(self):
        """A user without a password is sent as one whose password is empty (RFC 7617)."""
        with Server() as server, Proxy(to=server, auth="user:") as proxy:
            server.client(proxy=proxy.url.replace("//", "//user@")).chat("hi")

    def test_given_over_the_environment(self):
        """A proxy that is given replaces the environment's."""
        with Server() as server, Proxy(to=server) as given, Proxy(to=server) as other:
            with environ(http_proxy=other.url):
                client = server.client(proxy=given.url, base_url="http://x.test/v1",
                                       allow_http=True)
                client.chat("hi")
            self.assertEqual((given.connections, other.connections), (1, 0))

    def test_none(self):
        """An empty proxy means none, whatever the environment says."""
        with Server() as server, Proxy(to=server) as proxy, names("api.example.test"):
            with environ(http_proxy=proxy.url):
                url = "http://api.example.test:%d/v1" % server.port
                server.client(base_url=url, proxy="", allow_http=True).chat("hi")
            self.assertEqual((proxy.connections, len(server.requests)), (0, 1))

    def test_refusals(self):
        """A proxy's 407 or 403 is an APIConnectionError that names the proxy, not retried."""
        for status in (407, 403):
            with Server(tls="localhost") as server, Server(answer(status, "")) as proxy:
                with self.assertRaises(sc.APIConnectionError) as caught:
                    server.client(proxy=proxy.origin, max_retries=2).chat("hi")
                self.assertEqual((proxy.connections, caught.exception.attempts), (1, 1))
                self.assertIn("proxy", str(caught.exception))
                self.assertIn(str(status), str(caught.exception))

    def test_unreachable(self):
        """A proxy that reaches nobody is asked again, and its user's password is not blamed."""
        with Server(tls="localhost") as server, Server(answer(502, "")) as proxy:
            with self.assertRaisesRegex(sc.APIConnectionError, "502; check base_url") as caught:
                server.client(proxy=proxy.origin, max_retries=1).chat("hi")
            self.assertEqual((proxy.connections, caught.exception.attempts), (2, 2))

    def test_dead_proxy(self):
        """A proxy that is not there is named, and what sets one; without a proxy, neither is."""
        with contextlib.closing(socket.socket()) as dead:
            dead.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % dead.getsockname()[1]
            for scheme in ("http", "https"):
                for proxy, said in (
                        ("http://" + address, "through the proxy {}: .*; check base_url and the "
                         "proxy .proxy=, http_proxy, https_proxy".format(address)),
                        ("", "check base_url, and whether a proxy is needed$")):
                    client = sc.SyntheticClient(
                        KEY, base_url="%s://%s" % (scheme, address), proxy=proxy, max_retries=0)
                    with self.subTest(scheme, proxy=proxy):
                        with self.assertRaisesRegex(sc.APIConnectionError, said):
                            client.models()

    def test_plain_refusals(self):
        """Over plain http too."""
        for status in (407, 403):
            with Server(answer(status, "")) as proxy:
                with self.assertRaises(sc.SyntheticError) as caught:
                    proxy.client(base_url="http://x.test/v1", allow_http=True, max_retries=2,
                                 proxy=proxy.origin).chat("hi")
                self.assertEqual((len(proxy.requests), caught.exception.attempts), (1, 1))
                self.assertIn(str(status), str(caught.exception))

    def test_wrong_credentials(self):
        """Wrong credentials for the proxy are told from a wrong key."""
        with Server(tls="localhost") as server, Proxy(to=server, auth="u:right") as proxy:
            with self.assertRaises(sc.APIConnectionError) as caught:
                server.client(proxy=proxy.url.replace("//", "//u:wrong@")).chat("hi")
            self.assertNotIsInstance(caught.exception, sc.APIStatusError)
            self.assertEqual(len(server.requests), 0)

    def test_socks(self):
        """SOCKS is refused, given or from the environment, before anything is sent."""
        for url in ("socks5://127.0.0.1:1080", "socks5h://127.0.0.1:1080", "socks4://h:1",
                    "socks://u:p@h:1"):
            with self.assertRaisesRegex(sc.ConfigurationError, "(?i)socks"):
                sc.SyntheticClient(KEY, proxy=url, model=MODEL).chat("hi")
            with environ(https_proxy=url), self.assertRaisesRegex(sc.ConfigurationError,
                                                                  "(?i)socks"):
                sc.SyntheticClient(KEY, model=MODEL).chat("hi")

    def test_not_a_proxy(self):
        """A proxy that is no URL of a host is refused."""
        for url in ("http://", "ftp://h:1", "http://h:port", "http://h:1/path", "a b"):
            with self.subTest(url=url), self.assertRaises(sc.ConfigurationError):
                sc.SyntheticClient(KEY, proxy=url, model=MODEL).chat("hi")

    def test_proxy_without_scheme(self):
        """A proxy may be written host:port, as curl takes it."""
        with Server() as server, Proxy(to=server) as proxy:
            server.client(proxy="127.0.0.1:%d" % proxy.port).chat("hi")
            self.assertEqual(len(proxy.requests), 1)


class TLS(unittest.TestCase):

    def failure(self, tls, **options):
        """Return the error of a call to a server with this certificate."""
        with Server(tls=tls) as server:
            with self.assertRaises(sc.APIConnectionError) as caught:
                server.client(max_retries=1, **options).chat("hi")
            self.assertEqual((server.connections, caught.exception.attempts), (1, 1))
            self.assertEqual(len(server.requests), 0)
        self.assertEqual(len(str(caught.exception).splitlines()), 1)
        self.assertIn("ca_file", str(caught.exception))
        self.assertIn("SSL_CERT_FILE", str(caught.exception))
        return caught.exception

    def test_private_authority(self):
        """A private CA is trusted by ca_file, by ssl_context or by SSL_CERT_FILE."""
        with Server(tls="localhost") as server:
            server.client().chat("hi")
            context = ssl.create_default_context(cafile=CA_FILE)
            server.client(ssl_context=context).chat("hi")
            with mock.patch.dict(os.environ, SSL_CERT_FILE=CA_FILE):
                server.client(ca_file=None).chat("hi")
            url = "https://localhost:%d/v1" % server.port
            server.client(base_url=url).chat("hi")
            self.assertEqual(len(server.requests), 4)

    def test_ca_file_adds(self):
        """ca_file is trusted in addition to the system's store."""
        with Server(tls="localhost") as server:
            with mock.patch.dict(os.environ, SSL_CERT_FILE=CA_FILE):
                server.client(ca_file=OTHER_CA).chat("hi")

    def test_unknown_authority(self):
        """An unknown CA's certificate is refused, not retried; the message names the store."""
        with mock.patch.dict(os.environ, SSL_CERT_FILE=""):
            error = self.failure("localhost", ca_file=None)
            self.assertIn(ssl.get_default_verify_paths().cafile or "", str(error))
            self.assertIn(OTHER_CA, str(self.failure("localhost", ca_file=OTHER_CA)))
        with mock.patch.dict(os.environ, SSL_CERT_FILE=OTHER_CA):
            self.assertIn(OTHER_CA, str(self.failure("localhost", ca_file=None)))
        context = ssl.create_default_context(cafile=OTHER_CA)
        self.assertIn("ssl_context", str(self.failure("localhost", ssl_context=context)))

    def test_expired(self):
        """An expired certificate is refused, and said to be expired, or our clock wrong."""
        self.assertRegex(str(self.failure("expired")), "expired.*clock")

    def test_wrong_host(self):
        """A certificate for another host is refused, the host named, and where it stands."""
        self.assertRegex(str(self.failure("wrong-host")), "'127.0.0.1'; .*check base_url")

    @unittest.skipUnless(sys.version_info >= (3, 13), "strict from 3.13 on")
    def test_strict_check(self):
        """From 3.13 on the message names the strict check."""
        self.assertIn("VERIFY_X509_STRICT", str(self.failure("lax")))

    def test_own_context(self):
        """An ssl_context of the user's own is used as it is."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with Server(tls="expired") as server:
            server.client(ssl_context=context).chat("hi")

    def test_old_versions(self):
        """TLS 1.1 is not spoken, except by an ssl_context of the user's own."""
        with Server(tls="localhost") as server, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = ssl.create_default_context(cafile=CA_FILE)
            for context in (own, server.tls_context):
                context.set_ciphers("DEFAULT@SECLEVEL=0")
                context.minimum_version = ssl.TLSVersion.TLSv1
            server.tls_context.maximum_version = ssl.TLSVersion.TLSv1_1
            self.assertRaises(sc.APIConnectionError, server.client().chat, "hi")
            try:
                server.client(ssl_context=own).chat("hi")
            except sc.APIConnectionError:
                self.skipTest("this OpenSSL has no TLS 1.1")

    def test_no_tls_at_all(self):
        """https to a server that speaks http is a connection error."""
        plain = b"HTTP/1.1 400 No\r\n\r\n"
        with Server(connect=lambda conn: (conn.raw(plain), conn.gone(), conn.close())) as server:
            client = server.client(base_url=server.base_url.replace("http:", "https:"))
            self.assertRaises(sc.APIConnectionError, client.chat, "hi")

    def test_bad_ca_file(self):
        """A ca_file that is missing or holds no certificate is a ConfigurationError."""
        for path in (os.path.join(DATA, "missing.pem"), __file__):
            with Server(tls="localhost") as server:
                with self.assertRaisesRegex(sc.ConfigurationError, "ca_file") as caught:
                    server.client(ca_file=path).chat("hi")
                self.assertNotIn("speak", str(caught.exception))  # of no handshake
                self.assertEqual(len(server.requests), 0)

    def test_long_request(self):
        """A long request goes out over TLS whole."""
        with Server(tls="localhost") as server:
            server.client().chat("x" * (4 << 20))
            self.assertEqual(len(server.requests[0].json["messages"][0]["content"]), 4 << 20)

    def test_stream(self):
        """A stream over TLS hands each chunk over as it comes."""
        came = threading.Event()
        with Server(answer_when(came), tls="localhost") as server:
            stream = server.client().stream_chat("hi")
            self.assertEqual(next(stream).text, "a")
            came.set()
            self.assertEqual(stream.completion().text, "a")


class Redirects(unittest.TestCase):

    def test_same_origin(self):
        """307 and 308 within the origin are followed with method, body, key and headers."""
        for status in (307, 308):
            for name in ("Location", "location"):
                for target in ("/v2/other?q=1", "%s/v2/other?q=1"):
                    with self.subTest(status=status, name=name, target=target), Server() as server:
                        target = target.replace("%s", server.origin)
                        server.answers[:] = [answer(status, "", {name: target}), completion()]
                        reply = server.client().chat("hi", extra_headers={"X-Own": "1"})
                        self.assertEqual(reply.meta.attempts, 1)
                        first, second = server.requests
                        self.assertEqual(second.path, "/v2/other?q=1")
                        self.assertEqual((first.method, first.body, first.headers),
                                         (second.method, second.body, second.headers))

    def test_stream(self):
        """A stream follows them as well."""
        with Server([answer(307, "", {"Location": "/elsewhere"}), chunks("a")]) as server:
            self.assertEqual(server.client().stream_chat("hi").completion().text, "a")

    def test_at_most_five(self):
        """Five are followed, the sixth is an error that names its target."""
        answers = [answer(307, "", {"Location": "/r%d" % n}) for n in range(1, 6)]
        with Server(answers + [completion()]) as server:
            self.assertEqual(server.client().chat("hi").text, "hello")
        with Server([answer(308, "", {"Location": "/again"})]) as server:
            with self.assertRaisesRegex(sc.APIStatusError, "/again") as caught:
                server.client().chat("hi")
            self.assertEqual((caught.exception.status_code, len(server.requests)), (308, 6))

    def check_not_followed(self, server, status, target):
        with self.assertRaises(sc.APIStatusError) as caught:
            server.client(max_retries=2).chat("hi")
        self.assertIs(type(caught.exception), sc.APIStatusError)
        self.assertEqual((caught.exception.status_code, len(server.requests)), (status, 1))
        self.assertIn(target, str(caught.exception))

    def test_other_statuses(self):
        """301, 302 and 303 are errors that name their target, also within the origin."""
        for status in (300, 301, 302, 303):
            with self.subTest(status=status):
                with Server(answer(status, "", {"Location": "/there"})) as server:
                    self.check_not_followed(server, status, "/there")

    def test_same_origin_spelt_otherwise(self):
        """The letters of a scheme and host may be large or small: it is the same origin."""
        with Server() as server:
            origin = server.origin.replace("127.0.0.1", "localhost")
            server.answers[:] = [answer(307, "", {"Location": origin.upper() + "/x"}), answer()]
            server.client(base_url=origin).chat("hi")
            self.assertEqual(server.requests[1].path, "/x")

    def test_fragment(self):
        """A target's fragment is not sent."""
        with Server([answer(308, "", {"Location": "/x?a=1#part"}), answer()]) as server:
            server.client().chat("hi")
            self.assertEqual(server.requests[1].path, "/x?a=1")

    def test_repeated_target(self):
        """A target that is said twice is followed; the first one counts."""
        head = b"HTTP/1.1 307 R\r\nContent-Length: 0\r\nLocation: /x\r\nLocation: %s\r\n\r\n"
        for second in (b"/x", b"/y"):
            with Server([head % second, answer()]) as server:
                server.client().chat("hi")
                self.assertEqual(server.requests[1].path, "/x")

    def test_other_origins(self):
        """Another host, port or scheme is never followed, and never sees the key."""
        with Server() as other:
            for status in (301, 302, 307, 308):
                with Server() as server:
                    for target in (other.origin + "/v1/chat/completions",
                                   other.origin.replace("http", "https") + "/x",
                                   "//127.0.0.1:%d/x" % other.port,
                                   server.origin + "0/x", server.origin + ".evil.test/x",
                                   server.origin + "@127.0.0.1:%d/x" % other.port,
                                   server.origin.replace("http", "https") + "/x",
                                   "file:///etc/hostname", "data:text/plain,x"):
                        with self.subTest(status=status, target=target):
                            del server.requests[:]
                            server.answers[:] = [answer(status, "", {"Location": target})]
                            shown = target.split("@")[-1].replace("http:", "").lstrip("/")
                            self.check_not_followed(server, status, shown)
            self.assertEqual(other.connections, 0)

    def test_no_target(self):
        """A redirect without a target is the status's error."""
        for status in (302, 307, 308):
            with Server(answer(status, "")) as server:
                self.check_not_followed(server, status, str(status))


class Bodies(unittest.TestCase):
    """Framing and compression."""

    BODY = json.dumps(completion("h\u00e9llo " * 50)).encode()

    def read(self, data, **options):
        """Return the text of an answer sent as these bytes, after which the server closes."""
        with Server(lambda conn: (conn.raw(data), conn.close())) as server:
            return server.client(**options).chat("hi").text

    def packed(self, encoding, body):
        fields = "HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
        return (fields % (encoding, len(body))).encode() + body

    @staticmethod
    def raw_deflate(body, level=6):
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
        return packer.compress(body) + packer.flush()

    def test_framing(self):
        """Bodies by Content-Length, in chunks, until close, by HTTP/1.0 and 1.1."""
        body, length = self.BODY, b"Content-Length: %d\r\n\r\n" % len(self.BODY)
        in_chunks = b"%x\r\n%s\r\n%X;name=value\r\n%s\r\n0\r\n" % (
            100, body[:100], len(body) - 100, body[100:])
        head = b"HTTP/1.1 200 OK\r\n"
        for data in (
            head + length + body,
            head + b"\r\n" + body,
            b"HTTP/1.0 200 OK\r\n" + length + body,
            b"HTTP/1.0 200 OK\r\n\r\n" + body,
            b"HTTP/1.1 200\r\n" + length + body,
            head + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks + b"\r\n",
            head + b"transfer-encoding: Chunked\r\n\r\n" + in_chunks + b"Trailer: x\r\n\r\n",
            head + b"Content-Length: abc\r\nConnection: close\r\n\r\n" + body,
        ):
            with self.subTest(data=data[:60]):
                self.assertEqual(self.read(data), "h\u00e9llo " * 50)

    def test_repeated_length(self):
        """Of several lengths the first counts, and nothing waits for more."""
        body = json.dumps(completion("a")).encode()
        for second in (len(body), 3, len(body) + 3):
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Length: %d\r\n\r\n"
            with Server(head % (len(body), second) + body) as server:
                client = server.client(timeout=2)
                self.assertEqual([client.chat("hi").text for _ in "12"], ["a", "a"])
                self.assertEqual(server.connections, 1)

    def test_repeated_encoding(self):
        """A compression that is said twice, or beside none, is one."""
        body = self.BODY
        for encodings, data in (
                (("gzip", "gzip"), gzip.compress(body)), (("identity", "identity"), body),
                (("identity", "gzip"), gzip.compress(body)), (("GZIP", ""), gzip.compress(body))):
            head = "HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Encoding: %s\r\n"
            length = "Content-Length: %d\r\n\r\n" % len(data)
            with self.subTest(encodings):
                self.assertEqual(
                    self.read((head % encodings + length).encode() + data), "h\u00e9llo " * 50)

    def test_interim_answers(self):
        """Interim answers (RFC 9110, 15.2) are passed over."""
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(self.BODY), self.BODY)
        for interim in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Wait\r\nX: y\r\n\r\n",
                        b"HTTP/1.1 103 Early hints\r\nLink: <x>\r\n\r\n"):
            with self.subTest(interim=interim):
                self.assertEqual(self.read(interim * 2 + data), "h\u00e9llo " * 50)

    def test_byte_by_byte(self):
        """An answer may come in pieces of any size."""
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        data += b"".join(b"1\r\n%c\r\n" % byte for byte in self.BODY[:40])
        data += b"%x\r\n%s\r\n0\r\n\r\n" % (len(self.BODY) - 40, self.BODY[40:])
        with Server(lambda conn: conn.drip(data, 0)) as server:
            self.assertEqual(server.client().chat("hi").text, "h\u00e9llo " * 50)

    def test_http_1_0_keeps_nothing(self):
        """An HTTP/1.0 answer's connection is not used again."""
        data = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(self.BODY), self.BODY)
        with Server([data, completion()]) as server:
            client = server.client()
            client.chat("hi")
            client.chat("hi")
            self.assertEqual(server.connections, 2)

    def test_close_counts_first(self):
        """Where the server says both that it closes and that it does not, it closes."""
        for version in (b"1.0", b"1.1"):
            for tokens in ((b"close", b"keep-alive"), (b"keep-alive", b"close")):
                lines = b"HTTP/%s 200 OK\r\nConnection: %s\r\nConnection: %s\r\n" % (
                    (version,) + tokens)
                data = b"%sContent-Length: %d\r\n\r\n%s" % (lines, len(self.BODY), self.BODY)
                with self.subTest(version, tokens=tokens), Server(data) as server:
                    client = server.client()
                    client.chat("hi")
                    client.chat("hi")
                    self.assertEqual(server.connections, 2)

    def test_cut(self):
        """A body that is shorter than its framing says is a StreamInterruptedError."""
        head = b"HTTP/1.1 200 OK\r\n"
        body = self.BODY
        for data in (
            head + b"Content-Length: %d\r\n\r\n%s" % (len(body) + 1, body),
            head + b"Content-Length: 100\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body),
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (len(body) + 5, body),
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0" % (len(body), body),
        ):
            with self.subTest(data=data[:60]), self.assertRaises(sc.StreamInterruptedError):
                self.read(data)

    def test_broken_chunks(self):
        """A chunk whose size is none, or that does not end where it should, is the same."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        size, body = len(self.BODY), self.BODY
        for data in (
            b"zz\r\n%s" % body, b"-5\r\n%s" % body, b"\r\n%s" % body, b"%x\n" % (1 << 80) + body,
            b"0x%x\r\n%s\r\n0\r\n\r\n" % (size, body), b"+%x\r\n%s\r\n0\r\n\r\n" % (size, body),
            b"%x\r\n%sXX0\r\n\r\n" % (size, body), b"a" * 100000, b"%x\r\n%s" % (5, body),
        ):
            with self.subTest(data=data[:30]), self.assertRaises(sc.StreamInterruptedError):
                self.read(head + data)

    def test_gzip_and_deflate(self):
        """gzip, with several members too, and deflate with and without zlib's head."""
        body = self.BODY
        parts = (body[:9], b"", body[9:200], body[200:])
        members = b"".join(gzip.compress(part) for part in parts)
        for encoding, data in (
            ("gzip", gzip.compress(body)), ("GZip", gzip.compress(body)),
            ("x-gzip", gzip.compress(body)), ("gzip", members),
            ("deflate", zlib.compress(body)), ("deflate", zlib.compress(body, 0)),
            ("deflate", self.raw_deflate(body)), ("deflate", self.raw_deflate(body, 0)),
            ("deflate", self.raw_deflate(body + b" " * 70000, 0)), ("identity", body),
        ):
            with self.subTest(encoding=encoding, data=data[:9]):
                self.assertEqual(self.read(self.packed(encoding, data)), "h\u00e9llo " * 50)

    def test_gzip_of_round_sizes(self):
        """A packed body of exactly a power of two, or one byte beside it, is read whole."""
        answers = []
        for size in (1 << 16, 1 << 20, 1 << 21):
            for length in (size - 1, size, size + 1):
                body = self.BODY + b" " * (length - len(self.BODY))
                halves = gzip.compress(body[:size // 2]) + gzip.compress(body[size // 2:])
                answers += [self.packed("gzip", gzip.compress(body)), self.packed("gzip", halves)]
        program = """if 1:  # in a process of its own, since the fault once was an endless loop
            import sys
            client = SyntheticClient("k", base_url=sys.argv[1], model="m")
            for _ in range(int(sys.argv[2])):
                assert client.chat("hi").text == "h\u00e9llo " * 50
        """
        with Server(answers) as server:
            run_program(program, server.base_url, str(len(answers)))

    def test_gzip_in_chunks(self):
        """Compression inside chunked framing, split anywhere."""
        data = gzip.compress(self.BODY)
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = [data[start:start + 7] for start in range(0, len(data), 7)]
        data = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        self.assertEqual(self.read(head + data + b"0\r\n\r\n"), "h\u00e9llo " * 50)

    def test_cut_gzip(self):
        """A packed body that is cut, wherever, is a StreamInterruptedError."""
        data = gzip.compress(self.BODY)
        for length in (1, 5, 12, len(data) // 2, len(data) - 8, len(data) - 1):
            with self.subTest(length=length), self.assertRaises(sc.StreamInterruptedError):
                self.read(self.packed("gzip", data[:length]))

    def test_broken_gzip(self):
        """A packed body that cannot be unpacked, or in an unknown way, is an error."""
        data = gzip.compress(self.BODY)
        broken = data[:-8] + bytes(8)
        for encoding, body in (("gzip", b"plain text"), ("gzip", broken), ("br", b"x"),
                               ("gzip", data[:30] + b"\xff" * 9 + data[39:])):
            with self.subTest(encoding=encoding, body=body[:9]):
                with self.assertRaises((sc.StreamInterruptedError, sc.ResponseError)):
                    self.read(self.packed(encoding, body))

    def test_streamed_gzip(self):
        """A packed stream hands over each event as it arrives, and is kept alive at its end."""
        for wbits in (31, 15, -15):
            came = [threading.Event(), threading.Event()]

            def handler(conn):
                packer = zlib.compressobj(6, zlib.DEFLATED, wbits)
                conn.start_sse(headers={"Content-Encoding": "gzip" if wbits > 15 else "deflate"})
                for item, event in zip(chunks("a"), came):
                    data = packer.compress(b"data: %s\n\n" % json.dumps(item).encode())
                    conn.part(data + packer.flush(zlib.Z_SYNC_FLUSH))
                    conn.wait(event, 5)
                conn.part(packer.compress(b"data: [DONE]\n\n") + packer.flush())
                conn.raw(b"0\r\n\r\n")

            with self.subTest(wbits=wbits), Server([handler, completion()]) as server:
                client = server.client()
                stream = client.stream_chat("hi")
                for event in came:
                    next(stream)
                    event.set()
                self.assertEqual(stream.completion().text, "a")
                client.chat("hi")
                self.assertEqual(server.connections, 1)

    def test_cut_streamed_gzip(self):
        """A packed stream that is cut raises with what had come."""
        events = b"".join(b"data: %s\n\n" % json.dumps(item).encode() for item in chunks("a")[:1])

        def handler(conn):
            packer = zlib.compressobj(6, zlib.DEFLATED, 31)
            conn.start_sse(headers={"Content-Encoding": "gzip"})
            conn.part(packer.compress(events) + packer.flush(zlib.Z_SYNC_FLUSH))
            conn.raw(b"0\r\n\r\n")

        with Server(handler) as server:
            with self.assertRaises(sc.StreamInterruptedError) as caught:
                list(server.client().stream_chat("hi"))
        self.assertEqual(caught.exception.partial.text, "a")

    def test_accept_encoding(self):
        """The client asks for no compression that it does not know."""
        with Server() as server:
            server.client().chat("hi")
        offered = server.requests[0].headers.get("accept-encoding", "identity")
        names = {name.split(";")[0].strip() for name in offered.split(",")}
        self.assertLessEqual(names, {"gzip", "deflate", "identity"})

    def test_too_long(self):
        """A body over max_response_bytes is a ResponseError; one of just that size is not."""
        body = self.BODY
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.read(head + body, max_response_bytes=len(body))
        with self.assertRaisesRegex(sc.ResponseError, "max_response_bytes"):
            self.read(head + body, max_response_bytes=len(body) - 1)
        with self.assertRaisesRegex(sc.ResponseError, "max_response_bytes"):
            self.read(b"HTTP/1.1 200 OK\r\n\r\n" + body, max_response_bytes=100)

    def test_bomb(self):
        """A small packed body that would unpack to a huge one is stopped at the limit."""
        bomb = self.packed("gzip", gzip.compress(bytes(64 << 20), 1))
        traced_memory = trace_memory(self)
        with self.assertRaisesRegex(sc.ResponseError, "max_response_bytes"):
            self.read(bomb, max_response_bytes=1 << 20)
        self.assertLess(traced_memory()[1], 12 << 20)

    def test_long_event(self):
        """A stream's event over max_response_bytes is a ResponseError with what had come."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            while True:
                conn.part(b"data: " + b"x" * 10000)

        with Server(handler) as server:
            with self.assertRaises(sc.ResponseError) as caught:
                list(server.client(max_response_bytes=50000).stream_chat("hi"))
        self.assertEqual(caught.exception.partial.text, "a")

    def test_stream_is_not_bounded_as_a_whole(self):
        """A stream may be longer than max_response_bytes, each event being shorter."""
        with Server([chunks(*["x" * 300] * 20)]) as server:
            stream = server.client(max_response_bytes=1000).stream_chat("hi")
            self.assertEqual(len(stream.completion().text), 6000)

    def test_cut_head(self):
        """A head that breaks off is a lost connection, at any byte, and no fault of base_url."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        for size in range(len(head)):
            with self.subTest(size=size), self.assertRaises(sc.APIConnectionError) as caught:
                self.read(head[:size])
            self.assertIn("closed the connection", str(caught.exception))

    def test_no_http(self):
        """Headers without end, or too many, are an error and not memory."""
        for data in (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200000,
                     b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
                     b"HTTP/1.1 " + b"2" * 200000):
            with self.subTest(data=data[:30]), self.assertRaises(sc.ResponseError):
                self.read(data)


class Time(unittest.TestCase):

    HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"

    def timed_out(self, phase, handler=None, connect=None, stream=False, tls=None, **options):
        """Check the phase of a call's time-out, and that it comes in time; return the error."""
        with Server(handler, connect=connect, tls=tls) as server:
            client = server.client(**options)
            begun = time.monotonic()
            with self.assertRaises(sc.APITimeoutError) as caught:
                if stream:
                    list(client.stream_chat("hi"))
                else:
                    client.chat("hi")
            self.assertLess(time.monotonic() - begun, 1.5)
            self.assertLessEqual(len(server.requests), 1)
        self.assertEqual(caught.exception.phase, phase)
        return caught.exception

    def test_silence(self):
        """Silence before, in and after the headers ends the call after `timeout`."""
        def check(data):
            error = self.timed_out(
                "silence", lambda conn: (conn.raw(data), conn.gone()), timeout=0.08)
            self.assertIn("timeout", str(error))
            self.assertIsNone(error.partial)

        at_once(self, check, [
            b"", b"H", b"HTTP/1.1 200 OK\r\nContent-Le", self.HEAD, self.HEAD + b"{",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5"])

    def test_silence_in_a_stream(self):
        """Silence in a stream raises with what had come."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            conn.gone()

        error = self.timed_out("silence", handler, stream=True, timeout=0.15)
        self.assertEqual(error.partial.text, "a")

    def test_nothing_is_taken(self):
        """A server that does not read the request is silent too."""
        with Server(connect=lambda conn: conn.wait(5)) as server:
            begun = time.monotonic()
            with self.assertRaises(sc.APITimeoutError) as caught:
                server.client(timeout=0.1).chat("x" * (8 << 20))
            self.assertLess(time.monotonic() - begun, 2)
        self.assertEqual(caught.exception.phase, "silence")

    def test_silence_starts_anew(self):
        """An answer that keeps coming may take longer than `timeout`."""
        body = json.dumps(completion()).encode()

        def slowly(conn):
            conn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            for start in range(0, len(body), 60):
                conn.wait(0.05)
                conn.raw(body[start:start + 60])

        with Server(slowly) as server:
            self.assertEqual(server.client(timeout=0.2).chat("hi").text, "hello")

    def test_per_call(self):
        """A call's own timeout and deadline replace the client's."""
        with Server(lambda conn: conn.gone()) as server:
            client = server.client(timeout=30)
            for option, phase in (("timeout", "silence"), ("deadline", "deadline")):
                with self.assertRaises(sc.APITimeoutError) as caught:
                    client.chat("hi", **{option: 0.1})
                self.assertEqual(caught.exception.phase, phase)

    def test_silent_handshake(self):
        """A TLS handshake that is never answered ends after connect_timeout."""
        self.timed_out("connect", connect=stall, tls="localhost", connect_timeout=0.15)

    def test_slow_handshake(self):
        """One that is answered drop by drop ends after connect_timeout, too."""
        record = b"\x16\x03\x03\x40\x00" + bytes(100)
        self.timed_out("connect", connect=lambda conn: conn.drip(record), tls="localhost",
                       connect_timeout=0.2)

    def test_silent_proxy(self):
        """A CONNECT that is never answered, or drop by drop, ends after connect_timeout."""
        drop = b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200

        def check(reply):
            with Server(reply) as proxy:
                begun = time.monotonic()
                with self.assertRaises(sc.APITimeoutError) as caught:
                    proxy.client(base_url="https://x.test/v1", proxy=proxy.origin,
                                 connect_timeout=0.15).chat("hi")
                self.assertLess(time.monotonic() - begun, 1.5)
            self.assertEqual(caught.exception.phase, "connect")

        at_once(self, check, [lambda conn: conn.gone(), lambda conn: conn.drip(drop)])

    def test_connect_timeout_is_over_with_the_connection(self):
        """connect_timeout does not bound the answer."""
        with Server(lambda conn: (conn.wait(0.25), conn.send_json(completion())),
                    tls="localhost") as server:
            server.client(connect_timeout=0.2).chat("hi")

    def test_deadline(self):
        """However slowly a server drips, the deadline ends the call."""
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

        def check(data):
            head = data[:data.find(b"\r\n\r\n") + 4 or None] if data[9:12] == b"200" else b""
            error = self.timed_out(
                "deadline", lambda conn: (conn.raw(head), conn.drip(data[len(head):])),
                deadline=0.1)
            self.assertIn("deadline", str(error))

        at_once(self, check, [
            b"HTTP/1.1 200 " + b"O" * 100, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50,
            b"HTTP/1.1 100 Continue\r\n\r\n" * 9, chunked + b"1\r\n \r\n" * 50,
            chunked + b"5;" + b"x" * 200, chunked + b"0\r\n" + b"X: y\r\n" * 50,
            self.HEAD + b" " * 200])

    def test_deadline_of_a_stream(self):
        """A stream that goes on is ended by the deadline, with what had come."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            while True:
                conn.event(b": still there\n\n")
                conn.wait(0.02)

        error = self.timed_out("deadline", handler, stream=True, deadline=0.15)
        self.assertEqual(error.partial.text, "a")

    def test_deadline_of_packed_nothing(self):
        """A packed body that unpacks to nothing for ever is ended by the deadline."""
        def handler(conn):
            conn.start_sse(headers={"Content-Encoding": "gzip"})
            while True:
                conn.part(gzip.compress(b""))
                conn.wait(0.01)

        self.timed_out("deadline", handler, stream=True, deadline=0.15)

    def test_deadline_of_a_handshake(self):
        """The deadline bounds connecting, where it comes before connect_timeout."""
        self.timed_out("deadline", connect=stall, tls="localhost", deadline=0.15)


class Requests(unittest.TestCase):
    """What goes out."""

    def test_user_agent(self):
        """The User-Agent names the package and the Python, and not urllib."""
        with Server() as server:
            server.client().chat("hi")
        expected = "synthetic-client/%s Python/%d.%d" % (
            (sc.__version__,) + tuple(sys.version_info[:2]))
        self.assertEqual(server.requests[0].headers["user-agent"], expected)

    def test_headers(self):
        """A request has one Host with its port, JSON's type, its length and the key."""
        with Server() as server:
            server.client().chat("hi")
        headers = server.requests[0].headers
        self.assertEqual(headers["host"], "127.0.0.1:%d" % server.port)
        self.assertEqual(headers["content-type"], "application/json")
        self.assertEqual(headers["authorization"], "Bearer " + KEY)
        self.assertEqual(headers["content-length"], str(len(server.requests[0].body)))
        self.assertNotEqual(headers.get("connection", "keep-alive").lower(), "close")

    def test_default_ports(self):
        """https without a port is dialled at 443, http at 80."""
        fault = socket.gaierror(socket.EAI_NONAME, "unknown name")
        for url, port in (("https://x.test/v1", 443), ("http://x.test/v1", 80),
                          ("https://x.test:8443/v1", 8443), (None, 443)):
            with mock.patch("socket.getaddrinfo", side_effect=fault) as lookup:
                client = sc.SyntheticClient(KEY, base_url=url, model=MODEL, max_retries=0,
                                            allow_http=True)
                self.assertRaises(sc.APIConnectionError, client.chat, "hi")
            host = "x.test" if url else "api.synthetic.new"
            self.assertEqual(lookup.call_args[0][:2], (host, port))

    def test_socket_options(self):
        """Sockets have TCP_NODELAY and TCP keep-alive."""
        made = []
        real = socket.socket.setsockopt

        def setsockopt(sock, level, name, value):
            made.append((level, name, bool(value)))
            return real(sock, level, name, value)

        with mock.patch("socket.socket.setsockopt", setsockopt), Server() as server:
            del made[:]
            client = server.client()
            with mock.patch.object(server, "serve", lambda sock: Server.serve(server, sock)):
                client.chat("hi")
        self.assertIn((socket.SOL_SOCKET, socket.SO_KEEPALIVE, True), made)
        nodelay = made.count((socket.IPPROTO_TCP, socket.TCP_NODELAY, True))
        self.assertEqual(nodelay, 2)  # the server's own socket sets it as well

    def test_body_over_the_cap(self):
        """A body over 10 MiB for api.synthetic.new is refused before anything is sent."""
        client = sc.SyntheticClient(KEY, model=MODEL, max_retries=0)
        self.addCleanup(client.close)
        with no_network():
            with self.assertRaisesRegex(sc.ConfigurationError, "10 MiB|10485760|10,485,760"):
                client.chat("x" * (10 << 20))
            with self.assertRaises(sc.APIConnectionError):
                client.chat("x" * ((10 << 20) - 1000))

    def test_body_over_the_cap_elsewhere(self):
        """Other hosts have no such cap."""
        with Server() as server:
            server.client().chat("x" * (10 << 20))
            self.assertGreater(len(server.requests[0].body), 10 << 20)

    def test_refused_in_mid_body(self):
        """A server that answers before it has read a large body is heard."""
        def connect(conn):
            conn.raw(b"HTTP/1.1 413 Too large\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
            conn.sock.shutdown(socket.SHUT_WR)
            conn.gone()
            conn.close()

        with Server(connect=connect) as server:
            with self.assertRaises(sc.APIStatusError) as caught:
                server.client().chat("x" * (4 << 20))
        self.assertEqual(caught.exception.status_code, 413)

    def test_dns_failure(self):
        """A name that cannot be looked up is an APIConnectionError that says so."""
        with no_network(), self.assertRaises(sc.APIConnectionError) as caught:
            sc.SyntheticClient(KEY, model=MODEL, max_retries=0).chat("hi")
        self.assertIn("look", str(caught.exception))
        self.assertIsInstance(caught.exception.__cause__, socket.gaierror)


class PlainHTTP(unittest.TestCase):

    def test_refused(self):
        """A key never travels over plain http to a host that is not loopback."""
        for host in ("api.example.test", "10.0.0.1", "localhost.example.test", "0.0.0.0",
                     "127.0.0.1.example.test", "128.0.0.1", "[2001:db8::1]", "[::]"):
            with self.subTest(host=host), no_network():
                with self.assertRaisesRegex(sc.ConfigurationError, "allow_http"):
                    sc.SyntheticClient(KEY, base_url="http://%s/v1" % host, model=MODEL,
                                       max_retries=0).chat("hi")

    def test_allowed(self):
        """It may with allow_http, or to loopback; and no key may travel anywhere."""
        with Server() as server, names("api.example.test"):
            for host, options in (("api.example.test", {"allow_http": True}),
                                  ("127.0.0.1", {}), ("localhost", {})):
                client = server.client(base_url="http://%s:%d/v1" % (host, server.port), **options)
                client.chat("hi")
                self.assertEqual(server.requests[-1].headers["authorization"], "Bearer " + KEY)
            client = server.client(base_url="http://api.example.test:%d/v1" % server.port,
                                   api_key=None)
            client.chat("hi")
            self.assertNotIn("authorization", server.requests[-1].headers)

    def test_other_loopback_hosts(self):
        """All of 127.0.0.0/8 and ::1 are loopback."""
        for host in ("127.8.9.10", "[::1]"):
            with no_network(), self.assertRaises(sc.APIConnectionError):
                sc.SyntheticClient(KEY, base_url="http://%s/v1" % host, model=MODEL,
                                   max_retries=0).chat("hi")

    def test_header_key(self):
        """An Authorization among the headers is a key as well."""
        for options in ({"headers": {"Authorization": "Bearer x"}},):
            with no_network(), self.assertRaisesRegex(sc.ConfigurationError, "allow_http"):
                sc.SyntheticClient(base_url="http://api.example.test/v1", model=MODEL,
                                   max_retries=0, **options).chat("hi")


class Logging(unittest.TestCase):

    def test_one_line_for_each_attempt(self):
        """A DEBUG line per attempt, with method, URL without query, status, seconds, attempt."""
        soon_again = {"retry-after-ms": "1"}
        with Server([answer(503, "", soon_again), answer()]) as server:
            with self.assertLogs("synthetic_client", "DEBUG") as logs:
                server.client(max_retries=1).request("GET", "/models?secret=1")
        debug = [record for record in logs.records if record.levelno == logging.DEBUG]
        info = [record for record in logs.records if record.levelno == logging.INFO]
        self.assertEqual((len(debug), len(info), len(logs.records)), (2, 1, 3))
        for record, status, attempt in zip(debug, ("503", "200"), ("1", "2")):
            text = record.getMessage()
            self.assertIn("GET %s/models" % server.base_url, text)
            self.assertIn(status, text)
            self.assertTrue(re.search(r"\d\.\d+ ?s", text), text)
            self.assertTrue(re.search(r"attempt\D{0,3}" + attempt, text), text)
            self.assertNotIn("secret", text)
        self.assertEqual(debug[0].name, "synthetic_client")

    def test_failed_attempts(self):
        """An attempt without an answer has its DEBUG line too; content and key have none."""
        with Server(lambda conn: conn.reset()) as server:
            with self.assertLogs("synthetic_client", "DEBUG") as logs:
                self.assertRaises(sc.APIConnectionError, server.client().chat, "private words")
        self.assertEqual(len(logs.records), 1)
        self.assertNotIn("private", logs.output[0])
        self.assertNotIn(KEY[-8:], logs.output[0])

    def test_quiet(self):
        """Without a handler nothing is printed, not even at a retry."""
        code = "import sys; SyntheticClient('k', base_url=sys.argv[1], model='m').chat('hi')"
        with Server([answer(503, "", {"retry-after-ms": "1"}), answer()]) as server:
            run_program(code, server.base_url)


load_tests = together("Time")

if __name__ == "__main__":
    unittest.main()
