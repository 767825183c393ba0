# SPDX-License-Identifier: MIT
"""What a call may be given: its parameters, and the checks that come before anything is sent.

Strategy: each parameter stands once, in a TypedDict, with its type and its meaning; type checkers,
`help()`, the command line's flags and the check of a call's arguments all read it there. What has
the wrong type or name is a TypeError, what has a wrong value a ConfigurationError.
"""

import json
import os
import re
import sys
from functools import lru_cache
from typing import (
    TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union
)

from .errors import ConfigurationError, quote
from .schema import ChatCompletion, Message
from .wire import JSONObject, WireObject

if TYPE_CHECKING:
    from typing_extensions import Annotated, TypedDict
else:  # for old Pythons, all that is wanted of them at run time

    class TypedDict:
        def __init_subclass__(cls, total=True):
            pass

    class Annotated:
        def __class_getitem__(cls, pair):
            return pair


MAX_REQUEST_BYTES = 10 * 1024 * 1024  # beyond it the service answers that the JSON is broken
BASE_URL = "https://api.synthetic.new/openai/v1"
_MAX_SECONDS = 4_000_000  # what threads and sockets take on every system
_HOST = r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?|\[[0-9a-f:.]+\]"
_URL = re.compile(rf'(https?)://({_HOST})(:[0-9]{{1,5}})?((?:/[!"$->@-~]*)?)', re.I)
_LOOPBACK = re.compile(r"https?://(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]+)?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]*")
SECRET_HEADERS = ("authorization", "x-api-key", "api-key", "proxy-authorization", "cookie")
_FRAMING_HEADERS = ("content-length", "transfer-encoding", "connection")

Messages = Union[str, Sequence[Union[Mapping[str, Any], Message]]]
_F = TypeVar("_F", bound=Callable[..., Any])
_Object = Mapping[str, Any]


class CallOptions(TypedDict, total=False):
    """What every call takes beside its request."""

    timeout: Annotated[Optional[float], "seconds of silence to bear; else the client's, 600"]
    deadline: Annotated[Optional[float], "seconds for the whole call, retries included"]
    max_retries: Annotated[Optional[int], "how often to ask again; else the client's, 2"]
    extra_headers: Annotated[Optional[Mapping[str, str]], "headers to send beside the client's"]


class EmbeddingParams(CallOptions, total=False):
    """What embeddings() takes beside its input."""

    dimensions: Annotated[Optional[int], "length of the vectors, where the model can choose"]
    extra_body: Annotated[Optional[_Object], "merged into the request last"]


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
    tools: Annotated[Optional[Sequence[_Object]], "functions the model may call"]
    tool_choice: Annotated[
        Union[str, _Object, None],
        "\"auto\", \"none\", \"required\", or the one function to call"]
    parallel_tool_calls: Annotated[Optional[bool], "allow several calls in one answer"]
    response_format: Annotated[
        Optional[_Object], "{\"type\": \"json_object\"}, or \"json_schema\" with its schema"]
    reasoning_effort: Annotated[
        Optional[str], "\"none\", \"low\", \"medium\", \"high\"...: see the model's list"]
    stream_options: Annotated[Optional[_Object], "for streams; include_usage asks for the tokens"]
    user: Annotated[Optional[str], "your end user's id"]
    extra_body: Annotated[
        Optional[_Object], "merged into the request last: what has no parameter here"]


class CompletionParams(ChatParams, total=False):
    """What completion() takes beside: LiteLLM's names for two of ours."""

    api_base: Annotated[Optional[str], "the same as base_url"]
    num_retries: Annotated[Optional[int], "the same as max_retries"]


@lru_cache(maxsize=None)
def parameters(of: Any) -> Dict[str, Tuple[Tuple[type, ...], str]]:
    """Return each parameter's types, as isinstance takes them, and what it means."""
    return {name: (kinds_of(annotation), meaning) for group in reversed(of.__mro__)
            for name, (annotation, meaning) in getattr(group, "__annotations__", {}).items()}


def kinds_of(annotation: Any) -> Tuple[type, ...]:
    """Return the types that an annotation names, as isinstance takes them."""
    kinds = getattr(annotation, "__args__", None) or (annotation,)
    return tuple(getattr(kind, "__origin__", kind) for kind in kinds)


def describe(kinds: Tuple[type, ...]) -> str:
    """Return the types in a user's words."""
    words = {"Mapping": "dict", "Sequence": "list"}
    names = [kind.__name__ for kind in kinds if kind is not type(None)]
    return " or ".join(words.get(name, name) for name in names)


def documented(function: _F) -> _F:
    """Put the parameters' descriptions into a docstring, where {parameters} stands."""
    if function.__doc__:  # none under -OO
        lines = [f"{name} ({describe(kinds)}): {meaning}"
                 for name, (kinds, meaning) in parameters(ChatParams).items()]
        function.__doc__ = re.sub(  # in whatever column it stands
            "( *){parameters}", lambda match: "\n".join(match.group(1) + line for line in lines),
            function.__doc__)
    return function


def check_params(params: Mapping[str, Any], of: Any) -> None:
    """Refuse names that `of` does not have, values of the wrong type, limits out of range."""
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
    check_ranges(params)


def check_type(name: str, value: Any, kinds: Tuple[type, ...]) -> None:
    """Refuse a value that is of none of the types; True is no number, a string no list."""
    fits = isinstance(value, kinds) or float in kinds and isinstance(value, int)
    if isinstance(value, bool):
        fits = bool in kinds
    if isinstance(value, (str, bytes)):
        fits = type(value) in kinds
    if not fits:
        raise TypeError(f"{name} should be {describe(kinds)}, not {type(value).__name__}")


def check_ranges(settings: Mapping[str, Any]) -> None:
    """Refuse limits that are out of range; those that are None or missing are as before."""
    for name in ("timeout", "connect_timeout", "deadline"):
        value = settings.get(name)
        if value is not None and not 0 < value <= _MAX_SECONDS:
            raise ConfigurationError(f"{name} should be seconds above 0, up to {_MAX_SECONDS}")
    for name, least in (("max_retries", 0), ("max_response_bytes", 1)):
        value = settings.get(name)
        if value is not None and value < least:
            raise ConfigurationError(f"{name} should be {least} or more")


def read_key(given: Optional[str]) -> Optional[str]:
    """Return the key that was given, or the environment's, without white space around it."""
    key = (given or os.environ.get("SYNTHETIC_API_KEY") or "").strip()
    if not re.fullmatch("[ -~]*", key):
        source = "api_key" if given else "SYNTHETIC_API_KEY"
        raise ConfigurationError(
            f"{source} holds control or non-ASCII characters; copy the key again, on one line"
        )
    return key or None


def read_base_url(given: Optional[str]) -> str:
    """Return the URL that was given, or the environment's, or Synthetic's, in one spelling."""
    url = given or os.environ.get("SYNTHETIC_BASE_URL") or BASE_URL
    match = _URL.fullmatch(url.strip())
    try:
        scheme, host, port, path = match.groups()  # type: ignore[union-attr]
        if host.startswith("["):
            import ipaddress

            ipaddress.IPv6Address(host[1:-1])
        if not 0 < int((port or ":1")[1:]) < 65536:
            raise ValueError
    except (AttributeError, ValueError):
        raise ConfigurationError(
            f"base_url should be like {BASE_URL}: http or https, no user:password@, no ? or #"
        ) from None
    path = re.sub("(/chat/completions)?/*$", "", path.rstrip("/"))
    return f"{scheme.lower()}://{host.lower()}{port or ''}{path}"


def make_url(base_url: str, path: str) -> str:
    """Return the URL of a path: below the base, or from the host's root for other families."""
    check_type("path", path, (str,))
    if "://" in path or not re.fullmatch('[!"$-~]*', path):
        raise ConfigurationError("path should be like /embeddings, of printable ASCII")
    if path.startswith(("/v2/", "/anthropic/")):
        return "/".join(base_url.split("/", 3)[:3]) + path
    return f"{base_url}/{path.lstrip('/')}"


def is_loopback(origin: str) -> bool:
    """Say whether an origin is this machine: localhost, 127.0.0.0/8 or ::1."""
    return _LOOPBACK.fullmatch(origin) is not None


def _read_model(name: Optional[str]) -> str:
    """Return the model's id, without LiteLLM's route."""
    check_type("model", name, (str, type(None)))
    name = re.sub("^synthetic/", "", (name or "").strip())
    if not name:
        raise ConfigurationError(
            "no model is named; give model= or set SYNTHETIC_MODEL, such as syn:large:text"
        )
    return name


@lru_cache(maxsize=None)
def own_headers() -> Mapping[str, str]:
    """Return the headers of every request; a pickled client's are those of its new place."""
    from . import __version__

    return {
        "user-agent": "synthetic-client/{} Python/{}.{}".format(__version__, *sys.version_info),
        "accept": "application/json, text/event-stream",
        "accept-encoding": "gzip, deflate",
    }


def read_headers(name: str, headers: Optional[Mapping[str, str]]) -> Dict[str, str]:
    """Return headers with their names in lower case; `name` is what the argument is called."""
    if headers is None:
        return {}
    check_type(name, headers, (Mapping,))
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name} should be a dict of strings")
        if not _HEADER_NAME.fullmatch(key) or not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"{name}: the header {quote(key)!r} holds what HTTP does not allow, such as a "
                "line break"
            )
        if key.lower() in _FRAMING_HEADERS:
            raise ConfigurationError(f"{name}: leave out {key}, which is set for each request")
    return {key.lower(): value.strip() for key, value in headers.items()}


def chat_payload(
    model: Optional[str], messages: Messages, params: Mapping[str, Any]
) -> JSONObject:
    """Return the body of a chat's request."""
    sent = _read_params(params, ChatParams)
    if "stream" in sent:
        raise ConfigurationError("extra_body may not hold stream; call chat or stream_chat")
    return {"model": _read_model(model), "messages": _read_messages(messages), **sent}


def embedding_payload(
    model: Optional[str], texts: Union[str, Sequence[str]], params: Mapping[str, Any]
) -> JSONObject:
    """Return the body of a request for embeddings."""
    sent = _read_params(params, EmbeddingParams)
    check_type("input", texts, (str, list, tuple))
    if not texts:
        raise ConfigurationError("input is empty; give a text, or a list of texts")
    return {"model": _read_model(model), "input": texts, **sent}


def _read_messages(messages: Messages) -> List[Any]:
    """Return the messages as the request's body holds them."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, (bytes, Mapping, WireObject)) or not hasattr(messages, "__iter__"):
        raise TypeError(
            f"messages should be a list of messages or a string, not {type(messages).__name__}; "
            "one message goes as [message]"
        )
    read = [_read_message(*pair) for pair in enumerate(messages)]
    if not read:
        raise ConfigurationError("messages is empty; give at least one")
    return read


def _read_message(place: int, message: Any) -> Any:
    if isinstance(message, Message):
        return message.to_param()
    if isinstance(message, ChatCompletion):
        raise TypeError(f"messages[{place}] is a whole answer; add its .choices[0].message")
    if not isinstance(message, (dict, Mapping)):
        kind = type(message).__name__
        raise TypeError(f"messages[{place}] should be a dict or a Message, not {kind}")
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise ConfigurationError(f"messages[{place}] has no role, such as 'user'")
    return message


def _read_params(params: Mapping[str, Any], of: Any) -> JSONObject:
    """Return the parameters that go into the request's body, checked."""
    check_params(params, of)
    others = (*parameters(CallOptions), "extra_body")
    sent = {key: value for key, value in params.items()
            if value is not None and key not in others}
    return {**sent, **(params.get("extra_body") or {})}


def _plain(value: Any) -> Any:
    """Return what JSON can be made of, for what json.dumps does not know."""
    if isinstance(value, WireObject):
        return value.to_param() if isinstance(value, Message) else value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent as JSON")


_to_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


def encode(payload: Any, most: Optional[int] = None) -> bytes:
    """Return the request's body as compact JSON; what cannot be is refused by its name."""
    try:
        # half a surrogate pair stands in a JSON string, where a backslash escapes it
        body = _to_json(payload).encode("utf-8", "backslashreplace")
    except (TypeError, ValueError, RecursionError):
        for name, value in payload.items() if isinstance(payload, dict) else [("json", payload)]:
            try:
                _to_json(value)
            except (TypeError, ValueError, RecursionError) as error:
                kind = TypeError if isinstance(error, TypeError) else ConfigurationError
                raise kind(f"{quote(str(name))} cannot be sent as JSON: {error}") from error
        raise
    if most is not None and len(body) > most:
        raise ConfigurationError(
            f"the request has {len(body)} bytes, the service takes {most}; shorten the messages "
            "or shrink the images"
        )
    return body
