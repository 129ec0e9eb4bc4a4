"""The page cache: which parts of a file are in it, filling it, and evicting what nobody needs.

Only the standard library is imported here, so that a process that does nothing else starts at once.
The calls used are Linux's; on other systems nothing is known and nothing is evicted.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

SMALLEST = 1 << 20
"""Length in bytes below which it is not worth asking about a file."""
PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
"""Bytes that the kernel reads and maps at once if it may."""

_CACHESTAT = 451
"""The number of cachestat(2), one and the same on every processor (Linux 6.5)."""
_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22
_MAP_FAILED = ctypes.c_void_p(-1).value
_BUFFER = 4 << 20
"""Bytes that are read at once if pages cannot be populated."""
_LOWEST_BIT = bytes(number & 1 for number in range(256))

_libc: ctypes.CDLL | None = None


def libc() -> ctypes.CDLL | None:
    """Return the C library, or `None` on systems without one of the POSIX kind."""
    global _libc
    if _libc is None and sys.platform != "win32":
        library = ctypes.CDLL(None, use_errno=True)
        library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        numbers = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *numbers]
        library.mmap.restype = ctypes.c_void_p
        library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        _libc = library
    return _libc


def can_evict() -> bool:
    """Return whether this system lets a process drop a file's pages from memory."""
    return hasattr(os, "posix_fadvise")


def evict(paths: Iterable[str], *, write: bool = True) -> None:
    """Ask the kernel to drop the files' pages. Pages that a process keeps in use stay.

    Pages not yet written are written first: the kernel only drops clean ones.

    Args:
        paths: the files.
        write: whether pages are written first that may not have been.

    Raises:
        OSError: a file cannot be opened.
    """
    if not can_evict():
        return
    for path in paths:
        with io.FileIO(path) as file:
            if write:
                os.fsync(file.fileno())
            give_back(file.fileno(), 0, 0)


def resident_bytes(path: str) -> int | None:
    """Return how many bytes of a file are in memory; `None` if the system does not say.

    For a file that this user neither owns nor may write, newer kernels report nothing, and
    mincore(2) of older ones reports all of it as resident.
    """
    with io.FileIO(path) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        if size == 0:
            return 0
        pages = _counted(file.fileno(), 0, size)
        last = _counted(file.fileno(), size - 1, 1)
        if pages is None or last is None:
            if libc() is None or not (status.st_uid == os.geteuid() or os.access(path, os.W_OK)):
                return None
            flags = _page_flags(file.fileno(), size)
            if flags is None:
                return None
            pages, last = flags.count(1), flags[-1]
    # The last page counts only as far as the file reaches.
    return pages * PAGE - (-size % PAGE if last else 0)


def resident_fraction(paths: Sequence[str]) -> float | None:
    """Return the fraction of the files' bytes that is in memory, 0 to 1; `None` if not known."""
    resident = resident_sum(paths)
    total = sum(map(os.path.getsize, paths))
    if resident is None:
        return None
    return resident / total if total else 0.0


def resident_sum(paths: Sequence[str]) -> int | None:
    """Return how many bytes of files are in memory; `None` if it is not known of one of them."""
    counts = [resident_bytes(path) for path in paths]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def resident_blocks(descriptor: int, size: int, block: int) -> list[bool] | None:
    """Return for each block of a file whether any of it is in the page cache; nothing is read.

    cachestat(2) counts the pages of a range in microseconds; if the kernel does not have it,
    mincore(2) checks every page. For a file that this user neither owns nor may write, kernels
    report nothing, or all of it as resident.

    Args:
        descriptor: of the open file.
        size: the file's length in bytes.
        block: the length of a block, a multiple of the page size.

    Returns:
        A flag for each block, or `None` if the system does not say.
    """
    if not sys.platform.startswith("linux") or size < SMALLEST:
        return None
    counts = []
    for begin in range(0, size, block):
        count = _counted(descriptor, begin, min(block, size - begin))
        if count is None:
            break
        counts.append(count > 0)
    else:
        return counts
    flags = _page_flags(descriptor, size)
    if flags is None:
        return None
    step = block // PAGE
    return [1 in flags[begin : begin + step] for begin in range(0, len(flags), step)]


def _counted(descriptor: int, begin: int, length: int) -> int | None:
    """Return how many pages of a range are resident, as cachestat(2) says; `None` without it."""
    library = libc()
    if library is None or not sys.platform.startswith("linux"):
        return None
    # Pages that are resident, dirty, written back, evicted and lately evicted.
    counts = (ctypes.c_uint64 * 5)()
    part = (ctypes.c_uint64 * 2)(begin, length)
    where = ctypes.c_uint(descriptor), ctypes.byref(part), ctypes.byref(counts)
    if library.syscall(ctypes.c_long(_CACHESTAT), *where, ctypes.c_uint(0)):
        return None
    return int(counts[0])


def _page_flags(descriptor: int, size: int) -> bytes | None:
    """Return 1 for each resident page of a file and 0 for others, as mincore(2) says."""
    library = libc()
    pages = (ctypes.c_ubyte * -(-size // PAGE))()
    with _mapped(descriptor, 0, size) as address:
        if library is None or address is None or library.mincore(address, size, pages) != 0:
            return None
    # Only the lowest bit of each byte has a meaning.
    return bytes(pages).translate(_LOWEST_BIT)


@contextlib.contextmanager
def _mapped(descriptor: int, begin: int, length: int) -> Iterator[int | None]:
    """Map a part of a file for as long as the context lasts; yield its address, if it has one."""
    library = libc()
    address = None
    if library is not None and length:
        address = library.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, begin)
    if library is None or address in (None, _MAP_FAILED):
        yield None
        return
    try:
        yield address
    finally:
        library.munmap(address, length)


def populate(address: int, length: int) -> bool:
    """Make all pages of a range of mapped memory resident; return whether the kernel did so.

    Linux does it since 5.14, and reads what is missing without copying it anywhere.
    """
    library = libc()
    if library is None or not sys.platform.startswith("linux"):
        return False
    begin = address // PAGE * PAGE
    return bool(library.madvise(begin, address + length - begin, _MADV_POPULATE_READ) == 0)


def bring(file: io.FileIO, begin: int, length: int, *, exact: bool = False) -> int:
    """Bring a range of a file into memory and return how many of its bytes are there then.

    Linux populates the pages, which takes little processor time; on other systems the range is
    read and thrown away.

    Args:
        file: the open file.
        begin: where the range begins, a multiple of the page size.
        length: its length in bytes.
        exact: whether nothing beyond the range may be read ahead.
    """
    if exact and can_evict():
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    with _mapped(file.fileno(), begin, 0 if exact else length) as address:
        if address is not None and sys.platform.startswith("linux"):
            library = libc()
            if library is not None:
                # Without huge pages it is read all the same.
                library.madvise(address, length, _MADV_HUGEPAGE)
            if populate(address, length):
                return length
    buffer = memoryview(bytearray(min(length, _BUFFER)))
    file.seek(begin)
    got = 0
    while got < length:
        count = file.readinto(buffer[: length - got])
        if not count:
            break
        got += count
    return got


def read_ahead(descriptor: int, begin: int, length: int) -> None:
    """Let the disk begin to read a part of a file, without waiting for it."""
    if can_evict():
        os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_WILLNEED)


def give_back(descriptor: int, begin: int, length: int) -> None:
    """Let the page cache forget a part of a file; what is mapped or not written yet stays."""
    if can_evict():
        os.posix_fadvise(descriptor, begin, length, os.POSIX_FADV_DONTNEED)
