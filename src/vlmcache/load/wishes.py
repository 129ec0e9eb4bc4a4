"""What a load test is to measure, from the words people type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import msgspec

from vlmcache.cache.weights import Precision
from vlmcache.config import parse_precision
from vlmcache.errors import UsageError
from vlmcache.load.report import Loader

LOADERS: tuple[Loader, ...] = get_args(Loader)


class Wishes(msgspec.Struct, frozen=True):
    """What is to be measured.

    precisions: none means each model's configured one. loaders: `None` means the one that was
    fastest on this machine before, reading ahead where nothing is remembered. tokens: how many are
    generated after the load; the first one is always timed.
    """

    precisions: tuple[Precision, ...] = ()
    device: str = "auto"
    trials: int = 3
    temperatures: tuple[Literal["cold", "warm"], ...] = ("cold", "warm")
    tokens: int = 1
    loaders: tuple[Loader, ...] | None = None
    trust_remote_code: bool = False


def parse_wishes(
    precisions: Iterable[str] = (),
    device: str = "auto",
    trials: int = 3,
    cold: bool | None = None,
    tokens: int = 1,
    loaders: Iterable[str] = (),
    trust_remote_code: bool = False,
) -> Wishes:
    """Return the wishes that a command line's words mean.

    Args:
        precisions: names or comma lists of them.
        device: as torch names it, or `auto`.
        trials: loads of each temperature.
        cold: only cold loads, only warm ones, or both (`None`).
        tokens: how many to generate.
        loaders: names or comma lists of them; `auto` leaves the choice open.
        trust_remote_code: whether Python code of a repo may run.

    Raises:
        UsageError: a word is not known, or a number makes no sense.
    """
    if trials < 1 or tokens < 1:
        raise UsageError("--trials and --tokens must be at least 1")
    try:
        wanted = tuple(dict.fromkeys(parse_precision(word) for word in _words(precisions)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    chosen: list[Loader] = []
    for word in _words(loaders):
        found = next((loader for loader in LOADERS if loader == word), None)
        if found is None and word != "auto":
            raise UsageError(f"no loader {word!r}", "known: auto, " + ", ".join(LOADERS))
        if found is not None and found not in chosen:
            chosen.append(found)
    return Wishes(
        wanted,
        device,
        trials,
        ("cold", "warm") if cold is None else ("cold",) if cold else ("warm",),
        tokens,
        tuple(chosen) or None,
        trust_remote_code,
    )


def parse_one_precision(text: str) -> Precision:
    """Return the one precision that a text names.

    Raises:
        UsageError: it names none, or several.
    """
    found = parse_wishes([text]).precisions
    if len(found) != 1:
        raise UsageError(f"one precision at a time, not {text!r}", "--precision int8 or int4")
    return found[0]


def _words(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (word.strip() for word in text.split(",") if word.strip())
