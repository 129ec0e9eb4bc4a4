"""What `rm` and `clean` find out about what they remove: pins, open files, copies, who needs it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

from vlmcache import units
from vlmcache.cache.completeness import needs_of, resolve
from vlmcache.cache.state import CacheState, Finding, Repo, Revision, RevisionKey
from vlmcache.change.plan import Plan, Remove, RemoveTree
from vlmcache.change.removals import Key, Protected
from vlmcache.config import Config, Environment, find_model, own_home
from vlmcache.home.copies import KeptCopy, list_copies


def pinned_models(config: Config, state: CacheState, evict: Collection[str] = ()) -> Protected:
    """Return the revisions that configured models name, which nothing evicts.

    Models of every file on the search path count, not only those of the active one. If such a
    revision is not known, every revision of its repo stays; if one of those files cannot be read,
    every repo does.

    Args:
        config: the configuration.
        state: the cache.
        evict: keys or repo ids that are not to be pinned.

    Raises:
        UnknownModelError: a name of `evict` is not a model.
    """
    cached = [repo.id for repo in state.repos if repo.type == "model"]
    loose = {find_model(config, name, cached).repo for name in evict}
    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}
    if config.unread is not None:
        repos = dict.fromkeys((repo.folder for repo in state.repos), config.unread)
    named = [
        *(
            (f"{'shipped' if config.shipped else 'configured'} as {model.key}", model)
            for model in config.models.values()
        ),
        *((f"configured as {model.key} in {path}", model) for path, model in config.also),
    ]
    for why, model in named:
        for repo in state.repos_called(model.repo):
            if repo.id in loose:
                continue
            commit = resolve(repo, model.revision)
            if commit is None or repo.revision(commit) is None:
                repos.setdefault(repo.folder, why)
            else:
                revisions.setdefault((repo.folder, commit), why)
    return Protected(revisions, repos)


def inodes_below(path: str) -> dict[tuple[int, int], str]:
    """Return (device, inode) of a path and all below it -> one of its paths."""
    inodes: dict[tuple[int, int], str] = {}
    pending = [path]
    while pending:
        here = pending.pop()
        with contextlib.suppress(OSError):
            stat = os.lstat(here)
            inodes[stat.st_dev, stat.st_ino] = here
            if os.path.isdir(here) and not os.path.islink(here):
                pending += (entry.path for entry in os.scandir(here))
    return inodes


def _removed(state: CacheState, plan: Plan) -> Iterator[tuple[Repo, Revision]]:
    """Yield the revisions that a plan removes, alone or with their repos."""
    paths = {action.path for action in plan.actions if isinstance(action, Remove | RemoveTree)}
    for repo in state.repos:
        for revision in repo.revisions:
            if paths.intersection((repo.path, revision.path)):
                yield repo, revision


def removed_revisions(state: CacheState, plan: Plan) -> set[RevisionKey]:
    """Return the keys of the revisions that a plan removes."""
    return {(repo.type, repo.id, revision.commit) for repo, revision in _removed(state, plan)}


def copies_of(environment: Environment, state: CacheState, plan: Plan) -> tuple[KeptCopy, ...]:
    """Return the kept copies of the revisions that a plan removes."""
    removed = removed_revisions(state, plan)
    models = {(repo, commit) for kind, repo, commit in removed if kind == "model"}
    copies = list_copies(own_home(environment)[0]) if models else []
    return tuple(copy for copy in copies if (copy.repo, copy.commit) in models)


def needed_elsewhere(state: CacheState, plan: Plan) -> tuple[Finding, ...]:
    """Return which models that stay need what a plan removes."""
    removed = {(repo.folder, revision.commit) for repo, revision in _removed(state, plan)}
    broken: set[tuple[str, str]] = set()
    for model, needed in needs_of(state).items() if removed else ():
        for folder in {key[0] for key in needed} if model not in removed else ():
            if {key for key in needed if key[0] == folder} <= removed:
                broken.add((model[0], folder))
    repos = {repo.folder: repo for repo in state.repos}
    return tuple(
        Finding(
            "still-needed",
            "warning",
            repos[folder].id,
            repos[folder].path,
            f"{repos[model].id} needs it, and cannot be loaded without it",
            units.command("pull", repos[model].id),
        )
        for model, folder in sorted(broken)
    )
