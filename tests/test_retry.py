# SPDX-License-Identifier: MIT
"""Which failures are asked again, and how long the client waits before."""

import json
import threading
import time
import unittest
from datetime import datetime, timedelta, timezone
from unittest import mock

from . import synthetic_client as sc
from .server import Server, answer, at_once, chunks, stall

retry = sc.retry
SOON = {"retry-after-ms": "1"}
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)


def quotas_header(when, remaining=0, limited=True):
    """Return an x-synthetic-quotas header whose five-hour meter renews at `when`."""
    meter = {"nextTickAt": when.strftime("%Y-%m-%dT%H:%M:%S.000Z"), "tickPercent": 0.05,
             "remaining": remaining, "max": 500, "limited": limited}
    return {"x-synthetic-quotas": json.dumps({"rollingFiveHourLimit": meter})}


def in_seconds(seconds):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


class Stopping(unittest.TestCase):
    def test_stop(self):
        """A stopped clock ends its call at once, whatever it waits for, and allows no other."""
        def before_head(server, clock):
            server.client(max_retries=3)._ask("GET", "x", None, {"clock": clock}, None)

        def in_body(server, clock):
            server.client()._ask("GET", "x", None, {"clock": clock}, lambda response, meta, call: (
                response.read1(), response.read1()))

        def half(conn):
            conn.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1")
            stall(conn)
        for ask, handler in ((before_head, stall), (in_body, half)):
            with self.subTest(ask.__name__), Server(handler) as server:
                clock = retry.Clock(10, 10, None)
                timer = threading.Timer(0.05, clock.stop)
                timer.start()
                begun = time.monotonic()
                with self.assertRaises(sc.APIConnectionError):
                    ask(server, clock)
                self.assertLess(time.monotonic() - begun, 2)
                timer.join()
                with self.assertRaises(sc.APITimeoutError):
                    ask(server, clock)
                self.assertEqual(len(server.requests), 1)

    def test_stop_afterwards(self):
        """Stopping the clock of a call that has ended leaves its connection to the next one."""
        with Server() as server:
            client, clock = server.client(), retry.Clock(10, 10, None)
            client._ask("GET", "x", None, {"clock": clock}, lambda answer, *_: answer.read(9999))
            clock.stop()
            client.chat("hi")
            self.assertEqual(server.connections, 1)

    def test_stop_at_the_end(self):
        """A connection that was cut just when its answer came is not used again."""
        with Server() as server:
            client = server.client()
            client.chat("hi")
            client._transport()._idle[-1].cut()
            client.chat("hi")
            self.assertEqual(server.connections, 2)


class Waits(unittest.TestCase):
    """The pure functions."""

    def test_backoff_bounds(self):
        """The wait doubles from 0.5 s to 8 s, less at most a quarter, for any attempt."""
        for attempt in list(range(1, 12)) + [100, 5000, 10 ** 9]:
            longest = 0.5 * 2 ** min(attempt - 1, 4)
            for _ in range(50):
                self.assertLessEqual(retry.backoff(attempt), longest)
                self.assertGreaterEqual(retry.backoff(attempt), longest * 0.75)

    def test_backoff_is_spread(self):
        """Clients that failed together do not come back together."""
        waits = [retry.backoff(5) for _ in range(200)]
        self.assertGreater(max(waits) - min(waits), 1.0)

    def test_retry_after(self):
        """retry-after-ms, else Retry-After in seconds or as any of the three HTTP dates."""
        table = [
            ({"retry-after-ms": "1500"}, 1.5),
            ({"retry-after-ms": "250.5"}, 0.2505),
            ({"retry-after-ms": "20", "retry-after": "7"}, 0.02),
            ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
            ({"retry-after": "7"}, 7.0),
            ({"retry-after": " 7 "}, 7.0),
            ({"retry-after": "0"}, 0.0),
            ({"retry-after": "007"}, 7.0),
            ({"retry-after": "86400"}, 86400.0),
            ({"retry-after": "Sun, 22 Nov 2026 12:00:30 GMT"}, 30.0),
            ({"retry-after": "Sunday, 22-Nov-26 12:00:30 GMT"}, 30.0),
            ({"retry-after": "Sun Nov 22 12:00:30 2026"}, 30.0),
            ({"retry-after": "Sun, 22 Nov 2026 14:00:30 +0200"}, 30.0),
            ({"retry-after": "Sun, 22 Nov 2026 11:00:00 GMT"}, 0.0),
        ]
        for headers, seconds in table:
            with self.subTest(headers=headers):
                self.assertEqual(retry.parse_retry_after(headers, NOW), seconds)

    def test_retry_after_garbage(self):
        """A value that is no number of digits and no date counts as not sent."""
        for value in ("", " ", "soon", "-1", "+5", "1_0", "1e3", "nan", "inf", "0x10", "5 s",
                      "\u0661\u0662", "Sun, 31 Feb 2026 12:00:00 GMT", "Sun, 22 Nov", "12:00",
                      "99999999999999999999999999 Nov 2026 1:1:1 GMT", "9" * 400, "1.", ".5"):
            for name in ("retry-after", "retry-after-ms"):
                with self.subTest(value=value, name=name):
                    self.assertIsNone(retry.parse_retry_after({name: value}, NOW))

    def test_used_up_quota(self):
        """A meter at nought is found with the seconds until it renews, and only then."""
        at = "2026-11-22T13:00:00.000Z"
        table = [
            ({}, None),
            ({"rollingFiveHourLimit": {"limited": True, "nextTickAt": at}}, 3600),
            ({"rollingFiveHourLimit": {"remaining": 0, "nextTickAt": at}}, 3600),
            ({"rollingFiveHourLimit": {"remaining": 0.1, "limited": False, "nextTickAt": at}},
             None),
            ({"weeklyTokenLimit": {"percentRemaining": 0, "nextRegenAt": at}}, 3600),
            ({"weeklyTokenLimit": {"remainingCredits": "$0.00", "nextRegenAt": at}}, 3600),
            ({"weeklyTokenLimit": {"percentRemaining": 3, "remainingCredits": "$0.72",
                                   "nextRegenAt": at}}, None),
            ({"subscription": {"limit": 500, "requests": 500, "renewsAt": at}}, 3600),
            ({"subscription": {"limit": 500, "requests": 439.5, "renewsAt": at}}, None),
            ({"subscription": {"limit": 0, "requests": 0, "renewsAt": at}}, None),
            ({"subscription": {"limit": 500, "requests": 0, "renewsAt": at},
              "rollingFiveHourLimit": {"limited": True, "nextTickAt": at}}, 3600),
            ({"search": {"hourly": {"limit": 250, "requests": 250, "renewsAt": at}}}, None),
        ]
        for body, seconds in table:
            with self.subTest(body=body):
                found = retry.used_up_quota(sc.Quotas.from_dict(body), NOW)
                self.assertEqual(found and found[1], seconds)


class Retried(unittest.TestCase):
    """Decisions, seen from a server."""

    def failing(self, status, body=None, headers=None, **options):
        """Return the error of a call that is answered so, and the requests it took."""
        fields = dict(SOON)
        fields.update(headers or {})
        body = {"error": "no"} if body is None else body
        with Server(answer(status, body, fields)) as server:
            with self.assertRaises(sc.SyntheticError) as caught:
                server.client(**dict({"max_retries": 2}, **options)).chat("hi")
        self.assertEqual(caught.exception.attempts, len(server.requests))
        return caught.exception, len(server.requests)

    def test_retried_statuses(self):
        """408, 409, 429 and every 5xx are asked again, max_retries times."""
        for status in (408, 409, 429, 500, 501, 502, 503, 504, 524, 529, 599):
            with self.subTest(status=status):
                error, requests = self.failing(status)
                self.assertEqual((error.status_code, requests), (status, 3))

    def test_other_statuses(self):
        """No other 4xx is asked again, and no redirect."""
        for status in (300, 301, 304, 400, 401, 402, 403, 404, 405, 413, 418, 422, 425, 451):
            with self.subTest(status=status):
                error, requests = self.failing(status)
                self.assertEqual((error.status_code, requests), (status, 1))

    def test_x_should_retry(self):
        """x-should-retry has the last word over the status."""
        for status, word, wanted in ((400, "true", 3), (404, "true", 3), (429, "false", 1),
                                     (503, "false", 1), (503, "perhaps", 3), (400, "perhaps", 1)):
            with self.subTest(status=status, word=word):
                _, requests = self.failing(status, headers={"x-should-retry": word})
                self.assertEqual(requests, wanted)

    def test_success_after_failures(self):
        """An answer after failures is handed over, with the attempts that it took."""
        with Server([answer(503, "", SOON), answer(429, "", SOON), answer()]) as server:
            reply = server.client(max_retries=2).chat("hi")
        self.assertEqual(reply.meta.attempts, 3)
        self.assertEqual(len({request.body for request in server.requests}), 1)
        keys = {request.headers["authorization"] for request in server.requests}
        self.assertEqual(len(keys), 1)

    def test_stream_is_retried_before_it_begins(self):
        """stream_chat asks again as chat does."""
        with Server([answer(503, "", SOON), chunks("a", "b")]) as server:
            stream = server.client(max_retries=2).stream_chat("hi")
            self.assertEqual(stream.completion().text, "ab")
        self.assertEqual(stream.meta.attempts, 2)

    def test_max_retries_of_one_call(self):
        """A call's max_retries replaces the client's."""
        with Server(answer(503, "", SOON)) as server:
            client = server.client(max_retries=2)
            for max_retries, wanted in ((0, 1), (1, 2), (4, 5), (None, 3)):
                del server.requests[:]
                with self.assertRaises(sc.InternalServerError) as caught:
                    client.chat("hi", max_retries=max_retries)
                self.assertEqual(caught.exception.attempts, wanted)
                self.assertEqual(len(server.requests), wanted)

    def test_insufficient_quota(self):
        """A 429 that says insufficient_quota, as code or type, is not asked again."""
        for field in ("code", "type"):
            error, requests = self.failing(
                429, {"error": {"message": "no credit", field: "insufficient_quota"}})
            self.assertIsInstance(error, sc.RateLimitError)
            self.assertEqual(requests, 1)

    def test_asked_to_wait_too_long(self):
        """Asked to wait longer than 60 s, the error comes at once with .retry_after."""
        later = in_seconds(600).strftime("%a, %d %b %Y %H:%M:%S GMT")
        for headers, seconds in (({"Retry-After": "61"}, 61), ({"Retry-After": "86400"}, 86400),
                                 ({"retry-after-ms": "60001"}, 60.001),
                                 ({"Retry-After": later}, 600)):
            headers = dict({"retry-after-ms": ""}, **headers)
            for status in (429, 503):
                with self.subTest(headers=headers, status=status):
                    error, requests = self.failing(status, headers=headers)
                    self.assertEqual(requests, 1)
                    self.assertAlmostEqual(error.retry_after, seconds, delta=5)
                    self.assertRegex(str(error), "asks for a wait of ([0-9]+ (d|h|min) ?)+")

    def test_retry_after_is_kept(self):
        """.retry_after is what the server asked for, and None where it asked for nothing."""
        error, _ = self.failing(429, headers={"retry-after-ms": "40"}, max_retries=0)
        self.assertEqual(error.retry_after, 0.04)
        error, _ = self.failing(429, headers={"retry-after-ms": ""}, max_retries=0)
        self.assertIsNone(error.retry_after)

    def test_the_wait_is_waited(self):
        """The next request goes out after the time asked for, not before and not much later."""
        times = []

        def handler(conn):
            times.append(time.monotonic())
            conn.send(503, b"", {"retry-after-ms": "150"})

        with Server(handler) as server:
            with self.assertRaises(sc.InternalServerError):
                server.client(max_retries=1).chat("hi")
        self.assertGreaterEqual(times[1] - times[0], 0.15)
        self.assertLess(times[1] - times[0], 0.45)

    def test_wait_without_a_header(self):
        """With no word from the server the first wait is 0.375 to 0.5 s."""
        with Server([answer(503, ""), answer()]) as server:
            begun = time.monotonic()
            server.client(max_retries=1).chat("hi")
        self.assertGreaterEqual(time.monotonic() - begun, 0.375)

    def test_wait_past_the_deadline(self):
        """Asked to wait past the deadline, the error comes at once with .retry_after."""
        begun = time.monotonic()
        error, requests = self.failing(
            429, headers={"retry-after-ms": "", "Retry-After": "30"}, deadline=5)
        self.assertIsInstance(error, sc.RateLimitError)
        self.assertEqual((requests, error.retry_after), (1, 30.0))
        self.assertLess(time.monotonic() - begun, 2)

    def test_deadline_over_retries(self):
        """The deadline bounds the attempts and waits of one call together."""
        with Server(answer(503, "", {"retry-after-ms": "40"})) as server:
            begun = time.monotonic()
            with self.assertRaises((sc.InternalServerError, sc.APITimeoutError)) as caught:
                server.client(max_retries=10 ** 6, deadline=0.25).chat("hi")
            self.assertLess(time.monotonic() - begun, 1.5)
        self.assertTrue(2 <= caught.exception.attempts <= 7, caught.exception.attempts)

    def test_described_waits(self):
        """A wait is said in its two largest units, rounded up to whole minutes."""
        for seconds, said in ((-5, "1 min"), (0, "1 min"), (60, "1 min"), (60.5, "2 min"),
                              (120, "2 min"), (3600, "1 h"), (3601, "1 h 1 min"),
                              (86400, "1 d"), (90000, "1 d 1 h"), (93700, "1 d 2 h")):
            self.assertEqual(retry.describe_wait(seconds), said)

    def test_used_up_quota_is_raised_at_once(self):
        """A 429 with a quota that renews in hours is not waited for; the message names it."""
        error, requests = self.failing(429, headers=quotas_header(in_seconds(7200)))
        self.assertEqual(requests, 1)
        self.assertAlmostEqual(error.retry_after, 7200, delta=10)
        self.assertIn("five-hour", str(error))
        self.assertRegex(str(error), r"renews in [12]\b")
        self.assertTrue(error.quotas.rolling_five_hour_limit.limited)

    def test_quota_that_is_left(self):
        """A 429 beside quotas that are not used up is asked again."""
        _, requests = self.failing(429, headers=quotas_header(in_seconds(7200), 400, False))
        self.assertEqual(requests, 3)

    def test_unreadable_quotas(self):
        """A quotas header that is no JSON object disturbs nothing."""
        for value in ("{", "[]", "null", "7", '{"subscription": 3}', ""):
            with self.subTest(value=value):
                error, requests = self.failing(429, headers={"x-synthetic-quotas": value})
                self.assertIsInstance(error, sc.RateLimitError)
                self.assertEqual(requests, 3)


class Connections(unittest.TestCase):
    """Failures without a status."""

    def setUp(self):
        patch = mock.patch.object(retry, "backoff", return_value=0.01)
        patch.start()
        self.addCleanup(patch.stop)

    def test_lost_before_the_first_byte(self):
        """A connection that ends before a byte of the answer is tried again."""
        for cut in (lambda conn: conn.close(), lambda conn: conn.reset()):
            with Server([cut, answer()]) as server:
                reply = server.client(max_retries=1).chat("hi")
            self.assertEqual((reply.meta.attempts, server.connections), (2, 2))

    def test_refused(self):
        """A refused connection is tried again, then an APIConnectionError."""
        with Server() as server:
            pass
        with self.assertRaises(sc.APIConnectionError) as caught:
            server.client(max_retries=2).chat("hi")
        self.assertEqual(caught.exception.attempts, 3)
        self.assertIsInstance(caught.exception.__cause__, ConnectionRefusedError)

    def test_never_connected(self):
        """A connection that was not made in time is tried again."""
        with Server(connect=stall, tls="localhost") as server:
            with self.assertRaises(sc.APITimeoutError) as caught:
                server.client(max_retries=1, connect_timeout=0.1).chat("hi")
            self.assertEqual((caught.exception.attempts, server.connections), (2, 2))

    def one_request(self, handler, **options):
        """Check that a call answered so raises after one request, and return the error."""
        with Server(handler) as server:
            with self.assertRaises(sc.SyntheticError) as caught:
                server.client(max_retries=2, timeout=0.08, **options).chat("hi")
        self.assertEqual((len(server.requests), caught.exception.attempts), (1, 1))
        return caught.exception

    def test_silence(self):
        """Silence after the request went out is not asked again: it may be running."""
        error = self.one_request(lambda conn: conn.gone())
        self.assertIsInstance(error, sc.APITimeoutError)

    def test_after_the_first_byte(self):
        """Nothing is asked again once the answer has begun."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"

        def check(data):
            self.one_request(lambda conn: (conn.raw(data), conn.close()))
            self.one_request(lambda conn: (conn.raw(data), conn.gone()))

        at_once(self, check, [
            b"HTTP/1.1 200 OK\r\nConte", head, head + b'{"id": ', b"GARBAGE\r\n\r\n"])

    def test_stream_that_has_begun(self):
        """A stream cut before its first event is not asked again."""
        def handler(conn):
            conn.start_sse()
            conn.close()

        with Server(handler) as server:
            stream = server.client(max_retries=2).stream_chat("hi")
            with self.assertRaises(sc.StreamInterruptedError) as caught:
                list(stream)
        self.assertEqual((len(server.requests), caught.exception.attempts), (1, 1))


if __name__ == "__main__":
    unittest.main()
