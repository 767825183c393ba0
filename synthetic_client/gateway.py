# SPDX-License-Identifier: MIT
"""What the proxy answers: who may ask, which server is asked for what, and what errors look like.

Strategy: `read_config` makes of LiteLLM's configuration a `Gateway`, which has for each model a
list of entries, each a client and the model's name there. Of a request it is shown first the
head, to refuse what should not be read on, then the body. `ask` goes from one entry to the next
while they fail; one that failed rests, which puts it last. Of an answer nothing is passed on
before it is whole, or its first event is; `read_events` ends well only where a stream is whole.
Nothing here knows how a caller is connected: it is an object with a few names, see `ask`.
"""

import hmac
import json
import os
import re
import time
from functools import partial
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Type

from .client import MAX_RESPONSE_BYTES, SyntheticClient
from .errors import (
    APIConnectionError, APIStatusError, APITimeoutError, ConfigurationError, ResponseError,
    StreamInterruptedError, SyntheticError, parse_answer, parse_body, quote, raise_fault
)
from .head import Head, refusal
from .request import encode
from .sse import SSEParser
from .wire import JSONObject

_REST, _LONGEST_REST = 5.0, 60.0  # seconds; LiteLLM's cool-down is 5 s too
_ROUTES = ("synthetic", "openai", "litellm_proxy", "hosted_vllm")  # LiteLLM's, for this protocol
_METHODS = {"/chat/completions": "POST", "/completions": "POST", "/embeddings": "POST",
            "/models": "GET", "/health/liveliness": "GET", "/health/readiness": "GET"}
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')


class Entry:
    """One way to a model: a client, the model's name there, the key that none may see."""

    def __init__(self, client: SyntheticClient, model: str, key: Optional[str]) -> None:
        self.client, self.model = client, model
        self.rests_until = 0.0
        spelt = "".join(rf"(?:\\?{re.escape(c)}|\\u00(?i:{ord(c):02x}))" for c in key or "")
        is_secret = len(key or "") > 15  # less is a placeholder, which may stand in any text
        self._secret = re.compile(spelt.encode("ascii") if is_secret else rb"(?!)")

    def mask(self, data: bytes) -> bytes:
        """Return JSON without the key, however it is escaped."""
        return self._secret.sub(b"***", data)

    def rest(self, error: SyntheticError) -> None:
        """Be asked last for a while."""
        seconds = getattr(error, "retry_after", None) or _REST
        self.rests_until = time.monotonic() + min(seconds, _LONGEST_REST)


class Gateway:
    """The models that are offered, and to whom.

    Args:
        models: the ways to each.
        master_key: what callers need, if anything.
    """

    def __init__(self, models: Dict[str, List[Entry]], master_key: Optional[str]) -> None:
        self._models, self.master_key = models, master_key

    def admit(self, head: Head) -> None:
        """Refuse a request that has no answer, or whose caller has no key."""
        route = _route(head)
        if route not in _METHODS:
            raise refusal(404, f"there is no {head.path} here")
        if head.method != _METHODS[route]:
            raise refusal(405, f"{head.path} wants {_METHODS[route]}")
        if self.master_key and not route.startswith("/health/"):
            scheme, _, key = head.fields.get("authorization", "").partition(" ")
            given = key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
            if not hmac.compare_digest(given, self.master_key.encode("utf-8")):
                raise refusal(401, "the key is missing or wrong; send the proxy's master_key")

    def answer(self, head: Head, body: bytes, caller: Any) -> None:
        """Answer a request that was admitted."""
        route = _route(head)
        if route.startswith("/health/"):
            caller.send(200, encode({"status": "healthy"}))
        elif route == "/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "proxy"}
                      for name in self._models]
            caller.send(200, encode({"object": "list", "data": models}))
        else:
            self._ask(route, parse_body(body.decode("utf-8", "replace")), caller)

    def _ask(self, route: str, asked: Any, caller: Any) -> None:
        name = asked.get("model") if isinstance(asked, dict) else None
        if not isinstance(name, str):
            raise refusal(400, "the body should be a JSON object that names a model")
        if name not in self._models:
            raise refusal(404, f"there is no model {quote(name)}; GET /v1/models lists them")
        caller.model = quote(name)
        ask(self._models[name], route, asked, caller)


def _route(head: Head) -> str:
    return head.path[len("/v1"):] if head.path.startswith("/v1/") else head.path


def read_config(path: str) -> Gateway:
    """Return what the file describes.

    Raises:
        ConfigurationError: something is wrong; the message names the entry.
        OSError: the file cannot be read.
    """
    if path.lower().endswith((".yaml", ".yml")):
        raise ConfigurationError(
            f"{path} should be JSON; any Python that has PyYAML makes it so: python3 -c 'import "
            "json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout, indent=2)' "
            f"< {path} > {os.path.splitext(path)[0]}.json")
    models: Dict[str, List[Entry]] = {}
    clients: Dict[Any, SyntheticClient] = {}
    try:
        with open(path, encoding="utf-8") as file:
            config = _get({"the file": json.load(file)}, "the file", dict, True)
        for place, item in enumerate(_get(config, "model_list", list, True)):
            try:
                name, entry = _read_entry({"the entry": item}, clients)
            except (ConfigurationError, TypeError) as error:
                named = item.get("model_name") if isinstance(item, dict) else None
                raise ConfigurationError(f"model_list[{place}] ({named!r}): {error}") from None
            models.setdefault(name, []).append(entry)
        settings = _get(config, "general_settings", dict) or {}
        return Gateway(models, _get(settings, "master_key", str))
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _get(table: Mapping[str, Any], key: str, kind: Type[Any], needed: bool = False) -> Any:
    """Return a setting, None where it is missing and may be; a text may name a variable."""
    value = table.get(key)
    if value is None and not needed:
        return None
    if not isinstance(value, kind) or not value and kind is not dict:
        wanted = {"str": "a text", "dict": "an object", "list": "a list with entries"}
        raise ConfigurationError(f"{key} should be {wanted[kind.__name__]}")
    if isinstance(value, str) and value.startswith("os.environ/"):
        name = value[len("os.environ/"):]
        value = (os.environ.get(name) or "").strip()
        if not value:
            raise ConfigurationError(f"{key} names the variable {name}, which is not set")
    return value


def _read_entry(
    place: Mapping[str, Any], clients: Dict[Any, SyntheticClient]
) -> Tuple[str, Entry]:
    """Return a model's name and a way to it; ways of equal key and base share a client."""
    item = _get(place, "the entry", dict, True)
    name = _get(item, "model_name", str, True)
    params = _get(item, "litellm_params", dict, True)
    model = _get(params, "model", str, True)
    key, base = _get(params, "api_key", str), _get(params, "api_base", str)
    route, slash, rest = model.partition("/")
    if slash and ":" not in route:
        if route != "synthetic" and not base:
            raise ConfigurationError(f"the route {route}/ wants api_base; synthetic/ needs none")
        model = rest if route in _ROUTES else model
    if route == "synthetic" or not base:
        key = key or os.environ.get("SYNTHETIC_API_KEY") or None
    if not key and (not base or "//api.synthetic.new" in base):
        raise ConfigurationError("there is no key; give api_key, or set SYNTHETIC_API_KEY")
    if (key, base) not in clients:
        client = clients[key, base] = SyntheticClient(key, base_url=base)
        if not key:
            client._api_key = None  # the environment's is not for every host
    return name, Entry(clients[key, base], model, key)


def ask(entries: List[Entry], path: str, asked: JSONObject, caller: Any) -> None:
    """Ask the entries in turn, until one answers, and pass its answer on.

    Args:
        caller: its `send` takes a whole answer, its `send_events` a part of a stream, b"" for
            the end of one; has_begun says whether either was called, has_left whether it is
            gone. `clock` bounds the call; usage, a dict, and errors, a list of those that
            another entry makes up for, are filled in.

    Raises:
        SyntheticError: none answered, or one that had begun broke off.
    """
    now = time.monotonic()
    ordered = sorted(entries, key=lambda entry: max(entry.rests_until - now, 0))
    options = {"clock": caller.clock, "max_retries": 0}
    for entry in ordered:
        try:
            payload, relay = {**asked, "model": entry.model}, partial(_relay, entry, asked, caller)
            entry.client._ask("POST", path, payload, options, relay)
            return
        except SyntheticError as error:
            if caller.has_left or not _is_failure(error):
                raise
            entry.rest(error)
            if caller.has_begun or entry is ordered[-1]:
                raise
            caller.errors.append(error)


def _is_failure(error: SyntheticError) -> bool:
    """Say whether another entry may do better: after 429, 5xx, and no answer or nonsense."""
    if isinstance(error, APIStatusError):
        return error.status_code == 429 or error.status_code >= 500
    return not isinstance(error, ConfigurationError)


def _relay(
    entry: Entry, asked: JSONObject, caller: Any, response: Any, meta: Any, call: Any
) -> None:
    """Pass an answer on."""
    kind, streams = meta.headers.get("content-type", "").lower(), asked.get("stream")
    try:
        if streams and "json" not in kind and "html" not in kind:
            expected = asked["n"] if isinstance(asked.get("n"), int) else 1
            for events in read_events(response, expected, caller.usage):
                caller.send_events(entry.mask(events))
            caller.send_events(b"")
            return
        raw = response.read(MAX_RESPONSE_BYTES)
        answer = parse_answer(raw)
        if streams or not isinstance(answer, dict):
            raise ResponseError("the answer is no object, or no stream where one was wanted")
        caller.usage.update(_read_usage(answer))
        caller.send(200, entry.mask(raw))
    finally:
        response.close()  # where it is not at its end


def read_events(response: Any, expected: int, usage: JSONObject) -> Iterator[bytes]:
    """Yield a stream's events as they are, as soon as they are whole; fill in the usage.

    `expected` is how many choices have to finish where the stream does not end by [DONE].

    Raises:
        SyntheticError: an error came in place of the first event, or the answer is not whole.
    """
    rest, last, missing, is_first = b"", b"", expected, True
    for data in iter(response.read1, b""):
        begin, rest = max(len(rest) - 3, 0), rest + data
        end = max([found.end() for found in _EVENT_END.finditer(rest, begin)], default=0)
        if not end:
            if len(rest) > MAX_RESPONSE_BYTES:
                raise ResponseError("an event of the stream is too long")
            continue
        events, rest = rest[:end], rest[end:]
        for event in SSEParser().feed(events) if is_first else ():
            raise_fault(parse_body(event.data), flat=event.event == "error")
        is_first = False
        yield events
        missing -= len(_FINISHED.findall(events))
        last = events if _USAGE.search(events) else last
        if _DONE.search(events):
            missing = 0
            break
    if missing > 0 or is_first:
        raise StreamInterruptedError("the stream ended before the answer was whole")
    response.finish()
    for event in SSEParser().feed(last):
        usage.update(_read_usage(parse_body(event.data)))


def _read_usage(answer: Any) -> JSONObject:
    """Return the counts of tokens that an answer or a chunk tells, {} for none."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = usage.items() if isinstance(usage, dict) else ()
    return {name: count for name, count in counts if isinstance(count, int)}


def describe(error: SyntheticError) -> Tuple[int, JSONObject]:
    """Return the status and the body, in OpenAI's shape, that tell a caller of an error.

    They do not tell where the upstream is.
    """
    status, message, code = 502, "the model's server cannot be reached, or broke off", None
    if isinstance(error, APIStatusError):
        body, said = error.body, quote(error.message)
        if error.status_code >= 400 and error.status_code != 407:  # that is our way's, not theirs
            status, code = error.status_code, error.code
        if isinstance(body, dict) and isinstance(body.get("error"), dict):
            return status, body
        message = (error.message if isinstance(body, dict) else said) or f"status {status}"
    elif isinstance(error, ConfigurationError):
        status, message = 400, str(error)
    elif isinstance(error, ResponseError):
        message = "the model's server answered, but not with what the API promises"
    elif isinstance(error, APITimeoutError) and error.phase == "silence":
        status, message = 504, "the model's server is silent"
    kind = "invalid_request_error" if status < 500 else "api_error"
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def summarize(error: SyntheticError) -> str:
    """Return what a log may hold of an error: what a server said can be content."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, APIConnectionError) else name
