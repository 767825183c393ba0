# SPDX-License-Identifier: MIT
"""The command line: in this process, as a process of its own, and in a terminal."""
import contextlib
import importlib
import io
import json
import os
import platform
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

from . import synthetic_client as sc
from .server import Server, answer, at_once, chunk, chunks, completion, environment
from .test_service import MODELS, QUOTAS

try:
    import readline
except ImportError:
    readline = None
try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows
    pty = None

cli = importlib.import_module(sc.__name__ + ".__main__")
PACKAGE = os.path.dirname(os.path.abspath(sc.__file__))
LONG_ID = "hf:nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4"  # the longest of the service's
# Opened by the first process of a session, a terminal sends its Ctrl-C there.
TAKE_TERMINAL = """
import os, sys
os.open(os.ttyname(0), os.O_RDWR)
os.execv(sys.executable, [sys.executable] + sys.argv[1:])
"""
LONELY = """
import fcntl, runpy, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: up
    try:
        any_socket.connect(("192.0.2.1", 80))
    except OSError as error:
        assert "unreachable" in str(error), error
sys.argv = ["synthetic-client", "demo", "--json"]
runpy.run_module(%r, run_name="__main__", alter_sys=True)
"""
PARAMETERS = {
    "temperature": 0.5, "top_p": 1, "top_k": 3, "min_p": 0.1, "max_tokens": 7,
    "max_completion_tokens": 9, "frequency_penalty": -1, "presence_penalty": 1.5,
    "repetition_penalty": 1.1, "stop": "END", "n": 1, "seed": 7, "logit_bias": {"5": -1},
    "logprobs": True, "top_logprobs": 2, "tools": [{"type": "function"}],
    "tool_choice": {"type": "function"}, "parallel_tool_calls": False,
    "response_format": {"type": "json_object"}, "reasoning_effort": "low",
    "stream_options": {"include_usage": True}, "user": "u-1", "extra_body": {"x": None},
}


class Screen(io.StringIO):
    """A terminal that does nothing but keep what is printed."""

    def isatty(self):
        return True


class CommandCase(unittest.TestCase):
    def call(self, *arguments, script=(), stdin="", to=io.StringIO, **variables):
        """Run a command here; return its exit code, stdout and stderr. Keeps the requests."""
        printed, said = to(), to()
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

    def test_interrupted_line(self):
        """Interrupted in a terminal, it leaves the shell a line of its own; elsewhere nothing."""
        for to, said in ((Screen, "\n"), (io.StringIO, "")):
            with mock.patch.object(cli, "_answer", side_effect=KeyboardInterrupt):
                self.assertEqual(self.call("chat", "x", to=to), (130, "", said))

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
        known = importlib.import_module(sc.__name__ + ".request")
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
        deep = "[" * 100000
        self.assertLess(len(self.wrong("chat", "x", "--tools", deep)), 200)
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

    def test_reasoning_alone(self):
        """Reasoning that ate all the tokens has its line, and the reason one of its own."""
        for whole in (False, True):
            given = completion()
            given["choices"][0].update(finish_reason="length", message={"reasoning": "hm"})
            events = [chunk(reasoning="hm"), chunk(finish_reason="length")]
            code, printed, said = self.call(
                "chat", "x", "--reasoning", *["--no-stream"] * whole,
                script=[given if whole else events])
            self.assertEqual((code, printed), (0, ""))
            self.assertRegex(said, r"^hm\nThe answer reached .*--max-tokens.*\n$")

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

    def test_control_characters(self):
        """Nothing that a server sends steers a terminal; a pipe gets it as it is."""
        odd = "a\x1b[31mb\x07\tc\r\n\x9bd"
        self.assertEqual(self.call("chat", "x", script=[chunks(odd)], to=Screen)[1],
                         "a[31mb\tc\nd\n")
        self.assertEqual(self.call("chat", "x", script=[chunks(odd)])[1], odd + "\n")

    def test_colours(self):
        """Reasoning is dim in a terminal, unless NO_COLOR is set to anything."""
        events = [chunk(reasoning_content="hm"), chunk("So"), chunk(finish_reason="stop")]
        for colours, dim in (({}, "\x1b[2mhm\x1b[0m\x1b[2m\n\x1b[0m"), ({"NO_COLOR": ""}, None),
                             ({"NO_COLOR": "1"}, "hm\n")):
            said = self.call("chat", "x", "--reasoning", script=[events], to=Screen, **colours)
            self.assertEqual(said[1:], ("So\n", dim or "\x1b[2mhm\x1b[0m\x1b[2m\n\x1b[0m"))

    def test_other_encodings(self):
        """What stdin and stdout cannot hold is read and printed as far as it can be."""
        printed = io.BytesIO()
        with Server([chunks("\u00e9\u4e2d!")]) as server, \
                mock.patch.dict(os.environ, environment(server), clear=True), \
                mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff?"), "utf-8")), \
                contextlib.redirect_stdout(io.TextIOWrapper(printed, "ascii", newline="\n")):
            self.assertRaises(SystemExit, cli.main, ["chat"])
            self.assertEqual(server.requests[0].json["messages"][0]["content"], "\ufffd?")
            self.assertEqual(printed.getvalue(), b"??!\n")

    def test_closed_standard_streams(self):
        """Closed stdin, stdout and stderr, which are None, do no harm."""
        closed = mock.patch.multiple(sys, stdin=None, stdout=None, stderr=None)
        with Server([chunks("unheard")]) as server, \
                mock.patch.dict(os.environ, environment(server), clear=True):
            for arguments, code in ((["chat", "x"], 0), (["chat"], 2), (["chat", "--n", "x"], 2)):
                with closed, self.assertRaises(SystemExit) as ended:
                    cli.main(arguments)
                self.assertEqual(ended.exception.code, code)
            self.assertEqual(len(server.requests), 1)


class About(CommandCase):
    def test_version(self):
        """--version prints the package's."""
        self.assertEqual(self.call("--version"), (0, sc.__version__ + "\n", ""))

    def test_program(self):
        """Usage and errors name the program as it was started."""
        module = "python3 -m " + sc.__name__
        for path, name in ((os.path.join("lib", "client", "__main__.py"), module),
                           (os.path.join("bin", "client.pyz"), "python3 client.pyz"),
                           (os.path.join("bin", "synthetic-client"), "synthetic-client")):
            with mock.patch.object(sys, "argv", [path]):
                self.assertIn("usage: %s chat [PROMPT]" % name, self.call("chat", "--help")[1])
                self.assertTrue(self.wrong("nonsense").startswith(name + ": "))


class Tables(CommandCase):
    def test_models(self):
        """The table has id, context, prices and features, aliases first."""
        models = {"data": MODELS["data"] + [{
            "id": "syn:large:text", "context_length": 524288, "supported_features": ["tools"],
            "pricing": {"prompt": "$0.0000006", "completion": "0"}}]}
        code, printed, said = self.call("models", script=[models], SYNTHETIC_API_KEY="")
        self.assertEqual((code, printed.count("\n")), (0, 4))
        lines = [line.split() for line in printed.splitlines()]
        self.assertEqual(lines[1], ["syn:large:text", "524288", "0.60", "0.00", "---t"])
        self.assertEqual(lines[2], ["hf:meta-llama/Llama-3.3-70B-Instruct", "?", "0.90", "?", "?"])
        self.assertEqual(lines[3], ["hf:zai-org/GLM-4.7", "202752", "0.55", "2.19", "jrst"])
        self.assertIn("structured_outputs", said)

    def test_models_in_80_columns(self):
        """Every line fits 80 columns, with the longest ids that there are."""
        able = MODELS["data"][0]["supported_features"] + ["web_search"]
        models = {"data": [{}, dict(MODELS["data"][0], id=LONG_ID, supported_features=able,
                                    input_modalities=["text", "image"])]}
        code, printed, said = self.call("models", script=[models])
        self.assertEqual(code, 0)
        self.assertLessEqual(max(map(len, (printed + said).splitlines())), 80)
        self.assertRegex(printed, re.escape(LONG_ID) + " +202752 +0.55 +2.19 +ijrstw\n")
        code, printed, _ = self.call("models", script=[{"data": []}])
        self.assertEqual((code, printed.splitlines()[0].split()[0]), (0, "MODEL"))

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
        coloured = self.call("quotas", script=[quotas], to=Screen)[1]
        self.assertIn("[\x1b[32m################\x1b[0m]", coloured)
        self.assertIn("[\x1b[33m####------------\x1b[0m]", coloured)
        self.assertEqual(self.call("quotas", script=[quotas], to=Screen, NO_COLOR="1")[1], printed)

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


class Demo(CommandCase):
    @classmethod
    def setUpClass(cls):
        cls.lonely = None
        if shutil.which("unshare"):  # it ends while the other test runs
            cls.lonely = subprocess.Popen(
                ["unshare", "-r", "--net", sys.executable, "-c", LONELY % sc.__name__],
                env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)

    def test_demo(self):
        """demo shows a chat, a stream, an error and what is sent, whatever the environment has."""
        code, printed, said = self.call("demo", SYNTHETIC_API_KEY="", SYNTHETIC_BASE_URL="x",
                                        no_proxy="", http_proxy="http://127.0.0.1:9")
        self.assertEqual((code, said, self.requests), (0, "", []))
        for part in ("A ball of ice", "away from the sun", "RateLimitError: HTTP 429",
                     'POST /openai/v1/chat/completions {"model": "syn:large:text"',
                     '"content": "What is a comet?"', '"stream": true'):
            self.assertIn(part, printed)
        self.assertLessEqual(max(map(len, printed.splitlines())), 80)

    def test_no_network(self):
        """demo works where there is loopback alone; with --json what was sent is on stdout."""
        if self.lonely is None:
            self.skipTest("this system has no unshare")
        printed, said = self.lonely.communicate(timeout=20)
        if said.startswith(b"unshare:"):
            self.skipTest(said.decode().strip())
        self.assertEqual(self.lonely.returncode, 0, said)
        self.assertIn(b"RateLimitError", said)
        sent = [body.get("stream") for body in json.loads(printed.decode())]
        self.assertEqual(sent, [None, True, None])


class Process(CommandCase):
    def open(self, server, *command, **variables):
        """Start a command in a process of its own."""
        process = subprocess.Popen(
            (sys.executable,) + command, env=environment(server, **variables),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        return process

    @unittest.skipUnless(os.path.isdir(PACKAGE), "it packs a folder, and this package is in a zip")
    def test_zipapp(self):
        """The zipapp, and the folder itself, do all that the package does."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        archive = os.path.join(folder, "synthetic.pyz")
        subprocess.check_call([sys.executable, "-m", "zipapp", PACKAGE, "-o", archive])
        with Server(lambda conn: conn.send_sse(chunks(conn.json["user"]))) as server:

            def check(case):
                flags, code, printed = case
                process = self.open(server, "-I", "-S", "-W", "error", *flags)
                found = process.communicate(timeout=20)
                self.assertEqual((process.returncode, found[0].strip()), (code, printed))
                self.assertEqual(found[1].count(b"\n"), code // 2, found[1])

            at_once(self, check, [
                ([archive, "chat", "hi", "--user", "from the zip"], 0, b"from the zip"),
                ([PACKAGE, "chat", "hi", "--user", "folder"], 0, b"folder"),
                ([archive, "chat", "--n", "x"], 2, b"")])

    def test_interrupt_before_text(self):
        """Ctrl-C before there is any text is 130, and a new line in a terminal alone."""
        interrupt = mock.patch.object(sc.SyntheticClient, "stream_chat",
                                      side_effect=KeyboardInterrupt)
        with interrupt:
            self.assertEqual(self.call("chat", "x"), (130, "", ""))
            self.assertEqual(self.call("chat", "x", to=Screen), (130, "", "\n"))

    def test_ends(self):
        """A reader that goes away ends a command quietly with 0, Ctrl-C with 130."""
        def handler(conn):
            conn.start_sse()
            conn.event(chunk("line\n"))
            while not conn.gone(0.01):
                conn.event(chunk("line\n"))

        with Server(handler) as server:
            leave, stop = [self.open(server, "-m", sc.__name__, "chat", "x") for _ in range(2)]
            for process in (leave, stop):
                self.assertEqual(process.stdout.readline().strip(), b"line")
            leave.stdout.close()
            self.assertEqual((leave.stderr.read(), leave.wait(10)), (b"", 0))
            if os.name != "nt":
                stop.send_signal(signal.SIGINT)
                self.assertEqual((stop.communicate(timeout=10)[1], stop.returncode), (b"", 130))
            else:
                stop.kill()


class Terminal:
    """A command in a pseudo-terminal of its own, of 80 columns."""

    def __init__(self, test, server, *arguments, **variables):
        self.test, self.seen = test, ""
        try:
            self.file, end = pty.openpty()
        except OSError as error:
            test.skipTest("no pseudo-terminal: %s" % error)
        test.addCleanup(os.close, self.file)
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", TAKE_TERMINAL, "-m", sc.__name__, *arguments],
            env=environment(server, **variables), stdin=end, stdout=end, stderr=end,
            start_new_session=True)
        os.close(end)

    def read(self, seconds=8.0):
        """Return what comes next, "" at the end."""
        ready = select.select([self.file], [], [], max(0, seconds))[0]
        try:
            return os.read(self.file, 4096).decode("utf-8", "replace") if ready else ""
        except OSError:  # Linux's way to say that it has ended
            return ""

    def until(self, text, seconds=8.0):
        """Read until a text has been seen since the last one; return what came before it."""
        ends = time.monotonic() + seconds
        while text not in self.seen:
            data = self.read(ends - time.monotonic())
            self.test.assertTrue(data, "%r did not come: %r" % (text, self.seen))
            self.seen += data
        before, _, self.seen = self.seen.partition(text)
        return before

    def write(self, data):
        os.write(self.file, data)

    def end(self):
        """Read to the end; return the exit code and what came."""
        for data in iter(self.read, ""):
            self.seen += data
        return self.process.wait(10), self.seen


@unittest.skipUnless(pty, "this system has no pseudo-terminals")
class InTerminal(unittest.TestCase):
    def test_text_as_it_comes(self):
        """Streamed text is shown when it arrives, not when a line or the answer has ended."""
        def handler(conn):
            conn.start_sse()
            for event in (chunk(reasoning_content="hm"), chunk("first"), chunk(" second")):
                conn.event(event)
                conn.wait(0.1)
            conn.gone()

        with Server(handler) as server:
            shown = Terminal(self, server, "chat", "x", "--reasoning")
            times = []
            for text in ("\x1b[2mhm\x1b[0m", "first", " second"):
                shown.until(text)
                times.append(time.monotonic())
            self.assertGreater(times[1] - times[0], 0.05)
            self.assertGreater(times[2] - times[1], 0.05)
            shown.write(b"\x03")
            code, rest = shown.end()
            self.assertEqual((code, rest.replace("^C", "").strip()), (130, ""))

    @unittest.skipIf(platform.python_implementation() == "PyPy", "it has a line editor of its own")
    def test_conversation(self):
        """With no prompt: a conversation; errors and Ctrl-C do not end it, arrow keys work."""
        def endless(conn):
            conn.start_sse()
            conn.event(chunk("half an"))
            conn.gone()

        script = [chunks("Hello you"), endless, answer(500, {"error": "broken"}), chunks("Bye")]
        with Server(script) as server:
            shown = Terminal(self, server, "chat", "--max-retries", "0", "--temperature", "0")
            for seen, typed in (
                ("> ", b"hi\n"), ("Hello you\r\n", b""), ("> ", b"\n"), ("> ", b"more\n"),
                ("half an", b"\x03"), ("> ", b"lost\n"), ("broken", b""), ("> ", b"?"),
                ("?", b"\x03"), ("> ", b"\x1b[Aend\n"), ("Bye\r\n", b""),
                ("> ", b"\x04"),
            ):
                shown.until(seen)
                if typed == b"\x03":
                    time.sleep(0.05)  # before it waits for input, readline just notes a signal
                shown.write(typed)
            self.assertEqual(shown.end()[0], 0)
        self.assertEqual(
            [item["content"] for item in server.requests[-1].json["messages"]],
            ["hi", "Hello you", "more", "half an", ("lost" if readline else "\x1b[A") + "end"])
        self.assertEqual(server.requests[-1].json["temperature"], 0)

    @unittest.skipUnless(readline and "libedit" not in str(readline.__doc__), "no GNU readline")
    @unittest.skipIf(platform.python_implementation() == "PyPy", "it has a line editor of its own")
    def test_pasted_lines(self):
        """Lines that are pasted together are one question."""
        with Server([chunks("Yes")]) as server:
            shown = Terminal(self, server, "chat")
            self.assertIn("\x1b[?2004h", shown.until("> "))  # asks for marks around what is pasted
            shown.write(b"\x1b[200~one\ntwo\x1b[201~\n")
            shown.until("Yes\r\n")
            shown.until("> ")
            shown.write(b"\x04")
            self.assertEqual(shown.end()[0], 0)
        self.assertEqual([request.json["messages"][0]["content"].split()
                          for request in server.requests], [["one", "two"]])

    def test_conversation_without_a_key(self):
        """A setting that is wrong ends a conversation, as it ends any command."""
        with Server() as server:
            shown = Terminal(self, server, "chat", SYNTHETIC_API_KEY="",
                             SYNTHETIC_BASE_URL="https://api.synthetic.new/openai/v1")
            shown.until("> ")
            shown.write(b"hi\n")
            code, text = shown.end()
        self.assertEqual(code, 2)
        self.assertIn("SYNTHETIC_API_KEY", text)

    def test_tables(self):
        """Tables fit 80 columns; meters are coloured, unless NO_COLOR is set."""
        def respond(conn):
            conn.send_json(QUOTAS if "quotas" in conn.path else {
                "data": [dict(MODELS["data"][0], id=LONG_ID)]})

        with Server(respond) as server:
            shown = [Terminal(self, server, "models"), Terminal(self, server, "quotas"),
                     Terminal(self, server, "quotas", NO_COLOR="1")]
            models, coloured, plain = [terminal.end() for terminal in shown]
        self.assertEqual({code for code, _ in (models, coloured, plain)}, {0})
        for _, text in (models, plain):
            self.assertLessEqual(max(map(len, text.split("\r\n"))), 80)
            self.assertNotIn("\x1b", text)
        self.assertIn(LONG_ID, models[1])
        self.assertIn("\x1b[32m####", coloured[1])
        self.assertEqual(re.sub("\x1b.*?m", "", coloured[1]), plain[1])


if __name__ == "__main__":
    unittest.main()
