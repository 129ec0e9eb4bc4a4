"""From a folder to a `CacheState`: every entry looked at once, damage turned into findings.

The scan reads names, stats, link targets, refs and tree listings; it opens no weights and changes
nothing, access times included. Whatever it meets, it goes on: a place that cannot be read becomes a
finding, its own bytes are counted, and the rest is listed.
"""

from __future__ import annotations

import gc
import os
import stat as modes
import time
from collections.abc import Collection, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.entries import (
    REF_LIMIT,
    Listed,
    Notes,
    Tally,
    add_below,
    add_stray,
    allocated_bytes,
    entry_of,
    read_entries,
    read_link,
)
from vlmcache.cache.moved import DRIVE_AWAY, away_remedy, away_words, linked_destination
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.scan_repo import RepoScan
from vlmcache.cache.state import (
    UNREADABLE,
    ByClass,
    CacheState,
    Entry,
    Leftover,
    LockFolder,
    Repo,
    SharedBlob,
    Stray,
)
from vlmcache.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


_MOUNT_IT = "mount that drive"

_LONGEST_CHAIN = 40
"""Links that the system follows for one path."""


def _led_to(path: str) -> list[str]:
    """Return where a link leads, and the links that it leads through, each below a real folder."""
    found: list[str] = []
    while len(found) < _LONGEST_CHAIN:
        here = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        found.append(os.path.normpath(here))
        target = read_link(here)
        if not target:
            break
        path = os.path.join(os.path.dirname(here), target.rstrip("/"))
    return found[1:]


def rebased(path: str, folder: str, other: str) -> str:
    """Return a path with one name of a folder that it lies below replaced by another name."""
    start = folder.rstrip(os.sep) + os.sep
    return os.path.join(other, path[len(start) :]) if path.startswith(start) else path


class _ScannedRepo(NamedTuple):
    repo: Repo
    tally: Tally


class _CacheScan:
    """The scan of a whole cache; `run` returns the `CacheState`.

    Args:
        cache_dir: the cache's folder.
        now: seconds since the epoch.
        known: repo folder -> what an earlier scan found, for repos that are not to be read again.
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
        self.tally = Tally()
        self.notes = Notes(None)
        self.shared: dict[str, SharedBlob] = {}
        self.shared_marked = False
        self.locks: dict[str, LockFolder] = {}
        self.leftovers: list[Leftover] = []

    @property
    def repos(self) -> tuple[Repo, ...]:
        return tuple(scanned.repo for scanned in self.scanned.values())

    def run(self) -> CacheState:
        self.tally.add("metadata", os.stat(self.dir))
        found: list[tuple[Listed, str, str]] = []
        entries = read_entries(self.dir, self.notes)
        for finding in self.notes.findings:
            if finding.code == UNREADABLE:
                raise _unreadable_cache(self.dir, finding.detail.rpartition(": ")[2])
        for entry, stat in entries:
            repo = layout.parse_repo_folder(entry.name)
            if repo is not None and not modes.S_ISREG(stat.st_mode):
                found.append(((entry, stat), *repo))
            else:
                self._read_other(entry, stat)
        for (entry, stat), kind, repo_id in found:
            if self.only is None or entry.name in self.only:
                # A repo that is removed while the cache is read is none of it any more.
                with suppress(FileNotFoundError):
                    self._read_repo(entry, stat, kind, repo_id)
        if self.only is None:
            self._find_users()
            self._find_same_commits()
        return CacheState(
            dir=self.dir,
            exists=True,
            repos=self.repos,
            shared=self.shared,
            shared_marked=self.shared_marked,
            strays=tuple(self.notes.strays),
            by_class=self.tally.by_class(),
            findings=tuple(self.notes.findings),
            scanned_at=self.now,
            locks=self.locks,
            leftovers=tuple(self.leftovers),
            outside={
                rebased(path, os.path.realpath(self.dir), self.dir): repo.folder
                for repo in self.repos
                for finding in repo.findings
                if finding.code == "outside-link"
                for path in _led_to(finding.path)
            },
        )

    def _read_locks(self, path: str) -> None:
        for entry, stat in read_entries(path, self.notes):
            if not modes.S_ISDIR(stat.st_mode):
                if self._is_needless_record(entry.name):
                    add_stray(entry, stat, self.tally, self.notes, leftover=True)
                else:
                    self.tally.add("metadata", stat)
                continue
            self.tally.add("metadata", stat)
            files: dict[str, Entry] = {}
            other = 0
            for lock, status in read_entries(entry.path, self.notes):
                self.tally.add("metadata", status)
                if modes.S_ISREG(status.st_mode) and lock.name.endswith(layout.LOCK_SUFFIX):
                    files[lock.name] = entry_of(status)
                    continue
                other += 1
                if modes.S_ISDIR(status.st_mode):
                    add_below(lock.path, "metadata", self.tally, self.notes)
            self.locks[entry.name] = LockFolder(entry.path, entry_of(stat), files, other)

    def _is_needless_record(self, name: str) -> bool:
        """Whether a file among the locks records where a repo went that has no link here."""
        folder, suffix, rest = name.partition(layout.RECORD_SUFFIX)
        if not suffix or layout.parse_repo_folder(folder) is None:
            return False
        return bool(rest) or not os.path.islink(os.path.join(self.dir, folder))

    def _read_leftovers(self, path: str) -> None:
        """Read what interrupted removals left: `<unique>/<repo folder>/…`, as in a repo."""
        for job, found in read_entries(path, self.notes):
            if not modes.S_ISDIR(found.st_mode):
                continue
            for repo, stat in read_entries(job.path, self.notes):
                if layout.parse_repo_folder(repo.name) is None:
                    continue
                refs: dict[str, str] = {}
                commits: set[str] = set()
                blobs: set[str] = set()
                shared: set[str] = set()
                below = 0
                pending = [(repo.path, "")] if modes.S_ISDIR(stat.st_mode) else []
                while pending:
                    folder, prefix = pending.pop()
                    for entry, status in read_entries(folder, self.notes):
                        below += allocated_bytes(status)
                        name = prefix + entry.name
                        parts = name.split("/")
                        if len(parts) > 1 and parts[0] == layout.SNAPSHOTS:
                            commits.add(parts[1])
                        if modes.S_ISDIR(status.st_mode):
                            pending.append((entry.path, name + "/"))
                        elif modes.S_ISLNK(status.st_mode):
                            target = read_link(entry.path)
                            shared_hash = layout.shared_hash_of(target)
                            if shared_hash is not None:
                                shared.add(shared_hash)
                            elif target.split("/")[-2:-1] == [layout.BLOBS]:
                                blobs.add(target.rpartition("/")[2])
                        elif parts[0] == layout.REFS:
                            try:
                                commit = read_bytes(entry.path, REF_LIMIT).decode().strip()
                            except (OSError, UnicodeDecodeError):
                                continue
                            refs[name.partition("/")[2]] = commit
                self.leftovers.append(
                    Leftover(
                        repo.path,
                        repo.name,
                        os.path.basename(job.path).startswith(layout.WHOLE_REPO),
                        refs,
                        tuple(sorted(commits)),
                        tuple(sorted(blobs)),
                        tuple(sorted(shared)),
                        entry_of(stat, below),
                    )
                )

    def _read_other(self, entry: os.DirEntry[str], stat: os.stat_result) -> None:
        """An entry of the cache root that is no repo."""
        folder = modes.S_ISDIR(stat.st_mode)
        if folder and entry.name == layout.LOCKS:
            self.tally.add("metadata", stat)
            self._read_locks(entry.path)
        elif folder and entry.name == layout.SHARED_STORE:
            self._read_shared_store(entry, stat)
        elif folder and entry.name == layout.LEFTOVERS:
            allocated = self.tally.add("orphan", stat)
            below, size = add_below(entry.path, "orphan", self.tally, self.notes)
            self.notes.strays.append(
                Stray(
                    entry.path,
                    size,
                    allocated + below,
                    stat.st_ino,
                    stat.st_mtime_ns,
                    folder=True,
                    leftover=True,
                    device=stat.st_dev,
                )
            )
            self._read_leftovers(entry.path)
            self.notes.warning(
                "leftover", entry.path, "a removal was interrupted", units.command("clean")
            )
        elif folder and entry.name == layout.MOVING:
            self.tally.add("partial", stat)
            add_below(entry.path, "partial", self.tally, self.notes)
            self.notes.info(
                "unfinished-move",
                entry.path,
                "a move to this folder is going on, or was interrupted",
                "run the same 'vlmcache move' again, or with --undo",
            )
        elif entry.name in layout.ROOT_FILES and modes.S_ISREG(stat.st_mode):
            self.tally.add("metadata", stat)
        else:
            add_stray(entry, stat, self.tally, self.notes)

    def _read_shared_store(self, store: os.DirEntry[str], stat: os.stat_result) -> None:
        marker = os.path.join(store.path, layout.SHARED_MARKER)
        try:
            self.shared_marked = read_bytes(marker, 64) == layout.SHARED_MARKER_TEXT.encode()
        except OSError:
            self.shared_marked = False
        if not self.shared_marked:
            add_stray(
                store,
                stat,
                self.tally,
                self.notes,
                detail="looks like the hub's shared blob store but lacks its marker file",
            )
            return
        self.tally.add("metadata", stat)
        for entry, status in read_entries(store.path, self.notes):
            if entry.name == layout.SHARED_MARKER:
                self.tally.add("metadata", status)
            elif modes.S_ISDIR(status.st_mode) and len(entry.name) == 2:
                self.tally.add("metadata", status)
                self._read_shared_folder(entry.path, entry.name)
            else:
                add_stray(entry, status, self.tally, self.notes)

    def _read_shared_folder(self, path: str, prefix: str) -> None:
        entries = read_entries(path, self.notes)
        names = {entry.name for entry, _ in entries}
        manifests: dict[str, int] = {}
        for entry, status in entries:
            name = entry.name
            regular = modes.S_ISREG(status.st_mode)
            payload = name.removesuffix(layout.MANIFEST_SUFFIX).removesuffix(".soft")
            payload = payload.removesuffix(layout.LOCK_SUFFIX)
            ours = layout.SHARED_HASH.fullmatch(payload) is not None and payload[:2] == prefix
            if regular and ours and payload == name:
                allocated = self.tally.add("shared", status)
                self.shared[name] = SharedBlob(
                    name,
                    entry.path,
                    status.st_size,
                    allocated,
                    status.st_ino,
                    status.st_dev,
                    status.st_nlink,
                    status.st_mtime_ns,
                    name + layout.MANIFEST_SUFFIX in names,
                )
            elif regular and ours:
                allocated = self.tally.add("metadata", status)
                if name.endswith(layout.MANIFEST_SUFFIX):
                    manifests[payload] = allocated
            else:
                add_stray(entry, status, self.tally, self.notes)
        for shared_hash, allocated in manifests.items():
            if shared_hash in self.shared:
                self.shared[shared_hash] = msgspec.structs.replace(
                    self.shared[shared_hash], manifest_allocated=allocated
                )

    def _read_repo(
        self, entry: os.DirEntry[str], stat: os.stat_result, kind: str, repo_id: str
    ) -> None:
        scanned = self.known.get(entry.name)
        if scanned is None:
            scanned = self._scan_repo(entry, stat, kind, repo_id)
        self.scanned[entry.name] = scanned
        if scanned.repo.linked_to is None:
            self.tally.merge(scanned.tally)
        else:
            self.tally.add("metadata", stat)

    def _scan_repo(
        self, entry: os.DirEntry[str], stat: os.stat_result, kind: str, repo_id: str
    ) -> _ScannedRepo:
        linked_to = os.path.realpath(entry.path) if modes.S_ISLNK(stat.st_mode) else None
        repo_scan = RepoScan(
            entry.path, entry.name, kind, repo_id, self.dir, self.shared, linked_to
        )
        notes = repo_scan.notes
        if linked_to is not None and os.path.isdir(entry.path):
            notes.info("linked-repo", entry.path, f"the repo lies at {linked_to}")
        elif repo_scan.away is not None:
            words = away_words(repo_scan.away)
            notes.warning(DRIVE_AWAY, entry.path, words, away_remedy(repo_scan.away))
        elif linked_to is not None:
            moved = linked_destination(self.dir, entry.name) is not None
            back = "'vlmcache move --relink FOLDER' if it was moved on" if moved else _MOUNT_IT
            notes.error(
                "dangling-link",
                entry.path,
                f"the repo's folder is a link to {linked_to}, which is not there",
                f"{back}, or remove the link: {units.command('rm', repo_id)}",
            )
        repo_scan.entry = entry_of(stat)
        if linked_to is not None and not os.path.isdir(entry.path):
            repo = repo_scan.nothing()
        else:
            repo_scan.tally.add("metadata", os.stat(entry.path))
            repo = repo_scan.run(self.now)
        return _ScannedRepo(repo, repo_scan.tally)

    def _find_users(self) -> None:
        """Tell each shared blob which repo blobs link to it."""
        users: dict[str, list[str]] = {}
        for repo in self.repos:
            for blob in repo.blobs.values():
                if blob.shared is not None:
                    users.setdefault(blob.shared, []).append(f"{repo.folder}/blobs/{blob.name}")
        for shared_hash, shared in self.shared.items():
            if shared_hash in users:
                self.shared[shared_hash] = msgspec.structs.replace(
                    shared, users=tuple(users[shared_hash])
                )
            else:
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
                    "the shared blob has no manifest of its references: the hub never frees it",
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
    """The scan makes many values and no cycles; the cyclic collector would only walk them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Scanner:
    """Scans one cache again and again, and reads only what is told to have changed.

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
                last scan; all of them if not given. Repos that are none of these are taken from
                the last scan, as the very same values. Repos that came or went need not be named.
            now: seconds since the epoch, against which partial downloads are judged.
            only: the repo folders to read; all of them if not given.

        Raises:
            ConfigError: the path exists and is no folder.
            CacheError: the folder cannot be read: what it holds is not known.
        """
        now = time.time() if now is None else now
        known = {} if touched is None else self._untouched(touched)
        self._scanned = {}
        if _is_there(self.dir):
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
        # What a repo's blob says of itself depends on the shared blob that it is a link to.
        shared = layout.SHARED_STORE in touched
        return {
            folder: scanned
            for folder, scanned in self._scanned.items()
            if folder not in touched
            and not (shared and any(blob.shared for blob in scanned.repo.blobs.values()))
        }


def _is_there(path: str) -> bool:
    """Return whether the cache's folder is there.

    Raises:
        ConfigError: something else is.
        CacheError: that cannot be told.
    """
    try:
        folder = modes.S_ISDIR(os.stat(path).st_mode)
    except NotADirectoryError:
        folder = False
    except FileNotFoundError:
        if not os.path.lexists(path):
            return False
        folder = False
    except OSError as error:
        raise _unreadable_cache(path, error.strerror or str(error)) from error
    if not folder:
        raise ConfigError(
            f"the cache path is not a folder: {path}",
            "name another with --cache-dir or HF_HUB_CACHE; 'vlmcache doctor' shows the sources",
        )
    return True


def _unreadable_cache(path: str, reason: str) -> CacheError:
    return CacheError(
        f"the cache cannot be read: {reason}: {path}", "'vlmcache doctor' tells whose it is"
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
        only: folder names of the repos to look at, where the others are of no interest; what is
            known only from all of them (users of shared blobs, sums) is then left out.

    Raises:
        ConfigError: the path exists and is no folder.
        CacheError: the folder cannot be read: what it holds is not known.
    """
    return Scanner(cache_dir).scan(now=now, only=only)
