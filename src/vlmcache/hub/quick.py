"""The one question of a pull that finds everything in place, without a heavy HTTP library.

Starting huggingface_hub's session takes several times as long as the question itself. If the cache
seems complete, the standard library asks first; anything but a plain answer is left to `Client`.
"""

from __future__ import annotations

import contextlib
import sys
from urllib.parse import urlsplit

import msgspec

from vlmcache.cache import layout
from vlmcache.cache.reading import JSON_ERRORS, json_value
from vlmcache.hub import settings
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
        client: knows the hub's address and the token; it sends nothing.
        repo: its name. `None` is returned if the hub has renamed it.
        revision: a branch or tag.
    """
    environment = client.environment
    proxied = any(
        name.lower() in _PROXIES and value for name, value in environment.variables.items()
    )
    # Windows keeps its proxies elsewhere.
    if client.offline or client.contact.silent or proxied or sys.platform == "win32":
        return None
    # What cannot be used is left to the client to report.
    if any(settings.unusable(environment)) or "@" in client.endpoint:
        return None
    parts = urlsplit(client.endpoint)
    import http.client

    headers = {"User-Agent": "vlmcache", "Accept-Encoding": "identity"}
    token = (settings.known_token(environment) if client.token is None else client.token) or ""
    if any(settings.bad_token(token, "")):
        return None
    if token:
        headers["Authorization"] = f"Bearer {token}"
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    path = client.api(repo, "revision", revision)[len(f"{parts.scheme}://{parts.netloc}") :]
    try:
        with contextlib.closing(connect(parts.netloc, timeout=_TIMEOUT)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                return None
            info: _Info = json_value(response.read(_ANSWER_LIMIT), _Info)
    except (OSError, http.client.HTTPException, ValueError, *JSON_ERRORS):
        return None
    is_same_repo = info.id in (None, layout.split_name(repo)[1])
    return info.sha if is_same_repo and layout.COMMIT.fullmatch(info.sha) else None
