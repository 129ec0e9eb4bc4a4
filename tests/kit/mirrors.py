"""How the answers of mirrors differ from the hub's.

- Artifactory: no tree API; its own hashes and headers instead of X-Repo-Commit and X-Linked-*
  (huggingface_hub's issues 1796 and 2974).
- Nexus: 400 for every route but a model's description and its files (sonatype/nexus-public's
  issue 1071); files are its own copies, so that nothing of the hub's storage is named.
- A static file server: files at the hub's paths, an ETag made of time and length, nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kit.hub import _Asked, _Reply

Change = Callable[["_Asked", "_Reply"], object]
"""Changes the answer to a request, or leaves it as it is."""

_HUBS_OWN = re.compile(r"X-(Repo-Commit|Linked-|Xet-|Error-)", re.IGNORECASE)
_DESCRIPTION = re.compile(r"/api/models/[^/]+/[^/]+(/revision/[^/]+)?")


def _bytes(reply: _Reply) -> bytes:
    return reply.body.read_bytes() if isinstance(reply.body, Path) else reply.body


def answered(reply: _Reply, status: int, body: str, kind: str) -> None:
    """Replace an answer by another status and page."""
    reply.status, reply.body = status, body.encode()
    reply.start, reply.stop = 0, len(reply.body)
    reply.headers = {"Content-Type": kind}


def _without_the_hubs_headers(reply: _Reply) -> None:
    reply.headers = {n: v for n, v in reply.headers.items() if not _HUBS_OWN.match(n)}


def artifactory(asked: _Asked, reply: _Reply) -> None:
    """Answer as an Artifactory repository of the type huggingfaceml does."""
    _without_the_hubs_headers(reply)
    if "/tree/" in asked.path or "/refs" in asked.path:
        text = '{"errors": [{"status": 404, "message": "Not Found"}]}'
        answered(reply, 404, text, "application/json")
    elif reply.file is not None and reply.status in (200, 206):
        content = _bytes(reply)
        sha1 = hashlib.sha1(content).hexdigest()
        reply.headers |= {
            "ETag": sha1,
            "X-Checksum-Sha1": sha1,
            "X-Checksum-Md5": hashlib.md5(content).hexdigest(),
            "X-Artifactory-Filename": reply.file.name,
        }


def nexus(asked: _Asked, reply: _Reply) -> None:
    """Answer as a Nexus proxy repository of the format huggingface does."""
    if asked.path.startswith("/api/") and _DESCRIPTION.fullmatch(asked.path) is None:
        page = "<html><title>400 - Nexus Repository Manager</title></html>"
        answered(reply, 400, page, "text/html")
    elif reply.file is not None:
        _without_the_hubs_headers(reply)
        reply.headers["Server"] = "Nexus/3.80.0-06 (PRO)"


def static(asked: _Asked, reply: _Reply) -> None:
    """Answer as nginx does in front of a folder with the files."""
    _without_the_hubs_headers(reply)
    if asked.path.startswith("/api/"):
        answered(reply, 404, "<html><h1>404 Not Found</h1><hr>nginx/1.24.0</html>", "text/html")
    elif reply.file is not None and reply.status in (200, 206):
        reply.headers["ETag"] = f'"67763a4b-{reply.file.size:x}"'
        reply.headers["Last-Modified"] = "Thu, 02 Jan 2025 03:04:05 GMT"


MIRRORS: dict[str, Change] = {"artifactory": artifactory, "nexus": nexus, "static": static}
