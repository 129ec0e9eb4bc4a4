"""The one question of a pull that finds everything in place, without a heavy HTTP library.

Starting huggingface_hub's session takes several times as long as asking. So if the cache seems
complete, the standard library asks first; anything but a plain answer is left to `Client`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from urllib.parse import urlsplit

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.reading import JSON_ERRORS, json_value, read_bytes
from vlmcache.config import Environment, hub_home
from vlmcache.hub.client import Client

_TIMEOUT = 3.0
_ANSWER_LIMIT = 64_000_000
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class _Info(msgspec.Struct):
    sha: str
    id: str | None = None


def commit_of(client: Client, repo: str, revision: str) -> str | None:
    """Return the commit that a revision means on the hub, or `None` if that takes more.

    Args:
        client: the hub; it is not used, only what it knows of address and token.
        repo: its name; a repo that the hub has renamed takes more.
        revision: a branch or tag.
    """
    parts = urlsplit(client.endpoint)
    variables = client.environment.variables
    proxied = any(name.lower() in _PROXIES and value for name, value in variables.items())
    plain = parts.scheme in ("http", "https") and parts.netloc and "@" not in parts.netloc
    # Windows keeps its proxies elsewhere.
    if client.offline or proxied or sys.platform == "win32" or not plain:
        return None
    import http.client

    headers = {"User-Agent": "vlmcache", "Accept-Encoding": "identity"}
    token = _known_token(client.environment) if client.token is None else client.token
    if token:
        headers["Authorization"] = f"Bearer {token}"
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    path = client.api(repo, "revision", revision)[len(f"{parts.scheme}://{parts.netloc}") :]
    try:
        with contextlib.closing(kind(parts.netloc, timeout=_TIMEOUT)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                return None
            info: _Info = json_value(response.read(_ANSWER_LIMIT), _Info)
    except (OSError, http.client.HTTPException, ValueError, *JSON_ERRORS):
        return None
    return (
        info.sha
        if info.id in (None, layout.split_name(repo)[1]) and layout.COMMIT.fullmatch(info.sha)
        else None
    )


def _known_token(environment: Environment) -> str | None:
    """Return the token that huggingface_hub would find first (its `utils/_auth.py`)."""
    if environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    token = environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN")
    if token:
        return token.strip()
    path = environment.get("HF_TOKEN_PATH") or os.path.join(hub_home(environment), "token")
    try:
        return read_bytes(os.path.expanduser(path), 10_000).decode("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
