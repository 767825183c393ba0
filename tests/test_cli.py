# SPDX-License-Identifier: MIT
"""The command line: in this process, as a process of its own, and in a terminal."""
import contextlib
import importlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import zipapp
from unittest import mock

from . import synthetic_client as sc
from .server import KEY, Server, answer, chunk, chunks, completion
from .test_service import MODELS, QUOTAS

try:
    import pty
except ImportError:  # Windows
    pty = None

cli = importlib.import_module(sc.__name__ + ".__main__")
PACKAGE = os.path.dirname(os.path.abspath(sc.__file__))
ROOT = os.path.dirname(PACKAGE)
PARAMETERS = {
    "temperature": 0.5, "top_p": 1, "top_k": 3, "min_p": 0.1, "max_tokens": 7,
    "max_completion_tokens": 9, "frequency_penalty": -1, "presence_penalty": 1.5,
    "repetition_penalty": 1.1, "stop": "END", "n": 1, "seed": 7, "logit_bias": {"5": -1},
    "logprobs": True, "top_logprobs": 2, "tools": [{"type": "function"}],
    "tool_choice": {"type": "function"}, "parallel_tool_calls": False,
    "response_format": {"type": "json_object"}, "reasoning_effort": "low",
    "stream_options": {"include_usage": True}, "user": "u-1", "extra_body": {"x": None},
}


def environment(server=None, **variables):
    """Return an environment for the command: a key and the server, and little else."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("SYNTHETIC_", "PYTHON")) and name not in ("NO_COLOR", "TERM")}
    kept.update(SYNTHETIC_API_KEY=KEY, TERM="xterm", no_proxy="*", PYTHONWARNINGS="error")
    if server is not None:
        kept["SYNTHETIC_BASE_URL"] = server.base_url
    kept.update(variables)
    return kept


class CommandCase(unittest.TestCase):
    def call(self, *arguments, script=(), stdin="", **variables):
        """Run a command here; return its exit code, stdout and stderr. Keeps the requests."""
        printed, said = io.StringIO(), io.StringIO()
        with Server(list(script)) as server, \
                mock.patch.dict(os.environ, environment(server, **variables), clear=True), \
                mock.patch.object(sys, "stdin", io.StringIO(stdin)), \
                contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            with self.assertRaises(SystemExit) as ended:
                cli.main(arguments)
            self.requests = server.requests
        return ended.exception.code, printed.getvalue(), said.getvalue()

    def wrong(self, *arguments, **options):
        """Check that a command is refused in one line with code 2, nothing sent; return it."""
        code, printed, said = self.call(*arguments, **options)
        self.assertEqual((code, printed, said.count("\n"), self.requests), (2, "", 1, []), said)
        return said


class Chat(CommandCase):
    def test_prompt(self):
        """The prompt is sent to the default model, streamed, and the answer printed."""
        code, printed, said = self.call("chat", "hello", script=[chunks("Hi", " there")])
        self.assertEqual((code, printed, said), (0, "Hi there\n", ""))
        self.assertEqual(self.requests[0].json, {
            "model": "syn:large:text", "stream": True,
            "messages": [{"role": "user", "content": "hello"}]})

    def test_stdin(self):
        """What comes on stdin is the prompt, or stands behind the argument."""
        for arguments, stdin, sent in ((["chat"], "a file\n", "a file\n"),
                                       (["chat", "A?"], "a file", "A?\n\na file"),
                                       (["chat", "alone"], "", "alone")):
            self.call(*arguments, stdin=stdin, script=[chunks("x")])
            self.assertEqual(self.requests[0].json["messages"][0]["content"], sent)

    def test_no_prompt(self):
        """No prompt, an empty one, or an empty stdin is exit 2, and nothing is sent."""
        for arguments in (["chat"], ["chat", ""], ["chat", " \n"], ["chat", "--json"]):
            self.assertIn("prompt", self.wrong(*arguments, stdin="\n"))

    def test_model(self):
        """The model is --model, else SYNTHETIC_MODEL."""
        self.call("chat", "x", script=[chunks("x")], SYNTHETIC_MODEL="hf:a/b")
        self.assertEqual(self.requests[0].json["model"], "hf:a/b")
        self.call("chat", "x", "--model", "hf:c/d", script=[chunks("x")], SYNTHETIC_MODEL="hf:a/b")
        self.assertEqual(self.requests[0].json["model"], "hf:c/d")

    def test_system(self):
        """--system stands before the question."""
        self.call("chat", "x", "--system", "be brief", script=[chunks("x")])
        self.assertEqual(self.requests[0].json["messages"][0],
                         {"role": "system", "content": "be brief"})

    def test_every_parameter(self):
        """Each parameter of a request is a flag."""
        known = importlib.import_module(sc.__name__ + ".schema")
        self.assertEqual(set(PARAMETERS), set(known.parameters(known.ChatParams))
                         - set(known.parameters(known.CallOptions)))
        flags = []
        for name, value in PARAMETERS.items():
            flags += ["--" + name.replace("_", "-"),
                      value if isinstance(value, str) else json.dumps(value)]
        code, _, said = self.call("chat", "x", *flags, script=[chunks("x")])
        self.assertEqual((code, said), (0, ""))
        sent = {key: item for key, item in self.requests[0].json.items()
                if key not in ("model", "messages", "stream")}
        expected = dict(PARAMETERS, stop=["END"], x=None)
        del expected["extra_body"]
        self.assertEqual(sent, expected)

    def test_stop_twice(self):
        """--stop may be repeated, and a text that looks like JSON stays a text."""
        self.call("chat", "x", "--stop", "3", "--stop", "{", "--tool-choice", "none",
                  script=[chunks("x")])
        self.assertEqual(self.requests[0].json["stop"], ["3", "{"])
        self.assertEqual(self.requests[0].json["tool_choice"], "none")

    def test_wrong_flags(self):
        """A wrong value or an unknown flag is one line that names it, and exit 2."""
        for flag, value in (("--temperature", "hot"), ("--max-tokens", "1.5"), ("--n", "true"),
                            ("--tools", "{}"), ("--logit-bias", "[1]"), ("--timeout", "x"),
                            ("--parallel-tool-calls", "yes"), ("--temperatur", "1")):
            self.assertIn(flag, self.wrong("chat", "x", flag, value))
        self.assertIn("timeout", self.wrong("chat", "x", "--timeout", "-1"))
        self.assertIn("base_url", self.wrong("chat", "x", "--base-url", "ftp://x"))
        self.assertIn("COMMAND", self.wrong())
        self.assertIn("nonsense", self.wrong("nonsense"))

    def test_json(self):
        """--json prints the whole answer as one object."""
        whole = completion("h\u00e9llo")
        code, printed, _ = self.call("chat", "x", "--json", script=[whole])
        self.assertEqual((code, json.loads(printed)), (0, whole))

    def test_no_stream(self):
        """--no-stream prints the answer when it is whole; several choices are all printed."""
        code, printed, _ = self.call("chat", "x", "--no-stream", script=[completion("one\ntwo")])
        self.assertEqual((code, printed), (0, "one\ntwo\n"))
        self.assertNotIn("stream", self.requests[0].json)
        two = completion("a")
        two["choices"].append(dict(two["choices"][0], index=1))
        self.assertEqual(self.call("chat", "x", "--n", "2", script=[two])[1], "a\na\n")

    def test_reasoning(self):
        """--reasoning shows the reasoning on stderr, plain where that is no terminal."""
        events = [chunk(reasoning="I "), chunk(reasoning_content="think"), chunk("So"),
                  chunk(finish_reason="stop")]

        def handler(conn):
            conn.send_sse(events)

        self.assertEqual(self.call("chat", "x", script=[handler])[1:], ("So\n", ""))
        self.assertEqual(self.call("chat", "x", "--reasoning", script=[handler])[1:],
                         ("So\n", "I think\n"))
        whole = completion("So")
        whole["choices"][0]["message"]["reasoning"] = "hm"
        self.assertEqual(self.call("chat", "x", "--reasoning", "--no-stream", script=[whole])[1:],
                         ("So\n", "hm\n"))

    def test_tool_calls(self):
        """A tool call is printed as the call that it is."""
        call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
        events = [chunk(tool_calls=[call]), chunk(finish_reason="tool_calls")]
        code, printed, said = self.call("chat", "x", script=[lambda conn: conn.send_sse(events)])
        self.assertEqual((code, printed, said), (0, 'f({"a": 1})\n', ""))

    def test_limit_of_tokens(self):
        """An answer that max_tokens cut short is said to be."""
        events = [chunk("a"), chunk(finish_reason="length")]
        code, printed, said = self.call("chat", "x", script=[lambda conn: conn.send_sse(events)])
        self.assertEqual((code, printed), (0, "a\n"))
        self.assertIn("--max-tokens", said)

    def test_failures(self):
        """What fails on the way or at the service is one line and exit 1."""
        refused = answer(401, {"error": "bad key\nreally"})
        code, printed, said = self.call("chat", "x", script=[refused])
        self.assertEqual((code, printed, said.count("\n")), (1, "", 1))
        self.assertIn("bad key", said)
        broken = [chunk("Hel")]
        code, printed, said = self.call(
            "chat", "x", script=[lambda conn: conn.send_sse(broken, done=False)])
        self.assertEqual((code, printed, said.count("\n")), (1, "Hel\n", 1))
        self.assertIn("whole", said)

    def test_no_key(self):
        """Without a key the line says how to get and set one, with exit 2."""
        said = self.wrong("chat", "x", SYNTHETIC_API_KEY="",
                          SYNTHETIC_BASE_URL="https://api.synthetic.new/openai/v1")
        self.assertIn("SYNTHETIC_API_KEY", said)


class Tables(CommandCase):
    def test_models(self):
        """The table has id, context, prices and features, aliases first."""
        models = {"data": MODELS["data"] + [{
            "id": "syn:large:text", "context_length": 524288, "supported_features": ["tools"],
            "pricing": {"prompt": "$0.0000006", "completion": "0"}}]}
        code, printed, said = self.call("models", script=[models], SYNTHETIC_API_KEY="")
        self.assertEqual((code, said), (0, ""))
        lines = [line.split() for line in printed.splitlines()]
        self.assertEqual(lines[1], ["syn:large:text", "524288", "0.60", "0.00", "---t"])
        self.assertEqual(lines[2], ["hf:meta-llama/Llama-3.3-70B-Instruct", "?", "0.90", "?", "?"])
        self.assertEqual(lines[3], ["hf:zai-org/GLM-4.7", "202752", "0.55", "2.19", "jrst"])
        self.assertIn("structured_outputs", printed)

    def test_models_in_80_columns(self):
        """Every line fits 80 columns, with the longest ids that there are."""
        name = "hf:nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4"
        models = {"data": [dict(MODELS["data"][0], id=name), {}]}
        _, printed, _ = self.call("models", script=[models])
        self.assertLessEqual(max(map(len, printed.splitlines())), 80)

    def test_models_json(self):
        """--json prints the list as it came."""
        _, printed, _ = self.call("models", "--json", script=[MODELS])
        self.assertCountEqual(json.loads(printed), MODELS["data"])

    def test_quotas(self):
        """Each meter has a bar and what is left, and says when more comes."""
        soon = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() + 7800))
        quotas = dict(QUOTAS, weeklyTokenLimit={
            "nextRegenAt": soon, "maxCredits": "$24.00", "remainingCredits": "$6.00"})
        code, printed, said = self.call("quotas", script=[quotas])
        self.assertEqual((code, said), (0, ""))
        lines = printed.splitlines()
        self.assertEqual(len(lines), 5)
        self.assertRegex(lines[0], r"^five-hour requests +\[#{16}\] 498.9 of 500 left")
        self.assertRegex(lines[1], r"^weekly credits.*\[####-{12}\] \$6.00 of \$24.00 left "
                                   r"renews in 2 h (9|10) min$")
        self.assertLessEqual(max(map(len, lines)), 80)

    def test_pay_as_you_go(self):
        """A key without quotas is said to have none."""
        code, printed, _ = self.call("quotas", script=[{}])
        self.assertEqual((code, printed.count("\n")), (0, 1))
        self.assertIn("subscription", printed)

    def test_quotas_json(self):
        """--json prints the quotas as they came."""
        self.assertEqual(json.loads(self.call("quotas", "--json", script=[QUOTAS])[1]), QUOTAS)

    def test_empty_meters(self):
        """Meters that the service leaves half empty do no harm."""
        odd = {"subscription": {"limit": 5}, "search": {}, "rollingFiveHourLimit": {"max": 1},
               "freeToolCalls": {"limit": 0, "requests": 3}}
        code, printed, said = self.call("quotas", script=[odd])
        self.assertEqual((code, said, printed.count("\n")), (0, "", 2))


class Process(unittest.TestCase):
    def run_command(self, *command, stdin=b"", **variables):
        """Run a command in a process of its own; return it, ended."""
        return subprocess.run(
            (sys.executable,) + command, input=stdin, cwd=ROOT, env=environment(**variables),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20)

    def test_demo(self):
        """demo shows a chat, a stream, an error and what was sent, with no key and no network."""
        done = self.run_command("-m", sc.__name__, "demo", SYNTHETIC_API_KEY="", no_proxy="",
                                http_proxy="http://127.0.0.1:9", LC_ALL="C")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        lines = done.stdout.decode().splitlines()
        for said in ("ball of ice", "points away", "RateLimitError", '"role": "user"'):
            self.assertIn(said, done.stdout.decode())
        self.assertLessEqual(max(map(len, lines)), 80)

    def test_demo_json(self):
        """demo --json prints what was sent, as JSON."""
        done = self.run_command("-m", sc.__name__, "demo", "--json")
        self.assertEqual(len(json.loads(done.stdout.decode())), 3)
        self.assertIn(b"ball of ice", done.stderr)

    def test_zipapp(self):
        """The zipapp, and the folder itself, do all that the package does."""
        with tempfile.TemporaryDirectory() as folder:
            archive = os.path.join(folder, "synthetic.pyz")
            zipapp.create_archive(PACKAGE, archive)
            with Server([chunks("from the zip"), chunks("folder")]) as server:
                for path, said in ((archive, b"from the zip"), (PACKAGE, b"folder")):
                    done = self.run_command(
                        "-I", "-S", "-W", "error", path, "chat", "hi",
                        SYNTHETIC_BASE_URL=server.base_url)
                    self.assertEqual((done.returncode, done.stdout.strip(), done.stderr),
                                     (0, said, b""))
            done = self.run_command(archive, "chat", "--temperature", "x")
            self.assertEqual(done.returncode, 2)

    def test_closed_pipe(self):
        """A reader that goes away ends the command quietly."""
        with Server(lambda conn: conn.send_sse([chunk("line\n")] * 20000)) as server:
            process = subprocess.Popen(
                [sys.executable, "-m", sc.__name__, "chat", "x"], cwd=ROOT,
                env=environment(server), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)
            self.assertEqual(process.stdout.readline().strip(), b"line")
            process.stdout.close()
            self.assertEqual(process.stderr.read(), b"")
            process.stderr.close()
            self.assertEqual(process.wait(10), 0)

    @unittest.skipIf(os.name == "nt", "Windows has other signals")
    def test_interrupt(self):
        """Ctrl-C is exit 130 without a traceback."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("a"))
            conn.gone()

        with Server(handler) as server:
            process = subprocess.Popen(
                [sys.executable, "-m", sc.__name__, "chat", "x"], cwd=ROOT,
                env=environment(server), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)
            self.assertEqual(process.stdout.read(1), b"a")
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.communicate(timeout=10)[1], b"")
            self.assertEqual(process.returncode, 130)

    def test_other_encodings(self):
        """An answer that stdout cannot write is printed as far as it can be."""
        with Server([chunks("\u00e9\u4e2d!")]) as server:
            done = self.run_command("-m", sc.__name__, "chat", stdin=b"\xff?",
                                    SYNTHETIC_BASE_URL=server.base_url, PYTHONIOENCODING="ascii")
        self.assertEqual((done.returncode, done.stdout.strip()), (0, b"??!"))


@unittest.skipUnless(pty, "this system has no pseudo-terminals")
class Terminal(unittest.TestCase):
    def start(self, server, *arguments, **variables):
        """Start a command in a terminal of its own."""
        self.seen = ""
        pid, self.terminal = pty.fork()
        if not pid:
            os.chdir(ROOT)
            command = [sys.executable, "-m", sc.__name__] + list(arguments)
            os.execve(sys.executable, command, environment(server, **variables))
        self.pid = pid
        self.addCleanup(os.close, self.terminal)

    def until(self, pattern, seconds=8.0):
        """Read until a pattern has been seen since the last one; return what came before it."""
        ends = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.seen)
            if found:
                before, self.seen = self.seen[:found.start()], self.seen[found.end():]
                return before
            ready = select.select([self.terminal], [], [], max(0, ends - time.monotonic()))[0]
            try:
                data = os.read(self.terminal, 4096) if ready else b""
            except OSError:  # Linux's way to say that it has ended
                data = b""
            self.assertTrue(data, "%r did not come: %r" % (pattern, self.seen))
            self.seen += data.decode("utf-8", "replace")

    def write(self, data):
        os.write(self.terminal, data)

    def end(self):
        """Wait for the end and return the exit code."""
        try:
            while os.read(self.terminal, 4096):
                pass
        except OSError:
            pass
        status = os.waitpid(self.pid, 0)[1]
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -status

    def test_text_as_it_comes(self):
        """Streamed text is shown when it arrives, not when the line or the answer has ended."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("first"))
            conn.wait(0.2)
            conn.event(chunk(" second"))
            conn.event(chunk(finish_reason="stop"))
            conn.end_sse()

        with Server(handler) as server:
            self.start(server, "chat", "x")
            self.until("first")
            begun = time.monotonic()
            self.until(" second\r\n")
            self.assertGreater(time.monotonic() - begun, 0.1)
            self.assertEqual(self.end(), 0)

    def test_conversation(self):
        """With no prompt: a conversation with a history; errors and Ctrl-C do not end it."""
        def endless(conn):
            conn.start_sse()
            conn.event(chunk("half an"))
            conn.gone()

        script = [chunks("Hello you"), endless, answer(500, {"error": "broken"}), chunks("Bye")]
        with Server(script) as server:
            self.start(server, "chat", "--max-retries", "0", "--temperature", "0")
            self.until("> ")
            self.write(b"hi\n")
            self.until("Hello you\r\n")
            self.until("> ")
            self.write(b"\n")
            self.until("> ")
            self.write(b"more\n")
            self.until("half an")
            self.write(b"\x03")
            self.until("> ")
            self.write(b"fail\n")
            self.until("broken")
            self.until("> ")
            self.write(b"half a line\x03")
            self.until("> ")
            self.write(b"end\n")
            self.until("Bye\r\n")
            self.until("> ")
            self.write(b"\x04")
            self.assertEqual(self.end(), 0)
        self.assertEqual(
            [item["content"] for item in server.requests[-1].json["messages"]],
            ["hi", "Hello you", "more", "half an", "end"])
        self.assertEqual(server.requests[-1].json["temperature"], 0)

    def test_colours(self):
        """Reasoning is dim and meters are coloured, unless NO_COLOR says otherwise."""
        reasoning = [chunk(reasoning_content="hm"), chunk("So"), chunk(finish_reason="stop")]
        script = [lambda conn: conn.send_sse(reasoning), QUOTAS]
        for variables, dim, green in (({}, "\x1b[2mhm\x1b[0m", "\x1b[32m####"),
                                      ({"NO_COLOR": "1"}, "hm\r\n", "[####")):
            with Server(script) as server:
                self.start(server, "chat", "x", "--reasoning", **variables)
                self.assertNotIn("\x1b[2m", self.until(re.escape(dim)))
                self.until("So")
                self.assertEqual(self.end(), 0)
                self.start(server, "quotas", **variables)
                self.until(re.escape(green))
                self.assertEqual(self.end(), 0)

    def test_control_characters(self):
        """Nothing that a server sends steers the terminal."""
        with Server([chunks("a\x1b[31mb\x07\tc\n\x9bd")]) as server:
            self.start(server, "chat", "x")
            self.assertRegex(self.until("d\r\n"), r"^a\[31mb\s+c\r\n$")  # a terminal has no tabs
            self.assertEqual(self.end(), 0)


if __name__ == "__main__":
    unittest.main()
