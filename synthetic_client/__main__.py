# SPDX-License-Identifier: MIT
"""The command line: python -m synthetic_client COMMAND.

Strategy: each command is a function, and imports what it alone needs when it runs. Results go to
stdout, all else to stderr. `main` makes one line and an exit code of every error. The flags of a
request come from the one list of its parameters.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import os
import sys
import textwrap
import types
from collections import abc
from datetime import datetime, timezone
from decimal import Decimal
from functools import partial
from typing import Any, Callable, Iterable, List, Optional, Sequence, TextIO, Tuple

if __name__ == "__main__" and not __package__:  # the folder was run, or a zipapp made of it
    _package: Any = types.ModuleType("synthetic_client")
    _package.__path__, sys.modules[_package.__name__] = [os.path.dirname(__file__)], _package
    _package.__version__ = importlib.import_module("synthetic_client.__init__").__version__
    importlib.import_module("synthetic_client.__main__").main()

from . import __version__
from .client import SyntheticClient
from .errors import ConfigurationError, SyntheticError
from .request import CallOptions, ChatParams, check_type, describe, parameters
from .retry import describe_wait
from .schema import Pricing, RollingFiveHourLimit, WeeklyTokenLimit
from .wire import JSONObject

_DONE, _FAILED, _WRONG, _INTERRUPTED = 0, 1, 2, 130
_MODEL = "syn:large:text"
_BAR = 16  # characters
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
_PLACEHOLDERS = {str: "TEXT", bool: "true|false", int: "INT", float: "NUMBER"}  # others: JSON


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run one command, with `argv` or the program's own arguments, and raise SystemExit."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name) or io.StringIO()  # None where it is closed
        setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        arguments = _make_parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        code = arguments.run(arguments) or _DONE
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough; nor may the flush at exit complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _DONE
    except KeyboardInterrupt:
        code = _INTERRUPTED
        _print("\n" if sys.stderr.isatty() else "", sys.stderr)  # the shell's prompt comes next
    except (SyntheticError, TypeError, OSError) as error:
        failed = isinstance(error, SyntheticError) and not isinstance(error, ConfigurationError)
        code = _FAILED if failed else _WRONG
        _print(f"synthetic-client: {error}\n", sys.stderr)
    raise SystemExit(code)


def _program() -> str:
    """Return how this was started, for the usage."""
    name = os.path.basename(sys.argv[0])
    if name == "__main__.py":
        return f"python3 -m {__package__}"
    return f"python3 {name}" if name.endswith(".pyz") else "synthetic-client"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Say in one line what is wrong; the usage alone would fill the screen."""
        self.exit(_WRONG, f"{self.prog}: {message}; see {self.prog} --help\n")


def _make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog=_program(), description="Talk with the models of https://synthetic.new.",
                     epilog="The key is read from SYNTHETIC_API_KEY.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, operands: str, does: str, run: Any = None) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=does, description=does, allow_abbrev=False,
                                   usage=f"%(prog)s {operands}[OPTION]...")
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON, for programs")
        return made

    chat = add("chat", "[PROMPT] ", "ask a model, or talk with it")
    chat.add_argument("prompt", nargs="?", help="the question; stdin is put behind it; with "
                      "neither, in a terminal, a conversation begins")
    chat.add_argument("--system", metavar="TEXT", help="the system message")
    chat.add_argument("--no-stream", action="store_true", help="print the answer when it is whole")
    chat.add_argument("--reasoning", action="store_true", help="show the reasoning, on stderr")
    batch = add("batch", "IN.jsonl OUT.jsonl ", "answer a file of requests; again, go on with it")
    batch.add_argument("input", metavar="IN.jsonl", help="requests, as for OpenAI's Batch API")
    batch.add_argument("output", metavar="OUT.jsonl", help="results; those finished are kept")
    batch.add_argument("--workers", metavar="N", type=int, default=4, help="at a time; else 4")
    for parser_of, run in ((chat, _chat), (batch, _batch)):
        parser_of.add_argument("--model", metavar="ID", help="else %(default)s",
                               default=os.environ.get("SYNTHETIC_MODEL") or _MODEL)
        _add_request(parser_of, run, ChatParams)
    _add_request(add("models", "", "list the models and their prices"), _models, CallOptions)
    _add_request(add("quotas", "", "show what is left of your plan"), _quotas, CallOptions)
    add("demo", "", "show a chat, a stream and an error, with no key and no network", _demo)
    proxy = add("proxy", "--config FILE ", "hold the key for others, as LiteLLM's proxy")
    if "proxy" in argv:  # which alone wants http.server; it says what runs, too
        importlib.import_module(".proxy", __package__).add_flags(proxy)
    return parser


def _add_request(parser: argparse.ArgumentParser, run: Any, of: Any) -> None:
    """Add a flag for each parameter; `run` gets a client, and the parameters that were given."""
    def call(arguments: argparse.Namespace) -> Any:
        given = vars(arguments)
        client = SyntheticClient(base_url=given["base_url"], model=given.get("model"))
        params = {name: given[name] for name in parameters(of) if name in given}
        return run(client, params, arguments)

    parser.set_defaults(run=call)
    parser.add_argument("--base-url", metavar="URL", help="else $SYNTHETIC_BASE_URL, or Synthetic")
    for name, (kinds, meaning) in parameters(of).items():
        repeated = str in kinds and abc.Sequence in kinds
        parser.add_argument(
            "--" + name.replace("_", "-"), type=partial(_read_value, name, kinds),
            metavar=next((_PLACEHOLDERS[kind] for kind in _PLACEHOLDERS if kind in kinds), "JSON"),
            action="append" if repeated else "store", default=argparse.SUPPRESS,
            help=meaning.replace("%", "%%") + "; may be repeated" * repeated)


def _read_value(name: str, kinds: Tuple[type, ...], text: str) -> Any:
    """Return a flag's text as what the parameter takes: a text as it is, else JSON."""
    if str in kinds and not (abc.Mapping in kinds and text.lstrip().startswith("{")):
        return text
    try:
        value = json.loads(text)
        check_type(name, value, kinds)
        return value
    except (TypeError, ValueError, RecursionError):
        raise argparse.ArgumentTypeError(
            f"should be {describe(kinds)}, as JSON has it, not {text[:60]!r}") from None


def _chat(client: SyntheticClient, params: JSONObject, arguments: argparse.Namespace) -> None:
    system = [{"role": "system", "content": arguments.system}]
    messages: List[Any] = system if arguments.system else []
    answer = partial(_answer, client, params, arguments)
    if sys.stdin.isatty() and sys.stdout.isatty() and not (arguments.prompt or arguments.json):
        _print_aside(f"Talking with {client.model}: Ctrl-C stops an answer, Ctrl-D ends.\n")
        return _converse(answer, messages)
    texts = [arguments.prompt or "", "" if sys.stdin.isatty() else sys.stdin.read()]
    prompt = "\n\n".join(text for text in texts if text.strip())
    if not prompt:
        raise ConfigurationError("no prompt; give one as the argument or on stdin")
    messages.append({"role": "user", "content": prompt})
    if arguments.json:
        return _print_json(client.chat(messages, **params).to_dict())
    answer(messages)


def _converse(answer: Callable[[List[Any]], None], messages: List[Any]) -> None:
    """Talk until Ctrl-D. Ctrl-C stops an answer; what had come of it stays in the history."""
    with contextlib.suppress(ImportError):  # as on Windows
        readline = importlib.import_module("readline")  # gives input() arrow keys and a history
        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one question
    while True:
        try:
            question = input("> ")
            if question.strip():
                messages.append({"role": "user", "content": question})
                answer(messages)
        except EOFError:
            return _print("\n")
        except KeyboardInterrupt:
            _print("\n")
        except ConfigurationError:
            raise
        except SyntheticError as error:
            _print(f"synthetic-client: {error}\n", sys.stderr)
        if messages and messages[-1]["role"] == "user":  # nothing came: as if never asked
            messages.pop()


def _answer(client: SyntheticClient, params: JSONObject, arguments: argparse.Namespace,
            messages: List[Any]) -> None:
    """Print the answer to the messages, and add it to them as far as it has come."""
    whole = arguments.no_stream or params.get("n", 1) > 1
    answer: Any = (client.chat if whole else client.stream_chat)(messages, **params)
    try:
        for pieces in ([[choice.message] for choice in answer.choices] if whole else
                       [(choice.delta for chunk in answer for choice in chunk.choices[:1])]):
            _print_pieces(pieces, arguments.reasoning)
    finally:
        reply = answer if whole else answer.partial
        messages += [choice.message for choice in reply.choices[:1] if choice.message.content]
    for choice in reply.choices:
        for call in choice.message.tool_calls:
            _print(f"{call.function.name}({call.function.arguments})\n")
        if choice.finish_reason == "length":
            _print_aside("The answer reached the limit of tokens (--max-tokens).\n")


def _print_pieces(pieces: Iterable[Any], with_reasoning: bool) -> None:
    """Print a message, or its deltas as they come; reasoning and text have their own lines."""
    texts = ((put, text) for piece in pieces
             for put, text in ((_print_aside, piece.reasoning_content if with_reasoning else ""),
                               (_print, piece.content)) if text)
    text = ""
    for put, same in itertools.groupby(texts, lambda pair: pair[0]):
        try:
            for _, text in same:
                put(text)
        finally:
            put("" if text.endswith("\n") else "\n")


def _models(client: SyntheticClient, options: JSONObject, arguments: argparse.Namespace) -> None:
    models = client.models(**options)
    models.sort(key=lambda model: (not (model.id or "").startswith("syn:"), model.id or ""))
    if arguments.json:
        return _print_json([model.to_dict() for model in models])
    abilities = [{*(model.supported_features or ()), *(model.input_modalities or ())} - {"text"}
                 for model in models]
    known = sorted(set().union(*abilities))
    width = max([len(model.id or "?") for model in models] + [5])
    row = f"{{:{width}}} {{:>7}} {{:>5}} {{:>5}}  {{}}\n"
    _print(row.format("MODEL", "CONTEXT", "$ IN", "$ OUT", "CAN"))
    for model, able in zip(models, abilities):
        pricing = model.pricing or Pricing()
        prices = ["?" if price is None else f"{price * 1000000:.2f}"
                  for price in (pricing.prompt, pricing.completion)]
        can = "".join(name[:1] if name in able else "-" for name in known)
        _print(row.format(model.id or "?", model.context_length or "?", *prices,
                          "?" if model.supported_features is None else can))
    said = f"CAN, in this order:\n{', '.join(known)}\n" if known else "\n"
    _print(f"\n$: for a million tokens. {said}", sys.stderr)


def _quotas(client: SyntheticClient, options: JSONObject, arguments: argparse.Namespace) -> None:
    quotas = client.quotas(**options)
    if arguments.json:
        return _print_json(quotas.to_dict())
    rolling = quotas.rolling_five_hour_limit or RollingFiveHourLimit()
    weekly = quotas.weekly_token_limit or WeeklyTokenLimit()
    counts = [("subscription", quotas.subscription), ("free tool calls", quotas.free_tool_calls),
              ("hourly searches", quotas.search and quotas.search.hourly)]
    meters: List[Any] = [
        ("five-hour requests", rolling.remaining, rolling.max, rolling.next_tick_at),
        ("weekly credits", weekly.remaining_credits, weekly.max_credits, weekly.next_regen_at),
        *((name, (meter.limit or 0) - (meter.requests or 0), meter.limit, meter.renews_at)
          for name, meter in counts if meter)]
    meters = [meter for meter in meters if None not in meter[1:3]]
    if not meters:
        _print("No quotas: this key has no subscription and pays as it goes.\n")
    for name, left, limit, then in meters:
        share = float(left / limit) if limit else 0.0
        sign = "$" if isinstance(limit, Decimal) else ""
        _print(f"{name:18} [")
        bar = "#" * round(share * _BAR) + "-" * _BAR
        _print(bar[:_BAR], colour="32" if share > 0.25 else "33")
        said = f"{sign}{left:.10g} of {sign}{limit:.10g} left"
        seconds = (then - datetime.now(timezone.utc)).total_seconds() if then else 0
        _print(f"] {said:20} renews in {describe_wait(seconds)}\n" if then else f"] {said}\n")


def _batch(client: SyntheticClient, params: JSONObject, arguments: argparse.Namespace) -> int:
    from .batch_file import answer_file

    return answer_file(client, params, arguments)


def _demo(arguments: argparse.Namespace) -> None:
    """Show the main uses, on a server within this program."""
    from .testing import MockServer

    shown = contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout)
    with shown, MockServer() as server, server.client(model=_MODEL, max_retries=0) as client:
        server.reply("A ball of ice and dust on its way around the sun.")
        server.reply("It points away from the sun.", stream_delay=0.05)
        server.fail(429, {"error": "Slow down."})
        _print(f"{server.base_url} plays the service: no key, no network.\n")
        for method, question in (("chat", "What is a comet?"), ("stream_chat", "And its tail?"),
                                 ("chat", "And its colour?")):
            _print(f'\n>>> client.{method}("{question}")\n')
            try:
                answer = getattr(client, method)(question)
                texts = [answer.text] if method == "chat" else answer.texts()
            except SyntheticError as error:
                texts = [f"{type(error).__name__}: {error}"]
            request = server.requests[-1]
            sent = f"{request.method} {request.path} {json.dumps(request.json)}"
            _print(textwrap.fill(sent, 79, subsequent_indent="  ") + "\n", colour="2")
            for text in itertools.chain(texts, ["\n"]):
                _print(text)
    if arguments.json:
        _print_json([request.json for request in server.requests])


def _print(text: str, file: Optional[TextIO] = None, colour: str = "") -> None:
    """Print at once; nothing that a server sent may steer the terminal."""
    target: TextIO = file or sys.stdout
    if target.isatty():
        text = text.translate(_CONTROLS)
        if colour and text and not os.environ.get("NO_COLOR"):
            text = f"\x1b[{colour}m{text}\x1b[0m"
    print(text, end="", file=target, flush=True)


def _print_aside(text: str) -> None:
    _print(text, sys.stderr, colour="2")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
