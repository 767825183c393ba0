# SPDX-License-Identifier: MIT
"""A server on this machine that answers as Synthetic does, for tests without it.

    with MockServer() as server:
        server.reply("4")
        assert my_program(server.client()) == "4"
        assert server.requests[0].json["temperature"] == 0

Strategy: `http.server` reads requests, in a thread for each connection, and a function for each
route makes the JSON of the answer. A chat's is made whole, and cut into chunks for a stream.
"""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Deque, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from .client import SyntheticClient
from .errors import parse_body
from .schema import Headers
from .wire import JSONObject

BASE_PATH = "/openai/v1"
MODEL = "hf:zai-org/GLM-4.7"
_MODELS: JSONObject = {"data": [{
    "provider": "synthetic", "id": name, "hugging_face_id": "zai-org/GLM-4.7", "always_on": True,
    "name": "zai-org/GLM-4.7", "input_modalities": ["text"], "output_modalities": ["text"],
    "context_length": 202752, "max_output_length": 65536, "created": 1766361600,
    "supported_features": ["tools", "json_mode", "structured_outputs", "reasoning"],
    "pricing": {"prompt": "$0.00000055", "completion": "$0.00000219", "image": "0",
                "request": "0", "input_cache_reads": "$0.00000055", "input_cache_writes": "0"},
} for name in (MODEL, "syn:large:text")]}
_CHAT = ("POST", f"{BASE_PATH}/chat/completions")


class Request(NamedTuple):
    """What the server received; `json` is the body, None where there was none."""

    method: str
    path: str
    headers: Mapping[str, str]  # looked up in any case
    json: Any


class _Reply(NamedTuple):
    answer: JSONObject
    stream_delay: float = 0.0


class _Failure(NamedTuple):
    status: int
    body: Any
    headers: Mapping[str, str]


class MockServer:
    """A real HTTP server on loopback, from `with` or `start()` until `close()`.

    A chat takes the next of the answers that `reply` and `fail` have queued; where there is none
    it echoes the last user message. The other endpoints have an answer of their own, unless a
    failure is next. Any key and any model will do. Tokens are counted as words. `requests` holds
    what was received: method, path, headers, json.
    """

    def __init__(self) -> None:
        self.requests: List[Request] = []
        self._queue: Deque[Union[_Reply, _Failure]] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: Dict[threading.Thread, Any] = {}
        self._http: Optional[ThreadingHTTPServer] = None

    def start(self) -> "MockServer":
        """Begin to listen, on a port that is free."""
        handler = type("Handler", (_Handler,), {"mock": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening, end all connections, and wait until nothing runs any more."""
        http, self._http = self._http, None
        if http is None:
            return
        self._closing.set()
        http.shutdown()
        self._thread.join()
        for thread, connection in list(self._connections.items()):
            with contextlib.suppress(OSError):  # it has just ended
                connection.shutdown(2)  # both ways, which wakes its thread
            thread.join()
        http.server_close()

    def __enter__(self) -> "MockServer":
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """Where it listens, such as "http://127.0.0.1:54321/openai/v1"."""
        if self._http is None:
            raise RuntimeError("the MockServer does not run; use it in `with`, or call start()")
        return f"http://127.0.0.1:{self._http.server_address[1]}{BASE_PATH}"

    def client(self, **options: Any) -> SyntheticClient:
        """Return a client of this server; `options` are the arguments of SyntheticClient."""
        settings: Dict[str, Any] = {
            "api_key": "syn_mock_key", "base_url": self.base_url, "model": MODEL, "proxy": ""}
        return SyntheticClient(**{**settings, **options})

    def reply(self, answer: Union[str, JSONObject], *, stream_delay: float = 0.0) -> None:
        """Queue the answer to a chat.

        Args:
            answer: its text; or a message as a dict, with content, reasoning_content, tool_calls
                (arguments may be a dict, ids are made up), finish_reason; or a whole completion.
            stream_delay: seconds before each piece but the first, where it is streamed.
        """
        made = {"content": answer} if isinstance(answer, str) else dict(answer)
        self._queue.append(_Reply(made, stream_delay))

    def fail(self, status: int, body: Any = "", headers: Mapping[str, str] = {}) -> None:
        """Queue a failure, which the next request meets, whatever it is for.

        Args:
            status: the HTTP status.
            body: a text or bytes, sent as they are, or else what is sent as JSON. The service's
                own errors look like {"error": "text"}.
            headers: to be sent beside the usual, such as {"Retry-After": "1"}.
        """
        self._queue.append(_Failure(status, body, dict(headers or {})))

    def _next(self, is_chat: bool) -> Union[_Reply, _Failure, None]:
        with self._lock:
            if self._queue and (is_chat or isinstance(self._queue[0], _Failure)):
                return self._queue.popleft()
            return None


class _Handler(BaseHTTPRequestHandler):
    """One connection; http.server calls the method of the request's name."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    mock: MockServer

    def handle(self) -> None:
        self.mock._connections[threading.current_thread()] = self.connection
        try:
            with contextlib.suppress(OSError):  # the caller went away
                super().handle()
        finally:
            del self.mock._connections[threading.current_thread()]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = Headers((name.lower(), value) for name, value in self.headers.items())
        body: Any = parse_body(raw.decode("utf-8", "replace")) if raw else None
        self.mock.requests.append(Request(self.command, self.path, headers, body))
        route = self.command, self.path.partition("?")[0]
        queued = self.mock._next(route == _CHAT)
        try:
            if isinstance(queued, _Failure):
                self._send(*queued)
            elif route == _CHAT:
                self._chat(body, queued or _Reply(_echo(body)))
            elif route in _ROUTES:
                self._send(200, _ROUTES[route](body))
            else:
                self._send(404, {"error": f"there is no {route[0]} {route[1]}"})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._send(400, {"error": f"there is no answer to this: {error!r}"})

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass  # a test's output is the test's

    def _chat(self, body: JSONObject, reply: _Reply) -> None:
        completion = _complete(body, reply.answer)
        headers = {"x-synthetic-quotas": json.dumps(_quotas())}
        if body.get("stream"):
            self._send_events(list(_chunks(body, completion)), reply.stream_delay, headers)
        else:
            self._send(200, completion, headers)

    def _send(self, status: int, body: Any, headers: Mapping[str, str] = {}) -> None:
        is_text = isinstance(body, (bytes, str))
        kind, text = ("text/plain", body) if is_text else ("application/json", json.dumps(body))
        data = text.encode("utf-8") if isinstance(text, str) else text
        self._start(status, {"Content-Type": kind, "Content-Length": str(len(data)), **headers})
        self.wfile.write(data)

    def _send_events(
        self, chunks: List[JSONObject], delay: float, headers: Mapping[str, str]
    ) -> None:
        self._start(200, {
            "Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **headers})
        for number, data in enumerate((*map(json.dumps, chunks), "[DONE]")):
            if number and self.mock._closing.wait(delay):
                return  # closed in mid-stream
            event = f"data: {data}\n\n".encode("utf-8")
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _complete(body: JSONObject, answer: JSONObject) -> JSONObject:
    """Return the completion that a queued answer means for a request."""
    if "choices" in answer:
        return answer
    message: JSONObject = {"role": "assistant", "content": None, **answer}
    calls = [_complete_call(*pair) for pair in enumerate(message.get("tool_calls") or ())]
    reason = message.pop("finish_reason", None) or ("tool_calls" if calls else "stop")
    if calls:
        message["tool_calls"] = calls
    choices = [{"index": index, "message": message, "logprobs": None, "finish_reason": reason}
               for index in range(body.get("n") or 1)]
    asked = sum(len(_text(item).split()) for item in body["messages"])
    texts = [_text(message), message.get("reasoning_content") or ""]
    texts += [call["function"]["arguments"] for call in calls]
    said = len(choices) * sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    return {"id": "chatcmpl-mock", "object": "chat.completion", "created": 1766361600,
            "model": body.get("model"), "choices": choices, "usage": usage}


def _complete_call(number: int, call: JSONObject) -> JSONObject:
    function = {"arguments": "", **call["function"]}
    if not isinstance(function["arguments"], str):
        function["arguments"] = json.dumps(function["arguments"])
    return {"id": f"call_{number}", "type": "function", **call, "function": function}


def _chunks(body: JSONObject, completion: JSONObject) -> Iterator[JSONObject]:
    """Yield the chunks of a stream that gives the completion."""
    same = {**completion, "object": "chat.completion.chunk"}
    usage = same.pop("usage", None)
    for choice in completion["choices"]:
        rest = {key: value for key, value in choice.items() if key != "message"}
        for delta in _deltas(choice["message"]):
            part = {**rest, "delta": delta, "logprobs": None, "finish_reason": None}
            yield {**same, "choices": [part]}
        yield {**same, "choices": [{**rest, "delta": {}}]}
    if usage and (body.get("stream_options") or {}).get("include_usage"):
        yield {**same, "choices": [], "usage": usage}


def _deltas(message: JSONObject) -> Iterator[JSONObject]:
    """Yield a message in pieces: texts by words, calls with their arguments behind them."""
    pieces = ("reasoning_content", "content", "tool_calls")
    yield {**{key: value for key, value in message.items() if key not in pieces}, "content": ""}
    for key in pieces[:2]:
        for piece in re.findall(r"\s*\S+\s*|\s+", message.get(key) or ""):
            yield {key: piece}
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        opening = {**call, "index": index, "function": {**function, "arguments": ""}}
        yield {"tool_calls": [opening]}
        for piece in re.findall("(?s).{1,8}", function.get("arguments") or ""):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _text(message: Any) -> str:
    """Return the text of a message, whose content may be a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return str(content)


def _echo(body: JSONObject) -> JSONObject:
    """Return the answer where none was queued: the last user message."""
    asked = [item for item in body["messages"] if item.get("role") == "user"]
    return {"content": _text(asked[-1]) if asked else ""}


def _embed(body: JSONObject) -> JSONObject:
    """Return vectors that are the same for the same text, and tell nothing else of it."""
    given, size = body.get("input") or "", body.get("dimensions") or 8  # numbers
    texts = [str(text) for text in (given if isinstance(given, list) else [given])]
    digests = [hashlib.shake_128(text.encode("utf-8")).digest(size) for text in texts]
    data = [{"object": "embedding", "index": index, "embedding": [x / 128 - 1 for x in digest]}
            for index, digest in enumerate(digests)]
    tokens = sum(len(text.split()) for text in texts)
    return {"object": "list", "model": body.get("model"), "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _quotas() -> JSONObject:
    """Return the meters of a plan that is little used and renews soon."""
    now = time.time()
    soon, later, tomorrow = (
        time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now + 60 * minutes))
        for minutes in (12, 50, 1440))
    return {
        "subscription": {"limit": 500, "requests": 0, "renewsAt": tomorrow},
        "search": {"hourly": {"limit": 250, "requests": 3, "renewsAt": later}},
        "freeToolCalls": {"limit": 0, "requests": 0, "renewsAt": tomorrow},
        "weeklyTokenLimit": {
            "nextRegenAt": later, "percentRemaining": 75.5, "maxCredits": "$24.00",
            "remainingCredits": "$18.12", "nextRegenCredits": "$0.48"},
        "rollingFiveHourLimit": {"nextTickAt": soon, "tickPercent": 0.05, "remaining": 498.9,
                                 "max": 500, "limited": False}}


def _search(body: JSONObject) -> JSONObject:
    return {"results": [{"url": "https://example.com/", "title": body.get("query"),
                         "text": "A page.", "published": "2025-11-05T00:00:00.000Z"}]}


_ROUTES: Dict[Tuple[str, str], Any] = {
    ("POST", f"{BASE_PATH}/embeddings"): _embed,
    ("GET", f"{BASE_PATH}/models"): lambda body: _MODELS,
    ("GET", "/v2/quotas"): lambda body: _quotas(),
    ("POST", "/v2/search"): _search,
}
