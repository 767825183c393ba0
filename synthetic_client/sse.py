# SPDX-License-Identifier: MIT
"""Server-sent events by the WHATWG's rules (HTML standard, 9.2.6): bytes in, events out.

Strategy: `feed` takes bytes cut anywhere and returns the events that they complete. CR and CRLF
become LF as they come, so that an event ends at LF LF; what has not ended is held as bytes. A CR
ends its line at once, and an LF that follows, in this feed or the next, belongs to it: so nobody
waits to see whether one comes.
"""

import re
from typing import List, NamedTuple, Optional

from .errors import ResponseError

MAX_EVENT_BYTES = 64 * 1024 * 1024
_COMMENTS = re.compile(rb"\A(?::[^\n]*\n)+")  # before an event, of which they are no part


class ServerSentEvent(NamedTuple):
    """One event: its type, its data lines joined by LF, the last id seen, its own retry."""

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: Optional[int] = None  # milliseconds


class SSEParser:
    """Turns the bytes of an event stream into events.

    Args:
        max_event_bytes: an event whose lines are longer than this is a ResponseError.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._held = bytearray()  # the event that has not ended yet
        self._id = ""
        self._at_start = True
        self._after_cr = False

    def feed(self, data: bytes) -> List[ServerSentEvent]:
        """Return the events that `data` completes.

        Raises:
            ResponseError: an event, finished or not, is over the limit.
        """
        if self._after_cr and data:
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data[-1:] == b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        start = max(len(self._held) - 1, 0)
        self._held += data
        end = self._held.rfind(b"\n\n", start)
        events: List[ServerSentEvent] = []
        if end >= 0:
            events = self._read_events(self._held[:end])
            del self._held[:end + 2]
        elif b"\n" in data and self._held.startswith(b":"):
            self._held = bytearray(_COMMENTS.sub(b"", self._held))
            self._at_start = False
        self._check(self._held)
        return events

    def _check(self, lines: bytearray) -> None:
        if len(lines) - lines.endswith(b"\n") > self._limit:
            raise ResponseError(
                f"an event of the stream is over {self._limit} bytes; raise max_response_bytes")

    def _read_events(self, data: bytearray) -> List[ServerSentEvent]:
        for lines in data.split(b"\n\n") if len(data) > self._limit else ():
            self._check(bytearray(_COMMENTS.sub(b"", lines + b"\n")))
        text = data.decode("utf-8", "replace")
        if self._at_start and text[:1] == "\ufeff":
            text = text[1:]
        self._at_start = False
        events = []
        for block in text.split("\n\n"):
            if block[:6] == "data: " and "\n" not in block:
                events.append(ServerSentEvent("message", block[6:], self._id))
            else:
                events += self._read_event(block)
        return events

    def _read_event(self, block: str) -> List[ServerSentEvent]:
        """Return the event that these lines make, none where they have no data."""
        kind, retry, values = "", None, []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if value[:1] == " ":
                value = value[1:]
            if name == "data":
                values.append(value)
            elif name == "event":
                kind = value
            elif name == "id" and "\0" not in value:
                self._id = value
            elif name == "retry" and value.isdigit() and value.isascii() and len(value) < 4000:
                retry = int(value)
        data = "\n".join(values)
        return [ServerSentEvent(kind or "message", data, self._id, retry)] if values else []
