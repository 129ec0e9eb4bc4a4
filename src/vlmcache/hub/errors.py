"""The failures of a hub, as the rest of this folder imports them."""

from __future__ import annotations

from vlmcache.errors import (
    AccessError,
    BadAnswerError,
    HostileListingError,
    HubError,
    NoSuchFileError,
    NoSuchRepoError,
    NoSuchRevisionError,
    OfflineError,
    UnreachableError,
    WrongBytesError,
)

__all__ = [
    "AccessError",
    "BadAnswerError",
    "HostileListingError",
    "HubError",
    "NoSuchFileError",
    "NoSuchRepoError",
    "NoSuchRevisionError",
    "OfflineError",
    "UnreachableError",
    "WrongBytesError",
]
