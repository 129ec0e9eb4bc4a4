"""`backup`: models to one tar stream or to a store."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.cache.tree import CacheTree
from vlmcache.change import place as change_place
from vlmcache.change.abilities import Needs, check_filesystem
from vlmcache.change.names import find_targets
from vlmcache.change.needed import is_read
from vlmcache.commands.backup import places, tar
from vlmcache.commands.backup.compression import compression_of, require
from vlmcache.commands.backup.contents import (
    SavedRepo,
    Saving,
    files_of,
    plan_saving,
    source_opener,
)
from vlmcache.commands.backup.remote import Remote, open_place, reading_stream
from vlmcache.commands.backup.store import (
    Store,
    Upload,
    new_manifests,
    ref_names,
    revisions_of,
)
from vlmcache.commands.backup.values import (
    MAKE_ROOM_THERE,
    STREAM,
    Amount,
    Backup,
    BackupError,
    BackupOptions,
    ChangedRef,
)
from vlmcache.config import Config, Session
from vlmcache.errors import UsageError, in_words
from vlmcache.paths import real_path
from vlmcache.progress import FileOf, Progress, StopToken, continued_by, files_shown
from vlmcache.threads import each


def backup(
    session: Session,
    destination: str,
    names: Sequence[str] = (),
    options: BackupOptions | None = None,
    progress: Progress | None = None,
) -> Backup:
    """Save models. Every byte that is written is compared with its hash on the way.

    Args:
        session: the hub cache, and the configuration whose keys count.
        destination: a folder or an address of fsspec for a store, to which only what is missing
            there is written; a file or an address that ends in `.tar` for one tar stream, in
            `.tar.gz` or `.tar.zst` for a compressed one; `-` for stdout.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if none.
        options: whether to verify what was saved already, and whether to write nothing.
        progress: shows the progress.

    Raises:
        UnknownModelError: nothing of that name is in the cache.
        AwayError: a model that is named is on a drive that is not mounted.
        UsageError: the destination makes no sense.
        MissingPackageError: the package that compresses is not installed.
        BackupError: something is damaged. A tar stream is not kept; what a store received before
            stays, and no revision there leads to anything that is missing.
        PlaceError: the destination cannot be reached or written.
        SpaceError: the disk has too little room.
    """
    begun = time.monotonic()
    options, progress = options or BackupOptions(), progress or Progress()
    to_store = destination != STREAM and places.is_store(destination)
    if options.verify and destination == STREAM:
        raise UsageError("a backup to stdout cannot be verified", "name a file")
    _check_destination(destination, session.cache.dir)
    compression = None
    is_folder = to_store and places.local_path(destination) is not None
    # An address that ends like a file of another form is refused, and not taken for a store's.
    if destination != STREAM and not is_folder:
        compression = compression_of(places.without_password(destination))
    if compression is not None:
        require(compression)
    state = scan(session.cache.dir)
    opener = source_opener(CacheTree(state.dir))
    chosen = _chosen(state, session.config, names)
    parts = [plan_saving(repo, commits, opener) for repo, commits in chosen]
    if not parts:
        for repo in state.repos:
            if repo.away is not None:
                raise away_error(repo, repo.away)
        raise UsageError(f"nothing to back up in {state.dir}", "'vlmcache pull' fills it")
    save = _to_store if to_store else _to_stream
    again = session.command("backup", places.without_password(destination), *names)
    how = "continues from here" if to_store else "starts again"
    with continued_by(progress, f"'{again}' {how}"):
        totals = save(destination, parts, options, progress)
    return Backup(
        places.without_password(destination),
        tuple(part.saved.name for part in parts),
        sum(len(part.saved.blobs) for part in parts),
        sum(blob.size for part in parts for blob in part.saved.blobs.values()),
        totals.uploaded,
        totals.skipped,
        totals.refs,
        time.monotonic() - begun,
        ()
        if names
        else tuple(
            layout.typed_name(repo.type, repo.id) for repo in state.repos if _is_left_out(repo)
        ),
        options.dry_run,
        "store" if to_store else tar.FORMS[compression],
    )


def _is_left_out(repo: Repo) -> bool:
    """Return whether a repo has content that is not saved; unfinished downloads do not count."""
    return not is_read(repo) or (bool(repo.blobs) and not repo.revisions)


def _chosen(
    state: CacheState, config: Config, names: Sequence[str]
) -> list[tuple[Repo, frozenset[str] | None]]:
    """Return the repos with the commits that are asked for, in the order of their folders."""
    repos = {repo.folder: repo for repo in state.repos}
    if not names:
        readable = [repo for repo in repos.values() if repo.revisions and is_read(repo)]
        return [(repo, None) for repo in sorted(readable, key=lambda repo: repo.folder)]
    commits: dict[str, frozenset[str] | None] = {}
    for target in find_targets(state, config, names):
        repo = repos.get(target.folder or "")
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        if repo is None or not repo.revisions or target.ref is not None:
            raise UsageError(f"nothing of {target.name} in the cache can be backed up")
        chosen = commits.get(repo.folder, frozenset())
        if chosen is not None:
            commits[repo.folder] = None if target.commit is None else chosen | {target.commit}
    return [(repos[folder], commits[folder]) for folder in sorted(commits)]


def _check_destination(destination: str, cache_dir: str) -> None:
    if not destination:
        raise UsageError("the destination is empty", "name a folder, a file, an address or -")
    path = places.local_path(destination)
    if path is None or destination == STREAM:
        return
    cache = os.path.join(real_path(cache_dir), "")
    if os.path.join(real_path(path), "").startswith(cache):
        raise UsageError(
            f"the destination is in the cache: {path}", "name a place outside the cache"
        )


# Saving.


class BackupTotals(NamedTuple):
    """What a backup has written, and what was saved already."""

    uploaded: Amount
    skipped: Amount = Amount()
    refs: tuple[ChangedRef, ...] = ()


def _to_stream(
    destination: str, parts: list[Saving], options: BackupOptions, progress: Progress
) -> BackupTotals:
    size = sum(blob.size for part in parts for blob in part.saved.blobs.values())
    amount = Amount(sum(len(part.sources) for part in parts), size)
    if options.verify and _is_good(destination, parts, progress):
        return BackupTotals(Amount(), amount)
    if not options.dry_run:
        compression = None if destination == STREAM else compression_of(destination)
        with (
            _writing(destination, size, compressed=compression is not None) as file,
            files_shown(progress, "written", _shown(parts)) as moved,
        ):
            tar.write_tar(file, parts, moved, compression)
    return BackupTotals(amount)


def _is_good(destination: str, parts: list[Saving], progress: Progress) -> bool:
    """Return whether a tar stream holds what is to be saved; every byte of it is read."""
    path = places.local_path(destination)
    if path is not None and not os.path.isfile(path):
        return False
    shown: dict[str, FileOf] = {}
    for part in parts:
        paths = {name: layout.blob_path(part.saved.folder, name) for name in part.saved.blobs}
        shown |= files_of(part.saved, paths)
    try:
        with (
            reading_stream(destination) as file,
            contextlib.closing(tar.Reader(file)) as reader,
            files_shown(progress, "checked", shown) as moved,
        ):
            if reader.manifest != tar.manifest_of(parts):
                return False
            reader.check(moved)
    except (BackupError, places.PlaceError):
        return False
    return True


def _writing(
    destination: str, size: int, *, compressed: bool
) -> contextlib.AbstractContextManager[IO[bytes]]:
    path = places.local_path(destination)
    if destination == STREAM or (path is not None and _is_special(path)):
        return _piped(destination)
    if path is None:
        address, name = places.split(destination)
        return Remote(address).writing(name, size)
    # A link stays, and the file that it leads to is written.
    folder, name = os.path.split(real_path(path))
    if not os.path.isdir(folder):
        raise UsageError(
            f"no such folder: {folder}",
            f"mount the drive, or make the folder: {units.shell_words('mkdir', '-p', folder)}",
        )
    if compressed:
        # Its size is not known before it is written.
        size = 0
    check_filesystem(folder, Needs([name], size))
    change_place.check_room(folder, size, MAKE_ROOM_THERE)
    return places.Folder(folder).writing(name, size)


def _is_special(path: str) -> bool:
    """Return whether a path is a device or pipe, which is written to and never replaced."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextlib.contextmanager
def _piped(destination: str) -> Iterator[IO[bytes]]:
    """Open stdout, a pipe or a device for writing.

    Raises:
        PlaceError: its reader ended, or nothing more can be written to it.
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
        reason, hint = in_words(error, destination), None
        if isinstance(error, BrokenPipeError):
            reason, hint = "its reader ended", "check the program that read it"
        raise places.PlaceError(f"the backup is not complete: {reason}", hint) from error


def _shown(parts: list[Saving]) -> dict[str, FileOf]:
    """Return path of each blob to save -> a file with its content."""
    shown: dict[str, FileOf] = {}
    for part in parts:
        shown |= files_of(part.saved, part.sources)
    return shown


def _to_store(
    destination: str, parts: list[Saving], options: BackupOptions, progress: Progress
) -> BackupTotals:
    stop_token = StopToken()
    store = Store(open_place(destination), stop_token)
    folders = {part.saved.folder: part.saved for part in parts}
    revisions = {folder: revisions_of(repo) for folder, repo in folders.items()}
    store.create(dry_run=options.dry_run)
    # Contradictions with the store are found before anything is written.
    known = store.manifests(sorted(folders))
    manifests = [
        manifest
        for folder in folders
        for manifest in new_manifests(known[folder], revisions[folder])
    ]
    uploads: dict[str, Upload] = {}
    for part in parts:
        for name, source in part.sources.items():
            blob = part.saved.blobs[name]
            uploads.setdefault(blob.hash, Upload(blob, source, part.opener))
    shown = _shown(parts)
    sizes = store.blobs()
    good = {key for key, upload in uploads.items() if sizes.get(key) == upload.blob.size}
    if options.verify:
        good -= _damaged_contents(store, [uploads[key] for key in sorted(good)], shown, progress)
    missing = [upload for key, upload in uploads.items() if key not in good]
    size = sum(upload.blob.size for upload in missing)
    if not options.dry_run:
        folder = places.local_path(destination)
        if folder is not None:
            largest = max((upload.blob.size for upload in missing), default=0)
            check_filesystem(folder, Needs(ref_names(folders.values()), largest))
            change_place.check_room(folder, size, MAKE_ROOM_THERE)
        files = {upload.source: shown[upload.source] for upload in missing}
        with files_shown(progress, "saved", files) as moved:
            store.save(missing, moved)
        store.describe(manifests)
    skipped = sum(uploads[key].blob.size for key in good)
    refs = _write_refs(store, folders, dry_run=options.dry_run)
    return BackupTotals(Amount(len(missing), size), Amount(len(good), skipped), refs)


def _damaged_contents(
    store: Store, uploads: Sequence[Upload], shown: Mapping[str, FileOf], progress: Progress
) -> set[str]:
    """Return the hashes of contents in a store that are not what they should be."""
    damaged: set[str] = set()
    files = {upload.source: shown[upload.source] for upload in uploads}
    with files_shown(progress, "verified", files) as moved:

        def judge(upload: Upload) -> None:
            if not store.is_good(upload.blob, partial(moved, upload.source)):
                damaged.add(upload.blob.hash)

        each(uploads, judge, store.place.workers, store.stop_token)
    return damaged


def _write_refs(
    store: Store, repos: Mapping[str, SavedRepo], *, dry_run: bool
) -> tuple[ChangedRef, ...]:
    """Make the store's refs the same as the repos', and return those that differed."""
    known = store.refs(sorted(repos))
    changed = []
    for folder, repo in repos.items():
        for ref, commit in repo.refs.items():
            old = known[folder].get(ref)
            if old != commit:
                if not dry_run:
                    store.write_ref(folder, ref, commit)
                changed.append(ChangedRef(repo.name, ref, old, commit))
    return tuple(changed)
