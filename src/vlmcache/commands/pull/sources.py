"""The sources of `pull --from`: another cache, a backup, a tar, an Ollama store, or a server."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple
from urllib.parse import urlsplit

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.completeness import commit_named
from vlmcache.cache.hashing import BLOCK
from vlmcache.cache.reading import open_quietly
from vlmcache.cache.scan import scan
from vlmcache.cache.state import Finding, Revision, TreeFile
from vlmcache.cache.tree import CacheTree, identity_of
from vlmcache.commands.backup.compression import compression_in
from vlmcache.commands.backup.contents import SavedRepo
from vlmcache.commands.backup.nearby import backups_near, holds_repos
from vlmcache.commands.backup.places import PlaceError, is_store, local_path, without_password
from vlmcache.commands.backup.remote import open_place
from vlmcache.commands.backup.store import Store, blob_name
from vlmcache.commands.backup.tarred import TarContents
from vlmcache.commands.backup.values import MARKER
from vlmcache.config import Session
from vlmcache.errors import UsageError, VlmcacheError, reason_of
from vlmcache.hub.client import Client
from vlmcache.hub.retry import TroubleError
from vlmcache.hub.served import ServedContents
from vlmcache.hub.sources import SILENCE, RevisionFiles, Source
from vlmcache.progress import StopToken
from vlmcache.threads import StillError, unless_still

_OLLAMA = "sha256-"
"""How Ollama begins the name of a blob; the hash that follows is the hub's too."""
_HUB_TOKEN = "hf_"  # noqa: S105
"""What the tokens of the Hub begin with: they are never sent to another machine."""
_TAR, _TAR_AT = b"ustar", 257
"""What the first header of a tar holds, and where (POSIX, `pax`)."""
_TOKEN = "VLMCACHE_SERVE_TOKEN"  # noqa: S105


class _Local:
    """A source whose contents and their lengths are known from the beginning."""

    kind = ""
    streamed = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.sizes: dict[str, int] = {}

    def has(self, etag: str, size: int) -> bool:
        """Return whether it has a content of a length, as far as its own names say."""
        return self.sizes.get(etag) == size

    def order(self, etag: str) -> int:  # noqa: ARG002
        """Return 0: any content can be read at any time."""
        return 0

    def descriptor(self, etag: str) -> int | None:  # noqa: ARG002
        """Return `None`: no single file holds just that content."""
        return None

    def listing(self, repo: str, revision: str) -> RevisionFiles | None:  # noqa: ARG002
        """Return `None`: it lists nothing."""
        return None


class OtherCache(_Local):
    """Another hub cache, read through descriptors from its root.

    Args:
        name: as it was named.
        root: its folder.
        device: of the cache that is pulled into: blocks are shared within one filesystem.
    """

    kind = "cache"

    def __init__(self, name: str, root: str, device: int | None) -> None:
        super().__init__(name)
        self._tree = CacheTree(root)
        self._clones = os.stat(root).st_dev == device
        self._paths: dict[str, str] = {}
        for folder in self._tree.names(root):
            if layout.parse_repo_folder(folder) is not None:
                # A repo that cannot be read does not keep the others from being used.
                with contextlib.suppress(OSError):
                    self._add(os.path.join(root, folder))

    def _add(self, repo: str) -> None:
        for name in self._tree.names(os.path.join(repo, layout.BLOBS)):
            path = layout.blob_path(repo, name)
            if not layout.is_etag(name) or name in self._paths:
                continue
            with contextlib.suppress(OSError):
                status = self._tree.stat(path)
                size = status.st_size
                if stat.S_ISLNK(status.st_mode):
                    size = _size_of(self._tree.open_content(path))
                elif not stat.S_ISREG(status.st_mode):
                    continue
                self._paths[name], self.sizes[name] = path, size

    def descriptor(self, etag: str) -> int | None:
        """Return a content's own file, open, if its blocks can be shared."""
        return self._tree.open_content(self._paths[etag]) if self._clones else None

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield a content from an offset on."""
        with open(self._tree.open_content(self._paths[etag]), "rb", buffering=0) as file:
            file.seek(offset)
            yield _blocks(file, self.sizes[etag] - offset)

    def listing(self, repo: str, revision: str) -> RevisionFiles | None:
        """Return the commit that a revision means there, and its files."""
        state = scan(self._tree.root, only={layout.folder_of(repo)})
        cached = state.repo(repo)
        if cached is None:
            return None
        snapshots = {snapshot.commit: snapshot for snapshot in cached.revisions}
        commit = commit_named(revision, cached.refs, cached.trees.keys() | snapshots.keys())
        if commit is None:
            return None
        files = cached.trees.get(commit) or _linked(snapshots.get(commit))
        return (commit, files) if files else None


class OllamaStore(_Local):
    """The blobs of an Ollama store.

    Args:
        name: as it was named.
        folder: the folder of the blobs.
    """

    kind = "ollama"

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name)
        self._tree = CacheTree(folder)
        for file in self._tree.names(folder):
            etag = file.removeprefix(_OLLAMA)
            if file.startswith(_OLLAMA) and layout.is_etag(etag) and len(etag) == 64:
                status = self._tree.stat(os.path.join(folder, file))
                if stat.S_ISREG(status.st_mode):
                    self.sizes[etag] = status.st_size

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield a content from an offset on."""
        path = os.path.join(self._tree.root, f"{_OLLAMA}{etag}")
        with open(self._tree.open(path), "rb", buffering=0) as file:
            file.seek(offset)
            yield _blocks(file, self.sizes[etag] - offset)


class BackupStore(_Local):
    """A store of ours, in a folder or in a bucket."""

    kind = "store"

    def __init__(self, name: str, place: str) -> None:
        super().__init__(name)
        self._store = Store(open_place(place), StopToken())
        self._store.check()
        self.sizes = self._store.blobs()

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield a content from an offset on."""
        with self._store.place.reading(blob_name(etag), self.sizes[etag]) as file:
            file.seek(offset)
            yield _blocks(file, self.sizes[etag] - offset)

    def listing(self, repo: str, revision: str) -> RevisionFiles | None:
        """Return the commit that a revision means there, and its files."""
        folder = layout.folder_of(repo)
        if folder not in self._store.folders():
            return None
        return _listed(self._store.repos({folder: None})[0], revision)


class Tar(_Local):
    """A tar of ours, or one that tar made of a hub cache."""

    kind = "tar"

    def __init__(self, name: str, file: str) -> None:
        super().__init__(name)
        self._contents = TarContents(file)
        self.streamed = self._contents.streamed
        self.sizes = {etag: where.size for etag, where in self._contents.where.items()}

    def order(self, etag: str) -> int:
        """Return a number that grows along the tar; 0 for what it does not have."""
        where = self._contents.where.get(etag)
        return 0 if where is None else where.number + 1

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield a content from an offset on."""
        with self._contents.open(etag, offset) as blocks:
            yield blocks

    def listing(self, repo: str, revision: str) -> RevisionFiles | None:
        """Return the commit that a revision means there, and its files."""
        folder = layout.folder_of(repo)
        saved = {repo.folder: repo for repo in self._contents.repos}.get(folder)
        return None if saved is None else _listed(saved, revision)


class Opened(NamedTuple):
    """The sources of a pull, and findings about those that cannot be used."""

    sources: list[Source]
    findings: list[Finding]


def open_sources(
    session: Session, client: Client, named: Sequence[str], *, token: str | None
) -> Opened:
    """Return the sources that a pull uses: those named for it, then those of the configuration.

    Args:
        session: the hub cache, and the user's `sources:`.
        client: its throttle and environment are used.
        named: what `--from` names.
        token: what `--token` gives.

    Raises:
        UsageError: what `--from` names does not exist, or is not a source.
    """
    opened = Opened([], [])
    for number, text in enumerate(dict.fromkeys([*named, *session.config.sources])):
        try:
            opened.sources.append(_open_in_time(session, client, text, token))
        except (OSError, VlmcacheError, TroubleError) as caught:
            error = caught.error if isinstance(caught, TroubleError) else caught
            hint = error.hint if isinstance(error, VlmcacheError) else None
            words = error.message if isinstance(error, VlmcacheError) else reason_of(error)
            name = without_password(text)
            if isinstance(error, UsageError) and number < len(set(named)):
                raise UsageError(f"--from {name}: {words}", error.hint) from error
            detail = f"{name} cannot be used: {words}"
            opened.findings.append(Finding("source-unusable", "warning", None, name, detail, hint))
    return opened


def _open_in_time(session: Session, client: Client, text: str, token: str | None) -> Source:
    """Open a source; one on a disk may be slow, but is given up if it hangs.

    Raises:
        PlaceError: it hangs, as a mount does whose server is down.
    """

    def work() -> Source:
        return _open(session, client, text, token)

    if local_path(text) is None:
        # What is reached over the network has time limits of its own.
        return work()
    try:
        return unless_still(work, max(SILENCE, client.patience.data_timeout or 0.0))
    except StillError as error:
        raise PlaceError(str(error), "is its drive or its server still there?") from None


def _open(session: Session, client: Client, text: str, token: str | None) -> Source:
    name = without_password(text)
    if urlsplit(text).scheme in ("http", "https"):
        return _served(session, client, text, token)
    path = local_path(text)
    if path is None:
        return BackupStore(name, text) if is_store(text) else Tar(name, text)
    path = session.environment.absolute(path)
    if not os.path.exists(path):
        if re.fullmatch(r"[^/]+:\d+", text):
            raise UsageError("no such file or folder", f"did you mean http://{name}?")
        raise UsageError("no such file or folder", backups_near(path, for_cache=session.cache.dir))
    if os.path.isfile(path):
        if not _may_be_tar(path):
            raise UsageError("not a folder and not a tar")
        return Tar(name, path)
    if not os.path.isdir(path):
        raise UsageError("not a file and not a folder")
    if os.path.lexists(os.path.join(path, MARKER)):
        return BackupStore(name, path)
    for folder in (path, os.path.join(path, "models")):
        blobs = os.path.join(folder, "blobs")
        if os.path.isdir(blobs) and os.path.isdir(os.path.join(folder, "manifests")):
            return OllamaStore(name, blobs)
    for folder in (path, os.path.join(path, "hub")):
        if holds_repos(folder):
            own = identity_of(session.cache.dir)
            if own is not None and own == identity_of(folder):
                raise UsageError("this is the cache that is pulled into")
            return OtherCache(name, folder, own[0] if own is not None else None)
    raise UsageError(
        "not a hub cache, a store of 'vlmcache backup' or an Ollama store",
        backups_near(path, for_cache=session.cache.dir)
        or "name the folder that holds models--owner--name, or the file of a backup",
    )


def _served(session: Session, client: Client, address: str, token: str | None) -> ServedContents:
    """Return the source for a server.

    Raises:
        PlaceError: it does not answer, or refuses.
    """
    variables = session.environment
    if not urlsplit(address).hostname:
        raise UsageError("not an address such as http://box:9401")
    chosen = token or variables.get("HF_TOKEN")
    if chosen is not None and chosen.startswith(_HUB_TOKEN):
        chosen = None
    chosen = variables.get(_TOKEN) or chosen
    if chosen is None:
        raise PlaceError(
            "the token of its server is not set",
            f"set {_TOKEN} to it; tokens that begin with {_HUB_TOKEN} are sent to the hub only",
        )
    patience = msgspec.structs.replace(
        client.patience,
        attempts=1,
        asks=1,
        growth=1.0,
        answer_timeout=client.patience.answer_timeout or SILENCE,
        data_timeout=client.patience.data_timeout or SILENCE,
    )
    served = ServedContents(variables, address.rstrip("/"), chosen, client.throttle, patience)
    served.has("0" * 64)
    return served


def _may_be_tar(path: str) -> bool:
    """Whether a file begins as a tar does, compressed or not."""
    with open(open_quietly(path), "rb") as file:
        begin = file.read(_TAR_AT + len(_TAR))
    return compression_in(begin) is not None or begin[_TAR_AT:] == _TAR


def _size_of(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _blocks(file: IO[bytes], count: int) -> Iterator[bytes]:
    while count > 0 and (block := file.read(min(BLOCK, count))):
        count -= len(block)
        yield block


def _listed(repo: SavedRepo, revision: str) -> RevisionFiles | None:
    """Return what a backup knows of a revision: the hub's listing, or the files that it holds."""
    commit = commit_named(revision, repo.refs, repo.snapshots)
    if commit is None:
        return None
    blobs: Mapping[str, str] = repo.snapshots.get(commit, {})
    files = {
        file: _file(repo.blobs[name].size, repo.blobs[name].hash) for file, name in blobs.items()
    }
    return commit, repo.trees.get(commit) or files


def _linked(revision: Revision | None) -> dict[str, TreeFile]:
    """Return the files of a snapshot without a listing: its links name their contents."""
    return {
        file.name: _file(file.size, file.blob)
        for file in (revision.files if revision is not None else ())
        if file.kind == "link" and file.blob is not None and layout.is_etag(file.blob)
    }


def _file(size: int, etag: str) -> TreeFile:
    is_lfs = len(etag) == 64
    return TreeFile(size, etag, etag if is_lfs else None, size if is_lfs else None)
