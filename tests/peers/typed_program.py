# SPDX-License-Identifier: MIT
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""A program that uses the whole of the typed API, for mypy --strict and pyright's strict mode.

It is checked, not run: .ci/run wants no error from it. The lines marked `type: ignore` are
mistakes that a checker must see: were one let through, its mark would be reported as unused.
"""
import copy
import json
import pickle
import ssl
from concurrent.futures import Executor
from datetime import datetime
from decimal import Decimal
from typing import Any, Dict, Iterator, List, Mapping, Optional, Union

from typing_extensions import assert_type

import synthetic_client
from synthetic_client import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ChatCompletion,
    ChatCompletionChunk,
    ChatResult,
    ChatStream,
    Choice,
    ChunkChoice,
    ConfigurationError,
    ConflictError,
    ContextWindowExceededError,
    Delta,
    Embedding,
    EmbeddingResponse,
    FunctionCall,
    InternalServerError,
    Message,
    Model,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    Quotas,
    RateLimitError,
    ResponseError,
    SearchResult,
    StreamInterruptedError,
    SyntheticClient,
    SyntheticError,
    ToolCall,
    ToolCallDelta,
    UnprocessableEntityError,
    Usage,
    completion,
)
from synthetic_client.sse import ServerSentEvent, SSEParser

TOOLS: List[Dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def every_setting() -> SyntheticClient:
    """Make clients with each argument of the constructor."""
    SyntheticClient(ssl_context=ssl.create_default_context())
    return SyntheticClient(
        "syn_key",
        base_url="https://api.synthetic.new/openai/v1",
        model="syn:large:text",
        timeout=60.0,
        connect_timeout=5,
        deadline=120,
        max_retries=3,
        headers={"X-Team": "research"},
        proxy="",
        ca_file="/etc/ssl/corporate.pem",
        allow_http=False,
        max_response_bytes=1 << 20,
    )


def every_parameter(client: SyntheticClient) -> ChatCompletion:
    """Make one call with each parameter of a request."""
    return client.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        model="hf:zai-org/GLM-4.7",
        temperature=0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        max_tokens=100,
        max_completion_tokens=200,
        frequency_penalty=0.1,
        presence_penalty=-0.1,
        repetition_penalty=1.1,
        stop=["\n\n", "END"],
        n=2,
        seed=7,
        logit_bias={"50256": -100},
        logprobs=True,
        top_logprobs=3,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        response_format={"type": "json_object"},
        reasoning_effort="low",
        user="user-1",
        extra_body={"enable_thinking": None},
        extra_headers={"X-Trace": "1"},
        timeout=30.0,
        deadline=60.0,
        max_retries=0,
    )


def nothing_sent(client: SyntheticClient, limit: Optional[int], heat: Optional[float]) -> str:
    """Pass on settings that may be None, which means 'not sent'."""
    reply = client.chat("Hello", max_tokens=limit, temperature=heat, stop=None, tools=None)
    return reply.text


def read_completion(reply: ChatCompletion) -> None:
    """Read each attribute of a whole answer."""
    assert_type(reply.id, Optional[str])
    assert_type(reply.object, Optional[str])
    assert_type(reply.created, Optional[int])
    assert_type(reply.model, Optional[str])
    assert_type(reply.system_fingerprint, Optional[str])
    assert_type(reply.service_tier, Optional[str])
    assert_type(reply.choices, List[Choice])
    assert_type(reply.text, str)
    assert_type(reply.extra, Dict[str, Any])
    choice = reply.choices[0]
    assert_type(choice.index, Optional[int])
    assert_type(choice.finish_reason, Optional[str])
    assert_type(choice.message, Message)
    message = choice.message
    assert_type(message.role, Optional[str])
    assert_type(message.content, Optional[str])
    assert_type(message.reasoning_content, Optional[str])
    assert_type(message.refusal, Optional[str])
    assert_type(message.tool_calls, List[ToolCall])
    if choice.logprobs is not None:
        print(choice.logprobs["content"])
    assert_type(reply.usage, Optional[Usage])
    if reply.usage is not None:
        assert_type(reply.usage.prompt_tokens, Optional[int])
        assert_type(reply.usage.completion_tokens, Optional[int])
        assert_type(reply.usage.total_tokens, Optional[int])
        print(reply.usage.prompt_tokens_details, reply.usage.completion_tokens_details)


def read_meta(reply: Union[ChatCompletion, ChatStream]) -> Optional[Decimal]:
    """Read how an answer came, and the quotas that came with it."""
    meta = reply.meta
    assert_type(meta.status, int)
    assert_type(meta.attempts, int)
    assert_type(meta.request_id, Optional[str])
    assert_type(meta.headers["content-type"], str)
    assert_type(meta.quotas, Optional[Quotas])
    if meta.quotas is None or meta.quotas.weekly_token_limit is None:
        return None
    if meta.quotas.rolling_five_hour_limit is not None:
        assert_type(meta.quotas.rolling_five_hour_limit.next_tick_at, Optional[datetime])
        assert_type(meta.quotas.rolling_five_hour_limit.limited, Optional[bool])
    return meta.quotas.weekly_token_limit.remaining_credits


def as_mapping(reply: ChatCompletion) -> str:
    """Read an answer as a mapping, and through JSON and back."""
    text: str = reply["choices"][0]["message"]["content"]
    if "service_tier" in reply and reply.get("nope", "default") == "default":
        text += reply.to_json() + reply.to_json(indent=2)
    again = ChatCompletion.from_dict(json.loads(reply.to_json()))
    assert_type(again, ChatCompletion)
    assert_type(Quotas.from_dict({}), Quotas)
    data: Dict[str, Any] = again.to_dict()
    return text + str(data)


def read_stream(client: SyntheticClient) -> ChatCompletion:
    """Read a stream by its chunks, then as a whole."""
    options = {"include_usage": True}
    with client.stream_chat("Hello", temperature=0.5, stream_options=options) as stream:
        assert_type(stream, ChatStream)
        for chunk in stream:
            assert_type(chunk, ChatCompletionChunk)
            assert_type(chunk.text, str)
            assert_type(chunk.choices, List[ChunkChoice])
            assert_type(chunk.usage, Optional[Usage])
            for choice in chunk.choices:
                assert_type(choice.delta, Delta)
                assert_type(choice.delta.content, Optional[str])
                assert_type(choice.delta.reasoning_content, Optional[str])
                assert_type(choice.delta.tool_calls, List[ToolCallDelta])
                for piece in choice.delta.tool_calls:
                    assert_type(piece.index, Optional[int])
                    assert_type(piece.function.arguments, Optional[str])
        assert_type(stream.partial, ChatCompletion)
        return stream.completion()


def many(client: SyntheticClient, questions: Iterator[str], pool: Executor) -> List[str]:
    found: List[str] = []
    results = client.chat_many(questions, model="syn:large:text", workers=8, executor=pool, n=1)
    for result in results:
        assert_type(result, ChatResult)
        if result.completion is None:
            found.append(f"{result.index}: {result.request} {result.error}")
        else:
            found.append(result.completion.text)
        results.close()
    client.chat_many(["a", [{"role": "user", "content": "b"}], {"messages": "c", "seed": 1}])
    return found


def texts(client: SyntheticClient) -> Iterator[str]:
    """Yield the pieces of text of a stream that is closed by hand."""
    stream = client.stream_chat([{"role": "user", "content": "Hello"}])
    pieces = stream.texts()
    assert_type(next(pieces), str)
    yield from pieces
    stream.close()


def tool_loop(client: SyntheticClient, question: str) -> str:
    """Go round between the model and its tool until it answers in words."""
    messages: List[Union[Mapping[str, Any], Message]] = [{"role": "user", "content": question}]
    while True:
        reply = client.chat(messages, tools=TOOLS, tool_choice="auto")
        message = reply.choices[0].message
        if not message.tool_calls:
            return reply.text
        messages.append(message)
        for call in message.tool_calls:
            assert_type(call.id, Optional[str])
            assert_type(call.function, FunctionCall)
            assert_type(call.function.name, Optional[str])
            city = call.function.parse().get("city", "")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"{city}: sun"})


def plain_messages(client: SyntheticClient) -> None:
    """Pass messages whose types are narrower than the parameter's."""
    dicts: List[Dict[str, str]] = [{"role": "user", "content": "Hello"}]
    objects: List[Message] = [client.chat(dicts).choices[0].message]
    param: Dict[str, Any] = objects[0].to_param()
    client.chat(objects)
    client.chat((*dicts, *objects, param))


def like_litellm(stream: bool) -> str:
    """Call completion() with each kind of `stream`."""
    messages = [{"role": "user", "content": "Hello"}]
    model = "synthetic/hf:zai-org/GLM-4.7"
    assert_type(completion(model, messages), ChatCompletion)
    assert_type(completion(model=model, messages=messages, stream=False), ChatCompletion)
    assert_type(completion(model, messages, stream=True), ChatStream)
    either = completion(model, messages, stream=stream, temperature=0, max_tokens=5)
    assert_type(either, Union[ChatCompletion, ChatStream])
    completion(model, messages, api_key="syn_key", api_base="http://127.0.0.1:1", num_retries=0)
    completion(model, messages, base_url="http://127.0.0.1:1", max_retries=0, timeout=1)
    return either.text if isinstance(either, ChatCompletion) else "".join(either.texts())


def rest_of_the_service(client: SyntheticClient) -> Optional[Decimal]:
    """Call what there is beside chat."""
    models = client.models(timeout=5)
    assert_type(models, List[Model])
    assert_type(models[0].context_length, Optional[int])
    assert_type(models[0].supported_features, Optional[List[str]])
    vectors = client.embeddings(["a", "b"], model="hf:a/b", dimensions=64, extra_body={"x": 1})
    assert_type(vectors, EmbeddingResponse)
    assert_type(vectors.data, List[Embedding])
    assert_type(vectors.data[0].embedding, Optional[List[float]])
    quotas = client.quotas(max_retries=0)
    assert_type(quotas, Quotas)
    assert_type(quotas.meta.status, int)
    found = client.search("tides", deadline=9)
    assert_type(found, List[SearchResult])
    assert_type(found[0].published, Optional[datetime])
    return models[0].pricing.prompt if models[0].pricing else None


def other_endpoints(client: SyntheticClient) -> int:
    """Call what has no method."""
    answer = client.request("POST", "embeddings", {"model": "m", "input": ["a"]}, timeout=5)
    client.request("GET", "/v2/quotas", extra_headers={"X-A": "1"}, deadline=9, max_retries=1)
    return len(answer["data"])


def caught(client: SyntheticClient) -> str:
    """Catch each error and read what it carries."""
    try:
        return client.chat("Hello").text
    except ContextWindowExceededError as error:
        assert_type(error.message, str)
        return error.message
    except (BadRequestError, UnprocessableEntityError) as error:
        assert_type(error.param, Optional[str])
        return f"{error.code} {error.type} {error.body}"
    except (AuthenticationError, PaymentRequiredError, PermissionDeniedError):
        return "key"
    except (NotFoundError, ConflictError):
        return "model"
    except RateLimitError as error:
        assert_type(error.retry_after, Optional[float])
        return f"again in {error.retry_after} s, {error.quotas}"
    except InternalServerError as error:
        assert_type(error.request_id, Optional[str])
        return error.headers.get("retry-after", "")
    except APIStatusError as error:
        assert_type(error.status_code, int)
        return str(error.status_code)
    except APITimeoutError as error:
        assert_type(error.phase, str)
        return error.phase
    except StreamInterruptedError as error:
        return error.partial.text if error.partial else ""
    except APIConnectionError as error:
        assert_type(error.attempts, int)
        return str(error.attempts)
    except ResponseError as error:
        return str(error.body)
    except ConfigurationError as error:
        value_error: ValueError = error
        return str(value_error)
    except SyntheticError as error:
        return str(error.__cause__)


def travel(client: SyntheticClient, reply: ChatCompletion) -> SyntheticClient:
    """Copy and pickle what can be."""
    same: ChatCompletion = pickle.loads(pickle.dumps(copy.deepcopy(reply)))
    made = Message(role="user", content=same.text)
    made.content = "changed"
    with pickle.loads(pickle.dumps(client)) as again:
        assert isinstance(again, SyntheticClient)
        return again


def with_block() -> str:
    """Close a client by `with` and by hand."""
    with SyntheticClient(model="syn:small:text") as client:
        text = client.chat("Hello").text
    client.close()
    return text + synthetic_client.__version__


def events(parser: SSEParser) -> List[ServerSentEvent]:
    """Feed the parser of event streams."""
    found = SSEParser(max_event_bytes=1 << 16).feed(b"data: 1\n\n") + parser.feed(b"")
    for event in found:
        assert_type(event.event + event.data + event.id, str)
        assert_type(event.retry, Optional[int])
    return found


def mistakes(client: SyntheticClient) -> None:
    """Do what a checker must refuse."""
    client.chat("Hello", temprature=1)  # type: ignore[call-arg]
    client.chat("Hello", temperature="hot")  # type: ignore[arg-type]
    client.chat("Hello", max_tokens=1.5)  # type: ignore[arg-type]
    client.chat("Hello", stop=3)  # type: ignore[arg-type]
    client.chat("Hello", stream=True)  # type: ignore[call-arg]
    client.chat({"role": "user", "content": "Hello"})  # type: ignore[arg-type]
    client.chat(["Hello", 1])  # type: ignore[list-item]
    client.chat()  # type: ignore[call-arg]
    client.models(n=1)  # type: ignore[call-arg]
    client.embeddings("Hello")  # type: ignore[call-arg]
    client.search("tides").results  # type: ignore[attr-defined]  # noqa: B018
    client.stream_chat("Hello", top_kk=1)  # type: ignore[call-arg]
    client.chat_many(["Hello"], wokers=1)  # type: ignore[call-arg]
    client.chat_many(5)  # type: ignore[arg-type]
    client.chat("Hello").choices[0].message.content.upper()  # type: ignore[union-attr]
    client.chat("Hello").choises  # type: ignore[attr-defined]  # noqa: B018
    completion("m", "Hello", stream=True).choices  # type: ignore[attr-defined]  # noqa: B018
    completion("m", "Hello", temprature=1)  # type: ignore[call-overload]
    SyntheticClient(api_kee="k")  # type: ignore[call-arg]
    SyntheticClient("k", "http://127.0.0.1")  # type: ignore[call-arg]
