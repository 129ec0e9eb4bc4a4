"""What `serve` does and did, for people."""

from __future__ import annotations

from rich.text import Text

from vlmcache.commands.serve.values import ServeReport
from vlmcache.show.console import console
from vlmcache.units import counted, duration_text, size_text


def show(value: ServeReport) -> None:
    """Print what was served."""
    refused = f", {counted(value.refused, 'request')} refused" if value.refused else ""
    words = (
        f"Served {counted(value.files, 'file')} ({size_text(value.bytes_sent)}) in "
        f"{duration_text(value.seconds)} and {counted(value.requests, 'request')}{refused}."
    )
    console().print(Text(words), soft_wrap=True)
