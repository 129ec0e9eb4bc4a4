"""Counts of the tier full, which stand in docs between two marks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock

DOCS = Path(__file__).parents[2] / "docs"
END = "<!-- end of counts -->\n"


def write_counts(page: str, name: str, text: str) -> None:
    """Put counts in the place of those of that name in a page of docs.

    Several processes may do so at once.
    """
    path, begin = DOCS / page, f"<!-- counts of {name} -->\n"
    with FileLock(Path(tempfile.gettempdir(), "vlmcache-counts.lock")):
        content = path.read_text(encoding="utf-8")
        before, _, rest = content.partition(begin)
        _, _, after = rest.partition(END)
        assert rest, f"{path} has no place for the counts of {name}"
        path.write_text(before + begin + text + END + after, encoding="utf-8")
