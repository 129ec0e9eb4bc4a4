"""Real paths, while somebody changes the links on the way."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from vlmcache.paths import real_path


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOENT, errno.EACCES])
@pytest.mark.parametrize("times", [1, 1000])
def test_a_link_that_is_replaced_while_it_is_read_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, times: int
) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    place.mkdir()
    link.symlink_to(place)
    left = [number] * times
    plain = os.readlink

    def readlink(path: str) -> str:
        if left:
            raise OSError(left.pop(), "changed", path)
        return plain(path)

    monkeypatch.setattr(os, "readlink", readlink)
    found = real_path(str(link / "file"))
    # Python 3.13 itself takes such a link for a folder, and does not look again.
    assert found in {str(link / "file"), str(place / "file")}
    if times == 1 and sys.version_info < (3, 13):
        assert found == str(place / "file")


def test_links_are_followed_and_what_is_not_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "round").symlink_to("round")
    monkeypatch.chdir(tmp_path)
    assert real_path("link/../new/file") == str(tmp_path / "new/file")
    assert real_path("link/x") == str(tmp_path / "real/x")
    assert real_path("round/x") == str(tmp_path / "round/x")
