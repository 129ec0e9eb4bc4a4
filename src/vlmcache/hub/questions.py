"""One question about several models, asked at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from vlmcache.hub.client import Client
from vlmcache.threads import in_parallel

_T = TypeVar("_T")
_R = TypeVar("_R")
_NOTE_EVERY = 3.0
"""Seconds between notes of how many models the hub was asked about."""


def ask_about(client: Client, items: Sequence[_T], question: Callable[[_T], _R]) -> list[_R]:
    """Return the answers to a question about each of several models, in their order.

    Args:
        client: the hub; it is stopped if a signal arrives meanwhile.
        items: the models.
        question: asks about one model, and changes nothing.
    """
    noted = time.monotonic()

    def answered(count: int) -> None:
        nonlocal noted
        if count < len(items) and time.monotonic() - noted > _NOTE_EVERY:
            noted = time.monotonic()
            client.note(f"{client.name} was asked about {count} of {len(items)} models")

    return in_parallel(items, question, client.stop, answered)
