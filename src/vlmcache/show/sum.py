"""Bytes that are there, over all files of a repo."""

from __future__ import annotations

from collections.abc import Mapping


class Sum:
    """Bytes that are there, over all files of a repo."""

    def __init__(self) -> None:
        self.positions: dict[str, int] = {}
        self.total = 0
        self.have = 0

    def begin(self, sizes: Mapping[str, int], have: int) -> None:
        """Begin anew: file name -> bytes, and the bytes already there."""
        self.positions = {}
        self.total = sum(sizes.values())
        self.have = have

    @property
    def done(self) -> int:
        """The bytes that are there now."""
        # Until its transfer begins, a file's earlier bytes are known only in sum.
        return max(self.have, sum(self.positions.values()))
