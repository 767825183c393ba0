# SPDX-License-Identifier: MIT
"""The command line: python -m synthetic_client COMMAND.

Strategy: each command is a function from its arguments to an exit code, and imports what it alone
needs when it runs. Results go to stdout, all else to stderr. `main` makes one line and an exit
code of every error. The flags of a request come from the one list of its parameters.
"""

import argparse
import importlib
import io
import json
import os
import re
import sys
import types
from collections import abc
from datetime import datetime, timezone
from decimal import Decimal
from functools import partial
from typing import Any, List, Optional, Sequence, TextIO, Tuple

if __name__ == "__main__" and not __package__:  # the folder was run, or a zipapp made of it
    _package = sys.modules["synthetic_client"] = types.ModuleType("synthetic_client")
    _package.__path__ = [os.path.dirname(__file__)]
    _names = vars(importlib.import_module("synthetic_client.__init__"))
    vars(_package).update((name, _names[name]) for name in _names.keys() - vars(_package).keys())
    importlib.import_module("synthetic_client.__main__").main()

from .client import SyntheticClient
from .errors import ConfigurationError, SyntheticError
from .request import CallOptions, ChatParams, check_type, describe, parameters
from .schema import ChatCompletion, Pricing, RollingFiveHourLimit, WeeklyTokenLimit
from .stream import ChatStream
from .wire import JSONObject

_DONE, _FAILED, _WRONG, _INTERRUPTED = 0, 1, 2, 130
_MODEL = "syn:large:text"
_BAR = 16  # characters
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run one command, with `argv` or the program's own arguments, and raise SystemExit."""
    for stream in (sys.stdin, sys.stdout):
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
    except (SyntheticError, TypeError, OSError) as error:
        failed = isinstance(error, SyntheticError) and not isinstance(error, ConfigurationError)
        code = _complain(error, _FAILED if failed else _WRONG)
    raise SystemExit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Say in one line what is wrong; the usage alone would fill the screen."""
        self.exit(_WRONG, f"{self.prog}: {message}; see {self.prog} --help\n")


def _make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="synthetic-client", allow_abbrev=False,
                     epilog="The key is read from SYNTHETIC_API_KEY.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(run: Any, name: str, usage: str, does: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=does, description=does, allow_abbrev=False,
                                   usage=f"%(prog)s {usage}[OPTION]...")
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON, for programs")
        return made

    chat = add(_chat, "chat", "[PROMPT] ", "ask a model, or talk with it")
    chat.add_argument("prompt", nargs="?", help="the question; stdin is put behind it; with "
                      "neither, in a terminal, a conversation begins")
    chat.add_argument("--system", metavar="TEXT", help="the system message")
    chat.add_argument("--no-stream", action="store_true", help="print the answer when it is whole")
    chat.add_argument("--reasoning", action="store_true", help="show the reasoning, on stderr")
    _add_request(chat, ChatParams)
    _add_request(add(_models, "models", "", "list the models and their prices"), CallOptions)
    _add_request(add(_quotas, "quotas", "", "show what is left of your plan"), CallOptions)
    add(_demo, "demo", "", "show a chat, a stream and an error, with no key and no network")
    proxy = add(None, "proxy", "--config FILE ", "hold the key for others, as LiteLLM's proxy")
    if "proxy" in argv:  # which alone wants http.server; it says what runs, too
        importlib.import_module(".proxy", __package__).add_flags(proxy)
    return parser


def _add_request(parser: argparse.ArgumentParser, of: Any) -> None:
    """Add the flags of the client, and one for each parameter of the request."""
    parser.add_argument("--base-url", metavar="URL", help="else $SYNTHETIC_BASE_URL, or Synthetic")
    if of is ChatParams:
        model = os.environ.get("SYNTHETIC_MODEL") or _MODEL
        parser.add_argument("--model", metavar="ID", default=model, help=f"else {model}")
    for name, (kinds, meaning) in parameters(of).items():
        repeated = str in kinds and abc.Sequence in kinds
        parser.add_argument(
            "--" + name.replace("_", "-"), metavar=describe(kinds).split()[-1].upper(),
            type=partial(_read_value, name, kinds), action="append" if repeated else "store",
            help=meaning.replace("%", "%%") + "; may be repeated" * repeated)


def _read_value(name: str, kinds: Tuple[type, ...], text: str) -> Any:
    """Return a flag's text as what the parameter takes: a text as it is, else JSON."""
    if str in kinds and not (abc.Mapping in kinds and text.lstrip().startswith("{")):
        return text
    try:
        value = json.loads(text)
        check_type(name, value, kinds)
        return value
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"should be {describe(kinds)}, as JSON has it, not {text!r}") from None


def _request(arguments: argparse.Namespace, of: Any) -> Tuple[SyntheticClient, JSONObject]:
    """Return a client, and the parameters that were given."""
    client = SyntheticClient(
        base_url=arguments.base_url, model=getattr(arguments, "model", None))
    given = {name: getattr(arguments, name) for name in parameters(of)}
    return client, {name: value for name, value in given.items() if value is not None}


def _chat(arguments: argparse.Namespace) -> None:
    client, params = _request(arguments, ChatParams)
    messages: List[Any] = []
    if arguments.system:
        messages.append({"role": "system", "content": arguments.system})
    piped = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin
    if piped is None and sys.stdout.isatty() and not (arguments.prompt or arguments.json):
        return _converse(client, messages, params, arguments.reasoning)
    texts = [arguments.prompt or "", piped.read() if piped else ""]
    prompt = "\n\n".join(text for text in texts if text.strip())
    if not prompt:
        raise ConfigurationError("no prompt; give one as the argument or on stdin")
    messages.append({"role": "user", "content": prompt})
    if arguments.json:
        _print_json(client.chat(messages, **params).to_dict())
    elif arguments.no_stream or params.get("n", 1) > 1:
        reply = client.chat(messages, **params)
        for choice in reply.choices:
            if arguments.reasoning:
                _print_aside((choice.message.reasoning_content or "") + "\n")
            _print((choice.message.content or "") + "\n")
        _print_rest(reply)
    else:
        with client.stream_chat(messages, **params) as stream:
            _print_stream(stream, arguments.reasoning)


def _converse(
    client: SyntheticClient, messages: List[Any], params: JSONObject, with_reasoning: bool
) -> None:
    """Talk until Ctrl-D. Ctrl-C stops an answer; what had come of it stays in the history."""
    try:
        importlib.import_module("readline")  # gives input() arrow keys and a history
    except ImportError:
        pass  # as on Windows
    _print_aside(f"Talking with {client.model}: Ctrl-C stops an answer, Ctrl-D ends.\n")
    while True:
        stream, question = None, ""
        try:
            question = input("> ")
            if not question.strip():
                continue
            messages.append({"role": "user", "content": question})
            with client.stream_chat(messages, **params) as stream:
                _print_stream(stream, with_reasoning)
        except EOFError:
            return _print("\n")
        except KeyboardInterrupt:
            _print("" if stream and stream.partial.text else "\n")
        except SyntheticError as error:
            _complain(error, _FAILED)
        if stream and stream.partial.text:
            messages.append(stream.partial.choices[0].message)
        elif question:
            messages.pop()


def _print_stream(stream: ChatStream, with_reasoning: bool) -> None:
    """Print the first choice's text as it comes, its reasoning dimmed on stderr."""
    reasoning = text = ""
    try:
        for delta in (choice.delta for chunk in stream for choice in chunk.choices[:1]):
            if with_reasoning and delta.reasoning_content:
                reasoning = delta.reasoning_content
                _print_aside(reasoning)
            if delta.content:
                _print_aside("\n" if reasoning and not reasoning.endswith("\n") else "")
                reasoning, text = "", delta.content
                _print(text)
    finally:
        _print("\n" if text and not text.endswith("\n") else "")
    _print_rest(stream.completion())


def _print_rest(reply: ChatCompletion) -> None:
    """Print what is no text: the calls that the model asks for, and that it was cut short."""
    for choice in reply.choices:
        for call in choice.message.tool_calls:
            _print(f"{call.function.name}({call.function.arguments})\n")
        if choice.finish_reason == "length":
            _print_aside("The answer reached the limit of tokens (--max-tokens).\n")


def _models(arguments: argparse.Namespace) -> None:
    client, options = _request(arguments, CallOptions)
    models = client.models(**options)
    models.sort(key=lambda model: (not (model.id or "").startswith("syn:"), model.id or ""))
    if arguments.json:
        return _print_json([model.to_dict() for model in models])
    rows = [("MODEL", "CONTEXT", "$ IN", "$ OUT", "CAN")]
    for model in models:
        can, prices = model.supported_features, model.pricing or Pricing()
        rows.append((
            model.id or "?", str(model.context_length or "?"), _per_million(prices.prompt),
            _per_million(prices.completion),
            "?" if can is None else "".join(sorted(name[:1] for name in can))))
    width = min(max(len(row[0]) for row in rows), 50)
    for name, context, price_in, price_out, letters in rows:
        _print(f"{name:{width}} {context:>8} {price_in:>6} {price_out:>6}  {letters}\n")
    features = {name for model in models for name in model.supported_features or ()}
    _print("$: for a million tokens. CAN: the first letters of\n")
    _print(", ".join(sorted(features)) + ".\n")


def _per_million(price: Optional[Decimal]) -> str:
    return "?" if price is None else f"{price * 1000000:.2f}"


def _quotas(arguments: argparse.Namespace) -> None:
    client, options = _request(arguments, CallOptions)
    quotas = client.quotas(**options)
    if arguments.json:
        return _print_json(quotas.to_dict())
    rolling = quotas.rolling_five_hour_limit or RollingFiveHourLimit()
    weekly = quotas.weekly_token_limit or WeeklyTokenLimit()
    meters: List[Any] = [
        ("five-hour requests", rolling.remaining, rolling.max, rolling.next_tick_at),
        ("weekly credits, $", weekly.remaining_credits, weekly.max_credits, weekly.next_regen_at)]
    for name, meter in (("subscription", quotas.subscription),
                        ("hourly searches", quotas.search and quotas.search.hourly),
                        ("free tool calls", quotas.free_tool_calls)):
        if meter and meter.limit is not None:
            meters.append(
                (name, meter.limit - (meter.requests or 0), meter.limit, meter.renews_at))
    meters = [meter for meter in meters if None not in meter[1:3]]
    if not meters:
        _print("No quotas: this key has no subscription and pays as it goes.\n")
    for name, left, limit, then in meters:
        share = min(max(float(left / limit), 0.0), 1.0) if limit else 0.0
        filled = int(share * _BAR + 0.5)
        _print(f"{name:18} [")
        _print("#" * filled, colour="32" if share > 0.25 else "33")
        more = f", more {_until(then)}" if then and left < limit else ""
        _print(f"{'-' * (_BAR - filled)}] {left:g} of {limit:g} left{more}\n")


def _until(then: datetime) -> str:
    minutes = max(0, int((then - datetime.now(timezone.utc)).total_seconds()) // 60 + 1)
    parts = [(minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min")]
    return "in " + " ".join([f"{count} {unit}" for count, unit in parts if count][:2] or ["0 min"])


def _demo(arguments: argparse.Namespace) -> None:
    """Show the main uses, on a server within this program."""
    import contextlib

    from .testing import MockServer

    shown = contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout)
    with shown, MockServer() as server, server.client(model=_MODEL, max_retries=0) as client:
        server.reply("A ball of ice and dust on its way around the sun.")
        server.reply("Away from the sun, which blows it there.", stream_delay=0.1)
        server.fail(429, {"error": "Slow down."})
        _print(f"{server.base_url} plays the service: no key, no network.\n\n"
               '>>> client.chat("What is a comet?").text\n')
        _print(client.chat("What is a comet?").text + "\n\n"
               '>>> for text in client.stream_chat("Where does its tail point?").texts():\n'
               '...     print(text, end="", flush=True)\n')
        with client.stream_chat("Where does its tail point?") as stream:
            _print_stream(stream, with_reasoning=False)
        _print('\n>>> client.chat("And why?")\n')
        try:
            client.chat("And why?")
        except SyntheticError as error:
            _print(f"{type(error).__name__}: {error}\n\nWhat was sent, by POST {server.base_url}"
                   "/chat/completions:\n")
    sent = [request.json for request in server.requests]
    if arguments.json:
        return _print_json(sent)
    for body in sent:
        _print(f"  {json.dumps(body['messages'])[1:-1]}\n")


def _print(text: str, file: Optional[TextIO] = None, colour: str = "") -> None:
    """Print at once; nothing that a server sent may steer the terminal."""
    target: TextIO = file or sys.stdout
    if target.isatty():
        text = _CONTROLS.sub("", text)
        if colour and text and not os.environ.get("NO_COLOR"):
            text = f"\x1b[{colour}m{text}\x1b[0m"
    target.write(text)
    target.flush()


def _print_aside(text: str) -> None:
    _print(text, sys.stderr, colour="2")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _complain(error: Exception, code: int) -> int:
    _print(f"synthetic-client: {error}\n", sys.stderr)
    return code


if __name__ == "__main__":
    main()
