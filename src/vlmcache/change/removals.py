"""What is to be removed, and what is not, each with the reason for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import msgspec

from vlmcache.cache.state import Leftover, Repo
from vlmcache.change.plan import Kept

Key: TypeAlias = tuple[str, str]
"""(repo folder, commit)."""


class Protected(msgspec.Struct, frozen=True):
    """What stays and why: revisions as (repo folder, commit), complete repos by their folders."""

    revisions: dict[Key, str] = {}
    repos: dict[str, str] = {}

    def why(self, folder: str, commit: str) -> str | None:
        """Return why a revision stays, `None` if it need not."""
        return self.repos.get(folder) or self.revisions.get((folder, commit))


class Removals:
    """What is to be removed, each with its reason. Keys are repo folders, commits, names."""

    def __init__(self) -> None:
        self.repos: dict[str, str] = {}
        self.revisions: dict[Key, str] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.blobs: dict[tuple[str, str], str] = {}
        self.files: dict[tuple[str, str, str], str] = {}
        self.metadata: dict[Key, str] = {}
        self.partials: dict[tuple[str, str], str] = {}
        self.strays: dict[str, str] = {}
        self.shared: dict[str, str] = {}
        self.locks: dict[tuple[str, str], str] = {}
        self.leftovers: list[Leftover] = []
        self.listed: set[tuple[str, str]] = set()
        """Blobs that stay although the last link to them is removed: a listing names them."""
        self.unknown: list[Key] = []
        """Revisions that stay only because their last use is unknown."""
        self.kept: list[Kept] = []

    def folders(self) -> set[str]:
        """Return the repo folders of which something is removed."""
        keyed = (
            self.revisions,
            self.refs,
            self.blobs,
            self.files,
            self.files,
            self.metadata,
            self.partials,
        )
        return {*self.repos, *(key[0] for group in keyed for key in group)}

    def commits_of(self, folder: str) -> Collection[str]:
        """Return the commits of a repo's revisions that are removed."""
        return {commit for repo, commit in self.revisions if repo == folder}

    def add_parts_of(self, repo: Repo, commits: Collection[str], reason: str) -> None:
        """Add revisions of a repo, and what belongs to none: loose blobs and partial downloads."""
        folder = repo.folder
        self.revisions |= {(folder, commit): reason for commit in commits}
        self.partials |= {(folder, partial.name): reason for partial in repo.partials}
        loose = (name for name, users in repo.blob_users().items() if not users)
        self.blobs |= {(folder, name): reason for name in loose}

    def keeps_a_partial_of(self, repo: Repo) -> bool:
        """Return whether an unfinished download of a repo stays."""
        return any((repo.folder, partial.name) not in self.partials for partial in repo.partials)

    def copy(self) -> Removals:
        """Return removals that can be added to without changing these."""
        other = Removals()
        for name, value in vars(self).items():
            setattr(other, name, value.copy())
        return other
