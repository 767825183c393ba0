# SPDX-License-Identifier: MIT
"""What goes over the wire: results as dataclasses, and the request's parameters.

Strategy: an object keeps the JSON object it was made from and reads a field when it is first
looked at, so a streamed chunk costs what is asked of it and no more; `from_dict` looks at once
at those that hold objects, so that what is malformed is found there. `to_dict` gives back what
came, but for the attributes that were changed since. A field's annotation says how it is read.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from functools import lru_cache
from typing import (
    TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union
)

from .errors import ResponseError

if TYPE_CHECKING:
    from typing_extensions import Annotated, TypedDict, dataclass_transform
else:  # for old Pythons, all that is wanted of them at run time

    def dataclass_transform():
        return lambda decorated: decorated

    class TypedDict:
        def __init_subclass__(cls, total=True):
            pass

    class Annotated:
        def __class_getitem__(cls, pair):
            return pair


JSONObject = Dict[str, Any]
_T = TypeVar("_T", bound="WireObject")
_UNREADABLE = (
    ArithmeticError, AttributeError, LookupError, OSError, ResponseError, TypeError, ValueError)


class _Field:
    """A field of a WireObject: read from the JSON object when it is first looked at.

    Objects are checked and lists of them are never None. In a lenient class, all else is made
    what its annotation says, None where it cannot be; elsewhere it stays as it came.
    """

    name = key = ""
    of: Any = None  # the WireObject in it
    kind: Any = None  # what a lenient class makes of it
    many = always = False  # a list; an object that is there, empty, also where it was left out

    def __init__(self, alias: str = "") -> None:
        self.alias = alias  # a key whose string stands in where the field is empty

    def bind(self, name: str, key: str, annotation: Any, lenient: bool) -> None:
        self.name, self.key = name, key
        inner, *others = getattr(annotation, "__args__", None) or (annotation,)
        kind = getattr(inner, "__origin__", inner)
        if lenient and others:  # Optional[...]
            self.kind = kind
        elif isinstance(kind, type) and issubclass(kind, WireObject):
            self.of, self.always = kind, kind is annotation
            self.many = getattr(annotation, "__origin__", None) is list

    def __get__(self, instance: Optional["WireObject"], owner: Type["WireObject"]) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.read(instance._raw)
        return value

    def empty(self) -> Any:
        return [] if self.many else self.of() if self.always else None

    def read(self, raw: JSONObject) -> Any:
        value = raw.get(self.key)
        if self.many:
            if value is not None and not isinstance(value, list):
                raise _wrong_type(self.key, "a list", value)
            return [self.of._wrap(item, self.key) for item in value or ()]
        if self.of is not None:
            return self.of._wrap(value, self.key) if self.always or value is not None else None
        if self.kind is not None:
            return _parse(value, self.kind)
        other = raw.get(self.alias) if self.alias and not value else None
        return other if isinstance(other, str) else value


wire: Any = _Field  # for type checkers, a field's value is not the descriptor


def _parse(value: Any, kind: Any) -> Any:
    """Return a JSON value as `kind`, None where it cannot be read so."""
    try:
        if issubclass(kind, WireObject):
            return kind.from_dict(value) if value is not None else None
        if kind is Decimal:
            amount = Decimal(value.replace("$", "", 1).replace(",", ""))
            return amount if amount.is_finite() else None
        if kind is datetime:
            return _parse_time(value)
        if kind in (int, float):
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        else:
            fits = isinstance(value, kind)
        return value if fits else None
    except _UNREADABLE:
        return None


def _parse_time(value: Any) -> Optional[datetime]:
    """Return the aware time that an ISO 8601 text or a Unix time (after 2001) gives."""
    if not isinstance(value, str):
        return datetime.fromtimestamp(value, timezone.utc) if value >= 1e9 else None
    when = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))  # Z is for 3.11 and newer
    return when if when.tzinfo else None


def _to_json(value: Any) -> Any:
    if isinstance(value, WireObject):
        data = value.to_dict()
        return None if value._was_null and not data else data
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return f"${value:f}" if isinstance(value, Decimal) else value


def _to_camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


@dataclass_transform()
class WireObject:
    """What all results share: attributes that are keys too, `extra`, `from_dict`, `to_dict`.

    `extra` holds what the server sent and no attribute shows.
    """

    _raw: JSONObject = {}
    _was_null = False
    _needs = ""  # the list without which an answer is none of this class
    _fields: Dict[str, _Field] = {}

    if TYPE_CHECKING:
        extra: JSONObject

    def __init_subclass__(
        cls, lenient: bool = False, camel_case: bool = False, needs: str = ""
    ) -> None:
        """Make a dataclass of the class, whose `wire` fields stay descriptors."""
        cls._needs = needs
        cls._fields = {name: value for name, value in vars(cls).items()
                       if isinstance(value, _Field)}
        cls.__annotations__["extra"] = JSONObject
        for name, declared in cls._fields.items():
            key = _to_camel_case(name) if camel_case else name
            declared.bind(name, key, cls.__annotations__[name], lenient)
            setattr(cls, name, field(default_factory=declared.empty))
        cls.extra = field(default_factory=dict)
        dataclass(eq=False, repr=False)(cls)
        for name, declared in cls._fields.items():  # the dataclass took them for its own
            setattr(cls, name, declared)

    @classmethod
    def from_dict(cls: Type[_T], data: JSONObject) -> _T:
        """Return the object that the JSON object `data` describes.

        Missing and null fields are accepted, unknown ones are kept in `extra`.

        Raises:
            ResponseError: a field that holds objects holds something else.
        """
        return cls._wrap(data, cls.__name__)

    @classmethod
    def _wrap(cls: Type[_T], data: Any, key: str) -> _T:
        self = cls.__new__(cls)
        if data is None:  # an empty object, that to_dict makes null again
            data, self._was_null = {}, True
        elif not isinstance(data, dict):
            raise _wrong_type(key, "an object", data)
        self._raw = data
        for name, declared in cls._fields.items():
            if declared.of is not None:
                getattr(self, name)
        return self

    if not TYPE_CHECKING:  # or no misspelt attribute would be seen

        def __getattr__(self, name):  # runs only for what was not looked at before
            if name == "extra":
                known = {declared.key for declared in self._fields.values()}
                value = {key: item for key, item in self._raw.items() if key not in known}
            elif name == "meta" and name in self.__dataclass_fields__:
                value = Meta()
            else:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self.__dict__[name] = value
            return value

    def to_dict(self) -> JSONObject:
        """Return the JSON object as the server sent it, with what was changed since."""
        data: JSONObject = {}
        for name, declared in self._fields.items():
            attribute, key = getattr(self, name), declared.key
            value = _to_json(attribute)
            if declared.of is None:
                changed = attribute != declared.read(self._raw)
            else:
                changed = bool(value) or self._raw.get(key) is not None
            if changed:
                data[key] = value
            elif key in self._raw:
                data[key] = self._raw[key]
        data.update(self.extra)
        return data

    def to_json(self, indent: Optional[int] = None) -> str:
        """Return `to_dict()` as JSON text, on one line or indented by `indent` spaces."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key) if key in self._fields else self.extra[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields or key in self.extra

    def get(self, key: str, default: Any = None) -> Any:
        """Return the attribute or the extra field `key`, or `default` where there is none."""
        return self[key] if key in self else default

    def __eq__(self, other: object) -> bool:
        same = type(other) is type(self)
        return same and self._values() == other._values()  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        values = self._values().items()
        said = ", ".join(f"{name}={value!r}" for name, value in values if value or value == 0)
        return f"{type(self).__name__}({said})"

    def _values(self) -> JSONObject:
        return {name: getattr(self, name) for name in (*self._fields, "extra")}


def _wrong_type(key: str, wanted: str, value: Any) -> ResponseError:
    said = json.dumps(value)[:60]
    return ResponseError(f"the answer's {key!r} should be {wanted}, not {said}", body=value)


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

    limit: Optional[float] = wire()
    requests: Optional[float] = wire()
    renews_at: Optional[datetime] = wire()


class SearchQuotas(WireObject, lenient=True):
    """The meters of the search endpoint."""

    hourly: Optional[QuotaMeter] = wire()


class WeeklyTokenLimit(WireObject, lenient=True, camel_case=True):
    """Credits of the week, which come back bit by bit; `percent_remaining` is 0 to 100."""

    next_regen_at: Optional[datetime] = wire()
    percent_remaining: Optional[float] = wire()
    max_credits: Optional[Decimal] = wire()
    remaining_credits: Optional[Decimal] = wire()
    next_regen_credits: Optional[Decimal] = wire()


class RollingFiveHourLimit(WireObject, lenient=True, camel_case=True):
    """Requests of the last five hours; each tick gives back `tick_percent` (0 to 1) of `max`."""

    next_tick_at: Optional[datetime] = wire()
    tick_percent: Optional[float] = wire()
    remaining: Optional[float] = wire()
    max: Optional[float] = wire()
    limited: Optional[bool] = wire()


class Quotas(WireObject, lenient=True, camel_case=True):
    """What is left of a plan; every meter is None for a pay-as-you-go key."""

    subscription: Optional[QuotaMeter] = wire()
    search: Optional[SearchQuotas] = wire()
    free_tool_calls: Optional[QuotaMeter] = wire()
    weekly_token_limit: Optional[WeeklyTokenLimit] = wire()
    rolling_five_hour_limit: Optional[RollingFiveHourLimit] = wire()
    meta: "Meta" = field(default_factory=lambda: Meta())


@dataclass
class Meta:
    """How an answer came: its HTTP status and headers, the requests it took, the quotas."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=Headers)
    request_id: Optional[str] = None
    attempts: int = 0
    quotas: Optional[Quotas] = None


class Pricing(WireObject, lenient=True):
    """US dollars a token, an image or a request; "0" is free, None is not said."""

    prompt: Optional[Decimal] = wire()
    completion: Optional[Decimal] = wire()
    image: Optional[Decimal] = wire()
    request: Optional[Decimal] = wire()
    input_cache_reads: Optional[Decimal] = wire()
    input_cache_writes: Optional[Decimal] = wire()


class Model(WireObject, lenient=True):
    """A model of the list; a feature list that is None is not known, which is not empty."""

    id: Optional[str] = wire()
    name: Optional[str] = wire()
    display_name: Optional[str] = wire()
    hugging_face_id: Optional[str] = wire()
    object: Optional[str] = wire()
    provider: Optional[str] = wire()
    always_on: Optional[bool] = wire()
    created: Optional[datetime] = wire()
    context_length: Optional[int] = wire()
    max_output_length: Optional[int] = wire()
    pricing: Optional[Pricing] = wire()
    quantization: Optional[str] = wire()
    input_modalities: Optional[List[str]] = wire()
    output_modalities: Optional[List[str]] = wire()
    supported_features: Optional[List[str]] = wire()
    supported_sampling_parameters: Optional[List[str]] = wire()
    reasoning_parameters: Optional[JSONObject] = wire()


class ModelList(WireObject, needs="data"):
    """What GET /models answers."""

    data: List[Model] = wire()


class SearchResult(WireObject, lenient=True):
    """A page that was found; the service sends its `text`, or `highlights` of it, or both."""

    url: Optional[str] = wire()
    title: Optional[str] = wire()
    text: Optional[str] = wire()
    highlights: Optional[List[str]] = wire()
    published: Optional[datetime] = wire()


class SearchResults(WireObject, needs="results"):
    """What POST /v2/search answers."""

    results: List[SearchResult] = wire()


class FunctionCall(WireObject):
    """The function that the model wants called, its arguments as JSON text."""

    name: Optional[str] = wire()
    arguments: Optional[str] = wire()

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

    id: Optional[str] = wire()
    type: Optional[str] = wire()
    function: FunctionCall = wire()


class Message(WireObject):
    """The model's message; appended to `messages`, it goes back as `to_param` says."""

    role: Optional[str] = wire()
    content: Optional[str] = wire()
    reasoning_content: Optional[str] = wire("reasoning")
    tool_calls: List[ToolCall] = wire()
    refusal: Optional[str] = wire()

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

    index: Optional[int] = wire()
    message: Message = wire()
    finish_reason: Optional[str] = wire()
    logprobs: Optional[JSONObject] = wire()


class Usage(WireObject):
    """The tokens that were counted."""

    prompt_tokens: Optional[int] = wire()
    completion_tokens: Optional[int] = wire()
    total_tokens: Optional[int] = wire()
    prompt_tokens_details: Optional[JSONObject] = wire()
    completion_tokens_details: Optional[JSONObject] = wire()


class ChatCompletion(WireObject, needs="choices"):
    """A whole answer; `text` is the first choice's, `meta` says how it came."""

    id: Optional[str] = wire()
    object: Optional[str] = wire()
    created: Optional[int] = wire()
    model: Optional[str] = wire()
    choices: List[Choice] = wire()
    usage: Optional[Usage] = wire()
    system_fingerprint: Optional[str] = wire()
    service_tier: Optional[str] = wire()
    meta: Meta = field(default_factory=Meta)

    @property
    def text(self) -> str:
        """The first choice's text, "" where there is none."""
        return (self.choices[0].message.content or "") if self.choices else ""


@dataclass
class ChatResult:
    """What became of one request of `chat_many`: an answer, or the error that it met."""

    index: int  # its place among the requests, from 0
    request: Any  # as it was given
    completion: Optional[ChatCompletion] = None
    error: Optional[Exception] = None


class Embedding(WireObject, lenient=True):
    """The vector of one input."""

    object: Optional[str] = wire()
    index: Optional[int] = wire()
    embedding: Optional[List[float]] = wire()


class EmbeddingResponse(WireObject, needs="data"):
    """The vectors, in the order of the inputs; `meta` says how they came."""

    object: Optional[str] = wire()
    data: List[Embedding] = wire()
    model: Optional[str] = wire()
    usage: Optional[Usage] = wire()
    meta: Meta = field(default_factory=Meta)


class ToolCallDelta(WireObject):
    """A piece of a tool call."""

    index: Optional[int] = wire()
    id: Optional[str] = wire()
    type: Optional[str] = wire()
    function: FunctionCall = wire()


class Delta(WireObject):
    """What a chunk adds to its choice's message."""

    role: Optional[str] = wire()
    content: Optional[str] = wire()
    reasoning_content: Optional[str] = wire("reasoning")
    tool_calls: List[ToolCallDelta] = wire()
    refusal: Optional[str] = wire()


class ChunkChoice(WireObject):
    """A chunk's part of one choice."""

    index: Optional[int] = wire()
    delta: Delta = wire()
    finish_reason: Optional[str] = wire()
    logprobs: Optional[JSONObject] = wire()


class ChatCompletionChunk(WireObject):
    """One event of a stream; `text` is the first choice's piece of text."""

    id: Optional[str] = wire()
    object: Optional[str] = wire()
    created: Optional[int] = wire()
    model: Optional[str] = wire()
    choices: List[ChunkChoice] = wire()
    usage: Optional[Usage] = wire()
    system_fingerprint: Optional[str] = wire()
    service_tier: Optional[str] = wire()

    @property
    def text(self) -> str:
        """The first choice's piece of text, "" where there is none."""
        return (self.choices[0].delta.content or "") if self.choices else ""


def text_chunk(raw: JSONObject, choice: JSONObject, delta: JSONObject) -> ChatCompletionChunk:
    """Return what `from_dict` would, for the many chunks with nothing but text: much sooner."""
    new = object.__new__
    made, part, chunk = new(Delta), new(ChunkChoice), new(ChatCompletionChunk)
    made._raw, made.content = delta, delta.get("content")
    part._raw, part.delta = choice, made
    chunk._raw, chunk.choices = raw, [part]
    return chunk


class CallOptions(TypedDict, total=False):
    """What every call takes beside its request."""

    timeout: Annotated[Optional[float], "seconds the server may stay silent; else the client's"]
    deadline: Annotated[Optional[float], "seconds for the whole call, retries included"]
    max_retries: Annotated[Optional[int], "how often to ask again, 0 or more; else the client's"]
    extra_headers: Annotated[Optional[Mapping[str, str]], "headers to send beside the client's"]


class EmbeddingParams(CallOptions, total=False):
    """What embeddings() takes beside its input."""

    dimensions: Annotated[Optional[int], "length of the vectors, where the model can choose"]
    extra_body: Annotated[Optional[Mapping[str, Any]], "merged into the request last"]


class ChatParams(CallOptions, total=False):
    """The parameters of a chat request; what is None is not sent."""

    temperature: Annotated[Optional[float], "0 to 2; higher is more random"]
    top_p: Annotated[Optional[float], "0 to 1; sample from the likeliest tokens of this mass"]
    top_k: Annotated[Optional[int], "sample from this many of the likeliest tokens"]
    min_p: Annotated[Optional[float], "0 to 1; least probability, relative to the likeliest"]
    max_tokens: Annotated[Optional[int], "the most tokens to generate"]
    max_completion_tokens: Annotated[Optional[int], "the same, reasoning included"]
    frequency_penalty: Annotated[Optional[float], "-2 to 2; against what was said often"]
    presence_penalty: Annotated[Optional[float], "-2 to 2; against what was said at all"]
    repetition_penalty: Annotated[Optional[float], "above 1 against repetition; 1 is none"]
    stop: Annotated[Union[str, Sequence[str], None], "text, or texts, that end the answer"]
    n: Annotated[Optional[int], "how many choices to generate; 1 where not sent"]
    seed: Annotated[Optional[int], "for answers that repeat, as far as the model can"]
    logit_bias: Annotated[Optional[Mapping[str, float]], "token id to a bias of -100 to 100"]
    logprobs: Annotated[Union[bool, int, None], "return the tokens' log probabilities"]
    top_logprobs: Annotated[Optional[int], "how many alternatives for each token, 0 to 20"]
    tools: Annotated[Optional[Sequence[Mapping[str, Any]]], "functions the model may call"]
    tool_choice: Annotated[
        Union[str, Mapping[str, Any], None],
        "\"auto\", \"none\", \"required\", or the one function to call"]
    parallel_tool_calls: Annotated[Optional[bool], "allow several calls in one answer"]
    response_format: Annotated[
        Optional[Mapping[str, Any]],
        "{\"type\": \"json_object\"}, or \"json_schema\" with its schema"]
    reasoning_effort: Annotated[
        Optional[str], "\"none\", \"low\", \"medium\", \"high\"...: see the model's list"]
    stream_options: Annotated[
        Optional[Mapping[str, Any]], "for streams: {\"include_usage\": True}"]
    user: Annotated[Optional[str], "your end user's id"]
    extra_body: Annotated[
        Optional[Mapping[str, Any]],
        "merged into the request last: what has no parameter here; None is sent as null"]


class CompletionParams(ChatParams, total=False):
    """What completion() takes beside: LiteLLM's names for two of ours."""

    api_base: Annotated[Optional[str], "the same as base_url"]
    num_retries: Annotated[Optional[int], "the same as max_retries"]


@lru_cache(maxsize=None)
def parameters(of: Any) -> Dict[str, Tuple[Tuple[type, ...], str]]:
    """Return each parameter's types, as isinstance takes them, and what it means."""
    return {name: (_kinds(annotation), meaning) for group in reversed(of.__mro__)
            for name, (annotation, meaning) in getattr(group, "__annotations__", {}).items()}


def _kinds(annotation: Any) -> Tuple[type, ...]:
    kinds = getattr(annotation, "__args__", None) or (annotation,)
    return tuple(getattr(kind, "__origin__", kind) for kind in kinds)


def describe(kinds: Tuple[type, ...]) -> str:
    """Return the types in a user's words."""
    words = {"Mapping": "dict", "Sequence": "list"}
    names = [kind.__name__ for kind in kinds if kind is not type(None)]
    return " or ".join(words.get(name, name) for name in names)


def check_params(params: Mapping[str, Any], of: Any) -> None:
    """Refuse, with a TypeError, names that `of` does not have and values of the wrong type."""
    known = parameters(of)
    for name, value in params.items():
        if name == "stream":
            raise TypeError("stream is no parameter here; call stream_chat() for a stream")
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            rest = "extra_body= takes any other field" if "extra_body" in known else (
                "known are " + ", ".join(known))
            said = f"did you mean {near[0]!r}?" if near else rest
            raise TypeError(f"unknown parameter {name!r}; {said}")
        check_type(name, value, known[name][0])


def check_type(name: str, value: Any, kinds: Tuple[type, ...]) -> None:
    """Refuse a value that is of none of the types; True is no number, a string no list."""
    fits = isinstance(value, kinds) or float in kinds and isinstance(value, int)
    if isinstance(value, bool):
        fits = bool in kinds
    if isinstance(value, (str, bytes)):
        fits = type(value) in kinds
    if not fits:
        raise TypeError(f"{name} should be {describe(kinds)}, not {type(value).__name__}")
