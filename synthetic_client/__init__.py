# SPDX-License-Identifier: MIT
"""A client for Synthetic (https://synthetic.new) that needs nothing but Python's own library.

    from synthetic_client import SyntheticClient

    client = SyntheticClient()  # the key is in $SYNTHETIC_API_KEY
    for text in client.stream_chat("Hello!", model="syn:large:text").texts():
        print(text, end="", flush=True)
"""

from typing import TYPE_CHECKING, Any, Optional, Union, overload

from .client import SyntheticClient
from .errors import (
    APIConnectionError, APIStatusError, APITimeoutError, AuthenticationError, BadRequestError,
    ConfigurationError, ConflictError, ContextWindowExceededError, InternalServerError,
    NotFoundError, PaymentRequiredError, PermissionDeniedError, RateLimitError, ResponseError,
    StreamInterruptedError, SyntheticError, UnprocessableEntityError
)
from .request import Messages, documented as _documented
from .schema import (
    ChatCompletion, ChatCompletionChunk, ChatResult, Choice, ChunkChoice, Delta, Embedding,
    EmbeddingResponse, FunctionCall, Message, Meta, Model, Pricing, QuotaMeter, Quotas,
    RollingFiveHourLimit, SearchQuotas, SearchResult, ToolCall, ToolCallDelta, Usage,
    WeeklyTokenLimit
)
from .stream import ChatStream

if TYPE_CHECKING:
    from typing_extensions import Literal, Unpack
    from .request import CompletionParams

__version__ = "0.1.0"

__all__ = [
    "APIConnectionError", "APIStatusError", "APITimeoutError", "AuthenticationError",
    "BadRequestError", "ChatCompletion", "ChatCompletionChunk", "ChatResult", "ChatStream",
    "Choice", "ChunkChoice", "ConfigurationError", "ConflictError", "ContextWindowExceededError",
    "Delta", "Embedding", "EmbeddingResponse", "FunctionCall", "InternalServerError",
    "Message", "Meta", "Model", "NotFoundError", "PaymentRequiredError",
    "PermissionDeniedError", "Pricing", "QuotaMeter", "Quotas", "RateLimitError",
    "ResponseError", "RollingFiveHourLimit", "SearchQuotas", "SearchResult",
    "StreamInterruptedError", "SyntheticClient", "SyntheticError", "ToolCall", "ToolCallDelta",
    "UnprocessableEntityError", "Usage", "WeeklyTokenLimit", "completion"
]


@overload
def completion(
    model: str, messages: Messages, *, stream: "Literal[False]" = False,
    api_key: Optional[str] = None, base_url: Optional[str] = None,
    **params: "Unpack[CompletionParams]"
) -> ChatCompletion: ...
@overload
def completion(
    model: str, messages: Messages, *, stream: "Literal[True]",
    api_key: Optional[str] = None, base_url: Optional[str] = None,
    **params: "Unpack[CompletionParams]"
) -> ChatStream: ...
@overload
def completion(
    model: str, messages: Messages, *, stream: Optional[bool],
    api_key: Optional[str] = None, base_url: Optional[str] = None,
    **params: "Unpack[CompletionParams]"
) -> Union[ChatCompletion, ChatStream]: ...


@_documented
def completion(
    model: str, messages: Messages, *, stream: Optional[bool] = False,
    api_key: Optional[str] = None, base_url: Optional[str] = None, **params: Any
) -> Union[ChatCompletion, ChatStream]:
    """Ask for an answer as LiteLLM's function of this name does on its synthetic/ route.

    The environment is read at each call; connections are kept between calls.

    Args:
        model: "synthetic/hf:owner/name", or without the route.
        messages: as in `SyntheticClient.chat`.
        stream: return a ChatStream instead of a ChatCompletion.
        api_key: else $SYNTHETIC_API_KEY.
        base_url: else $SYNTHETIC_BASE_URL; LiteLLM's name for it, api_base, is taken too,
            and num_retries for max_retries.
        {parameters}

    Raises:
        TypeError, ConfigurationError, APIStatusError, APIConnectionError, ResponseError:
            as in `SyntheticClient.chat`.
    """
    base = params.pop("api_base", None)
    retries = params.pop("num_retries", None)
    if params.get("max_retries") is None:
        params["max_retries"] = retries
    client = SyntheticClient(api_key, base_url=base_url or base)
    if stream is not None and not isinstance(stream, bool):
        raise TypeError(f"stream should be True or False, not {type(stream).__name__}")
    ask = client.stream_chat if stream else client.chat
    return ask(messages, model=model, **params)
