"""The plot of a load test: an SVG written here, or a PNG drawn by matplotlib.

The colors are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which color-blind people
can distinguish too.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import msgspec

from vlmcache.change import place
from vlmcache.errors import MissingPackageError, UsageError
from vlmcache.installing import install_extra
from vlmcache.load import words
from vlmcache.load.judging import median_phases
from vlmcache.load.report import PHASES, LoadReport, Result
from vlmcache.load.saved import check_targets
from vlmcache.show.text import printable

_KINDS = (".png", ".svg")
COLORS = {
    "start": "#F0E442",
    "import": "#0072B2",
    "device": "#000000",
    "build": "#E69F00",
    "read": "#009E73",
    "read_to_device": "#56B4E9",
    "to_device": "#D55E00",
    "quantise": "#CC79A7",
}
"""Phase -> color."""

_WIDTH, _MARGIN, _LABEL, _TOTAL = 860, 24, 52, 190
"""Widths: of the picture, its margin, the kinds of loads, and the times after the bars."""
_ROW, _BAR, _HEAD = 30, 20, 30
_LETTER = 6.6
"""About the width of a letter of twelve pixels."""
_MOST_LETTERS, _MOST_SMALL = 96, 140
"""The most letters of twelve and of eleven pixels that fit in a line."""
_INK, _DIM, _GRID = "#222222", "#5f5f5f", "#dddddd"


class Bar(NamedTuple):
    """One kind of load of one result. Seconds."""

    kind: str
    phases: dict[str, float]
    total: str
    limit: float | None
    """The least that imports, disk and copy allow, if that applies to this kind."""

    @property
    def seconds(self) -> float:
        """The length of the bar."""
        return sum(self.phases.values())


def check_plot(path: str) -> None:
    """Make sure that a plot can be drawn and written, before minutes of measuring.

    Raises:
        UsageError: the file's name does not end in .png or .svg, or it cannot be written.
        MissingPackageError: a PNG needs matplotlib, which is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _KINDS:
        raise UsageError(f"{path}: a plot must be a {' or '.join(_KINDS)} file", "--plot loads.svg")
    check_targets(path)
    if suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError(
            "a .png plot needs matplotlib; an .svg needs nothing", install_extra("plot")
        )


def write_plot(path: str, report: LoadReport) -> LoadReport:
    """Draw the median phases of each result to a file; return the report, which names the file.

    Raises:
        OSError: the file cannot be written.
    """
    path = os.path.abspath(path)
    content = _png(report) if path.lower().endswith(".png") else svg(report).encode()
    place.write_file(path, content)
    return msgspec.structs.replace(report, written=report.written | {"plot": path})


def _bars(result: Result) -> list[Bar]:
    measured = "cold" if result.cold is not None else "warm"
    bars = []
    for kind in words.TEMPERATURES:
        phases, spread = median_phases(result, kind), getattr(result, kind)
        if phases and spread is not None:
            total = words.exact_seconds(spread.median)
            if spread.count > 1:
                total += f"  ({spread.min:.2f} to {spread.max:.2f})"
            limit = result.limit_seconds if kind == measured else None
            bars.append(Bar(kind, phases, total, limit))
    return bars


def _groups(report: LoadReport) -> list[tuple[str, list[Bar]]]:
    """Return each result that has a valid trial: its name, and its bars."""
    return [
        (f"{result.model} {words.precision_text(result)}, {result.loader}, {result.device}", bars)
        for result in report.results
        if (bars := _bars(result))
    ]


def _longest(groups: Sequence[tuple[str, list[Bar]]]) -> float:
    return max([0.01, *(max(bar.seconds, bar.limit or 0.0) for _, bars in groups for bar in bars)])


def _step(longest: float) -> float:
    """Return a round number of seconds of which five to eight make up the longest bar."""
    power = 10.0 ** math.floor(math.log10(longest / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if longest / (power * factor) <= 8)


_TITLE = "How long models take to load"
_AXIS = "seconds from the start of the process until every weight is on the device (medians)"
_LIMIT = "limit: the longest of imports, disk and copy"


def _ending(report: LoadReport) -> list[str]:
    lines = list(words.machine_lines(report))
    if not report.complete:
        lines.insert(0, "Not complete: it was ended before all trials were made.")
    return lines


def svg(report: LoadReport) -> str:
    """Return the plot as an SVG document."""
    return "\n".join(_Svg(report).document()) + "\n"


class _Svg:
    """Writes the elements of the plot from top to bottom."""

    def __init__(self, report: LoadReport) -> None:
        self._report = report
        self._groups = _groups(report)
        self._longest = _longest(self._groups)
        self._left = _MARGIN + _LABEL
        self._room = _WIDTH - self._left - _TOTAL - _MARGIN
        self._y = 0.0
        self._parts: list[str] = []

    def document(self) -> Iterator[str]:
        """Yield the lines of the document."""
        self._draw()
        height = round(self._y + _MARGIN)
        described = "; ".join(
            f"{name}: {bar.kind} {bar.total}" for name, bars in self._groups for bar in bars
        )
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
            f' viewBox="0 0 {_WIDTH} {height}" role="img" font-size="12"'
            ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
        )
        yield f"<title>{_safe(_TITLE)}</title>"
        yield f"<desc>{_safe(described)}</desc>"
        yield f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
        yield from self._parts
        yield "</svg>"

    def _draw(self) -> None:
        self._y = _MARGIN + 14
        self._text(_MARGIN, _TITLE, size=18, weight="bold")
        self._y += 22
        self._legend()
        top = self._y
        if not self._groups:
            self._y += _ROW
            self._text(_MARGIN, "no valid trial")
        grid = len(self._parts)
        for name, bars in self._groups:
            self._y += _HEAD
            self._text(_MARGIN, _middle(name, _MOST_LETTERS), weight="bold")
            self._y += 8
            for bar in bars:
                self._bar(bar)
        if self._groups:
            self._axis(top, grid)
        for line in _ending(self._report):
            self._y += 18
            self._text(_MARGIN, _middle(line, _MOST_SMALL), fill=_DIM, size=11)

    def _legend(self) -> None:
        used = {phase for _, bars in self._groups for bar in bars for phase in bar.phases}
        x: float = _MARGIN
        has_limit = any(bar.limit is not None for _, bars in self._groups for bar in bars)
        entries = [(COLORS[phase], PHASES[phase]) for phase in PHASES if phase in used]
        for color, text in [*entries, *([("", _LIMIT)] if has_limit else [])]:
            width = 26 + _LETTER * len(text)
            if x > _MARGIN and x + width > _WIDTH - _MARGIN:
                x, self._y = _MARGIN, self._y + 20
            if color:
                self._add(
                    f'<rect x="{x:g}" y="{self._y - 10:g}" width="12" height="12" fill="{color}"/>'
                )
            else:
                self._limit(x + 6, self._y - 12, 16)
            self._text(x + 18, text)
            x += width
        self._y += 6

    def _bar(self, bar: Bar) -> None:
        self._y += _ROW
        above = self._y - _BAR + 2
        self._text(self._left - 10, bar.kind, anchor="end", base=-3)
        x: float = self._left
        for phase, seconds in bar.phases.items():
            width = self._scaled(seconds)
            label = f"{PHASES[phase]}: {words.exact_seconds(seconds)}"
            self._add(
                f'<rect x="{x:.2f}" y="{above:g}" width="{width:.2f}" height="{_BAR}"'
                f' fill="{COLORS[phase]}" stroke="#ffffff" stroke-width="0.5">'
                f"<title>{_safe(label)}</title></rect>"
            )
            x += width
        end = x
        if bar.limit is not None:
            at = self._left + self._scaled(bar.limit)
            self._limit(at, above - 4, _BAR + 8)
            end = max(end, at)
        self._text(end + 8, bar.total, base=-3)

    def _axis(self, top: float, grid: int) -> None:
        step, number = _step(self._longest), 0
        self._y += 8
        bottom, lines = self._y, []
        while step * number <= self._longest * 1.0001:
            x = self._left + self._scaled(step * number)
            lines.append(
                f'<line x1="{x:.2f}" y1="{top + _HEAD + 8:g}" x2="{x:.2f}" y2="{bottom:g}"'
                f' stroke="{_GRID}"/>'
            )
            self._text(x, f"{step * number:g} s", anchor="middle", fill=_DIM, base=16)
            number += 1
        # Below the bars.
        self._parts[grid:grid] = lines
        self._y += 34
        self._text(self._left, _AXIS, fill=_DIM)
        self._y += 8

    def _limit(self, x: float, y: float, height: float) -> None:
        """Draw the mark of a limit, which is visible on every color."""
        ends = f'x1="{x:.2f}" y1="{y:g}" x2="{x:.2f}" y2="{y + height:g}"'
        self._add(f'<line {ends} stroke="#ffffff" stroke-width="5"/>')
        self._add(f'<line {ends} stroke="{_INK}" stroke-width="2" stroke-dasharray="4 2"/>')

    def _scaled(self, seconds: float) -> float:
        return self._room * seconds / self._longest

    def _text(
        self,
        x: float,
        text: str,
        *,
        size: int = 12,
        weight: str = "normal",
        anchor: str = "start",
        fill: str = _INK,
        base: float = 0,
    ) -> None:
        self._add(
            f'<text x="{x:.2f}" y="{self._y + base:g}" font-size="{size}" font-weight="{weight}"'
            f' text-anchor="{anchor}" fill="{fill}" xml:space="preserve">{_safe(text)}</text>'
        )

    def _add(self, element: str) -> None:
        self._parts.append(element)


def _safe(text: str) -> str:
    """Return a string for XML, which has no escape for control characters."""
    return escape(printable(text))


def _middle(text: str, most: int) -> str:
    """Return a string shortened in its middle."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _png(report: LoadReport) -> bytes:
    """Return the plot as a PNG."""
    from matplotlib.figure import Figure

    groups = _groups(report)
    rows = [(name, bar) for name, bars in groups for bar in bars]
    ending = _ending(report)
    # matplotlib reads text between two dollar signs as a formula.
    folded = [part for line in ending for part in textwrap.wrap(printable(line), 80)]
    safe = [line.replace("$", "\\$") for line in folded]
    figure = Figure(figsize=(9, 2.2 + 0.5 * len(rows) + 0.2 * len(folded)), layout="constrained")
    axes = figure.add_subplot()
    longest = _longest(groups)
    for number, (_, bar) in enumerate(rows):
        left = 0.0
        for phase, seconds in bar.phases.items():
            axes.barh(number, seconds, left=left, height=0.6, color=COLORS[phase])
            left += seconds
        if bar.limit is not None:
            axes.vlines(bar.limit, number - 0.42, number + 0.42, _INK, "--", linewidth=2)
            left = max(left, bar.limit)
        axes.text(left + longest / 80, number, bar.total, va="center", fontsize=9)
    names = [_middle(f"{printable(name)}, {bar.kind}", 46) for name, bar in rows]
    axes.set_yticks(range(len(rows)), [name.replace("$", "\\$") for name in names])
    axes.set_xlim(0, longest * 1.5)
    axes.invert_yaxis()
    axes.set_title(_TITLE, loc="left", fontweight="bold")
    axes.set_xlabel("\n".join([_AXIS, "", *safe]), fontsize=8, loc="left")
    for phase, name in PHASES.items():
        if any(phase in bar.phases for _, bar in rows):
            axes.bar(0, 0, color=COLORS[phase], label=name)
    if any(bar.limit is not None for _, bar in rows):
        axes.plot([], [], "--", color=_INK, label=_LIMIT)
    if rows:
        figure.legend(loc="outside upper left", fontsize="small", ncols=4, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
