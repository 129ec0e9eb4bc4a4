"""Why a cluster was not joined: Ray's words, and what to type."""

from __future__ import annotations

import re

from vlmcache.errors import VlmcacheError
from vlmcache.installing import install_extra

_CLIENT_PORT = 10001
"""Where a head node listens to machines that are not part of its cluster, by default."""
UNAUTHORIZED = "InvalidAuthToken"
"""What Ray prints if the cluster does not accept the token, or wants one and gets none."""
_NO_TOKEN = re.compile("find an authentication token|no authentication token was found")


class ClusterError(VlmcacheError):
    """The Ray cluster cannot be joined."""

    code = "no-cluster"

    @classmethod
    def of(cls, address: str, kind: str, text: str) -> ClusterError:
        """Return why a cluster was not joined.

        Args:
            address: its address.
            kind: the kind of error that Ray raised.
            text: its message.
        """
        if address == "auto" and kind == "ConnectionError":
            return cls(
                "no Ray cluster runs on this machine",
                "name one with --address HOST:PORT, or start one: ray start --head",
            )
        cluster = f"the cluster at '{address}'" if address != "auto" else "this machine's cluster"
        if "ersion mismatch" in text:
            return cls(f"{cluster} cannot be joined: {text}")
        host, _, port = address.rpartition(":")
        if kind == "TimeoutError" and "/" not in host and port.isdecimal():
            # Ray waits for a node of the cluster on this machine, and reports nothing else.
            return cls(
                f"{cluster} was not joined: {text}",
                "a machine that is not part of it joins with --address "
                f"ray://{host}:{_CLIENT_PORT}, if that port of the head node is open",
            )
        if "ray[client]" in text:
            return cls(
                f"'{address}' needs Ray's client, which is not installed", install_extra("fleet")
            )
        if UNAUTHORIZED in text:
            return cls(
                f"{cluster} was not joined: it asks for a token, and got none or a wrong one",
                "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from its head node, or name "
                "a file in RAY_AUTH_TOKEN_PATH",
            )
        if _NO_TOKEN.search(text):
            return cls(
                f"{cluster} was not joined: RAY_AUTH_MODE is token, and there is no token here",
                "copy ~/.ray/auth_token from its head node, or name a file in RAY_AUTH_TOKEN_PATH",
            )
        return cls(
            f"no Ray cluster at '{address}': {text}",
            "'ray status' on its head node shows whether it runs, and at which address; if it asks "
            "for a token, set RAY_AUTH_MODE=token and have the same token here",
        )
