# SPDX-License-Identifier: MIT
"""A streamed answer: an iterator that owns a connection, and what puts its pieces together.

Strategy: bytes come from a response, the SSE parser makes events of them, and each event becomes
a chunk when the caller asks for it. The `Accumulator` sees each chunk's JSON first: it checks
what it looks into, keeps the pieces of text, and so can tell at any time what has arrived and
whether it is whole. Whatever ends a stream before that is an error which holds the part.
"""

import json
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from .errors import (
    ResponseError, StreamInterruptedError, SyntheticError, answer_error, parse_body, quote
)
from .schema import (
    ChatCompletion, ChatCompletionChunk, ChunkChoice, JSONObject, Meta, ToolCallDelta, text_chunk
)
from .sse import MAX_EVENT_BYTES, SSEParser, ServerSentEvent

_decode = json.JSONDecoder(strict=False).raw_decode

_TEXT_KEYS = frozenset(("content", "reasoning_content", "reasoning", "role"))
_HEAD_KEYS = frozenset(
    ("id", "object", "created", "model", "choices", "system_fingerprint", "service_tier"))
_PIECES = 512  # joined when there are this many, so that short pieces cost no more than their text


class _Text:
    """Text that grows by pieces; None until the first one came."""

    def __init__(self) -> None:
        self._blocks: List[str] = []
        self._pieces: List[str] = []

    def add(self, piece: Any) -> None:
        if not isinstance(piece, str):
            raise ResponseError(f"a piece of text is {str(piece)[:60]!r}", body=piece)
        self._pieces.append(piece)
        if len(self._pieces) >= _PIECES:
            self._blocks.append("".join(self._pieces))
            self._pieces.clear()

    def value(self) -> Optional[str]:
        pieces = self._blocks + self._pieces
        return "".join(pieces) if pieces else None


class _ToolCall:
    def __init__(self, index: int) -> None:
        self.index = index
        self.fields: JSONObject = {"id": None, "type": "function"}
        self.name: Optional[str] = None
        self.arguments = _Text()

    def add(self, delta: ToolCallDelta) -> None:
        self.fields.update({key: value for key, value in delta.extra.items() if value is not None})
        self.fields["id"] = self.fields["id"] or delta.id
        self.fields["type"] = delta.type or self.fields["type"]
        name = delta.function.name
        if isinstance(name, str) and name != self.name:
            self.name = (self.name or "") + name
        arguments = delta.function.arguments
        whole = isinstance(arguments, dict)  # not text, as some servers have it
        if arguments is not None:
            self.arguments.add(json.dumps(arguments) if whole else arguments)

    def to_dict(self) -> JSONObject:
        function = {"name": self.name, "arguments": self.arguments.value() or ""}
        return {**self.fields, "function": function}


class _ChoiceParts:
    """What has arrived of one choice."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.content, self.reasoning, self.refusal = _Text(), _Text(), _Text()
        self.role: Optional[str] = None
        self.tool_calls: List[_ToolCall] = []
        self.finish_reason: Optional[str] = None
        self.logprobs: Optional[JSONObject] = None
        self.extra: JSONObject = {}
        self.message_extra: JSONObject = {}

    def add_texts(self, delta: Mapping[str, Any]) -> None:
        for key, piece in delta.items():
            if piece is None:
                continue
            if key == "content":
                self.content.add(piece)
            elif key == "role":
                self.role = self.role or piece
            elif key == "reasoning_content" or not delta.get("reasoning_content"):
                self.reasoning.add(piece)

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        self.add_texts({key: delta.get(key) for key in ("role", "content", "reasoning_content")})
        if delta.refusal is not None:
            self.refusal.add(delta.refusal)
        for call in delta.tool_calls:
            self._find_call(call).add(call)
        self.finish_reason = choice.finish_reason or self.finish_reason
        if isinstance(choice.logprobs, dict):
            self.logprobs = _extend(self.logprobs or {}, choice.logprobs)
        _extend(self.extra, choice.extra)
        _extend(self.message_extra, delta.extra)
        self.message_extra.pop("reasoning", None)  # it stands in reasoning_content

    def _find_call(self, delta: ToolCallDelta) -> _ToolCall:
        """Return the call that a piece belongs to: by index, told apart by id."""
        index = delta.index if isinstance(delta.index, int) else None
        for call in self.tool_calls:
            if delta.id and call.fields["id"] == delta.id and index in (None, call.index):
                return call
        if index is None:
            index = self.tool_calls[0].index if self.tool_calls else 0
        for call in reversed(self.tool_calls):
            if call.index == index:
                if delta.id and call.fields["id"]:
                    break
                return call
        self.tool_calls.append(_ToolCall(index))
        return self.tool_calls[-1]

    def to_dict(self) -> JSONObject:
        message: JSONObject = {"role": self.role or "assistant", "content": self.content.value()}
        for key, text in (("reasoning_content", self.reasoning), ("refusal", self.refusal)):
            if text.value() is not None:
                message[key] = text.value()
        if self.tool_calls:
            calls = sorted(self.tool_calls, key=lambda call: call.index)
            message["tool_calls"] = [call.to_dict() for call in calls]
        _extend(message, self.message_extra)
        choice = {"index": self.index, "message": message, "finish_reason": self.finish_reason}
        if self.logprobs is not None:
            choice["logprobs"] = _extend({}, self.logprobs)
        return {**choice, **_extend({}, self.extra)}


def _extend(known: JSONObject, more: JSONObject) -> JSONObject:
    """Add `more` to `known`: lists grow, of other values the last one that is not null stays."""
    for key, value in more.items():
        if isinstance(value, list):
            if not isinstance(known.get(key), list):
                known[key] = []
            known[key].extend(value)
        elif value is not None or key not in known:
            known[key] = value
    return known


def _values(data: JSONObject) -> int:
    return len(data) - [*data.values()].count(None)


class Accumulator:
    """Puts chunks together to the answer that they are pieces of."""

    def __init__(self, expected_choices: int = 1) -> None:
        self._expected = expected_choices
        self._choices: Dict[int, _ChoiceParts] = {}
        self._top: JSONObject = {}
        self._usual: Tuple[Any, int] = ((), 0)  # the keys of a chunk without news, its values

    def add(self, raw: JSONObject) -> ChatCompletionChunk:
        """Take in the JSON of a chunk, and return the chunk.

        Raises:
            ResponseError: something in it has the wrong type.
        """
        try:
            (choice,) = raw["choices"]
            delta = choice["delta"]
            # one of the many plain chunks: nothing but text, and null in all that could be news
            if (delta.keys() <= _TEXT_KEYS and _values(choice) == 2
                    and (raw.keys(), _values(raw)) == self._usual):
                self._choices[choice["index"]].add_texts(delta)
                return text_chunk(raw, choice, delta)
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        chunk = ChatCompletionChunk.from_dict(raw)
        if all(value is None or key in _HEAD_KEYS for key, value in raw.items()):
            self._usual = raw.keys(), _values(raw)
        for choice in chunk.choices:
            index = choice.index if isinstance(choice.index, int) else 0
            if index not in self._choices:
                self._choices[index] = _ChoiceParts(index)
            self._choices[index].add(choice)
        for key, value in raw.items():
            if key != "choices" and (value is not None or key not in self._top):
                self._top[key] = value
        return chunk

    @property
    def is_empty(self) -> bool:
        """Whether no chunk has come."""
        return not self._top

    @property
    def is_finished(self) -> bool:
        """Whether every choice that was asked for has its finish_reason."""
        finished = [choice.finish_reason for choice in self._choices.values()]
        return len(finished) >= self._expected and all(finished)

    def completion(self) -> ChatCompletion:
        """Return what has arrived so far."""
        choices = [self._choices[index].to_dict() for index in sorted(self._choices)]
        top = {**self._top, "object": "chat.completion", "choices": choices}
        return ChatCompletion.from_dict(top)


class ChatStream(Iterator[ChatCompletionChunk]):
    """A streamed answer: iterate over its chunks, or over `texts()`, or ask for `completion()`.

    It owns a connection until it has ended; `close()`, leaving a `with` block and dropping it
    free that. Where the answer breaks off, iteration raises an error whose `partial` holds what
    had come.
    """

    meta: Meta
    _response: Any = None

    def __init__(
        self, response: Any, meta: Meta, *, events: Iterable[ServerSentEvent] = (),
        expected_choices: int = 1, max_event_bytes: int = MAX_EVENT_BYTES,
        on_error: Optional[Callable[[SyntheticError], None]] = None
    ) -> None:
        self.meta = meta
        self._response = response
        self._events = iter(events)
        self._parser = SSEParser(max_event_bytes)
        self._accumulator = Accumulator(expected_choices)
        self._on_error = on_error  # adds what the client knows, hides what none may see
        self._error: Optional[SyntheticError] = None
        self._whole = self._ended = False
        self._head = b""

    def __next__(self) -> ChatCompletionChunk:
        """Return the next chunk as soon as it has come.

        Raises:
            StreamInterruptedError, APITimeoutError, ResponseError, APIStatusError: the answer
                broke off; `partial` holds what had come.
        """
        try:
            while True:
                for event in self._events:
                    chunk = self._read_event(event)
                    if chunk is not None:
                        return chunk
                if self._ended:
                    break
                self._events = iter(self._receive())
        except BaseException as error:
            self._fail(error)
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _read_event(self, event: ServerSentEvent) -> Optional[ChatCompletionChunk]:
        data = event.data
        try:
            raw, end = _decode(data)
            if end != len(data) or event.event == "error" or raw.get("error"):
                return self._read_unusual(event)
        except (ValueError, AttributeError, RecursionError):
            return self._read_unusual(event)
        return self._accumulator.add(raw)

    def _read_unusual(self, event: ServerSentEvent) -> Optional[ChatCompletionChunk]:
        data = event.data.strip()
        if not data:
            return None
        if data == "[DONE]":
            self._end()
            return None
        body = parse_body(data)
        error = answer_error(body, flat=event.event == "error")
        if error is not None:
            raise error
        if not isinstance(body, dict):
            raise ResponseError(f"a chunk of the stream is no JSON object: {quote(str(body))}",
                                body=body)
        return self._accumulator.add(body)

    def _receive(self) -> List[ServerSentEvent]:
        data = self._response.read1()
        if data:
            self._head = self._head or data[:1000]
            return self._parser.feed(data)
        if self._accumulator.is_empty and self._head.lstrip()[:1] in (b"<", b"{", b"["):
            body = parse_body(self._head.decode("utf-8", "replace"))
            text = quote(str(body)[:300] + "[...]")
            raise answer_error(body) or ResponseError(
                f"the answer is no event stream: {text}", body=text)
        if not self._accumulator.is_finished:
            raise StreamInterruptedError(
                "the stream ended before the answer was whole; see partial, or ask again"
            )
        self._end()
        return []

    def _end(self) -> None:
        self._whole = self._ended = True
        self._events = iter(())
        if self._response is not None:
            self._response.finish()

    def _fail(self, error: BaseException) -> None:
        closed = self._ended
        self.close()
        if isinstance(error, Exception) and closed:
            return  # by another thread, which is no fault
        if isinstance(error, SyntheticError):
            if self._on_error is not None:
                self._on_error(error)
            error.partial = self.partial
            self._error = error
        raise error

    @property
    def partial(self) -> ChatCompletion:
        """The answer as far as it has been read."""
        completion = self._accumulator.completion()
        completion.meta = self.meta
        return completion

    def texts(self) -> Iterator[str]:
        """Yield the pieces of the first choice's text, none of them empty."""
        for chunk in self:
            for choice in chunk.choices:
                if choice.delta.content and not choice.index:
                    yield choice.delta.content

    def completion(self) -> ChatCompletion:
        """Read what is left and return the whole answer.

        Raises:
            StreamInterruptedError: the stream was closed before the answer was whole.
        """
        for _ in self:
            pass
        if not self._whole:
            raise StreamInterruptedError(
                "the stream was closed before the answer was whole; see partial",
                partial=self.partial, attempts=self.meta.attempts
            )
        return self.partial

    def close(self) -> None:
        """End the stream and free its connection, at once and from any thread."""
        if not self._ended:
            self._ended = True
            self._events = iter(())
            if self._response is not None:
                self._response.close()

    def __enter__(self) -> "ChatStream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if self._response is not None:
            self._response.close()
