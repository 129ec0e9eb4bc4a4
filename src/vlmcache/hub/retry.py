"""Failures that may pass, and how long to try again."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping

import msgspec

from vlmcache.errors import VlmcacheError
from vlmcache.progress import StopToken

_RATE_LIMIT = re.compile(r"r\s*=\s*0\b.*?t\s*=\s*(\d+)")


class Patience(msgspec.Struct, frozen=True):
    """How long to try. Times are seconds."""

    attempts: int = 8
    """Failures in a row of a file's transfer, without a byte between them."""
    asks: int = 3
    """Failures in a row of a question, before which nothing has been done."""
    first_wait: float = 0.5
    longest_wait: float = 20.0
    longest_asked: float = 300.0
    """The longest wait that a hub may ask for with Retry-After."""
    answer_timeout: float | None = None
    """huggingface_hub's own if `None`."""
    data_timeout: float | None = None
    """huggingface_hub's own if `None`."""


class TroubleError(Exception):
    """A failure that may pass. `error` is what to report if it does not.

    wait is the time in seconds that the hub asks for, if it asks for any.
    """

    def __init__(self, error: VlmcacheError, wait: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait


class ExpiredError(TroubleError):
    """A signed address is no longer good; the hub gives out a new one."""


class NoRangeError(TroubleError):
    """The hub does not send a part of a file; it may send all of it."""


class Backoff:
    """Waits between attempts, longer each time, until patience ends."""

    def __init__(
        self,
        patience: Patience,
        stop_token: StopToken,
        note: Callable[[str], None],
        attempts: int | None = None,
    ) -> None:
        self._patience = patience
        self._attempts = patience.attempts if attempts is None else attempts
        self._stop_token = stop_token
        self._note = note
        self._failures = 0

    def progressed(self) -> None:
        """Start counting from zero: something has arrived."""
        self._failures = 0

    def failed(self, trouble: TroubleError) -> None:
        """Wait before the next attempt.

        Raises:
            VlmcacheError: there will be no other attempt; this is why.
            Stopped: the work was asked to stop.
        """
        self._failures += 1
        asked = trouble.wait
        too_long = asked is not None and asked > self._patience.longest_asked
        if self._failures >= self._attempts or too_long:
            raise trouble.error from trouble
        wait = min(
            self._patience.first_wait * 2 ** (self._failures - 1), self._patience.longest_wait
        )
        import random

        # Spread, so that many clients do not come back together.
        wait *= random.uniform(0.75, 1.25)  # noqa: S311
        if asked is not None:
            wait = max(asked, 0.0)
        if wait >= 2:
            self._note(f"{trouble.error.message}; next try in {wait:.0f} s")
        self._stop_token.sleep(wait)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait, by Retry-After or the hub's RateLimit.

    Retry-After is seconds or a date (RFC 9110); RateLimit is `"api";r=0;t=55`.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    if text:
        import email.utils

        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    match = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(match[1]) if match else None
