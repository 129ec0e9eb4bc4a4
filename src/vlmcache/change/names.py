"""What `rm` was asked to remove: names and paths, looked up in the state of the cache (pure)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache import gguf, layout
from vlmcache.cache.completeness import commit_named, resolve
from vlmcache.cache.moved import away_error
from vlmcache.cache.state import CacheState, Leftover, Repo, Stray
from vlmcache.config import Config, Names
from vlmcache.errors import UnknownModelError, UsageError
from vlmcache.names import ambiguous
from vlmcache.paths import real_path


class Target(msgspec.Struct, frozen=True):
    """One thing that `rm` was asked to remove.

    It is a revision, a complete repo, a ref without a snapshot, or a stray entry.
    """

    name: str
    """What was typed."""
    folder: str | None = None
    """The name of the repo's folder."""
    commit: str | None = None
    """The revision, if not the complete repo is meant."""
    ref: str | None = None
    """The ref that was named, if it leads to no snapshot."""
    stray: Stray | None = None
    """The entry that is not the hub's, if that is meant."""
    leftovers: tuple[Leftover, ...] = ()
    """What interrupted removals left of the repo."""
    gone: bool = False
    """Whether nothing else of the target is left."""
    files: dict[str, frozenset[str]] | None = None
    """Commit -> the only files of it that are meant; all of what is named if `None`."""


class NamingOptions(NamedTuple):
    """How the names of targets are read."""

    revision: str | None = None
    """The revision of `--revision`, for every name."""
    folder: str = ""
    """The working folder, against which paths are read."""
    include: Sequence[str] = ()
    """Patterns of the only files that are meant; all files if there are none."""
    variants: bool = False
    """Whether single variants can be meant."""


def find_targets(
    state: CacheState,
    config: Config,
    names: Sequence[str],
    options: NamingOptions | None = None,
) -> list[Target]:
    """Return what the names mean in this cache.

    Args:
        state: the cache.
        config: whose keys count.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name` and the like, and
            paths of repo folders and of entries that are not the hub's.
        options: how the names are read.

    Raises:
        UnknownModelError: nothing of that name is in the cache.
        UsageError: a revision cannot be one, or two were given.
        AwayError: it is a revision of a repo on a drive that is not mounted.
    """
    options = options or NamingOptions()
    lookup = _Lookup(state, names_in(state, config, variants=options.variants), options)
    targets: list[Target] = []
    for target in map(lookup.find, names):
        if target not in targets:
            targets.append(target)
    return targets


def names_in(state: CacheState, config: Config, *, variants: bool = False) -> Names:
    """Return what reads the names of repos in a cache; interrupted removals leave theirs.

    Args:
        state: the cache.
        config: whose keys count.
        variants: whether the command can work on one variant of a model.
    """
    left = [leftover.repo_folder for leftover in state.leftovers if leftover.whole]
    repos = [(repo.type, repo.id) for repo in state.repos]
    found = filter(None, map(layout.parse_repo_folder, left))
    return Names(config, [*repos, *found], variants=variants)


class _Lookup:
    """Looks names and paths up in the state of a cache."""

    def __init__(self, state: CacheState, names: Names, options: NamingOptions) -> None:
        self.state = state
        self.names = names
        self.options = options

    def find(self, text: str) -> Target:
        """Return what a name or path means."""
        option = self.options.revision
        is_folder = any(repo.folder == text for repo in self.state.repos)
        is_key = not is_folder and self.names.is_key(text)
        entry = None if is_key else self._at_path(text)
        if isinstance(entry, Stray):
            if self.options.include:
                raise UsageError(f"--include chooses files of a model, and {text} is not a model")
            return Target(text, stray=entry)
        if entry is not None:
            return self._files(self._target(text, entry.folder, entry, option), entry, None)
        named = self.names.resolve(text)
        if option is not None and named.revision not in (None, option):
            raise UsageError(f"{text} and --revision {option} name two revisions")
        revision = option if named.revision is None else named.revision
        if revision is not None and not layout.is_revision(revision):
            raise UsageError(f"{revision!r} is not a branch, tag or commit")
        repos = self.state.repos_called(named.repo, named.kind)
        if len(repos) > 1:
            raise ambiguous(named.repo, (repo.id for repo in repos))
        repo = repos[0] if repos else None
        return self._files(self._target(text, named.folder, repo, revision), repo, named.variant)

    def _at_path(self, text: str) -> Repo | Stray | None:
        """Return the entry that a path names, of those that the scan lists."""
        state = self.state
        bases = [
            os.path.abspath(os.path.join(self.options.folder, text)),
            os.path.join(state.dir, text),
        ]
        paths = {os.path.normpath(base) for base in bases}
        try:
            paths |= {
                os.path.join(real_path(os.path.dirname(path)), os.path.basename(path))
                for path in paths
            }
        except ValueError:
            return None  # It holds a null character, or what the system cannot encode.
        for stray in (*state.strays, *(stray for repo in state.repos for stray in repo.strays)):
            if stray.path in paths:
                return stray
        for repo in state.repos:
            if repo.path in paths:
                return repo
        return None

    def _files(self, target: Target, repo: Repo | None, variant: str | None) -> Target:
        """Return the target with the files that are meant of it, if not all are."""
        if variant is None and not self.options.include:
            return target
        if variant is not None and self.options.include:
            raise UsageError(
                f"{target.name} and --include {self.options.include[0]} both choose files"
            )
        if repo is None or target.gone or target.ref is not None:
            raise self.names.unknown(target.name, "cache")
        if repo.away is not None:
            raise away_error(repo, repo.away)
        if repo.linked_to is not None and repo.moved_to is None:
            raise UsageError(f"{repo.id} is a link to {repo.linked_to}: links are never followed")
        # What an interrupted removal or download has left of a file without a link to it.
        left = {partial.etag for partial in repo.partials}
        left |= {name for name, users in repo.blob_users().items() if not users}
        found: dict[str, frozenset[str]] = {}
        known: dict[str, None] = {}
        for revision in repo.revisions:
            if target.commit not in (None, revision.commit):
                continue
            tree = revision.tree or {}
            here = {file.name for file in revision.files}
            here |= {name for name, file in tree.items() if file.etag in left}
            groups = gguf.variants(here | tree.keys())
            known |= {
                group.name: None for group in groups.variants if here.intersection(group.files)
            }
            chosen = {
                name for pattern in self.options.include for name in layout.matched(here, pattern)
            }
            called = groups.called(variant) if variant is not None else []
            if len(called) > 1:
                raise ambiguous(target.name, (group.name for group in called))
            for group in called:
                chosen |= here.intersection(group.files)
            if chosen:
                found[revision.commit] = frozenset(chosen)
        if not found:
            what = (
                f"variant {variant}" if variant is not None else f"file {self.options.include[0]}"
            )
            raise UnknownModelError(
                f"{repo.id} has no {what} in the cache",
                "it has " + ", ".join(known) if variant is not None and known else None,
            )
        return msgspec.structs.replace(target, files=found)

    def _target(self, text: str, folder: str, repo: Repo | None, revision: str | None) -> Target:
        rest = tuple(
            leftover for leftover in self.state.leftovers if leftover.repo_folder == folder
        )
        if revision is None:
            if repo is not None:
                return Target(text, folder, leftovers=rest)
            if any(leftover.whole for leftover in rest):
                return Target(text, folder, leftovers=rest, gone=True)
            raise self.names.unknown(text, "cache")
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        commit = resolve(repo, revision) if repo is not None else None
        if repo is not None and commit is not None and repo.revision(commit) is not None:
            return Target(text, folder, commit, leftovers=rest)
        if repo is not None and revision in repo.ref_files:
            return Target(text, folder, ref=revision, leftovers=rest)
        for leftover in rest:
            # A removal of this revision was interrupted.
            begun = {*leftover.refs.values(), *leftover.commits}
            commit = commit_named(revision, leftover.refs, begun)
            if commit is not None:
                return Target(text, folder, commit, leftovers=rest, gone=True)
        if repo is None:
            raise self.names.unknown(text, "cache")
        known = sorted({*repo.refs, *(snapshot.commit[:12] for snapshot in repo.revisions)})
        raise UnknownModelError(
            f"{repo.id} has no revision {revision} in the cache",
            "it has " + ", ".join(known[:8]) if known else None,
        )
