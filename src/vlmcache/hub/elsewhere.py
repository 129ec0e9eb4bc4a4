"""One blob from a place that is asked before the hub: received, hashed on the way, published."""

from __future__ import annotations

import os
from functools import partial

from vlmcache.change import partials
from vlmcache.change.arriving import ArrivingBlob
from vlmcache.change.place import disk_failure
from vlmcache.errors import VlmcacheError
from vlmcache.home.journal import read_damaged
from vlmcache.hub.sources import Source, SourceError
from vlmcache.hub.transfer import Transfer, remember_bad_beginning


def fetch_elsewhere(transfer: Transfer) -> bool:
    """Fetch, check and publish a blob, whose lock the caller holds, from the first source of it.

    What a source has sent before it failed is continued by the next one, and by the hub.

    Returns:
        Whether that was possible.

    Raises:
        VlmcacheError: the disk fails.
        Stopped: the work was asked to stop.
    """
    job, sources = transfer.job, transfer.client.sources
    if not job.is_checked or not sources:
        return False
    try:
        for source in sources.holding(job.listed):
            if _fetch(transfer, source):
                sources.came_from[job.listed.etag] = source.name
                return True
    except OSError as error:
        raise disk_failure(error, job.partial) from error
    return False


def _fetch(transfer: Transfer, source: Source) -> bool:
    """Fetch the blob from a source; one that fails is dropped."""
    job, client, listed = transfer.job, transfer.client, transfer.job.listed
    size, check, sources = listed.content_size, client.stop_token.check, client.sources
    known_bad = partial(read_damaged, client.environment)
    partials.copy_beginning(job.tree, job.partial, size, check, known_bad)
    while True:
        file = ArrivingBlob(job.tree, job.partial, listed.etag, size, transfer.moved)
        with file.opened(check) as begun:
            try:
                if begun or not _cloned(transfer, source, file):
                    file.follow(file.position)
                    for data in sources.pieces(source, listed, file.position):
                        transfer.received += len(data)
                        file.add(data)
            except SourceError as error:
                sources.drop(source, f"{error}: {job.file}")
                return False
            if file.is_complete:
                file.sync()
                break
            digest = file.hash
            file.restart()
        if not begun:
            sources.drop_wrong(source, listed.etag, digest, job.file)
            return False
        # What another source or program has left was not its beginning.
        remember_bad_beginning(transfer)
    job.publish(job.partial)
    return True


def _cloned(transfer: Transfer, source: Source, file: ArrivingBlob) -> bool:
    """Let the filesystem share the blocks of a source's own file, if it can."""
    listed = transfer.job.listed
    try:
        descriptor = source.descriptor(listed.etag)
    except (OSError, VlmcacheError):
        return False
    if descriptor is None:
        return False
    try:
        cloned = file.clone(descriptor)
    finally:
        os.close(descriptor)
    if cloned:
        transfer.received += listed.content_size
        transfer.client.sources.cloned(source, listed.content_size)
    return cloned
