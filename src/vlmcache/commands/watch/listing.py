"""The rows of the live view: models with their downloads, chosen and sorted (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vlmcache.commands.watch.values import Download, WatchedModel

_STATES = ("damaged", "away", "partial", "missing", "cached")


class ModelRow(NamedTuple):
    """A model, and what is being downloaded of it."""

    model: WatchedModel
    downloads: tuple[Download, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether bytes arrive."""
        return any(download.state == "running" for download in self.downloads)

    @property
    def name(self) -> str:
        """Its key, or else the repo with its type and revision."""
        model = self.model
        if model.key is not None:
            return model.key
        return model.repo if model.type == "model" else f"{model.repo} ({model.type})"

    @property
    def speed(self) -> float | None:
        """Bytes per second, `None` if it is not known yet."""
        speeds = [d.speed for d in self.downloads if d.state == "running" and d.speed is not None]
        return sum(speeds) if speeds else None

    @property
    def left(self) -> int | None:
        """The bytes that are still to be received; `None` if nothing says how many."""
        begun = [d for d in self.downloads if d.state != "left-behind"]
        if self.model.to_receive:
            return max(self.model.to_receive, sum(map(_left, begun)))
        if not begun or any(d.expected_size is None for d in begun):
            return None
        return sum(map(_left, begun))

    @property
    def seconds_left(self) -> float | None:
        """How long that takes at the current speed."""
        left, speed = self.left, self.speed
        return left / speed if left is not None and speed else None

    @property
    def progress(self) -> float | None:
        """The fraction that is on disk; of a complete model, that of what is added to it."""
        if self.model.state != "cached" or not self.downloads:
            return self.model.progress
        full = [d.expected_size for d in self.downloads if d.expected_size is not None]
        if len(full) < len(self.downloads) or not sum(full):
            return None
        return sum(d.size for d in self.downloads) / sum(full)


def _left(download: Download) -> int:
    return max(0, (download.expected_size or download.size) - download.size)


class Total(NamedTuple):
    """All running downloads together. Sizes are bytes, speed is bytes per second."""

    models: int
    left: int | None
    """`None` if it is not known of one of them."""
    size: int | None
    """The length of the models, complete."""
    speed: float

    @property
    def progress(self) -> float | None:
        """The fraction of the models that is on disk."""
        if self.left is None or not self.size:
            return None
        return min(1.0, max(0.0, 1 - self.left / self.size))

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the current speed."""
        return self.left / self.speed if self.left is not None and self.speed else None


def total_of(rows: Iterable[ModelRow]) -> Total | None:
    """Return all running downloads together; `None` if there are none."""
    running = [row for row in rows if row.is_running]
    if not running:
        return None
    left = [row.left for row in running]
    sizes = [
        row.model.expected_size
        if row.model.state != "cached"
        else sum(download.expected_size or 0 for download in row.downloads)
        for row in running
    ]
    return Total(
        len(running),
        None if None in left else sum(size or 0 for size in left),
        None if None in sizes else sum(size or 0 for size in sizes),
        sum(row.speed or 0.0 for row in running),
    )


def full_in(free: int | None, fill_rate: float | None, total: Total | None) -> float | None:
    """Return the seconds until the disk is full, `None` if it will not be as far as is known.

    Downloads end: what they still need counts, not the speed at which they fill the disk now.

    Args:
        free: bytes that are free.
        fill_rate: bytes per second by which these shrink; `None` if they do not.
        total: the running downloads.
    """
    rate = fill_rate or 0.0
    if free is None or (total is None and not rate):
        return None
    if total is None or total.left is None:
        return free / rate if rate else None
    # The two rates are of different windows of time: a small difference means no other writer.
    other = rate - total.speed if rate > 1.25 * total.speed else 0.0
    if total.left > 0 and not total.speed:
        return free / rate if rate and total.left > free else None
    ends_in = total.seconds_left or 0.0
    after = free - total.left - other * ends_in
    if after < 0:
        return free / max(rate, total.speed)
    return ends_in + after / other if other else None


def model_rows(models: Iterable[WatchedModel], downloads: Iterable[Download]) -> list[ModelRow]:
    """Return a row for each model; downloads go to the first incomplete one of their repo."""
    arriving: dict[tuple[str, str], list[Download]] = {}
    for download in downloads:
        arriving.setdefault((download.type, download.repo.casefold()), []).append(download)
    listed = list(models)
    receivers: dict[tuple[str, str], int] = {}
    for number, model in enumerate(listed):
        key = model.type, model.repo.casefold()
        first = receivers.setdefault(key, number)
        if listed[first].state == "cached" != model.state:
            receivers[key] = number
    return [
        ModelRow(model, tuple(arriving.get(key, ())) if receivers[key] == number else ())
        for number, model in enumerate(listed)
        for key in [(model.type, model.repo.casefold())]
    ]


ORDERS: dict[str, Callable[[ModelRow], tuple[object, ...]]] = {
    "activity": lambda row: (
        not row.is_running,
        not row.downloads,
        _STATES.index(row.model.state) == _STATES.index("cached") and not row.model.used_by,
        row.model.key is None,
        row.name.casefold(),
    ),
    "name": lambda row: (row.name.casefold(),),
    "size": lambda row: (-row.model.size_on_disk, row.name.casefold()),
    "state": lambda row: (_STATES.index(row.model.state), row.name.casefold()),
}
SORTS = tuple(ORDERS)


class Item(NamedTuple):
    """A line of the view: a model, or one file of it that is being downloaded."""

    row: ModelRow
    file: Download | None = None


def items_of(
    rows: Iterable[ModelRow], order: str = SORTS[0], wanted: str = "", *, files: bool = True
) -> list[Item]:
    """Return the lines in an order, of the models whose name or state has all wanted words."""
    items: list[Item] = []
    words = wanted.casefold().split()
    for row in sorted(rows, key=ORDERS[order]):
        model = row.model
        text = f"{model.key or ''} {model.repo} {model.type} {model.state}"
        text += " running" if row.is_running else ""
        if all(word in text.casefold() for word in words):
            items.append(Item(row))
            shown = row.downloads if files else ()
            items += (Item(row, download) for download in sorted(shown, key=_file_order))
    return items


def _file_order(download: Download) -> tuple[object, ...]:
    order = {"running": 0, "stalled": 1, "left-behind": 2}
    return order[download.state], download.file or download.etag


def programs_of(rows: Sequence[ModelRow]) -> list[str]:
    """Return the users whose processes download, each once."""
    names = (
        download.process.user
        for row in rows
        for download in row.downloads
        if download.process is not None and download.state != "left-behind"
    )
    return list(dict.fromkeys(name for name in names if name))
