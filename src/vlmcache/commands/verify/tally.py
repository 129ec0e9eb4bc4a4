"""What a verification has found so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vlmcache.cache.hashing import Judged
from vlmcache.cache.state import Finding
from vlmcache.commands.verify.values import Damage, Missing, Unverifiable, Verification


class Subject(NamedTuple):
    """A place whose content is to be compared with a hash."""

    repo: str
    path: str
    blob: str | None
    expected: str
    files: tuple[str, ...]


class Tally:
    """What is found, as it is found."""

    def __init__(self) -> None:
        self.checked = 0
        self.bytes = 0
        self.remembered = 0
        self.remembered_bytes = 0
        self.damaged: dict[str, Damage] = {}
        self.good: set[str] = set()
        self.fresh: set[str] = set()
        """Paths that were hashed in this run."""
        self.missing: list[Missing] = []
        self.unverifiable: list[Unverifiable] = []
        self.findings: list[Finding] = []

    def add(self, group: Iterable[Subject], judged: Judged) -> None:
        """Take note of what hashing says about places that have the same content."""
        if judged.actual is not None and judged.identity is not None:
            self.checked += 1
            self.bytes += judged.identity.size
        for subject in group:
            self.fresh.add(subject.path)
            if judged.good:
                self.good.add(subject.path)
            elif judged.actual is None:
                self.unverifiable.append(
                    Unverifiable(
                        subject.repo,
                        subject.path,
                        subject.blob,
                        judged.problem or "",
                        subject.files,
                    )
                )
            else:
                name = ", ".join(subject.files) or "a blob that nothing links to"
                self.damaged[subject.path] = Damage(
                    subject.repo,
                    subject.path,
                    subject.blob,
                    subject.expected,
                    judged.actual,
                    "wrong-content",
                    f"{name} has other content than its hash says",
                    subject.files,
                )

    def verification(self, seconds: float) -> Verification:
        """Return all of it as the command's answer."""
        return Verification(
            self.checked,
            self.bytes,
            self.remembered,
            self.remembered_bytes,
            seconds,
            tuple(sorted(self.damaged.values(), key=lambda damage: (damage.repo, damage.path))),
            tuple(self.missing),
            tuple(self.unverifiable),
            tuple(self.findings),
        )
