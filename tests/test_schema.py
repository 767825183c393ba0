# SPDX-License-Identifier: MIT
"""The result dataclasses: nothing lost, nothing invented, and the ways to read them."""
import copy
import dataclasses
import datetime
import decimal
import inspect
import json
import pickle
import pydoc
import random
import unittest

from . import synthetic_client as sc

# Bodies recorded from the service, from a vLLM behind it, and from llama.cpp.
PLAIN = json.loads("""{
 "id": "296a8fcb-181d-46d4-ad9b-b380befa9a07", "object": "chat.completion",
 "created": 1757644754, "model": "accounts/fireworks/models/deepseek-v3-0324",
 "choices": [{"index": 0, "finish_reason": "stop",
  "message": {"role": "assistant", "content": "The capital of France is **Paris**."}}],
 "usage": {"prompt_tokens": 16, "total_tokens": 74, "completion_tokens": 58}}""")
VLLM = json.loads("""{
 "id": "chatcmpl-df82", "object": "chat.completion", "created": 1771750032,
 "model": "nvidia/Kimi-K2.5-NVFP4",
 "choices": [{"index": 0, "message": {"role": "assistant", "content": " {\\"status\\": \\"ok\\"}",
   "refusal": null, "annotations": null, "audio": null, "function_call": null, "tool_calls": [],
   "reasoning": " The user wants", "reasoning_content": " The user wants"},
  "logprobs": null, "finish_reason": "stop", "stop_reason": null, "token_ids": null}],
 "service_tier": null, "system_fingerprint": null,
 "usage": {"prompt_tokens": 57, "total_tokens": 263, "completion_tokens": 206,
  "prompt_tokens_details": null},
 "prompt_logprobs": null, "prompt_token_ids": null, "kv_transfer_params": null}""")
TOOLS = json.loads("""{
 "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [
 {"index": 0, "message": {"role": "assistant", "content": null, "reasoning": "look it up",
   "tool_calls": [
    {"id": "call_1", "type": "function",
     "function": {"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}},
    {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}}]},
  "finish_reason": "tool_calls", "logprobs": {"content": [{"token": "a", "logprob": -0.5,
    "bytes": [97], "top_logprobs": []}]}},
 {"index": 1, "message": {"role": "assistant", "content": "b", "refusal": "no"},
  "finish_reason": "length"}],
 "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 0.5,
  "prompt_tokens_details": {"cached_tokens": 1},
  "completion_tokens_details": {"reasoning_tokens": 4}},
 "timings": {"prompt_ms": 0.5}}""")
CHUNK = json.loads("""{
 "id": "chatcmpl-abc123", "object": "chat.completion.chunk", "created": 1757644754,
 "model": "m", "system_fingerprint": "b6", "choices": [{"index": 0, "logprobs": null,
  "delta": {"role": "assistant", "content": "Once", "reasoning": "r", "tool_calls": [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f",
     "arguments": "{"}}]},
  "finish_reason": null}]}""")
USAGE_CHUNK = json.loads("""{
 "id": "chatcmpl-abc123", "object": "chat.completion.chunk", "created": 1757644754, "model": "m",
 "choices": [], "usage": {"prompt_tokens": 20, "total_tokens": 120, "completion_tokens": 100}}""")
QUOTAS = json.loads("""{
 "subscription": {"limit": 500, "requests": 0, "renewsAt": "2026-08-19T20:18:11.436Z"},
 "search": {"hourly": {"limit": 250, "requests": 0, "renewsAt": "2026-08-19T16:18:11.437Z"}},
 "freeToolCalls": {"limit": 0, "requests": 439.5, "renewsAt": null},
 "weeklyTokenLimit": {"nextRegenAt": "2026-08-19T16:19:42.000Z",
  "percentRemaining": 99.98130416666666, "maxCredits": "$24.00", "remainingCredits": "$23.99",
  "nextRegenCredits": "$0.48"},
 "rollingFiveHourLimit": {"nextTickAt": "2026-08-19T15:27:19.000Z", "tickPercent": 0.05,
  "remaining": 498.9, "max": 500, "limited": false}}""")

RECORDED = [
    (sc.ChatCompletion, PLAIN), (sc.ChatCompletion, VLLM), (sc.ChatCompletion, TOOLS),
    (sc.ChatCompletionChunk, CHUNK), (sc.ChatCompletionChunk, USAGE_CHUNK),
    (sc.Choice, TOOLS["choices"][0]), (sc.Message, VLLM["choices"][0]["message"]),
    (sc.Message, TOOLS["choices"][0]["message"]),
    (sc.ToolCall, TOOLS["choices"][0]["message"]["tool_calls"][0]),
    (sc.FunctionCall, {"name": "f", "arguments": "{}"}), (sc.Usage, TOOLS["usage"]),
    (sc.ChunkChoice, CHUNK["choices"][0]), (sc.Delta, CHUNK["choices"][0]["delta"]),
    (sc.ToolCallDelta, CHUNK["choices"][0]["delta"]["tool_calls"][0]),
    (sc.Quotas, QUOTAS),
]
FIELDS = {
    "ChatCompletion": "id object created model choices usage system_fingerprint service_tier",
    "Choice": "index message finish_reason logprobs",
    "Message": "role content reasoning_content tool_calls refusal",
    "ToolCall": "id type function",
    "FunctionCall": "name arguments",
    "Usage": "prompt_tokens completion_tokens total_tokens prompt_tokens_details"
             " completion_tokens_details",
    "ChatCompletionChunk": "id object created model choices usage system_fingerprint"
                           " service_tier",
    "ChunkChoice": "index delta finish_reason logprobs",
    "Delta": "role content reasoning_content tool_calls refusal",
    "ToolCallDelta": "index id type function",
}
SCALARS = [None, True, False, 0, 1, -1, 2.5, "", "x", "0", "\u2028", 10 ** 30]
ANYTHING = SCALARS + [[], {}, [None], [[]], [{}], {"x": None}, ["x"], [1, {"a": []}]]


def exact(value):
    """A text that tells 1 from 1.0 and from True, which == does not."""
    return json.dumps(value, sort_keys=True)


def containers(value):
    """Every dict and list within `value`, itself first."""
    if isinstance(value, (dict, list)):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            for inner in containers(item):
                yield inner


def mutate_gently(body, rng):
    """Change `body` as servers do: drop, null, add, empty, another scalar for a scalar."""
    place = rng.choice(list(containers(body)))
    if isinstance(place, list):
        place.insert(rng.randint(0, len(place)), None)
        return
    keys = sorted(place)
    what = rng.choice(["drop", "null", "add", "scalar"])
    key = rng.choice(keys) if keys else "new"
    if what == "add" or not keys:
        place["new_" + str(rng.randint(0, 9))] = copy.deepcopy(rng.choice(ANYTHING))
    elif what == "drop":
        del place[key]
    elif what == "null":
        place[key] = None
    elif isinstance(place[key], (str, int, float)):
        place[key] = rng.choice(SCALARS)


def mutate_wildly(body, rng):
    """Put anything at all in the place of something."""
    place = rng.choice(list(containers(body)))
    if isinstance(place, dict) and place:
        place[rng.choice(sorted(place))] = copy.deepcopy(rng.choice(ANYTHING))
    elif place:
        place[rng.randrange(len(place))] = copy.deepcopy(rng.choice(ANYTHING))


class RoundTrip(unittest.TestCase):
    def check(self, cls, body):
        given = copy.deepcopy(body)
        made = cls.from_dict(body)
        self.assertEqual(exact(made.to_dict()), exact(given))
        self.assertEqual(exact(body), exact(given), "from_dict changed what it was given")
        self.assertEqual(json.loads(made.to_json()), given)
        repr(made)
        return made

    def test_recorded_bodies(self):
        """What the service sent comes out of to_dict() as it went in."""
        for cls, body in RECORDED:
            with self.subTest(cls.__name__):
                self.check(cls, body)

    def test_missing_and_null_fields(self):
        """Every field may be missing or null: the attribute is None or an empty list."""
        for cls, _ in RECORDED:
            self.check(cls, {})
            for name in FIELDS.get(cls.__name__, "").split():
                with self.subTest(cls.__name__, field=name):
                    made = self.check(cls, {name: None})
                    value = getattr(made, name)
                    if name == "choices":
                        self.assertEqual(value, [])
                    elif name in ("message", "delta"):
                        self.assertIsNotNone(value)
                    elif name == "tool_calls":
                        self.assertIn(value, (None, []))
                    elif name != "function":
                        self.assertIsNone(value)

    def test_objects_that_are_never_none(self):
        """choices, message and delta are there even where the server sent nothing."""
        self.assertEqual(sc.ChatCompletion.from_dict({}).choices, [])
        self.assertEqual(sc.ChatCompletionChunk.from_dict({}).choices, [])
        for body in ({}, {"message": None, "delta": None}):
            self.assertIsNone(sc.Choice.from_dict(body).message.content)
            self.assertIsNone(sc.ChunkChoice.from_dict(body).delta.content)

    def test_null_items_in_lists(self):
        """A null item becomes an empty object and goes back as null."""
        made = self.check(sc.ChatCompletion, {"choices": [None, {"index": 1}]})
        self.assertIsNone(made.choices[0].message.content)
        self.assertEqual(made.choices[1].index, 1)
        self.check(sc.ChatCompletionChunk, {"choices": [None]})
        self.check(sc.Message, {"tool_calls": [None, {"id": "a"}]})
        self.check(sc.Delta, {"tool_calls": [None]})

    def test_random_bodies_as_servers_vary(self):
        """A thousand gentle variations are all accepted and come out as they went in."""
        rng = random.Random(11)
        for _ in range(400):
            cls, body = rng.choice(RECORDED)
            body = copy.deepcopy(body)
            for _ in range(rng.randint(1, 5)):
                mutate_gently(body, rng)
            try:
                self.check(cls, body)
            except sc.ResponseError as error:
                self.fail("%s refused %s: %s" % (cls.__name__, exact(body), error))

    def test_random_json(self):
        """Whatever stands where, from_dict raises ResponseError or keeps all of it."""
        rng = random.Random(12)
        accepted = refused = 0
        for _ in range(400):
            cls, body = rng.choice(RECORDED)
            body = copy.deepcopy(body)
            for _ in range(rng.randint(1, 4)):
                mutate_wildly(body, rng)
            try:
                self.check(cls, body)
                accepted += 1
            except sc.ResponseError as error:
                refused += 1
                self.assertNotIn("\n", str(error))
        self.assertGreater(accepted, 200)
        self.assertGreater(refused, 100)

    def test_wrong_structure(self):
        """A field that must be looked into and has the wrong type is a ResponseError."""
        completion, chunk = sc.ChatCompletion, sc.ChatCompletionChunk
        for wrong in (3, "x", True, 1.5):
            for cls, body in (
                (completion, {"choices": wrong}), (completion, {"choices": [wrong]}),
                (completion, {"choices": {}}), (completion, {"choices": [[]]}),
                (completion, {"choices": [{"message": wrong}]}),
                (completion, {"choices": [{"message": []}]}),
                (completion, {"choices": [{"message": {"tool_calls": wrong}}]}),
                (completion, {"choices": [{"message": {"tool_calls": {}}}]}),
                (completion, {"choices": [{"message": {"tool_calls": [wrong]}}]}),
                (completion, {"choices": [{"message": {"tool_calls": [{"function": wrong}]}}]}),
                (completion, {"usage": wrong}), (completion, {"usage": []}),
                (chunk, {"choices": wrong}), (chunk, {"choices": [wrong]}),
                (chunk, {"choices": [{"delta": wrong}]}),
                (chunk, {"choices": [{"delta": {"tool_calls": wrong}}]}),
                (chunk, {"choices": [{"delta": {"tool_calls": [wrong]}}]}),
                (chunk, {"choices": [{"delta": {"tool_calls": [{"function": wrong}]}}]}),
                (sc.Message, wrong), (sc.Message, []), (completion, wrong),
            ):
                with self.subTest(cls.__name__, body=body):
                    with self.assertRaises(sc.ResponseError) as caught:
                        cls.from_dict(body)
                    self.assertNotIn("\n", str(caught.exception))

    def test_unknown_fields(self):
        """What has no attribute is in .extra, on every level."""
        made = sc.ChatCompletion.from_dict(VLLM)
        self.assertEqual(made.extra, {"prompt_logprobs": None, "prompt_token_ids": None,
                                      "kv_transfer_params": None})
        self.assertEqual(made.choices[0].extra, {"stop_reason": None, "token_ids": None})
        self.assertIn("annotations", made.choices[0].message.extra)
        self.assertEqual(sc.Usage.from_dict(TOOLS["usage"]).extra, {"cost": 0.5})
        self.assertEqual(sc.ChatCompletion.from_dict(PLAIN).extra, {})

    def test_fields_called_like_our_own_names(self):
        """A server's field named extra, meta, text or to_dict is kept as any other."""
        body = {"id": "x", "extra": {"a": 1}, "meta": 3, "text": "t", "to_dict": None,
                "_extra": 1, "from_dict": [], "__class__": "x"}
        made = self.check(sc.ChatCompletion, dict(body))
        self.assertEqual(made.id, "x")
        for cls, _ in RECORDED:
            self.check(cls, dict(body))


class Changes(unittest.TestCase):
    def test_changed_attributes(self):
        """An attribute changed afterwards shows in to_dict(), whatever was there before."""
        for cls, body in RECORDED:
            for start in (body, {}):
                for name in FIELDS.get(cls.__name__, "").split():
                    if name in ("choices", "message", "delta", "tool_calls", "function", "usage"):
                        continue
                    made = cls.from_dict(copy.deepcopy(start))
                    setattr(made, name, "changed")
                    with self.subTest(cls.__name__, field=name, empty=not start):
                        self.assertEqual(made.to_dict()[name], "changed")

    def test_deep_changes(self):
        """Changes on every level show in the whole answer's to_dict()."""
        made = sc.ChatCompletion.from_dict(copy.deepcopy(TOOLS))
        message = made.choices[0].message
        message.content = "new"
        message.tool_calls[0].function.arguments = "{}"
        made.choices[0].logprobs["content"][0]["token"] = "b"
        made.usage.prompt_tokens = 99
        made.usage.prompt_tokens_details["cached_tokens"] = 5
        made.extra["timings"]["prompt_ms"] = 7
        expected = copy.deepcopy(TOOLS)
        changed = expected["choices"][0]["message"]
        changed["content"] = "new"
        changed["tool_calls"][0]["function"]["arguments"] = "{}"
        expected["choices"][0]["logprobs"]["content"][0]["token"] = "b"
        expected["usage"]["prompt_tokens"] = 99
        expected["usage"]["prompt_tokens_details"]["cached_tokens"] = 5
        expected["timings"]["prompt_ms"] = 7
        self.assertEqual(made.to_dict(), expected)
        self.assertEqual(json.loads(made.to_json()), expected)

    def test_changed_lists(self):
        """Items added to and taken from lists show, also where the server sent none."""
        made = sc.ChatCompletion.from_dict({})
        made.choices.append(sc.Choice.from_dict({"index": 0}))
        self.assertEqual(made.to_dict(), {"choices": [{"index": 0}]})
        made = sc.ChatCompletion.from_dict(copy.deepcopy(TOOLS))
        del made.choices[1]
        self.assertEqual(made.to_dict()["choices"], TOOLS["choices"][:1])
        made.choices.clear()
        self.assertEqual(made.to_dict()["choices"], [])

    def test_set_to_none(self):
        """An attribute set to None does not bring the old value back."""
        made = sc.ChatCompletion.from_dict(copy.deepcopy(PLAIN))
        made.id = made.usage = made.choices[0].message.content = None
        body = made.to_dict()
        self.assertIsNone(body.get("id"))
        self.assertIsNone(body.get("usage"))
        self.assertIsNone(body["choices"][0]["message"].get("content"))

    def test_null_object_filled(self):
        """Filling an object that the server sent as null shows."""
        made = sc.ChatCompletion.from_dict({"choices": [None, {"message": None}]})
        made.choices[0].index = 0
        made.choices[0].message.content = "a"
        made.choices[1].message.content = "b"
        first, second = made.to_dict()["choices"]
        self.assertEqual((first["index"], first["message"]["content"]), (0, "a"))
        self.assertEqual(second["message"]["content"], "b")

    def test_extra_changed(self):
        """Keys put into .extra show in to_dict(), keys taken out do not."""
        made = sc.ChatCompletion.from_dict(copy.deepcopy(VLLM))
        made.extra["mine"] = 1
        del made.extra["prompt_logprobs"]
        self.assertEqual(made.to_dict()["mine"], 1)
        self.assertNotIn("prompt_logprobs", made.to_dict())

    def test_reasoning_changed(self):
        """Changed reasoning is what to_dict() says, whichever name the server used."""
        for body in ({"reasoning": "old"}, {"reasoning_content": "old"}, {},
                     {"reasoning": "old", "reasoning_content": "old"}):
            for cls in (sc.Message, sc.Delta):
                made = cls.from_dict(dict(body))
                made.reasoning_content = "new"
                with self.subTest(cls.__name__, body=body):
                    self.assertEqual(cls.from_dict(made.to_dict()).reasoning_content, "new")

    def test_to_dict_is_a_copy(self):
        """Changing what to_dict() gave leaves the object's own fields alone."""
        made = sc.ChatCompletion.from_dict(copy.deepcopy(PLAIN))
        made.to_dict()["choices"][0]["message"]["content"] = "changed"
        self.assertEqual(made.to_dict(), PLAIN)


class Reading(unittest.TestCase):
    def test_reasoning(self):
        """reasoning_content holds the reasoning under either name, and once."""
        for body, expected in (
            ({"reasoning": "a"}, "a"), ({"reasoning_content": "a"}, "a"),
            ({"reasoning": "a", "reasoning_content": "a"}, "a"),
            ({"reasoning": "a", "reasoning_content": None}, "a"),
            ({"reasoning": "a", "reasoning_content": ""}, "a"),
            ({"reasoning": None, "reasoning_content": "a"}, "a"),
            ({"reasoning": "", "reasoning_content": "a"}, "a"),
            ({"reasoning": "b", "reasoning_content": "a"}, "a"),
            ({"reasoning": None, "reasoning_content": None}, None), ({}, None),
        ):
            for cls in (sc.Message, sc.Delta):
                with self.subTest(cls.__name__, body=body):
                    made = cls.from_dict(body)
                    self.assertEqual(made.reasoning_content, expected)
                    self.assertEqual(made.to_dict(), body)

    def test_text(self):
        """text is the first choice's text, and empty where there is none."""
        for body, expected in (
            (PLAIN, "The capital of France is **Paris**."), (TOOLS, ""), ({}, ""),
            ({"choices": None}, ""), ({"choices": []}, ""), ({"choices": [None]}, ""),
            ({"choices": [{"message": None}]}, ""),
            ({"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}, ""),
        ):
            self.assertEqual(sc.ChatCompletion.from_dict(body).text, expected)
        for body, expected in (
            (CHUNK, "Once"), (USAGE_CHUNK, ""), ({}, ""), ({"choices": [None]}, ""),
            ({"choices": [{"delta": {"content": None}}]}, ""),
        ):
            self.assertEqual(sc.ChatCompletionChunk.from_dict(body).text, expected)

    def test_subscription(self):
        """[] reaches as far as attributes do."""
        made = sc.ChatCompletion.from_dict(TOOLS)
        self.assertEqual(made["choices"][1]["message"]["content"], "b")
        call = made["choices"][0]["message"]["tool_calls"][0]
        self.assertEqual(call["function"]["name"], "weather")
        self.assertEqual(made["usage"]["prompt_tokens"], 1)
        self.assertEqual(made["usage"]["cost"], 0.5)
        self.assertEqual(made["timings"]["prompt_ms"], 0.5)
        self.assertIsNone(made["service_tier"])
        made.id = "changed"
        self.assertEqual(made["id"], "changed")

    def test_unknown_keys(self):
        """A key that is neither a field nor in .extra is a KeyError; methods are no keys."""
        made = sc.ChatCompletion.from_dict(TOOLS)
        for key in ("nope", "to_dict", "from_dict", "__class__", "_nope", "", 0):
            with self.subTest(key):
                self.assertNotIn(key, made)
                with self.assertRaises(KeyError):
                    made[key]
                self.assertIsNone(made.get(key))
                self.assertEqual(made.get(key, 3), 3)

    def test_in_and_get(self):
        """Every field's name is in a result, and every key of .extra."""
        for cls, body in RECORDED:
            made = cls.from_dict(body)
            for name in FIELDS.get(cls.__name__, "").split() + list(made.extra):
                with self.subTest(cls.__name__, key=name):
                    self.assertIn(name, made)
                    made[name]
        made = sc.ChatCompletion.from_dict(PLAIN)
        self.assertEqual(made.get("created"), 1757644754)
        self.assertEqual(made.get("choices")[0].get("message").get("role"), "assistant")

    def test_to_json(self):
        """to_json() is to_dict() as JSON, indented on wish."""
        for cls, body in RECORDED:
            made = cls.from_dict(body)
            self.assertEqual(json.loads(made.to_json()), body)
            self.assertNotIn("\n", made.to_json())
            self.assertEqual(json.loads(made.to_json(indent=2)), body)
        self.assertIn('\n  "id"', sc.ChatCompletion.from_dict(PLAIN).to_json(indent=2))


class Parameters(unittest.TestCase):
    def test_message_to_send_back(self):
        """to_param() leaves out what the service does not take."""
        message = sc.Message.from_dict(VLLM["choices"][0]["message"])
        self.assertEqual(message.to_param(), {
            "role": "assistant", "content": ' {"status": "ok"}',
            "reasoning_content": " The user wants"})
        self.assertEqual(sc.Message.from_dict(PLAIN["choices"][0]["message"]).to_param(),
                         PLAIN["choices"][0]["message"])

    def test_tool_calls_to_send_back(self):
        """to_param() keeps a null content beside tool calls, and reasoning by its right name."""
        message = sc.Message.from_dict(TOOLS["choices"][0]["message"])
        expected = copy.deepcopy(TOOLS["choices"][0]["message"])
        expected["reasoning_content"] = expected.pop("reasoning")
        self.assertEqual(message.to_param(), expected)

    def test_changed_message_to_send_back(self):
        """to_param() follows changed attributes."""
        message = sc.Message.from_dict({"role": "assistant", "content": "a", "reasoning": "r"})
        message.content, message.reasoning_content = "b", None
        self.assertEqual(message.to_param(), {"role": "assistant", "content": "b"})

    def test_tool_message_to_send_back(self):
        """name and tool_call_id, which the service takes, go back."""
        body = {"role": "tool", "content": "1", "name": "f", "tool_call_id": "a"}
        self.assertEqual(sc.Message.from_dict(dict(body, x=1)).to_param(), body)

    def test_defaults_to_send_back(self):
        """What a server left out of a message is what the service wants to see."""
        message = sc.Message.from_dict({"tool_calls": [{"id": "a", "function": {"name": "f"}}]})
        param = message.to_param()
        self.assertEqual((param["role"], param["content"]), ("assistant", None))
        self.assertEqual((param["tool_calls"][0]["id"], param["tool_calls"][0]["type"]),
                         ("a", "function"))

    def test_own_message(self):
        """A Message can be made by hand."""
        message = sc.Message(role="user", content="hi")
        self.assertEqual(message.to_param(), {"role": "user", "content": "hi"})
        self.assertEqual(message.to_dict()["content"], "hi")

    def test_arguments(self):
        """parse() gives the arguments as a dict, and {} for none."""
        for text, expected in (("", {}), (None, {}), ("{}", {}), ('{"a": [1]}', {"a": [1]}),
                               (' {"a":"\u20ac"} ', {"a": "\u20ac"})):
            self.assertEqual(sc.FunctionCall(name="f", arguments=text).parse(), expected)

    def test_broken_arguments(self):
        """parse() raises a ValueError that names the function where there is no JSON object."""
        for text in ('{"a":', "nope", "[1]", "3", "null", '"x"', "{} {}", "[" * 100000):
            with self.subTest(text[:10]):
                with self.assertRaises(ValueError) as caught:
                    sc.FunctionCall(name="get_weather", arguments=text).parse()
                self.assertIn("get_weather", str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))


class Objects(unittest.TestCase):
    def test_fields(self):
        """The dataclasses have OpenAI's field names, in the documented order."""
        for name, fields in FIELDS.items():
            found = [f.name for f in dataclasses.fields(getattr(sc, name))]
            wanted = fields.split()
            with self.subTest(name):
                self.assertEqual([f for f in found if f in wanted], wanted)

    def test_equality(self):
        """Equal bodies make equal objects; a difference anywhere, in .extra too, unequal ones."""
        for cls, body in RECORDED:
            self.assertEqual(cls.from_dict(body), cls.from_dict(copy.deepcopy(body)))
            self.assertNotEqual(cls.from_dict(body), cls.from_dict(dict(body, added=1)))
        self.assertNotEqual(sc.Message(content="a"), sc.Delta(content="a"))
        self.assertNotEqual(sc.Message(content="a"), {"content": "a"})
        other = copy.deepcopy(TOOLS)
        other["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = "{}"
        self.assertNotEqual(sc.ChatCompletion.from_dict(TOOLS),
                            sc.ChatCompletion.from_dict(other))

    def test_made_by_hand(self):
        """Objects can be made by hand, field by field, and equal those from the wire."""
        call = sc.ToolCall("a", "function", sc.FunctionCall("f", "{}"))
        message = sc.Message("assistant", "hi", tool_calls=[call])
        body = {"role": "assistant", "content": "hi", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
        self.assertEqual(message.to_dict(), body)
        self.assertEqual(message, sc.Message.from_dict(body))
        self.assertEqual(pickle.loads(pickle.dumps(message)), message)
        self.assertEqual(sc.ChatCompletion().to_dict(), {})
        self.assertEqual(sc.ChatCompletion().text, "")

    def test_repr(self):
        """repr names the class and shows the fields' present values."""
        message = sc.Message.from_dict({"role": "assistant", "content": "hello"})
        self.assertTrue(repr(message).startswith("Message("), repr(message))
        self.assertIn("content='hello'", repr(message))
        message.content = "changed"
        self.assertIn("changed", repr(message))
        self.assertIn("Paris", repr(sc.ChatCompletion.from_dict(PLAIN)))

    def test_completion_of_names(self):
        """dir() has the fields also before they were looked at; repr leaves out what is empty."""
        made = sc.Usage.from_dict({"prompt_tokens": 0})
        self.assertLessEqual({"prompt_tokens", "total_tokens", "extra"}, set(dir(made)))
        self.assertEqual(repr(made), "Usage(prompt_tokens=0)")

    def test_copies(self):
        """pickle and copy.deepcopy give equal objects that keep every field, and their own."""
        for cls, body in RECORDED + [(sc.ChatCompletion, {"choices": [None, {}]})]:
            made = cls.from_dict(copy.deepcopy(body))
            with self.subTest(cls.__name__):
                for version in range(2, pickle.HIGHEST_PROTOCOL + 1):
                    again = pickle.loads(pickle.dumps(made, version))
                    self.assertEqual(again, made)
                    self.assertEqual(exact(again.to_dict()), exact(body))
                for again in (copy.deepcopy(made), copy.copy(made)):
                    self.assertEqual(again, made)
                    self.assertEqual(exact(again.to_dict()), exact(body))
                deep = copy.deepcopy(made)
                deep.extra["new"] = 1
                self.assertEqual(made.to_dict(), body)

    def test_construction(self):
        """Objects are made by hand as of any dataclass, and help() says of what."""
        made = sc.Message("user", content="hi", extra={"name": "Al"})
        self.assertEqual(made.to_dict(), {"role": "user", "content": "hi", "name": "Al"})
        self.assertEqual((made.tool_calls, made.refusal), ([], None))
        for values, named in (((), {"rol": "user"}), (("user",), {"role": "user"}),
                              (range(7), {})):
            self.assertRaises(TypeError, sc.Message, *values, **named)
        for name in ("Message", "ChatCompletion", "Quotas"):
            kind = getattr(sc, name)
            self.assertEqual(list(inspect.signature(kind).parameters),
                             [field.name for field in dataclasses.fields(kind)])
            self.assertRegex(pydoc.render_doc(kind), r"= None,[ |\n]+extra: ")

    def test_dataclass_functions(self):
        """dataclasses.replace changes one field and loses nothing; asdict reaches the depth."""
        made = sc.ChatCompletion.from_dict(copy.deepcopy(TOOLS))
        self.assertEqual(dataclasses.replace(made, id="new").to_dict(), dict(TOOLS, id="new"))
        self.assertEqual(made.id, "c1")
        self.assertEqual(dataclasses.asdict(made)["choices"][1]["message"]["content"], "b")

    def test_meta_stands_apart(self):
        """meta is no part of equality, repr or to_dict()."""
        one, two = (sc.ChatCompletion.from_dict(copy.deepcopy(PLAIN)) for _ in range(2))
        one.meta = object()
        self.assertEqual(one, two)
        self.assertEqual(repr(one), repr(two))
        self.assertEqual(one.to_dict(), PLAIN)


class QuotaFields(unittest.TestCase):
    def test_names_and_types(self):
        """Fields have Python's names; times are aware datetimes, money is Decimal."""
        quotas = sc.Quotas.from_dict(QUOTAS)
        utc = datetime.timezone.utc
        self.assertEqual(quotas.subscription.limit, 500)
        self.assertEqual(quotas.subscription.requests, 0)
        self.assertEqual(quotas.subscription.renews_at,
                         datetime.datetime(2026, 8, 19, 20, 18, 11, 436000, utc))
        self.assertEqual(quotas.search.hourly.limit, 250)
        self.assertIsNotNone(quotas.search.hourly.renews_at.tzinfo)
        self.assertEqual(quotas.free_tool_calls.requests, 439.5)
        self.assertIsNone(quotas.free_tool_calls.renews_at)
        weekly = quotas.weekly_token_limit
        self.assertEqual(weekly.next_regen_at, datetime.datetime(2026, 8, 19, 16, 19, 42, 0, utc))
        self.assertEqual(weekly.percent_remaining, 99.98130416666666)
        self.assertEqual(weekly.max_credits, decimal.Decimal("24.00"))
        self.assertIsInstance(weekly.remaining_credits, decimal.Decimal)
        self.assertEqual(weekly.next_regen_credits, decimal.Decimal("0.48"))
        rolling = quotas.rolling_five_hour_limit
        self.assertEqual(rolling.next_tick_at, datetime.datetime(2026, 8, 19, 15, 27, 19, 0, utc))
        self.assertEqual(rolling.tick_percent, 0.05)
        self.assertEqual((rolling.remaining, rolling.max), (498.9, 500))
        self.assertIs(rolling.limited, False)

    def test_no_subscription(self):
        """The {} that a key without a subscription gets has every meter None."""
        quotas = sc.Quotas.from_dict({})
        for name in ("subscription", "search", "free_tool_calls", "weekly_token_limit",
                     "rolling_five_hour_limit"):
            self.assertIsNone(getattr(quotas, name))
        self.assertEqual(quotas.to_dict(), {})

    def test_old_shape(self):
        """The shape of 2025, with one meter, is read."""
        body = {"subscription": {"limit": 135, "requests": 0,
                                 "renewsAt": "2025-09-21T14:36:14.288Z"}}
        quotas = sc.Quotas.from_dict(body)
        self.assertEqual(quotas.subscription.limit, 135)
        self.assertIsNone(quotas.weekly_token_limit)
        self.assertEqual(quotas.to_dict(), body)

    def test_times_in_several_spellings(self):
        """ISO times with and without fractions and offsets are read on every Python."""
        utc = datetime.timezone.utc
        base = datetime.datetime(2026, 8, 19, 20, 18, 11, 0, utc)
        for text, expected in (
            ("2026-08-19T20:18:11Z", base), ("2026-08-19T20:18:11+00:00", base),
            ("2026-08-19T22:18:11+02:00", base),
            ("2026-08-19T20:18:11.500Z", base.replace(microsecond=500000)),
            ("2026-08-19T20:18:11.123456Z", base.replace(microsecond=123456)),
        ):
            with self.subTest(text):
                quotas = sc.Quotas.from_dict({"subscription": {"renewsAt": text}})
                self.assertEqual(quotas.subscription.renews_at, expected)
                self.assertIsNotNone(quotas.subscription.renews_at.utcoffset())
                self.assertEqual(quotas.to_dict(), {"subscription": {"renewsAt": text}})

    def test_unreadable_values(self):
        """What cannot be read is None in the attribute and unchanged in to_dict()."""
        for value in ("soon", "", 3, [], {}, True, "2026-99-99T00:00:00Z", "\u0663"):
            body = {"subscription": {"renewsAt": value},
                    "weeklyTokenLimit": {"nextRegenAt": value}}
            quotas = sc.Quotas.from_dict(copy.deepcopy(body))
            with self.subTest(renewsAt=value):
                self.assertIsNone(quotas.subscription.renews_at)
                self.assertIsNone(quotas.weekly_token_limit.next_regen_at)
                self.assertEqual(quotas.to_dict(), body)
        for value in ("lots", "", "$", [], {}, True):
            body = {"weeklyTokenLimit": {"maxCredits": value}}
            quotas = sc.Quotas.from_dict(copy.deepcopy(body))
            with self.subTest(maxCredits=value):
                self.assertIsNone(quotas.weekly_token_limit.max_credits)
                self.assertEqual(quotas.to_dict(), body)

    def test_unreadable_meters(self):
        """A meter that is no object is None, and unchanged in to_dict()."""
        for value in (3, "x", [], True):
            for name, attribute in (("subscription", "subscription"),
                                    ("rollingFiveHourLimit", "rolling_five_hour_limit")):
                with self.subTest(name, value=value):
                    quotas = sc.Quotas.from_dict({name: value})
                    self.assertIsNone(getattr(quotas, attribute))
                    self.assertEqual(quotas.to_dict(), {name: value})

    def test_unknown_fields(self):
        """New meters and new fields of known ones are kept in .extra."""
        body = {"subscription": {"limit": 1, "tier": "x"}, "newMeter": {"left": 3}}
        quotas = sc.Quotas.from_dict(body)
        self.assertEqual(quotas.extra, {"newMeter": {"left": 3}})
        self.assertEqual(quotas.subscription.extra, {"tier": "x"})
        self.assertEqual(quotas.to_dict(), body)

    def test_changed_fields(self):
        """Changed times and amounts show in to_dict(), as JSON can hold them."""
        quotas = sc.Quotas.from_dict(copy.deepcopy(QUOTAS))
        quotas.rolling_five_hour_limit.remaining = 5
        later = datetime.datetime(2030, 1, 2, 3, 4, 5, 0, datetime.timezone.utc)
        quotas.subscription.renews_at = later
        quotas.weekly_token_limit.max_credits = decimal.Decimal("1.50")
        again = sc.Quotas.from_dict(json.loads(quotas.to_json()))
        self.assertEqual(again.rolling_five_hour_limit.remaining, 5)
        self.assertEqual(again.subscription.renews_at, later)
        self.assertEqual(again.weekly_token_limit.max_credits, decimal.Decimal("1.50"))
        self.assertEqual(again.search, quotas.search)


if __name__ == "__main__":
    unittest.main()
