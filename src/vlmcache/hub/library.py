"""All that is taken from huggingface_hub and hf_xet, whatever their versions: 1.0 and newer.

What is not public, or is newer than the oldest version that works, has something here that takes
its place. No other module names the two, which are imported when they are first needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlmcache.environment import is_on


def session() -> tuple[Any, Any]:
    """Return the client's session, and the HTTP library that it belongs to: httpx or httpx2."""
    from huggingface_hub import get_session

    shared = get_session()
    # An application may have given the client a class of its own.
    modules = (sys.modules[base.__module__.partition(".")[0]] for base in type(shared).__mro__)
    return shared, next(module for module in modules if hasattr(module, "TransportError"))


def headers(token: str | Literal[False] | None) -> dict[str, str]:
    """Return what is sent to the hub, with the given token, the user's (`None`) or no token."""
    utils = importlib.import_module("huggingface_hub.utils")
    return dict(utils.build_hf_headers(token=token, library_name="vlmcache"))


def timeouts() -> tuple[float, float]:
    """Return the seconds that the user waits for an answer, and for the next bytes."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_ETAG_TIMEOUT), float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def without_links() -> bool:
    """Return whether the client is configured to place no links."""
    from huggingface_hub import constants

    name = "HF_HUB_DISABLE_SYMLINKS"  # since 1.9
    return bool(getattr(constants, name, is_on(os.environ.get(name))))


def has_xet() -> bool:
    """Return whether Xet is installed and not switched off."""
    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def xet_reports_early() -> bool:
    """Return whether Xet's bytes are reported as they arrive, not only as they are written."""
    try:
        from huggingface_hub.utils import _xet_progress_reporting
    except ImportError:
        return False
    return hasattr(_xet_progress_reporting, "XetDownloadProgressReporter")  # since 1.31


def xet_chunks() -> int:
    """Return the bytes of all files in Xet's own cache of chunks, 0 if it is off.

    Xet can reuse only chunks: it writes each file from the start. hf_xet ships with the
    cache off (its `chunk_cache.size_bytes` is 0); HF_XET_CHUNK_CACHE_SIZE_BYTES switches it on.
    """
    import hf_xet
    from huggingface_hub import constants

    try:
        if hasattr(hf_xet, "XetConfig"):  # since 1.4
            capacity = hf_xet.XetConfig().get("chunk_cache.size_bytes")
        else:
            capacity = os.environ.get("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
        if int(capacity) <= 0:
            return 0
        chunks = Path(constants.HF_XET_CACHE).glob("*/chunk[-_]cache/**/*")
        return sum(path.stat().st_size for path in chunks if path.is_file())
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return 0


class XetBar:
    """What the client takes for a tqdm bar, and reports a transfer to.

    Args:
        moved: called with the bytes that are written, and those that came over the network, each
            time that there are more; the latter stay 0 with clients that do not report them.
    """

    def __init__(self, moved: Callable[[int, int], None]) -> None:
        self._moved = moved
        self.n = 0
        self.total = 0
        self.transferred = 0
        self.format_dict: dict[str, Any] = {}

    def update(self, count: float | None = 1) -> None:
        """Take note that `count` more bytes are written."""
        if count:
            self.n += int(count)
            self._moved(self.n, self.transferred)

    def update_transfer(self, count: float) -> None:
        """Take note that `count` more bytes came over the network."""
        self.transferred += int(count)
        self._moved(self.n, self.transferred)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments, **_options: None


class XetFile(NamedTuple):
    """A file to download through Xet."""

    path: str
    """Where to."""
    xet_hash: str
    size: int
    """Its length in bytes."""
    route: str
    """The address that gives out tokens for its repo."""
    headers: dict[str, str]
    """What is sent to that address."""


def xet_get(file: XetFile, bar: XetBar) -> None:
    """Download a file through Xet, and report to a bar; it may take any time and raise anything."""
    utils: Any = importlib.import_module("huggingface_hub.utils")
    file_download: Any = importlib.import_module("huggingface_hub.file_download")
    file_download.xet_get(
        incomplete_path=Path(file.path),
        xet_file_data=utils.XetFileData(file_hash=file.xet_hash, refresh_route=file.route),
        headers=file.headers,
        expected_size=file.size,
        displayed_filename=os.path.basename(file.path),
        _tqdm_bar=bar,
    )


def link_from_shared_store(cache: str, blob: str, xet_hash: str, size: int) -> bool:
    """Link a blob to the cache's store of shared blobs, if that has the content.

    Returns:
        Whether the blob is in its place now.
    """
    return _in_store("try_link_from_shared_store", cache, blob, xet_hash, size)


def publish_to_shared_store(cache: str, blob: str, xet_hash: str, size: int) -> None:
    """Put a blob that came through Xet into the store of shared blobs, as the client does.

    Raises:
        OSError: it could not be put back where it was.
    """
    _in_store("publish_blob_to_shared_store", cache, blob, xet_hash, size)


def _in_store(name: str, cache: str, blob: str, xet_hash: str, size: int) -> bool:
    """Call a function of the client's module for shared blobs; without it nothing is shared."""
    # Neither public nor in versions before 1.32.
    with contextlib.suppress(ImportError, AttributeError, TypeError):
        from huggingface_hub.utils import _shared_blobs

        act: Any = getattr(_shared_blobs, name)
        if _shared_blobs.shared_blobs_enabled():
            return bool(act(blob_path=blob, xet_hash=xet_hash, cache_dir=cache, expected_size=size))
    return False
