# SPDX-License-Identifier: MIT
"""A streamed answer: an iterator that owns a connection, and what puts its pieces together.

Strategy: bytes come from a response, the SSE parser makes events of them, and each event becomes
a chunk when the caller asks for it. The `Accumulator` sees each chunk's JSON first: it checks
what it looks into, keeps the pieces of text, and so can tell at any time what has arrived and
whether it is whole. Whatever ends a stream before that is an error which holds the part.
"""

import io
import json
from operator import itemgetter
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from .errors import (
    ResponseError, StreamInterruptedError, SyntheticError, parse_body, quote, raise_fault
)
from .schema import ChatCompletion, ChatCompletionChunk, Meta, text_chunk
from .sse import MAX_EVENT_BYTES, SSEParser, ServerSentEvent
from .wire import JSONObject

_decode = json.JSONDecoder(strict=False).raw_decode

_TEXTS = ("content", "reasoning_content", "refusal")
_PLAIN_KEYS = frozenset(("content", "reasoning_content", "reasoning", "role"))
_HEAD_KEYS = frozenset(
    ("id", "object", "created", "model", "choices", "system_fingerprint", "service_tier"))
_LONGEST_HEAD = 1 << 20
_PIECES = 512  # joined when there are this many, so that short pieces cost no more than their text


class _Text(List[str]):
    """Text that grows by pieces."""

    def add(self, piece: Any) -> None:
        if not isinstance(piece, str):
            raise ResponseError(f"a piece of text is {quote(piece)}", body=piece)
        self.append(piece)
        if len(self) >= _PIECES:
            self[:] = ["".join(self)]


def _merge(known: JSONObject, more: JSONObject, texts: Sequence[str] = ()) -> None:
    """Add `more` to `known`: texts and lists grow, else the last value that is not null stays."""
    for key, value in more.items():
        if value is None:
            known.setdefault(key, None)
        elif key in texts:
            if not isinstance(known.get(key), _Text):
                known[key] = _Text()
            known[key].add(value)
        elif isinstance(value, list):
            if not isinstance(known.get(key), list):
                known[key] = []
            known[key].extend(value)
        else:
            known[key] = value


def _merge_delta(message: JSONObject, delta: JSONObject) -> None:
    more = dict(delta)
    if "reasoning" in more:  # the same text under another name
        text = more.pop("reasoning")
        more["reasoning_content"] = more.get("reasoning_content") or text
    if message["role"]:
        more.pop("role", None)
    for piece in filter(None, more.pop("tool_calls", None) or ()):
        _merge_call(message.setdefault("tool_calls", []), piece)
    _merge(message, more, _TEXTS)


def _merge_call(calls: List[JSONObject], piece: JSONObject) -> None:
    call = _find_call(calls, piece)
    function = dict(piece.get("function") or {})
    known, arguments = call["function"], function.get("arguments")
    if isinstance(arguments, dict):  # not text, as some servers have it
        function["arguments"] = json.dumps(arguments)
    if isinstance(known["name"], str) and isinstance(function.get("name"), str):
        again = function["name"] == known["name"]
        function["name"] = known["name"] + ("" if again else function["name"])
    _merge(known, function, ("arguments",))
    _merge(call, {key: value for key, value in piece.items()
                  if key not in ("index", "function") and not (key == "id" and call["id"])})


def _find_call(calls: List[JSONObject], piece: JSONObject) -> JSONObject:
    """Return the call that a piece belongs to: by index, told apart by id."""
    name, index = piece.get("id"), piece.get("index")
    if not isinstance(index, int):
        index = None
    for call in calls:
        if name and call["id"] == name and index in (None, call["index"]):
            return call
    if index is None:
        index = calls[0]["index"] if calls else 0
    at_index = [call for call in calls if call["index"] == index]
    if at_index and not (name and at_index[-1]["id"]):
        return at_index[-1]
    function = {"name": None, "arguments": _Text()}
    calls.append({"index": index, "id": None, "type": "function", "function": function})
    return calls[-1]


def _joined(value: Any, levels: int = 5) -> Any:
    """Return a copy in which each text is in one piece; down to a call's arguments is enough."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, list) and levels:
        return [_joined(item, levels - 1) for item in value]
    if isinstance(value, dict) and levels:
        return {key: _joined(item, levels - 1) for key, item in value.items()}
    return value


def _values(data: JSONObject) -> int:
    return len(data) - [*data.values()].count(None)


class Accumulator:
    """Puts chunks together to the answer that they are pieces of."""

    def __init__(self, expected_choices: int = 1) -> None:
        self.is_empty = True  # no chunk has come
        self._expected = expected_choices
        self._choices: Dict[int, JSONObject] = {}
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
            if (delta.keys() <= _PLAIN_KEYS and _values(choice) == 2
                    and (raw.keys(), _values(raw)) == self._usual):
                _merge_delta(self._choices[choice["index"]]["message"], delta)
                return text_chunk(raw, choice, delta)
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        chunk = ChatCompletionChunk.from_dict(raw)  # says what has the wrong type
        self.is_empty = False
        if all(value is None or key in _HEAD_KEYS for key, value in raw.items()):
            self._usual = raw.keys(), _values(raw)
        for choice in raw.get("choices") or ():
            self._add_choice(choice or {})
        self._top.update((key, value) for key, value in raw.items()
                         if value is not None or key not in self._top)
        return chunk

    def _add_choice(self, choice: JSONObject) -> None:
        more = {"finish_reason": None, **choice}
        index, delta, logprobs = (more.pop(key, None) for key in ("index", "delta", "logprobs"))
        index = index if isinstance(index, int) else 0
        known = self._choices.setdefault(
            index, {"index": index, "message": {"role": None, "content": None}})
        if isinstance(logprobs, dict):
            _merge(known.setdefault("logprobs", {}), logprobs)
        more.pop("message", None)
        more["finish_reason"] = more["finish_reason"] or None  # "" too is none
        _merge(known, more)
        _merge_delta(known["message"], delta or {})

    @property
    def is_finished(self) -> bool:
        """Whether every choice that was asked for has its finish_reason."""
        finished = [choice["finish_reason"] for choice in self._choices.values()]
        return len(finished) >= self._expected and all(finished)

    def completion(self) -> ChatCompletion:
        """Return what has arrived so far."""
        choices = [_joined(self._choices[index]) for index in sorted(self._choices)]
        for choice in choices:
            message = choice["message"]
            message["role"] = message["role"] or "assistant"
            if "tool_calls" in message:
                message["tool_calls"].sort(key=itemgetter("index"))
                for call in message["tool_calls"]:
                    del call["index"]
        top = {**self._top, "object": "chat.completion", "choices": choices}
        return ChatCompletion.from_dict(top)


class Whole(io.BytesIO):
    """Stands in for a Response where the whole answer came at once, as the stream of one chunk."""

    def __init__(self, answer: JSONObject) -> None:
        choices = [{"index": place, **choice, "delta": choice.get("message")}
                   for place, choice in enumerate(answer["choices"]) if choice]
        chunk = {**answer, "object": "chat.completion.chunk", "choices": choices}
        super().__init__(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode("ascii"))

    finish = io.BytesIO.close


def _read_chunks(
    response: Any, parser: SSEParser, accumulator: Accumulator
) -> Iterator[ChatCompletionChunk]:
    """Yield the chunks of an answer; ends well when it was whole, and raises where it was not."""
    head, raw = bytearray(), None  # the head may be no event stream, but an error
    for data in iter(response.read1, b""):
        if accumulator.is_empty and len(head) < _LONGEST_HEAD:
            head += data
        for event in parser.feed(data):
            try:
                raw, end = _decode(event.data)
                usual = end == len(event.data) and event.event != "error" and not raw.get("error")
            except (ValueError, AttributeError, RecursionError):
                usual = False
            if not usual:
                if event.data.strip() == "[DONE]":
                    response.finish()
                    return
                raw = _read_unusual(event)
            if raw is not None:
                yield accumulator.add(raw)
    if accumulator.is_empty and head.lstrip().startswith((b"<", b"{", b"[")):
        body = parse_body(head.decode("utf-8", "replace"))
        raise_fault(body)
        raise ResponseError(
            f"the answer is no event stream: {quote(body)}; check base_url", body=body)
    if not accumulator.is_finished:
        raise StreamInterruptedError(
            "the stream ended before the answer was whole; see partial, or ask again")
    response.finish()


def _read_unusual(event: ServerSentEvent) -> Optional[JSONObject]:
    """Return an event's JSON object, None where it has no data; raises what is no chunk."""
    if not event.data.strip():
        return None
    body = parse_body(event.data)
    raise_fault(body, flat=event.event == "error")
    if not isinstance(body, dict):
        raise ResponseError(f"a chunk is no JSON object: {quote(body)}", body=body)
    return body


class ChatStream(Iterator[ChatCompletionChunk]):
    """A streamed answer: iterate over its chunks, or over `texts()`, or ask for `completion()`.

    It owns a connection until it has ended; `close()`, leaving a `with` block and dropping it
    free that. Where the answer breaks off, iteration raises an error whose `partial` holds what
    had come.
    """

    meta: Meta

    def __init__(
        self, response: Any, meta: Meta, *, expected_choices: int = 1,
        max_event_bytes: int = MAX_EVENT_BYTES,
        on_error: Callable[[SyntheticError], None] = lambda error: None
    ) -> None:
        self.meta = meta
        self._response = response
        self._accumulator = Accumulator(expected_choices)
        # which knows nothing of this object, so that dropping it frees the connection at once
        self._chunks = _read_chunks(response, SSEParser(max_event_bytes), self._accumulator)
        self._on_error = on_error  # adds what the client knows, hides what none may see
        self._error: Optional[SyntheticError] = None
        self._whole = self._closed = False

    def __next__(self) -> ChatCompletionChunk:
        """Return the next chunk as soon as it has come.

        Raises:
            StreamInterruptedError, APITimeoutError, ResponseError, APIStatusError: the answer
                broke off; `partial` holds what had come.
        """
        if self._error is not None:
            raise self._error
        if self._closed:
            raise StopIteration
        try:
            return next(self._chunks)
        except StopIteration:
            self._whole = self._closed = True
            raise
        except BaseException as error:
            if self._closed and isinstance(error, Exception):
                raise StopIteration from None  # by another thread, which is no fault
            self.close()
            if isinstance(error, SyntheticError):
                self._on_error(error)
                error.partial = self.partial
                self._error = error
            raise

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
        if not self._closed:
            self._closed = True
            self._response.close()

    def __enter__(self) -> "ChatStream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if "_response" in vars(self):
            self._response.close()
