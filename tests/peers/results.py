# SPDX-License-Identifier: MIT
"""What the tests of this folder measure and compare, as tables for RESULTS.md."""
import re
import subprocess

from .parts import PATH

COMMANDS = [("squid", "-v"), ("tinyproxy", "-v"), ("nginx", "-v"), ("mitmdump", "--version")]
PACKAGES = ["llmock", "openai", "litellm", "xllamacpp", "hypothesis", "atheris", "trustme"]
tables = {}  # title -> (heads, rows), in the order of the tests


def note(title, heads, *rows):
    """Add rows to a table; each cell is a text or a number."""
    tables.setdefault(title, (heads, []))[1].extend(rows)


def markdown():
    """Return all tables."""
    lines = []
    for title, (heads, rows) in tables.items():
        lines += ["## " + title, "", row(heads), row("---" for _ in heads)]
        lines += [row(cells) for cells in rows] + [""]
    return "\n".join(lines)


def row(cells):
    """Return one line of a table."""
    texts = [" ".join(str(cell).split()).replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(texts) + " |"


def versions():
    """Return a sentence with the versions of the parts."""
    import importlib.metadata  # not in 3.7, which skips these tests

    found = []
    for command in COMMANDS:
        said = subprocess.run(command, env={"PATH": PATH}, stdout=subprocess.PIPE, check=True,
                              stderr=subprocess.STDOUT, universal_newlines=True).stdout
        found.append(command[0] + " " + re.search(r"[0-9]+(\.[0-9]+)+", said).group())
    found += [name + " " + importlib.metadata.version(name) for name in PACKAGES]
    return "With %s.\n" % ", ".join(found)
