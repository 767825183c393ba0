# SPDX-License-Identifier: MIT
"""What an import costs on each CPython of the machine, as `-X importtime` has it.

PyPy has no such option. DEBIAN_NEXT names the folder in which .ci/run installs newer Pythons.
"""
import glob
import os
import re
import shutil
import subprocess
import unittest

from .. import synthetic_client as sc
from . import parts, results

HEADS = ["Python", "import synthetic_client", "of that our modules", "modules loaded by it",
         "import json, dataclasses, decimal, typing"]
DEBIAN_NEXT = os.environ.get("DEBIAN_NEXT", "")
# Starts a command in there, with the tree that is the working directory as its /tree.
NEWER = ["unshare", "--mount", "sh", "-c",
         'mount --bind . "$0/tree" && exec chroot "$0" env -C /tree "$@"', DEBIAN_NEXT]


def setUpModule():
    parts.need(modules="trustme")  # so it runs once, beside the others, not on each Python


def pythons():
    """Return the versions and the commands that start them, each version once."""
    home = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    paths = glob.glob(os.path.join(home, "versions", "3.*", "bin", "python3"))
    commands = [[path] for path in paths + [shutil.which("python3")] if path]
    if os.path.isdir(DEBIAN_NEXT):
        commands += [NEWER + ["python3.14"], NEWER + ["python3.15"]]
    found = {}
    for command in commands:
        said = subprocess.check_output([*command, "-c", (
            "import platform, sys\n"
            "print(platform.python_implementation(), '%d.%d' % sys.version_info[:2])")], text=True)
        name, _, version = said.strip().partition(" ")
        number = tuple(map(int, version.split(".")))
        if number >= (3, 7) and name == "CPython":
            found.setdefault(number, command)
    return sorted(found.items())


def import_times(command, code):
    """Return {module: its own microseconds}, the least of some runs."""
    least = {}
    for _ in range(5):
        done = subprocess.run([*command, "-I", "-S", "-X", "importtime", "-c", code],
                              cwd=parts.ROOT, stderr=subprocess.PIPE, check=True, text=True)
        for own, name in re.findall(r"import time: +([0-9]+) \| +[0-9]+ \| +(\S+)", done.stderr):
            least[name] = min(int(own), least.get(name, 10 ** 9))
    return least


class Imports(unittest.TestCase):
    def test_import(self):
        """Importing the package takes no more than twice what its modules of Python's take."""
        found = pythons()
        self.assertGreaterEqual(len(found), 3)
        for number, command in found:
            with self.subTest(number):
                nothing = import_times(command, "pass")
                code = "import sys; sys.path.insert(0, ''); import %s" % sc.__name__
                ours, theirs = ({name: own for name, own in times.items() if name not in nothing}
                                for times in (import_times(command, code), import_times(
                                    command, "import json, dataclasses, decimal, typing")))
                own = sum(time for name, time in ours.items() if name.startswith(sc.__name__))
                rest = sum(theirs.values())
                results.note("What an import costs", HEADS, [
                    "%d.%d" % number, "%.1f ms" % (sum(ours.values()) / 1000),
                    "%.1f ms" % (own / 1000), len(ours), "%.1f ms" % (rest / 1000)])
                self.assertLess(sum(ours.values()) - own, 2 * rest)
