# SPDX-License-Identifier: MIT
"""Everything that can go wrong, and what each error carries.

SyntheticError
├── ConfigurationError (also ValueError)      nothing was sent: a setting or argument is wrong
├── APIConnectionError                        DNS, refused, reset, TLS, proxy
│   ├── APITimeoutError (also TimeoutError)   .phase is "connect", "silence" or "deadline"
│   └── StreamInterruptedError                the body ended or broke before it was whole
├── ResponseError                             answered, but not with what the API promises
└── APIStatusError                            answered with a status that is not 2xx
    ├── BadRequestError 400 ── ContextWindowExceededError
    ├── AuthenticationError 401   PaymentRequiredError 402   PermissionDeniedError 403
    ├── NotFoundError 404         ConflictError 409          UnprocessableEntityError 422
    ├── RateLimitError 429
    └── InternalServerError 5xx

Strategy: an error is made of one line of message and of keyword attributes, which is what
lets each of them pickle. `status_error` turns a status and a body into the right class;
`raise_fault` does so for an error object inside an answer whose status was 200. `scrub` goes
over an error before it leaves, so that a server's echo of the key goes no further.
"""

import json
import re
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Type

_decode = json.JSONDecoder(strict=False).decode  # control characters in texts were seen
_CUT = "[...]"  # ends a quotation that was cut short
_LONGEST_QUOTE = 300  # characters of a server's text within our one line
_DEEPEST = 50  # levels of a body that are kept in an error, which Python can then recurse through
_CONTEXT_TEXTS = re.compile(r"longer than the model's context length|context limit exceeded", re.I)
_CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error")


class SyntheticError(Exception):
    """Any error of this package; `attempts` requests had been made, `partial` had arrived."""

    attempts: int = 0
    partial: Any = None  # a stream's ChatCompletion so far

    def __init__(self, line: str = "", **details: Any) -> None:
        super().__init__(line)
        vars(self).update(details)


class ConfigurationError(SyntheticError, ValueError):
    """A setting or an argument has a wrong value; nothing was sent."""


class APIConnectionError(SyntheticError):
    """No answer could be had; `retryable` where the server cannot have begun to give one."""

    retryable: bool = False


class APITimeoutError(APIConnectionError, TimeoutError):
    """A limit in time was reached: `phase` is "connect", "silence" or "deadline"."""

    phase: str = "silence"


class StreamInterruptedError(APIConnectionError):
    """The answer's body ended or broke before it was whole."""


class ResponseError(SyntheticError):
    """The answer is not what the API promises; `body` holds what could be read of it."""

    body: Any = None


class APIStatusError(SyntheticError):
    """The server refused; `message` is its own text, `body` all of what it said."""

    status_code: int = 0
    body: Any = None
    message: str = ""
    code: Any = None
    type: Optional[str] = None
    param: Optional[str] = None
    headers: Mapping[str, str] = {}
    request_id: Optional[str] = None
    quotas: Any = None  # a schema.Quotas
    retry_after: Optional[float] = None  # seconds


class BadRequestError(APIStatusError):
    """400: the request itself is wrong."""


class ContextWindowExceededError(BadRequestError):
    """400: the messages are longer than the model's context."""


class AuthenticationError(APIStatusError):
    """401: the key is missing or wrong."""


class PaymentRequiredError(APIStatusError):
    """402: no credit is left and no subscription covers the call."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this, or a gateway forbids it."""


class NotFoundError(APIStatusError):
    """404: no such model or path; pinned models are retired in time."""


class ConflictError(APIStatusError):
    """409: another request is in the way."""


class UnprocessableEntityError(APIStatusError):
    """422: the request is well-formed and still not accepted."""


class RateLimitError(APIStatusError):
    """429: too many requests, or a quota is used up."""


class InternalServerError(APIStatusError):
    """5xx: the service or something before it failed."""


_CORRECT, _LATER = "Correct the request", "Try again later"
_BY_STATUS: Dict[int, Tuple[Type[APIStatusError], str]] = {  # and what to do
    400: (BadRequestError, _CORRECT),
    401: (AuthenticationError, "Check SYNTHETIC_API_KEY or api_key="),
    402: (PaymentRequiredError, "Add credit or a subscription: https://synthetic.new/billing"),
    403: (PermissionDeniedError, "Check what the key may do, and any gateway on the way"),
    404: (NotFoundError, "Check base_url and the model's id; GET /models lists them"),
    407: (APIStatusError, "Check the proxy's user and password (proxy=, http_proxy)"),
    408: (APIStatusError, _LATER),
    409: (ConflictError, _LATER),
    413: (APIStatusError, "Shorten the messages or shrink the images"),
    422: (UnprocessableEntityError, _CORRECT),
    429: (RateLimitError, "Send fewer at a time, or try again later"),
}
_OVERFLOW = (
    ContextWindowExceededError, "Shorten the messages or choose a model with a longer context")


def spellings(*secrets: str) -> Sequence[str]:
    """Return the secrets as they may stand in a text, the longest first, for `scrub`."""
    plain = [secret for secret in secrets if len(secret) > 3]
    quoted = ["".join(c if c.isalnum() or c in "-._~" else f"%{ord(c):02X}" for c in secret)
              for secret in plain]  # as URLs have it
    escaped = [json.dumps(secret)[1:-1] for secret in plain]
    return sorted(plain + quoted + escaped, key=len, reverse=True)


def scrub(error: BaseException, secrets: Sequence[str]) -> None:
    """Mask the secrets, and any URL's user:password, in all that an error and its causes hold."""
    found: Optional[BaseException] = error
    while found is not None:
        found.args = masked(found.args, secrets)
        vars(found).update(masked(vars(found), secrets))
        found = found.__cause__ or found.__context__


def masked(value: Any, secrets: Sequence[str], levels: int = _DEEPEST) -> Any:
    """Return `value` without the secrets, and without what is nested deeper than `levels`."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
            for size in range(len(secret) - 1, 3, -1) if _CUT in value else ():
                value = value.replace(secret[:size] + _CUT, "***" + _CUT)
        return re.sub(r"//[^/@\s]*@", "//", value)
    if isinstance(value, dict):
        pairs = [(masked(key, secrets), masked(item, secrets, levels - 1))
                 for key, item in value.items() if levels]
        return type(value)(pairs)
    if type(value) in (list, tuple):
        return type(value)(masked(item, secrets, levels - 1) for item in value if levels)
    if hasattr(value, "from_dict"):  # the quotas, from a header
        return value.from_dict(masked(value.to_dict(), secrets))
    return value


def quote(said: Any) -> str:
    """Return a server's text or JSON as part of one line: no breaks, of bounded length."""
    text = said if isinstance(said, str) else json.dumps(masked(said, ()))
    title = re.search(r"<title>(.*?)</title>", text[:100_000], re.I | re.S)
    text = title.group(1) if title else text
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:4000]).split())
    is_long = len(line) > _LONGEST_QUOTE or len(text) > 4000
    return line[:_LONGEST_QUOTE] + _CUT if is_long else line


def parse_body(text: str) -> Any:
    """Return a body as JSON where it is JSON, else as its text."""
    try:
        return _decode(text)
    except (ValueError, RecursionError):
        return text


def parse_answer(raw: bytes) -> Any:
    """Return a whole answer's JSON, None where it is empty; an error object in it is raised."""
    if not raw:
        return None
    text = raw.decode("utf-8-sig", "replace")
    try:
        data = _decode(text)
    except (ValueError, RecursionError) as error:
        raise ResponseError(
            f"the answer is not JSON: {quote(text)}; check base_url", body=text) from error
    raise_fault(data)
    return data


def status_error(status: int, body: Any, hint: Optional[str] = None) -> APIStatusError:
    """Return the error for `status`, with what `body` (JSON or text) says of it."""
    message, fault = _read_fault(body)
    code, kind = fault.get("code"), fault.get("type")
    made, advice = _BY_STATUS.get(
        status, (InternalServerError, _LATER) if status >= 500 else (APIStatusError, _CORRECT))
    if status == 400 and (code in _CONTEXT_CODES or kind in _CONTEXT_CODES
                          or _CONTEXT_TEXTS.search(message)):
        made, advice = _OVERFLOW
    said = quote(message).rstrip(".") or "no reason given"
    return made(
        f"HTTP {status}: {said}. {hint or advice}.", status_code=status, body=body,
        message=message, code=code, type=kind, param=fault.get("param")
    )


def raise_fault(body: Any, flat: bool = False) -> None:
    """Raise the error that an answer with status 200 holds, if any.

    `flat`: the whole body is the error, as after `event: error`.
    """
    if not (flat or isinstance(body, dict) and body.get("error")):
        return
    message, fault = _read_fault(body)
    number = str(fault.get("code"))
    if re.fullmatch("[45][0-9][0-9]", number):
        raise status_error(int(number), body)
    said = quote(message) or "no text"
    raise ResponseError(f"the answer holds an error: {said}. Try again later.", body=body)


def _read_fault(body: Any) -> Tuple[str, Dict[str, Any]]:
    """Return the text and the object that describe the fault, in any shape met in the wild."""
    body = masked(body, ())  # which bounds its depth
    if not isinstance(body, dict):
        return (body if isinstance(body, str) else json.dumps(body) if body else ""), {}
    fault = body.get("error")
    inner = fault if isinstance(fault, dict) else body
    for text in (fault, inner.get("message"), inner.get("detail"), inner.get("error")):
        if isinstance(text, str) and text:
            return text, inner
    if isinstance(body.get("detail"), list):  # FastAPI's 422: one object for each field
        fields = [item for item in body["detail"] if isinstance(item, dict)]
        return "; ".join(f"{item.get('loc')}: {item.get('msg')}" for item in fields), inner
    return (json.dumps(fault or body) if body else ""), inner
