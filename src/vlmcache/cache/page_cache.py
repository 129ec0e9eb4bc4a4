"""What of a file is in the page cache, and giving back what a long read has put there."""

from __future__ import annotations

import mmap
import os
import sys

SMALLEST = 1 << 20
"""Length in bytes below which a file is not worth the questions."""


def resident_blocks(descriptor: int, size: int, block: int) -> list[bool] | None:
    """Return for each block of a file whether any of it is in the page cache.

    Nothing is read. To whoever neither owns the file nor may write it, Linux says that all of it is
    there (mincore(2)).

    Args:
        descriptor: of the open file.
        size: the file's length in bytes.
        block: the length of a block, a multiple of the page size.

    Returns:
        A flag for each block, or `None` if the system does not say.
    """
    if not sys.platform.startswith("linux") or size < SMALLEST:
        return None
    import ctypes

    try:
        # Only a writable mapping has an address in Python; as a private one it changes no file.
        mapping = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError):
        return None
    with mapping:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start: ctypes.c_char | None = None
        try:
            start = ctypes.c_char.from_buffer(mapping)
            address = ctypes.addressof(start)
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages)
        finally:
            # The mapping cannot be closed while something points into it, on a Ctrl-C too.
            del start
    if failed:
        return None
    # Only the lowest bit of each byte has a meaning.
    flags = bytes(pages).translate(_LOWEST_BIT)
    step = block // mmap.PAGESIZE
    return [1 in flags[begin : begin + step] for begin in range(0, len(flags), step)]


_LOWEST_BIT = bytes(number & 1 for number in range(256))


def read_ahead(descriptor: int, begin: int, length: int) -> None:
    """Let the disk begin to read a part of a file, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_WILLNEED)


def give_back(descriptor: int, begin: int, length: int) -> None:
    """Let the page cache forget a part of a file; what is mapped or not written yet stays."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_DONTNEED)
