# SPDX-License-Identifier: MIT
"""What the server answers, as dataclasses; wire.py says how they are read and written."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Dict, List, Mapping, Optional

from .errors import parse_body
from .wire import JSONObject, WireObject, parse, wire


class Headers(Dict[str, str]):
    """Response headers, in lower case, looked up in any."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        """Return the header's value, or `default`."""
        return super().get(name.lower(), default)


class QuotaMeter(WireObject, lenient=True, camel_case=True):
    """A count of requests that starts again at `renews_at`."""

    limit: Optional[float] = wire
    requests: Optional[float] = wire
    renews_at: Optional[datetime] = wire


class SearchQuotas(WireObject, lenient=True):
    """The meters of the search endpoint."""

    hourly: Optional[QuotaMeter] = wire


class WeeklyTokenLimit(WireObject, lenient=True, camel_case=True):
    """Credits of the week, which come back bit by bit; `percent_remaining` is 0 to 100."""

    next_regen_at: Optional[datetime] = wire
    percent_remaining: Optional[float] = wire
    max_credits: Optional[Decimal] = wire
    remaining_credits: Optional[Decimal] = wire
    next_regen_credits: Optional[Decimal] = wire


class RollingFiveHourLimit(WireObject, lenient=True, camel_case=True):
    """Requests of the last five hours; each tick gives back `tick_percent` (0 to 1) of `max`."""

    next_tick_at: Optional[datetime] = wire
    tick_percent: Optional[float] = wire
    remaining: Optional[float] = wire
    max: Optional[float] = wire
    limited: Optional[bool] = wire


class Quotas(WireObject, lenient=True, camel_case=True):
    """What is left of a plan; every meter is None for a pay-as-you-go key."""

    subscription: Optional[QuotaMeter] = wire
    search: Optional[SearchQuotas] = wire
    free_tool_calls: Optional[QuotaMeter] = wire
    weekly_token_limit: Optional[WeeklyTokenLimit] = wire
    rolling_five_hour_limit: Optional[RollingFiveHourLimit] = wire
    meta: "Meta" = field(default_factory=lambda: Meta(), compare=False, repr=False)


@dataclass
class Meta:
    """How an answer came: its HTTP status and headers, the requests it took, the quotas."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=Headers)
    request_id: Optional[str] = None
    attempts: int = 0
    quotas: Optional[Quotas] = None

    @classmethod
    def read(cls, status: int, found: Mapping[str, str], attempts: int) -> "Meta":
        """Return what an answer's status line and headers, named in lower case, say."""
        headers = Headers(found)
        said = headers.get("x-synthetic-quotas")
        quotas = parse(Quotas, parse_body(said)) if said else None
        request_id = headers.get("x-request-id") or headers.get("request-id")
        return cls(status, headers, request_id, attempts, quotas)


class Pricing(WireObject, lenient=True):
    """US dollars a token, an image or a request; "0" is free, None is not said."""

    prompt: Optional[Decimal] = wire
    completion: Optional[Decimal] = wire
    image: Optional[Decimal] = wire
    request: Optional[Decimal] = wire
    input_cache_reads: Optional[Decimal] = wire
    input_cache_writes: Optional[Decimal] = wire


class Model(WireObject, lenient=True):
    """A model of the list; a feature list that is None is not known, which is not empty."""

    id: Optional[str] = wire
    name: Optional[str] = wire
    display_name: Optional[str] = wire
    hugging_face_id: Optional[str] = wire
    object: Optional[str] = wire
    provider: Optional[str] = wire
    always_on: Optional[bool] = wire
    created: Optional[datetime] = wire
    context_length: Optional[int] = wire
    max_output_length: Optional[int] = wire
    pricing: Optional[Pricing] = wire
    quantization: Optional[str] = wire
    input_modalities: Optional[List[str]] = wire
    output_modalities: Optional[List[str]] = wire
    supported_features: Optional[List[str]] = wire
    supported_sampling_parameters: Optional[List[str]] = wire
    reasoning_parameters: Optional[JSONObject] = wire


class SearchResult(WireObject, lenient=True):
    """A page that was found; the service sends its `text`, or `highlights` of it, or both."""

    url: Optional[str] = wire
    title: Optional[str] = wire
    text: Optional[str] = wire
    highlights: Optional[List[str]] = wire
    published: Optional[datetime] = wire


class FunctionCall(WireObject):
    """The function that the model wants called, its arguments as JSON text."""

    name: Optional[str] = wire
    arguments: Optional[str] = wire

    def parse(self) -> JSONObject:
        """Return the arguments as a dict.

        Raises:
            ValueError: the model wrote something that is not a JSON object.
        """
        try:
            parsed = json.loads(self.arguments or "{}")
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the arguments of {self.name!r} are not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise ValueError(f"the arguments of {self.name!r} are not a JSON object: {parsed!r}")
        return parsed


class ToolCall(WireObject):
    """One call that the model asks for."""

    id: Optional[str] = wire
    type: Optional[str] = wire
    function: FunctionCall = wire


class Message(WireObject):
    """The model's message; appended to `messages`, it goes back as `to_param` says."""

    role: Optional[str] = wire
    content: Optional[str] = wire
    reasoning_content: Optional[str] = wire
    tool_calls: List[ToolCall] = wire
    refusal: Optional[str] = wire

    def to_param(self) -> JSONObject:
        """Return the dict to send back in `messages`, without what the service does not take."""
        param: JSONObject = {"role": self.role or "assistant", "content": self.content}
        if self.reasoning_content:
            param["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            param["tool_calls"] = [
                {"id": call.id, "type": call.type or "function",
                 "function": {"name": call.function.name, "arguments": call.function.arguments}}
                for call in self.tool_calls
            ]
        for key in ("name", "tool_call_id", "function_call"):
            if self.extra.get(key) is not None:
                param[key] = self.extra[key]
        return param


class Choice(WireObject):
    """One of the `n` answers."""

    index: Optional[int] = wire
    message: Message = wire
    finish_reason: Optional[str] = wire
    logprobs: Optional[JSONObject] = wire


class Usage(WireObject):
    """The tokens that were counted."""

    prompt_tokens: Optional[int] = wire
    completion_tokens: Optional[int] = wire
    total_tokens: Optional[int] = wire
    prompt_tokens_details: Optional[JSONObject] = wire
    completion_tokens_details: Optional[JSONObject] = wire


class ChatCompletion(WireObject):
    """A whole answer; `text` is the first choice's, `meta` says how it came."""

    id: Optional[str] = wire
    object: Optional[str] = wire
    created: Optional[int] = wire
    model: Optional[str] = wire
    choices: List[Choice] = wire
    usage: Optional[Usage] = wire
    system_fingerprint: Optional[str] = wire
    service_tier: Optional[str] = wire
    meta: Meta = field(default_factory=Meta, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The first choice's text, "" where there is none."""
        text = self.choices[0].message.content if self.choices else None
        return text if isinstance(text, str) else ""  # not the parts that some servers send


@dataclass
class ChatResult:
    """What became of one request of `chat_many`: an answer, or the error that it met."""

    index: int  # its place among the requests, from 0
    request: Any  # as it was given
    completion: Optional[ChatCompletion] = None
    error: Optional[Exception] = None


class Embedding(WireObject, lenient=True):
    """The vector of one input."""

    object: Optional[str] = wire
    index: Optional[int] = wire
    embedding: Optional[List[float]] = wire


class EmbeddingResponse(WireObject):
    """The vectors, in the order of the inputs; `meta` says how they came."""

    object: Optional[str] = wire
    data: List[Embedding] = wire
    model: Optional[str] = wire
    usage: Optional[Usage] = wire
    meta: Meta = field(default_factory=Meta, compare=False, repr=False)


class ToolCallDelta(WireObject):
    """A piece of a tool call."""

    index: Optional[int] = wire
    id: Optional[str] = wire
    type: Optional[str] = wire
    function: FunctionCall = wire


class Delta(WireObject):
    """What a chunk adds to its choice's message."""

    role: Optional[str] = wire
    content: Optional[str] = wire
    reasoning_content: Optional[str] = wire
    tool_calls: List[ToolCallDelta] = wire
    refusal: Optional[str] = wire


class ChunkChoice(WireObject):
    """A chunk's part of one choice."""

    index: Optional[int] = wire
    delta: Delta = wire
    finish_reason: Optional[str] = wire
    logprobs: Optional[JSONObject] = wire


class ChatCompletionChunk(WireObject):
    """One event of a stream; `text` is the first choice's piece of text."""

    id: Optional[str] = wire
    object: Optional[str] = wire
    created: Optional[int] = wire
    model: Optional[str] = wire
    choices: List[ChunkChoice] = wire
    usage: Optional[Usage] = wire
    system_fingerprint: Optional[str] = wire
    service_tier: Optional[str] = wire

    @property
    def text(self) -> str:
        """The first choice's piece of text, "" where there is none."""
        text = self.choices[0].delta.content if self.choices else None
        return text if isinstance(text, str) else ""


def text_chunk(raw: JSONObject, choice: JSONObject, delta: JSONObject) -> ChatCompletionChunk:
    """Return what `from_dict` would, for the many chunks with nothing but text: much sooner."""
    new = object.__new__
    made, part, chunk = new(Delta), new(ChunkChoice), new(ChatCompletionChunk)
    made._sent, made.content = delta, delta.get("content")
    part._sent, part.delta = choice, made
    chunk._sent, chunk.choices = raw, [part]
    return chunk
