# SPDX-License-Identifier: MIT
"""What there is beside chat: models, embeddings, quotas, search."""
import os
import unittest
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from unittest import mock

from . import synthetic_client as sc
from .server import KEY, Server, answer, completion

# As recorded in SYNTHETIC.md, section 2.
MODELS = {"data": [
    {"provider": "synthetic", "always_on": True, "id": "hf:zai-org/GLM-4.7",
     "hugging_face_id": "zai-org/GLM-4.7", "name": "zai-org/GLM-4.7",
     "input_modalities": ["text"], "output_modalities": ["text"], "context_length": 202752,
     "max_output_length": 65536,
     "pricing": {"prompt": "$0.00000055", "completion": "$0.00000219", "image": "0",
                 "request": "0", "input_cache_reads": "$0.00000055", "input_cache_writes": "0"},
     "created": 1766361600, "quantization": "fp8",
     "supported_sampling_parameters": ["temperature", "top_k"],
     "supported_features": ["tools", "json_mode", "structured_outputs", "reasoning"],
     "reasoning_parameters": {"efforts": ["none", "high"]},
     "openrouter": {"slug": "z-ai/glm-4.7"}, "datacenters": [{"country_code": "US"}]},
    {"provider": "fireworks", "id": "hf:meta-llama/Llama-3.3-70B-Instruct",
     "supported_features": None, "pricing": {"prompt": "$0.0000009"}},
]}
QUOTAS = {
    "subscription": {"limit": 500, "requests": 439.5, "renewsAt": "2026-08-19T20:18:11.436Z"},
    "search": {"hourly": {"limit": 250, "requests": 0, "renewsAt": "2026-08-19T16:18:11.437Z"}},
    "freeToolCalls": {"limit": 0, "requests": 0, "renewsAt": None},
    "weeklyTokenLimit": {
        "nextRegenAt": "2026-08-19T16:19:42.000Z", "percentRemaining": 99.98130416666666,
        "maxCredits": "$24.00", "remainingCredits": "$23.99", "nextRegenCredits": "$0.48"},
    "rollingFiveHourLimit": {"nextTickAt": "2026-08-19T15:27:19.000Z", "tickPercent": 0.05,
                             "remaining": 498.9, "max": 500, "limited": False},
}
EMBEDDINGS = {
    "object": "list", "model": "hf:nomic-ai/nomic-embed-text-v1.5",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0023064255, -0.009327292]}],
    "usage": {"prompt_tokens": 8, "total_tokens": 8}}
NOMIC = "hf:nomic-ai/nomic-embed-text-v1.5"
CALLS = {
    "models": lambda client, **options: client.models(**options),
    "embeddings": lambda client, **options: client.embeddings("a", model="m", **options),
    "quotas": lambda client, **options: client.quotas(**options),
    "search": lambda client, **options: client.search("a", **options),
}


class ServiceCase(unittest.TestCase):
    def ask(self, body, call, **settings):
        """Make one call that is answered with `body`; keep what was sent in self.request."""
        with Server([body]) as server:
            with server.client(**settings) as client:
                found = call(client)
            (self.request,) = server.requests
        return found


class Models(ServiceCase):
    def test_fields(self):
        """Each field is an attribute, prices are Decimal, the rest is in extra."""
        first, second = self.ask(MODELS, lambda client: client.models())
        self.assertEqual((self.request.method, self.request.path), ("GET", "/v1/models"))
        self.assertEqual(self.request.body, b"")
        self.assertIsInstance(first, sc.Model)
        self.assertEqual((first.id, first.always_on), ("hf:zai-org/GLM-4.7", True))
        self.assertEqual((first.context_length, first.max_output_length), (202752, 65536))
        self.assertEqual(first.pricing.prompt, Decimal("0.00000055"))
        self.assertEqual(first.pricing.image, Decimal(0))
        self.assertEqual(first.created, datetime(2025, 12, 22, tzinfo=timezone.utc))
        self.assertEqual(first.supported_features[3], "reasoning")
        self.assertEqual(first.reasoning_parameters["efforts"], ["none", "high"])
        self.assertEqual(first.extra["openrouter"], {"slug": "z-ai/glm-4.7"})
        self.assertIsNone(second.supported_features)
        self.assertIsNone(second.pricing.completion)
        self.assertIsNone(second.max_output_length)
        self.assertEqual([first.to_dict(), second.to_dict()], MODELS["data"])

    def test_needs_no_key(self):
        """The list needs no key, and takes one where there is one."""
        with mock.patch.dict(os.environ):
            os.environ.pop("SYNTHETIC_API_KEY", None)
            self.ask(MODELS, lambda client: client.models(), api_key=None)
            self.assertNotIn("authorization", self.request.headers)
        self.ask(MODELS, lambda client: client.models())
        self.assertEqual(self.request.headers["authorization"], "Bearer " + KEY)

    def test_empty(self):
        """An empty list is one; null entries are empty models."""
        self.assertEqual(self.ask({"data": []}, lambda client: client.models()), [])
        (model,) = self.ask({"object": "list", "data": [None]}, lambda client: client.models())
        self.assertIsNone(model.id)


class Embeddings(ServiceCase):
    def test_fields(self):
        """A text gives a vector; what is sent is the model and the text, and no more."""
        made = self.ask(EMBEDDINGS, lambda client: client.embeddings("The fox.", model=NOMIC))
        self.assertEqual((self.request.method, self.request.path), ("POST", "/v1/embeddings"))
        self.assertEqual(self.request.json, {"model": NOMIC, "input": "The fox."})
        self.assertIsInstance(made, sc.EmbeddingResponse)
        self.assertEqual(made.data[0].embedding, [0.0023064255, -0.009327292])
        self.assertEqual((made.data[0].index, made.model), (0, NOMIC))
        self.assertEqual(made.usage.prompt_tokens, 8)
        self.assertEqual(made["data"][0]["embedding"], made.data[0].embedding)
        self.assertEqual((made.meta.status, made.meta.attempts), (200, 1))
        self.assertEqual(made.to_dict(), EMBEDDINGS)

    def test_parameters(self):
        """Several texts, dimensions, LiteLLM's route and extra_body."""
        self.ask(EMBEDDINGS, lambda client: client.embeddings(
            ["a", "b"], model="synthetic/" + NOMIC, dimensions=64, extra_body={"user": None},
            extra_headers={"X-A": "1"}))
        self.assertEqual(self.request.json, {
            "model": NOMIC, "input": ["a", "b"], "dimensions": 64, "user": None})
        self.assertEqual(self.request.headers["x-a"], "1")

    def test_refused(self):
        """Wrong arguments are refused before anything is sent."""
        with Server() as server:
            client = server.client()
            for kind, name, arguments in (
                (TypeError, "input", dict(input=3, model="m")),
                (TypeError, "input", dict(input={"a": 1}, model="m")),
                (sc.ConfigurationError, "input", dict(input="", model="m")),
                (sc.ConfigurationError, "input", dict(input=[], model="m")),
                (sc.ConfigurationError, "model", dict(input="a", model="")),
                (TypeError, "dimensions", dict(input="a", model="m", dimension=3)),
                (TypeError, "dimensions", dict(input="a", model="m", dimensions="3")),
            ):
                with self.subTest(arguments), self.assertRaisesRegex(kind, name):
                    client.embeddings(**arguments)
            self.assertEqual(server.requests, [])


class Quotas(ServiceCase):
    def test_fields(self):
        """Meters have Python's names, aware times and Decimal money."""
        quotas = self.ask(QUOTAS, lambda client: client.quotas())
        self.assertEqual((self.request.method, self.request.path), ("GET", "/v2/quotas"))
        rolling, weekly = quotas.rolling_five_hour_limit, quotas.weekly_token_limit
        self.assertEqual(rolling.next_tick_at,
                         datetime(2026, 8, 19, 15, 27, 19, tzinfo=timezone.utc))
        self.assertEqual((rolling.remaining, rolling.max, rolling.tick_percent, rolling.limited),
                         (498.9, 500, 0.05, False))
        self.assertEqual((weekly.max_credits, weekly.remaining_credits, weekly.next_regen_credits),
                         (Decimal("24.00"), Decimal("23.99"), Decimal("0.48")))
        self.assertEqual(quotas.subscription.requests, 439.5)
        self.assertEqual(quotas.search.hourly.limit, 250)
        self.assertIsNone(quotas.free_tool_calls.renews_at)
        self.assertEqual(quotas.meta.attempts, 1)
        self.assertEqual(quotas.to_dict(), QUOTAS)

    def test_pay_as_you_go(self):
        """A key without a plan gets {}, and every meter is None."""
        quotas = self.ask({}, lambda client: client.quotas())
        self.assertIsNone(quotas.subscription)
        self.assertIsNone(quotas.rolling_five_hour_limit)
        self.assertEqual(quotas.to_dict(), {})

    def test_what_cannot_be_read(self):
        """What cannot be read is None in the attribute and unchanged in to_dict()."""
        odd = {"weeklyTokenLimit": {"maxCredits": "many", "nextRegenAt": "soon",
                                    "percentRemaining": "99"},
               "subscription": 3, "rollingFiveHourLimit": {"limited": "no"}, "newMeter": {"a": 1}}
        quotas = self.ask(odd, lambda client: client.quotas())
        weekly = quotas.weekly_token_limit
        self.assertEqual((weekly.max_credits, weekly.next_regen_at, weekly.percent_remaining,
                          quotas.subscription), (None,) * 4)
        self.assertIsNone(quotas.rolling_five_hour_limit.limited)
        self.assertEqual(quotas.extra, {"newMeter": {"a": 1}})
        self.assertEqual(quotas.to_dict(), odd)

    def test_used_up(self):
        """A 429 names the quota that is used up and when it renews, from the header."""
        renews = datetime.now(timezone.utc) + timedelta(hours=2, minutes=10, seconds=30)
        header = '{"weeklyTokenLimit": {"percentRemaining": 0, "nextRegenAt": "%s"}}' % (
            renews.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
        with Server([answer(429, {"error": "slow"}, {"x-synthetic-quotas": header})]) as server:
            with self.assertRaises(sc.RateLimitError) as caught:
                server.client(max_retries=5).chat("a")
            self.assertEqual(len(server.requests), 1)
        error = caught.exception
        self.assertIn("weekly token limit is used up", str(error))
        self.assertIn("2 h 11 min", str(error))
        self.assertAlmostEqual(error.retry_after, 7830, delta=5)
        self.assertEqual(error.quotas.weekly_token_limit.percent_remaining, 0)

    def test_on_an_answer(self):
        """The header's quotas are in .meta of an answer."""
        header = {"x-synthetic-quotas": '{"subscription": {"limit": 5}}'}
        reply = self.ask(answer(200, completion(), header), lambda client: client.chat("a"))
        self.assertEqual(reply.meta.quotas.subscription.limit, 5)


class Search(ServiceCase):
    def test_fields(self):
        """A result has text or highlights; control characters in the JSON do no harm."""
        body = (b'{"results": [{"url": "https://curl.se/", "title": "curl \xe2\x80\x94 docs", '
                b'"text": "a\x01\tb\nc", "published": "2025-11-05T00:00:00.000Z"}, '
                b'{"url": "https://a/", "highlights": ["x", "y"], "published": null}]}')
        first, second = self.ask(answer(200, body), lambda client: client.search("docs for curl"))
        self.assertEqual((self.request.method, self.request.path), ("POST", "/v2/search"))
        self.assertEqual(self.request.json, {"query": "docs for curl"})
        self.assertIsInstance(first, sc.SearchResult)
        self.assertEqual((first.url, first.title, first.text),
                         ("https://curl.se/", "curl \u2014 docs", "a\x01\tb\nc"))
        self.assertEqual(first.published, datetime(2025, 11, 5, tzinfo=timezone.utc))
        self.assertEqual((first.highlights, second.highlights), (None, ["x", "y"]))
        self.assertEqual((second.text, second.title, second.published), (None,) * 3)

    def test_refused(self):
        """A query that is no text, or says nothing, is refused."""
        with Server() as server:
            self.assertRaises(TypeError, server.client().search, 3)
            self.assertRaises(sc.ConfigurationError, server.client().search, " ")
            self.assertEqual(server.requests, [])


class AllOfThem(ServiceCase):
    def test_wrong_answers(self):
        """HTML, the wrong JSON type or nothing at all is a ResponseError, never an empty list."""
        for name, call in CALLS.items():
            bodies = [b"<html>", b"[]", b"3", b"null", b'"x"', b""]
            bodies += [] if name == "quotas" else [b"{}", b'{"data": {}, "results": 1}']
            for body in bodies:
                with self.subTest(name, body=body):
                    with Server([answer(200, body)]) as server:
                        with self.assertRaises(sc.ResponseError) as caught:
                            call(server.client())
                    self.assertEqual(caught.exception.attempts, 1)

    def test_errors(self):
        """They raise the same errors as chat, after the same retries."""
        for name, call in CALLS.items():
            with self.subTest(name):
                refusal = answer(503, {"error": "busy"}, {"retry-after-ms": "1"})
                with Server([refusal, refusal, answer(401, {"error": "no"})]) as server:
                    with self.assertRaises(sc.AuthenticationError) as caught:
                        call(server.client(), max_retries=2)
                    self.assertEqual(len(server.requests), 3)
                self.assertEqual((caught.exception.attempts, caught.exception.message), (3, "no"))

    def test_no_key(self):
        """Without a key, all but the models say so before anything is sent to Synthetic."""
        with mock.patch.dict(os.environ):
            os.environ.pop("SYNTHETIC_API_KEY", None)
            client = sc.SyntheticClient(proxy="http://127.0.0.1:9")
            for name in ("embeddings", "quotas", "search"):
                with self.subTest(name), self.assertRaisesRegex(
                        sc.ConfigurationError, "SYNTHETIC_API_KEY"):
                    CALLS[name](client)
            self.assertRaises(sc.APIConnectionError, client.models, max_retries=0)

    def test_options(self):
        """Each takes the options of a call, and no others."""
        for name, call in CALLS.items():
            with self.subTest(name), Server(lambda conn: conn.gone()) as server:
                with self.assertRaises(sc.APITimeoutError):
                    call(server.client(), timeout=0.03, extra_headers={"X-A": "1"})
                self.assertEqual(server.requests[0].headers["x-a"], "1")
                for wrong in ({"temperature": 1}, {"timeout": "soon"}, {"stream": True}):
                    self.assertRaises(TypeError, call, server.client(), **wrong)
                self.assertEqual(len(server.requests), 1)

    def test_closed(self):
        """A closed client answers none of them."""
        client = sc.SyntheticClient(KEY)
        client.close()
        for call in CALLS.values():
            self.assertRaises(RuntimeError, call, client)


if __name__ == "__main__":
    unittest.main()
