# SPDX-License-Identifier: MIT
"""The tree of errors, and what each error carries."""

import gzip
import json
import os
import pickle
import signal
import sys
import threading
import unittest

from . import synthetic_client as sc
from .server import Server, answer, chunk, chunks, completion

PARENTS = {
    "SyntheticError": ("Exception",),
    "ConfigurationError": ("SyntheticError", "ValueError"),
    "APIConnectionError": ("SyntheticError",),
    "APITimeoutError": ("APIConnectionError", "TimeoutError"),
    "StreamInterruptedError": ("APIConnectionError",),
    "ResponseError": ("SyntheticError",),
    "APIStatusError": ("SyntheticError",),
    "BadRequestError": ("APIStatusError",),
    "ContextWindowExceededError": ("BadRequestError",),
    "AuthenticationError": ("APIStatusError",),
    "PaymentRequiredError": ("APIStatusError",),
    "PermissionDeniedError": ("APIStatusError",),
    "NotFoundError": ("APIStatusError",),
    "ConflictError": ("APIStatusError",),
    "UnprocessableEntityError": ("APIStatusError",),
    "RateLimitError": ("APIStatusError",),
    "InternalServerError": ("APIStatusError",),
}
STATUSES = {
    400: "BadRequestError", 401: "AuthenticationError", 402: "PaymentRequiredError",
    403: "PermissionDeniedError", 404: "NotFoundError", 409: "ConflictError",
    422: "UnprocessableEntityError", 429: "RateLimitError", 500: "InternalServerError",
    502: "InternalServerError", 503: "InternalServerError", 529: "InternalServerError",
    599: "InternalServerError", 405: "APIStatusError", 408: "APIStatusError",
    413: "APIStatusError", 418: "APIStatusError", 302: "APIStatusError", 304: "APIStatusError",
}
ATTRIBUTES = (
    "attempts", "partial", "phase", "status_code", "body", "message", "code", "type", "param",
    "headers", "request_id", "quotas", "retry_after",
)
# What a server may say, and the text that must come out as .message.
BODIES = [
    ({"error": "text"}, "text"),
    ({"error": {"message": "text", "type": "t", "code": "c", "param": "p"}}, "text"),
    ({"error": {"message": "text", "code": 17}}, "text"),
    ({"type": "error", "error": {"type": "t", "message": "text"}}, "text"),
    ({"detail": "text"}, "text"),
    ({"message": "text"}, "text"),
    ({"object": "error", "message": "text", "code": 40303}, "text"),
    ({"error": "text", "message": "other"}, "text"),
    ("plain text", "plain text"),
    ('{"error": "a\nb\x01c"}', "a\nb\x01c"),
    ("", ""),
]
# Shapes that only have to give the status's error in one line.
ODD_BODIES = [
    "null", "[]", "42", "true", '""', "{}", '{"error": null}', '{"error": {}}', '{"error": 5}',
    '{"error": ["x"]}', '{"error": {"message": {"a": 1}}}', '{"error": {"message": null}}',
    '{"detail": [{"loc": ["body", "model"], "msg": "field required"}]}', '{"detail": [3]}',
    '{"detail": {"msg": "x"}}', '{"message": [1]}', '{"error": "cut', "[" * 50000,
    '{"error": {"code": {"a": 1}, "type": ["b"], "param": 3}}',
    "<html><head><title>502 Bad\nGateway</title></head><body>\r\n nginx</body></html>",
    "text\r\nof\u2028many\u0085lines\x00\x1b[31m", "x" * 100000, b"\xff\xfe\x00broken",
    '{"error": "\\ud800 lone surrogate"}',
]


def failure(*answers, **options):
    """Return the error that a call with these answers raises."""
    call = options.pop("call", lambda client: client.chat("hi"))
    with Server(list(answers)) as server:
        try:
            call(server.client(**options))
        except sc.SyntheticError as error:
            return error
    raise AssertionError("no error was raised")


def stream_failure(*items, **framing):
    """Return the error that reading such a stream raises."""
    return failure(lambda conn: conn.send_sse(items, **framing),
                   call=lambda client: list(client.stream_chat("hi")))


class Tree(unittest.TestCase):

    def test_parents(self):
        """Every class stands where the contract draws it."""
        for name, parents in PARENTS.items():
            with self.subTest(name=name):
                bases = tuple(base.__name__ for base in getattr(sc, name).__bases__)
                self.assertEqual(bases, parents)

    def test_no_other(self):
        """The package exports these errors and no others."""
        found = {name for name in sc.__all__ if isinstance(getattr(sc, name), type)
                 and issubclass(getattr(sc, name), BaseException)}
        self.assertEqual(found, set(PARENTS))

    @unittest.skipIf(sys.flags.optimize > 1, "-OO leaves out the docstrings")
    def test_documented(self):
        """Each class says in its docstring when it is raised."""
        for name in PARENTS:
            self.assertTrue(getattr(sc, name).__doc__, name)

    def test_bare_instances_pickle(self):
        """An error made by hand, as in a user's own tests, pickles with what it was given."""
        for name in PARENTS:
            with self.subTest(name=name):
                error = getattr(sc, name)("text")
                error.attempts = 4
                copy = pickle.loads(pickle.dumps(error))
                self.assertIs(type(copy), type(error))
                self.assertEqual((str(copy), copy.attempts), ("text", 4))


class Statuses(unittest.TestCase):

    def test_class_of_each_status(self):
        """Each status raises its own class, with the status, one attempt and no partial."""
        for status, name in STATUSES.items():
            with self.subTest(status=status):
                error = failure(answer(status, {"error": "text"}))
                self.assertIs(type(error), getattr(sc, name))
                self.assertEqual((error.status_code, error.attempts), (status, 1))
                self.assertIsNone(error.partial)

    def test_streams_raise_at_once(self):
        """stream_chat raises the same classes where it is called, not in the loop."""
        for status, name in STATUSES.items():
            with self.subTest(status=status):
                error = failure(answer(status, {"error": "text"}),
                                call=lambda client: client.stream_chat("hi"))
                self.assertIs(type(error), getattr(sc, name))

    def test_message(self):
        """.message is the server's own text, and str() quotes it in one line."""
        for body, message in BODIES:
            for status in (400, 401, 500):
                with self.subTest(body=body, status=status):
                    error = failure(answer(status, body))
                    self.assertEqual(error.message, message)
                    self.one_line(error)
                    self.assertIn(" ".join(message.split("\n")).split("\x01")[0], str(error))
                    self.assertIn(str(status), str(error))

    def test_odd_bodies(self):
        """Whatever the body, the error is that of the status, in one line of bounded length."""
        for body in ODD_BODIES:
            for status in (400, 429, 502):
                with self.subTest(body=body[:60], status=status):
                    error = failure(answer(status, body))
                    self.assertEqual(error.status_code, status)
                    self.assertIsInstance(error.message, str)
                    self.one_line(error)

    def one_line(self, error):
        text = str(error)
        self.assertEqual(text.splitlines(), [text])
        self.assertTrue(text.isprintable(), text)
        self.assertLess(len(text), 1000)

    def test_attributes(self):
        """.code, .type, .param, .body, .headers and .request_id are what the server sent."""
        body = {"error": {"message": "m", "type": "t", "code": "c", "param": "p", "more": 1}}
        error = failure(answer(400, body, {"X-Request-Id": "r-1", "X-Other": "o"}))
        self.assertEqual((error.code, error.type, error.param), ("c", "t", "p"))
        self.assertEqual(error.body, body)
        self.assertEqual(error.headers["x-other"], "o")
        self.assertEqual(error.headers["X-OTHER"], "o")
        self.assertEqual(error.request_id, "r-1")

    def test_request_id(self):
        """.request_id is x-request-id, else request-id, else None."""
        for headers, wanted in (({"x-request-id": "a", "request-id": "b"}, "a"),
                                ({"request-id": "b"}, "b"), ({}, None)):
            self.assertEqual(failure(answer(404, "", headers)).request_id, wanted)

    def test_absent_attributes(self):
        """What the server did not say is None."""
        error = failure(answer(500, ""))
        for name in ("code", "type", "param", "request_id", "quotas"):
            self.assertIsNone(getattr(error, name), name)

    def test_quotas(self):
        """.quotas are those of the x-synthetic-quotas header, on any status."""
        quotas = {"subscription": {"limit": 500, "requests": 3}}
        for status in (400, 402, 429, 503):
            error = failure(answer(status, "", {"x-synthetic-quotas": json.dumps(quotas)}))
            self.assertEqual(error.quotas.subscription.limit, 500)
            self.assertEqual(error.quotas.to_dict(), quotas)

    def test_field_errors(self):
        """A FastAPI 422 names the field and its fault."""
        body = {"detail": [{"loc": ["body", "model"], "msg": "field required"}]}
        error = failure(answer(422, body))
        self.assertIn("model", str(error))
        self.assertIn("field required", str(error))

    def test_html(self):
        """A gateway's HTML page is told by its title, without tags."""
        page = "<html><head><title>502 Bad Gateway</title></head><body>x</body></html>"
        text = str(failure(answer(502, page)))
        self.assertIn("502 Bad Gateway", text)
        self.assertNotIn("<", text)

    def test_what_to_do_next(self):
        """The message ends with what to do next."""
        wanted = {401: "SYNTHETIC_API_KEY", 402: "billing", 404: "model"}
        for status, word in wanted.items():
            self.assertIn(word, str(failure(answer(status, {"error": "text"}))))

    def test_broken_bodies(self):
        """A status whose body is cut, broken, slow or too long is still that status's error."""
        head = b"HTTP/1.1 401 No\r\n"
        packed = gzip.compress(b'{"error": "no"}')
        cut = [
            head + b"Content-Length: 100\r\n\r\n{",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
            head + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            head + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",
            head + b"Content-Encoding: gzip\r\n\r\n" + packed[:-6],
            head + b"Content-Length: 2000\r\n\r\n" + b"x" * 2000,
        ]
        for data in cut:
            with self.subTest(data=data[:70]):
                error = failure(lambda conn: (conn.raw(data), conn.close()),
                                max_response_bytes=1000)
                self.assertIs(type(error), sc.AuthenticationError)
        slow = failure(lambda conn: (conn.raw(cut[0]), conn.gone()), timeout=0.2)
        self.assertIs(type(slow), sc.AuthenticationError)

    def test_gzip_body(self):
        """A compressed body of an error is read."""
        packed = gzip.compress(b'{"error": "text"}')
        error = failure(answer(400, packed, {"Content-Encoding": "gzip"}))
        self.assertEqual(error.message, "text")


class ContextWindow(unittest.TestCase):

    def test_recognised(self):
        """A 400 that tells of a context overflow by text or code has its own class."""
        text = "The input (70000 tokens) is longer than the model's context length (65536 tokens)"
        for body in (
            {"error": text},
            {"error": {"message": text}},
            {"message": "Error from inference backend: 400 " + text},
            {"error": "Context limit exceeded"},
            {"error": "context limit exceeded."},
            {"error": {"message": "m", "code": "context_length_exceeded"}},
            {"error": {"message": "m", "type": "exceed_context_size_error", "code": 400}},
            {"error": {"message": "m", "code": "exceed_context_size_error"}},
            text,
        ):
            with self.subTest(body=body):
                error = failure(answer(400, body))
                self.assertIs(type(error), sc.ContextWindowExceededError)
                self.assertIsInstance(error, sc.BadRequestError)

    def test_not_recognised(self):
        """Other errors that speak of contexts or lengths keep their class."""
        for status, body in ((400, {"error": "400 status code (no body)"}), (400, ""),
                             (400, {"error": "max_tokens is longer than allowed"}),
                             (429, {"error": "Context limit exceeded"}),
                             (500, {"error": {"code": "context_length_exceeded"}})):
            with self.subTest(body=body):
                error = failure(answer(status, body))
                self.assertIs(type(error), getattr(sc, STATUSES[status]))

    def test_in_a_stream(self):
        """It is recognised in an error object within a 200 too."""
        error = stream_failure(
            {"error": {"code": 400, "type": "exceed_context_size_error", "message": "m"}})
        self.assertIs(type(error), sc.ContextWindowExceededError)


class InsideOfAnAnswer(unittest.TestCase):
    """An error object inside a 200."""

    OBJECTS = [
        ({"error": {"message": "text", "code": 429}}, "RateLimitError"),
        ({"error": {"message": "text", "code": "503"}}, "InternalServerError"),
        ({"error": {"message": "text", "code": 401, "type": "t"}}, "AuthenticationError"),
        ({"error": {"message": "text", "code": 418}}, "APIStatusError"),
        ({"error": {"message": "text", "code": 600}}, "ResponseError"),
        ({"error": {"message": "text", "code": 200}}, "ResponseError"),
        ({"error": {"message": "text", "code": "overloaded"}}, "ResponseError"),
        ({"error": {"message": "text", "code": None}}, "ResponseError"),
        ({"error": {"message": "text"}}, "ResponseError"),
        ({"error": "text"}, "ResponseError"),
    ]

    def check(self, error, name, body):
        self.assertIs(type(error), getattr(sc, name))
        self.assertEqual(error.body, body)
        self.assertIn("text", str(error))
        self.assertEqual(error.attempts, 1)

    def test_whole_answer(self):
        """It raises the class of its own numeric code, else ResponseError; .body holds it."""
        for body, name in self.OBJECTS:
            with self.subTest(body=body):
                self.check(failure(answer(200, body)), name, body)

    def test_beside_choices(self):
        """Beside choices it raises too."""
        body = completion(error={"message": "text", "code": 502})
        self.check(failure(answer(200, body)), "InternalServerError", body)
        body = dict(chunk("a"), error={"message": "text", "code": 502})
        self.check(stream_failure(body), "InternalServerError", body)

    def test_null_error(self):
        """A null error beside choices is none."""
        with Server([completion("fine", error=None)]) as server:
            self.assertEqual(server.client().chat("hi").text, "fine")

    def test_in_a_stream(self):
        """In a stream the error also carries what had come, as .partial."""
        for body, name in self.OBJECTS:
            with self.subTest(body=body):
                error = stream_failure(chunk("some"), body)
                self.check(error, name, body)
                self.assertEqual(error.partial.text, "some")

    def test_error_event(self):
        """`event: error` raises whatever its data is."""
        for data in ('{"error": {"message": "text"}}', '{"type": "error", "message": "text"}',
                     "text", '"text"'):
            with self.subTest(data=data):
                event = ("event: error\ndata: %s\n\n" % data).encode()
                error = stream_failure(chunk("some"), event, *chunks("x"))
                self.assertIsInstance(error, sc.ResponseError)
                self.assertIn("text", str(error))
                self.assertEqual(error.partial.text, "some")

    def test_error_instead_of_a_stream(self):
        """A 200 of JSON with an error where a stream was asked for raises its class."""
        error = failure(answer(200, {"error": {"message": "text", "code": 429}}),
                        call=lambda client: list(client.stream_chat("hi")))
        self.assertIs(type(error), sc.RateLimitError)


class NoAnswer(unittest.TestCase):
    """Answers that are none, each with the error it ends in."""

    def test_not_what_the_api_promises(self):
        """HTML, broken JSON, other JSON and a garbage status line are ResponseErrors."""
        bodies = ["<html><body>Login</body></html>", "", "{", "[]", "null", "3", "{}",
                  '{"choices": 3}', '{"choices": [{"message": "x"}]}', '{"choices": null}',
                  b"\xff\xfe", "[" * 50000]
        for body in bodies:
            with self.subTest(body=body[:40]):
                error = failure(answer(200, body))
                self.assertIs(type(error), sc.ResponseError)
                self.assertEqual(str(error).splitlines(), [str(error)])
        for line in (b"GARBAGE\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n", b"\x16\x03\x01\x00\r\n\r\n"):
            with self.subTest(line=line):
                error = failure(lambda conn: (conn.raw(line), conn.close()))
                self.assertIs(type(error), sc.ResponseError)

    def test_cut_stream(self):
        """A stream that is cut is a StreamInterruptedError with what had come."""
        for chunked in (True, False):
            error = stream_failure(chunk("some"), done=False, chunked=chunked)
            self.assertIs(type(error), sc.StreamInterruptedError)
            self.assertEqual(error.partial.text, "some")
            self.assertEqual(error.attempts, 1)

    def test_broken_chunk(self):
        """A chunk of a stream that is no JSON object is a ResponseError with what had come."""
        for data in ("{", "[]", "3", "null", '"x"', '{"choices": 3}', "<html>"):
            with self.subTest(data=data):
                error = stream_failure(chunk("some"), data)
                self.assertIs(type(error), sc.ResponseError)
                self.assertEqual(error.partial.text, "some")

    def test_cause(self):
        """The exception of the layer below stays as __cause__."""
        error = failure(lambda conn: conn.reset())
        self.assertIs(type(error), sc.APIConnectionError)
        self.assertIsInstance(error.__cause__, Exception)
        error = failure(lambda conn: conn.gone(), timeout=0.1)
        self.assertIsInstance(error.__cause__, Exception)

    def test_timeout_is_a_timeout(self):
        """A time-out can be caught as the TimeoutError of the standard library."""
        error = failure(lambda conn: conn.gone(), timeout=0.1)
        self.assertIsInstance(error, TimeoutError)
        self.assertEqual(error.phase, "silence")


class Pickling(unittest.TestCase):

    def check(self, error):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            copy = pickle.loads(pickle.dumps(error, protocol))
            self.assertIs(type(copy), type(error))
            self.assertEqual((str(copy), copy.args), (str(error), error.args))
            for name in ATTRIBUTES:
                if not hasattr(error, name):
                    continue
                mine, theirs = getattr(error, name), getattr(copy, name)
                if name == "headers":
                    mine, theirs = dict(mine), dict(theirs)
                    self.assertEqual(copy.headers["X-REQUEST-ID"], "r-1")
                self.assertEqual(theirs, mine, name)
            self.assertIsNone(copy.__cause__)

    def test_status_errors(self):
        """An error from a call pickles with every attribute, in every protocol."""
        headers = {"X-Request-Id": "r-1", "Retry-After": "3",
                   "x-synthetic-quotas": '{"subscription": {"limit": 1, "requests": 1}}'}
        body = {"error": {"message": "m", "type": "t", "code": "c", "param": "p"}}
        for status in STATUSES:
            with self.subTest(status=status):
                self.check(failure(answer(status, body, headers)))
        body["error"]["code"] = "context_length_exceeded"
        self.check(failure(answer(400, body, headers)))

    def test_other_errors(self):
        """Errors without a status pickle with .partial, .phase and .attempts."""
        self.check(failure(lambda conn: conn.reset()))
        self.check(failure(lambda conn: conn.gone(), timeout=0.1))
        self.check(failure(answer(200, "<html>")))
        error = stream_failure(chunk("some"), done=False)
        self.check(error)
        self.assertEqual(pickle.loads(pickle.dumps(error)).partial.text, "some")
        with self.assertRaises(sc.ConfigurationError) as caught:
            sc.SyntheticClient(base_url="ftp://x")
        self.check(caught.exception)


@unittest.skipUnless(hasattr(signal, "SIGINT") and hasattr(os, "kill"), "needs signals")
class Interrupt(unittest.TestCase):

    def check(self, begin, call):
        """Interrupt `call` while it waits: it ends, and so does its socket."""
        gone, caught = [], threading.Event()

        def handler(conn):
            begin(conn)
            conn.wait(0.03)
            for _ in range(5):  # a signal that comes just before the client waits is not seen
                os.kill(os.getpid(), signal.SIGINT)
                if caught.wait(1):
                    break
            gone.append(conn.gone())

        with Server(handler) as server:
            try:
                call(server.client())
            except KeyboardInterrupt:
                caught.set()
            for thread in server.threads[1:]:
                thread.join(5)
        self.assertEqual((caught.is_set(), gone), (True, [True]))

    def setUp(self):
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, previous)

    def test_call(self):
        """Ctrl-C in a call passes through and leaves no socket open."""
        self.check(lambda conn: None, lambda client: client.chat("hi"))

    def test_stream(self):
        """Ctrl-C in a stream passes through and leaves no socket open."""
        def begin(conn):
            conn.start_sse()
            conn.event(chunk("some"))

        self.check(begin, lambda client: list(client.stream_chat("hi")))


if __name__ == "__main__":
    unittest.main()
