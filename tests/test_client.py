# SPDX-License-Identifier: MIT
"""The client: its settings, what exactly is sent, and what is refused before anything is sent."""
import contextlib
import copy
import inspect
import json
import os
import pickle
import re
import ssl
import sys
import threading
import types
import unittest

from . import synthetic_client as sc
from .server import CA_FILE, KEY, MODEL, Proxy, Server, answer, chunks, completion
from .test_schema import TOOLS, VLLM

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
# Every parameter, with values that must be sent as they are: zeros and empty ones too.
PARAMETERS = {
    "temperature": [0, 0.0, 0.7, 2], "top_p": [0.0, 1, 0.95], "top_k": [0, 40],
    "min_p": [0.0, 0.05], "max_tokens": [1, 4096], "max_completion_tokens": [1, 4096],
    "frequency_penalty": [0, -2.0, 2.0], "presence_penalty": [0, -2.0, 2.0],
    "repetition_penalty": [1.0, 1.1], "stop": ["\n", "", ["a", "b"], []], "n": [1, 3],
    "seed": [0, -1, 2 ** 40], "logit_bias": [{}, {"15043": -100, "2": 100}],
    "logprobs": [True, False], "top_logprobs": [0, 20], "tools": [[], [TOOL]],
    "tool_choice": ["auto", "none", {"type": "function", "function": {"name": "f"}}],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "json_object"},
                        {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}],
    "reasoning_effort": ["none", "low", "max"], "stream_options": [{"include_usage": True}],
    "user": ["", "u-1"],
}
WRONG_TYPES = [
    ("temperature", "0.5"), ("temperature", [1]), ("top_p", "1"), ("top_k", "4"), ("top_k", 1.5),
    ("min_p", "x"), ("max_tokens", "10"), ("max_tokens", 1.5), ("max_completion_tokens", "10"),
    ("frequency_penalty", "0"), ("presence_penalty", {}), ("repetition_penalty", "1"),
    ("stop", 3), ("stop", {}), ("n", "2"), ("seed", "x"), ("logit_bias", []),
    ("logit_bias", "x"), ("logprobs", "yes"), ("top_logprobs", "5"), ("tools", TOOL),
    ("tools", "f"), ("tool_choice", 3), ("tool_choice", True),
    ("parallel_tool_calls", "yes"), ("response_format", "json_object"), ("reasoning_effort", 3),
    ("stream_options", True), ("user", 3), ("extra_body", []), ("extra_body", "x"),
    ("extra_headers", []), ("extra_headers", {"X-A": 3}), ("timeout", "5"), ("deadline", "5"),
    ("n", True), ("temperature", True), ("extra_headers", {3: "b"}), ("timeout", True),
    ("max_retries", "1"), ("max_retries", 1.5), ("max_retries", True), ("model", 3),
    ("model", ["m"]),
]
WRONG_VALUES = [
    ("timeout", 0), ("timeout", -1), ("timeout", float("inf")), ("timeout", float("nan")),
    ("deadline", 0), ("deadline", -0.5), ("deadline", float("nan")), ("max_retries", -1),
    ("temperature", float("nan")), ("top_p", float("inf")), ("extra_headers", {"X-A": "a\nb"}),
    ("extra_headers", {"X A": "b"}), ("extra_headers", {"": "b"}), ("extra_headers", {"X:A": "b"}),
    ("extra_headers", {"Content-Length": "3"}), ("extra_body", {"stream": True}),
]
TYPOS = [("temperatur", "temperature"), ("topp", "top_p"), ("max_token", "max_tokens"),
         ("Temperature", "temperature"), ("tool", "tools"), ("stops", "stop"),
         ("reasoning", "reasoning_effort"), ("responseformat", "response_format"),
         ("extra_header", "extra_headers"), ("time_out", "timeout"), ("retries", "max_retries")]


@contextlib.contextmanager
def environment(**settings):
    """Set SYNTHETIC_* for a while; None takes one out."""
    before = dict(os.environ)
    for name, value in settings.items():
        os.environ.pop("SYNTHETIC_" + name, None)
        if value is not None:
            os.environ["SYNTHETIC_" + name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class ClientCase(unittest.TestCase):
    def serve(self, *answers):
        server = Server(list(answers) or None)
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        return server

    def refused(self, kind, action, *words):
        """The action raises one line that has the words, and is exactly of that kind of fault."""
        with self.assertRaises(kind) as caught:
            action()
        message = str(caught.exception)
        self.assertNotIn("\n", message)
        for word in words:
            self.assertIn(word, message)
        return message


class Settings(ClientCase):
    def make(self, *args, **options):
        client = sc.SyntheticClient(*args, **options)
        self.addCleanup(client.close)
        return client

    def sent(self, server, **options):
        """Make one call of a client with these options; return the request."""
        self.make(**options).chat("hi", model="m")
        return server.requests[-1]

    def test_key_argument_and_environment(self):
        """The key is the argument, else the environment's; an empty variable is none."""
        server = self.serve()
        with environment(API_KEY="from_env"):
            request = self.sent(server, base_url=server.base_url)
            self.assertEqual(request.headers["authorization"], "Bearer from_env")
            request = self.sent(server, base_url=server.base_url, api_key="given")
            self.assertEqual(request.headers["authorization"], "Bearer given")
        with environment(API_KEY=""):
            self.assertNotIn("authorization", self.sent(server, base_url=server.base_url).headers)

    def test_key_is_read_when_the_client_is_made(self):
        """A key that the environment gets later does not change a client."""
        server = self.serve()
        with environment(API_KEY="first"):
            client = self.make(base_url=server.base_url, model="m")
        with environment(API_KEY="second"):
            client.chat("hi")
        self.assertEqual(server.requests[0].headers["authorization"], "Bearer first")

    def test_key_is_stripped(self):
        """White space around a key, as files and shells leave it, is taken off."""
        server = self.serve()
        for key in (" k1 ", "k1\n", "\tk1\r\n"):
            request = self.sent(server, base_url=server.base_url, api_key=key)
            self.assertEqual(request.headers["authorization"], "Bearer k1")

    def test_bad_keys(self):
        """Keys with control or non-ASCII characters are refused without being shown."""
        for key in ("abc\ndefghi", "abc\rdefghi", "abc\0defghi", "abc\x7fdefghi", "abcdefgh\u00e9",
                    "abc\u2028defgh", "abcdefgh\u200b"):
            message = self.refused(sc.ConfigurationError, lambda: sc.SyntheticClient(key))
            self.assertNotIn("defgh", message)
            with environment(API_KEY=key.replace("\0", "\n")):
                message = self.refused(sc.ConfigurationError, sc.SyntheticClient)
                self.assertNotIn("defgh", message)

    def test_no_key_for_synthetic(self):
        """A call to Synthetic without a key is refused before anything is sent."""
        for base_url in (None, "https://api.synthetic.new/v1"):
            client = self.make(base_url=base_url, model="m", proxy="http://127.0.0.1:9")
            for call in (lambda: client.chat("hi"), lambda: client.stream_chat("hi")):
                self.refused(sc.ConfigurationError, call, "SYNTHETIC_API_KEY", "api_key")

    def test_what_needs_no_key(self):
        """The list of models needs no key: without one it is asked for, of Synthetic too."""
        client = self.make(proxy="http://127.0.0.1:9", max_retries=0)  # where nothing listens
        with self.assertRaises(sc.APIConnectionError):
            client.request("GET", "models")

    def test_base_url(self):
        """Trailing slashes and a pasted /chat/completions are taken off the base URL."""
        server = self.serve()
        for tail in ("", "/", "//", "/chat/completions", "/chat/completions/"):
            request = self.sent(server, base_url=server.base_url + tail)
            self.assertEqual(request.path, "/v1/chat/completions")
        request = self.sent(server, base_url=server.origin)
        self.assertEqual(request.path, "/chat/completions")
        request = self.sent(server, base_url=server.origin + "/a/b/openai/v1/")
        self.assertEqual(request.path, "/a/b/openai/v1/chat/completions")

    def test_base_url_from_the_environment(self):
        """The base URL is the argument, else the environment's, else Synthetic's."""
        server = self.serve()
        with environment(BASE_URL=server.base_url + "/"):
            self.assertEqual(self.sent(server).path, "/v1/chat/completions")
            given = self.make(base_url="https://x.example/v1")
            self.assertIn("'https://x.example/v1'", repr(given))
        for value in (None, ""):
            with environment(BASE_URL=value):
                self.assertIn("'https://api.synthetic.new/openai/v1'", repr(self.make()))

    def test_bad_base_urls(self):
        """A base URL that is none is refused, and what it held of a password is not shown."""
        for url in ("api.synthetic.new/openai/v1", "ftp://x.example/v1", "https://", "x", "/v1",
                    "https:///v1", "https://user:pa55word@x.example/v1", "http://[::1/v1",
                    "https://pa55word@x.example/v1", "https://x.example:port/v1",
                    "https://x.example:99999/v1", "https://x.example/v 1",
                    "https://x\n.example/v1", "https://x.example/v1?a=b",
                    "https://x.example/v1#pa55word"):
            for variable in (False, True):
                with self.subTest(url, variable=variable), \
                        environment(BASE_URL=url if variable else None):
                    message = self.refused(
                        sc.ConfigurationError,
                        lambda: sc.SyntheticClient("k", base_url=None if variable else url),
                        "base_url" if not variable else "")
                    self.assertNotIn("pa55word", message)

    def test_plain_http(self):
        """A key goes over plain http:// only to loopback hosts, or where allow_http says so."""
        server = self.serve()
        message = self.refused(
            sc.ConfigurationError,
            lambda: sc.SyntheticClient(KEY, base_url="http://x.example/v1", model="m",
                                       proxy="http://127.0.0.1:9").chat("hi"), "allow_http")
        self.assertNotIn(KEY, message)
        for host in ("127.0.0.1", "localhost"):
            self.sent(server, api_key=KEY, base_url="http://%s:%d/v1" % (host, server.port))
        with Proxy(to=server) as proxy:
            options = dict(base_url="http://x.example/v1", proxy=proxy.url, max_retries=0)
            self.sent(server, api_key=KEY, allow_http=True, **options)
            self.assertEqual(server.requests[-1].headers["authorization"], "Bearer " + KEY)
            self.assertNotIn("authorization", self.sent(server, **options).headers)

    def test_headers(self):
        """headers go with every request; extra_headers of one call go before them."""
        server = self.serve()
        client = server.client(headers={"X-A": "1", "X-B": "2"})
        client.chat("hi", extra_headers={"x-b": "3", "X-C": "4"})
        client.request("GET", "models")
        first, second = (request.headers for request in server.requests)
        self.assertEqual([first["x-a"], first["x-b"], first["x-c"]], ["1", "3", "4"])
        self.assertEqual([second["x-a"], second["x-b"]], ["1", "2"])
        self.assertNotIn("x-c", second)

    def test_own_authorization(self):
        """A caller's header goes over the one that is made of the key, in any letter case."""
        server = self.serve()
        client = server.client(headers={"AUTHORIZATION": "Basic all"})
        client.chat("hi")
        client.chat("hi", extra_headers={"Authorization": "Basic one"})
        self.assertEqual([request.headers["authorization"] for request in server.requests],
                         ["Basic all", "Basic one"])

    def test_wrong_types_of_settings(self):
        """A setting of a wrong type is a TypeError that names it."""
        for name, value in (("api_key", 3), ("api_key", b"k"), ("base_url", 3), ("model", 3),
                            ("timeout", "5"), ("connect_timeout", "5"), ("deadline", "5"),
                            ("max_retries", "2"), ("max_retries", 2.5), ("headers", 3),
                            ("headers", {"X": 3}), ("headers", ["X: 3"]), ("proxy", 3),
                            ("ssl_context", 3), ("ca_file", 3), ("max_response_bytes", "1")):
            with self.subTest(name, value=value):
                self.refused(TypeError, lambda: sc.SyntheticClient(**{name: value}), name)

    def test_wrong_values_of_settings(self):
        """A setting of a wrong value is a ConfigurationError that names it."""
        for name, value in (("timeout", 0), ("timeout", -1), ("timeout", float("inf")),
                            ("timeout", float("nan")), ("connect_timeout", 0),
                            ("connect_timeout", float("inf")), ("deadline", 0), ("deadline", -1),
                            ("max_retries", -1), ("max_response_bytes", 0),
                            ("headers", {"X": "a\nb"}), ("headers", {"X A": "b"}),
                            ("ca_file", "/does/not/exist.pem"), ("ca_file", __file__),
                            ("proxy", "socks5://127.0.0.1:9"), ("proxy", "ftp://x")):
            options = {"base_url": "https://127.0.0.1:9/v1", "model": "m", name: value}
            with self.subTest(name, value=value):
                self.refused(sc.ConfigurationError,
                             lambda: sc.SyntheticClient("k", **options).chat("hi"), name)

    def test_trust_is_given_once(self):
        """ca_file beside an ssl_context, which would have to be changed, is refused."""
        context = ssl.create_default_context()
        self.refused(sc.ConfigurationError,
                     lambda: sc.SyntheticClient(ca_file=CA_FILE, ssl_context=context),
                     "ca_file", "ssl_context")

    def test_repr(self):
        """repr shows base URL and model and whether a key is set, and nothing of the key."""
        client = self.make(KEY, base_url="https://x.example/v1", model="hf:a/b")
        for part in ("SyntheticClient(", "'https://x.example/v1'", "'hf:a/b'", "api_key=set"):
            self.assertIn(part, repr(client))
        self.assertNotIn(KEY[4:12], repr(client))
        self.assertNotIn("api_key=set", repr(self.make()).replace("not set", ""))


class Models(ClientCase):
    def test_where_the_model_comes_from(self):
        """The model is the call's, else the client's, else the environment's."""
        server = self.serve()
        with environment(MODEL="env"):
            server.client(model="default").chat("hi", model="given")
            server.client(model="default").chat("hi")
            server.client(model=None).chat("hi")
        self.assertEqual([r.json["model"] for r in server.requests], ["given", "default", "env"])

    def test_route(self):
        """LiteLLM's route in front of a model is taken off, wherever the model comes from."""
        server = self.serve()
        for given, sent in (("synthetic/hf:a/b", "hf:a/b"), ("hf:a/b", "hf:a/b"),
                            ("synthetic/syn:large:text", "syn:large:text"),
                            ("syn:large:text", "syn:large:text"), ("hf:synthetic/b",) * 2,
                            ("hf:a/synthetic/b",) * 2, ("plain-name",) * 2):
            with environment(MODEL=given):
                server.client().chat("hi", model=given)
                server.client(model=given).stream_chat("hi").close()
                server.client(model=None).chat("hi")
            self.assertEqual([r.json["model"] for r in server.requests[-3:]], [sent] * 3)

    def test_no_model(self):
        """Without a model the error names the argument, the variable and an example."""
        server = self.serve()
        for value in (None, ""):
            with environment(MODEL=value):
                client = server.client(model=None)
                for call in (client.chat, client.stream_chat):
                    message = self.refused(ValueError, lambda: call("hi"), "model=",
                                           "SYNTHETIC_MODEL")
                    self.assertRegex(message, "(hf|syn):[a-z]")
                    self.assertIsInstance(sc.ConfigurationError(), ValueError)
        self.assertEqual(server.requests, [])


class ChatCase(ClientCase):
    def setUp(self):
        self.server = self.serve(lambda conn: (
            conn.send_sse(chunks("a")) if conn.json.get("stream") else conn.send_json(completion())
        ))

    def body(self, messages=MESSAGES, **params):
        """Return the JSON that chat sends; stream_chat must send the same, and its "stream"."""
        server = self.server
        server.client().chat(messages, **params)
        server.client().stream_chat(messages, **params).close()
        plain, streamed = (request.json for request in server.requests[-2:])
        self.assertEqual(streamed.pop("stream"), True)
        self.assertEqual(json.dumps(streamed, sort_keys=True), json.dumps(plain, sort_keys=True))
        return plain


class Requests(ChatCase):
    def test_smallest_request(self):
        """A call without parameters sends model and messages, in compact JSON, and no more."""
        self.server.client().chat("hi")
        (request,) = self.server.requests
        self.assertEqual((request.method, request.path), ("POST", "/v1/chat/completions"))
        self.assertEqual(request.json, {"model": MODEL, "messages": MESSAGES})
        self.assertEqual(len(request.body), len(json.dumps(request.json, separators=(",", ":"))))
        self.assertEqual(request.headers["content-type"], "application/json")
        self.assertEqual(request.headers["content-length"], str(len(request.body)))

    def test_every_parameter(self):
        """Every parameter is sent exactly as given: zeros, False and empty values too."""
        for name, values in PARAMETERS.items():
            for value in values:
                with self.subTest(name, value=value):
                    body = self.body(**{name: value})
                    self.assertEqual(json.dumps(body[name]), json.dumps(value))
                    self.assertEqual(set(body), {"model", "messages", name})

    def test_all_parameters_at_once(self):
        """All parameters travel together."""
        params = {name: values[-1] for name, values in PARAMETERS.items()}
        self.assertEqual(self.body(**params), dict(params, model=MODEL, messages=MESSAGES))

    def test_none_is_not_sent(self):
        """A parameter that is None is left out."""
        params = dict.fromkeys(PARAMETERS)
        params.update(extra_body=None, extra_headers=None, timeout=None, deadline=None,
                      max_retries=None, model=None)
        self.assertEqual(self.body(**params), {"model": MODEL, "messages": MESSAGES})

    def test_tuples(self):
        """Tuples go where lists go."""
        self.assertEqual(self.body(stop=("a", "b"))["stop"], ["a", "b"])
        self.assertEqual(self.body(tools=(TOOL,))["tools"], [TOOL])

    def test_unknown_names(self):
        """An unknown parameter is a TypeError that suggests the nearest known one."""
        client = self.server.client()
        for call in (client.chat, client.stream_chat):
            for typo, meant in TYPOS:
                with self.subTest(typo):
                    self.refused(TypeError, lambda: call("hi", **{typo: 1}),
                                 "did you mean '%s'?" % meant, "'%s'" % typo)
            message = self.refused(TypeError, lambda: call("hi", zzqqxx=1), "zzqqxx")
            self.assertNotIn("did you mean", message)
            self.refused(TypeError, lambda: call("hi", zzqqxx=None), "zzqqxx")
        self.assertEqual(self.server.requests, [])

    def test_stream_argument(self):
        """chat(stream=...) is a TypeError that names stream_chat."""
        client = self.server.client()
        for value in (True, False):
            self.refused(TypeError, lambda: client.chat("hi", stream=value), "stream_chat")
        self.assertEqual(self.server.requests, [])

    def test_wrong_types(self):
        """A parameter of a wrong type is a TypeError that names it, before anything is sent."""
        client = self.server.client()
        for call in (client.chat, client.stream_chat):
            for name, value in WRONG_TYPES:
                with self.subTest(name, value=value):
                    self.refused(TypeError, lambda: call("hi", **{name: value}), name)
        self.assertEqual(self.server.requests, [])

    def test_wrong_values(self):
        """A wrong value is a ConfigurationError that names it, before anything is sent."""
        client = self.server.client()
        for call in (client.chat, client.stream_chat):
            for name, value in WRONG_VALUES:
                with self.subTest(name, value=value):
                    self.refused(sc.ConfigurationError, lambda: call("hi", **{name: value}), name)
        self.assertEqual(self.server.requests, [])

    def test_what_json_cannot_hold(self):
        """Values that JSON has no words for are refused before anything is sent."""
        client = self.server.client()
        for params in ({"tools": [{"type": object()}]}, {"extra_body": {"x": {1, 2}}},
                       {"logit_bias": {"1": b"x"}}, {"extra_body": {"x": float("nan")}}):
            self.refused((TypeError, sc.ConfigurationError), lambda: client.chat("hi", **params))
        self.assertEqual(self.server.requests, [])

    def test_extra_body(self):
        """extra_body is merged last, and may hold null and any name; the caller's stays his."""
        extra = {"temperature": None, "enable_thinking": False, "nested": {"a": [None]}, "n": 2}
        given = copy.deepcopy(extra)
        body = self.body(temperature=1, n=1, extra_body=extra)
        self.assertEqual(body, dict(given, model=MODEL, messages=MESSAGES))
        self.assertEqual(extra, given)

    def test_positional_model(self):
        """Everything after the messages is given by name."""
        with self.assertRaises(TypeError):
            self.server.client().chat("hi", "m")


class Messages(ChatCase):
    """What may be said in `messages`."""

    def test_string(self):
        """A plain string is one user message."""
        text = "d\u00e9j\u00e0 \u20ac \U0001f600 \u2028 \"quoted\"\n"
        self.assertEqual(self.body(text)["messages"], [{"role": "user", "content": text}])

    def test_dicts(self):
        """Dicts in OpenAI's shape are sent as they are, and stay as they were."""
        messages = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "text", "text": "t"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a", "name": "f", "content": "1", "x": None},
        ]
        given, items = copy.deepcopy(messages), list(messages)
        self.assertEqual(self.body(messages)["messages"], given)
        self.assertEqual(messages, given)
        self.assertTrue(all(a is b for a, b in zip(messages, items)))

    def test_other_sequences_and_mappings(self):
        """Tuples do for lists, and any mapping for a dict."""
        message = types.MappingProxyType(MESSAGES[0])
        self.assertEqual(self.body((message,))["messages"], MESSAGES)

    def test_messages_from_answers(self):
        """A Message of an earlier answer goes back with its tool calls and its reasoning."""
        for source in (TOOLS, VLLM):
            reply = sc.ChatCompletion.from_dict(copy.deepcopy(source))
            messages = [MESSAGES[0], reply.choices[0].message]
            sent = self.body(messages)["messages"]
            self.assertEqual(sent, [MESSAGES[0], reply.choices[0].message.to_param()])
            self.assertIs(messages[1], reply.choices[0].message)
            self.assertTrue(sent[1]["reasoning_content"])

    def test_tool_round_trip(self):
        """The whole tool loop works with what chat gave."""
        server = self.serve(TOOLS, completion("sunny"))
        client, messages = server.client(), [{"role": "user", "content": "weather?"}]
        message = client.chat(messages, tools=[TOOL]).choices[0].message
        messages.append(message)
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name,
                             "content": json.dumps(call.function.parse())})
        self.assertEqual(client.chat(messages).text, "sunny")
        sent = server.requests[1].json["messages"]
        self.assertEqual([m["role"] for m in sent], ["user", "assistant", "tool", "tool"])
        self.assertEqual(sent[1]["tool_calls"][0]["function"]["arguments"], '{"city": "Paris"}')
        self.assertEqual(sent[2]["content"], '{"city": "Paris"}')

    def test_refused_messages(self):
        """What is no conversation is refused in one line before anything is sent."""
        client = self.server.client()
        for messages in ([], (), {}, MESSAGES[0], None, 3, b"hi", [{}], [{"content": "x"}],
                         ["hi"], [None], [3], [[MESSAGES[0]]], MESSAGES + [{"role": None}],
                         [sc.ChatCompletion.from_dict(completion())],
                         [sc.ChatCompletion.from_dict(completion()).choices[0]]):
            for call in (client.chat, client.stream_chat):
                with self.subTest(messages=messages):
                    self.refused((TypeError, sc.ConfigurationError), lambda: call(messages),
                                 "message")
        self.assertEqual(self.server.requests, [])

    def test_lone_surrogates(self):
        """Half a surrogate pair, as broken file names have it, is sent or refused in our words."""
        try:
            self.server.client().chat("a\ud800b")
        except (TypeError, sc.ConfigurationError) as error:
            self.assertNotIsInstance(error, UnicodeError)


class Answers(ClientCase):
    def test_answer(self):
        """chat gives the answer with all that was sent, and how it came."""
        quotas = '{"subscription": {"limit": 9}}'
        server = self.serve(answer(200, VLLM, {"X-Request-Id": "r1", "Request-Id": "r2",
                                               "x-synthetic-quotas": quotas}))
        reply = server.client().chat("hi")
        self.assertIsInstance(reply, sc.ChatCompletion)
        self.assertEqual(reply.to_dict(), VLLM)
        self.assertEqual((reply.meta.status, reply.meta.request_id, reply.meta.attempts),
                         (200, "r1", 1))
        self.assertEqual(reply.meta.headers["CONTENT-type"], "application/json")
        self.assertEqual(reply.meta.quotas.subscription.limit, 9)

    def test_control_characters(self):
        """Raw control characters within the answer's strings do no harm."""
        body = json.dumps(completion("a\nb\tc")).replace("\\n", "\n").replace("\\t", "\t")
        self.assertEqual(self.serve(answer(200, body)).client().chat("hi").text, "a\nb\tc")

    def test_no_answer(self):
        """A 200 without a completion is a ResponseError, never an empty answer."""
        for body in (b"", b"{}", b"[]", b"null", b"3", b'"x"', b"{", b'{"choices": null}',
                     b'{"choices": 3}', b'{"choices": ["x"]}', b'{"data": []}', b"[" * 100000,
                     b"<html>\n<title>Sign in</title></html>"):
            for kind in ("application/json", "text/html"):
                with self.subTest(body[:40], kind=kind):
                    server = self.serve(answer(200, body, {"Content-Type": kind}))
                    self.refused(sc.ResponseError, lambda: server.client().chat("hi"))

    def test_connections_are_reused(self):
        """Calls one after the other use one connection."""
        server = self.serve()
        client = server.client()
        for _ in range(5):
            client.chat("hi")
        self.assertEqual((server.connections, len(server.requests)), (1, 5))

    def test_threads(self):
        """One client serves many threads at once, each with its own answer."""
        server = self.serve(lambda conn: conn.send_json(completion(conn.json["user"])))
        client, wrong = server.client(), []

        def work(name):
            for i in range(10):
                user = "%s-%d" % (name, i)
                if client.chat("hi", user=user).text != user:
                    wrong.append(user)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((wrong, len(server.requests)), ([], 80))
        self.assertLessEqual(server.connections, 8)


class Request(ClientCase):
    def test_paths(self):
        """Paths are relative to the base URL, or from the origin for /v2/ and /anthropic/."""
        server = self.serve({"ok": True})
        client = server.client(base_url=server.origin + "/openai/v1")
        for path, sent in (("models", "/openai/v1/models"), ("/models", "/openai/v1/models"),
                           ("models?a=1&b=%20", "/openai/v1/models?a=1&b=%20"),
                           ("/v2/quotas", "/v2/quotas"), ("v2/x", "/openai/v1/v2/x"),
                           ("/anthropic/v1/messages", "/anthropic/v1/messages")):
            self.assertEqual(client.request("GET", path), {"ok": True})
            self.assertEqual(server.requests[-1].path, sent)
            self.assertEqual(server.requests[-1].headers["authorization"], "Bearer " + KEY)

    def test_bodies(self):
        """JSON goes out as given; without it there is no body."""
        server = self.serve({"ok": True})
        for method in ("GET", "POST", "DELETE", "PUT"):
            server.client().request(method, "x")
            self.assertEqual((server.requests[-1].method, server.requests[-1].body), (method, b""))
        for body in ({}, [], {"a": None}, "x", 0):
            server.client().request("POST", "x", body)
            self.assertEqual(server.requests[-1].json, body)
            self.assertEqual(server.requests[-1].headers["content-type"], "application/json")

    def test_answers(self):
        """Any JSON is returned parsed; an empty body is None."""
        for body, expected in ((b"", None), (b"[1]", [1]), (b"null", None), (b'"x"', "x"),
                               (b'{"a": 1}', {"a": 1})):
            self.assertEqual(self.serve(answer(200, body)).client().request("GET", "x"), expected)

    def test_errors(self):
        """request raises as chat does."""
        self.refused(sc.NotFoundError, lambda: self.serve(
            answer(404, {"error": "gone"})).client().request("GET", "x"), "gone")
        self.refused(sc.ResponseError, lambda: self.serve(
            answer(200, "<html>")).client().request("GET", "x"))

    def test_options(self):
        """extra_headers, timeout, deadline and max_retries hold for the one call."""
        server = self.serve(answer(503, {"error": "x"}, {"retry-after-ms": "1"}), {"ok": 1},
                            lambda conn: conn.gone())
        client = server.client()
        self.assertEqual(client.request("GET", "x", extra_headers={"X-A": "1"}, max_retries=1),
                         {"ok": 1})
        self.assertEqual(server.requests[1].headers["x-a"], "1")
        for option in ("timeout", "deadline"):
            self.refused(sc.APITimeoutError, lambda: client.request("GET", "x", **{option: 0.1}))

    def test_refused(self):
        """Methods and paths that could break a request, or send the key elsewhere, are refused."""
        server = self.serve()
        client = server.client()
        for method, path in (("GET", "a b"), ("GET", "a\r\nX: y"), ("G ET", "x"), ("GET\n", "x"),
                             ("GET", "https://elsewhere.example/x"), ("GET", "\u00e9")):
            with self.subTest(method=method, path=path):
                self.refused(sc.ConfigurationError, lambda: client.request(method, path))
        for method, path in ((3, "x"), ("GET", 3), ("GET", None), ("GET", b"x")):
            with self.subTest(method=method, path=path):
                self.refused(TypeError, lambda: client.request(method, path))
        self.assertEqual(server.requests, [])


class Completion(ClientCase):
    def test_like_litellm(self):
        """completion() takes LiteLLM's names and gives an answer or a stream."""
        server = self.serve(lambda conn: (
            conn.send_sse(chunks("a", "b")) if conn.json.get("stream")
            else conn.send_json(completion("c"))))
        for name in ("api_base", "base_url"):
            options = {name: server.base_url, "api_key": KEY, "temperature": 0}
            reply = sc.completion("synthetic/hf:a/b", MESSAGES, **options)
            self.assertIsInstance(reply, sc.ChatCompletion)
            self.assertEqual(reply["choices"][0]["message"]["content"], "c")
            self.assertEqual(server.requests[-1].json,
                             {"model": "hf:a/b", "messages": MESSAGES, "temperature": 0})
            self.assertEqual(server.requests[-1].headers["authorization"], "Bearer " + KEY)
            stream = sc.completion(model="hf:a/b", messages="hi", stream=True, **options)
            self.assertIsInstance(stream, sc.ChatStream)
            self.assertEqual("".join(stream.texts()), "ab")
            reply = sc.completion("hf:a/b", MESSAGES, stream=False, **options)
            self.assertEqual(reply.text, "c")

    def test_retries(self):
        """num_retries and max_retries both count retries."""
        for name in ("num_retries", "max_retries"):
            for count in (0, 1):
                server = self.serve(answer(503, {"error": "x"}, {"retry-after-ms": "1"}))
                self.refused(sc.InternalServerError, lambda: sc.completion(
                    "m", "hi", api_key=KEY, base_url=server.base_url, **{name: count}))
                self.assertEqual(len(server.requests), count + 1)

    def test_environment_at_each_call(self):
        """The environment is read at each call."""
        one, two = self.serve(completion("one")), self.serve(completion("two"))
        for server, key, text in ((one, "k1", "one"), (two, "k2", "two"), (one, "k3", "one")):
            with environment(BASE_URL=server.base_url, API_KEY=key):
                self.assertEqual(sc.completion("m", "hi").text, text)
            self.assertEqual(server.requests[-1].headers["authorization"], "Bearer " + key)

    def test_connections_are_reused(self):
        """Calls one after the other use one connection, streams too."""
        server = self.serve(lambda conn: (
            conn.send_sse(chunks("a")) if conn.json.get("stream")
            else conn.send_json(completion())))
        with environment(BASE_URL=server.base_url, API_KEY=KEY):
            for stream in (False, True, False):
                reply = sc.completion("m", "hi", stream=stream)
                if stream:
                    reply.completion()
        self.assertEqual((server.connections, len(server.requests)), (1, 3))

    def test_refused(self):
        """completion() refuses what chat refuses."""
        server = self.serve()
        with environment(BASE_URL=server.base_url):
            self.refused(TypeError, lambda: sc.completion("m", "hi", temperatur=1), "temperature")
            self.refused(TypeError, lambda: sc.completion("m", "hi", temperature="x"))
            self.refused((TypeError, sc.ConfigurationError), lambda: sc.completion("m", []))
        with environment(API_KEY=None, BASE_URL=None):
            self.refused(sc.ConfigurationError, lambda: sc.completion("m", "hi"),
                         "SYNTHETIC_API_KEY")
        self.assertEqual(server.requests, [])


class Lifetime(ClientCase):
    def test_close(self):
        """A closed client's calls raise RuntimeError; closing again is harmless."""
        server = self.serve()
        with server.client() as client:
            self.assertIsInstance(client, sc.SyntheticClient)
            client.chat("hi")
        client.close()
        for call in (client.chat, client.stream_chat, lambda text: client.request("GET", text)):
            self.refused(RuntimeError, lambda: call("hi"), "closed")
        self.assertEqual(len(server.requests), 1)

    def test_pickle(self):
        """A client pickles with its settings, and its copies share their connections."""
        server = self.serve()
        client = server.client(headers={"X-A": "1"})
        for version in range(2, pickle.HIGHEST_PROTOCOL + 1):
            copies = [pickle.loads(pickle.dumps(client, version)) for _ in range(3)]
            self.assertNotIn(b"Python/", pickle.dumps(client, version))  # they name their own
            for one in copies:
                self.assertEqual(one.chat("hi").text, "hello")
                self.assertEqual(server.requests[-1].json["model"], MODEL)
                self.assertEqual(server.requests[-1].headers["x-a"], "1")
                self.assertEqual(server.requests[-1].headers["authorization"], "Bearer " + KEY)
                self.assertEqual(repr(one), repr(client))
        self.assertEqual(server.connections, 1)

    def test_pickle_with_an_ssl_context(self):
        """A client with an ssl_context refuses to pickle, and says why."""
        client = sc.SyntheticClient("k", ssl_context=ssl.create_default_context())
        self.refused(TypeError, lambda: pickle.dumps(client), "ssl_context", "ca_file")

    def test_pickle_of_a_key_from_the_environment(self):
        """A key that came from the environment stays there, and is read on the other side."""
        server = self.serve()
        with environment(API_KEY="first-key"):
            with sc.SyntheticClient(base_url=server.base_url, model="m") as client:
                data = pickle.dumps(client)
        self.assertNotIn(b"first-key", data)
        with environment(API_KEY="second-key"):
            pickle.loads(data).chat("hi")
        self.assertEqual(server.requests[0].headers["authorization"], "Bearer second-key")


@unittest.skipIf(sys.flags.optimize > 1, "-OO leaves out the docstrings")
class Help(unittest.TestCase):
    def test_parameters(self):
        """help() shows every parameter of chat and of stream_chat once, with what it means."""
        names = list(PARAMETERS) + ["model", "extra_body", "extra_headers", "timeout",
                                    "deadline", "max_retries"]
        for method in (sc.SyntheticClient.chat, sc.SyntheticClient.stream_chat):
            text = inspect.getdoc(method)
            for name in names:
                with self.subTest(method.__name__, name=name):
                    found = re.findall(r"(?m)^ *%s\b[^\n]*[a-z]{3}" % name, text)
                    self.assertEqual(len(found), 1, found)

    def test_alignment(self):
        """In help() each parameter stands in the column of those before it."""
        for function in (sc.SyntheticClient.chat, sc.SyntheticClient.chat_many, sc.completion):
            lines = inspect.getdoc(function).split("\n")
            arguments = lines[lines.index("Args:") + 1:]
            columns = {len(line) - len(line.lstrip()) for line in arguments
                       if re.match(r" *(model|temperature|extra_body)\b[^\n]*: ", line)}
            self.assertEqual(columns, {4}, function)

    def test_settings(self):
        """help() shows every setting of the client."""
        text = inspect.getdoc(sc.SyntheticClient)
        for name in ("api_key", "base_url", "model", "timeout", "connect_timeout", "deadline",
                     "max_retries", "headers", "proxy", "ssl_context", "ca_file", "allow_http",
                     "max_response_bytes"):
            with self.subTest(name):
                self.assertRegex(text, r"(?m)^ +%s\b[^\n]*[a-z]{3}" % name)


if __name__ == "__main__":
    unittest.main()
