"""`watch` for people: a full screen on a terminal, plain lines elsewhere, JSON per line.

Screen and lines show the same rows, and only a view may make these: hence the length of this file.
"""

from __future__ import annotations

import atexit
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime

from rich.console import Group
from rich.live import Live
from rich.text import Text

from vlmcache.commands.watch.controls import Controls
from vlmcache.commands.watch.keyboard import (
    SUSPEND,
    Keyboard,
    signals_deferred,
    suspend,
    wait_for_reader,
)
from vlmcache.commands.watch.listing import (
    Item,
    ModelRow,
    items_of,
    model_rows,
    programs_of,
    total_of,
)
from vlmcache.commands.watch.values import Download, Event, Observation, Snapshot
from vlmcache.commands.watch.words import event_words, programs_text, rate_text
from vlmcache.show.console import console, styled
from vlmcache.show.document import stream_line, write
from vlmcache.show.layout import short_name
from vlmcache.show.rows import (
    bar,
    class_text,
    print_rows,
    repos_text,
    table,
    width_of,
)
from vlmcache.show.tables import STATE_COLORS, state_text
from vlmcache.show.text import NOTHING, UNICODE, printable
from vlmcache.units import counted, duration_text, size_text

_KEPT_EVENTS = 50
_SHOWN_EVENTS = 6
_NARROW, _WIDE, _WIDER = 72, 100, 120
_BAR = 9
_LEAST_PLACE = 16
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
        self._controls = Controls()

    def __enter__(self) -> Screen:
        # A second signal can cut `__exit__` short, and the process can end without it.
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
        if not self._controls.paused:
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
                if key == SUSPEND:
                    self._suspend()
                elif not self._controls.press(key):
                    return False
            if happened:
                self._draw()
            if not happened or time.monotonic() >= end:
                return True

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

    def _screen(self, snapshot: Snapshot) -> Group:
        width, height = self._console.size
        events = list(self._events)[-min(_SHOWN_EVENTS, max(1, height // 5)) :]
        rows = model_rows(snapshot.models, snapshot.downloads)
        lines = _header(snapshot, rows, width)
        # The headings and the footer; what happened has a heading too.
        page = max(1, height - len(lines) - 2 - (len(events) + 1 if events else 0))
        items, first, count = self._controls.choose(rows, page)
        heading = "MODEL"
        if count > page:
            heading += f" {first + 1}-{first + len(items)}/{count}"
        lines += _items(items, width, heading)
        if not items:
            lines.append(Text("nothing matches the filter" if rows else NOTHING, "dim"))
        lines += [Text()] * (page - max(1, len(items)))
        if events:
            lines.append(Text("RECENT", "dim"))
            lines += (
                _event_line(when, event, verbose=self._verbose) for when, event in reversed(events)
            )
        lines.append(self._footer(snapshot, width))
        for line in lines:
            line.no_wrap = True
            line.overflow = "ellipsis"
        return Group(*lines)

    def _footer(self, snapshot: Snapshot, width: int) -> Text:
        """Return the keys, or what is more urgent."""
        controls = self._controls
        if self._warning is not None:
            return Text(printable(self._warning), "bold red")
        if controls.typing:
            typed = (f"/{printable(controls.filter)}_", "bold")
            return Text.assemble(typed, ("  Enter keeps the filter, Esc shows all", "dim"))
        text = Text("PAUSED  " if controls.paused else "", "bold yellow")
        text.append(
            controls.keys if self._keyboard.listens else f"sorted by {controls.order}",
            "not bold dim",
        )
        how = "reported by the filesystem" if snapshot.notified else "polling"
        for more in filter(None, (self._note, how)):
            if text.cell_len + 2 + len(more) <= width:
                text.append(f"  {more}", "not bold dim")
        return text


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
            BrokenPipeError: nobody reads the lines any longer.
        """
        wait_for_reader(seconds, wake)
        return True

    def _begin(self, snapshot: Snapshot) -> None:
        out = console()
        width = width_of(out)
        rows = model_rows(snapshot.models, snapshot.downloads)
        lines = _header(snapshot, rows, width)
        items = items_of(rows)
        print_rows(out, lines + (_items(items, width, "MODEL") if items else []))

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


def _header(snapshot: Snapshot, rows: Sequence[ModelRow], width: int | None) -> list[Text]:
    """Return the lines about the cache: bytes, free space, all downloads together, health."""
    cache = snapshot.cache
    here = {(row.model.type, row.model.repo) for row in rows if row.model.state != "missing"}
    count = f"{repos_text(kind for kind, _ in here)}, {size_text(cache.size_on_disk)}"
    line = Text(count if cache.exists else "the cache does not exist yet", "bold")
    place = printable(cache.dir)
    room = len(place) if width is None else width - line.cell_len - 2
    if room >= _LEAST_PLACE:
        line.append(f"  {short_name(place, room, UNICODE)}", "not bold dim")
    lines = [line]
    classes = class_text(cache.by_class)
    if ", " in classes:
        lines.append(_labelled("Bytes", classes))
    if cache.free is not None and cache.total is not None:
        lines.append(_labelled("Disk", _room_text(snapshot)))
    total = total_of(rows)
    if total is not None:
        text = Text()
        if total.progress is not None:
            long = _BAR if width is None else max(_BAR, width // 4)
            text = Text.assemble(bar(total.progress, long), f" {int(total.progress * 100):>3}%  ")
        facts = [f"{size_text(total.left)} left"] if total.left is not None else []
        facts += [rate_text(total.speed)] if total.speed else []
        if total.seconds_left is not None:
            facts.append(duration_text(total.seconds_left))
        users = ", ".join(map(printable, programs_of(rows)))
        facts += [f"by {users}"] if users else []
        text.append(", ".join(facts))
        lines.append(_labelled("Total", text))
    problems = [
        counted(count, severity)
        for severity, count in snapshot.problems.items()
        if count and severity != "info"
    ]
    if problems:
        health = Text(", ".join(problems), "red" if snapshot.problems["error"] else "yellow")
        lines.append(_labelled("Health", health.append(": vlmcache status -v", "dim")))
    return lines


def _labelled(label: str, text: str | Text) -> Text:
    return Text.assemble((f"{label:<8}", "dim"), text)


def _room_text(snapshot: Snapshot) -> Text:
    """Return how much is free, and whether that is enough for what is being downloaded."""
    cache, needed = snapshot.cache, snapshot.needed
    free, total = cache.free or 0, cache.total or 0
    style = "red" if snapshot.low else "yellow" if free < cache.comfortable_free else ""
    text = Text(f"{size_text(free)} free of {size_text(total)}", style)
    if snapshot.low:
        text.append(f", less than {size_text(cache.min_free)}", "red")
    if needed and needed > free:
        text.append(f", {size_text(needed - free)} too little for what is downloaded", "red")
    elif needed and snapshot.full_in is None:
        after = free - needed
        style = "yellow" if after < cache.min_free else ""
        text.append(f", {size_text(after)} once the downloads are done", style)
    if snapshot.full_in is not None:
        rate = f" at {rate_text(snapshot.fill_rate)}" if snapshot.fill_rate else ""
        text.append(f", full in {duration_text(snapshot.full_in)}{rate}", "red" if rate else "")
    return text


def _items(items: Sequence[Item], width: int | None, heading: str) -> list[Text]:
    """Return the lines of the table, its headings first."""
    columns = [heading, "PROGRESS", "ON DISK"]
    room = 1 << 30 if width is None else width
    columns += ["OF"] if room >= _WIDER else []
    columns += ["SPEED"] if room >= _WIDE else []
    columns += ["LEFT", *(["USED BY"] if room >= _NARROW else [])]
    rows = []
    for row, file in items:
        cells = _row_cells(row, width) if file is None else _file_cells(file, width)
        rows.append([cells[column] for column in ("MODEL", *columns[1:])])
    widths = _WIDTHS | {"USED BY": 24 if room >= _WIDER else 18}
    return table(columns, rows, width, names=(heading,), numbers=_NUMBERS, widths=widths)


_NUMBERS = ("ON DISK", "OF", "SPEED")
_WIDTHS = {"PROGRESS": _BAR + 5, "ON DISK": 8, "OF": 8, "SPEED": 9, "LEFT": 11}


def _row_cells(row: ModelRow, width: int | None) -> dict[str, str | Text]:
    model = row.model
    name = printable(row.name)
    if width is None or width >= _WIDER:
        revision = "" if model.revision in (None, "main") else f"@{printable(model.revision or '')}"
        other = f"  {printable(model.repo)}" if model.key not in (None, model.repo) else ""
        name += other + revision
    # A program that downloads is named with each file too, but the files may be hidden.
    users = dict.fromkeys(
        [*model.used_by, *(each.process for each in row.downloads if each.process is not None)]
    )
    left = row.seconds_left
    waiting = next((d.state for d in row.downloads if d.state != "running"), None)
    state = "" if row.is_running or waiting is None else waiting.replace("-", " ")
    return {
        "MODEL": Text(name, "bold" if row.downloads else ""),
        "PROGRESS": _progress(row, width),
        "ON DISK": size_text(model.size_on_disk) if model.size_on_disk else NOTHING,
        "OF": NOTHING if model.expected_size is None else size_text(model.expected_size),
        "SPEED": NOTHING if row.speed is None or not row.is_running else rate_text(row.speed),
        "LEFT": Text(state, "yellow") if left is None or state else duration_text(left),
        "USED BY": programs_text(list(users)) if users else NOTHING,
    }


def _progress(row: ModelRow, width: int | None) -> Text:
    """Return a bar for a model that is partly here, on a screen; otherwise the state in words."""
    progress = row.progress
    if width is None or progress is None or not (row.is_running or row.model.state == "partial"):
        return state_text(row.model.state, row.model.progress)
    # Without color too it has to be seen that no download is running.
    if not row.is_running:
        return state_text(row.model.state, progress)
    return Text.assemble(bar(progress, _BAR), f" {int(progress * 100):>3}%")


def _file_cells(download: Download, width: int | None) -> dict[str, str | Text]:
    file = printable(download.file or f"{download.etag[:12]}…")
    expected = download.expected_size
    progress: Text | str = ""
    if expected:
        share = min(1.0, download.size / expected)
        percent = f"{int(share * 100)}%"
        progress = (
            percent
            if width is None
            else Text.assemble(
                bar(
                    share, _BAR, STATE_COLORS["partial"] if download.state != "running" else "green"
                ),
                f" {percent:>4}",
            )
        )
    left = "" if download.seconds_left is None else duration_text(download.seconds_left)
    state = "" if download.state == "running" else download.state.replace("-", " ")
    return {
        "MODEL": f"  {file}",
        "PROGRESS": progress,
        "ON DISK": size_text(download.size),
        "OF": NOTHING if expected is None else size_text(expected),
        "SPEED": NOTHING if download.speed is None else rate_text(download.speed),
        "LEFT": Text(state, "yellow") if state else left,
        "USED BY": programs_text([download.process]) if download.process else NOTHING,
    }


def _event_line(when: datetime, event: Event, *, verbose: bool) -> Text:
    line = Text(f"{when:%H:%M:%S}  ")
    line.append(event.kind.replace("-", " "), _EVENT_COLORS.get(event.kind, ""))
    if event.repo is not None:
        line.append(f"  {printable(event.repo)}")
    words = ", ".join(event_words(event, verbose=verbose))
    return line.append(f": {words}") if words else line


def _visible(check: Observation) -> tuple[object, ...]:
    """Return what can be seen of a check: one more second or byte is not a reason to draw."""
    snapshot = check.snapshot
    free = snapshot.cache.free
    return (
        snapshot.cache.size_on_disk,
        None if free is None else size_text(free),
        None if snapshot.full_in is None else duration_text(snapshot.full_in),
        None if snapshot.needed is None else size_text(snapshot.needed),
        snapshot.low,
        snapshot.notified,
        snapshot.models,
        snapshot.downloads,
        tuple(snapshot.problems.items()),
    )
