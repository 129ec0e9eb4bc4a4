"""Which part of the cache is to be verified, and what is wrong with it."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.completeness import judge_repo, judge_revision
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.hashing import Judged
from vlmcache.cache.moved import away_error, away_remedy, away_words
from vlmcache.cache.owners import denial
from vlmcache.cache.state import UNREADABLE, CacheState, Finding, Repo, Revision
from vlmcache.cache.weights import read_header
from vlmcache.change.names import find_targets, names_in
from vlmcache.commands.verify.values import Damage, Missing, Unverifiable, Verification
from vlmcache.config import Config, parse_name
from vlmcache.errors import UnknownModelError, UsageError, reason_of
from vlmcache.units import command, counted

_WEIGHTS = ".safetensors"
_HOLES = 1 << 30
"""Bytes without blocks; a file with more of them is not hashed, which would take too long."""
_MOST_HOLES = 8
"""How many times longer than its blocks such a file is; compressing filesystems stay below."""


class Subject(NamedTuple):
    """A place whose content is to be compared with a hash."""

    repo: str
    path: str
    blob: str | None
    expected: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """One name for the progress."""
        return self.files[0] if self.files else os.path.basename(self.path)

    @property
    def names(self) -> str:
        """All names of it, for a sentence."""
        return ", ".join(self.files) or "a blob that nothing links to"


class Results:
    """Collects what is found while the cache is verified."""

    def __init__(self) -> None:
        self.checked = 0
        self.bytes = 0
        self.remembered = 0
        self.remembered_bytes = 0
        self.damaged: dict[str, Damage] = {}
        self.good: set[str] = set()
        """Paths that were hashed in this run, with the content that they should have."""
        self.unchanged: set[str] = set()
        """Paths that were found good in a run before and have not changed since."""
        self.unread: set[str] = set()
        """Paths that could not be read, or may not be: a blob that is a link out of the cache."""
        self.missing: list[Missing] = []
        self.unverifiable: list[Unverifiable] = []
        self.findings: list[Finding] = []

    def add(self, group: Iterable[Subject], judged: Judged) -> None:
        """Take note of what hashing says about places that have the same content."""
        if judged.actual is not None and judged.identity is not None:
            self.checked += 1
            self.bytes += judged.identity.size
        for subject in group:
            if judged.good:
                self.good.add(subject.path)
            elif judged.actual is None:
                self.unread.add(subject.path)
                self.note_unverifiable(subject, judged.problem or "")
            else:
                detail = f"{subject.names} has other content than its hash says"
                self.note_damage(subject, judged.actual, "wrong-content", detail)

    def note_damage(self, subject: Subject, actual: str | None, problem: str, detail: str) -> None:
        """Take note that a place is damaged."""
        self.damaged[subject.path] = Damage(
            subject.repo,
            subject.path,
            subject.blob,
            subject.expected,
            actual,
            problem,
            detail,
            subject.files,
        )

    def note_unverifiable(self, subject: Subject, reason: str) -> None:
        """Take note that nobody can say whether a place is damaged."""
        self.unverifiable.append(
            Unverifiable(subject.repo, subject.path, subject.blob, reason, subject.files)
        )

    def verification(self, seconds: float) -> Verification:
        """Return the results as the command's report."""
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
    """The part of a repo that is to be verified: all of it if no commits are named."""

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
    asked: dict[str, frozenset[str] | None] = {}
    repos = {repo.folder: repo for repo in state.repos}
    for name in names:
        try:
            target = find_targets(state, config, [name])[0]
        except UnknownModelError:
            named = names_in(state, config).resolve(name)
            model = named.model
            typed = {name.casefold(), parse_name(name).name.casefold()}
            if model is None or model.key.casefold() not in typed:
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
        commits = asked.get(repo.folder, frozenset())
        asked[repo.folder] = None if commit is None or commits is None else commits | {commit}
    # Complete repos come first.
    scopes = [Scope(repos[folder], commits) for folder, commits in asked.items()]
    return sorted(scopes, key=lambda scope: scope.commits is not None)


def subjects_of(scope: Scope, results: Results) -> list[Subject]:
    """Return what of a repo can be compared with a hash, and note what cannot."""
    repo = scope.repo
    users = repo.blob_users()
    trees = {revision.commit: revision.tree or {} for revision in scope.revisions}
    # Blobs that lost their links are checked too, since a repair would link them again.
    lost = {
        repo.trees[commit][name].etag
        for commit in scope.commits or ()
        for name in repo.lost_names(commit)
    }
    sizes: dict[str, set[int]] = defaultdict(set)
    for tree in repo.trees.values():
        for entry in tree.values():
            sizes[entry.etag].add(entry.content_size)
    subjects: list[Subject] = []
    covered: set[tuple[int, int]] = set()
    for name, blob in repo.blobs.items():
        links = [(commit, file) for commit, file in sorted(users[name]) if commit in trees]
        if not blob.present or (scope.commits is not None and not links and name not in lost):
            continue
        covered.add((blob.device, blob.inode))
        path = repo.blob_path(name)
        files = tuple(dict.fromkeys(file for _, file in links))
        listed = {trees[commit][file].etag for commit, file in links if file in trees[commit]}
        hashes = {name} if layout.is_etag(name) else set(filter(layout.is_etag, listed))
        if len(hashes) == 1:
            subject = Subject(repo.id, path, name, hashes.pop(), files)
            if _is_worth_reading(subject, blob.size, sizes[subject.expected], results):
                subjects.append(subject)
        else:
            reason = "its name is not a hash of the Hub's, and no listing names one"
            results.unverifiable.append(Unverifiable(repo.id, path, name, reason, files))
    subjects += _copies(scope, covered, results)
    return subjects


def _is_worth_reading(
    subject: Subject, size: int, sizes: Collection[int], results: Results
) -> bool:
    """Return whether only hashing shows if a file is good; note what is known without it.

    Args:
        subject: the file.
        size: its length.
        sizes: the lengths that listings give it.
        results: collects what is found.
    """
    if sizes and size not in sizes:
        listed = max(sizes)
        problem = "truncated-blob" if size < listed else "oversized-blob"
        detail = f"{subject.names} has {size} of {listed} bytes"
        results.note_damage(subject, None, problem, detail)
        return False
    if not sizes and size >= _HOLES:
        with contextlib.suppress(OSError):
            allocated = allocated_bytes(os.stat(subject.path))
            if size - allocated >= _HOLES and size > _MOST_HOLES * allocated:
                reason = "nearly all of it is holes, and no listing names its length"
                results.note_unverifiable(subject, reason)
                return False
    return True


def _copies(scope: Scope, covered: set[tuple[int, int]], results: Results) -> Iterator[Subject]:
    """Yield copies that stand in the place of links; note links to the wrong blob."""
    for revision in scope.revisions:
        for file in revision.files:
            listed = (revision.tree or {}).get(file.name)
            expected = listed.etag if listed is not None and layout.is_etag(listed.etag) else None
            path = revision.file_path(file.name)
            if file.kind == "copy" and expected is not None:
                subject = Subject(scope.repo.id, path, None, expected, (file.name,))
                sizes = () if listed is None else (listed.content_size,)
                if _is_worth_reading(subject, file.size, sizes, results):
                    yield subject
            elif file.kind == "copy" and (file.device, file.inode) not in covered:
                reason = "a copy in place of a link, and no listing names its hash"
                results.unverifiable.append(
                    Unverifiable(scope.repo.id, path, None, reason, (file.name,))
                )
            elif (
                file.kind == "link"
                and expected not in (None, file.blob)
                and layout.is_etag(file.blob or "")
            ):
                results.damaged[path] = Damage(
                    scope.repo.id,
                    path,
                    file.blob,
                    expected,
                    file.blob,
                    "wrong-link",
                    f"{file.name} is linked to other content than the listing names",
                    (file.name,),
                )


def check_headers(scope: Scope, results: Results) -> None:
    """Check the headers of safetensors files.

    A file that is what the Hub has and has an unreadable header is not damaged in this cache.
    """
    repo = scope.repo
    for revision in scope.revisions:
        for file in revision.files:
            path = revision.file_path(file.name)
            content = repo.blob_path(file.blob) if file.blob else path
            if (
                not file.name.endswith(_WEIGHTS)
                or file.kind not in ("link", "copy")
                or content in results.damaged
                or content in results.unchanged
                or content in results.unread
            ):
                continue
            code = "unreadable-header"
            try:
                read_header(path)
            except PermissionError:
                continue  # hashing has noted it
            except (OSError, ValueError) as error:
                if content in results.good:
                    detail = f"it is what the Hub has, but {reason_of(error)}"
                    results.findings.append(Finding(code, "warning", repo.id, path, detail))
                else:
                    results.damaged[content] = Damage(
                        repo.id,
                        content,
                        file.blob,
                        None,
                        None,
                        code,
                        reason_of(error),
                        (file.name,),
                    )


def add_findings(scope: Scope, results: Results) -> None:
    """Count what the scan found broken as damage: links, sizes, refs."""
    repo = scope.repo
    listings = {repo.tree_path(revision.commit) for revision in scope.revisions}
    inside = [revision.path + os.sep for revision in scope.revisions]
    inside += [
        repo.ref_path(ref) + os.sep
        for ref, commit in repo.refs.items()
        if scope.commits is not None and commit in scope.commits and repo.revision(commit) is None
    ]
    # What looks broken in other repos is a download that has just begun.
    is_damaged = judge_repo(repo) == "damaged"
    for finding in repo.findings:
        is_listing = finding.path in listings
        is_error = is_damaged and finding.severity == "error"
        known = results.damaged.get(finding.path)
        if (is_error or is_listing) and finding.code in (UNREADABLE, "unreadable-file"):
            if not is_listing:
                results.unread.add(finding.path)
            results.unverifiable.append(Unverifiable(repo.id, finding.path, None, finding.detail))
        elif is_error and known is not None:
            results.damaged[finding.path] = msgspec.structs.replace(
                known, problem=finding.code, detail=finding.detail
            )
        elif (is_listing and finding.code == "unreadable-tree") or (
            is_error
            and (scope.commits is None or f"{finding.path}{os.sep}".startswith(tuple(inside)))
        ):
            results.damaged[finding.path] = _broken(repo, finding)


def add_missing(scope: Scope, results: Results, state: CacheState) -> None:
    """Note what loading needs and the cache does not have, or has on a drive that is away."""
    repo, absent = scope.repo, set[str]()
    shut = [finding.path + os.sep for finding in repo.findings if finding.code == UNREADABLE]
    # Nothing is known to be missing from a drive that is away.
    for revision in scope.revisions if repo.away is None else ():
        if any(f"{revision.path}{os.sep}".startswith(folder) for folder in shut):
            continue  # what is in a folder that cannot be read is not known
        names = repo.lost_names(revision.commit) if revision.files else set()
        if scope.commits is not None or revision.refs:
            # In a revision that no ref names, nobody needs what a pattern left out.
            judgement = judge_revision(repo, revision, state.repo)
            names.update(judgement.missing)
            absent |= {other for other in judgement.missing_repos if state.repo(other) is None}
        results.missing += (
            Missing(repo.id, revision.commit, name, repo.type) for name in sorted(names)
        )
    results.missing += (
        other
        for name in sorted(absent)
        if (other := Missing(name, "main", "*")) not in results.missing
    )
    if repo.away is not None:
        reason = f"{away_words(repo.away, repo.id)}; {away_remedy(repo.away)}"
        results.unverifiable.append(Unverifiable(repo.id, repo.path, None, reason))
    elif not (repo.revisions or shut) and judge_repo(repo) != "damaged":
        results.missing.append(Missing(repo.id, "main", "*", repo.type))


def add_denied(scope: Scope, cache_dir: str, results: Results) -> None:
    """Note who owns what this user may not read of a repo, or why else it could not be read."""
    repo = scope.repo
    listings = os.path.dirname(repo.tree_path("any"))
    paths = [entry.path for entry in results.unverifiable if entry.repo == repo.id]
    # The hub's library lets only its own user read a listing; everything works without it.
    paths = [path for path in paths if os.path.dirname(path) != listings]
    denied = {path: denial(path, cache_dir) for path in paths if not os.access(path, os.R_OK)}
    reasons = list(filter(None, denied.values()))
    if reasons:
        detail = f"{counted(len(reasons), 'place')} cannot be read by you: {reasons[0].words}"
        results.findings.append(
            Finding(
                "unreadable-file", "warning", repo.id, next(iter(denied)), detail, reasons[0].remedy
            )
        )
    others = {
        entry.path: entry.reason
        for entry in results.unverifiable
        if entry.repo == repo.id and entry.path in results.unread and not denied.get(entry.path)
    }
    if others:
        path, reason = next(iter(others.items()))
        detail = f"{counted(len(others), 'place')} could not be checked: {reason}"
        results.findings.append(
            Finding("unreadable-file", "warning", repo.id, path, detail, "run it again")
        )


def blame_bases(scope: Scope, results: Results) -> None:
    """Note for what is damaged in a base that the base has it, and whom to tell."""
    repo = scope.repo
    by_base: dict[str, list[str]] = {}
    for path, damage in results.damaged.items():
        blob = repo.blobs.get(damage.blob or "")
        if damage.repo != repo.id or blob is None or blob.base is None:
            continue
        if path != repo.blob_path(blob.name):
            continue
        with contextlib.suppress(OSError):
            place = os.readlink(path)
            detail = f"{damage.detail}; it is the base's: {place}"
            results.damaged[path] = msgspec.structs.replace(damage, detail=detail, base=place)
            by_base.setdefault(blob.base, []).append(place)
    for base, places in by_base.items():
        results.findings.append(
            Finding(
                "damaged-base",
                "warning",
                repo.id,
                places[0],
                f"{counted(len(places), 'file')} of it in the base {base} "
                f"{'is' if len(places) == 1 else 'are'} damaged: tell whoever manages it",
                f"for a copy of your own: {command('verify', repo.id, '--repair')}",
            )
        )


def _broken(repo: Repo, finding: Finding) -> Damage:
    """Return the damage that a finding reports, with the hash that belongs there."""
    path, name = finding.path, os.path.basename(finding.path)
    blob: str | None = None
    expected: str | None = None
    files: tuple[str, ...] = ()
    if path == repo.blob_path(name):
        blob, expected = name, name if layout.is_etag(name) else None
    for revision in repo.revisions:
        if path.startswith(revision.path + os.sep):
            files = (os.path.relpath(path, revision.path).replace(os.sep, "/"),)
            listed = (revision.tree or {}).get(files[0])
            blob = expected = listed.etag if listed is not None else None
    return Damage(repo.id, path, blob, expected, None, finding.code, finding.detail, files)
