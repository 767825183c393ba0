# SPDX-License-Identifier: MIT
"""How long to wait, and whether to ask again: no I/O.

Strategy: a `Clock` bounds each wait of one call. The client hands each failure to
`wait_before_retry`, a pure function, and sleeps for what it returns, or raises the failure where
it returns None. What a server asked for (`parse_retry_after`, a quota's renewal from
`used_up_quota`) stands in the error's `retry_after` by then.
"""

import re
import time
from datetime import datetime, timezone
from typing import Any, Callable, Mapping, Optional, Tuple

from .errors import APIConnectionError, APIStatusError, APITimeoutError, SyntheticError

LONGEST_WAIT = 60.0  # seconds; asked to wait longer, the caller decides, not we
_LATE = {
    "connect": "no connection within {:g} s; check base_url and proxy, or raise connect_timeout",
    "silence": "the server was silent for {:g} s; raise timeout if answers may take longer",
    "deadline": "the call was not done within {:g} s; raise deadline or ask for less",
}


class Clock:
    """What bounds the waits of one call: connecting, silence, and the deadline for it all."""

    def __init__(self, timeout: float, connect_timeout: float, deadline: Optional[float]) -> None:
        self._limits = {"connect": connect_timeout, "silence": timeout, "deadline": deadline or 0}
        self._phase = "silence"
        self._ends = float("inf") if deadline is None else time.monotonic() + deadline
        self.connect_ends: Optional[float] = None
        self.cut: Callable[[], Any] = bool  # ends the exchange that waits now

    def start_connecting(self) -> None:
        """Let connect_timeout bound what follows, until connect_ends is None again."""
        self.connect_ends = time.monotonic() + self._limits["connect"]

    def stop(self) -> None:
        """End the call at once, from any thread."""
        self._ends = -float("inf")  # first: no wait may begin after the cut
        self.cut()

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self._ends - time.monotonic()

    def wait(self) -> float:
        """Return the seconds that the next wait may take; a TimeoutError where there are none."""
        now = time.monotonic()
        bound = (self._limits["silence"], "silence")
        if self.connect_ends is not None:
            bound = (self.connect_ends - now, "connect")
        seconds, self._phase = min(bound, (self._ends - now, "deadline"))
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def expired(self) -> APITimeoutError:
        """Return the error for the wait that was allowed last."""
        line = _LATE[self._phase].format(self._limits[self._phase])
        return APITimeoutError(line, phase=self._phase, retryable=self._phase == "connect")


def wait_before_retry(error: SyntheticError, attempt: int, max_retries: int) -> Optional[float]:
    """Return the seconds to wait after attempt number `attempt`, or None to give up."""
    if attempt > max_retries:
        return None
    if isinstance(error, APIConnectionError):
        return backoff(attempt) if error.retryable else None
    if not isinstance(error, APIStatusError):
        return None
    may_pass = error.status_code in (408, 409, 429) or error.status_code >= 500
    if "insufficient_quota" in (error.code, error.type):
        may_pass = False
    word = error.headers.get("x-should-retry")
    if word in ("true", "false"):
        may_pass = word == "true"
    wait = backoff(attempt) if error.retry_after is None else error.retry_after
    return wait if may_pass and wait <= LONGEST_WAIT else None


def backoff(attempt: int) -> float:
    """Return 0.5 s doubling to 8 s, less up to a quarter so that clients spread out."""
    from random import uniform  # not worth its time before something fails

    return float(0.5 * 2 ** min(attempt - 1, 4) * uniform(0.75, 1))


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> Optional[float]:
    """Return the seconds that `retry-after-ms` or `Retry-After` (RFC 9110, 10.2.3) ask for."""
    from email.utils import parsedate_to_datetime

    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", value):
            return float(value) / unit
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - now).total_seconds())


def add_headers(error: APIStatusError, meta: Any) -> None:
    """Give an error what its answer's headers say: above all, when to ask again."""
    now = datetime.now(timezone.utc)
    error.headers, error.request_id, error.quotas = meta.headers, meta.request_id, meta.quotas
    wait = parse_retry_after(meta.headers, now)
    spent = used_up_quota(meta.quotas, now) if meta.quotas else None
    if error.status_code == 429 and spent is not None:
        name, left = spent
        said = f" Your {name} is used up"
        if left is not None:
            said += f"; it renews in {describe_wait(left)}"
            wait = left if wait is None or left > LONGEST_WAIT else wait
        error.args = (f"{error}{said}.",)
    elif wait is not None and wait > LONGEST_WAIT:
        error.args = (f"{error} It asks for a wait of {describe_wait(wait)}.",)
    error.retry_after = wait


def describe_wait(seconds: float) -> str:
    """Return a time in its two largest units, such as "3 d 4 h" or "12 min"."""
    minutes = max(1, int(-(-seconds // 60)))  # upwards: nobody should come back too soon
    parts = [(minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min")]
    return " ".join([f"{count} {unit}" for count, unit in parts if count][:2])


def used_up_quota(quotas: Any, now: datetime) -> Optional[Tuple[str, Optional[float]]]:
    """Return the name of a quota that is used up and the seconds until it renews.

    Of several, the one that renews last; https://dev.synthetic.new says which meters count.
    """
    empty = []
    rolling, weekly = quotas.rolling_five_hour_limit, quotas.weekly_token_limit
    plan = quotas.subscription
    if rolling is not None and (rolling.limited is True or _is_spent(rolling.remaining)):
        empty.append(("rolling five-hour limit", rolling.next_tick_at))
    if weekly is not None and _is_spent(weekly.percent_remaining, weekly.remaining_credits):
        empty.append(("weekly token limit", weekly.next_regen_at))
    if plan is not None and plan.limit and plan.requests and plan.requests >= plan.limit:
        empty.append(("subscription's request limit", plan.renews_at))
    timed = [(name, (when - now).total_seconds() if when else None)
             for name, when in empty if when is None or when > now]
    return max(timed, key=lambda pair: pair[1] or 0, default=None)


def _is_spent(*amounts: Any) -> bool:
    return any(amount is not None and amount <= 0 for amount in amounts)
