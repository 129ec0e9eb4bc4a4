"""Xet, the Hub's storage of chunks: huggingface_hub's own path to it, in three small steps."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile
from vlmcache.units import size_text

if TYPE_CHECKING:
    from vlmcache.hub.client import Client
    from vlmcache.hub.job import Job


def is_usable(listed: TreeFile) -> bool:
    """Return whether a file can come through Xet: the hub has it there, and so has this machine."""
    if listed.xet_hash is None:
        return False
    try:
        from huggingface_hub.utils._runtime import is_xet_available
    except ImportError:
        return False
    return bool(is_xet_available())


def reusable() -> int:
    """Return the bytes that Xet's own cache of chunks holds, of whatever files, 0 if it is off.

    Chunks are all that Xet can go on from: it writes a file anew each time. hf_xet ships with the
    cache off (its `chunk_cache.size_bytes` is 0); HF_XET_CHUNK_CACHE_SIZE_BYTES switches it on.
    """
    import hf_xet
    from huggingface_hub import constants

    try:
        if int(hf_xet.XetConfig().get("chunk_cache.size_bytes")) <= 0:
            return 0
        chunks = Path(constants.HF_XET_CACHE).glob("*/chunk[-_]cache/**/*")
        return sum(path.stat().st_size for path in chunks if path.is_file())
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return 0


def fetch(client: Client, job: Job, path: str, moved: Callable[[int], None]) -> int:
    """Download a file through Xet into `path`, and note what Xet may use again.

    Returns:
        The bytes that came over the network, as Xet tells: fewer than the file's where it holds
        chunks already or has compressed them. The file's size where it does not tell.

    Raises:
        Exception: huggingface_hub's, hf_xet's or the system's failures.
    """
    from huggingface_hub.file_download import xet_get
    from huggingface_hub.utils._xet import XetFileData

    held = reusable()
    if held:
        client.note(
            f"{job.file}: through Xet; {size_text(held)} in its chunk cache may be used again"
        )
    bar = _Bar(moved)
    route = client.api(job.repo, "xet-read-token", job.commit)
    xet_get(
        incomplete_path=Path(path),
        xet_file_data=XetFileData(file_hash=str(job.listed.xet_hash), refresh_route=route),
        headers=client.headers,
        expected_size=job.listed.content_size,
        displayed_filename=job.file,
        _tqdm_bar=bar,
    )
    # Nothing at all can only be true where there was something to go on from.
    return bar.transferred if bar.transferred or held else job.listed.content_size


def abort() -> None:
    """End what runs through Xet now, as the client does on Ctrl-C."""
    if "hf_xet" in sys.modules:
        from huggingface_hub.utils import _xet

        stop: Any = _xet.abort_xet_session
        stop()


class _Bar:
    """What huggingface_hub takes for a tqdm bar, and tells the transfer to as well."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved
        self.n = 0
        self.total = 0
        self.transferred = 0

    def update(self, count: float | None = 1) -> None:
        self.n += int(count or 0)
        self._moved(self.n)

    def update_transfer(self, count: float) -> None:
        """So many bytes more came over the network."""
        self.transferred += int(count)

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments, **_options: None


def share(job: Job) -> None:
    """Put a blob that came through Xet into the shared store, as the client does."""
    from huggingface_hub.utils import _shared_blobs

    if job.shares and _shared_blobs.shared_blobs_enabled():
        _shared_blobs.publish_blob_to_shared_store(
            blob_path=job.blob,
            xet_hash=str(job.listed.xet_hash),
            cache_dir=job.cache_dir,
            expected_size=job.listed.content_size,
        )


def link_shared(job: Job) -> bool:
    """Take a blob from the shared store, where another repo has put the same content.

    Returns:
        Whether it is there now.
    """
    if job.listed.xet_hash is None or layout.SHARED_HASH.fullmatch(job.listed.xet_hash) is None:
        return False
    if not job.shares:
        return False
    try:
        from huggingface_hub.utils import _shared_blobs
    except ImportError:
        return False
    os.makedirs(job.blobs, exist_ok=True)
    found: Any = _shared_blobs.shared_blobs_enabled() and _shared_blobs.try_link_from_shared_store(
        blob_path=job.blob,
        xet_hash=job.listed.xet_hash,
        cache_dir=job.cache_dir,
        expected_size=job.listed.content_size,
    )
    return bool(found)
