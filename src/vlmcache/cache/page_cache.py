"""What of a file is in the page cache, and giving back what a long read has put there."""

from __future__ import annotations

import mmap
import os
import sys

SMALLEST = 1 << 20
"""Length in bytes below which a file is not worth the questions."""

_CACHESTAT = 451
"""The number of cachestat(2), one and the same on every processor (Linux 6.5)."""


def resident_blocks(descriptor: int, size: int, block: int) -> list[bool] | None:
    """Return for each block of a file whether any of it is in the page cache; nothing is read.

    cachestat(2) counts the pages of a range in microseconds; where the kernel does not have it,
    mincore(2) looks at every page. Of a file that this user neither owns nor may write, kernels
    tell nothing, or say that all of it is there.

    Args:
        descriptor: of the open file.
        size: the file's length in bytes.
        block: the length of a block, a multiple of the page size.

    Returns:
        A flag for each block, or `None` if the system does not say.
    """
    if not sys.platform.startswith("linux") or size < SMALLEST:
        return None
    counts = _counted(descriptor, size, block)
    return counts if counts is not None else _looked_at(descriptor, size, block)


def _counted(descriptor: int, size: int, block: int) -> list[bool] | None:
    """As `resident_blocks`, by cachestat(2)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    # Pages that are resident, dirty, written back, evicted and lately evicted.
    counts = (ctypes.c_uint64 * 5)()
    flags = []
    for begin in range(0, size, block):
        part = (ctypes.c_uint64 * 2)(begin, min(block, size - begin))
        where = ctypes.c_uint(descriptor), ctypes.byref(part), ctypes.byref(counts)
        if libc.syscall(ctypes.c_long(_CACHESTAT), *where, ctypes.c_uint(0)):
            return None
        flags.append(counts[0] > 0)
    return flags


def _looked_at(descriptor: int, size: int, block: int) -> list[bool] | None:
    """As `resident_blocks`, by mincore(2)."""
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
