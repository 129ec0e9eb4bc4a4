"""What the verbs of `fleet` are asked for, and what they return."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmcache.errors import VlmcacheError

if TYPE_CHECKING:
    from vlmcache.commands.fleet.wire import Refused


class ClusterError(VlmcacheError):
    """The Ray cluster cannot be joined."""

    code = "no-cluster"

    @classmethod
    def of(cls, address: str, refused: Refused) -> ClusterError:
        """Return why a cluster was not joined."""
        return cls(f"no Ray cluster at '{address}': {refused.text}")


class VersionsError(VlmcacheError):
    """Nodes have other versions of vlmcache or Python than this machine."""

    code = "versions-differ"
