"""`verify`: whether every file of the cache has the content that its hash names."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState
from vlmcache.commands.verify.content import hash_subjects
from vlmcache.commands.verify.damage import add_findings, add_missing, check_headers
from vlmcache.commands.verify.scope import find_scopes, subjects_of
from vlmcache.commands.verify.tally import Tally
from vlmcache.commands.verify.values import Unverifiable, Verification, VerifyOptions
from vlmcache.config import Session, own_home
from vlmcache.home.journal import Memory
from vlmcache.progress import Progress


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
    tally = Tally()
    scopes = find_scopes(state, session.config, names, tally)
    subjects = [subject for scope in scopes for subject in subjects_of(scope, tally)]
    if not names:
        tally.unverifiable += (
            Unverifiable(None, shared.path, shared.hash, "no repo names its hash")
            for shared in state.shared.values()
            if not shared.users
        )
    with Memory(own_home(session.environment)[0]) as memory:
        hash_subjects(subjects, tally, memory, options or VerifyOptions(), progress or Progress())
    for scope in scopes:
        check_headers(scope, tally)
        add_findings(scope, tally)
        add_missing(scope, tally)
    return tally.verification(time.monotonic() - begun)
