"""What `verify` answers with."""

from __future__ import annotations

import msgspec

from vlmcache import units
from vlmcache.cache.state import Finding
from vlmcache.change.plan import Plan, Receipt
from vlmcache.errors import ExitCode, VlmcacheError


class DamageError(VlmcacheError):
    """Something in the cache is not what it should be."""

    code = "damaged"
    exit_code = ExitCode.DAMAGE


class Damage(msgspec.Struct, frozen=True):
    """Something that cannot be what it should be.

    blob is the name in `blobs/`, expected the hash that the content should have, actual the hash
    that it has; each `None` where there is none. problem is a word for scripts: `wrong-content`,
    `wrong-link`, `unreadable-header`, or the code of the finding that tells of it. files are the
    names in the repo that lead there.
    """

    repo: str
    path: str
    blob: str | None
    expected: str | None
    actual: str | None
    problem: str
    detail: str
    files: tuple[str, ...] = ()


class Missing(msgspec.Struct, frozen=True):
    """A file that loading needs and that is not there; `*` where nothing is."""

    repo: str
    revision: str
    file: str
    type: str = "model"


class Unverifiable(msgspec.Struct, frozen=True):
    """Something of which it cannot be said whether it is right, and why."""

    repo: str | None
    path: str
    blob: str | None
    reason: str
    files: tuple[str, ...] = ()


class Verification(msgspec.Struct, frozen=True):
    """What `vlmcache verify` answers.

    checked and bytes: files that were read and hashed this time, and their length. remembered and
    remembered_bytes: files found good not longer than `--max-age` ago, and unchanged since. seconds
    is how long all of it took. Of `--repair`: plan is what mends the damage, receipt what was done,
    remaining the paths (of what lacks: the names) that are not right even now.
    """

    checked: int
    bytes: int
    remembered: int
    remembered_bytes: int
    seconds: float
    damaged: tuple[Damage, ...]
    missing: tuple[Missing, ...]
    unverifiable: tuple[Unverifiable, ...]
    findings: tuple[Finding, ...] = ()
    plan: Plan | None = None
    receipt: Receipt | None = None
    remaining: tuple[str, ...] = ()
    cache: str = ""
    """The hub cache."""


def problem(value: Verification) -> DamageError | None:
    """Return the failure that a verification has to tell of, or `None` if all is well."""
    parts = []
    if value.damaged:
        count = len(value.damaged)
        parts.append(f"{count} damaged")
    if value.missing:
        parts.append(f"{len(value.missing)} missing")
    if not parts:
        return None
    repos = ids(value)
    others = {one.repo: one.remedy or "" for one in value.findings if one.code == "not-repairable"}
    hint = "'vlmcache verify --repair' fetches what is bad, and only that"
    if not value.damaged and all(one.file == "*" and one.type == "model" for one in value.missing):
        names = [
            one.repo if one.revision == "main" else f"{one.repo}@{one.revision}"
            for one in value.missing
        ]
        hint = f"fetch it: {units.command('pull', *names)}"
    elif others.keys() >= set(repos):
        hint = f"only models can be repaired: {'; '.join(others.values())}"
    return DamageError(
        f"{', '.join(parts)}: {', '.join(repos[:5])}{' …' if len(repos) > 5 else ''}",
        hint,
    )


def ids(value: Verification) -> list[str]:
    """Return the repos in which something is damaged or missing, for `--quiet`."""
    found = [one.repo for one in value.damaged] + [one.repo for one in value.missing]
    return list(dict.fromkeys(found))
