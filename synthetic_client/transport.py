# SPDX-License-Identifier: MIT
"""The way to a host: the only module that knows urllib, ssl and sockets.

Strategy: a `Transport` is an urllib handler for one origin that keeps its connections, where
urllib's own would close them. `send` makes one request and returns a `Response` once status and
headers have come. Every read and write goes through a `_Connection`, which asks the call's `Clock`
how long it may wait: so silence, connecting and the deadline are bounded in one place. A
`Response` owns its connection until its body has ended as the framing says, then gives it back.
What goes wrong below leaves here as an error of this package.
"""

import base64
import io
import logging
import os
import re
import select
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
import weakref
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import Any, Deque, Dict, Iterator, Mapping, Optional, Tuple

from .errors import (
    APIConnectionError, ConfigurationError, ResponseError, StreamInterruptedError, SyntheticError
)
from .http1 import BLOCK, NotHTTP, Request, Response
from .retry import Clock

IDLE_CONNECTIONS = 32
IDLE_SECONDS = 60.0
REDIRECTS = 5
_DRAIN_SECONDS = 0.05  # for the end of a body whose last event was read already
_TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 30,
                "TCP_KEEPCNT": 4}
_LABEL = r"[^\0- /:@.\[\]\x7f]{1,63}"
_PROXY = re.compile(rf"(?:https?://)?(?:([^/\s]*)@)?"  # user:password
                    rf"({_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\])(?::([0-9]+))?/?", re.I)
_STRICT = "; Python 3.13 and newer check strictly (ssl.VERIFY_X509_STRICT)"
_SAID: Mapping[type, str] = {
    socket.gaierror: "the host's name cannot be looked up",
    ConnectionRefusedError: "nothing listens there",
    ssl.SSLError: "it does not speak TLS as we do",
}
_Way = Tuple[Tuple[str, int], Optional[Dict[str, str]], Tuple[str, ...]]
_TIMEOUTS = (socket.timeout, TimeoutError)  # one and the same from Python 3.10 on
_FAULTS = (OSError, EOFError, ValueError, NotHTTP)


class _Connection(io.RawIOBase):
    """A socket whose every wait the clock bounds; what it reads, a Response buffers."""

    sock: Any = None  # until it is dialled
    heard = False  # anything of the answer
    rest: Iterator[bytes] = iter(())  # of the last answer's body
    idle_since = 0.0

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.process = os.getpid()  # a fork's child leaves its parent's connections alone
        self._reading = threading.RLock()

    def _use(self, sock: socket.socket) -> None:
        self.sock = sock
        self._finalizer = weakref.finalize(self, sock.close)  # also at exit

    def dial(self, host: str, port: int) -> None:
        """Connect to the first address that answers, each with its share of the time."""
        addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        while addresses:
            share = self.clock.wait() / len(addresses)
            family, kind, protocol, _, address = addresses.pop(0)
            try:
                self._use(socket.socket(family, kind, protocol))
                self.sock.settimeout(share)
                self.sock.connect(address)
                break
            except OSError:
                self.cut()
                if not addresses:
                    raise
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP_OPTIONS.items():
            if hasattr(socket, name):
                self.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        self.sock.getpeername()  # raises where the peer is gone: wrap_socket() would leak then
        self._use(context.wrap_socket(
            self.sock, server_hostname=server_name, do_handshake_on_connect=False))
        self._limit_wait()
        self.sock.do_handshake()

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        # refused in mid-body: the reason may be there to be read
        with suppress(BrokenPipeError, ConnectionResetError):
            while view:
                self._limit_wait()
                view = view[self.sock.send(view[:BLOCK]):]

    def readinto(self, buffer: Any) -> int:
        with self._reading:
            self._limit_wait()
            size: int = self.sock.recv_into(buffer)
        self.heard = self.heard or size > 0 and self.clock.connect_ends is None
        return size

    def _limit_wait(self) -> None:
        seconds = self.clock.wait()
        if seconds != self.sock.gettimeout():  # setting it costs a system call
            self.sock.settimeout(seconds)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: io closes what is under a buffer that is dropped, and this lives on."""

    def is_reusable(self) -> bool:
        """Say whether a request may go out: the last answer has ended, and nothing else came."""
        if time.monotonic() - self.idle_since > IDLE_SECONDS or self.process != os.getpid():
            return False
        self.clock = Clock(_DRAIN_SECONDS, _DRAIN_SECONDS, _DRAIN_SECONDS)
        try:
            deque(self.rest, 0)  # reads it to its end
            if self._is_silent():
                return True
            self.sock.settimeout(0)
            self.sock.recv(1)  # what has come may be TLS's own
        except _FAULTS as error:
            return isinstance(error, (BlockingIOError, ssl.SSLWantReadError))
        return False

    def _is_silent(self) -> bool:
        """Say whether surely nothing has come: by one system call, where the system has it."""
        if not hasattr(select, "poll") or getattr(self.sock, "pending", int)():  # TLS's buffer
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def explain(self, error: BaseException) -> Optional[SyntheticError]:
        """Return what a fault within an answer's body means, None for what is none."""
        if isinstance(error, _TIMEOUTS):
            return self.clock.expired()
        if isinstance(error, _FAULTS):
            return StreamInterruptedError(
                f"the answer is not whole: {_describe(error)}; ask again")
        return None

    def cut(self) -> None:
        """Close the socket and wake who waits for it; a parent's, after a fork, lives on."""
        if self.sock is None or self.process != os.getpid():
            return
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        with self._reading:  # or that thread would read from whatever has this number next
            self._finalizer()


class Transport(urllib.request.BaseHandler):
    """The way to one origin: an urllib handler, and the pool of its connections.

    Args:
        origin: "https://host:port", without a path.
        proxy: "http://user:password@host:port"; None for the environment's, "" for none.
        ca_file: a PEM bundle trusted in addition to the system's.
        ssl_context: used as it is, in place of our own.

    Raises:
        ConfigurationError: the proxy or ca_file cannot be used.
    """

    log = logging.getLogger("synthetic_client")
    idle_limit = IDLE_CONNECTIONS  # raised while chat_many has more threads

    def __init__(
        self, origin: str, proxy: Optional[str], ca_file: Optional[str],
        ssl_context: Optional[ssl.SSLContext]
    ) -> None:
        self._origin, self._url = origin, urllib.parse.urlsplit(origin)
        self._place, self._suspects = origin, "base_url, and whether a proxy is needed"
        self._context: Optional[ssl.SSLContext] = None  # for plain http
        if self._url.scheme == "https":
            self._context = ssl_context or _make_context(ca_file)
        store = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        self._trusted = f"the system's certificates ({store}){f' and {ca_file}' * bool(ca_file)}"
        if ssl_context is not None:
            self._trusted = "your ssl_context"
        self._address, self._proxy_headers, self.secrets = _find_way(self._url, proxy)
        self._headers, self._skipped = {"host": self._url.netloc}, len(origin)  # of a URL
        if self._proxy_headers is not None:
            if self._context is None:  # the proxy itself reads the request
                self._headers, self._skipped = {**self._headers, **self._proxy_headers}, 0
            self._place += " through the proxy {}:{}".format(*self._address)
            self._suspects = "base_url and the proxy (proxy=, http_proxy, https_proxy)"
        self._idle: Deque[_Connection] = deque()  # its ends are atomic: no lock to fork with
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self)

    def send(self, request: Request, attempt: int) -> Response:
        """Return the answer to one request; redirects within the origin are followed.

        Raises:
            APIConnectionError: no answer could be had.
            ResponseError: what answered does not speak HTTP.
        """
        left = REDIRECTS
        while True:
            response = self._open(request, attempt)
            place = response.headers.get("location", "").partition(", ")[0]  # of several
            url = _join(request.full_url, place) if response.status in (307, 308) else ""
            if not left or not url.lower().startswith(self._origin + "/"):
                return response
            response.close()
            left -= 1
            request = Request(request.method, url, request.headers, request.data, request.clock)

    def _open(self, request: Request, attempt: int) -> Response:
        begun, outcome = time.monotonic(), "stopped"
        try:
            response: Response = self._opener.open(request)  # type: ignore[arg-type]
            outcome = str(response.status)
            return response
        except SyntheticError as error:
            outcome = type(error).__name__
            raise
        finally:
            self.log.debug(
                "%s %s: %s in %.3f s, attempt %d", request.method,
                request.full_url.partition("?")[0], outcome, time.monotonic() - begun, attempt)

    def http_open(self, request: Request) -> Response:
        """Answer urllib's opener: over an idle connection, or a new one."""
        idle = self._take_idle()
        try:
            return self._exchange(idle or _Connection(request.clock), request)
        except APIConnectionError as error:
            if idle is None or not error.retryable:
                raise  # else the idle one had been closed, or just was
        return self._exchange(_Connection(request.clock), request)

    https_open = http_open

    def _exchange(self, connection: _Connection, request: Request) -> Response:
        clock, connection.heard = request.clock, False
        clock.cut, clock.connect_ends = connection.cut, None  # not those of an earlier attempt
        connection.clock = clock
        try:
            if connection.sock is None:
                self._connect(connection)
            connection.send(request.write(request.full_url[self._skipped:], self._headers))
            response = Response(connection, request.method, self)
            clock.cut = response.close  # which spares a connection that was given back
            return response
        except BaseException as error:
            connection.cut()
            if isinstance(error, _FAULTS):
                raise self._translate(error, connection) from error
            raise

    def _connect(self, connection: _Connection) -> None:
        """Connect within connect_timeout, by the proxy's CONNECT and TLS where these are due."""
        connection.clock.start_connecting()
        connection.dial(*self._address)
        if self._context is not None and self._proxy_headers is not None:
            target = self._url.netloc + ("" if self._url.port else ":443")
            request = Request("CONNECT", target, {"host": target, **self._proxy_headers})
            connection.send(request.write(target, {}))
            status = Response(connection, "CONNECT").status
            if not 200 <= status < 300:
                ours = status in (401, 403, 407)
                hint = "its user, password and rules (proxy=, https_proxy)" if ours else "base_url"
                raise APIConnectionError(
                    f"no way to {self._place}: the proxy answered HTTP {status}; check {hint}",
                    retryable=not ours)
        if self._context is not None:
            connection.start_tls(self._context, self._url.hostname or "")
        connection.clock.connect_ends = None

    def _translate(self, error: Exception, connection: _Connection) -> SyntheticError:
        """Return this package's error for one from below."""
        if isinstance(error, _TIMEOUTS):
            return connection.clock.expired()
        if isinstance(error, NotHTTP):
            return ResponseError(f"what answers at {self._place} is no HTTP; check base_url")
        if isinstance(error, ssl.SSLCertVerificationError):
            fault = error.verify_message.rstrip(".")
            if error.verify_code in (9, 10):  # not valid yet, or expired (X509_V_ERR_...)
                fault += "; renew it, or set this machine's clock"
            return APIConnectionError(
                f"the certificate of {self._origin} is not trusted: {fault}; "
                f"checked against {self._trusted}; check base_url, or add a certificate with "
                "ca_file= or SSL_CERT_FILE" + (_STRICT if sys.version_info >= (3, 13) else ""))
        return APIConnectionError(
            f"no answer from {self._place}: {_describe(error)}; check {self._suspects}",
            retryable=not connection.heard)

    def _take_idle(self) -> Optional[_Connection]:
        """Return an idle connection that is alive, None where there is none."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_reusable():
                return connection
            connection.cut()

    def keep(self, connection: _Connection, rest: Iterator[bytes]) -> None:
        """Take a connection back; `rest` is what its last answer's framing still holds."""
        if connection.process != os.getpid():  # made by a fork's parent
            return connection.cut()
        connection.rest, connection.idle_since = rest, time.monotonic()
        self._idle.append(connection)
        self.close_idle(self.idle_limit)

    def close_idle(self, but: int = 0) -> None:
        """Close idle connections, the oldest first, `but` so many."""
        with suppress(IndexError):  # another thread took the last one
            while len(self._idle) > but:
                self._idle.popleft().cut()


@lru_cache(maxsize=8)  # pools that are kept for settings of which no client is left
def _keep(_environment: Tuple[Any, ...], *settings: Any) -> Transport:
    return Transport(*settings)


def find(*settings: Any) -> Transport:
    """Return the Transport of these settings and the environment; the last few are kept."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "no_proxy", "NO_PROXY")
    proxies = sorted(urllib.request.getproxies().items())
    environment = (*proxies, *map(os.environ.get, names))
    _keep(environment, *settings)
    return _keep(environment, *settings)  # threads that came at once share the one that was kept


def _find_way(url: urllib.parse.SplitResult, given: Optional[str]) -> _Way:
    """Return what to connect to, a proxy's headers (None where it is none) and its secrets."""
    if given is None and not urllib.request.proxy_bypass(url.netloc):
        given = urllib.request.getproxies().get(url.scheme)
    if not given:
        return (url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), None, ()
    match = _PROXY.fullmatch(given.strip())
    if match is None or not 0 < int(match.group(3) or 80) < 65536:
        raise ConfigurationError(
            "the proxy should be like http://user:password@host:port; SOCKS is not supported "
            "(proxy= or the environment's http_proxy, https_proxy)"
        )
    packed, host, port = match.groups()
    address = host.strip("[]"), int(port or 80)
    if packed is None:
        return address, {}, ()
    plain = urllib.parse.unquote(packed if ":" in packed else packed + ":")
    token = base64.b64encode(plain.encode("utf-8")).decode("ascii")
    secrets = (token, packed, plain, packed.partition(":")[2], plain.partition(":")[2])
    return address, {"proxy-authorization": f"Basic {token}"}, secrets


def _make_context(ca_file: Optional[str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    paths = ssl.get_default_verify_paths()
    if os.environ.get("SSL_CERT_FILE") == "" and os.path.isfile(paths.openssl_cafile):
        context.load_verify_locations(cafile=paths.openssl_cafile)  # empty counts as not set
    if os.environ.get("SSL_CERT_DIR") == "" and os.path.isdir(paths.openssl_capath):
        context.load_verify_locations(capath=paths.openssl_capath)
    try:
        if ca_file:
            context.load_verify_locations(ca_file)
    except OSError as error:
        raise ConfigurationError(
            f"ca_file {ca_file!r} holds no certificates in PEM: {error.strerror}") from error
    return context


def _join(url: str, location: str) -> str:
    """Return where a redirect leads, "" where that cannot be said."""
    with suppress(ValueError):
        if re.fullmatch("[!-~]+", location):
            return urllib.parse.urljoin(url, location.partition("#")[0])
    return ""


def _describe(error: Exception) -> str:
    said = _SAID.get(type(error)) or getattr(error, "strerror", None) or error
    return " ".join(str(said).split()) or type(error).__name__
