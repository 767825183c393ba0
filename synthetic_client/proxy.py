# SPDX-License-Identifier: MIT
"""The proxy: one machine holds the key, everything else speaks OpenAI's protocol to it.

Strategy: a `Proxy` gives each connection a thread, in which a `_Handler` reads requests by the
strict rules of head.py and has gateway.py answer them. A connection either waits for its caller,
and may be closed at any time, or is being answered. The loop that accepts also listens whether
those callers are still there, and stops the clock of one that is not, which ends its upstream
request. A stream that breaks off gets no end, and so never looks whole.
"""

import argparse
import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .errors import ConfigurationError, SyntheticError
from .gateway import Gateway, describe, read_config, summarize
from .head import Head, check_origin, parse_head, refusal
from .request import encode, is_loopback
from .retry import Clock
from .wire import JSONObject

HEAD_SECONDS, IDLE_SECONDS, LINGER_SECONDS = 10.0, 60.0, 2.0
_BLOCK = 65536  # bytes in one read or write
_TICK = 0.05  # seconds between two looks at callers and signals
_GONE = 499  # nginx's status for a caller that left before it was answered


class Proxy(ThreadingHTTPServer):
    """The server: it listens from when it is made, and answers in `serve`.

    Args:
        address: host and port; port 0 is one that is free.
        connections: how many may be open at a time.
        origins: of the web pages that may call, such as "https://app.example".
    """

    daemon_threads = True
    request_queue_size = 1024  # for callers that come at once; http.server has 5
    timeout = _TICK

    def __init__(
        self, gateway: Gateway, address: Tuple[str, int], connections: int = 256,
        origins: Sequence[str] = (), as_json: bool = False
    ) -> None:
        if not gateway.master_key and not is_loopback(f"http://{address[0]}"):
            raise ConfigurationError(
                f"other machines can reach {address[0]}, and no key keeps them out; set "
                "general_settings.master_key, or listen on 127.0.0.1")
        self.gateway, self.connections, self.origins = gateway, connections, origins
        self.as_json = as_json
        self.stops = 0  # how often `stop` was called
        self._lock = threading.Lock()
        # each connection, the longest at what it does first, and what answers it or None
        self._callers: Dict[Any, Optional[_Handler]] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind; HTTPServer's own way asks DNS for the host's name, which may take long."""
        super(HTTPServer, self).server_bind()

    def stop(self, *_: Any) -> None:
        """Take no more requests and finish those that run; called again, end them too."""
        self.stops += 1

    def serve(self, grace: float = 30.0) -> None:
        """Answer until `stop` is called, and for up to `grace` seconds what runs then."""
        while not self.stops:
            self.handle_request()
            self._listen()
        self.socket.close()
        with self._lock:
            for connection in [one for one, handler in self._callers.items() if not handler]:
                _end(connection)
        self._wait(grace, 2)
        for handler in self._busy():
            handler.clock.stop()
        self._wait(LINGER_SECONDS, 3)  # for them to say so

    def _wait(self, seconds: float, stops: int) -> None:
        """Wait until all answers are done, so many seconds or until `stop` was called again."""
        ends = time.monotonic() + seconds
        while self._busy() and self.stops < stops and time.monotonic() < ends:
            self._listen()
            time.sleep(_TICK)

    def _busy(self) -> "List[_Handler]":
        with self._lock:
            return [handler for handler in self._callers.values() if handler]

    def _listen(self) -> None:
        """End the upstream requests whose callers have gone."""
        with self._lock:
            for handler in self._callers.values():
                if handler is not None and not handler.unread:
                    handler.listen()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Make room for a connection, by ending the one that waits longest; else refuse it."""
        with self._lock:
            if len(self._callers) >= self.connections:
                idle = [one for one, handler in self._callers.items() if not handler]
                if not idle:
                    return False
                del self._callers[idle[0]]
                _end(idle[0])
            self._callers[request] = None
            return True

    def turn(self, connection: Any, handler: "Optional[_Handler]") -> None:
        """Note what answers a connection now; None for nothing, as it waits for its caller."""
        with self._lock:
            known = connection in self._callers
            if handler is not None and (self.stops or not known):
                raise refusal(503, "the proxy ends, or has too many callers")
            if known:
                del self._callers[connection]  # as it begins anew, as the youngest
                self._callers[connection] = handler
            if self.stops:
                _end(connection)

    def close_request(self, request: Any) -> None:
        """End a connection and forget it."""
        with self._lock:
            self._callers.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what kind of error the proxy itself has made; its text may hold content."""
        self.log(error=f"a fault of the proxy itself: {sys.exc_info()[0]!r}")

    def log(self, **fields: Any) -> None:
        """Write a line to stderr, in one piece; nobody need read it."""
        fields = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **fields}
        words = ["-" if value is None else str(value) for value in fields.values()]
        try:
            sys.stderr.write((json.dumps(fields) if self.as_json else " ".join(words)) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


class _Handler(BaseHTTPRequestHandler):
    """One connection, and the request that it is at, which the gateway answers by `send`."""

    server: Any  # a Proxy
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.unread, self.close_connection, wait = b"", False, HEAD_SECONDS
        try:
            with self.connection.dup() as self.ear:  # with a time-out of its own, of nothing
                self.ear.settimeout(0)
                while not self.close_connection:
                    self._serve(wait)
                    wait = IDLE_SECONDS
            if not self.is_read:  # what was said must reach who still sends (RFC 9112, 9.6)
                self.connection.shutdown(1)
                ends = time.monotonic() + LINGER_SECONDS
                while self._receive(ends):
                    pass
        except OSError:
            pass  # the caller has gone, or was too slow

    def _serve(self, wait: float) -> None:
        """Answer the next request, if it begins within `wait` seconds."""
        self.head, self.status = Head(), 0
        self.model: Optional[str] = None
        self.errors: List[SyntheticError] = []
        self.cors: Dict[str, str] = {}
        self.usage: JSONObject = {}
        self.has_begun = self.has_left = self.is_read = False
        self.close_connection = True
        self.clock = Clock(600.0, 10.0, None)  # as a client has it
        started = time.monotonic()
        try:
            if self._read_head(started + wait):
                started = time.monotonic()
                self._answer()
        except SyntheticError as error:
            self._send_error(error)
        except OSError:
            self.status = 0 if self.head.method == "-" else _GONE
            raise
        finally:
            if self.status:
                self._log(time.monotonic() - started)
            self.server.turn(self.connection, None)

    def _read_head(self, ends: float) -> bool:
        """Read the next request's head, and say whether one came; begun, it has its own time."""
        while True:
            parsed = parse_head(self.unread)
            if parsed is not None:
                self.head, self.unread = parsed
                self.is_read = not self.head.length
                return True
            data = self._receive(ends)
            if not data:
                self.is_read = True
                return False
            if not self.unread:
                ends = time.monotonic() + HEAD_SECONDS
            self.unread += data

    def _read_body(self) -> bytes:
        size, body = self.head.length, self.unread
        if size > len(body) and "expect" in self.head.fields:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts, missing = [body], size - len(body)
        while missing > 0:
            parts.append(self._receive(time.monotonic() + HEAD_SECONDS))
            missing -= len(parts[-1])
            if not parts[-1]:
                raise ConnectionAbortedError("the caller left in mid-body")
        body = b"".join(parts)
        self.unread, self.is_read = body[size:], True
        return body[:size]

    def _answer(self) -> None:
        self.cors = check_origin(self.head, self.server.origins)
        if self.cors and self.head.method == "OPTIONS":
            return self.send(200, b"{}")
        self.server.gateway.admit(self.head)
        body = self._read_body()
        self.server.turn(self.connection, self)
        self.server.gateway.answer(self.head, body, self)

    def _receive(self, ends: float) -> bytes:
        """Return what comes next from the caller, b"" at its end."""
        self.connection.settimeout(max(ends - time.monotonic(), 0.001))
        return bytes(self.connection.recv(_BLOCK))

    def listen(self) -> None:
        """Notice that the caller has left, or sends its next request already."""
        try:
            self.unread = self.ear.recv(_BLOCK)
            self.has_left = not self.unread
        except OSError as error:
            self.has_left = not isinstance(error, BlockingIOError)
        if self.has_left:
            self.clock.stop()

    def send(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        """Send a whole answer."""
        framing = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        head = self._make_head(status, {**framing, **headers})
        self._write(head if self.head.method == "HEAD" else head + body)

    def send_events(self, events: bytes) -> None:
        """Send a part of a stream, or its end."""
        framed, framing = events, {"Content-Type": "text/event-stream; charset=utf-8"}
        if self.head.minor == "1":
            framed = b"%x\r\n%s\r\n" % (len(events), events)
            framing["Transfer-Encoding"] = "chunked"
        self._write(framed if self.has_begun else self._make_head(200, framing) + framed)

    def _make_head(self, status: int, headers: Mapping[str, str]) -> bytes:
        self.close_connection = self.head.is_last or not self.is_read or self.server.stops > 0
        self.status, self.has_begun = status, True
        phrase = self.responses.get(status, ("Other",))[0]
        lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {self.date_time_string()}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **self.cors}.items()]
        lines += ["Connection: close"] * self.close_connection
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _write(self, data: bytes) -> None:
        self.connection.settimeout(IDLE_SECONDS)
        for start in range(0, len(data), _BLOCK):
            self.connection.sendall(data[start:start + _BLOCK])

    def _send_error(self, error: SyntheticError) -> None:
        """Tell the caller; where a stream has begun, by an event in it and by its missing end."""
        if self.has_left:
            self.status = _GONE
            return
        self.errors.append(error)
        status, body = describe(error)
        if self.has_begun:
            self.send_events(b"data: " + encode(body) + b"\n\n")
            self.close_connection, self.status = True, status
        else:
            wait = getattr(error, "retry_after", None)
            headers = {} if wait is None else {"Retry-After": f"{wait:.0f}"}
            self.send(status, encode(body), headers)

    def _log(self, seconds: float) -> None:
        self.server.log(
            caller=self.client_address[0], method=self.head.method, path=self.head.path[:100],
            model=self.model, status=self.status, seconds=round(seconds, 3),
            prompt_tokens=self.usage.get("prompt_tokens"),
            completion_tokens=self.usage.get("completion_tokens"),
            errors="; ".join(map(summarize, self.errors)) or None)


def _end(connection: Any) -> None:
    """Wake the thread that waits for a connection's caller, and let it find no one."""
    try:
        connection.shutdown(2)  # both ways
    except OSError:
        pass  # it has just ended


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags to its parser, and what it runs."""
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--config", metavar="FILE", required=True, help="LiteLLM's configuration, as JSON")
    add("--host", default="127.0.0.1", help="where to listen; else %(default)s")
    add("--port", type=int, default=4000, help="else %(default)s; 0 for one that is free")
    add("--grace", type=float, default=30.0, metavar="SECONDS", help="to end in; else %(default)g")
    add("--connections", type=int, default=256, metavar="N", help="at a time; else %(default)s")
    add("--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="web pages that may call, such as https://app.example; may be repeated")


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    if not 0 <= arguments.port < 65536:
        raise ConfigurationError("--port should be from 0 to 65535")
    with Proxy(read_config(arguments.config), (arguments.host, arguments.port),
               arguments.connections, arguments.allow_origin, arguments.json) as proxy:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, proxy.stop)
        proxy.log(event="listening on http://{}:{}".format(*proxy.server_address[:2]))
        proxy.serve(arguments.grace)
