"""`backup` and `restore`: models to one tar stream or to a store, and back."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple

import msgspec

from vlmcache.archive import places, stream
from vlmcache.archive.arriving import Arrivals
from vlmcache.archive.parallel import each
from vlmcache.archive.saved import (
    BackupError,
    SavedBlob,
    SavedRepo,
    Saving,
    narrowed,
    prepare,
    wishes,
)
from vlmcache.archive.store import (
    ChangedRef,
    Store,
    Upload,
    blob_name,
    new_manifests,
    revisions_of,
)
from vlmcache.cache import layout
from vlmcache.cache.hashing import BLOCK, Check, hash_all
from vlmcache.cache.moves import away_error
from vlmcache.cache.reading import open_quietly, read_bytes
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.change import placing
from vlmcache.change.needed import is_read
from vlmcache.change.plan import Action, Kept, Outcome, Plan, Receipt, Restore, WriteRef
from vlmcache.change.targets import find_targets
from vlmcache.config import CacheLocation, Config
from vlmcache.errors import ChangedError, PartlyError, UsageError, VlmcacheError
from vlmcache.hub.progress import Pace, Watcher

STREAM = "-"
_LONG = 16 << 20
_REF_LIMIT = 4096
_MAKE_ROOM = "'vlmcache status' shows what makes room"
"""Length in bytes from which on a file's progress is told."""


class Amount(msgspec.Struct, frozen=True):
    """So many blobs, and their length in bytes."""

    blobs: int = 0
    size: int = 0


class Backup(msgspec.Struct, frozen=True):
    """What `vlmcache backup` answers. size is the length of all blobs, seconds how long it took.

    uploaded: what was written. skipped: what the store had already. Content that several repos or
    files share counts once in both. refs: what refs of the store were changed or are new.
    left_out: repos of which nothing could be saved although none was named.
    """

    destination: str
    repos: tuple[str, ...]
    blobs: int
    size: int
    uploaded: Amount
    skipped: Amount
    refs: tuple[ChangedRef, ...]
    seconds: float
    left_out: tuple[str, ...] = ()


class Restored(msgspec.Struct, frozen=True):
    """What `vlmcache restore` answers. size is the length of all blobs that were asked for.

    skipped: what the cache had already.
    """

    source: str
    repos: tuple[str, ...]
    blobs: int
    size: int
    skipped: Amount
    plan: Plan
    receipt: Receipt | None
    seconds: float
    cache: str = ""
    """The hub cache."""


def backup(
    config: Config,
    location: CacheLocation,
    destination: str,
    names: Sequence[str] = (),
    watcher: Watcher | None = None,
    *,
    verify: bool = False,
) -> Backup:
    """Save models, every byte that is written compared with its hash on the way.

    Args:
        config: whose keys count.
        location: the hub cache.
        destination: a folder or an address of fsspec for a store, to which only what it lacks is
            written; a file or an address that ends in `.tar` for one tar stream, or `-` for stdout.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if none.
        watcher: is told of the progress.
        verify: read what a store has already, and write anew what is not what its hash says.

    Raises:
        UnknownModelError: nothing of that name is in the cache.
        AwayError: what is named is on a drive that is not mounted.
        UsageError: the destination makes no sense.
        BackupError: something is damaged. No tar stream is kept; what a store got before stays, and
            no revision there leads to anything that it lacks.
        PlaceError: the destination cannot be reached or written.
        SpaceError: the disk has too little room.
    """
    begun = time.monotonic()
    watcher = watcher or Watcher()
    to_store = destination != STREAM and places.is_store(destination)
    if verify and not to_store:
        raise UsageError("only a store has something to verify", "name a folder or a bucket")
    _check_destination(destination, location.dir)
    state = scan(location.dir)
    parts = [prepare(repo, commits) for repo, commits in _chosen(state, config, names)]
    if not parts:
        for repo in state.repos:
            if repo.away is not None:
                raise away_error(repo, repo.away)
        raise UsageError(f"nothing to back up in {state.dir}", "'vlmcache pull' fills it")
    if to_store:
        went = _to_store(destination, parts, watcher, verify=verify)
    else:
        went = _to_stream(destination, parts, watcher)
    return Backup(
        places.without_password(destination),
        tuple(part.saved.id for part in parts),
        sum(len(part.saved.blobs) for part in parts),
        sum(blob.size for part in parts for blob in part.saved.blobs.values()),
        went.uploaded,
        went.skipped,
        went.refs,
        time.monotonic() - begun,
        () if names else tuple(repo.id for repo in state.repos if _is_left_out(repo)),
    )


def incomplete(value: Backup) -> PartlyError | None:
    """Return what a backup has to tell of, or `None` if nothing was left out."""
    if not value.left_out:
        return None
    return PartlyError(
        "not saved, since it is on a drive that is not mounted, cannot be read or has no snapshot: "
        f"{', '.join(value.left_out)}",
        "'vlmcache status --all' tells why",
    )


def _is_left_out(repo: Repo) -> bool:
    """Whether there is something of a repo that a backup does not hold; a begun download is not."""
    return not is_read(repo) or (bool(repo.blobs) and not repo.revisions)


def restore(
    config: Config,
    location: CacheLocation,
    source: str,
    names: Sequence[str] = (),
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    watcher: Watcher | None = None,
) -> Restored:
    """Bring a backup back into the cache, every byte compared with its hash before it counts.

    Blobs that are there and right are skipped, so that an interrupted restore goes on; from a store
    within a blob too. Refs come last; one that names another commit here stays unless `overwrite`.
    What a store has damaged of one repo does not keep the others: see `problem`.

    Args:
        config: its limits and keys count.
        location: the hub cache.
        source: a store or a tar stream, as of `backup`, or `-` for stdin.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if none.
        overwrite: let refs of the backup take the place of others.
        dry_run: only plan.
        watcher: is told of the progress.

    Raises:
        BackupError: it is no backup, or a damaged or hostile one. Blobs that were whole before that
            came to light stay; no ref leads to anything that is not there.
        PlaceError: the source cannot be reached or read.
        SpaceError: the disk has too little room.
        UnknownModelError: nothing of that name is in the backup.
        UsageError: the source makes no sense.
    """
    begun = time.monotonic()
    watcher = watcher or Watcher()
    with _opened(source, config, names) as saved:
        plan = _plan(location.dir, saved.repos, overwrite=overwrite)
        receipt = None
        if not dry_run:
            placing.check_room(location.dir, plan.needs, _MAKE_ROOM)
            receipt = _Restoring(location.dir, saved, plan, watcher).run()
    actions = [action for action in plan.actions if isinstance(action, Restore)]
    blobs = [blob for repo in saved.repos for blob in repo.blobs.values()]
    size = sum(blob.size for blob in blobs)
    return Restored(
        places.without_password(source),
        tuple(repo.id for repo in saved.repos),
        len(blobs),
        size,
        Amount(len(blobs) - len(actions), size - plan.needs),
        plan,
        receipt,
        time.monotonic() - begun,
        location.dir,
    )


def problem(value: Restored) -> VlmcacheError | None:
    """Return what a restore has to tell of, or `None` if all is as in the backup."""
    outcomes = value.receipt.outcomes if value.receipt else ()
    stale = [one for one in outcomes if one.result == "stale"]
    failed = [one for one in outcomes if one.detail and one.result == "failed"]
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return BackupError(
            f"{failed[0].detail}{more}; what needs it is not restored",
            "'vlmcache backup --verify' mends the store where there is a good copy",
        )
    if stale:
        return ChangedError(stale[0].detail or stale[0].path, "restore again")
    if not value.plan.kept:
        return None
    kept = value.plan.kept[0]
    more = f" and {len(value.plan.kept) - 1} more" if len(value.plan.kept) > 1 else ""
    return PartlyError(f"{kept.reason}: {kept.path}{more}", "--overwrite takes the backup's")


def _chosen(
    state: CacheState, config: Config, names: Sequence[str]
) -> list[tuple[Repo, frozenset[str] | None]]:
    """Return the repos with the commits that are asked for, in the order of their folders."""
    repos = {repo.folder: repo for repo in state.repos}
    if not names:
        return [(repos[f], None) for f in sorted(repos) if repos[f].revisions and is_read(repos[f])]
    commits: dict[str, set[str] | None] = {}
    for target in find_targets(state, config, names):
        repo = repos.get(target.folder or "")
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        if repo is None or not repo.revisions or target.ref is not None:
            raise UsageError(f"{target.name} is no model of which anything is there to back up")
        held = commits.setdefault(repo.folder, set())
        if target.commit is None:
            commits[repo.folder] = None
        elif held is not None:
            held.add(target.commit)
    found: list[tuple[Repo, frozenset[str] | None]] = []
    for folder in sorted(commits):
        wanted = commits[folder]
        found.append((repos[folder], None if wanted is None else frozenset(wanted)))
    return found


def _check_destination(destination: str, cache_dir: str) -> None:
    if not destination:
        raise UsageError("the destination is empty", "name a folder, a file, an address or -")
    path = places.local_path(destination)
    if path is None or destination == STREAM:
        return
    cache = os.path.join(os.path.realpath(cache_dir), "")
    if os.path.join(os.path.realpath(path), "").startswith(cache):
        raise UsageError(f"within the cache itself: {path}", "name a place outside of it")


# Saving.


class _Went(NamedTuple):
    """What a backup came to."""

    uploaded: Amount
    skipped: Amount = Amount()
    refs: tuple[ChangedRef, ...] = ()


def _to_stream(destination: str, parts: list[Saving], watcher: Watcher) -> _Went:
    sizes = {
        path: part.saved.blobs[name].size for part in parts for name, path in part.sources.items()
    }
    size = sum(blob.size for part in parts for blob in part.saved.blobs.values())
    with (
        _writing(destination, size) as file,
        _told(watcher, "backup", sizes, _source_names(parts)) as moved,
    ):
        stream.write(file, parts, moved)
    return _Went(Amount(sum(len(part.sources) for part in parts), size))


@contextlib.contextmanager
def _writing(destination: str, size: int) -> Iterator[IO[bytes]]:
    path = places.local_path(destination)
    if destination == STREAM or (path is not None and _is_special(path)):
        with _piped(destination) as file:
            yield file
        return
    place: places.Place
    if path is None:
        folder, name = places.split(destination)
        place = places.Remote(folder)
    else:
        # Through a link, what it leads to is written and the link stays.
        folder, name = os.path.split(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise UsageError(f"no such folder: {folder}")
        placing.check_room(folder, size, _MAKE_ROOM)
        place = places.Folder(folder)
    with place.writing(name, size) as file:
        yield file


def _is_special(path: str) -> bool:
    """Whether a path is that of a device or pipe, which is written to and never replaced."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextlib.contextmanager
def _piped(destination: str) -> Iterator[IO[bytes]]:
    """Open what takes bytes as they come: stdout, a pipe or a device.

    Raises:
        PlaceError: whoever read it went away, or it takes no more.
    """
    try:
        if destination == STREAM:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        else:
            with open(destination, "wb", buffering=0) as file:
                yield file
    except OSError as error:
        if isinstance(error.filename, str):
            raise
        if isinstance(error, BrokenPipeError):
            raise places.PlaceError(
                "the backup is not whole: its reader went away", "look at what read it"
            ) from error
        raise places.PlaceError(
            f"the backup is not whole: {error.strerror or error}: {destination}"
        ) from error


def _source_names(parts: list[Saving]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        found |= _names(part.saved, part.sources.__getitem__)
    return found


def _to_store(destination: str, parts: list[Saving], watcher: Watcher, *, verify: bool) -> _Went:
    pace = Pace()
    store = Store(places.open_place(destination), pace)
    folders = {part.saved.folder: part.saved for part in parts}
    revisions = {folder: revisions_of(repo) for folder, repo in folders.items()}
    store.create()
    # What contradicts the store is found before anything travels.
    there = store.manifests(sorted(folders))
    manifests = [one for f in folders for one in new_manifests(there[f], revisions[f])]
    uploads: dict[str, Upload] = {}
    for part in parts:
        for name, source in part.sources.items():
            blob = part.saved.blobs[name]
            uploads.setdefault(blob.hash, Upload(blob, source))
    names = _source_names(parts)
    sizes = store.blobs()
    good = {key for key, upload in uploads.items() if sizes.get(key) == upload.blob.size}
    if verify:
        good -= _wrong(store, [uploads[key] for key in sorted(good)], names, watcher)
    missing = [upload for key, upload in uploads.items() if key not in good]
    size = sum(upload.blob.size for upload in missing)
    folder = places.local_path(destination)
    if folder is not None:
        placing.check_room(folder, size, _MAKE_ROOM)
    lengths = {upload.source: upload.blob.size for upload in missing}
    with _told(watcher, "backup", lengths, names) as moved:
        store.save(missing, moved)
    store.describe(manifests)
    skipped = sum(uploads[key].blob.size for key in good)
    refs = _write_refs(store, folders)
    return _Went(Amount(len(missing), size), Amount(len(good), skipped), refs)


def _wrong(
    store: Store, uploads: Sequence[Upload], names: Mapping[str, str], watcher: Watcher
) -> set[str]:
    """Return the hashes of contents in a store that are not what they should be."""
    wrong: set[str] = set()
    sizes = {upload.source: upload.blob.size for upload in uploads}
    with _told(watcher, "verify", sizes, names) as moved:

        def judge(upload: Upload) -> None:
            if not store.is_right(upload.blob, partial(moved, upload.source)):
                wrong.add(upload.blob.hash)

        each(uploads, judge, store.place.workers, store.pace)
    return wrong


def _write_refs(store: Store, repos: Mapping[str, SavedRepo]) -> tuple[ChangedRef, ...]:
    """Let the store's refs be the repos', and return those that were not."""
    known = store.refs(sorted(repos))
    changed = []
    for folder, repo in repos.items():
        for ref, commit in repo.refs.items():
            old = known[folder].get(ref)
            if old != commit:
                store.write_ref(folder, ref, commit)
                changed.append(ChangedRef(repo.id, ref, old, commit))
    return tuple(changed)


# Restoring.


class _Saved(NamedTuple):
    """What of a backup is asked for, and the backup itself: one of the two."""

    repos: list[SavedRepo]
    reader: stream.Reader | None = None
    store: Store | None = None


@contextlib.contextmanager
def _opened(source: str, config: Config, names: Sequence[str]) -> Iterator[_Saved]:
    if source != STREAM and places.is_store(source):
        path = places.local_path(source)
        if path is not None and not os.path.isdir(path):
            raise UsageError(f"no such folder: {path}")
        store = Store(places.open_place(source), Pace())
        store.check()
        wanted = wishes(store.folders(), config, names)
        repos = [narrowed(repo, wanted[repo.folder]) for repo in store.repos(wanted)]
        yield _Saved(repos, store=store)
        return
    with _reading(source) as file, contextlib.closing(stream.Reader(file)) as reader:
        held = {repo.folder: repo for repo in reader.manifest.repos}
        wanted = wishes(held, config, names)
        # In the manifest's order.
        repos = [narrowed(repo, wanted[f]) for f, repo in held.items() if f in wanted]
        yield _Saved(repos, reader=reader)


@contextlib.contextmanager
def _reading(source: str) -> Iterator[IO[bytes]]:
    if source == STREAM:
        yield sys.stdin.buffer
        return
    path = places.local_path(source)
    if path is None:
        folder, name = places.split(source)
        place = places.Remote(folder)
        with place.reading(name, place.size(name)) as remote:
            yield remote
        return
    try:
        opened = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"cannot be read: {source}: {error.strerror}") from error
    with opened:
        yield opened


def _plan(cache_dir: str, repos: Iterable[SavedRepo], *, overwrite: bool) -> Plan:
    actions: list[Action] = []
    kept: list[Kept] = []
    needs = 0
    held = {repo.folder: repo for repo in scan(cache_dir).repos}
    for repo in repos:
        folder = os.path.join(cache_dir, repo.folder)
        reasons = _reasons(os.path.join(folder, layout.BLOBS), repo.blobs)
        for path, (blob, reason) in reasons.items():
            actions.append(Restore(repo.id, path, blob.hash, blob.size, reason))
            needs += blob.size
        known = held[repo.folder].refs if repo.folder in held else {}
        for ref, commit in repo.refs.items():
            path = os.path.join(folder, layout.REFS, *ref.split("/"))
            old = known.get(ref)
            if old is not None and old != commit and not overwrite:
                kept.append(Kept(path, repo.id, f"{ref} names another commit here ({old[:12]})"))
            else:
                reason = "new" if old is None else "the same" if old == commit else f"was {old}"
                actions.append(WriteRef(repo.id, ref, path, commit, reason))
    return Plan(tuple(actions), needs=needs, kept=tuple(kept))


def _reasons(folder: str, blobs: Mapping[str, SavedBlob]) -> dict[str, tuple[SavedBlob, str]]:
    """Return path -> blob and why it has to be restored, of those that are not there and right."""
    paths = {os.path.join(folder, name): blob for name, blob in blobs.items()}
    sizes = {path: placing.file_size(path) for path in paths}
    checks = [Check(path, blob.hash) for path, blob in paths.items() if sizes[path] == blob.size]
    right = {judged.check.path for judged in hash_all(checks) if judged.good}
    return {
        path: (blob, "missing" if sizes[path] is None else "damaged")
        for path, blob in paths.items()
        if path not in right
    }


class _Slot(NamedTuple):
    """A blob of a repo."""

    arrivals: Arrivals
    name: str

    @property
    def path(self) -> str:
        return self.arrivals.path(self.name)

    @property
    def blob(self) -> SavedBlob:
        return self.arrivals.repo.blobs[self.name]


class _Restoring:
    """A plan of a restore, carried out."""

    def __init__(self, cache_dir: str, saved: _Saved, plan: Plan, watcher: Watcher) -> None:
        self.cache_dir = cache_dir
        self.saved = saved
        self.plan = plan
        self.watcher = watcher
        self.pace = saved.store.pace if saved.store is not None else Pace()
        self.wanted = {one.path: one for one in plan.actions if isinstance(one, Restore)}
        self.arrivals = [Arrivals(cache_dir, repo, self.pace, watcher.note) for repo in saved.repos]
        self.refs_before = {
            action.path: _ref_now(action.path)
            for action in plan.actions
            if isinstance(action, WriteRef)
        }
        self.taken: dict[str, int] = {}
        self.failed: dict[str, BackupError] = {}
        self.outcomes: list[Outcome] = []

    def run(self) -> Receipt:
        """Restore all; blobs that a store has damaged are told of in the receipt.

        Raises:
            VlmcacheError: the backup or the disk fails.
        """
        sizes = {path: action.size for path, action in self.wanted.items()}
        names: dict[str, str] = {}
        for one in self.arrivals:
            names |= _names(one.repo, one.path)
        try:
            with _told(self.watcher, "restore", sizes, names) as moved:
                if self.saved.reader is not None:
                    self._from_stream(self.saved.reader, moved)
                elif self.saved.store is not None:
                    self._from_store(self.saved.store, moved)
        except OSError as error:
            raise placing.disk_failure(error, self.cache_dir) from error
        return Receipt(tuple(self.outcomes), fetched=sum(self.taken.values()))

    def _from_stream(self, reader: stream.Reader, moved: Callable[[str, int], None]) -> None:
        arrivals = {one.repo.folder: one for one in self.arrivals}
        for repo in reader.manifest.repos:
            one = arrivals.get(repo.folder)
            wanted = frozenset(name for name in repo.blobs if one and one.path(name) in self.wanted)
            taken = reader.restore(repo, one, wanted, moved)
            if one is not None:
                self.taken |= {one.path(name): count for name, count in taken.items()}
                self._finish(one)

    def _from_store(self, store: Store, moved: Callable[[str, int], None]) -> None:
        slots: dict[str, list[_Slot]] = {}
        for one in self.arrivals:
            one.prepare()
            for name, blob in one.repo.blobs.items():
                slots.setdefault(blob.hash, []).append(_Slot(one, name))
        sizes = store.blobs()
        longest_first = sorted(slots.values(), key=lambda same: -same[0].blob.size)
        each(
            longest_first,
            lambda same: self._bring(store, sizes, same, moved),
            store.place.workers,
            self.pace,
        )
        for one in self.arrivals:
            self._finish(one)

    def _bring(
        self,
        store: Store,
        sizes: Mapping[str, int],
        same: list[_Slot],
        moved: Callable[[str, int], None],
    ) -> None:
        """Let one content be wherever it belongs; it travels once."""
        copy: str | None = None
        # What is there already comes first, so that the others are copied from it.
        for slot in sorted(same, key=lambda slot: slot.path in self.wanted):
            if copy is not None:
                source = partial(_from_file, copy)
            else:
                source = partial(_from_store, store, sizes, slot.blob)
            try:
                taken = slot.arrivals.bring(
                    slot.name,
                    source,
                    partial(moved, slot.path),
                    distrusted=slot.path in self.wanted,
                    resumed=True,
                )
            except BackupError as error:
                self.failed[slot.path] = error
            else:
                self.taken[slot.path] = taken if copy is None else 0
                copy = copy or slot.path

    def _finish(self, arrivals: Arrivals) -> None:
        """Write the refs of a repo, if all its blobs are there, and say what was done."""
        paths = [arrivals.path(name) for name in arrivals.repo.blobs]
        for path in paths:
            error = self.failed.get(path)
            if error is not None:
                self.outcomes.append(Outcome("restore", path, "failed", detail=error.message))
            elif path in self.wanted:
                fetched = self.taken[path]
                self.outcomes.append(Outcome("restore", path, "done", fetched=fetched))
        if any(path in self.failed for path in paths):
            return
        refs = os.path.join(self.cache_dir, arrivals.repo.folder, layout.REFS) + os.sep
        for action in self.plan.actions:
            if not isinstance(action, WriteRef) or not action.path.startswith(refs):
                continue
            now = _ref_now(action.path)
            if now not in (self.refs_before.get(action.path), action.commit):
                detail = f"it names another commit by now, and stays: {action.path}"
                self.outcomes.append(Outcome("write-ref", action.path, "stale", detail=detail))
                continue
            placing.write_ref(action.path, action.commit)
            self.outcomes.append(Outcome("write-ref", action.path, "done"))


def _ref_now(path: str) -> str | None:
    """Return what a ref holds now; `None` if it cannot be read."""
    try:
        return read_bytes(path, _REF_LIMIT).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _from_file(path: str, start: int) -> Iterator[bytes]:
    with open(open_quietly(path), "rb", buffering=0) as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


def _from_store(
    store: Store, sizes: Mapping[str, int], blob: SavedBlob, start: int
) -> Iterator[bytes]:
    name = blob_name(blob.hash)
    if sizes.get(blob.hash) != blob.size:
        what = "has a wrong length of" if blob.hash in sizes else "lacks"
        raise BackupError(f"the store {what} {name}: {store.place.shown}")
    with store.place.reading(name, blob.size) as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


@contextlib.contextmanager
def _told(
    watcher: Watcher, label: str, sizes: Mapping[str, int], names: Mapping[str, str]
) -> Iterator[Callable[[str, int], None]]:
    """Let a watcher be told of the long files; the others are over before anyone looks.

    names are what people know them by.
    """
    long = {path: names.get(path, path) for path, size in sizes.items() if size >= _LONG}

    def moved(path: str, position: int) -> None:
        if path in long:
            watcher.moved(label, long[path], position)

    watcher.started(label, {long[path]: sizes[path] for path in long}, 0)
    try:
        yield moved
    finally:
        watcher.ended(label)


def _names(repo: SavedRepo, path: Callable[[str], str]) -> dict[str, str]:
    """Return path of each blob -> a file that has its content, if that tells it from the others."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for files in repo.snapshots.values():
        for file, name in files.items():
            words = f"{repo.id}: {file}"
            if path(name) not in found and words not in taken:
                found[path(name)] = words
                taken.add(words)
    return found
