# SPDX-License-Identifier: MIT
"""A request's head by strict rules: bytes in, a `Head` out; no I/O.

Strategy: `parse_head` takes all bytes that have come, cut anywhere, and returns None until the
head is whole. What two readers could read in two ways, which is how a request is smuggled past
one of them (RFC 9112, 11.2), is refused as soon as it shows: `refusal` makes the error, whose
status is the answer's.
"""

import re
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

from .errors import APIStatusError
from .request import MAX_REQUEST_BYTES

MAX_HEAD_BYTES = 32 * 1024  # nginx has as much
_REQUEST_LINE = re.compile(r"([A-Za-z]{1,20}) (/[!-~]*) HTTP/1\.([01])")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
_ONCE = ("authorization", "content-length", "host", "origin", "transfer-encoding")


class Head(NamedTuple):
    """A request's first line and fields; the names in lower case, the path without its query."""

    method: str = "-"
    path: str = "-"
    minor: str = "1"  # of the version 1.x
    fields: Dict[str, str] = {}

    @property
    def length(self) -> int:
        """The bytes of the body."""
        return int(self.fields.get("content-length", 0))

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with this request."""
        return self.minor == "0" or "close" in self.fields.get("connection", "").lower()


def refusal(status: int, message: str) -> APIStatusError:
    """Return the error that is answered with `status`."""
    return APIStatusError(message, status_code=status, message=message)


def parse_head(received: bytes) -> Optional[Tuple[Head, bytes]]:
    """Return the head and the bytes behind it, None while it is not whole.

    Raises:
        APIStatusError: it is refused; nothing behind it can be trusted.
    """
    raw, end, rest = received.partition(b"\r\n\r\n")
    if len(raw) > MAX_HEAD_BYTES:
        raise refusal(431, f"the request's head is over {MAX_HEAD_BYTES} bytes")
    if b"\n" in raw.replace(b"\r\n", b""):
        raise refusal(400, "a line of the request's head does not end with CR LF")
    if not end:
        return None
    first, *lines = raw.decode("latin-1").split("\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise refusal(400, "this is no request of HTTP/1.1")
    method, target, minor = match.groups()
    head = Head(method, target.partition("?")[0], minor, {})
    for found in map(_FIELD.fullmatch, lines):
        name = found.group(1).lower() if found else "a header"
        if found is None or name in _ONCE and name in head.fields:
            raise refusal(400, f"{name} can be read in more than one way")
        head.fields[name] = found.group(2).strip("\t ")
    _check(head)
    return head, rest


def _check(head: Head) -> None:
    """Refuse a body of unclear or unwanted length."""
    length = head.fields.get("content-length", "0")
    if "transfer-encoding" in head.fields:
        status = 400 if "content-length" in head.fields else 411
        raise refusal(status, "send Content-Length, and no Transfer-Encoding")
    if not re.fullmatch("[0-9]{1,15}", length):
        raise refusal(400, "Content-Length is no number")
    if head.minor == "1" and "host" not in head.fields:
        raise refusal(400, "Host is missing")
    if head.length > MAX_REQUEST_BYTES:
        raise refusal(413, f"the request's body is over {MAX_REQUEST_BYTES} bytes")


def check_origin(head: Head, allowed: Sequence[str]) -> Dict[str, str]:
    """Return the headers that let a web page read the answer; refuse pages that may not ask.

    A browser keeps other pages from reading, but not from asking, at the cost of the key.
    """
    origin = head.fields.get("origin")
    if origin is None:
        return {}
    if origin not in allowed and "*" not in allowed:
        raise refusal(403, f"no page of {origin} may call; see --allow-origin")
    asked = head.fields.get("access-control-request-headers", "")
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Headers": asked,
            "Vary": "Origin"}
