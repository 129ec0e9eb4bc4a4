"""`backup`: models to one tar stream or to a store."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple

from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.change import place as change_place
from vlmcache.change.names import find_targets
from vlmcache.change.needed import is_read
from vlmcache.commands.backup import places, tar
from vlmcache.commands.backup.contents import SavedRepo, Saving, prepare
from vlmcache.commands.backup.store import Store, Upload, new_manifests, revisions_of
from vlmcache.commands.backup.transfer import MAKE_ROOM, names_of, telling
from vlmcache.commands.backup.values import STREAM, Amount, Backup, ChangedRef
from vlmcache.config import CacheLocation, Config
from vlmcache.errors import UsageError
from vlmcache.progress import Pace, Watcher
from vlmcache.threads import each


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


def _is_left_out(repo: Repo) -> bool:
    """Whether there is something of a repo that a backup does not hold; a begun download is not."""
    return not is_read(repo) or (bool(repo.blobs) and not repo.revisions)


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
        telling(watcher, "backup", sizes, _source_names(parts)) as moved,
    ):
        tar.write(file, parts, moved)
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
        change_place.check_room(folder, size, MAKE_ROOM)
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
        found |= names_of(part.saved, part.sources.__getitem__)
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
        change_place.check_room(folder, size, MAKE_ROOM)
    lengths = {upload.source: upload.blob.size for upload in missing}
    with telling(watcher, "backup", lengths, names) as moved:
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
    with telling(watcher, "verify", sizes, names) as moved:

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
