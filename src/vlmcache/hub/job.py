"""One file to transfer."""

from __future__ import annotations

import os

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile


class BlobJob(msgspec.Struct, frozen=True):
    """One blob to fetch."""

    repo: str
    commit: str
    file: str
    listed: TreeFile
    cache_dir: str
    """The cache that `blobs` lies in: another one if `move` has put the repo there."""
    blobs: str
    """The folder of the repo's blobs."""
    shares: bool = True
    """Whether that cache's store of shared blobs may be used: not through a user's own link."""

    @property
    def blob(self) -> str:
        """The blob's place."""
        return os.path.join(self.blobs, self.listed.etag)

    @property
    def partial(self) -> str:
        """Where an unfinished download of it is kept: the name that older clients use."""
        return self.blob + layout.PARTIAL_SUFFIX
