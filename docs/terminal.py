"""A real terminal for documentation: programs run in it, and what it shows becomes a picture."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import select
import struct
import subprocess
import termios
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import pyte

PATIENCE = 120.0
"""Seconds to wait for a command to end."""

CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 19, 16
FONTS = "ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
BACKGROUND, FOREGROUND = "#15191f", "#d6dbe3"
COLOURS = {
    "black": "#15191f",
    "red": "#ff7b72",
    "green": "#6fcf8b",
    "brown": "#e3b341",
    "blue": "#79b8ff",
    "magenta": "#d2a8ff",
    "cyan": "#76d7e0",
    "white": "#d6dbe3",
    "brightblack": "#8b949e",
    "brightred": "#ffa198",
    "brightgreen": "#8ae6a5",
    "brightbrown": "#f2cc60",
    "brightblue": "#a5d0ff",
    "brightmagenta": "#e2c5ff",
    "brightcyan": "#a5ecf2",
    "brightwhite": "#ffffff",
}
"""Readable on the picture's own dark ground, and so on a light page as on a dark one."""

UNITS = "[kMGT]?B(/s)?|s|min|hours?|days?|months?"
SVG = "{http://www.w3.org/2000/svg}"


class Run(NamedTuple):
    """Neighbouring cells of one line that look alike."""

    column: int
    text: str
    colour: str
    bold: bool


class Frame(NamedTuple):
    """What a screen showed from a time on, in seconds of the clock."""

    time: float
    lines: list[list[Run]]


class Terminal:
    """A pseudo-terminal of a fixed size, and the person before it.

    `renames` says what is shown in place of what: the temporary home, say, as `/home/you`.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        folder: Path,
        columns: int,
        renames: Mapping[str, str],
        lines: int = 40,
    ) -> None:
        self.environment = {**environment, "TERM": "xterm-256color"}
        self.folder = folder
        self.size = struct.pack("HHHH", lines, columns, 0, 0)
        self.screen = pyte.Screen(columns, lines)
        self.renames = {old.encode(): new.encode() for old, new in renames.items()}
        self.frames: list[Frame] = []
        """What the screen showed, and for how long, in the order of time."""
        self._stream = pyte.ByteStream(self.screen)
        self._waiting = b""

    def run(
        self,
        command: str,
        *,
        typed: str | None = None,
        until: Callable[[str], bool] | None = None,
        keys: str = "",
        shot: Callable[[], None] | None = None,
        then: Sequence[tuple[Callable[[str], bool], str]] = (),
    ) -> None:
        """Type a command and wait for its end; `typed` is shown in its place if given.

        Where the screen's text satisfies `until`, `shot` is called and `keys` are typed; after that
        each condition of `then` is waited for, and its keys are typed. What the
        command writes is shown with the names of `renames`, and is typed with them too.
        """
        self._show(f"\x1b[38;5;8m$\x1b[0m \x1b[1m{typed or command}\x1b[0m\r\n".encode())
        for real, shown in self.renames.items():
            command = command.replace(shown.decode(), real.decode())
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, self.size)
        # The leader of a session takes the first terminal that it opens for its own.
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec <"$0" >"$0" 2>&1; exec {command}', os.ttyname(theirs)],
            env=self.environment,
            cwd=self.folder,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        steps = iter([*([(until, keys)] if until is not None else []), *then])
        step = next(steps, None)
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.05)[0]:
                self._show(os.read(ours, 1 << 16))
                self._record()
            if step is not None and step[0](self.text):
                if shot is not None:
                    shot()
                os.write(ours, step[1].encode())
                step = next(steps, None)
            if time.monotonic() > deadline:
                process.kill()
                raise TimeoutError(f"{command} shows after {PATIENCE} s:\n{self.text}")
        os.close(theirs)
        os.close(ours)
        self._stream.feed(self._waiting)
        self._waiting = b""
        self._record()

    def _record(self) -> None:
        lines = [self._runs(number) for number in range(self.screen.lines)]
        if not self.frames or self.frames[-1].lines != lines:
            self.frames.append(Frame(time.monotonic(), lines))

    def _show(self, output: bytes) -> None:
        self._waiting += output
        for old, new in self.renames.items():
            self._waiting = self._waiting.replace(old, new)
        # What may be the beginning of something to rename waits for the rest of it.
        held = max(
            (n for old in self.renames for n in range(len(old)) if self._waiting.endswith(old[:n])),
            default=0,
        )
        ready = self._waiting[: len(self._waiting) - held]
        self._waiting = self._waiting[len(ready) :]
        self._stream.feed(ready)

    @property
    def text(self) -> str:
        """What the screen shows, without the empty rest."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def svg(self, title: str) -> str:
        """Draw the screen as it is now."""
        lines = [self._runs(number) for number in range(len(self.text.split("\n")))]
        drawn = [part for number, runs in enumerate(lines) for part in _drawn(number, runs)]
        return self._picture(title, len(lines), drawn)

    def animated(self, title: str, shortest: float, longest: float) -> str:
        """Draw all frames, one after the other and again from the first.

        Each stays as long as it did, but `shortest` to `longest` seconds; what would be shorter is
        left out. Who wants no motion sees the last one. Lines that stay the same are drawn once.
        """
        kept: list[tuple[list[list[Run]], float]] = []
        since = self.frames[0].time
        for frame, after in itertools.pairwise([*self.frames, Frame(time.monotonic() + 99, [])]):
            if after.time - since >= shortest:
                kept.append((frame.lines, min(after.time - since, longest)))
                since = after.time
        total = sum(seconds for _, seconds in kept)
        ends = list(itertools.accumulate(seconds for _, seconds in kept))
        starts = [0.0, *ends[:-1]]
        height = max(number + 1 for lines, _ in kept for number, line in enumerate(lines) if line)
        spans: dict[tuple[float, float], list[str]] = {}
        for number in range(height):
            at = 0
            for runs, same in itertools.groupby(lines[number] for lines, _ in kept):
                first, at = at, at + len(list(same))
                if runs:
                    span = (starts[first], ends[at - 1])
                    spans.setdefault(span, []).extend(_drawn(number, runs))
        style = ["g g{opacity:0}g .z{opacity:1}", "@media(prefers-reduced-motion:no-preference){"]
        drawn = []
        for name, ((start, end), parts) in enumerate(sorted(spans.items())):
            ends_last = end >= total
            if start or not ends_last:
                points = [("0%", not start), (f"{100 * start / total:.2f}%", True)][not start :]
                points += [] if ends_last else [(f"{100 * end / total:.2f}%", False)]
                steps = "".join(f"{at}{{opacity:{shown:d}}}" for at, shown in points)
                last_step = f"to{{opacity:{ends_last:d}}}"
                style.append(f"@keyframes k{name}{{{steps}{last_step}}}")
                style.append(f".k{name}{{animation:k{name} {total:.1f}s step-end infinite}}")
            kind = f"k{name} z" if ends_last else f"k{name}"
            drawn += [f'<g class="{kind}">', *parts, "</g>"]
        return self._picture(title, height, [f"<style>{''.join(style)}}}</style>", *drawn])

    def _picture(self, title: str, lines: int, drawn: list[str]) -> str:
        width = self.screen.columns * CELL_WIDTH + 2 * MARGIN
        height = lines * CELL_HEIGHT + 2 * MARGIN
        size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONTS}" font-size="14">',
            f"<title>{escape(title)}</title>",
            f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
            f'<g fill="{FOREGROUND}" xml:space="preserve">',
        ]
        return "\n".join([*head, *drawn, "</g>", "</svg>", ""])

    def _runs(self, number: int) -> list[Run]:
        """Return the words of a line with their looks; spaces between them are not drawn."""
        runs: list[Run] = []
        for column in range(self.screen.columns):
            cell = self.screen.buffer[number][column]
            name = cell.bg if cell.reverse else cell.fg
            colour = COLOURS.get(name, FOREGROUND if name == "default" else f"#{name}")
            if cell.data == " ":
                continue
            last = runs[-1] if runs else None
            if last is not None and (last.colour, last.bold) == (colour, cell.bold):
                gap = column - last.column - len(last.text)
                if gap <= 1:
                    runs[-1] = last._replace(text=last.text + " " * gap + cell.data)
                    continue
            runs.append(Run(column, cell.data, colour, cell.bold))
        return runs


def _drawn(number: int, runs: list[Run]) -> Iterator[str]:
    y = MARGIN + number * CELL_HEIGHT + 14
    for run in runs:
        x = MARGIN + run.column * CELL_WIDTH
        look = "" if run.colour == FOREGROUND else f' fill="{run.colour}"'
        look += ' font-weight="bold"' if run.bold else ""
        # The length keeps columns in line whatever font the reader has.
        look += f' textLength="{len(run.text) * CELL_WIDTH:g}"'
        yield f'<text x="{x:g}" y="{y}"{look}>{escape(run.text)}</text>'


def text_of(svg: str) -> str:
    """Return the text that a picture shows, line by line."""
    lines: dict[int, str] = {}
    for element in ET.fromstring(svg).iter(f"{SVG}text"):
        number = round((float(element.attrib["y"]) - MARGIN - 14) / CELL_HEIGHT)
        column = round((float(element.attrib["x"]) - MARGIN) / CELL_WIDTH)
        lines[number] = lines.get(number, "").ljust(column) + (element.text or "")
    return "\n".join(lines.get(number, "") for number in range(max(lines) + 1))


def words_of(text: str) -> str:
    """Return a text without what differs from run to run.

    Numbers with their units, hashes, ids of removals and the filesystem's name become #, bars lose
    their length, space between columns its width. Left out is what is of the machine: how many
    processes could not be checked, and what other programs write to the disk.
    """
    text = re.sub(r"^Note .* could not be checked, .*\n", "", text, flags=re.MULTILINE)
    # What other programs write meanwhile is chance.
    text = re.sub(r"^Note +the disk has .*(?:\n(?!\$ ).+)*\n?", "", text, flags=re.MULTILINE)
    # The end of a line can be within a hash.
    text = re.sub(r"\b[0-9a-f](?:\n?[0-9a-f]){39,63}\b", "#", text)
    text = re.sub(r"\b[0-9a-f]{8,64}\b", "#", text)
    text = re.sub(rf"(?<![\w.-])\d[\d.,:]*( ?({UNITS})\b)?", "#", text)
    text = re.sub(r"(\((?:default|HF_HOME), )\w+", r"\1#", text)
    text = re.sub(r"[━╸╺█▏▎▍▌▋▊▉]+( [━╸╺]+)?", "━", text)
    return "\n".join(re.sub(r" +", " ", line).strip() for line in text.split("\n")).strip()
