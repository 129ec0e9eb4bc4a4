"""What the hub answers, for a cache: the JSON of its API, and conditions and ranges of HTTP."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, NamedTuple

from vlmcache.commands.serve.catalog import ServedFile, ServedRepo, ServedRevision, pointer_of

PAGE = 1000
"""Entries on a page of a listing at most, as on the hub."""
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class AnswerError(Exception):
    """A request that is refused.

    Args:
        status: of the answer.
        code: the hub's code for it, which its clients understand; `None` if it has none.
        message: what is wrong.
        headers: further ones of the answer.
    """

    def __init__(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def repo_info(repo: ServedRepo, revision: ServedRevision, *, blobs: bool) -> dict[str, Any]:
    """Return what the hub says of a repo at a revision.

    Args:
        repo: the repo.
        revision: the revision.
        blobs: whether sizes and hashes of the files are wanted.
    """
    made = datetime.fromtimestamp(revision.made_at, timezone.utc)
    answer: dict[str, Any] = {
        "_id": hashlib.sha256(repo.name.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.id.rpartition("/")[0] or None,
        "sha": revision.commit,
        "lastModified": made.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "private": repo.restriction == "private",
        "gated": "auto" if repo.restriction == "gated" else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [_sibling(file, blobs=blobs) for file in revision.files.values()],
        "usedStorage": sum(file.size for file in revision.files.values()),
    }
    if repo.kind == "model":
        answer["modelId"] = repo.id
    return answer


def _sibling(file: ServedFile, *, blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": file.name}
    if blobs:
        sibling |= {"size": file.size, "blobId": file.listed.blob_id}
        if file.listed.lfs_sha256 is not None:
            sibling["lfs"] = {"sha256": file.listed.lfs_sha256} | _lfs_sizes(file)
    return sibling


def _lfs_sizes(file: ServedFile) -> dict[str, int]:
    pointer = pointer_of(file.listed.lfs_sha256 or "", file.size)
    return {"size": file.size, "pointerSize": len(pointer)}


def refs(repo: ServedRepo) -> dict[str, Any]:
    """Return the refs of a repo, all as branches: a cache does not know which are tags."""
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in repo.refs.items()
        if not name.startswith("refs/")
    ]
    others = [
        {"name": name, "ref": name, "targetCommit": commit}
        for name, commit in repo.refs.items()
        if name.startswith("refs/pr/")
    ]
    return {"branches": branches, "converts": [], "tags": [], "pullRequests": others}


def tree(revision: ServedRevision, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Return files and folders below a folder of a revision.

    Raises:
        AnswerError: there is no such folder.
    """
    begin = f"{folder}/" if folder else ""
    files = [file for name, file in revision.files.items() if name.startswith(begin)]
    if not files:
        raise AnswerError(404, "EntryNotFound", f"{folder} does not exist on {revision.commit}")
    entries = {entry["path"]: entry for entry in _folders(files)}
    entries |= {file.name: _entry(file) for file in files}
    below = [entry for path, entry in sorted(entries.items()) if path.startswith(begin)]
    if recursive:
        return below
    return [entry for entry in below if "/" not in entry["path"][len(begin) :]]


def _folders(files: Iterable[ServedFile]) -> Iterator[dict[str, Any]]:
    for file in files:
        parts = file.name.split("/")
        for depth in range(1, len(parts)):
            path = "/".join(parts[:depth])
            oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
            yield {"type": "directory", "oid": oid, "size": 0, "path": path}


def _entry(file: ServedFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.listed.blob_id, "size": file.size}
    if file.listed.lfs_sha256 is not None:
        entry["lfs"] = {"oid": file.listed.lfs_sha256} | _lfs_sizes(file)
    return entry | {"path": file.name}


def paths_info(revision: ServedRevision, paths: Iterable[str]) -> list[dict[str, Any]]:
    """Return files and folders by their paths; what does not exist is left out."""
    entries = {entry["path"]: entry for entry in _folders(revision.files.values())}
    entries |= {file.name: _entry(file) for file in revision.files.values()}
    wanted = dict.fromkeys(path.strip("/") for path in paths)
    return [entries[path] for path in wanted if path in entries]


class Span(NamedTuple):
    """The part of a content that is sent."""

    status: int
    start: int
    stop: int


def span_of(header: str | None, if_range: str | None, size: int, etag: str) -> Span:
    """Return what a request asks for of a content (RFC 9110, sections 13 and 14).

    A Range that makes no sense, or that names several parts, is ignored.

    Args:
        header: the Range header.
        if_range: the If-Range header.
        size: length of the content in bytes.
        etag: its hash.

    Raises:
        AnswerError: nothing of the content is in the range.
    """
    complete = Span(200, 0, size)
    match = _RANGE.fullmatch(header or "")
    if match is None or (if_range is not None and if_range.strip() != f'"{etag}"'):
        return complete
    first, last = match.groups()
    if not first and not last:
        return complete
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return complete
    if start >= stop:
        raise AnswerError(
            416, None, "the range is outside of the file", {"Content-Range": f"bytes */{size}"}
        )
    return Span(206, start, stop)


def is_unchanged(if_none_match: str | None, etag: str) -> bool:
    """Return whether an If-None-Match header names the content that the client would get."""
    if if_none_match is None:
        return False
    names = [name.strip().removeprefix("W/") for name in if_none_match.split(",")]
    return "*" in names or f'"{etag}"' in names
