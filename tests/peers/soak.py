# SPDX-License-Identifier: MIT
"""A soak: 16 threads ask a server that breaks what it can, for MINUTES, round after round.

    python3 -m tests.peers.soak MINUTES ORIGIN

ORIGIN is llmock's, which test_soak.py starts. After each round nobody asks and the round's client
is closed: then descriptors, threads and memory are counted. One JSON object is printed.

Two figures say how much memory there is. `in use` is what has been allocated and not freed: a
leak shows here. It wants PYTHONMALLOC=malloc, by which glibc (2.33 or newer) counts all of it, and
MALLOC_ARENA_MAX=1, by which it lies in one place. `resident` is what the system sees: free pieces
lie scattered, so in half an hour it grew by 5 MB, more and more slowly, while `in use` stayed as
it was; with Python's own allocator by 3 MB, all in the first 13 minutes.
"""
import collections
import ctypes
import gc
import json
import os
import random
import sys
import threading
import time

from .. import synthetic_client as sc

THREADS = 16
ECHO = "Hello! You said: "  # what llmock says before it repeats the question
WORDS = "one two three four five six seven eight nine ten eleven twelve".split()


class Soak:
    def __init__(self, origin):
        self.base_url = origin + "/v1"
        self.counts = collections.Counter()
        self.wrong = collections.deque(maxlen=5)  # the last ones

    def round(self, seconds):
        """Ask from all threads for so many seconds, over one client."""
        with sc.SyntheticClient("key", base_url=self.base_url, model="hf:test/model", timeout=2.0,
                                max_retries=1) as client:
            ends = time.monotonic() + seconds
            threads = [threading.Thread(target=self.work, args=(client, ends))
                       for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def work(self, client, ends):
        kinds = [self.chat] * 4 + [self.stream] * 4 + [
            self.leave, self.drop, self.cancel, self.hurry, self.models]
        while time.monotonic() < ends:
            ask = random.choice(kinds)
            prompt = " ".join(random.choices(WORDS, k=random.randint(3, 17)))  # it cuts at 120
            expected = ECHO + prompt
            try:
                ask(client, prompt, expected)
                outcome = "done"
            except sc.SyntheticError as error:
                outcome = type(error).__name__
                if error.partial is not None and not expected.startswith(error.partial.text):
                    self.wrong.append([prompt, error.partial.text])
            except Exception as error:
                outcome = "wrong"
                self.wrong.append([prompt, repr(error)])
            self.counts[ask.__name__, outcome] += 1

    def check(self, expected, text):
        if expected != text:
            self.wrong.append([expected, text])

    def chat(self, client, prompt, expected):
        self.check(expected, client.chat(prompt).text)

    def stream(self, client, prompt, expected):
        with client.stream_chat(prompt) as stream:
            self.check(expected, "".join(stream.texts()))

    def leave(self, client, prompt, expected):
        """Leave a stream in its middle."""
        with client.stream_chat(prompt) as stream:
            for number, _ in enumerate(stream.texts()):
                if number > 2:
                    break

    def drop(self, client, prompt, expected):
        """Drop a stream unread, or after its first piece."""
        stream = client.stream_chat(prompt)
        if random.random() < 0.5:
            next(stream, None)
        del stream

    def cancel(self, client, prompt, expected):
        """Close a stream from another thread while it is read."""
        stream = client.stream_chat(prompt)
        timer = threading.Timer(random.uniform(0, 0.02), stream.close)
        timer.start()
        try:
            text = "".join(stream.texts())
        finally:
            timer.join()
        if not expected.startswith(text):
            self.wrong.append([expected, text])

    def hurry(self, client, prompt, expected):
        """Ask with a deadline that is likely to pass."""
        self.check(expected, client.chat(prompt, deadline=random.uniform(0.001, 0.05)).text)

    def models(self, client, prompt, expected):
        if not client.models():
            self.wrong.append(["models", ""])


class Memory(ctypes.Structure):
    """What mallinfo2() returns: see its man page."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]


def sample():
    """Return the open descriptors, the threads, and the memory in MB."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Memory
    memory = mallinfo2()
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
            "in use": round((memory.uordblks + memory.hblkhd) / 2 ** 20, 2),
            "resident": round(pages * os.sysconf("SC_PAGE_SIZE") / 2 ** 20, 2)}


def main(minutes, origin):
    soak, samples = Soak(origin), []
    begun = time.monotonic()
    rounds = max(6, round(float(minutes)))
    for _ in range(rounds):
        soak.round(float(minutes) * 60 / rounds)
        samples.append(sample())
    counts = sorted([*names, number] for names, number in soak.counts.items())
    print(json.dumps({"seconds": round(time.monotonic() - begun), "samples": samples,
                      "counts": counts, "wrong": list(soak.wrong)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
