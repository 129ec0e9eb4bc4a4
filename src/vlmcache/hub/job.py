"""One file to transfer."""

from __future__ import annotations

import os

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.state import TreeFile


class Job(msgspec.Struct, frozen=True):
    """One blob to fetch.

    blobs is the folder it goes to, cache_dir the cache that this folder lies in: another one where
    `move` has brought the repo there. shares: whether that cache's store of shared blobs may be
    used, which is not so through a link that someone else has made.
    """

    repo: str
    commit: str
    file: str
    listed: TreeFile
    cache_dir: str
    blobs: str
    shares: bool = True

    @property
    def blob(self) -> str:
        """The blob's place."""
        return os.path.join(self.blobs, self.listed.etag)

    @property
    def partial(self) -> str:
        """Where an unfinished download of it is kept: the client's name of old."""
        return self.blob + layout.PARTIAL_SUFFIX
