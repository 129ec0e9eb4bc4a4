"""What `watch` says about programs, speeds and events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmcache.commands.watch.values import Event, Program
from vlmcache.show.text import printable
from vlmcache.units import counted, duration_text, size_text


def programs_text(programs: Sequence[Program]) -> str:
    """Return programs as `ada: serve.py (123), bob: python (124)`."""
    return ", ".join(
        (f"{printable(program.user)}: " if program.user is not None else "")
        + f"{printable(program.name)} ({program.pid})"
        for program in programs
    )


def rate_text(rate: float) -> str:
    """Return bytes per second in words."""
    return f"{size_text(round(rate))}/s"


def event_words(event: Event, *, verbose: bool) -> Iterator[str]:
    """Yield the words about an event that follow its kind and its repo."""
    if event.revision is not None:
        refs = f" ({', '.join(map(printable, event.refs))})" if event.refs else ""
        yield f"{printable(event.revision)[:12]}{refs}"
    elif len(event.files) == 1:
        yield printable(event.files[0])
    elif event.files:
        yield counted(len(event.files), "file")
    if event.kind == "low-space" and event.size is not None and event.expected_size is not None:
        yield f"{size_text(event.size)} free, less than {size_text(event.expected_size)}"
    elif event.size is not None and event.expected_size is not None:
        yield f"{size_text(event.size)} of {size_text(event.expected_size)}"
    elif event.size:
        yield size_text(event.size)
    if event.kind == "download-advanced" and event.speed is not None:
        yield rate_text(event.speed)
        if event.seconds_left is not None:
            yield f"{duration_text(event.seconds_left)} left"
    if event.detail is not None:
        yield printable(event.detail)
    if verbose and event.path is not None:
        yield printable(event.path)
