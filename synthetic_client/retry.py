# SPDX-License-Identifier: MIT
"""How long to wait, and whether to ask again: no I/O.

Strategy: a `Clock` bounds each wait of one call. The client hands each failure to
`wait_before_retry`, a pure function, and sleeps for what it returns, or raises the failure where
it returns None. What a server asked for (`parse_retry_after`, a quota's renewal from
`used_up_quota`) stands in the error's `retry_after` by then.
"""

import random
import re
import time
from datetime import datetime, timezone
from typing import Any, Callable, Mapping, Optional, Tuple

from .errors import APIConnectionError, APIStatusError, APITimeoutError, SyntheticError

LONGEST_WAIT = 60.0  # seconds; asked to wait longer, the caller decides, not we
_FIRST_WAIT = 0.5
_LONGEST_BACKOFF = 8.0
_JITTER = 0.25
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_LATE = {
    "connect": "no connection within {:g} s; check base_url and whether a proxy is needed, or "
               "raise connect_timeout",
    "silence": "the server was silent for {:g} s; raise timeout if answers may take longer",
    "deadline": "the call was not done within {:g} s; raise deadline or ask for less",
}


class Clock:
    """What bounds the waits of one call: connecting, silence, and the deadline for it all."""

    def __init__(self, timeout: float, connect_timeout: float, deadline: Optional[float]) -> None:
        self._limits = {"connect": connect_timeout, "silence": timeout, "deadline": deadline or 0}
        self._ends = float("inf") if deadline is None else time.monotonic() + deadline
        self._phase = "silence"
        self.connect_ends: Optional[float] = None  # set while connecting
        self.cut: Callable[[], Any] = bool  # ends the exchange that waits now

    def start_connecting(self) -> None:
        """Begin the phase that connect_timeout bounds; connect_ends = None ends it."""
        self.connect_ends = time.monotonic() + self._limits["connect"]

    def stop(self) -> None:
        """End the call at once, from any thread."""
        self._ends = -float("inf")  # first: no wait may begin after the cut
        self.cut()

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self._ends - time.monotonic()

    def wait(self) -> float:
        """Return the seconds that the next wait may take; raises where there are none."""
        now = time.monotonic()
        seconds, self._phase = self._limits["silence"], "silence"
        if self.connect_ends is not None:
            seconds, self._phase = self.connect_ends - now, "connect"
        if self._ends - now < seconds:
            seconds, self._phase = self._ends - now, "deadline"
        if seconds <= 0:
            raise self.expired()
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
    if not isinstance(error, APIStatusError) or not is_retryable(error):
        return None
    if error.retry_after is None:
        return backoff(attempt)
    return error.retry_after if error.retry_after <= LONGEST_WAIT else None


def is_retryable(error: APIStatusError) -> bool:
    """Say whether the same request may succeed later, by its status and the server's word."""
    asked = error.headers.get("x-should-retry")
    if asked in ("true", "false"):
        return asked == "true"
    if "insufficient_quota" in (error.code, error.type):
        return False
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def backoff(attempt: int) -> float:
    """Return 0.5 s doubling to 8 s, less up to a quarter so that clients spread out."""
    seconds = min(_LONGEST_BACKOFF, _FIRST_WAIT * 2 ** min(attempt - 1, 10))
    return float(seconds * (1 - _JITTER * random.random()))


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> Optional[float]:
    """Return the seconds that `retry-after-ms` or `Retry-After` (RFC 9110, 10.2.3) ask for."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _SECONDS.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    when = _parse_http_date(value)
    return None if when is None else max(0.0, (when - now).total_seconds())


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
            hours, minutes = divmod(int(left) // 60 + 1, 60)
            said += f"; it renews in {hours} h {minutes} min"
            wait = left if wait is None or left > LONGEST_WAIT else wait
        error.args = (f"{error}{said}.",)
    error.retry_after = wait


def _parse_http_date(value: str) -> Optional[datetime]:
    from email.utils import parsedate_to_datetime

    try:
        when = parsedate_to_datetime(value)
        return when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def used_up_quota(quotas: Any, now: datetime) -> Optional[Tuple[str, Optional[float]]]:
    """Return the name of a quota that is used up and the seconds until it renews.

    `quotas` is a schema.Quotas; of several that are used up, the one that renews last. The
    meters that count are in https://dev.synthetic.new (Synthetic's page on quotas).
    """
    weekly, rolling = quotas.weekly_token_limit, quotas.rolling_five_hour_limit
    subscription = quotas.subscription
    empty = []
    if rolling is not None and (rolling.limited is True or _is_zero(rolling.remaining)):
        empty.append(("rolling five-hour limit", rolling.next_tick_at))
    if weekly is not None:
        if _is_zero(weekly.percent_remaining) or _is_zero(weekly.remaining_credits):
            empty.append(("weekly token limit", weekly.next_regen_at))
    if subscription is not None and subscription.limit and subscription.requests:
        if subscription.requests >= subscription.limit:
            empty.append(("subscription's request limit", subscription.renews_at))
    timed = [(name, (when - now).total_seconds() if when else None) for name, when in empty]
    open_ended = [(name, left) for name, left in timed if left is None or left > 0]
    return max(open_ended, key=lambda pair: pair[1] or 0, default=None)


def _is_zero(amount: Any) -> bool:
    return amount is not None and amount <= 0
