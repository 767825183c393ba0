# SPDX-License-Identifier: MIT
"""One HTTP exchange: the only module that knows urllib, http.client, ssl and sockets.

Strategy: a `Transport` is an urllib handler for one origin that keeps its connections, where
urllib's own would close them. `send` makes one request and returns a `Response` once status and
headers have come. Every read and write goes through a `_Wire`, which asks the call's `Clock` how
long it may wait: so silence, connecting and the deadline are bounded in one place. A `Response`
owns its connection until its body has ended as the framing says, then gives it back. What goes
wrong below leaves here as an error of this package.
"""

import base64
import http.client
import io
import ipaddress
import logging
import os
import re
import select
import socket
import ssl
import sys
import time
import urllib.parse
import urllib.request
import weakref
import zlib
from collections import deque
from functools import lru_cache
from typing import Any, Deque, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, cast

from .errors import (
    APIConnectionError, APITimeoutError, ConfigurationError, ResponseError,
    StreamInterruptedError, SyntheticError
)
from .retry import Clock

IDLE_CONNECTIONS = 32
IDLE_SECONDS = 60.0
REDIRECTS = 5
POOLS = 8  # that are kept for settings of which no client is left
_BLOCK = 65536  # bytes in one read or write
_LONGEST_LINE = 65536  # of a head or a chunk's, as http.client has it
_MOST_HEADERS = 200  # http.client has 100
_LINE_ENDS = (b"\r\n", b"\n", b"")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])[ \r\n]")
_UNPACKED_BLOCK = 1 << 20  # bytes that one step of decompression may give
_DRAIN_SECONDS = 0.05  # for the end of a body whose last event was read already
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 4}
_PROXY = re.compile(r"(?:(\w+)://)?(?:([^/\s]*)@)?(\[[0-9a-fA-F:.]+\]|[^/:@\s\[\]]+)(:[0-9]+)?/?")
_STRICT = "; Python 3.13 and newer check strictly (ssl.VERIFY_X509_STRICT)"
_FAULTS = (OSError, ValueError, http.client.HTTPException, zlib.error)


class _Wire(io.RawIOBase):
    """A socket for http.client whose every wait the clock bounds.

    close() does nothing: a response outlives what http.client thinks of its connection.
    """

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self.clock = clock
        self.heard = False  # anything of the answer
        self.owner = os.getpid()
        self._unsent = b""
        self.use(sock)

    def use(self, sock: socket.socket) -> None:
        self.sock = sock
        self._finalizer = weakref.finalize(self, sock.close)  # also at exit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._flush()
        self._limit_wait()
        try:
            count = self.sock.recv_into(buffer)
        except socket.timeout as error:
            raise self.clock.expired() from error
        self.heard = self.heard or count > 0 and self.clock.connect_ends is None
        return count

    def sendall(self, data: bytes) -> None:
        self._unsent += data
        if len(self._unsent) > _BLOCK:
            self._flush()

    def _flush(self) -> None:
        """Send what was written, head and body together: a packet less to wait for."""
        view, self._unsent = memoryview(self._unsent), b""
        try:
            while view:
                self._limit_wait()
                view = view[self.sock.send(view[:_BLOCK]):]
        except socket.timeout as error:
            raise self.clock.expired() from error
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused in mid-body: the reason may be there to be read

    def _limit_wait(self) -> None:
        seconds = self.clock.wait()
        if seconds != self.sock.gettimeout():  # setting it costs a system call
            self.sock.settimeout(seconds)

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(self, _BLOCK)

    def close(self) -> None:
        pass

    def cut(self) -> None:
        """Close the socket and wake who waits for it; a parent's, after a fork, lives on."""
        if self.owner == os.getpid():
            try:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
            except OSError:
                pass
        self._finalizer()

    def is_quiet(self) -> bool:
        """Say whether an idle connection is alive: nothing, not even its end, has come."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return False
        if not hasattr(select, "poll"):
            return not any(select.select([self.sock], [], [], 0))
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


class Response:
    """An answer's status and headers, and its body as it comes.

    http.client makes it and has it read the head. It is given its connection and the connection's
    owner once that has come.
    """

    status = 0
    will_close = True
    connection: "_Connection"
    owner: "Optional[Transport]" = None  # until the connection has been given back

    def __init__(self, wire: _Wire, *_: Any, method: str = "GET", **__: Any) -> None:
        self._source = wire.makefile()
        self._has_body = method != "HEAD"
        self._ended = False
        self.headers: List[Tuple[str, str]] = []

    def begin(self) -> None:
        """Read the head; interim answers (RFC 9110, 15.2) are passed over."""
        while True:
            line = self._source.readline(_LONGEST_LINE)
            match = _STATUS.match(line)
            if not line:
                raise http.client.RemoteDisconnected("it closed the connection")
            if match is None:
                raise http.client.BadStatusLine(repr(line[:60]))
            self.status = int(match.group(2))
            self.headers = list(self._read_headers())
            if not 100 <= self.status < 200 or self.status == 101:
                return self._frame(match.group(1) == b"0")

    def _read_headers(self) -> Iterator[Tuple[str, str]]:
        for _ in range(_MOST_HEADERS):
            line = self._source.readline(_LONGEST_LINE)
            if line in (b"\r\n", b"\n"):
                return
            if not line.endswith(b"\n"):
                break
            name, colon, value = line.decode("latin-1").partition(":")
            if colon and name.strip() and name[0] not in " \t":  # else folded, or no header
                yield name.rstrip(), value.strip()
        raise http.client.HTTPException("the headers broke off, or are too many")

    def header(self, name: str) -> str:
        """Return a header's first value, "" where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def _frame(self, is_old: bool) -> None:
        """Find how the body ends and whether the connection lives on (RFC 9112, 6.3 and 9.3)."""
        length, token = self.header("content-length"), self.header("connection").lower()
        self._chunked = self.header("transfer-encoding").lower().endswith("chunked")
        self._left = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        if not self._has_body or self.status in (204, 304) or self.status < 200:
            self._chunked, self._left = False, 0
        is_framed = self._chunked or self._left is not None
        lives = "keep-alive" in token if is_old else "close" not in token
        self.will_close = not (is_framed and lives)
        encoding = (self.header("content-encoding") or "identity").lower()
        self._blocks = self._read_blocks()
        self._body = self._blocks if encoding == "identity" else _unpack(self._blocks, encoding)

    def read(self, limit: int) -> bytes:
        """Return the whole body; more than `limit` bytes are a ResponseError."""
        body = bytearray()
        for data in iter(self.read1, b""):
            body += data
            if len(body) > limit:
                self.close()
                raise ResponseError(
                    f"the answer is over {limit} bytes; raise max_response_bytes if it may be"
                )
        return bytes(body)

    def read1(self) -> bytes:
        """Return what has come of the body, unpacked; waits for the first byte, b"" at its end.

        Raises:
            StreamInterruptedError: the body was cut, or its framing or compression is broken.
            APITimeoutError: nothing came in time.
        """
        try:
            data = next(self._body, b"")
        except BaseException as error:
            self.close()
            if isinstance(error, SyntheticError) or not isinstance(error, _FAULTS):
                raise
            packing = isinstance(error, zlib.error)
            raise _cut("its compression is broken" if packing else "the connection broke"
                       ) from error
        if not data:
            self._ended = True
            self.finish()
        return data

    def drain(self) -> bool:
        """Read what the framing still holds, say whether it came to its end."""
        try:
            for _ in self._blocks:
                pass
        except (SyntheticError, *_FAULTS):
            return False
        self._ended = True
        return True

    def isclosed(self) -> bool:
        """Say whether the body has been read to its end."""
        return self._ended

    def finish(self) -> None:
        """Give the connection back: nothing but the end of the framing is still to come."""
        owner, self.owner = self.owner, None
        if owner is not None and (self.will_close or self.status < 200):
            self.connection.discard()
        elif owner is not None:
            owner.give_back(self.connection, None if self._ended else self)

    def close(self) -> None:
        """End the exchange at once, also while another thread reads."""
        owner, self.owner = self.owner, None
        if owner is not None:
            self.connection.discard()

    def _read_blocks(self) -> Iterator[bytes]:
        """Yield the body as it comes, framed by chunks, Content-Length or close."""
        source, left = self._source, self._left
        if left is None and not self._chunked:
            yield from iter(lambda: source.read1(_BLOCK), b"")
            return
        while True:
            if self._chunked:
                line = source.readline(_LONGEST_LINE)
                digits = line.partition(b";")[0].strip()
                if not line.endswith(b"\n") or not re.fullmatch(b"[0-9A-Fa-f]{1,16}", digits):
                    raise _cut("its framing broke off")
                left = int(digits, 16)
            ends = not left or not self._chunked
            while left:
                data = source.read1(min(left, _BLOCK))
                if not data:
                    raise _cut("the body ended early")
                left -= len(data)
                yield data
            if not ends and source.read(2) != b"\r\n":
                raise _cut("a chunk does not end where it should")
            if ends:
                while self._chunked and source.readline(_LONGEST_LINE) not in _LINE_ENDS:
                    pass  # the trailer section
                return


class _TunnelRefused(OSError):
    """A proxy's answer to CONNECT that is not 2xx; its one argument is the status."""


class _Connection(http.client.HTTPConnection):
    """A connection that dials within the clock's connect phase."""

    response_class = Response  # type: ignore[assignment]
    wire: Optional[_Wire] = None
    unfinished: Optional[Response] = None  # its last answer, where the end is still to be read
    idle_since = 0.0
    tunnel = b""  # the head of the CONNECT request that comes first

    def __init__(
        self, host: str, clock: Clock, context: Optional[ssl.SSLContext], server_name: str
    ) -> None:
        self.default_port = 80 if context is None else 443
        super().__init__(host)
        self.clock, self.context, self.server_name = clock, context, server_name

    def connect(self) -> None:
        self.clock.start_connecting()
        self.wire = self.sock = self._dial()
        sock = self.wire.sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if self.tunnel:
            self.wire.sendall(self.tunnel)
            answer = Response(self.wire, method="CONNECT")
            answer.begin()
            if not 200 <= answer.status < 300:
                raise _TunnelRefused(answer.status)
        if self.context is not None:
            sock.getpeername()  # raises where the peer is gone: wrap_socket() would leak then
            sock = self.context.wrap_socket(
                sock, server_hostname=self.server_name, do_handshake_on_connect=False
            )
            self.wire.use(sock)
            sock.settimeout(self.clock.wait())
            try:
                sock.do_handshake()
            except socket.timeout as error:
                raise self.clock.expired() from error
        self.clock.connect_ends = None

    def _dial(self) -> _Wire:
        """Connect to the first address that answers, each with its share of the time."""
        addresses = socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM)
        failed = OSError("it has no address")
        for place, (family, kind, protocol, _, address) in enumerate(addresses):
            wire = _Wire(socket.socket(family, kind, protocol), self.clock)
            try:
                wire.sock.settimeout(self.clock.wait() / (len(addresses) - place))
                wire.sock.connect(address)
                return wire
            except OSError as error:
                failed = error
        if isinstance(failed, socket.timeout):
            raise self.clock.expired() from failed
        raise failed

    def is_reusable(self) -> bool:
        """Say whether another request may go out; the rest of the last answer is read first."""
        if self.wire is None or time.monotonic() - self.idle_since > IDLE_SECONDS:
            return False
        if self.unfinished is not None:
            self.wire.clock = Clock(_DRAIN_SECONDS, _DRAIN_SECONDS, _DRAIN_SECONDS)
            if not self.unfinished.drain():
                return False
            self.unfinished = None
        return self.wire.sock.fileno() >= 0 and self.wire.is_quiet()

    def discard(self) -> None:
        if self.wire is not None:
            self.wire.cut()


def _unpack(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield what gzip, of several members too, or deflate, with zlib's header or none, holds."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ResponseError("the answer is packed in a way that was not asked for")
    inflate: Any = None
    for packed in blocks:
        while packed:
            if inflate is None:
                bare = encoding == "deflate" and packed[0] & 0x0F != 8
                inflate = zlib.decompressobj(-15 if bare else 47)
            elif inflate.eof:
                if packed[:1] != b"\x1f":  # padding, or a line end: gzip(1) ignores it too
                    break
                inflate = zlib.decompressobj(47)
            data = inflate.decompress(packed, _UNPACKED_BLOCK)
            while data:
                yield data
                data = inflate.decompress(inflate.unconsumed_tail, _UNPACKED_BLOCK)
            packed = inflate.unused_data
    if inflate is not None and not inflate.eof:
        raise _cut("its compression broke off")


class _Proxy(NamedTuple):
    host: str
    headers: Dict[str, str]
    secrets: Tuple[str, ...]


class Transport(urllib.request.BaseHandler):
    """The way to one origin: an urllib handler, and the pool of its connections.

    Args:
        origin: "https://host:port", without a path.
        proxy: "http://user:password@host:port"; None for the environment's, "" for none.
        ca_file: a PEM bundle trusted in addition to the system's.
        ssl_context: used as it is, in place of our own.
    """

    log = logging.getLogger("synthetic_client")

    def __init__(
        self, origin: str, proxy: Optional[str], ca_file: Optional[str],
        ssl_context: Optional[ssl.SSLContext]
    ) -> None:
        self._origin = origin
        self._scheme, _, self._host = origin.partition("://")
        self._ca_file = ca_file
        self._own_context = ssl_context
        self._context = _make_context(ca_file) if ca_file else None
        self._proxy = _find_proxy(origin, proxy)
        self.secrets = self._proxy.secrets if self._proxy else ()
        self._idle: Deque[_Connection] = deque()  # its ends are atomic: no lock to fork with
        self._process = os.getpid()
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(self)

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: Optional[bytes],
        clock: Clock, attempt: int
    ) -> Response:
        """Return the answer to one request; redirects within the origin are followed.

        Raises:
            APIConnectionError: no answer could be had.
            ResponseError: what answered does not speak HTTP.
        """
        redirects = 0
        while True:
            request: Any = urllib.request.Request(url, body, dict(headers), method=method)
            request.clock, request.connection = clock, None
            response = self._open(request, attempt)
            target = _join(url, response.header("location"))
            follow = response.status in (307, 308) and target.startswith(self._origin + "/")
            if not follow or redirects == REDIRECTS:
                return response
            response.close()
            url = target
            redirects += 1

    def close_idle(self, but: int = 0) -> None:
        """Close idle connections, the oldest first, `but` so many."""
        while len(self._idle) > but:
            self._idle.popleft().discard()

    def give_back(self, connection: _Connection, unfinished: Optional[Response]) -> None:
        """Keep a connection whose answer has been read, or has but its framing left."""
        if connection.wire is None or connection.wire.owner != os.getpid():
            return connection.discard()
        connection.unfinished = unfinished
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        self.close_idle(IDLE_CONNECTIONS)

    def _open(self, request: Any, attempt: int) -> Response:
        begun, outcome = time.monotonic(), "stopped"
        try:
            response: Response = self._opener.open(request)
            outcome = str(response.status)
            return response
        except SyntheticError as error:
            outcome = type(error).__name__
            raise
        except (OSError, http.client.HTTPException) as error:
            found = self._translate(error, request.connection)
            outcome = type(found).__name__
            raise found from error
        finally:
            self.log.debug(
                "%s %s: %s in %.3f s, attempt %d", request.get_method(),
                request.full_url.partition("?")[0], outcome, time.monotonic() - begun, attempt)

    def http_open(self, request: Any) -> Response:
        """Answer urllib's opener: over an idle connection, or a new one."""
        connection = self._take_idle()
        if connection is not None:
            try:
                return self._exchange(connection, request)
            except APITimeoutError:
                raise
            except (OSError, http.client.HTTPException):  # closed while it was idle, or just now
                if connection.wire is None or connection.wire.heard:
                    raise
        return self._exchange(self._make_connection(request.clock), request)

    https_open = http_open

    def _make_connection(self, clock: Clock) -> _Connection:
        host = self._proxy.host if self._proxy else self._host
        if self._scheme == "http":
            return _Connection(host, clock, None, "")
        if self._context is None:
            self._context = self._own_context or _make_context(self._ca_file)
        name = urllib.parse.urlsplit(self._origin).hostname or ""
        connection = _Connection(host, clock, self._context, name)
        if self._proxy is not None:
            target = self._host if re.search(":[0-9]+$", self._host) else f"{self._host}:443"
            head = {"Host": target, **self._proxy.headers}
            lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
            connection.tunnel = f"CONNECT {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
        return connection

    def _exchange(self, connection: _Connection, request: Any) -> Response:
        connection.clock, request.connection = request.clock, connection
        request.clock.cut = connection.discard
        request.clock.connect_ends = None  # of an attempt that did not connect
        if connection.wire is not None:
            connection.wire.clock, connection.wire.heard = request.clock, False
        target, headers = request.selector, {"Host": self._host, **request.headers}
        if self._proxy is not None and self._scheme == "http":
            target = request.full_url
            headers.update(self._proxy.headers)
        try:
            connection.request(request.get_method(), target, request.data, headers)
            response: Any = connection.getresponse()
            response.connection, response.owner = connection, self
            request.clock.cut = response.close  # which spares a connection that was given back
            return cast(Response, response)
        except BaseException:
            connection.discard()
            raise

    def _take_idle(self) -> Optional[_Connection]:
        """Return an idle connection that is alive, None where there is none."""
        if self._process != os.getpid():  # the parent's sockets are the parent's
            self._idle, self._process = deque(), os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_reusable():
                return connection
            connection.discard()

    def _translate(
        self, error: Exception, connection: Optional[_Connection]
    ) -> SyntheticError:
        place = self._origin + (f" through the proxy {self._proxy.host}" if self._proxy else "")
        if not isinstance(error, OSError):
            return ResponseError(f"what answered at {place} does not speak HTTP; check base_url")
        if isinstance(error, _TunnelRefused):
            return APIConnectionError(
                f"no way to {place}: the proxy answered HTTP {error}; check its user, password "
                "and rules (proxy=, https_proxy)",
                retryable=error.args[0] not in (401, 403, 407)
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return APIConnectionError(self._describe_distrust(error))
        wire = connection.wire if connection is not None else None
        return APIConnectionError(
            f"no answer from {place}: {_describe(error)}",
            retryable=wire is None or not wire.heard
        )

    def _describe_distrust(self, error: ssl.SSLCertVerificationError) -> str:
        """Say which trust store was used, and how to add to it."""
        store = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        trusted = f"the system's certificates ({store})"
        if self._own_context is not None:
            trusted = "your ssl_context"
        elif self._ca_file:
            trusted += f" and {self._ca_file}"
        return (f"the certificate of {self._origin} is not trusted: {error.verify_message}; "
                f"checked against {trusted}; add yours with ca_file= or SSL_CERT_FILE"
                + _STRICT * (sys.version_info >= (3, 13)))


@lru_cache(maxsize=POOLS)
def _keep(_environment: Tuple[Any, ...], *settings: Any) -> Transport:
    return Transport(*settings)


def find(*settings: Any) -> Transport:
    """Return the Transport of these settings and the environment; the last few are kept."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "no_proxy", "NO_PROXY")
    proxies = sorted(urllib.request.getproxies().items())
    environment = (*proxies, *map(os.environ.get, names))
    _keep(environment, *settings)
    return _keep(environment, *settings)  # threads that came at once share the one that was kept


def _make_context(ca_file: Optional[str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    paths = ssl.get_default_verify_paths()
    if os.environ.get("SSL_CERT_FILE") == "" and os.path.isfile(paths.openssl_cafile):
        context.load_verify_locations(cafile=paths.openssl_cafile)  # empty counts as not set
    if os.environ.get("SSL_CERT_DIR") == "" and os.path.isdir(paths.openssl_capath):
        context.load_verify_locations(capath=paths.openssl_capath)
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"ca_file {ca_file!r} cannot be used: {_describe(error)}; it should hold PEM "
                "certificates"
            ) from error
    return context


def _find_proxy(origin: str, given: Optional[str]) -> Optional[_Proxy]:
    """Return the proxy on the way to `origin`, None for a direct way."""
    scheme, _, host = origin.partition("://")
    if given is None and not urllib.request.proxy_bypass(host):
        given = urllib.request.getproxies().get(scheme)
    if not given:
        return None
    match = _PROXY.fullmatch(given.strip())
    if match is None or (match.group(1) or "http").lower() not in ("http", "https") or (
        not _is_host(match.group(3)) or not 0 < int((match.group(4) or ":80")[1:]) < 65536
    ):
        raise ConfigurationError(
            "the proxy should be like http://user:password@host:port; SOCKS is not supported "
            "(proxy= or the environment's http_proxy, https_proxy)"
        )
    _, userinfo, name, port = match.groups()
    host = name + (port or ":80")
    if userinfo is None:
        return _Proxy(host, {}, ())
    plain = urllib.parse.unquote(userinfo)
    token = base64.b64encode(plain.encode("utf-8")).decode("ascii")
    secrets = (token, userinfo, plain, userinfo.partition(":")[2], plain.partition(":")[2])
    return _Proxy(host, {"Proxy-Authorization": f"Basic {token}"}, secrets)


def _is_host(name: str) -> bool:
    try:
        if name.startswith("["):
            return bool(ipaddress.IPv6Address(name[1:-1]))
        return not re.search("[\\x00-\\x20\\x7f]", name) and bool(name.encode("idna"))
    except ValueError:
        return False


def _join(url: str, location: str) -> str:
    """Return where a redirect leads, "" where that cannot be said."""
    try:
        return urllib.parse.urljoin(url, location) if re.fullmatch("[!-~]+", location) else ""
    except ValueError:
        return ""


def _cut(reason: str) -> StreamInterruptedError:
    return StreamInterruptedError(f"the answer is not whole: {reason}; ask again")


def _describe(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its name cannot be looked up; check base_url, and whether a proxy is needed"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; check base_url's host and port"
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
