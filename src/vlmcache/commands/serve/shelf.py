"""Single contents of a cache, served by their hashes alone to whoever has a token."""

from __future__ import annotations

import contextlib
import os

from vlmcache import log
from vlmcache.addresses import in_address
from vlmcache.cache.hashing import Opener, identify_open
from vlmcache.cache.state import TreeFile
from vlmcache.cache.tree import CacheTree
from vlmcache.commands.serve.access import Access
from vlmcache.commands.serve.catalog import ServedFile, ServedRepo
from vlmcache.commands.serve.serve import check_packages
from vlmcache.commands.serve.values import ServeOptions
from vlmcache.commands.serve.vouching import Vouching
from vlmcache.config import Session, own_home
from vlmcache.progress import Throttle


class Shelf:
    """The contents that are served, whichever revision they belong to, complete or not.

    No repo is listed: without the token nothing can be learned.

    Args:
        cache_dir: the hub cache.
    """

    def __init__(self, cache_dir: str) -> None:
        self._tree = CacheTree(cache_dir)
        self._files: dict[str, ServedFile] = {}

    def add(self, etag: str, path: str, size: int) -> None:
        """Serve a blob from now on."""
        self._files[etag] = ServedFile(etag, path, True, TreeFile(size, etag), False)

    def distrust(self, etag: str) -> None:
        """Stop serving a content."""
        self._files.pop(etag, None)

    def content(self, etag: str) -> ServedFile | None:
        """Return a blob, `None` if it is not served."""
        return self._files.get(etag)

    def repos(self) -> tuple[ServedRepo, ...]:
        """Return nothing: no repo is listed."""
        return ()

    def repo(self, kind: str, repo_id: str) -> ServedRepo | None:  # noqa: ARG002
        """Return `None`: no repo is listed."""
        return None

    def opener(self, is_blob: bool) -> Opener:
        """Return what opens blobs."""
        return self._tree.open_content if is_blob else self._tree.open

    def tend(self) -> None:
        """Do nothing: whoever fetches a blob adds it."""


class BlobServer(contextlib.AbstractContextManager["BlobServer"]):
    """Serves the contents of a shelf in a thread until it is closed.

    Each is hashed before its first byte is sent, unless it is known to be good.

    Args:
        session: what to work on.
        host: the address to listen on, at a free port.
        token: what opens the contents; nothing else does.

    Raises:
        MissingPackageError: uvicorn or starlette is not installed.
        ServeError: the address cannot be listened on.
    """

    def __init__(self, session: Session, host: str, token: str) -> None:
        check_packages()
        from vlmcache.commands.serve import server

        log.hide(token)
        options = ServeOptions()
        self.shelf = Shelf(session.cache.dir)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(server.listen(host, 0, options.max_connections))
            port = listener.getsockname()[1]
            home = own_home(session.environment)[0]
            self._vouching = stack.enter_context(contextlib.closing(Vouching(home)))
            self._counts = server.Counts()
            served = server.Served(
                self.shelf,
                self._vouching,
                Access(token, (), host, on_network=True),
                Throttle(),
                self._counts,
                lambda: listener.live,
            )
            self._uvicorn = server.uvicorn_server(served, options)
            self._thread = server.answer_in_thread(self._uvicorn, listener)
            self._stack = stack.pop_all()
        self.address = f"http://{in_address(host)}:{port}"
        """The address, as other machines reach it."""

    @property
    def bytes_sent(self) -> int:
        """How much was sent so far."""
        return self._counts.bytes_sent

    def add(self, etag: str, path: str, size: int, *, verified: bool) -> None:
        """Serve a blob from now on.

        Args:
            etag: its hash.
            path: where it is.
            size: its bytes.
            verified: whether it was just found to have that hash.
        """
        if verified:
            with contextlib.suppress(OSError):
                descriptor = self.shelf.opener(True)(path)
                try:
                    self._vouching.vouch(identify_open(descriptor), etag)
                finally:
                    os.close(descriptor)
        self.shelf.add(etag, path, size)

    def close(self) -> None:
        """End it, and let go of the address."""
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join()
        self._stack.close()

    def __exit__(self, *exception: object) -> None:
        self.close()
