# SPDX-License-Identifier: MIT
"""HTTP/1.1 as a client reads and writes it (RFC 9112): no sockets.

Strategy: a `Response` is made on a raw stream and has read the head by then; `read1` hands over
the body as it comes, without its framing and compression. Generators do the reading: framing says
where the body ends, so that a cut one is an EOFError, never an end. The stream itself belongs to
transport.py, which says what its faults mean and takes it back when the body has been read.
"""

import io
import re
import zlib
from functools import partial
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from .errors import ResponseError

BLOCK = 65536  # bytes in one read or write, and in a line of a head, as http.client has it
_MOST_HEADERS = 200  # http.client has 100
_UNPACKED_BLOCK = 1 << 20  # bytes that one step of decompression may give
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])[ \r\n]")
_HEADER = re.compile(r"^([^\s:][^:\n]*):(.*)$", re.M)  # not what is folded, or has no name
_LENGTH = re.compile("[0-9]{1,18}(, *[0-9]{1,18})*")  # of several, the first: as http.client
_CHUNK = re.compile(rb"\s*([0-9A-Fa-f]{1,16})\s*(;.*)?\n")


class NotHTTP(Exception):
    """What answers does not speak HTTP/1.0 or 1.1."""


class Request:
    """A request, as urllib's opener takes one too; its own takes the URL apart at each call."""

    def __init__(
        self, method: str, url: str, headers: Mapping[str, str], data: Optional[bytes] = None,
        clock: Any = None
    ) -> None:
        self.method, self.full_url, self.headers = method, url, headers
        self.data, self.clock = data, clock
        self.type, self.get_method = url.partition(":")[0].lower(), lambda: method

    def write(self, target: str, headers: Mapping[str, str]) -> bytes:
        """Return the request as it goes out; its own headers go over `headers`."""
        body = self.data or b""
        fields = {**headers, **self.headers}
        if body or self.method in ("POST", "PUT", "PATCH"):
            fields["content-length"] = str(len(body))
        lines = [f"{name}: {value}" for name, value in fields.items()]
        head = "\r\n".join([f"{self.method} {target} HTTP/1.1", *lines, "", ""])
        return head.encode("latin-1") + body


class Response:
    """An answer's status and headers, and its body as it comes; making it reads the head.

    Args:
        connection: a raw stream, with `cut()` to end it and `explain(error)` to say what a fault
            means; None where it is none.
        method: of the request; an answer to HEAD has no body.
        pool: has `keep(connection, rest)`, to which the connection goes when the body has been
            read, with what is left of its framing.

    Raises:
        NotHTTP: what answers is something else.
    """

    def __init__(self, connection: Any, method: str, pool: Any = None) -> None:
        self._connection, self._pool = connection, pool
        source = io.BufferedReader(connection, BLOCK)
        is_old, self.status, self.headers = _read_head(source)
        while self.status < 200 and self.status != 101:  # interim (RFC 9110, 15.2)
            is_old, self.status, self.headers = _read_head(source)
        token = self.headers.get("connection", "").lower()
        length = self.headers.get("content-length", "")
        lives = "close" not in token and (not is_old or "keep-alive" in token)  # RFC 9112, 9.3
        self._lives = lives and self.status != 101
        if method == "HEAD" or self.status in (101, 204, 304):  # how the body ends: RFC 9112, 6.3
            self._blocks = _read_exactly(source, 0)
        elif self.headers.get("transfer-encoding", "").lower().endswith("chunked"):
            self._blocks = _read_chunks(source)
        elif _LENGTH.fullmatch(length):
            self._blocks = _read_exactly(source, int(length.partition(",")[0]))
        else:
            self._blocks = iter(partial(source.read1, BLOCK), b"")
            self._lives = False
        said = {*re.findall("[^ ,]+", self.headers.get("content-encoding", "").lower())}
        encoding = ",".join(said - {"identity"})
        self._body = _unpack(self._blocks, encoding) if encoding else self._blocks

    def read(self, limit: int) -> bytes:
        """Return the whole body; more than `limit` bytes are a ResponseError."""
        body = bytearray()
        for data in iter(self.read1, b""):
            body += data
            if len(body) > limit:
                self.close()
                raise ResponseError(
                    f"the answer is over {limit} bytes; raise max_response_bytes if it may be")
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
            fault = self._connection.explain(error)
            if fault is None:
                raise
            raise fault from error
        if not data:
            self.finish()
        return data

    def finish(self) -> None:
        """Give the connection back: nothing but the end of the framing is still to come."""
        pool, self._pool = self._pool, None
        if pool is not None and self._lives:
            pool.keep(self._connection, self._blocks)
        elif pool is not None:
            self._connection.cut()

    def close(self) -> None:
        """End the exchange at once, also while another thread reads."""
        self._lives = False
        self.finish()


def _read_head(source: io.BufferedReader) -> Tuple[bool, int, Dict[str, str]]:
    """Return whether it is HTTP/1.0, the status, and the headers by their names in lower case."""
    lines = [source.readline(BLOCK)]
    match = _STATUS.match(lines[0])
    if match is None and (lines[0][-1:] == b"\n" or lines[0][:5] != b"HTTP/"[:len(lines[0])]):
        raise NotHTTP("the status line is none")
    while match is None or lines[-1] not in (b"\r\n", b"\n"):
        if len(lines[-1]) == BLOCK or len(lines) > _MOST_HEADERS:
            raise NotHTTP("a line is too long, or the headers are too many")
        if lines[-1][-1:] != b"\n":
            raise ConnectionResetError("it closed the connection")
        lines.append(source.readline(BLOCK))
    headers: Dict[str, str] = {}
    for name, value in _HEADER.findall(b"".join(lines[1:]).decode("latin-1")):
        name, value = name.rstrip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return match.group(1) == b"0", int(match.group(2)), headers


def _read_exactly(source: io.BufferedReader, left: int) -> Iterator[bytes]:
    while left:
        data = source.read1(min(left, BLOCK))
        if not data:
            raise EOFError("the body ended early")
        left -= len(data)
        yield data


def _read_chunks(source: io.BufferedReader) -> Iterator[bytes]:
    size = -1
    while size:
        match = _CHUNK.match(source.readline(BLOCK))
        if match is None:
            raise EOFError("its framing broke off")
        size = int(match.group(1), 16)
        yield from _read_exactly(source, size)
        if size and source.read(2) != b"\r\n":
            raise EOFError("a chunk does not end where it should")
    while source.readline(BLOCK) not in (b"\r\n", b"\n", b""):
        pass  # the trailer section (RFC 9112, 7.1.2)


def _unpack(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield what gzip, of several members too, or deflate, with zlib's header or none, holds."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ResponseError("the answer is packed in a way that was not asked for")
    inflate: Any = None
    for packed in blocks:
        while packed:
            if inflate is None or inflate.eof and packed[:1] == b"\x1f":
                bare = encoding == "deflate" and packed[0] & 0x0F != 8
                inflate = zlib.decompressobj(-15 if bare else 47)
            elif inflate.eof:
                break  # padding, or a line end: gzip(1) ignores it too
            try:
                data = inflate.decompress(packed, _UNPACKED_BLOCK)
                while data:
                    yield data
                    data = inflate.decompress(inflate.unconsumed_tail, _UNPACKED_BLOCK)
            except zlib.error as error:
                raise EOFError("its compression is broken") from error
            packed = inflate.unused_data
    if inflate is not None and not inflate.eof:
        raise EOFError("its compression broke off")
