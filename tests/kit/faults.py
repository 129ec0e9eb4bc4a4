"""What can go wrong between a hub and its client, as values that a `LoopbackHub` acts out."""

from __future__ import annotations

import email.utils
import fnmatch
import gzip
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any, Literal

Host = Literal["hub", "cdn"]
Length = Literal["right", "none", "file", "chunks"]
Kind = Literal[
    "cut",
    "reset",
    "hang",
    "short",
    "wrong_bytes",
    "slow",
    "no_sizes",
    "wrong_etag",
    "no_range",
    "status",
    "expired",
    "redirect_loop",
    "html",
    "malformed_json",
    "headers",
    "coded",
    "begins",
    "other_server",
    "altered_json",
    "altered_headers",
]

DAMAGES_BODY: frozenset[Kind] = frozenset({"cut", "short", "wrong_bytes"})
ALTERS_HEADERS: frozenset[Kind] = frozenset({"no_sizes", "wrong_etag", "altered_headers"})
REPLACES_ANSWER: frozenset[Kind] = frozenset(
    {
        "status",
        "expired",
        "redirect_loop",
        "html",
        "malformed_json",
        "other_server",
        "altered_json",
    }
)


@dataclass(frozen=True)
class Fault:
    """One kind of trouble, and the requests it befalls.

    A fault only counts as fired, or as skipped, on an answer that it changes: a cut after 1000
    bytes passes over a HEAD, a redirect and a body of 900 bytes.
    """

    kind: Kind
    match: str | None = None
    method: str | None = None
    host: Host | None = None
    times: int | None = 1
    skip: int = 0
    after: int | None = None
    at: int = 0
    count: int = 1
    rate: int = 0
    seconds: float | None = None
    until: threading.Event | None = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    etag: str = ""
    changed: tuple[tuple[str, str | None], ...] = ()
    coding: str = ""
    sized: bool = True
    parts_only: bool = False
    body: bytes = b""
    change: Callable[[Any], Any] | None = None

    def on(
        self,
        match: str | None = None,
        *,
        method: str | None = None,
        host: Host | None = None,
        times: int | EllipsisType | None = ...,
        skip: int = 0,
    ) -> Fault:
        """Return the same fault for these requests only.

        `match` is a substring or glob of the path with its query, or of the file name in the repo.
        The fault passes over the first `skip` requests it could befall, then fires `times` times;
        None means always; by default the fault keeps its own number.
        """
        often = self.times if times is ... else times
        return replace(self, match=match, method=method, host=host, times=often, skip=skip)

    def befalls(self, method: str, target: str, file: str | None, host: Host) -> bool:
        """Return whether a request is among those that the fault is for."""
        if self.method not in (None, method) or self.host not in (None, host):
            return False
        pattern = self.match
        if pattern is None:
            return True
        return any(
            pattern in text or fnmatch.fnmatchcase(text, pattern)
            for text in (target, file)
            if text is not None
        )


def cut(after: int) -> Fault:
    """Close the connection cleanly after so many body bytes, before Content-Length is reached."""
    return Fault("cut", after=after)


def reset(after: int | None = None) -> Fault:
    """Reset the TCP connection: before the headers, or after so many body bytes."""
    return Fault("reset", after=after)


def hang(
    after: int | None = None,
    *,
    seconds: float | None = None,
    until: threading.Event | None = None,
) -> Fault:
    """Fall silent before the headers or after so many body bytes.

    With `seconds` the answer continues after that time, with `until` once it is set; otherwise the
    connection is held until `LoopbackHub.release` or the end of the hub, and then closed.
    """
    return Fault("hang", after=after, seconds=seconds, until=until)


def short(after: int) -> Fault:
    """Send so many body bytes without a Content-Length, so that the end looks like the end."""
    return Fault("short", after=after)


def wrong_bytes(at: int = 0, count: int = 1) -> Fault:
    """Invert `count` bytes from the offset `at` of the file; the length stays right."""
    return Fault("wrong_bytes", at=at, count=count)


def slow(rate: int, *, until: threading.Event | None = None) -> Fault:
    """Send the body at so many bytes per second, every time by default.

    Once `until` is set, what is left comes at once.
    """
    return Fault("slow", rate=rate, until=until, times=None)


def no_sizes() -> Fault:
    """Leave out Content-Length and X-Linked-Size of answers about files."""
    return Fault("no_sizes")


def no_range() -> Fault:
    """Answer a request for a range with the complete file, as some proxies do."""
    return Fault("no_range")


def no_parts() -> Fault:
    """Answer a request for a range with 416, and send the complete file if that is asked for."""
    return Fault("status", status=416, parts_only=True)


def wrong_etag(etag: str = "0" * 64) -> Fault:
    """Give another hash in ETag and X-Linked-ETag of answers about files."""
    return Fault("wrong_etag", etag=etag)


def status(code: int, *, retry_after: int | str | None = None) -> Fault:
    """Answer with an error status, with Retry-After where one is given."""
    headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return Fault("status", status=code, headers=headers)


def rate_limited(
    seconds: int, *, header: Literal["Retry-After", "RateLimit"] = "RateLimit"
) -> Fault:
    """Answer 429 and say in one of the two headers how long to wait."""
    if header == "Retry-After":
        return status(429, retry_after=seconds)
    headers = (
        ("RateLimit", f'"api";r=0;t={seconds}'),
        ("RateLimit-Policy", '"fixed window";"api";q=500;w=300'),
    )
    return Fault("status", status=429, headers=headers)


def busy_until(seconds: float, *, clock: float = 0.0) -> Fault:
    """Answer 429 with the date to come back, `seconds` from now by the hub's own clock.

    That clock is `clock` seconds ahead, in the answer's Date too.
    """
    now = time.time() + clock
    dates = (("Retry-After", now + seconds), ("Date", now))
    headers = tuple((name, email.utils.formatdate(at, usegmt=True)) for name, at in dates)
    return Fault("status", status=429, headers=headers)


def expired() -> Fault:
    """Let the signed address asked for expire: 403 from now on, until resolve gives a new one."""
    return Fault("expired")


def redirect_loop() -> Fault:
    """Redirect to the same address that was asked for, every time by default."""
    return Fault("redirect_loop", times=None)


def html(code: int = 200, *, kind: str | None = "text/html", sized: bool = True) -> Fault:
    """Answer with a page for people, as captive portals and proxies do.

    `kind` is its Content-Type, None for none; without `sized` it has no Content-Length.
    """
    return Fault("html", status=code, changed=(("Content-Type", kind),), sized=sized)


def headers(changed: dict[str, str | None]) -> Fault:
    """Give answers with a file's bytes these headers, None to leave one out; every time."""
    return Fault("headers", changed=tuple(changed.items()), times=None)


def coded(coding: str, *, label: str | None = None, length: Length = "right") -> Fault:
    """Encode a file's bytes, as proxies do that were not asked to; every time.

    Args:
        coding: what is done to the body: gzip, deflate, "raw deflate", "identity", or two of them
            with a comma. `junk` replaces it by what decodes to nothing, `bomb` by one that decodes
            to twenty times as much.
        label: the Content-Encoding, the same unless given.
        length: what Content-Length says: the body's length, none, the decoded file's, or none with
            chunks that say where the end is.
    """
    label = coding if label is None else label
    return Fault(
        "coded", coding=coding, etag=length, changed=(("Content-Encoding", label),), times=None
    )


def begins(at: int) -> Fault:
    """Answer a request for a part with one that begins elsewhere in the file; every time."""
    return Fault("begins", at=at, times=None)


def malformed_json() -> Fault:
    """Answer an API request with JSON that stops half way."""
    return Fault("malformed_json")


def encoded(data: bytes, coding: str) -> bytes:
    """Return a body as a server sends it that encodes, rightly or not."""
    for step in coding.split(","):
        match step.strip():
            case "gzip":
                data = gzip.compress(data, 1, mtime=0)
            case "deflate":
                data = zlib.compress(data, 1)
            case "raw deflate":
                raw = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
                data = raw.compress(data) + raw.flush()
            case "bomb":
                data = gzip.compress(bytes(20 * len(data)), 1, mtime=0)
            case "junk":
                data = b"\x1b" * (len(data) // 2)
    return data


def in_chunks(data: bytes) -> bytes:
    """Return a body in the chunks of HTTP/1.1."""
    size = 50_000
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def other_server(code: int, body: bytes = b"Not here", **headers: str) -> Fault:
    """Answer as a proxy or a plain file server does, with none of a hub's own signs, every time.

    An underscore in the name of a header stands for a hyphen.
    """
    given = {"Content-Type": "text/plain"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return Fault("other_server", status=code, body=body, headers=tuple(given.items()), times=None)


def altered_json(change: Callable[[Any], Any]) -> Fault:
    """Answer an API request with what `change` makes of the right answer, every time."""
    return Fault("altered_json", change=change, times=None)


def altered_headers(**headers: str) -> Fault:
    """Send these headers with answers about files, and leave out those that are empty, always.

    An underscore in the name of a header stands for a hyphen.
    """
    given = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Fault("altered_headers", headers=given, times=None)
