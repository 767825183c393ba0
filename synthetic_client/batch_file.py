# SPDX-License-Identifier: MIT
"""The batch command: a file of requests in, a file of results out, as OpenAI's Batch API has them.

Strategy: the requests are read twice, first to check each line and then, one by one, to be asked.
Results are appended as they come, each on disk before it is counted. So the file of results says
what is left to do, and a run that was killed is only run again. What changes that file otherwise,
to take out what failed before and to sort it in the end, is a copy that takes its place at once.
"""

import json
import os
import shutil
import sys
import time
from collections import Counter
from typing import (
    IO, Any, Counter as Counts, Dict, Iterable, Iterator, List, Optional, Set, Tuple
)

from .batch import Run
from .client import SyntheticClient
from .errors import APIStatusError, ConfigurationError, RateLimitError
from .request import CallOptions, ChatParams, check_params, check_type, parameters
from .schema import ChatResult
from .wire import JSONObject

_SECONDS = (15.0, 0.2)  # between two lines of progress, where stderr is no terminal and on one
_MOST = 20  # wrong lines, or reasons of failures, that are told


def answer_file(client: SyntheticClient, params: JSONObject, arguments: Any) -> int:
    """Ask for what a file of requests still lacks, and return the exit code."""
    path = os.path.realpath(arguments.output)
    names = _check(arguments.input)
    with _open(path):
        finished, failed = _read_results(path)
    left = [name for name in names if name not in finished]
    requests = _read_requests(arguments.input, set(left), params.get("extra_body"))
    run = Run(client, requests, None, arguments.workers, None, params, in_order=False)
    report = _Report(len(names), len(names) - len(left))
    ended: Optional[BaseException] = None
    _replace(path, finished.values())
    with _open(path) as file:
        try:
            for result in run:
                name, ended = left[result.index], run.ended
                if isinstance(result.error, ConfigurationError) and report.is_new:
                    raise result.error  # such as a missing key: it is not about one request
                if ended is None or not isinstance(result.error, RateLimitError):
                    _write(file, [_result_line(name, result)])
                    failed.pop(name, None)
                    report.count(result)
        except KeyboardInterrupt as error:
            ended = error
        finally:
            _write(file, failed.values())  # of an earlier run, and not asked again after all
    _sort(path, names)
    return report.finish(ended, arguments.json)


def _open(path: str) -> IO[bytes]:
    """Open results to be added to, by one run at a time where the system can see to that."""
    file = open(path, "ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigurationError(f"another run is writing {path}; wait for its end") from None
    except (ImportError, OSError):
        pass  # Windows; or a file system that knows no locks
    return file


def _write(file: IO[bytes], lines: Iterable[bytes]) -> None:
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())


def _lines(path: str) -> Iterator[Tuple[int, bytes]]:
    with open(path, "rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _check(path: str) -> List[str]:
    """Return the custom_ids of a file of requests, in order; refuse it if any line is wrong."""
    if not os.path.isfile(path):
        raise ConfigurationError(f"{path} is no file; it is read twice, so it cannot be a pipe")
    found: Dict[str, int] = {}
    wrong = []
    for number, line in _lines(path):
        try:
            name, _ = _read_request(line)
            if found.setdefault(name, number) != number:
                raise ValueError(f"custom_id {name!r} is that of line {found[name]} too")
        except (ValueError, TypeError, RecursionError) as error:
            wrong.append(f"\n{path}:{number}: {error}")
    if wrong:
        more = f"\nand {len(wrong) - _MOST} more" * (len(wrong) > _MOST)
        raise ConfigurationError(f"lines that are wrong: {len(wrong)}; nothing was sent"
                                 f"{''.join(wrong[:_MOST])}{more}")
    return list(found)


def _read_requests(
    path: str, wanted: Set[str], extra: Optional[JSONObject]
) -> Iterator[JSONObject]:
    for _, line in _lines(path):
        name, request = _read_request(line)
        if name in wanted:
            yield {**request, "extra_body": {**(extra or {}), **request["extra_body"]}}


def _read_request(line: bytes) -> Tuple[str, JSONObject]:
    """Return the custom_id of a line, and the arguments of `chat`; ValueError or TypeError."""
    try:
        data = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    check_type("the line", data, (dict,))
    for key, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if data.get(key) is None:
            raise ValueError(f"{key} is missing")
        check_type(key, data[key], (kind,))
    if not data["custom_id"]:
        raise ValueError("custom_id is empty")
    if data["method"] != "POST" or not data["url"].endswith("/chat/completions"):
        raise ValueError("what can be asked is POST /v1/chat/completions")
    body = dict(data["body"])
    if body.pop("stream", None):
        raise ValueError("body may not ask for a stream")
    messages, model = body.pop("messages", None), body.pop("model", None)
    check_type("messages", messages, (list,))
    check_type("model", model, (str, type(None)))
    roles = [item.get("role") if isinstance(item, dict) else None for item in messages]
    if not roles or not all(role and isinstance(role, str) for role in roles):
        raise ValueError("messages should be a list of objects, each with a role")
    known = parameters(ChatParams).keys() - parameters(CallOptions).keys()
    check_params({key: body[key] for key in known & body.keys()}, ChatParams)
    return data["custom_id"], {"messages": messages, "model": model, "extra_body": body}


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is none of its numbers")


def _read_results(path: str) -> Tuple[Dict[str, bytes], Dict[str, bytes]]:
    """Return the lines of what is finished and of what failed, by custom_id.

    A last line that was torn, by a kill or a full disk, is left out.
    """
    finished: Dict[str, bytes] = {}
    failed: Dict[str, bytes] = {}
    for number, line in _lines(path):
        try:
            data = json.loads(line.decode("utf-8"))
            name, response = data["custom_id"], data["response"] or {}
            check_type("custom_id", name, (str,))
            is_finished = data["error"] is None and response.get("status_code") == 200
            (finished if is_finished else failed)[name] = line.rstrip() + b"\n"
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            is_torn = isinstance(error, ValueError) and not line.endswith(b"\n")
            if not is_torn or number == 1 and not line.startswith(b"{"):
                raise ConfigurationError(
                    f"{path}:{number}: this is no result; name another file") from error
    return finished, {name: line for name, line in failed.items() if name not in finished}


def _sort(path: str, names: Iterable[str]) -> None:
    """Bring the results into the order of the requests, those of other requests behind them."""
    finished, failed = _read_results(path)
    found = {**finished, **failed}
    _replace(path, [found.pop(name) for name in names if name in found] + [*found.values()])


def _replace(path: str, lines: Iterable[bytes]) -> None:
    """Make these lines the file, at one moment, unless they are it already."""
    with open(path, "rb") as file:
        if file.readlines() == list(lines):
            return
    with open(path + ".tmp", "wb") as copy:
        shutil.copymode(path, copy.name)
        _write(copy, lines)
    os.replace(copy.name, path)


def _result_line(name: str, result: ChatResult) -> bytes:
    """Return a line of results; its error is null where all went well, and never otherwise."""
    answer, error, response, fault = result.completion, result.error, None, None
    if answer is not None:
        response = {"status_code": answer.meta.status, "request_id": answer.meta.request_id,
                    "body": answer.to_dict()}
    if isinstance(error, APIStatusError):
        response = {"status_code": error.status_code, "request_id": error.request_id,
                    "body": error.body}
    if error is not None:
        fault = {"code": type(error).__name__, "message": str(error)}
    line = {"id": f"batch_req_{os.urandom(12).hex()}", "custom_id": name,
            "response": response, "error": fault}
    return json.dumps(line).encode("ascii") + b"\n"


class _Report:
    """Counts results, and says how far they are: on a terminal in one line, else now and then."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before, self._done, self._failed = total, before, before, 0
        self._tokens: Counts[str] = Counter(prompt_tokens=0, completion_tokens=0)
        self._reasons: Counts[str] = Counter()
        self._begun = self._told = time.monotonic()
        self._width = sys.stderr.isatty() and shutil.get_terminal_size().columns - 1

    @property
    def is_new(self) -> bool:
        """Say whether nothing has been counted yet."""
        return self._done + self._failed == self._before

    def count(self, result: ChatResult) -> None:
        """Take note of a result that is on disk."""
        if result.completion is None:
            self._failed += 1
            self._reasons[f"{type(result.error).__name__}: {result.error}"] += 1
        else:
            self._done += 1
            for key in self._tokens:
                number = getattr(result.completion.usage, key, None)
                self._tokens[key] += number if isinstance(number, int) else 0
        if time.monotonic() - self._told > _SECONDS[bool(self._width)]:
            self._told = time.monotonic()
            line = self._line().ljust(self._width)
            sys.stderr.write(f"\r{line[:self._width]}" if self._width else f"{line}\n")
            sys.stderr.flush()

    def _line(self) -> str:
        asked, seconds = self._done + self._failed - self._before, time.monotonic() - self._begun
        rate, left = asked / max(seconds, 0.001), self._total - self._done - self._failed
        rest = f", {left / rate / 60:.1f} min left" if left and rate else f" in {seconds:.1f} s"
        return (f"{self._done} of {self._total} done, {self._failed} failed, {rate:.1f}/s, "
                f"{sum(self._tokens.values())} tokens{rest}")

    def finish(self, ended: Optional[BaseException], as_json: bool) -> int:
        """Print the summary; return the exit code."""
        reason = None if ended is None else str(ended) or "interrupted"
        if self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
        if as_json:
            print(json.dumps({
                "total": self._total, "done": self._done, "done_before": self._before,
                "failed": self._failed, "seconds": round(time.monotonic() - self._begun, 3),
                **self._tokens, "failures": dict(self._reasons), "ended": reason}, indent=2))
        else:
            print(self._line())
            for text, count in self._reasons.most_common(_MOST):
                print(f"{count} x {text}")
            if reason:
                print(f"ended early: {reason}")
        if isinstance(ended, KeyboardInterrupt):
            return 130
        return 0 if self._done == self._total else 1
