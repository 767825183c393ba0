# SPDX-License-Identifier: MIT
"""One HTTP exchange: the only module that knows urllib, http.client, ssl and sockets.

Strategy: a `Transport` stands for one origin and the way to it. `send` makes one request over a
connection of its pool, through an urllib handler that keeps connections alive where urllib's own
would close them, and returns a `Response` once the status and headers have come. Every read and
write goes through a `_Wire`, which asks the call's `Clock` how long it may wait; so silence, the
connect phase and the deadline are bounded in one place. A `Response` owns its connection until
the body has ended as its framing says, and then gives it back. What goes wrong below leaves here
as an error of this package.
"""

import base64
import http.client
import io
import ipaddress
import logging
import os
import re
import socket
import ssl
import sys
import time
import urllib.parse
import urllib.request
import weakref
import zlib
from collections import deque
from typing import Any, Deque, Dict, List, Mapping, Optional, Tuple

from .errors import (
    APIConnectionError, APITimeoutError, ConfigurationError, ResponseError,
    StreamInterruptedError, SyntheticError
)

log = logging.getLogger("synthetic_client")

IDLE_CONNECTIONS = 32
IDLE_SECONDS = 60.0
REDIRECTS = 5
_BLOCK = 65536  # bytes in one read or write
_UNPACKED_BLOCK = 1 << 20  # bytes that one step of decompression may give
_DRAIN_SECONDS = 0.05  # for the end of a body whose last event was read already
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 4}
_PROXY = re.compile(r"(?:(\w+)://)?(?:([^/]*)@)?((?:\[[^/\]]+\]|[^/:@\[\]]+)(?::[0-9]+)?)/?")


class Clock:
    """What bounds the waits of one call: its silence, its connect phase, its deadline."""

    def __init__(self, timeout: float, connect_timeout: float, deadline: Optional[float]) -> None:
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.deadline = deadline
        self.ends = float("inf") if deadline is None else time.monotonic() + deadline
        self.connect_by: Optional[float] = None
        self._phase = "silence"

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.ends - time.monotonic()

    def connecting(self, begun: bool) -> None:
        """Enter or leave the connect phase."""
        self.connect_by = time.monotonic() + self.connect_timeout if begun else None

    def wait(self) -> float:
        """Return the seconds that the next wait may take; raises where there are none."""
        seconds, self._phase = self.timeout, "silence"
        if self.connect_by is not None:
            seconds, self._phase = self.connect_by - time.monotonic(), "connect"
        if self.left() < seconds:
            seconds, self._phase = self.left(), "deadline"
        if seconds <= 0:
            raise self.expired()
        return seconds

    def expired(self) -> APITimeoutError:
        """Return the error for the wait that was allowed last."""
        said = {
            "connect": f"no connection within {self.connect_timeout:g} s (connect_timeout); check "
                       "base_url, the network and whether a proxy is needed",
            "silence": f"the server sent nothing for {self.timeout:g} s (timeout); raise timeout "
                       "if answers may take longer",
            "deadline": f"the call was not done within {self.deadline or 0:g} s (deadline); raise "
                        "deadline or ask for less",
        }
        return APITimeoutError(
            said[self._phase], phase=self._phase, retryable=self._phase == "connect"
        )


class _Wire:
    """A socket for http.client whose every wait the clock bounds.

    http.client's own close() does nothing: a response outlives what http.client thinks.
    """

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self.sock = sock
        self.clock = clock
        self.heard = False
        self.owner = os.getpid()
        self.close_socket = weakref.finalize(self, sock.close)  # also at exit

    def replace(self, sock: socket.socket) -> None:
        """Go on over `sock`, which has taken over the old one's descriptor."""
        self.close_socket.detach()
        self.sock = sock
        self.close_socket = weakref.finalize(self, sock.close)

    def sendall(self, data: Any) -> None:
        view = memoryview(data)
        while view:
            self.sock.settimeout(self.clock.wait())
            try:
                view = view[self.sock.send(view[:_BLOCK]):]
            except socket.timeout as error:
                raise self.clock.expired() from error

    def receive_into(self, buffer: Any) -> int:
        self.sock.settimeout(self.clock.wait())
        try:
            count = self.sock.recv_into(buffer)
        except socket.timeout as error:
            raise self.clock.expired() from error
        self.heard = self.heard or count > 0
        return count

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), _BLOCK)

    def close(self) -> None:
        pass

    def interrupt(self) -> None:
        """Wake a thread that waits for this socket; never a parent's, after a fork."""
        if self.owner == os.getpid():
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def is_quiet(self) -> bool:
        """Say whether an idle connection is alive: nothing, not even its end, has come."""
        try:
            self.sock.settimeout(0)
            socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            pass
        return False


class _Reader(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.receive_into(buffer)


class _Connection(http.client.HTTPConnection):
    """A connection that dials within the clock's connect phase, and its place in the pool."""

    def __init__(self, host: str, context: Optional[ssl.SSLContext], clock: Clock) -> None:
        super().__init__(host)
        self.context = context
        self.clock = clock
        self.wire: Optional[_Wire] = None
        self.unfinished: Optional["Response"] = None
        self.idle_since = 0.0

    def connect(self) -> None:
        self.clock.connecting(True)
        sock = self._dial()
        self.wire = self.sock = _Wire(sock, self.clock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if self._tunnel_host:
            self._tunnel()
        if self.context is not None:
            name = self._tunnel_host or self.host
            tls = self.context.wrap_socket(
                sock, server_hostname=name, do_handshake_on_connect=False
            )
            self.wire.replace(tls)
            tls.settimeout(self.clock.wait())
            try:
                tls.do_handshake()
            except socket.timeout as error:
                raise self.clock.expired() from error
        self.clock.connecting(False)
        self.wire.heard = False

    def _dial(self) -> socket.socket:
        """Connect to the first address that answers, each with its share of the time."""
        addresses = socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM)
        fault: OSError = OSError(f"no address for {self.host}")
        for tried, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self.clock.wait() / (len(addresses) - tried))
                sock.connect(address)
                return sock
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError) or isinstance(error, APITimeoutError):
                    raise
                fault = error
        if isinstance(fault, socket.timeout):
            raise self.clock.expired() from fault
        raise fault

    def use(self, clock: Clock) -> None:
        """Serve another call."""
        self.clock = clock
        if self.wire is not None:
            self.wire.clock, self.wire.heard = clock, False

    def is_reusable(self) -> bool:
        """Say whether another request may go out; the rest of the last answer is read first."""
        if time.monotonic() - self.idle_since > IDLE_SECONDS or self.wire is None:
            return False
        if self.unfinished is not None:
            self.use(Clock(_DRAIN_SECONDS, _DRAIN_SECONDS, _DRAIN_SECONDS))
            try:
                while self.unfinished.read_framed():
                    pass
            except (SyntheticError, OSError, ValueError):
                return False
            self.unfinished = None
        return self.wire.is_quiet()

    def discard(self) -> None:
        if self.wire is not None:
            self.wire.interrupt()
            self.wire.close_socket()


class _KeepAliveHandler(urllib.request.AbstractHTTPHandler):
    """urllib's HTTP and HTTPS handler, but for `Connection: close`: a pool of connections."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, proxy: Optional[Tuple[str, Dict[str, str]]], context: Any) -> None:
        super().__init__()
        self._proxy = proxy
        self._context = context
        self._idle: Deque[_Connection] = deque()  # its ends are atomic: no lock to be forked with
        self._owner = os.getpid()

    def http_open(self, request: Any) -> "Response":
        headers = {**request.unredirected_hdrs, **request.headers}
        if self._proxy is not None:
            host, credentials = self._proxy
            request.set_proxy(host, "http" if request.type == "http" else "https")
            if request.type == "http":
                headers.update(credentials)
        connection = self._take()
        if connection is not None:
            try:
                return self._exchange(connection, request, headers)
            except (OSError, http.client.HTTPException) as error:
                heard = connection.wire is None or connection.wire.heard
                if heard or isinstance(error, APITimeoutError):
                    raise
        connection = _Connection(request.host, self._context(request.type), request.clock)
        if request._tunnel_host:
            connection.set_tunnel(request._tunnel_host, headers=self._proxy[1])  # type: ignore
        return self._exchange(connection, request, headers)

    https_open = http_open

    def _exchange(
        self, connection: _Connection, request: Any, headers: Dict[str, str]
    ) -> "Response":
        connection.use(request.clock)
        request.connection = connection
        try:
            try:
                connection.request(request.get_method(), request.selector, request.data, headers)
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # refused in mid-body: the reason may be waiting to be read
            return Response(connection.getresponse(), connection, self)
        except BaseException:
            connection.discard()
            raise

    def _take(self) -> Optional[_Connection]:
        if self._owner != os.getpid():  # the parent's sockets are the parent's
            self._idle, self._owner = deque(), os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_reusable():
                return connection
            connection.discard()

    def give_back(self, connection: _Connection, unfinished: Optional["Response"]) -> None:
        """Keep a connection whose answer has been read, or has but its framing left."""
        connection.unfinished = unfinished
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        self.close_idle(IDLE_CONNECTIONS)

    def close_idle(self, but: int = 0) -> None:
        while len(self._idle) > but:
            self._idle.popleft().discard()


class Response:
    """An answer's status and headers, and its body as it comes."""

    def __init__(
        self, raw: http.client.HTTPResponse, connection: _Connection, pool: _KeepAliveHandler
    ) -> None:
        self.status = raw.status
        self.headers: List[Tuple[str, str]] = raw.getheaders()
        self._raw = raw
        self._connection = connection
        self._pool: Optional[_KeepAliveHandler] = pool
        self._left: Optional[int] = 0 if raw.chunked else raw.length
        self._in_chunks = False
        self._ended = raw.length == 0 and not raw.chunked
        self._unpacker: Optional[_Unpacker] = None
        self._unreadable = ""
        encoding = (raw.getheader("content-encoding") or "").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._unpacker = _Unpacker()
        elif encoding not in ("", "identity"):
            self._unreadable = encoding[:20]

    def read(self, limit: int) -> bytes:
        """Return the whole body; more than `limit` bytes are a ResponseError."""
        parts, size = [], 0
        while True:
            data = self.read1()
            if not data:
                return b"".join(parts)
            parts.append(data)
            size += len(data)
            if size > limit:
                self.close()
                raise ResponseError(
                    f"the answer is over {limit} bytes; raise max_response_bytes if it may be"
                )

    def read1(self) -> bytes:
        """Return what has come of the body, unpacked; waits for the first byte, b"" at its end.

        Raises:
            StreamInterruptedError: the body was cut, or its framing or compression is broken.
            APITimeoutError: nothing came in time.
        """
        try:
            if self._unreadable:
                raise ResponseError(
                    f"the answer is packed as {self._unreadable!r}, which was not asked for"
                )
            return self.read_framed() if self._unpacker is None else self._read_unpacked()
        except BaseException as error:
            self.close()
            if isinstance(error, SyntheticError) or not isinstance(
                error, (OSError, http.client.HTTPException, zlib.error, ValueError)
            ):
                raise
            raise _cut(f"the connection broke: {type(error).__name__}") from error

    def read_framed(self) -> bytes:
        """Return what has come of the body by Content-Length, chunks (RFC 9112, 7.1) or close."""
        if self._ended:
            return b""
        source = self._raw.fp
        if self._raw.chunked and not self._left:
            self._left = self._read_chunk_size(source)
            if not self._left:
                return self._end()
        if self._left is None:
            return source.read1(_BLOCK) or self._end()
        data = source.read1(min(self._left, _BLOCK))
        if not data:
            raise _cut("the body was cut short")
        self._left -= len(data)
        if not self._left and not self._raw.chunked:
            self._end()
        return data

    def _read_chunk_size(self, source: Any) -> int:
        if self._in_chunks and source.read(2) != b"\r\n":
            raise _cut("a chunk of the body does not end where it should")
        self._in_chunks = True
        line = source.readline(_BLOCK)
        digits = line.partition(b";")[0].strip()
        if not line.endswith(b"\n") or not re.fullmatch(b"[0-9A-Fa-f]{1,16}", digits):
            raise _cut("the body was cut short or its framing is broken")
        size = int(digits, 16)
        while not size and line not in (b"\r\n", b"\n", b""):  # the trailer section
            line = source.readline(_BLOCK)
        return size

    def _read_unpacked(self) -> bytes:
        assert self._unpacker is not None
        while True:
            if not self._unpacker.has_more:
                packed = self.read_framed()
                if not packed:
                    if self._unpacker.is_whole:
                        return b""
                    raise _cut("the packed body was cut short")
                self._unpacker.packed = packed
            data = self._unpacker.step()
            if data:
                return data

    def _end(self) -> bytes:
        self._ended = True
        self.finish()
        return b""

    def finish(self) -> None:
        """Give the connection back: nothing but the end of the body's framing is still to come."""
        if self._ended:
            self._raw.close()
        pool, self._pool = self._pool, None
        if pool is not None and self._raw.will_close:
            self._connection.discard()
        elif pool is not None:
            pool.give_back(self._connection, None if self._ended else self)

    def close(self) -> None:
        """End the exchange at once, also while another thread reads."""
        if self._pool is not None:
            self._pool = None
            self._connection.discard()


class _Unpacker:
    """Inflates gzip, of several members too, and deflate with or without zlib's header."""

    def __init__(self) -> None:
        self._inflate: Any = None
        self._full = False
        self.packed = b""

    @property
    def has_more(self) -> bool:
        return bool(self.packed) or self._full

    @property
    def is_whole(self) -> bool:
        return self._inflate is None or self._inflate.eof

    def step(self) -> bytes:
        """Return what comes out of `packed`, as much as one step may give."""
        if self.is_whole:
            self.packed = self.packed.lstrip(b"\0")  # tar pads with zeros
            if not self.packed:
                return b""
            bare = self.packed[0] != 0x1F and self.packed[0] & 0x0F != 8
            self._inflate = zlib.decompressobj(-15 if bare else 47)
        data: bytes = self._inflate.decompress(self.packed, _UNPACKED_BLOCK)
        self._full = len(data) == _UNPACKED_BLOCK
        self.packed = self._inflate.unconsumed_tail or self._inflate.unused_data
        return data


class Transport:
    """The way to one origin, and the pool of connections along it.

    Args:
        origin: "https://host:port", without a path.
        proxy: "http://user:password@host:port"; None for the environment's, "" for none.
        ca_file: a PEM bundle trusted in addition to the system's.
        ssl_context: used as it is, in place of our own.
    """

    def __init__(
        self, origin: str, *, proxy: Optional[str] = None, ca_file: Optional[str] = None,
        ssl_context: Optional[ssl.SSLContext] = None
    ) -> None:
        self.origin = origin
        self._ca_file = ca_file
        self._ssl_context = ssl_context
        self._made_context: Optional[ssl.SSLContext] = None
        self._proxy = _find_proxy(origin, proxy)
        self._pool = _KeepAliveHandler(self._proxy, self._context)
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self._pool)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close_idle()

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: Optional[bytes],
        clock: Clock, attempt: int = 1
    ) -> Response:
        """Return the answer to one request; redirects within the origin are followed.

        Raises:
            APIConnectionError: no answer could be had.
            ResponseError: what answered does not speak HTTP.
        """
        for _ in range(REDIRECTS):
            response = self._open(method, url, headers, body, clock, attempt)
            target = dict(response.headers).get("Location")
            if response.status not in (307, 308) or not target:
                return response
            target = urllib.parse.urljoin(url, target)
            if not target.startswith(self.origin + "/"):
                return response
            url = target
            response.close()
        return self._open(method, url, headers, body, clock, attempt)

    def _open(
        self, method: str, url: str, headers: Mapping[str, str], body: Optional[bytes],
        clock: Clock, attempt: int
    ) -> Response:
        request: Any = urllib.request.Request(url, body, dict(headers), method=method)
        request.clock, request.connection = clock, None
        begun, outcome = time.monotonic(), "stopped"
        try:
            response: Response = self._opener.open(request)
            outcome = str(response.status)
            return response
        except (SyntheticError, OSError, http.client.HTTPException) as error:
            found = self._translate(error, request)
            outcome = type(found).__name__
            if found is error:
                raise
            raise found from error
        finally:
            seconds = time.monotonic() - begun
            log.debug("%s %s: %s in %.3f s, attempt %d", method, url.partition("?")[0], outcome,
                      seconds, attempt)

    def _translate(self, error: BaseException, request: Any) -> SyntheticError:
        if isinstance(error, SyntheticError):
            return error
        connection = request.connection
        heard = connection is not None and connection.wire is not None and connection.wire.heard
        place = self.origin + (f" through the proxy {self._proxy[0]}" if self._proxy else "")
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            return ResponseError(f"what answered at {place} does not speak HTTP; check base_url")
        tunnel = re.match(r"Tunnel connection failed: (\d+)", str(error))
        if tunnel:
            status = tunnel.group(1)
            return APIConnectionError(
                f"the proxy {self._proxy and self._proxy[0]} refused to connect to {self.origin}: "
                f"HTTP {status}; check its user, password and rules (proxy=, https_proxy)",
                retryable=status not in ("401", "403", "407")
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return APIConnectionError(self._describe_distrust(error))
        return APIConnectionError(f"no answer from {place}: {_describe(error)}", retryable=not heard)

    def _describe_distrust(self, error: ssl.SSLCertVerificationError) -> str:
        """Say which trust store was used, and how to add to it."""
        store = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        trusted = f"the system's certificates ({store or 'none found'})"
        if self._ssl_context is not None:
            trusted = "your ssl_context"
        elif self._ca_file:
            trusted += f" and {self._ca_file}"
        strict = sys.version_info >= (3, 13) and (
            "; this Python also checks strictly (ssl.VERIFY_X509_STRICT), your own ssl_context "
            "may leave that out"
        )
        return (f"the certificate of {self.origin} is not trusted: {error.verify_message}; checked "
                f"against {trusted}; add yours with ca_file= or SSL_CERT_FILE{strict or ''}")

    def _context(self, scheme: str) -> Optional[ssl.SSLContext]:
        if scheme != "https":
            return None
        if self._made_context is None:
            self._made_context = self._ssl_context or _make_context(self._ca_file)
        return self._made_context


def environment() -> Tuple[Any, ...]:
    """Return what of the environment decides the way to a host, to be compared."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "no_proxy", "NO_PROXY")
    proxies = sorted(urllib.request.getproxies().items())
    return (*proxies, *(os.environ.get(name) for name in names))


def _make_context(ca_file: Optional[str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"ca_file {ca_file!r} cannot be used: {_describe(error)}; it should hold PEM "
                "certificates"
            ) from error
    return context


def _find_proxy(origin: str, given: Optional[str]) -> Optional[Tuple[str, Dict[str, str]]]:
    """Return the proxy's host:port and the headers that it wants, None for a direct way."""
    scheme, _, authority = origin.partition("://")
    if given is None:
        host = urllib.parse.urlsplit(origin).hostname
        if is_loopback(host or "") or urllib.request.proxy_bypass(authority):
            return None
        given = urllib.request.getproxies().get(scheme)
    if not given:
        return None
    match = _PROXY.fullmatch(given.strip())
    if match is None or (match.group(1) or "http").lower() not in ("http", "https"):
        raise ConfigurationError(
            "the proxy should be like http://user:password@host:port; SOCKS is not supported "
            "(proxy= or the environment's http_proxy, https_proxy)"
        )
    if match.group(2) is None:
        return match.group(3), {}
    userinfo = urllib.parse.unquote_to_bytes(match.group(2))
    return match.group(3), {
        "Proxy-Authorization": "Basic " + base64.b64encode(userinfo).decode("ascii")
    }


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine: localhost, 127.0.0.0/8 or ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cut(reason: str) -> StreamInterruptedError:
    return StreamInterruptedError(f"the answer is not whole: {reason}; ask again")


def _describe(error: BaseException) -> str:
    if isinstance(error, socket.gaierror):
        return "its name cannot be looked up; check base_url, and whether a proxy is needed"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; check base_url's host and port"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
