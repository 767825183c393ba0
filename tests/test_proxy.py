# SPDX-License-Identifier: MIT
"""The proxy between raw sockets and servers that can do anything."""
import contextlib
import importlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

from . import synthetic_client as sc
from .server import (
    KEY, LIMIT, Server, answer, answer_when, at_once, chunk, chunks, completion, environment, stall
)

proxy = importlib.import_module(sc.__name__ + ".proxy")
cli = importlib.import_module(sc.__name__ + ".__main__")
gateway = importlib.import_module(sc.__name__ + ".gateway")
head_module = importlib.import_module(sc.__name__ + ".head")
MASTER = "sk-master-0123456789"
CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "top secret"}], "x": [1.5, None]}
STREAM = dict(ASKED, stream=True)


def entry(server, name="m", key=KEY, **params):
    """Return an entry of the configuration that leads to a server."""
    settings = {"model": "openai/up/stream", "api_key": key, "api_base": server.base_url}
    settings.update(params)
    return {"model_name": name, "litellm_params": settings}


def config(*entries, **settings):
    return {"model_list": list(entries), "general_settings": settings}


def read_config(data):
    """Return what a configuration, as an object or as its text, means."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w") as file:
            file.write(data if isinstance(data, str) else json.dumps(data))
        return gateway.read_config(path)


class Caller:
    """A connection to the proxy."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), LIMIT)
        self.sock.settimeout(LIMIT)
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.leave()

    def leave(self):
        self.file.close()
        self.sock.close()

    def send(self, body=ASKED, path=CHAT, method="POST", version="1.1", **headers):
        """Send a request; a body that is no bytes goes as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        fields = {"host": "x", "content-length": len(body or b"")}
        fields.update((name.replace("_", "-"), value) for name, value in headers.items())
        lines = ["%s: %s\r\n" % item for item in fields.items() if item[1] is not None]
        head = "%s %s HTTP/%s\r\n%s\r\n" % (method, path, version, "".join(lines))
        self.sock.sendall(head.encode("latin-1") + (body or b""))

    def read_head(self):
        """Return the status and the fields of the next answer."""
        status = int(self.file.readline().split()[1])
        lines = iter(self.file.readline, b"\r\n")
        pairs = [line.decode("latin-1").strip().partition(": ") for line in lines]
        return status, {name.lower(): value for name, _, value in pairs}

    def read(self):
        """Return the next answer: status, fields, body."""
        status, fields = self.read_head()
        return status, fields, self.file.read(int(fields["content-length"]))

    def read_piece(self):
        """Return one piece of a chunked body, b"" at its end, None where it breaks off."""
        line = self.file.readline()
        data = self.file.read(int(line, 16) + 2) if line else b""
        return data[:-2] if data.endswith(b"\r\n") else None

    def read_stream(self):
        """Return the bytes of a chunked body, and whether it came to its end."""
        body, piece = b"", self.read_piece()
        while piece:
            body, piece = body + piece, self.read_piece()
        return body, piece == b""

    def is_closed(self, seconds=5.0):
        """Whether the proxy closes the connection, and says nothing more."""
        self.sock.settimeout(seconds)
        try:
            return self.file.read() == b""
        except socket.timeout:
            return False
        except OSError:
            return True


class Proxied(unittest.TestCase):
    """Tests with a proxy in this process."""

    def setUp(self):
        quick = mock.patch.object(proxy, "_TICK", 0.01)
        quick.start()
        self.addCleanup(quick.stop)

    def start(self, *entries, **options):
        """Start a proxy of these entries; return it. What it logs is in self.log."""
        grace, settings = options.pop("grace", LIMIT), options.pop("settings", {})
        made = proxy.Proxy(read_config(config(*entries, **settings)), ("127.0.0.1", 0), **options)
        self.log, self.proxy, made.timeout = io.StringIO(), made, 0.01
        errors = contextlib.redirect_stderr(self.log)
        errors.__enter__()
        self.addCleanup(errors.__exit__, None, None, None)
        thread = threading.Thread(target=made.serve, args=(grace,), daemon=True)
        thread.start()

        def stop():
            made.stop()
            made.stop()
            thread.join(LIMIT)
            made.server_close()
            self.assertFalse(thread.is_alive())
            self.wait_for(lambda: not made._callers)

        self.addCleanup(stop)
        self.thread = thread
        return made

    def serve(self, answers=None, **options):
        """Start a server behind a proxy; return the server."""
        server = Server(answers)
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        self.start(entry(server), **options)
        return server

    def caller(self):
        made = Caller(self.proxy.server_address[1])
        self.addCleanup(made.leave)
        return made

    def call(self, *args, **options):
        """Send a request on a connection of its own; return the answer."""
        with Caller(self.proxy.server_address[1]) as caller:
            caller.send(*args, **options)
            return caller.read()

    def refused(self, *args, **options):
        """Send a request that is refused; return the status and the message."""
        status, fields, body = self.call(*args, **options)
        self.assertEqual(fields["content-type"], "application/json")
        error = json.loads(body.decode())["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        return status, error["message"]

    def wait_for(self, check, seconds=5.0):
        ends = time.monotonic() + seconds
        while not check() and time.monotonic() < ends:
            time.sleep(0.01)
        self.assertTrue(check())


class Configuration(unittest.TestCase):
    def test_errors(self):
        """What is wrong in the file is told in one line, with the entry that it is in."""
        good = {"model": "hf:a/b", "api_key": "k"}

        def params(**fields):
            return config({"model_name": "one", "litellm_params": good},
                          {"model_name": "two", "litellm_params": dict(good, **fields)})

        cases = [
            ("{", "line 1 column 2"),
            ([], "the file should be an object"),
            ({}, "model_list should be a list"),
            (config(), "model_list should be a list with entries"),
            (config("x"), "model_list[0] (None): the entry should be an object"),
            (config({"litellm_params": good}), "model_list[0] (None): model_name"),
            (config({"model_name": "one"}), "model_list[0] ('one'): litellm_params"),
            (params(model=""), "model_list[1] ('two'): model should be a text"),
            (params(model=3), "model_list[1] ('two'): model should be a text"),
            (params(api_key=["k"]), "model_list[1] ('two'): api_key should be a text"),
            (params(api_key="os.environ/NO_SUCH"), "model_list[1] ('two'): api_key names the "
                                                   "variable NO_SUCH, which is not set"),
            (params(api_key="k\u00e9"), "model_list[1] ('two'): api_key holds"),
            (params(api_key=None), "model_list[1] ('two'): there is no key"),
            (params(api_base="ftp://x"), "model_list[1] ('two'): base_url should be"),
            (params(api_base="http://example.com/v1"), "model_list[1] ('two'): base_url is plain"),
            (params(model="openai/gpt"), "model_list[1] ('two'): the route openai/ wants"),
            (dict(params(), general_settings=1), "general_settings should be an object"),
            (dict(params(), general_settings={"master_key": ""}), "master_key should be a text"),
        ]
        for data, wanted in cases:
            with self.subTest(wanted), self.assertRaises(sc.ConfigurationError) as caught:
                read_config(data)
            self.assertIn(wanted, str(caught.exception))
            self.assertRegex(str(caught.exception), "^[^\n]*config.json: [^\n]*$")

    def test_yaml(self):
        """A YAML file gets the command that turns it into JSON."""
        with self.assertRaises(sc.ConfigurationError) as caught:
            gateway.read_config("conf/config.yaml")
        command = re.search("python3 -c '(.*)' < conf/config.yaml > conf/config.json",
                            str(caught.exception)).group(1)
        yaml = mock.Mock(safe_load=lambda file: {"read": file.read()})
        with mock.patch.dict(sys.modules, yaml=yaml), \
                mock.patch.object(sys, "stdin", io.StringIO("a: b")), \
                contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(command, {})
        self.assertEqual(json.loads(printed.getvalue()), {"read": "a: b"})

    def test_clients(self):
        """Entries of one key and base share a client; LiteLLM's routes are taken off."""
        base = "http://127.0.0.1:9/v1"
        rows = [("synthetic/hf:a/b", "k", None, "hf:a/b"), ("syn:large:text", "k", None, None),
                ("openai/x/y", "k", base, "x/y"), ("x/y", "k", base, None)]
        made = read_config(config(*[
            {"model_name": "m", "litellm_params": {
                "model": model, "api_key": key, "api_base": api_base}}
            for model, key, api_base, _ in rows]))
        entries = made._models["m"]
        self.assertEqual([one.model for one in entries], [row[3] or row[0] for row in rows])
        self.assertIs(entries[0].client, entries[1].client)
        self.assertIs(entries[2].client, entries[3].client)
        self.assertEqual(entries[0].client.base_url, "https://api.synthetic.new/openai/v1")

    def test_environment_key(self):
        """The environment's key goes to Synthetic's route alone, never to another server."""
        with mock.patch.dict(os.environ, SYNTHETIC_API_KEY=KEY), Server() as server:
            made = read_config(config(entry(server, key=None), entry(
                server, key=None, model="synthetic/hf:a/b")))
            for one in made._models["m"]:
                one.client.chat("hi", model="x")
        sent = [request.headers.get("authorization") for request in server.requests]
        self.assertEqual(sent, [None, "Bearer " + KEY])


class Answers(Proxied):
    def test_routes(self):
        """A body reaches the upstream as it is but for the model; of the headers, none do."""
        server = self.serve(settings={"master_key": MASTER})
        for path in (CHAT, "/chat/completions", "/v1/completions", "/v1/embeddings?x=1"):
            status, fields, body = self.call(
                path=path, authorization="Bearer " + MASTER, x_mine="1", cookie="c=1")
            self.assertEqual((status, json.loads(body.decode())), (200, completion()))
            asked = server.requests[-1]
            self.assertEqual(asked.json, dict(ASKED, model="up/stream"))
            self.assertEqual(asked.path, re.sub("^(/v1)?|[?].*", "", path).join(["/v1", ""]))
            self.assertEqual(asked.headers["authorization"], "Bearer " + KEY)
            self.assertNotIn(MASTER, str(asked.headers))
            self.assertFalse({"x-mine", "cookie"} & set(asked.headers))
        self.assertEqual(server.connections, 1)

    def test_untouched(self):
        """The answer's bytes are the upstream's."""
        raw = b'{"choices": [],\n "usage": null, "\\u00e9": 1e2, "choices": [1]}'
        self.serve(answer(200, raw))
        self.assertEqual(self.call()[2], raw)

    def test_models_and_health(self):
        """The models are listed for who has the key; the health routes need none."""
        self.serve(settings={"master_key": MASTER})
        status, _, body = self.call(None, "/v1/models", "GET", authorization="bearer " + MASTER)
        listed = json.loads(body.decode())
        self.assertEqual((status, listed["object"]), (200, "list"))
        self.assertEqual([(one["id"], one["object"]) for one in listed["data"]], [("m", "model")])
        for name in ("liveliness", "readiness"):
            self.assertEqual(self.call(None, "/health/" + name, "GET")[0], 200)

    def test_refusals(self):
        """What the proxy refuses has the right status and OpenAI's shape, and goes no further."""
        server = self.serve(settings={"master_key": MASTER})
        key = {"authorization": "Bearer " + MASTER}
        for headers in ({}, {"authorization": "Bearer " + MASTER + "x"}, {"authorization": MASTER},
                        {"authorization": "Basic " + MASTER}, {"authorization": "Bearer \xe9"}):
            self.assertEqual(self.refused(**headers)[0], 401)
            self.assertEqual(self.refused(None, "/v1/models", "GET", **headers)[0], 401)
        for status, args in [
            (404, (ASKED, "/v1/nothing")), (404, (ASKED, "/v1")), (404, (None, "/", "GET")),
            (405, (None, CHAT, "GET")), (405, (ASKED, "/v1/models")), (405, (ASKED, CHAT, "PUT")),
            (404, (dict(ASKED, model="other"),)), (400, (dict(ASKED, model=None),)),
            (400, (dict(ASKED, model=["m"]),)), (400, (b"{",)), (400, (b"[1]",)), (400, (b"",)),
            (400, (b'{"model": "m", "temperature": NaN}',)), (400, (b"\xff\xfe",)),
            (400, (b"[" * 100000,)),
        ]:
            with self.subTest(args=args):
                self.assertEqual(self.refused(*args, **key)[0], status)
        self.assertEqual(server.requests, [])

    def test_upstream_errors(self):
        """An upstream's refusal passes with its status, in OpenAI's shape, with Retry-After."""
        shaped = {"error": {"message": "no", "type": "t", "param": "p", "code": "c"}}
        server = self.serve([answer(429, {"error": "slow"}, {"Retry-After": "7"})] + [
            answer(status, shaped) for status in (400, 401, 402, 403, 404, 422, 500, 503)])
        status, fields, body = self.call()
        self.assertEqual((status, fields["retry-after"]), (429, "7"))
        self.assertEqual(json.loads(body.decode())["error"]["message"], "slow")
        for wanted in (400, 401, 402, 403, 404, 422, 500, 503):
            status, _, body = self.call()
            self.assertEqual((status, json.loads(body.decode())), (wanted, shaped))
        self.assertEqual(len(server.requests), 9)

    def test_bad_upstreams(self):
        """An upstream that is not there, or answers nonsense, is a 502 that does not name it."""
        html = "<html><title>Welcome</title>at %s</html>"
        server = self.serve([
            lambda conn: conn.reset(),
            lambda conn: conn.raw(b"SSH-2.0\r\n") or conn.close(),
            lambda conn: conn.raw(b"HTTP/1.1 200 A\r\nContent-Length: 9\r\n\r\n{") or conn.close(),
            answer(200, html), answer(200, b""), answer(200, b"[]"), answer(200, b'{"a": '),
            answer(302, b"", {"Location": "http://example.com/"}),
        ])
        for _ in server.answers:
            status, message = self.refused()
            self.assertEqual(status, 502)
            self.assertNotIn(str(server.port), message)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))  # and nobody listens
        self.addCleanup(listener.close)
        nowhere = "http://127.0.0.1:%d/v1" % listener.getsockname()[1]
        self.start(entry(server, api_base=nowhere))
        self.assertEqual(self.refused()[0], 502)
        self.wait_for(lambda: "nothing listens there" in self.log.getvalue())

    def test_error_inside(self):
        """An error object inside a 200 is an error, also as a stream's first event."""
        error = {"error": {"message": "full", "code": 429}}
        self.serve([answer(200, error), lambda conn: conn.send_sse([error]),
                    lambda conn: conn.send_sse([b"event: error\ndata: oh\n\n"])])
        self.assertEqual(self.call()[0], 429)
        self.assertEqual(self.call(dict(ASKED, stream=True))[0], 429)
        self.assertEqual(self.call(dict(ASKED, stream=True))[0], 502)

    def test_keep_alive(self):
        """A connection serves many requests, also sent at once; it ends when asked to."""
        self.serve()
        caller = self.caller()
        for _ in range(3):
            caller.send(None, "/v1/models", "GET")
        caller.send()
        caller.send(None, "/nothing", "GET")
        caller.send(connection="close")
        statuses = [caller.read()[0] for _ in range(6)]
        self.assertEqual(statuses, [200, 200, 200, 200, 404, 200])
        self.assertTrue(caller.is_closed())
        caller = self.caller()
        caller.send(version="1.0", host=None)
        self.assertEqual(caller.read()[0], 200)
        self.assertTrue(caller.is_closed())

    def test_cors(self):
        """No web page may call but those that are named."""
        server = self.serve()
        page = {"origin": "https://app.example"}
        status, fields, _ = self.call(**page)
        self.assertEqual((status, server.requests), (403, []))
        self.assertNotIn("access-control-allow-origin", fields)
        self.assertEqual(self.call(None, CHAT, "OPTIONS", **page)[0], 403)
        self.start(entry(server), origins=["https://app.example"], settings={"master_key": MASTER})
        for method, status in (("OPTIONS", 200), ("POST", 401)):
            found, fields, _ = self.call(
                None, CHAT, method, access_control_request_headers="x-a", **page)
            self.assertEqual((found, fields["vary"]), (status, "Origin"))
            self.assertEqual(fields["access-control-allow-origin"], "https://app.example")
            self.assertEqual(fields["access-control-allow-headers"], "x-a")
        self.assertEqual(self.call(origin="https://other.example")[0], 403)

    def test_log(self):
        """Each request is one line with time, caller, route, model, status, seconds, tokens."""
        self.serve()
        self.call()
        self.call(path="/v1/nope?key=syn_q", authorization="Bearer syn_caller")
        self.wait_for(lambda: self.log.getvalue().count("\n") == 2)
        first, second = self.log.getvalue().splitlines()
        when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ 127.0.0.1"
        self.assertRegex(first, when + " POST /v1/chat/completions m 200 [0-9.]+ 1 2 -$")
        self.assertRegex(second, when + " POST /v1/nope - 404 [0-9.]+ - - APIStatusError$")
        self.proxy.as_json = True
        self.call()
        self.wait_for(lambda: self.log.getvalue().count("\n") == 3)
        line = json.loads(self.log.getvalue().splitlines()[2])
        self.assertEqual((line["model"], line["status"], line["completion_tokens"]), ("m", 200, 2))
        self.assertNotIn("secret", self.log.getvalue())
        self.assertNotIn("syn_", self.log.getvalue())

    def test_leaks(self):
        """However the upstream tells its key, no caller and no log sees it."""
        escaped = "".join("\\u%04X" % ord(c) for c in KEY[:3]) + KEY[3:]
        answers = []
        for text in (KEY, escaped):
            body = ('{"a": "%s"}' % text).encode()
            answers += [answer(200, body), answer(401, body), answer(500, body),
                        answer(200, '{"error": "%s"}' % text), answer(401, "bad " + KEY),
                        answer(200, body, {"x-request-id": KEY, "set-cookie": KEY})]
        events = [("data: %s\n\n" % text).encode() for text in (KEY, escaped)]
        answers.append(lambda conn: conn.send_sse(events + ['{"error": "%s"}' % KEY], done=False))
        self.serve(answers)
        for number in range(len(answers)):
            caller = self.caller()
            caller.send(dict(ASKED, stream=number == len(answers) - 1), connection="close")
            told = caller.file.read().decode()
            self.assertRegex(told, r"^HTTP/1.1 [245]")
            self.assertNotIn(KEY[3:], re.sub(
                r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found.group(1), 16)), told))
        self.assertNotIn(KEY[3:], self.log.getvalue())


class Streams(Proxied):
    def test_at_once(self):
        """Each event goes out when it has come, with the upstream's bytes."""
        told = threading.Event()

        def handler(conn):
            conn.start_sse()
            for event in events:
                conn.part(event)
                conn.wait(told)
                told.clear()
            conn.end_sse()

        events = [b": ping\n\n", b"data: {\"a\": 1}\r\n\r\n", b"event: x\rdata: \xc3\xa9\r\r",
                  b"data: 1\ndata: 2\n\n"]
        self.serve(handler)
        caller = self.caller()
        caller.send(STREAM)
        status, fields = caller.read_head()
        self.assertEqual((status, fields["content-type"][:17]), (200, "text/event-stream"))
        for event in events:
            self.assertEqual(caller.read_piece(), event)
            told.set()
        self.assertEqual(caller.read_stream(), (b"data: [DONE]\n\n", True))
        caller.send(None, "/v1/models", "GET")
        self.assertEqual(caller.read()[0], 200)

    def test_ends(self):
        """A stream ends by [DONE], or as its framing says once all choices have finished."""
        usage = dict(chunk(), choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4})

        def lingering(conn):
            conn.start_sse()
            conn.part(b"data: {\"a\":\n\ndata: [DONE]\n\n")
            conn.gone()
        self.serve([lingering, lambda conn: conn.send_sse(chunks("a") + [usage], done=False),
                    lambda conn: conn.send_sse(chunks("a"), done=False, chunked=False)])
        for _ in range(3):
            with self.caller() as caller:
                caller.send(STREAM)
                caller.read_head()
                self.assertTrue(caller.read_stream()[1])
        self.wait_for(lambda: " 3 4 -\n" in self.log.getvalue())

    def test_cut(self):
        """A stream that breaks off ends in an error event, and its framing never ends."""
        def cut(conn, chunked=True, ends=None):
            conn.start_sse(chunked)
            conn.event(chunk("a"))
            conn.part(b"data: {\"half\":")
            ends(conn)
        server = self.serve([
            lambda conn: cut(conn, ends=lambda conn: conn.close()),
            lambda conn: cut(conn, ends=lambda conn: conn.reset()),
            lambda conn: cut(conn, ends=lambda conn: conn.raw(b"junk\r\n")),
            lambda conn: cut(conn, ends=lambda conn: conn.end_sse(done=False)),
            lambda conn: cut(conn, chunked=False, ends=lambda conn: conn.close()),
        ])
        for number, _ in enumerate(server.answers * 2):
            server.requests[:] = [None] * (number % len(server.answers))
            version = "1.0" if number >= len(server.answers) else "1.1"
            with self.subTest(number=number), self.caller() as caller:
                caller.send(STREAM, version=version)
                status, fields = caller.read_head()
                self.assertEqual(status, 200)
                body, whole = (caller.file.read(), False) if version == "1.0" else (
                    caller.read_stream())
                self.assertFalse(whole)
                self.assertNotIn(b"half", body)
                last = body.split(b"data: ")[-1]
                self.assertIn("broke off", json.loads(last.decode())["error"]["message"])
                self.assertTrue(caller.is_closed())

    def test_no_stream(self):
        """What is no stream where one was asked for, and an empty one, are a 502."""
        self.serve([completion(), answer(200, "<html>", {"Content-Type": "text/html"}),
                    lambda conn: conn.send_sse([], done=False)])
        for _ in range(3):
            self.assertEqual(self.refused(STREAM)[0], 502)


class Failover(Proxied):
    def start_two(self, *answers):
        """Start a proxy before two servers of one model; return the servers."""
        servers = [Server(list(given)) for given in answers]
        for server in servers:
            server.__enter__()
            self.addCleanup(server.__exit__, None, None, None)
        self.start(*[entry(server) for server in servers])
        return servers

    def asked(self, servers):
        return [len(server.requests) for server in servers]

    def test_next(self):
        """The next entry is asked, once, after 429, 5xx, no answer and nonsense."""
        failures = [lambda conn: conn.reset(), answer(429, ""), answer(500, ""), answer(503, ""),
                    answer(200, "<a>"), answer(200, {"error": "x"})]
        first, second = self.start_two(failures, [completion("b")])
        for _ in failures:
            self.assertEqual(self.call()[0], 200)
            for one in self.proxy.gateway._models["m"]:
                one.rests_until = 0.0
        self.assertEqual(self.asked([first, second]), [6, 6])
        self.assertIn(" 200 ", self.log.getvalue())
        self.assertIn("RateLimitError\n", self.log.getvalue())

    def test_not_next(self):
        """A refusal of the request itself is the answer."""
        refusals = [answer(status, "") for status in (400, 401, 404)]
        servers = self.start_two(refusals, [completion()])
        self.assertEqual([self.call()[0] for _ in range(3)], [400, 401, 404])
        self.assertEqual(self.asked(servers), [3, 0])

    def test_rest(self):
        """An entry that failed is asked last for a while, and first again after it."""
        servers = self.start_two([answer(500, ""), completion()], [completion()])
        for _ in range(3):
            self.assertEqual(self.call()[0], 200)
        self.assertEqual(self.asked(servers), [1, 3])
        self.proxy.gateway._models["m"][0].rests_until = time.monotonic() - 1
        self.call()
        self.assertEqual(self.asked(servers), [2, 3])

    def test_all_rest(self):
        """Where all rest they are asked all the same; the last one's error is the answer."""
        servers = self.start_two([answer(500, "")], [answer(429, "", {"Retry-After": "9"})])
        for _ in range(2):
            status, fields, _ = self.call()
        self.assertEqual(self.asked(servers), [2, 2])
        self.assertEqual((status, fields["retry-after"]), (429, "9"))

    def test_stream(self):
        """A stream moves on while nothing has gone out, and no further."""
        def cut(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            conn.close()

        def dead(conn):
            conn.start_sse()
            conn.close()
        servers = self.start_two([dead, cut], [chunks("b")])
        with self.caller() as caller:
            caller.send(STREAM)
            caller.read_head()
            self.assertTrue(caller.read_stream()[1])
        self.proxy.gateway._models["m"][0].rests_until = 0
        with self.caller() as caller:
            caller.send(STREAM)
            caller.read_head()
            self.assertFalse(caller.read_stream()[1])
        self.assertEqual(self.asked(servers), [2, 1])


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
BAD_HEADS = {
    "both lengths": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "equal lengths": HEAD + b"Content-Length: 5\r\ncontent-length: 5\r\n\r\n",
    "list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\n",
    "signed length": HEAD + b"Content-Length: +5\r\n\r\n",
    "underscored length": HEAD + b"Content-Length: 1_0\r\n\r\n",
    "no length": HEAD + b"Content-Length:\r\n\r\n",
    "bare line feed": HEAD + b"X: y\nContent-Length: 5\r\n\r\n",
    "bare line feeds": HEAD.replace(b"\r", b"") + b"\n",
    "bare carriage return": HEAD + b"X: y\rContent-Length: 5\r\n\r\n",
    "folded header": HEAD + b"X: y\r\n Content-Length: 5\r\n\r\n",
    "space before colon": HEAD + b"Content-Length : 5\r\n\r\n",
    "no colon": HEAD + b"Content-Length\r\n\r\n",
    "no name": HEAD + b": 5\r\n\r\n",
    "NUL": HEAD + b"X: a\0b\r\n\r\n",
    "two hosts": HEAD + b"Host: y\r\n\r\n",
    "no host": HEAD.replace(b"Host", b"Most") + b"\r\n",
    "two keys": HEAD + b"Authorization: a\r\nAuthorization: b\r\n\r\n",
    "no version": b"GET /v1/models\r\n\r\n",
    "old version": b"GET /v1/models HTTP/0.9\r\n\r\n",
    "new version": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "spaces": b"GET  /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "tab": b"GET\t/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute": b"GET http://x/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "empty line first": b"\r\n" + HEAD + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
OTHER_HEADS = {
    411: HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    413: HEAD + b"Content-Length: 10485761\r\n\r\n",
    431: HEAD + b"X: " + b"y" * 32768 + b"\r\n\r\n",
}


class Heads(unittest.TestCase):
    def status(self, data):
        with self.assertRaises(sc.APIStatusError) as caught:
            for end in range(len(data) + 1):
                self.assertIsNone(head_module.parse_head(data[:end]))
        return caught.exception.status_code

    def test_refused(self):
        """What can be read in two ways is refused, whole, byte by byte and with more behind."""
        for name, data in BAD_HEADS.items():
            with self.subTest(name):
                self.assertEqual(self.status(data), 400)
                for more in (b"", b"GET / HTTP/1.1\r\n\r\n"):
                    with self.assertRaises(sc.APIStatusError) as caught:
                        head_module.parse_head(data + more)
                    self.assertEqual(caught.exception.status_code, 400)

    def test_other_refusals(self):
        """Chunks, too long a body and too long a head have statuses of their own."""
        for status, data in OTHER_HEADS.items():
            with self.assertRaises(sc.APIStatusError) as caught:
                head_module.parse_head(data)
            self.assertEqual(caught.exception.status_code, status)

    def test_accepted(self):
        """A head is read whole, byte by byte and with more behind, which is left."""
        data = HEAD + (b"X-A:b\r\nx-b: \t c d\xa0\t \r\nX-A: e\r\nEmpty:\r\n"
                       b"Content-Length: 3\r\n\r\n")
        head, rest = head_module.parse_head(data + b"abc\nGET")
        self.assertEqual(rest, b"abc\nGET")
        self.assertEqual(head.fields, {"host": "x", "x-a": "e", "x-b": "c d\xa0", "empty": "",
                                       "content-length": "3"})
        self.assertEqual((head.method, head.path, head.length), ("POST", CHAT, 3))
        for end in range(len(data)):
            self.assertIsNone(head_module.parse_head(data[:end]))


class Limits(Proxied):
    def test_refused_and_closed(self):
        """After a head that is refused nothing more of the connection is read as a request."""
        server = self.serve()
        for status, data in [(400, head) for head in BAD_HEADS.values()] + [*OTHER_HEADS.items()]:
            with self.caller() as caller:
                caller.sock.sendall(data + HEAD + b"\r\n")
                found, fields, body = caller.read()
                self.assertEqual((found, fields["connection"]), (status, "close"))
                self.assertIn("message", json.loads(body.decode())["error"])
                self.assertEqual(caller.file.read(), b"")
        self.assertEqual(server.requests, [])

    def test_large_body(self):
        """A body over 10 MiB is refused by its head, in words that reach who sends it anyway."""
        server = self.serve()
        with self.caller() as caller:
            caller.sock.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
            for _ in range(4):
                time.sleep(0.01)
                caller.sock.sendall(b"x" * 65536)
            self.assertEqual(caller.read()[0], 413)
        body = json.dumps(dict(ASKED, x="")).encode()
        self.assertEqual(self.call(dict(ASKED, x="y" * (10485760 - len(body))))[0], 200)
        self.assertEqual(len(server.requests[0].json["x"]), 10485760 - len(body))

    def test_expect(self):
        """A caller that waits for leave to send its body gets it, or the refusal."""
        self.serve()
        for path, status in ((CHAT, 100), ("/nope", 404)):
            with self.caller() as caller:
                body = json.dumps(ASKED).encode()
                caller.send(b"", path, expect="100-continue", content_length=len(body))
                line = caller.file.readline()
                self.assertEqual(int(line.split()[1]), status)
                if status == 100:
                    caller.file.readline()
                    caller.sock.sendall(body)
                    self.assertEqual(caller.read()[0], 200)

    def test_slow_callers(self):
        """Who sends a head, or the rest of a body, too slowly is shut out; so is who is idle."""
        def dripping(caller):
            with contextlib.suppress(OSError):
                for byte in range(100):
                    caller.sock.sendall(HEAD[byte % 9:byte % 9 + 1])
                    time.sleep(0.02)
                return False
            return True

        def idle(caller):
            caller.send(None, "/v1/models", "GET")
            caller.read()
            return caller.is_closed()

        def silent(caller):
            return caller.is_closed()

        def half(caller):
            caller.send(b"{", content_length=9)
            return caller.is_closed()

        def check(kind):
            with self.caller() as caller:
                self.assertTrue(kind(caller))
        with mock.patch.multiple(proxy, HEAD_SECONDS=0.1, IDLE_SECONDS=0.1):
            server = self.serve()
            at_once(self, check, [dripping, idle, silent, half])
        self.assertEqual(server.requests, [])

    def test_slow_reader(self):
        """A caller that does not read its stream is given up, and the upstream's end with it."""
        def handler(conn):
            conn.start_sse()
            with self.assertRaises(OSError):
                while not ended.is_set():
                    conn.event("x" * 1000000)
            ended.set()
            conn.close()
        ended = threading.Event()
        with mock.patch.object(proxy, "IDLE_SECONDS", 0.1):
            self.serve(handler)
            caller = self.caller()
            caller.send(STREAM)
            self.assertTrue(ended.wait(5))
            ended.set()
            self.wait_for(lambda: " 499 " in self.log.getvalue())

    def test_connections(self):
        """At the limit, who waits longest makes room; who is being answered never does."""
        release = threading.Event()

        def handler(conn):
            conn.wait(release)
            conn.send_json(completion())
        server = self.serve(handler, connections=3)
        silent = [self.caller() for _ in range(3)]
        busy = [self.caller() for _ in range(3)]
        for number, caller in enumerate(busy):
            caller.send()
            self.wait_for(lambda: len(server.requests) == number + 1)
        self.assertTrue(all(caller.is_closed() for caller in silent))
        extra = self.caller()
        self.assertTrue(extra.is_closed())
        release.set()
        self.assertEqual([caller.read()[0] for caller in busy], [200, 200, 200])
        self.assertEqual(self.call()[0], 200)


class Departures(Proxied):
    def test_caller_leaves(self):
        """A caller that leaves ends its upstream request, before an answer and in mid-stream."""
        gone = []

        def handler(conn):
            if conn.json.get("stay"):
                return conn.send_json(completion())
            if conn.json.get("stream"):
                conn.start_sse()
                conn.event(chunk("a"))
            started = time.monotonic()
            gone.append((conn.gone(), time.monotonic() - started))
            conn.close()
        server = self.serve(handler)
        for asked in (ASKED, STREAM):
            caller = self.caller()
            caller.send(asked)
            if asked is STREAM:
                caller.read_head()
                caller.read_piece()
            self.wait_for(lambda: len(server.requests) == len(gone) + 1)
            before = len(gone)
            caller.leave()
            self.wait_for(lambda: len(gone) > before)
            self.assertEqual(self.call(dict(ASKED, stay=1))[0], 200)
            server.requests.pop()
        self.assertTrue(all(left for left, _ in gone))
        self.assertLess(max(seconds for _, seconds in gone), 2)
        self.wait_for(lambda: len(re.findall(" 499 .* -\n", self.log.getvalue())) == 2)

    def test_no_other_entry(self):
        """For a caller that has left no other entry is asked, and none has to rest."""
        with Server(stall) as silent, Server() as other:
            self.start(entry(silent), entry(other))
            caller = self.caller()
            caller.send()
            self.wait_for(lambda: silent.requests)
            caller.leave()
            self.wait_for(lambda: not silent.alive)
            self.wait_for(lambda: " 499 " in self.log.getvalue())
            self.assertEqual(other.requests, [])
            self.assertEqual(self.proxy.gateway._models["m"][0].rests_until, 0)

    def test_pool(self):
        """Callers that leave with their answer half read do not disturb the pool."""
        server = self.serve()
        for _ in range(30):
            with self.caller() as caller:
                caller.send()
                self.assertEqual(caller.read_head()[0], 200)
        self.assertEqual(self.call()[0], 200)
        self.assertEqual(len(server.requests), 31)


class Stops(Proxied):
    def test_finishes(self):
        """Stopped, the proxy ends idle connections, takes no more, and finishes what runs."""
        release = threading.Event()
        self.serve(answer_when(release))
        idle, half, busy = self.caller(), self.caller(), self.caller()
        half.sock.sendall(HEAD)
        busy.send(STREAM)
        busy.read_head()
        first = busy.read_piece()
        self.assertIn(b'"a"', first)
        self.proxy.stop()
        self.assertTrue(idle.is_closed() and half.is_closed())
        with self.assertRaises(OSError):
            Caller(self.proxy.server_address[1])
        self.assertTrue(self.thread.is_alive())
        release.set()
        self.assertTrue(busy.read_stream()[1])
        self.assertTrue(busy.is_closed())
        self.thread.join(LIMIT)
        self.assertFalse(self.thread.is_alive())

    def test_grace(self):
        """What has not finished within the grace is told so, and never looks whole."""
        def handler(conn):
            if conn.json.get("stream"):
                conn.start_sse()
                conn.event(chunk("a"))
            conn.gone()
            conn.close()
        server = self.serve(handler, grace=0.1)
        streamed, whole = self.caller(), self.caller()
        streamed.send(STREAM)
        streamed.read_head()
        streamed.read_piece()
        whole.send()
        self.wait_for(lambda: len(server.requests) == 2)
        begun = time.monotonic()
        self.proxy.stop()
        body, ended = streamed.read_stream()
        self.assertLess(time.monotonic() - begun, 2)
        self.assertFalse(ended)
        self.assertIn(b"error", body)
        self.assertEqual(whole.read()[0], 502)
        self.thread.join(LIMIT)
        self.assertFalse(self.thread.is_alive())


class Command(unittest.TestCase):
    """The proxy as a process of its own."""

    def run_proxy(self, data, *arguments, **variables):
        """Start the command; return the process."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "config.json")
        with open(path, "w") as file:
            json.dump(data, file)
        process = subprocess.Popen(
            [sys.executable, "-m", sc.__name__, "proxy", "--config", path,
             "--port", "0"] + list(arguments),
            cwd=folder.name, env=environment(**variables), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_documented_example(self):
        """LiteLLM's documented example starts as it is; SIGTERM lets it finish what runs."""
        example = {"model_list": [{"model_name": "my-model", "litellm_params": {
            "model": "synthetic/hf:test/model", "api_key": "os.environ/SYNTHETIC_API_KEY"}}]}
        release = threading.Event()
        with Server(answer_when(release)) as server:
            process = self.run_proxy(
                example, SYNTHETIC_API_KEY=KEY, SYNTHETIC_BASE_URL=server.base_url)
            port = int(process.stderr.readline().rpartition(":")[2])
            with Caller(port) as caller:
                caller.send(dict(STREAM, model="my-model"))
                caller.read_head()
                caller.read_piece()
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(OSError):
                    while True:  # until it listens no more
                        Caller(port).leave()
                release.set()
                self.assertTrue(caller.read_stream()[1])
        _, said = process.communicate(timeout=LIMIT)
        self.assertEqual(process.returncode, 0)
        self.assertRegex(said, "^[^\n]* my-model 200 [^\n]*\n$")
        self.assertEqual(server.requests[0].json["model"], "hf:test/model")

    def test_interrupt(self):
        """SIGINT is as SIGTERM, and with --json the log is JSON."""
        with Server() as server:
            process = self.run_proxy(config(entry(server)), "--json")
            self.assertIn("listening", json.loads(process.stderr.readline())["event"])
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.communicate(timeout=LIMIT), ("", ""))
        self.assertEqual(process.returncode, 0)

    def test_killed(self):
        """A proxy that is killed in mid-stream leaves the caller without an end."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            conn.gone()
            conn.close()
        with Server(handler) as server:
            process = self.run_proxy(config(entry(server)))
            with Caller(int(process.stderr.readline().rpartition(":")[2])) as caller:
                caller.send(STREAM)
                caller.read_head()
                caller.read_piece()
                process.kill()
                self.assertEqual(caller.read_stream(), (b"", False))

    def test_refusals(self):
        """What is wrong is told in one line with exit code 2; so is a host beyond loopback."""
        data = config({"model_name": "m", "litellm_params": {"model": "hf:a/b", "api_key": KEY}})
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "config.json")
            with open(path, "w") as file:
                json.dump(data, file)
            for wanted, arguments in [
                ("master_key", ["--config", path, "--host", "0.0.0.0"]),
                ("65535", ["--config", path, "--port", "70000"]),
                ("no/such.json", ["--config", "no/such.json"]),
                ("--config", []), ("--grace", ["--config", path, "--grace", "x"]),
            ]:
                said = io.StringIO()
                with self.subTest(wanted), self.assertRaises(SystemExit) as ended, \
                        contextlib.redirect_stderr(said):
                    cli.main(["proxy"] + arguments)
                self.assertEqual((ended.exception.code, said.getvalue().count("\n")), (2, 1))
                self.assertIn(wanted, said.getvalue())

    def test_hosts(self):
        """Beyond loopback the proxy listens only with a master_key."""
        data = config({"model_name": "m", "litellm_params": {"model": "hf:a/b", "api_key": KEY}})
        for host in ("127.0.0.1", "localhost"):
            with mock.patch("socket.getfqdn", side_effect=AssertionError("may ask the network")):
                proxy.Proxy(read_config(data), (host, 0)).server_close()
        for host in ("0.0.0.0", ""):
            with self.assertRaises(sc.ConfigurationError):
                proxy.Proxy(read_config(data), (host, 0))
            data["general_settings"]["master_key"] = MASTER
            proxy.Proxy(read_config(data), (host, 0)).server_close()
            del data["general_settings"]["master_key"]


if __name__ == "__main__":
    unittest.main()
