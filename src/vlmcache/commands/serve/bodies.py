"""What the body of a request names."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import parse_qs

from starlette.requests import Request

from vlmcache.commands.serve.answers import AnswerError

BODY_LIMIT = 1_000_000
"""Bytes of a request's body."""
_BODY_TIME = 10.0
"""Seconds for a request's body to arrive."""


async def paths_asked(request: Request) -> list[str]:
    """Return the paths that a request's body names, as a form or as JSON.

    Raises:
        AnswerError: the body is too large, too slow, or neither.
    """
    body = b""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        try:
            body = await asyncio.wait_for(_body(request), _BODY_TIME)
        except (TimeoutError, asyncio.TimeoutError):
            raise AnswerError(408, None, "the request's body did not arrive") from None
        if "json" in request.headers.get("content-type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode(), max_num_fields=10_000).get("paths", [])
        if isinstance(paths, str):
            return [paths]
        if all(isinstance(path, str) for path in paths):
            return list(paths)
    raise AnswerError(400, None, "the request's body names no paths")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            raise AnswerError(413, None, "the request's body is too large")
    return bytes(body)
