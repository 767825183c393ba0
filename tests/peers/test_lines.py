# SPDX-License-Identifier: MIT
"""On bad lines: two networks of their own, joined by a link that Linux cuts, slows or thins.

It wants root. `Network` is entered by a thread: what it opens then is there.
"""
import contextlib
import ctypes
import os
import subprocess
import time
import unittest

from .. import synthetic_client as sc
from ..server import Server, answer, chunks, completion
from . import parts

HERE, THERE, DARK, NOWHERE = "10.77.0.1", "10.77.0.2", "10.77.0.3", "10.99.0.1"
TEXT = "0123456789abcdef" * 4096
libc = ctypes.CDLL(None, use_errno=True)


def setUpModule():
    parts.need(commands="setpriv unshare nft tc ip", modules="trustme")
    if os.getuid():
        raise AssertionError("only root can make networks")


class Network:
    """A network namespace, held by a process that sleeps."""

    def __init__(self, test):
        self.holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
        test.addCleanup(self.end)
        self.path, self.before = "/proc/%d/ns/net" % self.holder.pid, []
        while os.readlink(self.path) == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)

    def end(self):
        self.holder.kill()
        self.holder.wait()

    def __enter__(self):
        self.before.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        file = os.open(self.path, os.O_RDONLY)
        try:
            self.move(file)
        finally:
            os.close(file)
        return self

    def __exit__(self, *exc_info):
        file = self.before.pop()
        self.move(file)
        os.close(file)

    @staticmethod
    def move(file):
        if libc.setns(file, 0):
            raise OSError(ctypes.get_errno(), "setns")

    def run(self, *command, said=None):
        with self:
            subprocess.run(command, input=said, universal_newlines=True, check=True)


class Line(unittest.TestCase):
    """Each test has a client here, a server there, and a link between them."""

    def setUp(self):
        self.here, self.there = Network(self), Network(self)
        self.here.run("ip", "link", "add", "name", "line", "type", "veth", "peer", "name", "line",
                      "netns", str(self.there.holder.pid))
        for network, address in ((self.here, HERE), (self.there, THERE)):
            network.run("ip", "address", "add", address + "/24", "dev", "line")
            for name in ("lo", "line"):
                network.run("ip", "link", "set", name, "up")

    @contextlib.contextmanager
    def serve(self, answers=None):
        """Serve there, in lockstep where no answers are given; let this thread be here."""
        with self.there:
            server = Server(answers, host=THERE) if answers else parts.Lockstep(host=THERE)
            server.__enter__()
        try:
            with self.here:
                yield server
        finally:
            self.there.run("nft", "flush", "ruleset")
            with self.there:
                server.__exit__(None, None, None)

    def client(self, server=None, host=THERE, **options):
        if server is not None:
            options.setdefault("timeout", 5.0)
            return server.client(allow_http=True, proxy="", **options)
        client = sc.SyntheticClient("key", base_url="http://%s:8080/v1" % host, model="hf:a/b",
                                    allow_http=True, **options)
        self.addCleanup(client.close)
        return client

    def filter(self, rule):
        """Apply a rule to what comes there over the line; where it drops, to what leaves too."""
        text = "flush ruleset\n"
        for hook in ("input", "output") if rule.endswith("drop") else ("input",):
            text += ("add table inet cut\n"
                     "add chain inet cut %s { type filter hook %s priority 0; }\n"
                     "add rule inet cut %s %sifname line %s\n" % (hook, hook, hook, hook[0], rule))
        self.there.run("nft", "-f", "-", said=text)

    def failure(self, kind, call, *arguments, **options):
        """Return the error that a call raises, and the seconds that it took."""
        begun = time.monotonic()
        with self.assertRaises(kind) as caught:
            call(*arguments, **options)
        return caught.exception, time.monotonic() - begun


class Connecting(Line):
    def test_no_route(self):
        """No route to the host is said in the system's words, after the retries."""
        with self.here:
            error, _ = self.failure(
                sc.APIConnectionError, self.client(host=NOWHERE, max_retries=1).chat, "hi")
        self.assertRegex(str(error), "no answer from http://10.99.0.1:8080: .*unreachable")
        self.assertEqual(error.attempts, 2)

    def test_refused_by_rule(self):
        """A firewall that refuses is an error at once, not a time-out."""
        for rule in ("icmpx type admin-prohibited", "icmpx type no-route", "tcp reset"):
            with self.subTest(rule), self.here:
                self.filter("meta l4proto tcp reject with " + rule)
                error, seconds = self.failure(
                    sc.APIConnectionError, self.client(max_retries=0).chat, "hi")
                self.assertNotIsInstance(error, sc.APITimeoutError)
                self.assertIn(THERE, str(error))
                self.assertLess(seconds, 1)

    def test_swallowed(self):
        """A host that swallows all, or is off, is a time-out of connecting, and asked again."""
        self.filter("drop")
        for host in (THERE, DARK):
            with self.subTest(host), self.here:
                client = self.client(host=host, connect_timeout=0.5, max_retries=1)
                error, seconds = self.failure(sc.APITimeoutError, client.chat, "hi")
                self.assertEqual((error.phase, error.attempts), ("connect", 2))
                self.assertIn("connect_timeout", str(error))
                self.assertLess(seconds, 3)

    def test_deadline(self):
        """deadline bounds connecting, and all retries of it."""
        self.filter("drop")
        with self.here:
            client = self.client(max_retries=9, connect_timeout=0.3, deadline=1.0)
            error, seconds = self.failure(sc.APITimeoutError, client.chat, "hi")
        self.assertGreater(error.attempts, 1)
        self.assertLess(seconds, 1.5)

    def test_environment(self):
        """no_proxy keeps an address from the environment's proxy; without it that is named."""
        proxy = "http://%s:9" % DARK
        with self.serve([answer()]) as server:
            with parts.environment(http_proxy=proxy, no_proxy=THERE):
                client = server.client(allow_http=True, connect_timeout=1)
                self.assertEqual(client.chat("hi").text, "hello")
            with parts.environment(http_proxy=proxy, no_proxy="10.1.1.1"):
                client = server.client(allow_http=True, connect_timeout=0.3)
                error, _ = self.failure(sc.APITimeoutError, client.chat, "hi")
                self.assertIn("proxy", str(error))


class Breaking(Line):
    def stream(self, fault, **options):
        """Cut the line by a rule after two pieces; return the error and the seconds it took."""
        with self.serve() as server:
            stream = self.client(server, max_retries=2, **options).stream_chat("hi")
            pieces = []
            begun = None
            with self.assertRaises(sc.APIConnectionError) as caught, stream:
                for piece in stream.texts():
                    pieces.append(piece)
                    if len(pieces) == 2:
                        self.filter(fault)
                        begun = time.monotonic()
                    server.taken.set()
            seconds = time.monotonic() - begun
            self.assertEqual(caught.exception.partial.text, "".join(pieces))
            self.assertGreaterEqual(len(pieces), 2)
            self.assertEqual((caught.exception.attempts, len(server.requests)), (1, 1))
        return caught.exception, seconds

    def test_silence(self):
        """A line that falls silent in mid-stream ends it after `timeout`, with what had come."""
        error, seconds = self.stream("drop", timeout=0.8)
        self.assertIsInstance(error, sc.APITimeoutError)
        self.assertEqual(error.phase, "silence")
        self.assertTrue(0.7 < seconds < 3, seconds)

    def test_deadline(self):
        """Or after `deadline`, where that comes first."""
        error, seconds = self.stream("drop", timeout=30, deadline=1.0)
        self.assertIsInstance(error, sc.APITimeoutError)
        self.assertEqual(error.phase, "deadline")
        self.assertLess(seconds, 2)

    def test_reset(self):
        """A RST in mid-stream is an interrupted stream, with what had come, and not retried."""
        error, _ = self.stream("meta l4proto tcp reject with tcp reset")
        self.assertIsInstance(error, sc.StreamInterruptedError)
        self.assertIn("reset", str(error))

    def test_whole_answer(self):
        """A line that falls silent once the request is out is not retried: it may be billed."""
        def cut(conn):
            self.filter("drop")
            conn.send_json(completion())

        with self.serve([cut]) as server:
            client = self.client(server, timeout=0.8, max_retries=2)
            error, _ = self.failure(sc.APITimeoutError, client.chat, "hi")
            self.assertEqual((error.phase, error.attempts), ("silence", 1))
            self.assertEqual(len(server.requests), 1)

    def test_upload(self):
        """A line that falls silent while the request goes out is found out too."""
        with self.serve([answer()]) as server:
            client = self.client(server, timeout=0.8, max_retries=0)
            client.chat("hi")
            self.filter("drop")
            error, seconds = self.failure(sc.APITimeoutError, client.chat, "long " * 2_000_000)
            self.assertEqual(error.phase, "silence")
            self.assertLess(seconds, 3)

    def test_forgotten(self):
        """An idle connection that a firewall has forgotten, and resets, costs no retry."""
        with self.serve([answer()]) as server:
            client = self.client(server, max_retries=0)
            client.chat("hi")
            with server.lock:
                (port,) = [sock.getpeername()[1] for sock in server.open]
            self.filter("tcp sport %d reject with tcp reset" % port)
            reply = client.chat("hi")
            self.assertEqual((reply.meta.attempts, server.connections), (1, 2))


class Crawling(Line):
    def slow(self, rate):
        self.there.run("tc", "qdisc", "add", "dev", "line", "root", "tbf", "rate", rate, "burst",
                       "4k", "latency", "2s")

    def test_slow(self):
        """A slow line is no silence: `timeout` counts from the last byte that came."""
        self.slow("400kbit")
        with self.serve([completion(TEXT), chunks(*TEXT.split("f"))]) as server:
            client, begun = self.client(server, timeout=0.7), time.monotonic()
            self.assertEqual(client.chat("hi").text, TEXT)
            self.assertGreater(time.monotonic() - begun, 1)

    def test_slow_deadline(self):
        """But `deadline` ends it."""
        self.slow("100kbit")
        with self.serve([completion(TEXT)]) as server:
            error, seconds = self.failure(
                sc.APITimeoutError, self.client(server, deadline=1.0).chat, "hi")
            self.assertEqual(error.phase, "deadline")
            self.assertLess(seconds, 1.6)

    def test_lossy(self):
        """A line that loses one packet in ten, either way, changes no answer."""
        pieces = [TEXT[place:place + 64] for place in range(0, len(TEXT), 64)]
        with self.serve([completion(TEXT), chunks(*pieces)]) as server:
            self.filter("numgen random mod 10 == 0 drop")
            client = self.client(server, timeout=20)
            self.assertEqual(client.chat(TEXT).text, TEXT)
            got = list(client.stream_chat(TEXT).texts())
            self.assertEqual(got, pieces)
            self.assertEqual(server.requests[0].json["messages"][0]["content"], TEXT)
