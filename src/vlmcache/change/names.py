"""What `rm` was asked to remove: names and paths, looked up in the state of the cache (pure)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.completeness import resolve
from vlmcache.cache.moved import away_error
from vlmcache.cache.state import CacheState, Leftover, Repo, Stray
from vlmcache.config import Config, cached_repo
from vlmcache.errors import UnknownModelError, UsageError

_PREFIXES = {f"{kind}s": kind for kind in layout.KINDS.values()}


def find_targets(
    state: CacheState,
    config: Config,
    names: Sequence[str],
    *,
    revision: str | None = None,
    folder: str = "",
) -> list[Target]:
    """Return what the names mean in this cache.

    Args:
        state: the cache.
        config: whose keys count.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name` and the like, and
            paths of repo folders and of entries that are not the hub's.
        revision: the one of `--revision`, for every name.
        folder: the working folder, against which paths are read.

    Raises:
        UnknownModelError: nothing of that name is in the cache.
        UsageError: a revision cannot be one, or two were given.
        AwayError: it is a revision of a repo on a drive that is not mounted.
    """
    found: list[Target] = []
    for name in names:
        target = _find(state, config, name, revision, folder)
        if target not in found:
            found.append(target)
    return found


def _find(state: CacheState, config: Config, text: str, option: str | None, folder: str) -> Target:
    name, at, revision = text.partition("@")
    is_folder = any(repo.folder == text for repo in state.repos)
    is_key = text in config.models and not is_folder and _cached(state, name) is None
    path = None if is_key else _find_path(state, text, folder)
    if isinstance(path, Stray):
        return Target(text, stray=path)
    if path is not None:
        return _target(state, text, path.folder, path, option)
    if is_key:
        name, at, revision = text, "", ""
    if at and option is not None and option != revision:
        raise UsageError(f"{text} and --revision {option} name two revisions")
    wanted = revision if at else option
    if wanted is not None and not layout.is_revision(wanted):
        raise UsageError(f"{wanted!r} is not a branch, tag or commit")
    kind, repo_id = _identify(state, config, name)
    repo = state.repo(repo_id, kind)
    return _target(state, text, layout.repo_folder(kind, repo_id), repo, wanted, config)


def _identify(state: CacheState, config: Config, name: str) -> tuple[str, str]:
    """Return the kind and id of the repo that a name means, first of all one that is there.

    Names are read as `config.find_model` reads them.
    """
    cached = _cached(state, name)
    if cached is not None:
        return cached
    if name in config.models:
        repo_id = config.models[name].repo
        held = _cached(state, repo_id)
        return held if held is not None and held[0] == "model" else ("model", repo_id)
    kind, rest = _prefixed(name)
    if "/" in rest or kind == "model":
        return kind, rest
    return "model", name


def _cached(state: CacheState, name: str) -> tuple[str, str] | None:
    """Return the kind and id of the repo in the cache whose id a name is, in whatever case."""
    there = {(repo.type, repo.id) for repo in state.repos}
    # What is left of a removal that was interrupted is named like what it was.
    folders = (one.repo_folder for one in state.leftovers if one.whole)
    there |= {found for one in folders if (found := layout.parse_repo_folder(one)) is not None}
    for kind, rest in (("model", name), _prefixed(name)):
        repo = cached_repo(rest, [repo_id for one, repo_id in there if one == kind])
        if repo is not None:
            return kind, repo
    return None


def _prefixed(name: str) -> tuple[str, str]:
    prefix, _, rest = name.partition("/")
    return (_PREFIXES[prefix], rest) if prefix in _PREFIXES and rest else ("model", name)


def _target(
    state: CacheState,
    text: str,
    folder: str,
    repo: Repo | None,
    revision: str | None,
    config: Config | None = None,
) -> Target:
    rest = tuple(one for one in state.leftovers if one.repo_folder == folder)
    if revision is None:
        if repo is not None:
            return Target(text, folder, leftovers=rest)
        if any(one.whole for one in rest):
            return Target(text, folder, leftovers=rest, gone=True)
        raise _unknown(state, text, config)
    if repo is not None and repo.away is not None:
        raise away_error(repo, repo.away)
    commit = resolve(repo, revision) if repo is not None else None
    if repo is not None and commit is not None and repo.revision(commit) is not None:
        return Target(text, folder, commit, leftovers=rest)
    if repo is not None and revision in repo.ref_files:
        return Target(text, folder, ref=revision, leftovers=rest)
    for one in rest:
        # A removal of this revision was interrupted.
        commit = one.refs.get(revision)
        begun = {*one.refs.values(), *one.commits}
        if commit is None and len(revision) >= 7:
            commit = next((held for held in begun if held.startswith(revision)), None)
        if commit is not None:
            return Target(text, folder, commit, leftovers=rest, gone=True)
    if repo is None:
        raise _unknown(state, text, config)
    known = sorted({*repo.refs, *(one.commit[:12] for one in repo.revisions)})
    raise UnknownModelError(
        f"{repo.id} has no revision {revision} in the cache",
        "there: " + ", ".join(known[:8]) if known else None,
    )


def _find_path(state: CacheState, text: str, folder: str) -> Repo | Stray | None:
    """Return the entry that a path names, of those that the scan lists."""
    bases = [os.path.abspath(os.path.join(folder, text)), os.path.join(state.dir, text)]
    paths = {os.path.normpath(base) for base in bases}
    try:
        paths |= {
            os.path.join(os.path.realpath(os.path.dirname(p)), os.path.basename(p)) for p in paths
        }
    except ValueError:
        return None  # no path at all: it holds a null character, or what the system cannot encode
    for stray in (*state.strays, *(stray for repo in state.repos for stray in repo.strays)):
        if stray.path in paths:
            return stray
    for repo in state.repos:
        if repo.path in paths:
            return repo
    return None


def _unknown(state: CacheState, text: str, config: Config | None) -> UnknownModelError:
    names = [repo.id if repo.type == "model" else f"{repo.type}s/{repo.id}" for repo in state.repos]
    keys = {}
    if config is not None:
        keys = {key: model.repo for key, model in config.models.items() if model.repo in names}
    near = difflib.get_close_matches(text.partition("@")[0], [*keys, *names], 3, 0.5)
    hint = (
        "did you mean " + " or ".join(near) + "?" if near else "'vlmcache status --all' lists all"
    )
    return UnknownModelError(f"nothing like {text} is in the cache", hint)


class Target(msgspec.Struct, frozen=True):
    """One thing that `rm` was asked to remove.

    With a commit it is that revision, else the whole repo, or the stray entry. ref is the ref that
    was named where it leads to no snapshot. leftovers: what interrupted removals left of the repo.
    gone: nothing else of the target is there.
    """

    name: str
    folder: str | None = None
    commit: str | None = None
    ref: str | None = None
    stray: Stray | None = None
    leftovers: tuple[Leftover, ...] = ()
    gone: bool = False
