# SPDX-License-Identifier: MIT
"""What the tests of this folder share: parts that nobody here wrote, found, started and ended.

    def setUpModule():
        parts.need(commands="squid htpasswd", modules="trustme")

    with parts.Program("squid", "-N", "-f", path, port=port): ...

A `Program` ends with its `with`, and dies with the process that started it, however that ends.
"""
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from .. import synthetic_client as sc
from ..server import Server, chunk, completion

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath),
                        "/usr/sbin", "/sbin"])
LLAMA_KEY = "llama-test-key"


def need(commands="", modules=""):
    """Skip the tests that call this where a part is missing; in CI that is a failure."""
    missing = [name for name in commands.split() if shutil.which(name, path=PATH) is None]
    missing += [name for name in modules.split() if importlib.util.find_spec(name) is None]
    if not missing:
        return
    message = "not installed: %s (.ci/run installs them)" % ", ".join(dict.fromkeys(missing))
    if os.environ.get("CI") == "true":
        raise AssertionError(message)
    raise unittest.SkipTest(message)


def free_port():
    """Return a port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def environment(**variables):
    """Set variables of the environment for a while; None unsets one."""
    before = dict(os.environ)
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def folder():
    """Make a folder that anyone may read, for a while."""
    path = tempfile.mkdtemp()
    try:
        os.chmod(path, 0o755)
        yield path
    finally:
        shutil.rmtree(path)


def write(*path_and_text):
    """Write a file, and return its path."""
    *path, text = path_and_text
    with open(os.path.join(*path), "w", encoding="utf-8") as file:
        file.write(text)
    return file.name


def start(test, running):
    """Enter a context until the test class ends, and return what it gives."""
    entered = running.__enter__()
    test.addClassCleanup(running.__exit__, None, None, None)
    return entered


class Program:
    """A command that serves on `port`, in a process of its own."""

    def __init__(self, *command, port=None, seconds=60, **options):
        self.command, self.port, self.seconds = command, port, seconds
        self.options = {"stdin": subprocess.DEVNULL, **options}

    def __enter__(self):
        self.output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self.command], stdout=self.output,
            stderr=subprocess.STDOUT, env={**os.environ, "PATH": PATH}, **self.options)
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self):
        """Return when the port is open."""
        ends = time.monotonic() + self.seconds
        while self.port is not None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            if self.process.poll() is not None or time.monotonic() > ends:
                raise AssertionError("%s did not start: %s" % (self.command[0], self.said()))
            time.sleep(0.02)

    def said(self):
        """Return the end of what the program has printed."""
        self.output.seek(0)
        return self.output.read()[-2000:].decode("utf-8", "replace")

    def __exit__(self, *exc_info):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()


class Llama:
    """llama.cpp's server with a small model (llama.py) in its own process, from `with` on."""

    def __init__(self, **options):
        settings = json.dumps({"api_keys": [LLAMA_KEY], **options})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.peers.llama", settings], cwd=ROOT,
            universal_newlines=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.port = options.get("port")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.kill()

    def wait(self):
        """Return when the model is loaded."""
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        return self

    def kill(self):
        self.process.kill()
        self.process.communicate()

    @property
    def base_url(self):
        return "http://127.0.0.1:%d/v1" % self.port

    def client(self, **options):
        settings = {"base_url": self.base_url, "model": "smollm2", "timeout": 60, "max_retries": 0}
        settings.update(options)
        return sc.SyntheticClient(settings.pop("api_key", LLAMA_KEY), **settings)


class Lockstep(Server):
    """An upstream that sends each piece of a stream only when `taken` says that the last came.

    So a stream that ends well was handed over piece by piece on all its way; `waits` is False
    where that is not asked for.
    """

    PIECES = 5

    def __init__(self, **options):
        super().__init__(self.respond, **options)
        self.taken, self.waits = threading.Event(), True

    def respond(self, conn):
        if not conn.json.get("stream"):
            return conn.send_json(completion("whole"))
        conn.start_sse()
        for number in range(self.PIECES):
            conn.event(chunk(str(number)))
            if self.waits and not conn.wait(self.taken):
                return conn.close()
            self.taken.clear()
        conn.event(chunk(finish_reason="stop"))
        conn.end_sse()

    def read(self, stream):
        """Return a stream's text, asking for each piece when the one before has come."""
        pieces = []
        for piece in stream.texts():
            pieces.append(piece)
            self.taken.set()
        return "".join(pieces)
