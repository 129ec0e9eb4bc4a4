"""From a folder to a `CacheState`: every entry read once, damage turned into findings.

The scan reads names, stats, link targets, refs and listings. It opens no weights and changes
nothing, not even access times. Whatever it meets, it continues: a place that cannot be read becomes
a finding, its own bytes are counted, and the rest is listed.
"""

from __future__ import annotations

import gc
import os
import stat as modes
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlmcache import progress, units
from vlmcache.cache import layout
from vlmcache.cache.entries import (
    ByteTally,
    Entry,
    Notes,
    read_entries,
    read_link,
)
from vlmcache.cache.moved import DRIVE_AWAY, away_remedy, away_words, linked_destination
from vlmcache.cache.repo_content import RepoContent
from vlmcache.cache.scan_repo import read_repo
from vlmcache.cache.scan_root import RootScan
from vlmcache.cache.state import (
    UNREADABLE,
    ByClass,
    CacheState,
    FileMark,
    Repo,
)
from vlmcache.errors import CacheError, ConfigError, reason_of
from vlmcache.paths import real_path

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNT_IT = "mount that drive"

MANY_REPOS = 10_000
"""The number of repos from which on reading a cache takes so long that progress is shown."""
_LONGEST_CHAIN = 40
"""The most links that the system follows for one path."""


def _led_to(path: str) -> list[str]:
    """Return the paths that a link leads through and to, each below a real folder."""
    chain: list[str] = []
    while len(chain) < _LONGEST_CHAIN:
        here = os.path.join(real_path(os.path.dirname(path)), os.path.basename(path))
        chain.append(os.path.normpath(here))
        target = read_link(here)
        if not target:
            break
        path = os.path.join(os.path.dirname(here), target.rstrip("/"))
    return chain[1:]


def rebased(path: str, folder: str, other: str) -> str:
    """Return a path with one name of a folder that it lies below replaced by another name."""
    start = folder.rstrip(os.sep) + os.sep
    return os.path.join(other, path[len(start) :]) if path.startswith(start) else path


class _ScannedRepo(NamedTuple):
    repo: Repo
    tally: ByteTally


class _CacheScan:
    """The scan of a complete cache; `run` returns the `CacheState`.

    Args:
        cache_dir: the cache's folder.
        now: seconds since the epoch.
        known: repo folder -> the result of an earlier scan, for repos not to be read again.
        only: the repo folders to read; all of them if not given.
    """

    def __init__(
        self,
        cache_dir: str,
        now: float,
        known: Mapping[str, _ScannedRepo],
        only: Collection[str] | None,
    ) -> None:
        self.dir = cache_dir
        self.now = now
        self.known = known
        self.only = only
        self.scanned: dict[str, _ScannedRepo] = {}
        self.notes = Notes(None)
        self.root = RootScan(cache_dir, self.notes)

    @property
    def repos(self) -> tuple[Repo, ...]:
        return tuple(scanned.repo for scanned in self.scanned.values())

    def run(self) -> CacheState:
        self.notes.tally.add("metadata", os.stat(self.dir))
        repos: list[Entry] = []
        entries = read_entries(self.dir, self.notes)
        for finding in self.notes.findings:
            if finding.code == UNREADABLE:
                raise _unreadable_cache(self.dir, finding.detail.rpartition(": ")[2])
        for name, stat in entries:
            parsed = layout.parse_repo_folder(name)
            if parsed is not None and not modes.S_ISREG(stat.st_mode):
                repos.append((name, stat))
            else:
                self.root.read(name, stat)
        report = progress.scanned.get() if len(repos) > MANY_REPOS else None
        for number, (name, stat) in enumerate(repos):
            if report is not None:
                report(number, len(repos))
            if self.only is None or name in self.only:
                # A repo that is removed while the cache is read is left out.
                with suppress(FileNotFoundError):
                    self._read_repo(name, stat)
        if self.only is None:
            self._find_users()
            self._find_same_commits()
        return CacheState(
            dir=self.dir,
            exists=True,
            repos=self.repos,
            shared=self.root.shared,
            shared_marked=self.root.shared_marked,
            strays=tuple(self.notes.strays),
            by_class=self.notes.tally.by_class(),
            findings=tuple(self.notes.findings),
            scanned_at=self.now,
            locks=self.root.locks,
            leftovers=tuple(self.root.leftovers),
            outside={
                rebased(path, real_path(self.dir), self.dir): repo.folder
                for repo in self.repos
                for finding in repo.findings
                if finding.code == "outside-link"
                for path in _led_to(finding.path)
            },
        )

    def _read_repo(self, folder: str, stat: os.stat_result) -> None:
        scanned = self.known.get(folder) or self._scan_repo(folder, stat)
        self.scanned[folder] = scanned
        if scanned.repo.linked_to is None:
            self.notes.tally.merge(scanned.tally)
        else:
            self.notes.tally.add("metadata", stat)

    def _scan_repo(self, folder: str, stat: os.stat_result) -> _ScannedRepo:
        content = RepoContent(self.dir, folder, stat, self.root.shared)
        path, linked_to, notes = content.path, content.linked_to, content.notes
        if linked_to is not None and content.exists:
            notes.info("linked-repo", path, f"the repo is at {linked_to}")
        elif content.away is not None:
            notes.warning(DRIVE_AWAY, path, away_words(content.away), away_remedy(content.away))
        elif linked_to is not None:
            moved = linked_destination(self.dir, folder) is not None
            back = "'vlmcache move --relink FOLDER' if it was moved on" if moved else _MOUNT_IT
            notes.error(
                "dangling-link",
                path,
                f"the repo's folder is a link to {linked_to}, which does not exist",
                f"{back}, or remove the link: {units.command('rm', content.id)}",
            )
        if content.exists:
            try:
                notes.tally.add("metadata", os.stat(path))
            except FileNotFoundError:
                raise
            except OSError:
                pass  # a link that leads elsewhere by now
        return _ScannedRepo(read_repo(content, self.now), notes.tally)

    def _find_users(self) -> None:
        """Set the repo blobs that link to each shared blob."""
        users: dict[str, list[str]] = {}
        all_read = True
        for repo in self.repos:
            all_read = all_read and all(finding.code != UNREADABLE for finding in repo.findings)
            for blob in repo.blobs.values():
                if blob.shared is not None:
                    users.setdefault(blob.shared, []).append(f"{repo.folder}/blobs/{blob.name}")
        for shared_hash, shared in self.root.shared.items():
            self.root.shared[shared_hash] = msgspec.structs.replace(
                shared, users=tuple(users.get(shared_hash, ()))
            )
            if all_read and shared_hash not in users:
                self.notes.warning(
                    "orphan-shared-blob",
                    shared.path,
                    "no repo links to this shared blob",
                    units.command("clean"),
                )
            if not shared.manifest:
                self.notes.warning(
                    "missing-manifest",
                    shared.path,
                    "the shared blob has no manifest of its users, so the hub never removes it",
                )

    def _find_same_commits(self) -> None:
        repos: dict[str, list[Repo]] = {}
        for repo in self.repos:
            for revision in repo.revisions:
                repos.setdefault(revision.commit, []).append(repo)
        for commit, holders in repos.items():
            if len(holders) > 1:
                names = ", ".join(sorted(f"{repo.id} ({repo.type})" for repo in holders))
                self.notes.info(
                    "same-commit", self.dir, f"commit {commit} is in several repos: {names}"
                )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Turn the cyclic garbage collector off: the scan makes many values and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Scanner:
    """Scans one cache repeatedly, and reads only what may have changed.

    Args:
        cache_dir: the hub cache's folder; it may be absent.
    """

    def __init__(self, cache_dir: str | os.PathLike[str]) -> None:
        self.dir = os.path.abspath(cache_dir)
        self._scanned: dict[str, _ScannedRepo] = {}

    def scan(
        self,
        touched: Collection[str] | None = None,
        *,
        now: float | None = None,
        only: Collection[str] | None = None,
    ) -> CacheState:
        """Return what is in the cache folder.

        Args:
            touched: names in the cache folder below which something may have changed since the
                last scan; all of them if not given. Other repos are taken from the last scan, as
                the same objects. Repos that were added or removed need not be named.
            now: seconds since the epoch, against which partial downloads are judged.
            only: the repo folders to read; all of them if not given.

        Raises:
            ConfigError: the path exists and is not a folder.
            CacheError: the folder cannot be read.
        """
        now = time.time() if now is None else now
        known = {} if touched is None else self._untouched(touched)
        self._scanned = {}
        if _exists(self.dir):
            with _without_collection():
                cache_scan = _CacheScan(self.dir, now, known, only)
                state = cache_scan.run()
            self._scanned = cache_scan.scanned
            return state
        return CacheState(
            dir=self.dir,
            exists=False,
            repos=(),
            shared={},
            shared_marked=False,
            strays=(),
            by_class=ByClass(),
            findings=(),
            scanned_at=now,
        )

    def _untouched(self, touched: Collection[str]) -> dict[str, _ScannedRepo]:
        # The values of a blob depend on the shared blob that it links to.
        shared = layout.SHARED_STORE in touched
        return {
            folder: scanned
            for folder, scanned in self._scanned.items()
            if folder not in touched
            and not (shared and any(blob.shared for blob in scanned.repo.blobs.values()))
        }


def _exists(path: str) -> bool:
    """Return whether the cache's folder exists.

    Raises:
        ConfigError: something else has its name.
        CacheError: the system does not say.
    """
    try:
        if modes.S_ISDIR(os.stat(path).st_mode):
            return True
    except (NotADirectoryError, FileNotFoundError) as error:
        # Only a link that leads nowhere: a folder there was made by another program just now.
        if isinstance(error, FileNotFoundError) and not os.path.islink(path):
            return False
    except OSError as error:
        raise _unreadable_cache(path, reason_of(error)) from error
    raise ConfigError(
        f"the cache path is not a folder: {path}",
        "name another with --cache-dir or HF_HUB_CACHE; 'vlmcache doctor' shows the sources",
    )


def _unreadable_cache(path: str, reason: str) -> CacheError:
    return CacheError(
        f"the cache cannot be read: {reason}: {path}", "'vlmcache doctor' shows whose it is"
    )


def scan(
    cache_dir: str | os.PathLike[str],
    *,
    now: float | None = None,
    only: Collection[str] | None = None,
) -> CacheState:
    """Return what is in a cache folder.

    Args:
        cache_dir: the hub cache's folder; it may be absent.
        now: seconds since the epoch, against which partial downloads are judged.
        only: the repo folders to read; all of them if not given. What is known only from all of
            them (users of shared blobs, sums) is then left out.

    Raises:
        ConfigError: the path exists and is not a folder.
        CacheError: the folder cannot be read.
    """
    return Scanner(cache_dir).scan(now=now, only=only)


def repo_finder(cache_dir: str, damaged: Collection[FileMark] = ()) -> Callable[[str], Repo | None]:
    """Return a function that finds a repo by what is typed for it, and reads nothing else.

    Args:
        cache_dir: the cache.
        damaged: the files to mark, as for `CacheState.with_damage`.
    """

    def find(name: str) -> Repo | None:
        state = scan(cache_dir, only={layout.folder_of(name)})
        return state.with_damage(damaged).repo(name)

    return find
