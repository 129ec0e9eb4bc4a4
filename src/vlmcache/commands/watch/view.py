"""`watch` for people: a full screen on a terminal, plain lines elsewhere, JSON per line."""

from __future__ import annotations

import atexit
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from vlmcache.commands.watch.keyboard import (
    RESIZED,
    SUSPEND,
    Keyboard,
    signals_deferred,
    suspend,
    wait_for_reader,
)
from vlmcache.commands.watch.values import (
    Download,
    Event,
    Observation,
    Program,
    Snapshot,
    WatchedModel,
)
from vlmcache.show.console import console, styled
from vlmcache.show.document import stream_line, write
from vlmcache.show.tables import STATE_COLORS, plain_table
from vlmcache.show.text import NOTHING, printable
from vlmcache.units import duration_text, size_text

_STATES = ("damaged", "away", "partial", "missing", "cached")
_ORDERS: dict[str, Callable[[WatchedModel], tuple[object, ...]]] = {
    "name": lambda model: (model.key is None, model.key or "", model.repo),
    "size": lambda model: (-model.size_on_disk, model.repo),
    "state": lambda model: (_STATES.index(model.state), model.repo),
}
_SORTS = tuple(_ORDERS)
_KEPT_EVENTS = 50
_SHOWN_EVENTS = 6
_WIDE = 110
_SHORT_REPO = 12
_ADVANCE_SECONDS = 10.0
_EVENT_COLORS = {
    "downloaded": "green",
    "damaged": "bold red",
    "away": "magenta",
    "back": "green",
    "removed": "yellow",
    "download-left-behind": "yellow",
    "low-space": "bold red",
}


def output(
    *, json: bool, quiet: bool, once: bool, verbose: bool, note: str | None
) -> Screen | Lines:
    """Return what shows the checks, as a context manager.

    Args:
        json: whether to print JSON.
        quiet: whether to print ids.
        once: whether there is only one check.
        verbose: whether to name paths with what happens.
        note: where metrics are answered, if they are.
    """
    if json:
        return JsonLines(note)
    if quiet:
        return Ids(note)
    if once or not styled(sys.stdout):
        return Lines(note, verbose=verbose)
    return Screen(note, verbose=verbose)


class Screen:
    """The live view. As a context manager it takes the whole screen and gives it back clean.

    `show` shows each check; `wait` waits between checks, and listens to the keys.
    """

    def __init__(self, note: str | None = None, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._console = console()
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._keyboard = Keyboard()
        self._note = note
        self._warning: str | None = None
        self._check: Observation | None = None
        self._events: deque[tuple[datetime, Event]] = deque(maxlen=_KEPT_EVENTS)
        self._sort = 0
        self._paused = False

    def __enter__(self) -> Screen:
        # A second signal can end the way out early; the end of the process is a way out too.
        atexit.register(self._restore)
        try:
            with signals_deferred():
                self._keyboard.open()
                self._live.start()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()
        atexit.unregister(self._restore)

    def _restore(self) -> None:
        with signals_deferred():
            try:
                self._live.stop()
            finally:
                self._keyboard.close()

    def show(self, check: Observation) -> None:
        """Show a check, and keep what happened."""
        for event in check.events:
            if event.kind != "download-advanced":
                self._events.append((check.snapshot.at.astimezone(), event))
        if not self._paused:
            changed = (
                self._check is None or check.events or _visible(check) != _visible(self._check)
            )
            self._check = check
            if changed:
                self._draw()

    def warn(self, warning: str | None) -> None:
        """Show a warning until it is withdrawn."""
        if warning != self._warning:
            self._warning = warning
            self._draw()

    def wait(self, seconds: float, wake: socket.socket | None) -> bool:
        """Wait for so many seconds or for the socket; return whether to continue."""
        end = time.monotonic() + seconds
        while True:
            happened = self._keyboard.wait(max(0.0, end - time.monotonic()), wake)
            for key in happened:
                if key in ("q", "Q"):
                    return False
                self._act(key)
            if not happened or time.monotonic() >= end:
                return True

    def _act(self, key: str) -> None:
        if key in ("s", "S"):
            self._sort = (self._sort + 1) % len(_SORTS)
        elif key in ("p", "P"):
            self._paused = not self._paused
        elif key == SUSPEND:
            self._suspend()
        elif key != RESIZED:
            return
        self._draw()

    def _suspend(self) -> None:
        with signals_deferred():
            self._live.stop()
            self._keyboard.release()
        suspend()
        with signals_deferred():
            self._keyboard.grab()
            self._live.start()

    def _draw(self) -> None:
        if self._check is not None:
            self._live.update(self._screen(self._check.snapshot), refresh=True)

    def _screen(self, snapshot: Snapshot) -> RenderableType:
        width, height = self._console.size
        keys = [f"sorted by {_SORTS[self._sort]}"]
        if self._keyboard.listens:
            keys = ["q quit", f"s sort ({_SORTS[self._sort]})", "p pause"]
        if self._paused:
            keys[-1] = "p continue"
        how = "reported by the filesystem" if snapshot.notified else "polling"
        footer = Text("  ".join([*keys, how, *([self._note] if self._note else [])]), "dim")
        if self._warning is not None:
            footer = Text(printable(self._warning), "bold red")
        if self._paused:
            footer = Text.assemble(("PAUSED  ", "bold yellow"), footer)
        events = list(self._events)[-min(_SHOWN_EVENTS, max(1, height // 4)) :]
        top = _header(snapshot, width)
        rows = height - len(top) - len(events) - 1 - (1 if events else 0)
        downloads, used = _downloads(snapshot.downloads, width, max(2, rows // 2))
        models = _models(snapshot.models, width, max(2, rows - used), self._sort)
        parts: list[RenderableType] = [*top, *downloads, *models]
        if events:
            parts.append(Text("RECENT", "dim"))
            parts += (
                _event_line(when, event, verbose=self._verbose) for when, event in reversed(events)
            )
        parts.append(footer)
        for part in parts:
            if isinstance(part, Text):
                part.no_wrap = True
                part.overflow = "ellipsis"
        return Group(*parts)


class Lines:
    """Plain lines for a pipe: one check, then what happens; an advance every ten seconds.

    Its warnings go to stderr.
    """

    def __init__(self, note: str | None = None, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._shown = False
        self._advanced: dict[str | None, float] = {}
        self._warning: str | None = None
        if note is not None:
            print(f"vlmcache: metrics at {note}", file=sys.stderr, flush=True)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        """There is nothing to put back."""

    def show(self, check: Observation) -> None:
        """Print the first check completely, and the events of each."""
        if not self._shown:
            self._shown = True
            self._begin(check.snapshot)
        for event in check.events:
            self._print(check.snapshot.at, event)
        sys.stdout.flush()

    def warn(self, warning: str | None) -> None:
        """Print a warning that is new."""
        if warning is not None and warning != self._warning:
            print(f"vlmcache: {printable(warning)}", file=sys.stderr, flush=True)
        self._warning = warning

    def wait(self, seconds: float, wake: socket.socket | None) -> bool:
        """Wait for so many seconds or for the socket.

        Raises:
            BrokenPipeError: nobody reads the lines any more.
        """
        wait_for_reader(seconds, wake)
        return True

    def _begin(self, snapshot: Snapshot) -> None:
        out = console()
        rows = len(snapshot.models) + len(snapshot.downloads) + 10
        downloads, _ = _downloads(snapshot.downloads, out.width, rows)
        models = _models(snapshot.models, out.width, rows, 0)
        for part in (*_header(snapshot, out.width), *downloads, *models):
            out.print(part)

    def _print(self, at: datetime, event: Event) -> None:
        if event.kind == "download-advanced":
            now = time.monotonic()
            if now - self._advanced.get(event.path, -_ADVANCE_SECONDS) < _ADVANCE_SECONDS:
                return
            self._advanced = {
                path: when for path, when in self._advanced.items() if now - when < _ADVANCE_SECONDS
            } | {event.path: now}
        console().print(_event_line(at.astimezone(), event, verbose=self._verbose), soft_wrap=True)


class JsonLines(Lines):
    """One JSON object per line: the first check, then each event."""

    def _begin(self, snapshot: Snapshot) -> None:
        write(stream_line("watch", snapshot))

    def _print(self, at: datetime, event: Event) -> None:
        write(stream_line("watch", event, at=at))


class Ids(Lines):
    """For `--quiet`: the repos of the first check, then the repo of each event."""

    def _begin(self, snapshot: Snapshot) -> None:
        for repo in snapshot.ids:
            print(printable(repo))

    def _print(self, _at: datetime, event: Event) -> None:
        if event.repo is not None and event.kind != "download-advanced":
            print(printable(event.repo))


def _header(snapshot: Snapshot, width: int) -> list[Text]:
    cache = snapshot.cache
    classes = ", ".join(
        f"{size_text(count)} {name}"
        for name in cache.by_class.__struct_fields__
        if (count := getattr(cache.by_class, name)) and name != "referenced"
    )
    size = f"{size_text(cache.size_on_disk)}" + (f" (of that {classes})" if classes else "")
    lines = [
        Text.assemble(
            ("Cache  ", "dim"),
            f"{_ending_of(printable(cache.dir), width // 2)}  ",
            size if cache.exists else "does not exist yet",
        )
    ]
    if cache.free is not None and cache.total is not None:
        style = "red" if snapshot.low else ""
        if not style and cache.free < cache.comfortable_free:
            style = "yellow"
        room = Text(f"{size_text(cache.free)} free of {size_text(cache.total)}", style)
        if snapshot.low:
            room.append(f", less than {size_text(cache.min_free)}")
        if snapshot.full_in is not None and snapshot.fill_rate is not None:
            room.append(
                f", full in {duration_text(snapshot.full_in)} at {_rate_text(snapshot.fill_rate)}"
            )
        lines.append(Text.assemble(("Disk   ", "dim"), room))
    problems = [
        f"{count} {severity}{'s' if count > 1 else ''}"
        for severity, count in snapshot.problems.items()
        if count and severity != "info"
    ]
    if problems:
        health = Text(", ".join(problems), "red" if snapshot.problems["error"] else "yellow")
        health.append("  # vlmcache status -v", "dim")
        lines.append(Text.assemble(("Health ", "dim"), health))
    return lines


def _downloads(
    downloads: Sequence[Download], width: int, rows: int
) -> tuple[list[RenderableType], int]:
    """Return the table of downloads in at most so many lines, and how many they are."""
    if not downloads:
        return [], 0
    wide = width >= _WIDE
    numbers = ("RECEIVED", "OF", "SPEED", "LEFT")
    columns = ["DOWNLOAD", *(["FILE"] if wide else []), *numbers, "BY"]
    table = plain_table(*columns, numbers=numbers)
    order = {"running": 0, "stalled": 1, "left-behind": 2}
    room, more = _fitting(len(downloads), rows)
    shown = sorted(downloads, key=lambda download: (order[download.state], download.repo))[:room]
    for download in shown:
        file = (
            printable(download.file)
            if download.file is not None
            else f"{printable(download.etag)[:12]}…"
        )
        names = [printable(download.repo), _ending_of(file, 50)]
        if not wide:
            # Too narrow for both: a dozen characters of the repo, then the end of the file.
            repo = printable(download.repo).rpartition("/")[2]
            names = [_shortened(f"{repo[:_SHORT_REPO]} {file}", max(12, width - 53))]
        left = Text(
            duration_text(download.seconds_left) if download.seconds_left is not None else NOTHING
        )
        if download.state != "running":
            left = Text(download.state.replace("-", " "), "yellow")
        table.add_row(
            *names,
            size_text(download.size),
            NOTHING if download.expected_size is None else size_text(download.expected_size),
            NOTHING if download.speed is None else _rate_text(download.speed),
            left,
            NOTHING if download.process is None else _programs_text([download.process]),
        )
    return [table, *more], len(shown) + 1 + len(more)


def _fitting(count: int, rows: int) -> tuple[int, list[Text]]:
    """Return how many items a table of so many lines has room for, and a line for the rest."""
    room = rows - 1 if count < rows else max(1, rows - 2)
    return room, [Text(f"and {count - room} more", "dim")] if count > room else []


def _models(
    models: Sequence[WatchedModel], width: int, rows: int, sort: int
) -> list[RenderableType]:
    """Return the table of models in at most so many lines."""
    room, more = _fitting(len(models), rows)
    table = plain_table(
        "MODEL", "STATE", "ON DISK", "EXPECTED", "IN USE BY", numbers=("ON DISK", "EXPECTED")
    )
    for model in sorted(models, key=_ORDERS[_SORTS[sort]])[:room]:
        name = printable(model.repo)
        if model.type != "model":
            name += f" ({model.type})"
        if model.revision not in (None, "main"):
            name += f"@{printable(model.revision or '')}"
        if model.key is not None and model.key != model.repo:
            name = f"{printable(model.key)}  {name}" if width >= _WIDE else printable(model.key)
        table.add_row(
            _ending_of(name, max(12, width - 50)),
            Text(model.state, STATE_COLORS.get(model.state, "")),
            size_text(model.size_on_disk) if model.size_on_disk else NOTHING,
            NOTHING if model.expected_size is None else size_text(model.expected_size),
            _programs_text(model.used_by) if model.used_by else NOTHING,
        )
    return [table, *more]


def _event_line(when: datetime, event: Event, *, verbose: bool) -> Text:
    line = Text(f"{when:%H:%M:%S}  ")
    line.append(event.kind.replace("-", " "), _EVENT_COLORS.get(event.kind, ""))
    if event.repo is not None:
        line.append(f"  {printable(event.repo)}")
    words = ", ".join(_event_words(event, verbose=verbose))
    return line.append(f": {words}") if words else line


def _shortened(text: str, width: int) -> str:
    """Return a string in at most so many characters, without the rest of its end."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _ending_of(text: str, width: int) -> str:
    """Return the end of a string in at most so many characters: of a path, it says more."""
    return text if len(text) <= width else "…" + text[1 - width :]


def _programs_text(programs: Sequence[Program]) -> str:
    """Return programs as `serve.py (123), python (124)`."""
    return ", ".join(f"{printable(program.name)} ({program.pid})" for program in programs)


def _rate_text(rate: float) -> str:
    """Return bytes per second in words."""
    return f"{size_text(round(rate))}/s"


def _event_words(event: Event, *, verbose: bool) -> Iterator[str]:
    """Yield what is to be said of an event, next to its kind and its repo."""
    if event.revision is not None:
        refs = f" ({', '.join(map(printable, event.refs))})" if event.refs else ""
        yield f"{printable(event.revision)[:12]}{refs}"
    elif len(event.files) == 1:
        yield printable(event.files[0])
    elif event.files:
        yield f"{len(event.files)} files"
    if event.kind == "low-space" and event.size is not None and event.expected_size is not None:
        yield f"{size_text(event.size)} free, less than {size_text(event.expected_size)}"
    elif event.size is not None and event.expected_size is not None:
        yield f"{size_text(event.size)} of {size_text(event.expected_size)}"
    elif event.size:
        yield size_text(event.size)
    if event.kind == "download-advanced" and event.speed is not None:
        yield _rate_text(event.speed)
        if event.seconds_left is not None:
            yield f"{duration_text(event.seconds_left)} left"
    if event.detail is not None:
        yield printable(event.detail)
    if verbose and event.path is not None:
        yield printable(event.path)


def _visible(check: Observation) -> tuple[object, ...]:
    """Return what of a check can be seen: one more second or byte is not a reason to draw."""
    snapshot = check.snapshot
    free = snapshot.cache.free
    return (
        snapshot.cache.size_on_disk,
        None if free is None else size_text(free),
        None if snapshot.full_in is None else duration_text(snapshot.full_in),
        snapshot.low,
        snapshot.notified,
        snapshot.models,
        snapshot.downloads,
        tuple(snapshot.problems.items()),
    )
