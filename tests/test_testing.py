# SPDX-License-Identifier: MIT
"""MockServer: what a person who tests a program with it relies on."""
import http.client
import importlib
import json
import threading
import time
import unittest
import urllib.parse

from . import synthetic_client as sc

MockServer = importlib.import_module(sc.__name__ + ".testing").MockServer
WEATHER = {"function": {"name": "weather", "arguments": {"city": "Paris", "days": 3}}}


class Mocked(unittest.TestCase):
    def setUp(self):
        self.server = MockServer().start()
        self.addCleanup(self.server.close)
        self.client = self.server.client(max_retries=0)
        self.addCleanup(self.client.close)

    def raw(self, method, path, body=None):
        """Ask without our client; return the status, the headers and the body's text."""
        place = urllib.parse.urlsplit(self.server.base_url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=5)
        self.addCleanup(connection.close)
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


class Chat(Mocked):
    def test_five_lines(self):
        """The five lines of README: a reply is queued, the program runs, the request is seen."""
        with MockServer() as server:
            server.reply("4")
            self.assertEqual(server.client().chat("2 + 2?", temperature=0).text, "4")
            self.assertEqual(server.requests[0].json["temperature"], 0)

    def test_echo(self):
        """With nothing queued the last user message comes back, streamed or not."""
        messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "a"},
                    {"role": "user", "content": [{"type": "text", "text": "last "},
                                                 {"type": "image_url", "image_url": {"url": "x"}},
                                                 {"type": "text", "text": "words"}]},
                    {"role": "system", "content": "be brief"}]
        self.assertEqual(self.client.chat(messages).text, "last words")
        self.assertEqual("".join(self.client.stream_chat(messages).texts()), "last words")
        self.assertEqual(self.client.chat([{"role": "system", "content": "s"}]).text, "")

    def test_replies_in_order(self):
        """Queued answers are given in their order, then it echoes again."""
        self.server.reply("one")
        self.server.fail(429, {"error": "slow"}, headers={"Retry-After": "7"})
        self.server.reply({"content": "two", "finish_reason": "length"})
        self.assertEqual(self.client.chat("x").text, "one")
        with self.assertRaises(sc.RateLimitError) as caught:
            self.client.chat("x")
        self.assertEqual((caught.exception.message, caught.exception.retry_after), ("slow", 7.0))
        self.assertEqual(self.client.chat("x").choices[0].finish_reason, "length")
        self.assertEqual(self.client.chat("x").text, "x")

    def test_shape(self):
        """An answer has what the service's has: model, choices, usage, quotas in a header."""
        reply = self.client.chat("three little words", n=2)
        self.assertEqual(reply.model, self.client.model)
        self.assertEqual([choice.index for choice in reply.choices], [0, 1])
        self.assertEqual(reply.object, "chat.completion")
        self.assertEqual(reply.choices[1].finish_reason, "stop")
        self.assertEqual(reply.usage.to_dict(), {
            "prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9})
        self.assertEqual(reply.meta.quotas.rolling_five_hour_limit.max, 500)

    def test_stream_says_the_same(self):
        """A stream comes in several pieces, which together are the whole answer."""
        for answer in ("several words, in pieces", {"content": None, "tool_calls": [WEATHER] * 2},
                       {"content": "  a\n\nb ", "reasoning_content": "I think", "refusal": "no"}):
            with self.subTest(answer):
                self.server.reply(answer)
                self.server.reply(answer)
                whole = self.client.chat("x", n=2)
                with self.client.stream_chat("x", n=2, stream_options={
                        "include_usage": True}) as stream:
                    chunks = list(stream)
                self.assertGreater(len(chunks), 6)
                self.assertEqual(chunks[-1].choices, [])
                streamed = stream.completion()
                self.assertEqual(streamed.usage, whole.usage)
                for one, other in zip(streamed.choices, whole.choices):
                    self.assertEqual(one.finish_reason, other.finish_reason)
                    self.assertEqual(one.message.tool_calls, other.message.tool_calls)
                    for name in ("reasoning_content", "refusal", "role"):
                        self.assertEqual(one.message[name], other.message[name])
                    self.assertEqual(one.message.content or "", other.message.content or "")

    def test_usage_is_asked_for(self):
        """A stream tells the usage only where include_usage asks for it."""
        self.assertIsNone(self.client.stream_chat("x").completion().usage)

    def test_tool_calls(self):
        """A call gets an id and a type, and its arguments become JSON text."""
        self.server.reply({"tool_calls": [WEATHER, {"id": "mine", "function": {
            "name": "noon", "arguments": ""}}]})
        choice = self.client.chat("x").choices[0]
        first, second = choice.message.tool_calls
        self.assertEqual((first.type, first.function.name), ("function", "weather"))
        self.assertEqual(first.function.parse(), {"city": "Paris", "days": 3})
        self.assertTrue(first.id)
        self.assertEqual((second.id, second.function.parse()), ("mine", {}))
        self.assertEqual(choice.finish_reason, "tool_calls")

    def test_whole_completion(self):
        """A dict with choices is sent as it is, and can be streamed."""
        answer = {"id": "mine", "extra": 1, "choices": [
            {"index": 0, "message": {"role": "user", "content": "a b"}, "finish_reason": "x"}]}
        self.server.reply(answer)
        self.assertEqual(self.client.chat("x").to_dict(), answer)
        self.server.reply(answer)
        streamed = self.client.stream_chat("x").completion()
        self.assertEqual((streamed.id, streamed.text), ("mine", "a b"))
        self.assertEqual(streamed.extra, {"extra": 1})

    def test_stream_delay(self):
        """stream_delay passes between the pieces, and none of it before the first."""
        self.server.reply("a b c", stream_delay=0.05)
        begun = time.monotonic()
        arrived = [time.monotonic() - begun for _ in self.client.stream_chat("x").texts()]
        self.assertEqual(len(arrived), 3)
        self.assertGreater(arrived[2] - arrived[0], 0.08)

    def test_many_threads(self):
        """Sixteen threads at once each get their own answer."""
        found = []

        def ask(text):
            found.append(self.client.chat(text).text == text)
            found.append("".join(self.client.stream_chat(text).texts()) == text)

        threads = [threading.Thread(target=ask, args=("t%d word" % n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [True] * 32)


class Failures(Mocked):
    def test_bodies(self):
        """A failure's body goes out as it is: text, bytes, or an object as JSON."""
        text, plain = "<b>no</b>", "text/plain"
        for body, kind, said in ((text, plain, text), (b"raw", plain, "raw"), ("", plain, ""),
                                 ({"error": "e"}, "application/json", '{"error": "e"}'),
                                 ([1], "application/json", "[1]")):
            self.server.fail(503, body)
            status, headers, found = self.raw("GET", "/")
            self.assertEqual((status, headers["Content-Type"], found), (503, kind, said))

    def test_retries(self):
        """A client's retry after a queued failure meets the next answer."""
        self.server.fail(500, headers={"retry-after-ms": "1"})
        self.server.fail(429, {"error": "slow"}, {"retry-after-ms": "1"})
        self.server.reply("at last")
        reply = self.client.chat("x", max_retries=2)
        self.assertEqual((reply.text, reply.meta.attempts), ("at last", 3))

    def test_any_endpoint(self):
        """A failure meets whatever comes next, a reply waits for a chat."""
        self.server.fail(403, {"error": "not you"})
        self.server.reply("for a chat")
        self.assertRaises(sc.PermissionDeniedError, self.client.models)
        self.assertTrue(self.client.models())
        self.assertEqual(self.client.chat("x").text, "for a chat")

    def test_bad_requests(self):
        """What the service could not read is a 400, what it does not have a 404."""
        path = "/openai/v1/chat/completions"
        for body in (b"{", b"[]", b"", b'{"messages": 3}', b'{"messages": [3]}', b"{}"):
            self.assertEqual(self.raw("POST", path, body)[0], 400, body)
        for method, other in (("GET", "/openai/v1/no"), ("GET", path), ("DELETE", "/models")):
            status, _, text = self.raw(method, other)
            self.assertEqual(status, 404)
            self.assertIsInstance(json.loads(text)["error"], str)

    def test_caller_that_goes_away(self):
        """A caller that leaves in mid-stream does the server no harm."""
        self.server.reply("many words " * 50, stream_delay=0.001)
        stream = self.client.stream_chat("x")
        next(stream)
        stream.close()
        self.assertEqual(self.client.chat("still there").text, "still there")


class Endpoints(Mocked):
    def test_other_paths(self):
        """Nothing but the service's paths is there, so that a wrong base URL shows."""
        for path in ("/chat/completions", "/v1/chat/completions", "/models"):
            self.assertEqual(self.raw("GET", path)[0], 404)

    def test_models(self):
        """The list has prices and no top-level object, and needs no key."""
        self.assertEqual(self.raw("GET", "/openai/v1/models")[0], 200)
        model = self.client.models()[0]
        self.assertEqual(model.id, self.client.model)
        self.assertEqual(str(model.pricing.completion), "0.00000219")
        self.assertEqual(set(self.client.request("GET", "models")), {"data"})

    def test_embeddings(self):
        """Vectors are the same for the same text, of the length that was asked for."""
        one = self.client.embeddings(["a", "b", "a"], model="hf:x", dimensions=300)
        self.assertEqual([len(item.embedding) for item in one.data], [300] * 3)
        self.assertEqual(one.data[0].embedding, one.data[2].embedding)
        self.assertNotEqual(one.data[0].embedding, one.data[1].embedding)
        other = self.client.embeddings("a", model="hf:x")
        self.assertEqual(other.data[0].embedding, one.data[0].embedding[:8])
        self.assertEqual(other.usage.prompt_tokens, 1)

    def test_quotas_and_search(self):
        """Quotas and search answer from the host's root."""
        self.assertFalse(self.client.quotas().rolling_five_hour_limit.limited)
        self.assertEqual(self.client.search("tides")[0].title, "tides")
        self.assertEqual([request.path for request in self.server.requests],
                         ["/v2/quotas", "/v2/search"])


class Server(Mocked):
    def test_requests(self):
        """Each request is logged: method, path, headers in any case, parsed body."""
        self.client.chat("x", extra_headers={"X-Team": "a"})
        self.client.quotas()
        first, second = self.server.requests
        self.assertEqual((first.method, first.path), ("POST", "/openai/v1/chat/completions"))
        self.assertEqual((first.headers["x-team"], first.headers.get("X-TEAM")), ("a", "a"))
        self.assertIn("Authorization", first.headers)
        self.assertEqual(first.json["messages"], [{"role": "user", "content": "x"}])
        self.assertEqual((second.method, second.json), ("GET", None))

    def test_connections_are_kept(self):
        """Two calls use one connection."""
        self.client.chat("a")
        self.client.stream_chat("b").completion()
        self.client.chat("c")
        self.assertEqual(len(self.server._connections), 1)

    def test_client(self):
        """The client has a key and a model; any setting may be given."""
        client = self.server.client(model="hf:mine/own", headers={"X-A": "1"})
        client.chat("x")
        request = self.server.requests[0]
        self.assertEqual((request.json["model"], request.headers["x-a"]), ("hf:mine/own", "1"))
        self.assertTrue(request.headers["authorization"].startswith("Bearer "))

    def test_end(self):
        """After the end nothing listens and nothing runs, whatever was left open."""
        before = threading.active_count()
        with MockServer() as server:
            server.reply("a b c", stream_delay=60)
            client = server.client(max_retries=0)
            stream = client.stream_chat("x")
            next(stream)
        self.assertEqual(threading.active_count(), before)
        self.assertRaises(sc.APIConnectionError, client.chat, "x")
        self.assertRaises(sc.StreamInterruptedError, stream.completion)
        with self.assertRaisesRegex(RuntimeError, "start"):
            print(server.base_url)
        server.close()


if __name__ == "__main__":
    unittest.main()
