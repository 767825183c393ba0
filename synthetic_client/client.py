# SPDX-License-Identifier: MIT
"""The client: has the request built, sends it, has the answer read.

Strategy: everything that can be refused is refused (request.py) before `_send`, which makes the
attempts and sleeps between them as retry.py says; answer.py reads what comes back. transport.py,
and with it urllib, is imported by the first call. Settings are plain attributes, so a client
pickles without its connections; unpickled ones share pools by what decides the way to the host.
"""

import os
import re
import time
from functools import partial
from importlib import import_module
from typing import (
    TYPE_CHECKING, Any, Callable, Dict, Generator, Iterable, List, Mapping, Optional, Sequence,
    Tuple, TypeVar, Union
)

from . import retry
from .answer import Call, read_as, read_items, read_json, read_refusal, read_stream
from .errors import ConfigurationError, SyntheticError
from .http1 import Request, Response
from .request import (
    MAX_REQUEST_BYTES, SECRET_HEADERS, CallOptions, ChatParams, EmbeddingParams, Messages,
    chat_payload, check_params, check_ranges, check_type, documented, embedding_payload, encode,
    is_loopback, kinds_of, make_url, own_headers, read_base_url, read_headers, read_key
)
from .schema import (
    ChatCompletion, ChatResult, EmbeddingResponse, Meta, Model, Quotas, SearchResult
)
from .stream import ChatStream
from .wire import JSONObject

if TYPE_CHECKING:
    import ssl
    from concurrent.futures import Executor
    from typing_extensions import Unpack
    from .transport import Transport

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
_CLOSED = "this client is closed; make another one"
_R = TypeVar("_R")


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
    _closed = False

    def __init__(
        self, api_key: Optional[str] = None, *, base_url: Optional[str] = None,
        model: Optional[str] = None, timeout: float = 600.0, connect_timeout: float = 10.0,
        deadline: Optional[float] = None, max_retries: int = 2,
        headers: Optional[Mapping[str, str]] = None, proxy: Optional[str] = None,
        ssl_context: "Optional[ssl.SSLContext]" = None, ca_file: Optional[str] = None,
        allow_http: bool = False, max_response_bytes: int = MAX_RESPONSE_BYTES
    ) -> None:
        hints = SyntheticClient.__init__.__annotations__
        for name, value in dict(locals()).items():
            if name in hints and name != "ssl_context":
                check_type(name, value, kinds_of(hints[name]))
        check_ranges(locals())
        if ssl_context is not None and not hasattr(ssl_context, "wrap_socket"):
            raise TypeError("ssl_context should be an ssl.SSLContext")
        if ssl_context is not None and ca_file is not None:
            raise ConfigurationError("give ca_file or ssl_context, not both")
        self._key_from_environment = not api_key
        self._api_key = read_key(api_key)
        self.base_url = read_base_url(base_url)
        self._origin = "/".join(self.base_url.split("/", 3)[:3])
        self.model = model or os.environ.get("SYNTHETIC_MODEL") or None
        self.timeout, self.connect_timeout = timeout, connect_timeout
        self.deadline, self.max_retries = deadline, max_retries
        self._max_response_bytes = max_response_bytes
        self._headers = read_headers("headers", headers)
        loopback = is_loopback(self._origin)
        self._is_synthetic = re.search(r"[/.]synthetic\.new(:[0-9]+)?$", self._origin) is not None
        self._refuses_keys = self._origin.startswith("http:") and not (loopback or allow_http)
        self._proxy = "" if proxy is None and loopback else proxy
        self._ssl_context, self._ca_file = ssl_context, ca_file
        self._request_headers(None)
        if proxy or ca_file is not None:
            self._transport()  # says now what is wrong with it

    @documented
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
        payload = chat_payload(model or self.model, messages, params)
        read = partial(read_as, ChatCompletion, "choices")
        return self._ask("POST", "chat/completions", payload, params, read)

    @documented
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
        payload = {**chat_payload(model or self.model, messages, params), "stream": True}
        read = partial(read_stream, payload.get("n"))
        return self._ask("POST", "chat/completions", payload, params, read)

    @documented
    def chat_many(
        self, requests: Iterable[Union[Messages, Mapping[str, Any]]], *,
        model: Optional[str] = None, workers: int = 4, executor: "Optional[Executor]" = None,
        **params: "Unpack[ChatParams]"
    ) -> "Generator[ChatResult, None, None]":
        """Ask for the answers to many requests; the first next() begins to send them.

        Each gives one result, in order, and no failure stops the others. A 429 lowers the number
        in flight. One that says to come back in more than 60 s ends the run: what is left fails
        with it, unsent. After close() nothing is sent. A deadline is for each attempt.

        Args:
            requests: any iterable, of which at most twice `workers` are taken ahead. Each is what
                `chat` takes as messages, or a dict of its arguments, which come first.
            model: for requests that name none; else the client's.
            workers: the most to have in flight, 1 or more.
            executor: any concurrent.futures.Executor, which is not shut down; else threads.
            {parameters}

        Returns:
            An iterator of ChatResult: index, request, and completion or error.

        Raises:
            TypeError, ConfigurationError: an argument is wrong; nothing was sent.
        """
        import_module(".batch", __package__)
        from .batch import Run

        if self._closed:
            raise RuntimeError(_CLOSED)
        return iter(Run(self, requests, model, workers, executor, params))

    def models(self, **options: "Unpack[CallOptions]") -> List[Model]:
        """Return the models that the service offers now; needs no key.

        Options and errors are those of `chat`, here and below: timeout, deadline, max_retries,
        extra_headers.
        """
        check_params(options, CallOptions)
        read = partial(read_items, Model, "data")
        return self._ask("GET", "models", None, options, read)

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
        payload = embedding_payload(model, input, params)
        read = partial(read_as, EmbeddingResponse, "data")
        return self._ask("POST", "embeddings", payload, params, read)

    def quotas(self, **options: "Unpack[CallOptions]") -> Quotas:
        """Return what is left of the key's plan; asking costs none of it.

        Every meter is None for a pay-as-you-go key.
        """
        check_params(options, CallOptions)
        return self._ask("GET", "/v2/quotas", None, options, partial(read_as, Quotas, ""))

    def search(self, query: str, **options: "Unpack[CallOptions]") -> List[SearchResult]:
        """Search the web for `query` through the service, which keeps nothing of it."""
        check_params(options, CallOptions)
        check_type("query", query, (str,))
        if not query.strip():
            raise ConfigurationError("query is empty; say what to look for")
        read = partial(read_items, SearchResult, "results")
        return self._ask("POST", "/v2/search", {"query": query}, options, read)

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
        check_type("method", method, (str,))
        if not re.fullmatch("[A-Za-z]+", method) or method.upper() == "CONNECT":
            raise ConfigurationError("method should be a word such as GET or POST")
        return self._ask(method.upper(), path, json, options, read_json)

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
            self._api_key = read_key(None)

    def _transport(self) -> "Transport":
        """Return the way to this client's host; found by the first call."""
        if self._way is None:
            import_module(".transport", __package__)  # `import` from a zip waits only since 3.10
            from .transport import find

            self._way = find(self._origin, self._proxy, self._ca_file, self._ssl_context)
        return self._way

    def _ask(
        self, method: str, path: str, payload: Any, options: Mapping[str, Any],
        read: "Callable[[Response, Meta, Call], _R]"
    ) -> _R:
        """Make the call, and return what `read` makes of the answer."""
        call = self._prepare(method, path, payload, options)
        meta = None
        try:
            response, meta = self._send(call)
            return read(response, meta, call)
        except SyntheticError as error:
            call.complete(meta, error)
            raise

    def _prepare(self, method: str, path: str, payload: Any, options: Mapping[str, Any]) -> Call:
        """Return the call, checked and ready to be sent."""
        if self._closed:
            raise RuntimeError(_CLOSED)
        headers = self._request_headers(options.get("extra_headers"))
        if self._is_synthetic and "authorization" not in headers and path.strip("/") != "models":
            raise ConfigurationError(
                "no API key: get one at https://synthetic.new and set SYNTHETIC_API_KEY, or give "
                "api_key="
            )
        body = None
        if payload is not None:
            body = encode(payload, MAX_REQUEST_BYTES if self._is_synthetic else None)
            headers.setdefault("content-type", "application/json")
        timeout, deadline, max_retries = (
            getattr(self, name) if options.get(name) is None else options[name]
            for name in ("timeout", "deadline", "max_retries"))
        clock = options.get("clock") or retry.Clock(timeout, self.connect_timeout, deadline)
        secrets = (self._api_key or "", *self._transport().secrets)
        request = Request(method, make_url(self.base_url, path), headers, body, clock)
        return Call(request, max_retries, self._max_response_bytes, secrets)

    def _send(self, call: Call) -> "Tuple[Response, Meta]":
        """Make the attempts; return the first answer with the status 2xx."""
        attempt = 0
        while True:
            attempt += 1
            try:
                response = self._transport().send(call.request, attempt)
                meta = Meta.read(response.status, response.headers, attempt)
                if 200 <= response.status < 300:
                    return response, meta
                error: SyntheticError = read_refusal(response, meta)
            except SyntheticError as caught:
                error = caught
            error.attempts = attempt
            wait = retry.wait_before_retry(error, attempt, call.max_retries)
            if wait is None or wait >= call.request.clock.left():
                raise error
            self._transport().log.info("retry %d of %d in %.2f s: %s", attempt, call.max_retries,
                                       wait, type(error).__name__)
            time.sleep(wait)

    def _request_headers(self, extra: Optional[Mapping[str, str]]) -> Dict[str, str]:
        headers = {**own_headers(), **self._headers, **read_headers("extra_headers", extra)}
        if self._api_key:
            headers.setdefault("authorization", f"Bearer {self._api_key}")
        if self._refuses_keys and any(name in headers for name in SECRET_HEADERS):
            raise ConfigurationError(
                "base_url is plain http://, where anyone on the way can read the key; use "
                "https://, or allow_http=True if that network is yours"
            )
        return headers
