"""The hub cache's folder layout as names and path arithmetic; nothing here touches a disk.

The layout is the one that huggingface_hub 2.4 reads and writes: see its `file_download.py`
(blobs, snapshots, refs, locks, partial downloads), `_tree_cache.py` (trees) and
`utils/_shared_blobs.py` (the cache-wide blob store).
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from vlmcache import late

BLOBS = "blobs"
SNAPSHOTS = "snapshots"
REFS = "refs"
TREES = "trees"
OWN_TREE = ".vlmcache.json"
"""How the name of a listing ends if its snapshot does not hold all listed files.

If the client found the listing under the usual name, it would take the snapshot for broken.
"""
NO_EXIST = ".no_exist"
LOCKS = ".locks"
CACHE_TAG = "CACHEDIR.TAG"
PARTIAL_SUFFIX = ".incomplete"
SECOND_PARTIAL = ".22222222" + PARTIAL_SUFFIX
"""How the name of a second partial ends, for content that was sent again and differs.

The client gives partials such names too.
"""

OTHER_CLIENTS = {
    ".downloadInProgress": "llama.cpp",
    ".sync.part": "the Rust client hf-hub",
    ".downloading": "go-huggingface",
}
"""Suffix of an unfinished download in `blobs/` -> the program that alone writes it.

From their sources: llama.cpp `common/download.cpp`, hf-hub 0.4 `src/api/tokio.rs` (which candle and
mistral.rs use), go-huggingface `internal/downloader/locked.go`.
"""

SHARED_STORE = "blobs"
SHARED_MARKER = ".huggingface-shared-blobs"
SHARED_MARKER_TEXT = "1\n"
MANIFEST_SUFFIX = ".refs"
LOCK_SUFFIX = ".lock"
SOFT_SUFFIX = ".soft"
"""What follows the name of a shared blob's lock on a filesystem without locks."""

LEFTOVERS = ".vlmcache-leftovers"
"""Folder in the cache's root that holds what a removal has renamed and not yet unlinked.

Each run has a folder of its own in it, which mirrors the cache: `<unique>/<repo folder>/…`.
"""
WHOLE_REPO = "repo-"
"""How the unique name begins if complete repos were renamed, and not parts of them."""

TRASH = ".vlmcache-trash"
"""Folder in the cache's root that is the trash, if the trash cannot be next to the hub folder.

Next to a hub folder `hub` it is `.hub.vlmcache-trash`. Each removal has a folder of its own in it.
"""

MOVES = ".vlmcache-moved.json"
"""File at the top of a destination in which `move` noted all that it moved there, until 0.1.1."""
NOTE_SUFFIX = ".moved-here.json"
"""How the name of the file ends that notes out of which cache `move` took a repo.

It is `.locks/<repo folder>.moved-here.json` at the destination.
"""
RECORD_SUFFIX = ".moved.json"
"""How the name of the file ends that records where `move` took a repo of a cache.

It is `.locks/<repo folder>.moved.json`: the Hub's own scan warns of any other entry that it does
not know in a cache's root.
"""
BASE_SUFFIX = ".base.json"
"""How the name of the file ends that records into which bases `attach` linked blobs of a repo.

It is `.locks/<repo folder>.base.json`.
"""
MOVING = ".vlmcache-moving"
"""Folder at a destination in which `move` stages what it copies: `<repo folder>/…`."""

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space", "kernels": "kernel"}
"""Folder prefix of a repo -> its type."""

DESKTOP_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that file managers leave in folders that they show."""

ROOT_FILES = frozenset(
    {CACHE_TAG, MOVES, "version.txt", "version_diffusers_cache.txt", ".gitignore"}
)
"""Files that hub libraries and vlmcache themselves put into the cache root."""

EMPTY_HASHES = frozenset(
    {
        "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
)
"""git blob sha1 and sha256 of the empty content."""

COMMIT = late.pattern(r"[0-9a-f]{40}")
SHARED_HASH = late.pattern(r"[0-9a-f]{64}")
_HEX = b"0123456789abcdef"
_ETAG_LENGTHS = frozenset((40, 64))
_DRIVE = late.pattern(r".:", re.DOTALL)
_ABSOLUTE_ON_WINDOWS = late.pattern(r"[A-Za-z]:[/\\]")
_NOT_ON_WINDOWS = late.pattern(
    r'[<>:"|?*]|[. ]$|^(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)', re.IGNORECASE
)
_SAFE_COMMIT = late.pattern(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
# The Hub's hashes, and those of S3 that mirrors pass on.
_BLOB_NAME = r"[0-9a-f]{32,128}(?:-[0-9]{1,5})?"
_BLOB_NAME_ALONE = late.pattern(_BLOB_NAME)
_PARTIAL_ENDS = (PARTIAL_SUFFIX, *OTHER_CLIENTS)
_PARTIAL = late.pattern(
    rf"(?P<etag>{_BLOB_NAME})(?:(?:\.[0-9a-f]{{8}})?{re.escape(PARTIAL_SUFFIX)}"
    rf"|(?P<other>{'|'.join(map(re.escape, OTHER_CLIENTS))}))"
)
_BLOB_LOCK = late.pattern(rf"{_BLOB_NAME}{re.escape(LOCK_SUFFIX)}")
# huggingface_hub 2.4: `file_download.py` (a probe of the umask, refs, a file that is replaced),
# `_tree_cache.py` (tempfile's names), `utils/_shared_blobs.py`. Ours: `change/place.py`.
_TEMPORARY = late.pattern(
    r"tmp_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    rf"|\.(?:{_BLOB_NAME}|link|copy)\.[0-9a-f]{{8}}\.(?:shared|new|old)"
    r"|.+\.[0-9a-f]{8}\.tmp"
    r"|tmp[0-9a-z_]{8}\.tmp",
    re.DOTALL,
)
_REPO_PART = r"[0-9A-Za-z_](?:[0-9A-Za-z._-]{0,94}[0-9A-Za-z_])?"
_REPO_ID = late.pattern(rf"{_REPO_PART}(?:/{_REPO_PART})?")
_LONGEST_NAME = 4000
"""Bytes of the name of a repo's file, its folders included: Linux opens no longer path."""
_MOST_FOLDERS = 100
"""Levels of folders that a file of a repo may be in: what makes them is recursive."""
_REF = late.pattern(r"[0-9A-Za-z_][^\x00-\x20\\:*?\[~^\x7f]{0,254}")


_T = TypeVar("_T")


def by_name(function: Callable[[str], _T]) -> Callable[[str], _T]:
    """Remember what a function returns for file names: the same ones are in many repos."""
    return functools.lru_cache(maxsize=1 << 14)(function)


def repo_folder(kind: str, repo_id: str) -> str:
    """Return the folder name of a repo: `models--Qwen--Qwen2-VL-2B-Instruct`."""
    return "--".join([f"{kind}s", *repo_id.split("/")])


def typed_name(kind: str, repo_id: str) -> str:
    """Return what to type for a repo: its id, with a prefix for other types than models.

    The Hub's addresses of files begin with the same.
    """
    return repo_id if kind == "model" else f"{kind}s/{repo_id}"


def split_name(name: str) -> tuple[str, str]:
    """Return (type, repo id) for what is typed for a repo, such as `datasets/owner/name`."""
    prefix, _, rest = name.partition("/")
    return (KINDS[prefix], rest) if prefix in KINDS and rest else ("model", name)


def folder_of(name: str) -> str:
    """Return the name of a repo's folder for what is typed for the repo."""
    return repo_folder(*split_name(name))


def blob_path(folder: str, name: str) -> str:
    """Return the path of a blob of the repo in a folder."""
    return os.path.join(folder, BLOBS, name)


def ref_path(folder: str, ref: str) -> str:
    """Return the path of a ref of the repo in a folder; the ref `refs/pr/1` has folders too."""
    return os.path.join(folder, REFS, *ref.split("/"))


def tree_path(folder: str, commit: str, *, own: bool = False) -> str:
    """Return the path of the Hub's listing of a commit, in the folder of its repo.

    Args:
        folder: the repo's folder.
        commit: the commit.
        own: whether it is a listing that the client does not read, see `OWN_TREE`.
    """
    return os.path.join(folder, TREES, f"{commit}{OWN_TREE if own else '.json'}")


def snapshot_path(folder: str, commit: str) -> str:
    """Return the path of the snapshot of a commit, in the folder of its repo."""
    return os.path.join(folder, SNAPSHOTS, commit)


def file_path(snapshot: str, name: str) -> str:
    """Return the path of a file of a snapshot; its name has forward slashes on every system."""
    return os.path.join(snapshot, *name.split("/"))


def trash_beside(name: str) -> str:
    """Return the name of the trash next to a hub folder."""
    return f".{name}{TRASH}"


def staged_path(destination: str, *names: str) -> str:
    """Return the path of the folder in which `move` stages copies, or of something in it."""
    return os.path.join(destination, MOVING, *names)


def shared_blob_path(cache_dir: str, shared_hash: str) -> str:
    """Return the path of a shared blob of a cache."""
    return os.path.join(cache_dir, SHARED_STORE, shared_hash[:2], shared_hash)


def lock_path(cache_dir: str, folder: str, etag: str) -> str:
    """Return the path of the hub's lock of a blob, by the name of the repo's folder."""
    return os.path.join(cache_dir, LOCKS, folder, etag + LOCK_SUFFIX)


def parse_repo_folder(name: str) -> tuple[str, str] | None:
    """Return (type, repo id) of the name of a repo's folder; `None` if it is not one."""
    prefix, separator, rest = name.partition("--")
    if not separator or prefix not in KINDS or not rest:
        return None
    return KINDS[prefix], rest.replace("--", "/")


def name_by_path(repo_id: str, path: str) -> str:
    """Return what to type for a repo, whose type shows in the path of one of its entries."""
    repos = [repo for part in path.split(os.sep) if (repo := parse_repo_folder(part))]
    return next((typed_name(*repo) for repo in reversed(repos) if repo[1] == repo_id), repo_id)


def is_repo_id(text: str) -> bool:
    """Return whether a string is a repo id as the Hub allows them: `name` or `owner/name`.

    The Hub forbids `--` and `..`, and owners and names of over 96 characters
    (huggingface_hub `utils/_validators.py`).
    """
    return (
        _REPO_ID.fullmatch(text) is not None
        and "--" not in text
        and ".." not in text
        and not text.endswith((".git", ".ipynb"))
    )


def is_revision(text: str) -> bool:
    """Return whether a string can be a branch, tag or commit without leaving `refs/`."""
    return (
        _REF.fullmatch(text) is not None
        and all(part not in ("", ".", "..") for part in text.split("/"))
        and not text.endswith(".lock")
    )


def _hostile_problem(name: str) -> str | None:
    """Return why no repo can hold a file of that name; `None` if it can.

    A name that leaves the folder on one system is refused on all.
    """
    if len(name) > _LONGEST_NAME:
        return "it is too long"
    if name.count("/") > _MOST_FOLDERS:
        return f"it is in more than {_MOST_FOLDERS} folders"
    if (
        "\0" in name
        or ".." in name.replace("\\", "/").split("/")
        or name.startswith(("/", "\\"))
        or _ABSOLUTE_ON_WINDOWS.match(name)
        or (os.name == "nt" and _DRIVE.match(name))
    ):
        return "it leaves the repo's folder"
    return "it has an empty part" if {"", "."} & {*name.split("/")} else None


def _length_problem(name: str) -> str | None:
    """Return why a name is too long for filesystems, or invalid; `None` if it is neither."""
    try:
        too_long = len(name.encode()) > _LONGEST_NAME or any(
            len(part.encode()) > 255 for part in name.split("/")
        )
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    return "it is too long" if too_long else None


def file_name_problem(name: str) -> str | None:
    """Return why a file of a repo cannot be written below a snapshot; `None` if it can.

    Names come from the network or from archives. A name that one system cannot hold, or takes for
    another name, is refused on all, since a cache can move between systems.
    """
    problem = _hostile_problem(name) or _length_problem(name)
    if problem is not None:
        return problem
    if any(character < " " or "\x7f" <= character < "\xa0" for character in name):
        return "it contains control characters"
    if "\\" in name:
        return "it contains a backslash, which separates folders on Windows"
    if _DRIVE.match(name):
        return "it names a drive on Windows"
    if os.name == "nt" and any(map(_NOT_ON_WINDOWS.search, name.split("/"))):
        return "Windows does not allow such names"
    return "it is not valid Unicode" if "\ufffd" in name else None


def matched(names: Iterable[str], pattern: str) -> set[str]:
    """Return the file names that a pattern of `--include` or `--exclude` matches.

    The rules are those of huggingface_hub's filter_repo_objects (`utils/_paths.py`).
    """
    complete = pattern + "*" if pattern.endswith("/") else pattern
    return {name for name in names if fnmatch.fnmatch(name, complete)}


def listing_problem(names: Collection[str], *, written: bool = False) -> tuple[str, str] | None:
    """Return a name for which a complete listing is refused, and why; `None` if there is none.

    It leaves the folder, makes no sense, or is both a file and a folder. If a name cannot be
    written for another reason, only that file is refused: see `file_name_problem`.

    Args:
        names: the names in the listing.
        written: whether all of it is about to be written.
    """
    for name in names:
        reason = _hostile_problem(name) or (_length_problem(name) if written else None)
        if reason is not None:
            return name, reason
    # In this order, a name that is also a folder comes right before the folder's content.
    ordered = sorted(name.replace("/", "\0") for name in names)
    for name, following in itertools.pairwise(ordered):
        if following.startswith(name + "\0"):
            return name.replace("\0", "/"), "it is also a folder"
    return None


def is_etag(text: str) -> bool:
    """Return whether a string is a hash by which the Hub names a blob: git sha1 or sha256."""
    return are_etags((text,))


def are_etags(texts: Collection[str]) -> bool:
    """Return whether all strings are such hashes; for many strings that is as quick as for one."""
    if not _ETAG_LENGTHS.issuperset(map(len, texts)):
        return False
    joined = "".join(texts)
    return joined.isascii() and not joined.encode().translate(None, _HEX)


def is_blob_name(text: str) -> bool:
    """Return whether a string can name a blob: one of the Hub's hashes, or those of mirrors."""
    return _BLOB_NAME_ALONE.fullmatch(text) is not None


def is_entry_name(text: str) -> bool:
    """Return whether a string can be the name of one entry of a folder, and leads nowhere else."""
    return (
        text == os.path.basename(text)
        and text not in ("", os.curdir, os.pardir)
        and "\0" not in text
    )


def is_commit_folder(text: str) -> bool:
    """Return whether a string can name one folder below `snapshots/`."""
    return _SAFE_COMMIT.fullmatch(text) is not None and ".." not in text


def partial_etag(name: str) -> str | None:
    """Return the etag in the name of a partial download; `None` for other names."""
    match = _PARTIAL.fullmatch(name) if name.endswith(_PARTIAL_ENDS) else None
    return match["etag"] if match else None


def own_partials(etag: str) -> tuple[str, str]:
    """Return the names of the two files in which we receive a blob, the usual one first."""
    return etag + PARTIAL_SUFFIX, etag + SECOND_PARTIAL


def partial_client(name: str) -> str | None:
    """Return the only program that writes partial downloads of that name; `None` for the hub's."""
    match = _PARTIAL.fullmatch(name)
    return OTHER_CLIENTS[match["other"]] if match and match["other"] else None


def is_blob_lock(name: str) -> bool:
    """Return whether a name is that of a lock which other clients keep next to their blobs.

    The Rust, Go and Swift clients write `blobs/<etag>.lock`; the hub's library uses `.locks/`.
    """
    return _BLOB_LOCK.fullmatch(name) is not None


def blob_of_text(text: bytes, depth: int) -> str | None:
    """Return the blob that a file stands for if it contains a link's target; `None` if it does not.

    git, zip and copies to a filesystem without links leave such files in place of links.

    Args:
        text: the file's content.
        depth: as for `link_target`.
    """
    start = link_target("", depth)
    # A copy made on Windows contains the target as Windows writes it.
    target = text.decode("ascii", "replace").replace("\\", "/")
    name = target.removeprefix(start)
    return name if target.startswith(start) and is_etag(name) else None


def is_temporary(name: str) -> bool:
    """Return whether a name is one that hub libraries, or we, give to files until a rename."""
    # Blobs and links are many and temporaries few: most names need no pattern.
    likely = name.startswith((".", "tmp")) or name.endswith(".tmp")
    return likely and _TEMPORARY.fullmatch(name) is not None


def link_target(name: str, depth: int) -> str:
    """Return the relative target of a snapshot's link to a blob.

    Args:
        name: the blob's name.
        depth: folders between the snapshot's own folder and the link; 0 for a file at its top.
    """
    return "../" * (depth + 2) + f"{BLOBS}/{name}"


def blob_of_target(target: str) -> str:
    """Return the blob that the target of a snapshot's link names; an empty string for others."""
    folder, _, name = target.rpartition("/")
    return name if folder.rpartition("/")[2] == BLOBS else ""


def shared_hash_of(target: str) -> str | None:
    """Return the hash of the shared blob that the target of a blob's link names; `None` for others.

    The hub writes `../../blobs/<xx>/<hash>`, relative to the repo's `blobs` folder. A link into the
    store of another cache has its complete path.
    """
    if os.path.isabs(target):
        return None
    parts = target.replace("\\", "/").split("/")
    in_store = (
        len(parts) >= 3
        and parts[-3] == SHARED_STORE
        and SHARED_HASH.fullmatch(parts[-1]) is not None
        and parts[-2] == parts[-1][:2]
    )
    return parts[-1] if in_store else None
