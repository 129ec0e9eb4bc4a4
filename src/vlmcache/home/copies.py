"""Kept quantized copies: where they are, which there are, and their removal with the model.

They lie in vlmcache's own folder: `quantized/<repo folder>/<commit>/<precision>-<versions>/`, with
a manifest that names every file's length and sha256. Losing one loses no model.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import datetime

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.owners import is_anothers
from vlmcache.cache.reading import JSON_ERRORS, read_bytes
from vlmcache.cache.weights import Precision

FOLDER = "quantized"
MANIFEST = "vlmcache.json"
FAILED = "vlmcache-failed.txt"
"""A file in a copy that could not be loaded, with the reason: it is set aside."""
LIBRARIES = ("bitsandbytes", "transformers")
"""Packages whose version decides whether a copy is still what they would make."""

_MANIFEST_LIMIT = 16_000_000
_FAILED_LIMIT = 100_000


class CopiedFile(msgspec.Struct, frozen=True):
    """A file of a copy, and what it was when its hash was taken."""

    size: int
    sha256: str
    mtime_ns: int


class CopyOrigin(msgspec.Struct, frozen=True):
    """What a copy is a copy of, and the libraries that made it."""

    repo: str
    commit: str
    precision: Precision
    versions: dict[str, str]


class KeptCopy(CopyOrigin, frozen=True):
    """A kept quantized copy. size is the length of all its files in bytes."""

    path: str
    size: int
    made_at: datetime
    current: bool
    """Whether the installed libraries are those that made it."""
    changed: bool = False
    """Whether a file is not of the length or time that it was made with."""
    failed: str | None = None
    """Why it could not be loaded, if it could not; then it is not used."""


class Manifest(CopyOrigin, frozen=True):
    """What a copy says of itself."""

    made_at: datetime
    files: dict[str, CopiedFile]


def installed_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide about copies, as installed now."""
    import importlib.metadata

    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def copy_folder(home: str, repo: str, commit: str, precision: Precision) -> str:
    """Return where the copy made by the installed libraries is or would be."""
    versions = "-".join(f"{name}{version}" for name, version in installed_versions().items())
    folder = layout.repo_folder("model", repo)
    return os.path.join(home, FOLDER, folder, commit, f"{precision}-{versions}")


def list_copies(home: str) -> list[KeptCopy]:
    """Return the copies that are kept, by repo, commit and precision. Damaged ones are left out."""
    repos = _subfolders(os.path.join(home, FOLDER))
    folders = (folder for repo in repos for folder in copy_folders_of(repo))
    manifests = ((folder, read_manifest(folder)) for folder in folders)
    return [describe(folder, manifest) for folder, manifest in manifests if manifest is not None]


def copy_folders_of(repo: str) -> Iterator[str]:
    """Yield the folders of the copies below a repo's folder."""
    for commit in _subfolders(repo):
        yield from _subfolders(commit)


def _subfolders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(
                entry.path
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            )
    except OSError:
        return []


def read_manifest(folder: str) -> Manifest | None:
    """Return what a copy says of itself, or `None` if that cannot be read."""
    try:
        content = read_bytes(os.path.join(folder, MANIFEST), _MANIFEST_LIMIT)
        return msgspec.json.decode(content, type=Manifest)
    except (OSError, *JSON_ERRORS):
        return None


def describe(folder: str, manifest: Manifest) -> KeptCopy:
    """Return a copy as others are to see it."""
    return KeptCopy(
        manifest.repo,
        manifest.commit,
        manifest.precision,
        manifest.versions,
        folder,
        sum(file.size for file in manifest.files.values()),
        manifest.made_at,
        manifest.versions == installed_versions(),
        any(_is_changed(os.path.join(folder, name), file) for name, file in manifest.files.items()),
        failure(folder),
    )


def failure(folder: str) -> str | None:
    """Return why the copy in a folder could not be loaded; `None` for one that is not set aside."""
    try:
        text = read_bytes(os.path.join(folder, FAILED), _FAILED_LIMIT)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    return text.decode(errors="replace").strip()


def _is_changed(path: str, file: CopiedFile) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return True
    return (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns)


def remove_copies(home: str, repo: str, commit: str | None = None) -> int:
    """Remove the kept copies of a repo, or of one commit of it, and return the bytes freed.

    Root removes none in the home of another user. The commit may come out of a record that others
    can write: one that is not the name of a folder removes nothing.

    Raises:
        OSError: the system refuses.
    """
    root = os.path.join(home, FOLDER, layout.repo_folder("model", repo))
    gone = root if commit is None else os.path.join(root, commit)
    named = commit is None or layout.is_entry_name(commit)
    if not named or not os.path.isdir(gone) or os.path.islink(gone) or is_anothers(gone):
        return 0
    freed = allocated(gone)
    shutil.rmtree(gone)
    with contextlib.suppress(OSError):
        os.rmdir(root)
    return freed


def allocated(folder: str) -> int:
    """Return the bytes of disk that the files below a folder occupy."""
    return sum(
        allocated_bytes(os.lstat(os.path.join(path, name)))
        for path, _, names in os.walk(folder)
        for name in names
    )
