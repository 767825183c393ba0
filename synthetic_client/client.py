# SPDX-License-Identifier: MIT
"""The client: checks what it is given, builds the request, sends it, reads the answer.

Strategy: everything that can be refused is refused before `_send`, which makes the attempts and
sleeps between them as retry.py says. What comes back is read here when it is whole, and by a
ChatStream when it is streamed; both ways meet the same errors. transport.py, and with it urllib,
is imported by the first call. Settings are plain attributes, so a client pickles without its
connections; unpickled ones share pools by what decides the way to the host.
"""

import json
import os
import re
import sys
import time
from datetime import datetime, timezone
from typing import (
    TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple,
    TypeVar, Union
)

from . import retry
from .errors import (
    APIStatusError, ConfigurationError, ResponseError, SyntheticError, answer_error, parse_body,
    quote, scrub, status_error
)
from .schema import (
    CallOptions, ChatCompletion, ChatParams, Headers, JSONObject, Message, Meta, Quotas,
    WireObject, parameters
)
from .sse import ServerSentEvent
from .stream import ChatStream

if TYPE_CHECKING:
    import ssl
    from typing_extensions import Unpack
    from .transport import Response, Transport

BASE_URL = "https://api.synthetic.new/openai/v1"
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
MAX_REQUEST_BYTES = 10 * 1024 * 1024  # beyond it the service answers that the JSON is broken
_MAX_ERROR_BYTES = 1024 * 1024
_MAX_SECONDS = 4_000_000.0  # what threads and sockets take on every system
_POOLS_KEPT = 8
_URL = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]\\%]+)(:[0-9]{1,5})?((?:/[!-~]*)?)", re.I)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_SECRET_HEADERS = ("authorization", "x-api-key", "api-key", "proxy-authorization", "cookie")

Messages = Union[str, Sequence[Union[Mapping[str, Any], Message]]]
_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R")
_pools: Dict[Tuple[Any, ...], "Transport"] = {}


def _type_name(kind: type) -> str:
    return {"Mapping": "dict", "Sequence": "list"}.get(kind.__name__, kind.__name__)


def _documented(function: _F) -> _F:
    """Put the parameters' descriptions into a docstring, where {parameters} stands."""
    if function.__doc__:  # none under -OO
        lines = []
        for name, (kinds, meaning) in parameters().items():
            types = " or ".join(_type_name(kind) for kind in kinds)
            lines.append(f"{name} ({types}): {meaning}")
        function.__doc__ = function.__doc__.replace("{parameters}", "\n            ".join(lines))
    return function


class SyntheticClient:
    """A client of Synthetic's API, or of any that speaks OpenAI's protocol.

    It may be used from any number of threads, survives fork, and pickles.

    Args:
        api_key: else $SYNTHETIC_API_KEY, read now.
        base_url: else $SYNTHETIC_BASE_URL, else https://api.synthetic.new/openai/v1.
        model: the model of calls that name none; else $SYNTHETIC_MODEL.
        timeout: seconds the server may stay silent, in each read or write.
        connect_timeout: seconds for TCP, TLS and a proxy's CONNECT together.
        deadline: seconds for one whole call: connecting, retries, waits, every byte.
        max_retries: how often a call that failed before its answer began is made again.
        headers: sent with every request.
        proxy: "http://user:password@host:port"; None for the environment's, "" for none.
        ssl_context: for client certificates and the like; used as it is.
        ca_file: path of a PEM bundle, trusted in addition to the system's.
        allow_http: let the key travel over plain http:// to a host that is not this machine.
        max_response_bytes: a longer answer, or one longer event, is an error.

    Raises:
        ConfigurationError: a value is wrong; the message says which, and what to do.
        TypeError: a value is of the wrong type.
    """

    _way: "Optional[Transport]" = None

    def __init__(
        self,
        api_key: Optional[str] = None,
        *,
        base_url: Optional[str] = None,
        model: Optional[str] = None,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        deadline: Optional[float] = None,
        max_retries: int = 2,
        headers: Optional[Mapping[str, str]] = None,
        proxy: Optional[str] = None,
        ssl_context: "Optional[ssl.SSLContext]" = None,
        ca_file: Optional[str] = None,
        allow_http: bool = False,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self._closed = self._shared = False
        self._key_from_environment = not api_key
        self._api_key = _read_key(api_key)
        self._origin, self.base_url = _read_base_url(
            base_url or os.environ.get("SYNTHETIC_BASE_URL") or BASE_URL)
        self.model = _text("model", model) or os.environ.get("SYNTHETIC_MODEL") or None
        self.timeout = _seconds("timeout", timeout)
        self.connect_timeout = _seconds("connect_timeout", connect_timeout)
        self.deadline = None if deadline is None else _seconds("deadline", deadline)
        self.max_retries = _whole("max_retries", max_retries, 0)
        self._max_response_bytes = _whole("max_response_bytes", max_response_bytes, 1)
        self._headers = _read_headers("headers", headers)
        host = self._origin.partition("://")[2]
        self._is_synthetic = re.sub(":[0-9]+$", "", host).endswith("synthetic.new")
        loopback = _is_loopback(host)
        self._proxy = "" if proxy is None and loopback else proxy
        _text("proxy", proxy)
        self._ssl_context, self._ca_file = ssl_context, ca_file
        keyed = self._api_key or "authorization" in self._headers
        if keyed and not (loopback or allow_http or self._origin.startswith("https")):
            raise ConfigurationError(
                "base_url is plain http://, where anyone on the way can read the key; use "
                "https://, or allow_http=True if that network is yours"
            )
        if ssl_context is not None and not hasattr(ssl_context, "wrap_socket"):
            raise TypeError("ssl_context should be an ssl.SSLContext")
        if _text("ca_file", ca_file) and not os.path.isfile(str(ca_file)):
            raise ConfigurationError(f"ca_file {ca_file!r} is no file; give a PEM bundle's path")
        if ca_file is not None and ssl_context is not None:
            raise ConfigurationError("give ca_file or ssl_context, not both")
        if proxy:
            self._transport()  # says now what is wrong with it

    @_documented
    def chat(
        self, messages: Messages, *, model: Optional[str] = None, **params: "Unpack[ChatParams]"
    ) -> ChatCompletion:
        """Ask for one whole answer.

        Args:
            messages: a list of dicts in OpenAI's shape or of Message objects from earlier
                answers; or one string, which means one user message.
            model: an id such as "hf:owner/name" or "syn:large:text"; else the client's.
            {parameters}

        Returns:
            The ChatCompletion; `.text` is its text, `.meta` says how it came.

        Raises:
            TypeError, ConfigurationError: an argument is wrong; nothing was sent.
            APIStatusError: the server refused, by status or within its answer.
            APIConnectionError: no answer came, or not all of it.
            ResponseError: the answer is not a completion.
        """
        payload = self._payload(messages, model, params)
        return self._ask("POST", "chat/completions", payload, params, self._read_completion)

    @_documented
    def stream_chat(
        self, messages: Messages, *, model: Optional[str] = None, **params: "Unpack[ChatParams]"
    ) -> ChatStream:
        """Ask for an answer that is streamed; the request is sent at once.

        Args:
            messages: as in `chat`.
            model: as in `chat`.
            {parameters}

        Returns:
            A ChatStream: an iterator of chunks, to be read to its end or closed.

        Raises:
            TypeError, ConfigurationError, APIStatusError, APIConnectionError, ResponseError:
                as in `chat`; reading the stream may raise the last three too.
        """
        payload = {**self._payload(messages, model, params), "stream": True}
        return self._ask("POST", "chat/completions", payload, params, self._read_stream)

    def request(
        self, method: str, path: str, json: Any = None, **options: "Unpack[CallOptions]"
    ) -> Any:
        """Call any other endpoint and return its parsed JSON, None where it has no body.

        Args:
            method: such as "GET" or "POST".
            path: relative to base_url; from the host's root where it starts with /v2/ or
                /anthropic/.
            json: the request's body.
            options: timeout, deadline, max_retries, extra_headers, as in `chat`.

        Raises:
            TypeError, ConfigurationError, APIStatusError, APIConnectionError, ResponseError:
                as in `chat`.
        """
        _check_params(options, CallOptions)
        if not isinstance(path, str):
            raise TypeError(f"path should be a string, not {type(path).__name__}")
        if not re.fullmatch("[A-Za-z]+", _text("method", method)):
            raise ConfigurationError("method should be a word such as GET or POST")
        return self._ask(method.upper(), path, json, options, self._read_json)

    def close(self) -> None:
        """Close the idle connections; later calls raise RuntimeError."""
        self._closed = True
        if self._way is not None:
            if not self._shared:
                self._way.most_idle = 0  # for streams that are still being read
            self._way.close_idle()

    def __enter__(self) -> "SyntheticClient":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        key = "set" if self._api_key else "not set"
        return f"SyntheticClient(base_url={self.base_url!r}, model={self.model!r}, api_key={key})"

    def __getstate__(self) -> JSONObject:
        if self._ssl_context is not None:
            raise TypeError("a client with an ssl_context cannot be pickled; use ca_file instead")
        state = {name: value for name, value in vars(self).items() if name != "_way"}
        if self._key_from_environment:
            state["_api_key"] = None
        return state

    def __setstate__(self, state: JSONObject) -> None:
        vars(self).update(state, _shared=True)
        if self._key_from_environment:
            self._api_key = _read_key(None)

    def _transport(self) -> "Transport":
        """Return this client's way to its host; made by the first call."""
        way = self._way
        if way is None:
            from . import transport

            def make() -> "Transport":
                return transport.Transport(
                    self._origin, self._proxy, self._ca_file, self._ssl_context)

            if self._shared and self._ssl_context is None:
                key = (self._origin, self._proxy, self._ca_file, transport.environment())
                way = _share(key, make)
            else:
                way = make()
            way = self.__dict__.setdefault("_way", way)  # atomic: threads agree on one
        return way

    def _payload(
        self, messages: Messages, model: Optional[str], params: Mapping[str, Any]
    ) -> JSONObject:
        _check_params(params, ChatParams)
        name = _text("model", model) or self.model
        if not name:
            raise ConfigurationError(
                "no model is named; give model= or set SYNTHETIC_MODEL, such as syn:large:text"
            )
        if name.startswith("synthetic/"):  # LiteLLM's route
            name = name[len("synthetic/"):]
        payload = {"model": name, "messages": _read_messages(messages)}
        options = CallOptions.__annotations__
        payload.update((key, value) for key, value in params.items()
                       if value is not None and key not in options)
        extra = params.get("extra_body") or {}
        if "stream" in extra:
            raise ConfigurationError("extra_body may not hold stream; call chat or stream_chat")
        return {**payload, **extra}

    def _ask(
        self, method: str, path: str, payload: Any, options: Mapping[str, Any],
        read: "Callable[[Response, Meta, _Call], _R]"
    ) -> _R:
        """Make the call, and return what `read` makes of the answer."""
        call = self._prepare(method, path, payload, options)
        attempts = 0
        try:
            response, attempts = self._send(call)
            meta = _read_meta(response, attempts)
            return read(response, meta, call)
        except SyntheticError as error:
            error.attempts = attempts or error.attempts
            scrub(error, call.secrets)
            raise

    def _prepare(
        self, method: str, path: str, payload: Any, options: Mapping[str, Any]
    ) -> "_Call":
        if self._closed:
            raise RuntimeError("this client is closed; make another one")
        headers = self._request_headers(options, payload is not None)
        if self._is_synthetic and "authorization" not in headers and path.strip("/") != "models":
            raise ConfigurationError(
                "no API key: get one at https://synthetic.new and set SYNTHETIC_API_KEY, or give "
                "api_key="
            )
        body = None if payload is None else encode(payload)
        if body and len(body) > MAX_REQUEST_BYTES and self._is_synthetic:
            raise ConfigurationError(
                f"the request has {len(body)} bytes, the service takes {MAX_REQUEST_BYTES}; "
                "shorten the messages or shrink the images"
            )
        timeout, deadline = options.get("timeout"), options.get("deadline")
        retries = options.get("max_retries")
        clock = retry.Clock(
            self.timeout if timeout is None else _seconds("timeout", timeout),
            self.connect_timeout,
            self.deadline if deadline is None else _seconds("deadline", deadline),
        )
        tokens = [headers.get(name, "").rpartition(" ")[2] for name in _SECRET_HEADERS]
        found = (self._api_key or "", *tokens, *self._transport().secrets)
        return _Call(
            method, self._url(path), headers, body, clock,
            self.max_retries if retries is None else _whole("max_retries", retries, 0),
            sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True),
            options.get("n") or 1,
        )

    def _send(self, call: "_Call") -> "Tuple[Response, int]":
        """Make the attempts; return the first answer with the status 2xx, and their number."""
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._transport().send(
                    call.method, call.url, call.headers, call.body, call.clock, attempt)
                if 200 <= response.status < 300:
                    return response, attempt
                error: SyntheticError = _read_refusal(response, attempt)
            except SyntheticError as caught:
                error = caught
            error.attempts = attempt
            wait = retry.wait_before_retry(error, attempt, call.max_retries)
            if wait is None or wait >= call.clock.left():
                raise error
            self._transport().log.info("retry %d of %d in %.2f s: %s", attempt, call.max_retries,
                                       wait, type(error).__name__)
            time.sleep(wait)

    def _url(self, path: str) -> str:
        if "://" in path or not re.fullmatch("[!-~]*", path):
            raise ConfigurationError("path should be like /embeddings, of printable ASCII")
        if path.startswith(("/v2/", "/anthropic/")):
            return self._origin + path
        return f"{self.base_url}/{path.lstrip('/')}"

    def _request_headers(self, options: Mapping[str, Any], has_body: bool) -> Dict[str, str]:
        from . import __version__

        python = "{}.{}".format(*sys.version_info)
        headers = {
            "user-agent": f"synthetic-client/{__version__} Python/{python}",
            "accept": "application/json, text/event-stream",
            "accept-encoding": "gzip, deflate",
        }
        if has_body:
            headers["content-type"] = "application/json"
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        headers.update(self._headers)
        headers.update(_read_headers("extra_headers", options.get("extra_headers")))
        return headers

    def _read_json(self, response: "Response", meta: Meta, call: "_Call") -> Any:
        """Return a whole answer's JSON; an error object in it is raised."""
        raw = response.read(self._max_response_bytes)
        if not raw and call.method != "POST":
            return None
        text = raw.decode("utf-8-sig", "replace")
        try:
            data = json.loads(text, strict=False)
        except (ValueError, RecursionError) as error:
            said = quote(text) or "it is empty"
            raise ResponseError(f"the answer is not JSON: {said}; check base_url", body=text
                                ) from error
        error_inside = answer_error(data)
        if error_inside is not None:
            raise error_inside
        return data

    def _read_completion(
        self, response: "Response", meta: Meta, call: "_Call"
    ) -> ChatCompletion:
        data = self._read_json(response, meta, call)
        if not isinstance(data, dict) or not isinstance(data.get("choices"), list):
            said = quote(json.dumps(data))
            raise ResponseError(f"the answer is no completion: {said}; check base_url", body=data)
        completion = ChatCompletion.from_dict(data)
        completion.meta = meta
        return completion

    def _read_stream(self, response: "Response", meta: Meta, call: "_Call") -> ChatStream:
        kind = meta.headers.get("content-type", "").lower()
        if "json" not in kind and "html" not in kind:
            return ChatStream(response, meta, expected_choices=call.choices,
                              max_event_bytes=self._max_response_bytes, secrets=call.secrets)
        whole = self._read_completion(response, meta, call).to_dict()  # it does not stream
        choices = [{**choice, "delta": choice.get("message")}
                   for choice in whole["choices"] if choice]
        chunk = {**whole, "object": "chat.completion.chunk", "choices": choices}
        events = [ServerSentEvent(data=json.dumps(chunk)), ServerSentEvent(data="[DONE]")]
        return ChatStream(None, meta, events=events)


class _Call(NamedTuple):
    """One call, checked and ready to be sent."""

    method: str
    url: str
    headers: Dict[str, str]
    body: Optional[bytes]
    clock: retry.Clock
    max_retries: int
    secrets: Sequence[str]  # what no error may show, the longest first
    choices: int


def _read_meta(response: "Response", attempts: int) -> Meta:
    headers = Headers()
    for name, value in response.headers:
        known = headers.get(name)
        headers[name.lower()] = value if known is None else f"{known}, {value}"
    quotas = None
    if "x-synthetic-quotas" in headers:
        try:
            quotas = Quotas.from_dict(parse_body(headers["x-synthetic-quotas"]))
        except ResponseError:
            pass  # not worth an answer
    request_id = headers.get("x-request-id") or headers.get("request-id")
    return Meta(response.status, headers, request_id, attempts, quotas)


def _read_refusal(response: "Response", attempts: int) -> APIStatusError:
    """Return the error for an answer whose status is not 2xx."""
    meta = _read_meta(response, attempts)
    try:
        text = response.read(_MAX_ERROR_BYTES).decode("utf-8", "replace")
    except SyntheticError:
        text = ""  # the status says enough
    now, hint = datetime.now(timezone.utc), None
    wait = retry.parse_retry_after(meta.headers, now)
    spent = retry.used_up_quota(meta.quotas, now) if meta.quotas else None
    target = meta.headers.get("location")
    if response.status == 429 and spent is not None:
        name, left = spent
        hint = f"Your {name} is used up"
        if left is not None:
            hours, minutes = divmod(int(left) // 60 + 1, 60)
            hint += f"; it renews in {hours} h {minutes} min"
            wait = left if wait is None or left > retry.LONGEST_WAIT else wait
    elif 300 <= response.status < 400 and target:
        place = re.sub("//[^/]*@", "//", target).partition("?")[0]
        hint = f"It redirects to {quote(place)}, which is not followed; check base_url"
    return status_error(
        response.status, parse_body(text), hint=hint, headers=meta.headers,
        request_id=meta.request_id, quotas=meta.quotas, retry_after=wait
    )


def _share(key: Tuple[Any, ...], make: "Callable[[], Transport]") -> "Transport":
    """Return the pool of this key, made where there is none; a few are kept."""
    if key not in _pools:
        for old in list(_pools)[:1 - _POOLS_KEPT]:
            _pools.pop(old, None)
        _pools.setdefault(key, make())
    return _pools[key]


def _check_params(params: Mapping[str, Any], of: Any) -> None:
    """Refuse names that are not known, and values of the wrong type."""
    known = parameters(of)
    for name, value in params.items():
        if name == "stream":
            raise TypeError("stream is no parameter here; call stream_chat() for a stream")
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            said = f"did you mean {near[0]!r}?" if near else "extra_body= takes any other field"
            raise TypeError(f"unknown parameter {name!r}; {said}")
        if value is not None and not _is_one_of(value, known[name][0]):
            wanted = " or ".join(_type_name(kind) for kind in known[name][0])
            raise TypeError(f"{name} should be {wanted}, not {type(value).__name__}")


def _is_one_of(value: Any, kinds: Tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, (str, bytes)):
        return isinstance(value, str) and str in kinds
    return isinstance(value, kinds) or float in kinds and isinstance(value, int)


def _read_messages(messages: Messages) -> List[Any]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, (bytes, Mapping, WireObject)) or not hasattr(messages, "__iter__"):
        raise TypeError(
            f"messages should be a list of messages or a string, not {type(messages).__name__}; "
            "one message goes as [message]"
        )
    read: List[Any] = []
    for place, message in enumerate(messages):
        if isinstance(message, ChatCompletion):
            raise TypeError(f"messages[{place}] is a whole answer; add its .choices[0].message")
        if not isinstance(message, (Mapping, Message)):
            kind = type(message).__name__
            raise TypeError(f"messages[{place}] should be a dict or a Message, not {kind}")
        if isinstance(message, Message):
            read.append(message.to_param())
        elif not isinstance(message.get("role"), str):
            raise ConfigurationError(f"messages[{place}] has no role, such as 'user'")
        else:
            read.append(message)
    if not read:
        raise ConfigurationError("messages is empty; give at least one")
    return read


def _plain(value: Any) -> Any:
    """Return what JSON can be made of, for what json.dumps does not know."""
    if isinstance(value, Message):
        return value.to_param()
    if isinstance(value, WireObject):
        return value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent as JSON")


_to_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


def encode(payload: Any) -> bytes:
    """Return the request's body as compact JSON; what cannot be is refused by its name."""
    try:
        text = _to_json(payload)
    except (TypeError, ValueError, RecursionError):
        for name, value in payload.items() if isinstance(payload, dict) else [("json", payload)]:
            try:
                _to_json(value)
            except (TypeError, ValueError, RecursionError) as error:
                kind = TypeError if isinstance(error, TypeError) else ConfigurationError
                raise kind(f"{name} cannot be sent as JSON: {error}") from error
        raise
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair; JSON can say it in ASCII
        return json.dumps(json.loads(text), separators=(",", ":")).encode("ascii")


def _read_key(given: Optional[str]) -> Optional[str]:
    key = (_text("api_key", given) or os.environ.get("SYNTHETIC_API_KEY") or "").strip()
    if not re.fullmatch("[ -~]*", key):
        source = "api_key" if given else "SYNTHETIC_API_KEY"
        raise ConfigurationError(
            f"{source} holds control or non-ASCII characters; copy the key again, on one line"
        )
    return key or None


def _read_base_url(url: str) -> Tuple[str, str]:
    """Return the origin, and the base URL that it begins."""
    match = _URL.fullmatch(_text("base_url", url).strip())
    try:
        if match is None or "?" in match.group(4) or "#" in match.group(4):
            raise ValueError
        scheme, host, port, path = match.groups()
        host = host.lower().encode("idna").decode("ascii")
        if port and not 0 < int(port[1:]) < 65536:
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            f"base_url should be like {BASE_URL}: http or https, no user:password@, no ? or #"
        ) from None
    path = path.rstrip("/")
    if path.endswith("/chat/completions"):
        path = path[:-len("/chat/completions")].rstrip("/")
    origin = f"{scheme.lower()}://{host}{port or ''}"
    return origin, origin + path


def _is_loopback(host: str) -> bool:
    """Say whether host:port is this machine: localhost, 127.0.0.0/8 or ::1."""
    import ipaddress

    host = re.sub(":[0-9]+$", "", host).strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_headers(name: str, headers: Optional[Mapping[str, str]]) -> Dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise TypeError(f"{name} should be a dict of strings, not {type(headers).__name__}")
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name} should be a dict of strings")
        if not _HEADER_NAME.fullmatch(key) or not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"{name}: the header {quote(key)!r} holds what HTTP does not allow, such as a "
                "line break"
            )
        if key.lower() in ("content-length", "transfer-encoding", "connection"):
            raise ConfigurationError(f"{name}: leave out {key}, which is set for each request")
    return {key.lower(): value.strip() for key, value in headers.items()}


def _text(name: str, value: Optional[str]) -> str:
    if not isinstance(value, (str, type(None))):
        raise TypeError(f"{name} should be a string, not {type(value).__name__}")
    return value or ""


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} should be seconds as a number, not {type(value).__name__}")
    if not 0 < value <= _MAX_SECONDS:
        raise ConfigurationError(f"{name} should be seconds above 0, up to {_MAX_SECONDS:.0f}")
    return float(value)


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} should be a whole number, not {type(value).__name__}")
    if value < least:
        raise ConfigurationError(f"{name} should be {least} or more")
    return value
