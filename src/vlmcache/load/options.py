"""What a load test is to measure, from the words people type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

import msgspec

from vlmcache.cache.weights import Precision
from vlmcache.config import parse_attention, parse_precision
from vlmcache.errors import UsageError
from vlmcache.load.report import Loader, Temperature

LOADERS: tuple[Loader, ...] = get_args(Loader)


class LoadTestOptions(msgspec.Struct, frozen=True):
    """What is to be measured.

    Raises:
        UsageError: trials or tokens are less than 1.
    """

    precisions: tuple[Precision, ...] = ()
    """If empty, each model's configured one."""
    device: str = "auto"
    """As torch names it, or `auto`."""
    trials: int = 3
    """Loads of each kind."""
    cold: bool | None = None
    """Only cold loads, only warm ones, or both (`None`)."""
    tokens: int = 1
    """How many tokens are generated after the load; the first one is always timed."""
    loaders: tuple[Loader, ...] | None = None
    """`None` means the one that was fastest on this machine before, reading ahead if nothing is
    remembered."""
    trust_remote_code: bool = False
    """Whether Python code of a repo may run."""
    attention: str | None = None
    """What computes attention; the configured one if not given, else the model's own choice."""
    synthetic: tuple[str, ...] = ()
    """Names of `synthetic.CONFIGS` to make, measure and remove."""
    context: int = 0
    """Tokens of the context that the memory estimate holds the key-value cache of."""
    cold_libraries: bool = False
    """Whether the libraries' files are evicted from memory too before a cold load."""

    def __post_init__(self) -> None:
        if self.trials < 1 or self.tokens < 1:
            raise UsageError("--trials and --tokens must be at least 1")

    @property
    def temperatures(self) -> tuple[Temperature, ...]:
        """The kinds of loads that are measured."""
        return ("cold", "warm") if self.cold is None else ("cold",) if self.cold else ("warm",)

    @property
    def synthetic_precisions(self) -> tuple[Precision, ...]:
        """The precisions of synthetic models, for which none is configured."""
        return self.precisions or ("bf16",)


def parse_precisions(words: Iterable[str]) -> tuple[Precision, ...]:
    """Return the precisions in names or in lists of names with commas, each once.

    Raises:
        UsageError: a name is not known.
    """
    try:
        return tuple(dict.fromkeys(parse_precision(word) for word in _split(words)))
    except ValueError as error:
        raise UsageError(str(error)) from None


def parse_loaders(words: Iterable[str]) -> tuple[Loader, ...] | None:
    """Return the loaders in names or in lists of names with commas; `None` if only `auto` is there.

    Raises:
        UsageError: a name is not known.
    """
    named = tuple(dict.fromkeys(_split(words)))
    for word in named:
        if word != "auto" and word not in LOADERS:
            raise UsageError(f"no loader {word!r}", "known: auto, " + ", ".join(LOADERS))
    return tuple(loader for word in named for loader in LOADERS if loader == word) or None


def parse_one_precision(text: str) -> Precision:
    """Return the one precision that a string names.

    Raises:
        UsageError: it names none, or several.
    """
    precisions = parse_precisions([text])
    if len(precisions) != 1:
        raise UsageError(f"one precision at a time, not {text!r}", "--precision int8 or int4")
    return precisions[0]


def parse_one_attention(text: str | None) -> str | None:
    """Return what computes attention, if a string names it.

    Raises:
        UsageError: it names nothing that is known.
    """
    try:
        return None if text is None else parse_attention(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _split(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (word.strip() for word in text.split(",") if word.strip())
