"""`verify`: whether every file of the cache has the content that its hash names."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.completeness import judge_repo, judge_revision
from vlmcache.cache.hashing import Check, Identity, Judged, hash_all, identify
from vlmcache.cache.moved import away_error, away_remedy, away_words
from vlmcache.cache.scan import scan
from vlmcache.cache.state import UNREADABLE, CacheState, File, Finding, Repo, Revision
from vlmcache.cache.weights import read_header
from vlmcache.change.names import find_targets, names_in
from vlmcache.commands.verify.values import Damage, Missing, Unverifiable, Verification
from vlmcache.config import CacheLocation, Config, Environment, own_home, parse_name
from vlmcache.errors import UnknownModelError, UsageError
from vlmcache.home.journal import Journal
from vlmcache.progress import Watcher

MAX_AGE = 7 * 86400.0
"""Seconds for which an unchanged file that was found good need not be read again."""
_REMEMBER_EVERY = 5.0
_LONG = 16 << 20
"""Length in bytes from which on a file's own progress is told."""
_SHORT_FILES = "small files"
_WEIGHTS = ".safetensors"


class _Scope(NamedTuple):
    """What of a repo is asked for: all of it where no commit is named."""

    repo: Repo
    commits: frozenset[str] | None

    @property
    def revisions(self) -> list[Revision]:
        return [
            one for one in self.repo.revisions if self.commits is None or one.commit in self.commits
        ]


class _Subject(NamedTuple):
    """A place whose content is to be compared with a hash."""

    repo: str
    path: str
    blob: str | None
    expected: str
    files: tuple[str, ...]


def verify(
    environment: Environment,
    config: Config,
    location: CacheLocation,
    names: Sequence[str] = (),
    *,
    max_age: float = MAX_AGE,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> Verification:
    """Compare every blob with its hash. Nothing is changed and no network is touched.

    Args:
        environment: the variables in force.
        config: whose keys count.
        location: the hub cache.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if none.
        max_age: seconds for which a file that was found good and is unchanged is not read again.
        workers: threads; one a core if not given.
        watcher: is told of the progress, from several threads.

    Raises:
        UnknownModelError: nothing of that name is configured or in the cache.
        AwayError: what is named is on a drive that is not mounted.
        ConfigError: the cache path is no folder.
    """
    return verify_state(
        environment,
        config,
        scan(location.dir),
        names,
        max_age=max_age,
        workers=workers,
        watcher=watcher,
    )


def verify_state(
    environment: Environment,
    config: Config,
    state: CacheState,
    names: Sequence[str] = (),
    *,
    max_age: float = MAX_AGE,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> Verification:
    """Do as `verify` does, for a cache that is scanned already."""
    begun = time.monotonic()
    report = _Report()
    scopes = _scopes(state, config, names, report)
    subjects: list[_Subject] = []
    for scope in scopes:
        subjects += _subjects(scope, report)
    if not names:
        report.unverifiable += (
            Unverifiable(None, shared.path, shared.hash, "no repo names its hash")
            for shared in state.shared.values()
            if not shared.users
        )
    with Journal(own_home(environment)[0]) as memory:
        _hash(subjects, report, memory, max_age, workers, watcher or Watcher())
    for scope in scopes:
        _check_headers(scope, report)
        _add_findings(scope, report)
        _add_missing(scope, report)
        _add_not_repairable(scope.repo, report)
    return Verification(
        report.checked,
        report.bytes,
        report.remembered,
        report.remembered_bytes,
        time.monotonic() - begun,
        tuple(sorted(report.damaged.values(), key=lambda one: (one.repo, one.path))),
        tuple(report.missing),
        tuple(report.unverifiable),
        tuple(report.findings),
    )


class _Report:
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


def _scopes(
    state: CacheState, config: Config, names: Sequence[str], report: _Report
) -> list[_Scope]:
    if not names:
        return [_Scope(repo, None) for repo in state.repos]
    whole: dict[str, Repo] = {}
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
            report.missing.append(Missing(model.repo, named.revision or model.revision, "*"))
            continue
        repo = repos.get(target.folder or "")
        # Of a ref whose snapshot was lost, the content may be here.
        commit = repo.refs.get(target.ref) if repo is not None and target.ref else target.commit
        if repo is None or (target.ref is not None and commit is None):
            raise UsageError(f"{name} is no model of which anything is there to verify")
        if repo.away is not None:
            raise away_error(repo, repo.away)
        if commit is None:
            whole[repo.folder] = repo
        else:
            parts.setdefault(repo.folder, set()).add(commit)
    found = [_Scope(repo, None) for repo in whole.values()]
    return found + [
        _Scope(repos[folder], frozenset(commits))
        for folder, commits in parts.items()
        if folder not in whole
    ]


def _subjects(scope: _Scope, report: _Report) -> list[_Subject]:
    """Return what of a repo can be compared with a hash, and report what cannot."""
    repo = scope.repo
    users = repo.blob_users()
    commits = {revision.commit for revision in scope.revisions}
    trees = {revision.commit: revision.tree or {} for revision in scope.revisions}
    # What was lost is checked too, since a repair would link it again.
    lost = {
        repo.trees[commit][name].etag
        for commit in scope.commits or ()
        for name in repo.lost_names(commit)
    }
    found: list[_Subject] = []
    covered: set[tuple[int, int]] = set()
    for name, blob in repo.blobs.items():
        links = [(commit, file) for commit, file in sorted(users[name]) if commit in commits]
        if not blob.present or (scope.commits is not None and not links and name not in lost):
            continue
        covered.add((blob.device, blob.inode))
        path = repo.blob_path(name)
        files = tuple(dict.fromkeys(file for _, file in links))
        listed = {trees[commit][file].etag for commit, file in links if file in trees[commit]}
        listed = {etag for etag in listed if layout.is_etag(etag)}
        if layout.is_etag(name):
            found.append(_Subject(repo.id, path, name, name, files))
        elif len(listed) == 1:
            found.append(_Subject(repo.id, path, name, listed.pop(), files))
        else:
            reason = "its name is no hash of the Hub's, and no listing names one"
            report.unverifiable.append(Unverifiable(repo.id, path, name, reason, files))
    for revision in scope.revisions:
        for file in revision.files:
            _add_file(repo, revision, file, covered, found, report)
    return found


def _add_file(
    repo: Repo,
    revision: Revision,
    file: File,
    covered: set[tuple[int, int]],
    found: list[_Subject],
    report: _Report,
) -> None:
    """Report a link to other content than the listing says; add a copy that stands for a blob."""
    listed = revision.tree.get(file.name) if revision.tree is not None else None
    expected = listed.etag if listed is not None and layout.is_etag(listed.etag) else None
    path = revision.file_path(file.name)
    if file.kind == "link":
        if expected is not None and file.blob not in (None, expected):
            assert file.blob is not None
            if layout.is_etag(file.blob):
                detail = f"{file.name} is linked to other content than the listing names"
                report.damaged[path] = Damage(
                    repo.id,
                    path,
                    file.blob,
                    expected,
                    file.blob,
                    "wrong-link",
                    detail,
                    (file.name,),
                )
    elif file.kind == "copy":
        if expected is not None:
            found.append(_Subject(repo.id, path, None, expected, (file.name,)))
        elif (file.device, file.inode) not in covered:
            reason = "a copy in place of a link, and no listing names its hash"
            report.unverifiable.append(Unverifiable(repo.id, path, None, reason, (file.name,)))


def _hash(
    subjects: Sequence[_Subject],
    report: _Report,
    memory: Journal,
    max_age: float,
    workers: int | None,
    watcher: Watcher,
) -> None:
    """Hash what is not known to be good; content that several places share is hashed once."""
    now = time.time()
    known = memory.verified() if max_age > 0 else {}
    places: dict[tuple[Identity, str], list[_Subject]] = {}
    for subject in subjects:
        try:
            identity = identify(subject.path)
        except OSError as error:
            _judged(
                report,
                [subject],
                Judged(
                    Check(subject.path, subject.expected),
                    None,
                    problem=f"it cannot be read: {error.strerror or error}",
                ),
            )
            continue
        places.setdefault((identity, subject.expected), []).append(subject)
    due: dict[str, list[_Subject]] = {}
    sizes: dict[str, int] = {}
    for (identity, expected), group in places.items():
        at = known.get((identity, expected))
        # An instant to come is none that can be trusted.
        if at is not None and 0 <= now - at < max_age:
            report.remembered += 1
            report.remembered_bytes += identity.size
            report.good |= {subject.path for subject in group}
            continue
        key = f"{expected} {group[0].path}"
        due[key] = group
        sizes[key] = identity.size
    if not due:
        return
    order = sorted(due, key=lambda key: -sizes[key])
    checks = [Check(due[key][0].path, due[key][0].expected) for key in order]
    repos = {subject.repo for group in due.values() for subject in group}
    label = repos.pop() if len(repos) == 1 else "verify"
    progress = _Progress(
        watcher,
        label,
        dict(zip((check.path for check in checks), (sizes[key] for key in order), strict=True)),
    )
    fresh: list[tuple[Identity, str]] = []
    recorded = time.monotonic()
    try:
        with contextlib.closing(hash_all(checks, workers, progress.moved)) as results:
            for judged in results:
                group = due[f"{judged.check.expected} {judged.check.path}"]
                _judged(report, group, judged)
                if judged.good and judged.identity is not None:
                    fresh.append((judged.identity, judged.check.expected))
                if fresh and time.monotonic() - recorded > _REMEMBER_EVERY:
                    memory.record_verified(fresh, now)
                    fresh, recorded = [], time.monotonic()
    finally:
        progress.ended()
        if fresh:
            memory.record_verified(fresh, now)


class _Progress:
    """Tells a watcher of long files one by one, and of all the others together."""

    def __init__(self, watcher: Watcher, label: str, sizes: dict[str, int]) -> None:
        self._watcher = watcher
        self._label = label
        self._sizes = sizes
        self._short = 0
        long = {path: size for path, size in sizes.items() if size >= _LONG}
        rest = sum(sizes.values()) - sum(long.values())
        watcher.started(label, long | ({_SHORT_FILES: rest} if rest else {}), 0)

    def moved(self, check: Check, position: int) -> None:
        """Take note of a file's progress."""
        size = self._sizes[check.path]
        if size >= _LONG:
            self._watcher.moved(self._label, check.path, position)
        elif position >= size:
            # A sum that loses a step to another thread does no harm.
            self._short += size
            self._watcher.moved(self._label, _SHORT_FILES, self._short)

    def ended(self) -> None:
        """Stop showing."""
        self._watcher.ended(self._label)


def _judged(report: _Report, group: Iterable[_Subject], judged: Judged) -> None:
    if judged.actual is not None and judged.identity is not None:
        report.checked += 1
        report.bytes += judged.identity.size
    for subject in group:
        report.fresh.add(subject.path)
        if judged.good:
            report.good.add(subject.path)
        elif judged.actual is None:
            report.unverifiable.append(
                Unverifiable(
                    subject.repo, subject.path, subject.blob, judged.problem or "", subject.files
                )
            )
        else:
            name = ", ".join(subject.files) or "a blob that nothing links to"
            report.damaged[subject.path] = Damage(
                subject.repo,
                subject.path,
                subject.blob,
                subject.expected,
                judged.actual,
                "wrong-content",
                f"{name} has other content than its hash says",
                subject.files,
            )


def _check_headers(scope: _Scope, report: _Report) -> None:
    """Look whether safetensors files make sense.

    One that is what the Hub has and makes no sense is no damage of this cache.
    """
    for revision in scope.revisions:
        for file in revision.files:
            if not file.name.endswith(_WEIGHTS) or file.kind not in ("link", "copy"):
                continue
            path = revision.file_path(file.name)
            blob = scope.repo.blob_path(file.blob) if file.blob else path
            if blob in report.damaged or (blob in report.good and blob not in report.fresh):
                continue
            try:
                read_header(path)
            except (OSError, ValueError) as error:
                if blob in report.good:
                    finding = Finding(
                        "unreadable-header",
                        "warning",
                        scope.repo.id,
                        path,
                        f"it is what the Hub has, but {error}",
                    )
                    report.findings.append(finding)
                else:
                    report.damaged[blob] = Damage(
                        scope.repo.id,
                        blob,
                        file.blob,
                        None,
                        None,
                        "unreadable-header",
                        str(error),
                        (file.name,),
                    )


def _add_findings(scope: _Scope, report: _Report) -> None:
    """Let what the scan found broken count as damage: links, sizes, refs."""
    repo = scope.repo
    listings = {repo.tree_path(revision.commit) for revision in scope.revisions}
    for finding in repo.findings:
        if finding.code == "unreadable-tree" and finding.path in listings:
            report.damaged[finding.path] = _broken(repo, finding)
        elif finding.code == "unreadable-file" and finding.path in listings:
            report.unverifiable.append(Unverifiable(repo.id, finding.path, None, finding.detail))
    if judge_repo(repo) != "damaged":
        return  # What looks broken is a download that has just begun.
    inside = [revision.path + os.sep for revision in scope.revisions]
    inside += [
        repo.ref_path(ref) + os.sep
        for ref, commit in repo.refs.items()
        if scope.commits is not None and commit in scope.commits and repo.revision(commit) is None
    ]
    for finding in repo.findings:
        if finding.severity != "error":
            continue
        if finding.code == UNREADABLE:
            report.unverifiable.append(Unverifiable(repo.id, finding.path, None, finding.detail))
            continue
        known = report.damaged.get(finding.path)
        if known is not None:
            report.damaged[finding.path] = msgspec.structs.replace(
                known, problem=finding.code, detail=finding.detail
            )
            continue
        in_blobs = finding.path.startswith(os.path.join(repo.path, layout.BLOBS) + os.sep)
        if scope.commits is not None and (
            in_blobs or not f"{finding.path}{os.sep}".startswith(tuple(inside))
        ):
            continue
        report.damaged[finding.path] = _broken(repo, finding)


def _broken(repo: Repo, finding: Finding) -> Damage:
    """Return the damage that a finding tells of, with the hash that belongs there."""
    folder, name = os.path.split(finding.path)
    if folder == os.path.join(repo.path, layout.BLOBS):
        expected = name if layout.is_etag(name) else None
        return Damage(repo.id, finding.path, name, expected, None, finding.code, finding.detail)
    for revision in repo.revisions:
        if finding.path.startswith(revision.path + os.sep):
            file = os.path.relpath(finding.path, revision.path).replace(os.sep, "/")
            listed = (revision.tree or {}).get(file)
            etag = listed.etag if listed is not None else None
            return Damage(
                repo.id, finding.path, etag, etag, None, finding.code, finding.detail, (file,)
            )
    return Damage(repo.id, finding.path, None, None, None, finding.code, finding.detail)


def _add_missing(scope: _Scope, report: _Report) -> None:
    for revision in scope.revisions:
        names = scope.repo.lost_names(revision.commit) if revision.files else set()
        if scope.commits is not None or revision.refs:
            # Of a revision that no ref names, nobody loads what a pattern left out.
            names.update(judge_revision(scope.repo, revision).missing)
        report.missing += (
            Missing(scope.repo.id, revision.commit, name, scope.repo.type) for name in sorted(names)
        )
    away = scope.repo.away
    if away is not None:
        reason = f"{away_words(away, scope.repo.id)}; {away_remedy(away)}"
        report.unverifiable.append(Unverifiable(scope.repo.id, scope.repo.path, None, reason))
    elif not scope.repo.revisions and judge_repo(scope.repo) != "damaged":
        report.missing.append(Missing(scope.repo.id, "main", "*", scope.repo.type))


def _add_not_repairable(repo: Repo, report: _Report) -> None:
    inside = repo.path + os.sep
    bad = any(f"{path}{os.sep}".startswith(inside) for path in report.damaged)
    bad = bad or any((one.repo, one.type) == (repo.id, repo.type) for one in report.missing)
    if bad and repo.type != "model":
        report.findings.append(
            Finding(
                "not-repairable",
                "warning",
                repo.id,
                repo.path,
                f"only models can be repaired: this is a {repo.type}",
                units.of_other_type(repo.type, repo.id),
            )
        )
