# SPDX-License-Identifier: MIT
"""`python3 -m tests.peers [MODULE ...]` runs these tests and writes what they found to RESULTS.md.

`--soak` and `--fuzz` are for the long forms of these two. A part that is missing fails, as in CI,
whose environment has all of them: `.ci/run` says how they are installed. mitmdump is on PATH;
DEBIAN_NEXT, where it is set, names the folder that `.ci/run` gives to Debian's next release.
"""
import argparse
import datetime
import importlib
import os
import platform
import sys
import unittest

from . import results

FOLDER = os.path.dirname(os.path.abspath(__file__))


def main():
    parser = argparse.ArgumentParser(prog="python3 -m tests.peers")
    parser.add_argument("module", nargs="*", help="such as test_nginx; else all of them")
    parser.add_argument("--soak", metavar="MINUTES", type=float, default=1.0)
    parser.add_argument("--fuzz", metavar="SECONDS", type=int, default=8, help="for each target")
    arguments = parser.parse_args()
    os.environ.update(
        CI="true", SOAK_MINUTES=str(arguments.soak), FUZZ_SECONDS=str(arguments.fuzz))
    names = arguments.module or sorted(
        name[:-3] for name in os.listdir(FOLDER) if name.startswith("test_"))
    modules = [importlib.import_module("tests.peers." + name) for name in names]
    suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromModule, modules))
    outcome = unittest.TextTestRunner(verbosity=2).run(suite)
    if not arguments.module:
        write(outcome.testsRun, len(outcome.failures) + len(outcome.errors))
    sys.exit(not outcome.wasSuccessful())


def write(count, failed):
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    head = (
        "# What was found with real parts\n\n"
        "Written by `python3 -m tests.peers` on %s: %d tests, %d failed, on Python %s, %s, "
        "%d cores.\n" % (today, count, failed, platform.python_version(),
                         platform.platform(terse=True), os.cpu_count()))
    with open(os.path.join(FOLDER, "RESULTS.md"), "w", encoding="utf-8") as file:
        file.write(head + "\n" + results.versions() + "\n" + results.markdown())


if __name__ == "__main__":
    main()
