"""How progress is laid out: rows of names, percentages, bars and figures, never wider than asked.

Nothing heavy is imported here; the width of a character is that of rich's tables, once they are
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlmcache import late
from vlmcache.progress import Rate, Tally
from vlmcache.show.text import Glyphs, printable
from vlmcache.units import size_text

NARROWEST = 20
"""The least columns in which each row has a name and a percentage."""
MARGIN = 3
"""Columns of a terminal that stay free, so that its `^C` does not begin a new line."""
LONG_FILE = 16 << 20
"""The least bytes of a file with a row of its own: smaller ones end before anyone reads it."""
_LONGEST_NAME, _SHORTEST_NAME = 40, 14
_LONGEST_BAR, _SHORTEST_BAR = 40, 5
_PERCENT, _SPEED, _TIME = 5, 9, 7
"""Columns of ` 100%`, `99.9 MB/s` and `59m 59s`."""
_PADDED = late.pattern(r"(?<![0-9a-zA-Z.])0+(?=[0-9])")
"""Zeros before a number, as in the names of shards."""
_STALLED_AFTER = 5.0


class ProgressRow(NamedTuple):
    """A row: a name, and how much of what it stands for is done. Sizes are bytes."""

    name: str
    done: int = 0
    size: int = 0
    speed: float | None = None
    """Bytes per second; `None` if it is not shown."""
    kind: str = "file"
    """`file`, `model`, `total` or `wait`; the last has a name only."""


class Piece(NamedTuple):
    """A piece of a row in one style."""

    text: str
    look: str = ""
    """`done`, `left`, `wait`, `total`, or nothing."""


Line = list[Piece]


def progress_rows(tally: Tally, speed: float | None, most: int) -> list[ProgressRow]:
    """Return the rows that show what is being done, the one for everything last.

    Args:
        tally: what is done.
        speed: of everything together, in bytes per second.
        most: rows at most.
    """
    with tally.lock:
        if not tally.models:
            return []
        several = len(tally.models) > 1
        waits: dict[str, int] = {}
        for holder in tally.holders.values():
            waits[holder] = waits.get(holder, 0) + 1
        active = {
            model: [file for file in share.files() if (model, file.name) not in tally.holders]
            for model, share in tally.models.items()
            if share.is_active
        }
        # If all have begun at once, these are the ones that move now.
        moving = {model: files for model, files in active.items() if files or len(active) == 1}
        rows: list[ProgressRow] = []
        # A single file needs no row next to the total.
        alone = not several and sum(len(share.sizes) for share in tally.models.values()) == 1
        for model, files in moving.items():
            if several:
                share, pace = tally.models[model], speed if len(moving) == 1 else None
                rows.append(ProgressRow(printable(model), share.done, share.size, pace, "model"))
            rows += (
                ProgressRow(f"  {printable(file.name)}", file.done, file.size)
                for file in files
                if file.size >= LONG_FILE and not alone
            )
        for holder, count in waits.items():
            more = f", for {count} files" if count > 1 else ""
            rows.append(ProgressRow(printable(f"waiting for {holder}{more}"), kind="wait"))
        total = tally.models_text if several else printable(next(iter(tally.models)))
        pace = speed if speed or tally.is_midway else None
        last = ProgressRow(total, tally.done, tally.total, pace, "total")
    return [*rows[: max(0, most - 1)], last]


def lines_of(rows: Sequence[ProgressRow], width: int, glyphs: Glyphs) -> list[Line]:
    """Return the lines of rows, none of which occupies more than so many columns."""
    bars = [row for row in rows if row.kind != "wait"]
    paced = any(row.speed is not None or row.kind == "total" for row in bars)
    amounts = max((len(_amounts(row.size, row.size)) for row in bars), default=0)
    longest = max((cells(row.name) for row in bars), default=0)
    name = min(longest, _SHORTEST_NAME, max(1, width - _PERCENT))
    longest = min(longest, _LONGEST_NAME, max(_SHORTEST_NAME, width * 2 // 5))
    room = width - name - _PERCENT
    shown: dict[str, int] = {}
    # The most wanted first. Columns keep their widths, whatever the figures are.
    for column, wanted in (
        ("left", _TIME if paced else 0),
        ("size", amounts),
        ("bar", _SHORTEST_BAR),
        ("speed", _SPEED if paced else 0),
    ):
        if wanted and wanted < room:
            shown[column] = wanted
            room -= wanted + 1
    if "bar" in shown:
        better = min(room, max(0, width // 8 - _SHORTEST_BAR))
        more = min(room - better, max(0, longest - name))
        shown["bar"] = min(_LONGEST_BAR, shown["bar"] + room - more)
        name += more
    else:
        name += min(room, max(0, longest - name))
    lines: list[Line] = []
    for row in rows:
        if row.kind == "wait":
            lines.append([Piece(short_name(row.name, width, glyphs), "wait")])
            continue
        look = "total" if row.kind == "total" else ""
        text = short_name(row.name, name, glyphs)
        line = [Piece(text + " " * (name - cells(text)), look)]
        share = row.done / row.size if row.size else 1.0
        # Never 100 before the end.
        line.append(Piece(f" {int(share * 100):>3}%", look))
        if "bar" in shown:
            filled = int(share * shown["bar"])
            line.append(Piece(" "))
            line.append(Piece(glyphs.done * filled, "done"))
            line.append(Piece(glyphs.left * (shown["bar"] - filled), "left"))
        figures = {
            "size": _amounts(row.done, row.size),
            "speed": _speed(row),
            "left": _time_left(row),
        }
        for column, text in figures.items():
            if column in shown:
                line.append(Piece(f" {text:>{shown[column]}}", look))
        lines.append(_without_blanks_at_end(line))
    return lines


def _without_blanks_at_end(line: Line) -> Line:
    while line and not line[-1].text.rstrip():
        line.pop()
    if line:
        line[-1] = line[-1]._replace(text=line[-1].text.rstrip())
    return line


def text_of(line: Line) -> str:
    """Return a line without its looks."""
    return "".join(piece.text for piece in line)


def cells(text: str) -> int:
    """Return how many columns a string occupies."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def short_name(name: str, width: int, glyphs: Glyphs) -> str:
    """Return a name that occupies so many columns at most, shortened in its middle.

    An owner or a folder before it is left out first: what tells names apart follows it. Of a path
    from the root both ends are kept.
    """
    if cells(name) <= width:
        return name
    indent = name[: len(name) - len(name.lstrip(" "))]
    owner, slash, last = name[len(indent) :].rpartition("/")
    last = name if ": " in name or owner[:1] in ("", "/") else indent + last
    marked = f"{indent}{glyphs.cut}{slash}{last.lstrip(' ')}"
    if last != name and cells(marked) <= width:
        return marked
    if cells(last) > width:
        last = _PADDED.sub("", last)
    if cells(last) <= width:
        return last
    if width <= len(glyphs.cut):
        return glyphs.cut[:width]
    room = width - cells(glyphs.cut)
    head = fitting(last, room - room // 4)
    tail = fitting(last[::-1], room - cells(head))[::-1]
    return head + glyphs.cut + tail


def fitting(text: str, width: int) -> str:
    """Return as much of the beginning of a string as so many columns hold."""
    if text.isascii():
        return text[: max(0, width)]
    end = used = 0
    for character in text:
        used += cells(character)
        if used > width:
            break
        end += 1
    return text[:end]


def _amounts(done: int, size: int) -> str:
    """Return two sizes in the unit of the larger one: `2.1/4.4 GB`."""
    unit = size_text(size).partition(" ")[2]
    scale = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    # The first is never longer than the second, so that the column keeps its width.
    digits = 1 if size / scale < 99.95 and unit != "B" else 0
    part = digits or int(done / scale < 9.95 and unit != "B")
    part = part if done < size else digits
    return f"{done / scale:.{part}f}/{size / scale:.{digits}f} {unit}"


def _speed(row: ProgressRow) -> str:
    return f"{size_text(int(row.speed))}/s" if row.speed is not None and row.speed >= 1 else ""


def _time_left(row: ProgressRow) -> str:
    if row.speed is None or row.done >= row.size:
        return ""
    if row.speed >= 1:
        return time_text((row.size - row.done) / row.speed)
    # Without a single byte yet, it may be busy with something else.
    return "stalled" if row.done else ""


def time_text(seconds: float) -> str:
    """Return a time in two units at most: `3m 20s`, `1h 05m`, `2d 3h`."""
    whole = int(min(seconds, 99 * 86400))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


class Pace:
    """How fast the work of a tally is, judged anew now and then."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._rate = Rate()
        self._begun: float | None = None

    def at(self, now: float) -> float | None:
        """Return the speed in bytes per second; `None` if it is too early to tell."""
        speed = self._rate.add(now, self._tally.done)
        self._begun = now if self._begun is None else self._begun
        early = now - self._begun < (0.5 if speed else _STALLED_AFTER)
        return None if early else speed
