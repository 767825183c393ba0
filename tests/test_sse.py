# SPDX-License-Identifier: MIT
"""The event-stream parser against the WHATWG rules ("9.2.6 Interpreting an event stream").

Every case is fed whole, then byte by byte, then cut at random; a plain reading of the rules
(`interpret`) judges random input in the same way.
"""
import importlib
import random
import re
import time
import unittest

from . import synthetic_client as sc

sse = importlib.import_module(sc.__name__ + ".sse")


def event(data, event="message", id="", retry=None):
    return (event, data, id, retry)


# name, bytes, events
CASES = [
    ("one event", b"data: x\n\n", [event("x")]),
    ("no bytes", b"", []),
    ("blank lines alone", b"\n\n\r\n\r\r\n", []),
    ("two events", b"data: a\n\ndata: b\n\n", [event("a"), event("b")]),
    ("many blank lines between", b"data: a\n\n\n\ndata: b\n\n", [event("a"), event("b")]),
    ("CR", b"data: a\rdata: b\r\rdata: c\r\r", [event("a\nb"), event("c")]),
    ("CRLF", b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [event("a\nb"), event("c")]),
    ("LF then CR", b"data: a\n\rdata: b\n\r", [event("a"), event("b")]),
    ("CR then CRLF", b"data: a\r\r\ndata: b\r\r\n", [event("a"), event("b")]),
    ("LF then CRLF", b"data: a\n\r\ndata: b\n\n", [event("a"), event("b")]),
    ("LF LF CR", b"data: a\n\n\rdata: b\n\n", [event("a"), event("b")]),
    ("data of several lines", b"data: a\ndata:\ndata: b\n\n", [event("a\n\nb")]),
    ("data without space", b"data:x\n\n", [event("x")]),
    ("only one space taken off", b"data:  x \n\n", [event(" x ")]),
    ("a tab is no space", b"data:\tx\n\n", [event("\tx")]),
    ("data without colon", b"data\n\n", [event("")]),
    ("data with nothing after its colon", b"data:\n\n", [event("")]),
    ("the standard's own example of empty data", b"data\n\ndata\ndata\n\ndata:",
     [event(""), event("\n")]),
    ("the standard's stock example", b"data: YHOO\ndata: +2\ndata: 10\n\n",
     [event("YHOO\n+2\n10")]),
    ("the standard's comment and id example",
     b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\n"
     b"data:  third event\n\n",
     [event("first event", id="1"), event("second event"), event(" third event")]),
    ("colons in the value", b"data: a: b:c\n\n", [event("a: b:c")]),
    ("a value that starts with a colon", b"data::x\n\n", [event(":x")]),
    ("comments", b":\n: x\n:data: y\ndata: z\n:\n\n:\n\n", [event("z")]),
    ("comment inside an event", b"data: a\n: ping\ndata: b\n\n", [event("a\nb")]),
    ("an unknown field", b"foo: bar\ndata: x\nfoo\n\n", [event("x")]),
    ("names are case-sensitive", b"Data: x\nDATA: y\nEvent: z\ndata: w\n\n", [event("w")]),
    ("a space before the name", b" data: x\n\n", []),
    ("a space after the name", b"data : x\n\n", []),
    ("a longer name", b"database: x\ndata: y\n\n", [event("y")]),
    ("a shorter name", b"dat: x\ndata: y\n\n", [event("y")]),
    ("an empty name", b": x\ndata: y\n\n", [event("y")]),
    ("an event's name", b"event: error\ndata: x\n\n", [event("x", event="error")]),
    ("the name after the data", b"data: x\nevent: add\n\n", [event("x", event="add")]),
    ("the last name counts", b"event: a\nevent: b\ndata: x\n\n", [event("x", event="b")]),
    ("an empty name is message", b"event:\ndata: x\n\n", [event("x")]),
    ("a later empty name", b"event: a\nevent\ndata: x\n\n", [event("x")]),
    ("a name lasts one event", b"event: a\ndata: x\n\ndata: y\n\n",
     [event("x", event="a"), event("y")]),
    ("a name without data is dropped", b"event: a\n\ndata: y\n\n", [event("y")]),
    ("an id", b"id: 7\ndata: x\n\n", [event("x", id="7")]),
    ("an id lasts", b"id: 7\ndata: x\n\ndata: y\n\n", [event("x", id="7"), event("y", id="7")]),
    ("an id without data lasts too", b"id: 7\n\ndata: y\n\n", [event("y", id="7")]),
    ("an empty id resets", b"id: 7\ndata: x\n\nid:\ndata: y\n\n",
     [event("x", id="7"), event("y")]),
    ("the last id counts", b"id: 7\nid: 8\ndata: x\n\n", [event("x", id="8")]),
    ("an id with NUL is ignored", b"id: 7\nid: 8\0\ndata: x\n\n", [event("x", id="7")]),
    ("an id after the data", b"data: x\nid: 7\n\n", [event("x", id="7")]),
    ("retry", b"retry: 3000\ndata: x\n\n", [event("x", retry=3000)]),
    ("retry without space", b"retry:0\ndata: x\n\n", [event("x", retry=0)]),
    ("retry with leading zeros", b"retry: 010\ndata: x\n\n", [event("x", retry=10)]),
    ("retry lasts one event", b"retry: 5\ndata: x\n\ndata: y\n\n",
     [event("x", retry=5), event("y")]),
    ("retry alone", b"retry: 5\n\ndata: y\n\n", [event("y")]),
    ("retry of many digits", b"retry: 12345678901234567890\ndata: x\n\n",
     [event("x", retry=12345678901234567890)]),
    ("the last valid retry counts", b"retry: 5\nretry: 6\nretry: x\ndata: y\n\n",
     [event("y", retry=6)]),
    ("NUL in data stays", b"data: a\0b\n\n", [event("a\0b")]),
    ("UTF-8", "data: d\u00e9j\u00e0 \u20ac \U0001f600\n\n".encode(),
     [event("d\u00e9j\u00e0 \u20ac \U0001f600")]),
    ("UTF-8 in a name and an id", "event: \u20ac\nid: \u00e9\ndata: x\n\n".encode(),
     [event("x", event="\u20ac", id="\u00e9")]),
    ("invalid bytes", b"data: a\xff\xfeb\n\n", [event("a\ufffd\ufffdb")]),
    ("a cut character before the line's end", b"data: \xe2\x82\ndata: \xf0\x9f\n\n",
     [event("\ufffd\n\ufffd")]),
    ("an encoded surrogate", b"data: \xed\xa0\x80\n\n", [event("\ufffd\ufffd\ufffd")]),
    ("an overlong line feed is no line end", b"data: a\xc0\x8ab\n\n", [event("a\ufffd\ufffdb")]),
    ("a byte order mark", b"\xef\xbb\xbfdata: x\n\n", [event("x")]),
    ("only one byte order mark", b"\xef\xbb\xbf\xef\xbb\xbfdata: x\ndata: y\n\n", [event("y")]),
    ("a later mark is text", b"data: \xef\xbb\xbfx\n\n\xef\xbb\xbfdata: y\n\n",
     [event("\ufeffx")]),
    ("a mark alone", b"\xef\xbb\xbf", []),
    ("part of a mark", b"\xef\xbbdata: x\ndata: y\n\n", [event("y")]),
    ("a mark after a comment", b": c\n\xef\xbb\xbfdata: x\n\n", []),
    ("a mark before a comment", b"\xef\xbb\xbf:\n\ndata: x\n\n", [event("x")]),
    ("U+2028, U+2029 and U+0085", "data: a\u2028b\u2029c\u0085d\n\n".encode(),
     [event("a\u2028b\u2029c\u0085d")]),
    ("other separators", b"data: a\x0bb\x0cc\x1cd\x1de\x1ef\x1fg\n\n",
     [event("a\x0bb\x0cc\x1cd\x1de\x1ef\x1fg")]),
    ("an unfinished event", b"data: x\n\ndata: y\n", [event("x")]),
    ("an unfinished line", b"data: x\n\ndata: y", [event("x")]),
    ("[DONE] is data like any other", b"data: {}\n\ndata: [DONE]\n\n",
     [event("{}"), event("[DONE]")]),
] + [
    ("retry is digits only: %r" % value, b"retry:" + value + b"\ndata: x\n\n", [event("x")])
    for value in (b"", b" ", b" 3s", b" -1", b" +1", b" 1_0", b" 1.5", b" 1e3", b"  10", b" 10 ",
                  b" 0x10", b" \xd9\xa3", b" \xc2\xb2")
]


def feed(pieces, **options):
    parser = sse.SSEParser(**options)
    events = []
    for piece in pieces:
        events.extend(parser.feed(piece))
    return [(e.event, e.data, e.id, e.retry) for e in events]


def cut(data, rng, pieces=4):
    """Cut `data` in random places; some pieces may be empty."""
    places = sorted(rng.randint(0, len(data)) for _ in range(pieces))
    return [data[a:b] for a, b in zip([0] + places, places + [len(data)])]


def single_bytes(data):
    return [data[i:i + 1] for i in range(len(data))]


def interpret(data):
    """The standard's steps for a whole stream, as plainly as they can be written."""
    text = data.decode("utf-8", "replace")
    lines = re.split("\r\n|\r|\n", text[1:] if text.startswith("\ufeff") else text)[:-1]
    events, values, name, last_id, retry = [], [], "", "", None
    for line in lines:
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if not line:
            if values:
                events.append((name or "message", "\n".join(values), last_id, retry))
            values, name, retry = [], "", None
        elif field == "data":
            values.append(value)
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            last_id = value
        elif field == "retry" and re.match("[0-9]+$", value):
            retry = int(value)
    return events


class Rules(unittest.TestCase):
    def test_cases_whole(self):
        """Every case gives its events when it is fed in one piece."""
        for name, data, events in CASES:
            with self.subTest(name):
                self.assertEqual(feed([data]), events)

    def test_cases_byte_by_byte(self):
        """Every case gives the same events one byte at a time."""
        for name, data, events in CASES:
            with self.subTest(name):
                self.assertEqual(feed(single_bytes(data)), events)

    def test_cases_at_random_splits(self):
        """Every case gives the same events however it is cut."""
        rng = random.Random(1)
        for name, data, events in CASES:
            for _ in range(20):
                pieces = cut(data, rng)
                with self.subTest(name, pieces=pieces):
                    self.assertEqual(feed(pieces), events)

    def test_random_streams(self):
        """Random input gives what the standard's steps give, whole and cut."""
        words = [b"data", b"data:", b"data: ", b"id: ", b"id", b"event: ", b"retry: ", b"retry:",
                 b":", b" ", b"\n", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\0", b"7", b"x",
                 "\u20ac".encode(), b"\xe2\x82", b"\xff", "\u2028".encode(), b"\xc2\x85",
                 b"\xef\xbb\xbf"]
        rng = random.Random(2)
        found = 0
        for _ in range(600):
            data = b"".join(rng.choice(words) for _ in range(rng.randint(1, 30)))
            expected = interpret(data)
            found += len(expected)
            for pieces in ([data], single_bytes(data), cut(data, rng)):
                self.assertEqual(feed(pieces), expected, data)
        self.assertGreater(found, 100)

    def test_the_reference_itself(self):
        """The plain reading used above agrees with the table."""
        for name, data, events in CASES:
            with self.subTest(name):
                self.assertEqual(interpret(data), events)

    def test_long_retry(self):
        """Thousands of digits in retry do not lose the event (int() has a limit on digits)."""
        (found,) = feed([b"retry: " + b"9" * 5000 + b"\ndata: x\n\n"])
        self.assertEqual(found[1], "x")


class Promptness(unittest.TestCase):
    def test_event_at_its_last_byte(self):
        """An event is handed over with the byte that ends its blank line, never one later."""
        for end in (b"\n\n", b"\r\r", b"\n\r", b"\r\n\n", b"\r\n\r"):
            parser = sse.SSEParser()
            with self.subTest(end):
                for piece in single_bytes(b"data: x" + end[:-1]):
                    self.assertEqual(parser.feed(piece), [])
                self.assertEqual([e.data for e in parser.feed(end[-1:])], ["x"])

    def test_line_feed_that_comes_late(self):
        """The LF of a CRLF that was cut in two ends no second line."""
        parser = sse.SSEParser()
        self.assertEqual([e.data for e in parser.feed(b"data: x\r\n\r")], ["x"])
        self.assertEqual(parser.feed(b"\ndata: y\r"), [])
        self.assertEqual(parser.feed(b""), [])
        self.assertEqual(parser.feed(b"\ndata: z\r"), [])
        self.assertEqual([e.data for e in parser.feed(b"\r")], ["y\nz"])


class Limits(unittest.TestCase):
    def refuses(self, pieces, limit=1000):
        with self.assertRaises(sc.ResponseError) as caught:
            feed(pieces, max_event_bytes=limit)
        self.assertNotIn("\n", str(caught.exception))

    def test_events_within_the_limit(self):
        """Any number of events under the limit pass, in one feed and in many."""
        data = (b"data: " + b"x" * 900 + b"\n\n") * 50
        for pieces in ([data], single_bytes(data), cut(data, random.Random(3), 100)):
            self.assertEqual(len(feed(pieces, max_event_bytes=1000)), 50)

    def test_limit_does_not_depend_on_the_cuts(self):
        """An event of so many bytes passes or is refused alike, whole and in pieces."""
        for text, size in (("x", 994), ("\u20ac", 331)):  # and "data: " before it
            data = b"data: " + text.encode() * size
            for pieces in ([data + b"\n\n"], single_bytes(data + b"\n\n")):
                self.assertEqual(len(feed(pieces, max_event_bytes=1000)), 1)
            for pieces in ([data + b"xxxxxxx\n\n"], single_bytes(data + b"xxxxxxx\n\n")):
                self.refuses(pieces)

    def test_one_long_line(self):
        """An event of one line over the limit is refused, whole or in pieces."""
        data = b"data: " + b"x" * 1100 + b"\n\n"
        self.refuses([data])
        self.refuses(single_bytes(data))

    def test_many_short_lines(self):
        """An event of many lines that together pass the limit is refused, whole or in pieces."""
        data = b"data: xxxx\n" * 300 + b"\n"
        self.refuses([data])
        self.refuses(single_bytes(data))

    def test_limit_while_the_line_has_no_end(self):
        """A line that never ends is refused as soon as it has passed the limit."""
        parser = sse.SSEParser(max_event_bytes=1000)
        with self.assertRaises(sc.ResponseError):
            for _ in range(30):
                parser.feed(b"x" * 100)

    def test_limit_while_the_event_has_no_end(self):
        """An event of lines without a blank one is refused as soon as it has passed the limit."""
        for start in (b"", b"data: x\n\n", b"data: x\n\ndata: y\n"):
            parser = sse.SSEParser(max_event_bytes=1000)
            parser.feed(start)
            with self.assertRaises(sc.ResponseError):
                for _ in range(30):
                    parser.feed(b"data: " + b"x" * 93 + b"\n")

    def test_comments_between_events(self):
        """Comments and blank lines never add up to an event over the limit."""
        data = b": keep-alive\n\n" * 500 + b"data: x\n\n"
        self.assertEqual(feed([data], max_event_bytes=1000), [event("x")])
        self.assertEqual(feed(single_bytes(data), max_event_bytes=1000), [event("x")])

    def in_linear_time(self, pieces):
        parser, events = sse.SSEParser(max_event_bytes=1 << 30), 0
        start = time.process_time()
        for i, piece in enumerate(pieces):
            events += len(parser.feed(piece))
            if i % 500 == 0 and time.process_time() - start > 4:
                self.fail("%d pieces took over 4 s" % i)
        self.assertLess(time.process_time() - start, 4)
        return events

    def test_long_line_in_small_pieces(self):
        """A line of megabytes in small pieces takes time in proportion to its length."""
        pieces = [b"data: "] + [b"x" * 64] * 100000 + [b"\n\n"]
        self.assertEqual(self.in_linear_time(pieces), 1)

    def test_many_lines_in_one_event(self):
        """An event of a hundred thousand lines takes time in proportion to its length."""
        data = b"data: " + b"x" * 50 + b"\n"
        self.assertEqual(self.in_linear_time([data] * 100000 + [b"\n"]), 1)
        self.assertEqual(self.in_linear_time([data * 100000 + b"\n"]), 1)

    def test_many_events_in_one_feed(self):
        """A hundred thousand events in one feed take time in proportion to their number."""
        self.assertEqual(self.in_linear_time([(b"data: " + b"x" * 50 + b"\n\n") * 100000]), 100000)


if __name__ == "__main__":
    unittest.main()
