"""What `attach` records of a repo: the bases into which links among its blobs may lead (pure).

A base is somebody else's cache, read-only here, beneath this one. The record is in the cache,
outside the repos' folders. Only it distinguishes our links into a base from any other links out.
"""

from __future__ import annotations

import os

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import Drive

FORMAT = "vlmcache.base/1"
LIMIT = 1_000_000
"""The most bytes that make sense for a record."""


class BaseAt(msgspec.Struct, frozen=True):
    """A base, and the filesystem that shows whether it is mounted."""

    folder: str
    """Its absolute path, as it stands in the links."""
    drive: Drive | None = None
    """The filesystem that it is on; `None` if the system does not say."""

    def holds(self, target: str, folder: str, etag: str) -> bool:
        """Return whether a link's target is the place of a blob in this base.

        Args:
            target: what the link says.
            folder: the name of the repo's folder, the same in both caches.
            etag: the link's own name.
        """
        if target == layout.blob_path(os.path.join(self.folder, folder), etag):
            return True
        name = os.path.basename(target)
        in_store = layout.SHARED_HASH.fullmatch(name) is not None
        return in_store and target == layout.shared_blob_path(self.folder, name)


class BaseRecord(msgspec.Struct, frozen=True):
    """The content of a record."""

    format: str
    bases: tuple[BaseAt, ...]
    refs: dict[str, str] = {}
    """Ref -> the commit that it named in a base when `attach` wrote it here."""

    def base_of(self, target: str, folder: str, etag: str) -> BaseAt | None:
        """Return the base that a link leads into; `None` if it leads into none of them."""
        return next((base for base in self.bases if base.holds(target, folder, etag)), None)


_DECODER = msgspec.json.Decoder(BaseRecord)


def base_record_path(cache_dir: str, folder: str) -> str:
    """Return the path of the record of the bases into which the blobs of a repo lead."""
    return os.path.join(cache_dir, layout.LOCKS, folder + layout.BASE_SUFFIX)


def decode(content: bytes) -> BaseRecord:
    """Return what a record says.

    Raises:
        MsgspecError, RecursionError, UnicodeDecodeError: it is not such a record.
    """
    record = _DECODER.decode(content)
    if record.format != FORMAT or not all(os.path.isabs(base.folder) for base in record.bases):
        raise msgspec.ValidationError("not a record of a base")
    return record
