"""What of the cache is to be verified, and what was found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.hashing import Judged
from vlmcache.cache.moved import away_error
from vlmcache.cache.state import CacheState, File, Finding, Repo, Revision
from vlmcache.change.names import find_targets, names_in
from vlmcache.commands.verify.values import Damage, Missing, Unverifiable, Verification
from vlmcache.config import Config, parse_name
from vlmcache.errors import UnknownModelError, UsageError


class Subject(NamedTuple):
    """A place whose content is to be compared with a hash."""

    repo: str
    path: str
    blob: str | None
    expected: str
    files: tuple[str, ...]


class Results:
    """What is found, as it is found."""

    def __init__(self) -> None:
        self.checked = 0
        self.bytes = 0
        self.remembered = 0
        self.remembered_bytes = 0
        self.damaged: dict[str, Damage] = {}
        self.good: set[str] = set()
        self.fresh: set[str] = set()
        """Paths that were hashed in this run."""
        self.missing: list[Missing] = []
        self.unverifiable: list[Unverifiable] = []
        self.findings: list[Finding] = []

    def add(self, group: Iterable[Subject], judged: Judged) -> None:
        """Take note of what hashing says about places that have the same content."""
        if judged.actual is not None and judged.identity is not None:
            self.checked += 1
            self.bytes += judged.identity.size
        for subject in group:
            self.fresh.add(subject.path)
            if judged.good:
                self.good.add(subject.path)
            elif judged.actual is None:
                self.unverifiable.append(
                    Unverifiable(
                        subject.repo,
                        subject.path,
                        subject.blob,
                        judged.problem or "",
                        subject.files,
                    )
                )
            else:
                name = ", ".join(subject.files) or "a blob that nothing links to"
                self.damaged[subject.path] = Damage(
                    subject.repo,
                    subject.path,
                    subject.blob,
                    subject.expected,
                    judged.actual,
                    "wrong-content",
                    f"{name} has other content than its hash says",
                    subject.files,
                )

    def verification(self, seconds: float) -> Verification:
        """Return all of it as the command's answer."""
        return Verification(
            self.checked,
            self.bytes,
            self.remembered,
            self.remembered_bytes,
            seconds,
            tuple(sorted(self.damaged.values(), key=lambda damage: (damage.repo, damage.path))),
            tuple(self.missing),
            tuple(self.unverifiable),
            tuple(self.findings),
        )


class Scope(NamedTuple):
    """What is asked for of a repo: all of it if no commits are named."""

    repo: Repo
    commits: frozenset[str] | None

    @property
    def revisions(self) -> list[Revision]:
        """The revisions that are asked for."""
        return [
            revision
            for revision in self.repo.revisions
            if self.commits is None or revision.commit in self.commits
        ]


def find_scopes(
    state: CacheState, config: Config, names: Sequence[str], results: Results
) -> list[Scope]:
    """Return what names mean: the complete cache if there are none.

    Raises:
        UnknownModelError: nothing of that name is configured or in the cache.
        AwayError: what is named is on a drive that is not mounted.
        UsageError: nothing of it is in the cache.
    """
    if not names:
        return [Scope(repo, None) for repo in state.repos]
    complete: dict[str, Repo] = {}
    parts: dict[str, set[str]] = {}
    repos = {repo.folder: repo for repo in state.repos}
    for name in names:
        try:
            target = find_targets(state, config, [name])[0]
        except UnknownModelError:
            named = names_in(state, config).resolve(name)
            model = named.model
            if model is None or model.key not in (name, parse_name(name).name):
                raise
            results.missing.append(Missing(model.repo, named.revision or model.revision, "*"))
            continue
        repo = repos.get(target.folder or "")
        # A ref whose snapshot was lost: its blobs may still be in the cache.
        commit = repo.refs.get(target.ref) if repo is not None and target.ref else target.commit
        if repo is None or (target.ref is not None and commit is None):
            raise UsageError(
                f"nothing of {name} is in the cache to verify", "'vlmcache status' lists what is"
            )
        if repo.away is not None:
            raise away_error(repo, repo.away)
        if commit is None:
            complete[repo.folder] = repo
        else:
            parts.setdefault(repo.folder, set()).add(commit)
    return [Scope(repo, None) for repo in complete.values()] + [
        Scope(repos[folder], frozenset(commits))
        for folder, commits in parts.items()
        if folder not in complete
    ]


def subjects_of(scope: Scope, results: Results) -> list[Subject]:
    """Return what of a repo can be compared with a hash, and note what cannot."""
    repo = scope.repo
    users = repo.blob_users()
    commits = {revision.commit for revision in scope.revisions}
    trees = {revision.commit: revision.tree or {} for revision in scope.revisions}
    # Blobs that lost their links are checked too, since a repair would link them again.
    lost = {
        repo.trees[commit][name].etag
        for commit in scope.commits or ()
        for name in repo.lost_names(commit)
    }
    subjects: list[Subject] = []
    covered: set[tuple[int, int]] = set()
    for name, blob in repo.blobs.items():
        links = [(commit, file) for commit, file in sorted(users[name]) if commit in commits]
        if not blob.present or (scope.commits is not None and not links and name not in lost):
            continue
        covered.add((blob.device, blob.inode))
        path = os.path.join(repo.path, layout.BLOBS, name)
        files = tuple(dict.fromkeys(file for _, file in links))
        listed = {trees[commit][file].etag for commit, file in links if file in trees[commit]}
        listed = {etag for etag in listed if layout.is_etag(etag)}
        if layout.is_etag(name):
            subjects.append(Subject(repo.id, path, name, name, files))
        elif len(listed) == 1:
            subjects.append(Subject(repo.id, path, name, listed.pop(), files))
        else:
            reason = "its name is not a hash of the Hub's, and no listing names one"
            results.unverifiable.append(Unverifiable(repo.id, path, name, reason, files))
    for revision in scope.revisions:
        for file in revision.files:
            copy = _copy(repo, revision, file, covered, results)
            subjects += [copy] if copy is not None else []
    return subjects


def _copy(
    repo: Repo, revision: Revision, file: File, covered: set[tuple[int, int]], results: Results
) -> Subject | None:
    """Return a copy that stands in the place of a link; note a link to the wrong blob."""
    listed = revision.tree.get(file.name) if revision.tree is not None else None
    expected = listed.etag if listed is not None and layout.is_etag(listed.etag) else None
    path = os.path.join(revision.path, *file.name.split("/"))
    blob = file.blob
    if file.kind == "link":
        if expected is not None and blob not in (None, expected) and layout.is_etag(blob or ""):
            detail = f"{file.name} is linked to other content than the listing names"
            names = (file.name,)
            results.damaged[path] = Damage(
                repo.id, path, blob, expected, blob, "wrong-link", detail, names
            )
    elif file.kind == "copy":
        if expected is not None:
            return Subject(repo.id, path, None, expected, (file.name,))
        if (file.device, file.inode) not in covered:
            reason = "a copy in place of a link, and no listing names its hash"
            results.unverifiable.append(Unverifiable(repo.id, path, None, reason, (file.name,)))
    return None
