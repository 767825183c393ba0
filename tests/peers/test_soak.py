# SPDX-License-Identifier: MIT
"""The soak of soak.py before llmock: one minute, or as many as `SOAK_MINUTES` says."""
import collections
import json
import os
import subprocess
import sys
import unittest

from . import parts, results

MINUTES = float(os.environ.get("SOAK_MINUTES", 1))
FAULTS = ("--error-rate", "429=0.03", "--error-rate", "500=0.03", "--error-rate", "400=0.02",
          "--stream-fault", "disconnect=0.05", "--stream-fault", "truncate=0.05",
          "--stream-fault", "malformed=0.05", "--stream-fault", "stall=0.01",
          "--stream-stall-seconds", "3")
STEADY = ("descriptors", "threads")


def setUpModule():
    parts.need(commands="setpriv llmock", modules="llmock")


class Soak(unittest.TestCase):
    def test_soak(self):
        """Sixteen threads and every fault: all answers right, and nothing left behind."""
        port = parts.free_port()
        with parts.Program(
                "llmock", "serve", "-h", "127.0.0.1", "-p", str(port), "--log-level", "warning",
                "--response-style", "echo", "--stream-chunk-delay-ms", "1", *FAULTS, port=port):
            done = subprocess.run(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-W", "error", "-m",
                 "tests.peers.soak", str(MINUTES), "http://127.0.0.1:%d" % port], cwd=parts.ROOT,
                env=dict(os.environ, PYTHONMALLOC="malloc", MALLOC_ARENA_MAX="1"),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=MINUTES * 60 + 90)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        found = json.loads(done.stdout.decode())
        self.note(found)
        self.assertEqual(found["wrong"], [])
        first, last = found["samples"][0], found["samples"][-1]
        for name in STEADY:
            self.assertLessEqual(last[name], first[name], found["samples"])
        self.assertLess(last["in use"], first["in use"] + 1, found["samples"])
        self.assertLess(last["resident"], first["resident"] + 10, found["samples"])
        outcomes = {(ask, outcome) for ask, outcome, _ in found["counts"]}
        for fault in ("StreamInterruptedError", "ResponseError", "BadRequestError", "done"):
            self.assertIn(("stream", fault), outcomes)
        self.assertIn(("hurry", "APITimeoutError"), outcomes)

    def note(self, found):
        heads = ["", "descriptors", "threads", "MB in use", "MB resident"]
        for name, sample in (("after the first round", found["samples"][0]),
                             ("at the end", found["samples"][-1])):
            results.note("A soak: 16 threads for %d s" % found["seconds"], heads,
                         [name, *sample.values()])
        counts = collections.defaultdict(list)
        for ask, outcome, number in found["counts"]:
            counts[ask].append("%s %d" % (outcome, number))
        results.note("What became of the soak's calls", ["call", "outcomes"],
                     *([ask, ", ".join(outcomes)] for ask, outcomes in counts.items()),
                     ["wrong answers", len(found["wrong"])])
