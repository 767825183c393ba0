# SPDX-License-Identifier: MIT
"""What is made of an answer: an object, a stream, or an error.

Strategy: a reader takes the open Response, its Meta and the Call that it answers; it reads the
body to its end, or hands it to a ChatStream, and raises what is not as the API promises.
`Call.complete` goes over each error before the user sees it.
"""

import re
from functools import partial
from typing import Any, List, NamedTuple, Optional, Sequence, Type, TypeVar

from . import retry
from .errors import (
    APIStatusError, ResponseError, SyntheticError, masked, parse_answer, parse_body, quote, scrub,
    spellings, status_error
)
from .http1 import Request, Response
from .request import SECRET_HEADERS
from .schema import ChatCompletion, EmbeddingResponse, Meta, Quotas
from .stream import ChatStream, Whole
from .wire import JSONObject, WireObject, read_list

_MAX_ERROR_BYTES = 1024 * 1024
_A = TypeVar("_A", ChatCompletion, EmbeddingResponse, Quotas)
_B = TypeVar("_B", bound=WireObject)


class Call(NamedTuple):
    """One call, checked and ready to be sent."""

    request: Request
    max_retries: int
    max_bytes: int  # of a whole answer, or of one event of a stream
    secrets: Sequence[str]  # what no error may show, beside what the headers hold

    def complete(self, meta: Optional[Meta], error: SyntheticError) -> None:
        """Add to an error what its answer's headers say, and hide the secrets in both."""
        found = [self.request.headers.get(name, "") for name in SECRET_HEADERS]
        secrets = spellings(*self.secrets, *(value.rpartition(" ")[2] for value in found))
        if meta is not None:
            error.attempts = meta.attempts
            if isinstance(error, APIStatusError):
                retry.add_headers(error, meta)
            vars(meta).update(masked(vars(meta), secrets))
        scrub(error, secrets)


def read_json(response: Response, meta: Meta, call: Call) -> Any:
    """Return a whole answer's JSON, None where it is empty."""
    return parse_answer(response.read(call.max_bytes))


def _read_object(needs: str, response: Response, meta: Meta, call: Call) -> JSONObject:
    """Return a whole answer that is an object, with a list at the key `needs`, if any."""
    data = read_json(response, meta, call)
    if not isinstance(data, dict) or needs and not isinstance(data.get(needs), list):
        said = "it is empty" if data is None else quote(data)
        wanted = f"an object with a list {needs!r}" if needs else "an object"
        raise ResponseError(f"the answer is not {wanted}: {said}; check base_url", body=data)
    return data


def read_as(kind: Type[_A], needs: str, response: Response, meta: Meta, call: Call) -> _A:
    """Return a whole answer as an object of the class `kind`; it needs the list `needs`."""
    made = kind.from_dict(_read_object(needs, response, meta, call))
    made.meta = meta
    return made


def read_items(
    kind: Type[_B], key: str, response: Response, meta: Meta, call: Call
) -> List[_B]:
    """Return the objects in the list at `key` of a whole answer."""
    return read_list(kind, key, _read_object(key, response, meta, call)[key])


def read_stream(choices: Any, response: Response, meta: Meta, call: Call) -> ChatStream:
    """Return the stream of an answer; `choices` is the `n` that was asked for."""
    kind = meta.headers.get("content-type", "").lower()
    if "json" not in kind and "html" not in kind:
        return ChatStream(
            response, meta, expected_choices=choices if isinstance(choices, int) else 1,
            max_event_bytes=call.max_bytes, on_error=partial(call.complete, meta))
    answer = read_as(ChatCompletion, "choices", response, meta, call)
    return ChatStream(Whole(answer.to_dict()), meta, on_error=partial(call.complete, meta))


def read_refusal(response: Response, meta: Meta) -> APIStatusError:
    """Return the error for an answer whose status is not 2xx."""
    try:
        text = response.read(_MAX_ERROR_BYTES).decode("utf-8-sig", "replace")
    except SyntheticError:
        text = ""  # the status says enough
    hint, target = None, meta.headers.get("location")
    if 300 <= response.status < 400 and target:
        place = re.sub("//[^/]*@", "//", target).partition("?")[0]
        hint = f"It redirects to {quote(place)}, which is not followed; check base_url"
    error = status_error(response.status, parse_body(text), hint=hint)
    retry.add_headers(error, meta)
    return error
