"""What `verify` is asked for and returns."""

from __future__ import annotations

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Plan, Receipt
from vlmcache.config import Session, options_in_force
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.report import Report

MAX_AGE = 7 * 86400.0
"""Seconds for which an unchanged file that was found good is not read again, by default."""


class DamageError(VlmcacheError):
    """Something in the cache is not what it should be."""

    code = "damaged"
    exit_code = ExitCode.DAMAGE


class RepairError(VlmcacheError):
    """Not everything could be repaired."""

    code = "not-repaired"
    exit_code = ExitCode.PARTLY


class VerifyOptions(msgspec.Struct, frozen=True):
    """How to verify, and to repair."""

    max_age: float = MAX_AGE
    """Seconds for which an unchanged file that was found good is not read again."""
    workers: int | None = None
    """Threads that hash; one per core if `None`."""
    dry_run: bool = False
    """Of a repair: only plan."""

    def command(self, session: Session, *words: str) -> str:
        """Return the command line that does the same again on the same cache."""
        again = (f"--max-age={self.max_age:g}s",) if self.max_age not in (0.0, MAX_AGE) else ()
        options = options_in_force(session.config, session.cache)
        return units.command("verify", *words, *again, *options)


class Damage(msgspec.Struct, frozen=True):
    """Something in the cache that is not what it should be."""

    repo: str
    path: str
    blob: str | None
    """Its name in `blobs/`; `None` for what is not a blob."""
    expected: str | None
    """The hash that the content should have, if that is known."""
    actual: str | None
    """The hash that it has, if it was read."""
    problem: str
    """`wrong-content`, `wrong-link`, `unreadable-header`, or the code of the scan's finding."""
    detail: str
    files: tuple[str, ...] = ()
    """The names of it in the repo."""
    base: str | None = None
    """The path of the content, if that is in a base and not in this cache."""


class Missing(msgspec.Struct, frozen=True):
    """A file that loading needs and that is not in the cache."""

    repo: str
    revision: str
    file: str
    """`*` if nothing of the revision is in the cache."""
    type: str = "model"

    @property
    def name(self) -> str:
        """What to type for the repo."""
        return layout.typed_name(self.type, self.repo)


class Unverifiable(msgspec.Struct, frozen=True):
    """Something that may be correct or damaged, and why that cannot be known."""

    repo: str | None
    path: str
    blob: str | None
    reason: str
    files: tuple[str, ...] = ()


class Verification(Report, frozen=True):
    """What `vlmcache verify` returns."""

    checked: int
    """Files that were read and hashed this time."""
    bytes: int
    """Their length."""
    remembered: int
    """Files found good not longer than `--max-age` ago, and unchanged since."""
    remembered_bytes: int
    """Their length."""
    seconds: float
    damaged: tuple[Damage, ...]
    missing: tuple[Missing, ...]
    unverifiable: tuple[Unverifiable, ...]
    findings: tuple[Finding, ...] = ()
    plan: Plan | None = None
    """Of `--repair`: what repairs the damage."""
    receipt: Receipt | None = None
    """Of `--repair`: what was done."""
    remaining: tuple[str, ...] = ()
    """Of `--repair`: paths that are still damaged, and names of files that are still missing."""
    cache: str = ""
    """The hub cache."""

    @property
    def ids(self) -> list[str]:
        """The repos in which something is damaged or missing."""
        bad: tuple[Damage | Missing, ...] = (*self.damaged, *self.missing)
        return list(dict.fromkeys(place.repo for place in bad))

    @property
    def in_one_line(self) -> str:
        """How much was read, and how much of that is bad, in one line."""
        read = f"{units.counted(self.checked, 'file')} read, {units.size_text(self.bytes)}"
        bad = len(self.damaged) + len(self.missing)
        return f"{read}: {f'{bad} damaged or missing' if bad else 'all good'}"


class RepairReport(Verification, frozen=True):
    """What `vlmcache verify --repair` returns: what was found, and what became of it."""

    @property
    def in_one_line(self) -> str:
        """What was found, and how much of that is still bad, in one line."""
        found = super().in_one_line
        return found if self.plan is None else f"{found}, {len(self.remaining)} of that remain"
