# SPDX-License-Identifier: MIT
"""llmock, a server that misbehaves as it is told and judges the client: we and openai before it.

Both are used by the same program: one that asks once more where its client says that it failed.
"""
import json
import time
import unittest
import urllib.request

from .. import synthetic_client as sc
from . import parts, results
from .others import PAUSE, Other

MODEL, KEY = "hf:test/model", "llmock-key"
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
CALL = {"name": "get_weather", "arguments": {"city": "Zürich"}}
TEXT = "one two three four five six seven eight"
REPLY = {"type": "reply", "text": TEXT}
TITLE = "What llmock's behaviours come to (gave_up: asking again could not have helped)"
HEADS = ["behaviour", "we", "verdict on us", "openai", "verdict on openai"]
ALLOWED = {"gave_up"}  # warned of where nothing could be gained by asking again
server = other = None


def setUpModule():
    parts.need(commands="setpriv llmock", modules="openai llmock")
    global server, other
    server = Llmock()
    unittest.addModuleCleanup(server.program.__exit__)
    other = Other("openai").__enter__()
    unittest.addModuleCleanup(other.__exit__)


class Llmock:
    def __init__(self):
        port = parts.free_port()
        self.origin = "http://127.0.0.1:%d" % port
        self.program = parts.Program("llmock", "serve", "-h", "127.0.0.1", "-p", str(port),
                                     "--stream-chunk-delay-ms", "20",  # else it is done first
                                     port=port).__enter__()

    def admin(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.origin + "/_llmock/" + path, data, 20) as response:
            return json.loads(response.read().decode())

    def run(self, behaviours, ask):
        """Return what `ask` gives, its seconds, its attempts, and the verdict's findings."""
        self.admin("reset", {})
        self.admin("scenario", {"behaviors": behaviours})
        begun = time.monotonic()
        found = ask()
        seconds = time.monotonic() - begun
        verdict = self.admin("verdict")
        findings = [(one["severity"], one["code"]) for one in verdict["findings"]]
        return found, seconds, verdict["attempts"], findings


def we(again=False, stream=False, timeout=10.0, **params):
    """Ask as others.py does for openai."""
    params.pop("model")
    options = {"base_url": server.origin + "/v1", "model": MODEL, "timeout": timeout}
    with sc.SyntheticClient(KEY, **options) as client:
        while True:
            try:
                if stream:
                    reply = client.stream_chat(**params).completion()
                else:
                    reply = client.chat(**params)
            except sc.SyntheticError as error:
                found = {"error": type(error).__name__, "said": str(error), "exception": error}
                if again:
                    again = False
                    time.sleep(PAUSE)
                    continue
                return found
            choice = reply.choices[0]
            calls = [[call.function.name, call.function.arguments]
                     for call in choice.message.tool_calls or ()]
            return {"text": reply.text, "finish_reason": choice.finish_reason, "calls": calls}


class Scenario(unittest.TestCase):
    def run_both(self, name, behaviours, timeout=10.0, allowed=(), patience=60, **params):
        """Run both, note it in the table, and return what we made of it.

        openai is ended after so many seconds of `patience`.
        """
        params = {"model": MODEL, "messages": [{"role": "user", "content": name}], **params}
        ours = server.run(behaviours, lambda: we(timeout=timeout, **params))
        theirs = server.run(behaviours, lambda: other.ask(
            base_url=server.origin + "/v1", key=KEY, timeout=timeout, seconds=patience, **params))
        cells = []
        for found, seconds, attempts, findings in (ours, theirs):
            said = found.get("error") or found["finish_reason"] or "no finish_reason"
            cells.append("%s, %d asked, %.1f s" % (said, attempts, seconds))
            cells.append(", ".join(code for _, code in findings) or "clean")
        results.note(TITLE, HEADS, [name, *cells])
        findings = {finding for finding in ours[3] if finding[1] not in allowed}
        self.assertEqual(findings, set(), ours)
        return ours


class Statuses(Scenario):
    def test_passing(self):
        """Each status that may pass is asked again, and the answer comes."""
        for status in (408, 409, 429, 500, 502, 503, 504, 529):
            with self.subTest(status):
                found, _, attempts, _ = self.run_both(
                    "%d once" % status, [{"type": "fail", "status": status}, REPLY])
                self.assertEqual((found.get("text"), attempts), (TEXT, 2))

    def test_lasting(self):
        """Each status that will not pass is raised at once, as its own class."""
        kinds = {400: "BadRequestError", 401: "AuthenticationError", 402: "PaymentRequiredError",
                 403: "PermissionDeniedError", 404: "NotFoundError", 413: "APIStatusError",
                 422: "UnprocessableEntityError"}
        for status, kind in kinds.items():
            with self.subTest(status):
                found, _, attempts, _ = self.run_both(
                    str(status), [{"type": "fail", "status": status, "message": "no way"}])
                self.assertEqual((found.get("error"), attempts), (kind, 1))
                self.assertIn("no way", found["said"])

    def test_outage(self):
        """A lasting outage is asked three times, ever later."""
        found, _, attempts, _ = self.run_both(
            "503 for good", [{"type": "fail", "status": 503, "times": None}])
        self.assertEqual((found["error"], attempts), ("InternalServerError", 3))

    def test_retry_after(self):
        """Retry-After is waited for; one of two minutes is the caller's to decide."""
        found, seconds, attempts, _ = self.run_both(
            "429, Retry-After: 1", [{"type": "fail", "status": 429, "retry_after": 1}, REPLY])
        self.assertEqual((found.get("text"), attempts), (TEXT, 2))
        self.assertGreaterEqual(seconds, 1)
        found, seconds, attempts, _ = self.run_both(
            "429, Retry-After: 120", [{"type": "fail", "status": 429, "retry_after": 120}, REPLY],
            allowed=ALLOWED, patience=3)
        self.assertEqual((found["error"], attempts), ("RateLimitError", 1))
        self.assertEqual(found["exception"].retry_after, 120)
        self.assertLess(seconds, 1)

    def test_quota(self):
        """A quota that is used up is not asked for again."""
        found, _, attempts, _ = self.run_both(
            "429 insufficient_quota", [{"type": "fail", "status": 429, "times": None,
                                        "code": "insufficient_quota"}], allowed=ALLOWED)
        self.assertEqual((found["error"], attempts), ("RateLimitError", 1))

    def test_context(self):
        """A prompt that is too long is an error of its own."""
        found, _, attempts, _ = self.run_both(
            "400 context_length_exceeded",
            [{"type": "fail", "status": 400, "code": "context_length_exceeded"}])
        self.assertEqual((found["error"], attempts), ("ContextWindowExceededError", 1))


class Streams(Scenario):
    def broken(self, kind, after, **options):
        name = "stream: %s after %d" % (kind, after)
        fault = {"type": "stream_fault", "kind": kind, "after_chunks": after, "stall_seconds": 3}
        reply = dict(REPLY, times=2)
        alone = server.run([fault, reply], lambda: we(
            model=MODEL, messages=name, stream=True, timeout=options.get("timeout", 10.0)))
        found, _, attempts, _ = self.run_both(
            name, [fault, reply], again=True, stream=True, **options)
        self.assertEqual((found.get("text"), found.get("finish_reason"), attempts),
                         (TEXT, "stop", 2))
        return alone[0]["exception"]

    def test_disconnect(self):
        """A dropped connection is an interrupted stream with what had come; asking again helps."""
        for after in (0, 3):
            error = self.broken("disconnect", after)
            self.assertIsInstance(error, sc.StreamInterruptedError)
            self.assertTrue(TEXT.startswith(error.partial.text))
            self.assertEqual(bool(error.partial.text), after > 0)

    def test_truncate(self):
        """A stream that ends early in good order is not taken for whole."""
        error = self.broken("truncate", 3)
        self.assertIsInstance(error, sc.StreamInterruptedError)
        self.assertTrue(error.partial.text)

    def test_malformed(self):
        """A chunk that is no JSON is an error, not skipped."""
        error = self.broken("malformed", 3)
        self.assertIsInstance(error, sc.ResponseError)
        self.assertTrue(error.partial.text)

    def test_stall(self):
        """A stream that hangs ends after `timeout`."""
        error = self.broken("stall", 3, timeout=0.7)
        self.assertIsInstance(error, sc.APITimeoutError)
        self.assertEqual(error.phase, "silence")

    def test_slow(self):
        """A late first token and a late answer are waited for."""
        for behaviour in ("slow_first_token", "delay"):
            found, seconds, attempts, _ = self.run_both(
                "%s: 0.5 s" % behaviour, [{"type": behaviour, "seconds": 0.5}, REPLY], stream=True)
            self.assertEqual((found.get("text"), attempts), (TEXT, 1))
            self.assertGreaterEqual(seconds, 0.5)


class Tools(Scenario):
    def test_call(self):
        """A scripted tool call comes through, whole and streamed."""
        for stream in (False, True):
            found, _, _, _ = self.run_both(
                "tool call" + ", streamed" * stream, [{"type": "reply", "tool_calls": [CALL]}],
                tools=TOOLS, stream=stream)
            ((name, arguments),) = found["calls"]
            self.assertEqual((name, json.loads(arguments)), (CALL["name"], CALL["arguments"]))
            self.assertEqual(found["finish_reason"], "tool_calls")

    def test_broken(self):
        """Arguments that are no JSON are shown as they came, and parse() names the function."""
        for stream in (False, True):
            found, _, _, _ = self.run_both(
                "broken tool arguments" + ", streamed" * stream,
                [{"type": "tool_fault", "kind": "malformed_arguments"}], tools=TOOLS,
                stream=stream)
            ((name, arguments),) = found["calls"]
            with self.assertRaisesRegex(ValueError, name):
                sc.FunctionCall.from_dict({"name": name, "arguments": arguments}).parse()

    def test_unknown(self):
        """A call of a tool that was not offered is the program's to see; its name is there."""
        found, _, _, _ = self.run_both(
            "unknown tool", [{"type": "tool_fault", "kind": "unknown_tool"}], tools=TOOLS)
        self.assertNotEqual(found["calls"][0][0], "get_weather")

    def test_interrupted(self):
        """A tool call that breaks off is an error with the part, and never a call to run."""
        found, _, _, _ = server.run(
            [{"type": "reply", "tool_calls": [CALL]},
             {"type": "stream_fault", "kind": "disconnect", "after_chunks": 2}],
            lambda: we(model=MODEL, messages="x", stream=True, tools=TOOLS))
        self.assertEqual(found["error"], "StreamInterruptedError")
        self.assertIsNone(found["exception"].partial.choices[0].finish_reason)
