"""The store of blobs that repos share: its marker, locks and manifests."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator

from vlmcache.cache import layout
from vlmcache.cache.reading import read_bytes
from vlmcache.change.partials import write_all
from vlmcache.change.place import discard, sync_folder, write_file
from vlmcache.errors import CacheError

_MARKER_TEMPORARY = re.compile(re.escape(layout.SHARED_MARKER) + r"\.[0-9a-f]{8}\.tmp")

_MANIFEST_LIMIT = 64_000_000


def links_into_store(root: str) -> dict[str, set[str]]:
    """Return shared hash -> repo blobs that link to it now, over every repo of the cache.

    Raises:
        OSError: a repo cannot be read, so that nothing can be said.
    """
    links: dict[str, set[str]] = {}
    with os.scandir(root) as entries:
        repos = [entry for entry in entries if layout.parse_repo_folder(entry.name) is not None]
    for repo in repos:
        try:
            with os.scandir(os.path.join(repo.path, layout.BLOBS)) as entries:
                blobs = [entry for entry in entries if entry.is_symlink()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for blob in blobs:
            shared_hash = layout.shared_hash_of(os.readlink(blob.path))
            if shared_hash is not None and repo.is_symlink():
                # A repo that lies elsewhere has its store beside it there.
                store = layout.shared_blob_path(root, shared_hash)
                real = os.path.realpath(blob.path)
                if os.path.exists(real) and real != os.path.realpath(store):
                    continue
            if shared_hash is not None:
                reference = f"{repo.name}/{layout.BLOBS}/{blob.name}"
                links.setdefault(shared_hash, set()).add(reference)
    return links


def prepare_store(cache_dir: str) -> None:
    """Make a cache's store of shared blobs, marked as the client's `_shared_blobs.py` marks it.

    Raises:
        CacheError: a folder of that name is there and is not marked.
        OSError: the system refuses.
    """
    store = os.path.join(cache_dir, layout.SHARED_STORE)
    marker = os.path.join(store, layout.SHARED_MARKER)
    os.makedirs(store, exist_ok=True)
    try:
        with open(marker, encoding="utf-8") as file:
            if file.read(64) == layout.SHARED_MARKER_TEXT and not os.path.islink(marker):
                return
    except FileNotFoundError:
        pass
    # As the client does: what a kill has left of the marker goes, all else is a stranger's.
    begun = [name for name in os.listdir(store) if _MARKER_TEMPORARY.fullmatch(name)]
    if os.path.islink(store) or len(begun) < len(os.listdir(store)):
        raise CacheError(
            f"not the hub's store of shared blobs, and in its place: {store}",
            "rename it, or name another folder",
        )
    for name in begun:
        os.unlink(os.path.join(store, name))
    write_file(marker, layout.SHARED_MARKER_TEXT.encode(), 0o444)


def shared_target(cache_dir: str, blob: str) -> str | None:
    """Return the shared blob that a repo's blob is a link to, `None` if it is none."""
    try:
        shared_hash = layout.shared_hash_of(os.readlink(blob))
    except OSError:
        return None
    if shared_hash is None:
        return None
    return layout.shared_blob_path(cache_dir, shared_hash)


def return_to_store(blob: str, store: str) -> None:
    """Let a blob's content take the place of a wrong one in the shared store, and link to it.

    At each instant both names lead to some content, and the blob's own to the right one.

    Args:
        blob: the repo's blob, a file.
        store: the place in the shared store.

    Raises:
        OSError: the system refuses.
    """
    unique = uuid.uuid4().hex[:8]
    for place, name in ((store, "shared"), (blob, "new")):
        folder, base = os.path.split(place)
        temporary = os.path.join(folder, f".{base}.{unique}.{name}")
        try:
            if place == store:
                os.link(blob, temporary)
                # As the client's `_shared_blobs.py` does: what many repos use, none may write to.
                os.chmod(temporary, 0o444)
            else:
                os.symlink(os.path.relpath(store, folder), temporary)
            os.replace(temporary, place)
        except BaseException:
            discard(temporary)
            raise
        sync_folder(folder)


@contextlib.contextmanager
def store_lock(place: str) -> Iterator[None]:
    """Hold a shared blob's lock as the hub takes it: a file that every user may lock."""
    import filelock

    path = place + layout.LOCK_SUFFIX
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(descriptor, 0o666)
    os.close(descriptor)
    with filelock.FileLock(path, mode=0o666):
        yield


def read_manifest(manifest: str) -> set[str]:
    """Return the references that a manifest lists; none if it is unreadable."""
    try:
        return set(read_bytes(manifest, _MANIFEST_LIMIT).decode().splitlines())
    except (OSError, UnicodeDecodeError):
        return set()


def append_to_manifest(manifest: str, references: list[str]) -> None:
    """Add references to a manifest; their bytes are on the disk then."""
    if not references:
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(manifest, flags, 0o666)
    try:
        with contextlib.suppress(OSError, AttributeError):
            os.fchmod(descriptor, 0o666)
        write_all(descriptor, "".join(f"{name}\n" for name in references).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
