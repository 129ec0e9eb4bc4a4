"""What a hub says about a repo: the commit that a ref names, and the files at that commit.

A repo is named as it is typed: that of a dataset begins with `datasets/`. Mirrors leave fields out,
or give them as null or as strings: what does no harm is accepted.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile
from vlmcache.errors import (
    AccessError,
    BadAnswerError,
    HostileListingError,
    HubError,
    NoSuchRepoError,
    NoSuchRevisionError,
    VlmcacheError,
)
from vlmcache.hub.client import Client
from vlmcache.hub.retry import Backoff, TroubleError
from vlmcache.threads import results
from vlmcache.units import and_more, counted, did_you_mean, short_text

_MOST_FILES = 1_000_000
_MOST_PAGES = 10_000
_NO_SUCH_QUESTION = frozenset({404, 405, 501})
"""What mirrors answer that do not know the hub's listing."""
_AT_ONCE = 8
"""Files that are asked about at the same time."""
_NOTE_EVERY = 200
"""Files between notes of how many were asked about."""
_ETAG = re.compile(r'(?:W/)?"?(?:sha256:)?([^"]*?)(?:[-;]{1,2}(?:gzip|br|zstd|deflate))?"?')


class Resolved(msgspec.Struct, frozen=True):
    """The commit that a revision means now, and who may have the repo."""

    commit: str
    name: str
    """What the hub calls the repo."""
    gated: bool = False
    """Whether its files are only for those who were given access."""
    private: bool = False
    """Whether only those whom its owner chose see that it exists."""

    @property
    def restriction(self) -> str | None:
        """`gated` or `private`; `None` if everybody may have the files."""
        return "private" if self.private else "gated" if self.gated else None


class _Info(msgspec.Struct):
    sha: str | None = None
    id: str | None = None
    gated: Any = None
    private: Any = None


class _Lfs(msgspec.Struct):
    oid: str | None = None
    sha256: str | None = None
    size: str | float | None = None


class _Entry(msgspec.Struct, rename={"xet_hash": "xetHash"}):
    path: str
    type: str | None = "file"
    oid: str | None = None
    size: str | float | None = None
    lfs: _Lfs | None = None
    xet_hash: str | None = None


class _Sibling(msgspec.Struct, rename={"path": "rfilename", "oid": "blobId"}):
    path: str
    oid: str | None = None
    size: str | float | None = None
    lfs: _Lfs | None = None
    xet_hash: str | None = None


class _Siblings(msgspec.Struct):
    siblings: list[_Sibling] | None = None


class _Ref(msgspec.Struct):
    name: str


class _Refs(msgspec.Struct):
    branches: list[_Ref] | None = None
    tags: list[_Ref] | None = None


def find_commit(
    client: Client, repo: str, revision: str, *, attempts: int | None = None
) -> Resolved:
    """Return the commit of a branch, tag or beginning of a commit; one request.

    Raises:
        NoSuchRepoError: no such repo, or this user may not see it.
        NoSuchRevisionError: the repo has no such revision; the hint names similar ones.
        HubError: the hub cannot be asked, or refuses.
    """
    try:
        info, _ = client.ask(client.api(repo, "revision", revision), _Info, attempts=attempts)
    except VlmcacheError as error:
        raise named_failure(client, repo, revision, error) from error
    commit = _hash(info.sha or "")
    if layout.COMMIT.fullmatch(commit) is None:
        raise BadAnswerError(f"{client.name} names no commit for {repo}@{revision}")
    kind, repo_id = layout.split_name(repo)
    name = layout.typed_name(kind, info.id or repo_id)
    return Resolved(commit, name, bool(info.gated), bool(info.private))


def check_download_access(client: Client, repo: str) -> None:
    """Ask whether this user may have the files of a repo, which can be gated; one request.

    Raises:
        AccessError: not, or not yet. Any other failure is left to the download: a mirror may not
            know this question.
    """
    try:
        client.ask(client.api(repo, "auth-check"), msgspec.Raw, attempts=1)
    except AccessError as error:
        raise named_failure(client, repo, "", error) from error
    except VlmcacheError:
        pass


def list_files(
    client: Client, repo: str, commit: str, *, attempts: int | None = None
) -> dict[str, TreeFile]:
    """Return the files at a commit with sizes and hashes; one request per page.

    A mirror without such pages is asked for the names that it gives with the commit. What that
    does not say of a file, the file's own address is asked for, as by huggingface_hub.

    Raises:
        HostileListingError: a file's name or hash must not be used as a path.
        NoSuchRepoError, NoSuchRevisionError, HubError: as for `find_commit`.
    """
    try:
        try:
            entries = _pages(client, repo, commit, attempts)
        except HubError as error:
            if error.refused_by_other not in _NO_SUCH_QUESTION:
                raise
            entries = _siblings(client, repo, commit, attempts, error)
    except VlmcacheError as error:
        raise named_failure(client, repo, commit, error) from error
    listed: dict[str, TreeFile | None] = {}
    for entry in entries:
        file = _file(entry)
        # Pages may overlap. Where they differ, the file itself is asked, as by huggingface_hub.
        same = listed.get(entry.path, file) == file or not _can_be_asked(entry.path)
        listed[entry.path] = file if same else None
    files = {name: file for name, file in listed.items() if file is not None}
    _refuse_hostile(repo, listed)
    unknown = [name for name in sorted(listed.keys() - files.keys()) if _can_be_asked(name)]
    files |= _ask_each(client, repo, commit, unknown) if unknown else {}
    check_names(repo, files)
    return dict(sorted(files.items()))


def _pages(client: Client, repo: str, commit: str, attempts: int | None) -> list[_Entry | _Sibling]:
    listed: list[_Entry | _Sibling] = []
    asked: set[str] = set()
    address: str | None = client.api(repo, "tree", commit, query="recursive=true&expand=false")
    while address is not None:
        asked.add(address)
        entries, following = client.ask(address, list[_Entry], attempts=attempts)
        listed += (entry for entry in entries if entry.type in ("file", None))
        address = client.within(following) if following else None
        if len(listed) > _MOST_FILES or address in asked or len(asked) > _MOST_PAGES:
            raise HostileListingError(f"{repo}: the listing does not end")
    return listed


def _siblings(
    client: Client, repo: str, commit: str, attempts: int | None, missing: HubError
) -> list[_Entry | _Sibling]:
    address = client.api(repo, "revision", commit, query="blobs=true")
    info, _ = client.ask(address, _Siblings, attempts=attempts)
    if info.siblings is None:
        raise HubError(
            f"{client.name} does not say which files {repo} has: {missing.message}",
            "a mirror without the hub's API cannot be pulled from: name another in HF_ENDPOINT",
        )
    return list(info.siblings)


def _file(entry: _Entry | _Sibling) -> TreeFile | None:
    """Return what an entry says of a file; `None` unless it says size and hash."""
    size, oid = _number(entry.size), _hash(entry.oid or "")
    shared = layout.SHARED_HASH.fullmatch(entry.xet_hash or "")
    xet_hash = entry.xet_hash if shared else None
    lfs = entry.lfs
    if lfs is not None and (lfs.oid or lfs.sha256):
        lfs_size = size if lfs.size is None else _number(lfs.size)
        if lfs_size is None:
            return None
        sha256 = _hash((lfs.oid or lfs.sha256 or "").removeprefix("sha256:"))
        return TreeFile(lfs_size if size is None else size, oid, sha256, lfs_size, xet_hash)
    return TreeFile(size, oid, xet_hash=xet_hash) if oid and size is not None else None


def _hash(text: str) -> str:
    """Return a hash in small letters, as the hub writes it; any other name as it is."""
    return text.lower() if layout.is_etag(text.lower()) else text


def _number(size: str | float | None) -> int | None:
    """Return a size that some mirrors give as a string; `None` if it is not one."""
    text = str(size)
    if isinstance(size, float) and size.is_integer():
        return int(size)
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) else None


def _can_be_asked(name: str) -> bool:
    return layout.file_name_problem(name) is None


def _ask_each(client: Client, repo: str, commit: str, names: list[str]) -> dict[str, TreeFile]:
    """Ask about files of which the listing says too little, several at a time."""
    client.note(
        f"{repo}: {client.name} lists names only; asking about {counted(len(names), 'file')}"
    )

    def ask(name: str) -> tuple[str, TreeFile]:
        address = client.file_address(repo, commit, name)
        backoff = Backoff(
            client.patience, client.stop_token, client.note_failure, client.patience.asks
        )
        timeout = client.patience.answer_timeout or client.library.answer_timeout
        while True:
            try:
                with client.opened(address, method="HEAD", timeout=timeout) as response:
                    return name, _described(client, address, response.headers)
            except TroubleError as trouble:
                backoff.failed(trouble)

    files: dict[str, TreeFile] = {}
    # A file that fails ends the questions, and nothing else that the client is asked.
    for name, file in results(names, ask, _AT_ONCE, threading.Event()):
        files[name] = file
        if len(files) % _NOTE_EVERY == 0:
            client.note(f"{repo}: asked about {len(files)} of {len(names)} files")
    return files


def _described(client: Client, address: str, headers: Mapping[str, str]) -> TreeFile:
    """Return what the headers of a file's own address say of it.

    A name counts as a hash if it has the form of one, unless it is the plain sha1 by which
    Artifactory names files. With any other name, nobody can check the content; the blob gets that
    name, as with huggingface_hub.
    """
    size = _number(headers.get("X-Linked-Size") or headers.get("Content-Length"))
    if size is None or headers.get("Content-Encoding", "identity").lower() != "identity":
        raise HubError(f"{log.scrub(address)}: {client.name} does not say how long the file is")
    linked, etag = (bare_etag(headers.get(name, "")) for name in ("X-Linked-ETag", "ETag"))
    sha256 = headers.get("X-Checksum-Sha256", "")
    for name in (linked, sha256, etag):
        if layout.is_etag(name) and name != headers.get("X-Checksum-Sha1"):
            is_lfs = len(name) == 64
            return TreeFile(size, name, name if is_lfs else None, size if is_lfs else None)
    name = linked or etag
    if layout.is_etag(name) or not layout.is_blob_name(name):
        name = hashlib.blake2b(f"{address} {name}".encode(), digest_size=16).hexdigest()
    return TreeFile(size, name)


def bare_etag(text: str) -> str:
    """Return an ETag without quotes, and without what servers add for compression or weakness."""
    match = _ETAG.fullmatch(text.strip())
    return _hash(match[1]) if match is not None else ""


def _refuse_hostile(repo: str, names: Iterable[str]) -> None:
    problem = layout.listing_problem(list(names))
    if problem is not None:
        raise _hostile(repo, *problem)


def _hostile(repo: str, name: str, reason: str) -> HostileListingError:
    return HostileListingError(
        f"{repo}: the file name {short_text(name)} is refused: {reason}",
        "nothing was written; do not trust this repo",
    )


def check_names(repo: str, files: dict[str, TreeFile]) -> None:
    """Refuse a listing with a file that must not be written under its name.

    Raises:
        HostileListingError: a name leaves the repo's folder, or is both a file and a folder; or a
            hash or a size is not one.
    """
    _refuse_hostile(repo, files)
    for name, file in files.items():
        if not layout.is_blob_name(file.etag):
            raise _hostile(repo, name, "its hash is not one")
        if file.content_size < 0:
            raise _hostile(repo, name, "its size makes no sense")


def named_failure(client: Client, repo: str, revision: str, error: VlmcacheError) -> VlmcacheError:
    """Return a failure that names the repo."""
    if isinstance(error, NoSuchRevisionError):
        return NoSuchRevisionError(
            f"{repo} has no revision {revision}", _similar_refs(client, repo, revision)
        )
    if isinstance(error, NoSuchRepoError):
        kind, _ = layout.split_name(repo)
        return NoSuchRepoError(f"no such {kind} on {client.name}: {repo}", error.hint)
    if isinstance(error, AccessError):
        return AccessError(f"{repo}: {error.message}", error.hint)
    return error


def _similar_refs(client: Client, repo: str, revision: str) -> str | None:
    """Return a hint that names similar refs, or the first ones; `None` if none is known."""
    try:
        refs, _ = client.ask(client.api(repo, "refs"), _Refs, attempts=1)
    except VlmcacheError:
        return None
    names = [ref.name for ref in (*(refs.branches or ()), *(refs.tags or ()))]
    listed = f"it has {', '.join(names[:5])}{and_more(len(names) - 5)}" if names else None
    return did_you_mean(revision, names) or listed
