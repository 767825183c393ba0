# SPDX-License-Identifier: MIT
"""For whatever answer hypothesis thinks of: how its stream is cut changes nothing.

An answer is taken apart into deltas, these into events, HTTP chunks and reads, at places that
hypothesis chooses; what the package makes of them must be the answer, and of any beginning of
them an error that holds a beginning of it.
"""
import importlib
import io
import json
import os
import unittest
import zlib

from .. import synthetic_client as sc
from . import parts

try:
    from hypothesis import Phase, given, settings, strategies as st
except ImportError:
    st = None  # setUpModule says so

http1, stream_module, transport = (
    importlib.import_module(sc.__name__ + name) for name in (".http1", ".stream", ".transport"))
# A few where hypothesis happens to be installed: the test command is done within 30 seconds.
EXAMPLES = 200 if os.environ.get("CI") == "true" else 10
PHASES = st and [Phase.explicit, Phase.generate, Phase.target]  # shrinking takes minutes
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
TEXTS = ("content", "reasoning_content", "refusal")


def setUpModule():
    parts.need(modules="hypothesis")


class Reads(io.RawIOBase):
    """A connection that hands over what it is told, read by read, then ends."""

    explain = transport._Connection.explain

    def __init__(self, reads):
        self.reads = [read for read in reads if read]

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.reads:
            return 0
        data, rest = self.reads[0][:len(buffer)], self.reads[0][len(buffer):]
        self.reads[:1] = [rest] if rest else []
        buffer[:len(data)] = data
        return len(data)

    def cut(self):
        pass


class Plan:
    """How an answer is streamed: hypothesis draws each decision."""

    def __init__(self, data):
        self.data = data
        self.answer = self.draw_answer()
        self.chunks = self.take_apart()
        self.body = self.frame(self.pack(self.write()))

    def draw(self, strategy):
        return self.data.draw(strategy)

    def draw_answer(self):
        text = st.none() | st.text(max_size=30)
        call = st.fixed_dictionaries({"id": st.text(min_size=1, max_size=5),
                                      "name": st.text(min_size=1, max_size=5),
                                      "arguments": st.text(max_size=20)})
        choice = st.fixed_dictionaries({
            "content": text, "reasoning_content": text, "refusal": text,
            "calls": st.lists(call, max_size=3, unique_by=lambda call: call["id"]),
            "finish_reason": st.sampled_from(["stop", "length", "tool_calls"])})
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        return self.draw(st.lists(choice, min_size=1, max_size=3)), self.draw(
            st.sampled_from([None, usage]))

    def cut(self, whole, most=5):
        """Cut text or bytes at drawn places."""
        places = self.draw(st.lists(st.integers(0, len(whole)), max_size=most).map(sorted))
        return [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)])]

    def take_apart(self):
        """Return the chunks: each choice's deltas in order, those of different ones mixed."""
        choices, usage = self.answer
        queues = [self.deltas(index, choice) for index, choice in enumerate(choices)]
        chunks = []
        while any(queues):
            queue = self.draw(st.sampled_from([queue for queue in queues if queue]))
            chunks.append({**HEAD, "choices": [queue.pop(0)]})
        if usage:
            chunks.append({**HEAD, "choices": [], "usage": usage})
        return chunks

    def deltas(self, index, choice):
        deltas = [{"role": "assistant"}]
        for name in TEXTS:
            if choice[name] is not None:
                deltas += [{name: piece} for piece in self.cut(choice[name])]
        for place, call in enumerate(choice["calls"]):
            first, *rest = self.cut(call["arguments"])
            function = {"name": call["name"], "arguments": first}
            deltas.append({"tool_calls": [{"index": place, "id": call["id"], "type": "function",
                                           "function": function}]})
            deltas += [{"tool_calls": [{"index": place, "function": {"arguments": piece}}]}
                       for piece in rest]
        made = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
        return made + [{"index": index, "delta": {}, "finish_reason": choice["finish_reason"]}]

    def write(self):
        """Return the events as bytes, with what means nothing between them."""
        end = self.draw(st.sampled_from(["\n", "\r\n", "\r"]))
        noise = st.sampled_from(["", ": ping" + end, "event: message" + end + end, end])
        ascii_only = self.draw(st.booleans())
        text = ""
        for chunk in self.chunks:
            data = json.dumps(chunk, ensure_ascii=ascii_only)
            text += "%sdata: %s%s%s" % (self.draw(noise), data, end, end)
        self.is_done = self.draw(st.booleans())
        text += ("data: [DONE]" + end + end) * self.is_done
        return text.encode("utf-8", "surrogatepass")

    def pack(self, events):
        """Return pieces of the body, compressed or not, as a server flushes them."""
        self.encoding = self.draw(st.sampled_from(["identity", "gzip", "deflate"]))
        pieces = self.cut(events, most=8)
        if self.encoding == "identity":
            return pieces
        packer = zlib.compressobj(wbits=31 if self.encoding == "gzip" else 15)
        return [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
                for piece in pieces] + [packer.flush()]

    def frame(self, pieces):
        self.framing = self.draw(st.sampled_from(["chunked", "length", "close"]))
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: %s\r\n"
        if self.framing != "chunked":
            body, field = b"".join(pieces), "Content-Length: %d" % sum(map(len, pieces))
            field = "Connection: close" if self.framing == "close" else field
        else:
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
            body, field = body + b"0\r\n\r\n", "Transfer-Encoding: chunked"
        self.head = (head % self.encoding + field + "\r\n\r\n").encode()
        return body

    def stream(self, body):
        response = http1.Response(Reads([self.head, *self.cut(body, most=12)]), "POST")
        return stream_module.ChatStream(
            response, sc.Meta(), expected_choices=len(self.answer[0]))

    def whole(self):
        """Return the answer as a server that does not stream has it."""
        choices = []
        for index, choice in enumerate(self.answer[0]):
            message = {"role": "assistant", "content": choice["content"]}
            message.update((name, choice[name]) for name in TEXTS[1:] if choice[name] is not None)
            if choice["calls"]:
                message["tool_calls"] = [
                    {"id": call["id"], "type": "function", "function": {
                        "name": call["name"], "arguments": call["arguments"]}}
                    for call in choice["calls"]]
            choices.append({"index": index, "message": message,
                            "finish_reason": choice["finish_reason"]})
        answer = {**HEAD, "object": "chat.completion", "choices": choices}
        return {**answer, "usage": self.answer[1]} if self.answer[1] else answer


if st is not None:
    class Cutting(unittest.TestCase):
        @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=PHASES)
        @given(st.data())
        def test_whole(self, data):
            """A stream's completion is the whole answer, however it is cut."""
            plan = Plan(data)
            with plan.stream(plan.body) as stream:
                self.assertEqual(stream.completion().to_dict(), plan.whole())

        @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=PHASES)
        @given(st.data())
        def test_beginning(self, data):
            """Of a beginning of the body comes an error with a beginning of the answer."""
            plan = Plan(data)
            missing = data.draw(st.integers(1, 40) | st.integers(1, len(plan.body)))
            body = plan.body[:-missing]
            text = plan.answer[0][0]["content"] or ""
            pieces = []
            try:
                with plan.stream(body) as stream:
                    for piece in stream.texts():
                        pieces.append(piece)
                    got = stream.completion()
            except sc.StreamInterruptedError as error:
                first = [choice for choice in error.partial.choices if not choice.index]
                got = first[0].message.content or "" if first else ""
                self.assertEqual(got, "".join(pieces))
                self.assertTrue(text.startswith(got))
            else:  # nothing but the body's end was missing, or nobody could know that more was
                unframed = plan.framing == "close" and plan.encoding == "identity"
                self.assertTrue(plan.is_done or unframed
                                or plan.framing == "chunked" and missing <= 2)
                self.assertEqual(got.to_dict()["choices"], plan.whole()["choices"])

        @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=PHASES)
        @given(st.data())
        def test_at_once(self, data):
            """Each chunk is handed over with the read that completes its event."""
            plan = Plan(data)
            if plan.encoding != "identity" or plan.framing != "length":
                return
            reads = Reads([plan.head])
            response = http1.Response(reads, "POST")
            stream = stream_module.ChatStream(response, sc.Meta(), expected_choices=99)
            for number, event in enumerate(split_events(plan.body)):
                reads.reads.append(event)
                if number < len(plan.chunks):
                    self.assertEqual(next(stream).to_dict(), plan.chunks[number])
            stream.close()


def split_events(body):
    """Yield the body in pieces that each end with an event that has data."""
    start = 0
    for end in range(1, len(body) + 1):
        piece = body[start:end]
        text = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if text.endswith(b"\n\n") and b"data:" in text and not body[end:end + 1] == b"\n":
            yield piece
            start = end
