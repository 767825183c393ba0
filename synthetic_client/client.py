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
from functools import partial
from typing import (
    TYPE_CHECKING, Any, Callable, Dict, Generator, Iterable, List, Mapping, NamedTuple, Optional,
    Sequence, Tuple, Type, TypeVar, Union
)

from . import retry
from .errors import (
    APIStatusError, ConfigurationError, ResponseError, SyntheticError, answer_error, masked,
    parse_body, quote, scrub, status_error
)
from .schema import (
    CallOptions, ChatCompletion, ChatParams, ChatResult, EmbeddingParams, EmbeddingResponse,
    Headers, JSONObject, Message, Meta, Model, ModelList, Quotas, SearchResult, SearchResults,
    WireObject, check_params, check_type, describe, parameters
)
from .sse import ServerSentEvent
from .stream import ChatStream

if TYPE_CHECKING:
    import ssl
    from concurrent.futures import Executor
    from typing_extensions import Unpack
    from .transport import Response, Transport

BASE_URL = "https://api.synthetic.new/openai/v1"
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
MAX_REQUEST_BYTES = 10 * 1024 * 1024  # beyond it the service answers that the JSON is broken
_MAX_ERROR_BYTES = 1024 * 1024
_MAX_SECONDS = 4_000_000  # what threads and sockets take on every system
_URL = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[^\x00-\x20/?#@:\[\]\\%\x7f]+)(:[0-9]{1,5})?((?:/[^\s?#]*)?)",
    re.I)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_SECRET_HEADERS = ("authorization", "x-api-key", "api-key", "proxy-authorization", "cookie")

Messages = Union[str, Sequence[Union[Mapping[str, Any], Message]]]
_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R")
_A = TypeVar("_A", bound=WireObject)


def _documented(function: _F) -> _F:
    """Put the parameters' descriptions into a docstring, where {parameters} stands."""
    if function.__doc__:  # none under -OO
        lines = [f"{name} ({describe(kinds)}): {meaning}"
                 for name, (kinds, meaning) in parameters(ChatParams).items()]
        function.__doc__ = function.__doc__.replace("{parameters}", "\n            ".join(lines))
    return function


class SyntheticClient:
    """A client of Synthetic's API, or of any that speaks OpenAI's protocol.

    It may be used from any number of threads, survives fork, and pickles. Clients of the same
    host, proxy and certificates share their idle connections.

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
        self, api_key: Optional[str] = None, *, base_url: Optional[str] = None,
        model: Optional[str] = None, timeout: float = 600.0, connect_timeout: float = 10.0,
        deadline: Optional[float] = None, max_retries: int = 2,
        headers: Optional[Mapping[str, str]] = None, proxy: Optional[str] = None,
        ssl_context: "Optional[ssl.SSLContext]" = None, ca_file: Optional[str] = None,
        allow_http: bool = False, max_response_bytes: int = MAX_RESPONSE_BYTES
    ) -> None:
        for name, kinds in _SETTINGS.items():
            check_type(name, locals()[name], kinds)
        if ssl_context is not None and not hasattr(ssl_context, "wrap_socket"):
            raise TypeError("ssl_context should be an ssl.SSLContext")
        self._closed = False
        self._key_from_environment = not api_key
        self._api_key = _read_key(api_key)
        self.base_url = _read_base_url(
            base_url or os.environ.get("SYNTHETIC_BASE_URL") or BASE_URL)
        self.model = model or os.environ.get("SYNTHETIC_MODEL") or None
        self.timeout, self.connect_timeout = timeout, connect_timeout
        self.deadline, self.max_retries = deadline, max_retries
        self._max_response_bytes = max_response_bytes
        _check_ranges(vars(self))
        self._headers = _read_headers("headers", headers)
        scheme, host = self._origin.split("://")
        self._is_synthetic = f".{host.partition(':')[0]}".endswith(".synthetic.new")
        loopback = _is_loopback(host)
        self._refuses_keys = scheme == "http" and not (loopback or allow_http)
        self._proxy = "" if proxy is None and loopback else proxy
        self._ssl_context, self._ca_file = ssl_context, ca_file
        self._check_plain_http(self._request_headers({}, False))
        if ca_file is not None and ssl_context is not None:
            raise ConfigurationError("give ca_file or ssl_context, not both")
        if ca_file is not None and not os.path.isfile(ca_file):
            raise ConfigurationError(f"ca_file {ca_file!r} is no file; give a PEM bundle's path")
        if ca_file is not None:
            with open(ca_file, "rb") as file:
                if b"-----BEGIN" not in file.read():
                    raise ConfigurationError(f"ca_file {ca_file!r} holds no PEM certificates")
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
        return self._fetch(
            ChatCompletion, "POST", "chat/completions", payload, params, ChatParams)

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
            What `chat` does; all but the first two also while the stream is read.
        """
        payload = {**self._payload(messages, model, params), "stream": True}
        return self._ask("POST", "chat/completions", payload, params, self._read_stream)

    @_documented
    def chat_many(
        self, requests: Iterable[Union[Messages, Mapping[str, Any]]], *,
        model: Optional[str] = None, workers: int = 4, executor: "Optional[Executor]" = None,
        **params: "Unpack[ChatParams]"
    ) -> "Generator[ChatResult, None, None]":
        """Ask for the answers to many requests, several at a time; begins with the first next().

        Every request gives one result, in order, and none stops the others. After a 429 fewer
        are sent at a time, and it is asked again. A 429 that says to come back in more than 60 s
        ends that: what is left fails with the same error, unsent; so leave the loop there if the
        requests have no end. close(), or dropping the iterator, stops it: nothing is sent after.

        Args:
            requests: any iterable, endless too, of which at most twice `workers` are taken
                ahead. Each is what `chat` takes as messages, or a dict of its arguments.
            model: for requests that name none; else the client's.
            workers: how many may be in flight at a time, 1 or more.
            executor: where to make them, such as a ProcessPoolExecutor; it is not shut down.
                Else in threads.
            {parameters}

        A deadline counts for each attempt on its own. These too are for requests that lack them.

        Returns:
            An iterator of ChatResult: index, request, and completion or error.

        Raises:
            TypeError, ConfigurationError: an argument is wrong; nothing was sent.
        """
        from .batch import Run

        self._check_open()
        return iter(Run(self, requests, model, workers, executor, params))

    def models(self, **options: "Unpack[CallOptions]") -> List[Model]:
        """Return the models that the service offers now; needs no key.

        Options and errors are those of `chat`, here and below: timeout, deadline, max_retries,
        extra_headers.
        """
        return self._fetch(ModelList, "GET", "models", None, options).data

    def embeddings(
        self, input: Union[str, Sequence[str]], *, model: str, **params: "Unpack[EmbeddingParams]"
    ) -> EmbeddingResponse:
        """Turn texts into vectors, which compare what they are about.

        Args:
            input: a text, or a list of texts, of which each gives one vector.
            model: an id such as "hf:nomic-ai/nomic-embed-text-v1.5"; the client's own is for chat.
            params: dimensions (int), the length of the vectors where the model can choose;
                extra_body.

        Returns:
            The EmbeddingResponse; `.data[0].embedding` is the first input's vector.
        """
        check_type("input", input, (str, list, tuple))
        if not input:
            raise ConfigurationError("input is empty; give a text, or a list of texts")
        payload = {"model": self._model(model), "input": input, **_sent(params)}
        return self._fetch(
            EmbeddingResponse, "POST", "embeddings", payload, params, EmbeddingParams)

    def quotas(self, **options: "Unpack[CallOptions]") -> Quotas:
        """Return what is left of the key's plan; asking costs none of it.

        Every meter is None for a pay-as-you-go key.
        """
        return self._fetch(Quotas, "GET", "/v2/quotas", None, options)

    def search(self, query: str, **options: "Unpack[CallOptions]") -> List[SearchResult]:
        """Search the web for `query` through the service, which keeps nothing of it."""
        check_type("query", query, (str,))
        if not query.strip():
            raise ConfigurationError("query is empty; say what to look for")
        return self._fetch(SearchResults, "POST", "/v2/search", {"query": query}, options).results

    def request(
        self, method: str, path: str, json: Any = None, **options: "Unpack[CallOptions]"
    ) -> Any:
        """Call any other endpoint and return its parsed JSON, None where it has no body.

        Args:
            method: such as "GET" or "POST".
            path: relative to base_url; from the host's root where it starts with /v2/ or
                /anthropic/.
            json: the request's body.
        """
        check_params(options, CallOptions)
        check_type("path", path, (str,))
        check_type("method", method, (str,))
        if not re.fullmatch("[A-Za-z]+", method) or method.upper() == "CONNECT":
            raise ConfigurationError("method should be a word such as GET or POST")
        return self._ask(method.upper(), path, json, options, self._read_json)

    def close(self) -> None:
        """Close the idle connections; later calls raise RuntimeError."""
        self._closed = True
        if self._way is not None:
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
        vars(self).update(state)
        if self._key_from_environment:
            self._api_key = _read_key(None)

    @property
    def _origin(self) -> str:
        return "/".join(self.base_url.split("/", 3)[:3])

    def _transport(self) -> "Transport":
        """Return the way to this client's host; found by the first call."""
        if self._way is None:
            from . import transport

            self._way = transport.find(
                self._origin, self._proxy, self._ca_file, self._ssl_context)
        return self._way

    def _payload(
        self, messages: Messages, model: Optional[str], params: Mapping[str, Any]
    ) -> JSONObject:
        check_params(params, ChatParams)
        payload = {"model": self._model(model or self.model),
                   "messages": _read_messages(messages), **_sent(params)}
        if "stream" in (params.get("extra_body") or {}):
            raise ConfigurationError("extra_body may not hold stream; call chat or stream_chat")
        return payload

    @staticmethod
    def _model(name: Optional[str]) -> str:
        """Return the model's id, without LiteLLM's route."""
        check_type("model", name, (str, type(None)))
        name = (name or "").strip()
        if name.startswith("synthetic/"):
            name = name[len("synthetic/"):]
        if not name:
            raise ConfigurationError(
                "no model is named; give model= or set SYNTHETIC_MODEL, such as syn:large:text"
            )
        return name

    def _fetch(
        self, kind: Type[_A], method: str, path: str, payload: Any, options: Mapping[str, Any],
        of: Any = CallOptions
    ) -> _A:
        """Make the call, and return the whole answer as an object of the class `kind`."""
        check_params(options, of)
        return self._ask(method, path, payload, options, partial(self._read_as, kind))

    def _ask(
        self, method: str, path: str, payload: Any, options: Mapping[str, Any],
        read: "Callable[[Response, Meta, _Call], _R]"
    ) -> _R:
        """Make the call, and return what `read` makes of the answer."""
        call = self._prepare(method, path, payload, options)
        meta = None
        try:
            response, attempts = self._send(call)
            meta = _read_meta(response, attempts)
            return read(response, meta, call)
        except SyntheticError as error:
            _complete(error, meta, call)
            raise

    def _prepare(
        self, method: str, path: str, payload: Any, options: Mapping[str, Any]
    ) -> "_Call":
        self._check_open()
        headers = self._request_headers(options, payload is not None)
        self._check_plain_http(headers)
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
        chosen = payload.get("n") if isinstance(payload, dict) else 1
        limits = {name: getattr(self, name) if options.get(name) is None else options[name]
                  for name in ("timeout", "deadline", "max_retries")}
        _check_ranges(limits)
        clock = retry.Clock(limits["timeout"], self.connect_timeout, limits["deadline"])
        return _Call(
            method, self._url(path), headers, body, clock,
            limits["max_retries"],
            (self._api_key or "", *self._transport().secrets),
            chosen if isinstance(chosen, int) else 1,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this client is closed; make another one")

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
                error: SyntheticError = _read_refusal(response, _read_meta(response, attempt))
            except ConfigurationError:
                raise
            except SyntheticError as caught:
                error = caught
            error.attempts = attempt
            wait = retry.wait_before_retry(error, attempt, call.max_retries)
            if wait is None or wait >= call.clock.left():
                raise error
            self._transport().log.info("retry %d of %d in %.2f s: %s", attempt, call.max_retries,
                                       wait, type(error).__name__)
            time.sleep(wait)

    def _check_plain_http(self, headers: Mapping[str, str]) -> None:
        if self._refuses_keys and any(name in headers for name in _SECRET_HEADERS):
            raise ConfigurationError(
                "base_url is plain http://, where anyone on the way can read the key; use "
                "https://, or allow_http=True if that network is yours"
            )

    def _url(self, path: str) -> str:
        if "://" in path or not re.fullmatch('[!"$-~]*', path):
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
        if not raw:
            return None
        text = raw.decode("utf-8-sig", "replace")
        try:
            data = _from_json(text)
        except (ValueError, RecursionError) as error:
            raise ResponseError(
                f"the answer is not JSON: {quote(text)}; check base_url", body=text) from error
        error_inside = answer_error(data)
        if error_inside is not None:
            raise error_inside
        return data

    def _read_as(
        self, kind: Type[_A], response: "Response", meta: Meta, call: "_Call"
    ) -> _A:
        """Return a whole answer as an object of the class `kind`."""
        data = self._read_json(response, meta, call)
        fits = isinstance(data, dict) and (
            not kind._needs or isinstance(data.get(kind._needs), list))
        if not fits:
            said = "it is empty" if data is None else quote(json.dumps(data))
            raise ResponseError(f"the answer is no {kind.__name__}: {said}; check base_url",
                                body=data)
        answer = kind.from_dict(data)
        if isinstance(answer, (ChatCompletion, EmbeddingResponse, Quotas)):
            answer.meta = meta
        return answer

    def _read_stream(self, response: "Response", meta: Meta, call: "_Call") -> ChatStream:
        kind = meta.headers.get("content-type", "").lower()
        if "json" not in kind and "html" not in kind:
            return ChatStream(response, meta, expected_choices=call.choices,
                              max_event_bytes=self._max_response_bytes,
                              on_error=lambda error: _complete(error, meta, call))
        whole = self._read_as(ChatCompletion, response, meta, call).to_dict()  # it does not stream
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
    secrets: Sequence[str]  # what no error may show, beside what the headers hold
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


def _read_refusal(response: "Response", meta: Meta) -> APIStatusError:
    """Return the error for an answer whose status is not 2xx."""
    try:
        text = response.read(_MAX_ERROR_BYTES).decode("utf-8", "replace")
    except SyntheticError:
        text = ""  # the status says enough
    hint, target = None, meta.headers.get("location")
    if 300 <= response.status < 400 and target:
        place = re.sub("//[^/]*@", "//", target).partition("?")[0]
        hint = f"It redirects to {quote(place)}, which is not followed; check base_url"
    error = status_error(response.status, parse_body(text), hint=hint)
    _add_headers(error, meta)
    return error


def _add_headers(error: APIStatusError, meta: Meta) -> None:
    """Give an error what the answer's headers say, first of all when to ask again."""
    now = datetime.now(timezone.utc)
    error.headers, error.request_id, error.quotas = meta.headers, meta.request_id, meta.quotas
    wait = retry.parse_retry_after(meta.headers, now)
    spent = retry.used_up_quota(meta.quotas, now) if meta.quotas else None
    if error.status_code == 429 and spent is not None:
        name, left = spent
        said = f" Your {name} is used up"
        if left is not None:
            hours, minutes = divmod(int(left) // 60 + 1, 60)
            said += f"; it renews in {hours} h {minutes} min"
            wait = left if wait is None or left > retry.LONGEST_WAIT else wait
        error.args = (f"{error}{said}.",)
    error.retry_after = wait


def _complete(error: SyntheticError, meta: Optional[Meta], call: "_Call") -> None:
    """Add to an error what its answer's headers say, and hide the secrets in both."""
    tokens = [call.headers.get(name, "").rpartition(" ")[2] for name in _SECRET_HEADERS]
    found = [secret for secret in (*call.secrets, *tokens) if len(secret) > 3]
    found += ["".join(c if c.isalnum() or c in "-._~" else f"%{ord(c):02X}" for c in secret)
              for secret in found]  # as URLs have it
    secrets = sorted(found, key=len, reverse=True)
    if meta is not None:
        error.attempts = meta.attempts
        if isinstance(error, APIStatusError):
            _add_headers(error, meta)
        vars(meta).update(masked(vars(meta), secrets))
    scrub(error, secrets)


def _sent(params: Mapping[str, Any]) -> JSONObject:
    """Return the parameters that go into the request's body."""
    others = (*parameters(CallOptions), "extra_body")
    sent = {key: value for key, value in params.items()
            if value is not None and key not in others}
    return {**sent, **(params.get("extra_body") or {})}


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
        elif not isinstance(message.get("role"), str) or not message["role"]:
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


_from_json = json.JSONDecoder(strict=False).decode
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


_SETTINGS: Dict[str, Tuple[type, ...]] = {
    **dict.fromkeys(("api_key", "base_url", "model", "proxy", "ca_file"), (str, type(None))),
    **dict.fromkeys(("timeout", "connect_timeout"), (float,)),
    **dict.fromkeys(("max_retries", "max_response_bytes"), (int,)),
    "deadline": (float, type(None)), "allow_http": (bool,),
}


def _check_ranges(settings: Mapping[str, Any]) -> None:
    for name in ("timeout", "connect_timeout", "deadline"):
        value = settings.get(name)
        if value is not None and not 0 < value <= _MAX_SECONDS:
            raise ConfigurationError(f"{name} should be seconds above 0, up to {_MAX_SECONDS}")
    for name, least in (("max_retries", 0), ("_max_response_bytes", 1)):
        if settings.get(name, least) < least:
            raise ConfigurationError(f"{name.strip('_')} should be {least} or more")


def _read_key(given: Optional[str]) -> Optional[str]:
    key = (given or os.environ.get("SYNTHETIC_API_KEY") or "").strip()
    if not re.fullmatch("[ -~]*", key):
        source = "api_key" if given else "SYNTHETIC_API_KEY"
        raise ConfigurationError(
            f"{source} holds control or non-ASCII characters; copy the key again, on one line"
        )
    return key or None


def _read_base_url(url: str) -> str:
    import ipaddress

    match = _URL.fullmatch(url.strip())
    try:
        scheme, host, port, path = match.groups()  # type: ignore[union-attr]
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        host = host.lower().encode("idna").decode("ascii")
        if not path.isascii() or port and not 0 < int(port[1:]) < 65536:
            raise ValueError
    except (AttributeError, ValueError):
        raise ConfigurationError(
            f"base_url should be like {BASE_URL}: http or https, no user:password@, no ? or #"
        ) from None
    path = re.sub("(/chat/completions)?/*$", "", path.rstrip("/"))
    return f"{scheme.lower()}://{host}{port or ''}{path}"


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
