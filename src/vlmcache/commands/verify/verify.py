"""`verify`: whether every file of the cache has the content that its hash names."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from vlmcache.cache.hashing import Check, Identity, Judged, Opener, hash_all, identify
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
from vlmcache.commands.verify.values import Unverifiable, Verification, VerifyOptions
from vlmcache.config import Session, own_home
from vlmcache.errors import reason_of
from vlmcache.home.journal import Journal
from vlmcache.progress import FileOf, Progress, continued_by, files_shown

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
    with continued_by(progress, f"'{options.command(*names)}' continues from here"):
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
    with Journal(own_home(session.environment)[0]) as memory:
        opener = CacheTree(state.dir).open_content
        options, progress = options or VerifyOptions(), progress or Progress()
        _hash(subjects, results, memory, options, progress, opener)
    for scope in scopes:
        check_headers(scope, results)
        add_findings(scope, results)
        add_missing(scope, results, state)
        add_denied(scope, state.dir, results)
        blame_bases(scope, results)
    return results.verification(time.monotonic() - begun)


def _hash(
    subjects: Sequence[Subject],
    results: Results,
    memory: Journal,
    options: VerifyOptions,
    progress: Progress,
    opener: Opener,
) -> None:
    """Hash what is not known to be good; content that several places share is hashed once."""
    now = time.time()
    known = memory.verified() if options.max_age > 0 else {}
    places: dict[tuple[Identity, str], list[Subject]] = {}
    for subject in subjects:
        try:
            identity = identify(subject.path)
        except OSError as error:
            reason = f"it cannot be read: {reason_of(error)}"
            check = Check(subject.path, subject.expected)
            results.add([subject], Judged(check, None, problem=reason))
        else:
            places.setdefault((identity, subject.expected), []).append(subject)
    due: dict[Check, list[Subject]] = {}
    shown: dict[str, FileOf] = {}
    # The largest first, so that no core idles at the end.
    for (identity, expected), group in sorted(places.items(), key=lambda place: -place[0][0].size):
        at = known.get((identity, expected))
        # A time in the future cannot be trusted.
        if at is not None and 0 <= now - at < options.max_age:
            results.remembered += 1
            results.remembered_bytes += identity.size
            results.unchanged |= {subject.path for subject in group}
        else:
            due[Check(group[0].path, expected)] = group
            first = group[0]
            name = first.files[0] if first.files else os.path.basename(first.path)
            shown[first.path] = FileOf(first.repo, name, identity.size)
    if not due:
        return
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
                    opener=opener,
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
                    memory.record_verified(fresh, now)
                    fresh, recorded = [], time.monotonic()
    finally:
        if fresh:
            memory.record_verified(fresh, now)
        if damaged:
            memory.record_damaged(damaged, now)
