"""A CAS as Xet asks it: each file is one xorb of its own, chunk after chunk, uncompressed.

The address of a reconstruction and the format of a xorb are those of
https://huggingface.co/docs/xet (read on 2026-11-27), as far as hf_xet 1.8 uses them.
"""

from __future__ import annotations

import struct

from tests.kit.contents import StoredFile

CHUNK = 1 << 16
HEADER = struct.Struct("<B3sB3s")


def xorb(file: StoredFile) -> bytes:
    """Return a file's content as the CAS keeps it."""
    data, parts = file.read(), []
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        length = len(chunk).to_bytes(3, "little")
        parts += [HEADER.pack(0, length, 0, length), chunk]
    return b"".join(parts)


def reconstruction(
    version: str | None, file: StoredFile, span: tuple[int, int], url: str
) -> dict[str, object]:
    """Return how a part of a file is put together, if its xorb is at the given address.

    hf_xet 1.8 asks by version `v2` of the protocol first, 1.2 without a version.
    """
    first, last = span[0] // CHUNK, -(-span[1] // CHUNK)
    chunks = {"start": first, "end": last}
    step = CHUNK + HEADER.size
    end = min(last * CHUNK, file.size) + last * HEADER.size
    length = min(last * CHUNK, file.size) - first * CHUNK
    span_of_bytes = {"start": first * step, "end": end - 1}
    assert file.xet_hash is not None
    answer: dict[str, object] = {
        "offset_into_first_range": span[0] - first * CHUNK,
        "terms": [{"hash": file.xet_hash, "unpacked_length": length, "range": chunks}],
    }
    if version != "v2":
        fetch = {"range": chunks, "url": url, "url_range": span_of_bytes}
        return answer | {"fetch_info": {file.xet_hash: [fetch]}}
    ranges = [{"chunks": chunks, "bytes": span_of_bytes}]
    return answer | {"xorbs": {file.xet_hash: [{"url": url, "ranges": ranges}]}}
