"""A long file is brought to the disk while it is written."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmcache.cache import page_cache
from vlmcache.change.writeback import Writeback

WINDOW = 4096
WRITE, WRITE_AND_WAIT = 2, 7


class Kernel:
    """Notes what is asked of sync_file_range(2), and answers with an error number, 0 for none."""

    def __init__(self, number: int = 0) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self._number = number

    def sync_file_range(
        self, descriptor: int, begin: ctypes.c_int64, length: ctypes.c_int64, flags: ctypes.c_uint
    ) -> int:
        assert os.fstat(descriptor)
        self.calls.append((begin.value, length.value, flags.value))
        ctypes.set_errno(self._number)
        return -1 if self._number else 0


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    with open(tmp_path / "file", "wb", buffering=0) as file:
        yield file.fileno()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the descriptors that are synced from now on."""
    seen: list[int] = []
    monkeypatch.setattr(os, "fdatasync", seen.append)
    return seen


def ask(monkeypatch: pytest.MonkeyPatch, kernel: Kernel | None) -> None:
    monkeypatch.setattr(page_cache, "libc", lambda: kernel)
    monkeypatch.setattr("sys.platform", "linux")


def test_each_part_is_begun_at_once_and_waited_for_when_the_next_one_is_full(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, syncs: list[int]
) -> None:
    kernel = Kernel()
    ask(monkeypatch, kernel)
    writeback = Writeback(descriptor, WINDOW)
    for position in (1000, WINDOW + 5, WINDOW + 6, 2 * WINDOW + 5, 4 * WINDOW):
        writeback.reached(position)
    assert kernel.calls == [
        (0, WINDOW + 5, WRITE),
        (WINDOW + 5, WINDOW, WRITE),
        (0, WINDOW + 5, WRITE_AND_WAIT),
        (2 * WINDOW + 5, 2 * WINDOW - 5, WRITE),
        (WINDOW + 5, WINDOW, WRITE_AND_WAIT),
    ]
    assert not syncs


def test_what_was_on_the_disk_before_is_not_written_again(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel()
    ask(monkeypatch, kernel)
    writeback = Writeback(descriptor, WINDOW)
    writeback.start(10 * WINDOW)
    writeback.reached(11 * WINDOW)
    writeback.reached(12 * WINDOW)
    assert [begin for begin, _, _ in kernel.calls] == [10 * WINDOW, 11 * WINDOW, 10 * WINDOW]
    writeback.start(0)
    writeback.reached(WINDOW)
    assert kernel.calls[-1] == (0, WINDOW, WRITE)


@pytest.mark.parametrize("kernel", [None, Kernel(errno.ENOSYS), Kernel(errno.EINVAL)])
def test_a_system_without_the_call_syncs_each_part(
    descriptor: int, monkeypatch: pytest.MonkeyPatch, syncs: list[int], kernel: Kernel | None
) -> None:
    ask(monkeypatch, kernel)
    writeback = Writeback(descriptor, WINDOW)
    for position in range(0, 4 * WINDOW, WINDOW // 2):
        writeback.reached(position)
    assert syncs == [descriptor] * 3


def test_a_disk_that_refuses_what_was_written_before_ends_the_writing(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(monkeypatch, Kernel(errno.EIO))
    with pytest.raises(OSError) as caught:
        Writeback(descriptor, WINDOW).reached(WINDOW)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_that_is_written_this_way_holds_every_byte(tmp_path: Path, keep: bool) -> None:
    content = os.urandom(10 * WINDOW + 17)
    with open(tmp_path / "long", "wb", buffering=0) as file:
        writeback = Writeback(file.fileno(), WINDOW, keep=keep)
        for begin in range(0, len(content), 1000):
            file.write(content[begin : begin + 1000])
            writeback.reached(file.tell())
    assert (tmp_path / "long").read_bytes() == content
