# SPDX-License-Identifier: MIT
"""What other clients make of the same requests: openai and litellm, in processes of their own.

`python3 -m tests.peers.others openai` reads one JSON object a line from its standard input, asks,
and prints what came of it, so that their imports and warnings stay out of the tests' process.
"""
import json
import os
import select
import subprocess
import sys
import time

from .parts import ROOT


PAUSE = 0.3  # seconds before a program asks again: llmock has noticed by then that it went


class Other:
    """One of the other clients, from `with` to its end."""

    def __init__(self, name, **variables):
        self.name, self.variables = name, {**os.environ, **variables}

    def __enter__(self):
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.peers.others",
             self.name], cwd=ROOT, env=self.variables, universal_newlines=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.communicate()

    def ask(self, seconds=60, **request):
        """Return {"text", "finish_reason", "usage", "calls"}, or {"error", "said"}.

        What takes longer than so many seconds is ended.
        """
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if select.select([self.process.stdout], [], [], seconds)[0]:
            return json.loads(self.process.stdout.readline())
        self.__exit__()
        self.__enter__()
        return {"error": "waits still"}


def read(answer, streamed):
    """Return what is compared of an answer of openai's shape, put together if it is a stream."""
    found = {"text": "", "finish_reason": None, "usage": None, "calls": []}
    for part in answer if streamed else [answer]:
        for choice in [choice for choice in part.choices if not choice.index]:
            piece = choice.delta if streamed else choice.message
            found["text"] += piece.content or ""
            found["finish_reason"] = choice.finish_reason or found["finish_reason"]
            found["calls"] += [[call.function.name, call.function.arguments]
                               for call in piece.tool_calls or ()]
        if getattr(part, "usage", None):
            found["usage"] = [part.usage.prompt_tokens, part.usage.completion_tokens]
    return found


def openai_way(base_url, key, timeout, **params):
    import openai

    with openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout) as client:
        return read(client.chat.completions.create(**params), params.get("stream", False))


def litellm_way(base_url, key, timeout, **params):
    import litellm

    answer = litellm.completion(api_base=base_url, api_key=key, timeout=timeout, **params)
    return read(answer, params.get("stream", False))


def serve(way, lines, out):
    """Answer each line; a program that asks once more where its client says that it failed."""
    for line in lines:
        request = json.loads(line)
        again = request.pop("again", False)
        while True:
            try:
                found = way(**request)
            except Exception as error:
                kinds = {kind.__name__ for kind in type(error).__mro__}
                found = {"error": type(error).__name__, "said": str(error)[:500],
                         "own": bool(kinds & {"OpenAIError", "APIError"})}
            if not (again and found.get("own")):
                break
            again = False
            time.sleep(PAUSE)
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    sys.stdout, real = sys.stderr, sys.stdout  # litellm prints
    serve({"openai": openai_way, "litellm": litellm_way}[sys.argv[1]], sys.stdin, real)
