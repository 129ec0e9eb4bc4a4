"""Colors and lines that several views share."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmcache.cache.state import State
from vlmcache.cache.usage import Process
from vlmcache.show.prose import Prose
from vlmcache.show.text import printable

STATE_COLORS = {
    "cached": "green",
    "partial": "yellow",
    "missing": "dim",
    "damaged": "bold red",
    "away": "magenta",
}
SEVERITY_COLORS = {"error": "red", "warning": "yellow", "info": "dim"}


def state_text(state: State, progress: float | None) -> Text:
    """Return a state to show, with the percentage of what is partial."""
    percent = f" {int(progress * 100)}%" if state == "partial" and progress and progress < 1 else ""
    return Text(f"{state}{percent}", STATE_COLORS[state])


def plain_table(*columns: str, numbers: Sequence[str] = (), folded: Sequence[str] = ()) -> Table:
    """Return a table without lines.

    Args:
        columns: the headings.
        numbers: headings of cells that are aligned to the right.
        folded: headings of cells that are folded if they are long; others are shortened.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        if name in folded:
            table.add_column(name, overflow="fold", min_width=8)
        else:
            table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    return table


def show_cache(out: Console, path: str) -> None:
    """Print the first line of every plan: the cache that it changes, which a `.env` may choose."""
    out.print(Text(f"Cache {printable(path)}", "dim"), soft_wrap=True)


def process_text(process: Process) -> str:
    """Return a process as `PID 123 of ada (open): python serve.py`."""
    return f"{process.name} ({process.how}): {printable(process.command)}"


def hanging(text: Text, indent: int) -> Prose:
    """Return lines with an indent."""
    return Prose(text, indent)


def labelled(
    label: str, text: str | Text, style: str = "", *, width: int = 6, label_style: str = "dim"
) -> Prose:
    """Return a line after a label; a long line continues below itself, not below the label."""
    content = Text(text, style) if isinstance(text, str) else text
    return Prose(content, max(width, len(label)) + 2, Text(label, label_style))
