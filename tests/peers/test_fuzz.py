# SPDX-License-Identifier: MIT
"""fuzz.py for a short time on each of its targets; `FUZZ_SECONDS` makes it longer."""
import os
import re
import subprocess
import sys
import unittest

from . import parts, results

TARGETS = ("sse", "objects", "faults", "waits", "http", "streams")
SECONDS = int(os.environ.get("FUZZ_SECONDS", 8))  # for each


def setUpModule():
    parts.need(commands="setpriv", modules="atheris")


class Fuzz(unittest.TestCase):
    def test_targets(self):
        """Nothing that atheris thinks of breaks what reads a server's bytes."""
        for target in TARGETS:
            with self.subTest(target), parts.folder() as folder:
                self.run_target(target, folder)

    def run_target(self, target, folder):
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", sys.executable,
             os.path.join(parts.ROOT, "tests", "peers", "fuzz.py"), target,
             "-max_total_time=%d" % SECONDS, "-timeout=5"], env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS + 60)
        said = done.stdout.decode("utf-8", "replace")
        self.assertEqual(done.returncode, 0, said[-3000:])
        runs = int(re.search(r"Done ([0-9]+) runs", said).group(1))
        covered = int(re.findall(r"cov: ([0-9]+)", said)[-1])
        self.assertGreater(runs, 500)
        self.assertGreater(covered, 10)  # it is instrumented
        results.note("Fuzzing with atheris", ["target", "seconds", "inputs", "branches covered",
                                              "faults"], [target, SECONDS, runs, covered, 0])
