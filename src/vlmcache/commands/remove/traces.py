"""What is removed with a model outside the cache: kept copies, journal entries."""

from __future__ import annotations

import contextlib
import os

from vlmcache.cache.state import CacheState
from vlmcache.change.plan import Plan, Remove, RemoveTree
from vlmcache.config import Environment, own_home
from vlmcache.home.copies import KeptCopy, list_copies, remove_copies
from vlmcache.home.journal import Journal


def copies_of(environment: Environment, state: CacheState, plan: Plan) -> tuple[KeptCopy, ...]:
    """Return the kept copies of the revisions that a plan removes."""
    actions = (action for action in plan.actions if isinstance(action, Remove | RemoveTree))
    paths = {action.path for action in actions}
    gone = {
        (repo.id, revision.commit)
        for repo in state.repos
        for revision in repo.revisions
        if repo.type == "model" and paths.intersection((repo.path, revision.path))
    }
    copies = list_copies(own_home(environment)[0]) if gone else []
    return tuple(copy for copy in copies if (copy.repo, copy.commit) in gone)


def forget(environment: Environment, state: CacheState) -> None:
    """Let the journal forget what is no longer there, and remove the copies made of it."""
    home = own_home(environment)[0]
    with Journal(home) as memory:
        for repo in state.repos:
            for revision in repo.revisions:
                if not os.path.lexists(revision.path):
                    memory.forget(state.dir, repo.type, repo.id, revision.commit)
                    if repo.type == "model":
                        # A copy that stays is listed by status, and does no harm.
                        with contextlib.suppress(OSError):
                            remove_copies(home, repo.id, revision.commit)
