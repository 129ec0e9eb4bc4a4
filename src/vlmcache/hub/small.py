"""A small file: asked for once, and checked in memory."""

from __future__ import annotations

from vlmcache.cache.hashing import new_hash
from vlmcache.errors import AccessError
from vlmcache.hub.retry import TroubleError
from vlmcache.hub.transfer import Transfer

SMALL = 1 << 16
"""Bytes up to which a file is small: too few to keep a partial for a lost connection."""


def receive_small(transfer: Transfer) -> bytes | None:
    """Return the content of a small file if it arrives correct and in one piece.

    Args:
        transfer: that of the file; it counts what is received.

    Returns:
        The content; `None` if `Transfer.run` has to deal with the file.

    Raises:
        VlmcacheError: the hub refuses the file for good.
        Stopped: the work was asked to stop.
    """
    client, job = transfer.client, transfer.job
    content = client.sources.content(job.listed) if job.is_checked else None
    if content is not None:
        transfer.received += len(content)
        transfer.moved(len(content))
        return content
    if client.contact.silent:
        return None
    size = job.listed.content_size
    address = client.file_address(job.repo, job.commit, job.file)
    body = bytearray()
    try:
        with client.opened(address, checked=job.is_checked) as response:
            for data in client.pieces(response):
                transfer.received += len(data)
                client.throttle.take(len(data))
                body += data
                if len(body) > size:
                    return None
                transfer.moved(len(body))
    except (TroubleError, AccessError):
        return None
    digest = new_hash(job.listed.etag, size)
    digest.update(body)
    return bytes(body) if digest.hexdigest() == job.listed.etag else None
