# SPDX-License-Identifier: MIT
"""Many requests: chat_many on a server that limits, breaks and stalls, and the batch command."""
import concurrent.futures
import importlib
import io
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

from . import synthetic_client as sc
from .server import Server, answer, completion, environment, soon, stall, trace_memory
from .test_cli import CommandCase

batch = importlib.import_module(sc.__name__ + ".batch")
batch_file = importlib.import_module(sc.__name__ + ".batch_file")
retry = importlib.import_module(sc.__name__ + ".retry")
SPENT = {"x-synthetic-quotas": json.dumps(
    {"weeklyTokenLimit": {"percentRemaining": 0, "nextRegenAt": "2999-01-01T00:00:00Z"}})}


def said(conn):
    """The text of the only message of a request."""
    return conn.json["messages"][0]["content"]


def echo(conn):
    conn.send_json(completion(said(conn)))


class Limited:
    """A handler that refuses what is more than `limit` at a time, and counts."""

    def __init__(self, limit, seconds=0.001, headers=None, then=echo):
        self.limit, self.seconds, self.headers, self.then = limit, seconds, headers, then
        self.now = self.most = self.refused = 0
        self.lock = threading.Lock()

    def __call__(self, conn):
        with self.lock:
            is_free = self.now < self.limit
            self.now += is_free
            self.refused += not is_free
            self.most = max(self.most, self.now)
        if not is_free:
            return conn.send_json({"error": "too many at a time"}, 429, self.headers)
        try:
            conn.wait(self.seconds)
        finally:
            with self.lock:
                self.now -= 1
        return self.then(conn)


class Unstable:
    """A handler that fails some requests the first time, or always, as drawn by their text."""

    def __init__(self):
        self.seen, self.lock = {}, threading.Lock()

    def __call__(self, conn):
        text = said(conn)
        with self.lock:
            self.seen[text] = self.seen.get(text, 0) + 1
            is_first = self.seen[text] == 1
        kind = random.Random(text).choice(["500", "reset", "cut", "stall"] + ["good"] * 8)
        if kind == "stall":
            stall(conn)
        elif kind == "500" and is_first:
            conn.send_json({"error": "broken"}, 500)
        elif kind == "reset" and is_first:
            conn.reset()
        elif kind == "cut":
            conn.send(200, b'{"choices": [', {"Content-Length": 99})
            conn.close()
        else:
            echo(conn)


class Many(unittest.TestCase):
    def setUp(self):
        for place, name, value in ((retry, "backoff", lambda attempt: 0.01),
                                   (batch, "_PAUSE", 0.001)):
            patch = mock.patch.object(place, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def ask(self, handler, requests, **options):
        """Return the results, checked for their order, and the server."""
        with Server(handler) as server:
            results = list(server.client(timeout=0.3, max_retries=2).chat_many(
                requests, **options))
        self.assertEqual([result.index for result in results], list(range(len(results))))
        for result in results:
            self.assertEqual((result.completion is None, result.error is None),
                             (result.error is not None, result.completion is not None))
        return results, server

    def test_requests(self):
        """A request is a text, a list of messages, or a dict of arguments that come first."""
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        requests = ["a", messages, {"messages": "b", "model": "hf:own/b", "temperature": 0}]
        results, server = self.ask([echo], requests, workers=1, temperature=0.5, seed=1)
        self.assertEqual([result.request for result in results], requests)
        self.assertEqual([result.completion.text for result in results], ["a", "s", "b"])
        user = [{"role": "user", "content": "b"}]
        for request, expected in zip(server.requests[1:], (
                {"messages": messages, "temperature": 0.5, "seed": 1},
                {"messages": user, "temperature": 0, "seed": 1, "model": "hf:own/b"})):
            self.assertEqual(request.json, dict({"model": "hf:test/model"}, **expected))

    def test_malformed(self):
        """A malformed request is one failed result, and is not sent."""
        wrong = [5, None, [], [7], {}, {"messages": "x", "temperatur": 1}, {"model": "m"},
                 {"messages": "x", 3: 4}, {"messages": "x", "max_retries": "2"}, b"x", object()]
        requests = [item for pair in zip(wrong, itertools.repeat("good")) for item in pair]
        results, server = self.ask([echo], requests)
        for result in results[::2]:
            with self.subTest(result.request):
                self.assertIsInstance(result.error, (TypeError, ValueError))
        self.assertEqual({result.completion.text for result in results[1::2]}, {"good"})
        self.assertIn("'temperature'", str(results[10].error))

    def test_bad_proxy(self):
        """A proxy of the environment that cannot be used fails each request, and no more."""
        with mock.patch.dict(os.environ, http_proxy="socks5://x:1", no_proxy="", NO_PROXY=""):
            client = sc.SyntheticClient(base_url="http://host.example", model="m")
            results = list(client.chat_many(["a", "b"]))
        self.assertEqual([type(result.error) for result in results], [sc.ConfigurationError] * 2)

    def test_bad_arguments(self):
        """Wrong arguments are refused by the call itself, and nothing is sent."""
        with Server([echo]) as server:
            client = server.client()
            for options in ({"workers": 0}, {"workers": -1}, {"workers": True}, {"workers": "4"},
                            {"executor": 3}, {"temperatur": 1}, {"temperature": "x"},
                            {"model": 3}, {"stream": True}):
                with self.subTest(options), self.assertRaises((TypeError, ValueError)):
                    client.chat_many(["x"], **options)
            for requests in ("x", b"x", {"messages": "x"}, 5, None):
                with self.subTest(requests), self.assertRaises(TypeError):
                    client.chat_many(requests)
            client.close()
            with self.assertRaises(RuntimeError):
                client.chat_many(["x"])
        self.assertEqual(server.requests, [])

    def test_endless(self):
        """Of endless requests, at most twice `workers` are taken ahead, and `workers` sent."""
        taken, handler = itertools.count(), Limited(99)
        requests = (str(next(taken)) for _ in itertools.repeat(0))
        with Server(handler) as server:
            results = server.client().chat_many(requests, workers=3)
            for number in range(40):
                self.assertEqual(next(results).completion.text, str(number))
                ahead = int(repr(taken)[6:-1]) - (number + 1)
                self.assertLessEqual(ahead, 6)
            results.close()
        self.assertLessEqual(handler.most, 3)
        self.assertLessEqual(server.connections, 3)

    def test_equal_requests(self):
        """Each is asked, also by an executor that has one result for equal calls, as Dask has."""
        class Remembers(concurrent.futures.Executor):
            known = {}

            def submit(self, function, client, *arguments):
                call = repr(arguments)
                if call not in self.known:
                    self.known[call] = concurrent.futures.Future()
                    self.known[call].set_result(function(client, *arguments))
                return self.known[call]

        for _ in range(2):  # nor does a later run get an earlier one's
            results, server = self.ask([echo], ["a"] * 3, executor=Remembers())
            self.assertEqual((len(results), len(server.requests)), (3, 3))

    def test_connections(self):
        """However many workers, each needs one connection; 32 are kept when all is done."""
        together, answered = threading.Barrier(48), []

        def handler(conn):
            together.wait(5)
            echo(conn)
            answered.append(conn)

        with Server([handler]) as server:
            results = server.client().chat_many(map(str, range(4 * 48)), workers=48)
            next(results)  # has twice 48 sent; then no worker has anything to do
            self.assertTrue(soon(lambda: len(answered) == 2 * 48))
            self.assertEqual(sum(result.error is None for result in results), 4 * 48 - 1)
            self.assertEqual(server.connections, 48)
            self.assertTrue(soon(lambda: server.alive == 32), server.alive)

    def test_slow_one(self):
        """Others go on behind a slow request, no further than that, and order holds."""
        release, others = threading.Event(), []

        def handler(conn):
            if said(conn) == "0":
                conn.wait(release)
            else:
                others.append(said(conn))
                if len(others) == 7:
                    release.set()
            echo(conn)

        results, _ = self.ask(handler, map(str, range(30)), workers=4)
        self.assertEqual([result.completion.text for result in results],
                         [str(number) for number in range(30)])

    def test_limit(self):
        """Under a limit all are answered, in order, and few are refused once it is known."""
        for limit, workers, count in ((1, 4, 60), (3, 16, 120)):
            with self.subTest(limit=limit):
                handler = Limited(limit)
                results, server = self.ask(handler, map(str, range(count)), workers=workers)
                self.assertEqual([result.completion and result.completion.text
                                  for result in results], [str(n) for n in range(count)])
                attempts = sum(result.completion.meta.attempts for result in results)
                self.assertEqual(attempts, len(server.requests))
                self.assertLess(handler.refused, 3 * workers + count // 20)
                self.assertEqual(handler.most, limit)

    def test_pace(self):
        """A limit that stays is met ever more rarely; one that goes is soon found to be gone."""
        for limit in (1, 2, 5, 20):
            pace, refused, sizes = batch._Pace(64), 0, []
            for _ in range(3000):
                if pace.limit > limit:
                    refused += 1
                    pace.refused(pace.round)
                else:
                    pace.answered()
                    sizes.append(pace.limit)
            self.assertLess(refused, 25, limit)
            self.assertGreater(sum(sizes[200:]), 0.85 * limit * len(sizes[200:]))
            for _ in range(260 * 64):
                pace.answered()
            self.assertEqual(pace.limit, 64)

    def test_old_refusals(self):
        """Several refusals of what was sent together lower the limit once."""
        pace = batch._Pace(8)
        for _ in range(5):
            pace.refused(0)
        self.assertEqual(pace.limit, 4)

    def test_unstable(self):
        """500s and resets are asked again, cut and silent answers are not, and none is lost."""
        handler = Unstable()
        results, _ = self.ask(handler, map(str, range(60)), workers=16)
        self.assertEqual(len(results), 60)
        for result in results:
            kind = random.Random(result.request).choice(
                ["500", "reset", "cut", "stall"] + ["good"] * 8)
            error = {"cut": sc.StreamInterruptedError, "stall": sc.APITimeoutError}.get(kind)
            with self.subTest(result.request, kind=kind):
                if error is None:
                    self.assertEqual(result.completion.text, result.request)
                    attempts = result.completion.meta.attempts  # less what a kept connection lost
                    self.assertIn(handler.seen[result.request] - attempts, (0, kind == "reset"))
                else:
                    self.assertIsInstance(result.error, error)
                    self.assertEqual((result.error.attempts, handler.seen[result.request]), (1, 1))

    def test_retries(self):
        """max_retries is the request's own, else the call's, else the client's."""
        requests = ["client", {"messages": "own", "max_retries": 0}]
        for options, attempts in (({}, [3, 1]), ({"max_retries": 1}, [2, 1])):
            with self.assertLogs("synthetic_client", "INFO") as logs:
                results, _ = self.ask(
                    [answer(500, {"error": "x"})], requests, workers=1, **options)
            self.assertEqual([result.error.attempts for result in results], attempts)
            self.assertEqual(len(logs.records), sum(attempts) - 2)

    def test_near_retry_after(self):
        """A wait that the server asks for is waited out by all, and then the request is made."""
        times = []

        def handler(conn):
            times.append(time.monotonic())
            if len(times) == 3:
                return conn.send_json({"error": "wait"}, 429, {"retry-after-ms": "150"})
            return echo(conn)

        results, _ = self.ask(handler, map(str, range(8)), workers=1)
        self.assertEqual([result.error for result in results], [None] * 8)
        self.assertGreaterEqual(times[3] - times[2], 0.15)

    def test_far_renewal(self):
        """A renewal hours away ends the run: what is left fails with the reason, unsent."""
        for headers in ({"Retry-After": "7200"}, SPENT):
            handler = Limited(0, headers=headers)
            results, server = self.ask(handler, map(str, range(300)), workers=2)
            self.assertEqual(len(results), 300)
            self.assertLessEqual(len(server.requests), 4)
            for result in results:
                self.assertIsInstance(result.error, sc.RateLimitError)
                self.assertGreater(result.error.retry_after, 7000)

    def test_refused_for_ever(self):
        """A service that only refuses, and says no time, ends the run after a while."""
        results, server = self.ask(Limited(0), map(str, range(50)), workers=4)
        self.assertEqual({type(result.error) for result in results}, {sc.RateLimitError})
        self.assertLess(len(server.requests), 40)

    def test_refused_now_and_then(self):
        """Refusals end a run by their number in a row, not by that of all of them."""
        turns = itertools.count()

        def handler(conn):
            if next(turns) % 4 == 3:
                return echo(conn)
            return conn.send_json({"error": "busy"}, 429)

        results, _ = self.ask(handler, map(str, range(10)), workers=1)
        self.assertEqual([result.error for result in results], [None] * 10)

    def test_final_refusal(self):
        """A 429 that the server says not to repeat fails its own request and no other."""
        def handler(conn):
            if said(conn) == "1":
                return conn.send_json({"error": {"code": "insufficient_quota"}}, 429)
            return echo(conn)

        results, server = self.ask(handler, map(str, range(4)))
        self.assertEqual([result.error is None for result in results], [True, False, True, True])
        self.assertEqual(len(server.requests), 4)

    def test_close(self):
        """Closing returns at once, sends nothing more, and lets the threads end."""
        before = set(threading.enumerate())
        taken = []

        def requests():
            for number in itertools.count():
                taken.append(number)
                yield str(number)

        release = threading.Event()

        def handler(conn):
            if said(conn) != "0":
                conn.wait(release)
            echo(conn)

        with Server(handler) as server:
            results = server.client().chat_many(requests(), workers=3)
            next(results)
            begun, count = time.monotonic(), len(taken)
            results.close()
            self.assertLess(time.monotonic() - begun, 1)
            self.assertEqual(list(results), [])
            time.sleep(0.05)
            sent = len(server.requests)
            self.assertLessEqual(sent, 4)
            release.set()
            for thread in set(threading.enumerate()) - before - set(server.threads):
                thread.join(5)
                self.assertFalse(thread.is_alive())
            self.assertEqual((len(taken), len(server.requests)), (count, sent))

    def test_unread(self):
        """An iterator that is never read takes and sends nothing."""
        with Server([echo]) as server:
            requests = iter(["a", "b"])
            server.client().chat_many(requests)
            self.assertEqual(next(requests), "a")
        self.assertEqual(server.requests, [])

    def test_memory(self):
        """Memory does not grow with the number of requests."""
        class Canned(concurrent.futures.Executor):
            def submit(self, *call, **_):
                future = concurrent.futures.Future()
                future.set_result((sc.ChatCompletion.from_dict(completion()), None))
                return future

        client, peaks = sc.SyntheticClient("key", model="m"), []
        memory = trace_memory(self)
        for count in (200, 200, 1600):
            start = memory()[0]
            for result in client.chat_many(map(str, range(count)), executor=Canned()):
                self.assertIsNone(result.error)
            del result
            peaks.append(memory()[0] - start)
        self.assertLess(peaks[2], peaks[1] + 50000)

    def test_executor(self):
        """The caller's executor makes the requests, no more than `workers`, and lives on."""
        handler = Limited(99)
        with concurrent.futures.ThreadPoolExecutor(8, "theirs") as pool:
            results, _ = self.ask(handler, map(str, range(30)), workers=2, executor=pool)
            self.assertTrue(all(result.error is None for result in results))
            self.assertEqual(pool.submit(int, "7").result(), 7)
        self.assertLessEqual(handler.most, 2)
        results, server = self.ask([echo], ["a", "b"], executor=pool)
        self.assertEqual({type(result.error) for result in results}, {RuntimeError})
        self.assertEqual(server.requests, [])

    def test_processes(self):
        """Other processes can make the requests, each over one connection that it keeps."""
        try:
            context = multiprocessing.get_context("spawn")
            pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=context)
            pool.submit(int).result()
        except (AttributeError, ImportError, OSError) as error:  # the first is a PyPy's
            self.skipTest("this system has no process pools: %s" % error)
        handler = Limited(99)
        with pool:
            results, server = self.ask(
                handler, ["0", "1", 5, b"x", lambda: 0] + list("23456789"), workers=2,
                executor=pool)
        errors = [result.request for result in results if result.error]
        self.assertEqual(errors, [5, b"x", results[4].request])
        self.assertLessEqual(server.connections, 2)


class FileCase(CommandCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.source = os.path.join(folder.name, "in.jsonl")
        self.target = os.path.join(folder.name, "out.jsonl")
        patch = mock.patch.object(retry, "backoff", return_value=0.01)
        patch.start()
        self.addCleanup(patch.stop)

    def write(self, path, lines):
        """Write lines, dicts as JSON; bytes go in as they are."""
        with open(path, "wb") as file:
            for line in lines:
                file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")

    def read(self):
        with open(self.target, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def run_batch(self, *arguments, script=(echo,), **variables):
        return self.call("batch", self.source, self.target, *arguments, script=script,
                         **variables)


class Files(FileCase):
    def test_whole(self):
        """Each request is made once, with the flags where it lacks them, and its answer kept."""
        self.write(self.source, [line("a", temperature=1, model="hf:own/a", top_k=None),
                                 line("b", other=[1]), line("\u20ac")])
        code, printed, said = self.run_batch(
            "--temperature", "0.5", "--extra-body", '{"other": 2, "x": 3}', "--model", "hf:m/m",
            "--workers", "1")
        self.assertEqual((code, said), (0, ""))
        self.assertRegex(printed, r"^3 of 3 done, 0 failed, [\d.]+/s, 9 tokens in [\d.]+ s\n$")
        same = {"messages": [{"role": "user", "content": "a"}], "other": 2, "x": 3}
        self.assertEqual(
            [request.json for request in self.requests],
            [dict(same, temperature=1, model="hf:own/a", top_k=None),
             dict(same, temperature=0.5, model="hf:m/m", other=[1], messages=user("b")),
             dict(same, temperature=0.5, model="hf:m/m", messages=user("\u20ac"))])
        results = self.read()
        self.assertEqual([result["custom_id"] for result in results], ["a", "b", "\u20ac"])
        self.assertEqual(len({result["id"] for result in results}), 3)
        for result in results:
            self.assertEqual(set(result), {"id", "custom_id", "response", "error"})
            self.assertEqual(result["response"], {
                "status_code": 200, "request_id": None, "body": completion(result["custom_id"])})
            self.assertIsNone(result["error"])

    def test_wrong_lines(self):
        """Wrong lines are reported by their numbers, all of them, before anything is sent."""
        wrong = [b"{\n", b"3\n", b"\xff\n", {}, line(""), line(3), line("a", stream=True),
                 dict(line("b"), method="GET"), dict(line("c"), url="/v1/embeddings"),
                 dict(line("d"), body=None), line("e", messages=[]), line("f", messages=["x"]),
                 line("f", messages=[{"role": 3}]), line("f", top_p=float("nan")),
                 line("g", temperature="hot"), line("h", model=3), line("same")]
        self.write(self.source, [line("same"), b"\n"] + wrong)
        code, printed, said = self.run_batch()
        self.assertEqual((code, printed, self.requests), (2, "", []))
        numbers = [text.split(":")[1] for text in said.splitlines()[1:]]
        self.assertEqual(numbers, [str(number) for number in range(3, 3 + len(wrong))])
        for text in ("'same' is that of line 1", ":3: it is not JSON: ", "custom_id is missing",
                     "lines that are wrong: 17; nothing was sent\n"):
            self.assertIn(text, said)
        self.assertFalse(os.path.exists(self.target))

    def test_many_wrong_lines(self):
        """Of many wrong lines the first 20 are told, and how many more there are."""
        self.write(self.source, [b"?\n"] * 23)
        said = self.run_batch()[2].splitlines()
        self.assertEqual((len(said), said[-1]), (22, "and 3 more"))

    def test_wrong_usage(self):
        """A missing file, no workers or a missing key are exit 2, and nothing is lost."""
        self.assertIn("no file", self.wrong("batch", self.source, self.target))
        self.write(self.source, [line("a")])
        old = dict(result("a"), error={"code": "old", "message": "old"})
        self.write(self.target, [old])
        self.wrong("batch", self.source, self.target, "--workers", "0")
        self.wrong("batch", self.source, os.path.join(self.target, "x"))
        self.assertIn("API key", self.wrong(
            "batch", self.source, self.target, "--base-url", "https://api.synthetic.new/v1",
            SYNTHETIC_API_KEY=""))
        self.assertEqual(self.read(), [old])

    def test_strange_target(self):
        """A file that does not hold results is refused, and stays as it is."""
        self.write(self.source, [line("a")])
        for content in (b"notes", b"{}", b'{"custom_id": 1}\n', b"[]\n", b"\xff\xfe\n",
                        json.dumps(line("a")).encode() + b"\n"):
            self.write(self.target, [content])
            self.assertIn(self.target, self.wrong("batch", self.source, self.target))
            with open(self.target, "rb") as file:
                self.assertEqual(file.read(), content)

    def test_two_at_once(self):
        """While one run writes the results, another is refused."""
        try:
            import fcntl
        except ImportError:
            self.skipTest("this system has no locks")
        self.write(self.source, [line("a")])
        with open(self.target, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.assertIn("another run", self.wrong("batch", self.source, self.target))
        self.assertEqual(self.run_batch()[0], 0)

    def test_resumed(self):
        """Finished requests are not made again; a torn line is, as is what failed before."""
        kept = [result("a"), dict(result("elsewhere"), note=1)]
        failed = dict(result("c"), response=None, error={"code": "x", "message": "x"})
        refused = dict(result("d"), response={"status_code": 500, "body": {}})
        whole = json.dumps(result("f")).encode()
        self.write(self.source, [line(name) for name in "abcdef"])
        for last in (whole, whole[:-9], whole[:1], b"{"):
            self.write(self.target, kept + [failed, refused, last])
            os.chmod(self.target, 0o600)
            code, printed, _ = self.run_batch("--json")
            asked = {request.json["messages"][0]["content"] for request in self.requests}
            self.assertEqual(asked, set("bcde" if last is whole else "bcdef"))
            self.assertEqual(len(self.requests), len(asked))
            results = self.read()
            self.assertEqual([item["custom_id"] for item in results], [*"abcdef", "elsewhere"])
            self.assertEqual([results[0], results[-1]], kept)
            self.assertEqual({item["error"] for item in results}, {None})
            self.assertEqual(os.stat(self.target).st_mode & 0o777, 0o600)
            summary = json.loads(printed)
            self.assertEqual((code, summary["done"], summary["total"], summary["done_before"]),
                             (0, 6, 6, 6 - len(asked)))
        self.run_batch()
        self.assertEqual(self.requests, [])

    def test_failures(self):
        """Failures are exit 1, say why in the file and the summary, and are made good later."""
        def handler(conn):
            if said(conn) == "b":
                return conn.send_json({"error": "no such b"}, 400, {"x-request-id": "r-1"})
            return conn.reset() if said(conn) == "c" else echo(conn)

        self.write(self.source, [line(name) for name in "abcd"])
        code, printed, _ = self.run_batch("--max-retries", "0", script=[handler])
        self.assertEqual(code, 1)
        self.assertRegex(printed, r"^2 of 4 done, 2 failed, ")
        self.assertIn("\n1 x BadRequestError: HTTP 400: no such b.", printed)
        bad, lost = self.read()[1:3]
        self.assertEqual(bad["response"], {"status_code": 400, "request_id": "r-1",
                                           "body": {"error": "no such b"}})
        self.assertEqual(bad["error"]["code"], "BadRequestError")
        self.assertEqual((lost["response"], lost["error"]["code"]), (None, "APIConnectionError"))
        self.assertEqual(self.run_batch(script=[answer(402, {"error": "no money"})])[0], 1)
        self.assertEqual([item["error"] and item["error"]["code"] for item in self.read()],
                         [None, "PaymentRequiredError", "PaymentRequiredError", None])
        self.assertEqual(self.run_batch()[0], 0)
        self.assertEqual([item["error"] for item in self.read()], [None] * 4)
        self.assertEqual(len(self.requests), 2)

    def test_one_refused_here(self):
        """A request that the client itself refuses is a failure, unless nothing else went well."""
        names = line("a"), line("b", model="synthetic/")
        self.write(self.source, names)
        code, printed, _ = self.run_batch("--workers", "1")
        self.assertEqual((code, len(self.requests)), (1, 1))
        self.assertIn("\n1 x ConfigurationError: no model is named", printed)
        self.write(self.source, names[1:])
        self.assertIn("no model is named", self.wrong("batch", self.source, self.target + "2"))

    def test_used_up(self):
        """A quota that renews hours later ends the run with the reason; the rest stays to do."""
        def handler(conn):
            return echo(conn) if said(conn) == "a" else conn.send_json({"error": "x"}, 429, SPENT)

        self.write(self.source, [line(name) for name in "abcdefgh"])
        old = dict(result("h"), response=None, error={"code": "old", "message": "old"})
        for workers in ("1", "4"):
            self.write(self.target, [old])
            code, printed, _ = self.run_batch("--workers", workers, script=[handler])
            self.assertEqual(code, 1)
            self.assertLessEqual(len(self.requests), 2 * int(workers))
            self.assertRegex(printed, r"^1 of 8 done, 0 failed, .*\nended early: HTTP 429: x\. ")
            self.assertIn("renews in", printed)
            self.assertEqual([item["custom_id"] for item in self.read()], ["a", "h"])
            self.assertEqual(self.read()[1], old)

    def test_unstable(self):
        """On a server that limits and breaks, every id is answered once, whatever it takes."""
        self.write(self.source, [line(str(number)) for number in range(40)])
        handler = Limited(3, then=Unstable())
        runs = [self.run_batch("--workers", "8", "--timeout", "0.1", script=[handler])[0]]
        runs.append(self.run_batch(script=[echo])[0])
        self.assertEqual(runs, [1, 0])
        self.assertEqual([item["custom_id"] for item in self.read()], list(map(str, range(40))))

    def test_progress(self):
        """Progress is one line on a terminal, plain lines now and then elsewhere."""
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        self.write(self.source, [line(str(number)) for number in range(5)])
        for stream, pattern in (
                (Terminal(), r"^(\r\d of 5 done, 0 failed, [^\r\n]*left *)+\r5 of[^\r\n]*\r +\r$"),
                (io.StringIO(), r"^(\d of 5 done, 0 failed, [\d.]+/s, \d+ tokens[^\r\n]*\n){5}$")):
            with mock.patch.object(batch_file, "_SECONDS", (-1, -1)), \
                    mock.patch("contextlib.redirect_stderr", redirect(stream)):
                code, printed, _ = self.run_batch()
            self.assertEqual(code, 0)
            self.assertRegex(stream.getvalue(), pattern)
            os.remove(self.target)


def redirect(stream):
    """Return a stand-in for contextlib.redirect_stderr that takes `stream` instead."""
    return lambda _: mock.patch.object(sys, "stderr", stream)


def user(text):
    return [{"role": "user", "content": text}]


def line(name, **body):
    """A line of requests."""
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions",
            "body": dict({"messages": user(name)}, **body)}


def result(name):
    """A line of results."""
    return {"id": "batch_req_1", "custom_id": name, "error": None,
            "response": {"status_code": 200, "request_id": None, "body": completion("old")}}


class Killed(FileCase):
    """The command as a process that is stopped from outside."""

    def start(self, server, *arguments):
        command = [sys.executable, "-S", "-m", sc.__name__, "batch", self.source, self.target]
        process = subprocess.Popen(
            command + list(arguments), env=environment(server), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        return process

    def finished(self):
        """The ids of whole lines; none may be there twice."""
        if not os.path.exists(self.target):
            return set()
        with open(self.target, "rb") as file:
            names = [json.loads(text.decode())["custom_id"] for text in file
                     if text.endswith(b"\n")]
        self.assertEqual(len(names), len(set(names)))
        return set(names)

    def test_killed(self):
        """Killed at ten random moments, it ends complete, and asks nothing finished again."""
        draw, arrived = random.Random(4), threading.Semaphore(0)

        def handler(conn):
            arrived.release()
            conn.wait(draw.random() / 100)
            echo(conn)

        self.write(self.source, [line(str(number)) for number in range(70)])
        with Server(handler) as server:
            for turn in range(11):
                before, sent = self.finished(), len(server.requests)
                process = self.start(server, "--workers", "3")
                if turn < 10:
                    for _ in range(draw.randrange(9)):
                        arrived.acquire(timeout=5)
                    time.sleep(draw.random() / 100)
                    process.kill()
                self.assertEqual(process.wait(20), 0 if turn == 10 else -signal.SIGKILL)
                again = {request.json["messages"][0]["content"]
                         for request in server.requests[sent:]}
                self.assertEqual(again & before, set())
                self.assertLessEqual(before, self.finished())
                while arrived.acquire(blocking=False):
                    pass
        self.assertEqual([item["custom_id"] for item in self.read()], list(map(str, range(70))))

    def test_interrupted(self):
        """Ctrl-C ends it at once with exit 130, a summary, and what had come in the file."""
        with Server(lambda conn: stall(conn) if said(conn) == "a" else echo(conn)) as server:
            self.write(self.source, [line(name) for name in "abc"])
            process = self.start(server, "--json")
            begun = time.monotonic()
            while len(self.finished()) < 2:  # the others do not wait for the first
                self.assertLess(time.monotonic() - begun, 8)
                time.sleep(0.01)
            time.sleep(0.1)  # what is on disk is counted only then
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(5), 130)
            self.assertLess(time.monotonic() - begun, 1)
            summary = json.loads(process.stdout.read().decode())
            self.assertEqual((summary["done"], summary["ended"]), (2, "interrupted"))
            self.assertEqual(process.stderr.read(), b"")


if __name__ == "__main__":
    unittest.main()
