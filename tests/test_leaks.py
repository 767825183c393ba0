# SPDX-License-Identifier: MIT
"""No part of a key, a proxy's password or a URL's userinfo in any output, on any failing path."""

import base64
import contextlib
import json
import logging
import os
import pickle
import socket
import traceback
import unittest
from unittest import mock

from . import synthetic_client as sc
from .server import MODEL, Proxy, Server, answer, chunk, chunks, completion, stall

SECRET = "Zq7wK1vB9mXe4RtY/u0P+d8G"
KEY = "syn_" + SECRET
USER = "gwUserNm77"
PASSWORD = "kL5:hJ2@xN8"
USERINFO = USER + ":kL5%3AhJ2%40xN8"
BASIC = base64.b64encode(("%s:%s" % (USER, PASSWORD)).encode()).decode()
SECRETS = (SECRET, USER, PASSWORD, USERINFO, BASIC)
RUN = 6  # so many characters of a secret in a row are a leak
STATUSES = (302, 307, 400, 401, 402, 403, 404, 405, 409, 422, 429, 500, 503)
ESCAPED = "".join("\\u%04x" % ord(character) for character in KEY)


def leaks(text):
    """Return the parts of secrets that a text holds."""
    runs = {secret[at:at + RUN] for secret in SECRETS for at in range(len(secret) - RUN + 1)}
    return sorted(run for run in runs if run in text)


def held_by(error):
    """Return all that an error, and what it was caused by, can show: (where, text) pairs."""
    trace = traceback.format_exception(type(error), error, error.__traceback__)
    shown = [("traceback", "".join(trace))]
    for protocol in (0, 2, 4):
        shown.append(("pickle", pickle.dumps(error, protocol).decode("latin-1")))
    shown.append(("headers", repr(dict(getattr(error, "headers", {})))))
    if getattr(error, "partial", None) is not None:
        shown.append(("partial", repr(error.partial.to_dict())))
        meta = error.partial.meta
        shown.append(("partial.meta", "%s %s" % (meta.request_id, dict(meta.headers))))
    where = "error"
    while error is not None:
        shown.append((where, "%s %r %r %r" % (error, error, error.args, vars(error))))
        where, error = "cause", error.__cause__ or error.__context__
    return shown


class Leaks(unittest.TestCase):

    @contextlib.contextmanager
    def failing(self, *kinds):
        """Check that the block raises, and that neither the error nor the log leaks."""
        records = []
        handler = logging.Handler()
        handler.emit = records.append
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            with self.assertRaises(kinds or sc.SyntheticError) as caught:
                yield caught
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        shown = held_by(caught.exception)
        shown += [("log", "%s %r" % (record.getMessage(), vars(record))) for record in records]
        found = ["%s: %s" % (where, part) for where, text in shown for part in leaks(text)[:1]]
        self.assertEqual(found, [], "%s: %s" % (type(caught.exception).__name__, caught.exception))

    def check(self, answers, **options):
        """Check chat, stream_chat and request against a server that fails so."""
        options = dict({"api_key": KEY}, **options)
        own = options.pop("extra_headers", None)
        with Server(answers) as server:
            client = server.client(**options)
            with self.failing():
                client.chat("hi", extra_headers=own)
            with self.failing():
                client.stream_chat("hi", extra_headers=own).completion()
            with self.failing():
                client.request("POST", "/other?x=1", {"a": 1}, extra_headers=own)
            self.assertEqual(leaks(repr(client) + str(client)), [])


class Echoes(Leaks):
    """Servers that say what they were sent."""

    BODIES = [
        {"error": "Invalid key %s" % KEY},
        {"error": {"message": "No %s" % KEY, "code": KEY, "type": KEY, "param": KEY, "x": [KEY]}},
        {"detail": [{"loc": ["header", KEY], "msg": KEY}]},
        {"message": "Bearer " + KEY, "debug": {KEY: {"headers": ["authorization", KEY]}}},
        '{"error": "%s"}' % ESCAPED,
        '{"error": "%s"}' % KEY.replace("/", "\\/"),
        '{"error": "cut %s' % KEY,
        "plain %s text" % KEY,
        "<html><title>%s</title>Bearer %s</html>" % (KEY, KEY),
        "<html>" + "x" * 280 + KEY,
        '"%s"' % KEY,
        '["%s"]' % KEY,
        '{"error": "%s", "x": %s"%s"%s}' % (KEY, "[" * 600, KEY, "]" * 600),  # masking recurses
        '{"x": %s"%s"%s}' % ("[" * 600, KEY, "]" * 600),
    ]

    def test_statuses(self):
        """A key in a status's body, of whatever shape, is masked."""
        for body in self.BODIES:
            with self.subTest(body=body):
                self.check(answer(401, body))
        for status in STATUSES:
            with self.subTest(status=status):
                self.check(answer(status, self.BODIES[1]))

    def test_headers(self):
        """A key in a status's headers or reason is masked."""
        for status in STATUSES:
            headers = {"X-Request-Id": KEY, "X-Echo": "Bearer %s" % KEY, "Retry-After": KEY,
                       "Location": "http://127.0.0.1:1/%s?key=%s#%s" % (KEY, KEY, KEY),
                       "x-synthetic-quotas": json.dumps({"subscription": {"limit": KEY}}),
                       "Set-Cookie": "auth=%s" % KEY, "Content-Type": KEY}
            with self.subTest(status=status):
                self.check(answer(status, "", headers))
                reason = "HTTP/1.1 %d %s\r\nContent-Length: 0\r\n\r\n" % (status, KEY)
                self.check(reason.encode())

    def test_wrong_types(self):
        """A key that stands where an object should be is masked, wherever a quotation is cut."""
        for size in range(20, 300, 9):
            text = "x" * size + KEY
            body = {"choices": [{"message": text, "delta": text}]}
            with self.subTest(size=size), Server([body, [body]]) as server:
                client = server.client(api_key=KEY)
                with self.failing(sc.ResponseError):
                    client.chat("hi")
                with self.failing(sc.ResponseError):
                    list(client.stream_chat("hi"))

    def test_key_that_json_escapes(self):
        """A key with quotes and backslashes is masked where its JSON is quoted, too."""
        key = 'syn_"a\\b"c\\d'
        with Server(answer(401, {"x": key})) as server:
            with self.assertRaises(sc.AuthenticationError) as caught:
                server.client(api_key=key).chat("hi")
            self.assertIn('{"x": "***"}', str(caught.exception))

    def test_deep_quotas(self):
        """A header nested as deep as JSON can be read neither breaks an error nor bares a key."""
        deep = {"x-synthetic-quotas": '{"a": %s"%s"%s}' % ("[" * 600, KEY, "]" * 600)}
        for status in (200, 429):
            with self.subTest(status=status):
                self.check(answer(status, {"error": {"message": KEY, "code": 429}}, deep))

    def test_headers_of_a_stream(self):
        """A key in the headers of a stream that breaks is masked in what had come, too."""
        with Server(lambda conn: conn.send_sse([chunk("a")], done=False, headers={
                "X-Echo": KEY, "X-Request-Id": KEY})) as server:
            with self.failing(sc.StreamInterruptedError):
                list(server.client(api_key=KEY).stream_chat("hi"))

    def test_location_userinfo(self):
        """The userinfo of a redirect's target is not shown."""
        for target in ("https://%s@elsewhere.example/v1", "//%s@elsewhere.example/v1"):
            for status in (301, 307):
                self.check(answer(status, "", {"Location": target % USERINFO}), max_retries=0)

    def test_answers_that_are_none(self):
        """A key in a 200 that is no completion is masked."""
        for choices in (KEY, [KEY], [{"message": KEY}]):
            self.check(answer(200, {"choices": choices, "error": KEY}))
        for body in self.BODIES + [{"choices": KEY}, {"choices": [KEY]}]:
            with self.subTest(body=body):
                with Server(answer(200, body)) as server:
                    client = server.client(api_key=KEY)
                    with self.failing():
                        client.chat("hi")
                    with self.failing():
                        client.stream_chat("hi").completion()

    def test_errors_inside(self):
        """A key in an error object within a 200 is masked."""
        for code in (401, 429, "other"):
            body = {"error": {"message": "Bearer " + KEY, "code": code, "x": {KEY: KEY}}}
            with self.subTest(code=code):
                self.check(answer(200, body))
                self.check(answer(200, completion(**body)))
                with Server([[chunk("a"), body]]) as server, self.failing():
                    list(server.client(api_key=KEY).stream_chat("hi"))

    def test_streams(self):
        """A key in an event that ends a stream is masked."""
        for item in (KEY, '"%s"' % KEY, '["%s"]' % KEY, '{"error": "%s"}' % ESCAPED,
                     '{"error": "%s"}' % KEY.replace("/", "\\/"), '{"choices": "%s"}' % KEY,
                     '{"choices": ["%s"]}' % KEY, '{"choices": [{"delta": "%s"}]}' % KEY,
                     ("event: error\ndata: %s\n\n" % KEY).encode(),
                     ("event: error\ndata: {\"message\": \"%s\"}\n\n" % KEY).encode()):
            with self.subTest(item=item), Server([[chunk("a"), item] + chunks("b")]) as server:
                with self.failing():
                    list(server.client(api_key=KEY).stream_chat("hi"))

    def test_no_stream(self):
        """A key in a page where a stream was asked for is masked, wherever it is cut."""
        for before in (0, 10, 290, 975, 980, 990, 995, 4080):
            page = "<" + "x" * before + KEY + "y" * 5000
            with Server(answer(200, page, {"Content-Type": "text/plain"})) as server:
                with self.subTest(before=before), self.failing():
                    list(server.client(api_key=KEY).stream_chat("hi"))

    def test_no_stream_in_pieces(self):
        """It is masked too when it comes in two pieces."""
        def handler(conn):
            conn.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n<html>")
            conn.drip(KEY.encode(), 0.002)
            conn.close()

        with Server(handler) as server, self.failing():
            list(server.client(api_key=KEY).stream_chat("hi"))

    def test_no_http(self):
        """A key in what is no HTTP at all is not shown, not in the cause either."""
        for data in ("Bearer %s\r\n\r\n", "HTTP/1.1 %s\r\n\r\n", "HTTP/1.1 20%s OK\r\n\r\n",
                     "HTTP/%s 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n%s",
                     "HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n\r\n",
                     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n"):
            with self.subTest(data=data):
                data = (data % KEY).encode()
                self.check(lambda conn: (conn.raw(data), conn.close()))

    def test_keys_in_headers(self):
        """A key that travels in a header of the caller's own is masked as well."""
        for name, value in (("Authorization", "Bearer " + KEY), ("X-Api-Key", KEY),
                            ("api-key", KEY)):
            for status in (401, 200):
                for body in ("no %s" % KEY, {"error": "no %s" % KEY}):
                    with self.subTest(name=name, status=status, body=body):
                        self.check(answer(status, body), api_key="syn_other_one_entirely",
                                   headers={name: value})
                        self.check(answer(status, body), api_key="syn_other_one_entirely",
                                   extra_headers={name: value})


class Failures(Leaks):
    """Paths on which nobody echoes, but somebody might quote."""

    def test_connections(self):
        """Refused, reset, cut, silent and late connections."""
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
        for handler in (lambda conn: conn.reset(), lambda conn: conn.close(),
                        lambda conn: (conn.raw(cut), conn.close()),
                        lambda conn: (conn.raw(cut), conn.reset())):
            self.check(handler)
        self.check(lambda conn: conn.gone(), timeout=0.03)
        self.check(lambda conn: (conn.raw(cut), conn.gone()), deadline=0.06)
        self.check(answer(503, "", {"retry-after-ms": "1"}), max_retries=1)
        with Server() as server:
            pass
        with self.failing(sc.APIConnectionError):
            server.client(api_key=KEY).chat("hi")

    def test_dns(self):
        """A name that cannot be looked up, directly or the proxy's."""
        fault = socket.gaierror(socket.EAI_NONAME, "unknown name")
        with mock.patch("socket.getaddrinfo", side_effect=fault):
            for proxy in (None, "http://%s@proxy.example:3128" % USERINFO):
                client = sc.SyntheticClient(KEY, model=MODEL, max_retries=0, proxy=proxy)
                with self.failing(sc.APIConnectionError):
                    client.chat("hi")
                self.assertEqual(leaks(repr(client)), [])

    def test_tls(self):
        """Certificates that are refused, and handshakes that never end."""
        for tls in ("localhost", "expired", "wrong-host"):
            with Server(tls=tls) as server, self.failing(sc.APIConnectionError):
                server.client(api_key=KEY, ca_file=None).chat("hi")
        with Server(tls="localhost", connect=stall) as server:
            with self.failing(sc.APITimeoutError):
                server.client(api_key=KEY, connect_timeout=0.05).chat("hi")

    def test_redirects(self):
        """Redirects that are not followed, and too many."""
        self.check(answer(302, "", {"Location": "https://elsewhere.example/"}))
        self.check(answer(307, "", {"Location": "/again"}))

    def test_streams(self):
        """Streams that are cut, silent or too long."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            conn.gone(0.1)
            conn.close()

        for options in ({"timeout": 0.03}, {"deadline": 0.06}, {}):
            with Server(handler) as server, self.failing() as caught:
                list(server.client(api_key=KEY, **options).stream_chat("hi"))
            self.assertEqual(caught.exception.partial.text, "a")
        with Server([["x" * 5000]]) as server, self.failing(sc.ResponseError):
            list(server.client(api_key=KEY, max_response_bytes=1000).stream_chat("hi"))

    def test_closed(self):
        """A closed client and a closed stream."""
        with Server([chunks("a")]) as server:
            client = server.client(api_key=KEY)
            stream = client.stream_chat("hi")
            stream.close()
            with self.failing(sc.StreamInterruptedError):
                stream.completion()
            self.assertEqual(leaks(repr(stream) + repr(stream.meta)), [])
            client.close()
            with self.failing(RuntimeError):
                client.chat("hi")

    def test_answers(self):
        """Good answers' repr and meta."""
        with Server() as server:
            reply = server.client(api_key=KEY).chat("hi")
        self.assertEqual(leaks(repr(reply) + repr(reply.meta) + repr(vars(reply))), [])


class ThroughProxies(Leaks):

    URL = "http://%s@127.0.0.1:%d"

    def through(self, proxy, base_url, **options):
        """Check a call through a proxy that fails."""
        client = proxy.client(api_key=KEY, base_url=base_url, allow_http=True,
                              proxy=self.URL % (USERINFO, proxy.port), **options)
        with self.failing() as caught:
            client.chat("hi")
        self.assertEqual(leaks(repr(client)), [])
        return caught.exception

    def test_refusals(self):
        """A proxy that refuses, and says what it was sent in reason, headers and body."""
        head = "HTTP/1.1 %d %s\r\nProxy-Authenticate: Basic realm=\"%s\"\r\nX: %s\r\n"
        for status in (403, 407):
            for echo in (PASSWORD, BASIC, "Basic " + BASIC, KEY, USERINFO):
                data = head % (status, echo, echo, echo) + "Content-Length: %d\r\n\r\n%s" % (
                    len(echo), echo)
                for url in ("https://x.test/v1", "http://x.test/v1"):
                    with self.subTest(status=status, echo=echo, url=url):
                        with Server(lambda conn: (conn.raw(data.encode()), conn.close())) as proxy:
                            self.through(proxy, url)

    def test_no_http(self):
        """A proxy that does not speak HTTP."""
        for echo in (PASSWORD, BASIC, KEY):
            for url in ("https://x.test/v1", "http://x.test/v1"):
                data = ("%s\r\n\r\n" % echo).encode()
                with Server(lambda conn: (conn.raw(data), conn.close())) as proxy:
                    with self.subTest(echo=echo, url=url):
                        self.through(proxy, url)

    def test_silence(self):
        """A proxy that is silent, resets or is not there."""
        for url in ("https://x.test/v1", "http://x.test/v1"):
            with Server(stall) as proxy:
                self.through(proxy, url, timeout=0.05, connect_timeout=0.05)
            with Server(lambda conn: conn.reset()) as proxy:
                self.through(proxy, url)
            self.through(proxy, url)

    def test_server_behind(self):
        """A server behind the proxy that fails or has a certificate nobody trusts."""
        with Server(answer(401, KEY), tls="localhost") as server, Proxy(to=server) as proxy:
            self.through(proxy, server.base_url, ca_file=None)
            self.through(proxy, server.base_url, ssl_context=None)
        with Server(answer(401, KEY)) as server, Proxy(to=server) as proxy:
            self.through(proxy, server.base_url)

    def test_environment(self):
        """Credentials from the environment."""
        with Server(answer(407, BASIC)) as proxy:
            url = self.URL % (USERINFO, proxy.port)
            with mock.patch.dict(os.environ, https_proxy=url, http_proxy=url):
                del os.environ["no_proxy"]
                for base_url in ("https://x.test/v1", "http://x.test/v1"):
                    client = proxy.client(api_key=KEY, base_url=base_url, allow_http=True)
                    with self.failing():
                        client.chat("hi")

    def test_bad_urls(self):
        """Proxies and base URLs that are refused are refused without their userinfo."""
        for form in ("socks5://%s@h:1", "http://%s@ho st:1", "http://%s@h:port", "ftp://%s@h:1",
                     "http://%s@h:1/path", "http://%s@", "%s@h:1:2", "http://%s@h:99999"):
            url = form % USERINFO
            with self.subTest(form=form):
                with self.failing(sc.SyntheticError):
                    sc.SyntheticClient(KEY, model=MODEL, proxy=url, max_retries=0).chat("hi")
                with mock.patch.dict(os.environ, https_proxy=url):
                    del os.environ["no_proxy"]
                    with self.failing(sc.SyntheticError):
                        sc.SyntheticClient(KEY, model=MODEL, max_retries=0).chat("hi")
                if "@" in form:
                    with self.failing(sc.ConfigurationError):
                        sc.SyntheticClient(KEY, base_url=url)
        for url in ("https://%s@api.example.test/v1", "https://%s@api.example.test:x/v1"):
            with self.failing(sc.ConfigurationError):
                sc.SyntheticClient(KEY, base_url=url % USERINFO)
            with mock.patch.dict(os.environ, SYNTHETIC_BASE_URL=url % USERINFO):
                with self.failing(sc.ConfigurationError):
                    sc.SyntheticClient(KEY)


class Refusals(Leaks):
    """What is refused before anything is sent is refused without being shown."""

    def test_bad_keys(self):
        """Keys with line breaks, control or non-ASCII characters, from either source."""
        for key in (KEY + "\nX: y", KEY[:9] + "\r\n" + KEY[9:], KEY + "\x00", "\x1b" + KEY + "!",
                    KEY + "\x7f", KEY + "\u20ac", "\ufeff" + KEY, KEY + "\ud800",
                    KEY[:9] + "\t" + KEY[9:]):
            with self.subTest(key=key):
                with self.failing(sc.ConfigurationError):
                    sc.SyntheticClient(key, model=MODEL)
                if "\x00" in key or "\ud800" in key:
                    continue  # no environment can hold them
                with mock.patch.dict(os.environ, SYNTHETIC_API_KEY=key):
                    with self.failing(sc.ConfigurationError):
                        sc.SyntheticClient(model=MODEL)
                    with self.failing(sc.ConfigurationError):
                        sc.completion(MODEL, "hi")

    def test_keys_of_a_wrong_type(self):
        """Keys and URLs of a wrong type."""
        for value in (KEY.encode(), [KEY], {"key": KEY}, (KEY,)):
            with self.failing(TypeError):
                sc.SyntheticClient(value)
            with self.failing(TypeError):
                sc.SyntheticClient("k", proxy=value).chat("hi", model=MODEL)
            with self.failing(TypeError):
                sc.SyntheticClient("k", base_url=value)

    def test_bad_headers(self):
        """Headers that HTTP does not allow are refused by name, not by value."""
        for headers in ({"X-Api-Key": KEY + "\nX: y"}, {"Authorization": "Bearer %s\r\n" % KEY},
                        {"Authorization": KEY + "\u20ac"}, {"X": ["Bearer " + KEY]},
                        {"X": KEY.encode()}, {"X": KEY + "\x00"}):
            with Server() as server:
                with self.subTest(headers=headers):
                    with self.failing(sc.ConfigurationError, TypeError):
                        server.client(headers=headers)
                    with self.failing(sc.ConfigurationError, TypeError):
                        server.client().chat("hi", extra_headers=headers)
                self.assertEqual(len(server.requests), 0)

    def test_plain_http(self):
        """A key that would travel over plain http."""
        with self.failing(sc.ConfigurationError):
            sc.SyntheticClient(KEY, base_url="http://api.example.test/v1")

    def test_unknown_parameters(self):
        """A key that was passed by a wrong name or at a wrong place."""
        with Server() as server:
            client = server.client(api_key=KEY)
            for name in ("api_key", "apikey", "authorization"):
                with self.failing(TypeError):
                    client.chat("hi", **{name: KEY})
            with self.failing(TypeError):
                client.chat("hi", temperature=KEY)
            self.assertEqual(len(server.requests), 0)


class Clients(Leaks):

    def test_repr(self):
        """repr and str of a client say that a key is set, and nothing of it."""
        client = sc.SyntheticClient(KEY, model=MODEL, headers={"X-Api-Key": KEY},
                                    proxy="http://%s@127.0.0.1:1" % USERINFO)
        for text in (repr(client), str(client), "%s" % client, repr([client])):
            self.assertEqual(leaks(text), [])
        self.assertNotEqual(repr(client), repr(sc.SyntheticClient(model=MODEL)))

    def test_key_of_the_environment(self):
        """A key that came from the environment does not travel in a pickle."""
        with mock.patch.dict(os.environ, SYNTHETIC_API_KEY=KEY):
            client = sc.SyntheticClient(model=MODEL)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                data = pickle.dumps(client, protocol).decode("latin-1")
                self.assertEqual(leaks(data), [])

    def test_given_key_travels(self):
        """A key that was given does: the check above can fail."""
        data = pickle.dumps(sc.SyntheticClient(KEY, model=MODEL)).decode("latin-1")
        self.assertNotEqual(leaks(data), [])


if __name__ == "__main__":
    unittest.main()
