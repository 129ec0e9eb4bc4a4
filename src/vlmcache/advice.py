"""Commands of vlmcache as they are to be typed: names from disk and network are quoted."""

from __future__ import annotations

import shlex


def command(name: str, *words: str) -> str:
    """Return a command line that a shell takes as it is meant, whatever the words hold."""
    return shlex.join(["vlmcache", name, *words])


def of_other_type(kind: str, repo_id: str) -> str:
    """Return the command that fetches a dataset or a space anew, which is not vlmcache's."""
    return shlex.join(["hf", "download", "--repo-type", kind, "--force-download", repo_id])
