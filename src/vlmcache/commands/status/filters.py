"""`--filter`, `--sort` and `--limit`: which rows to show, and in which order (pure)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from vlmcache import late
from vlmcache.cache import layout
from vlmcache.commands.status.values import ModelStatus, RepoStatus
from vlmcache.errors import UsageError
from vlmcache.units import parse_duration, parse_size

_EXPRESSION = late.pattern(r"\s*([a-z_]+)\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_STATE_ORDER = ("damaged", "away", "partial", "missing", "cached")
ROWS = 20
"""The most rows of a table, unless others are asked for."""


class TableOptions(NamedTuple):
    """Which rows the tables show, and what was asked for to get them."""

    every: bool = False
    """Whether the other repos are listed too."""
    limit: int | None = ROWS
    """The most rows of a table; `None` shows all."""
    sort: str | None = None
    filtered: bool = False
    named: bool = False
    """Whether models were named: nothing is said of the rest of the cache."""
    outdated: bool = False
    """Whether the hub was asked for newer revisions."""
    more: str = "vlmcache status --all"
    """The command that shows all rows."""


Row = ModelStatus | RepoStatus
RowT = TypeVar("RowT", bound=Row)

_ORDERS: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: row.repo.lower(),
    "size": lambda row: -row.size_on_disk,
    "state": lambda row: _STATE_ORDER.index(row.state),
    "type": lambda row: getattr(row, "type", "model"),
    "used": lambda row: row.last_used.timestamp() if row.last_used else 0.0,
}
FIELDS = tuple(_ORDERS)
"""What rows can be filtered and sorted by."""


def parse_filter(expression: str, now: datetime) -> Callable[[Row], bool]:
    """Return the test that an expression such as `size>1GB`, `used>30d` or `state=damaged` means.

    `used` is the time since the last use: `used>30d` keeps what was not used for 30 days.

    Raises:
        UsageError: the expression is not a filter.
    """
    match = _EXPRESSION.fullmatch(expression)
    if match is None or match[1] not in FIELDS:
        raise UsageError(
            f"--filter {expression!r} is not a filter",
            "write FIELD OPERATOR VALUE, such as 'size>1GB', 'used>30d', 'state=partial'; fields: "
            + ", ".join(FIELDS),
        )
    field, sign, value = match.groups()
    compare = _COMPARISONS[sign]
    try:
        if field == "size":
            bound = parse_size(value)
            return lambda row: compare(row.size_on_disk, bound)
        if field == "used":
            age = timedelta(seconds=parse_duration(value))
            return lambda row: (
                row.last_used is not None
                and compare((now - row.last_used).total_seconds(), age.total_seconds())
            )
    except ValueError as error:
        raise UsageError(f"--filter {expression!r}: {error}") from None
    if sign not in ("=", "!="):
        raise UsageError(f"--filter {expression!r}: {field} can only be = or !=")
    known = {"state": _STATE_ORDER, "type": tuple(layout.KINDS.values())}.get(field)
    if known is not None and value not in known:
        raise UsageError(f"--filter {expression!r}: no such {field}", "known: " + ", ".join(known))
    wanted = sign == "="
    if field == "name":
        part = value.lower()
        return lambda row: (part in f"{getattr(row, 'key', '')} {row.repo}".lower()) == wanted
    if field == "type":
        return lambda row: (getattr(row, "type", "model") == value) == wanted
    return lambda row: (row.state == value) == wanted


def select(
    rows: Sequence[RowT], filters: Sequence[Callable[[Row], bool]], sort: str | None
) -> tuple[RowT, ...]:
    """Return the rows that pass every filter, in the order asked for.

    The largest, the longest unused and the worst state come first; names and types are sorted from
    a to z.

    Raises:
        UsageError: rows cannot be sorted by that.
    """
    kept = [row for row in rows if all(test(row) for test in filters)]
    if sort is None:
        return tuple(kept)
    if sort not in _ORDERS:
        raise UsageError(f"--sort {sort!r} is not one of {', '.join(_ORDERS)}")
    return tuple(sorted(kept, key=_ORDERS[sort]))
