# SPDX-License-Identifier: MIT
"""The figures of a fresh interpreter: import, one whole script, its peak memory, many requests'.

It runs without `site`, so that nothing a machine's .pth files import is there for free.
"""
import os
import site
import subprocess
import sys
from time import perf_counter

IMPORTS = {"floor": "urllib.request, ssl, json, dataclasses", "ours": "synthetic_client",
           "openai": "openai", "litellm": "litellm"}
TIMED = "import time; start = time.perf_counter(); import %s; print(time.perf_counter() - start)"
SCRIPTS = {"floor": """
import json
import urllib.request
body = {"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}
headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
request = urllib.request.Request("URL/chat/completions", json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as response:
    print(json.load(response)["choices"][0]["message"]["content"])
""", "ours": """
from synthetic_client import SyntheticClient
client = SyntheticClient("key", base_url="URL", model="MODEL")
print(client.chat("Hello").choices[0].message.content)
""", "openai": """
from openai import OpenAI
client = OpenAI(api_key="key", base_url="URL")
reply = client.chat.completions.create(
    model="MODEL", messages=[{"role": "user", "content": "Hello"}])
print(reply.choices[0].message.content)
""", "litellm": """
from litellm import completion
reply = completion("MODEL", [{"role": "user", "content": "Hello"}], api_key="key", api_base="URL")
print(reply.choices[0].message.content)
"""}
# The high-water mark of the process alone: ru_maxrss also knows the parent's, from before exec.
PEAK = "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
MANY = """
from synthetic_client import SyntheticClient
client = SyntheticClient("key", base_url="URL", model="MODEL")
def ask(count):
    for result in client.chat_many(map(str, range(count)), workers=8):
        assert result.completion.text == "Paris."
ask(FEW)
""" + PEAK + "ask(MOST - FEW)" + PEAK
FEW, MOST = 1000, 100000    # the requests between which the peak is compared


def python(code):
    """Run `code` in a fresh interpreter; return the last line it printed."""
    return lines(code)[-1]


def lines(code):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(site.getsitepackages()))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)    # compiling is no part of an import
    return subprocess.check_output(
        [sys.executable, "-S", "-c", code], env=environment, stderr=subprocess.DEVNULL,
        universal_newlines=True).splitlines()


def run_import(name, script):
    return float(python(TIMED % IMPORTS[name]))


def run_script(name, script):
    start = perf_counter()
    text = python(script)
    seconds = perf_counter() - start
    assert text == "Paris."
    return seconds


def run_memory(name, script):
    return 1024 * float(python(script + PEAK))


def run_flat(name, script):
    """Return the bytes by which a request makes the peak of a script of many grow."""
    early, late = map(float, lines(script.replace("FEW", str(FEW)).replace("MOST", str(MOST))))
    return 1024 * (late - early) / (MOST - FEW)


RUNS = {"import": run_import, "script": run_script, "memory": run_memory, "flat": run_flat}


def run(figure, name, url, model):
    """Return one measurement of a subject: seconds, or bytes for `memory` and `flat`."""
    script = MANY if figure == "flat" else SCRIPTS[name]
    return RUNS[figure](name, script.replace("URL", url).replace("MODEL", model))
