"""Commands of vlmcache as they are to be typed: names from disk and network are quoted."""

from __future__ import annotations

import shlex


def command(name: str, *words: str) -> str:
    """Return a command line that a shell takes as it is meant, whatever the words hold."""
    return shlex.join(["vlmcache", name, *words])
