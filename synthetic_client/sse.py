# SPDX-License-Identifier: MIT
"""Server-sent events by the WHATWG's rules (HTML standard, 9.2.6): bytes in, events out.

Strategy: `feed` takes bytes cut anywhere and returns the events that they complete. Bytes are
held until their line has ended, lines until their event's blank line has come; nothing here
knows where bytes come from. Only CR, LF and CRLF end a line. A CR ends it at once, and an LF
that follows, in this feed or the next, belongs to it: so nobody waits to see whether one comes.
"""

from typing import List, NamedTuple, Optional

from .errors import ResponseError

MAX_EVENT_BYTES = 64 * 1024 * 1024


class ServerSentEvent(NamedTuple):
    """One event: its type, its data lines joined by LF, the last id seen, its own retry."""

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: Optional[int] = None  # milliseconds


class SSEParser:
    """Turns the bytes of an event stream into events.

    Args:
        max_event_bytes: an event with more data than this is a ResponseError.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._rest: List[bytes] = []  # the line that has not ended yet
        self._rest_size = 0
        self._data: List[str] = []  # the data lines of the event that has not ended yet
        self._data_size = 0
        self._event = ""
        self._id = ""
        self._retry: Optional[int] = None
        self._at_start = True
        self._after_cr = False

    def feed(self, data: bytes) -> List[ServerSentEvent]:
        """Return the events that `data` completes.

        Raises:
            ResponseError: an event, finished or not, is over the limit.
        """
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data[-1] == 13
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        events: List[ServerSentEvent] = []
        if end:
            self._rest.append(data[:end])
            events = self._read_lines(b"".join(self._rest))
            self._rest, self._rest_size = [], 0
        if end < len(data):
            self._rest.append(data[end:])
            self._rest_size += len(data) - end
        self._check(self._data_size + self._rest_size)
        return events

    def _read_lines(self, block: bytes) -> List[ServerSentEvent]:
        text = block.decode("utf-8", "replace")
        if self._at_start:
            self._at_start = False
            if text[0] == "\ufeff":
                text = text[1:]
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        events: List[ServerSentEvent] = []
        lines = text.split("\n")
        del lines[-1]  # what follows the last line's end: nothing
        for line in lines:
            if line[:6] == "data: ":
                self._data.append(line[6:])
            elif line:
                self._read_field(line)
            elif self._data:
                events.append(self._dispatch())
            else:
                self._event, self._retry = "", None
        if events:
            self._data_size = sum(map(len, self._data))
        elif self._data:
            self._data_size += len(block)
        return events

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        if value[:1] == " ":
            value = value[1:]
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id":
            if "\0" not in value:
                self._id = value
        elif name == "retry" and value.isdigit() and value.isascii() and len(value) < 16:
            self._retry = int(value)

    def _dispatch(self) -> ServerSentEvent:
        data = self._data[0] if len(self._data) == 1 else "\n".join(self._data)
        self._check(len(data))
        event = ServerSentEvent(self._event or "message", data, self._id, self._retry)
        self._data, self._data_size, self._event, self._retry = [], 0, "", None
        return event

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise ResponseError(
                f"an event of the stream is over {self._limit} bytes; "
                "raise max_response_bytes if that is expected"
            )
