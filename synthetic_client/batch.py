# SPDX-License-Identifier: MIT
"""Many requests: what `SyntheticClient.chat_many` does.

Strategy: a `Run` takes requests from an iterable, has an executor make one attempt at each, and
gives the results back. Elsewhere, be it a thread, a process or another machine, runs nothing but
`_ask`. All else happens in the caller's thread, while it waits for the
next result: so one place knows when to ask again, and one, `_Pace`, how many may be in flight.
"""

import heapq
import logging
import os
import queue
import threading
import time
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Dict, Generator, List, Mapping, Optional, Tuple

from .client import SyntheticClient
from .errors import ConfigurationError, RateLimitError, SyntheticError
from .request import ChatParams, check_params, check_type
from .retry import LONGEST_WAIT, wait_before_retry
from .schema import ChatCompletion, ChatResult
from .transport import IDLE_CONNECTIONS
from .wire import JSONObject

_log = logging.getLogger("synthetic_client")
_REFUSALS = 10  # 429s in a row, each with nothing else in flight, that end a run
_PAUSE = 0.5  # seconds after the first of them; twice as many after the second...
_ANSWERS = 32  # before one more than was refused is tried; doubled by each such try that fails
_MOST_ANSWERS = 256


def _ask(
    client: SyntheticClient, arguments: JSONObject, ticket: Tuple[bytes, int, int]
) -> Tuple[Optional[ChatCompletion], Optional[Exception]]:
    """Make one attempt; an error is returned, since some executors log what is raised.

    The ticket makes each call another one: Dask gives equal calls one result.
    """
    try:
        return client.chat(**arguments), None
    except Exception as error:
        return None, error


class _Threads(Executor):
    """As a ThreadPoolExecutor, but of daemon threads: none holds up the program's end."""

    is_shut = False  # by a 429: no call is begun until the run has seen it

    def __init__(self, most: int) -> None:
        self._calls: Any = queue.SimpleQueue()
        self._most, self._started = most, 0

    def submit(self, *call: Any, **_: Any) -> "Future[Any]":
        future: "Future[Any]" = Future()
        self._calls.put((future, *call))
        if self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, **_: Any) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        for future, function, *arguments in iter(self._calls.get, None):
            if self.is_shut:
                future.cancel()
            if future.set_running_or_notify_cancel():
                try:
                    outcome = function(*arguments)
                    self.is_shut = self.is_shut or isinstance(outcome[1], RateLimitError)
                    future.set_result(outcome)
                except BaseException as error:
                    future.set_exception(error)
        self._calls.put(None)  # for the next thread


class _Pace:
    """How many requests may be in flight: additive increase, multiplicative decrease.

    As in TCP (RFC 5681, section 3.1), a refusal halves the limit, which soon grows again to just
    below where it was refused. One more is a probe, and rare: see _ANSWERS.
    """

    def __init__(self, most: int) -> None:
        self.limit, self._most, self._refused_at = most, most, most + 1
        self.round = 0  # what was sent in an earlier one says nothing of the present limit
        self._answers, self._wanted = 0, _ANSWERS

    def answered(self) -> None:
        self._answers += 1
        is_probe = self.limit + 1 >= self._refused_at
        if self.limit < self._most and self._answers >= (self._wanted if is_probe else self.limit):
            self.limit, self._answers = self.limit + 1, 0

    def refused(self, sent_in: int) -> None:
        if sent_in == self.round:
            if self.limit >= self._refused_at:
                self._wanted = min(2 * self._wanted, _MOST_ANSWERS)
            self._refused_at, self.limit = self.limit, max(1, self.limit // 2)
            self.round, self._answers = self.round + 1, 0


class _Job:
    """A request that was taken: running, or waiting for its next attempt, or done."""

    attempts = failures = 0  # an attempt that was one too many at a time is no failure
    round = 0  # the pace's, at the last attempt
    max_retries = 0  # of failures

    def __init__(self, index: int, request: Any) -> None:
        self.result = ChatResult(index, request)


class Run:
    """The results for an iterable of requests, of which it takes more as it is read.

    Its arguments are those of `SyntheticClient.chat_many`. Where results need not be in order,
    each comes as soon as it is there.
    """

    ended: Optional[RateLimitError] = None  # why nothing is sent any more

    def __init__(
        self, client: SyntheticClient, requests: Any, model: Optional[str], workers: int,
        executor: Optional[Executor], params: Mapping[str, Any], in_order: bool = True
    ) -> None:
        if isinstance(requests, (str, bytes, Mapping)) or not hasattr(requests, "__iter__"):
            kind = type(requests).__name__
            raise TypeError(f"requests should be a list or an iterator of requests, not {kind}")
        if executor is not None and not hasattr(executor, "submit"):
            kind = type(executor).__name__
            raise TypeError(f"executor should be one as in concurrent.futures, not {kind}")
        check_type("model", model, (str, type(None)))
        check_type("workers", workers, (int,))
        check_params(params, ChatParams)
        if workers < 1:
            raise ConfigurationError("workers should be 1 or more")
        self._client, self._requests = client, iter(requests)
        self._defaults = {"model": model, "max_retries": None, **params}
        self._threads = _Threads(workers) if executor is None else None
        self._executor: Any = self._threads if executor is None else executor
        self._in_order, self._id = in_order, os.urandom(16)
        self._pace, self._workers = _Pace(workers), workers
        self._running: "Dict[Future[Any], _Job]" = {}
        self._waiting: List[Tuple[float, int, _Job]] = []  # a heap, by when they are due
        self._done: Dict[int, ChatResult] = {}
        self._outcomes: Any = queue.SimpleQueue()  # the futures that are done
        self._taken = self._handed_over = 0
        self._resume_at = 0.0  # nothing is sent before
        self._refusals = 0  # in a row, alone

    def __iter__(self) -> Generator[ChatResult, None, None]:
        self._keep_idle(max(IDLE_CONNECTIONS, self._workers))
        try:
            while True:
                for job in iter(self._next_job, None):
                    self._send(job)
                index = self._handed_over if self._in_order else next(iter(self._done), -1)
                if index in self._done:
                    self._handed_over += 1
                    yield self._done.pop(index)
                elif self._running or self._waiting:
                    self._collect()
                else:
                    return
        finally:  # nothing more is sent; what is in flight ends by itself
            for future in list(self._running):
                future.cancel()
            if self._threads:
                self._threads.shutdown()
            self._keep_idle(IDLE_CONNECTIONS)

    def _keep_idle(self, most: int) -> None:
        """Let the client keep so many connections: a thread's is idle between two calls."""
        if self._threads:
            with suppress(ConfigurationError):  # which each request meets for itself
                pool = self._client._transport()
                pool.idle_limit = most
                pool.close_idle(most)

    def _next_job(self) -> Optional[_Job]:
        """Return the job to send now, None where none may be; any, once the run has ended."""
        now = float("inf") if self.ended else time.monotonic()
        if now < self._resume_at or self._is_full() and not self.ended:
            return None
        if self._waiting and self._waiting[0][0] <= now:
            return heapq.heappop(self._waiting)[-1]
        if self._taken - self._handed_over < 2 * self._workers:
            for request in self._requests:
                self._taken += 1
                return _Job(self._taken - 1, request)
        return None

    def _is_full(self) -> bool:
        """Say whether no more may be sent; without a limit, threads have the next at hand."""
        is_free = self._threads and self._pace.limit == self._workers
        return len(self._running) >= (2 * self._workers if is_free else self._pace.limit)

    def _send(self, job: _Job) -> None:
        """Begin an attempt; where that cannot be, or may not be any more, the job is done."""
        if self.ended:
            return self._finish(job, self.ended)
        try:
            arguments, ticket = self._read(job), (self._id, job.result.index, job.attempts)
            future = self._executor.submit(_ask, self._client, arguments, ticket)
        except Exception as error:  # it is malformed, or the executor does not take it
            return self._finish(job, error)
        job.attempts, job.round = job.attempts + 1, self._pace.round
        self._running[future] = job
        future.add_done_callback(self._outcomes.put)

    def _read(self, job: _Job) -> JSONObject:
        """Return the arguments of `chat` that a request means, for one attempt."""
        request = job.result.request
        own = request if isinstance(request, Mapping) else {"messages": request}
        arguments: JSONObject = {**self._defaults, **own}
        retries = arguments["max_retries"]
        job.max_retries = self._client.max_retries if retries is None else retries
        check_type("max_retries", job.max_retries, (int,))
        return {**arguments, "max_retries": 0}

    def _collect(self) -> None:
        """Wait for an outcome, or until a job may be sent; take in all that have come."""
        seconds = None
        if self._waiting and not self._is_full():
            due = max(self._waiting[0][0], self._resume_at)
            seconds = max(0.0, due - time.monotonic())
        try:
            self._take_in(self._outcomes.get(timeout=seconds))
            while True:
                self._take_in(self._outcomes.get_nowait())
        except queue.Empty:
            pass

    def _take_in(self, future: "Future[Any]") -> None:
        job, wait, error = self._running.pop(future), None, None
        try:
            if future.cancelled():
                job.attempts, wait = job.attempts - 1, 0.0
            else:
                job.result.completion, error = future.result()
        except Exception as raised:  # by the executor
            error = raised
        if job.result.completion is not None:
            job.result.completion.meta.attempts = job.attempts
            self._refusals = 0
            self._pace.answered()
        elif isinstance(error, SyntheticError):
            error.attempts = job.attempts
            wait = self._wait(job, error)
        if wait is None:
            self._finish(job, error)
        else:
            if error is not None:
                _log.info("request %d again in %.2f s: %s", job.result.index, wait,
                          type(error).__name__)
            heapq.heappush(self._waiting, (time.monotonic() + wait, job.result.index, job))

    def _finish(self, job: _Job, error: Optional[Exception]) -> None:
        job.result.error = error
        self._done[job.result.index] = job.result

    def _wait(self, job: _Job, error: SyntheticError) -> Optional[float]:
        """Return the seconds before a job that failed may be sent again, None to give it up.

        After a 429, while others are in flight, the next of them to be done makes room for it.
        """
        if not isinstance(error, RateLimitError):
            job.failures += 1
            return wait_before_retry(error, job.failures, job.max_retries)
        self._pace.refused(job.round)
        if self._threads:
            for other in self._running:
                other.cancel()  # what has not begun waits here, where the new limit holds
            self._threads.is_shut = False
        seconds = error.retry_after or 0.0
        if all(other.cancelled() for other in self._running):
            self._refusals += 1
            seconds = max(seconds, _PAUSE * self._refusals)
        if seconds > LONGEST_WAIT or self._refusals >= _REFUSALS:
            self.ended = self.ended or error
        if self.ended or wait_before_retry(error, 1, 1) is None:
            return None
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)
        return seconds
