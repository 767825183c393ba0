# SPDX-License-Identifier: MIT
"""A loopback HTTP server made of raw bytes, for tests: it can say anything and break anywhere.

    def handler(conn):                       # called once for each request
        assert conn.path == "/v1/chat/completions" and conn.json["model"] == MODEL
        conn.send_json(completion("hi"))     # or send_sse, raw, reset, close, wait ...

    with Server(handler) as server:
        server.client().chat("hello")        # a SyntheticClient; closed when the server is
        server.requests[0].headers["authorization"], server.connections

In place of a handler: a list of answers, one for each request, the last one repeating. An answer
is a handler, a dict (sent as JSON with status 200), a list (sent as a stream of chunks, then
[DONE]) or bytes (sent as they are). `answer(status, body, headers)` makes a handler.

The request: conn.method, .path, .headers (lower-case names, the last of equals), .body, .json.
It also stays in server.requests. Sending:

    conn.send_json(obj, status=200, headers={})   conn.send(status, body=b"", headers={})
    conn.send_sse([dict, str or bytes ...], done=True, chunked=True, headers={})
        a dict is one event of JSON, a str one event's data, bytes go out as they are
    conn.start_sse(chunked=True, headers={}), conn.event(item) ..., conn.end_sse(done=True)
        the same by hand
    conn.raw(bytes)      conn.close()     conn.reset() (RST)
    conn.wait(seconds)   conn.wait(event, seconds=10)   both end early when the server stops
    conn.drip(bytes, every=0.02) sends byte by byte
    conn.gone(seconds=5) waits until the client has closed: True, or False when it has not

The connection stays open after an answer that has an end; a handler that wants to end it calls
close(). `Server(handler, connect=hook)`: hook(conn) runs before anything is read (a server that
accepts and says nothing: `connect=stall`). `tls="localhost"` serves TLS with data/NAME.pem
("localhost", "expired", "wrong-host", "lax"); the client then trusts data/ca.pem, unless
ca_file or ssl_context is passed to server.client().

`Proxy(to=server, auth="user:pass")` is an HTTP proxy: CONNECT and plain forwarding. Whatever host
is asked for, `to` is where it goes (default: where the request says). Its .requests and
.connections count what reached the proxy itself; missing or wrong `auth` is answered with 407.

Leaving the `with` wakes every handler, joins every thread, and raises what a handler raised.
"""

import base64
import json
import os
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from . import synthetic_client as sc

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
CA_FILE = os.path.join(DATA, "ca.pem")
KEY = "syn_test_key_0123456789abcdef"
MODEL = "hf:test/model"
LIMIT = 10.0  # seconds after which anything here counts as hung
# Where the package under test is imported from: the folder, or the zip, that is on sys.path.
ROOT = os.path.abspath(sc.__file__).rsplit(os.sep, sc.__name__.count(".") + 2)[0]

# data/*.pem were made once by `openssl ca`, with EC keys and dates 2020 to 2079: ca.pem signs
# localhost.pem (DNS:localhost, IP:127.0.0.1), expired.pem (ended in 2020), wrong-host.pem
# (DNS:elsewhere.example) and lax.pem (as localhost.pem, without the key identifiers that
# VERIFY_X509_STRICT wants); all have key.pem. other-ca.pem signs nothing. The keys of the two
# authorities were thrown away.


def completion(text="hello", **fields):
    """Return a chat completion as a server sends it."""
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                         "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    body.update(fields)
    return body


def chunk(text=None, finish_reason=None, index=0, **delta):
    """Return one chunk of a stream as a server sends it."""
    if text is not None:
        delta["content"] = text
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
            "choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}]}


def chunks(*texts):
    """Return the chunks of a whole streamed answer, one for each text."""
    return [chunk(text) for text in texts] + [chunk(finish_reason="stop")]


def answer(status=200, body=None, headers=None):
    """Return a handler: `body` is a dict or list (JSON), str or bytes; None is a completion."""
    body = completion() if body is None else body
    if isinstance(body, str):
        body = body.encode()
    if isinstance(body, bytes):
        return lambda conn: conn.send(status, body, headers)
    return lambda conn: conn.send_json(body, status, headers)


def environment(server=None, **variables):
    """Return an environment for a program: the package, a key and the server, and little else."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("SYNTHETIC_", "PYTHON")) and name not in ("NO_COLOR", "TERM")}
    kept.update(SYNTHETIC_API_KEY=KEY, TERM="xterm", no_proxy="*", PYTHONWARNINGS="error",
                PYTHONPATH=ROOT)
    if server is not None:
        kept["SYNTHETIC_BASE_URL"] = server.base_url
    kept.update(variables)
    return kept


def head(first_line, headers):
    """Return the head of a request or an answer."""
    lines = [first_line] + ["%s: %s" % item for item in headers.items()]
    return "\r\n".join(lines + ["", ""]).encode("latin-1")


def answer_when(released):
    """Return a handler whose stream waits for an event in its middle."""
    def handler(conn):
        conn.start_sse()
        conn.event(chunk("a"))
        conn.wait(released)
        conn.event(chunk(finish_reason="stop"))
        conn.end_sse()
    return handler


def stall(conn):
    """Say nothing until the server stops or the client goes away: a handler or a hook."""
    conn.gone(LIMIT)


def soon(condition, seconds=2.0):
    """Wait until a condition holds, and say whether it does."""
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.005)
    return condition()


def trace_memory(test):
    """Trace memory during a test; return a function that gives the bytes held, and the most."""
    try:
        import tracemalloc
    except ImportError:
        test.skipTest("this Python does not trace memory")
    tracemalloc.start()
    test.addCleanup(tracemalloc.stop)
    return tracemalloc.get_traced_memory


def at_once(test, check, cases):
    """Check all the cases at the same time, each as a subtest: for cases that wait."""
    with ThreadPoolExecutor(len(cases)) as threads:
        results = [(case, threads.submit(check, case)) for case in cases]
        for case, result in results:
            with test.subTest(case=case):
                result.result()


class Stopped(Exception):
    """Ends a handler whose server stops."""


class Request:
    """What one request held."""

    def __init__(self, method, path, version, headers, body):
        self.method, self.path, self.version = method, path, version
        self.headers, self.body = headers, body

    @property
    def json(self):
        return json.loads(self.body.decode())


class Conn:
    """One accepted connection and the request it is answering."""

    def __init__(self, server, sock):
        self.server, self.sock = server, sock
        self.file = sock.makefile("rb")
        self.request = None
        self.chunked = False

    method = property(lambda self: self.request.method)
    path = property(lambda self: self.request.path)
    headers = property(lambda self: self.request.headers)
    body = property(lambda self: self.request.body)
    json = property(lambda self: self.request.json)

    def read_request(self):
        """Return the next request, or None when the client has gone."""
        line = self.file.readline()
        if not line.endswith(b"\n"):
            return None
        method, path, version = line.decode("latin-1").split()
        headers = {}
        for line in iter(self.file.readline, b"\r\n"):
            if not line:
                return None
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = self.file.read(int(headers.get("content-length", 0)))
        return Request(method, path, version, headers, body)

    def raw(self, data):
        """Send bytes; a client that has gone ends the handler."""
        if self.server.stopping.is_set():
            raise Stopped
        self.sock.sendall(data)

    def send(self, status=200, body=b"", headers=None):
        """Send a whole answer with its Content-Length."""
        fields = {"Content-Length": len(body)}
        fields.update(headers or {})
        self.raw(head("HTTP/1.1 %d Answer" % status, fields) + body)

    def send_json(self, obj, status=200, headers=None):
        """Send a whole answer of JSON."""
        fields = {"Content-Type": "application/json"}
        fields.update(headers or {})
        self.send(status, json.dumps(obj).encode(), fields)

    def send_sse(self, items, done=True, chunked=True, headers=None):
        """Send a whole stream; without chunked framing it ends with the connection."""
        self.start_sse(chunked, headers)
        for item in items:
            self.event(item)
        self.end_sse(done)

    def start_sse(self, chunked=True, headers=None):
        """Send a stream's headers."""
        self.chunked = chunked
        fields = {"Content-Type": "text/event-stream"}
        fields.update({"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"})
        fields.update(headers or {})
        self.raw(head("HTTP/1.1 200 Answer", fields))

    def event(self, item):
        """Send one event: a dict, its data as str, or bytes as they are."""
        if isinstance(item, dict):
            item = json.dumps(item)
        self.part(item if isinstance(item, bytes) else ("data: %s\n\n" % item).encode())

    def part(self, data):
        """Send bytes of a streamed body, as one chunk where the body is chunked."""
        self.raw(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)

    def end_sse(self, done=True):
        """Send [DONE] where wanted, then the end of the body."""
        if done:
            self.event("[DONE]")
        if self.chunked:
            self.raw(b"0\r\n\r\n")
        else:
            self.close()

    def wait(self, what, seconds=LIMIT):
        """Wait for a threading.Event, or so many seconds; False when the event did not come."""
        if not isinstance(what, threading.Event):
            what, seconds = self.server.stopping, what
        self.server.waited.append(what)
        came = self.server.stopping.is_set() or what.wait(seconds)
        if self.server.stopping.is_set():
            raise Stopped
        return came

    def drip(self, data, every=0.02):
        """Send bytes one at a time, so many seconds apart."""
        for start in range(len(data)):
            self.raw(data[start:start + 1])
            self.wait(every)

    def gone(self, seconds=5.0):
        """Wait until the client has closed the connection, and say whether it has."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(65536):
                pass
            return True
        except socket.timeout:
            return False
        except OSError:
            return True

    def close(self):
        """End the connection in order, as far as TCP goes."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.file.close()
        self.sock.close()

    def reset(self):
        """End the connection with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.sock.close()

    @property
    def closed(self):
        return self.sock.fileno() == -1


class Server:
    """See the module's docstring."""

    def __init__(self, answers=None, connect=None, tls=None, host="127.0.0.1"):
        answers = answer() if answers is None else answers
        self.answers = answers if isinstance(answers, list) else [answers]
        self.connect, self.tls = connect, tls
        self.requests, self.errors, self.clients = [], [], []
        self.connections = 0
        self.stopping = threading.Event()
        self.waited, self.open, self.threads = [], [], []
        self.lock = threading.Lock()
        self.listener = socket.socket()
        self.listener.bind((host, 0))
        self.listener.listen(64)
        self.host, self.port = self.listener.getsockname()
        self.origin = "%s://%s:%d" % ("https" if tls else "http", host, self.port)
        self.base_url = self.origin + "/v1"
        if tls:
            self.tls_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls_context.load_cert_chain(os.path.join(DATA, tls + ".pem"),
                                             os.path.join(DATA, "key.pem"))

    def client(self, **options):
        """Return a client of this server, closed when the server is; no retries by default."""
        settings = {"base_url": self.base_url, "model": MODEL, "max_retries": 0, "timeout": LIMIT}
        if self.tls and "ssl_context" not in options:
            settings["ca_file"] = CA_FILE
        settings.update(options)
        client = sc.SyntheticClient(settings.pop("api_key", KEY), **settings)
        self.clients.append(client)
        return client

    def __enter__(self):
        self.start(self.accept)
        return self

    def __exit__(self, exc_type, exc, traceback):
        for client in self.clients:
            client.close()
        self.stop()
        if self.errors:
            raise self.errors[0]

    @property
    def alive(self):
        """How many connections are open at this moment."""
        with self.lock:
            return sum(sock.fileno() != -1 for sock in self.open)

    def start(self, target, *args):
        """Start a thread that stop() joins."""
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def stop(self):
        """Wake every thread, end every connection, and wait until nothing is left."""
        self.stopping.set()
        try:  # wakes accept(): closing a listener does not, on Linux
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            pass
        self.threads[0].join(LIMIT)
        self.listener.close()
        for event in list(self.waited):
            event.set()
        with self.lock:
            left = list(self.open)
        for sock in left:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self.threads:
            thread.join(LIMIT)
        if any(thread.is_alive() for thread in self.threads):
            raise AssertionError("a thread of the test server is stuck")

    def accept(self):
        while True:
            try:
                sock = self.listener.accept()[0]
            except OSError:
                return
            if self.stopping.is_set():
                sock.close()
                return
            self.connections += 1
            self.start(self.serve, sock)

    def serve(self, sock):
        """Answer the requests of one connection."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn = None
        with self.lock:
            self.open.append(sock)
        try:
            conn = Conn(self, sock)
            if self.connect is not None:
                self.connect(conn)
            if self.tls and not conn.closed:
                conn.file.close()
                sock = self.tls_context.wrap_socket(sock, server_side=True)
                with self.lock:
                    self.open.append(sock)
                conn.sock, conn.file = sock, sock.makefile("rb")
            while not conn.closed:
                conn.request = conn.read_request()
                if conn.request is None:
                    break
                self.handle(conn)
                if conn.request.headers.get("connection") == "close":
                    break
        except (OSError, Stopped):  # the client went away, or the server stops
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            if conn is not None and not conn.closed:
                conn.close()
            sock.close()

    def handle(self, conn):
        """Note one request and give it its answer."""
        with self.lock:
            number = len(self.requests)
            self.requests.append(conn.request)
        item = self.answers[min(number, len(self.answers) - 1)]
        if callable(item):
            item(conn)
        elif isinstance(item, bytes):
            conn.raw(item)
        elif isinstance(item, list):
            conn.send_sse(item)
        else:
            conn.send_json(item)


class Proxy(Server):
    """An HTTP proxy on loopback; see the module's docstring."""

    def __init__(self, to=None, auth=None):
        Server.__init__(self, self.forward)
        self.to, self.auth = to, auth
        self.url = self.origin

    def forward(self, conn):
        """Check the credentials, then tunnel or forward."""
        if self.auth is not None:
            wanted = "Basic " + base64.b64encode(self.auth.encode()).decode()
            if conn.headers.get("proxy-authorization") != wanted:
                conn.send(407, b"", {"Proxy-Authenticate": 'Basic realm="tests"'})
                return
        target = conn.path if conn.method == "CONNECT" else conn.path.split("/")[2]
        host, _, port = target.partition(":")
        if self.to is not None:
            host, port = "127.0.0.1", self.to.port
        upstream = socket.create_connection((host, int(port or 80)), LIMIT)
        upstream.settimeout(None)
        with self.lock:
            self.open.append(upstream)
        with upstream:
            if conn.method == "CONNECT":
                conn.raw(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self.start(self.relay, conn.sock, upstream)
            else:
                upstream.sendall(plain_request(conn.request))
            self.relay(upstream, conn.sock)
        conn.close()

    @staticmethod
    def relay(source, sink):
        """Copy bytes until either side ends, then tell the other."""
        try:
            for data in iter(lambda: source.recv(65536), b""):
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def plain_request(request):
    """Return the bytes that a plain proxy sends on for a request."""
    headers = {name: value for name, value in request.headers.items()
               if name not in ("proxy-authorization", "proxy-connection", "connection")}
    headers["connection"] = "close"
    path = "/" + request.path.split("/", 3)[3]
    return head("%s %s HTTP/1.1" % (request.method, path), headers) + request.body
