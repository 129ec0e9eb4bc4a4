"""`verify`: whether every file of the cache has the content that its hash names."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence

from vlmcache.cache.hashing import Check, Identity, Judged, hash_all, identify
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.cache.tree import CacheTree
from vlmcache.commands.verify.scope import (
    Results,
    Subject,
    add_denied,
    add_findings,
    add_missing,
    blame_bases,
    check_headers,
    find_scopes,
    subjects_of,
)
from vlmcache.commands.verify.values import DamageError, Unverifiable, Verification, VerifyOptions
from vlmcache.config import Session, options_in_force, own_home
from vlmcache.errors import PartlyError, VlmcacheError, reason_of
from vlmcache.home.journal import Journal
from vlmcache.progress import FileOf, Progress, continued_by, files_shown
from vlmcache.units import command

_REMEMBER_EVERY = 5.0


def verify(
    session: Session,
    names: Sequence[str] = (),
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare every blob with its hash. Nothing is changed, and the network is not used.

    Args:
        session: what to work on.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if empty.
        options: how.
        progress: called as the work proceeds, from several threads.

    Raises:
        UnknownModelError: nothing of that name is configured or in the cache.
        AwayError: what is named is on a drive that is not mounted.
        ConfigError: the cache path is not a folder.
    """
    options, progress = options or VerifyOptions(), progress or Progress()
    with continued_by(progress, f"'{options.command(session, *names)}' continues from here"):
        return verify_state(session, scan(session.cache.dir), names, options, progress)


def verify_state(
    session: Session,
    state: CacheState,
    names: Sequence[str] = (),
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Do as `verify` does, for a cache that is scanned already."""
    begun = time.monotonic()
    results = Results()
    scopes = find_scopes(state, session.config, names, results)
    subjects = [subject for scope in scopes for subject in subjects_of(scope, results)]
    if not names:
        results.unverifiable += (
            Unverifiable(None, shared.path, shared.hash, "no repo names its hash")
            for shared in state.shared.values()
            if not shared.users
        )
    _hash(session, subjects, results, options or VerifyOptions(), progress or Progress())
    for scope in scopes:
        check_headers(scope, results)
        add_findings(scope, results)
        add_missing(scope, results, state)
        add_denied(scope, state.dir, results)
        blame_bases(scope, results)
    verification = results.verification(time.monotonic() - begun)
    return verification.with_problem(_problem(session, verification))


def _problem(session: Session, verification: Verification) -> VlmcacheError | None:
    """Return the failure if something is damaged or missing, or could not be checked."""
    damaged, missing = verification.damaged, verification.missing
    options = options_in_force(session.config, session.cache)
    counts = [
        f"{len(bad)} {word}" for word, bad in (("damaged", damaged), ("missing", missing)) if bad
    ]
    if not counts:
        unread = [known for known in verification.findings if known.code == "unreadable-file"]
        why = f"not everything could be verified: {unread[0].detail}" if unread else ""
        return PartlyError(why, unread[0].remedy) if unread else None
    hint = f"'{command('verify', '--repair', *options)}' fetches what is bad, and only that"
    if not damaged and all(file.file == "*" for file in missing):
        names = [
            file.name if file.revision == "main" else f"{file.name}@{file.revision}"
            for file in missing
        ]
        hint = f"fetch it: {command('pull', *names, *options)}"
    repos = verification.ids
    more = " …" if len(repos) > 5 else ""
    return DamageError(f"{', '.join(counts)}: {', '.join(repos[:5])}{more}", hint)


def _hash(
    session: Session,
    subjects: Sequence[Subject],
    results: Results,
    options: VerifyOptions,
    progress: Progress,
) -> None:
    """Hash what is not known to be good, and remember what was found."""
    now = time.time()
    with Journal(own_home(session.environment)[0]) as journal:
        known = journal.verified() if options.max_age > 0 else {}
        # A time in the future cannot be trusted.
        recent = {key for key, at in known.items() if 0 <= now - at < options.max_age}
        groups = _to_hash(subjects, results, recent)
        if not groups:
            return
        due = {Check(group[0].path, group[0].expected): group for _, group in groups}
        shown = {
            group[0].path: FileOf(group[0].repo, group[0].name, identity.size)
            for identity, group in groups
        }
        fresh: list[tuple[Identity, str]] = []
        damaged: list[Identity] = []
        recorded = time.monotonic()
        try:
            with (
                files_shown(progress, "verified", shown) as moved,
                contextlib.closing(
                    hash_all(
                        list(due),
                        options.workers,
                        lambda check, position: moved(check.path, position),
                        opener=CacheTree(session.cache.dir).open_content,
                    )
                ) as answers,
            ):
                for judged in answers:
                    results.add(due[judged.check], judged)
                    if judged.good and judged.identity is not None:
                        fresh.append((judged.identity, judged.check.expected))
                    elif judged.actual is not None and judged.identity is not None:
                        damaged.append(judged.identity)
                    if fresh and time.monotonic() - recorded > _REMEMBER_EVERY:
                        journal.record_verified(fresh, now)
                        fresh, recorded = [], time.monotonic()
        finally:
            if fresh:
                journal.record_verified(fresh, now)
            if damaged:
                journal.record_damaged(damaged, now)


def _to_hash(
    subjects: Sequence[Subject], results: Results, recent: Collection[tuple[Identity, str]]
) -> list[tuple[Identity, list[Subject]]]:
    """Return the files to hash, the largest first, so that no core idles at the end.

    Args:
        subjects: the places; those that share a file are one group of the answer.
        results: notes what cannot be read, and what is known to be good.
        recent: files with the hash that they were found to have not long ago.
    """
    groups: dict[tuple[Identity, str], list[Subject]] = {}
    for subject in subjects:
        try:
            identity = identify(subject.path)
        except OSError as error:
            check = Check(subject.path, subject.expected)
            reason = f"it cannot be read: {reason_of(error)}"
            results.add([subject], Judged(check, None, problem=reason))
        else:
            groups.setdefault((identity, subject.expected), []).append(subject)
    for key in groups.keys() & recent:
        results.remembered += 1
        results.remembered_bytes += key[0].size
        results.unchanged |= {subject.path for subject in groups.pop(key)}
    due = ((identity, group) for (identity, _), group in groups.items())
    return sorted(due, key=lambda pair: -pair[0].size)
