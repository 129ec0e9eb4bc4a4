"""What an answer about a file sends: from which byte, in which coding, or that it is a web page.

Proxies and mirrors compress, relabel and cut. The hash decides in the end; a header only helps to
read the bytes, and to ask otherwise if they cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vlmcache.cache.formats import is_weights
from vlmcache.hub.client import Client
from vlmcache.hub.retry import NoRangeError, TroubleError, bad_answer

_PART = re.compile(r"\s*bytes[ =]*(\d+)\s*-\s*(\d+)\s*/\s*(\d+|\*)\s*", re.IGNORECASE)
_CODINGS = frozenset({"gzip", "deflate", "br", "zstd", "compress"})
"""All other words, `identity`, `aws-chunked` and `binary` among them, say nothing about a body."""
_BEGINNINGS = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "compress": b"\x1f\x9d"}
"""The magic number that the data of a coding begins with, if it has one."""
_COMPRESSED_NAMES = (".gz", ".tgz", ".zst", ".br", ".z")
_PAGE_NAMES = (".html", ".htm", ".xhtml")
_BLANK = b" \t\r\n\xef\xbb\xbf"
_PAGE = re.compile(rb"<(?:!doctype\s+html|html\b)", re.IGNORECASE)
_ELEMENT = re.compile(rb"<[a-z!?]", re.IGNORECASE)
_HEAD = 256
"""Bytes that show a web page."""
_SLICE = 1024
"""Bytes that are decoded at once: what they can become is small."""
_KEPT = 64
"""Slices that are remembered until the first byte is decoded."""


class FileAnswer:
    """An answer of status 200 or 206 about a file.

    Args:
        client: the hub.
        response: the answer.
        name: the file's name in the repo.
        size: the file's length in bytes, as listed.
        asked: the offset from which a part was asked for, 0 if all was.

    Attributes:
        start: the offset from which it sends the file.
        doubt: a coding that its header names and that cannot be decoded; the body may be plain all
            the same, which the hash shows.

    Raises:
        NoRangeError: it sends something else than the part; asked for all, it may send that.
        TroubleError: it sends something else.
    """

    def __init__(self, client: Client, response: Any, name: str, size: int, asked: int) -> None:
        self._client = client
        self._response = response
        self._name = name.lower()
        self._size = size
        headers = response.headers
        self._kind = headers.get("Content-Type", "").lower()
        length = headers.get("Content-Length", "")
        self._length = int(length) if length.isascii() and length.isdecimal() else None
        words = headers.get("Content-Encoding", "").lower().split(",")
        codings = [word.strip().removeprefix("x-") for word in words]
        self._codings = [coding for coding in codings if coding in _CODINGS]
        self.doubt: str | None = None
        if response.status_code == 206 and asked:
            self.start = self._start_of_part(asked)
            self._codings = []
        else:
            self.start = 0
            self._check_all()

    @property
    def is_coded(self) -> bool:
        """Whether its body is decoded, which means that it may have any length."""
        return bool(self._codings)

    @property
    def is_all(self) -> bool:
        """Whether the end of its body is the end of the file, so that a lost connection shows."""
        chunked = "chunked" in self._response.headers.get("Transfer-Encoding", "").lower()
        return self._response.status_code != 206 and (chunked or self._length is not None)

    def content(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the file's bytes from `start` on.

        Args:
            raw: the answer's body as it arrives.

        Raises:
            TroubleError: it is something else.
        """
        data = self._decoded(raw) if self._codings else raw
        if self.start or self._length == self._size:
            yield from data
            return
        head = b""
        for piece in data:
            head += piece
            if len(head) >= _HEAD or head.lstrip(_BLANK)[:1] not in (b"", b"<"):
                break
        else:
            # That it ended here may be why it does not look like a page.
            head = head if len(head) == self._size or self._is_page(head) else b""
        if self.doubt is not None and head.startswith(_BEGINNINGS.get(self.doubt, b"\0" * _HEAD)):
            raise self.problem("")
        if self._is_page(head):
            raise TroubleError(bad_answer(self._response, "a web page"))
        yield head
        yield from data

    def problem(self, content: str) -> TroubleError:
        """Return the failure of an answer whose bytes are not those of the file.

        Args:
            content: what it sends, in words, unless that is a coding that cannot be decoded.
        """
        if self.doubt is not None:
            content = f"a body in the coding {self.doubt}, which cannot be decoded,"
        return TroubleError(bad_answer(self._response, content))

    def _is_page(self, head: bytes) -> bool:
        if self._name.endswith(_PAGE_NAMES):
            return False
        head = head.lstrip(_BLANK)
        element = "html" in self._kind and is_weights(self._name) and _ELEMENT.match(head)
        return bool(element or _PAGE.match(head))

    def _start_of_part(self, asked: int) -> int:
        headers, size = self._response.headers, self._size
        match = _PART.fullmatch(headers.get("Content-Range", ""))
        if match is not None:
            start = int(match[1])
            # The offsets of an encoded body are those of the file or of what it was encoded to.
            lengths = {int(match[2]) + 1 - start} | (set() if self._codings else {None})
            clear = match[3] in (str(size), "*") and self._length in lengths
        else:
            start = {size: 0, size - asked: asked}.get(self._length or 0, size)
            clear = not self._codings and "multipart" not in self._kind
        if not clear or start > asked:
            problem = bad_answer(self._response, "a part of the file that was not asked for")
            raise NoRangeError(problem)
        return start

    def _check_all(self) -> None:
        library, codings = self._client.library, self._codings
        # What the HTTP library decodes in addition depends on what is installed.
        known = "gzip, deflate, " + library.session.headers.get("Accept-Encoding", "")
        self.doubt = next((coding for coding in codings if coding not in known), None)
        if self._length == self._size and (
            self.doubt is not None
            or not _BEGINNINGS.keys() >= set(codings)
            or self._name.endswith(_COMPRESSED_NAMES)
        ):
            codings, self.doubt = [], None
        if len(codings) > 2:
            self.doubt = ", ".join(codings)
        if self._length not in (None, self._size) and (self.doubt is not None or not codings):
            content = f"{self._length:,} bytes instead of the {self._size:,} that are listed"
            raise self.problem(content)
        self._codings = codings if self.doubt is None else []

    def _decoded(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        http = self._client.library.http
        slices = (data[at : at + _SLICE] for data in raw for at in range(0, len(data), _SLICE))
        kept: list[bytes] = []
        begun = False

        def fed() -> Iterator[bytes]:
            most = self._size // _SLICE + self._size // (50 * _SLICE) + _KEPT
            for number, piece in enumerate(slices):
                if number > most:
                    break  # no coding makes a file that much longer
                if not begun and number < _KEPT:
                    kept.append(piece)
                yield piece

        named = ", ".join(self._codings)
        headers = {"Content-Encoding": named}
        try:
            for data in http.Response(200, headers=headers, content=fed()).iter_bytes():
                begun = True
                yield data
        except http.DecodingError:
            if begun or len(kept) >= _KEPT or self._length not in (None, self._size):
                content = f"a body that is not {named} although its header says so,"
                raise self.problem(content) from None
            # It was not encoded.
            yield from kept
            yield from slices
