# SPDX-License-Identifier: MIT
"""README.md: its programs run as they stand, its links lead somewhere, its names exist."""
import builtins
import contextlib
import importlib
import io
import json
import os
import pydoc
import re
import sys
import tempfile
import unittest
from unittest import mock

from . import synthetic_client as sc
from .server import KEY, Server, chunk, chunks, completion

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLES = {"string": "Paris", "number": 1.5, "integer": 1, "boolean": True, "array": [],
           "object": {}, "null": None}
# Names that README gives to objects, and what they are.
NAMED = {"client": sc.SyntheticClient, "stream": sc.ChatStream, "reply": sc.ChatCompletion,
         "message": sc.Message, "chunk": sc.ChatCompletionChunk, "call": sc.ToolCall,
         "server": importlib.import_module(sc.__name__ + ".testing").MockServer}


def readme():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return file.read()


def blocks(text):
    """Yield (line number, program) of each block of Python."""
    for found in re.finditer(r"(?ms)^```python\n(.*?)^```", text):
        yield text.count("\n", 0, found.start()) + 1, found.group(1)


def slug(heading):
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def tool_call(tool):
    """A call of the tool with an argument of the right type for each of its parameters."""
    function = tool["function"]
    properties = function.get("parameters", {}).get("properties", {})
    arguments = {name: (schema.get("enum") or [SAMPLES[schema.get("type", "string")]])[0]
                 for name, schema in properties.items()}
    return {"index": 0, "id": "call_1", "type": "function", "function": {
        "name": function["name"], "arguments": json.dumps(arguments)}}


def respond(conn):
    """Answer as a model would: a tool call where there are tools, JSON where it is wanted."""
    if conn.path.endswith("/quotas"):
        return conn.send_json({"weeklyTokenLimit": {"remainingCredits": "$18.12"}})
    if conn.path.endswith("/search"):
        return conn.send_json({"results": [{"url": "https://curl.se/", "text": "curl"}]})
    if conn.method == "GET":
        return conn.send_json({"data": [{"id": "syn:large:text", "context_length": 524288}]})
    if conn.path.endswith("/embeddings"):
        return conn.send_json({"object": "list", "model": "m", "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]})
    asked = conn.json
    answered = any(message.get("role") == "tool" for message in asked["messages"])
    if asked.get("tools") and not answered:
        message = {"tool_calls": [tool_call(asked["tools"][0])]}
        items = [chunk(role="assistant", **message), chunk(finish_reason="tool_calls")]
        choice = {"index": 0, "finish_reason": "tool_calls",
                  "message": dict(message, role="assistant", content=None)}
    else:
        text = '{"city": "Paris"}' if asked.get("response_format") else "Hello there."
        items = chunks(*re.findall(r"\S+\s*", text))
        choice = {"index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": text, "reasoning_content": "A greeting."}}
    if asked.get("stream"):
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        return conn.send_sse(items + [dict(chunk(), choices=[], usage=usage)])
    return conn.send_json(completion(choices=[choice]))


class Readme(unittest.TestCase):
    def test_programs(self):
        """Each Python block runs as it stands, and says something or defines something."""
        programs = list(blocks(readme()))
        self.assertGreaterEqual(len(programs), 8)
        for line, program in programs:
            with self.subTest(line=line), Server(respond) as server:
                self.run_program(line, program, server)

    def run_program(self, line, program, server):
        code = compile("\n" * line + program, "README.md", "exec")
        settings = {"SYNTHETIC_BASE_URL": server.base_url, "SYNTHETIC_API_KEY": KEY}
        before, printed = os.getcwd(), io.StringIO()
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, settings), \
                mock.patch.object(sys, "stdin", io.StringIO("hello\n")), \
                contextlib.redirect_stdout(printed):
            os.chdir(folder)
            try:
                exec(code, {"__name__": "__main__"})
            finally:
                os.chdir(before)
        if "print(" in program:
            self.assertTrue(printed.getvalue(), "it was to print something")

    def test_first_program(self):
        """The first block streams or prints an answer, in a few lines."""
        _, program = next(blocks(readme()))
        self.assertLessEqual(len(program.strip().split("\n")), 12)
        self.assertIn("synthetic_client", program)
        with Server(respond) as server:
            self.run_program(0, program, server)
            self.assertTrue(server.requests)

    def test_links(self):
        """Relative links lead to files that are there, anchors to headings."""
        text = readme()
        headings = {slug(h) for h in re.findall(r"(?m)^#+ (.*)$", text)}
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match("[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            with self.subTest(target):
                if path:
                    self.assertTrue(os.path.exists(os.path.join(ROOT, path)))
                elif anchor:
                    self.assertIn(anchor, headings)

    def test_named_calls(self):
        """What README calls by name in backticks exists."""
        text = re.sub(r"(?ms)^```.*?^```", "", readme())
        owners = [builtins, pydoc, sc] + [getattr(sc, name) for name in sc.__all__]
        for owner, name in re.findall(r"`(?:(\w+)\.)?(\w+)\(", text):
            with self.subTest("%s.%s()" % (owner, name)):
                places = [NAMED[owner]] if owner in NAMED else owners
                if not owner or owner in NAMED:
                    self.assertTrue(any(hasattr(place, name) for place in places))

    def test_fields(self):
        """The table of results has every field of each object that is in it."""
        rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", readme()))
        for name in ("ChatCompletion", "Choice", "Message", "Usage", "Meta", "Model", "Pricing",
                     "EmbeddingResponse", "SearchResult", "Quotas"):
            for field in set(getattr(sc, name).__dataclass_fields__) - {"extra"}:
                self.assertRegex(rows[name], r"`(\w*\.)?%s\b" % field, name)

    def test_named_errors(self):
        """Every error that README names is one of ours or of Python's."""
        for name in set(re.findall(r"\b[A-Z][A-Za-z]+Error\b", readme())):
            self.assertTrue(hasattr(sc, name) or hasattr(builtins, name), name)

    def test_named_variables(self):
        """README names no SYNTHETIC_ variable that the package does not read."""
        package = os.path.dirname(sc.__file__)
        source = ""
        for name in os.listdir(package):
            if name.endswith(".py"):
                with open(os.path.join(package, name), encoding="utf-8") as file:
                    source += file.read()
        for name in set(re.findall(r"\bSYNTHETIC_[A-Z_]+\b", readme())):
            self.assertTrue(name in source, name)


if __name__ == "__main__":
    unittest.main()
