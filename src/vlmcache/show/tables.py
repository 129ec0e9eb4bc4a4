"""Colors and lines that several views share."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmcache.cache.usage import Process
from vlmcache.show.text import printable

STATE_COLOURS = {
    "cached": "green",
    "partial": "yellow",
    "missing": "dim",
    "damaged": "bold red",
    "away": "magenta",
}
SEVERITY_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}


def show_cache(out: Console, path: str) -> None:
    """Print the first line of every plan: the cache that it changes, which a `.env` may choose."""
    out.print(Text(f"Cache {printable(path)}", "dim"), soft_wrap=True)


def process_text(process: Process) -> str:
    """Return a process as `PID 123 (open): python serve.py`."""
    return f"PID {process.pid} ({process.how}): {printable(process.command)}"


def hanging(text: Text, indent: int) -> Table:
    """Return a text whose every line begins so many columns in, the folded ones included."""
    grid = Table.grid()
    grid.add_column(width=indent)
    grid.add_column(overflow="fold")
    grid.add_row("", text)
    return grid


def labelled(
    label: str, text: str | Text, style: str = "", *, width: int = 6, label_style: str = "dim"
) -> Table:
    """Return a line with a label before it; long text goes on below itself, not below the label."""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=width)
    line.add_column(overflow="fold")
    content = Text(text, style) if isinstance(text, str) else text
    line.add_row(Text(label, label_style), content)
    return line
