"""`init` for people."""

from __future__ import annotations

from rich.text import Text

from vlmcache.commands.init.values import InitReport
from vlmcache.show.console import console, print_line
from vlmcache.show.text import printable
from vlmcache.units import command, counted


def show(value: InitReport, *, verbose: bool = False) -> None:
    """Print what was written, and what it says."""
    out = console()
    path = printable(value.path)
    verb = "Written" if value.written else "To write"
    what = "the cache holds" if value.from_cache else "to start from: the cache holds none"
    print_line(out, Text(f"{verb}: {path}, {counted(len(value.models), 'model')} {what}"))
    if verbose or not value.written:
        print_line(out, Text())
        for line in value.content.splitlines():
            # As it would be in the file, so that it can be copied.
            out.print(Text(printable(line)), soft_wrap=True)
        print_line(out, Text())
    else:
        width = max((len(model.key) for model in value.models), default=0)
        for model in value.models:
            variant = f":{model.variant}" if model.variant else ""
            revision = f"@{model.revision}" if model.revision else ""
            print_line(out, Text(f"  {model.key:{width}}  {model.repo}{revision}{variant}"))
    if value.left_out:
        count = counted(len(value.left_out), "model")
        print_line(out, Text(f"Left out: {count} of which the cache holds only a part"))
    if value.active is not None:
        note = f"In this folder {printable(value.active)} is read instead of that file"
        print_line(out, Text(note, "yellow"))
    options = ["--config", value.path] if value.named else []
    if value.written:
        print_line(out, Text(f"Next: {command('status', *options)}"))
